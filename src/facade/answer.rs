//! The way of an answer into a response: when it begins, its pieces, its keep-alive comments and its deadline.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::Stream;
use tokio::time::{Instant, Sleep};

use super::error;
use super::listener::Listener;
use super::metrics::{Metrics, Outcome};
use super::slot::{Beginning, Piece};
use super::sse;
use super::trace;
use crate::records::responses::ApiError;
use crate::telemetry::trace::Span;

/// An answer on its way. Dropping it early cancels the request.
pub struct Answer {
    listener: Listener,
    metrics: Metrics,
    /// One timer for everything: it rings no later than the next thing that is due.
    timer: Pin<Box<Sleep>>,
    patience: Duration,
    gives_up_at: Instant,
    keep_alive: Duration,
    last_written: Instant,
    /// Its request came.
    began: Instant,
    span: Span,
    status: StatusCode,
    /// Set once it is known.
    outcome: Option<Outcome>,
}

impl Answer {
    pub fn new(listener: Listener, metrics: Metrics, patience: Duration, keep_alive: Duration) -> Self {
        let now = Instant::now();
        let gives_up_at = now + patience;
        let timer = Box::pin(tokio::time::sleep_until(gives_up_at.min(now + keep_alive)));
        Self {
            listener,
            metrics,
            timer,
            patience,
            gives_up_at,
            keep_alive,
            last_written: now,
            began: now,
            span: Span::default(),
            status: StatusCode::OK,
            outcome: None,
        }
    }

    /// The answer to a request that came at this moment, and has this place in its trace.
    pub fn of(mut self, began: Instant, span: Span) -> Self {
        (self.began, self.span) = (began, span);
        self
    }

    /// The response is an error.
    pub fn failed(&mut self, error: &ApiError, status: StatusCode) {
        self.metrics.failed(&error.code);
        trace::failed(&mut self.span, error);
        self.status = status;
    }

    /// Waits until it is known what the response begins with. `None`: a client that may hear of the wait already should,
    /// and the request is acknowledged.
    pub async fn beginning(&mut self, may_begin_early: bool) -> Option<Beginning> {
        std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(beginning) = self.listener.slot.poll_beginning(cx) {
                    return Poll::Ready(Some(beginning));
                }
                if self.timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                let now = Instant::now();
                if now >= self.gives_up_at {
                    self.late(now);
                } else if may_begin_early && self.listener.slot.is_acknowledged() {
                    return Poll::Ready(None);
                } else {
                    self.timer.as_mut().reset(self.gives_up_at.min(now + self.keep_alive));
                }
            }
        })
        .await
    }

    /// The time is over: the answer ends with an error, or has as much time again.
    fn late(&mut self, now: Instant) {
        if self.listener.goes_on_late() {
            self.gives_up_at = now + self.patience;
            self.timer.as_mut().reset(self.gives_up_at.min(now + self.keep_alive));
        }
    }

    /// The answer is one that was given before.
    pub fn is_replay(&self) -> bool {
        self.listener.slot.is_replay()
    }

    /// The answer is an error that a repeat would get again.
    pub fn is_final(&self) -> bool {
        self.listener.slot.is_final()
    }

    /// How long ago its request came.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// The response is decided and is no stream.
    pub fn ended(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    /// The body of a streamed response.
    pub fn into_body(self) -> Body {
        Body::from_stream(self)
    }
}

impl Stream for Answer {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.outcome.is_some() {
            return Poll::Ready(None);
        }
        loop {
            match self.listener.slot.poll_piece(cx) {
                Poll::Ready(Piece::Bytes(bytes)) => {
                    self.last_written = Instant::now();
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Poll::Ready(Piece::Error(error)) => {
                    self.outcome = Some(Outcome::StreamError);
                    self.failed(&error, StatusCode::OK);
                    return Poll::Ready(Some(Ok(error::event(&error))));
                }
                Poll::Ready(Piece::End) => {
                    self.outcome = Some(Outcome::Ok);
                    return Poll::Ready(None);
                }
                Poll::Pending => {}
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if now >= self.gives_up_at {
                self.late(now);
                continue;
            }
            // The timer is not moved at each piece; it looks for itself how long nothing was written.
            let due = self.last_written + self.keep_alive;
            let silent = now >= due;
            if silent {
                self.last_written = now;
            }
            let next = if silent { now + self.keep_alive } else { due };
            let next = next.min(self.gives_up_at);
            self.timer.as_mut().reset(next);
            if silent {
                return Poll::Ready(Some(Ok(sse::KEEP_ALIVE)));
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let outcome = self.outcome.unwrap_or(Outcome::Abandoned);
        self.metrics.ended(outcome, self.age());
        trace::ended(&mut self.span, outcome, self.status);
    }
}
