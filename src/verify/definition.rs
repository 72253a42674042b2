//! A provider's definition: the table of `providers.toml` and of `[providers.NAME]`, read and judged without any secret.

use std::{sync::Arc, time::Duration};

use http::Method as HttpMethod;

use super::{
    Facts, adyen, aws_sns, basic,
    challenge::Challenges,
    contentful, ecdsa, ed25519,
    engine::Recipe,
    hash, hmac, introspection,
    judge::Rule,
    jwt, message_signatures, microsoft_graph, paypal,
    place::{Pick, Place, Pointers, content_type},
    public_key::{self, Trusted},
    rsa, standard_webhooks, token,
};
use crate::{
    event::Verification,
    keys::Settings,
    ranges,
    section::{Item, Section},
    validate::json::Pointer,
};

/// A scheme that a definition may name.
pub(crate) struct Scheme {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// `None`: known, but not built yet.
    pub(super) read: Option<fn(&Section<'_>, &Context<'_>) -> Option<Method>>,
}

impl Scheme {
    /// Whether this release can verify by it.
    pub(crate) fn built(&self) -> bool {
        self.read.is_some()
    }
}

/// Every scheme a definition may name, in the reference page's order.
pub(crate) static SCHEMES: &[&Scheme] = &[
    &hmac::SCHEME,
    &hash::SCHEME,
    &standard_webhooks::SCHEME,
    &token::SCHEME,
    &basic::SCHEME,
    &ed25519::SCHEME,
    &ecdsa::SCHEME,
    &rsa::SCHEME,
    &jwt::SCHEME,
    &introspection::SCHEME,
    &message_signatures::SCHEME,
    &aws_sns::SCHEME,
    &microsoft_graph::SCHEME,
    &adyen::SCHEME,
    &contentful::SCHEME,
    &paypal::SCHEME,
];

/// What one way of verifying does, without its secrets.
#[derive(Clone, Debug)]
pub(super) enum Method {
    Signature(Box<Recipe>),
    Token(token::Token),
    Basic,
    Own(Arc<dyn Rule>),
}

impl Method {
    pub(super) fn verification(&self) -> Verification {
        match self {
            Self::Signature(recipe) => recipe.verification(),
            Self::Token(_) | Self::Basic => Verification::Sender,
            Self::Own(rule) => rule.verification(),
        }
    }

    /// Whether a shared secret is what it verifies with, or may be.
    pub(super) fn needs_secret(&self, own_keys: bool) -> bool {
        match self {
            Self::Signature(recipe) => recipe.shared() || (!own_keys && recipe.keys.as_ref().is_some_and(Settings::needs_secret)),
            Self::Token(_) | Self::Basic => true,
            Self::Own(rule) => rule.needs_secret(own_keys),
        }
    }

    /// Whether the sender's public key is what it verifies with, or may be.
    pub(super) fn takes_public_keys(&self) -> bool {
        match self {
            Self::Signature(recipe) => recipe.by_key_pair(),
            Self::Token(_) | Self::Basic => false,
            Self::Own(rule) => rule.takes_public_keys(),
        }
    }

    /// Whether the public keys stand somewhere to be fetched, or none is needed.
    pub(super) fn publishes_keys(&self) -> bool {
        match self {
            Self::Signature(recipe) => recipe.keys.is_some(),
            Self::Token(_) | Self::Basic => false,
            Self::Own(rule) => rule.publishes_keys(),
        }
    }

    /// Whether requests can be signed as the provider does, with a shared secret.
    pub(super) fn signs(&self) -> bool {
        match self {
            Self::Signature(recipe) => recipe.shared(),
            Self::Token(_) | Self::Basic => true,
            Self::Own(rule) => rule.signs(),
        }
    }

    /// Whether the signature covers what stands at a place.
    fn covers(&self, place: &Place) -> bool {
        match self {
            Self::Signature(recipe) => recipe.signed.iter().all(|template| template.covers(place)),
            Self::Token(_) | Self::Basic => false,
            Self::Own(rule) => rule.covers(place),
        }
    }

