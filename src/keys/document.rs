//! What a place of keys holds, read from its bytes.

use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;

use crate::{
    validate::json::Pointer,
    verify::public_key::{self, PublicKey},
};

/// What one fetch brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// All keys of an issuer: a JWK set (RFC 7517), or a JSON object of PEM certificates by key id.
    Set,
    /// One key, asked for by its id.
    Key,
    /// A certificate and those above it, PEM, asked for by its URL.
    Certificates,
    /// An authorization server's answer about a token (RFC 7662).
    Introspection,
}

#[derive(Debug)]
pub(crate) enum Document {
    Keys(Vec<PublicKey>),
    /// Leaf first.
    Certificates(Vec<CertificateDer<'static>>),
    /// Claims of a token that is active; `None`: it is not.
    Token(Option<serde_json::Map<String, Value>>),
}

impl Document {
    pub(crate) fn read(form: Form, pointer: Option<&Pointer>, id: &str, bytes: &[u8]) -> Result<Self, String> {
        match form {
            Form::Certificates => Self::certificates(bytes),
            Form::Set | Form::Key => {
                let keys = match pointer {
                    None => public_keys(bytes, id)?,
                    Some(pointer) => {
                        let json: Value = serde_json::from_slice(bytes).map_err(|_| "it is not JSON")?;
                        let found = json.pointer(pointer.as_str()).ok_or_else(|| format!("it has nothing at {}", pointer.as_str()))?;
                        match found {
                            Value::String(text) => public_keys(text.as_bytes(), id)?,
                            other => public_keys(other.to_string().as_bytes(), id)?,
                        }
                    }
                };
                if keys.is_empty() {
                    return Err("it holds no key that can be used".to_owned());
                }
                Ok(Self::Keys(keys))
            }
            Form::Introspection => {
                let json: Value = serde_json::from_slice(bytes).map_err(|_| "it is not JSON")?;
                let Value::Object(claims) = json else { return Err("it is not a JSON object".to_owned()) };
                match claims.get("active") {
                    Some(Value::Bool(true)) => Ok(Self::Token(Some(claims))),
                    Some(Value::Bool(false)) => Ok(Self::Token(None)),
                    _ => Err("it does not say whether the token is active".to_owned()),
                }
            }
        }
    }

    /// The keys that stand here; of certificates that of the leaf.
    pub(crate) fn keys(&self) -> std::borrow::Cow<'_, [PublicKey]> {
        match self {
            Self::Keys(keys) => keys.into(),
            Self::Certificates(chain) => chain.first().and_then(|leaf| PublicKey::from_certificate(leaf).ok()).into_iter().collect(),
            Self::Token(_) => (&[]).into(),
        }
    }

    /// A PEM chain, leaf first.
    pub(crate) fn certificates(bytes: &[u8]) -> Result<Self, String> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(bytes).collect::<Result<_, _>>().map_err(|why| format!("it is no PEM: {why}"))?;
        if chain.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(Self::Certificates(chain)) }
    }
}

/// The keys of a text: a JWK set without those that have expired, an object of PEM texts by key id, or what a policy may name as a key.
fn public_keys(bytes: &[u8], id: &str) -> Result<Vec<PublicKey>, String> {
    if let Ok(Value::Object(json)) = serde_json::from_slice::<Value>(bytes) {
        if let Some(Value::Array(keys)) = json.get("keys") {
            // A set may hold keys of kinds that nobody here verifies with: they are no reason to lose the others.
            return Ok(keys.iter().filter_map(jwk).collect());
        }
        if json.contains_key("kty") {
            return jwk(&Value::Object(json)).map(|key| vec![key]).ok_or_else(|| "the key cannot be used, or has expired".to_owned());
        }
        let pem = |(kid, text): (&String, &Value)| {
            let mut key = public_key::parse(text.as_str()?.as_bytes()).ok()?.into_iter().next()?;
            key.kid = Some(kid.clone());
            Some(key)
        };
        return Ok(json.iter().filter_map(pem).collect());
    }
    let mut keys = public_key::parse(bytes)?;
    if let ([key], false) = (keys.as_mut_slice(), id.is_empty()) {
        key.kid.get_or_insert_with(|| id.to_owned());
    }
    Ok(keys)
}

/// A key for signatures that has not expired (`expired_at`, as Plaid marks them).
fn jwk(value: &Value) -> Option<PublicKey> {
    let expired = value.get("expired_at").is_some_and(|at| !at.is_null());
    let other_use = value.get("use").is_some_and(|usage| usage != "sig");
    if expired || other_use { None } else { PublicKey::from_jwk(value).ok() }
}
