//! Round trips: what `hooklatch send` signs, the providers' own libraries accept.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{self, tools};

const WHSEC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SECRET: &str = "8f742231b10e8888abcd99yyyzzz85a5";
/// A key pair (RFC 8032, section 7.1, test 1): the seed that `send` signs with, the public half that the library knows.
const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
const PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
/// Text that does not survive being parsed and written again.
const JSON: &str = "{ \"id\":\"evt_1\", \"event_id\":\"evt_1\",\"type\" : \"order.created\", \"text\":\"caf\u{e9} \\u00e9 \u{1f600}\",\"n\":1.0 }\n";
const FORM: &str = "Body=caf%C3%A9+1&From=%2B15550100&Empty=&To=%2B15550199";

/// What `send` would write to the wire, in the form that the scripts read.
fn sent(provider: &str, secret: &str, form: bool) -> Value {
    let (kind, body) = if form { ("application/x-www-form-urlencoded", FORM) } else { ("application/json", JSON) };
    let url = format!("https://hooks.example.com/in/{provider}?tenant=a");
    let seed = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    std::fs::write(seed.path(), SEED).expect("the file is ours");
    let proof = match secret {
        PUBLIC => ["--key".to_owned(), seed.path().display().to_string()],
        secret => ["--secret".to_owned(), format!("literal:{secret}")],
    };
    let mut command = tools::hooklatch(["send", provider, "--url", &url, &proof[0], &proof[1], "--content-type", kind, "--body", "-", "--dry-run"]);
    let out = tools::run(&mut command, body.as_bytes());
    assert!(out.status.success(), "{provider}: {}", tools::text(&out.stderr));
    let end = out.stdout.windows(4).position(|window| window == b"\r\n\r\n").expect("a head and a body");
    let head = tools::text(&out.stdout[..end]);
    let mut lines = head.split("\r\n");
    let line: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let headers: BTreeMap<String, String> =
        lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.trim().to_lowercase(), value.trim().to_owned())).collect();
    json!({
        "provider": provider, "method": line[0], "url": format!("https://hooks.example.com{}", line[1]), "headers": headers, "body": BASE64.encode(&out.stdout[end + 4..]),
        "secret": secret, "now": support::unix_now(),
    })
}

/// Sends as each provider and lets its library judge; a changed body must be refused by the same call.
fn check(run: impl Fn(&str) -> String, providers: &[(&str, &str, bool)]) {
    let requests: Vec<Value> = providers.iter().map(|(name, secret, form)| sent(name, secret, *form)).collect();
    let verdicts: BTreeMap<String, Value> = serde_json::from_str(&run(&Value::from(requests.clone()).to_string())).expect("the script prints JSON");
    for (name, ..) in providers {
        assert_eq!(verdicts[*name], true, "{name}: {}", verdicts[*name]);
    }
    let changed: Vec<Value> = requests
        .into_iter()
        .map(|mut request| {
            let body = BASE64.decode(request["body"].as_str().unwrap_or_default().as_bytes()).expect("base64");
            let body = tools::text(&body).replace("evt_1", "evt_2").replace("15550100", "15550101");
            request["body"] = BASE64.encode(body.as_bytes()).into();
            request
        })
        .collect();
    let verdicts: BTreeMap<String, Value> = serde_json::from_str(&run(&Value::from(changed).to_string())).expect("the script prints JSON");
    for (name, ..) in providers {
        assert_ne!(verdicts[*name], true, "{name} takes a changed body too, so that its yes says nothing");
    }
}

#[test]
fn python_libraries_accept_what_send_signs() {
    let providers = [
        ("hubspot", SECRET, false),
        ("razorpay", SECRET, false),
        ("resend", WHSEC, false),
        ("slack", SECRET, false),
        ("square", SECRET, false),
        ("standardwebhooks", WHSEC, false),
        ("stripe", WHSEC, false),
        ("twilio", SECRET, true),
        ("workos", SECRET, false),
    ];
    let script = std::fs::read_to_string(tools::root().join("tests/python/receive.py")).expect("the script is there");
    check(|requests| tools::output(&mut tools::python(&script), requests.as_bytes()), &providers);
}

#[test]
fn node_libraries_accept_what_send_signs() {
    let providers = [
        ("discord", PUBLIC, false),
        ("github", SECRET, false),
        ("hygraph", SECRET, false),
        ("kontent-ai", SECRET, false),
        ("line", SECRET, false),
        ("paddle", SECRET, false),
        ("sanity", SECRET, false),
        ("shopify", SECRET, false),
        ("standardwebhooks", WHSEC, false),
        ("svix", WHSEC, false),
    ];
    check(|requests| tools::output(&mut tools::node("receive.mjs"), requests.as_bytes()), &providers);
}
