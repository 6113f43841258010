//! The ledger as an answer: how every source offset ended, per partition and in all, and whether it balances.
//!
//! It is judged by the same code as the audit that reads the log from its beginning; what costs reading is kept from
//! following the log (`facts`) or read back from the store once in a while ([`Checker`]). A request reads nothing of the log.

mod answer;
mod check;
mod facts;

pub use self::{
    answer::answer,
    check::{Check, Checker},
    facts::{facts, source_end},
};
use crate::view::View;

/// The sum of the partitions' imbalances, signs aside.
pub fn imbalance(view: &View) -> i64 {
    let each = view.chains.values().map(|row| row.ledger.imbalance());
    each.fold(0i64, |sum, offsets| {
        sum.saturating_add(offsets.saturating_abs())
    })
}
