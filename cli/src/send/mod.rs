//! `streamgauge send-events`: made-up traffic at a steady rate, and what became of it.

mod run;
mod summary;
mod synthetic;

use std::time::Duration;

use clap::Args;

use self::{run::Plan, synthetic::Synthetic};
use crate::{
    endpoints::EndpointArgs,
    error::{CliError, Exit},
    output::Output,
    signals::Signals,
    submit::{Deliverer, Protocol, RetryPolicy, SubmitArgs},
    times,
};

/// Send made-up events to a running system
///
/// Page views, clicks and purchases of popular and less popular users and pages. Each event is
/// submitted, with the same id, until it is acknowledged or its time is over; the summary says how
/// each ended and how long requests took.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge send-events --count 10000 --rate 1000
  streamgauge send-events --count 1000000 --grpc --connections 16 --json
  streamgauge send-events --count 50000 --span 30d --historical

A request's latency is counted from when it was due, so that waiting for a free connection is in it.

Exit codes: 0 all accepted; 1 some were rejected; 2 wrong use, or the producer refuses (a credential,
say); 3 the producer does not answer; 4 cut off, or some found no acknowledgement in time.")]
pub struct SendArgs {
    /// How many events
    #[arg(long, value_name = "N", default_value_t = 1000)]
    count: u64,
    /// Events per second; 0 is as fast as it goes
    #[arg(long, value_name = "N", default_value_t = 0)]
    rate: u32,
    /// Events in one request
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// How many users there are
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    users: u32,
    /// How many pages there are
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pages: u32,
    /// Make the same events, with the same ids, as the last time with this seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Spread the events' times evenly over this long before now
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = times::duration)]
    span: Duration,
    /// Submit them as history, exempt from the accepted age
    #[arg(long)]
    historical: bool,
    #[command(flatten)]
    submit: SubmitArgs,
    #[command(flatten)]
    endpoints: EndpointArgs,
}

/// Runs the command.
///
/// # Errors
/// When the producer never answers, or the output cannot be written.
pub async fn run(args: SendArgs, output: &mut Output) -> Result<Exit, CliError> {
    let endpoints = args.endpoints.resolve()?;
    let policy = RetryPolicy {
        retry_for: args.submit.retry_for,
    };
    let deliverers = args
        .submit
        .submitters(&endpoints, Protocol::Http)?
        .into_iter()
        .map(|submitter| Deliverer::new(submitter, policy))
        .collect();
    let span_us = i64::try_from(args.span.as_micros()).unwrap_or(i64::MAX);
    let seed = args.seed.unwrap_or_else(rand::random);
    let plan = Plan {
        events: Synthetic::new(seed, args.users, args.pages, span_us),
        count: args.count,
        rate: args.rate,
        batch: args.batch,
        historical: args.historical,
    };
    let mut signals = Signals::new()?;
    let summary = run::run(plan, deliverers, signals.stream()).await;
    if let (Some(reason), 0) = (summary.refusal(), summary.accepted) {
        return Err(CliError::Refused {
            service: "the producer",
            message: format!("{} ({})", reason.message, reason.code),
        });
    }
    if !summary.answered && summary.failed > 0 {
        let address = args.submit.address(&endpoints, Protocol::Http);
        let cause = summary.first_failure().unwrap_or_default();
        return Err(CliError::unreachable("the producer", address, cause));
    }
    summary.print(output)?;
    Ok(summary.exit())
}
