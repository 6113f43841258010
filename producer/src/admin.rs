//! Who may change limits while the service runs, and what they are answered; over HTTP and gRPC alike.
//!
//! With a token, whoever has it. Without one, only clients on this machine: the connection comes from a loopback
//! address, nothing says that it was handed on by a proxy, and a browser that was led here under another host's name is
//! turned away.

use std::net::IpAddr;

use http::{HeaderMap, header};
use serde::Serialize;
use streamgauge_proto::{ErrorCode, Problem};
use streamgauge_settings::Secret;
use subtle::ConstantTimeEq;

use crate::admission::Admission;
use crate::admission::rates::{InForce, RateLimits, Scope};
use crate::admission::settings::AdminConfig;
use crate::auth::bearer;

/// What proxies add to a request that they hand on.
const HANDED_ON: [&str; 4] = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];

/// Lets those in that may change limits.
pub struct AdminGate {
    token: Secret,
}

impl AdminGate {
    pub fn new(config: &AdminConfig) -> Self {
        Self {
            token: config.token.clone(),
        }
    }

    /// Says who asks, for the log.
    pub fn admit(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Result<String, Problem> {
        if self.token.is_empty() {
            return admit_local(peer, headers);
        }
        let authorization = headers.get(header::AUTHORIZATION);
        let token = authorization.and_then(|value| bearer(value.as_bytes()));
        let expected = self.token.expose().as_bytes();
        // How long it takes must not tell how much of it was right.
        if token.is_some_and(|token| token.as_bytes().ct_eq(expected).into()) {
            return Ok(match peer {
                Some(peer) => format!("the admin token from {peer}"),
                None => String::from("the admin token"),
            });
        }
        let message = "send the admin token as `Authorization: Bearer TOKEN`";
        Err(Problem::new(ErrorCode::Unauthenticated, message))
    }
}

fn admit_local(peer: Option<IpAddr>, headers: &HeaderMap) -> Result<String, Problem> {
    let refuse = |message: &str| Err(Problem::new(ErrorCode::PermissionDenied, message));
    let Some(peer) = peer.map(|peer| peer.to_canonical()) else {
        return refuse("where the request comes from is not known; set admin.token");
    };
    if !peer.is_loopback() || HANDED_ON.iter().any(|name| headers.contains_key(*name)) {
        return refuse("without admin.token only clients on this machine may do this");
    }
    let host = headers.get(header::HOST).map(|host| host.as_bytes());
    if host.is_some_and(|host| !names_this_machine(host)) {
        return refuse("without admin.token the host must be localhost or a loopback address");
    }
    Ok(peer.to_string())
}

/// Whether a `Host` is one that only this machine has.
fn names_this_machine(host: &[u8]) -> bool {
    let Ok(authority) = std::str::from_utf8(host)
        .unwrap_or_default()
        .parse::<http::uri::Authority>()
    else {
        return false;
    };
    let name = authority.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// The answer to both questions and changes.
#[derive(Clone, Debug, Serialize)]
pub struct RateLimitsAnswer {
    #[serde(flatten)]
    pub in_force: InForce,
    pub keys: Keys,
}

/// Clients that are remembered.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Keys {
    pub credential: usize,
    pub address: usize,
}

fn answer(admission: &Admission, in_force: InForce) -> RateLimitsAnswer {
    RateLimitsAnswer {
        in_force,
        keys: Keys {
            credential: admission.remembered(Scope::Credential),
            address: admission.remembered(Scope::Address),
        },
    }
}

/// What holds now.
pub fn show(admission: &Admission) -> RateLimitsAnswer {
    answer(admission, admission.rate_limits())
}

/// Changes what holds, and says what holds then.
pub fn change(
    admission: &Admission,
    limits: RateLimits,
    by: &str,
) -> Result<RateLimitsAnswer, Problem> {
    let in_force = admission.change_rate_limits(limits, by)?;
    Ok(answer(admission, in_force))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn code(
        token: &str,
        peer: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Option<ErrorCode> {
        let gate = AdminGate {
            token: Secret::from(token),
        };
        let headers = headers.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        let headers: HeaderMap = headers.collect();
        let admitted = gate.admit(peer.parse().ok(), &headers);
        admitted.err().map(|problem| problem.code)
    }

    #[test]
    fn without_a_token_only_this_machine_may() {
        let denied = Some(ErrorCode::PermissionDenied);
        for (peer, headers, expected) in [
            ("127.0.0.1", &[][..], None),
            ("::1", &[("host", "localhost:8081")], None),
            ("::ffff:127.0.0.1", &[("host", "127.0.0.1:8081")], None),
            ("127.0.0.1", &[("host", "[::1]:8081")], None),
            ("10.0.0.1", &[], denied),
            ("", &[], denied),
            ("127.0.0.1", &[("x-forwarded-for", "127.0.0.1")], denied),
            ("127.0.0.1", &[("forwarded", "for=10.0.0.1")], denied),
            ("127.0.0.1", &[("host", "evil.example:8081")], denied),
            ("127.0.0.1", &[("host", "127.0.0.1.evil.example")], denied),
        ] {
            assert_eq!(code("", peer, headers), expected, "{peer} {headers:?}");
        }
    }

    #[test]
    fn with_a_token_whoever_has_it_may() {
        let unauthenticated = Some(ErrorCode::Unauthenticated);
        for (peer, headers, expected) in [
            ("10.0.0.1", &[("authorization", "Bearer secret")][..], None),
            ("127.0.0.1", &[], unauthenticated),
            (
                "127.0.0.1",
                &[("authorization", "Bearer secre")],
                unauthenticated,
            ),
            (
                "127.0.0.1",
                &[("authorization", "Bearer secrets")],
                unauthenticated,
            ),
            (
                "127.0.0.1",
                &[("authorization", "Basic secret")],
                unauthenticated,
            ),
        ] {
            assert_eq!(code("secret", peer, headers), expected, "{headers:?}");
        }
    }
}
