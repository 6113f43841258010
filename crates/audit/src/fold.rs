//! What the log itself says: the fold of one partition's batches by the rule that every reader obeys, and the state it
//! was in when the store had got as far as it has.

use std::collections::VecDeque;

use streamgauge_chain::{Ledger, Outcomes, Range, Verdict, delta};

use crate::notes::{Counted, Met, Notes};

/// The valid batches that cover a range of source offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// The range asked for.
    pub asked: (i64, i64),
    /// The whole batches that cover it; what no batch covers keeps the ends asked for.
    pub range: (i64, i64),
    /// How the offsets of these batches ended.
    pub outcomes: Outcomes,
    /// How many batches there are.
    pub batches: u64,
}

impl Covered {
    fn new(asked: (i64, i64)) -> Self {
        Self {
            asked,
            range: asked,
            outcomes: Outcomes::default(),
            batches: 0,
        }
    }

    fn valid(&mut self, range: Range, outcomes: Outcomes) {
        let (from, to) = self.asked;
        if range.from() < to && from < range.to() {
            self.range = (self.range.0.min(range.from()), self.range.1.max(range.to()));
            self.outcomes += outcomes;
            self.batches += 1;
        }
    }
}

/// The fold of a partition of `metrics-data`.
#[derive(Clone, Debug)]
pub struct Fold {
    /// The ledger so far.
    pub ledger: Ledger,
    /// The ledger at the moment its head was the store's.
    pub at_store_head: Option<Ledger>,
    /// Retention removed the beginning: the ledger starts at `base`, not at 0.
    pub truncated: bool,
    /// What else was met in the log.
    pub notes: Notes,
    /// What covers the range asked for.
    pub covered: Option<Covered>,
    /// The store is behind the ledgers that are remembered: it cannot be compared.
    pub store_unknown: bool,
    store_head: Option<i64>,
    linked: bool,
    /// Batches that count, to know a copy by.
    counted: Counted,
    /// Ledgers behind the store's head, for the next comparison.
    trail: VecDeque<Ledger>,
    trail_max: usize,
}

impl Fold {
    /// An empty fold of a partition whose first record has this offset.
    pub fn new(low: i64, store_head: Option<i64>) -> Self {
        let mut fold = Self::of(Ledger::starting_at(0), Notes::default());
        fold.truncated = low > 0;
        fold.linked = low == 0;
        fold.store_head = store_head;
        fold.remember();
        fold
    }

    /// The fold of somebody who has followed the log and kept its ledger.
    pub const fn of(ledger: Ledger, notes: Notes) -> Self {
        Self {
            ledger,
            at_store_head: None,
            truncated: false,
            notes,
            covered: None,
            store_unknown: false,
            store_head: None,
            linked: true,
            counted: Counted::of(0),
            trail: VecDeque::new(),
            trail_max: 0,
        }
    }

    /// Also adds up the batches that cover `[from, to)`.
    pub fn over(mut self, range: Option<(i64, i64)>) -> Self {
        self.covered = range.map(Covered::new);
        self
    }

    /// Remembers at most so many of the batches that count, to know a copy of one by.
    pub fn knowing(mut self, batches_max: usize) -> Self {
        self.counted = Counted::of(batches_max);
        self
    }

    /// Remembers at most so many ledgers, so that the store can be compared again when it has come further.
    pub fn with_trail(mut self, ledgers_max: usize) -> Self {
        self.trail_max = ledgers_max;
        self.trail.push_back(self.ledger);
        self
    }

    /// The store has come to `store_head` since it was last compared.
    pub fn compare_again(&mut self, store_head: Option<i64>) {
        (self.store_head, self.at_store_head) = (store_head, None);
        self.store_unknown = false;
        let Some(head) = store_head else {
            return;
        };
        while self
            .trail
            .front()
            .is_some_and(|ledger| ledger.head() < head)
            && self.trail.len() > 1
        {
            self.trail.pop_front();
        }
        let known = self.trail.iter().find(|ledger| ledger.head() == head);
        self.at_store_head = known.copied();
        let oldest = self.trail.front();
        self.store_unknown = oldest.is_some_and(|ledger| head < ledger.head());
    }

