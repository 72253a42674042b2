//! One embedded store: one writer thread, group commit, an fsync error stops it.
//!
//! What it promises: whatever a batch holds is written in one transaction, all or nothing; a waiter hears `Ok` only after the fsync;
//! after a failed write or fsync nothing is acknowledged until the file was closed, settled, opened again and the failed batch written anew.
//! A state file is never deleted, shortened or made again. One process owns a folder.
//!
//! What it does not know: what is in the batches. [`Rooms`] says how they become rows. Everything that must stand or fall together goes
//! into one batch by one call of [`Disk::submit`]: a replay record and the queue's event, for one.
//!
//! `kill -9` loses at most what was submitted without waiting; a power cut the same, because every commit is synced.

mod lock;
#[cfg(test)]
pub(crate) mod model;
mod open;

use std::{
    any::Any,
    fmt,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use redb::{Database, Durability, ReadTransaction, ReadableDatabase, TableDefinition, WriteTransaction};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use self::lock::Lock;
pub(crate) use self::open::{Files, Media};

/// The file in the state folder.
pub(crate) const FILE: &str = "hooklatch.redb";
/// Small facts about the file itself: format, digest key, batch numbers.
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
/// Batch numbers are promised to the file in blocks, so that none is ever given out twice.
const NUMBERS: &str = "batches";
const NUMBERS_BLOCK: u64 = 10_000;
/// From this length on the full check at open takes too long; quick repair takes its place.
const CHECK_BELOW: u64 = 2 << 30;
/// What may wait for the writer: past either bound [`Disk::accepts`] says no.
const MAX_WAITING: usize = 200_000;
const MAX_WAITING_BYTES: usize = 64 << 20;
/// How long the writer sleeps between the parts of a long sweep, so that others get their turn.
const SWEEP_PAUSE: Duration = Duration::from_millis(20);
const BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// A damaged file does not heal: look again, but not every second.
const DAMAGED_BACKOFF: Duration = Duration::from_secs(30);

/// The rooms that keep their data in the store.
pub(crate) trait Rooms: Send + Sync + 'static {
    /// What one transaction will write.
    type Batch: Default + Send + Sync + 'static;

    /// The file was opened, at the start or again after a failure: take the indexes in memory from it. Called before anything is
    /// written; must merge, as after a failure a batch may wait that is not in the file yet.
    fn opened(&self, tables: &ReadTransaction) -> Result<(), redb::Error>;

    /// Writes a batch. May be called again with the same number and batch, after a failure that left it in the file or not.
    fn write(&self, number: u64, batch: &Self::Batch, tables: &WriteTransaction) -> Result<(), redb::Error>;

    /// The batch is in the file for good.
    fn committed(&self, number: u64, batch: &Self::Batch);

    /// Whether another commit is wanted although nobody submitted anything: the rest of a sweep.
    fn wants_more(&self) -> bool {
        false
    }
}

/// Hears every failed operation; `op` is a label of `hooklatch_state_errors_total`.
pub(crate) type OnError = Arc<dyn Fn(&'static str) + Send + Sync>;

/// How to open the store.
pub(crate) struct Config {
    /// The folder; made where it is missing.
    pub(crate) dir: PathBuf,
    /// How long a batch may gather before it is written, when nobody waits for it.
    pub(crate) gather: Duration,
    pub(crate) media: Arc<dyn Media>,
    pub(crate) on_error: OnError,
}

/// Why a store cannot be opened; names the path.
#[derive(Debug)]
pub(crate) struct OpenError {
    pub(crate) path: PathBuf,
    pub(crate) cause: String,
    damaged: bool,
}

impl OpenError {
    fn new(path: &Path, cause: impl Into<String>) -> Self {
        Self { path: path.to_owned(), cause: cause.into(), damaged: false }
    }

    fn damaged(path: &Path, cause: impl fmt::Display) -> Self {
        let cause = format!("is damaged: {cause}; it was left as it is: restore it from a backup, or move it away to begin with empty state");
        Self { path: path.to_owned(), cause, damaged: true }
    }

    pub(crate) fn no_thread(path: &Path, cause: &std::io::Error) -> Self {
        Self::new(path, format!("cannot be served: no thread for it: {cause}"))
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path.display(), self.cause)
    }
}

impl std::error::Error for OpenError {}

/// The store does not answer: it failed, or it is full. Nothing was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unavailable;

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the state store does not answer")
    }
}

