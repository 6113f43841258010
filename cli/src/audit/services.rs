//! What the services say: asked before the log is read, so that the log can only be further on.

use std::time::Duration;

use streamgauge_audit::{
    Acknowledged, Pair, ProducerFacts, Rebuilt, Shift, SpoolFacts, StoreSums, Whole,
};
use streamgauge_proto::v1::{
    AcknowledgedPartition, LedgerRequest, LedgerResponse, PartitionLedger, ProducerLedgerRequest,
    ProducerLedgerResponse, SpoolLedger, StoreRebuilt,
    producer_ledger_client::ProducerLedgerClient,
};

use crate::{
    client::{Analytics, connect, status_cause},
    error::{CliError, describe},
};

/// Whom to ask.
pub struct Services {
    /// The address of analytics, unless the store is left out.
    pub analytics: Option<String>,
    /// The addresses of the producers.
    pub producers: Vec<String>,
    /// How long to wait for each.
    pub timeout: Duration,
}

/// What they said.
pub struct Said {
    /// The store.
    pub store: Store,
    /// The producers that answered.
    pub producers: Vec<ProducerFacts>,
    /// Why others did not.
    pub silent_producers: Vec<String>,
}

/// What the store says.
pub enum Store {
    /// Its chains, of the partitions that it has heard of, and what its rows add up to.
    Answered {
        /// The chains.
        rows: Vec<PartitionLedger>,
        /// The sums; `None` when they were not added up.
        sums: Option<StoreSums>,
        /// What analytics remarks.
        remarks: Vec<String>,
    },
    /// Nothing; the reason.
    Silent(String),
    /// It is not asked.
    LeftOut,
}

impl Store {
    /// A partition that a store does not mention is one of which it has applied nothing.
    pub fn partition(&self, partition: i32) -> Option<PartitionLedger> {
        let Self::Answered { rows, .. } = self else {
            return None;
        };
        let row = rows.iter().find(|row| row.partition == partition);
        Some(row.cloned().unwrap_or(PartitionLedger {
            partition,
            ..PartitionLedger::default()
        }))
    }
}

impl Services {
    /// Asks them all.
    pub async fn ask(&self) -> Said {
        let mut said = Said {
            store: self.store().await,
            producers: Vec::new(),
            silent_producers: Vec::new(),
        };
        for address in &self.producers {
            match self.producer(address).await {
                Ok(facts) => said.producers.push(facts),
                Err(error) => said.silent_producers.push(describe(&error)),
            }
        }
        said
    }

    async fn store(&self) -> Store {
        let Some(address) = &self.analytics else {
            return Store::LeftOut;
        };
        let ask = async {
            let mut analytics = Analytics::connect(address, self.timeout).await?;
            let request = LedgerRequest { check_store: true };
            let answer = analytics.calls.ledger(request).await;
            answer.map_err(|status| analytics.refused(status))
        };
        match ask.await {
            Ok(answer) => answered(answer.into_inner()),
            Err(error) => Store::Silent(describe(&error)),
        }
    }

    async fn producer(&self, address: &str) -> Result<ProducerFacts, CliError> {
        const SERVICE: &str = "the producer";
        let channel = connect(SERVICE, address, self.timeout).await?;
        let answer = ProducerLedgerClient::new(channel)
            .read(ProducerLedgerRequest {})
            .await
            .map_err(|status| CliError::unreachable(SERVICE, address, status_cause(status)))?;
        Ok(producer_facts(address, answer.into_inner()))
    }
}

/// The rows as they were read back, where they were: what analytics keeps in memory is only as good as that.
fn answered(answer: LedgerResponse) -> Store {
    let Some(check) = answer.store else {
        return Store::Answered {
            rows: answer.partitions,
            sums: None,
            remarks: answer.remarks,
        };
    };
    let whole = check.whole.map(|whole| Whole {
        tier_s: i64::from(whole.tier_s),
        events: whole.events,
        is_complete: whole.complete,
    });
    let pair = |pair: streamgauge_proto::v1::StorePair| Pair {
        finer_s: i64::from(pair.finer_s),
        coarser_s: i64::from(pair.coarser_s),
        since_s: pair.since_s,
        finer: pair.finer,
        coarser: pair.coarser,
    };
    let sums = whole.map(|whole| StoreSums {
        counted: check.counted,
        rebuilt: check.rebuilt.map(rebuilt),
        whole: Some(whole),
        pairs: check.pairs.into_iter().map(pair).collect(),
    });
    Store::Answered {
        rows: check.rows,
        sums,
        remarks: answer.remarks,
    }
}

