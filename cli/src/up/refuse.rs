//! Settings of a part that have no effect in one process, because `up` decides them: refused, with
//! the name of the setting to use instead. A setting that is silently ignored is the worst kind.

use serde::Serialize;
use serde_json::Value;
use streamgauge_analytics::Config as AnalyticsConfig;
use streamgauge_consumer::Config as ConsumerConfig;
use streamgauge_producer::Config as ProducerConfig;

use super::config::UpConfig;
use crate::error::CliError;

/// Refuses what would have no effect.
///
/// # Errors
/// When a setting differs from its default although something else decides it.
pub fn without_effect(config: &mut UpConfig) -> Result<(), CliError> {
    let usual = UpConfig::default();
    let (producer, consumer, analytics) = (&config.producer, &config.consumer, &config.analytics);
    telemetry(
        "producer",
        &producer.telemetry,
        &ProducerConfig::default().telemetry,
    )?;
    telemetry(
        "consumer",
        &consumer.telemetry,
        &ConsumerConfig::default().telemetry,
    )?;
    telemetry(
        "analytics",
        &analytics.telemetry,
        &AnalyticsConfig::default().telemetry,
    )?;
    if config.broker.data_dir != usual.broker.data_dir {
        return refused(
            "broker.data_dir",
            "set data_dir; the log is in the folder log in it",
        );
    }
    let partitions = [
        (
            "broker.num_partitions",
            config.broker.num_partitions,
            usual.broker.num_partitions,
        ),
        (
            "producer.topics.partitions",
            producer.topics.partitions,
            usual.producer.topics.partitions,
        ),
        (
            "consumer.topics.partitions",
            consumer.topics.partitions,
            usual.consumer.topics.partitions,
        ),
    ];
    // A part's setting that says the same as the system's does no harm.
    let differs = |(_, set, usual): &(&str, i32, i32)| set != usual && *set != config.partitions;
    if let Some((setting, ..)) = partitions.into_iter().find(differs) {
        return refused(setting, "set partitions, which holds for all topics");
    }
    let brokers = [
        (
            "producer.kafka.brokers",
            &producer.kafka.brokers,
            &usual.producer.kafka.brokers,
        ),
        (
            "consumer.kafka.brokers",
            &consumer.kafka.brokers,
            &usual.consumer.kafka.brokers,
        ),
        (
            "analytics.kafka.brokers",
            &analytics.kafka.brokers,
            &usual.analytics.kafka.brokers,
        ),
    ];
    addresses(
        &brokers,
        "the parts use the embedded log at broker.listen; for another Kafka run `streamgauge producer`, `consumer` and \
         `analytics`, each with kafka.brokers",
    )?;
    let doors = [
        (
            "analytics.canary.producer_http",
            &analytics.canary.producer_http,
            &usual.analytics.canary.producer_http,
        ),
        (
            "analytics.canary.producer_grpc",
            &analytics.canary.producer_grpc,
            &usual.analytics.canary.producer_grpc,
        ),
    ];
    addresses(&doors, "the canary uses the producer of the same process")?;
    deadlines(config, usual)
}

/// Addresses, set and usual, that the system itself decides.
fn addresses(pairs: &[(&str, &String, &String)], instead: &str) -> Result<(), CliError> {
    let changed = pairs.iter().find(|(_, set, usual)| set != usual);
    changed.map_or(Ok(()), |(setting, ..)| refused(setting, instead))
}

/// A deadline of a part's own may shorten its share of the whole, not lengthen it.
fn deadlines(config: &mut UpConfig, mut usual: UpConfig) -> Result<(), CliError> {
    let share_ms = config.part_deadline_ms();
    let pairs = config
        .part_deadlines()
        .into_iter()
        .zip(usual.part_deadlines());
    for ((setting, set), (_, usual)) in pairs {
        if set != usual && *set > share_ms {
            let instead = format!(
                "each part has {share_ms} ms of the shutdown_deadline_ms that all share: raise that one"
            );
            return refused(setting, &instead);
        }
    }
    Ok(())
}

fn telemetry(part: &str, set: &impl Serialize, usual: &impl Serialize) -> Result<(), CliError> {
    let values = serde_json::to_value(set).and_then(|set| Ok((set, serde_json::to_value(usual)?)));
    let (set, usual) = values.map_err(|error| CliError::Settings(error.into()))?;
    match difference("telemetry", &set, &usual) {
        Some(setting) => {
            let instead = format!("set {setting}, which holds for all parts");
            refused(&format!("{part}.{setting}"), &instead)
        }
        None => Ok(()),
    }
}

/// The first setting that is not as usual.
fn difference(name: &str, set: &Value, usual: &Value) -> Option<String> {
    let (Value::Object(set), Value::Object(usual)) = (set, usual) else {
        return (set != usual).then(|| name.to_owned());
    };
    set.iter().find_map(|(key, value)| {
        let usual = usual.get(key).unwrap_or(&Value::Null);
        difference(&format!("{name}.{key}"), value, usual)
    })
}

fn refused(setting: &str, instead: &str) -> Result<(), CliError> {
    let message = format!("{setting} has no effect under `up`: {instead}");
    Err(CliError::usage(message))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    type Set = fn(&mut UpConfig);

    #[test]
    fn what_has_no_effect_is_refused_with_what_to_set_instead() {
        let cases: [(&str, &str, Set); 8] = [
            (
                "producer.telemetry.otlp_endpoint",
                "set telemetry.otlp_endpoint",
                |config| {
                    config.producer.telemetry.otlp_endpoint = Some(String::from("http://x:4317"));
                },
            ),
            (
                "consumer.telemetry.log.filter",
                "set telemetry.log.filter",
                |config| {
                    config.consumer.telemetry.log.filter = String::from("trace");
                },
            ),
            (
                "analytics.telemetry.sample_ratio",
                "set telemetry.sample_ratio",
                |config| {
                    config.analytics.telemetry.sample_ratio = 1.0;
                },
            ),
            ("broker.data_dir", "set data_dir", |config| {
                config.broker.data_dir = PathBuf::from("/elsewhere");
            }),
            ("broker.num_partitions", "set partitions", |config| {
                config.broker.num_partitions = 9;
            }),
            ("consumer.topics.partitions", "set partitions", |config| {
                config.consumer.topics.partitions = 9;
            }),
            ("analytics.kafka.brokers", "broker.listen", |config| {
                config.analytics.kafka.brokers = String::from("kafka:9092");
            }),
            (
                "producer.shutdown_deadline_ms",
                "shutdown_deadline_ms that all share",
                |config| {
                    config.producer.shutdown_deadline_ms = 60_000;
                },
            ),
        ];
        for (setting, instead, set) in cases {
            let mut config = UpConfig::default();
            set(&mut config);
            let text = without_effect(&mut config).expect_err(setting).to_string();
            assert!(text.contains(setting) && text.contains(instead), "{text}");
        }
    }

    #[test]
    fn what_has_an_effect_or_changes_nothing_is_not() {
        let mut config = UpConfig::default();
        without_effect(&mut config).expect("the defaults");
        config.partitions = 9;
        config.producer.topics.partitions = 9;
        config.telemetry.sample_ratio = 1.0;
        config.consumer.shutdown_deadline_ms = 100;
        without_effect(&mut config).expect("valid");
    }
}
