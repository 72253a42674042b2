//! Counters, gauges and histograms in the Prometheus text format.
//!
//! Every label value comes from the policy or from a closed list in the code, never from a request. A policy generation resolves its
//! handles once, at load; counting is an atomic addition. A series lives as long as some generation holds its handle: a reload that keeps
//! a route goes on with its numbers, one that removes it makes its series go with the last request that began under it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, TypedMetric},
    registry::{Registry, Unit},
};

use serde::Serialize;

use crate::{clock::Clock, outcome::Ending, reject::Reason};

/// Seconds; from a local receiver's answer to the slowest a provider waits for.
const REQUEST_BOUNDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Seconds; a filter's call takes microseconds.
const FILTER_BOUNDS: &[f64] = &[0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];
/// Whatever a filter observes: decades, as its unit is not known.
const GUEST_BOUNDS: &[f64] = &[0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6];

/// How many names of its own a filter may count, and as many that it may observe; further ones are ignored.
pub(crate) const GUEST_NAMES: usize = 64;

// -- the kinds of a value --

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TypedMetric for Count {
    const TYPE: MetricType = MetricType::Counter;
}

impl EncodeMetric for Count {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, _, u64>(&self.get(), None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(crate) struct Level(AtomicI64);

impl Level {
    pub(crate) fn set(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TypedMetric for Level {
    const TYPE: MetricType = MetricType::Gauge;
}

impl EncodeMetric for Level {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.get())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// A distribution over fixed bounds; the client library's own takes a lock for every value.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [f64],
    /// One more than the bounds: the last is for everything above.
    buckets: Box<[AtomicU64]>,
    /// The bits of an `f64`.
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    pub(crate) fn observe(&self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        // Never fails: the closure always has a next value.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| Some((f64::from_bits(bits) + value).to_bits()));
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed))).collect();
        let count = buckets.iter().map(|(_, n)| n).sum();
        let sum = f64::from_bits(self.sum.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

// -- series by label values --

type Labels = Vec<(&'static str, Arc<str>)>;

/// One metric name with its series; a series is exposed while somebody holds it.
struct Family<M>(Arc<Mutex<BTreeMap<Labels, Weak<M>>>>);

impl<M> Clone for Family<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> Default for Family<M> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<M> fmt::Debug for Family<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Family")
    }
}

impl<M> Family<M> {
    fn get_with(&self, labels: &[(&'static str, &str)], make: impl FnOnce() -> M) -> Arc<M> {
        let labels: Labels = labels.iter().map(|(key, value)| (*key, Arc::from(*value))).collect();
        shared(&self.0, labels, make)
    }

    fn live(&self) -> Vec<(Labels, Arc<M>)> {
        let mut series = lock(&self.0);
        series.retain(|_, metric| metric.strong_count() > 0);
        series.iter().filter_map(|(labels, metric)| metric.upgrade().map(|metric| (labels.clone(), metric))).collect()
    }
}

impl<M: Default> Family<M> {
    fn get(&self, labels: &[(&'static str, &str)]) -> Arc<M> {
        self.get_with(labels, M::default)
    }
}

impl<M: TypedMetric> TypedMetric for Family<M> {
    const TYPE: MetricType = M::TYPE;
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for Family<M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.live().into_iter().try_for_each(|(labels, metric)| metric.encode(encoder.encode_family(&labels)?))
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }

    fn is_empty(&self) -> bool {
        self.live().is_empty()
    }
}

/// A metric that this room holds itself.
#[derive(Debug)]
struct Held<M>(Arc<M>);

impl<M: EncodeMetric> EncodeMetric for Held<M> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What stands under `key` and is still held by somebody, else a new one.
fn shared<K: Ord, V>(map: &Mutex<BTreeMap<K, Weak<V>>>, key: K, make: impl FnOnce() -> V) -> Arc<V> {
    let mut map = lock(map);
    if let Some(found) = map.get(&key).and_then(Weak::upgrade) {
        return found;
    }
    // Now and then, so that a policy of many routes is not looked through anew for each of them.
    if map.len().is_power_of_two() {
        map.retain(|_, value| value.strong_count() > 0);
    }
    let made = Arc::new(make());
    map.insert(key, Arc::downgrade(&made));
    made
}

/// Counters by a word of a closed list in the code, found without a lock. The first `N` words met get a counter each, the rest none.
#[derive(Debug)]
struct Words<const N: usize>([OnceLock<(&'static str, Arc<Count>)>; N]);

impl<const N: usize> Default for Words<N> {
    fn default() -> Self {
        Self([const { OnceLock::new() }; N])
    }
}

impl<const N: usize> Words<N> {
    fn add(&self, word: &'static str, make: impl Fn() -> Arc<Count>) {
        for slot in &self.0 {
            let (found, count) = slot.get_or_init(|| (word, make()));
            if *found == word {
                return count.add(1);
            }
        }
    }
}

/// Counters by reason, made when a reason is first met.
#[derive(Debug)]
struct Reasons([OnceLock<Arc<Count>>; Reason::ALL.len()]);

impl Default for Reasons {
    fn default() -> Self {
        Self([const { OnceLock::new() }; Reason::ALL.len()])
    }
}

impl Reasons {
    fn add(&self, reason: Reason, make: impl FnOnce() -> Arc<Count>) {
        self.0[reason as usize].get_or_init(make).add(1);
    }
}

// -- keys --

/// What came of one fetch of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeysFetched {
    Ok,
    Unchanged,
    /// The place has nothing of that id.
    Absent,
    Failed,
}

/// Counts the fetches of one source.
#[derive(Clone, Debug)]
pub(crate) struct KeysMetrics([Arc<Count>; 4]);

impl KeysMetrics {
    pub(crate) fn fetched(&self, result: KeysFetched) {
        self.0[result as usize].add(1);
    }
}

// -- all of it --

#[derive(Debug, Default)]
struct Families {
    requests: Family<Count>,
    duration: Family<Histogram>,
    refusals: Family<Count>,
    would_refuse: Family<Count>,
    verify: Family<Count>,
    secret_last_used: Family<Level>,
    replay: Family<Count>,
    condition_errors: Family<Count>,
    state_errors: Family<Count>,
    connection_faults: Family<Count>,
    filter_duration: Family<Histogram>,
    filter_errors: Family<Count>,
    filter_quarantined: Family<Level>,
    guest_count: Family<Count>,
    guest_observed: Family<Histogram>,
    attempts: Family<Count>,
    delivery_duration: Family<Histogram>,
    ip_ranges_age: Family<Level>,
    keys_fetch: Family<Count>,
    reloads: Family<Count>,
    certificate_expiry: Family<Level>,
    audit_lines: Family<Count>,
}

type OnScrape = Box<dyn Fn(&Metrics) + Send + Sync>;

/// Everything that is counted; one per process.
pub(crate) struct Metrics {
    registry: Registry,
    clock: Clock,
    families: Families,
    routes: Mutex<BTreeMap<Arc<str>, Weak<Route>>>,
    proofs: Mutex<BTreeMap<[Arc<str>; 2], Weak<Proof>>>,
    filters: Mutex<BTreeMap<Arc<str>, Weak<Filter>>>,
    destinations: Mutex<BTreeMap<Arc<str>, Weak<Destination>>>,
    /// Open connections from senders.
    pub(crate) connections: Arc<Level>,
    /// Bytes of request and answer bodies that are held now.
    pub(crate) buffered_bytes: Arc<Level>,
    state_errors: Words<16>,
    connection_faults: Words<16>,
    reloads_ok: Arc<Count>,
    reloads_refused: Arc<Count>,
    last_reload: Arc<Level>,
    certificates: Mutex<Vec<Arc<Level>>>,
    ip_ranges: Mutex<BTreeMap<String, (i64, Arc<Level>)>>,
    /// Audit lines written, lost because the file could not be written, and lost because the writer was behind.
    pub(crate) audit_written: Arc<Count>,
    pub(crate) audit_failed: Arc<Count>,
    pub(crate) audit_dropped: Arc<Count>,
    on_scrape: Mutex<Vec<OnScrape>>,
    _build: Arc<Level>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    pub(crate) fn new(version: &str) -> Arc<Self> {
        Self::with_clock(version, Clock::system())
    }

    pub(crate) fn with_clock(version: &str, clock: Clock) -> Arc<Self> {
        let f = Families::default();
        let mut r = Registry::with_prefix("hooklatch");
        let build_info = Family::<Level>::default();
        let build = build_info.get(&[("version", version)]);
        build.set(1);
        let (connections, buffered_bytes, last_reload) = (Arc::<Level>::default(), Arc::<Level>::default(), Arc::<Level>::default());
        r.register("build_info", "The running program; always 1", build_info);
        r.register("requests", "Requests by how they ended; an empty route is a request that matched none", f.requests.clone());
        r.register_with_unit("request_duration", "From a request's head to the end of its decision", Unit::Seconds, f.duration.clone());
        r.register("refusals", "Refused requests by reason", f.refusals.clone());
        r.register("would_refuse", "Requests let through by a guard that only observes", f.would_refuse.clone());
        r.register("verify", "Verifications by the secret that matched and by result: ok, or the reason", f.verify.clone());
        r.register("secret_last_used_timestamp_seconds", "When a secret last verified a request, Unix time", f.secret_last_used.clone());
        r.register("replay", "What the replay record said: new, retry, duplicate, in_flight, unkeyed, unavailable", f.replay.clone());
        r.register("condition_errors", "Conditions that could not be evaluated, by delivery entry or filter", f.condition_errors.clone());
        r.register("connections", "Open connections from senders", Held(connections.clone()));
        r.register("buffered_bytes", "Bytes of bodies that are held now", Held(buffered_bytes.clone()));
        r.register("state_errors", "Operations that the state store failed", f.state_errors.clone());
        r.register("connection_faults", "Connections that ended by their peer's fault before a request", f.connection_faults.clone());
        r.register_with_unit("filter_duration", "One call of a filter, host calls included", Unit::Seconds, f.filter_duration.clone());
        r.register("filter_errors", "Failed filter calls by kind", f.filter_errors.clone());
        r.register("filter_quarantined", "1 while a filter is quarantined for its faults", f.filter_quarantined.clone());
        r.register("filter_guest", "What a filter counts by itself", f.guest_count.clone());
        r.register("filter_guest_observed", "What a filter observes by itself", f.guest_observed.clone());
        r.register("delivery_attempts", "Attempts to deliver, by result", f.attempts.clone());
        r.register_with_unit("delivery_duration", "One attempt, from connecting to the end of the answer", Unit::Seconds, f.delivery_duration.clone());
        r.register_with_unit("ip_ranges_age", "Since a provider's address ranges were published or fetched", Unit::Seconds, f.ip_ranges_age.clone());
        r.register("keys_fetch", "Fetches of verification keys by result: ok, unchanged, absent, failed", f.keys_fetch.clone());
        r.register("config_reloads", "Policy reloads by result: ok, refused", f.reloads.clone());
        r.register("config_last_reload_success_timestamp_seconds", "When the serving policy was loaded, Unix time", Held(last_reload.clone()));
        r.register("certificate_expiry_timestamp_seconds", "When a certificate ends, Unix time", f.certificate_expiry.clone());
        r.register("audit_lines", "Audit lines by result: written, failed, dropped", f.audit_lines.clone());
        Arc::new(Self {
            registry: r,
            clock,
            routes: Mutex::default(),
            proofs: Mutex::default(),
            filters: Mutex::default(),
            destinations: Mutex::default(),
            connections,
            buffered_bytes,
            state_errors: Words::default(),
            connection_faults: Words::default(),
            reloads_ok: f.reloads.get(&[("result", "ok")]),
            reloads_refused: f.reloads.get(&[("result", "refused")]),
            last_reload,
            certificates: Mutex::default(),
            ip_ranges: Mutex::default(),
            audit_written: f.audit_lines.get(&[("result", "written")]),
            audit_failed: f.audit_lines.get(&[("result", "failed")]),
            audit_dropped: f.audit_lines.get(&[("result", "dropped")]),
            on_scrape: Mutex::default(),
            _build: build,
            families: f,
        })
    }

    /// The handles of one route. `provider` is empty where the route verifies by none; `secrets` are the labels of its secrets.
    pub(crate) fn route<S: AsRef<str>>(self: &Arc<Self>, name: &str, provider: &str, secrets: &[S]) -> RouteMetrics {
        let f = &self.families;
        let route = shared(&self.routes, Arc::from(name), || Route {
            requests: Outcome::ALL.map(|outcome| f.requests.get(&[("route", name), ("outcome", outcome.code())])),
            duration: f.duration.get_with(&[("route", name)], || Histogram::new(REQUEST_BOUNDS)),
            refusals: Reasons::default(),
            would_refuse: Reasons::default(),
            replay: [const { OnceLock::new() }; Replay::ALL.len()],
            condition_errors: Mutex::default(),
            name: name.into(),
        });
        let proof = shared(&self.proofs, [Arc::from(name), Arc::from(provider)], || Proof { provider: provider.into(), failures: Reasons::default() });
        let secret = |label: &str| SecretUse {
            label: label.into(),
            verified: f.verify.get(&[("route", name), ("provider", provider), ("secret", label), ("result", "ok")]),
            last_used: OnceLock::new(),
        };
        let secrets = secrets.iter().map(|label| secret(label.as_ref())).collect();
        RouteMetrics { metrics: self.clone(), route, proof, secrets }
    }

    /// Requests that matched no route, or that HTTP parsing refused: the empty route.
    pub(crate) fn unrouted(self: &Arc<Self>) -> RouteMetrics {
        self.route::<&str>("", "", &[])
    }

    pub(crate) fn filter(self: &Arc<Self>, name: &str) -> FilterMetrics {
        let f = &self.families;
        let filter = shared(&self.filters, Arc::from(name), || Filter {
            duration: f.filter_duration.get_with(&[("filter", name)], || Histogram::new(FILTER_BOUNDS)),
            quarantined: f.filter_quarantined.get(&[("filter", name)]),
            errors: Words::default(),
            counts: Mutex::default(),
            observed: Mutex::default(),
            name: name.into(),
        });
        FilterMetrics { metrics: self.clone(), filter }
    }

    pub(crate) fn destination(self: &Arc<Self>, name: &str) -> DestinationMetrics {
        let duration = || self.families.delivery_duration.get_with(&[("destination", name)], || Histogram::new(REQUEST_BOUNDS));
        let destination = shared(&self.destinations, Arc::from(name), || Destination { duration: duration(), attempts: Words::default(), name: name.into() });
        DestinationMetrics { metrics: self.clone(), destination }
    }

    /// The fetches of one source of keys, by its host.
    pub(crate) fn keys(&self, source: &str) -> KeysMetrics {
        KeysMetrics(["ok", "unchanged", "absent", "failed"].map(|result| self.families.keys_fetch.get(&[("source", source), ("result", result)])))
    }

    /// An operation of the state store failed: `claim`, `done`, `get`, `set`, `open` and so on.
    pub(crate) fn state_error(&self, op: &'static str) {
        self.state_errors.add(op, || self.families.state_errors.get(&[("op", op)]));
    }

    /// A connection ended by its peer's fault before there was a request.
    pub(crate) fn connection_fault(&self, kind: &'static str) {
        self.connection_faults.add(kind, || self.families.connection_faults.get(&[("kind", kind)]));
    }

    /// A policy was loaded, at the start or later, or refused.
    pub(crate) fn config_loaded(&self, good: bool) {
        if good {
            self.reloads_ok.add(1);
            self.last_reload.set(self.clock.now().wall_ms / 1000);
        } else {
            self.reloads_refused.add(1);
        }
    }

    /// The certificates that are served now, by name, with the Unix time in seconds at which each ends; replaces what was said before.
    pub(crate) fn set_certificates<'a>(&self, expiries: impl IntoIterator<Item = (&'a str, i64)>) {
        let mut held = lock(&self.certificates);
        // The new ones are made before the old are let go, so that a scrape never finds the family empty in between.
        let made = expiries.into_iter().map(|(name, at)| {
            let level = self.families.certificate_expiry.get(&[("name", name)]);
            level.set(at);
            level
        });
        *held = made.collect();
    }

    /// The address ranges in use, by provider, with the Unix time in seconds they date from; replaces what was said before.
    pub(crate) fn set_ip_ranges<'a>(&self, dates: impl IntoIterator<Item = (&'a str, i64)>) {
        let made = dates.into_iter().map(|(name, at)| (name.to_owned(), (at, self.families.ip_ranges_age.get(&[("provider", name)]))));
        *lock(&self.ip_ranges) = made.collect();
    }

    /// Runs before every scrape: for levels that somebody else keeps.
    pub(crate) fn on_scrape(&self, fill: impl Fn(&Metrics) + Send + Sync + 'static) {
        lock(&self.on_scrape).push(Box::new(fill));
    }

    /// What was counted since the start, in the shape of the admin page.
    pub(crate) fn overview(&self) -> Overview {
        let routes: Vec<Arc<Route>> = lock(&self.routes).values().filter_map(Weak::upgrade).collect();
        let routes = routes.iter().map(|route| RouteOverview {
            route: route.name.to_string(),
            requests: Outcome::ALL.iter().map(|outcome| (outcome.code(), route.requests[outcome.index()].get())).filter(|(_, n)| *n > 0).collect(),
        });
        let label = |labels: &Labels, wanted| labels.iter().find(|(key, _)| *key == wanted).map(|(_, value)| value.to_string()).unwrap_or_default();
        let used = self.families.secret_last_used.live().into_iter();
        let used = used.map(|(labels, at)| SecretOverview { route: label(&labels, "route"), secret: label(&labels, "secret"), last_used_s: at.get() });
        Overview { connections: self.connections.get(), routes: routes.collect(), secrets: used.collect() }
    }

    /// All metrics as OpenMetrics 1.0 text.
    pub(crate) fn encode(&self) -> String {
        lock(&self.on_scrape).iter().for_each(|fill| fill(self));
        let now = self.clock.now().wall_ms / 1000;
        lock(&self.ip_ranges).values().for_each(|(at, age)| age.set(now.saturating_sub(*at).max(0)));
        let mut out = String::with_capacity(16 << 10);
        text::encode(&mut out, &self.registry).expect("writing to a string does not fail");
        out
    }

    /// All metrics as the older Prometheus text format 0.0.4, for whoever does not ask for OpenMetrics.
    pub(crate) fn encode_plain(&self) -> String {
        let mut out = String::new();
        let mut lines = self.encode();
        lines.truncate(lines.strip_suffix("# EOF\n").map_or(lines.len(), str::len));
        let mut help = "";
        for line in lines.lines() {
            // OpenMetrics names a counter's family without `_total`; the older format names it as its samples are named.
            if let Some(text) = line.strip_prefix("# HELP ") {
                help = text.split_once(' ').map_or("", |(_, text)| text);
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|family| family.split_once(' ')) {
                let suffix = if kind == "counter" { "_total" } else { "" };
                out.push_str(&format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"));
            } else if !line.starts_with("# UNIT ") {
                out.push_str(line);
                out.push('\n');
            }
        }
        out
    }
}

/// What the admin page shows of the metrics.
#[derive(Debug, Serialize)]
pub(crate) struct Overview {
    connections: i64,
    routes: Vec<RouteOverview>,
    secrets: Vec<SecretOverview>,
}

#[derive(Debug, Serialize)]
struct RouteOverview {
    route: String,
    /// By outcome; those that never happened are left out.
    requests: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Serialize)]
struct SecretOverview {
    route: String,
    secret: String,
    /// Unix time in seconds.
    last_used_s: i64,
}

// -- a route --

/// How a request ended, as the label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ended(Ending),
    Refused,
    /// The sender went away before there was an answer.
    Aborted,
}

impl Outcome {
    const ALL: [Outcome; Ending::ALL.len() + 2] = [
        Self::Ended(Ending::Forwarded),
        Self::Ended(Ending::Duplicate),
        Self::Ended(Ending::Dropped),
        Self::Ended(Ending::Unmatched),
        Self::Ended(Ending::Responded),
        Self::Ended(Ending::Challenge),
        Self::Refused,
        Self::Aborted,
    ];

    /// The stable word.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Ended(ending) => ending.code(),
            Self::Refused => "refused",
            Self::Aborted => "aborted",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Ended(ending) => ending as usize,
            Self::Refused => Ending::ALL.len(),
            Self::Aborted => Ending::ALL.len() + 1,
        }
    }
}

