//! Reads the events of a body: one object, an array, `{"events":[…]}`, or one object on each line.
//!
//! Elements are read one by one, straight from the body. An element that is broken, of the wrong type or not UTF-8 is
//! refused alone as long as its end can be found; only a body whose outline is broken is refused as a whole. Unknown
//! fields are counted and ignored, so that a client may send more than this version knows. Of a field that is there
//! twice the last counts; `null` is the same as absent.

use std::borrow::Cow;

use streamgauge_proto::{ErrorCode, Problem};

use super::json::{DEPTH_LIMIT, Scanner, SkipError, Syntax, extent, space_end};
use super::{Draft, EventLimits, Moment, Rejection, Shape};

/// How the events are written one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    /// One object on each line.
    Lines,
}

/// What was noticed on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The body was one bare object.
    pub single: bool,
    pub unknown_fields: u64,
}

/// Why a body was refused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the body holds no event")]
    Empty,
    #[error("the body is not JSON: expected {} at byte {}", .0.expected, .0.at)]
    Syntax(Syntax),
    #[error("the body is not UTF-8 at byte {at}")]
    Utf8 { at: usize },
    #[error("the body holds more than {max} events; split it")]
    TooManyEvents { max: usize },
}

impl From<Syntax> for BodyError {
    fn from(syntax: Syntax) -> Self {
        Self::Syntax(syntax)
    }
}

impl From<BodyError> for Problem {
    fn from(error: BodyError) -> Self {
        let code = match error {
            BodyError::Empty => ErrorCode::EmptyBody,
            BodyError::Syntax(_) | BodyError::Utf8 { .. } => ErrorCode::MalformedBody,
            BodyError::TooManyEvents { .. } => ErrorCode::TooManyEvents,
        };
        Problem::new(code, error.to_string())
    }
}

/// Hands every event of `body` to `on_event`, in order. After an error the events handed over must be forgotten.
pub fn decode<'a>(
    body: &'a [u8],
    format: Format,
    shape: Shape,
    limits: &EventLimits,
    on_event: impl FnMut(Result<Draft<'a>, Rejection>),
) -> Result<Summary, BodyError> {
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    let mut decoder = Decoder {
        body,
        text: std::str::from_utf8(body).ok(),
        reader: EventReader { shape, limits },
        events: 0,
        summary: Summary::default(),
        on_event,
    };
    match format {
        Format::Json => decoder.json()?,
        Format::Lines => decoder.lines()?,
    }
    if decoder.events == 0 {
        return Err(BodyError::Empty);
    }
    Ok(decoder.summary)
}

struct Decoder<'a, 'l, F> {
    body: &'a [u8],
    /// The body, when all of it is UTF-8; otherwise each element is looked at alone.
    text: Option<&'a str>,
    reader: EventReader<'l>,
    events: usize,
    summary: Summary,
    on_event: F,
}

impl<'a, F: FnMut(Result<Draft<'a>, Rejection>)> Decoder<'a, '_, F> {
    fn json(&mut self) -> Result<(), BodyError> {
        let start = space_end(self.body, 0);
        let end = match self.body.get(start) {
            None => return Err(BodyError::Empty),
            Some(b'[') => self.array(start)?,
            Some(b'{') => self.object(start)?,
            Some(_) => return Err(expected(start, "an object or an array")),
        };
        match space_end(self.body, end) {
            end if end == self.body.len() => Ok(()),
            end => Err(expected(
                end,
                "the end of the body (one object to a line needs application/x-ndjson)",
            )),
        }
    }

    /// Reads the array at `start` and returns the position behind it.
    fn array(&mut self, start: usize) -> Result<usize, BodyError> {
        let mut at = space_end(self.body, start + 1);
        if self.body.get(at) == Some(&b']') {
            return Ok(at + 1);
        }
        loop {
            at = self.element(at)?;
            at = space_end(self.body, at);
            match self.body.get(at) {
                Some(b',') => at = space_end(self.body, at + 1),
                Some(b']') => return Ok(at + 1),
                _ => return Err(expected(at, "a comma or a closing bracket")),
            }
        }
    }

