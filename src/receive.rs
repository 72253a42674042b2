//! Body to bytes, feeding the MAC as they arrive.
