//! Closed-loop HTTP load: each connection sends its next request when the last is answered.
//!
//! Requests are laid out before the clock starts and answers are only framed, not parsed, so that
//! the client takes as little of the machine as it can.

use std::{
    io,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{events::Events, usage};

/// Different requests per connection, sent round and round.
const VARIETY: u64 = 32;

/// A load.
#[derive(Clone, Debug, clap::Args)]
pub struct Load {
    /// Address of the producer's HTTP listener.
    #[arg(long, default_value = "127.0.0.1:8081")]
    pub address: String,
    /// Events in one request.
    #[arg(long, default_value_t = 100)]
    pub batch: usize,
    /// Connections.
    #[arg(long, default_value_t = 32)]
    pub connections: u64,
    /// Seconds that are measured, after one second of warming up.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// The server's process, for its processor time and memory.
    #[arg(long)]
    pub pid: Option<u32>,
}

#[derive(Default)]
struct Tally {
    requests: u64,
    refused: u64,
    micros: Vec<u64>,
}

/// Runs the load and says what it measured.
///
/// # Errors
/// When a connection fails.
pub async fn run(load: &Load) -> io::Result<Value> {
    let warm = Instant::now() + Duration::from_secs(1);
    let end = warm + Duration::from_secs(load.seconds);
    let mut connections = Vec::new();
    for seed in 0..load.connections {
        let load = load.clone();
        connections.push(tokio::spawn(async move {
            connection(&load, seed, warm, end).await
        }));
    }
    tokio::time::sleep_until(warm.into()).await;
    let cpu_before = load.pid.and_then(usage::cpu_seconds);
    let mut total = Tally::default();
    for connection in connections {
        let tally = connection.await.map_err(io::Error::other)??;
        total.requests += tally.requests;
        total.refused += tally.refused;
        total.micros.extend(tally.micros);
    }
    let cpu = load
        .pid
        .and_then(usage::cpu_seconds)
        .zip(cpu_before)
        .map(|(a, b)| a - b);
    let events = total.requests * load.batch as u64;
    let (p50, p99) = usage::percentiles_ms(total.micros);
    Ok(json!({
        "measure": "http", "batch": load.batch, "connections": load.connections,
        "events": events, "events_per_second": events / load.seconds.max(1),
        "refused_requests": total.refused, "p50_ms": p50, "p99_ms": p99,
        "cpu_seconds_per_million": cpu.map(|cpu| cpu * 1e6 / events.max(1) as f64),
        "peak_rss_mib": load.pid.and_then(usage::peak_rss_mib),
    }))
}

async fn connection(load: &Load, seed: u64, warm: Instant, end: Instant) -> io::Result<Tally> {
    let requests: Vec<Vec<u8>> = (0..VARIETY)
        .map(|variety| request(load, seed * VARIETY + variety))
        .collect();
    let mut stream = TcpStream::connect(&load.address).await?;
    stream.set_nodelay(true)?;
    let (mut tally, mut buffer) = (Tally::default(), Vec::with_capacity(64 * 1024));
    for request in requests.iter().cycle() {
        let began = Instant::now();
        if began >= end {
            break;
        }
        stream.write_all(request).await?;
        let status = answer(&mut stream, &mut buffer).await?;
        if began >= warm {
            match status {
                200 => tally.requests += 1,
                _ => tally.refused += 1,
            }
            tally.micros.push(began.elapsed().as_micros() as u64);
        }
    }
    Ok(tally)
}

fn request(load: &Load, seed: u64) -> Vec<u8> {
    let mut events = Events::new(seed, 50_000, 1_000);
    let body = if load.batch == 1 {
        events.json()
    } else {
        let list: Vec<_> = (0..load.batch).map(|_| events.json()).collect();
        format!("[{}]", list.join(","))
    };
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body.into_bytes()].concat()
}

/// Reads one answer whole; returns its status.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<u16> {
    buffer.clear();
    let (head, length) = loop {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(head) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break (head + 4, content_length(&buffer[..head])?);
        }
    };
    while buffer.len() < head + length {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let status = buffer
        .get(9..12)
        .and_then(|digits| std::str::from_utf8(digits).ok());
    status
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn content_length(head: &[u8]) -> io::Result<usize> {
    let text = std::str::from_utf8(head).map_err(io::Error::other)?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| io::Error::other("an answer without content-length"))
}
