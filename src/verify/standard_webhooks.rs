//! Standard Webhooks, shared key: `webhook-id`, `webhook-timestamp` (Unix seconds), `webhook-signature`.
//! HMAC-SHA256 over `{id}.{timestamp}.{body}`; several `v1,<base64>` may stand, parted by blanks, other versions are passed over. The
//! key is the base64 after `whsec_`, 24 to 64 bytes. Neither id nor time may hold a `.`.
//! Source: standard-webhooks/standard-webhooks, spec/standard-webhooks.md.

use std::time::Duration;

use http::HeaderName;

use super::{
    definition::{Context, Method, Scheme},
    engine::{Recipe, Signature},
    key::{KeyEncoding, KeyForm},
    mac::{Algorithm, Encoding},
    place::{At, Pick, Place},
    template::{self, Template},
    timestamp::{Timestamp, Unit},
};
use crate::section::Section;

pub(super) static SCHEME: Scheme = Scheme { name: "standard-webhooks", about: "Standard Webhooks, shared key", read: Some(read) };

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
    let pick = Pick::List { separator: " ".to_owned(), version: "v1,".to_owned() };
    let place = Place { at: At::Header(signature?), prefix: String::new(), pick };
    let with =
        template::Context { timestamp: Some(&timestamp), id: context.id, signature: Some(&place), params: &[], pointers: context.pointers, ambiguous: false };
    let signed = Template::parse("{id}.{timestamp}.{body}", &with).map_err(|why| section.problem("delivery_id", why, "")).ok()?;
    Some(Method::Signature(Box::new(Recipe {
        plain_hash: false,
        algorithm: Algorithm::Sha256,
        key: KeyForm { encoding: KeyEncoding::Base64, strip_prefix: "whsec_".to_owned(), ..KeyForm::default() },
        signatures: vec![Signature { place, encoding: Encoding::Base64, secret: None }],
        timestamp: Some(timestamp),
        signed: vec![signed],
        require: Vec::new(),
        body_digest: None,
    })))
}

/// What the specification asks of a key's length, in bytes.
pub(super) const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
