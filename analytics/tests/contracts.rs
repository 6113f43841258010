//! What others build on: the OpenAPI document, and the names and defaults of settings.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;
use streamgauge_analytics::{
    Config,
    http::{OPENAPI, OPS, ROUTES},
};
use streamgauge_settings::Loader;

fn document() -> Value {
    serde_saphyr::from_str(OPENAPI).expect("the document is YAML")
}

/// A parameter of the document, where it stands.
fn resolve<'a>(document: &'a Value, parameter: &'a Value) -> &'a Value {
    match parameter.get("$ref").and_then(Value::as_str) {
        Some(reference) => {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            document
                .pointer(pointer)
                .unwrap_or_else(|| panic!("{reference} leads nowhere"))
        }
        None => parameter,
    }
}

#[test]
fn the_document_has_the_routes_and_nothing_else() {
    let document = document();
    let paths = document["paths"].as_object().expect("paths");
    let written: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
    let served: BTreeSet<&str> = ROUTES.iter().map(|route| route.path).chain(OPS).collect();
    assert_eq!(written, served);
    for (path, methods) in paths {
        let methods: Vec<&String> = methods.as_object().expect("methods").keys().collect();
        assert_eq!(methods, ["get"], "{path} is only read");
    }
}

#[test]
fn the_document_has_the_parameters_and_nothing_else() {
    let document = document();
    for route in ROUTES {
        let none = Vec::new();
        let parameters = document["paths"][route.path]["get"]["parameters"]
            .as_array()
            .unwrap_or(&none);
        let parameters: Vec<&Value> = parameters
            .iter()
            .map(|parameter| resolve(&document, parameter))
            .collect();
        let of = |place: &str| -> BTreeSet<&str> {
            let there = parameters
                .iter()
                .filter(|parameter| parameter["in"] == place);
            there
                .filter_map(|parameter| parameter["name"].as_str())
                .collect()
        };
        assert_eq!(
            of("query"),
            route.query.iter().copied().collect(),
            "{}",
            route.path
        );
        let in_path: BTreeSet<&str> = route
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .collect();
        assert_eq!(of("path"), in_path, "{}", route.path);
    }
}

#[test]
fn every_reference_of_the_document_leads_somewhere() {
    fn check(document: &Value, value: &Value) {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            assert!(
                document.pointer(pointer).is_some(),
                "{reference} leads nowhere"
            );
        }
        match value {
            Value::Object(members) => members.values().for_each(|value| check(document, value)),
            Value::Array(items) => items.iter().for_each(|value| check(document, value)),
            _ => {}
        }
    }
    let document = document();
    check(&document, &document);
}

fn example() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("analytics.example.toml")
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
    let defaults = serde_json::to_value(Config::default()).expect("JSON");
    let loaded: Config = Loader::new("UNUSED")
        .file(Some(example()))
        .load()
        .expect("readable");
    assert_eq!(
        serde_json::to_value(&loaded).expect("JSON"),
        defaults,
        "the example shows the defaults"
    );
    let text = std::fs::read_to_string(example()).expect("the example");
    let written: toml::Table = toml::from_str(&text).expect("TOML");
    let written = keys_of(&serde_json::to_value(written).expect("JSON"));
    let missing: Vec<_> = keys_of(&defaults).difference(&written).cloned().collect();
    assert!(missing.is_empty(), "not in the example: {missing:?}");
}

#[test]
fn a_setting_that_is_not_known_is_an_error() {
    let set = [String::from("view.recent_second=1")];
    let error = Loader::new("UNUSED")
        .set(&set)
        .load::<Config>()
        .expect_err("not known");
    assert!(error.to_string().contains("view.recent_second"), "{error}");
}

#[test]
fn memory_that_reaches_back_further_than_the_store_is_an_error() {
    let mut config = Config::default();
    assert!(config.check().is_ok());
    config.view.recent_seconds = 3_601;
    config.retention.second_hours = 1;
    let error = config.check().expect_err("too long").to_string();
    assert!(
        error.contains("view.recent_seconds") && error.contains("retention.second_hours"),
        "{error}"
    );
    config.retention.second_hours = 0;
    assert!(config.check().is_ok(), "kept for ever");
}

#[test]
fn a_password_in_the_stores_url_is_never_printed() {
    let set = [String::from(
        "store.url=postgres://streamgauge:hunter2@db/streamgauge",
    )];
    let config: Config = Loader::new("UNUSED").set(&set).load().expect("readable");
    let printed = streamgauge_settings::print(&config);
    assert!(
        !printed.contains("hunter2") && printed.contains("db/streamgauge"),
        "{printed}"
    );
}
