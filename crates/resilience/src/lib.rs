//! What keeps one slow or greedy party from taking the others down: rate limits per client, an adaptive limit on what is
//! in flight, circuit breakers per dependency, and retries that back off. The crates behind it (governor, failsafe) are
//! named here and nowhere else, so the services only ever see the types below. Nothing here logs or records metrics;
//! callers do, at their edge.

mod backoff;
mod breaker;
mod concurrency;
mod limiter;

pub use backoff::{Backoff, BackoffConfig, retry};
pub use breaker::{
    Breaker, BreakerConfig, BreakerError, BreakerObserver, BreakerState, Open, Permit,
};
pub use concurrency::{ConcurrencyConfig, ConcurrencyLimit, Sample};
pub use limiter::{Allowance, Limited, Rate, RateLimiter, Rates};
