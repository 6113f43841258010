//! The desk: where people look at dead letters, send them through again, and lay them aside.
//!
//! gRPC and HTTP are two doors to this one implementation. It keeps no state: what is there, and what became of it, is
//! read from the dead-letter topic each time, which [`DeskConfig::scan_records_max`] bounds. Its clients of the log are
//! its own, so that nobody waits for it, and are made when they are first needed.

mod config;
mod edit;
mod error;
mod filter;
mod grpc;
pub(crate) mod http;
mod index;
mod letter;
mod mark;
mod run;
mod scan;
#[cfg(test)]
mod test_records;
mod view;

use std::sync::Arc;

use streamgauge_kafka::{LogReader, Publisher};
use streamgauge_lifecycle::{SharedClock, Shutdown};
use streamgauge_proto::{ErrorCode, Problem, v1};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit, mpsc};

pub use self::{config::DeskConfig, error::DeskError, view::json};
use self::{
    edit::Edit,
    filter::Filter,
    index::{Place, Selected},
    letter::LetterId,
    mark::State,
    run::{Action, Run},
    scan::Scanner,
};
use crate::{config::Config, metrics::ConsumerMetrics};

/// Messages about a run that wait for a slow client; then the run waits.
const PROGRESS_MAX: usize = 16;

/// The desk; clones are the same.
#[derive(Clone)]
pub struct Desk {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Arc<DeskConfig>,
    config: Config,
    instance: String,
    metrics: ConsumerMetrics,
    clock: SharedClock,
    stop: Shutdown,
    clients: OnceCell<(Scanner, Publisher)>,
    looks: Semaphore,
    runs: Arc<Semaphore>,
}

/// What a call that changes something is about.
struct Wanted {
    selected: Vec<Selected>,
    progress: v1::DeadLetterProgress,
}

