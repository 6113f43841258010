//! Submission over HTTP: `POST /v1/events`, as any client of the producer would.

use std::time::Duration;

use reqwest::{Client, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use streamgauge_proto::v1::SubmittedEvent;

use super::{BatchError, Reason, Verdict};
use crate::{error::CliError, times};

/// One HTTP connection to the producer; clones share it.
#[derive(Clone, Debug)]
pub struct HttpSubmitter {
    client: Client,
    url: String,
    token: Option<String>,
}

#[derive(Serialize)]
struct Body<'a> {
    events: Vec<Event<'a>>,
}

#[derive(Serialize)]
struct Event<'a> {
    event_id: &'a str,
    user_id: &'a str,
    event_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    occurred_at: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    page_url: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    session_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    properties: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Answer {
    verdicts: Vec<AnswerVerdict>,
}

#[derive(Deserialize)]
struct AnswerVerdict {
    status: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    field: Option<String>,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Refusal {
    error: RefusalInner,
}

#[derive(Deserialize)]
struct RefusalInner {
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    field: Option<String>,
}

impl HttpSubmitter {
    /// A submitter with a connection of its own, which is made when first needed.
    ///
    /// # Errors
    /// When the client cannot be set up.
    pub fn new(address: &str, timeout: Duration, token: Option<&str>) -> Result<Self, CliError> {
        let client = Client::builder()
            .timeout(timeout)
            .pool_max_idle_per_host(1)
            .no_proxy()
            .build()
            .map_err(|error| CliError::unreachable("the producer", address, error))?;
        let url = format!("http://{address}/v1/events");
        Ok(Self {
            client,
            url,
            token: token.map(str::to_owned),
        })
    }

    pub(super) async fn submit(
        &self,
        events: &[SubmittedEvent],
        historical: bool,
    ) -> Result<Vec<Verdict>, BatchError> {
        let events = events.iter().map(Event::from).collect();
        let body = serde_json::to_vec(&Body { events })
            .map_err(|error| BatchError::Silent(error.into()))?;
        let mut request = self
            .client
            .post(&self.url)
            .header(header::CONTENT_TYPE, "application/json");
        if historical {
            request = request.query(&[("historical", "true")]);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request
            .body(body)
            .send()
            .await
            .map_err(|error| BatchError::Silent(error.into()))?;
        if response.status() == StatusCode::OK {
            let answer: Answer = response
                .json()
                .await
                .map_err(|error| BatchError::Silent(error.into()))?;
            return answer.verdicts.into_iter().map(Verdict::try_from).collect();
        }
        Err(refusal(response).await)
    }
}

impl<'a> From<&'a SubmittedEvent> for Event<'a> {
    fn from(event: &'a SubmittedEvent) -> Self {
        Self {
            event_id: &event.event_id,
            user_id: &event.user_id,
            event_type: &event.event_type,
            occurred_at: event.occurred_at_us.map(times::show),
            page_url: &event.page_url,
            session_id: &event.session_id,
            value: event.value,
            properties: serde_json::from_slice(&event.properties).ok(),
        }
    }
}

impl TryFrom<AnswerVerdict> for Verdict {
    type Error = BatchError;

    fn try_from(answer: AnswerVerdict) -> Result<Self, BatchError> {
        let field = answer.field.unwrap_or_default();
        let reason = || Reason::new(&answer.code, &field, &answer.message);
        match answer.status.as_str() {
            "accepted" => Ok(Self::Accepted),
            "rejected" => Ok(Self::Rejected(reason())),
            "retry" => Ok(Self::Retry(reason())),
            other => Err(BatchError::Silent(
                format!("the verdict `{other}` is not known").into(),
            )),
        }
    }
}

async fn refusal(response: Response) -> BatchError {
    let status = response.status();
    let after = retry_after(&response);
    let body = response.bytes().await.unwrap_or_default();
    let reason = read_reason(&body)
        .unwrap_or_else(|| Reason::new("", "", &format!("it answered HTTP {status}")));
    match status {
        StatusCode::PAYLOAD_TOO_LARGE => BatchError::TooLarge { reason },
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            BatchError::Later { reason, after }
        }
        // A fault of the server, or of what stands before it, not of the request.
        status if status.is_server_error() => BatchError::Later { reason, after },
        _ => BatchError::Refused { reason },
    }
}

/// A refusal as a whole, or the verdicts of a batch of which every event is to be sent again.
fn read_reason(body: &[u8]) -> Option<Reason> {
    let field = |field: &Option<String>| field.clone().unwrap_or_default();
    if let Ok(Refusal { error }) = serde_json::from_slice(body) {
        return Some(Reason::new(
            &error.code,
            &field(&error.field),
            &error.message,
        ));
    }
    let Answer { verdicts } = serde_json::from_slice(body).ok()?;
    let first = verdicts.first()?;
    Some(Reason::new(
        &first.code,
        &field(&first.field),
        &first.message,
    ))
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response
        .headers()
        .get(header::RETRY_AFTER)?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds))
}
