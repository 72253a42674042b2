//! The engine through its own door: definitions as text, requests as text, verdicts as words.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method as HttpMethod};
use proptest::prelude::*;

use super::{
    cases::{Request, split_url},
    sign::{Wishes, sign},
    *,
};
use crate::{
    problem::Source,
    section::{Inputs, Reader},
};

const NOW: i64 = 1_760_000_000_000;
const KEY: &str = "0123456789abcdef";

/// Reads `[providers.own]` with this content; the problems as lines.
fn define(text: &str) -> (Catalogue, Vec<String>) {
    let reader = Reader::new(Source { name: "t".into(), text: format!("[providers.own]\n{text}") }, Inputs::memory(&[], &[]));
    let table = reader.parse();
    let catalogue = Catalogue::read(&reader.root(&table));
    (catalogue, reader.problems().iter().map(ToString::to_string).collect())
}

fn secret(at: usize, text: &str) -> Secret {
    Secret::new(format!("#{at}"), text.into(), None)
}

fn plan_of(catalogue: &Catalogue, name: &str, keys: &[&str]) -> Plan {
    let definition = catalogue.definition(name).unwrap_or_else(|| panic!("{name} is a provider"));
    let secrets: Vec<Secret> = keys.iter().enumerate().map(|(i, key)| secret(i + 1, key)).collect();
    let params = definition.params.iter().map(|name| (name.clone(), "mine".to_owned())).collect();
    let public_keys = if definition.takes_public_keys() { public_key::samples::trusted() } else { Vec::new() };
    Plan::new(definition, &Means { public_keys: &public_keys, ..Means::new(&secrets, &params) }).unwrap_or_else(|why| panic!("{name}: {why}"))
}

fn own(text: &str, keys: &[&str]) -> Plan {
    let (catalogue, problems) = define(text);
    assert!(problems.is_empty(), "{text}: {problems:?}");
    plan_of(&catalogue, "own", keys)
}

fn preset(name: &str, keys: &[&str]) -> Plan {
    plan_of(&Catalogue::shipped(), name, keys)
}

/// A POST with these headers; a value may be any bytes.
fn post(url: &str, headers: &[(&str, &str)], body: &str) -> Request {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_bytes(name.as_bytes()).expect("a header"), HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
    }
    let (base, target) = split_url(url).expect("a URL");
    Request { method: HttpMethod::POST, base: base.into(), target: target.into(), headers: map, body: Bytes::copy_from_slice(body.as_bytes()).into() }
}

const URL: &str = "https://hooks.example.com/in";

fn mac(algorithm: mac::Algorithm, key: &str, text: &str) -> mac::Tag {
    let mut mac = mac::Mac::hmac(algorithm, key.as_bytes());
    mac.update(text.as_bytes());
    mac.finish()
}

fn hex(key: &str, text: &str) -> String {
    mac::Encoding::Hex.encode(mac(mac::Algorithm::Sha256, key, text).as_slice())
}

fn base64(key: &str, text: &str) -> String {
    mac::Encoding::Base64.encode(mac(mac::Algorithm::Sha256, key, text).as_slice())
}

/// The verdict: the secret's label, or the reason.
fn verdict(plan: &Plan, request: &Request) -> Result<String, Reason> {
    request.judge(plan, NOW).map(|signed| signed.secret.map(|label| label.to_string()).unwrap_or_default()).map_err(|why| why.reason)
}

#[track_caller]
fn check(plan: &Plan, request: &Request, want: Result<&str, Reason>) {
    assert_eq!(verdict(plan, request), want.map(str::to_owned), "{:?}", request.judge(plan, NOW).err());
}

const PLAIN: &str = "scheme = \"hmac\"\nalgorithm = \"sha256\"\nsignature = { header = \"X-Sig\", encoding = \"hex\" }\n";

// -- templates --

#[test]
fn templates_are_readable_in_one_way_or_refused() {
    let with = |signed: &str, more: &str| define(&format!("{PLAIN}signed = \"{signed}\"\n{more}")).1;
    let time = "timestamp = { header = \"X-Time\", unit = \"s\" }";
    let id = "delivery_id = { header = \"X-Id\" }";
    for (signed, more) in [
        ("{body}", String::new()),
        ("{timestamp}.{body}", time.into()),
        ("{timestamp}{body}", time.into()),
        ("{body}{timestamp}", time.into()),
        ("{id}.{timestamp}.{body}", format!("{time}\n{id}")),
        ("{id}{timestamp}{body}", format!("{time}\n{id}")),
        ("{url}{body}", String::new()),
        ("{body}{url}", "ambiguous = true".into()),
        ("{method}{url}{body}{timestamp}", time.into()),
        ("{method}{path}", String::new()),
        ("{method}\\n{target}\\n{header:X-A}\\n{body}", String::new()),
        ("{body}.{header:X-A}", String::new()),
        ("{header:X-A}:{json:/a}:{json:/b}", String::new()),
        ("{{{body}}}", String::new()),
        ("{url}{form_sorted}", "ambiguous = true".into()),
        ("{body_sha256_hex}{header:X-A}", String::new()),
        ("{header:X-A}|{body_crc32}", String::new()),
        ("a{json:/t}b", String::new()),
    ] {
        assert_eq!(with(signed, &more), Vec::<String>::new(), "{signed}");
    }
    for (signed, more, want) in [
        ("{header:X-A}{header:X-B}", "", "run together"),
        ("{body}{header:X-A}", "", "run together"),
        ("{url}{form_sorted}", "", "run together"),
        ("{body}{url}", "", "run together"),
        ("{json:/a}{json:/b}", "", "run together"),
        ("{url}?{form_sorted}", "", "run together"),
        ("{header:X-A}{body_crc32}", "", "run together"),
        ("{form_sorted}.{query_sorted}", "", "run together"),
        ("{timestamp}.{body}", "", "needs `timestamp"),
        ("{id}.{body}", "", "needs `delivery_id"),
        ("{bdoy}", "", "did you mean `{body}`"),
        ("{header:}", "", "names nothing"),
        ("{header:a b}", "", "not the name of a header"),
        ("{json:a}", "", "JSON pointer"),
        ("{field:t}", "", "format \"pairs\""),
        ("{param:x}", "", "not in `params`"),
        ("{body", "", "not closed"),
        ("body}", "", "stands alone"),
        ("constant", "", "nothing of the request"),
        ("{secret}", "", "nothing of the request"),
    ] {
        let problems = with(signed, more);
        assert!(problems.iter().any(|p| p.contains(want)), "{signed}: {problems:?}");
    }
}

