//! A loopback proxy before a server, which cuts connections at chosen bytes, or lets nobody through.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// When a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// In the middle of what is sent: so many more bytes, of all connections, still go through.
    AfterSent(u64),
    /// Of a connection that has sent so many bytes since: nothing of the next answer comes back.
    AnswerAfter(u64),
}

#[derive(Debug)]
struct Plan {
    cut: Option<Cut>,
    /// Tells the connections of one plan from those of the next.
    number: u64,
}

struct Shared {
    upstream: String,
    plan: Mutex<Plan>,
    cuts: AtomicU64,
    open: watch::Sender<bool>,
}

pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    /// Ends with this value.
    _serving: JoinSet<()>,
}

impl Proxy {
    pub async fn start(listener: TcpListener, upstream: String) -> Self {
        let address = listener.local_addr().expect("an address");
        let plan = Mutex::new(Plan { cut: None, number: 0 });
        let shared = Arc::new(Shared { upstream, plan, cuts: AtomicU64::new(0), open: watch::Sender::new(true) });
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, _serving: serving }
    }

    /// Cuts one connection.
    pub fn cut(&self, cut: Cut) {
        let mut plan = self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner);
        *plan = Plan { cut: Some(cut), number: plan.number + 1 };
    }

    /// Cuts all connections, and new ones at once, until it is opened.
    pub fn close(&self) {
        self.shared.open.send_replace(false);
    }

    pub fn open(&self) {
        self.shared.open.send_replace(true);
    }

    /// Connections that were cut so far.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(pass(client, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

/// A connection ends in both directions when one of them ends or is cut.
async fn pass(client: TcpStream, shared: Arc<Shared>) {
    let mut open = shared.open.subscribe();
    if !*open.borrow() {
        return;
    }
    let Ok(server) = TcpStream::connect(&shared.upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let sent = Mutex::new((0, 0));
    tokio::select! {
        () = send(from_client, to_server, &shared, &sent) => {}
        () = answer(from_server, to_client, &shared, &sent) => {}
        _ = open.wait_for(|open| !open) => { shared.cuts.fetch_add(1, Ordering::SeqCst); }
    }
}

/// Bytes that this connection has sent under the plan of this number.
type Sent = Mutex<(u64, u64)>;

async fn send(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared, sent: &Sent) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let goes_through = shared.sending(read as u64, sent);
        if to.write_all(&buffer[..goes_through]).await.is_err() || goes_through < read {
            return;
        }
    }
}

async fn answer(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared, sent: &Sent) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if shared.cuts_answer(sent) || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

impl Shared {
    /// How many of the bytes that are to be sent go through.
    fn sending(&self, bytes: u64, sent: &Sent) -> usize {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.0 != plan.number {
            *sent = (plan.number, 0);
        }
        sent.1 += bytes;
        match plan.cut {
            Some(Cut::AfterSent(left)) if left < bytes => {
                plan.cut = None;
                self.cuts.fetch_add(1, Ordering::SeqCst);
                left as usize
            }
            Some(Cut::AfterSent(left)) => {
                plan.cut = Some(Cut::AfterSent(left - bytes));
                bytes as usize
            }
            Some(Cut::AnswerAfter(_)) | None => bytes as usize,
        }
    }

    fn cuts_answer(&self, sent: &Sent) -> bool {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
        let cuts = matches!(plan.cut, Some(Cut::AnswerAfter(bytes)) if sent.0 == plan.number && sent.1 >= bytes);
        if cuts {
            plan.cut = None;
            self.cuts.fetch_add(1, Ordering::SeqCst);
        }
        cuts
    }
}
