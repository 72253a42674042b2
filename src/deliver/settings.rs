//! `[destinations.NAME]`, and the URL that a route may name instead. Pure.

use std::{path::PathBuf, sync::Arc, time::Duration};

use data_encoding::BASE64;
use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use url::Url;

use super::{balance, headers};
use crate::{
    egress::TlsSettings,
    event::is_credential,
    section::{Item, Section},
    verify::{self, sign::Marks},
};

/// The most of an answer's body that is taken; beyond it the answer counts as invalid. Default 1 MiB.
const MAX_RESPONSE: u64 = 1 << 20;

/// Connect, request and whole answer together. Default 10 s.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long an unused connection is kept. Default 30 s: less than most receivers keep theirs.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// One destination as the policy has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(super) to: To,
    pub(super) timeout: Duration,
    /// Requests at once; `None`: as many as come.
    pub(super) concurrency: Option<usize>,
    pub(super) sign: Sign,
}

/// `sign`: what a receiver finds of a signature.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Sign {
    /// Whatever the sender's request carries.
    #[default]
    AsItCame,
    /// The same, and the receiver is said to look at none: for `check`.
    Unchecked,
    By(Signing),
}

/// How the gate signs for a receiver.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Signing {
    pub(super) signer: Arc<verify::sign::Signer>,
    /// Where the providers of the routes that deliver here sign.
    pub(super) others: Marks,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum To {
    Http(Http),
    Inspector,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Http {
    /// One or more; with several they are balanced.
    pub(super) addresses: Vec<Address>,
    /// `path = "keep"`: the path that the sender asked for.
    pub(super) keep_path: bool,
    /// `host = "keep"`: the Host that the sender asked for.
    pub(super) keep_host: bool,
    pub(super) tls: TlsSettings,
    /// `None`: HTTP/2 where TLS offers it; `true`: always, `false`: never.
    pub(super) http2: Option<bool>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) max_response: usize,
    pub(super) repeat: bool,
    pub(super) idle_timeout: Duration,
    pub(super) strip_credentials: bool,
}

/// What one URL says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Address {
    pub(super) place: Place,
    /// For `Host`: without the scheme's own port.
    pub(super) authority: String,
    /// Starts with `/`.
    pub(super) path: String,
    pub(super) query: Option<String>,
    /// Marked as sensitive: never printed.
    pub(super) basic: Option<HeaderValue>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

enum Parsed {
    Http(Address),
    Inspector,
}

/// A message and what to do about it.
type Wrong = (String, String);

impl Settings {
    /// The longest a delivery takes.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// What the gate signs with for this receiver.
    pub(crate) fn signer(&self) -> Option<&verify::sign::Signer> {
        match &self.sign {
            Sign::By(signing) => Some(&signing.signer),
            Sign::AsItCame | Sign::Unchecked => None,
        }
    }

    /// Whether its receiver may check the signature that the sender made.
    pub(crate) fn may_check(&self) -> bool {
        match (&self.to, &self.sign) {
            (To::Http(_), Sign::AsItCame) => true,
            (To::Inspector, _) | (To::Http(_), Sign::Unchecked | Sign::By(_)) => false,
        }
    }

    /// Tells it where the requests of a route that delivers here carry their signatures: they are taken away where the gate signs.
    pub(crate) fn comes_from(&mut self, plan: &verify::Plan) {
        if let Sign::By(signing) = &mut self.sign {
            signing.others.add(plan.marks());
        }
    }

    /// Whether anything travels in the clear over the network: plain HTTP to another machine.
    pub(crate) fn is_plain_network(&self) -> bool {
        let To::Http(http) = &self.to else { return false };
        http.addresses.iter().any(|address| match &address.place {
            Place::Tcp { host, tls: false, .. } => !(host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())),
            Place::Tcp { .. } | Place::Unix(_) => false,
        })
    }
}

