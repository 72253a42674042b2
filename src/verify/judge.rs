//! The seam for schemes that no template expresses: tokens with claims, messages whose fields are signed, canonical requests.
//!
//! A [`Rule`] is what a definition's table says, without any secret; bound to a route's secrets and keys it is a [`Judge`]. A new
//! scheme of this kind is a file with both and a row in `definition.rs`.

use std::{fmt, sync::Arc, time::Duration};

use http::HeaderName;
use serde_json::Value;

use super::{Facts, Means, place::Place};
use crate::{
    event::{Chunks, Verification},
    keys::{Source, Want},
    reject::{Reason, Reject},
    validate::json,
    verify::cases::Request,
};

/// A scheme's table, read; holds no secret.
pub(super) trait Rule: fmt::Debug + Send + Sync {
    /// The error is for the policy's author and never shows a secret.
    fn bind(&self, means: &Means<'_>) -> Result<Box<dyn Judge>, String>;

    /// The most that its proof vouches for.
    fn verification(&self) -> Verification;

    /// Whether a route must give it a secret: to verify with, or to ask for keys where the route names none of its own.
    fn needs_secret(&self, own_keys: bool) -> bool;

    /// Whether a route may give it the sender's public key.
    fn takes_public_keys(&self) -> bool {
        false
    }

    /// Whether a route must say where the keys come from: the definition does not.
    fn needs_keys(&self) -> bool {
        false
    }

    /// Whether it can be verified without any key of the route's: by a secret, or by keys that are published.
    fn publishes_keys(&self) -> bool {
        false
    }

    /// Whether requests can be signed as the provider does, with a shared secret.
    fn signs(&self) -> bool {
        false
    }

    /// Whether the signature covers what stands at a place.
    fn covers(&self, _place: &Place) -> bool {
        false
    }

    /// Whether its proof names a delivery by itself, as the claim `jti` does.
    fn names_id(&self) -> bool {
        false
    }

    /// Whether two requests of the same content are the same event; without it a replay record has nothing to be keyed on.
    fn signs_content(&self) -> bool {
        self.verification() == Verification::Content
    }
}

/// A scheme with its keys.
pub(super) trait Judge: Send + Sync {
    /// Whether a proof of this kind stands in the head: which form a request is of.
    fn stands(&self, facts: &Facts<'_>) -> bool;

    /// What the head alone decides: missing, malformed, stale.
    fn prepare(&self, facts: &Facts<'_>, now_ms: i64) -> Result<(), Reject>;

    /// The keys that this request is to be judged with, where they are not at hand and may be fetched.
    fn wants(&self, _facts: &Facts<'_>, _body: &Chunks, _now_ms: i64) -> Option<Want> {
        None
    }

    /// Whether it reads the body as one piece.
    fn reads_body(&self) -> bool;

    /// Judges the whole request.
    fn finish(&self, facts: &Facts<'_>, body: &Chunks, now_ms: i64) -> Result<Held, Reject>;

    /// What its proof vouches for.
    fn verification(&self) -> Verification;

    /// How far a signed attempt time may be off, where there is one.
    fn attempt_window(&self) -> Option<Duration> {
        None
    }

    /// Whether the proof covers a query parameter.
    fn covers_query(&self, _name: &str) -> bool {
        false
    }

    /// Whether the proof names the URL or an audience, so that it is of no use at another route.
    fn names_its_route(&self) -> bool {
        false
    }

    /// The headers whose value is a credential.
    fn credential_headers(&self) -> Vec<HeaderName> {
        Vec::new()
    }

    /// The headers in which its proof stands: they are taken away where the gate signs anew.
    fn headers(&self) -> Vec<HeaderName> {
        self.credential_headers()
    }

    /// Whether [`Judge::sign`] leaves the body as it is, so that what is forwarded can be signed.
    fn signs_head(&self) -> bool {
        false
    }

    /// What is weak about it, and what helps, for `check`.
    fn weaknesses(&self) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }

    /// The labels of what it may verify with beside the route's secrets.
    fn labels(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    /// Signs a request, where the scheme is symmetric: for sending.
    fn sign(&self, _request: &mut Request, _now_ms: i64, _id: &str) -> Result<(), String> {
        Err("requests of this scheme can only be signed with the provider's own key".to_owned())
    }

    /// The key sources it asks, for the gate to connect.
    fn sources(&self) -> Vec<Arc<Source>> {
        Vec::new()
    }
}

/// A proof that held.
#[derive(Debug)]
pub(super) struct Held {
    /// The secret or key that it was: a name of the policy's.
    pub(super) label: Arc<str>,
    /// The time that it carries, Unix milliseconds.
    pub(super) timestamp_ms: Option<i64>,
    /// Tells what was signed from anything else that may be signed; not usable as a signature.
    pub(super) content: [u8; 32],
    /// The signed delivery id, where the proof names one itself.
    pub(super) id: Option<String>,
    pub(super) event_type: Option<String>,
}

/// How deep the JSON of a body may be nested.
const DEPTH: usize = 64;

/// A body of JSON notifications, read only after no object in it had a key twice: what is judged must be what a receiver reads.
pub(super) fn notifications(body: &Chunks) -> Result<Value, Reject> {
    let malformed = |what: String| Reject::new(Reason::SignatureMalformed, what);
    let bytes = body.to_bytes();
    json::check(&bytes, DEPTH, true).map_err(|flaw| malformed(format!("these are no notifications: {flaw}")))?;
    serde_json::from_slice(&bytes).map_err(|_| malformed("these are no notifications".to_owned()))
}
