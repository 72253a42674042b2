//! Receivers that speak HTTP/1.1 or HTTP/2: one exchange, all of it inside the destination's timeout.
//!
//! The request is rebuilt from the event, never passed on as it came; the answer is read whole, bounded, and handed back. A request
//! is sent once. It is repeated only where nothing of it can have been acted upon, or, once and unless `repeat = false`, where a
//! connection that was used before ended without a byte of an answer: the receiver closed it as idle while the request was under way.

use std::{
    borrow::Cow,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version, header::CONTENT_LENGTH, uri::PathAndQuery};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::{
    Failure, Phase,
    balance::{Balance, Health},
    headers::{self, Rule},
    pool::{Connection, OpenError, Pool},
    settings,
};
use crate::{
    clock::Clock,
    egress::{self, Target},
    event::{Chunks, Credentials, Event, Verification},
    limit::{Limit, within},
    outcome::Answer,
    verify::{cases, sign::Wishes},
};

/// A destination of one or several receivers.
pub(super) struct Http {
    endpoints: Vec<Arc<Endpoint>>,
    /// With several receivers only.
    balance: Option<Arc<Mutex<Balance>>>,
    keep_path: bool,
    keep_host: bool,
    headers: Vec<(http::HeaderName, HeaderValue)>,
    strip_credentials: bool,
    max_response: usize,
    repeat: bool,
    timeout: Duration,
    signing: Option<settings::Signing>,
}

/// One receiver.
struct Endpoint {
    target: Target,
    /// HTTP/2 without asking.
    prior_knowledge: bool,
    pool: Arc<Pool>,
    host: HeaderValue,
    /// `https://host:port`, for HTTP/2.
    origin: String,
    path: String,
    query: Option<String>,
    basic: Option<HeaderValue>,
    /// The target where nothing of the event is appended to it.
    fixed: Option<PathAndQuery>,
}

