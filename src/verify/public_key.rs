//! Public keys: from whatever form a provider hands one out in, to a key that verifies. Pure.
//!
//! Read are PEM (`PUBLIC KEY`, `RSA PUBLIC KEY`, `CERTIFICATE`, several in a row), JWK and JWK Set, DER (SubjectPublicKeyInfo, PKCS#1,
//! certificate) as bytes, base64 or hex, a bare Ed25519 key or elliptic curve point in base64 or hex, and Standard Webhooks' `whpk_…`.
//! Of a certificate only its key counts: nothing here judges its dates, names or issuer.
//!
//! Ed25519, ECDSA on P-256 and P-384, and RSA of 2048 to 8192 bits verify. Which algorithm a signature is judged by is said by the
//! caller, who has it from the policy or a definition: a key only says which algorithms it can serve. A private key is refused by
//! that name and never shown. Sources: RFC 5280, 7468, 7517, 7518, 8017, 8037, 8410.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, OnceLock},
};

use aws_lc_rs::{
    digest::{self, Digest},
    signature::{self, ParsedPublicKey, RsaParameters, VerificationAlgorithm},
};
use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use serde_json::Value;
use x509_parser::{
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS, OID_SIG_ED448,
        OID_SIG_ED25519, Oid,
    },
    prelude::{FromDer, X509Certificate},
    x509::SubjectPublicKeyInfo,
};

use crate::section::{Item, Section};

/// The largest text that is read as keys, in bytes.
pub(crate) const MAX_TEXT: usize = 256 * 1024;

/// The most keys of one text: key sets in use have a handful.
const MAX_KEYS: usize = 64;

/// The sizes of an RSA modulus, in bits. Shorter ones are within reach of an attacker, longer ones cost too much to verify by.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// How a signature is made, all of it: nothing is left for a request to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Ed25519,
    /// With SHA-256 on P-256, with SHA-384 on P-384.
    Ecdsa(Curve, Layout),
    Rsa(Hash, Padding),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P384,
}

/// How the two numbers of an ECDSA signature are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// ASN.1 DER, as X.509 and OpenSSL write it.
    Der,
    /// One after another at their full length (IEEE P1363), as JOSE and WebCrypto write it.
    Raw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Padding {
    /// PKCS#1 v1.5.
    Pkcs1,
    /// PSS with MGF1 over the same digest and a salt of the digest's length; not with SHA-1.
    Pss,
}

impl Algorithm {
    /// The length of its signatures in bytes, where all have one.
    pub(crate) const fn signature_len(self) -> Option<usize> {
        match self {
            Self::Ed25519 | Self::Ecdsa(Curve::P256, Layout::Raw) => Some(64),
            Self::Ecdsa(Curve::P384, Layout::Raw) => Some(96),
            Self::Ecdsa(_, Layout::Der) | Self::Rsa(..) => None,
        }
    }

    /// The digest of the message that is signed; `None` where the message itself is (Ed25519).
    pub(crate) const fn hash(self) -> Option<Hash> {
        match self {
            Self::Ed25519 => None,
            Self::Ecdsa(Curve::P256, _) => Some(Hash::Sha256),
            Self::Ecdsa(Curve::P384, _) => Some(Hash::Sha384),
            Self::Rsa(hash, _) => Some(hash),
        }
    }

