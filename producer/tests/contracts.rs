//! What others build on: the names of metrics and of settings.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{Producer, broker, config};
use serde_json::Value;
use streamgauge_producer::Config;
use streamgauge_settings::Loader;
use tempfile::TempDir;

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_are_there_from_the_start() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let producer = Producer::start(config(&broker.bootstrap())).await;
    let text = producer.get("/metrics").await.text;
    // What the runtime and the machine say is the business of the telemetry crate.
    let names: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter(|line| {
            !["process_", "tokio_"]
                .iter()
                .any(|prefix| line.starts_with(prefix))
        })
        .collect();
    let names: Vec<&str> = names.into_iter().collect();
    insta::assert_snapshot!("metrics", names.join("\n"));
    producer.stop().await.unwrap();
}

fn example() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("producer.example.toml")
}

/// Every key in dots; lists and what may be absent count as one.
fn keys(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (key, value) in members {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                keys(value, &path, found);
            }
        }
        Value::Null => {}
        _ => {
            found.insert(path.to_owned());
        }
    }
}

fn keys_of(value: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    keys(value, "", &mut found);
    found
}

#[test]
fn the_example_names_every_setting_with_its_default() {
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let loaded: Config = Loader::new("UNUSED").file(Some(example())).load().unwrap();
    assert_eq!(
        serde_json::to_value(&loaded).unwrap(),
        defaults,
        "the example shows the defaults"
    );
    let text = std::fs::read_to_string(example()).unwrap();
    let written: toml::Table = toml::from_str(&text).unwrap();
    let written = keys_of(&serde_json::to_value(written).unwrap());
    let missing: Vec<_> = keys_of(&defaults).difference(&written).cloned().collect();
    assert!(missing.is_empty(), "not in the example: {missing:?}");
    loaded.check().unwrap();
}

#[test]
fn a_setting_that_is_not_known_is_an_error() {
    let error = Loader::new("UNUSED")
        .set(&["limits.body_bytes=1".to_owned()])
        .load::<Config>()
        .unwrap_err();
    assert!(error.to_string().contains("limits.body_bytes"), "{error}");
}
