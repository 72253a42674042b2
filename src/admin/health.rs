//! `/healthz`: the process runs. `/readyz`: whether it should get traffic, and why not.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::AdminState;

type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What stands between the gate and its traffic; shared by the rooms that know.
#[derive(Default)]
pub(crate) struct Readiness {
    serving: AtomicBool,
    draining: AtomicBool,
    checks: Mutex<Vec<(&'static str, Check)>>,
    notes: Mutex<BTreeMap<&'static str, String>>,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.report()).finish()
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Trouble {
    pub(crate) check: &'static str,
    pub(crate) why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Report {
    pub(crate) ready: bool,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) not: Vec<Trouble>,
    /// What is wrong without keeping it from serving, such as a changed policy that was refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<Trouble>,
}

impl Readiness {
    /// The listeners are bound: from now on the checks decide.
    pub(crate) fn serving(&self) {
        self.serving.store(true, Ordering::Release);
    }

    /// No new traffic, please; stays so until the end.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Adds a check that runs at every question; it has to be quick and never waits. `why` tells no secret.
    pub(crate) fn check(&self, name: &'static str, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner).push((name, Box::new(check)));
    }

    /// Sets or takes back a note, which is shown but keeps nobody away.
    pub(crate) fn note(&self, name: &'static str, why: Option<String>) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => drop(notes.insert(name, why)),
            None => drop(notes.remove(name)),
        }
    }

    pub(crate) fn report(&self) -> Report {
        let mut not = Vec::new();
        if !self.serving.load(Ordering::Acquire) {
            not.push(Trouble { check: "start", why: "starting".into() });
        }
        if self.draining() {
            not.push(Trouble { check: "drain", why: "draining: no new traffic is taken".into() });
        }
        for (name, check) in self.checks.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Err(why) = check() {
                not.push(Trouble { check: name, why });
            }
        }
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let notes = notes.iter().map(|(check, why)| Trouble { check, why: why.clone() }).collect();
        Report { ready: not.is_empty(), not, notes }
    }
}

pub(super) async fn alive() -> &'static str {
    "ok\n"
}

pub(super) async fn ready(State(state): State<AdminState>) -> Response {
    let report = state.readiness.report();
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_says_why_not() {
        let readiness = Readiness::default();
        let why = |readiness: &Readiness| readiness.report().not.iter().map(|trouble| trouble.check).collect::<Vec<_>>();
        assert_eq!(why(&readiness), ["start"]);
        readiness.serving();
        assert!(readiness.report().ready);
        readiness.note("policy", Some("refused".into()));
        assert_eq!((readiness.report().ready, readiness.report().notes.len()), (true, 1));
        readiness.note("policy", None);
        readiness.check("store", || Err("fsync failed".into()));
        readiness.drain();
        assert_eq!(why(&readiness), ["drain", "store"]);
        assert!(readiness.report().notes.is_empty());
    }
}
