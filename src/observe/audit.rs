//! The audit line: one JSON object for every decision, in an append-only file.
//!
//! A request hands its [`Line`] over and goes on; a thread of its own formats and writes, every 20 ms, and syncs the file to the disk
//! once a second. So `kill -9` may take the lines of the last 20 ms with it, a power cut those of the last second.
//!
//! **What happens when it cannot be written.** Formatted lines are kept, up to 8 MiB, and tried again every second; a write that failed
//! half way is cut off again. With `on_error = "continue"` (the default) requests go on; lines beyond those bounds are lost, counted
//! (`hooklatch_audit_lines_total{result="failed"}` and `"dropped"`) and the file says how many as soon as it can be written again. With
//! `on_error = "refuse"` the gate refuses requests while the file cannot be written, or while the writer is so far behind that a line
//! might be lost: [`Audit::accepting`].

use std::{
    borrow::Cow,
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    mem,
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use http::Method;
use serde::{Serialize, Serializer, ser::SerializeMap};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};
use tokio::sync::watch;

use crate::{
    clock::{Clock, Mono},
    event::{EventId, Verification},
    observe::{events::Bounded, metrics::Metrics},
    outcome::Ending,
    reject::Reason,
    section::{Inputs, Section},
};

/// Lines that may wait for the writer.
const QUEUED: usize = 16_384;
/// From here on [`Audit::accepting`] says no under `on_error = "refuse"`: the rest is for requests already under way.
const NEARLY_FULL: usize = QUEUED / 4 * 3;
/// Formatted lines that may wait for a file that cannot be written.
const PENDING: usize = 8 << 20;
/// How long the writer gathers lines before it writes them.
const GATHER: Duration = Duration::from_millis(20);
/// How often the file is synced, and how often a failed one is tried again.
const EVERY: Duration = Duration::from_secs(1);
/// Decisions kept in memory for the admin page.
const KEPT: usize = 200;
/// Longest text taken over from a request, in bytes; what is longer is cut and ends in `…`.
const TEXT: usize = 1024;

// -- settings --

/// What is done while the audit file cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnError {
    Continue,
    Refuse,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) path: PathBuf,
    /// Bytes after which the file is moved to `NAME.1` and begun anew; default 100 MiB.
    pub(crate) rotate: u64,
    /// How many moved files are kept; default 10.
    pub(crate) keep: u64,
    pub(crate) on_error: OnError,
}

/// What holds where the policy says nothing.
pub(crate) fn default(inputs: &Inputs) -> Settings {
    Settings { path: inputs.resolve_state("audit.jsonl"), rotate: 100 << 20, keep: 10, on_error: OnError::Continue }
}

/// Reads `audit` of `[log]`: a path relative to the state directory, `{ path, rotate, keep, on_error }`, or `false` for none; without
/// it `audit.jsonl`.
pub(crate) fn read(log: &Section<'_>) -> Option<Settings> {
    let settings = |path: &str| Settings { path: log.inputs().resolve_state(path), ..default(log.inputs()) };
    let Some(item) = log.item("audit") else { return Some(default(log.inputs())) };
    match item.as_bool() {
        Some(false) => return None,
        Some(true) => return Some(default(log.inputs())),
        None => {}
    }
    if !item.is_table() {
        let path = item.string()?;
        if path.is_empty() {
            item.problem("the audit file has no name", "name a file, or write `audit = false` for none");
        }
        return Some(settings(&path));
    }
    let table = item.section()?;
    let mut read = table.opt_string("path").map_or_else(|| default(log.inputs()), |path| settings(&path));
    read.rotate = table.size_or("rotate", read.rotate);
    if read.rotate < 64 << 10 {
        table.problem("rotate", format!("{} bytes are too few to rotate after", read.rotate), "64KiB or more");
    }
    read.keep = table.u64_or("keep", read.keep, 1..=1000);
    read.on_error = table.choice("on_error", &[("continue", OnError::Continue), ("refuse", OnError::Refuse)]).unwrap_or(OnError::Continue);
    table.finish();
    Some(read)
}

// -- a line --

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Ended(Ending),
    Refused(Reason),
    /// The sender went away before there was an answer.
    Aborted,
}

impl Decision {
    pub(crate) const fn outcome(self) -> &'static str {
        match self {
            Self::Ended(ending) => ending.code(),
            Self::Refused(_) => "refused",
            Self::Aborted => "aborted",
        }
    }

    pub(crate) const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Refused(reason) => Some(reason.code()),
            Self::Ended(_) | Self::Aborted => None,
        }
    }
}

