//! Plans, limits and budgets: what is admitted, what is set aside and released, and why something is refused.

use super::*;
use crate::domain::KeyId;
use crate::processor::ledger::{Balance, KeyBooks};
use crate::records::control::{Budget, Entity, EntityKind, Key, Limits, ModelLimits, Plan, Spend, WhenShort};
use crate::records::journal::{Account, Overdrawn, Period, RequestRefused, Reservation, ThresholdCrossed};

/// What `hello("two")` may cost at the most: 10 tokens in, 100 out.
const WORST: i128 = 10 * 1_000 + 100 * 2_000;

fn spend(day: Option<i128>, month: Option<i128>) -> Spend {
    Spend { day: day.map(PicoUsd::new), month: month.map(PicoUsd::new) }
}

/// Of a plan whose months have that much.
fn budget(month: i128, when_short: WhenShort) -> Plan {
    Plan { budget: Budget { spend: spend(None, Some(month)), when_short, ..Budget::default() }, ..Plan::default() }
}

impl Driver {
    fn with_plan(plan: Plan) -> Self {
        let mut driver = Self::new();
        driver.plan(plan);
        driver
    }

    fn plan(&mut self, plan: Plan) {
        self.put("p", Entity::Plan(plan));
        self.put(
            "acme",
            Entity::Organization(Organization { plan: Some("p".parse().unwrap()), ..Organization::named("Acme") }),
        );
    }

    fn with_key(mut self, limits: Limits, spend: Spend) -> Self {
        self.put("k", Entity::Key(Key { limits, spend, ..Key::of(vec![], "h".into(), "p".into()) }));
        self
    }

    /// Asks with an id of its own.
    fn asks(&mut self, id: u32, chat: &Chat) -> Vec<Fact> {
        self.ask(&Chat { request_id: RequestId::parse(&format!("q{id}")).unwrap(), ..chat.clone() }).0
    }

    fn ends(&mut self, id: u32, end: AttemptEnd, summary: Summary) -> Vec<Fact> {
        let key = RequestKey { request: RequestId::parse(&format!("q{id}")).unwrap(), ..key() };
        let attempt = self.state.open(&key).map_or(0, |open| open.attempt);
        let report = ended(key, attempt, end, summary);
        self.decide(&Input::AttemptEnded(Box::new(report))).0
    }

    fn balance(&self) -> Balance {
        self.state.ledger.books(&key().organization).balance()
    }

    fn posted(&self) -> i128 {
        self.balance().posted.month.get()
    }

    fn reserved(&self) -> i128 {
        self.balance().reserved.get()
    }
}

fn refusal_of(facts: &[Fact]) -> (&str, u16, Option<&str>) {
    let [Fact::RequestRefused(RequestRefused { code, status, limit, .. })] = facts else { panic!("{facts:?}") };
    (code, *status, limit.as_deref())
}

fn reservation(facts: &[Fact]) -> &Reservation {
    let started =
        facts.iter().find_map(|fact| if let Fact::AttemptStarted(started) = fact { Some(started) } else { None });
    started.and_then(|started| started.reservation.as_ref()).unwrap_or_else(|| panic!("{facts:?}"))
}

fn is_admitted(facts: &[Fact]) -> bool {
    matches!(facts, [Fact::RequestAdmitted(_), ..])
}