#[test]
fn a_signature_never_fits_two_requests() {
    // The end of an id cannot become the start of a time, nor the start of a body.
    let twitch = preset("twitch", &[KEY]);
    let (id, time, body) = ("abc", "2025-10-09T08:53:20Z", "{\"at\":\"2025-10-09T08:53:21Z\"}");
    let signature = format!("sha256={}", hex(KEY, &format!("{id}{time}{body}")));
    let send = |id: &str, time: &str, body: &str| {
        let headers = [("Twitch-Eventsub-Message-Id", id), ("Twitch-Eventsub-Message-Timestamp", time), ("Twitch-Eventsub-Message-Signature", &signature)];
        post(URL, &headers, body)
    };
    check(&twitch, &send(id, time, body), Ok("#1"));
    check(&twitch, &send(&format!("{id}{time}{{\"at\":\""), "2025-10-09T08:53:21Z", "\"}"), Err(Reason::SignatureMalformed));

    // An id holds no dot (Standard Webhooks).
    let standard = preset("polar", &[KEY]);
    let signature = format!("v1,{}", base64(KEY, "a.1760000000.1760000000.{}"));
    let send = |id: &str, body: &str| post(URL, &[("webhook-id", id), ("webhook-timestamp", "1760000000"), ("webhook-signature", &signature)], body);
    check(&standard, &send("a", "1760000000.{}"), Ok("#1"));
    check(&standard, &send("a.1760000000", "{}"), Err(Reason::SignatureMalformed));

    // The body cannot lend its start to the URL.
    let square = preset("square", &[KEY]);
    let send = |url: &str, body: &str, over: &str| post(url, &[("x-square-hmacsha256-signature", &base64(KEY, over))], body);
    check(&square, &send("https://h/in?a=1", "{}", "https://h/in?a=1{}"), Ok("#1"));
    check(&square, &send("https://h/in?a=1{", "}", "https://h/in?a=1{}"), Err(Reason::SignatureMalformed));
    check(&square, &send("https://h/in", "?a=1{}", "https://h/in?a=1{}"), Err(Reason::SignatureMalformed));
    check(&square, &send("https://h/in", "", "https://h/in"), Ok("#1"));

    // Mailgun: a digit cannot move from the time to the token.
    let mailgun = preset("mailgun", &[KEY]);
    let signature = hex(KEY, "17600000001tok");
    let send = |time: &str, token: &str| {
        post(
            URL,
            &[("content-type", "application/json")],
            &format!("{{\"signature\":{{\"timestamp\":\"{time}\",\"token\":\"{token}\",\"signature\":\"{signature}\"}}}}"),
        )
    };
    check(&mailgun, &send("1760000000", "1tok"), Ok("#1"));
    check(&mailgun, &send("17600000001", "tok"), Err(Reason::SignatureMalformed));
    check(&mailgun, &send("176000000", "01tok"), Err(Reason::SignatureMalformed));

    // A time without a zone could run into what follows.
    let own = own(&format!("{PLAIN}timestamp = {{ header = \"X-Time\", unit = \"rfc3339\" }}\nsigned = \"{{timestamp}}{{body}}\""), &[KEY]);
    let send = |time: &str, body: &str| post(URL, &[("X-Time", time), ("X-Sig", &hex(KEY, &format!("{time}{body}")))], body);
    check(&own, &send("2025-10-09T08:53:20Z", "5"), Ok("#1"));
    check(&own, &send("2025-10-09T08:53:20.", "5"), Err(Reason::SignatureMalformed));
    check(&own, &send("2025-10-09T08:53:20", ".5"), Err(Reason::SignatureMalformed));
}

#[test]
fn every_placeholder_is_rendered() {
    let more = "timestamp = { header = \"X-Time\", unit = \"s\", of = \"event\" }\ndelivery_id = { header = \"X-Id\", signed = true }\nparams = [\"p\"]\nambiguous = true";
    let send = |signed: &str, over: &str, kind: &str, body: &str| {
        let plan = own(&format!("{PLAIN}{more}\nsigned = \"{signed}\""), &[KEY]);
        let headers = [("X-Time", "1760000000"), ("X-Id", "i1"), ("X-A", "a"), ("content-type", kind), ("X-Sig", &hex(KEY, over))];
        (plan, post("https://hooks.example.com/in/x?q=%41&b=2", &headers, body))
    };
    let json = "{\"a\":{\"n\":1.50,\"s\":\"x\\u00e9\"}}";
    let form = "b=2&a=y&a=x&c=%20";
    for (signed, over, kind, body) in [
        ("{body}-{timestamp}-{id}", format!("{json}-1760000000-i1"), "application/json", json),
        ("{id}{method}{url}", "i1POSThttps://hooks.example.com/in/x?q=%41&b=2".into(), "application/json", json),
        ("{id}{url_with_port}", "i1https://hooks.example.com:443/in/x?q=%41&b=2".into(), "application/json", json),
        ("{id}{url_without_port}", "i1https://hooks.example.com/in/x?q=%41&b=2".into(), "application/json", json),
        ("{id}{url_base}", "i1https://hooks.example.com/in/x".into(), "application/json", json),
        ("{id}{path} {target}", "i1/in/x /in/x?q=%41&b=2".into(), "application/json", json),
        ("{id}{query_sorted}", "i1b=2&q=A".into(), "application/json", json),
        ("{id}{header:X-A}{query:q}", "i1aA".into(), "application/json", json),
        ("{id}{json:/a/n}{json:/a/s}", "i11.50xé".into(), "application/json", json),
        ("{id}{form:c}{form_sorted}", "i1 axayb2c ".into(), "application/x-www-form-urlencoded; charset=utf-8", form),
        ("{id}{body_sha256_hex}{body_crc32}", "i1ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad891568578".into(), "text/plain", "abc"),
        ("{id}{body_json}{param:p}{secret}", format!("i1\"\\u0001\\n\\\"é\"mine{KEY}"), "text/plain", "\u{1}\n\"é"),
    ] {
        let (plan, request) = send(signed, &over, kind, body);
        check(&plan, &request, Ok("#1"));
    }
    let (plan, request) = send("{id}{form:c}", "i1 ", "text/plain", form);
    check(&plan, &request, Err(Reason::SignatureMalformed));
    let (plan, request) = send("{id}{json:/none}", "i1", "application/json", json);
    check(&plan, &request, Err(Reason::SignatureMissing));
    let (plan, request) = send("{id}{json:/a}", "i1", "application/json", "{\"a\":1,\"a\":2}");
    check(&plan, &request, Err(Reason::SignatureMalformed));
}

