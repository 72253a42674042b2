//! HTTP Message Signatures (RFC 9421) of requests, with Content-Digest (RFC 9530: sha-256, sha-512).
//!
//! `Signature-Input` says what a signature covers, and the sender chooses that: a definition therefore lists what must be covered,
//! and a signature that covers less is refused. The algorithms are the definition's too; the parameter `alg` can only agree. A
//! label that stands twice is refused, and so are responses' components, trailers and `req`. Signatures under other labels or tags
//! are passed over; of those that are left any may verify, within a small number.
//!
//! What is left to the definition: whether the path must be covered. Without it a request for one route fits another.

use std::{fmt, sync::Arc, time::Duration};

use data_encoding::BASE64;
use http::{HeaderName, header::HOST};
use sfv::{BareItem, Dictionary, FieldType, InnerList, Item, List, ListEntry, Parser, visitor};
use sha2::{Digest, Sha256};

use super::{
    Facts, Means,
    definition::{Context, Method, Scheme},
    engine::MAX_SECRETS,
    form,
    judge::{Held, Judge, Rule},
    key::KeyForm,
    mac::{self, Mac, Tag},
    place::{At, Place},
    public_key::{Algorithm, Curve, Hash, Layout, Padding, Trusted},
    timestamp::span,
};
use crate::{
    event::{Chunks, Verification},
    reject::{Reason, Reject},
    section::Section,
};

pub(super) static SCHEME: Scheme = Scheme { name: "message-signatures", about: "HTTP Message Signatures (RFC 9421) with Content-Digest", read: Some(read) };

/// The most signatures of one request that are looked at.
const MAX_SIGNATURES: usize = 8;

/// The most components that one signature may cover.
const MAX_COMPONENTS: usize = 64;

const INPUT: HeaderName = HeaderName::from_static("signature-input");
const SIGNATURE: HeaderName = HeaderName::from_static("signature");
const DIGEST: &str = "content-digest";

/// An algorithm of the registry of RFC 9421, 6.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alg {
    HmacSha256,
    KeyPair(Algorithm),
}

const ALGORITHMS: &[(&str, Alg)] = &[
    ("ed25519", Alg::KeyPair(Algorithm::Ed25519)),
    ("ecdsa-p256-sha256", Alg::KeyPair(Algorithm::Ecdsa(Curve::P256, Layout::Raw))),
    ("ecdsa-p384-sha384", Alg::KeyPair(Algorithm::Ecdsa(Curve::P384, Layout::Raw))),
    ("rsa-v1_5-sha256", Alg::KeyPair(Algorithm::Rsa(Hash::Sha256, Padding::Pkcs1))),
    ("rsa-pss-sha512", Alg::KeyPair(Algorithm::Rsa(Hash::Sha512, Padding::Pss))),
    ("hmac-sha256", Alg::HmacSha256),
];

fn name_of(alg: Alg) -> &'static str {
    ALGORITHMS.iter().find(|(_, known)| *known == alg).map_or("", |(name, _)| name)
}

/// A definition's table; holds no key.
#[derive(Clone, Debug)]
struct Settings {
    algorithms: Vec<Alg>,
    /// The components that every signature must cover.
    covers: Vec<String>,
    /// Whether a body must be covered by way of `content-digest`, where there is one.
    covers_body: bool,
    label: Option<String>,
    tag: Option<String>,
    /// Whether `created` must be there.
    created: bool,
    tolerance: Duration,
    future: Duration,
    key: KeyForm,
}

