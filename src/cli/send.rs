//! `hooklatch send`.

use std::process::ExitCode;

use clap::Args;

#[derive(Args, Debug, Default)]
pub(crate) struct SendArgs {}

pub(crate) fn run(_args: &SendArgs) -> ExitCode {
    ExitCode::from(super::USAGE)
}
