//! What the gate tells while it works: one function per event writes the log line and the metric, so that they cannot disagree.
//!
//! **How much is logged.** Every decision is in the audit file. In the log, a request that ended well is one `debug` line with the
//! target `hooklatch::request` (shown on a terminal, not in JSON unless asked for: at 30,000 requests a second a line each costs more
//! than the request). A refused one is one `info` line. What a stranger or a broken receiver can repeat at will is bounded to a few
//! lines a second; the next line that is written says how many were held back.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    net::SocketAddr,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tracing::{debug, error, info, warn};

use crate::{
    clock::{Mono, Now},
    event::EventId,
    listen::Fault,
    observe::{
        audit::{Audit, Decision, Line},
        metrics::{DestinationMetrics, FilterMetrics, Metrics, RouteMetrics},
    },
    problem::Problem,
    respond,
};

/// At most so many lines a second of one kind.
#[derive(Debug)]
pub(crate) struct Bounded {
    per_second: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    second: u64,
    said: u32,
    held_back: u64,
}

impl Bounded {
    pub(crate) const fn new(per_second: u32) -> Self {
        Self { per_second, state: Mutex::new(State { second: 0, said: 0, held_back: 0 }) }
    }

    /// Whether one more may be written now, and how many were held back since the last.
    pub(crate) fn allow(&self, now: Mono) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let second = now.0 / 1_000_000_000;
        if state.second != second {
            (state.second, state.said) = (second, 0);
        }
        if state.said < self.per_second {
            state.said += 1;
            Some(std::mem::take(&mut state.held_back))
        } else {
            state.held_back += 1;
            None
        }
    }
}

/// Refused and aborted requests in the log, a second.
static REFUSALS: Bounded = Bounded::new(20);
static ACCEPT: Bounded = Bounded::new(1);
static FAULTS: Bounded = Bounded::new(5);
static FILTER: Bounded = Bounded::new(10);
static DELIVERY: Bounded = Bounded::new(10);
static CONDITION: Bounded = Bounded::new(5);

// -- requests --

/// A request was decided: its metrics, its log line, its audit line.
pub(crate) fn decided(audit: &Audit, route: &RouteMetrics, line: Line, now: Mono) {
    let elapsed_ms = line.took.as_micros() as f64 / 1000.0;
    let (name, id) = (line.route.as_deref().unwrap_or_default(), line.event_id);
    let client = line.client_ip.or_else(|| line.peer.map(|peer| peer.ip()));
    match line.decision {
        Decision::Ended(ending) => {
            route.ended(ending, line.took);
            debug!(
                target: "hooklatch::request", route = name, client.ip = client.map(tracing::field::display), event = %id,
                r#type = line.event_type.as_deref(), outcome = ending.code(), status = line.status, elapsed_ms, "request"
            );
        }
        Decision::Refused(reason) => {
            route.refused(reason, line.took);
            if let Some(held_back) = REFUSALS.allow(now) {
                info!(
                    target: "hooklatch::request", route = name, client.ip = client.map(tracing::field::display), event = %id,
                    reject.code = reason.code(), status = line.status, detail = %Tame(&line.detail), elapsed_ms,
                    held_back = more(held_back), "request refused"
                );
            }
        }
        Decision::Aborted => {
            route.aborted(line.took);
            if let Some(held_back) = REFUSALS.allow(now) {
                info!(
                    target: "hooklatch::request", route = name, client.ip = client.map(tracing::field::display), event = %id,
                    detail = %Tame(&line.detail), elapsed_ms, held_back = more(held_back), "request aborted"
                );
            }
        }
    }
    line.would_refuse.iter().for_each(|reason| route.would_refuse(*reason));
    audit.push(&line);
}

/// A text that may hold a stranger's bytes: control characters are escaped, as the pretty form writes them as they are.
struct Tame<'a>(&'a str);

impl fmt::Display for Tame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { f.write_char(c) })
    }
}

/// A number for the log, where there is one.
fn more(held_back: u64) -> Option<u64> {
    (held_back > 0).then_some(held_back)
}

/// A condition could not be evaluated and its branch was taken; `entry` as in the policy.
pub(crate) fn condition_failed(route: &RouteMetrics, name: &str, entry: &str, why: &dyn fmt::Display, now: Mono) {
    route.condition_error(entry);
    if let Some(held_back) = CONDITION.allow(now) {
        warn!(route = name, entry, error = %why, held_back = more(held_back), "a condition could not be evaluated");
    }
}

// -- the way in --

/// The socket's accept failed, as when the process has no file descriptor left.
pub(crate) fn accept_failed(listen: SocketAddr, why: &std::io::Error, now: Mono) {
    if let Some(held_back) = ACCEPT.allow(now) {
        error!(%listen, error = %why, held_back = more(held_back), "a connection could not be accepted");
    }
}

