use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::domain::{PicoUsd, Timestamp};
use crate::records::control::{Budget, Limits, ModelLimits, Organization, Plan, Spend, WhenShort};
use crate::topology::{Files, Topology};

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        other => panic!("{other}"),
    }
}

fn problems(kind: EntityKind, value: Value) -> String {
    let key = Key::of(vec![], "00".into(), "tsk_ab".into());
    parse(kind, object(value), Some(&key))
        .map(|_| String::new())
        .unwrap_or_else(|problems| problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))
}

#[test]
fn what_is_wrong_is_listed_with_its_place() {
    let table = [
        (EntityKind::Organization, json!({"id": "a b", "name": "A"}), "id: organization has ' '"),
        (EntityKind::Organization, json!({"name": "A"}), "id: is missing"),
        (EntityKind::Organization, json!({"id": 7, "name": "A"}), "id: must be a string"),
        (EntityKind::Organization, json!({"id": "a", "name": " "}), "name: is empty"),
        (EntityKind::Organization, json!({"id": "a", "name": "A", "colour": 1}), "colour: unknown field `colour`"),
        (
            EntityKind::Organization,
            json!({"id": "a", "name": "A", "spend_per_day": "-1"}),
            "spend_per_day: \"-1\" is negative",
        ),
        (EntityKind::Organization, json!({"id": "a", "name": "A", "spend_per_day": 25}), "spend_per_day: invalid type"),
        (
            EntityKind::Organization,
            json!({"id": "a", "name": "A", "spend_per_month": "9223373"}),
            "spend_per_month: \"9223373\" is too large",
        ),
        (
            EntityKind::Organization,
            json!({"id": "a", "name": "A", "limits": {"requests_per_minute": -1}}),
            "limits.requests_per_minute: ",
        ),
        (
            EntityKind::Organization,
            json!({"id": "a", "name": "A", "limits": {"tokens_per_minute": u64::MAX}}),
            "limits.tokens_per_minute: 18446744073709551615 is too large",
        ),
        (
            EntityKind::Plan,
            json!({"name": "p", "budget": {"time_zone": "Mars/Base"}}),
            "budget.time_zone: there is no time zone \"Mars/Base\"",
        ),
        (EntityKind::Plan, json!({"name": "p", "budget": {"reset_day": 32}}), "budget.reset_day: reset day 32"),
        (EntityKind::Plan, json!({"name": "p", "budget": {"soft_percents": [50, 101]}}), "budget.soft_percents: 101"),
        (
            EntityKind::Plan,
            json!({"name": "p", "budget": {"when_short": "panic"}}),
            "budget.when_short: unknown variant `panic`",
        ),
        (EntityKind::Plan, json!({"name": "p", "tiers": [5]}), "tiers: 5 is no tier"),
        (EntityKind::Plan, json!({"name": "p", "models": ["m", "m"]}), "models: m is there more than once"),
        (EntityKind::Plan, json!({"name": "p", "output_cap": 0}), "output_cap: is 0"),
        (
            EntityKind::Plan,
            json!({"name": "p", "model_limits": [{"model": "m m", "limits": {}}]}),
            "model_limits[0].model: ",
        ),
        (EntityKind::Key, json!({"id": "k"}), "organizations: there is none"),
        (
            EntityKind::Key,
            json!({"id": "k", "organizations": ["a"], "scopes": ["root"]}),
            "scopes: \"root\" is not known",
        ),
        (
            EntityKind::Key,
            json!({"id": "k", "organizations": ["a"], "expires_at": "tomorrow"}),
            "expires_at: \"tomorrow\" is no moment",
        ),
        (EntityKind::Key, json!({"id": "k", "organizations": ["a"], "sha256": "00"}), "sha256: unknown field"),
        (
            EntityKind::Key,
            json!({"id": "k", "organizations": ["a"], "prefix": "tsk_cd"}),
            "prefix: comes from the secret",
        ),
        (
            EntityKind::Key,
            json!({"id": "k", "organizations": ["a"], "active": false}),
            "active: is changed by revoking",
        ),
        (
            EntityKind::Policy,
            json!({"name": "p", "default_tier": 1, "max_attempts": 0, "tiers": []}),
            "max_attempts: must be from 1",
        ),
        (
            EntityKind::Policy,
            json!({"name": "p", "default_tier": 1, "max_attempts": 1, "tiers": []}),
            "default_tier: 1 has no",
        ),
    ];
    for (kind, document, expected) in table {
        let problems = problems(kind, document.clone());
        assert!(problems.lines().any(|line| line.starts_with(expected)), "{document}: {expected}: {problems}");
    }
    assert!(parse(EntityKind::Key, object(json!({"id": "k", "organizations": ["a"]})), None).is_err());
    assert_eq!(problems(EntityKind::Key, json!({"id": "k", "scopes": ["admin"]})), "");
}

