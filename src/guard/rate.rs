//! How many requests a route takes: `rate_limit` and `verify_failures`.
//!
//! A limit is a bucket that holds `burst` and fills at `rate` (GCRA, by governor). Buckets live in [`Limiters`], which outlives a
//! policy: a reload that leaves a limit as it is leaves its buckets as they are.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    num::NonZeroU32,
    ops::Add,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use governor::{
    NotUntil, Quota, RateLimiter,
    clock::Reference,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed, StateStore, keyed::ShrinkableKeyedStateStore},
};
use http::{HeaderMap, HeaderName};
use quick_cache::sync::{Cache, EntryAction, EntryResult};

use crate::{
    clock::{Clock, Mono},
    event::{Chunks, Client, ClientKey},
    reject::{Extra, Reason, Reject},
    section::{Section, nearest},
    validate::json,
};

/// Keys one limit remembers at most; past it the ones asked for least are forgotten, which gives them a full bucket.
const KEYS: usize = 100_000;

/// How deep a body may be nested for `json:` limits to find their field in it.
const DEPTH: usize = 128;

// -- settings --

/// `"500/s"`: so many in a second, minute (`m`), hour (`h`) or day (`d`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rate {
    pub(crate) count: NonZeroU32,
    pub(crate) window: Duration,
}

impl FromStr for Rate {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (count, unit) = text.split_once('/').ok_or(())?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(()),
        };
        if !count.bytes().all(|b| b.is_ascii_digit()) {
            return Err(());
        }
        let count = count.parse::<u32>().ok().filter(|count| *count <= 10_000_000).and_then(NonZeroU32::new).ok_or(())?;
        Ok(Self { count, window: Duration::from_secs(seconds) })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.window.as_secs() {
            1 => "s",
            60 => "m",
            3600 => "h",
            _ => "d",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// What a limit counts by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Per {
    Route,
    /// Before the body is read; an IPv6 address counts by its /64.
    Ip,
    Header(HeaderName),
    Json(json::Pointer),
}

impl Per {
    /// The word in answers and metrics.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Ip => "ip",
            Self::Header(_) => "header",
            Self::Json(_) => "json",
        }
    }
}

impl fmt::Display for Per {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route | Self::Ip => f.write_str(self.code()),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Json(pointer) => write!(f, "json:{}", pointer.as_str()),
        }
    }
}

/// One limit as the policy says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) per: Per,
    pub(crate) rate: Rate,
    /// How many may come at once; default: the rate's count.
    pub(crate) burst: NonZeroU32,
}

/// Reads `rate_limit` of a route. `lossy` names the provider where it never sends again what was refused: a limit would lose events
/// then, and needs a reason in `accept_loss`.
pub(crate) fn read(route: &Section<'_>, lossy: Option<&str>) -> Vec<Limit> {
    let Some(item) = route.item("rate_limit") else { return Vec::new() };
    let Some(items) = item.items() else { return Vec::new() };
    let mut limits: Vec<Limit> = Vec::new();
    for item in &items {
        let Some(section) = item.section() else { continue };
        let per = section.string("per").and_then(|text| per(&section, &text));
        let limit = limit(&section, per);
        section.not_built("overflow", "excess will wait in the queue");
        let reason = section.opt_string("accept_loss").filter(|reason| !reason.trim().is_empty());
        if let Some(provider) = lossy.filter(|_| reason.is_none() && !section.has("overflow")) {
            section.problem(
                "rate",
                format!("{provider} never sends again: what this limit refuses is lost"),
                "remove the limit, or say why losing events is fine: accept_loss = \"…\"",
            );
        }
        section.finish();
        let Some(limit) = limit else { continue };
        if limits.iter().any(|other| (&other.per, other.rate) == (&limit.per, limit.rate)) {
            item.problem("the same limit stands twice", "remove one of the two");
        }
        limits.push(limit);
    }
    limits
}

/// Reads `verify_failures` of a route, such as `{ per = "ip", rate = "10/m" }`.
pub(crate) fn read_failures(route: &Section<'_>) -> Option<Limit> {
    let section = route.opt_section("verify_failures")?;
    let per = section.choice("per", &[("ip", Per::Ip)]).or((!section.has("per")).then_some(Per::Ip));
    let limit = limit(&section, per);
    section.finish();
    limit
}

