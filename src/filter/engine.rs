//! The one wasmtime engine: its settings, its pool of instances, its clock of slices, and the cache of compiled filters.

use std::{
    fmt::Write as _,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig, component::Component, component::Linker};

use super::{
    bindings,
    fault::{Cause, Fault},
    host::{Call, Host},
    kv::{Kv, Memory},
    settings::{MEMORY_MAX, Settings},
};

/// Calls that run at one time; further ones wait for a permit, which counts to no limit of theirs.
const CALLS: u32 = 128;
/// Instances that may lie idle between events, of all filters that allow `reuse`.
const IDLE: u32 = 64;
/// Instances for `describe`, beside all others.
const SPARE: u32 = 16;
const INSTANCES: u32 = CALLS + IDLE + SPARE;
/// Parts of one component: componentize-py makes about 50 core instances.
const CORE_INSTANCES: u32 = 64;
const TABLES: u32 = 20;
const MEMORIES: u32 = 4;
/// One slice of the guest's time.
pub(super) const TICK: Duration = Duration::from_millis(1);
/// How many ticks make one while all calls are short; the first slices of a call are so much longer.
const FAR: u32 = 4;
/// Ticks after which a call that lasted counts as gone.
const CLOSE: u32 = 50;
/// Ticks that the ticker stays awake after the last call.
const LINGER: u32 = 50;
/// Compiled filters that are kept on disk; past it the oldest go.
const CACHED: usize = 64;

/// Runs filters. Cloning shares it; there is one for the whole process, over all reloads.
#[derive(Clone)]
pub(crate) struct Engine(pub(super) Arc<Inner>);

pub(super) struct Inner {
    /// Made for the first filter: its pool reserves terabytes of address space, which a gate without filters does without.
    runtime: OnceLock<Runtime>,
    pub(super) permits: Semaphore,
    pub(super) idle: Arc<Semaphore>,
    pub(super) kv: Arc<dyn Kv>,
    cache: Option<PathBuf>,
}

/// wasmtime, set up.
pub(super) struct Runtime {
    pub(super) engine: wasmtime::Engine,
    pub(super) linker: Linker<Call>,
    ticker: Ticker,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    /// An engine whose compiled filters are kept in `cache_dir`, which only this program may write; without it every start
    /// compiles anew (0.1 to 0.3 s for a filter in Rust, 8 to 22 s for one in Python or JavaScript). The filters' kv is in memory.
    pub(crate) fn new(cache_dir: Option<PathBuf>) -> Self {
        Self::with_kv(cache_dir, Arc::new(Memory::default()))
    }

    /// The same with another store for the filters' kv.
    pub(crate) fn with_kv(cache_dir: Option<PathBuf>, kv: Arc<dyn Kv>) -> Self {
        Self(Arc::new(Inner {
            runtime: OnceLock::new(),
            permits: Semaphore::new(CALLS as usize),
            idle: Arc::new(Semaphore::new(IDLE as usize)),
            kv,
            cache: cache_dir,
        }))
    }

    /// wasmtime, set up at the first call; an error says what the system lacks.
    pub(super) fn runtime(&self) -> Result<&Runtime, Fault> {
        if let Some(runtime) = self.0.runtime.get() {
            return Ok(runtime);
        }
        let made = Runtime::start().map_err(|why| Fault::new("*", Cause::Engine(why)))?;
        // Where two threads come here at once the slower one's is dropped.
        Ok(self.0.runtime.get_or_init(|| made))
    }

    /// The compiled component, from the cache if it is there.
    pub(super) fn compile(&self, settings: &Settings) -> Result<Component, Fault> {
        let engine = &self.runtime()?.engine;
        let file = self.cache_file(engine, &settings.digest);
        if let Some(component) = file.as_deref().and_then(|file| cached(engine, file)) {
            return Ok(component);
        }
        let fault = |why: String| Fault::new(&settings.name, Cause::NotAFilter(why));
        if !settings.component.starts_with(b"\0asm") {
            return Err(fault("it is no WebAssembly".to_owned()));
        }
        let component = Component::from_binary(engine, &settings.component).map_err(|error| fault(error.root_cause().to_string()))?;
        if let Some(file) = file {
            // A cache that cannot be written costs time at the next start, and nothing else.
            let stored = component.serialize().map_err(io::Error::other).and_then(|compiled| store(&file, &compiled));
            if let Err(why) = stored {
                tracing::warn!(filter = %settings.name, path = %file.display(), "the compiled filter cannot be kept: {why}");
            }
        }
        Ok(component)
    }

    /// Where the compiled form of a component belongs: named after its bytes and after everything that decides what
    /// the compiler makes of them.
    fn cache_file(&self, engine: &wasmtime::Engine, digest: &[u8; 32]) -> Option<PathBuf> {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let mut name = data_encoding::HEXLOWER.encode(digest);
        let _ = write!(name, "-{:016x}.cwasm", hasher.finish());
        self.0.cache.as_ref().map(|cache| cache.join(name))
    }
}

impl Runtime {
    fn start() -> Result<Self, String> {
        let engine = wasmtime::Engine::new(&engine_config()).map_err(|error| error.to_string())?;
        let mut linker = Linker::new(&engine);
        bindings::Filter::add_to_linker::<_, Host>(&mut linker, |call| call).map_err(|error| error.to_string())?;
        let ticker = Ticker::start(&engine).map_err(|error| error.to_string())?;
        Ok(Self { engine, linker, ticker })
    }

    /// Counts as a running call until dropped.
    pub(super) fn running(&self) -> Running<'_> {
        self.ticker.enter()
    }

    /// A call has met its second tick.
    pub(super) fn lasting(&self) {
        self.ticker.seen.lasting.store(true, Ordering::Relaxed);
    }
}

