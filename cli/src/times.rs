//! Points in time and lengths of time as people write them, and as the output shows them.
//!
//! All in UTC and in microseconds since the Unix epoch, as on the wire.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};

const MICROS_PER_SECOND: i64 = 1_000_000;

/// Why a time or a duration cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Not a point in time.
    #[error(
        "`{0}` is no time: write 2015-05-17, 2015-05-17T10:05:03Z, now-1h or seconds since 1970"
    )]
    Instant(String),
    /// Not a length of time.
    #[error("`{0}` is no duration: write 250ms, 10s, 15m, 1h30m, 7d or 2w")]
    Length(String),
}

/// Reads a point in time: `now`, `now-1h`, RFC 3339, a date (its start), a date and time (UTC),
/// or a number since 1970, in seconds, milliseconds or microseconds by its size.
///
/// # Errors
/// [`TimeError`].
pub fn instant(text: &str, now_us: i64) -> Result<i64, TimeError> {
    let text = text.trim();
    let no = || TimeError::Instant(text.to_owned());
    if let Some(rest) = text.strip_prefix("now") {
        return relative(rest, now_us).ok_or_else(no);
    }
    absolute(text).ok_or_else(no)
}

/// Reads a point in time that does not depend on now, as records of a file hold it.
pub fn absolute(text: &str) -> Option<i64> {
    let text = text.trim();
    epoch(text)
        .or_else(|| rfc3339(text))
        .or_else(|| civil_utc(text))
}

fn relative(rest: &str, now_us: i64) -> Option<i64> {
    let rest = rest.trim();
    if rest.is_empty() {
        return Some(now_us);
    }
    let (sign, length) = match rest.split_at_checked(1)? {
        ("-", length) => (-1, length),
        ("+", length) => (1, length),
        _ => return None,
    };
    let micros = i64::try_from(duration(length.trim()).ok()?.as_micros()).ok()?;
    now_us.checked_add(sign * micros)
}

/// Seconds up to the year 5138, milliseconds up to the same, microseconds beyond.
fn epoch(text: &str) -> Option<i64> {
    const SECONDS_BELOW: u64 = 100_000_000_000;
    const MILLIS_BELOW: u64 = SECONDS_BELOW * 1000;
    if let Ok(number) = text.parse::<i64>() {
        return match number.unsigned_abs() {
            0..SECONDS_BELOW => number.checked_mul(MICROS_PER_SECOND),
            SECONDS_BELOW..MILLIS_BELOW => number.checked_mul(1000),
            _ => Some(number),
        };
    }
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b'-');
    let seconds = plain.then(|| text.parse::<f64>().ok()).flatten()?;
    (seconds.abs() < SECONDS_BELOW as f64)
        .then(|| (seconds * MICROS_PER_SECOND as f64).round() as i64)
}

fn rfc3339(text: &str) -> Option<i64> {
    text.parse::<Timestamp>()
        .ok()
        .map(Timestamp::as_microsecond)
}

fn civil_utc(text: &str) -> Option<i64> {
    let time = text
        .parse::<civil::DateTime>()
        .or_else(|_| text.parse::<civil::Date>().map(|date| date.at(0, 0, 0, 0)))
        .ok()?;
    TimeZone::UTC
        .to_timestamp(time)
        .ok()
        .map(Timestamp::as_microsecond)
}

/// Reads a length of time: `250ms`, `10s`, `1h30m`, `7d`.
///
/// # Errors
/// [`TimeError`].
pub fn duration(text: &str) -> Result<Duration, TimeError> {
    let no = || TimeError::Length(text.to_owned());
    let mut rest = text.trim();
    let mut total_ms: u64 = 0;
    if rest.is_empty() {
        return Err(no());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(no)?;
        let number: u64 = rest[..digits].parse().map_err(|_| no())?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit_ms: u64 = match &rest[..letters] {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return Err(no()),
        };
        rest = &rest[letters..];
        let part = number.checked_mul(unit_ms).ok_or_else(no)?;
        total_ms = total_ms.checked_add(part).ok_or_else(no)?;
    }
    Ok(Duration::from_millis(total_ms))
}

/// Now, by the clock of this machine.
pub fn now_us() -> i64 {
    Timestamp::now().as_microsecond()
}

/// A point in time for people and JSON: RFC 3339 with as many decimals as it has.
pub fn show(micros: i64) -> String {
    Timestamp::from_microsecond(micros).map_or_else(|_| micros.to_string(), |time| time.to_string())
}

/// A length of time for people: `1.24 s`, `35 ms`, `2m 5s`.
pub fn show_duration(length: Duration) -> String {
    let seconds = length.as_secs_f64();
    if seconds < 0.001 {
        return format!("{} µs", length.as_micros());
    }
    if seconds < 1.0 {
        return format!("{:.1} ms", seconds * 1000.0);
    }
    if seconds < 120.0 {
        return format!("{seconds:.2} s");
    }
    let whole = SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX);
    format!("{whole:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAY_17: i64 = 1_431_820_800_000_000;

    #[test]
    fn times_in_every_form() {
        let now = MAY_17 + 5 * MICROS_PER_SECOND;
        let hour = 3600 * MICROS_PER_SECOND;
        let cases = [
            ("2015-05-17", MAY_17),
            ("2015-05-17T00:00:00Z", MAY_17),
            ("2015-05-17T02:00:00+02:00", MAY_17),
            ("2015-05-17 00:00:01", MAY_17 + MICROS_PER_SECOND),
            ("2015-05-17T00:00", MAY_17),
            ("2015-05-17T00:00:00.5Z", MAY_17 + MICROS_PER_SECOND / 2),
            ("1431820800", MAY_17),
            ("1431820800000", MAY_17),
            ("1431820800000000", MAY_17),
            ("1431820800.5", MAY_17 + MICROS_PER_SECOND / 2),
            ("now", now),
            ("now-1h", now - hour),
            ("now - 1h", now - hour),
            ("now+1h30m", now + hour + hour / 2),
        ];
        for (text, expected) in cases {
            assert_eq!(instant(text, now), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_told() {
        for text in ["", "yesterday", "2015-13-01", "now*2", "now-", "1e9", "nan"] {
            assert!(instant(text, 0).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_in_every_form() {
        let cases = [
            ("250ms", 250),
            ("10s", 10_000),
            ("15m", 900_000),
            ("15min", 900_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
            ("2w", 1_209_600_000),
        ];
        for (text, millis) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "10", "s", "-5s", "5y", "99999999999999999999s", "1 h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_shown_as_rfc_3339() {
        assert_eq!(show(MAY_17), "2015-05-17T00:00:00Z");
        assert_eq!(show_duration(Duration::from_micros(35_400)), "35.4 ms");
        assert_eq!(show_duration(Duration::from_millis(1240)), "1.24 s");
    }

    proptest::proptest! {
        #[test]
        fn foreign_text_never_panics(text in ".{0,40}", now in proptest::num::i64::ANY) {
            let _ = instant(&text, now);
            let _ = duration(&text);
        }

        #[test]
        fn what_is_shown_reads_back(micros in 0i64..4_000_000_000_000_000) {
            proptest::prop_assert_eq!(absolute(&show(micros)), Some(micros));
        }
    }
}