    /// Reads the array's element at `start` and returns the position behind it.
    fn element(&mut self, start: usize) -> Result<usize, BodyError> {
        if let Some(text) = self.text {
            let mut scanner = Scanner::new(text, start, 0);
            let refused = match self.reader.event(&mut scanner, false) {
                Ok(read) => return self.take(read, start, scanner.at()),
                Err(stop) => stop.into_rejection(),
            };
            let end = self.end_of_element(start)?;
            return self.refuse(refused, start, end);
        }
        let end = self.end_of_element(start)?;
        self.alone(start, end)?;
        Ok(end)
    }

    /// Reads `start..end` as one event and nothing else, whatever it holds.
    fn alone(&mut self, start: usize, end: usize) -> Result<(), BodyError> {
        let text = match std::str::from_utf8(&self.body[start..end]) {
            Ok(text) => text,
            Err(error) => {
                let at = start + error.valid_up_to();
                let message = format!("the event is not UTF-8 at byte {at} of the body");
                let rejection = Rejection::new(ErrorCode::MalformedBody, None, message);
                return self.refuse(rejection, start, end).map(|_| ());
            }
        };
        let mut scanner = Scanner::new(text, 0, start);
        let refused = match self.reader.event(&mut scanner, false) {
            Ok(read) => {
                scanner.skip_space();
                if scanner.at() == text.len() {
                    return self.take(read, start, end).map(|_| ());
                }
                Stop::from(scanner.syntax("the end of the event")).into_rejection()
            }
            Err(stop) => stop.into_rejection(),
        };
        self.refuse(refused, start, end).map(|_| ())
    }

    fn end_of_element(&self, start: usize) -> Result<usize, BodyError> {
        match extent(self.body, start) {
            Some(end) if end > start => Ok(end),
            Some(_) => Err(expected(start, "a value")),
            None => Err(self.why_unending(start)),
        }
    }

    /// Where the value at `start`, which has no end, goes wrong first.
    fn why_unending(&self, start: usize) -> BodyError {
        let Some(text) = self.text else {
            let at =
                std::str::from_utf8(self.body).map_or_else(|error| error.valid_up_to(), str::len);
            return BodyError::Utf8 { at };
        };
        match Scanner::new(text, start, 0).skip_value(DEPTH_LIMIT) {
            Err(SkipError::Syntax(syntax)) => BodyError::Syntax(syntax),
            _ => expected(text.len(), "the end of the value"),
        }
    }

    /// Reads the object at `start`, which is an event or an envelope, and returns the position behind it.
    fn object(&mut self, start: usize) -> Result<usize, BodyError> {
        let Some(text) = self.text else {
            return self.envelope_of_bytes(start);
        };
        let mut scanner = Scanner::new(text, start, 0);
        let rejection = match self.reader.event(&mut scanner, true) {
            Ok(read) => {
                self.summary.single = true;
                return self.take(read, start, scanner.at());
            }
            Err(Stop::Envelope) => return self.envelope(text, start),
            Err(Stop::Syntax(syntax)) => return Err(syntax.into()),
            Err(Stop::Rejected(rejection)) => rejection,
        };
        self.summary.single = true;
        let end = self.end_of_element(start)?;
        self.refuse(rejection, start, end)
    }

    /// Reads `{"events":[…]}` with any other fields beside, which are ignored.
    fn envelope(&mut self, text: &'a str, start: usize) -> Result<usize, BodyError> {
        let mut scanner = Scanner::new(text, start, 0);
        scanner.bump();
        loop {
            scanner.skip_space();
            let key = scanner.string()?;
            scanner.skip_space();
            scanner.expect(b':', "a colon")?;
            scanner.skip_space();
            if key == "events" && scanner.peek() == Some(b'[') {
                let end = self.array(scanner.at())?;
                scanner = Scanner::new(text, end, 0);
            } else {
                self.summary.unknown_fields += 1;
                skip(&mut scanner)?;
            }
            scanner.skip_space();
            match scanner.peek() {
                Some(b',') => scanner.bump(),
                Some(b'}') => return Ok(scanner.at() + 1),
                _ => return Err(scanner.syntax("a comma or a closing brace").into()),
            }
        }
    }

