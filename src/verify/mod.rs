//! Who sent it: judges the proof that a request carries, by a provider's definition and a route's secrets. Pure.
//!
//! [`Plan::prepare`] decides what the head alone can (missing, malformed, stale), [`Plan::update`] takes the body's bytes as they
//! arrive, [`Plan::finish`] says whether the proof holds. Only this file makes a [`Signed`] whose verification is not `none`:
//! review [`Plan::finish`]. What a scheme signs decides what may be believed: a delivery id that is not signed never keys a replay
//! record, and a scheme that leaves the body out gives [`Verification::Sender`]. Never here: sockets, clocks, files.
//!
//! A new provider of a known scheme is a table in `providers.toml`; a new scheme is a file and a row in `definition.rs`.

mod account;
mod adyen;
mod aws_sns;
mod basic;
pub(crate) mod cases;
mod catalogue;
mod certified;
pub(crate) mod challenge;
mod claims;
mod contentful;
mod definition;
mod ecdsa;
mod ed25519;
mod engine;
pub(crate) mod explain;
mod form;
mod hash;
mod hmac;
mod introspection;
mod judge;
mod jwt;
mod key;
mod mac;
mod message_signatures;
mod microsoft_graph;
mod paypal;
mod place;
pub(crate) mod private_key;
pub(crate) mod public_key;
mod rsa;
pub(crate) mod sign;
mod standard_webhooks;
mod template;
mod timestamp;
mod token;
mod variants;

#[cfg(test)]
mod key_pairs;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wycheproof;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, Method as HttpMethod, header::AUTHORIZATION};
use sha2::{Digest, Sha256};

pub(crate) use self::{
    catalogue::{Catalogue, Entry},
    challenge::{Greeting, Reply},
    definition::{Acknowledge, Checked, Definition, Retries, SCHEMES, Traits},
};
use self::{
    challenge::Pattern,
    definition::{Identity, Method, ReplayRule, Variant, param_name},
    engine::{Engine, Matched, Recipe, Running},
    judge::{Held, Judge},
    place::{At, Body, Pick, Place, Whole},
    public_key::Trusted,
    token::Known,
};
use crate::{
    event::{Chunks, Verification},
    keys,
    reject::{Reason, Reject},
    secret::Secret,
    section::{Item, Section},
    validate::json::{Flaw, Pointer, Value},
};

/// The head of a request, as far as signatures go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) method: &'a HttpMethod,
    /// Scheme, host and port of the URL that the provider was given, such as `https://hooks.example.com`; no slash at the end.
    pub(crate) base: &'a str,
    /// Path and query exactly as they arrived.
    pub(crate) target: &'a str,
    pub(crate) headers: &'a HeaderMap,
}

impl<'a> Facts<'a> {
    fn path(&self) -> &'a str {
        self.target.split('?').next().unwrap_or("")
    }

    fn query(&self) -> &'a [u8] {
        self.target.split_once('?').map_or(&[], |(_, query)| query.as_bytes())
    }
}

/// How a route verifies its requests: its `verify` value, ready to use. Holds the keys; prints none.
pub(crate) struct Plan {
    definition: Option<Arc<Definition>>,
    forms: Vec<Bound>,
    labels: Vec<Arc<str>>,
    /// For what `check` says of them; the forms hold keys made of them.
    secrets: Vec<Secret>,
    public_keys: Vec<Trusted>,
    /// For explaining a refusal: what else it was made with.
    asked: Asked,
    /// The provider's handshakes.
    challenges: challenge::Bound,
}

/// [`Means`] without the secrets, kept.
#[derive(Default)]
struct Asked {
    params: BTreeMap<String, String>,
    keys: Option<keys::Given>,
    variants: Option<Vec<String>>,
    tolerance: Option<Duration>,
}

/// One form of a provider's requests, with its keys.
struct Bound {
    variant: Variant,
    ready: Ready,
}

enum Ready {
    Signature(Box<Engine>),
    Token(token::Token, Known),
    Basic(Known),
    Own(Box<dyn Judge>),
}

/// What a route verifies with.
#[derive(Clone, Copy)]
pub(crate) struct Means<'a> {
    pub(crate) secrets: &'a [Secret],
    /// The sender's; without any the provider's own published ones count.
    pub(crate) public_keys: &'a [Trusted],
    /// What the provider asks for beside secrets, by name.
    pub(crate) params: &'a BTreeMap<String, String>,
    /// Where keys come from, in place of what the definition says.
    pub(crate) keys: Option<&'a keys::Given>,
    /// Narrows the provider's forms by name.
    pub(crate) variants: Option<&'a [String]>,
    /// Replaces the tolerance of its signed times.
    pub(crate) tolerance: Option<Duration>,
}

static NO_PARAMS: BTreeMap<String, String> = BTreeMap::new();

impl Default for Means<'_> {
    fn default() -> Self {
        Self { secrets: &[], public_keys: &[], params: &NO_PARAMS, keys: None, variants: None, tolerance: None }
    }
}

impl<'a> Means<'a> {
    pub(crate) fn new(secrets: &'a [Secret], params: &'a BTreeMap<String, String>) -> Self {
        Self { secrets, params, ..Self::default() }
    }

    /// The route's own source of keys, else the definition's.
    fn source(&self, defined: Option<&keys::Settings>) -> Option<Arc<keys::Source>> {
        let bind = |settings: &keys::Settings| keys::Source::remote(settings.bind(self.params, self.secrets.first()));
        match self.keys {
            Some(keys::Given::Fixed(source)) => Some(source.clone()),
            Some(keys::Given::Remote(settings)) => Some(bind(settings)),
            None => defined.map(bind),
        }
    }
}

/// A proof under way: what the head gave, and the MACs that the body feeds.
pub(crate) struct Feed {
    form: usize,
    state: State,
}

