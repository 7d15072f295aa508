//! Really calls the providers for requests of a replay: one call each, under the run's own account, and everything of it on the
//! run's own topics, `replay.RUN.journal` (facts, no content) and `replay.RUN.answers` (frames with the answers).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify};

use super::account::{Account, CallKey, Worst, worst};
use super::directory::RunName;
use super::run::Error;
use crate::codec::Codec;
use crate::config::{self, Config, Endpoint, Providers};
use crate::control::Tables;
use crate::domain::{OrganizationId, PicoUsd, RequestId, Timestamp, TokenUsage};
use crate::processor::key_of;
use crate::processor::router::draw::Draw;
use crate::provider::{Answer, Call, CapName, Failure, FailureClass, Transport, Upstream};
use crate::records::control::Deployment;
use crate::records::journal::{
    AttemptEnded, AttemptSource, AttemptStarted, Candidate, Commit, Entry, Fact, Features, InputKind, JournalRecord,
    OwnershipTaken, RequestContext, Reservation,
};
use crate::records::responses::{Frame, FrameBody, Head, ResponseRecord, Terminal};
use crate::records::{Origin, Outcome, UsageSource};
use crate::runtime::publisher::{Deliveries, Outgoing, Publisher};
use crate::runtime::{clock, kafka};
use crate::topology::cluster::Cluster;

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the run's journal may take to be read when a run is gone on with.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
/// Largest record with an answer, as on `responses` (topology/topics.toml).
const ANSWER_BYTES_MAX: u64 = 9_437_184;
/// How long the answers of a run are kept, in milliseconds: 7 days, as what was asked.
const ANSWERS_RETENTION_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// A call that is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub organization: OrganizationId,
    pub context: RequestContext,
    pub candidate: Arc<str>,
    pub source_offset: i64,
    pub called: Candidate,
    pub features: Features,
    pub body: Bytes,
    /// The candidate's rules, and the recorded ones, by whose prices it is paid.
    pub tables: Arc<Tables>,
    pub recorded: Arc<Tables>,
}

impl Wanted {
    /// What it costs at the most.
    pub fn worst(&self, at: Timestamp) -> Option<Worst> {
        worst(&self.tables, &self.recorded, &self.called, &self.features, at)
    }
}

/// A call that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Made {
    pub candidate: String,
    pub organization: OrganizationId,
    pub request_id: RequestId,
    pub model: String,
    pub deployment: String,
    pub outcome: Outcome,
    pub error_code: Option<String>,
    /// A simulator answered instead of the provider.
    pub simulated: bool,
    pub usage: TokenUsage,
    pub cost_pico_usd: Option<PicoUsd>,
    pub duration_ms: u64,
    /// The answer as the provider gave it.
    pub answer: Option<serde_json::Value>,
}

/// What came of a call that was wanted.
#[derive(Debug, Clone, PartialEq)]
pub enum Came {
    Made(Box<Made>),
    /// It was made before the run was gone on with.
    Before,
    /// What is left of the run's budget does not cover its worst case.
    OverBudget,
    /// Its deployment is not there any more, or has no price.
    Unpriced,
}

/// Calls providers for one run.
pub struct Caller {
    transport: Transport,
    providers: Providers,
    codec: Arc<Codec>,
    publisher: Publisher,
    journal: String,
    answers: String,
    origin: Origin,
    budget: PicoUsd,
    book: Mutex<Book>,
    /// A call has ended, and what was set aside for it is free.
    freed: Notify,
}

/// The run's account, and where its journal goes on.
struct Book {
    account: Account,
    tenure: i64,
    sequence: i64,
    /// Calls of this process whose end is not on the journal yet.
    under_way: usize,
}

/// The topics of a run that really calls.
pub fn topics(config: &config::Kafka, run: &RunName) -> [String; 2] {
    ["journal", "answers"].map(|name| topic(config, run, name))
}

/// The name of a topic of a run.
fn topic(config: &config::Kafka, run: &RunName, name: &str) -> String {
    format!("{}replay.{}.{name}", config.topic_prefix, run.as_str())
}

