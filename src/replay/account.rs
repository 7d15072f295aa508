//! The account of a run that really calls providers: its own budget, and its own journal as the only authority on it. Whom the
//! requests are of, neither pays nor sees anything of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::control::Tables;
use crate::domain::{PicoUsd, RequestKey, Timestamp};
use crate::processor::inference::estimated_input;
use crate::processor::key_of;
use crate::records::journal::{Candidate, Entry, Fact, Features};

/// A call of a run: a request, and the candidate that it is made for.
pub type CallKey = (RequestKey, String);

/// What a run has spent and set aside: the fold of its journal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Account {
    posted: PicoUsd,
    reserved: BTreeMap<CallKey, PicoUsd>,
    made: BTreeSet<CallKey>,
}

impl Account {
    /// Takes the next entry of the run's journal.
    pub fn take(&mut self, entry: &Entry) {
        let Entry::Commit(commit) = entry else { return };
        let (Some(organization), Some(request)) = (&commit.organization, &commit.request) else { return };
        let key = (key_of(organization, &request.request_id), request.arm.clone().unwrap_or_default());
        for fact in &commit.facts {
            match fact {
                Fact::AttemptStarted(started) => {
                    let amount = started.reservation.as_ref().map(|reservation| reservation.amount_pico_usd);
                    self.reserved.insert(key.clone(), amount.unwrap_or(PicoUsd::ZERO));
                    self.made.insert(key.clone());
                }
                Fact::AttemptEnded(posting) => {
                    let reserved = self.reserved.remove(&key).unwrap_or(PicoUsd::ZERO);
                    // What is not known is what was set aside for it, never nothing.
                    self.posted = self.posted.saturating_add(posting.cost_pico_usd.unwrap_or(reserved));
                }
                _ => {}
            }
        }
    }

    /// What is spent, with what calls may come to whose end is not known. A run that is gone on with has such of before.
    pub fn spent(&self) -> PicoUsd {
        self.reserved.values().fold(self.posted, |sum, amount| sum.saturating_add(*amount))
    }

    pub const fn posted(&self) -> PicoUsd {
        self.posted
    }

    pub fn has_made(&self, key: &CallKey) -> bool {
        self.made.contains(key)
    }

    pub fn calls(&self) -> usize {
        self.made.len()
    }
}

/// What a call costs at the most: the estimated input at the dearest class that it can fall into, and as much output as the
/// answer may have, by the candidate's prices, or by the recorded ones where those are dearer: a price that is tried is not what
/// the provider takes. With it the cap that the call is told. `None`: its deployment or its price is not there.
pub fn worst(
    tried: &Tables,
    recorded: &Tables,
    called: &Candidate,
    features: &Features,
    at: Timestamp,
) -> Option<Worst> {
    let input_of = |tables: &Tables| {
        tables.model(&called.model).map(|(_, model)| estimated_input(features, &model.value.owned_by))
    };
    let (_, model) = tried.model(&called.model)?;
    let input_tokens = input_of(tried)?.max(input_of(recorded).unwrap_or(0));
    let most = model.value.max_output_tokens.min(model.value.context_window);
    let output_tokens = features.output_cap.unwrap_or(most).min(most);
    let output = output_tokens.checked_mul(u64::from(features.choices.max(1)))?;
    let cost = |tables: &Tables| {
        let (_, model) = tables.model(&called.model)?;
        let price = model.value.deployment(&called.deployment)?.price_at(at, Some(input_tokens))?.price();
        Some(price.worst_cost(input_tokens, output))
    };
    let tried = cost(tried)??;
    let amount = match cost(recorded) {
        Some(recorded) => recorded?.max(tried),
        None => tried,
    };
    Some(Worst { amount, input_tokens, output_tokens })
}

