//! What a rebuild does in PostgreSQL. Each set of rows has tables of its own, whose names differ by a suffix.

use std::collections::BTreeMap;

use futures::FutureExt;
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Transaction, query, query_scalar};

use super::{
    PostgresStore, SNAPSHOT,
    read::{existing, state},
    text,
};
use crate::{
    store::{
        BucketRow, CheckpointState, Shift, Slot, Slots, Snapshot, StoreError, StoreFuture, named,
        rows,
    },
    view::UserPage,
};

/// The database's clock.
const NOW_MS: &str = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";

impl Slot {
    /// A statement over the tables of this set: `{s}` stands for the suffix of their names, `{now}` for the clock.
    pub(in crate::store) fn sql(self, template: &'static str) -> AssertSqlSafe<String> {
        let suffix = match self {
            Self::First => "",
            Self::Second => "_1",
        };
        AssertSqlSafe(template.replace("{s}", suffix).replace("{now}", NOW_MS))
    }
}

/// A statement over tables that are there once.
fn sql(template: &'static str) -> AssertSqlSafe<String> {
    Slot::First.sql(template)
}

async fn holds(connection: &mut PgConnection, owner: i64) -> Result<bool, sqlx::Error> {
    let held: Option<i64> = query_scalar(sql(
        "SELECT owner FROM rebuild_lock WHERE owner = $1 AND expires_ms > {now} FOR UPDATE",
    ))
    .bind(owner)
    .fetch_optional(connection)
    .await?;
    Ok(held.is_some())
}

