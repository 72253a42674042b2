//! Contentful's canonical request: method, path, the headers that the request itself names, and the body.
//! Source: @contentful/node-apps-toolkit 3.16.1, `signRequest` and `verifyRequest`.
//!
//! HMAC-SHA256 in hex over `METHOD\nPATH\nNAME:VALUE;NAME:VALUE…\nBODY`. `x-contentful-signed-headers` lists the names; those that are
//! there, `x-contentful-timestamp` and the list itself are signed, sorted, blanks around a value cut off, the list written anew. What
//! is behind the path's `?` is escaped as a form's value is, and the whole once more as a URI: a `%` becomes `%25`.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::{
    Facts, Means,
    cases::Request,
    definition::{Context, Method, Scheme},
    judge::{Held, Judge, Rule},
    mac::{Algorithm, Encoding, Mac, Tag},
    place::{At, Place},
    timestamp::{Timestamp, Unit},
};
use crate::{
    event::{Chunks, Verification},
    reject::{Reason, Reject},
    secret::Secret,
    section::Section,
};

pub(super) static SCHEME: Scheme = Scheme { name: "contentful", about: "Contentful's canonical request", read: Some(read) };

const SIGNATURE: HeaderName = HeaderName::from_static("x-contentful-signature");
const NAMES: HeaderName = HeaderName::from_static("x-contentful-signed-headers");
const TIME: HeaderName = HeaderName::from_static("x-contentful-timestamp");

/// How old a request may be: the toolkit's own 30 s, of which it takes the last millisecond no more.
const TOLERANCE: Duration = Duration::from_millis(29_999);

/// The most headers that are looked at.
const MAX_NAMES: usize = 64;

#[derive(Clone, Debug)]
struct Contentful;

fn read(_: &Section<'_>, _: &Context<'_>) -> Option<Method> {
    Some(Method::Own(Arc::new(Contentful)))
}

impl Rule for Contentful {
    fn bind(&self, means: &Means<'_>) -> Result<Box<dyn Judge>, String> {
        let tolerance = means.tolerance.unwrap_or(TOLERANCE);
        let time = Timestamp { place: Place::header(TIME), unit: Unit::Millis, tolerance, future: tolerance, enforced: true, zone_needed: false };
        let key = |secret: &Secret| Key { label: secret.label().clone(), not_after: secret.not_after(), start: Mac::hmac(Algorithm::Sha256, secret.expose()) };
        Ok(Box::new(Bound { keys: means.secrets.iter().map(key).collect(), time }))
    }

    fn verification(&self) -> Verification {
        Verification::Content
    }

    fn needs_secret(&self, _: bool) -> bool {
        true
    }

    fn signs(&self) -> bool {
        true
    }

    fn covers(&self, place: &Place) -> bool {
        match &place.at {
            At::Json { .. } | At::Form(_) | At::Query(_) => true,
            // Only where the sender chose to.
            At::Header(_) | At::Numbered(_) => false,
        }
    }
}

struct Key {
    label: Arc<str>,
    not_after: Option<i64>,
    start: Mac,
}

struct Bound {
    keys: Vec<Key>,
    time: Timestamp,
}

/// A header's one value.
fn one<'a>(facts: &Facts<'a>, name: &HeaderName) -> Result<Option<&'a [u8]>, Reject> {
    let mut all = facts.headers.get_all(name).iter();
    let first = all.next().map(|value| value.as_bytes().trim_ascii());
    match all.next() {
        None => Ok(first.filter(|value| !value.is_empty())),
        Some(_) => Err(Reject::new(Reason::SignatureMalformed, format!("the header `{name}` stands more than once"))),
    }
}

/// What `encodeURI` (`uri`) or `querystring.escape` leaves as it is.
fn is_kept(byte: u8, uri: bool) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.!~*'()".contains(&byte) || (uri && b";/?:@&=+$,#".contains(&byte))
}

