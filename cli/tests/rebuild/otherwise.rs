//! A rebuild by other settings than the system counts by: the books balance, and tell it.

use super::*;

const SETTINGS: [&str; 3] = [
    "analytics.store.swap_poll_ms=50",
    "analytics.checkpoint.interval_ms=200",
    "consumer.events.accepted_age_hours=1",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn figures_that_were_judged_otherwise_balance_and_are_told() {
    balances(System::start(&SETTINGS).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn so_it_is_where_each_service_has_a_process_and_settings_of_its_own() {
    balances(System::start_apart(&SETTINGS).await).await;
}

async fn balances(system: System) {
    let (client, analytics) = (client(), system.analytics());
    let sends = |count: &str, seed: &str| {
        let arguments = [
            "send-events",
            "--json",
            "--span=3h",
            "--count",
            count,
            "--seed",
            seed,
        ];
        let (code, sent, said) = run(&system, &arguments);
        assert_eq!(code, 0, "{sent} {said}");
    };
    let audit = || run(&system, &["audit", "--json"]);
    sends("900", "1");
    let ledger = until_covered(&client, &analytics, 900).await;
    let late = ledger["total"]["late"].as_i64().expect("a number");
    assert!(late > 300, "{ledger}");
    let (code, found, said) = audit();
    assert_eq!(code, 0, "{found} {said}");
    assert!(found["aggregates"]["rebuilt"].is_null(), "{found}");

    let longer = ["consumer.events.accepted_age_hours=168"];
    let (code, found, said) = rebuild_by(&system, &longer, &[]);
    assert_eq!(
        (code, &found["ending"]),
        (0, &"swapped".into()),
        "{found} {said}"
    );
    let found = audited(audit, 1);
    let shift = &found["aggregates"]["rebuilt"];
    assert_eq!(
        (&shift["counted"], &shift["late"]),
        (&late.into(), &(-late).into()),
        "{found}"
    );
    // What comes afterwards is judged by the system alone, and the rows take it in as the chains do.
    sends("300", "2");
    let ledger = until_covered(&client, &analytics, 1_200).await;
    assert_eq!(ledger["balanced"], true, "{ledger}");
    let line = format!("rebuilt: {late} counted more, {late} late less, since generation 1");
    let remarks = ledger["remarks"].as_array().expect("a list");
    assert!(remarks.contains(&line.clone().into()), "{ledger}");
    let rebuilt = &ledger["store"]["rebuilt"];
    assert_eq!(
        (&rebuilt["generation"], &rebuilt["partitions"]),
        (&1.into(), &shift["partitions"]),
        "{ledger}"
    );
    assert_eq!(audited(audit, 1)["aggregates"]["rebuilt"], *shift);
    let output = system.client(&["audit"]).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.lines().any(|said| said == line), "{text}");

    // Whoever damages the rows afterwards is found out all the same.
    corrupt(&system, "all", 86_400, 5).await;
    let end = Instant::now() + DEADLINE;
    let found = loop {
        let (code, found, _) = audit();
        if code == 1 {
            break found;
        }
        assert!(Instant::now() < end, "{found}");
    };
    let named = &found["breaks"][0];
    assert_eq!(
        (&named["what"], &named["by"]),
        (&"aggregates".into(), &5.into()),
        "{found}"
    );
    // Judged as the system does, nothing is left of it.
    let (code, found, said) = rebuild_by(
        &system,
        &["consumer.events.accepted_age_hours=1"],
        &["--accept"],
    );
    assert_eq!(
        (code, &found["ending"]),
        (0, &"swapped".into()),
        "{found} {said}"
    );
    let end = Instant::now() + DEADLINE;
    while audit().1["aggregates"]["rebuilt"]["generation"] != 2 {
        assert!(Instant::now() < end);
    }
    let found = audited(audit, 2);
    assert_eq!(found["aggregates"]["rebuilt"]["counted"], 0, "{found}");
    let output = system.client(&["audit"]).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("rebuilt:"), "{text}");
}
