//! The pure core: what the stream processor decides, without IO, clock, threads or randomness.
//!
//! The shell around it reads records and hands them in, carries out the effects that come back,
//! and tells how they ended. The simulator does the same with a modelled log, so what it proves
//! is proven of the code that runs. Nothing here may panic on anything that a topic may hold.

pub mod aggregate;
pub mod decode;
pub mod dedupe;
pub mod encode;
pub mod keys;
pub mod partition;
pub mod reject;
pub mod replay;
pub mod series;
pub mod strings;
pub mod validate;
