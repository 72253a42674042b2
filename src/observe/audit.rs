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
    fmt::Write as _,
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
    /// The gate failed before there was an answer; `detail` says how.
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
    /// As in `hooklatch_delivery_attempts_total`; `sent` where nobody waits for it, `done` where an earlier copy delivered it.
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

impl Line {
    /// Appends the line as one JSON object, by hand: every request pays for it.
    pub(crate) fn write_json(&self, out: &mut String) {
        let mut object = Object::open(out);
        object.key("time").push('"');
        write_time(object.out, self.time_ms);
        object.out.push('"');
        object.plain("event_id", self.event_id.0.as_hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
        object.plain("outcome", self.decision.outcome());
        if let Some(reason) = self.decision.reason() {
            object.plain("reason", reason);
        }
        if self.status != 0 {
            object.number("status", self.status.into());
        }
        object.text("detail", &self.detail);
        object.text("route", self.route.as_deref().unwrap_or_default());
        object.text("provider", self.provider.as_deref().unwrap_or_default());
        if self.route.is_some() {
            object.plain("verified", self.verified.code());
        }
        object.text("secret", self.secret.as_deref().unwrap_or_default());
        object.text("event_type", self.event_type.as_deref().unwrap_or_default());
        object.text("delivery_id", self.delivery_id.as_deref().unwrap_or_default());
        if let Some(replay) = self.replay {
            object.plain("replay", replay);
        }
        if !self.would_refuse.is_empty() {
            object.list("would_refuse", &self.would_refuse, |out, reason| write_text(out, reason.code()));
        }
        if !self.branches.is_empty() {
            object.list("destinations", &self.branches, |out, branch| {
                let mut object = Object::open(out);
                object.text("to", &branch.to);
                object.plain("result", branch.result);
                if let Some(status) = branch.status {
                    object.number("status", status.into());
                }
                object.close();
            });
        }
        if let Some(ip) = self.client_ip {
            let out = object.key("client_ip");
            out.push('"');
            write_ip(out, ip);
            out.push('"');
        }
        if let Some(peer) = self.peer {
            let out = object.key("peer");
            out.push_str(if peer.is_ipv6() { "\"[" } else { "\"" });
            write_ip(out, peer.ip());
            out.push_str(if peer.is_ipv6() { "]:" } else { ":" });
            write_number(out, peer.port().into(), 1);
            out.push('"');
        }
        if let Some(method) = &self.method {
            object.text("method", &cut(method.as_str(), 32));
        }
        object.text("host", self.host.as_deref().unwrap_or_default());
        object.text("path", &self.path);
        object.text("query", &self.query);
        object.number("body_bytes", self.body_bytes);
        object.number("duration_us", u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX));
        if !self.annotations.is_empty() {
            // A list of pairs, not an object: a filter may use a name twice.
            object.list("annotations", &self.annotations, |out, (name, value)| {
                out.push('[');
                write_text(out, &cut(name, TEXT));
                out.push(',');
                write_text(out, &cut(value, TEXT));
                out.push(']');
            });
        }
        object.number("policy", self.policy);
        object.close();
    }
}

/// A JSON object being written.
struct Object<'a> {
    out: &'a mut String,
    first: bool,
}

impl<'a> Object<'a> {
    fn open(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, first: true }
    }

    fn key(&mut self, key: &'static str) -> &mut String {
        if !mem::take(&mut self.first) {
            self.out.push(',');
        }
        self.out.push('"');
        self.out.push_str(key);
        self.out.push_str("\":");
        self.out
    }

    /// A text of ours, which needs no escape.
    fn plain(&mut self, key: &'static str, word: &str) {
        let out = self.key(key);
        out.push('"');
        out.push_str(word);
        out.push('"');
    }

    /// Any text, cut after 1 KiB; nothing where it is empty.
    fn text(&mut self, key: &'static str, value: &str) {
        if !value.is_empty() {
            write_text(self.key(key), &cut(value, TEXT));
        }
    }

    fn number(&mut self, key: &'static str, number: u64) {
        let out = self.key(key);
        write_number(out, number, 1);
    }

    fn list<T>(&mut self, key: &'static str, items: &[T], write: impl Fn(&mut String, &T)) {
        let out = self.key(key);
        out.push('[');
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            write(out, item);
        }
        out.push(']');
    }

    fn close(self) {
        self.out.push('}');
    }
}

