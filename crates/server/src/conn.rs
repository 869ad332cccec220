//! Connections: how many there are, how long they may take, and how they end.

use std::convert::Infallible;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use engine::{Error, Result};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tower_service::Service;

use crate::options::Patience;
use crate::safety::API_KEY;
use crate::state::Shared;

/// Connections at the same time; others wait until one ends.
pub(crate) const CONNECTIONS: usize = 1024;

/// What the system keeps of an answer that its reader has not taken, and what this process does.
const SEND_BYTES: u32 = 64 << 10;

/// Ends a connection after the answer that is under way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Closer(Arc<Notify>);

impl Closer {
    pub(crate) fn close(&self) {
        self.0.notify_one();
    }
}

/// Listens on the first address of `host` that can be had.
///
/// # Errors
/// `Io` naming host and port, `NotFound` for a host that nobody knows.
pub(crate) fn listen(host: &str, port: u16) -> Result<TcpListener> {
    let name = host.trim_matches(['[', ']']);
    let addresses = (name, port).to_socket_addrs().map_err(|e| Error::io(format!("--host {host}"), e))?;
    let mut addresses: Vec<SocketAddr> = addresses.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match listen_on(address) {
            Ok(listener) => return Ok(listener),
            Err(e) => failed = e,
        }
    }
    let what = match failed.kind() {
        io::ErrorKind::AddrInUse => {
            format!("port {port} of {host} is taken (--port chooses another one, 0 a free one)")
        }
        _ => format!("cannot listen on port {port} of {host}"),
    };
    Err(Error::io(what, failed))
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    // Elsewhere it would share the port with whoever has it.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    // Accepted ones inherit it.
    socket.set_send_buffer_size(SEND_BYTES)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(IpAddr);

/// Numbers whoever asks, for the scheduler: programs differ in their address, their key or their name.
pub(crate) fn client(request: &Request) -> u64 {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let mut hasher = DefaultHasher::new();
    peer.hash(&mut hasher);
    for name in [header::AUTHORIZATION, API_KEY, header::USER_AGENT] {
        request.headers().get(name).map(HeaderValue::as_bytes).hash(&mut hasher);
    }
    hasher.finish()
}

/// Answers until the server stops, then waits for the answers under way as long as it may.
pub(crate) async fn accept(listener: TcpListener, router: Router, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut stopping = shared.stopping.subscribe();
    loop {
        let permit = room.clone().acquire_owned();
        let next = async { (permit.await, listener.accept().await) };
        let (permit, accepted) = tokio::select! {
            _ = stopping.wait_for(|stops| *stops) => break,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, router.clone(), shared.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    connection.await;
                });
            }
            // Too many open files, or a client that left at once; the next one may do better.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(shared.options.patience.ending, ended).await;
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, router: Router, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true); // a delay is no failure
    let peer = Peer(stream.peer_addr().map_or(IpAddr::from([0; 4]), |address| address.ip()));
    let closer = Closer::default();
    let mut stopping = shared.stopping.subscribe();
    let patience = shared.options.patience;
    let heads = Arc::new(Heads::default());
    let late_head = Some(Box::pin(tokio::time::sleep(patience.head)));
    let io = Impatient { stream, patience, late: None, heads: heads.clone(), heads_seen: 0, late_head };
    let of_this = closer.clone();
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        heads.come.fetch_add(1, Ordering::AcqRel);
        let heads = heads.clone();
        request.extensions_mut().insert(of_this.clone());
        request.extensions_mut().insert(peer);
        let mut router = router.clone();
        async move {
            let response = router.call(request).await;
            // What is read after it is the next head.
            heads.answered.fetch_add(1, Ordering::AcqRel);
            Ok::<_, Infallible>(response.unwrap_or_else(|never| match never {}))
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(patience.idle);
    server.max_buf_size(SEND_BYTES as usize);
    let mut served = pin!(server.serve_connection(TokioIo::new(io), service));
    let mut closing = false;
    loop {
        tokio::select! {
            // What broke is the client's affair.
            _ = served.as_mut() => return,
            () = closer.0.notified(), if !closing => {}
            _ = stopping.wait_for(|stops| *stops), if !closing => {}
        }
        closing = true;
        served.as_mut().graceful_shutdown();
    }
}

/// Heads of requests that a connection has brought, and those of them that are answered.
#[derive(Debug, Default)]
struct Heads {
    come: AtomicUsize,
    answered: AtomicUsize,
}

/// A stream that fails when its reader takes nothing for too long, or takes too long for a head.
struct Impatient {
    stream: TcpStream,
    patience: Patience,
    /// When that is, since it took nothing.
    late: Option<Pin<Box<Sleep>>>,
    /// Where all are answered, what comes next is a head.
    heads: Arc<Heads>,
    /// Those that had come when it was read last.
    heads_seen: usize,
    /// When it comes too late, since its first byte, or since a new connection.
    late_head: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn waited<T>(&mut self, context: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.late = None;
            return done;
        }
        let late = self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.patience.reader)));
        late.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let (answered, come) =
            (self.heads.answered.load(Ordering::Acquire), self.heads.come.load(Ordering::Acquire));
        // A quick answer lies between two reads.
        if come != self.heads_seen {
            (self.heads_seen, self.late_head) = (come, None);
        }
        if answered < come {
            return read;
        }
        if buffer.filled().len() > before {
            let patience = self.patience.head;
            self.late_head.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        }
        match &mut self.late_head {
            Some(late) if read.is_pending() => {
                late.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
            _ => read,
        }
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.waited(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.waited(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
