//! Rules and routes with shorter durations: what takes hours where people live takes seconds here, and stays the same
//! otherwise. All of this is pure; it reads text and makes text.
//!
//! Prometheus' rules are written a line a key, as this repository holds them. Ranges (`[5m]`), `offset`, `for:` and
//! `interval:` are divided by one factor; what stands in quotes is left alone.

use std::time::Duration;

/// The units of Prometheus and Alertmanager, in milliseconds, greatest first.
const UNITS: [(&str, u64); 7] = [
    ("y", 31_536_000_000),
    ("w", 604_800_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("ms", 1),
    ("m", 60_000),
    ("s", 1_000),
];
/// Keys of Alertmanager's configuration that hold a duration.
const ROUTE_KEYS: [&str; 4] = [
    "group_wait",
    "group_interval",
    "repeat_interval",
    "resolve_timeout",
];

/// By how much durations shrink, and what they never shrink below.
#[derive(Clone, Copy, Debug)]
pub struct Shortening {
    /// Durations are divided by this.
    pub factor: u64,
    /// A range must hold enough scrapes for a rate.
    pub range_min: Duration,
    /// Of `for:`, `interval:` and of the times of routes.
    pub wait_min: Duration,
}

impl Shortening {
    /// Rules of Prometheus, as YAML.
    pub fn rules(&self, text: &str) -> String {
        each_line(text, |line| {
            let (indent, rest) = line.split_at(line.len() - line.trim_start().len());
            if rest.starts_with('#') {
                return line.to_owned();
            }
            for key in ["for: ", "interval: "] {
                if let Some(duration) = rest.strip_prefix(key).and_then(parse) {
                    return format!("{indent}{key}{}", self.wait(duration));
                }
            }
            self.expression(line)
        })
    }

    /// Alertmanager's routes: how long it gathers, waits and repeats.
    pub fn routes(&self, text: &str) -> String {
        each_line(text, |line| {
            let shorter = line.split_once(": ").and_then(|(key, value)| {
                ROUTE_KEYS
                    .contains(&key.trim())
                    .then(|| Some(format!("{key}: {}", self.wait(parse(value)?))))?
            });
            shorter.unwrap_or_else(|| line.to_owned())
        })
    }

    /// The ranges and offsets of a line of PromQL.
    fn expression(&self, line: &str) -> String {
        let mut shorter = String::with_capacity(line.len());
        for (number, part) in line.split('"').enumerate() {
            if number > 0 {
                shorter.push('"');
            }
            if number % 2 == 1 {
                shorter.push_str(part);
            } else {
                shorter.push_str(&self.offsets(&self.ranges(part)));
            }
        }
        shorter
    }

    fn ranges(&self, text: &str) -> String {
        let mut parts = text.split('[');
        let mut shorter = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            shorter.push('[');
            match part
                .split_once(']')
                .and_then(|(inside, after)| Some((parse(inside)?, after)))
            {
                Some((range, after)) => {
                    shorter.push_str(&text_of(self.divided(range).max(self.range_min)));
                    shorter.push(']');
                    shorter.push_str(after);
                }
                None => shorter.push_str(part),
            }
        }
        shorter
    }

    fn offsets(&self, text: &str) -> String {
        const WORD: &str = "offset ";
        let mut parts = text.split(WORD);
        let mut shorter = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            shorter.push_str(WORD);
            let end = part
                .find(|next: char| !next.is_ascii_alphanumeric())
                .unwrap_or(part.len());
            let (inside, after) = part.split_at(end);
            match parse(inside) {
                Some(offset) => shorter.push_str(&self.wait(offset)),
                None => shorter.push_str(inside),
            }
            shorter.push_str(after);
        }
        shorter
    }

    /// How long a `for:` or a wait of this length is.
    fn wait(&self, duration: Duration) -> String {
        // None at all stays none: it is a promise to wait for nothing.
        if duration.is_zero() {
            return text_of(duration);
        }
        text_of(self.divided(duration).max(self.wait_min))
    }

    fn divided(&self, duration: Duration) -> Duration {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(ms / self.factor.max(1))
    }
}

/// Alertmanager's receivers, each with one webhook of its own name below `url` in the place of whatever it had.
pub fn to_webhooks(text: &str, url: &str) -> String {
    let (before, receivers) = text.split_once("\nreceivers:\n").unwrap_or((text, ""));
    let mut rewritten = format!("{before}\nreceivers:\n");
    for name in receivers
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- name: "))
    {
        rewritten.push_str(&format!(
            "  - name: {name}\n    webhook_configs:\n      - url: {url}/{name}\n        send_resolved: true\n"
        ));
    }
    rewritten
}

fn each_line(text: &str, change: impl Fn(&str) -> String) -> String {
    let lines: Vec<_> = text.lines().map(change).collect();
    lines.join("\n") + "\n"
}

