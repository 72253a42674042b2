//! The same data read backwards: signs a request as a provider does, for `hooklatch send`.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde_json::Value as Json;

use super::{
    Bound, Plan, Ready,
    cases::Request,
    definition::{Variant, When},
    form,
    mac::Mac,
    place::{At, Body, Kind, Pick, Place, Whole, is_form},
    private_key::PrivateKey,
    scan,
};
use crate::{event::Chunks, secret::Secret};

/// What to sign with, beside the secret.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes {
    /// The delivery id, where the provider sends one.
    pub(crate) id: String,
    pub(crate) event_type: Option<String>,
    /// The provider's form, by name; the one that fits the request else.
    pub(crate) variant: Option<String>,
    /// Unix milliseconds.
    pub(crate) now_ms: i64,
    /// Other `name=value` items of a signature header.
    pub(crate) fields: BTreeMap<String, String>,
    /// The sender's own, where the provider signs by a key pair; the plan then has its public one.
    pub(crate) key: Option<Arc<PrivateKey>>,
}

/// Adds what the provider's requests carry (id, time, event type) and the signature. `secret` is the one that `plan` was made with, its only one.
pub(crate) fn sign(plan: &Plan, secret: &Secret, request: &mut Request, wishes: &Wishes) -> Result<(), String> {
    let definition = plan.definition().ok_or("a plan of no provider signs nothing")?;
    let form = match &wishes.variant {
        Some(name) => {
            plan.forms.iter().find(|form| form.variant.name.as_deref() == Some(name)).ok_or_else(|| format!("`{}` has no variant `{name}`", definition.name))?
        }
        None => plan.forms.iter().find(|form| fits(&form.variant, request)).or(plan.forms.last()).ok_or("the provider has no form")?,
    };
    Signing { plan, form, request, wishes }.run(secret)
}

/// Whether a request can be made one of this form.
fn fits(variant: &Variant, request: &Request) -> bool {
    let facts = request.facts();
    let digest = match &variant.method {
        super::definition::Method::Signature(recipe) => recipe.body_digest.as_ref().map(|digest| &digest.place),
        _ => None,
    };
    variant.when.iter().all(|when| match when {
        When::Header { .. } => true,
        When::Query { name } => name.stands(&facts) || (digest == Some(name) && !is_form(&facts)),
        other => other.holds(&facts),
    })
}

struct Signing<'a> {
    plan: &'a Plan,
    form: &'a Bound,
    request: &'a mut Request,
    wishes: &'a Wishes,
}

