//! What each file's commits survive.

use std::collections::BTreeMap;

use sqlx::query_scalar;

use super::*;

async fn synchronous(pool: &SqlitePool) -> i64 {
    query_scalar("PRAGMA synchronous")
        .fetch_one(pool)
        .await
        .expect("an answer")
}

#[tokio::test]
async fn rows_are_synced_whatever_the_deltas_are() {
    let folder = tempfile::tempdir().expect("a folder");
    for (durability, deltas) in [(Durability::Full, 2), (Durability::Normal, 1)] {
        let path = folder.path().join(format!("{durability:?}.db"));
        let store = SqliteStore::new(path, durability, 1);
        store.migrate().await.expect("migrated");
        for slot in [Slot::First, Slot::Second] {
            assert_eq!(synchronous(&store.rows(slot).writer).await, 2);
        }
        assert_eq!(synchronous(&store.deltas_writer).await, deltas);
    }
}

#[tokio::test]
async fn which_rows_are_served_is_synced_and_nothing_after_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("analytics.db");
    let store = SqliteStore::new(path, Durability::Normal, 1);
    store.migrate().await.expect("migrated");
    let mut synced = store.synced().await.expect("a connection");
    let found: i64 = query_scalar("PRAGMA synchronous")
        .fetch_one(&mut *synced)
        .await
        .expect("an answer");
    assert_eq!(found, 2);
    drop(synced);
    assert_eq!(synchronous(&store.deltas_writer).await, 1);
    assert!(store.lock(1, 60_000).await.expect("asked"));
    assert!(
        store
            .swap(1, Slot::Second, 0, &BTreeMap::new())
            .await
            .expect("asked")
    );
    assert_eq!(store.served().await.expect("asked"), Slot::Second);
    assert_eq!(synchronous(&store.deltas_writer).await, 1);
}