/// A whole policy, with this in place of what it has.
fn policy_with(change: Value) -> Value {
    let window = json!({"days": ["sat", "sun"], "from": "22:00", "to": "06:00", "time_zone": "America/Sao_Paulo"});
    let mut policy = json!({
        "name": "p", "default_tier": 1, "max_attempts": 3, "fallback": ["m"], "doubt_percent": 15, "vip_tier": 2,
        "escalation": ["empty", "not_schema"],
        "intents": {"faq": 1, "returns": 2},
        "complexity": {"weights": {"words": 1}, "thresholds": [{"points": 9, "tier": 2}]},
        "tiers": [{"tier": 1, "candidates": ["a", "b"], "weights": [1, 0]}, {"tier": 2, "candidates": ["m"]}],
        "rules": [{"name": "night", "max_tier": 1, "when": {"intents": ["faq"], "tags": {"a": "b"}, "window": window}}],
        "failures": {"upstream_overloaded": {"then": "retry", "retries": 2, "backoff_ms": 100}},
    });
    policy.as_object_mut().unwrap().extend(object(change));
    policy
}

#[test]
fn a_policy_that_does_not_hold_says_where() {
    let rule = |of: Value| json!({"rules": [of]});
    let at = |from: &str, to: &str| json!({"from": from, "to": to, "time_zone": "UTC"});
    let timed = |name: &str, tier: u8, from: &str, to: &str| json!({"name": name, "tier": tier, "when": {"window": at(from, to)}});
    let table = [
        (json!({"intents": {"faq": 3}}), "intents.faq: 3 has no [[tiers]]"),
        (json!({"intents": {"f q": 1}}), "intents.f q: must have"),
        (json!({"vip_tier": 4}), "vip_tier: 4 has no"),
        (json!({"doubt_percent": 101}), "doubt_percent: must be"),
        (json!({"escalation": ["tired"]}), "escalation: tired is not known"),
        (
            json!({"complexity": {"weights": {"charm": 1}, "thresholds": [{"points": 1, "tier": 1}]}}),
            "complexity.weights.charm: is not measured",
        ),
        (json!({"complexity": {"weights": {"words": 1}}}), "complexity: weights do nothing without thresholds"),
        (
            json!({"tiers": [{"tier": 1, "candidates": []}, {"tier": 2, "candidates": ["m"]}]}),
            "tiers[0].candidates: has no candidates",
        ),
        (
            json!({"tiers": [{"tier": 1, "candidates": ["a"], "weights": [0]}, {"tier": 2, "candidates": ["m"]}]}),
            "tiers[0].weights: sum to nothing",
        ),
        (
            json!({"tiers": [{"tier": 1, "candidates": ["a"], "weights": [1, 2]}, {"tier": 2, "candidates": ["m"]}]}),
            "tiers[0].weights: has 2 weights for 1",
        ),
        (json!({"fallback": ["m", "a", "m"]}), "fallback: m is there more than once"),
        (rule(json!({"name": "x"})), "rules[0]: does nothing"),
        (rule(json!({"name": "x", "tier": 7})), "rules[0].tier: 7 has no"),
        (rule(json!({"name": "x", "min_tier": 2, "max_tier": 1})), "rules[0].min_tier: 2 is above"),
        (
            rule(json!({"name": "x", "tier": 1, "when": {"intents": ["astrology"]}})),
            "rules[0].when.intents: astrology is no intent",
        ),
        (
            rule(json!({"name": "x", "tier": 1, "when": {"min_input_tokens": 2, "max_input_tokens": 1}})),
            "rules[0].when.min_input_tokens: 2",
        ),
        (
            rule(json!({"name": "x", "tier": 1, "when": {"window": at("25:00", "06:00")}})),
            "rules[0].when.window.from: \"25:00\" is no time",
        ),
        (
            rule(json!({"name": "x", "tier": 1, "when": {"window": at("06:00", "06:00")}})),
            "rules[0].when.window.to: is from",
        ),
        (
            rule(
                json!({"name": "x", "tier": 1, "when": {"window": {"from": "01:00", "to": "02:00", "time_zone": "Moon/Base"}}}),
            ),
            "rules[0].when.window.time_zone: there is no time zone \"Moon/Base\"",
        ),
        (
            json!({"rules": [timed("a", 1, "08:00", "12:00"), timed("b", 2, "11:00", "13:00")]}),
            "rules[1].when.window: overlaps the window of rule a",
        ),
        (
            json!({"rules": [timed("a", 1, "08:00", "12:00"), timed("a", 1, "12:00", "13:00")]}),
            "rules[1].name: a is there more",
        ),
        (json!({"failures": {"gravity": {"then": "next"}}}), "failures.gravity: is no cause"),
        (
            json!({"failures": {"deadline_exceeded": {"then": "next"}}}),
            "failures.deadline_exceeded: ends the request always",
        ),
        (json!({"failures": {"upstream_cut": {"then": "pray"}}}), "failures.upstream_cut.then: \"pray\" is not known"),
        (json!({"failures": {"upstream_cut": {"then": "retry"}}}), "failures.upstream_cut.retries: must be"),
        (
            json!({"failures": {"upstream_cut": {"then": "retry", "retries": 99}}}),
            "failures.upstream_cut.retries: must be at most",
        ),
        (json!({"surprise": 1}), "surprise: unknown field"),
    ];
    assert_eq!(problems(EntityKind::Policy, policy_with(json!({}))), "");
    for (change, expected) in table {
        let problems = problems(EntityKind::Policy, policy_with(change.clone()));
        assert!(problems.lines().any(|line| line.starts_with(expected)), "{change}: {expected}: {problems}");
    }
    // Windows that do not meet, and the same tier, are no contradiction.
    let apart = json!({"rules": [timed("a", 1, "08:00", "12:00"), timed("b", 2, "12:00", "13:00"), timed("c", 1, "08:00", "09:00")]});
    assert_eq!(problems(EntityKind::Policy, policy_with(apart)), "");
    // What is read is shown as it was written.
    let document = object(policy_with(json!({})));
    let (id, entity) = parse(EntityKind::Policy, document.clone(), None).unwrap();
    let (shown, written) = (Value::Object(show(&id, &entity)), Value::Object(document));
    for (name, value) in written.as_object().unwrap() {
        assert_eq!(&shown[name], value, "{name}");
    }
}

