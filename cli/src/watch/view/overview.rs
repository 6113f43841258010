//! The first view: everything at a glance, the most important on top.

use ratatui::text::Line;

use super::{
    grid::{Cell, Grid, Side, plain},
    partitions,
    style::{Palette, Tone, beside, labelled},
};
use crate::{
    table::whole,
    watch::{
        answers::Severity,
        histogram::Quantile,
        model::{AlertsView, BreakerState, FlowRow, LedgerView, Model, ServiceRow, State, Weight},
        units::{UNKNOWN, bytes, count, or_unknown, rate, seconds},
        visits::History,
    },
};

/// From this width on flow and latency stand side by side.
const SIDE_BY_SIDE_FROM: usize = 76;
/// Where the right one begins.
const SIDE_COLUMN: usize = 40;
/// Of the findings so many are shown here; the fourth view has them all.
const FINDINGS_MAX: usize = 4;
/// Width of the labels of the summary.
const LABEL_COLUMNS: usize = 11;

/// The lines of the view.
pub fn lines(
    model: &Model,
    history: &History,
    width: usize,
    palette: Palette,
) -> Vec<Line<'static>> {
    let mut lines = findings(model, FINDINGS_MAX, width, palette);
    lines.extend(glance(model, history, width, palette));
    lines
}

/// The view without what was found.
pub fn glance(
    model: &Model,
    history: &History,
    width: usize,
    palette: Palette,
) -> Vec<Line<'static>> {
    let mut lines = services(model).lines(width, palette);
    lines.push(Line::default());
    if width >= SIDE_BY_SIDE_FROM {
        let left = flow(model, history, SIDE_COLUMN - 2).lines(SIDE_COLUMN - 2, palette);
        let right = latency(model).lines(width - SIDE_COLUMN, palette);
        lines.extend(beside(left, right, SIDE_COLUMN));
        lines.push(Line::default());
        lines.extend(summary(model, width, palette));
    } else {
        lines.extend(flow(model, history, width).lines(width, palette));
        lines.push(Line::default());
        lines.extend(summary(model, width, palette));
        lines.push(Line::default());
        lines.extend(latency(model).lines(width, palette));
    }
    lines.push(Line::default());
    lines.extend(partitions::lines(model, width, palette));
    lines
}

/// What is broken and what is worth a look, the worst first.
pub fn findings(
    model: &Model,
    at_most: usize,
    width: usize,
    palette: Palette,
) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for finding in model.findings.iter().take(at_most) {
        let (tone, word) = match finding.weight {
            Weight::Broken => (Tone::Bad, "BROKEN"),
            Weight::Look => (Tone::Look, "look"),
        };
        let label = (tone, word, 8);
        lines.extend(labelled(
            palette,
            label,
            (Tone::Plain, &finding.text),
            width,
        ));
    }
    if model.findings.len() > at_most {
        let more = model.findings.len() - at_most;
        lines.push(palette.line(Tone::Look, format!("and {more} more: press 4")));
    }
    if !lines.is_empty() {
        lines.push(Line::default());
    }
    lines
}

fn services(model: &Model) -> Grid {
    let mut grid = Grid::new([
        ("service", Side::Left),
        ("state", Side::Left),
        ("memory", Side::Right),
        ("CPUs", Side::Right),
        ("up", Side::Right),
        ("errors", Side::Right),
        ("where", Side::Left),
    ]);
    for row in &model.services {
        grid.row([
            plain(row.name),
            state(row),
            plain(or_unknown(row.memory_bytes, bytes)),
            plain(or_unknown(row.cpus, |cpus| format!("{cpus:.2}"))),
            plain(or_unknown(row.up_seconds, seconds)),
            plain(or_unknown(row.errors, count)),
            plain(match &row.reason {
                Some(reason) => format!("{}: {reason}", row.address),
                None => row.address.clone(),
            }),
        ]);
    }
    grid
}

fn state(row: &ServiceRow) -> Cell {
    let tone = match row.state {
        State::Ready if row.reason.is_none() => Tone::Good,
        State::Ready | State::NotReady | State::Away => Tone::Bad,
        State::Draining => Tone::Look,
        State::Asking => Tone::Dim,
    };
    (tone, row.state.as_str().to_owned())
}

