//! A TCP connection that does not wait for its peer for ever. A peer that takes nothing of what it is sent, or that
//! says nothing where silence is no option, is cut off, so that it cannot keep a place among the connections.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// A connection under watch.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    reads: Stall,
    writes: Stall,
    linger: Linger,
    /// The place among the connections, given back when this one ends.
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        // Answers are small and should leave at once.
        let _ = stream.set_nodelay(true);
        Connection {
            stream,
            reads: Stall::default(),
            writes: Stall::default(),
            linger: Linger::default(),
            _place: None,
        }
    }

    /// Ends the connection when the peer has sent nothing for so long while something was waited for.
    pub(crate) fn read_timeout(mut self, limit: Duration) -> Self {
        self.reads.limit = Some(limit);
        self
    }

    /// Ends the connection when the peer has taken nothing for so long while something was to be sent.
    pub(crate) fn write_timeout(mut self, limit: Duration) -> Self {
        self.writes.limit = Some(limit);
        self
    }

    /// Reads on for so long at most after the connection was ended from here, and throws away what comes. Closed at
    /// once, with something of the peer's unread, it would be reset, and the last answer with it.
    pub(crate) fn linger(mut self, limit: Duration) -> Self {
        self.linger.limit = Some(limit);
        self
    }

    pub(crate) fn place(mut self, place: OwnedSemaphorePermit) -> Self {
        self._place = Some(place);
        self
    }
}

/// What is left of a connection that was ended from here.
#[derive(Debug, Default)]
struct Linger {
    limit: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Linger {
    fn poll(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.limit else {
            return Poll::Ready(());
        };
        let mut scratch = [MaybeUninit::uninit(); 4096];
        loop {
            let mut ignored = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut *stream).poll_read(cx, &mut ignored) {
                Poll::Ready(Ok(())) if !ignored.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        timer.as_mut().poll(cx)
    }
}

/// Measures how long one direction has been waiting. The timer is made when it is first needed, which for writing is
/// hardly ever.
#[derive(Debug, Default)]
struct Stall {
    limit: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Stall {
    fn watch<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Some(limit) = self.limit else {
            return poll;
        };
        if poll.is_ready() {
            self.waiting = false;
            return poll;
        }
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if !std::mem::replace(&mut self.waiting, true) {
            timer.as_mut().reset(Instant::now() + limit);
        }
        timer
            .as_mut()
            .poll(cx)
            .map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.reads.watch(cx, poll)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buffer);
        self.writes.watch(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        self.writes.watch(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        this.linger.poll(&mut this.stream, cx).map(Ok)
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await;
        (
            Connection::new(listener.accept().await.unwrap().0),
            peer.unwrap(),
        )
    }

    #[tokio::test]
    async fn a_peer_that_says_nothing_is_cut_off() {
        let (connection, mut peer) = pair().await;
        let mut connection = connection.read_timeout(Duration::from_millis(50));
        peer.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        connection.read_exact(&mut heard).await.unwrap();
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_connection_that_is_ended_is_read_for_a_while() {
        let (connection, mut peer) = pair().await;
        let mut connection = connection.linger(Duration::from_secs(60));
        let ended = tokio::spawn(async move { connection.shutdown().await });
        // More than the socket's own buffers hold.
        peer.write_all(&vec![0; 16 << 20]).await.unwrap();
        assert!(!ended.is_finished());
        drop(peer);
        ended.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_does_not_end_is_not_waited_for() {
        let (connection, _peer) = pair().await;
        let mut connection = connection.linger(Duration::from_millis(50));
        connection.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_cut_off() {
        let (connection, _peer) = pair().await;
        let mut connection = connection.write_timeout(Duration::from_millis(50));
        let piece = vec![0; 1 << 20];
        let error = loop {
            if let Err(error) = connection.write_all(&piece).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
