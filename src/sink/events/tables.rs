//! Which facts are rows of which table, column by column. A fact that is new on the journal either gets a table here and
//! in a migration, or is named among those that have none.

use clickhouse::{Client, Row};
use serde::Serialize;

use crate::domain::{ModelName, OrganizationId, Timestamp};
use crate::records::Origin;
use crate::records::journal::{Commit, Fact, Features, IntentSource, Period, RequestContext};

/// A fact, and what its commit says about it.
struct Place<'a> {
    partition: i32,
    offset: i64,
    index: i32,
    commit: &'a Commit,
    organization: &'a OrganizationId,
    /// `None`: it is about the organization as a whole.
    request: Option<&'a RequestContext>,
}

impl<'a> Place<'a> {
    fn requested_model(&self) -> Option<&'a str> {
        self.request?.requested_model.as_ref().map(ModelName::as_str)
    }

    fn policy(&self) -> Option<&'a str> {
        self.request?.policy.as_ref().map(|name| name.as_str())
    }

    /// That answers first, or whose kept answer is given, when this commit makes an attempt.
    fn model(&self) -> Option<&'a str> {
        self.commit.facts.iter().find_map(|fact| match fact {
            Fact::AttemptStarted(started) => Some(started.model.as_str()),
            _ => None,
        })
    }

    /// Of the content, when this commit admits its request.
    fn features(&self) -> Option<&'a Features> {
        self.commit.facts.iter().find_map(|fact| match fact {
            Fact::RequestAdmitted(admitted) => Some(&admitted.features),
            _ => None,
        })
    }
}

/// A table has the columns that say which fact of which request a row is, and those that are named here; the columns that
/// a fact does not name are empty. Names and types are those of `schemas/clickhouse/`.
macro_rules! tables {
    (
        no table: $($without:ident),*;
        $($table:ident: $row:ident {
            $($column:ident: $type:ty),* $(,)?
        } = {
            $($fact:ident($place:ident, $of:ident) => { $($set:ident: $value:expr),* $(,)? })*
        })*
    ) => {
        pub const TABLES: &[&str] = &[$(stringify!($table)),*];

        $(
            #[derive(Debug, Clone, PartialEq, Default, Row, Serialize)]
            struct $row<'a> {
                journal_partition: i32,
                journal_offset: i64,
                journal_index: i32,
                at: i64,
                organization: &'a str,
                request_id: &'a str,
                origin: &'static str,
                key_id: Option<&'a str>,
                user: Option<&'a str>,
                user_tier: Option<&'a str>,
                control_offset: i64,
                $($column: $type),*
            }

            impl<'a> $row<'a> {
                fn at(place: &Place<'a>) -> Self {
                    Self {
                        journal_partition: place.partition,
                        journal_offset: place.offset,
                        journal_index: place.index,
                        at: place.commit.at.as_millis(),
                        organization: place.organization.as_str(),
                        request_id: place.request.map_or("", |request| request.request_id.as_str()),
                        origin: place.request.map_or(Origin::Live, |request| request.origin).as_str(),
                        key_id: place.request.and_then(|request| request.key_id.as_ref()).map(|id| id.as_str()),
                        user: place.request.and_then(|request| request.user.as_ref()).map(|id| id.as_str()),
                        user_tier: place.request.and_then(|request| request.user_tier.as_deref()),
                        control_offset: place.commit.control_offset,
                        ..Self::default()
                    }
                }
            }
        )*

        /// The rows of a batch, by table.
        #[derive(Debug, PartialEq, Default)]
        pub struct Rows<'a> {
            $($table: Vec<$row<'a>>),*
        }

        impl<'a> Rows<'a> {
            fn add_fact(&mut self, place: &Place<'a>, fact: &'a Fact) {
                match fact {
                    $($(Fact::$fact($of) => {
                        let $place = place;
                        self.$table.push($row { $($set: $value,)* ..$row::at($place) });
                    })*)*
                    $(Fact::$without(_))|* => {}
                }
            }

            /// Inserts them, table by table.
            pub async fn insert(&self, client: &Client) -> clickhouse::error::Result<()> {
                $(
                    if !self.$table.is_empty() {
                        let mut insert = client.insert::<$row<'_>>(stringify!($table)).await?;
                        for row in &self.$table {
                            insert.write(row).await?;
                        }
                        insert.end().await?;
                    }
                )*
                Ok(())
            }
        }

        /// Whether a fact is a row.
        pub const fn has_table(fact: &Fact) -> bool {
            match fact {
                $($(Fact::$fact(_))|* => true,)*
                $(Fact::$without(_))|* => false,
            }
        }
    };
}