impl Http {
    /// Fails where TLS cannot be set up: the system's roots are read here.
    pub(super) fn open(settings: &settings::Http, of: &settings::Settings) -> Result<Self, String> {
        let alpn: &[&[u8]] = match settings.http2 {
            None => &[b"h2", b"http/1.1"],
            Some(true) => &[b"h2"],
            Some(false) => &[b"http/1.1"],
        };
        let any_tls = settings.addresses.iter().any(|address| matches!(address.place, settings::Place::Tcp { tls: true, .. }));
        let config = match any_tls.then(|| settings.tls.config(alpn)) {
            Some(Ok(config)) => Some(Arc::new(config)),
            Some(Err(why)) => return Err(format!("TLS cannot be set up: {why}")),
            None => None,
        };
        let endpoints = settings.addresses.iter().map(|address| endpoint(settings, address, config.as_ref()).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            balance: (endpoints.len() > 1).then(|| Arc::new(Mutex::new(Balance::new(endpoints.len())))),
            endpoints,
            keep_path: settings.keep_path,
            keep_host: settings.keep_host,
            headers: settings.headers.clone(),
            strip_credentials: settings.strip_credentials,
            max_response: settings.max_response,
            repeat: settings.repeat,
            timeout: of.timeout,
            signing: match &of.sign {
                settings::Sign::By(signing) => Some(signing.clone()),
                settings::Sign::AsItCame | settings::Sign::Unchecked => None,
            },
        })
    }

    /// Sends the event and reads the whole answer before the limit, which is that of `timeout`.
    pub(super) async fn send(&self, event: &Event, strip_credentials: bool, attempt: u32, limit: Limit) -> Result<Answer, Failure> {
        let Some(balance) = &self.balance else {
            return self.exchange(&self.endpoints[0], event, strip_credentials, attempt, limit).await;
        };
        let mut tried = 0_u64;
        let mut last = None;
        loop {
            let picked = lock(balance).pick(tried, Clock::system().mono());
            let Some(pick) = picked else {
                return Err(last.unwrap_or_else(|| Failure::Unreachable { why: "no receiver is left to try".to_owned(), sent: false }));
            };
            tried |= 1 << pick.peer;
            if let Some(at) = pick.knock {
                self.knock(balance, at);
            }
            let mut turn = Turn { balance, peer: pick.peer, health: Health::Unknown };
            let ended = self.exchange(&self.endpoints[pick.peer], event, strip_credentials, attempt, Limit::until(&limit)).await;
            turn.health = match &ended {
                Ok(_) | Err(Failure::Redirect { .. } | Failure::Invalid { .. }) => Health::Answered,
                Err(Failure::Unreachable { .. } | Failure::TimedOut { phase: Phase::Connecting, .. }) => Health::Unreachable,
                Err(Failure::TimedOut { .. }) => Health::TimedOut,
                Err(Failure::Busy | Failure::Crowded | Failure::Unsendable { .. } | Failure::Unsigned { .. }) => Health::Unknown,
            };
            drop(turn);
            match ended {
                // Nothing was sent: the next one may have it.
                Err(failure @ Failure::Unreachable { sent: false, .. }) => last = Some(failure),
                ended => return ended,
            }
        }
    }

    /// Tries a receiver that is due again with a connection of its own; no request waits for it.
    fn knock(&self, balance: &Arc<Mutex<Balance>>, at: usize) {
        let (endpoint, balance) = (Arc::clone(&self.endpoints[at]), Arc::clone(balance));
        tokio::spawn(async move {
            let opened = Connection::open(&endpoint.target, endpoint.prior_knowledge).await.ok();
            lock(&balance).knocked(at, opened.is_some(), Clock::system().mono());
            if let Some(connection) = opened {
                endpoint.pool.put(connection, Limit::default());
            }
        });
    }

    async fn exchange(&self, endpoint: &Endpoint, event: &Event, strip_credentials: bool, attempt: u32, mut limit: Limit) -> Result<Answer, Failure> {
        let timed_out = |phase| Failure::TimedOut { after: self.timeout, phase };
        let mut reused = endpoint.pool.take();
        loop {
            let (mut connection, fresh) = match reused.take() {
                Some((connection, kept)) => {
                    limit.go_on_with(kept);
                    (connection, false)
                }
                // Rare and large: boxed, so that every other request's future stays small.
                None => match within(&mut limit, Box::pin(Connection::open(&endpoint.target, endpoint.prior_knowledge)).as_mut()).await {
                    Some(Ok(connection)) => (connection, true),
                    Some(Err(OpenError::Connect(why))) => return Err(Failure::Unreachable { why: why.to_string(), sent: false }),
                    Some(Err(OpenError::Handshake(why))) => {
                        return Err(Failure::Unreachable { why: format!("{}: {}", endpoint.target, chain(&why)), sent: false });
                    }
                    None => return Err(timed_out(Phase::Connecting)),
                },
            };
            let request = self.request(endpoint, event, strip_credentials, attempt, connection.is_h2())?;
            let sent = within(&mut limit, pin!(connection.send(request))).await;
            match sent {
                None => {
                    if connection.is_h2() {
                        endpoint.pool.forget_h2();
                    }
                    return Err(timed_out(Phase::Waiting));
                }
                Some(Ok(response)) => {
                    let read = within(&mut limit, pin!(self.read(response, &connection))).await;
                    return match read {
                        None => Err(timed_out(Phase::Reading)),
                        Some(Ok(answer)) => {
                            if fresh || !connection.is_h2() {
                                endpoint.pool.put(connection, limit);
                            }
                            Ok(answer)
                        }
                        Some(Err(failure)) => Err(failure),
                    };
                }
                Some(Err(mut failed)) => {
                    if connection.is_h2() {
                        // It is shared: others must not come upon it again.
                        endpoint.pool.forget_h2();
                    }
                    let never_sent = failed.take_message().is_some();
                    let why = failed.into_error();
                    let ended_idle = !connection.has_received() && !why.is_parse() && !was_reset(&why);
                    if !fresh && (never_sent || (ended_idle && self.repeat)) {
                        continue;
                    }
                    return Err(self.failed(endpoint, &connection, &why, never_sent));
                }
            }
        }
    }

    fn failed(&self, endpoint: &Endpoint, connection: &Connection, why: &hyper::Error, never_sent: bool) -> Failure {
        if connection.has_overflowed() {
            return Failure::Invalid { why: "too much came before its head was complete: interim answers without end".to_owned() };
        }
        if why.is_parse() || connection.has_received() || was_reset(why) {
            return Failure::Invalid { why: chain(why) };
        }
        Failure::Unreachable { why: format!("{}: the connection ended without an answer: {}", endpoint.target, chain(why)), sent: !never_sent }
    }

    fn request(&self, endpoint: &Endpoint, event: &Event, strip_credentials: bool, attempt: u32, h2: bool) -> Result<Request<Chunks>, Failure> {
        let strip_credentials = self.strip_credentials || strip_credentials;
        let mut target = self.target(endpoint, event, strip_credentials)?;
        let kept = if self.keep_host { event.host.as_deref() } else { None };
        let host = match kept.map(HeaderValue::from_str) {
            Some(Ok(host)) => Cow::Owned(host),
            _ => Cow::Borrowed(&endpoint.host),
        };
        let rule = Rule { host: (!h2).then_some(host.as_ref()), basic: endpoint.basic.as_ref(), own: &self.headers, strip_credentials, attempt };
        let mut headers = headers::outgoing(event, &rule);
        let origin = || match kept {
            Some(host) => Cow::Owned(format!("{}://{host}", endpoint.origin.split("://").next().unwrap_or("http"))),
            None => Cow::Borrowed(&*endpoint.origin),
        };
        if let Some(signing) = &self.signing {
            (target, headers) = signed(signing, event, &origin(), &target, headers)?;
        }
        let uri = if h2 {
            let origin = origin();
            Uri::try_from(format!("{origin}{target}")).map_err(|_| Failure::Unsendable { why: "the target cannot be written as a URL".to_owned() })?
        } else {
            Uri::from(target)
        };
        let mut request = Request::new(event.body.clone());
        *request.method_mut() = event.method.clone();
        *request.uri_mut() = uri;
        *request.version_mut() = if h2 { Version::HTTP_2 } else { Version::HTTP_11 };
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// The destination's path with what the route's `*` matched, or the path as it came; both queries.
    fn target(&self, endpoint: &Endpoint, event: &Event, strip_credentials: bool) -> Result<PathAndQuery, Failure> {
        let query = if strip_credentials { event.query_without(Credentials::Stripped) } else { event.query.as_deref().map(Cow::Borrowed) };
        let rest = event.rest.as_deref().map(|rest| rest.trim_start_matches('/')).filter(|rest| !rest.is_empty());
        if let Some(fixed) = endpoint.fixed.as_ref().filter(|_| !self.keep_path && rest.is_none() && query.is_none()) {
            return Ok(fixed.clone());
        }
        let mut text = String::with_capacity(endpoint.path.len() + event.path.len() + query.as_ref().map_or(0, |query| query.len()) + 8);
        if self.keep_path {
            text.push_str(&event.path);
        } else {
            text.push_str(&endpoint.path);
            if let Some(rest) = rest {
                if !text.ends_with('/') {
                    text.push('/');
                }
                text.push_str(rest);
            }
        }
        for (query, mark) in [(endpoint.query.as_deref(), '?'), (query.as_deref(), if endpoint.query.is_some() { '&' } else { '?' })] {
            if let Some(query) = query {
                text.push(mark);
                text.push_str(query);
            }
        }
        PathAndQuery::try_from(text).map_err(|_| Failure::Unsendable { why: "the path cannot be written as a target".to_owned() })
    }

    async fn read(&self, response: Response<Incoming>, connection: &Connection) -> Result<Answer, Failure> {
        let (mut parts, mut body) = response.into_parts();
        let status = parts.status;
        if status.is_redirection() {
            return Err(Failure::Redirect { status });
        }
        if !(200..=599).contains(&status.as_u16()) {
            return Err(Failure::Invalid { why: format!("it answered with status {}", status.as_u16()) });
        }
        let too_large = || Failure::Invalid { why: format!("its answer is larger than {} bytes (`max_response`)", self.max_response) };
        if body.size_hint().lower() > self.max_response as u64 {
            return Err(too_large());
        }
        let mut first = Bytes::new();
        let mut more = BytesMut::new();
        while !body.is_end_stream() {
            let Some(frame) = body.frame().await else { break };
            connection.progress();
            // Trailers go no further.
            let Ok(data) = frame.map_err(|why| Failure::Invalid { why: chain(&why) })?.into_data() else { continue };
            if first.len() + more.len() + data.len() > self.max_response {
                return Err(too_large());
            }
            if first.is_empty() {
                first = data;
            } else {
                more.extend_from_slice(&data);
            }
        }
        let body = if more.is_empty() {
            first
        } else {
            let mut whole = BytesMut::with_capacity(first.len() + more.len());
            whole.extend_from_slice(&first);
            whole.extend_from_slice(&more);
            whole.freeze()
        };
        parts.headers.remove(CONTENT_LENGTH);
        headers::incoming(&mut parts.headers);
        Ok(Answer { status, headers: parts.headers, body })
    }
}

