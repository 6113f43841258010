//! `GET /v1/ledger`: the account of this producer since it started. As open as `/metrics`, which has the same figures.

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use streamgauge_proto::v1::AcknowledgedPartition;

use super::{Shared, json as answer_json};
use crate::ledger;

pub async fn read(State(shared): State<Shared>) -> Response {
    let found = ledger::answer(&shared.intake);
    let spool = found.spool.unwrap_or_default();
    let body = json!({
        "since_us": found.since_us,
        "received": found.received,
        "accepted": found.accepted,
        "rejected": found.rejected,
        "failed": found.failed,
        "in_flight": found.in_flight,
        "balanced": found.balanced,
        "topic": found.topic,
        "partitions": partitions(&found.partitions),
        "spool": {
            "waiting_at_start": spool.waiting_at_start,
            "spooled": spool.spooled,
            "waiting": spool.waiting,
            "drained": spool.drained,
            "lost": spool.lost,
            "put_aside": spool.put_aside,
            "balanced": spool.balanced,
            "partitions": partitions(&spool.partitions),
        },
    });
    answer_json(StatusCode::OK, body.to_string())
}

fn partitions(acknowledged: &[AcknowledgedPartition]) -> Vec<Value> {
    let one = |one: &AcknowledgedPartition| {
        json!({
            "partition": one.partition,
            "records": one.records,
            "first_offset": one.first_offset,
            "last_offset": one.last_offset,
        })
    };
    acknowledged.iter().map(one).collect()
}
