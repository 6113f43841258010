//! From a graph to a trace: the exemplars that Prometheus holds must lead to traces that were collected, and an event's
//! trace must hold all three services and both topics.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use streamgauge_tests::{
    collector::{Collector, Span},
    system::System,
};
use tokio::time::Instant;

use crate::{
    failure::{Failure, Outcome},
    prometheus::{Client, POLL},
};

/// Spans are exported once a second, by each service.
const COLLECTED: Duration = Duration::from_secs(20);
/// How far back exemplars are looked for, in seconds.
const BACK_S: u64 = 300;
/// Exemplars of a series of buckets that are followed.
const FOLLOWED: usize = 5;
/// The latency histograms, each with the label that tells its series apart, and whether some of its exemplars must lead to
/// an event's whole way. Requests that ask have no such way.
const HISTOGRAMS: [(&str, &str, bool); 4] = [
    ("event_end_to_end_seconds_bucket", "job", true),
    ("event_processing_duration_seconds_bucket", "stage", true),
    ("http_server_request_duration_seconds_bucket", "route", true),
    ("rpc_server_call_duration_seconds_bucket", "method", true),
];
/// What each span of an event's way must say.
const SENT: [&str; 3] = [
    "messaging.system",
    "messaging.destination.name",
    "messaging.batch.message_count",
];
const PROCESSED: [&str; 5] = [
    "messaging.system",
    "messaging.destination.name",
    "messaging.destination.partition.id",
    "messaging.kafka.offset",
    "messaging.consumer.group.name",
];
const APPLIED: [&str; 5] = [
    "messaging.system",
    "messaging.destination.name",
    "messaging.destination.partition.id",
    "messaging.kafka.offset",
    "messaging.batch.message_count",
];

/// Where traces are collected.
pub enum Traces {
    /// In this process.
    Collector(Collector),
    /// In a Jaeger: where it takes spans, and where it is asked.
    Jaeger {
        /// OTLP over gRPC.
        otlp: String,
        /// The query API.
        url: String,
        /// Asks it.
        http: reqwest::Client,
    },
}

impl Traces {
    /// A Jaeger when `JAEGER_URL` names one (with `JAEGER_OTLP`, else at the usual port), or a collector in this process.
    pub async fn start() -> Self {
        match std::env::var("JAEGER_URL") {
            Ok(url) => Self::Jaeger {
                otlp: std::env::var("JAEGER_OTLP")
                    .unwrap_or_else(|_| String::from("http://127.0.0.1:4317")),
                url,
                http: reqwest::Client::new(),
            },
            Err(_) => Self::Collector(Collector::start().await),
        }
    }

    /// Where the services send spans.
    pub fn endpoint(&self) -> String {
        match self {
            Self::Collector(collector) => collector.endpoint(),
            Self::Jaeger { otlp, .. } => otlp.clone(),
        }
    }