impl Desk {
    /// A desk over the dead-letter topic of these settings.
    pub fn new(
        config: &Config,
        instance: String,
        metrics: ConsumerMetrics,
        clock: SharedClock,
        stop: Shutdown,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                settings: Arc::new(config.desk.clone()),
                config: config.clone(),
                instance,
                metrics,
                clock,
                stop,
                clients: OnceCell::new(),
                looks: Semaphore::new(config.desk.looks_max),
                runs: Arc::new(Semaphore::new(1)),
            }),
        }
    }

    /// A page of what the filter finds.
    ///
    /// # Errors
    /// A filter or a page that cannot be read, too much to read, or a log that does not answer.
    pub async fn list(
        &self,
        request: &v1::ListDeadLettersRequest,
    ) -> Result<v1::ListDeadLettersResponse, DeskError> {
        let filter = Filter::read(&request.filter.clone().unwrap_or_default())?;
        let after = page(&request.page)?;
        let settings = &self.inner.settings;
        let most = match request.full {
            true => settings.full_page_letters_max,
            false => settings.page_letters_max,
        };
        let limit = match request.limit as usize {
            0 => most.min(100),
            limit => limit.min(most),
        };
        let _look = self.look()?;
        let (scanner, _) = self.clients().await?;
        let mut found = scanner.find(filter).await?;
        let matched = found.selected.len() as u64;
        let start = found
            .selected
            .partition_point(|one| after.is_some_and(|after| one.order() <= after));
        let end = found.selected.len().min(start + limit);
        let more = end < found.selected.len();
        let on_page: Vec<Selected> = found.selected.drain(start..end).collect();
        let next_page = on_page.last().filter(|_| more).map(next_page);
        let stored = scanner.stored(&on_page).await?;
        let body = request.full.then_some(settings.body_kib_max * 1024);
        let letters = on_page
            .iter()
            .zip(stored)
            .filter_map(|(one, stored)| Some(view::letter(one, &stored?, body)));
        Ok(v1::ListDeadLettersResponse {
            letters: letters.collect(),
            next_page: next_page.unwrap_or_default(),
            matched,
            states: Some(found.counts),
            scanned: found.scanned,
            foreign: found.foreign,
        })
    }

    /// All of one dead letter.
    ///
    /// # Errors
    /// When there is no such dead letter, too much to read, or the log does not answer.
    pub async fn show(
        &self,
        request: v1::ShowDeadLetterRequest,
    ) -> Result<v1::DeadLetter, DeskError> {
        let filter = Filter::read(&request.filter.unwrap_or_default())?;
        let id = request.id.ok_or_else(|| {
            Problem::new(ErrorCode::MissingField, "name the dead letter").field("id")
        })?;
        let id = self.id(id);
        let _look = self.look()?;
        let (scanner, _) = self.clients().await?;
        let found = scanner.find(filter.only([id.clone()])).await?;
        let stored = scanner.stored(&found.selected).await?.into_iter().next();
        match (found.selected.first(), stored.flatten()) {
            (Some(one), Some(stored)) => {
                let body = self.inner.settings.body_kib_max * 1024;
                Ok(view::letter(one, &stored, Some(body)))
            }
            _ => Err(missing(&id).into()),
        }
    }

    /// Starts a replay; what comes out says how it goes on. It ends with whoever listens.
    ///
    /// # Errors
    /// A selection or an edit that cannot be read, another run under way, or a log that does not answer.
    pub async fn replay(
        &self,
        request: v1::ReplayDeadLettersRequest,
    ) -> Result<mpsc::Receiver<v1::DeadLetterProgress>, DeskError> {
        let edits = request.set.len() + request.rename.len();
        if edits > self.inner.settings.edits_max {
            let most = self.inner.settings.edits_max;
            let message = format!("there are {edits} edits, and at most {most} are made");
            return Err(Problem::new(ErrorCode::InvalidValue, message)
                .field("set")
                .into());
        }
        let edit = Edit::read(&request)
            .map_err(|error| Problem::new(ErrorCode::InvalidValue, error.to_string()))?;
        let passed_over = |state| state != State::Open;
        let known_us = known_us(self.inner.config.dedupe.horizon_ms);
        let action = Action::Replay {
            edit,
            known_us: (!request.count_twice).then_some(known_us),
        };
        let wanted = Asked {
            selection: request.selection.unwrap_or_default(),
            again: request.again,
            limit: request.limit,
            dry_run: request.dry_run,
            per_second: request.per_second,
        };
        self.start(wanted, action, passed_over).await
    }

    /// Starts a drop; as [`Desk::replay`].
    ///
    /// # Errors
    /// As [`Desk::replay`].
    pub async fn drop_letters(
        &self,
        request: v1::DropDeadLettersRequest,
    ) -> Result<mpsc::Receiver<v1::DeadLetterProgress>, DeskError> {
        let passed_over = |state| matches!(state, State::Replayed | State::Dropped);
        let wanted = Asked {
            selection: request.selection.unwrap_or_default(),
            again: request.again,
            limit: request.limit,
            dry_run: request.dry_run,
            per_second: 0,
        };
        self.start(wanted, Action::Drop, passed_over).await
    }

    /// Completes when no run is under way and none can begin any more.
    pub async fn closed(&self) {
        self.inner.stop.triggered().await;
        // The semaphore is never closed before this.
        let last = self.inner.runs.acquire().await;
        self.inner.runs.close();
        drop(last);
    }

    async fn start(
        &self,
        asked: Asked,
        action: Action,
        passed_over: fn(State) -> bool,
    ) -> Result<mpsc::Receiver<v1::DeadLetterProgress>, DeskError> {
        let inner = &self.inner;
        let filter = self.selection(&asked.selection)?;
        let permit = Arc::clone(&inner.runs).try_acquire_owned();
        let permit = permit.map_err(|_| match inner.stop.is_triggered() {
            true => Problem::new(ErrorCode::NotReady, "the consumer shuts down"),
            false => Problem::new(
                ErrorCode::Busy,
                "another replay or drop is under way on this consumer: try again when it has ended",
            ),
        })?;
        let (scanner, publisher) = self.clients().await?;
        let wanted = self.wanted(scanner, filter, &asked, passed_over).await?;
        let run = Run {
            action,
            dry_run: asked.dry_run,
            selected: wanted.selected,
            per_second: match asked.per_second {
                0 => inner.settings.per_second_max,
                rate => rate.min(inner.settings.per_second_max),
            },
            scanner: scanner.clone(),
            publisher: publisher.clone(),
            source: inner.config.topics.events.clone(),
            instance: inner.instance.clone(),
            config: Arc::clone(&inner.settings),
            metrics: inner.metrics.clone(),
            clock: Arc::clone(&inner.clock),
            stop: inner.stop.clone(),
            permit,
        };
        let (told, progress) = mpsc::channel(PROGRESS_MAX);
        // A task of its own: a client that goes away must not cut a step in two.
        tokio::spawn(run.run(wanted.progress, told));
        Ok(progress)
    }

    async fn wanted(
        &self,
        scanner: &Scanner,
        filter: Filter,
        asked: &Asked,
        passed_over: fn(State) -> bool,
    ) -> Result<Wanted, DeskError> {
        let ids = filter.ids().clone();
        let found = scanner.find(filter).await?;
        if let Some(id) = ids
            .iter()
            .find(|id| !found.selected.iter().any(|one| one.id == **id))
        {
            return Err(missing(id).into());
        }
        let before = found.selected.len();
        let mut selected = found.selected;
        selected.retain(|one| asked.again || !passed_over(one.standing.state));
        let skipped = before - selected.len();
        let most = self.inner.settings.run_letters_max;
        let limit = match asked.limit as usize {
            0 => most,
            limit => limit.min(most),
        };
        let beyond_limit = selected.len().saturating_sub(limit);
        selected.truncate(limit);
        let progress = v1::DeadLetterProgress {
            selected: selected.len() as u64,
            skipped: skipped as u64,
            beyond_limit: beyond_limit as u64,
            dry_run: asked.dry_run,
            ..v1::DeadLetterProgress::default()
        };
        Ok(Wanted { selected, progress })
    }

    fn selection(&self, selection: &v1::DeadLetterSelection) -> Result<Filter, Problem> {
        let filter = selection.filter.clone().unwrap_or_default();
        let nothing = selection.ids.is_empty() && filter == v1::DeadLetterFilter::default();
        if nothing && !selection.all {
            let message = "say which dead letters: ids, a filter, or all of them";
            return Err(Problem::new(ErrorCode::MissingField, message).field("selection"));
        }
        let most = self.inner.settings.ids_max;
        if selection.ids.len() > most {
            let message = format!("name at most {most} dead letters at once");
            return Err(Problem::new(ErrorCode::InvalidValue, message).field("selection.ids"));
        }
        let ids = selection.ids.iter().cloned().map(|id| self.id(id));
        Ok(Filter::read(&filter)?.only(ids))
    }

    fn id(&self, id: v1::DeadLetterId) -> LetterId {
        let topic = match id.topic.as_str() {
            "" => self.inner.config.topics.events.as_str(),
            topic => topic,
        };
        LetterId {
            topic: topic.into(),
            partition: id.partition,
            offset: id.offset,
        }
    }

    fn look(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.inner.looks.try_acquire().map_err(|_| {
            let message = "too many are looking at dead letters already";
            Problem::new(ErrorCode::Overloaded, message)
        })
    }

    async fn clients(&self) -> Result<&(Scanner, Publisher), DeskError> {
        let clients = self.inner.clients.get_or_try_init(async || {
            let Config {
                kafka,
                topics,
                reader,
                dead_letters,
                ..
            } = &self.inner.config;
            let scanner = Scanner {
                reader: LogReader::new(kafka, reader, None)?,
                topic: topics.dead_letters.clone(),
                partitions: topics.partitions,
                records_max: self.inner.settings.scan_records_max,
            };
            Ok::<_, DeskError>((scanner, Publisher::new(kafka, dead_letters, None)?))
        });
        clients.await
    }
}

