//! The bodies of answers that are kept, in memory: those of this process's partitions, as many bytes of them as there is
//! room for. What is not here is asked anew.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::domain::ids::partition_of;
use crate::domain::{Fingerprint, OrganizationId, RequestId, TokenUsage};
use crate::processor::cache;
use crate::records::cache::CacheRecord;

/// An answer that can be given again.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// For which it was made.
    pub request_id: RequestId,
    pub usage: TokenUsage,
    pub finish_reason: Option<String>,
    pub events: Vec<Bytes>,
    pub body: Option<Bytes>,
}

impl Kept {
    pub fn bytes(&self) -> usize {
        self.events.iter().chain(&self.body).map(Bytes::len).sum()
    }
}

impl From<CacheRecord> for Kept {
    fn from(record: CacheRecord) -> Self {
        let CacheRecord { request_id, usage, finish_reason, events, body, .. } = record;
        Self { request_id, usage, finish_reason, events, body }
    }
}

/// All of them; clones share it.
#[derive(Debug, Clone)]
pub struct Shelf(Arc<Mutex<Books>>);

#[derive(Debug)]
struct Books {
    by_organization: HashMap<OrganizationId, HashMap<Fingerprint, Book>>,
    by_use: BTreeMap<u64, (OrganizationId, Fingerprint)>,
    uses: u64,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Book {
    kept: Arc<Kept>,
    used: u64,
}

impl Shelf {
    pub fn new(bytes_max: usize) -> Self {
        let (by_organization, by_use) = (HashMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(Books { by_organization, by_use, uses: 0, bytes: 0, bytes_max })))
    }

    fn with<T>(&self, take: impl FnOnce(&mut Books) -> T) -> T {
        take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes an answer in; what was not used the longest makes room.
    pub fn put(&self, organization: &OrganizationId, fingerprint: Fingerprint, kept: Arc<Kept>) {
        self.with(|books| {
            books.remove(organization, fingerprint);
            let bytes = kept.bytes();
            if bytes > books.bytes_max {
                return;
            }
            while books.bytes + bytes > books.bytes_max
                && let Some((_, (organization, fingerprint))) = books.by_use.first_key_value()
            {
                let (organization, fingerprint) = (organization.clone(), *fingerprint);
                books.remove(&organization, fingerprint);
            }
            books.uses += 1;
            books.bytes += bytes;
            books.by_use.insert(books.uses, (organization.clone(), fingerprint));
            let book = Book { kept, used: books.uses };
            books.by_organization.entry(organization.clone()).or_default().insert(fingerprint, book);
        });
    }

    pub fn get(&self, organization: &OrganizationId, fingerprint: Fingerprint) -> Option<Arc<Kept>> {
        self.with(|books| {
            let book = books.by_organization.get_mut(organization)?.get_mut(&fingerprint)?;
            books.uses += 1;
            books.by_use.remove(&book.used);
            books.by_use.insert(books.uses, (organization.clone(), fingerprint));
            book.used = books.uses;
            Some(Arc::clone(&book.kept))
        })
    }

    pub fn remove(&self, organization: &OrganizationId, fingerprint: Fingerprint) {
        self.with(|books| books.remove(organization, fingerprint));
    }

    /// Drops what belongs to a partition that is not ours any more.
    pub fn leave(&self, partition: i32, partitions: u32) {
        self.with(|books| {
            let is_there =
                |organization: &&OrganizationId| partition_of(organization.as_str(), partitions) == partition;
            let left: Vec<OrganizationId> = books.by_organization.keys().filter(is_there).cloned().collect();
            for organization in left {
                let fingerprints: Vec<Fingerprint> =
                    books.by_organization.get(&organization).into_iter().flat_map(HashMap::keys).copied().collect();
                fingerprints.into_iter().for_each(|fingerprint| books.remove(&organization, fingerprint));
            }
        });
    }

    pub fn bytes(&self) -> usize {
        self.with(|books| books.bytes)
    }
}

impl Books {
    fn remove(&mut self, organization: &OrganizationId, fingerprint: Fingerprint) {
        let Some(of) = self.by_organization.get_mut(organization) else { return };
        if let Some(book) = of.remove(&fingerprint) {
            self.by_use.remove(&book.used);
            self.bytes -= book.kept.bytes();
        }
        if of.is_empty() {
            self.by_organization.remove(organization);
        }
    }
}

impl cache::Shelf for Shelf {
    fn has(&self, organization: &OrganizationId, fingerprint: Fingerprint) -> bool {
        self.with(|books| books.by_organization.get(organization).is_some_and(|of| of.contains_key(&fingerprint)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::cache::Shelf as _;

    fn kept(bytes: usize) -> Arc<Kept> {
        let (events, body) = (vec![Bytes::from(vec![b'x'; bytes])], None);
        let request_id = RequestId::parse("r").unwrap();
        Arc::new(Kept { request_id, usage: TokenUsage::NOTHING, finish_reason: None, events, body })
    }

    #[test]
    fn what_is_not_used_makes_room_and_nothing_is_found_by_another_organization() {
        let (a, b) = (OrganizationId::parse("a").unwrap(), OrganizationId::parse("b").unwrap());
        let (one, two, three) = (Fingerprint::new(1), Fingerprint::new(2), Fingerprint::new(3));
        let shelf = Shelf::new(100);
        shelf.put(&a, one, kept(40));
        shelf.put(&a, two, kept(40));
        assert!(shelf.get(&a, one).is_some());
        assert!(!shelf.has(&b, one) && shelf.get(&b, one).is_none());
        shelf.put(&b, three, kept(40));
        assert_eq!([shelf.has(&a, one), shelf.has(&a, two), shelf.has(&b, three)], [true, false, true]);
        shelf.put(&b, three, kept(10));
        assert_eq!(shelf.bytes(), 50, "the former one is replaced");
        shelf.put(&b, two, kept(101));
        assert!(!shelf.has(&b, two), "it never fits");
        let partitions = 4;
        shelf.leave(partition_of("a", partitions), partitions);
        assert!(!shelf.has(&a, one));
        shelf.remove(&b, three);
        assert_eq!(shelf.with(|books| (books.bytes, books.by_use.len(), books.by_organization.len())), (0, 0, 0));
    }
}
