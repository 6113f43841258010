//! The views: lines of text for a width, made of the model. Pure; the same lines are drawn on a
//! terminal and printed by `--once`.

mod alerts;
mod grid;
mod ledger;
mod overview;
mod partitions;
pub mod style;

use ratatui::text::Line;

use self::style::{Palette, Tone};
use super::{
    model::{Model, Verdict},
    visits::History,
};

/// What is shown at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Everything at a glance.
    Overview,
    /// Each partition.
    Partitions,
    /// How every event ended.
    Ledger,
    /// What fires.
    Alerts,
}

impl View {
    /// All of them, in the order of their keys.
    pub const ALL: [Self; 4] = [Self::Overview, Self::Partitions, Self::Ledger, Self::Alerts];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Partitions => "Partitions",
            Self::Ledger => "Ledger",
            Self::Alerts => "Alerts",
        }
    }

    /// The one so many places further on, around the end.
    pub fn step(self, places: usize) -> Self {
        Self::ALL[(self as usize + places) % Self::ALL.len()]
    }

    /// Its lines.
    pub fn lines(
        self,
        model: &Model,
        history: &History,
        width: usize,
        palette: Palette,
    ) -> Vec<Line<'static>> {
        match self {
            Self::Overview => overview::lines(model, history, width, palette),
            Self::Partitions => partitions::lines(model, width, palette),
            Self::Ledger => ledger::lines(model, width, palette),
            Self::Alerts => alerts::lines(model, width, palette),
        }
    }
}

/// The word for all of it, with the number of what stands behind it.
pub fn verdict(model: &Model) -> (Tone, String) {
    match model.verdict {
        Verdict::Asking => (Tone::Dim, String::from("asking")),
        Verdict::Healthy => (Tone::Good, String::from("HEALTHY")),
        Verdict::Look => (Tone::Look, format!("LOOK ({})", model.findings.len())),
        Verdict::Broken => (Tone::Bad, format!("BROKEN ({})", model.findings.len())),
    }
}

/// Everything once, as plain text.
pub fn snapshot(model: &Model, width: usize) -> Vec<String> {
    let palette = Palette { colour: false };
    let history = History::default();
    let mut lines = vec![
        Line::from(format!("streamgauge  {}  {}", verdict(model).1, model.at)),
        Line::default(),
    ];
    lines.extend(overview::findings(model, usize::MAX, width, palette));
    lines.extend(overview::glance(model, &history, width, palette));
    lines.push(Line::default());
    lines.extend(ledger::details(&model.ledger, width, palette));
    lines.push(Line::default());
    lines.extend(alerts::firing(model, width, palette));
    let text = lines.iter().map(Line::to_string);
    text.map(|line| line.trim_end().to_owned()).collect()
}