/// Replaces what was kept of these rows.
async fn write_shifts(
    connection: &mut PgConnection,
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

impl PostgresStore {
    async fn take_lock(&self, owner: i64, lease_ms: i64) -> Result<bool, sqlx::Error> {
        let mut transaction = self.writer.begin().await?;
        let taken = query(sql(
            "INSERT INTO rebuild_lock AS l (one, owner, expires_ms) VALUES (1, $1, {now} + $2) \
             ON CONFLICT (one) DO UPDATE SET owner = EXCLUDED.owner, expires_ms = EXCLUDED.expires_ms \
             WHERE l.expires_ms <= {now}",
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
        let held = query(sql(
            "UPDATE rebuild_lock SET expires_ms = {now} + $2 WHERE owner = $1 AND expires_ms > {now}",
        ))
        .bind(owner)
        .bind(lease_ms)
        .execute(&self.writer)
        .await?;
        Ok(held.rows_affected() == 1)
    }

    async fn give_lock_back(&self, owner: i64) -> Result<(), sqlx::Error> {
        let mut transaction = self.writer.begin().await?;
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
        let mut transaction = self.writer.begin().await?;
        if !holds(&mut transaction, owner).await? {
            return Ok(false);
        }
        let (partitions, positions): (Vec<i32>, Vec<i64>) = positions.iter().unzip();
        query(
            "INSERT INTO delta_pin (partition, position) SELECT * FROM UNNEST($1::int[], $2::bigint[]) \
             ON CONFLICT (partition) DO UPDATE SET position = EXCLUDED.position",
        )
        .bind(partitions)
        .bind(positions)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(true)
    }

    async fn empty(&self, owner: i64, slot: Slot, name: i64) -> Result<bool, sqlx::Error> {
        let mut transaction = self.writer.begin().await?;
        // The row's lock, taken here, holds checkpoints and other rebuilds off these rows until the commit.
        query(slot.sql("UPDATE checkpoint{s} SET generation = $1"))
            .bind(name)
            .execute(&mut *transaction)
            .await?;
        // The lock of rebuilds is only read, so that it can be renewed meanwhile.
        let allowed: bool = query_scalar(sql(
            "SELECT EXISTS (SELECT 1 FROM rebuild_lock AS l CROSS JOIN served AS s \
             WHERE l.owner = $1 AND l.expires_ms > {now} AND s.slot <> $2)",
        ))
        .bind(owner)
        .bind(slot.number())
        .fetch_one(&mut *transaction)
        .await?;
        if !allowed {
            return Ok(false);
        }
        query(slot.sql("TRUNCATE bucket{s}, user_page{s}, series{s}, checkpoint_position{s}"))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }

    async fn move_served(
        &self,
        owner: i64,
        to: Slot,
        name: i64,
        shifts: &BTreeMap<i32, Shift>,
    ) -> Result<bool, sqlx::Error> {
        let mut transaction = self.writer.begin().await?;
        if !holds(&mut transaction, owner).await? {
            return Ok(false);
        }
        let found: i64 = query_scalar(to.sql("SELECT generation FROM checkpoint{s} FOR SHARE"))
            .fetch_one(&mut *transaction)
            .await?;
        if found != name {
            return Ok(false);
        }
        // Waits for whoever deletes deltas on behalf of the rows that are served.
        let generation = query_scalar(
            "UPDATE served SET slot = $1, generation = generation + 1 RETURNING generation",
        )
        .bind(to.number())
        .fetch_one(&mut *transaction)
        .await?;
        write_shifts(&mut transaction, to, generation, shifts).await?;
        for statement in ["DELETE FROM delta_pin", "DELETE FROM rebuild_lock"] {
            query(statement).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    async fn open_snapshot(&self, slot: Slot) -> Result<PostgresSnapshot, sqlx::Error> {
        let mut transaction = self.reader.begin_with(SNAPSHOT).await?;
        // The first read fixes the moment.
        let state = state(&mut transaction, slot).await?;
        Ok(PostgresSnapshot {
            transaction,
            slot,
            state,
        })
    }
}

impl Slots for PostgresStore {
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

struct PostgresSnapshot {
    transaction: Transaction<'static, Postgres>,
    slot: Slot,
    state: CheckpointState,
}

/// What stands for page and event type in the primary key.
const PAGE_DIGEST: &str = "md5(octet_length({page}) || ':' || {page} || {type})::uuid";

/// A statement with the digest of a page and an event type, given as two expressions.
fn with_digest(
    slot: Slot,
    template: &'static str,
    page: &str,
    kind: &str,
) -> AssertSqlSafe<String> {
    let digest = PAGE_DIGEST.replace("{page}", page).replace("{type}", kind);
    AssertSqlSafe(slot.sql(template).0.replace("{digest}", &digest))
}

impl PostgresSnapshot {
    async fn read_buckets(
        &mut self,
        after: Option<&BucketRow>,
        limit: u32,
    ) -> Result<Vec<BucketRow>, sqlx::Error> {
        let (tier_s, bucket_s) = after.map_or((0, 0), |row| (row.tier_s, row.bucket_s));
        let (series, key) = after.map_or(("", ""), |row| (&row.series, &row.key));
        let found = query(self.slot.sql(
            "SELECT tier_s::bigint AS tier_s, series, bucket_s, key, count, value_count, sum, min, max, users, \
             quantiles FROM bucket{s} AS b \
             WHERE (b.tier_s, b.series, b.bucket_s, b.key_digest) > ($1, $2, $3, md5($4)::uuid) \
             ORDER BY b.tier_s, b.series, b.bucket_s, b.key_digest LIMIT $5",
        ))
        .bind(tier_s as i32)
        .bind(series)
        .bind(bucket_s)
        .bind(key)
        .bind(i64::from(limit))
        .fetch_all(&mut *self.transaction)
        .await?;
        found.iter().map(rows::bucket).collect()
    }

    async fn find_buckets(&mut self, wanted: &[BucketRow]) -> Result<Vec<BucketRow>, sqlx::Error> {
        let found = existing(&mut self.transaction, self.slot, wanted).await?;
        Ok(found.into_iter().map(rows::keyed).collect())
    }

    async fn read_users(
        &mut self,
        after: Option<&UserPage>,
        limit: u32,
    ) -> Result<Vec<UserPage>, sqlx::Error> {
        let key = after.map(|page| &page.key);
        let found = query(with_digest(
            self.slot,
            "SELECT user_id, page_url, event_type, count, last_us FROM user_page{s} \
             WHERE $1::text IS NULL OR (user_id, page_digest) > ($1, {digest}) \
             ORDER BY user_id, page_digest LIMIT $4",
            "$2::text",
            "$3::text",
        ))
        .bind(key.map(|key| text(&key.user_id)))
        .bind(key.map(|key| text(&key.page_url)))
        .bind(key.map(|key| text(&key.event_type)))
        .bind(i64::from(limit))
        .fetch_all(&mut *self.transaction)
        .await?;
        found.iter().map(rows::user_page).collect()
    }

    async fn find_users(&mut self, wanted: &[UserPage]) -> Result<Vec<UserPage>, sqlx::Error> {
        let texts = |of: fn(&UserPage) -> &str| -> Vec<String> {
            wanted.iter().map(|page| text(of(page))).collect()
        };
        let found = query(with_digest(
            self.slot,
            "SELECT u.user_id, u.page_url, u.event_type, u.count, u.last_us \
             FROM UNNEST($1::text[], $2::text[], $3::text[]) AS w(user_id, page_url, event_type) \
             JOIN user_page{s} AS u ON u.user_id = w.user_id AND u.page_digest = {digest}",
            "w.page_url",
            "w.event_type",
        ))
        .bind(texts(|page| &page.key.user_id))
        .bind(texts(|page| &page.key.page_url))
        .bind(texts(|page| &page.key.event_type))
        .fetch_all(&mut *self.transaction)
        .await?;
        found.iter().map(rows::user_page).collect()
    }
}

impl Snapshot for PostgresSnapshot {
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
