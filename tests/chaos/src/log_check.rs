//! What the events' topic itself says: which ids it holds, how often, and in which order.
//!
//! Pure: records go in one by one, findings come out. An id is `RUN-USER-SEQUENCE`.

use std::collections::HashMap;

/// An event of a run: its user's number and its sequence number.
pub type EventKey = (u32, u32);

/// Writes an event's id.
pub fn event_id(run: &str, (user, sequence): EventKey) -> String {
    format!("{run}-{user}-{sequence}")
}

/// Reads an event's id; the run first. `None` for an id that no run made.
pub fn parse_id(id: &str) -> Option<(&str, EventKey)> {
    let (rest, sequence) = id.rsplit_once('-')?;
    let (run, user) = rest.rsplit_once('-')?;
    Some((run, (user.parse().ok()?, sequence.parse().ok()?)))
}

/// The records of one run as they lie in the log.
#[derive(Debug, Default)]
pub struct LogCheck {
    users: Vec<User>,
    order_breaks: u64,
    strayed: u64,
}

#[derive(Clone, Debug, Default)]
struct User {
    /// How often each sequence number occurs.
    copies: Vec<u16>,
    /// The partition of its first record.
    partition: Option<i32>,
}

/// What the log holds against what was submitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Acknowledged events of which there is no record.
    pub absent: u64,
    /// Records beyond the number of times that their event was submitted.
    pub surplus: u64,
    /// Events whose first record lies behind that of a later event of the same user.
    pub order_breaks: u64,
    /// Records in another partition than the first of their user.
    pub strayed: u64,
}

impl LogCheck {
    /// Takes the next record of a partition.
    pub fn record(&mut self, partition: i32, (user, sequence): EventKey) {
        let (user, sequence) = (user as usize, sequence as usize);
        if self.users.len() <= user {
            self.users.resize_with(user + 1, User::default);
        }
        let user = &mut self.users[user];
        self.strayed += u64::from(*user.partition.get_or_insert(partition) != partition);
        if user.copies.len() <= sequence {
            // Its first record, and it is the latest so far.
            user.copies.resize(sequence + 1, 0);
        } else if user.copies[sequence] == 0 {
            self.order_breaks += 1;
        }
        user.copies[sequence] = user.copies[sequence].saturating_add(1);
    }

    /// Holds the records against what was acknowledged: of each user the sequence numbers below
    /// `acknowledged`, submitted once unless `attempts` says more.
    pub fn findings(&self, acknowledged: &[u32], attempts: &HashMap<EventKey, u16>) -> Findings {
        let mut findings = Findings {
            order_breaks: self.order_breaks,
            strayed: self.strayed,
            ..Findings::default()
        };
        let none = User::default();
        for (number, count) in acknowledged.iter().enumerate() {
            let user = self.users.get(number).unwrap_or(&none);
            let present = user.copies.iter().take(*count as usize);
            let present = present.filter(|copies| **copies > 0).count() as u64;
            findings.absent += u64::from(*count) - present;
            for (sequence, copies) in user.copies.iter().enumerate() {
                let key = (number as u32, sequence as u32);
                let submitted = attempts.get(&key).copied().unwrap_or(1);
                findings.surplus += u64::from(copies.saturating_sub(submitted));
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(records: &[(i32, EventKey)]) -> LogCheck {
        let mut check = LogCheck::default();
        for (partition, key) in records {
            check.record(*partition, *key);
        }
        check
    }

    #[test]
    fn each_defect_is_found() {
        let none = HashMap::new();
        let cases = [
            (vec![(0, (0, 0)), (0, (0, 1))], [0, 0, 0, 0]),
            (vec![(0, (0, 1))], [1, 0, 0, 0]),
            (vec![(0, (0, 1)), (0, (0, 0))], [0, 0, 1, 0]),
            (vec![(0, (0, 0)), (0, (0, 1)), (0, (0, 0))], [0, 1, 0, 0]),
            (vec![(0, (0, 0)), (1, (0, 1))], [0, 0, 0, 1]),
            (vec![], [2, 0, 0, 0]),
        ];
        for (records, [absent, surplus, order_breaks, strayed]) in cases {
            let expected = Findings {
                absent,
                surplus,
                order_breaks,
                strayed,
            };
            assert_eq!(
                check(&records).findings(&[2], &none),
                expected,
                "{records:?}"
            );
        }
    }

    #[test]
    fn a_retry_may_lie_there_twice_and_not_thrice() {
        let attempts = HashMap::from([((0, 0), 2)]);
        let twice = check(&[(0, (0, 0)), (0, (0, 0))]);
        assert_eq!(twice.findings(&[1], &attempts), Findings::default());
        let thrice = check(&[(0, (0, 0)), (0, (0, 0)), (0, (0, 0))]);
        assert_eq!(thrice.findings(&[1], &attempts).surplus, 1);
    }

    proptest! {
        #[test]
        fn ids_are_read_as_they_were_written(run in "[a-z0-9-]{1,20}", user: u32, sequence: u32) {
            let id = event_id(&run, (user, sequence));
            prop_assert_eq!(parse_id(&id), Some((run.as_str(), (user, sequence))));
        }

        #[test]
        fn repeats_of_what_was_seen_break_no_order(ends in prop::collection::vec(1u32..20, 1..20)) {
            // Each run begins anew at 0 and goes on to its end, as whole requests are repeated.
            let mut check = LogCheck::default();
            let mut attempts = HashMap::new();
            for end in &ends {
                for sequence in 0..*end {
                    check.record(3, (0, sequence));
                    *attempts.entry((0, sequence)).or_insert(0) += 1;
                }
            }
            let most = *ends.iter().max().expect("not empty");
            prop_assert_eq!(check.findings(&[most], &attempts), Findings::default());
        }
    }
}
