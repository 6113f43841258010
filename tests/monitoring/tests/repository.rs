//! Rules, panels and the catalogue of metrics must fit together. The dashboards' own lint holds panels to the catalogue;
//! here rules are held to it, and the catalogue to both: a metric that nobody looks at is either forgotten or for reference.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Why most of the embedded log's are.
const OF_LOG: &str = "what the embedded log says of what its clients' metrics show as well";
/// Metrics that are there to be found by those who know their name, and are in no rule and on no panel.
const REFERENCE: [(&str, &str); 13] = [
    (
        "kafka_consumer_lag_total",
        "an alias of kafka_consumer_lag for dashboards from elsewhere; both on one panel would be twice the truth",
    ),
    ("log_appended_bytes_total", OF_LOG),
    ("log_batches_appended_total", OF_LOG),
    ("log_connections_accepted_total", OF_LOG),
    ("log_connections_open", OF_LOG),
    ("log_connections_refused_total", OF_LOG),
    ("log_end_offset", OF_LOG),
    ("log_fetched_bytes_total", OF_LOG),
    ("log_groups", OF_LOG),
    ("log_recovery_cut_bytes", OF_LOG),
    ("log_requests_malformed_total", OF_LOG),
    ("log_requests_total", OF_LOG),
    ("log_start_offset", OF_LOG),
];
/// What Prometheus makes itself, and whatever it and Alertmanager say of themselves.
const OF_MONITORING: [&str; 3] = ["up", "prometheus_", "alertmanager_"];
/// Words of PromQL that stand where a metric could.
const WORDS: [&str; 9] = [
    "and",
    "or",
    "unless",
    "by",
    "on",
    "without",
    "ignoring",
    "group_left",
    "offset",
];

fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../monitoring")
}

fn files(folder: &str, kind: &str) -> BTreeMap<String, String> {
    let folder = monitoring().join(folder);
    let entries = fs::read_dir(&folder).expect("the folder is there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let paths = paths.filter(|path| path.extension().is_some_and(|found| found == kind));
    let files: BTreeMap<_, _> = paths
        .map(|path| {
            let name = path
                .file_name()
                .expect("a file has a name")
                .to_string_lossy()
                .into_owned();
            (name, fs::read_to_string(&path).expect("a readable file"))
        })
        .collect();
    assert!(!files.is_empty(), "{} holds no .{kind}", folder.display());
    files
}

/// Families of metrics that are exported: `_bucket`, `_count` and `_sum` are one.
fn catalogue() -> BTreeSet<String> {
    let text =
        fs::read_to_string(monitoring().join("grafana/src/catalogue.json")).expect("the catalogue");
    let all: BTreeMap<String, Vec<String>> = serde_json::from_str(&text).expect("names and labels");
    all.keys().map(|name| family(name)).collect()
}

/// Metrics that the dashboards' lint lets pass before they exist.
fn announced() -> BTreeSet<String> {
    let text =
        fs::read_to_string(monitoring().join("grafana/src/check/metrics.ts")).expect("the lint");
    let (_, after) = text
        .split_once("export const ANNOUNCED")
        .expect("the list of what is announced");
    let (list, _) = after.split_once("};").unwrap_or_default();
    let names = list
        .lines()
        .filter_map(|line| line.trim().split_once(": ["));
    names.map(|(name, _)| family(name)).collect()
}

fn family(name: &str) -> String {
    let ends = ["_bucket", "_count", "_sum"];
    let bare = ends.iter().find_map(|end| name.strip_suffix(end));
    bare.unwrap_or(name).to_owned()
}

/// The expressions of a file of rules, each with the line on which it begins.
fn expressions(rules: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut deeper_than = None;
    for (number, line) in rules.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        if let Some(expr) = line.trim_start().strip_prefix("expr: ") {
            found.push((number + 1, expr.trim_start_matches('|').to_owned()));
            deeper_than = Some(indent);
        } else if deeper_than.is_some_and(|least| indent > least) {
            let (_, expr) = found.last_mut().expect("pushed above");
            expr.push(' ');
            expr.push_str(line.trim());
        } else {
            deeper_than = None;
        }
    }
    found
}

