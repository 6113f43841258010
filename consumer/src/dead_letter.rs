//! What is not counted is kept: dead letters, with where they came from and why, in headers.
//!
//! A dead letter is safe before the batch that counts it is written. A crash in between writes it again with the same
//! source topic, partition and offset; that triple is its identity. The key, the value and the headers of the record
//! are carried as they were, unless Kafka does not take that much; then in stages less is kept, for what stops one
//! record would stop its partition. A dead letter's own time is that of its writing, so that retention keeps it as
//! long as any other.

use std::time::Duration;

use streamgauge_kafka::{Headers, PublishError, Publisher, Record, RecordRef};
use streamgauge_resilience::{Backoff, BackoffConfig};

use crate::{
    core::reject::{Reason, Reject},
    provenance::Replay,
};

/// Why the record is here, as in `wrong_key`.
pub const REASON: &str = "sg-reason";
/// A sentence for people.
pub const DETAIL: &str = "sg-detail";
/// The step that refused it: `decode` or `validate`.
pub const STEP: &str = "sg-step";
/// Where it came from.
pub const SOURCE_TOPIC: &str = "sg-source-topic";
/// Where it came from.
pub const SOURCE_PARTITION: &str = "sg-source-partition";
/// Where it came from.
pub const SOURCE_OFFSET: &str = "sg-source-offset";
/// The group that refused it.
pub const GROUP: &str = "sg-group";
/// When, in microseconds since the Unix epoch.
pub const TIME: &str = "sg-time";
/// The record's own time, in milliseconds since the Unix epoch; absent when it had none.
pub const SOURCE_TIME: &str = "sg-source-time";
/// Says what became of the original headers: `unreadable`, or `dropped` for lack of room.
pub const ORIGINAL_HEADERS: &str = "sg-original-headers";
/// The key's length, when it was too long to be carried whole.
pub const KEY_TRUNCATED: &str = "sg-key-truncated";
/// Attempts at writing it here, this one included.
pub const WRITES: &str = "sg-write-attempts";
/// How often the record was tried: 1, and one more for each replay. Always the last of our own headers: those of the
/// record follow it, and may have any name.
pub const ATTEMPTS: &str = "sg-attempts";
/// The value's length, when it was too long to be carried whole.
pub const TRUNCATED: &str = "sg-truncated";

/// Always the first header of a mark, which is no dead letter but says what became of one: `unfinished`, `replayed`,
/// `dropped` or `open`. A dead letter never begins with it, whatever headers its record had.
pub const MARK: &str = "sg-mark";
/// In a mark: the instance that wrote it.
pub const BY: &str = "sg-by";
/// In a mark: how the event was edited before it was replayed.
pub const EDIT: &str = "sg-edit";

/// How much of a value is kept when the record, with its new headers, is more than Kafka takes.
const TRUNCATED_BYTES: usize = 4 * 1024;
/// How much of a key is kept when even that is more than Kafka takes.
const KEY_TRUNCATED_BYTES: usize = 256;

/// How much larger headers are once they are taken apart: short ones take two small allocations and their places.
const HEADERS_FACTOR: usize = 8;

/// How much of the record is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// All of it.
    Whole,
    /// The start of the value; the key and the headers whole.
    ValueCut,
    /// The starts of the key and of the value, and no header but our own.
    KeyCut,
    /// Our own headers, which say where it came from and why.
    Bare,
}

/// A record on its way to the dead-letter topic.
#[derive(Debug)]
pub struct DeadLetter {
    /// Why.
    pub reason: Reason,
    stage: Stage,
    /// Attempts that Kafka refused at this stage.
    refusals: u32,
    /// How often the record was tried.
    attempts: u32,
    /// Ours come first: those of the record may have any name.
    own: Vec<(&'static str, String)>,
    original: Vec<(String, Vec<u8>)>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

/// Where records come from, and who refuses them.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The source topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
    /// The consumer group.
    pub group: &'a str,
}

impl DeadLetter {
    /// What the headers of a record take at most in its dead letter.
    pub fn headers_bytes(headers: Headers<'_>) -> usize {
        headers.size_bytes().saturating_mul(HEADERS_FACTOR)
    }