/// What became of one of the event's destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Branch {
    pub(crate) to: Arc<str>,
    /// `ok`, or the word for what went wrong, as in `hooklatch_delivery_attempts_total`.
    pub(crate) result: &'static str,
    /// The receiver's status, where it answered.
    pub(crate) status: Option<u16>,
}

/// One decision. Never a body, a secret, a signature or a query's values.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Unix time in milliseconds at which the request's head had arrived.
    pub(crate) time_ms: i64,
    pub(crate) event_id: EventId,
    pub(crate) decision: Decision,
    /// The status that was answered; 0 where nothing was.
    pub(crate) status: u16,
    /// Of a refusal, for the operator: `Reject::detail`.
    pub(crate) detail: Cow<'static, str>,
    /// Number of the policy that judged, from 1.
    pub(crate) policy: u64,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) provider: Option<Arc<str>>,
    pub(crate) verified: Verification,
    /// Label of the secret that matched.
    pub(crate) secret: Option<Arc<str>>,
    pub(crate) event_type: Option<String>,
    pub(crate) delivery_id: Option<String>,
    /// As in `hooklatch_replay_total`.
    pub(crate) replay: Option<&'static str>,
    /// Reasons for which guards that only observe would have refused.
    pub(crate) would_refuse: Vec<Reason>,
    pub(crate) branches: Vec<Branch>,
    pub(crate) client_ip: Option<IpAddr>,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) method: Option<Method>,
    pub(crate) host: Option<String>,
    pub(crate) path: String,
    /// Made by [`query_names`].
    pub(crate) query: String,
    pub(crate) body_bytes: u64,
    pub(crate) took: Duration,
    /// Filters' notes.
    pub(crate) annotations: Vec<(String, String)>,
}

impl Line {
    /// A line of which nothing is known yet but when and which.
    pub(crate) fn new(event_id: EventId, time_ms: i64, decision: Decision) -> Self {
        Self {
            time_ms,
            event_id,
            decision,
            status: 0,
            detail: Cow::Borrowed(""),
            policy: 0,
            route: None,
            provider: None,
            verified: Verification::None,
            secret: None,
            event_type: None,
            delivery_id: None,
            replay: None,
            would_refuse: Vec::new(),
            branches: Vec::new(),
            client_ip: None,
            peer: None,
            method: None,
            host: None,
            path: String::new(),
            query: String::new(),
            body_bytes: 0,
            took: Duration::ZERO,
            annotations: Vec::new(),
        }
    }
}

/// The names of a query's parameters, without their values: tokens travel in those. A piece without `=` may be a token itself and
/// becomes `*`.
pub(crate) fn query_names(query: &str) -> String {
    let mut out = String::new();
    for piece in query.split('&').take(32) {
        if !out.is_empty() {
            out.push('&');
        }
        match piece.split_once('=') {
            Some((name, _)) => out.push_str(&cut(name, 64)),
            None => out.push('*'),
        }
    }
    out
}

fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most { Cow::Borrowed(text) } else { Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(most)])) }
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("time", &rfc3339(self.time_ms))?;
        map.serialize_entry("event_id", &format_args!("{}", self.event_id))?;
        map.serialize_entry("outcome", self.decision.outcome())?;
        if let Some(reason) = self.decision.reason() {
            map.serialize_entry("reason", reason)?;
        }
        if self.status != 0 {
            map.serialize_entry("status", &self.status)?;
        }
        text(&mut map, "detail", &self.detail)?;
        text(&mut map, "route", self.route.as_deref().unwrap_or_default())?;
        text(&mut map, "provider", self.provider.as_deref().unwrap_or_default())?;
        if self.route.is_some() {
            map.serialize_entry("verified", self.verified.code())?;
        }
        text(&mut map, "secret", self.secret.as_deref().unwrap_or_default())?;
        text(&mut map, "event_type", self.event_type.as_deref().unwrap_or_default())?;
        text(&mut map, "delivery_id", self.delivery_id.as_deref().unwrap_or_default())?;
        if let Some(replay) = self.replay {
            map.serialize_entry("replay", replay)?;
        }
        if !self.would_refuse.is_empty() {
            let codes: Vec<&str> = self.would_refuse.iter().map(|reason| reason.code()).collect();
            map.serialize_entry("would_refuse", &codes)?;
        }
        if !self.branches.is_empty() {
            map.serialize_entry("destinations", &self.branches)?;
        }
        if let Some(ip) = self.client_ip {
            map.serialize_entry("client_ip", &ip)?;
        }
        if let Some(peer) = self.peer {
            map.serialize_entry("peer", &peer)?;
        }
        if let Some(method) = &self.method {
            map.serialize_entry("method", &cut(method.as_str(), 32))?;
        }
        text(&mut map, "host", self.host.as_deref().unwrap_or_default())?;
        text(&mut map, "path", &self.path)?;
        text(&mut map, "query", &self.query)?;
        map.serialize_entry("body_bytes", &self.body_bytes)?;
        map.serialize_entry("duration_us", &u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX))?;
        if !self.annotations.is_empty() {
            map.serialize_entry("annotations", &Notes(&self.annotations))?;
        }
        map.serialize_entry("policy", &self.policy)?;
        map.end()
    }
}

