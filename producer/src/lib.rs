//! The write side of streamgauge: takes events in over HTTP and gRPC, checks them one by one, and writes them to
//! Kafka.
//!
//! What it promises: an event is called accepted only once Kafka has acknowledged it on all replicas, or, with a spool,
//! once it is synced to this machine's disk, from where Kafka gets it; every event read from a request gets exactly one
//! verdict, and the ledger of its metrics balances; a refused event never changes the fate of its neighbours. Beside the
//! spool it keeps no state beyond what is in flight, and it never decides what is late or a
//! duplicate: the consumer does, in the order of the log.
//!
//! The way of an event: `http` or `grpc` read the request, [`event`] decodes, validates and encodes, `admission` lets
//! it in, `publish` writes it, or `spool` while Kafka is away; `intake` holds the steps together.

mod admin;
mod admission;
mod app;
mod auth;
mod client_address;
mod config;
mod error;
pub mod event;
mod find;
mod grpc;
mod http;
mod intake;
mod ledger;
mod metrics;
mod publish;
mod sampling;
mod spool;

pub use admission::rates::RateLimits;
pub use admission::settings::{
    AddressHeader, AdminConfig, AdmissionConfig, ProxyConfig, RateLimitConfig,
};
pub use app::{ENV_PREFIX, SERVICE, bind, run};
pub use config::{
    AuthConfig, Config, GrpcConfig, HttpConfig, Limits, MetricsConfig, TokenConfig, TopicsConfig,
};
pub use error::{ConfigError, Error};
pub use spool::SpoolConfig;
pub use streamgauge_service::{Deps, Listeners};
