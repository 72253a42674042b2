//! What `hmac`, `hash` and `standard-webhooks` share: a signature over a template, by one of several keys.
//!
//! The head of a request decides what it can (missing, malformed, stale), then the bytes of the body go straight into the running
//! MACs, one for each key that still counts and each template. A template that needs fields of the body waits for the whole of it.
//! Every computed value is compared with every presented one in constant time, without an early end.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable};
use zeroize::Zeroizing;

use super::{
    Facts,
    key::KeyForm,
    mac::{Algorithm, Encoding, Mac, Tag},
    place::{At, Body, MAX_SIGNATURES, Pick, Place, Required},
    template::{Render, Template},
    timestamp::Timestamp,
};
use crate::{
    event::{Chunks, Verification},
    reject::{Reason, Reject},
    secret::Secret,
};

/// The most secrets of one route.
pub(super) const MAX_SECRETS: usize = 16;

/// A signature scheme as its definition says it; holds no secret.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    /// A plain digest over a template with `{secret}` in it, instead of an HMAC.
    pub(super) plain_hash: bool,
    pub(super) algorithm: Algorithm,
    pub(super) key: KeyForm,
    pub(super) signatures: Vec<Signature>,
    pub(super) timestamp: Option<Timestamp>,
    /// Several: any may match.
    pub(super) signed: Vec<Template>,
    /// What must have a value.
    pub(super) require: Vec<Required>,
    pub(super) body_digest: Option<BodyDigest>,
}

/// Where a signature stands. Where there are several places, each belongs to one secret.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    pub(super) place: Place,
    pub(super) encoding: Encoding,
    /// The label of the secret it belongs to; without one the first place belongs to the first secret, and so on.
    pub(super) secret: Option<String>,
}

/// A digest of the body in a value that is itself signed.
#[derive(Clone, Debug)]
pub(super) struct BodyDigest {
    pub(super) place: Place,
    pub(super) algorithm: Algorithm,
    pub(super) encoding: Encoding,
}

/// A recipe with its keys.
pub(super) struct Engine {
    pub(super) recipe: Recipe,
    keys: Vec<Key>,
    streams: bool,
}

struct Key {
    label: Arc<str>,
    not_after: Option<i64>,
    /// Keyed once; cloned for every request.
    start: Mac,
    /// For templates with `{secret}` only.
    bytes: Option<Zeroizing<Vec<u8>>>,
    /// The place this key belongs to, where there are several.
    place: Option<usize>,
}

/// A request's MACs while its body arrives.
pub(super) struct Running {
    given: Given,
    macs: Macs,
    timestamp_ms: Option<i64>,
}

/// The signatures of a request, each with the place it belongs to.
enum Given {
    /// The usual case, without an allocation.
    One(Tag, usize),
    Many(Vec<(Tag, usize)>),
    /// They stand in the body.
    Later,
}

#[expect(clippy::large_enum_variant, reason = "the usual case must not allocate")]
enum Macs {
    One(Mac, usize),
    Many(Vec<(Mac, usize)>),
    Later,
}

/// Which key it was, and its signature.
pub(super) struct Matched {
    pub(super) label: Arc<str>,
    pub(super) timestamp_ms: Option<i64>,
    at: usize,
    tag: Tag,
}

impl Engine {
    /// The error is for the policy's author and never shows a secret.
    pub(super) fn new(recipe: Recipe, secrets: &[Secret]) -> Result<Self, String> {
        if secrets.len() > MAX_SECRETS {
            return Err(format!("{} secrets are more than {MAX_SECRETS}", secrets.len()));
        }
        let keep = recipe.signed.iter().any(Template::has_secret);
        let mut keys = Vec::with_capacity(secrets.len());
        for (at, secret) in secrets.iter().enumerate() {
            let bytes = recipe.key.bytes(secret.expose()).map_err(|why| format!("secret {}: {why}", secret.label()))?;
            let start = if recipe.plain_hash { Mac::digest(recipe.algorithm) } else { Mac::hmac(recipe.algorithm, &bytes) };
            let place = if recipe.signatures.len() > 1 { Some(recipe.place_of(secret, at)?) } else { None };
            keys.push(Key { label: secret.label().clone(), not_after: secret.not_after(), start, bytes: keep.then_some(bytes), place });
        }
        let in_head = recipe.signatures.iter().all(|s| s.place.in_head())
            && recipe.timestamp.as_ref().is_none_or(|t| t.place.in_head() || !recipe.signed.iter().any(Template::has_timestamp));
        let streams = in_head && recipe.signed.iter().all(Template::streams);
        Ok(Self { recipe, keys, streams })
    }

