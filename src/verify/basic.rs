//! HTTP basic authentication (RFC 7617, UTF-8): `user:password`. It proves who sent a request and nothing about its body.

use std::sync::Arc;

use data_encoding::BASE64;
use http::header::AUTHORIZATION;

use super::{
    Facts,
    definition::{Context, Method, Scheme},
    place::Place,
    token::Known,
};
use crate::{
    reject::{Extra, Reason, Reject},
    section::Section,
};

pub(super) static SCHEME: Scheme = Scheme { name: "basic", about: "HTTP basic authentication; the secret is `user:password`", read: Some(read) };

fn read(_: &Section<'_>, _: &Context<'_>) -> Option<Method> {
    Some(Method::Basic)
}

/// A secret must have a user and a password.
pub(super) fn check_secret(secret: &[u8]) -> Result<(), String> {
    match secret.iter().position(|b| *b == b':') {
        Some(at) if at > 0 && at + 1 < secret.len() => Ok(()),
        _ => Err("this scheme's secret is `user:password`, with both".to_owned()),
    }
}

/// The label of the pair that the request names.
pub(super) fn check(known: &Known, facts: &Facts<'_>, now_ms: i64) -> Result<Arc<str>, Reject> {
    let refuse = |what: &'static str| Reject::new(Reason::TokenInvalid, what).with(Extra::Challenge("Basic"));
    let value = Place::header(AUTHORIZATION).value(facts, None).map_err(|_| refuse("more than one `authorization` header"))?;
    let value = value.ok_or_else(|| refuse("the header `authorization` is missing or empty"))?;
    let encoded = value.split_at_checked(6).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"basic ")).map(|(_, rest)| rest.trim_ascii());
    let encoded = encoded.ok_or_else(|| refuse("the header `authorization` is not of the scheme Basic"))?;
    let pair = BASE64.decode(encoded).map_err(|_| refuse("the basic credentials are not base64"))?;
    check_secret(&pair).map_err(|_| refuse("the basic credentials are not a user and a password"))?;
    known.find(&pair, now_ms).ok_or_else(|| refuse("the basic credentials are none of the configured ones"))
}
