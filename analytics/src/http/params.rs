//! Reading query parameters. Each is read once; one that nobody reads is an error, and so is one that comes twice.

use std::collections::{BTreeMap, HashMap};

use axum::{extract::Query, http::Uri};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use streamgauge_proto::{ErrorCode, Problem, v1};

use crate::error::invalid;

/// Parameters that are left to be read.
#[derive(Debug)]
pub struct Params {
    left: BTreeMap<String, String>,
    now_us: i64,
}

impl Params {
    /// The parameters of a request.
    ///
    /// # Errors
    /// When they are not properly encoded, or one comes twice.
    pub fn read(uri: &Uri, now_us: i64) -> Result<Self, Problem> {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| {
            Problem::new(
                ErrorCode::InvalidValue,
                format!("the query cannot be read: {error}"),
            )
        })?;
        let mut left = BTreeMap::new();
        for (name, value) in pairs.0 {
            if left.insert(name.clone(), value).is_some() {
                return Err(invalid(
                    name.clone(),
                    format!("the parameter {name} is given twice"),
                ));
            }
        }
        Ok(Self { left, now_us })
    }

    /// Refuses what is left.
    ///
    /// # Errors
    /// When anything is.
    pub fn finish(self) -> Result<(), Problem> {
        match self.left.into_keys().next() {
            Some(name) => {
                let message = format!("there is no parameter {name} here; see /v1/openapi.yaml");
                Err(invalid(name, message))
            }
            None => Ok(()),
        }
    }

    fn text(&mut self, name: &str) -> String {
        self.left.remove(name).unwrap_or_default()
    }

    fn required(&mut self, name: &str) -> Result<String, Problem> {
        match self.left.remove(name) {
            Some(text) if !text.is_empty() => Ok(text),
            _ => {
                let message = format!("the parameter {name} is needed");
                Err(Problem::new(ErrorCode::MissingField, message).field(name))
            }
        }
    }

    fn number(&mut self, name: &str) -> Result<u32, Problem> {
        match self.left.remove(name) {
            Some(text) => text
                .parse()
                .map_err(|_| invalid(name, format!("{name} is a whole number, not {text:?}"))),
            None => Ok(0),
        }
    }

    fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.left.remove(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(text) => Err(invalid(
                name,
                format!("{name} is true or false, not {text:?}"),
            )),
        }
    }

    fn seconds(&mut self, name: &str) -> Result<Option<u32>, Problem> {
        let Some(text) = self.left.remove(name) else {
            return Ok(None);
        };
        match duration_s(&text) {
            Some(seconds) => Ok(Some(seconds)),
            None => {
                let message =
                    format!("{name} is a duration such as 10s, 5m, 2h or 1d, not {text:?}");
                Err(invalid(name, message))
            }
        }
    }

    fn time(&mut self, name: &str) -> Result<Option<i64>, Problem> {
        let Some(text) = self.left.remove(name) else {
            return Ok(None);
        };
        match time_us(&text) {
            Some(time) => Ok(Some(time)),
            None => {
                let message = format!(
                    "{name} is an RFC 3339 time, a date or a Unix time in s, ms or µs, not {text:?}"
                );
                Err(Problem::new(ErrorCode::InvalidTimestamp, message).field(name))
            }
        }
    }

    fn range(&mut self) -> Result<Option<v1::TimeRange>, Problem> {
        let (from, to) = (self.time("from")?, self.time("to")?);
        match (self.seconds("last")?, from) {
            (Some(_), Some(_)) => Err(invalid("last", "give either last or from, not both")),
            (Some(last), None) => {
                let to_us = to.unwrap_or(self.now_us);
                Ok(Some(v1::TimeRange {
                    from_us: to_us.saturating_sub(i64::from(last) * 1_000_000),
                    to_us,
                }))
            }
            (None, Some(from_us)) => Ok(Some(v1::TimeRange {
                from_us,
                to_us: to.unwrap_or(self.now_us),
            })),
            (None, None) => {
                let message = "a range is needed: last=15m, or from and to";
                Err(Problem::new(ErrorCode::MissingField, message).field("from"))
            }
        }
    }

    fn quantiles(&mut self) -> Result<Vec<f64>, Problem> {
        let text = self.text("q");
        let ranks = text.split(',').filter(|rank| !rank.is_empty()).map(|rank| {
            rank.trim()
                .parse()
                .map_err(|_| invalid("q", format!("{rank:?} is not a rank between 0 and 1")))
        });
        ranks.collect()
    }

    fn filter(&mut self) -> HashMap<String, String> {
        let names: Vec<String> = self
            .left
            .keys()
            .filter(|name| name.starts_with("filter."))
            .cloned()
            .collect();
        let conditions = names.into_iter().filter_map(|name| {
            let value = self.left.remove(&name)?;
            Some((name.strip_prefix("filter.")?.to_owned(), value))
        });
        conditions.collect()
    }
}

/// The parameters of `/v1/ledger`.
///
/// # Errors
/// A parameter that cannot be used.
pub fn ledger(mut params: Params) -> Result<v1::LedgerRequest, Problem> {
    let check_store = params.flag("check_store")?;
    params.finish()?;
    Ok(v1::LedgerRequest { check_store })
}

/// The parameters of `/v1/alerts`.
///
/// # Errors
/// A parameter that cannot be used.
pub fn alerts(mut params: Params) -> Result<v1::AlertsRequest, Problem> {
    let all = params.flag("all")?;
    params.finish()?;
    Ok(v1::AlertsRequest { all })
}

