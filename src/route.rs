//! Host, path and method to a route. Pure.
//!
//! Nothing is normalised. A target that two readers could understand in two ways (an escape that hides a separator, a dot segment, an
//! empty segment, a host with a dot at its end) is refused, so that what the gate matched is what the receiver sees.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
};

use http::{Method, Version, header, request::Parts};
use matchit::Router;

use crate::reject::{Extra, Reason, Reject};

/// A route's `host`: a name, or `*.` and a name for everything one or more labels below it. Lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Host {
    Exact(String),
    /// What comes after `*.`.
    Below(String),
}

/// A route's `path`: `/github`, `/tenants/{tenant}/github`, or `/prefix/*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    text: String,
    /// In the router's words.
    pattern: String,
    /// The pattern without the parameters' names: two of the same shape match the same targets.
    shape: String,
    params: Vec<Arc<str>>,
    rest: bool,
}

/// One route as the table needs it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// `None`: any host.
    pub(crate) host: Option<Host>,
    pub(crate) path: Path,
    pub(crate) methods: Vec<Method>,
    /// Methods that the route takes for its provider's handshakes only.
    pub(crate) handshakes: Vec<Method>,
    /// The caller's number for the route.
    pub(crate) index: usize,
}

/// Two routes that would answer the same request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ambiguity {
    /// [`Entry::index`] of the two.
    pub(crate) a: usize,
    pub(crate) b: usize,
    pub(crate) why: String,
}

/// Every route, ready for matching.
#[derive(Debug, Default)]
pub(crate) struct Table {
    exact: HashMap<String, Methods>,
    below: HashMap<String, Methods>,
    any: Methods,
}

/// The routes of one host pattern, by method.
#[derive(Debug, Default)]
struct Methods {
    taken: Vec<(Method, Paths)>,
    /// The same for handshakes; empty for most policies.
    handshakes: Vec<(Method, Paths)>,
}

/// The routes of one host pattern and method. Paths without `*` come first, then prefixes, the longer first; each router prefers a
/// literal segment to a `{name}`.
#[derive(Debug, Default)]
struct Paths {
    whole: Router<Leaf>,
    /// With the number of their segments, most first: a `{name}` and a `*` in the same place would be a conflict in one router.
    prefixes: Vec<(usize, Router<Leaf>)>,
}

#[derive(Clone, Debug)]
struct Leaf {
    index: usize,
    /// How narrow the path is: whole ones before prefixes, the longer first.
    rank: usize,
    has_host: bool,
    rest: bool,
    params: Arc<[Arc<str>]>,
}

/// What a request matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    /// [`Entry::index`] of the route.
    pub(crate) index: usize,
    /// The route does not take this method, but for a handshake, and the head is that of one.
    pub(crate) handshake: bool,
    /// The path's `{name}` parts as they arrived, nothing decoded.
    pub(crate) params: Vec<(String, String)>,
    /// What the path's `*` matched.
    pub(crate) rest: Option<String>,
    /// The host asked for, without a port and in lower case.
    pub(crate) host: Option<String>,
}

// -- patterns --

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let (name, below) = lower.strip_prefix("*.").map_or((lower.as_str(), false), |name| (name, true));
        if name.contains('*') {
            return Err(format!("`{text}` has a `*` that does not stand for its first labels"));
        }
        match parse_host(name) {
            Some(Named { name, port: false }) if !(below && is_address(name)) => {
                Ok(if below { Self::Below(name.to_owned()) } else { Self::Exact(name.to_owned()) })
            }
            Some(Named { port: true, .. }) => Err(format!("`{text}` has a port; routes match the name alone")),
            _ => Err(format!("`{text}` is not a host name")),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Below(host) => write!(f, "*.{host}"),
        }
    }
}

impl FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut path = Self { text: text.to_owned(), pattern: String::new(), shape: String::new(), params: Vec::new(), rest: false };
        let Some(segments) = text.strip_prefix('/') else { return Err(format!("`{text}` does not start with `/`")) };
        let mut plain = String::new();
        let mut segments = segments.split('/').peekable();
        while let Some(segment) = segments.next() {
            let last = segments.peek().is_none();
            plain.push('/');
            path.pattern.push('/');
            path.shape.push('/');
            if let Some(name) = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}')) {
                if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                    return Err(format!("`{segment}` is not a parameter: write a name of letters, digits and `_` between the braces"));
                }
                if path.params.iter().any(|other| **other == *name) {
                    return Err(format!("the parameter `{name}` stands twice"));
                }
                path.params.push(name.into());
                path.pattern.push_str(segment);
                path.shape.push_str("{}");
                plain.push('x');
            } else if segment == "*" && last {
                path.rest = true;
                path.pattern.push_str("{*rest}");
                path.shape.push('*');
            } else if segment.contains(['*', '{', '}']) {
                return Err(format!("`{segment}`: a `{{name}}` is a whole segment, and a `*` the whole last one"));
            } else {
                path.pattern.push_str(segment);
                path.shape.push_str(segment);
                plain.push_str(segment);
            }
        }
        if path.rest && path.params.iter().any(|name| **name == *"rest") {
            return Err("the parameter `rest` is what `*` matches: choose another name".to_owned());
        }
        match unclear_path(&plain) {
            None => Ok(path),
            Some(why) => Err(format!("`{text}` would never match: {why}")),
        }
    }
}

