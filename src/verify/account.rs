//! What was read where in a request, and which bytes its signature covers: for people, without a secret or a signature.

use std::fmt::Write as _;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::{
    Bound, Facts, Plan, Ready,
    cases::Request,
    engine::Engine,
    key::{KeyEncoding, KeyForm},
    place::{Body, MAX_SIGNATURES, Place, Whole},
    scan,
    template::{Shown, Template},
};
use crate::observe::audit::{query_names, rfc3339};

/// The most of one text that is shown, in characters.
const SHOWN: usize = 300;

/// The longest signature that is looked at, in bytes: RSA's of 8192 bits.
const MAX_SIGNATURE: usize = 1024;

/// What a verdict rests on.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// The scheme, and the provider's form where it has several.
    pub(crate) scheme: String,
    /// What was read, and where it stands and how it looks.
    pub(crate) read: Vec<(&'static str, String)>,
    /// Every text whose signature counts; empty where the scheme signs none.
    pub(crate) signed: Vec<Text>,
}

/// A text that is signed.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) bytes: u64,
    /// Hex. `None` where the secret is part of the text: its digest would be the signature, or as good as one.
    pub(crate) sha256: Option<String>,
    /// As it is rendered, the body's place marked.
    pub(crate) shown: String,
}

/// Tells of the form that the request is of. `live`: what stands in a query is shown by its names only.
pub(super) fn account(plan: &Plan, request: &Request, live: bool) -> Account {
    let facts = request.facts();
    let Some(form) = plan.forms.get(plan.choose(&facts)) else { return Account::default() };
    let mut chunks = request.body.clone();
    chunks.contiguous();
    let pointers = &form.variant.pointers;
    let whole = Whole::new(&facts, &chunks, pointers);
    let (fields, _) = scan(&whole, pointers);
    let body = Body { whole: &whole, fields: &fields };
    let scheme = match &form.variant.name {
        Some(name) => format!("{}, form `{name}`", form.variant.scheme),
        None => form.variant.scheme.to_owned(),
    };
    let mut account = Account { scheme, ..Account::default() };
    let teller = Teller { form, facts, body, live };
    match &form.ready {
        Ready::Signature(engine) => teller.signature(engine, &mut account),
        Ready::Token(token, _) => account.read.push(("credential", teller.there(&token.place))),
        Ready::Basic(_) => account.read.push(("credential", teller.there(&Place::header(http::header::AUTHORIZATION)))),
        Ready::Own(judge) => {
            account.read.push(("proof", if judge.stands(&facts) { "in the head" } else { "not in the head; the body may hold it" }.to_owned()))
        }
    }
    let identity = &form.variant.identity;
    if let Some(place) = &identity.id {
        account.read.push(("delivery id", teller.value(place)));
    }
    if let Some(place) = identity.types.iter().find(|place| place.text(&facts, Some(body)).is_some()).or(identity.types.first()) {
        account.read.push(("event type", teller.value(place)));
    }
    account
}

struct Teller<'a> {
    form: &'a Bound,
    facts: Facts<'a>,
    body: Body<'a>,
    live: bool,
}

