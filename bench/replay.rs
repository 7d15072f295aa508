//! What deciding again costs: `cargo bench --bench replay -- REQUESTS DIRECTORY [BROKERS REGISTRY PREFIX]`.
//!
//! Makes the journal of a synthetic day (a thousand organizations with limits and budgets, the intents and mistakes of
//! `tollstream demo traffic`, one request in twelve that falls back), decides it again in memory on one thread, and writes it as
//! an archive, which `tollstream replay --archive DIRECTORY` replays; with the engines' addresses also to the topics of a prefix,
//! on which `tollstream topology apply` has been run and nothing else is.

#![expect(clippy::expect_used, reason = "it ends when something that it makes up is wrong")]

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use sha2::{Digest as _, Sha256};
use tollstream::archive::container::{Archived, Writing};
use tollstream::archive::{FileEntry, Manifest, file_name, range_name};
use tollstream::codec::{Codec, Registry};
use tollstream::config::Config;
use tollstream::control::Tables;
use tollstream::control::rules::Rules;
use tollstream::demo::Day;
use tollstream::domain::ids::partition_of;
use tollstream::domain::{PicoUsd, Timestamp, TokenUsage};
use tollstream::processor::health::Health;
use tollstream::processor::inference::{AttemptEnd, AttemptReport};
use tollstream::processor::intent::Builtin;
use tollstream::processor::tenure::{Circumstances, Tenure};
use tollstream::processor::{Bounds, Capacity, Command, Input, ProviderCall, State, content};
use tollstream::provider::{Failure, FailureClass, Summary};
use tollstream::records::control::{
    Budget, ControlRecord, Entity, Limits, Organization, Plan, Spend, Stamp, WhenShort,
};
use tollstream::records::journal::{Entry, JournalRecord, OwnershipTaken};
use tollstream::records::requests::Chat;
use tollstream::records::{Origin, Topic};
use tollstream::replay::partition::{Candidate, Filter, Partition, Span};
use tollstream::replay::report::Report;
use tollstream::runtime::kafka;
use tollstream::topology::Files;
use tollstream::topology::seeds::Seeds;

const PARTITIONS: u32 = 12;
const ORGANIZATIONS: u64 = 1_000;
const BEGIN: Timestamp = Timestamp::from_millis(1_767_225_600_000);
const BOUNDS: Bounds = Bounds {
    partitions: PARTITIONS,
    body_bytes_max: 4 << 20,
    timeout: Duration::from_secs(60),
    timeout_max: Duration::from_secs(600),
};
/// Records in a file of the archive.
const FILE_RECORDS: usize = 200_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut out = std::io::stdout().lock();
    let [requests, directory, rest @ ..] = &arguments[..] else {
        writeln!(out, "give REQUESTS and DIRECTORY; this is no benchmark of criterion's").expect("written");
        return;
    };
    let requests: usize = requests.parse().expect("a number of requests");
    let records = control();
    let mut tables = Tables::default();
    (0..).zip(&records).for_each(|(offset, record)| _ = tables.apply(offset, record).expect("it can be applied"));
    let begun = Instant::now();
    let journals = day(&tables, requests);
    let entries: usize = journals.iter().map(Vec::len).sum();
    writeln!(out, "{requests} requests, {entries} entries, made in {:.1} s", begun.elapsed().as_secs_f64())
        .expect("written");
    let rules = Rules::new((0..).zip(records.iter().cloned()).collect::<Vec<_>>().into());
    let policy = Seeds::parse(&Files::embedded(), &mut Vec::new()).policies.remove("auto").expect("the policy");
    let mut cheaper = policy;
    cheaper.tiers.iter_mut().filter(|tier| tier.tier == 3).for_each(|tier| tier.candidates.reverse());
    let key = (tollstream::records::control::EntityKind::Policy, "auto".to_owned());
    let overrides = Arc::new([(key, Entity::Policy(cheaper))].into());
    let other = Candidate { name: "other".to_owned(), overrides, reclassifies: false };
    for candidate in [Candidate::recorded(), other] {
        let begun = Instant::now();
        let mut report = Report::of(&candidate.name);
        for (number, journal) in (0..).zip(&journals) {
            let filter = Arc::new(Filter::default());
            let mut partition =
                Partition::new(number, Span::default(), filter, &rules, std::slice::from_ref(&candidate));
            for (offset, entry) in (0..).zip(journal) {
                _ = partition.take(offset, entry, None, |_, row| report.add(&row));
            }
            let counts = partition.finish(|_, row| report.add(&row));
            counts.into_iter().for_each(|counts| report.count(counts));
        }
        let rate = requests as f64 / begun.elapsed().as_secs_f64();
        let (differing, unlike) = (report.differing, report.unlike().len());
        writeln!(out, "{:10} {rate:>9.0} requests/s of one core, {differing} differ, {unlike} unlike", candidate.name)
            .expect("written");
    }
    archive(directory, &records, &journals);
    writeln!(out, "archive: {directory}").expect("written");
    if let [brokers, registry, prefix] = rest {
        publish(brokers, registry, prefix, &records, &journals);
        writeln!(out, "topics: {prefix}").expect("written");
    }
}

