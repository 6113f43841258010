//! Buckets of one second by time, copied on write, with blocks of ten seconds and of a minute beside them once these
//! have settled.
//!
//! A clone costs one pointer per minute. A change copies what it touches (the minute's list of seconds, the series'
//! list of cells, one cell) and drops the blocks that it makes wrong; clones that readers hold never change.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::{CellValue, Key, SeriesId};

const MINUTE_S: i64 = 60;
const BLOCK_S: i64 = 10;
/// What a cell costs beside its value.
const CELL_OVERHEAD_BYTES: usize = 40;

/// A key and what is known of it in one bucket of one series.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The key.
    pub key: Arc<Key>,
    /// What is known of it.
    pub value: CellValue,
}

/// A cell as queries meet it, from memory or from the store.
#[derive(Clone, Copy, Debug)]
pub struct CellRef<'a> {
    /// Start of the bucket; its length divides the query's step.
    pub bucket_s: i64,
    /// The key.
    pub key: &'a Key,
    /// What is known of it.
    pub value: &'a CellValue,
}

/// The cells of one series in one bucket, by hash of the key.
type Cells = Vec<(u64, Arc<Cell>)>;

/// One bucket, of a second or of a block.
#[derive(Clone, Debug, Default)]
struct Bucket {
    start_s: i64,
    series: Vec<Arc<Cells>>,
}

#[derive(Clone, Debug, Default)]
struct Minute {
    /// In order of time.
    seconds: Vec<Arc<Bucket>>,
    /// Settled blocks of ten seconds, by number within the minute.
    tens: [Option<Arc<Bucket>>; 6],
    whole: Option<Arc<Bucket>>,
}

/// Buckets of one second.
#[derive(Clone, Debug, Default)]
pub struct Seconds {
    minutes: BTreeMap<i64, Arc<Minute>>,
}

fn minute_of(second: i64) -> i64 {
    second.div_euclid(MINUTE_S) * MINUTE_S
}

fn find(cells: &Cells, key: &Key) -> Result<usize, usize> {
    let mut at = cells.partition_point(|(hash, _)| *hash < key.hash());
    while let Some((hash, cell)) = cells.get(at)
        && *hash == key.hash()
    {
        if *cell.key == *key {
            return Ok(at);
        }
        at += 1;
    }
    Err(at)
}

impl Bucket {
    fn cells(&self, series: SeriesId) -> &[(u64, Arc<Cell>)] {
        self.series
            .get(series)
            .map_or(&[], |cells| cells.as_slice())
    }

    fn all_cells(&self) -> impl Iterator<Item = (SeriesId, &Arc<Cell>)> {
        let numbered = self.series.iter().enumerate();
        numbered.flat_map(|(series, cells)| cells.iter().map(move |(_, cell)| (series, cell)))
    }

    fn cells_mut(&mut self, series: SeriesId) -> &mut Cells {
        if self.series.len() <= series {
            self.series.resize_with(series + 1, Arc::default);
        }
        Arc::make_mut(&mut self.series[series])
    }

    fn size_bytes(&self) -> usize {
        self.all_cells()
            .map(|(_, cell)| cell.value.size_bytes() + CELL_OVERHEAD_BYTES)
            .sum()
    }

    /// Works out what readers would have to; returns parts that could not be read.
    fn settle(&mut self) -> u64 {
        let mut unreadable = 0;
        for cells in &mut self.series {
            for (_, cell) in Arc::make_mut(cells) {
                if cell.value.estimate().is_none() {
                    unreadable += Arc::make_mut(cell).value.settle();
                }
            }
        }
        unreadable
    }

    fn absorb(&mut self, other: &Bucket) {
        for (series, cell) in other.all_cells() {
            let cells = self.cells_mut(series);
            match find(cells, &cell.key) {
                Ok(at) => Arc::make_mut(&mut cells[at].1).value.absorb(&cell.value),
                Err(at) => cells.insert(at, (cell.key.hash(), Arc::clone(cell))),
            }
        }
    }
}

impl Seconds {
    /// Replaces a cell by what `change` makes of it. Returns by how many bytes memory grew.
    pub fn upsert(
        &mut self,
        second: i64,
        series: SeriesId,
        key: &Arc<Key>,
        change: impl FnOnce(Option<&Arc<Cell>>) -> Arc<Cell>,
    ) -> isize {
        let size = |cell: &Arc<Cell>| (cell.value.size_bytes() + CELL_OVERHEAD_BYTES) as isize;
        let (bucket, freed) = self.bucket_mut(second);
        let cells = bucket.cells_mut(series);
        let grown = match find(cells, key) {
            Ok(at) => {
                let cell = change(Some(&cells[at].1));
                let grown = size(&cell) - size(&cells[at].1);
                cells[at].1 = cell;
                grown
            }
            Err(at) => {
                let cell = change(None);
                let grown = size(&cell);
                cells.insert(at, (key.hash(), cell));
                grown
            }
        };
        grown - freed
    }

