//! What a token says, judged: `claims` of a provider's definition. Source: RFC 7519 section 4.1; the digests are the providers' own.
//!
//! The caller verified the token (or its issuer answered for it); nothing here looks at a signature.

use std::{collections::BTreeMap, time::Duration};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    Facts, form, hmac,
    mac::{Algorithm, Encoding, Mac, Tag},
};
use crate::{
    event::Chunks,
    reject::{Reason, Reject},
    section::Section,
};

/// Which claims must be there, and what they must say.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// Any of them; `{param:NAME}` until bound.
    issuer: Vec<String>,
    audience: Vec<String>,
    /// By name: the value that it must have.
    require: Vec<(String, Value)>,
    body: Option<Sum>,
    url: Option<Sum>,
    query_hash: Option<String>,
    id: Option<String>,
    event_type: Option<String>,
    /// `iat` must be there and no older.
    max_age: Option<Duration>,
    /// `exp` must be there.
    expires: bool,
    /// How far the clocks may be apart.
    leeway: Duration,
}

/// A digest in a claim.
#[derive(Clone, Debug)]
struct Sum {
    claim: String,
    algorithm: Algorithm,
    encoding: Encoding,
    /// Whether the claim may be missing where there is nothing to digest.
    may_lack_empty: bool,
}

/// What the claims tell of a request.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) timestamp_ms: Option<i64>,
    pub(super) id: Option<String>,
    pub(super) event_type: Option<String>,
}

/// The clocks of sender and gate may differ by this, unless a definition says otherwise.
const LEEWAY: Duration = Duration::from_secs(30);

impl Claims {
    /// `claims = { … }`; without it a token has only its own times to keep.
    pub(super) fn read(section: &Section<'_>) -> Option<Self> {
        let Some(table) = section.opt_section("claims") else { return Some(Self { leeway: LEEWAY, ..Self::default() }) };
        let require = table.opt_section("require").map(|wanted| {
            let read: Vec<Option<(String, Value)>> = wanted.keys().into_iter().map(|name| Some((name.clone(), wanted.item(&name)?.json()?))).collect();
            wanted.finish();
            read.into_iter().collect::<Option<Vec<_>>>()
        });
        let sum = |key: &str| {
            let section = table.opt_section(key)?;
            let read = Sum::read(&section);
            section.finish();
            Some(read)
        };
        let (body, url) = (sum("body"), sum("url"));
        let claims = Self {
            issuer: words(&table, "issuer"),
            audience: words(&table, "audience"),
            require: match require {
                Some(read) => read?,
                None => Vec::new(),
            },
            body: match body {
                Some(read) => Some(read?),
                None => None,
            },
            url: match url {
                Some(read) => Some(read?),
                None => None,
            },
            query_hash: table.opt_string("query_hash"),
            id: table.opt_string("id"),
            event_type: table.opt_string("type"),
            max_age: table.opt_duration("max_age"),
            expires: table.bool_or("expires", false),
            leeway: table.duration_or("leeway", LEEWAY),
        };
        table.finish();
        Some(claims)
    }

    /// With the route's values for `{param:NAME}`.
    pub(super) fn bind(&self, params: &BTreeMap<String, String>, tolerance: Option<Duration>) -> Self {
        let mut bound = self.clone();
        bound.issuer.iter_mut().chain(&mut bound.audience).for_each(|word| *word = filled(word, params));
        for (_, value) in &mut bound.require {
            if let Value::String(text) = value {
                *text = filled(text, params);
            }
        }
        if let (Some(max_age), Some(tolerance)) = (&mut bound.max_age, tolerance) {
            *max_age = tolerance;
        }
        bound
    }

    /// Whether the body's digest is among them.
    pub(super) fn cover_body(&self) -> bool {
        self.body.is_some()
    }

    pub(super) fn cover_query(&self) -> bool {
        self.url.is_some() || self.query_hash.is_some()
    }

    /// Whether the token says whom it is for.
    pub(super) fn name_receiver(&self) -> bool {
        !self.audience.is_empty() || self.cover_query()
    }

    pub(super) fn name_id(&self) -> bool {
        self.id.is_some()
    }

    pub(super) fn window(&self) -> Option<Duration> {
        self.max_age.map(|age| age + self.leeway)
    }

