//! `streamgauge watch`: the flow at a glance, on a terminal and as one snapshot.
//!
//! The core is pure: `openmetrics`, `answers` and `histogram` read what was answered, `visits` keeps
//! the last two answers, `model` makes of them what is shown, `view` makes lines of that, `app` puts
//! them on a screen. IO is at the edge: `fetch` asks, `screen` has the terminal, `live` goes round.
//! It knows a system by its public endpoints alone and changes nothing of it.

mod answers;
mod app;
mod fetch;
mod histogram;
mod live;
mod model;
mod openmetrics;
pub mod screen;
mod units;
mod view;
mod visits;

use std::{
    env,
    io::{self, IsTerminal},
    time::Duration,
};

use clap::Args;
use futures::future;

use self::{
    app::App,
    fetch::Fetcher,
    model::{Model, State, Verdict},
    view::style::Palette,
    visits::Visits,
};
use crate::{
    endpoints::EndpointArgs,
    error::{CliError, Exit},
    output::{Output, Paint},
    times,
};

/// Width of a snapshot, which has no terminal to fit.
const SNAPSHOT_COLUMNS: usize = 100;

/// Show the flow at a glance, refreshed each second
///
/// Rates, lag, latency, the ledger, breakers, admission and spool, the canary and firing alerts, in
/// all and per service and partition. Keys: q quits, Tab or 1-4 switch views, arrows scroll, p
/// pauses, ? helps.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge watch
  streamgauge watch --alertmanager localhost:9093
  streamgauge watch --once
  streamgauge watch --once --json | jq '.findings[].text'

--once asks twice, an interval apart, since rates are differences.

Exit codes: 0 ended by the user, or with --once nothing is broken; 1 something is broken, as when a
service does not answer; 2 wrong use.")]
pub struct WatchArgs {
    /// Print one snapshot as plain text and end
    #[arg(long)]
    once: bool,
    /// Refresh this often, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    interval_ms: u64,
    /// Wait this long for each answer
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = times::duration)]
    timeout: Duration,
    /// Alertmanager's address, for firing alerts [default: what analytics tells of them]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "STREAMGAUGE_ENDPOINT_ALERTMANAGER"
    )]
    alertmanager: Option<String>,
    /// Where the producer's metrics are, if its http.metrics.listen is set
    #[arg(
        long,
        value_name = "[USER:PASSWORD@]HOST:PORT",
        env = "STREAMGAUGE_ENDPOINT_PRODUCER_METRICS",
        hide_env_values = true
    )]
    producer_metrics: Option<String>,
    /// Where the consumer's metrics are, if its http.metrics.listen is set
    #[arg(
        long,
        value_name = "[USER:PASSWORD@]HOST:PORT",
        env = "STREAMGAUGE_ENDPOINT_CONSUMER_METRICS",
        hide_env_values = true
    )]
    consumer_metrics: Option<String>,
    /// Where the metrics of analytics are, if its http.metrics.listen is set
    #[arg(
        long,
        value_name = "[USER:PASSWORD@]HOST:PORT",
        env = "STREAMGAUGE_ENDPOINT_ANALYTICS_METRICS",
        hide_env_values = true
    )]
    analytics_metrics: Option<String>,
    /// No colour; NO_COLOR in the environment says the same
    #[arg(long)]
    no_color: bool,
    #[command(flatten)]
    endpoints: EndpointArgs,
}

/// Runs the command.
///
/// # Errors
/// When the endpoints cannot be read, or there is no terminal to draw on.
pub async fn run(args: WatchArgs, output: &mut Output) -> Result<Exit, CliError> {
    let endpoints = args.endpoints.resolve()?;
    let alertmanager = args.alertmanager.as_deref();
    let alertmanager = alertmanager.map(|text| address("of Alertmanager", text));
    let alertmanager = alertmanager.transpose()?;
    let addresses = [
        endpoints.producer_http,
        endpoints.consumer_http,
        endpoints.analytics_http,
    ];
    let visits = Visits::new(addresses, alertmanager);
    let every = Duration::from_millis(args.interval_ms);
    let given = [
        args.producer_metrics,
        args.consumer_metrics,
        args.analytics_metrics,
    ];
    let mut metrics_at = endpoints.metrics;
    for (at, given) in metrics_at.iter_mut().zip(given) {
        if let Some(given) = given {
            *at = Some(address("of metrics", &given)?);
        }
    }
    let fetcher = Fetcher::new(args.timeout)?.metrics_at(metrics_at);
    if args.once {
        return once(&fetcher, visits, every, output).await;
    }
    if output.json() {
        return Err(CliError::usage("--json prints a snapshot: add --once"));
    }
    let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
    if is_dumb || !io::stdout().is_terminal() {
        return Err(CliError::usage(
            "standard output is no terminal to draw on: --once prints a snapshot",
        ));
    }
    let palette = Palette {
        colour: output.colour() && !args.no_color,
    };
    // 1.0 s is one digit too many for a setting.
    let often = units::seconds(every.as_secs_f64()).replace(".0 ", " ");
    let app = App::new(palette, often);
    Box::pin(live::run(fetcher, visits, every, app)).await
}

