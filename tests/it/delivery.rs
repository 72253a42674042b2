//! Delivery in proxy mode: receivers that misbehave, pools, health, TLS, unix sockets.

use std::{sync::Arc, time::Duration};

use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};

use crate::support::{
    client::{Answer, Client, Post, Protocol},
    gate::{Gate, Setup},
    now,
    receiver::{Act, Receiver},
    tls::Ca,
    until,
};

/// A GitHub route to a destination `out` with these keys.
fn to_destination(keys: &str) -> Setup {
    Setup::new(format!(
        "[destinations.out]\n{keys}\n[routes.github]\npath = \"/github\"\nverify = {{ provider = \"github\", secret = \"env:GITHUB_SECRET\" }}\ndeliver = [{{ to = \"out\", mode = \"proxy\" }}]\n"
    ))
}

fn body(n: usize) -> String {
    format!("{{\"n\":{n}}}")
}

/// What becomes of an answer that a receiver gave, and then that the gate goes on: the retry is delivered.
async fn check_faulty(what: &str, act: Act, want: (u16, &str)) {
    let receiver = Receiver::acting(move |seen| if seen.header("x-again").is_empty() { act.clone() } else { Act::Answer(200, "ok") }).await;
    let gate = to_destination(&format!("url = \"{}\"\ntimeout = \"1s\"", receiver.url("/hooks"))).start().await;
    let start = now();
    let answer = Post::github("{}").send(&gate).await;
    assert_eq!(answer.verdict(), (want.0, want.1.to_owned()), "{what}: {answer:?}");
    assert!(start.elapsed() < Duration::from_secs(20), "{what}: bounded by the timeout");
    let again = Post::github("{}").header("x-again", "1").send(&gate).await;
    assert_eq!((again.status.as_u16(), again.event_id()), (200, answer.event_id()), "{what}: the claim is released: {again:?}");
}

