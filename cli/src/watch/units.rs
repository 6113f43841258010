//! Figures as a person reads them at a glance: few digits, and always the unit.

use crate::table::whole;

/// What stands for a figure that is not known.
pub const UNKNOWN: &str = "-";

/// A count of things.
pub fn count(number: f64) -> String {
    if number.abs() < 9e15 {
        whole(number.round() as i64)
    } else {
        format!("{number:.1e}")
    }
}

/// A rate, without its unit: finer where it is small.
pub fn rate(number: f64) -> String {
    if number == 0.0 || number.abs() >= 10.0 {
        count(number)
    } else {
        format!("{number:.1}")
    }
}

/// A length of time.
pub fn seconds(seconds: f64) -> String {
    const MINUTE: f64 = 60.0;
    const HOUR: f64 = 3600.0;
    const DAY: f64 = 86_400.0;
    if !seconds.is_finite() {
        return String::from(UNKNOWN);
    }
    // A unit begins where the one before would be rounded up to it.
    if seconds <= 0.0 {
        String::from("0 s")
    } else if seconds < 0.00995 {
        format!("{:.1} ms", seconds * 1e3)
    } else if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 9.95 {
        format!("{seconds:.1} s")
    } else if seconds < MINUTE - 0.5 {
        format!("{seconds:.0} s")
    } else if seconds < HOUR - 0.5 {
        pair(seconds, MINUTE, "m", 1.0, "s")
    } else if seconds < DAY - 0.5 {
        pair(seconds, HOUR, "h", MINUTE, "m")
    } else {
        pair(seconds, DAY, "d", HOUR, "h")
    }
}

fn pair(seconds: f64, large: f64, large_unit: &str, small: f64, small_unit: &str) -> String {
    let seconds = seconds.round();
    let larges = (seconds / large).floor();
    let smalls = ((seconds - larges * large) / small).floor();
    format!("{}{large_unit} {smalls}{small_unit}", count(larges))
}

/// A size.
pub fn bytes(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut size, mut unit) = (bytes, 0);
    while size >= 1023.5 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && size < 9.95);
    format!("{size:.digits$} {}", UNITS[unit])
}

/// What `show` makes of a figure, or a sign that it is not known.
pub fn or_unknown(figure: Option<f64>, show: impl Fn(f64) -> String) -> String {
    figure.map_or_else(|| String::from(UNKNOWN), show)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_at_a_glance() {
        let cases = [
            (0.0, "0 s"),
            (0.0004, "0.4 ms"),
            (0.0526, "53 ms"),
            (0.9996, "1.0 s"),
            (2.14, "2.1 s"),
            (59.6, "1m 0s"),
            (192.0, "3m 12s"),
            (3599.7, "1h 0m"),
            (7500.0, "2h 5m"),
            (90_000.0, "1d 1h"),
            (f64::NAN, "-"),
        ];
        for (figure, text) in cases {
            assert_eq!(seconds(figure), text, "{figure}");
        }
        let cases = [
            (0.0, "0"),
            (0.25, "0.2"),
            (9.9, "9.9"),
            (998.6, "999"),
            (-3.0, "-3.0"),
        ];
        for (figure, text) in cases {
            assert_eq!(rate(figure), text, "{figure}");
        }
        let cases = [
            (0.0, "0 B"),
            (46_268_416.0, "44 MiB"),
            (1_073_741_824.0, "1.0 GiB"),
            (1_048_500.0, "1.0 MiB"),
            (1e18, "909495 TiB"),
        ];
        for (figure, text) in cases {
            assert_eq!(bytes(figure), text, "{figure}");
        }
        assert_eq!(count(1e300), "1.0e300");
        assert_eq!(or_unknown(None, count), "-");
    }
}