    /// Takes the record at `at` of `metrics-data` in.
    pub fn record(&mut self, at: i64, payload: Option<&[u8]>) {
        let Some((payload, Ok(batch))) = payload.map(|payload| (payload, delta::decode(payload)))
        else {
            self.notes.undecodable(at);
            return;
        };
        let Ok(range) = delta::range(&batch) else {
            self.notes.undecodable(at);
            return;
        };
        // Without the beginning, where the chain stands is not known until two batches follow one
        // another: the one that starts furthest on is the best guess.
        if !self.linked && range.from() > self.ledger.head() {
            self.ledger = Ledger::starting_at(range.from());
            self.counted.clear();
        } else if range.from() == self.ledger.head() {
            self.linked = true;
        }
        let (head, outcomes) = (self.ledger.head(), delta::outcomes(&batch));
        let met = Met {
            at,
            range,
            outcomes,
            payload,
        };
        match self.ledger.offer(range, outcomes) {
            Verdict::Valid => {
                self.notes.valid(&met, &batch, &mut self.counted);
                self.valid(range, outcomes);
            }
            // Until then it is not known either what lies beyond the head.
            Verdict::Void if self.linked => self.notes.void(head, &met, &self.counted),
            Verdict::Void => {}
        }
    }

    fn valid(&mut self, range: Range, outcomes: Outcomes) {
        if let Some(covered) = &mut self.covered {
            covered.valid(range, outcomes);
        }
        self.remember();
    }