/// What the replay record said of an event, as the label `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replay {
    /// Not seen before.
    New,
    /// Seen before, and not delivered: the branches that are open run.
    Retry,
    /// Delivered before.
    Duplicate,
    /// A copy is being delivered.
    InFlight,
    /// The route remembers nothing, or the event has no key.
    Unkeyed,
    /// The store did not answer.
    Unavailable,
}

impl Replay {
    pub(crate) const ALL: [Replay; 6] = [Self::New, Self::Retry, Self::Duplicate, Self::InFlight, Self::Unkeyed, Self::Unavailable];

    /// The stable word.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Retry => "retry",
            Self::Duplicate => "duplicate",
            Self::InFlight => "in_flight",
            Self::Unkeyed => "unkeyed",
            Self::Unavailable => "unavailable",
        }
    }
}

#[derive(Debug)]
struct Route {
    name: Box<str>,
    requests: [Arc<Count>; Outcome::ALL.len()],
    duration: Arc<Histogram>,
    refusals: Reasons,
    would_refuse: Reasons,
    replay: [OnceLock<Arc<Count>>; Replay::ALL.len()],
    condition_errors: Mutex<BTreeMap<Box<str>, Arc<Count>>>,
}

#[derive(Debug)]
struct Proof {
    provider: Box<str>,
    failures: Reasons,
}

