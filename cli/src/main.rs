//! The `streamgauge` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    streamgauge::main()
}
