//! Keys that stand elsewhere: an issuer over real TLS, its keys fetched once, changed, lost and found on the disk.

use std::sync::{Arc, Mutex};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{
    client::{Answer, Post},
    gate::{Gate, Setup},
    origin::Origin,
    receiver::{Act, Receiver},
    unix_now, until,
};

/// One key of an issuer's.
struct Key {
    kid: String,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new(kid: &str) -> Self {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("a key can be made");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).expect("it was just made");
        Self { kid: kid.to_owned(), pair }
    }

    fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        json!({ "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid, "x": BASE64URL_NOPAD.encode(&point[1..33]), "y": BASE64URL_NOPAD.encode(&point[33..]) })
    }

    fn token(&self, change: &Value) -> String {
        let mut claims = json!({ "iss": "https://issuer.example", "aud": "hooks", "iat": unix_now(), "exp": unix_now() + 600 });
        for (name, value) in change.as_object().expect("an object") {
            claims[name] = value.clone();
        }
        let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(&json!({ "alg": "ES256", "kid": self.kid })), part(&claims));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("the key signs");
        format!("Bearer {signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
    }
}

/// The answer of a key set.
fn set(keys: &[&Key]) -> Act {
    let text = json!({ "keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>() }).to_string();
    Act::Raw(format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes())
}

fn policy(receiver: &Receiver, url: &str) -> String {
    format!(
        "[providers.issuer]\nscheme = \"jwt\"\nalgorithms = [\"ES256\"]\nsignature = {{ header = \"Authorization\", prefix = \"Bearer \" }}\n\
         keys = {{ url = \"{url}\", ca = \"issuer.pem\" }}\nclaims = {{ issuer = \"https://issuer.example\", audience = \"hooks\", expires = true }}\nreplay_key = \"none\"\n\
         [routes.tokens]\npath = \"/tokens\"\nverify = {{ provider = \"issuer\" }}\ndeliver = \"{}\"\n",
        receiver.url("/hooks")
    )
}

async fn send(gate: &Gate, token: &str) -> Answer {
    Post::new("/tokens", "{}").header("authorization", token).send(gate).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuers_keys_are_fetched_once_followed_and_kept() {
    let (first, second) = (Arc::new(Key::new("1")), Arc::new(Key::new("2")));
    let now = Arc::new(Mutex::new(vec![first.clone()]));
    let served = now.clone();
    let issuer = Origin::start(move |_| set(&served.lock().expect("no panic").iter().map(AsRef::as_ref).collect::<Vec<_>>())).await;
    let receiver = Receiver::start().await;
    let setup = Setup::new(policy(&receiver, &issuer.url("/jwks.json"))).file("issuer.pem", issuer.ca.pem());
    let mut gate = Arc::new(setup.start().await);

    // All who come at once share one fetch, and what is forged is refused by the same keys.
    let mut senders = JoinSet::new();
    for n in 0..20 {
        let (gate, token) = (gate.clone(), if n % 2 == 0 { first.token(&json!({})) } else { first.token(&json!({})).replace('.', ".e") });
        senders.spawn(async move { (n, send(&gate, &token).await) });
    }
    while let Some(sent) = senders.join_next().await {
        let (n, answer) = sent.expect("no panic");
        assert_eq!(answer.status.as_u16(), if n % 2 == 0 { 200 } else { 401 }, "{answer:?}");
    }
    assert_eq!(issuer.inner.count(), 1, "one fetch for all");
    for (change, reason) in [
        (json!({ "aud": "others" }), "claims_invalid"),
        (json!({ "iss": "https://other.example" }), "claims_invalid"),
        (json!({ "exp": unix_now() - 600 }), "timestamp_stale"),
        (json!({ "nbf": unix_now() + 600 }), "timestamp_future"),
    ] {
        assert_eq!(send(&gate, &first.token(&change)).await.verdict(), (401, reason.to_owned()));
    }

    // A new key is found when a token names it, and the old one ends with the set that held it.
    *now.lock().expect("no panic") = vec![second.clone()];
    until("the new key to be fetched", || async { (send(&gate, &second.token(&json!({}))).await.status == 200).then_some(()) }).await;
    assert_eq!(send(&gate, &first.token(&json!({}))).await.verdict(), (401, "signature_mismatch".to_owned()));
    assert!(gate.metric("hooklatch_keys_fetch_total{source=\"localhost\",result=\"ok\"}").await >= 2.0);

    // The issuer is gone, the process too: the last good set is on the disk.
    issuer.stop();
    let gate = Arc::get_mut(&mut gate).expect("the senders are done");
    gate.kill();
    gate.restart().await;
    assert_eq!(send(gate, &second.token(&json!({}))).await.status, 200);
    assert_eq!(send(gate, &first.token(&json!({}))).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_nothing_is_let_in_and_the_sender_told_to_come_again() {
    let key = Key::new("1");
    for act in [
        Act::Answer(500, "no"),
        Act::Answer(200, "not json"),
        Act::Raw(b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n".to_vec()),
        Act::Close,
    ] {
        let issuer = Origin::start(move |_| act.clone()).await;
        let receiver = Receiver::start().await;
        let gate = Setup::new(policy(&receiver, &issuer.url("/jwks.json"))).file("issuer.pem", issuer.ca.pem()).start().await;
        let answer = send(&gate, &key.token(&json!({}))).await;
        assert_eq!(answer.verdict(), (503, "keys_unavailable".to_owned()), "{answer:?}");
        assert!(!answer.header("retry-after").is_empty());
        assert_eq!(receiver.count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_is_asked_about_a_token_once_a_minute() {
    let issuer = Origin::start(|seen| {
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        // `gate:word`, as RFC 7617 writes it.
        let known = seen.header("authorization") == "Basic Z2F0ZTp3b3Jk" && seen.method == "POST";
        match (known, body.contains("token=good")) {
            (true, true) => Act::Answer(200, r#"{"active":true,"iss":"https://issuer.example","scope":"hooks"}"#),
            (true, false) => Act::Answer(200, r#"{"active":false}"#),
            (false, _) => Act::Answer(401, ""),
        }
    })
    .await;
    let receiver = Receiver::start().await;
    let policy = format!(
        "[routes.tokens]\npath = \"/tokens\"\nverify = {{ provider = \"oauth2-introspection\", secret = \"env:ACCOUNT\", params = {{ issuer = \"https://issuer.example\" }}, \
         keys = {{ url = \"{}\", form = \"introspection\", ca = \"issuer.pem\" }} }}\ndeliver = \"{}\"\n",
        issuer.url("/introspect"),
        receiver.url("/hooks")
    );
    let gate = Setup::new(policy).file("issuer.pem", issuer.ca.pem()).env("ACCOUNT", "gate:word").start().await;
    for _ in 0..3 {
        assert_eq!(send(&gate, "Bearer good").await.status, 200);
        assert_eq!(send(&gate, "Bearer revoked").await.verdict(), (401, "token_invalid".to_owned()));
    }
    assert_eq!(send(&gate, "Bearer not a token").await.verdict(), (401, "token_invalid".to_owned()));
    assert_eq!(issuer.inner.count(), 2);
    // The token itself is written nowhere.
    assert!(!gate.log().contains("revoked") && !gate.audit().iter().any(|line| line.to_string().contains("revoked")));
}

/// A key that a header names is asked for once, with the route's secret, and signs over a template.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_fetched_by_the_id_in_a_header() {
    let key = Arc::new(Key::new("k/1"));
    let served = key.clone();
    let issuer = Origin::start(move |seen| match (seen.target.as_str(), seen.header("authorization")) {
        ("/keys/k%2F1", "Bearer an-api-key") => {
            let text = json!({ "data": { "publicKey": served.jwk() } }).to_string();
            Act::Raw(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes())
        }
        _ => Act::Answer(404, "none"),
    })
    .await;
    let receiver = Receiver::start().await;
    let policy = format!(
        "[providers.circle-like]\nscheme = \"ecdsa\"\nlayout = \"raw\"\nsignature = {{ header = \"X-Sign\", encoding = \"base64url\" }}\nsigned = \"{{body}}\"\n\
         key_id = {{ header = \"X-Key-Id\" }}\nkeys = {{ url = \"{}\", form = \"key\", headers = {{ \"Authorization\" = \"Bearer {{secret}}\" }}, json = \"/data/publicKey\", ca = \"issuer.pem\" }}\n\
         [routes.signed]\npath = \"/signed\"\nverify = {{ provider = \"circle-like\", secret = \"env:API_KEY\" }}\ndeliver = \"{}\"\n",
        issuer.url("/keys/{id}"),
        receiver.url("/hooks")
    );
    let gate = Setup::new(policy).file("issuer.pem", issuer.ca.pem()).env("API_KEY", "an-api-key").start().await;
    let post = |id: &str, signed: &str, body: &'static str| {
        let signature = key.pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("the key signs");
        Post::new("/signed", body).header("x-key-id", id).header("x-sign", &BASE64URL_NOPAD.encode(signature.as_ref()))
    };
    assert_eq!(post("k 1", "{\"n\":0}", "{\"n\":0}").send(&gate).await.verdict(), (401, "signature_malformed".to_owned()), "an id has no blanks");
    assert_eq!(post("other", "{\"n\":1}", "{\"n\":1}").send(&gate).await.verdict(), (401, "signature_mismatch".to_owned()));
    for n in 0..3 {
        let body = ["{\"n\":2}", "{\"n\":3}", "{\"n\":4}"][n];
        assert_eq!(post("k/1", body, body).send(&gate).await.status, 200);
    }
    assert_eq!(post("k/1", "{\"n\":5}", "{\"n\":6}").send(&gate).await.verdict(), (401, "signature_mismatch".to_owned()));
    assert_eq!((receiver.count(), issuer.inner.count()), (3, 2));
}
