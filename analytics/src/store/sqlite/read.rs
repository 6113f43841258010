//! What is read of SQLite: chains and deltas, rows of one moment, and what rows add up to.

use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, query, query_scalar};

use super::SqliteStore;
use crate::{
    store::{
        BucketRow, CheckpointState, Contents, DeltaRow, Scan, Scanned, Slot, StoreError, Sums,
        SumsOf, UserFilter, UserPageRow, UserPages, rows,
    },
    view::{CellValue, ChainRow},
};

/// How far the rows of a transaction reach.
pub(super) async fn state(
    connection: &mut SqliteConnection,
) -> Result<CheckpointState, sqlx::Error> {
    let generation = query_scalar("SELECT generation FROM checkpoint")
        .fetch_one(&mut *connection)
        .await?;
    let positions: Vec<(i32, i64)> =
        sqlx::query_as("SELECT partition, position FROM checkpoint_position")
            .fetch_all(&mut *connection)
            .await?;
    Ok(CheckpointState {
        generation,
        positions: positions.into_iter().collect(),
    })
}

/// The rows that are there for these keys.
pub(super) async fn existing(
    connection: &mut SqliteConnection,
    chunk: &[BucketRow],
) -> Result<Vec<(rows::BucketKey, CellValue)>, sqlx::Error> {
    let mut sql = QueryBuilder::<Sqlite>::new("WITH wanted(tier_s, series, bucket_s, key) AS (");
    sql.push_values(chunk, |mut row, bucket| {
        row.push_bind(bucket.tier_s)
            .push_bind(&*bucket.series)
            .push_bind(bucket.bucket_s)
            .push_bind(&*bucket.key);
    });
    // A cross join keeps the order: each wanted key is looked up in the table.
    sql.push(
        ") SELECT b.* FROM wanted AS w CROSS JOIN bucket AS b ON b.tier_s = w.tier_s \
         AND b.series = w.series AND b.bucket_s = w.bucket_s AND b.key = w.key",
    );
    let found = sql.build().fetch_all(connection).await?;
    let rows = found.iter().map(|row| {
        let key = (
            row.try_get("tier_s")?,
            row.try_get("bucket_s")?,
            row.try_get("series")?,
            row.try_get("key")?,
        );
        Ok((key, rows::value(row)?))
    });
    rows.collect()
}

impl SqliteStore {
    pub(super) async fn read_served(&self) -> Result<Slot, sqlx::Error> {
        let number = query_scalar("SELECT slot FROM served")
            .fetch_one(&self.deltas_reader)
            .await?;
        Ok(Slot::of_number(number))
    }

    pub(super) async fn read_contents(&self, slot: Slot) -> Result<Contents, sqlx::Error> {
        let chains = query("SELECT * FROM chain ORDER BY partition")
            .fetch_all(&self.deltas_reader)
            .await?;
        let series = query_scalar("SELECT name FROM series ORDER BY name")
            .fetch_all(&self.rows(slot).reader)
            .await?;
        let chains = chains.iter().map(rows::chain).collect::<Result<_, _>>()?;
        Ok(Contents { chains, series })
    }

    pub(super) async fn read_chains(
        &self,
        partitions: &[i32],
    ) -> Result<Vec<ChainRow>, sqlx::Error> {
        let all = query("SELECT * FROM chain")
            .fetch_all(&self.deltas_reader)
            .await?;
        let all: Vec<ChainRow> = all.iter().map(rows::chain).collect::<Result<_, _>>()?;
        Ok(all
            .into_iter()
            .filter(|row| partitions.contains(&row.partition))
            .collect())
    }

    pub(super) async fn read_state(&self, slot: Slot) -> Result<CheckpointState, sqlx::Error> {
        let mut snapshot = self.rows(slot).reader.begin().await?;
        state(&mut snapshot).await
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
        .fetch_all(&self.deltas_reader)
        .await?;
        let row = |(offset, payload): (i64, Vec<u8>)| DeltaRow {
            offset,
            payload: payload.into(),
        };
        Ok(found.into_iter().map(row).collect())
    }

