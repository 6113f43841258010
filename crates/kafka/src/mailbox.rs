//! What goes to the poll thread, and what comes from it.

use std::{
    collections::VecDeque,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::mpsc::{Sender, error::TrySendError};

use crate::Chunk;

/// What a partition's owner receives.
#[derive(Debug)]
pub enum Polled {
    /// Records in order of offset.
    Records(Chunk),
    /// An empty fetch: there is nothing at this offset yet.
    End {
        /// The end of the partition.
        offset: i64,
    },
    /// Some partition of this client stands outside of what the log still holds, and nothing more
    /// comes of it until it is moved. The owner checks whether it is this one, and starts again
    /// from where the log begins; else, for there is no telling, from where it is.
    OutOfRange,
}

/// Where a partition's records go.
pub(crate) enum Mailbox {
    Own(Sender<Polled>),
    Shared(Sender<(i32, Polled)>),
}

/// What the poll thread is told.
pub(crate) enum Command {
    Start {
        partition: i32,
        offset: i64,
        mailbox: Mailbox,
    },
    Seek {
        partition: i32,
        offset: i64,
    },
    Stop(i32),
    Hold(i32),
    Release(i32),
    Commit {
        partition: i32,
        offset: i64,
        metadata: String,
    },
    Acknowledge,
    Close,
}

/// The commands in the order in which they were given. The loop takes them, and so does a
/// rebalance that waits for owners to stop, on the same thread; what it does not need then it sets
/// aside for the loop.
pub(crate) struct Commands {
    receiver: Mutex<Receiver<Command>>,
    aside: Mutex<VecDeque<Command>>,
    rebalances: AtomicU64,
}

impl Commands {
    pub(crate) fn new(receiver: Receiver<Command>) -> Self {
        Self {
            receiver: Mutex::new(receiver),
            aside: Mutex::default(),
            rebalances: AtomicU64::new(0),
        }
    }

    /// A rebalance has given or taken partitions: what the loop knows of them no longer holds.
    pub(crate) fn note_rebalance(&self) {
        self.rebalances.fetch_add(1, Ordering::Relaxed);
    }

    /// How many rebalances there were.
    pub(crate) fn rebalances(&self) -> u64 {
        self.rebalances.load(Ordering::Relaxed)
    }

    /// The next command, those that were set aside first.
    pub(crate) fn next(&self) -> Result<Command, TryRecvError> {
        match self.aside.lock().pop_front() {
            Some(command) => Ok(command),
            None => self.receiver.lock().try_recv(),
        }
    }

    /// Waits for a command that is newer than those set aside.
    pub(crate) fn wait(&self, limit: Duration) -> Result<Command, RecvTimeoutError> {
        self.receiver.lock().recv_timeout(limit)
    }

    pub(crate) fn set_aside(&self, command: Command) {
        self.aside.lock().push_back(command);
    }
}

/// Why a mailbox did not take an item.
pub(crate) enum Refused {
    Full(Polled),
    Closed,
}

impl Mailbox {
    pub(crate) fn try_send(&self, partition: i32, item: Polled) -> Result<(), Refused> {
        match self {
            Self::Own(sender) => sender.try_send(item).map_err(|error| match error {
                TrySendError::Full(item) => Refused::Full(item),
                TrySendError::Closed(_) => Refused::Closed,
            }),
            Self::Shared(sender) => {
                sender
                    .try_send((partition, item))
                    .map_err(|error| match error {
                        TrySendError::Full((_, item)) => Refused::Full(item),
                        TrySendError::Closed(_) => Refused::Closed,
                    })
            }
        }
    }

    pub(crate) async fn send_within(
        &self,
        partition: i32,
        item: Polled,
        limit: Duration,
    ) -> Result<(), Refused> {
        let room = async {
            match self {
                Self::Own(sender) => sender.reserve().await.map(drop).is_ok(),
                Self::Shared(sender) => sender.reserve().await.map(drop).is_ok(),
            }
        };
        // This thread is the only sender, so that the room found is still there afterwards.
        match tokio::time::timeout(limit, room).await {
            Ok(true) => self.try_send(partition, item),
            Ok(false) => Err(Refused::Closed),
            Err(_) => Err(Refused::Full(item)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_aside_comes_before_what_is_newer() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let commands = Commands::new(receiver);
        for partition in 0..3 {
            sender.send(Command::Hold(partition)).unwrap();
        }
        for _ in 0..2 {
            let command = commands.wait(Duration::ZERO).unwrap();
            commands.set_aside(command);
        }
        sender.send(Command::Hold(3)).unwrap();
        drop(sender);
        for expected in 0..4 {
            let found = commands.next();
            assert!(matches!(found, Ok(Command::Hold(partition)) if partition == expected));
        }
        assert!(matches!(commands.next(), Err(TryRecvError::Disconnected)));
    }
}
