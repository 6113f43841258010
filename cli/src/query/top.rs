//! `query top`: the keys with the most of a measure.

use clap::{Args, ValueEnum};
use serde::Serialize;
use streamgauge_proto::v1::{Measure, TopRequest, TopResponse};

use super::{
    range::{FilterArgs, RangeArgs},
    view::{self, AggregateView, InfoView},
};
use crate::{
    client::Analytics,
    error::CliError,
    output::Output,
    table::{Align, Table, whole},
};

/// The keys with the most events, users or value
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge query top --by page_url --from 2015-05-17 --to 2015-05-21 --limit 5
  streamgauge query top --by page_url --measure users --last 1h
  streamgauge query top --by event_type --quantiles 0.5,0.99 --json")]
pub struct TopArgs {
    /// The series; `streamgauge query names` lists them
    #[arg(long, value_name = "SERIES", default_value = "page_url")]
    by: String,
    #[command(flatten)]
    range: RangeArgs,
    /// By what keys are ranked
    #[arg(long, value_enum, default_value_t = By::Count)]
    measure: By,
    /// How many keys
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    filter: FilterArgs,
    /// Quantiles of the values, as ranks: 0.5,0.99
    #[arg(long, value_name = "RANK", value_delimiter = ',', value_parser = view::rank)]
    quantiles: Vec<f64>,
}

/// A measure on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Events
    Count,
    /// The sum of values
    Sum,
    /// Distinct users, estimated
    Users,
}

impl From<By> for Measure {
    fn from(by: By) -> Self {
        match by {
            By::Count => Self::Count,
            By::Sum => Self::Sum,
            By::Users => Self::Users,
        }
    }
}

#[derive(Serialize)]
struct View {
    by: String,
    info: Option<InfoView>,
    entries: Vec<EntryView>,
    total: Option<AggregateView>,
    keys: u64,
}

#[derive(Serialize)]
struct EntryView {
    key: Vec<String>,
    #[serde(flatten)]
    value: Option<AggregateView>,
}

/// Asks and prints.
///
/// # Errors
/// When the question is wrong or analytics does not answer.
pub async fn run(
    args: TopArgs,
    now_us: i64,
    analytics: &mut Analytics,
    output: &mut Output,
) -> Result<(), CliError> {
    let request = TopRequest {
        by: args.by.clone(),
        range: Some(args.range.resolve(now_us, 0)?),
        measure: Measure::from(args.measure).into(),
        limit: args.limit,
        filter: args.filter.resolve()?,
        quantiles: args.quantiles.clone(),
    };
    let answer = analytics.calls.top(request).await;
    let answer = answer
        .map_err(|status| analytics.refused(status))?
        .into_inner();
    if output.json() {
        output.document(&json_view(args.by, &answer))?;
    } else {
        human(&args.by, &answer, &args.quantiles, output)?;
    }
    Ok(())
}

fn json_view(by: String, answer: &TopResponse) -> View {
    let entry = |key: &Vec<String>, value| EntryView {
        key: key.clone(),
        value,
    };
    View {
        by,
        info: answer.info.as_ref().map(InfoView::from),
        entries: answer
            .entries
            .iter()
            .map(|found| entry(&found.key, found.value.as_ref().map(AggregateView::from)))
            .collect(),
        total: answer.total.as_ref().map(AggregateView::from),
        keys: answer.keys,
    }
}

fn human(
    by: &str,
    answer: &TopResponse,
    quantiles: &[f64],
    output: &mut Output,
) -> Result<(), CliError> {
    let headings = view::headings(quantiles);
    let names = headings.iter().map(|(name, align)| (name.as_str(), *align));
    let mut table = Table::new(
        [("#", Align::Right), (by, Align::Left)]
            .into_iter()
            .chain(names),
    );
    for (rank, entry) in answer.entries.iter().enumerate() {
        let mut cells = vec![(rank + 1).to_string(), view::key(&entry.key)];
        cells.extend(view::cells(entry.value.as_ref()));
        table.row(cells);
    }
    if let Some(total) = answer.total.as_ref().filter(|_| !table.is_empty()) {
        let keys = format!("total of {} keys", whole(answer.keys));
        table.row(
            [String::new(), keys]
                .into_iter()
                .chain(view::cells(Some(total))),
        );
    }
    super::view_table(&table, answer.info.as_ref(), output)
}

#[cfg(test)]
mod tests {
    use streamgauge_proto::v1::{Aggregate, TopEntry};

    use super::*;

    fn answer() -> TopResponse {
        let value = |count, users| Aggregate {
            count,
            users,
            value_count: 1,
            sum: 12.5,
            min: Some(1.0),
            max: Some(11.5),
            quantiles: vec![1.0],
        };
        let entry = |page: &str, count| TopEntry {
            key: vec![page.to_owned()],
            value: Some(value(count, 3.0)),
        };
        TopResponse {
            info: None,
            entries: vec![entry("/favicon.ico", 807), entry("/", 12)],
            total: Some(value(10_000, 1752.6)),
            keys: 1498,
        }
    }

    #[test]
    fn a_ranking_with_its_total() {
        let (mut output, out, _) = Output::captured(false);
        human("page_url", &answer(), &[0.5], &mut output).expect("memory");
        insta::assert_snapshot!(out.text(), @r"
        #  page_url              count  users   sum  min   max  p50
        1  /favicon.ico            807      3  12.5    1  11.5    1
        2  /                        12      3  12.5    1  11.5    1
           total of 1,498 keys  10,000  1,753  12.5    1  11.5    1
        the answer says nothing about itself
        ");
    }

    #[test]
    fn json_names_its_keys() {
        let (mut output, out, _) = Output::captured(true);
        output
            .document(&json_view(String::from("page_url"), &answer()))
            .expect("memory");
        let value: serde_json::Value = serde_json::from_str(&out.text()).expect("JSON");
        assert_eq!(value["entries"][0]["key"][0], "/favicon.ico");
        assert_eq!(value["entries"][0]["count"], 807);
        assert_eq!(value["keys"], 1498);
    }
}
