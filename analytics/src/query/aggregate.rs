//! Adding cells up: numbers at once, sketches only when they are asked for.

use streamgauge_proto::v1::Aggregate;

use crate::view::{CellValue, Parts, union_quantiles, union_users};

/// A sum of cells under way. Sketches are referred to, and merged only for what ends up in an answer.
#[derive(Clone, Debug, Default)]
pub struct Gather<'a> {
    count: u64,
    value_count: u64,
    sum: f64,
    bounds: Option<(f64, f64)>,
    users: Vec<&'a Parts>,
    quantiles: Vec<&'a Parts>,
    /// The estimate of the only cell, when it has one.
    estimate: Option<f64>,
}

impl<'a> Gather<'a> {
    /// Adds a cell.
    pub fn add(&mut self, cell: &'a CellValue) {
        self.estimate = if self.users.is_empty() {
            cell.estimate()
        } else {
            None
        };
        let bounds = (cell.value_count > 0).then_some((cell.min, cell.max));
        self.add_numbers(cell.count, cell.value_count, cell.sum, bounds);
        self.users.push(&cell.users);
        self.quantiles.push(&cell.quantiles);
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &Gather<'a>) {
        self.estimate = if self.users.is_empty() {
            other.estimate
        } else {
            None
        };
        self.add_numbers(other.count, other.value_count, other.sum, other.bounds);
        self.users.extend(&other.users);
        self.quantiles.extend(&other.quantiles);
    }

    fn add_numbers(&mut self, count: u64, value_count: u64, sum: f64, bounds: Option<(f64, f64)>) {
        self.count = self.count.saturating_add(count);
        self.value_count = self.value_count.saturating_add(value_count);
        self.sum += sum;
        self.bounds = match (self.bounds, bounds) {
            (Some((min, max)), Some((low, high))) => Some((min.min(low), max.max(high))),
            (one, other) => one.or(other),
        };
    }

    /// Events.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Sum of values.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Cells that went in.
    pub fn cells(&self) -> usize {
        self.users.len()
    }

    /// Estimated distinct users.
    pub fn users(&self) -> f64 {
        match self.estimate {
            Some(estimate) => estimate,
            None => self.users_sketch().estimate(),
        }
    }

    /// The union of the user sketches.
    pub fn users_sketch(&self) -> streamgauge_chain::sketch::Users {
        union_users(self.users.iter().flat_map(|parts| parts.as_slice())).0
    }

    /// The answer, with the quantiles at these ranks.
    pub fn finish(&self, ranks: &[f64]) -> Aggregate {
        self.finish_with_users(ranks, self.users())
    }

    /// The answer, with a number of users from elsewhere.
    pub fn finish_with_users(&self, ranks: &[f64], users: f64) -> Aggregate {
        let quantiles = if ranks.is_empty() {
            Vec::new()
        } else {
            let parts = self.quantiles.iter().flat_map(|parts| parts.as_slice());
            union_quantiles(parts).0.at(ranks).unwrap_or_default()
        };
        Aggregate {
            count: self.count,
            value_count: self.value_count,
            sum: self.sum,
            min: self.bounds.map(|(min, _)| min),
            max: self.bounds.map(|(_, max)| max),
            users,
            quantiles,
        }
    }
}
