//! A filter from its settings: compiled, its imports judged, asked to describe itself, its config checked.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jsonschema::PatternOptions;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::{Store, UpdateDeadline, WasmBacktrace, component::Component};

use super::{
    bindings::{self, FilterPre, hooklatch::filter::types::BodyNeed},
    chain::Quarantine,
    engine::{Engine, Runtime, TICK},
    fault::{Cause, Fault, Limit},
    host::{Call, clean},
    settings::{Allow, OnError, Settings},
};
use crate::{
    clock::Clock,
    observe::metrics::{FilterMetrics, Metrics},
};

/// What a filter's own interface begins with; the gate offers version 0.1.
const OWN: &str = "hooklatch:filter/";
/// Wall time and slices that `describe` may take; it has nothing to wait for.
const DESCRIBE: Duration = Duration::from_secs(1);
/// Longest texts that `describe` may return, in bytes.
const NAME_BYTES: usize = 64;
const SUMMARY_BYTES: usize = 256;
const SCHEMA_BYTES: usize = 256 << 10;
/// Everything that a filter may hand to the host in one call, unless the event is larger, in bytes.
pub(super) const OUTPUT_BYTES: usize = 16 << 20;

/// A filter that is ready to be called.
pub(crate) struct Filter {
    pub(super) shared: Arc<Shared>,
    pub(super) about: About,
    pub(super) pre: FilterPre<Call>,
    pub(super) idle: Mutex<Vec<Live>>,
    pub(super) quarantine: Option<Mutex<Quarantine>>,
}

/// What a filter says about itself, and what it reaches for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct About {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) summary: String,
    /// Whether it wants the body at all.
    pub(crate) body: bool,
    pub(crate) stateless: bool,
    pub(crate) config_schema: Option<String>,
    /// Every interface it imports, as `package/interface@version`.
    pub(crate) imports: Vec<String>,
    /// Interfaces among them that the policy does not grant: calls return an error.
    pub(crate) not_granted: Vec<&'static str>,
}

/// What all calls of a filter have in common.
pub(super) struct Shared {
    pub(super) engine: Engine,
    pub(super) clock: Clock,
    pub(super) metrics: FilterMetrics,
    pub(super) settings: Settings,
}

impl Shared {
    pub(super) fn name(&self) -> &str {
        &self.settings.name
    }

    pub(super) fn config(&self) -> &str {
        &self.settings.config
    }

    pub(super) fn allow(&self) -> &Allow {
        &self.settings.allow
    }

    pub(super) fn memory(&self) -> u64 {
        self.settings.memory
    }

    /// `cpu` in ticks.
    pub(super) fn slices(&self) -> u32 {
        u32::try_from(self.settings.cpu.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX).max(1)
    }

    pub(super) fn fault(&self, cause: Cause) -> Fault {
        Fault::new(self.name(), cause)
    }

    /// What ended a call, from what wasmtime says and the limit that was noted.
    pub(super) fn ended(&self, error: &wasmtime::Error, hit: Option<Limit>, output: usize) -> Fault {
        if let Some(limit) = hit {
            return self.fault(Cause::Limit(limit));
        }
        let what = error.root_cause().to_string();
        // The type is private to wasmtime; its text is all there is.
        if what.contains("fuel allocated for hostcalls") {
            return self.fault(Cause::Limit(Limit::Output(output)));
        }
        let frames = error.downcast_ref::<WasmBacktrace>().map(frames).unwrap_or_default();
        self.fault(Cause::Trapped { what: clean(&what, 256), frames })
    }
}

/// Function names, innermost first, without addresses and files.
fn frames(backtrace: &WasmBacktrace) -> Vec<String> {
    let text = backtrace.to_string();
    let names = text.lines().skip(1).filter_map(|line| {
        let name = line.split_once(" - ").map_or(line, |(_, name)| name).trim();
        let name = name.split_once('!').map_or(name, |(_, function)| function);
        // The hash that rustc puts behind a name says nothing to its author.
        let name = name.rsplit_once("::h").filter(|(_, hash)| hash.len() == 16).map_or(name, |(name, _)| name);
        (!name.is_empty() && !name.starts_with("at ")).then(|| clean(name, 200))
    });
    names.take(8).collect()
}

