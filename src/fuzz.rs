//! Doors for `fuzz/`, which sees only what is public. Nothing else uses them.
//!
//! Each takes any bytes and must neither panic nor hang; what it also checks, it says. The tests below run the same doors over the
//! committed corpus, over small changes of it and over made-up bytes, so that a stable toolchain exercises them on every change.

use std::{collections::BTreeMap, fs, path::Path, sync::OnceLock};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::{
    capture::{self, Reading},
    config,
    problem::Source,
    secret::Secret,
    section::{Inputs, Reader},
    validate::json::{self, Pointer, Value},
    verify::{Catalogue, Means, Plan, cases, cases::Request},
};

const NOW_MS: i64 = 1_760_000_000_000;

/// A door and its name, which is that of its target and of its corpus.
pub type Door = (&'static str, fn(&[u8]));

pub const DOORS: &[Door] = &[
    ("policy", policy),
    ("definition", definition),
    ("template", template),
    ("request", request),
    ("token", token),
    ("sns", sns),
    ("pointer", pointer),
    ("capture", captured),
];

/// Every preset with the keys of its first case.
fn plans() -> &'static [(String, Plan)] {
    static PLANS: OnceLock<Vec<(String, Plan)>> = OnceLock::new();
    PLANS.get_or_init(|| {
        let catalogue = Catalogue::shipped();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
        let plan = |name: &str| {
            let text = fs::read(folder.join(format!("{name}.json"))).ok()?;
            cases::read(&text).ok()?.first()?.plan(&catalogue).ok()
        };
        catalogue.names().into_iter().filter_map(|name| Some((name.to_owned(), plan(name)?))).collect()
    })
}

fn judge_by(name: &str, plan: &Plan, request: &Request) {
    let _ = request.judge(plan, NOW_MS);
    let _ = plan.unsigned_query(&request.facts(), &[]);
    let told = plan.unverified(&request.facts(), &mut request.body.clone());
    assert!(told.replay.is_none(), "{name}: what nobody verified has no replay key");
}

/// A policy file.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = config::read(Source { name: "fuzz".into(), text: text.to_owned() }, Inputs::memory(&[("SECRET", "0123456789abcdef")], &[]));
    for problem in &read.problems {
        let _ = problem.to_string();
    }
    let _ = read.source.render(&read.problems, false);
}

/// The lines of a provider's table; one that is good judges a request.
pub fn definition(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    defined(&format!("[providers.own]\n{text}"));
}

/// A template of what is signed, in several surroundings.
pub fn template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A JSON string is a TOML basic string.
    let signed = serde_json::Value::from(text);
    let plain = "scheme = \"hmac\"\nalgorithm = \"sha256\"\nparams = [\"p\"]\nsignature = { header = \"X-Sig\", format = \"pairs\", field = \"v1\", encoding = \"hex\" }";
    let more = "timestamp = { header = \"X-Time\", unit = \"s\", of = \"event\" }\ndelivery_id = { header = \"X-Id\" }\nreplay_key = \"content\"";
    for ambiguous in [false, true] {
        defined(&format!("[providers.own]\n{plain}\n{more}\nsigned = {signed}\nambiguous = {ambiguous}"));
    }
}

fn defined(text: &str) {
    let reader = Reader::new(Source { name: "fuzz".into(), text: text.to_owned() }, Inputs::memory(&[], &[]));
    let table = reader.parse();
    if reader.failed() {
        return;
    }
    let catalogue = Catalogue::read(&reader.root(&table));
    let _ = reader.source.render(&reader.problems(), false);
    let Some(definition) = catalogue.definition("own").filter(|_| !reader.failed()) else { return };
    let secrets = [Secret::new("#1", b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_vec(), None)];
    let params: BTreeMap<String, String> = definition.params.iter().map(|name| (name.clone(), "mine".to_owned())).collect();
    let Ok(plan) = Plan::new(definition, &Means::new(&secrets, &params)) else { return };
    for (kind, body) in
        [("application/json", &b"{\"id\":\"1\",\"a\":[1,{\"b\":null}]}"[..]), ("application/x-www-form-urlencoded", b"a=1&b=%32&a=3"), ("", b"\xff\x00")]
    {
        let zeros = "0".repeat(64);
        let head = format!("/in/x?a=1&b\ncontent-type: {kind}\nx-sig: t=1760000000,v1={zeros}\nx-time: 1760000000\nx-id: 1\nx-a: 2\n\n");
        judge_by("own", &plan, &request_of(&[head.as_bytes(), body].concat()));
    }
}

/// A target, headers and a body, judged by every preset.
pub fn request(data: &[u8]) {
    let request = request_of(data);
    for (name, plan) in plans() {
        judge_by(name, plan, &request);
    }
}

/// A line with the target, lines `name: value`, an empty line, the body. What cannot stand in HTTP is left out.
fn request_of(data: &[u8]) -> Request {
    let end = data.windows(2).position(|pair| pair == b"\n\n").unwrap_or(data.len());
    let mut lines = data[..end].split(|byte| *byte == b'\n');
    let target = lines.next().and_then(|line| std::str::from_utf8(line).ok()).filter(|line| line.starts_with('/')).unwrap_or("/in").to_owned();
    let mut headers = HeaderMap::new();
    for line in lines.take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii())) {
            headers.append(name, value);
        }
    }
    let body = Bytes::copy_from_slice(data.get(end + 2..).unwrap_or_default());
    Request { method: Method::POST, base: "https://hooks.example.com".into(), target, headers, body: body.into() }
}