#[derive(Debug)]
struct SecretUse {
    label: Box<str>,
    verified: Arc<Count>,
    last_used: OnceLock<Arc<Level>>,
}

/// The handles of one route under one policy.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    metrics: Arc<Metrics>,
    route: Arc<Route>,
    proof: Arc<Proof>,
    secrets: Box<[SecretUse]>,
}

impl RouteMetrics {
    fn families(&self) -> &Families {
        &self.metrics.families
    }

    /// A request ended; a refused one is counted by [`RouteMetrics::refused`].
    pub(crate) fn ended(&self, ending: Ending, took: Duration) {
        self.finish(Outcome::Ended(ending), took);
    }

    /// A request was refused.
    pub(crate) fn refused(&self, reason: Reason, took: Duration) {
        self.finish(Outcome::Refused, took);
        let make = || self.families().refusals.get(&[("route", &self.route.name), ("reason", reason.code())]);
        self.route.refusals.add(reason, make);
    }

    /// The sender went away first.
    pub(crate) fn aborted(&self, took: Duration) {
        self.finish(Outcome::Aborted, took);
    }

    fn finish(&self, outcome: Outcome, took: Duration) {
        self.route.requests[outcome.index()].add(1);
        self.route.duration.observe(took.as_secs_f64());
    }

