//! Asks for the ends of the owned partitions now and then: how far behind this instance is, and whether Kafka is there.

use std::{sync::Arc, time::Duration};

use streamgauge_lifecycle::{Condition, Shutdown};

use crate::{owner::Shared, status::Board};

/// Asks until the shutdown.
pub async fn run(shared: Arc<Shared>, board: Board, log: Condition, shutdown: Shutdown) {
    let period = Duration::from_millis(shared.config.owner.status_interval_ms.max(10));
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let asking = async {
        loop {
            ticks.tick().await;
            ask(&shared, &board, &log).await;
        }
    };
    tokio::select! {
        () = asking => {}
        () = shutdown.triggered() => {}
    }
}

async fn ask(shared: &Shared, board: &Board, log: &Condition) {
    let (topic, group) = (&shared.config.topics.events, &shared.config.group.group);
    let owners = board.owners();
    if owners.is_empty() {
        // A member that owns nothing must know whether Kafka is there all the same.
        match shared.reader.watermarks(topic, 0).await {
            Ok(_) => log.up(),
            Err(error) => {
                log.down(error.to_string());
                shared.metrics.core().error("kafka", "ends");
            }
        }
    }
    for (partition, view) in owners {
        match shared.reader.watermarks(topic, partition).await {
            Ok(ends) => {
                view.set_end(ends.high);
                log.up();
            }
            Err(error) => {
                log.down(error.to_string());
                shared.metrics.core().error("kafka", "ends");
                // The other partitions would only wait for the same broker.
                return;
            }
        }
        if let Some((records, seconds)) = view.lag(shared.clock.now_us())
            && board.owns(partition)
        {
            shared
                .metrics
                .core()
                .set_lag(group, topic, partition, records);
            shared
                .metrics
                .core()
                .set_lag_seconds(group, topic, partition, seconds);
        }
    }
}
