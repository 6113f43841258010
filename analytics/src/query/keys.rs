//! Which keys a query keeps.

use std::collections::HashMap;

use streamgauge_proto::Problem;

use crate::{error::invalid, view::Key};

/// Values that dimensions must have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter(Vec<(usize, String)>);

impl Filter {
    /// Reads a filter over these dimensions.
    ///
    /// # Errors
    /// When it names another dimension.
    pub fn read(dimensions: &[&str], wanted: &HashMap<String, String>) -> Result<Self, Problem> {
        let mut conditions = Vec::with_capacity(wanted.len());
        for (name, value) in wanted {
            let Some(at) = dimensions.iter().position(|dimension| dimension == name) else {
                let message = format!(
                    "the series has no dimension {name}; it has {}",
                    if dimensions.is_empty() {
                        String::from("none")
                    } else {
                        dimensions.join(", ")
                    }
                );
                return Err(invalid(format!("filter.{name}"), message));
            };
            conditions.push((at, value.clone()));
        }
        Ok(Self(conditions))
    }

    /// Whether a key is kept.
    pub fn keeps(&self, key: &Key) -> bool {
        let has = |(at, wanted): &(usize, String)| {
            key.values()
                .get(*at)
                .is_some_and(|value| **value == **wanted)
        };
        self.0.iter().all(has)
    }

    /// Whether every key is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
