//! Frames held against the journal: I2 (an effective commit for each), I3 (an attempt for each), I8 (gap-free, whole).
//!
//! The journal is read first and leaves a digest of every request whose frames may still be on `responses`; then the
//! frames are taken in the order of their partition. A frame of a tenure that was superseded is no violation as long as
//! it is content: its asker has been told otherwise. A terminal must say what an effective settlement or refusal says; the
//! same terminal may come again.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use super::{Check, Finding, Findings, Place};
use crate::domain::{RequestKey, Timestamp};
use crate::processor::memory::TERMINAL_WINDOW;
use crate::records::Outcome;
use crate::records::responses::{Frame, FrameBody, Terminal};

/// How far the clocks of brokers and owners may stand apart where times of both are compared.
pub const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// How long after its settlement a terminal may be published again while a partition is owned: a takeover repeats the last
/// minutes of its clock.
pub const REPUBLISHED_AFTER_MAX: Duration = Duration::from_secs(600);

/// Which requests are remembered for their frames.
#[derive(Debug, Clone)]
pub struct Window {
    /// No frame of a request that was settled earlier is on `responses` any more.
    pub since: Timestamp,
    /// Of so many parts of the requests, this one.
    pub part: u64,
    pub parts: u64,
    /// The same for all parts; with a key of its own, so that nobody can choose ids that collide.
    pub hasher: RandomState,
}

/// From when on a partition of `responses` has all frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retained {
    All,
    /// What came before is not there, or is not in the range.
    Since(Timestamp),
}

/// What the journal says of a request, as far as its frames are concerned.
#[derive(Debug, Clone, PartialEq)]
pub struct Life {
    /// `None` when the admission is older than what was read.
    pub reply_partition: Option<i32>,
    pub started_at: Timestamp,
    /// Attempts that were started.
    pub attempts: u32,
    pub settled: Option<Settled>,
}

/// An effective settlement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settled {
    pub tenure: i64,
    pub outcome: Outcome,
    /// Whether it was the call's own owner who counted the frames.
    pub is_counted: bool,
    pub content_frames: u32,
}

/// The requests of one partition of the journal. At about 150 bytes each, however long their ids are.
#[derive(Debug)]
pub struct Requests {
    window: Window,
    known: HashMap<u64, Known>,
    pub(super) begins: Begins,
}

/// Where the reading of a partition of the journal began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    AtTheBeginning,
    /// Where a tenure did: the first that was read, and when it began. Requests that were settled earlier are not known.
    AtTenure(Option<(i64, Timestamp)>),
}

/// What is known under one request id.
#[derive(Debug, Default)]
struct Known {
    /// It was refused at least once, or was a duplicate.
    refused: bool,
    /// Nearly always one; an id may be used again once its request is settled.
    lives: Vec<(Life, Reading)>,
}

/// How far the frames of a request have been read.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    attempt: u32,
    tenure: i64,
    /// The sequence of the next content frame.
    next: u32,
    /// Of the content of the last one.
    digest: u64,
    /// The tenure that published the terminal.
    ended: Option<i64>,
}

/// What is wrong with a frame.
type Wrong = (Check, String);

