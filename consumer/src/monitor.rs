//! Asks for the ends of the owned partitions now and then: how far behind this instance is, whether Kafka is there, and
//! whether a member that is outside its group for long has only itself to blame.

use std::{sync::Arc, time::Duration};

use streamgauge_lifecycle::{Condition, Shutdown};
use tokio::time::Instant;

use crate::{owner::Shared, status::Board};

/// Why nothing is asked any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By the shutdown.
    Shutdown,
    /// The member has been outside its group for `owner.absence_ms_max` though Kafka answered.
    Absent,
}

/// Asks until the shutdown, or until the member has to be given up.
pub async fn run(
    shared: Arc<Shared>,
    board: Board,
    log: Condition,
    joined: Condition,
    shutdown: Shutdown,
) -> Ended {
    let period = Duration::from_millis(shared.config.owner.status_interval_ms.max(10));
    let mut absence = Absence::new(Duration::from_millis(shared.config.owner.absence_ms_max));
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let asking = async {
        loop {
            ticks.tick().await;
            ask(&shared, &board, &log).await;
            if absence.too_long(Instant::now(), log.is_up(), joined.is_up()) {
                return Ended::Absent;
            }
        }
    };
    tokio::select! {
        ended = asking => ended,
        () = shutdown.triggered() => Ended::Shutdown,
    }
}

/// How long a member has been outside its group while nothing that it waits for was away.
struct Absence {
    since: Option<Instant>,
    bound: Duration,
}

impl Absence {
    fn new(bound: Duration) -> Self {
        Self { since: None, bound }
    }

    /// Whether it lasts for too long by now. While Kafka is away nobody is a member, and no time counts.
    fn too_long(&mut self, now: Instant, log_answers: bool, member: bool) -> bool {
        if member || !log_answers {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        now.duration_since(since) >= self.bound
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_outside_the_group_beside_an_answering_log_counts() {
        let start = Instant::now();
        let mut absence = Absence::new(Duration::from_secs(10));
        let steps = [
            // (second, log answers, member, too long)
            (0, true, false, false),
            (9, true, false, false),
            (10, false, false, false),
            (11, true, false, false),
            (20, true, false, false),
            (21, true, true, false),
            (40, true, false, false),
            (49, true, false, false),
            (50, true, false, true),
        ];
        for (second, log, member, expected) in steps {
            let now = start + Duration::from_secs(second);
            assert_eq!(absence.too_long(now, log, member), expected, "{second}");
        }
    }
}
