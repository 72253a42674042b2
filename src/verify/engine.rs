//! What the schemes over templates share (`hmac`, `hash`, `ed25519`, `ecdsa`, `rsa`, `standard-webhooks`): a signature over a template,
//! by one of several keys.
//!
//! The head of a request decides what it can (missing, malformed, stale), then the bytes of the body go straight into the running
//! MACs, one for each secret that still counts and each template; for public keys into one digest for each template. A template that
//! needs fields of the body waits for the whole of it, and so does Ed25519, which signs the message and not its digest.
//! Every computed MAC is compared with every presented one in constant time, without an early end. Public keys hide nothing: the
//! first that verifies ends the search.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable};
use zeroize::Zeroizing;

use super::{
    Facts,
    key::KeyForm,
    mac::{Algorithm, Encoding, Mac, Tag},
    place::{At, Body, MAX_SIGNATURES, Pick, Place, Required},
    public_key::{self, PublicKey, Trusted},
    template::{Render, Shown, Template},
    timestamp::Timestamp,
};
use crate::{
    event::{Chunks, Verification},
    keys::{Document, Found, Settings, Source, Want},
    reject::{Reason, Reject},
    secret::Secret,
};

/// The most secrets of one route, and the most public keys.
pub(super) const MAX_SECRETS: usize = 16;

/// The most signatures of key pairs in one request: each is tried with every key, which costs far more than a comparison.
const MAX_PUBLIC_SIGNATURES: usize = 8;

/// The longest signature of a key pair, in bytes: that of RSA with 8192 bits.
const MAX_PUBLIC_SIGNATURE: usize = 1024;

/// A signature scheme as its definition says it; holds no secret.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    /// A plain digest over a template with `{secret}` in it, instead of an HMAC.
    pub(super) plain_hash: bool,
    /// Of the MAC or digest; of what a key pair signs, where [`Recipe::public`] is set.
    pub(super) algorithm: Algorithm,
    pub(super) key: KeyForm,
    /// How the sender's key pair signs, where it has one.
    pub(super) public: Option<public_key::Algorithm>,
    /// Where its public keys are published.
    pub(super) keys: Option<Settings>,
    /// What names the key that signed; it stands in the head.
    pub(super) key_id: Option<Place>,
    pub(super) signatures: Vec<Signature>,
    pub(super) timestamp: Option<Timestamp>,
    /// Several: any may match.
    pub(super) signed: Vec<Template>,
    /// What must have a value.
    pub(super) require: Vec<Required>,
    pub(super) body_digest: Option<BodyDigest>,
}

/// Where a signature stands. Where there are several places, each belongs to one secret or public key.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    pub(super) place: Place,
    pub(super) encoding: Encoding,
    /// The label of the secret it belongs to; without one the first place belongs to the first secret, and so on.
    pub(super) secret: Option<String>,
    /// Whether a key pair made it, and not a shared secret.
    pub(super) public: bool,
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
    public: Vec<Public>,
    source: Option<Arc<Source>>,
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

/// A public key that may have signed.
struct Public {
    label: Arc<str>,
    not_after: Option<i64>,
    key: PublicKey,
    place: Option<usize>,
}

/// The label of published keys: they have none of the policy's.
pub(super) const PUBLISHED: &str = "keys";

/// The keys of a document that serve the algorithm and have the id, or none of their own.
fn matching(document: &Document, algorithm: public_key::Algorithm, id: &str) -> Vec<PublicKey> {
    let named = |key: &&PublicKey| id.is_empty() || key.kid.as_deref().is_none_or(|kid| kid == id);
    document.keys().iter().filter(|key| key.serves(algorithm)).filter(named).take(MAX_SECRETS).cloned().collect()
}

/// A request's MACs while its body arrives.
pub(super) struct Running {
    given: Given,
    macs: Macs,
    timestamp_ms: Option<i64>,
    /// Boxed, so that requests without any carry no weight of it.
    offered: Option<Box<Offered>>,
}

/// The signatures of key pairs in a request, each with the place it belongs to, and what they sign, digested as it arrives: one for
/// each template, none where the message itself is signed or is not known before its end.
#[derive(Default)]
struct Offered {
    signatures: Vec<(Vec<u8>, usize)>,
    digests: Vec<Mac>,
}

