//! Hooklatch: a webhook gate. `src/README.md` is the map.

mod admin;
mod app;
#[doc(hidden)]
pub mod bench;
mod capture;
mod choose;
mod cli;
mod client;
mod clock;
mod condition;
mod config;
mod deliver;
mod disk;
mod egress;
mod event;
mod fetch;
mod filter;
#[doc(hidden)]
pub mod fuzz;
mod guard;
mod keys;
mod limit;
mod listen;
mod mask;
mod observe;
mod outcome;
mod pair;
mod pipeline;
mod policy;
mod problem;
mod ranges;
mod receive;
mod reject;
mod replay;
mod respond;
mod route;
mod secret;
mod section;
mod state;
mod validate;
mod verify;
mod watch;

/// Runs the command line and says how it went: 0 fine, 1 the thing judged is bad, 2 wrong usage or unreadable input.
pub fn main() -> std::process::ExitCode {
    cli::main()
}
