//! One request that waits for its answer: frames go in, the connection takes bytes out.
//!
//! Frames come live, from the demultiplexer, or from the log, from the catch-up reader; neither ever waits for a client. A
//! slot holds a bounded number of bytes, ready to be written. A client for which more would have to wait is a laggard: its
//! slot drops what waits, keeps the position of the first event that the client has not begun, and is served from the log, a
//! portion whenever the client has taken everything, until no live frame has gone by that it has not read. The answer of
//! another request (a repeat's original, a stream that is gone on with) is read from the log to its end.

mod log;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::sync::Notify;

use super::error::{self, Refusal};
use super::metrics::Metrics;
use super::reassembly::{Fault, Reassembly, Verdict};
use super::sse::{self, EventId, Position};
use crate::domain::RequestKey;
use crate::records::Outcome;
use crate::records::responses::{ApiError, Content, Frame, FrameBody, Head, Original, Terminal};
pub use log::Need;
use log::{Appetite, Behind, Start};

/// Most bytes that a laggard is given at once, beside its first frame, so that clients who stand still keep little, and leave room to others.
const PORTION_BYTES_MAX: usize = 64 << 10;
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

/// What a frame leads to outside of its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// The answer is broken; the request is to be cancelled.
    Broken,
    /// The slot waits for the catch-up reader from now on.
    Lagging,
    /// The request was asked before: the catch-up reader has to find that one's answer.
    Repeats(Original),
    /// The slot needs nothing more of this sweep.
    Left,
}

/// Bounds on the bytes that wait for clients.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// For one client.
    pub slot_bytes: usize,
    /// For all of them; beyond it, who holds more than `fair_bytes` is too slow.
    pub all_bytes: usize,
    pub fair_bytes: usize,
    /// That leave a slot at once, so that what the connection holds of an answer is bounded too.
    pub piece_bytes: usize,
}

/// What all slots of a facade share.
pub struct Shared {
    pub bounds: Bounds,
    pub metrics: Metrics,
    /// Wakes the catch-up reader.
    pub hunger: Arc<Notify>,
}

/// What is asked of a slot at its beginning.
#[derive(Debug, Clone)]
pub struct Asked {
    pub key: RequestKey,
    pub stream: bool,
    /// A repeat is answered as the first one was.
    pub idempotent: bool,
    /// It is not cancelled at once when its client goes away.
    pub outlives_client: bool,
}

pub struct Slot {
    pub asked: Asked,
    shared: Arc<Shared>,
    inner: Mutex<Inner>,
}

/// Whose answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    /// The request's own, which is cancelled when it is given up.
    Asks,
    /// The one of an earlier, equal request.
    Repeats,
    /// Any request's of the organization.
    Reads,
}

/// The nonce that the frames carry.
#[derive(Debug)]
enum Nonce {
    /// That of the first frame of a call.
    Unknown,
    Is(Option<String>),
}

/// Where the frames come from.
#[derive(Debug)]
enum Feed {
    /// From the demultiplexer; what is before `next` was read from the log.
    Live {
        next: i64,
    },
    Log(Behind),
}

/// An event whose bytes wait, or the rest of them.
#[derive(Debug)]
struct Waiting {
    offset: i64,
    sequence: u32,
    index: usize,
    bytes: usize,
    left: usize,
}

struct Inner {
    relation: Relation,
    nonce: Nonce,
    partition: i32,
    reassembly: Reassembly,
    /// What waits for the connection: events, and the end of the stream.
    out: BytesMut,
    events: VecDeque<Waiting>,
    feed: Feed,
    /// The first content frame has come.
    begun: bool,
    head: Option<Head>,
    /// The request is acknowledged on `requests`.
    acknowledged: bool,
    /// The terminal went by while the slot was behind.
    settled: bool,
    /// Something came from the log, or went to the client, since that was last asked.
    progressed: bool,
    end: Option<End>,
    /// The end is an error, and the answer of an `Idempotency-Key`: who repeats the request gets it again.
    is_final: bool,
    waker: Option<Waker>,
}

