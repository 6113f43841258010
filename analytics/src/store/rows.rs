//! What both databases share: how rows become values, and how additions join what is there.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use sqlx::{ColumnIndex, Database, Decode, Row, Type};
use streamgauge_chain::{Ledger, Outcomes};

use super::{BucketRow, Rebuilt, Shift};
use crate::view::{CellValue, ChainRow, Parts, UserPage, UserPageKey};

/// The numbers of a chain row after the partition, in the order of the table's columns.
pub(super) fn chain_values(row: &ChainRow) -> [i64; 16] {
    let (ledger, outcomes) = (&row.ledger, row.ledger.outcomes());
    [
        ledger.base(),
        ledger.head(),
        row.delta_position,
        stored(outcomes.counted),
        stored(outcomes.duplicate),
        stored(outcomes.late),
        stored(outcomes.dead_lettered),
        stored(outcomes.missing),
        stored(outcomes.no_record),
        stored(ledger.valid_batches()),
        stored(ledger.void_batches()),
        row.watermark_us,
        row.as_of_us,
        i64::from(row.gap),
        stored(row.holes),
        row.hole_at,
    ]
}

/// The numbers of a shift's row after slot, partition and generation, in the order of the table's columns.
pub(super) const fn shift_values(shift: &Shift) -> [i64; 6] {
    [
        shift.counted,
        shift.duplicate,
        shift.late,
        shift.dead_lettered,
        shift.missing,
        shift.no_record,
    ]
}

/// Reads the shifts of one set of rows; none where no rebuild made them.
pub(super) fn rebuilt<'r, R>(rows: &'r [R]) -> Result<Option<Rebuilt>, sqlx::Error>
where
    R: Row,
    &'static str: ColumnIndex<R>,
    i32: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let mut generation = 0;
    let mut partitions = BTreeMap::new();
    for row in rows {
        let number = |name: &'static str| row.try_get::<i64, _>(name);
        generation = number("generation")?.max(0) as u64;
        let shift = Shift {
            counted: number("counted")?,
            duplicate: number("duplicate")?,
            late: number("late")?,
            dead_lettered: number("dead_lettered")?,
            missing: number("missing")?,
            no_record: number("no_record")?,
        };
        partitions.insert(row.try_get("partition")?, shift);
    }
    Ok((generation > 0).then_some(Rebuilt {
        generation,
        partitions,
    }))
}

/// Databases have no unsigned numbers. Counts stay far below the bound.
pub(super) fn stored(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// SQLite keeps no NaN; a sum that overflowed both ways is one.
pub(super) fn number(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value }
}

/// A serialised sketch, empty for none. The value must have been compacted.
pub(super) fn sketch(parts: &Parts) -> &[u8] {
    parts.as_slice().first().map_or(&[], |part| part)
}

/// Reads a chain's row.
pub(super) fn chain<'r, R>(row: &'r R) -> Result<ChainRow, sqlx::Error>
where
    R: Row,
    &'static str: ColumnIndex<R>,
    i32: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let signed = |name: &'static str| row.try_get::<i64, _>(name);
    let count = |name: &'static str| signed(name).map(|value| value.max(0) as u64);
    let outcomes = Outcomes {
        counted: count("counted")?,
        duplicate: count("duplicate")?,
        late: count("late")?,
        dead_lettered: count("dead_lettered")?,
        missing: count("missing")?,
        no_record: count("no_record")?,
    };
    let (valid, void) = (count("valid_batches")?, count("void_batches")?);
    Ok(ChainRow {
        partition: row.try_get("partition")?,
        ledger: Ledger::restored(signed("base")?, signed("head")?, outcomes, valid, void),
        delta_position: signed("delta_position")?,
        watermark_us: signed("watermark_us")?,
        as_of_us: signed("as_of_us")?,
        gap: signed("gap")? != 0,
        holes: count("holes")?,
        hole_at: signed("hole_at")?,
    })
}

/// Reads the value of a bucket's row.
pub(super) fn value<'r, R>(row: &'r R) -> Result<CellValue, sqlx::Error>
where
    R: Row,
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    f64: Decode<'r, R::Database> + Type<R::Database>,
    &'r [u8]: Decode<'r, R::Database> + Type<R::Database>,
    R::Database: Database,
{
    let count = |name: &'static str| row.try_get::<i64, _>(name).map(|value| value.max(0) as u64);
    let sketch = |name: &'static str| {
        row.try_get::<&[u8], _>(name)
            .map(|bytes| Parts::of(Bytes::copy_from_slice(bytes)))
    };
    let mut value = CellValue::default();
    value.count = count("count")?;
    value.value_count = count("value_count")?;
    value.sum = row.try_get("sum")?;
    value.min = row.try_get("min")?;
    value.max = row.try_get("max")?;
    value.users = sketch("users")?;
    value.quantiles = sketch("quantiles")?;
    Ok(value)
}

/// What identifies a bucket's row.
pub(super) type BucketKey = (i64, i64, String, String);

/// A row from its parts.
pub(super) fn keyed(((tier_s, bucket_s, series, key), value): (BucketKey, CellValue)) -> BucketRow {
    BucketRow {
        tier_s,
        bucket_s,
        series: Arc::from(series),
        key: Arc::from(key),
        value,
    }
}

/// Reads a bucket's row whole.
pub(super) fn bucket<'r, R>(row: &'r R) -> Result<BucketRow, sqlx::Error>
where
    R: Row,
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    f64: Decode<'r, R::Database> + Type<R::Database>,
    &'r [u8]: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
{
    let key = (
        row.try_get("tier_s")?,
        row.try_get("bucket_s")?,
        row.try_get("series")?,
        row.try_get("key")?,
    );
    Ok(keyed((key, value(row)?)))
}

/// Reads a user page's row.
pub(super) fn user_page<'r, R>(row: &'r R) -> Result<UserPage, sqlx::Error>
where
    R: Row,
    &'static str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
{
    let text = |name: &'static str| row.try_get::<String, _>(name).map(Arc::<str>::from);
    let key = UserPageKey {
        user_id: text("user_id")?,
        page_url: text("page_url")?,
        event_type: text("event_type")?,
    };
    Ok(UserPage {
        key,
        count: row.try_get::<i64, _>("count")?.max(0) as u64,
        last_us: row.try_get("last_us")?,
    })
}

/// Joins additions to the rows that are there, ready to be written.
pub(super) fn join(additions: &[BucketRow], there: Vec<(BucketKey, CellValue)>) -> Vec<BucketRow> {
    let mut there: HashMap<BucketKey, CellValue> = there.into_iter().collect();
    let mut unreadable = 0;
    let joined = additions.iter().map(|row| {
        let key = (
            row.tier_s,
            row.bucket_s,
            row.series.to_string(),
            row.key.to_string(),
        );
        let value = match there.remove(&key) {
            Some(mut value) => {
                value.absorb(&row.value);
                value
            }
            None => row.value.clone(),
        };
        let mut joined = BucketRow {
            value,
            ..row.clone()
        };
        unreadable += joined.value.compact();
        joined
    });
    let joined = joined.collect();
    if unreadable > 0 {
        tracing::error!(
            unreadable,
            "sketches that cannot be read were left out of the store"
        );
    }
    joined
}
