//! Compiles the `.proto` files with protox, so that no system protoc is needed.

use std::path::Path;

const FILES: [&str; 6] = [
    "streamgauge/v1/event.proto",
    "streamgauge/v1/submission.proto",
    "streamgauge/v1/delta.proto",
    "streamgauge/v1/analytics.proto",
    "streamgauge/v1/control.proto",
    "streamgauge/v1/producer.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(
        Path::new(&out).join("streamgauge.bin"),
        prost_encode(&descriptors),
    )?;
    tonic_prost_build::configure()
        .bytes(".streamgauge.v1")
        .build_transport(true)
        .compile_fds(descriptors)?;
    Ok(())
}

fn prost_encode(descriptors: &impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
