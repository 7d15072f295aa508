//! What decisions cost, and what the state of a partition weighs: `cargo bench --bench decisions`.
//!
//! Every decision is one with limits per minute, limits at a time and budgets of a day and a month, for the organization and
//! for its key, among a hundred thousand organizations; its input is counted before. That of a thousand that ask most of the
//! time is told apart from that of all of them in turn, where most of what is looked up is in no cache. What is weighed is the growth of the
//! process itself, so it has everything that an allocator adds.

#![expect(clippy::expect_used, reason = "it ends when something that it makes up is wrong")]

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use tollstream::control::Tables;
use tollstream::domain::{KeyId, OrganizationId, PicoUsd, RequestId, Timestamp, TokenUsage};
use tollstream::processor::inference::{AttemptEnd, AttemptReport};
use tollstream::processor::tenure::{Circumstances, Tenure};
use tollstream::processor::{Bounds, Capacity, Command as Order, Context, Input, State, content, decide, key_of};
use tollstream::provider::Summary;
use tollstream::records::Origin;
use tollstream::records::control::{
    Budget, ControlRecord, Entity, Key, Limits, Organization, Plan, Spend, Stamp, WhenShort,
};
use tollstream::records::requests::Chat;
use tollstream::topology::Files;
use tollstream::topology::seeds::Seeds;

const ORGANIZATIONS: usize = 100_000;
const BODY: &str =
    r#"{"model":"auto","messages":[{"role":"user","content":"Onde está o meu pedido?"}],"max_tokens":200}"#;
const BOUNDS: Bounds = Bounds {
    partitions: 16,
    body_bytes_max: 4 << 20,
    timeout: Duration::from_secs(60),
    timeout_max: Duration::from_secs(600),
};
const BEGIN: Timestamp = Timestamp::from_millis(1_767_225_600_000);
/// Which state a process of its own weighs.
const WEIGH: &str = "TOLLSTREAM_WEIGH";

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if let Ok(what) = std::env::var(WEIGH) {
        return writeln!(out, "{}", weighed(&what));
    }
    for what in ["idle", "kept", "active", "open"] {
        let weighed = Command::new(std::env::current_exe()?).env(WEIGH, what).output()?;
        let bytes = String::from_utf8_lossy(&weighed.stdout);
        writeln!(out, "{what:6} {:>6} bytes", bytes.trim())?;
    }
    let mut criterion = Criterion::default().configure_from_args();
    decisions(&mut criterion);
    criterion.final_summary();
    Ok(())
}

fn decisions(criterion: &mut Criterion) {
    let control = control(ORGANIZATIONS, true);
    let mut world = World::new();
    for number in 0..ORGANIZATIONS {
        world.whole(&control, number);
    }
    let mut group = criterion.benchmark_group("decisions");
    group.throughput(Throughput::Elements(1));
    let context = Context {
        at: world.now,
        tenure: 0,
        control: &control,
        capacity: Capacity::Free,
        bounds: &BOUNDS,
        health: tollstream::processor::health::Health::Unknown,
    };
    let chats: Vec<Chat> = (0..ORGANIZATIONS).map(|number| chat(number, 1)).collect();
    for askers in [1_000, ORGANIZATIONS] {
        // One record that has just been read, with the names of one asker after the other.
        let mut now = chats[0].clone();
        let mut number = 0;
        group.bench_function(format!("limits, router and budget, {askers} organizations ask"), |bencher| {
            bencher.iter(|| {
                number = (number + 7_919) % askers;
                now.organization = chats[number].organization.clone();
                now.key_id = chats[number].key_id.clone();
                let input = Input::Chat {
                    source_offset: world.offset + 1,
                    received_at: world.now,
                    chat: &now,
                    content: world.content.clone(),
                    fingerprint: None,
                    cache: None,
                };
                decide(world.tenure.state(), &input, &context)
            });
        });
    }
    group.throughput(Throughput::Elements(2));
    let mut number = 0;
    group.bench_function("a request and its end, decided and folded", |bencher| {
        bencher.iter(|| {
            number = (number + 7_919) % ORGANIZATIONS;
            world.whole(&control, number);
        });
    });
    group.finish();
}

/// A partition's owner without Kafka.
struct World {
    tenure: Tenure,
    now: Timestamp,
    offset: i64,
    content: Result<content::Content, content::Error>,
}

impl World {
    fn new() -> Self {
        let content = content::read(BODY.as_bytes());
        Self { tenure: Tenure::begin(0, State::default()), now: BEGIN, offset: 0, content }
    }

    fn decide(&mut self, control: &Tables, input: &Input<'_>) -> Vec<Order> {
        let with = Circumstances {
            at: self.now,
            control,
            capacity: Capacity::Free,
            bounds: &BOUNDS,
            health: tollstream::processor::health::Health::Unknown,
        };
        if self.tenure.decide(input, with).is_none() {
            return Vec::new();
        }
        self.tenure.acknowledged(self.tenure.end()).map(|pending| pending.commands).unwrap_or_default()
    }

