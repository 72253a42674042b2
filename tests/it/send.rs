//! `send` against a running gate: many, spoilt, repeated; and what its exit code says.

use serde_json::Value;

use crate::support::{
    gate::{Gate, Setup},
    receiver::Receiver,
    tools::{self, hooklatch},
};

const SECRET: &str = "literal:whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A gate with a route for each provider, named like it.
async fn gate(receiver: &Receiver, names: &[&str]) -> Gate {
    let routes: String = names
        .iter()
        .map(|name| {
            format!("[routes.{name}]\npath = \"/{name}\"\nverify = {{ provider = \"{name}\", secret = \"{SECRET}\" }}\ndeliver = \"{}\"\n", receiver.url("/"))
        })
        .collect();
    Setup::new(routes).start().await
}

async fn send(gate: &Gate, name: &str, more: &[&str]) -> (Option<i32>, Value, String) {
    let (ca, url) = (gate.ca_file(), gate.url(&format!("/{name}")));
    let mut args = vec!["send", name, "--url", &url, "--secret", SECRET, "--cacert", ca.to_str().expect("a plain path"), "--json"];
    args.extend(more);
    let out = tools::background(hooklatch(args), Vec::new()).await;
    let said = tools::text(&out.stdout) + &tools::text(&out.stderr);
    (out.status.code(), serde_json::from_str(&tools::text(&out.stdout)).unwrap_or_default(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_sent_and_summed_up() {
    let receiver = Receiver::start().await;
    let gate = gate(&receiver, &["github", "stripe"]).await;
    let (code, told, said) = send(&gate, "github", &["--count", "40", "--concurrency", "4", "--event", "push"]).await;
    assert_eq!((code, told["sent"].as_u64(), told["as_due"].as_u64()), (Some(0), Some(40), Some(40)), "{said}");
    assert_eq!((told["answers"][0]["status"].as_u64(), told["answers"][0]["count"].as_u64()), (Some(200), Some(40)), "{said}");
    assert!(told["latency_ms"]["p50"].as_f64() > Some(0.0) && told["latency_ms"]["p99"].as_f64() >= told["latency_ms"]["p50"].as_f64(), "{said}");
    let seen = receiver.arrived(40).await;
    assert!(seen.iter().all(|seen| seen.header("x-github-event") == "push"));
    let mut ids: Vec<&str> = seen.iter().map(|seen| seen.header("x-github-delivery")).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 40, "each has an id of its own");
    let (code, told, said) = send(&gate, "stripe", &["--count", "3", "--rate", "200/s", "--data", "{\"id\":\"evt_of_the_test\"}"]).await;
    assert_eq!((code, told["duplicates"].as_u64()), (Some(0), Some(2)), "one payload is one event for the gate: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_spoilt_has_to_be_refused() {
    let receiver = Receiver::start().await;
    let gate = gate(&receiver, &["github", "stripe", "slack", "standardwebhooks", "gitlab"]).await;
    for (name, what, reason) in [
        ("github", "body", "signature_mismatch"),
        ("github", "signature", "signature_mismatch"),
        ("stripe", "body", "signature_mismatch"),
        ("stripe", "timestamp", "timestamp_stale"),
        ("slack", "timestamp", "timestamp_stale"),
        ("standardwebhooks", "signature", "signature_mismatch"),
        ("standardwebhooks", "timestamp", "timestamp_stale"),
        ("gitlab", "signature", "token_invalid"),
    ] {
        let (code, told, said) = send(&gate, name, &["--tamper", what, "--count", "2"]).await;
        assert_eq!((code, told["as_due"].as_u64(), told["answers"][0]["reason"].as_str()), (Some(0), Some(2), Some(reason)), "{name} {what}: {said}");
    }
    assert_eq!(receiver.count(), 0);
    for (name, what) in [("github", "timestamp"), ("gitlab", "body")] {
        let (code, _, said) = send(&gate, name, &["--tamper", what]).await;
        assert!(code == Some(2) && said.contains("is not refused"), "{name} {what}: {said}");
    }
    // One that is taken although it was spoilt is not as due.
    let open = Setup::new(format!("[routes.open]\npath = \"/github\"\nverify = \"none\"\ndeliver = \"{}\"\n", receiver.url("/"))).start().await;
    let (code, ..) = send(&open, "github", &["--tamper", "signature"]).await;
    assert_eq!(code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_gets_the_stored_answer() {
    let receiver = Receiver::start().await;
    let gate = gate(&receiver, &["github"]).await;
    let (code, told, said) = send(&gate, "github", &["--replay", "--count", "5"]).await;
    assert_eq!((code, told["sent"].as_u64(), told["duplicates"].as_u64()), (Some(0), Some(10), Some(5)), "{said}");
    assert_eq!(receiver.count(), 5);
    // A receiver that takes every copy anew does not do what is due.
    let forgetful = Setup::github(&receiver, "replay = false").start().await;
    let (ca, url) = (forgetful.ca_file(), forgetful.url("/github"));
    let secret = format!("literal:{}", crate::support::sign::SECRET);
    let args = ["send", "github", "--url", &url, "--secret", &secret, "--cacert", ca.to_str().expect("a plain path"), "--replay"];
    let out = tools::background(hooklatch(args), Vec::new()).await;
    let said = tools::text(&out.stdout);
    assert!(out.status.code() == Some(1) && said.contains("1 of 2 as due") && said.contains("p95"), "{said}{}", tools::text(&out.stderr));
}

/// A key pair of one's own: the private half signs, the gate has the public one.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_key_signs_where_the_provider_has_one() {
    let receiver = Receiver::start().await;
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let policy = format!(
        "[routes.discord]\npath = \"/discord\"\nverify = {{ provider = \"discord\", public_key = \"file:public.pem\" }}\ndeliver = \"{}\"\n",
        receiver.url("/")
    );
    let gate = Setup::new(policy).file("public.pem", pair.public_key_pem()).start().await;
    gate.write("private.pem", pair.serialize_pem());
    let (ca, url, key) = (gate.ca_file(), gate.url("/discord"), gate.path("private.pem"));
    let send = async |more: &[&str]| {
        let mut command = hooklatch(["send", "discord", "--url", &url, "--json", "--count", "2", "--data", "{\"type\":1,\"id\":\"1\"}"]);
        command.arg("--key").arg(&key).arg("--cacert").arg(&ca).args(more);
        let out = tools::background(command, Vec::new()).await;
        (out.status.code(), tools::text(&out.stdout) + &tools::text(&out.stderr))
    };
    for more in [&[][..], &["--tamper", "signature"], &["--tamper", "body"]] {
        let (code, said) = send(more).await;
        assert_eq!(code, Some(0), "{more:?}: {said}\n{}", gate.log());
        assert!(said.contains("\"as_due\":2") && !said.contains("PRIVATE"), "{more:?}: {said}");
    }
    let mut command = hooklatch(["send", "github", "--url", &url, "--key"]);
    let out = tools::background(
        {
            command.arg(&key);
            command
        },
        Vec::new(),
    )
    .await;
    assert!(out.status.code() == Some(2) && tools::text(&out.stderr).contains("--key"), "{}", tools::text(&out.stderr));
}
