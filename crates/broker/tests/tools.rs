//! The tools people have: Apache Kafka's own and kcat. What the broker serves works in them; what it does not serve is
//! named by them as such, and at once.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
mod tooling;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use support::stop;
use tooling::{Running, Tools, named, until};

const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
const CONFIGS: &str = "kafka.admin.ConfigCommand";
const VERSIONS: &str = "org.apache.kafka.tools.BrokerApiVersionsCommand";
const GROUPS: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
const OFFSETS: &str = "org.apache.kafka.tools.GetOffsetShell";
const DELETE_RECORDS: &str = "org.apache.kafka.tools.DeleteRecordsCommand";
const PRODUCER: &str = "org.apache.kafka.tools.VerifiableProducer";
const CONSUMER: &str = "org.apache.kafka.tools.VerifiableConsumer";
const CONSOLE_PRODUCER: &str = "org.apache.kafka.tools.ConsoleProducer";
const CONSOLE_CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";
const SHARE_CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleShareConsumer";
const PRODUCER_PERFORMANCE: &str = "org.apache.kafka.tools.ProducerPerformance";
const CONSUMER_PERFORMANCE: &str = "org.apache.kafka.tools.ConsumerPerformance";
const ACLS: &str = "org.apache.kafka.tools.AclCommand";
const ALL_GROUPS: &str = "org.apache.kafka.tools.GroupsCommand";
const SHARE_GROUPS: &str = "org.apache.kafka.tools.consumer.group.ShareGroupCommand";
const CLUSTER: &str = "org.apache.kafka.tools.ClusterTool";
const LOG_DIRS: &str = "org.apache.kafka.tools.LogDirsCommand";
const TRANSACTIONS: &str = "org.apache.kafka.tools.TransactionsCommand";
const ELECTIONS: &str = "org.apache.kafka.tools.LeaderElectionCommand";
const REASSIGNMENTS: &str = "org.apache.kafka.tools.reassign.ReassignPartitionsCommand";
const QUORUM: &str = "org.apache.kafka.tools.MetadataQuorumCommand";
const TOKENS: &str = "org.apache.kafka.tools.DelegationTokenCommand";

#[tokio::test]
async fn topics_are_made_shown_and_deleted() {
    let Some(tools) = Tools::from_env().await else {
        return;
    };
    let make = "--create --topic made --partitions 3 --config retention.ms=60000";
    let made = tools.kafka(TOPICS, make).await;
    made.works(&["Created topic made."]);
    let shown = tools.kafka(TOPICS, "--describe --topic made").await;
    shown.works(&["PartitionCount: 3", "retention.ms=60000"]);
    let of_topic = "--entity-type topics --entity-name made";
    let shown = tools
        .kafka(CONFIGS, &format!("--describe {of_topic}"))
        .await;
    shown.works(&["retention.ms=60000"]);
    let of_broker = "--describe --entity-type brokers --entity-name 1 --all";
    let shown = tools.kafka(CONFIGS, of_broker).await;
    shown.works(&["num.partitions=1"]);
    let listed = tools.kafka(TOPICS, "--list").await;
    listed.works(&["made\n"]);
    let listed = tools.kcat("-L", b"").await;
    listed.works(&["topic \"made\" with 3 partitions"]);

    let more = tools.kafka(TOPICS, "--alter --topic made --partitions 5");
    more.await.fails_with("CREATE_PARTITIONS");
    let changed = format!("--alter {of_topic} --add-config retention.ms=1");
    let changed = tools.kafka(CONFIGS, &changed).await;
    changed.fails_with("INCREMENTAL_ALTER_CONFIGS");
    let users = tools.kafka(CONFIGS, "--describe --entity-type users").await;
    users.fails_with("DESCRIBE_CLIENT_QUOTAS");
    let replicated = "--create --topic twice --replication-factor 2";
    let replicated = tools.kafka(TOPICS, replicated).await;
    replicated.fails_with("this broker is a single node");

    tools
        .kafka(TOPICS, "--delete --topic made")
        .await
        .works(&[]);
    assert!(tools.broker.stats().partitions.is_empty());
    let versions = tools.kafka(VERSIONS, "").await.works(&["Produce(0): 0 to"]);
    for line in versions.said().lines().filter(|line| line.contains(" to ")) {
        assert!(line.contains("usable: "), "{line}");
    }
    stop(tools.broker).await;
}

