//! Bodies of requests: how much of them is in memory at the same time, and how fast they have to come.

use std::future::poll_fn;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use api::body::VALUES_MAX;
use api::{ApiError, ErrorClass};
use axum::body::{Body, Bytes, HttpBody};
use axum::http::Request;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::conn::CONNECTIONS;
use crate::options::Options;
use crate::safety::{Packing, too_large};
use crate::state::KEPT_BYTES;

/// Bodies up to this size take no room: there are no more of them than connections.
const SMALL_BYTES: usize = 16 << 10;

/// The text of a body is there so many times until its prompt is made: as it came, in its values, in messages, in the prompt.
const COPIES: usize = 4;

/// What a value takes besides its text, and the least that its text and its comma take in the body.
const VALUE_BYTES: usize = 64;
const VALUE_TEXT_BYTES: usize = 2;

/// What all answers under way repeat of their requests, and how often a text of it is there while it is written.
const REPEATED_BYTES: usize = 8 << 20;
const REPEATED_COPIES: usize = 3;

/// A large body that others wait for comes at least as fast.
const PACE_BYTES_PER_S: f64 = (1 << 20) as f64;

/// What a body of so many bytes takes at most.
fn memory(bytes: usize) -> usize {
    COPIES.saturating_mul(bytes).saturating_add(VALUE_BYTES * (bytes / VALUE_TEXT_BYTES).min(VALUES_MAX))
}

/// The same in KiB, which the room is counted in.
fn kib(bytes: usize) -> usize {
    memory(bytes).div_ceil(1 << 10)
}

/// Memory that bodies and what is kept of them take together, where one has at most `most` bytes: what belongs into the plan
/// of a model that is served.
pub fn body_memory_bytes(most: usize) -> u64 {
    let others = CONNECTIONS * SMALL_BYTES + REPEATED_COPIES * REPEATED_BYTES + KEPT_BYTES;
    memory(most).saturating_add(others) as u64
}

/// Memory for large bodies until their prompts are made: one that is as large as may be, or several smaller ones. And for what
/// answers repeat of them.
#[derive(Debug)]
pub(crate) struct Room {
    free_kib: Arc<Semaphore>,
    all_kib: u32,
    /// Bodies that wait for it.
    wanted: AtomicUsize,
    repeated_bytes: Arc<Semaphore>,
}

/// What a body, or what an answer repeats of it, has of the room, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl From<OwnedSemaphorePermit> for Place {
    fn from(permit: OwnedSemaphorePermit) -> Self {
        Self { _permit: permit }
    }
}

impl Room {
    /// For bodies of at most `most` bytes.
    pub(crate) fn new(most: usize) -> Self {
        let all_kib = u32::try_from(kib(most)).unwrap_or(u32::MAX).max(1);
        Self {
            free_kib: Arc::new(Semaphore::new(all_kib as usize)),
            all_kib,
            wanted: AtomicUsize::new(0),
            repeated_bytes: Arc::new(Semaphore::new(REPEATED_BYTES)),
        }
    }

    /// Room for what an answer repeats of its request, as long as it lasts: nobody knows how long, so nobody waits for it.
    ///
    /// # Errors
    /// `TooLarge` for what there is never room for, `QueueFull` for what there is none for now.
    pub(crate) fn repeat(&self, bytes: usize) -> Result<Place, ApiError> {
        if bytes > REPEATED_BYTES {
            let message =
                format!("the answer would repeat {bytes} bytes of the request, of at most {REPEATED_BYTES}");
            return Err(ApiError::new(ErrorClass::TooLarge, message));
        }
        let permit = self.repeated_bytes.clone().try_acquire_many_owned(bytes as u32);
        let full = || {
            ApiError::new(
                ErrorClass::QueueFull,
                "answers under way repeat too much of their requests; try again later",
            )
        };
        permit.map(Place::from).map_err(|_| full())
    }

