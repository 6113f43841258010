//! What comes before a call is read: is the service ready, who is calling, is there room. And how it is read: within
//! that room, and in time.
//!
//! tonic reads a whole message before it asks the service. So this stands in front of it, as a layer, and looks over its
//! shoulder at the bytes of the body, in which each message comes behind its length.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::HttpBody;
use bytes::Bytes;
use http::{Extensions, Request, Response, header};
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use streamgauge_proto::{ErrorCode, Problem};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::TcpConnectInfo;
use tower::{Layer, Service};

use super::SUBMIT_STREAM;
use super::messages::refusal_with;
use crate::admission::Room;
use crate::auth::Client;
use crate::config::Limits;
use crate::intake::Intake;

/// Who a call comes from, and what it holds; the handler finds it in the extensions.
#[derive(Clone)]
pub struct Caller {
    pub client: Client,
    meter: Arc<Meter>,
}

impl Caller {
    pub fn of(extensions: &Extensions) -> Result<Self, Problem> {
        let missing = || Problem::new(ErrorCode::Internal, "the call was not let in by the door");
        extensions.get::<Self>().cloned().ok_or_else(missing)
    }

    /// The room of the next message that was decoded, to be given back once it is answered.
    pub fn take_message(&self) -> Room {
        let bytes = self.meter.sizes.lock().pop_front().unwrap_or_default();
        self.meter.room.split(bytes)
    }
}

/// The bytes of a call that have arrived and are not yet taken, and the lengths of the messages among them.
struct Meter {
    room: Room,
    sizes: Mutex<VecDeque<usize>>,
}

/// Lets submissions in; other services are not its business.
#[derive(Clone)]
pub struct Door {
    pub intake: Arc<Intake>,
    pub limits: Arc<Limits>,
}

/// Why a request goes no further.
struct Refusal {
    status: Status,
    is_kept_waiting: bool,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self {
            status: problem.into(),
            is_kept_waiting: false,
        }
    }
}

impl Door {
    fn let_in(&self, request: &Request<Body>, streaming: bool) -> Result<Caller, Refusal> {
        let admission = &self.intake.admission;
        admission.is_open()?;
        let authorization = request.headers().get(header::AUTHORIZATION);
        let peer = request.extensions().get::<TcpConnectInfo>();
        let peer = peer.and_then(TcpConnectInfo::remote_addr);
        let address = self
            .intake
            .client_address
            .of(peer.map(|peer| peer.ip()), request.headers());
        let authorization = authorization.map(|value| value.as_bytes());
        let client = self.intake.auth.client(authorization, address)?;
        // On a stream each batch is answered for itself.
        if !streaming && let Err(problem) = admission.may_read(&client) {
            let fields = admission.fields(&client, problem.retry_after_seconds());
            return Err(Refusal {
                status: refusal_with(problem, fields),
                is_kept_waiting: true,
            });
        }
        let meter = Meter {
            room: admission.room(0)?,
            sizes: Mutex::default(),
        };
        Ok(Caller {
            client,
            meter: Arc::new(meter),
        })
    }
}

impl<S> Layer<S> for Door {
    type Service = DoorService<S>;

    fn layer(&self, inner: S) -> DoorService<S> {
        DoorService {
            inner,
            door: self.clone(),
        }
    }
}

#[derive(Clone)]
pub struct DoorService<S> {
    inner: S,
    door: Door,
}

impl<S> Service<Request<Body>> for DoorService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path().trim_start_matches('/');
        if !path.starts_with("streamgauge.v1.Submission/") {
            return Box::pin(self.inner.call(request));
        }
        let streaming = path == SUBMIT_STREAM;
        let caller = match self.door.let_in(&request, streaming) {
            Ok(caller) => caller,
            Err(refusal) => {
                let intake = self.door.intake.clone();
                return Box::pin(async move {
                    if refusal.is_kept_waiting {
                        intake.admission.keep_waiting().await;
                    }
                    Ok(refusal.status.into_http())
                });
            }
        };
        let meter = caller.meter.clone();
        request.extensions_mut().insert(caller);
        let request = request.map(|body| {
            Body::new(Metered {
                inner: body,
                meter: meter.clone(),
                framing: Framing::default(),
                whole: !streaming,
                limit: Duration::from_millis(self.door.limits.body_timeout_ms),
                timer: None,
            })
        });
        let answering = self.inner.call(request);
        Box::pin(async move {
            let response = answering.await?;
            // The room is given back once the answer is sent, for a client that is slow to read it.
            Ok(response.map(|inner| {
                Body::new(Held {
                    inner,
                    _meter: meter,
                })
            }))
        })
    }
}

