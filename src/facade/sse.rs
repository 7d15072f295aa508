//! Server-sent events, byte for byte.

use std::fmt::Write as _;

use bytes::{BufMut as _, Bytes, BytesMut};

/// The end of a whole stream, as OpenAI's clients expect it.
pub const DONE: &[u8] = b"data: [DONE]\n\n";
/// A comment, which clients pass over: it keeps proxies and sockets from giving up.
pub const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");
/// Bytes that an event has beside its data: `id: `, three numbers, `data: ` and the line breaks.
pub const OVERHEAD_BYTES: usize = 48;

/// Where a frame is on `responses`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub partition: i32,
    pub offset: i64,
}

/// An event of a stream: a frame, and the event's place in it. Written as `PARTITION-OFFSET-INDEX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventId {
    pub at: Position,
    pub index: usize,
}

impl EventId {
    /// `None` when it is not written as events' ids are.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('-');
        let mut number = || numbers.next().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let (partition, offset, index) = (number()?, number()?, number()?);
        let at = Position { partition: partition.parse().ok()?, offset: offset.parse().ok()? };
        let index = index.parse::<u32>().ok()? as usize;
        numbers.next().is_none().then_some(Self { at, index })
    }
}

/// Appends one event, whose id is its frame's position and its index in the frame.
pub fn event(out: &mut BytesMut, at: Position, index: usize, data: &[u8]) {
    // Writing into memory cannot fail.
    let _ = write!(out, "id: {}-{}-{index}\ndata: ", at.partition, at.offset);
    if memchr::memchr2(b'\n', b'\r', data).is_none() {
        out.put_slice(data);
    } else {
        // A line break ends a field, so each line of the data gets a field of its own; the client joins them with \n,
        // which inside JSON is white space as before.
        for (line, text) in data.split(|byte| matches!(byte, b'\n' | b'\r')).enumerate() {
            if line > 0 {
                out.put_slice(b"\ndata: ");
            }
            out.put_slice(text);
        }
    }
    out.put_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(data: &[u8]) -> String {
        let mut out = BytesMut::new();
        event(&mut out, Position { partition: 3, offset: 1_234 }, 7, data);
        assert!(out.len() <= data.len() + OVERHEAD_BYTES + 8 * data.iter().filter(|b| **b == b'\n').count());
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn an_events_id_is_read_as_it_is_written() {
        let at = Position { partition: 3, offset: 1_234 };
        assert_eq!(EventId::parse("3-1234-7"), Some(EventId { at, index: 7 }));
        let beyond = format!("3-{}-7", u128::MAX);
        for text in ["", "3", "3-1234", "3-1234-7-", "3-1234-7-1", "-3-1234-7", "3--1-7", "+3-1-7", "3-1234-x", &beyond]
        {
            assert_eq!(EventId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_event_has_its_id_and_its_data() {
        assert_eq!(written(br#"{"a":1}"#), "id: 3-1234-7\ndata: {\"a\":1}\n\n");
    }

    #[test]
    fn a_line_break_in_the_data_does_not_end_the_event() {
        assert_eq!(written(b"{\n\"a\":1}"), "id: 3-1234-7\ndata: {\ndata: \"a\":1}\n\n");
        assert_eq!(written(b"{\r\n}"), "id: 3-1234-7\ndata: {\ndata: \ndata: }\n\n");
    }
}