    /// Whether values of the body are needed before anything is known of it.
    pub(super) fn needs_fields(&self) -> bool {
        !self.streams
            || self.recipe.require.iter().any(|required| !required.place.in_head())
            || self.recipe.body_digest.iter().any(|digest| !digest.place.in_head())
    }

    /// Whether the time stands in a body that is verified first: [`Engine::late_time`].
    pub(super) fn has_late_time(&self) -> bool {
        !self.needs_fields() && self.recipe.timestamp.as_ref().is_some_and(|timestamp| !timestamp.place.in_head())
    }

    /// Judges the time in a body that was verified.
    pub(super) fn late_time(&self, facts: &Facts<'_>, body: Option<Body<'_>>, now_ms: i64) -> Result<Option<i64>, Reject> {
        self.recipe.timestamp.as_ref().map(|timestamp| self.recipe.time(timestamp, facts, body, now_ms)).transpose()
    }

    /// Whether any of those stand in a JSON body.
    pub(super) fn needs_json(&self) -> bool {
        let recipe = &self.recipe;
        let places = recipe.signatures.iter().map(|signature| &signature.place).chain(recipe.timestamp.iter().map(|timestamp| &timestamp.place));
        let places = places.chain(recipe.require.iter().map(|required| &required.place)).chain(recipe.body_digest.iter().map(|digest| &digest.place));
        places.chain(recipe.signed.iter().flat_map(Template::places)).any(|place| matches!(place.at, At::Json { .. }))
    }

    pub(super) fn verification(&self) -> Verification {
        self.recipe.verification()
    }

    pub(super) fn prepare(&self, facts: &Facts<'_>, now_ms: i64) -> Result<Running, Reject> {
        let recipe = &self.recipe;
        let given = if recipe.signatures.iter().all(|s| s.place.in_head()) { recipe.given(facts, None)? } else { Given::Later };
        recipe.required(facts, None)?;
        let timestamp_ms = match &recipe.timestamp {
            Some(timestamp) if timestamp.place.in_head() => Some(recipe.time(timestamp, facts, None, now_ms)?),
            _ => None,
        };
        if !self.streams {
            return Ok(Running { given, macs: Macs::Later, timestamp_ms });
        }
        let active = || self.keys.iter().enumerate().filter(|(_, key)| key.counts(now_ms));
        let macs = if recipe.signed.len() == 1 && self.keys.len() == 1 {
            match active().next() {
                Some((at, key)) => Macs::One(self.head(&recipe.signed[0], key, facts)?, at),
                None => Macs::Many(Vec::new()),
            }
        } else {
            let mut macs = Vec::with_capacity(recipe.signed.len() * self.keys.len());
            for template in &recipe.signed {
                for (at, key) in active() {
                    macs.push((self.head(template, key, facts)?, at));
                }
            }
            Macs::Many(macs)
        };
        Ok(Running { given, macs, timestamp_ms })
    }

    fn head(&self, template: &Template, key: &Key, facts: &Facts<'_>) -> Result<Mac, Reject> {
        let mut mac = key.start.clone();
        template.head(&self.render(facts, None, key), &mut |bytes| mac.update(bytes))?;
        Ok(mac)
    }

