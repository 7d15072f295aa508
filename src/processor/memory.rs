//! What is remembered of requests that have ended: that they were (so that a repeat makes no second call), and for a
//! short while how (so that a new owner can publish their terminals again).
//!
//! Both are pure folds of the journal, bounded by time and number, and forget by the partition's clock alone: a rebuild
//! remembers exactly what the live state does.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::domain::{PicoUsd, RequestKey, Timestamp, TokenUsage};
use crate::records::Outcome;
use crate::records::responses::Original;

/// For how long a settled request's id is remembered, by the partition's clock.
pub const REPEAT_WINDOW: Duration = Duration::from_secs(15 * 60);
/// Settled requests whose ids a partition remembers at the most; the oldest are forgotten first.
pub const REPEATS_MAX: usize = 100_000;
/// For how long a terminal is published again when the owner changes.
pub const TERMINAL_WINDOW: Duration = Duration::from_secs(2 * 60);
/// Terminals of a partition that are published again at the most: the latest ones, and as many of requests that were not
/// admitted.
pub const TERMINALS_MAX: usize = 4_096;

/// A request that was settled before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// Where its frames are.
    pub reply_partition: i32,
    /// They are not older than this.
    pub received_at: Timestamp,
    fingerprint: Option<Digest>,
}

impl Before {
    /// Whether the body of that request is known to have been another one.
    pub fn differs_from(&self, fingerprint: Option<&str>) -> bool {
        matches!((self.fingerprint, fingerprint), (Some(before), Some(now)) if before != Digest::of(&[now]))
    }
}

/// The terminal of a settled request, without content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    pub key: RequestKey,
    pub at: Timestamp,
    pub reply_partition: i32,
    pub reply_nonce: Option<String>,
    pub attempt: u32,
    pub content_frames: u32,
    pub outcome: Outcome,
    pub status: u16,
    pub error_code: Option<String>,
    pub usage: Option<TokenUsage>,
    pub cost_pico_usd: Option<PicoUsd>,
    pub finish_reason: Option<String>,
    /// Of a repeat: where the first one's answer stands.
    pub original: Option<Original>,
}

/// 128 bits of SHA-256: what stands for an id, at a fixed small size. As text: 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Digest([u8; 16]);

