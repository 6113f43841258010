//! The allowances of clients, by credential and by address, and their change while the service runs.
//!
//! Credentials and addresses are counted apart: a flood from addresses nobody has seen before fills the table of
//! addresses, and cannot touch the allowance of a credential.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use streamgauge_resilience::{Allowance, Limited, Rate, RateLimiter, Rates};

use super::settings::RateLimitConfig;
use crate::auth::Client;

/// What an allowance belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Credential,
    Address,
}

impl Scope {
    pub const ALL: [Self; 2] = [Self::Credential, Self::Address];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Credential => "credential",
            Self::Address => "address",
        }
    }
}

/// The allowances that can be changed. All three parts are always named, so that nothing is lifted by leaving it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimits {
    /// Of every credential; of every address where no credentials are asked for.
    pub default: Rate,
    /// Of every address, over all credentials that it sends.
    pub address: Rate,
    /// Of single credentials, by name.
    pub overrides: BTreeMap<String, Rate>,
}

/// The allowances that hold now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InForce {
    pub rate_limits: RateLimits,
    /// How often they were changed since the start.
    pub revision: u64,
    /// When they were changed last, in microseconds since the Unix epoch; absent while they are those of the settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_at_us: Option<i64>,
}

/// The buckets of all clients.
pub struct ClientRates {
    credentials: RateLimiter<usize>,
    addresses: RateLimiter<Option<IpAddr>>,
    names: Vec<String>,
    ipv6_mask: u128,
    in_force: Mutex<InForce>,
}

impl ClientRates {
    pub fn new(config: &RateLimitConfig, names: Vec<String>) -> Self {
        let limits = config.limits();
        let (credentials, addresses) = rates(&limits, &names);
        Self {
            // Credentials are as many as the settings name, so that each has a place.
            credentials: RateLimiter::new(&credentials, names.len()),
            addresses: RateLimiter::new(&addresses, config.max_keys),
            ipv6_mask: u128::MAX
                .checked_shl(128_u32.saturating_sub(config.ipv6_prefix_bits.into()))
                .unwrap_or_default(),
            names,
            in_force: Mutex::new(InForce {
                rate_limits: limits,
                revision: 0,
                changed_at_us: None,
            }),
        }
    }

    pub fn in_force(&self) -> InForce {
        self.in_force.lock().clone()
    }

    /// Puts other allowances in force, or says what is wrong with them.
    pub fn change(&self, limits: RateLimits, now_us: i64) -> Result<InForce, String> {
        check_rates(&limits, &self.names)?;
        let (credentials, addresses) = rates(&limits, &self.names);
        let mut in_force = self.in_force.lock();
        self.credentials.set(&credentials);
        self.addresses.set(&addresses);
        *in_force = InForce {
            rate_limits: limits,
            revision: in_force.revision + 1,
            changed_at_us: Some(now_us),
        };
        Ok(in_force.clone())
    }

    /// Takes so many events from both allowances of a client, or from neither.
    pub fn take(&self, client: &Client, events: u32) -> Result<(), (Scope, Limited)> {
        let address = self.key(client.address);
        self.addresses
            .take(&address, events)
            .map_err(|limited| (Scope::Address, limited))?;
        let Some(credential) = client.credential else {
            return Ok(());
        };
        self.credentials
            .take(&credential, events)
            .map_err(|limited| {
                self.addresses.give_back(&address, events);
                (Scope::Credential, limited)
            })
    }

    /// Gives back what was taken for events that were not published after all.
    pub fn give_back(&self, client: &Client, events: u32) {
        self.addresses.give_back(&self.key(client.address), events);
        if let Some(credential) = client.credential {
            self.credentials.give_back(&credential, events);
        }
    }

