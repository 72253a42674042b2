//! Replay records and filter values behind one face, kept in the embedded store.
//!
//! A key is claimed in memory; its end (done or failed) goes to the store and is durable within `persist_within`, or before
//! [`State::record`] returns where that is zero. Claims in flight end with the process. Lookups never touch the file; a copy of a done event
//! reads one row of it for the stored answer, and not even that when the last copy came shortly before.
//!
//! Memory: 40 to 75 bytes a record, so 75 MB at most at the default bound of a million. At the bound the records that would expire first are
//! dropped, with a log line and `hooklatch_state_errors_total{op="evict"}`.

mod index;
mod kv;
mod record;
mod store;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::header::CONTENT_TYPE;
use sha2::Sha256;
use tracing::warn;

use self::{
    index::{Begin, Slot},
    record::{AnswerRef, Draft, Kind},
    store::{Batch, Found, Store, batch_of, guard, hour_of, mono_secs, unix_secs},
};
pub(crate) use self::{
    kv::{KvError, NAMESPACE_BYTES, Namespaces},
    record::{Digest, Stored},
};
use crate::{
    clock::{Clock, Mono, Now},
    disk::{Config, Disk, Files, Health, Media, OnError, OpenError, Unavailable},
    event::EventId,
    outcome::Answer,
    section::{Inputs, Section},
};

const PERSIST_WITHIN: Duration = Duration::from_millis(10);
const MAX_RECORDS: u64 = 1_000_000;
/// Stored answers that copies asked for lately, in bytes.
const ANSWER_CACHE_BYTES: u64 = 4 << 20;
/// How often the records are looked through for expired ones.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// A step of the wall clock worth a log line.
const STEP_MS: i64 = 60_000;

/// What happens when the store cannot answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnStateError {
    /// Events with a key are refused with `store_failed` until it answers again.
    #[default]
    Reject,
    /// Events go on; copies are known as far as the memory goes.
    Allow,
}

/// The `[state]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The folder of the store and its lock.
    pub(crate) dir: PathBuf,
    /// How soon the end of an event is durable; zero: before its answer.
    pub(crate) persist_within: Duration,
    pub(crate) on_error: OnStateError,
    /// How many replay records are kept.
    pub(crate) max_records: usize,
}

/// Reads `[state]`: `path` (default: the state directory itself), `persist_within` (10ms; at most 10s), `on_error` ("reject"),
/// `max_records` (1000000; from 1000 to 100000000).
pub(crate) fn read(section: Option<Section<'_>>, inputs: &Inputs) -> Option<Settings> {
    let Some(section) = section else {
        return Some(Settings {
            dir: inputs.resolve_state("."),
            persist_within: PERSIST_WITHIN,
            on_error: OnStateError::Reject,
            max_records: MAX_RECORDS as usize,
        });
    };
    section.not_built("url", "a state that several nodes share");
    let path = section.string_or("path", ".");
    if path.is_empty() {
        section.problem("path", "`path` is empty", "name a folder, or remove the key for the state directory itself");
    }
    let persist_within = section.duration_or("persist_within", PERSIST_WITHIN);
    if persist_within > Duration::from_secs(10) {
        section.problem(
            "persist_within",
            format!("`{}` is longer than 10s", humantime::format_duration(persist_within)),
            "what is done but not on disk is lost in a power cut: keep it short",
        );
    }
    let on_error = section.choice("on_error", &[("reject", OnStateError::Reject), ("allow", OnStateError::Allow)]).unwrap_or_default();
    let max_records = section.u64_or("max_records", MAX_RECORDS, 1_000..=100_000_000);
    let dir = section.inputs().resolve_state(&path);
    section.finish();
    Some(Settings { dir, persist_within, on_error, max_records: usize::try_from(max_records).unwrap_or(usize::MAX) })
}

/// The open state; cloning shares it. The last one dropped writes what waits.
#[derive(Clone)]
pub(crate) struct State(Arc<Inner>);

struct Inner {
    /// Stops before the disk closes.
    keeper: Option<(SyncSender<()>, JoinHandle<()>)>,
    kept: Arc<Kept>,
    mac: Hmac<Sha256>,
    answers: quick_cache::sync::Cache<Digest, (u64, Arc<Stored>), AnswerWeight>,
}

