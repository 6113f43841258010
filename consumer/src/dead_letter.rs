//! What is not counted is kept: dead letters, with where they came from and why, in headers.
//!
//! A dead letter is safe before the batch that counts it is written. A crash in between writes it again with the same
//! source topic, partition and offset; that triple is its identity. The key, the value and the headers of the record
//! are carried as they were.

use std::time::Duration;

use streamgauge_kafka::{PublishError, Publisher, Record, RecordRef};
use streamgauge_resilience::{Backoff, BackoffConfig};

use crate::core::reject::{Reason, Reject};

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
/// Attempts at writing it here, this one included.
pub const ATTEMPTS: &str = "sg-attempts";
/// The value's length, when it was too long to be carried whole.
pub const TRUNCATED: &str = "sg-truncated";

/// How much of a value is kept when the record, with its new headers, is more than Kafka takes.
const TRUNCATED_BYTES: usize = 4 * 1024;

/// A record on its way to the dead-letter topic.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Why.
    pub reason: Reason,
    headers: Vec<(String, Vec<u8>)>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    timestamp_ms: i64,
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
        let own = own.map(|(name, text)| (name.to_owned(), text.into_bytes()));
        // A header without a value arrives as one of zero bytes.
        let original = record
            .headers
            .map(|(name, value)| (name.to_owned(), value.unwrap_or_default().to_vec()));
        Self {
            reason: reject.reason,
            headers: own.into_iter().chain(original).collect(),
            key: record.key.map(<[u8]>::to_vec),
            value: record.payload.map(<[u8]>::to_vec),
            timestamp_ms: record.timestamp_ms,
        }
    }

    /// Keeps the start of the value only, and says how long it was.
    fn truncate(&mut self) {
        if let Some(value) = &mut self.value
            && value.len() > TRUNCATED_BYTES
        {
            let length = value.len().to_string();
            value.truncate(TRUNCATED_BYTES);
            self.headers
                .push((TRUNCATED.to_owned(), length.into_bytes()));
        }
    }
}

/// Writes all of them, however long it takes; `on_error` hears of each failed attempt.
pub async fn write(
    publisher: &Publisher,
    topic: &str,
    mut letters: Vec<DeadLetter>,
    backoff: &BackoffConfig,
    on_error: impl Fn(&PublishError),
) {
    let mut waits = Backoff::new(backoff, 0);
    for attempt in 1u32.. {
        let failed = write_once(publisher, topic, &letters, attempt).await;
        let Some((_, error)) = failed.first() else {
            return;
        };
        on_error(error);
        let mut left = Vec::with_capacity(failed.len());
        for (index, error) in &failed {
            let mut letter = letters[*index].clone();
            if matches!(error, PublishError::TooLarge) {
                letter.truncate();
            }
            left.push(letter);
        }
        letters = left;
        tokio::time::sleep(
            waits
                .next()
                .unwrap_or(Duration::from_millis(backoff.max_ms)),
        )
        .await;
    }
}

async fn write_once(
    publisher: &Publisher,
    topic: &str,
    letters: &[DeadLetter],
    attempt: u32,
) -> Vec<(usize, PublishError)> {
    let attempts = attempt.to_string();
    let mut batch = publisher.batch();
    for letter in letters {
        let own = [(ATTEMPTS, attempts.as_bytes())];
        let carried = letter
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()));
        let headers: Vec<_> = carried.chain(own).collect();
        batch.push(Record {
            topic,
            partition: None,
            key: letter.key.as_deref(),
            payload: letter.value.as_deref(),
            timestamp_ms: (letter.timestamp_ms >= 0).then_some(letter.timestamp_ms),
            headers: &headers,
        });
    }
    batch.finish().await.failed
}