fn text<M: SerializeMap>(map: &mut M, key: &'static str, value: &str) -> Result<(), M::Error> {
    if value.is_empty() { Ok(()) } else { map.serialize_entry(key, &cut(value, TEXT)) }
}

impl Serialize for Branch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("to", &*self.to)?;
        map.serialize_entry("result", self.result)?;
        if let Some(status) = self.status {
            map.serialize_entry("status", &status)?;
        }
        map.end()
    }
}

/// A list of pairs, not an object: a filter may use a name twice.
struct Notes<'a>(&'a [(String, String)]);

impl Serialize for Notes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(name, value)| [cut(name, TEXT), cut(value, TEXT)]))
    }
}

const RFC3339_MS: &[BorrowedFormatItem<'static>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// A Unix time in milliseconds as `2026-11-24T20:40:00.123Z`.
pub(crate) fn rfc3339(ms: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    at.format(RFC3339_MS).unwrap_or_default()
}

// -- the last decisions, in memory --

/// The last 200 audit lines, for the admin page.
#[derive(Clone, Debug)]
pub(crate) struct Decisions(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    /// Each with its number, from 1.
    lines: Mutex<VecDeque<(u64, Arc<str>)>>,
    last: watch::Sender<u64>,
}

impl Decisions {
    fn new() -> Self {
        Self(Arc::new(Kept { lines: Mutex::default(), last: watch::Sender::new(0) }))
    }

    fn push_all(&self, new: impl Iterator<Item = Arc<str>>) {
        let mut lines = lock(&self.0.lines);
        let mut last = *self.0.last.borrow();
        for line in new {
            last += 1;
            if lines.len() == KEPT {
                lines.pop_front();
            }
            lines.push_back((last, line));
        }
        drop(lines);
        self.0.last.send_replace(last);
    }

    /// Those after number `after`, oldest first: number and JSON object.
    pub(crate) fn list(&self, after: u64) -> Vec<(u64, Arc<str>)> {
        lock(&self.0.lines).iter().filter(|(seq, _)| *seq > after).cloned().collect()
    }

    /// Tells the number of the newest.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.0.last.subscribe()
    }
}

// -- the way to the writer --

/// Where decisions are handed over; clones share one writer.
#[derive(Clone, Debug)]
pub(crate) struct Audit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    bell: Condvar,
    /// The file cannot be written.
    failing: AtomicBool,
    refuse: AtomicBool,
    waiting: AtomicU64,
    decisions: Decisions,
    metrics: Arc<Metrics>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Queue {
    lines: Vec<Line>,
    /// Lines that found no room since the writer last looked.
    dropped: u64,
    orders: Vec<Order>,
    closed: bool,
}