    fn remember(&mut self) {
        if self.store_head == Some(self.ledger.head()) {
            self.at_store_head = Some(self.ledger);
        }
        if self.trail_max > 0 {
            // The store never goes back: what lies before it is not asked for again.
            if self
                .store_head
                .is_some_and(|head| self.ledger.head() <= head)
            {
                self.trail.clear();
            }
            if self.trail.len() >= self.trail_max {
                self.trail.pop_front();
            }
            self.trail.push_back(self.ledger);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use streamgauge_proto::v1::{Cell, DeltaBatch, SeriesDelta, TypeCount};

    use super::*;
    use crate::notes::{Stray, Strays};

    fn batch(from: i64, to: i64) -> DeltaBatch {
        let counted = (to - from) as u64;
        DeltaBatch {
            from,
            to,
            outcomes: Some(
                Outcomes {
                    counted,
                    ..Outcomes::default()
                }
                .into(),
            ),
            strings: vec![String::from("click")],
            types: vec![TypeCount {
                event_type: 0,
                count: counted,
            }],
            ..DeltaBatch::default()
        }
    }

    fn record(fold: &mut Fold, batches: &[(i64, i64)]) {
        for (at, (from, to)) in (0..).zip(batches) {
            fold.record(at, Some(&batch(*from, *to).encode_to_vec()));
        }
    }

    fn fold(low: i64, store_head: Option<i64>, batches: &[(i64, i64)]) -> Fold {
        let mut fold = Fold::new(low, store_head);
        record(&mut fold, batches);
        fold
    }

    #[test]
    fn valid_batches_add_up_and_void_ones_do_not() {
        let mut fold = fold(0, Some(10), &[(0, 10), (0, 10), (10, 15), (20, 30)]);
        fold.record(4, None);
        fold.record(5, Some(b"garbage"));
        assert_eq!((fold.ledger.base(), fold.ledger.head()), (0, 15));
        assert_eq!(
            (fold.ledger.valid_batches(), fold.ledger.void_batches()),
            (2, 2)
        );
        assert_eq!(fold.notes.spots().undecodable.count(), 2);
        let then = fold.at_store_head.expect("passed by");
        assert_eq!((then.head(), then.outcomes().counted), (10, 10));
        assert_eq!(fold.notes.contents(), None);
    }

    #[test]
    fn a_batch_beyond_the_head_is_told_until_the_chain_has_reached_it() {
        let mut found = fold(0, None, &[(0, 10), (20, 30), (30, 40)]);
        assert_eq!(
            found.notes.strays().waiting(),
            Some(Stray { from: 20, at: 1 })
        );
        assert_eq!(found.notes.strays().count(), 2);
        record(&mut found, &[(10, 25)]);
        assert_eq!(found.notes.strays().waiting(), None);
        assert_eq!(
            found.notes.strays().first(),
            Some(Stray { from: 20, at: 1 })
        );
        let zombie = fold(0, None, &[(0, 10), (0, 7), (10, 20)]);
        assert_eq!(zombie.notes.strays(), &Strays::default());
    }

    #[test]
    fn a_batch_whose_contents_are_not_what_it_counts_is_told() {
        let mut forged = batch(10, 20);
        forged.types.clear();
        let mut fold = fold(0, None, &[(0, 10)]);
        fold.record(1, Some(&forged.encode_to_vec()));
        fold.record(2, Some(&batch(20, 30).encode_to_vec()));
        assert_eq!(fold.notes.contents(), Some((10, 10)));
    }

    #[test]
    fn the_canary_s_events_are_counted_beside_users_events() {
        let series = |name: &str, count| SeriesDelta {
            series: name.to_owned(),
            cells: vec![Cell {
                count,
                ..Cell::default()
            }],
        };
        let contents = |counts: &[(&str, u64)]| {
            let mut sent = batch(0, 10);
            sent.series = counts.iter().map(|(name, n)| series(name, *n)).collect();
            let mut fold = Fold::new(0, None);
            fold.record(0, Some(&sent.encode_to_vec()));
            fold.notes.contents()
        };
        assert_eq!(contents(&[("all", 7), ("canary", 3)]), None);
        assert_eq!(contents(&[("canary", 10)]), None);
        assert_eq!(contents(&[("all", 7), ("canary", 2)]), Some((0, 1)));
        assert_eq!(contents(&[("all", 10), ("canary", 3)]), Some((0, -3)));
    }

    #[test]
    fn a_range_is_widened_to_whole_batches() {
        let mut fold = Fold::new(0, None).over(Some((12, 22)));
        record(
            &mut fold,
            &[(0, 10), (10, 15), (15, 20), (20, 30), (30, 31)],
        );
        let covered = fold.covered.expect("asked for");
        assert_eq!((covered.range, covered.batches), ((10, 30), 3));
        assert_eq!(covered.outcomes.counted, 20);
    }

    #[test]
    fn a_store_that_is_empty_agrees_with_an_empty_log() {
        assert!(fold(0, Some(0), &[(0, 5)]).at_store_head.is_some());
        assert!(fold(0, Some(3), &[(0, 5)]).at_store_head.is_none());
    }

    #[test]
    fn a_log_without_its_beginning_starts_where_it_links() {
        let fold = fold(7, None, &[(80, 90), (100, 110), (110, 120), (150, 160)]);
        assert!(fold.truncated);
        assert_eq!((fold.ledger.base(), fold.ledger.head()), (100, 120));
        assert_eq!(fold.ledger.imbalance(), 0);
    }

    #[test]
    fn the_store_may_come_further_later() {
        let mut fold = Fold::new(0, Some(10)).with_trail(8);
        record(&mut fold, &[(0, 10), (10, 20), (20, 30)]);
        assert!(fold.at_store_head.is_some());
        for (head, known) in [(20, true), (20, true), (25, false), (30, true)] {
            fold.compare_again(Some(head));
            assert_eq!(fold.at_store_head.is_some(), known, "{head}");
        }
        record(&mut fold, &[(30, 40)]);
        fold.compare_again(Some(40));
        assert_eq!(fold.at_store_head.expect("known").head(), 40);
        assert!(!fold.store_unknown);
        fold.compare_again(Some(20));
        assert!(fold.store_unknown, "what lies so far back is forgotten");
    }

    proptest! {
        /// Whatever one batch is left out of a chain, the fold names where and how much.
        #[test]
        fn a_batch_that_is_left_out_is_named(lengths in prop::collection::vec(1i64..20, 3..40), which in any::<prop::sample::Index>()) {
            let mut at = 0;
            let mut chain: Vec<(i64, i64)> = lengths.iter().map(|length| { at += length; (at - length, at) }).collect();
            // The last one is missed by the source's end alone.
            let gone = chain.remove(which.index(lengths.len() - 1));
            let fold = fold(0, None, &chain);
            prop_assert_eq!(fold.ledger.head(), gone.0);
            prop_assert_eq!(fold.notes.strays().waiting().map(|stray| stray.from), Some(gone.1));
        }

        /// The batches that cover a range tile it.
        #[test]
        fn what_covers_a_range_adds_up(lengths in prop::collection::vec(1i64..20, 1..40), from in 0i64..400, length in 1i64..400) {
            let mut at = 0;
            let chain: Vec<(i64, i64)> = lengths.iter().map(|length| { at += length; (at - length, at) }).collect();
            let to = (from + length).min(at);
            prop_assume!(from < to);
            let mut fold = Fold::new(0, None).over(Some((from, to)));
            record(&mut fold, &chain);
            let covered = fold.covered.expect("asked for");
            prop_assert!(covered.range.0 <= from && to <= covered.range.1);
            prop_assert_eq!(covered.outcomes.total(), Some((covered.range.1 - covered.range.0) as u64));
        }
    }
}
