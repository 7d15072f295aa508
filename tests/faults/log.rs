//! The logs as a test reads them: the journal by the rule of which commits count, `responses` as a client does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tollstream::codec::Codec;
use tollstream::config::Kafka;
use tollstream::domain::{PicoUsd, Timestamp};
use tollstream::processor::refusal::INSUFFICIENT_QUOTA;
use tollstream::records::journal::{Account, AttemptEnded, Entry, Fact, JournalRecord, RequestSettled, Tenancy};
use tollstream::records::responses::{Content, Frame, FrameBody, ResponseRecord, Terminal};
use tollstream::records::{Outcome, Topic};
use tollstream::runtime::kafka;

/// The longest that anything on a log is waited for.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How long one question to the broker may take; it may be starting again.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How much of what was read is shown when a test fails.
const SHOWN_CHARS: usize = 10_000;

/// What is made of the records of a topic.
pub trait Fold: Default + Debug {
    const TOPIC: Topic;
    fn take(&mut self, partition: i32, offset: i64, payload: &[u8], codec: &Codec);
}

/// Reads a topic from its beginning on, as far as it is asked to.
pub struct Reader<F> {
    consumer: BaseConsumer,
    codec: Arc<Codec>,
    topic: String,
    /// By partition, the next offset.
    next: BTreeMap<i32, i64>,
    pub read: F,
}

impl<F: Fold> Reader<F> {
    pub fn new(config: &Kafka, partitions: u32, codec: Arc<Codec>) -> Self {
        let consumer: BaseConsumer = kafka::hot_consumer(config, "reader").create().expect("a consumer");
        let topic = kafka::topic_name(config, F::TOPIC);
        let mut all = TopicPartitionList::new();
        let next: BTreeMap<i32, i64> = (0..partitions as i32).map(|partition| (partition, 0)).collect();
        for partition in next.keys() {
            all.add_partition_offset(&topic, *partition, Offset::Beginning).expect("a partition");
        }
        consumer.assign(&all).expect("assigned");
        Self { consumer, codec, topic, next, read: F::default() }
    }

    fn poll(&mut self) {
        let message = match self.consumer.poll(Duration::from_millis(50)) {
            Some(Ok(message)) => message,
            // A broker that is killed is an error for a while, and then answers again.
            Some(Err(error)) => return eprintln!("reading {}: {error}", self.topic),
            None => return,
        };
        let (partition, offset) = (message.partition(), message.offset());
        self.read.take(partition, offset, message.payload().unwrap_or_default(), &self.codec);
        self.next.insert(partition, offset + 1);
    }

    /// Reads until what was read answers.
    pub fn until<T>(&mut self, what: &str, mut ask: impl FnMut(&F) -> Option<T>) -> T {
        tokio::task::block_in_place(|| {
            let until = Instant::now() + PATIENCE;
            loop {
                if let Some(answer) = ask(&self.read) {
                    return answer;
                }
                if Instant::now() >= until {
                    let read: String = format!("{:#?}", self.read).chars().take(SHOWN_CHARS).collect();
                    panic!("{what}: not on {} within {PATIENCE:?}, but up to {:?}: {read}", self.topic, self.next);
                }
                self.poll();
            }
        })
    }

    /// Reads everything that is there now.
    pub fn read_all(&mut self) -> &F {
        tokio::task::block_in_place(|| {
            let until = Instant::now() + PATIENCE;
            let ends: Vec<(i32, i64)> = self
                .next
                .keys()
                .map(|p| (*p, self.consumer.fetch_watermarks(&self.topic, *p, CALL_TIMEOUT).expect("the end").1))
                .collect();
            while ends.iter().any(|(partition, end)| self.next[partition] < *end) {
                assert!(Instant::now() < until, "{} was not read within {PATIENCE:?}", self.topic);
                self.poll();
            }
        });
        &self.read
    }
}

/// What the journal says of a request.
#[derive(Debug, Default)]
pub struct Decided {
    pub admitted: u32,
    pub refused: u32,
    pub settled: Vec<RequestSettled>,
    /// Attempts that began.
    pub attempts: u32,
    pub progressed: u32,
    pub postings: Vec<AttemptEnded>,
    pub orphans: Vec<AttemptEnded>,
}

impl Decided {
    pub fn is_over(&self) -> bool {
        self.refused > 0 || !self.settled.is_empty()
    }
}

/// An entry that does not count.
#[derive(Debug)]
pub struct Ineffective {
    pub owner: String,
    pub request: Option<String>,
    pub ends_a_call: bool,
}

/// The account of an organization, or of a key for it.
pub type Holder = (String, Option<String>);