    /// Whether a replay record can be keyed on what is signed.
    fn signs_content(&self) -> bool {
        match self {
            Self::Signature(_) => true,
            Self::Token(_) | Self::Basic => false,
            Self::Own(rule) => rule.signs_content(),
        }
    }

    /// Whether the proof names a delivery by itself.
    fn names_id(&self) -> bool {
        matches!(self, Self::Own(rule) if rule.names_id())
    }
}

/// What a scheme's table is read with.
pub(super) struct Context<'r> {
    pub(super) pointers: &'r Pointers,
    /// The place of `delivery_id`, for `{id}`.
    pub(super) id: Option<&'r Place>,
    /// What a route will configure, by name.
    pub(super) params: &'r [String],
}

/// The name in a word that is `{param:NAME}`.
pub(super) fn param_name(word: &str) -> Option<&str> {
    word.strip_prefix("{param:")?.strip_suffix('}')
}

/// A provider: how its requests are verified, in one or several forms, and how it behaves.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    pub(crate) name: Arc<str>,
    pub(crate) title: Option<String>,
    /// Other names it may be asked for by.
    pub(crate) aliases: Vec<String>,
    pub(super) variants: Vec<Variant>,
    /// What a route must configure beside the secret.
    pub(crate) params: Vec<String>,
    /// What it may configure.
    pub(crate) optional_params: Vec<String>,
    /// The key that the provider publishes for everybody, where it does; a route's own take its place.
    pub(crate) public_keys: Vec<Trusted>,
    pub(crate) traits: Traits,
    /// What it asks of an endpoint before it sends events there.
    pub(crate) challenges: Challenges,
}

/// How a provider behaves, apart from its signature.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traits {
    /// What the provider takes as success, where a plain 202 is not.
    pub(crate) acknowledge: Option<Acknowledge>,
    /// How long it waits for the answer.
    pub(crate) answers_within: Option<Duration>,
    /// The largest body it sends, in bytes.
    pub(crate) max_body: Option<u64>,
    pub(crate) retries: Option<Retries>,
    /// Where its requests come from; empty where it publishes nothing.
    pub(crate) ip_ranges: ranges::Source,
    /// The provider's own page about its signatures.
    pub(crate) docs: Option<String>,
    pub(crate) checked: Option<Checked>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledge {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) content_type: Option<String>,
}

/// What a provider does when a delivery is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retries {
    Never,
    Automatic,
    /// On a person's request only.
    Manual,
}

/// What a definition was checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    Vectors,
    Docs,
}

/// One form of a provider's requests.
#[derive(Clone, Debug)]
pub(super) struct Variant {
    pub(super) name: Option<String>,
    pub(super) when: Vec<When>,
    pub(super) scheme: &'static str,
    pub(super) method: Method,
    pub(super) pointers: Vec<Pointer>,
    pub(super) identity: Identity,
    /// How the provider writes a signature header of pairs, such as `t={t}, v1={v1}`; for signing only.
    pub(super) written: Option<String>,
}

/// When a form is meant, judged by the head alone; all conditions must hold. The sender chooses, so every form must be strong enough.
#[derive(Clone, Debug)]
pub(super) enum When {
    Header { name: Place, equals: Option<String> },
    ContentType(String),
    Query { name: Place },
    AnyQuery(bool),
    Method(HttpMethod),
}

/// What names a delivery, and what its replay record is keyed on.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) id: Option<Place>,
    /// The first that has a value.
    pub(super) types: Vec<Place>,
    pub(super) replay: ReplayRule,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReplayRule {
    /// The signed delivery id; a request without one is known by its content.
    Id,
    Content,
    /// The content, and the event type where it is one of these.
    ContentAndType(Vec<String>),
    None,
}

