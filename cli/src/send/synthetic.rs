//! Made-up events that look like a shop's: few pages and users make most of them, most are views,
//! some are clicks, a few are purchases with an amount. Equal seeds make equal events. Pure.

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;
use streamgauge_proto::v1::SubmittedEvent;
use uuid::{Builder, Variant, Version};

const DEVICES: [&str; 3] = ["phone", "desktop", "tablet"];
const COUNTRIES: [&str; 8] = ["DE", "FR", "GB", "IN", "JP", "BR", "US", "ZA"];

/// How popular the n-th is: one over n to this power, as in real traffic.
const ZIPF_EXPONENT: f64 = 1.1;

#[derive(Serialize)]
struct Properties {
    device: &'static str,
    country: &'static str,
}

/// An endless source of events.
#[derive(Debug)]
pub struct Synthetic {
    rng: StdRng,
    users: Popularity,
    pages: Popularity,
    span_us: i64,
}

impl Synthetic {
    /// Events by so many users on so many pages, with times spread evenly over the span before
    /// they are made.
    pub fn new(seed: u64, users: u32, pages: u32, span_us: i64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            users: Popularity::over(users),
            pages: Popularity::over(pages),
            span_us,
        }
    }

    /// The next event.
    pub fn event(&mut self, now_us: i64) -> SubmittedEvent {
        let id = Builder::from_u128(self.rng.random())
            .with_variant(Variant::RFC4122)
            .with_version(Version::Random)
            .into_uuid();
        let user = self.users.draw(&mut self.rng);
        let page = self.pages.draw(&mut self.rng);
        let (event_type, value) = match self.rng.random_range(0..100) {
            0..70 => ("page_view", None),
            70..95 => ("click", None),
            _ => ("purchase", Some(self.amount())),
        };
        let properties = Properties {
            device: DEVICES[self.rng.random_range(0..DEVICES.len())],
            country: COUNTRIES[self.rng.random_range(0..COUNTRIES.len())],
        };
        let ago_us = if self.span_us > 0 {
            self.rng.random_range(0..self.span_us)
        } else {
            0
        };
        SubmittedEvent {
            event_id: id.hyphenated().to_string(),
            user_id: format!("user-{user}"),
            event_type: event_type.to_owned(),
            occurred_at_us: Some(now_us.saturating_sub(ago_us)),
            page_url: page_url(page),
            session_id: format!("session-{user}-{}", self.rng.random_range(0..4)),
            value,
            properties: serde_json::to_vec(&properties).unwrap_or_default().into(),
        }
    }

    /// A price with two decimals; cheap things sell more.
    fn amount(&mut self) -> f64 {
        let skewed: f64 = self.rng.random::<f64>().powi(3);
        ((5.0 + skewed * 495.0) * 100.0).round() / 100.0
    }
}

fn page_url(rank: usize) -> String {
    match rank {
        0 => String::from("/"),
        1 => String::from("/cart"),
        2 => String::from("/search"),
        other => format!("/products/{other}"),
    }
}

/// Ranks drawn by popularity, from a table of cumulated weights.
#[derive(Debug)]
struct Popularity {
    cumulated: Vec<f64>,
}

impl Popularity {
    fn over(count: u32) -> Self {
        let weights = (1..=count).map(|rank| f64::from(rank).powf(-ZIPF_EXPONENT));
        let cumulated = weights
            .scan(0.0, |sum, weight| {
                *sum += weight;
                Some(*sum)
            })
            .collect();
        Self { cumulated }
    }

    fn draw(&self, rng: &mut StdRng) -> usize {
        let total = self.cumulated.last().copied().unwrap_or(0.0);
        let at = rng.random::<f64>() * total;
        self.cumulated
            .partition_point(|sum| *sum <= at)
            .min(self.cumulated.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn events(seed: u64, count: usize) -> Vec<SubmittedEvent> {
        let mut synthetic = Synthetic::new(seed, 100, 20, 0);
        (0..count).map(|_| synthetic.event(1_000_000)).collect()
    }

    #[test]
    fn equal_seeds_make_equal_events() {
        assert_eq!(events(7, 50), events(7, 50));
        assert_ne!(events(7, 50), events(8, 50));
    }

    #[test]
    fn events_look_like_traffic() {
        let mut pages: HashMap<String, usize> = HashMap::new();
        let mut types: HashMap<String, usize> = HashMap::new();
        for event in events(1, 5000) {
            *pages.entry(event.page_url).or_default() += 1;
            assert_eq!(event.value.is_some(), event.event_type == "purchase");
            assert_eq!(event.occurred_at_us, Some(1_000_000));
            *types.entry(event.event_type).or_default() += 1;
        }
        assert_eq!(types.len(), 3);
        assert!(types["page_view"] > types["click"] && types["click"] > types["purchase"]);
        assert!(pages.len() <= 20);
        assert!(pages["/"] > 3 * pages["/products/10"], "{pages:?}");
    }

    #[test]
    fn times_spread_over_the_span() {
        let mut synthetic = Synthetic::new(1, 1, 1, 1000);
        for _ in 0..100 {
            let at = synthetic.event(1_000_000).occurred_at_us.expect("a time");
            assert!((999_000..=1_000_000).contains(&at), "{at}");
        }
    }
}