fn flow(model: &Model, history: &History, width: usize) -> Grid {
    let mut grid = Grid::new([
        ("events", Side::Left),
        ("a second", Side::Right),
        ("total", Side::Right),
        ("", Side::Left),
    ]);
    // What the figures leave; a curve shorter than a few points says nothing.
    let curve = width
        .saturating_sub(32)
        .min(crate::watch::visits::HISTORY_MAX);
    for (index, row) in model.flow.iter().enumerate() {
        grid.row([
            plain(row.name),
            refused(row),
            plain(or_unknown(row.total, count)),
            (Tone::Dim, sparkline(history, index, curve)),
        ]);
    }
    grid
}

fn refused(row: &FlowRow) -> Cell {
    let is_refusal = matches!(row.name, "rejected" | "failed");
    let is_bad = is_refusal && row.per_second.is_some_and(|rate| rate > 0.0);
    let tone = if is_bad { Tone::Look } else { Tone::Plain };
    (tone, or_unknown(row.per_second, rate))
}

/// The last rates as a little curve, each row to its own height.
fn sparkline(history: &History, index: usize, width: usize) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let mut rates: Vec<f64> = history.row(index).rev().take(width).collect();
    rates.reverse();
    let most = rates.iter().copied().fold(0.0, f64::max);
    let level = |rate: f64| {
        let share = if most > 0.0 { rate / most } else { 0.0 };
        LEVELS[((share * 7.0).round() as usize).min(7)]
    };
    rates.into_iter().map(level).collect()
}

fn latency(model: &Model) -> Grid {
    let mut grid = Grid::new([
        ("latency", Side::Left),
        ("p50", Side::Right),
        ("p99", Side::Right),
        ("all p50", Side::Right),
        ("all p99", Side::Right),
    ]);
    let doors = model.canary.iter().flatten().map(|door| {
        let name = format!("canary {}", door.door);
        (name, door.roundtrip, door.roundtrip_since_start)
    });
    let steps = model.latency.iter();
    let steps = steps.map(|row| (row.name.to_owned(), row.now, row.since_start));
    for (name, now, since_start) in steps.chain(doors) {
        let cell = |quantile: Option<Quantile>| plain(quantile.map_or(UNKNOWN.to_owned(), long));
        grid.row([
            plain(name),
            cell(now.map(|found| found.p50)),
            cell(now.map(|found| found.p99)),
            cell(since_start.map(|found| found.p50)),
            cell(since_start.map(|found| found.p99)),
        ]);
    }
    grid
}

/// A quantile as a length of time.
pub fn long(quantile: Quantile) -> String {
    let sign = if quantile.beyond { ">" } else { "" };
    format!("{sign}{}", seconds(quantile.seconds))
}

fn summary(model: &Model, width: usize, palette: Palette) -> Vec<Line<'static>> {
    let rows = [
        ("lag", lag(model)),
        ("ledger", ledger(&model.ledger)),
        ("breakers", breakers(model)),
        ("admission", admission(model)),
        ("spool", spool(model)),
        ("canary", canary(model)),
        ("alerts", alerts(model)),
    ];
    let row = |(name, (tone, text)): (&str, Cell)| {
        labelled(
            palette,
            (Tone::Title, name, LABEL_COLUMNS),
            (tone, &text),
            width,
        )
    };
    rows.into_iter().flat_map(row).collect()
}

fn unknown() -> Cell {
    (Tone::Dim, String::from("not known"))
}

fn lag(model: &Model) -> Cell {
    let Some(records) = model.lag.records else {
        return unknown();
    };
    let mut text = format!("{} records", count(records));
    if let Some(oldest) = model.lag.seconds {
        text += &format!(", the oldest {}", seconds(oldest));
    }
    if let Some(growth) = model.lag.growth_per_second.filter(|growth| *growth != 0.0) {
        let word = if growth > 0.0 { "growing" } else { "shrinking" };
        text += &format!(", {word} by {} a second", rate(growth.abs()));
    }
    plain(text)
}