/// `[destinations.NAME]`.
pub(crate) fn read(name: &str, section: Section<'_>, catalogue: &verify::Catalogue) -> Option<Settings> {
    for (key, what) in [
        ("retry", "retries come with the queue"),
        ("breaker", "the breaker comes with the queue"),
        ("rate", "pacing comes with the queue"),
        ("format", "formats come with the brokers"),
    ] {
        section.not_built(key, what);
    }
    let parsed = read_urls(&section);
    let timeout = section.duration_or("timeout", TIMEOUT);
    if timeout.is_zero() {
        section.problem("timeout", "a timeout of nothing lets no request through", "10s is the default");
    }
    let concurrency = section.opt_u64("concurrency", 1..=100_000).and_then(|most| usize::try_from(most).ok());
    let words = [("own", false), ("keep", true)];
    let keep_path = section.choice("path", &words).unwrap_or(false);
    let keep_host = section.choice("host", &words).unwrap_or(false);
    let tls = section.opt_section("tls").map(TlsSettings::read);
    let http2 = section.opt_bool("http2");
    let headers = read_headers(&section);
    let max_response = section.size_or("max_response", MAX_RESPONSE);
    let repeat = section.bool_or("repeat", true);
    let idle_timeout = section.duration_or("idle_timeout", IDLE_TIMEOUT);
    let strip_credentials = section.bool_or("strip_credentials", false);
    let sign = read_sign(&section, catalogue);
    let to = match parsed {
        None => None,
        Some(Parsed::Inspector) => {
            for key in ["path", "host", "tls", "http2", "headers", "max_response", "repeat", "idle_timeout", "strip_credentials", "sign"] {
                if section.has(key) {
                    section.problem(key, format!("`{key}` means nothing to the inspector"), "remove the key");
                }
            }
            Some(To::Inspector)
        }
        Some(Parsed::Http(first)) => read_addresses(&section, first).map(|addresses| {
            if keep_path && let Some(address) = addresses.iter().find(|address| address.path != "/") {
                section.problem("path", format!("the sender's path is kept, and the URL has the path {} of its own", address.path), "remove one of the two");
            }
            if tls.is_some() && !addresses.iter().any(|address| matches!(address.place, Place::Tcp { tls: true, .. })) {
                section.problem("tls", "`tls` is set, and no URL is https://", "write https://, or remove `tls`");
            }
            To::Http(Http {
                addresses,
                keep_path,
                keep_host,
                tls: tls.clone().flatten().unwrap_or_default(),
                http2,
                headers: headers.clone().unwrap_or_default(),
                max_response: usize::try_from(max_response).unwrap_or(usize::MAX),
                repeat,
                idle_timeout,
                strip_credentials,
            })
        }),
    };
    section.finish();
    if matches!(tls, Some(None)) || headers.is_none() {
        return None;
    }
    Some(Settings { name: name.to_owned(), to: to?, timeout, concurrency, sign: sign? })
}

/// A URL where a route names its destination by one: all else is as by default.
pub(crate) fn read_url(name: &str, item: &Item<'_>) -> Option<Settings> {
    let to = match parse(item.as_str()?) {
        Ok(Parsed::Inspector) => To::Inspector,
        Ok(Parsed::Http(address)) => {
            warn_password(item, &address);
            To::Http(Http {
                addresses: vec![address],
                keep_path: false,
                keep_host: false,
                tls: TlsSettings::default(),
                http2: None,
                headers: Vec::new(),
                max_response: usize::try_from(MAX_RESPONSE).unwrap_or(usize::MAX),
                repeat: true,
                idle_timeout: IDLE_TIMEOUT,
                strip_credentials: false,
            })
        }
        Err((message, help)) => {
            item.problem(message, help);
            return None;
        }
    };
    Some(Settings { name: name.to_owned(), to, timeout: TIMEOUT, concurrency: None, sign: Sign::default() })
}

/// Whether a text is meant as a URL rather than as a name.
pub(crate) fn looks_like_url(text: &str) -> bool {
    text.contains(':') || text.contains('/')
}

/// `url`, or the first of `urls`.
fn read_urls(section: &Section<'_>) -> Option<Parsed> {
    let item = match (section.item("url"), section.item("urls")) {
        (Some(one), None) => one,
        (None, Some(many)) => match many.items()?.into_iter().next() {
            Some(first) => first,
            None => {
                many.problem("`urls` is empty", "name at least one receiver");
                return None;
            }
        },
        (Some(_), Some(_)) => {
            section.problem("urls", "`url` and `urls` exclude each other", "keep one of the two");
            return None;
        }
        (None, None) => {
            section.string("url");
            return None;
        }
    };
    item.string()?;
    match parse(item.as_str()?) {
        Ok(Parsed::Http(address)) => {
            warn_password(&item, &address);
            Some(Parsed::Http(address))
        }
        Ok(Parsed::Inspector) => Some(Parsed::Inspector),
        Err((message, help)) => {
            item.problem(message, help);
            None
        }
    }
}

