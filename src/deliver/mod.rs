//! An event to its receivers.
