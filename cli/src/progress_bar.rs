//! Progress for a person who waits: on standard error, and only where that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(100);

/// A bar over a known number.
pub fn towards(total: u64, unit: &str) -> ProgressBar {
    styled(
        ProgressBar::new(total),
        &format!(
            "{{elapsed}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit}, {{per_sec}}, {{eta}} left"
        ),
    )
}

/// A count towards an unknown end.
pub fn counting(unit: &str) -> ProgressBar {
    styled(
        ProgressBar::no_length(),
        &format!("{{elapsed}} {{spinner}} {{human_pos}} {unit}, {{per_sec}}"),
    )
}

/// indicatif draws on standard error and stays silent where that is no terminal.
fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    if !bar.is_hidden() {
        bar.enable_steady_tick(TICK);
    }
    bar
}