    /// As [`Self::envelope`], for a body that is not all UTF-8: the one key is told by its bytes.
    fn envelope_of_bytes(&mut self, start: usize) -> Result<usize, BodyError> {
        let key = space_end(self.body, start + 1);
        let colon = space_end(self.body, key + 8);
        let array = space_end(self.body, colon + 1);
        let outline = self.body.get(key..key + 8) == Some(b"\"events\"")
            && self.body.get(colon) == Some(&b':')
            && self.body.get(array) == Some(&b'[');
        if !outline {
            return Err(self.why_unending(start));
        }
        let end = space_end(self.body, self.array(array)?);
        match self.body.get(end) {
            Some(b'}') => Ok(end + 1),
            _ => Err(expected(end, "a closing brace")),
        }
    }

    fn lines(&mut self) -> Result<(), BodyError> {
        let mut start = 0;
        while start < self.body.len() {
            let rest = &self.body[start..];
            let end = start + memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            let first = space_end(self.body, start);
            if first < end {
                self.alone(first, end)?;
            }
            start = end + 1;
        }
        Ok(())
    }

    /// Hands over an event that was read from `start..end`.
    fn take(&mut self, read: Read<'a>, start: usize, end: usize) -> Result<usize, BodyError> {
        self.summary.unknown_fields += u64::from(read.unknown_fields);
        match read.fault {
            Some(rejection) => self.refuse(rejection.of(read.draft.event_id), start, end),
            None if end - start > self.reader.limits.event_bytes_max => self.refuse(
                too_large(end - start, self.reader.limits).of(read.draft.event_id),
                start,
                end,
            ),
            None => self.hand_over(Ok(read.draft)).map(|()| end),
        }
    }

    fn refuse(
        &mut self,
        rejection: Rejection,
        start: usize,
        end: usize,
    ) -> Result<usize, BodyError> {
        let limits = self.reader.limits;
        let rejection = if end - start > limits.event_bytes_max {
            // Too large is the plainer truth about an event that is also deep, long or broken.
            Rejection {
                event_id: rejection.event_id,
                ..too_large(end - start, limits)
            }
        } else {
            rejection
        };
        self.hand_over(Err(rejection)).map(|()| end)
    }

    fn hand_over(&mut self, event: Result<Draft<'a>, Rejection>) -> Result<(), BodyError> {
        let max = self.reader.limits.batch_events_max;
        if self.events == max {
            return Err(BodyError::TooManyEvents { max });
        }
        self.events += 1;
        (self.on_event)(event);
        Ok(())
    }
}

fn expected(at: usize, expected: &'static str) -> BodyError {
    BodyError::Syntax(Syntax { at, expected })
}

fn too_large(bytes: usize, limits: &EventLimits) -> Rejection {
    let message = format!(
        "the event is {bytes} bytes long; at most {} are allowed",
        limits.event_bytes_max
    );
    Rejection::new(ErrorCode::EventTooLarge, None, message)
}

fn skip(scanner: &mut Scanner<'_>) -> Result<(), BodyError> {
    scanner
        .skip_value(DEPTH_LIMIT)
        .map_err(|error| match error {
            SkipError::Syntax(syntax) => BodyError::Syntax(syntax),
            SkipError::TooDeep => scanner.syntax("a value that is not nested so deep").into(),
        })
}

/// An object that was read to its end.
struct Read<'a> {
    draft: Draft<'a>,
    /// The first field that was wrong.
    fault: Option<Rejection>,
    unknown_fields: u32,
}

/// Why an object was not read to its end.
enum Stop {
    Syntax(Syntax),
    Rejected(Rejection),
    /// It holds `events`.
    Envelope,
}

impl From<Syntax> for Stop {
    fn from(syntax: Syntax) -> Self {
        Self::Syntax(syntax)
    }
}

