//! What the system's own ledger says of an import. The producer's answer cannot tell a duplicate
//! from a new event; the ledger can.
//!
//! The ledger is read before the first event and again once the chain has covered what was
//! accepted. Events of others in between are in the difference too; the result then says so.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use streamgauge_proto::v1::{LedgerRequest, LedgerResponse};
use tokio::time::{Instant, sleep};

use crate::{client::Analytics, error::CliError};

const POLL: Duration = Duration::from_millis(100);

/// How long others' events are waited for before the import begins.
const SETTLE_BEFORE: Duration = Duration::from_secs(2);

/// The ledger's totals at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Where the partitions of the log end, of which that is known. It may lag behind a little, but
    /// never behind the head.
    pub ends: BTreeMap<i32, i64>,
    /// Sum of the heads.
    heads: u64,
    counted: u64,
    duplicate: u64,
    late: u64,
    dead_lettered: u64,
    other: u64,
    in_flight: bool,
}

impl From<&LedgerResponse> for Snapshot {
    fn from(ledger: &LedgerResponse) -> Self {
        let mut sum = Self::default();
        for partition in &ledger.partitions {
            sum.heads += u64::try_from(partition.head).unwrap_or(0);
            sum.counted += partition.counted;
            sum.duplicate += partition.duplicate;
            sum.late += partition.late;
            sum.dead_lettered += partition.dead_lettered;
            sum.other += partition.missing + partition.no_record;
            sum.in_flight |= partition.head < partition.source_end;
            // Without its end a partition is one that nobody has looked at yet.
            if partition.source_end >= 0 {
                let end = partition.source_end.max(partition.head);
                sum.ends.insert(partition.partition, end);
            }
        }
        sum
    }
}

/// How the offsets between two moments ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reconciled {
    /// In the aggregates.
    pub counted: u64,
    /// Seen before.
    pub duplicate: u64,
    /// Too old; in the dead-letter topic.
    pub late: u64,
    /// Unreadable for the consumer; in the dead-letter topic.
    pub dead_lettered: u64,
    /// Accepted and not yet covered when the wait was over.
    pub in_flight: u64,
    /// Whether events of others came in between, and are in these figures too.
    pub others: bool,
}

/// The difference of two moments, for an import of `accepted` events.
pub fn difference(before: &Snapshot, after: &Snapshot, accepted: u64) -> Reconciled {
    let covered = after.heads.saturating_sub(before.heads);
    Reconciled {
        counted: after.counted.saturating_sub(before.counted),
        duplicate: after.duplicate.saturating_sub(before.duplicate),
        late: after.late.saturating_sub(before.late),
        dead_lettered: after.dead_lettered.saturating_sub(before.dead_lettered),
        in_flight: accepted.saturating_sub(covered),
        others: covered > accepted || before.in_flight || after.other > before.other,
    }
}

/// Reads the ledger once nothing is in flight, or as it is when something always is.
///
/// # Errors
/// When analytics does not answer.
pub async fn before(analytics: &mut Analytics) -> Result<Snapshot, CliError> {
    wait_for(analytics, SETTLE_BEFORE, |now| !now.in_flight).await
}

/// Reads the ledger once it covers the accepted events, or as it is when the wait is over.
///
/// # Errors
/// When analytics does not answer.
pub async fn after(
    analytics: &mut Analytics,
    before: &Snapshot,
    accepted: u64,
    wait: Duration,
) -> Result<Snapshot, CliError> {
    let goal = before.heads + accepted;
    wait_for(analytics, wait, |now| now.heads >= goal).await
}

async fn wait_for(
    analytics: &mut Analytics,
    wait: Duration,
    enough: impl Fn(&Snapshot) -> bool,
) -> Result<Snapshot, CliError> {
    let deadline = Instant::now() + wait;
    loop {
        let answer = analytics.calls.ledger(LedgerRequest::default()).await;
        let ledger = answer
            .map_err(|status| analytics.refused(status))?
            .into_inner();
        let now = Snapshot::from(&ledger);
        if enough(&now) || Instant::now() >= deadline {
            return Ok(now);
        }
        sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use streamgauge_proto::v1::PartitionLedger;

    use super::*;

    fn snapshot(partitions: &[(i64, i64, u64, u64)]) -> Snapshot {
        let partitions = partitions
            .iter()
            .map(|(head, source_end, counted, duplicate)| PartitionLedger {
                head: *head,
                source_end: *source_end,
                counted: *counted,
                duplicate: *duplicate,
                ..PartitionLedger::default()
            })
            .collect();
        Snapshot::from(&LedgerResponse {
            partitions,
            ..LedgerResponse::default()
        })
    }

    #[test]
    fn ends_are_those_of_the_log_where_they_are_known() {
        let row = |partition, head, source_end| PartitionLedger {
            partition,
            head,
            source_end,
            ..PartitionLedger::default()
        };
        // Not loaded yet; not asked yet; ahead of what was asked a moment ago.
        let partitions = vec![row(0, 0, 7), row(1, 0, -1), row(2, 9, 8)];
        let snapshot = Snapshot::from(&LedgerResponse {
            partitions,
            ..LedgerResponse::default()
        });
        assert_eq!(snapshot.ends, BTreeMap::from([(0, 7), (2, 9)]));
    }

    #[test]
    fn the_difference_tells_duplicates() {
        let before = snapshot(&[(10, 10, 10, 0), (5, 5, 5, 0)]);
        let after = snapshot(&[(14, 14, 10, 4), (11, 11, 6, 5)]);
        let found = difference(&before, &after, 10);
        assert_eq!((found.counted, found.duplicate), (1, 9));
        assert!(!found.others && found.in_flight == 0);
    }

    #[test]
    fn others_and_what_is_under_way_are_told() {
        let before = snapshot(&[(10, 10, 10, 0)]);
        let more = snapshot(&[(30, 30, 30, 0)]);
        assert!(difference(&before, &more, 10).others);
        let less = snapshot(&[(13, 20, 13, 0)]);
        assert_eq!(difference(&before, &less, 10).in_flight, 7);
        assert!(difference(&snapshot(&[(10, 12, 10, 0)]), &more, 20).others);
    }
}
