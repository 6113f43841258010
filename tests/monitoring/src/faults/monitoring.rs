//! Faults of the monitoring itself: whoever watches must be watched.

use std::{fs, time::Duration};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use streamgauge_tests::system::System;
use tokio::{sync::Mutex, time::Instant};

use crate::{
    bench::{Bench, Watch},
    failure::{Failure, Outcome},
    faults::{Found, prove},
    inbox::Alert,
    load::{Load, Mix},
    prometheus::{Prometheus, read, write},
};

/// Longest wait for a figure to show in Prometheus.
const SHOWN: Duration = Duration::from_secs(60);
/// Longest wait for the switch to fall silent: Alertmanager believes an alert for four times the resend delay.
const SILENCE: Duration = Duration::from_secs(60);
/// Heartbeats that must arrive before they are stopped.
const HEARTBEATS: usize = 5;
const WATCHDOG: Alert = Alert::named("Watchdog");
/// A rule that can be read and not evaluated: its right side has several series.
const BROKEN_RULE: &str = "groups:\n  - name: broken\n    rules:\n      - record: broken:value\n        \
                           expr: up + on () up\n";

/// Runs the group; besides its alerts, it says who heard of a page when, and what the dead man's switch did.
pub async fn run() -> Outcome<Found> {
    let system = System::start(&[]).await;
    let mut bench = Bench::beside(system).await?;
    let watch = bench.watch();
    let _usual = Load::start(
        &bench.system,
        "usual",
        Mix {
            good: 20,
            ..Mix::USUAL
        },
    )?;
    watch
        .prometheus
        .until("job:event_end_to_end_seconds:p99_5m", SHOWN)
        .await?;
    let process = bench.system.process("up").pid();
    let process = process.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let process =
        process.ok_or_else(|| Failure::Unmet(String::from("the system has no process")))?;

    let began = Instant::now();
    let prometheus = &bench.prometheus;
    let (configured, refused, descriptors) = futures::join!(
        prove(
            &watch,
            "a rule, the targets and the syntax are spoilt, and reloaded",
            [
                Alert::named("RuleEvaluationFailing"),
                Alert::with("ConfigReloadFailed", &[("job", "prometheus")]),
                Alert::named("ConsumerMetricsAbsent"),
                Alert::with("ServiceMetricsAbsent", &[("job", "streamgauge-analytics")]),
            ],
            async || break_configuration(prometheus).await,
            async |text: String| mend_configuration(prometheus, &text).await,
        ),
        prove(
            &watch,
            "a receiver refuses every notification",
            [Alert::with(
                "NotificationsFailing",
                &[("integration", "webhook")]
            )],
            async || {
                bench.inbox.refuse("webhook-info");
                bench.inbox.refuse("dead-mans-switch");
                Ok(())
            },
            async |()| {
                bench.inbox.take_again();
                Ok(())
            },
        ),
        prove(
            &watch,
            "the limit of file descriptors is lowered",
            [Alert::with(
                "FileDescriptorsNearLimit",
                &[("job", "streamgauge-producer")]
            )],
            async || lower_limit(&watch, process).await,
            async |before: Rlimit| limit(process, before).map(|_| ()),
        ),
    );
    let mut alerts = [configured, refused, descriptors].concat();
    let alertmanager = Mutex::new(&mut bench.alertmanager);
    alerts.extend(
        prove(
            &watch,
            "Alertmanager is killed, and comes back",
            [Alert::named("AlertmanagerUnreachable")],
            async || {
                let mut alertmanager = alertmanager.lock().await;
                alertmanager.process.kill();
                let firing = "ALERTS{alertname=\"AlertmanagerUnreachable\",alertstate=\"firing\"}";
                watch.prometheus.until(firing, SHOWN).await?;
                alertmanager.process.start_again();
                alertmanager.ready().await
            },
            async |()| Ok(()),
        )
        .await,
    );
    let steps = vec![
        (
            "a page goes to its team first, then to the second receiver",
            escalation(&watch, began),
        ),
        (
            "dead man's switch",
            dead_mans_switch(&bench.prometheus, &watch).await,
        ),
    ];
    Ok(Found { alerts, steps })
}

/// Who heard of the page about rules that cannot be evaluated, and when.
fn escalation(watch: &Watch, since: Instant) -> Outcome {
    let heard = watch
        .inbox
        .heard(Alert::named("RuleEvaluationFailing"), since);
    let said: Vec<_> = heard
        .iter()
        .map(|(receiver, seconds)| format!("{receiver} after {seconds:.1} s"))
        .collect();
    let said = said.join(", ");
    let receivers: Vec<_> = heard
        .iter()
        .map(|(receiver, _)| receiver.as_str())
        .collect();
    if receivers == ["page-monitoring", "page-second"] {
        return Ok(said);
    }
    Err(Failure::Unmet(format!("heard: {said}")))
}

