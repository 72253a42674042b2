//! The audit line: one JSON object for every decision, in an append-only file.
//!
//! A request adds its formatted [`Line`] to those that wait and goes on: formatting takes half a microsecond, and what a line was made
//! of is freed where it was made. A thread of its own writes, every 20 ms, and syncs the file to the disk once a second. So `kill -9`
//! may take the lines of the last 20 ms with it, a power cut those of the last second.
//!
//! **What happens when it cannot be written.** Lines are kept, up to 8 MiB, and tried again every second; a write that failed half way
//! is cut off again. With `on_error = "continue"` (the default) requests go on; lines beyond those bounds are lost, counted
//! (`hooklatch_audit_lines_total{result="failed"}` and `"dropped"`) and the file says how many as soon as it can be written again. With
//! `on_error = "refuse"` the gate refuses requests while the file cannot be written, or while the writer is so far behind that a line
//! might be lost: [`Audit::accepting`].

mod decisions;
mod line;
mod writer;

use std::{
    cell::RefCell,
    io,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use self::writer::Writer;
pub(crate) use self::{
    decisions::Decisions,
    line::{Branch, Decision, Line, query_names, rfc3339},
};
use crate::{
    clock::Clock,
    observe::metrics::Metrics,
    section::{Inputs, Section},
};

/// Bytes of lines that may wait for the writer: 20,000 and more of the usual ones.
const QUEUED: usize = 8 << 20;
/// From here on [`Audit::accepting`] says no under `on_error = "refuse"`: the rest is for requests already under way.
const NEARLY_FULL: usize = QUEUED / 4 * 3;
/// From here on the writer does not wait for more.
const PLENTY: usize = QUEUED / 4;

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
    /// Bytes in the queue.
    waiting: AtomicU64,
    decisions: Decisions,
    metrics: Arc<Metrics>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whole lines, with their line feeds.
    lines: String,
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
        let mut writer = Writer::new(shared.clone());
        writer.configure(settings);
        thread::Builder::new().name("audit".into()).spawn(move || writer.run())?;
        Ok(Self(shared))
    }

    /// Hands a decision over. Never waits for the disk; a line that finds no room is counted, and said in the file.
    pub(crate) fn push(&self, line: &Line) {
        thread_local! {
            static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
        }
        let added = TEXT.with_borrow_mut(|text| {
            text.clear();
            line.write_json(text);
            text.push('\n');
            self.add(text)
        });
        if !added {
            self.0.metrics.audit_dropped.add(1);
        }
    }

    fn add(&self, line: &str) -> bool {
        let mut queue = lock(&self.0.queue);
        let before = queue.lines.len();
        if queue.closed || before + line.len() > QUEUED {
            queue.dropped += 1;
            return false;
        }
        queue.lines.push_str(line);
        let waiting = queue.lines.len();
        drop(queue);
        self.0.waiting.store(waiting as u64, Ordering::Relaxed);
        // One wake-up when there is something to gather, one when there is a lot of it: not one a line.
        if before == 0 || (before < PLENTY && waiting >= PLENTY) {
            self.0.bell.notify_one();
        }
        true
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        event::EventId,
        problem::Source,
        reject::Reason,
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
    fn lines_are_written_in_order_and_kept_for_the_page() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("logs/audit.jsonl");
        let (audit, metrics) = start(Some(settings(path.clone())));
        let mut watch = audit.decisions().watch();
        (0..300).for_each(|i| audit.push(&line(&format!("/{i}"))));
        assert!(audit.flush(LONG));
        let written: Vec<_> = lines(&path).iter().map(|line| line["path"].clone()).collect();
        assert_eq!(written, (0..300).map(|i| serde_json::json!(format!("/{i}"))).collect::<Vec<_>>());
        let kept = audit.decisions().list(0);
        assert_eq!((kept.len(), kept[0].1.contains("\"/100\"")), (decisions::KEPT, true));
        assert_eq!(audit.decisions().list(kept[decisions::KEPT - 1].0 - 1).len(), 1);
        assert!(*watch.borrow_and_update() >= decisions::KEPT as u64);
        assert_eq!(metrics.audit_written.get(), 300);
        assert!(audit.close(LONG));
        audit.push(&line("/late"));
        assert_eq!(metrics.audit_dropped.get(), 1);
    }

    #[test]
    fn the_file_rotates_by_size_and_old_ones_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        let (audit, _) = start(Some(settings(path.clone())));
        for i in 0..3000 {
            audit.push(&line(&format!("/{i:0900}")));
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
        audit.push(&line("/1"));
        assert!(audit.flush(LONG));
        std::fs::rename(&path, &moved).expect("a rename");
        audit.push(&line("/2"));
        assert!(audit.flush(LONG));
        audit.reopen();
        assert!(audit.flush(LONG));
        audit.push(&line("/3"));
        assert!(audit.flush(LONG));
        assert_eq!((lines(&moved).len(), lines(&path).len()), (2, 1));
    }

    #[test]
    fn half_a_line_is_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, "{\"time\":\"20").expect("a file");
        let (audit, _) = start(Some(settings(path.clone())));
        audit.push(&line("/1"));
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
            audit.push(&line("/1"));
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
        let long = "x".repeat(1024);
        let many = 20_000;
        for i in 0..many {
            audit.push(&line(&long));
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
        audit.push(&line("/1"));
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
