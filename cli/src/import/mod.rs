//! `streamgauge import`: a file of events into a running system, once.

mod combined;
mod identity;
mod journal;
mod mapping;
mod pipeline;
#[cfg(test)]
mod pipeline_tests;
mod progress;
mod reconcile;
mod records;
mod report;
mod source;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;

use self::{
    identity::Identity,
    journal::{Decision, Entry, Journal, decide},
    mapping::Mapping,
    pipeline::{BatchOptions, History, Observer, Tally},
    progress::Progress,
    reconcile::{Reconciled, Snapshot},
    records::{Format, ReadOptions},
    report::Report,
    source::Source,
};
use crate::{
    client::Analytics,
    endpoints::{EndpointArgs, Endpoints},
    error::{CliError, Exit, describe},
    output::{Output, Paint},
    progress_bar,
    signals::Signals,
    submit::{Deliverer, Protocol, RetryPolicy, SubmitArgs},
    times,
};

/// Events older than this are history unless `--live` says otherwise. A day less than the
/// accepted age that services have by default.
const HISTORY_AGE: Duration = Duration::from_secs(6 * 86_400);

/// Import a file of events: access logs, NDJSON or CSV
///
/// Ids derive from the file's content and each record's position, so that a second import within
/// the dedupe horizon is all duplicates and changes no figure. Beyond it the import journal
/// refuses a file that is already in, unless --again is given, and resumes one that was cut off.
/// A file that has grown is another file: all of it would count anew. Import files that are
/// finished. What a file gains while it is imported is left out.
///
/// Ctrl-C waits for the events under way and notes where to go on; a second one does not wait.
/// Events older than 6 days are submitted as history, exempt from the accepted age.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge import --format combined access.log.gz
  zcat events.ndjson.gz | streamgauge import --format ndjson -
  streamgauge import --format csv --map user_id=customer,value=amount --constant event_type=purchase orders.csv

Exit codes: 0 all in; 1 some records were unreadable or rejected, or the file is already in;
2 wrong use, or the producer refuses (a credential, say); 3 the producer does not answer; 4 cut off
(the same command resumes).")]
pub struct ImportArgs {
    /// What the file is made of
    #[arg(long, value_enum)]
    format: Format,
    /// The file, plain or gzip; `-` is standard input
    file: PathBuf,
    /// Which names in the file are which fields of an event: user_id=customer,value=amount
    #[arg(long, value_name = "FIELD=NAME", value_delimiter = ',')]
    map: Vec<String>,
    /// Give a field the same value in each event: event_type=purchase
    #[arg(long, value_name = "FIELD=VALUE")]
    constant: Vec<String>,
    /// What stands between the values of a CSV line
    #[arg(long, value_name = "CHARACTER", default_value = ",")]
    delimiter: char,
    /// Submit every event as history, exempt from the accepted age
    #[arg(long, conflicts_with = "live")]
    historical: bool,
    /// Submit no event as history, however old
    #[arg(long)]
    live: bool,
    /// Import although the file is already in; beyond the dedupe horizon it counts twice
    #[arg(long)]
    again: bool,
    /// Events in one batch
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// The longest record
    #[arg(long, value_name = "KIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    record_max_kib: u32,
    /// Most of standard input that is kept in a temporary file
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    spool_max_mib: u64,
    /// The import journal [default: streamgauge/imports.json in the user's state folder]
    #[arg(
        long,
        value_name = "FILE",
        env = "STREAMGAUGE_ENDPOINT_IMPORT_JOURNAL",
        hide_env_values = true
    )]
    journal: Option<PathBuf>,
    /// How long the system remembers ids; its `dedupe horizon` setting
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = times::duration)]
    dedupe_horizon: Duration,
    /// Wait at most this long until the ledger covers the import
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = times::duration)]
    wait: Duration,
    #[command(flatten)]
    submit: SubmitArgs,
    #[command(flatten)]
    endpoints: EndpointArgs,
}