#[test]
fn a_budget_for_ten_admits_ten_of_two_hundred_and_every_pico_dollar_is_accounted_for() {
    let mut driver = Driver::with_plan(budget(10 * WORST, WhenShort::Refuse));
    let admitted: Vec<u32> = (0..200).filter(|id| is_admitted(&driver.asks(*id, &hello("two")))).collect();
    assert_eq!(admitted, (0..10).collect::<Vec<_>>());
    assert_eq!((driver.reserved(), driver.posted()), (10 * WORST, 0));
    assert_eq!(refusal_of(&driver.asks(200, &hello("two"))), ("insufficient_quota", 429, Some("organization.month")));
    // What is not used comes back.
    for id in admitted {
        driver.ends(id, AttemptEnd::Completed, reported(3, 7));
    }
    assert_eq!((driver.reserved(), driver.posted()), (0, 10 * (3 * 1_000 + 7 * 2_000)));
    let again = (300..500).filter(|id| is_admitted(&driver.asks(*id, &hello("two")))).count() as i128;
    assert_eq!(again, (10 * WORST - driver.posted()) / WORST);
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn a_budget_that_is_lowered_below_what_is_spent_stops_new_requests_and_breaks_nothing() {
    let mut driver = Driver::with_plan(budget(10 * WORST, WhenShort::Refuse));
    driver.asks(0, &hello("two"));
    driver.asks(1, &hello("two"));
    driver.ends(0, AttemptEnd::Completed, reported(3, 7));
    driver.plan(budget(1, WhenShort::Refuse));
    assert_eq!(refusal_of(&driver.asks(2, &hello("two"))).0, "insufficient_quota");
    assert!(matches!(driver.ends(1, AttemptEnd::Completed, reported(1, 1))[1], Fact::RequestSettled(_)));
    assert_eq!((driver.reserved(), driver.posted()), (0, 17_000 + 3_000));
    driver.plan(budget(10 * WORST, WhenShort::Refuse));
    assert!(is_admitted(&driver.asks(3, &hello("two"))));
}

#[test]
fn a_month_that_begins_anew_touches_no_history_and_what_is_open_counts_in_both() {
    let plan = Plan {
        budget: Budget { time_zone: "America/Sao_Paulo".into(), ..budget(2 * WORST, WhenShort::Refuse).budget },
        ..Plan::default()
    };
    let mut driver = Driver::with_plan(plan);
    // 2026-11-30T23:59:59.999 in São Paulo.
    driver.now = at(1_796_093_999_999);
    driver.asks(0, &hello("two"));
    driver.asks(1, &hello("two"));
    driver.ends(0, AttemptEnd::Completed, reported(3, 7));
    assert_eq!((driver.posted(), driver.reserved()), (17_000, WORST));
    assert_eq!(refusal_of(&driver.asks(2, &hello("two"))).2, Some("organization.month"));
    driver.now = at(1_796_094_000_000);
    assert!(is_admitted(&driver.asks(3, &hello("two"))));
    assert_eq!(refusal_of(&driver.asks(4, &hello("two"))).2, Some("organization.month"));
    driver.ends(1, AttemptEnd::Completed, reported(1, 1));
    assert_eq!((driver.posted(), driver.reserved()), (3_000, WORST));
    // The postings of November are where they were.
    let posted: Vec<(i64, PicoUsd)> = driver
        .journal
        .iter()
        .flat_map(|commit| commit.facts.iter().map(|fact| (commit.at, fact)))
        .filter_map(|(at, fact)| match fact {
            Fact::AttemptEnded(posting) => Some((at.as_millis(), posting.cost_pico_usd?)),
            _ => None,
        })
        .collect();
    assert_eq!(posted, [(1_796_093_999_999, PicoUsd::new(17_000)), (1_796_094_000_000, PicoUsd::new(3_000))]);
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn the_key_and_the_organization_pay_both_or_none() {
    let key = |chat: Chat| Chat { key_id: Some(KeyId::parse("k").unwrap()), ..chat };
    let mut driver =
        Driver::with_plan(budget(10 * WORST, WhenShort::Refuse)).with_key(Limits::NONE, spend(Some(WORST), None));
    let facts = driver.asks(0, &key(hello("two")));
    assert_eq!(reservation(&facts).accounts, [Account::Organization, Account::Key]);
    assert_eq!(refusal_of(&driver.asks(1, &key(hello("two")))).2, Some("key.day"));
    assert_eq!(driver.reserved(), WORST, "a refusal takes nothing from the organization");
    assert!(is_admitted(&driver.asks(2, &hello("two"))), "the organization has more");
    driver.ends(0, AttemptEnd::Completed, reported(1, 1));
    let books = driver.state.ledger.books(&super::key().organization).key(&KeyId::parse("k").unwrap());
    assert_eq!((books.balance().posted.day, books.balance().reserved), (PicoUsd::new(3_000), PicoUsd::ZERO));
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn the_cap_is_the_clients_else_the_plans_and_lower_when_the_money_is_short() {
    let capped = r#"{"model":"two","max_tokens":30,"messages":[{"role":"user","content":"12345678"}]}"#;
    let twice = r#"{"model":"two","max_tokens":90,"max_completion_tokens":30,"messages":[{"role":"user","content":"12345678"}]}"#;
    let too_many = r#"{"model":"two","max_tokens":900,"messages":[{"role":"user","content":"12345678"}]}"#;
    let plan = |month, output_cap| Plan { output_cap, ..budget(month, WhenShort::LowerOutputCap) };
    let money = |tokens: i128| 10_000 + tokens * 2_000;
    let table = [
        // Month, plan's cap, body, tokens reserved, cap that is not the client's, cap that the call is told.
        (10 * WORST, None, hello("two"), Some((100, None, None))),
        (10 * WORST, Some(40), hello("two"), Some((40, Some(40), Some(40)))),
        (10 * WORST, Some(40), chat(capped), Some((30, None, Some(30)))),
        (10 * WORST, None, chat(twice), Some((30, None, Some(30)))),
        (10 * WORST, None, chat(too_many), Some((100, None, Some(100)))),
        (money(50), None, hello("two"), Some((50, Some(50), Some(50)))),
        (money(50) - 1, None, hello("two"), Some((49, Some(49), Some(49)))),
        (money(20), None, chat(capped), Some((20, Some(20), Some(20)))),
        (money(16), None, hello("two"), Some((16, Some(16), Some(16)))),
        (money(16) - 1, None, hello("two"), None),
        (0, None, hello("two"), None),
    ];
    for (month, cap, chat, expected) in table {
        let mut driver = Driver::with_plan(plan(month, cap));
        let (facts, commands) = driver.ask(&chat);
        let Some((tokens, lowered, told)) = expected else {
            assert_eq!(refusal_of(&facts).0, "insufficient_quota", "{month}");
            continue;
        };
        let reservation = reservation(&facts);
        assert_eq!((reservation.output_tokens, reservation.output_cap), (tokens, lowered), "{month} {cap:?}");
        assert_eq!(reservation.amount_pico_usd, PicoUsd::new(money(i128::from(tokens))));
        assert_eq!(called(&commands).output_cap, told);
    }
}

#[test]
fn a_plan_may_step_down_to_a_cheaper_tier_when_the_money_is_short() {
    let month = WORST - 1;
    let mut driver = Driver::with_plan(budget(month, WhenShort::StepDown));
    let (facts, commands) = driver.ask(&hello("auto"));
    let [_, Fact::RequestRouted(routed), Fact::AttemptStarted(started)] = &facts[..] else { panic!("{facts:?}") };
    assert_eq!(called(&commands).head.deployment.as_str(), "one-a");
    assert_eq!(started.reservation.as_ref().unwrap().amount_pico_usd, PicoUsd::new(10 * 10 + 100 * 20));
    assert!(routed.reasons.contains(&"over_budget:two-a".to_owned()), "{routed:?}");
    // Who names a model gets that one or none.
    assert_eq!(refusal_of(&driver.asks(1, &hello("two"))).0, "insufficient_quota");
    let mut refusing = Driver::with_plan(budget(month, WhenShort::Refuse));
    assert_eq!(refusal_of(&refusing.ask(&hello("auto")).0).0, "insufficient_quota");
}

#[test]
fn a_fallback_is_reserved_anew_and_left_out_when_it_cannot_be_paid() {
    // Two-b costs more: 10 * 3000 + 100 * 4000.
    let mut driver = Driver::with_plan(budget(430_000 - 1, WhenShort::Refuse));
    driver.ask(&hello("two"));
    let (facts, commands) = driver.end(1, failed(FailureClass::Connect), Summary::default(), 0);
    assert!(matches!(facts[..], [Fact::AttemptEnded(_), Fact::RequestSettled(_)]), "{facts:?}");
    assert_eq!(answered(&commands).2.error.as_ref().unwrap().code, "upstream_unreachable");
    assert_eq!(driver.reserved(), 0);
    let mut driver = Driver::with_plan(budget(430_000, WhenShort::Refuse));
    driver.ask(&hello("two"));
    let (facts, _) = driver.end(1, failed(FailureClass::Connect), Summary::default(), 0);
    assert_eq!(reservation(&facts).amount_pico_usd, PicoUsd::new(430_000));
    assert_eq!(driver.reserved(), 430_000);
    driver.end(2, AttemptEnd::Completed, reported(1, 1), 0);
    assert_eq!((driver.reserved(), driver.posted()), (0, 7_000));
}

#[test]
fn more_than_was_reserved_is_posted_whole_and_told_as_an_overdraft() {
    let mut driver = Driver::with_plan(Plan {
        budget: Budget { soft_percents: vec![50, 100], ..budget(2 * WORST, WhenShort::Refuse).budget },
        ..Plan::default()
    });
    driver.asks(0, &hello("two"));
    let facts = driver.ends(0, AttemptEnd::Completed, reported(5, 200));
    let posted = 5 * 1_000 + 200 * 2_000;
    let crossed = ThresholdCrossed {
        account: Account::Organization,
        period: Period::Month,
        percent: 50,
        limit_pico_usd: PicoUsd::new(2 * WORST),
        posted_pico_usd: PicoUsd::new(posted),
    };
    let overdrawn = Overdrawn { attempt: 1, amount_pico_usd: PicoUsd::new(posted - WORST) };
    assert_eq!(facts[1..3], [Fact::Overdrawn(overdrawn), Fact::ThresholdCrossed(crossed)]);
    assert_eq!(driver.posted(), posted);
    // A threshold is told once.
    driver.plan(budget(10 * WORST, WhenShort::Refuse));
    driver.asks(1, &hello("two"));
    assert!(driver.ends(1, AttemptEnd::Completed, reported(1, 1)).len() == 2);
}

#[test]
fn five_at_a_time_however_they_end() {
    let limits = Limits { concurrent_requests: Some(5), ..Limits::NONE };
    let mut driver = Driver::with_plan(Plan { limits, ..Plan::default() });
    let mut admitted = Vec::new();
    for id in 0..100 {
        let facts = driver.asks(id, &hello("two"));
        match is_admitted(&facts) {
            true => admitted.push(id),
            false => {
                let expected = ("rate_limit_exceeded", 429, Some("organization.concurrent_requests"));
                assert_eq!(refusal_of(&facts), expected);
            }
        }
        assert!(driver.state.ledger.books(&key().organization).open() <= 5);
    }
    assert_eq!(admitted, [0, 1, 2, 3, 4]);
    let key_of = |id: u32| RequestKey { request: RequestId::parse(&format!("q{id}")).unwrap(), ..key() };
    driver.ends(0, AttemptEnd::Completed, reported(1, 1));
    driver.ends(1, failed(FailureClass::BadRequest), Summary::default());
    driver.ends(2, AttemptEnd::Cancelled, Summary::default());
    driver.decide(&Input::TakenOver { key: key_of(3), has_body: false, simulated: false });
    driver.decide(&Input::Overdue { key: key_of(4), simulated: false });
    assert_eq!(driver.state.ledger.books(&key().organization).open(), 0);
    assert_eq!((driver.reserved(), driver.state.open_requests().count()), (0, 0));
    assert!((200..205).all(|id| is_admitted(&driver.asks(id, &hello("two")))));
    assert!(!is_admitted(&driver.asks(205, &hello("two"))));
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn a_minutes_limits_are_told_and_tokens_corrected_when_the_answer_is_there() {
    let limits = Limits { requests_per_minute: Some(3), tokens_per_minute: Some(100), ..Limits::NONE };
    let mut driver = Driver::with_plan(Plan { limits, output_cap: Some(80), ..Plan::default() });
    let (facts, commands) = driver.ask(&hello("two"));
    let Fact::RequestAdmitted(admitted) = &facts[0] else { panic!("{facts:?}") };
    assert_eq!((admitted.limits.len(), admitted.limits[0].tokens), (1, 90));
    let left = called(&commands).head.rate_limits.clone().unwrap();
    assert_eq!((left.requests.unwrap().remaining, left.tokens.unwrap().remaining), (2, 10));
    let (facts, commands) = driver.ask(&Chat { request_id: RequestId::parse("r2").unwrap(), ..hello("two") });
    assert_eq!(refusal_of(&facts), ("rate_limit_exceeded", 429, Some("organization.tokens_per_minute")));
    let error = answered(&commands).2.error.clone().unwrap();
    assert_eq!((error.r#type.as_str(), error.retry_after_ms), ("tokens", Some(48_000)));
    assert_eq!(error.rate_limits.unwrap().tokens.unwrap().remaining, 10);
    // Ten were used instead of ninety.
    driver.end(1, AttemptEnd::Completed, reported(5, 5), 0);
    assert!(is_admitted(&driver.asks(3, &hello("two"))));
    driver.ends(3, AttemptEnd::Completed, reported(0, 0));
    assert!(is_admitted(&driver.asks(4, &hello("two"))));
    driver.ends(4, AttemptEnd::Completed, reported(0, 0));
    assert_eq!(refusal_of(&driver.asks(5, &hello("two"))).2, Some("organization.requests_per_minute"));
    driver.now = at(1_000 + 20_000);
    assert!(is_admitted(&driver.asks(6, &hello("two"))));
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn an_organization_that_rests_keeps_only_what_it_posted() {
    let limits = Limits { requests_per_minute: Some(3), tokens_per_minute: Some(10_000), ..Limits::NONE };
    let mut driver = Driver::with_plan(Plan { limits, ..Plan::default() });
    driver.asks(0, &hello("two"));
    driver.ends(0, AttemptEnd::Completed, reported(5, 5));
    let busy = driver.state.ledger.books(&key().organization).clone();
    driver.now = at(1_000 + 60_000);
    driver.decide(&Input::Skip { source_offset: 99, reason: "undecodable" });
    let rested = driver.state.ledger.books(&key().organization).clone();
    assert_ne!(busy, rested);
    assert_eq!((rested.meter(), rested.keys().count()), (Default::default(), 0));
    assert_eq!(rested.posted, busy.posted);
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn what_a_key_posted_is_kept_for_as_long_as_it_counts() {
    let spend = Spend { day: None, month: Some(PicoUsd::new(1_000_000)) };
    let mut driver = Driver::with_plan(Plan::default()).with_key(Limits::NONE, spend);
    let with_key = Chat { key_id: Some(KeyId::parse("k").unwrap()), ..hello("two") };
    let at_rest = |driver: &mut Driver, days: i64, id: u32| {
        driver.now = at(1_000 + days * 86_400_000);
        driver.decide(&Input::Skip { source_offset: i64::from(id), reason: "undecodable" });
        assert_eq!(driver.rebuilt(), driver.state);
        let books = driver.state.ledger.books(&key().organization);
        assert_eq!((books.open(), books.models().count()), (0, 0));
        let month = |key: &KeyBooks| key.posted.map(|posted| posted.month);
        books.keys().map(|(_, key)| month(key)).collect::<Vec<_>>()
    };
    for (id, days) in [(0, 1), (1, 2)] {
        driver.asks(id, &with_key);
        driver.ends(id, AttemptEnd::Completed, reported(5, 5));
        let posted = PicoUsd::new(15_000 * i128::from(id + 1));
        assert_eq!(at_rest(&mut driver, days, 100 + id), [Some(posted)]);
    }
    assert_eq!(at_rest(&mut driver, 61, 110).len(), 1);
    assert_eq!(at_rest(&mut driver, 62, 111), []);
}

#[test]
fn a_model_that_the_plan_does_not_have_does_not_answer() {
    let only_one = Plan { models: vec!["one".parse().unwrap()], ..Plan::default() };
    let mut driver = Driver::with_plan(only_one);
    assert_eq!(refusal_of(&driver.asks(0, &hello("two"))), ("model_not_allowed", 403, None));
    let (facts, commands) = driver.ask(&hello("auto"));
    assert_eq!(called(&commands).head.deployment.as_str(), "one-a");
    let Fact::RequestRouted(routed) = &facts[1] else { panic!("{facts:?}") };
    assert!(routed.reasons.contains(&"not_in_plan:two".to_owned()), "{routed:?}");
    let mut driver = Driver::with_plan(Plan { tiers: vec![4], ..Plan::default() });
    assert_eq!(refusal_of(&driver.ask(&hello("auto")).0), ("model_not_allowed", 403, None));
}

#[test]
fn a_model_whose_limit_is_used_up_is_passed_over() {
    let one_at_a_time = Limits { concurrent_requests: Some(1), ..Limits::NONE };
    let model_limits = vec![ModelLimits { model: "two".parse().unwrap(), limits: one_at_a_time }];
    let mut driver = Driver::with_plan(Plan { model_limits, ..Plan::default() });
    assert!(is_admitted(&driver.asks(0, &hello("two"))));
    assert_eq!(refusal_of(&driver.asks(1, &hello("two"))).2, Some("model.concurrent_requests"));
    let (facts, commands) = driver.ask(&hello("auto"));
    assert_eq!(called(&commands).head.deployment.as_str(), "one-a");
    let Fact::RequestRouted(routed) = &facts[1] else { panic!("{facts:?}") };
    assert!(routed.reasons.contains(&"model.concurrent_requests:two".to_owned()), "{routed:?}");
    // The attempt that ends makes room for its own fallback on the same model.
    let facts = driver.ends(0, failed(FailureClass::Connect), Summary::default());
    assert!(matches!(facts[..], [Fact::AttemptEnded(_), Fact::AttemptStarted(_)]), "{facts:?}");
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn a_price_that_went_while_the_call_was_under_way_costs_what_was_reserved() {
    let mut driver = Driver::new();
    driver.ask(&hello("two"));
    let version = driver.control.version_of(EntityKind::Model, "two");
    let stamp = Stamp { change_id: "x".into(), actor: "test".into(), at: at(0) };
    let gone = ControlRecord::delete(EntityKind::Model, "two", version, stamp);
    driver.control.apply(driver.control.offset() + 1, &gone).unwrap();
    let (facts, _) = driver.end(1, AttemptEnd::Completed, reported(1, 1), 0);
    let Fact::AttemptEnded(posting) = &facts[0] else { panic!("{facts:?}") };
    assert_eq!((posting.cost_pico_usd, posting.usage_source), (usd(WORST), UsageSource::Estimated));
}

#[test]
fn an_organization_whose_plan_is_gone_is_refused_and_not_without_limits() {
    let mut driver = Driver::with_plan(Plan::default());
    let stamp = Stamp { change_id: "x".into(), actor: "test".into(), at: at(0) };
    let version = driver.control.version_of(EntityKind::Plan, "p");
    let gone = ControlRecord::delete(EntityKind::Plan, "p", version, stamp);
    driver.control.apply(driver.control.offset() + 1, &gone).unwrap();
    assert_eq!(refusal_of(&driver.ask(&hello("two")).0), ("plan_missing", 403, None));
}

#[test]
fn a_models_tokens_are_corrected_and_every_refusal_says_what_is_left() {
    let per_minute = Limits { tokens_per_minute: Some(100), ..Limits::NONE };
    let model_limits = vec![ModelLimits { model: "two".parse().unwrap(), limits: per_minute }];
    let limits = Limits { requests_per_minute: Some(9), ..Limits::NONE };
    let mut driver = Driver::with_plan(Plan { limits, model_limits, output_cap: Some(80), ..Plan::default() });
    assert!(is_admitted(&driver.asks(0, &hello("two"))));
    let (facts, commands) = driver.ask(&hello("two"));
    assert_eq!(refusal_of(&facts).2, Some("model.tokens_per_minute"));
    let left = answered(&commands).2.error.as_ref().unwrap().rate_limits.clone().unwrap();
    assert_eq!((left.requests.unwrap().remaining, left.tokens), (8, None));
    driver.ends(0, AttemptEnd::Completed, reported(5, 5));
    assert!(is_admitted(&driver.asks(2, &hello("two"))));
}

#[test]
fn keys_without_limits_of_their_own_are_not_kept() {
    let mut driver = Driver::with_plan(Plan::default())
        .with_key(Limits { concurrent_requests: Some(1), ..Limits::NONE }, Spend::NONE);
    let with = |key: &str| Chat { key_id: Some(KeyId::parse(key).unwrap()), ..hello("two") };
    for id in 0..100 {
        let name = format!("free-{id}");
        driver.put(&name, Entity::Key(Key::of(vec![], name.clone(), name.clone())));
        assert!(is_admitted(&driver.asks(id, &with(&name))));
    }
    assert!(is_admitted(&driver.asks(100, &with("k"))));
    assert_eq!(refusal_of(&driver.asks(101, &with("k"))).2, Some("key.concurrent_requests"));
    assert_eq!(driver.state.ledger.books(&key().organization).keys().count(), 1);
    driver.ends(100, AttemptEnd::Completed, reported(1, 1));
    assert!(is_admitted(&driver.asks(102, &with("k"))));
}

#[test]
fn a_key_that_is_unknown_revoked_or_expired_opens_nothing() {
    let mut driver = Driver::with_plan(Plan::default());
    let key = |name: &str| Key::of(vec![], name.into(), name.into());
    driver.put("revoked", Entity::Key(Key { active: false, ..key("revoked") }));
    driver.put("expires", Entity::Key(Key { expires_at: Some(at(1_001)), ..key("expires") }));
    let with = |key: &str| Chat { key_id: Some(KeyId::parse(key).unwrap()), ..hello("two") };
    assert_eq!(refusal_of(&driver.asks(0, &with("unknown"))), ("invalid_api_key", 401, None));
    assert_eq!(refusal_of(&driver.asks(1, &with("revoked"))), ("key_revoked", 401, None));
    assert!(is_admitted(&driver.asks(2, &with("expires"))));
    driver.now = at(1_001);
    assert_eq!(refusal_of(&driver.asks(3, &with("expires"))), ("key_expired", 401, None));
    assert!(is_admitted(&driver.asks(4, &hello("two"))), "whoever writes records need not name a key");
}

#[test]
fn what_nobody_saw_of_a_call_that_was_broken_off_is_estimated_by_its_time_and_no_more_than_was_set_aside() {
    let text = Summary { text_bytes: 9, ..Summary::default() };
    let quiet = Summary::default();
    let table = [
        // How it ended, what was seen, after how long, output tokens.
        (AttemptEnd::Cancelled, &quiet, 0, 0),
        (AttemptEnd::Cancelled, &quiet, 10, 30),
        (AttemptEnd::Cancelled, &quiet, 60_000, 100),
        (AttemptEnd::Cancelled, &text, 60_000, 3),
        (failed(FailureClass::Deadline), &quiet, 60_000, 100),
        (failed(FailureClass::FirstTokenTimeout), &quiet, 30_000, 100),
        (failed(FailureClass::TooLarge), &quiet, 30_000, 100),
        (failed(FailureClass::Garbage), &quiet, 1, 3),
        (failed(FailureClass::Cut), &text, 60_000, 3),
        (failed(FailureClass::Upstream), &quiet, 60_000, 0),
        (AttemptEnd::Completed, &text, 60_000, 3),
    ];
    for (end, summary, duration_ms, output) in table {
        let mut driver = Driver::with_plan(budget(WORST, WhenShort::Refuse));
        driver.ask(&hello("two"));
        let report = AttemptReport { duration_ms, ..ended(super::key(), 1, end.clone(), summary.clone()) };
        let (facts, _) = driver.decide(&Input::AttemptEnded(Box::new(report)));
        let Fact::AttemptEnded(posting) = &facts[0] else { panic!("{facts:?}") };
        assert_eq!((posting.usage.output, posting.usage_source), (Some(output), UsageSource::Estimated), "{end:?}");
        assert_eq!(driver.posted(), 10_000 + i128::from(output) * 2_000);
    }
    // And so where nobody ever told of the end.
    let mut driver = Driver::with_plan(budget(WORST, WhenShort::Refuse));
    driver.ask(&hello("two"));
    driver.now = at(1_000_000);
    driver.decide(&Input::Overdue { key: super::key(), simulated: false });
    assert_eq!(driver.posted(), WORST);
}

#[test]
fn a_refusal_costs_nothing_and_an_error_inside_an_answer_may_have_cost_its_input() {
    let classes = [
        FailureClass::Overloaded,
        FailureClass::RateLimited,
        FailureClass::ContentFilter,
        FailureClass::QuotaExhausted,
    ];
    for class in classes {
        for (status, source, posted) in [(429, UsageSource::None, 0), (200, UsageSource::Estimated, 10_000)] {
            let mut driver = Driver::with_plan(budget(WORST, WhenShort::Refuse));
            driver.ask(&hello("two"));
            let AttemptEnd::Failed(failure) = failed(class) else { panic!("a failure") };
            let end = AttemptEnd::Failed(Failure { upstream_status: Some(status), ..failure });
            let report = ended(super::key(), 1, end, Summary::default());
            let (facts, _) = driver.decide(&Input::AttemptEnded(Box::new(report)));
            let Fact::AttemptEnded(posting) = &facts[0] else { panic!("{facts:?}") };
            assert_eq!(posting.usage_source, source, "{class} {status}");
            assert_eq!(posting.cost_pico_usd, usd(posted), "{class} {status}");
        }
    }
}

#[test]
fn a_calendar_that_is_changed_forgets_nothing_that_was_posted_in_the_month() {
    let of = |time_zone: &str, reset_day| Plan {
        budget: Budget { time_zone: time_zone.into(), reset_day, ..budget(2 * WORST, WhenShort::Refuse).budget },
        ..Plan::default()
    };
    let day = |month: i64, day: i64| at(1_767_225_600_000 + ((month - 1) * 31 + day - 1) * 86_400_000);
    let mut driver = Driver::with_plan(of("UTC", 1));
    // On the 20th of January 2026.
    driver.now = day(1, 20);
    driver.asks(0, &hello("two"));
    driver.ends(0, AttemptEnd::Completed, reported(10, 100));
    assert_eq!(driver.posted(), WORST);
    for (id, (reset_day, zone)) in (1..).zip([(20, "UTC"), (1, "Asia/Tokyo"), (15, "America/Sao_Paulo")]) {
        driver.plan(of(zone, reset_day));
        driver.asks(id, &hello("two"));
        assert_eq!(driver.reserved(), WORST, "{zone}");
        assert_eq!(refusal_of(&driver.asks(10 + id, &hello("two"))).2, Some("organization.month"), "{zone}");
        driver.ends(
            id,
            AttemptEnd::Cancelled,
            Summary { usage: Some(crate::domain::TokenUsage::NOTHING), ..Summary::default() },
        );
        assert_eq!(driver.posted(), WORST);
        driver.state = driver.rebuilt();
    }
    // The month that begins on the 15th of February is another one.
    driver.now = day(2, 16);
    driver.asks(20, &hello("two"));
    driver.ends(20, AttemptEnd::Completed, reported(1, 1));
    assert_eq!(driver.posted(), 3_000);
}

#[test]
fn the_late_end_of_an_estimated_call_is_posted_where_the_estimate_is_and_says_what_goes_beyond() {
    let key = |chat: Chat| Chat { key_id: Some(KeyId::parse("k").unwrap()), ..chat };
    let mut driver =
        Driver::with_plan(budget(10 * WORST, WhenShort::Refuse)).with_key(Limits::NONE, spend(Some(2 * WORST), None));
    driver.ask(&key(hello("two")));
    // Its owner is gone; the next one calls anew, while the key loses its budget.
    driver.decide(&Input::TakenOver { key: super::key(), has_body: true, simulated: false });
    driver.end(2, AttemptEnd::Completed, reported(1, 1), 0);
    let version = driver.control.version_of(EntityKind::Key, "k");
    assert!(version >= 0);
    driver = driver.with_key(Limits::NONE, Spend::NONE);
    let commit = driver.journal.iter().find(|c| matches!(c.facts[0], Fact::AttemptEnded(_))).unwrap().clone();
    let Fact::AttemptEnded(estimate) = &commit.facts[0] else { unreachable!() };
    let late = AttemptEnded {
        outcome: Outcome::Completed,
        usage_source: UsageSource::Reported,
        cost_pico_usd: usd(WORST + 7),
        ..AttemptEnded::clone(estimate)
    };
    let stale = Commit {
        tenure: 0,
        input: InputKind::Provider,
        source_offset: None,
        facts: vec![Fact::AttemptEnded(Box::new(late))],
        ..commit.clone()
    };
    let posted_before = driver.posted();
    fold(&mut driver.state, 99, &crate::records::journal::Entry::Commit(stale), false);
    let (facts, _) = driver.decide(&Input::Orphaned(99));
    let [Fact::OrphanPosted(orphan), Fact::Overdrawn(overdrawn)] = &facts[..] else { panic!("{facts:?}") };
    let estimated = estimate.cost_pico_usd.unwrap();
    assert_eq!(orphan.corrects_pico_usd, Some(estimated));
    let booking = orphan.posting.booking.as_ref().unwrap();
    assert_eq!(booking.accounts, [Account::Organization, Account::Key]);
    assert_eq!(*overdrawn, Overdrawn { attempt: 1, amount_pico_usd: PicoUsd::new(7) });
    assert_eq!(driver.posted(), posted_before + WORST + 7 - estimated.get());
}