// -- places and formats --

#[test]
fn signatures_stand_where_they_are_said_to() {
    let scheme = "scheme = \"hmac\"\nalgorithm = \"sha256\"\nsigned = \"{body}\"\nsignature = ";
    let good = hex(KEY, "{}");
    let try_one = |place: &str, url: &str, headers: &[(&str, &str)], want: Result<&str, Reason>| {
        check(&own(&format!("{scheme}{place}"), &[KEY]), &post(url, headers, "{}"), want)
    };
    let wrong = hex("other", "{}");
    let pairs = "{ header = \"X-Sig\", format = \"pairs\", separator = \";\", assign = \":\", field = \"s\", encoding = \"hex\" }";
    try_one(pairs, URL, &[("X-Sig", &format!("t:1; s:{good}"))], Ok("#1"));
    try_one(pairs, URL, &[("X-Sig", &format!("s:{wrong};s:{good}"))], Ok("#1"));
    try_one(pairs, URL, &[("X-Sig", &format!("S:{good}"))], Err(Reason::SignatureMalformed));
    try_one(pairs, URL, &[("X-Sig", &format!("s={good}"))], Err(Reason::SignatureMalformed));
    try_one(pairs, URL, &[("X-Sig", "")], Err(Reason::SignatureMissing));
    try_one(pairs, URL, &[], Err(Reason::SignatureMissing));
    let list = "{ header = \"X-Sig\", format = \"list\", separator = \" \", version = \"v1=\", encoding = \"hex\" }";
    try_one(list, URL, &[("X-Sig", &format!("v1={wrong} v1={good}"))], Ok("#1"));
    try_one(list, URL, &[("X-Sig", &format!("v2={good}"))], Err(Reason::SignatureMalformed));
    try_one(list, URL, &[("X-Sig", &format!("v1={wrong}"))], Err(Reason::SignatureMismatch));
    try_one(list, URL, &[("X-Sig", &format!("v1=00 v1={good}"))], Ok("#1"));
    let many = vec![format!("v1={wrong}"); 200].join(" ");
    try_one(list, URL, &[("X-Sig", &many)], Err(Reason::SignatureMalformed));
    let plain = "{ header = \"X-Sig\", prefix = \"k=\", encoding = \"hex\" }";
    try_one(plain, URL, &[("X-Sig", &format!("k={good}"))], Ok("#1"));
    for bad in [good.as_str(), &format!("K={good}"), &format!("k={}", good.to_uppercase()), &format!("k={good}0"), &format!("k= {good}"), "k=", "k"] {
        try_one(plain, URL, &[("X-Sig", bad)], Err(Reason::SignatureMalformed));
    }
    try_one(plain, URL, &[("X-Sig", &format!("k={good}")), ("x-sig", &format!("k={good}"))], Err(Reason::SignatureMalformed));
    try_one("{ query = \"s\", encoding = \"hex\" }", &format!("{URL}?s={good}"), &[], Ok("#1"));
    try_one("{ query = \"s\", encoding = \"hex\" }", &format!("{URL}?s={good}&s={good}"), &[], Err(Reason::SignatureMalformed));
    try_one("{ query = \"s\", encoding = \"hex\" }", URL, &[], Err(Reason::SignatureMissing));

    // In the body, over something else of the body.
    let json = "scheme = \"hmac\"\nalgorithm = \"sha256\"\nsignature = { json = \"/sig\", encoding = \"hex\" }\nsigned = \"{json:/data}\"";
    let plan = own(json, &[KEY]);
    check(&plan, &post(URL, &[], &format!("{{\"data\":\"x\",\"sig\":\"{}\"}}", hex(KEY, "x"))), Ok("#1"));
    check(&plan, &post(URL, &[], &format!("{{\"data\":\"y\",\"sig\":\"{}\"}}", hex(KEY, "x"))), Err(Reason::SignatureMismatch));
    check(&plan, &post(URL, &[], &format!("{{\"data\":\"x\",\"sig\":\"{}\",\"sig\":\"\"}}", hex(KEY, "x"))), Err(Reason::SignatureMalformed));
    check(&plan, &post(URL, &[], "{\"data\":\"x\"}"), Err(Reason::SignatureMissing));
    check(&plan, &post(URL, &[], "{\"data\":\"x\",\"sig\":{}}"), Err(Reason::SignatureMalformed));
    check(&plan, &post(URL, &[], "nonsense"), Err(Reason::SignatureMalformed));
    assert_eq!(plan.verification(), Verification::Sender);
}

