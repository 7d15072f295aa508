use proptest::prelude::*;

use super::*;
use crate::domain::{ModelName, RequestId, Timestamp, TokenUsage};

const EVENT_BYTES_MAX: usize = 4_096;

fn decoder(include_usage: bool) -> StreamDecoder {
    let (id, model) = (RequestId::parse("r1").unwrap(), ModelName::parse("gpt-4o").unwrap());
    let identity = Identity::new(&id, &model, Timestamp::from_millis(1_700_000_000_999));
    StreamDecoder::new(identity, include_usage, EVENT_BYTES_MAX)
}

/// What came out of a stream: its chunks, its end, and what is known of it.
type Outcome = (Vec<String>, Result<(), FailureClass>, Summary);

fn outcome(mut decoder: StreamDecoder) -> Outcome {
    let chunks = std::iter::from_fn(|| decoder.pop()).map(|chunk| String::from_utf8(chunk.to_vec()).unwrap());
    let chunks = chunks.collect();
    (chunks, decoder.end().unwrap().clone().map_err(|failure| failure.class), decoder.summary())
}

fn decoded(stream: &[u8], include_usage: bool) -> Outcome {
    let mut decoder = decoder(include_usage);
    decoder.push(stream);
    decoder.finish();
    outcome(decoder)
}

fn sse(events: &[&str]) -> String {
    events.iter().map(|event| format!("data: {event}\n\n")).collect()
}

