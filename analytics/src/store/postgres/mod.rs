//! The store in PostgreSQL. Rows travel as arrays, one statement for many; row locks and the compare-and-swaps order the
//! writers, in the order of partitions, so that two instances never wait for each other in a ring.

mod read;
mod slots;
mod write;

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use sqlx::{
    Connection, PgPool,
    pool::PoolOptions,
    postgres::{PgConnectOptions, Postgres},
};

use super::{
    Advance, CheckpointState, CheckpointWrite, Connections, Contents, DeltaRow, Scan, Scanned,
    Slot, Slots, Store, StoreError, StoreFuture, Sums, SumsOf, Swapped, UserFilter, UserPages,
    named, schema,
};
use crate::view::ChainRow;

/// Connections of the writers: one each for applying, for the checkpoint and for deleting what is old.
const WRITERS: u32 = 3;
/// How long an operation waits for a connection, and a connection for a sign of life when it is given back.
const PATIENCE: Duration = Duration::from_secs(5);
/// All reads of one query see one moment.
const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// The store. Queries have connections of their own: however many wait for one, the writers never do.
#[derive(Debug)]
pub struct PostgresStore {
    writer: PgPool,
    reader: PgPool,
}

/// PostgreSQL's text holds no NUL; what stands for it is the same for writing and for looking up.
fn text(value: &str) -> String {
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

impl Store for PostgresStore {
    fn migrate(&self) -> StoreFuture<'_, ()> {
        async { Ok(schema::postgres().run(&self.writer).await?) }.boxed()
    }

    fn served(&self) -> StoreFuture<'_, Slot> {
        named("read which rows are served", self.read_served())
    }

    fn contents(&self, slot: Slot) -> StoreFuture<'_, Contents> {
        named("read the chains", self.read_contents(slot))
    }

    fn chains<'a>(&'a self, partitions: &'a [i32]) -> StoreFuture<'a, Vec<ChainRow>> {
        named("read the chains", self.read_chains(partitions))
    }

    fn checkpoint_state(&self, slot: Slot) -> StoreFuture<'_, CheckpointState> {
        named("read the checkpoint", self.read_state(slot))
    }

    fn deltas(&self, partition: i32, from: i64, limit: u32) -> StoreFuture<'_, Vec<DeltaRow>> {
        named("read deltas", self.read_deltas(partition, from, limit))
    }

    fn apply<'a>(&'a self, advances: &'a [Advance]) -> StoreFuture<'a, Swapped> {
        named("apply", self.write_advances(advances))
    }

    fn checkpoint<'a>(&'a self, write: &'a CheckpointWrite) -> StoreFuture<'a, Swapped> {
        named("write a checkpoint", self.write_checkpoint(write))
    }

    fn trim<'a>(&'a self, slot: Slot, positions: &'a BTreeMap<i32, i64>) -> StoreFuture<'a, ()> {
        named("delete deltas", self.delete_deltas(slot, positions))
    }

    fn scan<'a>(&'a self, scan: Scan<'a>) -> StoreFuture<'a, Scanned> {
        self.read_rows(scan).boxed()
    }

    fn user_pages<'a>(&'a self, filter: UserFilter<'a>) -> StoreFuture<'a, UserPages> {
        named("read user pages", self.read_user(filter))
    }

    fn expire(&self, slot: Slot, tier_s: i64, before_s: i64, limit: u32) -> StoreFuture<'_, u64> {
        named(
            "delete old buckets",
            self.delete_rows(slot, tier_s, before_s, limit),
        )
    }

    fn sums<'a>(&'a self, sums: SumsOf<'a>) -> StoreFuture<'a, Sums> {
        named("add rows up", self.read_sums(sums))
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
