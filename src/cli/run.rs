//! `hooklatch run`: the gate.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use crate::app::{self, Failure};

#[derive(Args, Debug, Default)]
#[command(after_help = "Examples:
  hooklatch run --config policy.toml
  hooklatch run --ready-file /run/hooklatch.json    for scripts that wait until it serves

SIGHUP reloads the policy, as a change of one of its files does; SIGTERM drains and ends.")]
pub(crate) struct RunArgs {
    /// Write the bound addresses as JSON to FILE once the gate serves: {"listen": [...], "admin": ...}
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

pub(crate) fn run(policy: &super::PolicyArgs, args: &RunArgs) -> ExitCode {
    let path = match policy.find() {
        Ok(path) => path,
        Err(why) => {
            super::complain(&why);
            return ExitCode::from(super::USAGE);
        }
    };
    match app::run(&path, args.ready_file.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Policy(text)) => {
            anstream::eprint!("{text}");
            super::complain(&format!("the policy {} has errors; `hooklatch check` shows them too", path.display()));
            ExitCode::from(super::BAD)
        }
        Err(Failure::Opening(text)) => {
            anstream::eprint!("{text}");
            ExitCode::from(super::BAD)
        }
        Err(why @ Failure::Unreadable(_)) => {
            super::complain(&why.to_string());
            ExitCode::from(super::USAGE)
        }
        Err(why) => {
            super::complain(&why.to_string());
            ExitCode::from(super::BAD)
        }
    }
}