/// What the requests and the keeper thread share.
struct Kept {
    disk: Disk<Store>,
    store: Arc<Store>,
    clock: Clock,
    settings: Settings,
    on_error: OnError,
    evicted: AtomicU64,
    seen: Mutex<Seen>,
}

/// What the keeper saw last.
struct Seen {
    clock: Now,
    swept: Mono,
}

#[derive(Clone)]
struct AnswerWeight;

impl quick_cache::Weighter<Digest, (u64, Arc<Stored>)> for AnswerWeight {
    fn weight(&self, _: &Digest, (_, stored): &(u64, Arc<Stored>)) -> u64 {
        stored.body.len() as u64 + 256
    }
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) records: usize,
    pub(crate) in_flight: usize,
    /// Records dropped before their time because of the bound.
    pub(crate) evicted: u64,
    /// Synced transactions.
    pub(crate) commits: u64,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("settings", &self.0.kept.settings).field("stats", &self.stats()).finish()
    }
}

impl State {
    /// Opens the store in `settings.dir`, making both where they are missing; reads all records. May take seconds for a large file.
    pub(crate) fn open(settings: &Settings, clock: Clock, on_error: OnError) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(Files), settings, clock, on_error)
    }

    pub(crate) fn open_on(media: Arc<dyn Media>, settings: &Settings, clock: Clock, on_error: OnError) -> Result<Self, OpenError> {
        let store = Arc::new(Store::new(settings.max_records, clock.clone()));
        // What is left of `persist_within` is for the write and its fsync.
        let gather = settings.persist_within - (settings.persist_within / 4).min(Duration::from_millis(3));
        let config = Config { dir: settings.dir.clone(), gather, media, on_error: on_error.clone() };
        let disk = Disk::open(config, store.clone())?;
        // HMAC fills a short key up with zeros, to one block.
        let mut block = [0; 64];
        block[..32].copy_from_slice(disk.digest_key());
        let mac = Hmac::<Sha256>::new(&block.into());
        let now = clock.now();
        let seen = Mutex::new(Seen { clock: now, swept: now.mono });
        let kept = Arc::new(Kept { disk, store, clock, settings: settings.clone(), on_error, evicted: AtomicU64::new(0), seen });
        let (stop, wake) = sync_channel::<()>(1);
        let keeper = {
            let kept = kept.clone();
            std::thread::Builder::new().name("state-keeper".into()).spawn(move || {
                while !matches!(wake.recv_timeout(Duration::from_secs(1)), Err(RecvTimeoutError::Disconnected)) {
                    kept.tick();
                }
            })
        };
        let keeper = keeper.map_err(|why| OpenError::no_thread(&settings.dir, &why))?;
        let answers = quick_cache::sync::Cache::with_weighter(4096, ANSWER_CACHE_BYTES, AnswerWeight);
        Ok(Self(Arc::new(Inner { keeper: Some((stop, keeper)), kept, mac, answers })))
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.kept.settings
    }

    /// For `/readyz`.
    pub(crate) fn health(&self) -> Health {
        self.0.kept.disk.health()
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.kept.clock
    }

    pub(crate) fn stats(&self) -> Stats {
        let kept = &self.0.kept;
        Stats {
            records: kept.store.index.len(),
            in_flight: kept.store.index.flights(),
            evicted: kept.evicted.load(Ordering::Relaxed),
            commits: kept.disk.commits(),
        }
    }

    /// Everything recorded so far, on disk; before the program ends.
    pub(crate) async fn flush(&self) -> Result<(), Unavailable> {
        self.0.kept.disk.flush().await
    }

    /// Lets a route's key through once more, as if it had never come. Says whether there was a record.
    #[cfg_attr(not(test), expect(dead_code, reason = "for `hooklatch replay forget`"))]
    pub(crate) async fn forget(&self, route: &str, key: &[u8]) -> Result<bool, Unavailable> {
        let digest = self.digest(route, key);
        let now = self.0.kept.clock.now();
        let (Some(slot), _) = self.0.kept.store.index.look(&digest, mono_secs(now)) else { return Ok(false) };
        if slot.kind() == Kind::Forgotten {
            return Ok(false);
        }
        let left = Duration::from_secs(slot.expires.saturating_sub(mono_secs(now)).into());
        let draft = Draft {
            digest,
            expires_unix: expiry(now, left).0,
            kind: Kind::Forgotten,
            event_id: EventId(uuid::Uuid::nil()),
            attempts: 0,
            branches: &[],
            answer: None,
        };
        let (row, written) = self.0.kept.disk.submit_now(|batch, number| batch.push(number, &draft, slot.expires, slot.row))?;
        self.0.kept.store.index.merge(&digest, Slot::new(row, slot.expires, hour_of(draft.expires_unix), Kind::Forgotten), true);
        self.0.answers.remove(&digest);
        written.await.map(|()| true)
    }

    // -- replay: used by `replay` alone --

    /// Names a key of a route: 128 bits of HMAC-SHA-256 under the store's own secret, so that nobody can aim at a place in the tables.
    pub(crate) fn digest(&self, route: &str, key: &[u8]) -> Digest {
        let length = u32::try_from(route.len()).unwrap_or(u32::MAX).to_le_bytes();
        let full: [u8; 32] = self.0.mac.clone().chain_update(length).chain_update(route).chain_update(key).finalize().into_bytes().into();
        let mut digest = [0; 16];
        digest.copy_from_slice(&full[..16]);
        Digest(digest)
    }

    /// Claims a key. The caller must end what it got with [`State::record`] and [`State::release`].
    pub(crate) async fn begin(&self, digest: Digest, fresh: EventId, wait: bool, now: Now) -> Result<Begun, Unavailable> {
        let kept = &self.0.kept;
        if kept.settings.on_error == OnStateError::Reject && !kept.disk.accepts() {
            return Err(Unavailable);
        }
        match kept.store.index.begin(&digest, fresh, wait, mono_secs(now)) {
            Begin::Fresh(after) => Ok(Begun::Fresh { after }),
            Begin::InFlight(first) => Ok(Begun::InFlight(first)),
            Begin::Waiting(ended) => Ok(Begun::Waiting(Box::pin(ended))),
            Begin::Done(slot) => self.stored(digest, slot, fresh).await.map(Begun::Done),
            Begin::Again(slot) => {
                // Reading may be cancelled or fail: then the claim ends and the failed record stays.
                let hold = Hold { state: self, digest };
                let earlier = match self.find(digest, slot).await {
                    Ok(found) => found,
                    Err(Unavailable) if kept.settings.on_error == OnStateError::Allow => None,
                    Err(Unavailable) => return Err(Unavailable),
                };
                std::mem::forget(hold);
                Ok(match earlier {
                    Some(found) => Begun::Again { event_id: found.event_id, attempts: found.attempts, done_branches: found.done_branches, after: slot.row },
                    // Its row is gone, by the bound: as good as new.
                    None => Begun::Fresh { after: slot.row },
                })
            }
        }
    }

    /// Hands a claim's end to the store. `Ok(None)`: on its way to the disk; `Ok(Some(_))`: on disk when that resolves to `Ok`.
    ///
    /// Never blocks. The claim is still held: [`State::release`] lets copies see the record.
    pub(crate) fn record(&self, digest: Digest, end: &End<'_>) -> Ended {
        let kept = &self.0.kept;
        let now = kept.clock.now();
        let (expires_unix, expires) = expiry(now, end.remember);
        let answer = end.answer.map(|answer| AnswerRef {
            status: answer.status.as_u16(),
            content_type: answer.headers.get(CONTENT_TYPE).map(|value| value.as_bytes()),
            body: &answer.body,
        });
        let kind = if end.answer.is_some() { Kind::Done } else { Kind::Failed };
        let draft = Draft { digest, expires_unix, kind, event_id: end.event_id, attempts: end.attempts, branches: end.branches, answer };
        let (row, written) = if kept.settings.persist_within.is_zero() {
            match kept.disk.submit_now(|batch, number| batch.push(number, &draft, expires, end.after)) {
                Ok((row, written)) => (row, Some(written)),
                Err(Unavailable) => (0, None),
            }
        } else {
            (kept.disk.submit(|batch, number| batch.push(number, &draft, expires, end.after)).unwrap_or(0), None)
        };
        let ready = row != 0 && kept.disk.health().is_ready();
        Ended { slot: Slot::new(row, expires, hour_of(expires_unix), kind), written, ready }
    }

    /// Ends a claim with its record; copies see it from now on.
    pub(crate) fn release(&self, digest: Digest, ended: &Ended) {
        let kept = &self.0.kept;
        kept.store.index.end(&digest, ended.slot);
        if kept.store.index.is_over()
            && let Some((wake, _)) = &self.0.keeper
        {
            // Full: it is awake already.
            let _ = wake.try_send(());
        }
    }

    /// The stored answer of a done record.
    async fn stored(&self, digest: Digest, slot: Slot, fresh: EventId) -> Result<Arc<Stored>, Unavailable> {
        if let Some((row, stored)) = self.0.answers.get(&digest)
            && row == slot.row
        {
            return Ok(stored);
        }
        // Done, but what was answered is not known: the store was full or failed at that time, and `on_error = "allow"`.
        let unknown = || Arc::new(Stored { event_id: fresh, status: 200, content_type: None, body: Bytes::new() });
        if slot.row == 0 {
            return Ok(unknown());
        }
        match self.find(digest, slot).await {
            Ok(Some(Found { answer: Some(stored), .. })) => {
                let stored = Arc::new(stored);
                self.0.answers.insert(digest, (slot.row, stored.clone()));
                Ok(stored)
            }
            Ok(found) => {
                warn!(found = found.is_some(), "a done event has no stored answer; its copy is acknowledged with 200");
                Ok(unknown())
            }
            Err(Unavailable) if self.settings().on_error == OnStateError::Allow => Ok(unknown()),
            Err(Unavailable) => Err(Unavailable),
        }
    }

    /// A record's row: from what waits to be written, else from the file.
    async fn find(&self, digest: Digest, slot: Slot) -> Result<Option<Found>, Unavailable> {
        let kept = &self.0.kept;
        let waiting = kept.disk.waiting(|batch, number| if number == batch_of(slot.row) { batch.find(slot.row, &digest) } else { None });
        if waiting.is_some() {
            return Ok(waiting);
        }
        let kept = kept.clone();
        let read = tokio::task::spawn_blocking(move || kept.disk.read(|tables| store::read(tables, slot, &digest)));
        read.await.unwrap_or(Err(Unavailable))
    }

    // -- filter values --

    /// Reads a value; from memory.
    pub(crate) fn kv_get(&self, namespace: &str, key: &str, now: Now) -> Option<Bytes> {
        guard(&self.0.kept.store.kv).get(namespace, key, now)
    }

    /// Sets a value; durable within `persist_within`, as every change here.
    pub(crate) fn kv_set(&self, namespace: &str, key: &str, value: Bytes, ttl: Option<Duration>, now: Now) -> Result<(), KvError> {
        self.kv_change(namespace, key, |kv| kv.set(namespace, key, value, ttl, now).map(|written| ((), Some(written))))
    }

    /// Says whether there was something to delete.
    pub(crate) fn kv_delete(&self, namespace: &str, key: &str, now: Now) -> Result<bool, KvError> {
        self.kv_change(namespace, key, |kv| {
            let written = kv.delete(namespace, key, now);
            Ok((written.is_some(), written))
        })
    }

    /// Adds to a number kept as decimal text and returns the sum; `ttl` counts only when the key is made.
    pub(crate) fn kv_increment(&self, namespace: &str, key: &str, by: i64, ttl: Option<Duration>, now: Now) -> Result<i64, KvError> {
        self.kv_change(namespace, key, |kv| kv.increment(namespace, key, by, ttl, now).map(|(sum, written)| (sum, Some(written))))
    }

    /// Sets the value only if it is `expected` now (`None`: only if absent); says whether it did.
    pub(crate) fn kv_compare_and_set(
        &self,
        namespace: &str,
        key: &str,
        expected: Option<&[u8]>,
        value: Bytes,
        ttl: Option<Duration>,
        now: Now,
    ) -> Result<bool, KvError> {
        self.kv_change(namespace, key, |kv| {
            let written = kv.compare_and_set(namespace, key, expected, value, ttl, now)?;
            Ok((written.is_some(), written))
        })
    }

    /// One step in memory, and its change on the way to the disk: the order of both is the same, as the lock is held over them.
    fn kv_change<T>(
        &self,
        namespace: &str,
        key: &str,
        step: impl FnOnce(&mut kv::Namespaces) -> Result<(T, Option<kv::Written>), KvError>,
    ) -> Result<T, KvError> {
        let kept = &self.0.kept;
        if !kept.disk.accepts() {
            return Err(KvError::Unavailable);
        }
        let mut kv = guard(&kept.store.kv);
        let (out, written) = step(&mut kv)?;
        if let Some(written) = written {
            kept.disk.submit(|batch, _| (batch.put(namespace, key, written), ())).map_err(|Unavailable| KvError::Unavailable)?;
        }
        Ok(out)
    }

    #[cfg(test)]
    pub(crate) fn tick(&self) {
        self.0.kept.tick();
    }

    /// How many batches with records are not on disk yet.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        let mut batches = 0;
        self.0.kept.disk.waiting(|batch, _| {
            batches += usize::from(!batch.is_empty());
            None::<()>
        });
        batches
    }

    /// How many rows of records and of answers are in the file.
    #[cfg(test)]
    pub(crate) fn rows(&self) -> (u64, u64) {
        self.0.kept.disk.read(store::count).expect("it reads")
    }
}