#[test]
fn algorithms_and_encodings() {
    for (word, algorithm) in mac::Algorithm::WORDS {
        for (text, encoding) in [
            ("\"hex\"", mac::Encoding::Hex),
            ("\"hex-any-case\"", mac::Encoding::HexAny),
            ("\"base64\"", mac::Encoding::Base64),
            ("\"base64\", padding = \"absent\"", mac::Encoding::Base64NoPad),
            ("\"base64url\", padding = \"strict\"", mac::Encoding::Base64Url),
            ("\"base64url\"", mac::Encoding::Base64UrlNoPad),
        ] {
            let plan = own(
                &format!("scheme = \"hmac\"\nalgorithm = \"{word}\"\nsigned = \"{{body}}\"\nsignature = {{ header = \"X-Sig\", encoding = {text} }}"),
                &[KEY],
            );
            let tag = mac(*algorithm, KEY, "b");
            check(&plan, &post(URL, &[("X-Sig", &encoding.encode(tag.as_slice()))], "b"), Ok("#1"));
            check(&plan, &post(URL, &[("X-Sig", &encoding.encode(&tag.as_slice()[1..]))], "b"), Err(Reason::SignatureMalformed));
        }
    }
    let hash =
        own("scheme = \"hash\"\nalgorithm = \"sha1\"\nsigned = \"{body}{secret}\"\nsignature = { header = \"X-Sig\", encoding = \"hex\" }", &["no", "abc"]);
    // SHA-1 of "abc" (FIPS 180): the body is empty.
    check(&hash, &post(URL, &[("X-Sig", "a9993e364706816aba3e25717850c26c9cd0d89d")], ""), Ok("#2"));
    check(&hash, &post(URL, &[("X-Sig", "a9993e364706816aba3e25717850c26c9cd0d89d")], "x"), Err(Reason::SignatureMismatch));
}

#[test]
fn each_of_several_places_has_its_own_secret() {
    let places = "signature = [{ header = \"X-One\", encoding = \"hex\" }, { header = \"X-Two\", encoding = \"hex\" }]";
    let text = format!("scheme = \"hmac\"\nalgorithm = \"sha256\"\nsigned = \"{{body}}\"\n{places}");
    let plan = own(&text, &["one-secret", "two-secret"]);
    let (one, two) = (hex("one-secret", "b"), hex("two-secret", "b"));
    check(&plan, &post(URL, &[("X-One", &one)], "b"), Ok("#1"));
    check(&plan, &post(URL, &[("X-Two", &two)], "b"), Ok("#2"));
    check(&plan, &post(URL, &[("X-One", &two), ("X-Two", &two)], "b"), Ok("#2"));
    check(&plan, &post(URL, &[("X-One", &two), ("X-Two", &one)], "b"), Err(Reason::SignatureMismatch));
    check(&plan, &post(URL, &[("X-One", &two)], "b"), Err(Reason::SignatureMismatch));
    check(&plan, &post(URL, &[], "b"), Err(Reason::SignatureMissing));
    // With one secret, the first place alone counts.
    check(&own(&text, &["two-secret"]), &post(URL, &[("X-Two", &two)], "b"), Err(Reason::SignatureMismatch));
    let (catalogue, _) = define(&text);
    let definition = catalogue.definition("own").expect("it was read");
    let three: Vec<Secret> = (1..4).map(|i| secret(i, KEY)).collect();
    assert!(Plan::new(definition, &Means::new(&three, &BTreeMap::new())).is_err_and(|why| why.contains("belongs to no signature")));

    // By label, in any order.
    let labelled = text.replace("X-One\"", "X-One\", secret = \"primary\"").replace("X-Two\"", "X-Two\", secret = \"secondary\"");
    let (catalogue, problems) = define(&labelled);
    assert!(problems.is_empty(), "{problems:?}");
    let secrets = [Secret::new("secondary", b"two-secret".to_vec(), None), Secret::new("primary", b"one-secret".to_vec(), None)];
    let plan = Plan::new(catalogue.definition("own").expect("it was read"), &Means::new(&secrets, &BTreeMap::new())).expect("a plan");
    check(&plan, &post(URL, &[("X-One", &one)], "b"), Ok("primary"));
    check(&plan, &post(URL, &[("X-Two", &one)], "b"), Err(Reason::SignatureMismatch));
}

#[test]
fn expired_secrets_do_not_count() {
    let (catalogue, _) = define(&format!("{PLAIN}signed = \"{{body}}\""));
    let definition = catalogue.definition("own").expect("it was read");
    let of = |not_after: &[Option<i64>]| {
        let secrets: Vec<Secret> =
            not_after.iter().enumerate().map(|(i, last)| Secret::new(format!("#{}", i + 1), format!("{KEY}{i}").into_bytes(), *last)).collect();
        Plan::new(definition, &Means::new(&secrets, &BTreeMap::new())).expect("a plan")
    };
    let send = |i: usize| post(URL, &[("X-Sig", &hex(&format!("{KEY}{i}"), "b"))], "b");
    check(&of(&[Some(NOW)]), &send(0), Ok("#1"));
    check(&of(&[Some(NOW - 1)]), &send(0), Err(Reason::SignatureMismatch));
    let rotating = of(&[None, Some(NOW - 1), Some(NOW + 1)]);
    check(&rotating, &send(0), Ok("#1"));
    check(&rotating, &send(1), Err(Reason::SignatureMismatch));
    check(&rotating, &send(2), Ok("#3"));
    let token = preset("telegram", &[KEY]);
    check(&token, &post(URL, &[("x-telegram-bot-api-secret-token", KEY)], ""), Ok("#1"));
}

// -- times --