#[expect(clippy::large_enum_variant, reason = "the usual case must not allocate")]
enum State {
    /// `verify = "none"`.
    Nothing,
    /// The head alone was the proof.
    Proven(Arc<str>),
    Running(Running),
    /// A scheme of its own kind judges the whole request.
    Own,
}

/// What is known of a sender once its proof was judged.
#[derive(Clone, Debug)]
pub(crate) struct Signed {
    pub(crate) verification: Verification,
    pub(crate) provider: Option<Arc<str>>,
    /// The secret that verified.
    pub(crate) secret: Option<Arc<str>>,
    pub(crate) delivery_id: Option<String>,
    pub(crate) event_type: Option<String>,
    /// The time that the scheme carries, Unix milliseconds.
    pub(crate) timestamp_ms: Option<i64>,
    /// What the replay record is keyed on; made of signed content only, `None` where there is none to trust.
    pub(crate) replay: Option<ReplayKey>,
    /// Keeps the making of this value in this room.
    #[expect(dead_code, reason = "nobody reads it; that nobody else can write it is the point")]
    minted: Minted,
}

#[derive(Clone, Debug)]
struct Minted(());

/// Names an event for the replay record. A digest: it never shows what it was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ReplayKey {
    pub(crate) kind: ReplayKind,
    pub(crate) digest: [u8; 32],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ReplayKind {
    Id,
    Content,
}

impl ReplayKey {
    /// The key of a signed delivery id.
    pub(crate) fn of_id(id: &[u8]) -> Self {
        Self { kind: ReplayKind::Id, digest: Sha256::new().chain_update(b"hooklatch id\0").chain_update(id).finalize().into() }
    }
}

impl fmt::Display for ReplayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ReplayKind::Id => "id",
            ReplayKind::Content => "content",
        };
        write!(f, "{kind}:{}", HEXLOWER.encode(&self.digest))
    }
}

/// Reads a route's `verify`: `"none"`, or a table with `provider` (or a `scheme` and its keys) and its `secret`, `secrets`, `public_key` or
/// `public_keys`.
pub(crate) fn read(route: &Section<'_>, catalogue: &Catalogue) -> Option<Plan> {
    let Some(item) = route.item("verify") else {
        route.problem("verify", "this route has no `verify`", "verify = { provider = \"…\", secret = \"env:…\" }; \"none\" says that anybody may send");
        return None;
    };
    if let Some(word) = item.as_str() {
        if word == "none" {
            return Some(Plan::none());
        }
        item.problem(format!("`{word}` is no way to verify"), "a table with `provider` and `secret`, or \"none\"");
        return None;
    }
    let section = item.section()?;
    let definition = definition(&section, catalogue);
    let given = given(&section, definition.as_deref());
    let keys = section.item("keys").map(|item| keys::Source::read(&item));
    if let (None, Some(definition)) =
        (&keys, definition.as_ref().filter(|definition| definition.needs_keys() && !section.has("public_key") && !section.has("public_keys")))
    {
        section.problem("keys", format!("`{}` needs `keys`: where its issuer publishes them", definition.name), "keys = \"https://…/jwks.json\"");
        section.finish();
        return None;
    }
    let beside = beside(&section, definition.as_ref());
    let tolerance = section.opt_duration("tolerance");
    let tokens = if is_inline(&section) { Some(BTreeMap::new()) } else { tokens(&section, definition.as_ref()) };
    let forward = route.bool_or("forward_challenge", false);
    let paired = section.pairs_secret();
    if paired && definition.as_ref().is_some_and(|definition| !definition.challenges.pairs()) {
        section.problem("secret", "this provider hands over no secret by handshake", "say where the secret stands: `env:NAME` or `file:PATH`");
    }
    if paired && forward {
        route.problem(
            "forward_challenge",
            "a secret that is handed over cannot be both taken here and forwarded",
            "remove `forward_challenge`, or give the secret",
        );
    }
    section.finish();
    let (definition, (secrets, public_keys), (params, variants), tokens) = (&definition?, given?, beside?, tokens?);
    let keys = match keys {
        Some(read) => Some(read?),
        None => None,
    };
    match Plan::new(
        definition,
        &Means { secrets: &secrets, public_keys: &public_keys, params: &params, keys: keys.as_ref(), variants: variants.as_deref(), tolerance },
    ) {
        Ok(mut plan) => {
            plan.challenges.configure(tokens, forward, paired);
            warn_short(&item, &secrets);
            plan.warn(&item, &secrets);
            Some(plan)
        }
        Err(why) => {
            item.problem(why, "");
            None
        }
    }
}

/// The secrets and the public keys of a route, of the kinds that its provider needs.
fn given(section: &Section<'_>, definition: Option<&Definition>) -> Option<(Vec<Secret>, Vec<Trusted>)> {
    let has = |one: &str, many: &str| section.has(one) | section.has(many);
    let (has_secrets, has_public) = (has("secret", "secrets"), has("public_key", "public_keys"));
    let public_keys = public_key::read(section);
    let Some(definition) = definition else {
        return has_secrets.then(|| section.secrets()).flatten().zip(public_keys);
    };
    let (takes_secrets, takes_public) = (definition.needs_secret(section.has("keys")), definition.takes_public_keys());
    if has_public && !takes_public {
        section.problem("public_key", format!("`{}` is not verified by a public key", definition.name), "give its `secret`");
    }
    if has_secrets && !takes_secrets && takes_public {
        section.problem("secret", format!("`{}` signs with a key pair, so there is no shared secret", definition.name), "give its `public_key`");
    }
    let known = has_public || !definition.public_keys.is_empty() || section.has("keys") || definition.publishes_keys();
    if takes_public && !known && !(takes_secrets && has_secrets) {
        let (what, help) = if takes_secrets {
            ("`secret` or `public_key` is missing", "secret = \"env:…\" for a shared key, public_key = \"…\" for the sender's key pair")
        } else {
            ("`public_key` is missing", "the provider shows it beside the webhook's settings: public_key = \"…\", \"file:…\" or \"env:…\"")
        };
        section.problem("public_key", what, help);
        return None;
    }
    let secrets = if has_secrets || (takes_secrets && !(takes_public && (has_public || !definition.public_keys.is_empty()))) {
        section.secrets()
    } else {
        Some(Vec::new())
    };
    secrets.zip(public_keys)
}

