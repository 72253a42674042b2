//! Which header fields travel: to the receiver, and back. Pure.
//!
//! Nothing that was received about framing or hops is passed on, and nobody but the gate says `Hooklatch-*` or `X-Forwarded-*`.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use bytes::{BufMut, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, FORWARDED, HOST},
};
use uuid::Uuid;

use crate::event::{Event, is_credential};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const EVENT_ID: HeaderName = HeaderName::from_static("hooklatch-event-id");
const ROUTE: HeaderName = HeaderName::from_static("hooklatch-route");
const PROVIDER: HeaderName = HeaderName::from_static("hooklatch-provider");
const VERIFIED: HeaderName = HeaderName::from_static("hooklatch-verified");
const ATTEMPT: HeaderName = HeaderName::from_static("hooklatch-attempt");

/// What a destination adds and leaves out.
pub(super) struct Rule<'a> {
    /// The Host of the destination; HTTP/2 carries it in `:authority` instead.
    pub(super) host: Option<&'a HeaderValue>,
    /// `Authorization: Basic` from the URL.
    pub(super) basic: Option<&'a HeaderValue>,
    /// `headers = { … }` of the destination.
    pub(super) own: &'a [(HeaderName, HeaderValue)],
    /// Leaves out what [`crate::event::is_credential`] names.
    pub(super) strip_credentials: bool,
    pub(super) attempt: u32,
}

/// The header fields of the request to the receiver.
pub(super) fn outgoing(event: &Event, rule: &Rule<'_>) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(event.headers.len() + rule.own.len() + OURS);
    let named = named_in_connection(&event.headers);
    for (name, value) in &event.headers {
        if travels(name) && name != HOST && !is_ours_or_forwarded(name) && !names(&named, name) && !(rule.strip_credentials && is_credential(name, value)) {
            out.append(name.clone(), value.clone());
        }
    }
    if let Some(host) = rule.host {
        out.insert(HOST, host.clone());
    }
    let mut values = Values::of(event);
    // A receiver that wants a length gets one, even of nothing.
    if !event.body.is_empty() || !matches!(event.method, Method::GET | Method::HEAD) {
        out.insert(CONTENT_LENGTH, values.write(|out| digits(out, event.body.len())));
    }
    let ip = values.write(|out| address(out, event.client.ip));
    out.insert(FORWARDED, values.write(|out| forwarded(out, event, ip.to_str().unwrap_or_default())));
    out.insert(FORWARDED_FOR, ip);
    out.insert(FORWARDED_PROTO, HeaderValue::from_static(event.scheme));
    if let Some(host) = &event.host {
        out.insert(FORWARDED_HOST, values.write(|out| out.write_str(host)));
    }
    out.insert(EVENT_ID, values.write(|out| out.write_str(event.id.0.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()))));
    out.insert(ROUTE, values.write(|out| out.write_str(&event.route)));
    if let Some(provider) = &event.provider {
        out.insert(PROVIDER, values.write(|out| out.write_str(provider)));
    }
    out.insert(VERIFIED, HeaderValue::from_static(event.verification.code()));
    out.insert(ATTEMPT, if rule.attempt == 1 { HeaderValue::from_static("1") } else { rule.attempt.into() });
    if let Some(basic) = rule.basic {
        out.insert(AUTHORIZATION, basic.clone());
    }
    for (name, value) in rule.own {
        out.insert(name.clone(), value.clone());
    }
    out
}

/// How many fields [`outgoing`] writes itself, at most.
const OURS: usize = 12;

/// Values made for one request: all in one piece of memory.
struct Values(BytesMut);

impl Values {
    /// Room for every value that `event` makes, as far as it can be told.
    fn of(event: &Event) -> Self {
        let host = event.host.as_ref().map_or(0, String::len);
        let provider = event.provider.as_ref().map_or(0, |provider| provider.len());
        Self(BytesMut::with_capacity(200 + 2 * host + event.route.len() + provider))
    }

