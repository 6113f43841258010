//! The producer's ledger: what became of every event that it read since it started.
//!
//! All terms move under one lock, once when a request's events are read and once when their fate is known, so that a
//! reader sees an account that adds up at any moment or is wrong. The lock is taken twice per request, not per event.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use streamgauge_kafka::Span;
use streamgauge_proto::v1::{AcknowledgedPartition, ProducerLedgerResponse, SpoolLedger};

use crate::intake::Intake;
use crate::publish;

/// How many events ended in each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    pub accepted: u64,
    pub rejected: u64,
    pub failed: u64,
}

/// The account since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub received: u64,
    pub ended: Ended,
    /// Events without an outcome yet.
    pub in_flight: u64,
}

impl Account {
    /// Whether every event that was received is accounted for.
    pub fn is_balanced(&self) -> bool {
        let Ended {
            accepted,
            rejected,
            failed,
        } = self.ended;
        self.received == accepted + rejected + failed + self.in_flight
    }
}

/// The account, as requests change it.
#[derive(Debug, Default)]
pub struct Ledger {
    account: Mutex<Account>,
}

impl Ledger {
    /// Events were read.
    pub fn opened(&self, events: u64) {
        let mut account = self.account.lock();
        account.received += events;
        account.in_flight += events;
    }

    /// Of the events of one request, all have ended.
    pub fn closed(&self, events: u64, ended: Ended) {
        let mut account = self.account.lock();
        account.in_flight = account.in_flight.saturating_sub(events);
        account.ended.accepted += ended.accepted;
        account.ended.rejected += ended.rejected;
        account.ended.failed += ended.failed;
    }

    /// The account at this moment.
    pub fn account(&self) -> Account {
        *self.account.lock()
    }
}

/// The ledger as an answer. It is read against the way that events take, so that it holds at any moment that
/// `accepted <= spooled + acknowledged directly`: an event is in the spool's account, or among what the log acknowledged,
/// before it is called accepted; each accepted event is so once, for one append or one acknowledgement; and all three only
/// grow. What is read later can only be too large, by events of requests that were not answered yet, or were answered
/// `retry` before the disk or the log was done.
pub fn answer(intake: &Intake) -> ProducerLedgerResponse {
    let account = intake.metrics.ledger().account();
    let spooled = intake.publishing.spooled();
    let acknowledged = intake.publishing.acknowledged();
    ProducerLedgerResponse {
        since_us: intake.since_us,
        received: account.received,
        accepted: account.ended.accepted,
        rejected: account.ended.rejected,
        failed: account.ended.failed,
        in_flight: account.in_flight,
        balanced: account.is_balanced(),
        topic: intake.topic.clone(),
        partitions: partitions(acknowledged),
        spool: Some(spool(spooled)),
    }
}

fn partitions(spans: BTreeMap<i32, Span>) -> Vec<AcknowledgedPartition> {
    let spans = spans.into_iter();
    spans
        .map(|(partition, span)| AcknowledgedPartition {
            partition,
            records: span.records,
            first_offset: span.first,
            last_offset: span.last,
        })
        .collect()
}

fn spool(spooled: publish::SpoolLedger) -> SpoolLedger {
    let account = spooled.account;
    let ended = account.waiting + account.drained + account.lost + account.put_aside;
    SpoolLedger {
        waiting_at_start: account.waiting_at_start,
        spooled: account.spooled,
        waiting: account.waiting,
        drained: account.drained,
        lost: account.lost,
        put_aside: account.put_aside,
        balanced: account.waiting_at_start + account.spooled == ended,
        partitions: partitions(spooled.spans),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_account_balances_at_every_step(
            requests in prop::collection::vec((0u64..20, 0u64..20, 0u64..20, any::<bool>()), 0..60),
        ) {
            let ledger = Ledger::default();
            let mut open = Vec::new();
            for (accepted, rejected, failed, wait) in requests {
                let ended = Ended { accepted, rejected, failed };
                let events = accepted + rejected + failed;
                ledger.opened(events);
                prop_assert!(ledger.account().is_balanced());
                open.push((events, ended));
                if !wait {
                    for (events, ended) in open.drain(..) {
                        ledger.closed(events, ended);
                        prop_assert!(ledger.account().is_balanced());
                    }
                }
            }
            let waiting: u64 = open.iter().map(|(events, _)| events).sum();
            prop_assert_eq!(ledger.account().in_flight, waiting);
        }
    }

    #[test]
    fn an_outcome_that_is_not_told_is_an_imbalance() {
        let ledger = Ledger::default();
        ledger.opened(3);
        ledger.closed(
            3,
            Ended {
                accepted: 2,
                ..Ended::default()
            },
        );
        assert!(!ledger.account().is_balanced());
    }
}
