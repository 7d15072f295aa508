//! Whatever the order in which frames are written, go by live, are swept from the log and taken by their clients: every
//! client sees exactly its stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::BytesMut;
use proptest::prelude::*;
use tokio::sync::Notify;

use crate::domain::RequestKey;
use crate::facade::catch_up::{Plan, Readers, Sweep};
use crate::facade::fixtures::{completed, content};
use crate::facade::metrics::Metrics;
use crate::facade::slot::{Asked, Bounds, Piece, Shared, Slot, Step};
use crate::facade::sse::{self, EventId, Position};
use crate::records::responses::{Frame, FrameBody};

const PARTITION: i32 = 3;
/// Bytes of the largest frame, written.
const FRAME_BYTES_MAX: usize = 400;

#[derive(Debug, Clone)]
enum Action {
    /// So many records are written.
    Write(usize),
    /// The demultiplexer takes so many.
    Live(usize),
    /// A client takes so many pieces.
    Take(usize, usize),
    /// The catch-up reader plans,
    Plan,
    /// and reads so many records.
    Sweep(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => (1..6_usize).prop_map(Action::Write),
        3 => (1..6_usize).prop_map(Action::Live),
        2 => (0..3_usize, 1..4_usize).prop_map(|(client, pieces)| Action::Take(client, pieces)),
        3 => Just(Action::Plan),
        3 => (1..8_usize).prop_map(Action::Sweep),
    ]
}

struct Client {
    slot: Arc<Slot>,
    taken: Vec<u8>,
    ended: bool,
}

struct World {
    /// What is or will be written, with the number of the request that it is of.
    log: Vec<(usize, Frame)>,
    written: usize,
    live: usize,
    readers: Readers,
    sweep: Option<Sweep>,
    shared: Arc<Shared>,
    clients: Vec<Client>,
}

fn nonce(request: usize) -> String {
    format!("n{request}")
}

/// Frames of requests 0 and 1, which are streamed to clients, among those of request 2, which nobody here waits for.
fn log(order: &[(usize, usize)]) -> Vec<(usize, Frame)> {
    let mut next = [0_u32; 3];
    let of = |request: usize, frame: Frame| {
        let request_id = format!("r{request}").parse().unwrap();
        (request, Frame { request_id, nonce: Some(nonce(request)), ..frame })
    };
    // The first record is one of request 0, so that somebody can go on behind it.
    let order = std::iter::once(&(0, 2)).chain(order);
    let mut log: Vec<_> = order
        .map(|(request, events)| {
            let sequence = next[*request];
            next[*request] += 1;
            let events: Vec<_> =
                (0..*events).map(|n| format!("{{\"{sequence}.{n}\":\"{}\"}}", "x".repeat(20 * n))).collect();
            of(*request, content(1, sequence, &events.iter().map(String::as_str).collect::<Vec<_>>()))
        })
        .collect();
    log.extend((0..3).map(|request| of(request, completed(1, next[request]))));
    log
}

impl World {
    fn new(order: &[(usize, usize)], slot_bytes: usize, piece_bytes: usize) -> Self {
        let hunger = Arc::new(Notify::new());
        let bounds = Bounds { slot_bytes, all_bytes: slot_bytes, fair_bytes: slot_bytes / 2, piece_bytes };
        let shared = Arc::new(Shared { bounds, metrics: Metrics::unregistered(), hunger: hunger.clone() });
        let key = |request: usize| RequestKey {
            organization: "acme".parse().unwrap(),
            request: format!("r{request}").parse().unwrap(),
        };
        let asking = |request| {
            let asked = Asked { key: key(request), stream: true, idempotent: false, outlives_client: false };
            Slot::asking(asked, PARTITION, nonce(request), shared.clone())
        };
        let after = EventId { at: Position { partition: PARTITION, offset: 0 }, index: 0 };
        let slots = [asking(0), asking(1), Slot::reading(key(0), after, shared.clone())].map(Arc::new);
        let readers = Readers::new(hunger);
        readers.locate(slots[2].clone());
        let clients = slots.map(|slot| Client { slot, taken: Vec::new(), ended: false }).into();
        Self { log: log(order), written: 1, live: 0, readers, sweep: None, shared, clients }
    }