    /// Bytes that no field may hold cannot come here but from a policy's names; such a value is left empty.
    fn write(&mut self, write: impl FnOnce(&mut BytesMut) -> fmt::Result) -> HeaderValue {
        // A buffer takes everything.
        let _ = write(&mut self.0);
        HeaderValue::from_maybe_shared(self.0.split().freeze()).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

/// Takes out of a receiver's answer what goes no further: hop-by-hop fields, `Set-Cookie`, `Server`, `Hooklatch-*`; the length is
/// set anew.
pub(super) fn incoming(headers: &mut HeaderMap) {
    let named = named_in_connection(headers);
    let stays =
        |name: &HeaderName| travels(name) && !matches!(name.as_str(), "set-cookie" | "set-cookie2" | "server") && !is_ours(name) && !names(&named, name);
    let gone: Vec<HeaderName> = headers.keys().filter(|name| !stays(name)).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
}

/// False for what concerns one connection only, for framing, and for names with an underscore: CGI makes them twins of others.
pub(super) fn travels(name: &HeaderName) -> bool {
    let name = name.as_str();
    !matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "expect"
            | "content-length"
            | "http2-settings"
    ) && !name.as_bytes().contains(&b'_')
}

fn is_ours(name: &HeaderName) -> bool {
    name.as_str().starts_with("hooklatch-")
}

fn is_ours_or_forwarded(name: &HeaderName) -> bool {
    let name = name.as_str();
    match name.as_bytes().first() {
        Some(b'f') => name == "forwarded",
        Some(b'h') => name.starts_with("hooklatch-"),
        Some(b'x') => name.starts_with("x-forwarded-"),
        _ => false,
    }
}

/// The field names that `Connection` declares to be of one hop.
fn named_in_connection(headers: &HeaderMap) -> Vec<&[u8]> {
    let lines = headers.get_all(CONNECTION).iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()).collect()
}

fn names(named: &[&[u8]], name: &HeaderName) -> bool {
    // What a sender could only name to have the receiver miss it stays.
    !named.is_empty()
        && !matches!(name.as_str(), "content-type" | "content-encoding" | "host")
        && named.iter().any(|own| own.eq_ignore_ascii_case(name.as_str().as_bytes()))
}

/// A number in decimal digits; `fmt` takes several times as long.
fn digits(out: &mut BytesMut, mut number: usize) -> fmt::Result {
    let mut buffer = [b'0'; 20];
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + (number % 10) as u8; // a digit fits
        number /= 10;
        if number == 0 {
            out.extend_from_slice(&buffer[at..]);
            return Ok(());
        }
    }
}

fn address(out: &mut BytesMut, ip: IpAddr) -> fmt::Result {
    let IpAddr::V4(v4) = ip else { return write!(out, "{ip}") };
    for (index, octet) in v4.octets().into_iter().enumerate() {
        if index > 0 {
            out.put_u8(b'.');
        }
        digits(out, octet.into())?;
    }
    Ok(())
}