/// Runs the command.
///
/// # Errors
/// When the input, the journal or the producer cannot be used.
pub async fn run(args: ImportArgs, output: &mut Output) -> Result<Exit, CliError> {
    let endpoints = args.endpoints.resolve()?;
    let options = args.read_options()?;
    let mut source = Source::open(&args.file, args.spool_max_mib << 20)?;
    let identity = Identity::new(source.content_hash()?, &options);
    let journal = Journal::at(args.journal.clone().unwrap_or_else(Journal::default_path))?;

    let mut ledger = LedgerView::open(&endpoints, &args).await;
    let over_http = args.submit.protocol(Protocol::Grpc) == Protocol::Http;
    let started_us = times::now_us();
    let mut entry = Entry {
        key: identity.journal_key(),
        system: args.endpoints.system(&endpoints, over_http),
        name: source.name().to_owned(),
        started_us,
        updated_us: started_us,
        complete: false,
        progress: Progress::default(),
        ends: ledger.ends(),
    };
    let known = journal.find(&entry.key, &entry.system)?;
    if let Some(known) = &known {
        entry.system.extend(known.system.iter().cloned());
    }
    let decision = decide(known.as_ref(), started_us, args.dedupe_horizon, &entry.ends);
    if !args.prepare(&decision, &mut entry, &journal, output)? {
        return Ok(Exit::No);
    }

    let started = std::time::Instant::now();
    let name = source.name().to_owned();
    let was_in = entry.complete;
    // From here on there is something to leave in order.
    let mut signals = Signals::new()?;
    let input = (source, identity, options);
    let tally = args
        .deliver(input, &journal, &mut entry, &endpoints, &mut signals)
        .await?;
    let took = started.elapsed();
    if let (Some(message), 0) = (&tally.refusal, tally.accepted) {
        let (service, message) = ("the producer", message.clone());
        return Err(CliError::Refused { service, message });
    }
    if !tally.answered && tally.failed > 0 {
        let cause = tally.failure.unwrap_or_default();
        let address = args.submit.address(&endpoints, Protocol::Grpc);
        return Err(CliError::unreachable("the producer", address, cause));
    }
    let interrupted = || Err(String::from("interrupted"));
    let outcome = if tally.aborted {
        interrupted()
    } else {
        tokio::select! {
            () = signals.next() => interrupted(),
            outcome = ledger.difference(tally.accepted, args.wait) => outcome,
        }
    };
    entry.ends = ledger.ends();
    if was_in && tally.complete {
        // All ids were renewed, none before this.
        entry.started_us = started_us;
    }
    if !was_in || tally.complete {
        keep(&journal, &mut entry)?;
    }
    Report {
        name,
        tally,
        took,
        outcome,
    }
    .print(output)
}

/// Writes an import down, unless nothing of it is in: that is not one to resume or to refuse.
fn keep(journal: &Journal, entry: &mut Entry) -> Result<(), CliError> {
    entry.updated_us = times::now_us();
    let progress = &entry.progress;
    if progress.accepted == 0 && progress.uncertain() == 0 {
        return journal.forget(entry);
    }
    journal.save(entry)
}

impl ImportArgs {
    fn read_options(&self) -> Result<ReadOptions, CliError> {
        let delimiter = u8::try_from(self.delimiter)
            .map_err(|_| CliError::usage("--delimiter is one ASCII character"))?;
        Ok(ReadOptions {
            format: self.format,
            mapping: self.mapping()?,
            delimiter,
            record_bytes_max: (self.record_max_kib as usize) << 10,
        })
    }

    fn mapping(&self) -> Result<Mapping, CliError> {
        let mapping = Mapping::parse(&self.map, &self.constant).map_err(CliError::Usage)?;
        if self.format == Format::Combined && !mapping.is_empty() {
            let message = "--map and --constant are for ndjson and csv: combined has no names";
            return Err(CliError::usage(message));
        }
        Ok(mapping)
    }

    /// Acts on what the journal knows; false when the import is refused.
    fn prepare(
        &self,
        decision: &Decision,
        entry: &mut Entry,
        journal: &Journal,
        output: &mut Output,
    ) -> Result<bool, CliError> {
        if self.again {
            return Ok(true);
        }
        match decision {
            Decision::Fresh => {}
            Decision::Emptied => {
                output.note("This file was imported before, but the system holds less than then: importing it anew.")?;
            }
            Decision::Recent => {
                // What is in stays in, should this second import be cut off.
                entry.complete = true;
                output.note("This file was imported within the dedupe horizon: its events will be recognised as duplicates.")?;
            }
            Decision::AlreadyIn { at_us } => {
                let text = format!(
                    "{} is already in: imported {}, according to {}. Its ids may be forgotten by now, so that a second \
                     import would count twice; --again does it nevertheless.",
                    entry.name,
                    times::show(*at_us),
                    journal.path().display()
                );
                if output.json() {
                    output.document(&json!({
                        "input": entry.name,
                        "refused": "already_in",
                        "imported_at": times::show(*at_us),
                        "journal": journal.path(),
                        "message": text,
                    }))?;
                } else {
                    output.labelled(Paint::Red, "refused", &text)?;
                }
                return Ok(false);
            }
            Decision::Resume {
                progress,
                started_us,
                at_risk,
            } => {
                entry.progress = progress.clone();
                entry.started_us = *started_us;
                output.note(format!(
                    "This import was cut off: going on after {} records.",
                    progress.done
                ))?;
                if *at_risk > 0 {
                    let text = format!(
                        "up to {at_risk} events were under way when it was cut off, longer ago than the dedupe \
                         horizon; those of them that had arrived are counted twice."
                    );
                    output.labelled(Paint::Yellow, "warning", &text)?;
                }
            }
        }
        Ok(true)
    }