    /// The library's name for it, and which of a key's slots holds the key made ready for it.
    fn engine(self) -> Option<(usize, &'static dyn VerificationAlgorithm)> {
        const PKCS1_SHA1: &RsaParameters = &signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY;
        Some(match self {
            Self::Ed25519 => (0, &signature::ED25519),
            Self::Ecdsa(Curve::P256, Layout::Der) => (0, &signature::ECDSA_P256_SHA256_ASN1),
            Self::Ecdsa(Curve::P256, Layout::Raw) => (1, &signature::ECDSA_P256_SHA256_FIXED),
            Self::Ecdsa(Curve::P384, Layout::Der) => (0, &signature::ECDSA_P384_SHA384_ASN1),
            Self::Ecdsa(Curve::P384, Layout::Raw) => (1, &signature::ECDSA_P384_SHA384_FIXED),
            Self::Rsa(Hash::Sha1, Padding::Pkcs1) => (0, PKCS1_SHA1),
            Self::Rsa(Hash::Sha256, Padding::Pkcs1) => (1, &signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rsa(Hash::Sha384, Padding::Pkcs1) => (2, &signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rsa(Hash::Sha512, Padding::Pkcs1) => (3, &signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Rsa(Hash::Sha256, Padding::Pss) => (4, &signature::RSA_PSS_2048_8192_SHA256),
            Self::Rsa(Hash::Sha384, Padding::Pss) => (5, &signature::RSA_PSS_2048_8192_SHA384),
            Self::Rsa(Hash::Sha512, Padding::Pss) => (6, &signature::RSA_PSS_2048_8192_SHA512),
            Self::Rsa(Hash::Sha1, Padding::Pss) => return None,
        })
    }

    /// Whether a JWK whose `alg` is this word may be used so.
    fn is_jose(self, name: &str) -> bool {
        match self {
            Self::Ed25519 => matches!(name, "EdDSA" | "Ed25519"),
            Self::Ecdsa(Curve::P256, _) => name == "ES256",
            Self::Ecdsa(Curve::P384, _) => name == "ES384",
            Self::Rsa(Hash::Sha256, Padding::Pkcs1) => name == "RS256",
            Self::Rsa(Hash::Sha384, Padding::Pkcs1) => name == "RS384",
            Self::Rsa(Hash::Sha512, Padding::Pkcs1) => name == "RS512",
            Self::Rsa(Hash::Sha256, Padding::Pss) => name == "PS256",
            Self::Rsa(Hash::Sha384, Padding::Pss) => name == "PS384",
            Self::Rsa(Hash::Sha512, Padding::Pss) => name == "PS512",
            Self::Rsa(Hash::Sha1, _) => false,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ed25519 => "Ed25519",
            Self::Ecdsa(Curve::P256, _) => "ECDSA P-256",
            Self::Ecdsa(Curve::P384, _) => "ECDSA P-384",
            Self::Rsa(..) => "RSA",
        })
    }
}

impl Hash {
    fn algorithm(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }
}

/// What a key can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ed25519,
    Ec(Curve),
    Rsa {
        bits: usize,
    },
    /// Of the key type id-RSASSA-PSS, which signs with no other padding (RFC 4055, 1.2).
    RsaPss {
        bits: usize,
    },
}

/// A public key. Cheap to copy; it is made ready once for each algorithm that it is used with.
#[derive(Clone)]
pub(crate) struct PublicKey {
    /// The key's name in its set.
    pub(crate) kid: Option<String>,
    /// What the key's own record says it is for; a JWK's `alg`.
    alg: Option<String>,
    inner: Arc<Inner>,
}

struct Inner {
    kind: Kind,
    /// Ed25519: the 32 bytes; elliptic curves: the point; RSA: PKCS#1 DER.
    bytes: Vec<u8>,
    ready: [OnceLock<Option<ParsedPublicKey>>; 7],
}

impl PublicKey {
    fn new(kind: Kind, bytes: &[u8]) -> Result<Self, String> {
        let key = Self { kid: None, alg: None, inner: Arc::new(Inner { kind, bytes: bytes.to_vec(), ready: Default::default() }) };
        let trial = match kind {
            Kind::Ed25519 => Algorithm::Ed25519,
            Kind::Ec(curve) => Algorithm::Ecdsa(curve, Layout::Der),
            Kind::Rsa { bits } | Kind::RsaPss { bits } => {
                if !RSA_BITS.contains(&bits) {
                    return Err(format!("an RSA key of {bits} bits; {} to {} are taken", RSA_BITS.start(), RSA_BITS.end()));
                }
                Algorithm::Rsa(Hash::Sha256, Padding::Pss)
            }
        };
        if kind == Kind::Ed25519 && small_order(bytes) {
            return Err("an Ed25519 key that anybody can sign for: a placeholder?".to_owned());
        }
        match key.ready(trial) {
            Some(_) => Ok(key),
            None => Err(format!("{} that is no valid key", key.describe())),
        }
    }

    /// 32 bytes.
    pub(crate) fn ed25519(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() != signature::ED25519_PUBLIC_KEY_LEN {
            return Err(format!("an Ed25519 key has 32 bytes, this one has {}", bytes.len()));
        }
        Self::new(Kind::Ed25519, bytes)
    }

    /// A point as SEC 1 writes it: `04`, x, y.
    fn point(curve: Curve, bytes: &[u8]) -> Result<Self, String> {
        Self::new(Kind::Ec(curve), bytes)
    }

    /// PKCS#1 `RSAPublicKey`.
    fn rsa(der: &[u8], only_pss: bool) -> Result<Self, String> {
        let bits = RsaParameters::public_modulus_len(der).map_err(|_| "an RSA key that cannot be read".to_owned())?;
        let bits = usize::try_from(bits).unwrap_or(usize::MAX);
        Self::new(if only_pss { Kind::RsaPss { bits } } else { Kind::Rsa { bits } }, der)
    }

    /// SubjectPublicKeyInfo, as `PUBLIC KEY` has it.
    pub(crate) fn from_spki(der: &[u8]) -> Result<Self, String> {
        match SubjectPublicKeyInfo::from_der(der) {
            Ok(([], spki)) => Self::of_spki(&spki),
            _ => Err("it is no SubjectPublicKeyInfo".to_owned()),
        }
    }

    /// The key of an X.509 certificate. Dates, names and issuer are the caller's to judge.
    pub(crate) fn from_certificate(der: &[u8]) -> Result<Self, String> {
        match X509Certificate::from_der(der) {
            Ok(([], certificate)) => Self::of_spki(certificate.public_key()),
            _ => Err("it is no X.509 certificate".to_owned()),
        }
    }

