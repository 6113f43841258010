//! Where a service answers over HTTP: its routes, and its metrics beside them or on a listener of their own.

use axum::Router;
use tokio::net::TcpListener;

use crate::ops::Encoder;
use crate::{BoxError, Deadline, Exposition, HttpServerConfig, Tasks, serve_http};

/// What a service needs to answer over HTTP, but for its routes.
#[derive(Debug)]
pub struct HttpDoor {
    pub listener: TcpListener,
    /// Metrics on a listener of their own, where the settings ask for it.
    pub metrics: Option<Exposition>,
    pub config: HttpServerConfig,
    /// When it closes, and how long requests under way may take from then on.
    pub deadline: Deadline,
}

impl HttpDoor {
    /// Serves as tasks of the service. The routes are made from the metrics that are to stand beside them, if they are.
    pub fn open(
        self,
        tasks: &mut Tasks,
        metrics: Encoder,
        routes: impl FnOnce(Option<Encoder>) -> Router,
    ) {
        let Self {
            listener,
            metrics: exposition,
            config,
            deadline,
        } = self;
        let beside = match exposition {
            None => Some(metrics),
            Some(exposition) => {
                let (config, deadline) = (config.clone(), deadline.clone());
                tasks.spawn("metrics", async move {
                    exposition
                        .serve(metrics, config, deadline)
                        .await
                        .map_err(BoxError::from)
                });
                None
            }
        };
        let router = routes(beside);
        tasks.spawn("http", async move {
            serve_http(listener, router, config, deadline)
                .await
                .map_err(BoxError::from)
        });
    }
}
