//! One record per event key: claimed before delivery; done when every required branch is done, failed otherwise.
//!
//! A copy of a done event gets the first's answer and is not forwarded. A copy after a failure is delivered again: only the branches that
//! are not done yet, under the first attempt's event id. A copy of one in flight is refused, or waits. The key is what the sender signed;
//! where nothing is signed, a header that the policy names drops accidental doubles and protects from no attacker.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, HeaderName};

pub(crate) use crate::state::Stored;
use crate::{
    clock::Now,
    disk::Unavailable,
    event::EventId,
    outcome::Answer,
    reject::{Extra, Reason, Reject},
    section::Section,
    state::{Begun, Digest, End, Ended, OnStateError, State},
};

/// How long a key is remembered where no signed time limits a capture.
const REMEMBER: Duration = Duration::from_secs(30 * 86_400);
const MAX_REMEMBER: Duration = Duration::from_secs(366 * 86_400);
/// What the default adds to twice the tolerance: slow retries of the provider.
const MARGIN: Duration = Duration::from_secs(3600);
/// How long a copy waits for the first with `on_in_flight = "wait"`.
const WAIT: Duration = Duration::from_secs(60);
/// What a copy of an event in flight is told to wait.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Longest value of a `dedupe` header.
const DEDUPE_BYTES: usize = 512;

/// What a copy of a done event gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnDuplicate {
    /// The stored answer.
    #[default]
    Acknowledge,
    /// 409 `duplicate`.
    Reject,
}

/// What a copy gets while the first is being delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnInFlight {
    /// 409 `in_flight` with Retry-After.
    #[default]
    Refuse,
    /// It waits for the first's end: its answer, or after a failure a delivery of its own.
    Wait,
}

/// A route's `replay` settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// How long a done or failed event is remembered, from its end.
    pub(crate) remember: Duration,
    pub(crate) on_duplicate: OnDuplicate,
    pub(crate) on_in_flight: OnInFlight,
    /// The key's header where nothing is signed.
    pub(crate) dedupe: Option<HeaderName>,
}

/// How long a key is remembered by default: a signed attempt time is refused when it is older than `tolerance`, or further ahead, so a
/// capture lives twice as long; the hour beyond is for the provider's own retries. Without a signed time 30 days.
pub(crate) fn default_remember(tolerance: Option<Duration>) -> Duration {
    tolerance.map_or(REMEMBER, |tolerance| tolerance.saturating_mul(2).saturating_add(MARGIN))
}

/// Reads `replay` of a route. `None`: the route remembers nothing (`replay = false`).
///
/// `tolerance` is that of the signed attempt time, where the route's verification has one: a shorter memory is an error, as a captured
/// request would pass twice.
pub(crate) fn read(route: &Section<'_>, tolerance: Option<Duration>) -> Option<Rule> {
    let mut rule = Rule { remember: default_remember(tolerance), on_duplicate: OnDuplicate::default(), on_in_flight: OnInFlight::default(), dedupe: None };
    let Some(item) = route.item("replay") else { return Some(rule) };
    match item.as_bool() {
        Some(false) => return None,
        Some(true) => return Some(rule),
        None => {}
    }
    let Some(section) = item.section() else { return Some(rule) };
    if let Some(remember) = section.opt_duration("remember") {
        let shown = humantime::format_duration(remember);
        match tolerance.map(|tolerance| (tolerance, tolerance.saturating_mul(2))) {
            Some((tolerance, least)) if remember < least => section.problem(
                "remember",
                format!(
                    "ids are forgotten before their timestamps expire: `{shown}` is shorter than twice the tolerance of {}",
                    humantime::format_duration(tolerance)
                ),
                format!("set `remember` to {} or more", humantime::format_duration(least)),
            ),
            _ if remember < Duration::from_secs(1) => {
                section.problem("remember", format!("`{shown}` is shorter than 1s"), "to remember nothing, write `replay = false`");
            }
            _ if remember > MAX_REMEMBER => section.problem("remember", format!("`{shown}` is longer than 366d"), ""),
            _ => rule.remember = remember,
        }
    }
    rule.on_duplicate = section.choice("on_duplicate", &[("acknowledge", OnDuplicate::Acknowledge), ("reject", OnDuplicate::Reject)]).unwrap_or_default();
    rule.on_in_flight = section.choice("on_in_flight", &[("refuse", OnInFlight::Refuse), ("wait", OnInFlight::Wait)]).unwrap_or_default();
    if let Some(dedupe) = section.opt_section("dedupe") {
        if let Some(name) = dedupe.string("header") {
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) => rule.dedupe = Some(name),
                Err(_) => dedupe.problem("header", format!("`{name}` is not a header name"), "such as \"Idempotency-Key\""),
            }
        }
        dedupe.finish();
    }
    section.finish();
    Some(rule)
}