    fn of_spki(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, String> {
        let bytes = &*spki.subject_public_key.data;
        let (oid, parameters) = (&spki.algorithm.algorithm, spki.algorithm.parameters.as_ref());
        if *oid == OID_SIG_ED25519 {
            return Self::ed25519(bytes);
        }
        if *oid == OID_PKCS1_RSAENCRYPTION {
            return Self::rsa(bytes, false);
        }
        if *oid == OID_PKCS1_RSASSAPSS {
            return match parameters {
                None => Self::rsa(bytes, true),
                Some(_) => Err("an RSA-PSS key with restrictions of its own, which is not taken; hand it out as a plain RSA key".to_owned()),
            };
        }
        if *oid == OID_KEY_TYPE_EC_PUBLIC_KEY {
            let curve: Option<Oid<'_>> = parameters.and_then(|any| any.as_oid().ok());
            return match curve {
                Some(curve) if curve == OID_EC_P256 => Self::point(Curve::P256, bytes),
                Some(curve) if curve == OID_NIST_EC_P384 => Self::point(Curve::P384, bytes),
                Some(curve) if curve == OID_NIST_EC_P521 => Err(wrong_curve("P-521")),
                Some(curve) => Err(wrong_curve(&curve.to_id_string())),
                None => Err("an elliptic curve key that does not name its curve".to_owned()),
            };
        }
        if *oid == OID_SIG_ED448 {
            return Err(wrong_curve("Ed448"));
        }
        Err(format!("a key of the unknown type {}; Ed25519, ECDSA (P-256, P-384) and RSA are taken", oid.to_id_string()))
    }

    /// A JSON Web Key (RFC 7517): `kty` `OKP`, `EC` or `RSA`.
    pub(crate) fn from_jwk(jwk: &Value) -> Result<Self, String> {
        let Value::Object(members) = jwk else { return Err("a JWK is a JSON object".to_owned()) };
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        if ["d", "p", "q", "dp", "dq", "qi", "oth"].iter().any(|name| members.contains_key(*name)) {
            return Err(private());
        }
        let number = |name: &str| -> Result<Vec<u8>, String> {
            let written = text(name).ok_or_else(|| format!("the JWK has no `{name}`"))?;
            BASE64URL_NOPAD.decode(written.trim_end_matches('=').as_bytes()).map_err(|_| format!("the JWK's `{name}` is not base64url"))
        };
        if text("use").is_some_and(|word| word != "sig") {
            return Err("the JWK is for encryption (`use`), not for signatures".to_owned());
        }
        if members.get("key_ops").and_then(Value::as_array).is_some_and(|all| !all.iter().any(|word| word == "verify")) {
            return Err("the JWK is not for verifying (`key_ops`)".to_owned());
        }
        let mut key = match (text("kty"), text("crv")) {
            (Some("OKP"), Some("Ed25519")) => Self::ed25519(&number("x")?)?,
            (Some("EC"), Some(name @ ("P-256" | "P-384"))) => {
                let (curve, len) = if name == "P-256" { (Curve::P256, 32) } else { (Curve::P384, 48) };
                let (x, y) = (number("x")?, number("y")?);
                if x.len() != len || y.len() != len {
                    return Err(format!("the JWK's `x` and `y` have {} and {} bytes; {name} has {len} each", x.len(), y.len()));
                }
                Self::point(curve, &[&[4], &*x, &*y].concat())?
            }
            (Some("RSA"), _) => Self::rsa(&pkcs1(&number("n")?, &number("e")?), false)?,
            (Some("oct"), _) => return Err("the JWK is a shared secret (`oct`), not a public key".to_owned()),
            (Some("OKP" | "EC"), Some(curve)) => return Err(wrong_curve(curve)),
            (Some("OKP" | "EC"), None) => return Err("the JWK has no `crv`".to_owned()),
            (Some(kind), _) => return Err(format!("a JWK of the unknown type `{kind}`; OKP, EC and RSA are taken")),
            (None, _) => return Err("the JWK has no `kty`".to_owned()),
        };
        key.kid = text("kid").map(str::to_owned);
        key.alg = text("alg").map(str::to_owned);
        Ok(key)
    }

    /// Whether the key can serve the algorithm.
    pub(crate) fn serves(&self, algorithm: Algorithm) -> bool {
        self.alg.as_deref().is_none_or(|name| algorithm.is_jose(name))
            && match (self.inner.kind, algorithm) {
                (Kind::Ed25519, Algorithm::Ed25519) | (Kind::Rsa { .. }, Algorithm::Rsa(..)) | (Kind::RsaPss { .. }, Algorithm::Rsa(_, Padding::Pss)) => true,
                (Kind::Ec(mine), Algorithm::Ecdsa(curve, _)) => mine == curve,
                _ => false,
            }
    }

    fn ready(&self, algorithm: Algorithm) -> Option<&ParsedPublicKey> {
        if !self.serves(algorithm) {
            return None;
        }
        let (slot, parameters) = algorithm.engine()?;
        self.inner.ready[slot].get_or_init(|| ParsedPublicKey::new(parameters, &self.inner.bytes).ok()).as_ref()
    }

    /// Whether `signature` is this key's for `message`. A key that cannot serve the algorithm verifies nothing.
    pub(crate) fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        self.ready(algorithm).is_some_and(|key| key.verify_sig(message, signature).is_ok())
    }

    /// The same for a message that was digested as it arrived; never for Ed25519, which signs the message itself.
    pub(crate) fn verify_digest(&self, algorithm: Algorithm, digest: &[u8], signature: &[u8]) -> bool {
        let Some(hash) = algorithm.hash() else { return false };
        let Ok(digest) = Digest::import_less_safe(digest, hash.algorithm()) else { return false };
        self.ready(algorithm).is_some_and(|key| key.verify_digest_sig(&digest, signature).is_ok())
    }

    /// What it is, for messages: `an RSA key of 2048 bits`.
    pub(crate) fn describe(&self) -> String {
        match self.inner.kind {
            Kind::Ed25519 => "an Ed25519 key".to_owned(),
            Kind::Ec(Curve::P256) => "a P-256 key".to_owned(),
            Kind::Ec(Curve::P384) => "a P-384 key".to_owned(),
            Kind::Rsa { bits } => format!("an RSA key of {bits} bits"),
            Kind::RsaPss { bits } => format!("an RSA key of {bits} bits for PSS only"),
        }
    }

    /// Whether both are one key, whatever form they were read from.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.inner.kind == other.inner.kind && self.inner.bytes == other.inner.bytes
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey").field("kid", &self.kid).field("kind", &self.inner.kind).finish_non_exhaustive()
    }
}