#[derive(Debug)]
enum Order {
    Configure(Option<Settings>),
    Reopen,
    /// Answer when everything before has been tried.
    Flush(mpsc::SyncSender<()>),
    Close(mpsc::SyncSender<()>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Audit {
    /// Starts the writer. `None`: no file; the last decisions are kept in memory all the same.
    pub(crate) fn start(settings: Option<Settings>, metrics: Arc<Metrics>, clock: Clock) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            bell: Condvar::new(),
            failing: AtomicBool::new(false),
            refuse: AtomicBool::new(false),
            waiting: AtomicU64::new(0),
            decisions: Decisions::new(),
            metrics,
            clock,
        });
        let mut writer = Writer { shared: shared.clone(), settings: None, file: None, pending: VecDeque::new(), pending_bytes: 0, lost: 0, last_try: None };
        writer.configure(settings);
        thread::Builder::new().name("audit".into()).spawn(move || writer.run())?;
        Ok(Self(shared))
    }

    /// Hands a decision over. Never waits for the disk; a line that finds no room is counted, and said in the file.
    pub(crate) fn push(&self, line: Line) {
        let mut queue = lock(&self.0.queue);
        if queue.lines.len() >= QUEUED || queue.closed {
            queue.dropped += 1;
            drop(queue);
            self.0.metrics.audit_dropped.add(1);
            return;
        }
        queue.lines.push(line);
        let waiting = queue.lines.len();
        drop(queue);
        self.0.waiting.store(waiting as u64, Ordering::Relaxed);
        // One wake-up when there is something to gather, one when there is a lot of it: not one a line.
        if waiting == 1 || waiting == QUEUED / 4 {
            self.0.bell.notify_one();
        }
    }

    /// False while `on_error = "refuse"` and a line might not reach the file: the request is to be refused before it begins.
    pub(crate) fn accepting(&self) -> bool {
        !self.0.refuse.load(Ordering::Relaxed) || (!self.failing() && self.0.waiting.load(Ordering::Relaxed) < NEARLY_FULL as u64)
    }

    /// True while the file cannot be written.
    pub(crate) fn failing(&self) -> bool {
        self.0.failing.load(Ordering::Relaxed)
    }

    pub(crate) fn decisions(&self) -> Decisions {
        self.0.decisions.clone()
    }

    /// Goes on with other settings, after what was pushed before.
    pub(crate) fn configure(&self, settings: Option<Settings>) {
        self.order(Order::Configure(settings));
    }

    /// Opens the file anew by its name, for whoever moved it: on SIGHUP. Lines that wait meanwhile may still go to the moved one.
    pub(crate) fn reopen(&self) {
        self.order(Order::Reopen);
    }

    /// Waits, at most `most`, until all that was pushed before has been written or has failed. Not for async code.
    pub(crate) fn flush(&self, most: Duration) -> bool {
        let (done, wait) = mpsc::sync_channel(1);
        self.order(Order::Flush(done));
        wait.recv_timeout(most).is_ok()
    }

    /// Writes and syncs what is left, waiting at most `most`, and ends the writer; later lines are dropped. Not for async code.
    pub(crate) fn close(&self, most: Duration) -> bool {
        let (done, wait) = mpsc::sync_channel(1);
        self.order(Order::Close(done));
        wait.recv_timeout(most).is_ok()
    }

    fn order(&self, order: Order) {
        lock(&self.0.queue).orders.push(order);
        self.0.bell.notify_one();
    }
}

// -- the writer --

struct Writer {
    shared: Arc<Shared>,
    settings: Option<Settings>,
    file: Option<Open>,
    /// Formatted lines, with their line feeds, that are not written yet.
    pending: VecDeque<Arc<str>>,
    pending_bytes: usize,
    /// Lines lost that the file has not told of yet.
    lost: u64,
    /// When a failed file was last tried.
    last_try: Option<Mono>,
}

struct Open {
    file: File,
    size: u64,
    synced: Option<Mono>,
    dirty: bool,
}

static TROUBLE: Bounded = Bounded::new(1);

impl Writer {
    fn run(mut self) {
        loop {
            let (lines, dropped, orders) = self.gather();
            self.take(lines, dropped);
            self.write(false);
            for order in orders {
                match order {
                    Order::Configure(settings) => self.configure(settings),
                    Order::Reopen => {
                        self.file = None;
                        self.write(true);
                    }
                    Order::Flush(done) => {
                        self.write(true);
                        let _ = done.send(()); // whoever asked may have stopped waiting
                    }
                    Order::Close(done) => {
                        let mut queue = lock(&self.shared.queue);
                        queue.closed = true;
                        let (lines, dropped) = (mem::take(&mut queue.lines), mem::take(&mut queue.dropped));
                        drop(queue);
                        self.take(lines, dropped);
                        self.write(true);
                        self.sync();
                        let _ = done.send(()); // whoever asked may have stopped waiting
                        return;
                    }
                }
            }
            self.sync_now_and_then();
        }
    }

