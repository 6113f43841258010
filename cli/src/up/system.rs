//! The parts of a system in one process: started together, watched, and stopped in the order in
//! which events flow, so that each part finds the next one still there.

use std::{net::SocketAddr, time::Duration};

use streamgauge_broker::{Broker, BrokerError, Left};
use streamgauge_lifecycle::{Exposition, Shutdown, SystemClock, reachable};
use streamgauge_telemetry::{Metrics, Telemetry};
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinHandle},
    time::{Instant, timeout_at},
};

use super::config::{DrainBudget, UpConfig};
use crate::{
    endpoints::{Endpoints, EndpointsFile, ServiceEndpoints},
    error::{Cause, CliError},
    health,
    log_metrics::LogMetrics,
};

/// How often readiness is asked for.
const READY_POLL: Duration = Duration::from_millis(50);

/// How often it is looked whether all parts still run.
const WATCH_POLL: Duration = Duration::from_millis(200);

/// Time for one answer about readiness.
const READY_ANSWER: Duration = Duration::from_secs(2);

/// A system that runs.
pub struct System {
    /// In the order in which they are stopped.
    parts: Vec<Part>,
    broker: Broker,
    telemetry: Telemetry,
    /// Where everything listens.
    pub endpoints: EndpointsFile,
}

struct Part {
    name: &'static str,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), Cause>>,
}

/// What did not stop in order.
#[derive(Debug, Default)]
pub struct Drained {
    /// Parts that ended with an error, and it.
    pub failed: Vec<(&'static str, Cause)>,
    /// Parts that had not ended by the deadline.
    pub late: Vec<&'static str>,
    /// What the log left behind.
    pub log: Left,
}

impl Drained {
    /// Whether nothing was left behind.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.late.is_empty() && self.log == Left::default()
    }
}

/// Everything's address, taken before anything starts: a port that is not free is told at once.
struct Listeners {
    broker: TcpListener,
    producer: streamgauge_producer::Listeners,
    consumer: streamgauge_consumer::Listeners,
    analytics: streamgauge_analytics::Listeners,
}

/// Starts a part as a task of its own, with its own registry and signal.
macro_rules! part {
    ($service:ident, $config:expr, $listeners:expr, $telemetry:expr) => {
        part!(
            $service,
            $config,
            $listeners,
            $telemetry,
            Metrics::new($service::SERVICE)
        )
    };
    ($service:ident, $config:expr, $listeners:expr, $telemetry:expr, $metrics:expr) => {{
        let shutdown = Shutdown::new();
        let deps = $service::Deps {
            metrics: $metrics,
            tracer: $telemetry.tracer($service::SERVICE),
            clock: SystemClock::shared(),
            shutdown: shutdown.clone(),
        };
        let (config, listeners) = ($config.clone(), $listeners);
        let task = tokio::spawn(async move {
            Box::pin($service::run(config, listeners, deps))
                .await
                .map_err(Cause::from)
        });
        Part {
            name: $service::SERVICE,
            shutdown,
            task,
        }
    }};
}

impl System {
    /// Starts everything. It is not ready yet.
    ///
    /// # Errors
    /// When an address is not free, or the log cannot be opened.
    pub async fn start(mut config: UpConfig) -> Result<Self, CliError> {
        let telemetry = streamgauge_telemetry::init(
            "streamgauge",
            &std::process::id().to_string(),
            &config.telemetry,
        )
        .map_err(|error| CliError::Settings(Box::new(error)))?;
        let listeners = bind(&config).await?;
        let endpoints = listeners
            .endpoints()
            .map_err(|error| CliError::Settings(error.into()))?;
        let broker = Broker::start_on(listeners.broker, config.broker.clone())
            .await
            .map_err(log_error)?;
        make_topics(&broker, &config).await?;
        config.use_log(&broker.bootstrap());
        config.use_producer(endpoints.producer.http, endpoints.producer.grpc);
        let metrics = Metrics::new(streamgauge_producer::SERVICE);
        let of_log = Box::new(LogMetrics::new(broker.stats_reader()));
        metrics.with(|registry| registry.register_collector(of_log));
        let parts = vec![
            part!(
                streamgauge_producer,
                config.producer,
                listeners.producer,
                telemetry,
                metrics
            ),
            part!(
                streamgauge_consumer,
                config.consumer,
                listeners.consumer,
                telemetry
            ),
            part!(
                streamgauge_analytics,
                config.analytics,
                listeners.analytics,
                telemetry
            ),
        ];
        Ok(Self {
            parts,
            broker,
            telemetry,
            endpoints,
        })
    }

