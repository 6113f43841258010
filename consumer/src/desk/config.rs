//! The bounds of the desk.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// Where dead letters are looked at, replayed and dropped. One replay or drop goes on at a time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeskConfig {
    /// Most records of the dead-letter topic that one call reads; a call that would read more is refused and asks for a
    /// later `from`. Each dead letter that is asked for takes up to 250 bytes for the length of the call.
    pub scan_records_max: u64,
    /// Looks at once; those beyond are refused.
    pub looks_max: usize,
    /// Most dead letters on a page.
    pub page_letters_max: usize,
    /// Most on a page that shows all of each.
    pub full_page_letters_max: usize,
    /// How much of a body is shown, in KiB.
    pub body_kib_max: usize,
    /// Most ids that one call names.
    pub ids_max: usize,
    /// Most edits in one replay.
    pub edits_max: usize,
    /// Most that one call replays or drops.
    pub run_letters_max: usize,
    /// Most that are replayed or dropped in a second.
    pub per_second_max: u32,
    /// Most that are read and written at once, in records.
    pub step_letters_max: usize,
    /// And in KiB.
    pub step_kib_max: usize,
    /// Attempts at writing a mark.
    pub mark_attempts_max: u32,
    /// How often a replay that is held back by its rate says where it is, in milliseconds.
    pub pace_ms: u64,
    /// A caller that takes no progress for so long is taken for gone, in milliseconds.
    pub stall_ms_max: u64,
}

impl Default for DeskConfig {
    fn default() -> Self {
        Self {
            scan_records_max: 500_000,
            looks_max: 2,
            page_letters_max: 500,
            full_page_letters_max: 20,
            body_kib_max: 16,
            ids_max: 500,
            edits_max: 32,
            run_letters_max: 100_000,
            per_second_max: 1_000,
            step_letters_max: 200,
            step_kib_max: 4_096,
            mark_attempts_max: 6,
            pace_ms: 250,
            stall_ms_max: 30_000,
        }
    }
}

impl DeskConfig {
    /// How long a caller may take no progress.
    pub fn stall(&self) -> Duration {
        Duration::from_millis(self.stall_ms_max)
    }

    /// Each bound must let something through.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        let at_least_one = [
            ("desk.scan_records_max", self.scan_records_max),
            ("desk.looks_max", self.looks_max as u64),
            ("desk.page_letters_max", self.page_letters_max as u64),
            (
                "desk.full_page_letters_max",
                self.full_page_letters_max as u64,
            ),
            ("desk.body_kib_max", self.body_kib_max as u64),
            ("desk.run_letters_max", self.run_letters_max as u64),
            ("desk.per_second_max", self.per_second_max.into()),
            ("desk.step_letters_max", self.step_letters_max as u64),
            ("desk.step_kib_max", self.step_kib_max as u64),
            ("desk.mark_attempts_max", self.mark_attempts_max.into()),
            ("desk.pace_ms", self.pace_ms),
            ("desk.stall_ms_max", self.stall_ms_max),
        ];
        match at_least_one.into_iter().find(|(_, value)| *value == 0) {
            Some((setting, _)) => Err(ConfigError::Rule {
                setting,
                rule: String::from("it must be at least 1"),
            }),
            None => Ok(()),
        }
    }
}