/// The first is read already; the rest of `urls`.
fn read_addresses(section: &Section<'_>, first: Address) -> Option<Vec<Address>> {
    let mut addresses = vec![first];
    let mut good = true;
    let rest = section.item("urls").and_then(|item| item.items()).unwrap_or_default();
    for item in rest.iter().skip(1) {
        match item.string().map(|text| parse(&text)) {
            None => good = false,
            Some(Ok(Parsed::Http(address))) if addresses.iter().any(|other| (&other.place, &other.path) == (&address.place, &address.path)) => {
                item.problem("this receiver stands twice", "remove one: a receiver is one share of the load");
                good = false;
            }
            Some(Ok(Parsed::Http(address))) => {
                warn_password(item, &address);
                addresses.push(address);
            }
            Some(Ok(Parsed::Inspector)) => {
                item.problem("the inspector stands alone", "name it with `url`");
                good = false;
            }
            Some(Err((message, help))) => {
                item.problem(message, help);
                good = false;
            }
        }
    }
    if addresses.len() > balance::MOST {
        section.problem("urls", format!("{} receivers: {} at most", addresses.len(), balance::MOST), "put a balancer between");
        good = false;
    }
    good.then_some(addresses)
}

/// `sign = "none"`, or a table as a route's `verify`.
fn read_sign(section: &Section<'_>, catalogue: &verify::Catalogue) -> Option<Sign> {
    let Some(item) = section.item("sign") else { return Some(Sign::AsItCame) };
    match item.as_str() {
        Some("none") => Some(Sign::Unchecked),
        Some(word) => {
            item.problem(format!("`{word}` is no way to sign"), "a table with `provider` and `secret`, or \"none\": the receiver checks no signature");
            None
        }
        None => Some(Sign::By(Signing { signer: Arc::new(verify::sign::read(&item, catalogue)?), others: Marks::default() })),
    }
}

fn warn_password(item: &Item<'_>, address: &Address) {
    if address.basic.is_some() {
        item.warn(
            "a password stands in the policy file",
            "use headers = { Authorization = { from = \"env:NAME\" } }, so that the policy can be shared and reviewed",
        );
    }
}

fn read_headers(section: &Section<'_>) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let Some(table) = section.item("headers") else { return Some(Vec::new()) };
    let table = table.section()?;
    let mut read = Vec::new();
    let mut good = true;
    for key in table.keys() {
        let Some(item) = table.item(&key) else { continue };
        let name = HeaderName::from_bytes(key.as_bytes()).ok().filter(|name| headers::travels(name) && !name.as_str().starts_with("hooklatch-"));
        if name.is_none() {
            item.problem(
                format!("`{key}` cannot be set here"),
                "the gate itself sets what frames a request, names with `_` are dropped, and Hooklatch-* is its own",
            );
        }
        let value = if item.is_table() {
            item.secret(1).map(|secret| secret.expose().to_vec()).and_then(|bytes| HeaderValue::from_bytes(&bytes).ok()).map(|mut value| {
                value.set_sensitive(true);
                value
            })
        } else {
            let mut value = item.string().and_then(|text| HeaderValue::from_bytes(text.as_bytes()).ok());
            if let (Some(name), Some(value)) = (&name, &mut value)
                && is_credential(name, value)
            {
                value.set_sensitive(true);
                item.warn(
                    "a credential stands in the policy file",
                    format!("write {key} = {{ from = \"env:NAME\" }}, so that the policy can be shared and reviewed"),
                );
            }
            value
        };
        match (name, value) {
            (Some(name), Some(value)) => read.push((name, value)),
            (Some(_), None) => {
                item.problem("the value holds what no header can", "text without line breaks and control characters");
                good = false;
            }
            (None, _) => good = false,
        }
    }
    good.then_some(read)
}