impl Rule {
    /// The key of an event: what the sender signed, else the header that `dedupe` names, else none. Pure.
    ///
    /// The header counts only when it stands once and is not empty; past 512 bytes it is no key.
    pub(crate) fn key<'a>(&self, signed: Option<&'a [u8]>, headers: &HeaderMap) -> Option<Cow<'a, [u8]>> {
        if let Some(signed) = signed {
            return Some(Cow::Borrowed(signed));
        }
        let name = self.dedupe.as_ref()?;
        let mut values = headers.get_all(name).iter();
        let value = values.next().filter(|value| !value.is_empty() && value.len() <= DEDUPE_BYTES)?;
        if values.next().is_some() {
            return None;
        }
        Some(Cow::Owned([name.as_str().as_bytes(), b":", value.as_bytes()].concat()))
    }
}

/// Whether this request is the one that delivers the event.
#[derive(Debug)]
pub(crate) enum Claim {
    Mine(Claimed),
    /// A copy of a done event: answer this, forward nothing.
    Done(Arc<Stored>),
}

/// Claims a key of a route for this request, or says why not: `in_flight`, `duplicate`, `store_failed`.
pub(crate) async fn claim(state: &State, rule: &Rule, route: &str, key: &[u8], fresh: EventId, now: Now) -> Result<Claim, Reject> {
    let digest = state.digest(route, key);
    let wait = rule.on_in_flight == OnInFlight::Wait;
    let mut now = now;
    let mut patience = None;
    loop {
        let begun = state.begin(digest, fresh, wait, now).await;
        let (event_id, earlier, after) = match begun {
            Ok(Begun::Fresh { after }) => (fresh, None, after),
            Ok(Begun::Again { event_id, attempts, done_branches, after }) => (event_id, Some(Earlier { attempts, done: done_branches }), after),
            Ok(Begun::Done(stored)) => {
                return match rule.on_duplicate {
                    OnDuplicate::Acknowledge => Ok(Claim::Done(stored)),
                    OnDuplicate::Reject => Err(Reject::new(Reason::Duplicate, format!("a copy of event {}, which is done", stored.event_id))),
                };
            }
            Ok(Begun::InFlight(first)) => return Err(in_flight(format!("a copy of event {first}, which is being delivered"))),
            Ok(Begun::Waiting(ended)) => {
                let patience = patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(WAIT)));
                tokio::select! {
                    () = ended => {}
                    () = patience => return Err(in_flight(format!("the first copy is still being delivered after {} s", WAIT.as_secs()))),
                }
                now = state.clock().now();
                continue;
            }
            Err(Unavailable) => return Err(unavailable(state)),
        };
        let ticket = Ticket { state: state.clone(), digest, remember: rule.remember, after, ended: None };
        return Ok(Claim::Mine(Claimed { event_id, earlier, results: Mutex::default(), ticket: Some(ticket) }));
    }
}

fn in_flight(detail: String) -> Reject {
    Reject::new(Reason::InFlight, detail).with(Extra::RetryAfter(RETRY_AFTER))
}

fn unavailable(state: &State) -> Reject {
    let detail = state.health().ready().err().unwrap_or_else(|| "too much waits for the state store's disk".to_owned());
    Reject::new(Reason::StoreFailed, detail).with(Extra::RetryAfter(RETRY_AFTER))
}

/// A claim that is held; ends as failed when it is dropped, by a cancelled task or a panic too.
///
/// Keep it with the delivery, not with the sender's connection: the sender's hang-up must not end what a receiver already works on.
pub(crate) struct Claimed {
    event_id: EventId,
    /// `None` for the first attempt.
    earlier: Option<Earlier>,
    results: Mutex<Vec<(Box<str>, bool)>>,
    /// `None` where there is no key.
    ticket: Option<Ticket>,
}

/// What became of the event when earlier copies of it came.
#[derive(Debug)]
struct Earlier {
    attempts: u16,
    /// The branches that are done.
    done: Vec<Box<str>>,
}

struct Ticket {
    state: State,
    digest: Digest,
    remember: Duration,
    after: u64,
    /// The record is with the writer: only the claim is left to be released.
    ended: Option<Ended>,
}

impl fmt::Debug for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claimed").field("event_id", &self.event_id).field("earlier", &self.earlier).field("tracked", &self.ticket.is_some()).finish()
    }
}

impl Claimed {
    /// For an event without a key, or one that was not verified: nothing is remembered.
    pub(crate) fn untracked(fresh: EventId) -> Self {
        Self { event_id: fresh, earlier: None, results: Mutex::default(), ticket: None }
    }

    /// The id to deliver under: the first attempt's.
    pub(crate) fn event_id(&self) -> EventId {
        self.event_id
    }