    /// A request that is admitted.
    fn ask(&mut self, control: &Tables, number: usize) -> Chat {
        self.offset += 1;
        let chat = chat(number, self.offset);
        let input = Input::Chat {
            source_offset: self.offset,
            received_at: self.now,
            chat: &chat,
            content: self.content.clone(),
            fingerprint: None,
            cache: None,
        };
        let commands = self.decide(control, &input);
        assert!(matches!(commands[..], [Order::Call(_)]), "{commands:?}");
        chat
    }

    /// A request, and its end.
    fn whole(&mut self, control: &Tables, number: usize) {
        let chat = self.ask(control, number);
        let usage = TokenUsage { input: Some(12), output: Some(30), ..TokenUsage::default() };
        let ended = Input::AttemptEnded(Box::new(AttemptReport {
            key: key_of(&chat.organization, &chat.request_id),
            attempt: 1,
            called: true,
            end: AttemptEnd::Completed,
            summary: Summary { usage: Some(usage), finish_reason: Some("stop".into()), text_bytes: 120 },
            content_frames: 30,
            simulated: false,
            time_to_first_token_ms: Some(300),
            duration_ms: 900,
            body: None,
            earlier: None,
            shortfall: None,
            kept_bytes: None,
        }));
        let commands = self.decide(control, &ended);
        assert!(matches!(commands[..], [Order::Answer { .. }]), "{commands:?}");
    }
}

/// Bytes of an organization that is `idle` (it has asked, long ago); the same with a key whose budget's postings are `kept`;
/// of one that is `active` (within the last minute), and one that has an `open` request, too.
fn weighed(what: &str) -> u64 {
    let control = control(ORGANIZATIONS, what != "idle");
    let mut world = World::new();
    let (mut before, first) = (0, ORGANIZATIONS / 10);
    for number in 0..ORGANIZATIONS {
        if number == first {
            // What the process has once is there by now.
            before = resident_bytes();
        }
        world.whole(&control, number);
        if matches!(what, "idle" | "kept") {
            // So that few are active at once, as it is when they come and go.
            world.now = world.now.plus(Duration::from_millis(100));
        }
    }
    if what == "open" {
        for number in 0..ORGANIZATIONS {
            world.ask(&control, number);
        }
    }
    if matches!(what, "idle" | "kept") {
        world.now = world.now.plus(Duration::from_secs(3_600));
        world.whole(&control, 0);
    }
    resident_bytes().saturating_sub(before) / (ORGANIZATIONS - first) as u64
}

fn organization(number: usize) -> String {
    format!("org_{number:012}")
}

/// The shipped models and policies, and so many organizations, each with a key, on one plan.
fn control(organizations: usize, keys_have_budgets: bool) -> Tables {
    let mut tables = Tables::default();
    let mut put = |id: &str, entity: Entity| {
        let stamp = Stamp { change_id: id.to_owned(), actor: "bench".to_owned(), at: BEGIN };
        let offset = tables.offset() + 1;
        tables.apply(offset, &ControlRecord::put(id, entity, -1, stamp)).expect("it can be applied");
    };
    for (id, entity) in Seeds::parse(&Files::embedded(), &mut Vec::new()).entities() {
        put(id, entity);
    }
    let limits = |per_minute| Limits {
        requests_per_minute: Some(per_minute),
        tokens_per_minute: Some(1_000 * per_minute),
        concurrent_requests: Some(1_000),
    };
    let usd = |dollars: i128| Some(PicoUsd::new(dollars * 1_000_000_000_000));
    let spend = |dollars| Spend { day: usd(dollars), month: usd(10 * dollars) };
    let budget = Budget {
        spend: spend(10_000),
        time_zone: "America/Sao_Paulo".to_owned(),
        soft_percents: vec![50, 80, 100],
        when_short: WhenShort::StepDown,
        ..Budget::default()
    };
    put("plan", Entity::Plan(Plan { limits: limits(1_000_000), budget, ..Plan::default() }));
    for number in 0..organizations {
        let plan = Some("plan".parse().expect("a name"));
        let name = organization(number);
        put(&name, Entity::Organization(Organization { plan, ..Organization::named(&name) }));
        let of = vec![name.parse().expect("an id")];
        let key = Key::of(of, format!("{number:064x}"), "tsk_".to_owned());
        let of_key = if keys_have_budgets { spend(1_000) } else { Spend::NONE };
        let key = Key { limits: limits(100_000), spend: of_key, ..key };
        put(&format!("key_{number:012}"), Entity::Key(key));
    }
    tables
}

fn chat(number: usize, request: i64) -> Chat {
    Chat {
        request_id: RequestId::parse(&format!("req-{request:032}")).expect("an id"),
        organization: OrganizationId::parse(&organization(number)).expect("an id"),
        lane: 0,
        key_id: Some(KeyId::parse(&format!("key_{number:012}")).expect("an id")),
        user: None,
        user_tier: None,
        tags: [("feature".to_owned(), "support".to_owned())].into(),
        conversation_id: None,
        model: None,
        timeout_ms: None,
        reply_partition: Some(3),
        reply_nonce: Some("0123456789abcdef".to_owned()),
        origin: Origin::Live,
        traceparent: None,
        content_type: "application/json".to_owned(),
        encryption_key_id: None,
        content_ref: None,
        body: Bytes::from_static(BODY.as_bytes()),
        cache_control: None,
    }
}

/// Of this process, by Linux; without its code.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: u64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    kib * 1_024
}
