//! What an attempt may cost: its worst case is reserved on every account, all or none, before the call.
//!
//! The worst case is the estimated input at the dearest class that input can fall into, and as much output as the answer may
//! have. When it does not fit into what is left of a budget, the plan says what happens: the request is refused, its answer
//! made shorter, or a cheaper tier answers.

use super::health::Health;
use super::inference::{counted_input, estimated_input};
use super::ledger::{Asker, Balance, Books};
use super::limits::{self, Exceeded, Meter};
use super::refusal::{self, Refusal};
use super::router::keep;
use crate::control::Tables;
use crate::control::terms::Terms;
use crate::domain::{Periods, PicoUsd, Timestamp};
use crate::records::control::{Deployment, Limits, Model, PriceEntry, Spend, WhenShort};
use crate::records::journal::{
    Account, AttemptSource, AttemptStarted, Booking, Candidate, Fact, Features, HealthState, LimitCharge, LimitScope,
    Overdrawn, Period, Reservation, Standing, ThresholdCrossed,
};
use crate::records::responses::RateLimits;

/// Tokens that an answer has room for at the least: a shorter one is no answer, and the request is refused instead.
pub const OUTPUT_TOKENS_MIN: u64 = 16;

/// An attempt that may be made: which candidate is called, and what is set aside for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    pub index: usize,
    pub started: AttemptStarted,
}

/// What is told of an offer beside it: who was passed over, and whose health was the reason.
#[derive(Debug, Default)]
pub struct Passed {
    pub reasons: Vec<String>,
    pub health: Vec<Standing>,
}

/// Which of the deployments that are not sound may be called: the broken ones when nobody else can, those whose provider asked
/// to be left alone when nobody is left at all. A call may succeed, and its refusal costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resort {
    Sound,
    Broken,
    Cooling,
}

/// What the same commit changes before the new attempt counts: the attempt before it, which has ended.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    pub started: &'a AttemptStarted,
    pub cost: Option<PicoUsd>,
}

/// What decides about an attempt, beside the candidates.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    pub control: &'a Tables,
    pub terms: &'a Terms<'a>,
    pub books: &'a Books,
    pub asker: Asker<'a>,
    pub features: &'a Features,
    pub at: Timestamp,
    /// Of the attempt, from 1.
    pub attempt: u32,
    pub before: Option<Before<'a>>,
    pub health: Health<'a>,
    /// Only models with a larger context than this one's are called.
    pub context_above: Option<u64>,
}

/// An amount that is left, and of which budget.
#[derive(Debug, Clone, Copy)]
struct Left {
    amount: PicoUsd,
    account: Account,
    period: Period,
}

