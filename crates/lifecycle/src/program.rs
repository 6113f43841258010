//! How a program says why it ends.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::Unfinished;

/// What a program ends with when it could not do its work.
pub const EXIT_FAILED: u8 = 1;

/// What a program ends with when its command line or its settings are wrong: starting it again does not help.
pub const EXIT_WRONG_SETTINGS: u8 = 2;

/// What a program ends with when it was told to end and the deadline came before everything was finished.
pub const EXIT_UNFINISHED: u8 = 4;

/// Writes one line. Standard output may be closed, which is an error like any other rather than a panic.
pub fn write_line(out: &mut impl Write, line: &str) -> io::Result<()> {
    writeln!(out, "{line}")
}

/// Says on standard error why a program ends (logging may not be set up, or may be what failed) and gives its code.
pub fn fail(program: &str, error: &(dyn Error + 'static), code: u8) -> ExitCode {
    let line = format!("{program}: {}", error_chain(error));
    // Nobody is left to tell if standard error is gone as well.
    let _ = write_line(&mut io::stderr(), &line);
    ExitCode::from(code)
}

/// What a program that could not do its work, or not finish it, ends with.
pub fn exit_code(error: &(dyn Error + 'static)) -> u8 {
    match Unfinished::among(error) {
        Some(_) => EXIT_UNFINISHED,
        None => EXIT_FAILED,
    }
}

/// An error and its causes, from the outermost in.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// An error and its causes on one line. A cause that its error has said already is not said again.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    causes(error)
        .skip(1)
        .fold(error.to_string(), |mut text, cause| {
            let cause = cause.to_string();
            if !text.ends_with(&cause) {
                text.push_str(": ");
                text.push_str(&cause);
            }
            text
        })
}

#[cfg(test)]
mod tests {
    use thiserror::Error as ThisError;

    use super::*;

    #[derive(Debug, ThisError)]
    #[error("the settings cannot be read")]
    struct Outer(#[source] Middle);

    #[derive(Debug, ThisError)]
    #[error("the file: {0}")]
    struct Middle(#[source] io::Error);

    #[test]
    fn causes_are_said_once_each() {
        let error = Outer(Middle(io::Error::other("no such file")));
        assert_eq!(
            error_chain(&error),
            "the settings cannot be read: the file: no such file"
        );
    }

    #[test]
    fn a_line_is_a_line() {
        let mut out = Vec::new();
        write_line(&mut out, "hello").unwrap();
        assert_eq!(out, b"hello\n");
    }
}