impl Slot {
    /// For a request whose answer comes live, on this partition and with this nonce.
    pub fn asking(asked: Asked, partition: i32, nonce: String, shared: Arc<Shared>) -> Self {
        let inner = Inner::new(Relation::Asks, Nonce::Is(Some(nonce)), partition, Feed::Live { next: 0 });
        Self { asked, shared, inner: Mutex::new(inner) }
    }

    /// For the stream of a request that was asked elsewhere or before, from this event on.
    pub fn reading(key: RequestKey, after: EventId, shared: Arc<Shared>) -> Self {
        let EventId { at: Position { partition, offset }, index } = after;
        let feed = Feed::Log(Behind::new(Start::After { offset, index }, Appetite::Hungry, None));
        let inner = Inner::new(Relation::Reads, Nonce::Unknown, partition, feed);
        let asked = Asked { key, stream: true, idempotent: false, outlives_client: true };
        Self { asked, shared, inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frame as it was written.
    pub fn live(&self, offset: i64, frame: &Frame) -> Step {
        let mut inner = self.lock();
        let Inner { feed, settled, end: None, .. } = &mut *inner else { return Step::Nothing };
        match feed {
            Feed::Live { next } if offset < *next => return Step::Nothing,
            Feed::Live { .. } => {}
            Feed::Log(behind) => {
                if let Some(last) = &mut behind.live {
                    *last = offset;
                    *settled |= matches!(frame.body, FrameBody::Terminal(_));
                }
                return Step::Nothing;
            }
        }
        if let FrameBody::Content(content) = &frame.body
            && self.asked.stream
            && !self.has_room(&inner, content)
        {
            self.fall_behind(&mut inner, offset);
            return Step::Lagging;
        }
        self.take(inner, offset, frame)
    }

    fn has_room(&self, inner: &Inner, content: &Content) -> bool {
        let (bounds, waiting) = (&self.shared.bounds, inner.out.len());
        let most = match inner.feed {
            Feed::Live { .. } => bounds.slot_bytes,
            Feed::Log(_) => bounds.slot_bytes.min(PORTION_BYTES_MAX),
        };
        // A frame that alone is larger than the bound is not the client's fault; the record's bound holds for it.
        if waiting == 0 {
            return true;
        }
        let bytes = content.events.iter().map(|event| event.len() + sse::OVERHEAD_BYTES).sum::<usize>();
        let crowded = self.shared.metrics.bytes_waiting() > bounds.all_bytes && waiting > bounds.fair_bytes;
        !crowded && waiting + bytes <= most
    }

    /// The client is a laggard now: what it has not taken is read again from the log. Only the rest of an event that it has
    /// begun to take stays, so that it always waits between two events.
    fn fall_behind(&self, inner: &mut Inner, offset: i64) {
        let (mut from, mut first, mut kept) = (offset, 0, 0);
        if let Some(event) = inner.events.front() {
            (from, first) = (event.offset, event.index);
            if event.left < event.bytes {
                (first, kept) = (event.index + 1, event.left);
            }
            inner.reassembly.go_back(event.sequence);
        }
        self.shared.metrics.left_bytes(inner.out.len() - kept);
        self.shared.metrics.lagged();
        // What is kept is copied, so that the large buffers go.
        inner.out = BytesMut::from(&inner.out[..kept]);
        inner.events = std::mem::take(&mut inner.events).into_iter().take(usize::from(kept > 0)).collect();
        inner.progressed = true;
        let behind = Behind::new(Start::At(from), Appetite::Full, Some(offset));
        inner.feed = Feed::Log(Behind { first, ..behind });
    }

    fn take(&self, inner: MutexGuard<'_, Inner>, offset: i64, frame: &Frame) -> Step {
        self.taken(inner, offset, frame).map_or_else(|step| step, |_| Step::Nothing)
    }

    /// Takes a frame for which there is room; an error when there is something to do.
    fn taken<'a>(
        &self,
        mut inner: MutexGuard<'a, Inner>,
        offset: i64,
        frame: &Frame,
    ) -> Result<MutexGuard<'a, Inner>, Step> {
        match &frame.body {
            FrameBody::Content(_) if !self.asked.stream => {}
            FrameBody::Content(content) => {
                match inner.reassembly.content(frame.tenure, frame.attempt, frame.sequence) {
                    Ok(Verdict::Take) => {
                        let first = inner.first();
                        self.write(&mut inner, offset, frame.sequence, content, first);
                        inner.wake();
                    }
                    Ok(Verdict::Drop) => {}
                    Err(fault) => {
                        let cancels = inner.cancels();
                        let refusal = inner.refusal_of(fault);
                        inner.fail(refusal);
                        return Err(if cancels { Step::Broken } else { Step::Left });
                    }
                }
            }
            FrameBody::Terminal(terminal) => {
                if let Some(original) = terminal.original.filter(|_| self.asked.idempotent && inner.cancels()) {
                    inner.repeat(original);
                    return Err(Step::Repeats(original));
                }
                let end = self.end(&inner, frame, terminal);
                inner.is_final = matches!(end, End::Failed(_)) && self.is_kept(frame);
                if self.asked.stream && matches!(end, End::Completed(_)) {
                    self.shared.metrics.waiting_bytes(sse::DONE.len());
                    inner.out.extend_from_slice(sse::DONE);
                }
                inner.end = Some(end);
                inner.wake();
            }
        }
        Ok(inner)
    }

