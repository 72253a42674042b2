//! `hooklatch providers`.

use std::process::ExitCode;

use clap::Args;

#[derive(Args, Debug, Default)]
pub(crate) struct ProvidersArgs {}

pub(crate) fn run(_args: &ProvidersArgs) -> ExitCode {
    ExitCode::from(super::USAGE)
}