/// Where in a body the messages begin and end.
#[derive(Debug, Default)]
struct Framing {
    header: [u8; Self::HEADER],
    /// Bytes of the header that have been seen.
    seen: usize,
    /// Bytes of the message that have not.
    left: usize,
}

impl Framing {
    /// A flag, and the length in four bytes.
    const HEADER: usize = 5;

    /// Goes on over these bytes and gives the length on the wire of each message that they complete.
    fn read(&mut self, mut bytes: &[u8], mut complete: impl FnMut(usize)) {
        while !bytes.is_empty() {
            if self.seen < Self::HEADER {
                let (header, rest) = bytes.split_at(bytes.len().min(Self::HEADER - self.seen));
                self.header[self.seen..self.seen + header.len()].copy_from_slice(header);
                self.seen += header.len();
                bytes = rest;
                if self.seen < Self::HEADER {
                    return;
                }
                self.left = self.message();
            }
            let read = bytes.len().min(self.left);
            self.left -= read;
            bytes = &bytes[read..];
            if self.left == 0 {
                complete(Self::HEADER + self.message());
                self.seen = 0;
            }
        }
    }

    fn message(&self) -> usize {
        let [_flag, length @ ..] = self.header;
        u32::from_be_bytes(length) as usize
    }

    fn in_midst(&self) -> bool {
        self.seen > 0
    }
}

/// The body of a call, counted as it arrives. A message has to arrive in time from its first byte on; the only message
/// of a call (`whole`) from the call's beginning, and its end with it.
struct Metered {
    inner: Body,
    meter: Arc<Meter>,
    framing: Framing,
    whole: bool,
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Metered {
    fn count(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.meter.room.grow(bytes.len())?;
        let sizes = &self.meter.sizes;
        self.framing
            .read(bytes, |size| sizes.lock().push_back(size));
        if !self.whole && !self.framing.in_midst() {
            self.timer = None;
        }
        Ok(())
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if !self.whole && !self.framing.in_midst() {
            return Poll::Pending;
        }
        let limit = self.limit;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        let message = format!("the message did not arrive within {} ms", limit.as_millis());
        Poll::Ready(Problem::new(ErrorCode::BodyTimeout, message).into())
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            return self.poll_late(cx).map(|status| Some(Err(status)));
        };
        if let Some(bytes) = frame
            .as_ref()
            .and_then(|frame| frame.as_ref().ok()?.data_ref())
            && let Err(problem) = self.count(bytes)
        {
            return Poll::Ready(Some(Err(problem.into())));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The body of an answer, which keeps the room of its call.
struct Held {
    inner: Body,
    _meter: Arc<Meter>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_are_told_apart_however_they_are_cut(
            lengths in prop::collection::vec(0usize..40, 0..20),
            cuts in prop::collection::vec(1usize..12, 1..50),
        ) {
            let body: Vec<u8> = lengths.iter().flat_map(|&length| {
                let mut message = vec![0];
                message.extend((length as u32).to_be_bytes());
                message.resize(5 + length, 0xff);
                message
            }).collect();
            let (mut framing, mut found) = (Framing::default(), Vec::new());
            let (mut rest, mut cuts) = (&body[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(cuts.next().unwrap()));
                framing.read(piece, |size| found.push(size));
                rest = after;
            }
            let expected: Vec<_> = lengths.iter().map(|length| length + 5).collect();
            prop_assert_eq!(found, expected);
            prop_assert!(!framing.in_midst());
        }
    }
}