impl Path {
    /// The names between its braces.
    pub(crate) fn params(&self) -> &[Arc<str>] {
        &self.params
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

// -- the table --

impl Table {
    /// Builds the table; every pair of routes that the same request would match equally well is an ambiguity.
    pub(crate) fn build(entries: Vec<Entry>) -> Result<Self, Vec<Ambiguity>> {
        let mut seen: BTreeMap<(Option<Host>, String, String, bool), usize> = BTreeMap::new();
        let mut ambiguities: Vec<Ambiguity> = Vec::new();
        let mut table = Self::default();
        for Entry { host, path, methods, handshakes, index } in &entries {
            let handshakes = handshakes.iter().filter(|method| !methods.contains(method));
            for (method, handshake) in methods.iter().map(|method| (method, false)).chain(handshakes.map(|method| (method, true))) {
                let at = (host.clone(), path.shape.clone(), method.to_string(), handshake);
                if let Some(first) = seen.get(&at) {
                    if *first != *index && !ambiguities.iter().any(|known| (known.a, known.b) == (*first, *index)) {
                        let host = host.as_ref().map_or_else(|| "any host".to_owned(), ToString::to_string);
                        let what = if handshake { "answer the handshakes of" } else { "take" };
                        ambiguities.push(Ambiguity { a: *first, b: *index, why: format!("both {what} {method} {path} on {host}") });
                    }
                    continue;
                }
                seen.insert(at, *index);
                let rank = if path.rest { path.pattern.matches('/').count() } else { usize::MAX };
                let leaf = Leaf { index: *index, rank, has_host: host.is_some(), rest: path.rest, params: path.params.as_slice().into() };
                if let Err(why) = table.paths(host.as_ref(), method, handshake).insert(path, leaf) {
                    ambiguities.push(Ambiguity { a: *index, b: *index, why: format!("{path} cannot be routed: {why}") });
                }
            }
        }
        if ambiguities.is_empty() { Ok(table) } else { Err(ambiguities) }
    }

    fn paths(&mut self, host: Option<&Host>, method: &Method, handshake: bool) -> &mut Paths {
        let methods = match host {
            Some(Host::Exact(host)) => self.exact.entry(host.clone()).or_default(),
            Some(Host::Below(host)) => self.below.entry(host.clone()).or_default(),
            None => &mut self.any,
        };
        let methods = if handshake { &mut methods.handshakes } else { &mut methods.taken };
        let at = methods.iter().position(|(known, _)| known == method).unwrap_or_else(|| {
            methods.push((method.clone(), Paths::default()));
            methods.len() - 1
        });
        &mut methods[at].1
    }

    /// The most specific route of a request: an exact host before the longest `*.` before any; a whole path before a longer prefix before
    /// a shorter one; a literal segment before a `{name}`. `server_name` is what the client asked for in TLS, lower case.
    ///
    /// Errors: [`Reason::BadRequest`] (no Host, or several), [`Reason::BadTarget`], [`Reason::NoRoute`], [`Reason::MethodNotAllowed`]
    /// with the methods there are, and [`Reason::Misdirected`] where the route is bound to a host and TLS was made for another one: the
    /// certificate and the client's proof belong to the name asked for first.
    ///
    /// A method that a route takes for handshakes only counts where `is_handshake` says of that route that the head is one.
    pub(crate) fn find(&self, head: &Parts, server_name: Option<&str>, is_handshake: impl Fn(usize) -> bool) -> Result<Match, Reject> {
        let path = target(head)?;
        let host = host(head)?;
        for methods in self.hosts(host.as_deref()) {
            let taken = at(&methods.taken, head, path);
            let asked = at(&methods.handshakes, head, path)
                .filter(|asked| taken.as_ref().is_none_or(|taken| asked.value.rank >= taken.value.rank) && is_handshake(asked.value.index));
            let handshake = asked.is_some();
            if let Some(found) = asked.or(taken) {
                let leaf = found.value;
                if leaf.has_host
                    && let (Some(asked), Some(host)) = (server_name, host.as_deref())
                    && asked != host
                    && !self.same_pattern(asked, host)
                {
                    return Err(Reject::new(Reason::Misdirected, "the Host is not the name that TLS was made for"));
                }
                let value = |name: &str| found.params.get(name).unwrap_or_default();
                return Ok(Match {
                    index: leaf.index,
                    handshake,
                    params: leaf.params.iter().map(|name| (name.to_string(), plain(value(name)))).collect(),
                    rest: leaf.rest.then(|| value("rest").to_owned()),
                    host: host.as_deref().map(str::to_owned),
                });
            }
        }
        let mut allowed: Vec<&str> = Vec::new();
        for methods in self.hosts(host.as_deref()) {
            for (method, paths) in &methods.taken {
                if !allowed.contains(&method.as_str()) && paths.at(path).is_some() {
                    allowed.push(method.as_str());
                }
            }
        }
        if allowed.is_empty() {
            return Err(Reject::new(Reason::NoRoute, "no route matches the host and path"));
        }
        Err(Reject::new(Reason::MethodNotAllowed, "no route takes this method here").with(Extra::Allow(allowed.join(", "))))
    }

    /// The routes that may answer for a host, most specific first.
    fn hosts<'a>(&'a self, host: Option<&'a str>) -> impl Iterator<Item = &'a Methods> {
        let exact = host.filter(|_| !self.exact.is_empty()).and_then(|host| self.exact.get(host));
        let below = host.filter(|_| !self.below.is_empty()).into_iter().flat_map(above).filter_map(|name| self.below.get(name));
        exact.into_iter().chain(below).chain(std::iter::once(&self.any))
    }

    /// Whether two different names are one to every route: neither has routes of its own, and the nearest `*.` above them is the same.
    fn same_pattern(&self, a: &str, b: &str) -> bool {
        let nearest = |name: &str| above(name).find(|name| self.below.contains_key(*name)).map(str::to_owned);
        !self.exact.contains_key(a) && !self.exact.contains_key(b) && nearest(a).is_some() && nearest(a) == nearest(b)
    }
}

impl Paths {
    fn insert(&mut self, path: &Path, leaf: Leaf) -> Result<(), matchit::InsertError> {
        if !path.rest {
            return self.whole.insert(path.pattern.as_str(), leaf);
        }
        let segments = path.pattern.matches('/').count();
        let at = self.prefixes.iter().position(|(known, _)| *known <= segments).unwrap_or(self.prefixes.len());
        if self.prefixes.get(at).is_none_or(|(known, _)| *known != segments) {
            self.prefixes.insert(at, (segments, Router::new()));
        }
        let router = &mut self.prefixes[at].1;
        // `/prefix/*` takes `/prefix/` as well, where the router's own `{*rest}` wants something.
        router.insert(path.pattern.trim_end_matches("{*rest}"), leaf.clone())?;
        router.insert(path.pattern.as_str(), leaf)
    }

    fn at<'t, 'p>(&'t self, path: &'p str) -> Option<matchit::Match<'t, 'p, &'t Leaf>> {
        self.whole.at(path).ok().or_else(|| self.prefixes.iter().find_map(|(_, router)| router.at(path).ok()))
    }
}

/// What stands at the path for the request's method.
fn at<'t, 'p>(methods: &'t [(Method, Paths)], head: &Parts, path: &'p str) -> Option<matchit::Match<'t, 'p, &'t Leaf>> {
    methods.iter().find(|(method, _)| *method == head.method).and_then(|(_, paths)| paths.at(path))
}

