//! Clients that mean no good: slow senders, decompression bombs, and a crowd of addresses.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use futures::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    runtime::Handle,
    task::{JoinHandle, JoinSet},
};

use crate::{
    load::Harvest,
    log_check::event_id,
    oracle::{Cell, TYPES, user_id},
};

/// Addresses that requests come from.
pub const ADDRESSES: u32 = 10_000;
/// Of those, how many ask at the same time.
const ADDRESSES_AT_ONCE: usize = 8;
/// How often one asks until its event is accepted, and how long it waits in between and for an answer.
const ASKS_MAX: u16 = 20;
const ASK_PAUSE: Duration = Duration::from_millis(500);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Whoever is left after so long is not answered.
const ADDRESSES_DEADLINE: Duration = Duration::from_secs(300);
/// The name of their load.
const ADDRESSES_RUN: &str = "addresses";
/// Connections that send a byte now and then.
const SLOW_SENDERS: usize = 200;
/// Bombs, one after the other.
const BOMBS: usize = 40;
/// No answer: who is refused before the body was read may find the connection closed while still sending.
pub const CUT_OFF: u16 = 0;

/// All of them, at work.
pub struct Mean {
    slow: JoinSet<()>,
    bombs: JoinHandle<Vec<u16>>,
    addresses: JoinHandle<Harvest>,
}

/// What became of them.
pub struct Outcome {
    /// The statuses that bombs were answered with, or [`CUT_OFF`].
    pub bombs: Vec<u16>,
    /// What the addresses' events became.
    pub addresses: Harvest,
}

impl Mean {
    /// Sends them against a producer; the mean get these threads.
    pub fn begin(threads: &Handle, producer: SocketAddr) -> Self {
        let mut slow = JoinSet::new();
        for _ in 0..SLOW_SENDERS {
            let slowly = async move {
                loop {
                    // It is cut off sooner or later, and comes back.
                    let _ = slow_sender(producer).await;
                }
            };
            slow.spawn_on(slowly, threads);
        }
        Self {
            slow,
            bombs: threads.spawn(bombs(format!("http://{producer}"))),
            addresses: tokio::spawn(many_addresses(producer)),
        }
    }

    /// Waits until the bombs are sent and the addresses have been answered, and calls the slow senders back.
    pub async fn end(mut self) -> Outcome {
        let outcome = Outcome {
            bombs: self.bombs.await.unwrap_or_default(),
            addresses: self.addresses.await.unwrap_or_default(),
        };
        self.slow.shutdown().await;
        outcome
    }
}

/// A loopback address by number.
pub fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x7f00_0000 | (number & 0x00ff_ffff)))
}

/// Announces a body and sends it a byte at a time.
async fn slow_sender(address: SocketAddr) -> std::io::Result<()> {
    let mut connection = TcpStream::connect(address).await?;
    let head = "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 4000\r\n\r\n[";
    for byte in head.bytes().chain(std::iter::repeat_n(b' ', 3_000)) {
        connection.write_all(&[byte]).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Small bodies that become a gigabyte; returns the answers' statuses, or [`CUT_OFF`].
async fn bombs(url: String) -> Vec<u16> {
    let body = tokio::task::spawn_blocking(|| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let block = vec![b' '; 1 << 20];
        (0..1_024)
            .try_for_each(|_| encoder.write_all(&block))
            .and_then(|()| encoder.finish())
    });
    let Ok(Ok(body)) = body.await else {
        return Vec::new();
    };
    let client = reqwest::Client::new();
    let mut statuses = Vec::new();
    for _ in 0..BOMBS {
        let request = client.post(format!("{url}/v1/events")).body(body.clone());
        let request = request
            .header("content-type", "application/json")
            .header("content-encoding", "gzip");
        let answer = request.send().await;
        statuses.push(answer.map_or(CUT_OFF, |answer| answer.status().as_u16()));
    }
    statuses
}

/// One event from each of many addresses, some at a time, each until it is accepted: what is refused before the request
/// is read holds no allowance.
async fn many_addresses(producer: SocketAddr) -> Harvest {
    let asked = futures::stream::iter(0..ADDRESSES)
        .map(|number| async move { (number, ask_until_accepted(number, producer).await) });
    let asked = asked
        .buffer_unordered(ADDRESSES_AT_ONCE)
        .take_until(tokio::time::sleep(ADDRESSES_DEADLINE));
    let mut harvest = Harvest::default();
    harvest.tally.run = String::from(ADDRESSES_RUN);
    let asked = asked.fold(harvest, async |mut harvest, (number, accepted)| {
        if let Some(asks) = accepted {
            harvest.tally.add((number, 0), cell(number));
            if asks > 1 {
                harvest.tally.attempts.insert((number, 0), asks);
            }
        }
        harvest
    });
    asked.await
}

fn cell(number: u32) -> Cell {
    Cell {
        page: 0,
        kind: (number % TYPES.len() as u32) as u8,
    }
}

/// How often an address had to ask until its event was accepted; none when it never was.
async fn ask_until_accepted(number: u32, producer: SocketAddr) -> Option<u16> {
    for asks in 1..=ASKS_MAX {
        let asked = ask_from(number, producer);
        match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Ok(true)) => return Some(asks),
            _ => tokio::time::sleep(ASK_PAUSE).await,
        }
    }
    None
}

async fn ask_from(number: u32, producer: SocketAddr) -> std::io::Result<bool> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((address(0x0001_0000 + number), 0)))?;
    let mut connection = socket.connect(producer).await?;
    let cell = cell(number);
    let body = format!(
        r#"[{{"event_id":"{}","user_id":"{}","event_type":"{}","page_url":"{}"}}]"#,
        event_id(ADDRESSES_RUN, (number, 0)),
        user_id(ADDRESSES_RUN, number),
        cell.event_type(),
        cell.page_url(),
    );
    let request = format!(
        "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""accepted""#))
}
