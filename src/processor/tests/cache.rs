//! What becomes of requests that ask for what was answered before, or is being answered.

use super::super::cache::{Bodies, Directives, Wanted};
use super::*;
use crate::domain::{Fingerprint, PicoUsd};
use crate::records::control::{Caching, Plan};
use crate::records::journal::{AttemptSource, CacheOutcome, Eviction, Saved};
use crate::records::requests::PurgeCache;

const CONTENT: Fingerprint = Fingerprint::new(7);

fn caching() -> Caching {
    Caching { ttl_seconds: 60, entries_max: 2, bytes_max: 100, any_temperature: true, tools: false }
}

fn driver() -> Driver {
    let mut driver = Driver::new();
    driver.put("keeps", Entity::Plan(Plan { cache: Some(caching()), ..Plan::default() }));
    let plan = Some("keeps".parse().unwrap());
    driver.put("acme", Entity::Organization(Organization { plan: plan.clone(), ..Organization::named("Acme") }));
    driver.put("other", Entity::Organization(Organization { plan, ..Organization::named("Other") }));
    driver
}

fn of(id: &str, model: &str) -> Chat {
    Chat { request_id: RequestId::parse(id).unwrap(), ..hello(model) }
}

impl Driver {
    fn wants(&mut self, chat: &Chat, content: Fingerprint, directives: Directives) -> (Vec<Fact>, Vec<Command>) {
        self.wants_with(
            chat,
            Wanted { content, directives, bodies: Bodies::Recorded { is_lost: false, is_shared: false } },
        )
    }

    fn wants_with(&mut self, chat: &Chat, wanted: Wanted<'_>) -> (Vec<Fact>, Vec<Command>) {
        self.offset += 1;
        let (source_offset, received_at, content) = (self.offset, self.now, content::read(&chat.body));
        let cache = Some(&wanted);
        self.decide(&Input::Chat { source_offset, received_at, chat, content, fingerprint: None, cache })
    }

    /// Asks, and gets an answer of so many bytes from the provider.
    fn answered(&mut self, id: &str, content: u128, bytes: u64) -> (Vec<Fact>, Vec<Command>) {
        self.wants(&of(id, "two"), Fingerprint::new(content), Directives::default());
        self.comes_to_an_end(id, 1, Some(bytes))
    }

    fn comes_to_an_end(&mut self, id: &str, attempt: u32, kept_bytes: Option<u64>) -> (Vec<Fact>, Vec<Command>) {
        let summary = Summary { finish_reason: Some("stop".into()), ..reported(10, 5) };
        let report = ended(
            key_of(&of(id, "two").organization, &of(id, "two").request_id),
            attempt,
            AttemptEnd::Completed,
            summary,
        );
        self.decide(&Input::AttemptEnded(Box::new(AttemptReport { kept_bytes, ..report })))
    }
}

fn looked_up(facts: &[Fact]) -> Option<CacheOutcome> {
    facts.iter().find_map(|fact| match fact {
        Fact::CacheLookedUp(looked_up) => Some(looked_up.outcome),
        _ => None,
    })
}

fn started(facts: &[Fact]) -> &AttemptStarted {
    let started = facts.iter().find_map(|fact| match fact {
        Fact::AttemptStarted(started) => Some(started),
        _ => None,
    });
    started.unwrap_or_else(|| panic!("no attempt: {facts:?}"))
}

fn posting(facts: &[Fact]) -> &AttemptEnded {
    match &facts[0] {
        Fact::AttemptEnded(posting) => posting,
        other => panic!("{other:?}"),
    }
}

fn evicted(facts: &[Fact]) -> Vec<(usize, Eviction)> {
    let of = |fact: &Fact| match fact {
        Fact::CacheEvicted(evicted) => Some((evicted.fingerprints.len(), evicted.reason)),
        _ => None,
    };
    facts.iter().filter_map(of).collect()
}