    /// The times alone; the one that it was issued at.
    pub(super) fn times(&self, claims: &Map<String, Value>, now_ms: i64) -> Result<Option<i64>, Reject> {
        let time = |name: &str| match claims.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => date_ms(value).map(Some).ok_or_else(|| Reject::new(Reason::ClaimsInvalid, format!("the claim `{name}` is no time"))),
        };
        let span = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        let leeway = span(self.leeway);
        match time("exp")? {
            Some(end) if now_ms >= end.saturating_add(leeway) => return Err(Reject::new(Reason::TimestampStale, "the token has expired")),
            None if self.expires => return Err(Reject::new(Reason::ClaimsInvalid, "the token has no `exp`")),
            _ => {}
        }
        if time("nbf")?.is_some_and(|start| now_ms < start.saturating_sub(leeway)) {
            return Err(Reject::new(Reason::TimestampFuture, "the token is not valid yet"));
        }
        let issued = time("iat")?;
        if issued.is_some_and(|issued| issued > now_ms.saturating_add(leeway)) {
            return Err(Reject::new(Reason::TimestampFuture, "the token was issued in the future"));
        }
        if let Some(max_age) = self.max_age {
            let issued = issued.ok_or_else(|| Reject::new(Reason::TimestampMissing, "the token does not say when it was issued"))?;
            if now_ms.saturating_sub(issued) > span(max_age) {
                return Err(Reject::new(Reason::TimestampStale, format!("the token was issued more than {} s ago", max_age.as_secs())));
            }
        }
        Ok(issued)
    }

    /// All of them, of a token that holds.
    pub(super) fn check(&self, claims: &Map<String, Value>, facts: &Facts<'_>, body: &Chunks, now_ms: i64) -> Result<Told, Reject> {
        let refuse = |what: String| Reject::new(Reason::ClaimsInvalid, what);
        let timestamp_ms = self.times(claims, now_ms)?;
        let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        if !self.issuer.is_empty() && !text("iss").is_some_and(|given| self.issuer.iter().any(|known| known == given)) {
            return Err(refuse("the token's issuer is none of those that are trusted".to_owned()));
        }
        if !self.audience.is_empty() {
            let known = |given: &str| self.audience.iter().any(|audience| audience == given);
            let meant = match claims.get("aud") {
                Some(Value::String(one)) => known(one),
                Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).any(known),
                _ => false,
            };
            if !meant {
                return Err(refuse("the token is meant for another audience".to_owned()));
            }
        }
        for (name, wanted) in &self.require {
            if claims.get(name) != Some(wanted) {
                return Err(refuse(format!("the claim `{name}` is missing or another than the one that is wanted")));
            }
        }
        if let Some(sum) = &self.body {
            sum.check(claims, "the body", body.is_empty(), |digest| body.pieces().for_each(|piece| digest.update(piece)))?;
        }
        if let Some(sum) = &self.url {
            sum.check(claims, "the URL", false, |digest| {
                digest.update(facts.base.as_bytes());
                digest.update(facts.target.as_bytes());
            })?;
        }
        if let Some(name) = &self.query_hash
            && text(name) != Some(&query_hash(facts))
        {
            return Err(refuse(format!("the claim `{name}` is not the digest of this method, path and query")));
        }
        let told = |name: &Option<String>| name.as_deref().and_then(text).filter(|text| text.len() <= 512).map(str::to_owned);
        let id = told(&self.id);
        if let (Some(name), None) = (&self.id, &id) {
            return Err(refuse(format!("the claim `{name}` is missing")));
        }
        Ok(Told { timestamp_ms, id, event_type: told(&self.event_type) })
    }

    /// The claims of a request that is to be signed at `now_ms`.
    pub(super) fn make(&self, facts: &Facts<'_>, body: &Chunks, now_ms: i64, id: &str) -> Map<String, Value> {
        let mut claims = Map::new();
        let now = now_ms.div_euclid(1000);
        claims.insert("iat".to_owned(), now.into());
        claims.insert("nbf".to_owned(), now.into());
        claims.insert("exp".to_owned(), (now + 60).into());
        let first = |list: &[String]| list.first().cloned().map(Value::from);
        claims.extend(first(&self.issuer).map(|issuer| ("iss".to_owned(), issuer)));
        claims.extend(first(&self.audience).map(|audience| ("aud".to_owned(), audience)));
        claims.extend(self.require.iter().cloned());
        claims.extend(self.id.iter().map(|name| (name.clone(), id.into())));
        if let Some(sum) = self.body.as_ref().filter(|sum| !(sum.may_lack_empty && body.is_empty())) {
            claims.insert(sum.claim.clone(), sum.text(|digest| body.pieces().for_each(|piece| digest.update(piece))).into());
        }
        if let Some(sum) = &self.url {
            let text = sum.text(|digest| {
                digest.update(facts.base.as_bytes());
                digest.update(facts.target.as_bytes());
            });
            claims.insert(sum.claim.clone(), text.into());
        }
        claims.extend(self.query_hash.iter().map(|name| (name.clone(), query_hash(facts).into())));
        claims
    }
}

