//! What several targets hold of the same code.

use streamgauge_producer::event::validate::{self, Rules};
use streamgauge_producer::event::{EventLimits, Shape, decode};

/// When the bytes are taken to have come in: November 2023.
const NOW_US: i64 = 1_700_000_000_000_000;

/// Events as a client may submit them: whatever passes decoding and validation keeps the rules.
pub fn submitted(bytes: &[u8], format: decode::Format) {
    let limits = EventLimits::default();
    for shape in [Shape::EVENT, Shape::ACTIVITY] {
        let rules = Rules {
            limits: &limits,
            shape,
            now_us: NOW_US,
        };
        let mut events = 0;
        let decoded = decode::decode(bytes, format, shape, &limits, |event| {
            events += 1;
            let Ok(draft) = event else { return };
            let (value, properties) = (draft.value, draft.properties.unwrap_or("{}"));
            if validate::validate(draft, &rules).is_ok() {
                assert!(value.is_none_or(f64::is_finite));
                assert!(properties.len() <= limits.properties_bytes_max);
            }
        });
        assert!(events <= limits.batch_events_max);
        assert!(decoded.is_err() || events > 0);
    }
}
