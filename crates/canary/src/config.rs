//! Settings of the canary.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use streamgauge_settings::Secret;

/// Shortest interval: two events of one user must not fall into one second.
const INTERVAL_MS_MIN: u64 = 100;

/// A probe that submits events as a client does, and asks for them as a client does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CanaryConfig {
    /// Whether events are sent.
    pub enabled: bool,
    /// The producer's HTTP address, `host:port`.
    pub producer_http: String,
    /// The producer's gRPC address, `host:port`.
    pub producer_grpc: String,
    /// The credential to submit with; none when empty. One marked `canary` keeps its place when the producer sheds load.
    pub token: Secret,
    /// Between two events at one door, in milliseconds; at least 100.
    pub interval_ms: u64,
    /// An event that no query shows for so long is lost, in milliseconds.
    pub timeout_ms: u64,
    /// Time for one request, in milliseconds.
    pub request_timeout_ms: u64,
    /// How many users it has at each door. They spread over the partitions, so that more of them find a partition that
    /// stands still sooner.
    pub users: u16,
    /// How long after the start nothing is counted unless an event has come back, in milliseconds: the services need not
    /// start in any order.
    pub start_grace_ms: u64,
}

impl Default for CanaryConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            producer_http: String::from("127.0.0.1:8081"),
            producer_grpc: String::from("127.0.0.1:50051"),
            token: Secret::default(),
            interval_ms: 1_000,
            timeout_ms: 10_000,
            request_timeout_ms: 2_000,
            users: 16,
            start_grace_ms: 60_000,
        }
    }
}

impl CanaryConfig {
    /// Whether the settings can be used.
    ///
    /// # Errors
    /// A sentence that says what is wrong and what to do.
    pub fn check(&self) -> Result<(), String> {
        if self.interval_ms < INTERVAL_MS_MIN {
            return Err(format!(
                "interval_ms: {} is less than {INTERVAL_MS_MIN}",
                self.interval_ms
            ));
        }
        if u64::from(self.users) * self.interval_ms <= 1_000 {
            return Err(format!(
                "users: {} send more than one event a second each, which cannot be told apart; give more users or a longer \
                 interval_ms",
                self.users
            ));
        }
        if self.timeout_ms < self.request_timeout_ms {
            return Err(String::from(
                "timeout_ms: it must not be shorter than request_timeout_ms",
            ));
        }
        Ok(())
    }

    pub(crate) fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    pub(crate) fn start_grace(&self) -> Duration {
        Duration::from_millis(self.start_grace_ms)
    }

    /// Most events under way at one door.
    pub(crate) fn pending_max(&self) -> usize {
        (self.timeout_ms / self.interval_ms.max(1)) as usize + 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        let config = |interval_ms, users| CanaryConfig {
            interval_ms,
            users,
            ..CanaryConfig::default()
        };
        assert_eq!(CanaryConfig::default().check(), Ok(()));
        for (interval_ms, users, wrong) in [
            (99, 100, "interval_ms"),
            (100, 10, "users"),
            (1_000, 1, "users"),
            (1_000, 0, "users"),
        ] {
            let error = config(interval_ms, users).check().expect_err(wrong);
            assert!(error.starts_with(wrong), "{error}");
        }
        assert_eq!(config(100, 11).check(), Ok(()));
    }
}
