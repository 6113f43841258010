//! What every gRPC server has beside its own services: the standard health service, reflection, connections that are
//! bounded, and an end that comes in time.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::stream;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::connection::Connection;
use crate::server::accept;
use crate::{Deadline, Health, Shutdown, Stage, Unfinished};

/// The descriptors of the services, which are part of the program, could not be read.
#[derive(Debug, Error)]
#[error("gRPC reflection could not be set up")]
pub struct ReflectionError(#[from] tonic_reflection::server::Error);

/// The standard health service and reflection, in both its versions.
#[derive(Debug)]
pub struct GrpcOps {
    routes: Routes,
    reporting: JoinHandle<()>,
}

impl GrpcOps {
    /// The health service says of every one of `services`, and of the server as a whole, what readiness says. From
    /// the shutdown on it knows none of them, which ends the watches on them: a graceful end waits for every stream,
    /// and a watch never ends by itself.
    pub async fn start(
        health: Health,
        services: &[&'static str],
        descriptors: &[&'static [u8]],
        shutdown: Shutdown,
    ) -> Result<Self, ReflectionError> {
        let reflection = || {
            let known = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            descriptors.iter().fold(known, |known, descriptors| {
                known.register_encoded_file_descriptor_set(descriptors)
            })
        };
        let (reporter, service) = tonic_health::server::health_reporter();
        let routes = Routes::new(service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        let names: Vec<_> = std::iter::once("")
            .chain(services.iter().copied())
            .collect();
        // Before anybody can ask: the health service takes a server of which nothing was said for a serving one.
        report(&reporter, &names, status(health.ready())).await;
        let reporting = follow(reporter, names, health, shutdown);
        Ok(GrpcOps {
            routes,
            reporting: tokio::spawn(reporting),
        })
    }

    /// The services, for a server to answer along with its own.
    pub fn routes(&self) -> Routes {
        self.routes.clone()
    }

    /// Runs the server and sees to its end: once the shutdown is raised there is the doors' share of the deadline left,
    /// after which the calls that are still `under_way` are given up; the error says how many.
    pub async fn serve<E>(
        self,
        server: impl Future<Output = Result<(), E>>,
        deadline: &Deadline,
        under_way: impl Fn() -> usize,
    ) -> Result<Result<(), E>, Unfinished> {
        let served = tokio::select! {
            served = server => Ok(served),
            () = deadline.passed(Stage::Doors) => given_up(under_way()),
        };
        // A server that failed ends before the shutdown, and nobody asks after its health any more.
        if deadline.shutdown().is_triggered() {
            let _ = self.reporting.await;
        } else {
            self.reporting.abort();
        }
        served
    }
}

/// Connections without a call, of clients that have gone without a word, are no loss.
fn given_up<E>(calls: usize) -> Result<Result<(), E>, Unfinished> {
    tracing::warn!(
        calls,
        "giving up gRPC connections that did not finish in time"
    );
    match calls {
        0 => Ok(Ok(())),
        1 => Err(Unfinished::new("1 call")),
        calls => Err(Unfinished::new(format_args!("{calls} calls"))),
    }
}

fn status(ready: bool) -> ServingStatus {
    if ready {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

async fn report(reporter: &HealthReporter, names: &[&'static str], status: ServingStatus) {
    for name in names {
        reporter.set_service_status(name, status).await;
    }
}

async fn follow(
    mut reporter: HealthReporter,
    names: Vec<&'static str>,
    health: Health,
    shutdown: Shutdown,
) {
    let mut ready = health.subscribe();
    while !shutdown.is_triggered() {
        let status = status(*ready.borrow_and_update());
        report(&reporter, &names, status).await;
        tokio::select! {
            changed = ready.changed() => if changed.is_err() { break },
            () = shutdown.triggered() => {}
        }
    }
    // A watch gives this last word and ends.
    report(&reporter, &names, ServingStatus::NotServing).await;
    for name in &names {
        reporter.clear_service_status(name).await;
    }
}

/// What a gRPC server asks of its connections.
#[derive(Clone, Copy, Debug)]
pub struct GrpcConnections {
    max: usize,
    keepalive_interval: Duration,
    keepalive_timeout: Duration,
}

impl GrpcConnections {
    /// At most `max` at once, each asked every `keepalive_interval_ms` whether its client is still there, which has
    /// `keepalive_timeout_ms` to answer.
    pub fn new(max: usize, keepalive_interval_ms: u64, keepalive_timeout_ms: u64) -> Self {
        Self {
            max,
            keepalive_interval: Duration::from_millis(keepalive_interval_ms.max(1)),
            keepalive_timeout: Duration::from_millis(keepalive_timeout_ms.max(1)),
        }
    }

    /// A server that asks.
    pub fn server(&self) -> Server {
        Server::builder()
            .http2_keepalive_interval(Some(self.keepalive_interval))
            .http2_keepalive_timeout(Some(self.keepalive_timeout))
    }

    /// The connections that it takes on; those beyond the bound are closed at once. One from which nothing is heard for
    /// the time between two questions and that for an answer is cut off; the answers keep an idle but living one.
    pub fn incoming(
        &self,
        listener: TcpListener,
        shutdown: Shutdown,
    ) -> impl Stream<Item = std::io::Result<Connection>> + Send + use<> {
        let silence = self.keepalive_interval + self.keepalive_timeout;
        incoming(listener, self.max, silence, shutdown)
    }
}

fn incoming(
    listener: TcpListener,
    max: usize,
    silence: Duration,
    shutdown: Shutdown,
) -> impl Stream<Item = std::io::Result<Connection>> + Send {
    let places = Arc::new(Semaphore::new(max.clamp(1, Semaphore::MAX_PERMITS)));
    stream::unfold((listener, places), move |(listener, places)| {
        let shutdown = shutdown.clone();
        async move {
            loop {
                let (stream, peer) = accept(&listener, &shutdown).await?;
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    tracing::debug!(%peer, max, "too many gRPC connections");
                    continue;
                };
                let connection = Connection::new(stream).read_timeout(silence).place(place);
                return Some((Ok(connection), (listener, places)));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn serve(calls: usize) -> Result<Result<(), std::io::Error>, Unfinished> {
        let shutdown = Shutdown::new();
        let ops = GrpcOps::start(Health::new("test"), &[], &[], shutdown.clone());
        let deadline = Deadline::new(&shutdown, Duration::from_secs(4));
        shutdown.trigger();
        let ops = ops.await.unwrap();
        let served = ops.serve(std::future::pending(), &deadline, || calls).await;
        assert_eq!(shutdown.since().unwrap().elapsed(), Duration::from_secs(3));
        served
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_are_given_up_are_counted() {
        let unfinished = serve(2).await.unwrap_err();
        assert_eq!(unfinished.left(), ["2 calls"]);
        // A client that has gone without a word has nothing under way.
        serve(0).await.unwrap().unwrap();
    }
}