impl When {
    pub(super) fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Header { name, equals: None } | Self::Query { name } => name.stands(facts),
            Self::Header { name, equals: Some(text) } => name.value(facts, None).ok().flatten().is_some_and(|value| *value == *text.as_bytes()),
            Self::ContentType(essence) => content_type(facts).is_some_and(|found| found.eq_ignore_ascii_case(essence)),
            Self::AnyQuery(wanted) => facts.query().is_empty() != *wanted,
            Self::Method(method) => facts.method == method,
        }
    }

    fn read(section: &Section<'_>, pointers: &Pointers) -> Vec<Self> {
        let mut all = Vec::new();
        if section.has("header") || section.has("query") {
            let query = section.has("query");
            if let Some(name) = Place::read(section, pointers, None) {
                let equals = section.opt_string("equals");
                all.push(if query { Self::Query { name } } else { Self::Header { name, equals } });
            }
        }
        if let Some(essence) = section.opt_string("content_type") {
            all.push(Self::ContentType(essence));
        }
        if let Some(wanted) = section.opt_bool("any_query") {
            all.push(Self::AnyQuery(wanted));
        }
        if let Some(method) = section.opt_string("method") {
            match HttpMethod::from_bytes(method.as_bytes()) {
                Ok(method) => all.push(Self::Method(method)),
                Err(_) => section.problem("method", format!("`{method}` is not an HTTP method"), ""),
            }
        }
        if all.is_empty() {
            section.problem("header", "`when` has no condition", "header (and equals), query, any_query, content_type or method");
        }
        all
    }
}

impl Definition {
    /// Reads `[providers.NAME]`.
    pub(super) fn read(section: &Section<'_>, name: &str) -> Option<Self> {
        Self::form(section, name, false)
    }

    /// Reads a route's `verify` that says its scheme itself.
    pub(super) fn read_inline(section: &Section<'_>, name: &str) -> Option<Self> {
        Self::form(section, name, true)
    }

    fn form(section: &Section<'_>, name: &str, inline: bool) -> Option<Self> {
        let title = section.opt_string("title");
        let aliases = section.strings("aliases");
        let params = section.strings("params");
        let optional_params = section.strings("optional_params");
        // In a route's own table the key is the route's, which it reads itself.
        let public_keys = if inline { Vec::new() } else { public_key::read(section)? };
        let traits = Traits::read(section);
        let challenges = Challenges::read(section, &params);
        let variants = match section.item("variants") {
            None => Variant::read(section, None, &params).map(|variant| vec![variant]),
            Some(list) => {
                let items = list.items()?;
                if items.is_empty() {
                    list.problem("`variants` is empty", "name at least one form, or put `scheme` here");
                    return None;
                }
                let read: Vec<Option<Variant>> = items
                    .iter()
                    .map(|item| {
                        let table = item.section()?;
                        let variant = Variant::read(&table, Some(section), &params);
                        table.finish();
                        variant
                    })
                    .collect();
                read.into_iter().collect()
            }
        };
        let challenges = challenges?;
        let definition = Self { name: name.into(), title, aliases, variants: variants?, params, optional_params, public_keys, traits, challenges };
        if !definition.public_keys.is_empty() && !definition.takes_public_keys() {
            section.problem("public_key", "no form of this provider is signed by a key pair", "remove the key, or say the scheme that it is for");
        }
        Some(definition)
    }

    /// The most that its weakest form proves.
    pub(crate) fn verification(&self) -> Verification {
        self.variants.iter().map(|variant| variant.method.verification()).min().unwrap_or_default()
    }

    /// Whether a route must give it a shared secret: where any of its forms verifies with one.
    pub(crate) fn needs_secret(&self, own_keys: bool) -> bool {
        self.variants.iter().any(|variant| variant.method.needs_secret(own_keys))
    }

    /// Whether a route may give it the sender's public key: where any of its forms verifies with one.
    pub(crate) fn takes_public_keys(&self) -> bool {
        self.variants.iter().any(|variant| variant.method.takes_public_keys())
    }

    /// Whether the provider's public keys stand somewhere to be fetched.
    pub(crate) fn publishes_keys(&self) -> bool {
        self.variants.iter().any(|variant| variant.method.publishes_keys())
    }

    /// Whether a route must say where keys come from.
    pub(crate) fn needs_keys(&self) -> bool {
        self.variants.iter().any(|variant| matches!(&variant.method, Method::Own(rule) if rule.needs_keys()))
    }

