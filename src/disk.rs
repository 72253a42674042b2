//! One embedded store: one writer thread, group commit, an fsync error stops it.