fn read(section: &Section<'_>, _: &Context<'_>) -> Option<Method> {
    let algorithms = match section.item("algorithm") {
        None => {
            let known: Vec<&str> = ALGORITHMS.iter().map(|(name, _)| *name).collect();
            section.problem("algorithm", "`algorithm` is missing", format!("one or several of {}", known.join(", ")));
            None
        }
        Some(item) => {
            let items = if item.is_array() { item.items()? } else { vec![item] };
            items.iter().map(|item| item.choice(ALGORITHMS)).collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>()
        }
    };
    let covers = section.item("covers").map(|item| item.strings());
    let label = section.opt_string("label");
    let tag = section.opt_string("tag");
    let created = section.choice("created", &[("needed", true), ("optional", false)]).unwrap_or(true);
    let tolerance = section.duration_or("tolerance", Duration::from_secs(300));
    let future = section.duration_or("future", tolerance);
    let key = section.opt_section("key").map(|table| {
        let key = KeyForm::read(&table);
        table.finish();
        key
    });
    let (covers, covers_body) = match covers {
        None => (vec!["@method".to_owned(), "@target-uri".to_owned()], true),
        Some(read) => (read?, false),
    };
    for name in &covers {
        let derived = DERIVED.contains(&name.as_str());
        if !derived && (name.starts_with('@') || HeaderName::from_bytes(name.as_bytes()).is_err() || name.bytes().any(|b| b.is_ascii_uppercase())) {
            section.problem("covers", format!("`{name}` is no component of a request"), format!("a header's name in small letters, or {}", DERIVED.join(", ")));
        }
    }
    let algorithms = algorithms?;
    if algorithms.is_empty() || covers.is_empty() {
        section.problem(if algorithms.is_empty() { "algorithm" } else { "covers" }, "this list is empty", "name at least one");
        return None;
    }
    Some(Method::Own(Arc::new(Settings { algorithms, covers, covers_body, label, tag, created, tolerance, future, key: key.unwrap_or_default() })))
}

/// What a definition may ask to be covered, beside headers.
const DERIVED: [&str; 7] = ["@method", "@target-uri", "@authority", "@scheme", "@path", "@query", "@request-target"];

impl Settings {
    fn always_covers(&self, name: &str) -> bool {
        self.covers.iter().any(|known| known == name)
    }

    fn covers_whole_query(&self) -> bool {
        ["@target-uri", "@query", "@request-target"].iter().any(|name| self.always_covers(name))
    }
}

impl Rule for Settings {
    fn bind(&self, means: &Means<'_>) -> Result<Box<dyn Judge>, String> {
        let mut secrets = Vec::new();
        let mut keys = Vec::new();
        if means.secrets.len() > MAX_SECRETS {
            return Err(format!("{} secrets are more than {MAX_SECRETS}", means.secrets.len()));
        }
        if self.algorithms.contains(&Alg::HmacSha256) {
            for secret in means.secrets {
                let bytes = self.key.bytes(secret.expose()).map_err(|why| format!("secret {}: {why}", secret.label()))?;
                secrets.push((secret.label().clone(), secret.not_after(), Mac::hmac(mac::Algorithm::Sha256, &bytes)));
            }
        }
        let serves = |key: &Trusted| self.algorithms.iter().any(|alg| matches!(alg, Alg::KeyPair(algorithm) if key.key.serves(*algorithm)));
        for key in means.public_keys {
            if serves(key) {
                keys.push(key.clone());
            } else if !means.public_keys.iter().any(|other| other.label == key.label && serves(other)) {
                let names: Vec<&str> = self.algorithms.iter().map(|alg| name_of(*alg)).collect();
                return Err(format!("public key {} is {}, which does not verify {}", key.label, key.key.describe(), names.join(" or ")));
            }
        }
        if secrets.is_empty() && keys.is_empty() {
            return Err("nothing could be verified: there is no key for the algorithm of this scheme".to_owned());
        }
        let mut settings = self.clone();
        if let Some(tolerance) = means.tolerance {
            (settings.tolerance, settings.future) = (tolerance, tolerance);
        }
        Ok(Box::new(Bound { settings, secrets, keys }))
    }

    fn verification(&self) -> Verification {
        if self.covers_body || self.always_covers(DIGEST) { Verification::Content } else { Verification::Sender }
    }

    fn needs_secret(&self, _: bool) -> bool {
        self.algorithms.contains(&Alg::HmacSha256)
    }

    fn takes_public_keys(&self) -> bool {
        self.algorithms.iter().any(|alg| matches!(alg, Alg::KeyPair(_)))
    }

    fn covers(&self, place: &Place) -> bool {
        match &place.at {
            At::Header(name) => self.always_covers(name.as_str()),
            At::Query(_) => self.covers_whole_query(),
            At::Json { .. } | At::Form(_) => self.verification() == Verification::Content,
            At::Numbered(_) => false,
        }
    }

    /// The signature base names its time and what it covers, so that a copy is known by it.
    fn signs_content(&self) -> bool {
        true
    }
}

