//! The one way from a submission to its verdicts, whichever door it came in by.
//!
//! HTTP and gRPC differ in how they read a request and how they write the answer. What lies between, and what it
//! means, is here: validate, encode, admit, publish, account for every event.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant as Stopwatch;

use prost::Message;
use streamgauge_lifecycle::SharedClock;
use streamgauge_proto::v1::SubmittedEvent;
use streamgauge_proto::{ErrorCode, Problem};
use streamgauge_telemetry::{Span, TraceContext, Tracer};
use tokio::time::Instant;

use crate::admin::AdminGate;
use crate::admission::{Admission, Refused};
use crate::auth::{Auth, Client};
use crate::client_address::ClientAddress;
use crate::event::decode::{BodyError, Format, Summary, check_properties, decode};
use crate::event::encode::{Entry, RandomIds};
use crate::event::validate::{Rules, validate};
use crate::event::{Batch, Draft, EventLimits, Ids, Moment, Rejection, Shape, Stamp};
use crate::metrics::{FailReason, ProducerMetrics};
use crate::publish::{Fate, Publishing, Unacknowledged};

/// The longest `Idempotency-Key`, in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// What the doors share.
pub struct Intake {
    pub auth: Auth,
    pub client_address: ClientAddress,
    pub admin: AdminGate,
    pub admission: Arc<Admission>,
    pub publishing: Publishing,
    pub metrics: ProducerMetrics,
    pub tracer: Tracer,
    pub clock: SharedClock,
    pub limits: EventLimits,
    pub topic: String,
    /// When the service started, microseconds.
    pub since_us: i64,
}

/// What a request says about all of its events.
#[derive(Clone, Debug)]
pub struct Submission {
    pub client: Client,
    pub historical: bool,
    pub idempotency_key: Option<String>,
    /// The request's own span, when its trace is recorded.
    pub trace: Option<TraceContext>,
}

/// How a batch ended.
#[derive(Debug)]
pub struct Outcome {
    batch: Batch,
    /// Ascending by place.
    unacknowledged: Vec<Unacknowledged>,
}

/// What became of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    Accepted {
        event_id: &'a str,
    },
    Rejected {
        event_id: Option<&'a str>,
        code: ErrorCode,
        field: Option<&'a str>,
        message: &'a str,
    },
    Retry {
        event_id: &'a str,
        reason: FailReason,
    },
}

/// How many events ended in each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub accepted: usize,
    pub rejected: usize,
    pub retry: usize,
}

impl Intake {
    /// Reads the events of a body.
    pub fn read_json(
        &self,
        body: &[u8],
        format: Format,
        shape: Shape,
        submission: &Submission,
    ) -> Result<(Batch, Summary), BodyError> {
        let watch = Stopwatch::now();
        let now_us = self.clock.now_us();
        let rules = Rules {
            limits: &self.limits,
            shape,
            now_us,
        };
        let stamp = stamp(submission, now_us);
        let mut batch = Batch::new(now_us, body.len());
        let summary = decode(body, format, shape, &self.limits, |draft| {
            batch.push(draft.and_then(|draft| validate(draft, &rules)), &stamp);
        })?;
        self.metrics.decoded(
            watch.elapsed().as_secs_f64(),
            submission.trace,
            summary.unknown_fields,
        );
        Ok((batch, summary))
    }

    /// Takes events that came as messages.
    pub fn read_messages(
        &self,
        events: &[SubmittedEvent],
        submission: &Submission,
    ) -> Result<Batch, BodyError> {
        let watch = Stopwatch::now();
        let max = self.limits.batch_events_max;
        if events.is_empty() {
            return Err(BodyError::Empty);
        }
        if events.len() > max {
            return Err(BodyError::TooManyEvents { max });
        }
        let now_us = self.clock.now_us();
        let rules = Rules {
            limits: &self.limits,
            shape: Shape::EVENT,
            now_us,
        };
        let stamp = stamp(submission, now_us);
        let mut batch = Batch::new(now_us, events.iter().map(Message::encoded_len).sum());
        for event in events {
            batch.push(
                draft(event, &self.limits).and_then(|draft| validate(draft, &rules)),
                &stamp,
            );
        }
        self.metrics
            .decoded(watch.elapsed().as_secs_f64(), submission.trace, 0);
        Ok(batch)
    }

