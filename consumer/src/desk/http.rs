//! The desk over HTTP: the messages of gRPC as JSON, by the same names. Progress is a line of JSON per message.

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, Query, State},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use streamgauge_proto::{ErrorCode, Problem, v1};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use super::{Desk, DeskError, view};
use crate::http::refuse;

/// Largest request, in bytes: its ids are bounded by a setting, and each is short.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

type Pairs = Query<Vec<(String, String)>>;

/// The routes of the desk.
pub fn router(desk: Desk) -> Router {
    Router::new()
        .route("/v1/dead-letters", get(list))
        .route("/v1/dead-letters/{partition}/{offset}", get(show))
        .route("/v1/dead-letters/replay", post(replay))
        .route("/v1/dead-letters/drop", post(drop_letters))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(desk)
}

async fn list(State(desk): State<Desk>, Query(pairs): Pairs) -> Response {
    let request = match list_request(pairs) {
        Ok(request) => request,
        Err(problem) => return refuse(&problem),
    };
    match desk.list(&request).await {
        Ok(found) => {
            let mut shown = json!(found);
            shown["letters"] = found.letters.iter().map(view::json).collect();
            Json(shown).into_response()
        }
        Err(error) => refused(error),
    }
}

async fn show(
    State(desk): State<Desk>,
    Path((partition, offset)): Path<(String, String)>,
    Query(pairs): Pairs,
) -> Response {
    let (Ok(partition), Ok(offset)) = (partition.parse(), offset.parse()) else {
        let message = "a dead letter is named by its partition and its offset, both numbers";
        return refuse(&Problem::new(ErrorCode::InvalidValue, message));
    };
    let id = v1::DeadLetterId {
        topic: String::new(),
        partition,
        offset,
    };
    let request = match show_request(id, pairs) {
        Ok(request) => request,
        Err(problem) => return refuse(&problem),
    };
    match desk.show(request).await {
        Ok(found) => Json(view::json(&found)).into_response(),
        Err(error) => refused(error),
    }
}

async fn replay(State(desk): State<Desk>, body: Bytes) -> Response {
    match read(&body) {
        Ok(request) => progress(desk.replay(request).await),
        Err(problem) => refuse(&problem),
    }
}

async fn drop_letters(State(desk): State<Desk>, body: Bytes) -> Response {
    match read(&body) {
        Ok(request) => progress(desk.drop_letters(request).await),
        Err(problem) => refuse(&problem),
    }
}

/// Through a map: a struct by itself would be read from an array too.
fn read<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .and_then(|map| T::deserialize(Value::Object(map)))
        .map_err(|error| {
            let message =
                format!("send a JSON object such as {{\"selection\":{{\"all\":true}}}}: {error}");
            Problem::new(ErrorCode::MalformedBody, message)
        })
}

