//! Serves a model over HTTP: the OpenAI and Anthropic APIs.
//!
//! The only place with HTTP and async. A [`Server`] listens from its start; it answers when it has been given a model
//! ([`Server::serve`]), and ends when it has been told to ([`Server::stop`], or a signal).

mod bodies;
mod conn;
mod events;
mod generate;
mod http;
mod live;
mod metrics;
mod openapi;
mod options;
mod outline;
mod page;
mod plain;
mod queue;
mod recorder;
mod safety;
mod sse;
mod state;

use std::net::SocketAddr;
use std::sync::Arc;

use engine::{Error, Result};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

use crate::state::Shared;

pub use api::prepare::Defaults;
pub use bodies::body_memory_bytes;
pub use live::{Sample, Viewer};
pub use metrics::Log;
pub use options::{LogFormat, Options, Patience, Served};

/// Threads that move bytes; what takes time has others.
const WORKERS: usize = 2;

/// Threads that read bodies and make prompts.
const BLOCKING: usize = 8;

/// A server that listens.
pub struct Server {
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
    address: SocketAddr,
    runtime: Runtime,
}

impl Server {
    /// Listens, and answers that the model is loading. `log` takes a line for each request.
    ///
    /// # Errors
    /// `InvalidRequest` naming the option, `Io` naming the port that cannot be had.
    pub fn start(options: Options, log: Log) -> Result<Self> {
        options.check()?;
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(WORKERS).max_blocking_threads(BLOCKING).thread_name("http");
        let runtime = builder.enable_all().build().map_err(|e| Error::io("threads of the server", e))?;
        let within = runtime.enter();
        let listener = conn::listen(&options.host, options.port)?;
        let address = listener.local_addr().map_err(|e| Error::io("the server's address", e))?;
        let is_local = address.ip().is_loopback();
        if !is_local && options.keys.is_empty() && !options.open {
            return Err(Error::invalid(format!(
                "--host {}: other machines could use the model; give it an --api-key, or say --open",
                options.host
            )));
        }
        let shared = Arc::new(Shared::new(options, is_local, log)?);
        let router = http::router(shared.clone());
        let accepting = runtime.spawn(conn::accept(listener, router, shared.clone()));
        drop(within);
        Ok(Self { shared, accepting, address, runtime })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on answers with this model.
    ///
    /// # Errors
    /// `InvalidRequest` for defaults out of range, `Io` when no thread can be started.
    pub fn serve(&self, served: Served) -> Result<()> {
        self.shared.serve(served)
    }

    /// Looks on; `None` before there is a model.
    pub fn viewer(&self) -> Option<Viewer> {
        self.shared.model().cloned().map(Viewer::new)
    }

    /// Takes no new requests; those under way are finished as long as [`Patience::ending`] allows.
    pub fn stop(&self) {
        self.shared.stopping.send_replace(true);
    }

    /// Whether it takes no new requests any more.
    pub fn is_stopping(&self) -> bool {
        self.shared.is_stopping()
    }

    /// Whether everything under way has ended too, so that [`Self::wait`] would not wait.
    pub fn is_ended(&self) -> bool {
        self.accepting.is_finished()
    }

    /// Stops at Ctrl-C and where the system asks to end; `each` hears of every such signal, counted from 1.
    ///
    /// # Errors
    /// `Io` when the system does not let us listen.
    pub fn stop_on_signals(&self, each: impl Fn(usize) + Send + 'static) -> Result<()> {
        let (sender, mut signals) = tokio::sync::mpsc::unbounded_channel();
        let within = self.runtime.enter();
        listen_for_signals(&sender).map_err(|e| Error::io("listening for signals", e))?;
        drop(within);
        let shared = self.shared.clone();
        self.runtime.spawn(async move {
            let mut count = 0;
            while signals.recv().await.is_some() {
                count += 1;
                shared.stopping.send_replace(true);
                each(count);
            }
        });
        Ok(())
    }

    /// Waits until it has stopped and everything under way has ended.
    ///
    /// # Errors
    /// `Device` when the server has failed.
    pub fn wait(self) -> Result<()> {
        let Self { shared, accepting, runtime, .. } = self;
        let ended = runtime.block_on(accepting);
        // Prompts that are being made end with it, and then the scheduler, whose thread ends with its last request.
        drop(runtime);
        drop(shared);
        ended.map_err(|e| Error::new(engine::ErrorKind::Device, "the server has failed").with_source(e))
    }
}

#[cfg(unix)]
fn listen_for_signals(sender: &UnboundedSender<()>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut signals, sender) = (signal(kind)?, sender.clone());
        tokio::spawn(async move { while signals.recv().await.is_some() && sender.send(()).is_ok() {} });
    }
    Ok(())
}

#[cfg(not(unix))]
fn listen_for_signals(sender: &UnboundedSender<()>) -> std::io::Result<()> {
    let sender = sender.clone();
    tokio::spawn(async move { while tokio::signal::ctrl_c().await.is_ok() && sender.send(()).is_ok() {} });
    Ok(())
}