/// A public key as a route configures it.
#[derive(Clone, Debug)]
pub(crate) struct Trusted {
    /// For metrics and the audit line: the policy's label, else `#1`, `#2` by position.
    pub(crate) label: Arc<str>,
    /// The Unix time in milliseconds after which it no longer counts.
    pub(crate) not_after: Option<i64>,
    pub(crate) key: PublicKey,
}

/// Reads `public_key` (one) or `public_keys` (several) of a table: `env:NAME`, `file:PATH`, the key itself, or `{ from, label, not_after }`.
/// Empty where there is neither. A text that holds several keys gives them all under its label.
pub(crate) fn read(section: &Section<'_>) -> Option<Vec<Trusted>> {
    let items = match (section.item("public_key"), section.item("public_keys")) {
        (None, None) => return Some(Vec::new()),
        (Some(_), Some(_)) => {
            section.problem("public_key", "`public_key` and `public_keys` exclude each other", "keep one of the two");
            return None;
        }
        (Some(one), None) => vec![one],
        (None, Some(many)) => {
            let items = many.items()?;
            if items.is_empty() {
                many.problem("`public_keys` is empty", "name at least one key: without one nothing can be verified");
                return None;
            }
            items
        }
    };
    let read: Vec<Option<Vec<Trusted>>> = items.iter().enumerate().map(|(at, item)| read_item(item, at + 1)).collect();
    let groups: Vec<Vec<Trusted>> = read.into_iter().collect::<Option<_>>()?;
    let mut labels = BTreeSet::new();
    if let Some(twice) = groups.iter().filter_map(|group| group.first()).find(|key| !labels.insert(key.label.clone())) {
        section.problem("public_keys", format!("two public keys are labelled `{}`", twice.label), "give each its own label");
        return None;
    }
    Some(groups.into_iter().flatten().collect())
}

fn read_item(item: &Item<'_>, position: usize) -> Option<Vec<Trusted>> {
    let (text, label, not_after) = item.open_text(position)?;
    let label: Arc<str> = label.into();
    match parse(&text) {
        Ok(keys) => Some(keys.into_iter().map(|key| Trusted { label: label.clone(), not_after, key }).collect()),
        Err(why) => {
            item.hidden_problem(
                format!("this public key cannot be used: {why}"),
                "give the provider's key as `env:NAME`, `file:PATH` or the text itself: PEM, a certificate, JWK or JWK Set, base64 or hex",
            );
            None
        }
    }
}

/// Reads every public key that a text holds, whatever its form; at least one. The error says what is wrong and never shows the text,
/// which may be a private key.
pub(crate) fn parse(text: &[u8]) -> Result<Vec<PublicKey>, String> {
    if text.len() > MAX_TEXT {
        return Err(format!("{} bytes are more than {MAX_TEXT}, which no key or key set has", text.len()));
    }
    let Some(trimmed) = std::str::from_utf8(text).ok().map(str::trim) else { return der(text).map(|key| vec![key]) };
    if trimmed.is_empty() {
        return Err("it is empty".to_owned());
    }
    if trimmed.starts_with('{') {
        return json(trimmed);
    }
    if trimmed.contains("-----BEGIN ") {
        return pem(trimmed);
    }
    if let Some(rest) = trimmed.strip_prefix("whpk_") {
        let bytes = BASE64.decode(rest.as_bytes()).map_err(|_| "what follows `whpk_` is not base64".to_owned())?;
        return PublicKey::ed25519(&bytes).map(|key| vec![key]);
    }
    if trimmed.starts_with("whsk_") {
        return Err(private());
    }
    if trimmed.starts_with("whsec_") {
        return Err("it is a shared secret (`whsec_`), which belongs into `secret`".to_owned());
    }
    let compact: String = trimmed.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let decoded = HEXLOWER_PERMISSIVE.decode(compact.as_bytes()).ok().or_else(|| base64(&compact));
    match decoded {
        Some(bytes) => bare(&bytes).map(|key| vec![key]),
        None if text.first() == Some(&0x30) => der(text).map(|key| vec![key]),
        None => Err("it is neither PEM, JWK, base64 nor hex".to_owned()),
    }
}

/// Bytes without a wrapper: a bare key by its length, else DER.
fn bare(bytes: &[u8]) -> Result<PublicKey, String> {
    match (bytes.len(), bytes.first()) {
        (32, _) => PublicKey::ed25519(bytes),
        (33, Some(2 | 3)) | (65, Some(4)) => PublicKey::point(Curve::P256, bytes),
        (49, Some(2 | 3)) | (97, Some(4)) => PublicKey::point(Curve::P384, bytes),
        // A seed with its public key, as NaCl writes private keys.
        (64, _) => Err(private()),
        _ => der(bytes),
    }
}

fn der(bytes: &[u8]) -> Result<PublicKey, String> {
    match shape(bytes) {
        Some(Shape::Private) => Err(private()),
        Some(Shape::Pkcs1) => PublicKey::rsa(bytes, false),
        Some(Shape::Nested) if X509Certificate::from_der(bytes).is_ok() => PublicKey::from_certificate(bytes),
        Some(Shape::Nested) => PublicKey::from_spki(bytes),
        None => Err("it is no key in any form that is known: PEM, JWK, DER, or the bare bytes of an Ed25519 key".to_owned()),
    }
}