    /// Waits for lines or orders, and a little longer for more lines.
    fn gather(&self) -> (Vec<Line>, u64, Vec<Order>) {
        let shared = &self.shared;
        let mut queue = lock(&shared.queue);
        while queue.lines.is_empty() && queue.orders.is_empty() {
            if self.restless() {
                let (back, timeout) = shared.bell.wait_timeout(queue, EVERY).unwrap_or_else(PoisonError::into_inner);
                queue = back;
                if timeout.timed_out() {
                    break;
                }
            } else {
                queue = shared.bell.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
        if queue.orders.is_empty() && !queue.lines.is_empty() && queue.lines.len() < QUEUED / 4 {
            queue = shared.bell.wait_timeout(queue, GATHER).unwrap_or_else(PoisonError::into_inner).0;
        }
        // As much room again: growing it line by line would be the requests' time.
        let fresh = Vec::with_capacity(queue.lines.len());
        let taken = (mem::replace(&mut queue.lines, fresh), mem::take(&mut queue.dropped), mem::take(&mut queue.orders));
        drop(queue);
        shared.waiting.store(0, Ordering::Relaxed);
        taken
    }

    /// There is something to do even if nobody calls: a file to sync or to try again.
    fn restless(&self) -> bool {
        self.settings.is_some() && (!self.pending.is_empty() || self.lost > 0 || self.file.as_ref().is_none_or(|open| open.dirty))
    }

    /// Formats lines and keeps them, in memory for the page and to be written.
    fn take(&mut self, lines: Vec<Line>, dropped: u64) {
        self.lost += dropped;
        if lines.is_empty() {
            return;
        }
        let formatted: Vec<Arc<str>> = lines
            .iter()
            .filter_map(|line| serde_json::to_string(line).ok()) // of strings and numbers alone: never fails
            .map(|mut line| {
                line.push('\n');
                Arc::from(line)
            })
            .collect();
        self.shared.decisions.push_all(formatted.iter().rev().take(KEPT).rev().cloned());
        if self.settings.is_none() {
            return;
        }
        for line in formatted {
            if self.pending_bytes + line.len() > PENDING {
                self.lost += 1;
                self.shared.metrics.audit_failed.add(1);
            } else {
                self.pending_bytes += line.len();
                self.pending.push_back(line);
            }
        }
    }

    fn configure(&mut self, settings: Option<Settings>) {
        if self.settings.as_ref().map(|s| &s.path) != settings.as_ref().map(|s| &s.path) {
            self.write(true);
            self.sync();
            self.file = None;
        }
        self.shared.refuse.store(settings.as_ref().is_some_and(|s| s.on_error == OnError::Refuse), Ordering::Relaxed);
        self.settings = settings;
        if self.settings.is_none() {
            self.pending.clear();
            self.pending_bytes = 0;
            self.lost = 0;
            self.shared.failing.store(false, Ordering::Relaxed);
        }
        self.write(true);
    }

    /// Writes what is pending. A file in trouble is left alone for a second, unless `now`.
    fn write(&mut self, now: bool) {
        let Some(settings) = self.settings.clone() else { return };
        let mono = self.shared.clock.mono();
        let resting = self.last_try.is_some_and(|at| mono.since(at) < EVERY);
        if self.shared.failing.load(Ordering::Relaxed) && resting && !now {
            return;
        }
        match self.try_write(&settings) {
            Ok(()) => {
                self.last_try = None;
                if self.shared.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(file = %settings.path.display(), "the audit file can be written again");
                }
            }
            Err(why) => {
                self.last_try = Some(mono);
                self.shared.failing.store(true, Ordering::Relaxed);
                if TROUBLE.allow(mono).is_some() {
                    let file = settings.path.display();
                    tracing::error!(%file, error = %why, pending = self.pending.len(), "the audit file cannot be written; make room or mend its permissions");
                }
            }
        }
    }

    fn try_write(&mut self, settings: &Settings) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(Open::new(&settings.path)?);
        }
        if self.lost > 0 {
            let note = format!("{{\"time\":\"{}\",\"outcome\":\"lost\",\"lines\":{}}}\n", rfc3339(self.shared.clock.now().wall_ms), self.lost);
            self.append(settings, note.as_bytes())?;
            self.lost = 0;
        }
        while !self.pending.is_empty() {
            let open = self.file.as_ref().ok_or_else(|| io::Error::other("the file was not opened"))?;
            let room = settings.rotate.saturating_sub(open.size);
            let mut chunk: Vec<u8> = Vec::new();
            let mut count = 0;
            for line in &self.pending {
                if count > 0 && ((chunk.len() + line.len()) as u64 > room || chunk.len() > 256 << 10) {
                    break;
                }
                chunk.extend_from_slice(line.as_bytes());
                count += 1;
            }
            self.append(settings, &chunk)?;
            self.pending.drain(..count);
            self.pending_bytes -= chunk.len();
            self.shared.metrics.audit_written.add(count as u64);
        }
        Ok(())
    }

    /// Appends whole lines, to a fresh file where this one would grow past its bound; on failure the file is as it was.
    fn append(&mut self, settings: &Settings, bytes: &[u8]) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|open| open.size > 0 && open.size + bytes.len() as u64 > settings.rotate) {
            self.sync();
            self.file = None;
            if let Err(why) = rotate(&settings.path, settings.keep) {
                // Better a file that is too long than lines that are lost.
                if TROUBLE.allow(self.shared.clock.mono()).is_some() {
                    tracing::error!(file = %settings.path.display(), error = %why, "the audit file cannot be rotated and grows on");
                }
            }
            self.file = Some(Open::new(&settings.path)?);
        }
        let open = self.file.as_mut().ok_or_else(|| io::Error::other("the file was not opened"))?;
        if let Err(why) = open.file.write_all(bytes) {
            let _ = open.file.set_len(open.size); // a file that cannot be cut either is mended when it is opened next
            self.file = None;
            return Err(why);
        }
        open.size += bytes.len() as u64;
        open.dirty = true;
        Ok(())
    }

    fn sync_now_and_then(&mut self) {
        let mono = self.shared.clock.mono();
        if self.file.as_ref().is_some_and(|open| open.dirty && open.synced.is_none_or(|at| mono.since(at) >= EVERY)) {
            self.sync();
        }
    }

    fn sync(&mut self) {
        let mono = self.shared.clock.mono();
        let Some(open) = &mut self.file else { return };
        if !mem::take(&mut open.dirty) {
            return;
        }
        open.synced = Some(mono);
        if let Err(why) = open.file.sync_data()
            && TROUBLE.allow(mono).is_some()
        {
            tracing::error!(error = %why, "the audit file cannot be synced to the disk");
        }
    }
}