struct Bound {
    settings: Settings,
    secrets: Vec<(Arc<str>, Option<i64>, Mac)>,
    keys: Vec<Trusted>,
}

fn malformed(what: impl fmt::Display) -> Reject {
    Reject::new(Reason::SignatureMalformed, what.to_string())
}

/// One signature of a request, read and nothing more.
struct Candidate {
    input: InnerList,
    signature: Vec<u8>,
}

/// The lines of a header as one value (RFC 9421, 2.1): trimmed and joined by a comma and a blank.
fn field(facts: &Facts<'_>, name: &HeaderName) -> Option<Vec<u8>> {
    let mut lines = facts.headers.get_all(name).iter();
    let mut value = lines.next()?.as_bytes().trim_ascii().to_vec();
    for line in lines {
        value.extend_from_slice(b", ");
        value.extend_from_slice(line.as_bytes().trim_ascii());
    }
    Some(value)
}

/// A dictionary whose keys stand once each: RFC 9651 lets the last win, which would let two readers see two requests.
fn dictionary(text: &[u8], name: impl fmt::Display) -> Result<Dictionary, Reject> {
    struct Count<'a>(&'a mut usize);
    impl<'de> visitor::DictionaryVisitor<'de> for Count<'_> {
        type Out = ();
        type Error = std::convert::Infallible;
        fn entry(&mut self, _: &'de sfv::KeyRef) -> Result<impl visitor::EntryVisitor<'de>, Self::Error> {
            *self.0 += 1;
            Ok(visitor::Ignored)
        }
        fn finish(self) -> Result<(), Self::Error> {
            Ok(())
        }
    }
    let unread = |_| malformed(format!("the header `{name}` is not a structured dictionary"));
    let mut count = 0;
    Parser::new(text).parse_dictionary_with_visitor(Count(&mut count)).map_err(unread)?;
    let found: Dictionary = Parser::new(text).parse().map_err(unread)?;
    if found.len() != count {
        return Err(malformed(format!("a key of the header `{name}` stands more than once")));
    }
    Ok(found)
}

fn integer(params: &sfv::Parameters, name: &str) -> Result<Option<i64>, Reject> {
    match params.get(name) {
        None => Ok(None),
        Some(BareItem::Integer(number)) => Ok(Some(i64::from(*number))),
        Some(_) => Err(malformed(format!("the signature's `{name}` is not a whole number"))),
    }
}

fn text<'p>(params: &'p sfv::Parameters, name: &str) -> Result<Option<&'p str>, Reject> {
    match params.get(name) {
        None => Ok(None),
        Some(BareItem::String(word)) => Ok(Some(word.as_str())),
        Some(_) => Err(malformed(format!("the signature's `{name}` is not a string"))),
    }
}

/// A component's name and parameters, as far as they may be used in a request.
struct Component<'i> {
    name: &'i str,
    item: &'i Item,
    sf: bool,
    bs: bool,
    key: Option<&'i str>,
    /// For `@query-param`.
    param: Option<&'i str>,
}

impl<'i> Component<'i> {
    fn read(item: &'i Item) -> Result<Self, Reject> {
        let BareItem::String(name) = &item.bare_item else { return Err(malformed("a covered component is not a string")) };
        let mut read = Self { name: name.as_str(), item, sf: false, bs: false, key: None, param: None };
        let derived = read.name.starts_with('@');
        for (name, value) in &item.params {
            match (name.as_str(), value) {
                ("sf", BareItem::Boolean(true)) if !derived => read.sf = true,
                ("bs", BareItem::Boolean(true)) if !derived => read.bs = true,
                ("key", BareItem::String(key)) if !derived => read.key = Some(key.as_str()),
                ("name", BareItem::String(name)) if read.name == "@query-param" => read.param = Some(name.as_str()),
                _ => return Err(malformed(format!("the component `{}` has a parameter that is not taken: `{name}`", read.shown()))),
            }
        }
        if usize::from(read.sf) + usize::from(read.bs) + usize::from(read.key.is_some()) > 1 {
            return Err(malformed(format!("the component `{}` has parameters that exclude each other", read.shown())));
        }
        Ok(read)
    }

