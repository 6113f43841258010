//! From a frame to a response: which requests are served in which versions,
//! and who handles them. Nothing is decoded before its shape has been checked.

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, ConsumerGroupHeartbeatRequest,
    CreateTopicsRequest, DeleteGroupsRequest, DeleteRecordsRequest, DeleteTopicsRequest,
    DescribeConfigsRequest, DescribeGroupsRequest, FetchRequest, FindCoordinatorRequest,
    HeartbeatRequest, InitProducerIdRequest, JoinGroupRequest, LeaveGroupRequest,
    ListGroupsRequest, ListOffsetsRequest, MetadataRequest, OffsetCommitRequest,
    OffsetFetchRequest, OffsetForLeaderEpochRequest, ProduceRequest, ProduceResponse,
    RequestHeader, ResponseHeader, SyncGroupRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion};
use tokio::sync::OwnedSemaphorePermit;

use crate::api::produce::Produced;
use crate::api::{Context, committed, configs, fetch, groups, metadata, offsets, produce, topics};
use crate::shape::{self, ShapeError};

/// A request that is served, and its versions.
pub struct Served {
    pub api: ApiKey,
    pub min: i16,
    pub max: i16,
}

const fn served(api: ApiKey, min: i16, max: i16) -> Served {
    Served { api, min, max }
}

/// Fetch stays below 13 and the offset requests below 10, where topics are
/// named by id.
pub const SERVED: [Served; 22] = [
    served(ApiKey::Produce, 3, 9),
    served(ApiKey::Fetch, 4, 12),
    served(ApiKey::ListOffsets, 1, 7),
    served(ApiKey::Metadata, 0, 12),
    served(ApiKey::OffsetCommit, 2, 8),
    served(ApiKey::OffsetFetch, 1, 8),
    served(ApiKey::FindCoordinator, 0, 4),
    served(ApiKey::JoinGroup, 0, 9),
    served(ApiKey::Heartbeat, 0, 4),
    served(ApiKey::LeaveGroup, 0, 5),
    served(ApiKey::SyncGroup, 0, 5),
    served(ApiKey::DescribeGroups, 0, 5),
    served(ApiKey::ListGroups, 0, 5),
    served(ApiKey::ApiVersions, 0, 4),
    served(ApiKey::CreateTopics, 2, 7),
    served(ApiKey::DeleteTopics, 1, 6),
    served(ApiKey::DeleteRecords, 0, 2),
    served(ApiKey::InitProducerId, 0, 4),
    served(ApiKey::OffsetForLeaderEpoch, 2, 4),
    served(ApiKey::DescribeConfigs, 1, 4),
    served(ApiKey::DeleteGroups, 0, 2),
    // Only to be refused: some clients wait for ever where it is not announced.
    served(ApiKey::ConsumerGroupHeartbeat, 0, 1),
];

/// Why a connection is closed instead of answered.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("request kind {0} is not known")]
    UnknownApi(i16),
    #[error("version {version} of {api:?} is not served")]
    Version { api: ApiKey, version: i16 },
    #[error("a frame of {0} bytes is too large for this kind of request")]
    TooLarge(usize),
    #[error("the request is malformed")]
    Shape(#[from] ShapeError),
    #[error("decoding or encoding failed: {0}")]
    Codec(String),
}

/// What becomes of a request.
pub enum Reply {
    /// A whole frame to send.
    Frame(Bytes),
    /// A frame that holds a share of the memory for fetched records.
    Counted(Bytes, Option<OwnedSemaphorePermit>),
    /// A frame that is not ready yet; later requests need not wait for it.
    Later(BoxFuture<'static, Result<Bytes, RequestError>>),
    Silent,
    Close,
}

/// The fixed start of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    pub api: ApiKey,
    pub version: i16,
    pub correlation_id: i32,
}

impl Envelope {
    /// Reads which request a frame holds.
    pub fn parse(frame: &[u8]) -> Result<Envelope, RequestError> {
        let [k0, k1, v0, v1, c0, c1, c2, c3, ..] = *frame else {
            return Err(ShapeError::Truncated.into());
        };
        let key = i16::from_be_bytes([k0, k1]);
        let api = ApiKey::try_from(key).map_err(|()| RequestError::UnknownApi(key))?;
        Ok(Envelope {
            api,
            version: i16::from_be_bytes([v0, v1]),
            correlation_id: i32::from_be_bytes([c0, c1, c2, c3]),
        })
    }

    fn is_served(self) -> bool {
        let mut served = SERVED.iter();
        served.any(|s| s.api == self.api && (s.min..=s.max).contains(&self.version))
    }

    /// Whether the handler may wait long for other clients, holding big answers.
    pub fn answers_with_records(self) -> bool {
        self.api == ApiKey::Fetch
    }
}

