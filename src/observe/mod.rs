//! What an operator sees: metrics, the audit line, the log.
//!
//! Never a body, a secret or a signature; label values never come from a request.

pub(crate) mod audit;
pub(crate) mod events;
pub(crate) mod metrics;
pub(crate) mod setup;