/// A connection ended by its peer's fault before there was a request. What HTTP parsing refused is a refusal without a route, and
/// audited; the rest is counted.
pub(crate) fn connection_failed(audit: &Audit, unrouted: &RouteMetrics, metrics: &Metrics, peer: SocketAddr, fault: Fault, detail: &str, now: Now) {
    metrics.connection_fault(fault.code());
    if let Some(reason) = fault.reason() {
        let mut line = Line::new(EventId::new(), now.wall_ms, Decision::Refused(reason));
        line.peer = Some(peer);
        line.status = respond::status(reason).as_u16();
        line.detail = detail.to_owned().into();
        return decided(audit, unrouted, line, now.mono);
    }
    if let Some(held_back) = FAULTS.allow(now.mono) {
        debug!(client.ip = %peer.ip(), fault = fault.code(), error = detail, held_back = more(held_back), "a connection ended before its first request");
    }
}

// -- policy and life --

/// A policy serves from now on; `warnings` are what is weak in it.
pub(crate) fn policy_loaded(metrics: &Metrics, file: &Path, generation: u64, routes: usize, warnings: &[Problem]) {
    metrics.config_loaded(true);
    for warning in warnings {
        warn!(policy = %file.display(), "{warning}");
    }
    info!(policy = %file.display(), generation, routes, "policy loaded");
}

/// A changed policy has errors; the one before goes on serving.
pub(crate) fn policy_refused(metrics: &Metrics, file: &Path, problems: &[Problem]) {
    metrics.config_loaded(false);
    for problem in problems {
        error!(policy = %file.display(), "{problem}");
    }
    error!(policy = %file.display(), errors = problems.len(), "the changed policy is refused, the one before goes on serving");
}

/// A provider's published addresses were asked for and are in force; `change` counts what came and went.
pub(crate) fn ranges_fetched(provider: &str, networks: usize, change: Option<(usize, usize)>) {
    match change {
        Some((added, removed)) => info!(provider, networks, added, removed, "the provider's address ranges changed"),
        None => debug!(provider, networks, "the provider's address ranges are as they were"),
    }
}

/// They could not be fetched or are not believed: the ones before stay in force.
pub(crate) fn ranges_not_fetched(provider: &str, why: &str) {
    warn!(provider, "the provider's address ranges are not renewed, the ones before stay in force: {why}");
}

/// They are in force, but the next start will not know of them.
pub(crate) fn ranges_not_kept(provider: &str, why: &std::io::Error) {
    warn!(provider, "the provider's address ranges cannot be kept in the state directory: {why}");
}

/// The days left that were last told of a certificate, so that it is told once a day.
static CERTIFICATES: Mutex<BTreeMap<String, i64>> = Mutex::new(BTreeMap::new());

/// The certificates that are served from now on: name and Unix time in seconds at which each ends. May be called at any time again; one
/// that ends within 14 days is told of once a day.
pub(crate) fn certificates_loaded(metrics: &Metrics, ends: &[(String, i64)], wall_ms: i64) {
    metrics.set_certificates(ends.iter().map(|(name, at)| (name.as_str(), *at)));
    let mut told = CERTIFICATES.lock().unwrap_or_else(PoisonError::into_inner);
    told.retain(|name, _| ends.iter().any(|(served, _)| served == name));
    for (name, at) in ends {
        let days = (at - wall_ms / 1000).div_euclid(86_400);
        if days >= 14 || told.insert(name.clone(), days) == Some(days) {
            continue;
        }
        if days < 0 {
            error!(certificate = %name, days, "a certificate has expired; senders will refuse it");
        } else {
            warn!(certificate = %name, days, "a certificate ends soon");
        }
    }
}

/// The gate takes no new work and finishes what it has.
pub(crate) fn draining(in_flight: usize, most: Duration) {
    info!(in_flight, drain_timeout = %humantime::format_duration(most), "draining");
}

/// The gate ends; `left` requests were cut off.
pub(crate) fn drained(left: usize) {
    if left == 0 {
        info!("drained");
    } else {
        warn!(left, "the drain's time is over, requests are cut off");
    }
}

// -- what the gate leans on --

/// A filter's call failed; `why` is for its author.
pub(crate) fn filter_failed(metrics: &FilterMetrics, filter: &str, route: &str, event: EventId, kind: &'static str, why: &dyn fmt::Display, now: Mono) {
    metrics.error(kind);
    if let Some(held_back) = FILTER.allow(now) {
        warn!(filter, route, %event, kind, error = %why, held_back = more(held_back), "a filter failed");
    }
}

/// A filter failed too often and rests, or is tried again.
pub(crate) fn filter_quarantined(metrics: &FilterMetrics, filter: &str, now: bool) {
    metrics.quarantined(now);
    if now {
        error!(filter, "a filter failed too often and is quarantined; mend it and reload");
    } else {
        info!(filter, "a filter is called again");
    }
}

/// One attempt to deliver ended well.
pub(crate) fn delivered(metrics: &DestinationMetrics, destination: &str, event: EventId, status: Option<u16>, took: Duration) {
    metrics.attempt("ok");
    metrics.duration(took);
    debug!(destination, %event, upstream.status = status, elapsed_ms = took.as_micros() as f64 / 1000.0, "delivered");
}