fn limit(section: &Section<'_>, per: Option<Per>) -> Option<Limit> {
    let rate = section.string("rate").and_then(|text| {
        let rate = text.parse::<Rate>().ok();
        if rate.is_none() {
            section.problem("rate", format!("`{text}` is not a rate"), "write it like \"500/s\", \"10/m\", \"100/h\" or \"1000/d\"");
        }
        rate
    });
    let burst = section.opt_u64("burst", 1..=10_000_000).and_then(|burst| u32::try_from(burst).ok()).and_then(NonZeroU32::new);
    let rate = rate?;
    Some(Limit { per: per?, rate, burst: burst.unwrap_or(rate.count) })
}

fn per(section: &Section<'_>, text: &str) -> Option<Per> {
    match text.split_once(':') {
        None if text == "route" => return Some(Per::Route),
        None if text == "ip" => return Some(Per::Ip),
        Some(("header", name)) => match name.parse() {
            Ok(name) => return Some(Per::Header(name)),
            Err(_) => section.problem("per", format!("`{name}` is not a header name"), "write it like \"header:X-Tenant\""),
        },
        Some(("json", pointer)) => match json::Pointer::parse(pointer) {
            Ok(pointer) => return Some(Per::Json(pointer)),
            Err(why) => section.problem("per", format!("`{pointer}` is not a JSON pointer: {why}"), "write it like \"json:/repository/id\""),
        },
        _ => {
            let near = nearest(text.split(':').next().unwrap_or(text), &["route", "ip", "header", "json"]).map(|near| format!("did you mean \"{near}\"? "));
            section.problem(
                "per",
                format!("`{text}` is not known here"),
                format!("{}it is one of: route, ip, header:NAME, json:POINTER", near.unwrap_or_default()),
            );
        }
    }
    None
}

// -- buckets --

/// A point of the gate's monotonic clock, in governor's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Tick(Mono);

impl Add<Nanos> for Tick {
    type Output = Self;

    fn add(self, span: Nanos) -> Self {
        Self(Mono(self.0.0.saturating_add(span.as_u64())))
    }
}

impl Reference for Tick {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.0.saturating_sub(earlier.0.0).into()
    }

    fn saturating_sub(&self, span: Nanos) -> Self {
        Self(Mono(self.0.0.saturating_sub(span.as_u64())))
    }
}

#[derive(Clone, Debug)]
struct Ticker(Clock);

impl governor::clock::Clock for Ticker {
    type Instant = Tick;

    fn now(&self) -> Tick {
        Tick(self.0.mono())
    }
}

/// A bounded map of buckets: what governor keeps of each is one number.
struct Buckets<K>(Cache<K, u64>);

impl<K: Hash + Eq + Clone> StateStore for Buckets<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let entry = self.0.entry(key, None, |_, tat| {
            EntryAction::Retain(measure(Some((*tat).into())).map(|(answer, next)| {
                *tat = next.into();
                answer
            }))
        });
        match entry {
            EntryResult::Retained(answer) => answer,
            EntryResult::Vacant(place) => {
                let (answer, next) = measure(None)?;
                // Fails only if somebody else has put the key there meanwhile: theirs is as good.
                let _ = place.insert(next.into());
                Ok(answer)
            }
            EntryResult::Removed(..) | EntryResult::Replaced(..) | EntryResult::Timeout => measure(None).map(|(answer, _)| answer),
        }
    }
}

impl<K: Hash + Eq + Clone> ShrinkableKeyedStateStore<K> for Buckets<K> {
    fn retain_recent(&self, drop_below: Nanos) {
        self.0.retain(|_, tat| *tat > drop_below.as_u64());
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

type Limiter<K, S> = RateLimiter<K, S, Ticker, NoOpMiddleware<Tick>>;

/// A header's or field's value as 128 bits of keyed hash: a stranger cannot make two values meet, and a long one costs no more.
type Digest = [u64; 2];

/// The key of every request without the header or field.
const ABSENT: Digest = [0, 0];

enum Bucket {
    One(Limiter<NotKeyed, InMemoryState>),
    Client(Limiter<ClientKey, Buckets<ClientKey>>),
    Value(Limiter<Digest, Buckets<Digest>>, [RandomState; 2]),
}

/// A limit and its buckets.
struct Live {
    limit: Limit,
    clock: Ticker,
    bucket: Bucket,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} per {}", self.limit.rate, self.limit.per)
    }
}