/// The journal, folded by hand.
#[derive(Debug, Default)]
pub struct Journal {
    tenancies: BTreeMap<i32, Tenancy>,
    owners: BTreeMap<(i32, i64), String>,
    pub requests: BTreeMap<String, Decided>,
    /// Requests in the order of their verdicts.
    pub verdicts: Vec<String>,
    /// Requests that have their terminal.
    pub over: usize,
    pub ineffective: Vec<Ineffective>,
    pub skipped: Vec<String>,
    /// Postings that must be in ClickHouse, and their money.
    pub postings: u64,
    pub cost: i128,
    /// Facts that must be in ClickHouse, by their table.
    pub events: BTreeMap<&'static str, u64>,
    /// What is posted on each account, and when; every organization that had a request admitted has one.
    pub accounts: BTreeMap<Holder, Vec<(Timestamp, PicoUsd)>>,
    /// Refusals for want of money by an owner that had followed another one.
    pub short_after_takeover: usize,
}

impl Journal {
    /// Who had a tenure.
    pub fn owners(&self) -> BTreeSet<&str> {
        self.owners.values().map(String::as_str).collect()
    }

    pub fn tenures(&self) -> usize {
        self.owners.len()
    }

    pub fn of(&self, request: &str) -> &Decided {
        self.requests.get(request).unwrap_or_else(|| panic!("the journal says nothing of {request}"))
    }

    /// Tenures that were taken.
    pub fn owners_count(&self) -> usize {
        self.owners.len()
    }

    pub fn is_over(&self, request: &str) -> bool {
        self.requests.get(request).is_some_and(Decided::is_over)
    }

    pub fn skips(&self, reason: &str) -> usize {
        self.skipped.iter().filter(|skipped| *skipped == reason).count()
    }

    fn post(&mut self, cost: Option<PicoUsd>) {
        self.postings += 1;
        self.cost += cost.map_or(0, |cost| i128::from(cost.to_long().expect("a cost that was written")));
    }

    fn book(&mut self, holder: &Holder, at: Timestamp, posting: &AttemptEnded) {
        self.post(posting.cost_pico_usd);
        let (booking, cost) = (posting.booking.as_ref().expect("a booking"), posting.cost_pico_usd.expect("a cost"));
        for account in &booking.accounts {
            let key = match account {
                Account::Organization => None,
                Account::Key => Some(holder.1.clone().expect("the key's own request")),
                Account::Unknown => panic!("{posting:?}"),
            };
            self.accounts.entry((holder.0.clone(), key)).or_default().push((at, cost));
        }
    }

    /// Whether the owner followed another one.
    fn has_succeeded(&self, partition: i32, tenure: i64) -> bool {
        self.owners.range((partition, i64::MIN)..(partition, tenure)).next().is_some()
    }
}

impl Fold for Journal {
    const TOPIC: Topic = Topic::Journal;

    fn take(&mut self, partition: i32, offset: i64, payload: &[u8], codec: &Codec) {
        let record: JournalRecord = codec.decode(payload).expect("a record of the journal");
        let entry = Entry::try_from(record).expect("an entry");
        let effective = self.tenancies.entry(partition).or_insert(Tenancy::VACANT).accept(offset, &entry);
        let commit = match entry {
            Entry::OwnershipTaken(taken) => {
                self.owners.insert((partition, offset), taken.owner);
                return;
            }
            Entry::Commit(commit) => commit,
        };
        let key = commit.request.as_ref().and_then(|context| context.key_id.as_ref()).map(ToString::to_string);
        let holder = (commit.organization.map(|id| id.to_string()).unwrap_or_default(), key);
        let request = commit.request.map(|context| context.request_id.to_string());
        if !effective {
            let owner = self.owners.get(&(partition, commit.tenure)).cloned().unwrap_or_default();
            let ends_a_call = commit.facts.iter().any(|fact| matches!(fact, Fact::AttemptEnded(_)));
            self.ineffective.push(Ineffective { owner, request, ends_a_call });
            return;
        }
        for fact in commit.facts {
            let table = match &fact {
                Fact::RequestRouted(_) => Some("routing_decisions"),
                Fact::RequestRefused(_) => Some("refusals"),
                Fact::Overdrawn(_) | Fact::ThresholdCrossed(_) => Some("budget_events"),
                Fact::CacheLookedUp(_) => Some("cache_lookups"),
                Fact::CacheInserted(_) | Fact::CacheEvicted(_) | Fact::CachePurged(_) => Some("cache_changes"),
                _ => None,
            };
            if let Some(table) = table {
                *self.events.entry(table).or_default() += 1;
            }
            match &fact {
                Fact::AttemptEnded(posting) => self.book(&holder, commit.at, posting),
                Fact::OrphanPosted(orphan) => self.book(&holder, commit.at, &orphan.posting),
                Fact::RequestAdmitted(_) => {
                    self.accounts.entry((holder.0.clone(), None)).or_default();
                }
                Fact::RequestRefused(refused) => {
                    self.post(Some(PicoUsd::ZERO));
                    let is_short = refused.code == INSUFFICIENT_QUOTA && self.has_succeeded(partition, commit.tenure);
                    self.short_after_takeover += usize::from(is_short);
                }
                _ => {}
            }
            if let Fact::RecordSkipped(skipped) = fact {
                self.skipped.push(skipped.reason);
                continue;
            }
            let Some(request) = &request else { continue };
            if matches!(fact, Fact::RequestAdmitted(_) | Fact::RequestRefused(_)) {
                self.verdicts.push(request.clone());
            }
            let decided = self.requests.entry(request.clone()).or_default();
            let was_over = decided.is_over();
            match fact {
                Fact::RequestAdmitted(_) => decided.admitted += 1,
                Fact::RequestRefused(_) => decided.refused += 1,
                Fact::AttemptStarted(_) => decided.attempts += 1,
                Fact::AttemptProgressed(_) => decided.progressed += 1,
                Fact::AttemptEnded(posting) => decided.postings.push(*posting),
                Fact::OrphanPosted(orphan) => decided.orphans.push(*orphan.posting),
                Fact::RequestSettled(settled) => decided.settled.push(settled),
                Fact::RequestRouted(_)
                | Fact::CancelRequested(_)
                | Fact::RecordSkipped(_)
                | Fact::Overdrawn(_)
                | Fact::ThresholdCrossed(_)
                | Fact::CacheLookedUp(_)
                | Fact::CacheInserted(_)
                | Fact::CacheEvicted(_)
                | Fact::CachePurged(_) => {}
            }
            self.over += usize::from(!was_over && decided.is_over());
        }
    }
}