/// The shipped models and policies, and organizations with limits and a budget.
fn control() -> Vec<ControlRecord> {
    let mut records = Vec::new();
    let mut put = |id: &str, entity: Entity| {
        let stamp = Stamp { change_id: id.to_owned(), actor: "bench".to_owned(), at: BEGIN };
        records.push(ControlRecord::put(id, entity, -1, stamp));
    };
    for (id, entity) in Seeds::parse(&Files::embedded(), &mut Vec::new()).entities() {
        put(id, entity);
    }
    let limits =
        Limits { requests_per_minute: Some(600), tokens_per_minute: Some(600_000), concurrent_requests: Some(100) };
    let usd = |dollars: i128| Some(PicoUsd::new(dollars * 1_000_000_000_000));
    let budget = Budget {
        spend: Spend { day: usd(2), month: usd(40) },
        time_zone: "America/Sao_Paulo".to_owned(),
        soft_percents: vec![50, 80, 100],
        when_short: WhenShort::StepDown,
        ..Budget::default()
    };
    put("team", Entity::Plan(Plan { limits, budget, ..Plan::default() }));
    for number in 0..ORGANIZATIONS {
        let name = format!("org-{number:04}");
        let plan = Some("team".parse().expect("a name"));
        put(&name, Entity::Organization(Organization { plan, ..Organization::named(&name) }));
    }
    records
}

/// The journal of each partition.
fn day(control: &Tables, requests: usize) -> Vec<Vec<Entry>> {
    let taken = OwnershipTaken { owner: "bench".to_owned(), at: BEGIN, version: "0".to_owned() };
    let mut journals: Vec<Vec<Entry>> = (0..PARTITIONS).map(|_| vec![Entry::OwnershipTaken(taken.clone())]).collect();
    let mut tenures: Vec<Tenure> = (0..PARTITIONS).map(|_| Tenure::begin(0, State::default())).collect();
    let (mut offsets, classifier) = (vec![-1_i64; PARTITIONS as usize], Builtin::new());
    for (number, question) in (0_u64..).zip(Day::new(5).take(requests)) {
        let organization = format!("org-{:04}", number.wrapping_mul(7_919) % ORGANIZATIONS);
        let partition = partition_of(&organization, PARTITIONS) as usize;
        offsets[partition] += 1;
        // A day of 24 hours, whatever its requests.
        let at = BEGIN.plus(Duration::from_millis(number * 86_400_000 / requests as u64));
        let chat = Chat {
            request_id: format!("req-{number:012}").parse().expect("an id"),
            organization: organization.parse().expect("an id"),
            lane: 0,
            key_id: None,
            user: None,
            user_tier: question.user_tier.map(str::to_owned),
            tags: [("team".to_owned(), "care".to_owned())].into(),
            conversation_id: Some(question.conversation.parse().expect("an id")),
            model: None,
            timeout_ms: None,
            reply_partition: Some(0),
            reply_nonce: Some("0123456789abcdef".to_owned()),
            origin: Origin::Live,
            traceparent: None,
            content_type: "application/json".to_owned(),
            encryption_key_id: None,
            content_ref: None,
            body: Bytes::from(question.body.to_string()),
            cache_control: None,
        };
        let mut content = content::read(&chat.body);
        if let Ok(content) = &mut content {
            content.classify(&classifier);
        }
        let source_offset = offsets[partition];
        let input =
            Input::Chat { source_offset, received_at: at, chat: &chat, content, fingerprint: None, cache: None };
        let (tenure, journal) = (&mut tenures[partition], &mut journals[partition]);
        let mut call = decide(tenure, journal, control, at, &input);
        let mut attempt = 0_u64;
        while let Some(calling) = call {
            attempt += 1;
            let fails = attempt == 1 && number.is_multiple_of(12);
            let ended = ended(&calling, number, fails);
            let at = at.plus(Duration::from_millis(400 * attempt));
            call = decide(tenure, journal, control, at, &ended);
        }
    }
    journals
}

fn decide(
    tenure: &mut Tenure,
    journal: &mut Vec<Entry>,
    control: &Tables,
    at: Timestamp,
    input: &Input<'_>,
) -> Option<Box<ProviderCall>> {
    let with = Circumstances { at, control, capacity: Capacity::Free, bounds: &BOUNDS, health: Health::Unknown };
    journal.push(Entry::Commit(tenure.decide(input, with)?));
    let commands = tenure.acknowledged(tenure.end()).map(|pending| pending.commands).unwrap_or_default();
    commands.into_iter().find_map(|command| match command {
        Command::Call(call) => Some(call),
        Command::Abort(_) | Command::Answer { .. } => None,
        // Nobody's plan keeps answers.
        Command::Serve(_) | Command::Keep { .. } | Command::Forget { .. } => None,
    })
}