impl Caller {
    /// Makes the run's topics, or goes on with them, and reads what the run has spent.
    ///
    /// # Errors
    /// A run of this name has topics and is not to be gone on with; or Kafka, the registry or the providers' configuration
    /// stand in the way.
    pub async fn open(
        config: &Config,
        codec: Arc<Codec>,
        run: &RunName,
        origin: Origin,
        budget: PicoUsd,
        resumes: bool,
    ) -> anyhow::Result<Self> {
        let [journal, answers] = topics(&config.kafka, run);
        let cluster = Cluster::connect(&config.kafka).await?;
        let (brokers, there) = cluster.topics(&[journal.clone(), answers.clone()]).await?;
        let taken =
            || anyhow::anyhow!("there are topics of a run {} already; give another name with --run", run.as_str());
        anyhow::ensure!(resumes || there.is_empty(), taken());
        let replication = u16::try_from(brokers.min(3)).unwrap_or(1).max(1);
        let forever = BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned())]);
        let kept = BTreeMap::from([
            ("retention.ms".to_owned(), ANSWERS_RETENTION_MS.to_string()),
            ("max.message.bytes".to_owned(), ANSWER_BYTES_MAX.to_string()),
        ]);
        // Of two that begin at the same time, one makes it.
        let is_ours = cluster.create(&journal, 1, replication, &forever).await?;
        anyhow::ensure!(resumes || is_ours, taken());
        cluster.create(&answers, 1, replication, &kept).await?;
        let (kafka_config, decoder, name) = (config.kafka.clone(), codec.clone(), journal.clone());
        let publisher = Publisher::new(&config.kafka)?;
        let transport = Transport::new(&config.providers)?;
        let book = Mutex::new(Book { account: Account::default(), tenure: -1, sequence: 0, under_way: 0 });
        let providers = config.providers.clone();
        let freed = Notify::new();
        let caller = Self { transport, providers, codec, publisher, journal, answers, origin, budget, book, freed };
        let taken = OwnershipTaken {
            owner: config.instance.clone(),
            at: clock::now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let tenure = caller.append(Entry::OwnershipTaken(taken), "run").await?;
        // Behind its own beginning, so that nobody's spending is missed.
        let account = tokio::task::spawn_blocking(move || spent_before(&kafka_config, &decoder, &name)).await??;
        *caller.book.lock().await = Book { account, tenure, sequence: 0, under_way: 0 };
        Ok(caller)
    }

    pub async fn account(&self) -> Account {
        self.book.lock().await.account.clone()
    }

    pub const fn budget(&self) -> PicoUsd {
        self.budget
    }

    /// Makes a call, if the budget covers its worst case, or will once calls under way have ended for less than theirs. It is on
    /// the run's journal before it is made.
    ///
    /// # Errors
    /// Kafka did not acknowledge what has to be there first.
    pub async fn call(&self, wanted: &Wanted) -> anyhow::Result<Came> {
        let at = clock::now();
        let key: CallKey = (key_of(&wanted.organization, &wanted.context.request_id), wanted.candidate.to_string());
        let Some(worst) = wanted.worst(at) else { return Ok(Came::Unpriced) };
        let Some((_, model)) = wanted.tables.model(&wanted.called.model) else { return Ok(Came::Unpriced) };
        let Some(deployment) = model.value.deployment(&wanted.called.deployment) else { return Ok(Came::Unpriced) };
        let started = AttemptStarted {
            attempt: 1,
            model: wanted.called.model.clone(),
            deployment: wanted.called.deployment.clone(),
            provider: deployment.provider.clone(),
            price_version: model.version,
            reservation: Some(Reservation {
                amount_pico_usd: worst.amount,
                input_tokens: worst.input_tokens,
                output_tokens: worst.output_tokens,
                output_cap: None,
                accounts: Vec::new(),
            }),
            limits: None,
            delay_ms: 0,
            source: AttemptSource::Provider,
            shared_with: None,
        };
        loop {
            // Taken before the book is looked at, so that no end is missed.
            let freed = self.freed.notified();
            let mut book = self.book.lock().await;
            if book.account.has_made(&key) {
                return Ok(Came::Before);
            }
            let left = |used: PicoUsd| used.saturating_add(worst.amount) <= self.budget;
            if left(book.account.spent()) {
                self.commit(&mut book, wanted, InputKind::Record, Fact::AttemptStarted(started)).await?;
                book.under_way += 1;
                break;
            }
            // What is set aside for others may come free, but not what is spent.
            if book.under_way == 0 || !left(book.account.posted()) {
                return Ok(Came::OverBudget);
            }
            drop(book);
            freed.await;
        }
        let (ended, summary) = self.answer(wanted, deployment, worst.output_tokens).await;
        let usage = summary.usage.unwrap_or_default();
        let recorded = wanted.recorded.model(&wanted.called.model);
        let paid = recorded.and_then(|(_, model)| model.value.deployment(&wanted.called.deployment));
        let price = paid.unwrap_or(deployment).price_at(at, usage.total_input());
        let is_known = usage.input.is_some() && usage.output.is_some();
        let cost = price.filter(|_| is_known).and_then(|price| price.price().cost(&usage));
        // A failure that says that nothing was used cost nothing; what is not known cost what was set aside.
        let cost = cost.or_else(|| summary.is_refused.then_some(PicoUsd::ZERO));
        let outcome = if ended.is_ok() { Outcome::Completed } else { Outcome::Failed };
        let failure = ended.as_ref().err();
        let posting = AttemptEnded {
            attempt: 1,
            model: wanted.called.model.clone(),
            deployment: wanted.called.deployment.clone(),
            provider: deployment.provider.clone(),
            tier: wanted.called.tier,
            simulated: summary.simulated,
            outcome,
            error_code: failure.map(|failure| failure.class.code().to_owned()),
            upstream_status: failure.and_then(|failure| failure.upstream_status),
            finish_reason: summary.finish_reason.clone(),
            content_frames: 0,
            time_to_first_token_ms: None,
            duration_ms: Some(summary.duration_ms),
            usage: if summary.is_refused { TokenUsage::NOTHING } else { usage },
            usage_source: match (summary.is_refused, is_known) {
                (true, _) => UsageSource::None,
                (false, true) => UsageSource::Reported,
                (false, false) => UsageSource::Estimated,
            },
            price_version: model.version,
            price_simulated: price.is_some_and(|entry| entry.source.is_none()),
            cost_pico_usd: Some(cost.unwrap_or(worst.amount)),
            booking: None,
            retry_after_ms: None,
            shortfall: None,
            source: AttemptSource::Provider,
            saved: None,
        };
        let made = Made {
            candidate: wanted.candidate.to_string(),
            organization: wanted.organization.clone(),
            request_id: wanted.context.request_id.clone(),
            model: wanted.called.model.to_string(),
            deployment: wanted.called.deployment.to_string(),
            outcome,
            error_code: posting.error_code.clone(),
            simulated: summary.simulated,
            usage: posting.usage,
            cost_pico_usd: posting.cost_pico_usd,
            duration_ms: summary.duration_ms,
            answer: ended.as_ref().ok().and_then(|body| serde_json::from_slice(body).ok()),
        };
        {
            let mut book = self.book.lock().await;
            let posted =
                self.commit(&mut book, wanted, InputKind::Provider, Fact::AttemptEnded(Box::new(posting))).await;
            book.under_way -= 1;
            self.freed.notify_waiters();
            posted?;
        }
        self.publish_answer(wanted, &made, ended.ok(), summary.finish_reason).await?;
        Ok(Came::Made(Box::new(made)))
    }

    /// The call itself, whole.
    async fn answer(
        &self,
        wanted: &Wanted,
        deployment: &Deployment,
        output_tokens: u64,
    ) -> (Result<Bytes, Failure>, Ended) {
        let begun = Instant::now();
        let (upstream, simulated) = match self.upstream(deployment) {
            Ok(upstream) => upstream,
            Err(failure) => return (Err(failure), Ended { is_refused: true, ..Ended::default() }),
        };
        let call = Call {
            request_id: wanted.context.request_id.clone(),
            model: wanted.called.model.clone(),
            upstream,
            body: whole(&wanted.body),
            stream: false,
            include_usage: false,
            output_cap: Some(output_tokens),
            timeout: CALL_TIMEOUT,
            traceparent: None,
        };
        let answered = self.transport.call(&call).await;
        let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        match answered {
            Ok(Answer::Whole(answer)) => {
                let (usage, finish_reason) = (answer.summary.usage, answer.summary.finish_reason.clone());
                (Ok(answer.body), Ended { usage, finish_reason, duration_ms, simulated, is_refused: false })
            }
            Ok(Answer::Stream(_)) => {
                let failure = Failure::new(FailureClass::Garbage, "it streamed what was asked for whole");
                (Err(failure), Ended { duration_ms, simulated, ..Ended::default() })
            }
            Err(failure) => {
                // An error inside a good answer is no proof that nothing was done.
                let is_refused = failure.class.is_refusal() && failure.upstream_status != Some(200);
                (Err(failure), Ended { duration_ms, simulated, is_refused, ..Ended::default() })
            }
        }
    }

    fn upstream(&self, deployment: &Deployment) -> Result<(Upstream, bool), Failure> {
        let (model, cap_name) = (deployment.upstream_model.clone(), CapName::at(&deployment.base_url));
        let found = self.providers.endpoint(&deployment.credential, &deployment.base_url);
        let Endpoint { base_url, credential, simulated } = found.ok_or_else(|| {
            let message = format!("there is no credential for deployment {}", deployment.id);
            Failure::new(FailureClass::Configuration, message)
        })?;
        Ok((Upstream { base_url, model, cap_name, credential }, simulated))
    }

    async fn commit(&self, book: &mut Book, wanted: &Wanted, input: InputKind, fact: Fact) -> anyhow::Result<()> {
        let context = RequestContext {
            origin: self.origin,
            arm: Some(wanted.candidate.to_string()),
            tier: Some(wanted.called.tier),
            ..wanted.context.clone()
        };
        let commit = Commit {
            tenure: book.tenure,
            sequence: book.sequence,
            input,
            source_offset: (input == InputKind::Record).then_some(wanted.source_offset),
            at: clock::now(),
            control_offset: wanted.tables.offset(),
            organization: Some(wanted.organization.clone()),
            request: Some(Arc::new(context)),
            facts: vec![fact],
            health: Vec::new(),
        };
        let entry = Entry::Commit(commit);
        self.append(entry.clone(), wanted.organization.as_str()).await?;
        book.sequence += 1;
        book.account.take(&entry);
        Ok(())
    }

    async fn append(&self, entry: Entry, key: &str) -> anyhow::Result<i64> {
        let mut payload = Vec::new();
        self.codec.encode(&JournalRecord::from(entry), &mut payload)?;
        self.send(&self.journal, key.as_bytes(), &payload).await
    }

    async fn publish_answer(
        &self,
        wanted: &Wanted,
        made: &Made,
        body: Option<Bytes>,
        finish_reason: Option<String>,
    ) -> anyhow::Result<()> {
        let Candidate { model, deployment, tier } = wanted.called.clone();
        let terminal = Terminal {
            head: Some(Head { model, deployment, tier, rate_limits: None, cache: None }),
            body,
            usage: Some(made.usage),
            cost_pico_usd: made.cost_pico_usd,
            finish_reason,
            ..Terminal::of(made.outcome)
        };
        let frame = Frame {
            organization: wanted.organization.clone(),
            request_id: wanted.context.request_id.clone(),
            nonce: Some(wanted.candidate.to_string()),
            tenure: self.book.lock().await.tenure,
            attempt: 1,
            sequence: 0,
            at: clock::now(),
            body: FrameBody::Terminal(Box::new(terminal)),
        };
        let mut payload = Vec::new();
        self.codec.encode(&ResponseRecord::from(frame), &mut payload)?;
        self.send(&self.answers, wanted.context.request_id.as_str().as_bytes(), &payload).await.map(|_| ())
    }

    /// Sends a record and waits until it is acknowledged.
    async fn send(&self, topic: &str, key: &[u8], payload: &[u8]) -> anyhow::Result<i64> {
        let deliveries = Deliveries::new();
        self.publisher.send(Outgoing { topic, partition: 0, key, payload }, &deliveries, 0)?;
        let mut arrived = Vec::new();
        // Bounded by the producer's own time-out.
        deliveries.drain(&mut arrived).await;
        let delivery = arrived.into_iter().next();
        let delivery = delivery.ok_or_else(|| anyhow::anyhow!("kafka told nothing of a record for {topic}"))?;
        Ok(delivery.outcome?)
    }
}

