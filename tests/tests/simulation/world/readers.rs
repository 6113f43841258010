//! The part of the schedule in which analytics reads, writes and crashes, and what must hold of its store.

use super::World;
use crate::reader::{Log, Reader};

const READERS_MAX: usize = 3;

impl World {
    /// Lets an instance of analytics do a few things, or something happen to one.
    pub(super) fn step_readers(&mut self) -> Result<(), String> {
        match self.random.below(60) {
            0 if !self.readers.is_empty() && !self.calm => {
                let gone = self.random.index(self.readers.len());
                let reader = self.readers.swap_remove(gone);
                self.coverage.reader_crashes += 1;
                self.coverage.checkpoints_overtaken += reader.overtaken;
                self.coverage.outrun += reader.outrun;
                self.tell(|| format!("reader {} crashes", reader.id));
            }
            1 if self.readers.len() < READERS_MAX => self.join_reader(),
            2 | 3 => self.store.lock().land_late(),
            _ => {
                if self.readers.is_empty() {
                    self.join_reader();
                }
                let place = self.random.index(self.readers.len());
                for _ in 0..1 + self.random.below(6) {
                    self.step_reader(place)?;
                }
            }
        }
        self.check_store()
    }

    fn join_reader(&mut self) {
        let id = self.next_reader;
        self.next_reader += 1;
        self.tell(|| format!("reader {id} starts"));
        self.readers.push(Reader::new(id, self.store.clone()));
    }

    fn step_reader(&mut self, place: usize) -> Result<(), String> {
        let log = Log {
            low: self.deltas_low,
            records: &self.deltas,
        };
        let reader = &mut self.readers[place];
        let (id, done) = (reader.id, reader.step(&mut self.random, log));
        if self.config.told {
            let place = self.readers[place].place();
            self.tell(|| format!("reader {id} {done}: {place}"));
        }
        self.check_store()
    }

    fn check_store(&self) -> Result<(), String> {
        let chain = self.store.lock().chain;
        chain.map_or(Ok(()), |row| {
            self.judge.check_chain(&row, &self.source, self.cuts)
        })
    }

    /// Analytics reads what is left, and then every instance and the store agree with the judge.
    pub(super) fn rest_readers(&mut self) -> Result<(), String> {
        for _ in 0..10 {
            self.store.lock().land_late();
        }
        self.store.lock().calm = true;
        if self.readers.is_empty() {
            self.join_reader();
        }
        for _ in 0..3_000 {
            let mut at_rest = true;
            for place in 0..self.readers.len() {
                self.step_reader(place)?;
                let log = Log {
                    low: self.deltas_low,
                    records: &self.deltas,
                };
                at_rest &= self.readers[place].is_at_rest(log);
            }
            if at_rest {
                return self.check_readers();
            }
        }
        Err(String::from("analytics finds no rest"))
    }

    fn check_readers(&self) -> Result<(), String> {
        for reader in &self.readers {
            let id = reader.id;
            let [memory, both] = reader
                .counts()
                .ok_or_else(|| format!("reader {id} does not know the store's checkpoint"))?;
            let users = reader.user_counts().unwrap_or_default();
            let check = |figures, place| {
                let checked = self.judge.check_figures(figures, &self.source, self.cuts);
                checked.map_err(|error| format!("reader {id}, {place}: {error}"))
            };
            check(&memory, "memory")?;
            check(&both, "store")?;
            self.judge.check_users(&users, &both)?;
            if let Some(row) = self.store.lock().chain {
                let sum: u64 = both.values().sum();
                let counted = row.ledger.outcomes().counted;
                if sum != counted || memory != both {
                    let figures = format!("rows sum to {sum}, memory holds {memory:?}");
                    return Err(format!("reader {id}: {figures}, counted are {counted}"));
                }
            }
        }
        Ok(())
    }
}
