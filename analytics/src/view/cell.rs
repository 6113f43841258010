//! A cell: what is known of one key of one series in one bucket.
//!
//! Sketches stay serialised, as a short list of parts that is merged when it grows: most cells are written a few times
//! and never read, and a serialised sketch of few users is a tenth of the size of a live one. A part that cannot be
//! read is dropped and counted by the caller; it never spoils the counts beside it.

use bytes::Bytes;
use streamgauge_chain::sketch::{Quantiles, SketchError, Users};
use streamgauge_proto::v1;

/// Parts that are kept before they are merged into one.
const PARTS_MAX: usize = 8;

/// Serialised sketches whose union is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Parts {
    /// No sketch.
    #[default]
    None,
    /// One sketch.
    One(Bytes),
    /// Several, at least two.
    Many(Vec<Bytes>),
}

/// Merges serialised parts into one, and tells how many could not be read.
type Union = fn(&[Bytes]) -> (Option<Vec<u8>>, u64);

impl Parts {
    /// One part, or none when the bytes are empty.
    pub fn of(bytes: Bytes) -> Self {
        if bytes.is_empty() {
            Self::None
        } else {
            Self::One(bytes)
        }
    }

    /// The parts.
    pub fn as_slice(&self) -> &[Bytes] {
        match self {
            Self::None => &[],
            Self::One(part) => std::slice::from_ref(part),
            Self::Many(parts) => parts,
        }
    }

    /// Size of the parts.
    pub fn size_bytes(&self) -> usize {
        self.as_slice()
            .iter()
            .map(|part| part.len() + size_of::<Bytes>())
            .sum()
    }

    fn extend(&mut self, other: &Parts) {
        for part in other.as_slice() {
            *self = match std::mem::take(self) {
                Self::None => Self::One(part.clone()),
                Self::One(first) => Self::Many(vec![first, part.clone()]),
                Self::Many(mut parts) => {
                    parts.push(part.clone());
                    Self::Many(parts)
                }
            };
        }
    }

    /// Merges several parts into one; returns how many could not be read.
    fn compact(&mut self, union: Union) -> u64 {
        let Self::Many(parts) = self else { return 0 };
        let (merged, unreadable) = union(parts);
        *self = merged.map_or(Self::None, |bytes| Self::One(bytes.into()));
        unreadable
    }
}

/// The union of serialised user sketches, and how many parts could not be read.
pub fn union_users<'a>(parts: impl IntoIterator<Item = &'a Bytes>) -> (Users, u64) {
    let (read, unreadable) = read_all(parts, Users::from_bytes);
    match <[Users; 1]>::try_from(read) {
        Ok([only]) => (only, unreadable),
        Err(several) => (Users::union(&several), unreadable),
    }
}

/// The union of serialised quantile sketches, and how many parts could not be read.
pub fn union_quantiles<'a>(parts: impl IntoIterator<Item = &'a Bytes>) -> (Quantiles, u64) {
    let (read, unreadable) = read_all(parts, Quantiles::from_bytes);
    let mut read = read.into_iter();
    let mut union = read.next().unwrap_or_default();
    read.for_each(|other| union.merge(&other));
    (union, unreadable)
}

fn read_all<'a, S>(
    parts: impl IntoIterator<Item = &'a Bytes>,
    read: fn(&[u8]) -> Result<S, SketchError>,
) -> (Vec<S>, u64) {
    let mut unreadable = 0;
    let read = parts
        .into_iter()
        .filter_map(|part| read(part).map_err(|_| unreadable += 1).ok());
    (read.collect(), unreadable)
}

/// The additive content of a cell.
#[derive(Clone, Debug, Default)]
pub struct CellValue {
    /// Events.
    pub count: u64,
    /// Events that had a value.
    pub value_count: u64,
    /// Sum of the values.
    pub sum: f64,
    /// Least value; 0 when there was none.
    pub min: f64,
    /// Largest value; 0 when there was none.
    pub max: f64,
    /// Distinct users.
    pub users: Parts,
    /// Quantiles of the values.
    pub quantiles: Parts,
    /// Estimate of `users`, where it was worked out already.
    estimate: Option<f64>,
}

impl From<&v1::Cell> for CellValue {
    fn from(wire: &v1::Cell) -> Self {
        Self {
            count: wire.count,
            value_count: wire.value_count,
            sum: wire.sum,
            min: wire.min,
            max: wire.max,
            users: Parts::of(wire.users.clone()),
            quantiles: Parts::of(wire.quantiles.clone()),
            estimate: None,
        }
    }
}