    /// Wraps a refused record.
    pub fn new(origin: Origin<'_>, record: &RecordRef<'_>, reject: &Reject, now_us: i64) -> Self {
        let own = [
            (REASON, reject.reason.as_str().to_owned()),
            (DETAIL, reject.detail.clone().into_owned()),
            (STEP, reject.step.as_str().to_owned()),
            (SOURCE_TOPIC, origin.topic.to_owned()),
            (SOURCE_PARTITION, origin.partition.to_string()),
            (SOURCE_OFFSET, record.offset.to_string()),
            (GROUP, origin.group.to_owned()),
            (TIME, now_us.to_string()),
        ];
        let mut own = Vec::from(own);
        if record.timestamp_ms >= 0 {
            own.push((SOURCE_TIME, record.timestamp_ms.to_string()));
        }
        if record.headers.is_unreadable() {
            own.push((ORIGINAL_HEADERS, String::from("unreadable")));
        }
        // What was replayed keeps where it was refused first, and goes without the headers that said so.
        let past = Replay::read(record.headers);
        let known = past.as_ref().map_or(0, |_| Replay::HEADERS);
        if let Some(past) = &past {
            own.extend(past.first.headers());
        }
        // A header without a value arrives as one of zero bytes.
        let original = record
            .headers
            .skip(known)
            .map(|(name, value)| (name.to_owned(), value.unwrap_or_default().to_vec()));
        Self {
            reason: reject.reason,
            stage: Stage::Whole,
            refusals: 0,
            attempts: past.map_or(1, |past| past.replays.saturating_add(1)),
            own,
            original: original.collect(),
            key: record.key.map(<[u8]>::to_vec),
            value: record.payload.map(<[u8]>::to_vec),
        }
    }

    /// Takes in why it was not written. What is too large is cut at once; another refusal may pass, so that it is tried
    /// again before less is kept.
    fn failed(&mut self, error: &PublishError, refusals_max: u32) {
        match error {
            PublishError::TooLarge => self.shrink(),
            PublishError::Refused(_) => {
                self.refusals += 1;
                if self.refusals >= refusals_max {
                    self.shrink();
                }
            }
            _ => {}
        }
    }

    /// Goes on to the next stage that makes a difference.
    fn shrink(&mut self) {
        self.refusals = 0;
        match self.stage {
            Stage::Whole => {
                self.stage = Stage::ValueCut;
                if !cut(&mut self.own, TRUNCATED, &mut self.value, TRUNCATED_BYTES) {
                    self.shrink();
                }
            }
            Stage::ValueCut => {
                self.stage = Stage::KeyCut;
                let cut = cut(
                    &mut self.own,
                    KEY_TRUNCATED,
                    &mut self.key,
                    KEY_TRUNCATED_BYTES,
                );
                if !self.drop_headers() && !cut {
                    self.shrink();
                }
            }
            Stage::KeyCut => {
                self.stage = Stage::Bare;
                cut(&mut self.own, KEY_TRUNCATED, &mut self.key, 0);
                cut(&mut self.own, TRUNCATED, &mut self.value, 0);
                self.key = None;
            }
            Stage::Bare => {}
        }
    }

    /// Our own headers at an attempt to write it, in the order in which they are written.
    pub(crate) fn own_headers(&self, write: u32) -> Vec<(String, String)> {
        let own = self.own.iter().cloned();
        own.chain([
            (WRITES, write.to_string()),
            (ATTEMPTS, self.attempts.to_string()),
        ])
        .map(|(name, text)| (name.to_owned(), text))
        .collect()
    }

