//! The real program from outside: real sockets, real senders and receivers, a module per step.
#![allow(dead_code)]

mod payloads;
mod replay;
mod support;
