//! The desk over gRPC.

use std::pin::Pin;

use futures::Stream;
use streamgauge_proto::{
    Problem,
    v1::{
        DeadLetter, DeadLetterProgress, DropDeadLettersRequest, ListDeadLettersRequest,
        ListDeadLettersResponse, ReplayDeadLettersRequest, ShowDeadLetterRequest,
        dead_letters_server::DeadLetters,
    },
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use super::{Desk, DeskError};

type Progress = Pin<Box<dyn Stream<Item = Result<DeadLetterProgress, Status>> + Send>>;

#[tonic::async_trait]
impl DeadLetters for Desk {
    async fn list(
        &self,
        request: Request<ListDeadLettersRequest>,
    ) -> Result<Response<ListDeadLettersResponse>, Status> {
        let found = Desk::list(self, request.get_ref()).await;
        found.map(Response::new).map_err(refused)
    }

    async fn show(
        &self,
        request: Request<ShowDeadLetterRequest>,
    ) -> Result<Response<DeadLetter>, Status> {
        let found = Desk::show(self, request.into_inner()).await;
        found.map(Response::new).map_err(refused)
    }

    type ReplayStream = Progress;

    async fn replay(
        &self,
        request: Request<ReplayDeadLettersRequest>,
    ) -> Result<Response<Progress>, Status> {
        let started = Desk::replay(self, request.into_inner()).await;
        started.map(progress).map_err(refused)
    }

    type DropStream = Progress;

    async fn drop(
        &self,
        request: Request<DropDeadLettersRequest>,
    ) -> Result<Response<Progress>, Status> {
        let started = self.drop_letters(request.into_inner()).await;
        started.map(progress).map_err(refused)
    }
}

fn progress(told: mpsc::Receiver<DeadLetterProgress>) -> Response<Progress> {
    Response::new(Box::pin(ReceiverStream::new(told).map(Ok)))
}

fn refused(error: DeskError) -> Status {
    Problem::from(error).into()
}