    pub(super) async fn read_rows(&self, scan: Scan<'_>) -> Result<Scanned, StoreError> {
        let failed = StoreError::of("read buckets");
        let mut snapshot = self.rows(scan.slot).reader.begin().await.map_err(&failed)?;
        let generation = query_scalar("SELECT generation FROM checkpoint")
            .fetch_one(&mut *snapshot)
            .await
            .map_err(&failed)?;
        let sql = if scan.quantiles {
            "SELECT * FROM bucket \
             WHERE tier_s = $1 AND series = $2 AND bucket_s >= $3 AND bucket_s < $4 LIMIT $5"
        } else {
            "SELECT bucket_s, key, count, value_count, sum, min, max, users, x'' AS quantiles FROM bucket \
             WHERE tier_s = $1 AND series = $2 AND bucket_s >= $3 AND bucket_s < $4 LIMIT $5"
        };
        let mut scanned = Scanned {
            generation,
            rows: Vec::new(),
        };
        for segment in scan.segments {
            let room = scan.rows_max - scanned.rows.len();
            let found = query(sql)
                .bind(segment.tier_s)
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
        let mut snapshot = self.rows(filter.slot).reader.begin().await?;
        let generation = query_scalar("SELECT generation FROM checkpoint")
            .fetch_one(&mut *snapshot)
            .await?;
        let count: i64 = query_scalar(
            "SELECT COALESCE(SUM(count), 0) FROM user_page WHERE user_id = $1 \
             AND ($2 IS NULL OR page_url = $2) AND ($3 IS NULL OR event_type = $3)",
        )
        .bind(filter.user_id)
        .bind(filter.page_url)
        .bind(filter.event_type)
        .fetch_one(&mut *snapshot)
        .await?;
        let found: Vec<(String, String, i64, i64)> = sqlx::query_as(
            "SELECT page_url, event_type, count, last_us FROM user_page WHERE user_id = $1 \
             AND ($2 IS NULL OR page_url = $2) AND ($3 IS NULL OR event_type = $3) \
             ORDER BY count DESC, page_url, event_type LIMIT $4",
        )
        .bind(filter.user_id)
        .bind(filter.page_url)
        .bind(filter.event_type)
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
        let mut snapshot = self.rows(asked.slot).reader.begin().await?;
        let generation = query_scalar("SELECT generation FROM checkpoint")
            .fetch_one(&mut *snapshot)
            .await?;
        let positions: Vec<(i32, i64)> =
            sqlx::query_as("SELECT partition, position FROM checkpoint_position")
                .fetch_all(&mut *snapshot)
                .await?;
        let mut events = Vec::with_capacity(asked.segments.len());
        for segment in asked.segments {
            let mut of_segment = 0u64;
            for series in asked.series {
                let sum: i64 = query_scalar(
                    "SELECT COALESCE(SUM(count), 0) FROM bucket \
                     WHERE tier_s = $1 AND series = $2 AND bucket_s >= $3 AND bucket_s < $4",
                )
                .bind(segment.tier_s)
                .bind(*series)
                .bind(segment.range.start)
                .bind(segment.range.end)
                .fetch_one(&mut *snapshot)
                .await?;
                of_segment += sum.max(0) as u64;
            }
            events.push(of_segment);
        }
        // In a file of its own; only a swap changes it, and never that of rows that are served.
        let rebuilt = query("SELECT * FROM rebuilt WHERE slot = $1")
            .bind(asked.slot.number())
            .fetch_all(&self.deltas_reader)
            .await?;
        Ok(Sums {
            generation,
            positions: positions.into_iter().collect(),
            events,
            rebuilt: rows::rebuilt(&rebuilt)?,
        })
    }
}
