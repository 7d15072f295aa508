//! A checkpoint: the state of a partition up to a commit, as parts that are kept apart, and a marker that vouches for them.
//!
//! It is cut from the live state when the commit is decided and kept once that commit is acknowledged, so it never holds
//! more than the journal does. A restore that goes on behind it gives the same state as one from the beginning. Whatever is
//! wrong with one (another version of the fold, a part that is missing or damaged), it is left aside: the journal holds
//! everything.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::cache::{Entries, Entry as Cached, Index};
use super::ledger::{Books, Estimate, Ledger};
use super::memory::{Ended, Memory, Settled};
use super::state::{OpenRequest, State, key_of};
use crate::domain::OrganizationId;
use crate::records::journal::{Entry, Tenancy};
use crate::records::state::Marker;

/// Of what [`super::fold`] does and of the form of the parts. Raise it when either changes.
pub const FOLD_VERSION: i32 = 6;

/// Open requests, remembered settlements, and terminals of one part at the most; a part is far smaller than a record may be.
const OPEN_OF_PART_MAX: usize = 128;
const SETTLED_OF_PART_MAX: u64 = 4_096;
const ENDED_OF_PART_MAX: usize = 512;
/// Accounts and meters, and estimates, of one part at the most; an organization's are not divided.
const BOOKS_OF_PART_MAX: usize = 512;
/// Answers that are kept, of one part at the most.
const CACHED_OF_PART_MAX: usize = 4_096;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("it is of version {found} of the fold, and this program has {FOLD_VERSION}")]
    Version { found: i32 },
    #[error("it has {found} parts and should have {expected}")]
    Incomplete { found: usize, expected: i32 },
    #[error("its parts are not those that the marker vouches for")]
    Damaged,
    #[error("part {name} cannot be understood: {source}")]
    Part { name: String, source: serde_json::Error },
    #[error("offset {offset} of the journal is not where its marker says")]
    NotOfThisJournal { offset: i64 },
}

/// Parts by name.
pub type Parts = BTreeMap<String, Bytes>;

/// The state of a tenure up to a commit.
#[derive(Debug, Clone)]
pub struct Cut {
    pub tenure: i64,
    /// Of the last commit that is folded; it carries the sequence before the next one.
    pub journal_offset: i64,
    pub next_sequence: i64,
    pub state: State,
}

/// What a part holds; JSON, since only this file reads it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Open(OrganizationId, Vec<OpenRequest>),
    /// With the number of the first one.
    Settled(u64, Vec<Settled>),
    Ended(Vec<Ended>),
    Books(Vec<(OrganizationId, Books)>),
    Estimates(Vec<Estimate>),
    Cache(OrganizationId, Vec<Cached>),
    /// How often answers that are kept were used, in all.
    CacheUses(u64),
}