/// What a table verifies or signs by: a definition's name under `provider`, or a `scheme` with its keys in the table itself, where
/// nobody else shares it.
fn definition(section: &Section<'_>, catalogue: &Catalogue) -> Option<Arc<Definition>> {
    if is_inline(section) {
        return Definition::read_inline(section, &section.opt_string("scheme")?).map(Arc::new);
    }
    let name = section.string("provider")?;
    let found = catalogue.definition(&name);
    if found.is_none() {
        section.problem("provider", format!("there is no provider `{name}`"), catalogue.hint(&name));
    }
    found.cloned()
}

fn is_inline(section: &Section<'_>) -> bool {
    section.has("scheme") && !section.has("provider")
}

/// A definition's params, and the names of the forms that are left.
type Beside = (BTreeMap<String, String>, Option<Vec<String>>);

/// What stands beside a definition where it is used.
fn beside(section: &Section<'_>, definition: Option<&Arc<Definition>>) -> Option<Beside> {
    if is_inline(section) {
        return Some((BTreeMap::new(), None));
    }
    let params = params(section, definition);
    let variants = match section.item("variants").map(|item| item.strings()) {
        Some(read) => Some(read?),
        None => None,
    };
    Some((params?, variants))
}

/// What one route's handshakes answer with a MAC must sign nothing at another route of the same secret either.
pub(crate) fn share_guards(mut plans: Vec<&mut Plan>) {
    let answering: Vec<(Vec<Secret>, Vec<Pattern>)> =
        plans.iter().filter(|plan| !plan.challenges.guards.is_empty()).map(|plan| (plan.secrets.clone(), plan.challenges.guards.clone())).collect();
    for (secrets, guards) in &answering {
        for plan in &mut plans {
            if plan.secrets.iter().any(|own| secrets.iter().any(|secret| secret.expose() == own.expose())) {
                let new: Vec<Pattern> = guards.iter().filter(|guard| !plan.challenges.guards.contains(guard)).cloned().collect();
                plan.challenges.guards.extend(new);
            }
        }
    }
}

/// Warns of secrets that could be guessed.
fn warn_short(item: &Item<'_>, secrets: &[Secret]) {
    for secret in secrets.iter().filter(|secret| secret.expose().len() < 16) {
        item.warn(format!("the secret {} has {} bytes", secret.label(), secret.expose().len()), "use 16 or more, from a random source");
    }
}

/// The route's values for what a definition asks beside the secret.
fn params(section: &Section<'_>, definition: Option<&Arc<Definition>>) -> Option<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    let Some(definition) = definition else {
        section.has("params");
        return Some(values);
    };
    if definition.params.is_empty() && !section.has("params") {
        return Some(values);
    }
    let table = section.opt_section("params");
    if let Some(table) = &table {
        // Read by [`tokens`].
        definition.challenges.tokens().iter().for_each(|name| {
            table.has(name);
        });
    }
    if table.is_none() && !section.has("params") {
        section.problem("params", format!("`{}` needs `params`: {}", definition.name, definition.params.join(", ")), "params = { … }");
    }
    let table = table?;
    let mut complete = true;
    for name in &definition.params {
        match table.string(name).filter(|value| !value.is_empty()) {
            Some(value) => drop(values.insert(name.clone(), value)),
            None => complete = false,
        }
    }
    for name in &definition.optional_params {
        values.extend(table.opt_string(name).filter(|value| !value.is_empty()).map(|value| (name.clone(), value)));
    }
    table.finish();
    complete.then_some(values)
}

/// The route's values for the tokens that a provider's handshakes carry: secrets, which it may leave out.
fn tokens(section: &Section<'_>, definition: Option<&Arc<Definition>>) -> Option<BTreeMap<String, Secret>> {
    let mut values = BTreeMap::new();
    let names = definition.map(|definition| definition.challenges.tokens()).unwrap_or_default();
    let Some(table) = (if names.is_empty() { None } else { section.opt_section("params") }) else { return Some(values) };
    let mut fine = true;
    for name in names {
        match table.item(name).map(|item| item.secret(1)) {
            None => {}
            Some(Some(secret)) => drop(values.insert(name.to_owned(), secret)),
            Some(None) => fine = false,
        }
    }
    fine.then_some(values)
}

impl Plan {
    /// `verify = "none"`: anybody may send.
    pub(crate) fn none() -> Self {
        let (asked, challenges) = (Asked::default(), challenge::Bound::default());
        Self { definition: None, forms: Vec::new(), labels: Vec::new(), secrets: Vec::new(), public_keys: Vec::new(), asked, challenges }
    }

