//! An event to its receivers.
pub(crate) mod inspector;
