//! Requests of consumer groups. They translate between the wire and the state
//! machine in [`crate::group`], and wait for other members where it says so.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::ResponseError as E;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{
    ConsumerGroupHeartbeatResponse, DeleteGroupsRequest, DeleteGroupsResponse,
    DescribeGroupsRequest, DescribeGroupsResponse, GroupId, HeartbeatRequest, HeartbeatResponse,
    JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, ListGroupsRequest,
    ListGroupsResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::{Context, disk, distinct, text};
use crate::group::member::{JoinParams, Joined, Protocol, Step, Synced};
use crate::group::{Group, State};

// --- joining and syncing ---------------------------------------------------

pub async fn join_group(ctx: &Context, request: JoinGroupRequest) -> JoinGroupResponse {
    if ctx.node.faults.refuses_members() {
        let refused = Joined::refused(E::CoordinatorNotAvailable.code(), &request.member_id);
        return join_response(ctx, refused);
    }
    let params = match join_params(ctx, &request) {
        Ok(params) => params,
        Err(error) => return join_response(ctx, Joined::refused(error.code(), &request.member_id)),
    };
    let group = match ctx.node.groups.get_or_create(&request.group_id) {
        Ok(group) => group,
        Err(error) => return join_response(ctx, Joined::refused(error.code(), &request.member_id)),
    };
    let step = group.lock().await.join(&params, Instant::now());
    drop(group);
    let joined = match step {
        Step::Now(joined) => joined,
        Step::Wait(receiver) => answer(ctx, receiver)
            .await
            .unwrap_or_else(|error| Joined::refused(error.code(), &request.member_id)),
    };
    if joined.error == E::GroupMaxSizeReached.code() {
        warn!(group = %*request.group_id, client = ctx.client_id,
            "refused a member: the group is at group_max_members or group_metadata_max_bytes");
    }
    debug!(group = %*request.group_id, member = joined.member_id, generation = joined.generation,
        error = joined.error, "join answered");
    join_response(ctx, joined)
}

/// Waits for an answer that other members bring about; the wait ends when the
/// client or the broker goes.
async fn answer<T>(ctx: &Context, receiver: oneshot::Receiver<T>) -> Result<T, E> {
    tokio::select! {
        answered = receiver => answered.map_err(|_| E::UnknownMemberId),
        () = ctx.gone.cancelled() => Err(E::UnknownMemberId),
        () = ctx.node.stopping.cancelled() => Err(E::CoordinatorNotAvailable),
    }
}

fn join_params(ctx: &Context, request: &JoinGroupRequest) -> Result<JoinParams, E> {
    let config = &ctx.node.config;
    let session_ms = u64::try_from(request.session_timeout_ms).unwrap_or(0);
    let bounds = config.group_session_timeout_ms_min..=config.group_session_timeout_ms_max;
    if !bounds.contains(&session_ms) {
        return Err(E::InvalidSessionTimeout);
    }
    // Before version 1 one time-out served for both.
    let rebalance_ms = match ctx.version {
        0 => session_ms,
        _ => u64::try_from(request.rebalance_timeout_ms).unwrap_or(session_ms),
    };
    if request.protocols.len() > config.group_max_protocols {
        warn!(group = %*request.group_id, client = ctx.client_id,
            "refused a member: it offers more than group_max_protocols");
        return Err(E::InvalidRequest);
    }
    let protocols = request.protocols.iter().map(|protocol| Protocol {
        name: protocol.name.to_string(),
        metadata: owned(&protocol.metadata),
    });
    Ok(JoinParams {
        member_id: request.member_id.to_string(),
        instance_id: owned_text(request.group_instance_id.as_ref()),
        client_id: ctx.client_id.clone(),
        client_host: ctx.client_host.clone(),
        session_timeout: Duration::from_millis(session_ms),
        rebalance_timeout: Duration::from_millis(
            rebalance_ms.min(config.group_session_timeout_ms_max),
        ),
        protocol_type: request.protocol_type.to_string(),
        protocols: protocols.collect(),
        takes_member_id: ctx.version >= 4,
        can_skip_assignment: ctx.version >= 9,
    })
}

