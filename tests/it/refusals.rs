//! What does not get through, with its status and reason; and that none of it reaches a receiver.

use crate::support::{
    client::{Client, Post, Protocol},
    gate::{Gate, Setup},
    receiver::Receiver,
    sign,
    wire::Wire,
};

async fn gate() -> (Receiver, Gate) {
    let receiver = Receiver::start().await;
    let policy = format!(
        r#"
[ip_sets]
elsewhere = ["198.51.100.0/24"]
[routes.github]
path = "/github"
verify = {{ provider = "github", secret = "env:GITHUB_SECRET" }}
limits = {{ body = "64KiB" }}
deliver = "{url}"
[routes.far]
path = "/far"
allow_ips = ["set:elsewhere"]
verify = {{ provider = "github", secret = "env:GITHUB_SECRET" }}
deliver = "{url}"
[routes.hosted]
host = "hooks.example.com"
path = "/hosted"
verify = {{ provider = "github", secret = "env:GITHUB_SECRET" }}
deliver = "{url}"
[routes.typed]
path = "/typed"
verify = {{ provider = "github", secret = "env:GITHUB_SECRET" }}
validate = {{ content_types = ["application/json"], schema = "push.json", max_depth = 8 }}
deliver = "{url}"
"#,
        url = receiver.url("/hooks")
    );
    let schema = r#"{"type":"object","required":["ref"],"properties":{"ref":{"type":"string","pattern":"^refs/"}}}"#;
    let gate = Setup::new(policy).file("push.json", schema).start().await;
    (receiver, gate)
}