    /// A guard that only observes would have refused.
    pub(crate) fn would_refuse(&self, reason: Reason) {
        let make = || self.families().would_refuse.get(&[("route", &self.route.name), ("reason", reason.code())]);
        self.route.would_refuse.add(reason, make);
    }

    /// The secret with this label verified a request; `wall_ms` is the Unix time in milliseconds.
    pub(crate) fn verified(&self, secret: &str, wall_ms: i64) {
        let Some(found) = self.secrets.iter().find(|known| *known.label == *secret) else { return };
        found.verified.add(1);
        let labels = [("route", &*self.route.name), ("secret", &*found.label)];
        found.last_used.get_or_init(|| self.families().secret_last_used.get(&labels)).set(wall_ms / 1000);
    }

    /// No secret verified a request.
    pub(crate) fn not_verified(&self, reason: Reason) {
        let make = || {
            let labels = [("route", &*self.route.name), ("provider", &*self.proof.provider), ("secret", ""), ("result", reason.code())];
            self.families().verify.get(&labels)
        };
        self.proof.failures.add(reason, make);
    }

    pub(crate) fn replay(&self, result: Replay) {
        let make = || self.families().replay.get(&[("route", &self.route.name), ("result", result.code())]);
        self.route.replay[result as usize].get_or_init(make).add(1);
    }

