//! What allowances hold, which share of events is traced, and the change of both while the service runs: the twin of the
//! HTTP admin API.

use http::{Extensions, HeaderMap};
use streamgauge_proto::v1::producer_control_server::ProducerControl;
use streamgauge_proto::v1::{
    self, GetRateLimitsRequest, GetSamplingRequest, RateLimitsInForce, SamplingInForce,
    SetRateLimitsRequest, SetSamplingRequest,
};
use streamgauge_proto::{ErrorCode, Problem};
use streamgauge_resilience::Rate;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Request, Response, Status};

use super::Shared;
use crate::admin::{self, RateLimitsAnswer};
use crate::admission::rates::RateLimits;
use crate::sampling::{self, Sampling};

#[tonic::async_trait]
impl ProducerControl for Shared {
    async fn get_rate_limits(
        &self,
        request: Request<GetRateLimitsRequest>,
    ) -> Result<Response<RateLimitsInForce>, Status> {
        let (metadata, extensions, _) = request.into_parts();
        self.admit(metadata, &extensions)?;
        Ok(Response::new(answer(admin::show(&self.intake.admission))))
    }

    async fn set_rate_limits(
        &self,
        request: Request<SetRateLimitsRequest>,
    ) -> Result<Response<RateLimitsInForce>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let by = self.admit(metadata, &extensions)?;
        let admission = &self.intake.admission;
        let limits = limits(message.rate_limits.unwrap_or_default())
            .map_err(|problem| admission.change_refused(problem))?;
        Ok(Response::new(answer(admin::change(
            admission, limits, &by,
        )?)))
    }

    async fn get_sampling(
        &self,
        request: Request<GetSamplingRequest>,
    ) -> Result<Response<SamplingInForce>, Status> {
        let (metadata, extensions, _) = request.into_parts();
        self.admit(metadata, &extensions)?;
        Ok(Response::new(in_force(sampling::show(&self.intake.tracer))))
    }

    async fn set_sampling(
        &self,
        request: Request<SetSamplingRequest>,
    ) -> Result<Response<SamplingInForce>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let by = self.admit(metadata, &extensions)?;
        let sample_ratio = message.sample_ratio.ok_or_else(|| {
            let message = "say which share of traces is to be recorded";
            Problem::new(ErrorCode::MissingField, message).field("sample_ratio")
        })?;
        let wanted = Sampling { sample_ratio };
        let changed = sampling::change(&self.intake.tracer, wanted, &by)?;
        Ok(Response::new(in_force(changed)))
    }
}

impl Shared {
    fn admit(&self, metadata: MetadataMap, extensions: &Extensions) -> Result<String, Problem> {
        let peer = extensions
            .get::<TcpConnectInfo>()
            .and_then(TcpConnectInfo::remote_addr);
        let headers: HeaderMap = metadata.into_headers();
        self.intake
            .admin
            .admit(peer.map(|peer| peer.ip()), &headers)
    }
}

fn in_force(sampling: sampling::SamplingInForce) -> SamplingInForce {
    SamplingInForce {
        sample_ratio: sampling.sample_ratio,
        exporting: sampling.exporting,
    }
}

fn limits(message: v1::RateLimits) -> Result<RateLimits, Problem> {
    let required = |rate: Option<v1::Rate>, field: &str| {
        let missing = || {
            let message = "it must be given, even where nothing is limited";
            Problem::new(ErrorCode::MissingField, message).field(field)
        };
        rate.map(read).ok_or_else(missing)
    };
    let overrides = message.overrides.into_iter();
    Ok(RateLimits {
        default: required(message.default, "default")?,
        address: required(message.address, "address")?,
        overrides: overrides.map(|(name, rate)| (name, read(rate))).collect(),
    })
}

fn read(rate: v1::Rate) -> Rate {
    Rate {
        per_second: rate.per_second,
        burst: rate.burst,
    }
}

fn answer(answer: RateLimitsAnswer) -> RateLimitsInForce {
    let write = |rate: Rate| v1::Rate {
        per_second: rate.per_second,
        burst: rate.burst,
    };
    let limits = answer.in_force.rate_limits;
    let overrides = limits.overrides.into_iter();
    RateLimitsInForce {
        rate_limits: Some(v1::RateLimits {
            default: Some(write(limits.default)),
            address: Some(write(limits.address)),
            overrides: overrides.map(|(name, rate)| (name, write(rate))).collect(),
        }),
        revision: answer.in_force.revision,
        changed_at_us: answer.in_force.changed_at_us,
        credential_keys: answer.keys.credential as u64,
        address_keys: answer.keys.address as u64,
    }
}
