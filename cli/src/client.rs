//! How commands reach a service over gRPC, the connection to analytics, and what its refusals mean to a command.

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

/// Where a service is, and how long connecting and each call may take.
///
/// # Errors
/// When the address is none.
pub(crate) fn endpoint(address: &str, timeout: Duration) -> Result<Endpoint, CliError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| CliError::usage(format!("`{address}` is no address: write HOST:PORT")))?;
    Ok(endpoint.connect_timeout(timeout).timeout(timeout))
}

/// Connects to a service, which errors call by this name.
///
/// # Errors
/// When the address is none, or nobody answers there.
pub(crate) async fn connect(
    service: &'static str,
    address: &str,
    timeout: Duration,
) -> Result<Channel, CliError> {
    let connected = endpoint(address, timeout)?.connect().await;
    connected.map_err(|error| CliError::unreachable(service, address, error))
}

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
        let channel = connect(SERVICE, address, timeout).await?;
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