    /// A condition could not be evaluated; `entry` names the delivery entry or filter as the policy does.
    pub(crate) fn condition_error(&self, entry: &str) {
        let mut entries = lock(&self.route.condition_errors);
        if let Some(count) = entries.get(entry) {
            return count.add(1);
        }
        let count = self.families().condition_errors.get(&[("route", &self.route.name), ("entry", entry)]);
        count.add(1);
        entries.insert(entry.into(), count);
    }
}

// -- a filter --

#[derive(Debug)]
struct Filter {
    name: Box<str>,
    duration: Arc<Histogram>,
    quarantined: Arc<Level>,
    errors: Words<16>,
    counts: Mutex<BTreeMap<Box<str>, Arc<Count>>>,
    observed: Mutex<BTreeMap<Box<str>, Arc<Histogram>>>,
}

/// The handles of one filter.
#[derive(Clone, Debug)]
pub(crate) struct FilterMetrics {
    metrics: Arc<Metrics>,
    filter: Arc<Filter>,
}

impl FilterMetrics {
    /// One call ended, well or not.
    pub(crate) fn call(&self, took: Duration) {
        self.filter.duration.observe(took.as_secs_f64());
    }

    pub(crate) fn error(&self, kind: &'static str) {
        self.filter.errors.add(kind, || self.metrics.families.filter_errors.get(&[("filter", &self.filter.name), ("kind", kind)]));
    }

