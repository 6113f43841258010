//! The `RateLimit` and `RateLimit-Policy` fields of draft-ietf-httpapi-ratelimit-headers-11, written as structured
//! fields (RFC 9651).
//!
//! A policy names its scope. `q` events come in within `w` seconds, which is the time in which an empty bucket fills,
//! in whole seconds; what may be taken at once stands beside it as a parameter of our own. The unit, events, is not
//! in the draft's registry of units; it is named all the same, since without it the figures would mean requests.
//!
//! `r` is what may be taken now. `t` is after how many seconds waiting has paid off: until the whole burst is there
//! again, or until the time of `Retry-After` on an answer that has one, for the draft asks that the one not be before
//! the other.

use std::fmt::Write;

use streamgauge_resilience::Allowance;

use super::rates::Scope;

/// The values of the two fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    pub policy: String,
    pub limit: String,
}

impl Fields {
    pub const POLICY: &'static str = "ratelimit-policy";
    pub const LIMIT: &'static str = "ratelimit";

    /// None for a client without limits.
    pub fn new(
        allowances: impl Iterator<Item = (Scope, Allowance)>,
        retry_after_s: Option<u64>,
    ) -> Option<Self> {
        let mut fields = Self {
            policy: String::new(),
            limit: String::new(),
        };
        for (scope, allowance) in allowances {
            fields.add(scope, &allowance, retry_after_s);
        }
        (!fields.policy.is_empty()).then_some(fields)
    }

    fn add(&mut self, scope: Scope, allowance: &Allowance, retry_after_s: Option<u64>) {
        let (name, rate) = (scope.as_str(), allowance.rate);
        let (per_second, burst) = (u64::from(rate.per_second), u64::from(rate.capacity()));
        let window_s = burst.div_ceil(per_second.max(1)).max(1);
        let quota = per_second * window_s;
        let full_s = allowance.full_in.as_nanos().div_ceil(1_000_000_000);
        let wait_s = u64::try_from(full_s).unwrap_or(u64::MAX);
        let wait_s = retry_after_s.map_or(wait_s, |retry| retry.min(wait_s));
        let available = allowance.available;
        let separator = if self.policy.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(
            self.policy,
            "{separator}\"{name}\";q={quota};w={window_s};qu=\"events\";streamgauge-burst={burst}"
        );
        let _ = write!(self.limit, "{separator}\"{name}\";r={available};t={wait_s}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use streamgauge_resilience::Rate;

    use super::*;

    fn allowance(per_second: u32, burst: u32, available: u32, full_in_ms: u64) -> Allowance {
        Allowance {
            rate: Rate { per_second, burst },
            available,
            full_in: Duration::from_millis(full_in_ms),
        }
    }

    #[test]
    fn they_say_what_holds() {
        let fields = |allowance, retry| {
            let fields = Fields::new([(Scope::Credential, allowance)].into_iter(), retry).unwrap();
            (fields.policy, fields.limit)
        };
        for (allowance, retry, policy, limit) in [
            (allowance(10, 20, 20, 0), None, "q=20;w=2", "r=20;t=0"),
            (allowance(10, 20, 19, 100), None, "q=20;w=2", "r=19;t=1"),
            (allowance(10, 20, 0, 2_000), Some(1), "q=20;w=2", "r=0;t=1"),
            (allowance(10, 20, 4, 1_600), Some(5), "q=20;w=2", "r=4;t=2"),
            (allowance(10, 25, 0, 2_500), None, "q=30;w=3", "r=0;t=3"),
            (allowance(100, 10, 10, 0), None, "q=100;w=1", "r=10;t=0"),
            (allowance(100, 0, 99, 10), None, "q=100;w=1", "r=99;t=1"),
        ] {
            let (written_policy, written_limit) = fields(allowance, retry);
            let burst = allowance.rate.capacity();
            assert_eq!(
                written_policy,
                format!("\"credential\";{policy};qu=\"events\";streamgauge-burst={burst}")
            );
            assert_eq!(written_limit, format!("\"credential\";{limit}"));
        }
    }

    #[test]
    fn each_scope_is_an_item_and_none_is_no_field() {
        let both = [
            (Scope::Credential, allowance(1, 2, 2, 0)),
            (Scope::Address, allowance(3, 4, 4, 0)),
        ];
        let fields = Fields::new(both.into_iter(), None).unwrap();
        assert_eq!(fields.limit, r#""credential";r=2;t=0, "address";r=4;t=0"#);
        assert_eq!(Fields::new(std::iter::empty(), None), None);
    }
}