/// How a call ended.
#[derive(Debug, Clone, Default)]
struct Ended {
    usage: Option<TokenUsage>,
    finish_reason: Option<String>,
    duration_ms: u64,
    simulated: bool,
    /// The provider did no work on it.
    is_refused: bool,
}

/// The body, asked for as a whole answer.
fn whole(body: &Bytes) -> Bytes {
    let Ok(serde_json::Value::Object(mut members)) = serde_json::from_slice(body) else { return body.clone() };
    members.shift_remove("stream_options");
    if members.contains_key("stream") {
        members.insert("stream".to_owned(), false.into());
    }
    serde_json::to_vec(&members).map_or_else(|_| body.clone(), Bytes::from)
}

/// What a run has spent so far, from its journal.
fn spent_before(config: &config::Kafka, codec: &Codec, topic: &str) -> anyhow::Result<Account> {
    let mut client = kafka::cold_consumer(config, "replay");
    client.set("enable.partition.eof", "true");
    let consumer: BaseConsumer = client.create()?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning)?;
    consumer.assign(&list)?;
    let (mut account, since) = (Account::default(), Instant::now());
    loop {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                let record = codec.decode::<JournalRecord>(message.payload().unwrap_or_default())?;
                account.take(&Entry::try_from(record)?);
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(account),
            Some(Err(_)) | None => {
                anyhow::ensure!(since.elapsed() < READ_TIMEOUT, "{topic} could not be read to its end")
            }
        }
    }
}