/// Whether the store takes writes; for `/readyz`.
#[derive(Clone)]
pub(crate) struct Health(Arc<HealthState>);

struct HealthState {
    ready: AtomicBool,
    why: Mutex<String>,
}

impl Health {
    fn new() -> Self {
        Self(Arc::new(HealthState { ready: AtomicBool::new(true), why: Mutex::default() }))
    }

    /// Ready, or why not: one line that names the file.
    pub(crate) fn ready(&self) -> Result<(), String> {
        if self.is_ready() { Ok(()) } else { Err(guard(&self.0.why).clone()) }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Acquire)
    }

    fn fail(&self, why: String) {
        *guard(&self.0.why) = why;
        self.0.ready.store(false, Ordering::Release);
    }

    fn recover(&self) {
        self.0.ready.store(true, Ordering::Release);
    }
}

/// An open store. Dropping it writes what waits, ends the writer and frees the folder.
pub(crate) struct Disk<R: Rooms> {
    shared: Arc<Shared<R>>,
    digest_key: [u8; 32],
    writer: Option<JoinHandle<()>>,
}

struct Shared<R: Rooms> {
    rooms: Arc<R>,
    config: Config,
    path: PathBuf,
    /// `None` while it is closed after a failure. The writer's write access waits for every reader.
    database: RwLock<Option<Database>>,
    inbox: Mutex<Inbox<R::Batch>>,
    wake: Condvar,
    health: Health,
    commits: AtomicU64,
    digest_key: [u8; 32],
    /// Held as long as the store is open.
    _lock: Lock,
}

struct Inbox<B> {
    /// Gathering now.
    batch: B,
    number: u64,
    /// Numbers below are promised to the file.
    promised: u64,
    count: usize,
    bytes: usize,
    /// Somebody waits: write at once.
    urgent: bool,
    /// A reader met damage or an I/O error: open the file again.
    broken: Option<Failure>,
    stopping: bool,
    waiters: Vec<Waiter>,
    /// Being written, or to be written anew after a failure.
    writing: Option<Arc<Filled<B>>>,
}

type Waiter = oneshot::Sender<Result<(), Unavailable>>;

struct Filled<B> {
    batch: B,
    number: u64,
    promise: Option<u64>,
}

/// Why a table access failed.
#[derive(Debug)]
struct Failure {
    op: &'static str,
    cause: String,
    /// A write or sync failed: what the system shows of the file need not be on the disk.
    unsynced: bool,
}

