//! HTTP/1.1 connections: accepted within a bound, owned, and ended cleanly.
//!
//! hyper's connection is driven directly because `axum::serve` detaches its connections, bounds neither their number nor
//! the time that a client may take for its headers, and reads ahead to find out whether HTTP/2 is spoken.

use std::net::IpAddr;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

/// How long a connection may be idle, or take for the headers of a request.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(75);
/// Most bytes of headers, and of a response, that a connection buffers.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// Wait after an accept that failed (mostly: no file descriptor is left).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Where a request's connection comes from; an extension of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

/// Tells the requests of one connection where they come from.
struct From<S> {
    inner: S,
    address: ClientAddress,
}

impl<B, S: Service<Request<B>>> Service<Request<B>> for From<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, mut request: Request<B>) -> S::Future {
        request.extensions_mut().insert(self.address);
        self.inner.call(request)
    }
}

/// What all connections of a listener have in common.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub connections_max: usize,
    /// How long a client may take nothing of what is written to it, before its connection is closed.
    pub stalled_max: Duration,
}

/// Serves until `stop`, then until the last connection has finished what it was asked. Dropping the future closes all.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < limits.connections_max => match accepted {
                Ok((stream, from)) => {
                    let service = From {
                        inner: TowerToHyperService::new(router.clone()),
                        address: ClientAddress(from.ip()),
                    };
                    connections.spawn(connection(stream, service, limits, stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: TcpStream,
    service: From<TowerToHyperService<Router>>,
    limits: Limits,
    stop: CancellationToken,
) {
    // Without it a frame waits for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT).max_buf_size(BUFFER_BYTES_MAX);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limits.stalled_max));
    let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = std::pin::pin!(connection);
    // How a connection ended is its client's matter; what it was asked has been counted.
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
