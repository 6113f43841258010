//! Only in builds with the feature `mutations`, which no product has: switches the recognition of duplicates off, so that the fault harness
//! can prove that it would notice.

use std::sync::atomic::{AtomicBool, Ordering};

static OFF: AtomicBool = AtomicBool::new(false);

/// Switches the recognition of duplicates off for the rest of the process's life.
pub fn switch_off() {
    OFF.store(true, Ordering::Relaxed);
}

/// Whether it is off.
pub(crate) fn is_off() -> bool {
    OFF.load(Ordering::Relaxed)
}
