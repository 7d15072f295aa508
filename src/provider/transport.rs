//! The one HTTP client of all providers: time-outs, bounds, and what a broken connection means.
//!
//! A caller that drops a call or its stream ends the HTTP exchange with it. Nothing is tried again here.

use std::future::Future;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Response};
use tokio::time::{Instant, timeout_at};

use super::openai::{self, Identity, OutputCap, StreamDecoder, Wanted};
use super::{Call, Failure, FailureClass, Summary};
use crate::config::{Providers, millis};
use crate::runtime::clock;
use crate::runtime::room::{Hold, Room};

/// W3C's name for the header that says of which trace a call is.
const TRACEPARENT: &str = "traceparent";
/// Most bytes that are read of an error's body.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// How long a connection that nobody uses is kept.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(90);
/// When an asker may come back whose answer had no room.
const NO_ROOM_RETRY: Duration = Duration::from_secs(1);
/// Any longer time-out is this long.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot make the HTTP client of the providers: {source}")]
    Client { source: reqwest::Error },
}

/// Calls providers over pooled connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Transport {
    client: Client,
    first_token_timeout: Duration,
    between_tokens_timeout: Duration,
    answer_bytes_max: usize,
    event_bytes_max: usize,
    answers: Room,
}

/// What a provider answered, as the client is to get it.
#[derive(Debug)]
pub enum Answer {
    Whole(Whole),
    Stream(Box<AnswerStream>),
}

#[derive(Debug)]
pub struct Whole {
    /// Its bytes take room among all answers until the last copy of it is dropped.
    pub body: Bytes,
    pub summary: Summary,
}

/// An answer and the room that it takes.
struct Roomed {
    body: Bytes,
    _room: Hold,
}

impl AsRef<[u8]> for Roomed {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Transport {
    pub fn new(config: &Providers) -> Result<Self, Error> {
        crate::tls::install_provider();
        let client = Client::builder()
            .no_proxy()
            .http1_only()
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(millis(config.connect_timeout_ms))
            .pool_idle_timeout(IDLE_CONNECTION_TIMEOUT)
            .build()
            .map_err(|source| Error::Client { source })?;
        Ok(Self {
            client,
            first_token_timeout: millis(config.first_token_timeout_ms).min(TIMEOUT_MAX),
            between_tokens_timeout: millis(config.between_tokens_timeout_ms).min(TIMEOUT_MAX),
            answer_bytes_max: config.answer_bytes_max,
            event_bytes_max: config.event_bytes_max,
            answers: Room::new(config.answers_bytes_max),
        })
    }

    /// For the bytes of answers between the providers and Kafka.
    pub fn answers(&self) -> &Room {
        &self.answers
    }

    /// Makes the call. A whole answer is complete when this returns; a stream has only begun, its status known.
    pub async fn call(&self, call: &Call) -> Result<Answer, Failure> {
        let limits = Limits::new(call, self);
        if call.timeout.is_zero() {
            return Err(limits.missed(Late::End));
        }
        let response = limits.within_first(call.stream, self.send(call)).await??;
        let status = response.status();
        if !status.is_success() {
            return Err(limits.within_first(call.stream, refusal(response, self.answers.hold())).await?);
        }
        let identity = Identity::new(&call.request_id, &call.model, clock::now());
        if call.stream && !is_json(response.headers()) {
            let decoder = StreamDecoder::new(identity, call.include_usage, self.event_bytes_max);
            return Ok(Answer::Stream(Box::new(AnswerStream { response, decoder, limits, room: self.answers.hold() })));
        }
        let mut room = self.answers.hold();
        let body = limits.within_first(call.stream, read(response, self.answer_bytes_max, &mut room)).await??;
        let (body, summary) = openai::whole(&body, &identity)?;
        if call.stream {
            return Err(Failure::new(FailureClass::Garbage, "the provider answered a streamed request whole"));
        }
        room.keep(body.len());
        Ok(Answer::Whole(Whole { body: Bytes::from_owner(Roomed { body, _room: room }), summary }))
    }

    async fn send(&self, call: &Call) -> Result<Response, Failure> {
        let output_cap = call.output_cap.map(|tokens| OutputCap { tokens, name: call.upstream.cap_name });
        let wanted = Wanted { upstream_model: &call.upstream.model, stream: call.stream, output_cap };
        let body = openai::request(&call.body, &wanted)?;
        let url = format!("{}/chat/completions", call.upstream.base_url.trim_end_matches('/'));
        let json = HeaderValue::from_static("application/json");
        let mut request = self.client.post(url).header(CONTENT_TYPE, json).body(body);
        if let Some(credential) = &call.upstream.credential {
            let unusable = |_| Failure::new(FailureClass::Configuration, "the credential is not usable in a header");
            let mut value = HeaderValue::try_from(format!("Bearer {}", credential.expose())).map_err(unusable)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if let Some(traceparent) = &call.traceparent {
            request = request.header(TRACEPARENT, traceparent);
        }
        request.send().await.map_err(|error| {
            if error.is_builder() {
                Failure::new(FailureClass::Configuration, "the provider's base URL is not usable")
            } else if error.is_connect() && error.is_timeout() {
                Failure::new(FailureClass::ConnectTimeout, "the provider cannot be reached in time")
            } else if error.is_connect() {
                Failure::new(FailureClass::Connect, "the provider cannot be reached")
            } else {
                Failure::new(FailureClass::Cut, "the provider ended the connection without an answer")
            }
        })
    }
}

/// When a call is given up.
#[derive(Debug, Clone)]
struct Limits {
    deadline: Instant,
    first_token: Instant,
    first_token_timeout: Duration,
    between_tokens_timeout: Duration,
}

/// What did not come in time.
#[derive(Debug, Clone, Copy)]
enum Late {
    FirstToken,
    NextToken,
    End,
}

impl Limits {
    fn new(call: &Call, transport: &Transport) -> Self {
        let now = Instant::now();
        Self {
            deadline: now + call.timeout.min(TIMEOUT_MAX),
            first_token: now + transport.first_token_timeout,
            first_token_timeout: transport.first_token_timeout,
            between_tokens_timeout: transport.between_tokens_timeout,
        }
    }

