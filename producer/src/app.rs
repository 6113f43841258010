//! Puts the producer together, serves, and drains.
//!
//! The doors open at once, so that probes are answered from the start; submissions are refused until Kafka has been
//! found. On a shutdown readiness goes down first, then the doors close, then what is under way is finished.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use streamgauge_kafka::admin::{self, TopicSpec};
use streamgauge_kafka::{KafkaConfig, KafkaError, Publisher};
use streamgauge_lifecycle::{
    BoxError, Condition, EXIT_FAILED, EXIT_WRONG_SETTINGS, Health, Outcome, SharedClock, Shutdown,
    SystemClock, Tasks, fail, serve_http, signal, write_line,
};
use streamgauge_resilience::{Backoff, Breaker, BreakerState};
use streamgauge_settings::ConfigArgs;
use streamgauge_telemetry::{Metrics, Tracer};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::admin::AdminGate;
use crate::admission::Admission;
use crate::auth::Auth;
use crate::client_address::ClientAddress;
use crate::config::{Config, TopicsConfig};
use crate::error::Error;
use crate::intake::Intake;
use crate::metrics::{PUBLISH_BREAKER, ProducerMetrics};
use crate::publish::{KafkaSink, Publishing, PublishingConfig, Sink};
use crate::{grpc, http};

/// The service's name in logs, traces and metrics.
pub const SERVICE: &str = "producer";

/// What the names of environment variables begin with.
pub const ENV_PREFIX: &str = "STREAMGAUGE_PRODUCER";

/// The longest that one look for Kafka takes; a shutdown waits for it.
const LOOK_MS_MAX: u64 = 3_000;

/// Time for spans that are queued when the service ends.
const TELEMETRY_DEADLINE: Duration = Duration::from_secs(2);

/// Where the service listens.
#[derive(Debug)]
pub struct Listeners {
    pub http: TcpListener,
    pub grpc: TcpListener,
}

/// What the service is handed from outside.
#[derive(Clone, Debug)]
pub struct Deps {
    pub metrics: Metrics,
    pub tracer: Tracer,
    pub clock: SharedClock,
    pub shutdown: Shutdown,
}

/// Listens where the settings say.
pub async fn bind(config: &Config) -> Result<Listeners, Error> {
    Ok(Listeners {
        http: streamgauge_lifecycle::bind("http.listen", config.http.listen).await?,
        grpc: streamgauge_lifecycle::bind("grpc.listen", config.grpc.listen).await?,
    })
}

/// Serves until the shutdown and drains. Kafka need not be there.
pub async fn run(config: Config, listeners: Listeners, deps: Deps) -> Result<(), Error> {
    config.check()?;
    let metrics = ProducerMetrics::register(&deps.metrics, &config.metrics);
    let stats = metrics.stats_sink(config.publisher.queue_messages_max);
    let publisher = Publisher::new(&config.kafka, &config.publisher, Some(stats))?;
    let queue = publisher.clone();
    let sink = KafkaSink::new(publisher.clone(), config.topics.events.clone());
    let parts = Parts::new(&config, &deps, metrics, Box::new(sink));
    parts
        .intake
        .admission
        .watch_queue(Box::new(move || queue.queue_len()));
    let finding = find_log(config.topics.clone(), config.kafka.clone(), parts.clone());
    let end = serve(&config, listeners, &deps, &parts, finding).await?;
    let left = publisher
        .drain(end.saturating_duration_since(Instant::now()))
        .await;
    if left > 0 {
        return Err(Error::Undrained { left });
    }
    Ok(())
}

/// What the tasks of the service share.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) intake: Arc<Intake>,
    pub(crate) breaker: Breaker,
    pub(crate) health: Health,
    pub(crate) log: Condition,
    /// Closes the doors; raised a little after the shutdown.
    pub(crate) stop: Shutdown,
}

impl Parts {
    pub(crate) fn new(
        config: &Config,
        deps: &Deps,
        metrics: ProducerMetrics,
        sink: Box<dyn Sink>,
    ) -> Self {
        deps.tracer.register(&deps.metrics);
        let health = Health::new(SERVICE);
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
            publishing: Publishing::new(sink, breaker.clone(), publishing, metrics.clone()),
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
            health,
            stop: Shutdown::new(),
        }
    }

    /// The topics are there.
    pub(crate) fn open(&self) {
        self.intake.admission.open();
        self.log.up();
    }
}