/// A request to change something.
struct Asked {
    selection: v1::DeadLetterSelection,
    again: bool,
    limit: u32,
    dry_run: bool,
    per_second: u32,
}

/// How long after a record was written dedupe surely knows the next one by it. A quarter of the horizon is kept for clocks
/// that differ, since the horizon is one of log time, and for the way to the log.
fn known_us(horizon_ms: u64) -> i64 {
    let known_us = (horizon_ms - horizon_ms / 4).saturating_mul(1_000);
    i64::try_from(known_us).unwrap_or(i64::MAX)
}

fn missing(id: &LetterId) -> Problem {
    let message = format!("there is no dead letter of {id}, or none that the filter finds");
    Problem::new(ErrorCode::NotFound, message)
}

fn next_page(last: &Selected) -> String {
    let (time_us, place) = last.order();
    format!("{time_us}:{}:{}", place.partition, place.offset)
}

/// Where the page before ended.
fn page(text: &str) -> Result<Option<(i64, Place)>, Problem> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut parts = text.split(':').map(|part| part.parse::<i64>().ok());
    let mut next = || parts.next().flatten();
    let read = (next(), next().and_then(|part| part.try_into().ok()), next());
    match read {
        (Some(time_us), Some(partition), Some(offset)) => {
            Ok(Some((time_us, Place { partition, offset })))
        }
        _ => {
            let message = "a page is named by next_page of the answer before";
            Err(Problem::new(ErrorCode::InvalidValue, message).field("page"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_begins_where_the_one_before_ended() {
        assert_eq!(page(""), Ok(None));
        let place = Place {
            partition: 3,
            offset: 9,
        };
        assert_eq!(page("-5:3:9"), Ok(Some((-5, place))));
        for text in ["1", "a:1:2", "1:99999999999:2", "::"] {
            assert_eq!(
                page(text).unwrap_err().field.as_deref(),
                Some("page"),
                "{text}"
            );
        }
    }
}
