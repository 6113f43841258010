//! A member of a group, and what it sends and gets when it joins and syncs.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

/// One way of assigning partitions that a member knows, with its own data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    pub name: String,
    pub metadata: Bytes,
}

/// A member's wish to join.
#[derive(Debug, Clone)]
pub struct JoinParams {
    pub member_id: String,
    pub instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_timeout: Duration,
    pub rebalance_timeout: Duration,
    pub protocol_type: String,
    pub protocols: Vec<Protocol>,
    /// The client can take an id first and join with it (KIP-394).
    pub takes_member_id: bool,
    /// The client understands that a returning leader need not assign again.
    pub can_skip_assignment: bool,
}

impl JoinParams {
    /// The memory that keeping this takes.
    pub fn held_bytes(&self) -> usize {
        let names = self.client_id.len() + self.client_host.len();
        names + held_bytes(self.instance_id.as_deref(), &self.protocols)
    }
}

fn held_bytes(instance_id: Option<&str>, protocols: &[Protocol]) -> usize {
    let each = protocols
        .iter()
        .map(|protocol| size_of::<Protocol>() + protocol.name.len() + protocol.metadata.len());
    instance_id.map_or(0, str::len) + each.sum::<usize>()
}

/// The answer to a join; `error` is a protocol code, 0 for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joined {
    pub error: i16,
    pub generation: i32,
    pub protocol_type: Option<String>,
    pub protocol_name: Option<String>,
    pub leader: String,
    pub member_id: String,
    pub skip_assignment: bool,
    /// Everybody's data, for the leader only.
    pub members: Vec<JoinedMember>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedMember {
    pub id: String,
    pub instance_id: Option<String>,
    pub metadata: Bytes,
}

impl Joined {
    pub fn refused(error: i16, member_id: &str) -> Joined {
        Joined {
            error,
            generation: -1,
            member_id: member_id.to_owned(),
            ..Joined::default()
        }
    }
}

/// The answer to a sync.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Synced {
    pub error: i16,
    pub protocol_type: Option<String>,
    pub protocol_name: Option<String>,
    pub assignment: Bytes,
}

impl Synced {
    pub fn refused(error: i16) -> Synced {
        Synced {
            error,
            ..Synced::default()
        }
    }
}

/// An answer that is there, or one that others have to bring about.
#[derive(Debug)]
pub enum Step<T> {
    Now(T),
    Wait(oneshot::Receiver<T>),
}

#[derive(Debug)]
pub struct Member {
    pub id: String,
    pub instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_timeout: Duration,
    pub rebalance_timeout: Duration,
    pub protocols: Vec<Protocol>,
    pub assignment: Bytes,
    /// When the member counts as gone unless it is heard from.
    pub deadline: Instant,
    pub joining: Option<oneshot::Sender<Joined>>,
    pub syncing: Option<oneshot::Sender<Synced>>,
    /// Whether it has asked for its assignment in this generation.
    pub has_synced: bool,
}

impl Member {
    pub fn new(id: String, params: &JoinParams, now: Instant) -> Member {
        Member {
            id,
            instance_id: params.instance_id.clone(),
            client_id: params.client_id.clone(),
            client_host: params.client_host.clone(),
            session_timeout: params.session_timeout,
            rebalance_timeout: params.rebalance_timeout,
            protocols: params.protocols.clone(),
            assignment: Bytes::new(),
            deadline: now + params.session_timeout,
            joining: None,
            syncing: None,
            has_synced: false,
        }
    }

    /// Takes over what a member says when it joins again.
    pub fn update(&mut self, params: &JoinParams) {
        self.client_id.clone_from(&params.client_id);
        self.client_host.clone_from(&params.client_host);
        self.session_timeout = params.session_timeout;
        self.rebalance_timeout = params.rebalance_timeout;
        self.protocols.clone_from(&params.protocols);
    }

    /// The memory that what it said of itself takes.
    pub fn held_bytes(&self) -> usize {
        let names = self.id.len() + self.client_id.len() + self.client_host.len();
        names + held_bytes(self.instance_id.as_deref(), &self.protocols)
    }

    pub fn heard_from(&mut self, now: Instant) {
        self.deadline = now + self.session_timeout;
    }

    pub fn is_joining(&self) -> bool {
        self.joining
            .as_ref()
            .is_some_and(|waiter| !waiter.is_closed())
    }

    pub fn is_syncing(&self) -> bool {
        self.syncing
            .as_ref()
            .is_some_and(|waiter| !waiter.is_closed())
    }

    /// Gone: neither waiting for an answer nor heard from in time.
    pub fn is_expired(&self, now: Instant) -> bool {
        !self.is_joining() && !self.is_syncing() && self.deadline <= now
    }

    pub fn supports(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|known| known.name == protocol)
    }

    pub fn metadata(&self, protocol: &str) -> Bytes {
        let known = self.protocols.iter().find(|known| known.name == protocol);
        known
            .map(|known| known.metadata.clone())
            .unwrap_or_default()
    }

    /// Answers a waiting join or sync with an error.
    pub fn refuse_waiting(&mut self, error: i16) {
        if let Some(waiter) = self.joining.take() {
            let _ = waiter.send(Joined::refused(error, &self.id));
        }
        if let Some(waiter) = self.syncing.take() {
            let _ = waiter.send(Synced::refused(error));
        }
    }
}
