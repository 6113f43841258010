//! Monitoring that is away, and clients that are too many, too slow or mean.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use futures::StreamExt;
use rustix::thread::gettid;
use streamgauge_tests::{collector::Collector, process::free_port};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    runtime::{Builder, Handle, Runtime},
    task::JoinSet,
};

use crate::{
    failure::Failure,
    load::{Harvest, Load},
    stack::{PROXIED, Stack},
    toxiproxy::{Stream, Toxic},
    trial::{Setup, Trial},
};

/// The proxy before the trace collector.
const COLLECTOR: &str = "collector";
/// Rounds of each state of the monitoring; an odd number has a middle.
const ROUNDS: usize = 5;
/// How much worse throughput and p99 may become.
const CHANGE_MAX: f64 = 0.05;
/// Addresses that requests come from.
const ADDRESSES: u32 = 10_000;
/// Of those, how many ask at the same time.
const ADDRESSES_AT_ONCE: usize = 8;
/// Connections that send a byte now and then.
const SLOW_SENDERS: usize = 200;
/// Connections of the flood, for each of the honest clients'; each sends as fast as it is answered.
const FLOOD: u32 = 40;
/// No answer: who is refused before the body was read may find the connection closed while still sending.
const CUT_OFF: u16 = 0;
/// What the limit gets to find its place when the crowd comes, as in the tests of the limit by itself.
const SETTLES: Duration = Duration::from_secs(15);
/// Bombs, one after the other.
const BOMBS: usize = 40;
/// Every address has an allowance of its own, larger than what anyone here asks for, and none is forgotten the while.
pub const OVERLOAD_SETTINGS: [&str; 3] = [
    "producer.rate_limit.address.per_second=100000",
    "producer.rate_limit.address.burst=200000",
    "producer.rate_limit.evict_interval_s=600",
];

/// Spans go to a proxy.
pub async fn setup_monitoring(setup: &mut Setup<'_>, stack: &Stack) -> Result<(), Failure> {
    let port = free_port();
    // Nothing listens behind it until the run has started its collector.
    stack.toxiproxy.proxy(COLLECTOR, port, free_port()).await?;
    setup.settings = vec![
        format!("each.telemetry.otlp_endpoint=http://127.0.0.1:{port}"),
        String::from("each.telemetry.sample_ratio=0.05"),
        String::from("each.telemetry.export_queue_size=512"),
    ];
    setup.load = None;
    Ok(())
}

/// As many events as are answered, by turns with monitoring in order and with monitoring in trouble.
pub async fn monitoring(trial: &mut Trial<'_>, stack: &Stack) -> Result<(), Failure> {
    let collector = Collector::start().await;
    let proxy = stack.toxiproxy.existing(COLLECTOR);
    let upstream = collector.endpoint();
    let upstream = upstream.trim_start_matches("http://").to_owned();
    proxy.upstream(&upstream).await?;
    let spell = if trial.size.full { 12 } else { 5 };
    let spell = Duration::from_secs(spell);
    let (mut well, mut ill) = (Vec::new(), Vec::new());
    measure(trial, "warm", spell, &mut Vec::new()).await?;
    for round in 0..ROUNDS {
        let mut scrapers = scrape(trial, false);
        measure(trial, &format!("well{round}"), spell, &mut well).await?;
        scrapers.abort_all();
        // Silent and away by turns; Prometheus is slow the while.
        if round % 2 == 0 {
            proxy.add(Toxic::Timeout(0), Stream::Up, 1.0).await?;
        } else {
            proxy.enable(false).await?;
        }
        let mut scrapers = scrape(trial, true);
        measure(trial, &format!("ill{round}"), spell, &mut ill).await?;
        scrapers.abort_all();
        if round % 2 == 0 {
            proxy.heal().await?;
        } else {
            proxy.enable(true).await?;
        }
    }
    trial.healed().await;
    let mut dropped = 0.0;
    for name in PROXIED {
        dropped += trial.system.metric(name, "spans_dropped_total", "").await?;
    }
    trial.note(format!("{dropped} spans were dropped, and counted"));
    trial.require(dropped > 0.0, || {
        String::from("no span was dropped, or none that was is counted")
    });
    for (place, name) in ["events a second", "p99 in ms"].into_iter().enumerate() {
        let (before, after) = (median(&well, place), median(&ill, place));
        let worse = if place == 0 {
            (before - after) / before
        } else {
            (after - before) / before
        };
        trial.note(format!(
            "{name}: {before:.1} with monitoring, {after:.1} without"
        ));
        trial.require(worse < CHANGE_MAX, || {
            format!("{name} became worse by {:.1}%", worse * 100.0)
        });
    }
    Ok(())
}

