//! The commands, a file each. Exit codes: 0 fine, 1 the thing judged is bad, 2 wrong usage or unreadable input.

mod admin;
mod check;
mod pair;
mod providers;
mod run;
mod send;
mod verify;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

/// The thing judged is bad.
pub(crate) const BAD: u8 = 1;
/// Wrong usage or unreadable input.
pub(crate) const USAGE: u8 = 2;

#[derive(Parser)]
#[command(name = "hooklatch", version, about = "A webhook gate: verifies who sent each webhook, guards, filters and forwards it.", long_about = None)]
#[command(after_help = "Examples:
  hooklatch                                run the gate with config/hooklatch.toml
  hooklatch check --config policy.toml     say everything that is wrong with a policy
  hooklatch providers github               show one preset in full
  hooklatch send github --url https://localhost:8443/github --secret env:GITHUB_SECRET --body push.json
  hooklatch verify github --request captured.http --secret env:GITHUB_SECRET

Exit codes: 0 fine, 1 the thing judged is bad, 2 wrong usage or unreadable input.")]
struct Cli {
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Which policy file.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PolicyArgs {
    /// The policy file; else $HOOKLATCH_CONFIG, config/hooklatch.toml, /etc/hooklatch/hooklatch.toml
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gate (the default)
    Run(run::RunArgs),
    /// Validate everything the policy names, and print the warnings
    Check(check::CheckArgs),
    /// List the provider presets, or show one in full
    Providers(providers::ProvidersArgs),
    /// Take a secret that a provider hands over by handshake
    Pair(pair::PairArgs),
    /// Sign a payload as a provider does and send it
    Send(Box<send::SendArgs>),
    /// Judge a captured request or case files offline
    Verify(Box<verify::VerifyArgs>),
}

/// Reads the command line, runs the command.
pub(crate) fn main() -> ExitCode {
    // rustls wants one process-wide provider; a second install only says that one is there.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    match cli.command {
        None => run::run(&cli.policy, &run::RunArgs::default()),
        Some(Command::Run(args)) => run::run(&cli.policy, &args),
        Some(Command::Check(args)) => check::run(&cli.policy, &args),
        Some(Command::Providers(args)) => providers::run(&cli.policy, &args),
        Some(Command::Pair(args)) => pair::run(&cli.policy, &args),
        Some(Command::Send(args)) => send::run(&cli.policy, &args),
        Some(Command::Verify(args)) => verify::run(&cli.policy, &args),
    }
}

impl PolicyArgs {
    /// The policy file by the contract's search order; an error names every place that was tried.
    pub(crate) fn find(&self) -> Result<PathBuf, String> {
        if let Some(path) = &self.config {
            return Ok(path.clone());
        }
        if let Some(path) = std::env::var_os("HOOKLATCH_CONFIG").filter(|path| !path.is_empty()) {
            return Ok(path.into());
        }
        let places = ["config/hooklatch.toml", "/etc/hooklatch/hooklatch.toml"];
        let found = places.iter().map(Path::new).find(|path| path.exists());
        found
            .map(Path::to_owned)
            .ok_or_else(|| format!("no policy file: looked for --config, $HOOKLATCH_CONFIG, {}; write one or name it with --config FILE", places.join(", ")))
    }
}

/// Prints a line; a reader that has gone away (`| head`) is no error.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(anstream::stdout(), "{line}");
}

/// Prints an error the way every command does.
pub(crate) fn complain(message: &str) {
    anstream::eprintln!("{}error{}: {message}", anstyle::AnsiColor::Red.on_default().bold(), anstyle::Reset);
}