    /// How long a client has to wait before anything whatever passes, and for which allowance.
    pub fn exhausted(&self, client: &Client) -> Option<(Scope, std::time::Duration)> {
        let address = self.addresses.exhausted(&self.key(client.address));
        let credential = client
            .credential
            .and_then(|credential| self.credentials.exhausted(&credential));
        [(Scope::Address, address), (Scope::Credential, credential)]
            .into_iter()
            .filter_map(|(scope, wait)| Some((scope, wait?)))
            .max_by_key(|(_, wait)| *wait)
    }

    /// What is left of the allowances that a client has.
    pub fn allowances(&self, client: &Client) -> impl Iterator<Item = (Scope, Allowance)> {
        let credential = client
            .credential
            .and_then(|credential| self.credentials.allowance(&credential));
        let address = self.addresses.allowance(&self.key(client.address));
        [(Scope::Credential, credential), (Scope::Address, address)]
            .into_iter()
            .filter_map(|(scope, allowance)| Some((scope, allowance?)))
    }

    /// The most events that one request of a client can ever hold.
    pub fn burst(&self, client: &Client) -> Option<u32> {
        let address = self.addresses.burst(&self.key(client.address));
        let credential = client
            .credential
            .and_then(|credential| self.credentials.burst(&credential));
        [address, credential].into_iter().flatten().min()
    }

    /// Forgets clients whose allowance is full again.
    pub fn evict(&self) -> usize {
        self.credentials.evict() + self.addresses.evict()
    }

    /// How many clients are remembered.
    pub fn keys(&self, scope: Scope) -> usize {
        match scope {
            Scope::Credential => self.credentials.keys(),
            Scope::Address => self.addresses.keys(),
        }
    }

    fn key(&self, address: Option<IpAddr>) -> Option<IpAddr> {
        address.map(|address| match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & self.ipv6_mask).into(),
        })
    }
}

/// The rates of credentials, and those of addresses.
fn rates(limits: &RateLimits, names: &[String]) -> (Rates<usize>, Rates<Option<IpAddr>>) {
    let overrides = names.iter().enumerate().filter_map(|(place, name)| {
        let rate = limits.overrides.get(name)?;
        Some((place, *rate))
    });
    let credentials = Rates {
        default: limits.default,
        overrides: overrides.collect(),
    };
    let address = if names.is_empty() && !limits.address.is_limited() {
        limits.default
    } else {
        limits.address
    };
    (credentials, address.into())
}

