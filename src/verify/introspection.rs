//! OAuth 2.0 bearer tokens whose issuer is asked about them: token introspection. Source: RFC 6750, RFC 7662.
//!
//! The answer is kept for a minute while the token is active (ten seconds while it is not), so that a revoked one ends within that.
//! The secret is the gate's own account at the authorization server, `client_id:client_secret`.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderName, header::AUTHORIZATION};
use sha2::{Digest, Sha256};

use super::{
    Facts, Means, basic,
    claims::Claims,
    definition::{Context, Method, Scheme},
    hmac,
    judge::{Held, Judge, Rule},
    place::Place,
    token,
};
use crate::{
    event::{Chunks, Verification},
    keys::{Document, Form, Found, Given, Settings, Source, Want},
    reject::{Extra, Reason, Reject},
    section::Section,
};

pub(super) static SCHEME: Scheme = Scheme { name: "introspection", about: "an OAuth 2.0 bearer token, by asking its issuer (RFC 7662)", read: Some(read) };

const LABEL: &str = "introspection";

#[derive(Clone, Debug)]
struct Introspection {
    place: Place,
    keys: Option<Settings>,
    claims: Claims,
}

fn read(section: &Section<'_>, context: &Context<'_>) -> Option<Method> {
    let place = match section.item("signature") {
        None => Some(Place { prefix: "Bearer ".to_owned(), ..Place::header(AUTHORIZATION) }),
        Some(item) => Place::read_item(&item, context.pointers),
    };
    let keys = section.item("keys").map(|item| Settings::read(&item));
    let claims = Claims::read(section);
    let keys = match keys {
        Some(read) => Some(read?),
        None => None,
    };
    Some(Method::Own(Arc::new(Introspection { place: place?, keys, claims: claims? })))
}

impl Rule for Introspection {
    fn bind(&self, means: &Means<'_>) -> Result<Box<dyn Judge>, String> {
        for secret in means.secrets {
            basic::check_secret(secret.expose()).map_err(|why| format!("secret {}: {why}", secret.label()))?;
        }
        let asks = |settings: &Settings| settings.form() == Form::Introspection;
        if matches!(means.keys, Some(Given::Fixed(source)) if !source.holds_answers()) || matches!(means.keys, Some(Given::Remote(settings)) if !asks(settings))
        {
            return Err("this scheme asks an issuer: keys = { url = \"https://…\", form = \"introspection\" }".to_owned());
        }
        let source = means.source(self.keys.as_ref()).ok_or("the issuer is not named: keys = { url = \"https://…\", form = \"introspection\" }")?;
        Ok(Box::new(Bound { place: self.place.clone(), source, claims: self.claims.bind(means.params, means.tolerance) }))
    }

    fn verification(&self) -> Verification {
        Verification::Sender
    }

    fn needs_secret(&self, _: bool) -> bool {
        true
    }

    fn needs_keys(&self) -> bool {
        self.keys.is_none()
    }
}

struct Bound {
    place: Place,
    source: Arc<Source>,
    claims: Claims,
}

impl Bound {
    fn token<'a>(&self, facts: &Facts<'a>) -> Result<Cow<'a, str>, Reject> {
        let refuse = |what: &'static str| Reject::new(Reason::TokenInvalid, what).with(Extra::Challenge("Bearer"));
        let token = token::credential(&self.place, facts)?.ok_or_else(|| refuse("there is no bearer token"))?;
        let token = match token {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).map(Cow::Borrowed).ok(),
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned).ok(),
        };
        // RFC 6750, 2.1: b64token.
        let good = |text: &str| text.len() <= 8192 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b));
        token.filter(|text| good(text)).ok_or_else(|| refuse("the bearer token is none that an issuer makes"))
    }
}

impl Judge for Bound {
    fn stands(&self, facts: &Facts<'_>) -> bool {
        self.place.stands(facts)
    }

    fn prepare(&self, facts: &Facts<'_>, _: i64) -> Result<(), Reject> {
        self.token(facts).map(drop)
    }

    fn reads_body(&self) -> bool {
        false
    }

    fn wants(&self, facts: &Facts<'_>, _: &Chunks, _: i64) -> Option<Want> {
        let token = self.token(facts).ok()?;
        self.source.want(&token, &|document| matches!(document, Document::Token(_)))
    }

    fn finish(&self, facts: &Facts<'_>, body: &Chunks, now_ms: i64) -> Result<Held, Reject> {
        let refuse = |what: &'static str| Reject::new(Reason::TokenInvalid, what).with(Extra::Challenge("Bearer"));
        let token = self.token(facts)?;
        let document = match self.source.find(&token) {
            Found::Known(document) => document,
            Found::Absent => return Err(refuse("the issuer does not know the token")),
            Found::Unavailable(why) => return Err(Reject::new(Reason::KeysUnavailable, why)),
        };
        let Document::Token(Some(claims)) = &*document else { return Err(refuse("the issuer says that the token is not active")) };
        let told = self.claims.check(claims, facts, body, now_ms)?;
        let content = Sha256::new().chain_update(b"hooklatch token\0").chain_update(token.as_bytes()).finalize().into();
        Ok(Held { label: LABEL.into(), timestamp_ms: told.timestamp_ms, content, id: None, event_type: told.event_type })
    }

    fn verification(&self) -> Verification {
        Verification::Sender
    }

    fn names_its_route(&self) -> bool {
        self.claims.name_receiver()
    }

    fn credential_headers(&self) -> Vec<HeaderName> {
        hmac::header_of(&self.place).cloned().into_iter().collect()
    }

    fn weaknesses(&self) -> Vec<(&'static str, &'static str)> {
        vec![("its tokens prove who sent a request and nothing about the body", "guard the route with `allow_ips` or `client_cert` as well")]
    }

    fn labels(&self) -> Vec<Arc<str>> {
        vec![LABEL.into()]
    }

    fn sources(&self) -> Vec<Arc<Source>> {
        vec![self.source.clone()]
    }
}
