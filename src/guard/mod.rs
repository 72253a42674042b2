//! What is checked before a byte of the body is read, and the limits keyed on verified facts.

pub(crate) mod allow;
