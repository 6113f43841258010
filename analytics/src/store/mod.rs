//! The store seam: a few coarse operations, each one transaction, over SQLite or PostgreSQL.
//!
//! The store is the fold of `metrics-data` that survives. Two things in it move by compare-and-swap: each partition's
//! chain (with the deltas that it applied), and the checkpoint (with the rows that the deltas became). Whoever loses a
//! swap has written nothing. Nothing here retries or decides; callers do.

mod observed;
mod postgres;
mod rows;
mod schema;
mod slots;
mod sqlite;

use std::{collections::BTreeMap, ops::Range, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, TryFutureExt, future::BoxFuture};

pub use observed::Observed;
pub use postgres::PostgresStore;
pub use slots::{Slot, Slots, Snapshot};
pub use sqlite::{Durability, SqliteStore};
pub use streamgauge_audit::{Rebuilt, Shift};

use crate::{
    config::StoreConfig,
    view::{CellValue, ChainRow},
};

/// Lengths of the buckets that the store keeps, in seconds, finest first.
pub const TIERS_S: [i64; 4] = [1, 60, 3_600, 86_400];

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL names no store that is known.
    #[error("store.url: {0}")]
    Url(String),
    /// The database said no, or nothing.
    #[error("the store failed to {op}: {source}")]
    Database {
        /// What was tried.
        op: &'static str,
        /// The driver's error.
        #[source]
        source: sqlx::Error,
    },
    /// The schema could not be brought up to date.
    #[error("the store's schema could not be brought up to date: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// More rows than a query may read.
    #[error("more than {0} rows")]
    TooManyRows(usize),
    /// The database did not answer in time. Whether it did what it was asked is not known.
    #[error(
        "the store did not finish {op} within {limit_ms} ms; is it reachable, and is {setting} long enough?"
    )]
    TimedOut {
        /// What was tried.
        op: &'static str,
        /// The setting of the limit.
        setting: &'static str,
        /// The limit.
        limit_ms: u64,
    },
    /// It failed often enough to be left alone for a while.
    #[error("the store is left alone for {} ms, after: {cause}", retry_after.as_millis())]
    Resting {
        /// What it said last.
        cause: Arc<str>,
        /// When it is tried again.
        retry_after: Duration,
    },
    /// Another instance's checkpoints came faster than the store could be read.
    #[error("another instance moved the store's checkpoint while it was read")]
    Moved,
    /// A rebuild has put other rows in the place of those that memory completes.
    #[error("a rebuild has put other rows in the place of those in memory")]
    Swapped,
}

impl StoreError {
    /// Whether the same operation may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Database { source, .. } => !matches!(
                source,
                sqlx::Error::Configuration(_)
                    | sqlx::Error::ColumnNotFound(_)
                    | sqlx::Error::ColumnDecode { .. }
                    | sqlx::Error::TypeNotFound { .. }
            ),
            Self::Migrate(error) => matches!(
                error,
                sqlx::migrate::MigrateError::Execute(_)
                    | sqlx::migrate::MigrateError::ExecuteMigration(..)
            ),
            Self::TimedOut { .. } | Self::Resting { .. } | Self::Moved | Self::Swapped => true,
            Self::Url(_) | Self::TooManyRows(_) => false,
        }
    }

    /// Whether it says something of the database's health rather than of what was asked of it.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Database { source, .. } => outage(source),
            Self::Migrate(
                sqlx::migrate::MigrateError::Execute(source)
                | sqlx::migrate::MigrateError::ExecuteMigration(source, _),
            ) => outage(source),
            Self::TimedOut { .. } => true,
            Self::Migrate(_)
            | Self::Resting { .. }
            | Self::Moved
            | Self::Swapped
            | Self::Url(_)
            | Self::TooManyRows(_) => false,
        }
    }

    pub(crate) fn of(op: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |source| Self::Database { op, source }
    }
}

/// Whether a driver's error is the database's: one about the values or the statement is not.
fn outage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error.code().is_none_or(|code| outage_code(&code)),
        _ => false,
    }
}

/// PostgreSQL's classes: no connection, no room, an operator's hand, the system, a defect. SQLite's primary codes: it is
/// busy, locked, read-only, full, not to be read or opened, or damaged.
fn outage_code(code: &str) -> bool {
    const POSTGRES: [&str; 5] = ["08", "53", "57", "58", "XX"];
    const SQLITE: [u32; 9] = [5, 6, 8, 10, 11, 13, 14, 15, 26];
    // A statement that took too long was cut off by a database that is there.
    const QUERY_CANCELED: &str = "57014";
    if code.len() == 5 && code.is_ascii() {
        return code != QUERY_CANCELED && POSTGRES.contains(&&code[..2]);
    }
    code.parse::<u32>()
        .is_ok_and(|code| SQLITE.contains(&(code & 0xff)))
}

