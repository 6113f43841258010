//! The memory of requests under way, held as it arrives and given back when their answers are sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use streamgauge_proto::Problem;

use super::counts::{LimitScope, Shed};
use super::{Admission, Refused};

impl Admission {
    /// Room for a request of so many bytes, as far as is known. They are held as they arrive, not as they are
    /// announced: a client that announces much and sends little must not keep others out.
    pub fn room(self: &Arc<Self>, expected: usize) -> Result<Room, Problem> {
        let before = self.in_flight_bytes.load(Ordering::Relaxed);
        // Full is full for a request of unknown size, too.
        if before.saturating_add(expected.max(1)) > self.in_flight_bytes_max {
            return Err(self.no_room());
        }
        Ok(Room {
            admission: self.clone(),
            held: AtomicUsize::new(0),
        })
    }

    fn no_room(&self) -> Problem {
        self.counts.limited(LimitScope::InFlightBytes);
        self.counts.shed(Shed::InFlightBytes);
        Refused::overloaded("too many bytes are on their way already; retry later").problem
    }
}

/// The memory of one request, from its first byte until its verdicts are written.
#[must_use]
pub struct Room {
    admission: Arc<Admission>,
    held: AtomicUsize,
}

impl Room {
    /// Holds so many bytes more.
    pub fn grow(&self, bytes: usize) -> Result<(), Problem> {
        let admission = &self.admission;
        let before = admission
            .in_flight_bytes
            .fetch_add(bytes, Ordering::Relaxed);
        // Noted in any case, for the drop to give back.
        self.held.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > admission.in_flight_bytes_max {
            return Err(admission.no_room());
        }
        Ok(())
    }

    /// Takes a part of what is held out, to be given back on its own.
    pub fn split(&self, bytes: usize) -> Self {
        let taken = bytes.min(self.held());
        self.held.fetch_sub(taken, Ordering::Relaxed);
        Self {
            admission: self.admission.clone(),
            held: AtomicUsize::new(taken),
        }
    }

    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.admission
            .in_flight_bytes
            .fetch_sub(*self.held.get_mut(), Ordering::Relaxed);
    }
}
