//! `GET /v1/ledger`: the account of this producer since it started. As open as `/metrics`, which has the same figures.

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use super::{Shared, json as answer_json};
use crate::ledger;

pub async fn read(State(shared): State<Shared>) -> Response {
    let found = ledger::answer(&shared.intake);
    let partitions: Vec<_> = found
        .partitions
        .iter()
        .map(|one| {
            json!({
                "partition": one.partition,
                "records": one.records,
                "first_offset": one.first_offset,
                "last_offset": one.last_offset,
            })
        })
        .collect();
    let body = json!({
        "since_us": found.since_us,
        "received": found.received,
        "accepted": found.accepted,
        "rejected": found.rejected,
        "failed": found.failed,
        "in_flight": found.in_flight,
        "balanced": found.balanced,
        "topic": found.topic,
        "partitions": partitions,
    });
    answer_json(StatusCode::OK, body.to_string())
}
