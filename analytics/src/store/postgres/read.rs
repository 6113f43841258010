//! What is read of PostgreSQL: chains and deltas, rows of one moment, and what rows add up to.

use sqlx::{PgConnection, Row, query, query_scalar};

use super::{PostgresStore, SNAPSHOT, text};
use crate::{
    store::{
        BucketRow, CheckpointState, Contents, DeltaRow, Scan, Scanned, Slot, StoreError, Sums,
        SumsOf, UserFilter, UserPageRow, UserPages, rows,
    },
    view::{CellValue, ChainRow},
};

/// How far the rows of a transaction reach.
pub(super) async fn state(
    connection: &mut PgConnection,
    slot: Slot,
) -> Result<CheckpointState, sqlx::Error> {
    let generation = query_scalar(slot.sql("SELECT generation FROM checkpoint{s}"))
        .fetch_one(&mut *connection)
        .await?;
    let positions: Vec<(i32, i64)> =
        sqlx::query_as(slot.sql("SELECT partition, position FROM checkpoint_position{s}"))
            .fetch_all(&mut *connection)
            .await?;
    Ok(CheckpointState {
        generation,
        positions: positions.into_iter().collect(),
    })
}

/// The rows that are there for these keys.
pub(super) async fn existing(
    connection: &mut PgConnection,
    slot: Slot,
    chunk: &[BucketRow],
) -> Result<Vec<(rows::BucketKey, CellValue)>, sqlx::Error> {
    let found = query(slot.sql(
        "SELECT b.tier_s::bigint AS tier, b.series, b.bucket_s, b.key, b.count, b.value_count, b.sum, b.min, b.max, \
         b.users, b.quantiles FROM UNNEST($1::int[], $2::text[], $3::bigint[], $4::text[]) \
         AS w(tier_s, series, bucket_s, key) JOIN bucket{s} AS b ON b.tier_s = w.tier_s AND b.series = w.series \
         AND b.bucket_s = w.bucket_s AND b.key_digest = md5(w.key)::uuid",
    ))
    .bind(chunk.iter().map(|row| row.tier_s as i32).collect::<Vec<_>>())
    .bind(chunk.iter().map(|row| row.series.to_string()).collect::<Vec<_>>())
    .bind(chunk.iter().map(|row| row.bucket_s).collect::<Vec<_>>())
    .bind(chunk.iter().map(|row| row.key.to_string()).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let rows = found.iter().map(|row| {
        let key = (
            row.try_get("tier")?,
            row.try_get("bucket_s")?,
            row.try_get("series")?,
            row.try_get("key")?,
        );
        Ok((key, rows::value(row)?))
    });
    rows.collect()
}

impl PostgresStore {
    pub(super) async fn read_served(&self) -> Result<Slot, sqlx::Error> {
        let number = query_scalar("SELECT slot FROM served")
            .fetch_one(&self.writer)
            .await?;
        Ok(Slot::of_number(number))
    }

    pub(super) async fn read_contents(&self, slot: Slot) -> Result<Contents, sqlx::Error> {
        let chains = query("SELECT * FROM chain ORDER BY partition")
            .fetch_all(&self.writer)
            .await?;
        let series = query_scalar(slot.sql("SELECT name FROM series{s} ORDER BY name"))
            .fetch_all(&self.writer)
            .await?;
        let chains = chains.iter().map(rows::chain).collect::<Result<_, _>>()?;
        Ok(Contents { chains, series })
    }

    pub(super) async fn read_chains(
        &self,
        partitions: &[i32],
    ) -> Result<Vec<ChainRow>, sqlx::Error> {
        let found = query("SELECT * FROM chain WHERE partition = ANY($1)")
            .bind(partitions)
            .fetch_all(&self.writer)
            .await?;
        found.iter().map(rows::chain).collect()
    }

    pub(super) async fn read_state(&self, slot: Slot) -> Result<CheckpointState, sqlx::Error> {
        let mut snapshot = self.writer.begin_with(SNAPSHOT).await?;
        state(&mut snapshot, slot).await
    }

    pub(super) async fn read_deltas(
        &self,
        partition: i32,
        from: i64,
        limit: u32,
    ) -> Result<Vec<DeltaRow>, sqlx::Error> {
        let found: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT delta_offset, payload FROM delta WHERE partition = $1 AND delta_offset >= $2 \
             ORDER BY delta_offset LIMIT $3",
        )
        .bind(partition)
        .bind(from)
        .bind(i64::from(limit))
        .fetch_all(&self.writer)
        .await?;
        let row = |(offset, payload): (i64, Vec<u8>)| DeltaRow {
            offset,
            payload: payload.into(),
        };
        Ok(found.into_iter().map(row).collect())
    }

    pub(super) async fn read_rows(&self, scan: Scan<'_>) -> Result<Scanned, StoreError> {
        let failed = StoreError::of("read buckets");
        let mut snapshot = self.reader.begin_with(SNAPSHOT).await.map_err(&failed)?;
        let generation = query_scalar(scan.slot.sql("SELECT generation FROM checkpoint{s}"))
            .fetch_one(&mut *snapshot)
            .await
            .map_err(&failed)?;
        let sql = if scan.quantiles {
            "SELECT bucket_s, key, count, value_count, sum, min, max, users, quantiles FROM bucket{s} \
             WHERE tier_s = $1 AND series = $2 AND bucket_s >= $3 AND bucket_s < $4 LIMIT $5"
        } else {
            "SELECT bucket_s, key, count, value_count, sum, min, max, users, ''::bytea AS quantiles FROM bucket{s} \
             WHERE tier_s = $1 AND series = $2 AND bucket_s >= $3 AND bucket_s < $4 LIMIT $5"
        };
        let mut scanned = Scanned {
            generation,
            rows: Vec::new(),
        };
        for segment in scan.segments {
            let room = scan.rows_max - scanned.rows.len();
            let found = query(scan.slot.sql(sql))
                .bind(segment.tier_s as i32)
                .bind(scan.series)
                .bind(segment.range.start)
                .bind(segment.range.end)
                .bind(room as i64 + 1)
                .fetch_all(&mut *snapshot)
                .await
                .map_err(&failed)?;
            if found.len() > room {
                return Err(StoreError::TooManyRows(scan.rows_max));
            }
            for row in &found {
                let read = || {
                    Ok((
                        row.try_get("bucket_s")?,
                        row.try_get("key")?,
                        rows::value(row)?,
                    ))
                };
                scanned.rows.push(read().map_err(&failed)?);
            }
        }
        Ok(scanned)
    }

    pub(super) async fn read_user(&self, filter: UserFilter<'_>) -> Result<UserPages, sqlx::Error> {
        let mut snapshot = self.reader.begin_with(SNAPSHOT).await?;
        let slot = filter.slot;
        let generation = query_scalar(slot.sql("SELECT generation FROM checkpoint{s}"))
            .fetch_one(&mut *snapshot)
            .await?;
        let (user_id, page, kind) = (
            text(filter.user_id),
            filter.page_url.map(text),
            filter.event_type.map(text),
        );
        let count: i64 = query_scalar(slot.sql(
            "SELECT COALESCE(SUM(count), 0)::bigint FROM user_page{s} WHERE user_id = $1 \
             AND ($2::text IS NULL OR page_url = $2) AND ($3::text IS NULL OR event_type = $3)",
        ))
        .bind(&user_id)
        .bind(&page)
        .bind(&kind)
        .fetch_one(&mut *snapshot)
        .await?;
        let found: Vec<(String, String, i64, i64)> = sqlx::query_as(slot.sql(
            "SELECT page_url, event_type, count, last_us FROM user_page{s} WHERE user_id = $1 \
             AND ($2::text IS NULL OR page_url = $2) AND ($3::text IS NULL OR event_type = $3) \
             ORDER BY count DESC, page_url COLLATE \"C\", event_type COLLATE \"C\" LIMIT $4",
        ))
        .bind(&user_id)
        .bind(&page)
        .bind(&kind)
        .bind(filter.limit as i64)
        .fetch_all(&mut *snapshot)
        .await?;
        let row =
            |(page_url, event_type, count, last_us): (String, String, i64, i64)| UserPageRow {
                page_url,
                event_type,
                count: count.max(0) as u64,
                last_us,
            };
        let rows = found.into_iter().map(row).collect();
        Ok(UserPages {
            generation,
            rows,
            count: count.max(0) as u64,
        })
    }

    pub(super) async fn read_sums(&self, asked: SumsOf<'_>) -> Result<Sums, sqlx::Error> {
        let mut snapshot = self.reader.begin_with(SNAPSHOT).await?;
        let slot = asked.slot;
        let generation = query_scalar(slot.sql("SELECT generation FROM checkpoint{s}"))
            .fetch_one(&mut *snapshot)
            .await?;
        let positions: Vec<(i32, i64)> =
            sqlx::query_as(slot.sql("SELECT partition, position FROM checkpoint_position{s}"))
                .fetch_all(&mut *snapshot)
                .await?;
        let mut events = Vec::with_capacity(asked.segments.len());
        for segment in asked.segments {
            let mut of_segment = 0u64;
            for series in asked.series {
                let sum: i64 = query_scalar(slot.sql(
                    "SELECT COALESCE(SUM(count), 0)::bigint FROM bucket{s} \
                     WHERE tier_s = $1 AND series = $2 AND bucket_s >= $3 AND bucket_s < $4",
                ))
                .bind(segment.tier_s as i32)
                .bind(*series)
                .bind(segment.range.start)
                .bind(segment.range.end)
                .fetch_one(&mut *snapshot)
                .await?;
                of_segment += sum.max(0) as u64;
            }
            events.push(of_segment);
        }
        let rebuilt = query("SELECT * FROM rebuilt WHERE slot = $1")
            .bind(slot.number())
            .fetch_all(&mut *snapshot)
            .await?;
        Ok(Sums {
            generation,
            positions: positions.into_iter().collect(),
            events,
            rebuilt: rows::rebuilt(&rebuilt)?,
        })
    }
}
