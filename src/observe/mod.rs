//! Metrics, audit line, log.
