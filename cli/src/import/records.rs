//! The records of an input, one after another, each an event or the reason why it is none.
//!
//! Memory is bounded whatever the input holds: a record has a greatest length, and an input is
//! never read whole.

use std::{
    cell::Cell,
    io::{self, BufRead, Read},
    rc::Rc,
};

use csv::{ByteRecord, Trim};
use serde_json::{Map, Value};
use streamgauge_proto::v1::SubmittedEvent;

use super::{combined, mapping::Mapping};

/// What the input is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Access logs of Apache and nginx (the common format as well)
    Combined,
    /// One JSON object per line
    Ndjson,
    /// Comma-separated values with a line of headings
    Csv,
}

impl Format {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Combined => "combined",
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
        }
    }
}

/// A record of the input.
#[derive(Debug)]
pub struct Record {
    /// The line it starts on, from 1.
    pub line: u64,
    /// The event, or why there is none.
    pub event: Result<SubmittedEvent, String>,
}

/// How to read records.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// The format.
    pub format: Format,
    /// The mapping, for formats with names.
    pub mapping: Mapping,
    /// Between the values of a CSV line.
    pub delimiter: u8,
    /// The longest record.
    pub record_bytes_max: usize,
}

/// The records of an input.
pub enum Records {
    /// A record per line.
    Lines(LineRecords),
    /// Records with a heading for each value.
    Csv(CsvRecords),
}

impl Records {
    /// Starts reading.
    ///
    /// # Errors
    /// When the input cannot be read, or CSV headings lack what the mapping asks for.
    pub fn new(reader: Box<dyn BufRead + Send>, options: ReadOptions) -> io::Result<Self> {
        match options.format {
            Format::Csv => CsvRecords::new(reader, options).map(Self::Csv),
            Format::Combined | Format::Ndjson => Ok(Self::Lines(LineRecords {
                lines: Lines::new(reader, options.record_bytes_max),
                options,
            })),
        }
    }
}

impl Iterator for Records {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Lines(records) => records.next().transpose(),
            Self::Csv(records) => records.next().transpose(),
        }
    }
}

/// Records of one line each; blank lines are none.
pub struct LineRecords {
    lines: Lines,
    options: ReadOptions,
}

impl LineRecords {
    fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            let Some(whole) = self.lines.next()? else {
                return Ok(None);
            };
            let line = self.lines.number;
            if !whole {
                let max = self.options.record_bytes_max;
                return Ok(Some(Record {
                    line,
                    event: Err(format!("longer than {max} bytes")),
                }));
            }
            let bytes = self.lines.line.trim_ascii();
            if bytes.is_empty() {
                continue;
            }
            let event = match self.options.format {
                Format::Combined => combined::parse(bytes),
                Format::Ndjson | Format::Csv => json_event(bytes, &self.options.mapping),
            };
            return Ok(Some(Record { line, event }));
        }
    }
}

fn json_event(bytes: &[u8], mapping: &Mapping) -> Result<SubmittedEvent, String> {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(record)) => mapping.apply(record),
        Ok(_) => Err(String::from("not a JSON object")),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}

/// Lines of bounded length.
struct Lines {
    reader: Box<dyn BufRead + Send>,
    bytes_max: usize,
    line: Vec<u8>,
    number: u64,
}

impl Lines {
    fn new(reader: Box<dyn BufRead + Send>, bytes_max: usize) -> Self {
        Self {
            reader,
            bytes_max,
            line: Vec::new(),
            number: 0,
        }
    }

    /// Reads the next line into `line`; false when it was too long, and was passed over.
    fn next(&mut self) -> io::Result<Option<bool>> {
        self.line.clear();
        let mut read_any = false;
        let mut whole = true;
        loop {
            let bytes = match self.reader.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if bytes.is_empty() {
                break;
            }
            read_any = true;
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            whole &= self.line.len() + part.len() <= self.bytes_max;
            if whole {
                self.line.extend_from_slice(part);
            }
            let consumed = part.len() + usize::from(end.is_some());
            self.reader.consume(consumed);
            if end.is_some() {
                break;
            }
        }
        self.number += u64::from(read_any);
        Ok(read_any.then_some(whole))
    }
}

/// Records of a CSV input.
pub struct CsvRecords {
    reader: csv::Reader<Budgeted>,
    budget: Rc<Cell<usize>>,
    headings: Vec<String>,
    record: ByteRecord,
    options: ReadOptions,
}

/// Stops a record that never ends: a quote that is not closed would swallow the whole input.
struct Budgeted {
    inner: Box<dyn BufRead + Send>,
    left: Rc<Cell<usize>>,
}

/// What the CSV reader may have read ahead of the record it is at.
const READ_AHEAD_BYTES: usize = 8 * 1024;

impl Read for Budgeted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        let length = buffer.len().min(left);
        if length == 0 {
            return Err(io::Error::other(
                "a record is longer than allowed; is a quote not closed?",
            ));
        }
        let read = self.inner.read(&mut buffer[..length])?;
        self.left.set(left - read);
        Ok(read)
    }
}

