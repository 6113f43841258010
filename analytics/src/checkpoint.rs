//! Checkpoints: applied batches become rows, one transaction for everything since the last one.
//!
//! The rows, the roll-ups and the position that they reach move together or not at all. Only then may the deltas go.

use std::{collections::HashMap, sync::Arc};

use crate::{
    store::{BucketRow, CheckpointWrite, Store, StoreError, Swapped, TIERS_S},
    view::{CellValue, Frozen, Key, SeriesId, SeriesNames},
};

/// How a checkpoint ended.
#[derive(Debug)]
pub enum Checkpointed {
    /// The rows are there.
    Done,
    /// Another instance moved the checkpoint first.
    Overtaken,
    /// Nothing is known to have been written; it is to be repeated as it is.
    Failed(StoreError),
}

/// The rows that an overlay adds up to. A bucket whose tier no longer keeps it is left out there.
pub fn rows(frozen: &Frozen, names: &SeriesNames, floors: &[i64; 4]) -> CheckpointWrite {
    let mut buckets: HashMap<(usize, i64, SeriesId, &Key), CellValue> = HashMap::new();
    for (second, series, cell) in frozen.overlay.seconds.all_cells() {
        for (tier, length) in TIERS_S.iter().enumerate() {
            let bucket = second.div_euclid(*length) * length;
            if floors[tier] <= bucket {
                let sum = buckets
                    .entry((tier, bucket, series, &cell.key))
                    .or_default();
                sum.absorb(&cell.value);
                sum.compact_when_long();
            }
        }
    }
    let mut texts: HashMap<&Key, Arc<str>> = HashMap::new();
    let mut rows = Vec::with_capacity(buckets.len());
    for ((tier, bucket_s, series, key), value) in buckets {
        let text = texts.entry(key).or_insert_with(|| Arc::from(key.to_text()));
        let Some(series) = names.name(series) else {
            continue;
        };
        let (series, key) = (Arc::clone(series), Arc::clone(text));
        rows.push(BucketRow {
            tier_s: TIERS_S[tier],
            bucket_s,
            series,
            key,
            value,
        });
    }
    // In the order of the table, so that its pages are visited once.
    rows.sort_by(|one, other| {
        let tiers = one
            .tier_s
            .cmp(&other.tier_s)
            .then_with(|| one.series.cmp(&other.series));
        let starts = tiers.then_with(|| one.bucket_s.cmp(&other.bucket_s));
        starts.then_with(|| one.key.cmp(&other.key))
    });
    CheckpointWrite {
        slot: frozen.slot,
        from: frozen.from,
        to: frozen.to,
        positions: frozen.positions.clone(),
        buckets: rows,
        users: frozen.overlay.all_users(),
    }
}

/// Writes a checkpoint and deletes the deltas that it made superfluous.
pub async fn write(store: Arc<dyn Store>, write: CheckpointWrite) -> Checkpointed {
    match store.checkpoint(&write).await {
        Ok(Swapped::Done) => {}
        Ok(Swapped::Conflict) => match store.checkpoint_state(write.slot).await {
            // An attempt whose outcome was not heard of did succeed.
            Ok(state) if state.generation == write.to => {}
            Ok(_) => return Checkpointed::Overtaken,
            Err(error) => return Checkpointed::Failed(error),
        },
        Err(error) => return Checkpointed::Failed(error),
    }
    if let Err(error) = store.trim(write.slot, &write.positions).await {
        tracing::warn!(%error, "deltas that the rows hold were left behind; the next checkpoint deletes them");
    }
    Checkpointed::Done
}

/// A name for a checkpoint that no other instance will draw.
pub fn random_name() -> i64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish();
    (random >> 1) as i64 | 1
}