#[test]
fn an_answer_is_given_again_at_cost_zero_and_says_what_it_saved() {
    let mut driver = driver();
    let (facts, commands) = driver.wants(&of("r1", "two"), CONTENT, Directives::default());
    assert_eq!(looked_up(&facts), Some(CacheOutcome::Miss));
    assert!(
        matches!(&commands[..], [Command::Call(call)] if call.is_kept && call.head.cache == Some(CacheOutcome::Miss))
    );
    let (facts, commands) = driver.comes_to_an_end("r1", 1, Some(40));
    let cost = posting(&facts).cost_pico_usd;
    assert!(matches!(facts.last(), Some(Fact::CacheInserted(inserted)) if inserted.bytes == 40));
    assert!(matches!(&commands[..], [Command::Keep { .. }, Command::Answer { .. }]), "{commands:?}");
    driver.now = at(31_000);
    let (facts, commands) = driver.wants(&of("r2", "two"), CONTENT, Directives::default());
    assert_eq!((looked_up(&facts), started(&facts).source), (Some(CacheOutcome::Hit), AttemptSource::Cache));
    assert_eq!(started(&facts).reservation, None);
    let [Command::Serve(serving)] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!((serving.head.deployment.as_str(), serving.head.cache), ("two-a", Some(CacheOutcome::Hit)));
    let (facts, commands) = driver.comes_to_an_end("r2", 1, None);
    let AttemptEnded { usage, usage_source, saved, cost_pico_usd, .. } = posting(&facts);
    assert_eq!((*usage, *usage_source, *cost_pico_usd), (TokenUsage::NOTHING, UsageSource::None, Some(PicoUsd::ZERO)));
    assert_eq!(*saved, Some(Saved { usage: reported(10, 5).usage.unwrap(), cost_pico_usd: cost }));
    assert!(facts.iter().all(|fact| !matches!(fact, Fact::CacheInserted(_))), "it is kept already");
    let [Command::Answer { frame, .. }] = &commands[..] else { panic!("{commands:?}") };
    let FrameBody::Terminal(terminal) = &frame.body else { panic!("{frame:?}") };
    assert_eq!((terminal.cost_pico_usd, terminal.saved_pico_usd), (Some(PicoUsd::ZERO), cost));
    assert_eq!(terminal.usage, reported(10, 5).usage, "as the answer has it");
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn what_is_asked_who_asks_and_who_would_answer_tell_answers_apart() {
    let mut driver = driver();
    driver.answered("r1", 7, 40);
    let other = Chat { organization: OrganizationId::parse("other").unwrap(), ..of("r2", "two") };
    for (chat, content) in [(of("r3", "two"), 8), (of("r4", "auto"), 7), (of("r5", "one"), 7), (other, 7)] {
        let (facts, _) = driver.wants(&chat, Fingerprint::new(content), Directives::default());
        assert_eq!(looked_up(&facts), Some(CacheOutcome::Miss), "{chat:?}");
    }
    let (facts, _) = driver.wants(&of("r6", "alias"), CONTENT, Directives::default());
    assert_eq!(looked_up(&facts), Some(CacheOutcome::Hit), "another name of the same model");
}

#[test]
fn a_request_says_what_it_wants_of_the_cache() {
    let with = |change: fn(&mut Directives)| {
        let mut directives = Directives::default();
        change(&mut directives);
        directives
    };
    let table: [(&str, Directives, Option<CacheOutcome>, bool); 5] = [
        ("nothing", with(|_| {}), Some(CacheOutcome::Hit), false),
        ("a new answer", with(|d| d.no_cache = true), Some(CacheOutcome::Bypassed), true),
        ("not to be kept", with(|d| d.no_store = true), Some(CacheOutcome::Hit), false),
        ("neither", with(|d| (d.no_cache, d.no_store) = (true, true)), None, false),
        ("a young one", with(|d| d.max_age_seconds = Some(29)), Some(CacheOutcome::Expired), true),
    ];
    for (what, directives, expected, is_kept) in table {
        let mut driver = driver();
        driver.answered("r1", 7, 40);
        driver.now = at(31_000);
        let (facts, _) = driver.wants(&of("r2", "two"), CONTENT, directives);
        assert_eq!(looked_up(&facts), expected, "{what}");
        let (facts, _) = driver.comes_to_an_end("r2", 1, Some(30));
        let kept = facts.iter().any(|fact| matches!(fact, Fact::CacheInserted(_)));
        assert_eq!(kept, is_kept, "{what}");
    }
    let mut driver = driver();
    driver.wants(&of("r1", "two"), CONTENT, with(|d| d.no_store = true));
    let (facts, _) = driver.wants(&of("r2", "two"), CONTENT, Directives::default());
    assert_eq!(looked_up(&facts), Some(CacheOutcome::Miss), "what is not to be kept is not shared");
}

#[test]
fn only_whole_answers_are_kept() {
    let summary = |finish: &str| Summary { finish_reason: Some(finish.into()), ..reported(10, 5) };
    let cut = AttemptEnd::Failed(Failure::new(FailureClass::Cut, ""));
    let table = [
        ("stopped", AttemptEnd::Completed, summary("stop"), Some(9), true),
        ("cut off", AttemptEnd::Completed, summary("length"), Some(9), false),
        ("filtered", AttemptEnd::Completed, summary("content_filter"), Some(9), false),
        ("a call of tools", AttemptEnd::Completed, summary("tool_calls"), Some(9), false),
        ("too large", AttemptEnd::Completed, summary("stop"), None, false),
        ("larger than all", AttemptEnd::Completed, summary("stop"), Some(101), false),
        ("broken off", cut, summary("stop"), Some(9), false),
    ];
    for (what, end, summary, kept_bytes, is_kept) in table {
        let mut driver = driver();
        driver.wants(&of("r1", "two"), CONTENT, Directives::default());
        let report = AttemptReport { kept_bytes, content_frames: 1, ..ended(key(), 1, end, summary) };
        let (facts, _) = driver.decide(&Input::AttemptEnded(Box::new(report)));
        assert_eq!(facts.iter().any(|fact| matches!(fact, Fact::CacheInserted(_))), is_kept, "{what}");
    }
}

#[test]
fn what_was_not_asked_for_the_longest_makes_room() {
    let mut driver = driver();
    driver.answered("r1", 1, 40);
    driver.answered("r2", 2, 40);
    driver.wants(&of("r3", "two"), Fingerprint::new(1), Directives::default());
    driver.comes_to_an_end("r3", 1, None);
    let (facts, commands) = driver.answered("r4", 3, 40);
    assert_eq!(evicted(&facts), [(1, Eviction::LeastRecentlyUsed)]);
    assert!(matches!(commands.last(), Some(Command::Forget { fingerprints, .. }) if fingerprints.len() == 1));
    let found = [(1, CacheOutcome::Hit), (2, CacheOutcome::Miss), (3, CacheOutcome::Hit)];
    for (number, (content, expected)) in (5..).zip(found) {
        let (facts, _) =
            driver.wants(&of(&format!("r{number}"), "two"), Fingerprint::new(content), Directives::default());
        assert_eq!(looked_up(&facts), Some(expected), "{content}");
    }
    let (facts, _) = driver.answered("r8", 4, 90);
    assert_eq!(evicted(&facts), [(2, Eviction::LeastRecentlyUsed)], "by bytes");
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn an_answer_whose_time_is_over_goes() {
    let mut driver = driver();
    driver.answered("r1", 7, 40);
    driver.now = at(61_000);
    let (facts, _) = driver.wants(&of("r2", "two"), CONTENT, Directives::default());
    assert_eq!(looked_up(&facts), Some(CacheOutcome::Expired));
    let (facts, commands) = driver.decide(&Input::CacheExpired);
    assert_eq!(evicted(&facts), [(1, Eviction::Expired)]);
    assert!(matches!(&commands[..], [Command::Forget { .. }]));
    assert_eq!(driver.decide(&Input::CacheExpired), (vec![], vec![]), "nothing else is over");
    let wants = Directives { ttl_seconds: Some(1), ..Directives::default() };
    driver.wants(&of("r3", "two"), Fingerprint::new(8), wants);
    let (facts, _) = driver.comes_to_an_end("r3", 1, Some(9));
    let expires = facts.iter().find_map(|fact| match fact {
        Fact::CacheInserted(inserted) => Some(inserted.expires_at),
        _ => None,
    });
    assert_eq!(expires, Some(at(62_000)), "as the request wants it");
}

#[test]
fn an_answer_that_is_not_at_hand_is_asked_anew() {
    let mut driver = driver();
    driver.answered("r1", 7, 40);
    let wanted = Wanted {
        content: CONTENT,
        directives: Directives::default(),
        bodies: Bodies::Recorded { is_lost: true, is_shared: false },
    };
    let (facts, commands) = driver.wants_with(&of("r2", "two"), wanted);
    assert_eq!(looked_up(&facts), Some(CacheOutcome::Lost));
    assert!(matches!(&commands[..], [Command::Call(_)]));
    driver.comes_to_an_end("r2", 1, Some(40));
    // Or it is lost between the decision and the answer.
    let (_, commands) = driver.wants(&of("r3", "two"), CONTENT, Directives::default());
    assert!(matches!(&commands[..], [Command::Serve(_)]));
    let id = key_of(&of("r3", "two").organization, &of("r3", "two").request_id);
    let gone = AttemptEnd::Failed(Failure::new(FailureClass::Cut, ""));
    let report = AttemptReport { called: false, ..ended(id, 1, gone, Summary::default()) };
    let (facts, commands) = driver.decide(&Input::AttemptEnded(Box::new(report)));
    assert_eq!((posting(&facts).cost_pico_usd, started(&facts).source), (Some(PicoUsd::ZERO), AttemptSource::Provider));
    let [Command::Call(call)] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!((call.attempt, call.head.cache), (2, Some(CacheOutcome::Lost)));
}

#[test]
fn equal_requests_share_one_call_and_go_on_without_the_first() {
    let mut driver = driver();
    driver.wants(&of("r1", "two"), CONTENT, Directives::default());
    for id in ["r2", "r3"] {
        let (facts, commands) = driver.wants(&of(id, "two"), CONTENT, Directives::default());
        assert_eq!((looked_up(&facts), started(&facts).source), (Some(CacheOutcome::Shared), AttemptSource::Shared));
        let [Command::Serve(serving)] = &commands[..] else { panic!("{commands:?}") };
        assert_eq!(serving.from, ServedFrom::Call(RequestId::parse("r1").unwrap()));
    }
    let cancel = |driver: &mut Driver, id: &str| {
        driver.offset += 1;
        let cancel =
            Cancel { request_id: RequestId::parse(id).unwrap(), organization: key().organization, reason: "".into() };
        driver.decide(&Input::Cancel { source_offset: driver.offset, received_at: driver.now, cancel: &cancel }).1
    };
    let key = |id: &str| key_of(&key().organization, &RequestId::parse(id).unwrap());
    assert_eq!(cancel(&mut driver, "r1"), [], "the others want its answer");
    assert_eq!(cancel(&mut driver, "r2"), [Command::Abort(key("r2"))]);
    driver.decide(&Input::AttemptEnded(Box::new(AttemptReport {
        called: false,
        ..ended(key("r2"), 1, AttemptEnd::Cancelled, Summary::default())
    })));
    let last = cancel(&mut driver, "r3");
    assert_eq!(last, [Command::Abort(key("r3")), Command::Abort(key("r1"))], "nobody is left");
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn who_shares_a_call_that_fails_is_answered_by_one_of_its_own() {
    let mut driver = driver();
    driver.wants(&of("r1", "two"), CONTENT, Directives::default());
    driver.wants(&of("r2", "two"), CONTENT, Directives::default());
    let id = key_of(&key().organization, &RequestId::parse("r2").unwrap());
    let failed = AttemptEnd::Failed(Failure::new(FailureClass::Cut, ""));
    driver.end(1, AttemptEnd::Failed(Failure::new(FailureClass::BadRequest, "")), Summary::default(), 0);
    let report = AttemptReport { called: false, ..ended(id, 1, failed, Summary::default()) };
    let (facts, commands) = driver.decide(&Input::AttemptEnded(Box::new(report)));
    assert_eq!((posting(&facts).outcome, started(&facts).source), (Outcome::Failed, AttemptSource::Provider));
    assert!(matches!(&commands[..], [Command::Call(call)] if call.is_kept), "and others may share it");
    let (facts, _) = driver.wants(&of("r3", "two"), CONTENT, Directives::default());
    assert_eq!(started(&facts).shared_with.as_ref().map(RequestId::as_str), Some("r2"));
}

#[test]
fn who_has_much_more_time_than_the_first_one_does_not_end_with_it() {
    let within = |id: &str, timeout_ms| Chat { timeout_ms: Some(timeout_ms), ..of(id, "two") };
    // The bound on the time of a request is a minute.
    for (left_ms, own_ms, expected) in
        [(1_000, 2_000, CacheOutcome::Shared), (1_000, 2_001, CacheOutcome::Miss), (2_000, 1, CacheOutcome::Shared)]
    {
        let mut driver = driver();
        driver.wants(&within("r1", left_ms + 500), CONTENT, Directives::default());
        driver.now = driver.now.plus(std::time::Duration::from_millis(500));
        let (facts, commands) = driver.wants(&within("r2", own_ms), CONTENT, Directives::default());
        assert_eq!(looked_up(&facts), Some(expected), "{left_ms} and {own_ms}");
        assert_eq!(matches!(&commands[..], [Command::Call(_)]), expected == CacheOutcome::Miss);
        assert_eq!(driver.rebuilt(), driver.state);
    }
}

#[test]
fn a_cache_is_purged_by_model_and_by_age() {
    let organization = key().organization;
    let purge = |driver: &mut Driver, model: Option<&str>, before: Option<i64>| {
        driver.offset += 1;
        let model = model.map(|model| model.parse().unwrap());
        let purge = PurgeCache { organization: organization.clone(), model, before: before.map(at) };
        let (facts, _) = driver.decide(&Input::PurgeCache { source_offset: driver.offset, purge: &purge });
        match &facts[..] {
            [Fact::CachePurged(purged)] => purged.entries,
            other => panic!("{other:?}"),
        }
    };
    let mut driver = driver();
    driver.answered("r1", 1, 10);
    driver.now = at(5_000);
    driver.answered("r2", 2, 10);
    assert_eq!(purge(&mut driver, Some("one"), None), 0);
    assert_eq!(purge(&mut driver, Some("two"), Some(5_000)), 1);
    assert_eq!(purge(&mut driver, None, None), 1);
    assert_eq!(purge(&mut driver, None, None), 0);
    assert_eq!(driver.rebuilt(), driver.state);
}

#[test]
fn headers_and_bodies_say_it_in_their_own_words() {
    let parsed = |header: &str| Directives::parse(header);
    assert_eq!(
        parsed("No-Cache, no-store , max-age=\"5\", private").unwrap(),
        Directives { no_cache: true, no_store: true, max_age_seconds: Some(5), ttl_seconds: None }
    );
    assert_eq!(parsed("").unwrap(), Directives::default());
    assert_eq!(parsed("max-age=5, max-age=600").unwrap().max_age_seconds, Some(5));
    for wrong in ["max-age", "max-age=", "max-age=soon", "max-age=-1"] {
        assert!(parsed(wrong).unwrap_err().contains("max-age"), "{wrong}");
    }
    let body = r#"{"messages":[{}],"temperature":0.0,"tools":[],"cache":{"no-cache":true,"ttl":9,"s-maxage":3,"x":1}}"#;
    let read = content::read(body.as_bytes()).unwrap();
    assert_eq!((read.is_steady, read.has_tools), (true, false));
    let said = Directives { no_cache: true, no_store: false, max_age_seconds: Some(3), ttl_seconds: Some(9) };
    assert_eq!(read.cache, said);
    for (member, wrong) in [
        ("[]", "cache: an object"),
        (r#"{"no-cache":"yes"}"#, "cache.no-cache: a boolean"),
        (r#"{"no-store":0}"#, "cache.no-store: a boolean"),
        (r#"{"ttl":1.5}"#, "cache.ttl: a whole number of seconds"),
        (r#"{"s-maxage":-1}"#, "cache.s-maxage: a whole number of seconds"),
    ] {
        let body = format!(r#"{{"messages":[{{}}],"cache":{member}}}"#);
        let error = content::read(body.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(wrong), "{member}: {error}");
    }
    let nothing = br#"{"messages":[{}],"cache":{"no-cache":null,"ttl":null}}"#;
    assert_eq!(content::read(nothing).unwrap().cache, Directives::default());
    assert_eq!(said.header().as_deref(), Some("no-cache, max-age=3"));
    let both = said.and(Directives { max_age_seconds: Some(2), no_store: true, ..Directives::default() });
    assert_eq!(both, Directives { no_store: true, max_age_seconds: Some(2), ..said });
    for (temperature, is_steady) in [("1", false), ("null", false), ("0", true), ("0e1", true), ("\"0\"", false)] {
        let body = format!(r#"{{"messages":[{{}}],"temperature":{temperature}}}"#);
        assert_eq!(content::read(body.as_bytes()).unwrap().is_steady, is_steady, "{temperature}");
    }
}