impl Sum {
    fn read(section: &Section<'_>) -> Option<Self> {
        let claim = section.string("claim");
        let algorithm = section.choice("algorithm", Algorithm::WORDS).unwrap_or(Algorithm::Sha256);
        let encoding = hmac::encoding(section);
        let may_lack_empty = section.choice("empty", &[("absent", true), ("digest", false)]).unwrap_or(false);
        Some(Self { claim: claim?, algorithm, encoding: encoding?, may_lack_empty })
    }

    fn text(&self, feed: impl FnOnce(&mut Mac)) -> String {
        let mut digest = Mac::digest(self.algorithm);
        feed(&mut digest);
        self.encoding.encode(digest.finish().as_slice())
    }

    fn check(&self, claims: &Map<String, Value>, of: &str, empty: bool, feed: impl FnOnce(&mut Mac)) -> Result<(), Reject> {
        let given: Option<Tag> = match claims.get(&self.claim) {
            None | Some(Value::Null) if empty && self.may_lack_empty => return Ok(()),
            Some(Value::String(text)) => self.encoding.decode_tag(text.as_bytes(), self.algorithm.len()),
            _ => None,
        };
        let given = given.ok_or_else(|| Reject::new(Reason::ClaimsInvalid, format!("the claim `{}` is not there or is no digest", self.claim)))?;
        let mut digest = Mac::digest(self.algorithm);
        feed(&mut digest);
        if digest.finish().matches(&given).into() {
            return Ok(());
        }
        Err(Reject::new(Reason::SignatureMismatch, format!("{of} does not have the digest that the claim `{}` names", self.claim)))
    }
}

/// Atlassian's digest of method, path and query, `qsh`: lower-case hex SHA-256 of the three joined by `&`, the query sorted and without
/// the parameter `jwt`. Source: developer.atlassian.com, "Understanding JWT for Connect apps".
fn query_hash(facts: &Facts<'_>) -> String {
    let path = facts.path().trim_end_matches('/').replace('&', "%26");
    let mut pairs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in form::pairs(facts.query()) {
        let written = |bytes: &[u8]| percent_encode(bytes, RESERVED).to_string();
        if *name != *b"jwt" {
            pairs.entry(written(&name)).or_default().push(written(&value));
        }
    }
    let query: Vec<String> = pairs
        .into_iter()
        .map(|(name, mut values)| {
            values.sort();
            format!("{name}={}", values.join(","))
        })
        .collect();
    let text = format!("{}&{}&{}", facts.method, if path.is_empty() { "/" } else { &path }, query.join("&"));
    data_encoding::HEXLOWER.encode(&Sha256::digest(text))
}

/// All but the unreserved characters of RFC 3986, section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Unix seconds, with or without a fraction, as milliseconds.
fn date_ms(value: &Value) -> Option<i64> {
    if let Some(whole) = value.as_i64() {
        return whole.checked_mul(1000);
    }
    let seconds = value.as_f64().filter(|seconds| seconds.is_finite() && seconds.abs() < 1e12)?;
    #[expect(clippy::cast_possible_truncation, reason = "bounded above")]
    Some((seconds * 1000.0) as i64)
}

fn words(table: &Section<'_>, key: &str) -> Vec<String> {
    match table.item(key) {
        None => Vec::new(),
        Some(item) if item.is_array() => item.strings().unwrap_or_default(),
        Some(item) => item.string().into_iter().collect(),
    }
}

