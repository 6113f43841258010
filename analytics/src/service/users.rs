//! What one user did: the store's pages and those that no checkpoint holds yet.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use streamgauge_proto::{ErrorCode, Problem, v1};

use super::Service;
use crate::{
    store::{Slot, UserFilter, UserPages},
    view::View,
};

/// How many events one user has.
#[derive(Clone, Debug)]
pub struct UserEvents {
    /// As of when.
    pub info: v1::AnswerInfo,
    /// Over all event types.
    pub count: u64,
    /// Per event type, over all pages that match.
    pub by_event_type: BTreeMap<String, u64>,
}

/// Everything that matches, each page and event type once.
struct Pages {
    info: v1::AnswerInfo,
    count: u64,
    /// Count and latest time by page and event type.
    by_key: HashMap<(String, String), (u64, i64)>,
}

impl Service {
    /// What one user did, page by page.
    ///
    /// # Errors
    /// A parameter that cannot be used, or a store that cannot be read.
    pub async fn user_activity(
        &self,
        request: v1::UserActivityRequest,
    ) -> Result<v1::UserActivityResponse, Problem> {
        let limit = self.limit(request.limit, self.config.query.keys_default)?;
        let found = self
            .user_pages(&request.user_id, &request.page_url, &request.event_type)
            .await?;
        let mut pages: Vec<v1::PageActivity> = found
            .by_key
            .into_iter()
            .map(
                |((page_url, event_type), (count, last_us))| v1::PageActivity {
                    page_url,
                    event_type,
                    count,
                    last_us,
                },
            )
            .collect();
        pages.sort_by(|one, other| {
            let counts = other.count.cmp(&one.count);
            counts.then_with(|| {
                (&one.page_url, &one.event_type).cmp(&(&other.page_url, &other.event_type))
            })
        });
        pages.truncate(limit);
        Ok(v1::UserActivityResponse {
            info: Some(found.info),
            user_id: request.user_id,
            count: found.count,
            pages,
        })
    }

    /// How many events one user has, on one page or, when it is empty, on all.
    ///
    /// # Errors
    /// As [`Service::user_activity`].
    pub async fn user_events(&self, user_id: &str, page_url: &str) -> Result<UserEvents, Problem> {
        let found = self.user_pages(user_id, page_url, "").await?;
        let mut by_event_type = BTreeMap::<String, u64>::new();
        for ((_, event_type), (count, _)) in found.by_key {
            let sum = by_event_type.entry(event_type).or_default();
            *sum = sum.saturating_add(count);
        }
        Ok(UserEvents {
            info: found.info,
            count: found.count,
            by_event_type,
        })
    }

    async fn user_pages(
        &self,
        user_id: &str,
        page_url: &str,
        event_type: &str,
    ) -> Result<Pages, Problem> {
        if user_id.is_empty() {
            let problem = Problem::new(ErrorCode::MissingField, "a user_id is needed");
            return Err(problem.field("user_id"));
        }
        let _place = self.place()?;
        let filter = UserFilter {
            slot: Slot::default(),
            user_id,
            page_url: (!page_url.is_empty()).then_some(page_url),
            event_type: (!event_type.is_empty()).then_some(event_type),
            limit: self.config.query.rows_max,
        };
        let (view, stored) = self.stored_user(filter).await?;
        let mut count = stored.count;
        let mut by_key: HashMap<(String, String), (u64, i64)> = stored
            .rows
            .into_iter()
            .map(|row| ((row.page_url, row.event_type), (row.count, row.last_us)))
            .collect();
        for overlay in view.overlays_at(stored.generation).unwrap_or_default() {
            let kept = overlay.pages_of(user_id).filter(|row| {
                filter
                    .page_url
                    .is_none_or(|page| *row.key.page_url == *page)
                    && filter
                        .event_type
                        .is_none_or(|kind| *row.key.event_type == *kind)
            });
            for row in kept {
                let key = (row.key.page_url.to_string(), row.key.event_type.to_string());
                let sum = by_key.entry(key).or_default();
                *sum = (sum.0.saturating_add(row.count), sum.1.max(row.last_us));
                count = count.saturating_add(row.count);
            }
        }
        let info = v1::AnswerInfo {
            as_of_us: view.as_of_us,
            watermark_us: view.watermark_us,
            // More may come at any time: the range has no end.
            r#final: false,
            unit: String::from("events"),
            ..v1::AnswerInfo::default()
        };
        Ok(Pages {
            info,
            count,
            by_key,
        })
    }

    async fn stored_user(&self, filter: UserFilter<'_>) -> Result<(Arc<View>, UserPages), Problem> {
        for _ in 0..self.config.query.attempts_max.max(1) {
            let slot = self.view()?.slot;
            let filter = UserFilter { slot, ..filter };
            let stored = self.ask(self.store.user_pages(filter)).await?;
            let view = self.view()?;
            if view.slot == slot && view.overlays_at(stored.generation).is_some() {
                return Ok((view, stored));
            }
            self.wait_for_view().await;
        }
        Err(self.left_behind())
    }
}