/// What a store holds beside its rows.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The chain of each partition.
    pub chains: Vec<ChainRow>,
    /// Names of the series.
    pub series: Vec<String>,
}

/// How far the rows reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointState {
    /// The checkpoint's name.
    pub generation: i64,
    /// Per partition, the position in `metrics-data` up to which the rows hold it.
    pub positions: BTreeMap<i32, i64>,
}

/// A valid batch as it stood in the log.
#[derive(Clone, Debug)]
pub struct DeltaRow {
    /// Its offset in `metrics-data`.
    pub offset: i64,
    /// The record's payload.
    pub payload: Bytes,
}

/// The move of one partition's chain.
#[derive(Clone, Debug)]
pub struct Advance {
    /// The row as the store is expected to hold it; one that was never written stands at position 0.
    pub before: ChainRow,
    /// The row afterwards.
    pub after: ChainRow,
    /// The batches that moved it.
    pub deltas: Vec<DeltaRow>,
}

/// What became of a compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// It is written.
    Done,
    /// Something else was found than was expected, and nothing was written.
    Conflict,
}

/// A row of a bucket.
#[derive(Clone, Debug)]
pub struct BucketRow {
    /// Length of the bucket: one of [`TIERS_S`].
    pub tier_s: i64,
    /// Start of the bucket.
    pub bucket_s: i64,
    /// Series.
    pub series: Arc<str>,
    /// The key as text.
    pub key: Arc<str>,
    /// What is known of it.
    pub value: CellValue,
}

/// A row of one user's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserPageRow {
    /// The page.
    pub page_url: String,
    /// The event type.
    pub event_type: String,
    /// How often.
    pub count: u64,
    /// When last, microseconds.
    pub last_us: i64,
}

/// The move of the checkpoint.
#[derive(Clone, Debug)]
pub struct CheckpointWrite {
    /// The rows that it adds to.
    pub slot: Slot,
    /// The checkpoint that is expected.
    pub from: i64,
    /// Its name afterwards.
    pub to: i64,
    /// Where the rows reach afterwards.
    pub positions: BTreeMap<i32, i64>,
    /// Additions to buckets, each `(tier, bucket, series, key)` once.
    pub buckets: Vec<BucketRow>,
    /// Additions to user pages, each once.
    pub users: Vec<crate::view::UserPage>,
}

/// Consecutive buckets of one tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Length of its buckets.
    pub tier_s: i64,
    /// Seconds, whole buckets.
    pub range: Range<i64>,
}

/// Which rows of a series.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// Of which rows.
    pub slot: Slot,
    /// The series.
    pub series: &'a str,
    /// Where its rows lie.
    pub segments: &'a [Segment],
    /// Most rows; more are an error.
    pub rows_max: usize,
    /// Whether the quantile sketches are read, which are most of a row.
    pub quantiles: bool,
}

/// Rows of one series.
#[derive(Clone, Debug, Default)]
pub struct Scanned {
    /// The checkpoint that the rows belong to.
    pub generation: i64,
    /// Start of the bucket, key as text, value.
    pub rows: Vec<(i64, String, CellValue)>,
}

/// Which rows are added up.
#[derive(Clone, Copy, Debug)]
pub struct SumsOf<'a> {
    /// The set of rows.
    pub slot: Slot,
    /// The series, whose rows are added up together.
    pub series: &'a [&'a str],
    /// Where the rows lie; each is added up for itself.
    pub segments: &'a [Segment],
}

/// What rows add up to, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// The checkpoint that the rows belong to.
    pub generation: i64,
    /// Per partition, the position in `metrics-data` up to which the rows hold it.
    pub positions: BTreeMap<i32, i64>,
    /// Events, in the order of the segments.
    pub events: Vec<u64>,
    /// The rebuild that made the rows, if one did.
    pub rebuilt: Option<Rebuilt>,
}

/// One user's pages.
#[derive(Clone, Debug, Default)]
pub struct UserPages {
    /// The checkpoint that the rows belong to.
    pub generation: i64,
    /// The pages, most frequent first.
    pub rows: Vec<UserPageRow>,
    /// Events over all pages that match, those beyond the limit too.
    pub count: u64,
}

/// Which of a user's pages.
#[derive(Clone, Copy, Debug)]
pub struct UserFilter<'a> {
    /// Of which rows.
    pub slot: Slot,
    /// The user.
    pub user_id: &'a str,
    /// One page only.
    pub page_url: Option<&'a str>,
    /// One event type only.
    pub event_type: Option<&'a str>,
    /// Most rows.
    pub limit: usize,
}

/// Connections of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// In use.
    pub busy: u32,
    /// Waiting for use.
    pub idle: u32,
}