#[test]
fn tolerance_is_exact_to_the_second() {
    let plan = preset("stripe", &[KEY]);
    let at = |offset: i64, now_ms: i64| {
        let time = NOW / 1000 + offset;
        let request = post(URL, &[("Stripe-Signature", &format!("t={time},v1={}", hex(KEY, &format!("{time}.b"))))], "b");
        request.judge(&plan, now_ms).map(drop).map_err(|why| why.reason)
    };
    for (offset, now, want) in [
        (0, NOW, Ok(())),
        (-300, NOW, Ok(())),
        (-300, NOW + 999, Ok(())),
        (-301, NOW, Err(Reason::TimestampStale)),
        (300, NOW, Ok(())),
        (301, NOW, Err(Reason::TimestampFuture)),
        (-86_400, NOW, Err(Reason::TimestampStale)),
    ] {
        assert_eq!(at(offset, now), want, "{offset} at {now}");
    }
    let plan = preset("hubspot", &[KEY]);
    let at = |offset: i64| {
        let time = NOW + offset;
        let signature = base64(KEY, &format!("POST{URL}{{}}{time}"));
        verdict(&plan, &post(URL, &[("X-HubSpot-Signature-v3", &signature), ("X-HubSpot-Request-Timestamp", &time.to_string())], "{}"))
    };
    assert_eq!((at(-300_000), at(-300_001)), (Ok("#1".into()), Err(Reason::TimestampStale)));
    assert_eq!((at(300_000), at(300_001)), (Ok("#1".into()), Err(Reason::TimestampFuture)));
    let box_ = preset("box", &[KEY]);
    let at =
        |time: &str| verdict(&box_, &post(URL, &[("box-delivery-timestamp", time), ("box-signature-primary", &base64(KEY, &format!("{{}}{time}")))], "{}"));
    assert_eq!((at("2025-10-09T08:53:20Z"), at("2025-10-09T08:53:21Z")), (Ok("#1".into()), Err(Reason::TimestampFuture)));
}

#[test]
fn odd_times_are_refused_though_signed() {
    let plan = preset("slack", &[KEY]);
    for time in [
        "",
        "0",
        "-1760000000",
        "+1760000000",
        "01760000000",
        "1760000000.0",
        "1.76e9",
        " 1760000000",
        "1760000000 ",
        "0x68e77b00",
        "1760000000000",
        "176000000",
        "99999999999999999999",
        "nan",
        "inf",
        "1760000000,1760000000",
        "2025-10-09T08:53:20Z",
        "١٧٦٠٠٠٠٠٠٠",
        "1760000000\t",
        "１７６０００００００",
    ] {
        let got = verdict(
            &plan,
            &post(URL, &[("X-Slack-Request-Timestamp", time), ("X-Slack-Signature", &format!("v0={}", hex(KEY, &format!("v0:{time}:b"))))], "b"),
        );
        let want = if time.is_empty() { Reason::TimestampMissing } else { Reason::SignatureMalformed };
        assert_eq!(got, Err(want), "{time:?}");
    }
    let twice = post(
        URL,
        &[
            ("X-Slack-Request-Timestamp", "1760000000"),
            ("X-Slack-Request-Timestamp", "1760000000"),
            ("X-Slack-Signature", &format!("v0={}", hex(KEY, "v0:1760000000:b"))),
        ],
        "b",
    );
    check(&plan, &twice, Err(Reason::SignatureMalformed));
}

// -- tokens --

#[test]
fn a_missing_credential_never_equals_an_empty_one() {
    for name in ["gitlab", "bearer", "github", "slack", "postmark", "standardwebhooks", "docusign", "mailgun"] {
        let key = if name == "postmark" { "a:b" } else { "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" };
        let plan = preset(name, &[key]);
        let headers = ["x-gitlab-token", "authorization", "x-hub-signature-256", "x-slack-signature", "webhook-signature", "x-docusign-signature-1"];
        for value in [None, Some(""), Some("Bearer "), Some("Basic "), Some("sha256="), Some("v0="), Some("v1,")] {
            let headers: Vec<(&str, &str)> = value.map(|value| headers.iter().map(|name| (*name, value)).collect()).unwrap_or_default();
            assert!(verdict(&plan, &post(URL, &headers, "")).is_err(), "{name} {value:?}");
        }
    }
}

#[test]
fn bearer_tokens_have_a_scheme_without_case() {
    let plan = preset("bearer", &["other-token-of-16", KEY]);
    check(&plan, &post(URL, &[("authorization", &format!("Bearer {KEY}"))], ""), Ok("#2"));
    check(&plan, &post(URL, &[("authorization", &format!("bearer {KEY}"))], ""), Ok("#2"));
    for bad in [
        KEY.to_owned(),
        format!("Bearer{KEY}"),
        format!("Bearer  {KEY}"),
        format!("Token {KEY}"),
        format!("Bearer {KEY}x"),
        format!("Bearer {}", &KEY[1..]),
        format!("Basic {KEY}"),
    ] {
        check(&plan, &post(URL, &[("authorization", &bad)], ""), Err(Reason::TokenInvalid));
    }
    let twice = [("authorization", &*format!("Bearer {KEY}")), ("authorization", &*format!("Bearer {KEY}"))];
    check(&plan, &post(URL, &twice, ""), Err(Reason::TokenInvalid));
    assert_eq!(plan.credential_headers().first().map(HeaderName::as_str), Some("authorization"));
    let query = own("scheme = \"token\"\nsignature = { query = \"token\" }", &[KEY]);
    check(&query, &post(&format!("{URL}?token={KEY}"), &[], ""), Ok("#1"));
    check(&query, &post(&format!("{URL}?token="), &[], ""), Err(Reason::TokenInvalid));
}

// -- what is signed decides what is believed --

