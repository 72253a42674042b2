//! The values that travel down the pipeline: a call as it arrived, the bytes of a body, an event that is being delivered.

use std::{
    borrow::Cow,
    collections::VecDeque,
    fmt,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body::{Body, Frame, SizeHint};
use uuid::Uuid;

use crate::clock::{Clock, Now};

/// Names one event over all its attempts and copies: UUIDv7, in `Hooklatch-Event-Id`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EventId(pub(crate) Uuid);

impl EventId {
    /// A new id, ordered by time within this process.
    pub(crate) fn new() -> Self {
        Self::at(Clock::system().now().wall_ms)
    }

    /// A new id for this time. The 12 bits after the milliseconds count (RFC 9562, 6.2, method 1), so that ids made in the same
    /// millisecond, or after the clock was set back, still ascend. [`Uuid::now_v7`] does as much with a system call for each.
    pub(crate) fn at(wall_ms: i64) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let wanted = u64::try_from(wall_ms).unwrap_or(0) << 12;
        let next = |last: u64| wanted.max(last + 1);
        let last = LAST.fetch_update(Relaxed, Relaxed, |last| Some(next(last))).unwrap_or_else(|last| last);
        let stamp = next(last);
        let high = (stamp >> 12) << 16 | 0x7000 | (stamp & 0xfff);
        let low = rand::random::<u64>() >> 2 | 1 << 63;
        Self(Uuid::from_u64_pair(high, low))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is known of the connection a request came on; made once per connection by `listen`.
#[derive(Clone, Debug)]
pub(crate) struct Conn {
    /// The socket's peer, or what the PROXY protocol said of it.
    pub(crate) peer: SocketAddr,
    /// The socket's own peer, always.
    pub(crate) socket: SocketAddr,
    pub(crate) tls: Option<Tls>,
}

#[derive(Clone, Debug)]
pub(crate) struct Tls {
    /// The name the client asked for, lower case.
    pub(crate) server_name: Option<String>,
    /// The client's chain in DER, leaf first, proven to hold its key; empty without one. Not yet checked against any CA
    /// but those of `client_ca`.
    pub(crate) client_chain: Arc<[rustls_pki_types::CertificateDer<'static>]>,
}

/// One request as `listen` hands it to the pipeline; nothing of the body has been read.
pub(crate) struct Call {
    pub(crate) id: EventId,
    pub(crate) started: Now,
    pub(crate) conn: Arc<Conn>,
    pub(crate) head: http::request::Parts,
    pub(crate) body: CallBody,
}

/// The body still to be read.
pub(crate) enum CallBody {
    Incoming(crate::listen::http::RequestBody),
    /// Bytes at hand.
    #[cfg(test)]
    Whole(Bytes),
}

/// Who is asking, from the one believed source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    /// IPv4-mapped addresses are folded to IPv4.
    pub(crate) ip: IpAddr,
    pub(crate) key: ClientKey,
}

/// An address as the key of a limit: an IPv4 address, or the /64 of an IPv6 one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ClientKey {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Client {
    pub(crate) fn new(ip: IpAddr) -> Self {
        let ip = ip.to_canonical();
        let key = match ip {
            IpAddr::V4(v4) => ClientKey::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                ClientKey::V6([a, b, c, d, e, f, g, h])
            }
        };
        Self { ip, key }
    }
}

/// A body as the pieces it arrived in; cloning shares them.
#[derive(Clone, Default)]
pub(crate) struct Chunks {
    pieces: VecDeque<Bytes>,
    len: usize,
    /// What the bytes count against, given back when the last copy is gone.
    held: Option<Arc<dyn Send + Sync>>,
}

impl PartialEq for Chunks {
    fn eq(&self, other: &Self) -> bool {
        self.pieces == other.pieces
    }
}

impl fmt::Debug for Chunks {
    /// Never the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunks").field("len", &self.len).field("pieces", &self.pieces.len()).finish_non_exhaustive()
    }
}

