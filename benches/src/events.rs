//! Synthetic events of about 200 bytes, skewed as real traffic is.

use prost::Message;
use rand::{Rng, SeedableRng, rngs::StdRng};
use streamgauge_proto::v1::Event;

/// Draws events; the same seed draws the same ones.
pub struct Events {
    random: StdRng,
    users: u32,
    pages: u32,
    number: u64,
}

impl Events {
    /// Events of so many users on so many pages.
    pub fn new(seed: u64, users: u32, pages: u32) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            users,
            pages,
            number: 0,
        }
    }

    /// A number below `bound`, small ones more often: the product of two uniform draws.
    fn skewed(&mut self, bound: u32) -> u32 {
        let (one, other) = (self.random.random::<f64>(), self.random.random::<f64>());
        ((one * other * f64::from(bound)) as u32).min(bound - 1)
    }

    fn event_type(&mut self) -> &'static str {
        ["page_view", "page_view", "page_view", "click", "purchase"][self.random.random_range(0..5)]
    }

    /// An event as a client submits it over HTTP.
    pub fn json(&mut self) -> String {
        let (user, page) = (
            self.random.random_range(0..self.users),
            self.skewed(self.pages),
        );
        let event_type = self.event_type();
        let value = self.random.random_range(1..10_000);
        format!(
            "{{\"user_id\":\"user-{user:06}\",\"event_type\":\"{event_type}\",\"page_url\":\"/shop/category/page-{page:04}\",\
             \"session_id\":\"session-{user:06}\",\"value\":{value},\"properties\":{{\"plan\":\"standard\",\"referrer\":\"search\"}}}}"
        )
    }

    /// An event as it lies on the log: 1% repeat an id, times are up to 500 ms out of order.
    pub fn record(&mut self, now_us: i64) -> (String, Vec<u8>) {
        if !self.random.random_ratio(1, 100) {
            self.number += 1;
        }
        // The id decides the user, so that a repeated id is a repeated event.
        let user = (self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u32 % self.users;
        let page = self.skewed(self.pages);
        let event = Event {
            event_id: format!("{:032x}", self.number),
            user_id: format!("user-{user:06}"),
            event_type: self.event_type().to_owned(),
            occurred_at_us: now_us - self.random.random_range(0..500_000),
            received_at_us: now_us,
            page_url: format!("/shop/category/page-{page:04}"),
            session_id: format!("session-{user:06}"),
            value: Some(f64::from(self.random.random_range(1..10_000))),
            properties: b"{\"plan\":\"standard\",\"referrer\":\"search\"}"
                .as_slice()
                .into(),
            ..Event::default()
        };
        (event.user_id.clone(), event.encode_to_vec())
    }
}
