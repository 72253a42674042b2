//! `/api/v1/pair/{route}`: arms a route for the secret that its provider hands over. The secret itself is never in an answer.

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::AdminState;
use crate::pair::Status;

#[derive(Deserialize)]
pub(super) struct How {
    /// Keep the secrets that the route has.
    #[serde(default)]
    add: bool,
}

/// `POST`: waits for a secret from now on, for ten minutes. 409 where the route's `secret` is not `"paired"`.
pub(super) async fn arm(State(state): State<AdminState>, Path(route): Path<String>, Query(how): Query<How>) -> Response {
    match (state.pairable)(&route) {
        None => unknown(&route),
        Some(found) if !found.takes_secret => {
            let why = format!("the route {route} takes no secret by handshake: that needs `secret = \"paired\"` and a provider that hands one over");
            (StatusCode::CONFLICT, Json(json!({ "error": why }))).into_response()
        }
        Some(_) => {
            state.pairings.arm(&route, how.add, state.clock.mono());
            told(&state, &route)
        }
    }
}

/// `GET`: how it stands.
pub(super) async fn status(State(state): State<AdminState>, Path(route): Path<String>) -> Response {
    told(&state, &route)
}

/// `DELETE`: waits no longer.
pub(super) async fn cancel(State(state): State<AdminState>, Path(route): Path<String>) -> Response {
    state.pairings.cancel(&route);
    told(&state, &route)
}

fn told(state: &AdminState, route: &str) -> Response {
    let Some(found) = (state.pairable)(route) else { return unknown(route) };
    let status = state.pairings.status(route, state.clock.mono());
    let (left, in_force) = match status {
        Status::Waiting { left } => (Some(left.as_secs()), None),
        Status::Paired { in_force } => (None, Some(in_force)),
        Status::Idle | Status::Expired => (None, None),
    };
    Json(json!({
        "route": route,
        "state": status.code(),
        "seconds_left": left,
        "in_force": in_force,
        "file": state.pairings.path(route).display().to_string(),
        "give_back": found.shows_secret,
    }))
    .into_response()
}

fn unknown(route: &str) -> Response {
    (StatusCode::NOT_FOUND, Json(json!({ "error": format!("there is no route {}", route.escape_debug()) }))).into_response()
}
