//! Room in bytes that many share: taken before memory is, given back when its holder is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A bound on the bytes of one kind in the whole process; clones share it.
#[derive(Debug, Clone)]
pub struct Room(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    taken: AtomicUsize,
}

impl Room {
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Shared { most: bytes_max, taken: AtomicUsize::new(0) }))
    }

    pub fn bytes_max(&self) -> usize {
        self.0.most
    }

    /// Bytes that are taken now.
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// Whether so many more bytes would fit.
    pub fn fits(&self, bytes: usize) -> bool {
        self.taken().saturating_add(bytes) <= self.0.most
    }

    /// A holder of nothing yet.
    pub fn hold(&self) -> Hold {
        Hold { room: self.clone(), bytes: 0 }
    }
}

/// A part of a [`Room`].
#[derive(Debug)]
pub struct Hold {
    room: Room,
    bytes: usize,
}

impl Hold {
    pub const fn room(&self) -> &Room {
        &self.room
    }

    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes so many more bytes. `false`: there is no room, and nothing was taken.
    pub fn take(&mut self, bytes: usize) -> bool {
        let before = self.room.0.taken.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= self.room.0.most;
        match fits {
            true => self.bytes += bytes,
            false => {
                self.room.0.taken.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
        fits
    }

    /// Takes so many more bytes, beyond the bound if need be: for what is in memory already.
    pub fn take_anyway(&mut self, bytes: usize) {
        self.room.0.taken.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }

    /// Holds so many bytes instead. `false`: there is no room for more, and nothing changed.
    pub fn set(&mut self, bytes: usize) -> bool {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.take(more),
            None => {
                self.keep(bytes);
                true
            }
        }
    }

    /// Gives all back but so many bytes.
    pub fn keep(&mut self, bytes: usize) {
        let rest = self.bytes.saturating_sub(bytes);
        self.room.0.taken.fetch_sub(rest, Ordering::Relaxed);
        self.bytes -= rest;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_and_no_more_fits_than_there_is() {
        let room = Room::new(10);
        let (mut a, mut b) = (room.hold(), room.hold());
        assert!(a.take(6) && !b.take(5) && b.take(4));
        assert_eq!((room.taken(), room.fits(0), room.fits(1)), (10, true, false));
        a.keep(1);
        assert_eq!((a.bytes(), room.taken()), (1, 5));
        b.take_anyway(20);
        assert_eq!((room.taken(), room.fits(0)), (25, false));
        drop(b);
        drop(a);
        assert_eq!(room.taken(), 0);
        let mut c = room.hold();
        assert!(c.set(10) && !c.set(11) && c.set(3));
        assert_eq!(room.taken(), 3);
    }
}