    fn drop_headers(&mut self) -> bool {
        if self.original.is_empty() {
            return false;
        }
        self.original = Vec::new();
        self.own.push((ORIGINAL_HEADERS, String::from("dropped")));
        true
    }
}

/// Keeps the start of the bytes, and says in a header how long they were; `false` when they were no longer.
fn cut(
    own: &mut Vec<(&'static str, String)>,
    header: &'static str,
    bytes: &mut Option<Vec<u8>>,
    max: usize,
) -> bool {
    let Some(bytes) = bytes.as_mut().filter(|bytes| bytes.len() > max) else {
        return false;
    };
    if !own.iter().any(|(name, _)| *name == header) {
        own.push((header, bytes.len().to_string()));
    }
    bytes.truncate(max);
    true
}

/// Where dead letters go, and how patiently.
pub struct Target<'a> {
    /// Writes them.
    pub publisher: &'a Publisher,
    /// The dead-letter topic.
    pub topic: &'a str,
    /// Waits between attempts.
    pub backoff: &'a BackoffConfig,
    /// Refusals after which less of the record is kept.
    pub refusals_max: u32,
}

/// Writes all of them, however long it takes; `on_error` hears of each failed attempt.
pub async fn write(
    target: &Target<'_>,
    mut letters: Vec<DeadLetter>,
    on_error: impl Fn(&PublishError),
) {
    let mut waits = Backoff::new(target.backoff, 0);
    for attempt in 1u32.. {
        let failed = write_once(target, &letters, attempt).await;
        let Some((_, error)) = failed.first() else {
            return;
        };
        on_error(error);
        letters = left(letters, &failed, target.refusals_max);
        let wait = waits.next();
        tokio::time::sleep(wait.unwrap_or(Duration::from_millis(target.backoff.max_ms))).await;
    }
}

/// What failed, to be tried again; the rest goes. Nothing is copied: letters may be many and large.
fn left(
    letters: Vec<DeadLetter>,
    failed: &[(usize, PublishError)],
    refusals_max: u32,
) -> Vec<DeadLetter> {
    let mut failed = failed.iter().peekable();
    let mut left = Vec::with_capacity(failed.len());
    for (index, mut letter) in letters.into_iter().enumerate() {
        if let Some((_, error)) = failed.next_if(|(at, _)| *at == index) {
            letter.failed(error, refusals_max);
            left.push(letter);
        }
    }
    left
}

async fn write_once(
    target: &Target<'_>,
    letters: &[DeadLetter],
    attempt: u32,
) -> Vec<(usize, PublishError)> {
    let mut batch = target.publisher.batch();
    for letter in letters {
        let own = letter.own_headers(attempt);
        let own = own.iter().map(|(name, value)| (&**name, value.as_bytes()));
        let original = letter
            .original
            .iter()
            .map(|(name, value)| (&**name, &**value));
        let headers: Vec<_> = own.chain(original).collect();
        batch.push(Record {
            topic: target.topic,
            partition: None,
            key: letter.key.as_deref(),
            payload: letter.value.as_deref(),
            timestamp_ms: None,
            headers: &headers,
        });
    }
    batch.finish().await.failed
}

#[cfg(test)]
mod tests {
    use streamgauge_kafka::ChunkBuilder;

    use super::*;

    fn letter(key: usize, value: usize, header: usize) -> DeadLetter {
        let mut builder = ChunkBuilder::new(0);
        let (key, value, header) = (vec![b'k'; key], vec![b'v'; value], vec![b'h'; header]);
        let headers = (!header.is_empty()).then_some(("name", Some(&header[..])));
        builder.push(7, 5, Some(&key), Some(&value), headers);
        let chunk = builder.take().unwrap();
        let origin = Origin {
            topic: "t",
            partition: 3,
            group: "g",
        };
        let reject = Reject::decode(Reason::Undecodable, "why");
        DeadLetter::new(origin, &chunk.get(0).unwrap(), &reject, 1)
    }

