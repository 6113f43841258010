//! Puts the service together, serves, and drains.
//!
//! The doors open at once, so that probes are answered from the start; queries are answered as soon as the store was
//! read. Neither Kafka nor the database need be there: the service waits for them, says so, and is not ready until then.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use streamgauge_canary::{Canary, CanaryMetrics, Query};
use streamgauge_kafka::LogReader;
use streamgauge_lifecycle::{
    BoxError, Deadline, Health, HttpDoor, Outcome, SharedClock, Shutdown, Stage, Tasks, reachable,
};
use streamgauge_service::{Deps, Listeners};
use streamgauge_telemetry::{TelemetryConfig, Tracer};
use tokio::net::TcpListener;

use crate::{
    alerts::Alerts,
    config::{Config, ENV_PREFIX},
    error::Error,
    follow, grpc, http,
    live::Live,
    metrics::AnalyticsMetrics,
    pipeline::{self, Pipeline},
    service::Service,
    store::{self, Observed, Store},
};

/// The service's name in logs, traces and metrics.
pub const SERVICE: &str = "analytics";

/// Listens where the settings say.
///
/// # Errors
/// When an address is not free.
pub async fn bind(config: &Config) -> Result<Listeners, Error> {
    let (http, grpc) = (config.http.listen, config.grpc.listen);
    Listeners::bind(http, grpc, &config.http.metrics).await
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
    config.check()?;
    deps.tracer.register(&deps.metrics);
    let metrics = AnalyticsMetrics::register(&deps.metrics);
    let store: Arc<dyn Store> = Arc::new(Observed::new(store, &config.store, metrics.clone()));
    let config = Arc::new(config);
    let health = Health::new(SERVICE);
    deps.metrics
        .with(|registry| registry.register_collector(Box::new(health.clone())));
    let view = Arc::new(ArcSwapOption::empty());
    let live = Live::new(&config.live, metrics.clone(), deps.shutdown.clone());
    let service = Arc::new(Service::new(
        Arc::clone(&view),
        Arc::clone(&store),
        Alerts::new(&config.alerts, deps.clock.clone())?,
        deps.clock.clone(),
        metrics.clone(),
        Arc::clone(&config),
    ));
    let parts = follow::Parts {
        reader: LogReader::new(&pipeline::for_requests(&config), &config.fetch, None)?,
        store_up: health.condition("store"),
        log_up: health.condition("log"),
        overtaken: service.overtaken(),
        swapped: Arc::default(),
        store: Arc::clone(&store),
        view,
        live: live.clone(),
        metrics: metrics.clone(),
        tracer: deps.tracer.clone(),
        clock: deps.clock.clone(),
        shutdown: deps.shutdown.clone(),
        db_system: db_system(&config),
        config: Arc::clone(&config),
    };
    let view_up = health.condition("view");
    let pipeline = Pipeline {
        parts,
        view_up,
        checker: service.checker(),
    };
    let canary = canary(&config, &listeners, &deps)?;
    let shared = Shared {
        service,
        live,
        metrics,
        tracer: deps.tracer.clone(),
        clock: deps.clock.clone(),
    };
    let outcome = serve(&config, listeners, &deps, &health, shared, pipeline, canary).await;
    // A connection that hangs must not keep the process. What it was for is a transaction, done or not.
    let limit = config.deadline(&deps.shutdown).left(Stage::Flush);
    let closed = tokio::time::timeout(limit, store.close()).await;
    let left = closed
        .is_err()
        .then(|| String::from("connections to the store"));
    match outcome.with_left(left) {
        Outcome::Clean => Ok(()),
        Outcome::Failed { task, error } => match error.downcast::<Error>() {
            Ok(error) => Err(*error),
            Err(source) => Err(Error::Server {
                server: task,
                source,
            }),
        },
        Outcome::Unfinished(unfinished) => Err(unfinished.into()),
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
    canary: Option<Canary>,
) -> Outcome {
    let deadline = config.deadline(&deps.shutdown);
    let mut tasks = Tasks::new(deps.shutdown.clone());
    let door = HttpDoor {
        listener: listeners.http,
        metrics: listeners.metrics,
        config: config.http.server.clone(),
        deadline: deadline.clone(),
    };
    door.open(&mut tasks, deps.metrics.encoder(), |exposed| {
        http::router(shared.clone(), health.clone(), &deps.metrics, exposed)
    });
    let door = grpc::Door {
        shared,
        config: config.grpc.clone(),
        health: health.clone(),
        metrics: deps.metrics.clone(),
        deadline: deadline.clone(),
    };
    tasks.spawn("grpc", async move {
        door.serve(listeners.grpc).await.map_err(BoxError::from)
    });
    tasks.spawn("pipeline", async move {
        pipeline.run().await.map_err(BoxError::from)
    });
    if let Some(canary) = canary {
        let shutdown = deps.shutdown.clone();
        tasks.spawn("canary", async move {
            canary.run(shutdown).await;
            Ok(())
        });
    }
    let (health, shutdown) = (health.clone(), deps.shutdown.clone());
    tasks.spawn("readiness", async move {
        shutdown.triggered().await;
        health.shutting_down();
        Ok(())
    });
    tasks.wait(&deadline).await
}

/// The canary, where it is wanted; its metrics are there in any case. It asks at this service's own doors.
fn canary(config: &Config, listeners: &Listeners, deps: &Deps) -> Result<Option<Canary>, Error> {
    let metrics = CanaryMetrics::register(&deps.metrics);
    if !config.canary.enabled {
        return Ok(None);
    }
    let own = |listener: &TcpListener| {
        let address = listener.local_addr();
        let address = address.map_err(|error| Error::Setting(format!("canary: {error}")))?;
        Ok::<_, Error>(reachable(address).to_string())
    };
    let query = Query {
        http: own(&listeners.http)?,
        grpc: own(&listeners.grpc)?,
    };
    let (tracer, clock) = (deps.tracer.clone(), deps.clock.clone());
    let canary = Canary::new(config.canary.clone(), &query, metrics, tracer, clock);
    canary
        .map(Some)
        .map_err(|error| Error::Setting(error.to_string()))
}

fn db_system(config: &Config) -> &'static str {
    if config.store.url.expose().starts_with("sqlite") {
        "sqlite"
    } else {
        "postgresql"
    }
}

impl streamgauge_service::Settings for Config {
    const SERVICE: &'static str = SERVICE;
    const ENV_PREFIX: &'static str = ENV_PREFIX;
    type Error = Error;

    fn check(&self) -> Result<(), BoxError> {
        Ok(Self::check(self)?)
    }

    fn telemetry(&self) -> &TelemetryConfig {
        &self.telemetry
    }

    fn brokers(&self) -> &str {
        &self.kafka.brokers
    }

    fn deadline(&self, shutdown: &Shutdown) -> Deadline {
        Self::deadline(self, shutdown)
    }

    async fn bind(&self) -> Result<Listeners, Error> {
        bind(self).await
    }
}