/// How an answer ended for its reader.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    Completed,
    /// The terminal says so; with its code.
    Told(Outcome, String),
    /// The reader sees that something is missing.
    Broken(&'static str),
}

/// One answer as a client reads it, by the contract of docs/topics.md: the attempt of the first content frame is followed,
/// what comes again is dropped, and the terminal counts the frames.
#[derive(Debug, Default)]
pub struct Answer {
    pub text: String,
    followed: Option<(i64, u32)>,
    frames: u32,
    pub end: Option<End>,
    /// The tenures that published a terminal.
    pub terminals: Vec<i64>,
}

impl Answer {
    fn content(&mut self, tenure: i64, attempt: u32, sequence: u32, content: &Content) {
        let followed = *self.followed.get_or_insert((tenure, attempt));
        if self.end.is_some() || (followed == (tenure, attempt) && sequence < self.frames) {
            return;
        }
        if followed != (tenure, attempt) {
            if attempt > followed.1 || tenure > followed.0 {
                self.end = Some(End::Broken("it began again"));
            }
            return;
        }
        if sequence > self.frames {
            self.end = Some(End::Broken("a frame is missing"));
            return;
        }
        self.frames += 1;
        for event in &content.events {
            let chunk: serde_json::Value = serde_json::from_slice(event).expect("JSON");
            self.text.push_str(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        }
    }

    fn terminal(&mut self, frame_of: (i64, u32, u32), terminal: &Terminal) {
        let (tenure, attempt, sequence) = frame_of;
        self.terminals.push(tenure);
        if self.end.is_some() {
            return;
        }
        self.end = Some(match (&terminal.error, terminal.outcome) {
            (Some(error), outcome) => End::Told(outcome, error.code.clone()),
            (None, Outcome::Completed) if self.followed.is_some_and(|followed| followed.1 != attempt) => {
                End::Broken("it is the end of another attempt")
            }
            (None, Outcome::Completed) if sequence != self.frames => End::Broken("frames are missing"),
            (None, Outcome::Completed) => {
                if let Some(body) = &terminal.body {
                    let body: serde_json::Value = serde_json::from_slice(body).expect("JSON");
                    let text = &body["choices"][0]["message"]["content"];
                    self.text = text.as_str().expect("a text").to_owned();
                } else if self.frames == 0 {
                    self.end = Some(End::Broken("the answer came without its body"));
                    return;
                }
                End::Completed
            }
            (None, outcome) => panic!("{outcome:?} without an error"),
        });
    }
}

/// `responses`, by the nonce of the asker.
#[derive(Debug, Default)]
pub struct Answers(pub BTreeMap<String, Answer>);

impl Answers {
    pub fn of(&self, nonce: &str) -> Option<&Answer> {
        self.0.get(nonce)
    }
}

impl Fold for Answers {
    const TOPIC: Topic = Topic::Responses;

    fn take(&mut self, _: i32, _: i64, payload: &[u8], codec: &Codec) {
        let record: ResponseRecord = codec.decode(payload).expect("a record of responses");
        let frame = Frame::try_from(record).expect("a frame");
        let Some(nonce) = frame.nonce else { return };
        let answer = self.0.entry(nonce).or_default();
        match &frame.body {
            FrameBody::Content(content) => answer.content(frame.tenure, frame.attempt, frame.sequence, content),
            FrameBody::Terminal(terminal) => {
                answer.terminal((frame.tenure, frame.attempt, frame.sequence), terminal);
            }
        }
    }
}
