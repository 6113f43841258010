//! The keys with the most of a measure, and distinct users, over a whole range.

use std::{cmp::Ordering, collections::HashMap};

use streamgauge_chain::sketch::Users;
use streamgauge_proto::v1::{Aggregate, Measure, TopEntry};

use super::{Filter, Gather};
use crate::view::{CellRef, Key};

/// What is asked.
#[derive(Clone, Debug)]
pub struct TopQuery {
    /// What makes a key large.
    pub measure: Measure,
    /// Keys that are listed.
    pub limit: usize,
    /// Keys that are kept.
    pub filter: Filter,
    /// Ranks of the quantiles.
    pub quantiles: Vec<f64>,
}

/// The largest keys, the sum over all keys that are kept, and how many these are. `everybody` is the distinct users over
/// the range, where that is known from a series that counts all events.
pub fn top<'a>(
    query: &TopQuery,
    cells: impl IntoIterator<Item = CellRef<'a>>,
    everybody: Option<f64>,
) -> (Vec<TopEntry>, Aggregate, u64) {
    let mut by_key: HashMap<&Key, Gather<'a>> = HashMap::new();
    for cell in cells
        .into_iter()
        .filter(|cell| query.filter.keeps(cell.key))
    {
        by_key.entry(cell.key).or_default().add(cell.value);
    }
    let mut total = Gather::default();
    by_key.values().for_each(|gather| total.merge(gather));
    let keys = by_key.len() as u64;
    let mut ranked: Vec<(f64, &Key, Gather<'a>)> = by_key
        .into_iter()
        .map(|(key, gather)| (size(query.measure, &gather), key, gather))
        .collect();
    let larger = |one: &(f64, &Key, Gather<'a>), other: &(f64, &Key, Gather<'a>)| -> Ordering {
        other
            .0
            .total_cmp(&one.0)
            .then_with(|| one.1.values().cmp(other.1.values()))
    };
    if query.limit < ranked.len() {
        ranked.select_nth_unstable_by(query.limit, larger);
        ranked.truncate(query.limit);
    }
    ranked.sort_by(larger);
    let entries = ranked.into_iter().map(|(_, key, gather)| TopEntry {
        key: key.to_strings(),
        value: Some(gather.finish(&query.quantiles)),
    });
    let entries = entries.collect();
    let users = everybody.unwrap_or_else(|| total.users());
    (
        entries,
        total.finish_with_users(&query.quantiles, users),
        keys,
    )
}

fn size(measure: Measure, gather: &Gather<'_>) -> f64 {
    match measure {
        Measure::Count => gather.count() as f64,
        Measure::Sum => gather.sum(),
        Measure::Users => gather.users(),
    }
}

/// The users in the cells that are kept.
pub fn distinct<'a>(filter: &Filter, cells: impl IntoIterator<Item = CellRef<'a>>) -> Users {
    let mut sum = Gather::default();
    for cell in cells.into_iter().filter(|cell| filter.keeps(cell.key)) {
        sum.add(cell.value);
    }
    sum.users_sketch()
}
