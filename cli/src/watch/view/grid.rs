//! A table that gives up its last columns where it is too narrow: the most important stand first.

use ratatui::text::{Line, Span};

use super::style::{Palette, Tone, columns, fit, shown};

/// Between two columns.
const GAP: usize = 2;
/// A last column of text is given up below this.
const LAST_COLUMNS_MIN: usize = 8;

/// On which side a cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Text.
    Left,
    /// Figures.
    Right,
}

/// A cell.
pub type Cell = (Tone, String);

/// A plain cell.
pub fn plain(text: impl Into<String>) -> Cell {
    (Tone::Plain, text.into())
}

/// Rows of cells under headings.
pub struct Grid {
    headings: Vec<(&'static str, Side)>,
    rows: Vec<Vec<Cell>>,
}

impl Grid {
    /// A table with these columns, the most important first.
    pub fn new(headings: impl IntoIterator<Item = (&'static str, Side)>) -> Self {
        Self {
            headings: headings.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let cells = cells.into_iter().map(|(tone, text)| (tone, shown(&text)));
        let mut cells: Vec<Cell> = cells.collect();
        cells.resize(self.headings.len(), Cell::default());
        self.rows.push(cells);
    }

    /// The table in so many columns.
    pub fn lines(&self, width: usize, palette: Palette) -> Vec<Line<'static>> {
        let widths = self.widths(width);
        let headings: Vec<Cell> = self
            .headings
            .iter()
            .map(|(name, _)| (Tone::Title, (*name).to_owned()))
            .collect();
        std::iter::once(&headings)
            .chain(&self.rows)
            .map(|cells| self.line(cells, &widths, palette))
            .collect()
    }

    /// The widths of the columns that fit.
    fn widths(&self, width: usize) -> Vec<usize> {
        let mut widths: Vec<usize> = Vec::new();
        let mut used = 0;
        for (index, (name, side)) in self.headings.iter().enumerate() {
            let cells = self.rows.iter().map(|row| columns(&row[index].1));
            let wanted = cells.max().unwrap_or(0).max(columns(name));
            let left = width.saturating_sub(used + if index > 0 { GAP } else { 0 });
            if wanted <= left {
                widths.push(wanted);
                used = width - left + wanted;
                continue;
            }
            if index == 0 || (*side == Side::Left && left >= LAST_COLUMNS_MIN) {
                widths.push(left);
            }
            break;
        }
        widths
    }

    fn line(&self, cells: &[Cell], widths: &[usize], palette: Palette) -> Line<'static> {
        let mut spans = Vec::new();
        for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let text = fit(&cell.1, *width);
            let fill = " ".repeat(width.saturating_sub(columns(&text)));
            let is_last = index + 1 == widths.len();
            if index > 0 {
                spans.push(Span::raw(" ".repeat(GAP)));
            }
            let text = palette.span(cell.0, text);
            match self.headings[index].1 {
                Side::Right => spans.extend([Span::raw(fill), text]),
                Side::Left if is_last => spans.push(text),
                Side::Left => spans.extend([text, Span::raw(fill)]),
            }
        }
        Line::from(spans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(width: usize) -> Vec<String> {
        let mut grid = Grid::new([
            ("name", Side::Left),
            ("events", Side::Right),
            ("why", Side::Left),
        ]);
        grid.row([
            plain("producer"),
            plain("1,234"),
            plain("nothing to complain about"),
        ]);
        grid.row([plain("x")]);
        let lines = grid.lines(width, Palette { colour: false });
        lines
            .iter()
            .map(|line| line.to_string().trim_end().to_owned())
            .collect()
    }

    #[test]
    fn the_last_columns_go_first() {
        assert_eq!(
            drawn(60),
            [
                "name      events  why",
                "producer   1,234  nothing to complain about",
                "x"
            ]
        );
        assert_eq!(drawn(30)[1], "producer   1,234  nothing to ~");
        assert_eq!(drawn(25)[1], "producer   1,234");
        assert_eq!(drawn(10)[1], "producer");
        assert_eq!(drawn(4)[1], "pro~");
        assert_eq!(drawn(0)[1], "");
    }
}
