//! What is said of a row that differs, and when two rows do. Pure.

use crate::view::{CellValue, union_users};

/// How far sums of the same values may differ, relative to what was added: they were added in another order.
const SUM_ERROR: f64 = 1e-9;
/// How far estimates of the same users may differ, relatively: sketches were merged in another order.
const USERS_ERROR: f64 = 1e-6;

/// Which row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Where {
    /// A bucket of a series.
    Bucket {
        /// Its length, in seconds.
        tier_s: i64,
        /// Its start, in seconds.
        bucket_s: i64,
        /// The series.
        series: String,
        /// The key, as the store keeps it: a JSON array.
        key: String,
    },
    /// What one user did.
    User {
        /// The user.
        user_id: String,
        /// The page.
        page_url: String,
        /// The event type.
        event_type: String,
    },
}

/// The figures of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Events.
    pub count: u64,
    /// Events that had a value.
    pub value_count: u64,
    /// Sum of the values.
    pub sum: f64,
    /// Least value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Estimate of distinct users.
    pub users: f64,
    /// Latest event of a user page, microseconds.
    pub last_us: i64,
    /// Parts of sketches that cannot be read.
    pub unreadable: u64,
}

impl Figures {
    /// The figures of a bucket.
    pub(super) fn of(value: &CellValue) -> Self {
        let (users, mut unreadable) = union_users(value.users.as_slice());
        unreadable += crate::view::union_quantiles(value.quantiles.as_slice()).1;
        Self {
            count: value.count,
            value_count: value.value_count,
            sum: value.sum,
            min: value.min,
            max: value.max,
            users: users.estimate(),
            last_us: 0,
            unreadable,
        }
    }

    /// Whether both say the same.
    pub fn equals(&self, other: &Self) -> bool {
        let largest = [self.min, self.max, other.min, other.max]
            .into_iter()
            .fold(0.0, |most: f64, value| most.max(value.abs()));
        let sums = SUM_ERROR * largest * self.value_count as f64;
        let users = USERS_ERROR * self.users.max(other.users);
        (self.count, self.value_count, self.last_us, self.unreadable)
            == (
                other.count,
                other.value_count,
                other.last_us,
                other.unreadable,
            )
            && (self.min, self.max) == (other.min, other.max)
            && (self.sum - other.sum).abs() <= sums
            && (self.users - other.users).abs() <= users
    }

    /// Whether this counts less than `other`.
    pub const fn is_less_than(&self, other: &Self) -> bool {
        self.count < other.count || self.value_count < other.value_count
    }
}

/// A row that differs; no figures where there is no row.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Which row.
    pub at: Where,
    /// As it is served.
    pub served: Option<Figures>,
    /// As it was rebuilt.
    pub rebuilt: Option<Figures>,
}

/// Sums over many rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Rows compared.
    pub rows: u64,
    /// Rows that differ.
    pub differing: u64,
    /// Rows of which the rebuilt one counts less, or is not there.
    pub less: u64,
    /// Events in the served rows.
    pub served: u64,
    /// Events in the rebuilt rows.
    pub rebuilt: u64,
}

impl Totals {
    /// Takes a pair of rows in; tells whether they differ.
    pub(super) fn take(&mut self, served: Option<&Figures>, rebuilt: Option<&Figures>) -> bool {
        self.rows += 1;
        let counted = |figures: Option<&Figures>| figures.map_or(0, |figures| figures.count);
        self.served = self.served.saturating_add(counted(served));
        self.rebuilt = self.rebuilt.saturating_add(counted(rebuilt));
        let (differs, is_less) = match (served, rebuilt) {
            (Some(served), Some(rebuilt)) => {
                (!served.equals(rebuilt), rebuilt.is_less_than(served))
            }
            (Some(_), None) => (true, true),
            (None, Some(_)) => (true, false),
            (None, None) => (false, false),
        };
        self.differing += u64::from(differs);
        self.less += u64::from(is_less);
        differs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(count: u64, sum: f64) -> Figures {
        Figures {
            count,
            value_count: count,
            sum,
            min: 0.0,
            max: 10.0,
            ..Figures::default()
        }
    }

    #[test]
    fn the_order_of_adding_makes_no_difference_and_everything_else_does() {
        let one = figures(100, 500.0);
        assert!(one.equals(&figures(100, 500.0 + 1e-8)));
        let others = [
            figures(101, 500.0),
            figures(100, 500.1),
            Figures { max: 11.0, ..one },
            Figures { users: 1.0, ..one },
            Figures { last_us: 1, ..one },
            Figures {
                unreadable: 1,
                ..one
            },
        ];
        for other in others {
            assert!(!one.equals(&other), "{other:?}");
        }
    }

    #[test]
    fn totals_tell_less_from_more() {
        let (few, many) = (figures(1, 1.0), figures(2, 2.0));
        let mut totals = Totals::default();
        assert!(!totals.take(Some(&few), Some(&few)));
        assert!(totals.take(Some(&few), Some(&many)));
        assert_eq!((totals.differing, totals.less), (1, 0));
        assert!(totals.take(Some(&many), Some(&few)));
        assert!(totals.take(Some(&few), None));
        assert!(totals.take(None, Some(&few)));
        assert_eq!((totals.rows, totals.differing, totals.less), (5, 4, 2));
        assert_eq!((totals.served, totals.rebuilt), (5, 5));
    }
}