fn json(text: &str) -> Result<Vec<PublicKey>, String> {
    let value: Value = serde_json::from_str(text).map_err(|why| format!("it is not JSON: line {}, column {}", why.line(), why.column()))?;
    let Some(keys) = value.get("keys") else { return PublicKey::from_jwk(&value).map(|key| vec![key]) };
    let keys = keys.as_array().ok_or("`keys` of a JWK Set is an array")?;
    if keys.len() > MAX_KEYS {
        return Err(format!("{} keys in one set are more than {MAX_KEYS}", keys.len()));
    }
    // A set may hold keys for other purposes, which are passed over (RFC 7517, 5); a private one is nothing to pass over.
    let read: Vec<Result<PublicKey, String>> = keys.iter().map(PublicKey::from_jwk).collect();
    if read.iter().any(|key| key.as_ref().is_err_and(|why| *why == private())) {
        return Err(private());
    }
    let first = read.iter().find_map(|key| key.as_ref().err()).cloned();
    let good: Vec<PublicKey> = read.into_iter().flatten().collect();
    match (good.is_empty(), first) {
        (false, _) => Ok(good),
        (true, Some(why)) => Err(format!("no key of the set can be used: {why}")),
        (true, None) => Err("the set has no keys".to_owned()),
    }
}

/// The sections of a PEM text; line ends written as `\n`, as environment files have them, are taken too.
fn pem(text: &str) -> Result<Vec<PublicKey>, String> {
    let mut keys = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("-----BEGIN ") {
        let from = &rest[at + 11..];
        let (label, from) = from.split_once("-----").ok_or("a PEM section's first line is not closed")?;
        let end = format!("-----END {label}-----");
        let to = from.find(&end).ok_or_else(|| format!("the PEM section `{}` has no end", shown(label)))?;
        if label.ends_with("PRIVATE KEY") {
            return Err(private());
        }
        let body: String = from[..to].replace("\\n", "").replace("\\r", "").chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let der = base64(&body).ok_or_else(|| format!("the PEM section `{}` is not base64", shown(label)))?;
        keys.push(match label {
            "PUBLIC KEY" => PublicKey::from_spki(&der)?,
            "RSA PUBLIC KEY" => PublicKey::rsa(&der, false)?,
            "CERTIFICATE" | "X509 CERTIFICATE" | "TRUSTED CERTIFICATE" => PublicKey::from_certificate(&der)?,
            _ => return Err(format!("a PEM section `{}`; a public key or a certificate is wanted", shown(label))),
        });
        if keys.len() > MAX_KEYS {
            return Err(format!("more than {MAX_KEYS} keys in one text"));
        }
        rest = &from[to + end.len()..];
    }
    Ok(keys)
}

fn shown(label: &str) -> String {
    label.chars().filter(|c| c.is_ascii_alphanumeric() || *c == ' ').take(40).collect()
}

/// Of either alphabet, padded or not.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').replace('-', "+").replace('_', "/");
    BASE64_NOPAD.decode(text.as_bytes()).ok()
}

fn private() -> String {
    "a private key is given; only its public half belongs here, and a private key that was shown around is to be replaced".to_owned()
}

fn wrong_curve(name: &str) -> String {
    format!("a key of the curve {name}; Ed25519, P-256 and P-384 are taken")
}

enum Shape {
    Private,
    Pkcs1,
    /// SubjectPublicKeyInfo or a certificate.
    Nested,
}

/// What a DER sequence is, by its first elements.
fn shape(bytes: &[u8]) -> Option<Shape> {
    let (0x30, content, []) = element(bytes)? else { return None };
    let (first, value, rest) = element(content)?;
    if first == 0x30 {
        return Some(Shape::Nested);
    }
    let (second, _, rest) = element(rest)?;
    match (first, value, second) {
        // PKCS#8: version, algorithm, key; SEC 1: version, key; PKCS#1: version, modulus, exponent, …
        (2, _, 0x30 | 4) => Some(Shape::Private),
        (2, [0], 2) if !rest.is_empty() => Some(Shape::Private),
        (2, _, 2) if rest.is_empty() => Some(Shape::Pkcs1),
        _ => None,
    }
}

/// Tag, content and what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (len, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (len.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

/// `RSAPublicKey` of its two numbers (RFC 8017, A.1.1).
fn pkcs1(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    fn put(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
        out.push(tag);
        let len = content.len();
        match len {
            0..0x80 => out.push(len as u8),
            _ => {
                let bytes = len.to_be_bytes();
                let from = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
                out.push(0x80 | (bytes.len() - from) as u8);
                out.extend_from_slice(&bytes[from..]);
            }
        }
        out.extend_from_slice(content);
    }
    let mut numbers = Vec::new();
    for number in [modulus, exponent] {
        let from = number.iter().position(|b| *b != 0).unwrap_or(number.len());
        let mut content = Vec::new();
        if number.get(from).is_none_or(|b| *b >= 0x80) {
            content.push(0);
        }
        content.extend_from_slice(&number[from..]);
        put(&mut numbers, 2, &content);
    }
    let mut out = Vec::new();
    put(&mut out, 0x30, &numbers);
    out
}

/// Whether the point has a small order, so that signatures for it can be made up: the list of libsodium's `ge25519_has_small_order`.
fn small_order(key: &[u8]) -> bool {
    const ALL: [&str; 7] = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    let mut unsigned = key.to_vec();
    if let Some(last) = unsigned.last_mut() {
        *last &= 0x7f;
    }
    ALL.contains(&data_encoding::HEXLOWER.encode(&unsigned).as_str())
}

/// The keys of RFC 9421, B.1, for tests here and in other rooms.
#[cfg(test)]
pub(crate) mod samples {
    use super::{Trusted, parse};

    /// One key of each kind, as one value of a policy.
    pub(crate) fn trusted() -> Vec<Trusted> {
        let keys = parse([ED25519, P256, RSA].concat().as_bytes()).expect("three keys");
        keys.into_iter().map(|key| Trusted { label: "#1".into(), not_after: None, key }).collect()
    }