/// Runs both doors and `beside` until the shutdown; returns the moment by which draining has to end.
pub(crate) async fn serve(
    config: &Config,
    listeners: Listeners,
    deps: &Deps,
    parts: &Parts,
    beside: impl Future<Output = ()> + Send + 'static,
) -> Result<Instant, Error> {
    let limits = Arc::new(config.limits.clone());
    let deadline = Duration::from_millis(config.shutdown_deadline_ms);
    // The doors end first, so that cutting off a client is not taken for a part that hangs, and something is left for
    // the records that such a client has left behind.
    let door_deadline = deadline * 9 / 10;
    let shared = http::Shared {
        intake: parts.intake.clone(),
        limits: limits.clone(),
        admin_body_bytes_max: config.admin.body_bytes_max,
    };
    let router = http::router(shared, parts.health.clone(), &deps.metrics);
    let grpc = grpc::Shared {
        intake: parts.intake.clone(),
        limits,
        config: config.grpc.clone(),
        shutdown: parts.stop.clone(),
    };
    let (server, stop, health) = (
        config.http.server.clone(),
        parts.stop.clone(),
        parts.health.clone(),
    );
    let mut tasks = Tasks::new(stop.clone());
    tasks.spawn("http", async move {
        serve_http(listeners.http, router, server, stop, door_deadline)
            .await
            .map_err(BoxError::from)
    });
    tasks.spawn("grpc", async move {
        grpc::serve(listeners.grpc, grpc, health, door_deadline)
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
    let stopping = async {
        parts.stop.triggered().await;
        Instant::now() + deadline
    };
    let (outcome, end) = tokio::join!(tasks.wait(deadline), stopping);
    parts.health.shutting_down();
    match outcome {
        Outcome::Clean => Ok(end),
        Outcome::Failed { task, error } => Err(Error::Task {
            task,
            source: error,
        }),
        Outcome::DeadlineExceeded { left } => Err(Error::Deadline { left }),
    }
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

/// Looks for the log until it is there, then watches over it.
async fn find_log(topics: TopicsConfig, kafka: KafkaConfig, parts: Parts) {
    let kafka = KafkaConfig {
        request_timeout_ms: kafka.request_timeout_ms.min(LOOK_MS_MAX),
        ..kafka
    };
    tokio::select! {
        () = parts.stop.triggered() => {}
        () = async {
            ensure_topic(&topics, &kafka, &parts).await;
            watch_log(&topics, &kafka, &parts).await;
        } => {}
    }
}

/// Creates the topic if need be, however long Kafka is away.
async fn ensure_topic(topics: &TopicsConfig, kafka: &KafkaConfig, parts: &Parts) {
    let spec = TopicSpec {
        name: topics.events.clone(),
        partitions: topics.partitions,
        replication: topics.replication,
        config: Vec::new(),
    };
    let mut connect = topics.connect.clone();
    connect.attempts = 0;
    let seed = uuid::Uuid::new_v4().as_u64_pair().0;
    for wait in Backoff::new(&connect, seed) {
        match look(kafka, &spec).await {
            Ok(()) => {
                tracing::info!(
                    topic = topics.events,
                    partitions = topics.partitions,
                    "the log is there"
                );
                parts.open();
                return;
            }
            Err(error) => {
                // The longest wait bounds how often this is said; half of it at least keeps an eager draw in check.
                let wait = wait.max(Duration::from_millis(connect.initial_ms / 2));
                tracing::warn!(%error, retry_in_ms = wait.as_millis() as u64, "waiting for the log");
                parts.log.down(error.to_string());
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// While the breaker is not closed: says in readiness whether Kafka answers.
///
/// Answering is all that readiness asks of it. A Kafka that answers and yet takes no record, its disk full, say, leaves
/// the producer ready with its breaker open: it refuses submissions with 503 and a time to come back, alerts tell by the
/// breaker's metrics, and the submissions that go on arriving are what finds out that Kafka takes records again. Were
/// readiness to go down, no traffic would come, and the breaker would never close.
async fn watch_log(topics: &TopicsConfig, kafka: &KafkaConfig, parts: &Parts) {
    let interval = Duration::from_millis(topics.check_interval_ms.max(100));
    loop {
        tokio::time::sleep(interval).await;
        if parts.breaker.state() == BreakerState::Closed {
            parts.log.up();
            continue;
        }
        match admin::partition_count(kafka, &topics.events).await {
            // Up, although the breaker may still be open: only traffic can close it.
            Ok(Some(_)) => parts.log.up(),
            Ok(None) => parts
                .log
                .down(format!("topic {} does not exist", topics.events)),
            Err(error) => parts.log.down(error.to_string()),
        }
    }
}

/// One look, on a thread that may block: the client waits for metadata without yielding.
async fn look(kafka: &KafkaConfig, spec: &TopicSpec) -> Result<(), KafkaError> {
    let (kafka, spec) = (kafka.clone(), spec.clone());
    let runtime = tokio::runtime::Handle::current();
    let look = move || runtime.block_on(admin::ensure_topics(&kafka, std::slice::from_ref(&spec)));
    tokio::task::spawn_blocking(look)
        .await
        .unwrap_or(Err(KafkaError::Closed))
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
        Err((error, code)) => fail("streamgauge-producer", &*error, code),
    }
}

/// The settings; none when they were only to be printed.
fn settings(args: &ConfigArgs) -> Result<Option<Config>, BoxError> {
    let config: Config = args.loader(ENV_PREFIX).load()?;
    config.check()?;
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
        "producer started"
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
