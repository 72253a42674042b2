//! Outcome or refusal to HTTP: every status we choose stands here. Pure.
