//! A secret word in a header or query parameter. It proves who sent a request and nothing about its body.

use std::{borrow::Cow, sync::Arc};

use http::HeaderName;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::{
    Facts,
    definition::{Context, Method, Scheme},
    hmac,
    place::{At, Place, Required},
};
use crate::{
    reject::{Extra, Reason, Reject},
    secret::Secret,
    section::Section,
};

pub(super) static SCHEME: Scheme = Scheme { name: "token", about: "a secret word in a header or query parameter", read: Some(read) };

fn read(section: &Section<'_>, context: &Context<'_>) -> Option<Method> {
    let Some(item) = section.item("signature") else {
        section.problem("signature", "`signature` is missing", "say where the token stands: signature = { header = \"X-…\" }");
        return None;
    };
    let table = item.section()?;
    let place = Place::read(&table, context.pointers, None);
    table.finish();
    let require = hmac::required(section, context);
    let place = place?;
    if !place.in_head() || matches!(place.at, At::Numbered(_)) {
        item.problem("a token stands in a header or a query parameter", "");
        return None;
    }
    Some(Method::Token(Token { place, require: require? }))
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) place: Place,
    pub(super) require: Vec<Required>,
}

/// Secrets as digests, so that neither the bytes nor the length of a guess can be told from the time a comparison takes.
pub(super) struct Known(Vec<([u8; 32], Arc<str>, Option<i64>)>);

impl Known {
    pub(super) fn new(secrets: &[Secret]) -> Self {
        Self(secrets.iter().map(|secret| (Sha256::digest(secret.expose()).into(), secret.label().clone(), secret.not_after())).collect())
    }

    /// The label of the secret that this is.
    pub(super) fn find(&self, given: &[u8], now_ms: i64) -> Option<Arc<str>> {
        let given: [u8; 32] = Sha256::digest(given).into();
        let (mut any, mut hit) = (Choice::from(0), 0_u32);
        for (at, (digest, _, not_after)) in self.0.iter().enumerate() {
            let counts = Choice::from(u8::from(not_after.is_none_or(|last| now_ms <= last)));
            let equal = digest.ct_eq(&given) & counts;
            hit.conditional_assign(&u32::try_from(at).unwrap_or(0), equal & !any);
            any |= equal;
        }
        bool::from(any).then(|| self.0.get(hit as usize).map(|(_, label, _)| label.clone()))?
    }
}

/// What stands behind the place's prefix; `None` where there is nothing. `Bearer ` and the like are the name of an authentication
/// scheme, which has no case (RFC 9110, 11.1).
pub(super) fn credential<'a>(place: &Place, facts: &Facts<'a>) -> Result<Option<Cow<'a, [u8]>>, Reject> {
    let bare = Place { prefix: String::new(), ..place.clone() };
    let Some(value) = bare.value(facts, None)? else { return Ok(None) };
    let prefix = place.prefix.as_bytes();
    let start = value.get(..prefix.len()).unwrap_or_default();
    if start != prefix && !(prefix.ends_with(b" ") && start.eq_ignore_ascii_case(prefix)) {
        return Err(Reject::new(Reason::SignatureMalformed, format!("{place} does not start with `{}`", place.prefix)));
    }
    let rest = match value {
        Cow::Borrowed(value) => Cow::Borrowed(&value[prefix.len()..]),
        Cow::Owned(value) => Cow::Owned(value[prefix.len()..].to_vec()),
    };
    Ok((!rest.is_empty()).then_some(rest))
}

impl Token {
    /// The label of the secret that the request names.
    pub(super) fn check(&self, known: &Known, facts: &Facts<'_>, now_ms: i64) -> Result<Arc<str>, Reject> {
        let refuse = |what: String| Reject::new(Reason::TokenInvalid, what).with(Extra::Challenge("Bearer"));
        let token = credential(&self.place, facts)
            .map_err(|why| refuse(why.detail.into_owned()))?
            .ok_or_else(|| refuse(format!("{} is missing or empty", self.place)))?;
        for required in self.require.iter().filter(|required| required.place.in_head()) {
            required.check(facts, None).map_err(|why| refuse(why.detail.into_owned()))?;
        }
        known.find(&token, now_ms).ok_or_else(|| refuse(format!("{} is none of the configured secrets", self.place)))
    }

    pub(super) fn header(&self) -> Option<&HeaderName> {
        hmac::header_of(&self.place)
    }
}
