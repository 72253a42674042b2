//! The same data read backwards: signs a request as a provider does, for `hooklatch send` and for a destination's `sign`.
//!
//! `send` makes a request of its own: it may invent what is missing and write into the body. [`Signer`] signs what is forwarded: the
//! body is never touched, and nothing is invented that the event does not say.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde_json::Value as Json;
use url::Url;

use super::{
    Bound, Catalogue, Means, Plan, Ready, beside,
    cases::{Request, split_url},
    definition,
    definition::{Variant, When},
    engine::Engine,
    form,
    mac::Mac,
    place::{At, Body, Kind, Pick, Place, Whole, is_form, is_numbered},
    private_key::PrivateKey,
    scan, warn_short,
};
use crate::{event::Chunks, secret::Secret, section::Item};

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

/// Signs what leaves for a receiver, in a provider's form: the `sign` of a destination. Holds the keys; prints none.
pub(crate) struct Signer {
    plan: Plan,
    /// Which forms of the plan can be signed here, the first that fits being used.
    forms: Vec<usize>,
    params: BTreeMap<String, String>,
    url: Option<Address>,
}

/// Whether both sign alike: what they were made of is the same, secrets included.
impl PartialEq for Signer {
    fn eq(&self, other: &Self) -> bool {
        let same = |mine: &Secret, theirs: &Secret| (mine.label(), mine.not_after(), mine.expose()) == (theirs.label(), theirs.not_after(), theirs.expose());
        let (mine, theirs) = (&self.plan.secrets, &other.plan.secrets);
        let secrets = mine.len() == theirs.len() && mine.iter().zip(theirs).all(|(mine, theirs)| same(mine, theirs));
        let forms = |signer: &Self| signer.forms.iter().map(|at| signer.plan.forms[*at].variant.name.clone()).collect::<Vec<_>>();
        let definition = |signer: &Self| signer.plan.definition().map(|definition| format!("{definition:?}"));
        (&self.url, &self.params, forms(self), definition(self)) == (&other.url, &other.params, forms(other), definition(other)) && secrets
    }
}

/// What the receiver believes its URL to be, where that is not the destination's.
#[derive(PartialEq)]
struct Address {
    /// Scheme, host and port.
    base: String,
    /// `None`: the path that is asked for.
    path: Option<String>,
}

/// The headers in which signatures stand.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Marks {
    names: Vec<HeaderName>,
    /// The part before the number.
    numbered: Vec<String>,
}

/// Signatures that providers send beside the one that their preset reads (PROVIDERS.md): made with the provider's secret, they would
/// only be wrong beside ours.
const BESIDE: &[&str] = &["x-hub-signature", "x-hub-signature-256", "x-gitea-signature", "x-gogs-signature", "x-forgejo-signature", "x-square-signature"];

impl Marks {
    /// Takes the other's too.
    pub(crate) fn add(&mut self, other: Marks) {
        self.names.extend(other.names);
        self.numbered.extend(other.numbered);
    }

    fn remove_from(&self, headers: &mut HeaderMap) {
        let is = |name: &HeaderName| self.names.contains(name) || self.numbered.iter().any(|prefix| is_numbered(name, prefix));
        let gone: Vec<HeaderName> = headers.keys().filter(|name| BESIDE.contains(&name.as_str()) || is(name)).cloned().collect();
        for name in gone {
            headers.remove(name);
        }
    }
}

impl Plan {
    /// The headers in which its provider puts what proves a request.
    pub(crate) fn marks(&self) -> Marks {
        let mut marks = Marks::default();
        for form in &self.forms {
            let places: Vec<&Place> = match &form.ready {
                Ready::Signature(engine) => engine.recipe.signatures.iter().map(|signature| &signature.place).collect(),
                Ready::Token(token, _) => vec![&token.place],
                Ready::Basic(_) => {
                    marks.names.push(AUTHORIZATION);
                    Vec::new()
                }
                Ready::Own(judge) => {
                    marks.names.extend(judge.headers());
                    Vec::new()
                }
            };
            for place in places {
                match &place.at {
                    At::Header(name) => marks.names.push(name.clone()),
                    At::Numbered(prefix) => marks.numbered.push(prefix.clone()),
                    At::Query(_) | At::Form(_) | At::Json { .. } => {}
                }
            }
        }
        marks
    }
}