impl Question<'_> {
    /// The first of the candidates from `first` on that is sound, whose model has room and whose worst case can be paid; when
    /// there is none, one that is broken, and then one that is cooling: it may answer after all, and nobody else will.
    /// Adds who was passed over.
    ///
    /// # Errors
    /// Why none is called.
    pub fn offer(
        &self,
        candidates: &[Candidate],
        first: usize,
        may_step_down: bool,
        passed: &mut Passed,
    ) -> Result<Offer, Box<Refusal>> {
        let is_passed = |passed: &Passed, state| passed.health.iter().any(|of| of.state == state);
        let mut offer = self.offer_of(Resort::Sound, candidates, first, may_step_down, passed);
        for (resort, state) in [(Resort::Broken, HealthState::Broken), (Resort::Cooling, HealthState::Cooling)] {
            if offer.is_err() && is_passed(passed, state) {
                offer = self.offer_of(resort, candidates, first, may_step_down, passed);
            }
        }
        offer
    }

    fn offer_of(
        &self,
        resort: Resort,
        candidates: &[Candidate],
        first: usize,
        may_step_down: bool,
        passed: &mut Passed,
    ) -> Result<Offer, Box<Refusal>> {
        let left = self.left();
        let (mut limited, mut short) = (None::<Exceeded>, None::<(u8, Box<Refusal>)>);
        for (index, candidate) in candidates.iter().enumerate().skip(first) {
            if short.as_ref().is_some_and(|(tier, _)| candidate.tier >= *tier) {
                continue;
            }
            let Some((name, model)) = self.control.model(&candidate.model) else { continue };
            let Some(deployment) = model.value.deployment(&candidate.deployment) else { continue };
            if self.context_above.is_some_and(|window| model.value.context_window <= window) {
                continue;
            }
            let standing = self.health.of(&candidate.deployment);
            let is_passed_over = match standing.state {
                HealthState::Cooling => resort != Resort::Cooling,
                HealthState::Broken => resort == Resort::Sound,
                HealthState::Sound | HealthState::Unknown => false,
            };
            if is_passed_over {
                if resort == Resort::Sound {
                    let state = if standing.state == HealthState::Cooling { "cooling" } else { "broken" };
                    passed.reasons.push(format!("{state}:{}", candidate.deployment));
                }
                keep(&mut passed.health, standing);
                continue;
            }
            let input_tokens = estimated_input(self.features, &model.value.owned_by);
            let Some(price) = deployment.price_at(self.at, Some(input_tokens)) else { continue };
            let worst = Worst::of(self, &model.value, price, input_tokens);
            let charge = match self.model_charge(candidate, &model.value) {
                Ok(charge) => charge,
                Err(exceeded) => {
                    passed.reasons.push(format!("{}:{name}", exceeded.name()));
                    limited = Some(sooner(limited, exceeded));
                    continue;
                }
            };
            match worst.fitted(left, self.terms.when_short()) {
                Ok(worst) => {
                    let started = self.started(candidate, deployment, model.version, &worst, charge);
                    return Ok(Offer { index, started });
                }
                Err(unpayable) => {
                    passed.reasons.push(format!("over_budget:{}", candidate.deployment));
                    let refusal = unpayable.refusal(self.asker);
                    let is_over = !may_step_down || self.terms.when_short() != WhenShort::StepDown;
                    if is_over {
                        return Err(refusal);
                    }
                    short = Some((candidate.tier, refusal));
                }
            }
        }
        Err(match (short, limited) {
            (Some((_, refusal)), _) => refusal,
            (None, Some(exceeded)) => refusal::limited(&exceeded),
            (None, None) => refusal::no_price(candidates.first().map_or("", |c| c.model.as_str())).into(),
        })
    }

    fn started(
        &self,
        candidate: &Candidate,
        deployment: &Deployment,
        price_version: i64,
        worst: &Worst<'_>,
        limits: Option<LimitCharge>,
    ) -> AttemptStarted {
        AttemptStarted {
            attempt: self.attempt,
            model: candidate.model.clone(),
            deployment: candidate.deployment.clone(),
            provider: deployment.provider.clone(),
            price_version,
            reservation: Some(Reservation {
                amount_pico_usd: worst.amount,
                input_tokens: worst.input_tokens,
                output_tokens: worst.output_tokens,
                output_cap: worst.output_cap,
                accounts: accounts(self.terms),
            }),
            limits,
            delay_ms: 0,
            source: AttemptSource::Provider,
            shared_with: None,
        }
    }

    fn model_charge(&self, candidate: &Candidate, model: &Model) -> Result<Option<LimitCharge>, Exceeded> {
        let tokens = limited_tokens(self.features, self.terms);
        let mut meter = self.books.model(&candidate.model);
        if self.before.is_some_and(|before| before.started.model == candidate.model) {
            meter.open = meter.open.saturating_sub(1);
        }
        meter.charge(LimitScope::Model, self.terms.model_limits(&candidate.model, model), tokens, self.at)
    }

    /// The least that is left of any budget; `None`: there is none.
    fn left(&self) -> Option<Left> {
        if self.terms.spend == Spend::NONE && self.terms.key_spend() == Spend::NONE {
            return None;
        }
        let periods = self.terms.calendar.periods(self.at);
        let key = self.asker.key.map(|key| self.books.key(key).balance()).unwrap_or_default();
        let of = [
            (Account::Organization, self.books.balance(), self.terms.spend),
            (Account::Key, key, self.terms.key_spend()),
        ];
        let all = of.into_iter().flat_map(|(account, balance, spend)| {
            left_of(self.after_before(account, balance, periods), spend, periods)
                .into_iter()
                .flatten()
                .map(move |(period, amount)| Left { amount, account, period })
        });
        all.min_by_key(|left| left.amount)
    }

    /// The balance once the attempt before is released and posted.
    fn after_before(&self, account: Account, balance: Balance, periods: Periods) -> Balance {
        let Some(Before { started, cost }) = self.before else { return balance };
        let Some(reservation) = started.reservation.as_ref().filter(|r| r.accounts.contains(&account)) else {
            return balance;
        };
        let (mut posted, cost) = (balance.posted.in_periods(periods), cost.unwrap_or(PicoUsd::ZERO));
        posted.day = posted.day.saturating_add(cost);
        posted.month = posted.month.saturating_add(cost);
        Balance { posted, reserved: balance.reserved.saturating_sub(reservation.amount_pico_usd) }
    }
}

/// The tokens by which a request is held against limits per minute until it is known how many it used: its input, and the
/// output that it (or else its plan) has as a cap.
pub fn limited_tokens(features: &Features, terms: &Terms<'_>) -> u64 {
    let output = features.output_cap.or(terms.plan.output_cap).unwrap_or(0);
    counted_input(features).saturating_add(output.saturating_mul(u64::from(features.choices.max(1))))
}