impl<R: Rooms> Disk<R> {
    /// Opens the store, or makes one in an empty folder; checks the whole file while it is under 2 GiB.
    pub(crate) fn open(config: Config, rooms: Arc<R>) -> Result<Self, OpenError> {
        let path = config.dir.join(FILE);
        let lock = config.media.lock(&config.dir)?;
        config.media.prepare(&path)?;
        let opened = open::open(&*config.media, &path, None, &*rooms)?;
        let inbox = Inbox {
            batch: R::Batch::default(),
            number: opened.number,
            promised: opened.number,
            count: 0,
            bytes: 0,
            urgent: false,
            broken: None,
            stopping: false,
            waiters: Vec::new(),
            writing: None,
        };
        let shared = Arc::new(Shared {
            rooms,
            config,
            path,
            database: RwLock::new(Some(opened.database)),
            inbox: Mutex::new(inbox),
            wake: Condvar::new(),
            health: Health::new(),
            commits: AtomicU64::new(0),
            digest_key: opened.digest_key,
            _lock: lock,
        });
        let writer = {
            let shared = shared.clone();
            std::thread::Builder::new().name("state-writer".into()).spawn(move || {
                // Table accesses are guarded one by one; should a room panic elsewhere, nobody may wait for a writer that is gone.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| shared.run())) {
                    let cause = format!("its writer panicked, restart the program: {}", panic_text(&*panic));
                    shared.fail(&Failure { op: "writer", cause, unsynced: false }, Vec::new());
                }
            })
        };
        match writer {
            Ok(writer) => Ok(Self { digest_key: opened.digest_key, shared, writer: Some(writer) }),
            Err(cause) => Err(OpenError::no_thread(&shared.path, &cause)),
        }
    }

    /// Secret of this file; every digest of a key is keyed with it.
    pub(crate) fn digest_key(&self) -> &[u8; 32] {
        &self.digest_key
    }

    pub(crate) fn health(&self) -> Health {
        self.shared.health.clone()
    }

    /// Whether new work may begin: the store is ready and the writer keeps up.
    pub(crate) fn accepts(&self) -> bool {
        self.shared.health.is_ready() && {
            let inbox = guard(&self.shared.inbox);
            inbox.count < MAX_WAITING && inbox.bytes < MAX_WAITING_BYTES
        }
    }

    /// Adds to the batch that is gathering; it is written within the gathering time, together with whatever else is submitted until then.
    ///
    /// `add` gets the batch and its number and says how many bytes it added. Never blocks on the disk. Ask [`Disk::accepts`] before work
    /// begins: refused only at twice that bound, so that what was begun can be recorded.
    pub(crate) fn submit<T>(&self, add: impl FnOnce(&mut R::Batch, u64) -> (usize, T)) -> Result<T, Unavailable> {
        let mut inbox = guard(&self.shared.inbox);
        if inbox.count >= 2 * MAX_WAITING || inbox.bytes >= 2 * MAX_WAITING_BYTES {
            return Err(Unavailable);
        }
        let first = inbox.count == 0;
        let out = inbox.add(add);
        drop(inbox);
        if first {
            self.shared.wake.notify_one();
        }
        Ok(out)
    }

    /// As [`Disk::submit`], and the batch is written at once; the receiver hears `Ok` after the fsync.
    pub(crate) fn submit_now<T>(&self, add: impl FnOnce(&mut R::Batch, u64) -> (usize, T)) -> Result<(T, Written), Unavailable> {
        let (tell, hear) = oneshot::channel();
        let mut inbox = guard(&self.shared.inbox);
        if inbox.count >= 2 * MAX_WAITING || inbox.bytes >= 2 * MAX_WAITING_BYTES {
            return Err(Unavailable);
        }
        let out = inbox.add(add);
        // Under the inbox's lock: a failure empties the waiters under it too, so that nobody is left waiting.
        if self.shared.health.is_ready() {
            inbox.waiters.push(tell);
            inbox.urgent = true;
        } else {
            let _ = tell.send(Err(Unavailable));
        }
        drop(inbox);
        self.shared.wake.notify_one();
        Ok((out, Written(hear)))
    }

    /// Everything submitted so far, on disk.
    pub(crate) async fn flush(&self) -> Result<(), Unavailable> {
        self.submit_now(|_, _| (0, ()))?.1.await
    }

    /// Looks through what was submitted and is not on disk yet, newest first.
    pub(crate) fn waiting<T>(&self, mut look: impl FnMut(&R::Batch, u64) -> Option<T>) -> Option<T> {
        let (found, writing) = {
            let inbox = guard(&self.shared.inbox);
            (look(&inbox.batch, inbox.number), inbox.writing.clone())
        };
        found.or_else(|| writing.and_then(|filled| look(&filled.batch, filled.number)))
    }

    /// Reads from the last commit. Blocks: not for the runtime's threads.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, Unavailable> {
        let failure = {
            let database = self.shared.database.read().unwrap_or_else(PoisonError::into_inner);
            let Some(database) = database.as_ref() else { return Err(Unavailable) };
            match guarded("read", || read(&database.begin_read()?)) {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            }
        };
        // The file is not to be trusted any more: the writer opens it again.
        guard(&self.shared.inbox).broken = Some(failure);
        self.shared.wake.notify_one();
        Err(Unavailable)
    }

    /// Asks the writer for a commit although nothing was submitted; for sweeps.
    pub(crate) fn nudge(&self) {
        // Refused means that a commit is due anyway.
        let _ = self.submit(|_, _| (0, ()));
    }

    /// How many transactions were synced since the start.
    pub(crate) fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }
}

impl<R: Rooms> Drop for Disk<R> {
    fn drop(&mut self) {
        guard(&self.shared.inbox).stopping = true;
        self.shared.wake.notify_one();
        if let Some(writer) = self.writer.take() {
            // The writer catches its panics.
            let _ = writer.join();
        }
        drop(guard_write(&self.shared.database).take());
    }
}

/// Resolves when a batch is on disk, or was not taken.
#[derive(Debug)]
pub(crate) struct Written(oneshot::Receiver<Result<(), Unavailable>>);

impl Future for Written {
    type Output = Result<(), Unavailable>;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(cx).map(|heard| heard.unwrap_or(Err(Unavailable)))
    }
}