/// Reads a destination's `sign`: a table as a route's `verify`, with `url` for schemes that sign the URL.
pub(crate) fn read(item: &Item<'_>, catalogue: &Catalogue) -> Option<Signer> {
    let section = item.section()?;
    let definition = definition(&section, catalogue);
    let secrets = section.secrets();
    let beside = beside(&section, definition.as_ref());
    let url = section.item("url").map(|item| Address::read(&item));
    section.finish();
    let (definition, secrets, (params, variants)) = (definition?, secrets?, beside?);
    let url = match url {
        Some(read) => Some(read?),
        None => None,
    };
    warn_short(item, &secrets);
    let means = Means { variants: variants.as_deref(), ..Means::new(&secrets, &params) };
    let signer = if definition.signs() {
        Plan::new(&definition, &means).and_then(|plan| Signer::new(plan, params.clone(), url))
    } else {
        Err("only the provider's own key signs it".to_owned())
    };
    match signer {
        Ok(signer) => Some(signer),
        Err(why) => {
            item.problem(format!("`{}` cannot be signed here: {why}", definition.name), "sign in a form that stands in a header, such as \"standardwebhooks\"");
            None
        }
    }
}

impl Address {
    fn read(item: &Item<'_>) -> Option<Self> {
        let text = item.string()?;
        let good = Url::parse(&text).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none() && url.fragment().is_none() && url.username().is_empty()
        });
        match split_url(&text).filter(|_| good) {
            Some((base, path)) => Some(Self { base: base.to_owned(), path: Some(path).filter(|path| !path.is_empty()).map(str::to_owned) }),
            None => {
                item.problem(
                    format!("`{text}` is not the URL of a receiver"),
                    "write it like \"https://hooks.example.com\", or with the path that the receiver knows",
                );
                None
            }
        }
    }
}

/// Whether a form can be signed without touching the body.
fn signable(form: &Bound) -> Result<(), String> {
    if !form.variant.method.signs() {
        return Err("only the provider's own key signs it".to_owned());
    }
    match &form.ready {
        Ready::Signature(engine) => {
            let signatures = engine.recipe.signatures.iter().map(|signature| &signature.place);
            match signatures.chain(engine.recipe.body_digest.iter().map(|digest| &digest.place)).find(|place| !place.in_head()) {
                Some(place) => Err(format!("its signature stands in the body ({place}), which is passed on as it is")),
                None => Ok(()),
            }
        }
        Ready::Token(..) | Ready::Basic(_) => Ok(()),
        Ready::Own(judge) if judge.signs_head() => Ok(()),
        Ready::Own(_) => Err("its signature stands in the body, which is passed on as it is".to_owned()),
    }
}

impl Signer {
    fn new(plan: Plan, params: BTreeMap<String, String>, url: Option<Address>) -> Result<Self, String> {
        let (mut forms, mut refused) = (Vec::new(), None);
        for (at, form) in plan.forms.iter().enumerate() {
            match signable(form) {
                Ok(()) => forms.push(at),
                Err(why) => refused = refused.or(Some(why)),
            }
        }
        match refused {
            Some(why) if forms.is_empty() => Err(why),
            _ => Ok(Self { plan, forms, params, url }),
        }
    }

    /// Whether its signature says something of the query.
    pub(crate) fn covers_query(&self) -> bool {
        self.forms.iter().any(|at| match &self.plan.forms[*at].ready {
            Ready::Signature(engine) => engine.recipe.signed.iter().any(super::template::Template::covers_query),
            Ready::Own(judge) => judge.names_its_route(),
            Ready::Token(..) | Ready::Basic(_) => false,
        })
    }

    /// Whether every secret of it is past its `not_after`.
    pub(crate) fn is_over(&self, now_ms: i64) -> bool {
        self.plan.expired(now_ms).count() == self.plan.secrets.len()
    }

