//! What can end the service, and how a refusal of a request is written down.

use streamgauge_kafka::KafkaError;
use streamgauge_lifecycle::{BindError, BoxError, ReflectionError};
use streamgauge_proto::Problem;
use streamgauge_spool::SpoolError;
use streamgauge_telemetry::TraceContext;

/// Two settings that do not go together, or one out of its range.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {rule}")]
pub struct ConfigError {
    pub setting: &'static str,
    pub rule: String,
}

/// Why the producer could not go on. Kafka being away is none of these: that is waited for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A Kafka setting that the client refuses.
    #[error("the Kafka client could not be made")]
    Kafka(#[from] KafkaError),
    /// The spool's folder cannot be used.
    #[error("the spool could not be opened")]
    Spool(#[from] SpoolError),
    #[error("the gRPC server failed")]
    Grpc(#[source] tonic::transport::Error),
    /// The descriptors of the services, which are part of the program.
    #[error(transparent)]
    Reflection(#[from] ReflectionError),
    /// A part of the service ended for a reason of its own.
    #[error("{task} failed: {source}")]
    Task {
        task: &'static str,
        #[source]
        source: BoxError,
    },
    /// Not everything under way could be finished in time.
    #[error("not finished at the deadline of the shutdown: {}", left.join(", "))]
    Deadline { left: Vec<&'static str> },
    /// Their clients were not told that they were accepted.
    #[error("{left} events were still on their way to Kafka at the deadline of the shutdown")]
    Undrained { left: usize },
}

/// The JSON body of a refusal, with the trace it can be looked up in, if that is recorded.
pub fn problem_json(problem: &Problem, trace: Option<TraceContext>) -> String {
    let mut json = problem.to_json();
    if let (Some(trace), Some(inner)) =
        (trace.filter(|trace| trace.sampled), json.strip_suffix("}}"))
    {
        json = format!("{inner},\"trace_id\":\"{}\"}}}}", trace.trace_id_hex());
    }
    json
}

#[cfg(test)]
mod tests {
    use streamgauge_proto::ErrorCode;

    use super::*;

    #[test]
    fn a_refusal_names_its_trace() {
        let problem = Problem::new(ErrorCode::MissingField, "user_id is required").field("user_id");
        let trace = TraceContext {
            trace_id: [0xab; 16],
            span_id: [1; 8],
            sampled: true,
        };
        let json: serde_json::Value =
            serde_json::from_str(&problem_json(&problem, Some(trace))).unwrap();
        assert_eq!(json["error"]["trace_id"], "ab".repeat(16));
        assert_eq!(json["error"]["field"], "user_id");
        let unsampled = TraceContext {
            sampled: false,
            ..trace
        };
        for trace in [None, Some(unsampled)] {
            assert_eq!(problem_json(&problem, trace), problem.to_json());
        }
    }
}
