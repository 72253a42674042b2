//! The way of one request, a line per step. Each step takes what the step before it made; none can be skipped.

use std::{borrow::Cow, sync::Arc};

use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_TYPE, Entry},
};
use tokio::sync::Semaphore;

use crate::{
    app::Gate,
    capture::live,
    choose::{Chosen, Unmatched},
    client,
    clock::Mono,
    condition::Scope,
    deliver,
    event::{Call, CallBody, Chunks, Client, Conn, Event, EventId},
    filter::{self, Verdict},
    guard::{self, Admitted},
    observe::{audit::Line, events, metrics::Replay},
    outcome::{Answer, Ending, Outcome},
    policy::{Policy, Route},
    receive,
    reject::{Extra, Reason, Reject},
    replay::{self, Claim, Claimed},
    route::Match,
    validate,
    verify::{Facts, Greeting, Reply, Signed, cases::Request, challenge},
};

/// What is told of a request, filled in as it walks.
pub(crate) struct Trail {
    pub(crate) line: Line,
    /// The route that took it.
    pub(crate) route: Option<Arc<Route>>,
    pub(crate) started: Mono,
    /// Why an event that goes on would have been refused by its head, where refused events are kept.
    pub(crate) refused: Option<Reject>,
}

/// Walks one request from its head to its answer.
pub(crate) async fn run(gate: &Gate, policy: &Policy, mut call: Box<Call>, trail: &mut Trail) -> Result<Outcome, Reject> {
    let client = client::identify(&policy.clients, &call.conn, &mut call.head.headers)?;
    trail.line.client_ip = Some(client.ip);
    let matched = policy.table.find(&call.head, server_name(&call.conn), |index| is_handshake(&policy.routes[index], &call.head))?;
    let route = trail.enter(&policy.routes[matched.index]);
    let admitted = guard::admit(&route.guards, &client, &call.conn, &call.head, call.started, |reason| route.enforce.covers(reason))?;
    let received = match receive_and_verify(gate, policy, &route, &client, matched.handshake, call, trail).await? {
        Arrived::Handshake(reply) => return handshake(gate, &route, reply, trail).await,
        Arrived::Event(received) => received,
    };
    let event = event(&route, client, admitted, matched, received, trail);
    let mut event = meter(&route, event, trail)?;
    let claimed = match claim(gate, &route, &event, trail).await? {
        Claim::Done(stored) => return Ok(duplicate(&stored)),
        Claim::Mine(claimed) => claimed,
    };
    event.event.id = trail.claimed(&claimed);
    deliver(gate, &route, event, claimed, trail).await
}

/// The refusal while the audit file cannot be written and the policy says that nothing goes unrecorded.
pub(crate) fn unaudited() -> Reject {
    Reject::new(Reason::Overloaded, "the audit file cannot be written, and `on_error` is \"refuse\"")
}

fn server_name(conn: &Conn) -> Option<&str> {
    conn.tls.as_ref().and_then(|tls| tls.server_name.as_deref())
}

/// A request whose whole body is there, and what is known of its sender. `signed` comes from `verify` alone.
struct Received {
    id: EventId,
    received_ms: i64,
    conn: Arc<Conn>,
    head: http::request::Parts,
    body: Chunks,
    signed: Signed,
    /// A handshake that nobody signs, for the receiver to answer.
    handshake: bool,
}

/// What came: an event, or a handshake with its answer.
#[expect(clippy::large_enum_variant, reason = "the usual case must not allocate")]
enum Arrived {
    Event(Received),
    Handshake(Reply),
}

/// Whether the head is that of a handshake of the route's provider, with exactly its parameters.
fn is_handshake(route: &Route, head: &http::request::Parts) -> bool {
    route.verify.heads_handshake(&facts("", head), &route.query)
}

fn facts<'a>(base: &'a str, head: &'a http::request::Parts) -> Facts<'a> {
    Facts { method: &head.method, base, target: head.uri.path_and_query().map_or("/", |target| target.as_str()), headers: &head.headers }
}

