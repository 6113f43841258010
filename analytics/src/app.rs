//! Puts the service together, serves, and drains.
//!
//! The doors open at once, so that probes are answered from the start; queries are answered as soon as the store was
//! read. Neither Kafka nor the database need be there: the service waits for them, says so, and is not ready until then.

use std::{process::ExitCode, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use streamgauge_kafka::{KafkaConfig, KafkaError, LogReader, admin};
use streamgauge_lifecycle::{
    BoxError, Condition, EXIT_FAILED, EXIT_WRONG_SETTINGS, Health, Outcome, SharedClock, Shutdown,
    SystemClock, Tasks, fail, serve_http, signal, write_line,
};
use streamgauge_resilience::{Backoff, BackoffConfig};
use streamgauge_settings::ConfigArgs;
use streamgauge_telemetry::{Metrics, Tracer};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    config::{Config, ENV_PREFIX},
    error::Error,
    follow, grpc, http,
    live::Live,
    metrics::AnalyticsMetrics,
    retention,
    service::Service,
    source::{SourceEnds, Watcher},
    store::{self, Observed, Store},
};

/// The service's name in logs, traces and metrics.
pub const SERVICE: &str = "analytics";

/// Time for spans that are queued when the service ends.
const TELEMETRY_DEADLINE: Duration = Duration::from_secs(2);

/// Where the service listens.
#[derive(Debug)]
pub struct Listeners {
    /// REST, live events, health and metrics.
    pub http: TcpListener,
    /// gRPC.
    pub grpc: TcpListener,
}

/// What the service is handed from outside.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Where its metrics go.
    pub metrics: Metrics,
    /// Where its spans go.
    pub tracer: Tracer,
    /// Time.
    pub clock: SharedClock,
    /// The signal that ends it.
    pub shutdown: Shutdown,
}

/// Listens where the settings say.
///
/// # Errors
/// When an address is not free.
pub async fn bind(config: &Config) -> Result<Listeners, Error> {
    Ok(Listeners {
        http: streamgauge_lifecycle::bind("http.listen", config.http.listen).await?,
        grpc: streamgauge_lifecycle::bind("grpc.listen", config.grpc.listen).await?,
    })
}

/// Serves until the shutdown and drains. Neither Kafka nor the database need be there.
///
/// # Errors
/// When a setting cannot be used, the topics do not fit each other, or a task fails.
pub async fn run(config: Config, listeners: Listeners, deps: Deps) -> Result<(), Error> {
    let store = store::open(&config.store)?;
    run_with_store(config, listeners, deps, store).await
}

/// As [`run`], over a store that is handed in.
///
/// # Errors
/// As [`run`].
pub async fn run_with_store(
    config: Config,
    listeners: Listeners,
    deps: Deps,
    store: Arc<dyn Store>,
) -> Result<(), Error> {
    deps.tracer.register(&deps.metrics);
    let metrics = AnalyticsMetrics::register(&deps.metrics);
    let store: Arc<dyn Store> = Arc::new(Observed::new(store, metrics.clone()));
    let config = Arc::new(config);
    let health = Health::new(SERVICE);
    let view = Arc::new(ArcSwapOption::empty());
    let live = Live::new(&config.live, metrics.clone(), deps.shutdown.clone());
    let service = Arc::new(Service::new(
        Arc::clone(&view),
        Arc::clone(&store),
        deps.clock.clone(),
        metrics.clone(),
        Arc::clone(&config),
    ));
    let pipeline = Pipeline {
        reader: LogReader::new(&config.kafka, &config.fetch, None)?,
        store_up: health.condition("store"),
        log_up: health.condition("log"),
        view_up: health.condition("view"),
        config: Arc::clone(&config),
        store: Arc::clone(&store),
        view,
        live: live.clone(),
        metrics: metrics.clone(),
        deps: deps.clone(),
    };
    let shared = Shared {
        service,
        live,
        metrics,
        tracer: deps.tracer.clone(),
        clock: deps.clock.clone(),
    };
    let outcome = serve(&config, listeners, &deps, &health, shared, pipeline).await;
    store.close().await;
    match outcome {
        Outcome::Clean => Ok(()),
        Outcome::Failed { task, error } => match error.downcast::<Error>() {
            Ok(error) => Err(*error),
            Err(source) => Err(Error::Server {
                server: task,
                source,
            }),
        },
        Outcome::DeadlineExceeded { left } => Err(Error::Tasks(format!(
            "these did not end in time: {}",
            left.join(", ")
        ))),
    }
}

