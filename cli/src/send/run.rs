//! Sends planned events over a number of connections, each request when it is due.

use std::{collections::VecDeque, time::Duration};

use futures::{Stream, StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use super::{summary::Summary, synthetic::Synthetic};
use crate::{
    progress_bar,
    submit::{Batch, Delivered, Deliverer},
    times,
};

/// What to send.
#[derive(Debug)]
pub struct Plan {
    /// Where events come from.
    pub events: Synthetic,
    /// How many.
    pub count: u64,
    /// Per second; 0 is as fast as it goes.
    pub rate: u32,
    /// In one request.
    pub batch: u32,
    /// Exempt from the accepted age.
    pub historical: bool,
}

impl Plan {
    /// When the event after so many others is due; at once without a rate.
    fn due(&self, started: Instant, sent: u64) -> Option<Instant> {
        (self.rate > 0)
            .then(|| started + Duration::from_secs_f64(sent as f64 / f64::from(self.rate)))
    }

    fn batch(&mut self, length: u64) -> Batch {
        let now_us = times::now_us();
        let events = (0..length).map(|_| self.events.event(now_us)).collect();
        Batch {
            events,
            historical: self.historical,
        }
    }
}

/// Sends everything, or what was sent when `signals` yielded or a request was refused; when it
/// yields again, what is under way is not waited for.
pub async fn run(
    mut plan: Plan,
    deliverers: Vec<Deliverer>,
    signals: impl Stream<Item = ()>,
) -> Summary {
    let started = Instant::now();
    let bar = progress_bar::towards(plan.count, "events");
    let mut summary = Summary::of(plan.count);
    let mut free: VecDeque<Deliverer> = deliverers.into();
    let mut under_way = FuturesUnordered::new();
    let (mut sent, mut stopped) = (0, false);
    tokio::pin!(signals);
    // A signal may never come: it must not keep the loop alive.
    while !under_way.is_empty() || (!stopped && sent < plan.count) {
        let more = !stopped && sent < plan.count && !free.is_empty();
        let due = plan.due(started, sent);
        tokio::select! {
            biased;
            Some(()) = signals.next() => {
                if std::mem::replace(&mut stopped, true) {
                    break;
                }
            }
            Some((deliverer, length, late, delivered)) = under_way.next(), if !under_way.is_empty() => {
                free.push_back(deliverer);
                bar.inc(length);
                let delivered: Delivered = delivered;
                // Nobody answered this one for as long as retries last: nor will they the next.
                stopped |= !delivered.answered;
                summary.add(delivered, late);
                stopped |= summary.refusal().is_some();
            }
            () = sleep_until(due.unwrap_or(started)), if more => {
                let length = u64::from(plan.batch).min(plan.count - sent);
                let batch = plan.batch(length);
                let late = due.map_or(Duration::ZERO, |due| due.elapsed());
                sent += length;
                if let Some(deliverer) = free.pop_front() {
                    under_way.push(async move {
                        let delivered = deliverer.deliver(&batch).await;
                        (deliverer, length, late, delivered)
                    });
                }
            }
        }
    }
    bar.finish_and_clear();
    summary.took = started.elapsed();
    summary
}
