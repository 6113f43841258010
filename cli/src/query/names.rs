//! `query names`: which series there are.

use clap::Args;
use serde_json::json;
use streamgauge_proto::v1::ListSeriesRequest;

use crate::{
    client::Analytics,
    error::CliError,
    output::Output,
    table::{Align, Table},
};

/// Which series there are
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Example:
  streamgauge query names")]
pub struct NamesArgs {}

/// Asks and prints.
///
/// # Errors
/// When analytics does not answer.
pub async fn run(
    _: NamesArgs,
    analytics: &mut Analytics,
    output: &mut Output,
) -> Result<(), CliError> {
    let answer = analytics.calls.list_series(ListSeriesRequest {}).await;
    let answer = answer
        .map_err(|status| analytics.refused(status))?
        .into_inner();
    if output.json() {
        let series: Vec<_> = answer
            .series
            .iter()
            .map(|series| json!({"name": series.name, "dimensions": series.dimensions}))
            .collect();
        output.document(&json!({ "series": series }))?;
        return Ok(());
    }
    let mut table = Table::new([("series", Align::Left), ("dimensions", Align::Left)]);
    for series in answer.series {
        table.row([series.name, series.dimensions.join(", ")]);
    }
    for line in table.lines() {
        output.line(line)?;
    }
    Ok(())
}
