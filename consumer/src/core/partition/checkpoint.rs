//! What a committed offset says beside the offset: from where on the chain must be read.
//!
//! It is JSON in the commit's metadata, small and readable with any Kafka tool. What cannot be
//! read is treated as absent: then the chain is read from its start, which costs time only.

use serde::{Deserialize, Serialize};

use super::history::Base;

const VERSION: u32 = 1;

/// A state of the fold: every batch below `delta_position` is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The head of the chain.
    pub head: i64,
    /// The next offset of `metrics-data`.
    pub delta_position: i64,
    /// Log time at the head, microseconds.
    pub log_time_us: i64,
    /// Watermark at the head, microseconds.
    pub watermark_us: i64,
    /// Where the source ended when it was found to end before the head.
    pub reused_from: Option<i64>,
    /// From where on the chain tells which records of the dedupe horizon were refused for their time.
    pub base: Option<Base>,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    v: u32,
    d: i64,
    t: i64,
    w: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    s: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    b: Option<Base>,
}

impl Checkpoint {
    /// The text that goes with the committed offset.
    pub fn metadata(&self) -> String {
        let metadata = Metadata {
            v: VERSION,
            d: self.delta_position,
            t: self.log_time_us,
            w: self.watermark_us,
            s: self.reused_from,
            b: self.base,
        };
        // Numbers and flags alone, which JSON can always hold; without metadata the chain is read whole.
        serde_json::to_string(&metadata).unwrap_or_default()
    }

    /// Reads a committed offset and its metadata; `None` when the chain must be read whole.
    pub fn parse(head: i64, metadata: &str) -> Option<Self> {
        let Metadata { v, d, t, w, s, b } = serde_json::from_str(metadata).ok()?;
        let is_before = |base: &Base| {
            (0..=d).contains(&base.place.delta_position) && (0..=head).contains(&base.place.head)
        };
        (v == VERSION && d >= 0 && head >= 0).then_some(Self {
            head,
            delta_position: d,
            log_time_us: t,
            watermark_us: w,
            reused_from: s,
            base: b.filter(is_before),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::history::Place, *};

    #[test]
    fn it_survives_the_round_trip() {
        let base = Base {
            place: Place {
                head: 6,
                delta_position: 2,
                log_time_us: 98,
            },
            refusing: true,
        };
        for (reused_from, base) in [(None, None), (Some(5), None), (None, Some(base))] {
            let checkpoint = Checkpoint {
                head: 7,
                delta_position: 3,
                log_time_us: 99,
                watermark_us: -1,
                reused_from,
                base,
            };
            assert_eq!(
                Checkpoint::parse(7, &checkpoint.metadata()),
                Some(checkpoint)
            );
        }
    }

    #[test]
    fn a_commit_without_a_base_is_read_and_one_with_a_wrong_base_goes_without() {
        let plain = "{\"v\":1,\"d\":3,\"t\":99,\"w\":5}";
        let wrong = "{\"v\":1,\"d\":3,\"t\":99,\"w\":5,\"b\":{\"h\":1,\"d\":4,\"t\":1,\"r\":true}}";
        let read = Checkpoint::parse(7, plain);
        assert_eq!(read.and_then(|checkpoint| checkpoint.reused_from), None);
        assert_eq!(
            read.map(|checkpoint| checkpoint.metadata()).as_deref(),
            Some(plain)
        );
        assert_eq!(Checkpoint::parse(7, wrong), read);
    }

    #[test]
    fn what_others_committed_is_not_taken_for_it() {
        for metadata in [
            "",
            "{}",
            "x",
            "{\"v\":2,\"d\":1,\"t\":0,\"w\":0}",
            "{\"v\":1,\"d\":-1,\"t\":0,\"w\":0}",
        ] {
            assert_eq!(Checkpoint::parse(7, metadata), None, "{metadata}");
        }
    }
}
