//! What a rebuild does in SQLite. The rows of each set lie in a file of their own; the lock, the pins and the number of
//! the served set lie with the deltas, so that they move in one transaction.

use std::collections::BTreeMap;

use futures::FutureExt;
use sqlx::{
    Connection, Sqlite, SqliteConnection, Transaction, pool::PoolConnection, query, query_scalar,
};

use super::{
    SqliteStore, begin,
    read::{existing, state},
};
use crate::{
    store::{
        BucketRow, CheckpointState, Shift, Slot, Slots, Snapshot, StoreError, StoreFuture, named,
        rows,
    },
    view::{UserPage, UserPageKey},
};

const NOW_MS: &str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";
/// Keys looked up by one statement; SQLite takes 32,766 values.
const KEYS_PER_STATEMENT: usize = 250;

/// A statement in which `{now}` stands for the database's clock.
fn at_now(template: &'static str) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(template.replace("{now}", NOW_MS))
}

impl SqliteStore {
    async fn take_lock(&self, owner: i64, lease_ms: i64) -> Result<bool, sqlx::Error> {
        let mut transaction = begin(&self.deltas_writer).await?;
        let taken = query(at_now(
            "INSERT INTO rebuild_lock (one, owner, expires_ms) VALUES (1, $1, {now} + $2) \
             ON CONFLICT (one) DO UPDATE SET owner = excluded.owner, expires_ms = excluded.expires_ms \
             WHERE rebuild_lock.expires_ms <= {now}",
        ))
        .bind(owner)
        .bind(lease_ms)
        .execute(&mut *transaction)
        .await?;
        if taken.rows_affected() != 1 {
            return Ok(false);
        }
        query("DELETE FROM delta_pin")
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }

    async fn hold_lock(&self, owner: i64, lease_ms: i64) -> Result<bool, sqlx::Error> {
        let held = query(at_now(
            "UPDATE rebuild_lock SET expires_ms = {now} + $2 WHERE owner = $1 AND expires_ms > {now}",
        ))
        .bind(owner)
        .bind(lease_ms)
        .execute(&self.deltas_writer)
        .await?;
        Ok(held.rows_affected() == 1)
    }

