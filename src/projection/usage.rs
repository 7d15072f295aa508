//! The usage records of a commit: one per posting, nothing else. A pure function, so a repeat gives the same records.
//!
//! A posting is the end of an attempt (also of one that was answered without a call, which costs nothing), or a refusal (which costs nothing). What is told about the request as a whole
//! (outcome, status, duration) is on the last posting of the commit that settles it.

use crate::domain::{OrganizationId, PicoUsd, TokenUsage};
use crate::records::journal::{
    AttemptEnded, AttemptSource, Commit, Fact, RequestContext, RequestRefused, RequestSettled,
};
use crate::records::usage::{PostingKind, UsageRecord};
use crate::records::{Outcome, UsageSource};

/// The usage records of the effective commit at `offset` of `partition` of the journal.
pub fn usage_of(partition: i32, offset: i64, commit: &Commit) -> Vec<UsageRecord> {
    let (Some(organization), Some(request)) = (&commit.organization, &commit.request) else { return Vec::new() };
    let place = Place { partition, offset, commit, organization, request };
    let postings = (0..).zip(&commit.facts).filter_map(|(index, fact)| match fact {
        Fact::AttemptEnded(ended) => {
            let kind = if ended.source.is_served() { PostingKind::Served } else { PostingKind::Attempt };
            Some(place.attempt(index, kind, ended))
        }
        Fact::OrphanPosted(orphan) => Some(place.attempt(index, PostingKind::Orphan, &orphan.posting)),
        Fact::RequestRefused(refused) => Some(place.refusal(index, refused)),
        Fact::RequestAdmitted(_)
        | Fact::RequestRouted(_)
        | Fact::AttemptStarted(_)
        | Fact::RequestSettled(_)
        | Fact::CancelRequested(_)
        | Fact::RecordSkipped(_)
        | Fact::AttemptProgressed(_)
        | Fact::Overdrawn(_)
        | Fact::ThresholdCrossed(_)
        | Fact::CacheLookedUp(_)
        | Fact::CacheInserted(_)
        | Fact::CacheEvicted(_)
        | Fact::CachePurged(_) => None,
    });
    let mut postings: Vec<UsageRecord> = postings.collect();
    let settled = commit.facts.iter().find_map(|fact| match fact {
        Fact::RequestSettled(settled) => Some(settled),
        _ => None,
    });
    if let (Some(last), Some(settled)) = (postings.last_mut(), settled) {
        settle(last, settled);
    }
    postings
}

/// What all postings of a commit have in common.
struct Place<'a> {
    partition: i32,
    offset: i64,
    commit: &'a Commit,
    organization: &'a OrganizationId,
    request: &'a RequestContext,
}

