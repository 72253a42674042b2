//! A plain digest over a template with the secret in it. Weaker than HMAC: where the secret comes first, SHA-1 and SHA-2 let whoever
//! has one signed request lengthen its body. Offered because providers do it (Cloudinary, HubSpot's older versions).

use super::{
    definition::{Context, Method, Scheme},
    hmac::{self, Made},
};
use crate::section::Section;

pub(super) static SCHEME: Scheme = Scheme { name: "hash", about: "plain digest over a template with `{secret}` in it", read: Some(read) };

fn read(section: &Section<'_>, context: &Context<'_>) -> Option<Method> {
    let algorithm = hmac::algorithm(section);
    hmac::recipe(section, context, Made::Mac { algorithm, plain_hash: true }).map(|recipe| Method::Signature(Box::new(recipe)))
}