    async fn deliver(
        &self,
        (source, identity, options): (Source, Identity, ReadOptions),
        journal: &Journal,
        entry: &mut Entry,
        endpoints: &Endpoints,
        signals: &mut Signals,
    ) -> Result<Tally, CliError> {
        let batching = BatchOptions {
            events_max: self.batch as usize,
            bytes_max: 512 << 10,
            history: self.history(),
        };
        let policy = RetryPolicy {
            retry_for: self.submit.retry_for,
        };
        let deliverers = self.submit.submitters(endpoints, Protocol::Grpc)?;
        let deliverers = deliverers
            .into_iter()
            .map(|submitter| Deliverer::new(submitter, policy))
            .collect();
        let mut progress = entry.progress.clone();
        let input = pipeline::read_batches(source, options, batching, identity, progress.clone());
        let mut writer = JournalWriter {
            journal,
            entry,
            bar: progress_bar::counting("events"),
        };
        let signals = signals.stream();
        let batch = self.batch as usize;
        let result = pipeline::deliver(
            input,
            deliverers,
            &mut progress,
            batch,
            &mut writer,
            signals,
        )
        .await;
        writer.bar.finish_and_clear();
        entry.progress = progress;
        if !entry.complete {
            entry.complete = result.as_ref().is_ok_and(|tally| tally.complete);
            keep(journal, entry)?;
        }
        result
    }

    fn history(&self) -> History {
        match (self.historical, self.live) {
            (true, _) => History::All,
            (_, true) => History::Nothing,
            _ => History::Before(times::now_us() - HISTORY_AGE.as_micros() as i64),
        }
    }
}

/// Writes the journal ahead of the events, and moves the bar behind them.
struct JournalWriter<'a> {
    journal: &'a Journal,
    entry: &'a mut Entry,
    bar: ProgressBar,
}

impl Observer for JournalWriter<'_> {
    fn reserve(&mut self, progress: &Progress) -> Result<(), CliError> {
        if self.entry.complete {
            return Ok(());
        }
        self.entry.progress = progress.clone();
        self.entry.updated_us = times::now_us();
        self.journal.save(self.entry)
    }

    fn settled(&mut self, events: u64) {
        self.bar.inc(events);
    }
}

/// What analytics says before the import and after it.
struct OpenLedger {
    analytics: Analytics,
    before: Snapshot,
    latest: Snapshot,
}

/// The ledger beside the import; an import goes on without it.
enum LedgerView {
    Open(Box<OpenLedger>),
    Closed(String),
}

impl LedgerView {
    async fn open(endpoints: &Endpoints, args: &ImportArgs) -> Self {
        let connect = async {
            let timeout = args.submit.request_timeout;
            let mut analytics = Analytics::connect(&endpoints.analytics_grpc, timeout).await?;
            let before = reconcile::before(&mut analytics).await?;
            Ok::<_, CliError>(Self::Open(Box::new(OpenLedger {
                analytics,
                latest: before.clone(),
                before,
            })))
        };
        connect
            .await
            .unwrap_or_else(|error| Self::Closed(describe(&error)))
    }

    /// Where the log ends, as far as is known.
    fn ends(&self) -> BTreeMap<i32, i64> {
        match self {
            Self::Open(ledger) => ledger.latest.ends.clone(),
            Self::Closed(_) => BTreeMap::new(),
        }
    }

    async fn difference(&mut self, accepted: u64, wait: Duration) -> Result<Reconciled, String> {
        match self {
            Self::Open(ledger) => {
                let OpenLedger {
                    analytics,
                    before,
                    latest,
                } = &mut **ledger;
                *latest = reconcile::after(analytics, before, accepted, wait)
                    .await
                    .map_err(|error| describe(&error))?;
                Ok(reconcile::difference(before, latest, accepted))
            }
            Self::Closed(reason) => Err(reason.clone()),
        }
    }
}