    /// Whether requests can be signed as the provider does, with a shared secret.
    pub(crate) fn signs(&self) -> bool {
        self.variants.iter().any(|variant| variant.method.signs())
    }

    /// The word of its `replay_key`.
    pub(crate) fn replay_key(&self) -> &'static str {
        match self.variants.first().map(|variant| &variant.identity.replay) {
            Some(ReplayRule::Id) => "id",
            Some(ReplayRule::Content) => "content",
            Some(ReplayRule::ContentAndType(_)) => "content+type",
            Some(ReplayRule::None) | None => "none",
        }
    }

    /// The schemes of its forms, each once.
    pub(crate) fn schemes(&self) -> Vec<&'static str> {
        let mut all: Vec<&'static str> = self.variants.iter().map(|variant| variant.scheme).collect();
        all.dedup();
        all
    }
}

/// The keys that forms of some scheme have beside `scheme`.
const KEYS: &[&str] = &[
    "algorithm",
    "algorithms",
    "ambiguous",
    "body_digest",
    "claims",
    "covers",
    "created",
    "curve",
    "delivery_id",
    "event_type",
    "event_types",
    "future",
    "key",
    "key_id",
    "keys",
    "label",
    "layout",
    "padding",
    "replay_key",
    "require",
    "signature",
    "signed",
    "tag",
    "timestamp",
    "tolerance",
    "written",
];

impl Variant {
    fn read(section: &Section<'_>, shared: Option<&Section<'_>>, params: &[String]) -> Option<Self> {
        let read = Self::form(section, shared, params);
        if read.is_none() {
            // The form's own problem is told; its other keys are no unknown ones because nobody came to read them.
            KEYS.iter().for_each(|key| {
                section.has(key);
            });
        }
        read
    }

    fn form(section: &Section<'_>, shared: Option<&Section<'_>>, params: &[String]) -> Option<Self> {
        let pointers = Pointers::default();
        let name = shared.and_then(|_| section.opt_string("name"));
        let when = shared.and_then(|_| section.opt_section("when")).map(|table| {
            let when = When::read(&table, &pointers);
            table.finish();
            when
        });
        let scheme = Self::scheme(section)?;
        // What stands in the form itself, else what stands beside all forms.
        let own = |key: &str| section.item(key).or_else(|| shared.and_then(|shared| shared.item(key)));
        let id = own("delivery_id").map(|item| Self::id(&item, &pointers));
        let (id, stated) = match id {
            Some(read) => {
                let (place, stated) = read?;
                (Some(place), stated)
            }
            None if scheme.name == standard_webhooks::SCHEME.name => (standard_webhooks::id(section), None),
            None => (None, None),
        };
        let types = match own("event_type") {
            None => Vec::new(),
            Some(item) => {
                let items = if item.is_array() { item.items()? } else { vec![item] };
                items.iter().map(|item| Place::read_item(item, &pointers)).collect::<Option<Vec<_>>>()?
            }
        };
        let Some(read) = scheme.read else {
            section.problem("scheme", format!("the scheme `{}` is not built yet", scheme.name), "built are hmac, hash, standard-webhooks, token and basic");
            return None;
        };
        let method = read(section, &Context { pointers: &pointers, id: id.as_ref(), params })?;
        let id_signed = method.names_id() || id.as_ref().is_some_and(|place| method.covers(place));
        if stated == Some(true) && !id_signed {
            let item = own("delivery_id")?;
            item.problem(
                "this id is said to be signed, but the signature does not cover it",
                "remove `signed = true`, or sign the id: an unsigned id must not key the replay record",
            );
        }
        let replay = Self::replay(own("replay_key"), &own, &method, id_signed);
        let written = own("written").map(|item| Self::written(&item, &method));
        Some(Self {
            name,
            when: when.unwrap_or_default(),
            scheme: scheme.name,
            method,
            pointers: pointers.into_vec(),
            identity: Identity { id, types, replay: replay? },
            written: match written {
                Some(read) => Some(read?),
                None => None,
            },
        })
    }