    /// What a client is to see of a request in the end, behind the first event or whole.
    fn expected(&self, request: usize, skip: usize) -> Vec<u8> {
        let mut out = BytesMut::new();
        let mut left = skip;
        for (offset, (of, frame)) in (0..).zip(&self.log) {
            let FrameBody::Content(content) = &frame.body else { continue };
            for (index, event) in content.events.iter().enumerate().filter(|_| *of == request) {
                match left {
                    0 => sse::event(&mut out, Position { partition: PARTITION, offset }, index, event),
                    _ => left -= 1,
                }
            }
        }
        out.extend_from_slice(sse::DONE);
        out.to_vec()
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Write(records) => self.written = (self.written + records).min(self.log.len()),
            Action::Live(records) => {
                for offset in self.live..(self.live + records).min(self.written) {
                    let (request, frame) = &self.log[offset];
                    if *request < 2 && self.clients[*request].slot.live(offset as i64, frame) == Step::Lagging {
                        self.readers.add(self.clients[*request].slot.clone());
                    }
                    self.live = offset + 1;
                }
            }
            Action::Take(client, pieces) => {
                let client = &mut self.clients[client];
                for _ in 0..pieces {
                    match client.slot.poll_piece(&Context::from_waker(Waker::noop())) {
                        Poll::Ready(Piece::Bytes(bytes)) => client.taken.extend_from_slice(&bytes),
                        Poll::Ready(Piece::End) => client.ended = true,
                        Poll::Ready(Piece::Error(error)) => panic!("{error:?}"),
                        // Comments and errors may come here.
                        Poll::Pending => assert!(client.taken.is_empty() || client.taken.ends_with(b"\n\n")),
                    }
                }
            }
            Action::Plan => {
                for slot in self.readers.unlocated() {
                    self.readers.located(slot, 0..self.written as i64, 0);
                }
                let sweeps: HashMap<_, _> = self.sweep.map(|sweep| (PARTITION, sweep)).into_iter().collect();
                for (_, plan) in self.readers.plan(&sweeps) {
                    match plan {
                        Plan::Stay => {}
                        Plan::Read(offset) => self.sweep = Some(Sweep::from(offset)),
                        Plan::Leave => self.sweep = None,
                    }
                }
            }
            Action::Sweep(records) => {
                let Some(sweep) = &mut self.sweep else { return };
                for _ in 0..records {
                    let Some((request, frame)) = self.log[..self.written].get(sweep.next as usize) else {
                        sweep.ended = true;
                        return;
                    };
                    let at = Position { partition: PARTITION, offset: sweep.next };
                    sweep.next += 1;
                    let given = self.readers.give(at, format!("r{request}").as_bytes(), Some(frame));
                    assert!(given.broken.is_empty(), "{given:?}");
                }
            }
        }
        let waiting = self.shared.metrics.bytes_waiting();
        let most = self.clients.len() * (self.shared.bounds.slot_bytes + FRAME_BYTES_MAX + sse::DONE.len());
        assert!(waiting <= most, "{waiting} bytes wait");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn every_client_sees_exactly_its_stream(
        order in prop::collection::vec((0..3_usize, 1..4_usize), 0..60),
        slot_bytes in 100..600_usize,
        piece_bytes in 10..200_usize,
        actions in prop::collection::vec(action(), 0..200),
    ) {
        let mut world = World::new(&order, slot_bytes, piece_bytes);
        for action in &actions {
            world.act(action);
            for (client, (request, skip)) in world.clients.iter().zip([(0, 0), (1, 0), (0, 1)]) {
                prop_assert!(world.expected(request, skip).starts_with(&client.taken));
            }
        }
        // In the end everything is written, and everybody reads on.
        let rest = [
            Action::Write(100), Action::Live(100), Action::Plan, Action::Sweep(100),
            Action::Take(0, 1), Action::Take(1, 1), Action::Take(2, 1),
        ];
        for _ in 0..2_000 {
            rest.iter().for_each(|action| world.act(action));
            if world.clients.iter().all(|client| client.ended) {
                break;
            }
        }
        for (client, (request, skip)) in world.clients.iter().zip([(0, 0), (1, 0), (0, 1)]) {
            prop_assert!(client.ended);
            let (taken, expected) = (String::from_utf8_lossy(&client.taken), world.expected(request, skip));
            prop_assert_eq!(taken, String::from_utf8_lossy(&expected));
        }
        prop_assert_eq!(world.shared.metrics.bytes_waiting(), 0);
        world.act(&Action::Plan);
        prop_assert_eq!(world.readers.len(), 0, "nobody is left behind");
    }
}

#[test]
fn slots_that_are_behind_share_a_sweep_and_those_who_take_nothing_cause_none() {
    let order: Vec<_> = (0..20).map(|n| (n % 2, 3)).collect();
    let mut world = World::new(&order, 300, 1_000);
    world.readers.remove(&world.clients[2].slot.clone());
    for action in [Action::Write(100), Action::Live(100), Action::Plan] {
        world.act(&action);
    }
    assert_eq!((world.readers.len(), world.sweep), (2, None), "both lag, neither waits for anything");
    for action in [Action::Take(0, 9), Action::Take(1, 9), Action::Plan] {
        world.act(&action);
    }
    assert_eq!(world.sweep, Some(Sweep::from(0)));
    world.act(&Action::Sweep(100));
    let waiting = world.shared.metrics.bytes_waiting();
    assert!(waiting > 0, "both were given something");
    world.act(&Action::Plan);
    assert_eq!(world.sweep, None, "both are full");
}
