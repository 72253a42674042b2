//! Delivery: the event goes to its receivers now, and the claim on it ends here.
//!
//! Promises: a receiver gets what was verified, byte for byte, under headers that only the gate wrote. The required branch's answer
//! is the sender's answer; others never decide nor delay it. A claim is done only after its required branch was answered 2xx, and
//! fails in every other end, cancelled tasks and panics included.
//! Never: follows a redirect, sends twice what may have been acted upon (but for the one repeat of `http.rs`), waits without a limit.

mod balance;
mod headers;
mod http;
pub(crate) mod inspector;
mod pool;
mod settings;

use std::{collections::HashMap, fmt, future::Future, pin::pin, sync::Arc, time::Duration};

use ::http::StatusCode;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;

pub(crate) use self::settings::{Settings, looks_like_url, read, read_url};
use crate::{
    choose::Parcel,
    clock::Clock,
    event::Event,
    limit::{Limit, within},
    observe::{audit::Branch, events, metrics::DestinationMetrics},
    outcome::{Answer, Ending, Outcome},
    reject::{Extra, Reason, Reject},
    replay,
};

/// The most deliveries that go on without a sender. Those with one are bounded by `requests`; without a bound a slow receiver of a
/// branch that is not required would take all memory and descriptors.
const MOST: usize = 4096;

/// Why an event did not get its answer from a destination; read by the destination's owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// No connection, or one that ended without a byte of an answer. `sent`: whether the request may have arrived.
    #[error("{why}")]
    Unreachable { why: String, sent: bool },
    /// Not all of connecting, answering and reading was over in time.
    #[error("no answer within {} ms, while {phase}", after.as_millis())]
    TimedOut { after: Duration, phase: Phase },
    /// What came back is no answer, or too large a one.
    #[error("the answer is not valid: {why}")]
    Invalid { why: String },
    #[error("the answer is a redirect ({status}), which is never followed")]
    Redirect { status: StatusCode },
    /// `concurrency` requests were under way for all of the timeout.
    #[error("the destination's `concurrency` was used up for all of its timeout")]
    Busy,
    /// [`MOST`] deliveries that no sender waits for were under way.
    #[error("{MOST} deliveries that no sender waits for are under way already: a receiver is slow")]
    Crowded,
    /// The event cannot be written as a request.
    #[error("{why}")]
    Unsendable { why: String },
    /// The event cannot be signed as the receiver wants it.
    #[error("it cannot be signed: {why}")]
    Unsigned { why: String },
}

/// How far a delivery came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing was sent.
    Connecting,
    /// The request was on its way, or there.
    Waiting,
    /// The answer's head was there, its body was not.
    Reading,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::Waiting => "waiting for the answer",
            Self::Reading => "reading the answer",
        })
    }
}

impl Failure {
    /// What the sender hears.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Unreachable { .. } => Reason::UpstreamUnreachable,
            Self::TimedOut { .. } => Reason::UpstreamTimeout,
            Self::Invalid { .. } => Reason::UpstreamInvalid,
            Self::Redirect { .. } => Reason::UpstreamRedirect,
            Self::Busy | Self::Crowded => Reason::Overloaded,
            Self::Unsendable { .. } => Reason::BadTarget,
            // The receiver would refuse it: nothing is wrong with the sender's request.
            Self::Unsigned { .. } => Reason::UpstreamInvalid,
        }
    }

    /// The metric's `result`.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::TimedOut { .. } => "timeout",
            Self::Invalid { .. } => "invalid",
            Self::Redirect { .. } => "redirect",
            Self::Busy | Self::Crowded => "busy",
            Self::Unsendable { .. } => "unsendable",
            Self::Unsigned { .. } => "unsigned",
        }
    }

    fn reject(&self, destination: &str) -> Reject {
        let reject = Reject::new(self.reason(), format!("{destination}: {self}"));
        match self {
            Self::Busy | Self::Crowded => reject.with(Extra::RetryAfter(Duration::from_secs(1))),
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Invalid { .. }
            | Self::Redirect { .. }
            | Self::Unsendable { .. }
            | Self::Unsigned { .. } => reject,
        }
    }
}

/// A destination that was opened: its connections, its limit, its counts.
pub(crate) struct Destination {
    name: Arc<str>,
    kind: Kind,
    timeout: Duration,
    slots: Option<Semaphore>,
    metrics: DestinationMetrics,
}

enum Kind {
    Http(Box<http::Http>),
    Inspector(Arc<inspector::Store>),
}

impl Destination {
    /// Makes it ready; connects nowhere yet. The error says what the world lacks: such as the system's roots of trust.
    pub(crate) fn open(settings: &Settings, metrics: DestinationMetrics, inspector: &Arc<inspector::Store>) -> Result<Arc<Self>, String> {
        let kind = match &settings.to {
            settings::To::Http(http) => Kind::Http(Box::new(http::Http::open(http, settings)?)),
            settings::To::Inspector => Kind::Inspector(Arc::clone(inspector)),
        };
        Ok(Arc::new(Self { name: settings.name.as_str().into(), kind, timeout: settings.timeout, slots: settings.concurrency.map(Semaphore::new), metrics }))
    }

