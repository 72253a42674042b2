//! Peer and trusted proxies to who is asking. Pure.
//!
//! One source is believed (`client_ip`); every other header that names an address is removed, so that nothing behind the gate can
//! believe it by accident. A believed header counts from the right: the nearest hop wrote the last entry, and an entry is believed
//! only while the hop that wrote it is in `trusted_proxies`.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv6Addr},
};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use ipnet::IpNet;

use crate::{
    event::{Client, Conn},
    guard::allow,
    ranges::IpSet,
    reject::{Reason, Reject},
    section::Section,
};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Where the client's address is read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Source {
    /// The socket's own peer.
    #[default]
    Socket,
    /// What the PROXY protocol said of the connection.
    ProxyProtocol,
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// `client_ip` and `trusted_proxies` of `[server]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rule {
    pub(crate) source: Source,
    trusted: IpSet,
    nets: Vec<IpNet>,
}

impl Rule {
    /// Reads `client_ip` (default `"socket"`) and `trusted_proxies` (default none) of `[server]`.
    pub(crate) fn read(server: &Section<'_>) -> Self {
        let words = [
            ("socket", Source::Socket),
            ("proxy-protocol", Source::ProxyProtocol),
            ("x-forwarded-for", Source::XForwardedFor),
            ("forwarded", Source::Forwarded),
        ];
        let source = server.choice("client_ip", &words).unwrap_or_default();
        let nets = allow::nets(server, "trusted_proxies");
        for net in nets.iter().filter(|net| net.prefix_len() == 0) {
            server.warn("trusted_proxies", format!("`{net}` trusts everybody to say where a request comes from"), "name the proxies in front of the gate");
        }
        let proxied = server.item("proxy_protocol").and_then(|item| item.as_bool()) == Some(true);
        match source {
            Source::ProxyProtocol if !proxied => {
                server.problem(
                    "client_ip",
                    "`client_ip` is \"proxy-protocol\", but the PROXY protocol is off",
                    "set `proxy_protocol = true`, or choose another source",
                );
            }
            Source::XForwardedFor | Source::Forwarded if nets.is_empty() && !server.has("trusted_proxies") => {
                server.problem(
                    "client_ip",
                    "`client_ip` names a header, but no proxy is trusted to write it",
                    "add `trusted_proxies = [\"10.0.0.0/8\"]` with the proxies in front",
                );
            }
            Source::Socket if proxied => server.warn(
                "proxy_protocol",
                "the PROXY protocol says who connects, and `client_ip` is \"socket\": every client is taken for the balancer",
                "set `client_ip = \"proxy-protocol\"`",
            ),
            _ => {}
        }
        if proxied && nets.is_empty() && !server.has("trusted_proxies") {
            server.problem(
                "proxy_protocol",
                "the PROXY protocol is on, and no peer is trusted to speak it: every connection would be cut off",
                "add `trusted_proxies = [\"10.0.0.0/8\"]` with the balancers in front",
            );
        }
        Self { source, trusted: nets.iter().copied().collect(), nets }
    }

    /// `trusted_proxies`.
    pub(crate) fn trusted(&self) -> &[IpNet] {
        &self.nets
    }

    /// Whether an address is one of `trusted_proxies`.
    pub(crate) fn trusts(&self, ip: IpAddr) -> bool {
        self.trusted.contains(ip)
    }
}

/// Who is asking, from the one believed source; every header of the others is removed.
///
/// A believed header of a hop that is not trusted is removed as well. Errors: [`Reason::BadRequest`] where a trusted hop's header
/// cannot be read as far as it is believed.
pub(crate) fn identify(rule: &Rule, conn: &Conn, headers: &mut HeaderMap) -> Result<Client, Reject> {
    let peer = match rule.source {
        Source::Socket => conn.socket.ip(),
        Source::ProxyProtocol | Source::XForwardedFor | Source::Forwarded => conn.peer.ip(),
    };
    let believed = match rule.source {
        Source::XForwardedFor if rule.trusts(peer) => Some(&X_FORWARDED_FOR),
        Source::Forwarded if rule.trusts(peer) => Some(&header::FORWARDED),
        _ => None,
    };
    strip(headers, believed);
    let ip = match rule.source {
        Source::XForwardedFor if believed.is_some() => x_forwarded_for(rule, peer, headers)?,
        Source::Forwarded if believed.is_some() => forwarded(rule, peer, headers)?,
        _ => peer,
    };
    Ok(Client::new(ip))
}

