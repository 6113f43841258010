//! The one signal that ends everything: raised once, seen by all who hold it, never lowered.

use std::sync::{Arc, OnceLock};

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Clones share the signal.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    raised: Arc<Raised>,
}

/// When a signal was raised, and the one that it follows.
#[derive(Debug, Default)]
struct Raised {
    at: OnceLock<Instant>,
    before: Option<Arc<Raised>>,
}

impl Raised {
    fn after(before: &Arc<Raised>) -> Arc<Self> {
        Arc::new(Raised {
            at: OnceLock::new(),
            before: Some(Arc::clone(before)),
        })
    }
}

impl Shutdown {
    pub fn new() -> Self {
        Shutdown::default()
    }

    pub fn trigger(&self) {
        self.raised.at.get_or_init(Instant::now);
        self.token.cancel();
    }

    pub fn is_triggered(&self) -> bool {
        self.token.is_cancelled()
    }

    /// When the end began: with this signal, or with one that it follows.
    pub fn since(&self) -> Option<Instant> {
        let chain = std::iter::successors(Some(&self.raised), |raised| raised.before.as_ref());
        chain.filter_map(|raised| raised.at.get().copied()).min()
    }

    /// Completes once the signal is raised; at once if it has been.
    pub async fn triggered(&self) {
        self.token.cancelled().await;
    }

    /// As `triggered`, for where a future must own what it waits for.
    pub fn triggered_owned(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }

    /// A signal that is raised with this one, or on its own without raising this one.
    pub fn child(&self) -> Shutdown {
        Shutdown {
            token: self.token.child_token(),
            raised: Raised::after(&self.raised),
        }
    }

    /// A signal that is only raised on its own, for a later stage of the same end: the end began with whichever was
    /// raised first.
    pub fn later(&self) -> Shutdown {
        Shutdown {
            token: CancellationToken::new(),
            raised: Raised::after(&self.raised),
        }
    }
}

/// Completes on SIGINT or SIGTERM.
pub async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                terminate.recv().await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot listen for SIGTERM");
                std::future::pending::<()>().await;
            }
        }
    };
    let interrupt = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "cannot listen for SIGINT");
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = terminate => tracing::info!(signal = "SIGTERM", "shutting down"),
        () = interrupt => tracing::info!(signal = "SIGINT", "shutting down"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_follows_but_does_not_lead() {
        let parent = Shutdown::new();
        let (first, second) = (parent.child(), parent.child());
        first.trigger();
        first.triggered().await;
        assert!(!parent.is_triggered() && !second.is_triggered());
        parent.clone().trigger();
        second.triggered_owned().await;
        assert!(parent.is_triggered());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_began_with_the_first_signal() {
        let first = Shutdown::new();
        let (child, later) = (first.child(), first.later());
        assert_eq!(later.since(), None);
        let began = Instant::now();
        first.trigger();
        tokio::time::advance(std::time::Duration::from_secs(3)).await;
        assert!(!later.is_triggered());
        later.trigger();
        for signal in [&first, &child, &later] {
            assert_eq!(signal.since(), Some(began));
        }
        let alone = Shutdown::new();
        alone.later().trigger();
        assert_eq!(alone.since(), None);
    }
}
