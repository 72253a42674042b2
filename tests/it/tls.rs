//! TLS as the listener speaks it: versions, names, client certificates, self-signed development.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::{
    client::{Client, Post, Protocol},
    gate::{Gate, Setup},
    receiver::Receiver,
    tls::Ca,
    tools,
};

async fn handshake(gate: &Gate, config: Arc<ClientConfig>, name: &'static str) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let socket = TcpStream::connect(gate.address()).await?;
    TlsConnector::from(config).connect(ServerName::try_from(name).expect("a name"), socket).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_and_1_3_are_spoken_and_1_2_can_be_switched_off() {
    let receiver = Receiver::start().await;
    for (server, both) in [("", true), ("min_version", false)] {
        let setup = Setup::github(&receiver, "");
        let gate = if server.is_empty() { setup } else { setup.tls_keys("min_version = \"1.3\"") }.start().await;
        for (version, works) in [(&rustls::version::TLS12, both), (&rustls::version::TLS13, true)] {
            let mut roots = RootCertStore::empty();
            let pem = gate.ca().expect("TLS").pem();
            roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("our own PEM")).expect("a sound root");
            let config = ClientConfig::builder_with_protocol_versions(&[version]).with_root_certificates(roots).with_no_client_auth();
            let got = handshake(&gate, Arc::new(config), "localhost").await;
            assert_eq!(got.is_ok(), works, "{version:?} with {server:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_resumed_and_take_no_early_data() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").start().await;
    let config = gate.ca().expect("TLS").trust(&["http/1.1"], None);
    let mut kinds = Vec::new();
    for n in 0..3 {
        let stream = handshake(&gate, config.clone(), "localhost").await.expect("the certificate is good");
        kinds.push(stream.get_ref().1.handshake_kind());
        assert!(!stream.get_ref().1.is_early_data_accepted());
        // A request, so that the session's ticket is read.
        let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.expect("HTTP/1.1");
        let connection = tokio::spawn(connection);
        let request = http::Request::get(format!("/{n}")).header("host", "localhost").body(http_body_util::Empty::<bytes::Bytes>::new()).expect("sound");
        assert_eq!(sender.send_request(request).await.expect("an answer").status(), 404);
        drop(sender);
        let _ = connection.await;
    }
    assert_eq!(kinds[2], Some(rustls::HandshakeKind::Resumed), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_chosen_by_the_name_that_is_asked_for() {
    let receiver = Receiver::start().await;
    let ca = Ca::new("names CA");
    let (one, two) = (ca.server(&["one.example"]), ca.server(&["two.example"]));
    let gate = Setup::github(&receiver, "")
        .tls_only("certificates = [{ cert = \"one.pem\", key = \"one.key\" }, { cert = \"two.pem\", key = \"two.key\" }]")
        .file("one.pem", one.cert)
        .file("one.key", one.key)
        .file("two.pem", two.cert)
        .file("two.key", two.key)
        .start()
        .await;
    let config = ca.trust(&["http/1.1"], None);
    for (name, good) in [("one.example", true), ("two.example", true), ("three.example", false)] {
        assert_eq!(handshake(&gate, config.clone(), name).await.is_ok(), good, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_can_demand_a_client_certificate() {
    let receiver = Receiver::start().await;
    let ours = Ca::new("clients CA");
    let policy = format!(
        "{}client_cert = {{ ca = \"tls/clients.pem\", subjects = [\"CN=hooks\"] }}\n[routes.open]\npath = \"/open\"\nverify = \"none\"\ndeliver = \"{}\"\n",
        crate::support::gate::github_route(&receiver, ""),
        receiver.url("/")
    );
    let gate = Setup::new(policy).client_ca(&ours).start().await;
    let (hooks, other) = (ours.client("hooks"), ours.client("somebody-else"));
    for (what, identity, verdict) in [
        ("none", None, (403, "client_cert_not_allowed")),
        ("another subject", Some(&other), (403, "client_cert_not_allowed")),
        ("the right one", Some(&hooks), (200, "")),
    ] {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let mut client = Client::connect_as(&gate, protocol, "localhost", identity).await;
            let answer = client.send(&Post::github(format!("{{\"as\":\"{what} {protocol:?}\"}}"))).await;
            assert_eq!(answer.verdict(), (verdict.0, verdict.1.to_owned()), "{what}: {answer:?}");
            let open = client.send(&Post::new("/open", "{}").to("/open")).await;
            assert_eq!(open.status, 200, "{what}: a certificate is demanded by the route, not by the handshake");
        }
    }
    // One of a CA that nobody named.
    let stranger = Ca::new("strangers CA").client("hooks");
    let refused = match Client::try_connect(&gate, Protocol::Http1, "localhost", Some(&stranger)).await {
        Err(_) => true,
        Ok(mut client) => client.try_send(&Post::github("{\"as\":\"stranger\"}")).await.map_or(true, |answer| answer.status == 403),
    };
    assert!(refused);
}

/// A name in the request that is not the one of the handshake is another site's request.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_the_handshakes_is_misdirected() {
    let receiver = Receiver::start().await;
    let policy = crate::support::gate::github_route(&receiver, "host = \"hooks.example.com\"");
    let gate = Setup::new(policy).start().await;
    let mut client = Client::connect_as(&gate, Protocol::Http2, "localhost", None).await;
    assert_eq!(client.send(&Post::github("{}").host("hooks.example.com")).await.verdict(), (421, "misdirected".to_owned()));
    let mut client = Client::connect_as(&gate, Protocol::Http2, "hooks.example.com", None).await;
    assert_eq!(client.send(&Post::github("{}").host("hooks.example.com")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn self_signed_prints_a_ca_that_curl_trusts() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").tls_only("self_signed = true").start().await;
    let log = gate.log();
    let path = log.split(['"', ' ', ',', '`']).find(|word| word.ends_with(".pem") && word.contains("ca")).unwrap_or_else(|| panic!("no CA file named:\n{log}"));
    let mut curl = tools::program("curl");
    curl.args(["--silent", "--show-error", "--output", "/dev/null", "--write-out", "%{http_code}", "--cacert", path]).arg(gate.url("/nothing"));
    let out = tools::background(curl, Vec::new()).await;
    assert_eq!(tools::text(&out.stdout), "404", "{}", tools::text(&out.stderr));
}