impl Place<'_> {
    fn attempt(&self, index: i32, kind: PostingKind, ended: &AttemptEnded) -> UsageRecord {
        UsageRecord {
            attempt: ended.attempt,
            model: Some(ended.model.clone()),
            deployment: Some(ended.deployment.clone()),
            provider: Some(ended.provider.clone()),
            tier: Some(ended.tier),
            price_version: Some(ended.price_version),
            price_simulated: ended.price_simulated,
            simulated: ended.simulated,
            usage: ended.usage,
            usage_source: ended.usage_source,
            cost_pico_usd: ended.cost_pico_usd,
            outcome: ended.outcome,
            error_code: ended.error_code.clone(),
            upstream_status: ended.upstream_status,
            finish_reason: ended.finish_reason.clone(),
            content_frames: ended.content_frames,
            time_to_first_token_ms: ended.time_to_first_token_ms,
            duration_ms: ended.duration_ms,
            source: ended.source,
            saved: ended.saved,
            ..self.bare(index, kind)
        }
    }

    fn refusal(&self, index: i32, refused: &RequestRefused) -> UsageRecord {
        let waited = self.commit.at.since(self.request.received_at);
        UsageRecord {
            usage: TokenUsage::NOTHING,
            usage_source: UsageSource::None,
            cost_pico_usd: Some(PicoUsd::ZERO),
            outcome: Outcome::Refused,
            request_outcome: Some(Outcome::Refused),
            status: Some(refused.status),
            error_code: Some(refused.code.clone()),
            request_duration_ms: u64::try_from(waited.as_millis()).ok(),
            ..self.bare(index, PostingKind::Refusal)
        }
    }

    /// Everything that does not depend on the kind of posting; the rest is unknown.
    fn bare(&self, index: i32, kind: PostingKind) -> UsageRecord {
        let (commit, request) = (self.commit, self.request);
        UsageRecord {
            journal_partition: self.partition,
            journal_offset: self.offset,
            journal_index: index,
            kind,
            at: commit.at,
            received_at: request.received_at,
            organization: self.organization.clone(),
            request_id: request.request_id.clone(),
            attempt: 0,
            lane: request.lane,
            key_id: request.key_id.clone(),
            user: request.user.clone(),
            user_tier: request.user_tier.clone(),
            tags: request.tags.clone(),
            conversation_id: request.conversation_id.clone(),
            origin: request.origin,
            traceparent: request.traceparent.clone(),
            stream: request.stream,
            requested_model: request.requested_model.clone(),
            model: None,
            deployment: None,
            provider: None,
            tier: request.tier,
            policy: request.policy.clone(),
            policy_version: request.policy_version,
            arm: request.arm.clone(),
            control_offset: commit.control_offset,
            price_version: None,
            price_simulated: false,
            simulated: false,
            usage: TokenUsage::default(),
            usage_source: UsageSource::Unknown,
            cost_pico_usd: None,
            outcome: Outcome::Unknown,
            request_outcome: None,
            status: None,
            error_code: None,
            upstream_status: None,
            finish_reason: None,
            content_frames: 0,
            time_to_first_token_ms: None,
            duration_ms: None,
            request_duration_ms: None,
            source: AttemptSource::Provider,
            saved: None,
        }
    }
}