    async fn give_lock_back(&self, owner: i64) -> Result<(), sqlx::Error> {
        let mut transaction = begin(&self.deltas_writer).await?;
        let given = query("DELETE FROM rebuild_lock WHERE owner = $1")
            .bind(owner)
            .execute(&mut *transaction)
            .await?;
        if given.rows_affected() == 1 {
            query("DELETE FROM delta_pin")
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await
    }

    async fn write_pins(
        &self,
        owner: i64,
        positions: &BTreeMap<i32, i64>,
    ) -> Result<bool, sqlx::Error> {
        let mut transaction = begin(&self.deltas_writer).await?;
        if !holds(&mut transaction, owner).await? {
            return Ok(false);
        }
        for (partition, position) in positions {
            query("INSERT OR REPLACE INTO delta_pin (partition, position) VALUES ($1, $2)")
                .bind(partition)
                .bind(position)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    async fn empty(&self, owner: i64, slot: Slot, name: i64) -> Result<bool, sqlx::Error> {
        let mut transaction = begin(&self.rows(slot).writer).await?;
        // Read with these rows locked and the deltas free: nothing that is applied meanwhile has to wait.
        let allowed: bool = query_scalar(at_now(
            "SELECT EXISTS (SELECT 1 FROM rebuild_lock AS l CROSS JOIN served AS s \
             WHERE l.owner = $1 AND l.expires_ms > {now} AND s.slot <> $2)",
        ))
        .bind(owner)
        .bind(slot.number())
        .fetch_one(&self.deltas_reader)
        .await?;
        if !allowed {
            return Ok(false);
        }
        for sql in [
            "DELETE FROM bucket",
            "DELETE FROM user_page",
            "DELETE FROM series",
            "DELETE FROM checkpoint_position",
        ] {
            query(sql).execute(&mut *transaction).await?;
        }
        query("UPDATE checkpoint SET generation = $1")
            .bind(name)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// The connection that writes deltas, whose commits wait for the disk whatever the settings say. It is not used again.
    pub(super) async fn synced(&self) -> Result<PoolConnection<Sqlite>, sqlx::Error> {
        let mut connection = self.deltas_writer.acquire().await?;
        connection.close_on_drop();
        query("PRAGMA synchronous = FULL")
            .execute(&mut *connection)
            .await?;
        Ok(connection)
    }

    async fn move_served(
        &self,
        owner: i64,
        to: Slot,
        name: i64,
        shifts: &BTreeMap<i32, Shift>,
    ) -> Result<bool, sqlx::Error> {
        // The rows are on the disk. So must the number be that names them, before those that were served are emptied.
        let mut connection = self.synced().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        if !holds(&mut transaction, owner).await? {
            return Ok(false);
        }
        let found: i64 = query_scalar("SELECT generation FROM checkpoint")
            .fetch_one(&self.rows(to).reader)
            .await?;
        if found != name {
            return Ok(false);
        }
        let generation = query_scalar(
            "UPDATE served SET slot = $1, generation = generation + 1 RETURNING generation",
        )
        .bind(to.number())
        .fetch_one(&mut *transaction)
        .await?;
        write_shifts(&mut transaction, to, generation, shifts).await?;
        for sql in ["DELETE FROM delta_pin", "DELETE FROM rebuild_lock"] {
            query(sql).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    async fn open_snapshot(&self, slot: Slot) -> Result<SqliteSnapshot, sqlx::Error> {
        let mut transaction = self.rows(slot).reader.begin().await?;
        // The first read fixes the moment.
        let state = state(&mut transaction).await?;
        Ok(SqliteSnapshot { transaction, state })
    }
}

/// Replaces what was kept of these rows.
async fn write_shifts(
    connection: &mut SqliteConnection,
    slot: Slot,
    generation: i64,
    shifts: &BTreeMap<i32, Shift>,
) -> Result<(), sqlx::Error> {
    query("DELETE FROM rebuilt WHERE slot = $1")
        .bind(slot.number())
        .execute(&mut *connection)
        .await?;
    for (partition, shift) in shifts {
        let mut statement =
            query("INSERT INTO rebuilt VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)")
                .bind(slot.number())
                .bind(partition)
                .bind(generation);
        for value in rows::shift_values(shift) {
            statement = statement.bind(value);
        }
        statement.execute(&mut *connection).await?;
    }
    Ok(())
}

async fn holds(connection: &mut SqliteConnection, owner: i64) -> Result<bool, sqlx::Error> {
    let held: Option<i64> = query_scalar(at_now(
        "SELECT owner FROM rebuild_lock WHERE owner = $1 AND expires_ms > {now}",
    ))
    .bind(owner)
    .fetch_optional(connection)
    .await?;
    Ok(held.is_some())
}

impl Slots for SqliteStore {
    fn lock(&self, owner: i64, lease_ms: i64) -> StoreFuture<'_, bool> {
        named("lock the rebuild", self.take_lock(owner, lease_ms))
    }

    fn renew(&self, owner: i64, lease_ms: i64) -> StoreFuture<'_, bool> {
        named("hold the lock", self.hold_lock(owner, lease_ms))
    }

    fn unlock(&self, owner: i64) -> StoreFuture<'_, ()> {
        named("unlock the rebuild", self.give_lock_back(owner))
    }

    fn pin<'a>(&'a self, owner: i64, positions: &'a BTreeMap<i32, i64>) -> StoreFuture<'a, bool> {
        named("pin deltas", self.write_pins(owner, positions))
    }

    fn wipe(&self, owner: i64, slot: Slot, name: i64) -> StoreFuture<'_, bool> {
        named("empty rows", self.empty(owner, slot, name))
    }

    fn swap<'a>(
        &'a self,
        owner: i64,
        to: Slot,
        name: i64,
        shifts: &'a BTreeMap<i32, Shift>,
    ) -> StoreFuture<'a, bool> {
        named("swap the rows", self.move_served(owner, to, name, shifts))
    }

    fn snapshot(&self, slot: Slot) -> StoreFuture<'_, Box<dyn Snapshot>> {
        let open = self.open_snapshot(slot);
        async {
            let opened = open.await.map_err(StoreError::of("open a snapshot"))?;
            Ok(Box::new(opened) as Box<dyn Snapshot>)
        }
        .boxed()
    }
}

