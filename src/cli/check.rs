//! `hooklatch check`: everything that is wrong or weak in a policy.

use std::{io::IsTerminal, path::Path, process::ExitCode};

use clap::Args;
use serde_json::json;

use crate::{
    app,
    config::{self, Read},
    problem::{Problem, Severity},
};

#[derive(Args, Debug, Default)]
#[command(after_help = "Examples:
  hooklatch check
  hooklatch check --config policy.toml --strict     warnings fail too, for CI
  hooklatch check --json                            one object with every problem and its place

Exit codes: 0 fine, 1 the policy has errors (with --strict: or warnings), 2 it cannot be read.")]
pub(crate) struct CheckArgs {
    /// Warnings fail too
    #[arg(long)]
    strict: bool,
    /// Print the problems as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(policy: &super::PolicyArgs, args: &CheckArgs) -> ExitCode {
    let read = policy.find().and_then(|path| config::load(&path).map(|read| (path, read)));
    let (path, mut read) = match read {
        Ok(read) => read,
        Err(why) => {
            super::complain(&why);
            return ExitCode::from(super::USAGE);
        }
    };
    if let Some(config) = &read.config {
        // What the policy names is opened as the gate would, but for sockets and state.
        read.problems.extend(app::try_out(config));
    }
    let count = |severity| read.problems.iter().filter(|problem| problem.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let good = errors == 0 && !(args.strict && warnings > 0);
    if args.json {
        print_json(&path, &read, good);
    } else {
        let color = std::io::stdout().is_terminal();
        anstream::print!("{}", read.source.render(&read.problems, color));
        let routes = read.config.as_ref().map_or(0, |config| config.routes.len());
        match (errors, warnings) {
            (0, 0) => anstream::println!("{} is fine: {routes} route(s)", path.display()),
            (0, _) => anstream::println!("{} works: {routes} route(s), {warnings} warning(s)", path.display()),
            _ => anstream::println!("{} is refused: {errors} error(s), {warnings} warning(s)", path.display()),
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::from(super::BAD) }
}

fn print_json(path: &Path, read: &Read, good: bool) {
    let problems: Vec<_> = read.problems.iter().map(|problem| as_json(read, problem)).collect();
    anstream::println!("{}", json!({ "file": path.display().to_string(), "ok": good, "problems": problems }));
}

fn as_json(read: &Read, problem: &Problem) -> serde_json::Value {
    let place = problem.span.as_ref().map(|span| read.source.position(span.start));
    json!({
        "severity": match problem.severity { Severity::Error => "error", Severity::Warning => "warning" },
        "key": problem.key,
        "line": place.map(|(line, _)| line),
        "column": place.map(|(_, column)| column),
        "message": problem.message,
        "help": problem.help,
    })
}
