//! One slot without Kafka: frames in, bytes out, and what it needs of the log.

use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::domain::{RequestKey, Timestamp};
use crate::facade::error;
use crate::facade::fixtures::{completed, content, failed, head, whole};
use crate::facade::metrics::Metrics;
use crate::facade::slot::{Asked, Beginning, Bounds, Need, Piece, Shared, Slot, Step};
use crate::facade::sse::{EventId, Position};
use crate::records::Outcome;
use crate::records::responses::{ApiError, Frame, FrameBody, Original, Terminal};

/// The nonce of the frames.
const NONCE: &str = "n";

fn shared(slot_bytes: usize) -> Arc<Shared> {
    bounded(Bounds { slot_bytes, all_bytes: 1 << 20, fair_bytes: 1, piece_bytes: 16 << 10 })
}

fn bounded(bounds: Bounds) -> Arc<Shared> {
    Arc::new(Shared { bounds, metrics: Metrics::unregistered(), hunger: Arc::new(Notify::new()) })
}

fn key() -> RequestKey {
    RequestKey { organization: "acme".parse().unwrap(), request: "r1".parse().unwrap() }
}

fn asking(stream: bool, idempotent: bool, shared: &Arc<Shared>) -> Slot {
    let asked = Asked { key: key(), stream, idempotent, outlives_client: false };
    Slot::asking(asked, 3, NONCE.into(), shared.clone())
}

fn slot(stream: bool, slot_bytes: usize) -> Slot {
    asking(stream, false, &shared(slot_bytes))
}

fn own(frame: Frame) -> Frame {
    Frame { nonce: Some(NONCE.into()), ..frame }
}

fn beginning(slot: &Slot) -> Poll<Beginning> {
    slot.poll_beginning(&Context::from_waker(Waker::noop()))
}

fn piece(slot: &Slot) -> Poll<Piece> {
    slot.poll_piece(&Context::from_waker(Waker::noop()))
}

