//! One decision as one line of JSON. Pure.

use std::{
    borrow::Cow,
    fmt::Write as _,
    mem,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::Method;

use crate::{
    event::{EventId, Verification},
    outcome::Ending,
    reject::Reason,
};

/// Longest text taken over from a request, in bytes; what is longer is cut and ends in `…`.
const TEXT: usize = 1024;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Ended(Ending),
    Refused(Reason),
    /// The gate failed before there was an answer; `detail` says how.
    Aborted,
}

impl Decision {
    pub(crate) const fn outcome(self) -> &'static str {
        match self {
            Self::Ended(ending) => ending.code(),
            Self::Refused(_) => "refused",
            Self::Aborted => "aborted",
        }
    }

    pub(crate) const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Refused(reason) => Some(reason.code()),
            Self::Ended(_) | Self::Aborted => None,
        }
    }
}

/// What became of one of the event's destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Branch {
    pub(crate) to: Arc<str>,
    /// As in `hooklatch_delivery_attempts_total`; `sent` where nobody waits for it, `done` where an earlier copy delivered it.
    pub(crate) result: &'static str,
    /// The receiver's status, where it answered.
    pub(crate) status: Option<u16>,
}

/// One decision. Never a body, a secret, a signature or a query's values.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Unix time in milliseconds at which the request's head had arrived.
    pub(crate) time_ms: i64,
    pub(crate) event_id: EventId,
    pub(crate) decision: Decision,
    /// The status that was answered; 0 where nothing was.
    pub(crate) status: u16,
    /// Of a refusal, for the operator: `Reject::detail`.
    pub(crate) detail: Cow<'static, str>,
    /// Number of the policy that judged, from 1.
    pub(crate) policy: u64,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) provider: Option<Arc<str>>,
    pub(crate) verified: Verification,
    /// Label of the secret that matched.
    pub(crate) secret: Option<Arc<str>>,
    pub(crate) event_type: Option<String>,
    pub(crate) delivery_id: Option<String>,
    /// As in `hooklatch_replay_total`.
    pub(crate) replay: Option<&'static str>,
    /// Reasons for which guards that only observe would have refused.
    pub(crate) would_refuse: Vec<Reason>,
    pub(crate) branches: Vec<Branch>,
    pub(crate) client_ip: Option<IpAddr>,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) method: Option<Method>,
    pub(crate) host: Option<String>,
    pub(crate) path: String,
    /// Made by [`query_names`].
    pub(crate) query: String,
    pub(crate) body_bytes: u64,
    pub(crate) took: Duration,
    /// Filters' notes.
    pub(crate) annotations: Vec<(String, String)>,
}

impl Line {
    /// A line of which nothing is known yet but when and which.
    pub(crate) fn new(event_id: EventId, time_ms: i64, decision: Decision) -> Self {
        Self {
            time_ms,
            event_id,
            decision,
            status: 0,
            detail: Cow::Borrowed(""),
            policy: 0,
            route: None,
            provider: None,
            verified: Verification::None,
            secret: None,
            event_type: None,
            delivery_id: None,
            replay: None,
            would_refuse: Vec::new(),
            branches: Vec::new(),
            client_ip: None,
            peer: None,
            method: None,
            host: None,
            path: String::new(),
            query: String::new(),
            body_bytes: 0,
            took: Duration::ZERO,
            annotations: Vec::new(),
        }
    }
}

/// The names of a query's parameters, without their values: tokens travel in those. A piece without `=` may be a token itself and
/// becomes `*`.
pub(crate) fn query_names(query: &str) -> String {
    let mut out = String::new();
    for piece in query.split('&').take(32) {
        if !out.is_empty() {
            out.push('&');
        }
        match piece.split_once('=') {
            Some((name, _)) => out.push_str(&cut(name, 64)),
            None => out.push('*'),
        }
    }
    out
}

fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most { Cow::Borrowed(text) } else { Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(most)])) }
}

