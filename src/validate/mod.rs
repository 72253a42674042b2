//! Content type, coding, JSON form and schema of a payload. Pure.

pub(crate) mod json;
