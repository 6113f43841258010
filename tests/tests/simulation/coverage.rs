//! How often each fault occurred, so that a run can show that it does.

/// Counts over one seed or many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage {
    pub crashes: u64,
    pub handovers: u64,
    pub zombies: u64,
    pub lost_acknowledgements: u64,
    pub failed_writes: u64,
    pub late_writes: u64,
    pub placeless_acknowledgements: u64,
    pub truncations: u64,
    pub holes: u64,
    pub overtaken: u64,
    pub void: u64,
    pub stale_records: u64,
    pub incomplete_reads: u64,
    pub garbage: u64,
    pub reader_crashes: u64,
    pub store_failures: u64,
    pub store_unheard: u64,
    pub store_late: u64,
    pub store_conflicts: u64,
    pub checkpoints_overtaken: u64,
    pub outrun: u64,
    pub cuts: u64,
}

impl Coverage {
    fn counts(&mut self) -> [&mut u64; 22] {
        [
            &mut self.crashes,
            &mut self.handovers,
            &mut self.zombies,
            &mut self.lost_acknowledgements,
            &mut self.failed_writes,
            &mut self.late_writes,
            &mut self.placeless_acknowledgements,
            &mut self.truncations,
            &mut self.holes,
            &mut self.overtaken,
            &mut self.void,
            &mut self.stale_records,
            &mut self.incomplete_reads,
            &mut self.garbage,
            &mut self.reader_crashes,
            &mut self.store_failures,
            &mut self.store_unheard,
            &mut self.store_late,
            &mut self.store_conflicts,
            &mut self.checkpoints_overtaken,
            &mut self.outrun,
            &mut self.cuts,
        ]
    }

    pub fn add(&mut self, mut other: Coverage) {
        for (sum, more) in self.counts().into_iter().zip(other.counts()) {
            *sum += *more;
        }
    }

    pub fn is_complete(&mut self) -> bool {
        self.counts().iter().all(|count| **count >= 50)
    }
}
