//! What one event of the canary is, and how it is recognised in an answer.

use streamgauge_proto::v1::SubmittedEvent;

use crate::Door;

const MICROS: i64 = 1_000_000;

/// One event under way. Its user has no other event in its second, so that a count of that second tells of this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) event_id: String,
    pub(crate) user_id: String,
    pub(crate) occurred_at_us: i64,
}

impl Probe {
    /// The event of this number. `canary` names one canary among all that ever ran on the system.
    pub(crate) fn new(
        canary: &str,
        door: Door,
        number: u64,
        users: u16,
        event_id: String,
        now_us: i64,
    ) -> Self {
        let user = number % u64::from(users.max(1));
        Self {
            event_id,
            user_id: format!("{canary}-{}-{user}", door.as_str()),
            occurred_at_us: now_us,
        }
    }

    /// As it is submitted.
    pub(crate) fn event(&self) -> SubmittedEvent {
        SubmittedEvent {
            event_id: self.event_id.clone(),
            user_id: self.user_id.clone(),
            event_type: String::from(streamgauge_chain::canary::EVENT_TYPE),
            occurred_at_us: Some(self.occurred_at_us),
            ..SubmittedEvent::default()
        }
    }

    /// The second in which it is counted: its start and its end, microseconds.
    pub(crate) fn second_us(&self) -> (i64, i64) {
        let start = self.occurred_at_us.div_euclid(MICROS) * MICROS;
        (start, start + MICROS)
    }

    /// Whether an answer about that second shows it.
    pub(crate) fn is_in(&self, answer: &[Shown]) -> bool {
        let (start_us, _) = self.second_us();
        answer.iter().any(|shown| {
            shown.key == [self.user_id.as_str()] && shown.start_us == start_us && shown.count > 0
        })
    }
}

/// One step of one key in an answer.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) key: Vec<String>,
    /// Start of the step, microseconds.
    pub(crate) start_us: i64,
    pub(crate) count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(number: u64, now_us: i64) -> Probe {
        Probe::new(
            "canary-1",
            Door::Http,
            number,
            3,
            String::from("id"),
            now_us,
        )
    }

    fn answer(user: &str, start_us: i64, count: u64) -> Shown {
        Shown {
            key: vec![user.to_owned()],
            start_us,
            count,
        }
    }

    #[test]
    fn users_take_turns() {
        let users: Vec<_> = (0..4).map(|number| probe(number, 0).user_id).collect();
        let expected = [
            "canary-1-http-0",
            "canary-1-http-1",
            "canary-1-http-2",
            "canary-1-http-0",
        ];
        assert_eq!(users, expected);
    }

    #[test]
    fn only_its_own_second_shows_it() {
        let probe = probe(0, 5_999_999);
        let user = "canary-1-http-0";
        assert_eq!(probe.second_us(), (5_000_000, 6_000_000));
        assert!(probe.is_in(&[answer(user, 5_000_000, 1)]));
        for other in [
            answer(user, 5_000_000, 0),
            answer(user, 4_000_000, 1),
            answer("canary-1-http-1", 5_000_000, 1),
        ] {
            assert!(!probe.is_in(&[other]));
        }
        assert!(!probe.is_in(&[]));
    }

    #[test]
    fn a_second_before_the_epoch_is_one_as_well() {
        assert_eq!(probe(0, -1).second_us(), (-1_000_000, 0));
    }
}
