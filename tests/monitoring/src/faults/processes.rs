//! Processes that die: the log, a service, and a service that dies again and again. The log and the services have a
//! process each.

use std::time::Duration;

use streamgauge_tests::system::System;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    bench::{Bench, Watch},
    failure::{Failure, Outcome},
    faults::{Found, prove},
    inbox::Alert,
    load::{Load, Mix},
    report::AlertRow,
};

/// Longest wait for a figure to show in Prometheus.
const SHOWN: Duration = Duration::from_secs(60);
const SPOOL_FILLING: Alert = Alert::named("SpoolFilling");
/// How often the service of a restart loop dies.
const DEATHS: usize = 4;

/// Runs the group.
pub async fn run() -> Outcome<Found> {
    // A spool that is full within half a minute at this load.
    let system = System::start_apart(&[
        "producer.spool.bytes_max=2000000",
        "producer.spool.segment_bytes=500000",
        "producer.publisher.delivery_timeout_ms=2000",
        "each.kafka.statistics_interval_ms=1000",
    ])
    .await;
    let bench = Bench::beside(system).await?;
    let watch = bench.watch();
    let mix = Mix {
        padding: 1000,
        ..Mix::USUAL
    };
    let _usual = Load::start(&bench.system, "usual", mix)?;
    watch
        .prometheus
        .until("job:event_end_to_end_seconds:p99_5m", SHOWN)
        .await?;
    let system = Mutex::new(bench.system);

    let mut found = broker(&system, &watch).await;
    found.alerts.extend(consumer(&system, &watch).await);
    found.alerts.extend(restarts(&system, &watch).await);
    Ok(found)
}

/// The log is killed: the spool fills, then events are refused. That the spool fills is told to nobody: the page says more.
async fn broker(system: &Mutex<System>, watch: &Watch) -> Found {
    let mut held_back = Err(Failure::Unmet(String::from("not looked at")));
    let began = Instant::now();
    let alerts = prove(
        watch,
        "the broker is killed",
        [
            Alert::named("KafkaUnreachable"),
            Alert::with("CircuitBreakerOpen", &[("job", "streamgauge-producer")]),
            Alert::named("SpoolFullSoon"),
            Alert::named("IngestErrorBudgetBurnFast"),
        ],
        async || {
            system.lock().await.process("broker").kill();
            Ok(())
        },
        async |()| {
            held_back = inhibited(watch, began).await;
            let mut system = system.lock().await;
            system.process("broker").start_again();
            system.ready().await;
            Ok(())
        },
    )
    .await;
    Found {
        alerts,
        steps: vec![("what a page explains is held back", held_back)],
    }
}

/// The spool is more than half full, and nobody was told.
async fn inhibited(watch: &Watch, since: Instant) -> Outcome {
    let firing = format!(
        "ALERTS{{alertname=\"{}\",alertstate=\"firing\"}}",
        SPOOL_FILLING.name
    );
    watch.prometheus.until(&firing, SHOWN).await?;
    match watch.inbox.count(SPOOL_FILLING, since) {
        0 => Ok(String::from(
            "SpoolFilling fires and is told to nobody while KafkaUnreachable pages",
        )),
        count => Err(Failure::Unmet(format!(
            "SpoolFilling was told {count} times beside KafkaUnreachable"
        ))),
    }
}

async fn consumer(system: &Mutex<System>, watch: &Watch) -> Vec<AlertRow> {
    prove(
        watch,
        "the consumer is killed",
        [Alert::with(
            "TargetDown",
            &[("job", "streamgauge-consumer")],
        )],
        async || {
            system.lock().await.process("consumer").kill();
            Ok(())
        },
        async |()| {
            let mut system = system.lock().await;
            system.process("consumer").start_again();
            system.ready().await;
            Ok(())
        },
    )
    .await
}

async fn restarts(system: &Mutex<System>, watch: &Watch) -> Vec<AlertRow> {
    prove(
        watch,
        "analytics is killed again and again",
        [Alert::with("RestartLoop", &[("job", "streamgauge-analytics")])],
        async || {
            let mut system = system.lock().await;
            for death in 1..=DEATHS {
                system.process("analytics").kill();
                system.process("analytics").start_again();
                system.ready().await;
                // The next death waits until this start was seen, or it would not be a start.
                let seen = format!(
                    "changes(process_start_time_seconds{{job=\"streamgauge-analytics\"}}[30s]) >= {}",
                    death.min(3)
                );
                watch.prometheus.until(&seen, SHOWN).await?;
            }
            Ok(())
        },
        async |()| Ok(()),
    )
    .await
}