impl Line {
    /// Appends the line as one JSON object, by hand: every request pays for it.
    pub(crate) fn write_json(&self, out: &mut String) {
        let mut object = Object::open(out);
        object.key("time").push('"');
        write_time(object.out, self.time_ms);
        object.out.push('"');
        object.plain("event_id", self.event_id.0.as_hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
        object.plain("outcome", self.decision.outcome());
        if let Some(reason) = self.decision.reason() {
            object.plain("reason", reason);
        }
        if self.status != 0 {
            object.number("status", self.status.into());
        }
        object.text("detail", &self.detail);
        object.text("route", self.route.as_deref().unwrap_or_default());
        object.text("provider", self.provider.as_deref().unwrap_or_default());
        if self.route.is_some() {
            object.plain("verified", self.verified.code());
        }
        object.text("secret", self.secret.as_deref().unwrap_or_default());
        object.text("event_type", self.event_type.as_deref().unwrap_or_default());
        object.text("delivery_id", self.delivery_id.as_deref().unwrap_or_default());
        if let Some(replay) = self.replay {
            object.plain("replay", replay);
        }
        if !self.would_refuse.is_empty() {
            object.list("would_refuse", &self.would_refuse, |out, reason| write_text(out, reason.code()));
        }
        if !self.branches.is_empty() {
            object.list("destinations", &self.branches, |out, branch| {
                let mut object = Object::open(out);
                object.text("to", &branch.to);
                object.plain("result", branch.result);
                if let Some(status) = branch.status {
                    object.number("status", status.into());
                }
                object.close();
            });
        }
        if let Some(ip) = self.client_ip {
            let out = object.key("client_ip");
            out.push('"');
            write_ip(out, ip);
            out.push('"');
        }
        if let Some(peer) = self.peer {
            let out = object.key("peer");
            out.push_str(if peer.is_ipv6() { "\"[" } else { "\"" });
            write_ip(out, peer.ip());
            out.push_str(if peer.is_ipv6() { "]:" } else { ":" });
            write_number(out, peer.port().into(), 1);
            out.push('"');
        }
        if let Some(method) = &self.method {
            object.text("method", &cut(method.as_str(), 32));
        }
        object.text("host", self.host.as_deref().unwrap_or_default());
        object.text("path", &self.path);
        object.text("query", &self.query);
        object.number("body_bytes", self.body_bytes);
        object.number("duration_us", u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX));
        if !self.annotations.is_empty() {
            // A list of pairs, not an object: a filter may use a name twice.
            object.list("annotations", &self.annotations, |out, (name, value)| {
                out.push('[');
                write_text(out, &cut(name, TEXT));
                out.push(',');
                write_text(out, &cut(value, TEXT));
                out.push(']');
            });
        }
        object.number("policy", self.policy);
        object.close();
    }
}

/// A JSON object being written.
struct Object<'a> {
    out: &'a mut String,
    first: bool,
}

impl<'a> Object<'a> {
    fn open(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, first: true }
    }

    fn key(&mut self, key: &'static str) -> &mut String {
        if !mem::take(&mut self.first) {
            self.out.push(',');
        }
        self.out.push('"');
        self.out.push_str(key);
        self.out.push_str("\":");
        self.out
    }

    /// A text of ours, which needs no escape.
    fn plain(&mut self, key: &'static str, word: &str) {
        let out = self.key(key);
        out.push('"');
        out.push_str(word);
        out.push('"');
    }

    /// Any text, cut after 1 KiB; nothing where it is empty.
    fn text(&mut self, key: &'static str, value: &str) {
        if !value.is_empty() {
            write_text(self.key(key), &cut(value, TEXT));
        }
    }

    fn number(&mut self, key: &'static str, number: u64) {
        let out = self.key(key);
        write_number(out, number, 1);
    }

    fn list<T>(&mut self, key: &'static str, items: &[T], write: impl Fn(&mut String, &T)) {
        let out = self.key(key);
        out.push('[');
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            write(out, item);
        }
        out.push(']');
    }

    fn close(self) {
        self.out.push('}');
    }
}

/// A JSON string. Control characters are escaped, DEL too, so that a terminal showing the file cannot be steered.
fn write_text(out: &mut String, text: &str) {
    out.push('"');
    // Nearly every text is plain, and a test of all bytes at once is quick.
    if !text.bytes().fold(false, |odd, byte| odd | escaped(byte)) {
        out.push_str(text);
        out.push('"');
        return;
    }
    let mut from = 0;
    for (at, byte) in text.bytes().enumerate() {
        if !escaped(byte) {
            continue;
        }
        out.push_str(&text[from..at]); // the byte is ASCII, so both ends are between characters
        from = at + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\t' => out.push_str("\\t"),
            _ => {
                let _ = write!(out, "\\u{byte:04x}"); // a string takes everything
            }
        }
    }
    out.push_str(&text[from..]);
    out.push('"');
}

fn escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\' || byte == 0x7f
}

fn write_ip(out: &mut String, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => {
            for (index, octet) in v4.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push('.');
                }
                write_number(out, octet.into(), 1);
            }
        }
        IpAddr::V6(v6) => {
            let _ = write!(out, "{v6}"); // a string takes everything
        }
    }
}

/// `digits`: at least so many, with zeros in front.
fn write_number(out: &mut String, mut number: u64, digits: usize) {
    let mut buffer = [b'0'; 20];
    let mut at = buffer.len();
    while number > 0 || buffer.len() - at < digits {
        at -= 1;
        buffer[at] = b'0' + (number % 10) as u8; // a digit fits
        number /= 10;
    }
    // Digit by digit: most numbers have three at most, and nothing has to be looked through for UTF-8.
    buffer[at..].iter().for_each(|digit| out.push(char::from(*digit)));
}

