//! Outcome or refusal to HTTP. Every status that the gate itself chooses stands in this file. Pure.
//!
//! Refusals are `application/problem+json` (RFC 9457) with `type`, `title`, `status`, `reason`, `event_id`; every answer carries
//! `Hooklatch-Event-Id`. Nothing here tells a stranger what would help forging: the detail stays in the audit line.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS},
};
use http_body_util::Full;
use serde::Serialize;

use crate::{
    event::EventId,
    outcome::{Answer, Ending, Outcome},
    reject::{Extra, Reason, Reject},
};

/// Names the event over all its attempts and copies.
pub(crate) const EVENT_ID: HeaderName = HeaderName::from_static("hooklatch-event-id");
/// Says that the answer is the stored one of an earlier copy.
pub(crate) const DUPLICATE: HeaderName = HeaderName::from_static("hooklatch-duplicate");

/// The status of a reason. A filter's own choice among 400 to 499 and 503 is in [`Extra::Filter`].
pub(crate) const fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::BadRequest | Reason::BadTarget | Reason::QueryNotSigned | Reason::NotJson => StatusCode::BAD_REQUEST,
        Reason::SignatureMissing
        | Reason::SignatureMalformed
        | Reason::SignatureMismatch
        | Reason::TimestampMissing
        | Reason::TimestampStale
        | Reason::TimestampFuture
        | Reason::TokenInvalid
        | Reason::ClaimsInvalid => StatusCode::UNAUTHORIZED,
        Reason::IpNotAllowed | Reason::ClientCertNotAllowed => StatusCode::FORBIDDEN,
        Reason::NoRoute => StatusCode::NOT_FOUND,
        Reason::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Reason::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
        Reason::InFlight | Reason::Duplicate => StatusCode::CONFLICT,
        Reason::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::UnsupportedMediaType | Reason::ContentEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Reason::ExpectationFailed => StatusCode::EXPECTATION_FAILED,
        Reason::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        Reason::SchemaInvalid => StatusCode::UNPROCESSABLE_ENTITY,
        Reason::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Reason::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Reason::FilterRejected => StatusCode::BAD_REQUEST,
        Reason::FilterFailed => StatusCode::INTERNAL_SERVER_ERROR,
        Reason::UpstreamUnreachable | Reason::UpstreamInvalid | Reason::UpstreamRedirect => StatusCode::BAD_GATEWAY,
        Reason::Overloaded | Reason::BreakerOpen | Reason::QueueFull | Reason::StoreFailed | Reason::NoDestination | Reason::KeysUnavailable => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Reason::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// Seconds that a 503 or 409 asks the sender to wait where the refusal itself does not say.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    event_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pointers: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter_reason: Option<&'a str>,
}