impl<B: Default> Inbox<B> {
    fn add<T>(&mut self, add: impl FnOnce(&mut B, u64) -> (usize, T)) -> T {
        let (bytes, out) = add(&mut self.batch, self.number);
        self.count += 1;
        self.bytes += bytes;
        out
    }

    /// Turns what gathered into the batch to be written.
    fn fill(&mut self) -> Arc<Filled<B>> {
        let number = self.number;
        self.number += 1;
        let promise = (self.number >= self.promised).then(|| self.number + NUMBERS_BLOCK);
        self.promised = promise.unwrap_or(self.promised);
        self.count = 0;
        self.bytes = 0;
        self.urgent = false;
        let filled = Arc::new(Filled { batch: std::mem::take(&mut self.batch), number, promise });
        self.writing = Some(filled.clone());
        filled
    }
}

impl<R: Rooms> Shared<R> {
    /// The writer's life.
    fn run(&self) {
        while let ControlFlow::Continue((filled, waiters)) = self.gather() {
            let written = match filled {
                Ok(filled) => self.commit(&filled).map(|()| filled),
                Err(failure) => Err(failure),
            };
            match written {
                Ok(filled) => {
                    self.publish(&filled);
                    answer(waiters, Ok(()));
                }
                Err(failure) => {
                    self.fail(&failure, waiters);
                    if self.recover(failure.unsynced).is_break() {
                        return;
                    }
                }
            }
        }
    }

    /// Sleeps until there is something to write, lets a batch gather, takes it. Breaks at the end, when nothing is left.
    #[expect(clippy::type_complexity, reason = "what one turn of the writer needs")]
    fn gather(&self) -> ControlFlow<(), (Result<Arc<Filled<R::Batch>>, Failure>, Vec<Waiter>)> {
        let mut inbox = guard(&self.inbox);
        loop {
            if let Some(failure) = inbox.broken.take() {
                return ControlFlow::Continue((Err(failure), std::mem::take(&mut inbox.waiters)));
            }
            if inbox.count > 0 || inbox.stopping {
                break;
            }
            if self.rooms.wants_more() {
                inbox = self.wake.wait_timeout(inbox, SWEEP_PAUSE).unwrap_or_else(PoisonError::into_inner).0;
                break;
            }
            inbox = self.wake.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
        if inbox.count == 0 && inbox.stopping {
            return ControlFlow::Break(());
        }
        let gathered = self.wake.wait_timeout_while(inbox, self.config.gather, |inbox| {
            !inbox.urgent && !inbox.stopping && inbox.broken.is_none() && inbox.count < MAX_WAITING && inbox.bytes < MAX_WAITING_BYTES
        });
        inbox = gathered.unwrap_or_else(PoisonError::into_inner).0;
        let filled = inbox.fill();
        ControlFlow::Continue((Ok(filled), std::mem::take(&mut inbox.waiters)))
    }

    fn commit(&self, filled: &Filled<R::Batch>) -> Result<(), Failure> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = database.as_ref() else { return Err(Failure { op: "commit", cause: "the file is closed".into(), unsynced: false }) };
        guarded("commit", || {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            if self.config.media.length(&self.path) >= CHECK_BELOW {
                transaction.set_quick_repair(true);
            }
            if let Some(promise) = filled.promise {
                transaction.open_table(META)?.insert(NUMBERS, promise.to_le_bytes().as_slice())?;
            }
            self.rooms.write(filled.number, &filled.batch, &transaction)?;
            transaction.commit()?;
            Ok(())
        })
    }

