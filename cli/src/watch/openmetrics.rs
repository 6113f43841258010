//! The text of `/metrics`, read as far as the watch needs it.
//!
//! It reads what a service sent, which may be anything: it never panics, skips what it cannot read
//! and keeps a bounded number of series, only of the names in [`WANTED`].

use std::collections::BTreeMap;

/// Most series that are kept of one answer; a service exports at most 2,000.
const SERIES_MAX: usize = 20_000;
/// Longest line that is read.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Most labels of one series.
const LABELS_MAX: usize = 16;

/// The names that the watch shows something of; the rest of an answer is passed over.
const WANTED: [&str; 38] = [
    "admission_in_flight",
    "admission_limit",
    "admission_rejected_total",
    "canary_events_lost_total",
    "canary_events_received_total",
    "canary_events_sent_total",
    "canary_roundtrip_seconds_bucket",
    "circuit_breaker_state",
    "circuit_breaker_transitions_total",
    "consumer_partitions",
    "dlq_events_total",
    "errors_total",
    "event_end_to_end_seconds_bucket",
    "event_processing_duration_seconds_bucket",
    "events_accepted_total",
    "events_failed_total",
    "events_in_flight",
    "events_missing_total",
    "events_processed_total",
    "events_received_total",
    "events_rejected_total",
    "kafka_consumer_lag",
    "kafka_consumer_lag_seconds",
    "kafka_reachable",
    "kafka_rebalances_total",
    "ledger_events_total",
    "ledger_imbalance",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "queries_total",
    "rate_limited_total",
    "spool_bytes",
    "spool_bytes_limit",
    "spool_lost_total",
    "spool_oldest_age_seconds",
    "spool_records",
    "spool_written_total",
];

/// Why an answer is no scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScrapeError {
    /// Something else, or a part only.
    #[error("no metrics, or not all of them: the answer does not end in `# EOF`")]
    NoEnd,
    /// Rather nothing than a part.
    #[error("more than {SERIES_MAX} series")]
    TooMany,
}

/// One series at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    labels: Vec<(String, String)>,
    /// Its value.
    pub value: f64,
}

impl Series {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(label, _)| label == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// What a service exported at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    series: BTreeMap<&'static str, Vec<Series>>,
    /// Lines that could not be read.
    pub lines_skipped: usize,
}

impl Scrape {
    /// Reads an answer.
    ///
    /// # Errors
    /// When it is not the whole text of a scrape.
    pub fn parse(body: &[u8]) -> Result<Self, ScrapeError> {
        let mut found = Self::default();
        let (mut kept, mut ended) = (0, false);
        for line in body.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            ended = line == b"# EOF";
            if line.starts_with(b"#") {
                continue;
            }
            match read_line(line) {
                Line::Kept(name, series) => {
                    kept += 1;
                    if kept > SERIES_MAX {
                        return Err(ScrapeError::TooMany);
                    }
                    found.series.entry(name).or_default().push(series);
                }
                Line::PassedOver => {}
                Line::Unreadable => found.lines_skipped += 1,
            }
        }
        if ended {
            Ok(found)
        } else {
            Err(ScrapeError::NoEnd)
        }
    }

    /// All series of a name.
    pub fn all(&self, name: &str) -> &[Series] {
        self.series.get(name).map_or(&[], Vec::as_slice)
    }

    /// The series of a name with this value of a label.
    pub fn with<'a>(
        &'a self,
        name: &str,
        label: &'a str,
        value: &'a str,
    ) -> impl Iterator<Item = &'a Series> {
        let series = self.all(name).iter();
        series.filter(move |series| series.label(label) == Some(value))
    }

    /// The sum over all series of a name; `None` when there is none.
    pub fn sum(&self, name: &str) -> Option<f64> {
        let series = self.all(name);
        (!series.is_empty()).then(|| series.iter().map(|series| series.value).sum())
    }

    /// The sums by a label's values.
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for series in self.all(name) {
            if let Some(value) = series.label(label) {
                *sums.entry(value.to_owned()).or_default() += series.value;
            }
        }
        sums
    }
}

enum Line {
    Kept(&'static str, Series),
    PassedOver,
    Unreadable,
}

/// `name{label="value",...} number [timestamp] [# exemplar]`
fn read_line(line: &[u8]) -> Line {
    let name_end = line.iter().position(|byte| matches!(byte, b'{' | b' '));
    let Some((name, rest)) = name_end.map(|end| line.split_at(end)) else {
        return Line::Unreadable;
    };
    let wanted = WANTED.binary_search_by(|wanted| wanted.as_bytes().cmp(name));
    let Ok(index) = wanted else {
        return Line::PassedOver;
    };
    let text = (line.len() <= LINE_BYTES_MAX)
        .then(|| std::str::from_utf8(rest).ok())
        .flatten();
    match text.and_then(read_series) {
        Some(series) => Line::Kept(WANTED[index], series),
        None => Line::Unreadable,
    }
}

fn read_series(text: &str) -> Option<Series> {
    let (labels, rest) = match text.strip_prefix('{') {
        Some(rest) => read_labels(rest)?,
        None => (Vec::new(), text),
    };
    let number = rest.split_ascii_whitespace().next()?;
    let value = number.parse().ok()?;
    Some(Series { labels, value })
}

/// What follows `{`: the labels, and what follows `}`.
fn read_labels(mut text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        if labels.len() == LABELS_MAX {
            return None;
        }
        let (name, rest) = text.split_once("=\"")?;
        let (value, rest) = read_quoted(rest)?;
        labels.push((name.to_owned(), value));
        text = match rest.strip_prefix(',') {
            Some(rest) => rest,
            None if rest.starts_with('}') => rest,
            None => return None,
        };
    }
}

