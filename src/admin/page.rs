//! The page at `/`: its files, built in, and its login.

use axum::{
    body::Bytes,
    extract::{Extension, FromRequest, Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};

use super::{Here, Shared, access};

const INDEX: &str = include_str!("page/index.html");
const LOGIN: &str = include_str!("page/login.html");

/// Name, content type, text. They hold no secret and are open.
const ASSETS: &[(&str, &str, &str)] = &[
    ("app.js", "text/javascript; charset=utf-8", include_str!("page/app.js")),
    ("json.js", "text/javascript; charset=utf-8", include_str!("page/json.js")),
    ("login.js", "text/javascript; charset=utf-8", include_str!("page/login.js")),
    ("style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

fn html(text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
}

fn logged_in(shared: &Shared, headers: &HeaderMap) -> bool {
    access::knows_token(headers, &shared.rules.load().token, shared.state.clock.now().wall_ms / 1000)
}

/// `GET /`: the page, or the login form.
pub(super) async fn index(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    html(if logged_in(&shared, &headers) { INDEX } else { LOGIN })
}

/// `POST /login` with `token=…`: sets the cookie and goes to the page.
pub(super) async fn login(State(shared): State<Shared>, Extension(here): Extension<Here>, request: Request) -> Response {
    let body = match tokio::time::timeout(shared.limits.body, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => body,
        Ok(Err(why)) => return why.into_response(),
        Err(_) => return StatusCode::REQUEST_TIMEOUT.into_response(),
    };
    let given = form_urlencoded::parse(&body).find(|(name, _)| name == "token").map(|(_, value)| value.into_owned()).unwrap_or_default();
    let rules = shared.rules.load();
    if !access::is_token(given.trim().as_bytes(), &rules.token) {
        return Redirect::to("/?wrong").into_response();
    }
    let cookie = access::cookie(&rules.token, shared.state.clock.now().wall_ms / 1000, here.tls);
    let Ok(cookie) = HeaderValue::from_str(&cookie) else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
}

/// `POST /logout`: takes the cookie back.
pub(super) async fn logout() -> Response {
    ([(header::SET_COOKIE, access::no_cookie())], Redirect::to("/")).into_response()
}

/// `GET /assets/{name}`.
pub(super) async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => ([(header::CONTENT_TYPE, *kind), (header::CACHE_CONTROL, "no-cache")], *text).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
