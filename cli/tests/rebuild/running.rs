//! A system that is rebuilt while it counts and answers.

use std::{sync::Arc, time::Instant};

use serde_json::Value;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_running_system_is_rebuilt_while_it_counts_and_answers() {
    let system = Arc::new(start().await);
    let (client, analytics) = (client(), system.analytics());
    sends(&system, 3_000, 1);
    // The same ids again: duplicates, then as now.
    sends(&system, 1_000, 1);
    until_known(&client, &analytics).await;
    until_served(&client, &analytics, 3_000).await;

    let (code, found, said) = rebuild(&system, &["--dry-run"]);
    assert_eq!(
        (code, &found["equal"]),
        (0, &Value::Bool(true)),
        "{found} {said}"
    );
    assert_eq!(found["ending"], "dry_run");
    assert!(
        found["total"]["rows"].as_u64().expect("rows") > 1_000,
        "{found}"
    );
    for partition in found["partitions"].as_array().expect("partitions") {
        assert_eq!(partition["ledger"], partition["rebuilt"], "{partition}");
    }

    let key = corrupt(&system, "page_url", 1, 9).await;
    for (arguments, ending) in [(&["--dry-run"][..], "dry_run"), (&[], "refused")] {
        let (code, found, said) = rebuild(&system, arguments);
        assert_eq!(
            (code, &found["ending"]),
            (1, &ending.into()),
            "{found} {said}"
        );
        assert_eq!(found["total"]["differing"], 1, "{found}");
        let named = &found["differences"][0];
        assert_eq!(named["at"]["key"].to_string(), key, "{found}");
        let (before, after) = (&named["served"]["count"], &named["rebuilt"]["count"]);
        assert_eq!(before.as_u64(), after.as_u64().map(|count| count + 9));
    }

    // Events flow and queries are asked all the while.
    let asking = Asking::start(&analytics);
    let sending = tokio::task::spawn_blocking({
        let system = Arc::clone(&system);
        move || (2..6).for_each(|seed| sends(&system, 500, seed))
    });
    let (code, found, said) = tokio::task::spawn_blocking({
        let system = Arc::clone(&system);
        move || rebuild(&system, &["--accept"])
    })
    .await
    .expect("no panic");
    assert_eq!(
        (code, &found["ending"]),
        (0, &"swapped".into()),
        "{found} {said}"
    );
    sending.await.expect("sent");
    until_served(&client, &analytics, 5_000).await;
    // Until the rows that were swapped in are those that answer.
    let end = Instant::now() + DEADLINE;
    loop {
        let (code, found, said) = rebuild(&system, &["--dry-run"]);
        if code == 0 {
            break;
        }
        assert!(Instant::now() < end, "{found} {said}");
    }
    assert!(asking.end().await > 20);

    let (code, audit, said) = run(&system, &["audit", "--json"]);
    assert_eq!(
        (code, &audit["balanced"]),
        (0, &Value::Bool(true)),
        "{audit} {said}"
    );
    let (code, _, said) = rebuild(&system, &["--prune"]);
    assert_eq!(code, 0, "{said}");
    until_served(&client, &analytics, 5_000).await;
}