    /// Whether an earlier copy failed.
    pub(crate) fn is_retry(&self) -> bool {
        self.earlier.is_some()
    }

    /// Which attempt at the event this is, from 1. One that a crash cut short was never recorded, and is not counted.
    pub(crate) fn attempt(&self) -> u16 {
        self.earlier.as_ref().map_or(1, |earlier| earlier.attempts.saturating_add(1))
    }

    /// The branches that earlier copies have done.
    fn done_before(&self) -> impl Iterator<Item = &Box<str>> {
        self.earlier.iter().flat_map(|earlier| &earlier.done)
    }

    /// Whether an earlier copy has done this branch: it must not run again.
    pub(crate) fn branch_done(&self, name: &str) -> bool {
        self.done_before().any(|done| **done == *name)
    }

    /// Notes how a branch ended, as soon as it has; a branch that is not done again keeps its earlier success.
    pub(crate) fn record_branch(&self, name: &str, ok: bool) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        match results.iter_mut().find(|(known, _)| **known == *name) {
            Some(known) => known.1 = ok,
            None => results.push((name.into(), ok)),
        }
    }

    /// Every required branch is done; copies get `answer` (its body only up to 4 KiB).
    ///
    /// Waits for the fsync where `persist_within` is zero. An error means that the store failed: the sender must not hear that it is done,
    /// and its retry finds the record as soon as the store works again.
    pub(crate) async fn done(mut self, answer: &Answer) -> Result<(), Reject> {
        let (attempts, branches) = (self.attempt(), self.branches());
        let Some(ticket) = &mut self.ticket else { return Ok(()) };
        // Which branches are done matters after a failure only.
        let failed: Vec<_> = branches.into_iter().filter(|(_, ok)| !ok).collect();
        let written = ticket.end(self.event_id, attempts, &failed, Some(answer));
        let (state, ready) = (ticket.state.clone(), ticket.ended.as_ref().is_some_and(|ended| ended.ready));
        let durable = match written {
            // The claim is released after it, by the drop: a copy must not hear "done" before.
            Some(written) => written.await.is_ok(),
            None => ready,
        };
        drop(self);
        if durable || state.settings().on_error == OnStateError::Allow { Ok(()) } else { Err(unavailable(&state)) }
    }

    /// Some required branch is not done. Waits for the fsync where `persist_within` is zero.
    pub(crate) async fn failed(mut self) {
        let (attempts, branches) = (self.attempt(), self.branches());
        let Some(ticket) = &mut self.ticket else { return };
        if let Some(written) = ticket.end(self.event_id, attempts, &branches, None) {
            // The sender hears of a failure in any case.
            let _ = written.await;
        }
    }

    /// What is known of the branches: earlier successes stay.
    fn branches(&mut self) -> Vec<(Box<str>, bool)> {
        let mut branches = std::mem::take(self.results.get_mut().unwrap_or_else(PoisonError::into_inner));
        for done in self.done_before() {
            match branches.iter_mut().find(|(name, _)| name == done) {
                Some(known) => known.1 = true,
                None => branches.push((done.clone(), true)),
            }
        }
        branches
    }
}