/// The target and the headers as the receiver's own check wants them, at this moment.
fn signed(signing: &settings::Signing, event: &Event, origin: &str, target: &PathAndQuery, headers: HeaderMap) -> Result<(PathAndQuery, HeaderMap), Failure> {
    if event.verification == Verification::None {
        // `check` refuses such a policy: nobody vouches for what nobody proved.
        return Err(Failure::Unsigned { why: "an event that was not verified is never signed".to_owned() });
    }
    let mut request =
        cases::Request { method: event.method.clone(), base: origin.to_owned(), target: target.as_str().to_owned(), headers, body: event.body.clone() };
    let wishes = Wishes { id: event.id.to_string(), event_type: event.event_type.clone(), now_ms: Clock::system().now().wall_ms, ..Wishes::default() };
    signing.signer.sign(&mut request, &signing.others, &wishes).map_err(|why| Failure::Unsigned { why })?;
    let target = PathAndQuery::try_from(request.target).map_err(|_| Failure::Unsendable { why: "the path cannot be written as a target".to_owned() })?;
    Ok((target, request.headers))
}

/// A request in flight to one of several receivers; tells the balance how it ended, also when it is dropped.
struct Turn<'b> {
    balance: &'b Mutex<Balance>,
    peer: usize,
    health: Health,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(self.balance).ended(self.peer, self.health, Clock::system().mono());
    }
}

