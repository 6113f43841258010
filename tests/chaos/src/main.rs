//! `streamgauge-chaos`: runs faults one after the other and prints the table.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use streamgauge_chaos::{
    failure::Failure,
    faults::{self, FAULTS},
    options::Options,
    report::{Report, Verdict},
    stack::Stack,
};

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(run(options)),
        Err(source) => Err(Failure::io("the runtime")(source)),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(2)
        }
    }
}

/// Says whether the runs came out as they must.
async fn run(options: Options) -> Result<bool, Failure> {
    if options.list {
        return list().map(|()| true).map_err(Failure::io("the output"));
    }
    let chosen = faults::chosen(&options)?;
    let stack = Stack::from_environment()?;
    let size = options.size();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut report = Report {
        began: format!("{:.0}", jiff::Timestamp::now()),
        command: format!("scripts/chaos {}", arguments.join(" ")),
        seed: options.seed,
        rows: Vec::new(),
    };
    eprintln!(
        "{} faults, {} events each at {} a second, seed {}",
        chosen.len(),
        size.events,
        size.rate,
        options.seed
    );
    for entry in chosen {
        eprintln!("{:>2} {}: {}", entry.number, entry.name, entry.what);
        let row = faults::run(entry, &options, &stack).await;
        let word = match row.verdict {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
            Verdict::NotRun => "not run",
        };
        eprintln!("   {word} after {:.0} s", row.seconds);
        report.rows.push(row);
        // Written each time: what is cut short has its report as well.
        report.write(&options.output)?;
    }
    print(&report).map_err(Failure::io("the output"))?;
    Ok(if options.expect_damage {
        report.all_damaged()
    } else {
        report.passed()
    })
}

fn list() -> io::Result<()> {
    let mut output = io::stdout().lock();
    for entry in &FAULTS {
        let usual = if entry.usual { "*" } else { " " };
        let (number, name, what) = (entry.number, entry.name, entry.what);
        writeln!(output, "{number:>2}{usual} {name:<14} {what}")?;
    }
    writeln!(output, "\n*: run without --full")
}

fn print(report: &Report) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{}", report.table())?;
    write!(output, "{}", report.remarks())
}