/// The metrics that an expression of PromQL reads; recorded ones, which have colons, aside.
fn metrics(expr: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    // A name by a matcher is one as well, before what stands in quotes goes.
    for (_, names) in expr
        .match_indices("__name__=~\"")
        .map(|(at, key)| expr.split_at(at + key.len()))
    {
        let (names, _) = names.split_once('"').unwrap_or_default();
        found.extend(names.split('|').map(family));
    }
    let unquoted: String = expr.split('"').step_by(2).collect();
    let mut rest = unquoted.as_str();
    let mut labels_follow = false;
    while let Some(next) = rest.chars().next() {
        let is_name = |next: char| next.is_ascii_alphanumeric() || next == '_' || next == ':';
        if next == '{' || next == '[' || (next == '(' && labels_follow) {
            let close = match next {
                '{' => '}',
                '[' => ']',
                _ => ')',
            };
            rest = rest.split_once(close).map_or("", |(_, after)| after);
            labels_follow = false;
        } else if is_name(next) {
            let end = rest.find(|next| !is_name(next)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let follows = after.trim_start();
            // `sum by (job) (…)` is a call as well.
            let is_call = ["(", "by ", "without "]
                .iter()
                .any(|next| follows.starts_with(next));
            labels_follow = WORDS.contains(&word) && is_call;
            let is_number = word.starts_with(|first: char| first.is_ascii_digit());
            if !is_call && !is_number && !WORDS.contains(&word) && !word.contains(':') {
                found.insert(family(word));
            }
            rest = after;
        } else {
            rest = &rest[next.len_utf8()..];
        }
    }
    found
}

fn of_rules() -> BTreeMap<String, String> {
    let mut used = BTreeMap::new();
    for (file, text) in files("prometheus/rules", "yml") {
        for (line, expr) in expressions(&text) {
            for metric in metrics(&expr) {
                used.insert(metric, format!("{file}:{line}"));
            }
        }
    }
    used
}

#[test]
fn each_metric_of_a_rule_is_exported_or_announced() {
    let known: BTreeSet<_> = catalogue().into_iter().chain(announced()).collect();
    let used = of_rules();
    assert!(
        used.len() > 40,
        "only {} metrics were found in the rules",
        used.len()
    );
    let of_monitoring = |name: &str| {
        OF_MONITORING
            .iter()
            .any(|own| name == *own || (own.ends_with('_') && name.starts_with(own)))
    };
    let unknown: Vec<_> = used
        .iter()
        .filter(|(name, _)| !known.contains(*name) && !of_monitoring(name))
        .collect();
    assert!(unknown.is_empty(), "nothing exports {unknown:?}");
}

#[test]
fn each_exported_metric_is_looked_at_or_for_reference() {
    let of_rules = of_rules();
    let boards = files("grafana/dashboards", "json");
    let of_boards: BTreeSet<_> = boards
        .values()
        .flat_map(|text| text.split(|next: char| !(next.is_ascii_alphanumeric() || next == '_')))
        .map(family)
        .collect();
    let exported = catalogue();
    let is_used = |name: &str| of_rules.contains_key(name) || of_boards.contains(name);
    let is_reference = |name: &str| REFERENCE.iter().any(|(known, _)| *known == name);
    let forgotten: Vec<_> = exported
        .iter()
        .filter(|name| !is_used(name) && !is_reference(name))
        .collect();
    assert!(
        forgotten.is_empty(),
        "in no rule, on no panel and not for reference: {forgotten:?}"
    );
    for (name, why) in REFERENCE {
        assert!(
            exported.contains(name),
            "{name} is for reference ({why}) and not exported"
        );
        assert!(!is_used(name), "{name} is used: it is no reference");
    }
}

#[test]
fn metrics_are_found_where_promql_has_them() {
    let cases: [(&str, &[&str]); 6] = [
        (
            "sum by (job, instance) (rate(a_total{x=\"y\"}[5m])) > 0.5",
            &["a_total"],
        ),
        (
            "a / on (job) group_left () (sum(b_bucket) > 0)",
            &["a", "b"],
        ),
        (
            "max by (job) ({__name__=~\"view_cells|view_pages\"}) / 100000",
            &["view_cells", "view_pages"],
        ),
        ("job:a:rate5m unless on () c offset 12h >= 0", &["c"]),
        ("absent(up{job=\"d\"}) or vector(1)", &["up"]),
        (
            "histogram_quantile(0.99, sum by (le) (rate(e_seconds_bucket[5m])))",
            &["e_seconds"],
        ),
    ];
    for (expr, wanted) in cases {
        let found = metrics(expr);
        assert_eq!(
            found.iter().map(String::as_str).collect::<Vec<_>>(),
            wanted,
            "{expr}"
        );
    }
}
