//! `streamgauge-bench`: one measurement per call, one line of JSON per measurement.

use std::{io::Write, process::ExitCode};

use clap::Parser;
use streamgauge_benches::{drain, fill, freshness, http};

/// Load and clocks for `make bench`.
#[derive(Parser)]
enum Command {
    /// Closed-loop load on the producer's HTTP listener.
    Http(http::Load),
    /// A backlog of events, written straight to the log.
    Fill(fill::Fill),
    /// How fast a consumer drains a backlog.
    Drain(drain::Drain),
    /// From submission to queryable, under a steady load.
    Freshness(freshness::Freshness),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Http(load) => http::run(&load).await.map_err(|error| error.to_string()),
        Command::Fill(fill) => fill::run(&fill).await.map_err(|error| error.to_string()),
        Command::Drain(drain) => drain::run(&drain).await,
        Command::Freshness(run) => freshness::run(&run).await,
    };
    let mut out = std::io::stdout().lock();
    match result {
        Ok(line) if writeln!(out, "{line}").is_ok() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "streamgauge-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