/// The verdict on the books in one line.
pub fn ledger(ledger: &LedgerView) -> Cell {
    let stages = ledger.stages.iter().map(|stage| stage.service);
    let mut tellers: Vec<&str> = stages.collect();
    tellers.dedup();
    let verdict = match ledger.balanced() {
        Some(true) => (Tone::Good, "balanced"),
        Some(false) => (Tone::Bad, "DOES NOT BALANCE"),
        None => (Tone::Dim, "not known"),
    };
    let rest = match &ledger.judged {
        Ok(judged) => {
            let ends = LedgerView::outcomes(judged);
            let ends = ends
                .iter()
                .filter(|(name, offsets)| *name == "counted" || *offsets != 0)
                .map(|(name, offsets)| format!("{name} {}", whole(*offsets)));
            let mut ends: Vec<String> = ends.collect();
            match judged.total.in_flight {
                ..0 => {}
                in_flight => ends.push(format!("in flight {}", whole(in_flight))),
            }
            ends.join(", ")
        }
        Err(reason) if tellers.is_empty() => reason.clone(),
        Err(reason) => format!("as {} tells; analytics: {reason}", tellers.join(" and ")),
    };
    (verdict.0, format!("{}: {rest}", verdict.1))
}

fn breakers(model: &Model) -> Cell {
    let state = model.breakers.iter().map(|breaker| {
        let name = format!("{}/{}", breaker.service, breaker.name);
        match breaker.opened {
            0.0 => format!("{name} {}", breaker.state.as_str()),
            times => format!(
                "{name} {} (opened {} times)",
                breaker.state.as_str(),
                count(times)
            ),
        }
    });
    let text: Vec<String> = state.collect();
    if text.is_empty() {
        return unknown();
    }
    let states = model.breakers.iter().map(|breaker| breaker.state);
    let tone = states.map(|state| match state {
        BreakerState::Closed => Tone::Good,
        BreakerState::HalfOpen => Tone::Look,
        BreakerState::Open => Tone::Bad,
    });
    let worst = tone.max_by_key(|tone| *tone == Tone::Bad);
    (worst.unwrap_or_default(), text.join(", "))
}

fn admission(model: &Model) -> Cell {
    let Some(admission) = &model.admission else {
        return unknown();
    };
    plain(format!(
        "{} of {} units in flight, shed {} a second, limited {} a second",
        count(admission.in_flight),
        count(admission.limit),
        or_unknown(admission.shed_per_second, rate),
        or_unknown(admission.limited_per_second, rate),
    ))
}

fn spool(model: &Model) -> Cell {
    let Some(spool) = &model.spool else {
        let is_off = model.admission.is_some();
        let off = || (Tone::Dim, String::from("off"));
        return if is_off { off() } else { unknown() };
    };
    let of = format!("{} of {}", bytes(spool.bytes), bytes(spool.bytes_limit));
    if spool.records <= 0.0 {
        return plain(format!("empty, {of}"));
    }
    let text = format!(
        "{} events wait, {of}, the oldest for {}",
        count(spool.records),
        seconds(spool.oldest_seconds)
    );
    (Tone::Look, text)
}

fn canary(model: &Model) -> Cell {
    let Some(doors) = &model.canary else {
        return unknown();
    };
    if doors.is_empty() {
        return (Tone::Dim, String::from("off"));
    }
    let lost: f64 = doors.iter().map(|door| door.lost).sum();
    let doors = doors.iter().map(|door| {
        format!(
            "{}: sent {}, received {}, lost {}",
            door.door,
            count(door.sent),
            count(door.received),
            count(door.lost),
        )
    });
    let doors: Vec<String> = doors.collect();
    let tone = if lost > 0.0 { Tone::Look } else { Tone::Plain };
    (tone, doors.join("; "))
}

/// What fires in one line.
pub fn alerts(model: &Model) -> Cell {
    match &model.alerts {
        AlertsView::NotConfigured => (Tone::Dim, String::from("not configured")),
        AlertsView::Asking => (Tone::Dim, String::from("asking")),
        AlertsView::Silent { .. } => (Tone::Bad, String::from("not known")),
        AlertsView::Known { firing, .. } => {
            let of = |severity| {
                let alerts = firing.iter().filter(|one| one.alert.severity == severity);
                alerts.count()
            };
            let (critical, warning) = (of(Severity::Critical), of(Severity::Warning));
            let tone = match (critical, warning) {
                (0, 0) => Tone::Good,
                (0, _) => Tone::Look,
                _ => Tone::Bad,
            };
            (tone, format!("{critical} critical, {warning} warning"))
        }
    }
}
