//! `/metrics` on a listener of its own, for those who may read metrics and nothing else: with a password and encrypted,
//! where the settings say so.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use streamgauge_settings::Secret;
use subtle::ConstantTimeEq;
use thiserror::Error;
use tokio::net::TcpListener;

use crate::ops::{Encoder, metrics_router};
use crate::server::{BindError, HttpServerConfig, bind, serve};
use crate::tls::{Tls, TlsConfig, TlsError};
use crate::{Deadline, Unfinished};

/// Where `/metrics` is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExpositionConfig {
    /// Address to serve `/metrics` on, and there alone; none: beside the other routes.
    pub listen: Option<SocketAddr>,
    /// Who may read it, by HTTP's basic authentication; empty: anyone.
    pub username: String,
    /// The password that goes with the name.
    pub password: Secret,
    /// The certificate that encrypts it.
    pub tls: TlsConfig,
}

/// Settings of `/metrics` that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExpositionError {
    #[error(
        "{setting}: a user name, a password or a certificate has an effect only with {setting}.listen; set it, as in 127.0.0.1:9464"
    )]
    NoListener { setting: String },
    #[error("{setting}: username and password go together: set both or neither")]
    HalfCredentials { setting: String },
    #[error("{setting}: the user name may not hold a colon, which ends it in the protocol")]
    Colon { setting: String },
    #[error("{setting}.{source}")]
    Tls { setting: String, source: TlsError },
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// A listener for `/metrics`, bound and with what guards it.
#[derive(Debug)]
pub struct Exposition {
    listener: TcpListener,
    credentials: Option<Credentials>,
    tls: Option<Tls>,
}

impl ExpositionConfig {
    /// Listens where the settings of that name ask for it; none where `/metrics` is not apart.
    pub async fn bind(&self, setting: &str) -> Result<Option<Exposition>, ExpositionError> {
        let name = || setting.to_owned();
        let credentials = match (self.username.is_empty(), self.password.is_empty()) {
            (true, true) => None,
            (false, false) if self.username.contains(':') => {
                return Err(ExpositionError::Colon { setting: name() });
            }
            (false, false) => Some(Credentials::new(&self.username, &self.password)),
            _ => return Err(ExpositionError::HalfCredentials { setting: name() }),
        };
        let Some(address) = self.listen else {
            if credentials.is_some() || self.tls.is_set() {
                return Err(ExpositionError::NoListener { setting: name() });
            }
            return Ok(None);
        };
        let tls = self.tls.open().map_err(|source| ExpositionError::Tls {
            setting: name(),
            source,
        })?;
        Ok(Some(Exposition {
            listener: bind(&format!("{setting}.listen"), address).await?,
            credentials,
            tls,
        }))
    }
}

impl Exposition {
    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the shutdown, then as [`crate::serve_http`] does.
    pub(crate) async fn serve(
        self,
        metrics: Encoder,
        config: HttpServerConfig,
        deadline: Deadline,
    ) -> Result<(), Unfinished> {
        let mut router = metrics_router(metrics);
        if let Some(credentials) = self.credentials {
            let credentials = Arc::new(credentials);
            router = router.layer(middleware::from_fn(move |request: Request, next: Next| {
                let credentials = Arc::clone(&credentials);
                async move {
                    if credentials.are_in(request.headers()) {
                        next.run(request).await
                    } else {
                        unauthorized()
                    }
                }
            }));
        }
        serve(self.listener, self.tls, router, config, deadline).await
    }
}

fn unauthorized() -> Response {
    let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"metrics\"")];
    let text = "send the user name and password that the service's settings hold\n";
    (StatusCode::UNAUTHORIZED, challenge, text).into_response()
}

/// A user name and password as a client sends them (RFC 7617).
struct Credentials {
    encoded: String,
}

impl Credentials {
    fn new(username: &str, password: &Secret) -> Self {
        let encoded = STANDARD.encode(format!("{username}:{}", password.expose()));
        Self { encoded }
    }

    fn are_in(&self, headers: &HeaderMap) -> bool {
        let sent = headers
            .get(header::AUTHORIZATION)
            .and_then(|header| header.to_str().ok()?.split_once(' '));
        sent.is_some_and(|(scheme, sent)| {
            scheme.eq_ignore_ascii_case("basic")
                // How long it takes must not tell how much of it was right.
                && bool::from(sent.trim().as_bytes().ct_eq(self.encoded.as_bytes()))
        })
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}
