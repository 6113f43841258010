//! Reading a delta batch from bytes that anyone may have written.
//!
//! A record on `metrics-data` that is not a batch, whose terms do not add up or whose indices
//! point nowhere counts for nobody: readers pass it over as they pass over a void batch, loudly.

use prost::Message;
use streamgauge_proto::v1::DeltaBatch;

use crate::{Outcomes, Range};

/// Size of an encoded trace context in a batch: trace id (16), span id (8), flags (1).
pub const TRACE_BYTES: usize = 25;

/// Most trace contexts that one batch carries.
pub const TRACES_MAX: usize = 128;

/// An encoded trace context.
pub type TraceBytes = [u8; TRACE_BYTES];

/// Why a record on `metrics-data` is not a batch.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// Not protobuf.
    #[error("the record is not a delta batch")]
    Undecodable(#[from] prost::DecodeError),
    /// The range is empty, backwards or negative.
    #[error("the range [{from}, {to}) is not one")]
    BadRange {
        /// Its `from`.
        from: i64,
        /// Its `to`.
        to: i64,
    },
    /// The outcomes do not account for the range.
    #[error("the outcomes add up to {sum:?}, the range {range} holds {}", range.offsets())]
    Unbalanced {
        /// The sum of the outcomes; `None` when it overflows.
        sum: Option<u64>,
        /// The batch's range.
        range: Range,
    },
    /// An index beyond the batch's table of strings.
    #[error("string {index} of {strings} is referred to")]
    DanglingString {
        /// The index.
        index: u32,
        /// How many strings there are.
        strings: usize,
    },
}

/// Decodes and checks a batch.
///
/// # Errors
/// When the bytes are not a batch that may be applied; see [`DeltaError`].
pub fn decode(bytes: &[u8]) -> Result<DeltaBatch, DeltaError> {
    let batch = DeltaBatch::decode(bytes)?;
    let range = range(&batch)?;
    let outcomes = outcomes(&batch);
    if !outcomes.balances(range) {
        return Err(DeltaError::Unbalanced {
            sum: outcomes.total(),
            range,
        });
    }
    check_strings(&batch)?;
    Ok(batch)
}

/// The range of a batch.
///
/// # Errors
/// [`DeltaError::BadRange`].
pub fn range(batch: &DeltaBatch) -> Result<Range, DeltaError> {
    Range::new(batch.from, batch.to).ok_or(DeltaError::BadRange {
        from: batch.from,
        to: batch.to,
    })
}

/// The outcomes of a batch; all zero when it has none.
pub fn outcomes(batch: &DeltaBatch) -> Outcomes {
    batch
        .outcomes
        .as_ref()
        .map(Outcomes::from)
        .unwrap_or_default()
}

fn check_strings(batch: &DeltaBatch) -> Result<(), DeltaError> {
    let strings = batch.strings.len();
    let check = |index: u32| {
        if (index as usize) < strings {
            Ok(())
        } else {
            Err(DeltaError::DanglingString { index, strings })
        }
    };
    for cell in batch.series.iter().flat_map(|series| &series.cells) {
        cell.key.iter().try_for_each(|index| check(*index))?;
    }
    for page in &batch.user_pages {
        [page.user_id, page.page_url, page.event_type]
            .into_iter()
            .try_for_each(check)?;
    }
    batch
        .types
        .iter()
        .try_for_each(|entry| check(entry.event_type))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use streamgauge_proto::v1::{Cell, SeriesDelta};

    use super::*;

    fn batch() -> DeltaBatch {
        DeltaBatch {
            from: 10,
            to: 12,
            outcomes: Some(
                Outcomes {
                    counted: 1,
                    duplicate: 1,
                    ..Outcomes::default()
                }
                .into(),
            ),
            strings: vec![String::from("/")],
            series: vec![SeriesDelta {
                series: String::from("page_url"),
                cells: vec![Cell {
                    key: vec![0],
                    count: 1,
                    ..Cell::default()
                }],
            }],
            ..DeltaBatch::default()
        }
    }

    #[test]
    fn an_honest_batch_is_read() {
        assert_eq!(decode(&batch().encode_to_vec()).expect("honest"), batch());
    }

    #[test]
    fn dishonest_batches_are_refused() {
        type Spoil = fn(&mut DeltaBatch);
        let cases: [(&str, Spoil); 5] = [
            ("not one", |batch| batch.to = batch.from),
            ("not one", |batch| batch.from = -1),
            ("add up", |batch| batch.to += 1),
            ("add up", |batch| batch.outcomes = None),
            ("referred to", |batch| batch.strings.clear()),
        ];
        for (expected, spoil) in cases {
            let mut spoiled = batch();
            spoil(&mut spoiled);
            let error = decode(&spoiled.encode_to_vec())
                .expect_err(expected)
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }
    }
}