impl Ticket {
    fn end(&mut self, event_id: EventId, attempts: u16, branches: &[(Box<str>, bool)], answer: Option<&Answer>) -> Option<crate::disk::Written> {
        let mut ended = self.state.record(self.digest, &End { event_id, attempts, branches, answer, remember: self.remember, after: self.after });
        let written = ended.written.take();
        self.ended = Some(ended);
        written
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let (attempts, branches) = (self.attempt(), self.branches());
        let Some(ticket) = &mut self.ticket else { return };
        if ticket.ended.is_none() {
            ticket.end(self.event_id, attempts, &branches, None);
        }
        if let Some(ended) = &ticket.ended {
            ticket.state.release(ticket.digest, ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderValue, StatusCode};

    use super::*;
    use crate::{
        clock::Clock,
        disk::model::Model,
        problem::Source,
        section::{Inputs, Reader},
        state::Settings,
    };

    const KEY: &[u8] = b"delivery-1";
    const WALL: i64 = 1_790_000_000_000;

    fn rule() -> Rule {
        Rule { remember: Duration::from_secs(3600), on_duplicate: OnDuplicate::Acknowledge, on_in_flight: OnInFlight::Refuse, dedupe: None }
    }

    fn settings(persist_within: Duration) -> Settings {
        Settings { dir: "model".into(), persist_within, on_error: OnStateError::Reject, max_records: 1000 }
    }

    fn open(model: &Model, clock: &Clock) -> State {
        open_with(model, clock, &settings(Duration::from_millis(5)))
    }

    fn open_with(model: &Model, clock: &Clock, settings: &Settings) -> State {
        State::open_on(Arc::new(model.clone()), settings, clock.clone(), Arc::new(|_| {})).expect("a sound disk opens")
    }

    async fn claim_key(state: &State, rule: &Rule, key: &[u8]) -> Result<Claim, Reject> {
        claim(state, rule, "github", key, EventId::new(), state.clock().now()).await
    }

    async fn mine(state: &State) -> Claimed {
        match claim_key(state, &rule(), KEY).await {
            Ok(Claim::Mine(claimed)) => claimed,
            other => panic!("not ours: {other:?}"),
        }
    }

    async fn reason(state: &State, rule: &Rule) -> Reason {
        claim_key(state, rule, KEY).await.expect_err("a refusal").reason
    }

    async fn stored(state: &State) -> Arc<Stored> {
        match claim_key(state, &rule(), KEY).await {
            Ok(Claim::Done(stored)) => stored,
            other => panic!("not done: {other:?}"),
        }
    }

    fn answer(body: &'static str) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Answer { status: StatusCode::CREATED, headers, body: Bytes::from_static(body.as_bytes()) }
    }

    fn bare() -> (Model, Clock, State) {
        let (model, clock) = (Model::new(), Clock::hand(WALL));
        let state = open(&model, &clock);
        (model, clock, state)
    }

    #[tokio::test]
    async fn of_fifty_copies_one_is_delivered() {
        let (_, _, state) = bare();
        let copies = (0..50).map(|_| {
            let state = state.clone();
            tokio::spawn(async move { claim_key(&state, &rule(), KEY).await })
        });
        let ends: Vec<_> = futures_util::future::join_all(copies).await.into_iter().map(|end| end.expect("no panic")).collect();
        assert_eq!(ends.iter().filter(|end| matches!(end, Ok(Claim::Mine(_)))).count(), 1);
        let refused = |end: &&Result<Claim, Reject>| matches!(end, Err(Reject { reason: Reason::InFlight, extra: Extra::RetryAfter(_), .. }));
        assert_eq!(ends.iter().filter(refused).count(), 49);
    }

    #[tokio::test]
    async fn a_copy_of_a_done_event_gets_its_answer() {
        let (_, _, state) = bare();
        let first = mine(&state).await;
        let id = first.event_id();
        first.done(&answer("made")).await.expect("the store works");
        for _ in 0..3 {
            let stored = stored(&state).await;
            assert_eq!((stored.event_id, stored.status, &stored.body[..]), (id, 201, &b"made"[..]));
            assert_eq!(stored.content_type, Some(HeaderValue::from_static("text/plain")));
            state.flush().await.expect("the store works");
        }
        let strict = Rule { on_duplicate: OnDuplicate::Reject, ..rule() };
        assert_eq!(reason(&state, &strict).await, Reason::Duplicate);
    }

    #[tokio::test]
    async fn a_copy_after_a_failure_runs_only_what_is_not_done() {
        let (model, clock, state) = bare();
        let first = mine(&state).await;
        let (id, first_attempt) = (first.event_id(), first.attempt());
        first.record_branch("billing", true);
        first.record_branch("bus", false);
        first.failed().await;
        let second = mine(&state).await;
        assert_eq!((second.event_id(), second.is_retry(), first_attempt, second.attempt()), (id, true, 1, 2));
        assert_eq!((second.branch_done("billing"), second.branch_done("bus"), second.branch_done("new")), (true, false, false));
        second.record_branch("bus", false);
        second.record_branch("new", true);
        drop(second);
        // It is in the file as well.
        state.flush().await.expect("the store works");
        drop(state);
        let state = open(&model.cut(0), &clock);
        let third = mine(&state).await;
        assert_eq!(third.attempt(), 3, "counted over a restart");
        assert_eq!((third.event_id(), third.branch_done("billing"), third.branch_done("bus"), third.branch_done("new")), (id, true, false, true));
        third.done(&answer("")).await.expect("the store works");
        assert_eq!(stored(&state).await.event_id, id);
    }

    #[tokio::test]
    async fn a_cancelled_task_and_a_panic_fail_the_claim() {
        let (_, _, state) = bare();
        let first = mine(&state).await;
        let id = first.event_id();
        let delivery = tokio::spawn(async move {
            let _held = first;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert_eq!(reason(&state, &rule()).await, Reason::InFlight);
        delivery.abort();
        assert!(delivery.await.expect_err("aborted").is_cancelled());
        let second = mine(&state).await;
        assert_eq!(second.event_id(), id);
        let delivery = tokio::spawn(async move {
            let _held = second;
            panic!("a test's panic");
        });
        assert!(delivery.await.expect_err("a panic").is_panic());
        assert_eq!(mine(&state).await.event_id(), id);
    }

    #[tokio::test]
    async fn waiting_copies_get_the_first_ones_answer_or_its_place() {
        let (_, _, state) = bare();
        let waiting = Rule { on_in_flight: OnInFlight::Wait, ..rule() };
        let first = mine(&state).await;
        let copies: Vec<_> = (0..10)
            .map(|_| {
                let (state, waiting) = (state.clone(), waiting.clone());
                tokio::spawn(async move {
                    match claim_key(&state, &waiting, KEY).await {
                        Ok(Claim::Mine(claimed)) => {
                            claimed.done(&answer("second")).await.expect("the store works");
                            "delivered".to_owned()
                        }
                        Ok(Claim::Done(stored)) => String::from_utf8_lossy(&stored.body).into_owned(),
                        Err(why) => why.to_string(),
                    }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        first.failed().await;
        let mut ends: Vec<String> = futures_util::future::join_all(copies).await.into_iter().map(|end| end.expect("no panic")).collect();
        ends.sort();
        assert_eq!(ends[0], "delivered");
        assert!(ends[1..].iter().all(|end| end == "second"), "{ends:?}");
    }

    #[tokio::test]
    async fn an_untracked_event_claims_nothing() {
        let (_, _, state) = bare();
        let claimed = Claimed::untracked(EventId::new());
        claimed.record_branch("billing", true);
        assert!(!claimed.branch_done("billing"));
        claimed.done(&answer("")).await.expect("nothing to store");
        assert_eq!((state.stats().records, state.stats().in_flight), (0, 0));
    }

    #[tokio::test]
    async fn keys_are_per_route() {
        let (_, _, state) = bare();
        let _first = mine(&state).await;
        let other = claim(&state, &rule(), "stripe", KEY, EventId::new(), state.clock().now()).await;
        assert!(matches!(other, Ok(Claim::Mine(_))));
        assert_ne!(state.digest("ab", b"c"), state.digest("a", b"bc"), "no two ways to put the same text together");
    }

    // -- restarts, power cuts, failures --

    async fn wait_ready(state: &State) {
        while state.health().ready().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_restart_keeps_done_and_failed_and_forgets_what_was_in_flight() {
        let (model, clock, state) = bare();
        let end = async |key: &[u8]| match claim_key(&state, &rule(), key).await {
            Ok(Claim::Mine(claimed)) => claimed,
            other => panic!("not ours: {other:?}"),
        };
        let (done, failed, flying) = (end(b"done").await, end(b"failed").await, end(b"flying").await);
        let ids = (done.event_id(), failed.event_id(), flying.event_id());
        done.done(&answer("kept")).await.expect("the store works");
        failed.record_branch("billing", true);
        failed.failed().await;
        state.flush().await.expect("the store works");
        // The power goes while one is in flight and the process still runs.
        let after = open(&model.cut(3), &clock);
        match claim_key(&after, &rule(), b"done").await {
            Ok(Claim::Done(stored)) => assert_eq!((stored.event_id, &stored.body[..]), (ids.0, &b"kept"[..])),
            other => panic!("not done: {other:?}"),
        }
        match claim_key(&after, &rule(), b"failed").await {
            Ok(Claim::Mine(again)) => assert_eq!((again.event_id(), again.branch_done("billing")), (ids.1, true)),
            other => panic!("not ours: {other:?}"),
        }
        match claim_key(&after, &rule(), b"flying").await {
            Ok(Claim::Mine(again)) => assert_eq!((again.is_retry(), again.event_id() == ids.2), (false, false)),
            other => panic!("not ours: {other:?}"),
        }
    }

    #[tokio::test]
    async fn with_zero_the_answer_waits_for_the_sync_and_survives_any_power_cut() {
        let (model, clock) = (Model::new(), Clock::hand(WALL));
        let state = open_with(&model, &clock, &settings(Duration::ZERO));
        for round in 0..20_u64 {
            let key = round.to_le_bytes();
            let Ok(Claim::Mine(claimed)) = claim_key(&state, &rule(), &key).await else { panic!("not ours") };
            claimed.done(&answer("kept")).await.expect("the store works");
            for seed in [0, round + 1, 77_777 * (round + 1)] {
                let after = open(&model.cut(seed), &clock);
                for old in 0..=round {
                    assert!(matches!(claim_key(&after, &rule(), &old.to_le_bytes()).await, Ok(Claim::Done(_))), "{old} of {round}, seed {seed}");
                }
            }
        }
    }

    #[tokio::test]
    async fn with_zero_copies_hear_nothing_before_the_sync() {
        let (model, clock) = (Model::new(), Clock::hand(WALL));
        let state = open_with(&model, &clock, &settings(Duration::ZERO));
        let claimed = mine(&state).await;
        model.hold(true);
        let ending = tokio::spawn(async move { claimed.done(&answer("made")).await });
        while state.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(!ending.is_finished());
        assert_eq!(reason(&state, &rule()).await, Reason::InFlight);
        // A cancelled wait does not turn what is done into a failure.
        ending.abort();
        assert!(ending.await.expect_err("aborted").is_cancelled());
        assert_eq!(stored(&state).await.status, 201);
        model.hold(false);
        state.flush().await.expect("the store works");
        assert_eq!(stored(&state).await.status, 201);
    }

    #[tokio::test]
    async fn after_a_failed_sync_nothing_is_reported_done() {
        for persist_within in [Duration::ZERO, Duration::from_millis(1)] {
            let (model, clock) = (Model::new(), Clock::hand(WALL));
            let state = open_with(&model, &clock, &settings(persist_within));
            let (first, second) = (mine(&state).await, claim_key(&state, &rule(), b"other").await.expect("ours"));
            model.fail_syncs(2);
            if persist_within.is_zero() {
                assert_eq!(first.done(&answer("made")).await.expect_err("not on disk").reason, Reason::StoreFailed);
            } else {
                // On its way: the failure comes after the answer.
                first.done(&answer("made")).await.expect("handed over");
                while state.health().ready().is_ok() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            if state.health().ready().is_err() {
                let Claim::Mine(second) = second else { panic!("ours") };
                let refused = second.done(&answer("")).await;
                assert!(refused.is_err() || state.health().ready().is_ok(), "not ready, yet done");
                let refused = claim_key(&state, &rule(), b"third").await;
                assert!(matches!(refused, Err(Reject { reason: Reason::StoreFailed, .. })) || state.health().ready().is_ok());
            }
            wait_ready(&state).await;
            assert_eq!(&stored(&state).await.body[..], b"made", "what the receiver has is not delivered twice");
            state.flush().await.expect("the store works again");
            assert_eq!(&stored(&open(&model.cut(0), &clock)).await.body[..], b"made");
        }
    }

    #[tokio::test]
    async fn allow_goes_on_from_memory() {
        let (model, clock) = (Model::new(), Clock::hand(WALL));
        let settings = Settings { on_error: OnStateError::Allow, ..settings(Duration::from_millis(1)) };
        let state = open_with(&model, &clock, &settings);
        model.fail_writes(true);
        assert!(state.flush().await.is_err());
        mine(&state).await.done(&answer("made")).await.expect("allowed");
        assert_eq!(stored(&state).await.status, 201);
        model.fail_writes(false);
        wait_ready(&state).await;
        state.flush().await.expect("the store works again");
        assert_eq!(stored(&open(&model.cut(0), &clock)).await.status, 201);
    }

    // -- time and bounds --

    #[tokio::test]
    async fn records_expire_by_the_monotonic_clock_alone() {
        let (model, clock, state) = bare();
        mine(&state).await.done(&answer("made")).await.expect("the store works");
        state.flush().await.expect("the store works");
        for step in [86_400_000, -2 * 86_400_000, 86_400_000] {
            clock.step_wall(step);
            state.tick();
            assert_eq!(stored(&state).await.status, 201, "a step of {step} ms");
        }
        clock.advance(Duration::from_secs(3600));
        assert_eq!(stored(&state).await.status, 201);
        clock.advance(Duration::from_secs(2));
        drop(mine(&state).await);
        // On disk it is the wall clock.
        let later = Clock::hand(WALL + 3_600_000);
        let rows = model.cut(0);
        assert_eq!(stored(&open(&rows, &later)).await.status, 201);
    }

    #[tokio::test]
    async fn a_sweep_takes_whole_hours_from_the_file() {
        let (model, clock, state) = bare();
        for n in 0..600_u32 {
            let Ok(Claim::Mine(claimed)) = claim_key(&state, &rule(), &n.to_le_bytes()).await else { panic!("not ours") };
            claimed.done(&answer("made")).await.expect("the store works");
            if n % 2 == 0 {
                state.flush().await.expect("the store works");
            }
        }
        state.flush().await.expect("the store works");
        // More than one commit sweeps.
        let rows = state.rows();
        assert!(rows.0 >= 300 && rows.1 == rows.0, "{rows:?}");
        clock.advance(Duration::from_secs(1800));
        state.tick();
        state.flush().await.expect("the store works");
        assert_eq!((state.stats().records, state.rows()), (600, rows));
        clock.advance(Duration::from_secs(1802));
        state.tick();
        while state.rows() != (0, 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(state.stats().records, 0);
        // What is recorded afterwards stays.
        mine(&state).await.done(&answer("later")).await.expect("the store works");
        state.flush().await.expect("the store works");
        assert_eq!(&stored(&open(&model.cut(0), &clock)).await.body[..], b"later");
    }

    #[tokio::test]
    async fn at_the_bound_the_nearest_expiry_goes_and_is_counted() {
        let (model, clock) = (Model::new(), Clock::hand(WALL));
        let errors = Arc::new(Mutex::new(Vec::new()));
        let hear = {
            let errors = errors.clone();
            Arc::new(move |op| errors.lock().expect("no panic").push(op))
        };
        let settings = Settings { max_records: 1000, ..settings(Duration::from_millis(1)) };
        let state = State::open_on(Arc::new(model.clone()), &settings, clock.clone(), hear).expect("a sound disk opens");
        for n in 0..1100_u32 {
            let Ok(Claim::Mine(claimed)) = claim_key(&state, &rule(), &n.to_le_bytes()).await else { panic!("not ours") };
            claimed.done(&answer("")).await.expect("the store works");
            clock.advance(Duration::from_secs(1));
        }
        state.tick();
        let stats = state.stats();
        assert!(stats.records <= 1000 && stats.evicted >= 100 && stats.records as u64 + stats.evicted == 1100, "{stats:?}");
        assert!(errors.lock().expect("no panic").contains(&"evict"));
        assert!(matches!(claim_key(&state, &rule(), &0_u32.to_le_bytes()).await, Ok(Claim::Mine(_))), "the first is forgotten");
        assert!(matches!(claim_key(&state, &rule(), &1099_u32.to_le_bytes()).await, Ok(Claim::Done(_))), "the last is not");
        state.flush().await.expect("the store works");
        assert!(open_with(&model.cut(0), &clock, &settings).stats().records <= 1000, "nor does a start take in more");
    }

    #[tokio::test]
    async fn forget_lets_a_key_through_once_more() {
        let (model, clock, state) = bare();
        assert_eq!(state.forget("github", KEY).await, Ok(false));
        mine(&state).await.done(&answer("first")).await.expect("the store works");
        assert_eq!(stored(&state).await.status, 201);
        assert_eq!(state.forget("github", KEY).await, Ok(true));
        assert_eq!(state.forget("github", KEY).await, Ok(false));
        let after = open(&model.cut(0), &clock);
        assert!(!mine(&after).await.is_retry());
        mine(&state).await.done(&answer("second")).await.expect("the store works");
        assert_eq!(&stored(&state).await.body[..], b"second");
        state.flush().await.expect("the store works");
        assert_eq!(&stored(&open(&model.cut(0), &clock)).await.body[..], b"second");
    }

    // -- everything at once --

    /// What a key's record must be, by the contract.
    #[derive(Clone, Debug, Default)]
    struct Expected {
        event_id: Option<EventId>,
        done: bool,
        branches: Vec<&'static str>,
        /// Monotonic seconds of the hand clock.
        until: u64,
    }

    /// Walks through claims, ends, restarts, power cuts, failed syncs and clock steps as the seed says, and compares each claim.
    async fn walk(seed: u64, steps: usize) {
        const BRANCHES: [&str; 3] = ["billing", "bus", "audit"];
        let clock = Clock::hand(WALL);
        let mut model = Model::new();
        let mut state = open_with(&model, &clock, &settings(Duration::ZERO));
        let mut expected: std::collections::BTreeMap<u64, Expected> = std::collections::BTreeMap::new();
        let mut flying: Vec<(u64, Claimed)> = Vec::new();
        let mut bits = seed | 1;
        let mut roll = |sides: u64| {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            bits % sides
        };
        for step in 0..steps {
            let secs = clock.mono().0 / 1_000_000_000;
            match roll(14) {
                0..6 => {
                    let key = roll(12);
                    let live = expected.get(&key).filter(|record| record.until > secs).cloned();
                    let about = format!("seed {seed}, step {step}, key {key}: {live:?}");
                    match claim_key(&state, &rule(), &key.to_le_bytes()).await {
                        Ok(Claim::Mine(claimed)) => {
                            assert!(!flying.iter().any(|(other, _)| *other == key), "two deliver at once: {about}");
                            match live {
                                Some(record) => {
                                    assert!(!record.done && record.event_id == Some(claimed.event_id()), "{about}");
                                    BRANCHES.iter().for_each(|name| assert_eq!(claimed.branch_done(name), record.branches.contains(name), "{name}: {about}"));
                                }
                                None => assert!(!claimed.is_retry(), "{about}"),
                            }
                            flying.push((key, claimed));
                        }
                        Ok(Claim::Done(stored)) => {
                            let record = live.unwrap_or_else(|| panic!("done out of nothing: {about}"));
                            assert!(record.done && record.event_id == Some(stored.event_id), "{about}");
                            assert_eq!(&stored.body[..], b"made", "{about}");
                        }
                        Err(why) => assert!(why.reason == Reason::InFlight && flying.iter().any(|(other, _)| *other == key), "{why}: {about}"),
                    }
                }
                6..10 if !flying.is_empty() => {
                    let (key, claimed) = flying.swap_remove(roll(flying.len() as u64) as usize);
                    let record = expected.entry(key).or_default();
                    // What was not there when it was claimed, or had expired, is no part of it.
                    if !claimed.is_retry() {
                        *record = Expected::default();
                    }
                    record.event_id = Some(claimed.event_id());
                    record.until = secs + 3601;
                    for name in BRANCHES {
                        let ok = roll(2) == 0;
                        if !claimed.branch_done(name) {
                            claimed.record_branch(name, ok);
                            record.branches.extend(ok.then_some(name));
                        }
                    }
                    match roll(3) {
                        0 => claimed.failed().await,
                        1 => drop(claimed),
                        _ => {
                            claimed.done(&answer("made")).await.expect("the store works");
                            record.done = true;
                        }
                    }
                }
                10 => {
                    state.flush().await.expect("the store works");
                    // The process is gone with what it was delivering; the records before that stand.
                    flying.drain(..).for_each(|(_, mut claimed)| claimed.ticket = None);
                    let cut = model.cut(roll(u64::MAX));
                    drop(state);
                    model = cut;
                    state = open_with(&model, &clock, &settings(Duration::ZERO));
                }
                11 => {
                    model.fail_syncs(1 + roll(3));
                    let _ = state.flush().await;
                    model.fail_syncs(0);
                    wait_ready(&state).await;
                }
                12 => clock.advance(Duration::from_secs(roll(1500))),
                _ => state.tick(),
            }
        }
    }

    #[tokio::test]
    async fn random_walks_keep_the_contract() {
        for seed in 1..=4 {
            walk(seed * 0x9E37_79B9, 300).await;
        }
    }

    // -- settings, keys --

    fn read_rule(text: &str, tolerance: Option<u64>) -> (Option<Rule>, Vec<String>) {
        let reader = Reader::new(Source { name: "p.toml".into(), text: text.into() }, Inputs::memory(&[], &[]));
        let table = reader.parse();
        let route = reader.root(&table);
        let rule = read(&route, tolerance.map(Duration::from_secs));
        route.finish();
        (rule, reader.problems().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn settings_are_read_or_refused() {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        let check = |text: &str, tolerance: Option<u64>, expected: Option<Rule>| {
            assert_eq!(read_rule(text, tolerance), (expected, vec![]), "{text}");
        };
        check("", None, Some(Rule { remember: days(30), ..rule() }));
        check("", Some(300), Some(Rule { remember: Duration::from_secs(4200), ..rule() }));
        check("replay = true", Some(300), Some(Rule { remember: Duration::from_secs(4200), ..rule() }));
        check("replay = false", None, None);
        check(
            r#"replay = { remember = "7d", on_duplicate = "reject", on_in_flight = "wait", dedupe = { header = "Idempotency-Key" } }"#,
            Some(300),
            Some(Rule {
                remember: days(7),
                on_duplicate: OnDuplicate::Reject,
                on_in_flight: OnInFlight::Wait,
                dedupe: Some(HeaderName::from_static("idempotency-key")),
            }),
        );
        let refused = |text: &str, tolerance: Option<u64>, says: &str| {
            let (_, problems) = read_rule(text, tolerance);
            assert!(problems.len() == 1 && problems[0].contains(says), "{text}: {problems:?}");
        };
        refused(r#"replay = { remember = "2m" }"#, Some(300), "forgotten before their timestamps expire");
        refused(r#"replay = { remember = "0s" }"#, None, "replay = false");
        refused(r#"replay = { remember = "400d" }"#, None, "366d");
        refused(r#"replay = { on_duplicate = "drop" }"#, None, "`drop` is not known here");
        refused(r#"replay = { rememer = "2d" }"#, None, "did you mean `remember`?");
        refused(r#"replay = { dedupe = { header = "a b" } }"#, None, "not a header name");
        refused(r#"replay = { dedupe = {} }"#, None, "missing");
        refused("replay = 3", None, "not a table");
    }

    #[test]
    fn the_key_is_what_was_signed_else_the_named_header() {
        let named = Rule { dedupe: Some(HeaderName::from_static("idempotency-key")), ..rule() };
        let check = |rule: &Rule, signed: Option<&[u8]>, values: &[&str], expected: Option<&[u8]>| {
            let mut headers = HeaderMap::new();
            values.iter().for_each(|value| {
                headers.append("idempotency-key", HeaderValue::from_str(value).expect("a value"));
            });
            assert_eq!(rule.key(signed, &headers).as_deref(), expected, "{values:?}");
        };
        check(&named, Some(b"signed"), &["x"], Some(b"signed"));
        check(&named, None, &["x"], Some(b"idempotency-key:x"));
        check(&rule(), None, &["x"], None);
        check(&named, None, &[], None);
        check(&named, None, &[""], None);
        check(&named, None, &["x", "x"], None);
        check(&named, None, &[&"x".repeat(513)], None);
    }
}
