//! A system under test with a Prometheus, an Alertmanager and an inbox of its own, so that faults of one group never
//! disturb another's figures: most rules add up over a whole job.

use std::path::{Path, PathBuf};

use streamgauge_tests::system::System;
use tempfile::TempDir;

use crate::{
    alertmanager::Alertmanager,
    failure::{Failure, Outcome},
    inbox::Inbox,
    prometheus::{Client, Prometheus, Targets},
};

/// Everything that one group of faults needs; dropping it ends its processes.
pub struct Bench {
    /// The system.
    pub system: System,
    /// Its Prometheus.
    pub prometheus: Prometheus,
    /// Its Alertmanager.
    pub alertmanager: Alertmanager,
    /// Where its alerts arrive.
    pub inbox: Inbox,
    _folder: TempDir,
}

/// What a fault is watched with; may be cloned while the bench itself is being struck.
#[derive(Clone)]
pub struct Watch {
    /// What Prometheus says.
    pub prometheus: Client,
    /// What arrived.
    pub inbox: Inbox,
}

impl Bench {
    /// Puts the monitoring beside a system.
    pub async fn beside(system: System) -> Outcome<Self> {
        Self::with_alertmanager_at(system, Alertmanager::free_address()).await
    }

    /// As [`Bench::beside`], with an Alertmanager at an address that the system knows already.
    pub async fn with_alertmanager_at(system: System, address: String) -> Outcome<Self> {
        let folder = tempfile::tempdir().map_err(Failure::io("a folder"))?;
        let repository = repository();
        let inbox = Inbox::start().await?;
        let alertmanager = Alertmanager::start(&repository, folder.path(), &inbox, address).await?;
        let services = [system.producer(), system.consumer(), system.analytics()];
        let targets = Targets {
            services: services.map(|url| url.trim_start_matches("http://").to_owned()),
            alertmanager: alertmanager.address().to_owned(),
        };
        let prometheus = Prometheus::start(&repository, folder.path(), &targets).await?;
        Ok(Self {
            system,
            prometheus,
            alertmanager,
            inbox,
            _folder: folder,
        })
    }

    /// What to watch a fault with.
    pub fn watch(&self) -> Watch {
        Watch {
            prometheus: self.prometheus.client.clone(),
            inbox: self.inbox.clone(),
        }
    }
}

/// The checkout that this was built from, whose monitoring is what is proved.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}
