//! Providers' handshakes: answered over TLS as each provider asks, and by nothing that only looks like one; secrets that come by one.

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::Stdio,
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use data_encoding::{BASE64, HEXLOWER};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::support::{
    client::{Answer, Client, Post, Protocol},
    gate::{ADMIN_TOKEN, Gate, Setup},
    receiver::{Act, Receiver},
    tools, unix_now, until,
};

const KEY: &str = "a-secret-of-the-handshakes-0123456789";
const TOKEN: &str = "a-verify-token";

fn sha256(text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(KEY.as_bytes()).expect("a MAC takes a key of any length");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

fn sha1(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha1>::new_from_slice(key).expect("a MAC takes a key of any length");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

/// A route for each preset, at `/PRESET`.
async fn gate(receiver: &Receiver, more: &str) -> (Gate, Ed25519KeyPair) {
    let pair = Ed25519KeyPair::generate().expect("the system has randomness");
    let public = HEXLOWER.encode(pair.public_key().as_ref());
    let mut policy = format!("[destinations.out]\nurl = \"{}\"\n", receiver.url("/hooks"));
    for (provider, rest) in [
        ("slack", ""),
        ("zoom", ""),
        ("meta", "params = { verify_token = \"env:TOKEN\" }"),
        ("strava", "params = { verify_token = \"env:TOKEN\" }"),
        ("fitbit", "params = { verify_code = \"env:TOKEN\" }"),
        ("dropbox", ""),
        ("x", ""),
        ("twitch", ""),
        ("braintree", "params = { api_public_key = \"public\" }"),
        ("smartcar", ""),
        ("microsoft-graph", ""),
        ("okta", ""),
        ("xero", ""),
        ("azure-event-grid", ""),
        ("trello", ""),
    ] {
        let rest = if rest.is_empty() { String::new() } else { format!(", {rest}") };
        policy.push_str(&format!(
            "[routes.{provider}]\npath = \"/{provider}\"\nverify = {{ provider = \"{provider}\", secret = \"env:KEY\"{rest} }}\nverify_failures = {{ rate = \"100/m\" }}\ndeliver = \"out\"\n"
        ));
    }
    policy.push_str(&format!("[routes.discord]\npath = \"/discord\"\nverify = {{ provider = \"discord\", public_key = \"{public}\" }}\ndeliver = \"out\"\n"));
    policy.push_str(
        "[providers.monday]\nscheme = \"hmac\"\nalgorithm = \"sha256\"\nsignature = { header = \"X-Sig\", encoding = \"hex\" }\nsigned = \"{body}\"\n\
         challenge = { signed = false, value = { json = \"/challenge\" }, answer = { json = { challenge = \"{challenge}\" } } }\n\
         [routes.monday]\npath = \"/monday\"\nverify = { provider = \"monday\", secret = \"env:KEY\" }\ndeliver = \"out\"\n",
    );
    policy.push_str(more);
    (Setup::new(policy).env("KEY", KEY).env("TOKEN", TOKEN).start().await, pair)
}

fn get(target: &str) -> Post {
    Post { headers: Vec::new(), ..Post::new(target, "") }.method("GET")
}

fn post(target: &str, headers: &[(&str, &str)], body: &str) -> Post {
    headers.iter().fold(Post::new(target, body.to_owned()), |post, (name, value)| post.header(name, value))
}

fn slack(body: &str) -> Post {
    let time = unix_now().to_string();
    let signature = format!("v0={}", HEXLOWER.encode(&sha256(format!("v0:{time}:{body}").as_bytes())));
    post("/slack", &[("x-slack-request-timestamp", &time), ("x-slack-signature", &signature)], body)
}

/// Asserts an answer to a handshake: what nobody may take for a page, and nobody keeps.
#[track_caller]
fn assert_answer(answer: &Answer, status: u16, kind: &str, body: &str) {
    assert_eq!((answer.status.as_u16(), String::from_utf8_lossy(&answer.body).as_ref()), (status, body), "{answer:?}");
    assert_eq!(answer.header("content-type").split(';').next(), Some(kind), "{answer:?}");
    assert_eq!((answer.header("x-content-type-options"), answer.header("cache-control")), ("nosniff", "no-store"), "{answer:?}");
    assert!(!answer.event_id().is_empty());
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain";

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_is_answered_as_its_provider_asks() {
    let receiver = Receiver::start().await;
    let (gate, pair) = gate(&receiver, "").await;

    let answer = slack(r#"{"type":"url_verification","challenge":"3eZbrw1aBm2r"}"#).send(&gate).await;
    assert_answer(&answer, 200, JSON, r#"{"challenge":"3eZbrw1aBm2r"}"#);

    let body = r#"{"event":"endpoint.url_validation","payload":{"plainToken":"qgg8vlvZRS6UYooatFL8Aw"}}"#;
    let time = unix_now().to_string();
    let signature = format!("v0={}", HEXLOWER.encode(&sha256(format!("v0:{time}:{body}").as_bytes())));
    let zoom = post("/zoom", &[("x-zm-request-timestamp", &time), ("x-zm-signature", &signature)], body);
    let answer = zoom.send(&gate).await;
    let told: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(told["plainToken"], "qgg8vlvZRS6UYooatFL8Aw");
    assert_eq!(told["encryptedToken"], HEXLOWER.encode(&sha256(b"qgg8vlvZRS6UYooatFL8Aw")));

    let hub = |path: &str| format!("/{path}?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token={TOKEN}");
    assert_answer(&get(&hub("meta")).send(&gate).await, 200, TEXT, "1158201444");
    assert_answer(&get(&hub("strava")).send(&gate).await, 200, JSON, r#"{"hub.challenge":"1158201444"}"#);
    assert_answer(&get("/dropbox?challenge=abc%2Bd").send(&gate).await, 200, TEXT, "abc+d");
    let told = format!(r#"{{"response_token":"sha256={}"}}"#, BASE64.encode(&sha256(b"MDE2ODBh")));
    assert_answer(&get("/x?crc_token=MDE2ODBh").send(&gate).await, 200, JSON, &told);
    let asked = "20f9f8ed05f77439fe955c977e4c8a53";
    let told = format!("public|{}", HEXLOWER.encode(&sha1(&Sha1::digest(KEY.as_bytes()), asked.as_bytes())));
    assert_answer(&get(&format!("/braintree?bt_challenge={asked}")).send(&gate).await, 200, TEXT, &told);
    let answer = post("/microsoft-graph?validationToken=Validation%3a+Testing+%22it%22", &[], "").send(&gate).await;
    assert_answer(&answer, 200, TEXT, "Validation: Testing \"it\"");
    let answer = get("/okta").header("x-okta-verification-challenge", "abc\"d").send(&gate).await;
    assert_answer(&answer, 200, JSON, r#"{"verification":"abc\"d"}"#);
    let answer = post("/monday", &[], r#"{"challenge":"3eZbrw1aBm2r"}"#).send(&gate).await;
    assert_answer(&answer, 200, JSON, r#"{"challenge":"3eZbrw1aBm2r"}"#);
    let verify = r#"{"eventId":"52f6","eventType":"VERIFY","data":{"challenge":"3a5c8f72-e6d9"},"meta":{"version":"4.0"}}"#;
    let told = format!(r#"{{"challenge":"{}"}}"#, HEXLOWER.encode(&sha256(b"3a5c8f72-e6d9")));
    assert_answer(&post("/smartcar", &[], verify).send(&gate).await, 200, JSON, &told);

    let (id, time, body) = ("e76c6bd4", "2099-01-01T00:00:00Z", r#"{"challenge":"pogchamp","subscription":{"id":"f1c2"}}"#);
    let signature = format!("sha256={}", HEXLOWER.encode(&sha256(format!("{id}{time}{body}").as_bytes())));
    let twitch = |time: &str, signature: &str| {
        post(
            "/twitch",
            &[
                ("twitch-eventsub-message-id", id),
                ("twitch-eventsub-message-timestamp", time),
                ("twitch-eventsub-message-signature", signature),
                ("twitch-eventsub-message-type", "webhook_callback_verification"),
            ],
            body,
        )
    };
    assert_eq!(twitch(time, &signature).send(&gate).await.verdict(), (401, "timestamp_future".to_owned()));
    let time = time::OffsetDateTime::from_unix_timestamp(i64::try_from(unix_now()).expect("a time")).expect("a time");
    let time = time.format(&time::format_description::well_known::Rfc3339).expect("a time");
    let signature = format!("sha256={}", HEXLOWER.encode(&sha256(format!("{id}{time}{body}").as_bytes())));
    assert_answer(&twitch(&time, &signature).send(&gate).await, 200, TEXT, "pogchamp");

    let discord = |body: &str, signed: &str| {
        let time = unix_now().to_string();
        let signature = HEXLOWER.encode(pair.sign(format!("{time}{signed}").as_bytes()).as_ref());
        post("/discord", &[("x-signature-timestamp", &time), ("x-signature-ed25519", &signature)], body)
    };
    assert_answer(&discord(r#"{"id":"1","type":1}"#, r#"{"id":"1","type":1}"#).send(&gate).await, 200, JSON, r#"{"type":1}"#);
    assert_eq!(discord(r#"{"id":"1","type":1}"#, r#"{"id":"1","type":2}"#).send(&gate).await.verdict(), (401, "signature_mismatch".to_owned()));

    let event = r#"[{"id":"2d17","data":{"validationCode":"512d38b6"},"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent"}]"#;
    let answer = post(&format!("/azure-event-grid?token={KEY}"), &[("aeg-event-type", "SubscriptionValidation")], event).send(&gate).await;
    assert_answer(&answer, 200, JSON, r#"{"validationResponse":"512d38b6"}"#);
    let options = get(&format!("/azure-event-grid?token={KEY}")).method("OPTIONS").header("webhook-request-origin", "eventgrid.azure.net");
    let answer = options.send(&gate).await;
    assert_eq!((answer.status.as_u16(), answer.header("webhook-allowed-origin"), answer.header("webhook-allowed-rate")), (200, "eventgrid.azure.net", "*"));
    let mut http2 = Client::connect(&gate, Protocol::Http2).await;
    assert_eq!(http2.send(&get("/trello").method("HEAD")).await.status, 200);
    assert_answer(&http2.send(&get("/dropbox?challenge=h2")).await, 200, TEXT, "h2");

    assert_eq!(get(&format!("/fitbit?verify={TOKEN}")).send(&gate).await.status, 204);
    assert_eq!(get("/fitbit?verify=wrong").send(&gate).await.status, 404);

    let intent = r#"{"events":[],"firstEventSequence":0,"lastEventSequence":0,"entropy":"S0m3"}"#;
    let signature = BASE64.encode(&sha256(intent.as_bytes()));
    let answer = post("/xero", &[("x-xero-signature", &signature)], intent).send(&gate).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
    let answer = post("/xero", &[("x-xero-signature", &BASE64.encode(&[0; 32]))], intent).send(&gate).await;
    assert_eq!((answer.status.as_u16(), answer.body.len(), answer.header("content-type")), (401, 0, ""), "it takes no body");

    assert_eq!(receiver.count(), 0, "no handshake reached the receiver");
    let audit = gate.audited(20).await;
    let dropbox = audit.iter().find(|line| line["route"] == "dropbox").expect("it is audited");
    assert_eq!((&dropbox["outcome"], &dropbox["status"]), (&"challenge".into(), &200.into()), "{dropbox}");
    assert_eq!(gate.metric("hooklatch_requests_total{route=\"dropbox\",outcome=\"challenge\"}").await, 2.0);
    let told = gate.log() + &serde_json::to_string(&audit).expect("JSON") + &gate.metrics().await;
    for secret in [KEY, TOKEN, &HEXLOWER.encode(&sha256(b"3a5c8f72-e6d9")), &BASE64.encode(&sha256(b"MDE2ODBh"))] {
        assert!(!told.contains(secret), "{secret} stands in what the gate tells");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_a_handshake_is_none() {
    let receiver = Receiver::start().await;
    let (gate, _) = gate(&receiver, "").await;
    let hub = |token: &str| format!("/meta?hub.mode=subscribe&hub.challenge=1&hub.verify_token={token}");
    for (target, want) in [
        ("/dropbox", (405, "method_not_allowed")),
        ("/dropbox?challenge=a&more=b", (405, "method_not_allowed")),
        ("/dropbox?challenge=a&challenge=b", (405, "method_not_allowed")),
        ("/dropbox?challenge=%3Cscript%3E", (405, "method_not_allowed")),
        ("/slack?challenge=a", (405, "method_not_allowed")),
        ("/x?crc_token=%7B%22a%22%3A1%7D", (405, "method_not_allowed")),
        ("/braintree?bt_challenge=PG5vdGlmaWNhdGlvbj4=", (405, "method_not_allowed")),
        ("/nowhere?challenge=a", (404, "no_route")),
        (&hub("wrong"), (401, "token_invalid")),
        (&hub(""), (405, "method_not_allowed")),
        ("/azure-event-grid?token=wrong", (405, "method_not_allowed")),
    ] {
        let answer = get(target).send(&gate).await;
        assert_eq!(answer.verdict(), (want.0, want.1.to_owned()), "{target}");
        assert!(want.0 != 405 || answer.header("allow") == "POST", "{target}: {answer:?}");
    }
    assert_eq!(get("/dropbox?challenge=a").method("HEAD").send(&gate).await.status, 405);
    let unsigned = post("/slack", &[], r#"{"type":"url_verification","challenge":"a"}"#);
    assert_eq!(unsigned.send(&gate).await.verdict(), (401, "signature_missing".to_owned()));
    assert_eq!(post("/monday", &[], r#"{"challenge":"a","event":{}}"#).send(&gate).await.verdict(), (401, "signature_missing".to_owned()));
    let long = format!(r#"{{"challenge":"a","event":"{}"}}"#, "x".repeat(40_000));
    assert_eq!(post("/monday", &[], &long).send(&gate).await.verdict(), (401, "signature_missing".to_owned()));
    assert_eq!(post("/asana", &[("x-hook-secret", "s")], "{}").send(&gate).await.verdict(), (404, "no_route".to_owned()));

    // An answer is no signature: of what was asked, or of anything else.
    let answer = get("/x?crc_token=12345").send(&gate).await;
    let told: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    for body in ["12345", "{}"] {
        let fed = post("/x", &[("x-twitter-webhooks-signature", told["response_token"].as_str().expect("text"))], body);
        assert_eq!(fed.send(&gate).await.verdict(), (401, "signature_mismatch".to_owned()), "{body}");
    }
    assert_eq!(receiver.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn guards_hold_and_the_receiver_may_answer() {
    let receiver = Receiver::acting(|seen| Act::Answer(200, if seen.header("hooklatch-verified") == "none" { "the receiver's answer" } else { "ok" })).await;
    let more = r#"
[routes.closed]
path = "/closed"
verify = { provider = "dropbox", secret = "env:KEY" }
allow_ips = ["192.0.2.1"]
deliver = "out"
[routes.limited]
path = "/limited"
verify = { provider = "meta", secret = "env:KEY", params = { verify_token = "env:TOKEN" } }
verify_failures = { rate = "2/h" }
rate_limit = [{ per = "ip", rate = "5/h" }]
deliver = "out"
[routes.forwarded]
path = "/forwarded"
verify = { provider = "meta", secret = "env:KEY" }
validate = { content_types = ["application/json"] }
forward_challenge = true
deliver = "out"
"#;
    let (gate, _) = gate(&receiver, more).await;
    assert_eq!(get("/closed?challenge=a").send(&gate).await.verdict(), (403, "ip_not_allowed".to_owned()));
    let hub = |path: &str, token: &str| get(&format!("/{path}?hub.mode=subscribe&hub.challenge=1&hub.verify_token={token}"));
    for want in [401, 401, 429] {
        assert_eq!(hub("limited", "wrong").send(&gate).await.status, want);
    }
    assert_eq!(hub("limited", TOKEN).send(&gate).await.status, 200, "a right one passes");
    assert_eq!(hub("limited", TOKEN).send(&gate).await.status, 200);
    assert_eq!(hub("limited", TOKEN).send(&gate).await.verdict(), (429, "rate_limited".to_owned()));

    let answer = hub("forwarded", "whatever").send(&gate).await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"the receiver's answer"[..]));
    let seen = receiver.arrived(1).await;
    assert_eq!(seen[0].header("hooklatch-verified"), "none");
    assert_eq!(get("/forwarded?hub.mode=subscribe").send(&gate).await.verdict(), (405, "method_not_allowed".to_owned()));
    assert_eq!(receiver.count(), 1);
}

fn asana(body: &str, secret: &str) -> Post {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a MAC takes a key of any length");
    mac.update(body.as_bytes());
    post("/asana", &[("x-hook-signature", &HEXLOWER.encode(&mac.finalize().into_bytes()))], body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_taken_once_while_somebody_waits_for_it() {
    const FIRST: &str = "b537207f20cbfa02357cf448134da559";
    const SECOND: &str = "4c1d2e9a7b3f4d5e8a6b0c9d1e2f3a4b";
    let receiver = Receiver::start().await;
    let policy = format!(
        "[routes.asana]\npath = \"/asana\"\nverify = {{ provider = \"asana\", secret = \"paired\" }}\ndeliver = \"{}\"\n\
         [routes.github]\npath = \"/github\"\nverify = {{ provider = \"github\", secret = \"env:GITHUB_SECRET\" }}\ndeliver = \"builtin:inspector\"\n",
        receiver.url("/hooks")
    );
    let mut gate = Setup::new(policy).start().await;
    let hello = |secret: &str| post("/asana", &[("x-hook-secret", secret)], "{}");
    assert_eq!(hello(FIRST).send(&gate).await.verdict(), (401, "signature_missing".to_owned()), "nobody waits");
    assert_eq!(asana("{\"events\":[]}", FIRST).send(&gate).await.verdict(), (401, "signature_mismatch".to_owned()));

    let pair = |gate: &Gate, args: &[&str]| {
        let mut command = tools::hooklatch(["pair", "--config", "hooklatch.toml", "--admin"]);
        command.arg(format!("http://{}", gate.admin_address())).args(args).current_dir(gate.path(""));
        command.env("HOOKLATCH_ADMIN_TOKEN", ADMIN_TOKEN).env("STATE_DIRECTORY", gate.path("var")).env("NO_COLOR", "1");
        command
    };
    let refused = tools::run(&mut pair(&gate, &["github"]), b"");
    assert_eq!(refused.status.code(), Some(1));
    assert!(tools::text(&refused.stderr).contains("takes no secret"), "{}", tools::text(&refused.stderr));
    assert_eq!(tools::run(&mut pair(&gate, &["nobody"]), b"").status.code(), Some(1));

    let mut waiting = pair(&gate, &["asana"]).stdout(Stdio::piped()).spawn().expect("the program was built");
    let mut said = BufReader::new(waiting.stdout.take().expect("it is piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("it says that it waits");
    assert!(line.contains("waiting 10 minutes"), "{line}");
    let answer = hello(FIRST).send(&gate).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-hook-secret"), answer.body.len()), (200, FIRST, 0));
    assert_eq!(hello(SECOND).send(&gate).await.status, 401, "once");
    assert_eq!(asana("{\"events\":[]}", FIRST).send(&gate).await.status, 200, "in force with the answer");
    let status = until("the command to end", || {
        let ended = waiting.try_wait().expect("the child is ours");
        async move { ended }
    })
    .await;
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut said, &mut rest).expect("text");
    assert!(status.success() && rest.contains("verifies by it") && !rest.contains(FIRST), "{rest}");
    let file = gate.path("var/paired/asana.secret");
    assert_eq!(std::fs::metadata(&file).expect("it is kept").permissions().mode() & 0o777, 0o600);

    gate.kill();
    gate.restart().await;
    assert_eq!(asana("{\"events\":[1]}", FIRST).send(&gate).await.status, 200, "it survives a restart");
    assert_eq!(hello(SECOND).send(&gate).await.status, 401);

    let mut waiting = pair(&gate, &["asana", "--add", "--show", "--json"]).stdout(Stdio::piped()).spawn().expect("the program was built");
    let mut said = BufReader::new(waiting.stdout.take().expect("it is piped"));
    said.read_line(&mut line).expect("it says that it waits");
    assert_eq!(hello(SECOND).send(&gate).await.status, 200);
    line.clear();
    said.read_line(&mut line).expect("it says that it came");
    let told: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&told["state"], &told["secret"]), (&"paired".into(), &SECOND.into()), "{told}");
    assert!(waiting.wait().expect("the child is ours").success());
    for (n, secret) in [FIRST, SECOND].into_iter().enumerate() {
        assert_eq!(asana(&format!("{{\"n\":{n}}}"), secret).send(&gate).await.status, 200, "both verify");
    }

    let policy = tools::text(&gate.admin("/api/v1/policy", &format!("Authorization: Bearer {ADMIN_TOKEN}\r\n")).await.body);
    let status = tools::text(&gate.admin("/api/v1/pair/asana", &format!("Authorization: Bearer {ADMIN_TOKEN}\r\n")).await.body);
    assert!(status.contains("\"paired\""), "{status}");
    let told = gate.log() + &serde_json::to_string(&gate.audit()).expect("JSON") + &gate.metrics().await + &policy + &status;
    assert!(!told.contains(FIRST) && !told.contains(SECOND), "{told}");
    assert_eq!(gate.admin("/api/v1/pair/asana", "").await.status, 401);
}
