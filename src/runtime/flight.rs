//! The answer of a provider call while it comes in: for those who ask the same meanwhile, and to be kept at its end.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::room::{Hold, Room};
use crate::provider::Summary;

/// A call that others may get the answer of.
pub struct Flight {
    inner: Mutex<Inner>,
    changed: Notify,
    /// Largest answer that is kept.
    bytes_max: usize,
}

struct Inner {
    events: Vec<Bytes>,
    /// What the answer takes of the room for all such calls.
    hold: Hold,
    /// It has all of the answer that has come so far.
    is_whole: bool,
    followers: usize,
    end: Option<End>,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Completed {
        summary: Summary,
        /// Of an answer that is not streamed.
        body: Option<Bytes>,
    },
    /// There is no answer, or none that was meant for others.
    Nothing,
}

/// What comes next.
#[derive(Debug, PartialEq)]
pub enum Next {
    Events(Vec<Bytes>),
    End(End),
}

impl Flight {
    pub fn new(room: &Room, bytes_max: usize) -> Self {
        let inner = Inner { events: Vec::new(), hold: room.hold(), is_whole: true, followers: 0, end: None };
        Self { inner: Mutex::new(inner), changed: Notify::new(), bytes_max }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more attempt begins; whatever the one before put out was for nobody.
    pub fn begin(&self) {
        let mut inner = self.inner();
        inner.events.clear();
        inner.hold.keep(0);
        (inner.is_whole, inner.end) = (true, None);
    }

    pub fn push(&self, event: &Bytes) {
        let mut inner = self.inner();
        if !inner.is_whole {
            return;
        }
        // Whoever follows gets all of it, however long it is.
        let fits = inner.hold.bytes() + event.len() <= self.bytes_max && inner.hold.take(event.len());
        if fits {
            inner.events.push(event.clone());
        } else if inner.followers > 0 {
            inner.hold.take_anyway(event.len());
            inner.events.push(event.clone());
        } else {
            inner.events = Vec::new();
            inner.hold.keep(0);
            inner.is_whole = false;
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// The provider's answer is whole. Says how many bytes it has, if it can be kept.
    pub fn complete(&self, summary: Summary, body: Option<&Bytes>) -> Option<u64> {
        let mut inner = self.inner();
        let bytes = inner.hold.bytes() + body.map_or(0, Bytes::len);
        let keeps = inner.is_whole && bytes <= self.bytes_max && (body.is_some() || !inner.events.is_empty());
        inner.end = Some(End::Completed { summary, body: body.cloned() });
        drop(inner);
        self.changed.notify_waiters();
        keeps.then_some(bytes as u64)
    }

    /// Its request is over: if there is no answer by now, there never will be.
    pub fn close(&self) {
        self.inner().end.get_or_insert(End::Nothing);
        self.changed.notify_waiters();
    }

    /// The whole answer.
    pub fn answer(&self) -> Option<(Vec<Bytes>, Summary, Option<Bytes>)> {
        let inner = self.inner();
        match (&inner.end, inner.is_whole) {
            (Some(End::Completed { summary, body }), true) => {
                Some((inner.events.clone(), summary.clone(), body.clone()))
            }
            _ => None,
        }
    }

    /// What comes behind the first `from` events. Whoever begins to follow says so with 0; one that comes too late to get
    /// all of it gets nothing.
    pub async fn next(&self, from: usize) -> Next {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut inner = self.inner();
                if !inner.is_whole {
                    return Next::End(End::Nothing);
                }
                inner.followers = inner.followers.max(1);
                match (inner.events.get(from..).unwrap_or_default(), &inner.end) {
                    ([], Some(end)) => return Next::End(end.clone()),
                    ([], None) => {}
                    (events, _) => return Next::Events(events.to_vec()),
                }
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[tokio::test]
    async fn who_follows_gets_all_of_it_whenever_it_comes() {
        let flight = Flight::new(&Room::new(100), 50);
        flight.push(&event("one"));
        assert_eq!(flight.next(0).await, Next::Events(vec![event("one")]));
        let (next, ()) = tokio::join!(flight.next(1), async { flight.push(&event("two")) });
        assert_eq!(next, Next::Events(vec![event("two")]));
        assert_eq!(flight.complete(Summary::default(), None), Some(6));
        let end = End::Completed { summary: Summary::default(), body: None };
        assert_eq!(flight.next(2).await, Next::End(end.clone()));
        assert_eq!(flight.next(0).await, Next::Events(vec![event("one"), event("two")]));
        flight.close();
        assert_eq!(flight.next(2).await, Next::End(end));
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_is_neither_kept_nor_given_to_latecomers_but_to_those_who_follow() {
        let room = Room::new(100);
        let alone = Flight::new(&room, 4);
        alone.push(&event("12345"));
        assert_eq!(alone.complete(Summary::default(), None), None);
        assert_eq!((alone.next(0).await, room.taken()), (Next::End(End::Nothing), 0));
        let followed = Flight::new(&room, 4);
        followed.push(&event("1234"));
        assert_eq!(followed.next(0).await, Next::Events(vec![event("1234")]));
        followed.push(&event("5"));
        assert_eq!(followed.next(1).await, Next::Events(vec![event("5")]));
        assert_eq!(followed.complete(Summary::default(), None), None, "five bytes, and four are the most");
    }

    #[tokio::test]
    async fn a_call_that_gives_nothing_ends_for_all() {
        let flight = Flight::new(&Room::new(100), 50);
        flight.push(&event("of an attempt that failed"));
        flight.begin();
        flight.close();
        assert_eq!(flight.next(0).await, Next::End(End::Nothing));
    }
}
