//! End-to-end tests over the public surface; one body, two environments (see `streamgauge_tests`).

mod bad_input;
mod kills;
mod session;
mod spool;
mod traces;