impl Cut {
    /// The parts of the state. What has not changed between two cuts keeps its name and its bytes.
    pub fn parts(&self) -> Result<Parts, Error> {
        let mut parts = Parts::new();
        let mut put = |name: String, part: &Part| match serde_json::to_vec(part) {
            Ok(body) => {
                parts.insert(name, Bytes::from(body));
                Ok(())
            }
            Err(source) => Err(Error::Part { name, source }),
        };
        let mut open: BTreeMap<&OrganizationId, Vec<&OpenRequest>> = BTreeMap::new();
        for (key, request) in self.state.open_requests() {
            open.entry(&key.organization).or_default().push(request);
        }
        for (organization, mut requests) in open {
            requests.sort_unstable_by_key(|request| request.source_offset);
            for (number, chunk) in requests.chunks(OPEN_OF_PART_MAX).enumerate() {
                let chunk = chunk.iter().copied().cloned().collect();
                put(format!("open/{organization}/{number:06}"), &Part::Open(organization.clone(), chunk))?;
            }
        }
        let (mut first, settled) = self.state.memory.settlements();
        let mut settled = settled.copied().peekable();
        loop {
            let chunk = first / SETTLED_OF_PART_MAX;
            let most = (chunk + 1) * SETTLED_OF_PART_MAX - first;
            let of_chunk: Vec<Settled> = settled.by_ref().take(usize::try_from(most).unwrap_or(0)).collect();
            let next = first + of_chunk.len() as u64;
            put(format!("settled/{chunk:012}"), &Part::Settled(first, of_chunk))?;
            first = next;
            if settled.peek().is_none() {
                break;
            }
        }
        let ended: Vec<&Ended> = self.state.memory.ended().collect();
        for (number, chunk) in ended.chunks(ENDED_OF_PART_MAX).enumerate() {
            put(format!("ended/{number:06}"), &Part::Ended(chunk.iter().copied().cloned().collect()))?;
        }
        let mut books: Vec<(&OrganizationId, &Books)> = self.state.ledger.organizations().collect();
        books.sort_unstable_by_key(|(id, _)| *id);
        let (mut number, mut chunk, mut entries) = (0, Vec::new(), 0);
        for (id, books) in books {
            let more = books.entries();
            if entries > 0 && entries + more > BOOKS_OF_PART_MAX {
                put(format!("books/{number:06}"), &Part::Books(std::mem::take(&mut chunk)))?;
                (number, entries) = (number + 1, 0);
            }
            chunk.push((id.clone(), books.clone()));
            entries += more;
        }
        if !chunk.is_empty() {
            put(format!("books/{number:06}"), &Part::Books(chunk))?;
        }
        let estimates: Vec<&Estimate> = self.state.ledger.estimates().collect();
        for (number, chunk) in estimates.chunks(BOOKS_OF_PART_MAX).enumerate() {
            put(format!("estimates/{number:06}"), &Part::Estimates(chunk.iter().copied().cloned().collect()))?;
        }
        let mut cache: Vec<(&OrganizationId, &Entries)> = self.state.cache.organizations().collect();
        cache.sort_unstable_by_key(|(id, _)| *id);
        for (id, entries) in cache {
            let mut entries: Vec<&Cached> = entries.iter().collect();
            entries.sort_unstable_by_key(|entry| entry.fingerprint);
            for (number, chunk) in entries.chunks(CACHED_OF_PART_MAX).enumerate() {
                let chunk = chunk.iter().copied().cloned().collect();
                put(format!("cache/{id}/{number:06}"), &Part::Cache(id.clone(), chunk))?;
            }
        }
        if self.state.cache.uses() > 0 {
            put("cache-uses".to_owned(), &Part::CacheUses(self.state.cache.uses()))?;
        }
        Ok(parts)
    }

    /// The marker of these parts in a slot.
    pub fn marker(&self, slot: i32, parts: &Parts) -> Marker {
        Marker {
            tenure: self.tenure,
            slot,
            fold_version: FOLD_VERSION,
            journal_offset: self.journal_offset,
            next_sequence: self.next_sequence,
            clock: self.state.clock,
            control_offset: self.state.control_offset,
            last_source_offset: self.state.last_source_offset,
            parts: i32::try_from(parts.len()).unwrap_or(i32::MAX),
            digest: digest(parts),
        }
    }
}

/// Over names and bodies.
pub fn digest(parts: &Parts) -> String {
    let mut hash = Sha256::new();
    for (name, body) in parts {
        for text in [name.as_bytes(), body] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
    }
    hex::encode(hash.finalize())
}

