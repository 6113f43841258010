//! What clients do: send what breaks rules, comes twice or too late, ask too much, and have themselves traced while nobody
//! collects the spans. All at once, on one system.

use streamgauge_tests::{process::free_port, system::System};
use tokio::{
    task::JoinHandle,
    time::{Duration, interval},
};

use crate::{
    bench::Bench,
    failure::{Failure, Outcome},
    faults::{Found, prove},
    inbox::Alert,
    load::{Load, Mix},
};

/// Queries that are asked at one moment, and how often.
const CROWD: usize = 32;
const CROWD_INTERVAL: Duration = Duration::from_millis(200);

/// Runs the group.
pub async fn run() -> Outcome<Found> {
    let nobody = format!(
        "each.telemetry.otlp_endpoint=http://127.0.0.1:{}",
        free_port()
    );
    let system = System::start(&[
        "consumer.keys.per_hour_max=40",
        "analytics.query.concurrent_max=2",
        "each.telemetry.sample_ratio=0",
        &nobody,
    ])
    .await;
    let bench = Bench::beside(system).await?;
    let (system, watch) = (&bench.system, bench.watch());
    let _usual = Load::start(
        system,
        "usual",
        Mix {
            queries: 1,
            ..Mix::USUAL
        },
    )?;
    watch
        .prometheus
        .until("job:events_accepted:rate5m > 50", Duration::from_secs(60))
        .await?;

    let mixed = |name: &'static str, mix: Mix| async move || Load::start(system, name, mix);
    let none = Mix::default();
    let groups = futures::join!(
        prove(
            &watch,
            "a third of the events have no type",
            [Alert::named("EventsRejectedHigh")],
            mixed(
                "rejected",
                Mix {
                    rejected: 80,
                    ..none
                }
            ),
            end,
        ),
        prove(
            &watch,
            "a client sends what it has sent before",
            [Alert::named("DuplicatesHigh")],
            mixed(
                "again",
                Mix {
                    duplicates: 80,
                    ..none
                }
            ),
            end,
        ),
        prove(
            &watch,
            "a client sends events of last week",
            [Alert::named("LateEventsHigh")],
            mixed("late", Mix { late: 40, ..none }),
            end,
        ),
        prove(
            &watch,
            "every event has a page of its own",
            [Alert::named("SeriesKeysFolded")],
            mixed(
                "pages",
                Mix {
                    new_pages: 20,
                    ..none
                }
            ),
            end,
        ),
        prove(
            &watch,
            "requests are traced and no collector listens",
            [Alert::named("SpansDropped")],
            mixed(
                "traced",
                Mix {
                    good: 10,
                    sampled: true,
                    ..none
                }
            ),
            end,
        ),
        prove(
            &watch,
            "more queries at once than are allowed",
            [
                Alert::named("QueriesRefused"),
                Alert::with("QueryLatencySLOBurn", &[("severity", "critical")]),
            ],
            async || crowd(system.analytics()),
            end,
        ),
    );
    Ok([groups.0, groups.1, groups.2, groups.3, groups.4, groups.5]
        .concat()
        .into())
}

/// Ends a load by dropping it.
pub async fn end<Running>(load: Running) -> Outcome<()> {
    drop(load);
    Ok(())
}

/// Ends its task when it is dropped.
struct Crowd(JoinHandle<()>);

impl Drop for Crowd {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn crowd(analytics: String) -> Outcome<Crowd> {
    let http = reqwest::Client::builder()
        .timeout(Duration::from_secs(10))
        .build();
    let http = http.map_err(Failure::http("a client"))?;
    let url = format!("{analytics}/v1/series?by=page_url&last=1h&step=1s&limit=100");
    let task = async move {
        let mut moments = interval(CROWD_INTERVAL);
        loop {
            moments.tick().await;
            let queries = (0..CROWD).map(|_| http.get(&url).send());
            futures::future::join_all(queries).await;
        }
    };
    Ok(Crowd(tokio::spawn(task)))
}
