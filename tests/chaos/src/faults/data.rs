//! Records that no producer checked, and records that are gone before they were read.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use prost::Message;
use rand::Rng;
use serde_json::{Value, json};
use streamgauge_kafka::{LogReader, Publisher, PublisherConfig, Record};
use streamgauge_proto::v1;
use streamgauge_tests::system::number;
use tokio::time::Instant;

use super::READY_WITHIN;
use crate::{
    failure::Failure,
    judge,
    stack::Stack,
    system::{PARTITIONS, System},
    trial::Trial,
};

/// Headers of a dead letter that say where its record lay.
const PROVENANCE: [&str; 3] = ["sg-source-topic", "sg-source-partition", "sg-source-offset"];
/// Longest wait for a service to have caught up.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

/// Where a record lies.
type Place = (i32, i64);

/// Poison between honest records, all over the load.
pub async fn poison(trial: &mut Trial<'_>) -> Result<(), Failure> {
    let config = PublisherConfig::default();
    let publisher = Publisher::new(&trial.system.kafka(), &config, None);
    let publisher = publisher.map_err(Failure::kafka("a publisher"))?;
    let topic = trial.system.topics().events.clone();
    let mut places = BTreeSet::new();
    let count = if trial.size.full { 2_000 } else { 300 };
    for number in 0..count {
        let (key, payload) = bad_record(number, &mut trial.random);
        let record = Record {
            topic: &topic,
            partition: Some(number % PARTITIONS),
            key: key.as_deref(),
            payload: payload.as_deref(),
            timestamp_ms: None,
            headers: &[("origin", b"chaos")],
        };
        let delivery = publisher.send(record).await;
        let delivery = delivery.map_err(|error| Failure::Unmet(format!("poison: {error}")))?;
        places.insert((delivery.partition, delivery.offset));
        let pause = Duration::from_millis(1)..Duration::from_millis(40);
        trial.sleep_between(pause).await;
    }
    trial.dead_letters = places.len() as u64;
    trial.healed().await;
    trial.finish_load().await?;
    judge::drained(&trial.system).await?;
    let found = provenances(&trial.system).await?;
    trial.require(found == places, || {
        let (missing, foreign) = (places.difference(&found), found.difference(&places));
        format!(
            "dead letters without: {:?}; dead letters of honest records: {:?}",
            missing.take(5).collect::<Vec<_>>(),
            foreign.take(5).collect::<Vec<_>>()
        )
    });
    trial.note(format!(
        "{count} records of poison, each found with its source"
    ));
    Ok(())
}

/// A record that must end as a dead letter.
fn bad_record(number: i32, random: &mut impl Rng) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let honest = v1::Event {
        event_id: format!("poison-0-{number}"),
        user_id: format!("poison-u{number}"),
        event_type: String::from("click"),
        occurred_at_us: jiff::Timestamp::now().as_microsecond(),
        ..v1::Event::default()
    };
    let key = Some(honest.user_id.clone().into_bytes());
    let payload = honest.encode_to_vec();
    match number % 6 {
        0 => {
            // A first byte that begins no field: what follows may be anything.
            let mut garbage = vec![0xff; random.random_range(1..200)];
            random.fill(&mut garbage[1..]);
            (key, Some(garbage))
        }
        1 => (key, Some(payload[..payload.len() / 2].to_vec())),
        2 => (key, Some(vec![0x0a; 600_000])),
        3 => (Some(b"somebody-else".to_vec()), Some(payload)),
        4 => (None, Some(payload)),
        _ => (key, None),
    }
}

/// The sources of all dead letters.
async fn provenances(system: &System) -> Result<BTreeSet<Place>, Failure> {
    let (reader, topic) = (system.reader()?, &system.topics().dead_letters);
    let mut places = BTreeSet::new();
    for partition in 0..PARTITIONS {
        let high = end(&reader, topic, partition).await?;
        let read = reader.read_range(topic, partition, 0, high, |chunk| {
            for record in chunk.iter() {
                let text = |name| {
                    let value = record.headers.get(name)?;
                    std::str::from_utf8(value).ok()
                };
                let [source, partition, offset] = PROVENANCE.map(text);
                let place = partition.zip(offset).and_then(|(partition, offset)| {
                    Some((partition.parse().ok()?, offset.parse().ok()?))
                });
                if source == Some(system.topics().events.as_str()) {
                    places.extend(place);
                }
            }
        });
        read.await.map_err(Failure::kafka("the dead letters"))?;
    }
    Ok(places)
}