impl Signing<'_> {
    fn run(mut self, secret: &Secret) -> Result<(), String> {
        for when in &self.form.variant.when {
            if let When::Header { name: Place { at: At::Header(name), .. }, equals: Some(value) } = when {
                self.header(name.clone(), value)?;
            }
        }
        let identity = &self.form.variant.identity;
        if let (Some(name), Some(place)) = (&self.wishes.event_type, identity.types.first()) {
            self.put(place, name)?;
        }
        if let Some(place) = &identity.id
            && !self.there(place)
        {
            self.put(place, &self.wishes.id)?;
        }
        match &self.form.ready {
            Ready::Token(token, _) => {
                for required in &token.require {
                    self.fill(&required.place)?;
                }
                let word = std::str::from_utf8(secret.expose()).map_err(|_| "this secret is not text, so it cannot be sent as a token")?;
                let bare = Place { prefix: String::new(), ..token.place.clone() };
                self.put(&bare, &format!("{}{word}", token.place.prefix))
            }
            Ready::Basic(_) => self.header(AUTHORIZATION, &format!("Basic {}", data_encoding::BASE64.encode(secret.expose()))),
            Ready::Own(judge) => judge.sign(self.request, self.wishes.now_ms, &self.wishes.id),
            Ready::Signature(engine) => {
                let recipe = &engine.recipe;
                for required in &recipe.require {
                    self.fill(&required.place)?;
                }
                if let Some(timestamp) = &recipe.timestamp {
                    self.put(&timestamp.place, &timestamp.unit.write(self.wishes.now_ms))?;
                }
                for template in &recipe.signed {
                    for place in template.places() {
                        match &place.pick {
                            Pick::Pairs { field, .. } if !self.there(place) => {
                                let value = self.wishes.fields.get(field).cloned().unwrap_or_else(|| "test".to_owned());
                                self.put(place, &value)?;
                            }
                            _ => self.fill(place)?,
                        }
                    }
                }
                if let Some(digest) = &recipe.body_digest {
                    let mut sum = Mac::digest(digest.algorithm);
                    self.request.body.pieces().for_each(|piece| sum.update(piece));
                    self.put(&digest.place, &digest.encoding.encode(sum.finish().as_slice()))?;
                }
                let (bytes, place) = {
                    let facts = self.request.facts();
                    let pointers = &self.form.variant.pointers;
                    let whole = Whole::new(&facts, &self.request.body, pointers);
                    let (fields, _) = scan(&whole, pointers);
                    let body = Body { whole: &whole, fields: &fields };
                    match (&self.wishes.key, recipe.public) {
                        (Some(key), Some(algorithm)) => {
                            let mut message = Vec::new();
                            let told = engine.message(&recipe.signed[0], &facts, &self.request.body, Some(body), &mut |bytes| message.extend_from_slice(bytes));
                            told.map_err(|why| why.detail.into_owned())?;
                            (key.sign(algorithm, &message)?, recipe.signatures.iter().position(|signature| signature.public).unwrap_or(0))
                        }
                        _ => {
                            let tag = engine.compute(&facts, &self.request.body, Some(body), 0).map_err(|why| why.detail.into_owned())?;
                            (tag.as_slice().to_vec(), 0)
                        }
                    }
                };
                let signature = &recipe.signatures[place];
                self.put(&signature.place, &signature.encoding.encode(&bytes))
            }
        }
        .and_then(|()| match self.request.judge(self.plan, self.wishes.now_ms) {
            Ok(_) => Ok(()),
            Err(why) => Err(format!("the signed request would not verify: {why}")),
        })
    }

    fn there(&self, place: &Place) -> bool {
        let facts = self.request.facts();
        let pointers = &self.form.variant.pointers;
        let whole = Whole::new(&facts, &self.request.body, pointers);
        let (fields, _) = scan(&whole, pointers);
        place.value(&facts, Some(Body { whole: &whole, fields: &fields })).is_ok_and(|value| value.is_some())
    }

    /// Gives a place some value, where it has none.
    fn fill(&mut self, place: &Place) -> Result<(), String> {
        if self.there(place) {
            return Ok(());
        }
        // Braintree and the like sign a form field that holds the payload as base64 in lines.
        if let At::Form(name) = &place.at
            && !is_form(&self.request.facts())
        {
            let mut payload = data_encoding::BASE64.encode(&self.request.body.to_bytes());
            payload.push('\n');
            let name = name.clone();
            self.header(CONTENT_TYPE, "application/x-www-form-urlencoded")?;
            self.body(Vec::new());
            return self.field(&name, &payload);
        }
        self.put(place, "test")
    }

    fn header(&mut self, name: HeaderName, value: &str) -> Result<(), String> {
        let value = HeaderValue::from_str(value).map_err(|_| format!("the value for the header `{name}` cannot stand in a header"))?;
        self.request.headers.insert(name, value);
        Ok(())
    }

    fn body(&mut self, bytes: Vec<u8>) {
        self.request.body = Chunks::from(Bytes::from(bytes));
    }

    /// Writes a value where the provider writes it, beside what stands there already.
    fn put(&mut self, place: &Place, value: &str) -> Result<(), String> {
        let value = format!("{}{value}", place.prefix);
        match &place.at {
            At::Header(_) | At::Numbered(_) => {
                let name = match &place.at {
                    At::Header(name) => name.clone(),
                    At::Numbered(prefix) => HeaderName::from_bytes(format!("{prefix}1").as_bytes()).map_err(|_| format!("`{prefix}1` is not a header"))?,
                    _ => return Ok(()),
                };
                let before = self.request.headers.get(&name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
                let text = compose(&place.pick, &before, &value);
                self.header(name, &text)
            }
            At::Query(name) => {
                let (path, query) = self.request.target.split_once('?').unwrap_or((&self.request.target, ""));
                let mut text = replaced(query, name);
                push(&mut text, name, &value);
                self.request.target = format!("{path}?{text}");
                Ok(())
            }
            At::Form(name) => {
                let before = {
                    let facts = self.request.facts();
                    let whole = Whole::new(&facts, &self.request.body, &[]);
                    let body = Body { whole: &whole, fields: &[] };
                    let bare = Place { at: At::Form(name.clone()), prefix: String::new(), pick: Pick::Whole };
                    bare.value(&facts, Some(body)).ok().flatten().map(|v| String::from_utf8_lossy(&v).into_owned()).unwrap_or_default()
                };
                self.field(name, &compose(&place.pick, &before, &value))
            }
            At::Json { pointer, kind, .. } => {
                let body = self.request.body.to_bytes();
                let mut json: Json =
                    serde_json::from_slice(&body).map_err(|_| format!("the body is not JSON, so nothing can be put at `{}`", pointer.as_str()))?;
                let value = if *kind == Some(Kind::Number) { value.parse::<i64>().map_or_else(|_| value.clone().into(), Json::from) } else { value.into() };
                set(&mut json, pointer.tokens(), value).ok_or_else(|| format!("the body has no room for `{}`", pointer.as_str()))?;
                self.body(json.to_string().into_bytes());
                Ok(())
            }
        }
    }

    /// Sets a field of a form body.
    fn field(&mut self, name: &str, value: &str) -> Result<(), String> {
        if !is_form(&self.request.facts()) && !self.request.body.is_empty() {
            return Err(format!("the body is not a form, so the field `{name}` cannot be added"));
        }
        let bytes = self.request.body.to_bytes();
        let before = std::str::from_utf8(&bytes).map_err(|_| "the form is not text")?;
        let mut text = replaced(before, name);
        push(&mut text, name, value);
        self.body(text.into_bytes());
        Ok(())
    }
}

