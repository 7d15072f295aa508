//! Clients that read slowly or not at all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tollstream::codec::{Codec, Registry};
use tollstream::records::requests::Chat;
use tollstream::simulate::Behavior;

use super::again::{Gateway, question};
use super::facade::{Processor, completed, content};
use super::fixture::{PATIENCE, eventually, key, stack};
use super::process::{metric, run_roles};

const READERS: &str = "tollstream_facade_catch_up_readers";
const WAITING: &str = "tollstream_facade_slots_bytes";
/// A laggard is given a portion of 64 KiB at once, but at least one frame, which has 256 KiB of chunks at the most.
const GIVEN_BYTES_MAX: f64 = (512 << 10) as f64;

/// A connection for which the sockets between hold little, on which a chat request was sent.
async fn ask(url: &str, key: &str, headers: &str, body: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a buffer");
    SockRef::from(&socket).set_tcp_mss(536).expect("small segments");
    let address = url.trim_start_matches("http://").parse().expect("an address");
    let mut stream = socket.connect(address).await.expect("connected");
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    stream
}

/// The body of the response, its chunks put together; from here on the client reads as fast as it can.
async fn rest(stream: &mut TcpStream) -> String {
    SockRef::from(&*stream).set_recv_buffer_size(1 << 20).expect("a buffer");
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 1 << 16]);
    while !bytes.ends_with(b"\r\n0\r\n\r\n") {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut piece)).await.expect("in time").expect("bytes");
        assert!(read > 0, "the stream has an end");
        bytes.extend_from_slice(&piece[..read]);
    }
    let text = String::from_utf8(bytes).expect("text");
    let (head, mut chunks) = text.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut body = String::new();
    while let Some((size, rest)) = chunks.split_once("\r\n") {
        let (chunk, rest) = rest.split_at(usize::from_str_radix(size, 16).expect("a size"));
        body.push_str(chunk);
        chunks = rest.strip_prefix("\r\n").expect("the end of a chunk");
    }
    body
}

#[tokio::test]
async fn a_slow_client_gets_the_whole_long_answer_unless_it_expires_meanwhile() {
    let behavior = Behavior { output_tokens: Some(10_000), ..Behavior::instant() };
    let gateway = Gateway::start("slow", behavior, |config| config.facade.slot_bytes_max = 64 << 10).await;
    let (facade, admin) = (gateway.first.facade_url().expect("a facade"), gateway.first.admin_url());
    let body = question(true, "Everything?");
    for (key, expires) in [("kept", false), ("expired", true), ("overtaken", true)] {
        let completed = gateway.simulator.stats().completed;
        let headers = format!("idempotency-key: {key}\r\n");
        let mut slow = ask(&facade, gateway.key(), &headers, &body.to_string()).await;
        eventually("the answer is complete and its client lags", async || {
            let complete = gateway.simulator.stats().completed > completed;
            (complete && metric(&admin, READERS).await == 1.0).then_some(())
        })
        .await;
        let waiting = metric(&admin, WAITING).await;
        assert!(waiting <= GIVEN_BYTES_MAX, "{waiting} bytes wait");
        let quick = gateway.ask(&gateway.second, key, &body).await.text().await.expect("text");
        assert!(quick.ends_with("data: [DONE]\n\n") && quick.len() > 1_000_000, "{} bytes", quick.len());
        if expires {
            gateway.expire(1).await;
        }
        if key == "overtaken" {
            // What is written after it begins behind a gap.
            gateway.ask(&gateway.first, "other", &body).await.text().await.expect("text");
        }
        let text = rest(&mut slow).await;
        if expires {
            let (prefix, error) = text.rsplit_once("data: {\"error\"").expect("an error");
            assert!(quick.starts_with(prefix) && error.contains("answer_expired"), "{error}");
        } else {
            assert!(text == quick, "{} bytes of {}", text.len(), quick.len());
        }
        eventually("nobody lags", async || (metric(&admin, READERS).await == 0.0).then_some(())).await;
    }
    gateway.stop().await;
}