/// One attempt to deliver failed: `result` is its word in `hooklatch_delivery_attempts_total`.
pub(crate) fn delivery_failed(
    metrics: &DestinationMetrics,
    destination: &str,
    event: EventId,
    result: &'static str,
    why: &dyn fmt::Display,
    took: Duration,
    now: Mono,
) {
    metrics.attempt(result);
    metrics.duration(took);
    if let Some(held_back) = DELIVERY.allow(now) {
        let elapsed_ms = took.as_micros() as f64 / 1000.0;
        warn!(destination, %event, result, error = %why, elapsed_ms, held_back = more(held_back), "delivery failed");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{clock::Clock, observe::setup::tests::captured, outcome::Ending, reject::Reason};

    #[test]
    fn lines_are_bounded_a_second_and_say_what_was_held_back() {
        let bounded = Bounded::new(2);
        let at = |ms: u64| Mono(ms * 1_000_000);
        let got: Vec<_> = [0, 1, 2, 3, 1000, 1001, 1002, 2000].into_iter().map(|ms| bounded.allow(at(ms))).collect();
        assert_eq!(got, [Some(0), Some(0), None, None, Some(2), Some(0), None, Some(1)]);
    }

    #[test]
    fn a_decision_is_counted_logged_and_audited_alike() {
        let clock = Clock::hand(0);
        let metrics = Metrics::with_clock("0", clock.clone());
        let audit = Audit::start(None, metrics.clone(), clock.clone()).expect("a thread");
        let route = metrics.route("github", "github", &["#1"]);
        let line = |decision| Line { route: Some(Arc::from("github")), ..Line::new(EventId::new(), 0, decision) };
        let log = captured("debug", || {
            decided(&audit, &route, line(Decision::Ended(Ending::Forwarded)), clock.mono());
            let mut refused = line(Decision::Refused(Reason::SignatureMismatch));
            refused.detail = "odd \u{1b}[31m detail\nof two lines".into();
            refused.would_refuse = vec![Reason::IpNotAllowed];
            decided(&audit, &route, refused, clock.mono());
            decided(&audit, &route, line(Decision::Aborted), clock.mono());
        });
        assert!(audit.flush(Duration::from_secs(30)));
        let text = metrics.encode();
        for outcome in ["forwarded", "refused", "aborted"] {
            assert!(text.contains(&format!("hooklatch_requests_total{{route=\"github\",outcome=\"{outcome}\"}} 1")), "{text}");
        }
        assert!(text.contains("hooklatch_would_refuse_total{route=\"github\",reason=\"ip_not_allowed\"} 1"), "{text}");
        assert_eq!(log.lines().count(), 3, "{log}");
        assert!(log.contains("reject.code=\"signature_mismatch\"") && !log.contains('\u{1b}'), "{log}");
        assert_eq!(audit.decisions().list(0).len(), 3);
    }

    #[test]
    fn a_policy_is_loaded_with_its_warnings() {
        let metrics = Metrics::with_clock("0", Clock::hand(0));
        let warnings = [Problem::warning("routes.a.verify", None, "anybody may send here")];
        let log = captured("info", || policy_loaded(&metrics, Path::new("p.toml"), 2, 1, &warnings));
        assert!(log.contains("routes.a.verify: anybody may send here") && log.contains("policy loaded"), "{log}");
        assert!(metrics.encode().contains("hooklatch_config_reloads_total{result=\"ok\"} 1"));
    }

    #[test]
    fn a_certificate_that_ends_is_told_once_a_day() {
        let metrics = Metrics::with_clock("0", Clock::hand(0));
        let days = |n: i64| n * 86_400;
        let ends = [("soon.pem".to_owned(), days(3) + 5), ("later.pem".to_owned(), days(90))];
        let log = captured("info", || {
            for minute in 0..2000 {
                certificates_loaded(&metrics, &ends, minute * 60_000);
            }
            certificates_loaded(&metrics, &ends, days(4) * 1000);
        });
        assert_eq!((log.matches("soon.pem").count(), log.matches("has expired").count(), log.matches("later.pem").count()), (4, 1, 0), "{log}");
    }

    #[test]
    fn a_flood_of_refusals_does_not_flood_the_log() {
        let clock = Clock::hand(0);
        clock.advance(Duration::from_secs(1000)); // a second that no other test uses
        let metrics = Metrics::with_clock("0", clock.clone());
        let audit = Audit::start(None, metrics.clone(), clock.clone()).expect("a thread");
        let route = metrics.unrouted();
        let line = || Line::new(EventId::new(), 0, Decision::Refused(Reason::NoRoute));
        let log = captured("info", || (0..5000).for_each(|_| decided(&audit, &route, line(), clock.mono())));
        assert!(log.lines().count() <= 20, "{log}");
        assert!(metrics.encode().contains("hooklatch_refusals_total{route=\"\",reason=\"no_route\"} 5000"));
    }
}
