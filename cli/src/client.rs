//! The connection to analytics, and what its refusals mean to a command.

use std::time::Duration;

use streamgauge_proto::v1::analytics_client::AnalyticsClient;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

use crate::error::CliError;

const SERVICE: &str = "analytics";

/// Most bytes of one answer: a year of points of many keys.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// A client of analytics, with the address for its errors.
#[derive(Clone, Debug)]
pub struct Analytics {
    /// The calls.
    pub calls: AnalyticsClient<Channel>,
    address: String,
}

impl Analytics {
    /// Connects.
    ///
    /// # Errors
    /// When nobody answers there.
    pub async fn connect(address: &str, timeout: Duration) -> Result<Self, CliError> {
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| CliError::usage(format!("`{address}` is no address: write HOST:PORT")))?
            .connect_timeout(timeout)
            .timeout(timeout)
            .connect()
            .await
            .map_err(|error| CliError::unreachable(SERVICE, address, error))?;
        let calls = AnalyticsClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Self {
            calls,
            address: address.to_owned(),
        })
    }

    /// What a refused call means.
    pub fn refused(&self, status: Status) -> CliError {
        match status.code() {
            Code::InvalidArgument
            | Code::NotFound
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition => CliError::Refused {
                service: SERVICE,
                message: sentence(&status),
            },
            _ => CliError::unreachable(SERVICE, &self.address, status_cause(status)),
        }
    }
}

/// The server's sentence, with the field at fault where it names one.
pub(crate) fn sentence(status: &Status) -> String {
    let details = status.get_error_details();
    let field = details
        .bad_request()
        .and_then(|bad| bad.field_violations.first())
        .map(|violation| violation.field.clone())
        .unwrap_or_default();
    if field.is_empty() || status.message().contains(&field) {
        status.message().to_owned()
    } else {
        format!("{field}: {}", status.message())
    }
}

/// A status prints its metadata, which nobody wants to read.
pub(crate) fn status_cause(status: Status) -> Box<dyn std::error::Error + Send + Sync> {
    format!("{}: {}", status.code().description(), status.message()).into()
}