/// The signatures of a request, each with the place it belongs to.
enum Given {
    /// The usual case, without an allocation.
    One(Tag, usize),
    Many(Vec<(Tag, usize)>),
    /// They stand in the body.
    Later,
    /// No shared secret is asked for, or only a key pair signed.
    Nothing,
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
    by: By,
}

/// What verified.
enum By {
    Secret(Tag),
    /// A key pair, over this template; and the digest that was signed, where it is a strong one. The signature itself would not do
    /// as a name of the content: ECDSA's can be rewritten by anybody.
    KeyPair(usize, Option<Tag>),
}

impl Engine {
    /// The error is for the policy's author and never shows a secret. A scheme that takes both secrets and public keys is verified by
    /// what there is.
    pub(super) fn new(mut recipe: Recipe, secrets: &[Secret], trusted: &[Trusted], source: Option<Arc<Source>>) -> Result<Self, String> {
        let source = source.filter(|_| recipe.by_key_pair());
        let key_pairs = !trusted.is_empty() || source.is_some();
        for (what, count) in [("secrets", secrets.len()), ("public keys", trusted.len())] {
            if count > MAX_SECRETS {
                return Err(format!("{count} {what} are more than {MAX_SECRETS}"));
            }
        }
        recipe.signatures.retain(|signature| if signature.public { key_pairs } else { !secrets.is_empty() });
        if recipe.signatures.is_empty() {
            return Err("nothing could be verified: there is no key of the kind that this scheme needs".to_owned());
        }
        let keep = recipe.signed.iter().any(Template::has_secret);
        let mut keys = Vec::new();
        for (at, secret) in secrets.iter().enumerate().take_while(|_| recipe.shared()) {
            let bytes = recipe.key.bytes(secret.expose()).map_err(|why| format!("secret {}: {why}", secret.label()))?;
            let start = if recipe.plain_hash { Mac::digest(recipe.algorithm) } else { Mac::hmac(recipe.algorithm, &bytes) };
            let place = recipe.place_of("secret", false, secret.label(), at)?;
            keys.push(Key { label: secret.label().clone(), not_after: secret.not_after(), start, bytes: keep.then_some(bytes), place });
        }
        let mut public: Vec<Public> = Vec::new();
        if let Some(algorithm) = recipe.public {
            for (at, Trusted { label, not_after, key }) in trusted.iter().enumerate() {
                if key.serves(algorithm) {
                    let place = recipe.place_of("public key", true, label, at)?;
                    public.push(Public { label: label.clone(), not_after: *not_after, key: key.clone(), place });
                } else if !trusted.iter().any(|other| other.label == *label && other.key.serves(algorithm)) {
                    return Err(format!("public key {label} is {}, which does not verify {algorithm}, which this scheme signs by", key.describe()));
                }
            }
        }
        let in_head = recipe.signatures.iter().all(|s| s.place.in_head())
            && recipe.timestamp.as_ref().is_none_or(|t| t.place.in_head() || !recipe.signed.iter().any(Template::has_timestamp));
        let streams = in_head && recipe.signed.iter().all(Template::streams);
        Ok(Self { recipe, keys, public, source, streams })
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
        let in_head = recipe.signatures.iter().all(|s| s.place.in_head());
        let (given, mut offered) = if in_head { recipe.presented(facts, None)? } else { (Given::Later, None) };
        recipe.required(facts, None)?;
        let timestamp_ms = match &recipe.timestamp {
            Some(timestamp) if timestamp.place.in_head() => Some(recipe.time(timestamp, facts, None, now_ms)?),
            _ => None,
        };
        if !self.streams {
            return Ok(Running { given, macs: Macs::Later, timestamp_ms, offered });
        }
        let active = || self.keys.iter().enumerate().filter(|(_, key)| key.counts(now_ms));
        let macs = if matches!(given, Given::Nothing) {
            Macs::Many(Vec::new())
        } else if recipe.signed.len() == 1 && self.keys.len() == 1 {
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
        if let Some(offered) = &mut offered
            && let Some(hash) = recipe.digested()
        {
            for template in &recipe.signed {
                let mut digest = Mac::digest(hash);
                template.head(&self.render(facts, None, None), &mut |bytes| digest.update(bytes))?;
                offered.digests.push(digest);
            }
        }
        Ok(Running { given, macs, timestamp_ms, offered })
    }

    fn head(&self, template: &Template, key: &Key, facts: &Facts<'_>) -> Result<Mac, Reject> {
        let mut mac = key.start.clone();
        template.head(&self.render(facts, None, key.secret()), &mut |bytes| mac.update(bytes))?;
        Ok(mac)
    }

    fn render<'a>(&'a self, facts: &'a Facts<'a>, body: Option<Body<'a>>, secret: Option<&'a [u8]>) -> Render<'a> {
        Render { facts, body, timestamp: self.recipe.timestamp.as_ref(), secret, digest: None }
    }

    /// Judges the whole request. `body` is there where [`Engine::needs_fields`] says so.
    pub(super) fn finish(&self, running: Running, facts: &Facts<'_>, chunks: &Chunks, body: Option<Body<'_>>, now_ms: i64) -> Result<Matched, Reject> {
        let recipe = &self.recipe;
        let (given, offered) = match running.given {
            Given::Later => recipe.presented(facts, body)?,
            given => (given, running.offered),
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
                        template.all(&Render { digest, ..self.render(facts, body, key.secret()) }, &mut |bytes| mac.update(bytes))?;
                        verdict.weigh(mac.finish(), at, key.place, &given);
                    }
                }
            }
        }
        let matched = match (verdict.hit(), offered) {
            (Some((at, tag)), _) => Some((self.keys[at].label.clone(), By::Secret(*tag))),
            (None, Some(offered)) => self.try_keys(*offered, facts, chunks, body, now_ms)?,
            (None, None) => None,
        };
        let (label, by) = matched.ok_or_else(|| Reject::new(Reason::SignatureMismatch, recipe.mismatch()))?;
        if let Some(digest) = &recipe.body_digest {
            digest.check(facts, chunks, body)?;
        }
        Ok(Matched { label, timestamp_ms, by })
    }

    /// The first public key that made one of the signatures.
    fn try_keys(&self, offered: Offered, facts: &Facts<'_>, chunks: &Chunks, body: Option<Body<'_>>, now_ms: i64) -> Result<Option<(Arc<str>, By)>, Reject> {
        let Some(algorithm) = self.recipe.public else { return Ok(None) };
        let published = self.published(algorithm, facts)?;
        let mut running = offered.digests.into_iter();
        for (at, template) in self.recipe.signed.iter().enumerate() {
            let (digest, message) = match (self.recipe.digested(), running.next()) {
                (Some(_), Some(mut digest)) => {
                    template.tail(&self.render(facts, None, None), &mut |bytes| digest.update(bytes))?;
                    (Some(digest.finish()), Vec::new())
                }
                (Some(hash), None) => {
                    let mut digest = Mac::digest(hash);
                    self.message(template, facts, chunks, body, &mut |bytes| digest.update(bytes))?;
                    (Some(digest.finish()), Vec::new())
                }
                (None, _) => {
                    let mut message = Vec::with_capacity(chunks.len() + 128);
                    self.message(template, facts, chunks, body, &mut |bytes| message.extend_from_slice(bytes))?;
                    (None, message)
                }
            };
            let verifies = |key: &PublicKey, signature: &[u8]| match &digest {
                Some(digest) => key.verify_digest(algorithm, digest.as_slice(), signature),
                None => key.verify(algorithm, &message, signature),
            };
            let by = By::KeyPair(at, digest.filter(|_| self.recipe.algorithm != Algorithm::Sha1));
            for (signature, from) in &offered.signatures {
                let mut active = self.public.iter().filter(|key| key.counts(now_ms) && key.place.is_none_or(|place| place == *from));
                if let Some(key) = active.find(|key| verifies(&key.key, signature)) {
                    return Ok(Some((key.label.clone(), by)));
                }
                if published.iter().any(|key| verifies(key, signature)) {
                    return Ok(Some((PUBLISHED.into(), by)));
                }
            }
        }
        Ok(None)
    }

    /// The id of the key that signed; empty where the request names none.
    fn key_id(&self, facts: &Facts<'_>) -> Result<String, Reject> {
        let Some(place) = &self.recipe.key_id else { return Ok(String::new()) };
        let id = place.value(facts, None)?.ok_or_else(|| Reject::new(Reason::SignatureMalformed, format!("{place}, the key's id, is missing or empty")))?;
        let good = |id: &str| id.len() <= 256 && id.bytes().all(|byte| byte.is_ascii_graphic());
        std::str::from_utf8(&id)
            .ok()
            .filter(|id| good(id))
            .map(str::to_owned)
            .ok_or_else(|| Reject::new(Reason::SignatureMalformed, format!("{place} is not a key's id")))
    }

    /// The published keys that may have signed the request.
    fn published(&self, algorithm: public_key::Algorithm, facts: &Facts<'_>) -> Result<Vec<PublicKey>, Reject> {
        let Some(source) = &self.source else { return Ok(Vec::new()) };
        let id = self.key_id(facts)?;
        match source.find(&id) {
            Found::Known(document) => Ok(matching(&document, algorithm, &id)),
            Found::Absent => Ok(Vec::new()),
            Found::Unavailable(_) if !self.public.is_empty() => Ok(Vec::new()),
            Found::Unavailable(why) => Err(Reject::new(Reason::KeysUnavailable, why)),
        }
    }

    /// The published keys that a request is to be judged with, where they are not at hand.
    pub(super) fn wants(&self, facts: &Facts<'_>) -> Option<Want> {
        let (source, algorithm) = (self.source.as_ref()?, self.recipe.public?);
        let id = self.key_id(facts).ok()?;
        source.want(&id, &|document| !matching(document, algorithm, &id).is_empty())
    }

    pub(super) fn source(&self) -> Option<&Arc<Source>> {
        self.source.as_ref()
    }

    /// What a template signs, in pieces.
    pub(super) fn message(
        &self,
        template: &Template,
        facts: &Facts<'_>,
        chunks: &Chunks,
        body: Option<Body<'_>>,
        put: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Reject> {
        let digest = template.needs_body_digest().then(|| digests(chunks));
        // A secret is told from no other by what it signs.
        let render = Render { digest, ..self.render(facts, body, Some(b"")) };
        template.head(&render, put)?;
        if template.has_body() {
            chunks.pieces().for_each(|piece| put(piece));
            template.tail(&render, put)?;
        }
        Ok(())
    }

    /// A digest that tells what was signed from anything else that may be signed; it is not usable as a signature.
    pub(super) fn content(&self, matched: &Matched, facts: &Facts<'_>, chunks: &Chunks, body: Option<Body<'_>>) -> Result<[u8; 32], Reject> {
        let digested = |tag: &Tag| Sha256::new().chain_update(b"hooklatch content\0").chain_update(tag.as_slice()).finalize().into();
        let template = match &matched.by {
            // The MAC itself stands for what it signs; hashed, so that a stored key is never a usable one.
            By::Secret(tag) if !self.recipe.several() => return Ok(digested(tag)),
            // One signature of several could be taken away; what they all sign could not.
            By::Secret(_) => 0,
            By::KeyPair(_, Some(digest)) => return Ok(digested(digest)),
            By::KeyPair(template, None) => *template,
        };
        let mut hash = Sha256::new();
        self.message(&self.recipe.signed[template], facts, chunks, body, &mut |bytes| hash.update(bytes))?;
        Ok(hash.finalize().into())
    }

    /// Whether `is` holds of what a matched signature stands for, by any of the templates; longer texts than `most` bytes are passed over.
    pub(super) fn signs(
        &self,
        matched: &Matched,
        facts: &Facts<'_>,
        chunks: &Chunks,
        body: Option<Body<'_>>,
        most: usize,
        is: &dyn Fn(&[u8]) -> bool,
    ) -> Result<bool, Reject> {
        if matches!(matched.by, By::KeyPair(..)) {
            return Ok(false); // a MAC is no signature by a key pair
        }
        for template in self.recipe.signed.iter().filter(|template| !template.has_body() || chunks.len() <= most) {
            let mut text = Vec::new();
            self.message(template, facts, chunks, body, &mut |bytes| {
                // One byte too many says that it is too long; what is signed may be longer than anybody wants to keep.
                let room = (most + 1).saturating_sub(text.len());
                text.extend_from_slice(&bytes[..bytes.len().min(room)]);
            })?;
            if text.len() <= most && is(&text) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The signature that the key `at` gives a request, by the first template: for sending.
    pub(super) fn compute(&self, facts: &Facts<'_>, chunks: &Chunks, body: Option<Body<'_>>, at: usize) -> Result<Tag, Reject> {
        let (template, key) = (&self.recipe.signed[0], self.keys.get(at));
        let key = key.ok_or_else(|| Reject::new(Reason::SignatureMismatch, "a scheme of key pairs signs with the sender's private key"))?;
        let digest = template.needs_body_digest().then(|| digests(chunks));
        let mut mac = key.start.clone();
        template.all(&Render { digest, ..self.render(facts, body, key.secret()) }, &mut |bytes| mac.update(bytes))?;
        Ok(mac.finish())
    }

    /// The signatures that would be right, by every template and key: for telling what is wrong with the one that came. Never shown.
    pub(super) fn every(&self, facts: &Facts<'_>, chunks: &Chunks, body: Body<'_>) -> Vec<Tag> {
        let mut all = Vec::new();
        for template in &self.recipe.signed {
            let digest = template.needs_body_digest().then(|| digests(chunks));
            for key in &self.keys {
                let mut mac = key.start.clone();
                let render = Render { digest, ..self.render(facts, Some(body), key.secret()) };
                if template.all(&render, &mut |bytes| mac.update(bytes)).is_ok() {
                    all.push(mac.finish());
                }
            }
        }
        all
    }

    /// What is signed, part by part, for people; the secret is no part of it. Nothing where the request lacks a part.
    pub(super) fn account(
        &self,
        template: &Template,
        facts: &Facts<'_>,
        chunks: &Chunks,
        body: Body<'_>,
        put: &mut dyn FnMut(Shown, &[u8]),
    ) -> Result<(), Reject> {
        let digest = template.needs_body_digest().then(|| digests(chunks));
        let render = Render { facts, body: Some(body), timestamp: self.recipe.timestamp.as_ref(), secret: Some(b""), digest };
        template.each(&render, put)
    }

    /// The signature place of the key `at`.
    pub(super) fn place_of(&self, at: usize) -> usize {
        self.keys[at].place.unwrap_or(0)
    }

    fn tail(&self, template: &Template, mut mac: Mac, at: usize, facts: &Facts<'_>) -> Result<Tag, Reject> {
        template.tail(&self.render(facts, None, self.keys[at].secret()), &mut |bytes| mac.update(bytes))?;
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
        if let Some(offered) = &mut self.offered {
            for (digest, template) in offered.digests.iter_mut().zip(&recipe.signed) {
                if template.has_body() {
                    digest.update(bytes);
                }
            }
        }
    }
}

impl Key {
    fn counts(&self, now_ms: i64) -> bool {
        self.not_after.is_none_or(|last| now_ms <= last)
    }

    fn secret(&self) -> Option<&[u8]> {
        self.bytes.as_deref().map(Vec::as_slice)
    }
}

impl Public {
    fn counts(&self, now_ms: i64) -> bool {
        self.not_after.is_none_or(|last| now_ms <= last)
    }
}

impl Recipe {
    /// Whether shared secrets sign.
    pub(super) fn shared(&self) -> bool {
        self.signatures.iter().any(|signature| !signature.public)
    }

    /// Whether key pairs sign.
    pub(super) fn by_key_pair(&self) -> bool {
        self.signatures.iter().any(|signature| signature.public)
    }

    /// The digest that key pairs sign; `None` where they sign the message itself.
    fn digested(&self) -> Option<Algorithm> {
        self.public.and_then(public_key::Algorithm::hash).map(Algorithm::from)
    }

    fn mismatch(&self) -> &'static str {
        match (self.shared(), self.by_key_pair()) {
            (true, false) => "no configured secret gives this signature",
            (false, _) => "no configured public key verifies this signature",
            (true, true) => "no configured secret gives this signature and no public key verifies it",
        }
    }

    /// Which of several places a secret or a public key belongs to; `None` where there is one for all.
    fn place_of(&self, what: &str, public: bool, label: &str, at: usize) -> Result<Option<usize>, String> {
        let places: Vec<(usize, &Signature)> = self.signatures.iter().enumerate().filter(|(_, signature)| signature.public == public).collect();
        if places.len() < 2 {
            return Ok(None);
        }
        let by_label = places.iter().find(|(_, signature)| signature.secret.as_deref() == Some(label));
        let found = by_label.or_else(|| places.get(at).filter(|(_, signature)| signature.secret.is_none()));
        found.map(|(index, _)| Some(*index)).ok_or_else(|| {
            let names: Vec<String> = places.iter().map(|(_, s)| s.secret.clone().unwrap_or_else(|| s.place.to_string())).collect();
            format!("{what} {label} belongs to no signature: there are {} places ({}), one for each {what}", names.len(), names.join(", "))
        })
    }

    /// Whether a signature made for the other is good here too, given one secret: the same text is signed in the same way, stands in
    /// the same place, and does not name the path.
    pub(super) fn is_proof_for(&self, other: &Self) -> bool {
        (self.plain_hash, self.algorithm, &self.key, self.public) == (other.plain_hash, other.algorithm, &other.key, other.public)
            && self.signatures.iter().any(|mine| other.signatures.iter().any(|theirs| (&mine.place, mine.encoding) == (&theirs.place, theirs.encoding)))
            && self.signed.iter().any(|mine| !mine.covers_path() && other.signed.contains(mine))
    }

    /// Whether one request may carry several signatures.
    pub(super) fn several(&self) -> bool {
        self.signatures.len() > 1
            || self.signatures.iter().any(|s| matches!(s.place.pick, Pick::Pairs { .. } | Pick::List { .. }) || matches!(s.place.at, At::Numbered(_)))
    }

    pub(super) fn verification(&self) -> Verification {
        if self.body_digest.is_some() || self.signed.iter().all(Template::covers_body) { Verification::Content } else { Verification::Sender }
    }

    /// The signatures that a request carries: of shared secrets, and of key pairs. Where both count, either is enough.
    fn presented(&self, facts: &Facts<'_>, body: Option<Body<'_>>) -> Result<(Given, Option<Box<Offered>>), Reject> {
        let Some(algorithm) = self.public.filter(|_| self.by_key_pair()) else { return Ok((self.given(facts, body)?, None)) };
        let offered = self.offered(algorithm, facts, body);
        if !self.shared() {
            return Ok((Given::Nothing, Some(offered?)));
        }
        match (self.given(facts, body), offered) {
            (Ok(given), offered) => Ok((given, offered.ok())),
            (Err(_), Ok(offered)) => Ok((Given::Nothing, Some(offered))),
            (Err(why), Err(other)) => Err(if why.reason == Reason::SignatureMissing { other } else { why }),
        }
    }

    fn given(&self, facts: &Facts<'_>, body: Option<Body<'_>>) -> Result<Given, Reject> {
        let mut given: Option<Given> = None;
        let mut missing = None;
        for (at, signature) in self.signatures.iter().enumerate().filter(|(_, signature)| !signature.public) {
            let decode = |text: &[u8]| signature.encoding.decode_tag(text, self.algorithm.len());
            let found = signature.place.signatures(facts, body, decode, &mut |tag| {
                given = Some(match given.take() {
                    None => Given::One(tag, at),
                    Some(Given::One(first, place)) => Given::Many(vec![(first, place), (tag, at)]),
                    Some(Given::Many(mut many)) => {
                        many.push((tag, at));
                        Given::Many(many)
                    }
                    Some(other) => other,
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

    fn offered(&self, algorithm: public_key::Algorithm, facts: &Facts<'_>, body: Option<Body<'_>>) -> Result<Box<Offered>, Reject> {
        let mut offered = Box::<Offered>::default();
        let mut missing = None;
        let len = algorithm.signature_len();
        for (at, signature) in self.signatures.iter().enumerate().filter(|(_, signature)| signature.public) {
            let decode = |text: &[u8]| {
                let bytes = signature.encoding.decode_signature(text, MAX_PUBLIC_SIGNATURE)?;
                len.is_none_or(|len| len == bytes.len()).then_some(bytes)
            };
            let found = signature.place.signatures(facts, body, decode, &mut |bytes| {
                offered.signatures.push((bytes, at));
                offered.signatures.len() <= MAX_PUBLIC_SIGNATURES
            });
            match found {
                Err(reject) if reject.reason == Reason::SignatureMissing => missing = missing.or(Some(reject)),
                other => other?,
            }
        }
        match missing {
            Some(missing) if offered.signatures.is_empty() => Err(missing),
            _ => Ok(offered),
        }
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
            Given::Later | Given::Nothing => {}
        }
    }

    fn hit(&self) -> Option<(usize, &Tag)> {
        bool::from(self.any).then_some((self.hit as usize, &self.tag))
    }
}
