//! The account of a run that really calls providers: its own budget, and its own journal as the only authority on it. Whom the
//! requests are of, neither pays nor sees anything of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::control::Tables;
use crate::domain::usage::Price;
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
    let price_of = |tables: &Tables| {
        let (_, model) = tables.model(&called.model)?;
        model.value.deployment(&called.deployment)?.price_at(at, Some(input_tokens)).map(|entry| entry.price())
    };
    let cost = |price: Price| {
        let dearest = [Some(price.input), price.cached_input, price.cache_write].into_iter().flatten().max()?;
        let output_price = price.output.max(price.reasoning.unwrap_or(PicoUsd::ZERO));
        dearest.checked_mul(input_tokens)?.checked_add(output_price.checked_mul(output)?)
    };
    let amount = cost(price_of(tried)?)?;
    let amount = match price_of(recorded) {
        Some(paid) => cost(paid)?.max(amount),
        None => amount,
    };
    amount.to_long()?;
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
