//! Aligned columns for people, and numbers as people read them.

/// On which side a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table of text; widths follow the cells.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<'a>(columns: impl IntoIterator<Item = (&'a str, Align)>) -> Self {
        let columns = columns
            .into_iter()
            .map(|(name, align)| (name.to_owned(), align))
            .collect();
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty, cells beyond the columns are not shown.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines of the table, headings first, without trailing blanks.
    pub fn lines(&self) -> Vec<String> {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|index| self.width(index))
            .collect();
        let headings: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        std::iter::once(&headings)
            .chain(&self.rows)
            .map(|cells| self.line(cells, &widths))
            .collect()
    }

    fn width(&self, index: usize) -> usize {
        let heading = self.columns[index].0.chars().count();
        let cells = self.rows.iter().map(|row| row[index].chars().count());
        cells.max().unwrap_or(0).max(heading)
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
            if index > 0 {
                line.push_str("  ");
            }
            match self.columns[index].1 {
                Align::Left => line.push_str(&format!("{cell:<width$}")),
                Align::Right => line.push_str(&format!("{cell:>width$}")),
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// Keys come from clients: a control character must not reach the terminal.
pub fn printable(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// A whole number with groups of three: `12,345`.
pub fn whole(number: impl Into<i128>) -> String {
    let number: i128 = number.into();
    let digits = number.unsigned_abs().to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if number < 0 {
        text.push('-');
    }
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A measure: whole when it is, else with up to three decimals.
pub fn decimal(number: f64) -> String {
    if !number.is_finite() {
        return number.to_string();
    }
    if number.fract() == 0.0 && number.abs() < 1e15 {
        return whole(number as i64);
    }
    let text = format!("{number:.3}");
    let (integer, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let negative = integer.starts_with('-');
    let grouped = integer
        .trim_start_matches('-')
        .parse::<i128>()
        .map_or(integer.to_owned(), whole);
    let fraction = fraction.trim_end_matches('0');
    let sign = if negative { "-" } else { "" };
    if fraction.is_empty() {
        format!("{sign}{grouped}")
    } else {
        format!("{sign}{grouped}.{fraction}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let mut table = Table::new([("page", Align::Left), ("events", Align::Right)]);
        table.row([String::from("/favicon.ico"), whole(807)]);
        table.row([String::from("/"), whole(12_345)]);
        insta::assert_snapshot!(table.lines().join("\n"), @r"
        page          events
        /favicon.ico     807
        /             12,345
        ");
    }

    #[test]
    fn numbers_read_well() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (-1_234_567, "-1,234,567"),
        ];
        for (number, text) in cases {
            assert_eq!(whole(number), text);
        }
        let cases = [
            (0.0, "0"),
            (1234.5, "1,234.5"),
            (-0.25, "-0.25"),
            (2.0, "2"),
            (0.9999, "1"),
        ];
        for (number, text) in cases {
            assert_eq!(decimal(number), text);
        }
    }

    #[test]
    fn control_characters_are_shown_not_obeyed() {
        assert_eq!(printable("/a\u{1b}[2Jb\n"), "/a\\u{1b}[2Jb\\n");
    }
}
