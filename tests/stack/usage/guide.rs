//! `docs/analytics.md` on a day that was made up: its queries run, and give what it says.

use tollstream::domain::{
    ConversationId, DeploymentId, KeyId, ModelName, OrganizationId, PicoUsd, PolicyName, Price, RequestId, Timestamp,
    TokenUsage, UserId,
};
use tollstream::records::journal::{AttemptSource, Saved};
use tollstream::records::usage::{PostingKind, UsageRecord};
use tollstream::records::{Origin, Outcome, Topic, UsageSource};

use jiff::civil::{Date, date};
use tollstream::config;
use tollstream::queries;

use super::world::{World, until};

/// 2026-11-22T08:00:00Z.
const MORNING: i64 = 1_795_334_400_000;

/// Model, where it runs, who runs it, tier, dollars per million tokens in and out.
const MODELS: [(&str, &str, &str, u8, &str, &str); 3] = [
    ("claude-haiku-4-5", "anthropic-claude-haiku-4-5", "anthropic", 2, "1", "5"),
    ("claude-sonnet-4-6", "anthropic-claude-sonnet-4-6", "anthropic", 3, "3", "15"),
    ("claude-opus-4-6", "anthropic-claude-opus-4-6", "anthropic", 4, "5", "25"),
];

fn posting(number: u64, kind: PostingKind, user: &str, key: &str) -> UsageRecord {
    let received_at = Timestamp::from_millis(MORNING + (number as i64) * 60_000);
    UsageRecord {
        journal_partition: 0,
        journal_offset: number as i64,
        journal_index: 0,
        kind,
        at: Timestamp::from_millis(received_at.as_millis() + 900),
        received_at,
        organization: OrganizationId::parse("acme").unwrap(),
        request_id: RequestId::parse(&format!("request-{number}")).unwrap(),
        attempt: 0,
        lane: 0,
        key_id: Some(KeyId::parse(key).unwrap()),
        user: Some(UserId::parse(user).unwrap()),
        user_tier: None,
        tags: [("team".to_owned(), "support".to_owned())].into(),
        conversation_id: Some(ConversationId::parse(&format!("conversation-{}", number / 4)).unwrap()),
        origin: Origin::Live,
        traceparent: None,
        stream: true,
        requested_model: Some(ModelName::parse("auto").unwrap()),
        model: None,
        deployment: None,
        provider: None,
        tier: None,
        policy: Some(PolicyName::parse("auto").unwrap()),
        policy_version: Some(9),
        arm: None,
        control_offset: 31,
        price_version: None,
        price_simulated: false,
        simulated: false,
        usage: TokenUsage::NOTHING,
        usage_source: UsageSource::None,
        cost_pico_usd: Some(PicoUsd::ZERO),
        outcome: Outcome::Refused,
        request_outcome: Some(Outcome::Refused),
        status: Some(429),
        error_code: Some("rate_limited".into()),
        upstream_status: None,
        finish_reason: None,
        content_frames: 0,
        time_to_first_token_ms: None,
        duration_ms: None,
        request_duration_ms: Some(900),
        saved: None,
        source: AttemptSource::Provider,
    }
}

fn attempt(number: u64, attempt: u32, model: usize, outcome: Outcome) -> UsageRecord {
    let (user, key) = [("ada", "key-web"), ("grace", "key-web"), ("linus", "key-batch")][(number % 3) as usize];
    let (name, deployment, provider, tier, input, output) = MODELS[model];
    let usage = TokenUsage {
        input: Some(400 + 37 * number),
        cached_input: Some(0),
        cache_write: Some(0),
        output: Some(120 + 11 * number),
        reasoning: Some(0),
    };
    let [input, output] = [input, output].map(|price| PicoUsd::per_token_from_usd_per_million(price).unwrap());
    let price = Price { input, cached_input: None, cache_write: None, output, reasoning: None };
    let answered = outcome == Outcome::Completed;
    UsageRecord {
        journal_index: attempt as i32,
        attempt,
        model: Some(ModelName::parse(name).unwrap()),
        deployment: Some(DeploymentId::parse(deployment).unwrap()),
        provider: Some(provider.into()),
        tier: Some(tier),
        price_version: Some(7),
        usage: if answered { usage } else { TokenUsage::NOTHING },
        usage_source: if answered { UsageSource::Reported } else { UsageSource::None },
        cost_pico_usd: if answered { price.cost(&usage) } else { Some(PicoUsd::ZERO) },
        outcome,
        request_outcome: answered.then_some(Outcome::Completed),
        status: answered.then_some(200),
        error_code: (!answered).then(|| "upstream_overloaded".into()),
        upstream_status: Some(if answered { 200 } else { 529 }),
        finish_reason: answered.then(|| "stop".into()),
        content_frames: u32::from(answered) * 9,
        time_to_first_token_ms: answered.then_some(180 + 40 * model as u64 + 3 * number),
        duration_ms: Some(900),
        request_duration_ms: answered.then_some(900),
        ..posting(number, PostingKind::Attempt, user, key)
    }
}

