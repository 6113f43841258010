//! An Alertmanager with the repository's own routes and inhibitions, shorter waits, and every receiver turned to the inbox.

use std::{fs, path::Path, time::Duration};

use streamgauge_tests::process::{Process, free_port};

use crate::{
    failure::{Failure, Outcome},
    inbox::Inbox,
    prometheus::{self, launch},
    shorten::{Shortening, to_webhooks},
};

/// How routes shrink: the second receiver hears after three seconds instead of fifteen minutes, and the mail that gathers
/// an hour's news goes out every twelve seconds.
const ROUTES: Shortening = Shortening {
    factor: 300,
    range_min: Duration::ZERO,
    wait_min: Duration::from_secs(1),
};
/// Longest wait for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A running Alertmanager; dropping it kills it.
pub struct Alertmanager {
    /// Its process.
    pub process: Process,
    address: String,
    http: reqwest::Client,
}

impl Alertmanager {
    /// An address that one can be started at.
    pub fn free_address() -> String {
        format!("127.0.0.1:{}", free_port())
    }

    /// Starts one at `address` in `folder`, with the routes of `repository`.
    pub async fn start(
        repository: &Path,
        folder: &Path,
        inbox: &Inbox,
        address: String,
    ) -> Outcome<Self> {
        let folder = folder.join("alertmanager");
        let source = repository.join("monitoring/alertmanager");
        fs::create_dir_all(folder.join("templates"))
            .map_err(Failure::io("a folder for templates"))?;
        let template = "templates/streamgauge.tmpl";
        prometheus::write(
            &folder.join(template),
            &prometheus::read(&source.join(template))?,
        )?;
        let text = prometheus::read(&source.join("alertmanager.yml"))?;
        let file = folder.join("alertmanager.yml");
        prometheus::write(&file, &to_webhooks(&ROUTES.routes(&text), inbox.url()))?;
        let arguments = [
            format!("--config.file={}", file.display()),
            format!("--storage.path={}", folder.join("data").display()),
            format!("--web.listen-address={address}"),
            String::from("--cluster.listen-address="),
        ];
        let http = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build();
        let http = http.map_err(Failure::http("a client"))?;
        let process = launch("prometheus-alertmanager", &arguments, &folder);
        let mut alertmanager = Self {
            process,
            address,
            http,
        };
        alertmanager.ready().await?;
        Ok(alertmanager)
    }

    /// Its address, host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Waits until it is ready, after it was started again.
    pub async fn ready(&mut self) -> Outcome<()> {
        prometheus::ready(
            &mut self.process,
            &format!("http://{}", self.address),
            &self.http,
        )
        .await
    }
}