fn raw(text: &str) -> Act {
    Act::RawThenClose(text.as_bytes().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_that_answer_wrongly() {
    let invalid = (502, "upstream_invalid");
    for (what, act) in [
        ("garbage", raw("garbage\r\n\r\n")),
        ("bytes that are no text", Act::RawThenClose(vec![0xff; 64])),
        ("another protocol", raw("SSH-2.0-OpenSSH_9.2\r\n")),
        ("a status that is no number", raw("HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n")),
        ("a status below 100", raw("HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n")),
        ("two lengths", raw("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok")),
        ("a length that is no number", raw("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok")),
        ("a body that is cut", raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok")),
        ("a chunk that is cut", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok")),
        ("a chunk size that is none", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n")),
        ("headers that are cut", raw("HTTP/1.1 200 OK\r\nContent-Le")),
        ("an upgrade", raw("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")),
        ("a header line that is endless", Act::Endless(b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 65536])),
        ("headers without end", Act::Endless(b"HTTP/1.1 200 OK\r\n".to_vec(), b"X: y\r\n".repeat(1000))),
        ("a body without end", Act::Endless(b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 65536])),
        (
            "chunks without end",
            Act::Endless(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
                [b"1000\r\n".to_vec(), vec![b'x'; 4096], b"\r\n".to_vec()].concat(),
            ),
        ),
        ("early hints without end", Act::Endless(Vec::new(), b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(100))),
        ("continue without end", Act::Endless(Vec::new(), b"HTTP/1.1 100 Continue\r\n\r\n".repeat(100))),
    ] {
        check_faulty(what, act, invalid).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_that_do_not_answer() {
    check_faulty("it hangs", Act::Hang, (504, "upstream_timeout")).await;
    check_faulty("headers and then nothing", Act::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok".to_vec()), (504, "upstream_timeout")).await;
    check_faulty("half a head and then nothing", Act::Raw(b"HTTP/1.1 200 OK\r\nContent-".to_vec()), (504, "upstream_timeout")).await;
    let closed = Receiver::start().await;
    closed.stop_listening();
    until("the port to be closed", || async { tokio::net::TcpStream::connect(closed.address()).await.err() }).await;
    let gate = to_destination(&format!("url = \"{}\"\ntimeout = \"1s\"", closed.url("/"))).start().await;
    assert_eq!(Post::github("{}").send(&gate).await.verdict(), (502, "upstream_unreachable".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_failures_and_never_followed() {
    let elsewhere = Receiver::start().await;
    for status in [301, 302, 303, 307, 308] {
        let redirect = format!("HTTP/1.1 {status} Elsewhere\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", elsewhere.url("/"));
        check_faulty("a redirect", raw(&redirect), (502, "upstream_redirect")).await;
    }
    assert_eq!(elsewhere.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_early_answers_are_consumed() {
    let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok";
    let receiver = Receiver::acting(|_| Act::Raw(text.into())).await;
    let gate = Setup::github(&receiver, "").start().await;
    for n in 0..3 {
        let answer = Post::github(body(n)).send(&gate).await;
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (201, &b"ok"[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receivers_verdict_passes_through_and_its_connection_headers_do_not() {
    let text = "HTTP/1.1 422 Odd\r\nContent-Type: application/vnd.x\r\nX-Kept: yes\r\nSet-Cookie: a=b\r\nServer: secret/1.0\r\nHooklatch-Event-Id: forged\r\nHooklatch-Anything: forged\r\nKeep-Alive: timeout=5\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Length: 3\r\n\r\nodd";
    let receiver = Receiver::acting(|_| Act::RawThenClose(text.into())).await;
    let gate = Setup::github(&receiver, "").start().await;
    let answer = Post::github("{}").send(&gate).await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (422, &b"odd"[..]));
    assert_eq!((answer.header("content-type"), answer.header("x-kept")), ("application/vnd.x", "yes"));
    for name in ["set-cookie", "server", "hooklatch-anything", "keep-alive", "x-hop"] {
        assert!(answer.headers.get(name).is_none(), "{name} passed: {answer:?}");
    }
    assert_eq!(answer.headers.get_all("hooklatch-event-id").iter().count(), 1);
    assert_ne!(answer.event_id(), "forged");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_a_receiver_are_kept() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").server("workers = 1").start().await;
    for n in 0..50 {
        assert_eq!(Post::github(body(n)).send(&gate).await.status, 200);
    }
    assert!(receiver.connections() <= 2, "{} connections for 50 deliveries one after the other", receiver.connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_never_crossed_between_senders() {
    let receiver = Receiver::acting(|seen| {
        let text = String::from_utf8_lossy(&seen.body).into_owned();
        Act::Raw(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes())
    })
    .await;
    let gate = Arc::new(Setup::github(&receiver, "").start().await);
    let mut senders = JoinSet::new();
    for sender in 0..16 {
        let gate = gate.clone();
        senders.spawn(async move {
            let protocol = if sender % 2 == 0 { Protocol::Http1 } else { Protocol::Http2 };
            let mut client = Client::connect(&gate, protocol).await;
            for n in 0..30 {
                let text = body(sender * 1000 + n);
                let answer = client.send(&Post::github(text.clone())).await;
                assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, text.as_bytes()));
            }
        });
    }
    while let Some(sender) = senders.join_next().await {
        sender.expect("no answer was crossed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_receivers_down_fails_nothing_after_two_seconds() {
    let receivers = [Receiver::start().await, Receiver::start().await, Receiver::start().await];
    let urls: Vec<String> = receivers.iter().map(|receiver| format!("\"{}\"", receiver.url("/hooks"))).collect();
    let gate = to_destination(&format!("urls = [{}]\ntimeout = \"2s\"", urls.join(", "))).start().await;
    for n in 0..30 {
        assert_eq!(Post::github(body(n)).send(&gate).await.status, 200);
    }
    assert!(receivers.iter().all(|receiver| receiver.count() > 0), "all three get their share");
    let [down, ..] = &receivers;
    down.stop_listening();
    until("the port to be closed", || async { tokio::net::TcpStream::connect(down.address()).await.err() }).await;
    // The requirement's two seconds, in which failures may happen.
    let start = now();
    let mut n = 1000;
    while start.elapsed() < Duration::from_secs(2) {
        Post::github(body(n)).send(&gate).await;
        n += 1;
    }
    for n in 2000..2060 {
        let answer = Post::github(body(n)).send(&gate).await;
        assert_eq!(answer.status, 200, "send {n}: {answer:?}\n{}", gate.log());
    }
}

/// Serves HTTP by hyper, over whatever the listener yields, and says which protocol it was.
async fn serve<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static>(stream: S) {
    let service = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
        let version = format!("{:?}", request.version());
        let body = http_body_util::BodyExt::collect(request.into_body()).await?.to_bytes();
        Ok::<_, hyper::Error>(hyper::Response::new(http_body_util::Full::new(bytes::Bytes::from(format!("{version} {}", String::from_utf8_lossy(&body))))))
    });
    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

async fn tls_receiver(ca: &Ca, alpn: &[&str]) -> std::net::SocketAddr {
    let acceptor = tokio_rustls::TlsAcceptor::from(ca.server(&["localhost", "127.0.0.1"]).serve(alpn));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(socket).await {
                    serve(stream).await;
                }
            });
        }
    });
    address
}

async fn sent(gate: &Gate) -> Answer {
    Post::github("{}").send(gate).await
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_over_tls_with_their_own_ca() {
    let ca = Ca::new("receivers' CA");
    for (alpn, version) in [(&["http/1.1"][..], "HTTP/1.1"), (&["h2", "http/1.1"][..], "HTTP/2.0"), (&["h2"][..], "HTTP/2.0")] {
        let address = tls_receiver(&ca, alpn).await;
        let keys = format!("url = \"https://localhost:{}/x\"\ntls = {{ ca = \"receivers.pem\" }}", address.port());
        let gate = to_destination(&keys).file("receivers.pem", ca.pem()).start().await;
        let answer = sent(&gate).await;
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, format!("{version} {{}}").as_bytes()), "{alpn:?}: {answer:?}\n{}", gate.log());
    }
    let address = tls_receiver(&ca, &["http/1.1"]).await;
    let other = Ca::new("another CA");
    let keys = format!("url = \"https://localhost:{}/x\"\ntls = {{ ca = \"receivers.pem\" }}", address.port());
    let gate = to_destination(&keys).file("receivers.pem", other.pem()).start().await;
    assert_eq!(sent(&gate).await.verdict(), (502, "upstream_unreachable".to_owned()), "a receiver of another CA is not believed");
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_on_unix_sockets() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = dir.path().join("receiver.sock");
    let listener = UnixListener::bind(&path).expect("the folder is ours");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket));
        }
    });
    let gate = to_destination(&format!("url = \"unix:{}\"", path.display())).start().await;
    let answer = sent(&gate).await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"HTTP/1.1 {}"[..]), "{answer:?}\n{}", gate.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_hosts_are_the_destinations_own_or_kept() {
    let receiver = Receiver::start().await;
    let (url, root) = (receiver.url("/base"), receiver.url("/"));
    let policy = format!(
        r#"
[destinations.own]
url = "{url}"
[destinations.kept]
url = "{root}"
path = "keep"
host = "keep"
headers = {{ "X-Env" = "prod" }}
[routes.own]
path = "/own/*"
verify = "none"
query = ["a"]
deliver = "own"
[routes.kept]
path = "/kept/*"
verify = "none"
deliver = "kept"
"#
    );
    let gate = Setup::new(policy).start().await;
    for (target, want, host) in [("/own/x/y", "/base/x/y", receiver.address().to_string()), ("/kept/x/y", "/kept/x/y", "localhost".to_owned())] {
        let answer = Post::new(target, "{}").send(&gate).await;
        assert_eq!(answer.status, 200, "{target}: {answer:?}\n{}", gate.log());
        let seen = receiver.seen().pop().expect("forwarded");
        assert_eq!((&seen.target[..], seen.header("host")), (want, &host[..]));
        assert_eq!(seen.header("x-forwarded-host"), "localhost");
        assert_eq!(seen.header("hooklatch-verified"), "none");
    }
    assert_eq!(receiver.seen()[1].header("x-env"), "prod");
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_choose_the_destinations() {
    let (pushes, others) = (Receiver::start().await, Receiver::start().await);
    let policy = format!(
        r#"
[destinations.pushes]
url = "{}"
[destinations.others]
url = "{}"
[routes.github]
path = "/github"
verify = {{ provider = "github", secret = "env:GITHUB_SECRET" }}
deliver = [
  {{ when = "event.type == 'push' && body.ref == 'refs/heads/main'", to = "pushes", mode = "proxy" }},
  {{ when = "event.type == 'issues'", to = "others", mode = "proxy" }},
]
acknowledge = {{ status = 202 }}
"#,
        pushes.url("/"),
        others.url("/")
    );
    let gate = Setup::new(policy).start().await;
    for (event, text, status, counts) in [
        ("push", r#"{"ref":"refs/heads/main"}"#, 200, (1, 0)),
        ("push", r#"{"ref":"refs/heads/other"}"#, 202, (1, 0)),
        ("issues", r#"{"action":"opened"}"#, 200, (1, 1)),
        ("star", r#"{"action":"created"}"#, 202, (1, 1)),
    ] {
        let mut post = Post::github(text);
        post.headers.retain(|(name, _)| name != "x-github-event");
        let answer = post.header("x-github-event", event).send(&gate).await;
        assert_eq!(answer.status, status, "{event} {text}: {answer:?}\n{}", gate.log());
        assert_eq!((pushes.count(), others.count()), counts, "{event} {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn path_parameters_choose_the_destinations() {
    let (acme, others) = (Receiver::start().await, Receiver::start().await);
    let policy = format!(
        r#"
[destinations.acme]
url = "{}"
[destinations.others]
url = "{}"
[routes.github]
path = "/tenants/{{tenant}}/github"
verify = {{ provider = "github", secret = "env:GITHUB_SECRET" }}
deliver = [{{ when = "path.tenant == 'acme inc'", to = "acme" }}, {{ when = "path.tenant != 'acme inc'", to = "others" }}]
"#,
        acme.url("/"),
        others.url("/")
    );
    let gate = Setup::new(policy).start().await;
    for (n, tenant, counts) in [(0, "acme%20inc", (1, 0)), (1, "acme", (1, 1)), (2, "ACME%20inc", (1, 2))] {
        let answer = Post::github(body(n)).to(&format!("/tenants/{tenant}/github")).send(&gate).await;
        assert_eq!(answer.status, 200, "{tenant}: {answer:?}\n{}", gate.log());
        assert_eq!((acme.count(), others.count()), counts, "{tenant}");
    }
}

/// A raw server that closes each connection right after its answer, without saying so.
async fn closing_receiver() -> (std::net::SocketAddr, Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let address = listener.local_addr().expect("bound");
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let counter = counter.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 65536];
                let mut got = Vec::new();
                // The request's body ends with its closing brace.
                while !got.ends_with(b"}") {
                    match socket.read(&mut buffer).await {
                        Ok(0) | Err(_) => return,
                        Ok(n) => got.extend_from_slice(&buffer[..n]),
                    }
                }
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            });
        }
    });
    (address, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_closes_idle_connections_at_once_fails_none_of_150() {
    let (address, count) = closing_receiver().await;
    let gate = to_destination(&format!("url = \"http://{address}/\"")).start().await;
    let mut client = Client::connect(&gate, Protocol::Http1).await;
    for n in 0..150 {
        let answer = client.send(&Post::github(body(n))).await;
        assert_eq!(answer.status, 200, "delivery {n}: {answer:?}");
    }
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 150, "each was delivered once");
}
