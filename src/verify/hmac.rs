//! HMAC over a template, keyed with a shared secret: what most providers send.
//! Source: RFC 2104; the options are what the providers of `providers.toml` need.

use super::{
    definition::{Context, Method, Scheme, param_name},
    engine::{BodyDigest, Recipe, Signature},
    key::KeyForm,
    mac::{Algorithm, Encoding},
    place::{At, Pick, Place, Required},
    public_key,
    template::{self, Template},
    timestamp::{Timestamp, Unit},
};
use crate::{
    keys::Settings,
    section::{Item, Section},
};

pub(super) static SCHEME: Scheme = Scheme { name: "hmac", about: "HMAC over a template, by a shared secret", read: Some(read) };

fn read(section: &Section<'_>, context: &Context<'_>) -> Option<Method> {
    let algorithm = algorithm(section);
    recipe(section, context, Made::Mac { algorithm, plain_hash: false }).map(|recipe| Method::Signature(Box::new(recipe)))
}

/// What makes the signatures over a template.
#[derive(Clone, Copy)]
pub(super) enum Made {
    /// A shared secret; `None` where the algorithm could not be read.
    Mac {
        algorithm: Option<Algorithm>,
        plain_hash: bool,
    },
    KeyPair(Option<public_key::Algorithm>),
}

/// The key `algorithm`, which must be there.
pub(super) fn algorithm(section: &Section<'_>) -> Option<Algorithm> {
    if section.has("algorithm") {
        return section.choice("algorithm", Algorithm::WORDS);
    }
    section.problem("algorithm", "`algorithm` is missing", "one of sha1, sha256, sha384, sha512");
    None
}

/// The keys that the schemes over a template share.
pub(super) fn recipe(section: &Section<'_>, context: &Context<'_>, made: Made) -> Option<Recipe> {
    let key_pair = matches!(made, Made::KeyPair(_));
    let signatures = signatures(section, context, key_pair);
    let key = if key_pair { None } else { section.opt_section("key") };
    let key = key.map(|table| {
        let key = KeyForm::read(&table);
        table.finish();
        key
    });
    let first = signatures.as_ref().and_then(|all| all.first()).map(|signature| &signature.place);
    let timestamp = section.item("timestamp").map(|item| timestamp(&item, context, first));
    let require = required(section, context);
    let body_digest = section.item("body_digest").map(|item| digest(&item, context));
    let mut timestamp = match timestamp {
        Some(read) => Some(read?),
        None => None,
    };
    let signed = templates(section, context, first, timestamp.as_ref());
    let (plain_hash, algorithm, public) = match made {
        Made::Mac { algorithm, plain_hash } => (plain_hash, algorithm?, None),
        Made::KeyPair(public) => {
            let public = public?;
            (false, public.hash().map_or(Algorithm::Sha512, Algorithm::from), Some(public))
        }
    };
    let keys = section.item("keys").filter(|_| key_pair).map(|item| Settings::read(&item));
    let key_id = section.item("key_id").filter(|_| key_pair).map(|item| Place::read_item(&item, context.pointers));
    let keys = match keys {
        Some(read) => Some(read?),
        None => None,
    };
    let key_id = match key_id {
        Some(read) => Some(read?),
        None => None,
    };
    if let Some(place) = key_id.as_ref().filter(|place| !place.in_head()) {
        section.problem("key_id", format!("{place} is not known before the body is"), "name a header or a query parameter");
    }
    let (signatures, signed) = (signatures?, signed?);
    if key_pair && signed.iter().any(Template::has_secret) {
        section.problem("signed", "a key pair signs no `{secret}`", "name what the provider signs");
        return None;
    }
    if let Some(timestamp) = &mut timestamp {
        timestamp.zone_needed = signed.iter().any(Template::zone_needed);
        if timestamp.enforced && !signed.iter().all(|template| template.has_timestamp() || template.covers(&timestamp.place)) {
            section.problem(
                "timestamp",
                "this time is not covered by the signature, so anybody could set it",
                "add `{timestamp}` to `signed`, or say `of = \"event\"` to record it only",
            );
        }
    }
    if plain_hash && !signed.iter().all(Template::has_secret) {
        section.problem("signed", "a plain digest without `{secret}` proves nothing", "add `{secret}` where the provider puts it, or use `scheme = \"hmac\"`");
    }
    let body_digest = match body_digest {
        Some(read) => {
            let digest = read?;
            if !signed.iter().all(|template| template.covers(&digest.place)) {
                section.problem("body_digest", "this digest is not covered by the signature, so anybody could set it", "sign the place it stands in");
            }
            Some(digest)
        }
        None => None,
    };
    Some(Recipe { plain_hash, algorithm, key: key.unwrap_or_default(), public, keys, key_id, signatures, timestamp, signed, require: require?, body_digest })
}

/// What must have a value.
pub(super) fn required(section: &Section<'_>, context: &Context<'_>) -> Option<Vec<Required>> {
    let Some(item) = section.item("require") else { return Some(Vec::new()) };
    let items = if item.is_array() { item.items()? } else { vec![item] };
    items.iter().map(|item| Required::read(item, context.pointers)).collect::<Vec<_>>().into_iter().collect()
}