fn filled(text: &str, params: &BTreeMap<String, String>) -> String {
    super::definition::param_name(text).and_then(|name| params.get(name)).cloned().unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_760_000_000_000;

    fn claims() -> Claims {
        Claims {
            issuer: vec!["https://issuer.example".into(), "issuer.example".into()],
            audience: vec!["hooks".into()],
            require: vec![("email_verified".into(), json!(true))],
            id: Some("jti".into()),
            event_type: Some("type".into()),
            max_age: Some(Duration::from_secs(300)),
            leeway: Duration::from_secs(5),
            ..Claims::default()
        }
    }

    fn check(change: Value, want: Result<Option<&str>, Reason>) {
        let mut given = json!({ "iss": "issuer.example", "aud": ["x", "hooks"], "email_verified": true, "jti": "7", "type": "a.b", "iat": NOW / 1000, "exp": NOW / 1000 + 60 });
        for (name, value) in change.as_object().expect("an object") {
            given[name] = value.clone();
        }
        let headers = HeaderMap::new();
        let facts = Facts { method: &Method::POST, base: "https://h.example", target: "/", headers: &headers };
        let got = claims().check(given.as_object().expect("an object"), &facts, &Chunks::default(), NOW);
        match (got, want) {
            (Ok(told), Ok(id)) => assert_eq!(told.id.as_deref(), id, "{change}"),
            (Err(why), Err(reason)) => assert_eq!(why.reason, reason, "{change}: {why}"),
            (got, want) => panic!("{change}: {got:?}, due was {want:?}"),
        }
    }

    #[test]
    fn every_claim_is_judged() {
        check(json!({}), Ok(Some("7")));
        check(json!({ "aud": "hooks" }), Ok(Some("7")));
        check(json!({ "aud": "Hooks" }), Err(Reason::ClaimsInvalid));
        check(json!({ "aud": null }), Err(Reason::ClaimsInvalid));
        check(json!({ "iss": "https://issuer.example" }), Ok(Some("7")));
        check(json!({ "iss": "other" }), Err(Reason::ClaimsInvalid));
        check(json!({ "iss": ["issuer.example"] }), Err(Reason::ClaimsInvalid));
        check(json!({ "email_verified": "true" }), Err(Reason::ClaimsInvalid));
        check(json!({ "jti": "" }), Err(Reason::ClaimsInvalid));
        check(json!({ "iat": NOW / 1000 - 300 }), Ok(Some("7")));
        check(json!({ "iat": NOW / 1000 - 301 }), Err(Reason::TimestampStale));
        check(json!({ "iat": NOW / 1000 + 5 }), Ok(Some("7")));
        check(json!({ "iat": NOW / 1000 + 6 }), Err(Reason::TimestampFuture));
        check(json!({ "iat": null }), Err(Reason::TimestampMissing));
        check(json!({ "iat": "now" }), Err(Reason::ClaimsInvalid));
        check(json!({ "exp": NOW / 1000 - 4 }), Ok(Some("7")));
        check(json!({ "exp": NOW / 1000 - 5 }), Err(Reason::TimestampStale));
        check(json!({ "exp": 1e300 }), Err(Reason::ClaimsInvalid));
        check(json!({ "nbf": NOW / 1000 + 60 }), Err(Reason::TimestampFuture));
    }

    #[test]
    fn atlassian_query_hashes_are_theirs() {
        // The examples of their own libraries' documentation: canonical request, then its digest.
        let headers = HeaderMap::new();
        let hash = |target: &str| query_hash(&Facts { method: &Method::GET, base: "https://h.example", target, headers: &headers });
        let of = |canonical: &str| data_encoding::HEXLOWER.encode(&Sha256::digest(canonical));
        assert_eq!(hash("/path/to/service?zee_last=param&repeated=parameter%201&first=param&repeated=parameter%202"), {
            of("GET&/path/to/service&first=param&repeated=parameter%201,parameter%202&zee_last=param")
        });
        assert_eq!(hash("/"), of("GET&/&"));
        assert_eq!(hash("/a/?jwt=x&b=2"), of("GET&/a&b=2"));
    }
}