    /// One attempt: sends the event and reads the whole answer, within the destination's timeout.
    pub(crate) async fn send(&self, event: &Event, strip_credentials: bool, attempt: u32) -> Result<Answer, Failure> {
        let clock = Clock::system();
        let started = clock.mono();
        let ended = self.attempt(event, strip_credentials, attempt).await;
        let now = clock.mono();
        let took = now.since(started);
        match &ended {
            Ok(answer) if answer.status.is_success() => events::delivered(&self.metrics, &self.name, event.id, Some(answer.status.as_u16()), took),
            Ok(answer) => events::delivery_failed(&self.metrics, &self.name, event.id, word(&ended), &answer.status, took, now),
            Err(failure) => events::delivery_failed(&self.metrics, &self.name, event.id, word(&ended), failure, took, now),
        }
        ended
    }

    /// Tells of a branch that is left out.
    fn crowded(&self, event: &Event) -> Failure {
        let failure = Failure::Crowded;
        events::delivery_failed(&self.metrics, &self.name, event.id, failure.code(), &failure, Duration::ZERO, Clock::system().mono());
        failure
    }

    async fn attempt(&self, event: &Event, strip_credentials: bool, attempt: u32) -> Result<Answer, Failure> {
        // One limit for all of it: a sender waits no longer because it waited for a place first.
        let mut limit = Limit::of(self.timeout);
        // The semaphore is never closed: an error would only mean no limit.
        let _slot = match &self.slots {
            None => None,
            Some(slots) => match slots.try_acquire() {
                Ok(slot) => Some(slot),
                Err(_) => within(&mut limit, pin!(slots.acquire())).await.ok_or(Failure::Busy)?.ok(),
            },
        };
        match &self.kind {
            Kind::Http(http) => http.send(event, strip_credentials, attempt, limit).await,
            Kind::Inspector(store) => Ok(store.receive(event, attempt)),
        }
    }
}

/// Every destination of one policy, by name.
#[derive(Default)]
pub(crate) struct Destinations(HashMap<Arc<str>, Arc<Destination>>);

impl Destinations {
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Destination>> {
        self.0.get(name)
    }
}

impl FromIterator<Arc<Destination>> for Destinations {
    fn from_iter<I: IntoIterator<Item = Arc<Destination>>>(all: I) -> Self {
        Self(all.into_iter().map(|destination| (Arc::clone(&destination.name), destination)).collect())
    }
}

/// Deliveries that go on without their sender: over all policies of a process; the end of the process waits for them.
#[derive(Clone, Default)]
pub(crate) struct Afterwork(TaskTracker);

impl Afterwork {
    /// Resolves when none is under way; new ones may still begin before that.
    #[cfg(test)]
    pub(crate) async fn finished(&self) {
        self.0.close();
        self.0.wait().await;
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        // Where the runtime is ending nothing can go on: dropping the claim fails it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.0.spawn_on(work, &runtime);
        }
    }
}

/// The claim on an event: its record of branches, and its end. [`replay::Claimed`] is one; dropping it fails it.
pub(crate) trait Claim: Send + Sync + 'static {
    /// Which attempt at the event this is, from 1: each copy after a failure is one more.
    fn attempt(&self) -> u16;

    /// Whether an earlier copy of the event got this branch done.
    fn branch_done(&self, name: &str) -> bool;

    fn record_branch(&self, name: &str, ok: bool);

    /// The event is done; copies of it get this answer. An error where that could not be stored.
    fn done(self, answer: &Answer) -> impl Future<Output = Result<(), Reject>> + Send;

    /// It is not: the next copy runs the branches that are not done.
    fn failed(self) -> impl Future<Output = ()> + Send;
}

impl Claim for replay::Claimed {
    fn attempt(&self) -> u16 {
        replay::Claimed::attempt(self)
    }

    fn branch_done(&self, name: &str) -> bool {
        replay::Claimed::branch_done(self, name)
    }

    fn record_branch(&self, name: &str, ok: bool) {
        replay::Claimed::record_branch(self, name, ok);
    }

    async fn done(self, answer: &Answer) -> Result<(), Reject> {
        replay::Claimed::done(self, answer).await
    }

    async fn failed(self) {
        replay::Claimed::failed(self).await;
    }
}

