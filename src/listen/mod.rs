//! Sockets, TLS and HTTP: the way in.
