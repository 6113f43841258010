//! The fourth view: what is broken and worth a look as the watch sees it, and which alerts fire.

use ratatui::text::Line;

use super::{
    grid::{Grid, Side, plain},
    overview,
    style::{Palette, Tone, labelled},
};
use crate::watch::{
    answers::Severity,
    model::{AlertsView, FiringAlert, Model},
    units::{or_unknown, seconds},
};

/// The lines of the view.
pub fn lines(model: &Model, width: usize, palette: Palette) -> Vec<Line<'static>> {
    let mut lines = overview::findings(model, usize::MAX, width, palette);
    if lines.is_empty() {
        lines.push(palette.line(Tone::Good, "Nothing is broken, nothing worth a look."));
        lines.push(Line::default());
    }
    lines.extend(firing(model, width, palette));
    lines
}

/// What fires.
pub fn firing(model: &Model, width: usize, palette: Palette) -> Vec<Line<'static>> {
    let say =
        |tone, text: &str| labelled(palette, (Tone::Title, "alerts", 11), (tone, text), width);
    match &model.alerts {
        AlertsView::NotConfigured => say(
            Tone::Dim,
            "not configured: set alerts.alertmanager of analytics, or name one with --alertmanager HOST:PORT",
        ),
        AlertsView::Asking => say(Tone::Dim, "asking"),
        AlertsView::Silent { .. } => say(Tone::Bad, &model.alerts.silence().unwrap_or_default()),
        AlertsView::Known { address, firing } if firing.is_empty() => {
            say(Tone::Good, &format!("none fires, says {address}"))
        }
        AlertsView::Known { firing, .. } => table(firing).lines(width, palette),
    }
}

fn table(firing: &[FiringAlert]) -> Grid {
    let mut grid = Grid::new([
        ("severity", Side::Left),
        ("alert", Side::Left),
        ("for", Side::Right),
        ("about", Side::Left),
        ("says", Side::Left),
    ]);
    for FiringAlert { alert, for_seconds } in firing {
        let tone = match alert.severity {
            Severity::Critical => Tone::Bad,
            Severity::Warning => Tone::Look,
            Severity::Info => Tone::Dim,
        };
        let about = match alert.partition.as_str() {
            "" => alert.service.clone(),
            partition => format!("{} partition {partition}", alert.service),
        };
        grid.row([
            (tone, alert.severity.as_str().to_owned()),
            plain(alert.name.clone()),
            plain(or_unknown(*for_seconds, seconds)),
            plain(about),
            plain(alert.summary.clone()),
        ]);
    }
    grid
}