    /// Room for a body of so many bytes, all of it at once: bodies that wait for more while they have some would wait for each
    /// other.
    async fn place(&self, bytes: usize) -> Option<Place> {
        struct Waits<'a>(&'a AtomicUsize);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::AcqRel);
            }
        }
        self.wanted.fetch_add(1, Ordering::AcqRel);
        let _waits = Waits(&self.wanted);
        let kib = u32::try_from(kib(bytes)).unwrap_or(u32::MAX).min(self.all_kib);
        self.free_kib.clone().acquire_many_owned(kib).await.ok().map(Place::from) // nobody closes it
    }

    /// Ends when a body that has `got` so many bytes since `since` has had its time, and others wait.
    async fn overdue(&self, since: Instant, got: usize, patience: Duration) {
        sleep_until(since + patience + Duration::from_secs_f64(got as f64 / PACE_BYTES_PER_S)).await;
        while self.wanted.load(Ordering::Acquire) == 0 {
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Where large bodies are read and made prompts: one thread, which takes again what it has freed. Of several, each would
/// keep from the system what the largest of its bodies took.
pub(crate) struct Reader(Sender<Job>);

type Job = Box<dyn FnOnce() + Send>;

impl Reader {
    /// Starts the thread, which ends with the server.
    ///
    /// # Errors
    /// `Io` when there is no thread to be had.
    pub(crate) fn start() -> engine::Result<Self> {
        let (sender, jobs) = channel::<Job>();
        let work = move || {
            for job in jobs {
                let _ = catch_unwind(AssertUnwindSafe(job)); // who waits for it hears nothing, and so knows
            }
        };
        let started = std::thread::Builder::new().name("bodies".into()).spawn(work);
        started.map_err(|e| engine::Error::io("a thread that reads requests", e))?;
        Ok(Self(sender))
    }

    /// Runs what takes time; `None` if it panics.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, waits) = oneshot::channel();
        let job = move || {
            if !done.is_closed() {
                let _ = done.send(work()); // a client that has left
            }
        };
        self.0.send(Box::new(job)).ok()?;
        waits.await.ok()
    }
}

/// A body as it came.
pub(crate) struct Packed {
    packing: Packing,
    bytes: Bytes,
    place: Option<Place>,
}

/// A body that can be read. It keeps its place as long as it lives, for what is made of it.
pub(crate) struct Unpacked {
    bytes: Vec<u8>,
    _place: Option<Place>,
}

impl Packed {
    /// Whether it belongs to the [`Reader`].
    pub(crate) fn is_large(&self) -> bool {
        self.place.is_some()
    }

    /// What it holds. Takes time.
    ///
    /// # Errors
    /// As [`Packing::unpack`].
    pub(crate) fn unpack(self, most: usize) -> Result<Unpacked, ApiError> {
        Ok(Unpacked { bytes: self.packing.unpack(self.bytes, most)?, _place: self.place })
    }
}

impl Deref for Unpacked {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a body. A large one, and one that is packed, has a place in the room.
///
/// # Errors
/// `TooLarge`, and `Invalid` for a client that takes too long or breaks off.
pub(crate) async fn read(
    request: Request<Body>,
    packing: Packing,
    options: &Options,
    room: &Room,
) -> Result<Packed, ApiError> {
    let most = options.body_bytes_max;
    let mut body = request.into_body();
    let hint = body.size_hint();
    if hint.lower() > most as u64 {
        return Err(too_large(most));
    }
    // What it may become: nobody knows before it is unpacked, or has come to its end.
    let whole = match (packing, hint.exact()) {
        (Packing::None, Some(length)) => usize::try_from(length).unwrap_or(most).min(most),
        _ => most,
    };
    let (mut all, mut place, mut since) = (Vec::new(), None, Instant::now());
    loop {
        let late = room.overdue(since, all.len(), options.patience.large);
        let data = tokio::select! {
            biased;
            data = next_data(&mut body, options.patience.body) => data?,
            () = late, if place.is_some() => {
                return Err(ApiError::invalid(None, "the body came too slowly while others waited"));
            }
        };
        let Some(data) = data else { break };
        if all.len() + data.len() > most {
            return Err(too_large(most));
        }
        if place.is_none() && all.len() + data.len() > SMALL_BYTES {
            place = room.place(whole).await;
            since = Instant::now();
        }
        all.extend_from_slice(&data);
    }
    if place.is_none() && packing != Packing::None {
        place = room.place(most).await;
    }
    Ok(Packed { packing, bytes: all.into(), place })
}

/// The next bytes; `None` after the last.
async fn next_data(body: &mut Body, patience: Duration) -> Result<Option<Bytes>, ApiError> {
    loop {
        let next = poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
        match timeout(patience, next).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            },
            Ok(Some(Err(_))) => return Err(ApiError::invalid(None, "the body broke off")),
            Err(_) => {
                let seconds = patience.as_secs_f64();
                return Err(ApiError::invalid(None, format!("no byte of the body came for {seconds} s")));
            }
        }
    }
}