/// The worst case of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worst {
    pub amount: PicoUsd,
    pub input_tokens: u64,
    /// Of each choice.
    pub output_tokens: u64,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::TokenUsage;
    use crate::processor::tests::tables;
    use crate::records::control::{ControlRecord, Entity, EntityKind, Stamp};
    use crate::records::journal::{AttemptEnded, AttemptStarted, Commit, InputKind, RequestContext, Reservation};
    use crate::records::{Outcome, UsageSource};

    fn commit(id: &str, fact: Fact) -> Entry {
        let context = RequestContext::of_request(id.parse().unwrap(), Timestamp::default());
        Entry::Commit(Commit {
            tenure: 0,
            sequence: 0,
            input: InputKind::Record,
            source_offset: None,
            at: Timestamp::default(),
            control_offset: 0,
            organization: Some("acme".parse().unwrap()),
            request: Some(Arc::new(RequestContext { arm: Some("c".into()), ..context })),
            facts: vec![fact],
            health: Vec::new(),
        })
    }

    fn started(id: &str, amount: i128) -> Entry {
        let reservation = Reservation {
            amount_pico_usd: PicoUsd::new(amount),
            input_tokens: 1,
            output_tokens: 1,
            output_cap: None,
            accounts: Vec::new(),
        };
        commit(
            id,
            Fact::AttemptStarted(AttemptStarted {
                attempt: 1,
                model: "two".parse().unwrap(),
                deployment: "two-a".parse().unwrap(),
                provider: "p".into(),
                price_version: 0,
                reservation: Some(reservation),
                limits: None,
                delay_ms: 0,
                shared_with: None,
                source: crate::records::journal::AttemptSource::Provider,
            }),
        )
    }

    fn ended(id: &str, cost: Option<i128>) -> Entry {
        let posting = AttemptEnded {
            attempt: 1,
            model: "two".parse().unwrap(),
            deployment: "two-a".parse().unwrap(),
            provider: "p".into(),
            tier: 2,
            simulated: false,
            outcome: Outcome::Completed,
            error_code: None,
            upstream_status: None,
            finish_reason: None,
            content_frames: 0,
            time_to_first_token_ms: None,
            duration_ms: None,
            usage: TokenUsage::default(),
            usage_source: UsageSource::Reported,
            price_version: 0,
            price_simulated: false,
            cost_pico_usd: cost.map(PicoUsd::new),
            booking: None,
            retry_after_ms: None,
            shortfall: None,
            saved: None,
            source: crate::records::journal::AttemptSource::Provider,
        };
        commit(id, Fact::AttemptEnded(Box::new(posting)))
    }

    #[test]
    fn what_is_set_aside_counts_until_it_is_posted_and_what_is_not_known_counts_in_full() {
        let key = |id: &str| (key_of(&"acme".parse().unwrap(), &id.parse().unwrap()), "c".to_owned());
        let mut account = Account::default();
        let steps = [
            (started("a", 100), 100, 0),
            (started("b", 50), 150, 0),
            (ended("a", Some(30)), 80, 30),
            (ended("b", None), 80, 80),
            // Broken off: nobody knows what became of it, so it counts for as long as the run lasts.
            (started("c", 7), 87, 80),
        ];
        for (number, (entry, spent, posted)) in steps.iter().enumerate() {
            account.take(entry);
            assert_eq!((account.spent(), account.posted()), (PicoUsd::new(*spent), PicoUsd::new(*posted)), "{number}");
        }
        assert!(account.has_made(&key("a")) && account.has_made(&key("c")) && !account.has_made(&key("d")));
        assert_eq!(account.calls(), 3);
    }

    #[test]
    fn the_worst_case_is_by_the_dearer_prices_and_what_the_tried_model_may_put_out() {
        let recorded = tables();
        let tried = |input: i128, output: i128, most: u64| {
            let Some(Entity::Model(mut model)) = recorded.entity(EntityKind::Model, "two") else { panic!("no model") };
            for price in &mut model.deployments[0].prices {
                (price.input, price.output) = (PicoUsd::new(input), PicoUsd::new(output));
            }
            (model.max_output_tokens, model.context_window) = (most, 1_000_000);
            let mut tables = recorded.clone();
            let version = tables.version_of(EntityKind::Model, "two");
            let stamp = Stamp { change_id: String::new(), actor: String::new(), at: Timestamp::default() };
            tables.apply(99, &ControlRecord::put("two", Entity::Model(model), version, stamp)).unwrap();
            tables
        };
        let called = Candidate { model: "two".parse().unwrap(), deployment: "two-a".parse().unwrap(), tier: 2 };
        let features = Features { input_tokens: Some(10), choices: 2, ..Features::default() };
        let amount = |tables: &Tables, features: &Features| {
            let worst = worst(tables, &recorded, &called, features, Timestamp::default()).unwrap();
            (worst.amount.get() - 1_000 * i128::from(worst.input_tokens), worst.output_tokens)
        };
        // Recorded are 1,000 for input and 2,000 for output; a price that is tried is not what the provider takes.
        assert_eq!(amount(&tried(1, 1, 500), &features), (2_000 * 500 * 2, 500));
        assert_eq!(amount(&tried(1_000, 3_000, 500), &features), (3_000 * 500 * 2, 500));
        let capped = Features { output_cap: Some(40), ..features };
        assert_eq!(amount(&tried(1, 1, 500), &capped), (2_000 * 40 * 2, 40));
        let nobody = Candidate { deployment: "two-z".parse().unwrap(), ..called.clone() };
        assert_eq!(worst(&recorded, &recorded, &nobody, &features, Timestamp::default()), None);
    }
}
