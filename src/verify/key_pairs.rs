//! Tests of the schemes of key pairs, and of every scheme over a template under any change of a bit.

use std::{collections::BTreeMap, sync::LazyLock};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        self, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA512,
        RsaKeyPair,
    },
};
use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER};
use http::{HeaderMap, HeaderName, HeaderValue, Method as HttpMethod};
use proptest::prelude::*;

use super::{
    Catalogue, Means, Plan,
    cases::Request,
    mac::{Algorithm, Mac},
    public_key::{self, PublicKey, Trusted, samples},
    read,
};
use crate::{
    problem::Source,
    reject::Reason,
    secret::Secret,
    section::{Inputs, Reader},
};

const NOW: i64 = 1_760_000_000_000;
const TIME: &str = "1760000000";
const BODY: &str = "{\"id\":\"evt_1\"}";

static ED25519: LazyLock<Ed25519KeyPair> = LazyLock::new(|| Ed25519KeyPair::generate().expect("a key"));
static DER: LazyLock<EcdsaKeyPair> = LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key"));
static RAW: LazyLock<EcdsaKeyPair> = LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"));
static RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"));

fn ed25519(message: &[u8]) -> Vec<u8> {
    ED25519.sign(message).as_ref().to_vec()
}

fn ecdsa(pair: &EcdsaKeyPair, message: &[u8]) -> Vec<u8> {
    pair.sign(&SystemRandom::new(), message).expect("a signature").as_ref().to_vec()
}

fn rsa(encoding: &'static signature::RsaSignatureEncoding, message: &[u8]) -> Vec<u8> {
    let mut out = vec![0; RSA.public_modulus_len()];
    RSA.sign(encoding, &SystemRandom::new(), message, &mut out).expect("a signature");
    out
}

fn mac(start: Mac, message: &[u8]) -> Vec<u8> {
    let mut mac = start;
    mac.update(message);
    mac.finish().as_slice().to_vec()
}

/// A key as a route would have it, by its bytes.
fn trusted(label: &str, bytes: &[u8]) -> Trusted {
    let keys = public_key::parse(HEXLOWER.encode(bytes).as_bytes()).expect("a key");
    Trusted { label: label.into(), not_after: None, key: keys.into_iter().next().expect("a key") }
}

fn define(text: &str) -> Catalogue {
    let reader = Reader::new(Source { name: "t".into(), text: format!("[providers.own]\n{text}") }, Inputs::memory(&[], &[]));
    let table = reader.parse();
    let catalogue = Catalogue::read(&reader.root(&table));
    assert!(reader.problems().is_empty(), "{text}: {:?}", reader.problems());
    catalogue
}

fn bind(catalogue: &Catalogue, name: &str, secrets: &[Secret], keys: &[Trusted]) -> Result<Plan, String> {
    let definition = catalogue.definition(name).expect("a definition");
    let params = BTreeMap::new();
    Plan::new(definition, &Means { public_keys: keys, ..Means::new(secrets, &params) })
}

fn post(headers: &[(&str, &str)], body: &[u8]) -> Request {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_bytes(name.as_bytes()).expect("a header"), HeaderValue::from_str(value).expect("a value"));
    }
    Request { method: HttpMethod::POST, base: "https://h".into(), target: "/in?a=1".into(), headers: map, body: Bytes::copy_from_slice(body).into() }
}

fn verdict(plan: &Plan, request: &Request) -> Result<String, Reason> {
    request.judge(plan, NOW).map(|signed| signed.secret.map_or(String::new(), |label| label.to_string())).map_err(|why| why.reason)
}

type Sign = fn(&[u8]) -> Vec<u8>;