const STALLED: usize = 1_000;
/// Bytes of each frame, and frames of each answer: 600 MB for all.
const EVENT_BYTES: usize = 20_000;
const FRAMES: u32 = 30;
/// The configured 16 MiB, and beyond them one frame for each.
const WAITING_BYTES_MAX: f64 = ((16 << 20) + STALLED * (EVENT_BYTES + 100)) as f64;

/// A streamed answer, while all others stand still.
async fn neighbour(processor: &Processor, facade: &str, key: &str) {
    let body = question(true, "Neighbour?");
    let request = reqwest::Client::new().post(format!("{facade}/v1/chat/completions")).bearer_auth(key).json(&body);
    let answer = async {
        let response = request.timeout(Duration::from_secs(20)).send().await.expect("an answer");
        response.text().await.expect("text")
    };
    let (text, ()) = tokio::join!(answer, async {
        let chat = processor.chat().await;
        for sequence in 0..FRAMES {
            processor.send(&chat, &processor.encoded(&chat, sequence, content("{}"))).await;
        }
        processor.send(&chat, &processor.encoded(&chat, FRAMES, completed())).await;
    });
    assert_eq!(text.matches("data: {}").count(), FRAMES as usize);
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn a_thousand_clients_that_stop_reading_leave_memory_and_neighbours_alone() {
    let mut config = stack().isolated("stalled").await;
    config.facade.slot_bytes_max = 64 << 10;
    config.facade.slots_bytes_max = 16 << 20;
    config.facade.stalled_client_ms = 600_000;
    let key = key(&config, "org_demo");
    let mut facade = run_roles(&config, "stalled", "facade");
    facade.ready().await;
    let registry = Registry::new(&config.registry, &config.kafka.topic_prefix).expect("a registry");
    let codec = Arc::new(Codec::connect(registry).await.expect("a codec"));
    let processor = Processor::new(&config, codec);
    neighbour(&processor, &facade.facade, &key).await;
    let before = facade.memory_bytes();

    let body = question(true, "Who reads this?").to_string();
    let (mut clients, mut chats) = (HashMap::new(), Vec::<Box<Chat>>::new());
    for _ in 0..STALLED {
        let client = ask(&facade.facade, &key, "", &body).await;
        let chat = processor.chat().await;
        clients.insert(chat.request_id.clone(), client);
        chats.push(chat);
    }
    let event = format!("{{\"text\":\"{}\"}}", "x".repeat(EVENT_BYTES));
    for sequence in 0..FRAMES {
        for some in chats.chunks(250) {
            let frame = |chat: &Chat| processor.encoded(chat, sequence, content(&event));
            let records: Vec<_> = some.iter().map(|chat| (chat.as_ref(), frame(chat))).collect();
            processor.send_all(&records).await;
            assert!(metric(&facade.admin, WAITING).await < WAITING_BYTES_MAX, "what waits is bounded");
        }
        if sequence % 5 == 0 {
            neighbour(&processor, &facade.facade, &key).await;
        }
    }
    let terminals: Vec<_> =
        chats.iter().map(|chat| (chat.as_ref(), processor.encoded(chat, FRAMES, completed()))).collect();
    processor.send_all(&terminals).await;
    eventually("all lag", async || (metric(&facade.admin, READERS).await == STALLED as f64).then_some(())).await;
    assert!(metric(&facade.admin, WAITING).await < WAITING_BYTES_MAX, "what waits is bounded");
    let grown = facade.memory_bytes().saturating_sub(before);
    // A connection's own buffers are at most 80 KiB, and 36 MiB wait for all together; the answers are 600 MB.
    assert!(grown < 256 << 20, "{} MiB for {STALLED} clients", grown >> 20);
    neighbour(&processor, &facade.facade, &key).await;

    // Whoever reads on gets everything, the others go away.
    for chat in chats.drain(..20) {
        let mut client = clients.remove(&chat.request_id).expect("a client");
        let text = rest(&mut client).await;
        assert!(text.ends_with("data: [DONE]\n\n"), "{}", &text[text.len().saturating_sub(200)..]);
        assert_eq!(text.matches(event.as_str()).count(), FRAMES as usize);
    }
    drop(clients);
    eventually("nobody is left", async || (metric(&facade.admin, READERS).await == 0.0).then_some(())).await;
}