fn malformed(what: &'static str) -> Reject {
    Reject::new(Reason::BadRequest, what)
}

// -- X-Forwarded-For --

fn x_forwarded_for(rule: &Rule, peer: IpAddr, headers: &HeaderMap) -> Result<IpAddr, Reject> {
    let mut hop = peer;
    for line in headers.get_all(&X_FORWARDED_FOR).iter().rev() {
        for entry in line.as_bytes().rsplit(|byte| *byte == b',') {
            if !rule.trusts(hop) {
                return Ok(hop);
            }
            hop = std::str::from_utf8(entry).ok().and_then(|text| address(trim(text))).ok_or(malformed("X-Forwarded-For cannot be read"))?;
        }
    }
    Ok(hop)
}

fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// An address as proxies write it in X-Forwarded-For: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    if let Some(rest) = text.strip_prefix('[') {
        let (ip, after) = rest.split_once(']')?;
        let fine = after.is_empty() || after.strip_prefix(':').is_some_and(is_port);
        return fine.then(|| ip.parse::<Ipv6Addr>().ok().map(IpAddr::V6)).flatten();
    }
    match text.split_once(':') {
        Some((ip, port)) if !port.contains(':') => is_port(port).then(|| ip.parse().ok().map(IpAddr::V4)).flatten(),
        _ => text.parse().ok(),
    }
}

fn is_port(text: &str) -> bool {
    (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

// -- Forwarded, RFC 7239 --

/// Parameters that one element may have: RFC 7239 knows four.
const PARAMETERS: usize = 16;

fn forwarded(rule: &Rule, peer: IpAddr, headers: &HeaderMap) -> Result<IpAddr, Reject> {
    let mut hop = peer;
    for line in headers.get_all(header::FORWARDED).iter().rev() {
        if !rule.trusts(hop) {
            return Ok(hop);
        }
        let nodes = elements(line.as_bytes()).ok_or(malformed("Forwarded cannot be read"))?;
        for node in nodes.into_iter().rev() {
            if !rule.trusts(hop) {
                return Ok(hop);
            }
            hop = match node {
                Node::Address(ip) => ip,
                Node::Hidden => return Err(malformed("a trusted proxy hides the address in Forwarded")),
                Node::Absent => return Err(malformed("a trusted proxy names no address in Forwarded")),
            };
        }
    }
    Ok(hop)
}

/// What one element says of the hop before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Address(IpAddr),
    /// `unknown`, or an obfuscated `_name`.
    Hidden,
    /// The element has no `for`.
    Absent,
}

/// One field line's elements, left to right; strict: section 4's grammar without empty elements, each parameter at most once.
fn elements(line: &[u8]) -> Option<Vec<Node>> {
    let mut scan = Scan { bytes: line, at: 0 };
    let mut nodes = Vec::new();
    scan.spaces();
    loop {
        nodes.push(scan.element()?);
        scan.spaces();
        match scan.next() {
            None => return Some(nodes),
            Some(b',') => scan.spaces(),
            Some(_) => return None,
        }
    }
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn spaces(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t')) {
            self.at += 1;
        }
    }

    fn token(&mut self) -> Option<&'a str> {
        let from = self.at;
        while self.peek().is_some_and(is_tchar) {
            self.at += 1;
        }
        let token = &self.bytes[from..self.at];
        if token.is_empty() { None } else { std::str::from_utf8(token).ok() }
    }

    fn quoted(&mut self) -> Option<Cow<'a, str>> {
        let from = self.at;
        let mut unescaped: Option<Vec<u8>> = None;
        loop {
            let at = self.at;
            let byte = match self.next()? {
                b'"' => {
                    let raw = &self.bytes[from..at];
                    return match unescaped {
                        Some(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
                        None => std::str::from_utf8(raw).ok().map(Cow::Borrowed),
                    };
                }
                b'\\' => {
                    unescaped.get_or_insert_with(|| self.bytes[from..at].to_vec());
                    self.next()?
                }
                byte => byte,
            };
            if !(byte == b'\t' || (0x20..0x7f).contains(&byte)) {
                return None;
            }
            if let Some(unescaped) = &mut unescaped {
                unescaped.push(byte);
            }
        }
    }

    /// `name=value` pairs between `;`, without spaces around either sign.
    fn element(&mut self) -> Option<Node> {
        let mut node = Node::Absent;
        let mut seen: Vec<&str> = Vec::new();
        loop {
            let name = self.token()?;
            if seen.len() == PARAMETERS || seen.iter().any(|other| other.eq_ignore_ascii_case(name)) || self.next()? != b'=' {
                return None;
            }
            let value = match self.peek()? {
                b'"' => {
                    self.at += 1;
                    self.quoted()?
                }
                _ => Cow::Borrowed(self.token()?),
            };
            if name.eq_ignore_ascii_case("for") {
                node = self::node(&value)?;
            }
            seen.push(name);
            if self.peek() != Some(b';') {
                return Some(node);
            }
            self.at += 1;
        }
    }
}

fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Section 6: `192.0.2.1`, `[2001:db8::1]`, `unknown` or `_name`, each with or without a port (itself a number or `_name`).
fn node(text: &str) -> Option<Node> {
    let (name, port) = match text.rfind(']') {
        Some(end) if text.starts_with('[') => (&text[..=end], &text[end + 1..]),
        _ => text.find(':').map_or((text, ""), |colon| text.split_at(colon)),
    };
    let obfuscated = |text: &str| text.len() > 1 && text.starts_with('_') && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(|port| is_port(port) || obfuscated(port)) {
        return None;
    }
    if let Some(v6) = name.strip_prefix('[') {
        return v6.strip_suffix(']')?.parse().ok().map(|ip| Node::Address(IpAddr::V6(ip)));
    }
    if name.eq_ignore_ascii_case("unknown") || obfuscated(name) {
        return Some(Node::Hidden);
    }
    name.parse().ok().map(|ip| Node::Address(IpAddr::V4(ip)))
}

// -- the sources that are not believed --

/// Headers of a length by which some proxy, CDN or framework says where a request came from; `-` stands for `_` as well. Names that
/// start with `x-forwarded` are not listed: all are removed.
fn saying_who(length: usize) -> &'static [&'static str] {
    match length {
        4 => &["x-ip"],
        6 => &["x-host"],
        7 => &["real-ip"],
        9 => &["client-ip", "forwarded", "x-real-ip", "x-true-ip"],
        10 => &["cdn-src-ip", "x-clientip", "x-sourceip"],
        11 => &["remote-addr", "x-client-ip", "x-remote-ip"],
        12 => &["x-url-scheme"],
        13 => &["fly-client-ip", "forwarded-for", "x-coming-from", "x-remote-addr"],
        14 => &["cf-pseudo-ipv4", "http-client-ip", "http-forwarded", "true-client-ip", "x-arr-clientip", "x-gateway-host", "x-proxyuser-ip"],
        15 => &["ali-cdn-real-ip", "fastly-temp-xff", "front-end-https", "incap-client-ip", "proxy-client-ip", "x-original-host"],
        16 => &[
            "cf-connecting-ip",
            "do-connecting-ip",
            "fastly-client-ip",
            "forwarded-for-ip",
            "x-azure-clientip",
            "x-azure-socketip",
            "x-originating-ip",
            "x-true-client-ip",
        ],
        17 => &["cf-connecting-o2o"],
        18 => &["cf-connecting-ipv6", "wl-proxy-client-ip"],
        19 => &["x-appengine-user-ip", "x-cluster-client-ip"],
        20 => &["http-x-forwarded-for", "x-vercel-proxied-for"],
        22 => &["x-original-remote-addr", "x-vercel-forwarded-for"],
        23 => &["x-appengine-remote-addr"],
        24 => &["x-envoy-external-address", "x-original-forwarded-for"],
        25 => &["cloudfront-viewer-address", "x-custom-ip-authorization", "x-envoy-original-dst-host", "x-nf-client-connection-ip"],
        26 => &["x-originally-forwarded-for"],
        _ => &[],
    }
}