/// The partitions a verifiable consumer was last given.
fn assigned(consumer: &Running) -> BTreeSet<i64> {
    let events = consumer.events();
    let last = events.iter().rfind(|event| {
        let name = event["name"].as_str().unwrap_or_default();
        matches!(name, "partitions_assigned" | "partitions_revoked")
    });
    match last {
        Some(last) if last["name"] == "partitions_assigned" => {
            let partitions = last["partitions"].as_array().unwrap().iter();
            partitions
                .map(|p| p["partition"].as_i64().unwrap())
                .collect()
        }
        _ => BTreeSet::new(),
    }
}

fn share(first: &Running, second: &Running) -> bool {
    let (first, second) = (assigned(first), assigned(second));
    !first.is_empty() && !second.is_empty() && first.len() + second.len() == 3
}

fn consumed(events: &[Value]) -> u64 {
    let counts = named(events, "records_consumed").into_iter();
    counts.map(|event| event["count"].as_u64().unwrap()).sum()
}

#[tokio::test]
async fn a_group_shares_what_a_producer_wrote() {
    let Some(tools) = Tools::from_env().await else {
        return;
    };
    tools.broker.create_topic("work", 3).await.unwrap();
    let member = "--topic work --group-id workers --reset-policy earliest";
    let first = tools.start("first", CONSUMER, member);
    until("the first to have all", || assigned(&first).len() == 3).await;
    let second = tools.start("second", CONSUMER, member);
    until("both to share", || share(&first, &second)).await;

    let write = "--topic work --acks -1 --throughput -1 --max-messages 900 --repeating-keys 100";
    let written = tools.kafka(PRODUCER, write).await.works(&[]).events();
    assert_eq!(named(&written, "producer_send_success").len(), 900);
    let said = named(&written, "tool_data")[0];
    assert_eq!((&said["sent"], &said["acked"]), (&900.into(), &900.into()));

    let read = || consumed(&first.events()) + consumed(&second.events());
    until("all to be read", || read() >= 900).await;
    let second = second.end().await;
    assert_eq!(named(&second, "shutdown_complete").len(), 1);
    until("the first to have all again", || {
        assigned(&first).len() == 3
    })
    .await;
    let first = first.end().await;
    assert_eq!(consumed(&first) + consumed(&second), 900);
    assert!(consumed(&first) > 0 && consumed(&second) > 0);
    a_group_is_shown_reset_and_deleted(&tools).await;
    stop(tools.broker).await;
}

async fn a_group_is_shown_reset_and_deleted(tools: &Tools) {
    let shown = tools.kafka(GROUPS, "--describe --group workers").await;
    let shown = shown.works(&["has no active members"]).said();
    let rows = shown.lines().filter(|line| line.starts_with("workers "));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.split_whitespace().collect()).collect();
    // Group, topic, partition, committed offset, end of the log, lag.
    assert!(
        rows.iter().all(|row| row[3] == row[4] && row[5] == "0"),
        "{shown}"
    );
    let committed = rows.iter().map(|row| row[3].parse::<u64>().unwrap());
    assert_eq!(committed.sum::<u64>(), 900, "{shown}");

    let listed = tools.kafka(GROUPS, "--list").await.works(&[]);
    assert_eq!(listed.records(), b"workers\n", "{}", listed.said());
    let listed = tools.kafka(ALL_GROUPS, "--list").await.works(&[]).said();
    let row = listed.lines().find(|line| line.starts_with("workers "));
    let row: Vec<&str> = row.unwrap().split_whitespace().collect();
    assert_eq!(row, ["workers", "Classic", "consumer"]);
    let listed = tools.kafka(SHARE_GROUPS, "--list").await.works(&[]);
    assert_eq!(listed.records(), b"", "{}", listed.said());

    let back = "--reset-offsets --group workers --topic work:0 --to-offset 7 --execute";
    let back = tools.kafka(GROUPS, back).await.works(&[]).said();
    let row = back.lines().find(|line| line.starts_with("workers "));
    let row: Vec<&str> = row.unwrap().split_whitespace().collect();
    assert_eq!(row, ["workers", "work", "0", "7"]);
    let forgotten = "--delete-offsets --group workers --topic work";
    let forgotten = tools.kafka(GROUPS, forgotten).await;
    forgotten.says(&["The node does not support OFFSET_DELETE"]);
    let gone = tools.kafka(GROUPS, "--delete --group workers").await;
    gone.works(&["Deletion of requested consumer groups ('workers') was successful."]);
    assert_eq!(tools.broker.stats().groups, 0);
}

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
const LINES: usize = 50;

