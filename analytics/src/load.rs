//! The start: a fold that stands where the store stands.
//!
//! Rows, chains and deltas are read one after another; when another instance moves the checkpoint in between, all of it
//! is read again, so that what results is of one moment.

use std::sync::Arc;

use streamgauge_chain::delta;

use crate::{
    config::Config,
    store::{CheckpointState, Scan, Segment, Slot, Store, StoreError},
    view::{ChainRow, Fold, Limits, Published},
};

/// Recent rows are read in slices of this length, newest first, until memory is full.
const SLICE_S: i64 = 60;
/// Deltas that are read at once.
const DELTAS_PER_READ: u32 = 64;
/// What lies ahead of the clock is read in slices that begin so far ahead, the last one without an end: memory answers for
/// all of it, and how far it reaches is for the consumers to say (`events.future_max_ms`). Several, so that too much of
/// one costs no more than what lies before it.
const AHEAD_S: [i64; 4] = [1_000 * 86_400, 30 * 86_400, 86_400, 0];
/// Attempts before the caller backs off.
const ATTEMPTS: u32 = 5;

/// Reads the store. Each attempt that another instance's checkpoint cuts off is followed by one that keeps half as much
/// in memory, and so takes less time; the store answers for the rest.
///
/// # Errors
/// Whatever the store says; [`StoreError::Moved`] when it moves faster than it can be read.
pub async fn load(store: &Arc<dyn Store>, config: &Config, now_s: i64) -> Result<Fold, StoreError> {
    for round in 0..ATTEMPTS {
        let slot = store.served().await?;
        let state = store.checkpoint_state(slot).await?;
        let limits = Limits {
            recent_seconds: i64::from(config.view.recent_seconds >> round),
            ..Limits::from(&config.view)
        };
        let fold = Fold::new(limits, now_s, state.generation, state.positions.clone())
            .over(slot)
            .knowing(config.ledger.batches_known_max);
        match attempt(store, config, fold, now_s, &state).await {
            // Rows that are no longer served may have lost the deltas that complete them.
            Ok(mut fold)
                if store.checkpoint_state(slot).await? == state
                    && store.served().await? == slot =>
            {
                fold.keep_recent_s(i64::from(config.view.recent_seconds));
                return Ok(fold);
            }
            Ok(_) | Err(StoreError::Moved) => {}
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Moved)
}

async fn attempt(
    store: &Arc<dyn Store>,
    config: &Config,
    mut fold: Fold,
    now_s: i64,
    state: &CheckpointState,
) -> Result<Fold, StoreError> {
    let contents = store.contents(fold.view().slot).await?;
    for name in &contents.series {
        fold.series_id(name);
    }
    recent(store, config, &mut fold, &contents.series, now_s).await?;
    for row in &contents.chains {
        let position = state.positions.get(&row.partition).copied().unwrap_or(0);
        replay(store, row, position, |offset, batch| {
            fold.apply(row.partition, offset, batch, &mut Published::default());
        })
        .await?;
        fold.set_row(*row);
    }
    fold.fit();
    Ok(fold)
}

async fn recent(
    store: &Arc<dyn Store>,
    config: &Config,
    fold: &mut Fold,
    series: &[String],
    now_s: i64,
) -> Result<(), StoreError> {
    let (first, slot) = (fold.view().recent_from_s, fold.view().slot);
    let newest = now_s.div_euclid(SLICE_S) * SLICE_S + SLICE_S;
    let starts = AHEAD_S.into_iter().chain((1..).map(|n| -n * SLICE_S));
    let mut end = i64::MAX;
    for start in starts.map(|ahead| newest + ahead) {
        if end <= first {
            break;
        }
        let slice = start..end;
        let segments = [Segment {
            tier_s: 1,
            range: slice.clone(),
        }];
        for name in series {
            let scan = Scan {
                slot,
                series: name,
                segments: &segments,
                rows_max: config.query.rows_max,
                quantiles: true,
            };
            match store.scan(scan).await {
                Ok(scanned) if scanned.generation != fold.view().generation => {
                    return Err(StoreError::Moved);
                }
                Ok(scanned) => {
                    for (second, key, value) in scanned.rows {
                        fold.load_recent(name, second, &key, value);
                    }
                }
                Err(StoreError::TooManyRows(_)) => {
                    fold.forget_before(end);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        if fold.is_full() {
            fold.forget_before(start + SLICE_S);
            return Ok(());
        }
        end = start;
    }
    Ok(())
}

/// Hands over the deltas of a partition from a position up to its row.
pub(crate) async fn replay(
    store: &Arc<dyn Store>,
    row: &ChainRow,
    position: i64,
    mut take: impl FnMut(i64, &streamgauge_proto::v1::DeltaBatch),
) -> Result<(), StoreError> {
    let mut from = position;
    loop {
        let deltas = store.deltas(row.partition, from, DELTAS_PER_READ).await?;
        let Some(last) = deltas.last() else {
            return Ok(());
        };
        from = last.offset + 1;
        for delta in deltas
            .iter()
            .filter(|delta| delta.offset < row.delta_position)
        {
            match delta::decode(&delta.payload) {
                Ok(batch) => take(delta.offset, &batch),
                // It was read once, before it was written.
                Err(error) => tracing::error!(
                    partition = row.partition, offset = delta.offset, %error,
                    "a delta in the store cannot be read; its events are missing until the store is rebuilt"
                ),
            }
        }
    }
}

/// Another instance moved the checkpoint: fills the overlay with what was applied since, as the store has it. After an
/// error the fold is of no use.
///
/// # Errors
/// Whatever the store says; [`StoreError::Moved`] when it moves faster than it can be followed.
pub async fn overlay(store: &Arc<dyn Store>, fold: &mut Fold) -> Result<(), StoreError> {
    let slot = fold.view().slot;
    for _ in 0..ATTEMPTS {
        unless_swapped(store, slot).await?;
        let state = store.checkpoint_state(slot).await?;
        fold.adopt(state.generation, state.positions.clone());
        let rows: Vec<ChainRow> = fold.view().chains.values().copied().collect();
        for row in rows {
            let position = fold.checkpointed(row.partition);
            replay(store, &row, position, |offset, batch| {
                fold.overlay(row.partition, offset, batch);
            })
            .await?;
        }
        // After a swap the deltas of these rows may be gone.
        unless_swapped(store, slot).await?;
        if store.checkpoint_state(slot).await? == state {
            return Ok(());
        }
    }
    Err(StoreError::Moved)
}

/// Follows the store's checkpoint when the fold does not know it; tells whether it did not. After an error the fold is of
/// no use.
///
/// # Errors
/// As [`overlay`].
pub async fn catch_up(store: &Arc<dyn Store>, fold: &mut Fold) -> Result<bool, StoreError> {
    let state = store.checkpoint_state(fold.view().slot).await?;
    if fold.view().overlays_at(state.generation).is_some() {
        return Ok(false);
    }
    overlay(store, fold).await.map(|()| true)
}

/// A rebuild has put other rows in the place of these: memory has to be built anew.
async fn unless_swapped(store: &Arc<dyn Store>, slot: Slot) -> Result<(), StoreError> {
    if store.served().await? == slot {
        Ok(())
    } else {
        Err(StoreError::Swapped)
    }
}