    pub(crate) const ED25519: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAJrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=\n-----END PUBLIC KEY-----\n";
    pub(crate) const P256: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqIVYZVLCrPZHGHjP17CTW0/+D9Lf\nw0EkjqF7xB4FivAxzic30tMM4GF+hR6Dxh71Z50VGGdldkkDXZCnTNnoXQ==\n-----END PUBLIC KEY-----\n";
    /// `test-key-rsa-pss`.
    pub(crate) const RSA: &str = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAr4tmm3r20Wd/PbqvP1s2\n+QEtvpuRaV8Yq40gjUR8y2Rjxa6dpG2GXHbPfvMs8ct+Lh1GH45x28Rw3Ry53mm+\noAXjyQ86OnDkZ5N8lYbggD4O3w6M6pAvLkhk95AndTrifbIFPNU8PPMO7OyrFAHq\ngDsznjPFmTOtCEcN2Z1FpWgchwuYLPL+Wokqltd11nqqzi+bJ9cvSKADYdUAAN5W\nUtzdpiy6LbTgSxP7ociU4Tn0g5I6aDZJ7A8Lzo0KSyZYoA485mqcO0GVAdVw9lq4\naOT9v6d+nb4bnNkQVklLQ3fVAvJm+xdDOp9LCNCN48V2pnDOkFV6+U9nV5oyc6XI\n2wIDAQAB\n-----END PUBLIC KEY-----\n";
}

#[cfg(test)]
mod tests {
    use super::{samples::*, *};

    const ES256: Algorithm = Algorithm::Ecdsa(Curve::P256, Layout::Der);
    const PS256: Algorithm = Algorithm::Rsa(Hash::Sha256, Padding::Pss);

    /// Signatures of `hello`, made by OpenSSL 3.
    const ED25519_HELLO: &str = "gR5Ac+Sz4ATS3s9DizgNcjBRRG4HkK9qvO/ntWmqhUTqPstXVf3ZnGW6cQ+5qxXyTA0MRBFebj0+M2QP14lQAQ==";
    const P256_HELLO: &str = "MEQCIBlxZCV7cYF9FTfLfZXJ1299J+gVBr/N2zUgWuDj/eVEAiBaKZfnBlaiWbTRe8ylL3sUYHstBOz8C/sqQyrdJchkhg==";
    const P384_HELLO: &str =
        "MGUCMQCXlFNKlUOubfL2wyMUzqS2FtXyj+yCenJcBKTWJltnpE2NXVWa10VSMKTs2kCPNrMCMHe65vWPSA1Z2MSoi9XIdbO8KoTzPMo6hEoCLSTAWPw5VzPEgLTB3a3qAeug4DK4Ew==";
    const RSA_PSS_HELLO: &str = "KDjZaEZlQnt+c/2oEu9sFjrI/23jBRgN4sWAY3YBVaNv7+6BTrtoqgyY8HMygajEHRKr9I/pzFJ3xvErNl5E16GpwmY+8hpqzI/Do5Y50/I+L57GraPyIEPv284Bh+rl7rBYAhzIdCdoxE2MDsEdJwQwz1xvxpHHlQEi3RIYHgcY6QEKIp9/o+dEFmGfkbPTGyTHKOQfhgPVJgoRTDdIFJGeis/qkFLNuq5Kz2Q+8Ahrgh7zccLCpzDD977NRpF4jnwYteoWb+pn5Wck1Q5IvC4kq11nyV7UxvubepvyHGaB5fEz3O2PQuvC/cyb/7ThpBmZ+N03wsMuBEJVaCjJrw==";

    const P384: &str = "-----BEGIN PUBLIC KEY-----\nMHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEHpFVvlWED62c2SVhl7ve354vXR87098h\n+tErC/1jGdjmxp6K+ZWYIzY/LEj+RJuZDtY6a//tyuRxP9C0jp1F9ip6UiTei+DK\nV6SgGTt35O6Hj0rr+EfPqYXzwU7EyQQ6\n-----END PUBLIC KEY-----";
    const P256_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMIIBjzCCATWgAwIBAgIUIchiTsHqefeK9BYXBC+3pihzSkQwCgYIKoZIzj0EAwIw\nHDEaMBgGA1UEAwwRdGVzdC1rZXktZWNjLXAyNTYwIBcNMjYxMTI0MjMzNDMwWhgP\nMjEyNjEwMzEyMzM0MzBaMBwxGjAYBgNVBAMMEXRlc3Qta2V5LWVjYy1wMjU2MFkw\nEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqIVYZVLCrPZHGHjP17CTW0/+D9Lfw0Ek\njqF7xB4FivAxzic30tMM4GF+hR6Dxh71Z50VGGdldkkDXZCnTNnoXaNTMFEwHQYD\nVR0OBBYEFAmW5VD56I4F/U1q5o47yYaj6e62MB8GA1UdIwQYMBaAFAmW5VD56I4F\n/U1q5o47yYaj6e62MA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIh\nAPyb53TNN5EP1A9cECSuUtaC2G54kTn5xDIZKS5/92/lAiBsFa5QAsopJHBRDj5o\nX6FCbkTLx8uho/odSo6g2V098A==\n-----END CERTIFICATE-----";

