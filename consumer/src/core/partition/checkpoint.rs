//! What a committed offset says beside the offset: from where on the chain must be read.
//!
//! It is JSON in the commit's metadata, small and readable with any Kafka tool. What cannot be
//! read is treated as absent: then the chain is read from its start, which costs time only.

use serde::{Deserialize, Serialize};

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
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    v: u32,
    d: i64,
    t: i64,
    w: i64,
    #[serde(default)]
    s: Option<i64>,
}

impl Checkpoint {
    /// The text that goes with the committed offset.
    pub fn metadata(&self) -> String {
        let (d, t, w) = (self.delta_position, self.log_time_us, self.watermark_us);
        let s = self
            .reused_from
            .map_or_else(String::new, |s| format!(",\"s\":{s}"));
        format!("{{\"v\":{VERSION},\"d\":{d},\"t\":{t},\"w\":{w}{s}}}")
    }

    /// Reads a committed offset and its metadata; `None` when the chain must be read whole.
    pub fn parse(head: i64, metadata: &str) -> Option<Self> {
        let Metadata { v, d, t, w, s } = serde_json::from_str(metadata).ok()?;
        (v == VERSION && d >= 0 && head >= 0).then_some(Self {
            head,
            delta_position: d,
            log_time_us: t,
            watermark_us: w,
            reused_from: s,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_the_round_trip() {
        for reused_from in [None, Some(5)] {
            let checkpoint = Checkpoint {
                head: 7,
                delta_position: 3,
                log_time_us: 99,
                watermark_us: -1,
                reused_from,
            };
            assert_eq!(
                Checkpoint::parse(7, &checkpoint.metadata()),
                Some(checkpoint)
            );
        }
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