    /// Signs a request as it is about to be sent, afresh for every attempt. Signatures that came with it, in the places of this
    /// provider and in those of `others`, are taken away first; `request.base` is where it goes. The body is not changed. Several
    /// secrets sign side by side where the form carries several signatures; elsewhere the first does that is not over.
    ///
    /// Of `wishes` the id, the event type and the time count. The error is for the destination's owner and shows no secret.
    pub(crate) fn sign(&self, request: &mut Request, others: &Marks, wishes: &Wishes) -> Result<(), String> {
        let path_sent = match &self.url {
            None => None,
            Some(url) => {
                request.base.clone_from(&url.base);
                url.path.as_ref().map(|path| replace_path(&mut request.target, path))
            }
        };
        let fitting = self.forms.iter().map(|at| &self.plan.forms[*at]).find(|form| fits(&form.variant, request));
        let form = fitting.ok_or_else(|| format!("no form of `{}` fits this event", self.name()))?;
        let kept = self.kept_items(form, request);
        others.remove_from(&mut request.headers);
        self.plan.marks().remove_from(&mut request.headers);
        Signing { plan: &self.plan, form, request, wishes }.forwarded(&kept)?;
        if let Some(path) = path_sent {
            replace_path(&mut request.target, &path);
        }
        Ok(())
    }

    fn name(&self) -> &str {
        self.plan.provider().map_or("", |name| name)
    }

    /// The items of the incoming signature header that are signed with the rest, such as Hygraph's `env`.
    fn kept_items(&self, form: &Bound, request: &Request) -> Vec<(Place, String)> {
        let Ready::Signature(engine) = &form.ready else { return Vec::new() };
        let places = engine.recipe.signed.iter().flat_map(super::template::Template::places).filter(|place| matches!(place.pick, Pick::Pairs { .. }));
        let value = |place: &Place| Some(String::from_utf8_lossy(&place.value(&request.facts(), None).ok()??).into_owned());
        places.filter_map(|place| Some((place.clone(), value(place)?))).collect()
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("as", &self.name()).finish_non_exhaustive()
    }
}