/// RFC 7239: one element, for the one client that is believed.
fn forwarded(out: &mut BytesMut, event: &Event, ip: &str) -> fmt::Result {
    let (open, close) = if event.client.ip.is_ipv6() { ("for=\"[", "]\"") } else { ("for=", "") };
    for part in [open, ip, close, ";proto=", event.scheme] {
        out.write_str(part)?;
    }
    if let Some(host) = event.host.as_deref().filter(|host| !host.contains(['"', '\\'])) {
        for part in [";host=\"", host, "\""] {
            out.write_str(part)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::tests::event;

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))).collect();
        lines.sort();
        lines
    }

    fn check(sent: &[(&str, &str)], strip_credentials: bool, want: &[&str]) {
        let mut event = event("body");
        event.headers.clear();
        for (name, value) in sent {
            event.headers.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), HeaderValue::from_str(value).expect("a value"));
        }
        let host = HeaderValue::from_static("own:9000");
        let own = [(HeaderName::from_static("x-env"), HeaderValue::from_static("prod"))];
        let rule = Rule { host: Some(&host), basic: None, own: &own, strip_credentials, attempt: 3 };
        let id = format!("hooklatch-event-id: {}", event.id);
        let mut wanted: Vec<&str> = vec![
            "content-length: 4",
            "forwarded: for=192.0.2.7;proto=https;host=\"hooks.example.com:8443\"",
            "hooklatch-attempt: 3",
            &id,
            "hooklatch-provider: github",
            "hooklatch-route: github-prod",
            "hooklatch-verified: content",
            "host: own:9000",
            "x-env: prod",
            "x-forwarded-for: 192.0.2.7",
            "x-forwarded-host: hooks.example.com:8443",
            "x-forwarded-proto: https",
        ];
        wanted.extend_from_slice(want);
        wanted.sort_unstable();
        assert_eq!(lines(&outgoing(&event, &rule)), wanted, "{sent:?}");
    }

    #[test]
    fn what_concerns_one_hop_stays_behind() {
        check(
            &[("Content-Type", "text/plain"), ("X-Hub-Signature-256", "sha256=1"), ("Accept", "*/*")],
            false,
            &["accept: */*", "content-type: text/plain", "x-hub-signature-256: sha256=1"],
        );
        for name in ["Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Expect", "Content-Length", "HTTP2-Settings", "Host"] {
            check(&[(name, "1")], false, &[]);
        }
        check(&[("Connection", "close, X-Private"), ("X-Private", "1"), ("x-private", "2"), ("X-Kept", "1")], false, &["x-kept: 1"]);
        check(&[("Connection", "content-type"), ("Content-Type", "text/plain")], false, &["content-type: text/plain"]);
    }

    #[test]
    fn nobody_else_speaks_for_the_gate() {
        for name in [
            "Hooklatch-Verified",
            "Hooklatch-Event-Id",
            "Hooklatch-Anything",
            "hooklatch_verified",
            "Hooklatch_Event-Id",
            "X_Forwarded_For",
            "X-Forwarded-For",
            "X-Forwarded-Port",
            "X-Forwarded-Client-Cert",
            "Forwarded",
            "any_name",
            "X-Env",
        ] {
            check(&[(name, "forged")], false, &[]);
        }
    }

    #[test]
    fn credentials_stay_behind_when_told_so() {
        let sent = [("Authorization", "Bearer x"), ("Cookie", "a=b"), ("X-Gitlab-Token", "x"), ("X-Api-Key", "x"), ("X-Signature", "x")];
        check(&sent, true, &["x-signature: x"]);
        check(&sent, false, &["authorization: Bearer x", "cookie: a=b", "x-api-key: x", "x-gitlab-token: x", "x-signature: x"]);
    }

    #[test]
    fn addresses_are_written_as_the_rfc_wants_them() {
        let mut event = event("");
        event.client = crate::event::Client::new("2001:db8::1".parse().expect("an address"));
        event.host = Some("a\"b".to_owned());
        event.provider = None;
        let headers = outgoing(&event, &Rule { host: None, basic: None, own: &[], strip_credentials: false, attempt: 1 });
        assert_eq!(headers[FORWARDED], "for=\"[2001:db8::1]\";proto=https");
        assert!(!headers.contains_key(PROVIDER) && !headers.contains_key(HOST));
        assert_eq!(headers[CONTENT_LENGTH], "0");
    }

    #[test]
    fn answers_lose_what_is_not_for_the_sender() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "text/plain"),
            ("content-length", "5"),
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("set-cookie", "a=b"),
            ("set-cookie", "c=d"),
            ("server", "nginx"),
            ("hooklatch-event-id", "forged"),
            ("retry-after", "5"),
            ("x-kept", "1"),
            ("x-kept", "2"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        incoming(&mut headers);
        assert_eq!(lines(&headers), ["content-type: text/plain", "retry-after: 5", "x-kept: 1", "x-kept: 2"]);
    }
}