/// Handles one frame. `ctx` is the connection's; the request's version and
/// client id are filled in here.
pub async fn handle(mut ctx: Context, mut frame: Bytes) -> Result<Reply, RequestError> {
    let envelope = Envelope::parse(&frame)?;
    let Envelope { api, version, .. } = envelope;
    if !envelope.is_served() {
        // The one request whose version a client cannot know beforehand.
        return match api {
            ApiKey::ApiVersions => unsupported_version(envelope),
            _ => Err(RequestError::Version { api, version }),
        };
    }
    let config = &ctx.node.config;
    if api != ApiKey::Produce && frame.len() > config.max_control_request_bytes {
        return Err(RequestError::TooLarge(frame.len()));
    }
    let header_version = api.request_header_version(version);
    let max_elements = config.max_request_elements;
    shape::check_header(&frame, header_version >= 2, max_elements)?;
    let header = RequestHeader::decode(&mut frame, header_version).map_err(codec_error)?;
    shape::check_body(api, version, &frame, max_elements)?;
    ctx.version = version;
    ctx.client_id = header
        .client_id
        .map(|id| id.to_string())
        .unwrap_or_default();
    route(&ctx, envelope, frame).await
}

async fn route(ctx: &Context, envelope: Envelope, body: Bytes) -> Result<Reply, RequestError> {
    /// Decodes the request, handles it, and encodes what comes back.
    macro_rules! answer {
        ($request:ty, |$decoded:ident| $handled:expr) => {{
            let $decoded: $request = decode(body, envelope.version)?;
            let response = $handled;
            encode(envelope, &response).map(Reply::Frame)
        }};
    }
    match envelope.api {
        ApiKey::Produce => {
            let request: ProduceRequest = decode(body, envelope.version)?;
            produced(envelope, produce::produce(ctx, request).await)
        }
        ApiKey::Fetch => {
            let request: FetchRequest = decode(body, envelope.version)?;
            let (response, permit) = fetch::fetch(ctx, request).await;
            encode(envelope, &response).map(|frame| Reply::Counted(frame, permit))
        }
        ApiKey::ListOffsets => answer!(ListOffsetsRequest, |r| offsets::list_offsets(ctx, &r)),
        ApiKey::Metadata => answer!(MetadataRequest, |r| metadata::metadata(ctx, &r)),
        ApiKey::OffsetCommit => {
            answer!(OffsetCommitRequest, |r| committed::offset_commit(ctx, r)
                .await)
        }
        ApiKey::OffsetFetch => answer!(OffsetFetchRequest, |r| committed::offset_fetch(ctx, r)),
        ApiKey::FindCoordinator => {
            answer!(FindCoordinatorRequest, |r| metadata::find_coordinator(
                ctx, &r
            ))
        }
        ApiKey::JoinGroup => answer!(JoinGroupRequest, |r| groups::join_group(ctx, r).await),
        ApiKey::Heartbeat => answer!(HeartbeatRequest, |r| groups::heartbeat(ctx, r).await),
        ApiKey::LeaveGroup => answer!(LeaveGroupRequest, |r| groups::leave_group(ctx, r).await),
        ApiKey::SyncGroup => answer!(SyncGroupRequest, |r| groups::sync_group(ctx, r).await),
        ApiKey::DescribeGroups => {
            answer!(DescribeGroupsRequest, |r| groups::describe_groups(ctx, r)
                .await)
        }
        ApiKey::ListGroups => answer!(ListGroupsRequest, |r| groups::list_groups(ctx, r).await),
        ApiKey::DeleteGroups => {
            answer!(DeleteGroupsRequest, |r| groups::delete_groups(ctx, r).await)
        }
        ApiKey::ConsumerGroupHeartbeat => {
            answer!(ConsumerGroupHeartbeatRequest, |_r| groups::refuse_newer())
        }
        ApiKey::ApiVersions => answer!(ApiVersionsRequest, |_r| api_versions()),
        ApiKey::CreateTopics => answer!(CreateTopicsRequest, |r| topics::create_topics(ctx, &r)),
        ApiKey::DeleteTopics => answer!(DeleteTopicsRequest, |r| topics::delete_topics(ctx, &r)),
        ApiKey::DeleteRecords => {
            answer!(DeleteRecordsRequest, |r| offsets::delete_records(ctx, &r))
        }
        ApiKey::InitProducerId => {
            answer!(InitProducerIdRequest, |r| produce::init_producer_id(
                ctx, &r
            ))
        }
        ApiKey::OffsetForLeaderEpoch => {
            answer!(OffsetForLeaderEpochRequest, |r| {
                offsets::offset_for_leader_epoch(ctx, &r)
            })
        }
        ApiKey::DescribeConfigs => {
            answer!(DescribeConfigsRequest, |r| configs::describe_configs(
                ctx, &r
            ))
        }
        api => Err(RequestError::Version {
            api,
            version: envelope.version,
        }),
    }
}