    /// Binds a definition to what a route verifies with; a form of the provider that none of it can prove is left out. The error is for the policy's author and never shows a secret.
    pub(crate) fn new(definition: &Arc<Definition>, means: &Means<'_>) -> Result<Self, String> {
        let Means { secrets, params, variants, tolerance, .. } = *means;
        if let Some(name) = definition.params.iter().find(|name| !params.contains_key(*name)) {
            return Err(format!("`{}` needs `{name}` in `params`", definition.name));
        }
        let known: Vec<&str> = definition.variants.iter().filter_map(|variant| variant.name.as_deref()).collect();
        if let Some(name) = variants.into_iter().flatten().find(|name| !known.contains(&name.as_str())) {
            return Err(format!(
                "`{}` has no variant `{name}`; it has {}",
                definition.name,
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ));
        }
        let mut public_keys = if means.public_keys.is_empty() { definition.public_keys.clone() } else { means.public_keys.to_vec() };
        for key in &mut public_keys {
            if secrets.iter().any(|secret| *secret.label() == key.label) {
                key.label = format!("public-{}", key.label).into();
            }
        }
        let means = &Means { public_keys: &public_keys, ..*means };
        let mut forms = Vec::new();
        for variant in &definition.variants {
            let method = &variant.method;
            let (takes_secrets, takes_keys) = (method.needs_secret(means.keys.is_some()), method.takes_public_keys());
            let by_secret = takes_secrets && !secrets.is_empty();
            let by_key = takes_keys && (!public_keys.is_empty() || means.keys.is_some() || method.publishes_keys());
            if (takes_secrets || takes_keys) && !by_secret && !by_key {
                continue;
            }
            if variants.is_some_and(|wanted| !wanted.iter().any(|name| Some(name.as_str()) == variant.name.as_deref())) {
                continue;
            }
            let ready = match &variant.method {
                Method::Signature(recipe) => {
                    let mut recipe = Recipe::clone(recipe);
                    recipe.signed.iter_mut().for_each(|template| template.bind(params));
                    for signature in &mut recipe.signatures {
                        if let Pick::Pairs { field, .. } = &mut signature.place.pick
                            && let Some(value) = param_name(field).and_then(|name| params.get(name))
                        {
                            *field = value.clone();
                        }
                    }
                    if let (Some(timestamp), Some(tolerance)) = (&mut recipe.timestamp, tolerance) {
                        timestamp.tolerance = tolerance;
                        timestamp.future = tolerance;
                    }
                    // Keys that a route pins stand instead of those that the provider publishes.
                    let published = recipe.keys.clone().filter(|_| means.public_keys.is_empty());
                    let source = means.source(published.as_ref()).filter(|_| recipe.by_key_pair());
                    Ready::Signature(Box::new(Engine::new(recipe, secrets, &public_keys, source)?))
                }
                Method::Token(token) => Ready::Token(token.clone(), Known::new(secrets)),
                Method::Basic => {
                    for secret in secrets {
                        basic::check_secret(secret.expose()).map_err(|why| format!("secret {}: {why}", secret.label()))?;
                    }
                    Ready::Basic(Known::new(secrets))
                }
                Method::Own(rule) => Ready::Own(rule.bind(means)?),
            };
            forms.push(Bound { variant: variant.clone(), ready });
        }
        if forms.is_empty() {
            return Err("nothing could be verified: there is no secret or key of the kind that is needed, or no form of the provider is left".to_owned());
        }
        let mut labels: Vec<Arc<str>> = secrets.iter().map(|secret| secret.label().clone()).collect();
        labels.extend(public_keys.iter().map(|key| key.label.clone()));
        for form in &forms {
            match &form.ready {
                Ready::Own(judge) => labels.extend(judge.labels()),
                Ready::Signature(engine) => labels.extend(engine.source().map(|_| engine::PUBLISHED.into())),
                Ready::Token(..) | Ready::Basic(_) => {}
            }
        }
        labels.sort();
        labels.dedup();
        let asked = Asked { params: params.clone(), keys: means.keys.cloned(), variants: variants.map(<[String]>::to_vec), tolerance };
        let key = definition.variants.iter().find_map(|variant| match &variant.method {
            Method::Signature(recipe) => Some(&recipe.key),
            Method::Token(_) | Method::Basic | Method::Own(_) => None,
        });
        let challenges = challenge::Bound::default();
        let mut plan = Self { definition: Some(definition.clone()), forms, labels, secrets: secrets.to_vec(), public_keys, asked, challenges };
        plan.challenges = challenge::Bound::new(&definition.challenges, secrets, key, params, plan.credential_params())?;
        Ok(plan)
    }

