//! What looking for an answer costs that is kept, among a hundred thousand of one organization: `cargo bench --bench cache`.
//!
//! A decision that finds its answer, and one that does not, each beside the same decision of an organization whose plan keeps
//! none; the difference is what the cache adds. What is looked for is another one each time, so most of it is in no cache of
//! the processor's.

#![expect(clippy::expect_used, reason = "it ends when something that it makes up is wrong")]

use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use tollstream::control::Tables;
use tollstream::domain::{Fingerprint, OrganizationId, RequestId, Timestamp, TokenUsage};
use tollstream::processor::cache::{Bodies, Directives, Wanted};
use tollstream::processor::health::Health;
use tollstream::processor::inference::{AttemptEnd, AttemptReport};
use tollstream::processor::tenure::{Circumstances, Tenure};
use tollstream::processor::{Bounds, Capacity, Command, Context, Input, State, content, decide, key_of};
use tollstream::provider::Summary;
use tollstream::records::Origin;
use tollstream::records::control::{Caching, ControlRecord, Entity, Organization, Plan, Stamp};
use tollstream::records::requests::Chat;
use tollstream::topology::Files;
use tollstream::topology::seeds::Seeds;

/// Answers of the organization.
const ENTRIES: u128 = 100_000;
const KEEPS: &str = "org_keeps";
const KEEPS_NONE: &str = "org_keeps_none";
const BODY: &str =
    r#"{"model":"gpt-4o-mini","temperature":0,"messages":[{"role":"user","content":"Onde está o meu pedido?"}]}"#;
const BOUNDS: Bounds = Bounds {
    partitions: 16,
    body_bytes_max: 4 << 20,
    timeout: Duration::from_secs(60),
    timeout_max: Duration::from_secs(600),
};
const BEGIN: Timestamp = Timestamp::from_millis(1_767_225_600_000);

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    lookups(&mut criterion);
    criterion.final_summary();
}

fn lookups(criterion: &mut Criterion) {
    let control = control();
    let tenure = filled(&control);
    let kept = tenure.state().cache.of(&OrganizationId::parse(KEEPS).expect("an id")).map_or(0, |of| of.len());
    assert_eq!(kept as u128, ENTRIES);
    let content = content::read(BODY.as_bytes());
    let context = Context {
        at: BEGIN,
        tenure: 0,
        control: &control,
        capacity: Capacity::Free,
        bounds: &BOUNDS,
        health: Health::Unknown,
    };
    let mut group = criterion.benchmark_group("cache");
    group.throughput(Throughput::Elements(1));
    // The first number of those that are asked for: what is kept begins at 0.
    for (what, organization, first) in
        [("none is kept", KEEPS_NONE, 0), ("a miss", KEEPS, ENTRIES), ("a hit", KEEPS, 0)]
    {
        let chat = chat(organization, "asks");
        let mut number = 0;
        group.bench_function(format!("decided where {what} among {ENTRIES}"), |bencher| {
            bencher.iter(|| {
                number = (number + 7_919) % ENTRIES;
                let wanted = wanted(first + number);
                let input = Input::Chat {
                    source_offset: i64::MAX,
                    received_at: BEGIN,
                    chat: &chat,
                    content: content.clone(),
                    fingerprint: None,
                    cache: Some(&wanted),
                };
                decide(tenure.state(), &input, &context)
            });
        });
    }
    group.finish();
}

fn wanted(number: u128) -> Wanted<'static> {
    // Fingerprints are spread over all numbers, as hashes are.
    let content = Fingerprint::new((number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835));
    Wanted { content, directives: Directives::default(), bodies: Bodies::Recorded { is_lost: false, is_shared: false } }
}

/// An owner of a partition after so many different questions, all of which were answered.
fn filled(control: &Tables) -> Tenure {
    let mut tenure = Tenure::begin(0, State::default());
    let content = content::read(BODY.as_bytes());
    for number in 0..ENTRIES {
        let id = format!("req-{number}");
        let (chat, wanted) = (chat(KEEPS, &id), wanted(number));
        let commands = decided(
            &mut tenure,
            control,
            &Input::Chat {
                source_offset: number as i64,
                received_at: BEGIN,
                chat: &chat,
                content: content.clone(),
                fingerprint: None,
                cache: Some(&wanted),
            },
        );
        assert!(matches!(commands[..], [Command::Call(_)]), "{commands:?}");
        let usage = TokenUsage { input: Some(12), output: Some(30), ..TokenUsage::default() };
        let ended = Input::AttemptEnded(Box::new(AttemptReport {
            key: key_of(&chat.organization, &chat.request_id),
            attempt: 1,
            called: true,
            end: AttemptEnd::Completed,
            summary: Summary { usage: Some(usage), finish_reason: Some("stop".into()), text_bytes: 120 },
            content_frames: 0,
            simulated: false,
            time_to_first_token_ms: None,
            duration_ms: 900,
            body: None,
            earlier: None,
            shortfall: None,
            kept_bytes: Some(600),
        }));
        let commands = decided(&mut tenure, control, &ended);
        assert!(matches!(commands[..], [Command::Keep { .. }, Command::Answer { .. }]), "{commands:?}");
    }
    tenure
}

fn decided(tenure: &mut Tenure, control: &Tables, input: &Input<'_>) -> Vec<Command> {
    let with = Circumstances { at: BEGIN, control, capacity: Capacity::Free, bounds: &BOUNDS, health: Health::Unknown };
    if tenure.decide(input, with).is_none() {
        return Vec::new();
    }
    tenure.acknowledged(tenure.end()).map(|pending| pending.commands).unwrap_or_default()
}

/// The shipped models and policies, and an organization that keeps answers, beside one that keeps none.
fn control() -> Tables {
    let mut tables = Tables::default();
    let mut put = |id: &str, entity: Entity| {
        let stamp = Stamp { change_id: id.to_owned(), actor: "bench".to_owned(), at: BEGIN };
        let offset = tables.offset() + 1;
        tables.apply(offset, &ControlRecord::put(id, entity, -1, stamp)).expect("it can be applied");
    };
    for (id, entity) in Seeds::parse(&Files::embedded(), &mut Vec::new()).entities() {
        put(id, entity);
    }
    let caching = Caching { entries_max: 1_000_000, bytes_max: 1 << 30, ..Caching::default() };
    for (organization, cache) in [(KEEPS, Some(caching)), (KEEPS_NONE, None)] {
        put(&format!("plan_of_{organization}"), Entity::Plan(Plan { cache, ..Plan::default() }));
        let plan = Some(format!("plan_of_{organization}").parse().expect("a name"));
        put(organization, Entity::Organization(Organization { plan, ..Organization::named(organization) }));
    }
    tables
}

fn chat(organization: &str, request: &str) -> Chat {
    Chat {
        request_id: RequestId::parse(request).expect("an id"),
        organization: OrganizationId::parse(organization).expect("an id"),
        lane: 0,
        key_id: None,
        user: None,
        user_tier: None,
        tags: Default::default(),
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