fn produced(envelope: Envelope, produced: Produced) -> Result<Reply, RequestError> {
    match produced {
        Produced::Answer(response) => encode(envelope, &response).map(Reply::Frame),
        Produced::Silent => Ok(Reply::Silent),
        Produced::Close => Ok(Reply::Close),
        Produced::Later(response) => Ok(Reply::Later(Box::pin(async move {
            encode::<ProduceResponse>(envelope, &response.await)
        }))),
    }
}

fn codec_error(error: impl std::fmt::Display) -> RequestError {
    RequestError::Codec(error.to_string())
}

fn decode<R: Decodable>(mut body: Bytes, version: i16) -> Result<R, RequestError> {
    R::decode(&mut body, version).map_err(codec_error)
}

/// A whole frame: length, header, response.
fn encode<R: Encodable + HeaderVersion>(
    envelope: Envelope,
    response: &R,
) -> Result<Bytes, RequestError> {
    let Envelope {
        version,
        correlation_id,
        ..
    } = envelope;
    let header = ResponseHeader::default().with_correlation_id(correlation_id);
    let header_version = R::header_version(version);
    let size = header.compute_size(header_version).map_err(codec_error)?
        + response.compute_size(version).map_err(codec_error)?;
    let mut frame = BytesMut::with_capacity(4 + size);
    frame.put_i32(i32::try_from(size).map_err(codec_error)?);
    header
        .encode(&mut frame, header_version)
        .map_err(codec_error)?;
    response.encode(&mut frame, version).map_err(codec_error)?;
    Ok(frame.freeze())
}

fn api_versions() -> ApiVersionsResponse {
    let versions = SERVED.iter().map(|served| {
        // Older clients refuse to compress when version 0 of Produce is not
        // named, though they never send it.
        let named_min = if served.api == ApiKey::Produce {
            0
        } else {
            served.min
        };
        ApiVersion::default()
            .with_api_key(served.api as i16)
            .with_min_version(named_min)
            .with_max_version(served.max)
    });
    ApiVersionsResponse::default().with_api_keys(versions.collect())
}

/// Tells a newer client in the oldest encoding which versions to use.
fn unsupported_version(envelope: Envelope) -> Result<Reply, RequestError> {
    let response = api_versions().with_error_code(E::UnsupportedVersion.code());
    let envelope = Envelope {
        version: 0,
        ..envelope
    };
    encode(envelope, &response).map(Reply::Frame)
}

/// Reads a request as [`handle`] does, without doing what it says; whether it can be read.
#[cfg(fuzzing)]
pub fn can_be_read(mut frame: Bytes, max_elements: usize) -> Result<bool, RequestError> {
    let envelope = Envelope::parse(&frame)?;
    let Envelope { api, version, .. } = envelope;
    if !envelope.is_served() {
        return Ok(false);
    }
    let header_version = api.request_header_version(version);
    shape::check_header(&frame, header_version >= 2, max_elements)?;
    RequestHeader::decode(&mut frame, header_version).map_err(codec_error)?;
    shape::check_body(api, version, &frame, max_elements)?;
    Ok(decodes(api, version, frame))
}

/// Whether a body decodes, for tests of what is checked before it.
#[cfg(any(test, fuzzing))]
pub fn decodes(api: ApiKey, version: i16, body: Bytes) -> bool {
    /// One arm per request.
    macro_rules! decodes {
        ($($api:ident => $request:ty),* $(,)?) => {
            match api {
                $(ApiKey::$api => decode::<$request>(body, version).is_ok(),)*
                _ => false,
            }
        };
    }
    decodes! {
        Produce => ProduceRequest,
        Fetch => FetchRequest,
        ListOffsets => ListOffsetsRequest,
        Metadata => MetadataRequest,
        OffsetCommit => OffsetCommitRequest,
        OffsetFetch => OffsetFetchRequest,
        FindCoordinator => FindCoordinatorRequest,
        JoinGroup => JoinGroupRequest,
        Heartbeat => HeartbeatRequest,
        LeaveGroup => LeaveGroupRequest,
        SyncGroup => SyncGroupRequest,
        DescribeGroups => DescribeGroupsRequest,
        ListGroups => ListGroupsRequest,
        ApiVersions => ApiVersionsRequest,
        CreateTopics => CreateTopicsRequest,
        DeleteTopics => DeleteTopicsRequest,
        DeleteRecords => DeleteRecordsRequest,
        InitProducerId => InitProducerIdRequest,
        OffsetForLeaderEpoch => OffsetForLeaderEpochRequest,
        DescribeConfigs => DescribeConfigsRequest,
        DeleteGroups => DeleteGroupsRequest,
        ConsumerGroupHeartbeat => ConsumerGroupHeartbeatRequest,
    }
}