/// Judges the proof: the head before the body, the body as it arrives. `only_handshake`: the route takes the method for nothing else.
async fn receive_and_verify(
    gate: &Gate,
    policy: &Policy,
    route: &Route,
    client: &Client,
    only_handshake: bool,
    call: Box<Call>,
    trail: &mut Trail,
) -> Result<Arrived, Reject> {
    let Call { id, started, conn, head, body } = *call;
    let base = base(policy, &conn, &head);
    let facts = facts(&base, &head);
    let armed = route.verify.takes_secret() && gate.pairings.armed(&route.name, started.mono);
    let prepared = route.verify.prepare(&facts, started.wall_ms);
    let greeting = route.verify.asked(&facts, &route.query, armed);
    let mut body = Coming::Body(body);
    if greeting == Greeting::Head || (greeting == Greeting::Body && prepared.is_err()) {
        let Coming::Body(incoming) = body else { unreachable!("nothing was read yet") };
        // Boxed, so that the future of a delivery stays small.
        let (mut chunks, reply) = Box::pin(greeted(gate, route, client, only_handshake, armed, &facts, incoming, prepared.as_ref().err(), trail)).await?;
        match reply {
            Some(reply) if !route.verify.forwards_handshakes() => return Ok(Arrived::Handshake(reply)),
            Some(_) => {
                let signed = route.verify.unverified(&facts, &mut chunks);
                trail.signed(&signed);
                return Ok(Arrived::Event(Received { id, received_ms: started.wall_ms, conn, head, body: chunks, signed, handshake: true }));
            }
            None => body = Coming::Read(chunks),
        }
    }
    let unsigned = match &prepared {
        // The query of a handshake was judged when the route was found.
        Ok(_) if !route.verify.is_none() && !only_handshake => route.verify.unsigned_query(&facts, &route.query),
        _ => None,
    };
    let unsigned = unsigned.map(|name| Reject::new(Reason::QueryNotSigned, format!("`{}` is not in `query`", name.escape_debug())));
    // Where refused events are kept, one that its head alone refuses is read to its end nevertheless, as far as it is kept.
    let refused = gate.refused.room().and_then(|room| Some((room, prepared.as_ref().err().or(unsigned.as_ref())?.clone())));
    let judged = trail.judge_proof(route, client, prepared).and_then(|feed| trail.judge(route, unsigned.map_or(Ok(()), Err)).map(|_| feed));
    let mut feed = match (judged, refused) {
        (Ok(feed), None) => feed,
        (Ok(feed), Some((_, why))) => {
            trail.refused = Some(why);
            feed
        }
        (Err(told), None) => return Err(told),
        (Err(told), Some((room, why))) => {
            let limits = receive::Limits { body: (room as u64).min(route.body.body), ..route.body };
            let mut held = gate.budget.reserve(0)?;
            let body = match body {
                Coming::Body(body) => Box::pin(receive::body(body, &limits, &mut |bytes| held.grow(bytes), &mut |_| {})).await.ok(),
                Coming::Read(chunks) => Some(chunks),
            };
            keep(gate, policy, route, client, (id, started.wall_ms), &facts, body.as_ref(), &why, false);
            return Err(told);
        }
    };
    let mut held = gate.budget.reserve(0)?;
    let mut reserve = |bytes| held.grow(bytes);
    let mut body = match (body, &mut feed) {
        (Coming::Body(body), Some(feed)) => receive::body(body, &route.body, &mut reserve, &mut |bytes| route.verify.update(feed, bytes)).await?,
        (Coming::Body(body), None) => receive::body(body, &route.body, &mut reserve, &mut |_| {}).await?,
        (Coming::Read(chunks), feed) => {
            if let Some(feed) = feed {
                chunks.pieces().for_each(|piece| route.verify.update(feed, piece));
            }
            reserve(chunks.len() as u64)?;
            chunks
        }
    };
    body.hold(held);
    trail.line.body_bytes = body.len() as u64;
    if let Some(want) = feed.as_ref().and_then(|feed| route.verify.wants(feed, &facts, &mut body, started.wall_ms)) {
        // Boxed, so that the future of a request whose keys are at hand stays small.
        Box::pin(want.fetch()).await;
    }
    let now = gate.clock.now();
    let signed = match feed {
        Some(feed) => {
            let proof = route.verify.finish(feed, &facts, &mut body, now.wall_ms);
            let refused = gate.refused.room().and_then(|_| proof.as_ref().err().cloned());
            let judged = trail.judge_proof(route, client, proof);
            if let Some(why) = refused {
                keep(gate, policy, route, client, (id, started.wall_ms), &facts, Some(&body), &why, judged.is_ok());
            }
            judged?
        }
        None => None,
    };
    if let Some(why) = trail.refused.take() {
        keep(gate, policy, route, client, (id, started.wall_ms), &facts, Some(&body), &why, true);
    }
    let signed = match signed {
        Some(signed) => {
            if let Some(label) = &signed.secret {
                route.metrics.verified(label, now.wall_ms);
            }
            signed
        }
        None => route.verify.unverified(&facts, &mut body),
    };
    trail.signed(&signed);
    if signed.secret.is_some() {
        let answered = route.verify.answer(&facts, &mut body, Some(&signed), &route.query, armed, now.wall_ms);
        match answered.map_err(|why| trail.refused_proof(route, client, why))? {
            Some(reply) if !route.verify.forwards_handshakes() => return Ok(Arrived::Handshake(reply)),
            None if only_handshake => return Err(not_allowed(route)),
            Some(_) | None => {}
        }
    } else if only_handshake {
        return Err(not_allowed(route));
    }
    Ok(Arrived::Event(Received { id, received_ms: started.wall_ms, conn, head, body, signed, handshake: false }))
}

