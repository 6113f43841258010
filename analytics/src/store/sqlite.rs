//! The store in three SQLite files: two sets of rows, of which one is served, and beside them the chains with the deltas
//! that are not in the rows yet.
//!
//! Several files, because SQLite has one writer per file: a checkpoint of many rows must not delay the next apply, nor a
//! rebuild the next checkpoint. No transaction spans two: rows know by themselves how far they reach, and deltas below
//! that are only waste. So rows are always synced before the deltas that they hold are deleted; chains and deltas that a
//! power cut sets back are read from the log again.
//! Journals are write-ahead logs, so that readers and the writer do not wait for each other.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use serde::{Deserialize, Serialize};
use sqlx::{
    QueryBuilder, Row, Sqlite, SqliteConnection, SqlitePool,
    pool::PoolOptions,
    query, query_scalar,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{
    Advance, BucketRow, CheckpointState, CheckpointWrite, Connections, Contents, DeltaRow, Scan,
    Scanned, Slot, Slots, Store, StoreError, StoreFuture, Sums, SumsOf, Swapped, UserFilter,
    UserPageRow, UserPages, rows, schema,
};
use crate::view::{CellValue, ChainRow, UserPage};

/// Rows written by one statement; SQLite takes 32,766 values.
const ROWS_PER_STATEMENT: usize = 250;
/// How long a writer waits for another process, and a query for a connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// Deletes what the served rows hold, as far as no rebuild needs it.
const TRIM: &str = "DELETE FROM delta WHERE partition = $1 AND delta_offset < min($2, COALESCE((\
     SELECT p.position FROM delta_pin AS p CROSS JOIN rebuild_lock AS l \
     WHERE p.partition = $1 AND l.expires_ms > CAST(unixepoch('subsec') * 1000 AS INTEGER)), $2))";

/// What a commit of chains and deltas survives. Rows survive a crash of the machine either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// A crash of the machine: each commit waits for the disk.
    #[default]
    Full,
    /// A crash of the process. After a power cut the last batches may be gone; they are read from the log again.
    Normal,
}

/// The store.
#[derive(Debug)]
pub struct SqliteStore {
    rows: [RowsFile; 2],
    pub(super) deltas_writer: SqlitePool,
    pub(super) deltas_reader: SqlitePool,
    path: PathBuf,
}

/// A file with one set of rows.
#[derive(Debug)]
pub(super) struct RowsFile {
    pub(super) writer: SqlitePool,
    pub(super) reader: SqlitePool,
}

impl SqliteStore {
    /// A store in the file at `path` and two more beside it.
    pub fn new(path: PathBuf, durability: Durability, readers: u32) -> Self {
        let deltas = path.with_extension("deltas.db");
        let second = path.with_extension("second.db");
        let pool = |file: &PathBuf, connections: u32, durability: Durability| {
            let options = SqliteConnectOptions::new()
                .filename(file)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(match durability {
                    Durability::Full => SqliteSynchronous::Full,
                    Durability::Normal => SqliteSynchronous::Normal,
                })
                .busy_timeout(PATIENCE);
            PoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(PATIENCE)
                .connect_lazy_with(options)
        };
        // One commit per checkpoint: what is in it is deleted from the deltas right after, and may be in no log any more.
        let rows = [&path, &second].map(|file| RowsFile {
            writer: pool(file, 1, Durability::Full),
            reader: pool(file, readers.max(1), Durability::Full),
        });
        Self {
            rows,
            deltas_writer: pool(&deltas, 1, durability),
            deltas_reader: pool(&deltas, 1, durability),
            path,
        }
    }
}