/// The names above a name: `b.c` and `c` for `a.b.c`.
fn above(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(at, _)| &name[at + 1..])
}

// -- hosts --

struct Named<'a> {
    name: &'a str,
    port: bool,
}

/// A host as a Host field writes it: a name of at most 253 bytes, an IPv4 or a bracketed IPv6 address, each with or without a port.
fn parse_host(text: &str) -> Option<Named<'_>> {
    let end = if text.starts_with('[') { text.find(']')? + 1 } else { text.find(':').unwrap_or(text.len()) };
    let (name, port) = text.split_at(end);
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => false,
        Some(digits) if (1..=5).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok() => true,
        _ => return None,
    };
    let fine = match name.strip_prefix('[').and_then(|v6| v6.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => is_name(name),
    };
    fine.then_some(Named { name, port })
}

/// A DNS name of letters, digits, `-` and `_`, or an IPv4 address; what some readers would take for another spelling of one is neither.
fn is_name(name: &str) -> bool {
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if name.len() > 253 || !name.split('.').all(label) {
        return false;
    }
    let last = name.rsplit('.').next().unwrap_or(name);
    let hex = last.strip_prefix("0x").or(last.strip_prefix("0X")).is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    let number = hex || last.bytes().all(|b| b.is_ascii_digit());
    !number || name.parse::<Ipv4Addr>().is_ok()
}

fn is_address(name: &str) -> bool {
    name.starts_with('[') || name.parse::<Ipv4Addr>().is_ok()
}

/// The host a request is for, lower case and without its port; `None` only for HTTP/1.0.
fn host(head: &Parts) -> Result<Option<Cow<'_, str>>, Reject> {
    let bad = |why: &'static str| Reject::new(Reason::BadTarget, why);
    let mut lines = head.headers.get_all(header::HOST).iter();
    let field = match lines.next() {
        Some(_) if lines.next().is_some() => return Err(Reject::new(Reason::BadRequest, "there are several Host fields")),
        Some(line) => Some(line.to_str().map_err(|_| bad("the Host is not ASCII"))?),
        None => None,
    };
    let text = match (head.uri.authority(), field) {
        (Some(authority), Some(field)) if !authority.as_str().eq_ignore_ascii_case(field) => return Err(bad("the target names another host than Host")),
        (Some(authority), _) => authority.as_str(),
        (None, Some(field)) => field,
        (None, None) if head.version <= Version::HTTP_10 => return Ok(None),
        (None, None) => return Err(Reject::new(Reason::BadRequest, "there is no Host")),
    };
    let named = parse_host(text).ok_or(bad("the Host is not a host name with or without a port"))?;
    let upper = named.name.bytes().any(|b| b.is_ascii_uppercase());
    Ok(Some(if upper { Cow::Owned(named.name.to_ascii_lowercase()) } else { Cow::Borrowed(named.name) }))
}

