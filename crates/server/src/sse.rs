//! Answers on their way out: as a stream of server-sent events, or whole.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use api::{ApiError, Frame, ReplyWriter};
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Response, header};
use serde_json::Value;
use tokio::time::{Instant, Sleep};

use crate::bodies::Place;
use crate::conn::Closer;
use crate::metrics::Record;
use crate::queue::Answers;

/// A piece of a stream has about so many bytes at most.
const PIECE_BYTES: usize = 16 << 10;

/// What is to be done when an answer is complete.
pub(crate) type Completed = Box<dyn FnOnce(&dyn ReplyWriter) + Send>;

/// An answer and who writes it.
pub(crate) struct Reply {
    pub(crate) answers: Answers,
    pub(crate) writer: Box<dyn ReplyWriter>,
    pub(crate) record: Arc<Record>,
    /// Called once it is complete.
    pub(crate) completed: Option<Completed>,
    /// Where that lies which it repeats of its request.
    pub(crate) _repeats: Option<Place>,
}

impl Reply {
    fn complete(&mut self) {
        if let Some(completed) = self.completed.take() {
            completed(self.writer.as_ref());
        }
    }

    /// The answer as one object.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn whole(mut self) -> Result<Value, ApiError> {
        let mut left = Left(Some(self.record.clone()));
        while let Some(event) = poll_fn(|context| self.answers.poll_next(context)).await {
            let event = event.inspect_err(|_| left.stays())?;
            // A stream would have shown the frames.
            let _ = self.writer.event(&event);
        }
        left.stays();
        self.complete();
        Ok(self.writer.whole())
    }

    /// The answer as a stream, whose head goes out at once. `closer` ends the connection after a failure.
    pub(crate) fn stream(self, ping: Duration, closer: Closer) -> Response<Body> {
        let left = Left(Some(self.record.clone()));
        let body = Stream {
            reply: self,
            ping,
            silence: Box::pin(tokio::time::sleep(ping)),
            stage: Stage::Begin,
            closer,
            left,
        };
        event_stream(Body::new(body))
    }
}

/// A response whose body is a stream of events.
pub(crate) fn event_stream(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Notes that the client has left, if it is dropped before the answer has ended.
struct Left(Option<Arc<Record>>);

impl Left {
    fn stays(&mut self) {
        self.0 = None;
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Some(record) = &self.0 {
            record.left();
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Begin,
    Events,
    Ended,
}

struct Stream {
    reply: Reply,
    ping: Duration,
    /// Since the last piece.
    silence: Pin<Box<Sleep>>,
    stage: Stage,
    closer: Closer,
    left: Left,
}

impl Stream {
    /// Frames that are there now. Nothing of an event is held back.
    fn frames(&mut self, context: &mut Context<'_>, out: &mut Vec<u8>) {
        if self.stage == Stage::Begin {
            self.stage = Stage::Events;
            write(out, self.reply.writer.begin());
        }
        while self.stage == Stage::Events && out.len() < PIECE_BYTES {
            let Poll::Ready(event) = self.reply.answers.poll_next(context) else { return };
            match event {
                Some(Ok(event)) => write(out, self.reply.writer.event(&event)),
                Some(Err(e)) => {
                    write(out, self.reply.writer.fail(&e));
                    self.reply.record.failed(&e.message);
                    self.stage = Stage::Ended;
                    self.left.stays();
                    self.closer.close();
                }
                None => {
                    write(out, self.reply.writer.end());
                    self.stage = Stage::Ended;
                    self.left.stays();
                    self.reply.complete();
                }
            }
        }
    }
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if this.stage == Stage::Ended {
            return Poll::Ready(None);
        }
        let mut out = Vec::new();
        loop {
            this.frames(context, &mut out);
            if !out.is_empty() {
                this.silence.as_mut().reset(Instant::now() + this.ping);
                return Poll::Ready(Some(Ok(hyper::body::Frame::data(out.into()))));
            }
            if this.stage == Stage::Ended {
                return Poll::Ready(None);
            }
            if this.silence.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            this.silence.as_mut().reset(Instant::now() + this.ping);
            write(&mut out, this.reply.writer.ping());
        }
    }
}

fn write(out: &mut Vec<u8>, frames: Vec<Frame>) {
    for frame in frames {
        match frame {
            Frame::Data { event, data } => {
                if let Some(event) = event {
                    out.extend_from_slice(format!("event: {event}\n").as_bytes());
                }
                out.extend_from_slice(format!("data: {data}\n\n").as_bytes());
            }
            Frame::Comment(text) => out.extend_from_slice(format!(": {text}\n\n").as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_lines_and_an_empty_one() {
        let mut out = Vec::new();
        let data = |event, data: &str| Frame::Data { event, data: data.into() };
        write(
            &mut out,
            vec![data(None, "{}"), Frame::Comment("ping"), data(Some("message_stop"), "{\"a\":1}")],
        );
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "data: {}\n\n: ping\n\nevent: message_stop\ndata: {\"a\":1}\n\n");
    }
}