fn settle(last: &mut UsageRecord, settled: &RequestSettled) {
    last.request_outcome = Some(settled.outcome);
    last.status = Some(settled.status);
    last.request_duration_ms = Some(settled.duration_ms);
    // A request that succeeds at last keeps the errors of its attempts where they were.
    if settled.error_code.is_some() {
        last.error_code.clone_from(&settled.error_code);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::{DeploymentId, ModelName, RequestId, Timestamp, UserId};
    use crate::records::Origin;
    use crate::records::journal::{
        AttemptStarted, CancelRequested, Candidate, Features, InputKind, RecordSkipped, RequestAdmitted, RequestRouted,
    };

    const USED: TokenUsage =
        TokenUsage { input: Some(10), cached_input: Some(4), cache_write: None, output: Some(20), reasoning: Some(5) };

    fn context() -> RequestContext {
        RequestContext {
            request_id: RequestId::parse("r1").unwrap(),
            lane: 0,
            key_id: None,
            user: Some(UserId::parse("u1").unwrap()),
            user_tier: Some("vip".into()),
            tags: [("team".to_owned(), "search".to_owned())].into(),
            conversation_id: None,
            requested_model: Some(ModelName::parse("auto").unwrap()),
            tier: Some(2),
            policy: None,
            policy_version: Some(3),
            arm: Some("b".into()),
            origin: Origin::Replay,
            traceparent: None,
            received_at: Timestamp::from_millis(1_000),
            stream: true,
        }
    }

    fn commit(facts: Vec<Fact>) -> Commit {
        Commit {
            tenure: 1,
            sequence: 7,
            input: InputKind::Provider,
            source_offset: None,
            at: Timestamp::from_millis(1_250),
            control_offset: 42,
            organization: Some(OrganizationId::parse("acme").unwrap()),
            request: Some(Arc::new(context())),
            facts,
            health: Vec::new(),
        }
    }

    fn ended(attempt: u32, outcome: Outcome) -> Fact {
        Fact::AttemptEnded(Box::new(AttemptEnded {
            attempt,
            model: ModelName::parse("gpt-4o-mini").unwrap(),
            deployment: DeploymentId::parse("openai-gpt-4o-mini").unwrap(),
            provider: "openai".into(),
            tier: 1,
            simulated: true,
            outcome,
            error_code: (outcome == Outcome::Failed).then(|| "upstream_timeout".into()),
            upstream_status: (outcome == Outcome::Failed).then_some(504),
            finish_reason: (outcome == Outcome::Completed).then(|| "stop".into()),
            content_frames: 3,
            time_to_first_token_ms: Some(80),
            duration_ms: Some(200),
            usage: USED,
            usage_source: UsageSource::Reported,
            price_version: 41,
            price_simulated: true,
            cost_pico_usd: (outcome == Outcome::Completed).then(|| PicoUsd::new(1_234)),
            booking: None,
            retry_after_ms: None,
            shortfall: None,
            saved: None,
            source: crate::records::journal::AttemptSource::Provider,
        }))
    }

    fn settled(outcome: Outcome, error_code: Option<&str>) -> Fact {
        Fact::RequestSettled(RequestSettled {
            outcome,
            error_code: error_code.map(str::to_owned),
            status: if outcome == Outcome::Completed { 200 } else { 502 },
            attempts: 1,
            content_frames: 3,
            cost_pico_usd: None,
            time_to_first_token_ms: Some(80),
            duration_ms: 250,
        })
    }

    fn refused() -> Fact {
        Fact::RequestRefused(RequestRefused {
            code: "model_not_found".into(),
            status: 404,
            told: None,
            features: None,
            limit: None,
        })
    }

    fn model() -> ModelName {
        ModelName::parse("gpt-4o-mini").unwrap()
    }

    fn without_postings() -> Vec<Fact> {
        let deployment = DeploymentId::parse("d").unwrap();
        let candidate = Candidate { model: model(), deployment: deployment.clone(), tier: 1 };
        let admitted = RequestAdmitted {
            deadline_at: Timestamp::from_millis(9),
            reply_partition: 0,
            reply_nonce: None,
            include_usage: false,
            features: Features::default(),
            body_fingerprint: None,
            limits: Vec::new(),
        };
        vec![
            Fact::RequestAdmitted(admitted),
            Fact::RequestRouted(Arc::new(RequestRouted {
                candidates: vec![candidate],
                max_attempts: 1,
                reasons: vec![],
                tiering: None,
            })),
            Fact::AttemptStarted(AttemptStarted {
                attempt: 1,
                model: model(),
                deployment,
                provider: "p".into(),
                price_version: 1,
                reservation: None,
                limits: None,
                delay_ms: 0,
                shared_with: None,
                source: crate::records::journal::AttemptSource::Provider,
            }),
            Fact::CancelRequested(CancelRequested { reason: "bye".into(), open: true }),
            Fact::RecordSkipped(RecordSkipped { reason: "duplicate".into(), told: None }),
        ]
    }

    #[test]
    fn only_ends_of_attempts_and_refusals_are_postings() {
        let table: [(&str, Vec<Fact>, &[(PostingKind, i32)]); 6] = [
            ("no facts", vec![], &[]),
            ("facts without money", without_postings(), &[]),
            ("a settlement alone", vec![settled(Outcome::Cancelled, None)], &[]),
            ("an attempt", vec![ended(1, Outcome::Completed)], &[(PostingKind::Attempt, 0)]),
            ("a refusal", vec![refused()], &[(PostingKind::Refusal, 0)]),
            (
                "an index counts all facts",
                [vec![ended(1, Outcome::Failed)], without_postings(), vec![ended(2, Outcome::Failed)]].concat(),
                &[(PostingKind::Attempt, 0), (PostingKind::Attempt, 6)],
            ),
        ];
        for (name, facts, expected) in table {
            let postings = usage_of(3, 99, &commit(facts));
            let found: Vec<_> = postings.iter().map(|p| (p.kind, p.journal_index)).collect();
            assert_eq!(found, expected, "{name}");
            assert!(postings.iter().all(|p| (p.journal_partition, p.journal_offset) == (3, 99)), "{name}");
        }
    }

    #[test]
    fn a_commit_about_no_request_has_no_postings() {
        let facts = vec![ended(1, Outcome::Completed)];
        let without_organization = Commit { organization: None, ..commit(facts.clone()) };
        let without_request = Commit { request: None, ..commit(facts) };
        assert_eq!(usage_of(0, 0, &without_organization), []);
        assert_eq!(usage_of(0, 0, &without_request), []);
    }

    #[test]
    fn an_attempt_carries_its_own_facts_and_the_context_of_its_request() {
        let postings = usage_of(3, 99, &commit(vec![ended(2, Outcome::Completed)]));
        let [posting] = postings.as_slice() else { panic!("{postings:?}") };
        assert_eq!(posting.attempt, 2);
        assert_eq!(posting.usage, USED);
        assert_eq!(posting.usage_source, UsageSource::Reported);
        assert_eq!(posting.cost_pico_usd, Some(PicoUsd::new(1_234)));
        assert_eq!((posting.price_version, posting.control_offset), (Some(41), 42));
        assert_eq!((posting.price_simulated, posting.simulated), (true, true));
        assert_eq!(posting.tier, Some(1), "the tier that answered, not the one that was asked for");
        assert_eq!(posting.tags["team"], "search");
        assert_eq!((posting.origin, posting.arm.as_deref()), (Origin::Replay, Some("b")));
        assert_eq!((posting.at, posting.received_at), (Timestamp::from_millis(1_250), Timestamp::from_millis(1_000)));
        let of_the_request = (posting.request_outcome, posting.status, posting.request_duration_ms);
        assert_eq!(of_the_request, (None, None, None), "the request goes on");
    }

    #[test]
    fn an_unknown_cost_stays_unknown() {
        let postings = usage_of(0, 0, &commit(vec![ended(1, Outcome::Failed)]));
        assert_eq!(postings[0].cost_pico_usd, None);
    }

    #[test]
    fn a_refusal_costs_nothing_and_is_the_end_of_its_request() {
        let postings = usage_of(0, 5, &commit(vec![refused()]));
        let [posting] = postings.as_slice() else { panic!("{postings:?}") };
        assert_eq!(posting.cost_pico_usd, Some(PicoUsd::ZERO));
        assert_eq!((posting.usage, posting.usage_source), (TokenUsage::NOTHING, UsageSource::None));
        assert_eq!((posting.outcome, posting.request_outcome), (Outcome::Refused, Some(Outcome::Refused)));
        assert_eq!((posting.status, posting.error_code.as_deref()), (Some(404), Some("model_not_found")));
        assert_eq!((posting.attempt, posting.model.is_none()), (0, true));
        assert_eq!((posting.tier, posting.request_duration_ms), (Some(2), Some(250)));
    }

    #[test]
    fn the_last_posting_tells_how_the_request_ended() {
        let facts = vec![ended(1, Outcome::Failed), ended(2, Outcome::Completed), settled(Outcome::Completed, None)];
        let postings = usage_of(0, 0, &commit(facts));
        let told = |p: &UsageRecord| (p.request_outcome, p.status, p.request_duration_ms, p.error_code.clone());
        assert_eq!(told(&postings[0]), (None, None, None, Some("upstream_timeout".into())));
        assert_eq!(told(&postings[1]), (Some(Outcome::Completed), Some(200), Some(250), None));
    }

    #[test]
    fn the_error_of_the_settlement_wins_if_there_is_one() {
        let table = [(Some("deadline_exceeded"), "deadline_exceeded"), (None, "upstream_timeout")];
        for (of_the_settlement, expected) in table {
            let facts = vec![ended(1, Outcome::Failed), settled(Outcome::Failed, of_the_settlement)];
            let postings = usage_of(0, 0, &commit(facts));
            assert_eq!(postings[0].error_code.as_deref(), Some(expected));
        }
    }
}
