//! Consumer groups: who belongs to one, which generation it is in, and who
//! gets what. [`Group`] is the protocol's state machine alone: time is handed
//! in, answers go out through channels, and nothing here does IO.

pub mod coordinator;
pub mod member;
pub mod offsets;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::ResponseError as E;
use tokio::sync::oneshot;
use uuid::Uuid;

use self::member::{JoinParams, Joined, JoinedMember, Member, Step, Synced};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No members.
    Empty,
    /// Waiting for the members to join (again).
    PreparingRebalance,
    /// Waiting for the leader's assignment.
    CompletingRebalance,
    Stable,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Empty => "Empty",
            State::PreparingRebalance => "PreparingRebalance",
            State::CompletingRebalance => "CompletingRebalance",
            State::Stable => "Stable",
        }
    }
}

#[derive(Debug)]
pub struct Group {
    pub state: State,
    pub generation: i32,
    pub protocol_type: Option<String>,
    pub protocol_name: Option<String>,
    leader: Option<String>,
    pub members: BTreeMap<String, Member>,
    /// Member ids of static members by their instance id.
    instances: HashMap<String, String>,
    /// Ids handed out to clients that have yet to join with them.
    pending: HashMap<String, Instant>,
    rebalance_deadline: Option<Instant>,
    /// A new group waits until then for more members.
    not_before: Option<Instant>,
    sync_deadline: Option<Instant>,
    initial_delay: Duration,
    limits: Limits,
}

/// How much one group may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub members: usize,
    /// What its members say of themselves, and again what they are assigned.
    pub metadata_bytes: usize,
}