    fn publish(&self, filled: &Filled<R::Batch>) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.rooms.committed(filled.number, &filled.batch);
        guard(&self.inbox).writing = None;
    }

    /// Not ready from here on; everybody who waits hears it.
    fn fail(&self, failure: &Failure, waiters: Vec<Waiter>) {
        let why = format!("the state store {} failed ({}): {}", self.path.display(), failure.op, failure.cause);
        error!(path = %self.path.display(), op = failure.op, cause = %failure.cause, "the state store failed: nothing is acknowledged until it was opened again");
        (self.config.on_error)(failure.op);
        let late = {
            let mut inbox = guard(&self.inbox);
            self.health.fail(why);
            inbox.urgent = false;
            std::mem::take(&mut inbox.waiters)
        };
        answer(waiters, Err(Unavailable));
        answer(late, Err(Unavailable));
    }

    /// Closes the file, settles it where it is `unsynced`, opens it again from disk and writes the failed batch anew, until that works.
    /// Breaks when the program ends first.
    fn recover(&self, mut unsynced: bool) -> ControlFlow<()> {
        let mut backoff = BACKOFF;
        loop {
            self.close();
            if self.pause(backoff).is_break() {
                return ControlFlow::Break(());
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
            if unsynced && let Err(why) = self.config.media.settle(&self.path) {
                warn!(path = %self.path.display(), %why, "the state store still fails");
                self.health.fail(format!("the state store {} cannot be synced: {why}", self.path.display()));
                (self.config.on_error)("settle");
                continue;
            }
            unsynced = false;
            let opened = match open::open(&*self.config.media, &self.path, Some(&self.digest_key), &*self.rooms) {
                Ok(opened) => opened,
                Err(why) => {
                    if why.damaged {
                        backoff = DAMAGED_BACKOFF;
                    }
                    warn!(%why, "the state store cannot be opened again yet");
                    self.health.fail(why.to_string());
                    (self.config.on_error)("open");
                    continue;
                }
            };
            *guard_write(&self.database) = Some(opened.database);
            // Even with nothing to write anew: only a commit proves that the file takes writes again.
            let again = {
                let mut inbox = guard(&self.inbox);
                inbox.writing.clone().unwrap_or_else(|| inbox.fill())
            };
            match self.commit(&again) {
                Ok(()) => {
                    self.publish(&again);
                    self.health.recover();
                    info!(path = %self.path.display(), "the state store works again");
                    return ControlFlow::Continue(());
                }
                Err(failure) => {
                    warn!(path = %self.path.display(), cause = %failure.cause, "the state store still fails");
                    self.health.fail(format!("the state store {} failed ({}): {}", self.path.display(), failure.op, failure.cause));
                    (self.config.on_error)(failure.op);
                    unsynced = failure.unsynced;
                }
            }
        }
    }

    fn close(&self) {
        let database = guard_write(&self.database).take();
        // A damaged file may panic here as well; the file is left as it is.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }

    /// Sleeps, unless the program ends.
    fn pause(&self, span: Duration) -> ControlFlow<()> {
        let inbox = guard(&self.inbox);
        let (inbox, _) = self.wake.wait_timeout_while(inbox, span, |inbox| !inbox.stopping).unwrap_or_else(PoisonError::into_inner);
        if inbox.stopping { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// Tells those who wait; one that has gone does not matter.
fn answer(waiters: Vec<Waiter>, heard: Result<(), Unavailable>) {
    for waiter in waiters {
        let _ = waiter.send(heard);
    }
}

/// Runs a table access; a panic inside the store, which a damaged page can cause, is a failure like any other.
fn guarded<T>(op: &'static str, access: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(access)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(cause)) => {
            let unsynced = op == "commit" && matches!(cause, redb::Error::Io(_) | redb::Error::Backend(_) | redb::Error::PreviousIo);
            Err(Failure { op, cause: cause.to_string(), unsynced })
        }
        Err(panic) => Err(Failure { op, cause: format!("the file seems damaged: {}", panic_text(&*panic)), unsynced: op == "commit" }),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic")
}

/// What the mutexes here guard is whole between any two statements that may panic.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn guard_write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::atomic::AtomicUsize};

    use redb::ReadableTable;

    use super::{model::Model, *};

    const NUMBERS_TABLE: TableDefinition<'static, u64, ()> = TableDefinition::new("numbers");

    const REMOVE: u64 = 1 << 32;

    /// A room that keeps numbers; with [`REMOVE`] added one is taken away.
    #[derive(Debug, Default)]
    struct Log {
        seen: Mutex<BTreeSet<u64>>,
        opened: AtomicUsize,
        panics: AtomicBool,
    }

    impl Rooms for Log {
        type Batch = Vec<u64>;

        fn opened(&self, tables: &ReadTransaction) -> Result<(), redb::Error> {
            self.opened.fetch_add(1, Ordering::SeqCst);
            *guard(&self.seen) = numbers(tables)?;
            Ok(())
        }

        fn write(&self, _: u64, batch: &Vec<u64>, tables: &WriteTransaction) -> Result<(), redb::Error> {
            assert!(!self.panics.swap(false, Ordering::SeqCst), "a test's panic");
            let mut table = tables.open_table(NUMBERS_TABLE)?;
            for number in batch {
                if *number >= REMOVE {
                    table.remove(number - REMOVE)?;
                } else {
                    table.insert(number, ())?;
                }
            }
            Ok(())
        }

        fn committed(&self, _: u64, batch: &Vec<u64>) {
            guard(&self.seen).extend(batch);
        }
    }

    fn numbers(tables: &ReadTransaction) -> Result<BTreeSet<u64>, redb::Error> {
        match tables.open_table(NUMBERS_TABLE) {
            Ok(table) => table.iter()?.map(|row| Ok(row?.0.value())).collect(),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(BTreeSet::new()),
            Err(why) => Err(why.into()),
        }
    }

    fn config(dir: &Path, media: impl Media) -> Config {
        Config { dir: dir.to_owned(), gather: Duration::ZERO, media: Arc::new(media), on_error: Arc::new(|_| {}) }
    }

    fn open_model(model: &Model) -> Disk<Log> {
        Disk::open(config(Path::new("model"), model.clone()), Arc::new(Log::default())).expect("a sound disk opens")
    }

    async fn add(disk: &Disk<Log>, number: u64) -> Result<(), Unavailable> {
        disk.submit_now(|batch, _| (8, batch.push(number)))?.1.await
    }

    async fn ready(disk: &Disk<Log>) {
        while disk.health().ready().is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn held(disk: &Disk<Log>) -> Vec<u64> {
        disk.read(numbers).expect("it reads").into_iter().collect()
    }

    #[tokio::test]
    async fn an_acknowledged_write_survives_any_power_cut() {
        let model = Model::new();
        let disk = open_model(&model);
        let mut acknowledged = Vec::new();
        for number in 0..40 {
            add(&disk, number).await.expect("the disk works");
            acknowledged.push(number);
            disk.submit(|batch, _| (8, batch.push(1000 + number))).expect("there is room");
            for seed in [0, 7 + number, 1_000_003 * (number + 1)] {
                let after = held(&open_model(&model.cut(seed)));
                assert!(acknowledged.iter().all(|number| after.contains(number)), "{number}, seed {seed}: {after:?}");
            }
        }
        assert!(model.syncs() >= 40);
    }

    /// The control: with syncs that do nothing the same test must lose.
    #[tokio::test]
    async fn without_syncs_a_power_cut_loses_everything() {
        let model = Model::new();
        drop(open_model(&model));
        model.lie();
        let disk = open_model(&model);
        add(&disk, 1).await.expect("the disk lies");
        assert!(held(&open_model(&model.cut(0))).is_empty());
    }

    #[tokio::test]
    async fn after_a_failed_sync_nothing_is_acknowledged_until_it_was_opened_again() {
        let model = Model::new();
        let disk = open_model(&model);
        add(&disk, 1).await.expect("the disk works");
        // The commit, and then settling twice.
        model.fail_syncs(3);
        assert_eq!(add(&disk, 2).await, Err(Unavailable));
        let why = disk.health().ready().expect_err("not ready");
        assert!(why.contains("model/hooklatch.redb"), "{why}");
        assert_eq!((add(&disk, 3).await, disk.accepts()), (Err(Unavailable), false));
        ready(&disk).await;
        assert!(disk.accepts());
        add(&disk, 4).await.expect("the disk works again");
        // What was refused may be there; what was acknowledged must be, also after a power cut.
        let after = held(&open_model(&model.cut(0)));
        assert_eq!(after, [1, 2, 3, 4]);
        assert_eq!(disk.shared.rooms.opened.load(Ordering::SeqCst), 2, "the indexes were taken from the file again");
    }

    /// Why the file is settled: what the cache shows after a failed sync need not be on the disk.
    #[tokio::test]
    async fn without_settling_a_failed_sync_can_lose_later_writes() {
        let loses = async |trusting: bool| {
            let model = Model::new();
            let disk = open_model(&model);
            disk.submit(|batch, _| (0, batch.extend(0..20_000))).expect("there is room");
            disk.flush().await.expect("the disk works");
            if trusting {
                model.trust_the_cache();
            }
            model.fail_syncs(1);
            // Taking away twice writes nothing the second time: the pages of the first are the ones that count.
            disk.submit(|batch, _| (0, batch.extend((5_000..15_000).map(|n| REMOVE + n)))).expect("there is room");
            assert_eq!(disk.flush().await, Err(Unavailable));
            ready(&disk).await;
            add(&disk, 30_000).await.expect("the disk works again");
            match Disk::open(config(Path::new("cut"), model.cut(0)), Arc::new(Log::default())) {
                Ok(after) => held(&after).len() != 10_001,
                Err(_) => true,
            }
        };
        assert!(!loses(false).await);
        assert!(loses(true).await, "the control: the model would show the loss");
    }

    #[tokio::test]
    async fn a_full_disk_refuses_and_recovers() {
        let model = Model::new();
        let disk = open_model(&model);
        model.fail_writes(true);
        assert_eq!(add(&disk, 1).await, Err(Unavailable));
        assert!(disk.health().ready().is_err());
        model.fail_writes(false);
        ready(&disk).await;
        add(&disk, 2).await.expect("there is space again");
        assert_eq!(held(&open_model(&model.cut(0))), [1, 2]);
    }

    #[tokio::test]
    async fn a_panic_in_the_store_is_a_failure_not_the_end() {
        let model = Model::new();
        let disk = open_model(&model);
        disk.shared.rooms.panics.store(true, Ordering::SeqCst);
        assert_eq!(add(&disk, 1).await, Err(Unavailable));
        ready(&disk).await;
        assert_eq!(held(&disk), [1]);
        // A reader's panic makes the writer open the file again.
        let broken: Result<(), Unavailable> = disk.read(|_| panic!("a test's panic"));
        assert_eq!(broken, Err(Unavailable));
        while disk.shared.rooms.opened.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        ready(&disk).await;
        add(&disk, 2).await.expect("it works again");
    }

    #[tokio::test]
    async fn what_gathers_during_a_sync_shares_the_next_one() {
        let model = Model::new();
        let disk = open_model(&model);
        add(&disk, 0).await.expect("the disk works");
        let before = disk.commits();
        model.hold(true);
        let first = disk.submit_now(|batch, _| (8, batch.push(1))).expect("there is room").1;
        while guard(&disk.shared.inbox).writing.is_none() {
            tokio::task::yield_now().await;
        }
        let rest: Vec<Written> = (2..100).map(|n| disk.submit_now(|batch, _| (8, batch.push(n))).expect("there is room").1).collect();
        assert_eq!(disk.waiting(|batch, _| batch.contains(&50).then_some(())), Some(()));
        model.hold(false);
        first.await.expect("the disk works");
        for written in rest {
            written.await.expect("the disk works");
        }
        assert_eq!(disk.commits() - before, 2);
        assert_eq!(disk.waiting(|batch, _| batch.contains(&50).then_some(())), None);
    }

    #[tokio::test]
    async fn the_inbox_is_bounded() {
        let model = Model::new();
        let disk = open_model(&model);
        model.hold(true);
        let size = MAX_WAITING_BYTES / 2;
        let mut taken = 0;
        while disk.submit(|_, _| (size, ())).is_ok() {
            taken += 1;
        }
        assert!(!disk.accepts() && disk.submit_now(|_, _| (0, ())).is_err());
        // One batch may be with the writer already.
        assert!((4..=8).contains(&taken), "{taken}");
        model.hold(false);
        while !disk.accepts() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn batch_numbers_never_come_twice() {
        let model = Model::new();
        let mut last = 0;
        for _ in 0..3 {
            let disk = open_model(&model);
            for _ in 0..3 {
                let (number, written) = disk.submit_now(|_, number| (0, number)).expect("there is room");
                written.await.expect("the disk works");
                assert!(number > last, "{number} after {last}");
                last = number;
            }
        }
    }

    // -- files --

    fn open_files(dir: &Path) -> Result<Disk<Log>, OpenError> {
        Disk::open(config(dir, Files), Arc::new(Log::default()))
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[tokio::test]
    async fn files_keep_what_was_written() {
        let dir = folder();
        let dir = dir.path().join("new/state");
        let disk = open_files(&dir).expect("a new folder");
        let key = *disk.digest_key();
        add(&disk, 1).await.expect("the disk works");
        disk.submit(|batch, _| (8, batch.push(2))).expect("there is room");
        // kill -9: what the file holds now is what the next process finds.
        let copy = folder();
        std::fs::copy(dir.join(FILE), copy.path().join(FILE)).expect("a copy");
        assert!(held(&open_files(copy.path()).expect("the copy opens")).contains(&1));
        drop(disk);
        let disk = open_files(&dir).expect("it opens again");
        assert_eq!((held(&disk), *disk.digest_key()), (vec![1, 2], key));
        #[cfg(unix)]
        {
            let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(dir.join(FILE)).expect("there").permissions());
            assert_eq!(mode & 0o077, 0, "it holds the digest key");
        }
    }

    #[test]
    fn a_second_process_is_refused_by_path_and_pid() {
        let dir = folder();
        let _first = open_files(dir.path()).expect("a new folder");
        let why = open_files(dir.path()).err().expect("in use").to_string();
        assert!(why.contains(&dir.path().display().to_string()) && why.contains(&format!("process {}", std::process::id())), "{why}");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let check = |dir: &Path| {
            let why = open_files(dir).err().expect("not writable").to_string();
            assert!(why.contains(&dir.display().to_string()), "{why}");
        };
        // Root may write anywhere but here.
        check(Path::new("/proc/self"));
        check(Path::new("/dev/null/state"));
    }

    #[test]
    fn a_damaged_file_is_refused_by_name_and_left_alone() {
        let sound = folder();
        let disk = open_files(sound.path()).expect("a new folder");
        for number in 0..20_000 {
            disk.submit(|batch, _| (8, batch.push(number))).expect("there is room");
        }
        drop(disk);
        let bytes = std::fs::read(sound.path().join(FILE)).expect("the file");
        let check = |name: &str, bytes: &[u8], refused: bool| {
            let dir = folder();
            let path = dir.path().join(FILE);
            std::fs::write(&path, bytes).expect("written");
            match open_files(dir.path()) {
                Ok(disk) => {
                    assert!(!refused, "{name} was taken");
                    assert_eq!(held(&disk).len(), 20_000, "{name}: silent loss");
                }
                Err(why) => {
                    assert!(why.to_string().contains(&path.display().to_string()), "{name}: {why}");
                    assert_eq!(std::fs::read(&path).expect("still there").len(), bytes.len(), "{name}: left alone");
                }
            }
        };
        check("empty", &[], true);
        check("not a store", &[b'x'; 8192], true);
        for part in [1, 2, 3, 5, 9] {
            check("truncated", &bytes[..bytes.len() * part / 10], true);
        }
        let mut zeroed = bytes.clone();
        zeroed[..4096].fill(0);
        check("header gone", &zeroed, true);
        for seed in 0..12_usize {
            let mut flipped = bytes.clone();
            let at = (seed * 7919 + 13) * 4099 % bytes.len();
            flipped[at] ^= 1 << (seed % 8);
            check("a flipped bit", &flipped, false);
            let mut page = bytes.clone();
            let at = at / 4096 * 4096;
            page[at..(at + 4096).min(bytes.len())].fill(0);
            check("a zeroed page", &page, false);
        }
    }

    #[test]
    fn another_format_and_another_program_are_refused() {
        let write = |dir: &Path, table: &str, name: &str, value: &[u8]| {
            let database = Database::create(dir.join(FILE)).expect("a store");
            let transaction = database.begin_write().expect("a transaction");
            let table = TableDefinition::<&str, &[u8]>::new(table);
            transaction.open_table(table).expect("a table").insert(name, value).expect("a row");
            transaction.commit().expect("written");
        };
        let newer = folder();
        write(newer.path(), "meta", "format", &9u32.to_le_bytes());
        let why = open_files(newer.path()).err().expect("refused").to_string();
        assert!(why.contains("has format 9"), "{why}");
        let foreign = folder();
        write(foreign.path(), "songs", "a", b"b");
        let why = open_files(foreign.path()).err().expect("refused").to_string();
        assert!(why.contains("no hooklatch state file (tables: songs)"), "{why}");
    }

    #[test]
    fn a_draft_that_a_crash_left_is_replaced() {
        let dir = folder();
        std::fs::write(dir.path().join(FILE).with_extension("new"), b"half").expect("written");
        assert!(open_files(dir.path()).is_ok());
        assert!(!dir.path().join(FILE).with_extension("new").exists());
    }

    #[tokio::test]
    async fn settling_changes_nothing() {
        let dir = folder();
        let disk = open_files(dir.path()).expect("a new folder");
        add(&disk, 1).await.expect("the disk works");
        drop(disk);
        let path = dir.path().join(FILE);
        let before = std::fs::read(&path).expect("the file");
        Files.settle(&path).expect("it settles");
        assert!(before == std::fs::read(&path).expect("the file"));
    }
}