/// A JSON string. Control characters are escaped, DEL too, so that a terminal showing the file cannot be steered.
fn write_text(out: &mut String, text: &str) {
    out.push('"');
    // Nearly every text is plain, and a test of all bytes at once is quick.
    if !text.bytes().fold(false, |odd, byte| odd | escaped(byte)) {
        out.push_str(text);
        out.push('"');
        return;
    }
    let mut from = 0;
    for (at, byte) in text.bytes().enumerate() {
        if !escaped(byte) {
            continue;
        }
        out.push_str(&text[from..at]); // the byte is ASCII, so both ends are between characters
        from = at + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\t' => out.push_str("\\t"),
            _ => {
                let _ = write!(out, "\\u{byte:04x}"); // a string takes everything
            }
        }
    }
    out.push_str(&text[from..]);
    out.push('"');
}

fn escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\' || byte == 0x7f
}

fn write_ip(out: &mut String, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => {
            for (index, octet) in v4.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push('.');
                }
                write_number(out, octet.into(), 1);
            }
        }
        IpAddr::V6(v6) => {
            let _ = write!(out, "{v6}"); // a string takes everything
        }
    }
}

/// `digits`: at least so many, with zeros in front.
fn write_number(out: &mut String, mut number: u64, digits: usize) {
    let mut buffer = [b'0'; 20];
    let mut at = buffer.len();
    while number > 0 || buffer.len() - at < digits {
        at -= 1;
        buffer[at] = b'0' + (number % 10) as u8; // a digit fits
        number /= 10;
    }
    out.push_str(str::from_utf8(&buffer[at..]).unwrap_or_default());
}

/// A Unix time in milliseconds as `2026-11-24T20:40:00.123Z`.
pub(crate) fn rfc3339(ms: i64) -> String {
    let mut out = String::with_capacity(24);
    write_time(&mut out, ms);
    out
}

/// Times before 1970 or after 9999 are shown as those ends.
fn write_time(out: &mut String, ms: i64) {
    let ms = u64::try_from(ms).unwrap_or_default().min(253_402_300_799_999);
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    // Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days: years begin in March, eras last 400 of them.
    let day = days + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let parts = [
        (year, 4, '-'),
        (month, 2, '-'),
        (day_of_year - (153 * shifted + 2) / 5 + 1, 2, 'T'),
        (rest / 3_600_000, 2, ':'),
        (rest / 60_000 % 60, 2, ':'),
        (rest / 1000 % 60, 2, '.'),
        (rest % 1000, 3, 'Z'),
    ];
    for (number, digits, end) in parts {
        write_number(out, number, digits);
        out.push(end);
    }
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
    #[cfg(test)]
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
        let mut writer = Writer {
            shared: shared.clone(),
            settings: None,
            file: None,
            text: String::new(),
            pending: VecDeque::new(),
            pending_bytes: 0,
            lost: 0,
            last_try: None,
        };
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
    #[cfg(test)]
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
    /// Where a line is formatted.
    text: String,
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
                    #[cfg(test)]
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
            .map(|line| {
                self.text.clear();
                line.write_json(&mut self.text);
                self.text.push('\n');
                Arc::from(self.text.as_str())
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
        full.peer = Some("[2001:db8::1]:4000".parse().expect("an address"));
        full.method = Some(Method::POST);
        full.host = Some("hooks.example.com".into());
        full.query = query_names("tenant=a&token=s3cret&barekey");
        full.took = Duration::from_micros(1234);
        full.annotations = vec![("redact".into(), "2 fields".into())];
        let mut text = String::new();
        full.write_json(&mut text);
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
            ("peer", serde_json::json!("[2001:db8::1]:4000")),
            ("duration_us", serde_json::json!(1234)),
            ("annotations", serde_json::json!([["redact", "2 fields"]])),
            ("policy", serde_json::json!(3)),
        ] {
            assert_eq!(json[key], want, "{key}");
        }
        assert_eq!(json["delivery_id"].as_str().map(|id| id.chars().count()), Some(TEXT + 1));
        assert!(json.get("reason").is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_text_comes_back_whole(texts: Vec<String>) {
            let mut out = String::new();
            let mut object = Object::open(&mut out);
            object.list("texts", &texts, |out, text| write_text(out, text));
            object.close();
            assert!(!out.contains(|c: char| c.is_ascii_control()), "{out:?}");
            let back: serde_json::Value = serde_json::from_str(&out).expect("JSON");
            assert_eq!(back, serde_json::json!({ "texts": texts }));
        }

        #[test]
        fn any_time_is_that_of_the_calendar(ms in 0..253_402_300_800_000_i64) {
            let format = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
            let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).expect("in range");
            assert_eq!(rfc3339(ms), at.format(format).expect("a time"));
        }
    }

    #[test]
    fn odd_times_and_numbers() {
        for (ms, want) in [
            (i64::MIN, "1970-01-01T00:00:00.000Z"),
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339(ms), want);
        }
        let mut out = String::new();
        write_number(&mut out, u64::MAX, 1);
        write_number(&mut out, 0, 1);
        assert_eq!(out, format!("{}0", u64::MAX));
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
