//! `/api/v1`: what the page shows, as JSON.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Extension, Path, Query, State},
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    AdminState, Shared,
    places::{Place, Trust},
};
use crate::{
    deliver::inspector::{self, Seen},
    observe::audit::{query_names, rfc3339},
};

/// Live streams that may be open at once.
pub(super) const STREAMS: usize = 16;
/// How often a quiet stream shows that it lives.
const ALIVE: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
pub(super) struct Since {
    /// Only what came after this number; 0: all that is kept.
    #[serde(default)]
    after: u64,
}

// -- the inspector --

/// An event in the list: without headers and body.
#[derive(Serialize)]
struct Summary<'a> {
    number: u64,
    id: &'a str,
    received: String,
    route: &'a str,
    provider: Option<&'a str>,
    verified: &'a str,
    event_type: Option<&'a str>,
    delivery_id: Option<&'a str>,
    client: &'a str,
    method: &'a str,
    path: &'a str,
    attempt: u32,
    duplicate: bool,
    body_bytes: usize,
}

impl<'a> Summary<'a> {
    fn of(seen: &'a Seen) -> Self {
        Self {
            number: seen.number,
            id: &seen.id,
            received: rfc3339(seen.received_ms),
            route: &seen.route,
            provider: seen.provider.as_deref(),
            verified: seen.verified,
            event_type: seen.event_type.as_deref(),
            delivery_id: seen.delivery_id.as_deref(),
            client: &seen.client,
            method: &seen.method,
            path: &seen.path,
            attempt: seen.attempt,
            duplicate: seen.duplicate,
            body_bytes: seen.body_bytes,
        }
    }
}

/// An event whole; credentials were masked when it was taken in.
#[derive(Serialize)]
struct Detail<'a> {
    #[serde(flatten)]
    summary: Summary<'a>,
    /// Names of the parameters only: a value may be a token.
    query: Option<String>,
    headers: &'a [(String, String)],
    body: &'a str,
    /// The body is longer than what is kept of it.
    truncated: bool,
}

impl<'a> Detail<'a> {
    fn of(seen: &'a Seen) -> Self {
        let query = seen.query.as_deref().map(query_names);
        Self { summary: Summary::of(seen), query, headers: &seen.headers, body: &seen.body, truncated: seen.body_bytes > inspector::BODY }
    }
}

/// `GET /api/v1/inspector/events?after=N`: what `builtin:inspector` received, oldest first, without headers and bodies.
pub(super) async fn events(State(state): State<AdminState>, Query(since): Query<Since>) -> Response {
    let events = state.inspector.list(since.after);
    let last = events.last().map_or(since.after, |event| event.number);
    let events: Vec<_> = events.iter().map(|event| Summary::of(event)).collect();
    Json(json!({ "last": last, "events": events })).into_response()
}

/// `GET /api/v1/inspector/events/{id}`: one of them whole.
pub(super) async fn event(State(state): State<AdminState>, Path(id): Path<String>) -> Response {
    match state.inspector.get(&id) {
        Some(event) => Json(Detail::of(&event)).into_response(),
        None => (StatusCode::NOT_FOUND, Json(json!({ "error": "this event is not kept here; the inspector keeps the last 100" }))).into_response(),
    }
}

// -- decisions, status, policy --

#[derive(Serialize)]
struct Numbered<'a> {
    seq: u64,
    line: &'a RawValue,
}

/// `GET /api/v1/decisions?after=N`: the last 200 audit lines, oldest first, each with its number.
pub(super) async fn decisions(State(state): State<AdminState>, Query(since): Query<Since>) -> Response {
    let kept = state.decisions.list(since.after);
    let last = kept.last().map_or(since.after, |(seq, _)| *seq);
    let lines: Vec<_> = kept.iter().filter_map(|(seq, line)| Some(Numbered { seq: *seq, line: serde_json::from_str(line).ok()? })).collect();
    Json(json!({ "last": last, "decisions": lines })).into_response()
}

/// `GET /api/v1/status`: version, readiness, and what was counted since the start.
pub(super) async fn status(State(state): State<AdminState>) -> Response {
    let now = rfc3339(state.clock.now().wall_ms);
    let overview = state.metrics.overview();
    Json(json!({ "version": env!("CARGO_PKG_VERSION"), "now": now, "readiness": state.readiness.report(), "counted": overview })).into_response()
}

/// `GET /api/v1/policy`: the policy in force, without secrets.
pub(super) async fn policy(State(state): State<AdminState>) -> Response {
    Json((state.policy)()).into_response()
}

/// `POST /api/v1/reload`: loads the policy file anew. 422 with every problem where it is refused; the one before then goes on serving.
pub(super) async fn reload(State(state): State<AdminState>) -> Response {
    match (state.reload)().await {
        Ok(said) => Json(said).into_response(),
        Err(problems) => (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "error": "the policy is refused", "problems": problems }))).into_response(),
    }
}

// -- the live stream --

struct Live {
    shared: Shared,
    events: tokio::sync::watch::Receiver<u64>,
    decisions: tokio::sync::watch::Receiver<u64>,
    first: bool,
    _permit: OwnedSemaphorePermit,
    _trust: Trust,
}

/// `GET /api/v1/live`: server-sent events that say which numbers are the newest; what they stand for is fetched with `after`.
pub(super) async fn live(State(shared): State<Shared>, Extension(place): Extension<Place>) -> Response {
    let Ok(permit) = Arc::clone(&shared.streams).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": format!("{STREAMS} live streams are open already") }))).into_response();
    };
    let (events, decisions) = (shared.state.inspector.subscribe(), shared.state.decisions.watch());
    let live = Live { shared, events, decisions, first: true, _permit: permit, _trust: place.trust() };
    let stream = stream::unfold(live, |mut live| async move {
        if !std::mem::take(&mut live.first) {
            tokio::select! {
                changed = live.events.changed() => changed.ok()?,
                changed = live.decisions.changed() => changed.ok()?,
                () = super::stopped(&mut live.shared.stopping) => return None,
            }
            // Many changes at once are one message.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let data = json!({ "events": *live.events.borrow_and_update(), "decisions": *live.decisions.borrow_and_update() });
        Some((Ok::<_, Infallible>(Event::default().event("newest").data(data.to_string())), live))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(ALIVE)).into_response()
}