/// What [`State::begin`] found.
pub(crate) enum Begun {
    /// `after` goes into the claim's [`End`].
    Fresh {
        after: u64,
    },
    Again {
        event_id: EventId,
        /// How often the event was taken up before.
        attempts: u16,
        done_branches: Vec<Box<str>>,
        after: u64,
    },
    Done(Arc<Stored>),
    /// The first's id.
    InFlight(EventId),
    Waiting(std::pin::Pin<Box<tokio::sync::futures::OwnedNotified>>),
}

/// How a claim ends; `answer` is for a done one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) event_id: EventId,
    pub(crate) attempts: u16,
    pub(crate) branches: &'a [(Box<str>, bool)],
    pub(crate) answer: Option<&'a Answer>,
    pub(crate) remember: Duration,
    /// What [`State::begin`] said.
    pub(crate) after: u64,
}

/// A record on its way.
#[derive(Debug)]
pub(crate) struct Ended {
    slot: Slot,
    /// Present where the answer waits for the fsync.
    pub(crate) written: Option<crate::disk::Written>,
    /// Whether the store took it and works.
    pub(crate) ready: bool,
}

/// Gives a claim back when reading its earlier record does not come to an end.
struct Hold<'a> {
    state: &'a State,
    digest: Digest,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.state.0.kept.store.index.abandon(&self.digest);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some((stop, keeper)) = self.keeper.take() {
            drop(stop);
            // It holds the disk: only after it has ended does the disk write what waits and close.
            let _ = keeper.join();
        }
    }
}

