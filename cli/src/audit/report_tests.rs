use std::collections::BTreeMap;

use prost::Message;
use streamgauge_audit::{Acknowledged, Fold, ProducerFacts, Shift, Whole};
use streamgauge_chain::Outcomes;
use streamgauge_proto::v1::{DeltaBatch, PartitionLedger, TypeCount};

use super::*;

fn batch(from: i64, to: i64, outcomes: Outcomes) -> Vec<u8> {
    DeltaBatch {
        from,
        to,
        outcomes: Some(outcomes.into()),
        strings: vec![String::from("click")],
        types: vec![TypeCount {
            event_type: 0,
            count: outcomes.counted,
        }],
        ..DeltaBatch::default()
    }
    .encode_to_vec()
}

pub fn report() -> Report {
    let outcomes = Outcomes {
        counted: 990,
        duplicate: 8,
        late: 2,
        ..Outcomes::default()
    };
    let mut fold = Fold::new(0, Some(1000)).knowing(8);
    fold.record(0, Some(&batch(0, 1000, outcomes)));
    let store = PartitionLedger {
        head: 1000,
        counted: 990,
        duplicate: 8,
        late: 2,
        ..PartitionLedger::default()
    };
    let facts = PartitionFacts {
        partition: 0,
        source_low: 0,
        source_high: 1005,
        fold,
        dead_letters: Some(2),
        store: Some(store),
    };
    Report {
        facts: vec![facts],
        range: None,
        dead_letters_unknown: None,
        dead_letters_foreign: Foreign::default(),
        said: Said {
            store: Store::Answered {
                rows: vec![store],
                sums: Some(StoreSums {
                    counted: 990,
                    rebuilt: None,
                    whole: Some(Whole {
                        tier_s: 86_400,
                        events: 990,
                        is_complete: true,
                    }),
                    pairs: Vec::new(),
                }),
                remarks: Vec::new(),
            },
            producers: vec![ProducerFacts {
                name: String::from("p:1"),
                received: 1010,
                accepted: 1005,
                rejected: 5,
                acknowledged: vec![Acknowledged {
                    partition: 0,
                    records: 1005,
                    first: 0,
                    last: 1004,
                }],
                spool: Some(SpoolFacts::default()),
                ..ProducerFacts::default()
            }],
            silent_producers: Vec::new(),
        },
    }
}

fn print(report: &Report, json: bool) -> String {
    let (mut output, out, notes) = Output::captured(json);
    report.print(&mut output).expect("memory");
    format!("{}{}", out.text(), notes.text())
}

fn json(report: &Report) -> serde_json::Value {
    let (mut output, out, _) = Output::captured(true);
    report.print(&mut output).expect("memory");
    serde_json::from_str(&out.text()).expect("JSON")
}