/// Sends the event to all its branches, ends the claim, and says what the sender gets.
///
/// With a required branch: its answer, whatever its status, or the refusal its failure means; other branches go on beside and after
/// it, or are left out where too many do already. Without one, or where an earlier copy got it done: `acknowledge`, at once. The claim is done with a 2xx of the required branch,
/// before the sender hears of it; failed otherwise, after the other branches have ended, so that the next copy skips what they did.
/// Receivers read the claim's attempt in `Hooklatch-Attempt`. Dropping the future fails the claim: that a sender's hang-up drops nothing
/// is the promise of `listen`. `branches` gets a line for each entry: what became of it, or `sent` where it goes on alone.
pub(crate) async fn send<C: Claim>(
    parcels: Vec<Parcel>,
    destinations: &Destinations,
    event: Arc<Event>,
    claim: C,
    acknowledge: impl FnOnce() -> Answer,
    afterwork: &Afterwork,
    branches: &mut Vec<Branch>,
) -> Result<Outcome, Reject> {
    let attempt = u32::from(claim.attempt());
    let mut required = None;
    let mut others = Vec::new();
    let mut left_out = None;
    for parcel in parcels {
        if claim.branch_done(&parcel.to) {
            branches.push(Branch { to: parcel.to, result: "done", status: None });
            continue;
        }
        let Some(destination) = destinations.get(&parcel.to) else {
            // A policy is only built with all its destinations.
            return Err(Reject::new(Reason::NoDestination, format!("no destination is named {}", parcel.to)));
        };
        let delivery = Delivery { destination: Arc::clone(destination), event: Arc::clone(&event), parcel, attempt };
        if delivery.parcel.required && required.is_none() {
            required = Some(delivery);
        } else if afterwork.len() + others.len() >= MOST {
            let failure = delivery.destination.crowded(&event);
            claim.record_branch(&delivery.parcel.to, false);
            branches.push(Branch { to: Arc::clone(&delivery.parcel.to), result: failure.code(), status: None });
            left_out.get_or_insert_with(|| failure.reject(&delivery.parcel.to));
        } else {
            branches.push(Branch { to: Arc::clone(&delivery.parcel.to), result: "sent", status: None });
            others.push(delivery);
        }
    }
    if let Some(why) = left_out.filter(|_| required.is_none() && others.is_empty()) {
        // Nobody would get the event: it must not be acknowledged.
        claim.failed().await;
        return Err(why);
    }
    let others = Background::start(others, afterwork);
    let Some(delivery) = required else {
        let answer = acknowledge();
        return claim.done(&answer).await.map(|()| Outcome { ending: Ending::Forwarded, answer });
    };
    let ended = delivery.run().await;
    let name = Arc::clone(&delivery.parcel.to);
    branches.push(Branch { to: Arc::clone(&name), result: word(&ended), status: ended.as_ref().ok().map(|answer| answer.status.as_u16()) });
    match ended {
        Ok(answer) if answer.status.is_success() => {
            claim.record_branch(&name, true);
            others.record_finished(&claim);
            claim.done(&answer).await?;
            Ok(Outcome { ending: Ending::Forwarded, answer })
        }
        ended => {
            claim.record_branch(&name, false);
            if others.is_empty() {
                claim.failed().await;
            } else {
                // The sender need not wait for them; a copy that comes meanwhile finds the event in flight.
                afterwork.spawn(async move {
                    others.record_all(&claim).await;
                    claim.failed().await;
                });
            }
            match ended {
                Ok(answer) => Ok(Outcome { ending: Ending::Forwarded, answer }),
                Err(failure) => Err(failure.reject(&name)),
            }
        }
    }
}

/// The word for an attempt, as in `hooklatch_delivery_attempts_total`.
fn word(ended: &Result<Answer, Failure>) -> &'static str {
    match ended {
        Ok(answer) if answer.status.is_success() => "ok",
        Ok(_) => "refused",
        Err(failure) => failure.code(),
    }
}

/// One branch of one event.
struct Delivery {
    destination: Arc<Destination>,
    event: Arc<Event>,
    parcel: Parcel,
    attempt: u32,
}

impl Delivery {
    async fn run(&self) -> Result<Answer, Failure> {
        self.destination.send(&self.event, self.parcel.strip_credentials, self.attempt).await
    }
}

/// The branches that are not required, each a task of its own.
struct Background(Vec<(Arc<str>, oneshot::Receiver<bool>)>);

impl Background {
    fn start(others: Vec<Delivery>, afterwork: &Afterwork) -> Self {
        let start = |delivery: Delivery| {
            let (ended, end) = oneshot::channel();
            let name = Arc::clone(&delivery.parcel.to);
            afterwork.spawn(async move {
                let ok = delivery.run().await.is_ok_and(|answer| answer.status.is_success());
                // Nobody asks when the required branch was answered well.
                let _ = ended.send(ok);
            });
            (name, end)
        };
        Self(others.into_iter().map(start).collect())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn record_finished(mut self, claim: &impl Claim) {
        for (name, end) in &mut self.0 {
            if let Ok(ok) = end.try_recv() {
                claim.record_branch(name, ok);
            }
        }
    }

    async fn record_all(self, claim: &impl Claim) {
        for (name, end) in self.0 {
            claim.record_branch(&name, end.await.unwrap_or(false));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