impl CellValue {
    /// Adds `other`, without looking into the sketches.
    pub fn absorb(&mut self, other: &CellValue) {
        self.absorb_numbers(other);
        self.users.extend(&other.users);
        self.quantiles.extend(&other.quantiles);
    }

    /// Adds the counts and values of `other`, but not its sketches.
    pub fn absorb_numbers(&mut self, other: &CellValue) {
        if other.value_count > 0 {
            let first = self.value_count == 0;
            self.min = if first {
                other.min
            } else {
                self.min.min(other.min)
            };
            self.max = if first {
                other.max
            } else {
                self.max.max(other.max)
            };
        }
        self.count = self.count.saturating_add(other.count);
        self.value_count = self.value_count.saturating_add(other.value_count);
        self.sum += other.sum;
        self.estimate = None;
    }

    /// Merges the parts of the sketches when they are many; returns how many could not be read.
    pub fn compact_when_long(&mut self) -> u64 {
        let long = |parts: &Parts| parts.as_slice().len() >= PARTS_MAX;
        if long(&self.users) || long(&self.quantiles) {
            self.compact()
        } else {
            0
        }
    }

    /// Merges the parts of each sketch into one; returns how many could not be read.
    pub fn compact(&mut self) -> u64 {
        let users = self.users.compact(|parts| {
            let (users, unreadable) = union_users(parts);
            ((!users.is_empty()).then(|| users.to_bytes()), unreadable)
        });
        let quantiles = self.quantiles.compact(|parts| {
            let (quantiles, unreadable) = union_quantiles(parts);
            (
                (quantiles.count() > 0).then(|| quantiles.to_bytes()),
                unreadable,
            )
        });
        users + quantiles
    }

    /// Works the estimate of users out, for readers to find.
    pub fn settle(&mut self) -> u64 {
        let unreadable = self.compact();
        self.estimate = Some(union_users(self.users.as_slice()).0.estimate());
        unreadable
    }

    /// The estimate of users, where it was worked out already.
    pub fn estimate(&self) -> Option<f64> {
        self.estimate
    }

    /// Size in memory, sketches included.
    pub fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.users.size_bytes() + self.quantiles.size_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use streamgauge_chain::sketch::UserHash;

    use super::*;

    fn value(users: std::ops::Range<u32>) -> CellValue {
        let (mut sketch, mut quantiles) = (Users::new(), Quantiles::new());
        let (mut sum, count) = (0.0, u64::from(users.end - users.start));
        let (min, max) = (
            f64::from(users.start),
            f64::from(users.end.saturating_sub(1)),
        );
        for user in users {
            sketch.insert(UserHash::of(&user.to_le_bytes()));
            quantiles.insert(f64::from(user));
            sum += f64::from(user);
        }
        CellValue {
            count,
            value_count: count,
            sum,
            min: if count > 0 { min } else { 0.0 },
            max: if count > 0 { max } else { 0.0 },
            users: Parts::of(sketch.to_bytes().into()),
            quantiles: Parts::of(quantiles.to_bytes().into()),
            estimate: None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// However parts come together, the numbers are exact and the sketches are unions.
        #[test]
        fn absorbing_in_any_order_gives_one_answer(lengths in prop::collection::vec(1u32..40, 1..30)) {
            let (mut all, mut backwards) = (CellValue::default(), CellValue::default());
            let mut start = 0;
            let cells: Vec<_> = lengths.iter().map(|length| {
                start += length;
                value(start - length..start)
            }).collect();
            for cell in &cells {
                all.absorb(cell);
                all.compact_when_long();
            }
            for cell in cells.iter().rev() {
                backwards.absorb(cell);
            }
            prop_assert!(all.users.as_slice().len() <= PARTS_MAX);
            prop_assert_eq!((all.count, all.min, all.max), (u64::from(start), 0.0, f64::from(start - 1)));
            prop_assert_eq!((all.count, all.sum), (backwards.count, backwards.sum));
            let (one, other) = (union_users(all.users.as_slice()), union_users(backwards.users.as_slice()));
            prop_assert!((one.0.estimate() - other.0.estimate()).abs() < 1e-6 * f64::from(start));
            prop_assert_eq!(union_quantiles(all.quantiles.as_slice()).0.count(), u64::from(start));
        }
    }

    #[test]
    fn an_unreadable_part_is_dropped_and_counted() {
        let mut cell = value(0..3);
        cell.absorb(&CellValue {
            count: 1,
            users: Parts::of(Bytes::from_static(b"rubbish")),
            ..CellValue::default()
        });
        assert_eq!(cell.settle(), 1);
        assert_eq!(cell.count, 4);
        assert!(
            cell.estimate()
                .is_some_and(|users| (users - 3.0).abs() < 0.01)
        );
    }
}
