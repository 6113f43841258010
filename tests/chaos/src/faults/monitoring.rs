//! Monitoring that is away or slow.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use streamgauge_tests::{collector::Collector, process::free_port};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    failure::Failure,
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

/// Spans go to a proxy.
pub async fn setup(setup: &mut Setup<'_>, stack: &Stack) -> Result<(), Failure> {
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
    let harvest = trial.offer(name, spell, |config| config.rate = 0).await?;
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