    /// Writes the events of a content frame from `first` on.
    fn write(&self, inner: &mut Inner, offset: i64, sequence: u32, content: &Content, first: usize) {
        let (at, before) = (Position { partition: inner.partition, offset }, inner.out.len());
        inner.out.reserve(content.events.iter().skip(first).map(|event| event.len() + sse::OVERHEAD_BYTES).sum());
        for (index, event) in content.events.iter().enumerate().skip(first) {
            let begin = inner.out.len();
            sse::event(&mut inner.out, at, index, event);
            let bytes = inner.out.len() - begin;
            inner.events.push_back(Waiting { offset, sequence, index, bytes, left: bytes });
        }
        self.shared.metrics.waiting_bytes(inner.out.len() - before);
        if !inner.begun {
            inner.begun = true;
            inner.head.clone_from(&content.head);
        }
    }

    fn end(&self, inner: &Inner, frame: &Frame, terminal: &Terminal) -> End {
        if terminal.outcome != Outcome::Completed {
            return End::Failed(error::of_terminal(terminal.clone(), self.asked.idempotent, self.is_kept(frame)));
        }
        let fault = if self.asked.stream {
            inner.reassembly.terminal(frame.attempt, frame.sequence, terminal.outcome).err()
        } else {
            terminal.body.is_none().then_some(Fault::NoBody)
        };
        match fault {
            Some(fault) => End::Failed(inner.refusal_of(fault).into()),
            None => End::Completed(Box::new(terminal.clone())),
        }
    }

    /// Whether the terminal is that of every repeat, too: a request that was refused before any call is tried anew.
    fn is_kept(&self, terminal: &Frame) -> bool {
        self.asked.idempotent && terminal.attempt > 0
    }

    /// The answer is an error that a repeat would get again.
    pub fn is_final(&self) -> bool {
        self.lock().is_final
    }

    /// The request is acknowledged.
    pub fn acknowledged(&self) {
        self.lock().acknowledged = true;
    }

    pub fn is_acknowledged(&self) -> bool {
        self.lock().acknowledged
    }

    /// The answer is one that was given before.
    pub fn is_replay(&self) -> bool {
        self.lock().relation == Relation::Repeats
    }

    /// The partition of `responses` on which the answer is.
    pub fn partition(&self) -> i32 {
        self.lock().partition
    }

    /// Ends the request from this side. True when it has to be cancelled.
    pub fn fail(&self, refusal: Refusal) -> bool {
        let mut inner = self.lock();
        let cancels = inner.cancels();
        inner.fail(refusal);
        cancels
    }

    /// Whether a slot whose time is over may go on: it is served from the log, and got on since that was last asked.
    pub fn goes_on(&self) -> bool {
        let mut inner = self.lock();
        let progressed = std::mem::take(&mut inner.progressed);
        matches!(inner.feed, Feed::Log(_)) && inner.end.is_none() && (progressed || !inner.out.is_empty())
    }

