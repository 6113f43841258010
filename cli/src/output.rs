//! Where a command writes: results to standard output, everything else to standard error.
//!
//! Commands never print by themselves; they are handed an [`Output`], so that a test reads what a
//! user would. Colour and progress bars are for terminals only, and `NO_COLOR` is honoured.

use std::{
    env,
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

/// Emphasis that a terminal may show; elsewhere it is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// Headings.
    Bold,
    /// Side remarks.
    Dim,
    /// Good news.
    Green,
    /// Worth a look.
    Yellow,
    /// Bad news.
    Red,
}

impl Paint {
    const fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Red => "31",
        }
    }
}

/// A command's way to its user.
pub struct Output {
    out: Box<dyn Write + Send>,
    notes: Box<dyn Write + Send>,
    colour: bool,
    notes_colour: bool,
    json: bool,
}

impl Output {
    /// Standard output and standard error of this process.
    pub fn standard(json: bool) -> Self {
        let wanted = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            out: Box::new(io::stdout()),
            notes: Box::new(io::stderr()),
            colour: wanted && io::stdout().is_terminal(),
            notes_colour: wanted && io::stderr().is_terminal(),
            json,
        }
    }

    /// An output into memory, and the two buffers it fills.
    pub fn captured(json: bool) -> (Self, Captured, Captured) {
        let (out, notes) = (Captured::default(), Captured::default());
        let output = Self {
            out: Box::new(out.clone()),
            notes: Box::new(notes.clone()),
            colour: false,
            notes_colour: false,
            json,
        };
        (output, out, notes)
    }

    /// Whether results are wanted as JSON.
    pub const fn json(&self) -> bool {
        self.json
    }

    /// Whether standard output shows colour.
    pub const fn colour(&self) -> bool {
        self.colour
    }

    /// Text with emphasis where standard output shows it.
    pub fn paint(&self, paint: Paint, text: &str) -> String {
        painted(self.colour, paint, text)
    }

    /// One line of the result.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn line(&mut self, text: impl AsRef<str>) -> io::Result<()> {
        self.out.write_all(text.as_ref().as_bytes())?;
        self.out.write_all(b"\n")?;
        self.out.flush()
    }

    /// The result as JSON: one document, indented.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn document(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.out, value)?;
        self.out.write_all(b"\n")?;
        self.out.flush()
    }

    /// Settings as a file that their service reads; as JSON, one document.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn settings(&mut self, config: &impl Serialize) -> io::Result<()> {
        if self.json {
            return self.document(config);
        }
        self.line(streamgauge_settings::print(config).trim_end())
    }

    /// A remark for the person who waits; never part of the result.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note(&mut self, text: impl AsRef<str>) -> io::Result<()> {
        self.notes.write_all(text.as_ref().as_bytes())?;
        self.notes.write_all(b"\n")?;
        self.notes.flush()
    }

    /// A remark with an emphasised word before it, such as `warning`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn labelled(&mut self, paint: Paint, label: &str, text: &str) -> io::Result<()> {
        let label = painted(self.notes_colour, paint, label);
        self.note(format!("{label}: {text}"))
    }
}

fn painted(colour: bool, paint: Paint, text: &str) -> String {
    if colour {
        format!("\u{1b}[{}m{text}\u{1b}[0m", paint.code())
    } else {
        text.to_owned()
    }
}

/// A buffer that an [`Output`] fills and a test reads.
#[derive(Clone, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// What was written so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.buffer()).into_owned()
    }

    fn buffer(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_remarks_go_separate_ways() {
        let (mut output, out, notes) = Output::captured(false);
        output.line("a result").expect("memory");
        output
            .labelled(Paint::Yellow, "warning", "careful")
            .expect("memory");
        assert_eq!(out.text(), "a result\n");
        assert_eq!(notes.text(), "warning: careful\n");
    }

    #[test]
    fn colour_is_for_terminals() {
        assert_eq!(painted(false, Paint::Red, "no"), "no");
        assert_eq!(painted(true, Paint::Red, "no"), "\u{1b}[31mno\u{1b}[0m");
    }
}
