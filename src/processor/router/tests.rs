//! Tables of the router: one rule, one row.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::domain::{DeploymentId, OrganizationId, PicoUsd};
use crate::processor::intent::INTENTS;
use crate::records::control::{
    Balance, ControlRecord, Deployment, Entity, Model, Organization, Plan, PriceEntry, Stamp,
};
use crate::records::journal::{HealthState, IntentSource, Likelihoods, Measures, ResponseFormat};
use crate::records::policy::{IntentTier, MeasureWeight, PolicyTier, Rule, Threshold, When, Window};

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms)
}

fn name(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

fn model(tier: u8, capabilities: &[&str], context_window: u64, deployments: &[&str]) -> Model {
    let price = PriceEntry {
        effective_from: at(0),
        min_input_tokens: None,
        max_input_tokens: None,
        input: PicoUsd::new(1),
        cached_input: None,
        cache_write: None,
        output: PicoUsd::new(2),
        reasoning: None,
        source: None,
        source_read: None,
    };
    let deployment = |id: &&str| Deployment {
        id: DeploymentId::parse(id).unwrap(),
        provider: "p".into(),
        upstream_model: "m".into(),
        base_url: "http://u".into(),
        region: "r".into(),
        credential: "none".into(),
        prices: vec![price.clone()],
        weight: None,
    };
    Model {
        aliases: vec![],
        tier,
        owned_by: "openai".into(),
        created_at: at(0),
        context_window,
        max_output_tokens: 100,
        capabilities: capabilities.iter().map(|c| (*c).to_owned()).collect(),
        deployments: deployments.iter().map(deployment).collect(),
        limits: Default::default(),
        balance: Balance::Listed,
    }
}

/// Tiers of one model each, with a second one in the third; the chain is the mission's.
fn policy() -> Policy {
    let tier = |tier, candidates: &[&str]| PolicyTier {
        tier,
        candidates: candidates.iter().map(|c| name(c)).collect(),
        weights: vec![],
    };
    let tiers = [1, 1, 2, 3, 4, 4];
    Policy {
        default_tier: 2,
        tiers: vec![tier(1, &["llama"]), tier(2, &["haiku"]), tier(3, &["sonnet", "gpt"]), tier(4, &["opus"])],
        fallback: ["opus", "turbo", "sonnet", "haiku", "llama"].map(name).to_vec(),
        intents: INTENTS
            .iter()
            .zip(tiers)
            .map(|(intent, tier)| IntentTier { intent: (*intent).into(), tier })
            .collect(),
        ..Policy::default()
    }
}

#[derive(Debug)]
struct World {
    control: Tables,
    organization: OrganizationId,
    features: Features,
    user_tier: Option<String>,
    tags: BTreeMap<String, String>,
    request_id: RequestId,
    model: ModelName,
    at: Timestamp,
}

impl World {
    fn new(policy: Policy) -> Self {
        let mut world = Self {
            control: Tables::default(),
            organization: OrganizationId::parse("acme").unwrap(),
            features: Features { messages: 1, choices: 1, input_tokens: Some(10), ..Features::default() },
            user_tier: None,
            tags: BTreeMap::new(),
            request_id: RequestId::parse("r1").unwrap(),
            model: name(AUTO),
            at: at(1_793_491_200_000),
        };
        world.put("acme", Entity::Organization(Organization::named("Acme")));
        let all = ["tools", "vision", "json_object", "json_schema"];
        for (id, of) in [
            ("llama", model(1, &["tools"], 1_000, &["llama-a"])),
            ("haiku", model(2, &["tools", "vision"], 10_000, &["haiku-a"])),
            ("sonnet", model(3, &all, 10_000, &["sonnet-a", "sonnet-b"])),
            ("gpt", model(3, &all, 100_000, &["gpt-a"])),
            ("opus", model(4, &all, 10_000, &["opus-a"])),
            ("turbo", model(4, &all, 10_000, &["turbo-a"])),
        ] {
            world.put(id, Entity::Model(of));
        }
        world.put(AUTO, Entity::Policy(policy));
        world
    }

    fn put(&mut self, id: &str, entity: Entity) {
        let (offset, version) = (self.control.offset() + 1, self.control.version_of(entity.kind(), id));
        let stamp = Stamp { change_id: String::new(), actor: String::new(), at: at(0) };
        self.control.apply(offset, &ControlRecord::put(id, entity, version, stamp)).unwrap();
    }

    fn plan(&mut self, plan: Plan) {
        self.put("p", Entity::Plan(plan));
        let organization = Organization { plan: Some("p".parse().unwrap()), ..Organization::named("Acme") };
        self.put("acme", Entity::Organization(organization));
    }

    fn likely(mut self, permille: [u16; 6]) -> Self {
        let [greeting, faq, basic_support, complex_question, sales_negotiation, high_value] = permille;
        self.features.likelihoods =
            Some(Likelihoods { greeting, faq, basic_support, complex_question, sales_negotiation, high_value });
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn route_under(&self, health: Health<'_>) -> Result<Route, Box<Refusal>> {
        let terms = self.control.terms(&self.organization, None).unwrap();
        let under = Under { control: &self.control, terms: &terms, at: self.at, health };
        let asked = Asked {
            model: &self.model,
            request_id: &self.request_id,
            features: &self.features,
            user_tier: self.user_tier.as_deref(),
            tags: &self.tags,
        };
        route(&under, &asked)
    }

    fn route(&self) -> Route {
        self.route_under(Health::Unknown).unwrap()
    }

    fn refused(&self) -> (String, u16, String) {
        let error = self.route_under(Health::Unknown).unwrap_err().error;
        (error.code, error.status, error.message)
    }
}

fn tiering(route: &Route) -> &Tiering {
    route.routed.tiering.as_ref().unwrap()
}

fn models(route: &Route) -> Vec<&str> {
    let mut models: Vec<&str> = route.routed.candidates.iter().map(|c| c.model.as_str()).collect();
    models.dedup();
    models
}

fn rule(name: &str, when: When, tier: Option<u8>) -> Rule {
    Rule { name: name.into(), when, tier, min_tier: None, max_tier: None }
}

#[test]
fn the_tier_is_the_lowest_for_which_a_higher_one_is_unlikely_enough() {
    let table: [([u16; 6], u8, &str); 8] = [
        ([900, 50, 50, 0, 0, 0], 1, "greeting"),
        ([0, 800, 200, 0, 0, 0], 1, "faq"),
        ([0, 799, 201, 0, 0, 0], 2, "faq"),
        ([0, 100, 700, 200, 0, 0], 2, "basic_support"),
        ([0, 0, 700, 201, 50, 49], 3, "basic_support"),
        ([0, 0, 0, 800, 100, 100], 3, "complex_question"),
        ([0, 0, 0, 0, 1_000, 0], 4, "sales_negotiation"),
        ([167, 167, 167, 167, 166, 166], 4, "greeting"),
    ];
    for (likelihoods, tier, intent) in table {
        let route = World::new(policy()).likely(likelihoods).route();
        let found = tiering(&route);
        assert_eq!((found.tier, found.intent.as_deref()), (tier, Some(intent)), "{likelihoods:?}");
        assert_eq!(found.intent_source, IntentSource::Classified);
        assert_eq!(found.confidence_permille, likelihoods.iter().max().copied());
        assert!(route.routed.reasons.contains(&format!("tier:{tier}:intent")), "{:?}", route.routed.reasons);
    }
}

#[test]
fn an_intent_that_is_given_goes_before_the_classifier_when_the_policy_knows_it() {
    let given = |intent: &str| {
        World::new(policy()).likely([1_000, 0, 0, 0, 0, 0]).with(|world| {
            world.tags.insert("intent".into(), intent.into());
        })
    };
    let route = given("complex_question").route();
    assert_eq!((tiering(&route).tier, tiering(&route).intent_source), (3, IntentSource::Given));
    let route = given("astrology").route();
    assert_eq!((tiering(&route).tier, tiering(&route).intent.as_deref()), (1, Some("greeting")));
    assert!(route.routed.reasons.contains(&"unknown_intent:astrology".to_owned()), "{:?}", route.routed.reasons);
}

#[test]
fn who_or_what_decides_the_tier() {
    let policy = |change: fn(&mut Policy)| {
        let mut policy = policy();
        change(&mut policy);
        policy
    };
    let greeting = |policy| World::new(policy).likely([1_000, 0, 0, 0, 0, 0]);
    let vip = |world: World| world.with(|w| w.user_tier = Some("VIP".into()));
    let only = |tiers: &'static [u8]| move |w: &mut World| w.plan(Plan { tiers: tiers.to_vec(), ..Plan::default() });
    let hours =
        |world: World, hour: i64| world.with(|w| w.at = w.at.plus(std::time::Duration::from_secs(3_600 * hour as u64)));
    let rules: fn(&mut Policy) = |p| {
        let window = Window { days: vec![], from_minute: 22 * 60, to_minute: 6 * 60, time_zone: "UTC".into() };
        p.rules = vec![
            Rule { max_tier: Some(2), ..rule("night", When { window: Some(window), ..When::default() }, None) },
            rule("audit", When { tags: [("team".into(), "audit".into())].into(), ..When::default() }, Some(4)),
            rule("long", When { min_input_tokens: Some(500), ..When::default() }, Some(3)),
            Rule {
                min_tier: Some(2),
                ..rule("gold", When { user_tiers: vec!["gold".into()], ..When::default() }, None)
            },
        ];
    };
    let complexity: fn(&mut Policy) = |p| {
        p.weights = vec![
            MeasureWeight { measure: "questions".into(), points: 10 },
            MeasureWeight { measure: "words".into(), points: -1 },
        ];
        p.thresholds = vec![Threshold { points: 20, tier: 3 }, Threshold { points: 100, tier: 4 }];
    };
    let measured = |questions, words| {
        move |w: &mut World| {
            w.features.measures = Some(Measures { questions, words, ..Measures::default() });
        }
    };
    let with_vip: fn(&mut Policy) = |p| p.vip_tier = Some(4);
    let table = [
        ("the intent", greeting(policy(|_| {})), 1, "tier:1:intent"),
        ("nothing is known", World::new(policy(|_| {})), 2, "tier:2:default"),
        ("a VIP", vip(greeting(policy(with_vip))), 4, "tier:4:vip"),
        (
            "a VIP's organization",
            greeting(policy(with_vip)).with(|w| {
                w.put("acme", Entity::Organization(Organization { vip: true, ..Organization::named("Acme") }));
            }),
            4,
            "tier:4:vip",
        ),
        (
            "a VIP without that tier in the plan",
            vip(greeting(policy(with_vip))).with(only(&[1, 2])),
            1,
            "tier:1:intent",
        ),
        ("a VIP where the policy has none", vip(greeting(policy(|_| {}))), 1, "tier:1:intent"),
        (
            "a rule on tags",
            greeting(policy(rules))
                .with(|w| {
                    w.tags.insert("team".into(), "audit".into());
                })
                .with(|w| w.at = w.at.plus(std::time::Duration::from_secs(12 * 3_600))),
            4,
            "tier:4:rule:audit",
        ),
        (
            "a rule on tokens",
            hours(greeting(policy(rules)).with(|w| w.features.input_tokens = Some(500)), 12),
            3,
            "tier:3:rule:long",
        ),
        (
            "at night",
            hours(greeting(policy(rules)).with(|w| w.features.input_tokens = Some(500)), 23),
            2,
            "bounded:2:rule:night",
        ),
        (
            "at least",
            hours(greeting(policy(rules)).with(|w| w.user_tier = Some("gold".into())), 12),
            2,
            "bounded:2:rule:gold",
        ),
        (
            "the plan's ceiling",
            World::new(policy(|_| {})).likely([0, 0, 0, 0, 0, 1_000]).with(only(&[1, 2])),
            2,
            "bounded:2:plan",
        ),
        ("the plan's floor", greeting(policy(|_| {})).with(only(&[3, 4])), 3, "bounded:3:plan"),
        ("few points", greeting(policy(complexity)).with(measured(2, 1)), 1, "tier:1:intent"),
        ("enough points", greeting(policy(complexity)).with(measured(3, 10)), 3, "raised:3:complexity:20"),
        ("many points", greeting(policy(complexity)).with(measured(10, 0)), 4, "raised:4:complexity:100"),
    ];
    for (what, world, tier, reason) in table {
        let route = world.route();
        assert_eq!(tiering(&route).tier, tier, "{what}: {:?}", route.routed.reasons);
        assert!(route.routed.reasons.iter().any(|of| of == reason), "{what}: {:?}", route.routed.reasons);
    }
}

#[test]
fn the_chain_goes_down_from_the_tier_and_then_up() {
    let table: [(&str, &[&str]); 6] = [
        ("greeting", &["llama", "haiku", "sonnet", "turbo", "opus"]),
        ("basic_support", &["haiku", "llama", "sonnet", "turbo", "opus"]),
        ("complex_question", &["sonnet", "gpt", "haiku", "llama", "turbo", "opus"]),
        ("high_value", &["opus", "turbo", "sonnet", "haiku", "llama"]),
        ("faq", &["llama", "haiku", "sonnet", "turbo", "opus"]),
        ("sales_negotiation", &["opus", "turbo", "sonnet", "haiku", "llama"]),
    ];
    for (intent, expected) in table {
        let route = World::new(policy()).with(|w| {
            w.tags.insert("intent".into(), intent.into());
        });
        assert_eq!(models(&route.route()), expected, "{intent}");
    }
}

#[test]
fn who_cannot_do_it_is_passed_over_and_why_is_said() {
    let given = |intent: &'static str, change: fn(&mut Features)| {
        World::new(policy()).with(|w| {
            w.tags.insert("intent".into(), intent.into());
            change(&mut w.features);
        })
    };
    let table: [(World, &[&str], &str); 5] = [
        (given("greeting", |f| f.tools = 1), &["llama", "haiku", "sonnet", "turbo", "opus"], "intent:greeting:given"),
        (given("greeting", |f| f.images = 1), &["haiku", "sonnet", "turbo", "opus"], "lacks_vision:llama"),
        (
            given("greeting", |f| f.response_format = ResponseFormat::JsonSchema),
            &["sonnet", "turbo", "opus"],
            "lacks_json_schema:haiku",
        ),
        (given("complex_question", |f| f.input_tokens = Some(10_000)), &["gpt"], "context:sonnet:10000>=10000"),
        (
            given("greeting", |f| f.input_tokens = Some(999)),
            &["llama", "haiku", "sonnet", "turbo", "opus"],
            "tier:1:intent",
        ),
    ];
    for (world, expected, reason) in table {
        let route = world.route();
        assert_eq!(models(&route), expected);
        assert!(route.routed.reasons.iter().any(|of| of == reason), "{:?}", route.routed.reasons);
    }
}

#[test]
fn when_nobody_can_the_refusal_says_what_to_do() {
    let world = |change: fn(&mut World)| World::new(policy()).with(change);
    let only = |tiers: &[u8]| Plan { tiers: tiers.to_vec(), ..Plan::default() };
    let (code, status, message) = world(|w| w.features.input_tokens = Some(200_000)).refused();
    assert_eq!((code.as_str(), status), ("context_length_exceeded", 400));
    assert!(message.contains("about 200000 tokens") && message.contains("is 10000;"), "{message}");
    let (code, status, _) = world(|w| {
        w.plan(Plan { tiers: vec![1], ..Plan::default() });
        w.features.images = 1;
    })
    .refused();
    assert_eq!((code.as_str(), status), ("no_capable_model", 400));
    let mut barred = World::new(policy());
    barred.plan(Plan { models: vec![name("elsewhere")], ..only(&[]) });
    assert_eq!(barred.refused().0, "model_not_allowed");
    // Who names a model is refused for its context only when it cannot fit by any count, and never for what it lacks.
    let named = |tokens| {
        World::new(policy()).with(|w| {
            w.model = name("llama");
            w.features = Features { images: 1, input_tokens: Some(tokens), ..w.features };
        })
    };
    assert_eq!(models(&named(999).route()), ["llama"]);
    assert_eq!(named(1_000).refused().0, "context_length_exceeded");
    assert_eq!(World::new(policy()).with(|w| w.model = name("nobody")).refused().0, "model_not_found");
}

#[test]
fn the_largest_context_is_told() {
    // gpt is of the third tier only, so it is not among a greeting's candidates.
    let mut third = World::new(policy()).likely([0, 0, 0, 1_000, 0, 0]);
    third.features.input_tokens = Some(200_000);
    assert!(third.refused().2.contains("is 100000"), "{}", third.refused().2);
}

#[test]
fn candidates_are_drawn_by_their_weights_and_the_same_for_the_same_request() {
    let mut policy = policy();
    policy.tiers[2].weights = vec![1, 3];
    let mut world = World::new(policy).likely([0, 0, 0, 1_000, 0, 0]);
    let mut first = BTreeMap::new();
    for id in 0..1_000 {
        world.request_id = RequestId::parse(&format!("r{id}")).unwrap();
        let route = world.route();
        assert_eq!(route, world.route());
        *first.entry(route.routed.candidates[0].model.to_string()).or_insert(0) += 1;
    }
    assert!((700..800).contains(&first["gpt"]) && first["sonnet"] + first["gpt"] == 1_000, "{first:?}");
}

#[test]
fn a_models_deployments_are_ordered_by_its_balance_and_what_changed_it_is_kept() {
    let standing = |id: &str, latency_ms, in_flight| Standing {
        deployment: DeploymentId::parse(id).unwrap(),
        state: HealthState::Sound,
        until: None,
        latency_ms,
        in_flight,
    };
    let known = [standing("sonnet-a", Some(300), 1), standing("sonnet-b", Some(200), 7)];
    let table = [
        (Balance::Listed, ["sonnet-a", "sonnet-b"], 0),
        (Balance::LeastLatency, ["sonnet-b", "sonnet-a"], 2),
        (Balance::LeastBusy, ["sonnet-a", "sonnet-b"], 0),
    ];
    for (balance, expected, kept) in table {
        let mut world = World::new(policy());
        world.model = name("sonnet");
        world.put("sonnet", Entity::Model(Model { balance, ..model(3, &[], 10_000, &["sonnet-a", "sonnet-b"]) }));
        let route = world.route_under(Health::Recorded(&known)).unwrap();
        let order: Vec<&str> = route.routed.candidates.iter().map(|c| c.deployment.as_str()).collect();
        assert_eq!((order, route.health.len()), (expected.to_vec(), kept), "{balance:?}");
        // What is kept gives the same order.
        assert_eq!(world.route_under(Health::Recorded(&route.health)).unwrap(), route);
    }
    let mut world = World::new(policy());
    world.model = name("sonnet");
    let mut weighted = Model { balance: Balance::Weighted, ..model(3, &[], 10_000, &["sonnet-a", "sonnet-b"]) };
    weighted.deployments[0].weight = Some(0);
    world.put("sonnet", Entity::Model(weighted));
    assert_eq!(world.route().routed.candidates[0].deployment.as_str(), "sonnet-b");
}

#[test]
fn an_answer_that_falls_short_goes_to_the_next_tier_that_the_plan_has() {
    let mut world = World::new(policy()).likely([1_000, 0, 0, 0, 0, 0]);
    let next = |world: &World| {
        let terms = world.control.terms(&world.organization, None).unwrap();
        let under = Under { control: &world.control, terms: &terms, at: world.at, health: Health::Unknown };
        let asked = Asked {
            model: &world.model,
            request_id: &world.request_id,
            features: &world.features,
            user_tier: None,
            tags: &world.tags,
        };
        let from = world.route().routed.tiering.clone().unwrap();
        escalate(&under, &asked, &policy(), &from, "length")
    };
    let route = next(&world).unwrap();
    assert_eq!((models(&route), tiering(&route).tier), (vec!["haiku"], 2));
    assert_eq!(route.routed.reasons, ["escalated:2:length"]);
    world.plan(Plan { tiers: vec![1, 4], ..Plan::default() });
    assert_eq!(models(&next(&world).unwrap()), ["opus"]);
    world.plan(Plan { tiers: vec![1], ..Plan::default() });
    assert_eq!(next(&world), None);
}

prop_compose! {
    /// Any request to the policy, of any organization.
    fn any_world()(
        permille in proptest::array::uniform6(0u16..=1_000),
        (tools, images, tokens) in (0u32..2, 0u32..2, 1u64..200_000),
        format in 0usize..3,
        tiers in proptest::collection::vec(1u8..=4, 0..3),
        is_vip in any::<bool>(),
        id in 0u32..1_000,
        weights in proptest::array::uniform2(0u64..5),
    ) -> World {
        let mut policy = policy();
        policy.vip_tier = Some(4);
        policy.tiers[2].weights = weights.to_vec();
        let mut world = World::new(policy).likely(permille);
        let response_format = [ResponseFormat::Text, ResponseFormat::JsonObject, ResponseFormat::JsonSchema][format];
        world.features = Features { tools, images, input_tokens: Some(tokens), response_format, ..world.features };
        world.user_tier = is_vip.then(|| "vip".to_owned());
        world.request_id = RequestId::parse(&format!("r{id}")).unwrap();
        if !tiers.is_empty() {
            world.plan(Plan { tiers, ..Plan::default() });
        }
        world
    }
}

proptest! {
    #[test]
    fn a_route_never_has_what_the_plan_forbids_what_lacks_something_or_what_is_too_small(world in any_world()) {
        let Ok(route) = world.route_under(Health::Unknown) else { return Ok(()) };
        let terms = world.control.terms(&world.organization, None).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for candidate in &route.routed.candidates {
            let (_, model) = world.control.model(&candidate.model).unwrap();
            let can = |capability: &str| model.value.capabilities.iter().any(|has| has == capability);
            let features = &world.features;
            prop_assert!(terms.allow(&candidate.model, &model.value), "{candidate:?}");
            prop_assert!(features.tools == 0 || can("tools"), "{candidate:?}");
            prop_assert!(features.images == 0 || can("vision"), "{candidate:?}");
            prop_assert!(features.response_format != ResponseFormat::JsonSchema || can("json_schema"), "{candidate:?}");
            prop_assert!(features.input_tokens.unwrap() < model.value.context_window, "{candidate:?}");
            prop_assert!(seen.insert(&candidate.deployment), "{candidate:?} is there twice");
        }
        prop_assert_eq!(world.route_under(Health::Unknown).unwrap(), route);
    }
}
