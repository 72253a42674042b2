//! A route's filters, one after another, over one event.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
};

use super::{
    convert::{self, Decision, Lent, REASON_BYTES, output_limit},
    fault::{Cause, Fault, Limit},
    host::clean,
    load::Filter,
    settings::{OnError, QuarantineSettings},
};
use crate::{
    clock::Mono,
    condition::Scope,
    event::Event,
    observe::{events, metrics::RouteMetrics},
    outcome::Answer,
    reject::{Extra, Reason, Reject},
};

/// The event after the filters, with their changes, and what is to become of it.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) event: Event,
    pub(crate) verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// On to delivery.
    Pass,
    /// Done, acknowledged, delivered nowhere.
    Drop { filter: Arc<str>, reason: Option<String> },
    /// The filter's own answer, delivered nowhere; done if it is a 2xx.
    Respond { filter: Arc<str>, answer: Answer },
}

/// Whether a route's `deliver` has a destination of this name.
pub(crate) type Known<'a> = &'a (dyn Fn(&str) -> bool + Sync);

/// Runs the filters in order until one ends the event.
///
/// `known` says which destinations the route has: a filter that names another fails. The body is put into one piece only for a filter
/// that wants it. A filter that fails refuses the event as `filter_failed`,
/// or is passed over, as its `on_error` says.
pub(crate) async fn apply(chain: &[Arc<Filter>], mut event: Event, known: Known<'_>, metrics: &RouteMetrics) -> Result<Applied, Reject> {
    for filter in chain {
        if !wanted(filter, &event, metrics) {
            continue;
        }
        match call(filter, &mut event, known).await {
            Ok(Decision::Pass(changes)) => changes.make(filter.name(), &mut event),
            Ok(Decision::Drop(reason)) => {
                let filter = filter.shared.settings.name.clone();
                return Ok(Applied { event, verdict: Verdict::Drop { filter, reason } });
            }
            Ok(Decision::Respond(answer)) => {
                let filter = filter.shared.settings.name.clone();
                return Ok(Applied { event, verdict: Verdict::Respond { filter, answer } });
            }
            Ok(Decision::Reject { status, reason }) => {
                let detail = format!("filter `{}`: {reason}", filter.name());
                return Err(Reject::new(Reason::FilterRejected, detail).with(Extra::Filter { status, reason }));
            }
            Err(fault) => match filter.on_error() {
                OnError::Reject => return Err(Reject::new(Reason::FilterFailed, fault.to_string())),
                OnError::Skip => {}
            },
        }
    }
    Ok(Applied { event, verdict: Verdict::Pass })
}

/// Whether the filter's `when` holds. One that cannot be evaluated is counted and the filter called: what it redacts or refuses
/// must not pass by a mistake.
fn wanted(filter: &Filter, event: &Event, metrics: &RouteMetrics) -> bool {
    let Some(condition) = &filter.shared.settings.when else { return true };
    let now = filter.shared.clock.now();
    condition.matches(&Scope::new(event, now)).unwrap_or_else(|why| {
        events::condition_failed(metrics, &event.route, filter.name(), &why, now.mono);
        true
    })
}

/// One call, counted and timed; a fault of it may quarantine the filter.
async fn call(filter: &Filter, event: &mut Event, known: Known<'_>) -> Result<Decision, Fault> {
    let shared = &filter.shared;
    if let Some(quarantine) = &filter.quarantine {
        let asked = quarantine.lock().unwrap_or_else(PoisonError::into_inner).ask(shared.clock.mono());
        if asked == Asked::OnTrial {
            events::filter_quarantined(&shared.metrics, shared.name(), false);
        }
        if asked == Asked::No {
            let fault = shared.fault(Cause::Quarantined);
            failed(filter, event, &fault);
            return Err(fault);
        }
    }
    // Waiting for room counts to no limit of the filter's. The semaphore is never closed.
    let _permit = shared.engine.0.permits.acquire().await;
    let _running = shared.engine.runtime()?.running();
    let started = shared.clock.mono();
    let result = match tokio::time::timeout(shared.settings.timeout, run(filter, event, known)).await {
        Ok(result) => result,
        // The store went with the dropped future: that instance is never entered again.
        Err(_) => Err(shared.fault(Cause::Limit(Limit::Time(shared.settings.timeout)))),
    };
    shared.metrics.call(shared.clock.mono().since(started));
    if let Err(fault) = &result {
        failed(filter, event, fault);
        let quarantined = filter.quarantine.as_ref().is_some_and(|quarantine| {
            let mut quarantine = quarantine.lock().unwrap_or_else(PoisonError::into_inner);
            quarantine.fault(shared.clock.mono())
        });
        if quarantined {
            events::filter_quarantined(&shared.metrics, shared.name(), true);
        }
    }
    result
}

