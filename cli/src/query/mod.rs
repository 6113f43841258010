//! `streamgauge query`: questions to analytics, over gRPC.

mod distinct;
mod names;
mod range;
mod series;
mod top;
mod user;
mod view;

use std::time::Duration;

use clap::{Args, Subcommand};
use streamgauge_proto::v1::AnswerInfo;

use crate::{
    client::Analytics,
    endpoints::EndpointArgs,
    error::{CliError, Exit},
    output::{Output, Paint},
    table::Table,
    times,
};

/// Ask a running system what it counted
///
/// Every answer says up to when it holds, whether it is final, its unit, and the error bound of
/// an estimate.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge query series --by event_type --last 15m --step 10s
  streamgauge query top --by page_url --from 2015-05-17 --to 2015-05-21 --limit 5
  streamgauge query distinct --last 1h
  streamgauge query user u1 --page /
  streamgauge query names

Exit codes: 0 answered; 2 wrong use; 3 analytics does not answer.")]
pub struct QueryArgs {
    #[command(subcommand)]
    question: Question,
    /// Wait this long for the answer
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = times::duration)]
    timeout: Duration,
    #[command(flatten)]
    endpoints: EndpointArgs,
}

#[derive(Clone, Debug, Subcommand)]
enum Question {
    Series(series::SeriesArgs),
    Top(top::TopArgs),
    Distinct(distinct::DistinctArgs),
    User(user::UserArgs),
    Names(names::NamesArgs),
}

/// Runs the command.
///
/// # Errors
/// When the question is wrong or analytics does not answer.
pub async fn run(args: QueryArgs, output: &mut Output) -> Result<Exit, CliError> {
    let endpoints = args.endpoints.resolve()?;
    let mut analytics = Analytics::connect(&endpoints.analytics_grpc, args.timeout).await?;
    let now_us = times::now_us();
    match args.question {
        Question::Series(question) => series::run(question, now_us, &mut analytics, output).await?,
        Question::Top(question) => top::run(question, now_us, &mut analytics, output).await?,
        Question::Distinct(question) => {
            distinct::run(question, now_us, &mut analytics, output).await?;
        }
        Question::User(question) => user::run(question, &mut analytics, output).await?,
        Question::Names(question) => names::run(question, &mut analytics, output).await?,
    }
    Ok(Exit::Ok)
}

/// A table and, below it, what the answer says about itself.
fn view_table(
    table: &Table,
    info: Option<&AnswerInfo>,
    output: &mut Output,
) -> Result<(), CliError> {
    if table.is_empty() {
        output.line("nothing in this range")?;
    } else {
        let mut lines = table.lines().into_iter();
        if let Some(headings) = lines.next() {
            let headings = output.paint(Paint::Bold, &headings);
            output.line(headings)?;
        }
        for line in lines {
            output.line(line)?;
        }
    }
    let footer = output.paint(Paint::Dim, &view::footer(info));
    output.line(footer)?;
    Ok(())
}