tables! {
    // The ends of attempts are postings, which are in `usage`, and so is how the request ended. The others tell of
    // something under way.
    no table: RequestAdmitted, AttemptStarted, AttemptEnded, RequestSettled, CancelRequested, RecordSkipped,
        AttemptProgressed, OrphanPosted;

    routing_decisions: RoutingDecision {
        requested_model: Option<&'a str>,
        policy: Option<&'a str>,
        policy_version: Option<i64>,
        arm: Option<&'a str>,
        escalation: bool,
        intent: Option<&'a str>,
        intent_source: &'static str,
        confidence_permille: Option<u16>,
        score: Option<i64>,
        tier: Option<u8>,
        candidate_models: Vec<&'a str>,
        candidate_deployments: Vec<&'a str>,
        candidate_tiers: Vec<u8>,
        attempts_max: u32,
        reasons: Vec<&'a str>,
        input_tokens: Option<u64>,
        output_cap: Option<u64>,
        body_bytes: Option<u64>,
        messages: Option<u32>,
        tools: Option<u32>,
        images: Option<u32>,
    } = {
        RequestRouted(place, routed) => {
            requested_model: place.requested_model(),
            policy: place.policy(),
            policy_version: place.request.and_then(|request| request.policy_version),
            arm: place.request.and_then(|request| request.arm.as_deref()),
            escalation: place.features().is_none(),
            intent: routed.tiering.as_ref().and_then(|tiering| tiering.intent.as_deref()),
            intent_source: intent_source(routed.tiering.as_ref().map_or(IntentSource::None, |t| t.intent_source)),
            confidence_permille: routed.tiering.as_ref().and_then(|tiering| tiering.confidence_permille),
            score: routed.tiering.as_ref().and_then(|tiering| tiering.score),
            tier: routed.tiering.as_ref().map(|tiering| tiering.tier),
            candidate_models: routed.candidates.iter().map(|candidate| candidate.model.as_str()).collect(),
            candidate_deployments: routed.candidates.iter().map(|candidate| candidate.deployment.as_str()).collect(),
            candidate_tiers: routed.candidates.iter().map(|candidate| candidate.tier).collect(),
            attempts_max: routed.max_attempts,
            reasons: routed.reasons.iter().map(String::as_str).collect(),
            input_tokens: place.features().and_then(|features| features.input_tokens),
            output_cap: place.features().and_then(|features| features.output_cap),
            body_bytes: place.features().map(|features| features.body_bytes),
            messages: place.features().map(|features| features.messages),
            tools: place.features().map(|features| features.tools),
            images: place.features().map(|features| features.images),
        }
    }

    refusals: Refusal {
        requested_model: Option<&'a str>,
        policy: Option<&'a str>,
        code: &'a str,
        status: u16,
        limit: Option<&'a str>,
        input_tokens: Option<u64>,
        output_cap: Option<u64>,
        body_bytes: Option<u64>,
        messages: Option<u32>,
    } = {
        RequestRefused(place, refused) => {
            requested_model: place.requested_model(),
            policy: place.policy(),
            code: &refused.code,
            status: refused.status,
            limit: refused.limit.as_deref(),
            input_tokens: refused.features.as_ref().and_then(|features| features.input_tokens),
            output_cap: refused.features.as_ref().and_then(|features| features.output_cap),
            body_bytes: refused.features.as_ref().map(|features| features.body_bytes),
            messages: refused.features.as_ref().map(|features| features.messages),
        }
    }

    budget_events: BudgetEvent {
        event: &'static str,
        attempt: Option<u32>,
        overdrawn_usd: Option<i128>,
        account: Option<&'static str>,
        period: Option<&'static str>,
        percent: Option<u32>,
        budget_usd: Option<i128>,
        posted_usd: Option<i128>,
    } = {
        Overdrawn(place, overdrawn) => {
            event: "overdrawn",
            attempt: Some(overdrawn.attempt),
            overdrawn_usd: Some(overdrawn.amount_pico_usd.get()),
        }
        ThresholdCrossed(place, crossed) => {
            event: "threshold_crossed",
            account: Some(crossed.account.as_str()),
            period: Some(period(crossed.period)),
            percent: Some(crossed.percent),
            budget_usd: Some(crossed.limit_pico_usd.get()),
            posted_usd: Some(crossed.posted_pico_usd.get()),
        }
    }

    cache_lookups: CacheLookup {
        requested_model: Option<&'a str>,
        policy: Option<&'a str>,
        model: Option<&'a str>,
        content: String,
        fingerprint: String,
        outcome: &'static str,
        keeps: bool,
        ttl_seconds: Option<u64>,
        max_age_seconds: Option<u64>,
        age_ms: Option<u64>,
    } = {
        CacheLookedUp(place, looked_up) => {
            requested_model: place.requested_model(),
            policy: place.policy(),
            model: place.model(),
            content: looked_up.content.to_string(),
            fingerprint: looked_up.fingerprint.to_string(),
            outcome: looked_up.outcome.as_str(),
            keeps: looked_up.keeps,
            ttl_seconds: looked_up.ttl_seconds,
            max_age_seconds: looked_up.max_age_seconds,
            age_ms: looked_up.age_ms,
        }
    }

    cache_changes: CacheChange {
        event: &'static str,
        fingerprints: Vec<String>,
        entries: u64,
        reason: Option<&'static str>,
        bytes: Option<u64>,
        expires_at: Option<i64>,
        model: Option<&'a str>,
        deployment: Option<&'a str>,
        provider: Option<&'a str>,
        tier: Option<u8>,
        kept_before: Option<i64>,
    } = {
        CacheInserted(place, inserted) => {
            event: "inserted",
            fingerprints: vec![inserted.fingerprint.to_string()],
            entries: 1,
            bytes: Some(inserted.bytes),
            expires_at: Some(inserted.expires_at.as_millis()),
            model: Some(inserted.model.as_str()),
            deployment: Some(inserted.deployment.as_str()),
            provider: Some(inserted.provider.as_str()),
            tier: Some(inserted.tier),
        }
        CacheEvicted(place, evicted) => {
            event: "evicted",
            fingerprints: evicted.fingerprints.iter().map(ToString::to_string).collect(),
            entries: evicted.fingerprints.len() as u64,
            reason: Some(evicted.reason.as_str()),
        }
        CachePurged(place, purged) => {
            event: "purged",
            entries: purged.entries,
            model: purged.model.as_ref().map(ModelName::as_str),
            kept_before: purged.before.map(Timestamp::as_millis),
        }
    }
}

