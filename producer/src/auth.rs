//! Who a client is: its tenant, and the credential and address under which its allowances are counted.
//!
//! The tenant of an event comes from here alone, never from what a client says in an event. Tokens are looked up by
//! a keyed hash, and no error or log line ever holds one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use streamgauge_proto::{ErrorCode, Problem};

use crate::config::AuthConfig;

/// A client that may submit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub tenant: Arc<str>,
    /// The place of its credential among those of the settings, where credentials are asked for.
    pub credential: Option<usize>,
    /// Its requests keep a place when load is shed.
    pub canary: bool,
    pub address: Option<IpAddr>,
}

/// The credentials. Clones share them.
#[derive(Clone)]
pub struct Auth {
    default_tenant: Arc<str>,
    tokens: Arc<HashMap<String, Known>>,
}

struct Known {
    place: usize,
    tenant: Arc<str>,
    suspended: bool,
    canary: bool,
}

impl Auth {
    pub fn new(config: &AuthConfig) -> Self {
        let tokens = config.tokens.iter().enumerate().map(|(place, token)| {
            let known = Known {
                place,
                tenant: Arc::from(token.tenant.as_str()),
                suspended: token.suspended,
                canary: token.canary,
            };
            (token.token.expose().to_owned(), known)
        });
        Self {
            default_tenant: Arc::from(""),
            tokens: Arc::new(tokens.collect()),
        }
    }

    /// The client that sent this `Authorization` header from this address.
    pub fn client(
        &self,
        authorization: Option<&[u8]>,
        address: Option<IpAddr>,
    ) -> Result<Client, Problem> {
        if self.tokens.is_empty() {
            let tenant = self.default_tenant.clone();
            return Ok(Client {
                tenant,
                credential: None,
                canary: false,
                address,
            });
        }
        let token = authorization.and_then(bearer).ok_or_else(|| {
            let message = "send a credential as `Authorization: Bearer TOKEN`";
            Problem::new(ErrorCode::Unauthenticated, message)
        })?;
        match self.tokens.get(token) {
            None => Err(Problem::new(
                ErrorCode::Unauthenticated,
                "the credential is not known here",
            )),
            Some(known) if known.suspended => Err(Problem::new(
                ErrorCode::PermissionDenied,
                "the credential is suspended",
            )),
            Some(known) => Ok(Client {
                tenant: known.tenant.clone(),
                credential: Some(known.place),
                canary: known.canary,
                address,
            }),
        }
    }
}

/// The token of a header.
pub fn bearer(header: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(header).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use streamgauge_settings::Secret;

    use super::*;
    use crate::config::TokenConfig;

    fn auth() -> Auth {
        let token = |token: &str, tenant: &str, suspended| TokenConfig {
            token: Secret::from(token),
            tenant: tenant.to_owned(),
            suspended,
            ..TokenConfig::default()
        };
        Auth::new(&AuthConfig {
            tokens: vec![token("good", "acme", false), token("old", "acme", true)],
        })
    }

    #[test]
    fn a_known_token_gives_its_tenant() {
        for header in ["Bearer good", "bearer good", "BEARER  good "] {
            let client = auth().client(Some(header.as_bytes()), None).unwrap();
            assert_eq!((&*client.tenant, client.credential), ("acme", Some(0)));
        }
    }

    #[test]
    fn anything_else_is_refused_without_an_echo() {
        for (header, code) in [
            (None, ErrorCode::Unauthenticated),
            (Some("good"), ErrorCode::Unauthenticated),
            (Some("Basic good"), ErrorCode::Unauthenticated),
            (Some("Bearer "), ErrorCode::Unauthenticated),
            (Some("Bearer hunter2"), ErrorCode::Unauthenticated),
            (Some("Bearer old"), ErrorCode::PermissionDenied),
        ] {
            let problem = auth().client(header.map(str::as_bytes), None).unwrap_err();
            assert_eq!(problem.code, code, "{header:?}");
            assert!(!problem.message.contains("hunter2"));
        }
        assert!(auth().client(Some(b"Bearer \xff"), None).is_err());
    }

    #[test]
    fn without_tokens_everybody_is_told_by_address() {
        let auth = Auth::new(&AuthConfig::default());
        let address = Some(IpAddr::from([127, 0, 0, 1]));
        let client = auth.client(Some(b"Bearer whatever"), address).unwrap();
        assert_eq!(
            (&*client.tenant, client.credential, client.address),
            ("", None, address)
        );
    }
}
