//! What every answer shows: aggregates, keys, and what the answer says about itself.

use serde::Serialize;
use streamgauge_proto::v1::{Aggregate, AnswerInfo};

use crate::{
    table::{Align, decimal, printable, whole},
    times,
};

/// What an answer says about itself, for JSON.
#[derive(Debug, Serialize)]
pub struct InfoView {
    as_of: Option<String>,
    watermark: Option<String>,
    #[serde(rename = "final")]
    is_final: bool,
    unit: String,
    distinct_error: f64,
    quantile_error: f64,
    resolution_s: u32,
}

impl From<&AnswerInfo> for InfoView {
    fn from(info: &AnswerInfo) -> Self {
        Self {
            as_of: known(info.as_of_us),
            watermark: known(info.watermark_us),
            is_final: info.r#final,
            unit: info.unit.clone(),
            distinct_error: info.distinct_error,
            quantile_error: info.quantile_error,
            resolution_s: info.resolution_s,
        }
    }
}

fn known(time_us: i64) -> Option<String> {
    (time_us > 0).then(|| times::show(time_us))
}

/// The line below a table.
pub fn footer(info: Option<&AnswerInfo>) -> String {
    let Some(info) = info else {
        return String::from("the answer says nothing about itself");
    };
    let mut parts = Vec::new();
    if !info.unit.is_empty() {
        parts.push(format!("unit: {}", printable(&info.unit)));
    }
    parts.push(match known(info.as_of_us) {
        Some(time) => format!("as of {time}"),
        None => String::from("as of the start: nothing is applied yet"),
    });
    parts.push(String::from(if info.r#final {
        "final"
    } else {
        "not final"
    }));
    if info.distinct_error > 0.0 {
        parts.push(format!("users ±{:.1}%", info.distinct_error * 200.0));
    }
    if info.quantile_error > 0.0 {
        parts.push(format!(
            "quantile ranks ±{:.1}%",
            info.quantile_error * 100.0
        ));
    }
    if info.resolution_s > 0 {
        parts.push(format!("resolution {} s", info.resolution_s));
    }
    parts.join(" · ")
}

/// An aggregate, for JSON.
#[derive(Debug, Serialize)]
pub struct AggregateView {
    count: u64,
    value_count: u64,
    sum: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<f64>,
    users: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    quantiles: Vec<f64>,
}

impl From<&Aggregate> for AggregateView {
    fn from(wire: &Aggregate) -> Self {
        Self {
            count: wire.count,
            value_count: wire.value_count,
            sum: wire.sum,
            min: wire.min,
            max: wire.max,
            users: wire.users,
            quantiles: wire.quantiles.clone(),
        }
    }
}

/// The headings of an aggregate's cells.
pub fn headings(quantiles: &[f64]) -> Vec<(String, Align)> {
    let fixed = ["count", "users", "sum", "min", "max"].map(String::from);
    let ranks = quantiles
        .iter()
        .map(|rank| format!("p{}", decimal(rank * 100.0)));
    fixed
        .into_iter()
        .chain(ranks)
        .map(|name| (name, Align::Right))
        .collect()
}

/// The cells of an aggregate, in the order of its headings.
pub fn cells(value: Option<&Aggregate>) -> Vec<String> {
    let Some(value) = value else {
        return vec![String::from("0")];
    };
    let measured = |number: f64| {
        if value.value_count > 0 {
            decimal(number)
        } else {
            String::new()
        }
    };
    let mut cells = vec![
        whole(value.count),
        whole(value.users.round() as i64),
        measured(value.sum),
        value.min.map(decimal).unwrap_or_default(),
        value.max.map(decimal).unwrap_or_default(),
    ];
    cells.extend(value.quantiles.iter().map(|number| measured(*number)));
    cells
}

/// A key for people.
pub fn key(parts: &[String]) -> String {
    let shown = |part: &String| {
        if part.is_empty() {
            String::from("(none)")
        } else {
            part.clone()
        }
    };
    if parts.is_empty() {
        return String::from("(all)");
    }
    parts.iter().map(shown).collect::<Vec<_>>().join(" · ")
}

/// Ranks for quantiles, as people give them.
///
/// # Errors
/// A sentence, when it is no number between 0 and 1.
pub fn rank(text: &str) -> Result<f64, String> {
    let rank: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if rank > 0.0 && rank < 1.0 {
        Ok(rank)
    } else {
        Err(String::from("ranks lie between 0 and 1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_footer_says_what_the_answer_is_worth() {
        let info = AnswerInfo {
            as_of_us: 1_431_820_800_000_000,
            watermark_us: 0,
            r#final: true,
            unit: String::from("events"),
            distinct_error: 0.016,
            quantile_error: 0.0133,
            resolution_s: 60,
        };
        insta::assert_snapshot!(footer(Some(&info)), @"unit: events · as of 2015-05-17T00:00:00Z · final · users ±3.2% · quantile ranks ±1.3% · resolution 60 s");
        let nothing = footer(Some(&AnswerInfo::default()));
        assert!(
            nothing.contains("nothing is applied yet · not final"),
            "{nothing}"
        );
    }

    #[test]
    fn keys_and_cells() {
        assert_eq!(key(&[]), "(all)");
        assert_eq!(key(&[String::new(), String::from("/")]), "(none) · /");
        let value = Aggregate {
            count: 1200,
            users: 3.2,
            ..Aggregate::default()
        };
        assert_eq!(cells(Some(&value)), ["1,200", "3", "", "", ""]);
        assert_eq!(rank("0.99"), Ok(0.99));
        assert!(rank("99").is_err() && rank("p99").is_err());
    }
}