/// A body, unless it was read already.
enum Coming {
    Body(CallBody),
    Read(Chunks),
}

/// Reads what may be a handshake that nobody signs, and says what it is answered with. `refused`: what its head says of it as a delivery.
#[expect(clippy::too_many_arguments, reason = "a step of `receive_and_verify`, apart so that its future is")]
async fn greeted(
    gate: &Gate,
    route: &Route,
    client: &Client,
    only_handshake: bool,
    armed: bool,
    facts: &Facts<'_>,
    body: CallBody,
    refused: Option<&Reject>,
    trail: &mut Trail,
) -> Result<(Chunks, Option<Reply>), Reject> {
    let mut held = gate.budget.reserve(0)?;
    // A handshake is short. What the route only observes is read as any delivery.
    let limits = if route.enforce.verify && refused.is_some() { route.body.at_most(challenge::MAX_BODY) } else { route.body };
    let received = receive::body(body, &limits, &mut |bytes| held.grow(bytes), &mut |_| {}).await;
    let mut body = match (received, refused) {
        (Err(why), Some(head)) if why.reason == Reason::BodyTooLarge => return Err(trail.refused_proof(route, client, head.clone())),
        (received, _) => received?,
    };
    body.hold(held);
    trail.line.body_bytes = body.len() as u64;
    let answered = route.verify.answer(facts, &mut body, None, &route.query, armed, gate.clock.now().wall_ms);
    match answered.map_err(|why| trail.refused_proof(route, client, why))? {
        None if only_handshake => Err(not_allowed(route)),
        reply => Ok((body, reply)),
    }
}

/// The refusal of a method that the route takes for handshakes only.
fn not_allowed(route: &Route) -> Reject {
    let methods: Vec<&str> = route.methods.iter().map(http::Method::as_str).collect();
    Reject::new(Reason::MethodNotAllowed, "the route takes this method for its provider's handshake only").with(Extra::Allow(methods.join(", ")))
}

/// Answers a handshake; a secret that came by it is kept first.
async fn handshake(gate: &Gate, route: &Route, reply: Reply, trail: &mut Trail) -> Result<Outcome, Reject> {
    if let Some(secret) = reply.secret {
        gate.pairings.take(&route.name, secret, gate.clock.mono()).await?;
    }
    trail.line.detail = format!("the handshake `{}`", reply.name).into();
    let mut headers: HeaderMap = reply.headers.into_iter().collect();
    if let Some(content_type) = reply.content_type {
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    }
    Ok(Outcome { ending: Ending::Challenge, answer: Answer { status: reply.status, headers, body: reply.body } })
}

