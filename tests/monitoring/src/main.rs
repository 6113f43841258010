//! `streamgauge-monitoring`: runs the proof and prints it.

use std::{
    io,
    panic::AssertUnwindSafe,
    process::ExitCode,
};

use clap::Parser;
use futures::FutureExt;
use streamgauge_monitoring::{
    failure::{Failure, Outcome},
    faults,
    options::{Options, Part},
    report::Report,
};

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(run(&options))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Says whether everything held.
async fn run(options: &Options) -> io::Result<bool> {
    let mut report = Report::new();
    let (clients, held) = futures::join!(
        part(options, Part::Clients, faults::clients::run()),
        part(options, Part::Held, faults::held::run()),
    );
    for (name, ended) in [("clients", clients), ("poison and a held consumer", held)] {
        note(&mut report, name, ended)?;
    }
    let (processes, store, monitoring) = futures::join!(
        part(options, Part::Processes, faults::processes::run()),
        part(options, Part::Store, faults::store::run()),
        part(options, Part::Monitoring, faults::monitoring::run()),
    );
    for (name, ended) in [("processes", processes), ("the store", store)] {
        note(&mut report, name, ended)?;
    }
    match monitoring {
        Some(Ok((rows, switch))) => {
            report.alerts("the monitoring itself", rows)?;
            report.step("dead man's switch", switch)?;
        }
        Some(Err(failure)) => report.step("faults, the monitoring itself", Err(failure))?,
        None => {}
    }
    report.finish()
}

/// Runs a part if it is wanted. One that panics has failed; the others go on.
async fn part<T>(options: &Options, part: Part, run: impl Future<Output = Outcome<T>>) -> Option<Outcome<T>> {
    if !options.wants(part) {
        return None;
    }
    let ended = AssertUnwindSafe(run).catch_unwind().await;
    Some(ended.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Failure::Unmet(text.unwrap_or_else(|| String::from("it panicked"))))
    }))
}

fn note(
    report: &mut Report,
    name: &str,
    ended: Option<Outcome<Vec<streamgauge_monitoring::report::AlertRow>>>,
) -> io::Result<()> {
    match ended {
        Some(Ok(rows)) => report.alerts(name, rows),
        Some(Err(failure)) => report.step(&format!("faults, {name}"), Err(failure)),
        None => Ok(()),
    }
}
