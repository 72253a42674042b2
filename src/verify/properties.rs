//! What holds for every preset that can sign: whoever changes a bit of what is signed, or of the signature, is refused.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method as HttpMethod, header::CONTENT_TYPE};
use proptest::prelude::*;
use std::sync::OnceLock;

use super::{
    cases::Request,
    sign::{Wishes, sign},
    *,
};

const NOW: i64 = 1_760_000_000_123;
const JSON: &str = "{\"id\":\"evt_1\",\"event_id\":\"evt_1\",\"type\":\"t\",\"webhookTimestamp\":1760000000000,\"text\":\"caf\u{e9} \\u00e9\"}";
const FORM: &str = "b=2&a=1&c=caf%C3%A9";

/// A good request of one form of a preset.
struct Good {
    name: String,
    plan: Plan,
    request: Request,
    /// The headers that the proof is read from or covers, and how many of their first bytes are a word without case.
    headers: Vec<(HeaderName, usize)>,
    /// Whether every bit of the body counts.
    body: bool,
}

fn secret_of(definition: &Definition) -> &'static str {
    if definition.schemes().contains(&"basic") {
        "user:0123456789abcdef"
    } else if &*definition.name == "adyen-platform" {
        "00112233445566778899aabbccddeeff"
    } else {
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    }
}

fn good(definition: &Arc<Definition>, variant: Option<&str>, form: bool) -> Option<Good> {
    let secret = Secret::new("#1", secret_of(definition).into(), None);
    let params = definition.params.iter().map(|name| (name.clone(), "mine".to_owned())).collect();
    let only = variant.map(|name| vec![name.to_owned()]);
    let plan = Plan::new(definition, &Means { variants: only.as_deref(), ..Means::new(std::slice::from_ref(&secret), &params) }).ok()?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(if form { "application/x-www-form-urlencoded" } else { "application/json" }));
    let mut request = Request {
        method: HttpMethod::POST,
        base: "https://hooks.example.com".into(),
        target: "/in".into(),
        headers,
        body: Bytes::from_static(if form { FORM } else { JSON }.as_bytes()).into(),
    };
    let wishes = Wishes { id: "msg_1".into(), now_ms: NOW, variant: variant.map(str::to_owned), ..Wishes::default() };
    sign(&plan, &secret, &mut request, &wishes).ok()?;
    let mut headers: Vec<(HeaderName, usize)> = Vec::new();
    let mut body = false;
    match &plan.forms.first()?.ready {
        Ready::Signature(engine) => {
            let recipe = &engine.recipe;
            let timestamp = recipe.timestamp.iter().filter(|_| recipe.signed.iter().all(template::Template::has_timestamp)).map(|timestamp| &timestamp.place);
            let places = recipe.signatures.iter().map(|signature| &signature.place).chain(timestamp);
            for place in places.chain(recipe.signed.iter().flat_map(template::Template::places)) {
                match &place.at {
                    At::Header(name) => headers.push((name.clone(), 0)),
                    At::Numbered(prefix) => headers.push((HeaderName::from_bytes(format!("{prefix}1").as_bytes()).ok()?, 0)),
                    At::Query(_) | At::Form(_) | At::Json { .. } => {}
                }
            }
            // A form's names and values run together in some: which letter is whose is not signed.
            body = recipe.verification() == Verification::Content && !form;
        }
        Ready::Token(token, _) => headers.extend(token.header().map(|name| (name.clone(), token.place.prefix.len()))),
        Ready::Basic(_) => headers.push((AUTHORIZATION, "Basic ".len())),
        Ready::Own(_) => {}
    }
    headers.retain(|(name, _)| request.headers.contains_key(name));
    headers.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    headers.dedup();
    Some(Good { name: format!("{} {}", definition.name, variant.unwrap_or_default()), plan, request, headers, body })
}

/// Every preset in every form that can be signed here.
fn all() -> &'static [Good] {
    static ALL: OnceLock<Vec<Good>> = OnceLock::new();
    ALL.get_or_init(|| {
        let catalogue = Catalogue::shipped();
        let mut all = Vec::new();
        for name in catalogue.names() {
            let definition = catalogue.definition(name).expect("a name of the catalogue");
            for variant in &definition.variants {
                all.extend([false, true].into_iter().find_map(|form| good(definition, variant.name.as_deref(), form)));
            }
        }
        all
    })
}

#[test]
fn most_presets_are_among_them() {
    let all = all();
    assert!(all.len() >= 100, "{}", all.len());
    assert!(all.iter().filter(|good| good.body).count() >= 75, "{}", all.iter().filter(|good| good.body).count());
    for good in all {
        assert!(good.request.judge(&good.plan, NOW).is_ok(), "{}", good.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_changed_bit_of_any_body_passes(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        for good in all().iter().filter(|good| good.body) {
            let mut body = good.request.body.to_bytes().to_vec();
            let at = at.index(body.len());
            body[at] ^= 1 << bit;
            let changed = Request { body: Bytes::from(body).into(), ..good.request.copy() };
            prop_assert!(changed.judge(&good.plan, NOW).is_err(), "{}: bit {bit} of byte {at} of the body", good.name);
        }
    }

    #[test]
    fn no_changed_bit_of_any_signed_header_passes(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        for good in all() {
            for (name, caseless) in &good.headers {
                let mut value = good.request.headers[name].as_bytes().to_vec();
                let at = at.index(value.len());
                if at < *caseless && bit == 5 {
                    continue;
                }
                value[at] ^= 1 << bit;
                let Ok(value) = HeaderValue::from_bytes(&value) else { continue };
                let mut changed = good.request.copy();
                changed.headers.insert(name, value);
                prop_assert!(changed.judge(&good.plan, NOW).is_err(), "{}: bit {bit} of byte {at} of {name}", good.name);
            }
        }
    }

    #[test]
    fn nothing_cut_off_or_put_to_a_signed_header_passes(at in any::<prop::sample::Index>(), byte in b'!'..=b'~') {
        for good in all() {
            for (name, caseless) in &good.headers {
                let value = good.request.headers[name].as_bytes();
                let at = at.index(value.len());
                let longer = [&value[..at], &[byte], &value[at..]].concat();
                for value in [value[..at].to_vec(), longer] {
                    let Ok(value) = HeaderValue::from_bytes(&value) else { continue };
                    let mut changed = good.request.copy();
                    changed.headers.insert(name, value);
                    let verdict = changed.judge(&good.plan, NOW);
                    // An item that nobody knows may stand in a list or among pairs; what was signed is still there, whole.
                    let listed = byte == b',' || byte == b';' || byte == b'&';
                    prop_assert!(verdict.is_err() || listed, "{}: at {at} of {name}, {caseless}", good.name);
                }
            }
        }
    }
}
