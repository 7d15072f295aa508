//! The half of a slot that is served from the log: what it needs of it, what it takes, and when it is live again.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::{Feed, Inner, Nonce, Slot, Step};
use crate::domain::Timestamp;
use crate::facade::error::Refusal;
use crate::facade::reassembly::Reassembly;
use crate::records::responses::{Frame, FrameBody};

/// How long after the end of the log the terminal of a settled request may still come.
const TERMINAL_GRACE: Duration = Duration::from_secs(5);

/// What a slot needs of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It is live, or over.
    Nothing,
    /// Its client has not taken yet what it was given.
    Later,
    /// It takes part in the sweep and has read everything before this offset.
    Fed(i64),
    /// It waits for a sweep that begins here at the latest.
    From(i64),
}

/// A slot that is served from the log.
#[derive(Debug)]
pub(super) struct Behind {
    pub(super) start: Start,
    pub(super) appetite: Appetite,
    /// The first event that is wanted of the first frame.
    pub(super) first: usize,
    /// The last live frame that went by; `None` where none can come.
    pub(super) live: Option<i64>,
    /// Of a settled request: where the log ended, and when everything before was read.
    pub(super) ends: Option<(i64, Option<Instant>)>,
}

#[derive(Debug)]
pub(super) enum Start {
    /// Everything before this offset is read.
    At(i64),
    /// The frame at this offset has to be the request's; what comes after its event with this index is the client's.
    After { offset: i64, index: usize },
    /// Not older than this; the catch-up reader has to find out where that is.
    Since { at: Timestamp, settled: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Appetite {
    /// The client has not taken everything.
    Full,
    /// It has.
    Hungry,
    /// It takes part in the sweep.
    Fed,
}

impl Behind {
    pub(super) fn new(start: Start, appetite: Appetite, live: Option<i64>) -> Self {
        Self { start, appetite, first: 0, live, ends: None }
    }
}

impl Slot {
    /// Takes a frame from the log, if the slot takes part in the sweep.
    pub fn logged(&self, offset: i64, frame: &Frame) -> Step {
        let mut inner = self.lock();
        if inner.end.is_some() || !self.is_own(&inner, frame) {
            return Step::Nothing;
        }
        let has_room = match &frame.body {
            FrameBody::Content(content) => !self.asked.stream || self.has_room(&inner, content),
            FrameBody::Terminal(_) => true,
        };
        let Feed::Log(behind) = &mut inner.feed else { return Step::Nothing };
        match behind.start {
            Start::At(from) if offset >= from && behind.appetite == Appetite::Fed => {}
            Start::At(_) | Start::After { .. } | Start::Since { .. } => return Step::Nothing,
        }
        if !has_room {
            (behind.start, behind.appetite) = (Start::At(offset), Appetite::Full);
            return Step::Left;
        }
        behind.start = Start::At(offset + 1);
        let caught_up = behind.live.is_some_and(|last| last <= offset);
        inner.progressed = true;
        if let Nonce::Unknown = inner.nonce {
            inner.nonce = Nonce::Is(frame.nonce.clone());
        }
        let ends = matches!(frame.body, FrameBody::Terminal(_));
        let mut inner = match self.taken(inner, offset, frame) {
            Ok(inner) => inner,
            Err(step) => return step,
        };
        if caught_up {
            inner.feed = Feed::Live { next: offset + 1 };
        }
        if caught_up || ends { Step::Left } else { Step::Nothing }
    }

    /// The record at the offset of the event after which the client goes on, if it is a frame.
    pub fn sought(&self, offset: i64, frame: Option<&Frame>) {
        let mut inner = self.lock();
        let Feed::Log(Behind { start: Start::After { index, .. }, .. }) = &inner.feed else { return };
        let first = index + 1;
        if inner.end.is_some() {
            return;
        }
        let own = frame.filter(|frame| self.is_own(&inner, frame));
        let content = own.and_then(|frame| match &frame.body {
            FrameBody::Content(content) if first <= content.events.len() => Some((frame, content)),
            FrameBody::Content(_) | FrameBody::Terminal(_) => None,
        });
        let Some((frame, content)) = content else { return inner.fail(Refusal::UnknownEvent) };
        inner.nonce = Nonce::Is(frame.nonce.clone());
        inner.reassembly = Reassembly::after(frame.tenure, frame.attempt, frame.sequence);
        self.write(&mut inner, offset, frame.sequence, content, first);
        inner.feed = Feed::Log(Behind::new(Start::At(offset + 1), Appetite::Fed, None));
        inner.progressed = true;
        inner.wake();
    }

    /// Whether a frame of the log belongs to the answer. A repeat's refusal carries the same id, but is of no call.
    fn is_own(&self, inner: &Inner, frame: &Frame) -> bool {
        let key = &self.asked.key;
        let of_call = match &inner.nonce {
            Nonce::Unknown => frame.attempt > 0,
            Nonce::Is(nonce) => *nonce == frame.nonce,
        };
        of_call && key.request == frame.request_id && key.organization == frame.organization
    }

    /// What the slot needs of a log of which it was offered everything before `position`, if it takes part.
    pub fn need(&self, position: Option<i64>) -> Need {
        let mut inner = self.lock();
        let Inner { feed: Feed::Log(behind), end: None, .. } = &mut *inner else { return Need::Nothing };
        match (&mut behind.start, behind.appetite) {
            (Start::Since { .. }, _) | (_, Appetite::Full) => Need::Later,
            (Start::After { offset, .. }, _) => Need::From(*offset),
            (Start::At(from), Appetite::Fed) => {
                *from = position.map_or(*from, |position| position.max(*from));
                let from = *from;
                let is_over = behind
                    .ends
                    .as_mut()
                    .filter(|(end, _)| from >= *end)
                    .is_some_and(|(_, since)| since.get_or_insert_with(Instant::now).elapsed() > TERMINAL_GRACE);
                if is_over {
                    inner.fail(Refusal::AnswerExpired);
                    return Need::Nothing;
                }
                Need::Fed(from)
            }
            (Start::At(from), Appetite::Hungry) => Need::From(*from),
        }
    }

    /// A sweep begins at `start`, or goes on from there: a hungry slot that misses nothing by it takes part.
    pub fn join(&self, start: i64) {
        if let Feed::Log(behind) = &mut self.lock().feed
            && behind.appetite == Appetite::Hungry
            && matches!(behind.start, Start::At(from) if from >= start)
        {
            behind.appetite = Appetite::Fed;
        }
    }

    /// The offset of the event after which the client goes on, as long as that is to be found.
    pub fn sought_at(&self) -> Option<i64> {
        match &*self.lock() {
            Inner { feed: Feed::Log(Behind { start: Start::After { offset, .. }, .. }), end: None, .. } => {
                Some(*offset)
            }
            _ => None,
        }
    }

    /// Since when the answer is looked for, where that is still to be found.
    pub fn since(&self) -> Option<Timestamp> {
        match &self.lock().feed {
            Feed::Log(Behind { start: Start::Since { at, .. }, .. }) => Some(*at),
            Feed::Log(_) | Feed::Live { .. } => None,
        }
    }

    /// The log has the offsets from `log.start` to `log.end`, and `since` is where the answer can begin at the earliest.
    pub fn located(&self, log: Range<i64>, since: i64) {
        let mut inner = self.lock();
        let Feed::Log(behind) = &mut inner.feed else { return };
        match behind.start {
            Start::Since { settled, .. } => {
                behind.start = Start::At(since);
                behind.ends = settled.then_some((log.end, None));
            }
            Start::After { offset, .. } if offset >= log.end => inner.fail(Refusal::UnknownEvent),
            Start::After { .. } | Start::At(_) => {}
        }
        drop(inner);
        self.cut(log.start);
    }

    /// What is before this offset is no longer kept: who still needs it cannot go on.
    pub fn cut(&self, first: i64) {
        let mut inner = self.lock();
        let Feed::Log(behind) = &inner.feed else { return };
        match behind.start {
            Start::At(from) | Start::After { offset: from, .. } if from < first => inner.fail(Refusal::AnswerExpired),
            Start::At(_) | Start::After { .. } | Start::Since { .. } => {}
        }
    }
}
