//! The server against clients of all kinds, over real sockets.
#![allow(
    clippy::unwrap_used,
    reason = "what the tests share may unwrap as tests do"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use axum::routing::{get, post};
use streamgauge_lifecycle::{Deadline, HttpServerConfig, Shutdown, Unfinished, bind, serve_http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    addr: SocketAddr,
    shutdown: Shutdown,
    server: JoinHandle<Result<(), Unfinished>>,
    /// Told when a request to `/slow` has arrived.
    arrived: Arc<Notify>,
    /// Lets a request to `/slow` be answered.
    release: Arc<Notify>,
}

impl Running {
    async fn start(config: HttpServerConfig, deadline: Duration) -> Self {
        let listener = bind("http.listen", ([127, 0, 0, 1], 0).into())
            .await
            .unwrap();
        let addr = listener.local_addr().unwrap();
        let (arrived, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let slow = {
            let (arrived, release) = (arrived.clone(), release.clone());
            async move || {
                arrived.notify_one();
                release.notified().await;
                "slow"
            }
        };
        let router = Router::new()
            .route("/", get(async || "hello"))
            .route(
                "/peer",
                get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.ip().to_string()),
            )
            .route("/large", get(async || vec![b'x'; 64 << 20]))
            .route("/refused", post(async || StatusCode::PAYLOAD_TOO_LARGE))
            .route("/slow", get(slow));
        let shutdown = Shutdown::new();
        let server = tokio::spawn(serve_http(
            listener,
            router,
            config,
            Deadline::new(&shutdown, deadline),
        ));
        Running {
            addr,
            shutdown,
            server,
            arrived,
            release,
        }
    }

    fn get(&self, path: &str) -> JoinHandle<Result<String, reqwest::Error>> {
        let url = format!("http://{}{path}", self.addr);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        tokio::spawn(async move { client.get(url).send().await?.text().await })
    }

    async fn ended(self) {
        self.end().await.unwrap();
    }

    async fn end(self) -> Result<(), Unfinished> {
        let ended = tokio::time::timeout(PATIENCE, self.server).await;
        ended.unwrap().unwrap()
    }
}

/// All that the server sends until it closes the connection.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut text)).await;
    // A reset is a close as well.
    let _ = read.unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn it_answers_and_knows_its_peer() {
    let running = Running::start(HttpServerConfig::default(), PATIENCE).await;
    assert_eq!(running.get("/").await.unwrap().unwrap(), "hello");
    assert_eq!(running.get("/peer").await.unwrap().unwrap(), "127.0.0.1");
    running.shutdown.trigger();
    running.ended().await;
}

#[tokio::test]
async fn a_shutdown_lets_requests_under_way_finish() {
    let running = Running::start(HttpServerConfig::default(), PATIENCE).await;
    // An idle connection must not hold the shutdown up.
    let mut idle = TcpStream::connect(running.addr).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut head = [0; 12];
    idle.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");

    let slow = running.get("/slow");
    running.arrived.notified().await;
    running.shutdown.trigger();
    rest(&mut idle).await;
    assert!(!running.server.is_finished());
    running.release.notify_one();
    assert_eq!(slow.await.unwrap().unwrap(), "slow");
    running.ended().await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_past_its_deadline_and_counts_what_it_cut() {
    let running = Running::start(HttpServerConfig::default(), Duration::from_millis(200)).await;
    // Half a head is no request, and nobody waits for its answer.
    let mut half = TcpStream::connect(running.addr).await.unwrap();
    half.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
    let mut slow = Vec::new();
    for _ in 0..2 {
        slow.push(running.get("/slow"));
        running.arrived.notified().await;
    }
    running.shutdown.trigger();
    let unfinished = running.end().await.unwrap_err();
    assert_eq!(unfinished.left(), ["2 requests"]);
    for slow in slow {
        assert!(slow.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_head_that_trickles_in_is_cut_off() {
    let config = HttpServerConfig {
        header_read_timeout_ms: 100,
        ..HttpServerConfig::default()
    };
    let running = Running::start(config, PATIENCE).await;
    for start in ["", "GET / HTTP/1.1\r\nhost: x\r\nx-slow:"] {
        let mut stream = TcpStream::connect(running.addr).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    // A handler may take longer than a head.
    let slow = running.get("/slow");
    running.arrived.notified().await;
    tokio::time::sleep(Duration::from_millis(250)).await;
    running.release.notify_one();
    assert_eq!(slow.await.unwrap().unwrap(), "slow");
    running.shutdown.trigger();
    running.ended().await;
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let running = Running::start(HttpServerConfig::default(), PATIENCE).await;
    let mut stream = TcpStream::connect(running.addr).await.unwrap();
    let length = 16 << 20;
    let head = format!("POST /refused HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b'x'; length]).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_bound_are_told_and_closed() {
    let config = HttpServerConfig {
        max_connections: 2,
        ..HttpServerConfig::default()
    };
    let running = Running::start(config, PATIENCE).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(running.addr).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        held.push(stream);
    }
    let mut refused = TcpStream::connect(running.addr).await.unwrap();
    refused
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let answer = rest(&mut refused).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.ends_with(&format!("content-length: {}", body.len())),
        "{answer}"
    );

    drop(held);
    let answered = async {
        while running.get("/").await.unwrap().ok().as_deref() != Some("hello") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.unwrap();
    running.shutdown.trigger();
    running.ended().await;
}

#[tokio::test]
async fn an_address_in_use_names_the_setting() {
    let taken = bind("http.listen", ([127, 0, 0, 1], 0).into())
        .await
        .unwrap();
    let addr = taken.local_addr().unwrap();
    let error = bind("http.listen", addr).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("http.listen: cannot listen on {addr}: ")),
        "{text}"
    );
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_loses_its_place() {
    let config = HttpServerConfig {
        max_connections: 1,
        write_timeout_ms: 200,
        ..HttpServerConfig::default()
    };
    let running = Running::start(config, PATIENCE).await;
    let mut stream = TcpStream::connect(running.addr).await.unwrap();
    stream
        .write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let others = async {
        while running.get("/").await.unwrap().unwrap_or_default() != "hello" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, others).await.unwrap();
    running.shutdown.trigger();
    running.ended().await;
}
