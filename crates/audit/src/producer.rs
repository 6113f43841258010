//! One producer: what it received against what it answered, what it answered against what its spool took and the log
//! acknowledged, and what was acknowledged against the log.

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
    /// What the log acknowledged to it directly.
    pub acknowledged: Vec<Acknowledged>,
    /// What went by way of its spool, all zero where it has none; `None` when it does not say, as before there was a word
    /// for it.
    pub spool: Option<SpoolFacts>,
}

/// What a producer's spool took since the start, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpoolFacts {
    /// Events that earlier runs had left.
    pub waiting_at_start: u64,
    /// Events that came to it.
    pub spooled: u64,
    /// Events that wait: they are in flight.
    pub waiting: u64,
    /// Events that the log has acknowledged since.
    pub drained: u64,
    /// Events that damage has made unreadable.
    pub lost: u64,
    /// Events that the log does not take, kept in files beside the spool.
    pub put_aside: u64,
    /// What the log acknowledged to the drain.
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

/// The sum of the one side less that of the other.
fn difference(one: &[u64], other: &[u64]) -> i64 {
    let sum = |terms: &[u64]| terms.iter().copied().map(i128::from).sum::<i128>();
    let difference = sum(one) - sum(other);
    difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

fn records(acknowledged: &[Acknowledged]) -> u64 {
    let records = acknowledged.iter().map(|one| one.records);
    records.fold(0, u64::saturating_add)
}

impl SpoolFacts {
    /// Events that came less those that wait or ended; anything but 0 is a defect.
    pub fn imbalance(&self) -> i64 {
        difference(
            &[self.waiting_at_start, self.spooled],
            &[self.waiting, self.drained, self.lost, self.put_aside],
        )
    }

    /// Whether anything is or was in it.
    pub fn is_used(&self) -> bool {
        self.waiting_at_start > 0 || self.spooled > 0
    }

    /// What the log acknowledged of what was in it.
    pub fn acknowledged_records(&self) -> u64 {
        records(&self.acknowledged)
    }

    fn breaks(&self, place: &str, ends: &impl Fn(i32) -> Option<i64>) -> Vec<Break> {
        let unbacked = difference(&[self.drained], &[self.acknowledged_records()]);
        let found = [
            (self.imbalance(), What::SpoolImbalance),
            (difference(&[self.lost], &[]), What::SpoolLost),
            (unbacked.max(0), What::Unacknowledged),
        ];
        let found = found.into_iter().filter(|(by, _)| *by != 0);
        let breaks = found.map(|(by, what)| Break::of(place.to_owned(), by, what));
        breaks
            .chain(lost(place, &self.acknowledged, ends))
            .collect()
    }
}

impl ProducerFacts {
    /// Events received less those with an outcome or under way; anything but 0 is a defect.
    pub fn imbalance(&self) -> i64 {
        difference(
            &[self.received],
            &[self.accepted, self.rejected, self.failed, self.in_flight],
        )
    }

    /// What the log acknowledged to it directly.
    pub fn acknowledged_records(&self) -> u64 {
        records(&self.acknowledged)
    }

    /// Events that were accepted and are neither in the spool's account nor among what the log acknowledged. Each accepted
    /// event is one of either, and was before it was called accepted: the producer reads the two after what it has
    /// accepted, so that they can only be larger, by what was answered `retry` or not yet.
    fn unacknowledged(&self) -> i64 {
        let backed = |spool: &SpoolFacts| [spool.spooled, self.acknowledged_records()];
        let spool = self.spool.as_ref();
        spool.map_or(0, |spool| {
            difference(&[self.accepted], &backed(spool)).max(0)
        })
    }

    /// Everything that does not add up, where `ends` tells how far the source partitions reach. The producer must have
    /// been asked first: then the log can only be further on.
    pub fn breaks(&self, ends: impl Fn(i32) -> Option<i64>) -> Vec<Break> {
        let place = format!("producer {}", self.name);
        let found = [
            (self.imbalance(), What::ProducerImbalance),
            (self.unacknowledged(), What::Unacknowledged),
        ];
        let found = found.into_iter().filter(|(by, _)| *by != 0);
        let mut breaks: Vec<Break> = found
            .map(|(by, what)| Break::of(place.clone(), by, what))
            .collect();
        breaks.extend(lost(&place, &self.acknowledged, &ends));
        let spool = self.spool.iter();
        breaks
            .extend(spool.flat_map(|spool| spool.breaks(&format!("the spool of {place}"), &ends)));
        breaks
    }
}

/// What the log acknowledged and does not hold.
fn lost(
    place: &str,
    acknowledged: &[Acknowledged],
    ends: &impl Fn(i32) -> Option<i64>,
) -> Vec<Break> {
    let lost = |one: &Acknowledged| {
        // A partition that is not there any more holds nothing.
        let end = ends(one.partition).unwrap_or(0);
        // What lies before the first was not this producer's to lose.
        let since = end.max(one.first);
        (one.last >= end).then(|| Break {
            place: Some(place.to_owned()),
            ..Break::at(
                one.partition,
                one.last + 1 - since,
                since,
                What::AcknowledgedLost,
            )
        })
    };
    acknowledged.iter().filter_map(lost).collect()
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
            spool: Some(SpoolFacts::default()),
        }
    }

    /// Of its 14, nine went by way of the spool, which held three: four wait, seven were drained, one was put aside.
    fn spooling() -> ProducerFacts {
        let mut facts = facts();
        facts.acknowledged[0].records = 5;
        facts.spool = Some(SpoolFacts {
            waiting_at_start: 3,
            spooled: 9,
            waiting: 4,
            drained: 7,
            lost: 0,
            put_aside: 1,
            acknowledged: vec![Acknowledged {
                partition: 1,
                records: 8,
                first: 40,
                last: 47,
            }],
        });
        facts
    }

    #[test]
    fn what_went_by_way_of_the_spool_adds_up() {
        assert_eq!(spooling().breaks(|_| Some(114)), []);
        let more = ProducerFacts {
            accepted: 12,
            failed: 4,
            ..spooling()
        };
        assert_eq!(
            more.breaks(|_| Some(114)),
            [],
            "a retry that was written after all"
        );
        let silent = ProducerFacts {
            spool: None,
            acknowledged: Vec::new(),
            ..facts()
        };
        assert_eq!(
            silent.breaks(|_| Some(114)),
            [],
            "how much it spooled is not known"
        );
    }

    #[test]
    fn what_does_not_is_named_by_its_place() {
        type Spoil = fn(&mut ProducerFacts, &mut SpoolFacts);
        let (own, spool) = ("producer p:1", "the spool of producer p:1");
        let cases: [(&str, i64, What, Spoil); 6] = [
            (own, 5, What::Unacknowledged, |facts, _| {
                facts.acknowledged.clear();
            }),
            (own, 2, What::Unacknowledged, |_, spool| {
                (spool.spooled, spool.waiting_at_start) = (7, 5);
            }),
            (spool, 2, What::SpoolImbalance, |_, spool| spool.waiting = 2),
            (spool, -3, What::SpoolImbalance, |_, spool| {
                spool.waiting_at_start = 0;
            }),
            (spool, 4, What::SpoolLost, |_, spool| {
                (spool.waiting, spool.lost) = (0, 4);
            }),
            (spool, 7, What::Unacknowledged, |_, spool| {
                spool.acknowledged.clear();
            }),
        ];
        for (place, by, what, spoil) in cases {
            let mut facts = spooling();
            let mut spool = facts.spool.take().expect("it has one");
            spoil(&mut facts, &mut spool);
            facts.spool = Some(spool);
            let expected = Break::of(String::from(place), by, what);
            assert_eq!(facts.breaks(|_| Some(114)), [expected]);
        }
        let ends = |partition| Some(if partition == 1 { 45 } else { 114 });
        let breaks = spooling().breaks(ends);
        assert_eq!(
            breaks[0].to_string(),
            "BROKEN at partition 1 of the spool of producer p:1 by 3 since offset 45: records that were acknowledged are \
             lost: the log ends before them"
        );
    }

    #[test]
    fn accepted_events_of_which_the_log_holds_none_are_told() {
        let facts = ProducerFacts {
            received: 1_000,
            accepted: 1_000,
            spool: Some(SpoolFacts::default()),
            ..ProducerFacts::default()
        };
        let breaks = facts.breaks(|_| Some(0));
        assert_eq!(breaks.len(), 1);
        assert_eq!(
            (breaks[0].by, breaks[0].what),
            (1_000, What::Unacknowledged)
        );
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