    /// The bucket of a second, to be changed, and the bytes of the blocks that are wrong from now on.
    fn bucket_mut(&mut self, second: i64) -> (&mut Bucket, isize) {
        let start = minute_of(second);
        let minute = Arc::make_mut(self.minutes.entry(start).or_default());
        let ten = ((second - start) / BLOCK_S) as usize;
        let stale = [minute.tens[ten].take(), minute.whole.take()];
        let freed: usize = stale
            .iter()
            .flatten()
            .map(|bucket| bucket.size_bytes())
            .sum();
        let at = match minute
            .seconds
            .binary_search_by_key(&second, |bucket| bucket.start_s)
        {
            Ok(at) => at,
            Err(at) => {
                let bucket = Bucket {
                    start_s: second,
                    series: Vec::new(),
                };
                minute.seconds.insert(at, Arc::new(bucket));
                at
            }
        };
        (Arc::make_mut(&mut minute.seconds[at]), freed as isize)
    }

    /// Builds the blocks that end at or before `until_s` and are not there yet. Returns by how many bytes memory grew,
    /// and how many parts of sketches could not be read.
    pub fn settle(&mut self, until_s: i64) -> (isize, u64) {
        let (mut grown, mut unreadable) = (0, 0);
        let unsettled = |(start, minute): &(&i64, &mut Arc<Minute>)| {
            **start < until_s && minute.whole.is_none()
        };
        for (start, minute) in self.minutes.iter_mut().filter(unsettled) {
            let due = (until_s - start).clamp(0, MINUTE_S);
            if minute
                .tens
                .iter()
                .take((due / BLOCK_S) as usize)
                .all(Option::is_some)
                && due < MINUTE_S
            {
                continue;
            }
            let (bytes, parts) = Arc::make_mut(minute).settle(*start, due);
            grown += bytes;
            unreadable += parts;
        }
        (grown, unreadable)
    }

    /// The cells of a series in `range`, in blocks no longer than divide `step_s` (any, when `None`).
    pub fn cells(
        &self,
        series: SeriesId,
        range: Range<i64>,
        step_s: Option<i64>,
    ) -> impl Iterator<Item = CellRef<'_>> + Clone {
        let minutes = self.minutes.range(minute_of(range.start)..range.end);
        let buckets = minutes.flat_map(move |(start, minute)| {
            let mut buckets = Vec::new();
            minute.cover(*start, &range, step_s, &mut buckets);
            buckets
        });
        buckets.flat_map(move |bucket| {
            bucket.cells(series).iter().map(|(_, cell)| CellRef {
                bucket_s: bucket.start_s,
                key: &cell.key,
                value: &cell.value,
            })
        })
    }

    /// Every cell of every second.
    pub fn all_cells(&self) -> impl Iterator<Item = (i64, SeriesId, &Arc<Cell>)> {
        let seconds = self.minutes.values().flat_map(|minute| &minute.seconds);
        seconds.flat_map(|bucket| {
            bucket
                .all_cells()
                .map(|(series, cell)| (bucket.start_s, series, cell))
        })
    }

    /// Drops the minutes before `second`; returns the bytes that this frees.
    pub fn drop_before(&mut self, second: i64) -> usize {
        let keep = self.minutes.split_off(&minute_of(second));
        let dropped = std::mem::replace(&mut self.minutes, keep);
        dropped.values().map(|minute| minute.size_bytes()).sum()
    }

    /// Start of the oldest minute that holds anything.
    pub fn oldest_minute(&self) -> Option<i64> {
        self.minutes.keys().next().copied()
    }

    /// Seconds that hold anything.
    pub fn len(&self) -> usize {
        self.minutes
            .values()
            .map(|minute| minute.seconds.len())
            .sum()
    }

    /// Whether no second holds anything.
    pub fn is_empty(&self) -> bool {
        self.minutes.is_empty()
    }
}