impl Stop {
    fn into_rejection(self) -> Rejection {
        match self {
            Self::Rejected(rejection) => rejection,
            Self::Syntax(Syntax { at, expected }) => {
                let message =
                    format!("the event is not JSON: expected {expected} at byte {at} of the body");
                Rejection::new(ErrorCode::MalformedBody, None, message)
            }
            Self::Envelope => {
                Rejection::new(ErrorCode::WrongType, None, "an event cannot hold events")
            }
        }
    }
}

/// Reads objects as events of one shape.
#[derive(Clone, Copy)]
struct EventReader<'l> {
    shape: Shape,
    limits: &'l EventLimits,
}

impl EventReader<'_> {
    /// Reads the object at the scanner. With `outermost` one that holds `events` is told apart.
    fn event<'a>(&self, scanner: &mut Scanner<'a>, outermost: bool) -> Result<Read<'a>, Stop> {
        let mut read = Read {
            draft: Draft::default(),
            fault: None,
            unknown_fields: 0,
        };
        if scanner.peek() != Some(b'{') {
            self.skip(scanner, "the element")?;
            read.fault = Some(Rejection::new(
                ErrorCode::WrongType,
                None,
                "an event must be a JSON object",
            ));
            return Ok(read);
        }
        scanner.bump();
        scanner.skip_space();
        if scanner.peek() == Some(b'}') {
            scanner.bump();
            return Ok(read);
        }
        loop {
            let key = scanner.string()?;
            scanner.skip_space();
            scanner.expect(b':', "a colon")?;
            scanner.skip_space();
            if outermost && key == "events" && scanner.peek() == Some(b'[') {
                return Err(Stop::Envelope);
            }
            self.field(&key, scanner, &mut read)?;
            scanner.skip_space();
            match scanner.peek() {
                Some(b',') => scanner.bump(),
                Some(b'}') => {
                    scanner.bump();
                    return Ok(read);
                }
                _ => return Err(scanner.syntax("a comma or a closing brace").into()),
            }
            scanner.skip_space();
        }
    }

    fn field<'a>(
        &self,
        key: &str,
        scanner: &mut Scanner<'a>,
        read: &mut Read<'a>,
    ) -> Result<(), Stop> {
        match key {
            "event_id" => read.draft.event_id = self.text("event_id", scanner, &mut read.fault)?,
            "user_id" => read.draft.user_id = self.text("user_id", scanner, &mut read.fault)?,
            "page_url" => read.draft.page_url = self.text("page_url", scanner, &mut read.fault)?,
            "session_id" => {
                read.draft.session_id = self.text("session_id", scanner, &mut read.fault)?
            }
            "occurred_at" => {
                read.draft.occurred_at = self.moment("occurred_at", scanner, &mut read.fault)?
            }
            "timestamp" => {
                read.draft.occurred_at = self.moment("timestamp", scanner, &mut read.fault)?
            }
            "value" => read.draft.value = self.number("value", scanner, &mut read.fault)?,
            key if key == self.shape.event_type => {
                read.draft.event_type =
                    self.text(self.shape.event_type, scanner, &mut read.fault)?;
            }
            key if key == self.shape.properties => {
                read.draft.properties = self.properties(scanner, &mut read.fault)?;
            }
            _ => {
                self.skip(scanner, "an unknown field")?;
                read.unknown_fields += 1;
            }
        }
        Ok(())
    }

    fn text<'a>(
        &self,
        name: &'static str,
        scanner: &mut Scanner<'a>,
        fault: &mut Option<Rejection>,
    ) -> Result<Option<Cow<'a, str>>, Stop> {
        match scanner.peek() {
            Some(b'"') => Ok(Some(scanner.string()?)),
            _ => self.not_a(name, "a string", scanner, fault).map(|()| None),
        }
    }

    fn number<'a>(
        &self,
        name: &'static str,
        scanner: &mut Scanner<'a>,
        fault: &mut Option<Rejection>,
    ) -> Result<Option<f64>, Stop> {
        match scanner.peek() {
            // Every JSON number parses; one out of range becomes infinite, which validation refuses.
            Some(b'-' | b'0'..=b'9') => Ok(scanner.number()?.parse().ok()),
            _ => self.not_a(name, "a number", scanner, fault).map(|()| None),
        }
    }

    fn moment<'a>(
        &self,
        name: &'static str,
        scanner: &mut Scanner<'a>,
        fault: &mut Option<Rejection>,
    ) -> Result<Moment<'a>, Stop> {
        match scanner.peek() {
            Some(b'"') => Ok(Moment::Text(name, scanner.string()?)),
            Some(b'-' | b'0'..=b'9') => Ok(Moment::Number(name, scanner.number()?)),
            _ => self
                .not_a(name, "a string or a number", scanner, fault)
                .map(|()| Moment::Absent),
        }
    }

    fn properties<'a>(
        &self,
        scanner: &mut Scanner<'a>,
        fault: &mut Option<Rejection>,
    ) -> Result<Option<&'a str>, Stop> {
        let name = self.shape.properties;
        if scanner.peek() != Some(b'{') {
            return self.not_a(name, "an object", scanner, fault).map(|()| None);
        }
        let start = scanner.at();
        match scanner.skip_value(self.limits.properties_depth_max) {
            Ok(()) => Ok(Some(scanner.slice(start..scanner.at()))),
            Err(SkipError::Syntax(syntax)) => Err(syntax.into()),
            Err(SkipError::TooDeep) => Err(Stop::Rejected(too_deep(
                name,
                self.limits.properties_depth_max,
            ))),
        }
    }

    /// Skips a value that is not of the type its field has; `null` is no fault.
    fn not_a(
        &self,
        name: &'static str,
        kind: &str,
        scanner: &mut Scanner<'_>,
        fault: &mut Option<Rejection>,
    ) -> Result<(), Stop> {
        if scanner.peek() == Some(b'n') {
            return Ok(scanner.literal("null")?);
        }
        self.skip(scanner, name)?;
        fault.get_or_insert_with(|| {
            Rejection::new(ErrorCode::WrongType, name, format!("{name} must be {kind}"))
        });
        Ok(())
    }

    fn skip(&self, scanner: &mut Scanner<'_>, what: &'static str) -> Result<(), Stop> {
        scanner
            .skip_value(DEPTH_LIMIT)
            .map_err(|error| match error {
                SkipError::Syntax(syntax) => Stop::Syntax(syntax),
                SkipError::TooDeep => {
                    let message = format!("{what} is nested deeper than {DEPTH_LIMIT} levels");
                    Stop::Rejected(Rejection::new(ErrorCode::TooDeep, None, message))
                }
            })
    }
}

