//! A strict JSON scanner over borrowed bytes, and a lenient one that only finds where a value ends.
//!
//! The strict scanner reads a body once, without recursion and without building a tree: fields are borrowed from the
//! body and what is not needed is checked and skipped. The lenient one lets a batch go on behind an element that is
//! broken. Neither ever allocates in proportion to nesting, and neither knows what an event is.

use std::borrow::Cow;
use std::ops::Range;

/// The deepest nesting that [`Scanner::skip_value`] can be allowed: one bit of its stack for each level.
pub const DEPTH_LIMIT: u32 = 128;

/// The text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syntax {
    /// The byte of the body at which it stops being JSON.
    pub at: usize,
    /// What should have stood there.
    pub expected: &'static str,
}

/// Why a value could not be skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipError {
    Syntax(Syntax),
    TooDeep,
}

impl From<Syntax> for SkipError {
    fn from(syntax: Syntax) -> Self {
        Self::Syntax(syntax)
    }
}

/// A position in a text that is known to be UTF-8.
#[derive(Clone, Debug)]
pub struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// Where the text begins in the body, for error positions.
    base: usize,
}

impl<'a> Scanner<'a> {
    /// A scanner at byte `at` of `text`, which itself begins at byte `base` of the body.
    pub fn new(text: &'a str, at: usize, base: usize) -> Self {
        Self {
            text,
            bytes: text.as_bytes(),
            at,
            base,
        }
    }

    /// The position in the text.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The text between two positions that this scanner returned.
    pub fn slice(&self, range: Range<usize>) -> &'a str {
        self.text.get(range).unwrap_or_default()
    }

    pub fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    pub fn bump(&mut self) {
        self.at += 1;
    }

    pub fn skip_space(&mut self) {
        self.at = space_end(self.bytes, self.at);
    }

    /// Takes `byte`, or says that it was `expected`.
    pub fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), Syntax> {
        if self.peek() != Some(byte) {
            return Err(self.syntax(expected));
        }
        self.at += 1;
        Ok(())
    }

    /// That something else should have stood here.
    pub fn syntax(&self, expected: &'static str) -> Syntax {
        Syntax {
            at: self.base + self.at,
            expected,
        }
    }

    /// Reads a string; one without escapes is borrowed.
    pub fn string(&mut self) -> Result<Cow<'a, str>, Syntax> {
        self.expect(b'"', "a string")?;
        let start = self.at;
        self.plain();
        if self.peek() == Some(b'"') {
            let text = self.slice(start..self.at);
            self.at += 1;
            return Ok(Cow::Borrowed(text));
        }
        self.escaped_string(start).map(Cow::Owned)
    }

    /// Moves on to the next quote, backslash or control character, eight bytes at a time.
    fn plain(&mut self) {
        self.at = plain_end(self.bytes, self.at);
    }

    fn escaped_string(&mut self, start: usize) -> Result<String, Syntax> {
        let mut out = String::from(self.slice(start..self.at));
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => out.push(self.escape()?),
                _ => {
                    return Err(self.syntax("a closing quote (control characters must be escaped)"));
                }
            }
            let from = self.at;
            self.plain();
            out.push_str(self.slice(from..self.at));
        }
    }

    /// Reads an escape, both halves of a surrogate pair at once.
    fn escape(&mut self) -> Result<char, Syntax> {
        self.at += 1;
        let simple = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return Err(self.syntax("an escape")),
        };
        self.at += 1;
        Ok(simple)
    }

    fn unicode(&mut self) -> Result<char, Syntax> {
        let start = self.clone();
        let unit = self.hex()?;
        let code = match unit {
            0xD800..=0xDBFF => {
                if self.bytes.get(self.at..self.at + 2) != Some(b"\\u") {
                    return Err(start.syntax("a pair of surrogates"));
                }
                self.at += 1;
                let low = self.hex()?;
                if !(0xDC00..=0xDFFF).contains(&low) {
                    return Err(start.syntax("a pair of surrogates"));
                }
                0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)
            }
            unit => unit,
        };
        char::from_u32(code).ok_or_else(|| start.syntax("a pair of surrogates"))
    }

    /// Reads `uXXXX`.
    fn hex(&mut self) -> Result<u32, Syntax> {
        let digits = self.bytes.get(self.at + 1..self.at + 5).unwrap_or_default();
        if digits.len() != 4 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(self.syntax("four hexadecimal digits"));
        }
        let value = digits.iter().fold(0, |value, &digit| {
            value * 16 + char::from(digit).to_digit(16).unwrap_or(0)
        });
        self.at += 5;
        Ok(value)
    }

    /// Reads a number and returns its text.
    pub fn number(&mut self) -> Result<&'a str, Syntax> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(self.syntax("a number")),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Ok(self.slice(start..self.at))
    }

    fn some_digits(&mut self) -> Result<(), Syntax> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.syntax("a digit"));
        }
        self.digits();
        Ok(())
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    /// Takes `null`, `true` or `false`.
    pub fn literal(&mut self, word: &'static str) -> Result<(), Syntax> {
        let end = self.at + word.len();
        if self.bytes.get(self.at..end) != Some(word.as_bytes()) {
            return Err(self.syntax("a value"));
        }
        self.at = end;
        Ok(())
    }

    /// Checks and skips one value, of which objects and arrays may be nested `depth_max` deep.
    pub fn skip_value(&mut self, depth_max: u32) -> Result<(), SkipError> {
        let mut nest = Nest::new(depth_max);
        loop {
            self.skip_space();
            match self.peek() {
                Some(b'{') => {
                    nest.open(true)?;
                    self.at += 1;
                    self.skip_space();
                    if self.peek() == Some(b'}') {
                        self.at += 1;
                        nest.close();
                    } else {
                        self.key()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    nest.open(false)?;
                    self.at += 1;
                    self.skip_space();
                    if self.peek() == Some(b']') {
                        self.at += 1;
                        nest.close();
                    } else {
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            if self.after_value(&mut nest)? {
                return Ok(());
            }
        }
    }

    /// Behind a value: closes what ends here. True when the outermost value is complete.
    fn after_value(&mut self, nest: &mut Nest) -> Result<bool, Syntax> {
        loop {
            if nest.depth == 0 {
                return Ok(true);
            }
            self.skip_space();
            let object = nest.in_object();
            match (self.peek(), object) {
                (Some(b','), true) => {
                    self.at += 1;
                    self.skip_space();
                    self.key()?;
                    return Ok(false);
                }
                (Some(b','), false) => {
                    self.at += 1;
                    return Ok(false);
                }
                (Some(b'}'), true) | (Some(b']'), false) => {
                    self.at += 1;
                    nest.close();
                }
                (_, true) => return Err(self.syntax("a comma or a closing brace")),
                (_, false) => return Err(self.syntax("a comma or a closing bracket")),
            }
        }
    }

    /// Skips a key and the colon behind it.
    fn key(&mut self) -> Result<(), Syntax> {
        self.skip_string("a key in quotes")?;
        self.skip_space();
        self.expect(b':', "a colon")
    }

    fn scalar(&mut self) -> Result<(), Syntax> {
        match self.peek() {
            Some(b'"') => self.skip_string("a string"),
            Some(b'-' | b'0'..=b'9') => self.number().map(|_| ()),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            _ => Err(self.syntax("a value")),
        }
    }

    fn skip_string(&mut self, expected: &'static str) -> Result<(), Syntax> {
        self.expect(b'"', expected)?;
        loop {
            self.plain();
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.skip_escape()?,
                _ => {
                    return Err(self.syntax("a closing quote (control characters must be escaped)"));
                }
            }
        }
    }

    /// Checks an escape's form; what is carried through unparsed need not be a whole surrogate pair.
    fn skip_escape(&mut self) -> Result<(), Syntax> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => self.hex().map(|_| ()),
            _ => Err(self.syntax("an escape")),
        }
    }
}

