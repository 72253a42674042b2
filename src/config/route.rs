//! One `[routes.NAME]` table.

use std::{str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header::CONTENT_TYPE};
use rustls_pki_types::CertificateDer;

use crate::{
    choose, guard, listen,
    outcome::Answer,
    ranges, receive,
    reject::Reason,
    replay, route,
    section::{Item, Section, nearest},
    validate, verify,
};

/// What a route's table may name, and what holds where it says nothing.
pub(super) struct Context<'a> {
    pub(super) limits: &'a listen::Limits,
    /// `client_ca` of [server.tls].
    pub(super) client_ca: &'a [CertificateDer<'static>],
    /// `[server.limits] body` stands in the file: what a preset knows of its provider then changes nothing.
    pub(super) body_given: bool,
    pub(super) catalogue: &'a verify::Catalogue,
    pub(super) shelf: &'a ranges::Shelf<'a>,
    pub(super) sets: &'a guard::allow::IpSets,
    /// Names of `[filters.NAME]`.
    pub(super) filters: &'a [String],
    /// Names of `[destinations.NAME]`.
    pub(super) destinations: &'a [String],
}

/// One route as the policy says it, its fields in the pipeline's order.
pub(crate) struct RouteConfig {
    pub(crate) name: String,
    pub(crate) host: Option<route::Host>,
    pub(crate) path: route::Path,
    pub(crate) methods: Vec<http::Method>,
    pub(crate) allow: Option<guard::allow::Allow>,
    pub(crate) client_cert: Option<Arc<guard::cert::Rule>>,
    pub(crate) rate_limit: Vec<guard::rate::Limit>,
    pub(crate) verify_failures: Option<guard::rate::Limit>,
    pub(crate) head: guard::head::Limits,
    pub(crate) body: receive::Limits,
    pub(crate) verify: verify::Plan,
    pub(crate) query: Vec<String>,
    /// `None`: nothing is remembered.
    pub(crate) replay: Option<replay::Rule>,
    pub(crate) validate: validate::Rule,
    pub(crate) filters: Vec<String>,
    pub(crate) deliver: choose::Plan,
    pub(crate) acknowledge: Acknowledge,
    pub(crate) enforce: Enforce,
    /// How long the sender waits for an answer.
    pub(crate) answers_within: Option<Duration>,
    /// Where the first secret comes from, as `send` takes it: `env:NAME` or `file:PATH`.
    pub(crate) secret_source: Option<String>,
}

/// Reads one `[routes.NAME]`; problems are recorded, all of them.
pub(super) fn read(name: &str, section: Section<'_>, context: &Context<'_>) -> Option<RouteConfig> {
    let host = section.item("host").map(|item| parsed::<route::Host>(&item));
    let path = section.item("path").map(|item| parsed::<route::Path>(&item));
    if path.is_none() {
        section.problem("path", format!("route `{name}` has no path"), "add one, such as path = \"/github\"");
    }
    let methods = methods(&section);
    let verify = verify::read(&section, context.catalogue);
    let traits = verify.as_ref().and_then(|plan| plan.definition()).map(|definition| definition.traits.clone()).unwrap_or_default();
    let provider = verify.as_ref().and_then(|plan| plan.provider());
    let providers = context.catalogue.names();
    let ranges = |name: &str| published(name, context);
    let names = guard::allow::Names { sets: context.sets, ranges: &ranges, providers: &providers };
    let allow = guard::allow::Allow::read(&section, &names);
    let client_cert = section.has("client_cert").then(|| guard::cert::Rule::read(&section, context.client_ca));
    let lossy = provider.filter(|_| traits.retries == Some(verify::Retries::Never));
    let rate_limit = guard::rate::read(&section, lossy.map(|name| &**name));
    let verify_failures = guard::rate::read_failures(&section);
    let (head, body) = limits(&section, context, &traits);
    let query = section.strings("query");
    let replay = replay::read(&section, verify.as_ref().and_then(verify::Plan::attempt_window));
    let validate = validate::Rule::read(&section);
    let filters = filters(&section, context.filters);
    let known: Vec<&str> = context.destinations.iter().map(String::as_str).collect();
    let deliver = choose::read(name, &section, &known);
    let acknowledge = Acknowledge::read(&section, traits.acknowledge.as_ref().map(Acknowledge::of_preset).unwrap_or_default());
    let enforce = Enforce::read(&section);
    let secret_source = secret_source(&section);
    section.finish();
    Some(RouteConfig {
        name: name.to_owned(),
        host: match host {
            Some(read) => Some(read?),
            None => None,
        },
        path: path??,
        methods,
        allow,
        client_cert: match client_cert {
            Some(read) => Some(Arc::new(read?)),
            None => None,
        },
        rate_limit,
        verify_failures,
        head,
        body,
        verify: verify?,
        query,
        replay,
        validate,
        filters,
        deliver: deliver?,
        acknowledge,
        enforce,
        answers_within: traits.answers_within,
        secret_source,
    })
}

