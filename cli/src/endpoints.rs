//! Where the services of a system are: on the command line, in the environment, in the file that
//! `streamgauge up` writes, or at the default ports of this machine, in that order.

use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use streamgauge_lifecycle::reachable;

use crate::error::CliError;

/// The name of the file in the data folder.
pub const FILE_NAME: &str = "endpoints.json";

/// The addresses of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoints {
    /// Its HTTP address.
    pub http: SocketAddr,
    /// Its gRPC address.
    pub grpc: SocketAddr,
    /// Where its metrics are, if not at its HTTP address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
}

/// What `streamgauge up` writes once everything is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointsFile {
    /// The process that serves them.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The embedded log.
    pub broker: SocketAddr,
    /// The write side.
    pub producer: ServiceEndpoints,
    /// The stream processor.
    pub consumer: ServiceEndpoints,
    /// The read side.
    pub analytics: ServiceEndpoints,
}

impl EndpointsFile {
    /// Writes the file so that a reader sees the whole of it or nothing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CliError> {
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::from)?;
        crate::files::replace(path, &bytes)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When it is not there or not such a file.
    pub fn read(path: &Path) -> Result<Self, CliError> {
        let bytes = fs::read(path).map_err(|source| CliError::file("open", path, source))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let source = io::Error::new(io::ErrorKind::InvalidData, error);
            CliError::file("read the endpoints in", path, source)
        })
    }
}

/// The flags of every command that talks to a running system.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Where the services are")]
pub struct EndpointArgs {
    /// Take the addresses from this file, as `streamgauge up` writes it into its data folder
    #[arg(
        long,
        value_name = "FILE",
        env = "STREAMGAUGE_ENDPOINTS",
        hide_env_values = true
    )]
    pub endpoints: Option<PathBuf>,
    /// The producer's HTTP address [default: localhost:8081]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "STREAMGAUGE_ENDPOINT_PRODUCER_HTTP"
    )]
    pub producer_http: Option<String>,
    /// The producer's gRPC address [default: localhost:50051]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "STREAMGAUGE_ENDPOINT_PRODUCER_GRPC"
    )]
    pub producer_grpc: Option<String>,
    /// The consumer's HTTP address [default: localhost:8082]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "STREAMGAUGE_ENDPOINT_CONSUMER_HTTP"
    )]
    pub consumer_http: Option<String>,
    /// The consumer's gRPC address [default: localhost:50052]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "STREAMGAUGE_ENDPOINT_CONSUMER_GRPC"
    )]
    pub consumer_grpc: Option<String>,
    /// The HTTP address of analytics [default: localhost:8083]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "STREAMGAUGE_ENDPOINT_ANALYTICS_HTTP"
    )]
    pub analytics_http: Option<String>,
    /// The gRPC address of analytics [default: localhost:50053]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "STREAMGAUGE_ENDPOINT_ANALYTICS_GRPC"
    )]
    pub analytics_grpc: Option<String>,
    /// The log's bootstrap addresses [default: localhost:9092]
    #[arg(
        long,
        value_name = "HOST:PORT,...",
        env = "STREAMGAUGE_ENDPOINT_BROKERS"
    )]
    pub brokers: Option<String>,
}

/// The addresses in effect, `host:port` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The producer's HTTP.
    pub producer_http: String,
    /// The producer's gRPC.
    pub producer_grpc: String,
    /// The consumer's HTTP.
    pub consumer_http: String,
    /// The consumer's gRPC.
    pub consumer_grpc: String,
    /// HTTP of analytics.
    pub analytics_http: String,
    /// gRPC of analytics.
    pub analytics_grpc: String,
    /// Bootstrap addresses of the log.
    pub brokers: String,
    /// Metrics of the producer, the consumer and analytics, where they have addresses of their own.
    pub metrics: [Option<String>; 3],
}

impl EndpointArgs {
    /// The addresses in effect.
    ///
    /// # Errors
    /// When the file of endpoints cannot be read.
    pub fn resolve(&self) -> Result<Endpoints, CliError> {
        let file = self
            .endpoints
            .as_deref()
            .map(EndpointsFile::read)
            .transpose()?;
        let pick = |flag: &Option<String>, of: fn(&EndpointsFile) -> SocketAddr, port: u16| {
            let given = flag.as_deref().map(host_port);
            given
                .or_else(|| file.as_ref().map(|file| reachable(of(file)).to_string()))
                .unwrap_or_else(|| format!("127.0.0.1:{port}"))
        };
        Ok(Endpoints {
            producer_http: pick(&self.producer_http, |file| file.producer.http, 8081),
            producer_grpc: pick(&self.producer_grpc, |file| file.producer.grpc, 50051),
            consumer_http: pick(&self.consumer_http, |file| file.consumer.http, 8082),
            consumer_grpc: pick(&self.consumer_grpc, |file| file.consumer.grpc, 50052),
            analytics_http: pick(&self.analytics_http, |file| file.analytics.http, 8083),
            analytics_grpc: pick(&self.analytics_grpc, |file| file.analytics.grpc, 50053),
            brokers: pick(&self.brokers, |file| file.broker, 9092),
            metrics: file.map_or_else(Default::default, |file| {
                [file.producer, file.consumer, file.analytics]
                    .map(|service| service.metrics.map(|at| reachable(at).to_string()))
            }),
        })
    }
}