    /// What it was made with, to make it anew with a change.
    pub(crate) fn means(&self) -> Means<'_> {
        let Asked { params, keys, variants, tolerance } = &self.asked;
        Means { secrets: &self.secrets, public_keys: &self.public_keys, params, keys: keys.as_ref(), variants: variants.as_deref(), tolerance: *tolerance }
    }

    /// Says what is weak about it.
    fn warn(&self, item: &Item<'_>, secrets: &[Secret]) {
        let name = self.definition.as_ref().map_or("", |definition| &definition.name);
        let mut said = Vec::new();
        for form in &self.forms {
            match &form.ready {
                Ready::Token(..) | Ready::Basic(_) => said.push((
                    "what this provider sends proves who sent it and nothing about the body",
                    "guard the route with `allow_ips` or `client_cert` as well",
                )),
                Ready::Own(judge) => said.extend(judge.weaknesses()),
                Ready::Signature(engine) => {
                    let recipe = &engine.recipe;
                    if recipe.algorithm == mac::Algorithm::Sha1 {
                        said.push(("this provider signs with SHA-1", "use its newer form, if it has one"));
                    }
                    if recipe.plain_hash {
                        said.push(("a form of this provider is a plain digest and not an HMAC", "narrow it with `variants`, if it has a stronger form"));
                    }
                    if form.variant.scheme == standard_webhooks::SCHEME.name
                        && secrets.iter().any(|secret| recipe.key.bytes(secret.expose()).is_ok_and(|key| !standard_webhooks::KEY_BYTES.contains(&key.len())))
                    {
                        said.push(("a key is not of the 24 to 64 bytes that Standard Webhooks asks for", "let the sender make a new one"));
                    }
                }
            }
        }
        said.dedup();
        for (what, help) in said {
            item.warn(format!("`{name}`: {what}"), help);
        }
        for token in self.challenges.missing() {
            item.warn(
                format!("`{name}` cannot subscribe to this route: its handshake carries a token that `params` does not name"),
                format!("params = {{ {token} = \"env:…\" }}, or `forward_challenge = true` where the receiver answers"),
            );
        }
    }

    /// Whether it is `verify = "none"`.
    pub(crate) fn is_none(&self) -> bool {
        self.definition.is_none()
    }

    /// The provider and how it behaves; `None` for `verify = "none"`.
    pub(crate) fn definition(&self) -> Option<&Arc<Definition>> {
        self.definition.as_ref()
    }

    pub(crate) fn provider(&self) -> Option<&Arc<str>> {
        self.definition.as_ref().map(|definition| &definition.name)
    }

    /// Whether a request that was signed for this route would be accepted by the other too: a secret of both, and a form of both whose
    /// signature does not cover the URL. The providers may differ: many sign alike.
    pub(crate) fn accepts_what_is_meant_for(&self, other: &Self) -> bool {
        let one_key = self.secrets.iter().any(|secret| other.secrets.iter().any(|theirs| theirs.expose() == secret.expose()))
            || self.public_keys.iter().any(|mine| other.public_keys.iter().any(|theirs| theirs.key.same(&mine.key)));
        let alike = |mine: &Bound, theirs: &Bound| match (&mine.ready, &theirs.ready) {
            (Ready::Own(_), _) => self.provider() == other.provider() && mine.is_proof_for(theirs),
            (Ready::Signature(_) | Ready::Token(..) | Ready::Basic(_), _) => mine.is_proof_for(theirs),
        };
        one_key && self.forms.iter().any(|mine| other.forms.iter().any(|theirs| alike(mine, theirs)))
    }

    /// Whether any form of its requests carries a signature, and not a secret itself.
    pub(crate) fn signs(&self) -> bool {
        self.forms.iter().any(|form| match &form.ready {
            Ready::Signature(_) => true,
            Ready::Own(judge) => judge.verification() == Verification::Content,
            Ready::Token(..) | Ready::Basic(_) => false,
        })
    }

    /// The labels of the secrets and public keys whose `not_after` is over.
    pub(crate) fn expired(&self, now_ms: i64) -> impl Iterator<Item = &Arc<str>> {
        let secrets = self.secrets.iter().map(|secret| (secret.label(), secret.not_after()));
        let all = secrets.chain(self.public_keys.iter().map(|key| (&key.label, key.not_after)));
        all.filter(move |(_, not_after)| not_after.is_some_and(|end| end < now_ms)).map(|(label, _)| label)
    }

    /// The labels of its secrets, for metrics.
    pub(crate) fn labels(&self) -> &[Arc<str>] {
        &self.labels
    }

    /// The most that a signature of this plan vouches for, in its weakest form.
    pub(crate) fn verification(&self) -> Verification {
        self.forms.iter().map(Bound::verification).min().unwrap_or_default()
    }

    /// How far a signed attempt time may be off, where every form has one; a replay record need not live much longer than that.
    pub(crate) fn attempt_window(&self) -> Option<Duration> {
        let windows = self.forms.iter().map(|form| match &form.ready {
            Ready::Signature(engine) => {
                engine.recipe.timestamp.as_ref().filter(|timestamp| timestamp.enforced).map(|timestamp| timestamp.tolerance.max(timestamp.future))
            }
            Ready::Own(judge) => judge.attempt_window(),
            Ready::Token(..) | Ready::Basic(_) => None,
        });
        windows.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// Whether its requests have a replay key at all.
    pub(crate) fn keys_replays(&self) -> bool {
        !self.forms.is_empty() && self.forms.iter().all(|form| form.variant.identity.replay != ReplayRule::None)
    }

    /// The headers whose value is itself a credential: masked wherever a request is shown.
    pub(crate) fn credential_headers(&self) -> Vec<HeaderName> {
        let all = self.forms.iter().flat_map(|form| match &form.ready {
            Ready::Signature(_) => Vec::new(),
            Ready::Token(token, _) => token.header().cloned().into_iter().collect(),
            Ready::Basic(_) => vec![AUTHORIZATION],
            Ready::Own(judge) => judge.credential_headers(),
        });
        all.collect()
    }

    /// Whether a signature or a credential stands in a header, in any form: hidden wherever a refused request is shown.
    pub(crate) fn is_proof(&self, header: &HeaderName) -> bool {
        let stands = |place: &Place| match &place.at {
            At::Header(name) => name == header,
            At::Numbered(prefix) => header.as_str().starts_with(prefix.as_str()),
            At::Query(_) | At::Form(_) | At::Json { .. } => false,
        };
        self.credential_headers().contains(header)
            || self.forms.iter().any(|form| matches!(&form.ready, Ready::Signature(engine) if engine.recipe.signatures.iter().any(|s| stands(&s.place))))
    }

    /// Whether any of its forms verifies a signature of a key pair over a template: those that a private key can be given for.
    pub(crate) fn signs_by_key_pair(&self) -> bool {
        self.forms.iter().any(|form| matches!(&form.ready, Ready::Signature(engine) if engine.recipe.public.is_some() && engine.recipe.signatures.iter().any(|signature| signature.public)))
    }

    /// Whether a signature stands in the body, in any form.
    pub(crate) fn proves_in_body(&self) -> bool {
        self.forms.iter().any(|form| match &form.ready {
            Ready::Signature(engine) => engine.recipe.signatures.iter().any(|signature| !signature.place.in_head()),
            Ready::Token(..) | Ready::Basic(_) => false,
            Ready::Own(judge) => judge.reads_body(),
        })
    }

    /// The query parameters of that kind.
    pub(crate) fn credential_params(&self) -> Vec<String> {
        let all = self.forms.iter().filter_map(|form| match &form.ready {
            Ready::Token(token::Token { place: Place { at: At::Query(name), .. }, .. }, _) => Some(name.clone()),
            Ready::Signature(_) | Ready::Token(..) | Ready::Basic(_) | Ready::Own(_) => None,
        });
        all.chain(self.challenges.token_params().map(str::to_owned)).collect()
    }

    // -- handshakes --

    /// The methods of the provider's handshakes, whatever methods the route takes.
    pub(crate) fn handshake_methods(&self) -> Vec<HttpMethod> {
        self.challenges.methods()
    }

    /// Whether the head is that of a handshake, with exactly its method and parameters; `allowed` may come as well.
    pub(crate) fn heads_handshake(&self, facts: &Facts<'_>, allowed: &[String]) -> bool {
        self.challenges.heads(facts, allowed)
    }

    /// What the head tells of a handshake that nobody signs. `armed`: a secret is taken that the provider hands over.
    pub(crate) fn asked(&self, facts: &Facts<'_>, allowed: &[String], armed: bool) -> Greeting {
        self.challenges.asked(facts, allowed, armed)
    }

    /// The answer where the request is a handshake; `signed` says what was proven of it, if anything was.
    pub(crate) fn answer(
        &self,
        facts: &Facts<'_>,
        body: &mut Chunks,
        signed: Option<&Signed>,
        allowed: &[String],
        armed: bool,
        now_ms: i64,
    ) -> Result<Option<Reply>, Reject> {
        self.challenges.reply(facts, body, signed.and_then(|signed| signed.secret.as_ref()), allowed, armed, now_ms)
    }

    /// Whether `hooklatch pair` can take the route's secret.
    pub(crate) fn takes_secret(&self) -> bool {
        self.challenges.takes_secret()
    }

    /// Whether a secret that was taken has to be given back to the provider by a person.
    pub(crate) fn shows_secret(&self) -> bool {
        self.challenges.shows()
    }

    /// Whether the receiver answers handshakes, and not the gate.
    pub(crate) fn forwards_handshakes(&self) -> bool {
        self.challenges.forwards()
    }

    /// Whether the provider takes a refusal only without a body.
    pub(crate) fn refuses_bare(&self) -> bool {
        self.challenges.bare_refusals()
    }

    /// Refuses text that a handshake answers with its MAC: what can be had by asking must not sign anything.
    fn refuse_answers(&self, form: &Bound, proof: &Proof, facts: &Facts<'_>, chunks: &Chunks, body: Option<Body<'_>>) -> Result<(), Reject> {
        let guards = &self.challenges.guards;
        let (Some(most), Some(matched), Ready::Signature(engine)) = (guards.iter().map(Pattern::max).max(), &proof.matched, &form.ready) else {
            return Ok(());
        };
        if engine.signs(matched, facts, chunks, body, most, &|text| guards.iter().any(|guard| guard.matches(text)))? {
            return Err(Reject::new(Reason::SignatureMismatch, "what is signed is what a handshake is answered with, so the signature proves nothing"));
        }
        Ok(())
    }

    /// The first query parameter that the signature does not cover and that is not among `allowed`, as it may be shown: cut, and `*`
    /// for one without a value, which may be a token itself.
    pub(crate) fn unsigned_query(&self, facts: &Facts<'_>, allowed: &[String]) -> Option<String> {
        if facts.query().is_empty() {
            return None;
        }
        let form = self.forms.get(self.choose(facts));
        let unsigned = |name: &str| !allowed.iter().any(|known| known == name) && !form.is_some_and(|form| form.covers_query(name));
        facts.query().split(|byte| *byte == b'&').filter(|piece| !piece.is_empty()).find_map(|piece| {
            let bare = !piece.contains(&b'=');
            let name = String::from_utf8_lossy(&form::decode(form::raw(piece).next()?.0)).into_owned();
            unsigned(&name).then(|| if bare { "*".to_owned() } else { name.chars().take(64).collect() })
        })
    }

    /// Which form a request is of: the first whose conditions hold, else the last.
    fn choose(&self, facts: &Facts<'_>) -> usize {
        let chosen = self
            .forms
            .iter()
            .position(|form| if form.variant.when.is_empty() { form.stands(facts) } else { form.variant.when.iter().all(|when| when.holds(facts)) });
        chosen.unwrap_or(self.forms.len().saturating_sub(1))
    }

    /// What the head alone decides: missing, malformed and stale end here, tokens are judged.
    pub(crate) fn prepare(&self, facts: &Facts<'_>, now_ms: i64) -> Result<Feed, Reject> {
        let at = self.choose(facts);
        let Some(form) = self.forms.get(at) else { return Ok(Feed { form: 0, state: State::Nothing }) };
        let state = match &form.ready {
            Ready::Signature(engine) => State::Running(engine.prepare(facts, now_ms)?),
            Ready::Token(token, known) => State::Proven(token.check(known, facts, now_ms)?),
            Ready::Basic(known) => State::Proven(basic::check(known, facts, now_ms)?),
            Ready::Own(judge) => {
                judge.prepare(facts, now_ms)?;
                State::Own
            }
        };
        Ok(Feed { form: at, state })
    }

    /// Feeds the next bytes of the body.
    pub(crate) fn update(&self, feed: &mut Feed, bytes: &[u8]) {
        if let (State::Running(running), Some(Bound { ready: Ready::Signature(engine), .. })) = (&mut feed.state, self.forms.get(feed.form)) {
            running.update(&engine.recipe, bytes);
        }
    }

    /// The keys that a request is to be judged with, where they are not at hand and may be fetched. The whole body is there.
    pub(crate) fn wants(&self, feed: &Feed, facts: &Facts<'_>, body: &mut Chunks, now_ms: i64) -> Option<keys::Want> {
        match &self.forms.get(feed.form)?.ready {
            Ready::Own(judge) => {
                if judge.reads_body() {
                    body.contiguous();
                }
                judge.wants(facts, body, now_ms)
            }
            Ready::Signature(engine) => engine.wants(facts),
            Ready::Token(..) | Ready::Basic(_) => None,
        }
    }

    /// The key sources that its requests may ask.
    pub(crate) fn sources(&self) -> Vec<Arc<keys::Source>> {
        let of = |form: &Bound| match &form.ready {
            Ready::Own(judge) => judge.sources(),
            Ready::Signature(engine) => engine.source().cloned().into_iter().collect(),
            Ready::Token(..) | Ready::Basic(_) => Vec::new(),
        };
        self.forms.iter().flat_map(of).collect()
    }

    /// Judges the proof, the whole body being there and fed. Brings the body into one piece where a field of it is asked for.
    pub(crate) fn finish(&self, feed: Feed, facts: &Facts<'_>, body: &mut Chunks, now_ms: i64) -> Result<Signed, Reject> {
        let Some(form) = self.forms.get(feed.form) else { return Ok(self.unverified(facts, body)) };
        let pointers = &form.variant.pointers;
        if form.needs_fields() {
            body.contiguous();
            let whole = Whole::new(facts, body, pointers);
            let (fields, flaw) = scan(&whole, pointers);
            if let Some(flaw) = flaw.filter(|_| form.needs_json()) {
                return Err(Reject::new(Reason::SignatureMalformed, format!("a field of the body is needed, and {flaw}")));
            }
            let known = Some(Body { whole: &whole, fields: &fields });
            let proof = form.prove(feed.state, facts, body, known, now_ms)?;
            self.refuse_answers(form, &proof, facts, body, known)?;
            return self.tell(form, proof, facts, body, known, now_ms);
        }
        if matches!(&form.ready, Ready::Own(judge) if judge.reads_body()) {
            body.contiguous();
        }
        let proof = form.prove(feed.state, facts, body, None, now_ms)?;
        self.refuse_answers(form, &proof, facts, body, None)?;
        if !form.tells_of_body() {
            return self.tell(form, proof, facts, body, None, now_ms);
        }
        body.contiguous();
        let whole = Whole::new(facts, body, pointers);
        let (fields, _) = scan(&whole, pointers);
        self.tell(form, proof, facts, body, Some(Body { whole: &whole, fields: &fields }), now_ms)
    }

    /// Whether a replay key of content is one of the body alone. A provider of several forms may send more than one with a request, as
    /// HubSpot does: a captured request must not pass once more when the stronger form is taken away, so its key is that of what all
    /// forms sign.
    fn knows_content_by_body(&self) -> bool {
        let signs_body = |form: &Bound| matches!(&form.ready, Ready::Signature(engine) if engine.recipe.signed.iter().all(template::Template::has_body));
        self.forms.len() > 1 && self.forms.iter().all(signs_body)
    }

    /// What a proven request says of itself.
    fn tell(&self, form: &Bound, proof: Proof, facts: &Facts<'_>, chunks: &Chunks, body: Option<Body<'_>>, now_ms: i64) -> Result<Signed, Reject> {
        let identity = &form.variant.identity;
        let (mut delivery_id, mut event_type) = identity.names(facts, body);
        let (mut timestamp_ms, mut replay) = (None, None);
        if let Some(held) = &proof.held {
            timestamp_ms = held.timestamp_ms;
            delivery_id = held.id.clone().or(delivery_id);
            event_type = held.event_type.clone().or(event_type);
            replay = match (&identity.replay, &held.id) {
                (ReplayRule::Id, Some(id)) => Some(ReplayKey::of_id(id.as_bytes())),
                _ => identity.key(facts, body, event_type.as_deref(), &|| Ok(held.content))?,
            };
        }
        if let (Some(matched), Ready::Signature(engine)) = (&proof.matched, &form.ready) {
            timestamp_ms = if engine.has_late_time() { engine.late_time(facts, body, now_ms)? } else { matched.timestamp_ms };
            let content = || if self.knows_content_by_body() { Ok(body_key(chunks)) } else { engine.content(matched, facts, chunks, body) };
            replay = identity.key(facts, body, event_type.as_deref(), &content)?;
        }
        Ok(Signed {
            verification: form.verification(),
            provider: self.provider().cloned(),
            secret: Some(proof.label),
            delivery_id,
            event_type,
            timestamp_ms,
            replay,
            minted: Minted(()),
        })
    }

    /// What a request says of itself, proven or not: for `verify = "none"` and for routes that only observe.
    pub(crate) fn unverified(&self, facts: &Facts<'_>, body: &mut Chunks) -> Signed {
        let (mut delivery_id, mut event_type) = (None, None);
        if let Some(form) = self.forms.get(self.choose(facts)) {
            if form.variant.identity.reads_body() {
                body.contiguous();
            }
            let whole = Whole::new(facts, body, &form.variant.pointers);
            let (fields, _) = scan(&whole, &form.variant.pointers);
            (delivery_id, event_type) = form.variant.identity.names(facts, Some(Body { whole: &whole, fields: &fields }));
        }
        Signed {
            verification: Verification::None,
            provider: self.provider().cloned(),
            secret: None,
            delivery_id,
            event_type,
            timestamp_ms: None,
            replay: None,
            minted: Minted(()),
        }
    }
}