fn ended(call: &ProviderCall, number: u64, fails: bool) -> Input<'static> {
    let usage = TokenUsage { input: Some(60 + number % 90), output: Some(30 + number % 200), ..TokenUsage::default() };
    let failure = Failure { upstream_status: Some(503), ..Failure::new(FailureClass::Overloaded, "") };
    let end = if fails { AttemptEnd::Failed(failure) } else { AttemptEnd::Completed };
    Input::AttemptEnded(Box::new(AttemptReport {
        key: call.key.clone(),
        attempt: call.attempt,
        called: true,
        end,
        summary: Summary {
            usage: (!fails).then_some(usage),
            finish_reason: (!fails).then(|| "stop".to_owned()),
            text_bytes: 0,
        },
        content_frames: if fails { 0 } else { 30 },
        simulated: true,
        time_to_first_token_ms: (!fails).then_some(120),
        duration_ms: 390,
        body: None,
        shortfall: None,
        earlier: None,
        kept_bytes: None,
    }))
}

/// Files as `tollstream archive write` makes them.
fn archive(directory: &str, records: &[ControlRecord], journals: &[Vec<Entry>]) {
    let root = std::path::Path::new(directory);
    let mut manifest = Manifest::default();
    let mut put = |topic: Topic, partition: i32, start: usize, records: u64, bytes: Vec<u8>| {
        let end = start as i64 + records as i64;
        let file = file_name(topic, partition, &(start as i64..end));
        let path = root.join(&file);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        manifest.files.push(FileEntry {
            file,
            topic: topic.name().to_owned(),
            partition,
            start: start as i64,
            end,
            records,
            bytes: bytes.len() as u64,
            sha256: hex::encode(Sha256::digest(&bytes)),
            first_at: Some(BEGIN),
            last_at: Some(BEGIN),
            content: None,
        });
        std::fs::write(path, bytes).expect("written");
    };
    let ends = journals.iter().map(|journal| journal.len() as i64);
    let ranges = (0..).zip(ends).flat_map(|(partition, end)| {
        // Without content, as if retention had taken it.
        [(range_name(Topic::Journal, partition), 0..end), (range_name(Topic::Requests, partition), 0..0)]
    });
    let control = (range_name(Topic::Control, 0), 0..records.len() as i64);
    let ranges = ranges.chain([control]).collect();
    let mut writing = Writing::begin(Topic::Control).expect("a file");
    for (offset, record) in (0..).zip(records) {
        let record = Archived { offset, timestamp: BEGIN, key: None, value: record.clone() };
        writing.add(&record).expect("a record");
    }
    put(Topic::Control, 0, 0, records.len() as u64, writing.finish().expect("bytes"));
    for (partition, journal) in (0..).zip(journals) {
        for (number, entries) in journal.chunks(FILE_RECORDS).enumerate() {
            let start = number * FILE_RECORDS;
            let mut writing = Writing::begin(Topic::Journal).expect("a file");
            for (offset, entry) in (start as i64..).zip(entries) {
                let value = JournalRecord::from(entry.clone());
                writing.add(&Archived { offset, timestamp: BEGIN, key: None, value }).expect("a record");
            }
            put(Topic::Journal, partition, start, entries.len() as u64, writing.finish().expect("bytes"));
        }
    }
    manifest.ranges = ranges;
    std::fs::write(root.join("manifest.json"), serde_json::to_vec(&manifest).expect("JSON")).expect("written");
}

/// The same on the topics of a prefix.
fn publish(brokers: &str, registry: &str, prefix: &str, records: &[ControlRecord], journals: &[Vec<Entry>]) {
    let mut config = Config::default();
    config.kafka.brokers = brokers.to_owned();
    config.kafka.topic_prefix = prefix.to_owned();
    config.registry.url = registry.to_owned();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let registry = Registry::new(&config.registry, prefix).expect("a registry");
    let codec = runtime.block_on(Codec::connect(registry)).expect("a codec");
    let mut client = kafka::producer(&config.kafka);
    client.set("linger.ms", "20");
    let producer: BaseProducer = client.create().expect("a producer");
    let send = |topic: Topic, partition: i32, payload: &[u8]| {
        let name = kafka::topic_name(&config.kafka, topic);
        let mut record = BaseRecord::<(), [u8]>::to(&name).partition(partition).payload(payload);
        while let Err((error, back)) = producer.send(record) {
            let is_full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            assert!(is_full, "{name}/{partition}: {error}; the topics need {PARTITIONS} partitions");
            producer.poll(Duration::from_millis(10));
            record = back;
        }
    };
    // What `topology apply` has put there stands at the offsets that the journal means: both begin with the seeds.
    let control = kafka::topic_name(&config.kafka, Topic::Control);
    let (_, seeds) = producer.client().fetch_watermarks(&control, 0, Duration::from_secs(10)).expect("an end");
    let mut payload = Vec::new();
    for record in records.iter().skip(usize::try_from(seeds).expect("an offset")) {
        payload.clear();
        codec.encode(record, &mut payload).expect("encoded");
        send(Topic::Control, 0, &payload);
    }
    for (partition, journal) in (0..).zip(journals) {
        for entry in journal {
            payload.clear();
            codec.encode(&JournalRecord::from(entry.clone()), &mut payload).expect("encoded");
            send(Topic::Journal, partition, &payload);
        }
        producer.flush(Duration::from_secs(60)).expect("acknowledged");
    }
}