/// A day of `acme`: three users, two keys, three models, some errors, one refusal, one answer of unknown cost.
fn a_day() -> Vec<UsageRecord> {
    let mut day = Vec::new();
    for number in 0..24 {
        let model = [0, 0, 0, 1, 0, 1, 0, 2][(number % 8) as usize];
        match number {
            5 | 13 => {
                day.push(attempt(number, 1, model, Outcome::Failed));
                day.push(attempt(number, 2, 2, Outcome::Completed));
            }
            11 => {
                let mut cut = attempt(number, 1, model, Outcome::Completed);
                (cut.cost_pico_usd, cut.usage.output, cut.usage_source) = (None, None, UsageSource::Unknown);
                day.push(cut);
            }
            17 => day.push(posting(number, PostingKind::Refusal, "linus", "key-batch")),
            _ => day.push(attempt(number, 1, model, Outcome::Completed)),
        }
    }
    day
}

/// The first of December: four answers that the cache gave, of one of which nobody knows what it saved.
fn given_again() -> Vec<UsageRecord> {
    let served = |number: u64, model: usize, source: AttemptSource| {
        let called = attempt(number, 1, model, Outcome::Completed);
        let nine_days = 9 * 24 * 3_600_000;
        let later = |at: Timestamp| Timestamp::from_millis(at.as_millis() + nine_days);
        UsageRecord {
            journal_offset: 4_000 + number as i64,
            kind: PostingKind::Served,
            at: later(called.at),
            received_at: later(called.received_at),
            request_id: RequestId::parse(&format!("repeated-{number}")).unwrap(),
            usage: TokenUsage::NOTHING,
            usage_source: UsageSource::None,
            cost_pico_usd: Some(PicoUsd::ZERO),
            source,
            saved: Some(Saved { usage: called.usage, cost_pico_usd: called.cost_pico_usd.filter(|_| number != 9) }),
            ..called
        }
    };
    vec![
        served(1, 0, AttemptSource::Cache),
        served(2, 0, AttemptSource::Shared),
        served(7, 2, AttemptSource::Cache),
        served(9, 0, AttemptSource::Cache),
    ]
}

/// What else the journal told of those days.
const EVENTS: [&str; 4] = [
    "INSERT INTO refusals (journal_offset, at, organization, request_id, origin, key_id, user, requested_model, code, status, \
     `limit`, input_tokens) SELECT 1000 + number, toDateTime64('2026-11-22 08:17:00', 3, 'UTC') + toIntervalMinute(number), \
     'acme', concat('request-', toString(17 + number)), 'live', 'key-batch', 'linus', 'auto', \
     ['rate_limit_exceeded', 'insufficient_quota'][1 + number % 2], 429, \
     ['key.requests_per_minute', 'organization.month'][1 + number % 2], 900 + 100 * number FROM numbers(3)",
    "INSERT INTO routing_decisions (journal_offset, at, organization, request_id, origin, intent, intent_source, \
     confidence_permille, score, tier, candidate_models, candidate_deployments, candidate_tiers, escalation, input_tokens) \
     SELECT number, toDateTime64('2026-11-22 08:00:00', 3, 'UTC') + toIntervalMinute(number), 'acme', \
     concat('request-', toString(number)), 'live', ['faq', 'complex_question'][1 + number % 2], 'classified', 700 + number, \
     number % 5, 2 + number % 2, [['claude-haiku-4-5', 'claude-sonnet-4-6'][1 + number % 2], 'claude-opus-4-6'], ['a', 'b'], \
     [2 + number % 2, 4], number = 23, if(number = 23, NULL, 400 + 37 * number) FROM numbers(24)",
    "INSERT INTO budget_events (journal_offset, at, organization, request_id, origin, event, account, period, percent, \
     budget_usd, posted_usd) VALUES (2000, toDateTime64('2026-11-22 08:21:00', 3, 'UTC'), 'acme', 'request-21', 'live', \
     'threshold_crossed', 'organization', 'month', 50, 0.2, 0.1)",
    "INSERT INTO cache_lookups (journal_offset, at, organization, request_id, origin, model, fingerprint, outcome, keeps, age_ms) \
     SELECT 3000 + number, toDateTime64('2026-12-01 08:00:00', 3, 'UTC') + toIntervalMinute(number), 'acme', \
     concat('repeated-', toString(number)), 'live', ['claude-haiku-4-5', 'claude-opus-4-6'][1 + (number % 8 = 7)], \
     toString(number), multiIf(number IN (1, 7, 9), 'hit', number = 2, 'shared', number = 3, 'bypassed', 'miss'), true, \
     if(number IN (1, 7, 9), 60000, NULL) FROM numbers(16)",
];

