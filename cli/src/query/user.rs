//! `query user`: what one user did, page by page. Exact.

use clap::Args;
use serde::Serialize;
use streamgauge_proto::v1::{UserActivityRequest, UserActivityResponse};

use super::view::InfoView;
use crate::{
    client::Analytics,
    error::CliError,
    output::Output,
    table::{Align, Table, printable, whole},
    times,
};

/// What one user did, page by page
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge query user u1
  streamgauge query user 66.249.73.135 --page /favicon.ico --json")]
pub struct UserArgs {
    /// The user's id
    user: String,
    /// Only this page
    #[arg(
        long,
        value_name = "URL",
        default_value = "",
        hide_default_value = true
    )]
    page: String,
    /// Only events of this type
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "",
        hide_default_value = true
    )]
    event_type: String,
    /// Most rows [default: the server's]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    limit: u32,
}

#[derive(Serialize)]
struct View<'a> {
    user_id: &'a str,
    count: u64,
    pages: Vec<PageView<'a>>,
    info: Option<InfoView>,
}

#[derive(Serialize)]
struct PageView<'a> {
    page_url: &'a str,
    event_type: &'a str,
    count: u64,
    last: String,
}

/// Asks and prints.
///
/// # Errors
/// When the question is wrong or analytics does not answer.
pub async fn run(
    args: UserArgs,
    analytics: &mut Analytics,
    output: &mut Output,
) -> Result<(), CliError> {
    let request = UserActivityRequest {
        user_id: args.user,
        page_url: args.page,
        event_type: args.event_type,
        limit: args.limit,
    };
    let answer = analytics.calls.user_activity(request).await;
    print(
        &answer
            .map_err(|status| analytics.refused(status))?
            .into_inner(),
        output,
    )
}

fn print(answer: &UserActivityResponse, output: &mut Output) -> Result<(), CliError> {
    let pages = answer.pages.iter().map(|page| PageView {
        page_url: &page.page_url,
        event_type: &page.event_type,
        count: page.count,
        last: times::show(page.last_us),
    });
    if output.json() {
        output.document(&View {
            user_id: &answer.user_id,
            count: answer.count,
            pages: pages.collect(),
            info: answer.info.as_ref().map(InfoView::from),
        })?;
        return Ok(());
    }
    let mut table = Table::new([
        ("page_url", Align::Left),
        ("event_type", Align::Left),
        ("count", Align::Right),
        ("last", Align::Left),
    ]);
    for page in pages {
        table.row([
            page.page_url.to_owned(),
            page.event_type.to_owned(),
            whole(page.count),
            page.last,
        ]);
    }
    let user = printable(&answer.user_id);
    output.line(format!("{user}: {} events", whole(answer.count)))?;
    super::view_table(&table, answer.info.as_ref(), output)
}

#[cfg(test)]
mod tests {
    use streamgauge_proto::v1::PageActivity;

    use super::*;

    #[test]
    fn a_user_page_by_page() {
        let page = |url: &str, count| PageActivity {
            page_url: url.to_owned(),
            event_type: String::from("request"),
            count,
            last_us: 1_431_820_800_000_000,
        };
        let answer = UserActivityResponse {
            info: None,
            user_id: String::from("u1"),
            count: 1007,
            pages: vec![page("/favicon.ico", 1000), page("/", 7)],
        };
        let (mut output, out, _) = Output::captured(false);
        print(&answer, &mut output).expect("memory");
        insta::assert_snapshot!(out.text(), @r"
        u1: 1,007 events
        page_url      event_type  count  last
        /favicon.ico  request     1,000  2015-05-17T00:00:00Z
        /             request         7  2015-05-17T00:00:00Z
        the answer says nothing about itself
        ");
    }
}
