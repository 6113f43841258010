//! Retention: rows older than their tier keeps are deleted, a bounded number at a time, so that no statement holds the
//! writer for long.

use std::{sync::Arc, time::Duration};

use streamgauge_lifecycle::{SharedClock, Shutdown};

use crate::{
    config::RetentionConfig,
    metrics::AnalyticsMetrics,
    store::{Store, StoreError, TIERS_S},
};

/// Rows are kept for so much longer than queries count on, whose clocks differ.
const MARGIN_S: i64 = 60;

/// The first second whose buckets are written and not deleted, per tier: a margin before the first that queries count on.
pub fn kept_from(config: &RetentionConfig, now_s: i64) -> [i64; 4] {
    config
        .floors(now_s)
        .map(|floor| floor.saturating_sub(MARGIN_S))
}

/// Deletes until the shutdown.
pub async fn run(
    store: Arc<dyn Store>,
    config: RetentionConfig,
    clock: SharedClock,
    metrics: AnalyticsMetrics,
    shutdown: Shutdown,
) {
    let mut ticks = tokio::time::interval(Duration::from_millis(config.interval_ms.max(10)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.triggered() => return,
        }
        let now_s = clock.now_us().div_euclid(1_000_000);
        if let Err(error) = expire(store.as_ref(), &config, now_s, &shutdown).await {
            tracing::warn!(%error, "old rows are deleted later");
            metrics.core.error("retention", "store");
        }
    }
}

/// Deletes what is too old now; tells how many rows that were.
///
/// # Errors
/// Whatever the store says.
pub async fn expire(
    store: &dyn Store,
    config: &RetentionConfig,
    now_s: i64,
    shutdown: &Shutdown,
) -> Result<u64, StoreError> {
    let limit = config.rows_per_delete_max.max(1);
    let slot = store.served().await?;
    let mut deleted = 0;
    for (tier_s, floor) in TIERS_S.into_iter().zip(kept_from(config, now_s)) {
        if floor == i64::MIN {
            continue;
        }
        loop {
            let rows = store.expire(slot, tier_s, floor, limit).await?;
            deleted += rows;
            if rows < u64::from(limit) || shutdown.is_triggered() {
                break;
            }
        }
    }
    Ok(deleted)
}