/// A token, wherever a provider sends one.
pub fn token(data: &[u8]) {
    let mut request = request_of(b"/in\n\n");
    request.body = Bytes::copy_from_slice(data).into();
    for (name, prefix) in [
        ("authorization", "Bearer "),
        ("messagebird-signature-jwt", ""),
        ("plaid-verification", ""),
        ("x-webhook-signature", ""),
        ("signature-input", ""),
        ("signature", ""),
        ("content-digest", ""),
    ] {
        if let Ok(value) = HeaderValue::from_bytes(&[prefix.as_bytes(), data].concat()) {
            request.headers.insert(name, value);
        }
    }
    let mut bare = request.copy();
    for prefix in ["", "JWT "] {
        if let Ok(value) = HeaderValue::from_bytes(&[prefix.as_bytes(), data].concat()) {
            bare.headers.insert("authorization", value);
        }
        tokens(&bare);
    }
    tokens(&request);
}

fn tokens(request: &Request) {
    for (name, plan) in plans() {
        if plan
            .definition()
            .is_some_and(|definition| definition.schemes().iter().any(|scheme| matches!(*scheme, "jwt" | "introspection" | "message-signatures")))
        {
            judge_by(name, plan, request);
        }
    }
}

/// The body of a message of Amazon SNS, and of others that carry their proof in the body.
pub fn sns(data: &[u8]) {
    for kind in ["application/json", "application/x-www-form-urlencoded"] {
        let request = request_of(&[format!("/in\ncontent-type: {kind}\n\n").as_bytes(), data].concat());
        for (name, plan) in plans() {
            if matches!(&**name, "aws-sns" | "adyen" | "mailgun" | "braintree" | "microsoft-graph" | "dropbox-sign" | "travis") {
                judge_by(name, plan, &request);
            }
        }
    }
}

/// A line with a JSON pointer, then JSON. Where both readers read it, they find the same.
pub fn pointer(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (line, text) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let Some(pointer) = std::str::from_utf8(line).ok().and_then(|line| Pointer::parse(line).ok()) else { return };
    let Ok(found) = json::find(text, 64, std::slice::from_ref(&pointer)) else { return };
    let Ok(whole) = serde_json::from_slice::<serde_json::Value>(text) else { return };
    let same = match (found.into_iter().next().flatten(), whole.pointer(pointer.as_str())) {
        (None, None) | (Some(Value::Null), Some(serde_json::Value::Null)) => true,
        (Some(Value::Bool(a)), Some(serde_json::Value::Bool(b))) => a == *b,
        (Some(Value::Text(a)), Some(serde_json::Value::String(b))) => *a == **b,
        (Some(Value::Number(_)), Some(serde_json::Value::Number(_))) => true,
        (Some(Value::Array), Some(serde_json::Value::Array(_))) | (Some(Value::Object), Some(serde_json::Value::Object(_))) => true,
        _ => false,
    };
    assert!(same, "two readers of JSON differ at {}", pointer.as_str());
}

/// A captured request: raw HTTP, HAR or a curl command.
pub fn captured(data: &[u8]) {
    for url in [None, Some("https://hooks.example.com/in")] {
        for entry in [None, Some(1)] {
            let file = |name: &str| if name.len().is_multiple_of(2) { Ok(b"{}".to_vec()) } else { Err("there is no such file".to_owned()) };
            if let Ok(read) = capture::read(data, &Reading { entry, url, file: &file }) {
                let _ = capture::sha256(&read.request.body);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut paths: Vec<_> =
            fs::read_dir(&folder).unwrap_or_else(|why| panic!("{}: {why}", folder.display())).map(|entry| entry.expect("a file").path()).collect();
        paths.sort();
        assert!(paths.len() >= 3, "{name} has no corpus to speak of");
        paths.iter().map(|path| fs::read(path).expect("a readable file")).collect()
    }

    #[test]
    fn every_door_takes_its_corpus() {
        assert!(plans().len() >= 90, "{}", plans().len());
        for (name, door) in DOORS {
            corpus(name).iter().for_each(|data| door(data));
        }
    }

    #[test]
    fn every_door_has_a_target() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("the manifest");
        for (name, _) in DOORS {
            assert!(folder.join(format!("fuzz_targets/{name}.rs")).exists() && manifest.contains(&format!("name = \"{name}\"")), "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// What a fuzzer does first: a bit, a byte or a piece of the corpus changed, two inputs run together.
        #[test]
        fn every_door_takes_changes_of_its_corpus(
            pick in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), with in any::<prop::sample::Index>(), byte in any::<u8>(), how in 0..5_u8,
        ) {
            for (name, door) in DOORS {
                let all = corpus(name);
                let mut data = all[pick.index(all.len())].clone();
                let place = at.index(data.len() + 1);
                match how {
                    0 if place < data.len() => data[place] ^= 1 << (byte % 8),
                    1 if place < data.len() => data[place] = byte,
                    2 => data.insert(place, byte),
                    3 => data.truncate(place),
                    _ => {
                        data.truncate(place);
                        let other = &all[with.index(all.len())];
                        data.extend_from_slice(&other[place.min(other.len())..]);
                    }
                }
                door(&data);
            }
        }

        #[test]
        fn every_door_takes_any_bytes(data in prop::collection::vec(any::<u8>(), 0..300), text in "[ -~\n]{0,200}") {
            for (_, door) in DOORS {
                door(&data);
                door(text.as_bytes());
            }
        }
    }
}
