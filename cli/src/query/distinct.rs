//! `query distinct`: how many different users there were.

use clap::Args;
use serde::Serialize;
use streamgauge_proto::v1::{DistinctUsersRequest, DistinctUsersResponse};

use super::{
    range::{FilterArgs, RangeArgs},
    view::{self, InfoView},
};
use crate::{client::Analytics, error::CliError, output::Output, table::whole};

/// How many different users there were
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge query distinct --from 2015-05-17 --to 2015-05-21
  streamgauge query distinct --by page_url --where page_url=/cart --last 1h")]
pub struct DistinctArgs {
    #[command(flatten)]
    range: RangeArgs,
    /// A series, whose key --where names [default: everybody]
    #[arg(
        long,
        value_name = "SERIES",
        default_value = "",
        hide_default_value = true
    )]
    by: String,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Serialize)]
struct View {
    users: f64,
    lower: f64,
    upper: f64,
    info: Option<InfoView>,
}

/// Asks and prints.
///
/// # Errors
/// When the question is wrong or analytics does not answer.
pub async fn run(
    args: DistinctArgs,
    now_us: i64,
    analytics: &mut Analytics,
    output: &mut Output,
) -> Result<(), CliError> {
    let request = DistinctUsersRequest {
        range: Some(args.range.resolve(now_us, 0)?),
        by: args.by,
        filter: args.filter.resolve()?,
    };
    let answer = analytics.calls.distinct_users(request).await;
    print(
        &answer
            .map_err(|status| analytics.refused(status))?
            .into_inner(),
        output,
    )
}

fn print(answer: &DistinctUsersResponse, output: &mut Output) -> Result<(), CliError> {
    let (users, lower, upper) = (answer.users, answer.lower, answer.upper);
    if output.json() {
        let info = answer.info.as_ref().map(InfoView::from);
        output.document(&View {
            users,
            lower,
            upper,
            info,
        })?;
        return Ok(());
    }
    let shown = |number: f64| whole(number.round() as i64);
    output.line(format!(
        "{} users (95% sure: {} to {})",
        shown(users),
        shown(lower),
        shown(upper)
    ))?;
    output.line(view::footer(answer.info.as_ref()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_comes_with_its_bounds() {
        let answer = DistinctUsersResponse {
            info: None,
            users: 1752.6,
            lower: 1697.2,
            upper: 1809.9,
        };
        let (mut output, out, _) = Output::captured(false);
        print(&answer, &mut output).expect("memory");
        assert!(
            out.text()
                .starts_with("1,753 users (95% sure: 1,697 to 1,810)\n")
        );
    }
}
