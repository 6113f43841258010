//! Disks that fill up, and disks that lose what was not synced.

use std::time::Duration;

use tokio::time::Instant;

use super::{READY_WITHIN, broken};
use crate::{
    failure::Failure,
    options::Options,
    report::{Row, Verdict},
    stack::Stack,
    system::Ground,
    trial::{Setup, Trial},
    volume::Volume,
};

/// The embedded system's only process.
const UP: &str = "up";
/// An embedded system reads its log anew after a crash.
const UP_READY_WITHIN: Duration = Duration::from_secs(30);

/// Kafka on a small disk of its own, which is filled under load until nothing is acknowledged any more.
pub async fn full(row: Row, options: &Options, stack: &Stack) -> Row {
    let mib = if options.size().full { 2_048 } else { 512 };
    let volume = match Volume::in_memory(mib).await {
        Ok(volume) => volume,
        Err(failure) => return no_disk(row, &failure),
    };
    let stack = stack.with_kafka_on(&volume.path().join("kafka"));
    if let Err(failure) = stack.kafka(&["start"]).await {
        return broken(row, &failure);
    }
    let setup = Setup {
        settings: Vec::new(),
        ground: Ground::Stack {
            stack: &stack,
            proxied: &[],
            postgres_port: stack.postgres_port,
        },
        load: Some(Box::new(|_| {})),
    };
    let row = match Trial::begin(options, row.clone(), setup).await {
        Ok(mut trial) => {
            let struck = fill(&mut trial, &stack, &volume).await;
            trial.conclude(struck).await
        }
        Err(failure) => broken(row, &failure),
    };
    // It was started here and nobody else uses it.
    match stack.kafka(&["stop"]).await {
        Ok(_) => row,
        Err(failure) => broken(row, &failure),
    }
}

async fn fill(trial: &mut Trial<'_>, stack: &Stack, volume: &Volume) -> Result<(), Failure> {
    volume.fill().await?;
    let begun = Instant::now();
    while trial.silence() < Duration::from_secs(3) {
        if begun.elapsed() > Duration::from_secs(60) {
            return Err(Failure::Unmet(String::from(
                "events are acknowledged with a full disk",
            )));
        }
        // What Kafka freed by itself is taken again.
        volume.fill().await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(trial.size.outage).await;
    volume.empty()?;
    // Kafka gives its only folder up and ends; where it did not, a kill makes the same of it.
    stack.kafka(&["kill"]).await?;
    stack.kafka(&["start"]).await?;
    trial.healed().await;
    Ok(())
}

/// `streamgauge up` on a disk of its own: killed under load, then cut off from power.
pub async fn power_cut(row: Row, options: &Options) -> Row {
    let mib = if options.size().full { 4_096 } else { 1_024 };
    let (volume, refused) = match Volume::on_disk(mib).await {
        Ok(volume) => (Some(volume), None),
        Err(failure) => (None, Some(failure)),
    };
    let folder = tempfile::tempdir();
    let data = match (&volume, &folder) {
        (Some(volume), _) => volume.path(),
        (None, Ok(folder)) => folder.path().to_owned(),
        (None, Err(_)) => return row,
    };
    let setup = Setup {
        settings: Vec::new(),
        ground: Ground::Embedded {
            data: data.join("data"),
        },
        load: Some(Box::new(|_| {})),
    };
    match Trial::begin(options, row.clone(), setup).await {
        Ok(mut trial) => {
            if let Some(failure) = refused {
                trial.note(format!(
                    "only killed, not cut off from power, since no disk could be mounted: {failure}"
                ));
            }
            let struck = cut(&mut trial, volume.as_ref()).await;
            trial.conclude(struck).await
        }
        Err(failure) => broken(row, &failure),
    }
}

async fn cut(trial: &mut Trial<'_>, volume: Option<&Volume>) -> Result<(), Failure> {
    let cuts = trial.size.cuts / 2;
    for number in 0..cuts * 2 {
        let pause = Duration::from_millis(500)..Duration::from_millis(3_000);
        trial.sleep_between(pause).await;
        match volume {
            Some(volume) if number % 2 == 1 => {
                // Stopped first, so that nothing is said between the cut and the end.
                let stopped = trial.system.process(UP).signal("STOP");
                trial.require(stopped, || String::from("it ended by itself"));
                volume.cut_off().await?;
                trial.system.kill(UP);
                volume.bring_back().await?;
            }
            _ => trial.system.kill(UP),
        }
        trial.system.start_again(UP);
        for service in crate::stack::PROXIED {
            trial.ready_within(service, UP_READY_WITHIN).await?;
        }
    }
    let power = if volume.is_some() { cuts } else { 0 };
    trial.note(format!(
        "killed {} times, power cut {power} times",
        cuts * 2 - power
    ));
    trial.healed().await;
    trial.ready_within("analytics", READY_WITHIN).await?;
    Ok(())
}

fn no_disk(mut row: Row, failure: &Failure) -> Row {
    row.verdict = Verdict::NotRun;
    row.notes.push(format!(
        "not run, since no small disk could be mounted (it needs root): {failure}"
    ));
    row
}