/// What is left of each period's budget; below nothing when more is posted than may be.
pub fn left_of(balance: Balance, spend: Spend, periods: Periods) -> [Option<(Period, PicoUsd)>; 2] {
    let posted = balance.posted.in_periods(periods);
    let left = |limit: PicoUsd, posted: PicoUsd| limit.saturating_sub(posted).saturating_sub(balance.reserved);
    [
        spend.day.map(|limit| (Period::Day, left(limit, posted.day))),
        spend.month.map(|limit| (Period::Month, left(limit, posted.month))),
    ]
}

/// The accounts of a request: the organization's, and the key's when it has a budget of its own.
pub fn accounts(terms: &Terms<'_>) -> Vec<Account> {
    match terms.key_spend() {
        Spend::NONE => vec![Account::Organization],
        _ => vec![Account::Organization, Account::Key],
    }
}

/// What an attempt costs at the most.
struct Worst<'a> {
    amount: PicoUsd,
    price: &'a PriceEntry,
    input_tokens: u64,
    /// Of each choice.
    output_tokens: u64,
    choices: u64,
    output_cap: Option<u64>,
}

/// The worst case does not fit, and nothing helps.
struct Unpayable {
    wanted: PicoUsd,
    left: Option<Left>,
}

impl<'a> Worst<'a> {
    fn of(question: &Question<'_>, model: &Model, price: &'a PriceEntry, input_tokens: u64) -> Self {
        let asked = question.features.output_cap;
        // The plan's cap is for those who name none; the call is told so.
        let output_cap = question.terms.plan.output_cap.filter(|_| asked.is_none());
        let most = model.max_output_tokens.min(model.context_window);
        let output_tokens = asked.or(output_cap).unwrap_or(most).min(most);
        let choices = u64::from(question.features.choices.max(1));
        let mut worst = Self { amount: PicoUsd::ZERO, price, input_tokens, output_tokens, choices, output_cap };
        worst.amount = worst.cost();
        worst
    }

    /// Of everything at the dearest class that it can fall into. What does not fit an amount is more than any budget.
    fn cost(&self) -> PicoUsd {
        let output = self.output_tokens.checked_mul(self.choices);
        let cost = output.and_then(|output| self.price.price().worst_cost(self.input_tokens, output));
        cost.unwrap_or(PicoUsd::new(i128::from(i64::MAX)))
    }

    /// As it is when it fits, or with a lower cap where the plan wants that.
    fn fitted(mut self, left: Option<Left>, when_short: WhenShort) -> Result<Self, Unpayable> {
        let Some(Left { amount: left_amount, .. }) = left else { return Ok(self) };
        if self.amount <= left_amount {
            return Ok(self);
        }
        let unpayable = Unpayable { wanted: self.amount, left };
        if when_short != WhenShort::LowerOutputCap {
            return Err(unpayable);
        }
        let price = self.price.price();
        let per_token = price.dearest_output().get().saturating_mul(i128::from(self.choices));
        let for_output =
            left_amount.get() - price.dearest_input().checked_mul(self.input_tokens).map_or(i128::MAX, PicoUsd::get);
        let affordable = if per_token > 0 { for_output / per_token } else { 0 };
        match u64::try_from(affordable) {
            Ok(tokens) if for_output > 0 && tokens >= OUTPUT_TOKENS_MIN.min(self.output_tokens) => {
                self.output_tokens = tokens.min(self.output_tokens);
                self.output_cap = Some(self.output_tokens);
                self.amount = self.cost();
                Ok(self)
            }
            _ => Err(unpayable),
        }
    }
}

impl Unpayable {
    fn refusal(&self, asker: Asker<'_>) -> Box<Refusal> {
        let Some(Left { amount, account, period }) = self.left else {
            return refusal::no_budget(asker.organization.as_str(), "", "", self.wanted, PicoUsd::ZERO);
        };
        let (account, who) = match account {
            Account::Key => ("key", asker.key.map_or("", |key| key.as_str())),
            _ => ("organization", asker.organization.as_str()),
        };
        let period = match period {
            Period::Month => "month",
            _ => "day",
        };
        refusal::no_budget(who, account, period, self.wanted, amount)
    }
}

fn sooner(a: Option<Exceeded>, b: Exceeded) -> Exceeded {
    match a {
        Some(a) if !a.never && (b.never || a.retry_after_ms <= b.retry_after_ms) => a,
        _ => b,
    }
}

/// The scopes that limit a request as a whole, with their limits and meters.
fn scopes<'a>(
    terms: &Terms<'_>,
    books: &'a Books,
    asker: Asker<'a>,
) -> impl Iterator<Item = (LimitScope, Limits, Meter)> + use<'a> {
    let organization = (LimitScope::Organization, terms.limits, books.meter());
    let of_key = terms.key_limits();
    let key = asker.key.filter(|_| of_key != Limits::NONE);
    let key = key.map(|key| (LimitScope::Key, of_key, books.key(key).meter));
    [Some(organization), key].into_iter().flatten()
}

