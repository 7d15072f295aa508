//! Server-sent events from bytes as they come: any split, any line ending, bounded.

use std::mem;

/// One event. `data` is the lines of data, parted by LF.
#[derive(Debug, PartialEq, Eq)]
pub struct Event<'a> {
    pub name: &'a [u8],
    pub data: &'a [u8],
    /// The stream ended before the empty line that completes an event.
    pub is_unterminated: bool,
}

/// An event or a line that is larger than the bound.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLarge;

/// Bytes in, events out. What a comment, `id` or `retry` says is passed over.
#[derive(Debug)]
pub struct EventParser {
    /// The beginning of a line that is not complete.
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last line ended in CR; an LF that follows belongs to it.
    after_cr: bool,
    is_first_line: bool,
    /// Lines that are none of SSE, as long as nothing of SSE was seen: a body of another format.
    stray: Vec<u8>,
    is_sse: bool,
    event_bytes_max: usize,
}

impl EventParser {
    pub fn new(event_bytes_max: usize) -> Self {
        Self {
            line: Vec::new(),
            name: Vec::new(),
            data: Vec::new(),
            has_data: false,
            after_cr: false,
            is_first_line: true,
            stray: Vec::new(),
            is_sse: false,
            event_bytes_max,
        }
    }

    pub fn push(&mut self, bytes: &[u8], on_event: &mut impl FnMut(Event<'_>)) -> Result<(), TooLarge> {
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            if mem::take(&mut self.after_cr) && *first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let Some(at) = memchr::memchr2(b'\n', b'\r', rest) else {
                self.line.extend_from_slice(rest);
                return self.check(self.line.len());
            };
            self.after_cr = rest[at] == b'\r';
            if self.line.is_empty() {
                self.line_ended(&rest[..at], on_event)?;
            } else {
                let mut line = mem::take(&mut self.line);
                line.extend_from_slice(&rest[..at]);
                self.line_ended(&line, on_event)?;
                // The buffer is kept for the next line.
                line.clear();
                self.line = line;
            }
            rest = &rest[at + 1..];
        }
        Ok(())
    }

    /// The stream has ended: what it left unterminated.
    pub fn finish(&mut self, on_event: &mut impl FnMut(Event<'_>)) -> Result<(), TooLarge> {
        let line = mem::take(&mut self.line);
        if !line.is_empty() {
            self.line_ended(&line, on_event)?;
        }
        self.dispatch(true, on_event);
        Ok(())
    }

    /// The body where it was of another format altogether, else nothing.
    pub fn stray(&self) -> &[u8] {
        &self.stray
    }

    /// Bytes that wait for the end of their event.
    pub fn waiting_bytes(&self) -> usize {
        self.line.len() + self.data.len() + self.stray.len()
    }

    fn check(&self, line_bytes: usize) -> Result<(), TooLarge> {
        let total = line_bytes.saturating_add(self.data.len()).saturating_add(self.stray.len());
        if total > self.event_bytes_max { Err(TooLarge) } else { Ok(()) }
    }

    fn line_ended(&mut self, line: &[u8], on_event: &mut impl FnMut(Event<'_>)) -> Result<(), TooLarge> {
        self.check(line.len())?;
        let line = match mem::take(&mut self.is_first_line) {
            true => line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line),
            false => line,
        };
        if line.is_empty() {
            self.dispatch(false, on_event);
            return Ok(());
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(at) => (&line[..at], line[at + 1..].strip_prefix(b" ").unwrap_or(&line[at + 1..])),
            None => (line, &[][..]),
        };
        match field {
            b"data" => {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
                self.has_data = true;
            }
            b"event" => value.clone_into(&mut self.name),
            b"" | b"id" | b"retry" => {}
            _ => {
                if !self.is_sse {
                    self.stray.extend_from_slice(line);
                    self.stray.push(b'\n');
                }
                return Ok(());
            }
        }
        self.is_sse = true;
        self.stray.clear();
        Ok(())
    }

    fn dispatch(&mut self, is_unterminated: bool, on_event: &mut impl FnMut(Event<'_>)) {
        if mem::take(&mut self.has_data) {
            on_event(Event { name: &self.name, data: &self.data, is_unterminated });
        }
        self.name.clear();
        self.data.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<(String, String, bool)> {
        let mut parser = EventParser::new(1_000);
        let mut seen = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut on_event = |e: Event<'_>| seen.push((text(e.name), text(e.data), e.is_unterminated));
        for piece in pieces {
            parser.push(piece, &mut on_event).unwrap();
        }
        parser.finish(&mut on_event).unwrap();
        seen
    }

    fn data(stream: &str) -> Vec<String> {
        events(&[stream.as_bytes()]).into_iter().map(|(_, data, _)| data).collect()
    }

    #[test]
    fn every_line_ending_parts_lines() {
        for end in ["\n", "\r\n", "\r"] {
            let stream = format!(": hello{end}data: 1{end}{end}data: 2{end}{end}");
            assert_eq!(data(&stream), ["1", "2"], "{end:?}");
        }
    }

    #[test]
    fn lines_of_data_are_joined() {
        assert_eq!(data("data: a\ndata:b\ndata\n\n"), ["a\nb\n"]);
    }

    #[test]
    fn one_space_goes_and_other_fields_do_not_count() {
        assert_eq!(data("id: 7\nretry: 10\nevent\ndata:  a:b\nfoo: bar\n\n"), [" a:b"]);
    }

    #[test]
    fn names_hold_for_one_event() {
        let seen = events(&[b"event: error\ndata: 1\n\ndata: 2\n\nevent: x\n\ndata: 3\n\n"]);
        assert_eq!(seen.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["error", "", ""]);
    }

    #[test]
    fn a_byte_order_mark_is_passed_over_even_when_split() {
        assert_eq!(data("\u{feff}data: 1\n\n"), ["1"]);
        assert_eq!(events(&[b"\xef", b"\xbb\xbfda", b"ta: 1\n\n"])[0].1, "1");
    }

    #[test]
    fn a_cr_at_the_end_of_a_piece_ends_one_line() {
        assert_eq!(events(&[b"data: 1\r", b"\ndata: 2\r", b"\n\r", b"\n"])[0].1, "1\n2");
    }

    #[test]
    fn an_unterminated_event_is_marked() {
        assert_eq!(events(&[b"data: 1\n"]), [(String::new(), "1".into(), true)]);
        assert_eq!(events(&[b"data: 1"]), [(String::new(), "1".into(), true)]);
        assert!(events(&[b"data: 1\n\n"]).iter().all(|(.., unterminated)| !unterminated));
    }

    #[test]
    fn a_body_of_another_format_is_kept() {
        let mut parser = EventParser::new(1_000);
        parser.push(b"{\"error\":\n {}}", &mut |_| panic!("no event")).unwrap();
        parser.finish(&mut |_| panic!("no event")).unwrap();
        assert_eq!(parser.stray(), b"{\"error\":\n {}}\n");
    }

    #[test]
    fn an_event_is_bounded_whatever_it_is_made_of() {
        let big = [b'x'; 30];
        let lines = b"data: 123456789\ndata: 123456789\ndata: 123456789\n".to_vec();
        for stream in [big.to_vec(), [b": ", &big[..]].concat(), [b"data: ", &big[..], b"\n"].concat(), lines] {
            let mut parser = EventParser::new(20);
            assert_eq!(parser.push(&stream, &mut |_| {}), Err(TooLarge));
            let mut parser = EventParser::new(20);
            let mut bytes = stream.chunks(1);
            assert!(bytes.any(|byte| parser.push(byte, &mut |_| {}).is_err()));
        }
    }
}