fn strip(headers: &mut HeaderMap<HeaderValue>, believed: Option<&HeaderName>) {
    // Seldom there at all: looked for in one pass over the names, without a lookup or an allocation for each of the list.
    let found: Vec<HeaderName> = headers.keys().filter(|name| Some(*name) != believed && says_who(name.as_str())).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

fn says_who(name: &str) -> bool {
    let same = |ours: &str, theirs: &[u8]| ours.bytes().zip(theirs).all(|(a, b)| a == *b || (a == b'-' && *b == b'_'));
    let bytes = name.as_bytes();
    (bytes.len() >= 11 && same("x-forwarded", bytes)) || saying_who(bytes.len()).iter().any(|known| same(known, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        problem::Source as Text,
        section::{Inputs, Reader},
    };

    fn read(text: &str) -> (Rule, Vec<String>) {
        let reader = Reader::new(Text { name: "t.toml".into(), text: text.into() }, Inputs::memory(&[], &[]));
        let table = reader.parse();
        let root = reader.root(&table);
        let rule = Rule::read(&root);
        (rule, reader.problems().iter().map(ToString::to_string).collect())
    }

    fn rule(source: &str) -> Rule {
        let text =
            format!("client_ip = \"{source}\"\nproxy_protocol = {}\ntrusted_proxies = [\"10.0.0.0/8\", \"192.168.0.0/16\", \"fd00::/8\"]", source != "socket");
        let (rule, problems) = read(&text);
        assert_eq!(problems, [""; 0]);
        rule
    }

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::try_from(*name).expect("a name"), HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        map
    }

    fn conn(peer: &str, socket: &str) -> Conn {
        let at = |ip: &str| std::net::SocketAddr::new(ip.parse().expect("an address"), 4711);
        Conn { peer: at(peer), socket: at(socket), tls: None }
    }

    /// The client found for a request from `peer` with these header lines; "bad_request" for a refusal.
    fn check(source: &str, peer: &str, lines: &[(&str, &str)], want: &str) {
        let found = identify(&rule(source), &conn(peer, peer), &mut headers(lines));
        let got = found.map_or_else(|why| why.reason.code().to_owned(), |client| client.ip.to_string());
        assert_eq!(got, want, "{source} {peer} {lines:?}");
    }

    #[test]
    fn socket_and_proxy_protocol_read_no_header() {
        let lines = [("x-forwarded-for", "203.0.113.9"), ("forwarded", "for=203.0.113.9"), ("x-real-ip", "203.0.113.9")];
        check("socket", "10.0.0.1", &lines, "10.0.0.1");
        check("socket", "::ffff:198.51.100.7", &lines, "198.51.100.7");
        check("proxy-protocol", "198.51.100.7", &lines, "198.51.100.7");
        let both = conn("198.51.100.7", "10.0.0.1");
        let found = |source| identify(&rule(source), &both, &mut headers(&lines)).map(|client| client.ip.to_string());
        assert_eq!(found("socket"), Ok("10.0.0.1".into()));
        assert_eq!(found("proxy-protocol"), Ok("198.51.100.7".into()));
        assert_eq!(found("x-forwarded-for"), Ok("198.51.100.7".into())); // the hop that the balancer saw is not trusted
    }

    #[test]
    fn x_forwarded_for_counts_from_the_right() {
        let xff = |peer: &str, values: &[&str], want: &str| {
            let lines: Vec<_> = values.iter().map(|value| ("X-Forwarded-For", *value)).collect();
            check("x-forwarded-for", peer, &lines, want);
        };
        xff("10.0.0.1", &[], "10.0.0.1");
        xff("10.0.0.1", &["203.0.113.9"], "203.0.113.9");
        xff("198.51.100.7", &["203.0.113.9"], "198.51.100.7"); // the peer is not trusted
        xff("198.51.100.7", &["\"'<garbage>"], "198.51.100.7");
        xff("10.0.0.1", &["1.1.1.1, 203.0.113.9"], "203.0.113.9"); // the left-most is whatever the sender wrote
        xff("10.0.0.1", &["1.1.1.1,203.0.113.9 ,\t10.0.0.2"], "203.0.113.9");
        xff("10.0.0.1", &["1.1.1.1", "203.0.113.9", "192.168.3.3, 10.0.0.2"], "203.0.113.9"); // several lines are one list
        xff("10.0.0.1", &["10.1.1.1, 10.2.2.2"], "10.1.1.1"); // all are ours
        xff("10.0.0.1", &["garbage, 203.0.113.9"], "203.0.113.9"); // not believed that far
        xff("::ffff:10.0.0.1", &["::ffff:203.0.113.9"], "203.0.113.9");
        xff("10.0.0.1", &["1.1.1.1, ::ffff:10.0.0.2"], "1.1.1.1");
        xff("fd00::1", &["2001:db8::1, [fd00::2]:443"], "2001:db8::1");
        xff("10.0.0.1", &["203.0.113.9:8080"], "203.0.113.9");
        xff("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1");
        xff("10.0.0.1", &["[2001:db8::1]:65535"], "2001:db8::1");
        let refused = [
            "",
            ",",
            "203.0.113.9,",
            "203.0.113.9, ",
            "unknown",
            "_hidden",
            "203.0.113.9 1.1.1.1",
            "203.0.113.9;1.1.1.1",
            "203.0.113.9:",
            "203.0.113.9:65536",
            "203.0.113.9:+80",
            "203.0.113.9:80:80",
            "203.0.113",
            "0203.0.113.9",
            "0x7f.0.0.1",
            "203.0.113.256",
            "2130706433",
            "localhost",
            "fe80::1%eth0",
            "[203.0.113.9]",
            "[2001:db8::1",
            "2001:db8::1]",
            "[2001:db8::1]x",
            "[[::1]]",
            "\"203.0.113.9\"",
            "for=203.0.113.9",
            "203.0.113.9/32",
            "１.1.1.1",
        ];
        for value in refused {
            xff("10.0.0.1", &[value], "bad_request");
            xff("10.0.0.1", &[&format!("203.0.113.9, {value}")], "bad_request");
        }
    }

    #[test]
    fn forwarded_counts_from_the_right() {
        let fwd = |peer: &str, values: &[&str], want: &str| {
            let lines: Vec<_> = values.iter().map(|value| ("Forwarded", *value)).collect();
            check("forwarded", peer, &lines, want);
        };
        fwd("10.0.0.1", &[], "10.0.0.1");
        fwd("198.51.100.7", &["for=203.0.113.9"], "198.51.100.7");
        fwd("198.51.100.7", &["for=\""], "198.51.100.7");
        fwd("10.0.0.1", &["for=203.0.113.9"], "203.0.113.9");
        fwd("10.0.0.1", &["FOR=203.0.113.9;Proto=https;by=10.0.0.1;host=\"a;b, for=1.1.1.1\""], "203.0.113.9");
        fwd("10.0.0.1", &["for=1.1.1.1, for=203.0.113.9;proto=https ,\tfor=10.0.0.2"], "203.0.113.9");
        fwd("10.0.0.1", &["for=1.1.1.1", "for=203.0.113.9", "for=10.0.0.2"], "203.0.113.9");
        fwd("10.0.0.1", &["\"broken", "for=203.0.113.9, for=10.0.0.2"], "203.0.113.9"); // not believed that far
        fwd("10.0.0.1", &["for=_secret, for=203.0.113.9"], "203.0.113.9");
        fwd("10.0.0.1", &["for=\"203.0.113.9:8080\""], "203.0.113.9");
        fwd("10.0.0.1", &["for=\"203.0.113.9:_port\""], "203.0.113.9");
        fwd("10.0.0.1", &["for=\"[2001:db8::1]\""], "2001:db8::1");
        fwd("10.0.0.1", &["for=\"[2001:db8::1]:443\""], "2001:db8::1");
        fwd("10.0.0.1", &["for=\"[::ffff:203.0.113.9]\""], "203.0.113.9");
        fwd("10.0.0.1", &["for=\"203.0\\.113.9\""], "203.0.113.9");
        let refused = [
            "",
            "for",
            "for=",
            "for=unknown",
            "for=_hidden",
            "for=\"unknown:80\"",
            "proto=https",
            "for=203.0.113.9:80",
            "for=[2001:db8::1]",
            "for=\"2001:db8::1\"",
            "for=\"[203.0.113.9]\"",
            "for=\"203.0.113.9",
            "for=203.0.113.9\"",
            "for=\"203.0.113.9\"x",
            "for=\"203.0.113.9\" for=1.1.1.1",
            "for=203.0.113.9;for=10.0.0.1",
            "for=10.0.0.1;FOR=203.0.113.9",
            "for = 203.0.113.9",
            "for=203.0.113.9; proto=https",
            "for=203.0.113.9;",
            "for=203.0.113.9;;proto=https",
            ";for=203.0.113.9",
            "for=203.0.113.9,",
            ",for=203.0.113.9",
            "for=203.0.113.9,,for=10.0.0.2",
            "for=\"203.0.113.9:65536\"",
            "for=\"203.0.113.9:\"",
            "for=\"_\"",
            "for=\"\"",
            "for=0203.0.113.9",
            "for=\"[fe80::1%25eth0]\"",
            "for=203.0.113.9 for=10.0.0.1",
            "203.0.113.9",
            "for=\"203.0.113.9\\",
            "for=\"[2001:db8::1]443\"",
            "for=ünknown",
        ];
        for value in refused {
            fwd("10.0.0.1", &[value], "bad_request");
        }
        let many = |count: usize| (1..count).map(|at| format!("x{at}=1;")).collect::<String>() + "for=203.0.113.9";
        fwd("10.0.0.1", &[&many(16)], "203.0.113.9");
        fwd("10.0.0.1", &[&many(17)], "bad_request");
    }

    #[test]
    fn only_the_believed_source_is_left() {
        let spoofed = [
            "X-Forwarded-For",
            "X_Forwarded_For",
            "X-Forwarded_For",
            "X-Forwarded-Host",
            "X-Forwarded-Proto",
            "X-Forwarded-Port",
            "X-Forwarded-Server",
            "X-Forwarded",
            "Forwarded",
            "Forwarded-For",
            "X-Real-IP",
            "X_Real_IP",
            "True-Client-IP",
            "True_Client_IP",
            "CF-Connecting-IP",
            "CF_Connecting_IP",
            "CF-Connecting-IPv6",
            "Fastly-Client-IP",
            "X-Client-IP",
            "Client-IP",
            "X-Cluster-Client-IP",
            "X-Originating-IP",
            "X-Remote-IP",
            "X-Remote-Addr",
            "X-Original-Forwarded-For",
            "X-ProxyUser-Ip",
            "WL-Proxy-Client-IP",
            "X-Azure-ClientIP",
            "X-Envoy-External-Address",
            "Fly-Client-IP",
            "Remote-Addr",
        ];
        let left = |source: &str, peer: &str| {
            let mut map = headers(&spoofed.map(|name| (name, if name == "Forwarded" { "for=203.0.113.9" } else { "203.0.113.9" })));
            map.insert("x-github-event", HeaderValue::from_static("push"));
            map.insert("x-form", HeaderValue::from_static("kept"));
            let client = identify(&rule(source), &conn(peer, peer), &mut map).expect("nothing is malformed");
            let mut names: Vec<_> = map.keys().map(|name| name.as_str().to_owned()).collect();
            names.sort();
            (client.ip.to_string(), names)
        };
        assert_eq!(left("socket", "10.0.0.1"), ("10.0.0.1".into(), vec!["x-form".into(), "x-github-event".into()]));
        assert_eq!(left("x-forwarded-for", "198.51.100.7"), ("198.51.100.7".into(), vec!["x-form".into(), "x-github-event".into()]));
        assert_eq!(left("x-forwarded-for", "10.0.0.1"), ("203.0.113.9".into(), vec!["x-form".into(), "x-forwarded-for".into(), "x-github-event".into()]));
        assert_eq!(left("forwarded", "10.0.0.1"), ("203.0.113.9".into(), vec!["forwarded".into(), "x-form".into(), "x-github-event".into()]));
    }

    #[test]
    fn rules_that_cannot_be_meant_are_problems() {
        let check = |text: &str, want: &[&str]| assert_eq!(read(text).1, want, "{text}");
        check("", &[]);
        check(
            "client_ip = \"x-forwarded-for\"",
            &[
                "client_ip: `client_ip` names a header, but no proxy is trusted to write it (add `trusted_proxies = [\"10.0.0.0/8\"]` with the proxies in front)",
            ],
        );
        check(
            "proxy_protocol = true\nclient_ip = \"proxy-protocol\"",
            &[
                "proxy_protocol: the PROXY protocol is on, and no peer is trusted to speak it: every connection would be cut off (add `trusted_proxies = [\"10.0.0.0/8\"]` with the balancers in front)",
            ],
        );
        check(
            "proxy_protocol = true\ntrusted_proxies = [\"10.0.0.0/8\"]",
            &[
                "proxy_protocol: the PROXY protocol says who connects, and `client_ip` is \"socket\": every client is taken for the balancer (set `client_ip = \"proxy-protocol\"`)",
            ],
        );
        check(
            "client_ip = \"proxy-protocol\"",
            &["client_ip: `client_ip` is \"proxy-protocol\", but the PROXY protocol is off (set `proxy_protocol = true`, or choose another source)"],
        );
        check(
            "client_ip = \"x-forwarded-fo\"\ntrusted_proxies = [\"10.0.0.0/8\"]",
            &[
                "client_ip: `x-forwarded-fo` is not known here (did you mean \"x-forwarded-for\"? It is one of: socket, proxy-protocol, x-forwarded-for, forwarded)",
            ],
        );
        check(
            "trusted_proxies = [\"::/0\"]",
            &["trusted_proxies: `::/0` trusts everybody to say where a request comes from (name the proxies in front of the gate)"],
        );
    }

    proptest::proptest! {
        #[test]
        fn a_hop_that_is_not_trusted_is_never_passed(left in "[ -~]{0,40}", hop in proptest::prelude::any::<[u8; 4]>()) {
            let hop = IpAddr::from(hop);
            let rule = rule("x-forwarded-for");
            proptest::prop_assume!(!rule.trusts(hop));
            let lines = headers(&[("x-forwarded-for", &left), ("x-forwarded-for", &format!("{left}, {hop}"))]);
            let got = identify(&rule, &conn("10.0.0.1", "10.0.0.1"), &mut lines.clone()).map(|client| client.ip);
            proptest::prop_assert_eq!(got, Ok(hop));
        }

        #[test]
        fn no_forwarded_line_panics(line in "[ -~\\t]{0,60}|(for|by|proto|=|\"|;|,|\\[|\\]|:|_|1\\.1\\.1\\.1|\\\\){0,12}") {
            let _ = elements(line.as_bytes());
        }
    }
}
