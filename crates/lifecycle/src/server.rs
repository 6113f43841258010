//! An HTTP/1.1 server that a bad client cannot wear out: heads must arrive in time, answers must be taken in time,
//! connections are bounded, and a shutdown waits for requests under way, but not forever. (`axum::serve` offers none of
//! these.)

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::connection::Connection;
use crate::tasks::BoxError;
use crate::tls::Tls;
use crate::{Deadline, Shutdown, Stage, Unfinished};

/// How much a server puts up with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpServerConfig {
    /// How long a client may take to send the head of a request; also how long an idle connection is kept.
    pub header_read_timeout_ms: u64,
    /// How long a client may take nothing of an answer before its connection is cut.
    pub write_timeout_ms: u64,
    /// How long a connection is still read from after the server has ended it, so that a client that is sending gets to
    /// its answer; what comes is thrown away.
    pub linger_ms: u64,
    /// Connections at once; those beyond are answered with 503 and closed.
    pub max_connections: usize,
    /// The largest head of a request, in bytes.
    pub max_header_bytes: usize,
}

impl Default for HttpServerConfig {
    fn default() -> Self {
        HttpServerConfig {
            header_read_timeout_ms: 15_000,
            write_timeout_ms: 30_000,
            linger_ms: 1_000,
            max_connections: 4_096,
            max_header_bytes: 32 * 1024,
        }
    }
}

/// An address could not be listened on.
#[derive(Debug, Error)]
#[error(
    "{setting}: cannot listen on {address}: {source}; set {setting} to an address that is free here"
)]
pub struct BindError {
    pub setting: String,
    pub address: SocketAddr,
    pub source: io::Error,
}

/// Listens on `addr`, which the setting of that name asked for.
pub async fn bind(setting: &str, addr: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(addr).await.map_err(|source| BindError {
        setting: setting.to_owned(),
        address: addr,
        source,
    })
}

/// Where a client on this machine finds what listens there: on all addresses is on its own as well.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let own = match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(own);
    }
    address
}

/// Serves until the shutdown, then lets requests under way finish until the doors' share of the deadline is over, after
/// which their connections are cut; the error says how many requests were under way on these. Handlers find the peer's
/// address as `ConnectInfo<SocketAddr>`; connections may be upgraded (WebSocket).
pub async fn serve_http(
    listener: TcpListener,
    router: Router,
    config: HttpServerConfig,
    deadline: Deadline,
) -> Result<(), Unfinished> {
    serve(listener, None, router, config, deadline).await
}

/// As [`serve_http`], over encrypted connections where there is a certificate.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    router: Router,
    config: HttpServerConfig,
    deadline: Deadline,
) -> Result<(), Unfinished> {
    let shutdown = deadline.shutdown();
    let server = Server::new(router, tls, &config, shutdown.clone());
    while let Some((stream, peer)) = accept(&listener, shutdown).await {
        server.take(stream, peer);
    }
    drop(listener);
    match server.drain(&deadline).await {
        0 => Ok(()),
        1 => Err(Unfinished::new("1 request")),
        cut => Err(Unfinished::new(format_args!("{cut} requests"))),
    }
}

/// The next connection; none once the shutdown is raised.
pub(crate) async fn accept(
    listener: &TcpListener,
    shutdown: &Shutdown,
) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.triggered() => return None,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                // Out of file descriptors, most likely: give some time to come back.
                tracing::error!(%error, "cannot accept connections");
                tokio::select! {
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    () = shutdown.triggered() => return None,
                }
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
    )
}

struct Server {
    router: Router,
    tls: Option<Tls>,
    http: http1::Builder,
    head_timeout: Duration,
    write_timeout: Duration,
    linger: Duration,
    places: Arc<Semaphore>,
    /// Connections that are being turned away; these are bounded too.
    refusals: Arc<Semaphore>,
    connections: TaskTracker,
    shutdown: Shutdown,
    /// Cuts what is left at the deadline.
    cut: CancellationToken,
    /// Requests that were under way when their connections were cut.
    requests_cut: Arc<AtomicUsize>,
}

/// The pause after a failure to accept that has nothing to do with the peer.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

