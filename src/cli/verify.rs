//! `hooklatch verify`.

use std::process::ExitCode;

use clap::Args;

#[derive(Args, Debug, Default)]
pub(crate) struct VerifyArgs {}

pub(crate) fn run(_policy: &super::PolicyArgs, _args: &VerifyArgs) -> ExitCode {
    ExitCode::from(super::USAGE)
}