/// Every scheme over `{timestamp}.{header:X-Id}.{body}`: its keys of a definition, who signs, and the public key.
fn schemes() -> Vec<(&'static str, Sign, Option<Trusted>)> {
    const SECRET: &[u8] = b"0123456789abcdef";
    let rsa_key = trusted("#1", RSA.public_key().as_ref());
    vec![
        ("scheme = \"hmac\"\nalgorithm = \"sha1\"", |m| mac(Mac::hmac(Algorithm::Sha1, SECRET), m), None),
        ("scheme = \"hmac\"\nalgorithm = \"sha256\"", |m| mac(Mac::hmac(Algorithm::Sha256, SECRET), m), None),
        ("scheme = \"hmac\"\nalgorithm = \"sha384\"", |m| mac(Mac::hmac(Algorithm::Sha384, SECRET), m), None),
        ("scheme = \"hmac\"\nalgorithm = \"sha512\"", |m| mac(Mac::hmac(Algorithm::Sha512, SECRET), m), None),
        ("scheme = \"hash\"\nalgorithm = \"sha256\"", |m| mac(Mac::digest(Algorithm::Sha256), &[m, SECRET].concat()), None),
        ("scheme = \"ed25519\"", ed25519, Some(trusted("#1", ED25519.public_key().as_ref()))),
        ("scheme = \"ecdsa\"", |m| ecdsa(&DER, m), Some(trusted("#1", DER.public_key().as_ref()))),
        ("scheme = \"ecdsa\"\nlayout = \"raw\"", |m| ecdsa(&RAW, m), Some(trusted("#1", RAW.public_key().as_ref()))),
        ("scheme = \"rsa\"\nalgorithm = \"sha256\"", |m| rsa(&RSA_PKCS1_SHA256, m), Some(rsa_key.clone())),
        ("scheme = \"rsa\"\nalgorithm = \"sha512\"\npadding = \"pss\"", |m| rsa(&RSA_PSS_SHA512, m), Some(rsa_key)),
    ]
}

#[test]
fn any_changed_bit_is_refused() {
    for (scheme, sign, key) in schemes() {
        for (encoding, write) in [("hex", HEXLOWER), ("base64", BASE64)] {
            let secret = if scheme.contains("hash") { "{secret}" } else { "" };
            let catalogue = define(&format!(
                "{scheme}\nsignature = {{ header = \"X-Signature\", prefix = \"v=\", encoding = \"{encoding}\" }}\ntimestamp = {{ header = \"X-Time\", unit = \"s\" }}\nsigned = \"{{timestamp}}.{{header:X-Id}}.{{body}}{secret}\"\nreplay_key = \"content\""
            ));
            let secrets = if key.is_some() { Vec::new() } else { vec![Secret::new("#1", b"0123456789abcdef".to_vec(), None)] };
            let plan = bind(&catalogue, "own", &secrets, key.as_slice()).expect("a plan");
            let signature = format!("v={}", write.encode(&sign(format!("{TIME}.evt-7.{BODY}").as_bytes())));
            let good = post(&[("x-signature", &signature), ("x-time", TIME), ("x-id", "evt-7")], BODY.as_bytes());
            assert_eq!(verdict(&plan, &good).as_deref(), Ok("#1"), "{scheme}");
            refuses_changed_bits(scheme, &plan, &good, &["x-signature", "x-time", "x-id"]);
        }
    }
}

/// Every bit of the body and of these headers, changed alone.
fn refuses_changed_bits(scheme: &str, plan: &Plan, good: &Request, names: &[&'static str]) {
    for at in 0..BODY.len() * 8 {
        let mut body = BODY.as_bytes().to_vec();
        body[at / 8] ^= 1 << (at % 8);
        let changed = Request { body: Bytes::from(body).into(), ..good.copy() };
        assert!(verdict(plan, &changed).is_err(), "{scheme}: bit {at} of the body");
    }
    for name in names {
        let value = good.headers[*name].as_bytes().to_vec();
        for at in 0..value.len() * 8 {
            let mut value = value.clone();
            value[at / 8] ^= 1 << (at % 8);
            let Ok(value) = HeaderValue::from_bytes(&value) else { continue };
            let mut changed = good.copy();
            changed.headers.insert(HeaderName::from_static(name), value);
            assert!(verdict(plan, &changed).is_err(), "{scheme}: bit {at} of {name}");
        }
    }
}

/// A message signature over method, target, one header and the body's digest.
fn message() -> (Plan, Request) {
    let catalogue = define("scheme = \"message-signatures\"\nalgorithm = \"ed25519\"\ncovers = [\"@method\", \"@target-uri\", \"content-digest\", \"x-id\"]");
    let plan = bind(&catalogue, "own", &[], &[trusted("#1", ED25519.public_key().as_ref())]).expect("a plan");
    let digest = format!("sha-256=:{}:", BASE64.encode(&mac(Mac::digest(Algorithm::Sha256), BODY.as_bytes())));
    let params = format!("(\"@method\" \"@target-uri\" \"content-digest\" \"x-id\");created={TIME};keyid=\"k\";alg=\"ed25519\"");
    let base = format!("\"@method\": POST\n\"@target-uri\": https://h/in?a=1\n\"content-digest\": {digest}\n\"x-id\": evt-7\n\"@signature-params\": {params}");
    let signature = format!("sig=:{}:", BASE64.encode(&ed25519(base.as_bytes())));
    let input = format!("sig={params}");
    (plan, post(&[("content-digest", &digest), ("x-id", "evt-7"), ("signature-input", &input), ("signature", &signature)], BODY.as_bytes()))
}

#[test]
fn any_changed_bit_of_a_signed_message_is_refused() {
    let (plan, good) = message();
    assert_eq!(verdict(&plan, &good).as_deref(), Ok("#1"));
    refuses_changed_bits("message-signatures", &plan, &good, &["content-digest", "x-id", "signature-input", "signature"]);
    for other in [
        Request { target: "/in?a=2".into(), ..good.copy() },
        Request { base: "http://h".into(), ..good.copy() },
        Request { method: HttpMethod::PUT, ..good.copy() },
    ] {
        assert_eq!(verdict(&plan, &other), Err(Reason::SignatureMismatch));
    }
    assert!(plan.unsigned_query(&good.facts(), &[]).is_none());
    let signed = good.judge(&plan, NOW).expect("it is good");
    assert!(signed.replay.is_some() && signed.timestamp_ms == Some(NOW));
}

const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2,
    0xfc, 0x63, 0x25, 0x51,
];