    fn render<'a>(&'a self, facts: &'a Facts<'a>, body: Option<Body<'a>>, key: &'a Key) -> Render<'a> {
        Render { facts, body, timestamp: self.recipe.timestamp.as_ref(), secret: key.bytes.as_deref().map(Vec::as_slice), digest: None }
    }

    /// Judges the whole request. `body` is there where [`Engine::needs_fields`] says so.
    pub(super) fn finish(&self, running: Running, facts: &Facts<'_>, chunks: &Chunks, body: Option<Body<'_>>, now_ms: i64) -> Result<Matched, Reject> {
        let recipe = &self.recipe;
        let given = match running.given {
            Given::Later => recipe.given(facts, body)?,
            given => given,
        };
        recipe.required(facts, body)?;
        let timestamp_ms = match (&recipe.timestamp, running.timestamp_ms) {
            (Some(timestamp), None) if !self.has_late_time() => Some(recipe.time(timestamp, facts, body, now_ms)?),
            (_, known) => known,
        };
        let first = chunks.pieces().next().and_then(|piece| piece.first().copied());
        recipe.signed.iter().try_for_each(|template| template.check_body(first))?;
        // SHA-1 and SHA-2 can be continued from a known digest, past a padding that always has zero bytes; text has none.
        if recipe.plain_hash && recipe.signed.iter().any(Template::ends_with_body) && chunks.pieces().any(|piece| memchr::memchr(0, piece).is_some()) {
            return Err(Reject::new(Reason::SignatureMalformed, "a zero byte in the body: a plain digest would also fit a body that somebody else lengthened"));
        }

        let mut verdict = Verdict::default();
        match running.macs {
            Macs::One(mac, at) => {
                verdict.weigh(self.tail(&recipe.signed[0], mac, at, facts)?, at, self.keys[at].place, &given);
            }
            Macs::Many(macs) => {
                let each = macs.len() / recipe.signed.len().max(1);
                for (i, (mac, at)) in macs.into_iter().enumerate() {
                    let template = &recipe.signed[i / each.max(1)];
                    verdict.weigh(self.tail(template, mac, at, facts)?, at, self.keys[at].place, &given);
                }
            }
            Macs::Later => {
                let digest = recipe.signed.iter().any(Template::needs_body_digest).then(|| digests(chunks));
                for template in &recipe.signed {
                    for (at, key) in self.keys.iter().enumerate().filter(|(_, key)| key.counts(now_ms)) {
                        let mut mac = key.start.clone();
                        template.all(&Render { digest, ..self.render(facts, body, key) }, &mut |bytes| mac.update(bytes))?;
                        verdict.weigh(mac.finish(), at, key.place, &given);
                    }
                }
            }
        }
        let (at, tag) = verdict.hit().ok_or_else(|| Reject::new(Reason::SignatureMismatch, "no configured secret gives this signature"))?;
        if let Some(digest) = &recipe.body_digest {
            digest.check(facts, chunks, body)?;
        }
        Ok(Matched { label: self.keys[at].label.clone(), timestamp_ms, at, tag: *tag })
    }

    /// A digest that tells what was signed from anything else that may be signed; it is not usable as a signature.
    pub(super) fn content(&self, matched: &Matched, facts: &Facts<'_>, chunks: &Chunks, body: Option<Body<'_>>) -> Result<[u8; 32], Reject> {
        if !self.recipe.several() {
            // The signature itself stands for what it signs; hashed, so that a stored key is never a usable one.
            return Ok(Sha256::new().chain_update(b"hooklatch content\0").chain_update(matched.tag.as_slice()).finalize().into());
        }
        // One signature of several could be taken away; what they all sign could not.
        let mut hash = Sha256::new();
        let template = &self.recipe.signed[0];
        let digest = template.needs_body_digest().then(|| digests(chunks));
        let render = Render { secret: Some(b""), digest, ..self.render(facts, body, &self.keys[matched.at]) };
        template.head(&render, &mut |bytes| hash.update(bytes))?;
        if template.has_body() {
            chunks.pieces().for_each(|piece| hash.update(piece));
            template.tail(&render, &mut |bytes| hash.update(bytes))?;
        }
        Ok(hash.finalize().into())
    }

    /// The signature that the key `at` gives a request, by the first template: for sending.
    pub(super) fn compute(&self, facts: &Facts<'_>, chunks: &Chunks, body: Option<Body<'_>>, at: usize) -> Result<Tag, Reject> {
        let (template, key) = (&self.recipe.signed[0], &self.keys[at]);
        let digest = template.needs_body_digest().then(|| digests(chunks));
        let mut mac = key.start.clone();
        template.all(&Render { digest, ..self.render(facts, body, key) }, &mut |bytes| mac.update(bytes))?;
        Ok(mac.finish())
    }

    fn tail(&self, template: &Template, mut mac: Mac, at: usize, facts: &Facts<'_>) -> Result<Tag, Reject> {
        template.tail(&self.render(facts, None, &self.keys[at]), &mut |bytes| mac.update(bytes))?;
        Ok(mac.finish())
    }
}

impl Running {
    /// The next bytes of the body.
    pub(super) fn update(&mut self, recipe: &Recipe, bytes: &[u8]) {
        match &mut self.macs {
            Macs::One(mac, _) => {
                if recipe.signed[0].has_body() {
                    mac.update(bytes);
                }
            }
            Macs::Many(macs) => {
                let each = (macs.len() / recipe.signed.len().max(1)).max(1);
                for (i, (mac, _)) in macs.iter_mut().enumerate() {
                    if recipe.signed[i / each].has_body() {
                        mac.update(bytes);
                    }
                }
            }
            Macs::Later => {}
        }
    }
}

impl Key {
    fn counts(&self, now_ms: i64) -> bool {
        self.not_after.is_none_or(|last| now_ms <= last)
    }
}

impl Recipe {
    /// Which of several places a secret belongs to.
    fn place_of(&self, secret: &Secret, at: usize) -> Result<usize, String> {
        let by_label = self.signatures.iter().position(|s| s.secret.as_deref() == Some(&**secret.label()));
        by_label.or_else(|| self.signatures.get(at).filter(|s| s.secret.is_none()).map(|_| at)).ok_or_else(|| {
            let places: Vec<String> = self.signatures.iter().map(|s| s.secret.clone().unwrap_or_else(|| s.place.to_string())).collect();
            format!("secret {} belongs to no signature: there are {} places ({}), one for each secret", secret.label(), places.len(), places.join(", "))
        })
    }