/// A value beside those that stand in the same header.
fn compose(pick: &Pick, before: &str, value: &str) -> String {
    let join = |separator: &str, item: String| if before.is_empty() { item } else { format!("{before}{separator}{item}") };
    match pick {
        Pick::Whole => value.to_owned(),
        Pick::Pairs { separator, assign, field } => join(separator, format!("{field}{assign}{value}")),
        Pick::List { separator, version } => join(separator, format!("{version}{value}")),
        Pick::Item { .. } => value.to_owned(),
    }
}

/// A form without a parameter.
fn replaced(text: &str, name: &str) -> String {
    let kept: Vec<&str> =
        text.split('&').filter(|piece| !piece.is_empty() && *form::decode(piece.split('=').next().unwrap_or("").as_bytes()) != *name.as_bytes()).collect();
    kept.join("&")
}

fn push(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() {
        text.push('&');
    }
    form::encode(name.as_bytes(), text);
    text.push('=');
    form::encode(value.as_bytes(), text);
}

/// Sets a value in a tree, making the objects on the way.
fn set(json: &mut Json, tokens: &[String], value: Json) -> Option<()> {
    let Some((first, rest)) = tokens.split_first() else {
        *json = value;
        return Some(());
    };
    let next = match json {
        Json::Object(map) => map.entry(first.clone()).or_insert_with(|| Json::Object(serde_json::Map::new())),
        Json::Array(items) => items.get_mut(first.parse::<usize>().ok()?)?,
        _ => return None,
    };
    set(next, rest, value)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::verify::{Catalogue, Means};

    /// Every preset signs what it would itself accept, and the request carries the id and type it was given.
    #[test]
    fn every_preset_signs_what_it_verifies() {
        let catalogue = Catalogue::shipped();
        for name in catalogue.names() {
            let definition = catalogue.definition(name).expect("a name of the catalogue");
            if !definition.signs() {
                continue;
            }
            let variants: Vec<Option<String>> = definition.variants.iter().map(|v| v.name.clone()).chain([None]).collect();
            for variant in variants {
                let text = if definition.schemes() == ["basic"] {
                    "user:password"
                } else if name.starts_with("adyen") {
                    "00ff"
                } else {
                    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
                };
                let secret = Secret::new("#1", text.into(), None);
                let params = definition.params.iter().map(|name| (name.clone(), "mine".to_owned())).collect();
                let plan = Plan::new(definition, &Means::new(std::slice::from_ref(&secret), &params)).expect("a plan");
                let is_form = matches!(name, "mandrill" | "plivo") || variant.as_deref() == Some("form");
                let with_query = variant.as_deref() == Some("form-and-query");
                let mut request = Request {
                    method: Method::POST,
                    base: "https://hooks.example.com".into(),
                    target: if with_query { "/in?b=2&a=1".into() } else { "/in".into() },
                    headers: HeaderMap::new(),
                    body: Bytes::from_static(if is_form { b"b=2&a=1" } else { b"{\"id\":\"evt_1\",\"type\":\"t\"}" }).into(),
                };
                let kind = if is_form || with_query { "application/x-www-form-urlencoded" } else { "application/json" };
                if with_query {
                    request.body = Bytes::from_static(b"b=2&a=1").into();
                }
                request.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                let wishes = Wishes { id: "msg_1".into(), now_ms: 1_760_000_000_123, variant: variant.clone(), ..Wishes::default() };
                sign(&plan, &secret, &mut request, &wishes).unwrap_or_else(|why| panic!("{name} {variant:?}: {why}"));
            }
        }
    }
}
