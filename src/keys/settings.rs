//! Where keys are fetched from: `keys` of a provider or a route.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method, header::CONTENT_TYPE};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Document, Source, document::Form};
use crate::{
    egress::TlsSettings,
    fetch,
    secret::Secret,
    section::{Item, Section},
    validate::json::Pointer,
    verify::public_key,
};

/// One place, with its request. `{id}`, `{param:NAME}`, `{secret}` and its halves `{user}` and `{password}` stand for values.
#[derive(Clone)]
pub(crate) struct Settings {
    /// The URL's host: what logs and metrics show.
    pub(super) name: Arc<str>,
    pub(super) form: Form,
    url: String,
    method: Method,
    headers: Vec<(HeaderName, String)>,
    body: Option<String>,
    content_type: String,
    /// `user:password` for HTTP basic authentication: the route's secret.
    basic: bool,
    pub(super) pointer: Option<Pointer>,
    pub(super) tls: TlsSettings,
    pub(super) timeout: Duration,
    params: BTreeMap<String, String>,
    secret: Option<Secret>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("name", &self.name).field("form", &self.form).finish_non_exhaustive()
    }
}

/// A request for one document.
pub(super) struct Request {
    pub(super) url: url::Url,
    pub(super) method: Method,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Zeroizing<Vec<u8>>,
}

#[derive(Clone, Copy)]
enum Escape {
    Url,
    Json,
    None,
}

impl Settings {
    /// A table with `url`, or the URL of a key set.
    pub(crate) fn read(item: &Item<'_>) -> Option<Self> {
        if let Some(url) = item.as_str() {
            return Self::new(url, Form::Set).map_err(|why| item.problem(why, "an https URL of a JWK set, or a table with `url`")).ok();
        }
        let table = item.section()?;
        let form = table.choice("form", &[("set", Form::Set), ("key", Form::Key), ("introspection", Form::Introspection)]).unwrap_or(Form::Set);
        let url = table.string("url");
        let method = table.choice("method", &[("GET", Method::GET), ("POST", Method::POST)]);
        let headers = table.opt_section("headers").map(|headers| read_headers(&headers));
        let body = table.opt_string("body");
        let content_type = table.opt_string("content_type");
        let pointer = table.opt_string("json").map(|text| Pointer::parse(&text).map_err(|why| table.problem("json", why, "such as \"/key\"")));
        let tls = table.has("ca").then(|| TlsSettings::read_ca(&table));
        let timeout = table.duration_or("timeout", Duration::from_secs(3));
        let url_item = table.item("url");
        table.finish();
        let mut settings = Self::new(&url?, form).map_err(|why| url_item.map(|item| item.problem(why, ""))).ok()?;
        settings.timeout = timeout.clamp(Duration::from_millis(100), Duration::from_secs(30));
        settings.method = method.unwrap_or(if body.is_some() || form == Form::Introspection { Method::POST } else { Method::GET });
        settings.headers = match headers {
            Some(read) => read?,
            None => Vec::new(),
        };
        settings.body = body.or(settings.body);
        settings.content_type = content_type.unwrap_or(settings.content_type);
        settings.pointer = match pointer {
            Some(read) => Some(read.ok()?),
            None => None,
        };
        settings.tls = match tls {
            Some(read) => read?,
            None => TlsSettings::default(),
        };
        Some(settings)
    }

    pub(crate) fn new(url: &str, form: Form) -> Result<Self, String> {
        let filled = url.replace("{id}", "id");
        let parsed = fetch::check_url(&strip_params(&filled))?;
        let introspection = form == Form::Introspection;
        Ok(Self {
            name: parsed.host_str().unwrap_or_default().into(),
            form,
            url: url.to_owned(),
            method: Method::GET,
            headers: Vec::new(),
            body: introspection.then(|| "token={id}&token_type_hint=access_token".to_owned()),
            content_type: if introspection { "application/x-www-form-urlencoded" } else { "application/json" }.to_owned(),
            basic: introspection,
            pointer: None,
            tls: TlsSettings::default(),
            timeout: Duration::from_secs(3),
            params: BTreeMap::new(),
            secret: None,
        })
    }

    /// Certificates by URL: a scheme checks the URL before it asks.
    pub(crate) fn certificates(name: &str) -> Self {
        Self {
            name: name.into(),
            form: Form::Certificates,
            url: "{id}".to_owned(),
            method: Method::GET,
            headers: Vec::new(),
            body: None,
            content_type: String::new(),
            basic: false,
            pointer: None,
            tls: TlsSettings::default(),
            timeout: Duration::from_secs(3),
            params: BTreeMap::new(),
            secret: None,
        }
    }

    /// With the route's values.
    pub(crate) fn bind(&self, params: &BTreeMap<String, String>, secret: Option<&Secret>) -> Self {
        Self { params: params.clone(), secret: secret.cloned(), ..self.clone() }
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Whether its requests carry the route's secret.
    pub(crate) fn needs_secret(&self) -> bool {
        self.basic
            || self
                .headers
                .iter()
                .map(|(_, value)| value)
                .chain(&self.body)
                .chain([&self.url])
                .any(|text| ["{secret}", "{user}", "{password}"].iter().any(|word| text.contains(word)))
    }

    /// The same place asked in the same way: what was fetched for one serves the other.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(self.url.as_bytes());
        part(format!("{:?} {} {:?}", self.form, self.method, self.pointer).as_bytes());
        self.headers.iter().for_each(|(name, value)| {
            part(name.as_str().as_bytes());
            part(value.as_bytes());
        });
        part(self.body.as_deref().unwrap_or_default().as_bytes());
        self.params.iter().for_each(|(name, value)| {
            part(name.as_bytes());
            part(value.as_bytes());
        });
        part(self.secret.as_ref().map_or(b"", Secret::expose));
        part(&self.tls.fingerprint());
        hash.finalize().into()
    }

