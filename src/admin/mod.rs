//! The admin listener: health, metrics, inspector.
