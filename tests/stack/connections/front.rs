//! What stands before a registry or a ClickHouse in production: TLS, and for the registry a check of who asks.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use axum::http::{Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

pub struct Front {
    pub address: SocketAddr,
    /// Ends with this value.
    _serving: JoinSet<()>,
}

struct Rules {
    client: reqwest::Client,
    upstream: String,
    /// The values of `authorization` that are let in; `None` passes the header on.
    admits: Option<Vec<String>>,
}

impl Front {
    /// Passes requests on to `upstream`, an address without a path.
    pub async fn start(upstream: &str, tls: Arc<ServerConfig>, admits: Option<Vec<String>>) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let rules = Arc::new(Rules { client, upstream: upstream.to_owned(), admits });
        let router = Router::new().fallback(pass).with_state(rules);
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(Listener { tcp, tls: tls.into() }, router).await.unwrap() });
        Self { address, _serving: serving }
    }
}

async fn pass(State(rules): State<Arc<Rules>>, request: Request) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    if let Some(admitted) = &rules.admits {
        let given = parts.headers.remove(AUTHORIZATION);
        if !given.is_some_and(|given| admitted.iter().any(|one| one.as_bytes() == given.as_bytes())) {
            return Response::builder().status(StatusCode::UNAUTHORIZED).body("who are you?".into()).unwrap();
        }
    }
    parts.headers.remove(HOST);
    parts.headers.remove(TRANSFER_ENCODING);
    parts.headers.remove(CONTENT_LENGTH);
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let url = format!("{}{}", rules.upstream, parts.uri);
    let answer = rules.client.request(parts.method, url).headers(parts.headers).body(body).send().await.unwrap();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    response.headers_mut().remove(TRANSFER_ENCODING);
    *response.body_mut() = Body::from(answer.bytes().await.unwrap());
    response
}

struct Listener {
    tcp: TcpListener,
    tls: TlsAcceptor,
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.tcp.accept().await.unwrap();
            // A client that does not trust us ends the handshake; the next one may.
            if let Ok(stream) = self.tls.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