fn parse(text: &str) -> Result<Parsed, Wrong> {
    let wrong = |message: String, help: &str| Err((message, help.to_owned()));
    if let Some(what) = text.strip_prefix("builtin:") {
        return if what == "inspector" { Ok(Parsed::Inspector) } else { wrong(format!("`builtin:{what}` is not known"), "there is builtin:inspector") };
    }
    if let Some(rest) = text.strip_prefix("unix:") {
        let (path, uri) = match rest.find(":/") {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => (rest, "/"),
        };
        let path = path.strip_prefix("//").map_or(path, |absolute| if absolute.starts_with('/') { absolute } else { path });
        if !path.starts_with('/') || path.len() > 107 || path.contains('\0') {
            return wrong(
                format!("`{text}` names no socket"),
                "write it like unix:/run/app.sock or unix:/run/app.sock:/hooks; a socket's path is absolute and has 107 bytes at most",
            );
        }
        let base =
            Url::parse("http://localhost").and_then(|base| base.join(uri)).map_err(|why| (format!("the path {uri} is not good: {why}"), String::new()))?;
        return Ok(Parsed::Http(Address {
            place: Place::Unix(path.into()),
            authority: "localhost".to_owned(),
            path: base.path().to_owned(),
            query: base.query().map(str::to_owned),
            basic: None,
        }));
    }
    let scheme = text.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
    match scheme.as_deref() {
        Some("http" | "https") => {}
        Some(scheme @ ("kafka" | "amqp" | "amqps" | "nats" | "redis" | "rediss" | "file")) => {
            return wrong(format!("`{scheme}:` destinations are not built yet"), "use http://, https://, unix: or builtin:inspector");
        }
        _ => {
            return wrong(
                "this is no destination's URL".to_owned(),
                "write it like http://127.0.0.1:3000/hooks, https://…, unix:/run/app.sock or builtin:inspector",
            );
        }
    }
    // The text itself may hold a password: it is never quoted.
    let url = Url::parse(text).map_err(|why| (format!("the URL cannot be read: {why}"), "write it like http://127.0.0.1:3000/hooks".to_owned()))?;
    if url.fragment().is_some() {
        return wrong("the URL has a `#` part, which is never sent".to_owned(), "remove it");
    }
    let tls = url.scheme() == "https";
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
        return wrong("the URL names no host".to_owned(), "write it like http://127.0.0.1:3000/hooks");
    };
    if port == 0 {
        return wrong("the URL names port 0".to_owned(), "name the receiver's port");
    }
    let written = host.to_string();
    let host = match host {
        url::Host::Domain(name) => name.trim_end_matches('.').to_owned(),
        url::Host::Ipv4(ip) => ip.to_string(),
        url::Host::Ipv6(ip) => ip.to_string(),
    };
    let authority = url.port().map_or_else(|| written.clone(), |port| format!("{written}:{port}"));
    let basic = (!url.username().is_empty() || url.password().is_some()).then(|| {
        let mut pair: Vec<u8> = percent_decode_str(url.username()).collect();
        pair.push(b':');
        pair.extend(percent_decode_str(url.password().unwrap_or_default()));
        HeaderValue::from_str(&format!("Basic {}", BASE64.encode(&pair))).ok().map(|mut value| {
            value.set_sensitive(true);
            value
        })
    });
    Ok(Parsed::Http(Address {
        place: Place::Tcp { host, port, tls },
        authority,
        path: url.path().to_owned(),
        query: url.query().filter(|query| !query.is_empty()).map(str::to_owned),
        basic: basic.flatten(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        problem::Source,
        section::{Inputs, Reader},
    };

    fn with<T>(text: &str, read: impl Fn(Section<'_>) -> T) -> (T, Vec<String>) {
        let inputs = Inputs::memory(&[("TOKEN", "t0ken")], &[]);
        let reader = Reader::new(Source { name: "p.toml".into(), text: text.into() }, inputs);
        let table = reader.parse();
        let got = read(reader.root(&table));
        (got, reader.problems().iter().map(ToString::to_string).collect())
    }

    fn check(text: &str, want: &[&str]) {
        let (settings, problems) = with(text, |section| super::read("billing", section, &verify::Catalogue::shipped()));
        assert_eq!(problems, want, "{text}");
        assert!(settings.is_some() || !want.is_empty(), "{text}");
    }

    fn http(text: &str) -> Http {
        match with(text, |section| super::read("billing", section, &verify::Catalogue::shipped())) {
            (Some(Settings { to: To::Http(http), .. }), problems) if problems.iter().all(|problem| problem.contains("password")) => http,
            (other, problems) => panic!("{text}: {other:?} {problems:?}"),
        }
    }

    fn address(url: &str) -> Address {
        http(&format!("url = \"{url}\"")).addresses.remove(0)
    }

    #[test]
    fn urls_say_where_and_what() {
        let check = |url: &str, place: Place, authority: &str, path: &str, query: Option<&str>| {
            let got = address(url);
            assert_eq!((&got.place, &*got.authority, &*got.path, got.query.as_deref()), (&place, authority, path, query), "{url}");
        };
        let tcp = |host: &str, port, tls| Place::Tcp { host: host.to_owned(), port, tls };
        check("http://127.0.0.1:3000/hooks", tcp("127.0.0.1", 3000, false), "127.0.0.1:3000", "/hooks", None);
        check("https://Example.com/", tcp("example.com", 443, true), "example.com", "/", None);
        check("https://example.com:443", tcp("example.com", 443, true), "example.com", "/", None);
        check("http://[::1]:8080/a?b=c", tcp("::1", 8080, false), "[::1]:8080", "/a", Some("b=c"));
        check("http://user:pa%20ss@h/", tcp("h", 80, false), "h", "/", None);
        check("unix:/run/app.sock", Place::Unix("/run/app.sock".into()), "localhost", "/", None);
        check("unix:/run/app.sock:/hooks?x=1", Place::Unix("/run/app.sock".into()), "localhost", "/hooks", Some("x=1"));
        assert_eq!(address("http://user:pa%20ss@h/").basic.expect("a password"), "Basic dXNlcjpwYSBzcw==");
    }

    #[test]
    fn all_keys_are_taken() {
        let got = http(
            "urls = [\"http://a:1/x\", \"http://b:2/x\"]\nhost = \"keep\"\ntimeout = \"3s\"\nheaders = { \"X-Env\" = \"prod\", Authorization = { from = \"env:TOKEN\" } }\n\
             concurrency = 64\nmax_response = \"2MiB\"\nrepeat = false\nhttp2 = true\nidle_timeout = \"5s\"\nstrip_credentials = true",
        );
        assert_eq!((got.addresses.len(), got.keep_host, got.keep_path, got.max_response, got.repeat, got.http2), (2, true, false, 2 << 20, false, Some(true)));
        assert_eq!(got.headers[1].1, "t0ken");
        assert!(!format!("{got:?}").contains("t0ken"), "{got:?}");
    }

    #[test]
    fn passwords_are_never_printed() {
        let (settings, problems) = with("url = \"http://user:hunter2@h:1/\"", |section| super::read("billing", section, &verify::Catalogue::shipped()));
        let shown = format!("{settings:?} {problems:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("dXNlcjpodW50ZXIy"), "{shown}");
        for bad in ["http://user:hunter2@h:99999/", "http://user:hunter2@/", "htp://user:hunter2@h/", "http://user:hunter2@h/#x"] {
            let (_, problems) = with(&format!("url = \"{bad}\""), |section| super::read("billing", section, &verify::Catalogue::shipped()));
            assert!(!problems.is_empty() && !format!("{problems:?}").contains("hunter2"), "{bad}: {problems:?}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        check("", &["url: `url` is missing (add `url = …` to [])"]);
        check("url = \"http://h\"\nurls = []", &["urls: `url` and `urls` exclude each other (keep one of the two)"]);
        check("urls = []", &["urls: `urls` is empty (name at least one receiver)"]);
        check("urls = [\"http://h:1\", \"http://h:1/\"]", &["urls[1]: this receiver stands twice (remove one: a receiver is one share of the load)"]);
        check("url = \"kafka://h/t\"", &["url: `kafka:` destinations are not built yet (use http://, https://, unix: or builtin:inspector)"]);
        check("url = \"builtin:inspecter\"", &["url: `builtin:inspecter` is not known (there is builtin:inspector)"]);
        check("url = \"http://h\"\nretry = { for = \"72h\" }", &["retry: `retry` is not built yet: retries come with the queue (remove the key)"]);
        check("url = \"http://h\"\ntimout = \"3s\"", &["timout: unknown key `timout` (did you mean `timeout`?)"]);
        check("url = \"http://h/x\"\npath = \"keep\"", &["path: the sender's path is kept, and the URL has the path /x of its own (remove one of the two)"]);
        check("url = \"http://h\"\ntls = {}", &["tls: `tls` is set, and no URL is https:// (write https://, or remove `tls`)"]);
        check("url = \"builtin:inspector\"\nrepeat = true", &["repeat: `repeat` means nothing to the inspector (remove the key)"]);
        check(
            "url = \"http://h\"\nheaders = { Connection = \"x\" }",
            &[
                "headers.Connection: `Connection` cannot be set here (the gate itself sets what frames a request, names with `_` are dropped, and Hooklatch-* is its own)",
            ],
        );
        check("url = \"http://h\"\ntimeout = \"0s\"", &["timeout: a timeout of nothing lets no request through (10s is the default)"]);
        check("url = \"https://h\"\ntls = { cert = \"x\" }", &["tls.cert: `cert` without `key` (name the certificate's private key too)"]);
    }
}
