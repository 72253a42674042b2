//! Standard Webhooks: `webhook-id`, `webhook-timestamp` (Unix seconds), `webhook-signature`, over `{id}.{timestamp}.{body}`.
//! `v1,<base64>` is HMAC-SHA256 by a shared key, the base64 after `whsec_`, 24 to 64 bytes; `v1a,<base64>` is Ed25519 by a key pair whose
//! public half is the base64 after `whpk_`. Several may stand, parted by blanks; which count is said by the keys that a route has, others and
//! unknown versions are passed over. Neither id nor time may hold a `.`.
//! Source: standard-webhooks/standard-webhooks, spec/standard-webhooks.md.

use std::time::Duration;

use http::HeaderName;

use super::{
    definition::{Context, Method, Scheme},
    engine::{Recipe, Signature},
    key::{KeyEncoding, KeyForm},
    mac::{Algorithm, Encoding},
    place::{At, Pick, Place},
    public_key,
    template::{self, Template},
    timestamp::{Timestamp, Unit},
};
use crate::section::Section;

pub(super) static SCHEME: Scheme =
    Scheme { name: "standard-webhooks", about: "Standard Webhooks, by a shared key or the sender's public key", read: Some(read) };

/// The header that names a message, for a definition that does not say its own `delivery_id`.
pub(super) fn id(section: &Section<'_>) -> Option<Place> {
    let prefix = section.string_or("headers", "webhook");
    HeaderName::from_bytes(format!("{prefix}-id").as_bytes()).ok().map(Place::header)
}

fn read(section: &Section<'_>, context: &Context<'_>) -> Option<Method> {
    let prefix = section.string_or("headers", "webhook");
    let tolerance = section.duration_or("tolerance", Duration::from_secs(300));
    let future = section.duration_or("future", tolerance);
    let header = |part: &str| {
        let name = HeaderName::from_bytes(format!("{prefix}-{part}").as_bytes());
        if name.is_err() {
            section.problem("headers", format!("`{prefix}` does not begin a header's name"), "the part before `-id`, such as \"webhook\" or \"svix\"");
        }
        name.ok()
    };
    let (timestamp, signature) = (header("timestamp"), header("signature"));
    let timestamp = Timestamp { place: Place::header(timestamp?), unit: Unit::Seconds, tolerance, future, enforced: true, zone_needed: false };
    let header = signature?;
    let place = |version: &str| {
        let pick = Pick::List { separator: " ".to_owned(), version: version.to_owned() };
        Place { at: At::Header(header.clone()), prefix: String::new(), pick }
    };
    let (shared, key_pair) = (place("v1,"), place("v1a,"));
    let with =
        template::Context { timestamp: Some(&timestamp), id: context.id, signature: Some(&shared), params: &[], pointers: context.pointers, ambiguous: false };
    let signed = Template::parse("{id}.{timestamp}.{body}", &with).map_err(|why| section.problem("delivery_id", why, "")).ok()?;
    Some(Method::Signature(Box::new(Recipe {
        plain_hash: false,
        algorithm: Algorithm::Sha256,
        key: KeyForm { encoding: KeyEncoding::Base64, strip_prefix: "whsec_".to_owned(), ..KeyForm::default() },
        keys: None,
        key_id: None,
        public: Some(public_key::Algorithm::Ed25519),
        signatures: vec![
            Signature { place: shared, encoding: Encoding::Base64, secret: None, public: false },
            Signature { place: key_pair, encoding: Encoding::Base64, secret: None, public: true },
        ],
        timestamp: Some(timestamp),
        signed: vec![signed],
        require: Vec::new(),
        body_digest: None,
    })))
}

/// What the specification asks of a key's length, in bytes.
pub(super) const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