impl Group {
    pub fn new(initial_delay: Duration, limits: Limits) -> Group {
        Group {
            state: State::Empty,
            generation: 0,
            protocol_type: None,
            protocol_name: None,
            leader: None,
            members: BTreeMap::new(),
            instances: HashMap::new(),
            pending: HashMap::new(),
            rebalance_deadline: None,
            not_before: None,
            sync_deadline: None,
            initial_delay,
            limits,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.members.is_empty() && self.pending.is_empty()
    }

    // --- joining ---------------------------------------------------------

    pub fn join(&mut self, params: &JoinParams, now: Instant) -> Step<Joined> {
        if !self.has_room_for(params) {
            return refuse_join(E::GroupMaxSizeReached, &params.member_id);
        }
        if let Err(error) = self.check_protocols(params) {
            return refuse_join(error, &params.member_id);
        }
        if params.member_id.is_empty() {
            return self.join_unknown(params, now);
        }
        if let Err(error) = self.check_instance(&params.member_id, params.instance_id.as_deref()) {
            return refuse_join(error, &params.member_id);
        }
        if self.pending.remove(&params.member_id).is_some() {
            return self.add_member(params.member_id.clone(), params, now);
        }
        if !self.members.contains_key(&params.member_id) {
            return refuse_join(E::UnknownMemberId, &params.member_id);
        }
        self.rejoin(params, now)
    }

    /// Whether what a member says of itself still fits. What it said before, or
    /// its former self did, makes room.
    fn has_room_for(&self, params: &JoinParams) -> bool {
        let stays = |member: &&Member| {
            let same_instance =
                params.instance_id.is_some() && member.instance_id == params.instance_id;
            member.id != params.member_id && !same_instance
        };
        let others: usize = self
            .members
            .values()
            .filter(stays)
            .map(Member::held_bytes)
            .sum();
        let pending: usize = self.pending.keys().map(String::len).sum();
        others + pending + params.held_bytes() <= self.limits.metadata_bytes
    }

    fn check_protocols(&self, params: &JoinParams) -> Result<(), E> {
        if params.protocols.is_empty() || params.protocol_type.is_empty() {
            return Err(E::InconsistentGroupProtocol);
        }
        let others: Vec<&Member> = self
            .members
            .values()
            .filter(|member| member.id != params.member_id)
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        let same_type = self.protocol_type.as_deref() == Some(params.protocol_type.as_str());
        let shared = params
            .protocols
            .iter()
            .any(|protocol| others.iter().all(|member| member.supports(&protocol.name)));
        match same_type && shared {
            true => Ok(()),
            false => Err(E::InconsistentGroupProtocol),
        }
    }

    /// A static member's id is fenced once its instance has come back.
    fn check_instance(&self, member_id: &str, instance_id: Option<&str>) -> Result<(), E> {
        let Some(instance_id) = instance_id else {
            return Ok(());
        };
        match self.instances.get(instance_id) {
            None => Err(E::UnknownMemberId),
            Some(current) if current != member_id => Err(E::FencedInstanceId),
            Some(_) => Ok(()),
        }
    }

    fn join_unknown(&mut self, params: &JoinParams, now: Instant) -> Step<Joined> {
        let prefix = params.instance_id.as_deref().unwrap_or(&params.client_id);
        let id = format!("{prefix}-{}", Uuid::new_v4());
        let replaced = params
            .instance_id
            .as_ref()
            .and_then(|instance| self.instances.get(instance).cloned());
        if let Some(old) = replaced {
            return self.replace_static(&old, id, params, now);
        }
        if self.members.len() + self.pending.len() >= self.limits.members {
            return refuse_join(E::GroupMaxSizeReached, "");
        }
        if params.takes_member_id && params.instance_id.is_none() {
            self.pending
                .insert(id.clone(), now + params.session_timeout);
            return refuse_join(E::MemberIdRequired, &id);
        }
        self.add_member(id, params, now)
    }

    fn add_member(&mut self, id: String, params: &JoinParams, now: Instant) -> Step<Joined> {
        if self.members.is_empty() {
            self.protocol_type = Some(params.protocol_type.clone());
        }
        if let Some(instance) = &params.instance_id {
            self.instances.insert(instance.clone(), id.clone());
        }
        let member = Member::new(id.clone(), params, now);
        self.members.insert(id.clone(), member);
        self.prepare_rebalance(now);
        self.wait_for_join(&id, now)
    }

    /// A static member came back under a new id: it keeps its assignment, and
    /// nobody else notices unless it now wants something else.
    fn replace_static(
        &mut self,
        old_id: &str,
        id: String,
        params: &JoinParams,
        now: Instant,
    ) -> Step<Joined> {
        let Some(mut member) = self.members.remove(old_id) else {
            return refuse_join(E::UnknownMemberId, "");
        };
        member.refuse_waiting(E::FencedInstanceId.code());
        let unchanged = member.protocols == params.protocols;
        member.id.clone_from(&id);
        member.update(params);
        member.heard_from(now);
        self.members.insert(id.clone(), member);
        if let Some(instance) = &params.instance_id {
            self.instances.insert(instance.clone(), id.clone());
        }
        let was_leader = self.leader.as_deref() == Some(old_id);
        if was_leader {
            self.leader = Some(id.clone());
        }
        if self.state == State::Stable && unchanged {
            let mut joined = self.current(&id);
            if was_leader {
                joined.skip_assignment = params.can_skip_assignment;
                if !params.can_skip_assignment {
                    // An older client would assign again if told it leads.
                    joined.leader = old_id.to_owned();
                    joined.members.clear();
                }
            }
            return Step::Now(joined);
        }
        self.prepare_rebalance(now);
        self.wait_for_join(&id, now)
    }

    fn rejoin(&mut self, params: &JoinParams, now: Instant) -> Step<Joined> {
        let id = params.member_id.as_str();
        let leads = self.leader.as_deref() == Some(id);
        let Some(member) = self.members.get_mut(id) else {
            return refuse_join(E::UnknownMemberId, id);
        };
        let unchanged = member.protocols == params.protocols;
        member.heard_from(now);
        member.update(params);
        match self.state {
            // The answer got lost: give it again.
            State::CompletingRebalance if unchanged => Step::Now(self.current(id)),
            // Only a leader may ask for a rebalance without a change.
            State::Stable if unchanged && !leads => Step::Now(self.current(id)),
            _ => {
                self.prepare_rebalance(now);
                self.wait_for_join(id, now)
            }
        }
    }

    fn wait_for_join(&mut self, id: &str, now: Instant) -> Step<Joined> {
        let (sender, receiver) = oneshot::channel();
        if let Some(member) = self.members.get_mut(id) {
            member.joining = Some(sender);
        }
        self.complete_join_if_ready(now);
        Step::Wait(receiver)
    }

    // --- rebalancing -----------------------------------------------------

    fn prepare_rebalance(&mut self, now: Instant) {
        if self.state == State::PreparingRebalance {
            return;
        }
        for member in self.members.values_mut() {
            if let Some(waiter) = member.syncing.take() {
                let _ = waiter.send(Synced::refused(E::RebalanceInProgress.code()));
                member.heard_from(now);
            }
        }
        if self.state == State::Empty && !self.initial_delay.is_zero() {
            self.not_before = Some(now + self.initial_delay);
        }
        self.state = State::PreparingRebalance;
        self.sync_deadline = None;
        self.rebalance_deadline = Some(now + self.longest_rebalance());
    }

    fn longest_rebalance(&self) -> Duration {
        let timeouts = self.members.values().map(|member| member.rebalance_timeout);
        timeouts.max().unwrap_or_default()
    }

    fn complete_join_if_ready(&mut self, now: Instant) {
        let waits_for_more = self.not_before.is_some_and(|time| now < time);
        let all_joined = self.members.values().all(Member::is_joining) && self.pending.is_empty();
        if self.state == State::PreparingRebalance && all_joined && !waits_for_more {
            self.complete_join(now);
        }
    }

    /// Starts the next generation with those who have joined.
    fn complete_join(&mut self, now: Instant) {
        self.not_before = None;
        let late: Vec<String> = self
            .members
            .values()
            .filter(|member| !member.is_joining() && member.instance_id.is_none())
            .map(|member| member.id.clone())
            .collect();
        for id in late {
            self.forget(&id, E::UnknownMemberId);
        }
        if self.members.is_empty() {
            self.become_empty();
            return;
        }
        let Some(first) = self.members.values().find(|member| member.is_joining()) else {
            // Only absent static members: they have until their sessions end.
            self.rebalance_deadline = Some(now + self.longest_rebalance());
            return;
        };
        let leader_joined = self
            .leader
            .as_ref()
            .and_then(|id| self.members.get(id))
            .is_some_and(Member::is_joining);
        if !leader_joined {
            self.leader = Some(first.id.clone());
        }
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.protocol_name = self.vote();
        self.state = State::CompletingRebalance;
        self.rebalance_deadline = None;
        self.sync_deadline = Some(now + self.longest_rebalance());
        self.announce_generation(now);
    }

    fn announce_generation(&mut self, now: Instant) {
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let joined = self.current(&id);
            if let Some(member) = self.members.get_mut(&id) {
                member.assignment = Bytes::new();
                member.has_synced = false;
                if let Some(waiter) = member.joining.take() {
                    member.heard_from(now);
                    let _ = waiter.send(joined);
                }
            }
        }
    }