    pub(super) fn request(&self, id: &str) -> Result<Request, String> {
        let url = if self.form == Form::Certificates { id.to_owned() } else { self.render(&self.url, id, Escape::Url) };
        let mut headers = http::HeaderMap::new();
        for (name, template) in &self.headers {
            let text = Zeroizing::new(self.render(template, id, Escape::None));
            let mut value = HeaderValue::from_str(&text).map_err(|_| format!("the value of the header {name} cannot stand in a header"))?;
            value.set_sensitive(true);
            headers.insert(name.clone(), value);
        }
        let body = self.body.as_ref().map(|template| {
            let escape = if self.content_type.contains("json") { Escape::Json } else { Escape::Url };
            self.render(template, id, escape).into_bytes()
        });
        if body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_str(&self.content_type).map_err(|_| "the content type cannot stand in a header")?);
        }
        if let (true, Some(secret)) = (self.basic, &self.secret) {
            let text = format!("Basic {}", data_encoding::BASE64.encode(secret.expose()));
            let mut value = HeaderValue::from_str(&text).map_err(|_| "the credentials cannot stand in a header")?;
            value.set_sensitive(true);
            headers.insert(http::header::AUTHORIZATION, value);
        }
        Ok(Request { url: fetch::check_url(&url)?, method: self.method.clone(), headers, body: Zeroizing::new(body.unwrap_or_default()) })
    }

    /// Puts the values in; what they hold is escaped and not looked at again.
    fn render(&self, template: &str, id: &str, escape: Escape) -> String {
        let escaped = |text: &str| match escape {
            Escape::Url => utf8_percent_encode(text, NON_ALPHANUMERIC).to_string(),
            Escape::Json => serde_json::Value::from(text).to_string().trim_matches('"').to_owned(),
            Escape::None => text.to_owned(),
        };
        let secret = Zeroizing::new(self.secret.as_ref().map_or_else(String::new, |secret| String::from_utf8_lossy(secret.expose()).into_owned()));
        let mut out = String::with_capacity(template.len() + id.len());
        let mut rest = template;
        while let Some(at) = rest.find('{') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            let end = rest.find('}').map_or(rest.len(), |end| end + 1);
            let word = &rest[..end];
            match word {
                "{id}" => out.push_str(&escaped(id)),
                "{secret}" => out.push_str(&escaped(&secret)),
                "{user}" => out.push_str(&escaped(secret.split_once(':').map_or("", |(user, _)| user))),
                "{password}" => out.push_str(&escaped(secret.split_once(':').map_or("", |(_, password)| password))),
                _ => match word.strip_prefix("{param:").and_then(|name| self.params.get(name.strip_suffix('}')?)) {
                    Some(value) => out.push_str(&escaped(value)),
                    // A brace of JSON's own.
                    None => {
                        out.push('{');
                        rest = &rest[1..];
                        continue;
                    }
                },
            }
            rest = &rest[end..];
        }
        out.push_str(rest);
        out
    }
}

impl Source {
    /// Reads a route's `keys`: an https URL, a table with `url`, or keys that stand in a file or variable.
    pub(crate) fn read(item: &Item<'_>) -> Option<Given> {
        match item.as_str() {
            Some(text) if !text.starts_with("https:") => {
                let (bytes, ..) = item.open_text(1)?;
                match public_key::parse(&bytes) {
                    Ok(keys) => Some(Given::Fixed(Self::fixed([(String::new(), Document::Keys(keys))]))),
                    Err(why) => {
                        item.problem(format!("these keys cannot be read: {why}"), "PEM, a JWK or a JWK set, from `file:PATH` or `env:NAME`; or an https URL");
                        None
                    }
                }
            }
            _ => Settings::read(item).map(|settings| Given::Remote(Box::new(settings))),
        }
    }
}

/// A route's own keys, before its secrets are known.
#[derive(Clone)]
pub(crate) enum Given {
    Fixed(Arc<Source>),
    Remote(Box<Settings>),
}

fn read_headers(section: &Section<'_>) -> Option<Vec<(HeaderName, String)>> {
    let mut all = Vec::new();
    for name in section.keys() {
        let value = section.string(&name)?;
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(header) => all.push((header, value)),
            Err(_) => {
                section.problem(&name, format!("`{name}` is not a header's name"), "");
                return None;
            }
        }
    }
    Some(all)
}

/// The URL with every `{param:NAME}` filled in by a word, to be judged before the values are known.
fn strip_params(url: &str) -> String {
    let mut out = String::new();
    let mut rest = url;
    while let Some(at) = rest.find("{param:") {
        out.push_str(&rest[..at]);
        out.push('x');
        rest = rest[at..].find('}').map_or("", |end| &rest[at + end + 1..]);
    }
    out.push_str(rest);
    out
}
