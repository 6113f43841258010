//! One module per cluster of requests. A handler takes a decoded request and
//! gives a response or the protocol's own error in it; it never closes a
//! connection and never sees a socket.

pub mod committed;
pub mod configs;
pub mod fetch;
pub mod groups;
pub mod metadata;
pub mod offsets;
pub mod produce;
pub mod topics;

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use kafka_protocol::protocol::StrBytes;
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// What a handler may know of where a request came from.
#[derive(Clone)]
pub struct Context {
    pub node: Arc<Node>,
    pub client_id: String,
    pub client_host: String,
    pub version: i16,
    /// Set when the client has gone: waiting on its behalf is pointless.
    pub gone: CancellationToken,
}

/// Runs work that may wait for the disk without holding up other connections:
/// the runtime moves them to another thread meanwhile.
pub fn disk<R>(work: impl FnOnce() -> R) -> R {
    tokio::task::block_in_place(work)
}

/// The first of each of what a request names, however often it names it: the
/// answer grows with what there is, not with how often it is asked for.
pub fn distinct<T, K: Hash + Eq>(
    named: impl IntoIterator<Item = T>,
    key: impl Fn(&T) -> K,
) -> Vec<T> {
    let mut seen = HashSet::new();
    let first = named.into_iter().filter(|item| seen.insert(key(item)));
    first.collect()
}

/// The partitions that a request has named so far, to answer each once.
#[derive(Default)]
pub struct Asked<'a>(HashSet<(&'a str, i32)>);

impl<'a> Asked<'a> {
    /// Whether a partition is named for the first time.
    pub fn is_new(&mut self, topic: &'a str, partition: i32) -> bool {
        self.0.insert((topic, partition))
    }
}

pub fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}
