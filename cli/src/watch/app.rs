//! What the user sees and does: the frame around a view, and the keys. It does no IO and knows no
//! service; it is handed what to draw.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::{
    Frame,
    layout::Rect,
    style::Modifier,
    text::{Line, Span},
};

use super::{
    model::{AlertsView, Model},
    view::{
        self, View,
        style::{Palette, Tone, columns, fit, labelled, wrap},
    },
    visits::History,
};

/// Below this only the verdict is drawn.
const COLUMNS_MIN: u16 = 24;
const ROWS_MIN: u16 = 5;
/// From this width on tabs bear their names.
const TAB_NAMES_FROM: usize = 52;
/// Header, tabs and footer.
const FRAME_ROWS: u16 = 3;

/// Width of the keys in the help.
const KEY_COLUMNS: usize = 20;

const KEYS: [(&str, &str); 8] = [
    ("q, Esc, Ctrl-C", "quit"),
    ("1 2 3 4", "switch to a view"),
    ("Tab, right; left", "the next view; the one before"),
    ("up, down", "scroll by a line"),
    ("PgUp, PgDn", "scroll by a screen"),
    ("Home, End", "to the beginning, to the end"),
    ("p", "pause and go on"),
    ("?", "this help, and back"),
];

const LEGEND: &str = "\"a second\", p50 and p99 are of the time between the last two answers; \
    totals and \"all\" are since the service started, those of the ledger since the log began. \
    - is not known, or nothing passed. What is too narrow for a column leaves it out.";

/// What a key leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    On,
    /// End.
    Quit,
}

/// The state of the screen.
#[derive(Clone, Debug)]
pub struct App {
    palette: Palette,
    every: String,
    view: View,
    /// How far each view and then the help is scrolled, in lines.
    scrolled: [usize; View::ALL.len() + 1],
    /// Rows of the body when it was drawn last.
    page: usize,
    is_paused: bool,
    helps: bool,
}

impl App {
    /// A screen that shows the overview; `every` says how often it is refreshed.
    pub fn new(palette: Palette, every: String) -> Self {
        Self {
            palette,
            every,
            view: View::Overview,
            scrolled: [0; View::ALL.len() + 1],
            page: 0,
            is_paused: false,
            helps: false,
        }
    }