/// Which rows of a run are called: so many, chosen by a hash of the request, so that the same run chooses the same.
pub fn sample(
    directory: &super::directory::Directory,
    count: usize,
    only_changed: bool,
) -> Result<Vec<super::row::Row>, Error> {
    let mut chosen: BTreeMap<(u64, String, String, String), super::row::Row> = BTreeMap::new();
    for partition in directory.partitions()? {
        directory.each_row(partition, |row| {
            let is_wanted =
                row.candidate.deployment.is_some() && row.source_offset.is_some() && (!only_changed || row.estimated);
            if is_wanted {
                let place = Draw::of(row.request_id.as_str(), "sample").number();
                let (organization, request) = (row.organization.to_string(), row.request_id.to_string());
                chosen.insert((place, organization, request, row.candidate_name.to_string()), row);
                if chosen.len() > count {
                    chosen.pop_last();
                }
            }
            Ok(())
        })?;
    }
    Ok(chosen.into_values().collect())
}

/// Whether a request is among so many thousandths, by a hash of its id.
pub fn is_in_share(request_id: &RequestId, permille: u64) -> bool {
    Draw::of(request_id.as_str(), "share").number() % 1_000 < permille
}

/// Bodies of rows, read again from where they stood.
pub fn bodies(log: &dyn super::log::Log, rows: &[super::row::Row]) -> Result<BTreeMap<(i32, i64), Bytes>, Error> {
    let mut wanted: BTreeMap<i32, std::collections::BTreeSet<i64>> = BTreeMap::new();
    for row in rows {
        wanted.entry(row.partition).or_default().extend(row.source_offset);
    }
    let mut found = BTreeMap::new();
    for (partition, offsets) in wanted {
        let Some(first) = offsets.first() else { continue };
        let mut requests = log.requests(partition, *first)?;
        for offset in offsets {
            if let Some(crate::records::requests::Request::Chat(chat)) = requests.at(offset)? {
                found.insert((partition, offset), chat.body);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_the_requests_and_a_larger_one_has_the_smaller_one_in_it() {
        let ids: Vec<RequestId> = (0..10_000).map(|n| format!("req-{n}").parse().unwrap()).collect();
        let of = |permille| ids.iter().filter(|id| is_in_share(id, permille)).count();
        assert_eq!((of(0), of(1_000)), (0, ids.len()));
        assert!((850..1_150).contains(&of(100)), "{}", of(100));
        assert!(ids.iter().all(|id| !is_in_share(id, 50) || is_in_share(id, 100)));
    }

    #[test]
    fn a_body_is_asked_for_whole_and_is_else_as_it_was() {
        let table = [
            (
                r#"{"model":"a","stream":true,"stream_options":{"include_usage":true},"n":2}"#,
                r#"{"model":"a","stream":false,"n":2}"#,
            ),
            (r#"{"model":"a","z":[1.50]}"#, r#"{"model":"a","z":[1.5]}"#),
            ("no json", "no json"),
        ];
        for (body, wanted) in table {
            assert_eq!(whole(&Bytes::from_static(body.as_bytes())), wanted.as_bytes(), "{body}");
        }
    }
}
