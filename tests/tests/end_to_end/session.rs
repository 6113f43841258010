//! The README's session, command by command.

use std::io::Write;

use streamgauge_tests::system::{System, number};

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_session_works_as_written() {
    let system = System::start(&[]).await;
    let (code, text) =
        system.command(&["send-events", "--count", "2000", "--rate", "1000", "--json"]);
    assert_eq!(code, 0, "{text}");
    system.settled(2_000).await;
    let (code, text) = system.command(&[
        "query",
        "series",
        "--by",
        "event_type",
        "--last",
        "15m",
        "--step",
        "10s",
        "--json",
    ]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("page_view"), "{text}");
    let (code, text) = system.command(&["audit"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("balanced"), "{text}");
    let (code, text) = system.command(&["health"]);
    assert_eq!(code, 0, "{text}");
    click_with_curls_default_content_type(&system).await;
}

/// `curl -d` without a header says that the body is a form.
async fn click_with_curls_default_content_type(system: &System) {
    let answer = reqwest::Client::new()
        .post(format!("{}/v1/events", system.producer()))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(r#"{"user_id":"u1","event_type":"click","page_url":"/"}"#)
        .send()
        .await
        .expect("the producer answers");
    assert_eq!(answer.status(), 200);
    system.settled(2_001).await;
    let url = format!(
        "{}/analytics/events?user_id=u1&page_url=/",
        system.analytics()
    );
    assert_eq!(number(&system.get(&url).await["count"]), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_log_comes_out_whole_and_a_second_import_changes_nothing() {
    let system = System::start(&[]).await;
    let file = system.folder().join("access.log");
    let mut lines = std::fs::File::create(&file).expect("the file can be made");
    for number in 0..1_000 {
        let (address, page) = (number % 173, if number % 10 == 0 { 0 } else { number % 50 });
        writeln!(
            lines,
            "10.0.0.{address} - - [17/May/2015:10:{:02}:{:02} +0000] \"GET /p{page} HTTP/1.1\" 200 {} \"-\" \"agent\"",
            number / 60 % 60,
            number % 60,
            number * 7,
        )
        .expect("the file can be written");
    }
    drop(lines);
    let file = file.display().to_string();
    let import = ["import", "--format", "combined", &file];
    let (code, text) = system.command(&import);
    assert_eq!(code, 0, "{text}");
    let ledger = system.settled(1_000).await;
    assert_eq!(number(&ledger["total"]["duplicate"]), 0, "{ledger}");
    let top = [
        "query",
        "top",
        "--by",
        "page_url",
        "--from",
        "2015-05-17",
        "--to",
        "2015-05-21",
        "--limit",
        "3",
        "--json",
    ];
    let (code, before) = system.command(&top);
    assert_eq!(code, 0, "{before}");
    let (code, text) = system.command(&import);
    assert_eq!(code, 0, "{text}");
    assert!(text.replace(',', "").contains("1000 duplicates"), "{text}");
    let ledger = system.settled(1_000).await;
    assert_eq!(number(&ledger["total"]["duplicate"]), 1_000, "{ledger}");
    let (code, after) = system.command(&top);
    assert_eq!(code, 0, "{after}");
    let entries = |text: &str| -> serde_json::Value {
        let answer: serde_json::Value = serde_json::from_str(text).expect("JSON");
        answer["entries"].clone()
    };
    assert!(entries(&before).is_array(), "{before}");
    assert_eq!(entries(&before), entries(&after));
    let distinct = system
        .get(&format!(
            "{}/v1/distinct-users?from=2015-05-17&to=2015-05-21",
            system.analytics()
        ))
        .await;
    let users = distinct["users"].as_f64().expect("an estimate");
    assert!((users - 173.0).abs() < 3.0, "{distinct}");
}