fn rebuilt(told: StoreRebuilt) -> Rebuilt {
    let parts = told.partitions.into_iter().map(|part| {
        let shift = Shift {
            counted: part.counted,
            duplicate: part.duplicate,
            late: part.late,
            dead_lettered: part.dead_lettered,
            missing: part.missing,
            no_record: part.no_record,
        };
        (part.partition, shift)
    });
    Rebuilt {
        generation: told.generation,
        partitions: parts.collect(),
    }
}

fn producer_facts(address: &str, answer: ProducerLedgerResponse) -> ProducerFacts {
    ProducerFacts {
        name: address.to_owned(),
        received: answer.received,
        accepted: answer.accepted,
        rejected: answer.rejected,
        failed: answer.failed,
        in_flight: answer.in_flight,
        acknowledged: acknowledged(answer.partitions),
        spool: answer.spool.map(spool_facts),
    }
}

fn spool_facts(spool: SpoolLedger) -> SpoolFacts {
    SpoolFacts {
        waiting_at_start: spool.waiting_at_start,
        spooled: spool.spooled,
        waiting: spool.waiting,
        drained: spool.drained,
        lost: spool.lost,
        put_aside: spool.put_aside,
        acknowledged: acknowledged(spool.partitions),
    }
}

fn acknowledged(partitions: Vec<AcknowledgedPartition>) -> Vec<Acknowledged> {
    let partitions = partitions.into_iter();
    partitions
        .map(|one| Acknowledged {
            partition: one.partition,
            records: one.records,
            first: one.first_offset,
            last: one.last_offset,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use streamgauge_audit::What;

    use super::*;

    #[test]
    fn a_partition_that_the_store_does_not_mention_stands_at_its_beginning() {
        let row = PartitionLedger {
            partition: 1,
            head: 7,
            ..PartitionLedger::default()
        };
        let store = Store::Answered {
            rows: vec![row],
            sums: None,
            remarks: Vec::new(),
        };
        let head = |store: &Store, partition| store.partition(partition).map(|row| row.head);
        assert_eq!((head(&store, 1), head(&store, 2)), (Some(7), Some(0)));
        assert_eq!(head(&Store::LeftOut, 1), None);
    }

    #[test]
    fn the_rows_of_the_store_go_before_what_analytics_remembers() {
        let row = |head| PartitionLedger {
            head,
            ..PartitionLedger::default()
        };
        let answer = LedgerResponse {
            partitions: vec![row(10)],
            store: Some(streamgauge_proto::v1::StoreCheck {
                rows: vec![row(13)],
                ..Default::default()
            }),
            ..LedgerResponse::default()
        };
        let store = answered(answer);
        assert_eq!(store.partition(0).map(|row| row.head), Some(13));
    }

    #[test]
    fn what_a_producer_says_of_its_spool_is_judged() {
        let partition = |records| AcknowledgedPartition {
            partition: 0,
            records,
            first_offset: 0,
            last_offset: records as i64 - 1,
        };
        let answer = ProducerLedgerResponse {
            received: 10,
            accepted: 10,
            partitions: vec![partition(4)],
            spool: Some(SpoolLedger {
                waiting_at_start: 5,
                spooled: 6,
                waiting: 1,
                drained: 7,
                lost: 2,
                put_aside: 1,
                balanced: true,
                partitions: vec![partition(7)],
            }),
            ..ProducerLedgerResponse::default()
        };
        let whats = |answer: ProducerLedgerResponse| {
            let breaks = producer_facts("p:1", answer).breaks(|_| Some(7));
            breaks
                .iter()
                .map(|found| (found.what, found.by))
                .collect::<Vec<_>>()
        };
        assert_eq!(whats(answer.clone()), [(What::SpoolLost, 2)]);
        let older = ProducerLedgerResponse {
            spool: None,
            ..answer
        };
        assert_eq!(whats(older), []);
    }
}
