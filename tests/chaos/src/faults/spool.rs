//! Kafka away while the producer has a spool: nobody is refused, and what waits on the disk arrives afterwards.

use std::time::Duration;

use tokio::time::Instant;

use super::{READY_WITHIN, broken};
use crate::{
    failure::Failure,
    options::Options,
    report::Row,
    stack::{PROXIED, Stack},
    system::Ground,
    trial::{Setup, Trial},
};

/// The breaker before Kafka, and its states.
const BREAKER: &str = r#"breaker="publish""#;
const CLOSED: f64 = 0.0;
/// Longer than the producer waits for Kafka before it calls it away (`publisher.delivery_timeout_ms`).
const OUTAGE_MIN: Duration = Duration::from_secs(12);
/// The producer takes what waits when it drains, so long at most.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);

/// The same outages as without a spool, with the producer killed in the second.
pub async fn spool(row: Row, options: &Options, stack: &Stack) -> Row {
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => return broken(row, &Failure::io("a folder for the spool")(error)),
    };
    let setup = Setup {
        settings: vec![
            String::from("producer.spool.enabled=true"),
            format!("producer.spool.dir={}", folder.path().display()),
        ],
        ground: Ground::Stack {
            stack,
            proxied: &[],
            postgres_port: stack.postgres_port,
        },
        load: Some(Box::new(|_| {})),
    };
    match Trial::begin(options, row.clone(), setup).await {
        Ok(mut trial) => {
            let struck = outages(&mut trial, stack).await;
            trial.conclude(struck).await
        }
        Err(failure) => broken(row, &failure),
    }
}

async fn outages(trial: &mut Trial<'_>, stack: &Stack) -> Result<(), Failure> {
    let outage = trial.size.outage.max(OUTAGE_MIN);
    let mut starting = None;
    for how in ["halt", "kill"] {
        stack.kafka(&[how]).await?;
        let away = Instant::now();
        tokio::time::sleep(outage).await;
        let (waiting, state) = (waiting(trial).await?, breaker(trial).await?);
        trial.require(waiting > 0.0, || format!("{how}: nothing was spooled"));
        trial.require(state != CLOSED, || {
            format!("{how}: the breaker is closed although Kafka is away")
        });
        if how == "kill" {
            trial.system.kill("producer");
            let killed = Instant::now();
            trial.system.start_again("producer");
            // It takes events without having seen Kafka, since an earlier run has.
            trial.ready_within("producer", READY_WITHIN).await?;
            starting = Some(killed..Instant::now());
            let before = trial.acknowledged();
            trial
                .comes_about("events go to the spool", READY_WITHIN, async |trial| {
                    trial.acknowledged() > before
                })
                .await;
        }
        stack.kafka(&["start"]).await?;
        let away = away.elapsed();
        trial.note(format!(
            "{how}: away for {away:.1?}, {waiting} events waited in the spool after {outage:.1?}"
        ));
        let empty = async |trial: &Trial<'_>| {
            let closed = breaker(trial).await.is_ok_and(|state| state == CLOSED);
            closed && self::waiting(trial).await.is_ok_and(|left| left == 0.0)
        };
        trial
            .comes_about(
                "the spool is drained and the breaker closed",
                DRAINED_WITHIN,
                empty,
            )
            .await;
        trial.healed().await;
        for name in PROXIED {
            trial.ready_within(name, READY_WITHIN * 3).await?;
        }
    }
    trial.finish_load().await?;
    let refusals = trial
        .harvests()
        .iter()
        .flat_map(|one| &one.seen.server_errors);
    // While it starts, and says that it is not ready, it takes nothing yet.
    let meanwhile = |at: &Instant| starting.as_ref().is_some_and(|span| span.contains(at));
    let refused = refusals.filter(|(at, _)| !meanwhile(at)).count();
    trial.require(refused == 0, || {
        format!("{refused} requests were refused although there was a spool")
    });
    Ok(())
}

/// Events that wait in the spool.
async fn waiting(trial: &Trial<'_>) -> Result<f64, Failure> {
    trial.system.metric("producer", "spool_records", "").await
}

async fn breaker(trial: &Trial<'_>) -> Result<f64, Failure> {
    let name = "circuit_breaker_state";
    trial.system.metric("producer", name, BREAKER).await
}
