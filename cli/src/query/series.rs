//! `query series`: aggregates per key and step.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use streamgauge_proto::v1::{KeySeries, SeriesRequest, SeriesResponse};

use super::{
    range::{FilterArgs, RangeArgs, seconds},
    view::{self, AggregateView, InfoView},
};
use crate::{
    client::Analytics,
    error::CliError,
    output::Output,
    table::{Align, Table},
    times,
};

/// Counts per key and step of time
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge query series --by event_type --last 15m --step 10s
  streamgauge query series --from 2015-05-17 --to 2015-05-21 --step 1h
  streamgauge query series --by page_url --where page_url=/cart --last 1h --step 1m --window 5m")]
pub struct SeriesArgs {
    /// The series: `all`, `event_type`, `page_url`, ...; `streamgauge query names` lists them
    #[arg(long, value_name = "SERIES", default_value = "all")]
    by: String,
    #[command(flatten)]
    range: RangeArgs,
    /// The length of a step
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = times::duration)]
    step: Duration,
    /// Windows of this length, one per step, instead of steps that do not overlap
    #[arg(long, value_name = "DURATION", value_parser = times::duration)]
    window: Option<Duration>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Quantiles of the values, as ranks: 0.5,0.99
    #[arg(long, value_name = "RANK", value_delimiter = ',', value_parser = view::rank)]
    quantiles: Vec<f64>,
    /// The largest keys; the rest fold into `(other)` [default: the server's]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    limit: u32,
}

#[derive(Serialize)]
struct View {
    by: String,
    info: Option<InfoView>,
    series: Vec<KeyView>,
}

#[derive(Serialize)]
struct KeyView {
    key: Vec<String>,
    points: Vec<PointView>,
}

#[derive(Serialize)]
struct PointView {
    start: String,
    #[serde(rename = "final")]
    is_final: bool,
    #[serde(flatten)]
    value: Option<AggregateView>,
}

/// Asks and prints.
///
/// # Errors
/// When the question is wrong or analytics does not answer.
pub async fn run(
    args: SeriesArgs,
    now_us: i64,
    analytics: &mut Analytics,
    output: &mut Output,
) -> Result<(), CliError> {
    let step_s = seconds(args.step, "--step")?;
    let request = SeriesRequest {
        by: args.by.clone(),
        range: Some(args.range.resolve(now_us, step_s)?),
        step_s,
        window_s: args
            .window
            .map(|window| seconds(window, "--window"))
            .transpose()?
            .unwrap_or(0),
        filter: args.filter.resolve()?,
        quantiles: args.quantiles.clone(),
        limit: args.limit,
    };
    let answer = analytics.calls.series(request).await;
    let answer = answer
        .map_err(|status| analytics.refused(status))?
        .into_inner();
    if output.json() {
        output.document(&json_view(args.by, &answer))?;
    } else {
        human(&answer, &args.quantiles, output)?;
    }
    Ok(())
}

fn json_view(by: String, answer: &SeriesResponse) -> View {
    let key_view = |series: &KeySeries| KeyView {
        key: series.key.clone(),
        points: series
            .points
            .iter()
            .map(|point| PointView {
                start: times::show(point.start_us),
                is_final: point.r#final,
                value: point.value.as_ref().map(AggregateView::from),
            })
            .collect(),
    };
    View {
        by,
        info: answer.info.as_ref().map(InfoView::from),
        series: answer.series.iter().map(key_view).collect(),
    }
}

/// One row per step and key, in order of time. Steps without an event are not shown.
fn human(answer: &SeriesResponse, quantiles: &[f64], output: &mut Output) -> Result<(), CliError> {
    let headings = view::headings(quantiles);
    let names = headings.iter().map(|(name, align)| (name.as_str(), *align));
    let fixed = [("start", Align::Left), ("key", Align::Left)];
    let mut table = Table::new(fixed.into_iter().chain(names));
    let mut rows: Vec<_> = answer
        .series
        .iter()
        .flat_map(|series| series.points.iter().map(move |point| (point, &series.key)))
        .filter(|(point, _)| point.value.as_ref().is_some_and(|value| value.count > 0))
        .collect();
    // Stable: keys keep the order in which the server ranks them.
    rows.sort_by_key(|(point, _)| point.start_us);
    for (point, key) in rows {
        let open = if point.r#final { "" } else { "*" };
        let mut cells = vec![
            format!("{}{open}", times::show(point.start_us)),
            view::key(key),
        ];
        cells.extend(view::cells(point.value.as_ref()));
        table.row(cells);
    }
    super::view_table(&table, answer.info.as_ref(), output)
}

#[cfg(test)]
mod tests {
    use streamgauge_proto::v1::{Aggregate, Point};

    use super::*;

    fn answer() -> SeriesResponse {
        let point = |start_s: i64, count, is_final| Point {
            start_us: start_s * 1_000_000,
            value: Some(Aggregate {
                count,
                users: 2.0,
                ..Aggregate::default()
            }),
            r#final: is_final,
        };
        let series = |key: &str, points| KeySeries {
            key: vec![key.to_owned()],
            points,
        };
        SeriesResponse {
            info: None,
            series: vec![
                series("click", vec![point(0, 5, true), point(10, 1500, false)]),
                series("view", vec![point(0, 0, true), point(10, 7, false)]),
            ],
        }
    }

    #[test]
    fn steps_in_order_of_time() {
        let (mut output, out, _) = Output::captured(false);
        human(&answer(), &[], &mut output).expect("memory");
        insta::assert_snapshot!(out.text(), @r"
        start                  key    count  users  sum  min  max
        1970-01-01T00:00:00Z   click      5      2
        1970-01-01T00:00:10Z*  click  1,500      2
        1970-01-01T00:00:10Z*  view       7      2
        the answer says nothing about itself
        ");
    }

    #[test]
    fn json_has_every_point() {
        let (mut output, out, _) = Output::captured(true);
        output
            .document(&json_view(String::from("event_type"), &answer()))
            .expect("memory");
        let value: serde_json::Value = serde_json::from_str(&out.text()).expect("JSON");
        assert_eq!(value["series"][0]["points"][1]["count"], 1500);
        assert_eq!(value["series"][1]["points"][0]["final"], true);
    }
}