struct SqliteSnapshot {
    transaction: Transaction<'static, Sqlite>,
    state: CheckpointState,
}

impl SqliteSnapshot {
    async fn read_buckets(
        &mut self,
        after: Option<&BucketRow>,
        limit: u32,
    ) -> Result<Vec<BucketRow>, sqlx::Error> {
        let (tier_s, bucket_s) = after.map_or((0, 0), |row| (row.tier_s, row.bucket_s));
        let (series, key) = after.map_or(("", ""), |row| (&row.series, &row.key));
        let found = query(
            "SELECT * FROM bucket WHERE (tier_s, series, bucket_s, key) > ($1, $2, $3, $4) \
             ORDER BY tier_s, series, bucket_s, key LIMIT $5",
        )
        .bind(tier_s)
        .bind(series)
        .bind(bucket_s)
        .bind(key)
        .bind(i64::from(limit))
        .fetch_all(&mut *self.transaction)
        .await?;
        found.iter().map(rows::bucket).collect()
    }

    async fn find_buckets(&mut self, wanted: &[BucketRow]) -> Result<Vec<BucketRow>, sqlx::Error> {
        let mut found = Vec::new();
        for chunk in wanted.chunks(KEYS_PER_STATEMENT) {
            found.extend(existing(&mut self.transaction, chunk).await?);
        }
        Ok(found.into_iter().map(rows::keyed).collect())
    }

    async fn read_users(
        &mut self,
        after: Option<&UserPage>,
        limit: u32,
    ) -> Result<Vec<UserPage>, sqlx::Error> {
        let key = after.map(|page| &page.key);
        let text = |of: fn(&UserPageKey) -> &str| key.map_or("", of);
        let found = query(
            "SELECT * FROM user_page WHERE (user_id, page_url, event_type) > ($1, $2, $3) \
             ORDER BY user_id, page_url, event_type LIMIT $4",
        )
        .bind(text(|key| &key.user_id))
        .bind(text(|key| &key.page_url))
        .bind(text(|key| &key.event_type))
        .bind(i64::from(limit))
        .fetch_all(&mut *self.transaction)
        .await?;
        found.iter().map(rows::user_page).collect()
    }

    async fn find_users(&mut self, wanted: &[UserPage]) -> Result<Vec<UserPage>, sqlx::Error> {
        let mut pages = Vec::new();
        for chunk in wanted.chunks(KEYS_PER_STATEMENT) {
            let mut sql = sqlx::QueryBuilder::<Sqlite>::new(
                "WITH wanted(user_id, page_url, event_type) AS (",
            );
            sql.push_values(chunk, |mut row, page| {
                row.push_bind(&*page.key.user_id)
                    .push_bind(&*page.key.page_url)
                    .push_bind(&*page.key.event_type);
            });
            sql.push(
                ") SELECT u.* FROM wanted AS w CROSS JOIN user_page AS u ON u.user_id = w.user_id \
                 AND u.page_url = w.page_url AND u.event_type = w.event_type",
            );
            let found = sql.build().fetch_all(&mut *self.transaction).await?;
            for row in &found {
                pages.push(rows::user_page(row)?);
            }
        }
        Ok(pages)
    }
}

impl Snapshot for SqliteSnapshot {
    fn state(&self) -> &CheckpointState {
        &self.state
    }

    fn buckets<'a>(
        &'a mut self,
        after: Option<&'a BucketRow>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<BucketRow>> {
        named("compare buckets", self.read_buckets(after, limit))
    }

    fn buckets_like<'a>(&'a mut self, wanted: &'a [BucketRow]) -> StoreFuture<'a, Vec<BucketRow>> {
        named("compare buckets", self.find_buckets(wanted))
    }

    fn users<'a>(
        &'a mut self,
        after: Option<&'a UserPage>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<UserPage>> {
        named("compare user pages", self.read_users(after, limit))
    }

    fn users_like<'a>(&'a mut self, pages: &'a [UserPage]) -> StoreFuture<'a, Vec<UserPage>> {
        named("compare user pages", self.find_users(pages))
    }
}