/// `limits = { body, body_timeout, headers }`: the route's own, else the server's as the file has it, else what the provider is known to
/// send at most, else the server's default.
fn limits(route: &Section<'_>, context: &Context<'_>, traits: &verify::Traits) -> (guard::head::Limits, receive::Limits) {
    let server = context.limits;
    let known = traits.max_body.filter(|_| !context.body_given);
    let mut head = guard::head::Limits { header_bytes: server.header_bytes as u64, ..guard::head::Limits::default() };
    let mut body = receive::Limits { body: known.unwrap_or(server.body), timeout: server.body_timeout };
    if let Some(section) = route.opt_section("limits") {
        body.body = section.size_or("body", body.body);
        body.timeout = section.duration_or("body_timeout", body.timeout);
        head.header_bytes = section.size_or("headers", head.header_bytes);
        if head.header_bytes > server.header_bytes as u64 {
            section.problem("headers", "a route cannot take more header bytes than the server reads", "raise `header_bytes` in [server.limits]");
        }
        section.finish();
    }
    if body.body > server.buffered_bytes {
        route.problem("limits", "one body may be larger than all bodies together", "raise `buffered_bytes` in [server.limits], or lower `body`");
    }
    head.body = body.body;
    (head, body)
}

/// What is known of a provider's addresses.
fn published(name: &str, context: &Context<'_>) -> guard::allow::Published {
    use guard::allow::Published;
    let Some(entry) = context.catalogue.entry(name) else { return Published::NoProvider };
    let (definition, shipped) = (&entry.definition, entry.text.is_some());
    let source = &definition.traits.ip_ranges;
    if source.is_empty() {
        return Published::Nothing;
    }
    match context.shelf.open(&definition.name, source, shipped) {
        Ok(ranges) if ranges.known().nets.is_empty() => Published::NotYet,
        Ok(ranges) => Published::Known(ranges),
        Err(why) => Published::Unreadable(why),
    }
}

/// The first secret's place, without its value: for the line to try.
fn secret_source(route: &Section<'_>) -> Option<String> {
    let verify = route.item("verify").filter(Item::is_table)?.section()?;
    let one = verify.item("secret").or_else(|| verify.item("secrets")?.items()?.into_iter().next())?;
    let text = if one.is_table() { one.section()?.item("from")?.as_str()? } else { one.as_str()? };
    match text.split_once(':')? {
        ("env", _) => Some(text.to_owned()),
        ("file", path) => Some(format!("file:{}", route.inputs().resolve(path).display())),
        _ => None,
    }
}

/// A string that says something by its form; what is wrong with it is a problem.
fn parsed<T: FromStr<Err = String>>(item: &Item<'_>) -> Option<T> {
    match item.string()?.parse() {
        Ok(value) => Some(value),
        Err(why) => {
            item.problem(why, "");
            None
        }
    }
}

fn filters(route: &Section<'_>, known: &[String]) -> Vec<String> {
    let Some(items) = route.item("filters").and_then(|item| item.items()) else { return Vec::new() };
    let mut names = Vec::new();
    for item in &items {
        let Some(name) = item.string() else { continue };
        if !known.contains(&name) {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let help = match nearest(&name, &known) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("add [filters.{name}] with its `component`"),
            };
            item.problem(format!("there is no filter `{name}`"), help);
        }
        names.push(name);
    }
    names
}

/// The answer to an event that is accepted without a receiver's own answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledge {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    pub(crate) content_type: Option<HeaderValue>,
}

impl Default for Acknowledge {
    /// 202, no body.
    fn default() -> Self {
        Self { status: StatusCode::ACCEPTED, body: Bytes::new(), content_type: None }
    }
}

impl Acknowledge {
    pub(crate) fn answer(&self) -> Answer {
        let mut headers = HeaderMap::new();
        if let Some(content_type) = &self.content_type {
            headers.insert(CONTENT_TYPE, content_type.clone());
        }
        Answer { status: self.status, headers, body: self.body.clone() }
    }

    /// What a preset says that its provider needs.
    fn of_preset(preset: &verify::Acknowledge) -> Self {
        Self {
            status: StatusCode::from_u16(preset.status).unwrap_or(StatusCode::ACCEPTED),
            body: Bytes::from(preset.body.clone()),
            content_type: preset.content_type.as_deref().and_then(|text| HeaderValue::from_str(text).ok()),
        }
    }