/// A provider's chunk around `choices` and what follows them.
fn theirs(rest: &str) -> String {
    format!(r#"{{"id":"up-1","object":"chat.completion.chunk","created":42,"model":"up/model",{rest}}}"#)
}

/// The same as the client gets it.
fn ours(rest: &str) -> String {
    format!(r#"{{"id":"chatcmpl-r1","object":"chat.completion.chunk","created":42,"model":"gpt-4o",{rest}}}"#)
}

const ROLE: &str = r#""choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]"#;
const HELLO: &str =
    r#""choices":[{"index":0,"delta":{"content":"ol\u00e1"},"logprobs":{"p":-0.10},"finish_reason":null}],"x":1e400"#;
const STOP: &str = r#""choices":[{"index":0,"delta":{},"finish_reason":"stop"}]"#;
const USAGE: &str = r#"{"prompt_tokens":9, "completion_tokens":2.0}"#;

fn usage_chunk() -> String {
    format!(r#""choices":[],"usage":{USAGE}"#)
}

fn known_usage() -> Option<TokenUsage> {
    Some(TokenUsage { input: Some(9), output: Some(2), ..TokenUsage::default() })
}

fn done(rests: &[&str]) -> String {
    let mut events: Vec<String> = rests.iter().map(|rest| theirs(rest)).collect();
    events.push("[DONE]".into());
    sse(&events.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_plain_stream_is_named_by_us_and_keeps_the_rest() {
    let (chunks, end, summary) = decoded(done(&[ROLE, HELLO, STOP, &usage_chunk()]).as_bytes(), true);
    assert_eq!(chunks, [ours(ROLE), ours(HELLO), ours(STOP), ours(&usage_chunk())]);
    assert_eq!(end, Ok(()));
    assert_eq!(summary, Summary { usage: known_usage(), finish_reason: Some("stop".into()), text_bytes: 4 });
}

#[test]
fn usage_that_was_not_asked_for_is_known_and_not_shown() {
    let null = format!(r#"{HELLO},"usage":null"#);
    let (chunks, _, summary) = decoded(done(&[ROLE, &null, STOP, &usage_chunk()]).as_bytes(), false);
    assert_eq!(chunks, [ours(ROLE), ours(HELLO), ours(STOP)]);
    assert_eq!(summary.usage, known_usage());
}

#[test]
fn usage_in_any_chunk_moves_into_one_of_its_own_at_the_end() {
    let with = |rest: &str, usage: &str| format!(r#"{rest},"usage":{usage}"#);
    let early = r#"{"prompt_tokens":9,"completion_tokens":1}"#;
    let streams = [
        ("in the last chunk with choices", vec![ROLE.to_owned(), HELLO.to_owned(), with(STOP, USAGE)]),
        ("growing in every chunk", vec![with(ROLE, early), with(HELLO, early), with(STOP, USAGE)]),
        (
            "first in a chunk of its own, then in the last",
            vec![ROLE.to_owned(), usage_chunk().replace('9', "7"), HELLO.to_owned(), with(STOP, USAGE)],
        ),
        ("in the middle, alone", vec![ROLE.to_owned(), usage_chunk(), HELLO.to_owned(), STOP.to_owned()]),
        (
            "twice alone",
            vec![ROLE.to_owned(), HELLO.to_owned(), STOP.to_owned(), usage_chunk().replace('9', "7"), usage_chunk()],
        ),
    ];
    for (rule, rests) in streams {
        let rests: Vec<&str> = rests.iter().map(String::as_str).collect();
        let (chunks, end, summary) = decoded(done(&rests).as_bytes(), true);
        let nulled = |rest: &str| [ours(rest), ours(&with(rest, "null"))];
        assert_eq!(chunks.len(), 4, "{rule}");
        for (chunk, rest) in chunks.iter().zip([ROLE, HELLO, STOP]) {
            assert!(nulled(rest).contains(chunk), "{rule}: {chunk}");
        }
        assert_eq!(chunks[3], ours(&usage_chunk()), "{rule}");
        assert_eq!((end, summary.usage), (Ok(()), known_usage()), "{rule}");
        let (chunks, ..) = decoded(done(&rests).as_bytes(), false);
        assert_eq!(chunks, [ours(ROLE), ours(HELLO), ours(STOP)], "{rule}");
    }
}

#[test]
fn usage_that_the_provider_did_not_report_is_unknown() {
    let (chunks, end, summary) = decoded(done(&[ROLE, HELLO, STOP]).as_bytes(), true);
    assert_eq!((chunks.len(), end, summary.usage), (3, Ok(()), None));
}

#[test]
fn usage_without_choices_at_all_becomes_a_chunk() {
    let alone = format!(r#"{{"usage":{USAGE}}}"#);
    let stream = format!("{}{}", sse(&[&theirs(HELLO), &theirs(STOP)]), sse(&[&alone, "[DONE]"]));
    let (chunks, ..) = decoded(stream.as_bytes(), true);
    let last: serde_json::Value = serde_json::from_str(chunks.last().unwrap()).unwrap();
    assert_eq!(last["choices"], serde_json::json!([]));
    assert_eq!(last["id"], "chatcmpl-r1");
    assert_eq!(last["usage"]["prompt_tokens"], 9);
}

#[test]
fn the_first_chunk_of_each_choice_has_a_role() {
    let first = r#""choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"role":null,"content":"b"}}]"#;
    let second = r#""choices":[{"index":1,"delta":{"content":"c"},"finish_reason":"stop"}]"#;
    let third = r#""choices":[{"delta":null,"finish_reason":"length"}]"#;
    let (chunks, end, summary) = decoded(done(&[first, second, third]).as_bytes(), false);
    let first = r#""choices":[{"index":0,"delta":{"content":"a","role":"assistant"}},{"index":1,"delta":{"role":"assistant","content":"b"}}]"#;
    let third = r#""choices":[{"delta":{},"finish_reason":"length","index":0}]"#;
    assert_eq!(chunks, [ours(first), ours(second), ours(third)]);
    assert_eq!((end, summary.finish_reason.as_deref(), summary.text_bytes), (Ok(()), Some("length"), 3));
}

#[test]
fn identity_is_the_same_in_all_chunks_whatever_the_provider_says() {
    let stream = sse(&[
        r#"{"id":"a","created":7,"choices":[{"index":0,"delta":{"role":"assistant","content":"x"}}]}"#,
        r#"{"id":"b","created":8,"model":"z","object":"y","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
    ]);
    let (chunks, ..) = decoded(stream.as_bytes(), false);
    for chunk in &chunks {
        let chunk: serde_json::Value = serde_json::from_str(chunk).unwrap();
        assert_eq!(chunk["id"], "chatcmpl-r1");
        assert_eq!(chunk["created"], 7);
        assert_eq!(chunk["model"], "gpt-4o");
        assert_eq!(chunk["object"], "chat.completion.chunk");
    }
    let (chunks, ..) = decoded(stream.replace("\"created\":7", "\"created\":1.5").as_bytes(), false);
    assert!(chunks.iter().all(|chunk| chunk.contains("\"created\":1700000000")), "{chunks:?}");
}

#[test]
fn the_decision_table_of_ends() {
    let error = r#"{"error":{"message":"overloaded","type":"server_error","code":503}}"#;
    let both = r#"{"choices":[],"error":{"message":"overloaded"}}"#;
    let anthropic = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
    let google = r#"[{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}]"#;
    let block = r#"{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"}}"#;
    let filtered = theirs(r#""choices":[{"index":0,"delta":{},"finish_reason":"content_filter"}]"#);
    let (hello, stop) = (theirs(HELLO), theirs(STOP));
    let two = theirs(r#""choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"b"}}]"#);
    let table = [
        ("complete", sse(&[&hello, &stop, "[DONE]"]), Ok(()), 2),
        ("no [DONE]", sse(&[&hello, &stop]), Ok(()), 2),
        ("no [DONE], no last line ending", format!("{}data: {stop}", sse(&[&hello])), Ok(()), 2),
        ("[DONE] without a line ending", format!("{}data: [DONE]", sse(&[&hello, &stop])), Ok(()), 2),
        ("no finish reason", sse(&[&hello, "[DONE]"]), Err(FailureClass::Cut), 1),
        ("neither", sse(&[&hello]), Err(FailureClass::Cut), 1),
        ("cut inside an event", format!("{}data: {}", sse(&[&hello]), &stop[..40]), Err(FailureClass::Cut), 1),
        ("one of two choices unfinished", sse(&[&two, &stop, "[DONE]"]), Err(FailureClass::Cut), 2),
        ("nothing", String::new(), Err(FailureClass::Cut), 0),
        ("only comments", ": hello\n\n: there\n\n".to_owned(), Err(FailureClass::Cut), 0),
        ("only [DONE]", sse(&["[DONE]"]), Err(FailureClass::Cut), 0),
        ("an error first", sse(&[error]), Err(FailureClass::Overloaded), 0),
        ("an error after content", sse(&[&hello, error, "[DONE]"]), Err(FailureClass::Overloaded), 1),
        ("Anthropic's error first", format!("event: error\ndata: {anthropic}\n\n"), Err(FailureClass::Overloaded), 0),
        (
            "Anthropic's error after content",
            format!("{}event: error\ndata: {anthropic}\n\n", sse(&[&hello])),
            Err(FailureClass::Overloaded),
            1,
        ),
        ("Google's error first", sse(&[google]), Err(FailureClass::RateLimited), 0),
        ("Google's error as a plain body", google.to_owned(), Err(FailureClass::RateLimited), 0),
        ("Google's block of the prompt", sse(&[block]), Err(FailureClass::ContentFilter), 0),
        ("a finish by a filter, without content", sse(&[&filtered, "[DONE]"]), Ok(()), 1),
        ("an error beside choices", sse(&[&hello, both]), Err(FailureClass::Upstream), 1),
        (
            "an event named error",
            format!("{}event: error\ndata: {{\"message\":\"m\"}}\n\n", sse(&[&hello])),
            Err(FailureClass::Upstream),
            1,
        ),
        ("an error as a plain body", error.to_owned(), Err(FailureClass::Overloaded), 0),
        ("a page", "<html>\n<body>".to_owned(), Err(FailureClass::Garbage), 0),
        ("no JSON", sse(&[&hello, "xyz"]), Err(FailureClass::Garbage), 1),
        ("no object", sse(&["[1]"]), Err(FailureClass::Garbage), 0),
        ("no choices", sse(&[r#"{"a":1}"#]), Err(FailureClass::Garbage), 0),
        ("choices that are none", sse(&[r#"{"choices":[1]}"#]), Err(FailureClass::Garbage), 0),
        (
            "a choice out of bounds",
            sse(&[r#"{"choices":[{"index":5000,"delta":{"content":"a"}}]}"#]),
            Err(FailureClass::Garbage),
            0,
        ),
        (
            "a foreign event",
            format!("event: ping\ndata: {{\"type\":\"ping\"}}\n\n{}", sse(&[&hello, &stop])),
            Ok(()),
            2,
        ),
        ("an empty event", format!("data:\n\n{}", sse(&[&hello, &stop])), Ok(()), 2),
        ("a null error", sse(&[&theirs(&format!("{HELLO},\"error\":null")), &stop]), Ok(()), 2),
        ("chunks after [DONE]", sse(&[&hello, &stop, "[DONE]", &hello, "xyz"]), Ok(()), 2),
        ("an event beyond the bound", sse(&[&hello, &"x".repeat(EVENT_BYTES_MAX)]), Err(FailureClass::TooLarge), 1),
        (
            "chunks without content beyond the bound",
            sse(&vec![theirs(ROLE).as_str(); 100]),
            Err(FailureClass::TooLarge),
            0,
        ),
    ];
    for (rule, stream, expected, count) in table {
        let (chunks, end, _) = decoded(stream.as_bytes(), false);
        assert_eq!((end, chunks.len()), (expected, count), "{rule}");
    }
}

#[test]
fn bytes_that_are_not_utf_8_are_garbage() {
    let (_, end, _) = decoded(b"data: {\"choices\":[],\"a\":\"\xff\"}\n\n", false);
    assert_eq!(end, Err(FailureClass::Garbage));
}

#[test]
fn an_error_in_the_stream_names_its_type_and_not_its_content() {
    let mut decoder = decoder(false);
    decoder.push(b"data: {\"error\":{\"message\":\"secret\",\"type\":\"server_error\",\"code\":503}}\n\n");
    let failure = decoder.end().unwrap().clone().unwrap_err();
    assert_eq!(failure.upstream_type.as_deref(), Some("server_error"));
    assert_eq!(failure.upstream_code.as_deref(), Some("503"));
    assert!(!failure.message.contains("secret"));
}

#[test]
fn nothing_is_handed_out_before_content() {
    let mut decoder = decoder(false);
    decoder.push(sse(&[&theirs(r#""choices":[],"prompt_filter_results":[]"#), &theirs(ROLE)]).as_bytes());
    assert_eq!((decoder.pop(), decoder.has_content()), (None, false));
    decoder.push(sse(&[&theirs(HELLO)]).as_bytes());
    assert!(decoder.has_content());
    assert_eq!(std::iter::from_fn(|| decoder.pop()).count(), 3);
}

#[test]
fn a_broken_connection_is_a_cut_unless_the_answer_was_finished() {
    let mut cut = decoder(false);
    cut.push(sse(&[&theirs(HELLO)]).as_bytes());
    cut.broken();
    assert_eq!(outcome(cut).1, Err(FailureClass::Cut));
    let mut finished = decoder(false);
    finished.push(sse(&[&theirs(HELLO), &theirs(STOP)]).as_bytes());
    finished.broken();
    assert_eq!(outcome(finished).1, Ok(()));
}

#[test]
fn json_over_several_lines_of_data_comes_out_on_one() {
    let chunk = theirs(HELLO).replace(',', ",\ndata: ");
    let (chunks, end, _) = decoded(sse(&[&theirs(ROLE), &chunk, &theirs(STOP)]).as_bytes(), false);
    assert_eq!((end, chunks.len()), (Ok(()), 3));
    assert!(!chunks[1].contains('\n'));
    let read = |json: &str| serde_json::from_str::<Vec<serde_json::Value>>(&format!("[{json}]"));
    let same = |json: &str| read(&json.replace("1e400", "1")).unwrap();
    assert_eq!(same(&chunks[1]), same(&ours(HELLO)));
}

#[test]
fn calls_of_tools_are_content() {
    let call = r#""choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":""}}]}}]"#;
    let stop = r#""choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]"#;
    let (chunks, end, summary) = decoded(done(&[call, stop]).as_bytes(), false);
    assert_eq!((chunks, end), (vec![ours(call), ours(stop)], Ok(())));
    assert_eq!(summary.text_bytes, 1);
}

/// Streams of all sorts: good, broken, foreign, with every line ending.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let event = prop_oneof![
        4 => Just(theirs(HELLO)),
        2 => Just(theirs(r#""choices":[{"index":0,"delta":{"content":"日本語🙂"}}]"#)),
        2 => Just(theirs(STOP)),
        1 => Just(theirs(ROLE)),
        1 => Just(theirs(&usage_chunk())),
        1 => Just("[DONE]".to_owned()),
        1 => Just(r#"{"error":{"code":1}}"#.to_owned()),
        1 => Just("x".repeat(EVENT_BYTES_MAX)),
        1 => "\\PC{0,8}",
    ];
    let before = prop_oneof![Just(""), Just(": comment\n"), Just("event: ping\n"), Just("id: 3\n"), Just("stray\n")];
    let end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
    let events = prop::collection::vec((before, event), 0..8);
    (events, end, any::<bool>(), 0..40_usize).prop_map(|(events, end, has_mark, cut)| {
        let lines = events.iter().map(|(before, event)| format!("{before}data: {event}\n\n"));
        let text = format!("{}{}", if has_mark { "\u{feff}" } else { "" }, lines.collect::<String>());
        let mut bytes = text.replace('\n', end).into_bytes();
        bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(20)));
        bytes
    })
}

proptest! {
    #[test]
    fn any_split_gives_the_same_chunks(
        stream in streams(),
        splits in prop::collection::vec(0..1_000_usize, 0..12),
        include_usage in any::<bool>(),
    ) {
        let expected = decoded(&stream, include_usage);
        let mut places: Vec<usize> = splits.iter().map(|split| split * stream.len() / 1_000).collect();
        places.sort_unstable();
        let (mut split, mut at) = (decoder(include_usage), 0);
        for place in places {
            split.push(&stream[at..place]);
            at = place;
        }
        split.push(&stream[at..]);
        split.finish();
        prop_assert_eq!(outcome(split), expected.clone());

        let mut bytewise = decoder(include_usage);
        stream.chunks(1).for_each(|byte| bytewise.push(byte));
        bytewise.finish();
        prop_assert_eq!(outcome(bytewise), expected);
    }
}