impl Chunks {
    pub(crate) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Keeps `held` for as long as a copy of these bytes lives: a delivery may outlive the request.
    pub(crate) fn hold(&mut self, held: impl Send + Sync + 'static) {
        self.held = Some(Arc::new(held));
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter()
    }

    /// One piece; copies only where there are several.
    pub(crate) fn to_bytes(&self) -> Bytes {
        match self.pieces.len() {
            0 => Bytes::new(),
            1 => self.pieces[0].clone(),
            _ => {
                let mut whole = BytesMut::with_capacity(self.len);
                self.pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
                whole.freeze()
            }
        }
    }

    /// The same bytes in one piece, kept: for steps that need them contiguous one after another.
    pub(crate) fn contiguous(&mut self) -> &[u8] {
        if self.pieces.len() > 1 {
            let whole = self.to_bytes();
            self.pieces.clear();
            self.pieces.push_back(whole);
        }
        self.pieces.front().map_or(&[], |piece| &piece[..])
    }
}

impl From<Bytes> for Chunks {
    fn from(whole: Bytes) -> Self {
        let mut chunks = Self::default();
        chunks.push(whole);
        chunks
    }
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = self.pieces.pop_front();
        if let Some(piece) = &piece {
            self.len -= piece.len();
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len as u64)
    }
}

/// Whether a header field carries what lets its bearer in: masked for filters and people, left out by `strip_credentials`.
///
/// By its usual name, or because the route's own scheme takes it as a credential and the pipeline marked the value as sensitive.
/// Signatures are none: they say nothing that could be used again elsewhere.
pub(crate) fn is_credential(name: &HeaderName, value: &HeaderValue) -> bool {
    let name = name.as_str();
    value.is_sensitive()
        || matches!(name, "authorization" | "proxy-authorization" | "cookie" | "x-api-key" | "api-key" | "apikey" | "x-auth")
        || ["-token", "-api-key", "-secret", "-password", "-authorization"].iter().any(|end| name.ends_with(end))
}

/// What the sender's proof vouches for; `Hooklatch-Verified`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verification {
    /// Nothing was proven.
    #[default]
    None,
    /// Who sent it: a token, mutual TLS and the like.
    Sender,
    /// Who sent it, and every byte of the body.
    Content,
}

impl Verification {
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sender => "sender",
            Self::Content => "content",
        }
    }
}

/// An event past the gate's checks: what filters see and receivers get.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) id: EventId,
    pub(crate) route: Arc<str>,
    pub(crate) provider: Option<Arc<str>>,
    pub(crate) verification: Verification,
    pub(crate) secret_label: Option<Arc<str>>,
    pub(crate) event_type: Option<String>,
    pub(crate) delivery_id: Option<String>,
    /// Unix time in milliseconds.
    pub(crate) received_ms: i64,
    pub(crate) client: Client,
    /// Subject of the client's certificate, where it showed one.
    pub(crate) client_cert: Option<Arc<str>>,
    pub(crate) method: Method,
    /// As it arrived: never normalised.
    pub(crate) path: String,
    /// The route's path parameters, their percent-escapes resolved.
    pub(crate) params: Vec<(String, String)>,
    /// What the route's `*` matched, for `path = "own"` destinations.
    pub(crate) rest: Option<String>,
    pub(crate) query: Option<String>,
    /// The query parameters whose value lets its bearer in.
    pub(crate) secret_params: Arc<[String]>,
    /// `http` or `https`, as the sender asked.
    pub(crate) scheme: &'static str,
    /// The Host the sender asked for.
    pub(crate) host: Option<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Chunks,
    /// The filters' choice among the route's own destinations; `None`: as the policy says.
    pub(crate) chosen: Option<Vec<String>>,
    /// Filters' notes for the audit line.
    pub(crate) annotations: Vec<(String, String)>,
}

/// What becomes of a query's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// Their values are masked: for filters and people.
    Masked,
    /// They are left out: for receivers with `strip_credentials`.
    Stripped,
}

