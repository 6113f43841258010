//! The `streamgauge` command with one protection switched off, as `STREAMGAUGE_MUTATION` says. The fault harness runs
//! it to prove that it would notice; it is no product.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::var("STREAMGAUGE_MUTATION").as_deref() {
        Ok("chain") => streamgauge_chain::mutation::switch_off(),
        Ok("dedupe") => streamgauge_consumer::mutation::switch_off(),
        Ok("idempotence") => streamgauge_kafka::mutation::switch_off(),
        // The tools that judge are run without a mutation.
        Err(_) => {}
        Ok(other) => {
            eprintln!("STREAMGAUGE_MUTATION: {other} is not chain, dedupe or idempotence");
            return ExitCode::from(2);
        }
    }
    streamgauge::main()
}