#[test]
fn replay_keys_come_from_signed_content_only() {
    let key = |plan: &Plan, request: &Request| request.judge(plan, NOW).expect("a good request").replay;
    let github = preset("github", &[KEY]);
    let send = |delivery: &str, event: &str| {
        post(URL, &[("X-Hub-Signature-256", &format!("sha256={}", hex(KEY, "{}"))), ("X-GitHub-Delivery", delivery), ("X-GitHub-Event", event)], "{}")
    };
    let signed = send("d1", "push").judge(&github, NOW).expect("a good request");
    assert_eq!((signed.delivery_id.as_deref(), signed.event_type.as_deref(), signed.verification), (Some("d1"), Some("push"), Verification::Content));
    assert_eq!(signed.replay, key(&github, &send("d2", "ping")));
    assert_eq!(signed.replay.map(|k| k.kind), Some(ReplayKind::Content));

    // A retry has a new time and the same id.
    let stripe = preset("stripe", &[KEY]);
    let send = |time: i64, body: &str, kind: &str| {
        post(URL, &[("content-type", kind), ("Stripe-Signature", &format!("t={time},v1={}", hex(KEY, &format!("{time}.{body}"))))], body)
    };
    let first = key(&stripe, &send(1_760_000_000, "{\"id\":\"evt_1\"}", "application/json"));
    assert_eq!(first, Some(ReplayKey::of_id(b"evt_1")));
    assert_eq!(first, key(&stripe, &send(1_760_000_009, "{\"id\":\"evt_1\"}", "application/json")));
    // The content type is not signed: it must not hide a signed id.
    for kind in ["application/x-www-form-urlencoded", "text/plain", ""] {
        assert_eq!(first, key(&stripe, &send(1_760_000_000, "{\"id\":\"evt_1\"}", kind)));
    }
    let odd = key(&stripe, &send(1_760_000_000, "not json", "application/json"));
    assert_eq!(odd.map(|k| k.kind), Some(ReplayKind::Content));

    // Taking one of two good signatures away changes nothing.
    let pagerduty = preset("docusign", &["one-secret", "two-secret"]);
    let (one, two) = (base64("one-secret", "{}"), base64("two-secret", "{}"));
    let both = key(&pagerduty, &post(URL, &[("X-DocuSign-Signature-1", &one), ("X-DocuSign-Signature-2", &two)], "{}"));
    assert!(both.is_some());
    assert_eq!(both, key(&pagerduty, &post(URL, &[("X-DocuSign-Signature-1", &two)], "{}")));
    assert_eq!(both, key(&pagerduty, &post(URL, &[("X-DocuSign-Signature-1", &one)], "{}")));
    assert_ne!(both, key(&pagerduty, &post(URL, &[("X-DocuSign-Signature-1", &base64("one-secret", "[]"))], "[]")));

    // Taking the stronger of two forms away makes no other event; where a route takes one form only, all that it signs counts.
    let hubspot = preset("hubspot", &[KEY]);
    let (body, time) = ("[{\"eventId\":1}]", NOW.to_string());
    let v1 = data_encoding::HEXLOWER.encode(&Sha256::digest(format!("{KEY}{body}")));
    let v3 = base64(KEY, &format!("POST{URL}{body}{time}"));
    let weak = [("X-HubSpot-Signature-Version", "v1"), ("X-HubSpot-Signature", v1.as_str())];
    let strong = [("X-HubSpot-Signature-v3", v3.as_str()), ("X-HubSpot-Request-Timestamp", time.as_str())];
    let captured = key(&hubspot, &post(URL, &[weak, strong].concat(), body));
    assert!(captured.is_some());
    assert_eq!(captured, key(&hubspot, &post(URL, &weak, body)));
    assert_eq!(captured, key(&hubspot, &post(URL, &strong, body)));

    // The topic counts where it is a known one.
    let shopify = preset("shopify", &[KEY]);
    let send = |topic: &str| {
        let headers = [
            ("X-Shopify-Topic", topic),
            ("X-Shopify-Shop-Domain", "s"),
            ("X-Shopify-API-Version", "v"),
            ("X-Shopify-Webhook-Id", "w"),
            ("X-Shopify-Hmac-Sha256", &base64(KEY, "{}")),
        ];
        post(URL, &headers, "{}")
    };
    assert_ne!(key(&shopify, &send("orders/create")), key(&shopify, &send("orders/paid")));
    assert_eq!(key(&shopify, &send("made/up")), key(&shopify, &send("made/up-too")));

    for name in ["telegram", "dropbox", "grafana"] {
        assert!(!preset(name, &[KEY]).keys_replays(), "{name}");
    }
}

#[test]
fn a_stored_key_is_never_a_usable_signature() {
    let plan = preset("github", &[KEY]);
    let signed = post(URL, &[("X-Hub-Signature-256", &format!("sha256={}", hex(KEY, "{}")))], "{}").judge(&plan, NOW).expect("a good request");
    let key = signed.replay.expect("a key");
    assert_ne!(data_encoding::HEXLOWER.encode(&key.digest), hex(KEY, "{}"));
    assert!(!format!("{signed:?}{plan:?}{key}").contains(&hex(KEY, "{}")));
    assert!(!format!("{plan:?}").contains(KEY));
}

#[test]
fn definitions_that_believe_unsigned_values_are_refused() {
    for (more, want) in [
        ("delivery_id = { header = \"X-Id\", signed = true }", "does not cover it"),
        ("delivery_id = { header = \"X-Id\" }\nreplay_key = \"id\"", "could carry another one"),
        ("timestamp = { header = \"X-Time\", unit = \"s\" }", "not covered by the signature"),
        ("body_digest = { header = \"X-D\", encoding = \"hex\" }", "not covered by the signature"),
        ("replay_key = \"content+type\"", "needs `event_types`"),
        ("challenge = { }", "`answer` is missing"),
        ("signture = 1", "did you mean `signature`"),
    ] {
        let (_, problems) = define(&format!("{PLAIN}signed = \"{{body}}\"\n{more}"));
        assert!(problems.iter().any(|p| p.contains(want)), "{more}: {problems:?}");
    }
    for (text, want) in [
        ("scheme = \"hmacs\"", "did you mean \"hmac\""),
        ("scheme = \"hash\"\nalgorithm = \"sha256\"\nsigned = \"{body}\"\nsignature = { header = \"X\", encoding = \"hex\" }", "proves nothing"),
        ("scheme = \"token\"\nsignature = { header = \"X\" }\nreplay_key = \"content\"", "signs nothing"),
        ("scheme = \"token\"\nsignature = { json = \"/t\" }", "header or a query parameter"),
        ("scheme = \"hmac\"", "`algorithm` is missing"),
        ("scheme = \"basic\"\nip_ranges = [\"10.0.0.1/8\"]", "not a network"),
    ] {
        let (_, problems) = define(text);
        assert!(problems.iter().any(|p| p.contains(want)), "{text}: {problems:?}");
    }
    // All problems in one run.
    assert!(define("scheme = \"hmac\"\nnonsense = 1").1.len() >= 4);
}

