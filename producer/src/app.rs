//! Puts the producer together, serves, and drains.
//!
//! The doors open at once, so that probes are answered from the start; submissions are refused until Kafka has been
//! found. On a shutdown readiness goes down first, then the doors close, then what is under way is finished.

use std::sync::Arc;
use std::time::Duration;

use streamgauge_kafka::{Publisher, PublisherConfig};
use streamgauge_lifecycle::{
    BoxError, Condition, Deadline, Health, HttpDoor, Outcome, Shutdown, Stage, Tasks,
};
use streamgauge_resilience::Breaker;
use streamgauge_service::{Deps, Listeners};
use streamgauge_spool::Drainer;
use streamgauge_telemetry::TelemetryConfig;

use crate::admin::AdminGate;
use crate::admission::Admission;
use crate::auth::Auth;
use crate::client_address::ClientAddress;
use crate::config::Config;
use crate::error::Error;
use crate::find::{SpoolHealth, find_log};
use crate::intake::Intake;
use crate::metrics::{PUBLISH_BREAKER, ProducerMetrics};
use crate::publish::{KafkaSink, Publishing, PublishingConfig, Sink};
use crate::spool::{self, Drain, SpoolMetrics, Spooling};
use crate::{grpc, http};

/// The service's name in logs, traces and metrics.
pub const SERVICE: &str = "producer";

/// What the names of environment variables begin with.
pub const ENV_PREFIX: &str = "STREAMGAUGE_PRODUCER";

/// Listens where the settings say.
pub async fn bind(config: &Config) -> Result<Listeners, Error> {
    let (http, grpc) = (config.http.listen, config.grpc.listen);
    Listeners::bind(http, grpc, &config.http.metrics).await
}

/// Serves until the shutdown and drains. Kafka need not be there.
pub async fn run(config: Config, listeners: Listeners, deps: Deps) -> Result<(), Error> {
    config.check()?;
    let metrics = ProducerMetrics::register(&deps.metrics, &config.metrics);
    let stats = metrics.stats_sink(config.publisher.queue_messages_max);
    let publisher = Publisher::new(&config.kafka, &config.publisher, Some(stats))?;
    let queue = publisher.clone();
    let sink = KafkaSink::new(publisher.clone(), config.topics.events.clone());
    let spool_metrics = SpoolMetrics::register(&deps.metrics, deps.clock.clone());
    let (spool, drainer) = match config.spool.enabled {
        true => Some(spool::open(&config.spool, spool_metrics.clone()).await?).unzip(),
        false => (None, None),
    };
    let parts = Parts::new(&config, &deps, metrics, Box::new(sink), spool);
    parts
        .intake
        .admission
        .watch_queue(Box::new(move || queue.queue_len()));
    let drain = match drainer {
        Some(drainer) => Some(drain(&config, drainer, &parts, spool_metrics)?),
        None => None,
    };
    let finding = find_log(
        config.topics.clone(),
        config.kafka.clone(),
        parts.clone(),
        drain,
    );
    let deadline = config.deadline(&parts.stop);
    let outcome = serve(&config, listeners, &deps, &parts, &deadline, finding).await;
    parts.health.shutting_down();
    let on_their_way = publisher.drain(deadline.left(Stage::Flush)).await;
    // Their clients were not told that they were accepted.
    let left = (on_their_way > 0).then(|| format!("{on_their_way} events on their way to Kafka"));
    match outcome.with_left(left) {
        Outcome::Clean => Ok(()),
        Outcome::Failed { task, error } => Err(Error::Task {
            task,
            source: error,
        }),
        Outcome::Unfinished(unfinished) => Err(unfinished.into()),
    }
}

/// The one who brings the spool to Kafka, with a client of its own that gives no record up by itself.
fn drain(
    config: &Config,
    drainer: Drainer,
    parts: &Parts,
    metrics: SpoolMetrics,
) -> Result<Drain, Error> {
    let mut kafka = config.kafka.clone();
    kafka.client_id.push_str("-spool");
    // A request that is lost on the way is sent again as soon as on the direct way.
    let request_ms = config.publisher.delivery_timeout_ms.max(1_000);
    kafka
        .properties
        .entry(String::from("request.timeout.ms"))
        .or_insert_with(|| request_ms.to_string());
    let publisher = PublisherConfig {
        delivery_timeout_ms: i32::MAX as u32,
        ..config.publisher.clone()
    };
    let publisher = Publisher::new(&kafka, &publisher, None)?;
    let (topic, watched) = (config.topics.events.clone(), publisher.clone());
    let spans = Box::new(move || watched.acknowledged(&topic));
    parts.intake.publishing.watch_drain(spans);
    Ok(Drain {
        drainer,
        sink: Box::new(KafkaSink::new(publisher, config.topics.events.clone())),
        breaker: parts.breaker.clone(),
        config: config.spool.clone(),
        retry: config.retry.clone(),
        stall: Duration::from_millis(config.limits.stall_ms),
        grace: Duration::from_millis(config.shutdown_deadline_ms - config.shutdown_delay_ms) / 2,
        metrics,
        stop: parts.stop.clone(),
    })
}

