//! `hooklatch check`: everything that is wrong or weak in a policy.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use serde_json::json;

use crate::{
    app,
    config::{
        self, Read,
        diff::{self, Change},
    },
    problem::{Problem, Severity},
};

#[derive(Args, Debug, Default)]
#[command(after_help = "Examples:
  hooklatch check
  hooklatch check --config policy.toml --strict     warnings fail too, for CI
  hooklatch check --json                            one object with every problem and its place
  hooklatch check --against main.toml               and what changes from that policy to this one

Exit codes: 0 fine, 1 the policy has errors (with --strict: or warnings), 2 it cannot be read.")]
pub(crate) struct CheckArgs {
    /// Warnings fail too
    #[arg(long)]
    strict: bool,
    /// Print the problems as JSON
    #[arg(long)]
    json: bool,
    /// Show what takes effect differently from this policy: for a review
    #[arg(long, value_name = "OLD")]
    against: Option<PathBuf>,
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
        let opening = app::try_out(config).into_iter().map(|problem| read.source.place(problem)).collect::<Vec<_>>();
        read.problems.extend(opening);
    }
    let changes = match args.against.as_deref().map(|old| changes(old, &path)) {
        Some(Ok(changes)) => Some(changes),
        // What is wrong with the new one is told below.
        Some(Err(_)) if read.config.is_none() => None,
        Some(Err(why)) => {
            super::complain(&why);
            return ExitCode::from(super::USAGE);
        }
        None => None,
    };
    let count = |severity| read.problems.iter().filter(|problem| problem.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let good = errors == 0 && !(args.strict && warnings > 0);
    if args.json {
        print_json(&path, &read, good, changes.as_deref());
    } else {
        let color = std::io::stdout().is_terminal();
        anstream::print!("{}", read.source.render(&read.problems, color));
        let routes = read.config.as_ref().map_or(0, |config| config.routes.len());
        match (errors, warnings) {
            (0, 0) => anstream::println!("{} is fine: {routes} route(s)", path.display()),
            (0, _) => anstream::println!("{} works: {routes} route(s), {warnings} warning(s)", path.display()),
            _ => anstream::println!("{} is refused: {errors} error(s), {warnings} warning(s)", path.display()),
        }
        if let (Some(changes), Some(old)) = (&changes, &args.against) {
            print_changes(old, changes);
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::from(super::BAD) }
}

/// What is different from the policy `old` to the policy `new`.
fn changes(old: &Path, new: &Path) -> Result<Vec<Change>, String> {
    Ok(diff::between(&diff::outline(old)?, &diff::outline(new)?))
}

fn print_changes(old: &Path, changes: &[Change]) {
    if changes.is_empty() {
        anstream::println!("\nnothing takes effect differently from {}", old.display());
        return;
    }
    anstream::println!("\nfrom {}:", old.display());
    for line in changes.iter().flat_map(Change::lines) {
        let style = match line.trim_start().as_bytes().first() {
            Some(b'+') => anstyle::AnsiColor::Green.on_default(),
            Some(b'-') => anstyle::AnsiColor::Red.on_default(),
            _ => anstyle::Style::new(),
        };
        anstream::println!("{style}{line}{style:#}");
    }
}

fn print_json(path: &Path, read: &Read, good: bool, changes: Option<&[Change]>) {
    let problems: Vec<_> = read.problems.iter().map(|problem| as_json(read, problem)).collect();
    let mut told = json!({ "file": path.display().to_string(), "ok": good, "problems": problems });
    if let Some(changes) = changes {
        told["changes"] = changes.iter().map(Change::json).collect();
    }
    anstream::println!("{told}");
}

fn as_json(read: &Read, problem: &Problem) -> serde_json::Value {
    let place = problem.span.as_ref().map(|span| read.source.position(span.start));
    json!({
        "severity": match problem.severity { Severity::Error => "error", Severity::Warning => "warning" },
        "code": problem.code,
        "key": problem.key,
        "line": place.map(|(line, _)| line),
        "column": place.map(|(_, column)| column),
        "message": problem.message,
        "help": problem.help,
    })
}