/// The request for `/v1/series`.
pub fn series(mut params: Params) -> Result<v1::SeriesRequest, Problem> {
    let request = v1::SeriesRequest {
        by: params.text("by"),
        range: params.range()?,
        step_s: params.seconds("step")?.unwrap_or(0),
        window_s: params.seconds("window")?.unwrap_or(0),
        filter: params.filter(),
        quantiles: params.quantiles()?,
        limit: params.number("limit")?,
    };
    params.finish().map(|()| request)
}

/// The request for `/v1/top`.
pub fn top(mut params: Params) -> Result<v1::TopRequest, Problem> {
    let measure = match params.text("measure").as_str() {
        "" | "count" => v1::Measure::Count,
        "sum" => v1::Measure::Sum,
        "users" => v1::Measure::Users,
        other => {
            let message = format!("measure is one of count, sum and users, not {other:?}");
            return Err(invalid("measure", message));
        }
    };
    let request = v1::TopRequest {
        by: params.text("by"),
        range: params.range()?,
        measure: measure.into(),
        limit: params.number("limit")?,
        filter: params.filter(),
        quantiles: params.quantiles()?,
    };
    params.finish().map(|()| request)
}

/// The request for `/v1/distinct-users`.
pub fn distinct_users(mut params: Params) -> Result<v1::DistinctUsersRequest, Problem> {
    let request = v1::DistinctUsersRequest {
        by: params.text("by"),
        range: params.range()?,
        filter: params.filter(),
    };
    params.finish().map(|()| request)
}

/// The request for `/v1/users/{user_id}/activity`.
pub fn user_activity(
    mut params: Params,
    user_id: String,
) -> Result<v1::UserActivityRequest, Problem> {
    let request = v1::UserActivityRequest {
        user_id,
        page_url: params.text("page_url"),
        event_type: params.text("event_type"),
        limit: params.number("limit")?,
    };
    params.finish().map(|()| request)
}

/// The user and, when it is given, the page of `/analytics/events`.
pub fn user_events(mut params: Params) -> Result<(String, String), Problem> {
    let (user_id, page_url) = (params.required("user_id")?, params.text("page_url"));
    params.finish().map(|()| (user_id, page_url))
}

/// The request for `/v1/live`.
pub fn watch(mut params: Params) -> Result<v1::WatchRequest, Problem> {
    let request = v1::WatchRequest {
        by: params.text("by"),
        interval_ms: params.number("interval_ms")?,
        filter: params.filter(),
    };
    params.finish().map(|()| request)
}

fn duration_s(text: &str) -> Option<u32> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit_s = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(unit_s)
}

fn time_us(text: &str) -> Option<i64> {
    if let Ok(number) = text.parse::<i64>() {
        // Seconds reach the year 5138 with eleven digits; milliseconds and microseconds have more.
        return match number.unsigned_abs() {
            0..100_000_000_000 => number.checked_mul(1_000_000),
            100_000_000_000..100_000_000_000_000 => number.checked_mul(1_000),
            _ => Some(number),
        };
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time.as_microsecond());
    }
    // A time of day without an offset could mean any of 24 hours; only a bare date is taken as UTC.
    let date: Date = (text.len() == "2015-05-17".len()).then(|| text.parse().ok())??;
    Some(
        date.to_zoned(TimeZone::UTC)
            .ok()?
            .timestamp()
            .as_microsecond(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(query: &str) -> Result<Params, Problem> {
        let uri = format!("/v1/series?{query}").parse().expect("a URI");
        Params::read(&uri, 1_700_000_000_000_000)
    }

    #[test]
    fn times_in_all_their_forms() {
        let expected = Some(1_431_820_800_000_000);
        for text in [
            "2015-05-17",
            "2015-05-17T00:00:00Z",
            "2015-05-17T02:00:00+02:00",
            "1431820800",
            "1431820800000",
            "1431820800000000",
        ] {
            assert_eq!(time_us(text), expected, "{text}");
        }
        for text in ["", "yesterday", "2015-13-01", "2015-05-17T00:00:00"] {
            assert_eq!(time_us(text), None, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("10", Some(10)),
            ("10s", Some(10)),
            ("15m", Some(900)),
            ("2h", Some(7_200)),
            ("1d", Some(86_400)),
            ("", None),
            ("m", None),
            ("1w", None),
            ("-5s", None),
            ("99999999999", None),
            ("4294967295d", None),
            ("1.5h", None),
        ] {
            assert_eq!(duration_s(text), expected, "{text}");
        }
    }

    #[test]
    fn every_error_names_its_parameter() {
        for (query, field) in [
            ("step=10s", "from"),
            ("last=15m&from=2015-05-17", "last"),
            ("last=soon", "last"),
            ("from=soon", "from"),
            ("last=15m&step=often", "step"),
            ("last=15m&q=0.5,half", "q"),
            ("last=15m&limit=many", "limit"),
            ("last=15m&last=16m", "last"),
            ("last=15m&colour=red", "colour"),
        ] {
            let problem = params(query).and_then(series).expect_err(query);
            assert_eq!(problem.field.as_deref(), Some(field), "{query}: {problem}");
        }
        assert!(params("last=%ff").and_then(series).is_err());
    }

    #[test]
    fn a_request_is_read_whole() {
        let query = "by=event_type,page_url&from=100&to=200&step=10s&window=1m&q=0.5,0.99&limit=3&filter.page_url=%2F";
        let request = params(query).and_then(series).expect("good");
        assert_eq!(request.by, "event_type,page_url");
        assert_eq!(
            request.range,
            Some(v1::TimeRange {
                from_us: 100_000_000,
                to_us: 200_000_000
            })
        );
        assert_eq!(
            (request.step_s, request.window_s, request.limit),
            (10, 60, 3)
        );
        assert_eq!(request.quantiles, [0.5, 0.99]);
        assert_eq!(
            request.filter.get("page_url").map(String::as_str),
            Some("/")
        );
    }
}