    fn header<'a>(letter: &'a DeadLetter, name: &str) -> Option<&'a [u8]> {
        let found = letter.own.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_bytes())
    }

    /// A replayed record that is refused again.
    #[test]
    fn what_was_replayed_keeps_its_first_provenance() {
        let first = crate::provenance::First {
            topic: String::from("t"),
            partition: 1,
            offset: 2,
            reason: Reason::Late,
            time_us: 3,
        };
        let past = Replay { first, replays: 1 };
        let headers = past.headers();
        let headers = headers
            .iter()
            .map(|(name, value)| (*name, Some(value.as_bytes())))
            .chain([("own", Some(&b"kept"[..]))]);
        let mut builder = ChunkBuilder::new(0);
        builder.push(70, 5, None, Some(b"v"), headers);
        let chunk = builder.take().unwrap();
        let origin = Origin {
            topic: "t",
            partition: 3,
            group: "g",
        };
        let reject = Reject::decode(Reason::Undecodable, "why");
        let letter = DeadLetter::new(origin, &chunk.get(0).unwrap(), &reject, 1);
        assert_eq!(header(&letter, SOURCE_OFFSET), Some(&b"70"[..]));
        assert_eq!(header(&letter, "sg-first-offset"), Some(&b"2"[..]));
        assert_eq!(letter.original, [(String::from("own"), b"kept".to_vec())]);
        let own = letter.own_headers(4);
        let last = [(WRITES, "4"), (ATTEMPTS, "2")];
        let last = last.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(own[own.len() - 2..], last);
    }

    #[test]
    fn each_stage_keeps_less_and_says_so() {
        let mut letter = letter(1_000, 10_000, 50);
        assert_eq!(header(&letter, SOURCE_TIME), Some(&b"5"[..]));
        letter.failed(&PublishError::TooLarge, 3);
        assert_eq!(letter.value.as_ref().unwrap().len(), TRUNCATED_BYTES);
        assert_eq!(header(&letter, TRUNCATED), Some(&b"10000"[..]));
        assert_eq!(
            (letter.key.as_ref().unwrap().len(), letter.original.len()),
            (1_000, 1)
        );
        letter.failed(&PublishError::TooLarge, 3);
        assert_eq!(letter.key.as_ref().unwrap().len(), KEY_TRUNCATED_BYTES);
        assert_eq!(header(&letter, KEY_TRUNCATED), Some(&b"1000"[..]));
        assert_eq!(header(&letter, ORIGINAL_HEADERS), Some(&b"dropped"[..]));
        assert!(letter.original.is_empty());
        letter.failed(&PublishError::TooLarge, 3);
        assert_eq!(
            (letter.key.as_deref(), letter.value.as_deref()),
            (None, Some(&b""[..]))
        );
        assert_eq!(header(&letter, TRUNCATED), Some(&b"10000"[..]));
        assert_eq!(header(&letter, SOURCE_OFFSET), Some(&b"7"[..]));
    }

    #[test]
    fn what_failed_is_tried_again_and_the_rest_is_let_go() {
        let letters = vec![letter(1, 1, 0), letter(2, 9_000, 0), letter(3, 9_000, 0)];
        let failed = [(1, PublishError::TimedOut), (2, PublishError::TooLarge)];
        let left = left(letters, &failed, 3);
        let kept = |letter: &DeadLetter| {
            let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
            (length(&letter.key), length(&letter.value))
        };
        let kept: Vec<_> = left.iter().map(kept).collect();
        assert_eq!(kept, [(2, 9_000), (3, TRUNCATED_BYTES)]);
    }

    #[test]
    fn a_stage_that_makes_no_difference_is_passed_over() {
        let mut letter = letter(4, 4, 5_000);
        letter.failed(&PublishError::TooLarge, 3);
        assert_eq!(letter.stage, Stage::KeyCut);
        assert_eq!(
            (letter.key.as_deref(), letter.value.as_deref()),
            (Some(&b"kkkk"[..]), Some(&b"vvvv"[..]))
        );
        letter.failed(&PublishError::TooLarge, 3);
        assert_eq!(letter.stage, Stage::Bare);
    }

    #[test]
    fn a_refusal_is_tried_again_before_less_is_kept() {
        let mut letter = letter(4, 10_000, 0);
        let refused = PublishError::Refused(String::from("policy"));
        letter.failed(&refused, 3);
        letter.failed(&PublishError::TimedOut, 3);
        letter.failed(&refused, 3);
        assert_eq!(letter.stage, Stage::Whole);
        letter.failed(&refused, 3);
        assert_eq!(letter.stage, Stage::ValueCut);
    }
}