    fn shown(&self) -> String {
        self.name.chars().take(64).collect()
    }

    /// Whether the component covers all of its value.
    fn whole(&self) -> bool {
        self.key.is_none() && self.param.is_none()
    }

    /// The value of RFC 9421, 2.1 and 2.2, exactly as it was signed.
    fn value(&self, facts: &Facts<'_>) -> Result<Vec<u8>, Reject> {
        let value = match self.name {
            "@method" => facts.method.as_str().as_bytes().to_vec(),
            "@target-uri" => [facts.base, facts.target].concat().into_bytes(),
            "@authority" => authority(facts.base).into_bytes(),
            "@scheme" => facts.base.split("://").next().unwrap_or_default().to_ascii_lowercase().into_bytes(),
            "@request-target" => facts.target.as_bytes().to_vec(),
            "@path" => Some(facts.path()).filter(|path| !path.is_empty()).unwrap_or("/").as_bytes().to_vec(),
            "@query" => [b"?", facts.query()].concat(),
            "@query-param" => self.query_param(facts)?,
            name if name.starts_with('@') => return Err(malformed(format!("`{}` is no component of a request", self.shown()))),
            _ => self.field(facts)?,
        };
        // What is signed is lines of ASCII text: nothing else may pass for one of them.
        if value.iter().all(|b| (0x20..0x7f).contains(b) || *b == b'\t') {
            return Ok(value);
        }
        Err(malformed(format!("the component `{}` holds a character that no signature covers", self.shown())))
    }

    fn query_param(&self, facts: &Facts<'_>) -> Result<Vec<u8>, Reject> {
        let wanted = self.param.ok_or_else(|| malformed("the component `@query-param` names no parameter"))?;
        let mut found = form::pairs(facts.query()).filter(|(name, _)| encoded(name) == wanted).map(|(_, value)| encoded(&value));
        let first = found.next().ok_or_else(|| malformed("a query parameter that is signed is missing"))?;
        if found.next().is_some() {
            return Err(malformed("a query parameter that is signed stands more than once"));
        }
        Ok(first.into_bytes())
    }

    fn field(&self, facts: &Facts<'_>) -> Result<Vec<u8>, Reject> {
        let name = HeaderName::from_bytes(self.name.as_bytes()).ok().filter(|name| name.as_str() == self.name);
        let name = name.ok_or_else(|| malformed("a covered component is not the name of a header in small letters"))?;
        let missing = || Reject::new(Reason::SignatureMissing, format!("the header `{name}`, which is signed, is missing"));
        if self.bs {
            let lines: Vec<String> = facts.headers.get_all(&name).iter().map(|line| format!(":{}:", BASE64.encode(line.as_bytes().trim_ascii()))).collect();
            return if lines.is_empty() { Err(missing()) } else { Ok(lines.join(", ").into_bytes()) };
        }
        let value = match field(facts, &name) {
            // HTTP/2 says the host elsewhere, and the gate knows it.
            None if name == HOST => authority(facts.base).into_bytes(),
            value => value.ok_or_else(missing)?,
        };
        let unread = || malformed(format!("the header `{name}`, which is signed as a structured field, is none"));
        if let Some(key) = self.key {
            let found = dictionary(&value, &name)?;
            let member = found.get(key).ok_or_else(|| malformed(format!("a key of the header `{name}`, which is signed, is missing")))?;
            return match member {
                ListEntry::Item(item) => Ok(item.serialize().into_bytes()),
                ListEntry::InnerList(list) => serialized(list).map(String::into_bytes).ok_or_else(unread),
            };
        }
        if self.sf {
            let written = match kind(name.as_str()) {
                Some(Kind::Dictionary) => dictionary(&value, &name)?.serialize(),
                Some(Kind::List) => Parser::new(&value).parse::<List>().map_err(|_| unread())?.serialize(),
                Some(Kind::Item) => Some(Parser::new(&value).parse::<Item>().map_err(|_| unread())?.serialize()),
                None => return Err(malformed(format!("of the header `{name}` it is not known what structured field it is"))),
            };
            return Ok(written.unwrap_or_default().into_bytes());
        }
        Ok(value)
    }
}

enum Kind {
    Dictionary,
    List,
    Item,
}

