//! Measures what the producer itself does with a body of 100 events, without network and log: decode, validate,
//! encode. For profiles: `cargo run --release -p streamgauge-producer --example producer_hot_path`.

use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

use streamgauge_producer::event::decode::{Format, decode};
use streamgauge_producer::event::encode::RandomIds;
use streamgauge_producer::event::validate::{Rules, validate};
use streamgauge_producer::event::{Batch, EventLimits, Ids, Shape, Stamp};

const EVENTS: usize = 100;
const ROUNDS: usize = 20_000;
const NOW_US: i64 = 1_763_724_600_000_000;

fn body() -> Vec<u8> {
    let event = |index: usize| {
        format!(
            r#"{{"event_id":"018f9c1e-{index:04x}-7abc-8def-0123456789ab","user_id":"user-{index}","event_type":"click","page_url":"/products/{index}","occurred_at":"2025-11-21T11:29:59.123Z","value":12.5,"properties":{{"ref":"mail"}}}}"#
        )
    };
    format!("[{}]", (0..EVENTS).map(event).collect::<Vec<_>>().join(",")).into_bytes()
}

fn process(body: &[u8], limits: &EventLimits) -> Batch {
    let rules = Rules {
        limits,
        shape: Shape::EVENT,
        now_us: NOW_US,
    };
    let ids = Ids::Random(RandomIds::new(NOW_US));
    let stamp = Stamp {
        tenant: "",
        historical: false,
        ids,
    };
    let mut batch = Batch::new(NOW_US, body.len());
    let summary = decode(body, Format::Json, Shape::EVENT, limits, |draft| {
        batch.push(draft.and_then(|draft| validate(draft, &rules)), &stamp);
    });
    black_box(summary.is_ok());
    batch
}

fn main() -> std::io::Result<()> {
    let (body, limits) = (body(), EventLimits::default());
    assert_eq!(process(&body, &limits).ready(), EVENTS);
    let watch = Instant::now();
    for _ in 0..ROUNDS {
        black_box(process(black_box(&body), &limits));
    }
    let per_event = watch.elapsed().as_nanos() as f64 / (ROUNDS * EVENTS) as f64;
    let bytes = body.len() / EVENTS;
    writeln!(
        std::io::stdout(),
        "{per_event:.0} ns per event of {bytes} bytes: decode, validate, encode"
    )
}