fn too_deep(name: &'static str, depth_max: u32) -> Rejection {
    let message = format!("{name} is nested deeper than {depth_max} levels");
    Rejection::new(ErrorCode::TooDeep, name, message)
}

/// Checks that `text` is a JSON object within the limits, as the `properties` of an event must be.
pub fn check_properties(text: &str, limits: &EventLimits) -> Result<(), Rejection> {
    let refuse = |code, message: &str| Err(Rejection::new(code, "properties", message));
    let mut scanner = Scanner::new(text, 0, 0);
    scanner.skip_space();
    if scanner.peek() != Some(b'{') {
        return refuse(ErrorCode::WrongType, "properties must be a JSON object");
    }
    match scanner.skip_value(limits.properties_depth_max) {
        Ok(()) => scanner.skip_space(),
        Err(SkipError::TooDeep) => return Err(too_deep("properties", limits.properties_depth_max)),
        Err(SkipError::Syntax(Syntax { at, expected })) => {
            let message =
                format!("properties must be a JSON object: expected {expected} at byte {at}");
            return refuse(ErrorCode::InvalidValue, &message);
        }
    }
    if scanner.at() != text.len() {
        return refuse(
            ErrorCode::InvalidValue,
            "properties must be one JSON object and nothing else",
        );
    }
    Ok(())
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
