//! Which dead letters a command is about: ids and filters as people write them.

use clap::Args;
use streamgauge_proto::v1::{DeadLetterFilter, DeadLetterId, DeadLetterSelection};

use crate::{error::CliError, times};

/// What must hold of a dead letter; all of it.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which dead letters")]
pub struct FilterArgs {
    /// Refused for this reason, as in `late`
    #[arg(long = "reason", value_name = "REASON", value_delimiter = ',')]
    reasons: Vec<String>,
    /// From this source topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// From this partition of the source
    #[arg(long = "partition", value_name = "N", value_delimiter = ',')]
    partitions: Vec<i32>,
    /// At these offsets of the source: one, or FROM..TO without TO itself
    #[arg(long, value_name = "FROM..TO", value_parser = offsets)]
    offsets: Option<Offsets>,
    /// Refused at this time or later: 2024-05-01, now-1h, ...
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Refused before this time
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Events of this type, where one can be read
    #[arg(long = "event-type", value_name = "TYPE")]
    event_types: Vec<String>,
    /// In this state: open, unfinished, replayed or dropped
    #[arg(long = "state", value_name = "STATE", value_delimiter = ',')]
    states: Vec<String>,
}

/// A range of offsets, open at either end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    from: Option<i64>,
    to: Option<i64>,
}

impl FilterArgs {
    /// The filter of a request.
    ///
    /// # Errors
    /// When a time cannot be read.
    pub fn filter(&self, now_us: i64) -> Result<DeadLetterFilter, CliError> {
        let time = |text: &Option<String>| {
            let read = text.as_deref().map(|text| times::instant(text, now_us));
            read.transpose()
                .map_err(|error| CliError::usage(error.to_string()))
        };
        let offsets = self.offsets.unwrap_or_default();
        Ok(DeadLetterFilter {
            reasons: self.reasons.clone(),
            topic: self.topic.clone().unwrap_or_default(),
            partitions: self.partitions.clone(),
            from_offset: offsets.from,
            to_offset: offsets.to,
            from_us: time(&self.from)?,
            to_us: time(&self.to)?,
            event_types: self.event_types.clone(),
            states: self.states.clone(),
        })
    }
}

/// Ids, a filter, or all.
#[derive(Clone, Debug, Default, Args)]
pub struct SelectionArgs {
    /// These, as `list` shows them: TOPIC/PARTITION/OFFSET, or PARTITION/OFFSET of the events' topic
    #[arg(value_name = "ID", value_parser = id)]
    ids: Vec<DeadLetterId>,
    /// All of them
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

impl SelectionArgs {
    /// The selection of a request.
    ///
    /// # Errors
    /// When a time cannot be read, or nothing is selected.
    pub fn selection(&self, now_us: i64) -> Result<DeadLetterSelection, CliError> {
        let filter = self.filter.filter(now_us)?;
        if self.ids.is_empty() && !self.all && filter == DeadLetterFilter::default() {
            return Err(CliError::usage(
                "say which dead letters: ids, a filter such as --reason late, or --all",
            ));
        }
        Ok(DeadLetterSelection {
            ids: self.ids.clone(),
            filter: Some(filter),
            all: self.all,
        })
    }
}

/// Reads an id. A topic has no slash in its name.
///
/// # Errors
/// A sentence that says how to write one.
pub fn id(text: &str) -> Result<DeadLetterId, String> {
    let wrong =
        || format!("`{text}` is no dead letter: write TOPIC/PARTITION/OFFSET or PARTITION/OFFSET");
    let mut parts = text.rsplit('/');
    let offset = parts.next().and_then(|part| part.parse().ok());
    let partition = parts.next().and_then(|part| part.parse().ok());
    let topic = parts.next().unwrap_or_default().to_owned();
    match (partition, offset, parts.next()) {
        (Some(partition), Some(offset), None) => Ok(DeadLetterId {
            topic,
            partition,
            offset,
        }),
        _ => Err(wrong()),
    }
}

/// An id as [`id`] reads it.
pub fn show_id(id: Option<&DeadLetterId>) -> String {
    id.map_or_else(String::new, |id| {
        format!("{}/{}/{}", id.topic, id.partition, id.offset)
    })
}

fn offsets(text: &str) -> Result<Offsets, String> {
    let wrong = || format!("`{text}` are no offsets: write 5, 5..10, 5.. or ..10");
    let end = |text: &str| match text.trim() {
        "" => Ok(None),
        number => number.parse::<i64>().map(Some).map_err(|_| wrong()),
    };
    let Some((from, to)) = text.split_once("..") else {
        let from = end(text)?.ok_or_else(wrong)?;
        let to = Some(from.saturating_add(1));
        return Ok(Offsets {
            from: Some(from),
            to,
        });
    };
    let (from, to) = (end(from)?, end(to)?);
    if from.is_none() && to.is_none() {
        return Err(wrong());
    }
    Ok(Offsets { from, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_both_forms() {
        let of = |topic: &str, partition, offset| DeadLetterId {
            topic: topic.to_owned(),
            partition,
            offset,
        };
        assert_eq!(id("0/5"), Ok(of("", 0, 5)));
        assert_eq!(id("a.b-c/3/77"), Ok(of("a.b-c", 3, 77)));
        assert_eq!(show_id(Some(&of("a", 3, 7))), "a/3/7");
        for text in ["", "5", "a/b", "a/0/x", "a/b/0/5", "/"] {
            assert!(id(text).is_err(), "{text}");
        }
    }

    #[test]
    fn offsets_in_every_form() {
        let of = |from, to| Ok(Offsets { from, to });
        assert_eq!(offsets("5"), of(Some(5), Some(6)));
        assert_eq!(offsets("5..10"), of(Some(5), Some(10)));
        assert_eq!(offsets("5.."), of(Some(5), None));
        assert_eq!(offsets("..10"), of(None, Some(10)));
        for text in ["", "..", "a", "5..b", "5-10"] {
            assert!(offsets(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_is_ever_selected_by_silence() {
        assert!(SelectionArgs::default().selection(0).is_err());
        let all = SelectionArgs {
            all: true,
            ..SelectionArgs::default()
        };
        assert!(all.selection(0).expect("all").all);
        let mut filtered = SelectionArgs::default();
        filtered.filter.reasons = vec![String::from("late")];
        filtered.filter.from = Some(String::from("now"));
        let selection = filtered.selection(7).expect("a filter");
        assert_eq!(selection.filter.expect("given").from_us, Some(7));
        filtered.filter.to = Some(String::from("someday"));
        assert!(filtered.selection(7).is_err());
    }
}
