//! Latencies of many requests in bounded memory: buckets a thirty-second apart, so that a percentile
//! is right within about 3%.

use std::time::Duration;

const SUB_BITS: u32 = 5;
const SUB_COUNT: u64 = 1 << SUB_BITS;
const BUCKETS: usize = (64 - SUB_BITS as usize + 1) * SUB_COUNT as usize;

/// A histogram of latencies in microseconds.
#[derive(Clone, Debug)]
pub struct Latencies {
    counts: Vec<u64>,
    count: u64,
    max_us: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            count: 0,
            max_us: 0,
        }
    }
}

impl Latencies {
    /// Adds one.
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(micros)] += 1;
        self.count += 1;
        self.max_us = self.max_us.max(micros);
    }

    /// The latency that a share of the requests stayed below; `None` when there was none.
    pub fn at(&self, share: f64) -> Option<Duration> {
        let rank = ((share * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(Duration::from_micros(upper(index).min(self.max_us)));
            }
        }
        None
    }

    /// The largest; `None` when there was none.
    pub fn max(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_micros(self.max_us))
    }
}

fn bucket(micros: u64) -> usize {
    let exponent = (64 - micros.leading_zeros()).saturating_sub(SUB_BITS + 1);
    (u64::from(exponent) * SUB_COUNT + (micros >> exponent)) as usize
}

/// The largest value that falls into a bucket.
fn upper(index: usize) -> u64 {
    let index = index as u64;
    let exponent = (index / SUB_COUNT).saturating_sub(1);
    let start = (index - exponent * SUB_COUNT) << exponent;
    start + ((1 << exponent) - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_of_a_ramp() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.at(0.5), latencies.max()), (None, None));
        for millis in 1..=1000 {
            latencies.record(Duration::from_millis(millis));
        }
        for (share, expected_ms) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found_ms = latencies.at(share).expect("some").as_secs_f64() * 1000.0;
            assert!(
                (found_ms / expected_ms - 1.0).abs() < 0.035,
                "{share}: {found_ms}"
            );
        }
        assert_eq!(latencies.max(), Some(Duration::from_secs(1)));
    }

    proptest! {
        #[test]
        fn each_value_lies_in_its_bucket(micros in any::<u64>()) {
            let index = bucket(micros);
            prop_assert!(index < BUCKETS);
            prop_assert!(upper(index) >= micros);
            prop_assert!(index == 0 || upper(index - 1) < micros);
            prop_assert!(upper(index) - micros <= micros / SUB_COUNT);
        }
    }
}
