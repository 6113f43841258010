//! The second view: lag and ledger of each partition.

use ratatui::text::Line;

use super::{
    grid::{Cell, Grid, Side, plain},
    style::{Palette, Tone},
};
use crate::{
    table::whole,
    watch::{
        answers::Row,
        model::{Model, PartitionRow},
        units::{UNKNOWN, count, or_unknown, rate, seconds},
    },
};

/// The lines of the view.
pub fn lines(model: &Model, width: usize, palette: Palette) -> Vec<Line<'static>> {
    if model.partitions.is_empty() {
        return vec![palette.line(Tone::Dim, "No partition is known: nobody tells of any.")];
    }
    let mut grid = Grid::new([
        ("partition", Side::Right),
        ("lag", Side::Right),
        ("oldest", Side::Right),
        ("a second", Side::Right),
        ("counted", Side::Right),
        ("head", Side::Right),
        ("in flight", Side::Right),
        ("differs", Side::Right),
        ("duplicate", Side::Right),
        ("late", Side::Right),
        ("dead", Side::Right),
        ("missing", Side::Right),
        ("void", Side::Right),
    ]);
    for row in &model.partitions {
        grid.row(cells(row));
    }
    grid.lines(width, palette)
}

fn cells(row: &PartitionRow) -> Vec<Cell> {
    let of = |figure: fn(&Row) -> i64| plain(figure_of(row, figure));
    let wrong_unless_0 = |figure: fn(&Row) -> i64| {
        let is_wrong = row.ledger.as_ref().is_some_and(|row| figure(row) != 0);
        let tone = if is_wrong { Tone::Bad } else { Tone::Plain };
        (tone, figure_of(row, figure))
    };
    vec![
        plain(row.partition.to_string()),
        plain(or_unknown(row.lag_records, count)),
        plain(or_unknown(row.lag_seconds, seconds)),
        plain(or_unknown(row.counted_per_second, rate)),
        of(|row| row.counted),
        of(|row| row.head),
        plain(match row.ledger {
            Some(row) if row.in_flight >= 0 => whole(row.in_flight),
            _ => UNKNOWN.to_owned(),
        }),
        wrong_unless_0(|row| row.imbalance),
        of(|row| row.duplicate),
        of(|row| row.late),
        of(|row| row.dead_lettered),
        wrong_unless_0(|row| row.missing),
        of(|row| row.void_batches),
    ]
}

fn figure_of(row: &PartitionRow, figure: fn(&Row) -> i64) -> String {
    let figure = row.ledger.as_ref().map(figure);
    figure.map_or_else(|| UNKNOWN.to_owned(), whole)
}