    /// Awaits what comes before the first token. A whole answer has no first token, only its deadline.
    async fn within_first<T>(&self, is_stream: bool, work: impl Future<Output = T>) -> Result<T, Failure> {
        let (limit, late) = match is_stream {
            true => self.next(false),
            false => (self.deadline, Late::End),
        };
        timeout_at(limit, work).await.map_err(|_| self.missed(late))
    }

    /// When the next bytes must be there, and what is late when they are not.
    fn next(&self, has_content: bool) -> (Instant, Late) {
        let (limit, late) = match has_content {
            // It counts from when the caller waits, so that a slow caller is not held against the provider.
            true => (Instant::now() + self.between_tokens_timeout, Late::NextToken),
            false => (self.first_token, Late::FirstToken),
        };
        if limit < self.deadline { (limit, late) } else { (self.deadline, Late::End) }
    }

    fn missed(&self, late: Late) -> Failure {
        match late {
            Late::FirstToken => Failure::new(
                FailureClass::FirstTokenTimeout,
                format!("no content from the provider within {} ms", self.first_token_timeout.as_millis()),
            ),
            Late::NextToken => Failure::new(
                FailureClass::BetweenTokensTimeout,
                format!("nothing more from the provider for {} ms", self.between_tokens_timeout.as_millis()),
            ),
            Late::End => {
                Failure::new(FailureClass::Deadline, "the deadline passed before the provider's answer was complete")
            }
        }
    }
}

/// A streamed answer under way. Dropping it ends the call.
#[derive(Debug)]
pub struct AnswerStream {
    response: Response,
    decoder: StreamDecoder,
    limits: Limits,
    room: Hold,
}

impl AnswerStream {
    /// The next chunk, as JSON on one line without `data:`; `None` at the good end. The first one comes only with content, so
    /// a failure before it leaves nothing that a client saw. A failure comes after all chunks before it, and again when
    /// asked again. May be dropped while it waits, without loss.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let mut limit = None;
        loop {
            if let Some(chunk) = self.try_next_ready() {
                return Ok(Some(chunk));
            }
            if let Some(end) = self.decoder.end() {
                return end.clone().map(|()| None);
            }
            let (at, late) = *limit.get_or_insert_with(|| self.limits.next(self.decoder.has_content()));
            match timeout_at(at, self.response.chunk()).await {
                Ok(Ok(Some(bytes))) => {
                    self.decoder.push(&bytes);
                    if !self.room.set(self.decoder.waiting_bytes()) {
                        self.decoder.fail(no_room());
                    }
                }
                Ok(Ok(None)) => self.decoder.finish(),
                Ok(Err(_)) => self.decoder.broken(),
                Err(_) => self.decoder.fail(self.limits.missed(late)),
            }
        }
    }

    /// A chunk that is there already, for a caller that puts several into one frame.
    pub fn try_next_ready(&mut self) -> Option<Bytes> {
        let chunk = self.decoder.pop()?;
        self.room.keep(self.decoder.waiting_bytes());
        Some(chunk)
    }

    /// What is known so far; valid at any moment, also after a failure or before giving up.
    pub fn summary(&self) -> Summary {
        self.decoder.summary()
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.trim_start().starts_with("application/json"))
}

/// The failure that an error answer stands for. A body that cannot be read changes nothing about that.
async fn refusal(response: Response, mut room: Hold) -> Failure {
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let body = read(response, ERROR_BYTES_MAX, &mut room).await.unwrap_or_default();
    openai::from_status(status, |name| headers.get(name)?.to_str().ok(), &body, clock::now())
}

fn no_room() -> Failure {
    let failure = Failure::new(FailureClass::NoRoom, "too many bytes of answers are under way; try again");
    Failure { retry_after: Some(NO_ROOM_RETRY), ..failure }
}

/// Reads a whole body of at most `bytes_max`, for which it takes room.
async fn read(mut response: Response, bytes_max: usize, room: &mut Hold) -> Result<Bytes, Failure> {
    let cut = |_| Failure::new(FailureClass::Cut, "the provider's answer ended in its middle");
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(bytes) = response.chunk().await.map_err(cut)? {
        if first.len() + all.len() + bytes.len() > bytes_max {
            let message = format!("the provider's answer has more than {bytes_max} bytes");
            return Err(Failure::new(FailureClass::TooLarge, message));
        }
        if !room.take(bytes.len()) {
            return Err(no_room());
        }
        // Most answers come in one piece, which is not copied.
        if first.is_empty() && all.is_empty() {
            first = bytes;
        } else {
            if all.is_empty() {
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&bytes);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
