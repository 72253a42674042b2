//! What went wrong with a filter, for its author: which filter, and the limit it hit, the trap, or the mistake in what it
//! returned. Never a request's body, never anything of the host's insides.

use std::{fmt, time::Duration};

/// A filter that could not be loaded, or one call of it that failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    pub(crate) filter: String,
    pub(crate) cause: Cause,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cause {
    /// The engine itself could not be set up; no filter's doing.
    Engine(String),
    /// The file is not a component, or not one for this interface.
    NotAFilter(String),
    /// It imports something that no gate offers.
    UnknownImport(String),
    /// `describe` failed or gave nonsense.
    Describe(String),
    /// The schema that the filter ships for its config is wrong.
    Schema(String),
    /// The policy's `config` table does not fit the filter's schema: a line for each place.
    Config(Vec<String>),
    /// `reuse` was asked of a filter that does not call itself stateless.
    NotStateless,
    /// It returned `err`: its own words.
    Failed(String),
    /// It trapped; the frames are innermost first.
    Trapped {
        what: String,
        frames: Vec<String>,
    },
    Limit(Limit),
    /// It returned something that the interface does not allow.
    BadOutcome(String),
    /// What it returned needs a part of the gate that is not built yet.
    NotBuilt(&'static str),
    /// It failed so often that it is not called for a while.
    Quarantined,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Limit {
    /// `cpu`: its own time.
    Cpu(Duration),
    /// `timeout`: wall time, with host calls.
    Time(Duration),
    /// `memory`, in bytes.
    Memory(u64),
    /// The size of everything it hands to the host in one call, in bytes.
    Output(usize),
}

impl Fault {
    pub(crate) fn new(filter: &str, cause: Cause) -> Self {
        Self { filter: filter.to_owned(), cause }
    }

    /// The key of the filter's table that a fault at loading is about.
    pub(crate) const fn key(&self) -> &'static str {
        match &self.cause {
            Cause::Config(_) => "config",
            Cause::NotStateless => "reuse",
            Cause::Engine(_)
            | Cause::NotAFilter(_)
            | Cause::UnknownImport(_)
            | Cause::Describe(_)
            | Cause::Schema(_)
            | Cause::Failed(_)
            | Cause::Trapped { .. }
            | Cause::Limit(_)
            | Cause::BadOutcome(_)
            | Cause::NotBuilt(_)
            | Cause::Quarantined => "component",
        }
    }

    /// One word of a closed list: the metric's `kind`.
    pub(crate) const fn kind(&self) -> &'static str {
        match &self.cause {
            Cause::Engine(_)
            | Cause::NotAFilter(_)
            | Cause::UnknownImport(_)
            | Cause::Describe(_)
            | Cause::Schema(_)
            | Cause::Config(_)
            | Cause::NotStateless => "load",
            Cause::Failed(_) => "error",
            Cause::Trapped { .. } => "trap",
            Cause::Limit(Limit::Cpu(_)) => "cpu",
            Cause::Limit(Limit::Time(_)) => "timeout",
            Cause::Limit(Limit::Memory(_)) => "memory",
            Cause::Limit(Limit::Output(_)) => "output",
            Cause::BadOutcome(_) | Cause::NotBuilt(_) => "outcome",
            Cause::Quarantined => "quarantined",
        }
    }
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "filter `{}`: ", self.filter)?;
        match &self.cause {
            Cause::Engine(why) => write!(f, "the filter engine cannot be set up: {why}"),
            Cause::NotAFilter(why) => write!(f, "the file is not a component for hooklatch:filter@0.1: {why}"),
            Cause::UnknownImport(name) => {
                write!(f, "it imports `{name}`, which the gate does not offer: build it against wit/ of this release, without other imports")
            }
            Cause::Describe(why) => write!(f, "`describe` failed: {why}"),
            Cause::Schema(why) => write!(f, "the config schema that it ships is not a JSON Schema: {why}"),
            Cause::Config(lines) => write!(f, "`config` does not fit the filter's schema: {}", lines.join("; ")),
            Cause::NotStateless => f.write_str("it does not call itself stateless, so `reuse` must be 1"),
            Cause::Failed(text) => write!(f, "it failed: {text}"),
            Cause::Trapped { what, frames } => {
                write!(f, "it trapped: {what}")?;
                if !frames.is_empty() {
                    write!(f, ", in {}", frames.join(" < "))?;
                }
                Ok(())
            }
            Cause::Limit(Limit::Cpu(budget)) => write!(f, "it computed longer than `cpu`, {}: raise it, or mend a loop", span(*budget)),
            Cause::Limit(Limit::Time(budget)) => write!(f, "it took longer than `timeout`, {}", span(*budget)),
            Cause::Limit(Limit::Memory(bytes)) => write!(f, "it wanted more than `memory`, {}", size(*bytes)),
            Cause::Limit(Limit::Output(bytes)) => write!(f, "it handed more than {} to the gate in one call", size(*bytes as u64)),
            Cause::BadOutcome(why) => write!(f, "its outcome is not allowed: {why}"),
            Cause::NotBuilt(what) => write!(f, "{what} is not built yet"),
            Cause::Quarantined => f.write_str("it failed too often and is not called for a while"),
        }
    }
}

fn span(duration: Duration) -> impl fmt::Display {
    humantime::format_duration(duration)
}

fn size(bytes: u64) -> impl fmt::Display {
    bytesize::ByteSize(bytes).display().iec()
}