// -- targets --

/// The path of a request, where nobody could read it differently.
fn target(head: &Parts) -> Result<&str, Reject> {
    let bad = |why: &'static str| Reject::new(Reason::BadTarget, why);
    if head.uri.scheme_str().is_some_and(|scheme| scheme != "http" && scheme != "https") {
        return Err(bad("the target's scheme is neither http nor https"));
    }
    let path = head.uri.path();
    if let Some(why) = unclear_path(path) {
        return Err(bad(why));
    }
    match head.uri.query().and_then(unclear_query) {
        Some(why) => Err(bad(why)),
        None => Ok(path),
    }
}

/// Why a path could be read in two ways, if it could.
fn unclear_path(path: &str) -> Option<&'static str> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Some("the target is not a path");
    }
    let mut at = 0;
    let mut non_ascii = false;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'/' => {
                let rest = &bytes[at + 1..];
                let end = rest.iter().position(|b| *b == b'/');
                match &rest[..end.unwrap_or(rest.len())] {
                    b"" if end.is_some() => return Some("the path has an empty segment"),
                    b"." | b".." => return Some("the path has a dot segment"),
                    _ => {}
                }
            }
            b'%' => {
                let Some(escaped) = escaped(bytes, at) else { return Some("the path has a broken escape") };
                match escaped {
                    b'/' | b'\\' => return Some("the path hides a separator in an escape"),
                    b'.' | b'-' | b'_' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => return Some("the path escapes what needs no escape"),
                    b'%' => return Some("the path escapes an escape"),
                    b'?' | b'#' | b';' => return Some("the path hides a delimiter in an escape"),
                    0..=0x1f | 0x7f => return Some("the path holds a control character"),
                    0x80.. => non_ascii = true,
                    _ => {}
                }
                at += 2;
            }
            b';' => return Some("the path has `;` parameters"),
            b'\\' => return Some("the path has a backslash"),
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'-'
            | b'.'
            | b'_'
            | b'~'
            | b'!'
            | b'$'
            | b'&'
            | b'\''
            | b'('
            | b')'
            | b'*'
            | b'+'
            | b','
            | b'='
            | b':'
            | b'@' => {}
            _ => return Some("the path holds a character that must be escaped"),
        }
        at += 1;
    }
    if non_ascii { unclear_text(path) } else { None }
}

fn escaped(bytes: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
    u8::try_from(digit(at + 1)? * 16 + digit(at + 2)?).ok()
}

/// Escaped text beyond ASCII must be UTF-8 that no folding of compatible characters turns into ASCII: `%ef%bc%8f` is a wide `/`.
fn unclear_text(path: &str) -> Option<&'static str> {
    let Ok(text) = percent_encoding::percent_decode_str(path).decode_utf8() else { return Some("the path is not UTF-8") };
    let nfkc = icu_normalizer::ComposingNormalizerBorrowed::new_nfkc();
    for c in text.chars().filter(|c| !c.is_ascii()) {
        if c.is_control() || nfkc.normalize(c.encode_utf8(&mut [0; 4])).bytes().any(|b| b.is_ascii()) {
            return Some("the path holds a character that may be folded into another");
        }
    }
    None
}

/// Why a query could be read in two ways, if it could. What its parameters may be is the signature's concern.
fn unclear_query(query: &str) -> Option<&'static str> {
    let bytes = query.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'%' => match escaped(bytes, at) {
                Some(0) => return Some("the query holds a control character"),
                Some(_) => {}
                None => return Some("the query has a broken escape"),
            },
            0..=0x20 | 0x7f.. => return Some("the query holds a character that must be escaped"),
            b'#' => return Some("the target has a fragment"),
            _ => {}
        }
    }
    None
}