impl Kept {
    /// The keeper's turn: the bound, expired records, steps of the wall clock.
    fn tick(&self) {
        let now = self.clock.now();
        let sweeping = {
            let mut seen = guard(&self.seen);
            self.watch_clock(seen.clock, now);
            seen.clock = now;
            let due = now.mono.since(seen.swept) >= SWEEP_EVERY;
            if due {
                seen.swept = now.mono;
            }
            due
        };
        let mut lined_up = 0;
        if let Some(evicted) = self.store.index.evict() {
            self.evicted.fetch_add(evicted.records as u64, Ordering::Relaxed);
            (self.on_error)("evict");
            warn!(
                records = evicted.records,
                max_records = self.settings.max_records,
                "replay records are at their bound: those that would expire first were forgotten, a replay of them would pass; raise `max_records` in [state]"
            );
            lined_up += self.store.line_up(evicted.before);
        }
        if sweeping {
            self.store.index.sweep(mono_secs(now));
            lined_up += self.store.line_up(mono_secs(now));
            let mut kv = guard(&self.store.kv);
            for (namespace, key) in kv.sweep(now) {
                // Refused when the writer is far behind: an expired value in the file is dropped at the next start.
                let _ = self.disk.submit(|batch: &mut Batch, _| (batch.put(&namespace, &key, None), ()));
            }
        }
        if lined_up > 0 {
            self.disk.nudge();
        }
    }

