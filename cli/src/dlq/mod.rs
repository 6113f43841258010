//! `streamgauge dlq`: dead letters as their user sees them, through the desk of a running consumer, over gRPC.

mod client;
mod list;
mod run;
mod select;
mod show;

use std::time::Duration;

use clap::{Args, Subcommand};

use self::client::Desk;
use crate::{
    endpoints::EndpointArgs,
    error::{CliError, Exit},
    output::Output,
    times,
};

/// Look at dead letters, replay them, lay them aside
///
/// A dead letter is a record that could not be counted. It is named by where it came from: the
/// source topic, its partition and its offset.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge dlq list --reason late --from now-1h
  streamgauge dlq show 0/1234
  streamgauge dlq replay --reason missing_field --rename properties.kind=event_type --dry-run
  streamgauge dlq replay --reason late --set historical=true --rate 100
  streamgauge dlq drop --reason undecodable --to 2024-05-01

Exit codes: 0 done; 1 some were refused or failed; 2 wrong use, no such dead letter, or another replay
is under way; 3 the consumer or the log does not answer; 4 ended before its end.")]
pub struct DlqArgs {
    #[command(subcommand)]
    command: Command,
    /// Wait this long for an answer, or for a replay to begin
    #[arg(long, global = true, value_name = "DURATION", default_value = "60s", value_parser = times::duration)]
    timeout: Duration,
    #[command(flatten)]
    endpoints: EndpointArgs,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    List(list::ListArgs),
    Show(show::ShowArgs),
    Replay(run::ReplayArgs),
    Drop(run::DropArgs),
}

/// Runs the command.
///
/// # Errors
/// When the question is wrong, or the consumer or its log does not answer.
pub async fn run(args: DlqArgs, output: &mut Output) -> Result<Exit, CliError> {
    let endpoints = args.endpoints.resolve()?;
    let now_us = times::now_us();
    let connect = Desk::connect(&endpoints.consumer_grpc, args.timeout);
    match args.command {
        Command::List(list) => {
            let filter = list.filter.filter(now_us)?;
            list::run(&list, filter, &mut connect.await?, output).await
        }
        Command::Show(show) => {
            let filter = show.filter.filter(now_us)?;
            show::run(&show, filter, &mut connect.await?, output).await
        }
        Command::Replay(replay) => {
            let request = replay.request(now_us)?;
            run::replay(request, &mut connect.await?, output).await
        }
        Command::Drop(drop) => {
            let request = drop.request(now_us)?;
            run::drop(request, &mut connect.await?, output).await
        }
    }
}