/// The state of a checkpoint.
///
/// # Errors
/// Whatever is wrong with it. Then it is as if there were none.
pub fn restore(marker: &Marker, parts: &Parts) -> Result<State, Error> {
    if marker.fold_version != FOLD_VERSION {
        return Err(Error::Version { found: marker.fold_version });
    }
    if usize::try_from(marker.parts) != Ok(parts.len()) {
        return Err(Error::Incomplete { found: parts.len(), expected: marker.parts });
    }
    if digest(parts) != marker.digest {
        return Err(Error::Damaged);
    }
    let (mut open, mut first, mut settled, mut ended) = (Vec::new(), None, Vec::new(), Vec::new());
    let (mut books, mut estimates) = (Vec::new(), Vec::new());
    let (mut cached, mut uses) = (Vec::new(), 0);
    for (name, body) in parts {
        match serde_json::from_slice(body).map_err(|source| Error::Part { name: name.clone(), source })? {
            Part::Open(organization, requests) => {
                open.extend(requests.into_iter().map(|r| (key_of(&organization, &r.context.request_id), r)));
            }
            Part::Settled(number, rows) => {
                first.get_or_insert(number);
                settled.extend(rows);
            }
            Part::Ended(terminals) => ended.extend(terminals),
            Part::Books(of) => books.extend(of),
            Part::Estimates(of) => estimates.extend(of),
            Part::Cache(organization, entries) => cached.push((organization, entries)),
            Part::CacheUses(count) => uses = count,
        }
    }
    let memory = Memory::restore(first.unwrap_or(0), settled.into(), ended);
    let ledger = Ledger::restore(books, estimates);
    let kept = (memory, ledger, Index::restore(uses, cached));
    Ok(State::restore(marker.clock, marker.last_source_offset, marker.control_offset, kept, open))
}