    fn watch_clock(&self, before: Now, now: Now) {
        let passed = i64::try_from(now.mono.since(before.mono).as_millis()).unwrap_or(i64::MAX);
        let step = now.wall_ms.saturating_sub(before.wall_ms).saturating_sub(passed);
        if step.saturating_abs() > STEP_MS {
            warn!(step_ms = step, "the wall clock was stepped: signed times are judged by the new time, replay records neither expire nor last longer");
        }
    }
}

/// When a record made now expires: in Unix seconds, for the file, and in seconds of the monotonic clock. Rounded up.
fn expiry(now: Now, remember: Duration) -> (u32, u32) {
    let span = u32::try_from(remember.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
    (unix_secs(now.wall_ms).saturating_add(span), mono_secs(now).saturating_add(span))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{disk::model::Model, problem::Source, section::Reader};

    const WALL: i64 = 1_790_000_000_000;

    fn open(model: &Model, clock: &Clock) -> State {
        let settings = Settings { dir: "model".into(), persist_within: Duration::from_millis(1), on_error: OnStateError::Reject, max_records: 1000 };
        State::open_on(Arc::new(model.clone()), &settings, clock.clone(), Arc::new(|_| {})).expect("a sound disk opens")
    }

    fn text(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[tokio::test]
    async fn filter_values_outlive_the_process() {
        let (model, clock) = (Model::new(), Clock::hand(WALL));
        let state = open(&model, &clock);
        let now = clock.now();
        state.kv_set("redact", "a", text("1"), None, now).expect("room");
        state.kv_set("redact", "b", text("2"), Some(Duration::from_secs(10)), now).expect("room");
        state.kv_set("redact", "c", text("3"), None, now).expect("room");
        assert_eq!(state.kv_delete("redact", "c", now), Ok(true));
        assert_eq!(state.kv_increment("route", "a", 5, None, now), Ok(5));
        assert_eq!(state.kv_compare_and_set("redact", "a", Some(b"1"), text("9"), None, now), Ok(true));
        state.flush().await.expect("the store works");
        let check = |state: &State, namespace: &str, key: &str, expected: Option<&str>| {
            assert_eq!(state.kv_get(namespace, key, clock.now()), expected.map(text), "{namespace} {key}");
        };
        let after = open(&model.cut(0), &clock);
        for state in [&state, &after] {
            check(state, "redact", "a", Some("9"));
            check(state, "redact", "b", Some("2"));
            check(state, "redact", "c", None);
            check(state, "route", "a", Some("5"));
            check(state, "route", "b", None);
        }
        clock.advance(Duration::from_secs(10));
        check(&state, "redact", "b", None);
        clock.advance(Duration::from_secs(60));
        state.tick();
        state.flush().await.expect("the store works");
        let early = Clock::hand(WALL);
        assert_eq!(open(&model.cut(0), &early).kv_get("redact", "b", early.now()), None, "it is gone from the file");
    }

    #[tokio::test]
    async fn a_failed_sync_brings_no_deleted_value_back() {
        let (model, clock) = (Model::new(), Clock::hand(WALL));
        let state = open(&model, &clock);
        state.kv_set("redact", "a", text("1"), None, clock.now()).expect("room");
        state.flush().await.expect("the store works");
        model.fail_syncs(1);
        assert_eq!(state.kv_delete("redact", "a", clock.now()), Ok(true));
        while state.health().ready().is_ok() && state.waiting() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        while state.health().ready().is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(state.kv_get("redact", "a", clock.now()), None);
        state.flush().await.expect("the store works again");
        assert_eq!(open(&model.cut(0), &clock).kv_get("redact", "a", clock.now()), None);
    }

    fn read_settings(text: &str) -> (Option<Settings>, Vec<String>) {
        let reader = Reader::new(Source { name: "p.toml".into(), text: text.into() }, Inputs::system("/etc/hooklatch".into(), "/var/lib/hooklatch".into()));
        let table = reader.parse();
        let root = reader.root(&table);
        let settings = read(root.opt_section("state"), &reader.inputs);
        (settings, reader.problems().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn settings_are_read_or_refused() {
        let default = || read_settings("").0.expect("settings");
        let check = |text: &str, expected: Settings| assert_eq!(read_settings(text), (Some(expected), vec![]), "{text}");
        assert_eq!((default().dir, default().persist_within), (PathBuf::from("/var/lib/hooklatch/."), Duration::from_millis(10)));
        check("[state]", default());
        check(
            "[state]\npath = \"var\"\npersist_within = \"0s\"\non_error = \"allow\"\nmax_records = 5000",
            Settings { dir: "/var/lib/hooklatch/var".into(), persist_within: Duration::ZERO, on_error: OnStateError::Allow, max_records: 5000 },
        );
        let refused = |text: &str, says: &str| {
            let (_, problems) = read_settings(text);
            assert!(problems.len() == 1 && problems[0].contains(says), "{text}: {problems:?}");
        };
        refused("[state]\nurl = \"redis://10.0.0.9\"", "not built yet");
        refused("[state]\npath = \"\"", "empty");
        refused("[state]\npersist_within = \"1m\"", "longer than 10s");
        refused("[state]\non_error = \"ignore\"", "not known here");
        refused("[state]\nmax_records = 5", "1000");
    }
}
