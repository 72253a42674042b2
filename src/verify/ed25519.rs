//! Ed25519 over a template, by the sender's key pair (RFC 8032, pure; no context). The message itself is signed and not its digest, so a
//! body waits in memory for its end, as every body does.

use super::{
    definition::{Context, Method, Scheme},
    hmac::{self, Made},
    public_key::Algorithm,
};
use crate::section::Section;

pub(super) static SCHEME: Scheme = Scheme { name: "ed25519", about: "Ed25519 over a template, by the sender's public key", read: Some(read) };

fn read(section: &Section<'_>, context: &Context<'_>) -> Option<Method> {
    hmac::recipe(section, context, Made::KeyPair(Some(Algorithm::Ed25519))).map(|recipe| Method::Signature(Box::new(recipe)))
}