fn signatures(section: &Section<'_>, context: &Context<'_>, public: bool) -> Option<Vec<Signature>> {
    let Some(item) = section.item("signature") else {
        section.problem("signature", "`signature` is missing", "say where it stands: signature = { header = \"X-…\", encoding = \"hex\" }");
        return None;
    };
    let items = if item.is_array() { item.items()? } else { vec![item.clone()] };
    if items.is_empty() || items.len() > super::engine::MAX_SECRETS {
        item.problem("`signature` has no place or too many", format!("name 1 to {}", super::engine::MAX_SECRETS));
        return None;
    }
    let read: Vec<Option<Signature>> = items
        .iter()
        .map(|item| {
            let table = item.section()?;
            let place = Place::read(&table, context.pointers, None);
            let encoding = encoding(&table);
            let secret = table.opt_string("secret");
            table.finish();
            let place = place?;
            if let Pick::Pairs { field, .. } = &place.pick
                && let Some(name) = param_name(field)
                && !context.params.iter().any(|known| known == name)
            {
                item.problem(format!("`{name}` is not in `params`"), "declare it: params = [\"…\"]");
            }
            Some(Signature { place, encoding: encoding?, secret, public })
        })
        .collect();
    read.into_iter().collect()
}

pub(super) fn encoding(table: &Section<'_>) -> Option<Encoding> {
    #[derive(Clone, Copy)]
    enum Word {
        Hex,
        HexAny,
        Base64,
        Base64Url,
    }
    if !table.has("encoding") {
        table.problem("encoding", "`encoding` is missing", "one of hex, base64, base64url");
        return None;
    }
    let word = table.choice("encoding", &[("hex", Word::Hex), ("base64", Word::Base64), ("base64url", Word::Base64Url), ("hex-any-case", Word::HexAny)]);
    let padding = table.choice("padding", &[("strict", true), ("absent", false)]);
    let encoding = match (word?, padding) {
        (Word::Hex, None) => Encoding::Hex,
        (Word::HexAny, None) => Encoding::HexAny,
        (Word::Hex | Word::HexAny, Some(_)) => {
            table.problem("padding", "hex has no padding", "remove the key");
            return None;
        }
        (Word::Base64, None | Some(true)) => Encoding::Base64,
        (Word::Base64, Some(false)) => Encoding::Base64NoPad,
        (Word::Base64Url, Some(true)) => Encoding::Base64Url,
        (Word::Base64Url, None | Some(false)) => Encoding::Base64UrlNoPad,
    };
    Some(encoding)
}

fn timestamp(item: &Item<'_>, context: &Context<'_>, signature: Option<&Place>) -> Option<Timestamp> {
    let table = item.section()?;
    let place = Place::read(&table, context.pointers, signature);
    let unit = match table.has("unit") {
        true => table.choice("unit", Unit::WORDS),
        false => {
            table.problem("unit", "`unit` is missing", "one of s, ms, rfc3339, http-date");
            None
        }
    };
    let tolerance = table.duration_or("tolerance", std::time::Duration::from_secs(300));
    let future = table.duration_or("future", tolerance);
    let enforced = table.choice("of", &[("attempt", true), ("event", false)]).unwrap_or(true);
    table.finish();
    Some(Timestamp { place: place?, unit: unit?, tolerance, future, enforced, zone_needed: false })
}

fn digest(item: &Item<'_>, context: &Context<'_>) -> Option<BodyDigest> {
    let table = item.section()?;
    let place = Place::read(&table, context.pointers, None);
    let algorithm = table.choice("algorithm", Algorithm::WORDS).unwrap_or(Algorithm::Sha256);
    let encoding = encoding(&table);
    table.finish();
    Some(BodyDigest { place: place?, algorithm, encoding: encoding? })
}

fn templates(section: &Section<'_>, context: &Context<'_>, signature: Option<&Place>, timestamp: Option<&Timestamp>) -> Option<Vec<Template>> {
    let ambiguous = section.bool_or("ambiguous", false);
    let Some(item) = section.item("signed") else {
        section.problem("signed", "`signed` is missing", "say what is signed, such as \"{timestamp}.{body}\"");
        return None;
    };
    let items = if item.is_array() { item.items()? } else { vec![item.clone()] };
    if items.is_empty() || items.len() > 4 {
        item.problem("`signed` has no template or too many", "name 1 to 4; any of them may match");
        return None;
    }
    let with = template::Context { timestamp, id: context.id, signature, params: context.params, pointers: context.pointers, ambiguous };
    let read: Vec<Option<Template>> = items
        .iter()
        .map(|item| match Template::parse(&item.string()?, &with) {
            Ok(template) => Some(template),
            Err(why) => {
                let help = if why.contains("run together") {
                    "put a separator between them that the first cannot hold; `ambiguous = true` accepts a provider that signs so"
                } else {
                    ""
                };
                item.problem(why, help);
                None
            }
        })
        .collect();
    read.into_iter().collect()
}

/// The headers that a place reads.
pub(super) fn header_of(place: &Place) -> Option<&http::HeaderName> {
    match &place.at {
        At::Header(name) => Some(name),
        _ => None,
    }
}
