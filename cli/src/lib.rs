//! The `streamgauge` command: a whole system in one process, each service alone, and the tools that
//! talk to a running system.
//!
//! Only this crate composes the services. The tools know a system by its addresses alone, as any
//! client does. Commands write through [`output::Output`], never to the terminal by themselves.

pub mod audit;
pub mod broker;
mod client;
pub mod command;
pub mod dlq;
pub mod endpoints;
pub mod error;
mod files;
pub mod health;
pub mod import;
mod latency;
mod log_metrics;
pub mod output;
mod progress_bar;
pub mod query;
pub mod rebuild;
pub mod send;
pub mod serve;
mod signals;
mod submit;
mod table;
mod times;
pub mod up;
pub mod watch;

use std::process::ExitCode;

use clap::{Parser, error::ErrorKind};
use serde_json::json;

use crate::{
    command::Cli,
    error::{CliError, Exit, causes, describe},
    output::{Output, Paint},
};

/// Reads the command line, runs the command and says how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misunderstood(&error),
    };
    let mut output = Output::standard(cli.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(source) => {
            let error = CliError::System(format!("cannot start the runtime: {source}"));
            return complain(&error, &mut output).into();
        }
    };
    let code = match runtime.block_on(command::run(cli.command, &mut output)) {
        Ok(code) => code,
        Err(error) => complain(&error, &mut output).into(),
    };
    // What still runs in threads of its own, such as a read that blocks, has no say any more.
    runtime.shutdown_background();
    code
}

/// Prints an error where a person reads it.
fn complain(error: &CliError, output: &mut Output) -> Exit {
    if error.is_broken_pipe() {
        return Exit::Ok;
    }
    let exit = error.exit();
    // Nobody is left to tell when this fails as well.
    let _ = if output.json() {
        let code = exit as u8;
        let document =
            json!({"error": error.to_string(), "causes": causes(error), "exit_code": code});
        output.note(document.to_string())
    } else {
        output.labelled(Paint::Red, "error", &describe(error))
    };
    exit
}

/// A command line that is not understood, or one that asks for help. The parser speaks for itself,
/// except to a machine.
fn misunderstood(error: &clap::Error) -> ExitCode {
    let helps = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    let wants_json = std::env::args_os().any(|argument| argument == "--json");
    if helps || !wants_json {
        error.exit();
    }
    let message = error.to_string();
    let message = message.trim().trim_start_matches("error: ");
    complain(&CliError::usage(message), &mut Output::standard(true)).into()
}