/// Whoever has one signed request of a plain digest that starts with the secret knows the digest of every longer one (SHA-2's padding, then
/// more): the padding holds zero bytes, which no text does.
#[test]
fn a_plain_digest_cannot_be_lengthened() {
    let define =
        |signed: &str| format!("scheme = \"hash\"\nalgorithm = \"sha256\"\nsignature = {{ header = \"X-Sig\", encoding = \"hex\" }}\nsigned = \"{signed}\"");
    let judge = |signed: &str, head: &str, tail: &str, body: &[u8]| {
        let digest = data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest([head.as_bytes(), body, tail.as_bytes()].concat()));
        let mut request = post(URL, &[("X-Sig", &digest)], "");
        request.body = Bytes::copy_from_slice(body).into();
        request.judge(&own(&define(signed), &[KEY]), NOW).is_ok()
    };
    let lengthened = [b"{}\x80".as_slice(), &[0; 45], b"\x01\x40{\"admin\":true}"].concat();
    assert!(judge("{secret}{body}", KEY, "", b"{}"));
    assert!(!judge("{secret}{body}", KEY, "", &lengthened));
    assert!(judge("{body}{secret}", "", KEY, &lengthened), "with the secret at the end there is nothing to lengthen");
}

#[test]
fn query_parameters_that_are_not_signed_are_named() {
    let allowed = ["tenant".to_owned()];
    let ask = |plan: &Plan, url: &str, headers: &[(&str, &str)]| plan.unsigned_query(&post(url, headers, "").facts(), &allowed);
    let github = preset("github", &[KEY]);
    assert_eq!(ask(&github, URL, &[]), None);
    assert_eq!(ask(&github, "https://h/?tenant=1", &[]), None);
    assert_eq!(ask(&github, "https://h/?tenant=1&admin=1", &[]), Some("admin".into()));
    assert_eq!(ask(&github, "https://h/?%74enant=1&%61dmin=", &[]), Some("admin".into()));
    assert_eq!(ask(&github, "https://h/?tenant&s3cret", &[]), Some("*".into()), "what has no value may be a token itself");
    assert_eq!(ask(&github, &format!("https://h/?{}=1", "a".repeat(5000)), &[]).map(|name| name.len()), Some(64));
    assert_eq!(ask(&preset("square", &[KEY]), "https://h/?a=1", &[]), None);
    let hubspot = preset("hubspot", &[KEY]);
    assert_eq!(ask(&hubspot, "https://h/?a=1", &[("x-hubspot-signature-v3", "x")]), None);
    assert_eq!(ask(&hubspot, "https://h/?a=1", &[("x-hubspot-signature-version", "v1")]), Some("a".into()));
    assert_eq!(ask(&Plan::none(), "https://h/?a=1", &[]), Some("a".into()));
    assert_eq!(ask(&own("scheme = \"token\"\nsignature = { query = \"token\" }", &[KEY]), "https://h/?token=1", &[]), None);
}

// -- the route's key --