fn body_key(chunks: &Chunks) -> [u8; 32] {
    let mut hash = Sha256::new().chain_update(b"hooklatch body\0");
    chunks.pieces().for_each(|piece| hash.update(piece));
    hash.finalize().into()
}

/// The values at the pointers, and why there are none. The content type does not matter: it is not signed, so it must not decide
/// whether a signed field is there.
fn scan<'w>(whole: &'w Whole<'_>, pointers: &[Pointer]) -> (Vec<Option<Value<'w>>>, Option<Flaw>) {
    if pointers.is_empty() {
        return (Vec::new(), None);
    }
    match whole.scan() {
        Ok(found) => (found, None),
        Err(flaw) => (vec![None; pointers.len()], Some(flaw)),
    }
}

impl Identity {
    /// The delivery id and the event type.
    fn names(&self, facts: &Facts<'_>, body: Option<Body<'_>>) -> (Option<String>, Option<String>) {
        (self.id.as_ref().and_then(|place| place.text(facts, body)), self.types.iter().find_map(|place| place.text(facts, body)))
    }

    /// Whether any of its names stands in the body.
    fn reads_body(&self) -> bool {
        self.id.iter().chain(&self.types).any(|place| !place.in_head())
    }

    /// What the replay record is keyed on; `content` is asked only where it counts.
    fn key(
        &self,
        facts: &Facts<'_>,
        body: Option<Body<'_>>,
        event_type: Option<&str>,
        content: &dyn Fn() -> Result<[u8; 32], Reject>,
    ) -> Result<Option<ReplayKey>, Reject> {
        let of_content = |digest| ReplayKey { kind: ReplayKind::Content, digest };
        Ok(match &self.replay {
            ReplayRule::None => None,
            ReplayRule::Content => Some(of_content(content()?)),
            // An id that is absent from what was signed cannot be taken away or put there by anybody else.
            ReplayRule::Id => Some(match self.id.as_ref().and_then(|place| place.value(facts, body).ok().flatten()) {
                Some(id) => ReplayKey::of_id(&id),
                None => of_content(content()?),
            }),
            ReplayRule::ContentAndType(known) => {
                let digest = content()?;
                Some(of_content(match event_type.filter(|name| known.iter().any(|k| k == name)) {
                    Some(name) => Sha256::new().chain_update(b"hooklatch typed\0").chain_update(digest).chain_update(name).finalize().into(),
                    None => digest,
                }))
            }
        })
    }
}

