//! The connection to the consumer's desk, and what its refusals mean to a command.

use std::time::Duration;

use streamgauge_proto::v1::dead_letters_client::DeadLettersClient;
use tonic::{Code, Status, transport::Channel};

use crate::{
    client::{connect, sentence, status_cause},
    error::CliError,
};

const SERVICE: &str = "the consumer";

/// Most bytes of one answer: a full page of long dead letters.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A client of the desk, with the address for its errors.
pub struct Desk {
    /// The calls.
    pub calls: DeadLettersClient<Channel>,
    address: String,
}

impl Desk {
    /// Connects.
    ///
    /// # Errors
    /// When nobody answers there.
    pub async fn connect(address: &str, timeout: Duration) -> Result<Self, CliError> {
        let channel = connect(SERVICE, address, timeout).await?;
        let calls = DeadLettersClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Self {
            calls,
            address: address.to_owned(),
        })
    }

    /// What a refused call means.
    pub fn refused(&self, status: Status) -> CliError {
        match status.code() {
            Code::InvalidArgument | Code::NotFound | Code::Aborted | Code::Unimplemented => {
                CliError::Refused {
                    service: SERVICE,
                    message: sentence(&status),
                }
            }
            _ => CliError::unreachable(SERVICE, &self.address, status_cause(status)),
        }
    }
}
