//! Real GitHub payloads, signed by GitHub's own library, go through byte for byte.

use std::{collections::BTreeMap, path::PathBuf};

use crate::support::{
    client::{Client, Post, Protocol},
    gate::Setup,
    receiver::Receiver,
    sign, tools,
};

/// Every payload with its event's name and its signature by `@octokit/webhooks-methods`.
fn signed_by_octokit() -> Vec<(String, Vec<u8>, String)> {
    let folder = tools::root().join("tests/payloads/github");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).expect("the payloads are there").map(|entry| entry.expect("readable").path()).collect();
    files.sort();
    assert!(files.len() >= 40, "only {} payloads", files.len());
    let out = tools::output(tools::node("sign.mjs").arg(sign::SECRET).args(&files), b"");
    let signatures: BTreeMap<PathBuf, String> = serde_json::from_str(&out).expect("the script prints JSON");
    let one = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a plain name");
        let event = name.split('.').next().expect("a name has a first part").to_owned();
        (event, std::fs::read(path).expect("the payload is there"), signatures[path].clone())
    };
    files.iter().map(one).collect()
}

async fn check(protocol: Protocol, kept_alive: bool) {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").start().await;
    let payloads = signed_by_octokit();
    let mut connection = None;
    for (n, (event, body, signature)) in payloads.iter().enumerate() {
        let post = Post::new("/github", body.clone())
            .header("user-agent", "GitHub-Hookshot/044aadd")
            .header("x-github-event", event)
            .header("x-github-delivery", &format!("72d3162e-cc78-11e3-81ab-{n:012}"))
            .header("x-hub-signature-256", signature);
        let mut client = match connection.take() {
            Some(client) => client,
            None => Client::connect(&gate, protocol).await,
        };
        let answer = client.send(&post).await;
        if kept_alive {
            connection = Some(client);
        }
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"ok"[..]), "{event}: {answer:?}\n{}", gate.log());

        let seen = receiver.seen();
        assert_eq!(seen.len(), n + 1, "{event} arrived once");
        let seen = &seen[n];
        assert!(seen.body == *body, "{event} is not byte for byte what was sent");
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/hooks"));
        assert_eq!(seen.header("hooklatch-event-id"), answer.event_id());
        assert_eq!(seen.header("hooklatch-route"), "github");
        assert_eq!(seen.header("hooklatch-provider"), "github");
        assert_eq!(seen.header("hooklatch-verified"), "content");
        assert_eq!(seen.header("x-github-event"), event);
        assert_eq!(seen.header("x-hub-signature-256"), signature, "the receiver can check it again");
        assert_eq!(seen.header("content-length"), body.len().to_string());
        assert_eq!(seen.header("x-forwarded-for"), "127.0.0.1");
        assert_eq!(seen.header("x-forwarded-proto"), "https");
    }
    let audit = gate.audited(payloads.len()).await;
    assert_eq!(audit.len(), payloads.len(), "one audit line a decision");
}

#[tokio::test(flavor = "multi_thread")]
async fn octokit_payloads_pass_over_http1_kept_alive() {
    check(Protocol::Http1, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn octokit_payloads_pass_over_http1_one_connection_each() {
    check(Protocol::Http1, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn octokit_payloads_pass_over_http2_kept_alive() {
    check(Protocol::Http2, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn octokit_payloads_pass_over_http2_one_connection_each() {
    check(Protocol::Http2, false).await;
}

/// Other providers' signatures, made by Python's standard library.
#[tokio::test(flavor = "multi_thread")]
async fn providers_signed_by_python_pass_and_a_changed_body_does_not() {
    let receiver = Receiver::start().await;
    let whsec = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let providers = [("stripe", "whsec_5f2c0e7a9b"), ("slack", "8f742231b10e8888abcd99yyyzzz85a5"), ("standardwebhooks", whsec), ("shopify", "hush")];
    let mut policy = String::new();
    for (name, secret) in providers {
        policy.push_str(&format!(
            "[routes.{name}]\npath = \"/{name}\"\nverify = {{ provider = \"{name}\", secret = \"literal:{secret}\" }}\ndeliver = \"{}\"\n",
            receiver.url(&format!("/{name}"))
        ));
    }
    let gate = Setup::new(policy).start().await;
    let mut arrived = 0;
    for (name, secret) in providers {
        let body = format!("{{\"id\":\"evt_1\",\"of\":\"{name}\",\"text\":\"h\u{e9}llo  \\u00e9\"}}");
        let headers = sign::python(name, secret, crate::support::unix_now(), "msg_p5jXN8AQM9LWM0D4loKWxJek", body.as_bytes());
        let post = |body: &str| headers.iter().fold(Post::new(&format!("/{name}"), body.to_owned()), |post, (n, v)| post.header(n, v));
        let forged = post(&body.replace("evt_1", "evt_2")).send(&gate).await;
        assert_eq!(forged.verdict(), (401, "signature_mismatch".to_owned()), "{name}");
        assert!(!forged.header("www-authenticate").is_empty(), "{name}: a 401 names its scheme");
        let answer = post(&body).send(&gate).await;
        assert_eq!(answer.status, 200, "{name}: {answer:?}\n{}", gate.log());
        arrived += 1;
        let seen = receiver.seen();
        assert_eq!((seen.len(), &seen[arrived - 1].body[..]), (arrived, body.as_bytes()), "{name}");
    }
}
