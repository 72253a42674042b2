//! `verify` from outside: the seeded mistakes of `tests/mistakes`, in every form that a capture may have, and refused events of a
//! running gate.

use std::{fs, path::Path, process::Output};

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    client::Post,
    gate::{ADMIN_TOKEN, Setup},
    receiver::Receiver,
    sign,
    tools::{self, hooklatch},
};

fn mistakes() -> Vec<Value> {
    let text = fs::read(tools::root().join("tests/mistakes/mistakes.json")).expect("the table is part of the repository");
    serde_json::from_slice(&text).expect("a table")
}

fn body(mistake: &Value) -> Vec<u8> {
    BASE64.decode(mistake["body_base64"].as_str().expect("a body").as_bytes()).expect("base64")
}

fn headers(mistake: &Value) -> Vec<(String, String)> {
    serde_json::from_value(mistake["headers"].clone()).expect("pairs")
}

fn raw(mistake: &Value, end: &str) -> Vec<u8> {
    let (method, url) = (mistake["method"].as_str().expect("a method"), mistake["url"].as_str().expect("a URL"));
    let mut text = format!("{method} {url} HTTP/1.1{end}");
    for (name, value) in headers(mistake) {
        text.push_str(&format!("{name}: {value}{end}"));
    }
    text.push_str(end);
    [text.as_bytes(), &body(mistake)].concat()
}

fn har(mistake: &Value) -> Vec<u8> {
    let headers: Vec<Value> = headers(mistake).iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    let data = json!({ "mimeType": "x/y", "text": mistake["body_base64"], "encoding": "base64" });
    let request = json!({ "method": mistake["method"], "url": mistake["url"], "headers": headers, "postData": data, "bodySize": -1 });
    let other = json!({ "request": { "method": "GET", "url": "https://example.com/", "headers": [] } });
    json!({ "log": { "entries": [other, { "request": request }] } }).to_string().into_bytes()
}

/// The command, and the body's file beside it.
fn curl(mistake: &Value, dir: &Path) -> Vec<u8> {
    fs::write(dir.join("body.bin"), body(mistake)).expect("the folder is ours");
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let mut text = format!("curl -X {} {} \\\n", mistake["method"].as_str().expect("a method"), quoted(mistake["url"].as_str().expect("a URL")));
    for (name, value) in headers(mistake) {
        text.push_str(&format!("  -H {} \\\n", quoted(&format!("{name}: {value}"))));
    }
    text.push_str("  --data-binary @body.bin\n");
    text.into_bytes()
}

fn verify(mistake: &Value, file: &Path, more: &[&str]) -> Output {
    let mut command = hooklatch(["verify", mistake["provider"].as_str().expect("a provider"), "--json", "--now", &mistake["now"].to_string(), "--request"]);
    command.arg(file).args(more);
    for (at, secret) in mistake["secrets"].as_array().expect("secrets").iter().enumerate() {
        command.arg("--secret").arg(format!("env:SECRET_{at}")).env(format!("SECRET_{at}"), secret.as_str().expect("a text"));
    }
    tools::run(&mut command, b"")
}

#[test]
fn seeded_mistakes_are_named_from_every_form_of_capture() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let file = dir.path().join("captured");
    let mut named = 0;
    for (at, mistake) in mistakes().iter().enumerate().filter(|(_, mistake)| mistake.get("others").is_none()) {
        let id = &mistake["id"];
        let (text, more): (Vec<u8>, &[&str]) = match at % 4 {
            0 => (raw(mistake, "\r\n"), &[]),
            1 => (raw(mistake, "\n"), &[]),
            2 => (har(mistake), &["--entry", "2"]),
            _ => (curl(mistake, dir.path()), &[]),
        };
        fs::write(&file, text).expect("the folder is ours");
        let out = verify(mistake, &file, more);
        let (said, complaint) = (tools::text(&out.stdout), tools::text(&out.stderr));
        assert_eq!(out.status.code(), Some(1), "{id}: {said}{complaint}");
        let told: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{id}: {said}: {error}"));
        assert_eq!(told["findings"][0]["cause"], mistake["cause"], "{id}: {said}");
        named += 1;
    }
    assert!(named >= 80, "{named}");
}

