//! ECDSA over a template, by the sender's key pair: P-256 with SHA-256, P-384 with SHA-384 (FIPS 186-5).
//! The two numbers of a signature come as ASN.1 DER, as OpenSSL and Java write them, or one after another, as JOSE and WebCrypto do.
//! Anybody can turn a good signature into a second one for the same message, so a signature never names its content.

use super::{
    definition::{Context, Method, Scheme},
    hmac::{self, Made},
    public_key::{Algorithm, Curve, Layout},
};
use crate::section::Section;

pub(super) static SCHEME: Scheme = Scheme { name: "ecdsa", about: "ECDSA (P-256, P-384) over a template, by the sender's public key", read: Some(read) };

fn read(section: &Section<'_>, context: &Context<'_>) -> Option<Method> {
    let curve = if section.has("curve") { section.choice("curve", &[("p256", Curve::P256), ("p384", Curve::P384)]) } else { Some(Curve::P256) };
    let layout = if section.has("layout") { section.choice("layout", &[("der", Layout::Der), ("raw", Layout::Raw)]) } else { Some(Layout::Der) };
    let algorithm = curve.zip(layout).map(|(curve, layout)| Algorithm::Ecdsa(curve, layout));
    hmac::recipe(section, context, Made::KeyPair(algorithm)).map(|recipe| Method::Signature(Box::new(recipe)))
}
