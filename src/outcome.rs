//! The closed list of how a request ends well, and the answer that goes with it.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

/// How an accepted request ended; the metric's `outcome` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Ending {
    /// Delivered; the receiver's answer goes back.
    Forwarded,
    /// A copy of a done event: the stored answer goes back, nothing is forwarded.
    Duplicate,
    /// A filter dropped it; acknowledged.
    Dropped,
    /// No destination wanted it; acknowledged.
    Unmatched,
    /// A filter answered by itself.
    Responded,
    /// A provider's handshake, which the gate answered.
    Challenge,
}

impl Ending {
    pub(crate) const ALL: &'static [Ending] = &[Self::Forwarded, Self::Duplicate, Self::Dropped, Self::Unmatched, Self::Responded, Self::Challenge];

    /// The stable word.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Duplicate => "duplicate",
            Self::Dropped => "dropped",
            Self::Unmatched => "unmatched",
            Self::Responded => "responded",
            Self::Challenge => "challenge",
        }
    }
}

/// What goes back to the sender.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) ending: Ending,
    pub(crate) answer: Answer,
}
