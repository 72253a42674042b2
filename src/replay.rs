//! One record per event key: claimed, done, failed.
