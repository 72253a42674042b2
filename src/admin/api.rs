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

// -- refused events --

/// `GET /api/v1/refused?after=N`: the last events whose proof was refused, oldest first, without headers and bodies.
pub(super) async fn refused(State(state): State<AdminState>, Query(since): Query<Since>) -> Response {
    let kept = state.refused.list(since.after);
    let last = kept.last().map_or(since.after, |kept| kept.number);
    let events: Vec<_> = kept.iter().map(|kept| kept.summary()).collect();
    Json(json!({ "last": last, "events": events, "on": state.refused.room().is_some() })).into_response()
}

/// `GET /api/v1/refused/{id}`: one of them whole, credentials and signatures masked.
pub(super) async fn refused_event(State(state): State<AdminState>, Path(id): Path<String>) -> Response {
    match state.refused.get(&id) {
        Some(kept) => Json((state.shown)(&kept)).into_response(),
        None => not_kept(&state),
    }
}

fn not_kept(state: &AdminState) -> Response {
    let why = if state.refused.room().is_some() {
        "this event is not kept here, or no longer; `[admin] capture` says how many refused events are"
    } else {
        "this event is not kept here: refused events are kept where the policy says so, with `capture` in [admin]"
    };
    (StatusCode::NOT_FOUND, Json(json!({ "error": why }))).into_response()
}

/// `GET /api/v1/explanations/{id}`: why an event was refused. Of one whose request is not kept: what the inspector or its audit line knows.
pub(super) async fn explanation(State(state): State<AdminState>, Path(id): Path<String>) -> Response {
    if let Some(kept) = state.refused.get(&id) {
        let explain = state.explain.clone();
        return match tokio::task::spawn_blocking(move || explain(&kept)).await {
            Ok(Ok(told)) => Json(told).into_response(),
            Ok(Err(why)) => (StatusCode::CONFLICT, Json(json!({ "error": why }))).into_response(),
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "error": "explaining it failed: this is a defect, please report it" }))).into_response(),
        };
    }
    let line = state.decisions.list(0).into_iter().rev().find_map(|(_, line)| {
        let line: serde_json::Value = serde_json::from_str(&line).ok()?;
        (line["event_id"] == id.as_str()).then_some(line)
    });
    if let Some(line) = line.as_ref().filter(|line| line["outcome"] == "refused") {
        return Json(json!({
            "verdict": "reject", "event_id": id, "route": line["route"], "provider": line["provider"], "reason": line["reason"], "detail": line["detail"],
            "notes": ["its request is not kept, so this is what its audit line says: for more, set `capture` in [admin] and let it be sent again"],
        }))
        .into_response();
    }
    if let Some(seen) = state.inspector.get(&id) {
        return Json(json!({
            "verdict": "accept", "event_id": id, "route": seen.route, "provider": seen.provider, "proves": seen.verified, "delivery_id": seen.delivery_id,
            "event_type": seen.event_type, "secret": line.as_ref().map(|line| &line["secret"]), "notes": ["it was taken, and delivered to the inspector"],
        }))
        .into_response();
    }
    match line {
        Some(line) => Json(json!({
            "verdict": "accept", "event_id": id, "route": line["route"], "provider": line["provider"], "proves": line["verified"], "secret": line["secret"],
            "notes": [format!("it was taken: its outcome is {}", line["outcome"].as_str().unwrap_or("not known"))],
        }))
        .into_response(),
        None => not_kept(&state),
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
    Json(json!({ "version": env!("CARGO_PKG_VERSION"), "now": now, "readiness": state.readiness.report(), "counted": overview, "keeps_refused": state.refused.room().is_some() }))
    .into_response()
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
    refused: tokio::sync::watch::Receiver<u64>,
    first: bool,
    _permit: OwnedSemaphorePermit,
    _trust: Trust,
}

/// `GET /api/v1/live`: server-sent events that say which numbers are the newest; what they stand for is fetched with `after`.
pub(super) async fn live(State(shared): State<Shared>, Extension(place): Extension<Place>) -> Response {
    let Ok(permit) = Arc::clone(&shared.streams).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": format!("{STREAMS} live streams are open already") }))).into_response();
    };
    let (events, decisions, refused) = (shared.state.inspector.subscribe(), shared.state.decisions.watch(), shared.state.refused.subscribe());
    let live = Live { shared, events, decisions, refused, first: true, _permit: permit, _trust: place.trust() };
    let stream = stream::unfold(live, |mut live| async move {
        if !std::mem::take(&mut live.first) {
            tokio::select! {
                changed = live.events.changed() => changed.ok()?,
                changed = live.decisions.changed() => changed.ok()?,
                changed = live.refused.changed() => changed.ok()?,
                () = super::stopped(&mut live.shared.stopping) => return None,
            }
            // Many changes at once are one message.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let data = json!({ "events": *live.events.borrow_and_update(), "decisions": *live.decisions.borrow_and_update(), "refused": *live.refused.borrow_and_update() });
        Some((Ok::<_, Infallible>(Event::default().event("newest").data(data.to_string())), live))
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(ALIVE)).into_response()
}