/// Returns the configuration as it was.
async fn break_configuration(prometheus: &Prometheus) -> Outcome<String> {
    let file = prometheus.file("prometheus.yml");
    let text = read(&file)?;
    write(&prometheus.file("rules/broken.yml"), BROKEN_RULE)?;
    write(&file, &without_targets(&text, ["consumer", "analytics"]))?;
    if !prometheus.reload().await? {
        return Err(Failure::Unmet(String::from(
            "a configuration that can be read was refused",
        )));
    }
    write(&file, &format!("{text}\nno_such_key: 1\n"))?;
    if prometheus.reload().await? {
        return Err(Failure::Unmet(String::from(
            "a configuration that cannot be read was taken",
        )));
    }
    Ok(text)
}

/// Jobs whose instances nobody finds any more, as when discovery is denied access.
fn without_targets(text: &str, services: [&str; 2]) -> String {
    let mut lost = false;
    let lines = text.lines().map(|line| {
        if let Some(job) = line.trim().strip_prefix("- job_name: ") {
            let service = job.strip_prefix("streamgauge-");
            lost = service.is_some_and(|service| services.contains(&service));
        }
        match line.split_once("- targets: ") {
            Some((indent, _)) if lost => format!("{indent}- targets: []\n"),
            _ => format!("{line}\n"),
        }
    });
    lines.collect()
}

async fn mend_configuration(prometheus: &Prometheus, text: &str) -> Outcome<()> {
    write(&prometheus.file("prometheus.yml"), text)?;
    let rule = prometheus.file("rules/broken.yml");
    fs::remove_file(&rule).map_err(Failure::io(rule.display().to_string()))?;
    match prometheus.reload().await? {
        true => Ok(()),
        false => Err(Failure::Unmet(String::from(
            "the mended configuration was refused",
        ))),
    }
}

/// Leaves a process a few file descriptors more than it uses; returns the limit from before.
async fn lower_limit(watch: &Watch, process: Pid) -> Outcome<Rlimit> {
    let open = watch
        .prometheus
        .until("max(process_open_fds{job=\"streamgauge-producer\"})", SHOWN)
        .await?;
    let lowered = Rlimit {
        // Nine tenths are in use then; the alert is at eight.
        current: Some((open / 0.9).round() as u64),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    limit(process, lowered)
}

fn limit(process: Pid, limit: Rlimit) -> Outcome<Rlimit> {
    prlimit(Some(process), Resource::Nofile, limit)
        .map_err(|error| Failure::io("the limit of file descriptors")(error.into()))
}

/// Stops Prometheus: the heartbeat must stop, and come back with it.
async fn dead_mans_switch(prometheus: &Prometheus, watch: &Watch) -> Outcome {
    let began = Instant::now();
    let end = began + SILENCE;
    while watch.inbox.count(WATCHDOG, began) < HEARTBEATS {
        if Instant::now() > end {
            return Err(Failure::Unmet(format!(
                "fewer than {HEARTBEATS} heartbeats within {SILENCE:?}"
            )));
        }
        tokio::time::sleep(crate::prometheus::POLL).await;
    }
    let beating = began.elapsed();
    let stopped = Instant::now();
    prometheus.process.signal("STOP");
    let silent = watch.inbox.resolved(WATCHDOG, stopped, SILENCE).await;
    prometheus.process.signal("CONT");
    let silent = silent
        .ok_or_else(|| Failure::Unmet(String::from("the heartbeat goes on without Prometheus")))?;
    let resumed = Instant::now();
    let back = watch.inbox.fired(WATCHDOG, resumed, SILENCE).await;
    let back =
        back.ok_or_else(|| Failure::Unmet(String::from("the heartbeat does not come back")))?;
    Ok(format!(
        "{HEARTBEATS} heartbeats in {:.1} s; given up {:.1} s after Prometheus was stopped, back {:.1} s after it went on",
        beating.as_secs_f64(),
        silent.as_secs_f64(),
        back.as_secs_f64()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_jobs_lose_their_targets() {
        let job = |name| {
            format!("  - job_name: {name}\n    static_configs:\n      - targets: [\"a:1\"]\n")
        };
        let all = ["streamgauge-producer", "streamgauge-consumer", "prometheus"]
            .map(job)
            .concat();
        let left = without_targets(&all, ["consumer", "analytics"]);
        assert_eq!(
            left,
            all.replacen("[\"a:1\"]", "[]", 2)
                .replacen("[]", "[\"a:1\"]", 1)
        );
    }
}