    /// Waits until every part says that it is ready.
    ///
    /// # Errors
    /// When a part ends, or when the time is over; the error says what is waited for.
    pub async fn ready(&mut self, within: Duration) -> Result<(), CliError> {
        let deadline = Instant::now() + within;
        let addresses = self.addresses();
        loop {
            let found = health::ask_all(&addresses, READY_ANSWER).await?;
            let complaints: Vec<String> =
                found.iter().filter_map(health::Found::complaint).collect();
            if complaints.is_empty() {
                return Ok(());
            }
            if let Some(error) = self.ended_early().await {
                return Err(error);
            }
            if Instant::now() >= deadline {
                return Err(CliError::System(format!(
                    "not ready after {} s: {}",
                    within.as_secs_f64(),
                    complaints.join("; ")
                )));
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    fn addresses(&self) -> Endpoints {
        let of = |address: SocketAddr| reachable(address).to_string();
        let EndpointsFile {
            broker,
            producer,
            consumer,
            analytics,
            ..
        } = &self.endpoints;
        Endpoints {
            producer_http: of(producer.http),
            producer_grpc: of(producer.grpc),
            consumer_http: of(consumer.http),
            consumer_grpc: of(consumer.grpc),
            analytics_http: of(analytics.http),
            analytics_grpc: of(analytics.grpc),
            brokers: of(*broker),
            metrics: [producer, consumer, analytics].map(|service| service.metrics.map(of)),
        }
    }

    /// The error of a part that has ended although nobody asked it to.
    async fn ended_early(&mut self) -> Option<CliError> {
        let index = self.parts.iter().position(|part| part.task.is_finished())?;
        let part = self.parts.remove(index);
        let source = ended(part.task.await)
            .err()
            .unwrap_or_else(|| Cause::from("it ended although nobody asked it to"));
        Some(CliError::Part {
            part: part.name,
            source,
        })
    }

    /// Completes, with its error, when a part ends although nobody asked it to.
    pub async fn watch(&mut self) -> CliError {
        loop {
            if let Some(error) = self.ended_early().await {
                return error;
            }
            tokio::time::sleep(WATCH_POLL).await;
        }
    }

    /// Stops everything, in order; what is left at its time's end is cut off as by a crash, which
    /// loses nothing that was acknowledged. Each part has an equal share of what is left, and the
    /// log a reserve that no part can use up.
    pub async fn drain(self, budget: DrainBudget) -> Drained {
        let began = Instant::now();
        let until = |end: Duration| (began + end).saturating_duration_since(Instant::now());
        let mut drained = Drained::default();
        let mut waiting = self.parts.len() as u32;
        for mut part in self.parts {
            part.shutdown.trigger();
            let share = Instant::now() + until(budget.parts) / waiting.max(1);
            waiting -= 1;
            match timeout_at(share, &mut part.task).await {
                Ok(result) => {
                    if let Err(error) = ended(result) {
                        drained.failed.push((part.name, error));
                    }
                }
                Err(_) => {
                    part.task.abort();
                    drained.late.push(part.name);
                }
            }
        }
        drained.log = self.broker.shutdown(until(budget.log)).await;
        self.telemetry.shutdown(until(budget.all)).await;
        drained
    }
}

async fn bind(config: &UpConfig) -> Result<Listeners, CliError> {
    let settings = |error: Cause| CliError::Settings(error);
    Ok(Listeners {
        broker: streamgauge_lifecycle::bind("broker.listen", config.broker.listen)
            .await
            .map_err(|error| settings(error.into()))?,
        producer: streamgauge_producer::bind(&config.producer)
            .await
            .map_err(|error| settings(error.into()))?,
        consumer: streamgauge_consumer::bind(&config.consumer)
            .await
            .map_err(|error| settings(error.into()))?,
        analytics: streamgauge_analytics::bind(&config.analytics)
            .await
            .map_err(|error| settings(error.into()))?,
    })
}

impl Listeners {
    fn endpoints(&self) -> std::io::Result<EndpointsFile> {
        let service = |http: &TcpListener, grpc: &TcpListener, metrics: &Option<Exposition>| {
            Ok::<_, std::io::Error>(ServiceEndpoints {
                http: http.local_addr()?,
                grpc: grpc.local_addr()?,
                metrics: metrics.as_ref().map(Exposition::local_addr).transpose()?,
            })
        };
        let (producer, consumer, analytics) = (&self.producer, &self.consumer, &self.analytics);
        Ok(EndpointsFile {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            broker: self.broker.local_addr()?,
            producer: service(&producer.http, &producer.grpc, &producer.metrics)?,
            consumer: service(&consumer.http, &consumer.grpc, &consumer.metrics)?,
            analytics: service(&analytics.http, &analytics.grpc, &analytics.metrics)?,
        })
    }
}

/// The parts find their topics there, whichever of them looks first.
async fn make_topics(broker: &Broker, config: &UpConfig) -> Result<(), CliError> {
    let topics = &config.consumer.topics;
    for topic in [&topics.events, &topics.metrics, &topics.dead_letters] {
        broker
            .create_topic(topic, config.partitions)
            .await
            .map_err(log_error)?;
    }
    Ok(())
}

fn log_error(error: BrokerError) -> CliError {
    match error {
        BrokerError::TopicExists {
            name,
            existing,
            requested,
        } => CliError::usage(format!(
            "topic {name} in the data folder has {existing} partitions, and partitions is set to {requested}: set it \
             to {existing}, or choose another --data-dir"
        )),
        error => CliError::Part {
            part: "the embedded log",
            source: error.into(),
        },
    }
}

/// A panic of a part is its error.
fn ended(result: Result<Result<(), Cause>, JoinError>) -> Result<(), Cause> {
    result.unwrap_or_else(|error| Err(error.into()))
}
