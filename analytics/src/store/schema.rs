//! The tables, as numbered migrations per database. A migration that was released is never changed.

use std::borrow::Cow;

use sqlx::{
    SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};

/// SQLite: the rows. Deltas lie in a file of their own, so that a long checkpoint never delays an apply.
pub(super) fn sqlite_rows() -> Migrator {
    migrator(&[(1, "rows", include_str!("migrations/sqlite_rows_1.sql"))])
}

/// SQLite: the chains and the deltas.
pub(super) fn sqlite_deltas() -> Migrator {
    migrator(&[
        (1, "deltas", include_str!("migrations/sqlite_deltas_1.sql")),
        (2, "gap", include_str!("migrations/sqlite_deltas_2.sql")),
        (3, "slots", include_str!("migrations/sqlite_deltas_3.sql")),
        (4, "holes", include_str!("migrations/sqlite_deltas_4.sql")),
        (5, "rebuilt", include_str!("migrations/sqlite_deltas_5.sql")),
    ])
}

/// PostgreSQL: all tables.
pub(super) fn postgres() -> Migrator {
    migrator(&[
        (1, "start", include_str!("migrations/postgres_1.sql")),
        (2, "gap", include_str!("migrations/postgres_2.sql")),
        (3, "slots", include_str!("migrations/postgres_3.sql")),
        (4, "holes", include_str!("migrations/postgres_4.sql")),
        (5, "rebuilt", include_str!("migrations/postgres_5.sql")),
    ])
}

fn migrator(migrations: &[(i64, &'static str, &'static str)]) -> Migrator {
    let migrations = migrations.iter().map(|(version, name, sql)| {
        let kind = MigrationType::Simple;
        Migration::new(
            *version,
            Cow::Borrowed(*name),
            kind,
            sql.into_sql_str(),
            false,
        )
    });
    Migrator::with_migrations(migrations.collect())
}
