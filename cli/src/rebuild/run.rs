//! The work of a rebuild: partition by partition the source is judged again, the batches go to the rows in the making,
//! and the running system is caught up with.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use streamgauge_analytics::{
    rebuild::{Bounds, Comparison, Generation},
    view::ChainRow,
};
use streamgauge_chain::{Outcomes, delta};
use streamgauge_consumer::core::{
    partition::{Settings, SourceRecord},
    replay::{Replay, ReplayError},
};
use streamgauge_kafka::{LogReader, Watermarks};

use super::{
    error::Failure,
    live::{Boundary, Live},
    pace::Pace,
    settings::{RebuildConfig, SystemConfig},
};
use crate::output::Output;

/// What became of a partition.
#[derive(Clone, Debug)]
pub struct Rebuilt {
    /// The partition.
    pub partition: i32,
    /// The first offset that its source still holds.
    pub source_low: i64,
    /// Offsets that were taken from delta batches, because the source has lost their events.
    pub from_deltas: i64,
    /// The source offset up to which it was rebuilt.
    pub head: i64,
    /// How the live owners judged its offsets.
    pub ledger: Outcomes,
    /// How they were judged again.
    pub rebuilt: Outcomes,
}

/// One partition on its way.
struct Line {
    partition: i32,
    source: Watermarks,
    live: Live,
    /// Where recomputing may begin, as long as it has not.
    boundary: Option<Boundary>,
    replay: Option<Replay>,
    /// The next source offset to read.
    next: i64,
    from_deltas: i64,
    outcomes: Outcomes,
}

impl Line {
    /// Source offsets that are accounted for.
    fn reached(&self) -> i64 {
        match self.replay {
            Some(_) => self.next.max(self.from_deltas),
            None => self.live.head(),
        }
    }
}

/// A rebuild under way.
pub struct Rebuild<'a> {
    pub config: &'a RebuildConfig,
    pub system: &'a SystemConfig,
    pub settings: Arc<Settings>,
    pub reader: LogReader,
    pub generation: Generation,
    pub from_truncated: bool,
    pub stop: Arc<AtomicBool>,
}