    /// One key, and whether it verifies `hello`.
    fn check(text: &[u8], algorithm: Algorithm, signature: &str) {
        let keys = parse(text).unwrap_or_else(|why| panic!("{}: {why}", String::from_utf8_lossy(text)));
        let [key] = &keys[..] else { panic!("{keys:?}") };
        let signature = BASE64.decode(signature.as_bytes()).expect("base64");
        assert!(key.verify(algorithm, b"hello", &signature), "{key:?}");
        assert!(!key.verify(algorithm, b"hellp", &signature), "{key:?}");
        if let Some(hash) = algorithm.hash() {
            let digest = |text: &[u8]| digest::digest(hash.algorithm(), text);
            assert!(key.verify_digest(algorithm, digest(b"hello").as_ref(), &signature), "{key:?}");
            assert!(!key.verify_digest(algorithm, digest(b"hellp").as_ref(), &signature), "{key:?}");
            assert!(!key.verify_digest(algorithm, b"hello", &signature), "{key:?}");
        }
    }

    fn refused(text: &str, part: &str) {
        match parse(text.as_bytes()) {
            Ok(keys) => panic!("{text} gave {keys:?}"),
            Err(why) => assert!(why.contains(part), "{text}: {why}"),
        }
    }

    fn body(pem: &str) -> String {
        pem.lines().filter(|line| !line.starts_with("-----")).collect()
    }

    #[test]
    fn keys_are_read_in_every_form() {
        let spki = BASE64.decode(body(ED25519).as_bytes()).expect("base64");
        for text in [
            ED25519.to_owned(),
            format!("\n  {ED25519}\n"),
            ED25519.trim().replace('\n', "\\n"),
            format!("# of 2026\n{ED25519}"),
            body(ED25519),
            HEXLOWER_PERMISSIVE.encode(&spki),
            HEXLOWER_PERMISSIVE.encode(&spki[12..]),
            HEXLOWER_PERMISSIVE.encode(&spki[12..]).to_uppercase(),
            BASE64.encode(&spki[12..]),
            BASE64URL_NOPAD.encode(&spki[12..]),
            format!("whpk_{}\n", BASE64.encode(&spki[12..])),
            r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs"}"#.to_owned(),
            r#"{"keys":[{"kty":"OKP","crv":"X25519","x":"JrQL"},{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","key_ops":["verify"],"x":"JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs"}]}"#.to_owned(),
        ] {
            check(text.as_bytes(), Algorithm::Ed25519, ED25519_HELLO);
        }
        check(&spki, Algorithm::Ed25519, ED25519_HELLO);
        let point = HEXLOWER_PERMISSIVE.encode(&BASE64.decode(body(P256).as_bytes()).expect("base64")[26..]);
        for text in [
            P256,
            P256_CERTIFICATE,
            &body(P256_CERTIFICATE),
            &point,
            r#"{"kty":"EC","crv":"P-256","x":"qIVYZVLCrPZHGHjP17CTW0_-D9Lfw0EkjqF7xB4FivA","y":"Mc4nN9LTDOBhfoUeg8Ye9WedFRhnZXZJA12Qp0zZ6F0"}"#,
        ] {
            check(text.as_bytes(), ES256, P256_HELLO);
        }
        check(P384.as_bytes(), Algorithm::Ecdsa(Curve::P384, Layout::Der), P384_HELLO);
        let spki = BASE64.decode(body(RSA).as_bytes()).expect("base64");
        let of_two_numbers = r#"{"kty":"RSA","kid":"test-key-rsa-pss","e":"AQAB","n":"r4tmm3r20Wd_PbqvP1s2-QEtvpuRaV8Yq40gjUR8y2Rjxa6dpG2GXHbPfvMs8ct-Lh1GH45x28Rw3Ry53mm-oAXjyQ86OnDkZ5N8lYbggD4O3w6M6pAvLkhk95AndTrifbIFPNU8PPMO7OyrFAHqgDsznjPFmTOtCEcN2Z1FpWgchwuYLPL-Wokqltd11nqqzi-bJ9cvSKADYdUAAN5WUtzdpiy6LbTgSxP7ociU4Tn0g5I6aDZJ7A8Lzo0KSyZYoA485mqcO0GVAdVw9lq4aOT9v6d-nb4bnNkQVklLQ3fVAvJm-xdDOp9LCNCN48V2pnDOkFV6-U9nV5oyc6XI2w"}"#;
        for text in [
            RSA.to_owned(),
            format!("-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----", BASE64.encode(&spki[24..])),
            // The same of the key type id-RSASSA-PSS.
            BASE64.encode(&[&HEXLOWER_PERMISSIVE.decode(b"30820120300b06092a864886f70d01010a0382010f00").expect("hex"), &spki[24..]].concat()),
            BASE64.encode(&spki[24..]),
            of_two_numbers.to_owned(),
        ] {
            check(text.as_bytes(), PS256, RSA_PSS_HELLO);
        }
        assert_eq!(parse(of_two_numbers.as_bytes()).expect("a key")[0].kid.as_deref(), Some("test-key-rsa-pss"));
        let many = parse(format!("{ED25519}{P256}\n{RSA}").as_bytes()).expect("three keys");
        assert_eq!(many.iter().map(PublicKey::describe).collect::<Vec<_>>(), ["an Ed25519 key", "a P-256 key", "an RSA key of 2048 bits"]);
        assert!(many[1].same(&parse(P256_CERTIFICATE.as_bytes()).expect("a key")[0]) && !many[1].same(&many[0]));
    }