/// Which of the open values are objects, innermost last: a stack in one word.
struct Nest {
    objects: u128,
    depth: u32,
    depth_max: u32,
}

impl Nest {
    fn new(depth_max: u32) -> Self {
        Self {
            objects: 0,
            depth: 0,
            depth_max: depth_max.min(DEPTH_LIMIT),
        }
    }

    fn open(&mut self, object: bool) -> Result<(), SkipError> {
        if self.depth == self.depth_max {
            return Err(SkipError::TooDeep);
        }
        self.depth += 1;
        self.objects = (self.objects << 1) | u128::from(object);
        Ok(())
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.objects >>= 1;
    }

    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }
}

/// The first byte at or after `at` that is not white space.
pub fn space_end(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
        at += 1;
    }
    at
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// The first quote, backslash or control character at or after `at`, or the end.
fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*chunk);
        let quote = word ^ (ONES * u64::from(b'"'));
        let backslash = word ^ (ONES * u64::from(b'\\'));
        // Each term flags a zero byte (or one below 0x20) in its high bit. A borrow can only raise false flags above
        // a true one, so the lowest flag is always right.
        let found = ((quote.wrapping_sub(ONES) & !quote)
            | (backslash.wrapping_sub(ONES) & !backslash)
            | (word.wrapping_sub(ONES * 0x20) & !word))
            & HIGHS;
        if found != 0 {
            return at + (found.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while bytes
        .get(at)
        .is_some_and(|&byte| byte >= 0x20 && byte != b'"' && byte != b'\\')
    {
        at += 1;
    }
    at
}

/// Where the value that starts at `start` ends, judged by quotes and brackets alone; none when it never does.
pub fn extent(bytes: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut depth) = (start, 0usize);
    loop {
        match *bytes.get(at)? {
            b'"' => {
                at = string_end(bytes, at)?;
                if depth == 0 {
                    return Some(at);
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b',' if depth == 0 => return Some(at),
            b'}' | b']' if depth == 0 => return Some(at),
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// The position behind the closing quote of the string that starts at `start`.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        at = plain_end(bytes, at);
        match *bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            // A control character: strictly wrong, but it does not end the string.
            _ => at += 1,
        }
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
