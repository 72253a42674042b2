//! The real program from outside: real sockets, real senders and receivers, a module per step.

mod cli;
mod client_address;
mod delivery;
mod docs;
mod explain;
mod filters;
mod framing;
mod http2;
mod keys;
mod lifecycle;
mod mistakes;
mod modes;
mod payloads;
mod policy;
mod programs;
mod ranges;
mod readme;
mod refusals;
mod replay;
mod sdks;
mod secrets;
mod send;
mod signing;
mod support;
mod tls;
mod vectors;
