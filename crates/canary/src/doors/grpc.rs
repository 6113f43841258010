//! The gRPC door.

use std::collections::HashMap;

use streamgauge_chain::canary::SERIES;
use streamgauge_proto::v1::{
    SeriesRequest, SubmitBatchRequest, TimeRange, VerdictStatus, analytics_client::AnalyticsClient,
    submission_client::SubmissionClient,
};
use streamgauge_telemetry::TraceContext;
use tonic::{
    Code, Request,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};

use super::NotYet;
use crate::{
    CanaryConfig, CanaryError,
    probe::{Probe, Shown},
};

#[derive(Clone, Debug)]
pub(crate) struct Visitor {
    submit: SubmissionClient<Channel>,
    query: AnalyticsClient<Channel>,
    authorization: Option<AsciiMetadataValue>,
}

impl Visitor {
    pub(super) fn new(config: &CanaryConfig, query: &str) -> Result<Self, CanaryError> {
        let channel = |address: &str| {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))
                .map_err(|_| CanaryError::Address(address.to_owned()))?;
            let timeout = config.request_timeout();
            Ok(endpoint
                .connect_timeout(timeout)
                .timeout(timeout)
                .connect_lazy())
        };
        let authorization = match config.token.expose() {
            "" => None,
            token => {
                let mut value: AsciiMetadataValue = format!("Bearer {token}")
                    .parse()
                    .map_err(|_| CanaryError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            submit: SubmissionClient::new(channel(&config.producer_grpc)?),
            query: AnalyticsClient::new(channel(query)?),
            authorization,
        })
    }

    pub(super) async fn submit(
        &self,
        probe: &Probe,
        trace: Option<TraceContext>,
    ) -> Result<(), NotYet> {
        let mut request = Request::new(SubmitBatchRequest {
            events: vec![probe.event()],
            ..SubmitBatchRequest::default()
        });
        if let Some(authorization) = &self.authorization {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", authorization.clone());
        }
        if let Some(header) = trace.and_then(|trace| trace.header().parse().ok()) {
            request.metadata_mut().insert("traceparent", header);
        }
        let answer = self
            .submit
            .clone()
            .submit_batch(request)
            .await?
            .into_inner();
        match answer.verdicts.as_slice() {
            [verdict] if verdict.status() == VerdictStatus::Accepted => Ok(()),
            _ => Err(NotYet::NotAccepted),
        }
    }

    pub(super) async fn query(&self, probe: &Probe) -> Result<Vec<Shown>, NotYet> {
        let (from_us, to_us) = probe.second_us();
        let request = SeriesRequest {
            by: SERIES.to_owned(),
            range: Some(TimeRange { from_us, to_us }),
            step_s: 1,
            filter: HashMap::from([(SERIES.to_owned(), probe.user_id.clone())]),
            ..SeriesRequest::default()
        };
        let answer = match self.query.clone().series(request).await {
            Ok(answer) => answer.into_inner(),
            // No event of the series was counted so far.
            Err(status) if status.code() == Code::NotFound => return Err(NotYet::NotShown),
            Err(status) => return Err(status.into()),
        };
        let shown = answer.series.into_iter().flat_map(|series| {
            let key = series.key;
            series.points.into_iter().map(move |point| Shown {
                key: key.clone(),
                start_us: point.start_us,
                count: point.value.map_or(0, |value| value.count),
            })
        });
        Ok(shown.collect())
    }
}
