//! The two doors as a client sees them: where an event is submitted, and where it is asked for.

mod grpc;
mod http;

use reqwest::StatusCode;
use streamgauge_telemetry::TraceContext;
use tonic::Status;

use crate::{CanaryConfig, CanaryError, Query, probe::Probe};

/// A way into the system and out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    /// `POST /v1/events` and `GET /v1/series`.
    Http,
    /// `Submission/SubmitBatch` and `Analytics/Series`.
    Grpc,
}

impl Door {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Http, Self::Grpc];

    /// As a label, and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// Why an event is not through yet. All of it is tried again while there is time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotYet {
    #[error("it was not answered")]
    Http(#[from] reqwest::Error),
    #[error("the answer was HTTP {0}")]
    Status(StatusCode),
    #[error("the answer was {code}: {message}", code = .0.code(), message = .0.message())]
    Grpc(Box<Status>),
    #[error("the producer did not accept it")]
    NotAccepted,
    #[error("no query shows it")]
    NotShown,
}

impl From<Status> for NotYet {
    fn from(status: Status) -> Self {
        Self::Grpc(Box::new(status))
    }
}

/// A client at one door; clones share its connections.
#[derive(Clone, Debug)]
pub(crate) enum Visitor {
    Http(http::Visitor),
    Grpc(Box<grpc::Visitor>),
}

impl Visitor {
    pub(crate) fn new(
        door: Door,
        config: &CanaryConfig,
        query: &Query,
    ) -> Result<Self, CanaryError> {
        Ok(match door {
            Door::Http => Self::Http(http::Visitor::new(config, &query.http)?),
            Door::Grpc => Self::Grpc(Box::new(grpc::Visitor::new(config, &query.grpc)?)),
        })
    }

    /// Submits the event; `Ok` once it is accepted.
    pub(crate) async fn submit(
        &self,
        probe: &Probe,
        trace: Option<TraceContext>,
    ) -> Result<(), NotYet> {
        match self {
            Self::Http(visitor) => visitor.submit(probe, trace).await,
            Self::Grpc(visitor) => visitor.submit(probe, trace).await,
        }
    }

    /// Asks for the event; `Ok` once an answer shows it.
    pub(crate) async fn look_for(&self, probe: &Probe) -> Result<(), NotYet> {
        let shown = match self {
            Self::Http(visitor) => visitor.query(probe).await?,
            Self::Grpc(visitor) => visitor.query(probe).await?,
        };
        match probe.is_in(&shown) {
            true => Ok(()),
            false => Err(NotYet::NotShown),
        }
    }
}