/// Keeps a refused event for whoever asks why.
#[expect(clippy::too_many_arguments, reason = "all of it is at hand where an event is refused, and nothing else has use for it")]
fn keep(
    gate: &Gate,
    policy: &Policy,
    route: &Route,
    client: &Client,
    (id, received_ms): (EventId, i64),
    facts: &Facts<'_>,
    body: Option<&Chunks>,
    why: &Reject,
    observed: bool,
) {
    let room = gate.refused.room().unwrap_or(0);
    let body = body.filter(|body| body.len() <= room);
    gate.refused.keep(live::Refusal {
        id: id.to_string(),
        route: &route.name,
        client: client.ip,
        received_ms,
        why,
        observed,
        request: Request {
            method: facts.method.clone(),
            base: facts.base.to_owned(),
            target: facts.target.to_owned(),
            headers: facts.headers.clone(),
            body: body.cloned().unwrap_or_default(),
        },
        whole: body.is_some(),
        knows_url: policy.public_url.is_some(),
    });
}

/// Scheme, host and port of the URL that the sender was given.
fn base<'p>(policy: &'p Policy, conn: &Conn, head: &http::request::Parts) -> Cow<'p, str> {
    match &policy.public_url {
        Some(url) => Cow::Borrowed(url),
        None => {
            let host =
                head.uri.authority().map(http::uri::Authority::as_str).or_else(|| head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()));
            Cow::Owned([scheme(conn), "://", host.unwrap_or_default()].concat())
        }
    }
}

fn scheme(conn: &Conn) -> &'static str {
    if conn.tls.is_some() { "https" } else { "http" }
}

/// An event with what its sender's proof covers.
struct Proven {
    /// Boxed: it is handed from step to step.
    event: Box<Event>,
    signed: Signed,
    /// A handshake that nobody signs: it is no event, so that nothing of the route's rules for events is asked of it.
    handshake: bool,
}

impl Proven {
    /// Whether it may spend verified limits and claim a key: its sender was verified, or the route asks for no proof. An event that a
    /// route only observes may not: a forger must not be able to use up an event's one place.
    fn counts(&self, route: &Route) -> bool {
        self.signed.secret.is_some() || route.verify.is_none()
    }
}

fn event(route: &Route, client: Client, admitted: Admitted, matched: Match, received: Received, trail: &mut Trail) -> Proven {
    let Received { id, received_ms, conn, mut head, body, signed, handshake } = received;
    for name in &route.credentials {
        if let Entry::Occupied(mut lines) = head.headers.entry(name) {
            // Filters, the inspector and exports mask what is marked so.
            lines.iter_mut().for_each(|value| value.set_sensitive(true));
        }
    }
    trail.observed(admitted.would_refuse);
    let event = Box::new(Event {
        id,
        route: route.name.clone(),
        provider: signed.provider.clone(),
        verification: signed.verification,
        secret_label: signed.secret.clone(),
        event_type: signed.event_type.clone(),
        delivery_id: signed.delivery_id.clone(),
        received_ms,
        client,
        client_cert: admitted.cert,
        scheme: scheme(&conn),
        host: matched.host,
        path: head.uri.path().to_owned(),
        query: head.uri.query().map(str::to_owned),
        secret_params: route.credential_params.clone(),
        params: matched.params,
        rest: matched.rest,
        method: head.method,
        headers: head.headers,
        body,
        chosen: None,
        annotations: Vec::new(),
    });
    Proven { event, signed, handshake }
}

/// Limits keyed on verified facts; an event that was not verified spends none of them.
fn meter(route: &Route, mut proven: Proven, trail: &mut Trail) -> Result<Proven, Reject> {
    if proven.counts(route) {
        let event = &mut proven.event;
        let observed = route.guards.meter(&event.headers, &mut event.body, |reason| route.enforce.covers(reason))?;
        trail.observed(observed);
    }
    Ok(proven)
}