impl CsvRecords {
    fn new(inner: Box<dyn BufRead + Send>, options: ReadOptions) -> io::Result<Self> {
        let budget = Rc::new(Cell::new(options.record_bytes_max + READ_AHEAD_BYTES));
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(options.delimiter)
            .flexible(true)
            .trim(Trim::Headers)
            .buffer_capacity(READ_AHEAD_BYTES)
            .from_reader(Budgeted {
                inner,
                left: Rc::clone(&budget),
            });
        let headings: Vec<String> = reader
            .byte_headers()?
            .iter()
            .map(|heading| {
                String::from_utf8_lossy(heading)
                    .trim_start_matches('\u{feff}')
                    .to_owned()
            })
            .collect();
        for (field, source) in options.mapping.sources() {
            if !headings.iter().any(|heading| heading == source) {
                let message = format!(
                    "{field} is mapped to `{source}`, which is no heading; there are: {}",
                    headings.join(", ")
                );
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        }
        Ok(Self {
            reader,
            budget,
            headings,
            record: ByteRecord::new(),
            options,
        })
    }

    fn next(&mut self) -> io::Result<Option<Record>> {
        self.budget
            .set(self.options.record_bytes_max + READ_AHEAD_BYTES);
        if !self.reader.read_byte_record(&mut self.record)? {
            return Ok(None);
        }
        let line = self.record.position().map_or(0, csv::Position::line);
        Ok(Some(Record {
            line,
            event: self.event(),
        }))
    }

    fn event(&self) -> Result<SubmittedEvent, String> {
        let (values, headings) = (self.record.len(), self.headings.len());
        if values != headings {
            return Err(format!("{values} values under {headings} headings"));
        }
        let pairs = self
            .headings
            .iter()
            .cloned()
            .zip(self.record.iter().map(|value| {
                let text = std::str::from_utf8(value).map_err(|_| String::from("not UTF-8"))?;
                Ok(Value::String(text.to_owned()))
            }));
        let record: Map<String, Value> = pairs
            .map(|(name, value): (_, Result<_, String>)| {
                value
                    .map_err(|reason| format!("{name}: {reason}"))
                    .map(|value| (name, value))
            })
            .collect::<Result<_, String>>()?;
        self.options.mapping.apply(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: Format, input: &str, map: &[&str], bytes_max: usize) -> Vec<String> {
        let map: Vec<String> = map.iter().map(|text| (*text).to_owned()).collect();
        let options = ReadOptions {
            format,
            mapping: Mapping::parse(&map, &[]).expect("valid"),
            delimiter: b',',
            record_bytes_max: bytes_max,
        };
        let reader = Box::new(io::Cursor::new(input.as_bytes().to_vec()));
        let records = match Records::new(reader, options) {
            Ok(records) => records,
            Err(error) => return vec![format!("stop: {error}")],
        };
        let show = |record: io::Result<Record>| match record {
            Ok(Record {
                line,
                event: Ok(event),
            }) => format!(
                "{line}: {} {} {:?} {}",
                event.user_id,
                event.event_type,
                event.value,
                String::from_utf8_lossy(&event.properties)
            ),
            Ok(Record {
                line,
                event: Err(reason),
            }) => format!("{line}: bad, {reason}"),
            Err(error) => format!("stop: {error}"),
        };
        let mut shown = Vec::new();
        for record in records {
            let stop = record.is_err();
            shown.push(show(record));
            if stop {
                break;
            }
        }
        shown
    }

    #[test]
    fn ndjson_with_blank_bad_and_long_lines() {
        let input = "{\"user_id\":\"a\",\"event_type\":\"t\",\"value\":2,\"x\":[1]}\n\n[1]\nnope\r\n{\"user_id\":\"b\"}\n{\"user_id\":\"a very long one indeed, longer than all\"}\n{\"user_id\":\"c\"}";
        insta::assert_snapshot!(read(Format::Ndjson, input, &[], 52).join("\n"), @r#"
        1: a t Some(2.0) {"x":[1]}
        3: bad, not a JSON object
        4: bad, not JSON: expected ident at line 1 column 2
        5: b  None 
        6: bad, longer than 52 bytes
        7: c  None
        "#);
    }

    #[test]
    fn csv_with_quotes_and_a_mapping() {
        let input = "\u{feff}customer,event_type, amount ,note\nc1,buy,9.5,\"says \"\"hi\"\",\nand goes\"\nc2,buy,,\nc3,buy,x,\nc4,buy\n";
        let map = ["user_id=customer", "value=amount"];
        insta::assert_snapshot!(read(Format::Csv, input, &map, 1000).join("\n"), @r#"
        2: c1 buy Some(9.5) {"note":"says \"hi\",\nand goes"}
        4: c2 buy None {"note":""}
        5: bad, amount: `x` is no number
        6: bad, 2 values under 4 headings
        "#);
    }

    #[test]
    fn csv_that_lacks_a_heading_or_a_quote_stops() {
        let found = read(Format::Csv, "a,b\n1,2\n", &["user_id=customer"], 1000);
        assert!(
            found[0].contains("no heading; there are: a, b"),
            "{found:?}"
        );
        let endless = format!("user_id\n\"{}", "x".repeat(200_000));
        let found = read(Format::Csv, &endless, &[], 1000);
        assert!(found[0].contains("longer than allowed"), "{found:?}");
    }

    #[test]
    fn a_last_line_without_an_end_counts() {
        let found = read(
            Format::Combined,
            "x\nh - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 7",
            &[],
            500,
        );
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("1: bad") && found[1].starts_with("2: h request Some(7.0)"));
    }
}
