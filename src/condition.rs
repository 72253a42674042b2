//! The only user of the CEL crate: compile, evaluate, bounds. Pure.
