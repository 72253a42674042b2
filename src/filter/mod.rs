//! WebAssembly filters: the only room that knows wasmtime.
//!
//! A filter is a component built against `wit/`. It is compiled when the policy is loaded, never while a request waits, and
//! every call gets a fresh instance with a bound on its own time, on wall time, on memory and on what it returns. All it
//! can reach is in `host`, and nothing of that without the policy's word. What goes wrong in one call is a [`fault::Fault`] of
//! that call: the gate, the next call and the calls beside it go on.
//!
//! An instance whose call was dropped or failed is never entered again: its store goes with it.

pub(crate) mod bench;
mod bindings;
mod chain;
mod convert;
mod engine;
mod fault;
mod host;
pub(crate) mod kv;
mod load;
mod settings;
#[cfg(test)]
mod tests;

#[cfg(test)]
use chain::Applied;
pub(crate) use chain::{Verdict, apply};
pub(crate) use engine::Engine;
#[cfg(test)]
use fault::Fault;
pub(crate) use load::Filter;
pub(crate) use settings::{Settings, read};
