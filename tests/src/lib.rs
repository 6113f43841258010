//! What the end-to-end tests share: systems of real processes, an oracle, a trace collector, what
//! `/metrics` says.
//!
//! Tests reach a system only through its public surface: HTTP, gRPC, topics, signals. The same
//! body runs in two environments. By default one process holds everything on the embedded log and
//! SQLite; where `STREAMGAUGE_TEST_BROKERS` and `STREAMGAUGE_TEST_POSTGRES_URL` are set, three
//! processes run on that Kafka and that PostgreSQL.

pub mod collector;
pub mod exposition;
pub mod oracle;
pub mod process;
pub mod system;
