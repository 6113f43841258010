//! Measures the embedded log from outside: one producer in, one consumer out.
//!
//! `cargo run --release -p streamgauge-broker --example throughput -- [--records N]
//! [--bootstrap HOST:PORT] [--partitions N] [--fsync always|interval|never]`

use std::io::Write;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use streamgauge_broker::{Broker, BrokerConfig, Fsync};

const RECORD_BYTES: usize = 200;
const FLUSH_LIMIT: Duration = Duration::from_secs(60);

type Failure = Box<dyn std::error::Error>;

struct Options {
    records: usize,
    partitions: i32,
    bootstrap: Option<String>,
    fsync: Fsync,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = parse()?;
    let dir = tempfile::tempdir()?;
    let broker = match options.bootstrap {
        Some(_) => None,
        None => {
            let config = BrokerConfig {
                data_dir: dir.path().to_path_buf(),
                listen: ([127, 0, 0, 1], 0).into(),
                fsync: options.fsync,
                ..BrokerConfig::default()
            };
            Some(Broker::start(config).await?)
        }
    };
    let own = broker.as_ref().map(Broker::bootstrap);
    let bootstrap = options.bootstrap.clone().or(own).unwrap_or_default();
    let topic = format!("throughput-{}", std::process::id());
    create_topic(&bootstrap, &topic, options.partitions).await?;

    let (records, partitions) = (options.records, options.partitions);
    let produced = {
        let (bootstrap, topic) = (bootstrap.clone(), topic.clone());
        tokio::task::spawn_blocking(move || {
            produce(&bootstrap, &topic, records).map_err(|e| e.to_string())
        })
        .await??
    };
    report("in", records, produced)?;
    let consumed = tokio::task::spawn_blocking(move || {
        consume(&bootstrap, &topic, partitions, records).map_err(|e| e.to_string())
    })
    .await??;
    report("out", records, consumed)?;
    if let Some(broker) = broker {
        broker.shutdown(Duration::from_secs(10)).await;
    }
    Ok(())
}

fn report(direction: &str, records: usize, took: Duration) -> std::io::Result<()> {
    let rate = records as f64 / took.as_secs_f64();
    let mib = rate * RECORD_BYTES as f64 / (1024.0 * 1024.0);
    writeln!(
        std::io::stdout(),
        "{direction:>3}: {records} records in {took:.2?}: {rate:.0} records/s, {mib:.0} MiB/s"
    )
}

async fn create_topic(bootstrap: &str, topic: &str, partitions: i32) -> Result<(), Failure> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()?;
    let topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    for result in admin.create_topics(&[topic], &AdminOptions::new()).await? {
        result.map_err(|(topic, error)| format!("creating {topic} failed: {error}"))?;
    }
    Ok(())
}

fn produce(bootstrap: &str, topic: &str, records: usize) -> Result<Duration, Failure> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("batch.size", "65536")
        .set("batch.num.messages", "10000")
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "20000")
        .create()?;
    let payload = [b'x'; RECORD_BYTES];
    let started = Instant::now();
    for n in 0..records {
        let key = (n as u64).to_be_bytes();
        let mut record = BaseRecord::to(topic).key(&key).payload(&payload);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    producer.poll(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }
    while producer.in_flight_count() > 0 {
        if started.elapsed() > FLUSH_LIMIT * 10 {
            return Err("records are still in flight".into());
        }
        producer.poll(Duration::from_millis(1));
    }
    Ok(started.elapsed())
}

fn consume(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    records: usize,
) -> Result<Duration, Failure> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "throughput")
        .set("enable.auto.commit", "false")
        .set("queued.min.messages", "100000")
        .create()?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    let started = Instant::now();
    consumer.assign(&assignment)?;
    let mut seen = 0;
    while seen < records {
        if started.elapsed() > FLUSH_LIMIT * 10 {
            return Err(format!("only {seen} records came back").into());
        }
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            message?;
            seen += 1;
        }
    }
    Ok(started.elapsed())
}

fn parse() -> Result<Options, Failure> {
    let mut options = Options {
        records: 3_000_000,
        partitions: 4,
        bootstrap: None,
        fsync: Fsync::Interval,
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or("each flag takes a value")?;
        match flag.as_str() {
            "--records" => options.records = value.parse()?,
            "--partitions" => options.partitions = value.parse()?,
            "--bootstrap" => options.bootstrap = Some(value),
            "--fsync" => options.fsync = serde_json::from_str(&format!("\"{value}\""))?,
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    Ok(options)
}