    /// Publishes what is valid. Refused as a whole is a batch of which nothing was written.
    pub async fn submit(
        &self,
        batch: Batch,
        submission: &Submission,
        deadline: Instant,
    ) -> Result<Outcome, Problem> {
        let receipt = self.metrics.receipt(&batch);
        if batch.ready() == 0 {
            receipt.settle(&batch, &[]);
            return Ok(Outcome {
                batch,
                unacknowledged: Vec::new(),
            });
        }
        let (events, bytes) = (batch.ready(), batch.memory());
        let place = match self.admission.admit(&submission.client, events, bytes) {
            Ok(place) => place,
            Err(refused) => {
                receipt.fail(&batch, refused.reason);
                return Err(refused.problem);
            }
        };
        let published = self.publish(&batch, submission, deadline).await;
        place.report(&published);
        drop(place);
        match published {
            Ok(unacknowledged) => {
                receipt.settle(&batch, &unacknowledged);
                Ok(Outcome {
                    batch,
                    unacknowledged,
                })
            }
            Err(refused) => {
                receipt.fail(&batch, refused.reason);
                Err(refused.problem)
            }
        }
    }

    async fn publish(
        &self,
        batch: &Batch,
        submission: &Submission,
        deadline: Instant,
    ) -> Result<Vec<Unacknowledged>, Refused> {
        let watch = Stopwatch::now();
        let mut span = self.send_span(batch, submission);
        let traceparent = span.context().map(|trace| trace.header());
        let published = self
            .publishing
            .publish(batch, traceparent.as_deref(), deadline)
            .await;
        match &published {
            Ok(unacknowledged) => {
                if let Some(Fate::Retry(reason)) = unacknowledged.first().map(|first| first.fate) {
                    span.error(reason.as_str());
                }
            }
            Err(refused) => span.error(refused.reason.as_str()),
        }
        self.metrics
            .published(watch.elapsed().as_secs_f64(), submission.trace);
        published
    }

    /// The span of handing the events to Kafka, which their traces go on from.
    fn send_span(&self, batch: &Batch, submission: &Submission) -> Span {
        let Some(trace) = submission.trace else {
            return Span::none();
        };
        let mut span = self
            .tracer
            .start_producer(format!("send {}", self.topic), Some(trace));
        span.set("messaging.system", "kafka");
        span.set("messaging.operation.type", "send");
        span.set("messaging.destination.name", self.topic.clone());
        span.set("messaging.batch.message_count", batch.ready() as i64);
        span
    }
}

fn stamp(submission: &Submission, now_us: i64) -> Stamp<'_> {
    Stamp {
        tenant: &submission.client.tenant,
        historical: submission.historical,
        ids: match &submission.idempotency_key {
            Some(key) => Ids::Keyed(Cow::Borrowed(key)),
            None => Ids::Random(RandomIds::new(now_us)),
        },
    }
}

/// Checks an idempotency key; an empty one is none.
pub fn idempotency_key(key: &[u8]) -> Result<Option<String>, Problem> {
    if key.is_empty() {
        return Ok(None);
    }
    let visible = key.iter().all(|byte| (0x20..0x7f).contains(byte));
    if key.len() > IDEMPOTENCY_KEY_BYTES_MAX || !visible {
        let message = format!(
            "an idempotency key is at most {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters"
        );
        return Err(Problem::new(ErrorCode::InvalidValue, message).field("idempotency_key"));
    }
    Ok(Some(String::from_utf8_lossy(key).into_owned()))
}

