//! What the limiter takes for each client, counted by the allocator. A program of its own, so that nothing else counts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use streamgauge_resilience::{Rate, RateLimiter};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn take(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What docs/configuration.md states.
const BYTES_PER_KEY_MAX: usize = 80;
const PEAK_BYTES_PER_KEY_MAX: usize = 130;

#[test]
fn a_hundred_thousand_clients_take_what_is_stated_and_no_more_ever() {
    const KEYS: usize = 100_000;
    let address = |n: usize| IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | (n as u128) << 64));
    let rate = |per_second| Rate {
        per_second,
        burst: 1_000,
    };
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let limiter: RateLimiter<IpAddr> = RateLimiter::new(&rate(1).into(), KEYS);
    for n in 0..KEYS {
        limiter.take(&address(n), 1_000).unwrap();
    }
    assert_eq!(limiter.keys(), KEYS);
    let held = HELD.load(Ordering::Relaxed) - before;
    let peak = PEAK.load(Ordering::Relaxed) - before;
    println!("{} bytes per key, {} at the peak", held / KEYS, peak / KEYS);
    assert!(held <= BYTES_PER_KEY_MAX * KEYS, "{held}");
    assert!(peak <= PEAK_BYTES_PER_KEY_MAX * KEYS, "{peak}");

    // Ten times as many more find no place of their own, and cost nothing.
    for n in KEYS..11 * KEYS {
        let _ = limiter.take(&address(n), 1);
    }
    assert_eq!(limiter.keys(), KEYS);
    let after = HELD.load(Ordering::Relaxed) - before;
    // The test's own output is kept in memory as well.
    assert!(after.abs_diff(held) < 64 * 1024, "{after}, {held}");

    // A change holds both tables for a moment, and one of them afterwards.
    limiter.set(&rate(2).into());
    assert_eq!(limiter.keys(), KEYS);
    let held = HELD.load(Ordering::Relaxed) - before;
    assert!(held <= BYTES_PER_KEY_MAX * KEYS, "{held}");
}
