//! What is written to PostgreSQL: moves of chains, moves of the checkpoint, and what is deleted.

use std::collections::BTreeMap;

use sqlx::{PgConnection, query, query_scalar};

use super::{PostgresStore, read::existing, text};
use crate::{
    store::{Advance, BucketRow, CheckpointWrite, Slot, Swapped, rows},
    view::{CellValue, ChainRow, UserPage},
};

/// Rows written by one statement.
const ROWS_PER_STATEMENT: usize = 1_000;

/// Moves one chain; `false` when the row is not as expected. The holes belong to what is expected: an instance that
/// retention outran has counted as missing what another one counted, and stands at the same place all the same.
async fn swap_chain(
    connection: &mut PgConnection,
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
    connection: &mut PgConnection,
    advance: &Advance,
) -> Result<(), sqlx::Error> {
    let offsets: Vec<i64> = advance.deltas.iter().map(|delta| delta.offset).collect();
    let payloads: Vec<&[u8]> = advance
        .deltas
        .iter()
        .map(|delta| &delta.payload[..])
        .collect();
    query(
        "INSERT INTO delta (partition, delta_offset, payload) \
         SELECT $1, d.delta_offset, d.payload FROM UNNEST($2::bigint[], $3::bytea[]) AS d(delta_offset, payload)",
    )
    .bind(advance.after.partition)
    .bind(offsets)
    .bind(payloads)
    .execute(connection)
    .await
    .map(drop)
}