impl Minute {
    fn settle(&mut self, start: i64, due: i64) -> (isize, u64) {
        let (mut grown, mut unreadable) = (0isize, 0);
        for ten in 0..(due / BLOCK_S) as usize {
            if self.tens[ten].is_some() {
                continue;
            }
            let from = start + ten as i64 * BLOCK_S;
            let mut block = Bucket {
                start_s: from,
                series: Vec::new(),
            };
            for second in &mut self.seconds {
                if (from..from + BLOCK_S).contains(&second.start_s) {
                    let before = second.size_bytes() as isize;
                    unreadable += Arc::make_mut(second).settle();
                    grown += second.size_bytes() as isize - before;
                    block.absorb(second);
                }
            }
            unreadable += block.settle();
            grown += block.size_bytes() as isize;
            self.tens[ten] = Some(Arc::new(block));
        }
        if due == MINUTE_S && self.whole.is_none() {
            let mut block = Bucket {
                start_s: start,
                series: Vec::new(),
            };
            self.tens.iter().flatten().for_each(|ten| block.absorb(ten));
            unreadable += block.settle();
            grown += block.size_bytes() as isize;
            self.whole = Some(Arc::new(block));
        }
        (grown, unreadable)
    }

    fn cover<'a>(
        &'a self,
        start: i64,
        range: &Range<i64>,
        step_s: Option<i64>,
        buckets: &mut Vec<&'a Bucket>,
    ) {
        let usable = |from: i64, length: i64| {
            range.start <= from
                && from + length <= range.end
                && step_s.is_none_or(|step| step % length == 0)
        };
        if let Some(whole) = &self.whole
            && usable(start, MINUTE_S)
        {
            buckets.push(whole);
            return;
        }
        let mut seconds = self.seconds.iter().peekable();
        for (ten, block) in (0i64..).zip(&self.tens) {
            let from = start + ten * BLOCK_S;
            let block = block.as_deref().filter(|_| usable(from, BLOCK_S));
            buckets.extend(block);
            while let Some(second) = seconds.next_if(|second| second.start_s < from + BLOCK_S) {
                if block.is_none() && range.contains(&second.start_s) {
                    buckets.push(second);
                }
            }
        }
    }

    fn size_bytes(&self) -> usize {
        let blocks = self.tens.iter().flatten().chain(&self.whole);
        self.seconds
            .iter()
            .chain(blocks)
            .map(|bucket| bucket.size_bytes())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::Keys, *};

    fn add(seconds: &mut Seconds, second: i64, key: &Arc<Key>, count: u64) -> isize {
        seconds.upsert(second, 0, key, |cell| {
            let mut value = cell.map(|cell| cell.value.clone()).unwrap_or_default();
            value.count += count;
            Arc::new(Cell {
                key: Arc::clone(key),
                value,
            })
        })
    }

    proptest! {
        /// Blocks, however often they are built and broken, never change an answer; nor does a
        /// clone that a reader holds ever change.
        #[test]
        fn blocks_answer_as_their_seconds_do(
            adds in prop::collection::vec((0i64..300, 0usize..3, 1u64..9, 0u8..4), 1..120),
            from in 0i64..300, length in 0i64..300, step in prop::sample::select(vec![None, Some(1), Some(10), Some(30), Some(60)]),
        ) {
            let mut keys = Keys::default();
            let keys = ["a", "b", "c"].map(|value| keys.intern(&[value]));
            let mut seconds = Seconds::default();
            let mut expected = vec![0u64; 300];
            let mut bytes = 0;
            for (second, key, count, settle) in adds {
                bytes += add(&mut seconds, second, &keys[key], count);
                expected[second as usize] += count;
                if settle == 0 {
                    bytes += seconds.settle(second).0;
                }
            }
            let held = seconds.clone();
            let range = from..from + length;
            let sum = |seconds: &Seconds| -> u64 {
                seconds.cells(0, range.clone(), step).map(|cell| cell.value.count).sum()
            };
            let wanted: u64 = (from..(from + length).min(300)).map(|at| expected[at as usize]).sum();
            prop_assert_eq!(sum(&seconds), wanted);
            let step_s = step.unwrap_or(60);
            for cell in seconds.cells(0, range.clone(), step) {
                prop_assert!(range.contains(&cell.bucket_s) || step_s == 60);
            }
            add(&mut seconds, from, &keys[0], 1);
            prop_assert_eq!(sum(&held), wanted);
            let size = held.minutes.values().map(|minute| minute.size_bytes()).sum::<usize>();
            prop_assert_eq!(bytes, size as isize);
        }
    }

    #[test]
    fn old_minutes_are_dropped_whole() {
        let mut keys = Keys::default();
        let key = keys.intern(&["a"]);
        let mut seconds = Seconds::default();
        let grown: isize = [5, 65, 70, 125]
            .map(|at| add(&mut seconds, at, &key, 1))
            .iter()
            .sum();
        let freed = seconds.drop_before(100);
        assert_eq!((seconds.len(), seconds.oldest_minute()), (3, Some(60)));
        assert_eq!(freed as isize * 4, grown);
    }
}