impl Requests {
    pub fn new(window: Window, begins: Begins) -> Self {
        Self { window, known: HashMap::new(), begins }
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Remembers a request that was settled then, or that is open at the end.
    pub(super) fn lived(&mut self, key: &RequestKey, life: Life, at: Timestamp) {
        if let Some(known) = self.entry(key, at) {
            known.lives.push((life, Reading::default()));
        }
    }

    /// Remembers that a request was refused then.
    pub(super) fn refused(&mut self, key: &RequestKey, at: Timestamp) {
        if let Some(known) = self.entry(key, at) {
            known.refused = true;
        }
    }

    fn entry(&mut self, key: &RequestKey, at: Timestamp) -> Option<&mut Known> {
        let hash = self.window.hasher.hash_one(key);
        let wanted = at >= self.window.since && hash % self.window.parts == self.window.part;
        wanted.then(|| self.known.entry(hash).or_default())
    }

    /// Takes the next frame of its partition; says whether there was something to hold it against.
    pub fn take(&mut self, place: Place, frame: &Frame, retained: Retained, findings: &mut Findings) -> bool {
        let key = RequestKey { organization: frame.organization.clone(), request: frame.request_id.clone() };
        let hash = self.window.hasher.hash_one(&key);
        if hash % self.window.parts != self.window.part || !(self.known.contains_key(&hash) || self.is_covered(frame)) {
            return false;
        }
        findings.looked_at(Check::I2);
        findings.looked_at(Check::I8);
        let checked = match (&frame.body, self.known.get_mut(&hash)) {
            (FrameBody::Content(content), Some(known)) => {
                findings.looked_at(Check::I3);
                known.content(place.partition, frame, self.window.hasher.hash_one(&content.events), retained)
            }
            (FrameBody::Terminal(terminal), Some(known)) => known.terminal(place.partition, frame, terminal, retained),
            (FrameBody::Content(_), None) => Err((Check::I2, "content of a request that was never admitted".into())),
            (FrameBody::Terminal(_), None) => {
                Err((Check::I2, "terminal of a request that was neither admitted nor refused".into()))
            }
        };
        if let Err((check, what)) = checked {
            findings.violated(check, || Finding { place, request: Some(key), what });
        }
        true
    }

    /// Whether the request of a frame would be known if there was one. A terminal may have been published again, which
    /// carries the partition's time: that stands still while nobody owns it, so its settlement may be older than anything
    /// that is remembered.
    fn is_covered(&self, frame: &Frame) -> bool {
        let first = match self.begins {
            Begins::AtTheBeginning => None,
            Begins::AtTenure(Some((first, since))) if frame.tenure >= first => Some(since),
            Begins::AtTenure(_) => return false,
        };
        match frame.body {
            FrameBody::Content(_) => true,
            FrameBody::Terminal(_) => {
                let is_of_the_range = first.is_none_or(|since| frame.at > since.plus(REPUBLISHED_AFTER_MAX));
                is_of_the_range && frame.at > self.window.since.plus(TERMINAL_WINDOW)
            }
        }
    }
}

impl Known {
    /// The lives whose asker listens there.
    fn heard_on(&mut self, partition: i32) -> impl Iterator<Item = &mut (Life, Reading)> {
        self.lives.iter_mut().filter(move |(life, _)| life.reply_partition.is_none_or(|reply| reply == partition))
    }

    fn content(&mut self, partition: i32, frame: &Frame, digest: u64, retained: Retained) -> Result<(), Wrong> {
        if self.lives.is_empty() {
            return Err((Check::I2, "content of a request that was refused".into()));
        }
        let mut heard: Vec<&mut (Life, Reading)> = self.heard_on(partition).collect();
        let at = heard.iter().position(|(_, reading)| reading.ended.is_none()).unwrap_or(heard.len().saturating_sub(1));
        match heard.get_mut(at) {
            None => Err((Check::I8, format!("content on partition {partition}, where its asker does not listen"))),
            Some((life, reading)) => reading.content(life, frame, digest, retained),
        }
    }

