//! Submission over gRPC: `Submission.SubmitBatch`.

use std::time::Duration;

use streamgauge_proto::v1::{
    self, SubmitBatchRequest, SubmittedEvent, VerdictStatus, submission_client::SubmissionClient,
};
use tonic::{Code, Request, Status, metadata::AsciiMetadataValue, transport::Channel};
use tonic_types::StatusExt;

use super::{BatchError, Reason, Verdict};
use crate::{client::endpoint, error::CliError};

/// One gRPC connection to the producer; clones share it.
#[derive(Clone, Debug)]
pub struct GrpcSubmitter {
    client: SubmissionClient<Channel>,
    authorization: Option<AsciiMetadataValue>,
}

impl GrpcSubmitter {
    /// A submitter with a connection of its own, which is made when first needed.
    ///
    /// # Errors
    /// When the address is none.
    pub fn new(address: &str, timeout: Duration, token: Option<&str>) -> Result<Self, CliError> {
        let authorization = token
            .map(|token| format!("Bearer {token}").parse())
            .transpose()
            .map_err(|_| CliError::usage("the token holds characters that no header can"))?;
        let channel = endpoint(address, timeout)?.connect_lazy();
        Ok(Self {
            client: SubmissionClient::new(channel),
            authorization,
        })
    }

    pub(super) async fn submit(
        &self,
        events: &[SubmittedEvent],
        historical: bool,
    ) -> Result<Vec<Verdict>, BatchError> {
        let mut request = Request::new(SubmitBatchRequest {
            events: events.to_vec(),
            idempotency_key: String::new(),
            historical,
        });
        if let Some(authorization) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", authorization.clone());
        }
        let mut client = self.client.clone();
        let response = client.submit_batch(request).await.map_err(refusal)?;
        response
            .into_inner()
            .verdicts
            .into_iter()
            .map(Verdict::try_from)
            .collect()
    }
}

impl TryFrom<v1::Verdict> for Verdict {
    type Error = BatchError;

    fn try_from(wire: v1::Verdict) -> Result<Self, BatchError> {
        let reason = || Reason::new(&wire.code, &wire.field, &wire.message);
        match wire.status() {
            VerdictStatus::Accepted => Ok(Self::Accepted),
            VerdictStatus::Rejected => Ok(Self::Rejected(reason())),
            VerdictStatus::Retry => Ok(Self::Retry(reason())),
            VerdictStatus::Unspecified => {
                Err(BatchError::Silent("a verdict without a status".into()))
            }
        }
    }
}

/// Sorts a status by what to do about it. Only the producer's own refusals carry a reason; a
/// status without one comes from the transport, and says nothing about the batch.
fn refusal(status: Status) -> BatchError {
    let details = status.get_error_details();
    let code = details
        .error_info()
        .map(|info| info.reason.clone())
        .unwrap_or_default();
    let after = details.retry_info().and_then(|info| info.retry_delay);
    let reason = Reason::new(&code, "", status.message());
    let too_large = matches!(code.as_str(), "body_too_large" | "too_many_events");
    match status.code() {
        _ if too_large => BatchError::TooLarge { reason },
        // What tonic says of a message over the server's limit.
        Code::OutOfRange => BatchError::TooLarge { reason },
        Code::InvalidArgument
        | Code::NotFound
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented
        | Code::FailedPrecondition => BatchError::Refused { reason },
        _ if !code.is_empty() || after.is_some() => BatchError::Later { reason, after },
        _ => BatchError::Silent(status.into()),
    }
}

#[cfg(test)]
mod tests {
    use streamgauge_proto::{ErrorCode, Problem};

    use super::*;

    fn sorted(problem: Problem) -> BatchError {
        refusal(problem.into())
    }

    #[test]
    fn refusals_are_sorted_by_what_to_do() {
        let wait = Duration::from_millis(1500);
        let limited = Problem::new(ErrorCode::RateLimited, "slow down").retry_after(wait);
        match sorted(limited) {
            BatchError::Later { reason, after } => {
                assert_eq!((reason.code.as_str(), after), ("rate_limited", Some(wait)));
            }
            other => panic!("{other:?}"),
        }
        let large = sorted(Problem::new(ErrorCode::BodyTooLarge, "5 MiB"));
        assert!(matches!(large, BatchError::TooLarge { .. }), "{large:?}");
        let empty = sorted(Problem::new(ErrorCode::EmptyBody, "no event"));
        assert!(matches!(empty, BatchError::Refused { .. }), "{empty:?}");
        let unknown = sorted(Problem::new(ErrorCode::Unauthenticated, "no such token"));
        assert!(matches!(unknown, BatchError::Refused { .. }), "{unknown:?}");
        let broken = sorted(Problem::new(ErrorCode::Internal, "a defect"));
        assert!(matches!(broken, BatchError::Later { .. }), "{broken:?}");
        let silent = refusal(Status::unavailable("tcp connect error"));
        assert!(matches!(silent, BatchError::Silent(_)), "{silent:?}");
    }
}