/// What follows the opening quote: the text up to the closing one, and what follows that.
fn read_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Scrape {
        Scrape::parse(text.as_bytes()).expect("a scrape")
    }

    #[test]
    fn the_names_are_in_order_for_the_search() {
        assert!(WANTED.is_sorted());
    }

    #[test]
    fn lines_as_services_write_them() {
        let cases = [
            ("events_received_total 2000", 2000.0),
            ("events_received_total{} 1", 1.0),
            ("events_received_total{a=\"b\"} 2.5 1795299223.9", 2.5),
            ("events_received_total{a=\"b\",} 3", 3.0),
            ("events_received_total{a=\"x } 9\"} 4", 4.0),
            (
                "events_received_total{le=\"0.1\"} 5 # {trace_id=\"4bf9\"} 0.05 1795299223.9",
                5.0,
            ),
            ("events_received_total +Inf", f64::INFINITY),
        ];
        for (line, value) in cases {
            let scrape = parse(&format!("{line}\n# EOF\n"));
            assert_eq!(scrape.sum("events_received_total"), Some(value), "{line}");
            assert_eq!(scrape.lines_skipped, 0, "{line}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_skipped_and_counted() {
        for line in [
            "events_received_total",
            "events_received_total ",
            "events_received_total x",
            "events_received_total{a=\"b} 1",
            "events_received_total{a=\"b\"",
            "events_received_total{a=\"b\\",
            "events_received_total{a=\"b\"c=\"d\"} 1",
        ] {
            let scrape = parse(&format!("{line}\nevents_in_flight 7\n# EOF"));
            assert_eq!(scrape.lines_skipped, 1, "{line}");
            assert_eq!(scrape.sum("events_received_total"), None, "{line}");
            assert_eq!(scrape.sum("events_in_flight"), Some(7.0), "{line}");
        }
    }

    #[test]
    fn labels_choose_and_group() {
        let scrape = parse(
            "dlq_events_total{reason=\"a\\\"\\n\\\\\"} 1\ndlq_events_total{reason=\"b\"} 2\n\
             dlq_events_total{reason=\"b\"} 3\nother_total{reason=\"b\"} 4\n# EOF\n",
        );
        let by = scrape.by("dlq_events_total", "reason");
        assert_eq!(by.get("a\"\n\\"), Some(&1.0));
        assert_eq!(by.get("b"), Some(&5.0));
        assert_eq!(scrape.with("dlq_events_total", "reason", "b").count(), 2);
        assert_eq!(scrape.sum("other_total"), None, "nobody wants it");
    }

    #[test]
    fn a_part_is_no_scrape() {
        for text in [
            "",
            "<html>no</html>",
            "events_received_total 1\n",
            "# EOF\nx 1",
        ] {
            let found = Scrape::parse(text.as_bytes());
            assert_eq!(found, Err(ScrapeError::NoEnd), "{text}");
        }
    }

    #[test]
    fn more_series_than_any_service_has_are_refused() {
        let line = "events_in_flight 1\n";
        let at_most = format!("{}# EOF\n", line.repeat(SERIES_MAX));
        assert_eq!(parse(&at_most).all("events_in_flight").len(), SERIES_MAX);
        let beyond = format!("{}# EOF\n", line.repeat(SERIES_MAX + 1));
        let found = Scrape::parse(beyond.as_bytes());
        assert_eq!(found, Err(ScrapeError::TooMany));
    }

    #[test]
    fn real_answers_are_read_whole() {
        for (text, name, sum) in [
            (crate::watch::PRODUCER, "events_accepted_total", 2000.0),
            (crate::watch::CONSUMER, "ledger_events_total", 2000.0),
            (crate::watch::ANALYTICS, "events_processed_total", 2000.0),
        ] {
            let scrape = parse(text);
            assert_eq!(scrape.sum(name), Some(sum));
            assert_eq!(scrape.lines_skipped, 0);
        }
    }

    /// Text that is nearly right: pieces of the format in any order.
    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            "events_in_flight",
            "dlq_events_total",
            "{",
            "}",
            "a=\"",
            "\"",
            "\\",
            ",",
            " ",
            "1",
            "NaN",
            "-1e999",
            "# ",
            "EOF",
            "\n",
            "é",
            "\u{0}",
            "=",
            "\r\n",
        ]);
        prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = Scrape::parse(&body);
        }

        #[test]
        fn nearly_right_text_keeps_no_more_than_it_has_lines(body in pieces()) {
            let mut body = body;
            body.extend_from_slice(b"\n# EOF\n");
            let scrape = Scrape::parse(&body).expect("it has an end");
            let kept: usize = scrape.series.values().map(Vec::len).sum();
            let lines = body.split(|byte| *byte == b'\n').count();
            prop_assert!(kept + scrape.lines_skipped < lines);
        }

        #[test]
        fn any_label_comes_back(value in ".{0,40}", number in -1e12f64..1e12) {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let line = format!("events_failed_total{{reason=\"{escaped}\"}} {number}\n# EOF\n");
            let scrape = Scrape::parse(line.as_bytes()).expect("a scrape");
            let found = scrape.with("events_failed_total", "reason", &value).next();
            prop_assert_eq!(found.map(|series| series.value), Some(number));
        }
    }
}
