//! Secrets that never print: where one comes from, and its bytes.

use std::{fmt, sync::Arc};

use secrecy::{ExposeSecret, SecretSlice};

/// A shared secret with its label; `Debug` shows the label only, the bytes are wiped when the last copy is dropped.
#[derive(Clone)]
pub(crate) struct Secret {
    label: Arc<str>,
    not_after: Option<i64>,
    bytes: Arc<SecretSlice<u8>>,
}

impl Secret {
    pub(crate) fn new(label: impl Into<Arc<str>>, bytes: Vec<u8>, not_after: Option<i64>) -> Self {
        Self { label: label.into(), not_after, bytes: Arc::new(bytes.into()) }
    }

    /// The name in metrics and the audit line: the policy's label, else `#1`, `#2` by position.
    pub(crate) fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// The Unix time in milliseconds after which it no longer counts.
    pub(crate) fn not_after(&self) -> Option<i64> {
        self.not_after
    }

    /// The bytes themselves: for the scheme that keys a MAC with them, and nobody else.
    pub(crate) fn expose(&self) -> &[u8] {
        self.bytes.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({}, [redacted])", self.label)
    }
}
