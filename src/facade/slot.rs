//! One request that waits for its answer: the demultiplexer puts frames in, the connection takes bytes out.
//!
//! The demultiplexer never waits for a client. A slot holds a bounded number of bytes, ready to be written; a client for
//! which more would have to wait has lost its stream and gets an error after what it was still owed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};

use super::error::{self, Refusal};
use super::metrics::Metrics;
use super::reassembly::{Fault, Reassembly, Verdict};
use super::sse::{self, Position};
use crate::domain::RequestKey;
use crate::records::Outcome;
use crate::records::responses::{ApiError, Content, Frame, FrameBody, Head, Terminal};

/// Most bytes that leave a slot at once, so that what the connection holds of an answer is bounded too.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Completed(Box<Terminal>),
    Failed(ApiError),
}

/// What is known when a response has to begin.
#[derive(Debug, PartialEq)]
pub enum Beginning {
    /// The stream begins; `None`: nobody said who answers.
    Stream(Option<Head>),
    Whole(Box<Terminal>),
    Failed(ApiError),
}

/// The next bytes of a stream.
#[derive(Debug, PartialEq)]
pub enum Piece {
    Bytes(Bytes),
    /// The last bytes of a stream that did not complete.
    Error(ApiError),
    End,
}

/// Why a request whose terminal has not come is cancelled; becomes the reason of the cancel record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cancelled {
    ClientDisconnected,
    ClientTooSlow,
    Deadline,
    AnswerBroken,
    NotAcknowledged,
    ShuttingDown,
}