/// Checks what a change, or the settings, ask for.
pub fn check_rates(limits: &RateLimits, names: &[String]) -> Result<(), String> {
    let named = limits.overrides.iter();
    let overrides = named.map(|(name, rate)| (format!("overrides.{name}"), *rate));
    let all = [
        (String::from("default"), limits.default),
        (String::from("address"), limits.address),
    ];
    for (name, rate) in all.into_iter().chain(overrides) {
        if rate.per_second > Rate::PER_SECOND_MAX {
            let max = Rate::PER_SECOND_MAX;
            return Err(format!("{name}: per_second must not be above {max}"));
        }
        if rate.burst > 0 && !rate.is_limited() {
            return Err(format!("{name}: a burst needs a per_second"));
        }
    }
    match limits.overrides.keys().find(|name| !names.contains(name)) {
        Some(name) => Err(format!("overrides: there is no credential {name:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use streamgauge_resilience::Rate;

    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate { per_second, burst }
    }

    fn client(credential: Option<usize>, address: &str) -> Client {
        Client {
            tenant: "".into(),
            credential,
            canary: false,
            address: Some(address.parse().unwrap()),
        }
    }

    fn named(config: &RateLimitConfig) -> ClientRates {
        ClientRates::new(config, vec!["web".to_owned(), "batch".to_owned()])
    }

    #[test]
    fn a_refused_credential_gives_its_addresss_allowance_back() {
        let rates = named(&RateLimitConfig {
            per_second: 1,
            burst: 10,
            address: rate(1, 100),
            ..RateLimitConfig::default()
        });
        let web = client(Some(0), "10.0.0.1");
        rates.take(&web, 10).unwrap();
        for _ in 0..50 {
            assert_eq!(rates.take(&web, 10).unwrap_err().0, Scope::Credential);
        }
        let left: Vec<_> = rates
            .allowances(&web)
            .map(|(scope, allowance)| (scope, allowance.available))
            .collect();
        assert_eq!(left, [(Scope::Credential, 0), (Scope::Address, 90)]);
        assert_eq!(rates.exhausted(&web).unwrap().0, Scope::Credential);
        let batch = client(Some(1), "10.0.0.1");
        rates.take(&batch, 10).unwrap();
        rates.give_back(&batch, 10);
        rates.take(&batch, 10).unwrap();
        assert_eq!(rates.burst(&batch), Some(10));
    }

    #[test]
    fn many_credentials_share_the_allowance_of_their_address() {
        let rates = named(&RateLimitConfig {
            address: rate(1, 10),
            ..RateLimitConfig::default()
        });
        rates.take(&client(Some(0), "10.0.0.1"), 6).unwrap();
        let (scope, _) = rates.take(&client(Some(1), "10.0.0.1"), 6).unwrap_err();
        assert_eq!(scope, Scope::Address);
        rates.take(&client(Some(1), "10.0.0.2"), 6).unwrap();
    }

    #[test]
    fn a_flood_of_addresses_touches_no_credential() {
        let rates = named(&RateLimitConfig {
            per_second: 1,
            burst: 10,
            address: rate(1, 1_000),
            max_keys: 10,
            ..RateLimitConfig::default()
        });
        let web = client(Some(0), "10.0.0.1");
        rates.take(&web, 4).unwrap();
        for n in 0..2_000_u32 {
            let address = IpAddr::V4((0x0b00_0000 + n).into()).to_string();
            let _ = rates.take(&client(Some(1), &address), 1);
        }
        assert_eq!(rates.keys(Scope::Address), 10);
        rates.take(&web, 6).unwrap();
    }

    #[test]
    fn neighbours_in_ipv6_are_one_client() {
        let rates = ClientRates::new(
            &RateLimitConfig {
                per_second: 1,
                burst: 10,
                ..RateLimitConfig::default()
            },
            Vec::new(),
        );
        rates.take(&client(None, "2001:db8::1"), 10).unwrap();
        assert!(rates.take(&client(None, "2001:db8::ffff:2"), 1).is_err());
        rates.take(&client(None, "2001:db8:0:1::1"), 10).unwrap();
        rates.take(&client(None, "10.0.0.1"), 10).unwrap();
        rates.take(&client(None, "10.0.0.2"), 10).unwrap();
    }

    #[test]
    fn a_change_holds_at_once_or_says_what_is_wrong() {
        let rates = named(&RateLimitConfig::default());
        let web = client(Some(0), "10.0.0.1");
        rates.take(&web, 1_000_000).unwrap();
        let limits = RateLimits {
            default: rate(10, 0),
            address: Rate::UNLIMITED,
            overrides: BTreeMap::from([("batch".to_owned(), rate(5, 500))]),
        };
        let in_force = rates.change(limits.clone(), 7).unwrap();
        assert_eq!((in_force.revision, in_force.changed_at_us), (1, Some(7)));
        assert!(rates.take(&web, 11).unwrap_err().1.exceeds_burst);
        rates.take(&client(Some(1), "10.0.0.1"), 500).unwrap();
        for (limits, says) in [
            (
                RateLimits {
                    default: rate(0, 5),
                    ..limits.clone()
                },
                "default: a burst",
            ),
            (
                RateLimits {
                    address: rate(2_000_000_000, 0),
                    ..limits.clone()
                },
                "address: per_second",
            ),
            (
                RateLimits {
                    overrides: BTreeMap::from([("nobody".to_owned(), rate(1, 1))]),
                    ..limits.clone()
                },
                "nobody",
            ),
        ] {
            let error = rates.change(limits, 8).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(rates.in_force(), in_force);
    }
}
