//! Which dead letters a question is about. Pure.

use std::collections::HashSet;

use streamgauge_proto::{ErrorCode, Problem, v1};

use super::{
    letter::{Letter, LetterId},
    mark::State,
};
use crate::core::{decode::decode, reject::Reason};

/// All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    ids: HashSet<LetterId>,
    reasons: Vec<Reason>,
    topic: Option<String>,
    partitions: Vec<i32>,
    offsets: (Option<i64>, Option<i64>),
    times_us: (Option<i64>, Option<i64>),
    event_types: Vec<String>,
    /// The states that are wanted; empty: any.
    pub states: Vec<State>,
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// Names the field that cannot be read.
    pub fn read(filter: &v1::DeadLetterFilter) -> Result<Self, Problem> {
        let known = |field: &str, text: &str, all: &[&str]| {
            let message = format!("there is no `{text}` among {}", all.join(", "));
            Problem::new(ErrorCode::InvalidValue, message).field(field)
        };
        let reason = |text: &String| {
            Reason::parse(text)
                .ok_or_else(|| known("reasons", text, &Reason::ALL.map(Reason::as_str)))
        };
        let state = |text: &String| {
            State::parse(text).ok_or_else(|| known("states", text, &State::ALL.map(State::as_str)))
        };
        Ok(Self {
            ids: HashSet::new(),
            reasons: filter
                .reasons
                .iter()
                .map(reason)
                .collect::<Result<_, _>>()?,
            topic: (!filter.topic.is_empty()).then(|| filter.topic.clone()),
            partitions: filter.partitions.clone(),
            offsets: (filter.from_offset, filter.to_offset),
            times_us: (filter.from_us, filter.to_us),
            event_types: filter.event_types.clone(),
            states: filter.states.iter().map(state).collect::<Result<_, _>>()?,
        })
    }

    /// Only these, of what the filter finds.
    #[must_use]
    pub fn only(mut self, ids: impl IntoIterator<Item = LetterId>) -> Self {
        self.ids = ids.into_iter().collect();
        self
    }

    /// The ids that were named.
    pub fn ids(&self) -> &HashSet<LetterId> {
        &self.ids
    }

    /// Nothing that matches was refused before this time.
    pub fn not_before_us(&self) -> Option<i64> {
        self.times_us.0
    }

    /// Whether a dead letter is meant, its state aside.
    pub fn matches(&self, letter: &Letter, value: Option<&[u8]>) -> bool {
        let any = |wanted: bool, empty: bool| empty || wanted;
        any(self.ids.contains(&letter.id), self.ids.is_empty())
            && any(
                self.reasons.contains(&letter.reason),
                self.reasons.is_empty(),
            )
            && self
                .topic
                .as_ref()
                .is_none_or(|topic| **topic == *letter.id.topic)
            && any(
                self.partitions.contains(&letter.id.partition),
                self.partitions.is_empty(),
            )
            && within(letter.id.offset, self.offsets)
            && within(letter.time_us, self.times_us)
            && (self.event_types.is_empty() || self.is_of_type(letter, value))
    }

    fn is_of_type(&self, letter: &Letter, value: Option<&[u8]>) -> bool {
        let Some(event_type) = event_type(letter, value) else {
            return false;
        };
        self.event_types.iter().any(|wanted| wanted == event_type)
    }
}

/// The type of the event, where one can be read.
pub fn event_type<'a>(letter: &Letter, value: Option<&'a [u8]>) -> Option<&'a str> {
    let whole = value.filter(|value| letter.is_whole() && !value.is_empty())?;
    Some(decode(whole).ok()?.event_type)
}

fn within(number: i64, (from, to): (Option<i64>, Option<i64>)) -> bool {
    from.is_none_or(|from| number >= from) && to.is_none_or(|to| number < to)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::desk::{letter::Stored, test_records};

    fn stored(reason: Reason, offset: i64, time_us: i64, event_type: &str) -> Stored {
        let event = v1::Event {
            event_type: event_type.to_owned(),
            ..v1::Event::default()
        };
        let headers = test_records::letter_headers("events", 1, offset, reason, time_us);
        let chunk = test_records::chunk(0, None, Some(&event.encode_to_vec()), &headers);
        Stored::of(&chunk.get(0).unwrap()).unwrap()
    }

    #[test]
    fn each_part_of_a_filter_must_hold() {
        let stored = stored(Reason::Late, 5, 100, "click");
        let matches = |change: fn(&mut v1::DeadLetterFilter)| {
            let mut filter = v1::DeadLetterFilter::default();
            change(&mut filter);
            let filter = Filter::read(&filter).unwrap();
            filter.matches(&stored.letter, stored.value.as_deref())
        };
        assert!(matches(|_| {}));
        assert!(matches(
            |it| it.reasons = vec!["late".into(), "empty".into()]
        ));
        assert!(!matches(|it| it.reasons = vec!["empty".into()]));
        assert!(matches(|it| it.topic = "events".into()));
        assert!(!matches(|it| it.topic = "other".into()));
        assert!(matches(|it| it.partitions = vec![0, 1]));
        assert!(!matches(|it| it.partitions = vec![0]));
        assert!(matches(
            |it| (it.from_offset, it.to_offset) = (Some(5), Some(6))
        ));
        assert!(!matches(|it| it.to_offset = Some(5)));
        assert!(matches(|it| (it.from_us, it.to_us) = (Some(100), Some(101))));
        assert!(!matches(|it| it.from_us = Some(101)));
        assert!(matches(|it| it.event_types = vec!["click".into()]));
        assert!(!matches(|it| it.event_types = vec!["view".into()]));
    }

    #[test]
    fn what_is_unknown_is_named() {
        let filter = v1::DeadLetterFilter {
            reasons: vec!["lateness".into()],
            ..v1::DeadLetterFilter::default()
        };
        let problem = Filter::read(&filter).unwrap_err();
        assert_eq!(problem.field.as_deref(), Some("reasons"));
        assert!(problem.message.contains("late,"), "{problem}");
    }
}
