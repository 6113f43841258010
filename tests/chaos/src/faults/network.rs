//! Brokers, databases and connections that go away, become slow, or keep answers to themselves.

use std::time::Duration;

use streamgauge_tests::process::free_port;
use tokio::time::Instant;

use super::READY_WITHIN;
use crate::{
    failure::Failure,
    stack::{PROXIED, Stack},
    system::Ground,
    toxiproxy::{Stream, Toxic},
    trial::{Setup, Trial},
};

/// The proxy before PostgreSQL.
const DATABASE: &str = "postgres";
/// The proxy before the producer's HTTP port.
const CLIENTS: &str = "clients";

/// Kafka is stopped in an orderly way and started again; then the same without mercy.
pub async fn broker(trial: &mut Trial<'_>, stack: &Stack) -> Result<(), Failure> {
    for how in ["halt", "kill"] {
        stack.kafka(&[how]).await?;
        let away = Instant::now();
        tokio::time::sleep(trial.size.outage).await;
        // What was under way may still have come through in the beginning.
        let silence = trial.silence();
        trial.require(silence > trial.size.outage / 2, || {
            format!("{how}: events were acknowledged while Kafka was away")
        });
        stack.kafka(&["start"]).await?;
        let away = away.elapsed();
        trial.note(format!("{how}: away for {away:.1?}"));
        trial.healed().await;
        for name in PROXIED {
            // The group forgets its old member only when that one's session has timed out.
            trial.ready_within(name, READY_WITHIN * 3).await?;
        }
    }
    Ok(())
}

/// Each service reaches Kafka through a proxy. What the producer writes, it writes once: with its own
/// retries off, a record for which there is no submission can only come from the client library.
pub async fn setup_network(setup: &mut Setup<'_>, stack: &Stack) -> Result<(), Failure> {
    for name in PROXIED {
        stack.proxy_kafka(name).await?;
    }
    if let Ground::Stack { proxied, .. } = &mut setup.ground {
        *proxied = &PROXIED;
    }
    setup.settings = vec![String::from("producer.retry.attempts=1")];
    Ok(())
}

/// Each kind of trouble between each service and Kafka, one after the other.
pub async fn network(trial: &mut Trial<'_>, stack: &Stack) -> Result<(), Failure> {
    let troubles = [
        (Toxic::Latency(300, 200), Stream::Down),
        (Toxic::Bandwidth(50), Stream::Up),
        (Toxic::Timeout(1_000), Stream::Down),
        (Toxic::Timeout(1_000), Stream::Up),
        (Toxic::Reset(200), Stream::Down),
    ];
    let mut most = 0f64;
    for name in PROXIED {
        let proxy = stack.proxy_kafka(name).await?;
        for (toxic, stream) in troubles {
            proxy.add(toxic, stream, 1.0).await?;
            tokio::time::sleep(trial.size.trouble).await;
            let queued = queue(trial, "kafka_producer_queue_messages").await?;
            most = most.max(queued);
            proxy.heal().await?;
            trial.healed().await;
        }
    }
    let limit = queue(trial, "kafka_producer_queue_messages_limit").await?;
    trial.note(format!(
        "at most {most} of {limit} records stood in the producer's queue"
    ));
    trial.require(limit > 0.0 && most <= limit, || {
        format!("{most} records stood in the producer's queue of {limit}")
    });
    Ok(())
}

async fn queue(trial: &Trial<'_>, metric: &str) -> Result<f64, Failure> {
    trial.system.metric("producer", metric, "").await
}

/// Clients reach the producer through a proxy, by connections that are used once. A share of the answers never
/// arrives; clients give up waiting and submit the same ids again.
pub async fn lost_answers(trial: &mut Trial<'_>, stack: &Stack) -> Result<(), Failure> {
    let port = free_port();
    let upstream = trial.system.http_port("producer");
    let proxy = stack.toxiproxy.proxy(CLIENTS, port, upstream).await?;
    let mut config = trial.load_config("main");
    config.url = format!("http://127.0.0.1:{port}");
    config.keep_alive = false;
    config.timeout = Duration::from_secs(2);
    proxy.add(Toxic::Timeout(300), Stream::Down, 0.2).await?;
    // The load ends when it has all its events: most of it runs while answers are lost.
    let load = crate::load::Load::start(&config)?;
    while load.acknowledged() < trial.size.events * 9 / 10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    proxy.heal().await?;
    trial.healed().await;
    let harvest = load.finish().await?;
    let (unanswered, again) = (harvest.seen.unanswered, harvest.tally.attempts.len());
    trial.require(unanswered > 0 && again > 0, || {
        String::from("no answer was lost: the fault did not strike")
    });
    trial.note(format!("{again} events were submitted more than once"));
    trial.harvest(harvest);
    Ok(())
}

/// Analytics reaches PostgreSQL through a proxy.
pub async fn setup_database(setup: &mut Setup<'_>, stack: &Stack) -> Result<(), Failure> {
    let port = free_port();
    let upstream = stack.postgres_port;
    stack.toxiproxy.proxy(DATABASE, port, upstream).await?;
    if let Ground::Stack { postgres_port, .. } = &mut setup.ground {
        *postgres_port = port;
    }
    Ok(())
}

/// The database is away; then the answers to commits are. In the end analytics is killed, so that the
/// figures that are judged come from the database and from nowhere else.
pub async fn database(trial: &mut Trial<'_>, stack: &Stack) -> Result<(), Failure> {
    stack.postgres(&["halt"]).await?;
    tokio::time::sleep(trial.size.database_outage).await;
    stack.postgres(&["start"]).await?;
    trial.healed().await;
    let proxy = stack.toxiproxy.existing(DATABASE);
    for _ in 0..trial.size.cuts {
        // The server gets the commit, the client never hears of it.
        proxy.add(Toxic::Reset(0), Stream::Down, 1.0).await?;
        let cut = Duration::from_millis(100)..Duration::from_millis(700);
        trial.sleep_between(cut).await;
        proxy.heal().await?;
        let pause = Duration::from_millis(300)..Duration::from_millis(1_500);
        trial.sleep_between(pause).await;
    }
    trial.healed().await;
    trial.system.kill("analytics");
    trial.system.start_again("analytics");
    trial.ready_within("analytics", READY_WITHIN).await?;
    trial.healed().await;
    let cuts = trial.size.cuts;
    trial.note(format!(
        "{cuts} times the connections to the database were reset"
    ));
    Ok(())
}
