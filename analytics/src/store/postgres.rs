//! The store in PostgreSQL. Rows travel as arrays, one statement for many; row locks and the compare-and-swaps order the
//! writers, in the order of partitions, so that two instances never wait for each other in a ring.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use sqlx::{
    Connection, PgConnection, PgPool, Row,
    pool::PoolOptions,
    postgres::{PgConnectOptions, Postgres},
    query, query_scalar,
};

use super::{
    Advance, BucketRow, CheckpointState, CheckpointWrite, Connections, Contents, DeltaRow, Scan,
    Scanned, Slot, Slots, Store, StoreError, StoreFuture, Sums, SumsOf, Swapped, UserFilter,
    UserPageRow, UserPages, rows, schema,
};
use crate::view::{CellValue, ChainRow, UserPage};

/// Rows written by one statement.
const ROWS_PER_STATEMENT: usize = 1_000;
/// Connections of the writers: one each for applying, for the checkpoint and for deleting what is old.
const WRITERS: u32 = 3;
/// How long an operation waits for a connection, and a connection for a sign of life when it is given back.
const PATIENCE: Duration = Duration::from_secs(5);
/// All reads of one query see one moment.
pub(super) const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// The store. Queries have connections of their own: however many wait for one, the writers never do.
#[derive(Debug)]
pub struct PostgresStore {
    pub(super) writer: PgPool,
    pub(super) reader: PgPool,
}

/// PostgreSQL's text holds no NUL; what stands for it is the same for writing and for looking up.
pub(super) fn text(value: &str) -> String {
    value.replace('\0', "\u{fffd}")
}

impl PostgresStore {
    /// A store at this URL, which is connected to when it is first used.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn new(
        url: &str,
        connections_max: u32,
        statement_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| StoreError::Url(error.to_string()))?
            .application_name("streamgauge-analytics")
            .options([(
                "statement_timeout",
                statement_timeout.as_millis().to_string(),
            )]);
        Ok(Self {
            writer: pool(options.clone(), WRITERS),
            reader: pool(options, connections_max.max(1)),
        })
    }
}

fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    PoolOptions::<Postgres>::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        // The driver would wait without end for a connection that hangs, and keep its place.
        .after_release(|connection, _| {
            Box::pin(async move {
                match tokio::time::timeout(PATIENCE, connection.ping()).await {
                    Ok(alive) => alive.map(|()| true),
                    Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
                }
            })
        })
        .connect_lazy_with(options)
}

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
    async fn read_served(&self) -> Result<Slot, sqlx::Error> {
        let number = query_scalar("SELECT slot FROM served")
            .fetch_one(&self.writer)
            .await?;
        Ok(Slot::of_number(number))
    }

    async fn read_contents(&self, slot: Slot) -> Result<Contents, sqlx::Error> {
        let chains = query("SELECT * FROM chain ORDER BY partition")
            .fetch_all(&self.writer)
            .await?;
        let series = query_scalar(slot.sql("SELECT name FROM series{s} ORDER BY name"))
            .fetch_all(&self.writer)
            .await?;
        let chains = chains.iter().map(rows::chain).collect::<Result<_, _>>()?;
        Ok(Contents { chains, series })
    }

    async fn read_chains(&self, partitions: &[i32]) -> Result<Vec<ChainRow>, sqlx::Error> {
        let found = query("SELECT * FROM chain WHERE partition = ANY($1)")
            .bind(partitions)
            .fetch_all(&self.writer)
            .await?;
        found.iter().map(rows::chain).collect()
    }

    async fn read_state(&self, slot: Slot) -> Result<CheckpointState, sqlx::Error> {
        let mut snapshot = self.writer.begin_with(SNAPSHOT).await?;
        state(&mut snapshot, slot).await
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
        .fetch_all(&self.writer)
        .await?;
        let row = |(offset, payload): (i64, Vec<u8>)| DeltaRow {
            offset,
            payload: payload.into(),
        };
        Ok(found.into_iter().map(row).collect())
    }

    async fn write_advances(&self, advances: &[Advance]) -> Result<Swapped, sqlx::Error> {
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

    async fn write_checkpoint(&self, write: &CheckpointWrite) -> Result<Swapped, sqlx::Error> {
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

    async fn delete_deltas(
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

    async fn read_rows(&self, scan: Scan<'_>) -> Result<Scanned, StoreError> {
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

    async fn read_user(&self, filter: UserFilter<'_>) -> Result<UserPages, sqlx::Error> {
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

    async fn read_sums(&self, asked: SumsOf<'_>) -> Result<Sums, sqlx::Error> {
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

    async fn delete_rows(
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

impl Store for PostgresStore {
    fn migrate(&self) -> StoreFuture<'_, ()> {
        async { Ok(schema::postgres().run(&self.writer).await?) }.boxed()
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
        let pools = [&self.writer, &self.reader];
        pools.iter().fold(Connections::default(), |sum, pool| {
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
            self.reader.close().await;
            self.writer.close().await;
        }
        .boxed()
    }
}