    /// The connection is gone. True when the request was still under way, and has to be cancelled.
    pub fn abandon(&self) -> bool {
        let mut inner = self.lock();
        self.shared.metrics.left_bytes(inner.out.len());
        (inner.out, inner.events) = (BytesMut::new(), VecDeque::new());
        let cancels = inner.cancels();
        inner.fail(Refusal::Stopping);
        cancels
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
            Some(End::Completed(terminal)) if self.asked.stream => {
                return Poll::Ready(Beginning::Stream(terminal.head.take()));
            }
            Some(End::Completed(terminal)) => return Poll::Ready(Beginning::Whole(terminal.clone())),
        }
        self.wait(&mut inner, cx);
        Poll::Pending
    }

    /// The next bytes of the stream. After [`Piece::Error`] and [`Piece::End`] nothing follows.
    pub fn poll_piece(&self, cx: &Context<'_>) -> Poll<Piece> {
        let mut inner = self.lock();
        if !inner.out.is_empty() {
            let bytes = inner.piece(self.shared.bounds.piece_bytes);
            inner.progressed = true;
            self.shared.metrics.left_bytes(bytes.len());
            return Poll::Ready(Piece::Bytes(bytes));
        }
        match &inner.end {
            Some(End::Completed(_)) => Poll::Ready(Piece::End),
            Some(End::Failed(error)) => Poll::Ready(Piece::Error(error.clone())),
            None => {
                self.wait(&mut inner, cx);
                Poll::Pending
            }
        }
    }

    fn wait(&self, inner: &mut Inner, cx: &Context<'_>) {
        match &mut inner.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => inner.waker = Some(cx.waker().clone()),
        }
        if let Feed::Log(behind) = &mut inner.feed
            && behind.appetite == Appetite::Full
        {
            behind.appetite = Appetite::Hungry;
            self.shared.hunger.notify_one();
        }
    }
}

impl Inner {
    fn new(relation: Relation, nonce: Nonce, partition: i32, feed: Feed) -> Self {
        Self {
            relation,
            nonce,
            partition,
            reassembly: Reassembly::default(),
            out: BytesMut::new(),
            events: VecDeque::new(),
            feed,
            begun: false,
            head: None,
            acknowledged: false,
            settled: false,
            progressed: false,
            end: None,
            is_final: false,
            waker: None,
        }
    }

    /// Whether giving up means to cancel: the request is this slot's own and not known to be over.
    fn cancels(&self) -> bool {
        self.relation == Relation::Asks && self.end.is_none() && !self.settled
    }

    /// The answer is that of the original; nothing of one's own was written yet.
    fn repeat(&mut self, original: Original) {
        let Original { partition, since: at, open } = original;
        self.relation = Relation::Repeats;
        self.nonce = Nonce::Unknown;
        self.partition = partition;
        let start = Start::Since { at, settled: !open };
        self.feed = Feed::Log(Behind::new(start, Appetite::Hungry, None));
    }

    fn refusal_of(&self, fault: Fault) -> Refusal {
        match fault {
            // The beginning of a repeat's original is what expires first.
            Fault::Gap { expected: 0, .. } if self.relation == Relation::Repeats => Refusal::AnswerExpired,
            fault => Refusal::from(fault),
        }
    }

    fn fail(&mut self, refusal: Refusal) {
        if self.end.is_none() {
            self.end = Some(End::Failed(refusal.into()));
            self.wake();
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The first event that the client has not begun, of the frame with which it goes on.
    fn first(&mut self) -> usize {
        match &mut self.feed {
            Feed::Log(behind) => std::mem::take(&mut behind.first),
            Feed::Live { .. } => 0,
        }
    }

    /// Takes bytes out. A large buffer is copied from, so that what the connection holds does not keep all of it.
    fn piece(&mut self, most: usize) -> Bytes {
        let bytes = self.out.len().min(most);
        let piece = if bytes == self.out.len() && self.out.capacity() <= 2 * most {
            std::mem::take(&mut self.out).freeze()
        } else {
            let piece = Bytes::copy_from_slice(&self.out[..bytes]);
            self.out.advance(bytes);
            if self.out.is_empty() {
                self.out = BytesMut::new();
            }
            piece
        };
        let mut gone = bytes;
        while let Some(event) = self.events.front_mut() {
            if event.left > gone {
                event.left -= gone;
                break;
            }
            gone -= event.left;
            self.events.pop_front();
        }
        piece
    }
}
