//! A system that is well, with everything that a dashboard shows: Prometheus' and Alertmanager's own checks, every
//! panel's query, exemplars that lead to traces, and the canary.

use std::{path::Path, process::Stdio, time::Duration};

use streamgauge_kafka::{Publisher, PublisherConfig, Record};
use streamgauge_tests::system::System;
use tokio::process::Command;

use crate::{
    alertmanager::Alertmanager,
    bench::{Bench, Watch, repository},
    failure::{Failure, Outcome},
    faults::{held::ask, prove},
    inbox::Alert,
    load::{Load, Mix},
    report::AlertRow,
    traces::{self, Traces},
};

/// Scrapes that must be there before panels are asked: their rates look back a minute.
const SCRAPES: u32 = 75;
/// Longest wait for so much history.
const HISTORY: Duration = Duration::from_secs(150);
/// How long the canary is watched on a system that is well, and how many events it must have sent meanwhile.
const QUIET_S: u32 = 30;
const CANARIES_MIN: f64 = 20.0;
/// Doors that the canary uses.
const DOORS: f64 = 2.0;

/// What the part has to say: its steps, and the alerts of the canary.
pub struct Live {
    /// Steps by name.
    pub steps: Vec<(&'static str, Outcome)>,
    /// Of the canary; empty when there is none.
    pub alerts: Vec<AlertRow>,
}

/// Runs the part.
pub async fn run() -> Outcome<Live> {
    let traces = Traces::start().await;
    let alertmanager = Alertmanager::free_address();
    let system = System::start(&[
        &format!("analytics.alerts.alertmanager=http://{alertmanager}"),
        &format!("each.telemetry.otlp_endpoint={}", traces.endpoint()),
        "each.telemetry.sample_ratio=0.25",
        "analytics.canary.enabled=true",
    ])
    .await;
    let bench = Bench::with_alertmanager_at(system, alertmanager).await?;
    let (system, watch) = (&bench.system, bench.watch());
    let everything = Mix {
        good: 160,
        rejected: 10,
        duplicates: 10,
        new_pages: 5,
        ..Mix::USUAL
    };
    let load = Load::start(system, "live", everything)?;
    poison(system).await?;
    let history = format!("min(count_over_time(up{{job=~\"streamgauge-.+\"}}[5m])) >= {SCRAPES}");
    // The tools need no history: they run while it grows.
    let (tools, history) = futures::join!(tools(system), watch.prometheus.until(&history, HISTORY));
    history?;

    let mut steps = vec![
        ("promtool, amtool and the format of /metrics", tools),
        (
            "every panel's query",
            panels(system, watch.prometheus.url()).await,
        ),
        (
            "the trace of one event",
            traces::of_one_event(system, &traces).await,
        ),
        (
            "exemplars lead to traces",
            traces::of_exemplars(system, &watch.prometheus, &traces).await,
        ),
        ("no alert but the one that always fires", quiet(&watch)),
        (
            "alerts through analytics' API",
            through_analytics(system).await,
        ),
        ("the canary loses nothing", canary(&watch).await),
    ];
    let alerts = if steps.last().is_some_and(|(_, outcome)| outcome.is_ok()) {
        canary_held(system, &watch).await
    } else {
        steps.push((
            "the canary reports loss",
            Err(Failure::Unmet(String::from(
                "not run: there is no canary that loses nothing",
            ))),
        ));
        Vec::new()
    };
    drop(load);
    Ok(Live { steps, alerts })
}

/// A few records that are no events, for the panels that show dead letters.
async fn poison(system: &System) -> Outcome<()> {
    let refused =
        |error: &dyn std::fmt::Display| Failure::Unmet(format!("writing poison: {error}"));
    let publisher = Publisher::new(&system.kafka(), &PublisherConfig::default(), None)
        .map_err(|error| refused(&error))?;
    for payload in [&b"raw garbage"[..], b""] {
        let record = Record {
            topic: system.events_topic(),
            partition: Some(0),
            key: Some(b"u"),
            payload: Some(payload),
            timestamp_ms: None,
            headers: &[],
        };
        publisher
            .send(record)
            .await
            .map_err(|error| refused(&error))?;
    }
    Ok(())
}

async fn tools(system: &System) -> Outcome {
    let urls = [system.producer(), system.consumer(), system.analytics()];
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    let output = script("scripts/check-monitoring", &urls, &[]).await?;
    let checks = output
        .lines()
        .filter(|line| line.starts_with("ok "))
        .count();
    Ok(format!("{checks} checks"))
}

/// With a PostgreSQL, a system's own or the one that `POSTGRES_URL` names, the panels in SQL are asked as well.
async fn panels(system: &System, prometheus: &str) -> Outcome {
    let mut variables = vec![("PROMETHEUS_URL", prometheus), ("REQUIRE_EXEMPLARS", "1")];
    variables.extend(system.database_url().map(|url| ("POSTGRES_URL", url)));
    let output = script("scripts/check-dashboards", &[], &variables).await?;
    let said: Vec<_> = output
        .lines()
        .filter_map(|line| line.strip_prefix("live: "))
        .collect();
    Ok(said.join("; "))
}

/// Runs one of the repository's scripts; says what failed in it, or returns what it said.
async fn script(name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Outcome<String> {
    let path: &Path = &repository();
    let mut command = Command::new(path.join(name));
    command
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    let output = command.output().await.map_err(Failure::io(name))?;
    let [said, complained] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if output.status.success() {
        return Ok(said);
    }
    let passed = said.lines().filter(|line| line.starts_with("ok ")).count();
    Err(Failure::Unmet(format!(
        "{}; {passed} checks passed\n{complained}{}",
        output.status,
        tail(&said)
    )))
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with("ok "))
        .collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// A load with a few bad events is no reason to tell anybody.
fn quiet(watch: &Watch) -> Outcome {
    let names = watch.inbox.firing_names();
    if names == ["Watchdog"] {
        return Ok(String::from("Watchdog fires, nothing else"));
    }
    Err(Failure::Unmet(format!("firing: {}", names.join(", "))))
}

/// What fires is told by analytics as well, with the way to its runbook.
async fn through_analytics(system: &System) -> Outcome {
    let url = format!("{}/v1/alerts", system.analytics());
    let asked = async {
        let answer = reqwest::get(&url).await?.error_for_status()?;
        answer.json::<serde_json::Value>().await
    };
    let answer = asked.await.map_err(Failure::http("/v1/alerts"))?;
    let alerts = answer["alerts"].as_array().cloned().unwrap_or_default();
    let told: Vec<_> = alerts
        .iter()
        .filter(|alert| alert["state"] == "firing")
        .filter(|alert| {
            alert["runbook_url"]
                .as_str()
                .is_some_and(|url| !url.is_empty())
        })
        .filter_map(|alert| alert["name"].as_str())
        .collect();
    if told == ["Watchdog"] {
        return Ok(String::from("Watchdog is told, with its runbook"));
    }
    Err(Failure::Unmet(format!("{url} answered {answer}")))
}

/// On a system that is well every event of the canary comes back, over both doors.
async fn canary(watch: &Watch) -> Outcome {
    let prometheus = &watch.prometheus;
    if prometheus
        .number("canary_events_sent_total")
        .await?
        .is_none()
    {
        return Err(Failure::Unmet(String::from(
            "canary_events_sent_total is not exported: there is no canary",
        )));
    }
    let enough = format!("sum(increase(canary_events_sent_total[{QUIET_S}s])) >= {CANARIES_MIN}");
    prometheus.until(&enough, HISTORY).await?;
    let doors = format!("count(increase(canary_events_received_total[{QUIET_S}s]) > 0) == {DOORS}");
    prometheus.until(&doors, HISTORY).await?;
    let number =
        async |expr: &str| Ok::<_, Failure>(prometheus.number(expr).await?.unwrap_or(f64::NAN));
    let lost = number("sum(canary_events_lost_total)").await?;
    let (sent, received) = (
        number("sum(canary_events_sent_total)").await?,
        number("sum(canary_events_received_total)").await?,
    );
    if lost != 0.0 {
        return Err(Failure::Unmet(format!(
            "{lost} of {sent} events lost, {received} received"
        )));
    }
    let p99 = number("max(job_door:canary_roundtrip_seconds:p99_5m)").await?;
    Ok(format!(
        "{sent} sent over {DOORS} doors, {received} received, 0 lost; p99 of the round trip {p99:.3} s"
    ))
}

async fn canary_held(system: &System, watch: &Watch) -> Vec<AlertRow> {
    prove(
        watch,
        "the consumer is held",
        [Alert::named("CanaryEventsLost")],
        async || ask(system, "pause").await,
        async |()| ask(system, "resume").await,
    )
    .await
}
