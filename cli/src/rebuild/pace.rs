//! How fast a rebuild goes, and how far it is: the bound on events per second, and what the person who waits is told.

use std::time::Duration;

use indicatif::ProgressBar;
use serde_json::json;
use tokio::time::Instant;

use crate::{error::CliError, output::Output, progress_bar};

/// The pace of one rebuild.
pub struct Pace {
    started: Instant,
    events: u64,
    total: u64,
    per_second_max: u64,
    /// The earliest time for the next event.
    due: Instant,
    bar: ProgressBar,
    interval: Duration,
    told: Instant,
}

impl Pace {
    /// A rebuild of so many events, as far as is known.
    pub fn new(total: u64, per_second_max: u64, interval: Duration) -> Self {
        let now = Instant::now();
        Self {
            started: now,
            events: 0,
            total,
            per_second_max,
            due: now,
            bar: progress_bar::towards(total, "events"),
            interval,
            told: now,
        }
    }

    /// There is more to do than was known.
    pub fn expect(&mut self, total: u64) {
        self.total = self.total.max(total);
        self.bar.set_length(self.total);
    }

    /// So many events were done: waits until the next ones are due, and tells now and then.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub async fn done(&mut self, events: u64, output: &mut Output) -> Result<(), CliError> {
        self.events += events;
        self.bar.set_position(self.events);
        if self.per_second_max > 0 {
            let took = Duration::from_secs_f64(events as f64 / self.per_second_max as f64);
            // What was not used up is not saved for later.
            self.due = (self.due + took).max(Instant::now());
            tokio::time::sleep_until(self.due).await;
        }
        if self.bar.is_hidden() && self.told.elapsed() >= self.interval {
            self.told = Instant::now();
            output.note(self.line(output.json()))?;
        }
        Ok(())
    }

    fn line(&self, as_json: bool) -> String {
        let rate = self.events as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        let left = self.total.saturating_sub(self.events) as f64 / rate.max(1e-3);
        let percent = 100.0 * self.events as f64 / self.total.max(1) as f64;
        if as_json {
            let (events, total) = (self.events, self.total);
            return json!({"progress": {
                "events": events, "total": total, "percent": percent,
                "events_per_second": rate, "seconds_left": left,
            }})
            .to_string();
        }
        format!(
            "{percent:.1} %: {} of {} events, {rate:.0} a second, about {left:.0} s left",
            self.events, self.total
        )
    }

    /// Events done and the time that it took.
    pub fn finish(&self) -> (u64, Duration) {
        self.bar.finish_and_clear();
        (self.events, self.started.elapsed())
    }
}