/// An instance and how many events it may still serve. Dropping it frees its slot in the pool.
pub(super) struct Live {
    pub(super) store: Store<Call>,
    pub(super) instance: bindings::Filter,
    pub(super) left: u32,
    /// Held while it lies idle, so that idle instances never fill the pool.
    pub(super) resting: Option<OwnedSemaphorePermit>,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filter").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

impl Filter {
    /// Compiles and checks a filter: takes 0.1 s for one in Rust and up to 22 s for others, or milliseconds from the cache.
    /// For the start, a reload and `check`; never in a request's way.
    pub(crate) fn load(engine: &Engine, settings: &Settings, clock: Clock, metrics: &Arc<Metrics>) -> Result<Arc<Self>, Fault> {
        let fault = |cause| Fault::new(&settings.name, cause);
        let component = engine.compile(settings)?;
        let imports = imports(engine.runtime()?, &component);
        let (pre, not_granted) = link(engine.runtime()?, settings, &component, &imports)?;
        let shared = Arc::new(Shared { engine: engine.clone(), clock, metrics: metrics.filter(&settings.name), settings: settings.clone() });
        let about = About { imports, not_granted, ..describe(&shared, &pre)? };
        if settings.reuse > 1 && !about.stateless {
            return Err(fault(Cause::NotStateless));
        }
        check_config(settings, about.config_schema.as_deref())?;
        let quarantine = settings.quarantine.map(|quarantine| Mutex::new(Quarantine::new(quarantine)));
        Ok(Arc::new(Self { shared, about, pre, idle: Mutex::default(), quarantine }))
    }

    pub(crate) fn name(&self) -> &str {
        self.shared.name()
    }

    /// It takes the place of the one before, whose quarantine ends with it.
    pub(crate) fn begin(&self) {
        self.shared.metrics.quarantined(false);
    }

    #[cfg(test)]
    pub(crate) fn about(&self) -> &About {
        &self.about
    }

    pub(super) fn on_error(&self) -> OnError {
        self.shared.settings.on_error
    }

    /// An instance that lies idle, or a fresh one.
    pub(super) async fn instance(&self) -> Result<Live, Fault> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(mut live) => {
                live.resting = None;
                live.store.data_mut().slices = self.shared.slices();
                Ok(live)
            }
            None => fresh(&self.shared, &self.pre).await,
        }
    }

    /// Takes an instance back after a call that went well, if it may serve another.
    pub(super) fn rest(&self, mut live: Live) {
        live.left = live.left.saturating_sub(1);
        if live.left == 0 {
            return;
        }
        if let Ok(permit) = self.shared.engine.0.idle.clone().try_acquire_owned() {
            live.resting = Some(permit);
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(live);
        }
    }
}

/// A new store and instance, with its limits set.
async fn fresh(shared: &Arc<Shared>, pre: &FilterPre<Call>) -> Result<Live, Fault> {
    let mut store = Store::new(&shared.engine.runtime()?.engine, Call::new(shared.clone()));
    store.limiter(|call| call);
    store.set_hostcall_fuel(OUTPUT_BYTES);
    store.set_epoch_deadline(1);
    // Every tick the guest gives way to the other tasks of this thread, once; past its budget it ends.
    store.epoch_deadline_callback(|mut context| {
        let call = context.data_mut();
        if call.slices == 0 {
            call.hit = Some(Limit::Cpu(call.shared.settings.cpu));
            return Ok(UpdateDeadline::Interrupt);
        }
        call.slices -= 1;
        call.ticks += 1;
        if call.ticks > 1
            && let Ok(runtime) = call.shared.engine.runtime()
        {
            runtime.lasting();
        }
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    });
    match pre.instantiate_async(&mut store).await {
        Ok(instance) => Ok(Live { store, instance, left: shared.settings.reuse, resting: None }),
        Err(error) => Err(shared.ended(&error, store.data_mut().hit.take(), OUTPUT_BYTES)),
    }
}

fn imports(runtime: &Runtime, component: &Component) -> Vec<String> {
    component.component_type().imports(&runtime.engine).map(|(name, _)| name.to_owned()).collect()
}

/// Ties the imports to the host. `wasi:*` that a toolchain drags in becomes traps, since nothing of it is ever granted.
fn link(runtime: &Runtime, settings: &Settings, component: &Component, imports: &[String]) -> Result<(FilterPre<Call>, Vec<&'static str>), Fault> {
    let fault = |cause| Fault::new(&settings.name, cause);
    let strange = imports.iter().find(|name| !(own(name) || name.starts_with("wasi:")));
    if let Some(name) = strange {
        return Err(fault(Cause::UnknownImport(name.clone())));
    }
    let mut linker = runtime.linker.clone();
    if imports.iter().any(|name| name.starts_with("wasi:")) {
        linker.define_unknown_imports_as_traps(component).map_err(|error| fault(Cause::NotAFilter(error.root_cause().to_string())))?;
    }
    let pre = linker.instantiate_pre(component).and_then(FilterPre::new);
    let pre = pre.map_err(|error| fault(Cause::NotAFilter(error.root_cause().to_string())))?;
    let allow = &settings.allow;
    let optional = [("kv", allow.kv), ("random", allow.random), ("crypto", true), ("http", false)];
    let imported = |name: &str| imports.iter().any(|import| import.strip_prefix(OWN).is_some_and(|rest| rest.split('@').next() == Some(name)));
    let not_granted = optional.into_iter().filter(|(name, granted)| !granted && imported(name)).map(|(name, _)| name).collect();
    Ok((pre, not_granted))
}

