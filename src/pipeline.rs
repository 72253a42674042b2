//! The way of one request, a line per step.