    /// `acknowledge = { status, body, content_type }`; what is absent is the preset's, else 202 without a body.
    pub(crate) fn read(route: &Section<'_>, preset: Acknowledge) -> Self {
        let Some(section) = route.opt_section("acknowledge") else { return preset };
        let mut read = preset;
        if let Some(status) = section.opt_u64("status", 200..=299) {
            read.status = u16::try_from(status).ok().and_then(|s| StatusCode::from_u16(s).ok()).unwrap_or(StatusCode::ACCEPTED);
        }
        if let Some(body) = section.opt_string("body") {
            if body.len() > 4096 {
                section.problem("body", format!("the acknowledgement is {} bytes", body.len()), "keep it within 4096, so that a copy gets the same answer");
            }
            read.body = Bytes::from(body);
            read.content_type = read.content_type.or(Some(HeaderValue::from_static("text/plain; charset=utf-8")));
        }
        if let Some(text) = section.opt_string("content_type") {
            match HeaderValue::from_str(&text) {
                Ok(value) => read.content_type = Some(value),
                Err(_) => section.problem("content_type", format!("`{}` is not a content type", text.escape_debug()), "write it like \"application/json\""),
            }
        }
        section.finish();
        read
    }
}

/// Which guards refuse, and which only observe: the event goes on, and `would_refuse` counts.
///
/// Size, time and header limits are always enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Enforce {
    pub(crate) client_cert: bool,
    pub(crate) allow_ips: bool,
    pub(crate) rate_limit: bool,
    pub(crate) verify: bool,
    pub(crate) query: bool,
    pub(crate) validate: bool,
}

impl Enforce {
    const fn all(on: bool) -> Self {
        Self { client_cert: on, allow_ips: on, rate_limit: on, verify: on, query: on, validate: on }
    }

    /// `enforce = false`, or a table of guards with a `default`.
    pub(crate) fn read(route: &Section<'_>) -> Self {
        let Some(item) = route.item("enforce") else { return Self::all(true) };
        if let Some(on) = item.as_bool() {
            return Self::all(on);
        }
        let Some(section) = item.section() else { return Self::all(true) };
        let mut read = Self::all(section.bool_or("default", true));
        for (key, field) in [
            ("client_cert", &mut read.client_cert),
            ("allow_ips", &mut read.allow_ips),
            ("rate_limit", &mut read.rate_limit),
            ("verify", &mut read.verify),
            ("query", &mut read.query),
            ("validate", &mut read.validate),
        ] {
            *field = section.bool_or(key, *field);
        }
        section.finish();
        read
    }

    /// Whether a refusal for this reason stands.
    pub(crate) fn covers(&self, reason: Reason) -> bool {
        match reason {
            Reason::ClientCertNotAllowed => self.client_cert,
            Reason::IpNotAllowed => self.allow_ips,
            Reason::RateLimited => self.rate_limit,
            Reason::QueryNotSigned => self.query,
            Reason::SignatureMissing
            | Reason::SignatureMalformed
            | Reason::SignatureMismatch
            | Reason::TimestampMissing
            | Reason::TimestampStale
            | Reason::TimestampFuture
            | Reason::TokenInvalid
            | Reason::ClaimsInvalid
            | Reason::KeysUnavailable => self.verify,
            Reason::NotJson | Reason::UnsupportedMediaType | Reason::ContentEncoding | Reason::SchemaInvalid => self.validate,
            Reason::BadRequest
            | Reason::BadTarget
            | Reason::NoRoute
            | Reason::MethodNotAllowed
            | Reason::BodyTimeout
            | Reason::InFlight
            | Reason::Duplicate
            | Reason::BodyTooLarge
            | Reason::ExpectationFailed
            | Reason::Misdirected
            | Reason::HeadersTooLarge
            | Reason::FilterRejected
            | Reason::FilterFailed
            | Reason::UpstreamUnreachable
            | Reason::UpstreamInvalid
            | Reason::UpstreamRedirect
            | Reason::Overloaded
            | Reason::BreakerOpen
            | Reason::QueueFull
            | Reason::StoreFailed
            | Reason::NoDestination
            | Reason::UpstreamTimeout => true,
        }
    }
}

/// `methods = ["POST"]`; the default is POST alone.
pub(crate) fn methods(route: &Section<'_>) -> Vec<http::Method> {
    let Some(items) = route.item("methods").and_then(|item: Item<'_>| item.items()) else { return vec![http::Method::POST] };
    if items.is_empty() {
        route.problem("methods", "`methods` is empty", "leave the key out for POST alone");
    }
    let mut methods = Vec::new();
    for item in &items {
        let Some(text) = item.string() else { continue };
        match http::Method::from_bytes(text.as_bytes()) {
            Ok(method) if method != http::Method::CONNECT && text.chars().all(|c| c.is_ascii_uppercase() || c == '-') => methods.push(method),
            _ => item.problem(format!("`{text}` is not a method that can be routed"), "methods are upper case, such as POST or PUT"),
        }
    }
    methods
}