    fn scheme(section: &Section<'_>) -> Option<&'static Scheme> {
        let name = section.string("scheme")?;
        let found = SCHEMES.iter().find(|scheme| scheme.name == name).copied();
        if found.is_none() {
            let known: Vec<&str> = SCHEMES.iter().map(|scheme| scheme.name).collect();
            let help =
                crate::section::nearest(&name, &known).map_or_else(|| format!("known are {}", known.join(", ")), |near| format!("did you mean \"{near}\"?"));
            section.problem("scheme", format!("there is no scheme `{name}`"), help);
        }
        found
    }

    fn id(item: &Item<'_>, pointers: &Pointers) -> Option<(Place, Option<bool>)> {
        if !item.is_table() {
            return Place::read_item(item, pointers).map(|place| (place, None));
        }
        let table = item.section()?;
        let place = Place::read(&table, pointers, None);
        let signed = table.opt_bool("signed");
        table.finish();
        Some((place?, signed))
    }

    fn written(item: &Item<'_>, method: &Method) -> Option<String> {
        let text = item.string()?;
        let has_signature = match method {
            Method::Signature(recipe) => match recipe.signatures.first().map(|signature| &signature.place.pick) {
                Some(Pick::Pairs { field, .. }) => text.contains(&format!("{{{field}}}")),
                _ => false,
            },
            Method::Token(_) | Method::Basic | Method::Own(_) => false,
        };
        if !has_signature {
            item.problem("`written` does not hold the signature's item", "it is for signatures of the format \"pairs\", such as \"t={t}, v1={v1}\"");
            return None;
        }
        Some(text)
    }

    fn replay<'a>(item: Option<Item<'a>>, own: &dyn Fn(&str) -> Option<Item<'a>>, method: &Method, id_signed: bool) -> Option<ReplayRule> {
        #[derive(Clone, Copy, PartialEq)]
        enum Word {
            Id,
            Content,
            Typed,
            None,
        }
        let signs = method.signs_content() || method.names_id();
        let types = own("event_types").map(|item| item.strings());
        let Some(item) = item else {
            return Some(match (id_signed, signs) {
                (true, _) => ReplayRule::Id,
                (false, true) => ReplayRule::Content,
                (false, false) => ReplayRule::None,
            });
        };
        let word = item.choice(&[("id", Word::Id), ("content", Word::Content), ("content+type", Word::Typed), ("none", Word::None)])?;
        match word {
            Word::None => Some(ReplayRule::None),
            _ if !signs => {
                item.problem(
                    "this scheme signs nothing that a replay record could be keyed on",
                    "say `replay_key = \"none\"`; a route can drop accidental doubles with `replay = { dedupe = … }`",
                );
                None
            }
            Word::Id if !id_signed => {
                item.problem("the delivery id is not covered by the signature, so a copy could carry another one", "say \"content\", or sign the id");
                None
            }
            Word::Id => Some(ReplayRule::Id),
            Word::Content => Some(ReplayRule::Content),
            Word::Typed => match types {
                Some(types) => types.map(ReplayRule::ContentAndType),
                None => {
                    item.problem("`content+type` needs `event_types`, the list of the types that count", "add it, or say \"content\"");
                    None
                }
            },
        }
    }
}

impl Traits {
    fn read(section: &Section<'_>) -> Self {
        let acknowledge = section.opt_section("acknowledge").map(|table| {
            let status = table.u64_or("status", 200, 200..=299);
            let acknowledge =
                Acknowledge { status: u16::try_from(status).unwrap_or(200), body: table.string_or("body", ""), content_type: table.opt_string("content_type") };
            table.finish();
            acknowledge
        });
        let words = [("never", Retries::Never), ("automatic", Retries::Automatic), ("manual", Retries::Manual)];
        Self {
            acknowledge,
            answers_within: section.opt_duration("answers_within"),
            max_body: section.opt_size("max_body"),
            retries: section.choice("retries", &words),
            ip_ranges: section.item("ip_ranges").and_then(|item| ranges::Source::read(&item)).unwrap_or_default(),
            docs: section.opt_string("docs"),
            checked: section.choice("checked", &[("vectors", Checked::Vectors), ("docs", Checked::Docs)]),
        }
    }
}
