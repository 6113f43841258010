//! Event times in the forms that clients send, read into microseconds since the Unix epoch.
//!
//! Accepted are RFC 3339 with an offset, the same without one (taken as UTC), and numbers or numeric strings of epoch
//! seconds, milliseconds or microseconds. A number's unit follows from its size: below 10^11 it counts seconds (until
//! the year 5138), below 10^14 milliseconds, below 10^17 microseconds. Since times before 1990 are refused anyway, no
//! accepted number has two readings. Nothing here reads a clock.

/// 1990-01-01T00:00:00Z: earlier times are mistakes (an unset clock, a wrong unit) rather than events.
pub const MIN_US: i64 = 631_152_000_000_000;
/// The last microsecond of the year 9999.
pub const MAX_US: i64 = 253_402_300_799_999_999;

const SECONDS_BELOW: u64 = 100_000_000_000;
const MILLISECONDS_BELOW: u64 = 100_000_000_000_000;
const MICROSECONDS_BELOW: u64 = 100_000_000_000_000_000;
const US_PER_S: i64 = 1_000_000;

/// The time is in no accepted form, or outside 1990 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// Reads a string: RFC 3339, with or without an offset, or a number in quotes.
pub fn from_text(text: &str) -> Result<i64, Unreadable> {
    let text = text.trim_ascii();
    match rfc3339(text.as_bytes()) {
        Some(us) => in_range(us),
        None => from_number(text),
    }
}

/// Reads a number as JSON writes it.
pub fn from_number(text: &str) -> Result<i64, Unreadable> {
    if let Ok(number) = text.parse::<i64>() {
        return from_integer(number);
    }
    let plain = text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E'));
    let number: f64 = text.parse().map_err(|_| Unreadable)?;
    let scale = scale_to_us(number.abs() as u64).ok_or(Unreadable)?;
    let us = (number * scale as f64).round();
    if !plain || !us.is_finite() {
        return Err(Unreadable);
    }
    in_range(us as i64)
}

/// Reads a whole number, whose unit follows from its size.
pub fn from_integer(number: i64) -> Result<i64, Unreadable> {
    let scale = scale_to_us(number.unsigned_abs()).ok_or(Unreadable)?;
    in_range(number * scale)
}

/// Takes microseconds as they are, within the accepted years.
pub fn in_range(us: i64) -> Result<i64, Unreadable> {
    if (MIN_US..=MAX_US).contains(&us) {
        Ok(us)
    } else {
        Err(Unreadable)
    }
}

fn scale_to_us(magnitude: u64) -> Option<i64> {
    match magnitude {
        0..SECONDS_BELOW => Some(US_PER_S),
        SECONDS_BELOW..MILLISECONDS_BELOW => Some(1_000),
        MILLISECONDS_BELOW..MICROSECONDS_BELOW => Some(1),
        _ => None,
    }
}

/// `YYYY-MM-DDTHH:MM:SS[.fraction][Z|±HH:MM]`; a space may stand for the T. A leap second counts as the second before.
fn rfc3339(text: &[u8]) -> Option<i64> {
    let (date_time, rest) = text.split_at_checked(19)?;
    let separators = date_time[4] == b'-'
        && date_time[7] == b'-'
        && matches!(date_time[10], b'T' | b't' | b' ')
        && date_time[13] == b':'
        && date_time[16] == b':';
    if !separators {
        return None;
    }
    let year = two(date_time, 0)? * 100 + two(date_time, 2)?;
    let (month, day) = (two(date_time, 5)?, two(date_time, 8)?);
    let (hour, minute, second) = (
        two(date_time, 11)?,
        two(date_time, 14)?,
        two(date_time, 17)?,
    );
    let valid = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !valid {
        return None;
    }
    let (fraction_us, rest) = fraction(rest)?;
    let seconds =
        days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second.min(59)
            - offset_seconds(rest)?;
    Some(seconds * US_PER_S + fraction_us)
}

/// The two digits at `at`.
fn two(text: &[u8], at: usize) -> Option<i64> {
    let (tens, ones) = (text[at].wrapping_sub(b'0'), text[at + 1].wrapping_sub(b'0'));
    (tens < 10 && ones < 10).then(|| i64::from(tens) * 10 + i64::from(ones))
}

/// The microseconds of `.123456789`, cut off below a microsecond, and what follows.
fn fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let Some((b'.' | b',', digits)) = text.split_first() else {
        return Some((0, text));
    };
    let length = digits
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    if length == 0 {
        return None;
    }
    let (digits, rest) = digits.split_at(length);
    let us = (0..6).fold(0, |us, at| {
        us * 10 + digits.get(at).map_or(0, |digit| i64::from(digit - b'0'))
    });
    Some((us, rest))
}

