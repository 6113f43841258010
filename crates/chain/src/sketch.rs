//! The two mergeable sketches that cells carry, with their error bounds.
//!
//! Both are Apache DataSketches: HyperLogLog for distinct users (Flajolet et al. 2007, with the
//! HIP and composite estimators of the DataSketches library) and KLL for quantiles (Karnin, Lang,
//! Liberty 2016). Their serialised forms are DataSketches' own, readable from Java, C++ and Python.

use std::borrow::Cow;

use datasketches::{
    common::{NumStdDev, SearchCriteria},
    hll::{Coupon, HllSketch, HllType, HllUnion},
    kll::{KllFloat, KllSketch},
};

/// `lg_k` of the user sketches: 4,096 registers.
pub const USERS_LG_K: u8 = 12;

/// Relative standard error (1 sigma) of distinct users: `1.04 / sqrt(4096)`, about 1.6%.
/// It is the error of a merged sketch; small sets (some hundred users) are counted exactly.
pub const USERS_ERROR: f64 = 0.016_25;

/// Below this many users a sketch of [`USERS_LG_K`] still holds a coupon per user, and has no history to differ in.
const COUPONS_MAX: f64 = 300.0;

/// `k` of the quantile sketches.
pub const QUANTILES_K: u16 = 200;

/// Normalised rank error of quantiles at 99% confidence for `k = 200`: about 1.33%.
pub const QUANTILES_ERROR: f64 = 0.0133;

/// A serialised sketch that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the {kind} sketch cannot be read: {cause}")]
pub struct SketchError {
    kind: &'static str,
    cause: String,
}

/// Distinct users.
#[derive(Clone, Debug)]
pub struct Users(HllSketch);

/// A user, hashed once for all the sketches it goes into.
#[derive(Clone, Copy, Debug)]
pub struct UserHash(Coupon);

impl UserHash {
    /// Hashes the user's identity (tenant and user id, as bytes).
    pub fn of(identity: &[u8]) -> Self {
        Self(Coupon::from_value(identity))
    }
}

impl Default for Users {
    fn default() -> Self {
        Self::new()
    }
}

impl Users {
    /// An empty sketch.
    pub fn new() -> Self {
        Self(HllSketch::new(USERS_LG_K, HllType::Hll4).expect("12 is a valid lg_k"))
    }

    /// Adds a user; adding it again changes nothing.
    pub fn insert(&mut self, user: UserHash) {
        self.0.update_with_coupon(user.0);
    }

    /// Adds every user of `other`.
    pub fn merge(&mut self, other: &Users) {
        let mut union = HllUnion::new(USERS_LG_K).expect("12 is a valid lg_k");
        union.update(&self.0);
        union.update(&other.0);
        self.0 = union.to_sketch(HllType::Hll4);
    }

    /// The union of many sketches, cheaper than merging one by one.
    pub fn union<'a>(sketches: impl IntoIterator<Item = &'a Users>) -> Users {
        let mut union = HllUnion::new(USERS_LG_K).expect("12 is a valid lg_k");
        for sketch in sketches {
            union.update(&sketch.0);
        }
        Users(union.to_sketch(HllType::Hll4))
    }

    /// The estimated number of distinct users. It depends on who was added alone, not on the order or on the way in
    /// which sketches were merged: the same events give the same figure.
    pub fn estimate(&self) -> f64 {
        self.orderless().estimate()
    }

    /// Lower and upper bound at two standard deviations.
    pub fn bounds(&self) -> (f64, f64) {
        let sketch = self.orderless();
        (
            sketch.lower_bound(NumStdDev::Two),
            sketch.upper_bound(NumStdDev::Two),
        )
    }

    /// A sketch that was filled one by one estimates from its history (HIP), which differs from one order to another.
    /// One that was merged estimates from its registers, which do not: so it is merged, with itself.
    fn orderless(&self) -> Cow<'_, HllSketch> {
        if self.0.estimate() < COUPONS_MAX {
            return Cow::Borrowed(&self.0);
        }
        let mut union = HllUnion::new(USERS_LG_K).expect("12 is a valid lg_k");
        union.update(&self.0);
        union.update(&self.0);
        Cow::Owned(union.to_sketch(HllType::Hll4))
    }

    /// Whether no user was added.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The DataSketches form.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.serialize()
    }

    /// Reads the DataSketches form.
    ///
    /// # Errors
    /// When the bytes are not an HLL sketch of [`USERS_LG_K`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SketchError> {
        let sketch = HllSketch::deserialize(bytes).map_err(|error| SketchError {
            kind: "users",
            cause: error.to_string(),
        })?;
        if sketch.lg_config_k() != USERS_LG_K {
            let cause = format!("lg_k is {}, not {USERS_LG_K}", sketch.lg_config_k());
            return Err(SketchError {
                kind: "users",
                cause,
            });
        }
        Ok(Self(sketch))
    }
}

/// Quantiles of the measure.
#[derive(Clone, Debug)]
pub struct Quantiles(KllSketch<KllFloat<f64>>);

impl Default for Quantiles {
    fn default() -> Self {
        Self::new()
    }
}

impl Quantiles {
    /// An empty sketch.
    pub fn new() -> Self {
        Self(KllSketch::new(QUANTILES_K).expect("200 is a valid k"))
    }

