//! A Prometheus with the repository's own scrape configuration and rules, with shorter durations and the ports of a
//! system under test; and the questions that are asked of it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use streamgauge_tests::process::{Launch, Process, free_port};
use tokio::time::Instant;

use crate::{
    failure::{Failure, Outcome},
    shorten::Shortening,
};

/// How rules shrink: five minutes become ten seconds. A range holds at least five scrapes.
pub const RULES: Shortening = Shortening {
    factor: 30,
    range_min: Duration::from_secs(5),
    wait_min: Duration::from_secs(1),
};
/// How often everything is scraped and every rule evaluated.
const SCRAPE_S: u32 = 1;
/// How often a firing alert is told to Alertmanager again; as often as rules are evaluated here, and four times that is
/// how long Alertmanager believes one that is not told again.
const RESEND: &str = "5s";
/// Longest wait for a tool to be ready.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Longest wait for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a condition is looked at.
pub const POLL: Duration = Duration::from_millis(200);

/// The addresses that `monitoring/prometheus/prometheus.yml` names, and those to put in their place.
pub struct Targets {
    /// Producer, consumer, analytics.
    pub services: [String; 3],
    /// Alertmanager.
    pub alertmanager: String,
}

/// The questions that are asked of a Prometheus; may be cloned and handed around.
#[derive(Clone)]
pub struct Client {
    url: String,
    http: reqwest::Client,
}

/// A running Prometheus; dropping it kills it.
pub struct Prometheus {
    /// Its process.
    pub process: Process,
    /// What is asked of it.
    pub client: Client,
    folder: PathBuf,
}

impl Prometheus {
    /// Starts one in `folder`, with the configuration of `repository`.
    pub async fn start(repository: &Path, folder: &Path, targets: &Targets) -> Outcome<Self> {
        let port = free_port();
        let folder = folder.join("prometheus");
        let source = repository.join("monitoring/prometheus");
        fs::create_dir_all(folder.join("rules")).map_err(Failure::io("a folder for rules"))?;
        write_rules(&source.join("rules"), &folder.join("rules"))?;
        let text = read(&source.join("prometheus.yml"))?;
        write(
            &folder.join("prometheus.yml"),
            &configuration(&text, targets, port),
        )?;
        let arguments = [
            format!("--config.file={}", folder.join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", folder.join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
            String::from("--web.enable-lifecycle"),
            String::from("--enable-feature=exemplar-storage"),
            format!("--rules.alert.resend-delay={RESEND}"),
        ];
        let process = launch("prometheus", &arguments, &folder);
        let client = Client::new(format!("http://127.0.0.1:{port}"))?;
        let mut prometheus = Self {
            process,
            client,
            folder,
        };
        ready(
            &mut prometheus.process,
            &prometheus.client.url,
            &prometheus.client.http,
        )
        .await?;
        Ok(prometheus)
    }

    /// The file of its configuration, or of its rules.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Has it read its configuration anew; says whether it took it.
    pub async fn reload(&self) -> Outcome<bool> {
        let request = self
            .client
            .http
            .post(format!("{}/-/reload", self.client.url))
            .send();
        let answer = request
            .await
            .map_err(Failure::http("Prometheus, to reload"))?;
        Ok(answer.status().is_success())
    }
}

impl Client {
    /// For one that listens at `url`.
    pub fn new(url: String) -> Outcome<Self> {
        let http = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build();
        let http = http.map_err(Failure::http("a client"))?;
        Ok(Self { url, http })
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The samples that an expression has now: labels and value.
    pub async fn query(&self, expr: &str) -> Outcome<Vec<(Value, f64)>> {
        let data = self.ask("query", &[("query", expr)]).await?;
        let samples = data["result"].as_array().into_iter().flatten();
        let samples = samples.filter_map(|one| {
            let value = one["value"][1].as_str()?.parse().ok()?;
            Some((one["metric"].clone(), value))
        });
        Ok(samples.collect())
    }

    /// The first number of an expression; none when it is empty.
    pub async fn number(&self, expr: &str) -> Outcome<Option<f64>> {
        Ok(self.query(expr).await?.first().map(|(_, value)| *value))
    }

    /// The exemplars of an expression within the last seconds: series labels, and those of the exemplar.
    pub async fn exemplars(&self, expr: &str, seconds: u64) -> Outcome<Vec<(Value, Value)>> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        let (start, end) = ((now - seconds).to_string(), (now + 1).to_string());
        let parameters = [("query", expr), ("start", &start), ("end", &end)];
        let data = self.ask("query_exemplars", &parameters).await?;
        let mut found = Vec::new();
        for series in data.as_array().into_iter().flatten() {
            for exemplar in series["exemplars"].as_array().into_iter().flatten() {
                found.push((series["seriesLabels"].clone(), exemplar["labels"].clone()));
            }
        }
        Ok(found)
    }

