//! The third view: how every event ended, and whether it adds up.

use std::collections::BTreeMap;

use ratatui::text::Line;

use super::{
    grid::{Grid, Side, plain},
    overview,
    style::{Palette, Tone, labelled, wrap},
};
use crate::{
    table::whole,
    watch::{
        answers::Ledger,
        model::{LedgerView, Model},
        units::{count, or_unknown, rate},
    },
};

/// The lines of the view.
pub fn lines(model: &Model, width: usize, palette: Palette) -> Vec<Line<'static>> {
    let ledger = &model.ledger;
    let (tone, verdict) = overview::ledger(ledger);
    let mut lines = labelled(
        palette,
        (Tone::Title, "ledger", 11),
        (tone, &verdict),
        width,
    );
    lines.push(Line::default());
    lines.extend(details(ledger, width, palette));
    lines
}

/// The view without the verdict.
pub fn details(ledger: &LedgerView, width: usize, palette: Palette) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Ok(judged) = &ledger.judged {
        lines.extend(judgement(judged, width, palette));
        lines.extend(outcomes(judged, ledger).lines(width, palette));
        lines.push(Line::default());
    }
    if ledger.stages.is_empty() && ledger.producer_difference.is_none() {
        lines.push(palette.line(Tone::Dim, "No service tells whether its part adds up."));
    } else {
        lines.extend(stages(ledger).lines(width, palette));
    }
    let reasons = [
        ("rejected by the producer", &ledger.rejected),
        ("failed at the producer", &ledger.failed),
        ("dead letters of the consumer", &ledger.dead_letters),
    ];
    for (name, by_reason) in reasons {
        if !by_reason.is_empty() {
            lines.push(Line::default());
            lines.extend(by(name, by_reason).lines(width, palette));
        }
    }
    lines
}

fn judgement(judged: &Ledger, width: usize, palette: Palette) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for found in &judged.breaks {
        let label = (Tone::Bad, "BROKEN", 8);
        lines.extend(labelled(
            palette,
            label,
            (Tone::Plain, &found.message),
            width,
        ));
    }
    for remark in &judged.remarks {
        let label = (Tone::Dim, "remark", 8);
        lines.extend(labelled(palette, label, (Tone::Plain, remark), width));
    }
    for line in wrap(&judged.equation, width) {
        lines.push(palette.line(Tone::Plain, line));
    }
    lines.push(Line::default());
    lines
}

fn outcomes(judged: &Ledger, ledger: &LedgerView) -> Grid {
    let mut grid = Grid::new([
        ("offsets", Side::Left),
        ("a second", Side::Right),
        ("total", Side::Right),
    ]);
    let outcomes = LedgerView::outcomes(judged).into_iter().enumerate();
    for (index, (name, offsets)) in outcomes {
        let per_second = ledger.per_second.get(index).copied().flatten();
        grid.row([
            plain(name),
            plain(or_unknown(per_second, rate)),
            plain(whole(offsets)),
        ]);
    }
    grid
}

/// What each service finds of its own part.
fn stages(ledger: &LedgerView) -> Grid {
    let mut grid = Grid::new([
        ("told by", Side::Left),
        ("stage", Side::Left),
        ("differs", Side::Right),
        ("", Side::Left),
    ]);
    let producer = ledger.producer_difference.into_iter();
    let producer = producer.map(|events| ("producer", String::from("sums"), events));
    let stages = ledger.stages.iter();
    let stages = stages.map(|stage| (stage.service, stage.stage.clone(), stage.imbalance));
    for (service, stage, events) in producer.chain(stages) {
        let (tone, word) = match events {
            0.0 => (Tone::Good, "adds up"),
            _ => (Tone::Bad, "DOES NOT ADD UP"),
        };
        grid.row([
            plain(service),
            plain(stage),
            plain(count(events)),
            (tone, word.to_owned()),
        ]);
    }
    grid
}

fn by(name: &'static str, by_reason: &BTreeMap<String, f64>) -> Grid {
    let mut grid = Grid::new([(name, Side::Left), ("total", Side::Right)]);
    for (reason, events) in by_reason {
        grid.row([plain(reason.clone()), plain(count(*events))]);
    }
    grid
}