impl EndpointArgs {
    /// The names by which the import journal knows the system behind the producer: the address in
    /// use and, where both come from the same place, that of the other protocol. So it is the same
    /// system over HTTP and gRPC, and an address that nobody gave never stands for another system.
    pub fn system(&self, endpoints: &Endpoints, over_http: bool) -> BTreeSet<String> {
        let (used, other) = match over_http {
            true => (&endpoints.producer_http, &endpoints.producer_grpc),
            false => (&endpoints.producer_grpc, &endpoints.producer_http),
        };
        let same_origin = self.producer_http.is_some() == self.producer_grpc.is_some();
        let names = [Some(used), same_origin.then_some(other)];
        names
            .into_iter()
            .flatten()
            .map(|address| normal(address))
            .collect()
    }
}

/// One spelling for the many of this machine's own addresses.
fn normal(address: &str) -> String {
    let address = address.to_ascii_lowercase();
    let Some((host, port)) = address.rsplit_once(':') else {
        return address;
    };
    match host {
        "localhost" | "0.0.0.0" | "[::1]" | "[::]" => format!("127.0.0.1:{port}"),
        _ => address,
    }
}

/// People write `http://host:port/` as well.
fn host_port(text: &str) -> String {
    text.trim()
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> EndpointsFile {
        let at = |port| SocketAddr::from(([0, 0, 0, 0], port));
        let service = |port| ServiceEndpoints {
            http: at(port),
            grpc: at(port + 1),
            metrics: (port == 20).then(|| at(22)),
        };
        EndpointsFile {
            pid: 7,
            version: String::from("0.1.0"),
            broker: at(1),
            producer: service(10),
            consumer: service(20),
            analytics: service(30),
        }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_defaults() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE_NAME);
        file().write(&path).expect("written");
        assert_eq!(EndpointsFile::read(&path).expect("read"), file());
        let args = EndpointArgs {
            endpoints: Some(path),
            producer_http: Some(String::from("http://far:81/")),
            ..EndpointArgs::default()
        };
        let found = args.resolve().expect("resolved");
        assert_eq!(found.producer_http, "far:81");
        assert_eq!(found.analytics_grpc, "127.0.0.1:31");
        let consumers = Some(String::from("127.0.0.1:22"));
        assert_eq!(found.metrics, [None, consumers, None]);
        let defaults = EndpointArgs::default().resolve().expect("resolved");
        assert_eq!(defaults.producer_grpc, "127.0.0.1:50051");
        assert_eq!(defaults.consumer_grpc, "127.0.0.1:50052");
        assert_eq!(defaults.brokers, "127.0.0.1:9092");
    }

    #[test]
    fn a_system_is_the_same_over_both_protocols() {
        let system = |http: Option<&str>, grpc: Option<&str>, over_http| {
            let args = EndpointArgs {
                producer_http: http.map(str::to_owned),
                producer_grpc: grpc.map(str::to_owned),
                ..EndpointArgs::default()
            };
            let endpoints = args.resolve().expect("resolved");
            args.system(&endpoints, over_http)
        };
        let usual = system(None, None, true);
        assert_eq!(usual, system(None, None, false));
        let spelled = system(Some("http://LOCALHOST:8081/"), None, true);
        assert_eq!(spelled.len(), 1, "{spelled:?}");
        assert!(!usual.is_disjoint(&spelled), "{usual:?} {spelled:?}");
        let far = system(Some("far:8081"), None, true);
        assert!(
            usual.is_disjoint(&far),
            "the address of gRPC was not given: {far:?}"
        );
        assert!(!far.is_disjoint(&system(Some("far:8081"), Some("far:50051"), false)));
    }

    #[test]
    fn a_file_that_is_none_is_told_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.json");
        fs::write(&path, "{").expect("written");
        let error = EndpointsFile::read(&path).expect_err("not one");
        assert!(error.to_string().contains("x.json"), "{error}");
    }
}
