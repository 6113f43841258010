//! Which field of a record becomes which field of an event: `--map user_id=customer,value=amount`.
//!
//! Fields that are not mapped are taken by their own names; what belongs to no field of an event
//! goes into its properties, so that nothing of a record is lost. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use streamgauge_proto::v1::SubmittedEvent;

use crate::times;

/// The fields of an event that a record may fill, and other names that they go by.
const FIELDS: [(&str, &[&str]); 8] = [
    ("event_id", &[]),
    ("user_id", &[]),
    ("event_type", &["activity_type"]),
    ("occurred_at", &["timestamp"]),
    ("page_url", &[]),
    ("session_id", &[]),
    ("value", &[]),
    ("properties", &["metadata"]),
];

/// A mapping, and the values of fields that no record has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    map: BTreeMap<String, String>,
    constants: BTreeMap<String, String>,
}

impl Mapping {
    /// Reads `--map` and `--constant`; each is a list of `FIELD=NAME`.
    ///
    /// # Errors
    /// A sentence that names what is not a field or not an assignment.
    pub fn parse(map: &[String], constants: &[String]) -> Result<Self, String> {
        let mapping = Self {
            map: assignments(map)?,
            constants: assignments(constants)?,
        };
        match mapping
            .map
            .keys()
            .find(|field| mapping.constants.contains_key(*field))
        {
            Some(field) => Err(format!("{field} is both mapped and constant")),
            None => Ok(mapping),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty() && self.constants.is_empty()
    }

    /// The mapping in one line, the same for every way of writing it.
    pub fn canonical(&self) -> String {
        let part = |sign: &str, pairs: &BTreeMap<String, String>| {
            pairs
                .iter()
                .map(|(field, name)| format!("{field}{sign}{name}"))
                .collect::<Vec<_>>()
        };
        [part("=", &self.map), part(":=", &self.constants)]
            .concat()
            .join(",")
    }

    /// The names that the mapping asks records for.
    pub fn sources(&self) -> impl Iterator<Item = (&str, &str)> {
        self.map
            .iter()
            .map(|(field, source)| (field.as_str(), source.as_str()))
    }

    /// Turns a record into an event.
    ///
    /// # Errors
    /// A sentence that names the field that cannot be read.
    pub fn apply(&self, mut record: Map<String, Value>) -> Result<SubmittedEvent, String> {
        let mut event = SubmittedEvent::default();
        let mut properties = Map::new();
        for (field, others) in FIELDS {
            let Some((name, value)) = self.take(field, others, &mut record) else {
                continue;
            };
            fill(&mut event, &mut properties, field, value)
                .map_err(|reason| format!("{name}: {reason}"))?;
        }
        for (name, value) in record {
            properties.entry(name).or_insert(value);
        }
        if !properties.is_empty() {
            let bytes = serde_json::to_vec(&properties).map_err(|error| error.to_string())?;
            event.properties = bytes.into();
        }
        Ok(event)
    }

    /// The value for a field, taken out of the record, with the name it was found under.
    fn take(
        &self,
        field: &str,
        others: &[&str],
        record: &mut Map<String, Value>,
    ) -> Option<(String, Value)> {
        if let Some(constant) = self.constants.get(field) {
            return Some((field.to_owned(), Value::String(constant.clone())));
        }
        if let Some(source) = self.map.get(field) {
            return remove_path(record, source).map(|value| (source.clone(), value));
        }
        let own = std::iter::once(&field)
            .chain(others)
            .find(|name| record.contains_key(**name))?;
        record.remove(*own).map(|value| ((*own).to_owned(), value))
    }
}

fn assignments(texts: &[String]) -> Result<BTreeMap<String, String>, String> {
    let mut pairs = BTreeMap::new();
    for text in texts {
        let (field, name) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` is no assignment like user_id=customer"))?;
        let (field, name) = (field.trim(), name.trim());
        if !FIELDS.iter().any(|(known, _)| *known == field) {
            let known: Vec<&str> = FIELDS.iter().map(|(known, _)| *known).collect();
            return Err(format!(
                "`{field}` is no field of an event: {}",
                known.join(", ")
            ));
        }
        if pairs.insert(field.to_owned(), name.to_owned()).is_some() {
            return Err(format!("{field} is given twice"));
        }
    }
    Ok(pairs)
}

/// Takes `name` or, where there is no such key, the value at a dotted path.
fn remove_path(record: &mut Map<String, Value>, path: &str) -> Option<Value> {
    if let Some(value) = record.remove(path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('.')?;
    remove_path(record.get_mut(first)?.as_object_mut()?, rest)
}

fn fill(
    event: &mut SubmittedEvent,
    properties: &mut Map<String, Value>,
    field: &str,
    value: Value,
) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    match field {
        "event_id" => event.event_id = text(value)?,
        "user_id" => event.user_id = text(value)?,
        "event_type" => event.event_type = text(value)?,
        "page_url" => event.page_url = text(value)?,
        "session_id" => event.session_id = text(value)?,
        "occurred_at" => event.occurred_at_us = time(value)?,
        "value" => event.value = number(value)?,
        _ => match value {
            Value::Object(object) => properties.extend(object),
            Value::String(json) if json.is_empty() => {}
            Value::String(json) => match serde_json::from_str(&json) {
                Ok(Value::Object(object)) => properties.extend(object),
                _ => return Err(String::from("is no JSON object")),
            },
            _ => return Err(String::from("is no JSON object")),
        },
    }
    Ok(())
}

/// Ids are often numbers in files.
fn text(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("`{other}` is neither text nor a number")),
    }
}

fn time(value: Value) -> Result<Option<i64>, String> {
    let text = text(value)?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    times::absolute(&text)
        .map(Some)
        .ok_or_else(|| format!("`{text}` is no time"))
}

fn number(value: Value) -> Result<Option<f64>, String> {
    let text = text(value)?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let number: f64 = text
        .trim()
        .parse()
        .map_err(|_| format!("`{text}` is no number"))?;
    if number.is_finite() {
        Ok(Some(number))
    } else {
        Err(format!("`{text}` is no number"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn apply(mapping: &Mapping, record: Value) -> Result<SubmittedEvent, String> {
        match record {
            Value::Object(record) => mapping.apply(record),
            _ => Err(String::from("not an object")),
        }
    }

    #[test]
    fn fields_go_by_their_own_names() {
        let record = json!({
            "event_id": "e1", "user_id": 42, "event_type": "click", "timestamp": 1_431_820_800,
            "page_url": "/", "value": "1.5", "properties": {"a": 1}, "colour": "red", "gone": null,
        });
        let event = apply(&Mapping::default(), record).expect("readable");
        assert_eq!(
            (event.event_id.as_str(), event.user_id.as_str()),
            ("e1", "42")
        );
        assert_eq!(event.occurred_at_us, Some(1_431_820_800_000_000));
        assert_eq!(event.value, Some(1.5));
        let properties: Value = serde_json::from_slice(&event.properties).expect("JSON");
        assert_eq!(properties, json!({"a": 1, "colour": "red", "gone": null}));
    }

    #[test]
    fn mapped_and_constant_fields() {
        let map = strings(&["user_id=customer.id", "value=amount"]);
        let mapping = Mapping::parse(&map, &strings(&["event_type=purchase"])).expect("valid");
        let record = json!({"customer": {"id": "c7"}, "amount": 12, "user_id": "kept"});
        let event = apply(&mapping, record).expect("readable");
        assert_eq!(
            (event.user_id.as_str(), event.event_type.as_str()),
            ("c7", "purchase")
        );
        assert_eq!(event.value, Some(12.0));
        let properties: Value = serde_json::from_slice(&event.properties).expect("JSON");
        assert_eq!(properties, json!({"customer": {}, "user_id": "kept"}));
        assert_eq!(
            mapping.canonical(),
            "user_id=customer.id,value=amount,event_type:=purchase"
        );
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let cases = [
            (json!({"user_id": ["a"]}), "user_id: "),
            (json!({"value": "ten"}), "value: `ten` is no number"),
            (json!({"value": "inf"}), "value: `inf` is no number"),
            (
                json!({"occurred_at": "yesterday"}),
                "occurred_at: `yesterday` is no time",
            ),
            (json!({"properties": [1]}), "properties: is no JSON object"),
        ];
        for (record, reason) in cases {
            let found = apply(&Mapping::default(), record).expect_err(reason);
            assert!(found.starts_with(reason), "{found}");
        }
    }

    #[test]
    fn mappings_that_make_no_sense_are_refused() {
        let cases: [(&[&str], &[&str], &str); 4] = [
            (&["user"], &[], "no assignment"),
            (&["user=customer"], &[], "no field of an event"),
            (&["user_id=a", "user_id=b"], &[], "twice"),
            (&["value=a"], &["value=1"], "both"),
        ];
        for (map, constants, reason) in cases {
            let error = Mapping::parse(&strings(map), &strings(constants)).expect_err(reason);
            assert!(error.contains(reason), "{error}");
        }
    }
}