impl Teller<'_> {
    fn signature(&self, engine: &Engine, account: &mut Account) {
        let recipe = &engine.recipe;
        for signature in &recipe.signatures {
            let mut count = 0;
            let len = if signature.public { recipe.public.and_then(|algorithm| algorithm.signature_len()) } else { Some(recipe.algorithm.len()) };
            let decode = |text: &[u8]| {
                let bytes = signature.encoding.decode_signature(text, MAX_SIGNATURE)?;
                len.is_none_or(|len| bytes.len() == len).then_some(())
            };
            let read = signature.place.signatures(&self.facts, Some(self.body), decode, &mut |()| {
                count += 1;
                count < MAX_SIGNATURES
            });
            let prefix = if signature.place.prefix.is_empty() { String::new() } else { format!(" after `{}`", signature.place.prefix) };
            let size = len.map_or_else(String::new, |len| format!("{len} bytes in "));
            let form = format!("{size}{}{prefix}", signature.encoding.name());
            account.read.push((
                "signature",
                match read {
                    Ok(()) if count > 1 => format!("{}: {count} of {form}", signature.place),
                    Ok(()) => format!("{}: {form}", signature.place),
                    Err(why) => format!("{}; {form} is due", why.detail),
                },
            ));
        }
        if let Some(timestamp) = &recipe.timestamp {
            let text = timestamp.place.text(&self.facts, Some(self.body));
            let time = text.as_deref().and_then(|text| timestamp.unit.parse(text.as_bytes()));
            account.read.push((
                "time",
                match (text, time) {
                    (Some(text), Some(at)) => format!("{}: {}, which is {}", timestamp.place, quoted(&text), rfc3339(at)),
                    (Some(text), None) => format!("{}: {} is not a time in the form that is wanted", timestamp.place, quoted(&text)),
                    (None, _) => format!("{} is missing or empty", timestamp.place),
                },
            ));
        }
        if let Some(digest) = &recipe.body_digest {
            account.read.push(("body digest", self.there(&digest.place)));
        }
        account
            .read
            .push(("key", if recipe.signatures.iter().any(|signature| !signature.public) { key(&recipe.key) } else { "the sender's public key".to_owned() }));
        account.signed = recipe.signed.iter().filter_map(|template| self.text(engine, template)).collect();
    }

    fn text(&self, engine: &Engine, template: &Template) -> Option<Text> {
        let (mut digest, mut bytes, mut shown) = (Sha256::new(), 0_u64, String::new());
        let mut open: Option<(Shown, Vec<u8>, u64)> = None;
        let mut parts = Vec::new();
        let chunks = self.body.whole.chunks();
        let told = engine.account(template, &self.facts, chunks, self.body, &mut |what, piece| {
            digest.update(piece);
            bytes += piece.len() as u64;
            // Pieces of one part follow each other; the text of a body is not kept.
            let keep = matches!(what, Shown::Text | Shown::Url);
            match &mut open {
                Some((before, text, len)) if *before == what => {
                    *len += piece.len() as u64;
                    if keep {
                        text.extend_from_slice(piece);
                    }
                }
                _ => parts.extend(open.replace((what, if keep { piece.to_vec() } else { Vec::new() }, piece.len() as u64))),
            }
        });
        told.ok()?;
        parts.extend(open);
        for (what, text, len) in parts {
            let text = String::from_utf8_lossy(&text);
            let _ = match what {
                Shown::Text => write!(shown, "{}", cut(&text)),
                Shown::Url if self.live => write!(shown, "{}", cut(&without_values(&text))),
                Shown::Url => write!(shown, "{}", cut(&text)),
                Shown::Body(name) => write!(shown, "{{{name}: {len} bytes}}"),
                Shown::Hidden(name) => write!(shown, "{{{name}}}"),
            };
        }
        let sha256 = (!template.has_secret()).then(|| HEXLOWER.encode(&digest.finalize()));
        Some(Text { bytes, sha256, shown })
    }

    fn there(&self, place: &Place) -> String {
        // The value itself is, or may be, a credential.
        match place.value(&self.facts, Some(self.body)) {
            Ok(Some(_)) => format!("{place}: there"),
            Ok(None) => format!("{place} is missing or empty"),
            Err(why) => why.detail.into_owned(),
        }
    }

    fn value(&self, place: &Place) -> String {
        match place.text(&self.facts, Some(self.body)) {
            Some(text) => {
                let covered = match &self.form.ready {
                    Ready::Signature(engine) if engine.recipe.signed.iter().all(|template| template.covers(place)) => "",
                    _ => " (not signed)",
                };
                format!("{place}: {}{covered}", quoted(&text))
            }
            None => format!("{place} is missing or empty"),
        }
    }
}

fn key(form: &KeyForm) -> String {
    let after = if form.strip_prefix.is_empty() { String::new() } else { format!(", without `{}`", form.strip_prefix) };
    let how = match form.encoding {
        KeyEncoding::Utf8 => "the secret's text as it stands",
        KeyEncoding::Hex => "the secret, decoded from hex",
        KeyEncoding::Base64 => "the secret, decoded from base64",
        KeyEncoding::DigestSha1 => "the SHA-1 digest of the secret",
    };
    format!("{how}{after}")
}

fn quoted(text: &str) -> String {
    format!("`{}`", cut(text))
}

/// One line, of bounded length.
fn cut(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(SHOWN) {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    if text.chars().nth(SHOWN).is_some() {
        out.push('…');
    }
    out
}

/// A URL, or a part of one, with the names of its query only.
fn without_values(text: &str) -> String {
    match text.split_once('?') {
        Some((path, query)) => format!("{path}?{}", query_names(query)),
        None if text.starts_with('/') || text.contains("://") => text.to_owned(),
        None => format!("{{query: {} bytes}}", text.len()),
    }
}