/// Lines that each codec has something to do with, of no encoding.
fn lines(codec: &str) -> Vec<u8> {
    let line = |n: usize| {
        let filling = [b"\xf0\x9f\xa6\x80 \x01\xfe\xff\t".as_slice(); 10].concat();
        [format!("{codec} {n} ").as_bytes(), &filling, b"\n"].concat()
    };
    (0..LINES).flat_map(line).collect()
}

fn now_ms() -> u128 {
    let since = std::time::UNIX_EPOCH.elapsed();
    since.unwrap().as_millis()
}

#[tokio::test]
async fn kcat_and_kafka_read_each_other_byte_for_byte() {
    let Some(tools) = Tools::from_env().await else {
        return;
    };
    tools.broker.create_topic("lines", 1).await.unwrap();
    let mut all = Vec::new();
    let mut after_first_ms = 0;
    for codec in CODECS {
        let written = lines(codec);
        let write = format!("-P -t lines -p 0 -z {codec}");
        tools.kcat(&write, &written).await.works(&[]);
        all.extend(written);
        if after_first_ms == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            after_first_ms = now_ms();
        }
    }
    let count = CODECS.len() * LINES;
    let read = format!("--topic lines --partition 0 --offset earliest --max-messages {count}");
    let read = tools.kafka(CONSOLE_CONSUMER, &read).await.works(&[]);
    assert!(read.records() == all, "{}", read.said());
    let last = format!("-C -t lines -p 0 -o {} -e -q", count - LINES);
    let last = tools.kcat(&last, b"").await.works(&[]);
    assert!(last.out == lines(CODECS[4]), "{}", last.said());
    let by_time = format!("-C -t lines -p 0 -o s@{after_first_ms} -e -q");
    let by_time = tools.kcat(&by_time, b"").await.works(&[]);
    assert!(
        by_time.out == all[lines(CODECS[0]).len()..],
        "{}",
        by_time.said()
    );
    let as_group = format!("-G readers -c {count} -q -X auto.offset.reset=earliest lines");
    let as_group = tools.kcat(&as_group, b"").await.works(&[]);
    assert!(as_group.out == all, "{}", as_group.said());

    let said = b"from\nKafka\n";
    let produced = tools
        .kafka_fed(CONSOLE_PRODUCER, "--topic lines", said)
        .await;
    produced.works(&[]);
    let read = tools
        .kcat(&format!("-C -t lines -o {count} -e -q"), b"")
        .await;
    assert!(read.out == said, "{}", read.said());
    offsets_are_shown_and_moved(&tools, count, after_first_ms).await;
    stop(tools.broker).await;
}

async fn offsets_are_shown_and_moved(tools: &Tools, count: usize, after_first_ms: u128) {
    let end = count + 2;
    let latest = tools.kafka(OFFSETS, "--topic lines --time latest").await;
    latest.works(&[&format!("lines:0:{end}")]);
    let by_time = format!("--topic lines --time {after_first_ms}");
    let by_time = tools.kafka(OFFSETS, &by_time).await;
    by_time.works(&[&format!("lines:0:{LINES}\n")]);
    let of_latest_time = tools.kafka(OFFSETS, "--topic lines --time max-timestamp");
    let of_latest_time = of_latest_time.await.works(&[]).records();
    // One of the last two, which may be of the same millisecond.
    let found = [count, count + 1].map(|offset| format!("lines:0:{offset}\n").into_bytes());
    assert!(found.contains(&of_latest_time), "{of_latest_time:?}");
    // Both are told of and end as if nothing had been.
    for tiered in ["earliest-local", "latest-tiered"] {
        let refused = format!("--topic lines --time {tiered}");
        let refused = tools.kafka(OFFSETS, &refused).await;
        refused.says(&["The node does not support LIST_OFFSETS with version in range"]);
    }
    let deleted = tools.path("deleted.json");
    let wanted = r#"{"version":1,"partitions":[{"topic":"lines","partition":0,"offset":9}]}"#;
    std::fs::write(&deleted, wanted).unwrap();
    let deleted = format!("--offset-json-file {}", deleted.display());
    let deleted = tools.kafka(DELETE_RECORDS, &deleted).await;
    deleted.works(&["low_watermark: 9"]);
    let earliest = tools.kafka(OFFSETS, "--topic lines --time earliest").await;
    earliest.works(&["lines:0:9\n"]);
    let asked = tools.kcat("-Q -t lines:0:-2", b"").await;
    asked.works(&["lines [0] offset 9\n"]);
}

