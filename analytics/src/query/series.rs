//! Aggregates per key and step, over tumbling, hopping or sliding windows.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
};

use streamgauge_proto::v1::{KeySeries, Point};

use super::{Filter, Gather, OTHER};
use crate::view::{CellRef, Key};

/// What is asked.
#[derive(Clone, Debug)]
pub struct SeriesQuery {
    /// Seconds, whole steps. Points start in it.
    pub range: Range<i64>,
    /// Distance of two points, in seconds.
    pub step_s: i64,
    /// Length of the windows, a multiple of the step. The window of a point ends where its step ends.
    pub window_s: i64,
    /// Keys that are kept.
    pub filter: Filter,
    /// Ranks of the quantiles.
    pub quantiles: Vec<f64>,
    /// Keys that are told apart.
    pub limit: usize,
    /// How many dimensions a key has.
    pub dimensions: usize,
    /// Buckets that end at or before this are final, microseconds.
    pub watermark_us: i64,
    /// Most cells that the windows may merge.
    pub merges_max: usize,
}

impl SeriesQuery {
    /// The seconds whose cells are needed.
    pub fn needed(&self) -> Range<i64> {
        self.range.start - (self.window_s - self.step_s)..self.range.end
    }
}

type Steps<'a> = BTreeMap<i64, Gather<'a>>;

/// Answers from the cells of [`SeriesQuery::needed`]: keys by their count, most first, those beyond the limit as one.
/// Steps whose window holds nothing are left out. `None` when the windows would merge more cells than are allowed.
pub fn series<'a>(
    query: &SeriesQuery,
    cells: impl Iterator<Item = CellRef<'a>> + Clone,
) -> Option<Vec<KeySeries>> {
    let cells = cells.filter(|cell| query.filter.keeps(cell.key));
    let ranked = rank(cells.clone());
    let cells_total: usize = ranked.iter().map(|(_, cells, _)| cells).sum();
    let windows_per_step = (query.window_s / query.step_s) as usize;
    if cells_total.saturating_mul(windows_per_step) > query.merges_max {
        return None;
    }
    let mut kept: Vec<(Vec<String>, Steps<'a>)> = Vec::new();
    let mut place: HashMap<&Key, usize> = HashMap::new();
    for (_, _, key) in ranked.iter().take(query.limit) {
        place.insert(key, kept.len());
        kept.push((key.to_strings(), Steps::new()));
    }
    let other = (ranked.len() > query.limit).then(|| place_of_other(query, &mut kept));
    for cell in cells {
        let Some(at) = place.get(cell.key).copied().or(other) else {
            continue;
        };
        let step = cell.bucket_s.div_euclid(query.step_s) * query.step_s;
        kept[at].1.entry(step).or_default().add(cell.value);
    }
    Some(
        kept.into_iter()
            .map(|(key, steps)| points(query, key, &steps))
            .collect(),
    )
}

/// Keys by count, most first, with their number of cells.
fn rank<'a>(cells: impl Iterator<Item = CellRef<'a>>) -> Vec<(u64, usize, &'a Key)> {
    let mut counts: HashMap<&Key, (u64, usize)> = HashMap::new();
    for cell in cells {
        let (count, cells) = counts.entry(cell.key).or_default();
        *count = count.saturating_add(cell.value.count);
        *cells += 1;
    }
    let mut ranked: Vec<_> = counts
        .into_iter()
        .map(|(key, (count, cells))| (count, cells, key))
        .collect();
    ranked.sort_by(|one, other| {
        other
            .0
            .cmp(&one.0)
            .then_with(|| one.2.values().cmp(other.2.values()))
    });
    ranked
}

/// Where keys beyond the limit go. Keys that the consumer folded already bear the same name.
fn place_of_other(query: &SeriesQuery, kept: &mut Vec<(Vec<String>, Steps<'_>)>) -> usize {
    let name = vec![String::from(OTHER); query.dimensions];
    kept.iter()
        .position(|(key, _)| *key == name)
        .unwrap_or_else(|| {
            kept.push((name, Steps::new()));
            kept.len() - 1
        })
}

fn points(query: &SeriesQuery, key: Vec<String>, steps: &Steps<'_>) -> KeySeries {
    let (step, window) = (query.step_s, query.window_s);
    let mut starts: Vec<i64> = if window == step {
        steps.keys().copied().collect()
    } else {
        // A step counts for its own window and for those that reach back to it.
        let reached = steps
            .keys()
            .flat_map(|start| (0..window / step).map(move |n| start + n * step));
        reached.collect::<HashSet<_>>().into_iter().collect()
    };
    starts.retain(|start| query.range.contains(start));
    starts.sort_unstable();
    let points = starts.into_iter().map(|start| {
        let window = start + step - window..start + step;
        let end_us = window.end.saturating_mul(1_000_000);
        let mut sum = Gather::default();
        steps
            .range(window)
            .for_each(|(_, gather)| sum.merge(gather));
        Point {
            start_us: start.saturating_mul(1_000_000),
            value: Some(sum.finish(&query.quantiles)),
            r#final: end_us <= query.watermark_us,
        }
    });
    KeySeries {
        key,
        points: points.collect(),
    }
}
