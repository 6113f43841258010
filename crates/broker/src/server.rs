//! Accepting connections, within a bound, until told to stop.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::connection;
use crate::node::Node;
use crate::stats::add;

/// Pause after a failed accept: the usual cause is a lack of file handles,
/// which passes only with time.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Serves the listener until the node stops.
pub async fn serve(node: Arc<Node>, listener: TcpListener, tasks: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            () = node.stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let counters = &node.counters;
        let open = counters.connections_open.load(Ordering::Relaxed);
        if open >= node.config.max_connections as u64 {
            add(&counters.connections_refused, 1);
            warn!(%peer, open, "refused a connection: max_connections are open");
            continue;
        }
        add(&counters.connections_accepted, 1);
        let open = OpenConnection::new(&node);
        let node = Arc::clone(&node);
        tasks.spawn(async move {
            let _open = open;
            connection::serve(node, stream, peer.to_string()).await;
        });
    }
}

/// Counts a connection as open for as long as it lives.
struct OpenConnection(Arc<Node>);

impl OpenConnection {
    fn new(node: &Arc<Node>) -> OpenConnection {
        add(&node.counters.connections_open, 1);
        OpenConnection(Arc::clone(node))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0
            .counters
            .connections_open
            .fetch_sub(1, Ordering::Relaxed);
    }
}
