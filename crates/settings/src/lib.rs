//! Configuration: defaults, then a file, then the environment, then flags, into one typed struct per service. Each
//! value keeps the name of its source, so that an error can say what is wrong, where it was set and what would be
//! right. Nothing here knows what the settings mean, and no secret is ever printed.

mod args;
mod error;
mod loader;
mod secret;
mod tree;

pub use args::ConfigArgs;
pub use error::SettingsError;
pub use loader::{Loader, print};
pub use secret::{Secret, SecretUrl, redact_url};