/// The other signature for the same message: r and n - s.
fn rewritten(signature: &[u8]) -> Vec<u8> {
    let mut out = signature.to_vec();
    let mut borrow = 0_i16;
    for at in (0..32).rev() {
        let digit = i16::from(ORDER[at]) - i16::from(signature[32 + at]) - borrow;
        borrow = i16::from(digit < 0);
        out[32 + at] = (digit + 256 * borrow) as u8;
    }
    out
}

#[test]
fn a_rewritten_signature_is_the_same_event() {
    let catalogue =
        define("scheme = \"ecdsa\"\nlayout = \"raw\"\nsignature = { header = \"X\", encoding = \"hex\" }\nsigned = \"{body}\"\nreplay_key = \"content\"");
    let plan = bind(&catalogue, "own", &[], &[trusted("#1", RAW.public_key().as_ref())]).expect("a plan");
    let signature = ecdsa(&RAW, BODY.as_bytes());
    let key =
        |signature: &[u8]| post(&[("x", &HEXLOWER.encode(signature))], BODY.as_bytes()).judge(&plan, NOW).expect("a good signature").replay.expect("a key");
    let other = rewritten(&signature);
    assert_ne!(signature, other);
    assert_eq!(key(&signature), key(&other));
    assert_eq!(key(&signature), key(&ecdsa(&RAW, BODY.as_bytes())));
    // Another body is another event, in every scheme.
    for (scheme, sign, public) in schemes().into_iter().filter(|(_, _, public)| public.is_some()) {
        let catalogue = define(&format!("{scheme}\nsignature = {{ header = \"X\", encoding = \"hex\" }}\nsigned = \"{{body}}\"\nreplay_key = \"content\""));
        let plan = bind(&catalogue, "own", &[], public.as_slice()).expect("a plan");
        let key = |body: &[u8]| post(&[("x", &HEXLOWER.encode(&sign(body)))], body).judge(&plan, NOW).expect("a good signature").replay.expect("a key");
        assert_eq!(key(b"one"), key(b"one"), "{scheme}");
        assert_ne!(key(b"one"), key(b"two"), "{scheme}");
    }
}

