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
    engine::{MAX_SECRETS, PUBLISHED},
    form,
    judge::{Held, Judge, Rule},
    key::KeyForm,
    mac::{self, Mac, Tag},
    place::{At, Place},
    public_key::{Algorithm, Curve, Hash, Layout, Padding, PublicKey, Trusted},
    timestamp::span,
};
use crate::{
    event::{Chunks, Verification},
    keys::{Document, Found, Source, Want},
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
        let source = means.source(None).filter(|_| self.takes_public_keys());
        if secrets.is_empty() && keys.is_empty() && source.is_none() {
            return Err("nothing could be verified: there is no key for the algorithm of this scheme".to_owned());
        }
        let mut settings = self.clone();
        if let Some(tolerance) = means.tolerance {
            (settings.tolerance, settings.future) = (tolerance, tolerance);
        }
        Ok(Box::new(Bound { settings, secrets, keys, source }))
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
    /// Where the sender publishes its keys, asked by `keyid`.
    source: Option<Arc<Source>>,
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
        let written = field(facts, &SIGNATURE).unwrap_or_default();
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
            // The parser forgives missing padding and loose trailing bits; a signature is written in one way.
            let canonical = format!(":{}:", BASE64.encode(&signature));
            if !written.windows(canonical.len()).any(|window| window == canonical.as_bytes()) {
                return Err(malformed("a member of `signature` is not written in base64 as it should be"));
            }
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
        if self.settings.covers_body && !body.is_empty() && !covered(&components, DIGEST) {
            return Err(malformed("the signature does not cover `content-digest`, so nothing vouches for the body"));
        }
        let base = base(&components, &candidate.input, facts)?;
        let params = &candidate.input.params;
        let (alg, keyid) = (text(params, "alg")?, text(params, "keyid")?);
        let signature = &candidate.signature;
        let label = match self.signer(&base, signature, alg, keyid, now_ms) {
            Some(label) => Some(label),
            None => self.published(keyid)?.iter().any(|key| self.verifies(key, &base, signature, alg)).then(|| PUBLISHED.into()),
        };
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

    /// Whether a key made the signature by one of the definition's algorithms.
    fn verifies(&self, key: &PublicKey, base: &[u8], signature: &[u8], alg: Option<&str>) -> bool {
        self.settings.algorithms.iter().any(|known| match known {
            Alg::KeyPair(algorithm) => alg.is_none_or(|name| name == name_of(*known)) && key.verify(*algorithm, base, signature),
            Alg::HmacSha256 => false,
        })
    }

    /// The published keys that may have made a signature: those of its `keyid`.
    fn published(&self, keyid: Option<&str>) -> Result<Vec<PublicKey>, Reject> {
        let (Some(source), Some(id)) = (&self.source, key_id(keyid)) else { return Ok(Vec::new()) };
        match source.find(id) {
            Found::Known(document) => Ok(self.matching(&document, id)),
            Found::Absent => Ok(Vec::new()),
            Found::Unavailable(_) if !self.keys.is_empty() => Ok(Vec::new()),
            Found::Unavailable(why) => Err(Reject::new(Reason::KeysUnavailable, why)),
        }
    }

    fn matching(&self, document: &Document, id: &str) -> Vec<PublicKey> {
        let serves = |key: &&PublicKey| self.settings.algorithms.iter().any(|alg| matches!(alg, Alg::KeyPair(algorithm) if key.serves(*algorithm)));
        let named = |key: &&PublicKey| id.is_empty() || key.kid.as_deref().is_none_or(|kid| kid == id);
        document.keys().iter().filter(serves).filter(named).take(MAX_SECRETS).cloned().collect()
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

/// A `keyid` as keys are asked by: empty where there is none, `None` where it cannot be one.
fn key_id(keyid: Option<&str>) -> Option<&str> {
    let id = keyid.unwrap_or_default();
    (id.len() <= 256 && id.bytes().all(|byte| byte.is_ascii_graphic())).then_some(id)
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

    fn wants(&self, facts: &Facts<'_>, _: &Chunks, now_ms: i64) -> Option<Want> {
        let source = self.source.as_ref()?;
        // Keys are fetched for a signature whose head is in order, and for no other.
        let wanted = |candidate: &Candidate| {
            self.head(candidate, now_ms).ok()?;
            let id = key_id(text(&candidate.input.params, "keyid").ok()?)?;
            source.want(id, &|document| !self.matching(document, id).is_empty())
        };
        self.candidates(facts).ok()?.iter().find_map(wanted)
    }

    fn reads_body(&self) -> bool {
        false
    }

    fn labels(&self) -> Vec<Arc<str>> {
        self.source.iter().map(|_| PUBLISHED.into()).collect()
    }

    fn sources(&self) -> Vec<Arc<Source>> {
        self.source.iter().cloned().collect()
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Method as HttpMethod};

    use super::*;
    use crate::{
        keys::{Form, Given},
        secret::Secret,
        verify::{
            key::KeyEncoding,
            public_key::{parse, samples},
        },
    };

    const CREATED: i64 = 1_618_884_473;
    const BODY: &str = "{\"hello\": \"world\"}";
    const TEST_REQUEST: &[(&str, &str)] = &[
        ("host", "example.com"),
        ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
        ("content-type", "application/json"),
        ("content-digest", "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:"),
        ("content-length", "18"),
    ];

    fn settings(algorithms: &[Alg], covers: &[&str]) -> Settings {
        Settings {
            algorithms: algorithms.to_vec(),
            covers: covers.iter().map(|name| (*name).to_owned()).collect(),
            covers_body: false,
            label: None,
            tag: None,
            created: true,
            tolerance: Duration::from_secs(300),
            future: Duration::from_secs(300),
            key: KeyForm { encoding: KeyEncoding::Base64, ..KeyForm::default() },
        }
    }

    fn all() -> Vec<Alg> {
        ALGORITHMS.iter().map(|(_, alg)| *alg).collect()
    }

    /// With the keys of RFC 9421, B.1.
    fn bound(settings: &Settings) -> Box<dyn Judge> {
        let secret = Secret::new("shared", b"uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==".to_vec(), None);
        let secrets = if settings.algorithms.contains(&Alg::HmacSha256) { vec![secret] } else { Vec::new() };
        let keys = samples::trusted();
        settings.bind(&Means { secrets: &secrets, public_keys: &keys, ..Means::default() }).expect("keys for every algorithm")
    }

    fn judge(judge: &dyn Judge, url: (&str, &str), method: &str, headers: &[(&str, &str)], body: &str, now: i64) -> Result<String, Reason> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), HeaderValue::from_str(value).expect("a value"));
        }
        let method = HttpMethod::from_bytes(method.as_bytes()).expect("a method");
        let facts = Facts { method: &method, base: url.0, target: url.1, headers: &map };
        let chunks = Chunks::from(Bytes::copy_from_slice(body.as_bytes()));
        judge.prepare(&facts, now * 1000).map_err(|why| why.reason)?;
        judge.finish(&facts, &chunks, now * 1000).map(|held| held.label.to_string()).map_err(|why| why.reason)
    }

    /// The test request of RFC 9421, B.2, with a signature.
    fn check(settings: &Settings, label: &str, input: &str, signature: &str, want: Result<&str, Reason>) {
        let (input, signature) = (format!("{label}={input}"), format!("{label}=:{signature}:"));
        let mut headers = TEST_REQUEST.to_vec();
        headers.extend([("signature-input", &*input), ("signature", &*signature)]);
        let got = judge(&*bound(settings), ("https://example.com", "/foo?param=Value&Pet=dog"), "POST", &headers, BODY, CREATED + 10);
        assert_eq!(got.as_deref(), want.as_deref(), "{input}");
        // Nothing of it holds for another body where the digest is covered.
        if want.is_ok() && input.contains("content-digest") {
            let got = judge(&*bound(settings), ("https://example.com", "/foo?param=Value&Pet=dog"), "POST", &headers, "{\"hello\": \"World\"}", CREATED + 10);
            assert_eq!(got, Err(Reason::SignatureMismatch));
        }
    }

    const B21: &str = "d2pmTvmbncD3xQm8E9ZV2828BjQWGgiwAaw5bAkgibUopemLJcWDy/lkbbHAve4cRAtx31Iq786U7it++wgGxbtRxf8Udx7zFZsckzXaJMkA7ChG52eSkFxykJeNqsrWH5S+oxNFlD4dzVuwe8DhTSja8xxbR/Z2cOGdCbzR72rgFWhzx2VjBqJzsPLMIQKhO4DGezXehhWwE56YCE+O6c0mKZsfxVrogUvA4HELjVKWmAvtl6UnCh8jYzuVG5WSb/QEVPnP5TmcAnLH1g+s++v6d4s8m0gCw1fV5/SITLq9mhho8K3+7EPYTU8IU1bLhdxO5Nyt8C8ssinQ98Xw9Q==";
    const B22: &str = "LjbtqUbfmvjj5C5kr1Ugj4PmLYvx9wVjZvD9GsTT4F7GrcQEdJzgI9qHxICagShLRiLMlAJjtq6N4CDfKtjvuJyE5qH7KT8UCMkSowOB4+ECxCmT8rtAmj/0PIXxi0A0nxKyB09RNrCQibbUjsLS/2YyFYXEu4TRJQzRw1rLEuEfY17SARYhpTlaqwZVtR8NV7+4UKkjqpcAoFqWFQh62s7Cl+H2fjBSpqfZUJcsIk4N6wiKYd4je2U/lankenQ99PZfB4jY3I5rSV2DSBVkSFsURIjYErOs0tFTQosMTAoxk//0RoKUqiYY8Bh0aaUEb0rQl3/XaVe4bXTugEjHSw==";
    const B23: &str = "bbN8oArOxYoyylQQUU6QYwrTuaxLwjAC9fbY2F6SVWvh0yBiMIRGOnMYwZ/5MR6fb0Kh1rIRASVxFkeGt683+qRpRRU5p2voTp768ZrCUb38K0fUxN0O0iC59DzYx8DFll5GmydPxSmme9v6ULbMFkl+V5B1TP/yPViV7KsLNmvKiLJH1pFkh/aYA2HXXZzNBXmIkoQoLd7YfW91kE9o/CCoC1xMy7JA1ipwvKvfrs65ldmlu9bpG6A9BmzhuzF8Eim5f8ui9eH8LZH896+QIF61ka39VBrohr9iyMUJpvRX2Zbhl5ZJzSRxpJyoEZAFL2FUo5fTIztsDZKEgM4cUA==";
    const B22_INPUT: &str =
        "(\"@authority\" \"content-digest\" \"@query-param\";name=\"Pet\");created=1618884473;keyid=\"test-key-rsa-pss\";tag=\"header-example\"";
    const B23_INPUT: &str = "(\"date\" \"@method\" \"@path\" \"@query\" \"@authority\" \"content-type\" \"content-digest\" \"content-length\");created=1618884473;keyid=\"test-key-rsa-pss\"";
    const B25_INPUT: &str = "(\"date\" \"@authority\" \"content-type\");created=1618884473;keyid=\"test-shared-secret\"";
    const B25: &str = "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=";
    const B26_INPUT: &str = "(\"date\" \"@method\" \"@path\" \"@authority\" \"content-type\" \"content-length\");created=1618884473;keyid=\"test-key-ed25519\"";
    const B26: &str = "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==";

    #[test]
    fn the_examples_of_rfc_9421_hold() {
        let any = settings(&all(), &[]);
        check(&any, "sig-b21", "();created=1618884473;keyid=\"test-key-rsa-pss\";nonce=\"b3k2pp5k7z-50gnwp.yemd\"", B21, Ok("#1"));
        check(&any, "sig-b22", B22_INPUT, B22, Ok("#1"));
        check(&any, "sig-b23", B23_INPUT, B23, Ok("#1"));
        check(&any, "sig-b25", B25_INPUT, B25, Ok("shared"));
        check(&any, "sig-b26", B26_INPUT, B26, Ok("#1"));
        // Of one example none of the others' parameters hold.
        check(&any, "sig-b26", B25_INPUT, B26, Err(Reason::SignatureMismatch));
        check(&any, "sig-b25", B25_INPUT, "AAAA", Err(Reason::SignatureMismatch));

        // B.2.4 signs a response: its bytes verify, but no request has a status.
        let base = "\"@status\": 200\n\"content-type\": application/json\n\"content-digest\": sha-512=:mEWXIS7MaLRuGgxOBdODa3xqM1XdEvxoYhvlCFJ41QJgJc4GTsPp29l5oGX69wWdXymyU0rjJuahq4l5aGgfLQ==:\n\"content-length\": 23\n\"@signature-params\": (\"@status\" \"content-type\" \"content-digest\" \"content-length\");created=1618884473;keyid=\"test-key-ecc-p256\"";
        let b24 = "wNmSUAhwb5LxtOtOpNa6W5xj067m5hFrj0XQ4fvpaCLx0NKocgPquLgyahnzDnDAUy5eCdlYUEkLIj+32oiasw==";
        let key = parse(samples::P256.as_bytes()).expect("a key").remove(0);
        assert!(key.verify(Algorithm::Ecdsa(Curve::P256, Layout::Raw), base.as_bytes(), &BASE64.decode(b24.as_bytes()).expect("base64")));
        check(&any, "sig-b24", "(\"@status\" \"content-type\");created=1618884473;keyid=\"test-key-ecc-p256\"", b24, Err(Reason::SignatureMalformed));

        // B.3: a proxy's signature over the certificate that it saw.
        let certificate = ":MIIBqDCCAU6gAwIBAgIBBzAKBggqhkjOPQQDAjA6MRswGQYDVQQKDBJMZXQncyBBdXRoZW50aWNhdGUxGzAZBgNVBAMMEkxBIEludGVybWVkaWF0ZSBDQTAeFw0yMDAxMTQyMjU1MzNaFw0yMTAxMjMyMjU1MzNaMA0xCzAJBgNVBAMMAkJDMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE8YnXXfaUgmnMtOXU/IncWalRhebrXmckC8vdgJ1p5Be5F/3YC8OthxM4+k1M6aEAEFcGzkJiNy6J84y7uzo9M6NyMHAwCQYDVR0TBAIwADAfBgNVHSMEGDAWgBRm3WjLa38lbEYCuiCPct0ZaSED2DAOBgNVHQ8BAf8EBAMCBsAwEwYDVR0lBAwwCgYIKwYBBQUHAwIwHQYDVR0RAQH/BBMwEYEPYmRjQGV4YW1wbGUuY29tMAoGCCqGSM49BAMCA0gAMEUCIBHda/r1vaL6G3VliL4/Di6YK0Q6bMjeSkC3dFCOOB8TAiEAx/kHSB4urmiZ0NX5r5XarmPk0wmuydBVoU4hBVZ1yhk=:";
        let headers = [
            ("client-cert", certificate),
            ("signature-input", "ttrp=(\"@path\" \"@query\" \"@method\" \"@authority\" \"client-cert\");created=1618884473;keyid=\"test-key-ecc-p256\""),
            ("signature", "ttrp=:xVMHVpawaAC/0SbHrKRs9i8I3eOs5RtTMGCWXm/9nvZzoHsIg6Mce9315T6xoklyy0yzhD9ah4JHRwMLOgmizw==:"),
        ];
        let url = ("https://service.internal.example", "/foo?param=Value&Pet=dog");
        assert_eq!(judge(&*bound(&any), url, "POST", &headers, BODY, CREATED).as_deref(), Ok("#1"));

        // B.4: what a proxy on the way may do to a message, and what it may not.
        let transformed = |url: (&str, &str), method: &str, accept: &[&str]| {
            let mut headers = vec![
                ("signature-input", "transform=(\"@method\" \"@path\" \"@authority\" \"accept\");created=1618884473;keyid=\"test-key-ed25519\""),
                ("signature", "transform=:ZT1kooQsEHpZ0I1IjCqtQppOmIqlJPeo7DHR3SoMn0s5JZ1eRGS0A+vyYP9t/LXlh5QMFFQ6cpLt2m0pmj3NDA==:"),
            ];
            headers.extend(accept.iter().map(|value| ("accept", *value)));
            judge(&*bound(&any), url, method, &headers, "", CREATED).is_ok()
        };
        let org = "https://example.org";
        assert!(transformed((org, "/demo?name1=Value1&Name2=value2"), "GET", &["application/json", "*/*"]));
        assert!(transformed((org, "/demo?name1=Value1&Name2=value2&param=added"), "GET", &["application/json", "*/*"]));
        assert!(transformed((org, "/demo?name1=Value1&Name2=value2"), "GET", &["application/json, */*"]));
        assert!(transformed(("https://EXAMPLE.org:443", "/demo"), "GET", &[" application/json\t", "*/*"]));
        assert!(!transformed((org, "/demo?name1=Value1&Name2=value2"), "POST", &["application/json", "*/*"]));
        assert!(!transformed(("https://example.com", "/demo"), "GET", &["application/json", "*/*"]));
        assert!(!transformed((org, "/demo"), "GET", &["*/*", "application/json"]));
    }

    #[test]
    fn what_must_be_covered_is_the_policys_to_say() {
        let ed = [Alg::KeyPair(Algorithm::Ed25519)];
        check(&settings(&ed, &["@method", "@path"]), "s", B26_INPUT, B26, Ok("#1"));
        check(&settings(&ed, &["@method", "@query"]), "s", B26_INPUT, B26, Err(Reason::SignatureMalformed));
        check(&settings(&ed, &["@target-uri"]), "s", B26_INPUT, B26, Err(Reason::SignatureMalformed));
        check(&settings(&ed, &["content-digest"]), "s", B26_INPUT, B26, Err(Reason::SignatureMalformed));
        // A body that nothing vouches for.
        check(&Settings { covers_body: true, ..settings(&ed, &["@method"]) }, "s", B26_INPUT, B26, Err(Reason::SignatureMalformed));
        let pss = [Alg::KeyPair(Algorithm::Rsa(Hash::Sha512, Padding::Pss))];
        check(&Settings { covers_body: true, ..settings(&pss, &["@method", "@target-uri"]) }, "s", B23_INPUT, B23, Ok("#1"));
        check(&settings(&pss, &["@request-target"]), "s", B23_INPUT, B23, Ok("#1"));
        // A single query parameter is not the query.
        check(&settings(&pss, &["@query"]), "s", B22_INPUT, B22, Err(Reason::SignatureMalformed));

        // Algorithms are the policy's as well.
        check(&settings(&pss, &["@method"]), "s", B26_INPUT, B26, Err(Reason::SignatureMismatch));
        let named = |alg: &str| B26_INPUT.replace(";keyid", &format!(";alg=\"{alg}\";keyid"));
        check(&settings(&ed, &["@method"]), "s", &named("hmac-sha256"), B26, Err(Reason::SignatureMalformed));
        check(&settings(&ed, &["@method"]), "s", &named("none"), B26, Err(Reason::SignatureMalformed));
        check(&settings(&ed, &["@method"]), "s", &named("ed25519"), B26, Err(Reason::SignatureMismatch));

        let labelled = |label: &str| Settings { label: Some(label.to_owned()), ..settings(&ed, &["@method"]) };
        check(&labelled("s"), "s", B26_INPUT, B26, Ok("#1"));
        check(&labelled("other"), "s", B26_INPUT, B26, Err(Reason::SignatureMissing));
        let tagged = |tag: &str| Settings { tag: Some(tag.to_owned()), ..settings(&pss, &["@authority"]) };
        check(&tagged("header-example"), "s", B22_INPUT, B22, Ok("#1"));
        check(&tagged("other"), "s", B22_INPUT, B22, Err(Reason::SignatureMissing));
    }

    #[test]
    fn the_key_id_picks_the_key() {
        let set = r#"{"keys":[
            {"kty":"EC","crv":"P-256","kid":"test-key-ed25519","x":"qIVYZVLCrPZHGHjP17CTW0_-D9Lfw0EkjqF7xB4FivA","y":"Mc4nN9LTDOBhfoUeg8Ye9WedFRhnZXZJA12Qp0zZ6F0"},
            {"kty":"OKP","crv":"Ed25519","kid":"NAME","x":"JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs"}]}"#;
        for (name, want) in [("test-key-ed25519", Ok("keys")), ("other", Err(Reason::SignatureMismatch))] {
            let set = set.replace("NAME", name);
            let ed = settings(&[Alg::KeyPair(Algorithm::Ed25519)], &["@method"]);
            let (input, signature) = (format!("s={B26_INPUT}"), format!("s=:{B26}:"));
            let mut headers = TEST_REQUEST.to_vec();
            headers.extend([("signature-input", &*input), ("signature", &*signature)]);
            let got = |means: &Means<'_>| {
                let bound = ed.bind(means).expect("keys");
                judge(&*bound, ("https://example.com", "/foo?param=Value&Pet=dog"), "POST", &headers, BODY, CREATED)
            };
            let document = Document::read(Form::Set, None, "", set.as_bytes()).expect("a set");
            let published = Given::Fixed(Source::fixed([(String::new(), document)]));
            assert_eq!(got(&Means { keys: Some(&published), ..Means::default() }).as_deref(), want.as_deref(), "published {name}");
            let pinned: Vec<Trusted> =
                parse(set.as_bytes()).expect("keys").into_iter().map(|key| Trusted { label: "pinned".into(), not_after: None, key }).collect();
            let want = want.map(|_| "pinned");
            assert_eq!(got(&Means { public_keys: &pinned, ..Means::default() }).as_deref(), want.as_deref(), "pinned {name}");
        }
    }

    #[test]
    fn times_are_judged_to_the_second() {
        let judge_at = |settings: &Settings, input: &str, now: i64| {
            let (input, signature) = (format!("s={input}"), format!("s=:{B26}:"));
            let mut headers = TEST_REQUEST.to_vec();
            headers.extend([("signature-input", &*input), ("signature", &*signature)]);
            judge(&*bound(settings), ("https://example.com", "/foo?param=Value&Pet=dog"), "POST", &headers, BODY, now).err()
        };
        let ed = settings(&[Alg::KeyPair(Algorithm::Ed25519)], &["@method"]);
        for (offset, want) in [
            (-301, Some(Reason::TimestampFuture)),
            (-300, None),
            (300, None),
            (301, Some(Reason::TimestampStale)),
            (i64::MAX / 4000, Some(Reason::TimestampStale)),
        ] {
            assert_eq!(judge_at(&ed, B26_INPUT, CREATED + offset), want, "{offset}");
        }
        let expiring = |end: i64| B26_INPUT.replace(";keyid", &format!(";expires={end};keyid"));
        assert_eq!(judge_at(&ed, &expiring(CREATED + 9), CREATED + 10), Some(Reason::TimestampStale));
        assert_eq!(judge_at(&ed, &expiring(CREATED + 10), CREATED + 10), Some(Reason::SignatureMismatch));
        let untimed = B26_INPUT.replace(";created=1618884473", "");
        assert_eq!(judge_at(&ed, &untimed, CREATED), Some(Reason::TimestampMissing));
        assert_eq!(judge_at(&Settings { created: false, ..ed.clone() }, &untimed, CREATED), Some(Reason::SignatureMismatch));
        for odd in [";created=\"1618884473\"", ";created=1618884473.0", ";created=?1", ";created", ";created=@1618884473"] {
            assert_eq!(judge_at(&ed, &B26_INPUT.replace(";created=1618884473", odd), CREATED), Some(Reason::SignatureMalformed), "{odd}");
        }
        for far in ["-999999999999999", "999999999999999"] {
            assert!(judge_at(&ed, &B26_INPUT.replace("1618884473", far), CREATED).is_some());
        }
    }

    #[test]
    fn components_have_the_values_of_the_specification() {
        let value = |component: &str, target: &str, headers: &[(&str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), HeaderValue::from_str(value).expect("a value"));
            }
            let facts = Facts { method: &HttpMethod::POST, base: "https://www.Example.com:443", target, headers: &map };
            let item: Item = Parser::new(component).parse().expect("an item");
            let component = Component::read(&item).map_err(|why| why.detail.into_owned())?;
            component.value(&facts).map(|value| String::from_utf8(value).expect("text")).map_err(|why| why.detail.into_owned())
        };
        // RFC 9421, 2.2.
        for (component, target, want) in [
            ("\"@method\"", "/", "POST"),
            ("\"@target-uri\"", "/path?param=value", "https://www.Example.com:443/path?param=value"),
            ("\"@authority\"", "/", "www.example.com"),
            ("\"@scheme\"", "/", "https"),
            ("\"@request-target\"", "/path?param=value", "/path?param=value"),
            ("\"@path\"", "/path?param=value", "/path"),
            ("\"@path\"", "?param=value", "/"),
            ("\"@query\"", "/path?param=value&foo=bar&baz=bat%2Dman", "?param=value&foo=bar&baz=bat%2Dman"),
            ("\"@query\"", "/path?queryString", "?queryString"),
            ("\"@query\"", "/path", "?"),
            ("\"@query-param\";name=\"baz\"", "/path?param=value&foo=bar&baz=batman&qux=", "batman"),
            ("\"@query-param\";name=\"qux\"", "/path?param=value&foo=bar&baz=batman&qux=", ""),
            (
                "\"@query-param\";name=\"var\"",
                "/p?var=this%20is%20a%20big%0Amultiline%20value&bar=with+plus+whitespace",
                "this%20is%20a%20big%0Amultiline%20value",
            ),
            ("\"@query-param\";name=\"bar\"", "/p?var=this%20is%20a%20big%0Amultiline%20value&bar=with+plus+whitespace", "with%20plus%20whitespace"),
            ("\"@query-param\";name=\"fa%C3%A7ade%22%3A%20\"", "/p?fa%C3%A7ade%22%3A%20=something", "something"),
        ] {
            assert_eq!(value(component, target, &[]).as_deref(), Ok(want), "{component} of {target}");
        }
        // RFC 9421, 2.1.
        let headers = [
            ("x-ows-header", "  Leading and trailing whitespace.   "),
            ("cache-control", "max-age=60"),
            ("cache-control", "    must-revalidate"),
            ("x-empty-header", ""),
            ("example-dict", "  a=1,    b=2;x=1;y=2,   c=(a   b    c), d"),
            ("example-header", "value, with, lots"),
            ("example-header", "of, commas"),
            ("priority", "u=1,   i"),
        ];
        for (component, want) in [
            ("\"x-ows-header\"", "Leading and trailing whitespace."),
            ("\"cache-control\"", "max-age=60, must-revalidate"),
            ("\"x-empty-header\"", ""),
            ("\"example-dict\"", "a=1,    b=2;x=1;y=2,   c=(a   b    c), d"),
            ("\"example-dict\";key=\"a\"", "1"),
            ("\"example-dict\";key=\"d\"", "?1"),
            ("\"example-dict\";key=\"b\"", "2;x=1;y=2"),
            ("\"example-dict\";key=\"c\"", "(a b c)"),
            ("\"example-header\"", "value, with, lots, of, commas"),
            ("\"example-header\";bs", ":dmFsdWUsIHdpdGgsIGxvdHM=:, :b2YsIGNvbW1hcw==:"),
            ("\"priority\";sf", "u=1, i"),
            ("\"host\"", "www.example.com"),
        ] {
            assert_eq!(value(component, "/", &headers).as_deref(), Ok(want), "{component}");
        }
        for (component, target, part) in [
            ("\"@status\"", "/", "no component of a request"),
            ("\"@signature-params\"", "/", "no component of a request"),
            ("\"@query-param\"", "/", "names no parameter"),
            ("\"@query-param\";name=\"a\"", "/?a=1&a=2", "more than once"),
            ("\"@query-param\";name=\"b\"", "/?a=1", "missing"),
            ("\"@method\";req", "/", "not taken: `req`"),
            ("\"date\";tr", "/", "not taken: `tr`"),
            ("\"@method\";sf", "/", "not taken: `sf`"),
            ("\"date\"", "/", "missing"),
            ("\"Priority\"", "/", "small letters"),
            ("\"a b\"", "/", "small letters"),
            ("\"priority\";sf;bs", "/", "exclude each other"),
            ("\"example-dict\";key=\"e\"", "/", "missing"),
            ("\"x-ows-header\";sf", "/", "not known"),
            ("\"x-ows-header\";key=\"a\"", "/", "not a structured dictionary"),
            ("date", "/", "not a string"),
        ] {
            let got = value(component, target, &headers);
            assert!(got.as_ref().is_err_and(|why| why.contains(part)), "{component}: {got:?}");
        }
    }

    #[test]
    fn headers_that_two_readers_could_read_differently_are_refused() {
        let ed = settings(&[Alg::KeyPair(Algorithm::Ed25519)], &["@method"]);
        let (input, signature) = (format!("s={B26_INPUT}"), format!("s=:{B26}:"));
        let got = |extra: &[(&str, &str)], input: &str, signature: &str| {
            let mut headers = TEST_REQUEST.to_vec();
            headers.extend([("signature-input", input), ("signature", signature)]);
            headers.extend(extra);
            judge(&*bound(&ed), ("https://example.com", "/foo?param=Value&Pet=dog"), "POST", &headers, BODY, CREATED)
        };
        assert!(got(&[], &input, &signature).is_ok());
        // Another signature beside it, whoever made it, changes nothing.
        let other = format!("x=:{}:", BASE64.encode(&[7; 64]));
        assert!(got(&[("signature-input", "x=(\"@method\");created=1618884473"), ("signature", &other)], &input, &signature).is_ok());
        for (extra, input, signature) in [
            (vec![("signature", &*signature)], &*input, &*signature),
            (vec![("signature-input", &*input)], &input, &signature),
            (vec![], &input, &*format!("s=:AAAA:, {signature}")),
            (vec![], &input, &*format!("{signature};x, s=:AAAA:")),
            (vec![], &input, "s=\"text\""),
            (vec![], &input, "s=::"),
            (vec![], &input, &*signature.replace("Cw==:", "Cw:")),
            (vec![], &input, &*signature.replace("RCw==:", "RCx==:")),
            (vec![], &input, "not a dictionary at all ("),
            (vec![], "s=1", &signature),
            (vec![], &*input.replace("(\"date\"", "(\"date\" \"date\""), &signature),
            (vec![], &*input.replace("(\"date\"", "(date"), &signature),
        ] {
            assert_eq!(got(&extra, input, signature), Err(Reason::SignatureMalformed), "{input} {signature}");
        }
        assert_eq!(got(&[], "", &signature), Err(Reason::SignatureMissing));
        assert_eq!(got(&[], &input, "x=:AAAA:"), Err(Reason::SignatureMissing));
        let many = (0..9).map(|i| format!("l{i}=:AAAA:")).collect::<Vec<_>>().join(", ");
        let inputs = (0..9).map(|i| format!("l{i}=(\"@method\");created=1618884473")).collect::<Vec<_>>().join(", ");
        assert_eq!(got(&[], &inputs, &many), Err(Reason::SignatureMalformed));
    }
}
