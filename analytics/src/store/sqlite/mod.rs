//! The store in three SQLite files: two sets of rows, of which one is served, and beside them the chains with the deltas
//! that are not in the rows yet.
//!
//! Several files, because SQLite has one writer per file: a checkpoint of many rows must not delay the next apply, nor a
//! rebuild the next checkpoint. No transaction spans two: rows know by themselves how far they reach, and deltas below
//! that are only waste. So rows are always synced before the deltas that they hold are deleted; chains and deltas that a
//! power cut sets back are read from the log again.
//! Journals are write-ahead logs, so that readers and the writer do not wait for each other.

mod read;
mod slots;
mod write;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use serde::{Deserialize, Serialize};
use sqlx::{
    Sqlite, SqlitePool,
    pool::PoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{
    Advance, CheckpointState, CheckpointWrite, Connections, Contents, DeltaRow, Scan, Scanned,
    Slot, Slots, Store, StoreError, StoreFuture, Sums, SumsOf, Swapped, UserFilter, UserPages,
    named, schema,
};
use crate::view::ChainRow;

/// How long a writer waits for another process, and a query for a connection.
const PATIENCE: Duration = Duration::from_secs(5);

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
    deltas_writer: SqlitePool,
    deltas_reader: SqlitePool,
    path: PathBuf,
}

/// A file with one set of rows.
#[derive(Debug)]
struct RowsFile {
    writer: SqlitePool,
    reader: SqlitePool,
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

async fn begin(pool: &SqlitePool) -> Result<sqlx::Transaction<'static, Sqlite>, sqlx::Error> {
    // The write lock is taken at once: a lock taken later could fail in mid-transaction.
    pool.begin_with("BEGIN IMMEDIATE").await
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

    fn rows(&self, slot: Slot) -> &RowsFile {
        match slot {
            Slot::First => &self.rows[0],
            Slot::Second => &self.rows[1],
        }
    }
}

impl Store for SqliteStore {
    fn migrate(&self) -> StoreFuture<'_, ()> {
        self.connect().boxed()
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
mod tests;