impl Digest {
    fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        let mut short = [0; 16];
        short.copy_from_slice(&hash.finalize()[..16]);
        Self(short)
    }

    fn of_key(key: &RequestKey) -> Self {
        Self::of(&[key.organization.as_str(), key.request.as_str()])
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        hex::encode(digest.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, hex::FromHexError> {
        let mut short = [0; 16];
        hex::decode_to_slice(text, &mut short)?;
        Ok(Self(short))
    }
}

/// A settled request, as long as it is remembered. In a checkpoint it is a row: time, id, partition, since, fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Row", into = "Row")]
pub struct Settled {
    at: Timestamp,
    id: Digest,
    before: Before,
}

type Row = (Timestamp, Digest, i32, Timestamp, Option<Digest>);

impl From<Settled> for Row {
    fn from(Settled { at, id, before }: Settled) -> Self {
        (at, id, before.reply_partition, before.received_at, before.fingerprint)
    }
}

impl From<Row> for Settled {
    fn from((at, id, reply_partition, received_at, fingerprint): Row) -> Self {
        Self { at, id, before: Before { reply_partition, received_at, fingerprint } }
    }
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memory {
    /// By the time of their settlement.
    settled: VecDeque<Settled>,
    /// Number of the first of them, counted from the beginning of the journal.
    first: u64,
    /// The number of the latest settlement of an id.
    numbers: HashMap<Digest, u64>,
    ended: VecDeque<Ended>,
    /// Of requests that were not admitted; apart, so that many of them push out nobody's answer.
    told: VecDeque<Ended>,
}

impl Memory {
    /// Takes up what a checkpoint holds.
    pub fn restore(first: u64, settled: VecDeque<Settled>, terminals: impl IntoIterator<Item = Ended>) -> Self {
        let numbers = (first..).zip(&settled).map(|(number, settled)| (settled.id, number)).collect();
        let (told, ended) = terminals.into_iter().partition(|ended| ended.outcome == Outcome::Refused);
        Self { settled, first, numbers, ended, told }
    }

    pub fn before(&self, key: &RequestKey) -> Option<&Before> {
        let number = self.numbers.get(&Digest::of_key(key))?;
        let index = usize::try_from(number - self.first).ok()?;
        self.settled.get(index).map(|settled| &settled.before)
    }

    /// The settled requests that are remembered, in the order of their settlements, and the number of the first.
    pub fn settlements(&self) -> (u64, impl Iterator<Item = &Settled>) {
        (self.first, self.settled.iter())
    }

    /// The terminals that a new owner publishes again.
    pub fn ended(&self) -> impl Iterator<Item = &Ended> {
        self.told.iter().chain(&self.ended)
    }

    /// Remembers a settled request.
    pub fn settled(&mut self, ended: Ended, received_at: Timestamp, fingerprint: Option<&str>) {
        let id = Digest::of_key(&ended.key);
        let fingerprint = fingerprint.map(|text| Digest::of(&[text]));
        let before = Before { reply_partition: ended.reply_partition, received_at, fingerprint };
        self.numbers.insert(id, self.first + self.settled.len() as u64);
        self.settled.push_back(Settled { at: ended.at, id, before });
        self.ended.push_back(ended);
    }

    /// Remembers what somebody was told whose request was not admitted.
    pub fn told(&mut self, ended: Ended) {
        self.told.push_back(ended);
    }

    /// Forgets what is older than the windows at `clock`, or too much.
    pub fn forget(&mut self, clock: Timestamp) {
        let is_over = |at: Timestamp, window: Duration| at.plus(window) < clock;
        while let Some(oldest) = self.settled.front() {
            if self.settled.len() <= REPEATS_MAX && !is_over(oldest.at, REPEAT_WINDOW) {
                break;
            }
            // It may have been settled again since.
            if self.numbers.get(&oldest.id) == Some(&self.first) {
                self.numbers.remove(&oldest.id);
            }
            self.settled.pop_front();
            self.first += 1;
        }
        for terminals in [&mut self.ended, &mut self.told] {
            while terminals.front().is_some_and(|e| terminals.len() > TERMINALS_MAX || is_over(e.at, TERMINAL_WINDOW)) {
                terminals.pop_front();
            }
        }
    }
}

#[cfg(test)]
pub(super) mod fixture {
    use super::Ended;
    use crate::domain::{OrganizationId, RequestId, RequestKey, Timestamp};
    use crate::records::Outcome;

    /// The terminal of a request that was answered at that millisecond.
    pub fn ended(organization: &str, request: &str, at: i64) -> Ended {
        Ended {
            key: RequestKey {
                organization: OrganizationId::parse(organization).unwrap(),
                request: RequestId::parse(request).unwrap(),
            },
            at: Timestamp::from_millis(at),
            reply_partition: 2,
            reply_nonce: None,
            attempt: 1,
            content_frames: 0,
            outcome: Outcome::Completed,
            status: 200,
            error_code: None,
            usage: None,
            cost_pico_usd: None,
            finish_reason: None,
            original: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::ended;
    use super::*;

    #[test]
    fn an_id_is_of_its_organization_and_forgotten_after_the_window() {
        let mut memory = Memory::default();
        let (a, b) = (ended("a", "r", 0), ended("b", "r", 0));
        memory.settled(a.clone(), Timestamp::from_millis(0), Some("x"));
        assert!(memory.before(&a.key).is_some_and(|before| !before.differs_from(Some("x"))));
        assert!(memory.before(&a.key).is_some_and(|before| before.differs_from(Some("y"))));
        assert!(memory.before(&a.key).is_some_and(|before| !before.differs_from(None)));
        assert_eq!(memory.before(&b.key), None);
        let window = REPEAT_WINDOW.as_millis() as i64;
        memory.forget(Timestamp::from_millis(window));
        assert!(memory.before(&a.key).is_some());
        assert_eq!(memory.ended().count(), 0, "its terminal is older than the shorter window");
        memory.forget(Timestamp::from_millis(window + 1));
        assert_eq!(memory, Memory::restore(1, VecDeque::new(), []));
    }

    #[test]
    fn parts_of_an_id_do_not_run_together() {
        let mut memory = Memory::default();
        memory.settled(ended("ab", "c", 0), Timestamp::from_millis(0), None);
        assert_eq!(memory.before(&ended("a", "bc", 0).key), None);
    }

    #[test]
    fn what_was_settled_again_is_remembered_from_then_on() {
        let mut memory = Memory::default();
        let window = REPEAT_WINDOW.as_millis() as i64;
        for at in [0, window] {
            memory.settled(ended("a", "r", at), Timestamp::from_millis(at), None);
        }
        memory.forget(Timestamp::from_millis(window + 1));
        assert!(memory.before(&ended("a", "r", 0).key).is_some());
        memory.forget(Timestamp::from_millis(2 * window + 1));
        assert!(memory.before(&ended("a", "r", 0).key).is_none());
    }

    #[test]
    fn the_numbers_are_bounded() {
        let mut memory = Memory::default();
        for n in 0..REPEATS_MAX + 10 {
            memory.settled(ended("a", &format!("r{n}"), 0), Timestamp::from_millis(0), None);
            memory.forget(Timestamp::from_millis(0));
        }
        assert_eq!(
            (memory.numbers.len(), memory.settled.len(), memory.ended.len()),
            (REPEATS_MAX, REPEATS_MAX, TERMINALS_MAX)
        );
        assert!(memory.before(&ended("a", "r9", 0).key).is_none());
        assert!(memory.before(&ended("a", "r10", 0).key).is_some());
    }
}
