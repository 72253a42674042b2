//! Who may ask what: the Host and Origin of a request, the token, the cookie that stands for it. The decisions are pure.
//!
//! A page in the operator's browser can be made to send requests to this address (DNS rebinding, cross-site requests). So a request has to
//! name a host that we know, and one that tells its origin has to come from this very page.

use std::time::Duration;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::{Here, Rules, Shared, places::Place};
use crate::secret::Secret;

/// The cookie that stands for the token in a browser.
const COOKIE: &str = "hooklatch_admin";
/// How long a login lasts.
pub(super) const SESSION: Duration = Duration::from_secs(12 * 3600);

/// Nothing from elsewhere, no inline script or style, in no frame.
const CSP: &str =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

fn refuse(status: StatusCode, message: impl Into<String>) -> Response {
    (status, Json(json!({ "error": message.into() }))).into_response()
}

/// Refuses foreign hosts and origins.
pub(super) async fn host_and_origin(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let here = request.extensions().get::<Here>().copied().unwrap_or(Here { tls: false });
    match admit(request.method(), request.headers(), here, &shared.rules.load()) {
        Ok(()) => next.run(request).await,
        Err(message) => refuse(StatusCode::FORBIDDEN, message),
    }
}

/// Refuses requests without the token.
pub(super) async fn token(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let now_s = shared.state.clock.now().wall_ms / 1000;
    if knows_token(request.headers(), &shared.rules.load().token, now_s) {
        let _trust = request.extensions().get::<Place>().map(Place::trust);
        return next.run(request).await;
    }
    let mut answer = refuse(StatusCode::UNAUTHORIZED, "the admin token is missing or wrong; send it as `Authorization: Bearer TOKEN`");
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    answer
}

/// Headers that every answer carries.
pub(super) async fn headers(mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CSP),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // Not `no-referrer`: a browser would then send `Origin: null` with our own login form.
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}

/// Whether Host, Origin and Sec-Fetch-Site are those of our own page, or of no page at all.
fn admit(method: &Method, headers: &HeaderMap, here: Here, rules: &Rules) -> Result<(), String> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) else {
        return Err("one Host header is wanted".to_owned());
    };
    let name = host_name(host).to_ascii_lowercase();
    // An address cannot be rebound by anybody's DNS.
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok();
    if !address && name != "localhost" && !rules.allowed_hosts.contains(&name) {
        return Err(format!("the host `{}` is not known here; add it to `allowed_hosts` in [admin]", name.escape_debug()));
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let scheme = if here.tls { "https://" } else { "http://" };
        let own = origin.to_str().ok().and_then(|origin| origin.strip_prefix(scheme)).is_some_and(|from| from.eq_ignore_ascii_case(host));
        // Behind something that does TLS the scheme differs; the host then still has to be ours.
        let fronted = !here.tls && origin.to_str().ok().and_then(|origin| origin.strip_prefix("https://")).is_some_and(|from| from.eq_ignore_ascii_case(host));
        if !own && !fronted {
            return Err("requests of other origins are refused".to_owned());
        }
    }
    let safe = method == Method::GET || method == Method::HEAD;
    if !safe && headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return Err("requests of other sites are refused".to_owned());
    }
    Ok(())
}

fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) => name,
        _ => host,
    }
}

/// Whether a request carries the token itself, or the cookie of a login that still holds.
pub(super) fn knows_token(headers: &HeaderMap, token: &Secret, now_s: i64) -> bool {
    let bearer = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
        let (scheme, rest) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(rest)
    });
    if let Some(bearer) = bearer {
        return is_token(bearer, token);
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    cookies.filter_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('=')).any(|value| holds(value, token, now_s))
}

/// Compares in constant time; digests, so that lengths do not show either.
pub(super) fn is_token(given: &[u8], token: &Secret) -> bool {
    let digest = |bytes: &[u8]| mac(token, &[b"compare", bytes]);
    digest(given).ct_eq(&digest(token.expose())).into()
}

fn mac(token: &Secret, parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(token.expose()).expect("HMAC takes a key of any length");
    parts.iter().for_each(|part| {
        mac.update(part);
        mac.update(b"\0");
    });
    mac.finalize().into_bytes().into()
}

/// The cookie of a login: when it ends, and a MAC of that under the token. It dies with the token.
pub(super) fn cookie(token: &Secret, now_s: i64, tls: bool) -> String {
    let until = now_s + SESSION.as_secs() as i64;
    let proof = HEXLOWER.encode(&mac(token, &[b"session", until.to_string().as_bytes()]));
    let secure = if tls { "; Secure" } else { "" };
    format!("{COOKIE}={until}.{proof}; Path=/; Max-Age={}; HttpOnly; SameSite=Strict{secure}", SESSION.as_secs())
}

