//! What was applied since a checkpoint began: cells of any age, and user pages.

use std::sync::Arc;

use super::{Cell, Key, Seconds, SeriesId};

/// A user's page and event type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserPageKey {
    /// The user.
    pub user_id: Arc<str>,
    /// The page.
    pub page_url: Arc<str>,
    /// The event type.
    pub event_type: Arc<str>,
}

/// How often a user did something on a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserPage {
    /// Who did what, where.
    pub key: UserPageKey,
    /// How often.
    pub count: u64,
    /// When last, microseconds.
    pub last_us: i64,
}

/// Additions to the store's rows.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    /// Cells by second.
    pub seconds: Seconds,
    /// How many cells there are.
    pub cells: usize,
    /// Runs of user pages, each sorted, each at most half as long as the one before.
    users: Vec<Arc<Vec<UserPage>>>,
}

impl Overlay {
    /// Replaces a cell by what `change` makes of it.
    pub fn upsert(
        &mut self,
        second: i64,
        series: SeriesId,
        key: &Arc<Key>,
        change: impl FnOnce(Option<&Arc<Cell>>) -> Arc<Cell>,
    ) {
        let mut is_new = false;
        self.seconds.upsert(second, series, key, |cell| {
            is_new = cell.is_none();
            change(cell)
        });
        self.cells += usize::from(is_new);
    }

    /// Adds user pages. Runs are merged as a binary counter carries, so that adding costs a logarithm and looking one
    /// user up costs a few binary searches.
    pub fn add_users(&mut self, mut pages: Vec<UserPage>) {
        if pages.is_empty() {
            return;
        }
        pages.sort_by(|one, other| one.key.cmp(&other.key));
        let mut run = merge(&[], &pages);
        while let Some(last) = self.users.pop_if(|last| last.len() <= 2 * run.len()) {
            run = merge(&last, &run);
        }
        self.users.push(Arc::new(run));
    }

    /// The pages of one user; a page may come more than once.
    pub fn pages_of<'a>(&'a self, user_id: &'a str) -> impl Iterator<Item = &'a UserPage> {
        self.users.iter().flat_map(move |run| {
            let start = run.partition_point(|page| *page.key.user_id < *user_id);
            run[start..]
                .iter()
                .take_while(move |page| *page.key.user_id == *user_id)
        })
    }

    /// All user pages, each once.
    pub fn all_users(&self) -> Vec<UserPage> {
        self.users
            .iter()
            .rev()
            .fold(Vec::new(), |merged, run| merge(run, &merged))
    }

    /// Rows of user pages held.
    pub fn user_rows(&self) -> usize {
        self.users.iter().map(|run| run.len()).sum()
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.seconds.is_empty() && self.users.is_empty()
    }
}

/// Merges two sorted runs; equal neighbours become one.
fn merge(one: &[UserPage], other: &[UserPage]) -> Vec<UserPage> {
    let mut merged: Vec<UserPage> = Vec::with_capacity(one.len() + other.len());
    let (mut left, mut right) = (one.iter().peekable(), other.iter().peekable());
    loop {
        let from_left = match (left.peek(), right.peek()) {
            (Some(one), Some(other)) => one.key <= other.key,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => return merged,
        };
        let next = if from_left { left.next() } else { right.next() };
        let Some(page) = next else { return merged };
        match merged.last_mut() {
            Some(last) if last.key == page.key => {
                last.count = last.count.saturating_add(page.count);
                last.last_us = last.last_us.max(page.last_us);
            }
            _ => merged.push(page.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn page(user: u8, page: u8, count: u64, last_us: i64) -> UserPage {
        let text = |prefix, number: u8| Arc::from(format!("{prefix}{number}"));
        let key = UserPageKey {
            user_id: text('u', user),
            page_url: text('/', page),
            event_type: Arc::from("click"),
        };
        UserPage {
            key,
            count,
            last_us,
        }
    }

    proptest! {
        #[test]
        fn runs_add_up_like_a_map(batches in prop::collection::vec(prop::collection::vec((0u8..9, 0u8..4, 1u64..5, 0i64..99), 0..20), 0..30)) {
            let mut overlay = Overlay::default();
            let mut expected: BTreeMap<UserPageKey, (u64, i64)> = BTreeMap::new();
            for batch in batches {
                let pages: Vec<_> = batch.into_iter().map(|(user, url, count, at)| page(user, url, count, at)).collect();
                for page in &pages {
                    let entry = expected.entry(page.key.clone()).or_default();
                    *entry = (entry.0 + page.count, entry.1.max(page.last_us));
                }
                overlay.add_users(pages);
            }
            let all: BTreeMap<_, _> = overlay.all_users().into_iter().map(|page| (page.key, (page.count, page.last_us))).collect();
            prop_assert_eq!(&all, &expected);
            prop_assert!(overlay.users.len() <= 10);
            let of_one: u64 = overlay.pages_of("u3").map(|page| page.count).sum();
            let wanted: u64 = expected.iter().filter(|(key, _)| &*key.user_id == "u3").map(|(_, (count, _))| count).sum();
            prop_assert_eq!(of_one, wanted);
        }
    }
}