/// Submits for a time as fast as answers come; keeps events per second and p99 in milliseconds.
async fn measure(
    trial: &mut Trial<'_>,
    name: &str,
    spell: Duration,
    into: &mut Vec<[f64; 2]>,
) -> Result<(), Failure> {
    let mut config = trial.load_config(name);
    (config.rate, config.events_min) = (0, 0);
    let load = Load::start(&config)?;
    tokio::time::sleep(spell).await;
    let harvest = load.finish().await?;
    let rate = harvest.tally.events as f64 / harvest.seconds;
    into.push([rate, harvest.seen.latency_ms(99)]);
    trial.harvest(harvest);
    // The consumer catches up before the next measurement.
    trial.healed().await;
    Ok(())
}

fn median(figures: &[[f64; 2]], place: usize) -> f64 {
    let mut sorted: Vec<f64> = figures.iter().map(|one| one[place]).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prometheus, one a service: every second all at once, or slowly byte by byte.
fn scrape(trial: &Trial<'_>, slowly: bool) -> JoinSet<()> {
    let mut scrapers = JoinSet::new();
    for name in PROXIED {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, trial.system.http_port(name)));
        scrapers.spawn(async move {
            loop {
                // A scrape that fails is the scraper's loss alone.
                let _ = Box::pin(scrape_once(address, slowly)).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    scrapers
}

async fn scrape_once(address: SocketAddr, slowly: bool) -> std::io::Result<()> {
    let mut connection = TcpStream::connect(address).await?;
    connection
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await?;
    let mut buffer = [0; 16 * 1024];
    let room = if slowly { 16 } else { buffer.len() };
    while connection.read(&mut buffer[..room]).await? > 0 {
        if slowly {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

/// Honest clients at their usual pace, alone and then among slow senders, bombs, many addresses and a flood.
pub async fn overload(trial: &mut Trial<'_>, stack: &Stack) -> Result<(), Failure> {
    let threads = stand_all_back(trial, stack).await?;
    let ended = crowd(trial, threads.handle()).await;
    threads.shutdown_background();
    stack.postgres(&["usual"]).await?;
    ended
}

/// All share one machine here. The mean, and those behind the log, get the time that the producer, Kafka and the honest
/// clients leave, as if each stood on a machine of its own. Otherwise an honest client would be measured waiting for
/// their work rather than for the producer's. Returns the threads for the mean; PostgreSQL is to be told when it is over.
pub async fn stand_all_back(trial: &mut Trial<'_>, stack: &Stack) -> Result<Runtime, Failure> {
    for name in ["consumer", "analytics"] {
        if let Some(pid) = trial.system.process(name).pid() {
            stand_back(&["--all-tasks", "--pid", "0", &pid.to_string()]);
        }
    }
    stack.postgres(&["idle"]).await?;
    Builder::new_multi_thread()
        .on_thread_start(|| stand_back(&["--pid", "0", &gettid().as_raw_nonzero().to_string()]))
        .enable_all()
        .build()
        .map_err(Failure::io("threads for the flood"))
}

/// The processor goes to whoever else wants it, at once (`SCHED_IDLE`). Threads that begin later inherit that.
fn stand_back(whom: &[&str]) {
    // Where it may not be, the measurement is only harder to pass.
    let _ = Command::new("chrt").arg("--idle").args(whom).status();
}

async fn crowd(trial: &mut Trial<'_>, threads: &Handle) -> Result<(), Failure> {
    // What only just started is slow, which would make the crowd look harmless.
    let warm = quiet(trial, "warm").await?;
    let calm = quiet(trial, "calm").await?;
    let producer = SocketAddr::from((Ipv4Addr::LOCALHOST, trial.system.http_port("producer")));
    let mut mean = JoinSet::new();
    for _ in 0..SLOW_SENDERS {
        let slowly = async move {
            loop {
                // It is cut off sooner or later, and comes back.
                let _ = slow_sender(producer).await;
            }
        };
        mean.spawn_on(slowly, threads);
    }
    let bombs = threads.spawn(bombs(trial.system.url("producer")));
    let addresses = tokio::spawn(many_addresses(producer));
    let flood = Load::start_on(threads, &flood(trial))?;
    let onset = amid(trial, "onset", SETTLES).await?;
    let lasts = if trial.size.full { 120 } else { 60 };
    let honest = amid(trial, "honest", Duration::from_secs(lasts)).await?;
    mean.abort_all();
    let statuses = bombs.await.unwrap_or_default();
    let answered = addresses.await.unwrap_or_default();
    let flood = flood.finish().await?;
    let by_address = r#"scope="address""#;
    let keys = trial
        .system
        .metric("producer", "rate_limiter_keys", by_address);
    let allowances = keys.await?;
    trial.healed().await;
    judge_overload(trial, [&calm, &onset, &honest], &flood);
    trial.require(
        statuses
            .iter()
            .all(|status| [CUT_OFF, 413, 429, 503].contains(status)),
        || format!("bombs were answered {statuses:?}"),
    );
    trial.require(answered == u64::from(ADDRESSES), || {
        format!("{answered} of {ADDRESSES} addresses got an answer")
    });
    trial.require(allowances >= f64::from(ADDRESSES), || {
        format!("{allowances} of {ADDRESSES} addresses hold an allowance")
    });
    for harvest in [warm, calm, onset, honest, flood] {
        trial.harvest(harvest);
    }
    Ok(())
}

fn judge_overload(trial: &mut Trial<'_>, honest: [&Harvest; 3], flood: &Harvest) {
    let [before, onset, after] = honest.map(|harvest| harvest.seen.latency_ms(99));
    trial.note(format!(
        "p99 of an honest client: {before:.1} ms alone, {onset:.1} ms in the crowd's first {} s, {after:.1} ms from then on; \
         the flood moved {:.0} events a second, in requests of which {} were refused and {} accepted",
        SETTLES.as_secs(),
        flood.tally.events as f64 / flood.seconds,
        flood.seen.refused,
        flood.seen.latencies_us.len(),
    ));
    trial.require(flood.seen.refused > 0, || {
        String::from("nobody was refused: the flood was no overload")
    });
    trial.require(after <= before * 2.0, || {
        format!("p99 of an honest client rose from {before:.1} to {after:.1} ms")
    });
    let everybody = honest.into_iter().chain([flood]);
    let errors = everybody.flat_map(|harvest| &harvest.seen.server_errors);
    let other = errors.filter(|error| error.1 != 503).count();
    trial.require(other == 0, || {
        format!("{other} answers with 5xx other than 503")
    });
}

/// The honest load for a time, whatever goes on beside it.
async fn amid(trial: &Trial<'_>, name: &str, lasts: Duration) -> Result<Harvest, Failure> {
    let mut config = trial.load_config(name);
    config.events_min = 0;
    let load = Load::start(&config)?;
    tokio::time::sleep(lasts).await;
    load.finish().await
}

/// The honest load by itself.
async fn quiet(trial: &mut Trial<'_>, name: &str) -> Result<Harvest, Failure> {
    let config = trial.load_config(name);
    Load::start(&config)?.finish().await
}

/// Many times the connections, each as fast as it is answered, from addresses of their own.
fn flood(trial: &Trial<'_>) -> crate::load::LoadConfig {
    let mut config = trial.load_config("flood");
    config.connections *= FLOOD;
    config.rate = 0;
    config.events_min = 0;
    config.sources = (0..config.connections)
        .map(|number| address(0x00ff_0000 + number))
        .collect();
    config
}

/// A loopback address by number.
fn address(number: u32) -> IpAddr {
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
        return vec![0];
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

/// One request from each of many addresses, some at a time; returns how many were answered.
async fn many_addresses(producer: SocketAddr) -> u64 {
    let asked = futures::stream::iter(1..=ADDRESSES).map(|number| async move {
        let asked = ask_from(address(0x0001_0000 + number), producer);
        let asked = tokio::time::timeout(Duration::from_secs(15), asked).await;
        u64::from(matches!(asked, Ok(Ok(true))))
    });
    // Whoever is left after five minutes counts as unanswered.
    let asked = asked
        .buffer_unordered(ADDRESSES_AT_ONCE)
        .take_until(tokio::time::sleep(Duration::from_secs(300)));
    asked.fold(0, async |answered, one| answered + one).await
}

async fn ask_from(source: IpAddr, producer: SocketAddr) -> std::io::Result<bool> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    let mut connection = socket.connect(producer).await?;
    // An empty batch: it is refused, but only after the client's allowance was looked at.
    connection
        .write_all(b"POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n[]")
        .await?;
    let mut answer = [0; 12];
    connection.read_exact(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 4") || answer.starts_with(b"HTTP/1.1 5"))
}