/// The cookie that ends a login.
pub(super) fn no_cookie() -> HeaderValue {
    HeaderValue::from_static("hooklatch_admin=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict")
}

fn holds(cookie: &str, token: &Secret, now_s: i64) -> bool {
    let Some((until, proof)) = cookie.split_once('.') else { return false };
    let right = HEXLOWER.encode(&mac(token, &[b"session", until.as_bytes()]));
    let genuine: bool = right.as_bytes().ct_eq(proof.as_bytes()).into();
    genuine && until.parse::<i64>().is_ok_and(|until| now_s < until)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Secret {
        Secret::new("admin", b"an admin token of some length".to_vec(), None)
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a test value"))).collect()
    }

    fn check(method: Method, pairs: &[(&'static str, &str)], tls: bool, admitted: bool) {
        let rules = Rules { allowed_hosts: vec!["gate.internal".into()], token: token(), tls: None };
        assert_eq!(admit(&method, &headers(pairs), Here { tls }, &rules).is_ok(), admitted, "{method} {pairs:?}");
    }

    #[test]
    fn hosts_and_origins() {
        for host in ["localhost:9900", "LOCALHOST", "127.0.0.1:9900", "[::1]:9900", "192.0.2.7", "gate.internal:9900"] {
            check(Method::GET, &[("host", host)], false, true);
        }
        for host in ["evil.example", "evil.example:9900", "localhost.evil.example", "127.0.0.1.evil.example", "", "gate.internal.", "x@localhost"] {
            check(Method::GET, &[("host", host)], false, false);
        }
        check(Method::GET, &[], false, false);
        let local = ("host", "localhost:9900");
        check(Method::POST, &[local, ("origin", "http://localhost:9900")], false, true);
        check(Method::POST, &[local, ("origin", "https://localhost:9900")], true, true);
        check(Method::POST, &[local, ("origin", "https://localhost:9900")], false, true);
        check(Method::POST, &[local, ("origin", "http://localhost:9900")], true, false);
        check(Method::POST, &[local, ("origin", "http://localhost:3000")], false, false);
        check(Method::POST, &[local, ("origin", "null")], false, false);
        check(Method::GET, &[local, ("origin", "http://evil.example")], false, false);
        check(Method::POST, &[local, ("sec-fetch-site", "cross-site")], false, false);
        check(Method::POST, &[local, ("sec-fetch-site", "same-site")], false, false);
        check(Method::POST, &[local, ("sec-fetch-site", "same-origin")], false, true);
        check(Method::GET, &[local, ("sec-fetch-site", "cross-site")], false, true);
    }

    #[test]
    fn two_hosts_are_refused() {
        let mut two = headers(&[("host", "localhost")]);
        two.append(header::HOST, HeaderValue::from_static("evil.example"));
        let rules = Rules { allowed_hosts: Vec::new(), token: token(), tls: None };
        assert!(admit(&Method::GET, &two, Here { tls: false }, &rules).is_err());
    }

    #[test]
    fn only_the_token_or_a_fresh_cookie_opens() {
        let knows = |pairs: &[(&'static str, &str)], now| knows_token(&headers(pairs), &token(), now);
        assert!(knows(&[("authorization", "Bearer an admin token of some length")], 0));
        assert!(knows(&[("authorization", "bearer an admin token of some length")], 0));
        for wrong in ["Bearer ", "Bearer", "Bearer an admin token of some lengt", "Basic an admin token of some length", "an admin token of some length"] {
            assert!(!knows(&[("authorization", wrong)], 0), "{wrong}");
        }
        let cookie = cookie(&token(), 1000, false);
        let pair = cookie.split(';').next().expect("the pair");
        let end = 1000 + SESSION.as_secs() as i64;
        assert!(knows(&[("cookie", pair)], 1000));
        assert!(knows(&[("cookie", &format!("a=b; {pair}"))], end - 1));
        assert!(!knows(&[("cookie", pair)], end));
        let later = pair.replacen(&end.to_string(), &(end + 1).to_string(), 1);
        assert!(!knows(&[("cookie", &later)], 1000), "a changed end is not signed");
        assert!(!knows(&[("cookie", "hooklatch_admin=99999999999.")], 0));
        assert!(!knows(&[], 0));
        let other = Secret::new("admin", b"another token".to_vec(), None);
        assert!(!knows_token(&headers(&[("cookie", pair)]), &other, 1000), "a login ends with its token");
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict") && !cookie.contains("Secure"));
    }
}