/// A proof that held: by which secret, and what it signed.
struct Proof {
    label: Arc<str>,
    matched: Option<Matched>,
    /// What a scheme of its own kind tells of it.
    held: Option<Held>,
}

impl Bound {
    /// Judges what was fed; the only way to a [`Proof`].
    fn prove(&self, state: State, facts: &Facts<'_>, chunks: &Chunks, body: Option<Body<'_>>, now_ms: i64) -> Result<Proof, Reject> {
        match (state, &self.ready) {
            (State::Running(running), Ready::Signature(engine)) => {
                let matched = engine.finish(running, facts, chunks, body, now_ms)?;
                Ok(Proof { label: matched.label.clone(), matched: Some(matched), held: None })
            }
            (State::Proven(label), Ready::Token(..) | Ready::Basic(_)) => Ok(Proof { label, matched: None, held: None }),
            (State::Own, Ready::Own(judge)) => {
                let held = judge.finish(facts, chunks, now_ms)?;
                Ok(Proof { label: held.label.clone(), matched: None, held: Some(held) })
            }
            // A feed of another plan proves nothing here.
            _ => Err(Reject::new(Reason::SignatureMismatch, "the request was prepared by another policy")),
        }
    }

    /// Whether fields of the body are needed to verify it.
    fn needs_fields(&self) -> bool {
        matches!(&self.ready, Ready::Signature(engine) if engine.needs_fields())
    }