/// An address as people write it, with the path under which it is, if any.
fn address(of: &str, text: &str) -> Result<String, CliError> {
    let text = text.trim();
    let plain = text.strip_prefix("http://").unwrap_or(text);
    let plain = plain.trim_end_matches('/');
    if plain.is_empty() || plain.contains("://") {
        return Err(CliError::usage(format!(
            "`{text}` is no address {of}: write HOST:PORT or http://HOST:PORT/PATH"
        )));
    }
    Ok(plain.to_owned())
}

/// Asks, waits, asks again and prints.
async fn once(
    fetcher: &Fetcher,
    mut visits: Visits,
    every: Duration,
    output: &mut Output,
) -> Result<Exit, CliError> {
    ask_all(fetcher, &mut visits).await;
    let anybody = |visits: &Visits| visits.services.iter().any(|one| one.scrape().is_some());
    if anybody(&visits) {
        tokio::time::sleep(every).await;
        ask_all(fetcher, &mut visits).await;
    }
    let model = Model::of(&visits, times::now_us());
    if output.json() {
        output.document(&model)?;
    } else {
        for line in view::snapshot(&model, SNAPSHOT_COLUMNS) {
            output.line(line)?;
        }
        if model.services.iter().all(|row| row.state == State::Away) {
            let text = "no service answers: is the system running, and are these its addresses?";
            output.labelled(Paint::Red, "error", text)?;
        }
    }
    Ok(match model.verdict {
        Verdict::Broken => Exit::No,
        Verdict::Asking | Verdict::Healthy | Verdict::Look => Exit::Ok,
    })
}

async fn ask_all(fetcher: &Fetcher, visits: &mut Visits) {
    let services = visits.services.iter();
    let services = services.map(|one| fetcher.visit(one.service, &one.address));
    let alerts = fetcher.alerts(&visits.teller);
    let (answers, alerts) = future::join(future::join_all(services), alerts).await;
    for (watched, visit) in visits.services.iter_mut().zip(answers) {
        watched.take(visit);
    }
    visits.alerts = alerts;
}

/// Answers of real services after 2,000 events, shortened to what tests read.
#[cfg(test)]
const PRODUCER: &str = include_str!("testdata/producer.txt");
#[cfg(test)]
const CONSUMER: &str = include_str!("testdata/consumer.txt");
#[cfg(test)]
const ANALYTICS: &str = include_str!("testdata/analytics.txt");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alertmanager_is_written_in_many_ways() {
        for (text, expected) in [
            ("localhost:9093", "localhost:9093"),
            (" http://h:9093/ ", "h:9093"),
            ("http://h/alertmanager/", "h/alertmanager"),
        ] {
            assert_eq!(
                address("of Alertmanager", text).expect("an address"),
                expected
            );
        }
        for text in ["", "https://h:9093", "http://"] {
            let error = address("of Alertmanager", text).expect_err("no address");
            assert_eq!(error.exit(), Exit::Usage, "{text}");
        }
    }

    #[tokio::test]
    async fn without_a_terminal_it_says_what_to_do() {
        let (mut output, ..) = Output::captured(true);
        let args = WatchArgs {
            once: false,
            interval_ms: 1000,
            timeout: Duration::from_secs(1),
            alertmanager: None,
            producer_metrics: None,
            consumer_metrics: None,
            analytics_metrics: None,
            no_color: false,
            endpoints: EndpointArgs::default(),
        };
        let error = run(args, &mut output).await.expect_err("no terminal");
        assert!(error.to_string().contains("--once"), "{error}");
    }
}