impl Cancelled {
    pub const ALL: [Self; 6] = [
        Self::ClientDisconnected,
        Self::ClientTooSlow,
        Self::Deadline,
        Self::AnswerBroken,
        Self::NotAcknowledged,
        Self::ShuttingDown,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientDisconnected => "client_disconnected",
            Self::ClientTooSlow => "client_too_slow",
            Self::Deadline => "deadline_exceeded",
            Self::AnswerBroken => "answer_broken",
            Self::NotAcknowledged => "not_acknowledged",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

/// Bounds on the bytes that wait for clients.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// For one client.
    pub slot_bytes: usize,
    /// For all of them; beyond it, who holds more than `fair_bytes` is too slow.
    pub all_bytes: usize,
    pub fair_bytes: usize,
}

pub struct Slot {
    pub key: RequestKey,
    stream: bool,
    bounds: Bounds,
    metrics: Metrics,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    reassembly: Reassembly,
    /// Events that wait for the connection.
    out: BytesMut,
    /// The first content frame has come.
    begun: bool,
    head: Option<Head>,
    /// The request is acknowledged on `requests`.
    acknowledged: bool,
    end: Option<End>,
    waker: Option<Waker>,
}

impl Slot {
    pub fn new(key: RequestKey, stream: bool, bounds: Bounds, metrics: Metrics) -> Self {
        Self { key, stream, bounds, metrics, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frame. `Some`: the request is to be cancelled, for this reason.
    pub fn frame(&self, at: Position, frame: Frame) -> Option<Cancelled> {
        let mut inner = self.lock();
        if inner.end.is_some() {
            return None;
        }
        let (cancel, wake) = match frame.body {
            FrameBody::Content(_) if !self.stream => (None, false),
            FrameBody::Content(content) => {
                match inner.reassembly.content(frame.tenure, frame.attempt, frame.sequence) {
                    Ok(Verdict::Take) => (self.take(&mut inner, at, content), true),
                    Ok(Verdict::Drop) => (None, false),
                    Err(fault) => {
                        inner.end = Some(End::Failed(Refusal::from(fault).into()));
                        (Some(Cancelled::AnswerBroken), true)
                    }
                }
            }
            FrameBody::Terminal(terminal) => {
                let end = self.end(&inner, frame.attempt, frame.sequence, terminal);
                if self.stream && matches!(end, End::Completed(_)) {
                    self.metrics.waiting_bytes(sse::DONE.len());
                    inner.out.extend_from_slice(sse::DONE);
                }
                inner.end = Some(end);
                (None, true)
            }
        };
        let waker = if wake { inner.waker.take() } else { None };
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        cancel
    }

    /// Writes the events of the next content frame, if there is room for them.
    fn take(&self, inner: &mut Inner, at: Position, content: Content) -> Option<Cancelled> {
        let waiting = inner.out.len();
        let bytes = content.events.iter().map(|event| event.len() + sse::OVERHEAD_BYTES).sum::<usize>();
        let crowded = self.metrics.bytes_waiting() > self.bounds.all_bytes && waiting > self.bounds.fair_bytes;
        // A frame that alone is larger than the bound is not the client's fault; the record's bound holds for it.
        if waiting > 0 && (crowded || waiting + bytes > self.bounds.slot_bytes) {
            inner.end = Some(End::Failed(Refusal::ClientTooSlow { bytes: waiting }.into()));
            return Some(Cancelled::ClientTooSlow);
        }
        inner.out.reserve(bytes);
        for (index, event) in content.events.iter().enumerate() {
            sse::event(&mut inner.out, at, index, event);
        }
        self.metrics.waiting_bytes(inner.out.len() - waiting);
        if !inner.begun {
            inner.begun = true;
            inner.head = content.head;
        }
        None
    }

    fn end(&self, inner: &Inner, attempt: u32, sequence: u32, terminal: Box<Terminal>) -> End {
        if terminal.outcome != Outcome::Completed {
            return End::Failed(error::of_terminal(*terminal));
        }
        let fault = if self.stream {
            inner.reassembly.terminal(attempt, sequence, terminal.outcome).err()
        } else {
            terminal.body.is_none().then_some(Fault::NoBody)
        };
        match fault {
            Some(fault) => End::Failed(Refusal::from(fault).into()),
            None => End::Completed(terminal),
        }
    }

    /// The request is acknowledged.
    pub fn acknowledged(&self) {
        self.lock().acknowledged = true;
    }

    pub fn is_acknowledged(&self) -> bool {
        self.lock().acknowledged
    }

    /// Ends the request from this side. False when it has ended already.
    pub fn fail(&self, refusal: Refusal) -> bool {
        let mut inner = self.lock();
        if inner.end.is_some() {
            return false;
        }
        inner.end = Some(End::Failed(refusal.into()));
        let waker = inner.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// The connection is gone. True when the request was still under way, and has to be cancelled.
    pub fn abandon(&self) -> bool {
        let mut inner = self.lock();
        self.metrics.left_bytes(inner.out.len());
        inner.out = BytesMut::new();
        let open = inner.end.is_none();
        if open {
            inner.end = Some(End::Failed(Refusal::Stopping.into()));
        }
        open
    }

    /// What the response begins with, once that is known.
    pub fn poll_beginning(&self, cx: &Context<'_>) -> Poll<Beginning> {
        let mut inner = self.lock();
        if inner.begun {
            return Poll::Ready(Beginning::Stream(inner.head.take()));
        }
        match &mut inner.end {
            None => {}
            Some(End::Failed(error)) => return Poll::Ready(Beginning::Failed(error.clone())),
            Some(End::Completed(terminal)) if self.stream => {
                return Poll::Ready(Beginning::Stream(terminal.head.take()));
            }
            Some(End::Completed(terminal)) => return Poll::Ready(Beginning::Whole(terminal.clone())),
        }
        inner.wait(cx);
        Poll::Pending
    }

    /// The next bytes of the stream. After [`Piece::Error`] and [`Piece::End`] nothing follows.
    pub fn poll_piece(&self, cx: &Context<'_>) -> Poll<Piece> {
        let mut inner = self.lock();
        if !inner.out.is_empty() {
            let bytes = inner.out.len().min(PIECE_BYTES_MAX);
            self.metrics.left_bytes(bytes);
            return Poll::Ready(Piece::Bytes(inner.out.split_to(bytes).freeze()));
        }
        match &inner.end {
            Some(End::Completed(_)) => Poll::Ready(Piece::End),
            Some(End::Failed(error)) => Poll::Ready(Piece::Error(error.clone())),
            None => {
                inner.wait(cx);
                Poll::Pending
            }
        }
    }
}

impl Inner {
    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facade::fixtures::{completed, content, failed, head, whole};

    const AT: Position = Position { partition: 3, offset: 10 };

    fn slot(stream: bool, slot_bytes: usize) -> Slot {
        let key = RequestKey { organization: "acme".parse().unwrap(), request: "r1".parse().unwrap() };
        let bounds = Bounds { slot_bytes, all_bytes: 1 << 20, fair_bytes: 1 };
        Slot::new(key, stream, bounds, Metrics::unregistered())
    }

    fn beginning(slot: &Slot) -> Poll<Beginning> {
        slot.poll_beginning(&Context::from_waker(Waker::noop()))
    }

    /// Everything that a client would read now, an error as its event.
    fn read(slot: &Slot) -> String {
        let mut text = Vec::new();
        loop {
            match slot.poll_piece(&Context::from_waker(Waker::noop())) {
                Poll::Ready(Piece::Bytes(bytes)) => text.extend_from_slice(&bytes),
                Poll::Ready(Piece::Error(error)) => {
                    text.extend_from_slice(&error::event(&error));
                    break;
                }
                Poll::Ready(Piece::End) | Poll::Pending => break,
            }
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_streamed_answer_is_these_bytes() {
        let slot = slot(true, 1 << 20);
        assert!(beginning(&slot).is_pending());
        assert_eq!(slot.frame(AT, content(1, 0, &["{\"a\":1}", "{\"b\":2}"])), None);
        assert_eq!(beginning(&slot), Poll::Ready(Beginning::Stream(Some(head()))));
        assert_eq!(slot.frame(Position { offset: 12, ..AT }, content(1, 1, &["{\"c\":3}"])), None);
        assert_eq!(slot.frame(Position { offset: 15, ..AT }, completed(1, 2)), None);
        assert_eq!(
            read(&slot),
            "id: 3-10-0\ndata: {\"a\":1}\n\nid: 3-10-1\ndata: {\"b\":2}\n\nid: 3-12-0\ndata: {\"c\":3}\n\ndata: [DONE]\n\n"
        );
        assert_eq!(slot.poll_piece(&Context::from_waker(Waker::noop())), Poll::Ready(Piece::End));
        assert!(!slot.abandon(), "a request that has ended is not cancelled");
    }

    #[test]
    fn a_frame_that_comes_twice_is_written_once() {
        let slot = slot(true, 1 << 20);
        for _ in 0..2 {
            assert_eq!(slot.frame(AT, content(1, 0, &["{}"])), None);
        }
        assert_eq!(slot.frame(AT, completed(1, 1)), None);
        assert_eq!(slot.frame(AT, completed(1, 1)), None);
        assert_eq!(read(&slot), "id: 3-10-0\ndata: {}\n\ndata: [DONE]\n\n");
    }

    #[test]
    fn what_breaks_an_answer_ends_it_with_an_error_and_cancels() {
        let broken = Some(Cancelled::AnswerBroken);
        let table = [
            (content(1, 2, &["{}"]), broken, "answer_incomplete"),
            (content(2, 0, &["{}"]), broken, "answer_interrupted"),
            // After a terminal there is nothing left to cancel.
            (completed(1, 7), None, "answer_incomplete"),
            (completed(2, 1), None, "answer_interrupted"),
            (failed(1, 1, 502, "upstream_cut"), None, "upstream_cut"),
        ];
        for (frame, cancel, code) in table {
            let slot = slot(true, 1 << 20);
            slot.frame(AT, content(1, 0, &["{}"]));
            assert_eq!(slot.frame(AT, frame), cancel, "{code}");
            let text = read(&slot);
            assert!(text.starts_with("id: 3-10-0\ndata: {}\n\ndata: {\"error\":{"), "{text}");
            assert!(text.contains(&format!("\"code\":\"{code}\"")) && !text.contains("[DONE]"), "{text}");
        }
    }

    #[test]
    fn an_error_before_content_is_no_stream() {
        let slot = slot(true, 1 << 20);
        slot.frame(AT, failed(0, 0, 404, "model_not_found"));
        let Poll::Ready(Beginning::Failed(error)) = beginning(&slot) else { panic!("no error") };
        assert_eq!((error.status, error.code.as_str()), (404, "model_not_found"));
    }

    #[test]
    fn a_completed_stream_whose_content_never_came_is_an_error() {
        let slot = slot(true, 1 << 20);
        slot.frame(AT, completed(1, 3));
        assert!(matches!(beginning(&slot), Poll::Ready(Beginning::Failed(_))));
    }

    #[test]
    fn an_empty_stream_is_only_done() {
        let slot = slot(true, 1 << 20);
        slot.frame(AT, completed(1, 0));
        assert_eq!(beginning(&slot), Poll::Ready(Beginning::Stream(Some(head()))));
        assert_eq!(read(&slot), "data: [DONE]\n\n");
    }

    #[test]
    fn a_whole_answer_is_its_terminal() {
        let slot = slot(false, 1 << 20);
        slot.frame(AT, content(1, 0, &["{}"]));
        assert!(beginning(&slot).is_pending());
        slot.frame(AT, whole("{\"id\":1}"));
        let Poll::Ready(Beginning::Whole(terminal)) = beginning(&slot) else { panic!("no answer") };
        assert_eq!(terminal.body.as_deref(), Some(b"{\"id\":1}".as_slice()));
    }

    #[test]
    fn a_whole_answer_without_a_body_is_an_error() {
        let slot = slot(false, 1 << 20);
        slot.frame(AT, completed(1, 0));
        let Poll::Ready(Beginning::Failed(error)) = beginning(&slot) else { panic!("no error") };
        assert_eq!((error.status, error.code.as_str()), (502, "answer_without_body"));
    }

    #[test]
    fn a_slow_client_keeps_its_prefix_and_gets_an_error() {
        let slot = slot(true, 200);
        let long = "x".repeat(100);
        assert_eq!(slot.frame(AT, content(1, 0, &[&long])), None);
        assert_eq!(slot.frame(AT, content(1, 1, &[&long])), Some(Cancelled::ClientTooSlow));
        assert_eq!(slot.frame(AT, content(1, 2, &[&long])), None);
        assert_eq!(slot.metrics.bytes_waiting(), 119);
        let text = read(&slot);
        assert!(text.contains(&long), "{text}");
        assert_eq!(text.matches("id: ").count(), 1);
        assert!(text.ends_with("\"code\":\"client_too_slow\"}}\n\n"), "{text}");
        assert_eq!(slot.metrics.bytes_waiting(), 0);
    }

    #[test]
    fn a_frame_larger_than_the_bound_passes_when_nothing_waits() {
        let slot = slot(true, 10);
        assert_eq!(slot.frame(AT, content(1, 0, &[&"x".repeat(100)])), None);
        slot.frame(AT, completed(1, 1));
        assert!(read(&slot).ends_with("data: [DONE]\n\n"));
    }

    #[test]
    fn a_connection_that_goes_away_leaves_an_open_request_to_cancel() {
        let slot = slot(true, 1 << 20);
        slot.frame(AT, content(1, 0, &["{}"]));
        assert!(slot.abandon());
        assert_eq!(slot.metrics.bytes_waiting(), 0);
        assert_eq!(slot.frame(AT, content(1, 1, &["{}"])), None);
        assert_eq!(slot.metrics.bytes_waiting(), 0);
    }
}