/// Which entries count behind a checkpoint, if the journal has at its offset what it was folded up to.
///
/// # Errors
/// [`Error::NotOfThisJournal`]: the journal is another one, or was cut.
pub fn tenancy(marker: &Marker, found: Option<&Entry>) -> Result<Tenancy, Error> {
    let holds = match found {
        Some(Entry::OwnershipTaken(_)) => marker.journal_offset == marker.tenure && marker.next_sequence == 0,
        Some(Entry::Commit(commit)) => {
            commit.tenure == marker.tenure && commit.sequence + 1 == marker.next_sequence && commit.at == marker.clock
        }
        None => false,
    };
    match holds {
        true => Ok(Tenancy { tenure: Some(marker.tenure), next_sequence: marker.next_sequence }),
        false => Err(Error::NotOfThisJournal { offset: marker.journal_offset }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::Asker;
    use super::super::memory::fixture;
    use super::*;
    use crate::domain::{KeyId, PicoUsd, RequestId, Timestamp};
    use crate::records::journal::{Account, LimitCharge, LimitScope};

    fn ended(number: usize) -> Ended {
        let (reply_nonce, finish_reason) = (Some("n".into()), Some("stop".into()));
        Ended { reply_nonce, finish_reason, ..fixture::ended("acme", &format!("r{number}"), 1_000) }
    }

    /// Each organization has books with two keys, and an estimate.
    fn ledger(organizations: usize) -> Ledger {
        let (mut ledger, at) = (Ledger::default(), Timestamp::from_millis(1_000));
        let scope = LimitScope::Key;
        let charge = LimitCharge { scope, requests_per_minute: Some(9), tokens_per_minute: Some(9), tokens: 5 };
        for number in 0..organizations {
            let organization = OrganizationId::parse(&format!("org_{number}")).unwrap();
            for key in ["a", "b"].map(|key| KeyId::parse(key).unwrap()) {
                let asker = Asker { organization: &organization, key: Some(&key) };
                ledger.charged(asker, &[charge], at);
                ledger.closed(asker, &[charge], 3, at);
            }
            let key = key_of(&organization, &RequestId::parse("r").unwrap());
            let (cost, reserved) = (PicoUsd::new(number as i128), PicoUsd::new(i128::from(i64::MAX)));
            let accounts = vec![Account::Organization, Account::Key];
            ledger.estimated(Estimate { key, attempt: 1, cost, accounts, reserved });
        }
        ledger
    }

    fn cut(settled: usize) -> Cut {
        let clock = Timestamp::from_millis(1_000);
        let mut state = State::restore(clock, Some(4), None, Default::default(), []);
        for number in 0..settled {
            state.memory.settled(ended(number), Timestamp::from_millis(900), (number % 2 == 0).then_some("body"));
            state.memory.forget(state.clock);
        }
        Cut { tenure: 7, journal_offset: 9, next_sequence: 2, state }
    }

    #[test]
    fn a_checkpoint_gives_the_state_again() {
        for settled in [0, 1, 4_095, 4_096, 4_097, 10_000] {
            let mut cut = cut(settled);
            cut.state.ledger = ledger(settled.min(1_000));
            let parts = cut.parts().unwrap();
            let books = parts.keys().filter(|name| name.starts_with("books/")).count();
            // Three entries each.
            assert_eq!(books, settled.min(1_000).div_ceil(BOOKS_OF_PART_MAX / 3));
            assert_eq!(restore(&cut.marker(0, &parts), &parts).unwrap(), cut.state, "{settled}");
        }
    }

    #[test]
    fn what_has_not_changed_keeps_its_bytes() {
        let (earlier, later) = (cut(9_000).parts().unwrap(), cut(9_001).parts().unwrap());
        let changed: Vec<&String> = later.keys().filter(|name| earlier.get(*name) != later.get(*name)).collect();
        assert_eq!(changed[changed.len() - 1], "settled/000000000002");
        assert!(
            changed.iter().all(|name| name.starts_with("ended/") || *name == "settled/000000000002"),
            "{changed:?}"
        );
    }

    #[test]
    fn whatever_is_wrong_is_found() {
        let cut = cut(10);
        let parts = cut.parts().unwrap();
        let marker = cut.marker(1, &parts);
        let newer = Marker { fold_version: FOLD_VERSION + 1, ..marker.clone() };
        assert!(matches!(restore(&newer, &parts), Err(Error::Version { .. })));
        let mut fewer = parts.clone();
        fewer.pop_first();
        assert!(matches!(restore(&marker, &fewer), Err(Error::Incomplete { found: 1, expected: 2 })));
        let mut changed = parts.clone();
        changed.insert("ended/000000".into(), Bytes::from_static(b"{\"ended\":[]}"));
        assert!(matches!(restore(&marker, &changed), Err(Error::Damaged)));
        let vouched = Marker { digest: digest(&changed), ..marker.clone() };
        assert!(restore(&vouched, &changed).is_ok_and(|state| state.memory.ended().count() == 0));
        changed.insert("ended/000000".into(), Bytes::from_static(b"{\"ended\":[tru"));
        let vouched = Marker { digest: digest(&changed), ..marker };
        assert!(matches!(restore(&vouched, &changed), Err(Error::Part { name, .. }) if name == "ended/000000"));
    }

    #[test]
    fn a_checkpoint_of_another_journal_is_not_taken() {
        use crate::records::journal::{Commit, InputKind, OwnershipTaken};
        let at = Timestamp::from_millis(1_000);
        let taken = Entry::OwnershipTaken(OwnershipTaken { owner: "a".into(), at, version: "0".into() });
        let commit = |tenure, sequence, at| {
            Entry::Commit(Commit {
                tenure,
                sequence,
                input: InputKind::Record,
                source_offset: None,
                at,
                control_offset: 0,
                organization: None,
                request: None,
                facts: Vec::new(),
                health: Vec::new(),
            })
        };
        let cut = cut(0);
        let marker = cut.marker(0, &cut.parts().unwrap());
        let behind = tenancy(&marker, Some(&commit(7, 1, at))).unwrap();
        assert_eq!(behind, Tenancy { tenure: Some(7), next_sequence: 2 });
        let others = [
            None,
            Some(taken.clone()),
            Some(commit(7, 2, at)),
            Some(commit(6, 1, at)),
            Some(commit(7, 1, at.plus(std::time::Duration::from_secs(1)))),
        ];
        for other in others {
            assert!(tenancy(&marker, other.as_ref()).is_err(), "{other:?}");
        }
        let first = Marker { journal_offset: 7, next_sequence: 0, ..marker };
        assert_eq!(tenancy(&first, Some(&taken)).unwrap(), Tenancy { tenure: Some(7), next_sequence: 0 });
    }
}