    /// What a member of the current generation is told when it joins.
    fn current(&self, id: &str) -> Joined {
        let leads = self.leader.as_deref() == Some(id);
        let protocol = self.protocol_name.clone().unwrap_or_default();
        let members = self.members.values().filter(|_| leads);
        Joined {
            error: 0,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol_name: self.protocol_name.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            member_id: id.to_owned(),
            skip_assignment: false,
            members: members
                .map(|member| JoinedMember {
                    id: member.id.clone(),
                    instance_id: member.instance_id.clone(),
                    metadata: member.metadata(&protocol),
                })
                .collect(),
        }
    }

    /// The protocol that all support and most put first.
    fn vote(&self) -> Option<String> {
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            let favourite = member.protocols.iter().find(|protocol| {
                let mut members = self.members.values();
                members.all(|other| other.supports(&protocol.name))
            });
            if let Some(protocol) = favourite {
                *votes.entry(protocol.name.as_str()).or_default() += 1;
            }
        }
        let winner = votes.into_iter().max_by_key(|(_, count)| *count);
        winner.map(|(name, _)| name.to_owned())
    }

    fn become_empty(&mut self) {
        self.state = State::Empty;
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.leader = None;
        self.protocol_name = None;
        self.rebalance_deadline = None;
        self.sync_deadline = None;
        self.not_before = None;
    }

    // --- syncing, heartbeats, leaving ------------------------------------

    fn check_member(
        &self,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
    ) -> Result<(), E> {
        self.check_instance(member_id, instance_id)?;
        if !self.members.contains_key(member_id) {
            return Err(E::UnknownMemberId);
        }
        match generation == self.generation {
            true => Ok(()),
            false => Err(E::IllegalGeneration),
        }
    }

    pub fn sync(
        &mut self,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
        assignments: Vec<(String, Bytes)>,
        now: Instant,
    ) -> Step<Synced> {
        if let Err(error) = self.check_member(member_id, instance_id, generation) {
            return Step::Now(Synced::refused(error.code()));
        }
        let leads = self.leader.as_deref() == Some(member_id);
        let assigned_bytes: usize = assignments.iter().map(|(_, bytes)| bytes.len()).sum();
        if assigned_bytes > self.limits.metadata_bytes {
            return Step::Now(Synced::refused(E::InvalidRequest.code()));
        }
        let (sender, receiver) = oneshot::channel();
        let Some(member) = self.members.get_mut(member_id) else {
            return Step::Now(Synced::refused(E::UnknownMemberId.code()));
        };
        member.heard_from(now);
        match self.state {
            State::Empty => Step::Now(Synced::refused(E::UnknownMemberId.code())),
            State::PreparingRebalance => Step::Now(Synced::refused(E::RebalanceInProgress.code())),
            State::Stable => {
                member.has_synced = true;
                let assignment = member.assignment.clone();
                Step::Now(self.synced(assignment))
            }
            State::CompletingRebalance => {
                member.syncing = Some(sender);
                member.has_synced = true;
                if leads {
                    self.assign(assignments, now);
                }
                Step::Wait(receiver)
            }
        }
    }

    fn synced(&self, assignment: Bytes) -> Synced {
        Synced {
            error: 0,
            protocol_type: self.protocol_type.clone(),
            protocol_name: self.protocol_name.clone(),
            assignment,
        }
    }

    /// The leader has spoken: hand out the assignments.
    fn assign(&mut self, assignments: Vec<(String, Bytes)>, now: Instant) {
        for (id, assignment) in assignments {
            if let Some(member) = self.members.get_mut(&id) {
                member.assignment = assignment;
            }
        }
        self.state = State::Stable;
        let template = self.synced(Bytes::new());
        for member in self.members.values_mut() {
            if let Some(waiter) = member.syncing.take() {
                let mut synced = template.clone();
                synced.assignment = member.assignment.clone();
                let _ = waiter.send(synced);
                member.heard_from(now);
            }
        }
    }

    pub fn heartbeat(
        &mut self,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
        now: Instant,
    ) -> Result<(), E> {
        self.check_member(member_id, instance_id, generation)?;
        if let Some(member) = self.members.get_mut(member_id) {
            member.heard_from(now);
        }
        match self.state {
            State::PreparingRebalance => Err(E::RebalanceInProgress),
            State::Empty => Err(E::UnknownMemberId),
            State::CompletingRebalance | State::Stable => Ok(()),
        }
    }

    /// Whether offsets may be committed, which also counts as a heartbeat.
    pub fn check_commit(
        &mut self,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
        now: Instant,
    ) -> Result<(), E> {
        if generation < 0 && member_id.is_empty() {
            return match self.members.is_empty() {
                true => Ok(()),
                false => Err(E::UnknownMemberId),
            };
        }
        self.check_member(member_id, instance_id, generation)?;
        if let Some(member) = self.members.get_mut(member_id) {
            member.heard_from(now);
        }
        match self.state {
            State::CompletingRebalance => Err(E::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    pub fn leave(
        &mut self,
        member_id: &str,
        instance_id: Option<&str>,
        now: Instant,
    ) -> Result<(), E> {
        let id = match instance_id {
            // An administrator removes a static member by its instance alone.
            Some(instance) if member_id.is_empty() => self
                .instances
                .get(instance)
                .cloned()
                .ok_or(E::UnknownMemberId)?,
            _ => member_id.to_owned(),
        };
        if self.pending.remove(&id).is_some() {
            self.complete_join_if_ready(now);
            return Ok(());
        }
        self.check_instance(&id, instance_id)?;
        if !self.members.contains_key(&id) {
            return Err(E::UnknownMemberId);
        }
        self.remove(&id, now);
        Ok(())
    }

    fn forget(&mut self, id: &str, error: E) {
        if let Some(mut member) = self.members.remove(id) {
            member.refuse_waiting(error.code());
            if let Some(instance) = &member.instance_id {
                self.instances.remove(instance);
            }
        }
        if self.leader.as_deref() == Some(id) {
            self.leader = None;
        }
    }

    fn remove(&mut self, id: &str, now: Instant) {
        self.forget(id, E::UnknownMemberId);
        if self.members.is_empty() && self.pending.is_empty() {
            self.become_empty();
            return;
        }
        self.prepare_rebalance(now);
        self.complete_join_if_ready(now);
    }

    // --- time ------------------------------------------------------------

    /// Acts on every deadline that has passed.
    pub fn tick(&mut self, now: Instant) {
        self.pending.retain(|_, deadline| *deadline > now);
        let expired: Vec<String> = self
            .members
            .values()
            .filter(|member| member.is_expired(now))
            .map(|member| member.id.clone())
            .collect();
        for id in expired {
            self.remove(&id, now);
        }
        let has_passed = |deadline: Option<Instant>| deadline.is_some_and(|time| time <= now);
        match self.state {
            State::PreparingRebalance if has_passed(self.rebalance_deadline) => {
                self.pending.clear();
                self.complete_join(now);
            }
            State::PreparingRebalance => self.complete_join_if_ready(now),
            State::CompletingRebalance | State::Stable if has_passed(self.sync_deadline) => {
                self.drop_unsynced(now);
            }
            _ => {}
        }
    }

    /// Members that never asked for their assignment hold the group up.
    fn drop_unsynced(&mut self, now: Instant) {
        self.sync_deadline = None;
        let silent: Vec<String> = self
            .members
            .values()
            .filter(|member| !member.has_synced)
            .map(|member| member.id.clone())
            .collect();
        for id in silent {
            self.remove(&id, now);
        }
    }
}

fn refuse_join(error: E, member_id: &str) -> Step<Joined> {
    Step::Now(Joined::refused(error.code(), member_id))
}

#[cfg(test)]
mod tests;
