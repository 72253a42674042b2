//! RSA over a template, by the sender's key pair: PKCS#1 v1.5 or PSS with a salt of the digest's length (RFC 8017), keys of 2048 to 8192
//! bits. SHA-1 is for providers that have nothing else; `check` warns of it.

use super::{
    definition::{Context, Method, Scheme},
    hmac::{self, Made},
    mac,
    public_key::{Algorithm, Hash, Padding},
};
use crate::section::Section;

pub(super) static SCHEME: Scheme = Scheme { name: "rsa", about: "RSA over a template, by the sender's public key", read: Some(read) };

fn read(section: &Section<'_>, context: &Context<'_>) -> Option<Method> {
    let hash = hmac::algorithm(section).map(|algorithm| match algorithm {
        mac::Algorithm::Sha1 => Hash::Sha1,
        mac::Algorithm::Sha256 => Hash::Sha256,
        mac::Algorithm::Sha384 => Hash::Sha384,
        mac::Algorithm::Sha512 => Hash::Sha512,
    });
    let padding = if section.has("padding") { section.choice("padding", &[("pkcs1", Padding::Pkcs1), ("pss", Padding::Pss)]) } else { Some(Padding::Pkcs1) };
    let algorithm = match hash.zip(padding) {
        Some((Hash::Sha1, Padding::Pss)) => {
            section.problem("padding", "PSS with SHA-1 is not verified", "say what the provider signs with: sha256, sha384 or sha512");
            None
        }
        found => found.map(|(hash, padding)| Algorithm::Rsa(hash, padding)),
    };
    hmac::recipe(section, context, Made::KeyPair(algorithm)).map(|recipe| Method::Signature(Box::new(recipe)))
}