fn escape(text: &[u8], uri: bool, out: &mut Vec<u8>) {
    for &byte in text {
        if is_kept(byte, uri) {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
}

/// The path and query as they are signed.
fn path(target: &str) -> Result<Vec<u8>, Reject> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if query.contains('?') {
        // The toolkit drops what is behind a second one, so it would not be signed.
        return Err(Reject::new(Reason::SignatureMalformed, "the query holds a `?`, which is not signed in full"));
    }
    let mut whole = path.as_bytes().to_vec();
    if !query.is_empty() {
        whole.push(b'?');
        escape(query.as_bytes(), false, &mut whole);
    }
    let mut out = Vec::with_capacity(whole.len() + 16);
    escape(&whole, true, &mut out);
    Ok(out)
}

/// Everything before the body: method, path and headers, with the line feed behind them. `names` is the list as it came.
fn head(facts: &Facts<'_>, names: &str, time: &[u8]) -> Result<Vec<u8>, Reject> {
    let mut signed = vec![NAMES, TIME];
    for name in names.split(',').take(MAX_NAMES) {
        // A name that is no lower-case header name picks nothing.
        let Ok(name) = HeaderName::from_lowercase(name.as_bytes()) else { continue };
        if facts.headers.contains_key(&name) && !signed.contains(&name) {
            signed.push(name);
        }
    }
    signed.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    let list = signed.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(",");
    let mut out = facts.method.as_str().as_bytes().to_vec();
    out.push(b'\n');
    out.extend(path(facts.target)?);
    out.push(b'\n');
    for (at, name) in signed.iter().enumerate() {
        if at > 0 {
            out.push(b';');
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.push(b':');
        out.extend_from_slice(match name {
            name if *name == NAMES => list.as_bytes(),
            name if *name == TIME => time,
            name => one(facts, name)?.unwrap_or_default(),
        });
    }
    out.push(b'\n');
    Ok(out)
}

impl Key {
    fn mac(&self, head: &[u8], body: &Chunks) -> Tag {
        let mut mac = self.start.clone();
        mac.update(head);
        body.pieces().for_each(|piece| mac.update(piece));
        mac.finish()
    }
}

impl Bound {
    /// The signature, the list of headers, and the time, judged.
    fn read<'a>(&self, facts: &Facts<'a>, now_ms: i64) -> Result<(Tag, &'a str, &'a [u8], i64), Reject> {
        let missing = |reason, name: &HeaderName| Reject::new(reason, format!("the header `{name}` is missing or empty"));
        let given = one(facts, &SIGNATURE)?.ok_or_else(|| missing(Reason::SignatureMissing, &SIGNATURE))?;
        let tag = Encoding::Hex.decode_tag(given, Algorithm::Sha256.len());
        let tag = tag.ok_or_else(|| Reject::new(Reason::SignatureMalformed, "the signature is not hex of 32 bytes"))?;
        let time = one(facts, &TIME)?.ok_or_else(|| missing(Reason::TimestampMissing, &TIME))?;
        let at = self.time.judge(time, now_ms)?;
        let names = one(facts, &NAMES)?.ok_or_else(|| missing(Reason::SignatureMissing, &NAMES))?;
        let names = std::str::from_utf8(names).ok().filter(|names| names.contains(','));
        let names = names.ok_or_else(|| Reject::new(Reason::SignatureMalformed, format!("`{NAMES}` is no list of two names or more")))?;
        Ok((tag, names, time, at))
    }
}

impl Judge for Bound {
    fn stands(&self, facts: &Facts<'_>) -> bool {
        facts.headers.contains_key(SIGNATURE)
    }

    fn prepare(&self, facts: &Facts<'_>, now_ms: i64) -> Result<(), Reject> {
        self.read(facts, now_ms).map(drop)
    }

    fn reads_body(&self) -> bool {
        false
    }

    fn finish(&self, facts: &Facts<'_>, body: &Chunks, now_ms: i64) -> Result<Held, Reject> {
        let (given, names, time, at) = self.read(facts, now_ms)?;
        let head = head(facts, names, time)?;
        let mut found = None;
        for key in self.keys.iter().filter(|key| key.not_after.is_none_or(|last| now_ms <= last)) {
            if bool::from(key.mac(&head, body).matches(&given)) && found.is_none() {
                found = Some(key.label.clone());
            }
        }
        let label = found.ok_or_else(|| Reject::new(Reason::SignatureMismatch, "no configured secret gives this signature"))?;
        let content = Sha256::new().chain_update(b"hooklatch content\0").chain_update(given.as_slice()).finalize().into();
        Ok(Held { label, timestamp_ms: Some(at), content, id: None, event_type: None })
    }

    fn verification(&self) -> Verification {
        Verification::Content
    }

    fn attempt_window(&self) -> Option<Duration> {
        Some(self.time.tolerance)
    }

    fn covers_query(&self, _: &str) -> bool {
        true
    }

    fn names_its_route(&self) -> bool {
        true
    }

    fn headers(&self) -> Vec<HeaderName> {
        vec![SIGNATURE, NAMES]
    }

    fn signs_head(&self) -> bool {
        true
    }

    fn sign(&self, request: &mut Request, now_ms: i64, _: &str) -> Result<(), String> {
        let key = self.keys.first().ok_or("there is no secret to sign with")?;
        let mut names: Vec<String> = vec![NAMES.to_string(), TIME.to_string()];
        names.extend(
            request.headers.keys().map(HeaderName::as_str).filter(|name| *name == "content-type" || name.starts_with("x-contentful-")).map(str::to_owned),
        );
        names.sort_unstable();
        names.dedup();
        names.retain(|name| *name != SIGNATURE.as_str());
        let (names, time) = (names.join(","), Unit::Millis.write(now_ms));
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| "the list of headers cannot stand in a header".to_owned());
        request.headers.insert(NAMES, value(&names)?);
        request.headers.insert(TIME, value(&time)?);
        let head = head(&request.facts(), &names, time.as_bytes()).map_err(|why| why.detail.into_owned())?;
        let tag = key.mac(&head, &request.body);
        request.headers.insert(SIGNATURE, value(&Encoding::Hex.encode(tag.as_slice()))?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_as_the_toolkit_does() {
        let check = |target: &str, want: &str| assert_eq!(String::from_utf8_lossy(&path(target).expect("one way")), want);
        check("/in/a", "/in/a");
        check("/in?", "/in");
        check("/in?x=1&y=a%20b", "/in?x%253D1%2526y%253Da%252520b");
        check("/a%20b;c", "/a%2520b;c");
        check("/a[1]", "/a%5B1%5D");
        assert!(path("/in?a=1?b").is_err());
    }
}