impl Live {
    fn new(limit: Limit, clock: &Clock, keys: usize) -> Self {
        let clock = Ticker(clock.clone());
        let quota =
            Quota::with_period(limit.rate.window / limit.rate.count.get()).expect("a rate has at most ten million in a second").allow_burst(limit.burst);
        let bucket = match limit.per {
            Per::Route => Bucket::One(RateLimiter::new(quota, InMemoryState::default(), clock.clone())),
            Per::Ip => Bucket::Client(RateLimiter::new(quota, Buckets(Cache::new(keys)), clock.clone())),
            Per::Header(_) | Per::Json(_) => Bucket::Value(RateLimiter::new(quota, Buckets(Cache::new(keys)), clock.clone()), Default::default()),
        };
        Self { limit, clock, bucket }
    }

    fn refuse(&self, until: &NotUntil<Tick>) -> Reject {
        let Limit { per, rate, .. } = &self.limit;
        let wait = until.wait_time_from(governor::clock::Clock::now(&self.clock));
        let extra = Extra::Limit { wait, policy: per.code(), quota: rate.count.get().into(), window: rate.window };
        Reject::new(Reason::RateLimited, format!("more than {rate} per {per}")).with(extra)
    }

    fn take_client(&self, client: &Client) -> Result<(), Reject> {
        match &self.bucket {
            Bucket::Client(limiter) => limiter.check_key(&client.key).map_err(|until| self.refuse(&until)),
            Bucket::One(_) | Bucket::Value(..) => Ok(()),
        }
    }

    fn digest<V: Hash>(&self, values: impl Iterator<Item = V>) -> Digest {
        let Bucket::Value(_, hashers) = &self.bucket else { return ABSENT };
        let mut values = values.peekable();
        if values.peek().is_none() {
            return ABSENT;
        }
        let [mut a, mut b] = [hashers[0].build_hasher(), hashers[1].build_hasher()];
        for value in values {
            value.hash(&mut a);
            value.hash(&mut b);
        }
        [std::hash::Hasher::finish(&a), std::hash::Hasher::finish(&b)]
    }

    fn sweep(&self) {
        match &self.bucket {
            Bucket::One(_) => {}
            Bucket::Client(limiter) => limiter.retain_recent(),
            Bucket::Value(limiter, _) => limiter.retain_recent(),
        }
    }

    #[cfg(test)]
    fn keys(&self) -> usize {
        match &self.bucket {
            Bucket::One(_) => 0,
            Bucket::Client(limiter) => limiter.len(),
            Bucket::Value(limiter, _) => limiter.len(),
        }
    }
}

/// Every limit's buckets, over all generations of the policy.
#[derive(Debug)]
pub(crate) struct Limiters {
    clock: Clock,
    keys: usize,
    live: Mutex<HashMap<String, Weak<Live>>>,
}

impl Limiters {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, keys: KEYS, live: Mutex::default() }
    }

    fn open(&self, id: String, limit: &Limit) -> Arc<Live> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|_, known| known.strong_count() > 0);
        if let Some(known) = live.get(&id).and_then(Weak::upgrade) {
            return known;
        }
        let made = Arc::new(Live::new(limit.clone(), &self.clock, self.keys));
        live.insert(id, Arc::downgrade(&made));
        made
    }

    /// A route's `rate_limit`, with the buckets of the generation before where the limit is the same.
    pub(crate) fn limits(&self, route: &str, limits: &[Limit]) -> Limits {
        let mut opened = Limits::default();
        for limit in limits {
            let live = self.open(format!("{route}\n{}\n{}\n{}", limit.per, limit.rate, limit.burst), limit);
            match &limit.per {
                Per::Ip => opened.before.push(live),
                Per::Route | Per::Header(_) => opened.after.push((live, None)),
                Per::Json(pointer) => {
                    opened.after.push((live, Some(opened.pointers.len())));
                    opened.pointers.push(pointer.clone());
                }
            }
        }
        opened
    }

    /// A route's `verify_failures`, likewise.
    pub(crate) fn failures(&self, route: &str, limit: &Limit) -> Failures {
        Failures(self.open(format!("{route}\nfailures\n{}\n{}", limit.rate, limit.burst), limit))
    }

    /// Forgets every key whose bucket is full again; to be called about once a minute.
    pub(crate) fn sweep(&self) {
        let live: Vec<_> = self.live.lock().unwrap_or_else(PoisonError::into_inner).values().filter_map(Weak::upgrade).collect();
        live.iter().for_each(|live| live.sweep());
    }

    /// How many keys are remembered.
    #[cfg(test)]
    pub(crate) fn keys(&self) -> usize {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).values().filter_map(Weak::upgrade).map(|live| live.keys()).sum()
    }
}

