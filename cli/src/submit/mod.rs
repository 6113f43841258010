//! Handing events to the producer until each has a verdict.
//!
//! A batch is retried with the same ids, only as far as it was not settled, for a bounded time;
//! so a lost acknowledgement never counts an event twice and nothing is given up silently.

mod delivery;
#[cfg(test)]
pub mod fake;
mod grpc;
mod http;

use std::time::Duration;

use clap::Args;
use streamgauge_proto::v1::SubmittedEvent;

pub use delivery::{Delivered, Deliverer, Fate, RetryPolicy};
pub use grpc::GrpcSubmitter;
pub use http::HttpSubmitter;

use crate::{
    endpoints::Endpoints,
    error::{Cause, CliError},
};

/// What the producer said of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The log has it.
    Accepted,
    /// It will never be taken.
    Rejected(Reason),
    /// It may be taken later, with the same id.
    Retry(Reason),
}

/// Why an event or a batch was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reason {
    /// The stable code.
    pub code: String,
    /// The sentence, with the field where one is at fault.
    pub message: String,
}

impl Reason {
    /// A reason; the field is named unless the sentence does.
    pub fn new(code: &str, field: &str, message: &str) -> Self {
        let message = if field.is_empty() || message.contains(field) {
            message.to_owned()
        } else {
            format!("{field}: {message}")
        };
        Self {
            code: code.to_owned(),
            message,
        }
    }
}

/// Why a whole batch got no verdicts.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// Later may be better: rate limited, overloaded, the log is away.
    #[error("the producer asks to wait: {}", reason.message)]
    Later {
        /// Why.
        reason: Reason,
        /// When to come back, if it said so.
        after: Option<Duration>,
    },
    /// It will not be taken, whatever its events are: a credential that is not known, say.
    #[error("the producer refused the batch: {} ({})", reason.message, reason.code)]
    Refused {
        /// Why.
        reason: Reason,
    },
    /// More than one request may hold; a smaller batch may be taken.
    #[error("the batch is too large for one request: {}", reason.message)]
    TooLarge {
        /// Why.
        reason: Reason,
    },
    /// No answer; the batch may or may not be in the log.
    #[error("no answer from the producer")]
    Silent(#[source] Cause),
}

/// Events on their way to the producer together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The events; each has an id.
    pub events: Vec<SubmittedEvent>,
    /// Whether they are exempt from the accepted age.
    pub historical: bool,
}

/// One connection to the producer, over either protocol.
#[derive(Clone, Debug)]
pub enum Submitter {
    /// `POST /v1/events`.
    Http(HttpSubmitter),
    /// `Submission.SubmitBatch`.
    Grpc(GrpcSubmitter),
    /// A producer that a test holds in its hands.
    #[cfg(test)]
    Fake(std::sync::Arc<fake::FakeProducer>),
}

impl Submitter {
    /// Submits events; one verdict each, in order.
    ///
    /// # Errors
    /// [`BatchError`] when there are no verdicts.
    pub async fn submit(
        &self,
        events: &[SubmittedEvent],
        historical: bool,
    ) -> Result<Vec<Verdict>, BatchError> {
        let verdicts = match self {
            Self::Http(http) => http.submit(events, historical).await?,
            Self::Grpc(grpc) => grpc.submit(events, historical).await?,
            #[cfg(test)]
            Self::Fake(fake) => fake.submit(events).await?,
        };
        if verdicts.len() == events.len() {
            return Ok(verdicts);
        }
        let (got, asked) = (verdicts.len(), events.len());
        Err(BatchError::Silent(
            format!("{got} verdicts for {asked} events").into(),
        ))
    }
}

/// How to submit: the flags that `send-events` and `import` share.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "How to submit")]
pub struct SubmitArgs {
    /// Submit over HTTP, as curl would
    #[arg(long, conflicts_with = "grpc")]
    pub http: bool,
    /// Submit over gRPC
    #[arg(long)]
    pub grpc: bool,
    /// Connections that submit at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub connections: u16,
    /// Give an event up when the producer has not taken it for this long
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = crate::times::duration)]
    pub retry_for: Duration,
    /// Wait this long for the answer to one request
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = crate::times::duration)]
    pub request_timeout: Duration,
    /// The credential, where the producer asks for one
    #[arg(
        long,
        value_name = "TOKEN",
        env = "STREAMGAUGE_ENDPOINT_TOKEN",
        hide_env_values = true
    )]
    pub token: Option<String>,
}

/// The protocol in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// gRPC.
    Grpc,
}

impl SubmitArgs {
    /// The protocol asked for, or this one.
    pub const fn protocol(&self, default: Protocol) -> Protocol {
        match (self.http, self.grpc) {
            (true, _) => Protocol::Http,
            (_, true) => Protocol::Grpc,
            _ => default,
        }
    }

    /// As many submitters as connections are asked for, each with its own.
    ///
    /// # Errors
    /// When the address is none.
    pub fn submitters(
        &self,
        endpoints: &Endpoints,
        default: Protocol,
    ) -> Result<Vec<Submitter>, CliError> {
        let token = self.token.as_deref();
        (0..self.connections)
            .map(|_| match self.protocol(default) {
                Protocol::Http => {
                    let address = &endpoints.producer_http;
                    HttpSubmitter::new(address, self.request_timeout, token).map(Submitter::Http)
                }
                Protocol::Grpc => {
                    let address = &endpoints.producer_grpc;
                    GrpcSubmitter::new(address, self.request_timeout, token).map(Submitter::Grpc)
                }
            })
            .collect()
    }

    /// The address in effect.
    pub fn address<'a>(&self, endpoints: &'a Endpoints, default: Protocol) -> &'a str {
        match self.protocol(default) {
            Protocol::Http => &endpoints.producer_http,
            Protocol::Grpc => &endpoints.producer_grpc,
        }
    }
}