/// A compiled component that this program wrote before. Anything odd about the file, and it is compiled anew.
fn cached(engine: &wasmtime::Engine, file: &Path) -> Option<Component> {
    let compiled = fetch(file)?;
    // SAFETY: `deserialize` wants bytes that wasmtime itself has serialised. `fetch` gives only what `store` has
    // written: from a folder of this user that nobody else may write, whole by its digest. Whoever can write there can
    // replace the program too.
    #[expect(unsafe_code, reason = "loading our own compiled filters is the one exception")]
    let component = unsafe { Component::deserialize(engine, compiled) };
    component.ok()
}

/// The settings that compiled filters depend on: one function, so that whatever compiles agrees with whatever loads.
pub(super) fn engine_config() -> Config {
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(INSTANCES)
        .total_core_instances(INSTANCES * CORE_INSTANCES)
        .total_memories(INSTANCES * 2)
        .total_tables(INSTANCES * TABLES)
        .total_stacks(INSTANCES)
        .max_core_instances_per_component(CORE_INSTANCES)
        .max_tables_per_component(TABLES)
        .max_memories_per_component(MEMORIES)
        .table_elements(TABLE_ELEMENTS)
        .max_memory_size(usize::try_from(MEMORY_MAX).unwrap_or(usize::MAX));
    // What stays mapped in a slot between two events is zeroed by hand, which costs less than new pages; which pages were
    // touched is known only from Linux 6.7 on, so that before it the whole part would be zeroed every time.
    if pagemap_scan() {
        pool.linear_memory_keep_resident(1 << 20).table_keep_resident(64 << 10).async_stack_keep_resident(64 << 10).pagemap_scan(Enabled::Auto);
    } else {
        pool.linear_memory_keep_resident(64 << 10);
    }
    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool)).epoch_interruption(true).concurrency_support(false);
    config
}

/// Entries of one table: more than the largest filter known has functions.
pub(super) const TABLE_ELEMENTS: usize = 20_000;

fn pagemap_scan() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 7)
}

/// The thread that ends slices: a tick a millisecond while a call runs that lasts, a tick in four while all calls are short, asleep
/// without calls. Every tick takes the processor away from somebody.
struct Ticker {
    seen: Arc<Seen>,
    thread: Thread,
}

#[derive(Default)]
struct Seen {
    /// Calls that run.
    active: AtomicUsize,
    /// A call met its second tick: it lasts.
    lasting: AtomicBool,
}

impl Ticker {
    fn start(engine: &wasmtime::Engine) -> io::Result<Self> {
        let (engine, seen) = (engine.weak(), Arc::<Seen>::default());
        let looking = seen.clone();
        let handle = thread::Builder::new().name("filter-ticker".into()).spawn(move || {
            let (mut quiet, mut close) = (0, 0);
            loop {
                let Some(engine) = engine.upgrade() else { return };
                engine.increment_epoch();
                drop(engine);
                quiet = if looking.active.load(Ordering::SeqCst) > 0 { 0 } else { quiet + 1 };
                close = if looking.lasting.swap(false, Ordering::Relaxed) { CLOSE } else { close.saturating_sub(1) };
                if quiet > LINGER {
                    // `enter` unparks after it has counted, so a call that begins right here is not missed.
                    thread::park_timeout(Duration::from_secs(10));
                    quiet = LINGER;
                } else {
                    thread::sleep(if close > 0 { TICK } else { TICK * FAR });
                }
            }
        })?;
        Ok(Self { seen, thread: handle.thread().clone() })
    }

    fn enter(&self) -> Running<'_> {
        if self.seen.active.fetch_add(1, Ordering::SeqCst) == 0 {
            self.thread.unpark();
        }
        Running(&self.seen.active)
    }
}

/// A call that is running.
pub(super) struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Reads what [`store`] wrote: the SHA-256 of the rest, then the rest.
fn fetch(file: &Path) -> Option<Vec<u8>> {
    let folder = fs::symlink_metadata(file.parent()?).ok()?;
    let found = fs::symlink_metadata(file).ok()?;
    let ours = |metadata: &fs::Metadata| metadata.mode() & 0o022 == 0 && metadata.uid() == user();
    if !(folder.is_dir() && found.is_file() && ours(&folder) && ours(&found)) {
        return None;
    }
    let bytes = fs::read(file).ok()?;
    let (digest, compiled) = bytes.split_at_checked(32)?;
    (Sha256::digest(compiled)[..] == *digest).then(|| compiled.to_vec())
}

/// Writes beside the place and renames, so that a reader finds all or nothing.
fn store(file: &Path, compiled: &[u8]) -> io::Result<()> {
    let folder = file.parent().ok_or(io::ErrorKind::NotFound)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let beside = file.with_extension(format!("{}.new", std::process::id()));
    let mut open = fs::OpenOptions::new();
    let mut output = open.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    let written = io::Write::write_all(&mut output, &Sha256::digest(compiled)).and_then(|()| io::Write::write_all(&mut output, compiled));
    let done = written.and_then(|()| fs::rename(&beside, file));
    if done.is_err() {
        let _ = fs::remove_file(&beside);
    }
    done?;
    sweep(folder);
    Ok(())
}

/// Keeps the newest compiled filters: those of past versions of the program or of a filter are never asked for again.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut files: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "cwasm"))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort();
    let surplus = files.len().saturating_sub(CACHED);
    for (_, path) in files.drain(..surplus) {
        let _ = fs::remove_file(path);
    }
}

/// The user this process runs as, as files of `/proc/self` show it.
fn user() -> u32 {
    fs::metadata("/proc/self").map_or(u32::MAX, |metadata| metadata.uid())
}