/// Claims the event's key, where it has one.
async fn claim(gate: &Gate, route: &Route, proven: &Proven, trail: &mut Trail) -> Result<Claim, Reject> {
    let Proven { event, signed, .. } = proven;
    let rule = route.replay.as_ref().filter(|_| proven.counts(route));
    let keyed = rule.and_then(|rule| Some((rule, rule.key(signed.replay.as_ref().map(|key| &key.digest[..]), &event.headers)?)));
    let Some((rule, key)) = keyed else {
        trail.replay(route, Replay::Unkeyed);
        return Ok(Claim::Mine(Claimed::untracked(event.id)));
    };
    let claim = replay::claim(&gate.state, rule, &route.name, &key, event.id, gate.clock.now()).await;
    let result = match &claim {
        Ok(Claim::Mine(claimed)) if claimed.is_retry() => Replay::Retry,
        Ok(Claim::Mine(_)) => Replay::New,
        Ok(Claim::Done(stored)) => {
            trail.line.event_id = stored.event_id;
            Replay::Duplicate
        }
        Err(why) if why.reason == Reason::InFlight => Replay::InFlight,
        Err(why) if why.reason == Reason::Duplicate => Replay::Duplicate,
        Err(_) => Replay::Unavailable,
    };
    trail.replay(route, result);
    claim
}

/// The answer that the first copy got.
fn duplicate(stored: &replay::Stored) -> Outcome {
    let mut headers = HeaderMap::new();
    if let Some(content_type) = &stored.content_type {
        headers.insert(CONTENT_TYPE, content_type.clone());
    }
    let status = StatusCode::from_u16(stored.status).unwrap_or(StatusCode::OK);
    Outcome { ending: Ending::Duplicate, answer: Answer { status, headers, body: stored.body.clone() } }
}

/// Validates, filters, chooses and delivers; the claim ends here whatever happens.
async fn deliver(gate: &Gate, route: &Arc<Route>, proven: Proven, claimed: Claimed, trail: &mut Trail) -> Result<Outcome, Reject> {
    let Proven { event, handshake, .. } = proven;
    let event = if handshake { event } else { validate(gate, route, event, trail).await? };
    let (event, verdict) = if route.filters.is_empty() || handshake {
        (event, Verdict::Pass)
    } else {
        // Boxed, so that the future of a request without filters stays small.
        let filtered = Box::pin(filter::apply(&route.filters, *event, &|name| route.deliver.has(name), &route.metrics)).await?;
        trail.line.annotations.clone_from(&filtered.event.annotations);
        trail.line.event_type.clone_from(&filtered.event.event_type);
        (Box::new(filtered.event), filtered.verdict)
    };
    let (ending, answer) = match verdict {
        Verdict::Pass => match choose(gate, route, &event) {
            Chosen::Parcels(parcels) => {
                let branches = &mut trail.line.branches;
                let sent = deliver::send(parcels, &route.destinations, Arc::from(event), claimed, || route.acknowledge.answer(), &gate.afterwork, branches);
                return sent.await;
            }
            Chosen::Unmatched(Unmatched::Drop) => (Ending::Unmatched, route.acknowledge.answer()),
            Chosen::Unmatched(Unmatched::Reject) => {
                return Err(Reject::new(Reason::NoDestination, "no entry of `deliver` holds, and `unmatched` is \"reject\""));
            }
        },
        Verdict::Drop { filter, reason } => {
            trail.line.detail = format!("dropped by {filter}: {}", reason.unwrap_or_default()).into();
            (Ending::Dropped, route.acknowledge.answer())
        }
        Verdict::Respond { answer, .. } => (Ending::Responded, answer),
    };
    if answer.status.is_success() {
        claimed.done(&answer).await?
    } else {
        claimed.failed().await
    }
    Ok(Outcome { ending, answer })
}