#[test]
fn all_problems_are_listed_at_once() {
    let document =
        json!({"name": "p", "tiers": [9], "budget": {"spend_per_day": "-1", "reset_day": 0}, "output_cap": 0});
    assert_eq!(problems(EntityKind::Plan, document).lines().count(), 4);
}

#[test]
fn a_credential_that_may_be_a_secret_is_not_repeated() {
    let topology = Topology::parse(&Files::embedded()).unwrap();
    let (name, model) = topology.seeds.models.iter().next().unwrap();
    let mut document = show(name.as_str(), &Entity::Model(model.clone()));
    document["deployments"][0]["credential"] = json!("sk-very-secret");
    document["deployments"][0]["base_url"] = json!("https://user:sk-very-secret@example.com/v1");
    let problems = problems(EntityKind::Model, Value::Object(document));
    assert!(problems.contains("deployments[0].credential") && problems.contains("deployments[0].base_url"));
    assert!(!problems.contains("sk-very-secret"), "{problems}");
}

#[test]
fn every_seed_is_read_back_from_what_is_shown_of_it() {
    let topology = Topology::parse(&Files::embedded()).unwrap();
    for (id, entity) in topology.seeds.entities() {
        let shown = show(id, &entity);
        assert_eq!(parse(entity.kind(), shown.clone(), None), Ok((id.to_owned(), entity)), "{shown:?}");
        // Also through the text of a file.
        let text = toml::to_string(&shown).unwrap();
        let back = object(from_toml(toml::from_str(&text).unwrap()));
        assert_eq!(difference(Some(&shown), Some(&back)), [], "{text}");
    }
}

#[test]
fn a_key_shows_no_hash() {
    let key = Key::of(vec!["acme".parse().unwrap()], "cafe".repeat(16), "tsk_ab".into());
    let shown = Value::Object(show("key_1", &Entity::Key(key.clone())));
    assert!(!shown.to_string().contains("cafe"), "{shown}");
    assert_eq!(parse(EntityKind::Key, object(shown), Some(&key)), Ok(("key_1".into(), Entity::Key(key))));
}

