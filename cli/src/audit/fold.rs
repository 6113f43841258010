//! What the log itself says: the fold of one partition's batches by the rule that every reader
//! obeys, and the state it was in when the store had got as far as it has. Pure.

use streamgauge_chain::{Ledger, Verdict, delta};

/// The fold of a partition of `metrics-data`.
#[derive(Clone, Debug)]
pub struct Fold {
    /// The ledger so far.
    pub ledger: Ledger,
    /// The ledger at the moment its head was the store's.
    pub at_store_head: Option<Ledger>,
    /// Records that are no batch.
    pub undecodable: u64,
    /// Retention removed the beginning: the ledger starts at `base`, not at 0.
    pub truncated: bool,
    store_head: Option<i64>,
    linked: bool,
}

impl Fold {
    /// An empty fold of a partition whose first record has this offset.
    pub fn new(low: i64, store_head: Option<i64>) -> Self {
        let mut fold = Self {
            ledger: Ledger::starting_at(0),
            at_store_head: None,
            undecodable: 0,
            truncated: low > 0,
            store_head,
            linked: low == 0,
        };
        fold.remember();
        fold
    }

    /// Takes the next record in.
    pub fn record(&mut self, payload: Option<&[u8]>) {
        let batch = payload.map(delta::decode);
        let Some(Ok(batch)) = batch else {
            self.undecodable += 1;
            return;
        };
        let Ok(range) = delta::range(&batch) else {
            self.undecodable += 1;
            return;
        };
        // Without the beginning, where the chain stands is not known until two batches follow one
        // another: the one that starts furthest on is the best guess.
        if !self.linked && range.from() > self.ledger.head() {
            self.ledger = Ledger::starting_at(range.from());
        } else if range.from() == self.ledger.head() {
            self.linked = true;
        }
        if self.ledger.offer(range, delta::outcomes(&batch)) == Verdict::Valid {
            self.remember();
        }
    }

    fn remember(&mut self) {
        if self.store_head == Some(self.ledger.head()) {
            self.at_store_head = Some(self.ledger);
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use streamgauge_chain::Outcomes;
    use streamgauge_proto::v1::DeltaBatch;

    use super::*;

    fn batch(from: i64, to: i64) -> Vec<u8> {
        let outcomes = Outcomes {
            counted: (to - from) as u64,
            ..Outcomes::default()
        };
        DeltaBatch {
            from,
            to,
            outcomes: Some(outcomes.into()),
            ..DeltaBatch::default()
        }
        .encode_to_vec()
    }

    fn fold(low: i64, store_head: Option<i64>, batches: &[(i64, i64)]) -> Fold {
        let mut fold = Fold::new(low, store_head);
        for (from, to) in batches {
            fold.record(Some(&batch(*from, *to)));
        }
        fold
    }

    #[test]
    fn valid_batches_add_up_and_void_ones_do_not() {
        let mut fold = fold(0, Some(10), &[(0, 10), (0, 10), (10, 15), (20, 30)]);
        fold.record(None);
        fold.record(Some(b"garbage"));
        assert_eq!((fold.ledger.base(), fold.ledger.head()), (0, 15));
        assert_eq!(
            (fold.ledger.valid_batches(), fold.ledger.void_batches()),
            (2, 2)
        );
        assert_eq!(fold.undecodable, 2);
        let then = fold.at_store_head.expect("passed by");
        assert_eq!((then.head(), then.outcomes().counted), (10, 10));
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
}