    /// Whether one request may carry several signatures.
    fn several(&self) -> bool {
        self.signatures.len() > 1
            || self.signatures.iter().any(|s| matches!(s.place.pick, Pick::Pairs { .. } | Pick::List { .. }) || matches!(s.place.at, At::Numbered(_)))
    }

    pub(super) fn verification(&self) -> Verification {
        if self.body_digest.is_some() || self.signed.iter().all(Template::covers_body) { Verification::Content } else { Verification::Sender }
    }

    fn given(&self, facts: &Facts<'_>, body: Option<Body<'_>>) -> Result<Given, Reject> {
        let mut given: Option<Given> = None;
        let mut missing = None;
        for (at, signature) in self.signatures.iter().enumerate() {
            let found = signature.place.signatures(facts, body, signature.encoding, self.algorithm.len(), &mut |tag| {
                given = Some(match given.take() {
                    None => Given::One(tag, at),
                    Some(Given::One(first, place)) => Given::Many(vec![(first, place), (tag, at)]),
                    Some(Given::Many(mut many)) => {
                        many.push((tag, at));
                        Given::Many(many)
                    }
                    Some(Given::Later) => Given::Later,
                });
                !matches!(&given, Some(Given::Many(many)) if many.len() > MAX_SIGNATURES)
            });
            match found {
                Err(reject) if reject.reason == Reason::SignatureMissing => missing = missing.or(Some(reject)),
                other => other?,
            }
        }
        given.ok_or_else(|| missing.unwrap_or_else(|| Reject::new(Reason::SignatureMissing, "no signature place is configured")))
    }

    fn required(&self, facts: &Facts<'_>, body: Option<Body<'_>>) -> Result<(), Reject> {
        self.require.iter().filter(|required| required.place.in_head() || body.is_some()).try_for_each(|required| required.check(facts, body))
    }

    fn time(&self, timestamp: &Timestamp, facts: &Facts<'_>, body: Option<Body<'_>>, now_ms: i64) -> Result<i64, Reject> {
        let text =
            timestamp.place.value(facts, body)?.ok_or_else(|| Reject::new(Reason::TimestampMissing, format!("{} is missing or empty", timestamp.place)))?;
        timestamp.judge(&text, now_ms)
    }
}

impl BodyDigest {
    fn check(&self, facts: &Facts<'_>, chunks: &Chunks, body: Option<Body<'_>>) -> Result<(), Reject> {
        let text = self
            .place
            .value(facts, body)?
            .ok_or_else(|| Reject::new(Reason::SignatureMissing, format!("{}, the body's digest, is missing or empty", self.place)))?;
        let given = self
            .encoding
            .decode_tag(&text, self.algorithm.len())
            .ok_or_else(|| Reject::new(Reason::SignatureMalformed, format!("{}, the body's digest, cannot be read", self.place)))?;
        let mut digest = Mac::digest(self.algorithm);
        chunks.pieces().for_each(|piece| digest.update(piece));
        if digest.finish().matches(&given).into() {
            return Ok(());
        }
        Err(Reject::new(Reason::SignatureMismatch, format!("the body does not have the digest that {} names", self.place)))
    }
}

fn digests(chunks: &Chunks) -> ([u8; 32], u32) {
    let (mut sha, mut crc) = (Sha256::new(), crc32fast::Hasher::new());
    for piece in chunks.pieces() {
        sha.update(piece);
        crc.update(piece);
    }
    (sha.finalize().into(), crc.finalize())
}

/// Which comparison hit, found without telling by time.
struct Verdict {
    hit: u32,
    tag: Tag,
    any: Choice,
}

impl Default for Verdict {
    fn default() -> Self {
        Self { hit: 0, tag: Tag::new(&[]), any: Choice::from(0) }
    }
}

impl Verdict {
    /// Compares one computed value, made by the key `at`, with every presented one that may belong to it.
    fn weigh(&mut self, computed: Tag, at: usize, place: Option<usize>, given: &Given) {
        let mut compare = |tag: &Tag, from: usize| {
            if place.is_none_or(|place| place == from) {
                let equal = computed.matches(tag);
                let first = equal & !self.any;
                self.hit.conditional_assign(&u32::try_from(at).unwrap_or(0), first);
                self.tag.assign_if(&computed, first);
                self.any |= equal;
            }
        };
        match given {
            Given::One(tag, from) => compare(tag, *from),
            Given::Many(many) => many.iter().for_each(|(tag, from)| compare(tag, *from)),
            Given::Later => {}
        }
    }

    fn hit(&self) -> Option<(usize, &Tag)> {
        bool::from(self.any).then_some((self.hit as usize, &self.tag))
    }
}