/// Puts another path into a target; the one before.
fn replace_path(target: &mut String, path: &str) -> String {
    let end = target.find('?').unwrap_or(target.len());
    let before = target[..end].to_owned();
    target.replace_range(..end, path);
    before
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
                self.put(&signature.place, &signature.encoding.encode(&bytes))?;
                self.as_written(&signature.place)
            }
        }
        .and_then(|()| match self.request.judge(self.plan, self.wishes.now_ms) {
            Ok(_) => Ok(()),
            Err(why) => Err(format!("the signed request would not verify: {why}")),
        })
    }

    /// Signs what is forwarded. `kept` are items of the incoming signature header.
    fn forwarded(mut self, kept: &[(Place, String)]) -> Result<(), String> {
        for when in &self.form.variant.when {
            if let When::Header { name: Place { at: At::Header(name), .. }, equals: Some(value) } = when {
                self.header(name.clone(), value)?;
            }
        }
        let identity = &self.form.variant.identity;
        if let (Some(name), Some(place)) = (&self.wishes.event_type, identity.types.first())
            && matches!(place.at, At::Header(_))
            && !place.stands(&self.request.facts())
        {
            self.put(place, name)?;
        }
        // An id that is signed is the scheme's own; one that is not is the provider's to say, where it did.
        if let Some(place) = identity.id.as_ref().filter(|place| matches!(place.at, At::Header(_)))
            && (!place.stands(&self.request.facts()) || self.signs(place))
        {
            self.put(place, &self.wishes.id)?;
        }
        let active = |secret: &Secret| secret.not_after().is_none_or(|last| self.wishes.now_ms <= last);
        let active: Vec<usize> = self.plan.secrets.iter().enumerate().filter(|(_, secret)| active(secret)).map(|(at, _)| at).collect();
        let first = *active.first().ok_or("every secret of `sign` is past its `not_after`")?;
        match &self.form.ready {
            Ready::Token(token, _) => {
                let word = std::str::from_utf8(self.plan.secrets[first].expose()).map_err(|_| "this secret is not text, so it cannot be sent as a token")?;
                self.put(&token.place, word)?;
                self.hide(&token.place.at);
            }
            Ready::Basic(_) => {
                self.header(AUTHORIZATION, &format!("Basic {}", data_encoding::BASE64.encode(self.plan.secrets[first].expose())))?;
                self.hide(&At::Header(AUTHORIZATION));
            }
            Ready::Own(_) if first != 0 => return Err("its first secret is past its `not_after`, and no other signs in this form".to_owned()),
            Ready::Own(judge) => judge.sign(self.request, self.wishes.now_ms, &self.wishes.id)?,
            Ready::Signature(engine) => self.signatures(engine, &active, kept)?,
        }
        Ok(())
    }

    /// Whether the signature covers a value by itself.
    fn signs(&self, place: &Place) -> bool {
        matches!(&self.form.ready, Ready::Signature(engine) if engine.recipe.signed.iter().any(|template| template.places().any(|signed| signed == place)))
    }

    /// Keeps a header's value out of whatever prints headers.
    fn hide(&mut self, at: &At) {
        if let At::Header(name) = at
            && let Some(value) = self.request.headers.get_mut(name)
        {
            value.set_sensitive(true);
        }
    }

    fn signatures(&mut self, engine: &Engine, active: &[usize], kept: &[(Place, String)]) -> Result<(), String> {
        let recipe = &engine.recipe;
        if let Some(timestamp) = recipe.timestamp.as_ref().filter(|timestamp| timestamp.place.in_head()) {
            self.put(&timestamp.place, &timestamp.unit.write(self.wishes.now_ms))?;
        }
        for (place, value) in kept {
            self.put(place, value)?;
        }
        if let Some(digest) = &recipe.body_digest {
            let mut sum = Mac::digest(digest.algorithm);
            self.request.body.pieces().for_each(|piece| sum.update(piece));
            self.put(&digest.place, &digest.encoding.encode(sum.finish().as_slice()))?;
        }
        let pointers = if engine.needs_json() { &self.form.variant.pointers[..] } else { &[] };
        if engine.needs_fields() {
            self.request.body.contiguous();
        }
        let tags = {
            let facts = self.request.facts();
            let whole = Whole::new(&facts, &self.request.body, pointers);
            let (fields, flaw) = scan(&whole, pointers);
            if let Some(flaw) = flaw {
                return Err(format!("a field of the body is signed, and {flaw}"));
            }
            let body = Body { whole: &whole, fields: &fields };
            let tag = |at: &usize| engine.compute(&facts, &self.request.body, Some(body), *at).map(|tag| (*at, tag)).map_err(|why| why.detail.into_owned());
            let several = recipe.several() && self.form.variant.written.is_none();
            active.iter().take(if several { active.len() } else { 1 }).map(tag).collect::<Result<Vec<_>, String>>()?
        };
        for (nth, (at, tag)) in tags.into_iter().enumerate() {
            let signature = &recipe.signatures[engine.place_of(at)];
            let mut place = Cow::Borrowed(&signature.place);
            if let At::Numbered(prefix) = &signature.place.at {
                let name = HeaderName::from_bytes(format!("{prefix}{}", nth + 1).as_bytes()).map_err(|_| format!("`{prefix}{}` is not a header", nth + 1))?;
                place.to_mut().at = At::Header(name);
            }
            self.put(&place, &signature.encoding.encode(tag.as_slice()))?;
            self.as_written(&place)?;
        }
        Ok(())
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

    /// Puts the items of a signature header in the provider's own order, with its own blanks, where its library insists on them.
    fn as_written(&mut self, place: &Place) -> Result<(), String> {
        let (Some(written), At::Header(name), Pick::Pairs { separator, assign, .. }) = (&self.form.variant.written, &place.at, &place.pick) else {
            return Ok(());
        };
        let now = self.request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        let text = now
            .split(separator.as_str())
            .filter_map(|item| item.trim().split_once(assign.as_str()))
            .fold(written.clone(), |text, (field, value)| text.replace(&format!("{{{field}}}"), value));
        self.header(name.clone(), &text)
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

    /// The secret that a preset can be tried with.
    fn text(name: &str) -> &'static str {
        text_of(name, None)
    }

    fn text_of(name: &str, variant: Option<&str>) -> &'static str {
        let catalogue = Catalogue::shipped();
        let forms = &catalogue.definition(name).expect("a name of the catalogue").variants;
        let basic = forms.iter().filter(|form| variant.is_none() || form.name.as_deref() == variant).any(|form| form.scheme == "basic");
        match name {
            _ if basic => "user:password",
            name if name.starts_with("adyen") => "00ff",
            _ => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        }
    }

    fn signer(name: &str, variant: Option<&str>, secrets: &[Secret], url: Option<Address>) -> Result<Signer, String> {
        let catalogue = Catalogue::shipped();
        let definition = catalogue.definition(name).expect("a name of the catalogue");
        let params = definition.params.iter().map(|name| (name.clone(), "mine".to_owned())).collect();
        let variants = variant.map(|name| vec![name.to_owned()]);
        let means = Means { variants: variants.as_deref(), ..Means::new(secrets, &params) };
        Signer::new(Plan::new(definition, &means)?, params.clone(), url)
    }

    fn event(target: &str, content_type: &'static str, body: &'static str) -> Request {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Request { method: Method::POST, base: "http://10.0.0.5:9000".into(), target: target.into(), headers, body: Bytes::from_static(body.as_bytes()).into() }
    }

    const JSON: &str =
        "{ \"id\": \"evt_1\", \"type\": \"t\", \"webhookTimestamp\": 1760000000100, \"time_ms\": 1760000000100, \"timestamp\": \"2025-10-09T08:53:20Z\" }\n";
    const FORM: &str = "application/x-www-form-urlencoded";
    const NOW: i64 = 1_760_000_000_123;

    fn wishes() -> Wishes {
        Wishes { id: "0199c8f4-7d5c-7e6a-8a3e-6a3f6ad3f0c1".into(), event_type: Some("push".into()), now_ms: NOW, ..Wishes::default() }
    }

    /// What is signed for a receiver is what a receiver of that preset accepts; what came with the event is gone, the body is as it was.
    #[test]
    fn every_preset_signs_what_is_forwarded() {
        let (mut signed, mut refused) = (0, Vec::new());
        for name in Catalogue::shipped().names() {
            let definition = Catalogue::shipped().definition(name).expect("a name of the catalogue").clone();
            let variants: Vec<Option<&str>> = definition.variants.iter().map(|v| v.name.as_deref()).collect();
            for variant in variants {
                let second = Secret::new("#2", b"another secret of some length".to_vec(), None);
                let secrets = [Secret::new("#1", text_of(name, variant).into(), None), second];
                let secrets = if matches!(name, "box") { &secrets[..] } else { &secrets[..1] };
                let signer = match signer(name, variant, secrets, None) {
                    Ok(signer) => signer,
                    Err(why) => {
                        let signs = definition.variants.iter().any(|form| form.name.as_deref() == variant && form.method.signs());
                        assert!(why.contains("stands in the body") || !signs, "{name}: {why}");
                        refused.push(name.to_owned());
                        continue;
                    }
                };
                let form = &signer.plan.forms[0];
                let mut request = match variant {
                    Some("form-and-query") => event("/in?b=2&a=1", FORM, "b=2&a=1"),
                    Some("form") => event("/in", FORM, "b=2&a=1"),
                    _ if matches!(name, "mandrill" | "plivo") => event("/in", FORM, "b=2&a=1"),
                    _ => event("/in", "application/json", JSON),
                };
                let (required, kept) = match &form.ready {
                    Ready::Signature(engine) => (engine.recipe.require.clone(), engine.recipe.signed[0].places().cloned().collect()),
                    Ready::Token(token, _) => (token.require.clone(), Vec::new()),
                    Ready::Basic(_) | Ready::Own(_) => (Vec::new(), Vec::new()),
                };
                for place in required.iter().map(|required| &required.place).chain(&kept) {
                    if let At::Header(name) = &place.at {
                        let value = if let Pick::Pairs { field, .. } = &place.pick { format!("{field}=master, sign=stale") } else { "test".to_owned() };
                        request.headers.insert(name.clone(), HeaderValue::from_str(&value).expect("a value"));
                    }
                }
                for place in signer.plan.marks().names {
                    if request.headers.contains_key(&place) {
                        continue;
                    }
                    request.headers.insert(place.clone(), HeaderValue::from_static("stale"));
                    request.headers.append(place.clone(), HeaderValue::from_static("stale too"));
                }
                request.headers.insert("x-hub-signature", HeaderValue::from_static("sha1=stale"));
                let body = request.body.clone();
                signer.sign(&mut request, &Marks::default(), &wishes()).unwrap_or_else(|why| panic!("{name} {variant:?}: {why}"));
                let got = match request.judge(&signer.plan, NOW) {
                    Ok(got) => got,
                    // A time in the body is the sender's to write.
                    Err(why) if why.reason == crate::verify::Reason::TimestampMissing && why.detail.contains("JSON field") => continue,
                    Err(why) => panic!("{name} {variant:?}: {why}: {:?}", request.headers),
                };
                assert_eq!(body, request.body, "{name}");
                assert!(!format!("{:?}", request.headers).contains("stale"), "{name}: {:?}", request.headers);
                if form.variant.identity.replay == crate::verify::ReplayRule::Id && form.variant.identity.id.as_ref().is_some_and(|id| id.in_head()) {
                    assert_eq!(got.delivery_id, Some(wishes().id), "{name}");
                }
                // Another body, another time to come: the one is refused, the other signed.
                request.body = Bytes::from_static(b"b=2&a=2").into();
                if got.verification == crate::event::Verification::Content {
                    assert!(request.judge(&signer.plan, NOW).is_err(), "{name}");
                }
                signed += 1;
            }
        }
        refused.dedup();
        assert!(signed > 80, "{signed}");
        for name in ["braintree", "mailgun"] {
            assert!(refused.iter().any(|refused| refused == name), "{refused:?}");
        }
    }

    #[test]
    fn every_attempt_is_signed_at_its_own_time_under_one_id() {
        let secret = Secret::new("#1", text("standardwebhooks").into(), None);
        let signer = signer("standardwebhooks", None, &[secret], None).expect("signs");
        let mut seen = Vec::new();
        for late in [0, 600_000] {
            let mut request = event("/in", "application/json", JSON);
            request.headers.insert("webhook-id", HeaderValue::from_static("msg_of_the_provider"));
            request.headers.insert("webhook-timestamp", HeaderValue::from_static("1750000000"));
            signer.sign(&mut request, &Marks::default(), &Wishes { now_ms: NOW + late, ..wishes() }).expect("signs");
            assert!(request.judge(&signer.plan, NOW + late).is_ok());
            let value = |name: &str| request.headers[name].to_str().expect("text").to_owned();
            seen.push((value("webhook-id"), value("webhook-timestamp"), value("webhook-signature")));
        }
        assert_eq!((&seen[0].0, &seen[0].1), (&wishes().id, &"1760000000".to_owned()));
        assert_eq!((&seen[1].0, &seen[1].1), (&wishes().id, &"1760000600".to_owned()));
        assert_ne!(seen[0].2, seen[1].2);
    }

    /// A reload must notice a secret that changed.
    #[test]
    fn signers_are_the_same_only_with_the_same_secrets() {
        let made = |secret: &str| signer("stripe", None, &[Secret::new("#1", secret.into(), None)], None).expect("signs");
        assert!(made("a secret of some length") == made("a secret of some length"));
        assert!(made("a secret of some length") != made("a secret of some lengtH"));
    }

    #[test]
    fn the_url_is_the_one_that_the_receiver_knows() {
        let check = |url: Option<(&str, Option<&str>)>, base: &str, target: &str| {
            let secret = Secret::new("#1", b"a secret of some length".to_vec(), None);
            let address = url.map(|(base, path)| Address { base: base.to_owned(), path: path.map(str::to_owned) });
            for name in ["square", "twilio"] {
                let signer =
                    signer(name, None, std::slice::from_ref(&secret), address.as_ref().map(|a| Address { base: a.base.clone(), path: a.path.clone() }));
                let signer = signer.expect("signs");
                let mut request = event("/hooks?a=1", "application/json", JSON);
                signer.sign(&mut request, &Marks::default(), &wishes()).expect("signs");
                assert!(request.target.starts_with("/hooks?a=1"), "{}", request.target);
                let query = request.target.split_once('?').map_or("", |(_, query)| query).to_owned();
                let mut received = request.copy();
                received.base = base.to_owned();
                received.target = format!("{target}?{query}");
                assert!(received.judge(&signer.plan, NOW).is_ok(), "{name} {base}{target}");
                received.target = format!("/elsewhere?{query}");
                assert!(received.judge(&signer.plan, NOW).is_err(), "{name}");
            }
        };
        check(None, "http://10.0.0.5:9000", "/hooks");
        check(Some(("https://hooks.example.com", None)), "https://hooks.example.com", "/hooks");
        check(Some(("https://hooks.example.com", Some("/twilio"))), "https://hooks.example.com", "/twilio");
    }

    #[test]
    fn several_secrets_sign_side_by_side_where_there_is_room() {
        let secrets = [
            Secret::new("over", b"an old secret of some length".to_vec(), Some(NOW - 1)),
            Secret::new("new", b"a new secret of some length".to_vec(), None),
            Secret::new("next", b"the next secret of some length".to_vec(), None),
        ];
        let check = |name: &str, header: &str, want: usize| {
            let signer = signer(name, None, &secrets, None).expect("signs");
            let mut request = event("/in", "application/json", JSON);
            signer.sign(&mut request, &Marks::default(), &wishes()).expect("signs");
            let own = |secret: &Secret| signer_of(name, secret).plan;
            let good = secrets.iter().filter(|secret| request.judge(&own(secret), NOW - 10).is_ok() && secret.not_after().is_none()).count();
            assert_eq!(good, want, "{name}: {:?}", request.headers.get(header));
            assert!(
                request.judge(&signer_of(name, &Secret::new("o", secrets[0].expose().to_vec(), None)).plan, NOW).is_err(),
                "{name}: a secret that is over signed"
            );
        };
        fn signer_of(name: &str, secret: &Secret) -> Signer {
            signer(name, None, std::slice::from_ref(secret), None).expect("signs")
        }
        check("stripe", "stripe-signature", 2);
        check("pagerduty", "x-pagerduty-signature", 2);
        check("docusign", "x-docusign-signature-1", 2);
        check("github", "x-hub-signature-256", 1);
        let over = signer("github", None, &secrets[..1], None).expect("signs");
        let why = over.sign(&mut event("/in", "application/json", JSON), &Marks::default(), &wishes()).expect_err("it is over");
        assert!(over.is_over(NOW) && why.contains("not_after"), "{why}");
    }

    #[test]
    fn headers_are_written_as_the_providers_libraries_read_them() {
        let check = |name: &str, header: &str, incoming: &'static str, start: &str| {
            let secret = Secret::new("#1", text(name).into(), None);
            let signer = signer(name, None, &[secret], None).expect("signs");
            let mut request = event("/in", "application/json", JSON);
            request.headers.insert(HeaderName::from_bytes(header.as_bytes()).expect("a name"), HeaderValue::from_static(incoming));
            signer.sign(&mut request, &Marks::default(), &wishes()).expect("signs");
            let got = request.headers[header].to_str().expect("text");
            let pattern: Vec<&str> = start.split('*').collect();
            assert!(got.starts_with(pattern[0]) && got.ends_with(pattern[1]), "{name}: {got}");
        };
        check("workos", "workos-signature", "t=1, v1=00", "t=1760000000123, v1=*");
        check("hygraph", "gcms-signature", "sign=00, env=master, t=1", "sign=*, env=master, t=1760000000123");
        check("recurly", "recurly-signature", "1,00", "1760000000123,*");
        check("stripe", "stripe-signature", "t=1,v1=00,v0=11", "t=1760000000,v1=*");
        check("paddle", "paddle-signature", "", "ts=1760000000;h1=*");
        check("docusign", "x-docusign-signature-1", "stale", "*=");
    }

    #[test]
    fn what_is_not_there_is_not_invented() {
        let secret = Secret::new("#1", text("hygraph").into(), None);
        let signer = signer("hygraph", None, &[secret], None).expect("signs");
        let why = signer.sign(&mut event("/in", "application/json", JSON), &Marks::default(), &wishes()).expect_err("there is no `env`");
        assert!(why.contains("env"), "{why}");
    }
}