impl Event {
    /// A push as GitHub sends it, for tests and benchmarks: they change what they are about.
    pub(crate) fn sample(body: impl Into<Bytes>) -> Self {
        Self {
            id: EventId::new(),
            route: "github".into(),
            provider: Some("github".into()),
            verification: Verification::Content,
            secret_label: None,
            event_type: Some("push".to_owned()),
            delivery_id: None,
            received_ms: 1_795_553_600_000,
            client: Client::new([192, 0, 2, 1].into()),
            client_cert: None,
            method: Method::POST,
            path: "/github".to_owned(),
            params: Vec::new(),
            rest: None,
            query: None,
            secret_params: Arc::default(),
            scheme: "https",
            host: None,
            headers: HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]),
            body: body.into().into(),
            chosen: None,
            annotations: Vec::new(),
        }
    }

    /// The query without the credentials in it; as it arrived where there are none.
    pub(crate) fn query_without(&self, credentials: Credentials) -> Option<Cow<'_, str>> {
        let query = self.query.as_deref()?;
        let is_secret = |piece: &str| {
            let name = form_urlencoded::parse(piece.as_bytes()).next();
            name.is_some_and(|(name, _)| self.secret_params.iter().any(|secret| *secret == name))
        };
        if self.secret_params.is_empty() || !query.split('&').any(is_secret) {
            return Some(Cow::Borrowed(query));
        }
        let kept = query.split('&').filter_map(|piece| match credentials {
            _ if !is_secret(piece) => Some(Cow::Borrowed(piece)),
            Credentials::Masked => Some(Cow::Owned(format!("{}=[masked]", piece.split('=').next().unwrap_or_default()))),
            Credentials::Stripped => None,
        });
        let kept = kept.collect::<Vec<_>>().join("&");
        (!kept.is_empty()).then_some(Cow::Owned(kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_a_query_are_masked_or_left_out() {
        let check = |query: &str, masked: Option<&str>, stripped: Option<&str>| {
            let event = Event { query: Some(query.to_owned()), secret_params: Arc::new(["token".to_owned()]), ..Event::sample("") };
            let got = [Credentials::Masked, Credentials::Stripped].map(|what| event.query_without(what).map(Cow::into_owned));
            assert_eq!(got, [masked, stripped].map(|want| want.map(str::to_owned)), "{query}");
        };
        check("a=1&b=%20", Some("a=1&b=%20"), Some("a=1&b=%20"));
        check("a=1&token=geheim&b=2", Some("a=1&token=[masked]&b=2"), Some("a=1&b=2"));
        check("tok%65n=geheim", Some("tok%65n=[masked]"), None);
        check("token", Some("token=[masked]"), None);
        check("tokens=1", Some("tokens=1"), Some("tokens=1"));
    }

    #[test]
    fn event_ids_ascend_within_a_millisecond_and_when_the_clock_is_set_back() {
        let times = (0..5000).map(|_| 1_700_000_000_000).chain([1_600_000_000_000, 1_700_000_000_001]);
        let ids: Vec<EventId> = times.map(EventId::at).collect();
        assert!(ids.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(ids.iter().all(|id| id.0.get_version_num() == 7 && id.0.get_variant() == uuid::Variant::RFC4122));
        let now = Clock::system().now().wall_ms;
        assert!(EventId::at(now).0.get_timestamp().is_some_and(|at| at.to_unix().0 * 1000 + 1000 > now.unsigned_abs()));
    }

    #[test]
    fn chunks_keep_their_bytes() {
        let mut chunks = Chunks::default();
        chunks.push(Bytes::from_static(b"ab"));
        chunks.push(Bytes::new());
        chunks.push(Bytes::from_static(b"c"));
        assert_eq!((chunks.len(), chunks.to_bytes()), (3, Bytes::from_static(b"abc")));
        assert_eq!(chunks.contiguous(), b"abc");
        assert_eq!(chunks.pieces().count(), 1);
    }

    #[test]
    fn mapped_addresses_fold_and_v6_counts_per_64() {
        let client = |ip: &str| Client::new(ip.parse().expect("a test address"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_eq!(client("2001:db8::1").key, client("2001:db8::2").key);
        assert_ne!(client("2001:db8::1").key, client("2001:db8:0:1::1").key);
    }
}
