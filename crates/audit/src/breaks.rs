//! What does not add up, and how that is said.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What does not add up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Break {
    /// Where, when it is a partition.
    pub partition: Option<i32>,
    /// Where, when it is something else: a producer, the store's rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// By how many events.
    pub by: i64,
    /// From which source offset on, where one can be told.
    pub since: Option<i64>,
    /// What disagrees with what.
    pub what: What,
}

/// What disagrees with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The terms of the batches do not add up to their ranges.
    Imbalance,
    /// Batches count offsets that the source does not have.
    BeyondSource,
    /// The chain stops, and batches that lie beyond it are there.
    BatchesGone,
    /// A valid batch adds another number of events to its series than it counts.
    BatchContents,
    /// Fewer dead letters than the batches count.
    DeadLetters,
    /// Retention took batches that the store had not applied.
    NotApplied,
    /// The store is at an offset that the chain never was at.
    StoreOffChain,
    /// The store counts otherwise than the batches that it applied.
    StoreDiffers,
    /// The store's own terms do not add up.
    StoreImbalance,
    /// The store's row is not the one that was written.
    StoreRow,
    /// The store's rows add up to another number of events than its chains, or the rebuild that made the rows, counted.
    Aggregates,
    /// The store's rows of one length add up otherwise than those of another over the same time.
    Tiers,
    /// What a producer received is not what it accepted, rejected and failed.
    ProducerImbalance,
    /// A producer accepted more than its spool took and the log acknowledged, or its spool drained more than that.
    Unacknowledged,
    /// What a spool took is not what waits in it, was drained, is lost and was put aside.
    SpoolImbalance,
    /// A spool was damaged, and accepted events are lost.
    SpoolLost,
    /// A producer acknowledged records that the log does not hold.
    AcknowledgedLost,
}

/// Which part of the pipeline a break lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The producer.
    Producer,
    /// The batches and the dead letters.
    Log,
    /// The terms of the ledger that a service keeps.
    Ledger,
    /// The store.
    Store,
}

impl What {
    /// Every one, in the order of the pipeline.
    pub const ALL: [Self; 17] = [
        Self::Imbalance,
        Self::BeyondSource,
        Self::BatchesGone,
        Self::BatchContents,
        Self::DeadLetters,
        Self::NotApplied,
        Self::StoreOffChain,
        Self::StoreDiffers,
        Self::StoreImbalance,
        Self::StoreRow,
        Self::Aggregates,
        Self::Tiers,
        Self::ProducerImbalance,
        Self::Unacknowledged,
        Self::SpoolImbalance,
        Self::SpoolLost,
        Self::AcknowledgedLost,
    ];

    /// The name in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Imbalance => "imbalance",
            Self::BeyondSource => "beyond_source",
            Self::BatchesGone => "batches_gone",
            Self::BatchContents => "batch_contents",
            Self::DeadLetters => "dead_letters",
            Self::NotApplied => "not_applied",
            Self::StoreOffChain => "store_off_chain",
            Self::StoreDiffers => "store_differs",
            Self::StoreImbalance => "store_imbalance",
            Self::StoreRow => "store_row",
            Self::Aggregates => "aggregates",
            Self::Tiers => "tiers",
            Self::ProducerImbalance => "producer_imbalance",
            Self::Unacknowledged => "unacknowledged",
            Self::SpoolImbalance => "spool_imbalance",
            Self::SpoolLost => "spool_lost",
            Self::AcknowledgedLost => "acknowledged_lost",
        }
    }

    /// A sentence.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Imbalance => "the terms of the batches do not add up to the offsets they cover",
            Self::BeyondSource => "the batches count offsets that the source does not have",
            Self::BatchesGone => {
                "the chain stops here and batches beyond it are there: a batch was removed from metrics-data, or one \
                 was added by hand"
            }
            Self::BatchContents => {
                "a batch adds another number of events to its series than it counts: no consumer wrote it"
            }
            Self::DeadLetters => "dead letters that the batches count are not in their topic",
            Self::NotApplied => "metrics-data was cut before the store had applied what is gone",
            Self::StoreOffChain => "the store stands at an offset that the chain never stood at",
            Self::StoreDiffers => "the store counts otherwise than the batches that it applied",
            Self::StoreImbalance => "the store's own terms do not add up",
            Self::StoreRow => "the store's chain is not as it was written",
            Self::Aggregates => {
                "the rows of series `all` add up to another number of events than the chains counted, with \
                 what a rebuild counted otherwise"
            }
            Self::Tiers => "rows over the same time add up otherwise than in longer buckets",
            Self::ProducerImbalance => "received is not accepted + rejected + failed + in flight",
            Self::Unacknowledged => {
                "more events are called safe than the log acknowledged and the spool took"
            }
            Self::SpoolImbalance => {
                "what waited and came is not what waits + was drained + is lost + was put aside"
            }
            Self::SpoolLost => {
                "the spool is damaged: events that were accepted cannot be read any more"
            }
            Self::AcknowledgedLost => {
                "records that were acknowledged are lost: the log ends before them"
            }
        }
    }

    /// Which part of the pipeline it lies in.
    pub const fn stage(self) -> Stage {
        match self {
            Self::Imbalance => Stage::Ledger,
            Self::BeyondSource | Self::BatchesGone | Self::BatchContents | Self::DeadLetters => {
                Stage::Log
            }
            Self::NotApplied
            | Self::StoreOffChain
            | Self::StoreDiffers
            | Self::StoreImbalance
            | Self::StoreRow
            | Self::Aggregates
            | Self::Tiers => Stage::Store,
            Self::ProducerImbalance
            | Self::Unacknowledged
            | Self::SpoolImbalance
            | Self::SpoolLost
            | Self::AcknowledgedLost => Stage::Producer,
        }
    }
}

impl Break {
    /// A break of a partition.
    pub const fn at(partition: i32, by: i64, since: i64, what: What) -> Self {
        Self {
            partition: Some(partition),
            place: None,
            by,
            since: Some(since),
            what,
        }
    }

    /// A break of something that is no partition.
    pub const fn of(place: String, by: i64, what: What) -> Self {
        Self {
            partition: None,
            place: Some(place),
            by,
            since: None,
            what,
        }
    }
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BROKEN at ")?;
        match (&self.partition, &self.place) {
            (Some(partition), Some(place)) => write!(f, "partition {partition} of {place}")?,
            (Some(partition), None) => write!(f, "partition {partition}")?,
            (None, Some(place)) => f.write_str(place)?,
            (None, None) => f.write_str("an unknown place")?,
        }
        write!(f, " by {}", self.by)?;
        if let Some(since) = self.since {
            write!(f, " since offset {since}")?;
        }
        write!(f, ": {}", self.what.sentence())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_break_says_where_by_how_much_and_since_when() {
        let found = Break::at(3, 10, 40, What::BatchesGone).to_string();
        assert!(
            found.starts_with("BROKEN at partition 3 by 10 since offset 40: the chain stops"),
            "{found}"
        );
        let found = Break::of(String::from("producer p:1"), -2, What::ProducerImbalance);
        assert_eq!(
            found.to_string(),
            "BROKEN at producer p:1 by -2: received is not accepted + rejected + failed + in flight"
        );
    }

    #[test]
    fn each_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            What::ALL.into_iter().map(What::as_str).collect();
        assert_eq!(names.len(), What::ALL.len());
    }
}