/// What the doors share.
#[derive(Clone)]
pub struct Shared {
    /// The queries.
    pub service: Arc<Service>,
    /// The streams.
    pub live: Live,
    /// Metrics.
    pub metrics: AnalyticsMetrics,
    /// Spans.
    pub tracer: Tracer,
    /// Time.
    pub clock: SharedClock,
}

async fn serve(
    config: &Arc<Config>,
    listeners: Listeners,
    deps: &Deps,
    health: &Health,
    shared: Shared,
    pipeline: Pipeline,
) -> Outcome {
    let deadline = config.shutdown_deadline();
    let mut tasks = Tasks::new(deps.shutdown.clone());
    let router = http::router(shared.clone(), health.clone(), &deps.metrics);
    let (server, shutdown) = (config.http.server.clone(), deps.shutdown.clone());
    tasks.spawn("http", async move {
        serve_http(listeners.http, router, server, shutdown, deadline)
            .await
            .map_err(BoxError::from)
    });
    let door = grpc::Door {
        shared,
        config: config.grpc.clone(),
        health: health.clone(),
        metrics: deps.metrics.clone(),
        shutdown: deps.shutdown.clone(),
        deadline: deadline * 9 / 10,
    };
    tasks.spawn("grpc", async move {
        door.serve(listeners.grpc).await.map_err(BoxError::from)
    });
    tasks.spawn("pipeline", async move {
        pipeline.run().await.map_err(BoxError::from)
    });
    let (health, shutdown) = (health.clone(), deps.shutdown.clone());
    tasks.spawn("readiness", async move {
        shutdown.triggered().await;
        health.shutting_down();
        Ok(())
    });
    tasks.wait(deadline).await
}

/// From the log to the view.
struct Pipeline {
    config: Arc<Config>,
    store: Arc<dyn Store>,
    view: crate::service::SharedView,
    live: Live,
    metrics: AnalyticsMetrics,
    deps: Deps,
    reader: LogReader,
    store_up: Condition,
    log_up: Condition,
    view_up: Condition,
}

impl Pipeline {
    async fn run(self) -> Result<(), Error> {
        let shutdown = self.deps.shutdown.clone();
        let ready = async {
            self.connect().await;
            self.find_topics().await
        };
        let partitions = tokio::select! {
            found = ready => found?,
            () = shutdown.triggered() => return Ok(()),
        };
        let (sender, ends) = watch::channel(SourceEnds::default());
        let watcher = Watcher {
            reader: self.reader.clone(),
            topics: self.config.topics.clone(),
            partitions,
            view: Arc::clone(&self.view),
            metrics: self.metrics.clone(),
            clock: self.deps.clock.clone(),
            ends: sender,
        };
        let expiring = retention::run(
            Arc::clone(&self.store),
            self.config.retention.clone(),
            self.deps.clock.clone(),
            self.metrics.clone(),
            shutdown.clone(),
        );
        let following = follow::run(follow::Parts {
            db_system: db_system(&self.config),
            store: self.store,
            view: self.view,
            live: self.live,
            metrics: self.metrics,
            tracer: self.deps.tracer,
            clock: self.deps.clock,
            config: self.config,
            reader: self.reader,
            ends,
            store_up: self.store_up,
            log_up: self.log_up,
            view_up: self.view_up,
            shutdown: shutdown.clone(),
            partitions,
        });
        let ((), (), followed) = tokio::join!(watcher.run(shutdown), expiring, following);
        followed
    }

    /// Connects to the store, however long it takes.
    async fn connect(&self) {
        let connect = || self.store.migrate();
        persist(
            &self.config.store.connect,
            &self.store_up,
            "the store",
            connect,
        )
        .await;
        self.store_up.up();
    }