/// Everything that a client would read now, an error as its event.
fn read(slot: &Slot) -> String {
    let mut text = Vec::new();
    loop {
        match piece(slot) {
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

/// Gives the slot these records of the log in one sweep.
fn sweep(slot: &Slot, offsets: Range<i64>, log: &[(i64, Frame)]) {
    slot.need(None);
    slot.join(offsets.start);
    for (offset, frame) in log.iter().filter(|(offset, _)| offsets.contains(offset)) {
        slot.logged(*offset, frame);
    }
    slot.need(Some(offsets.end));
}

fn failure(slot: &Slot) -> (u16, String) {
    match beginning(slot) {
        Poll::Ready(Beginning::Failed(error)) => (error.status, error.code),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_streamed_answer_is_these_bytes() {
    let slot = slot(true, 1 << 20);
    assert!(beginning(&slot).is_pending());
    assert_eq!(slot.live(10, &content(1, 0, &["{\"a\":1}", "{\"b\":2}"])), Step::Nothing);
    assert_eq!(beginning(&slot), Poll::Ready(Beginning::Stream(Some(head()))));
    assert_eq!(slot.live(12, &content(1, 1, &["{\"c\":3}"])), Step::Nothing);
    assert_eq!(slot.live(15, &completed(1, 2)), Step::Nothing);
    assert_eq!(
        read(&slot),
        "id: 3-10-0\ndata: {\"a\":1}\n\nid: 3-10-1\ndata: {\"b\":2}\n\nid: 3-12-0\ndata: {\"c\":3}\n\ndata: [DONE]\n\n"
    );
    assert_eq!(piece(&slot), Poll::Ready(Piece::End));
    assert!(!slot.abandon(), "a request that has ended is not cancelled");
}

#[test]
fn a_frame_that_comes_twice_is_written_once() {
    let slot = slot(true, 1 << 20);
    for offset in 10..12 {
        assert_eq!(slot.live(offset, &content(1, 0, &["{}"])), Step::Nothing);
    }
    assert_eq!(slot.live(12, &completed(1, 1)), Step::Nothing);
    assert_eq!(slot.live(13, &completed(1, 1)), Step::Nothing);
    assert_eq!(read(&slot), "id: 3-10-0\ndata: {}\n\ndata: [DONE]\n\n");
}

#[test]
fn what_breaks_an_answer_ends_it_with_an_error_and_cancels() {
    let table = [
        (content(1, 2, &["{}"]), Step::Broken, "answer_incomplete"),
        (content(2, 0, &["{}"]), Step::Broken, "answer_interrupted"),
        // After a terminal there is nothing left to cancel.
        (completed(1, 7), Step::Nothing, "answer_incomplete"),
        (completed(2, 1), Step::Nothing, "answer_interrupted"),
        (failed(1, 1, 502, "upstream_cut"), Step::Nothing, "upstream_cut"),
    ];
    for (frame, step, code) in table {
        let slot = slot(true, 1 << 20);
        slot.live(10, &content(1, 0, &["{}"]));
        assert_eq!(slot.live(11, &frame), step, "{code}");
        let text = read(&slot);
        assert!(text.starts_with("id: 3-10-0\ndata: {}\n\ndata: {\"error\":{"), "{text}");
        assert!(text.contains(&format!("\"code\":\"{code}\"")) && !text.contains("[DONE]"), "{text}");
    }
}

#[test]
fn an_error_before_content_is_no_stream() {
    let slot = slot(true, 1 << 20);
    slot.live(10, &failed(0, 0, 404, "model_not_found"));
    assert_eq!(failure(&slot), (404, "model_not_found".into()));
}

#[test]
fn a_completed_stream_whose_content_never_came_is_an_error() {
    let slot = slot(true, 1 << 20);
    slot.live(10, &completed(1, 3));
    assert!(matches!(beginning(&slot), Poll::Ready(Beginning::Failed(_))));
}

#[test]
fn an_empty_stream_is_only_done() {
    let slot = slot(true, 1 << 20);
    slot.live(10, &completed(1, 0));
    assert_eq!(beginning(&slot), Poll::Ready(Beginning::Stream(Some(head()))));
    assert_eq!(read(&slot), "data: [DONE]\n\n");
}

#[test]
fn a_whole_answer_is_its_terminal() {
    let slot = slot(false, 1 << 20);
    slot.live(10, &content(1, 0, &["{}"]));
    assert!(beginning(&slot).is_pending());
    slot.live(11, &whole("{\"id\":1}"));
    let Poll::Ready(Beginning::Whole(terminal)) = beginning(&slot) else { panic!("no answer") };
    assert_eq!(terminal.body.as_deref(), Some(b"{\"id\":1}".as_slice()));
}

#[test]
fn a_whole_answer_without_a_body_is_an_error() {
    let slot = slot(false, 1 << 20);
    slot.live(10, &completed(1, 0));
    assert_eq!(failure(&slot), (502, "answer_without_body".into()));
}

#[test]
fn a_connection_that_goes_away_leaves_an_open_request_to_cancel() {
    let shared = shared(1 << 20);
    let slot = asking(true, false, &shared);
    slot.live(10, &content(1, 0, &["{}"]));
    assert!(slot.abandon());
    assert_eq!(shared.metrics.bytes_waiting(), 0);
    assert_eq!(slot.live(11, &content(1, 1, &["{}"])), Step::Nothing);
    assert_eq!(shared.metrics.bytes_waiting(), 0);
}

#[test]
fn a_frame_larger_than_the_bound_passes_when_nothing_waits() {
    let slot = slot(true, 10);
    assert_eq!(slot.live(10, &content(1, 0, &[&"x".repeat(100)])), Step::Nothing);
    slot.live(11, &completed(1, 1));
    assert!(read(&slot).ends_with("data: [DONE]\n\n"));
}

/// Three frames of more than half the bound, and their end.
fn long() -> Vec<(i64, Frame)> {
    let event = |name: char| format!("{{\"{name}\":\"{}\"}}", "x".repeat(100));
    let frame = |sequence, name| own(content(1, sequence, &[&event(name)]));
    vec![(10, frame(0, 'a')), (12, frame(1, 'b')), (15, frame(2, 'c')), (16, own(completed(1, 3)))]
}

#[test]
fn a_laggard_keeps_its_position_only_and_reads_on_from_the_log() {
    let (shared, log) = (shared(200), long());
    let slot = asking(true, false, &shared);
    assert_eq!(slot.live(10, &log[0].1), Step::Nothing);
    assert_eq!(slot.live(12, &log[1].1), Step::Lagging);
    assert_eq!(shared.metrics.bytes_waiting(), 0, "what waited is dropped");
    assert_eq!(slot.live(15, &log[2].1), Step::Nothing);
    assert_eq!(slot.need(None), Need::Later, "nothing is read for a client that takes nothing");
    // It takes nothing, and finds nothing: now it is hungry, from the frame on of which it has no byte.
    assert_eq!(read(&slot), "");
    assert_eq!(slot.need(None), Need::From(10));
    sweep(&slot, 10..16, &log);
    assert_eq!(slot.need(Some(16)), Need::Later, "a second frame has no room");
    let mut text = read(&slot);
    sweep(&slot, 12..16, &log);
    text.push_str(&read(&slot));
    assert_eq!(slot.need(None), Need::From(15));
    sweep(&slot, 15..16, &log);
    assert_eq!(slot.need(None), Need::Nothing, "no live frame went by that it has not read");
    slot.live(16, &log[3].1);
    text.push_str(&read(&slot));
    assert_eq!(text.matches("id: 3-").count(), 3);
    assert!(text.starts_with("id: 3-10-0\n") && text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");
    assert_eq!(shared.metrics.bytes_waiting(), 0);
}

#[test]
fn a_laggard_waits_between_two_events_even_if_it_had_taken_half_of_one() {
    let shared = bounded(Bounds { slot_bytes: 200, all_bytes: 1 << 20, fair_bytes: 1, piece_bytes: 50 });
    let (slot, log) = (asking(true, false, &shared), long());
    slot.live(10, &log[0].1);
    let Poll::Ready(Piece::Bytes(half)) = piece(&slot) else { panic!("no bytes") };
    slot.live(12, &log[1].1);
    slot.live(15, &log[2].1);
    slot.live(16, &log[3].1);
    let text = String::from_utf8(half.to_vec()).unwrap() + &read(&slot);
    assert!(text.len() > half.len() && text.ends_with("\n\n"), "the rest of the event stayed: {text}");
    sweep(&slot, 10..17, &log);
    let mut text = text + &read(&slot);
    for from in [12, 15, 16] {
        sweep(&slot, from..17, &log);
        text.push_str(&read(&slot));
    }
    let whole = slot_of(&log);
    assert_eq!(text, whole);
}

/// The stream of these frames for a client that takes everything at once.
fn slot_of(log: &[(i64, Frame)]) -> String {
    let slot = slot(true, 1 << 20);
    for (offset, frame) in log {
        slot.live(*offset, frame);
    }
    read(&slot)
}

#[test]
fn what_was_read_ahead_in_the_log_is_not_taken_live_again() {
    let log = long();
    let slot = slot(true, 200);
    slot.live(10, &log[0].1);
    slot.live(12, &log[1].1);
    let mut text = read(&slot);
    sweep(&slot, 10..12, &log);
    text.push_str(&read(&slot));
    sweep(&slot, 12..16, &log);
    assert_eq!(slot.need(None), Need::Nothing);
    text.push_str(&read(&slot));
    for (offset, frame) in &log {
        slot.live(*offset, frame);
        text.push_str(&read(&slot));
    }
    assert_eq!(text.matches("id: 3-").count(), 3);
    assert!(text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");
}

#[test]
fn an_answer_that_is_complete_is_neither_cancelled_nor_late_because_its_client_is_slow() {
    let log = long();
    let slot = slot(true, 200);
    for (offset, frame) in &log {
        slot.live(*offset, frame);
    }
    assert!(slot.goes_on(), "it fell behind since");
    assert!(!slot.goes_on(), "and got nothing");
    read(&slot);
    sweep(&slot, 10..17, &log);
    assert!(slot.goes_on(), "something came since");
    read(&slot);
    assert!(slot.goes_on(), "and was taken");
    assert!(!slot.goes_on(), "and nothing more");
    assert!(!slot.abandon());
}

#[test]
fn a_laggard_that_retention_overtakes_is_told() {
    let log = long();
    let slot = slot(true, 200);
    slot.live(10, &log[0].1);
    slot.live(12, &log[1].1);
    slot.cut(10);
    assert_eq!(slot.need(None), Need::Later);
    slot.cut(11);
    assert_eq!(slot.need(None), Need::Nothing);
    let text = read(&slot);
    assert!(text.contains("\"code\":\"answer_expired\"") && !text.contains("id: "), "{text}");
}

fn refused(code: &str, original: Option<Original>) -> Frame {
    let error = ApiError { status: 409, code: code.into(), ..ApiError::from(error::Refusal::Internal) };
    let terminal = Terminal { error: Some(error), original, ..Terminal::of(Outcome::Refused) };
    Frame { body: FrameBody::Terminal(Box::new(terminal)), ..failed(0, 0, 409, code) }
}

const SINCE: Timestamp = Timestamp::from_millis(5_000);

fn duplicate(open: bool) -> (Frame, Original) {
    let original = Original { partition: 2, since: SINCE, open };
    (refused("duplicate_request_id", Some(original)), original)
}

#[test]
fn a_repeat_is_answered_as_the_first_one_was() {
    let slot = asking(true, true, &shared(1 << 20));
    let (terminal, original) = duplicate(false);
    assert_eq!(slot.live(100, &terminal), Step::Repeats(original));
    assert_eq!((slot.is_replay(), slot.partition(), slot.since()), (true, 2, Some(SINCE)));
    assert!(beginning(&slot).is_pending());
    slot.located(0..20, 4);
    // Refusals of other repeats, and what others asked, is not the answer.
    let other = Frame { organization: "globex".parse().unwrap(), ..content(1, 0, &["{}"]) };
    let mut log = vec![(5, terminal), (6, other), (7, refused("request_id_reused", None))];
    log.extend([(10, own(content(1, 0, &["{}"]))), (11, own(completed(1, 1)))]);
    sweep(&slot, 4..20, &log);
    assert_eq!(beginning(&slot), Poll::Ready(Beginning::Stream(Some(head()))));
    assert_eq!(read(&slot), "id: 2-10-0\ndata: {}\n\ndata: [DONE]\n\n");
    assert!(!slot.abandon());
}

#[test]
fn a_repeat_never_cancels_the_first_one() {
    for broken in [None, Some(own(content(2, 0, &["{}"])))] {
        let slot = asking(true, true, &shared(1 << 20));
        slot.live(100, &duplicate(true).0);
        slot.located(0..20, 4);
        let log = [(10, own(content(1, 0, &["{}"])))];
        sweep(&slot, 4..20, &log);
        if let Some(frame) = broken {
            assert_eq!(slot.logged(20, &frame), Step::Left);
        }
        assert!(!slot.abandon());
    }
}

#[test]
fn without_a_key_a_repeat_is_a_conflict() {
    let slot = slot(true, 1 << 20);
    assert_eq!(slot.live(100, &duplicate(true).0), Step::Nothing);
    assert_eq!(failure(&slot), (409, "duplicate_request_id".into()));
}

#[test]
fn a_key_with_another_body_is_a_conflict_that_names_the_key() {
    for (idempotent, code) in [(true, "idempotency_key_reused"), (false, "request_id_reused")] {
        let slot = asking(false, idempotent, &shared(1 << 20));
        slot.live(100, &refused("request_id_reused", None));
        assert_eq!(failure(&slot), (409, code.into()));
    }
}

#[test]
fn an_original_whose_beginning_expired_is_gone() {
    let slot = asking(true, true, &shared(1 << 20));
    slot.live(100, &duplicate(false).0);
    slot.located(10..20, 10);
    sweep(&slot, 10..20, &[(12, own(content(1, 3, &["{}"])))]);
    assert_eq!(failure(&slot), (410, "answer_expired".into()));
}

fn reading(offset: i64, index: usize) -> Slot {
    Slot::reading(key(), EventId { at: Position { partition: 3, offset }, index }, shared(1 << 20))
}

#[test]
fn a_stream_goes_on_behind_an_event() {
    let two = own(content(1, 4, &["{\"a\":1}", "{\"b\":2}"]));
    let log = [(12, own(content(1, 5, &["{\"c\":3}"]))), (13, own(completed(1, 6)))];
    for (index, text) in [(0, "id: 3-10-1\ndata: {\"b\":2}\n\n"), (1, "")] {
        let slot = reading(10, index);
        slot.located(0..14, 14);
        assert_eq!((slot.sought_at(), slot.need(None)), (Some(10), Need::From(10)));
        slot.sought(10, Some(&two));
        assert_eq!(beginning(&slot), Poll::Ready(Beginning::Stream(None)));
        // A repeat's refusal of the same id stands on the same partition.
        slot.logged(11, &refused("duplicate_request_id", None));
        for (offset, frame) in &log {
            slot.logged(*offset, frame);
        }
        assert_eq!(read(&slot), format!("{text}id: 3-12-0\ndata: {{\"c\":3}}\n\ndata: [DONE]\n\n"));
    }
}

#[test]
fn a_position_that_is_not_the_requests_is_not_found() {
    let first = own(content(1, 0, &["{}"]));
    let foreign = [
        None,
        Some(Frame { organization: "globex".parse().unwrap(), ..first.clone() }),
        Some(Frame { request_id: "r2".parse().unwrap(), ..first.clone() }),
        Some(own(completed(1, 1))),
    ];
    for frame in &foreign {
        let slot = reading(10, 0);
        slot.located(0..14, 14);
        slot.sought(10, frame.as_ref());
        assert_eq!(failure(&slot), (404, "event_not_found".into()), "{frame:?}");
    }
    let slot = reading(10, 1);
    slot.sought(10, Some(&first));
    assert_eq!(failure(&slot), (404, "event_not_found".into()), "no such event in the frame");
    for (log, error) in [(0..10, (404, "event_not_found")), (11..20, (410, "answer_expired"))] {
        let slot = reading(10, 0);
        slot.located(log, 0);
        assert_eq!(failure(&slot), (error.0, error.1.to_owned()));
    }
}