pub(super) async fn begin(
    pool: &SqlitePool,
) -> Result<sqlx::Transaction<'static, Sqlite>, sqlx::Error> {
    // The write lock is taken at once: a lock taken later could fail in mid-transaction.
    pool.begin_with("BEGIN IMMEDIATE").await
}

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
    async fn connect(&self) -> Result<(), StoreError> {
        if let Some(folder) = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            tokio::fs::create_dir_all(folder)
                .await
                .map_err(|error| StoreError::of("open")(sqlx::Error::Io(error)))?;
        }
        schema::sqlite_deltas().run(&self.deltas_writer).await?;
        for file in &self.rows {
            schema::sqlite_rows().run(&file.writer).await?;
        }
        Ok(())
    }

    pub(super) fn rows(&self, slot: Slot) -> &RowsFile {
        match slot {
            Slot::First => &self.rows[0],
            Slot::Second => &self.rows[1],
        }
    }

    async fn read_served(&self) -> Result<Slot, sqlx::Error> {
        let number = query_scalar("SELECT slot FROM served")
            .fetch_one(&self.deltas_reader)
            .await?;
        Ok(Slot::of_number(number))
    }

    async fn read_contents(&self, slot: Slot) -> Result<Contents, sqlx::Error> {
        let chains = query("SELECT * FROM chain ORDER BY partition")
            .fetch_all(&self.deltas_reader)
            .await?;
        let series = query_scalar("SELECT name FROM series ORDER BY name")
            .fetch_all(&self.rows(slot).reader)
            .await?;
        let chains = chains.iter().map(rows::chain).collect::<Result<_, _>>()?;
        Ok(Contents { chains, series })
    }

    async fn read_chains(&self, partitions: &[i32]) -> Result<Vec<ChainRow>, sqlx::Error> {
        let all = query("SELECT * FROM chain")
            .fetch_all(&self.deltas_reader)
            .await?;
        let all: Vec<ChainRow> = all.iter().map(rows::chain).collect::<Result<_, _>>()?;
        Ok(all
            .into_iter()
            .filter(|row| partitions.contains(&row.partition))
            .collect())
    }

    async fn read_state(&self, slot: Slot) -> Result<CheckpointState, sqlx::Error> {
        let mut snapshot = self.rows(slot).reader.begin().await?;
        state(&mut snapshot).await
    }

    async fn read_deltas(
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

    async fn write_advances(&self, advances: &[Advance]) -> Result<Swapped, sqlx::Error> {
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

    async fn write_checkpoint(&self, write: &CheckpointWrite) -> Result<Swapped, sqlx::Error> {
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

    async fn delete_deltas(
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

    async fn read_rows(&self, scan: Scan<'_>) -> Result<Scanned, StoreError> {
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

    async fn read_user(&self, filter: UserFilter<'_>) -> Result<UserPages, sqlx::Error> {
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

    async fn read_sums(&self, asked: SumsOf<'_>) -> Result<Sums, sqlx::Error> {
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
        Ok(Sums {
            generation,
            positions: positions.into_iter().collect(),
            events,
        })
    }

    async fn delete_rows(
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

impl Store for SqliteStore {
    fn migrate(&self) -> StoreFuture<'_, ()> {
        self.connect().boxed()
    }

    fn served(&self) -> StoreFuture<'_, Slot> {
        let read = self.read_served();
        async {
            read.await
                .map_err(StoreError::of("read which rows are served"))
        }
        .boxed()
    }

    fn contents(&self, slot: Slot) -> StoreFuture<'_, Contents> {
        let read = self.read_contents(slot);
        async { read.await.map_err(StoreError::of("read the chains")) }.boxed()
    }

    fn chains<'a>(&'a self, partitions: &'a [i32]) -> StoreFuture<'a, Vec<ChainRow>> {
        let read = self.read_chains(partitions);
        async { read.await.map_err(StoreError::of("read the chains")) }.boxed()
    }

    fn checkpoint_state(&self, slot: Slot) -> StoreFuture<'_, CheckpointState> {
        let read = self.read_state(slot);
        async { read.await.map_err(StoreError::of("read the checkpoint")) }.boxed()
    }

    fn deltas(&self, partition: i32, from: i64, limit: u32) -> StoreFuture<'_, Vec<DeltaRow>> {
        let read = self.read_deltas(partition, from, limit);
        async { read.await.map_err(StoreError::of("read deltas")) }.boxed()
    }

    fn apply<'a>(&'a self, advances: &'a [Advance]) -> StoreFuture<'a, Swapped> {
        let write = self.write_advances(advances);
        async { write.await.map_err(StoreError::of("apply")) }.boxed()
    }

    fn checkpoint<'a>(&'a self, write: &'a CheckpointWrite) -> StoreFuture<'a, Swapped> {
        let write = self.write_checkpoint(write);
        async { write.await.map_err(StoreError::of("write a checkpoint")) }.boxed()
    }

    fn trim<'a>(&'a self, slot: Slot, positions: &'a BTreeMap<i32, i64>) -> StoreFuture<'a, ()> {
        let write = self.delete_deltas(slot, positions);
        async { write.await.map_err(StoreError::of("delete deltas")) }.boxed()
    }

    fn scan<'a>(&'a self, scan: Scan<'a>) -> StoreFuture<'a, Scanned> {
        self.read_rows(scan).boxed()
    }

    fn user_pages<'a>(&'a self, filter: UserFilter<'a>) -> StoreFuture<'a, UserPages> {
        let read = self.read_user(filter);
        async { read.await.map_err(StoreError::of("read user pages")) }.boxed()
    }

    fn expire(&self, slot: Slot, tier_s: i64, before_s: i64, limit: u32) -> StoreFuture<'_, u64> {
        let write = self.delete_rows(slot, tier_s, before_s, limit);
        async { write.await.map_err(StoreError::of("delete old buckets")) }.boxed()
    }

    fn sums<'a>(&'a self, sums: SumsOf<'a>) -> StoreFuture<'a, Sums> {
        let read = self.read_sums(sums);
        async { read.await.map_err(StoreError::of("add rows up")) }.boxed()
    }

    fn slots(&self) -> &dyn Slots {
        self
    }

    fn connections(&self) -> Connections {
        let rows = self
            .rows
            .iter()
            .flat_map(|file| [&file.writer, &file.reader]);
        let mut pools = rows.chain([&self.deltas_writer, &self.deltas_reader]);
        pools.by_ref().fold(Connections::default(), |sum, pool| {
            // The count of idle connections may pass below zero for a moment, and wrap.
            let idle = pool.num_idle().min(pool.size() as usize) as u32;
            Connections {
                busy: sum.busy + pool.size().saturating_sub(idle),
                idle: sum.idle + idle,
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            for file in &self.rows {
                file.reader.close().await;
            }
            self.deltas_reader.close().await;
            for file in &self.rows {
                file.writer.close().await;
            }
            self.deltas_writer.close().await;
        }
        .boxed()
    }
}

#[cfg(test)]
#[path = "sqlite_tests.rs"]
mod tests;
