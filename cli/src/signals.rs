//! SIGINT and SIGTERM, for commands that finish what they began: the first signal asks to stop, the
//! second means at once. None is missed between two waits.

use futures::{Stream, stream::unfold};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::CliError;

/// From here on signals no longer end the process by themselves.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Starts listening.
    ///
    /// # Errors
    /// When the system lets nobody listen.
    pub fn new() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| CliError::System(format!("cannot listen for signals: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Completes on the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// One item per signal.
    pub fn stream(&mut self) -> impl Stream<Item = ()> {
        unfold(self, |signals| async move {
            signals.next().await;
            Some(((), signals))
        })
    }
}
