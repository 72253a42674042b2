//! The offline commands, and `send` against a running gate.

use serde_json::Value;

use crate::support::{
    gate::Setup,
    receiver::Receiver,
    sign,
    tools::{self, hooklatch},
};

#[test]
fn every_case_is_judged_as_its_oracle_judged_it() {
    let folder = tools::root().join("tests/vectors");
    let mut files: Vec<_> = std::fs::read_dir(folder).expect("the cases are there").map(|entry| entry.expect("readable").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    assert!(files.len() >= 35, "{} files", files.len());
    let count: usize = files.iter().map(|file| serde_json::from_slice::<Vec<Value>>(&std::fs::read(file).expect("readable")).expect("an array").len()).sum();
    let out = tools::run(hooklatch(["verify", "--cases"]).args(&files), b"");
    let said = tools::text(&out.stdout);
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect();
    let wrong: Vec<&Value> = lines.iter().filter(|line| line["got"] != line["expect"]).collect();
    assert!(wrong.is_empty(), "{} of {}: {wrong:#?}", wrong.len(), lines.len());
    assert_eq!((lines.len(), out.status.code()), (count, Some(0)), "{}", tools::text(&out.stderr));
    assert!(lines.iter().all(|line| line["got"] != "reject" || line["reason"].is_string()), "a refusal has its reason");
}

#[test]
fn a_wrong_expectation_ends_with_1() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let text = std::fs::read_to_string(tools::root().join("tests/vectors/github.json")).expect("the cases are there");
    let mut cases: Vec<Value> = serde_json::from_str(&text).expect("an array");
    cases[0]["expect"] = "reject".into();
    let path = dir.path().join("wrong.json");
    std::fs::write(&path, serde_json::to_vec(&cases).expect("JSON")).expect("the folder is ours");
    let out = tools::run(hooklatch(["verify", "--cases"]).arg(path), b"");
    assert_eq!(out.status.code(), Some(1), "{}", tools::text(&out.stderr));
}

#[test]
fn usage_and_unreadable_input_end_with_2() {
    for args in [
        &["verify", "--cases", "/nonexistent.json"][..],
        &["verify", "github", "--request", "/nonexistent", "--secret", "literal:a-secret-of-the-tests"],
        &["verify", "no-such-provider", "--request", "/dev/null", "--secret", "literal:a-secret-of-the-tests"],
        &["no-such-command"],
        &["run", "--no-such-option"],
        &["check", "--config", "/nonexistent.toml"],
        &["providers", "no-such-provider"],
        &["send", "github", "--url", "not a url", "--secret", "literal:a-secret-of-the-tests"],
    ] {
        let out = tools::run(&mut hooklatch(args), b"");
        assert_eq!(out.status.code(), Some(2), "{args:?}: {}", tools::text(&out.stderr));
        assert!(!out.stderr.is_empty(), "{args:?} says what is wrong");
    }
}

#[test]
fn help_has_examples() {
    for command in [&["--help"][..], &["run", "--help"], &["check", "--help"], &["providers", "--help"], &["send", "--help"], &["verify", "--help"]] {
        let help = tools::output(&mut hooklatch(command), b"");
        assert!(help.contains("Examples:") && help.contains("hooklatch "), "{command:?}: {help}");
    }
}

#[test]
fn the_catalogue_lists_and_shows() {
    let all = tools::output(&mut hooklatch(["providers"]), b"");
    for name in ["github", "stripe", "slack", "standardwebhooks", "shopify", "alertmanager"] {
        assert!(all.contains(name), "{name}: {all}");
        assert!(tools::output(&mut hooklatch(["providers", name]), b"").contains(name));
    }
    let json: Value = serde_json::from_str(&tools::output(&mut hooklatch(["providers", "--json"]), b"")).expect("JSON");
    assert!(json.as_array().map_or(0, Vec::len) >= 38, "{json}");
}

/// What `send` signs, the gate takes, for every provider that needs nothing but a secret; and a forgery it refuses.
#[tokio::test(flavor = "multi_thread")]
async fn send_and_the_gate_agree() {
    let receiver = Receiver::start().await;
    let names: Vec<String> = {
        let json: Value = serde_json::from_str(&tools::output(&mut hooklatch(["providers", "--json"]), b"")).expect("JSON");
        json.as_array().expect("an array").iter().filter_map(|preset| Some(preset["name"].as_str()?.to_owned())).collect()
    };
    // The others sign a URL or need parameters of their own.
    let plain = [
        "github",
        "stripe",
        "slack",
        "standardwebhooks",
        "svix",
        "shopify",
        "linear",
        "alertmanager",
        "gitlab",
        "bitbucket",
        "razorpay",
        "paddle",
        "zoom",
        "heroku",
    ];
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let mut policy = String::new();
    for name in plain.iter().filter(|name| names.iter().any(|n| n == *name)) {
        policy.push_str(&format!(
            "[routes.{name}]\npath = \"/{name}\"\nverify = {{ provider = \"{name}\", secret = \"literal:{secret}\" }}\ndeliver = \"{}\"\n",
            receiver.url("/")
        ));
    }
    let gate = Setup::new(policy).start().await;
    let mut taken = 0;
    for name in plain.iter().filter(|name| names.iter().any(|n| n == *name)) {
        let secret = format!("literal:{secret}");
        let ca = gate.ca_file();
        let url = gate.url(&format!("/{name}"));
        let args = ["send", name, "--url", &url, "--secret", &secret, "--cacert", ca.to_str().expect("a plain path")];
        let out = tools::background(hooklatch(args), Vec::new()).await;
        assert_eq!(out.status.code(), Some(0), "{name}: {}{}\n{}", tools::text(&out.stdout), tools::text(&out.stderr), gate.log());
        taken += 1;
        assert_eq!(receiver.count(), taken, "{name}");
        let out = tools::background(hooklatch(args.into_iter().chain(["--forge"])), Vec::new()).await;
        assert_eq!(out.status.code(), Some(1), "{name}: {}{}", tools::text(&out.stdout), tools::text(&out.stderr));
        assert_eq!(receiver.count(), taken, "{name}: a forgery arrived");
    }
    assert!(taken >= 10, "{taken} providers");
}

/// `verify` names the mistake that fits.
#[test]
fn verify_explains_a_captured_request() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let body = "{\"n\":1}";
    let request = |signature: &str, body: &str| {
        format!("POST /github HTTP/1.1\r\nHost: hooks.example.com\r\nX-Hub-Signature-256: {signature}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let good = sign::github(body.as_bytes()).1;
    for (what, text, code) in [
        ("good", request(&good, body), 0),
        ("a line end after the body", request(&good, &format!("{body}\n")), 1),
        ("another secret", request(&sign::github_with("another secret entirely", body.as_bytes()).1, body), 1),
        ("no signature", request("", body), 1),
    ] {
        let path = dir.path().join("request");
        std::fs::write(&path, text).expect("the folder is ours");
        let out = tools::run(hooklatch(["verify", "github", "--secret", "env:GITHUB_SECRET", "--request"]).arg(&path).env("GITHUB_SECRET", sign::SECRET), b"");
        let said = tools::text(&out.stdout) + &tools::text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{what}: {said}");
        assert!(!said.contains(&good[7..]) || code == 0, "{what}: the expected signature is not shown: {said}");
        if what.starts_with("a line") {
            assert!(said.contains("newline") || said.contains("line end") || said.contains("line break"), "{what}: the mistake is named: {said}");
        }
    }
}