    pub(crate) fn quarantined(&self, now: bool) {
        self.filter.quarantined.set(now.into());
    }

    /// The filter counts something itself. False where the name is not 1 to 64 of `a-z`, `0-9`, `_` with a letter first, or is one
    /// too many ([`GUEST_NAMES`]): nothing is counted then.
    pub(crate) fn guest_count(&self, name: &str, n: u64) -> bool {
        let make = || self.metrics.families.guest_count.get(&[("filter", &self.filter.name), ("name", name)]);
        guest(&self.filter.counts, name, make).is_some_and(|count| {
            count.add(n);
            true
        })
    }

    /// The filter observes a value itself; false as with [`FilterMetrics::guest_count`], or where the value is not finite.
    pub(crate) fn guest_observe(&self, name: &str, value: f64) -> bool {
        let labels = [("filter", &*self.filter.name), ("name", name)];
        let make = || self.metrics.families.guest_observed.get_with(&labels, || Histogram::new(GUEST_BOUNDS));
        value.is_finite()
            && guest(&self.filter.observed, name, make).is_some_and(|histogram| {
                histogram.observe(value);
                true
            })
    }
}

fn guest<M>(known: &Mutex<BTreeMap<Box<str>, Arc<M>>>, name: &str, make: impl FnOnce() -> Arc<M>) -> Option<Arc<M>> {
    let mut known = lock(known);
    if let Some(found) = known.get(name) {
        return Some(found.clone());
    }
    let valid = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    (valid && known.len() < GUEST_NAMES).then(|| known.entry(name.into()).or_insert_with(make).clone())
}

// -- a destination --

#[derive(Debug)]
struct Destination {
    name: Box<str>,
    duration: Arc<Histogram>,
    attempts: Words<24>,
}