#[test]
fn standard_webhooks_take_what_the_route_has_keys_for() {
    let secret = || Secret::new("shared", b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_vec(), None);
    let shared = BASE64.decode(b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("base64");
    let whpk = format!("whpk_{}", BASE64.encode(ED25519.public_key().as_ref()));
    let public = || Trusted { label: "pair".into(), not_after: None, key: public_key::parse(whpk.as_bytes()).expect("a key").remove(0) };
    let catalogue = Catalogue::shipped();
    let plan = |secrets: &[Secret], keys: &[Trusted]| bind(&catalogue, "standardwebhooks", secrets, keys).expect("a plan");
    let (by_secret, by_key, by_both) = (plan(&[secret()], &[]), plan(&[], &[public()]), plan(&[secret()], &[public()]));
    let message = format!("msg_1.{TIME}.{BODY}");
    let v1 = format!("v1,{}", BASE64.encode(&mac(Mac::hmac(Algorithm::Sha256, &shared), message.as_bytes())));
    let v1a = format!("v1a,{}", BASE64.encode(&ed25519(message.as_bytes())));
    let bad_v1a = format!("v1a,{}", BASE64.encode(&[7; 64]));
    let request = |signatures: &str| post(&[("webhook-id", "msg_1"), ("webhook-timestamp", TIME), ("webhook-signature", signatures)], BODY.as_bytes());
    let check = |signatures: &str, want: [Result<&str, Reason>; 3]| {
        for (plan, want) in [&by_secret, &by_key, &by_both].into_iter().zip(want) {
            assert_eq!(verdict(plan, &request(signatures)).as_deref(), want.as_deref(), "{signatures} {plan:?}");
        }
    };
    let (malformed, mismatch) = (Reason::SignatureMalformed, Reason::SignatureMismatch);
    check(&v1, [Ok("shared"), Err(malformed), Ok("shared")]);
    check(&v1a, [Err(malformed), Ok("pair"), Ok("pair")]);
    check(&format!("{v1} {v1a}"), [Ok("shared"), Ok("pair"), Ok("shared")]);
    check(&format!("v2,AAAA {v1a} v9,zzz"), [Err(malformed), Ok("pair"), Ok("pair")]);
    check(&format!("{bad_v1a} {v1a}"), [Err(malformed), Ok("pair"), Ok("pair")]);
    check(&format!("{bad_v1a} {v1}"), [Ok("shared"), Err(mismatch), Ok("shared")]);
    check(&bad_v1a, [Err(malformed), Err(mismatch), Err(mismatch)]);
    check("v2,AAAA", [Err(malformed), Err(malformed), Err(malformed)]);
    check(&[&*bad_v1a; 9].join(" "), [Err(malformed), Err(malformed), Err(malformed)]);
    // The MAC of one is no signature of the other, and the time is judged in both.
    check(&v1a.replace("v1a,", "v1,"), [Err(malformed), Err(malformed), Err(malformed)]);
    let stale = request(&v1a).judge(&by_key, NOW + 301_000).map_err(|why| why.reason).err();
    assert_eq!(stale, Some(Reason::TimestampStale));
    assert_eq!(by_both.labels().iter().map(|label| &**label).collect::<Vec<_>>(), ["pair", "shared"]);
    // The same event, whichever signature is left standing.
    let key = |signatures: &str| request(signatures).judge(&by_both, NOW).expect("a good request").replay;
    assert_eq!(key(&v1), key(&v1a));
}

#[test]
fn keys_have_labels_places_and_last_days() {
    let one = |place: &str| format!("scheme = \"ed25519\"\nsigned = \"{{body}}\"\nreplay_key = \"content\"\nsignature = {place}");
    let single = define(&one("{ header = \"X\", encoding = \"hex\" }"));
    let other = Ed25519KeyPair::generate().expect("a key");
    let (mine, theirs) = (trusted("new", ED25519.public_key().as_ref()), trusted("old", other.public_key().as_ref()));
    let ours = HEXLOWER.encode(&ed25519(BODY.as_bytes()));
    let old = HEXLOWER.encode(other.sign(BODY.as_bytes()).as_ref());
    let both = bind(&single, "own", &[], &[mine.clone(), theirs.clone()]).expect("a plan");
    assert_eq!(verdict(&both, &post(&[("x", &ours)], BODY.as_bytes())).as_deref(), Ok("new"));
    assert_eq!(verdict(&both, &post(&[("x", &old)], BODY.as_bytes())).as_deref(), Ok("old"));
    for (end, want) in [(NOW, Ok("old")), (NOW - 1, Err(Reason::SignatureMismatch))] {
        let ended = Trusted { not_after: Some(end), ..theirs.clone() };
        let plan = bind(&single, "own", &[], &[mine.clone(), ended]).expect("a plan");
        assert_eq!(verdict(&plan, &post(&[("x", &old)], BODY.as_bytes())).as_deref(), want.as_deref());
        assert_eq!(plan.expired(NOW).count(), usize::from(want.is_err()));
    }
    // Several places: each key has its own.
    let two = define(&one("[{ header = \"X\", encoding = \"hex\" }, { header = \"Y\", encoding = \"hex\" }]"));
    let plan = bind(&two, "own", &[], &[mine.clone(), theirs.clone()]).expect("a plan");
    assert_eq!(verdict(&plan, &post(&[("x", &ours)], BODY.as_bytes())).as_deref(), Ok("new"));
    assert_eq!(verdict(&plan, &post(&[("y", &old)], BODY.as_bytes())).as_deref(), Ok("old"));
    assert_eq!(verdict(&plan, &post(&[("y", &ours), ("x", &old)], BODY.as_bytes())), Err(Reason::SignatureMismatch));
    assert_eq!(verdict(&plan, &post(&[], BODY.as_bytes())), Err(Reason::SignatureMissing));
    // Keys of another kind, too many, or none.
    let wrong = bind(&single, "own", &[], &[trusted("#1", DER.public_key().as_ref())]).err();
    assert!(wrong.is_some_and(|why| why.contains("#1 is a P-256 key, which does not verify Ed25519")));
    assert!(bind(&single, "own", &[], &vec![mine.clone(); 17]).is_err_and(|why| why.contains("more than 16")));
    assert!(bind(&single, "own", &[Secret::new("#1", b"0123456789abcdef".to_vec(), None)], &[]).is_err());
    assert!(bind(&single, "own", &[], &[]).is_err());
}

#[test]
fn bodies_in_pieces_and_fields_in_the_body() {
    for (scheme, sign, key) in schemes() {
        let Some(key) = key else { continue };
        // The signature stands in the body, as a query parameter or in a form, and signs a field of it.
        let catalogue =
            define(&format!("{scheme}\nsignature = {{ json = \"/sig\", encoding = \"base64\" }}\nsigned = \"{{json:/data}}\"\nreplay_key = \"content\""));
        let plan = bind(&catalogue, "own", &[], std::slice::from_ref(&key)).expect("a plan");
        let body = format!("{{\"data\":\"x\\u0041\",\"sig\":\"{}\"}}", BASE64.encode(&sign(b"xA")));
        assert_eq!(verdict(&plan, &post(&[], body.as_bytes())).as_deref(), Ok("#1"), "{scheme}");
        assert_eq!(verdict(&plan, &post(&[], body.replace("0041", "0042").as_bytes())), Err(Reason::SignatureMismatch), "{scheme}");
        assert_eq!(verdict(&plan, &post(&[], b"{\"data\":\"xA\"}")), Err(Reason::SignatureMissing), "{scheme}");

        let catalogue = define(&format!(
            "{scheme}\nsignature = {{ header = \"X\", encoding = \"base64\" }}\nsigned = [\"{{body}}\", \"{{method}} {{target}}\\n{{body}}.\"]\nreplay_key = \"content\""
        ));
        let plan = bind(&catalogue, "own", &[], std::slice::from_ref(&key)).expect("a plan");
        for message in [BODY.to_owned(), format!("POST /in?a=1\n{BODY}.")] {
            let mut request = post(&[("x", &BASE64.encode(&sign(message.as_bytes())))], BODY.as_bytes());
            let whole = request.judge(&plan, NOW).expect("a good request");
            let mut pieces = crate::event::Chunks::default();
            BODY.as_bytes().chunks(3).for_each(|piece| pieces.push(Bytes::copy_from_slice(piece)));
            request.body = pieces;
            assert_eq!(request.judge(&plan, NOW).expect("a good request").replay, whole.replay, "{scheme}");
        }
    }
}

#[test]
fn a_digest_that_is_signed_covers_the_body() {
    let catalogue = define(
        "scheme = \"ecdsa\"\nsignature = { header = \"X\", encoding = \"base64\" }\nsigned = \"{header:Digest}\"\nbody_digest = { header = \"Digest\", encoding = \"hex\" }\nrequire = [\"X-Key\"]",
    );
    let plan = bind(&catalogue, "own", &[], &[trusted("#1", DER.public_key().as_ref())]).expect("a plan");
    let digest = HEXLOWER.encode(&mac(Mac::digest(Algorithm::Sha256), BODY.as_bytes()));
    let signature = BASE64.encode(&ecdsa(&DER, digest.as_bytes()));
    let headers = [("x", &*signature), ("digest", &*digest), ("x-key", "k")];
    assert_eq!(verdict(&plan, &post(&headers, BODY.as_bytes())).as_deref(), Ok("#1"));
    assert_eq!(verdict(&plan, &post(&headers, b"{}")), Err(Reason::SignatureMismatch));
    assert_eq!(verdict(&plan, &post(&headers[..2], BODY.as_bytes())), Err(Reason::SignatureMissing));
}

#[test]
fn presets_of_key_pairs_verify_what_is_signed_so() {
    let catalogue = Catalogue::shipped();
    let rsa_key = trusted("#1", RSA.public_key().as_ref());
    let telnyx = bind(&catalogue, "telnyx", &[], &[trusted("#1", ED25519.public_key().as_ref())]).expect("a plan");
    let body = br#"{"data":{"id":"0ccc7b54","event_type":"message.received"}}"#;
    let signature = BASE64.encode(&ed25519(&[TIME.as_bytes(), b"|", body].concat()));
    let signed = post(&[("telnyx-signature-ed25519", &signature), ("telnyx-timestamp", TIME)], body).judge(&telnyx, NOW).expect("a good request");
    assert_eq!((signed.delivery_id.as_deref(), signed.event_type.as_deref()), (Some("0ccc7b54"), Some("message.received")));

    // Kick's own key is shipped; a route's takes its place.
    let kick = bind(&catalogue, "kick", &[], std::slice::from_ref(&rsa_key)).expect("a plan");
    let signature = BASE64.encode(&rsa(&RSA_PKCS1_SHA256, b"01JF.2025-10-09T08:53:20Z.{}"));
    let headers = [
        ("kick-event-signature", &*signature),
        ("kick-event-message-id", "01JF"),
        ("kick-event-message-timestamp", "2025-10-09T08:53:20Z"),
        ("kick-event-type", "chat.message.sent"),
    ];
    let signed = post(&headers, b"{}").judge(&kick, NOW).expect("a good request");
    assert_eq!((signed.delivery_id.as_deref(), signed.event_type.as_deref()), (Some("01JF"), Some("chat.message.sent")));
    let shipped = bind(&catalogue, "kick", &[], &[]).expect("its key is shipped");
    assert_eq!(verdict(&shipped, &post(&headers, b"{}")), Err(Reason::SignatureMismatch));

    let wise = bind(&catalogue, "wise", &[], std::slice::from_ref(&rsa_key)).expect("a plan");
    let signature = BASE64.encode(&rsa(&RSA_PKCS1_SHA256, BODY.as_bytes()));
    assert_eq!(verdict(&wise, &post(&[("x-signature-sha256", &signature)], BODY.as_bytes())).as_deref(), Ok("#1"));

    // Made by OpenSSL 3 with the key `test-key-rsa-pss` of RFC 9421: RSA-SHA1 over {"id":1,"state":"passed"}.
    let keys = public_key::parse(samples::RSA.as_bytes()).expect("a key");
    let keys: Vec<Trusted> = keys.into_iter().map(|key: PublicKey| Trusted { label: "#1".into(), not_after: None, key }).collect();
    let travis = bind(&catalogue, "travis", &[], &keys).expect("a plan");
    let signature = "XCrUZit2Br0Gon2JFY0AmVo+2FqCV/dlP3rDyqbLU9xAlnVE2TD72ESknlDtmrEM7qhvBY1j+aEUyqNoEpyYyffhL0cuyqLHLAFxOXJcPIngYp7DZuCXxiD2PvPrxtEM1SSkFIC1G9phMxWZfYEyNtPOFR8iefqZO99rxfyxjbyj2yEX/3uHoHDVetUXYb7hsKKk9B5vRXCQSK/DvO4lYho9KdlQdQwCx/WMrx9cEtAelTf4MSbAE9d60azkB9rHKCJRbVKc1LkasXFZ0qx87IWI3ANCGJOOqrclPU57VmnVJein5PcMNhaQbVFEl4hqvoIdCql0S0f1ukZ/TUcd8A==";
    let form = |payload: &str| post(&[("content-type", "application/x-www-form-urlencoded"), ("signature", signature)], payload.as_bytes());
    assert_eq!(verdict(&travis, &form("payload=%7B%22id%22%3A1%2C%22state%22%3A%22passed%22%7D")).as_deref(), Ok("#1"));
    assert_eq!(verdict(&travis, &form("payload=%7B%22id%22%3A2%2C%22state%22%3A%22passed%22%7D")), Err(Reason::SignatureMismatch));
}

#[test]
fn a_routes_public_keys_are_read_and_explained() {
    let read_one = |text: &str| {
        let pem: &[(&str, &[u8])] = &[
            ("key.pem", samples::P256.as_bytes()),
            ("set.json", br#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs"}]}"#),
        ];
        let inputs = Inputs::memory(&[("KEY", samples::ED25519), ("S", "0123456789abcdef"), ("SW", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")], pem);
        let reader = Reader::new(Source { name: "t".into(), text: text.into() }, inputs);
        let table = reader.parse();
        let plan = read(&reader.root(&table), &Catalogue::shipped());
        let rendered = reader.source.render(&reader.problems(), false);
        (plan, reader.problems().iter().map(ToString::to_string).collect::<Vec<_>>().join("; "), rendered)
    };
    const HEX: &str = "26b40b8f93fff3d897112f7ebc582b232dbd72517d082fe83cfb30ddce43d1bb";
    for (text, labels) in [
        (format!("verify = {{ provider = \"discord\", public_key = \"{HEX}\" }}"), vec!["#1"]),
        ("verify = { provider = \"discord\", public_key = \"env:KEY\" }".to_owned(), vec!["#1"]),
        ("verify = { provider = \"sendgrid\", public_key = \"file:key.pem\" }".to_owned(), vec!["#1"]),
        (
            format!(
                "verify = {{ provider = \"discord\", public_keys = [\"{HEX}\", {{ from = \"file:set.json\", label = \"2026\", not_after = 2026-12-01 }}] }}"
            ),
            vec!["#1", "2026"],
        ),
        ("verify = { provider = \"kick\" }".to_owned(), vec!["#1"]),
        ("verify = { provider = \"standardwebhooks\", public_key = \"env:KEY\" }".to_owned(), vec!["#1"]),
        ("verify = { provider = \"standardwebhooks\", public_key = \"env:KEY\", secret = \"env:SW\" }".to_owned(), vec!["#1", "public-#1"]),
        (
            format!("verify = {{ scheme = \"ed25519\", signature = {{ header = \"X\", encoding = \"hex\" }}, signed = \"{{body}}\", public_key = \"{HEX}\" }}"),
            vec!["#1"],
        ),
    ] {
        let (plan, problems, _) = read_one(&text);
        assert_eq!(problems, "", "{text}");
        assert_eq!(plan.expect("a plan").labels().iter().map(|label| &**label).collect::<Vec<_>>(), labels, "{text}");
    }
    for (text, want) in [
        ("verify = { provider = \"discord\" }", "`public_key` is missing"),
        ("verify = { provider = \"discord\", secret = \"env:S\" }", "there is no shared secret"),
        ("verify = { provider = \"github\", secret = \"env:S\", public_key = \"env:KEY\" }", "not verified by a public key"),
        ("verify = { provider = \"standardwebhooks\" }", "`secret` or `public_key` is missing"),
        ("verify = { provider = \"discord\", public_key = \"env:NONE\" }", "NONE is not set"),
        ("verify = { provider = \"discord\", public_key = \"file:none\" }", "cannot be read"),
        ("verify = { provider = \"discord\", public_key = \"file:key.pem\" }", "a P-256 key, which does not verify Ed25519"),
        ("verify = { provider = \"discord\", public_key = \"zz\" }", "neither PEM"),
        ("verify = { provider = \"discord\", public_key = 7 }", "not a string"),
        ("verify = { provider = \"discord\", public_keys = [] }", "`public_keys` is empty"),
        ("verify = { provider = \"discord\", public_keys = [{ from = \"env:KEY\", label = \"a\" }, { from = \"env:KEY\", label = \"a\" }] }", "labelled `a`"),
        ("verify = { provider = \"discord\", public_key = \"env:KEY\", public_keys = [\"env:KEY\"] }", "exclude each other"),
        (
            "verify = { scheme = \"rsa\", algorithm = \"sha1\", padding = \"pss\", signature = { header = \"X\", encoding = \"hex\" }, signed = \"{body}\", public_key = \"env:KEY\" }",
            "PSS with SHA-1",
        ),
        (
            "verify = { scheme = \"ed25519\", signature = { header = \"X\", encoding = \"hex\" }, signed = \"{secret}{body}\", public_key = \"env:KEY\" }",
            "signs no `{secret}`",
        ),
        (
            "verify = { scheme = \"ed25519\", key = { encoding = \"hex\" }, signature = { header = \"X\", encoding = \"hex\" }, signed = \"{body}\", public_key = \"env:KEY\" }",
            "unknown key `key`",
        ),
        (
            "verify = { scheme = \"message-signatures\", algorithm = \"ed25519\", covers = [\"@status\"], public_key = \"env:KEY\" }",
            "no component of a request",
        ),
        ("verify = { scheme = \"message-signatures\", algorithm = \"rot13\", public_key = \"env:KEY\" }", "rot13"),
        ("verify = { scheme = \"message-signatures\", algorithm = [\"hmac-sha256\"], public_key = \"env:KEY\" }", "not verified by a public key"),
    ] {
        let (_, problems, _) = read_one(text);
        assert!(problems.contains(want), "{text}: {problems}");
    }
    // A private key is named as one, and the excerpt does not show it.
    let (_, problems, rendered) =
        read_one("verify = { provider = \"discord\", public_key = \"MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF\" }");
    assert!(problems.contains("a private key is given"), "{problems}");
    assert!(!rendered.contains("DFtMDoQikTmi"), "{rendered}");
    // SHA-1 is taken with a warning.
    let (plan, problems, _) = read_one(
        "verify = { scheme = \"rsa\", algorithm = \"sha1\", signature = { header = \"X\", encoding = \"hex\" }, signed = \"{body}\", public_key = \"MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAr4tmm3r20Wd/PbqvP1s2+QEtvpuRaV8Yq40gjUR8y2Rjxa6dpG2GXHbPfvMs8ct+Lh1GH45x28Rw3Ry53mm+oAXjyQ86OnDkZ5N8lYbggD4O3w6M6pAvLkhk95AndTrifbIFPNU8PPMO7OyrFAHqgDsznjPFmTOtCEcN2Z1FpWgchwuYLPL+Wokqltd11nqqzi+bJ9cvSKADYdUAAN5WUtzdpiy6LbTgSxP7ociU4Tn0g5I6aDZJ7A8Lzo0KSyZYoA485mqcO0GVAdVw9lq4aOT9v6d+nb4bnNkQVklLQ3fVAvJm+xdDOp9LCNCN48V2pnDOkFV6+U9nV5oyc6XI2wIDAQAB\" }",
    );
    assert!(plan.is_some() && problems.contains("SHA-1"), "{problems}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn no_signature_input_makes_it_panic_or_pass(
        inputs in prop::collection::vec("(sig=)?\\(?(\"[@a-z-]{0,14}\"(;(sf|bs|tr|req|key=\"[a-z]?\"|name=\"[a-z]?\"))? ?){0,4}\\)?(;(created|expires|alg|keyid|tag|nonce)(=(-?[0-9]{1,16}|\"[ -~]{0,12}\"))?){0,4}", 0..3),
        signatures in prop::collection::vec("(sig=)?:?[A-Za-z0-9+/]{0,90}={0,2}:?(,| )?", 0..3),
        digests in prop::collection::vec("(sha-256|sha-512|md5)?=?:?[A-Za-z0-9+/]{0,44}=?:?", 0..2),
        noise in prop::collection::vec(any::<u8>(), 0..40),
        body in prop::collection::vec(any::<u8>(), 0..64),
        target in "/?[ -~]{0,24}",
    ) {
        let (plan, good) = message();
        let mut request = Request { target, body: Bytes::from(body).into(), ..good.copy() };
        for (name, values) in [("signature-input", inputs), ("signature", signatures), ("content-digest", digests)] {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            if !values.is_empty() {
                request.headers.remove(&name);
            }
            values.iter().filter_map(|value| HeaderValue::from_str(value).ok()).for_each(|value| {
                request.headers.append(&name, value);
            });
        }
        if let Ok(value) = HeaderValue::from_bytes(&noise) {
            request.headers.append("x-id", value);
        }
        prop_assert!(request.judge(&plan, NOW).is_err());
        let _ = plan.unsigned_query(&request.facts(), &[]);
    }

    #[test]
    fn no_signature_makes_a_key_pair_panic_or_pass(value in "[0-9a-zA-Z+/=,; ]{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..1100), body in prop::collection::vec(any::<u8>(), 0..64)) {
        for (scheme, _, key) in schemes() {
            let Some(key) = key else { continue };
            let catalogue = define(&format!("{scheme}\nsignature = {{ header = \"X\", format = \"list\", separator = \" \", encoding = \"base64\" }}\nsigned = \"{{body}}\"\nreplay_key = \"content\""));
            let plan = bind(&catalogue, "own", &[], std::slice::from_ref(&key)).expect("a plan");
            for value in [value.clone(), BASE64.encode(&bytes)] {
                prop_assert!(post(&[("x", value.trim())], &body).judge(&plan, NOW).is_err());
            }
            prop_assert!(!key.key.verify(public_key::Algorithm::Ed25519, &body, &bytes));
        }
    }

    #[test]
    fn no_text_makes_the_reader_of_keys_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in any::<prop::sample::Index>(), bit in 0..8_u32, jwk in "\\{\"kty\":\"(OKP|EC|RSA|oct)\",\"crv\":\"(Ed25519|P-256)\",\"x\":\"[A-Za-z0-9_-]{0,44}\",\"y\":\"[A-Za-z0-9_-]{0,44}\",\"n\":\"[A-Za-z0-9_-]{0,400}\",\"e\":\"[A-Z]{0,4}\"\\}") {
        let _ = public_key::parse(&bytes);
        let _ = public_key::parse(BASE64.encode(&bytes).as_bytes());
        let _ = public_key::parse(jwk.as_bytes());
        for text in [samples::ED25519, samples::P256, samples::RSA] {
            let mut changed = text.as_bytes().to_vec();
            let at = cut.index(changed.len());
            changed[at] ^= 1 << bit;
            let _ = public_key::parse(&changed);
            let _ = public_key::parse(&text.as_bytes()[..at]);
            let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
            let mut der = BASE64.decode(body.as_bytes()).expect("base64");
            let at = cut.index(der.len());
            der[at] ^= 1 << bit;
            let _ = public_key::parse(&der);
            let _ = PublicKey::from_spki(&der);
            let _ = PublicKey::from_certificate(&der[..at]);
        }
    }
}
