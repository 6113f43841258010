//! One client's connection: frames in, responses out, in order. A connection
//! handles one request at a time, as clients expect; what waits for the disk
//! or for other clients holds up nobody else. Whatever a client sends, the
//! worst that happens is that its own connection closes.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::api::Context;
use crate::dispatch::{self, Envelope, Reply, RequestError};
use crate::frame::{self, FrameError, LENGTH_LEN};
use crate::node::{Node, UNIT_BYTES};
use crate::stats::add;

/// Responses waiting to be written; a client has at most this many requests
/// between reading and answer.
const REPLIES_QUEUED: usize = 8;
/// How far to read ahead while a request is handled.
const READ_AHEAD_BYTES: usize = 256 * 1024;
/// Frames up to this size are not counted against the shared memory bound.
const SMALL_FRAME_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
enum Closed {
    #[error("the client closed the connection")]
    ByClient,
    #[error("reading or writing failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("no request for too long")]
    Idle,
    #[error("a request did not arrive within frame_read_timeout_ms")]
    FrameTimeout,
    #[error("the client does not read its responses")]
    WriteTimeout,
    #[error("bad frame: {0}")]
    Frame(#[from] FrameError),
    #[error("bad request: {0}")]
    Request(#[from] RequestError),
    #[error("handling a request panicked")]
    Panicked,
    #[error("closed on purpose")]
    OnPurpose,
    #[error("the broker is stopping")]
    Stopping,
}

/// Serves a connection until either side closes it.
pub async fn serve(node: Arc<Node>, stream: TcpStream, peer: String) {
    let _ = stream.set_nodelay(true);
    let mut cuts = node.faults.watch_cuts();
    let gone = CancellationToken::new();
    let (read, write) = stream.into_split();
    let (replies, queue) = mpsc::channel(REPLIES_QUEUED);
    let context = Context {
        node: Arc::clone(&node),
        client_id: String::new(),
        client_host: peer.clone(),
        version: 0,
        gone: gone.clone(),
    };
    let reader = Reader {
        context,
        read,
        buffer: BytesMut::with_capacity(frame::READ_CHUNK_BYTES),
        replies,
        eof: false,
    };
    let write_timeout = Duration::from_millis(node.config.response_write_timeout_ms);
    let mut writer = tokio::spawn(write_replies(write, queue, write_timeout));
    let reading = Box::pin(reader.run());
    let closed = tokio::select! {
        closed = reading => {
            // What was answered before still goes out.
            if !matches!(closed, Closed::OnPurpose) {
                let _ = (&mut writer).await;
            }
            closed
        }
        written = &mut writer => match written {
            Ok(closed) => closed,
            Err(_) => Closed::Panicked,
        },
        _ = cuts.changed() => Closed::OnPurpose,
    };
    gone.cancel();
    writer.abort();
    log_close(&node, &peer, &closed);
}

fn log_close(node: &Node, peer: &str, closed: &Closed) {
    match closed {
        Closed::Frame(_) | Closed::Request(_) | Closed::Panicked => {
            add(&node.counters.requests_malformed, 1);
            warn!(peer, reason = %closed, "closed a connection");
        }
        Closed::FrameTimeout | Closed::WriteTimeout => {
            warn!(peer, reason = %closed, "closed a connection");
        }
        _ => debug!(peer, reason = %closed, "connection closed"),
    }
}

/// A response on its way out, with the memory its request still holds. What a
/// response holds itself comes with it.
type Queued = (Reply, Option<OwnedSemaphorePermit>);

struct Reader {
    context: Context,
    read: OwnedReadHalf,
    buffer: BytesMut,
    replies: mpsc::Sender<Queued>,
    eof: bool,
}

impl Reader {
    /// Reads and handles requests until the connection ends.
    async fn run(mut self) -> Closed {
        loop {
            match self.step().await {
                Ok(()) => {}
                Err(closed) => return closed,
            }
        }
    }

    async fn step(&mut self) -> Result<(), Closed> {
        let (frame, permit) = self.next_frame().await?;
        add(&self.context.node.counters.requests, 1);
        if Envelope::parse(&frame)?.answers_with_records() {
            // Big answers do not pile up: wait until the last is on its way.
            let all = self.replies.reserve_many(REPLIES_QUEUED).await;
            drop(all.map_err(|_| Closed::ByClient)?);
        }
        match self.handle(frame).await? {
            Reply::Silent => Ok(()),
            Reply::Close => Err(Closed::OnPurpose),
            reply => self
                .replies
                .send((reply, permit))
                .await
                .map_err(|_| Closed::ByClient),
        }
    }

    async fn next_frame(&mut self) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Closed> {
        let node = Arc::clone(&self.context.node);
        let max_bytes = node.config.max_request_bytes;
        let idle = Duration::from_millis(node.config.connection_idle_ms);
        let frame_time = Duration::from_millis(node.config.frame_read_timeout_ms);
        let mut permit = None;
        let mut deadline: Option<Instant> = None;
        loop {
            if let Some(frame) = frame::take_frame(&mut self.buffer, max_bytes)? {
                return Ok((frame, permit));
            }
            if self.eof {
                return Err(Closed::ByClient);
            }
            let announced = frame::announced_len(&self.buffer, max_bytes)?;
            if let Some(len) = announced.filter(|len| permit.is_none() && *len > SMALL_FRAME_BYTES)
            {
                permit = Some(reserve(&node, len, idle).await?);
                // Time spent waiting for memory is not the client's.
                deadline = None;
            }
            if deadline.is_none() && !self.buffer.is_empty() {
                deadline = Some(Instant::now() + frame_time);
            }
            let idle_at = Instant::now() + idle;
            let until = deadline.map_or(idle_at, |deadline| deadline.min(idle_at));
            frame::make_room(&mut self.buffer, max_bytes);
            let received = tokio::select! {
                received = timeout_at(until, self.read.read_buf(&mut self.buffer)) => received,
                () = node.stopping.cancelled() => return Err(Closed::Stopping),
            };
            match received {
                Err(_) if deadline.is_some_and(|deadline| deadline <= until) => {
                    return Err(Closed::FrameTimeout);
                }
                Err(_) => return Err(Closed::Idle),
                Ok(Err(error)) => return Err(error.into()),
                Ok(Ok(0)) => self.eof = true,
                Ok(Ok(_)) => {}
            }
        }
    }

    /// Handles a request while watching whether the client is still there. A
    /// panic ends this connection only.
    async fn handle(&mut self, frame: Bytes) -> Result<Reply, Closed> {
        let handling = dispatch::handle(self.context.clone(), frame);
        let mut handling = Box::pin(AssertUnwindSafe(handling).catch_unwind());
        loop {
            let may_read = !self.eof && self.buffer.len() < READ_AHEAD_BYTES;
            if may_read {
                self.buffer.reserve(READ_AHEAD_ROOM_BYTES);
            }
            tokio::select! {
                biased;
                handled = &mut handling => {
                    return Ok(handled.map_err(|_| Closed::Panicked)??);
                }
                received = self.read.read_buf(&mut self.buffer), if may_read => {
                    if !matches!(received, Ok(1..)) {
                        self.eof = true;
                        self.context.gone.cancel();
                    }
                }
            }
        }
    }
}

/// Room made before reading ahead.
const READ_AHEAD_ROOM_BYTES: usize = LENGTH_LEN * 1024;

/// Counts a large frame against the memory all connections share.
async fn reserve(node: &Node, len: usize, idle: Duration) -> Result<OwnedSemaphorePermit, Closed> {
    let units = u32::try_from(len.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
    let permit = Arc::clone(&node.frame_units).acquire_many_owned(units);
    tokio::select! {
        permit = timeout(idle, permit) => match permit {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Closed::Stopping),
            Err(_) => Err(Closed::Idle),
        },
        () = node.stopping.cancelled() => Err(Closed::Stopping),
    }
}

/// Writes responses in order until the reader ends or the client does not read.
async fn write_replies(
    mut write: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Queued>,
    write_timeout: Duration,
) -> Closed {
    while let Some((reply, _permit)) = queue.recv().await {
        let mut _held = None;
        let frame = match reply {
            Reply::Frame(frame) => Ok(frame),
            Reply::Counted(frame, permit) => {
                _held = permit;
                Ok(frame)
            }
            Reply::Later(frame) => frame.await,
            Reply::Silent => continue,
            Reply::Close => return Closed::OnPurpose,
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return error.into(),
        };
        match timeout(write_timeout, write.write_all(&frame)).await {
            Err(_) => return Closed::WriteTimeout,
            Ok(Err(error)) => return error.into(),
            Ok(Ok(())) => {}
        }
    }
    Closed::ByClient
}
