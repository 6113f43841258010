//! One producer: what it received against what it answered, and what it acknowledged against the log.

use crate::{Break, What};

/// What a producer says of itself since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerFacts {
    /// Its address, or whatever names it.
    pub name: String,
    /// Events read from requests.
    pub received: u64,
    /// Events that were acknowledged to clients.
    pub accepted: u64,
    /// Events that broke a rule.
    pub rejected: u64,
    /// Valid events that were not acknowledged.
    pub failed: u64,
    /// Events without an outcome yet.
    pub in_flight: u64,
    /// What the log acknowledged to it.
    pub acknowledged: Vec<Acknowledged>,
}

/// What the log acknowledged to a producer, of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The partition.
    pub partition: i32,
    /// Records.
    pub records: u64,
    /// The first offset; -1 when none was told.
    pub first: i64,
    /// The last offset; -1 when none was told.
    pub last: i64,
}

impl ProducerFacts {
    /// Events received less those with an outcome or under way; anything but 0 is a defect.
    pub fn imbalance(&self) -> i64 {
        let ended = [self.accepted, self.rejected, self.failed, self.in_flight];
        let ended = ended.into_iter().map(i128::from).sum::<i128>();
        let difference = i128::from(self.received) - ended;
        difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    /// Everything that does not add up, where `ends` tells how far the source partitions reach. The producer must have
    /// been asked first: then the log can only be further on.
    pub fn breaks(&self, ends: impl Fn(i32) -> Option<i64>) -> Vec<Break> {
        let place = || format!("producer {}", self.name);
        let mut breaks = Vec::new();
        if self.imbalance() != 0 {
            breaks.push(Break::of(
                place(),
                self.imbalance(),
                What::ProducerImbalance,
            ));
        }
        for one in &self.acknowledged {
            // A partition that is not there any more holds nothing.
            let end = ends(one.partition).unwrap_or(0);
            if one.last >= end {
                // What lies before the first was not this producer's to lose.
                let since = end.max(one.first);
                breaks.push(Break {
                    place: Some(place()),
                    ..Break::at(
                        one.partition,
                        one.last + 1 - since,
                        since,
                        What::AcknowledgedLost,
                    )
                });
            }
        }
        breaks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> ProducerFacts {
        ProducerFacts {
            name: String::from("p:1"),
            received: 20,
            accepted: 14,
            rejected: 3,
            failed: 2,
            in_flight: 1,
            acknowledged: vec![Acknowledged {
                partition: 2,
                records: 14,
                first: 100,
                last: 113,
            }],
        }
    }

    #[test]
    fn what_the_log_holds_is_not_lost() {
        assert_eq!(facts().breaks(|_| Some(114)), []);
        assert_eq!(ProducerFacts::default().breaks(|_| None), []);
    }

    #[test]
    fn what_the_log_does_not_hold_is_named() {
        let breaks = facts().breaks(|partition| (partition == 2).then_some(110));
        assert_eq!(breaks.len(), 1);
        assert_eq!(
            breaks[0].to_string(),
            "BROKEN at partition 2 of producer p:1 by 4 since offset 110: records that were acknowledged are lost: \
             the log ends before them"
        );
        let breaks = facts().breaks(|_| None);
        assert_eq!((breaks[0].by, breaks[0].since), (14, Some(100)));
    }

    #[test]
    fn an_event_without_an_outcome_is_an_imbalance() {
        let facts = ProducerFacts {
            failed: 0,
            ..facts()
        };
        let breaks = facts.breaks(|_| Some(114));
        assert_eq!((breaks[0].what, breaks[0].by), (What::ProducerImbalance, 2));
    }
}