impl Rebuild<'_> {
    /// Fills the new rows up to where the running system is, and compares them with those that are served.
    ///
    /// # Errors
    /// When it cannot be done; what is served is as it was.
    pub async fn run(
        &mut self,
        partitions: i32,
        output: &mut Output,
    ) -> Result<(Vec<Rebuilt>, Comparison, Pace), Failure> {
        let mut lines = Vec::new();
        for partition in 0..partitions {
            lines.push(self.line(partition).await?);
        }
        self.check_truncation(&lines)?;
        let interval = Duration::from_millis(self.config.progress_interval_ms);
        let mut pace = Pace::new(0, self.config.events_per_second_max, interval);
        let mut round = 0;
        let rows = loop {
            let rows = self.generation.chains().await?;
            let (done, left) = left(&lines, &rows);
            pace.expect(done + left);
            round += 1;
            if left <= self.config.last_events_max || round > self.config.rounds_max {
                break self.generation.pin(partitions).await?;
            }
            self.advance(&mut lines, &rows, &mut pace, output).await?;
        };
        self.advance(&mut lines, &rows, &mut pace, output).await?;
        let positions: BTreeMap<i32, i64> = rows
            .iter()
            .map(|row| (row.partition, row.delta_position))
            .collect();
        self.generation.complete(positions).await?;
        let bounds = Bounds {
            page_rows: self.config.compare_rows_max,
            listed_max: self.config.differences_max,
        };
        let comparison = self.generation.compare(bounds).await?;
        let rebuilt = lines.iter().map(|line| {
            let row = rows.iter().find(|row| row.partition == line.partition);
            Rebuilt {
                partition: line.partition,
                source_low: line.source.low,
                from_deltas: line.from_deltas,
                head: row.map_or(0, |row| row.ledger.head()),
                ledger: row.map_or_else(Outcomes::default, |row| row.ledger.outcomes()),
                rebuilt: line.outcomes,
            }
        });
        Ok((rebuilt.collect(), comparison, pace))
    }

    async fn line(&self, partition: i32) -> Result<Line, Failure> {
        let topics = &self.system.consumer.topics;
        let source = self.reader.watermarks(&topics.events, partition).await?;
        let deltas = self.reader.watermarks(&topics.metrics, partition).await?;
        let live = Live::new(partition, deltas.low);
        let mut line = Line {
            partition,
            source,
            boundary: (source.low > 0 && !live.is_cut).then(|| Boundary::new(source.low)),
            live,
            replay: None,
            next: 0,
            from_deltas: 0,
            outcomes: Outcomes::default(),
        };
        if line.boundary.is_none() {
            let mut replay = Replay::new(Arc::clone(&self.settings), None);
            replay.start(None, source.low, source.high.max(source.low))?;
            line.next = replay.position();
            line.replay = Some(replay);
        }
        Ok(line)
    }

    /// Where neither the events nor the batches that counted them are left, something is lost for good.
    fn check_truncation(&self, lines: &[Line]) -> Result<(), Failure> {
        let gone = |line: &&Line| line.source.low > 0 && line.live.is_cut;
        let lost: Vec<(i32, i64)> = lines
            .iter()
            .filter(gone)
            .map(|line| (line.partition, line.source.low))
            .collect();
        if lost.is_empty() || self.from_truncated {
            return Ok(());
        }
        Err(Failure::Truncated(lost))
    }

    async fn advance(
        &mut self,
        lines: &mut [Line],
        rows: &[ChainRow],
        pace: &mut Pace,
        output: &mut Output,
    ) -> Result<(), Failure> {
        for row in rows {
            let Some(line) = lines
                .iter_mut()
                .find(|line| line.partition == row.partition)
            else {
                return Err(Failure::Partitions(row.partition));
            };
            if line.replay.is_none() {
                self.take_over(line, row, pace, output).await?;
            }
            if line.replay.is_some() {
                self.check_source(line, row).await?;
                self.recompute(line, row, pace, output).await?;
            }
        }
        Ok(())
    }

    /// Adds the batches as they are, until the source holds enough to judge events again.
    async fn take_over(
        &mut self,
        line: &mut Line,
        row: &ChainRow,
        pace: &mut Pace,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let topic = &self.system.consumer.topics.metrics;
        let horizon_us = self.settings.dedupe_horizon_us;
        let mut more = true;
        while more && line.replay.is_none() {
            self.check_stop()?;
            let (end, most) = (row.delta_position, self.config.slice_batches_max);
            let batches;
            (batches, more) = line.live.read(&self.reader, topic, end, most).await?;
            let mut offsets = 0;
            for batch in batches {
                self.generation.add(line.partition, &batch).await?;
                line.outcomes += delta::outcomes(&batch);
                (offsets, line.from_deltas) = (offsets + batch.to - batch.from, batch.to);
                let boundary = line.boundary.as_mut();
                if let Some(known) = boundary.and_then(|found| found.pass(&batch, horizon_us)) {
                    let replay = Replay::new(Arc::clone(&self.settings), Some(known));
                    self.begin(line, replay).await?;
                    break;
                }
            }
            pace.done(offsets.unsigned_abs(), output).await?;
        }
        let (found, expected) = (line.live.head(), row.ledger.head());
        if line.replay.is_none() && found != expected {
            return Err(Failure::OtherChain {
                partition: line.partition,
                found,
                expected,
            });
        }
        Ok(())
    }

    /// Begins to recompute behind what was taken over.
    async fn begin(&self, line: &mut Line, mut replay: Replay) -> Result<(), Failure> {
        let events = &self.system.consumer.topics.events;
        let source = self.reader.watermarks(events, line.partition).await?;
        let first = match replay.horizon_ms() {
            Some(from_ms) => {
                self.reader
                    .offset_for_time(events, line.partition, from_ms)
                    .await?
            }
            None => None,
        };
        replay.start(first, source.low, source.high)?;
        line.next = replay.position();
        line.replay = Some(replay);
        Ok(())
    }

    /// What the chain says was read must be there to be read again.
    async fn check_source(&self, line: &mut Line, row: &ChainRow) -> Result<(), Failure> {
        let head = row.ledger.head();
        if head > line.source.high {
            let events = &self.system.consumer.topics.events;
            line.source.high = self.reader.watermarks(events, line.partition).await?.high;
        }
        if head > line.source.high {
            return Err(Failure::SourceTooShort {
                partition: line.partition,
                head,
                high: line.source.high,
            });
        }
        Ok(())
    }

    async fn recompute(
        &mut self,
        line: &mut Line,
        row: &ChainRow,
        pace: &mut Pace,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let head = row.ledger.head();
        while line.next < head {
            self.check_stop()?;
            let until = head.min(line.next + i64::from(self.config.slice_records_max));
            self.look_up_log_times(line, row, until).await?;
            self.judge(line, until, until == head).await?;
            let counted = until - line.next.max(line.from_deltas);
            line.next = until;
            pace.done(counted.max(0).unsigned_abs(), output).await?;
        }
        Ok(())
    }

    /// Reads the batches that cover the source up to here, for what they say of log time alone.
    async fn look_up_log_times(
        &self,
        line: &mut Line,
        row: &ChainRow,
        until: i64,
    ) -> Result<(), Failure> {
        let topic = &self.system.consumer.topics.metrics;
        let (end, most) = (row.delta_position, self.config.slice_batches_max);
        let mut more = true;
        while more && line.live.head() < until {
            (_, more) = line.live.read(&self.reader, topic, end, most).await?;
        }
        Ok(())
    }

    async fn judge(&mut self, line: &mut Line, until: i64, is_end: bool) -> Result<(), Failure> {
        let Line {
            partition,
            live,
            replay: Some(replay),
            next,
            outcomes,
            ..
        } = line
        else {
            return Ok(());
        };
        let events = &self.system.consumer.topics.events;
        let mut judged: Result<(), ReplayError> = Ok(());
        let take = |chunk: &streamgauge_kafka::Chunk| {
            for record in chunk.iter() {
                if judged.is_err() {
                    return;
                }
                replay.log_time_was(live.log_time_us(record.offset));
                judged = replay.take(&SourceRecord {
                    offset: record.offset,
                    timestamp_ms: record.timestamp_ms,
                    key: record.key,
                    payload: record.payload,
                    headers_bytes: 0,
                    trace: None,
                });
            }
        };
        self.reader
            .read_range(events, *partition, *next, until, take)
            .await?;
        judged?;
        if is_end {
            replay.reach(until)?;
        }
        for bytes in replay.batches() {
            let batch = delta::decode(&bytes).map_err(Failure::Batch)?;
            *outcomes += delta::outcomes(&batch);
            self.generation.add(*partition, &batch).await?;
        }
        Ok(())
    }

    fn check_stop(&self) -> Result<(), Failure> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Failure::Stopped);
        }
        Ok(())
    }
}

/// Source offsets that are done, and those that are left up to the heads.
fn left(lines: &[Line], rows: &[ChainRow]) -> (u64, u64) {
    let done = lines.iter().map(|line| line.reached().max(0)).sum::<i64>();
    let all = rows.iter().map(|row| row.ledger.head()).sum::<i64>();
    (
        done.unsigned_abs(),
        all.saturating_sub(done).max(0).unsigned_abs(),
    )
}
