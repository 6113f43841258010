//! The read side: follows `metrics-data`, keeps what it adds up to, and answers queries over HTTP and gRPC.
//!
//! The store and the view in memory are two folds of the same log, by the same rule. The store moves first, by
//! compare-and-swap, and survives; the view follows and is what queries see. So a crash at any moment loses nothing and
//! counts nothing twice, and two instances on one store do each other no harm.
//!
//! At the start [`pipeline`] takes the parts up in order. The way of a batch: [`follow`] reads it, [`apply`] judges it and
//! moves the store, [`view`] takes it in, [`live`] tells who watches, and in the background [`checkpoint`] turns it into
//! rows. The way of a query: [`http`] or [`grpc`] reads it, [`service`] finds the cells, [`query`] adds them up. [`alerts`]
//! passes on what Alertmanager tells. Nothing here writes to Kafka.

pub mod alerts;
pub mod app;
pub mod apply;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod follow;
pub mod grpc;
pub mod http;
pub mod ledger;
pub mod live;
pub mod load;
pub mod metrics;
pub mod pipeline;
pub mod query;
pub mod rebuild;
pub mod retention;
pub mod service;
pub mod source;
pub mod store;
pub mod trace;
pub mod view;

pub use app::{SERVICE, bind, run, run_with_store};
pub use config::{Config, ENV_PREFIX};
pub use error::Error;
pub use streamgauge_service::{Deps, Listeners};