/// The answer to an accepted request.
pub(crate) fn outcome(outcome: Outcome, id: EventId) -> Response<Full<Bytes>> {
    let Answer { status, headers, body } = outcome.answer;
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response.headers_mut().insert(EVENT_ID, event_id(id));
    if outcome.ending == Ending::Duplicate {
        response.headers_mut().insert(DUPLICATE, HeaderValue::from_static("true"));
    }
    if outcome.ending == Ending::Challenge {
        // It holds what a stranger may have sent: no browser is to guess a page in it, and nobody is to keep it.
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// The answer to a refused one.
pub(crate) fn refusal(reject: &Reject, id: EventId) -> Response<Full<Bytes>> {
    let (status, filter_reason) = match &reject.extra {
        Extra::Filter { status, reason } => {
            (StatusCode::from_u16(*status).unwrap_or(self::status(reject.reason)), Some(reason.as_str()).filter(|r| !r.is_empty()))
        }
        _ => (self::status(reject.reason), None),
    };
    let pointers = match &reject.extra {
        Extra::Pointers(pointers) => Some(pointers.as_slice()),
        _ => None,
    };
    let problem = Problem {
        r#type: format!("urn:hooklatch:reason:{}", reject.reason.code()),
        title: reject.reason.title(),
        status: status.as_u16(),
        reason: reject.reason.code(),
        event_id: id.to_string(),
        pointers,
        filter_reason,
    };
    let mut response = problem_response(status, &problem, id);
    let headers = response.headers_mut();
    match &reject.extra {
        Extra::RetryAfter(wait) => retry_after(headers, *wait),
        Extra::Limit { wait, policy, quota, window } => {
            retry_after(headers, *wait);
            // draft-ietf-httpapi-ratelimit-headers: structured fields; nothing is left, `t` seconds until more.
            set(headers, "ratelimit", format!("\"{policy}\";r=0;t={}", seconds(*wait)));
            set(headers, "ratelimit-policy", format!("\"{policy}\";q={quota};w={}", seconds(*window)));
        }
        Extra::Allow(methods) => set(headers, ALLOW.as_str(), methods.clone()),
        Extra::None | Extra::Challenge(_) | Extra::Pointers(_) | Extra::Filter { .. } => {
            if status == StatusCode::SERVICE_UNAVAILABLE {
                retry_after(headers, DEFAULT_RETRY_AFTER);
            }
        }
    }
    if status == StatusCode::UNAUTHORIZED {
        let scheme = match &reject.extra {
            Extra::Challenge(scheme) => *scheme,
            _ => "Signature",
        };
        set(headers, WWW_AUTHENTICATE.as_str(), format!("{scheme} realm=\"webhook\""));
    }
    response
}

/// A refusal for a provider that takes none with a body.
pub(crate) fn bare(mut refusal: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    *refusal.body_mut() = Full::default();
    refusal.headers_mut().remove(CONTENT_TYPE);
    refusal
}

/// The answer when the gate itself failed in a way that it has no word for.
pub(crate) fn internal(id: EventId) -> Response<Full<Bytes>> {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    let problem = Problem {
        r#type: "about:blank".to_owned(),
        title: "Internal Server Error",
        status: status.as_u16(),
        reason: "",
        event_id: id.to_string(),
        pointers: None,
        filter_reason: None,
    };
    problem_response(status, &problem, id)
}

fn problem_response(status: StatusCode, problem: &Problem<'_>, id: EventId) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(problem).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(EVENT_ID, event_id(id));
    response
}

fn event_id(id: EventId) -> HeaderValue {
    let mut buffer = uuid::Uuid::encode_buffer();
    HeaderValue::from_str(id.0.as_hyphenated().encode_lower(&mut buffer)).expect("hexadecimal digits and hyphens are a header value")
}

/// Whole seconds, rounded up, at least one: a sender told to wait zero seconds would come back at once.
fn seconds(span: Duration) -> u64 {
    (span.as_secs() + u64::from(span.subsec_nanos() > 0)).max(1)
}

fn retry_after(headers: &mut HeaderMap, wait: Duration) {
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds(wait)));
}

fn set(headers: &mut HeaderMap, name: &'static str, value: String) {
    // Method names and numbers are always header values; anything else is left out rather than sent wrong.
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn body(response: Response<Full<Bytes>>) -> serde_json::Value {
        let mut body = response.into_body();
        let frame = futures_util::FutureExt::now_or_never(body.frame()).flatten();
        let bytes = frame.and_then(Result::ok).and_then(|f| f.into_data().ok()).expect("a full body");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    #[test]
    fn every_reason_has_a_problem_and_its_fields() {
        let id = EventId::new();
        for reason in Reason::ALL {
            let response = refusal(&Reject::new(*reason, "the detail"), id);
            let status = response.status();
            assert_eq!(status, super::status(*reason));
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
            assert_eq!(response.headers()[EVENT_ID], id.to_string());
            assert_eq!(response.headers().contains_key(WWW_AUTHENTICATE), status == 401, "{reason}");
            assert!(status != 503 || response.headers().contains_key(RETRY_AFTER), "{reason}");
            let problem = body(response);
            assert_eq!(problem["reason"], reason.code());
            assert_eq!(problem["status"], status.as_u16());
            assert!(!problem.to_string().contains("the detail"), "the detail is for the operator");
        }
    }

    #[test]
    fn the_reference_names_every_end_with_its_status() {
        let reference = include_str!("../docs/reasons.md");
        let rows = |code: &str| reference.lines().filter(|line| line.starts_with(&format!("| `{code}` |"))).collect::<Vec<_>>();
        for reason in Reason::ALL {
            let status = super::status(*reason).as_u16();
            let right = format!("| `{reason}` | {status} |");
            assert!(rows(reason.code()).iter().any(|row| row.starts_with(&right)), "docs/reasons.md does not say {right}");
        }
        for code in Ending::ALL.iter().map(|ending| ending.code()).chain(crate::listen::Fault::ALL.iter().map(|fault| fault.code())) {
            assert!(!rows(code).is_empty(), "docs/reasons.md does not say {code}");
        }
    }

    #[test]
    fn limits_say_when_to_come_back() {
        let extra = Extra::Limit { wait: Duration::from_millis(1200), policy: "ip", quota: 10, window: Duration::from_secs(60) };
        let response = refusal(&Reject::new(Reason::RateLimited, "").with(extra), EventId::new());
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()["ratelimit"], "\"ip\";r=0;t=2");
        assert_eq!(response.headers()["ratelimit-policy"], "\"ip\";q=10;w=60");
    }
}