fn progress(started: Result<mpsc::Receiver<v1::DeadLetterProgress>, DeskError>) -> Response {
    let told = match started {
        Ok(told) => told,
        Err(error) => return refused(error),
    };
    let lines = ReceiverStream::new(told).map(|progress| {
        let mut line = serde_json::to_vec(&progress)?;
        line.push(b'\n');
        Ok::<_, serde_json::Error>(Bytes::from(line))
    });
    (
        [(CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(lines),
    )
        .into_response()
}

fn refused(error: DeskError) -> Response {
    refuse(&Problem::from(error))
}

fn unknown(name: &str) -> Problem {
    Problem::new(
        ErrorCode::InvalidValue,
        format!("there is no parameter `{name}`"),
    )
    .field(name)
}

fn list_request(pairs: Vec<(String, String)>) -> Result<v1::ListDeadLettersRequest, Problem> {
    let mut request = v1::ListDeadLettersRequest::default();
    let mut filter = v1::DeadLetterFilter::default();
    for (name, value) in pairs {
        match name.as_str() {
            "limit" => request.limit = number(&name, &value)?,
            "page" => request.page = value,
            "full" => request.full = number(&name, &value)?,
            _ => narrow(&mut filter, &name, value)?,
        }
    }
    request.filter = Some(filter);
    Ok(request)
}

/// What holds of one that is named by its place as well; `topic` is part of the name.
fn show_request(
    mut id: v1::DeadLetterId,
    pairs: Vec<(String, String)>,
) -> Result<v1::ShowDeadLetterRequest, Problem> {
    let mut filter = v1::DeadLetterFilter::default();
    for (name, value) in pairs {
        match name.as_str() {
            "topic" => id.topic = value,
            _ => narrow(&mut filter, &name, value)?,
        }
    }
    Ok(v1::ShowDeadLetterRequest {
        id: Some(id),
        filter: Some(filter),
    })
}

/// A name that stands several times, or whose value has commas, names several.
fn narrow(filter: &mut v1::DeadLetterFilter, name: &str, value: String) -> Result<(), Problem> {
    let several = || value.split(',').map(str::to_owned);
    match name {
        "reason" => filter.reasons.extend(several()),
        "state" => filter.states.extend(several()),
        "topic" => filter.topic = value,
        "partition" => {
            for one in several() {
                filter.partitions.push(number(name, &one)?);
            }
        }
        "from_offset" => filter.from_offset = Some(number(name, &value)?),
        "to_offset" => filter.to_offset = Some(number(name, &value)?),
        "from" => filter.from_us = Some(time(name, &value)?),
        "to" => filter.to_us = Some(time(name, &value)?),
        "event_type" => filter.event_types.push(value),
        _ => return Err(unknown(name)),
    }
    Ok(())
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, Problem> {
    text.trim().parse().map_err(|_| {
        let message = format!("{name} cannot be `{text}`");
        Problem::new(ErrorCode::InvalidValue, message).field(name)
    })
}

/// RFC 3339, or microseconds since the Unix epoch.
fn time(name: &str, text: &str) -> Result<i64, Problem> {
    let read = text.parse::<jiff::Timestamp>();
    read.map_or_else(|_| number(name, text), |time| Ok(time.as_microsecond()))
        .map_err(|_| {
            let message = format!("{name} is RFC 3339 or microseconds since 1970, not `{text}`");
            Problem::new(ErrorCode::InvalidTimestamp, message).field(name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_the_fields_of_the_filter() {
        let pairs = [
            ("reason", "late,empty"),
            ("partition", "1,2"),
            ("partition", "3"),
            ("from", "2024-05-01T00:00:00Z"),
            ("to", "1714521600000001"),
            ("event_type", "a,b"),
            ("from_offset", "5"),
            ("full", "true"),
            ("limit", "7"),
        ];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let request = list_request(pairs.into()).unwrap();
        let filter = request.filter.unwrap();
        assert_eq!(filter.reasons, ["late", "empty"]);
        assert_eq!(filter.partitions, [1, 2, 3]);
        assert_eq!(filter.from_us, Some(1_714_521_600_000_000));
        assert_eq!(filter.to_us, Some(1_714_521_600_000_001));
        assert_eq!(filter.event_types, ["a,b"], "a type may hold a comma");
        assert_eq!(
            (filter.from_offset, request.limit, request.full),
            (Some(5), 7, true)
        );
        for (name, value) in [
            ("reasons", "late"),
            ("limit", "many"),
            ("from", "yesterday"),
        ] {
            let problem = list_request(vec![(name.to_owned(), value.to_owned())]).unwrap_err();
            assert_eq!(problem.field.as_deref(), Some(name));
        }
    }

    #[test]
    fn a_body_is_the_request_and_nothing_else() {
        let body =
            br#"{"selection":{"ids":[{"partition":1,"offset":2}]},"set":["historical=true"]}"#;
        let request: v1::ReplayDeadLettersRequest = read(body).unwrap();
        assert_eq!(request.selection.unwrap().ids[0].offset, 2);
        for body in [
            "",
            "[]",
            "{\"selections\":{}}",
            "{\"selection\":{\"every\":true}}",
        ] {
            let problem = read::<v1::DropDeadLettersRequest>(body.as_bytes()).unwrap_err();
            assert_eq!(problem.code, ErrorCode::MalformedBody, "{body}");
        }
    }
}
