//! Reads the dead-letter topic: once over for what is there, and single records again by their places.

use std::collections::{BTreeMap, HashMap, HashSet};

use streamgauge_kafka::{KafkaError, LogReader};
use streamgauge_proto::{ErrorCode, Problem};

use super::{
    error::DeskError,
    filter::Filter,
    index::{Found, Index, Place, Selected},
    letter::Stored,
};

/// Places further apart than this are read one by one.
const GAP_RECORDS_MAX: i64 = 500;

/// Reads; clones share the client, and take turns.
#[derive(Clone)]
pub struct Scanner {
    /// The client.
    pub reader: LogReader,
    /// The dead-letter topic.
    pub topic: String,
    /// Its partitions.
    pub partitions: i32,
    /// Most records that one reading takes in.
    pub records_max: u64,
}

impl Scanner {
    /// Reads all that may be asked for. What was refused since a time was written since then, and so were the marks
    /// about it: nothing before it has to be read.
    ///
    /// # Errors
    /// When there is too much to read, or the log does not answer.
    pub async fn find(&self, filter: Filter) -> Result<Found, DeskError> {
        let mut ranges = Vec::new();
        let mut records = 0;
        for partition in 0..self.partitions {
            let ends = self.reader.watermarks(&self.topic, partition).await?;
            let from = match filter.not_before_us() {
                None => ends.low,
                Some(from_us) => {
                    let from_ms = from_us.div_euclid(1_000);
                    let found = self.reader.offset_for_time(&self.topic, partition, from_ms);
                    found.await?.unwrap_or(ends.high).max(ends.low)
                }
            };
            records += (ends.high - from).max(0).cast_unsigned();
            ranges.push((partition, from, ends.high));
        }
        if records > self.records_max {
            return Err(too_much(records, self.records_max).into());
        }
        let mut index = Index::new(filter);
        for (partition, from, to) in ranges {
            let take = |chunk: &streamgauge_kafka::Chunk| {
                chunk
                    .iter()
                    .for_each(|record| index.take(partition, &record));
            };
            self.reader
                .read_range(&self.topic, partition, from, to, take)
                .await?;
        }
        Ok(index.finish())
    }

    /// Reads the records of dead letters; `None` for one that retention has taken meanwhile.
    ///
    /// # Errors
    /// When the log does not answer.
    pub async fn stored(&self, selected: &[Selected]) -> Result<Vec<Option<Stored>>, KafkaError> {
        let mut places: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for one in selected {
            places
                .entry(one.place.partition)
                .or_default()
                .push(one.place.offset);
        }
        let wanted: HashSet<Place> = selected.iter().map(|one| one.place).collect();
        let mut found = HashMap::new();
        for (partition, offsets) in places {
            let low = self.reader.watermarks(&self.topic, partition).await?.low;
            let offsets: Vec<i64> = offsets
                .into_iter()
                .filter(|offset| *offset >= low)
                .collect();
            for (from, to) in runs(offsets) {
                let take = |chunk: &streamgauge_kafka::Chunk| {
                    for record in chunk.iter() {
                        let place = Place {
                            partition,
                            offset: record.offset,
                        };
                        if wanted.contains(&place)
                            && let Some(stored) = Stored::of(&record)
                        {
                            found.insert(place, stored);
                        }
                    }
                };
                self.reader
                    .read_range(&self.topic, partition, from, to, take)
                    .await?;
            }
        }
        let take = |one: &Selected| found.remove(&one.place);
        Ok(selected.iter().map(take).collect())
    }
}

/// Ranges that hold these offsets and not too much else.
fn runs(mut offsets: Vec<i64>) -> Vec<(i64, i64)> {
    offsets.sort_unstable();
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for offset in offsets {
        match runs.last_mut() {
            Some((_, to)) if offset - *to <= GAP_RECORDS_MAX => *to = offset + 1,
            _ => runs.push((offset, offset + 1)),
        }
    }
    runs
}

fn too_much(records: u64, max: u64) -> Problem {
    let message = format!(
        "the dead-letter topic holds {records} records to be read for this, and at most {max} are read at once: say \
         from when on it was refused (`from`, with ids as well), or raise desk.scan_records_max"
    );
    Problem::new(ErrorCode::InvalidValue, message).field("from")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_hold_each_offset_once(offsets in prop::collection::hash_set(0i64..5_000, 0..20)) {
            let offsets: Vec<i64> = offsets.into_iter().collect();
            let runs = runs(offsets.clone());
            for offset in offsets {
                prop_assert_eq!(runs.iter().filter(|(from, to)| (*from..*to).contains(&offset)).count(), 1);
            }
            for pair in runs.windows(2) {
                prop_assert!(pair[1].0 - pair[0].1 > GAP_RECORDS_MAX);
            }
        }
    }
}