#[test]
fn books_that_balance_say_so() {
    let report = report();
    assert_eq!(report.exit(), Exit::Ok);
    insta::assert_snapshot!(print(&report, false), @r"
    partition  start    end  counted  duplicate  late  dead  missing  no record  in flight  not applied
            0      0  1,005      990          8     2     0        0          0          5            0
        total                    990          8     2     0        0          0          5

    end - start = 1,005 = 990 counted + 8 duplicate + 2 late + 0 dead-lettered + 0 missing + 0 no record + 5 in flight
    producer p:1: received 1,010 = 1,005 accepted + 5 rejected + 0 failed + 0 in flight; the log acknowledged 1,005 records
    balanced
    ");
}

#[test]
fn books_without_the_store_say_that_it_is_lacking() {
    let mut report = report();
    report.facts[0].store = None;
    report.said.store = Store::Silent(String::from("cannot reach analytics"));
    assert_eq!(report.exit(), Exit::Unreachable);
    let text = print(&report, false);
    assert!(text.contains("balanced, store not compared"), "{text}");
    assert!(text.contains("cannot reach analytics"), "{text}");
    report.said.store = Store::LeftOut;
    assert_eq!(report.exit(), Exit::Ok);
    assert_eq!(json(&report)["store_not_compared"], "--no-store was given");
}

#[test]
fn books_that_do_not_say_where() {
    let mut report = report();
    report.facts[0].dead_letters = Some(1);
    report.said.store = Store::Silent(String::from("cannot reach analytics"));
    assert_eq!(report.exit(), Exit::No);
    let text = print(&report, false);
    assert!(
        text.contains("BROKEN at partition 0 by 1 since offset 0: dead letters"),
        "{text}"
    );
    assert!(!text.contains("balanced"), "{text}");
    let json = json(&report);
    assert_eq!(json["balanced"], false);
    assert_eq!(json["breaks"][0]["what"], "dead_letters");
    assert_eq!(json["partitions"][0]["in_flight"], 5);
}

#[test]
fn an_acknowledged_event_that_the_log_lacks_is_lost() {
    let mut report = report();
    report.said.producers[0].acknowledged[0].last = 1007;
    assert_eq!(report.exit(), Exit::No);
    let text = print(&report, false);
    let broken = "BROKEN at partition 0 of producer p:1 by 3 since offset 1005: records that were acknowledged are lost";
    assert!(text.contains(broken), "{text}");
}

#[test]
fn what_waits_in_a_spool_is_in_flight_and_what_it_lost_is_broken() {
    let mut report = report();
    report.said.producers[0].spool = Some(SpoolFacts {
        waiting_at_start: 7,
        spooled: 20,
        waiting: 21,
        drained: 5,
        put_aside: 1,
        acknowledged: vec![Acknowledged {
            partition: 0,
            records: 5,
            first: 990,
            last: 994,
        }],
        ..SpoolFacts::default()
    });
    assert_eq!(report.exit(), Exit::Ok);
    let text = print(&report, false);
    for part in [
        "spool of producer p:1: 7 waited + 20 came = 21 wait + 5 drained + 0 lost + 1 put aside; the log acknowledged 5",
        "Producer p:1: 21 events wait in the spool; they are in flight",
        "1 accepted events of the spool were put aside",
    ] {
        assert!(text.contains(part), "no {part} in: {text}");
    }
    let spool = report.said.producers[0].spool.as_mut().expect("given");
    (spool.waiting, spool.lost) = (18, 3);
    assert_eq!(report.exit(), Exit::No);
    let text = print(&report, false);
    let broken = "BROKEN at the spool of producer p:1 by 3: the spool is damaged";
    assert!(text.contains(broken), "{text}");
    let json = json(&report);
    assert_eq!(json["breaks"][0]["what"], "spool_lost");
    assert_eq!(json["producers"][0]["spool"]["lost"], 3);
    assert_eq!(json["producers"][0]["spool"]["acknowledged_records"], 5);
    report.said.producers[0].spool = None;
    assert_eq!(report.exit(), Exit::Ok);
    assert!(print(&report, false).contains("Producer p:1 says nothing of a spool"));
}

#[test]
fn events_that_were_accepted_and_never_acknowledged_are_told() {
    let mut report = report();
    report.said.producers[0].acknowledged.clear();
    assert_eq!(report.exit(), Exit::No);
    let broken =
        "BROKEN at producer p:1 by 1005: more events are called safe than the log acknowledged";
    let text = print(&report, false);
    assert!(text.contains(broken), "{text}");
}

#[test]
fn rows_that_are_not_what_was_counted_are_told() {
    let mut report = report();
    if let Store::Answered { sums, .. } = &mut report.said.store {
        sums.as_mut().expect("given").counted = 985;
    }
    assert_eq!(report.exit(), Exit::No);
    let json = json(&report);
    let found = &json["breaks"][0];
    assert_eq!(
        (&found["what"], &found["by"]),
        (&"aggregates".into(), &5.into())
    );
    assert!(found["partition"].is_null());
}

#[test]
fn what_a_rebuild_counted_otherwise_is_told_and_balances() {
    let mut report = report();
    let shift = Shift {
        counted: 2,
        late: -2,
        ..Shift::default()
    };
    if let Store::Answered { sums, .. } = &mut report.said.store {
        let sums = sums.as_mut().expect("given");
        sums.rebuilt = Some(Rebuilt {
            generation: 3,
            partitions: BTreeMap::from([(0, shift)]),
        });
    }
    assert_eq!(report.exit(), Exit::No, "the rows do not hold them");
    if let Store::Answered { sums, .. } = &mut report.said.store {
        let whole = sums.as_mut().expect("given").whole.as_mut();
        whole.expect("given").events = 992;
    }
    assert_eq!(report.exit(), Exit::Ok);
    let text = print(&report, false);
    let line = "\nrebuilt: 2 counted more, 2 late less, since generation 3\nbalanced\n";
    assert!(text.contains(line), "{text}");
    let found = &json(&report)["aggregates"]["rebuilt"];
    let part = serde_json::json!({
        "partition": 0, "counted": 2, "duplicate": 0, "late": -2, "dead_lettered": 0, "missing": 0, "no_record": 0,
    });
    assert_eq!(
        (&found["generation"], &found["late"]),
        (&3.into(), &(-2).into())
    );
    assert_eq!(found["partitions"], serde_json::json!([part]));
}

#[test]
fn what_was_added_by_hand_balances_and_is_named_by_its_spot() {
    let mut report = report();
    let counted = |counted| Outcomes {
        counted,
        ..Outcomes::default()
    };
    let original = Outcomes {
        counted: 990,
        duplicate: 8,
        late: 2,
        ..Outcomes::default()
    };
    let fold = &mut report.facts[0].fold;
    fold.record(1, Some(&batch(0, 1000, original)));
    fold.record(2, Some(&batch(0, 1000, counted(1000))));
    fold.record(3, Some(&batch(5_000, 5_010, counted(10))));
    fold.record(4, Some(b"no batch"));
    report.dead_letters_foreign = Foreign {
        count: 2,
        first: Some((1, 7)),
    };
    assert_eq!(report.exit(), Exit::Ok, "it counts for nobody");
    let text = print(&report, false);
    for part in [
        "Partition 0: 3 batches are void and count for nobody; the first lies at offset 1 of metrics-data",
        "1 of them are, byte for byte, batches that count; the first lies at offset 1 of metrics-data",
        "1 of them contradict batches that count; the first lies at offset 2 of metrics-data",
        "1 of them began beyond the chain's head, as no consumer writes them; the first lies at offset 3 of metrics-data \
         and begins at 5000",
        "1 records of metrics-data are no batches and count for nobody; the first lies at offset 4",
        "2 records in the dead-letter topic name no source here; the first lies at offset 7 of its partition 1.",
    ] {
        assert!(text.contains(part), "no {part} in: {text}");
    }
    let json = json(&report);
    assert_eq!(
        json["partitions"][0]["spots"],
        serde_json::json!([
            {"what": "void", "count": 3, "first_offset": 1, "last_offset": 3, "covers": [0, 1000]},
            {"what": "copy", "count": 1, "first_offset": 1, "covers": [0, 1000], "against_offset": 0},
            {"what": "contradiction", "count": 1, "first_offset": 2, "covers": [0, 1000], "against_offset": 0},
            {"what": "stray", "count": 1, "first_offset": 3},
            {"what": "undecodable", "count": 1, "first_offset": 4},
        ])
    );
}

#[test]
fn a_producer_that_does_not_answer_is_told_and_no_more() {
    let mut report = report();
    report.said.producers.clear();
    report.said.silent_producers = vec![String::from("cannot reach the producer at p:1")];
    assert_eq!(report.exit(), Exit::Ok);
    assert!(print(&report, false).contains("A producer was not compared: cannot reach"));
}
