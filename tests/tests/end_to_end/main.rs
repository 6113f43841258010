//! End-to-end tests over the public surface; one body, two environments (see `streamgauge_tests`).

mod bad_input;
mod canary;
mod dead_letters;
mod exposition;
mod kills;
mod reference;
mod session;
mod spool;
mod traces;