/// What the tasks of the service share.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) intake: Arc<Intake>,
    pub(crate) breaker: Breaker,
    pub(crate) health: Health,
    pub(crate) log: Condition,
    pub(crate) spool: Option<SpoolHealth>,
    /// Closes the doors; raised a little after the shutdown, from which on its time counts.
    pub(crate) stop: Shutdown,
}

impl Parts {
    pub(crate) fn new(
        config: &Config,
        deps: &Deps,
        metrics: ProducerMetrics,
        sink: Box<dyn Sink>,
        spool: Option<Spooling>,
    ) -> Self {
        deps.tracer.register(&deps.metrics);
        let health = Health::new(SERVICE);
        deps.metrics
            .with(|registry| registry.register_collector(Box::new(health.clone())));
        let breaker = Breaker::new(PUBLISH_BREAKER, &config.breaker, Arc::new(metrics.clone()));
        let clock = deps.clock.clone();
        let admission = Admission::new(config, clock, &deps.metrics, metrics.clone());
        let publishing = PublishingConfig {
            retry: config.retry.clone(),
            stall: Duration::from_millis(config.limits.stall_ms),
        };
        let intake = Intake {
            auth: Auth::new(&config.auth),
            client_address: ClientAddress::new(&config.proxies),
            admin: AdminGate::new(&config.admin),
            admission: Arc::new(admission),
            publishing: Publishing::new(
                sink,
                spool.clone(),
                breaker.clone(),
                publishing,
                metrics.clone(),
            ),
            metrics,
            tracer: deps.tracer.clone(),
            clock: deps.clock.clone(),
            limits: config.limits.events(),
            topic: config.topics.events.clone(),
            since_us: deps.clock.now_us(),
        };
        Self {
            intake: Arc::new(intake),
            breaker,
            log: health.condition("log"),
            spool: spool.map(|spooling| {
                SpoolHealth::new(spooling, health.condition("spool"), deps.clock.clone())
            }),
            health,
            stop: deps.shutdown.later(),
        }
    }
}

/// Runs both doors and `beside` until the shutdown and lets them drain.
async fn serve(
    config: &Config,
    listeners: Listeners,
    deps: &Deps,
    parts: &Parts,
    deadline: &Deadline,
    beside: impl Future<Output = ()> + Send + 'static,
) -> Outcome {
    let limits = Arc::new(config.limits.clone());
    let shared = http::Shared {
        intake: parts.intake.clone(),
        limits: limits.clone(),
        admin_body_bytes_max: config.admin.body_bytes_max,
    };
    let grpc = grpc::Shared {
        intake: parts.intake.clone(),
        limits,
        config: config.grpc.clone(),
        shutdown: parts.stop.clone(),
    };
    let health = parts.health.clone();
    let mut tasks = Tasks::new(parts.stop.clone());
    let door = HttpDoor {
        listener: listeners.http,
        metrics: listeners.metrics,
        config: config.http.server.clone(),
        deadline: deadline.clone(),
    };
    door.open(&mut tasks, deps.metrics.encoder(), |exposed| {
        http::router(shared, parts.health.clone(), exposed)
    });
    let closing = deadline.clone();
    tasks.spawn("grpc", async move {
        grpc::serve(listeners.grpc, grpc, health, closing)
            .await
            .map_err(BoxError::from)
    });
    tasks.spawn("log", async move {
        beside.await;
        Ok(())
    });
    let (admission, stop) = (parts.intake.admission.clone(), parts.stop.clone());
    tasks.spawn("rate limits", async move {
        admission.evict_regularly(stop).await;
        Ok(())
    });
    let delay = Duration::from_millis(config.shutdown_delay_ms);
    tasks.spawn(
        "shutdown",
        close_doors(deps.shutdown.clone(), parts.clone(), delay),
    );
    tasks.wait(deadline).await
}

/// On a shutdown: readiness down, a pause for load balancers to notice, then the doors.
async fn close_doors(shutdown: Shutdown, parts: Parts, delay: Duration) -> Result<(), BoxError> {
    tokio::select! {
        () = shutdown.triggered() => {}
        // Another task failed, and the doors are closing already.
        () = parts.stop.triggered() => return Ok(()),
    }
    parts.health.shutting_down();
    tokio::time::sleep(delay).await;
    parts.stop.trigger();
    Ok(())
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
