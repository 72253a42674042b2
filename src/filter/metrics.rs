//! What the filters' room counts.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Names of its own that one filter may count or observe under; further ones are dropped.
const OWN_NAMES: usize = 32;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByFilter {
    filter: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByKind {
    filter: String,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByName {
    filter: String,
    name: String,
}

/// The families of all filters. Cloning shares them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    duration: Family<ByFilter, Histogram, fn() -> Histogram>,
    errors: Family<ByKind, Counter>,
    quarantined: Family<ByFilter, Gauge>,
    own_counts: Family<ByName, Counter>,
    own_values: Family<ByName, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            // 10 µs to 2.6 s, in steps of four.
            duration: Family::new_with_constructor(|| Histogram::new((0..10).map(|n| 10e-6 * 4_f64.powi(n)))),
            errors: Family::default(),
            quarantined: Family::default(),
            own_counts: Family::default(),
            own_values: Family::new_with_constructor(|| Histogram::new((-3..7).map(|n| 10_f64.powi(n)))),
        }
    }
}

impl Metrics {
    /// Registers all families under a registry whose prefix is the program's.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("filter_duration_seconds", "Time of one filter call", self.duration.clone());
        registry.register("filter_errors", "Filter calls that failed, by what went wrong", self.errors.clone());
        registry.register("filter_quarantined", "1 while a filter is not called since it failed too often", self.quarantined.clone());
        registry.register("filter_count", "What filters count themselves", self.own_counts.clone());
        registry.register("filter_value", "What filters observe themselves", self.own_values.clone());
    }

    /// The handles of one filter.
    pub(super) fn of(&self, filter: &str) -> FilterMetrics {
        let by = ByFilter { filter: filter.to_owned() };
        let quarantined = self.quarantined.get_or_create_owned(&by);
        quarantined.set(0);
        FilterMetrics { duration: self.duration.get_or_create_owned(&by), quarantined, own: Arc::default(), all: self.clone(), filter: filter.to_owned() }
    }
}

/// One filter's share.
#[derive(Debug)]
pub(super) struct FilterMetrics {
    pub(super) duration: Histogram,
    pub(super) quarantined: Gauge,
    own: Arc<Mutex<BTreeSet<String>>>,
    all: Metrics,
    filter: String,
}

impl FilterMetrics {
    pub(super) fn failed(&self, kind: &'static str) {
        self.all.errors.get_or_create(&ByKind { filter: self.filter.clone(), kind }).inc();
    }

    /// Adds to a counter of the filter's own; a bad name, or one too many, counts as an error.
    pub(super) fn count(&self, name: &str, by: u64) {
        if let Some(by_name) = self.own(name) {
            self.all.own_counts.get_or_create(&by_name).inc_by(by);
        }
    }

    pub(super) fn observe(&self, name: &str, value: f64) {
        if let Some(by_name) = self.own(name) {
            self.all.own_values.get_or_create(&by_name).observe(value);
        }
    }

    fn own(&self, name: &str) -> Option<ByName> {
        let mut bytes = name.bytes();
        let first = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase());
        let well_formed = first && name.len() <= 64 && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if !well_formed || (own.len() >= OWN_NAMES && !own.contains(name)) {
            self.failed("metric");
            return None;
        }
        if !own.contains(name) {
            own.insert(name.to_owned());
        }
        Some(ByName { filter: self.filter.clone(), name: name.to_owned() })
    }
}
