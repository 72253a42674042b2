//! Peer and trusted proxies to who is asking. Pure.