    #[test]
    fn a_key_serves_what_it_is_for_and_nothing_else() {
        let all = [
            Algorithm::Ed25519,
            ES256,
            Algorithm::Ecdsa(Curve::P256, Layout::Raw),
            Algorithm::Ecdsa(Curve::P384, Layout::Der),
            Algorithm::Rsa(Hash::Sha1, Padding::Pkcs1),
            Algorithm::Rsa(Hash::Sha256, Padding::Pkcs1),
            PS256,
        ];
        let served = |text: &str| {
            let key = parse(text.as_bytes()).expect("a key").remove(0);
            all.iter().map(|algorithm| key.serves(*algorithm)).collect::<Vec<_>>()
        };
        assert_eq!(served(ED25519), [true, false, false, false, false, false, false]);
        assert_eq!(served(P256), [false, true, true, false, false, false, false]);
        assert_eq!(served(P384), [false, false, false, true, false, false, false]);
        assert_eq!(served(RSA), [false, false, false, false, true, true, true]);
        let pss_only = PublicKey::rsa(&BASE64.decode(body(RSA).as_bytes()).expect("base64")[24..], true).expect("a key");
        assert!(pss_only.serves(PS256) && !pss_only.serves(Algorithm::Rsa(Hash::Sha256, Padding::Pkcs1)));
        let jwk =
            r#"{"kty":"EC","crv":"P-256","alg":"ES512","x":"qIVYZVLCrPZHGHjP17CTW0_-D9Lfw0EkjqF7xB4FivA","y":"Mc4nN9LTDOBhfoUeg8Ye9WedFRhnZXZJA12Qp0zZ6F0"}"#;
        assert_eq!(served(jwk), [false; 7]);
    }

    #[test]
    fn what_is_no_public_key_says_why() {
        refused("", "empty");
        refused(" \n", "empty");
        refused("hello!", "neither PEM");
        refused("00ff", "no key in any form");
        refused("-----BEGIN PUBLIC KEY-----\nMCow", "no end");
        refused("-----BEGIN PUBLIC KEY-----\nMCo!\n-----END PUBLIC KEY-----", "not base64");
        refused("-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----", "no SubjectPublicKeyInfo");
        refused("-----BEGIN CERTIFICATE REQUEST-----\nMCow\n-----END CERTIFICATE REQUEST-----", "`CERTIFICATE REQUEST`");
        refused("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "shared secret");
        refused("whpk_AAAA", "32 bytes, this one has 3");
        refused(&"00".repeat(32), "anybody can sign for");
        refused(&format!("ed{}7f", "ff".repeat(30)), "anybody can sign for");
        // OpenSSL's RSA key of 1024 bits, and keys of other curves.
        refused(
            "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQC8q6QM8z8OrIjhFR/stDytpXxp1rM3eSy7lNnqjvPDOxLjAP7aMYMJVc2nHdxvE/08QTjgsILOLCmRzeMqQFW+wBDpHmI70m8x5SY8twYno36HR8g+Glpv1bvlfmkBt+a0YM1duF7WgcvLT+45w5uG2eqoLoV0ImrTCJhDNJngSwIDAQAB",
            "1024 bits; 2048 to 8192",
        );
        refused(
            "MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQB3QAERgowzUY0MEVdr+bNJG8XXHL3S/VRS+lUH3yaZ7wwXFjJ1Dc5+60nKYZxapFrm0z14l7/zUOF8wvReThuXvUBW65YZlZG8I1rfaH6xr6NHooQd0Eg6npeeh6Np0/hodzUUsWYVQDn3gf7agGvx/wBjYlLNBPD93l9OQfn3cd5Cvk=",
            "curve P-521",
        );
        refused("MEMwBQYDK2VxAzoA1ZCKtauAhOY4aJY7nSDixViEr87w1Ru3lGxwTGQ3DpUzvSfKWI5aHAAW4B83KOqmgZGMylgr9jmA", "curve Ed448");
        // A point that is not on its curve.
        refused(&format!("04{}", "11".repeat(64)), "a P-256 key that is no valid key");
        refused("{", "not JSON");
        refused(r#"{"keys":[]}"#, "no keys");
        refused(r#"{"keys":1}"#, "array");
        refused(r#"{"kty":"oct","k":"AAAA"}"#, "shared secret");
        refused(r#"{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA"}"#, "curve secp256k1");
        refused(r#"{"kty":"OKP","crv":"Ed25519","use":"enc","x":"JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs"}"#, "encryption");
        refused(r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#, "17 bits");
        refused(r#"{"kty":"RSA","n":"","e":"AQAB"}"#, "cannot be read");
    }

    #[test]
    fn a_private_key_is_called_one_and_never_shown() {
        for text in [
            "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF\n-----END PRIVATE KEY-----",
            "MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF",
            "-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----",
            "MHcCAQEEIFKbhfNZfpDsW43+0+JjUr9K+bTeuxopu653+hBaXGA7oAoGCCqGSM49AwEHoUQDQgAEqIVYZVLCrPZHGHjP17CTW0/+D9Lfw0EkjqF7xB4FivAxzic30tMM4GF+hR6Dxh71Z50VGGdldkkDXZCnTNnoXQ==",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMHcC\n-----END ENCRYPTED PRIVATE KEY-----",
            r#"{"kty":"OKP","crv":"Ed25519","d":"n4Ni-HpISpVObnQMW0wOhCKROaIKqKtW_2ZYb2p9KcU","x":"JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs"}"#,
            r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"JrQLj5P_89iXES9-vFgrIy29clF9CC_oPPsw3c5D0bs"},{"kty":"EC","d":"AA"}]}"#,
            "whsk_AAAA",
            &"11".repeat(64),
        ] {
            let why = parse(text.as_bytes()).expect_err("no public key");
            assert!(why.contains("private key is given") && !why.contains("n4Ni") && !why.contains("MC4C"), "{why}");
        }
    }
}
