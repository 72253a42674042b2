//! JSON Web Tokens: the token is the signature. Source: RFC 7515, 7518, 7519, 8037.
//!
//! The algorithms come from the definition, never from the token; HMAC algorithms only ever see secrets, the others only public keys.
//! Times are judged by the gate's clock. The three parts are cut here, because one provider writes its first two in plain base64, and
//! a library's own idea of keys and clocks would stand beside ours; every primitive is that of `mac.rs` and `public_key.rs`.

use std::{sync::Arc, time::Duration};

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL_NOPAD};
use http::{HeaderName, header::AUTHORIZATION};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{
    Facts, Means,
    cases::Request,
    claims::Claims,
    definition::{Context, Method, Scheme},
    engine::{MAX_SECRETS, PUBLISHED},
    hmac,
    judge::{Held, Judge, Rule},
    key::KeyForm,
    mac::{self, Mac, Tag},
    place::{self, Place},
    public_key::{self, Curve, Hash, Layout, Padding, PublicKey, Trusted},
    token,
};
use crate::{
    event::{Chunks, Verification},
    keys::{Document, Found, Settings, Source, Want},
    reject::{Reason, Reject},
    section::Section,
    validate::json,
};

pub(super) static SCHEME: Scheme = Scheme { name: "jwt", about: "a JSON Web Token, by a shared secret or the issuer's keys", read: Some(read) };

/// The longest token.
const MAX_TOKEN: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Hmac(mac::Algorithm),
    Public(public_key::Algorithm),
}

static ALGORITHMS: &[(&str, Algorithm)] = &[
    ("HS256", Algorithm::Hmac(mac::Algorithm::Sha256)),
    ("HS384", Algorithm::Hmac(mac::Algorithm::Sha384)),
    ("HS512", Algorithm::Hmac(mac::Algorithm::Sha512)),
    ("RS256", Algorithm::Public(public_key::Algorithm::Rsa(Hash::Sha256, Padding::Pkcs1))),
    ("RS384", Algorithm::Public(public_key::Algorithm::Rsa(Hash::Sha384, Padding::Pkcs1))),
    ("RS512", Algorithm::Public(public_key::Algorithm::Rsa(Hash::Sha512, Padding::Pkcs1))),
    ("PS256", Algorithm::Public(public_key::Algorithm::Rsa(Hash::Sha256, Padding::Pss))),
    ("PS384", Algorithm::Public(public_key::Algorithm::Rsa(Hash::Sha384, Padding::Pss))),
    ("PS512", Algorithm::Public(public_key::Algorithm::Rsa(Hash::Sha512, Padding::Pss))),
    ("ES256", Algorithm::Public(public_key::Algorithm::Ecdsa(Curve::P256, Layout::Raw))),
    ("ES384", Algorithm::Public(public_key::Algorithm::Ecdsa(Curve::P384, Layout::Raw))),
    ("EdDSA", Algorithm::Public(public_key::Algorithm::Ed25519)),
];

/// Where the token stands.
#[derive(Clone, Debug)]
enum At {
    Head(Place),
    /// The whole body is the token.
    Body,
}