#[tokio::test]
async fn measuring_tools_move_all_they_are_told_to() {
    let Some(tools) = Tools::from_env().await else {
        return;
    };
    tools.broker.create_topic("load", 2).await.unwrap();
    let write = "--topic load --num-records 50000 --record-size 200 --throughput -1 \
                 --command-property compression.type=lz4 acks=all";
    let written = tools.kafka(PRODUCER_PERFORMANCE, write).await;
    written.works(&["50000 records sent"]);
    assert_eq!(tools.broker.stats().records_appended, 50_000);
    let read = "--topic load --num-records 50000 --timeout 60000";
    let read = tools.kafka(CONSUMER_PERFORMANCE, read).await.works(&[]);
    let figures = read.said();
    // Start, end, MB, MB/s, records.
    let row = figures.lines().find(|line| line.starts_with("20")).unwrap();
    assert_eq!(row.split(", ").nth(4), Some("50000"), "{figures}");
    stop(tools.broker).await;
}

#[tokio::test]
async fn what_is_not_served_is_named() {
    let Some(tools) = Tools::from_env().await else {
        return;
    };
    tools.broker.create_topic("plain", 1).await.unwrap();
    let transactions = "--topic plain --num-records 10 --record-size 10 --throughput -1 \
                        --transactional-id t --transaction-duration-ms 100";
    let refused = tools.kafka(PRODUCER_PERFORMANCE, transactions).await;
    refused.fails_with("Transactional Id authorization failed");
    let refused = tools
        .kcat("-P -t plain -X transactional.id=t", b"x\n")
        .await;
    refused.fails_with("transactions are not supported by this broker");
    let refused = tools.kafka(ACLS, "--list").await;
    refused.fails_with("The node does not support DESCRIBE_ACLS");
    // These two tell of the error and end as if there had been none.
    let newer = "--topic plain --group newer --command-property group.protocol=consumer";
    let refused = tools.kafka(CONSOLE_CONSUMER, newer).await;
    refused.says(&["The cluster does not support the new CONSUMER group protocol"]);
    let newer = "--topic plain --group-id newer --group-protocol consumer --max-messages 1";
    let refused = tools.kafka(CONSUMER, newer).await;
    refused.says(&["The cluster does not support the new CONSUMER group protocol"]);
    let refused = tools.kafka(SHARE_CONSUMER, "--topic plain --timeout-ms 2000");
    let refused = refused.await;
    refused.says(&["The node does not support SHARE_GROUP_HEARTBEAT"]);
    assert_eq!(tools.broker.stats().records_appended, 0);
    stop(tools.broker).await;
}

/// What is asked of a cluster and its operators, of which there is no such thing on one node.
const OF_CLUSTERS: [(&str, &str, &str); 6] = [
    (LOG_DIRS, "--describe", "DESCRIBE_LOG_DIRS"),
    (TRANSACTIONS, "list", "LIST_TRANSACTIONS"),
    (
        ELECTIONS,
        "--election-type preferred --topic plain --partition 0",
        "ELECT_LEADERS",
    ),
    (REASSIGNMENTS, "--list", "LIST_PARTITION_REASSIGNMENTS"),
    (QUORUM, "describe --status", "DESCRIBE_QUORUM"),
    (
        TOKENS,
        "--describe --command-config /dev/null",
        "DESCRIBE_DELEGATION_TOKEN",
    ),
];

#[tokio::test]
async fn tools_for_clusters_name_what_is_not_served() {
    let Some(tools) = Tools::from_env().await else {
        return;
    };
    tools.broker.create_topic("plain", 1).await.unwrap();
    let id = tools.kafka_verb(CLUSTER, "cluster-id").await;
    id.works(&["Cluster ID: "]);
    for (class, args, kind) in OF_CLUSTERS {
        let refused = tools.kafka(class, args).await;
        refused.fails_with(&format!("The node does not support {kind}"));
    }
    stop(tools.broker).await;
}
