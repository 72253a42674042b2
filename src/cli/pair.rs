//! `hooklatch pair`: takes a secret that a provider hands over by handshake.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::{
    BAD, PolicyArgs, USAGE,
    admin::{AdminArgs, Client},
    complain, say,
};

/// How often the gate is asked whether it came.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  hooklatch pair asana            wait for the secret, then create the webhook at Asana
  hooklatch pair asana --add      a further webhook for the same route: the secrets so far go on verifying
  hooklatch pair notion --show    print the token that has to be pasted at Notion

The route says `verify = { provider = \"asana\", secret = \"paired\" }`. Exit code 0: the secret came and is in force; 1: it did not.")]
pub(crate) struct PairArgs {
    /// The route whose provider hands its secret over
    route: String,
    /// Keep the secrets that the route has
    #[arg(long)]
    add: bool,
    /// Print the secret once it came, read from its file: for providers that want it back
    #[arg(long)]
    show: bool,
    #[command(flatten)]
    admin: AdminArgs,
    /// For machines: JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(policy: &PolicyArgs, args: &PairArgs) -> ExitCode {
    let client = match Client::find(policy, &args.admin) {
        Ok(client) => client,
        Err(why) => {
            complain(&why);
            return ExitCode::from(USAGE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => {
            complain(&format!("no runtime: {why}"));
            return ExitCode::from(USAGE);
        }
    };
    match runtime.block_on(wait(&client, args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(BAD),
        Err(why) => {
            complain(&why);
            ExitCode::from(BAD)
        }
    }
}

/// Whether the secret came and is in force.
async fn wait(client: &Client, args: &PairArgs) -> Result<bool, String> {
    let target = format!("/api/v1/pair/{}", percent_encoding::utf8_percent_encode(&args.route, percent_encoding::NON_ALPHANUMERIC));
    let armed = client.ask(Method::POST, &format!("{target}?add={}", args.add)).await?.good()?;
    let minutes = armed["seconds_left"].as_u64().unwrap_or_default().div_ceil(60);
    if args.json {
        say(&armed.to_string());
    } else {
        say(&format!("waiting {minutes} minutes for the secret of the route {}: let the provider send its handshake now (Ctrl-C ends it)", args.route));
    }
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = tokio::signal::ctrl_c() => {
                client.ask(Method::DELETE, &target).await?.good()?;
                return Err(format!("ended: the route {} takes no secret any more", args.route));
            }
        }
        let status = client.ask(Method::GET, &target).await?.good()?;
        match status["state"].as_str().unwrap_or_default() {
            "waiting" => {}
            "paired" => return came(&status, args),
            _ => {
                if args.json {
                    say(&status.to_string());
                }
                return Err(format!("no secret came for the route {}", args.route));
            }
        }
    }
}

fn came(status: &Value, args: &PairArgs) -> Result<bool, String> {
    let file = status["file"].as_str().unwrap_or_default();
    let in_force = status["in_force"].as_bool().unwrap_or(false);
    let secret = if args.show {
        let text = std::fs::read_to_string(file).map_err(|why| format!("the secret came and is kept, and {file} cannot be read here: {why}"))?;
        // With several the last one is the one that came.
        text.lines().last().map(str::to_owned)
    } else {
        None
    };
    if args.json {
        say(&json!({ "route": args.route, "state": "paired", "in_force": in_force, "file": file, "secret": secret }).to_string());
        return Ok(in_force);
    }
    say(&format!("the secret came and is kept in {file}"));
    match &secret {
        Some(secret) => say(secret),
        None if status["give_back"].as_bool() == Some(true) => {
            say("the provider wants it back: paste it there; `hooklatch pair --show` prints it, and it stands in that file")
        }
        None => {}
    }
    if in_force {
        say(&format!("the route {} verifies by it", args.route));
    } else {
        complain("the policy could not be read anew, so the secret is not in force yet: mend the policy (`hooklatch check` says what is wrong)");
    }
    Ok(in_force)
}
