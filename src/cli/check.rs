//! `hooklatch check`: everything that is wrong or weak in a policy.

use std::process::ExitCode;

use clap::Args;

#[derive(Args, Debug, Default)]
pub(crate) struct CheckArgs {
    /// Warnings fail too
    #[arg(long)]
    pub(crate) strict: bool,
    /// Print problems as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(_policy: &super::PolicyArgs, _args: &CheckArgs) -> ExitCode {
    ExitCode::from(super::USAGE)
}
