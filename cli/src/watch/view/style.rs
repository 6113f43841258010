//! Emphasis, and text that fits a width. What a tone means always stands in words as well: without
//! colour, and for who cannot see it, nothing is lost.

use ratatui::{
    style::{Color, Modifier, Style},
    text::{Line, Span},
};

use crate::table::printable;

/// Longest text of foreign origin that is shown, in characters.
const TEXT_CHARS_MAX: usize = 600;

/// What a piece of text means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// A side remark.
    Dim,
    /// A heading.
    Title,
    /// Good news.
    Good,
    /// Worth a look.
    Look,
    /// Broken.
    Bad,
}

/// Whether there is colour.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// Whether there is colour.
    pub colour: bool,
}

impl Palette {
    /// How a tone looks.
    pub fn style(self, tone: Tone) -> Style {
        let plain = Style::new();
        let colour = |colour| if self.colour { plain.fg(colour) } else { plain };
        match tone {
            Tone::Plain => plain,
            Tone::Dim => plain.add_modifier(Modifier::DIM),
            Tone::Title => plain.add_modifier(Modifier::BOLD),
            Tone::Good => colour(Color::Green),
            Tone::Look => colour(Color::Yellow).add_modifier(Modifier::BOLD),
            Tone::Bad => colour(Color::Red).add_modifier(Modifier::BOLD),
        }
    }

    /// A piece of text.
    pub fn span(self, tone: Tone, text: impl Into<String>) -> Span<'static> {
        Span::styled(text.into(), self.style(tone))
    }

    /// A whole line.
    pub fn line(self, tone: Tone, text: impl Into<String>) -> Line<'static> {
        Line::from(self.span(tone, text))
    }
}

/// How many columns a text takes.
pub fn columns(text: &str) -> usize {
    Span::raw(text).width()
}

/// The text, cut to so many columns; a cut is shown.
pub fn fit(text: &str, width: usize) -> String {
    let text = shown(text);
    if columns(&text) <= width {
        return text;
    }
    const CUT: &str = "~";
    let mut kept = text;
    while !kept.is_empty() && columns(&kept) + CUT.len() > width {
        kept.pop();
    }
    if width >= CUT.len() {
        kept.push_str(CUT);
    }
    kept
}

/// What a terminal may be given of a text from elsewhere.
pub fn shown(text: &str) -> String {
    printable(&text.chars().take(TEXT_CHARS_MAX).collect::<String>())
}

/// The text in lines of at most so many columns, broken between words where it can be.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let text = shown(text);
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let gap = usize::from(!line.is_empty());
        if !line.is_empty() && columns(&line) + gap + columns(word) > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        for c in word.chars() {
            line.push(c);
            if columns(&line) > width {
                line.pop();
                lines.push(std::mem::take(&mut line));
                line.push(c);
            }
        }
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// A label and a text beside it; what does not fit goes on below, under the text.
pub fn labelled(
    palette: Palette,
    label: (Tone, &str, usize),
    text: (Tone, &str),
    width: usize,
) -> Vec<Line<'static>> {
    let (label_tone, label, label_width) = label;
    let pieces = wrap(text.1, width.saturating_sub(label_width));
    let piece = |(index, piece): (usize, String)| {
        let label = if index == 0 { label } else { "" };
        Line::from(vec![
            palette.span(label_tone, format!("{label:<label_width$}")),
            palette.span(text.0, piece),
        ])
    };
    pieces.into_iter().enumerate().map(piece).collect()
}

/// Two blocks side by side, the right one from this column on.
pub fn beside(
    left: Vec<Line<'static>>,
    right: Vec<Line<'static>>,
    column: usize,
) -> Vec<Line<'static>> {
    let rows = left.len().max(right.len());
    let (mut left, mut right) = (left.into_iter(), right.into_iter());
    let row = |_| {
        let mut line = left.next().unwrap_or_default();
        if let Some(other) = right.next() {
            let gap = column.saturating_sub(line.width());
            line.push_span(Span::raw(" ".repeat(gap)));
            line.spans.extend(other.spans);
        }
        line
    };
    (0..rows).map(row).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_breaks_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(wrap("", 3), [""]);
        assert_eq!(fit("abcdef", 4), "abc~");
        assert_eq!(fit("abc", 3), "abc");
        assert_eq!(fit("日本語", 5), "日本~");
        assert_eq!(fit("a\u{1b}b", 20), "a\\u{1b}b");
    }

    #[test]
    fn blocks_stand_side_by_side() {
        let block = |lines: &[&str]| {
            lines
                .iter()
                .map(|line| Line::from((*line).to_owned()))
                .collect()
        };
        let lines: Vec<String> = beside(block(&["a", "bcd"]), block(&["x", "y", "z"]), 5)
            .iter()
            .map(Line::to_string)
            .collect();
        assert_eq!(lines, ["a    x", "bcd  y", "     z"]);
    }

    #[test]
    fn without_colour_no_tone_has_any() {
        use Tone::{Bad, Dim, Good, Look, Plain, Title};
        for tone in [Plain, Dim, Title, Good, Look, Bad] {
            let style = Palette { colour: false }.style(tone);
            assert_eq!((style.fg, style.bg), (None, None), "{tone:?}");
        }
        assert_eq!(Palette { colour: true }.style(Bad).fg, Some(Color::Red));
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_asked(text in "\\PC{0,80}", width in 2usize..40) {
            prop_assert!(columns(&fit(&text, width)) <= width);
            for line in wrap(&text, width) {
                prop_assert!(columns(&line) <= width, "{line:?}");
            }
        }
    }
}