/// The result of an operation under way.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// What a driver does, as an operation of the store: its error names what was tried.
fn named<'a, T: 'a>(
    op: &'static str,
    work: impl Future<Output = Result<T, sqlx::Error>> + Send + 'a,
) -> StoreFuture<'a, T> {
    work.map_err(StoreError::of(op)).boxed()
}

/// A store.
pub trait Store: Send + Sync + 'static {
    /// Connects if need be and brings the schema up to date. Every other operation needs this to have succeeded once.
    fn migrate(&self) -> StoreFuture<'_, ()>;

    /// Which rows are served.
    fn served(&self) -> StoreFuture<'_, Slot>;

    /// The chains, and the series of these rows.
    fn contents(&self, slot: Slot) -> StoreFuture<'_, Contents>;

    /// The chain rows of these partitions, those that there are.
    fn chains<'a>(&'a self, partitions: &'a [i32]) -> StoreFuture<'a, Vec<ChainRow>>;

    /// How far these rows reach.
    fn checkpoint_state(&self, slot: Slot) -> StoreFuture<'_, CheckpointState>;

    /// At most `limit` deltas of a partition, from a position on.
    fn deltas(&self, partition: i32, from: i64, limit: u32) -> StoreFuture<'_, Vec<DeltaRow>>;

    /// Moves chains, all or none.
    fn apply<'a>(&'a self, advances: &'a [Advance]) -> StoreFuture<'a, Swapped>;

    /// Moves the checkpoint.
    fn checkpoint<'a>(&'a self, write: &'a CheckpointWrite) -> StoreFuture<'a, Swapped>;

    /// Deletes the deltas that these rows hold, as far as they are served and no rebuild needs them.
    fn trim<'a>(&'a self, slot: Slot, positions: &'a BTreeMap<i32, i64>) -> StoreFuture<'a, ()>;

    /// The rows of a series, of one moment.
    fn scan<'a>(&'a self, scan: Scan<'a>) -> StoreFuture<'a, Scanned>;

    /// What one user did.
    fn user_pages<'a>(&'a self, filter: UserFilter<'a>) -> StoreFuture<'a, UserPages>;

    /// Deletes at most `limit` of these rows of a tier that start before `before_s`; tells how many it deleted.
    fn expire(&self, slot: Slot, tier_s: i64, before_s: i64, limit: u32) -> StoreFuture<'_, u64>;

    /// What a rebuild does with the rows that are not served.
    fn slots(&self) -> &dyn Slots;

    /// What the rows of a series add up to, of one moment.
    fn sums<'a>(&'a self, sums: SumsOf<'a>) -> StoreFuture<'a, Sums>;

    /// The state of the pools.
    fn connections(&self) -> Connections;

    /// Closes the pools.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// The store that the settings name, not connected yet.
///
/// # Errors
/// When the URL names none.
pub fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    let url = config.url.expose();
    if let Some(path) = url
        .strip_prefix("sqlite://")
        .or_else(|| url.strip_prefix("sqlite:"))
    {
        if path.is_empty() || path.contains('?') || path.contains(":memory:") {
            let message = "a file is needed, as in sqlite:data/analytics.db";
            return Err(StoreError::Url(String::from(message)));
        }
        let path = PathBuf::from(path);
        return Ok(Arc::new(SqliteStore::new(
            path,
            config.durability,
            config.connections_max,
        )));
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        let timeout = Duration::from_millis(config.statement_timeout_ms);
        return Ok(Arc::new(PostgresStore::new(
            url,
            config.connections_max,
            timeout,
        )?));
    }
    let message = "neither sqlite:PATH nor postgres://USER@HOST/DATABASE";
    Err(StoreError::Url(String::from(message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_values_is_no_outage() {
        let outages = [
            "08006", "53100", "57P01", "58030", "XX000", "5", "10", "266", "13", "14",
        ];
        for code in outages {
            assert!(outage_code(code), "{code}");
        }
        for code in [
            "22021", "23505", "40001", "42P01", "57014", "19", "2067", "18", "x",
        ] {
            assert!(!outage_code(code), "{code}");
        }
    }

    #[test]
    fn what_a_query_asks_too_much_of_is_no_outage() {
        let hanging = StoreError::TimedOut {
            op: "scan",
            setting: "store.operation_timeout_ms",
            limit_ms: 1,
        };
        assert!(hanging.is_outage() && StoreError::of("x")(sqlx::Error::PoolTimedOut).is_outage());
        let asked = [
            StoreError::TooManyRows(1),
            StoreError::Moved,
            StoreError::of("x")(sqlx::Error::RowNotFound),
        ];
        for error in asked {
            assert!(!error.is_outage(), "{error}");
        }
    }
}