/// The handles of one destination.
#[derive(Clone, Debug)]
pub(crate) struct DestinationMetrics {
    metrics: Arc<Metrics>,
    destination: Arc<Destination>,
}

impl DestinationMetrics {
    /// One attempt ended: `ok`, or the word for what went wrong.
    pub(crate) fn attempt(&self, result: &'static str) {
        let make = || self.metrics.families.attempts.get(&[("destination", &self.destination.name), ("result", result)]);
        self.destination.attempts.add(result, make);
    }

    pub(crate) fn duration(&self, took: Duration) {
        self.destination.duration.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Arc<Metrics> {
        Metrics::with_clock("1.2.3", Clock::hand(1_000_000))
    }

    fn has(metrics: &Metrics, line: &str) -> bool {
        metrics.encode().lines().any(|found| found == line)
    }

    /// One of everything; the handles keep their series.
    fn scripted(m: &Arc<Metrics>) -> (RouteMetrics, RouteMetrics, FilterMetrics, DestinationMetrics) {
        let route = m.route("github", "github", &["#1", "old"]);
        route.ended(Ending::Forwarded, Duration::from_millis(3));
        route.refused(Reason::SignatureMismatch, Duration::from_millis(1));
        route.aborted(Duration::from_secs(60));
        route.would_refuse(Reason::IpNotAllowed);
        route.verified("old", 1_700_000_000_123);
        route.not_verified(Reason::SignatureMismatch);
        route.replay(Replay::InFlight);
        route.condition_error("billing");
        let unrouted = m.unrouted();
        unrouted.refused(Reason::NoRoute, Duration::ZERO);
        m.state_error("claim");
        let filter = m.filter("redact");
        filter.call(Duration::from_micros(30));
        filter.error("trap");
        filter.quarantined(true);
        assert!(filter.guest_count("fields", 2) && filter.guest_observe("size", 12.5));
        let destination = m.destination("billing");
        destination.attempt("ok");
        destination.duration(Duration::from_millis(2));
        m.set_ip_ranges([("github", 400)]);
        m.config_loaded(true);
        m.config_loaded(false);
        m.set_certificates([("hooks.example.com", 2000)]);
        m.connections.set(2);
        m.buffered_bytes.set(10);
        (route, unrouted, filter, destination)
    }

    #[test]
    fn every_name_of_the_contract_stands_after_a_scripted_run() {
        let m = metrics();
        let _held = scripted(&m);
        for line in [
            r#"hooklatch_build_info{version="1.2.3"} 1"#,
            r#"hooklatch_requests_total{route="github",outcome="forwarded"} 1"#,
            r#"hooklatch_requests_total{route="github",outcome="refused"} 1"#,
            r#"hooklatch_requests_total{route="github",outcome="aborted"} 1"#,
            r#"hooklatch_requests_total{route="github",outcome="responded"} 0"#,
            r#"hooklatch_requests_total{route="",outcome="refused"} 1"#,
            r#"hooklatch_request_duration_seconds_count{route="github"} 3"#,
            r#"hooklatch_request_duration_seconds_bucket{le="0.001",route="github"} 1"#,
            r#"hooklatch_request_duration_seconds_bucket{le="+Inf",route="github"} 3"#,
            r#"hooklatch_request_duration_seconds_sum{route="github"} 60.004"#,
            r#"hooklatch_refusals_total{route="github",reason="signature_mismatch"} 1"#,
            r#"hooklatch_refusals_total{route="",reason="no_route"} 1"#,
            r#"hooklatch_would_refuse_total{route="github",reason="ip_not_allowed"} 1"#,
            r#"hooklatch_verify_total{route="github",provider="github",secret="old",result="ok"} 1"#,
            r##"hooklatch_verify_total{route="github",provider="github",secret="#1",result="ok"} 0"##,
            r#"hooklatch_verify_total{route="github",provider="github",secret="",result="signature_mismatch"} 1"#,
            r#"hooklatch_secret_last_used_timestamp_seconds{route="github",secret="old"} 1700000000"#,
            r#"hooklatch_replay_total{route="github",result="in_flight"} 1"#,
            r#"hooklatch_condition_errors_total{route="github",entry="billing"} 1"#,
            "hooklatch_connections 2",
            "hooklatch_buffered_bytes 10",
            r#"hooklatch_state_errors_total{op="claim"} 1"#,
            r#"hooklatch_filter_duration_seconds_count{filter="redact"} 1"#,
            r#"hooklatch_filter_errors_total{filter="redact",kind="trap"} 1"#,
            r#"hooklatch_filter_quarantined{filter="redact"} 1"#,
            r#"hooklatch_filter_guest_total{filter="redact",name="fields"} 2"#,
            r#"hooklatch_filter_guest_observed_count{filter="redact",name="size"} 1"#,
            r#"hooklatch_delivery_attempts_total{destination="billing",result="ok"} 1"#,
            r#"hooklatch_delivery_duration_seconds_count{destination="billing"} 1"#,
            r#"hooklatch_ip_ranges_age_seconds{provider="github"} 600"#,
            r#"hooklatch_config_reloads_total{result="ok"} 1"#,
            r#"hooklatch_config_reloads_total{result="refused"} 1"#,
            "hooklatch_config_last_reload_success_timestamp_seconds 1000",
            r#"hooklatch_certificate_expiry_timestamp_seconds{name="hooks.example.com"} 2000"#,
            r#"hooklatch_audit_lines_total{result="written"} 0"#,
        ] {
            assert!(has(&m, line), "{line} is missing in\n{}", m.encode());
        }
        assert!(m.encode().ends_with("# EOF\n"));
    }

    #[test]
    fn numbers_go_on_over_a_reload_and_go_with_their_route() {
        let m = metrics();
        let first = m.route("a", "github", &["#1"]);
        first.refused(Reason::NotJson, Duration::ZERO);
        first.verified("#1", 0);
        let second = m.route("a", "github", &["#1", "new"]);
        drop(first);
        second.refused(Reason::NotJson, Duration::ZERO);
        second.verified("#1", 0);
        assert!(has(&m, r#"hooklatch_refusals_total{route="a",reason="not_json"} 2"#));
        assert!(has(&m, r##"hooklatch_verify_total{route="a",provider="github",secret="#1",result="ok"} 2"##));
        drop(second);
        assert!(!m.encode().contains(r#"route="a""#), "{}", m.encode());
        assert!(!m.encode().contains("refusals"), "an empty family has no header either");
        m.set_certificates([("a", 1), ("b", 2)]);
        m.set_certificates([("b", 3)]);
        assert!(!m.encode().contains(r#"{name="a"}"#) && has(&m, r#"hooklatch_certificate_expiry_timestamp_seconds{name="b"} 3"#));
    }

    #[test]
    fn filters_cannot_flood_the_names() {
        let m = metrics();
        let filter = m.filter("f");
        for name in ["", "Upper", "1st", "a-b", "a b", "ä", "x\"} 1\n", &"a".repeat(65)] {
            assert!(!filter.guest_count(name, 1), "{name:?} was taken");
            assert!(!filter.guest_observe(name, 1.0), "{name:?} was taken");
        }
        let taken = (0..GUEST_NAMES + 10).filter(|i| filter.guest_count(&format!("n{i}"), 1)).count();
        assert_eq!(taken, GUEST_NAMES);
        assert!(filter.guest_count("n0", 1), "a known name goes on");
        assert!(!filter.guest_observe("v", f64::NAN) && !filter.guest_observe("v", f64::INFINITY));
    }

    #[test]
    fn a_secret_that_the_policy_does_not_name_is_not_a_label() {
        let m = metrics();
        let route = m.route("a", "github", &["#1"]);
        route.verified("from a request", 0);
        assert!(!m.encode().contains("from a request"));
    }

    #[test]
    fn odd_names_are_escaped() {
        let m = metrics();
        let _route = m.route("a\"b\\c\nd", "", &["#1"]);
        assert!(m.encode().contains(r#"route="a\"b\\c\nd""#), "{}", m.encode());
    }

    #[test]
    fn plain_text_names_counters_as_their_samples() {
        let m = metrics();
        let _route = m.route("a", "", &["#1"]);
        let text = m.encode_plain();
        assert!(text.contains("# TYPE hooklatch_requests_total counter\n"), "{text}");
        assert!(text.contains("# HELP hooklatch_requests_total Requests by"), "{text}");
        assert!(text.contains("# TYPE hooklatch_request_duration_seconds histogram\n"), "{text}");
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"), "{text}");
    }

    #[test]
    fn every_name_is_documented() {
        let m = metrics();
        let docs = include_str!("../../docs/metrics.md");
        let filled = scripted(&m);
        let text = m.encode_plain();
        let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            assert!(docs.contains(&format!("| `{name}` |")), "{name} is missing in docs/metrics.md");
        }
        drop(filled);
    }

    #[test]
    fn outcomes_and_their_places_agree() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome.index(), index, "{}", outcome.code());
        }
        for (index, result) in Replay::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, index, "{}", result.code());
        }
    }

    #[test]
    fn buckets_hold_their_upper_bound() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        [0.5, 1.0, 1.5, 2.0, 3.0].into_iter().for_each(|value| histogram.observe(value));
        let held: Vec<u64> = histogram.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        assert_eq!(held, [2, 2, 1]);
    }
}