    /// Whether nothing is to be asked for now.
    pub const fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Does what a key says.
    pub fn key(&mut self, key: KeyEvent) -> Next {
        if key.kind == KeyEventKind::Release {
            return Next::On;
        }
        let held = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if held => return Next::Quit,
            KeyCode::Esc if self.helps => self.helps = false,
            KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
            KeyCode::Char('?') => self.helps = !self.helps,
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            KeyCode::Char(digit @ '1'..='4') => {
                self.turn_to(View::ALL[digit as usize - '1' as usize]);
            }
            KeyCode::Tab | KeyCode::Right => self.turn_to(self.view.step(1)),
            KeyCode::BackTab | KeyCode::Left => self.turn_to(self.view.step(View::ALL.len() - 1)),
            KeyCode::Down => self.scroll(|at, _| at.saturating_add(1)),
            KeyCode::Up => self.scroll(|at, _| at.saturating_sub(1)),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll(usize::saturating_add),
            KeyCode::PageUp => self.scroll(usize::saturating_sub),
            KeyCode::Home => self.scroll(|_, _| 0),
            KeyCode::End => self.scroll(|_, _| usize::MAX),
            _ => {}
        }
        Next::On
    }

    fn turn_to(&mut self, view: View) {
        self.view = view;
        self.helps = false;
    }

    fn scroll(&mut self, to: impl Fn(usize, usize) -> usize) {
        let page = self.page.max(1);
        let at = self.scrolled_now();
        *at = to(*at, page);
    }

    fn scrolled_now(&mut self) -> &mut usize {
        let helps = View::ALL.len();
        &mut self.scrolled[if self.helps {
            helps
        } else {
            self.view as usize
        }]
    }

    /// Draws all of it.
    pub fn draw(&mut self, frame: &mut Frame, model: &Model, history: &History) {
        let area = frame.area();
        let row = |y| Rect::new(area.x, area.y + y, area.width, 1);
        let width = usize::from(area.width);
        if area.height == 0 {
            return;
        }
        frame.render_widget(self.header(model, width), row(0));
        if area.width < COLUMNS_MIN || area.height < ROWS_MIN {
            return;
        }
        frame.render_widget(self.tabs(model, width), row(1));
        let rows = usize::from(area.height - FRAME_ROWS);
        self.page = rows;
        let lines = if self.helps {
            help(width, self.palette)
        } else {
            self.view.lines(model, history, width, self.palette)
        };
        let total = lines.len();
        let at = self.scrolled_now();
        *at = (*at).min(total.saturating_sub(rows));
        let from = *at;
        for (y, line) in (2..).zip(lines.into_iter().skip(from).take(rows)) {
            frame.render_widget(line, row(y));
        }
        let shown = (from + rows).min(total);
        let place = (total > rows).then(|| format!("{}-{shown} of {total}", from + 1));
        frame.render_widget(self.footer(place, width), row(area.height - 1));
    }

    /// The verdict, and as of when.
    fn header(&self, model: &Model, width: usize) -> Line<'static> {
        let (tone, verdict) = view::verdict(model);
        let time = model.at.split('T').nth(1).unwrap_or_default();
        let right = if self.is_paused {
            format!("PAUSED at {time}")
        } else {
            format!("{time}, every {}", self.every)
        };
        let name = if width < TAB_NAMES_FROM {
            ""
        } else {
            "streamgauge  "
        };
        let left = vec![
            self.palette.span(Tone::Title, name),
            self.palette.span(tone, verdict),
        ];
        let right_tone = if self.is_paused {
            Tone::Look
        } else {
            Tone::Dim
        };
        self.apart(left, (right_tone, right), width)
    }

    /// The views; the one that is shown stands in brackets.
    fn tabs(&self, model: &Model, width: usize) -> Line<'static> {
        let mut spans = Vec::new();
        for (index, view) in View::ALL.into_iter().enumerate() {
            let is_shown = view == self.view;
            let mut text = (index + 1).to_string();
            if width >= TAB_NAMES_FROM || is_shown {
                text = format!("{text} {}", view.name());
            }
            if let (View::Alerts, AlertsView::Known { firing, .. }) = (view, &model.alerts) {
                text = format!("{text} ({})", firing.len());
            }
            if is_shown {
                let style = self.palette.style(Tone::Title);
                let style = style.add_modifier(Modifier::REVERSED);
                spans.push(Span::styled(format!("[{text}]"), style));
            } else {
                spans.push(self.palette.span(Tone::Plain, format!(" {text} ")));
            }
        }
        Line::from(spans)
    }

    /// The keys, and which part of the view is seen.
    fn footer(&self, place: Option<String>, width: usize) -> Line<'static> {
        let keys = [
            "q quit  Tab view  arrows scroll  p pause  ? help",
            "q quit  Tab view  ? help",
            "? help",
        ];
        let place = place.unwrap_or_default();
        let fits = |keys: &&&str| columns(keys) + columns(&place) + 2 <= width;
        let keys = keys.iter().find(fits).unwrap_or(&"?");
        let left = vec![self.palette.span(Tone::Dim, *keys)];
        self.apart(left, (Tone::Dim, place), width)
    }

    /// Something on the left and something on the right, which goes first when there is no room.
    fn apart(
        &self,
        mut left: Vec<Span<'static>>,
        (tone, right): (Tone, String),
        width: usize,
    ) -> Line<'static> {
        let used: usize = left.iter().map(Span::width).sum();
        if used + 1 + columns(&right) <= width {
            left.push(Span::raw(" ".repeat(width - used - columns(&right))));
            left.push(self.palette.span(tone, fit(&right, width)));
        }
        Line::from(left)
    }
}

fn help(width: usize, palette: Palette) -> Vec<Line<'static>> {
    let key = |(key, does): &(&'static str, &str)| {
        let label = (Tone::Title, *key, KEY_COLUMNS);
        labelled(palette, label, (Tone::Plain, does), width)
    };
    let mut lines: Vec<Line> = KEYS.iter().flat_map(key).collect();
    lines.push(Line::default());
    let legend = wrap(LEGEND, width).into_iter();
    lines.extend(legend.map(|text| palette.line(Tone::Plain, text)));
    lines
}

#[cfg(test)]
mod tests;
