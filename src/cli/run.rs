//! `hooklatch run`: the gate.

use std::process::ExitCode;

use clap::Args;

#[derive(Args, Debug, Default)]
pub(crate) struct RunArgs {}

pub(crate) fn run(_policy: &super::PolicyArgs, _args: &RunArgs) -> ExitCode {
    ExitCode::from(super::USAGE)
}
