//! What somebody sees who follows an alert to its cause, without having made the fault: the dashboards' own queries, the
//! trace of an event that does not arrive, and what the runbook has them ask.

use std::collections::BTreeSet;

use serde_json::Value;
use streamgauge_tests::system::System;

use crate::{
    bench::{Watch, repository},
    failure::{Failure, Outcome},
    prometheus::read,
    traces::{self, Traces},
};

/// The panels that are looked at, in this order: a dashboard's file, the job that its variable names, and a title.
const PANELS: [(&str, &str, &str); 6] = [
    ("sg-overview", ".+", "Alerts firing"),
    ("sg-overview", ".+", "One event, three stages"),
    ("sg-consumer", "streamgauge-consumer", "Records behind"),
    (
        "sg-consumer",
        "streamgauge-consumer",
        "Seconds behind, by instance",
    ),
    (
        "sg-consumer",
        "streamgauge-consumer",
        "Errors of owners and of the chain",
    ),
    (
        "sg-consumer",
        "streamgauge-consumer",
        "Paused or resumed by hand",
    ),
];
/// Series of a panel that are all 0 are counted when they are more than this.
const SERIES_SHOWN: usize = 3;
/// What Grafana would fill in, at one scrape a second.
const RATE_INTERVAL: &str = "15s";

/// A consumer that is held, as seen while it is; [`end`] tells of what is seen after.
pub struct Told {
    lines: Vec<String>,
    trace: String,
}

/// Looks around while the consumer is held.
pub async fn look(system: &System, watch: &Watch, traces: &Traces) -> Outcome<Told> {
    let mut lines = Vec::new();
    for (board, job, title) in PANELS {
        lines.push(format!(
            "{board}, {title}: {}",
            panel(watch, board, job, title).await?
        ));
    }
    let trace = traces::submit_traced(system).await?;
    let names = traces
        .names(&trace, &format!("send {}", system.events_topic()))
        .await?;
    lines.push(format!(
        "trace {trace} of an event sent now: {}",
        names.join(", ")
    ));
    if names.iter().any(|name| name.starts_with("process ")) {
        return Err(Failure::Unmet(format!(
            "a held consumer processed an event: {names:?}"
        )));
    }
    let status = system
        .get(&format!("{}/v1/status", system.consumer()))
        .await;
    let partitions = status["partitions"].as_array().into_iter().flatten();
    let states: BTreeSet<_> = partitions.map(|one| one["state"].to_string()).collect();
    let states = states.into_iter().collect::<Vec<_>>().join(", ");
    lines.push(format!(
        "/v1/status, which the runbook of ConsumerStopped asks: {states}"
    ));
    if states != "\"paused\"" {
        return Err(Failure::Unmet(format!(
            "a consumer that is held says {states}"
        )));
    }
    Ok(Told { lines, trace })
}

/// Once the consumer goes on, the trace becomes whole.
pub async fn end(told: Outcome<Told>, system: &System, traces: &Traces) -> Outcome {
    let Told { mut lines, trace } = told?;
    lines.push(format!(
        "after it was resumed: {}",
        traces::whole(system, traces, &trace).await?
    ));
    Ok(lines
        .iter()
        .map(|line| format!("\n                {line}"))
        .collect())
}

/// The values of a panel's queries now, each with its labels.
async fn panel(watch: &Watch, board: &str, job: &str, title: &str) -> Outcome {
    let path = repository().join(format!("monitoring/grafana/dashboards/{board}.json"));
    let text = read(&path)?;
    let dashboard: Value = serde_json::from_str(&text)
        .map_err(|error| Failure::Unmet(format!("{}: {error}", path.display())))?;
    let queries = queries(&dashboard, title);
    if queries.is_empty() {
        return Err(Failure::Unmet(format!("{board} has no panel \"{title}\"")));
    }
    let (mut said, mut sum) = (Vec::new(), 0.0);
    for query in queries {
        for (labels, value) in watch.prometheus.query(&fill(&query, job)).await? {
            sum += value.abs();
            let labels = labels.as_object().into_iter().flatten();
            let labels: Vec<_> = labels
                .map(|(_, value)| value.as_str().unwrap_or_default())
                .collect();
            said.push(format!("{} {value:.1}", labels.join(" ")).trim().to_owned());
        }
    }
    // Where nothing happened, how many series said so is enough.
    if said.len() > SERIES_SHOWN && sum == 0.0 {
        return Ok(format!("0 in all {} series", said.len()));
    }
    Ok(said.join(", "))
}

fn queries(dashboard: &Value, title: &str) -> Vec<String> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let folded = panels
        .clone()
        .flat_map(|row| row["panels"].as_array().into_iter().flatten());
    let found = panels.chain(folded).find(|panel| panel["title"] == title);
    let targets = found
        .and_then(|panel| panel["targets"].as_array())
        .into_iter()
        .flatten();
    targets
        .filter_map(|target| target["expr"].as_str().map(str::to_owned))
        .collect()
}

/// A query with every variable filled in, as when All is chosen.
fn fill(query: &str, job: &str) -> String {
    let query = query
        .replace("$__rate_interval", RATE_INTERVAL)
        .replace("$job", job);
    ["producer", "consumer", "analytics"]
        .into_iter()
        .fold(query.replace("$instance", ".+"), |query, service| {
            query.replace(&format!("${service}"), &format!("streamgauge-{service}"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_panel_of_the_story_is_there_and_can_be_asked() {
        for (board, job, title) in PANELS {
            let path = repository().join(format!("monitoring/grafana/dashboards/{board}.json"));
            let dashboard = serde_json::from_str(&read(&path).expect("it is there")).expect("JSON");
            let queries = queries(&dashboard, title);
            assert!(!queries.is_empty(), "{board}, {title}");
            for query in queries {
                assert!(!fill(&query, job).contains('$'), "{query}");
            }
        }
    }
}