fn draft<'a>(event: &'a SubmittedEvent, limits: &EventLimits) -> Result<Draft<'a>, Rejection> {
    let text = |text: &'a String| (!text.is_empty()).then_some(Cow::Borrowed(text.as_str()));
    let refuse = |rejection: Rejection| rejection.of(text(&event.event_id));
    let bytes = event.encoded_len();
    if bytes > limits.event_bytes_max {
        let message = format!(
            "the event is {bytes} bytes long; at most {} are allowed",
            limits.event_bytes_max
        );
        return Err(refuse(Rejection::new(
            ErrorCode::EventTooLarge,
            None,
            message,
        )));
    }
    let properties = match &event.properties[..] {
        [] => None,
        bytes => Some(std::str::from_utf8(bytes).map_err(|_| {
            refuse(Rejection::new(
                ErrorCode::InvalidValue,
                "properties",
                "properties must be UTF-8",
            ))
        })?),
    };
    if let Some(properties) = properties {
        check_properties(properties, limits).map_err(refuse)?;
    }
    Ok(Draft {
        event_id: text(&event.event_id),
        user_id: text(&event.user_id),
        event_type: text(&event.event_type),
        page_url: text(&event.page_url),
        session_id: text(&event.session_id),
        value: event.value,
        properties,
        occurred_at: event.occurred_at_us.map_or(Moment::Absent, Moment::Micros),
    })
}

impl Outcome {
    /// One verdict for each event, in order.
    pub fn verdicts(&self) -> impl Iterator<Item = Verdict<'_>> {
        let mut unacknowledged = self.unacknowledged.iter().peekable();
        self.batch
            .entries()
            .iter()
            .enumerate()
            .map(move |(index, entry)| match entry {
                Entry::Rejected(rejection) => Verdict::Rejected {
                    event_id: rejection.event_id.as_deref(),
                    code: rejection.code,
                    field: rejection.field,
                    message: &rejection.message,
                },
                Entry::Ready(encoded) => {
                    let event_id = self.batch.event_id(encoded);
                    match unacknowledged
                        .next_if(|next| next.index == index)
                        .map(|next| next.fate)
                    {
                        None => Verdict::Accepted { event_id },
                        Some(Fate::Retry(reason)) => Verdict::Retry { event_id, reason },
                        Some(Fate::Rejected(code)) => Verdict::Rejected {
                            event_id: Some(event_id),
                            code,
                            field: None,
                            message: "the event is larger than the log takes",
                        },
                    }
                }
            })
    }

    pub fn counts(&self) -> Counts {
        let retry = |next: &&Unacknowledged| matches!(next.fate, Fate::Retry(_));
        let retry = self.unacknowledged.iter().filter(retry).count();
        let accepted = self.batch.ready() - self.unacknowledged.len();
        Counts {
            accepted,
            rejected: self.batch.len() - accepted - retry,
            retry,
        }
    }

    /// Why no event was accepted or rejected: all are to be sent again. None when that is not so.
    pub fn failed_whole(&self) -> Option<FailReason> {
        let counts = self.counts();
        if counts.retry == 0 || counts.accepted + counts.rejected > 0 {
            return None;
        }
        self.unacknowledged
            .first()
            .and_then(|first| match first.fate {
                Fate::Retry(reason) => Some(reason),
                Fate::Rejected(_) => None,
            })
    }
}

impl Verdict<'_> {
    /// The verdict as the refusal of a request that held this one event; none when it was accepted.
    pub fn problem(&self) -> Option<Problem> {
        match *self {
            Self::Accepted { .. } => None,
            Self::Rejected {
                code,
                field,
                message,
                ..
            } => {
                let problem = Problem::new(code, message);
                Some(match field {
                    Some(field) => problem.field(field),
                    None => problem,
                })
            }
            // Tried, and perhaps written: only a retry with the same id is counted once.
            Self::Retry { event_id, reason } => {
                Some(Problem::new(reason.code(), reason.message()).event_id(event_id))
            }
        }
    }
}