/// The offset from UTC: none, `Z`, `+HH:MM`, `+HHMM` or `+HH`.
fn offset_seconds(text: &[u8]) -> Option<i64> {
    let (sign, digits) = match text {
        [] | [b'Z' | b'z'] => return Some(0),
        [b'+', digits @ ..] => (1, digits),
        [b'-', digits @ ..] => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = match digits.len() {
        2 => (two(digits, 0)?, 0),
        4 => (two(digits, 0)?, two(digits, 2)?),
        5 if digits[2] == b':' => (two(digits, 0)?, two(digits, 3)?),
        _ => return None,
    };
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar (H. Hinnant's algorithm), for years from 0.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // The year begins in March, so that the leap day is its last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;

    const T: i64 = 1_763_724_600; // 2025-11-21T11:30:00Z

    #[test]
    fn every_accepted_form_reads_as_the_same_moment() {
        for text in [
            "2025-11-21T11:30:00Z",
            "2025-11-21t11:30:00z",
            "2025-11-21T11:30:00",
            "2025-11-21 11:30:00",
            "2025-11-21T12:30:00+01:00",
            "2025-11-21T12:30:00+0100",
            "2025-11-21T12:30:00+01",
            "2025-11-21T04:30:00.000-07:00",
            " 2025-11-21T11:30:00Z ",
            "1763724600",
            "1763724600.0",
            "1763724600000",
            "1763724600000000",
            "1.7637246e9",
        ] {
            assert_eq!(from_text(text), Ok(T * US_PER_S), "{text}");
        }
        for number in [
            "1763724600",
            "1763724600000",
            "1763724600000000",
            "1763724600.0",
        ] {
            assert_eq!(from_number(number), Ok(T * US_PER_S), "{number}");
        }
    }

    #[test]
    fn fractions_are_kept_to_the_microsecond() {
        for (text, us) in [
            ("2025-11-21T11:30:00.5Z", 500_000),
            ("2025-11-21T11:30:00.123456789Z", 123_456),
            ("2025-11-21T11:30:00,25", 250_000),
            ("1763724600.25", 250_000),
            ("1763724600000.5", 500),
        ] {
            assert_eq!(from_text(text), Ok(T * US_PER_S + us), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_or_an_absurd_one_is_refused() {
        for text in [
            "",
            " ",
            "yesterday",
            "nan",
            "inf",
            "-inf",
            "NaN",
            "0",
            "1",
            "-1763724600",
            "1763724600000000000",
            "1e300",
            "2025-13-01T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "2025-11-21T24:00:00Z",
            "2025-11-21T11:60:00Z",
            "2025-11-21T11:30:61Z",
            "2025-11-21",
            "2025-11-21T11:30Z",
            "2025-11-21T11:30:00.Z",
            "2025-11-21T11:30:00+25:00",
            "2025-11-21T11:30:00 Europe/Berlin",
            "1989-12-31T23:59:59Z",
            "0001-01-01T00:00:00Z",
            "9999-12-31T23:59:59-01:00",
            "+02025-11-21T11:30:00Z",
            "２０２５-11-21T11:30:00Z",
            "9223372036854775807",
            "-9223372036854775808",
        ] {
            assert_eq!(from_text(text), Err(Unreadable), "{text}");
        }
        assert_eq!(
            from_text("2024-02-29T00:00:00Z"),
            Ok(1_709_164_800 * US_PER_S)
        );
        assert_eq!(
            from_text("2016-12-31T23:59:60Z"),
            from_text("2016-12-31T23:59:59Z")
        );
    }

    proptest! {
        #[test]
        fn it_agrees_with_jiff(us in MIN_US..=MAX_US) {
            let text = Timestamp::from_microsecond(us).unwrap().to_string();
            prop_assert_eq!(from_text(&text), Ok(us), "{}", text);
        }

        #[test]
        fn numbers_of_one_moment_agree(seconds in MIN_US / US_PER_S..SECONDS_BELOW as i64) {
            prop_assert_eq!(from_integer(seconds), Ok(seconds * US_PER_S));
            prop_assert_eq!(from_integer(seconds * 1_000), Ok(seconds * US_PER_S));
            prop_assert_eq!(from_integer(seconds * US_PER_S), Ok(seconds * US_PER_S));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", number in any::<f64>()) {
            let _ = from_text(&text);
            let _ = from_number(&number.to_string());
        }

        #[test]
        fn almost_rfc3339_never_panics(text in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.0-9Z+:-]{0,10}") {
            if let (Ok(us), Ok(jiff)) = (from_text(&text), text.parse::<Timestamp>()) {
                prop_assert_eq!(us, jiff.as_microsecond());
            }
        }
    }
}