    /// What collects them, for the report.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Collector(_) => "the collector of this process",
            Self::Jaeger { .. } => "Jaeger",
        }
    }

    /// The names of a trace's spans, once one of them is there.
    pub async fn names(&self, id: &str, awaited: &str) -> Outcome<Vec<String>> {
        let end = Instant::now() + COLLECTED;
        loop {
            let names: Vec<_> = self
                .trace(id)
                .await?
                .into_iter()
                .map(|span| span.name)
                .collect();
            if names.iter().any(|name| name == awaited) {
                return Ok(names);
            }
            if Instant::now() > end {
                return Err(Failure::Unmet(format!(
                    "trace {id} has no span {awaited}: {names:?}"
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn trace(&self, id: &str) -> Outcome<Vec<Span>> {
        match self {
            Self::Collector(collector) => Ok(collector.trace(id)),
            Self::Jaeger { url, http, .. } => {
                let answer = http.get(format!("{url}/api/traces/{id}")).send().await;
                let answer = answer.map_err(Failure::http("Jaeger"))?;
                let answer: Value = answer.json().await.map_err(Failure::http("Jaeger"))?;
                Ok(of_jaeger(id, &answer["data"][0]))
            }
        }
    }
}

/// A trace as Jaeger's query API tells it.
fn of_jaeger(id: &str, trace: &Value) -> Vec<Span> {
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let spans = trace["spans"].as_array().into_iter().flatten();
    let spans = spans.map(|span| {
        let process = text(&span["processID"]);
        let references = span["references"].as_array().into_iter().flatten();
        let parent = references
            // Jaeger leaves leading zeros of an id out.
            .filter(|one| one["refType"] == "CHILD_OF" && one["traceID"] == span["traceID"])
            .map(|one| text(&one["spanID"]))
            .next();
        let tags = span["tags"].as_array().into_iter().flatten();
        Span {
            service: text(&trace["processes"][&process]["serviceName"]),
            name: text(&span["operationName"]),
            trace_id: id.to_owned(),
            span_id: text(&span["spanID"]),
            parent_id: parent.unwrap_or_default(),
            start_ns: span["startTime"].as_u64().unwrap_or(0) * 1000,
            attributes: tags
                .map(|tag| (text(&tag["key"]), text(&tag["value"])))
                .collect(),
        }
    });
    spans.collect()
}

/// Sends one event, with a caller's own trace that is sampled; returns the trace that the answer names.
pub async fn submit_traced(system: &System) -> Outcome {
    let request = reqwest::Client::new().post(format!("{}/v1/events", system.producer()));
    let caller = format!("00-{:032x}-00f067aa0ba902b7-01", crate::load::now_us());
    let event = json!({ "user_id": "traced", "event_type": "click", "page_url": "/traced" });
    let answer = request
        .header("traceparent", caller)
        .json(&event)
        .send()
        .await;
    let answer = answer.map_err(Failure::http("the producer"))?;
    let id = answer
        .headers()
        .get("x-trace-id")
        .and_then(|id| id.to_str().ok());
    let id = id.map(str::to_owned);
    id.ok_or_else(|| Failure::Unmet(String::from("the answer names no trace")))
}

/// Sends one event and follows the trace that its answer names.
pub async fn of_one_event(system: &System, traces: &Traces) -> Outcome {
    let id = submit_traced(system).await?;
    let began = Instant::now();
    let text = whole(system, traces, &id).await?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(format!(
        "{id}, whole after {seconds:.1} s in {}: {text}",
        traces.name()
    ))
}

/// Waits until a trace leads through all services.
pub async fn whole(system: &System, traces: &Traces, id: &str) -> Outcome {
    let end = Instant::now() + COLLECTED;
    loop {
        let way = way(&traces.trace(id).await?, system);
        if way.is_ok() || Instant::now() > end {
            return way;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Follows exemplars of every latency histogram.
pub async fn of_exemplars(system: &System, prometheus: &Client, traces: &Traces) -> Outcome {
    let mut said = Vec::new();
    for (histogram, label, must_be_whole) in HISTOGRAMS {
        let found = prometheus.exemplars(histogram, BACK_S).await?;
        let mut series: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (labels, exemplar) in &found {
            let name = labels[label].as_str().unwrap_or_default().to_owned();
            let id = exemplar["trace_id"].as_str().unwrap_or_default().to_owned();
            series.entry(name).or_default().push(id);
        }
        if series.is_empty() {
            return Err(Failure::Unmet(format!("{histogram} has no exemplars")));
        }
        let (mut resolved, mut whole) = (0, 0);
        for (name, ids) in &series {
            let mut whole_here = false;
            for id in ids.iter().rev().take(FOLLOWED) {
                let spans = collected(traces, id).await?;
                if spans.is_empty() {
                    return Err(Failure::Unmet(format!(
                        "{histogram} {name}: trace {id} was not collected"
                    )));
                }
                resolved += 1;
                whole_here |= way(&spans, system).is_ok();
            }
            whole += usize::from(whole_here);
        }
        if must_be_whole && whole == 0 {
            return Err(Failure::Unmet(format!(
                "no exemplar of {histogram} leads through all services"
            )));
        }
        let (name, count) = (histogram.trim_end_matches("_bucket"), series.len());
        said.push(format!("{name}: {resolved} followed in {count} series, {whole} of which lead through all services"));
    }
    Ok(said.join("; "))
}

async fn collected(traces: &Traces, id: &str) -> Outcome<Vec<Span>> {
    let end = Instant::now() + COLLECTED;
    loop {
        let spans = traces.trace(id).await?;
        if !spans.is_empty() || Instant::now() > end {
            return Ok(spans);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// An event's way in a trace: sent, processed and applied, each a child of the one before and begun after it.
fn way(spans: &[Span], system: &System) -> Outcome {
    let topics = (system.events_topic(), system.metrics_topic());
    let missing = |what: &str| {
        let names: Vec<_> = spans
            .iter()
            .map(|span| format!("{}: {}", span.service, span.name))
            .collect();
        Failure::Unmet(format!("{what}; the trace has [{}]", names.join(", ")))
    };
    let parent = |child: &Span| spans.iter().find(|span| span.span_id == child.parent_id);
    for apply in spans
        .iter()
        .filter(|span| span.name == format!("apply {}", topics.1))
    {
        let process = parent(apply).filter(|span| span.name == format!("process {}", topics.0));
        let Some(process) = process else { continue };
        let send = parent(process).filter(|span| span.name == format!("send {}", topics.0));
        let Some(send) = send else { continue };
        for (span, service, attributes) in [
            (send, "producer", &SENT[..]),
            (process, "consumer", &PROCESSED[..]),
            (apply, "analytics", &APPLIED[..]),
        ] {
            if !span.service.contains(service) {
                return Err(missing(&format!(
                    "{} was done by {}",
                    span.name, span.service
                )));
            }
            let lacks = attributes
                .iter()
                .find(|name| span.attribute(name).is_none());
            if let Some(lacks) = lacks {
                return Err(missing(&format!("{} lacks {lacks}", span.name)));
            }
        }
        if send.start_ns > process.start_ns || process.start_ns > apply.start_ns {
            return Err(missing("its spans are out of order"));
        }
        let after = |span: &Span| (span.start_ns - send.start_ns) as f64 / 1e6;
        return Ok(format!(
            "{}, {} +{:.0} ms, {} +{:.0} ms; {} spans",
            send.name,
            process.name,
            after(process),
            apply.name,
            after(apply),
            spans.len()
        ));
    }
    Err(missing("no event's way is whole"))
}
