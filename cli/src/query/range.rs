//! The range and the filters of a question.

use std::{collections::HashMap, time::Duration};

use clap::Args;
use streamgauge_proto::v1::TimeRange;

use crate::{error::CliError, times};

/// Which time a question is about.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Which time")]
pub struct RangeArgs {
    /// This long before now
    #[arg(long, value_name = "DURATION", value_parser = times::duration, conflicts_with_all = ["from", "to"])]
    last: Option<Duration>,
    /// From this time on: a date, RFC 3339, now-1h, or seconds since 1970 [default: an hour before --to]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Before this time [default: now]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
}

const HOUR_US: i64 = 3_600_000_000;
const SECOND_US: i64 = 1_000_000;

impl RangeArgs {
    /// The range in effect. One that ends now ends with the second that has begun.
    ///
    /// # Errors
    /// When a time cannot be read, or the range is empty.
    pub fn resolve(&self, now_us: i64, step_s: u32) -> Result<TimeRange, CliError> {
        let end_of_now = (now_us / SECOND_US + 1) * SECOND_US;
        let read = |text: &String| {
            times::instant(text, now_us).map_err(|error| CliError::usage(error.to_string()))
        };
        let to_us = self
            .to
            .as_ref()
            .map(read)
            .transpose()?
            .unwrap_or(end_of_now);
        let from_us = match (&self.last, &self.from) {
            (Some(last), _) => to_us.saturating_sub(micros(*last)),
            (None, Some(from)) => read(from)?,
            (None, None) => to_us.saturating_sub(HOUR_US),
        };
        if from_us >= to_us {
            return Err(CliError::usage(format!(
                "the range is empty: from {} to {}",
                times::show(from_us),
                times::show(to_us)
            )));
        }
        // A range that moves with the clock starts at a whole step, so that steps are the same
        // ones each time they are asked for.
        let step_us = i64::from(step_s) * SECOND_US;
        let aligned = self.from.is_none() && step_us > 0;
        let from_us = if aligned {
            from_us.div_euclid(step_us) * step_us
        } else {
            from_us
        };
        Ok(TimeRange { from_us, to_us })
    }
}

fn micros(length: Duration) -> i64 {
    i64::try_from(length.as_micros()).unwrap_or(i64::MAX)
}

/// Which keys a question is about.
#[derive(Clone, Debug, Args)]
pub struct FilterArgs {
    /// Keep only keys whose dimension has this value; may be repeated
    #[arg(long = "where", value_name = "DIMENSION=VALUE")]
    filter: Vec<String>,
}

impl FilterArgs {
    /// The filter in effect.
    ///
    /// # Errors
    /// When one is no assignment.
    pub fn resolve(&self) -> Result<HashMap<String, String>, CliError> {
        let pair = |text: &String| match text.split_once('=') {
            Some((dimension, value)) => Ok((dimension.to_owned(), value.to_owned())),
            None => Err(CliError::usage(format!(
                "`{text}` is no filter like event_type=click"
            ))),
        };
        self.filter.iter().map(pair).collect()
    }
}

/// A step in whole seconds.
///
/// # Errors
/// When it is none, or is none at all.
pub fn seconds(length: Duration, flag: &str) -> Result<u32, CliError> {
    let whole = length.subsec_nanos() == 0 && !length.is_zero();
    let seconds = u32::try_from(length.as_secs()).ok().filter(|_| whole);
    seconds
        .ok_or_else(|| CliError::usage(format!("{flag} is a whole number of seconds, from 1s on")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(last: Option<u64>, from: Option<&str>, to: Option<&str>, step_s: u32) -> String {
        let args = RangeArgs {
            last: last.map(Duration::from_secs),
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
        };
        let now_us = 1_431_820_805_500_000; // 2015-05-17T00:00:05.5Z
        match args.resolve(now_us, step_s) {
            Ok(range) => format!(
                "{} {}",
                times::show(range.from_us),
                times::show(range.to_us)
            ),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn ranges() {
        let hour = "2015-05-16T23:00:06Z 2015-05-17T00:00:06Z";
        assert_eq!(range(None, None, None, 1), hour);
        assert_eq!(range(Some(3600), None, None, 0), hour);
        assert_eq!(
            range(Some(60), None, None, 10),
            "2015-05-16T23:59:00Z 2015-05-17T00:00:06Z"
        );
        let days = "2015-05-17T00:00:00Z 2015-05-21T00:00:00Z";
        assert_eq!(
            range(None, Some("2015-05-17"), Some("2015-05-21"), 10),
            days
        );
        assert!(range(None, Some("now+1h"), None, 1).contains("empty"));
        assert!(range(None, Some("soon"), None, 1).contains("no time"));
    }

    #[test]
    fn steps_are_whole_seconds() {
        assert_eq!(
            seconds(Duration::from_secs(10), "--step").expect("whole"),
            10
        );
        for millis in [0, 500, 1500] {
            assert!(
                seconds(Duration::from_millis(millis), "--step").is_err(),
                "{millis}"
            );
        }
    }

    #[test]
    fn filters_are_assignments() {
        let args = FilterArgs {
            filter: vec![String::from("page_url=/a?b=c")],
        };
        assert_eq!(args.resolve().expect("valid")["page_url"], "/a?b=c");
        assert!(
            FilterArgs {
                filter: vec![String::from("page_url")]
            }
            .resolve()
            .is_err()
        );
    }
}