async fn upsert_buckets(
    connection: &mut PgConnection,
    slot: Slot,
    chunk: &[BucketRow],
) -> Result<(), sqlx::Error> {
    let joined = rows::join(chunk, existing(connection, slot, chunk).await?);
    let number = |of: fn(&CellValue) -> f64| -> Vec<f64> {
        joined
            .iter()
            .map(|row| rows::number(of(&row.value)))
            .collect()
    };
    query(slot.sql(
        "INSERT INTO bucket{s} (tier_s, series, bucket_s, key_digest, key, count, value_count, sum, min, max, users, \
         quantiles) SELECT n.tier_s, n.series, n.bucket_s, md5(n.key)::uuid, n.key, n.count, n.value_count, n.sum, \
         n.min, n.max, n.users, n.quantiles FROM UNNEST($1::int[], $2::text[], $3::bigint[], $4::text[], \
         $5::bigint[], $6::bigint[], $7::float8[], $8::float8[], $9::float8[], $10::bytea[], $11::bytea[]) \
         AS n(tier_s, series, bucket_s, key, count, value_count, sum, min, max, users, quantiles) \
         ON CONFLICT (tier_s, series, bucket_s, key_digest) DO UPDATE SET count = EXCLUDED.count, \
         value_count = EXCLUDED.value_count, sum = EXCLUDED.sum, min = EXCLUDED.min, max = EXCLUDED.max, \
         users = EXCLUDED.users, quantiles = EXCLUDED.quantiles",
    ))
    .bind(joined.iter().map(|row| row.tier_s as i32).collect::<Vec<_>>())
    .bind(joined.iter().map(|row| row.series.to_string()).collect::<Vec<_>>())
    .bind(joined.iter().map(|row| row.bucket_s).collect::<Vec<_>>())
    .bind(joined.iter().map(|row| row.key.to_string()).collect::<Vec<_>>())
    .bind(joined.iter().map(|row| rows::stored(row.value.count)).collect::<Vec<_>>())
    .bind(joined.iter().map(|row| rows::stored(row.value.value_count)).collect::<Vec<_>>())
    .bind(number(|value| value.sum))
    .bind(number(|value| value.min))
    .bind(number(|value| value.max))
    .bind(joined.iter().map(|row| rows::sketch(&row.value.users)).collect::<Vec<_>>())
    .bind(joined.iter().map(|row| rows::sketch(&row.value.quantiles)).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map(drop)
}

async fn upsert_users(
    connection: &mut PgConnection,
    slot: Slot,
    chunk: &[UserPage],
) -> Result<(), sqlx::Error> {
    // Grouped, because two texts may differ in nothing but a NUL.
    query(slot.sql(
        "INSERT INTO user_page{s} AS u (user_id, page_digest, page_url, event_type, count, last_us) \
         SELECT n.user_id, md5(octet_length(n.page_url) || ':' || n.page_url || n.event_type)::uuid, n.page_url, \
         n.event_type, SUM(n.count), MAX(n.last_us) \
         FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[]) \
         AS n(user_id, page_url, event_type, count, last_us) GROUP BY n.user_id, n.page_url, n.event_type \
         ON CONFLICT (user_id, page_digest) DO UPDATE SET count = u.count + EXCLUDED.count, \
         last_us = GREATEST(u.last_us, EXCLUDED.last_us)",
    ))
    .bind(chunk.iter().map(|page| text(&page.key.user_id)).collect::<Vec<_>>())
    .bind(chunk.iter().map(|page| text(&page.key.page_url)).collect::<Vec<_>>())
    .bind(chunk.iter().map(|page| text(&page.key.event_type)).collect::<Vec<_>>())
    .bind(chunk.iter().map(|page| rows::stored(page.count)).collect::<Vec<_>>())
    .bind(chunk.iter().map(|page| page.last_us).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map(drop)
}

impl PostgresStore {
    pub(super) async fn write_advances(
        &self,
        advances: &[Advance],
    ) -> Result<Swapped, sqlx::Error> {
        let mut transaction = self.writer.begin().await?;
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
        let slot = write.slot;
        let mut transaction = self.writer.begin().await?;
        // The row's lock, taken here, holds other checkpoints off until the commit.
        let swapped =
            query(slot.sql("UPDATE checkpoint{s} SET generation = $2 WHERE generation = $1"))
                .bind(write.from)
                .bind(write.to)
                .execute(&mut *transaction)
                .await?;
        if swapped.rows_affected() != 1 {
            transaction.rollback().await?;
            return Ok(Swapped::Conflict);
        }
        let (partitions, positions): (Vec<i32>, Vec<i64>) = write.positions.iter().unzip();
        query(slot.sql(
            "INSERT INTO checkpoint_position{s} (partition, position) SELECT * FROM UNNEST($1::int[], $2::bigint[]) \
             ON CONFLICT (partition) DO UPDATE SET position = EXCLUDED.position",
        ))
        .bind(partitions)
        .bind(positions)
        .execute(&mut *transaction)
        .await?;
        let mut series: Vec<String> = write
            .buckets
            .iter()
            .map(|row| row.series.to_string())
            .collect();
        series.sort_unstable();
        series.dedup();
        query(slot.sql(
            "INSERT INTO series{s} (name) SELECT * FROM UNNEST($1::text[]) ON CONFLICT DO NOTHING",
        ))
        .bind(series)
        .execute(&mut *transaction)
        .await?;
        for chunk in write.buckets.chunks(ROWS_PER_STATEMENT) {
            upsert_buckets(&mut transaction, slot, chunk).await?;
        }
        for chunk in write.users.chunks(ROWS_PER_STATEMENT) {
            upsert_users(&mut transaction, slot, chunk).await?;
        }
        transaction.commit().await?;
        Ok(Swapped::Done)
    }

    pub(super) async fn delete_deltas(
        &self,
        slot: Slot,
        positions: &BTreeMap<i32, i64>,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = self.writer.begin().await?;
        // Held until the end, so that no swap comes in between.
        let served: i64 = query_scalar("SELECT slot FROM served FOR SHARE")
            .fetch_one(&mut *transaction)
            .await?;
        // Rows that are no longer served know nothing of what those that are still need.
        if served != slot.number() {
            return Ok(());
        }
        let (partitions, positions): (Vec<i32>, Vec<i64>) = positions.iter().unzip();
        query(
            "DELETE FROM delta AS d USING UNNEST($1::int[], $2::bigint[]) AS p(partition, position) \
             WHERE d.partition = p.partition AND d.delta_offset < LEAST(p.position, (\
                 SELECT n.position FROM delta_pin AS n CROSS JOIN rebuild_lock AS l WHERE n.partition = p.partition \
                 AND l.expires_ms > (extract(epoch FROM clock_timestamp()) * 1000)::bigint))",
        )
        .bind(partitions)
        .bind(positions)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await
    }

    pub(super) async fn delete_rows(
        &self,
        slot: Slot,
        tier_s: i64,
        before_s: i64,
        limit: u32,
    ) -> Result<u64, sqlx::Error> {
        let deleted = query(slot.sql(
            "DELETE FROM bucket{s} WHERE ctid = ANY(ARRAY(\
                 SELECT b.ctid FROM series{s} AS s JOIN bucket{s} AS b ON b.series = s.name \
                 WHERE b.tier_s = $1 AND b.bucket_s < $2 LIMIT $3))",
        ))
        .bind(tier_s as i32)
        .bind(before_s)
        .bind(i64::from(limit))
        .execute(&self.writer)
        .await?;
        Ok(deleted.rows_affected())
    }
}