/// The limits of one route, open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits {
    before: Vec<Arc<Live>>,
    /// With the place of its pointer, for `json:` limits.
    after: Vec<(Arc<Live>, Option<usize>)>,
    pointers: Vec<json::Pointer>,
}

impl Limits {
    /// The limits per address, before the body is read. They do not apply to the provider's own addresses: the caller asks first.
    pub(crate) fn admit(&self, client: &Client) -> Result<(), Reject> {
        self.before.iter().try_for_each(|live| live.take_client(client))
    }

    /// The limits keyed on verified facts. A request without the header or field counts with all others that have none.
    pub(crate) fn meter(&self, headers: &HeaderMap, body: &mut Chunks) -> Result<(), Reject> {
        if self.after.is_empty() {
            return Ok(());
        }
        let found = if self.pointers.is_empty() { Vec::new() } else { json::find(body.contiguous(), DEPTH, &self.pointers).unwrap_or_default() };
        for (live, field) in &self.after {
            let taken = match (&live.bucket, &live.limit.per) {
                (Bucket::One(limiter), _) => limiter.check(),
                (Bucket::Value(limiter, _), Per::Header(name)) => limiter.check_key(&live.digest(headers.get_all(name).iter())),
                (Bucket::Value(limiter, _), _) => {
                    let value = field.and_then(|at| found.get(at)).and_then(Option::as_ref).and_then(|value| value.clone().into_scalar());
                    limiter.check_key(&live.digest(value.iter()))
                }
                (Bucket::Client(_), _) => Ok(()),
            };
            taken.map_err(|until| live.refuse(&until))?;
        }
        Ok(())
    }
}

/// `verify_failures` of one route, open: how many failed verifications an address may have before it is told to wait.
#[derive(Clone, Debug)]
pub(crate) struct Failures(Arc<Live>);

impl Failures {
    /// Counts one failure; the refusal to answer instead of the failure's own once there were too many. Only failures are counted
    /// and only failures are refused, so a genuine request behind the same address always passes.
    pub(crate) fn charge(&self, client: &Client) -> Option<Reject> {
        self.0.take_client(client).err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        problem::Source,
        section::{Inputs, Reader},
    };

    fn parsed(text: &str, lossy: Option<&str>) -> (Vec<Limit>, Option<Limit>, Vec<String>) {
        let reader = Reader::new(Source { name: "t.toml".into(), text: text.into() }, Inputs::memory(&[], &[]));
        let table = reader.parse();
        let root = reader.root(&table);
        let (limits, failures) = (read(&root, lossy), read_failures(&root));
        root.finish();
        (limits, failures, reader.problems().iter().map(ToString::to_string).collect())
    }

    fn open(text: &str) -> (Limits, Limiters, Clock) {
        let (limits, _, problems) = parsed(&format!("rate_limit = [{text}]"), None);
        assert_eq!(problems, [""; 0]);
        let clock = Clock::hand(0);
        let limiters = Limiters::new(clock.clone());
        (limiters.limits("r", &limits), limiters, clock)
    }

    fn client(ip: &str) -> Client {
        Client::new(ip.parse().expect("an address"))
    }

    /// How many of `tries` are taken.
    fn taken(tries: usize, mut take: impl FnMut() -> Result<(), Reject>) -> usize {
        (0..tries).filter(|_| take().is_ok()).count()
    }

    fn meter(limits: &Limits, header: &str, body: &'static str) -> Result<(), Reject> {
        let mut headers = HeaderMap::new();
        if !header.is_empty() {
            headers.insert("x-tenant", header.parse().expect("a value"));
        }
        limits.meter(&headers, &mut Chunks::from(bytes::Bytes::from_static(body.as_bytes())))
    }

    #[test]
    fn buckets_hold_a_burst_and_fill_at_their_rate() {
        let (limits, _, clock) = open("{ per = \"ip\", rate = \"60/m\", burst = 5 }");
        let a = client("192.0.2.1");
        assert_eq!(taken(9, || limits.admit(&a)), 5);
        assert_eq!(taken(9, || limits.admit(&client("192.0.2.2"))), 5);
        clock.advance(Duration::from_millis(999));
        assert_eq!(taken(9, || limits.admit(&a)), 0);
        clock.advance(Duration::from_millis(1));
        assert_eq!(taken(9, || limits.admit(&a)), 1);
        clock.advance(Duration::from_secs(3600));
        assert_eq!(taken(9, || limits.admit(&a)), 5);
    }

