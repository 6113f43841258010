//! Log lines: one JSON object each for machines, or plain text for people. Both carry the ids of the trace that the
//! writing code is in, so that a line leads to its trace. They go to standard error, which leaves standard output to
//! what was asked for.

use std::fmt;
use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::context::TraceContext;
use crate::telemetry::TelemetryError;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    pub format: LogFormat,
    /// Which lines are written, as in `info,rdkafka=warn`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            format: LogFormat::Json,
            filter: "info".to_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Json,
    Text,
}

/// Makes this the process's logging.
pub(crate) fn install(
    service: &'static str,
    instance: &str,
    config: &LogConfig,
) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|error| TelemetryError::Filter {
        filter: config.filter.clone(),
        detail: error.to_string(),
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let installed = match config.format {
        LogFormat::Json => lines
            .fmt_fields(format::JsonFields::new())
            .event_format(JsonLines {
                service,
                instance: instance.to_owned(),
            })
            .finish()
            .try_init(),
        LogFormat::Text => lines
            .event_format(TextLines(format::format().with_target(true)))
            .finish()
            .try_init(),
    };
    installed.map_err(|_| TelemetryError::AlreadySet)
}

/// One JSON object a line.
struct JsonLines {
    service: &'static str,
    instance: String,
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut line = Map::new();
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        line.insert("timestamp".to_owned(), timestamp.into());
        line.insert("level".to_owned(), metadata.level().as_str().into());
        line.insert("service".to_owned(), self.service.into());
        line.insert("instance".to_owned(), self.instance.as_str().into());
        line.insert("target".to_owned(), metadata.target().into());
        if let Some(context) = TraceContext::current() {
            line.insert("trace_id".to_owned(), context.trace_id_hex().into());
            line.insert("span_id".to_owned(), context.span_id_hex().into());
        }
        // Fields of the spans around the event, the outermost first, then those of the event itself.
        for span in ctx
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>();
            let fields = fields.and_then(|fields| serde_json::from_str(fields).ok());
            if let Some(Value::Object(fields)) = fields {
                line.extend(fields);
            }
        }
        event.record(&mut Fields(&mut line));
        let line = serde_json::to_string(&line).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}

/// Puts an event's fields into the line.
struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
}

/// The usual text, led by the trace id where there is one.
struct TextLines(format::Format);

impl<S, N> FormatEvent<S, N> for TextLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if let Some(context) = TraceContext::current() {
            write!(writer, "trace_id={} ", context.trace_id_hex())?;
        }
        self.0.format_event(ctx, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::io;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(f: impl FnOnce()) -> Vec<Value> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(format::JsonFields::new())
            .event_format(JsonLines {
                service: "producer",
                instance: "one".to_owned(),
            })
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, f);
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn a_line_is_one_object_with_all_fields() {
        let lines = written(|| {
            let outer = tracing::info_span!("outer", partition = 3, topic = "events");
            let _entered = outer.enter();
            tracing::warn!(offset = 42u64, error = %"no\n\"disk\"", "stopped");
            tracing::info!("on");
        });
        assert_eq!(lines.len(), 2);
        let line = &lines[0];
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["service"], "producer");
        assert_eq!(line["message"], "stopped");
        assert_eq!(line["offset"], 42);
        assert_eq!(line["error"], "no\n\"disk\"");
        assert_eq!(
            (&line["partition"], &line["topic"]),
            (&3.into(), &"events".into())
        );
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
        assert!(line.get("trace_id").is_none());
    }

    #[test]
    fn a_line_within_a_trace_says_so() {
        let context = TraceContext {
            trace_id: [0xab; 16],
            span_id: [0xcd; 8],
            sampled: true,
        };
        let lines = written(|| {
            let mut fut = std::pin::pin!(context.scope(async { tracing::info!("here") }));
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(fut.as_mut().poll(&mut cx).is_ready());
            tracing::info!("there");
        });
        assert_eq!(lines[0]["trace_id"], "ab".repeat(16));
        assert_eq!(lines[0]["span_id"], "cd".repeat(8));
        assert!(lines[1].get("trace_id").is_none());
    }

    #[test]
    fn a_wrong_filter_is_told() {
        let config = LogConfig {
            filter: "info,=,=".to_owned(),
            ..LogConfig::default()
        };
        let error = install("producer", "one", &config).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("telemetry.log.filter: `info,=,=`"),
            "{error}"
        );
    }
}