#[test]
fn a_patch_replaces_adds_and_removes() {
    let mut target = object(json!({"a": 1, "b": {"c": 2, "d": 3}, "e": [1]}));
    merge(&mut target, object(json!({"a": null, "b": {"c": 4, "d": null}, "e": [2], "f": {"g": null, "h": 5}})));
    assert_eq!(Value::Object(target), json!({"b": {"c": 4}, "e": [2], "f": {"h": 5}}));
}

#[test]
fn a_difference_names_each_member() {
    let before = object(json!({"a": 1, "l": {"x": 1}, "names": ["m"], "d": [{"p": 1}]}));
    let after = object(json!({"a": 1, "l": {"x": 2, "y": 3}, "names": ["m", "n"], "d": [{"p": 1}, {"p": 2}]}));
    let shown: Vec<String> = difference(Some(&before), Some(&after)).iter().map(FieldChange::to_string).collect();
    assert_eq!(shown, ["l.x 1 -> 2", "l.y - -> 3", "names [\"m\"] -> [\"m\",\"n\"]", "d[1].p - -> 2"]);
    assert_eq!(difference(Some(&before), Some(&before)), []);
}

fn limits() -> impl Strategy<Value = Limits> {
    let number = || proptest::option::of(0..=i64::MAX as u64);
    (number(), number(), number()).prop_map(|(requests_per_minute, tokens_per_minute, concurrent_requests)| Limits {
        requests_per_minute,
        tokens_per_minute,
        concurrent_requests,
    })
}

fn spend() -> impl Strategy<Value = Spend> {
    let amount = || proptest::option::of((0..=i64::MAX).prop_map(|pico| PicoUsd::new(i128::from(pico))));
    (amount(), amount()).prop_map(|(day, month)| Spend { day, month })
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_.:/@+~-]{1,20}"
}

fn budget() -> impl Strategy<Value = Budget> {
    let zone = proptest::sample::select(vec!["UTC", "America/Sao_Paulo", "Asia/Kolkata"]);
    let percents = proptest::collection::btree_set(1..=100_u8, 0..4);
    let short = proptest::sample::select(vec![WhenShort::Refuse, WhenShort::LowerOutputCap, WhenShort::StepDown]);
    (spend(), zone, 1..=31_u8, percents, short).prop_map(|(spend, zone, reset_day, percents, when_short)| Budget {
        spend,
        time_zone: zone.to_owned(),
        reset_day,
        soft_percents: percents.into_iter().collect(),
        when_short,
    })
}

fn entity() -> impl Strategy<Value = Entity> {
    let organization = ("[^\\s].{0,20}", any::<bool>(), proptest::option::of(name()), any::<bool>(), limits(), spend())
        .prop_map(|(name, active, plan, vip, limits, spend)| {
            let plan = plan.map(|plan| plan.parse().unwrap());
            Entity::Organization(Organization { name, active, plan, vip, limits, spend })
        });
    let models = || proptest::collection::btree_set(name(), 0..4);
    let tiers = proptest::collection::btree_set(TIERS, 0..4);
    let cap = proptest::option::of(1..=i64::MAX as u64);
    let plan = (".{0,20}", models(), tiers, limits(), models(), cap, budget()).prop_map(
        |(description, models, tiers, limits, limited, output_cap, budget)| {
            let limited = limited.iter().map(|model| ModelLimits { model: model.parse().unwrap(), limits });
            Entity::Plan(Plan {
                description,
                models: models.iter().map(|model| model.parse().unwrap()).collect(),
                tiers: tiers.into_iter().collect(),
                limits,
                model_limits: limited.collect(),
                output_cap,
                budget,
                cache: None,
            })
        },
    );
    prop_oneof![organization, plan]
}

proptest! {
    #[test]
    fn what_is_shown_is_read_back(id in name(), entity in entity()) {
        let shown = show(&id, &entity);
        prop_assert_eq!(parse(entity.kind(), shown, None), Ok((id, entity)));
    }

    #[test]
    fn a_key_that_is_shown_is_read_back(limits in limits(), spend in spend(), expires in proptest::option::of(0..4_000_000_000_000_i64)) {
        let key = Key {
            limits,
            spend,
            expires_at: expires.map(Timestamp::from_millis),
            created_at: expires.map(Timestamp::from_millis),
            ..Key::of(vec!["acme".parse().unwrap()], "aa".into(), "tsk_ab".into())
        };
        let shown = show("k", &Entity::Key(key.clone()));
        prop_assert_eq!(parse(EntityKind::Key, shown, Some(&key)), Ok(("k".to_owned(), Entity::Key(key))));
    }
}
