//! Clocks that are an hour off: those of clients by what they say, those of a service by libfaketime.

use std::time::Duration;

use super::READY_WITHIN;
use crate::{
    failure::Failure,
    trial::{Setup, Trial},
};

/// How far a clock is off, in seconds.
const HOUR: i64 = 3_600;
/// How far ahead of the producer's clock an event may be: both may be wrong, and a little more.
const FUTURE_MAX_MS: i64 = (2 * HOUR + 600) * 1_000;
/// How long a service runs with a wrong clock.
const SPELL: Duration = Duration::from_secs(6);

/// A third of the users are an hour ahead, a third an hour behind. By default a producer refuses what is five minutes
/// ahead of its clock; here a client may be two hours ahead of it.
pub fn setup(setup: &mut Setup<'_>) {
    setup.settings = vec![format!("producer.limits.future_max_ms={FUTURE_MAX_MS}")];
    setup.load = Some(Box::new(|load| load.clocks_off_s = vec![0, HOUR, -HOUR]));
}

/// The consumer, then the producer, an hour behind and an hour ahead, and right again. Each is drained before its clock
/// jumps: log time follows the producer's clock, and a retry across a jump ahead of more than the dedupe horizon is
/// not recognised.
pub async fn clocks(trial: &mut Trial<'_>) -> Result<(), Failure> {
    let libraries = libraries()?;
    for name in ["analytics", "consumer", "producer"] {
        for off in [-HOUR, HOUR, 0] {
            let (code, _) = trial.system.terminate(name).await;
            trial.require(code == Some(0), || format!("{name} ended with {code:?}"));
            let process = trial.system.process(name);
            process.set_environment(environment(&libraries, off));
            trial.system.start_again(name);
            trial.ready_within(name, READY_WITHIN * 2).await?;
            tokio::time::sleep(SPELL).await;
        }
        too_far_ahead(trial).await?;
        trial.healed().await;
    }
    Ok(())
}

/// What is further ahead than the policy allows is refused for good, by that name.
async fn too_far_ahead(trial: &mut Trial<'_>) -> Result<(), Failure> {
    let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(4 * HOUR);
    let event = serde_json::json!([{
        "user_id": "early", "event_type": "click", "occurred_at": time.to_string(),
    }]);
    let url = format!("{}/v1/events", trial.system.url("producer"));
    let request = reqwest::Client::new().post(&url).json(&event).send().await;
    let answer = request.map_err(Failure::http(url.clone()))?.json().await;
    let answer: serde_json::Value = answer.map_err(Failure::http(url))?;
    let code = &answer["verdicts"][0]["code"];
    trial.require(*code == "timestamp_in_future", || {
        format!("an event four hours ahead got {answer}")
    });
    Ok(())
}

/// Shifts the wall clock of a process; durations go by the right clock.
fn environment(libraries: &str, off_s: i64) -> Vec<(String, String)> {
    if off_s == 0 {
        return Vec::new();
    }
    [
        ("LD_PRELOAD", libraries.to_owned()),
        ("FAKETIME", format!("{off_s:+}")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", String::from("1")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// What to preload: libfaketime, and what lets it reach librdkafka.
fn libraries() -> Result<String, Failure> {
    std::env::var("STREAMGAUGE_CHAOS_FAKETIME").map_err(|_| {
        Failure::Unmet(String::from(
            "STREAMGAUGE_CHAOS_FAKETIME is not set; run scripts/chaos, which sets it",
        ))
    })
}