/// What structured field a header is: those that are defined as one.
fn kind(name: &str) -> Option<Kind> {
    match name {
        "accept-signature"
        | "cdn-cache-control"
        | "content-digest"
        | "priority"
        | "repr-digest"
        | "signature"
        | "signature-input"
        | "want-content-digest"
        | "want-repr-digest" => Some(Kind::Dictionary),
        "accept-ch" | "cache-status" | "client-cert-chain" | "proxy-status" => Some(Kind::List),
        "client-cert" | "idempotency-key" => Some(Kind::Item),
        _ => None,
    }
}

/// Host and port, without a default port, in small letters (RFC 9421, 2.2.3).
fn authority(base: &str) -> String {
    let (scheme, host) = base.split_once("://").unwrap_or(("", base));
    let default = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    host.strip_suffix(default).unwrap_or(host).to_ascii_lowercase()
}

/// Percent-encoded with the form set, a blank as `%20` (RFC 9421, 2.2.8).
fn encoded(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"*-._".contains(byte) {
            out.push(char::from(*byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn serialized(list: &InnerList) -> Option<String> {
    vec![ListEntry::InnerList(list.clone())].serialize()
}

/// The lines that are signed (RFC 9421, 2.5).
fn base(components: &[Component<'_>], input: &InnerList, facts: &Facts<'_>) -> Result<Vec<u8>, Reject> {
    let mut base = Vec::new();
    for component in components {
        base.extend_from_slice(component.item.serialize().as_bytes());
        base.extend_from_slice(b": ");
        base.extend_from_slice(&component.value(facts)?);
        base.push(b'\n');
    }
    base.extend_from_slice(b"\"@signature-params\": ");
    base.extend_from_slice(serialized(input).unwrap_or_default().as_bytes());
    Ok(base)
}

/// Whether the body has the digest that is signed (RFC 9530): every one of a known algorithm, and at least one.
fn check_digest(components: &[Component<'_>], facts: &Facts<'_>, body: &Chunks) -> Result<(), Reject> {
    let mut covering = components.iter().filter(|component| component.name == DIGEST).peekable();
    if covering.peek().is_none() {
        return Ok(());
    }
    let text = field(facts, &HeaderName::from_static(DIGEST)).unwrap_or_default();
    let digests = dictionary(&text, DIGEST)?;
    let mut known = false;
    for component in covering {
        for (name, hash) in [("sha-256", mac::Algorithm::Sha256), ("sha-512", mac::Algorithm::Sha512)] {
            if component.key.is_some_and(|key| key != name) {
                continue;
            }
            match digests.get(name) {
                None => continue,
                Some(ListEntry::Item(Item { bare_item: BareItem::ByteSequence(given), .. })) if given.len() == hash.len() => {
                    known = true;
                    let mut digest = Mac::digest(hash);
                    body.pieces().for_each(|piece| digest.update(piece));
                    if !bool::from(digest.finish().matches(&Tag::new(given))) {
                        return Err(Reject::new(Reason::SignatureMismatch, "the body does not have the digest that `content-digest` names"));
                    }
                }
                Some(_) => return Err(malformed(format!("the digest `{name}` of `content-digest` cannot be read"))),
            }
        }
    }
    if known { Ok(()) } else { Err(malformed("`content-digest` names no digest that is known: sha-256 or sha-512")) }
}

impl Bound {
    /// The signatures that may count: of the label and tag that are wanted.
    fn candidates(&self, facts: &Facts<'_>) -> Result<Vec<Candidate>, Reject> {
        let missing = |name: &HeaderName| Reject::new(Reason::SignatureMissing, format!("the header `{name}` is missing or empty"));
        let header = |name: &HeaderName| {
            let text = field(facts, name).filter(|text| !text.is_empty()).ok_or_else(|| missing(name))?;
            dictionary(&text, name)
        };
        let (inputs, signatures) = (header(&INPUT)?, header(&SIGNATURE)?);
        let mut found = Vec::new();
        for (label, entry) in inputs {
            if self.settings.label.as_ref().is_some_and(|wanted| wanted != label.as_str()) {
                continue;
            }
            let ListEntry::InnerList(input) = entry else { return Err(malformed("a member of `signature-input` is not an inner list")) };
            if let Some(tag) = &self.settings.tag
                && text(&input.params, "tag")? != Some(tag)
            {
                continue;
            }
            let signature = match signatures.get(label.as_str()) {
                None => continue,
                Some(ListEntry::Item(Item { bare_item: BareItem::ByteSequence(bytes), .. })) if !bytes.is_empty() => bytes.clone(),
                Some(_) => return Err(malformed("a member of `signature` is not a byte sequence")),
            };
            found.push(Candidate { input, signature });
            if found.len() > MAX_SIGNATURES {
                return Err(malformed(format!("more than {MAX_SIGNATURES} signatures")));
            }
        }
        if found.is_empty() {
            return Err(Reject::new(Reason::SignatureMissing, "no signature has the label and the tag that are wanted"));
        }
        Ok(found)
    }

    /// What the head decides of one signature: its form, its time, what it covers. Its components, and its time in milliseconds.
    fn head<'c>(&self, candidate: &'c Candidate, now_ms: i64) -> Result<(Vec<Component<'c>>, Option<i64>), Reject> {
        let params = &candidate.input.params;
        if candidate.input.items.len() > MAX_COMPONENTS {
            return Err(malformed(format!("a signature covers more than {MAX_COMPONENTS} components")));
        }
        let components = candidate.input.items.iter().map(Component::read).collect::<Result<Vec<_>, _>>()?;
        for (at, component) in components.iter().enumerate() {
            let same = |other: &Component<'_>| {
                (component.name, component.sf, component.bs, component.key, component.param) == (other.name, other.sf, other.bs, other.key, other.param)
            };
            if components[..at].iter().any(same) {
                return Err(malformed(format!("the component `{}` is covered twice", component.shown())));
            }
        }
        for name in &self.settings.covers {
            if !covered(&components, name) {
                return Err(malformed(format!("the signature does not cover `{name}`, which this route wants covered")));
            }
        }
        if let Some(alg) = text(params, "alg")?
            && !self.settings.algorithms.iter().any(|known| name_of(*known) == alg)
        {
            return Err(malformed("the signature names an algorithm that this route does not take"));
        }
        let settings = &self.settings;
        let limit = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        let now = now_ms.div_euclid(1000);
        let created = integer(params, "created")?;
        match created {
            None if settings.created => return Err(Reject::new(Reason::TimestampMissing, "the signature does not say when it was made (`created`)")),
            None => {}
            Some(at) => {
                let age = now.saturating_sub(at);
                if age > limit(settings.tolerance) {
                    let (age, most) = (span(age.saturating_mul(1000)), span(limit(settings.tolerance).saturating_mul(1000)));
                    return Err(Reject::new(Reason::TimestampStale, format!("the signed time is {age} old, more than {most}")));
                }
                if age < -limit(settings.future) {
                    let (age, most) = (span(age.saturating_neg().saturating_mul(1000)), span(limit(settings.future).saturating_mul(1000)));
                    return Err(Reject::new(Reason::TimestampFuture, format!("the signed time is {age} ahead, more than {most}")));
                }
            }
        }
        if integer(params, "expires")?.is_some_and(|end| end < now) {
            return Err(Reject::new(Reason::TimestampStale, "the signature has expired (`expires`)"));
        }
        text(params, "keyid")?;
        Ok((components, created.map(|at| at.saturating_mul(1000))))
    }

    fn judge(&self, candidate: &Candidate, facts: &Facts<'_>, body: &Chunks, now_ms: i64) -> Result<Held, Reject> {
        let (components, timestamp_ms) = self.head(candidate, now_ms)?;
        if self.settings.covers_body && body.len() > 0 && !covered(&components, DIGEST) {
            return Err(malformed("the signature does not cover `content-digest`, so nothing vouches for the body"));
        }
        let base = base(&components, &candidate.input, facts)?;
        let params = &candidate.input.params;
        let (alg, keyid) = (text(params, "alg")?, text(params, "keyid")?);
        let label = self.signer(&base, &candidate.signature, alg, keyid, now_ms);
        let label = label.ok_or_else(|| Reject::new(Reason::SignatureMismatch, "no configured key verifies this signature"))?;
        check_digest(&components, facts, body)?;
        let content = Sha256::new().chain_update(b"hooklatch message\0").chain_update(&base).finalize().into();
        Ok(Held { label, timestamp_ms, content, id: None, event_type: None })
    }

    /// The label of the secret or key that made the signature.
    fn signer(&self, base: &[u8], signature: &[u8], alg: Option<&str>, keyid: Option<&str>, now_ms: i64) -> Option<Arc<str>> {
        let counts = |not_after: Option<i64>| not_after.is_none_or(|last| now_ms <= last);
        let agreed = |known: Alg| alg.is_none_or(|name| name == name_of(known));
        for known in self.settings.algorithms.iter().copied().filter(|known| agreed(*known)) {
            match known {
                Alg::HmacSha256 => {
                    let mut hit = None;
                    for (label, not_after, start) in &self.secrets {
                        let mut mac = start.clone();
                        mac.update(base);
                        let same = signature.len() == mac::Algorithm::Sha256.len() && bool::from(mac.finish().matches(&Tag::new(signature)));
                        if same && counts(*not_after) && hit.is_none() {
                            hit = Some(label.clone());
                        }
                    }
                    if hit.is_some() {
                        return hit;
                    }
                }
                Alg::KeyPair(algorithm) => {
                    // A key with a name is only tried where the signature names it, or names none.
                    let named = |key: &Trusted| keyid.is_none() || key.key.kid.is_none() || key.key.kid.as_deref() == keyid;
                    let hit = self.keys.iter().find(|key| counts(key.not_after) && named(key) && key.key.verify(algorithm, base, signature));
                    if let Some(key) = hit {
                        return Some(key.label.clone());
                    }
                }
            }
        }
        None
    }

    /// The first signature that is good, else why the first is not.
    fn first<T>(&self, facts: &Facts<'_>, judge: impl Fn(&Candidate) -> Result<T, Reject>) -> Result<T, Reject> {
        let mut why = None;
        for candidate in &self.candidates(facts)? {
            match judge(candidate) {
                Ok(found) => return Ok(found),
                Err(reject) => why = why.or(Some(reject)),
            }
        }
        Err(why.unwrap_or_else(|| malformed("there is no signature")))
    }
}

/// Whether the components cover what a definition asks for. The whole target is also covered by its parts.
fn covered(components: &[Component<'_>], name: &str) -> bool {
    let has = |name: &str| components.iter().any(|component| component.name == name && component.whole());
    match name {
        "@target-uri" => has(name) || (has("@authority") && (has("@request-target") || (has("@path") && has("@query")))),
        "@path" => has(name) || has("@target-uri") || has("@request-target"),
        "@query" => has(name) || has("@target-uri") || has("@request-target"),
        "@authority" | "@scheme" => has(name) || has("@target-uri"),
        "@request-target" => has(name) || has("@target-uri") || (has("@path") && has("@query")),
        DIGEST => has(name) || components.iter().any(|component| component.name == name && component.key.is_some()),
        _ => has(name),
    }
}

impl Judge for Bound {
    fn stands(&self, facts: &Facts<'_>) -> bool {
        facts.headers.contains_key(INPUT)
    }

    fn prepare(&self, facts: &Facts<'_>, now_ms: i64) -> Result<(), Reject> {
        self.first(facts, |candidate| self.head(candidate, now_ms).map(drop))
    }

    fn reads_body(&self) -> bool {
        false
    }

    fn finish(&self, facts: &Facts<'_>, body: &Chunks, now_ms: i64) -> Result<Held, Reject> {
        self.first(facts, |candidate| self.judge(candidate, facts, body, now_ms))
    }

    fn verification(&self) -> Verification {
        self.settings.verification()
    }

    fn attempt_window(&self) -> Option<Duration> {
        self.settings.created.then(|| self.settings.tolerance.max(self.settings.future))
    }

    fn covers_query(&self, _: &str) -> bool {
        self.settings.covers_whole_query()
    }

    fn names_its_route(&self) -> bool {
        ["@target-uri", "@path", "@request-target"].iter().any(|name| self.settings.always_covers(name))
    }

    fn weaknesses(&self) -> Vec<(&'static str, &'static str)> {
        match self.verification() {
            Verification::Content => Vec::new(),
            _ => vec![("the signature need not cover the body", "add \"content-digest\" to `covers`, if the sender sends it")],
        }
    }
}
