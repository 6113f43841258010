//! What is written to SQLite: moves of chains, moves of the checkpoint, and what is deleted.

use std::collections::BTreeMap;

use sqlx::{QueryBuilder, Sqlite, SqliteConnection, query, query_scalar};

use super::{SqliteStore, begin, read::existing};
use crate::{
    store::{Advance, BucketRow, CheckpointWrite, Slot, Swapped, rows},
    view::{ChainRow, UserPage},
};

/// Rows written by one statement; SQLite takes 32,766 values.
const ROWS_PER_STATEMENT: usize = 250;
/// Deletes what the served rows hold, as far as no rebuild needs it.
const TRIM: &str = "DELETE FROM delta WHERE partition = $1 AND delta_offset < min($2, COALESCE((\
     SELECT p.position FROM delta_pin AS p CROSS JOIN rebuild_lock AS l \
     WHERE p.partition = $1 AND l.expires_ms > CAST(unixepoch('subsec') * 1000 AS INTEGER)), $2))";

/// Moves one chain; `false` when the row is not as expected. The holes belong to what is expected: an instance that
/// retention outran has counted as missing what another one counted, and stands at the same place all the same.
async fn swap_chain(
    connection: &mut SqliteConnection,
    before: &ChainRow,
    after: &ChainRow,
) -> Result<bool, sqlx::Error> {
    let is_first = before.delta_position == 0;
    let sql = if is_first {
        "INSERT INTO chain VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) ON CONFLICT DO NOTHING"
    } else {
        "UPDATE chain SET base = $2, head = $3, delta_position = $4, counted = $5, duplicate = $6, late = $7, \
         dead_lettered = $8, missing = $9, no_record = $10, valid_batches = $11, void_batches = $12, \
         watermark_us = $13, as_of_us = $14, gap = $15, holes = $16, hole_at = $17 \
         WHERE partition = $1 AND delta_position = $18 AND head = $19 AND holes = $20 AND hole_at = $21"
    };
    let mut statement = query(sql).bind(after.partition);
    for value in rows::chain_values(after) {
        statement = statement.bind(value);
    }
    if !is_first {
        statement = statement
            .bind(before.delta_position)
            .bind(before.ledger.head())
            .bind(rows::stored(before.holes))
            .bind(before.hole_at);
    }
    Ok(statement.execute(connection).await?.rows_affected() == 1)
}