    /// Adds a value; one that is not a number is passed over.
    pub fn insert(&mut self, value: f64) {
        if let Ok(value) = KllFloat::<f64>::new(value) {
            self.0.update(value);
        }
    }

    /// Adds every value of `other`.
    pub fn merge(&mut self, other: &Quantiles) {
        self.0
            .merge(&other.0)
            .expect("both sketches are quantiles of doubles with the same k");
    }

    /// How many values were added.
    pub fn count(&self) -> u64 {
        self.0.n()
    }

    /// The value at each rank in `[0, 1]`; `None` for an empty sketch.
    pub fn at(&self, ranks: &[f64]) -> Option<Vec<f64>> {
        ranks
            .iter()
            .map(|rank| {
                let rank = rank.clamp(0.0, 1.0);
                self.0
                    .quantile(rank, SearchCriteria::Inclusive)
                    .ok()
                    .flatten()
            })
            .map(|value| value.map(KllFloat::into_inner))
            .collect()
    }

    /// The DataSketches form.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.serialize()
    }

    /// Reads the DataSketches form.
    ///
    /// # Errors
    /// When the bytes are not a KLL sketch of doubles with [`QUANTILES_K`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SketchError> {
        let sketch = KllSketch::deserialize(bytes).map_err(|error| SketchError {
            kind: "quantiles",
            cause: error.to_string(),
        })?;
        if sketch.k() != QUANTILES_K {
            let cause = format!("k is {}, not {QUANTILES_K}", sketch.k());
            return Err(SketchError {
                kind: "quantiles",
                cause,
            });
        }
        Ok(Self(sketch))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn users(ids: impl IntoIterator<Item = u32>) -> Users {
        let mut sketch = Users::new();
        for id in ids {
            sketch.insert(UserHash::of(format!("user-{id}").as_bytes()));
        }
        sketch
    }

    #[test]
    fn the_estimate_stays_within_four_standard_errors() {
        for n in [0u32, 1, 10, 100, 1753, 20_000, 200_000] {
            let estimate = users(0..n).estimate();
            let allowed = f64::from(n) * 4.0 * USERS_ERROR + 0.5;
            assert!(
                (estimate - f64::from(n)).abs() <= allowed,
                "{n}: {estimate}"
            );
        }
    }

    #[test]
    fn quantiles_stay_within_the_rank_error() {
        let mut sketch = Quantiles::new();
        for value in 0..100_000 {
            sketch.insert(f64::from(value));
        }
        let found = sketch.at(&[0.5, 0.95, 0.99]).expect("not empty");
        for (rank, value) in [0.5, 0.95, 0.99].into_iter().zip(found) {
            assert!(
                (value / 100_000.0 - rank).abs() <= 2.0 * QUANTILES_ERROR,
                "{rank}: {value}"
            );
        }
        assert_eq!(Quantiles::new().at(&[0.5]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_merge_counts_the_union(a in 0u32..3000, b in 0u32..3000, overlap in 0u32..1000) {
            let (one, other) = (users(0..a), users(a.saturating_sub(overlap)..a + b));
            let mut merged = one.clone();
            merged.merge(&other);
            let expected = f64::from(a + b);
            prop_assert!((merged.estimate() - expected).abs() <= expected * 4.0 * USERS_ERROR + 1.0);
            let again = Users::from_bytes(&merged.to_bytes()).expect("own bytes");
            prop_assert!((again.estimate() - merged.estimate()).abs() < 1e-6 * expected.max(1.0));
            prop_assert!((Users::union([&one, &other]).estimate() - merged.estimate()).abs() < 1e-6 * expected.max(1.0));
        }

        /// However the same users come together, the figure is the same.
        #[test]
        fn the_way_of_merging_makes_no_difference(lengths in prop::collection::vec(1u32..600, 1..12)) {
            let mut start = 0;
            let parts: Vec<Users> = lengths.iter().map(|length| {
                start += length;
                users(start - length..start)
            }).collect();
            let expected = users(0..start).estimate();
            let mut one_by_one = Users::new();
            parts.iter().rev().for_each(|part| one_by_one.merge(part));
            let halves = parts.split_at(parts.len() / 2);
            let nested = Users::union([&Users::union(halves.1), &Users::union(halves.0)]);
            for estimate in [Users::union(&parts).estimate(), one_by_one.estimate(), nested.estimate()] {
                prop_assert!((estimate - expected).abs() <= 1e-9 * expected, "{estimate} {expected}");
            }
        }

        #[test]
        fn foreign_bytes_are_refused_or_read_but_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Users::from_bytes(&bytes);
            let _ = Quantiles::from_bytes(&bytes);
        }

        #[test]
        fn values_survive_a_round_trip(values in prop::collection::vec(-1e9f64..1e9, 1..500)) {
            let mut sketch = Quantiles::new();
            values.iter().for_each(|value| sketch.insert(*value));
            let again = Quantiles::from_bytes(&sketch.to_bytes()).expect("own bytes");
            prop_assert_eq!(again.at(&[0.0, 0.5, 1.0]), sketch.at(&[0.0, 0.5, 1.0]));
            prop_assert_eq!(again.count(), values.len() as u64);
        }
    }
}
