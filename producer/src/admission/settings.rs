//! The settings of who is let in, and their rules.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};
use streamgauge_resilience::{ConcurrencyConfig, Rate};
use streamgauge_settings::Secret;

use super::rates::{RateLimits, check_rates};
use crate::client_address::network;
use crate::config::AuthConfig;
use crate::error::ConfigError;

/// The allowances of clients, in events. They can be changed while the service runs, over its admin API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimitConfig {
    /// Events that a credential may send each second, or an address where no credentials are asked for; 0 lifts the
    /// limit.
    pub per_second: u32,
    /// Events it may send at once; 0 stands for those of one second.
    pub burst: u32,
    /// The allowance of an address, over all credentials that it sends; `per_second = 0` for none beside the above.
    pub address: Rate,
    /// Credentials with an allowance of their own, by their names.
    pub overrides: BTreeMap<String, Rate>,
    /// Addresses of IPv6 that agree in so many bits are one client: whoever has one of them has all of them.
    pub ipv6_prefix_bits: u8,
    /// Addresses that are told apart; those beyond share one allowance.
    pub max_keys: usize,
    /// How often addresses whose allowance is full again are forgotten, in seconds.
    pub evict_interval_s: u64,
}

impl Default for RateLimitConfig {
    fn default() -> Self {
        Self {
            per_second: 0,
            burst: 0,
            address: Rate::UNLIMITED,
            overrides: BTreeMap::new(),
            ipv6_prefix_bits: 64,
            max_keys: 100_000,
            evict_interval_s: 60,
        }
    }
}

impl RateLimitConfig {
    /// The part that can be changed later.
    pub fn limits(&self) -> RateLimits {
        RateLimits {
            default: Rate {
                per_second: self.per_second,
                burst: self.burst,
            },
            address: self.address,
            overrides: self.overrides.clone(),
        }
    }
}

/// When load is shed, by what is in flight and how long Kafka takes for it. Work is counted in units: a request is
/// `request_units` and one more for each event, or for each `unit_bytes` of its events if these are more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdmissionConfig {
    /// Off, only `limits.in_flight_events_max` and `limits.in_flight_bytes_max` hold.
    pub enabled: bool,
    /// What a request costs beside its events, in units. One of a single event takes about as much of the processor as
    /// a dozen events more in a batch.
    pub request_units: u32,
    /// Bytes of events, as they are written to Kafka, that count as one event.
    pub unit_bytes: u32,
    /// The largest request that counts as small, in units.
    pub small_units_max: u32,
    /// The share of the limit that is kept for small requests.
    pub small_reserve_share: f64,
    /// The share of the limit that is kept for the credentials marked `canary`.
    pub canary_reserve_share: f64,
    /// How full the local queue to Kafka may be (of `publisher.queue_messages_max`).
    pub queue_share_max: f64,
    /// How long a look at that queue is good for, in milliseconds.
    pub queue_sample_ms: u64,
    /// How long a client is kept waiting for a refusal that costs nothing to wait with, in milliseconds: one that comes
    /// back at once, as a flood does, would otherwise take the processor from those who are let in. 0: not at all.
    pub refusal_delay_ms: u64,
    /// Most refusals that are kept waiting; those beyond are given at once.
    pub refusals_delayed_max: usize,
    /// How the limit is found.
    pub limit: ConcurrencyConfig,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            request_units: 12,
            unit_bytes: 1_024,
            small_units_max: 32,
            small_reserve_share: 0.1,
            canary_reserve_share: 0.05,
            queue_share_max: 0.9,
            queue_sample_ms: 10,
            refusal_delay_ms: 50,
            refusals_delayed_max: 4_096,
            limit: ConcurrencyConfig::default(),
        }
    }
}

/// Which header tells the address of a client that came by way of a proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressHeader {
    /// What most proxies write.
    #[default]
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// The proxies before the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// Addresses and networks whose word is taken for where a request came from; without any, nobody's is.
    pub trusted: Vec<String>,
    /// The header that they write. The other one is what clients claim, and is not read.
    pub address_header: AddressHeader,
}

/// Who may change limits while the service runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Sent as `Authorization: Bearer TOKEN`. Without one, only clients on this machine may.
    pub token: Secret,
    /// Largest request, in bytes.
    pub body_bytes_max: usize,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            token: Secret::default(),
            body_bytes_max: 1024 * 1024,
        }
    }
}

/// What credentials are called: by their names, or by their place, from 1.
pub fn credential_names(auth: &AuthConfig) -> Vec<String> {
    let names = auth.tokens.iter().enumerate();
    names
        .map(|(place, token)| match token.name.as_str() {
            "" => format!("credential-{}", place + 1),
            name => name.to_owned(),
        })
        .collect()
}

/// Checks what no single setting can tell about itself.
pub fn check(
    rate_limit: &RateLimitConfig,
    admission: &AdmissionConfig,
    proxies: &ProxyConfig,
    admin: &AdminConfig,
    auth: &AuthConfig,
) -> Result<(), ConfigError> {
    let names = credential_names(auth);
    let limits = rate_limit.limits();
    if let Err(rule) = check_rates(&limits, &names) {
        let setting = "rate_limit";
        return Err(ConfigError { setting, rule });
    }
    let limit = &admission.limit;
    let is_share = |share: f64| (0.0..1.0).contains(&share);
    let rules = [
        (
            names.iter().collect::<HashSet<_>>().len() == names.len(),
            "auth.tokens",
            "two credentials must not have the same name",
        ),
        (
            (1..=128).contains(&rate_limit.ipv6_prefix_bits),
            "rate_limit.ipv6_prefix_bits",
            "it must be from 1 to 128",
        ),
        (
            limit.units_min >= 1 && limit.units_min <= limit.units_max,
            "admission.limit.units_min",
            "it must be at least 1 and not above admission.limit.units_max",
        ),
        (
            limit.latency_tolerance >= 1.0,
            "admission.limit.latency_tolerance",
            "it must be at least 1",
        ),
        (
            is_share(admission.small_reserve_share)
                && is_share(admission.canary_reserve_share)
                && is_share(admission.small_reserve_share + admission.canary_reserve_share),
            "admission.small_reserve_share",
            "it must be from 0 to below 1, as must be its sum with admission.canary_reserve_share",
        ),
        (
            admission.queue_share_max > 0.0 && admission.queue_share_max <= 1.0,
            "admission.queue_share_max",
            "it must be above 0 and not above 1",
        ),
        (
            admission.unit_bytes > 0,
            "admission.unit_bytes",
            "it must be at least 1",
        ),
        (
            proxies.trusted.iter().all(|text| network(text).is_some()),
            "proxies.trusted",
            "each must be an address or a network such as 10.0.0.0/8",
        ),
        (
            admin.token.is_empty() || auth.tokens.iter().all(|token| token.token != admin.token),
            "admin.token",
            "it must not be a credential for submissions as well",
        ),
    ];
    match rules.into_iter().find(|(kept, ..)| !kept) {
        Some((_, setting, rule)) => Err(ConfigError {
            setting,
            rule: rule.to_owned(),
        }),
        None => Ok(()),
    }
}