/// The charges of a request on the meters of its organization and its key.
///
/// # Errors
/// The limit that it does not fit into.
pub fn charge(
    terms: &Terms<'_>,
    books: &Books,
    asker: Asker<'_>,
    tokens: u64,
    at: Timestamp,
) -> Result<Vec<LimitCharge>, Box<Refusal>> {
    let mut charges = Vec::new();
    for (scope, limits, meter) in scopes(terms, books, asker) {
        charges.extend(meter.charge(scope, limits, tokens, at).map_err(|exceeded| refusal::limited(&exceeded))?);
    }
    Ok(charges)
}

/// What is left of the limits per minute once these charges are taken; `None` where there are none.
pub fn rate_limits(
    terms: &Terms<'_>,
    books: &Books,
    asker: Asker<'_>,
    charges: &[LimitCharge],
    at: Timestamp,
) -> Option<Box<RateLimits>> {
    let left = scopes(terms, books, asker).map(|(scope, limits, meter)| {
        meter.left_after(limits, charges.iter().find(|charge| charge.scope == scope), at)
    });
    left.reduce(limits::least).filter(|left| *left != RateLimits::default()).map(Box::new)
}

/// What was set aside for the attempt that is posted.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    pub attempt: u32,
    pub accounts: &'a [Account],
    pub amount: PicoUsd,
    /// What is posted of the attempt already.
    pub posted: PicoUsd,
}

impl<'a> Held<'a> {
    /// By an attempt of which nothing is posted yet.
    pub fn by(started: &'a AttemptStarted) -> Option<Self> {
        let Reservation { accounts, amount_pico_usd: amount, .. } = started.reservation.as_ref()?;
        Some(Self { attempt: started.attempt, accounts, amount: *amount, posted: PicoUsd::ZERO })
    }

    /// By how much a posting of so much goes beyond it.
    fn overdrawn(self, cost: PicoUsd) -> PicoUsd {
        let beyond = |posted: PicoUsd| posted.saturating_sub(self.amount).max(PicoUsd::ZERO);
        beyond(self.posted.saturating_add(cost)).saturating_sub(beyond(self.posted))
    }
}

/// Where and when a posting is booked, and what else it leads to: an overdraft, thresholds that it crosses.
pub fn book(
    terms: Option<&Terms<'_>>,
    books: &Books,
    asker: Asker<'_>,
    held: Option<Held<'_>>,
    cost: Option<PicoUsd>,
    at: Timestamp,
) -> (Booking, Vec<Fact>) {
    let default = crate::domain::Calendar::default();
    let periods = terms.map_or(&default, |terms| terms.calendar).periods(at);
    let accounts = match (held, terms) {
        (Some(held), _) => held.accounts.to_vec(),
        (None, Some(terms)) => accounts(terms),
        (None, None) => vec![Account::Organization],
    };
    let mut facts = Vec::new();
    let cost = cost.unwrap_or(PicoUsd::ZERO);
    if let Some((held, amount_pico_usd)) = held.map(|held| (held, held.overdrawn(cost)))
        && amount_pico_usd > PicoUsd::ZERO
    {
        facts.push(Fact::Overdrawn(Overdrawn { attempt: held.attempt, amount_pico_usd }));
    }
    if let Some(terms) = terms.filter(|terms| !terms.soft_percents().is_empty() && cost > PicoUsd::ZERO) {
        for account in &accounts {
            let (balance, spend) = match (account, asker.key) {
                (Account::Key, Some(key)) => (books.key(key).balance(), terms.key_spend()),
                _ => (books.balance(), terms.spend),
            };
            let posted = balance.posted.in_periods(periods);
            for (period, limit, before) in
                [(Period::Day, spend.day, posted.day), (Period::Month, spend.month, posted.month)]
            {
                let Some(limit) = limit else { continue };
                let after = before.saturating_add(cost);
                let crossed = |percent: &&u8| {
                    let mark = limit.get().saturating_mul(i128::from(**percent));
                    before.get().saturating_mul(100) < mark && after.get().saturating_mul(100) >= mark
                };
                for percent in terms.soft_percents().iter().filter(crossed) {
                    facts.push(Fact::ThresholdCrossed(ThresholdCrossed {
                        account: *account,
                        period,
                        percent: u32::from(*percent),
                        limit_pico_usd: limit,
                        posted_pico_usd: PicoUsd::new(after.get().min(i128::from(i64::MAX))),
                    }));
                }
            }
        }
    }
    (Booking { accounts, periods }, facts)
}
