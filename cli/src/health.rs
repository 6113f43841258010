//! `streamgauge health`: which services are ready, and what the others wait for.

use std::time::Duration;

use clap::Args;
use futures::future::join_all;
use serde::{Deserialize, Serialize};

use crate::{
    endpoints::{EndpointArgs, Endpoints},
    error::{CliError, Exit, describe},
    output::{Output, Paint},
    table::printable,
    times,
};

/// Ask each service whether it is ready
///
/// Prints each condition of readiness and, where one is down, why.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = "\
Examples:
  streamgauge health
  streamgauge health --json | jq '.services[] | select(.ready | not)'

Exit codes: 0 all ready; 1 a service is not ready; 2 wrong use; 3 a service does not answer.")]
pub struct HealthArgs {
    /// Wait this long for each answer
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = times::duration)]
    timeout: Duration,
    #[command(flatten)]
    endpoints: EndpointArgs,
}

/// What a service answers at `/health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Its own name.
    #[serde(default)]
    pub service: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// Whether it takes work.
    pub ready: bool,
    /// Whether it drains.
    #[serde(default)]
    pub shutting_down: bool,
    /// What readiness hangs on.
    #[serde(default)]
    pub conditions: Vec<ConditionReport>,
}

/// One condition of readiness.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionReport {
    /// Its name.
    pub name: String,
    /// Whether it is met.
    pub ready: bool,
    /// Why not.
    #[serde(default)]
    pub detail: String,
}

/// A service as it was found.
#[derive(Debug)]
pub struct Found {
    /// What it is called here.
    pub name: &'static str,
    /// Where it was looked for.
    pub address: String,
    /// Its answer, or why there is none.
    pub report: Result<ServiceReport, String>,
}

#[derive(Serialize)]
struct FoundView<'a> {
    name: &'a str,
    address: &'a str,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<&'a ServiceReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct View<'a> {
    ready: bool,
    services: Vec<FoundView<'a>>,
}

/// Runs the command.
///
/// # Errors
/// When the endpoints cannot be read or the output cannot be written.
pub async fn run(args: HealthArgs, output: &mut Output) -> Result<Exit, CliError> {
    let endpoints = args.endpoints.resolve()?;
    let found = ask_all(&endpoints, args.timeout).await?;
    print(&found, output)?;
    Ok(exit(&found))
}

/// Asks the three services at the same time.
///
/// # Errors
/// When the HTTP client cannot be set up.
pub async fn ask_all(endpoints: &Endpoints, timeout: Duration) -> Result<Vec<Found>, CliError> {
    let client = reqwest::Client::builder()
        .timeout(timeout)
        .no_proxy()
        .build()
        .map_err(|error| CliError::System(format!("no HTTP client: {error}")))?;
    let services = [
        ("producer", &endpoints.producer_http),
        ("consumer", &endpoints.consumer_http),
        ("analytics", &endpoints.analytics_http),
    ];
    Ok(join_all(services.map(|(name, address)| ask(&client, name, address))).await)
}

async fn ask(client: &reqwest::Client, name: &'static str, address: &str) -> Found {
    let answer = async {
        let response = client
            .get(format!("http://{address}/health"))
            .send()
            .await?;
        // A service that is not ready answers 503 with the same report.
        response.json::<ServiceReport>().await
    };
    let report = answer.await.map_err(|error| describe(&error));
    Found {
        name,
        address: address.to_owned(),
        report,
    }
}

fn exit(found: &[Found]) -> Exit {
    if found.iter().any(|service| service.report.is_err()) {
        Exit::Unreachable
    } else if found.iter().all(Found::ready) {
        Exit::Ok
    } else {
        Exit::No
    }
}

impl Found {
    /// Whether it answered that it is ready.
    pub fn ready(&self) -> bool {
        self.report.as_ref().is_ok_and(|report| report.ready)
    }

    /// What is down, in one line; `None` when nothing is.
    pub fn complaint(&self) -> Option<String> {
        match &self.report {
            Ok(report) if report.ready => None,
            Ok(report) => {
                let down = report
                    .conditions
                    .iter()
                    .filter(|condition| !condition.ready);
                let down: Vec<String> = down
                    .map(|condition| format!("{} ({})", condition.name, condition.detail))
                    .collect();
                Some(format!("{} waits for {}", self.name, down.join(", ")))
            }
            Err(reason) => {
                let reason = reason.replace("\n  because", ":");
                Some(format!(
                    "{} does not answer at {}: {reason}",
                    self.name, self.address
                ))
            }
        }
    }
}

fn print(found: &[Found], output: &mut Output) -> Result<(), CliError> {
    if output.json() {
        let services = found
            .iter()
            .map(|service| FoundView {
                name: service.name,
                address: &service.address,
                ready: service.ready(),
                report: service.report.as_ref().ok(),
                error: service.report.as_ref().err().map(String::as_str),
            })
            .collect();
        output.document(&View {
            ready: exit(found) == Exit::Ok,
            services,
        })?;
        return Ok(());
    }
    for service in found {
        let (paint, state) = match &service.report {
            Ok(report) if report.ready => (Paint::Green, "ready"),
            Ok(report) if report.shutting_down => (Paint::Yellow, "draining"),
            Ok(_) => (Paint::Yellow, "not ready"),
            Err(_) => (Paint::Red, "no answer"),
        };
        let state = output.paint(paint, &format!("{state:<9}"));
        output.line(format!("{:<9}  {state}  {}", service.name, service.address))?;
        match &service.report {
            Ok(report) => {
                for condition in &report.conditions {
                    let state = if condition.ready { "up" } else { "down: " };
                    let detail = printable(&condition.detail);
                    output.line(format!("  {:<16} {state}{detail}", condition.name))?;
                }
            }
            Err(reason) => output.line(format!("  {}", reason.replace('\n', "\n  ")))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(name: &str, ready: bool, detail: &str) -> ConditionReport {
        ConditionReport {
            name: name.to_owned(),
            ready,
            detail: detail.to_owned(),
        }
    }

    fn found(name: &'static str, conditions: Vec<ConditionReport>) -> Found {
        let ready = conditions.iter().all(|condition| condition.ready);
        let report = ServiceReport {
            ready,
            conditions,
            ..ServiceReport::default()
        };
        Found {
            name,
            address: String::from("127.0.0.1:1"),
            report: Ok(report),
        }
    }

    #[test]
    fn conditions_are_shown_with_their_reason() {
        let services = [
            found("producer", vec![condition("kafka", true, "")]),
            found(
                "consumer",
                vec![condition("kafka", false, "no broker answers")],
            ),
            Found {
                name: "analytics",
                address: String::from("127.0.0.1:3"),
                report: Err(String::from("refused")),
            },
        ];
        let (mut output, out, _) = Output::captured(false);
        print(&services, &mut output).expect("memory");
        insta::assert_snapshot!(out.text(), @r"
        producer   ready      127.0.0.1:1
          kafka            up
        consumer   not ready  127.0.0.1:1
          kafka            down: no broker answers
        analytics  no answer  127.0.0.1:3
          refused
        ");
        assert_eq!(exit(&services), Exit::Unreachable);
        assert_eq!(exit(&services[..2]), Exit::No);
        assert_eq!(exit(&services[..1]), Exit::Ok);
        assert_eq!(
            services[1].complaint().as_deref(),
            Some("consumer waits for kafka (no broker answers)")
        );
    }
}