fn endpoint(settings: &settings::Http, address: &settings::Address, config: Option<&Arc<rustls::ClientConfig>>) -> Result<Endpoint, String> {
    let mut scheme = "http";
    let target = match &address.place {
        settings::Place::Unix(path) => Target::Unix(path.clone()),
        settings::Place::Tcp { host, port, tls } => {
            let tls = match config.filter(|_| *tls) {
                Some(config) => Some(egress::tls(Arc::clone(config), host)?),
                None => None,
            };
            if tls.is_some() {
                scheme = "https";
            }
            Target::Tcp { host: host.clone(), port: *port, tls }
        }
    };
    let written = match &address.query {
        Some(query) => format!("{}?{query}", address.path),
        None => address.path.clone(),
    };
    Ok(Endpoint {
        // Over TLS the handshake decides.
        prior_knowledge: settings.http2 == Some(true),
        target,
        pool: Pool::new(settings.idle_timeout),
        host: HeaderValue::from_str(&address.authority).map_err(|_| "the URL's host cannot be sent as Host".to_owned())?,
        origin: format!("{scheme}://{}", address.authority),
        path: address.path.clone(),
        query: address.query.clone(),
        basic: address.basic.clone(),
        fixed: PathAndQuery::try_from(written).ok(),
    })
}

/// An HTTP/2 stream that the receiver itself ended, for a reason other than that it never looked at it.
fn was_reset(why: &hyper::Error) -> bool {
    use std::error::Error as _;
    let h2 = why.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    h2.is_some_and(|h2| h2.is_reset() && h2.reason() != Some(h2::Reason::REFUSED_STREAM))
}

/// The message with its causes.
fn chain(why: &hyper::Error) -> String {
    let mut text = why.to_string();
    let mut cause = std::error::Error::source(why);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

fn lock(balance: &Mutex<Balance>) -> std::sync::MutexGuard<'_, Balance> {
    // Its changes are whole before anything can panic.
    balance.lock().unwrap_or_else(PoisonError::into_inner)
}