const MAX_REFUSALS: usize = 256;
const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: text/plain\r\ncontent-length: 21\r\n\r\ntoo many connections\n";

impl Server {
    fn new(
        router: Router,
        tls: Option<Tls>,
        config: &HttpServerConfig,
        shutdown: Shutdown,
    ) -> Self {
        let head_timeout = Duration::from_millis(config.header_read_timeout_ms.max(1));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(head_timeout)
            // Hyper does not go below this buffer.
            .max_buf_size(config.max_header_bytes.max(8 * 1024));
        Server {
            router,
            tls,
            http,
            head_timeout,
            write_timeout: Duration::from_millis(config.write_timeout_ms.max(1)),
            linger: Duration::from_millis(config.linger_ms),
            places: Arc::new(Semaphore::new(
                config.max_connections.clamp(1, Semaphore::MAX_PERMITS),
            )),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            connections: TaskTracker::new(),
            shutdown,
            cut: CancellationToken::new(),
            requests_cut: Arc::default(),
        }
    }

    fn take(&self, stream: TcpStream, peer: SocketAddr) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let linger = self.linger;
            if let Ok(place) = Arc::clone(&self.refusals).try_acquire_owned() {
                self.connections.spawn(async move {
                    refuse(stream, linger).await;
                    drop(place);
                });
            }
            return;
        };
        let stream = Connection::new(stream)
            .write_timeout(self.write_timeout)
            .linger(self.linger);
        let router = self.router.clone();
        // A connection that is still there after the shutdown is not between two requests: those end at once.
        let asked = Arc::new(AtomicBool::new(false));
        let asks = Arc::clone(&asked);
        let service = service_fn(move |request: Request<Incoming>| {
            asks.store(true, Ordering::Relaxed);
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            router.clone().oneshot(request)
        });
        let (http, shutdown, cut) = (self.http.clone(), self.shutdown.clone(), self.cut.clone());
        let (tls, head_timeout) = (self.tls.clone(), self.head_timeout);
        let requests_cut = Arc::clone(&self.requests_cut);
        self.connections.spawn(async move {
            let talk = async {
                let Some(tls) = tls else {
                    let connection = http.serve_connection(TokioIo::new(stream), service);
                    return drained(connection, &shutdown).await;
                };
                // Before the first head there is nothing to finish.
                let stream = tokio::select! {
                    stream = timeout(head_timeout, tls.accept(stream)) => stream??,
                    () = shutdown.triggered() => return Ok(()),
                };
                let connection = http.serve_connection(TokioIo::new(stream), service);
                drained(connection, &shutdown).await
            };
            tokio::select! {
                result = talk => if let Err(error) = result {
                    tracing::debug!(%error, %peer, "connection ended early");
                },
                () = cut.cancelled() => {
                    requests_cut.fetch_add(asked.load(Ordering::Relaxed).into(), Ordering::Relaxed);
                }
            }
            drop(place);
        });
    }

    /// Waits for what is under way; says how many requests had to be cut.
    async fn drain(self, deadline: &Deadline) -> usize {
        self.connections.close();
        let end = deadline.end(Stage::Doors);
        if timeout_at(end, self.connections.wait()).await.is_err() {
            let connections = self.connections.len();
            self.cut.cancel();
            self.connections.wait().await;
            let requests = self.requests_cut.load(Ordering::Relaxed);
            tracing::warn!(
                connections,
                requests,
                "cut connections that did not finish in time"
            );
        }
        self.requests_cut.load(Ordering::Relaxed)
    }
}

/// Serves a connection to its end; after the shutdown, to the end of the request under way.
async fn drained<I, S>(
    connection: http1::Connection<I, S>,
    shutdown: &Shutdown,
) -> Result<(), BoxError>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = Body>,
    S::Error: Into<BoxError>,
{
    let mut connection = pin!(connection.with_upgrades());
    tokio::select! {
        result = connection.as_mut() => return Ok(result?),
        () = shutdown.triggered() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

/// Says no in a way that reaches the client.
async fn refuse(stream: TcpStream, linger: Duration) {
    let mut stream = Connection::new(stream).write_timeout(linger).linger(linger);
    // A client that has gone is no loss.
    if stream.write_all(REFUSAL).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}