impl<'a> Rows<'a> {
    /// The rows of the effective commit at `offset` of `partition` of the journal.
    pub fn add(&mut self, partition: i32, offset: i64, commit: &'a Commit) {
        let Some(organization) = &commit.organization else { return };
        let request = commit.request.as_deref();
        for (index, fact) in (0..).zip(&commit.facts) {
            self.add_fact(&Place { partition, offset, index, commit, organization, request }, fact);
        }
    }
}

const fn intent_source(source: IntentSource) -> &'static str {
    match source {
        IntentSource::None => "none",
        IntentSource::Given => "given",
        IntentSource::Classified => "classified",
        IntentSource::Unknown => "unknown",
    }
}

const fn period(period: Period) -> &'static str {
    match period {
        Period::Day => "day",
        Period::Month => "month",
        Period::Unknown => "unknown",
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::{DeploymentId, Fingerprint, PicoUsd, PolicyName, RequestId};
    use crate::records::journal::{
        Account, AttemptSource, AttemptStarted, CacheEvicted, CacheInserted, CacheLookedUp, CacheOutcome, CachePurged,
        Candidate, Eviction, InputKind, Overdrawn, RequestAdmitted, RequestRefused, RequestRouted, ThresholdCrossed,
        Tiering,
    };

    pub fn commit(tenure: i64, sequence: i64, facts: Vec<Fact>) -> Commit {
        let request = RequestContext {
            request_id: RequestId::parse("r1").unwrap(),
            lane: 0,
            key_id: None,
            user: None,
            user_tier: Some("vip".into()),
            tags: <_>::default(),
            conversation_id: None,
            requested_model: Some(ModelName::parse("auto").unwrap()),
            tier: Some(2),
            policy: Some(PolicyName::parse("auto").unwrap()),
            policy_version: Some(3),
            arm: None,
            origin: Origin::Live,
            traceparent: None,
            received_at: Timestamp::from_millis(1_000),
            stream: true,
        };
        Commit {
            tenure,
            sequence,
            input: InputKind::Record,
            source_offset: Some(0),
            at: Timestamp::from_millis(1_250),
            control_offset: 42,
            organization: Some(OrganizationId::parse("acme").unwrap()),
            request: Some(Arc::new(request)),
            facts,
            health: Vec::new(),
        }
    }

    pub fn refused() -> Fact {
        Fact::RequestRefused(RequestRefused {
            code: "rate_limit_exceeded".into(),
            status: 429,
            told: None,
            features: None,
            limit: Some("key.requests_per_minute".into()),
        })
    }

    fn routed() -> Fact {
        let candidate = |model: &str, tier| Candidate {
            model: ModelName::parse(model).unwrap(),
            deployment: DeploymentId::parse(&format!("{model}-a")).unwrap(),
            tier,
        };
        Fact::RequestRouted(Arc::new(RequestRouted {
            candidates: vec![candidate("small", 1), candidate("large", 3)],
            max_attempts: 3,
            reasons: vec!["intent faq".into()],
            tiering: Some(Tiering {
                intent: Some("faq".into()),
                intent_source: IntentSource::Classified,
                confidence_permille: Some(812),
                score: Some(4),
                tier: 1,
            }),
        }))
    }

    fn admitted() -> Fact {
        Fact::RequestAdmitted(RequestAdmitted {
            deadline_at: Timestamp::from_millis(9_000),
            reply_partition: 0,
            reply_nonce: None,
            include_usage: false,
            features: Features { body_bytes: 80, messages: 2, input_tokens: Some(17), ..Features::default() },
            body_fingerprint: None,
            limits: Vec::new(),
        })
    }

    fn rows(commit: &Commit) -> Rows<'_> {
        let mut rows = Rows::default();
        rows.add(3, 99, commit);
        rows
    }

    #[test]
    fn a_routing_decision_has_its_candidates_and_what_the_request_is_like() {
        let commit = commit(1, 1, vec![admitted(), routed()]);
        let rows = rows(&commit);
        let [row] = rows.routing_decisions.as_slice() else { panic!("{rows:?}") };
        assert_eq!(
            (row.journal_partition, row.journal_offset, row.journal_index),
            (3, 99, 1),
            "an index counts all facts"
        );
        assert_eq!((row.at, row.organization, row.request_id, row.origin), (1_250, "acme", "r1", "live"));
        assert_eq!((&row.candidate_models[..], &row.candidate_tiers[..]), (&["small", "large"][..], &[1, 3][..]));
        assert_eq!((row.intent, row.intent_source, row.confidence_permille), (Some("faq"), "classified", Some(812)));
        assert_eq!((row.tier, row.score, row.policy, row.policy_version), (Some(1), Some(4), Some("auto"), Some(3)));
        assert_eq!((row.escalation, row.input_tokens, row.messages), (false, Some(17), Some(2)));
        assert_eq!((rows.refusals.len(), rows.budget_events.len()), (0, 0));
    }

    #[test]
    fn a_later_decision_is_an_escalation_and_knows_nothing_of_the_content() {
        let commit = commit(1, 1, vec![routed()]);
        let rows = rows(&commit);
        let row = &rows.routing_decisions[0];
        assert_eq!((row.escalation, row.input_tokens, row.body_bytes, row.images), (true, None, None, None));
    }

    #[test]
    fn a_refusal_names_the_limit() {
        let commit = commit(1, 1, vec![refused()]);
        let rows = rows(&commit);
        let row = &rows.refusals[0];
        assert_eq!((row.code, row.status, row.limit), ("rate_limit_exceeded", 429, Some("key.requests_per_minute")));
        assert_eq!((row.input_tokens, row.messages), (None, None), "nobody looked");
    }

    #[test]
    fn what_becomes_of_a_budget_is_one_table() {
        let overdrawn = Fact::Overdrawn(Overdrawn { attempt: 2, amount_pico_usd: PicoUsd::new(7) });
        let crossed = Fact::ThresholdCrossed(ThresholdCrossed {
            account: Account::Key,
            period: Period::Month,
            percent: 80,
            limit_pico_usd: PicoUsd::new(100),
            posted_pico_usd: PicoUsd::new(81),
        });
        let commit = commit(1, 1, vec![overdrawn, crossed]);
        let rows = rows(&commit);
        let [overdrawn, crossed] = rows.budget_events.as_slice() else { panic!("{rows:?}") };
        assert_eq!((overdrawn.event, overdrawn.attempt, overdrawn.overdrawn_usd), ("overdrawn", Some(2), Some(7)));
        assert_eq!((overdrawn.account, overdrawn.percent, overdrawn.budget_usd), (None, None, None));
        assert_eq!((crossed.event, crossed.account, crossed.period), ("threshold_crossed", Some("key"), Some("month")));
        assert_eq!((crossed.percent, crossed.budget_usd, crossed.posted_usd), (Some(80), Some(100), Some(81)));
        assert_eq!((crossed.attempt, crossed.overdrawn_usd), (None, None));
    }

    #[test]
    fn every_table_is_in_the_migrations_with_a_view() {
        let sql: String = crate::sink::migrations::migrations().iter().map(|migration| migration.sql).collect();
        for table in TABLES {
            assert!(sql.contains(&format!("CREATE TABLE IF NOT EXISTS {{database}}.{table}\n")), "{table}");
            assert!(sql.contains(&format!("VIEW {{database}}.{table}_exact AS")), "{table}");
        }
    }

    fn looked_up(outcome: CacheOutcome) -> Fact {
        Fact::CacheLookedUp(CacheLookedUp {
            content: Fingerprint::new(1),
            fingerprint: Fingerprint::new(255),
            outcome,
            keeps: true,
            ttl_seconds: Some(60),
            max_age_seconds: None,
            age_ms: Some(1_500),
        })
    }

    #[test]
    fn a_look_into_the_cache_names_the_model_that_it_led_to() {
        let started = Fact::AttemptStarted(AttemptStarted {
            attempt: 1,
            model: ModelName::parse("small").unwrap(),
            deployment: DeploymentId::parse("small-a").unwrap(),
            provider: "p".into(),
            price_version: 7,
            reservation: None,
            limits: None,
            delay_ms: 0,
            source: AttemptSource::Cache,
            shared_with: None,
        });
        let commit = commit(1, 1, vec![admitted(), looked_up(CacheOutcome::Hit), started]);
        let rows = rows(&commit);
        let [row] = rows.cache_lookups.as_slice() else { panic!("{rows:?}") };
        assert_eq!((row.journal_index, row.request_id, row.user_tier), (1, "r1", Some("vip")));
        assert_eq!((row.model, row.requested_model, row.policy), (Some("small"), Some("auto"), Some("auto")));
        assert_eq!((row.outcome, row.keeps, row.age_ms), ("hit", true, Some(1_500)));
        assert_eq!((row.ttl_seconds, row.max_age_seconds), (Some(60), None));
        assert_eq!(
            (row.content.as_str(), row.fingerprint.as_str()),
            (&*format!("{:032}", 1), &*format!("{:0>32}", "ff"))
        );
    }

    #[test]
    fn what_is_kept_and_no_longer_kept_is_one_table() {
        let inserted = Fact::CacheInserted(Box::new(CacheInserted {
            fingerprint: Fingerprint::new(10),
            bytes: 900,
            expires_at: Timestamp::from_millis(61_000),
            model: ModelName::parse("small").unwrap(),
            deployment: DeploymentId::parse("small-a").unwrap(),
            provider: "p".into(),
            tier: 1,
        }));
        let fingerprints = vec![Fingerprint::new(10), Fingerprint::new(11)];
        let evicted = Fact::CacheEvicted(CacheEvicted { fingerprints, reason: Eviction::LeastRecentlyUsed });
        let commit = commit(1, 1, vec![inserted, evicted]);
        let rows = rows(&commit);
        let [inserted, evicted] = rows.cache_changes.as_slice() else { panic!("{rows:?}") };
        assert_eq!(
            (inserted.event, inserted.entries, inserted.bytes, inserted.tier),
            ("inserted", 1, Some(900), Some(1))
        );
        assert_eq!((inserted.expires_at, inserted.model, inserted.reason), (Some(61_000), Some("small"), None));
        assert_eq!(inserted.fingerprints, [format!("{:0>32}", "a")]);
        assert_eq!((evicted.event, evicted.entries, evicted.reason), ("evicted", 2, Some("least_recently_used")));
        assert_eq!(
            (evicted.fingerprints.len(), evicted.bytes, evicted.expires_at, evicted.model),
            (2, None, None, None)
        );
    }

    #[test]
    fn a_purge_is_no_requests_and_has_a_row_all_the_same() {
        let before = Some(Timestamp::from_millis(500));
        let purged = Fact::CachePurged(CachePurged { model: None, before, entries: 12 });
        let commit = Commit { request: None, ..commit(1, 1, vec![purged]) };
        let rows = rows(&commit);
        let [row] = rows.cache_changes.as_slice() else { panic!("{rows:?}") };
        assert_eq!((row.organization, row.request_id, row.origin, row.key_id), ("acme", "", "live", None));
        assert_eq!((row.event, row.entries, row.kept_before, row.fingerprints.len()), ("purged", 12, Some(500), 0));
    }
}