/// Whether a name is one of this interface's, in a version that the gate has.
fn own(import: &str) -> bool {
    const INTERFACES: [&str; 9] = ["types", "log", "config", "metrics", "kv", "clock", "random", "crypto", "http"];
    import
        .strip_prefix(OWN)
        .and_then(|rest| rest.split_once('@'))
        .is_some_and(|(interface, version)| INTERFACES.contains(&interface) && version.starts_with("0.1."))
}

/// Asks the filter about itself, once. This runs on a thread of its own, so that it does not matter whether the caller
/// is inside a runtime.
fn describe(shared: &Arc<Shared>, pre: &FilterPre<Call>) -> Result<About, Fault> {
    let fault = |why: String| shared.fault(Cause::Describe(why));
    let asked = std::thread::scope(|scope| {
        let asking = std::thread::Builder::new().name("filter-describe".into()).spawn_scoped(scope, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|error| fault(error.to_string()))?;
            runtime.block_on(async {
                let _running = shared.engine.runtime()?.running();
                match tokio::time::timeout(DESCRIBE, ask(shared, pre)).await {
                    Ok(asked) => asked,
                    Err(_) => Err(fault(format!("it took longer than {}", humantime::format_duration(DESCRIBE)))),
                }
            })
        });
        match asking {
            Ok(thread) => thread.join().unwrap_or_else(|_| Err(fault("the host panicked".into()))),
            Err(error) => Err(fault(error.to_string())),
        }
    })?;
    let fits = asked.name.len() <= NAME_BYTES && asked.version.len() <= NAME_BYTES && asked.summary.len() <= SUMMARY_BYTES;
    if !fits || asked.config_schema.as_ref().is_some_and(|schema| schema.len() > SCHEMA_BYTES) {
        return Err(fault(format!(
            "its texts are too long: {NAME_BYTES} bytes for name and version, {SUMMARY_BYTES} for the summary, {SCHEMA_BYTES} for the schema"
        )));
    }
    Ok(asked)
}

async fn ask(shared: &Arc<Shared>, pre: &FilterPre<Call>) -> Result<About, Fault> {
    let as_describe = |fault: Fault| shared.fault(Cause::Describe(told(&fault)));
    let mut live = fresh(shared, pre).await.map_err(as_describe)?;
    live.store.data_mut().slices = u32::try_from(DESCRIBE.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX);
    live.store.set_epoch_deadline(1);
    let described = live.instance.hooklatch_filter_handler().call_describe(&mut live.store).await;
    match described {
        Ok(said) => Ok(About {
            name: clean(&said.name, NAME_BYTES + 1),
            version: clean(&said.version, NAME_BYTES + 1),
            summary: clean(&said.summary, SUMMARY_BYTES + 1),
            body: matches!(said.body, BodyNeed::Full),
            stateless: said.stateless,
            config_schema: said.config_schema,
            imports: Vec::new(),
            not_granted: Vec::new(),
        }),
        Err(error) => Err(as_describe(shared.ended(&error, live.store.data_mut().hit.take(), OUTPUT_BYTES))),
    }
}

/// A fault without the filter's name, to stand in another.
fn told(fault: &Fault) -> String {
    let text = fault.to_string();
    text.split_once(": ").map_or(text.clone(), |(_, rest)| rest.to_owned())
}

/// Checks the policy's `config` against the filter's own schema. Nothing outside the schema is fetched, and patterns are
/// matched in linear time.
fn check_config(settings: &Settings, schema: Option<&str>) -> Result<(), Fault> {
    let Some(schema) = schema else { return Ok(()) };
    let fault = |cause| Fault::new(&settings.name, cause);
    let wrong_schema = |why: String| fault(Cause::Schema(clean(&why, 512)));
    let schema: serde_json::Value = serde_json::from_str(schema).map_err(|error| wrong_schema(error.to_string()))?;
    let validator =
        jsonschema::options().offline().with_pattern_options(PatternOptions::regex()).build(&schema).map_err(|error| wrong_schema(error.to_string()))?;
    let config: serde_json::Value = serde_json::from_str(&settings.config).map_err(|error| fault(Cause::Config(vec![error.to_string()])))?;
    let lines: Vec<String> = validator
        .iter_errors(&config)
        .take(16)
        .map(|error| {
            let place = error.instance_path().to_string();
            let place = if place.is_empty() { "config".to_owned() } else { place };
            // A value may be a secret: it is not quoted.
            clean(&format!("{place}: {}", error.masked_with("the value")), 300)
        })
        .collect();
    if lines.is_empty() { Ok(()) } else { Err(fault(Cause::Config(lines))) }
}