/// A duration as both tools write it, as in `1h30m`.
fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut ms = 0_u64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|next: char| !next.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, worth) = UNITS.iter().find(|(unit, _)| {
            rest.strip_prefix(unit).is_some_and(|after| {
                after.is_empty() || after.starts_with(|next: char| next.is_ascii_digit())
            })
        })?;
        ms = ms.checked_add(number.checked_mul(*worth)?)?;
        rest = &rest[unit.len()..];
    }
    Some(Duration::from_millis(ms))
}

fn text_of(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms.is_multiple_of(1000) {
        format!("{}s", ms / 1000)
    } else {
        format!("{ms}ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BY_THIRTY: Shortening = Shortening {
        factor: 30,
        range_min: Duration::from_secs(5),
        wait_min: Duration::from_secs(1),
    };

    #[test]
    fn ranges_and_offsets_shrink_and_text_does_not() {
        let cases = [
            (
                "expr: rate(a_total[5m]) > 0.05",
                "expr: rate(a_total[10s]) > 0.05",
            ),
            // Never below what holds enough scrapes.
            ("expr: rate(a_total[1m])", "expr: rate(a_total[5s])"),
            (
                "max_over_time(x[1h] offset 23h30m) and y offset 12h >= 0",
                "max_over_time(x[120s] offset 2820s) and y offset 1440s >= 0",
            ),
            (
                "a{path=\"[5m] offset 5m\"}[15m] / on (job) b",
                "a{path=\"[5m] offset 5m\"}[30s] / on (job) b",
            ),
            ("labels: {slo: ingest}", "labels: {slo: ingest}"),
            ("matchers: [alertname]", "matchers: [alertname]"),
            (
                "# the last [5m] are what matters",
                "# the last [5m] are what matters",
            ),
            ("rate(a[1m]) + rate(b[10m])", "rate(a[5s]) + rate(b[20s])"),
        ];
        for (long, short) in cases {
            assert_eq!(BY_THIRTY.rules(long), format!("{short}\n"), "{long}");
        }
    }

    #[test]
    fn waits_and_intervals_shrink_and_keep_their_place() {
        let long = "      - alert: A\n        for: 2m\n    interval: 15s\n";
        let short = "      - alert: A\n        for: 4s\n    interval: 1s\n";
        assert_eq!(BY_THIRTY.rules(long), short);
        assert_eq!(BY_THIRTY.rules("for: 0s"), "for: 0s\n");
        assert_eq!(BY_THIRTY.rules("for: 45s"), "for: 1500ms\n");
    }

    #[test]
    fn the_repositorys_rules_lose_nothing_but_time() {
        for name in ["alerts", "recording", "slo", "anomaly"] {
            let path = format!(
                "{}/../../monitoring/prometheus/rules/{name}.yml",
                env!("CARGO_MANIFEST_DIR")
            );
            let long = std::fs::read_to_string(&path).expect("the rules are there");
            let short = BY_THIRTY.rules(&long);
            let without_digits = |text: &str| {
                let words = text.split(|next: char| !next.is_ascii_alphabetic() && next != '_');
                words
                    .filter(|word| word.len() > 3)
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            assert_eq!(without_digits(&long), without_digits(&short), "{name}");
            assert_eq!(
                long.matches('[').count(),
                short.matches('[').count(),
                "{name}"
            );
            for left in ["[5m]", "[10m]", "[1h]", "offset 12h", "for: 5m"] {
                assert!(
                    !short.lines().any(|line| line.contains(left)),
                    "{name}: {left}"
                );
            }
        }
    }

    #[test]
    fn routes_wait_less_and_go_to_one_place() {
        let long = "route:\n  group_wait: 30s\n  routes:\n    - receiver: page\n      repeat_interval: 24h\n      \
                    group_interval: 0s\nreceivers:\n  - name: page\n    slack_configs:\n      - channel: \"#a\"\n  - name: mail\n    \
                    email_configs:\n      - to: a@example.com\n";
        let by = Shortening {
            factor: 300,
            ..BY_THIRTY
        };
        let routes = to_webhooks(&by.routes(long), "http://127.0.0.1:1/x");
        assert!(routes.contains("  group_wait: 1s\n"), "{routes}");
        assert!(routes.contains("repeat_interval: 288s\n"), "{routes}");
        assert!(routes.contains("group_interval: 0s\n"), "{routes}");
        assert!(
            !routes.contains("slack") && !routes.contains("example.com"),
            "{routes}"
        );
        assert!(
            routes.contains("- url: http://127.0.0.1:1/x/page\n"),
            "{routes}"
        );
        assert!(
            routes.contains("- url: http://127.0.0.1:1/x/mail\n"),
            "{routes}"
        );
    }

    #[test]
    fn what_is_no_duration_is_none() {
        for text in ["", "5", "m", "5x", "alertname", "-5m", "5m3"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(
            parse("1d2h3m4s5ms"),
            Some(Duration::from_millis(93_784_005))
        );
        assert_eq!(
            parse(&text_of(Duration::from_millis(1500))),
            Some(Duration::from_millis(1500))
        );
    }
}