/// How the guide asks each query.
const ASKED: [(&str, &str); 13] = [
    ("cost", "by=tag from_day=2026-11-22 until_day=2026-11-23"),
    ("spend_by_model_and_user", "organization=acme day=2026-11-22"),
    ("top_spenders", "from_day=2026-11-22 until_day=2026-11-23"),
    ("cost_per_conversation", "from_day=2026-11-22 until_day=2026-11-23"),
    (
        "savings_against_one_model",
        "organization=acme from_day=2026-11-22 until_day=2026-11-23 input_usd=5 cached_input_usd=0.5 cache_write_usd=6.25 \
         output_usd=25",
    ),
    (
        "cost_at_other_prices",
        "model=claude-opus-4-6 from_day=2026-11-22 until_day=2026-11-23 input_usd=4 cached_input_usd=0.4 \
         cache_write_usd=5 output_usd=20",
    ),
    ("budget_burn_down", "organization=acme month=2026-11-01"),
    ("latency_by_deployment", "from_day=2026-11-22 until_day=2026-11-23"),
    ("error_rates", "from_day=2026-11-22 until_day=2026-11-23"),
    ("errors_and_slow_answers", "from_day=2026-11-22 until_day=2026-11-23 slow_ms=250"),
    ("refusals_by_limit", "from_day=2026-11-22 until_day=2026-11-23"),
    ("routing_by_intent", "from_day=2026-11-22 until_day=2026-11-23"),
    ("cache_savings", "from_day=2026-12-01 until_day=2026-12-02"),
];

const TODAY: Date = date(2026, 11, 28);

/// The day in a world of its own, every row of it twice, which nothing has merged.
pub async fn world_of_the_day() -> World {
    let mut world = World::new().await;
    for table in ["usage", "refusals", "routing_decisions", "budget_events", "cache_lookups"] {
        world.client().query_raw(&format!("SYSTEM STOP MERGES {table}")).execute().await.unwrap();
    }
    let day = [a_day(), given_again()].concat();
    for posting in day.iter().chain(&day) {
        let mut payload = Vec::new();
        world.codec.encode(posting, &mut payload).unwrap();
        world.put(Topic::Usage, 0, "acme", &payload).await;
    }
    for insert in EVENTS.iter().chain(&EVENTS) {
        world.client().query_raw(insert).execute().await.unwrap();
    }
    let settings = config::Sink { batch_rows: 20, ..config::Sink::default() };
    let sink = world.start_sink_with(settings, world.clickhouse.clone()).await;
    until("the day is written twice", async || sink.counter("tollstream_sink_rows") == 2 * day.len() as u64).await;
    sink.stop().await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queries_of_the_guide_give_what_it_says() {
    let world = world_of_the_day().await;
    assert!(world.number("SELECT count() FROM usage").await > a_day().len() as u64, "nothing is there twice");
    assert!(world.number("SELECT uniqExact(_part) FROM usage").await > 1);
    let guide = include_str!("../../../docs/analytics.md");
    let mut asked: Vec<&str> = ASKED.iter().map(|(name, _)| *name).collect();
    asked.sort_unstable();
    assert_eq!(asked, queries::all().iter().map(|query| query.name).collect::<Vec<_>>());
    let mut missing = String::new();
    for (name, parameters) in ASKED {
        let query = queries::find(name).unwrap();
        let pairs: Vec<(&str, &str)> =
            parameters.split_whitespace().map(|pair| pair.split_once('=').unwrap()).collect();
        let given = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut ask = world.client().query_raw(query.sql);
        for (name, value) in query.values(&given, TODAY).unwrap() {
            ask = ask.param(name, value);
        }
        let answer = ask.fetch_bytes("Markdown").unwrap().collect().await.unwrap();
        let answer = String::from_utf8(answer.to_vec()).unwrap();
        let mut command = format!("tollstream query {name}");
        for (name, value) in pairs {
            command += &format!(" --param {name}={value}");
        }
        for shown in [command, answer] {
            if !guide.contains(&shown) {
                missing += &format!("{name}:\n{shown}\n");
            }
        }
    }
    assert!(missing.is_empty(), "the guide does not show this:\n{missing}");
}