    /// Finds the topics, however long it takes, and how many partitions they have.
    async fn find_topics(&self) -> Result<i32, Error> {
        let waiting = Duration::from_millis(self.config.topics.wait_ms.max(10));
        loop {
            match partitions(&self.config).await {
                Ok(Some(partitions)) => {
                    self.log_up.up();
                    return Ok(partitions);
                }
                Ok(None) => {
                    let topics = &self.config.topics;
                    let missing = format!(
                        "topics {} and {} are not both there yet",
                        topics.events, topics.metrics
                    );
                    tracing::warn!(retry_in_ms = waiting.as_millis() as u64, "{missing}");
                    self.log_up.down(missing);
                }
                Err(error @ KafkaError::PartitionMismatch { .. }) => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(%error, retry_in_ms = waiting.as_millis() as u64, "waiting for the log");
                    self.log_up.down(error.to_string());
                }
            }
            tokio::time::sleep(waiting).await;
        }
    }
}

/// The partitions of both topics, once both are there.
async fn partitions(config: &Config) -> Result<Option<i32>, KafkaError> {
    // One look at a broker that is away must not take longer than a shutdown may.
    let timeout = config
        .kafka
        .request_timeout_ms
        .min(config.shutdown_deadline_ms / 2);
    let kafka = KafkaConfig {
        request_timeout_ms: timeout,
        ..config.kafka.clone()
    };
    let metrics = admin::partition_count(&kafka, &config.topics.metrics).await?;
    let events = admin::partition_count(&kafka, &config.topics.events).await?;
    match (events, metrics) {
        (Some(expected), Some(found)) if found != expected => Err(KafkaError::PartitionMismatch {
            topic: config.topics.metrics.clone(),
            found,
            expected,
        }),
        (Some(_), Some(partitions)) => Ok(Some(partitions)),
        _ => Ok(None),
    }
}

/// Repeats `connect` until it succeeds. The attempts of the settings are one round, after which the next begins.
async fn persist<F>(backoff: &BackoffConfig, up: &Condition, what: &str, connect: impl Fn() -> F)
where
    F: Future<Output = Result<(), store::StoreError>>,
{
    for round in 0u64.. {
        let mut waits = Backoff::new(backoff, round);
        loop {
            let Err(error) = connect().await else { return };
            let wait = waits.next();
            let pause = wait.unwrap_or(Duration::from_millis(backoff.max_ms));
            tracing::warn!(%error, retry_in_ms = pause.as_millis() as u64, "waiting for {what}");
            up.down(error.to_string());
            tokio::time::sleep(pause).await;
            if wait.is_none() {
                break;
            }
        }
    }
}

fn db_system(config: &Config) -> &'static str {
    if config.store.url.expose().starts_with("sqlite") {
        "sqlite"
    } else {
        "postgresql"
    }
}

/// The whole program: reads the settings, starts telemetry, serves until a signal, drains.
pub async fn main_with(args: ConfigArgs) -> ExitCode {
    let ended = match settings(&args) {
        Ok(Some(config)) => program(config).await.map_err(|error| (error, EXIT_FAILED)),
        Ok(None) => Ok(()),
        Err(error) => Err((error, EXIT_WRONG_SETTINGS)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err((error, code)) => fail("streamgauge-analytics", &*error, code),
    }
}

/// The settings; none when they were only to be printed.
fn settings(args: &ConfigArgs) -> Result<Option<Config>, BoxError> {
    let config: Config = args.loader(ENV_PREFIX).load()?;
    if args.print_config {
        let text = streamgauge_settings::print(&config);
        write_line(&mut std::io::stdout(), text.trim_end())?;
        return Ok(None);
    }
    Ok(Some(config))
}

async fn program(config: Config) -> Result<(), BoxError> {
    let listeners = bind(&config).await?;
    let instance = listeners.http.local_addr()?.to_string();
    let telemetry = streamgauge_telemetry::init(SERVICE, &instance, &config.telemetry)?;
    let shutdown = Shutdown::new();
    let deps = Deps {
        metrics: Metrics::new(SERVICE),
        tracer: telemetry.tracer(SERVICE),
        clock: SystemClock::shared(),
        shutdown: shutdown.clone(),
    };
    let grpc = listeners.grpc.local_addr()?.to_string();
    tracing::info!(
        http = instance,
        grpc,
        brokers = config.kafka.brokers,
        "analytics started"
    );
    let signalled = tokio::spawn(async move {
        signal().await;
        shutdown.trigger();
    });
    let result = run(config, listeners, deps).await;
    signalled.abort();
    telemetry.shutdown(TELEMETRY_DEADLINE).await;
    Ok(result?)
}
