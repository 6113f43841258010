//! `streamgauge-monitoring`: runs the proof and prints it.

use std::{cell::RefCell, io, panic::AssertUnwindSafe, process::ExitCode};

use clap::Parser;
use futures::FutureExt;
use streamgauge_monitoring::{
    cost,
    failure::{Failure, Outcome},
    faults::{self, Found},
    live::{self, Live},
    options::{Options, Part},
    report::Report,
};

/// Alerts that must fire by the fault that they name, and resolve.
const ALERTS_MIN: usize = 15;

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
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
    // All parts run within this one task; each notes what it found as soon as it ends.
    let report = RefCell::new(Report::new());
    let report = &report;
    futures::try_join!(
        async {
            match part(options, Part::Live, live::run()).await {
                Some(Ok(live)) => note_live(&mut report.borrow_mut(), live),
                Some(Err(failure)) => report
                    .borrow_mut()
                    .step("a system that is well", Err(failure)),
                None => Ok(()),
            }
        },
        faults(
            report,
            options,
            Part::Clients,
            "clients",
            faults::clients::run()
        ),
        faults(
            report,
            options,
            Part::Held,
            "poison, greed and a held consumer",
            faults::held::run()
        ),
    )?;
    futures::try_join!(
        faults(
            report,
            options,
            Part::Processes,
            "processes",
            faults::processes::run()
        ),
        faults(
            report,
            options,
            Part::Store,
            "the store",
            faults::store::run()
        ),
        faults(
            report,
            options,
            Part::Monitoring,
            "the monitoring itself",
            faults::monitoring::run()
        ),
    )?;
    // Alone, or it would measure the others.
    if let Some(cost) = part(options, Part::Cost, cost::run(options)).await {
        report.borrow_mut().step("what monitoring costs", cost)?;
    }
    let mut report = report.borrow_mut();
    if options.only.is_empty() {
        report.enough_alerts(ALERTS_MIN)?;
    }
    report.finish()
}

fn note_live(report: &mut Report, live: Live) -> io::Result<()> {
    for (name, outcome) in live.steps {
        report.step(name, outcome)?;
    }
    match live.alerts {
        rows if rows.is_empty() => Ok(()),
        rows => report.alerts("the canary", rows),
    }
}

/// Runs a group of faults if it is wanted and notes what became of their alerts.
async fn faults(
    report: &RefCell<Report>,
    options: &Options,
    which: Part,
    name: &str,
    run: impl Future<Output = Outcome<Found>>,
) -> io::Result<()> {
    let ended = part(options, which, run).await;
    let mut report = report.borrow_mut();
    match ended {
        Some(Ok(found)) => {
            report.alerts(name, found.alerts)?;
            let mut steps = found.steps.into_iter();
            steps.try_for_each(|(name, outcome)| report.step(name, outcome))
        }
        Some(Err(failure)) => report.step(&format!("faults, {name}"), Err(failure)),
        None => Ok(()),
    }
}

/// Runs a part if it is wanted. One that panics has failed; the others go on.
async fn part<T>(
    options: &Options,
    part: Part,
    run: impl Future<Output = Outcome<T>>,
) -> Option<Outcome<T>> {
    if !options.wants(part) {
        return None;
    }
    let ended = AssertUnwindSafe(run).catch_unwind().await;
    Some(ended.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Failure::Unmet(
            text.unwrap_or_else(|| String::from("it panicked")),
        ))
    }))
}