    #[test]
    fn a_refusal_says_which_limit_and_how_long() {
        let (limits, _, clock) = open("{ per = \"ip\", rate = \"2/m\" }");
        let a = client("192.0.2.1");
        assert_eq!(taken(3, || limits.admit(&a)), 2);
        clock.advance(Duration::from_secs(10));
        let why = limits.admit(&a).expect_err("the bucket is empty");
        assert_eq!((why.reason, &*why.detail), (Reason::RateLimited, "more than 2/m per ip"));
        assert_eq!(why.extra, Extra::Limit { wait: Duration::from_secs(20), policy: "ip", quota: 2, window: Duration::from_secs(60) });
    }

    #[test]
    fn v6_counts_per_64_and_mapped_as_v4() {
        let (limits, ..) = open("{ per = \"ip\", rate = \"3/d\" }");
        let mut at = 0;
        let spread = taken(9, || {
            at += 1;
            limits.admit(&client(&format!("2001:db8::{at}")))
        });
        assert_eq!(spread, 3);
        assert_eq!(taken(9, || limits.admit(&client("2001:db8:0:1::1"))), 3);
        assert_eq!(taken(2, || limits.admit(&client("192.0.2.1"))), 2);
        assert_eq!(taken(9, || limits.admit(&client("::ffff:192.0.2.1"))), 1);
    }

    #[test]
    fn verified_facts_are_metered() {
        let (limits, ..) = open("{ per = \"route\", rate = \"3/d\" }");
        assert_eq!(taken(9, || meter(&limits, "", "")), 3);
        let (limits, ..) = open("{ per = \"header:X-Tenant\", rate = \"2/d\" }");
        assert_eq!(taken(9, || meter(&limits, "a", "")), 2);
        assert_eq!(taken(9, || meter(&limits, "b", "")), 2);
        assert_eq!(taken(9, || meter(&limits, "", "")), 2); // all that have none together
        let (limits, ..) = open("{ per = \"json:/a/id\", rate = \"2/d\" }");
        for body in ["{\"a\":{\"id\":1}}", "{\"a\":{\"id\":2}}", "{\"a\":{\"id\":\"x\"}}"] {
            assert_eq!(taken(9, || meter(&limits, "", body)), 2, "{body}");
        }
        let mut odd = ["{}", "not json", "{\"a\":{\"id\":{}}}", "", "{\"a\":{\"id\":1,\"id\":2}}"].into_iter().cycle();
        assert_eq!(taken(9, || meter(&limits, "", odd.next().expect("a cycle"))), 2);
        let (limits, ..) = open("{ per = \"json:/id\", rate = \"5/d\" }, { per = \"json:/org\", rate = \"3/d\" }");
        assert_eq!(taken(9, || meter(&limits, "", "{\"id\":1,\"org\":1}")), 3);
        assert_eq!(meter(&limits, "", "{\"id\":1,\"org\":2}").err().map(|why| why.detail.into_owned()), Some("more than 5/d per json:/id".into()));
    }

    #[test]
    fn failures_are_counted_and_nothing_else_is() {
        let (_, limit, problems) = parsed("verify_failures = { per = \"ip\", rate = \"10/m\" }", None);
        assert_eq!(problems, [""; 0]);
        let failures = Limiters::new(Clock::hand(0)).failures("r", &limit.expect("no problems"));
        let a = client("192.0.2.1");
        assert_eq!((0..30).filter(|_| failures.charge(&a).is_none()).count(), 10);
        assert_eq!(failures.charge(&client("192.0.2.2")), None);
    }

    #[test]
    fn a_reload_keeps_what_did_not_change() {
        let (limits, limiters, _) = open("{ per = \"route\", rate = \"3/d\" }");
        assert_eq!(taken(9, || meter(&limits, "", "")), 3);
        let again = |rate: &str, route: &str| {
            let limits = limiters.limits(route, &parsed(&format!("rate_limit = [{{ per = \"route\", rate = \"{rate}\" }}]"), None).0);
            taken(9, || meter(&limits, "", ""))
        };
        assert_eq!(again("3/d", "r"), 0);
        assert_eq!(again("3/d", "other"), 3);
        assert_eq!(again("4/d", "r"), 4);
        drop(limits);
        assert_eq!(again("3/d", "r"), 3);
    }

