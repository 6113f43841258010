//! The command line: which commands there are.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    audit, broker, dlq,
    error::{CliError, Exit},
    health, import,
    output::Output,
    query, rebuild, send, serve, up, watch,
};

/// A streaming analytics pipeline that accounts for every event
///
/// Events go in over HTTP and gRPC, are counted exactly once, and come out of queries; an audit
/// shows that none is missing. `streamgauge up` runs all of it in one process.
#[derive(Debug, Parser)]
#[command(
    name = "streamgauge",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
#[command(after_long_help = "\
Examples:
  streamgauge up
  streamgauge send-events --count 10000 --rate 1000
  streamgauge import --format combined access.log.gz
  streamgauge query top --by page_url --last 1h
  streamgauge audit
  streamgauge watch

Exit codes of every command: 0 done, or the answer is yes; 1 the answer is no (unhealthy, unbalanced,
some rejected); 2 wrong use or settings; 3 a service cannot be reached; 4 cut off, partly done.
With --json an error is one line of JSON on standard error: error, causes, exit_code.

Colour is for terminals only; NO_COLOR switches it off.")]
pub struct Cli {
    /// Print results as JSON, for machines
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    Up(Box<up::UpArgs>),
    SendEvents(Box<send::SendArgs>),
    Import(Box<import::ImportArgs>),
    Query(Box<query::QueryArgs>),
    Audit(Box<audit::AuditArgs>),
    Dlq(Box<dlq::DlqArgs>),
    Rebuild(Box<rebuild::RebuildArgs>),
    Health(health::HealthArgs),
    Watch(Box<watch::WatchArgs>),
    Config(serve::ConfigCommandArgs),
    Producer(serve::ProducerArgs),
    Consumer(serve::ConsumerArgs),
    Analytics(serve::AnalyticsArgs),
    Broker(broker::BrokerArgs),
}

/// Runs a command to its end.
///
/// # Errors
/// When it has no result; the error says which exit code that is.
pub async fn run(command: Command, output: &mut Output) -> Result<ExitCode, CliError> {
    let exit: Exit = match command {
        Command::Up(args) => Box::pin(up::run(*args, output)).await?,
        Command::SendEvents(args) => Box::pin(send::run(*args, output)).await?,
        Command::Import(args) => Box::pin(import::run(*args, output)).await?,
        Command::Query(args) => Box::pin(query::run(*args, output)).await?,
        Command::Audit(args) => Box::pin(audit::run(*args, output)).await?,
        Command::Dlq(args) => Box::pin(dlq::run(*args, output)).await?,
        Command::Rebuild(args) => Box::pin(rebuild::run(*args, output)).await?,
        Command::Health(args) => Box::pin(health::run(args, output)).await?,
        Command::Watch(args) => Box::pin(watch::run(*args, output)).await?,
        Command::Config(args) => serve::config(&args, output)?,
        Command::Broker(args) => Box::pin(broker::run(args, output)).await?,
        // The services have codes of their own.
        Command::Producer(args) => return Box::pin(serve::producer(args, output)).await,
        Command::Consumer(args) => return Box::pin(serve::consumer(args, output)).await,
        Command::Analytics(args) => return Box::pin(serve::analytics(args, output)).await,
    };
    Ok(exit.into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Every command that a user may run, by its words.
    fn leaves(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        let path = format!("{path} {}", command.get_name()).trim().to_owned();
        if !command.has_subcommands() {
            found.push((path.clone(), command.clone()));
        }
        for sub in command
            .get_subcommands()
            .filter(|sub| sub.get_name() != "help")
        {
            leaves(sub, &path, found);
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_helps_with_an_example() {
        let mut command = Cli::command();
        command.build();
        let mut found = Vec::new();
        leaves(&command, "", &mut found);
        assert!(found.len() > 5);
        for (path, mut command) in found {
            let help = command.render_long_help().to_string();
            assert!(
                help.contains("Example") && help.contains(&path),
                "{path}:\n{help}"
            );
        }
    }
}
