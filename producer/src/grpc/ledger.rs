//! The gRPC twin of `GET /v1/ledger`.

use std::sync::Arc;

use streamgauge_proto::v1::producer_ledger_server::ProducerLedger;
use streamgauge_proto::v1::{ProducerLedgerRequest, ProducerLedgerResponse};
use tonic::{Request, Response, Status};

use crate::intake::Intake;
use crate::ledger;

/// The calls.
pub struct Calls {
    pub intake: Arc<Intake>,
}

#[tonic::async_trait]
impl ProducerLedger for Calls {
    async fn read(
        &self,
        _: Request<ProducerLedgerRequest>,
    ) -> Result<Response<ProducerLedgerResponse>, Status> {
        Ok(Response::new(ledger::answer(&self.intake)))
    }
}