/// A Unix time in milliseconds as `2026-11-24T20:40:00.123Z`.
pub(crate) fn rfc3339(ms: i64) -> String {
    let mut out = String::with_capacity(24);
    write_time(&mut out, ms);
    out
}

/// Times before 1970 or after 9999 are shown as those ends.
fn write_time(out: &mut String, ms: i64) {
    let ms = u64::try_from(ms).unwrap_or_default().min(253_402_300_799_999);
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    // Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days: years begin in March, eras last 400 of them.
    let day = days + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let parts = [
        (year, 4, '-'),
        (month, 2, '-'),
        (day_of_year - (153 * shifted + 2) / 5 + 1, 2, 'T'),
        (rest / 3_600_000, 2, ':'),
        (rest / 60_000 % 60, 2, ':'),
        (rest / 1000 % 60, 2, '.'),
        (rest % 1000, 3, 'Z'),
    ];
    for (number, digits, end) in parts {
        write_number(out, number, digits);
        out.push(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_everything_and_nothing_secret() {
        let mut full = Line { path: "/github\n\u{1b}[31m".into(), ..Line::new(EventId::new(), 1_700_000_000_123, Decision::Aborted) };
        full.decision = Decision::Ended(Ending::Forwarded);
        full.status = 200;
        full.policy = 3;
        full.route = Some("github".into());
        full.provider = Some("github".into());
        full.verified = Verification::Content;
        full.secret = Some("#1".into());
        full.event_type = Some("push".into());
        full.delivery_id = Some("d".repeat(2000));
        full.replay = Some("new");
        full.would_refuse = vec![Reason::IpNotAllowed];
        full.branches = vec![Branch { to: "billing".into(), result: "ok", status: Some(204) }];
        full.client_ip = Some([192, 0, 2, 1].into());
        full.peer = Some("[2001:db8::1]:4000".parse().expect("an address"));
        full.method = Some(Method::POST);
        full.host = Some("hooks.example.com".into());
        full.query = query_names("tenant=a&token=s3cret&barekey");
        full.took = Duration::from_micros(1234);
        full.annotations = vec![("redact".into(), "2 fields".into())];
        let mut text = String::new();
        full.write_json(&mut text);
        assert!(!text.contains("s3cret") && !text.contains("barekey") && !text.contains('\n') && !text.contains('\u{1b}'), "{text}");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        for (key, want) in [
            ("time", serde_json::json!("2023-11-14T22:13:20.123Z")),
            ("outcome", serde_json::json!("forwarded")),
            ("status", serde_json::json!(200)),
            ("verified", serde_json::json!("content")),
            ("query", serde_json::json!("tenant&token&*")),
            ("would_refuse", serde_json::json!(["ip_not_allowed"])),
            ("destinations", serde_json::json!([{ "to": "billing", "result": "ok", "status": 204 }])),
            ("client_ip", serde_json::json!("192.0.2.1")),
            ("peer", serde_json::json!("[2001:db8::1]:4000")),
            ("duration_us", serde_json::json!(1234)),
            ("annotations", serde_json::json!([["redact", "2 fields"]])),
            ("policy", serde_json::json!(3)),
        ] {
            assert_eq!(json[key], want, "{key}");
        }
        assert_eq!(json["delivery_id"].as_str().map(|id| id.chars().count()), Some(TEXT + 1));
        assert!(json.get("reason").is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_text_comes_back_whole(texts: Vec<String>) {
            let mut out = String::new();
            let mut object = Object::open(&mut out);
            object.list("texts", &texts, |out, text| write_text(out, text));
            object.close();
            assert!(!out.contains(|c: char| c.is_ascii_control()), "{out:?}");
            let back: serde_json::Value = serde_json::from_str(&out).expect("JSON");
            assert_eq!(back, serde_json::json!({ "texts": texts }));
        }

        #[test]
        fn any_time_is_that_of_the_calendar(ms in 0..253_402_300_800_000_i64) {
            let format = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
            let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).expect("in range");
            assert_eq!(rfc3339(ms), at.format(format).expect("a time"));
        }
    }

    #[test]
    fn odd_times_and_numbers() {
        for (ms, want) in [
            (i64::MIN, "1970-01-01T00:00:00.000Z"),
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339(ms), want);
        }
        let mut out = String::new();
        write_number(&mut out, u64::MAX, 1);
        write_number(&mut out, 0, 1);
        assert_eq!(out, format!("{}0", u64::MAX));
    }
}