#[test]
fn a_routes_verify_is_read_and_explained() {
    let read_one = |text: &str| {
        let inputs = Inputs::memory(&[("S", "0123456789abcdef"), ("SHORT", "short"), ("SW", "whsec_!!!")], &[]);
        let reader = Reader::new(Source { name: "t".into(), text: text.into() }, inputs);
        let table = reader.parse();
        let plan = read(&reader.root(&table), &Catalogue::shipped());
        (plan, reader.problems().iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    };
    let (plan, problems) = read_one("verify = { provider = \"github\", secret = \"env:S\" }");
    assert_eq!((plan.and_then(|p| p.provider().cloned()).as_deref(), &*problems), (Some("github"), ""));
    assert!(read_one("verify = \"none\"").0.is_some_and(|plan| plan.is_none()));
    let (plan, problems) = read_one(
        "verify = { scheme = \"hmac\", algorithm = \"sha256\", signature = { header = \"X-Sig\", encoding = \"hex\" }, signed = \"{body}\", secret = \"env:S\" }",
    );
    assert_eq!((plan.and_then(|p| p.provider().cloned()).as_deref(), &*problems), (Some("hmac"), ""));
    for (text, want) in [
        ("", "has no `verify`"),
        ("verify = \"noone\"", "no way to verify"),
        ("verify = { provider = \"githib\", secret = \"env:S\" }", "did you mean \"github\""),
        ("verify = { provider = \"github\" }", "secret"),
        ("verify = { secret = \"env:S\" }", "provider"),
        ("verify = { scheme = \"basic\", secret = \"env:S\", nonsense = 1 }", "unknown key `nonsense`"),
        ("verify = { provider = \"github\", secret = \"env:S\", secert = 1 }", "did you mean `secret`"),
        ("verify = { provider = \"braintree\", secret = \"env:S\" }", "needs `params`: api_public_key"),
        ("verify = { provider = \"github\", secret = \"env:S\", params = { a = \"b\" } }", "unknown key `a`"),
        ("verify = { provider = \"hubspot\", secret = \"env:S\", variants = [\"v4\"] }", "no variant `v4`"),
        ("verify = { provider = \"postmark\", secret = \"env:S\" }", "`user:password`"),
        ("verify = { provider = \"standardwebhooks\", secret = \"env:SW\" }", "not base64"),
        ("verify = { provider = \"github\", secret = \"env:SHORT\" }", "has 5 bytes"),
        ("verify = { provider = \"gitlab\", secret = \"env:S\" }", "nothing about the body"),
        ("verify = { provider = \"vercel\", secret = \"env:S\" }", "SHA-1"),
    ] {
        let problems = read_one(text).1;
        assert!(problems.contains(want), "{text}: {problems}");
        assert!(!problems.contains("0123456789abcdef") && !problems.contains("!!!"), "{problems}");
    }
    let (plan, problems) = read_one("verify = { provider = \"hubspot\", secret = \"env:S\", variants = [\"v3\"], tolerance = \"1m\" }");
    assert_eq!((plan.and_then(|p| p.attempt_window()), &*problems), (Some(Duration::from_secs(60)), ""));
}

#[test]
fn presets_know_how_far_to_trust() {
    let check = |name: &str, want: Verification, window: Option<u64>| {
        let plan = preset(name, &["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]);
        assert_eq!((plan.verification(), plan.attempt_window().map(|w| w.as_secs())), (want, window), "{name}");
    };
    check("github", Verification::Content, None);
    check("stripe", Verification::Content, Some(300));
    check("linear", Verification::Content, Some(60));
    check("svix", Verification::Content, Some(300));
    check("gitlab", Verification::Sender, None);
    check("mailgun", Verification::Sender, None);
    check("twilio", Verification::Content, None);
    check("zoom", Verification::Content, None);
    check("hubspot", Verification::Content, None);
}

// -- any request --

/// A good request of a preset, small.
fn signed_by(name: &str, body: &str) -> (Plan, Request) {
    let key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let plan = preset(name, &[key]);
    let form = matches!(name, "twilio" | "mandrill" | "plivo");
    let mut request =
        post(URL, &[("content-type", if form { "application/x-www-form-urlencoded" } else { "application/json" })], if form { "a=1&b=2" } else { body });
    let wishes = Wishes { id: "msg_1".into(), now_ms: NOW, ..Wishes::default() };
    sign(&plan, &secret(1, key), &mut request, &wishes).unwrap_or_else(|why| panic!("{name}: {why}"));
    (plan, request)
}

/// The presets whose signature covers every byte of the body.
fn covering() -> Vec<String> {
    let catalogue = Catalogue::shipped();
    let names = catalogue.names().into_iter().filter(|name| !matches!(*name, "twilio" | "mandrill" | "plivo" | "adyen-platform"));
    names.filter(|name| catalogue.definition(name).is_some_and(|d| d.signs() && d.verification() == Verification::Content)).map(str::to_owned).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_changed_bit_of_the_body_passes(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        for name in covering() {
            let (plan, request) = signed_by(&name, "{\"id\":\"evt_1\",\"webhookTimestamp\":1760000000000}");
            let mut body = request.body.to_bytes().to_vec();
            let at = at.index(body.len());
            body[at] ^= 1 << bit;
            let changed = Request { body: Bytes::from(body).into(), ..request };
            prop_assert!(changed.judge(&plan, NOW).is_err(), "{}", name);
        }
    }

    #[test]
    fn no_changed_bit_of_a_signature_passes(at in any::<prop::sample::Index>(), bit in 0..7_u32) {
        for (name, header) in [("github", "x-hub-signature-256"), ("slack", "x-slack-signature"), ("shopify", "x-shopify-hmac-sha256"), ("standardwebhooks", "webhook-signature"), ("stripe", "stripe-signature"), ("sanity", "sanity-webhook-signature")] {
            let (plan, mut request) = signed_by(name, "{\"id\":\"evt_1\"}");
            let mut value = request.headers[header].as_bytes().to_vec();
            let at = at.index(value.len());
            value[at] ^= 1 << bit;
            let Ok(value) = HeaderValue::from_bytes(&value) else { continue };
            request.headers.insert(header, value);
            prop_assert!(request.judge(&plan, NOW).is_err(), "{}", name);
        }
    }

    #[test]
    fn pieces_of_a_body_are_as_good_as_the_whole(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        for name in ["github", "stripe", "hygraph", "cloudinary", "box", "linear", "standardwebhooks", "twilio", "mailgun"] {
            let (plan, request) = signed_by(name, "{\"id\":\"evt_1\",\"webhookTimestamp\":1760000000000}");
            let body = request.body.to_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).chain([0, body.len()]).collect();
            at.sort_unstable();
            let mut chunks = Chunks::default();
            at.windows(2).for_each(|pair| chunks.push(body.slice(pair[0]..pair[1])));
            let whole = request.judge(&plan, NOW).expect("a good request");
            let pieces = Request { body: chunks, ..request }.judge(&plan, NOW).expect("a good request");
            prop_assert_eq!(whole.replay, pieces.replay);
            prop_assert_eq!(whole.delivery_id, pieces.delivery_id);
        }
    }

    #[test]
    fn nothing_that_arrives_makes_it_panic(
        headers in prop::collection::vec((0..29_usize, prop::collection::vec(any::<u8>(), 0..80)), 0..12),
        words in prop::collection::vec("[tsvh]?[01a,;= .:|/-]{0,6}[0-9a-f]{0,66}[=,; v1]{0,4}", 0..4),
        target in "/[ -~]{0,40}",
        body in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let names = [
            "x-hub-signature-256", "stripe-signature", "webhook-id", "webhook-timestamp", "webhook-signature", "svix-signature", "authorization", "x-slack-signature", "x-slack-request-timestamp", "content-type",
            "x-twilio-signature", "x-plivo-signature-v3", "x-plivo-signature-v3-nonce", "x-docusign-signature-1", "recurly-signature", "event-signature", "gcms-signature", "x-hubspot-signature-version",
            "x-hubspot-signature", "box-signature-primary", "box-delivery-timestamp", "x-cld-signature", "x-cld-timestamp", "twitch-eventsub-message-timestamp",
            "x-signature-ed25519", "x-signature-timestamp", "signature", "signature-input", "content-digest",
        ];
        let mut map = HeaderMap::new();
        let values = headers.into_iter().chain(words.into_iter().enumerate().map(|(i, word)| (i * 7 % names.len(), word.into_bytes())));
        for (at, value) in values {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                map.append(names[at], value);
            }
        }
        let catalogue = Catalogue::shipped();
        for name in catalogue.names().into_iter().filter(|name| catalogue.definition(name).is_some_and(|d| !d.needs_keys())) {
            let key = if catalogue.definition(name).is_some_and(|d| d.schemes() == ["basic"]) { "a:b" } else if name.starts_with("adyen") { "00ff" } else { "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" };
            let plan = preset(name, &[key]);
            let request = Request { method: HttpMethod::POST, base: "https://h".into(), target: target.clone(), headers: map.clone(), body: Bytes::from(body.clone()).into() };
            prop_assert!(request.judge(&plan, NOW).is_err());
            let _ = plan.unsigned_query(&request.facts(), &[]);
            let _ = plan.unverified(&request.facts(), &mut request.body.clone());
        }
    }
}