fn failed(filter: &Filter, event: &Event, fault: &Fault) {
    let shared = &filter.shared;
    events::filter_failed(&shared.metrics, shared.name(), &event.route, event.id, fault.kind(), fault, shared.clock.mono());
}

async fn run(filter: &Filter, event: &mut Event, known: Known<'_>) -> Result<Decision, Fault> {
    let shared = &filter.shared;
    let output = output_limit(event);
    if filter.about.body {
        event.body.contiguous();
    }
    let event: &Event = event;
    let body = event.body.pieces().next().filter(|_| filter.about.body).map_or(&[][..], |piece| &piece[..]);
    let lent = Lent::of(event);
    let fields = convert::fields(event);
    let mut live = filter.instance().await?;
    live.store.data_mut().begin(&event.route, &lent.id);
    live.store.set_hostcall_fuel(output.saturating_add(1 << 20));
    live.store.set_epoch_deadline(1);
    let argument = convert::event(event, &lent, &fields, body);
    let returned = live.instance.hooklatch_filter_handler().call_handle(&mut live.store, argument).await;
    match returned {
        Ok(Ok(outcome)) => {
            let decision = convert::decision(outcome, output, known).map_err(|cause| shared.fault(cause))?;
            filter.rest(live);
            Ok(decision)
        }
        Ok(Err(text)) => Err(shared.fault(Cause::Failed(clean(&text, REASON_BYTES)))),
        Err(error) => Err(shared.ended(&error, live.store.data_mut().hit.take(), output)),
    }
}

/// Leaves a filter out that keeps failing: after `faults` within `within` for as long again, then one more fault is enough.
#[derive(Debug)]
pub(super) struct Quarantine {
    settings: QuarantineSettings,
    faults: VecDeque<Mono>,
    until: Option<Mono>,
}

/// Whether a filter is to be called now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Yes,
    /// The first call after it was left out.
    OnTrial,
    No,
}

impl Quarantine {
    pub(super) fn new(settings: QuarantineSettings) -> Self {
        Self { settings, faults: VecDeque::new(), until: None }
    }

    fn ask(&mut self, now: Mono) -> Asked {
        match self.until {
            Some(until) if now < until => Asked::No,
            Some(_) => {
                // On trial: one fault less than the limit stands against it from now on.
                self.until = None;
                self.faults = std::iter::repeat_n(now, self.settings.faults - 1).collect();
                Asked::OnTrial
            }
            None => Asked::Yes,
        }
    }

    /// Notes a fault; true if it is the one that quarantines the filter.
    fn fault(&mut self, now: Mono) -> bool {
        if self.until.is_some() {
            return false; // a call that began before
        }
        self.faults.push_back(now);
        while self.faults.front().is_some_and(|&first| now.since(first) > self.settings.within) {
            self.faults.pop_front();
        }
        if self.faults.len() < self.settings.faults {
            return false;
        }
        self.faults.clear();
        self.until = Some(now.plus(self.settings.within));
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Plays seconds: `f` a call that fails, `.` a call that goes well, `x` a call that must not be made.
    fn check(faults: usize, within: u64, calls: &[(u64, char)]) {
        let mut quarantine = Quarantine::new(QuarantineSettings { faults, within: Duration::from_secs(within) });
        for &(second, call) in calls {
            let now = Mono(second * 1_000_000_000);
            assert_eq!(quarantine.ask(now) != Asked::No, call != 'x', "at {second} s");
            if call == 'f' {
                quarantine.fault(now);
            }
        }
    }

    #[test]
    fn too_many_faults_in_the_window_leave_it_out_for_as_long() {
        check(3, 60, &[(0, 'f'), (1, '.'), (2, 'f'), (3, 'f'), (4, 'x'), (62, 'x'), (63, '.')]);
        check(3, 60, &[(0, 'f'), (1, 'f'), (62, 'f'), (63, '.'), (64, 'f'), (65, 'f'), (66, 'x')]);
        check(1, 10, &[(0, 'f'), (9, 'x'), (10, 'f'), (19, 'x'), (20, '.')]);
    }

    #[test]
    fn after_it_one_fault_is_enough_until_the_window_has_passed() {
        check(2, 10, &[(0, 'f'), (0, 'f'), (10, '.'), (11, 'f'), (12, 'x'), (21, '.'), (32, 'f'), (33, '.')]);
    }
}