/// Events are removed before the consumer has read them, then delta batches before analytics has.
pub async fn truncation(trial: &mut Trial<'_>, stack: &Stack) -> Result<(), Failure> {
    let reader = trial.system.reader()?;
    let events = trial.system.topics().events.clone();
    trial.system.kill("consumer");
    let heads = heads(&trial.system, &reader).await?;
    let mut cuts = BTreeMap::new();
    for (partition, head) in heads {
        grown(&reader, &events, partition, head + 400).await?;
        cuts.insert(partition, head + 300);
        trial.missing += 300;
    }
    delete_records(&trial.system, stack, &events, &cuts).await?;
    trial.system.start_again("consumer");
    // Without a place in the group it waits for its former self to be given up.
    trial.ready_within("consumer", READY_WITHIN * 2).await?;
    trial.healed().await;
    trial.note(format!("{} events removed unread", trial.missing));

    trial.system.kill("analytics");
    let metrics = trial.system.topics().metrics.clone();
    let mut applied = BTreeMap::new();
    for partition in 0..PARTITIONS {
        applied.insert(partition, end(&reader, &metrics, partition).await?);
    }
    let mut cuts = BTreeMap::new();
    for (partition, end) in &applied {
        grown(&reader, &metrics, *partition, end + 20).await?;
        cuts.insert(*partition, end + 10);
    }
    let hole = holes(&reader, &metrics, &applied, &cuts).await?;
    delete_records(&trial.system, stack, &metrics, &cuts).await?;
    trial.system.start_again("analytics");
    trial.ready_within("analytics", READY_WITHIN).await?;
    trial.healed().await;
    trial.note(format!(
        "delta batches of at least {hole} events removed unread"
    ));
    // Which batches analytics had applied when it was killed is known to the store alone.
    let ledger = trial.system.ask("/v1/ledger").await?;
    let missing = number(&ledger["total"]["missing"]);
    let least = trial.missing + hole;
    trial.require(missing >= least, || {
        format!("{missing} offsets are counted as missing; at least {least} were removed")
    });
    trial.missing = missing;
    Ok(())
}

/// The end of a partition.
async fn end(reader: &LogReader, topic: &str, partition: i32) -> Result<i64, Failure> {
    let marks = reader.watermarks(topic, partition).await;
    Ok(marks
        .map_err(Failure::kafka("the end of a partition"))?
        .high)
}

/// Waits until a partition has grown to `to`.
async fn grown(reader: &LogReader, topic: &str, partition: i32, to: i64) -> Result<(), Failure> {
    let begun = Instant::now();
    while end(reader, topic, partition).await? < to {
        if begun.elapsed() > SETTLE_DEADLINE {
            return Err(Failure::Unmet(format!("{topic} {partition} does not grow")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The heads of the chain, once analytics has applied all that a dead consumer wrote.
async fn heads(system: &System, reader: &LogReader) -> Result<BTreeMap<i32, i64>, Failure> {
    let (begun, topic) = (Instant::now(), &system.topics().metrics);
    while begun.elapsed() < SETTLE_DEADLINE {
        let ledger = system.ask("/v1/ledger").await?;
        let mut heads = BTreeMap::new();
        for row in ledger["partitions"].as_array().into_iter().flatten() {
            let partition = row["partition"].as_i64().unwrap_or(-1) as i32;
            let position = number(&row["delta_position"]).cast_signed();
            if position == end(reader, topic, partition).await? {
                heads.insert(partition, number(&row["head"]).cast_signed());
            }
        }
        if heads.len() == PARTITIONS as usize {
            return Ok(heads);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(Failure::Unmet(String::from(
        "analytics does not apply all that the consumer wrote",
    )))
}

/// Source offsets that the delta batches from `applied` up to `cuts` cover.
async fn holes(
    reader: &LogReader,
    topic: &str,
    applied: &BTreeMap<i32, i64>,
    cuts: &BTreeMap<i32, i64>,
) -> Result<u64, Failure> {
    let mut sum = 0;
    for (partition, from) in applied {
        let read = reader.read_range(topic, *partition, *from, cuts[partition], |chunk| {
            for record in chunk.iter() {
                let batch = v1::DeltaBatch::decode(record.payload.unwrap_or_default());
                sum += batch.map_or(0, |batch| (batch.to - batch.from).max(0).cast_unsigned());
            }
        });
        read.await.map_err(Failure::kafka("delta batches"))?;
    }
    Ok(sum)
}

/// Lets Kafka's own tool remove what lies before these offsets.
async fn delete_records(
    system: &System,
    stack: &Stack,
    topic: &str,
    before: &BTreeMap<i32, i64>,
) -> Result<(), Failure> {
    let partitions: Vec<Value> = before
        .iter()
        .map(|(partition, offset)| {
            json!({ "topic": topic, "partition": partition, "offset": offset })
        })
        .collect();
    let file = system.folder().join("delete.json");
    let text = json!({ "partitions": partitions, "version": 1 }).to_string();
    std::fs::write(&file, text).map_err(Failure::io("the offsets to delete"))?;
    let brokers = format!("127.0.0.1:{}", stack.kafka_port);
    let file = file.display().to_string();
    stack
        .kafka(&[
            "tool",
            "org.apache.kafka.tools.DeleteRecordsCommand",
            "--bootstrap-server",
            &brokers,
            "--offset-json-file",
            &file,
        ])
        .await?;
    Ok(())
}