/// Judges the payload: a large one beside the workers, so that their other requests do not wait for it.
async fn validate(gate: &Gate, route: &Arc<Route>, mut event: Box<Event>, trail: &mut Trail) -> Result<Box<Event>, Reject> {
    let takes_long = route.validate.takes_long(&event.headers, event.body.len());
    // The bytes behind a content coding are judged and dropped again; what travels on is what was signed.
    let mut decoded = gate.budget.reserve(0)?;
    let rules = Arc::clone(route);
    let judge = move || {
        let judged = validate::payload(&rules.validate, &event.headers, &mut event.body, rules.body.body, &mut |bytes| decoded.grow(bytes));
        (event, judged.map(drop))
    };
    let (event, judged) = if takes_long { Box::pin(beside(judge)).await } else { judge() };
    trail.judge(route, judged)?;
    Ok(event)
}

/// Runs what takes long on a thread of its own; as many at once as there may be cores for it. A panic goes on here.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    static PLACES: Semaphore = Semaphore::const_new(8);
    let _place = PLACES.acquire().await; // an error: it was closed, which it never is
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(why) if why.is_panic() => std::panic::resume_unwind(why.into_panic()),
        // The runtime ends, and this request with it.
        Err(_) => std::future::pending().await,
    }
}

/// The branches that the event takes. A condition that cannot be evaluated is counted.
fn choose(gate: &Gate, route: &Route, event: &Event) -> Chosen {
    let now = gate.clock.now();
    route.deliver.choose(event, &Scope::new(event, now), |to, why| events::condition_failed(&route.metrics, &route.name, to, why, now.mono))
}

impl Trail {
    fn enter(&mut self, route: &Arc<Route>) -> Arc<Route> {
        self.line.route = Some(route.name.clone());
        self.line.provider = route.verify.provider().cloned();
        self.route = Some(route.clone());
        route.clone()
    }

    /// Notes refusals of guards that only observe.
    fn observed(&mut self, refusals: impl IntoIterator<Item = Reject>) {
        self.line.would_refuse.extend(refusals.into_iter().map(|why| why.reason));
    }

    /// The value of a check that passed, nothing for one that the route only observes, else the refusal.
    fn judge<T>(&mut self, route: &Route, checked: Result<T, Reject>) -> Result<Option<T>, Reject> {
        let mut refusals = Vec::new();
        let judged = guard::observe(checked, |reason| route.enforce.covers(reason), &mut refusals);
        self.observed(refusals);
        judged
    }

    /// The same for the sender's proof, which stands or falls with `enforce.verify` whatever the reason. A flood of failures from one
    /// address is told to wait; what is refused stays refused where limits are only observed.
    fn judge_proof<T>(&mut self, route: &Route, client: &Client, proof: Result<T, Reject>) -> Result<Option<T>, Reject> {
        proof.map(Some).or_else(|why| {
            route.metrics.not_verified(why.reason);
            if !route.enforce.verify {
                self.line.would_refuse.push(why.reason);
                return Ok(None);
            }
            let told = route.guards.failed(client, why.clone());
            if told.reason == Reason::RateLimited && !route.enforce.rate_limit {
                self.line.would_refuse.push(told.reason);
                return Err(why);
            }
            Err(told)
        })
    }

    /// What to answer to a proof, or to a handshake's token, that is refused whatever the route enforces.
    fn refused_proof(&mut self, route: &Route, client: &Client, why: Reject) -> Reject {
        self.judge_proof(route, client, Err::<(), _>(why.clone())).err().unwrap_or(why)
    }

    fn signed(&mut self, signed: &Signed) {
        self.line.provider = signed.provider.clone();
        self.line.verified = signed.verification;
        self.line.secret = signed.secret.clone();
        self.line.event_type = signed.event_type.clone();
        self.line.delivery_id = signed.delivery_id.clone();
    }

    fn replay(&mut self, route: &Route, result: Replay) {
        route.metrics.replay(result);
        self.line.replay = Some(result.code());
    }

    /// The copies of an event carry the id of its first attempt.
    fn claimed(&mut self, claimed: &Claimed) -> EventId {
        self.line.event_id = claimed.event_id();
        claimed.event_id()
    }
}