#[test]
fn what_was_read_and_signed_is_told_without_a_secret() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let file = dir.path().join("captured");
    let mistakes = mistakes();
    let find = |id: &str| mistakes.iter().find(|mistake| mistake["id"] == id).expect("it is in the table");
    let mistake = find("slack/bom");
    fs::write(&file, raw(mistake, "\r\n")).expect("the folder is ours");
    let mut command = hooklatch(["verify", "slack", "--now", "1760000000", "--secret", "env:S", "--request"]);
    let out = tools::run(command.arg(&file).env("S", mistake["secrets"][0].as_str().expect("a text")).env("NO_COLOR", "1"), b"");
    let said = tools::text(&out.stdout);
    for want in [
        "signature_mismatch",
        "raw HTTP",
        "32 bytes in lower-case hex after `v0=`",
        "2025-10-09T08:53:20",
        "v0:1760000000:{body: 68 bytes}",
        "SHA-256",
        "body_bom",
    ] {
        assert!(said.contains(want), "{want} is not in\n{said}");
    }
    assert!(!said.contains(mistake["secrets"][0].as_str().expect("a text")), "{said}");
    // A route of a policy, and the secret of another.
    let mistake = find("github/secret-of-another-route");
    let policy = dir.path().join("policy.toml");
    let route = |name: &str| {
        format!(
            "[routes.{name}]\npath = \"/{name}\"\nverify = {{ provider = \"github\", secrets = [{{ from = \"env:{name}\", label = \"2026\" }}] }}\ndeliver = \"builtin:inspector\"\n"
        )
    };
    fs::write(&policy, route("A") + &route("B")).expect("the folder is ours");
    fs::write(&file, raw(mistake, "\r\n")).expect("the folder is ours");
    let mut command = hooklatch(["verify", "--route", "A", "--config"]);
    let other = mistake["others"][0].as_str().expect("a text");
    command.arg(&policy).arg("--request").arg(&file).env("A", mistake["secrets"][0].as_str().expect("a text")).env("B", other);
    let out = tools::run(&mut command, b"");
    let said = tools::text(&out.stdout);
    assert!(said.contains("the secret 2026 of the route `B`") && !said.contains(other), "{said}{}", tools::text(&out.stderr));
    for (args, want) in [
        (&["verify", "--route", "C", "--request", "x"][..], "no route `C`"),
        (&["verify", "github", "--request", "/dev/null"], "--secret"),
        (&["verify", "--event", "../x"], "is not an event's id"),
    ] {
        let mut command = hooklatch(args);
        command.arg("--config").arg(&policy).env("A", "a secret of the tests, A").env("B", "a secret of the tests, B");
        let out = tools::run(&mut command, b"");
        let said = tools::text(&out.stderr);
        assert!(out.status.code() == Some(2) && said.contains(want), "{args:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_events_of_a_gate_are_explained() {
    let receiver = Receiver::start().await;
    let gate = Setup::github(&receiver, "").admin_keys("capture = { refused = 3, max_body = \"1KiB\" }").start().await;
    let body = "{\"ref\":\"refs/heads/main\"}";
    let (name, signature) = sign::github(body.as_bytes());
    let newline = Post::new("/github", format!("{body}\n")).header(name, &signature).header("authorization", "Bearer s3cret").send(&gate).await;
    let missing = Post::new("/github", "x".repeat(2000)).send(&gate).await;
    let taken = Post::github(body).send(&gate).await;
    assert_eq!((newline.verdict().1.as_str(), missing.verdict().1.as_str(), taken.verdict().0), ("signature_mismatch", "signature_missing", 200));
    let admin = format!("http://{}", gate.admin_address());
    let ask = async |id: String| {
        let mut command = hooklatch(["verify", "--event", &id, "--admin", &admin, "--token", "env:TOKEN", "--json"]);
        command.env("TOKEN", ADMIN_TOKEN);
        tools::background(command, Vec::new()).await
    };
    let out = ask(newline.event_id()).await;
    let said = tools::text(&out.stdout);
    let told: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{said}{}: {error}", tools::text(&out.stderr)));
    assert_eq!((out.status.code(), told["findings"][0]["cause"].as_str()), (Some(1), Some("body_newline_added")), "{said}");
    let out = ask(missing.event_id()).await;
    let told: Value = serde_json::from_str(&tools::text(&out.stdout)).expect("JSON");
    assert_eq!((told["findings"][0]["cause"].as_str(), told["request"]["body_bytes"].as_u64()), (Some("signature_missing"), None), "{told}");
    let list = gate.admin("/api/v1/refused", &format!("Authorization: Bearer {ADMIN_TOKEN}\r\n")).await;
    let detail = gate.admin(&format!("/api/v1/refused/{}", newline.event_id()), &format!("Authorization: Bearer {ADMIN_TOKEN}\r\n")).await;
    let shown = tools::text(&list.body) + &tools::text(&detail.body);
    assert!(shown.contains("refs/heads/main") && !shown.contains("s3cret") && !shown.contains(&signature[7..]) && !said.contains(&signature[7..]), "{shown}");
    let out = ask("01938f3e-7b1c-7000-8000-0123456789ab".to_owned()).await;
    assert!(out.status.code() == Some(2) && tools::text(&out.stderr).contains("not kept here"), "{}", tools::text(&out.stderr));
    // Without the key nothing is kept.
    let gate = Setup::github(&receiver, "").start().await;
    let refused = Post::new("/github", body).send(&gate).await;
    gate.audited(1).await;
    let list = gate.admin("/api/v1/refused", &format!("Authorization: Bearer {ADMIN_TOKEN}\r\n")).await;
    let list: Value = serde_json::from_slice(&list.body).expect("JSON");
    assert_eq!((list["on"].as_bool(), list["events"].as_array().map(Vec::len)), (Some(false), Some(0)), "{}", refused.event_id());
}
