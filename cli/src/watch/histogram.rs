//! Latencies out of the buckets that a service exports: what fell into each between two scrapes, and
//! below which latency a share of it lies.

use serde::Serialize;

use super::openmetrics::Series;

/// Largest count of a bucket that is believed: beyond it a sum of floats no longer counts.
const COUNT_MAX: f64 = 9e15;

/// How many were at most so long, by upper bound in seconds, in ascending order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    buckets: Vec<(f64, f64)>,
}

/// A latency that a share stayed below.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantile {
    /// In seconds.
    pub seconds: f64,
    /// Whether it is longer than the largest bound, which `seconds` is then.
    pub beyond: bool,
}

/// What is shown of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// How many there were.
    pub count: f64,
    /// The median.
    pub p50: Quantile,
    /// What one in a hundred exceeds.
    pub p99: Quantile,
}

impl Histogram {
    /// Adds up the buckets of all these series.
    pub fn of<'a>(series: impl Iterator<Item = &'a Series>) -> Self {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        let bounded = series.filter_map(|series| {
            let bound: f64 = series.label("le")?.parse().ok()?;
            let believed = bound >= 0.0 && (0.0..=COUNT_MAX).contains(&series.value);
            believed.then_some((bound, series.value))
        });
        for (bound, count) in bounded {
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        Self { buckets }
    }

    /// What came in since `before`; `None` when the service started anew in between.
    pub fn since(&self, before: &Self) -> Option<Self> {
        let same_bounds = self.buckets.len() == before.buckets.len();
        let pairs = self.buckets.iter().zip(&before.buckets);
        let differences = pairs.map(|(now, then)| {
            let grew = now.0 == then.0 && now.1 >= then.1;
            grew.then_some((now.0, now.1 - then.1))
        });
        let buckets = differences.collect::<Option<Vec<_>>>()?;
        same_bounds.then_some(Self { buckets })
    }

    /// How many there were.
    pub fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |(_, count)| *count)
    }

    /// Median and 99th percentile; `None` when there was nothing.
    pub fn quantiles(&self) -> Option<Quantiles> {
        Some(Quantiles {
            count: self.count(),
            p50: self.at(0.5)?,
            p99: self.at(0.99)?,
        })
    }

    /// Interpolated within its bucket, as Prometheus does.
    fn at(&self, share: f64) -> Option<Quantile> {
        let count = self.count();
        if count <= 0.0 {
            return None;
        }
        let rank = share * count;
        let (mut lower, mut below) = (0.0, 0.0);
        for &(bound, upto) in &self.buckets {
            if upto >= rank && upto > below {
                let beyond = bound.is_infinite();
                let seconds = if beyond {
                    lower
                } else {
                    lower + (bound - lower) * ((rank - below) / (upto - below))
                };
                return Some(Quantile { seconds, beyond });
            }
            // Counts that shrink are no histogram's; what was seen stands.
            (lower, below) = (bound, upto.max(below));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::watch::openmetrics::Scrape;

    const NAME: &str = "event_end_to_end_seconds_bucket";

    fn histogram(buckets: &[(&str, f64)]) -> Histogram {
        let lines = buckets
            .iter()
            .map(|(le, count)| format!("{NAME}{{le=\"{le}\"}} {count}\n"));
        let text: String = lines.chain([String::from("# EOF\n")]).collect();
        let scrape = Scrape::parse(text.as_bytes()).expect("a scrape");
        Histogram::of(scrape.all(NAME).iter())
    }

    fn at(histogram: &Histogram, share: f64) -> Option<f64> {
        histogram.at(share).map(|found| found.seconds)
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let found = histogram(&[("0.1", 0.0), ("0.2", 100.0), ("+Inf", 100.0)]);
        assert!((at(&found, 0.5).expect("some") - 0.15).abs() < 1e-9);
        let found = histogram(&[
            ("0.1", 50.0),
            ("0.2", 50.0),
            ("0.4", 100.0),
            ("+Inf", 100.0),
        ]);
        assert_eq!(at(&found, 0.5), Some(0.1));
        assert!((at(&found, 0.75).expect("some") - 0.3).abs() < 1e-9);
    }

    #[test]
    fn beyond_the_largest_bound_it_says_so() {
        let found = histogram(&[("0.1", 1.0), ("60.0", 1.0), ("+Inf", 100.0)]);
        let quantile = found.at(0.99).expect("some");
        assert_eq!((quantile.seconds, quantile.beyond), (60.0, true));
    }

    #[test]
    fn large_bounds_and_counts_do_not_overflow() {
        let found = histogram(&[("7.9e295", 1.1e14)]);
        assert!(at(&found, 0.99).expect("some") < 7.9e295);
    }

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(Histogram::default().quantiles(), None);
        assert_eq!(histogram(&[("0.1", 0.0), ("+Inf", 0.0)]).quantiles(), None);
    }

    #[test]
    fn between_two_scrapes_is_the_difference() {
        let before = histogram(&[("0.1", 10.0), ("+Inf", 10.0)]);
        let now = histogram(&[("0.1", 10.0), ("+Inf", 14.0)]);
        assert_eq!(now.since(&before).map(|found| found.count()), Some(4.0));
        assert_eq!(before.since(&now), None, "it started anew");
        let other = histogram(&[("0.2", 1.0), ("+Inf", 1.0)]);
        assert_eq!(now.since(&other), None, "another version's buckets");
    }

    #[test]
    fn stages_of_one_name_add_up() {
        let text =
            format!("{NAME}{{le=\"1\"}} 1\n{NAME}{{le=\"1.0\"}} 2\n{NAME}{{le=\"x\"}} 9\n# EOF\n");
        let scrape = Scrape::parse(text.as_bytes()).expect("a scrape");
        assert_eq!(Histogram::of(scrape.all(NAME).iter()).count(), 3.0);
    }

    proptest! {
        #[test]
        fn any_buckets_give_a_bounded_answer(buckets in prop::collection::vec((any::<f64>(), any::<f64>()), 0..20)) {
            let lines = buckets.iter().map(|(le, count)| format!("{NAME}{{le=\"{le}\"}} {count}\n"));
            let text: String = lines.chain([String::from("# EOF\n")]).collect();
            let scrape = Scrape::parse(text.as_bytes()).expect("a scrape");
            let found = Histogram::of(scrape.all(NAME).iter());
            for quantile in found.quantiles().iter().flat_map(|found| [found.p50, found.p99]) {
                prop_assert!(quantile.seconds.is_finite() && quantile.seconds >= 0.0, "{quantile:?}");
            }
        }
    }
}