    /// Waits until an expression has a value.
    pub async fn until(&self, expr: &str, deadline: Duration) -> Outcome<f64> {
        let end = Instant::now() + deadline;
        loop {
            // While it starts, or is struck itself, it does not answer; that is no reason to give up.
            let found = self.number(expr).await;
            if let Ok(Some(value)) = found {
                return Ok(value);
            }
            if Instant::now() > end {
                return Err(Failure::Unmet(format!(
                    "no value within {deadline:?}: {expr} ({found:?})"
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What Prometheus itself says of an alert, for one that was not heard of.
    pub async fn state(&self, alert: &str) -> String {
        let found = self
            .query(&format!("ALERTS{{alertname=\"{alert}\"}}"))
            .await;
        match found {
            Err(failure) => failure.to_string(),
            Ok(found) if found.is_empty() => {
                String::from("Prometheus has it neither pending nor firing")
            }
            Ok(found) => {
                let states: Vec<_> = found.iter().map(|(labels, _)| labels.to_string()).collect();
                states.join(", ")
            }
        }
    }

    async fn ask(&self, what: &str, parameters: &[(&str, &str)]) -> Outcome<Value> {
        let request = self
            .http
            .get(format!("{}/api/v1/{what}", self.url))
            .query(parameters)
            .send();
        let answer = request.await.map_err(Failure::http("Prometheus"))?;
        let answer: Value = answer.json().await.map_err(Failure::http("Prometheus"))?;
        if answer["status"] == "success" {
            return Ok(answer["data"].clone());
        }
        Err(Failure::Unmet(format!(
            "{what} {parameters:?}: {}",
            answer["error"]
        )))
    }
}

/// The repository's scrape configuration with other addresses, and as often as is wanted here.
fn configuration(text: &str, targets: &Targets, own_port: u16) -> String {
    let [producer, consumer, analytics] = &targets.services;
    let own = format!("127.0.0.1:{own_port}");
    let mut text = text.to_owned();
    for (usual, here) in [
        ("127.0.0.1:8081", producer),
        ("127.0.0.1:8082", consumer),
        ("127.0.0.1:8083", analytics),
        ("127.0.0.1:9090", &own),
        ("127.0.0.1:9093", &targets.alertmanager),
    ] {
        text = text.replace(&format!("[\"{usual}\"]"), &format!("[\"{here}\"]"));
    }
    for key in ["scrape_interval", "scrape_timeout", "evaluation_interval"] {
        let lines: Vec<_> = text
            .lines()
            .map(|line| match line.split_once(": ") {
                Some((found, _)) if found.trim() == key => format!("{found}: {SCRAPE_S}s"),
                _ => line.to_owned(),
            })
            .collect();
        text = lines.join("\n") + "\n";
    }
    text
}

fn write_rules(from: &Path, to: &Path) -> Outcome<()> {
    let entries = fs::read_dir(from).map_err(Failure::io(from.display().to_string()))?;
    for entry in entries {
        let entry = entry.map_err(Failure::io(from.display().to_string()))?;
        let text = read(&entry.path())?;
        write(&to.join(entry.file_name()), &RULES.rules(&text))?;
    }
    Ok(())
}

/// Starts a tool that is found on the `PATH`.
pub fn launch(name: &str, arguments: &[String], folder: &Path) -> Process {
    let launch = Launch {
        binary: PathBuf::from(name),
        arguments: arguments.to_vec(),
        environment: Vec::new(),
    };
    Process::launch(name, launch, folder)
}

/// Waits until a tool says at `URL/-/ready` that it is.
pub async fn ready(process: &mut Process, url: &str, http: &reqwest::Client) -> Outcome<()> {
    let end = Instant::now() + READY_DEADLINE;
    loop {
        let answer = http.get(format!("{url}/-/ready")).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        if Instant::now() > end || !process.is_running() {
            let (name, tail) = (process.name().to_owned(), process.tail());
            return Err(Failure::Unmet(format!("{name} is not ready:\n{tail}")));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A file as text.
pub fn read(path: &Path) -> Outcome<String> {
    fs::read_to_string(path).map_err(Failure::io(path.display().to_string()))
}

/// Text into a file.
pub fn write(path: &Path, text: &str) -> Outcome<()> {
    fs::write(path, text).map_err(Failure::io(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repositorys_configuration_is_turned_to_the_system_under_test() {
        let path = format!(
            "{}/../../monitoring/prometheus/prometheus.yml",
            env!("CARGO_MANIFEST_DIR")
        );
        let text = read(Path::new(&path)).expect("the configuration is there");
        let targets = Targets {
            services: ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(str::to_owned),
            alertmanager: String::from("127.0.0.1:4"),
        };
        let here = configuration(&text, &targets, 5);
        for port in 1..=5 {
            let wanted = if port == 4 { 2 } else { 1 };
            assert_eq!(
                here.matches(&format!("[\"127.0.0.1:{port}\"]")).count(),
                wanted,
                "{here}"
            );
        }
        assert!(
            here.contains("scrape_interval: 1s") && here.contains("evaluation_interval: 1s"),
            "{here}"
        );
        let without_comments = here.lines().filter(|line| !line.starts_with('#'));
        assert!(
            without_comments
                .into_iter()
                .all(|line| !line.contains("127.0.0.1:90")),
            "{here}"
        );
    }
}