    #[test]
    fn keyed_state_is_bounded_and_swept() {
        let (_, limit, _) = parsed("verify_failures = { rate = \"1/s\" }", None);
        let clock = Clock::hand(0);
        let limiters = Limiters { keys: 1000, ..Limiters::new(clock.clone()) };
        let failures = limiters.failures("r", &limit.expect("no problems"));
        for at in 0..20_000_u32 {
            failures.charge(&Client::new(std::net::Ipv4Addr::from(at).into()));
        }
        assert!((500..=1100).contains(&limiters.keys()), "{}", limiters.keys());
        limiters.sweep();
        assert!(limiters.keys() > 0);
        clock.advance(Duration::from_secs(3));
        limiters.sweep();
        assert_eq!(limiters.keys(), 0);
    }

    #[test]
    fn a_bucket_shared_by_threads_gives_no_more_than_it_holds() {
        let (limits, ..) = open("{ per = \"ip\", rate = \"500/d\" }, { per = \"route\", rate = \"300/d\" }");
        let a = client("192.0.2.1");
        let count = |take: &(dyn Fn() -> Result<(), Reject> + Sync)| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| taken(400, take))).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<usize>()
            })
        };
        assert_eq!(count(&|| limits.admit(&a)), 500);
        assert_eq!(count(&|| meter(&limits, "", "")), 300);
    }

    #[test]
    fn what_cannot_be_meant_is_a_problem() {
        let check = |text: &str, lossy: Option<&str>, want: &[&str]| assert_eq!(parsed(text, lossy).2, want, "{text}");
        check("rate_limit = []", None, &[]);
        for bad in ["500", "0/s", "-1/s", "+1/s", "1.5/s", "500/sec", "500/", "/s", "500 / s", "10000001/s", "99999999999/s", "1/w"] {
            let want = format!("rate_limit[0].rate: `{bad}` is not a rate (write it like \"500/s\", \"10/m\", \"100/h\" or \"1000/d\")");
            check(&format!("rate_limit = [{{ per = \"route\", rate = \"{bad}\" }}]"), None, &[&want]);
        }
        check("rate_limit = [{ rate = \"1/s\" }]", None, &["rate_limit[0].per: `rate_limit[0].per` is missing (add `per = …` to [rate_limit[0]])"]);
        check(
            "rate_limit = [{ per = \"rout\", rate = \"1/s\" }]",
            None,
            &["rate_limit[0].per: `rout` is not known here (did you mean \"route\"? it is one of: route, ip, header:NAME, json:POINTER)"],
        );
        check(
            "rate_limit = [{ per = \"header:a b\", rate = \"1/s\" }]",
            None,
            &["rate_limit[0].per: `a b` is not a header name (write it like \"header:X-Tenant\")"],
        );
        check(
            "rate_limit = [{ per = \"json:a\", rate = \"1/s\" }]",
            None,
            &["rate_limit[0].per: `a` is not a JSON pointer: a JSON pointer starts with `/` (write it like \"json:/repository/id\")"],
        );
        check(
            "rate_limit = [{ per = \"route\", rate = \"1/s\", overflow = \"queue\" }]",
            Some("slack"),
            &["rate_limit[0].overflow: `overflow` is not built yet: excess will wait in the queue (remove the key)"],
        );
        check(
            "rate_limit = [{ per = \"route\", rate = \"1/s\" }]",
            Some("slack"),
            &[
                "rate_limit[0].rate: slack never sends again: what this limit refuses is lost (remove the limit, or say why losing events is fine: accept_loss = \"…\")",
            ],
        );
        check("rate_limit = [{ per = \"route\", rate = \"1/s\", accept_loss = \"only previews\" }]", Some("slack"), &[]);
        check(
            "rate_limit = [{ per = \"route\", rate = \"1/s\" }, { per = \"route\", rate = \"1/s\", burst = 2 }]",
            None,
            &["rate_limit[1]: the same limit stands twice (remove one of the two)"],
        );
        check(
            "rate_limit = [{ per = \"route\", rate = \"1/s\", burst = 0 }]",
            None,
            &["rate_limit[0].burst: `rate_limit[0].burst` is 0 (a whole number from 1 to 10000000 is wanted)"],
        );
        check("verify_failures = { per = \"route\", rate = \"1/s\" }", None, &["verify_failures.per: `route` is not known here (it is one of: ip)"]);
        check(
            "verify_failures = { rte = \"1/s\" }",
            None,
            &[
                "verify_failures.rate: `verify_failures.rate` is missing (add `rate = …` to [verify_failures])",
                "verify_failures.rte: unknown key `rte` (did you mean `rate`?)",
            ],
        );
    }
}
