//! Holds docs/metrics.md to what the services export: every metric, its type, its labels and what it is for.
//! `UPDATE_REFERENCE=1` writes the page anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use streamgauge_tests::system::System;

const PAGE: &str = "docs/metrics.md";
const SERVICES: [&str; 3] = ["producer", "consumer", "analytics"];
/// Longest wait for every series to be there.
const SETTLES: Duration = Duration::from_secs(20);

const HEAD: &str = "# Metrics

Every metric of every service, as `/metrics` tells it in the OpenMetrics format. This page is made from what the services
export, and a test holds it to that. Times are in seconds, sizes in bytes. All series of closed sets of labels are there
from the start, at zero. Histograms of latency have exemplars with the `trace_id` of a sampled event.

Two lines of PromQL to begin with, by the names of the jobs in `monitoring/prometheus`:

```promql
sum by (job) (rate(events_processed_total[5m]))
histogram_quantile(0.99, sum by (le) (rate(event_end_to_end_seconds_bucket[5m])))
```
";

/// A metric as it is told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Metric {
    /// As its samples are called; of a histogram, without `_bucket`.
    name: String,
    kind: String,
    labels: BTreeSet<String>,
    help: String,
}

/// The metrics of a text in the OpenMetrics format.
fn read(text: &str) -> Vec<Metric> {
    let mut found: BTreeMap<&str, Metric> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, help)) = line
            .strip_prefix("# HELP ")
            .and_then(|rest| rest.split_once(' '))
        {
            of(&mut found, name).help = help.trim_end_matches('.').to_owned();
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let metric = of(&mut found, name);
            kind.clone_into(&mut metric.kind);
            match kind {
                "counter" => metric.name = format!("{name}_total"),
                "info" => metric.name = format!("{name}_info"),
                _ => {}
            }
        } else if !line.starts_with('#') {
            label(&mut found, line);
        }
    }
    found.into_values().collect()
}

fn of<'m, 'a>(found: &'m mut BTreeMap<&'a str, Metric>, name: &'a str) -> &'m mut Metric {
    found.entry(name).or_insert_with(|| Metric {
        name: name.to_owned(),
        kind: String::new(),
        labels: BTreeSet::new(),
        help: String::new(),
    })
}

/// Takes the names of a sample's labels; an exemplar's are not among them.
fn label(found: &mut BTreeMap<&str, Metric>, line: &str) {
    let sample = line.split(" # ").next().unwrap_or_default();
    let (name, labels) = match sample.split_once('{') {
        Some((name, rest)) => (name, rest.rsplit_once('}').map_or("", |(labels, _)| labels)),
        None => (sample.split(' ').next().unwrap_or_default(), ""),
    };
    let suffixes = [
        "", "_total", "_info", "_bucket", "_sum", "_count", "_created",
    ];
    let family = suffixes.iter().find_map(|suffix| {
        let family = name.strip_suffix(suffix)?;
        found.contains_key(family).then(|| family.to_owned())
    });
    let metric = family.and_then(|family| found.get_mut(family.as_str()));
    let metric = metric.unwrap_or_else(|| panic!("a sample without a type: {line}"));
    // No value of ours holds `",`.
    let names = labels
        .split("\",")
        .filter_map(|label| label.split_once("=\""));
    let names = names.map(|(name, _)| name.to_owned());
    metric.labels.extend(names.filter(|name| name != "le"));
}

/// The page: first what every service has, then what each has of its own.
fn page(services: &[Vec<Metric>]) -> String {
    let names = |metrics: &[Metric]| -> BTreeSet<String> {
        metrics.iter().map(|metric| metric.name.clone()).collect()
    };
    let mut shared = names(&services[0]);
    for metrics in services {
        shared = &shared & &names(metrics);
    }
    let mut page = HEAD.to_owned();
    let mut merged: BTreeMap<String, Metric> = BTreeMap::new();
    for metric in services
        .iter()
        .flatten()
        .filter(|metric| shared.contains(&metric.name))
    {
        let known = merged
            .entry(metric.name.clone())
            .or_insert_with(|| metric.clone());
        known.labels.extend(metric.labels.clone());
    }
    table(
        &mut page,
        "Every service",
        &merged.into_values().collect::<Vec<_>>(),
    );
    for (service, metrics) in SERVICES.iter().zip(services) {
        let own = metrics
            .iter()
            .filter(|metric| !shared.contains(&metric.name));
        let mut title = service.to_string();
        title[..1].make_ascii_uppercase();
        table(&mut page, &title, &own.cloned().collect::<Vec<_>>());
    }
    page
}

fn table(page: &mut String, title: &str, metrics: &[Metric]) {
    let _ = write!(
        page,
        "\n## {title}\n\n| metric | type | labels | what it tells |\n|---|---|---|---|\n"
    );
    for metric in metrics {
        let labels: Vec<_> = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let (name, kind, labels) = (&metric.name, &metric.kind, labels.join(", "));
        let _ = writeln!(page, "| `{name}` | {kind} | {labels} | {} |", metric.help);
    }
}

fn without_log(page: &str) -> String {
    let lines = page.lines().filter(|line| !line.starts_with("| `log_"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// What every service exports now.
async fn exported(system: &System) -> Vec<Vec<Metric>> {
    let mut services = Vec::new();
    for url in [system.producer(), system.consumer(), system.analytics()] {
        let text = reqwest::get(format!("{url}/metrics"))
            .await
            .expect("it answers");
        let metrics = read(&text.text().await.expect("text"));
        for metric in &metrics {
            assert!(
                !metric.help.is_empty() && !metric.kind.is_empty(),
                "{metric:?}"
            );
        }
        services.push(metrics);
    }
    services
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_is_what_the_services_export() {
    let system = System::start(&[]).await;
    // Some label sets are known only once something was counted.
    let event = serde_json::json!({ "user_id": "u", "event_type": "click" });
    let url = format!("{}/v1/events", system.producer());
    let answer = reqwest::Client::new().post(url).json(&event).send().await;
    assert_eq!(answer.expect("it answers").status(), 200);
    system.settled(1).await;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(PAGE);
    let mut written = fs::read_to_string(&path).unwrap_or_default();
    // On Kafka there is no embedded log.
    let on_kafka = system.processes.len() > 1;
    if on_kafka {
        written = without_log(&written);
    }
    // Others are told by what looks around now and then, such as how far behind the consumer is.
    let end = Instant::now() + SETTLES;
    let page = loop {
        let full = page(&exported(&system).await);
        let page = if on_kafka {
            without_log(&full)
        } else {
            full.clone()
        };
        if page == written {
            break page;
        }
        if Instant::now() > end {
            if std::env::var_os("UPDATE_REFERENCE").is_some() {
                fs::write(&path, &full).expect("the page can be written");
            }
            break page;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let missing: Vec<_> = page
        .lines()
        .filter(|line| !written.lines().any(|one| one == *line))
        .collect();
    let gone: Vec<_> = written
        .lines()
        .filter(|line| !page.lines().any(|one| one == *line))
        .collect();
    assert!(
        page == written,
        "{PAGE} is not what the services export; write it anew with UPDATE_REFERENCE=1.\nmissing: {missing:#?}\ntoo \
         much: {gone:#?}"
    );
}
