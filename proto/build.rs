//! Compiles the `.proto` files with protox, so that no system protoc is needed.

use std::path::Path;

const FILES: [&str; 8] = [
    "streamgauge/v1/event.proto",
    "streamgauge/v1/submission.proto",
    "streamgauge/v1/delta.proto",
    "streamgauge/v1/analytics.proto",
    "streamgauge/v1/control.proto",
    "streamgauge/v1/ledger.proto",
    "streamgauge/v1/deadletter.proto",
    "streamgauge/v1/producer.proto",
];

/// Messages whose JSON has the fields of the protobuf form by the same names.
const SHOWN: [&str; 10] = [
    "ListDeadLettersResponse",
    "DeadLetterCounts",
    "DeadLetter",
    "DeadLetterOrigin",
    "DeadLetterText",
    "DeadLetterHeader",
    "DeadLetterBody",
    "DeadLetterProgress",
    "DeadLetterOutcome",
    "ListDeadLettersRequest",
];

/// Messages that are read from JSON as well.
const ASKED: [&str; 5] = [
    "DeadLetterId",
    "DeadLetterFilter",
    "DeadLetterSelection",
    "ReplayDeadLettersRequest",
    "DropDeadLettersRequest",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(
        Path::new(&out).join("streamgauge.bin"),
        prost_encode(&descriptors),
    )?;
    let mut build = tonic_prost_build::configure()
        .bytes(".streamgauge.v1")
        .build_transport(true);
    for message in SHOWN {
        let path = format!(".streamgauge.v1.{message}");
        build = build.type_attribute(path, "#[derive(serde::Serialize)]");
    }
    for message in ASKED {
        let path = format!(".streamgauge.v1.{message}");
        let asked = "#[derive(serde::Serialize, serde::Deserialize)]\n#[serde(default, deny_unknown_fields)]";
        build = build.type_attribute(path, asked);
    }
    build.compile_fds(descriptors)?;
    Ok(())
}

fn prost_encode(descriptors: &impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
