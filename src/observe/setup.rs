//! The log: where it goes, in which form, and what is in it.
//!
//! Lines go to standard error, pretty on a terminal and JSON otherwise. What is shown follows `RUST_LOG`, else `[log] level`, else
//! `info` with the libraries at `warn`, and on a terminal a line for every request. Libraries never get beyond `debug`: at `trace` they
//! may show bytes of a connection.

use std::{
    io::{self, IsTerminal},
    sync::OnceLock,
};

use tracing::{Level, Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter,
    filter::FilterExt,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
};

use crate::{observe::audit, section::Section};

/// Libraries that are quiet unless named.
const QUIET: &str = "hyper=warn,hyper_util=warn,h2=warn,rustls=warn,tokio_rustls=warn,wasmtime=warn,cranelift=warn,notify=warn";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    /// Pretty on a terminal, JSON otherwise.
    #[default]
    Auto,
    Pretty,
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) format: Format,
    /// Directives such as `info` or `warn,hooklatch=debug`; `RUST_LOG` goes before.
    pub(crate) level: Option<String>,
    /// `None`: no audit file.
    pub(crate) audit: Option<audit::Settings>,
}

impl Settings {
    /// Whether the log is read by a person: pretty lines.
    pub(crate) fn for_people(&self) -> bool {
        match self.format {
            Format::Auto => io::stderr().is_terminal(),
            Format::Pretty => true,
            Format::Json => false,
        }
    }
}

/// Reads `[log]`; `root` is the whole policy.
pub(crate) fn read(root: &Section<'_>) -> Settings {
    let Some(log) = root.opt_section("log") else {
        return Settings { format: Format::Auto, level: None, audit: Some(audit::default(root.inputs())) };
    };
    let format = log.choice("format", &[("auto", Format::Auto), ("pretty", Format::Pretty), ("json", Format::Json)]).unwrap_or_default();
    let level = log.opt_string("level");
    if let Some(why) = level.as_deref().and_then(|level| EnvFilter::try_new(level).err()) {
        log.problem(
            "level",
            format!("this level cannot be read: {why}"),
            "write `error`, `warn`, `info` or `debug`, or like RUST_LOG: \"info,hooklatch::request=debug\"",
        );
    }
    let audit = audit::read(&log);
    log.not_built("otlp", "traces over OTLP come with a later release");
    log.finish();
    Settings { format, level, audit }
}

/// The running log.
#[derive(Debug)]
pub(crate) struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
    pretty: bool,
}

static LOGGING: OnceLock<Logging> = OnceLock::new();

/// Starts the log, once per process; a later call only changes what is shown.
pub(crate) fn start(settings: &Settings) {
    let terminal = io::stderr().is_terminal();
    let pretty = settings.for_people();
    let mut fresh = false;
    let logging = LOGGING.get_or_init(|| {
        fresh = true;
        let (filter, handle) = reload::Layer::new(shown(settings.level.as_deref(), pretty));
        let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let subscriber = Registry::default().with(layer(pretty, color, io::stderr).with_filter(filter.and(filter::filter_fn(tame))));
        // Fails only where something else has set one already, as a test may; that one then stays.
        let _ = tracing::subscriber::set_global_default(subscriber);
        Logging { filter: handle, pretty }
    });
    if !fresh {
        // Fails only where the subscriber is gone, which a global one never is.
        let _ = logging.filter.reload(shown(settings.level.as_deref(), logging.pretty));
    }
}

fn shown(level: Option<&str>, pretty: bool) -> EnvFilter {
    let own = std::env::var("RUST_LOG").ok().filter(|text| !text.trim().is_empty());
    let request = if pretty { ",hooklatch::request=debug" } else { "" };
    let text = match (own.as_deref(), level) {
        (Some(text), _) => format!("{QUIET},{text}"),
        (None, Some(text)) => format!("{QUIET},{text}"),
        (None, None) => format!("{QUIET},info{request}"),
    };
    EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse_lossy(text)
}

/// Libraries at `trace` stay out.
fn tame(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::DEBUG || metadata.target().starts_with("hooklatch")
}

fn layer<S, W>(pretty: bool, color: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    if pretty {
        fmt::layer().with_target(false).with_ansi(color).with_writer(writer).boxed()
    } else {
        fmt::layer().json().flatten_event(true).with_target(true).with_writer(writer).boxed()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;
    use crate::{
        problem::Source,
        section::{Inputs, Reader},
    };

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn capture(level: &str, pretty: bool, run: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let filter = EnvFilter::new(level).and(filter::filter_fn(tame));
        let subscriber = Registry::default().with(layer(pretty, false, move || writer.clone()).with_filter(filter));
        tracing::subscriber::with_default(subscriber, run);
        let bytes = buffer.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(bytes).expect("text")
    }

    /// What `run` logs on this thread, in the pretty form without colours.
    pub(crate) fn captured(level: &str, run: impl FnOnce()) -> String {
        capture(level, true, run)
    }

    #[test]
    fn libraries_at_trace_stay_out() {
        let log = captured("trace", || {
            tracing::trace!(target: "h2::codec", "a frame");
            tracing::debug!(target: "h2::codec", "a state");
            tracing::trace!(target: "hooklatch::verify", "ours");
        });
        assert!(!log.contains("a frame") && log.contains("a state") && log.contains("ours"), "{log}");
    }

    #[test]
    fn json_lines_are_flat() {
        let log = capture("info", false, || tracing::info!(route = "a", "said \"so\""));
        let line: serde_json::Value = serde_json::from_str(log.trim()).expect("a line of JSON");
        assert_eq!((line["route"].as_str(), line["message"].as_str(), line["level"].as_str()), (Some("a"), Some("said \"so\""), Some("INFO")));
    }

    fn check(text: &str, problems: &[&str]) -> Settings {
        let reader = Reader::new(Source { name: "p.toml".into(), text: text.into() }, Inputs::memory(&[], &[]));
        let table = reader.parse();
        let root = reader.root(&table);
        let settings = read(&root);
        root.finish();
        let told: Vec<String> = reader.problems().iter().map(ToString::to_string).collect();
        assert_eq!(told, problems, "{text}");
        settings
    }

    #[test]
    fn settings_are_read() {
        let none = check("", &[]);
        assert_eq!((none.format, none.audit.is_some()), (Format::Auto, true));
        let json = check("[log]\nformat = \"json\"\nlevel = \"warn,hooklatch=debug\"\naudit = false", &[]);
        assert_eq!(json, Settings { format: Format::Json, level: Some("warn,hooklatch=debug".into()), audit: None });
        check("[log]\notlp = \"http://127.0.0.1:4317\"", &["log.otlp: `otlp` is not built yet: traces over OTLP come with a later release (remove the key)"]);
        check("[log]\nfromat = \"json\"", &["log.fromat: unknown key `fromat` (did you mean `format`?)"]);
        check("[log]\nformat = \"xml\"", &["log.format: `xml` is not known here (it is one of: auto, pretty, json)"]);
    }
}