/// A copy that does not keep the whole request in memory.
fn owned(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn owned_text(text: Option<&StrBytes>) -> Option<String> {
    text.map(ToString::to_string)
}

fn join_response(ctx: &Context, joined: Joined) -> JoinGroupResponse {
    let members = joined.members.into_iter().map(|member| {
        JoinGroupResponseMember::default()
            .with_member_id(text(member.id))
            .with_group_instance_id(member.instance_id.map(text))
            .with_metadata(member.metadata)
    });
    // The name may be null only from version 7 on.
    let protocol_name = match joined.protocol_name {
        None if ctx.version < 7 => Some(String::new()),
        name => name,
    };
    JoinGroupResponse::default()
        .with_error_code(joined.error)
        .with_generation_id(joined.generation)
        .with_protocol_type(joined.protocol_type.map(text).filter(|_| ctx.version >= 7))
        .with_protocol_name(protocol_name.map(text))
        .with_leader(text(joined.leader))
        .with_skip_assignment(joined.skip_assignment && ctx.version >= 9)
        .with_member_id(text(joined.member_id))
        .with_members(members.collect())
}

pub async fn sync_group(ctx: &Context, request: SyncGroupRequest) -> SyncGroupResponse {
    let Some(group) = ctx.node.groups.get(&request.group_id) else {
        return sync_response(ctx, Synced::refused(E::UnknownMemberId.code()));
    };
    let assignments = request.assignments.iter().map(|assignment| {
        let member = assignment.member_id.to_string();
        (member, owned(&assignment.assignment))
    });
    let step = {
        let mut group = group.lock().await;
        match same_protocol(&group, &request) {
            false => Step::Now(Synced::refused(E::InconsistentGroupProtocol.code())),
            true => group.sync(
                &request.member_id,
                request.group_instance_id.as_deref(),
                request.generation_id,
                assignments.collect(),
                Instant::now(),
            ),
        }
    };
    drop(group);
    let synced = match step {
        Step::Now(synced) => synced,
        Step::Wait(receiver) => answer(ctx, receiver)
            .await
            .unwrap_or_else(|error| Synced::refused(error.code())),
    };
    sync_response(ctx, synced)
}

/// Newer clients say which protocol they think was chosen.
fn same_protocol(group: &Group, request: &SyncGroupRequest) -> bool {
    let same = |said: Option<&StrBytes>, chosen: Option<&String>| {
        said.is_none_or(|said| chosen.is_none_or(|chosen| **said == **chosen))
    };
    same(request.protocol_type.as_ref(), group.protocol_type.as_ref())
        && same(request.protocol_name.as_ref(), group.protocol_name.as_ref())
}

fn sync_response(ctx: &Context, synced: Synced) -> SyncGroupResponse {
    let named = ctx.version >= 5;
    SyncGroupResponse::default()
        .with_error_code(synced.error)
        .with_protocol_type(synced.protocol_type.map(text).filter(|_| named))
        .with_protocol_name(synced.protocol_name.map(text).filter(|_| named))
        .with_assignment(synced.assignment)
}

/// Members of the newer protocol are refused for good, as a Kafka does that has it switched off.
pub fn refuse_newer() -> ConsumerGroupHeartbeatResponse {
    let message = "this broker serves group.protocol=classic only";
    ConsumerGroupHeartbeatResponse::default()
        .with_error_code(E::UnsupportedVersion.code())
        .with_error_message(Some(text(message)))
}

// --- staying and leaving ---------------------------------------------------

pub async fn heartbeat(ctx: &Context, request: HeartbeatRequest) -> HeartbeatResponse {
    let known = ctx.node.groups.get(&request.group_id);
    let result = match known.filter(|_| !ctx.node.faults.refuses_members()) {
        None => Err(E::UnknownMemberId),
        Some(group) => group.lock().await.heartbeat(
            &request.member_id,
            request.group_instance_id.as_deref(),
            request.generation_id,
            Instant::now(),
        ),
    };
    HeartbeatResponse::default().with_error_code(code_of(result))
}

fn code_of(result: Result<(), E>) -> i16 {
    result.err().map_or(0, |error| error.code())
}

pub async fn leave_group(ctx: &Context, request: LeaveGroupRequest) -> LeaveGroupResponse {
    let Some(group) = ctx.node.groups.get(&request.group_id) else {
        return LeaveGroupResponse::default().with_error_code(E::UnknownMemberId.code());
    };
    let mut group = group.lock().await;
    let now = Instant::now();
    if ctx.version < 3 {
        let left = group.leave(&request.member_id, None, now);
        return LeaveGroupResponse::default().with_error_code(code_of(left));
    }
    let members = request.members.iter().map(|member| {
        let left = group.leave(&member.member_id, member.group_instance_id.as_deref(), now);
        MemberResponse::default()
            .with_member_id(member.member_id.clone())
            .with_group_instance_id(member.group_instance_id.clone())
            .with_error_code(code_of(left))
    });
    LeaveGroupResponse::default().with_members(members.collect())
}

// --- looking at groups -----------------------------------------------------

pub async fn list_groups(ctx: &Context, request: ListGroupsRequest) -> ListGroupsResponse {
    let wanted = |filter: &[StrBytes], value: &str| {
        filter.is_empty() || filter.iter().any(|name| name.eq_ignore_ascii_case(value))
    };
    let mut groups = Vec::new();
    for name in ctx.node.groups.names() {
        let (state, protocol_type) = match ctx.node.groups.get(&name) {
            Some(group) => {
                let group = group.lock().await;
                (group.state, group.protocol_type.clone().unwrap_or_default())
            }
            None => (State::Empty, "consumer".to_owned()),
        };
        if wanted(&request.states_filter, state.name()) && wanted(&request.types_filter, "classic")
        {
            groups.push(
                ListedGroup::default()
                    .with_group_id(GroupId(text(name)))
                    .with_protocol_type(text(protocol_type))
                    .with_group_state(text(state.name()))
                    .with_group_type(text("classic")),
            );
        }
    }
    ListGroupsResponse::default().with_groups(groups)
}

pub async fn describe_groups(
    ctx: &Context,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let mut groups = Vec::new();
    for id in distinct(request.groups, Clone::clone) {
        let described = match ctx.node.groups.get(&id) {
            Some(group) => describe(&*group.lock().await),
            None => {
                let known = ctx.node.groups.offsets.has_group(&id);
                DescribedGroup::default()
                    .with_group_state(text(if known { "Empty" } else { "Dead" }))
                    .with_protocol_type(text(if known { "consumer" } else { "" }))
            }
        };
        groups.push(described.with_group_id(id));
    }
    DescribeGroupsResponse::default().with_groups(groups)
}

fn describe(group: &Group) -> DescribedGroup {
    let protocol = group.protocol_name.clone().unwrap_or_default();
    let members = group.members.values().map(|member| {
        DescribedGroupMember::default()
            .with_member_id(text(member.id.clone()))
            .with_group_instance_id(member.instance_id.clone().map(text))
            .with_client_id(text(member.client_id.clone()))
            .with_client_host(text(member.client_host.clone()))
            .with_member_metadata(member.metadata(&protocol))
            .with_member_assignment(member.assignment.clone())
    });
    DescribedGroup::default()
        .with_group_state(text(group.state.name()))
        .with_protocol_type(text(group.protocol_type.clone().unwrap_or_default()))
        .with_members(members.collect())
        .with_protocol_data(text(protocol))
}

pub async fn delete_groups(ctx: &Context, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let mut results = Vec::new();
    for id in distinct(request.groups_names, Clone::clone) {
        let error = delete_one(ctx, &id).await;
        let result = DeletableGroupResult::default().with_error_code(code_of(error));
        results.push(result.with_group_id(id));
    }
    DeleteGroupsResponse::default().with_results(results)
}

async fn delete_one(ctx: &Context, id: &str) -> Result<(), E> {
    let groups = &ctx.node.groups;
    if let Some(group) = groups.get(id)
        && !group.lock().await.is_idle()
    {
        return Err(E::NonEmptyGroup);
    }
    if !groups.offsets.has_group(id) {
        return Err(E::GroupIdNotFound);
    }
    disk(|| groups.offsets.remove_group(id)).map_err(|error| {
        warn!(%error, "deleting a group's offsets failed");
        E::CoordinatorNotAvailable
    })
}