    fn terminal(
        &mut self,
        partition: i32,
        frame: &Frame,
        terminal: &Terminal,
        retained: Retained,
    ) -> Result<(), Wrong> {
        if frame.attempt == 0 && terminal.outcome == Outcome::Refused {
            let unfounded = || (Check::I2, "terminal of a refusal that no effective commit says".into());
            return if self.refused { Ok(()) } else { Err(unfounded()) };
        }
        let mut heard: Vec<&mut (Life, Reading)> = self.heard_on(partition).collect();
        let says = |life: &Life| life.settled.is_some_and(|settled| settled.is_said_by(life, frame, terminal));
        let matching =
            |ended: bool| move |(life, reading): &&mut (Life, Reading)| reading.ended.is_some() == ended && says(life);
        let Some(at) = heard.iter().position(|l| matching(false)(l)) else {
            let again = heard.iter().any(|l| matching(true)(l));
            return if again { Ok(()) } else { Err((Check::I2, unsettled(frame, terminal))) };
        };
        // What was read belongs to the first life without an end, also when retention took the ends of earlier ones.
        let read = heard.iter().find(|(_, reading)| reading.ended.is_none()).map(|(_, reading)| *reading);
        for (_, reading) in &mut heard[..=at] {
            reading.ended.get_or_insert(frame.tenure);
        }
        let life = &heard[at].0;
        whole(life, read.unwrap_or_default(), retained)
    }
}

impl Settled {
    /// Whether a terminal says the same. It may come from a later tenure than the settlement, never from an earlier one.
    fn is_said_by(&self, life: &Life, frame: &Frame, terminal: &Terminal) -> bool {
        self.outcome == terminal.outcome
            && self.content_frames == frame.sequence
            && self.tenure <= frame.tenure
            && life.attempts == frame.attempt
    }
}

fn unsettled(frame: &Frame, terminal: &Terminal) -> String {
    let (outcome, attempt, frames) = (terminal.outcome.as_str(), frame.attempt, frame.sequence);
    format!(
        "terminal says {outcome} after attempt {attempt} with {frames} content frames; no effective settlement does"
    )
}

/// Holds the content frames that were read against those that the settlement counts.
fn whole(life: &Life, read: Reading, retained: Retained) -> Result<(), Wrong> {
    let Some(settled) = life.settled else { return Ok(()) };
    let found = if read.attempt == life.attempts { read.next } else { 0 };
    let holds = match settled.outcome {
        // Nobody has counted what a former owner put out.
        _ if !settled.is_counted => true,
        // Its frames were acknowledged before it was settled.
        Outcome::Completed => found == settled.content_frames || (found == 0 && !retained.has_all_of(life)),
        // The asker sees an error after what has come; frames that Kafka did not take are among those counted.
        Outcome::Failed | Outcome::Cancelled | Outcome::Interrupted | Outcome::Refused | Outcome::Unknown => {
            found <= settled.content_frames
        }
    };
    let what = || format!("the settlement counts {} content frames, {found} are there", settled.content_frames);
    if holds { Ok(()) } else { Err((Check::I8, what())) }
}

impl Retained {
    /// Whether every frame of a request must be there.
    fn has_all_of(self, life: &Life) -> bool {
        match self {
            Self::All => true,
            Self::Since(since) => life.started_at > since.plus(CLOCK_SLACK),
        }
    }
}

impl Reading {
    /// Takes a content frame of this request.
    fn content(&mut self, life: &Life, frame: &Frame, digest: u64, retained: Retained) -> Result<(), Wrong> {
        let Frame { attempt, tenure, sequence, .. } = *frame;
        if attempt == 0 || attempt > life.attempts {
            return Err((Check::I3, format!("content of attempt {attempt}, which no effective commit started")));
        }
        if let Some(ended) = self.ended {
            let superseded = tenure < ended;
            let late = || (Check::I8, format!("content of attempt {attempt} after the terminal"));
            return if superseded { Ok(()) } else { Err(late()) };
        }
        if attempt < self.attempt {
            let superseded = tenure < self.tenure;
            let late = || (Check::I8, format!("content of attempt {attempt} after that of attempt {}", self.attempt));
            return if superseded { Ok(()) } else { Err(late()) };
        }
        if attempt > self.attempt {
            *self = Self { attempt, tenure, ..Self::default() };
        }
        let (expected, last) = (self.next, self.digest);
        if sequence < expected {
            let repeat = sequence + 1 == expected && digest == last;
            let twice = || (Check::I8, format!("sequence {sequence} of attempt {attempt} comes twice, and differs"));
            return if repeat { Ok(()) } else { Err(twice()) };
        }
        (self.next, self.digest) = (sequence.saturating_add(1), digest);
        // The beginning of an answer may be older than what is retained, its middle not.
        let gap = sequence > expected && (expected > 0 || retained.has_all_of(life));
        let missing =
            || (Check::I8, format!("sequence {sequence} of attempt {attempt} follows where {expected} should"));
        if gap { Err(missing()) } else { Ok(()) }
    }
}