    fn needs_json(&self) -> bool {
        matches!(&self.ready, Ready::Signature(engine) if engine.needs_json())
    }

    /// Whether fields of the body are of interest once it is verified.
    fn tells_of_body(&self) -> bool {
        self.variant.identity.reads_body() || matches!(&self.ready, Ready::Signature(engine) if engine.has_late_time())
    }

    fn verification(&self) -> Verification {
        match &self.ready {
            Ready::Signature(engine) => engine.verification(),
            Ready::Token(..) | Ready::Basic(_) => Verification::Sender,
            Ready::Own(judge) => judge.verification(),
        }
    }

    /// Whether what proves a request of this form would prove one of the other form too, given one secret and another path.
    fn is_proof_for(&self, other: &Self) -> bool {
        match (&self.ready, &other.ready) {
            (Ready::Signature(mine), Ready::Signature(theirs)) => mine.recipe.is_proof_for(&theirs.recipe),
            (Ready::Token(mine, _), Ready::Token(theirs, _)) => mine.place == theirs.place,
            (Ready::Basic(_), Ready::Basic(_)) => true,
            (Ready::Own(mine), Ready::Own(theirs)) => self.variant.scheme == other.variant.scheme && !mine.names_its_route() && !theirs.names_its_route(),
            (Ready::Signature(_) | Ready::Token(..) | Ready::Basic(_) | Ready::Own(_), _) => false,
        }
    }

    /// Whether a signature or credential of this form stands in the head.
    fn stands(&self, facts: &Facts<'_>) -> bool {
        match &self.ready {
            Ready::Signature(engine) => engine.recipe.signatures.iter().any(|signature| signature.place.stands(facts)),
            Ready::Token(token, _) => token.place.stands(facts),
            Ready::Basic(_) => facts.headers.contains_key(AUTHORIZATION),
            Ready::Own(judge) => judge.stands(facts),
        }
    }

    fn covers_query(&self, name: &str) -> bool {
        let is = |place: &Place| matches!(&place.at, At::Query(known) if known == name);
        match &self.ready {
            Ready::Signature(engine) => {
                let recipe = &engine.recipe;
                recipe.signed.iter().all(|template| template.covers_query() || template.places().any(is))
                    || recipe.signatures.iter().any(|signature| is(&signature.place))
            }
            Ready::Token(token, _) => is(&token.place),
            Ready::Basic(_) => false,
            Ready::Own(judge) => judge.covers_query(name),
        }
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("provider", &self.provider()).field("secrets", &self.labels).finish_non_exhaustive()
    }
}