/// A segment without its percent-escapes: [`target`] has refused what cannot be read so, or could be read in two ways.
fn plain(segment: &str) -> String {
    percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(routes: &[(&str, &str, &str)]) -> Result<Table, Vec<Ambiguity>> {
        let entry = |(index, (host, path, methods)): (usize, &(&str, &str, &str))| Entry {
            host: (!host.is_empty()).then(|| host.parse().expect("a host")),
            path: path.parse().expect("a path"),
            methods: methods.split(' ').filter(|word| !word.starts_with('+')).map(|method| method.parse().expect("a method")).collect(),
            handshakes: methods.split(' ').filter_map(|word| word.strip_prefix('+')).map(|method| method.parse().expect("a method")).collect(),
            index,
        };
        Table::build(routes.iter().enumerate().map(entry).collect())
    }

    fn head(method: &str, uri: &str, hosts: &[&str]) -> Option<Parts> {
        let mut request = http::Request::builder().method(method).uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        request.body(()).ok().map(|request| request.into_parts().0)
    }

    fn ask(table: &Table, method: &str, uri: &str, hosts: &[&str], sni: Option<&str>) -> String {
        let Some(head) = head(method, uri, hosts) else { return "unparsed".into() };
        match table.find(&head, sni, |_| head.uri.query() == Some("challenge=a")) {
            Ok(found) => {
                let params: String = found.params.iter().map(|(name, value)| format!(" {name}={value}")).collect();
                format!("{}{params}{}", found.index, found.rest.map(|rest| format!(" *{rest}")).unwrap_or_default())
            }
            Err(Reject { reason, extra: Extra::Allow(allow), .. }) => format!("{reason} {allow}"),
            Err(why) => why.reason.code().into(),
        }
    }

    #[test]
    fn handshakes_reach_a_route_that_takes_their_method_for_nothing_else() {
        let routes =
            [("", "/dropbox", "POST +GET"), ("", "/prefix/*", "POST +GET"), ("", "/prefix/page", "GET"), ("", "/both", "GET +GET"), ("", "/{any}", "GET")];
        let table = table(&routes).expect("no two are alike");
        let check = |method: &str, uri: &str, want: &str| assert_eq!(ask(&table, method, uri, &["h"], None), want, "{method} {uri}");
        check("GET", "/dropbox?challenge=a", "0");
        check("POST", "/dropbox?challenge=a", "0");
        check("GET", "/dropbox?challenge=b", "4 any=dropbox");
        check("PUT", "/dropbox?challenge=a", "method_not_allowed POST, GET");
        check("GET", "/prefix/x?challenge=a", "1 *x");
        check("GET", "/prefix/x?challenge=b", "method_not_allowed POST");
        check("HEAD", "/prefix/x?challenge=a", "method_not_allowed POST");
        check("GET", "/prefix/page?challenge=a", "2");
        check("GET", "/both?challenge=a", "3");
        check("GET", "/nowhere/x?challenge=a", "no_route");
        assert!(super::tests::table(&[("", "/a", "POST +GET"), ("", "/a", "PUT +GET")]).is_err_and(|found| found[0].why.contains("handshakes")));
        assert!(super::tests::table(&[("", "/a", "POST +GET"), ("", "/a", "GET")]).is_ok());
    }

    #[test]
    fn the_most_specific_route_wins() {
        let routes = [
            ("hooks.example.com", "/github", "POST"),
            ("*.example.com", "/github", "POST"),
            ("", "/github", "POST PUT"),
            ("", "/tenants/{tenant}/github", "POST"),
            ("", "/tenants/main/github", "POST"),
            ("", "/tenants/{id}/stripe", "POST"),
            ("", "/prefix/*", "POST"),
            ("", "/prefix/{one}", "POST"),
            ("", "/prefix/exact", "POST"),
            ("", "/prefix/exact", "GET HEAD"),
            ("*.deep.example.com", "/", "POST"),
            ("", "/slash/", "POST"),
            ("", "/slash/*", "POST"),
            ("192.0.2.1", "/", "POST"),
            ("[2001:db8::1]", "/", "POST"),
        ];
        let table = table(&routes).expect("nothing is ambiguous");
        let check = |method: &str, host: &str, path: &str, want: &str| assert_eq!(ask(&table, method, path, &[host], None), want, "{method} {host}{path}");
        check("POST", "hooks.example.com", "/github", "0");
        check("POST", "HOOKS.example.COM:8443", "/github", "0");
        check("POST", "other.example.com", "/github", "1");
        check("POST", "a.b.example.com", "/github", "1");
        check("POST", "example.com", "/github", "2");
        check("POST", "notexample.com", "/github", "2");
        check("PUT", "hooks.example.com", "/github", "2");
        check("DELETE", "hooks.example.com", "/github", "method_not_allowed POST, PUT");
        check("POST", "a.deep.example.com", "/", "10");
        check("POST", "a.deep.example.com", "/github", "1");
        check("POST", "example.com", "/", "no_route");
        check("POST", "x", "/tenants/acme/github", "3 tenant=acme");
        check("POST", "x", "/tenants/main/github", "4");
        check("POST", "x", "/tenants/main/stripe", "5 id=main");
        check("POST", "x", "/tenants/a%20b/github", "3 tenant=a b");
        check("POST", "x", "/tenants//github", "bad_target");
        check("POST", "x", "/prefix/a/b", "6 *a/b");
        check("POST", "x", "/prefix/a/", "6 *a/");
        check("POST", "x", "/prefix/", "6 *");
        check("POST", "x", "/prefix", "no_route");
        check("POST", "x", "/prefix/a", "7 one=a");
        check("POST", "x", "/prefix/exact", "8");
        check("HEAD", "x", "/prefix/exact", "9");
        check("OPTIONS", "x", "/prefix/exact", "method_not_allowed POST, GET, HEAD");
        check("POST", "x", "/slash/", "11");
        check("POST", "x", "/slash/a", "12 *a");
        check("POST", "x", "/github/", "no_route");
        check("POST", "x", "/GitHub", "no_route");
        check("POST", "x", "/github?a=%2f..%2e&b", "2");
        check("POST", "192.0.2.1:80", "/", "13");
        check("POST", "[2001:DB8::1]", "/", "14");
        check("post", "x", "/github", "method_not_allowed POST, PUT");
    }

    #[test]
    fn ambiguous_targets_are_refused() {
        let table = table(&[("", "/*", "POST"), ("", "/admin", "POST"), ("", "/{tenant}/github", "POST")]).expect("nothing is ambiguous");
        let refused = [
            "/admin/..",
            "/..",
            "/../admin",
            "/x/../admin",
            "/x/./admin",
            "/./admin",
            "/.",
            "/x/.",
            "//admin",
            "/x//admin",
            "/admin//",
            "//",
            "/%2e%2e/admin",
            "/%2E%2E/admin",
            "/.%2e/admin",
            "/%2e/admin",
            "/x/..%2fadmin",
            "/x%2fadmin",
            "/x%2Fadmin",
            "/x%5cadmin",
            "/x%5Cadmin",
            "/x\\admin",
            "/x/..\\admin",
            "/..%5cadmin",
            "/%252e%252e/admin",
            "/x%252fadmin",
            "/x%25",
            "/x/..;/admin",
            "/admin;x=1",
            "/admin;",
            "/x%3badmin",
            "/%61dmin",
            "/%41dmin",
            "/a%64min",
            "/admin%00",
            "/admin%0a",
            "/admin%0d%0a",
            "/admin%7f",
            "/admin%",
            "/admin%2",
            "/admin%zz",
            "/admin%u002f",
            "/admin%3f",
            "/admin%23",
            "/admin%c0%af",
            "/%c0%ae%c0%ae/admin",
            "/admin%ff",
            "/x%ef%bc%8fadmin",
            "/%ef%bc%8e%ef%bc%8e/admin",
            "/x%e2%80%a4",
            "/%c2%85",
            "/adm\u{131}n",
            "/admin|",
            "/admin^",
            "/admin`",
            "/{admin}",
            "/admin\"",
            "*",
            "/admin?%",
            "/admin?a=%0",
            "/admin?a=%00",
            "/admin?\u{e9}",
        ];
        for target in refused {
            let got = ask(&table, "POST", target, &["x"], None);
            assert!(matches!(got.as_str(), "bad_target" | "unparsed"), "{target}: {got}");
        }
        // Kept as they are: another path, but only one.
        for (target, want) in [
            ("/ADMIN", "0 *ADMIN"),
            ("/admin/", "0 *admin/"),
            ("/admin%20", "0 *admin%20"),
            ("/...", "0 *..."),
            ("/.well-known", "0 *.well-known"),
            ("/m%C3%BCnchen", "0 *m%C3%BCnchen"),
        ] {
            assert_eq!(ask(&table, "POST", target, &["x"], None), want, "{target}");
        }
    }

    #[test]
    fn other_target_forms() {
        let table = table(&[("hooks.example.com", "/github", "POST CONNECT OPTIONS"), ("", "/", "POST")]).expect("nothing is ambiguous");
        let check = |method: &str, uri: &str, hosts: &[&str], want: &str| assert_eq!(ask(&table, method, uri, hosts, None), want, "{method} {uri} {hosts:?}");
        check("POST", "http://hooks.example.com/github", &["hooks.example.com"], "0");
        check("POST", "https://hooks.example.com/github", &[], "0");
        check("POST", "http://HOOKS.example.com:80/github", &["hooks.example.com:80"], "0");
        check("POST", "http://hooks.example.com/github", &["other.example.com"], "bad_target");
        check("POST", "http://other.example.com/github", &["hooks.example.com"], "bad_target");
        check("POST", "http://hooks.example.com:80/github", &["hooks.example.com"], "bad_target");
        check("POST", "http://user@hooks.example.com/github", &[], "bad_target");
        check("POST", "ftp://hooks.example.com/github", &[], "bad_target");
        check("CONNECT", "hooks.example.com:443", &["hooks.example.com:443"], "bad_target");
        check("OPTIONS", "*", &["hooks.example.com"], "bad_target");
        check("POST", "http://hooks.example.com", &[], "1"); // no path is `/`
    }

    #[test]
    fn odd_hosts_reach_no_route() {
        let table = table(&[("hooks.example.com", "/", "POST"), ("", "/", "POST")]).expect("nothing is ambiguous");
        let bad = [
            "",
            " ",
            "hooks.example.com.",
            "hooks..example.com",
            ".hooks.example.com",
            "hooks.example.com:",
            "hooks.example.com:x",
            "hooks.example.com:+80",
            "hooks.example.com:65536",
            "hooks.example.com:80:80",
            "user@hooks.example.com",
            "user:pass@hooks.example.com",
            "hooks.example.com/",
            "hooks.example.com/x",
            "hooks.example.com?x",
            "hooks.example.com#x",
            "hooks.example.com\\x",
            "hooks.example.com, other.example.com",
            "hooks.example.com other",
            "http://hooks.example.com",
            "hooks%2eexample.com",
            "*.example.com",
            "[::1",
            "::1",
            "[::1]x",
            "[fe80::1%25eth0]",
            "[192.0.2.1]",
            "127.1",
            "0x7f.0.0.1",
            "0x7f000001",
            "2130706433",
            "192.0.2.1.5",
            "192.0.2.256",
            "host\tx",
            "h\u{f6}st",
        ];
        for host in bad {
            let got = ask(&table, "POST", "/", &[host], None);
            assert!(matches!(got.as_str(), "bad_target" | "unparsed"), "{host:?}: {got}");
        }
        assert_eq!(ask(&table, "POST", "/", &[&format!("{}.com", "a".repeat(64))], None), "bad_target");
        assert_eq!(ask(&table, "POST", "/", &[&vec!["abc"; 70].join(".")], None), "bad_target");
        assert_eq!(ask(&table, "POST", "/", &["hooks.example.com", "hooks.example.com"], None), "bad_request");
        assert_eq!(ask(&table, "POST", "/", &[], None), "bad_request");
        for fine in ["localhost", "127.0.0.1:8080", "[::1]:8080", "my_service", "xn--bcher-kva.example"] {
            assert_eq!(ask(&table, "POST", "/", &[fine], None), "1", "{fine}");
        }
        let mut old = head("POST", "/", &[]).expect("a request");
        old.version = Version::HTTP_10;
        assert_eq!(table.find(&old, None, |_| false).map(|found| found.index), Ok(1));
    }

    #[test]
    fn tls_names_bind_the_host() {
        let table = table(&[("a.example.com", "/", "POST"), ("*.example.net", "/", "POST"), ("b.example.net", "/", "POST"), ("", "/", "POST")])
            .expect("nothing is ambiguous");
        let check = |sni: &str, host: &str, want: &str| assert_eq!(ask(&table, "POST", "/", &[host], Some(sni)), want, "{sni} {host}");
        check("a.example.com", "a.example.com:443", "0");
        check("a.example.com", "A.example.com", "0");
        check("b.example.com", "a.example.com", "misdirected");
        check("x.example.net", "y.example.net", "1");
        check("b.example.net", "y.example.net", "misdirected");
        check("x.example.net", "b.example.net", "misdirected");
        check("a.example.com", "x.example.net", "misdirected");
        check("a.example.com", "unnamed.example.org", "3");
        assert_eq!(ask(&table, "POST", "/", &["a.example.com"], None), "0");
    }

    #[test]
    fn two_routes_for_one_request_are_named() {
        let check = |routes: &[(&str, &str, &str)], want: &[(usize, usize, &str)]| {
            let got: Vec<_> = table(routes).err().unwrap_or_default().into_iter().map(|found| (found.a, found.b, found.why)).collect();
            assert_eq!(got, want.iter().map(|(a, b, why)| (*a, *b, (*why).to_owned())).collect::<Vec<_>>(), "{routes:?}");
        };
        check(&[("", "/a", "POST"), ("", "/a", "GET")], &[]);
        check(&[("", "/a", "POST"), ("h", "/a", "POST")], &[]);
        check(&[("", "/a", "POST"), ("", "/a/", "POST")], &[]);
        check(&[("", "/a", "POST GET"), ("", "/a", "GET POST")], &[(0, 1, "both take GET /a on any host")]);
        check(&[("H", "/a", "POST"), ("h", "/a", "POST")], &[(0, 1, "both take POST /a on h")]);
        check(&[("", "/a/{x}", "POST"), ("", "/b", "POST"), ("", "/a/{y}", "POST")], &[(0, 2, "both take POST /a/{y} on any host")]);
        check(&[("", "/a/{x}/b", "POST"), ("", "/a/{y}/c", "POST"), ("", "/a/*", "POST"), ("", "/*", "POST")], &[]);
        check(&[("", "/{x}/a/*", "POST"), ("", "/b/*", "POST"), ("", "/{y}/*", "POST"), ("", "/{z}", "POST"), ("", "/*", "POST"), ("", "/b/{x}", "POST")], &[]);
        check(&[("", "/a/*", "POST"), ("", "/a/*", "POST")], &[(0, 1, "both take POST /a/* on any host")]);
    }

    #[test]
    fn patterns_say_what_is_wrong() {
        let path = |text: &str, want: &str| assert_eq!(text.parse::<Path>().err().unwrap_or_default(), want, "{text}");
        path("/github", "");
        path("/", "");
        path("/*", "");
        path("/a/{x}/b/*", "");
        path("github", "`github` does not start with `/`");
        path("", "`` does not start with `/`");
        path("/a//b", "`/a//b` would never match: the path has an empty segment");
        path("/a/../b", "`/a/../b` would never match: the path has a dot segment");
        path("/a?b", "`/a?b` would never match: the path holds a character that must be escaped");
        path("/a b", "`/a b` would never match: the path holds a character that must be escaped");
        path("/*/a", "`*`: a `{name}` is a whole segment, and a `*` the whole last one");
        path("/a*", "`a*`: a `{name}` is a whole segment, and a `*` the whole last one");
        path("/v{x}", "`v{x}`: a `{name}` is a whole segment, and a `*` the whole last one");
        path("/{}", "`{}` is not a parameter: write a name of letters, digits and `_` between the braces");
        path("/{*x}", "`{*x}` is not a parameter: write a name of letters, digits and `_` between the braces");
        path("/{x}/{x}", "the parameter `x` stands twice");
        let host = |text: &str, want: &str| assert_eq!(text.parse::<Host>().map(|host| host.to_string()).unwrap_or_else(|why| why), want, "{text}");
        host("Hooks.Example.com", "hooks.example.com");
        host("*.example.com", "*.example.com");
        host("127.0.0.1", "127.0.0.1");
        host("hooks.example.com:443", "`hooks.example.com:443` has a port; routes match the name alone");
        host("*", "`*` has a `*` that does not stand for its first labels");
        host("a.*.com", "`a.*.com` has a `*` that does not stand for its first labels");
        host("*.127.0.0.1", "`*.127.0.0.1` is not a host name");
        host("https://x", "`https://x` is not a host name");
        host("example.com.", "`example.com.` is not a host name");
    }

    /// The documented order, the slow way: every route that matches, the least rank wins.
    fn slowly(routes: &[(String, String, String)], method: &str, host: &str, path: &str) -> Option<usize> {
        let rank = |(index, (pattern_host, pattern, methods)): (usize, &(String, String, String))| {
            let host_rank = match pattern_host.strip_prefix("*.") {
                None if pattern_host.is_empty() => usize::MAX,
                None if *pattern_host == host => 0,
                Some(below) if host.ends_with(&format!(".{below}")) => 1000 - below.len(),
                _ => return None,
            };
            let (wanted, got): (Vec<&str>, Vec<&str>) = (pattern.split('/').skip(1).collect(), path.split('/').skip(1).collect());
            let rest = wanted.last() == Some(&"*");
            let fits = wanted.iter().zip(&got).all(|(w, g)| w == g || *w == "*" || (w.starts_with('{') && !g.is_empty()));
            if !fits || !methods.split(' ').any(|m| m == method) || (if rest { got.len() < wanted.len() } else { got.len() != wanted.len() }) {
                return None;
            }
            let literals: Vec<bool> = wanted.iter().map(|w| w.starts_with('{')).collect();
            Some((host_rank, rest, if rest { 1000 - wanted.len() } else { 0 }, literals, index))
        };
        routes.iter().enumerate().filter_map(rank).min().map(|(.., index)| index)
    }

    proptest::proptest! {
        #[test]
        fn the_table_agrees_with_the_documented_order(
            routes in proptest::collection::vec(("(|h\\.x|y\\.h\\.x|\\*\\.x|\\*\\.h\\.x)", "(/(a|b|\\{p\\})){0,3}(/|/a|/\\*)", "(GET|POST|GET POST)"), 1..12),
            asked in proptest::collection::vec(("(GET|POST|PUT)", "(h\\.x|y\\.h\\.x|z\\.h\\.x|x|other)", "(/(a|b|c)){0,4}/?"), 8),
        ) {
            let mut names = 0;
            let routes: Vec<_> = routes.into_iter().map(|(host, path, methods)| {
                let unique = path.split("{p}").fold(String::new(), |done, part| if done.is_empty() { part.to_owned() } else { names += 1; format!("{done}{{p{names}}}{part}") });
                (host, unique, methods)
            }).collect();
            let borrowed: Vec<_> = routes.iter().map(|(host, path, methods)| (host.as_str(), path.as_str(), methods.as_str())).collect();
            if let Ok(table) = table(&borrowed) {
                for (method, host, path) in asked {
                    let path = if path.is_empty() { "/" } else { path.as_str() };
                    let head = head(&method, path, &[&host]).expect("a request");
                    let got = table.find(&head, None, |_| false).ok().map(|found| found.index);
                    proptest::prop_assert_eq!(got, slowly(&routes, &method, &host, path), "{} {}{} {:?}", method, host, path, routes);
                }
            }
        }

        #[test]
        fn what_matches_is_what_arrived(path in "/([a-z./%;\\\\]|%2[ef]|%5c|%25){0,12}") {
            let table = table(&[("", "/*", "POST")]).expect("nothing is ambiguous");
            if let Some(head) = head("POST", &path, &["x"])
                && let Ok(found) = table.find(&head, None, |_| false)
            {
                let rest = found.rest.unwrap_or_default();
                proptest::prop_assert_eq!(format!("/{rest}"), path.clone());
                let decoded = percent_encoding::percent_decode_str(&rest).decode_utf8_lossy().into_owned();
                proptest::prop_assert!(!decoded.split('/').any(|segment| segment == "." || segment == ".."));
                proptest::prop_assert_eq!(decoded.matches('/').count(), rest.matches('/').count());
            }
        }
    }
}