async fn insert_deltas(
    connection: &mut SqliteConnection,
    advance: &Advance,
) -> Result<(), sqlx::Error> {
    for delta in &advance.deltas {
        query("INSERT INTO delta (partition, delta_offset, payload) VALUES ($1, $2, $3)")
            .bind(advance.after.partition)
            .bind(delta.offset)
            .bind(&delta.payload[..])
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn upsert_buckets(
    connection: &mut SqliteConnection,
    chunk: &[BucketRow],
) -> Result<(), sqlx::Error> {
    let joined = rows::join(chunk, existing(connection, chunk).await?);
    let mut sql = QueryBuilder::<Sqlite>::new(
        "INSERT OR REPLACE INTO bucket (tier_s, series, bucket_s, key, count, value_count, sum, min, max, \
         users, quantiles) ",
    );
    sql.push_values(&joined, |mut row, bucket| {
        let value = &bucket.value;
        row.push_bind(bucket.tier_s)
            .push_bind(&*bucket.series)
            .push_bind(bucket.bucket_s)
            .push_bind(&*bucket.key)
            .push_bind(rows::stored(value.count))
            .push_bind(rows::stored(value.value_count))
            .push_bind(rows::number(value.sum))
            .push_bind(rows::number(value.min))
            .push_bind(rows::number(value.max))
            .push_bind(rows::sketch(&value.users))
            .push_bind(rows::sketch(&value.quantiles));
    });
    sql.build().execute(connection).await.map(drop)
}

async fn upsert_users(
    connection: &mut SqliteConnection,
    chunk: &[UserPage],
) -> Result<(), sqlx::Error> {
    let mut sql = QueryBuilder::<Sqlite>::new(
        "INSERT INTO user_page (user_id, page_url, event_type, count, last_us) ",
    );
    sql.push_values(chunk, |mut row, page| {
        row.push_bind(&*page.key.user_id)
            .push_bind(&*page.key.page_url)
            .push_bind(&*page.key.event_type)
            .push_bind(rows::stored(page.count))
            .push_bind(page.last_us);
    });
    sql.push(
        " ON CONFLICT DO UPDATE SET count = count + excluded.count, last_us = max(last_us, excluded.last_us)",
    );
    sql.build().execute(connection).await.map(drop)
}

impl SqliteStore {
    pub(super) async fn write_advances(
        &self,
        advances: &[Advance],
    ) -> Result<Swapped, sqlx::Error> {
        let mut transaction = begin(&self.deltas_writer).await?;
        for advance in advances {
            if !swap_chain(&mut transaction, &advance.before, &advance.after).await? {
                transaction.rollback().await?;
                return Ok(Swapped::Conflict);
            }
            insert_deltas(&mut transaction, advance).await?;
        }
        transaction.commit().await?;
        Ok(Swapped::Done)
    }

    pub(super) async fn write_checkpoint(
        &self,
        write: &CheckpointWrite,
    ) -> Result<Swapped, sqlx::Error> {
        let mut transaction = begin(&self.rows(write.slot).writer).await?;
        let swapped = query("UPDATE checkpoint SET generation = $2 WHERE generation = $1")
            .bind(write.from)
            .bind(write.to)
            .execute(&mut *transaction)
            .await?;
        if swapped.rows_affected() != 1 {
            transaction.rollback().await?;
            return Ok(Swapped::Conflict);
        }
        for (partition, position) in &write.positions {
            query(
                "INSERT OR REPLACE INTO checkpoint_position (partition, position) VALUES ($1, $2)",
            )
            .bind(partition)
            .bind(position)
            .execute(&mut *transaction)
            .await?;
        }
        let mut series: Vec<&str> = write.buckets.iter().map(|row| &*row.series).collect();
        series.sort_unstable();
        series.dedup();
        for name in series {
            query("INSERT OR IGNORE INTO series (name) VALUES ($1)")
                .bind(name)
                .execute(&mut *transaction)
                .await?;
        }
        for chunk in write.buckets.chunks(ROWS_PER_STATEMENT) {
            upsert_buckets(&mut transaction, chunk).await?;
        }
        for chunk in write.users.chunks(ROWS_PER_STATEMENT) {
            upsert_users(&mut transaction, chunk).await?;
        }
        transaction.commit().await?;
        Ok(Swapped::Done)
    }

    pub(super) async fn delete_deltas(
        &self,
        slot: Slot,
        positions: &BTreeMap<i32, i64>,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = begin(&self.deltas_writer).await?;
        let served: i64 = query_scalar("SELECT slot FROM served")
            .fetch_one(&mut *transaction)
            .await?;
        // Rows that are no longer served know nothing of what those that are still need.
        if served != slot.number() {
            return Ok(());
        }
        for (partition, position) in positions {
            query(TRIM)
                .bind(partition)
                .bind(position)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await
    }

    pub(super) async fn delete_rows(
        &self,
        slot: Slot,
        tier_s: i64,
        before_s: i64,
        limit: u32,
    ) -> Result<u64, sqlx::Error> {
        // Series by series, as the index lies.
        let deleted = query(
            "DELETE FROM bucket WHERE (tier_s, series, bucket_s, key) IN (\
                 SELECT b.tier_s, b.series, b.bucket_s, b.key FROM series AS s CROSS JOIN bucket AS b \
                 ON b.tier_s = $1 AND b.series = s.name AND b.bucket_s < $2 LIMIT $3)",
        )
        .bind(tier_s)
        .bind(before_s)
        .bind(i64::from(limit))
        .execute(&self.rows(slot).writer)
        .await?;
        Ok(deleted.rows_affected())
    }
}
