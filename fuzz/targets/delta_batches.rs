//! What may lie on `metrics-data`: batches, which must add up, and their sketches.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streamgauge_chain::{
    Ledger,
    delta,
    sketch::{Quantiles, Users},
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(batch) = delta::decode(bytes) {
        let range = delta::range(&batch).expect("a decoded batch has a range");
        let mut ledger = Ledger::starting_at(range.from());
        ledger.offer(range, delta::outcomes(&batch));
        assert_eq!(ledger.imbalance(), 0);
    }
    if let Ok(users) = Users::from_bytes(bytes) {
        assert!(users.estimate() >= 0.0);
    }
    if let Ok(quantiles) = Quantiles::from_bytes(bytes) {
        let _ = quantiles.at(&[0.5, 0.99]);
    }
});