#[derive(Clone, Debug)]
struct Jwt {
    at: At,
    algorithms: Vec<(&'static str, Algorithm)>,
    key: KeyForm,
    keys: Option<Settings>,
    claims: Claims,
}

fn read(section: &Section<'_>, context: &Context<'_>) -> Option<Method> {
    let at = match section.item("signature") {
        None => {
            section.problem("signature", "`signature` is missing", "say where the token stands: signature = { header = \"…\" }, or \"body\"");
            None
        }
        Some(item) if item.as_str() == Some("body") => Some(At::Body),
        Some(item) => item.section().and_then(|table| {
            let place = Place::read(&table, context.pointers, None);
            table.finish();
            let place = place?;
            if !place.in_head() {
                item.problem("a token stands in a header or a query parameter, or is the whole body", "");
                return None;
            }
            Some(At::Head(place))
        }),
    };
    let algorithms = section.item("algorithms").map(|item| {
        let words: Vec<(&str, (&'static str, Algorithm))> = ALGORITHMS.iter().map(|pair| (pair.0, *pair)).collect();
        item.items().unwrap_or_default().iter().map(|item| item.choice(&words)).collect::<Option<Vec<_>>>()
    });
    let Some(algorithms) = algorithms else {
        section.problem("algorithms", "`algorithms` is missing", "name those that the issuer uses, such as [\"RS256\"]: a token must not choose");
        return None;
    };
    let key = section.opt_section("key").map(|table| {
        let key = KeyForm::read(&table);
        table.finish();
        key
    });
    let keys = section.item("keys").map(|item| Settings::read(&item));
    let claims = Claims::read(section);
    let keys = match keys {
        Some(read) => Some(read?),
        None => None,
    };
    let (at, algorithms, claims) = (at?, algorithms?, claims?);
    if algorithms.is_empty() {
        section.problem("algorithms", "`algorithms` is empty", "name those that the issuer uses, such as [\"RS256\"]");
        return None;
    }
    Some(Method::Own(Arc::new(Jwt { at, algorithms, key: key.unwrap_or_default(), keys, claims })))
}

impl Jwt {
    fn symmetric(&self) -> bool {
        self.algorithms.iter().any(|(_, algorithm)| matches!(algorithm, Algorithm::Hmac(_)))
    }
}

impl Rule for Jwt {
    fn bind(&self, means: &Means<'_>) -> Result<Box<dyn Judge>, String> {
        if means.secrets.len() > MAX_SECRETS {
            return Err(format!("{} secrets are more than {MAX_SECRETS}", means.secrets.len()));
        }
        let mut secrets = Vec::new();
        if self.symmetric() {
            for secret in means.secrets {
                let bytes = self.key.bytes(secret.expose()).map_err(|why| format!("secret {}: {why}", secret.label()))?;
                secrets.push(Keyed { label: secret.label().clone(), not_after: secret.not_after(), bytes });
            }
        }
        // Keys that a route pins stand instead of those that the issuer publishes.
        let published = self.keys.clone().filter(|_| means.public_keys.is_empty());
        let source = means.source(published.as_ref()).filter(|_| self.takes_public_keys());
        let pinned = if self.takes_public_keys() { means.public_keys.to_vec() } else { Vec::new() };
        if secrets.is_empty() && source.is_none() && pinned.is_empty() {
            return Err("there is nothing to verify its tokens with: name the issuer's `keys`".to_owned());
        }
        Ok(Box::new(Bound { rule: Self { claims: self.claims.bind(means.params, means.tolerance), ..self.clone() }, secrets, pinned, source }))
    }

    fn verification(&self) -> Verification {
        if self.claims.cover_body() || matches!(self.at, At::Body) { Verification::Content } else { Verification::Sender }
    }

    fn needs_secret(&self, own_keys: bool) -> bool {
        self.algorithms.iter().all(|(_, algorithm)| matches!(algorithm, Algorithm::Hmac(_)))
            || (!own_keys && self.keys.as_ref().is_some_and(Settings::needs_secret))
    }

    fn takes_public_keys(&self) -> bool {
        self.algorithms.iter().any(|(_, algorithm)| matches!(algorithm, Algorithm::Public(_)))
    }

    fn publishes_keys(&self) -> bool {
        self.keys.is_some() || self.symmetric()
    }

    fn needs_keys(&self) -> bool {
        !self.symmetric() && self.keys.is_none()
    }

    fn signs(&self) -> bool {
        self.symmetric() && matches!(self.at, At::Head(_))
    }

    fn names_id(&self) -> bool {
        self.claims.name_id()
    }
}

/// A shared secret, for the HMAC algorithms.
struct Keyed {
    label: Arc<str>,
    not_after: Option<i64>,
    bytes: Zeroizing<Vec<u8>>,
}

struct Bound {
    rule: Jwt,
    secrets: Vec<Keyed>,
    pinned: Vec<Trusted>,
    source: Option<Arc<Source>>,
}

/// A token, cut and read; nothing of it is proven.
struct Token {
    /// Where the signed text ends.
    signed: usize,
    text: Vec<u8>,
    algorithm: Algorithm,
    kid: Option<String>,
    claims: Map<String, Value>,
    signature: Vec<u8>,
}

impl Bound {
    fn text(&self, facts: &Facts<'_>, body: &Chunks) -> Result<Vec<u8>, Reject> {
        match &self.rule.at {
            At::Body => Ok(body.to_bytes().trim_ascii().to_vec()),
            At::Head(place) => match token::credential(place, facts)? {
                Some(text) => Ok(text.into_owned()),
                None => Err(place.missing()),
            },
        }
    }

    fn token(&self, facts: &Facts<'_>, body: &Chunks) -> Result<Token, Reject> {
        let text = self.text(facts, body)?;
        cut(text, &self.rule.algorithms).map_err(|what| Reject::new(Reason::SignatureMalformed, what))
    }

    /// Whether a document has a key for the token.
    fn serves(document: &Document, token: &Token) -> bool {
        !candidates(document, token).is_empty()
    }

    /// The label of what verified it.
    fn proves(&self, token: &Token, now_ms: i64) -> Result<Arc<str>, Reject> {
        let message = &token.text[..token.signed];
        let mismatch = |what: &'static str| Err(Reject::new(Reason::SignatureMismatch, what));
        let algorithm = match token.algorithm {
            Algorithm::Hmac(algorithm) => {
                let mut hit = None;
                for secret in self.secrets.iter().filter(|secret| secret.not_after.is_none_or(|last| now_ms <= last)) {
                    let mut mac = Mac::hmac(algorithm, &secret.bytes);
                    mac.update(message);
                    if token.signature.len() == algorithm.len() && bool::from(mac.finish().matches(&Tag::new(&token.signature))) {
                        hit = hit.or(Some(&secret.label));
                    }
                }
                return match hit {
                    Some(label) => Ok(label.clone()),
                    None => mismatch("no configured secret gives the token's signature"),
                };
            }
            Algorithm::Public(algorithm) => algorithm,
        };
        let counts = |key: &&Trusted| key.not_after.is_none_or(|last| now_ms <= last);
        if let Some(key) =
            self.pinned.iter().filter(counts).find(|trusted| token.may_be_of(&trusted.key) && trusted.key.verify(algorithm, message, &token.signature))
        {
            return Ok(key.label.clone());
        }
        let Some(source) = &self.source else { return mismatch("no configured public key gives the token's signature") };
        let document = match source.find(token.kid.as_deref().unwrap_or_default()) {
            Found::Known(document) => document,
            Found::Absent => return mismatch("the issuer has no key of the token's `kid`"),
            Found::Unavailable(why) => return Err(Reject::new(Reason::KeysUnavailable, why)),
        };
        let keys = candidates(&document, token);
        if keys.iter().any(|key| key.verify(algorithm, message, &token.signature)) {
            return Ok(PUBLISHED.into());
        }
        mismatch(if !keys.is_empty() {
            "the token's signature is not that of the issuer's key"
        } else {
            "the issuer has no key of the token's `kid` and algorithm"
        })
    }
}

/// The keys of a document that may have signed the token: those of its `kid`, or all where it names none.
fn candidates(document: &Document, token: &Token) -> Vec<PublicKey> {
    document.keys().iter().filter(|key| token.may_be_of(key)).take(MAX_SECRETS).cloned().collect()
}

impl Token {
    fn may_be_of(&self, key: &PublicKey) -> bool {
        let named = !matches!((&self.kid, &key.kid), (Some(wanted), Some(has)) if wanted != has);
        named && matches!(self.algorithm, Algorithm::Public(algorithm) if key.serves(algorithm))
    }
}

/// Cuts a token in JWS compact form whose algorithm is among those allowed.
fn cut(text: Vec<u8>, allowed: &[(&'static str, Algorithm)]) -> Result<Token, String> {
    if text.len() > MAX_TOKEN {
        return Err(format!("the token has more than {MAX_TOKEN} bytes"));
    }
    let parts: Vec<&[u8]> = text.split(|byte| *byte == b'.').collect();
    let [head, payload, signature] = parts[..] else { return Err(format!("a token has three parts, this one has {}", parts.len())) };
    let head = object(head).map_err(|what| format!("the token's header {what}"))?;
    let claims = object(payload).map_err(|what| format!("the token's claims {what}"))?;
    if let Some(name) = ["crit", "b64"].into_iter().find(|name| head.contains_key(*name)) {
        return Err(format!("the token's header has `{name}`, which is not understood here"));
    }
    let named = head.get("alg").and_then(Value::as_str).unwrap_or_default();
    let Some((_, algorithm)) = allowed.iter().find(|(name, _)| *name == named) else {
        let names: Vec<&str> = allowed.iter().map(|(name, _)| *name).collect();
        return Err(format!("the token's algorithm is not {}", names.join(" or ")));
    };
    let kid = match head.get("kid") {
        None | Some(Value::Null) => None,
        Some(Value::String(kid)) if kid.len() <= 256 => Some(kid.clone()),
        Some(_) => return Err("the token's `kid` is not a text of at most 256 bytes".to_owned()),
    };
    let signature = BASE64URL_NOPAD.decode(signature).map_err(|_| "the token's signature is not base64url".to_owned())?;
    let signed = text.iter().rposition(|byte| *byte == b'.').unwrap_or(0);
    Ok(Token { signed, algorithm: *algorithm, kid, claims, signature, text })
}

/// A part as JSON. Its text is what was signed, so that plain base64 (Netlify's) may stand for base64url.
fn object(part: &[u8]) -> Result<Map<String, Value>, &'static str> {
    let bytes = BASE64URL_NOPAD.decode(part).or_else(|_| BASE64.decode(part)).or_else(|_| BASE64_NOPAD.decode(part)).map_err(|_| "is not base64url")?;
    json::check(&bytes, 16, true).map_err(|_| "is not a JSON object, or has a key twice")?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err("is not a JSON object"),
    }
}

impl Judge for Bound {
    fn stands(&self, facts: &Facts<'_>) -> bool {
        match &self.rule.at {
            At::Head(place) => place.stands(facts),
            At::Body => true,
        }
    }

    fn prepare(&self, facts: &Facts<'_>, now_ms: i64) -> Result<(), Reject> {
        if matches!(self.rule.at, At::Body) {
            return Ok(());
        }
        let token = self.token(facts, &Chunks::default())?;
        self.rule.claims.times(&token.claims, now_ms)?;
        Ok(())
    }

    fn reads_body(&self) -> bool {
        matches!(self.rule.at, At::Body)
    }

    fn wants(&self, facts: &Facts<'_>, body: &Chunks, _: i64) -> Option<Want> {
        let source = self.source.as_ref()?;
        let token = self.token(facts, body).ok().filter(|token| matches!(token.algorithm, Algorithm::Public(_)))?;
        source.want(token.kid.as_deref().unwrap_or_default(), &|document| Self::serves(document, &token))
    }

    fn finish(&self, facts: &Facts<'_>, body: &Chunks, now_ms: i64) -> Result<Held, Reject> {
        let token = self.token(facts, body)?;
        let label = self.proves(&token, now_ms)?;
        let told = self.rule.claims.check(&token.claims, facts, body, now_ms)?;
        let content = Sha256::new().chain_update(b"hooklatch jwt\0").chain_update(&token.text[..token.signed]).finalize().into();
        Ok(Held { label, timestamp_ms: told.timestamp_ms, content, id: told.id, event_type: told.event_type })
    }

    fn verification(&self) -> Verification {
        self.rule.verification()
    }

    fn attempt_window(&self) -> Option<Duration> {
        self.rule.claims.window()
    }

    fn covers_query(&self, name: &str) -> bool {
        self.rule.claims.cover_query() || matches!(&self.rule.at, At::Head(Place { at: place::At::Query(known), .. }) if known == name)
    }

    fn names_its_route(&self) -> bool {
        self.rule.claims.name_receiver()
    }

    fn credential_headers(&self) -> Vec<HeaderName> {
        // A token that does not name the body is good for any: its bearer is let in.
        match &self.rule.at {
            At::Head(place) if !self.rule.claims.cover_body() => hmac::header_of(place).cloned().into_iter().collect(),
            At::Head(Place { at: place::At::Header(name), .. }) if *name == AUTHORIZATION => vec![AUTHORIZATION],
            At::Head(_) | At::Body => Vec::new(),
        }
    }

    fn weaknesses(&self) -> Vec<(&'static str, &'static str)> {
        let mut said = Vec::new();
        if self.rule.verification() == Verification::Sender {
            said.push(("its tokens prove who sent a request and nothing about the body", "guard the route with `allow_ips` or `client_cert` as well"));
        }
        if !self.rule.claims.name_receiver() && self.secrets.is_empty() && self.rule.verification() == Verification::Sender {
            said.push(("its tokens are not bound to this receiver: one that was meant for another is good here", "ask for an `audience` in `claims`"));
        }
        said
    }

    fn labels(&self) -> Vec<Arc<str>> {
        self.source.iter().map(|_| PUBLISHED.into()).collect()
    }

    fn headers(&self) -> Vec<HeaderName> {
        match &self.rule.at {
            At::Head(place) => hmac::header_of(place).cloned().into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn signs_head(&self) -> bool {
        self.rule.signs()
    }

    fn sign(&self, request: &mut Request, now_ms: i64, id: &str) -> Result<(), String> {
        let signer = self.rule.algorithms.iter().find_map(|(name, algorithm)| match algorithm {
            Algorithm::Hmac(algorithm) => Some((*name, *algorithm)),
            Algorithm::Public(_) => None,
        });
        let (Some((name, algorithm)), Some(secret)) = (signer, self.secrets.first()) else {
            return Err("its tokens are signed with the issuer's own key".to_owned());
        };
        let At::Head(place) = &self.rule.at else { return Err("the body itself is the token".to_owned()) };
        let claims = self.rule.claims.make(&request.facts(), &request.body, now_ms, id);
        let part = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(serde_json::json!({ "alg": name, "typ": "JWT" })), part(Value::Object(claims)));
        let mut mac = Mac::hmac(algorithm, &secret.bytes);
        mac.update(signed.as_bytes());
        let text = format!("{}{signed}.{}", place.prefix, BASE64URL_NOPAD.encode(mac.finish().as_slice()));
        let header = hmac::header_of(place).ok_or("its tokens do not stand in a header")?.clone();
        request.headers.insert(header, text.parse().map_err(|_| "the token cannot stand in a header")?);
        Ok(())
    }

    fn sources(&self) -> Vec<Arc<Source>> {
        self.source.clone().into_iter().collect()
    }
}