/// Beyond 256 KiB it is judged beside the workers.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_payload_is_judged_as_a_small_one_is() {
    let receiver = Receiver::start().await;
    let policy = format!(
        "[routes.typed]\npath = \"/typed\"\nverify = {{ provider = \"github\", secret = \"env:GITHUB_SECRET\" }}\n\
         validate = {{ schema = \"push.json\", decode = [\"gzip\"] }}\ndeliver = \"{}\"\n",
        receiver.url("/hooks")
    );
    let gate = Setup::new(policy).file("push.json", r#"{"properties":{"ref":{"pattern":"^refs/"}}}"#).server("workers = 1").start().await;
    let large = |name: &str, end: &str| format!("{{\"ref\":\"{name}\",\"a\":[{}1]{end}", "1,".repeat(200_000));
    for (what, body, status, reason) in [
        ("good", large("refs/heads/main", "}"), 200, ""),
        ("not as the schema says", large("main", "}"), 422, "schema_invalid"),
        ("not JSON", large("refs/heads/main", ""), 400, "not_json"),
    ] {
        let answer = Post::github(body).to("/typed").send(&gate).await;
        assert_eq!(answer.verdict(), (status, reason.to_owned()), "{what}: {answer:?}");
    }
    assert_eq!(receiver.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_status_and_reason_and_reaches_nobody() {
    let (receiver, gate) = gate().await;
    let body = r#"{"ref":"refs/heads/main"}"#;
    let good = Post::github(body);
    let with = |header: &str, value: &str| Post::new("/github", body).header(header, value);
    let deep = format!("{{\"ref\":\"refs/x\",\"a\":{}{}}}", "[".repeat(20), "]".repeat(20));
    let (_, other) = sign::github_with("another secret entirely", body.as_bytes());
    let (_, signature) = sign::github(body.as_bytes());
    let cases = [
        ("no signature", Post::new("/github", body), 401, "signature_missing"),
        ("no prefix", with("x-hub-signature-256", &signature[7..]), 401, "signature_malformed"),
        ("cut signature", with("x-hub-signature-256", &signature[..70]), 401, "signature_malformed"),
        ("not hexadecimal", with("x-hub-signature-256", &signature.replace(|c: char| c.is_ascii_digit(), "g")), 401, "signature_malformed"),
        ("another secret", with("x-hub-signature-256", &other), 401, "signature_mismatch"),
        ("another body", Post { body: "{}".into(), ..good.clone() }, 401, "signature_mismatch"),
        ("a longer body", Post { body: format!("{body} ").into(), ..good.clone() }, 401, "signature_mismatch"),
        ("no route", good.clone().to("/nothing"), 404, "no_route"),
        ("a longer path", good.clone().to("/github/"), 404, "no_route"),
        ("another letter case", good.clone().to("/GitHub"), 404, "no_route"),
        ("a method that is not the route's", good.clone().method("PUT"), 405, "method_not_allowed"),
        ("a query that is not signed", good.clone().to("/github?tenant=1"), 400, "query_not_signed"),
        ("dots", good.clone().to("/x/../github"), 400, "bad_target"),
        ("coded dots", good.clone().to("/x/%2e%2e/github"), 400, "bad_target"),
        ("a coded slash", good.clone().to("/x%2fgithub"), 400, "bad_target"),
        ("two slashes", good.clone().to("//github"), 400, "bad_target"),
        ("an address that is not allowed", good.clone().to("/far"), 403, "ip_not_allowed"),
        ("another host's route", good.clone().to("/hosted"), 404, "no_route"),
        ("too large", Post::github(vec![b'x'; 65 << 10]), 413, "body_too_large"),
        (
            "another content type",
            Post { headers: vec![("content-type".into(), "text/plain".into()), ("x-hub-signature-256".into(), signature.clone())], ..good.clone() }
                .to("/typed"),
            415,
            "unsupported_media_type",
        ),
        ("not JSON", Post::github("{\"ref\":").to("/typed"), 400, "not_json"),
        ("too deep", Post::github(deep).to("/typed"), 400, "not_json"),
        ("a key twice", Post::github(r#"{"ref":"refs/a","ref":"refs/b"}"#).to("/typed"), 400, "not_json"),
        ("not what the schema says", Post::github(r#"{"ref":"main"}"#).to("/typed"), 422, "schema_invalid"),
    ];
    let count = cases.len();
    for protocol in [Protocol::Http1, Protocol::Http2] {
        for (what, post, status, reason) in &cases {
            let answer = Client::connect(&gate, protocol).await.send(post).await;
            assert_eq!(answer.verdict(), (*status, (*reason).to_owned()), "{what} over {protocol:?}: {answer:?}\n{}", gate.log());
            assert_eq!(answer.header("content-type"), "application/problem+json", "{what}");
            let problem: serde_json::Value = serde_json::from_slice(&answer.body).expect("a problem document");
            assert_eq!((&problem["status"], &problem["event_id"]), (&(*status).into(), &answer.event_id().into()), "{what}");
            assert!(problem["type"].is_string() && problem["title"].is_string(), "{what}: {problem}");
            match status {
                401 => assert!(!answer.header("www-authenticate").is_empty(), "{what}"),
                405 => assert_eq!(answer.header("allow"), "POST", "{what}"),
                422 => assert!(tools_text(&answer.body).contains("/ref"), "{what}: the failing pointer is named"),
                _ => {}
            }
        }
    }
    assert_eq!(receiver.count(), 0, "{:?}", receiver.seen());
    let audit = gate.audited(2 * count).await;
    for (n, (what, _, _, reason)) in cases.iter().enumerate() {
        assert_eq!(audit[n]["reason"], *reason, "{what}: {}", audit[n]);
    }
    // What was refused stays possible.
    assert_eq!(good.send(&gate).await.status, 200);
    assert_eq!(Post::github(body).to("/typed").send(&gate).await.status, 200);
    let mut client = Client::connect_as(&gate, Protocol::Http1, "hooks.example.com", None).await;
    let hosted = client.send(&Post::github(body).to("/hosted").host("hooks.example.com")).await;
    assert_eq!(hosted.status, 200, "{hosted:?}");
}

fn tools_text(bytes: &[u8]) -> String {
    crate::support::tools::text(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_counted() {
    let (_receiver, gate) = gate().await;
    Post::new("/github", "{}").send(&gate).await;
    assert_eq!(gate.metric("hooklatch_refusals_total{route=\"github\",reason=\"signature_missing\"}").await, 1.0, "{}", gate.metrics().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn continue_is_said_only_after_the_guards() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").plain().start().await;
    let body = "{}";
    let head = |signature: &str| format!("POST /github HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n{signature}\r\n");
    let mut wire = Wire::connect(gate.address()).await;
    wire.send(head("").as_bytes()).await;
    assert_eq!(wire.reply().await.map(|reply| reply.status), Some(401), "no 100 for what headers alone refuse");

    let (name, value) = sign::github(body.as_bytes());
    let mut wire = Wire::connect(gate.address()).await;
    wire.send(head(&format!("{name}: {value}\r\n")).as_bytes()).await;
    assert_eq!(wire.reply().await.map(|reply| reply.status), Some(100));
    wire.send(body.as_bytes()).await;
    assert_eq!(wire.reply().await.map(|reply| reply.status), Some(200));

    let mut wire = Wire::connect(gate.address()).await;
    wire.send(b"POST /github HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: the-unexpected\r\n\r\n{}").await;
    assert_eq!(wire.reply().await.map(|reply| reply.status), Some(417));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_says_when_to_come_back() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "rate_limit = [{ per = \"ip\", rate = \"2/h\" }]").start().await;
    let mut statuses = Vec::new();
    for n in 0..4 {
        let answer = Post::github(format!("{{\"n\":{n}}}")).send(&gate).await;
        if answer.status == 429 {
            assert_eq!(answer.reason(), "rate_limited");
            let wait: u64 = answer.header("retry-after").parse().expect("Retry-After is a number of seconds");
            assert!((1..=3600).contains(&wait), "{wait}");
            assert!(!answer.header("ratelimit").is_empty() && !answer.header("ratelimit-policy").is_empty(), "{answer:?}");
        }
        statuses.push(answer.status.as_u16());
    }
    assert_eq!((statuses.iter().filter(|status| **status == 200).count(), statuses.last()), (2, Some(&429)), "{statuses:?}");
    assert_eq!(receiver.count(), 2);
}

/// A flood of forgeries is slowed; the genuine sender behind the same address is not.
#[tokio::test(flavor = "multi_thread")]
async fn verify_failures_turn_floods_into_429_and_never_refuse_the_genuine() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "verify_failures = { per = \"ip\", rate = \"3/h\" }").start().await;
    let mut statuses = Vec::new();
    for n in 0..8 {
        let forged = Post { body: format!("{{\"forged\":{n}}}").into(), ..Post::github("{}") };
        statuses.push(forged.send(&gate).await.status.as_u16());
    }
    assert_eq!((statuses[0], statuses[7]), (401, 429), "{statuses:?}");
    for n in 0..5 {
        assert_eq!(Post::github(format!("{{\"n\":{n}}}")).send(&gate).await.status, 200);
    }
    assert_eq!(receiver.count(), 5);
}