impl Open {
    fn new(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().create(true).append(true).read(true).mode(0o640).open(path)?;
        let mut size = file.metadata()?.len();
        if size > 0 {
            // A crash in the middle of a write leaves half a line: it is ended, so that the next one stands alone.
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                size += 1;
            }
        }
        Ok(Self { file, size, synced: None, dirty: false })
    }
}

/// `NAME` becomes `NAME.1`, `NAME.1` becomes `NAME.2` and so on; beyond `keep` they are removed.
fn rotate(path: &Path, keep: u64) -> io::Result<()> {
    let numbered = |n: u64| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    let mut beyond = keep;
    while numbered(beyond).exists() {
        std::fs::remove_file(numbered(beyond))?;
        beyond += 1;
    }
    for n in (1..keep).rev() {
        if numbered(n).exists() {
            std::fs::rename(numbered(n), numbered(n + 1))?;
        }
    }
    std::fs::rename(path, numbered(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        problem::Source,
        section::{Inputs, Reader},
    };

    const LONG: Duration = Duration::from_secs(30);

    fn settings(path: PathBuf) -> Settings {
        Settings { path, rotate: 64 << 10, keep: 3, on_error: OnError::Continue }
    }

    fn start(settings: Option<Settings>) -> (Audit, Arc<Metrics>) {
        let clock = Clock::hand(1_700_000_000_123);
        let metrics = Metrics::with_clock("0", clock.clone());
        (Audit::start(settings, metrics.clone(), clock).expect("a thread"), metrics)
    }

    fn line(path: &str) -> Line {
        Line { path: path.into(), ..Line::new(EventId::new(), 1_700_000_000_123, Decision::Refused(Reason::NoRoute)) }
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        assert!(text.is_empty() || text.ends_with('\n'), "a torn line in {}", path.display());
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    #[test]
    fn a_line_says_everything_and_nothing_secret() {
        let mut full = line("/github\n\u{1b}[31m");
        full.decision = Decision::Ended(Ending::Forwarded);
        full.status = 200;
        full.policy = 3;
        full.route = Some("github".into());
        full.provider = Some("github".into());
        full.verified = Verification::Content;
        full.secret = Some("#1".into());
        full.event_type = Some("push".into());
        full.delivery_id = Some("d".repeat(2000));
        full.replay = Some("new");
        full.would_refuse = vec![Reason::IpNotAllowed];
        full.branches = vec![Branch { to: "billing".into(), result: "ok", status: Some(204) }];
        full.client_ip = Some([192, 0, 2, 1].into());
        full.peer = Some(([10, 0, 0, 1], 4000).into());
        full.method = Some(Method::POST);
        full.host = Some("hooks.example.com".into());
        full.query = query_names("tenant=a&token=s3cret&barekey");
        full.took = Duration::from_micros(1234);
        full.annotations = vec![("redact".into(), "2 fields".into())];
        let text = serde_json::to_string(&full).expect("JSON");
        assert!(!text.contains("s3cret") && !text.contains("barekey") && !text.contains('\n') && !text.contains('\u{1b}'), "{text}");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        for (key, want) in [
            ("time", serde_json::json!("2023-11-14T22:13:20.123Z")),
            ("outcome", serde_json::json!("forwarded")),
            ("status", serde_json::json!(200)),
            ("verified", serde_json::json!("content")),
            ("query", serde_json::json!("tenant&token&*")),
            ("would_refuse", serde_json::json!(["ip_not_allowed"])),
            ("destinations", serde_json::json!([{ "to": "billing", "result": "ok", "status": 204 }])),
            ("client_ip", serde_json::json!("192.0.2.1")),
            ("peer", serde_json::json!("10.0.0.1:4000")),
            ("duration_us", serde_json::json!(1234)),
            ("annotations", serde_json::json!([["redact", "2 fields"]])),
            ("policy", serde_json::json!(3)),
        ] {
            assert_eq!(json[key], want, "{key}");
        }
        assert_eq!(json["delivery_id"].as_str().map(|id| id.chars().count()), Some(TEXT + 1));
        assert!(json.get("reason").is_none());
    }

    #[test]
    fn lines_are_written_in_order_and_kept_for_the_page() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("logs/audit.jsonl");
        let (audit, metrics) = start(Some(settings(path.clone())));
        let mut watch = audit.decisions().watch();
        (0..300).for_each(|i| audit.push(line(&format!("/{i}"))));
        assert!(audit.flush(LONG));
        let written: Vec<_> = lines(&path).iter().map(|line| line["path"].clone()).collect();
        assert_eq!(written, (0..300).map(|i| serde_json::json!(format!("/{i}"))).collect::<Vec<_>>());
        let kept = audit.decisions().list(0);
        assert_eq!((kept.len(), kept[0].1.contains("\"/100\"")), (KEPT, true));
        assert_eq!(audit.decisions().list(kept[KEPT - 1].0 - 1).len(), 1);
        assert!(*watch.borrow_and_update() >= KEPT as u64);
        assert_eq!(metrics.audit_written.get(), 300);
        assert!(audit.close(LONG));
        audit.push(line("/late"));
        assert_eq!(metrics.audit_dropped.get(), 1);
    }

    #[test]
    fn the_file_rotates_by_size_and_old_ones_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        let (audit, _) = start(Some(settings(path.clone())));
        for i in 0..3000 {
            audit.push(line(&format!("/{i:0900}")));
        }
        assert!(audit.flush(LONG));
        let mut names: Vec<_> = std::fs::read_dir(folder.path()).expect("the folder").map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.3"]);
        let older = |n| lines(&folder.path().join(format!("audit.jsonl.{n}")));
        assert!([1, 2, 3].map(|n| older(n).len()).iter().all(|n| *n > 40));
        let next = |lines: &[serde_json::Value]| lines.last().and_then(|l| l["path"].as_str()?[1..].parse::<u32>().ok());
        assert_eq!(next(&older(1)).map(|n| n + 1), lines(&path)[0]["path"].as_str().and_then(|p| p[1..].parse().ok()), "nothing is lost between two files");
        assert!(std::fs::metadata(folder.path().join("audit.jsonl.2")).expect("the file").len() <= 64 << 10);
    }

    #[test]
    fn a_moved_file_is_opened_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, moved) = (folder.path().join("audit.jsonl"), folder.path().join("moved"));
        let (audit, _) = start(Some(settings(path.clone())));
        audit.push(line("/1"));
        assert!(audit.flush(LONG));
        std::fs::rename(&path, &moved).expect("a rename");
        audit.push(line("/2"));
        assert!(audit.flush(LONG));
        audit.reopen();
        assert!(audit.flush(LONG));
        audit.push(line("/3"));
        assert!(audit.flush(LONG));
        assert_eq!((lines(&moved).len(), lines(&path).len()), (2, 1));
    }

    #[test]
    fn half_a_line_is_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, "{\"time\":\"20").expect("a file");
        let (audit, _) = start(Some(settings(path.clone())));
        audit.push(line("/1"));
        assert!(audit.flush(LONG));
        let text = std::fs::read_to_string(&path).expect("the file");
        assert!(text.starts_with("{\"time\":\"20\n{\"time\""), "{text}");
    }

    #[test]
    fn a_file_in_trouble_loses_nothing_while_it_fits() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        std::fs::create_dir(&path).expect("a folder in the file's place");
        for on_error in [OnError::Continue, OnError::Refuse] {
            let (audit, metrics) = start(Some(Settings { on_error, ..settings(path.clone()) }));
            audit.push(line("/1"));
            assert!(audit.flush(LONG));
            assert!(audit.failing());
            assert_eq!(audit.accepting(), on_error == OnError::Continue);
            assert_eq!((metrics.audit_written.get(), metrics.audit_failed.get()), (0, 0));
            std::fs::remove_dir(&path).expect("the folder is empty");
            assert!(audit.flush(LONG));
            assert!(!audit.failing() && audit.accepting());
            assert_eq!((lines(&path).len(), metrics.audit_written.get()), (1, 1));
            assert!(audit.close(LONG));
            std::fs::remove_file(&path).expect("the file");
            std::fs::create_dir(&path).expect("a folder in the file's place");
        }
    }

    #[test]
    fn lines_beyond_the_bound_are_counted_and_the_file_says_so() {
        let (audit, metrics) = start(Some(settings("/dev/full".into())));
        let long = "x".repeat(TEXT);
        let many = 20_000;
        for i in 0..many {
            audit.push(line(&long));
            if i % 1000 == 0 {
                assert!(audit.flush(LONG));
            }
        }
        assert!(audit.flush(LONG));
        assert!(audit.failing());
        let lost = metrics.audit_failed.get();
        assert!(lost > 0 && metrics.audit_written.get() == 0);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        audit.configure(Some(Settings { rotate: 1 << 30, ..settings(path.clone()) }));
        assert!(audit.flush(LONG));
        let written = lines(&path);
        assert_eq!((written[0]["outcome"].as_str(), written[0]["lines"].as_u64()), (Some("lost"), Some(lost)));
        assert_eq!(written.len() as u64, 1 + many - lost);
    }

    #[test]
    fn without_a_file_the_last_decisions_are_kept_all_the_same() {
        let (audit, metrics) = start(None);
        audit.push(line("/1"));
        assert!(audit.flush(LONG));
        assert_eq!((audit.decisions().list(0).len(), metrics.audit_failed.get(), audit.accepting()), (1, 0, true));
    }

    fn check(text: &str, want: Option<Settings>, problems: &[&str]) {
        let reader = Reader::new(Source { name: "p.toml".into(), text: text.into() }, Inputs::memory(&[], &[]));
        let table = reader.parse();
        let root = reader.root(&table);
        let got = read(&root);
        root.finish();
        let told: Vec<String> = reader.problems().iter().map(ToString::to_string).collect();
        assert_eq!(told, problems, "{text}");
        if problems.is_empty() {
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn settings_are_read() {
        let default = Settings { path: "audit.jsonl".into(), rotate: 100 << 20, keep: 10, on_error: OnError::Continue };
        check("", Some(default.clone()), &[]);
        check("audit = false", None, &[]);
        check("audit = true", Some(default.clone()), &[]);
        check("audit = \"a/b\"", Some(Settings { path: "a/b".into(), ..default.clone() }), &[]);
        let all = Settings { path: "c".into(), rotate: 1 << 20, keep: 2, on_error: OnError::Refuse };
        check("audit = { path = \"c\", rotate = \"1MiB\", keep = 2, on_error = \"refuse\" }", Some(all), &[]);
        check("audit = { rotate = 9 }", None, &["audit.rotate: 9 bytes are too few to rotate after (64KiB or more)"]);
        check("audit = { keep = 0 }", None, &["audit.keep: `audit.keep` is 0 (a whole number from 1 to 1000 is wanted)"]);
        check("audit = 5", None, &["audit: `audit` is a whole number, not a string"]);
    }
}
