//! What follows the end of an attempt.
//!
//! Precedence: a cancelled request is settled as cancelled; a whole answer settles it, unless the policy wants the next
//! tier to be asked for what it lacks; after content nobody else is called; a passed deadline, the policy's last attempt and a
//! failure that everybody would repeat settle it as failed; otherwise the cause of the failure says whether the same
//! deployment is called again after a wait, or the next candidate.

use super::inference::{AttemptEnd, AttemptReport};
use super::refusal;
use super::router::draw::Draw;
use super::state::OpenRequest;
use crate::control::Tables;
use crate::domain::Timestamp;
use crate::provider::{Failure, FailureClass};
use crate::records::Outcome;
use crate::records::policy::{FailureRule, Policy, Then};
use crate::records::responses::ApiError;

/// The longest wait before a retry that doubling leads to; a provider may ask for a longer one.
const BACKOFF_MAX_MS: u64 = 60_000;

/// What follows the end of an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// The same candidate is called again after this wait; if it cannot be, the next.
    Retry { delay_ms: u64, error: ApiError },
    /// One of the candidates from this index on is called, if one can be; else it is over with this error.
    Call { first: usize, context_above: Option<u64>, error: ApiError },
    /// The next tier is asked, if it can be; else the answer is given as it is.
    Escalate { shortfall: String },
    /// The request is over.
    Settle { outcome: Outcome, status: u16, error: Option<ApiError> },
}

/// Decides what follows.
pub fn next(control: &Tables, open: &OpenRequest, report: &AttemptReport, at: Timestamp) -> Next {
    let settle = |outcome, error: ApiError| Next::Settle { outcome, status: error.status, error: Some(error) };
    let policy = policy_of(control, open);
    let failure = match &report.end {
        AttemptEnd::Cancelled => return settle(Outcome::Cancelled, refusal::cancelled()),
        AttemptEnd::Completed => {
            return match shortfall(policy, open, report, at) {
                Some(shortfall) => Next::Escalate { shortfall },
                None => Next::Settle { outcome: Outcome::Completed, status: 200, error: None },
            };
        }
        AttemptEnd::Failed(_) if open.cancelled => return settle(Outcome::Cancelled, refusal::cancelled()),
        // The answer that fell short is better than none.
        AttemptEnd::Failed(_) if report.earlier.is_some() => {
            return Next::Settle { outcome: Outcome::Completed, status: 200, error: None };
        }
        AttemptEnd::Failed(failure) => failure,
    };
    let error = refusal::upstream(failure);
    if open.started.source.is_served() && report.content_frames == 0 && at < open.admitted.deadline_at {
        // What was found is not to be had: it is asked as if nothing had been found.
        return Next::Call { first: 1, context_above: None, error };
    }
    if report.content_frames > 0 || !may_call(open, at) {
        return settle(Outcome::Failed, error);
    }
    let rule = rule_of(policy, failure.class);
    let first = open.candidate + 1;
    let has_next = first < open.routed.candidates.len();
    match rule.then {
        Then::End => settle(Outcome::Failed, error),
        Then::Retry if open.retries < rule.retries => {
            let delay_ms = delay_ms(&rule, open, failure);
            match at.plus(std::time::Duration::from_millis(delay_ms)) < open.admitted.deadline_at {
                true => Next::Retry { delay_ms, error },
                false if has_next => call(control, open, first, failure, error),
                false => settle(Outcome::Failed, error),
            }
        }
        Then::Retry | Then::Next if has_next => call(control, open, first, failure, error),
        Then::Retry | Then::Next => settle(Outcome::Failed, error),
    }
}

fn call(control: &Tables, open: &OpenRequest, first: usize, failure: &Failure, error: ApiError) -> Next {
    let is_too_long = failure.class == FailureClass::ContextTooLong;
    let window = || Some(control.model(&open.started.model)?.1.value.context_window);
    Next::Call { first, context_above: is_too_long.then(window).flatten(), error }
}

/// What follows a failure of this class by the policy, or else by default.
pub fn rule_of(policy: Option<&Policy>, class: FailureClass) -> FailureRule {
    let named = policy.and_then(|policy| policy.failures.iter().find(|rule| rule.cause == class.code()));
    match named {
        Some(rule) if !ends_always(class) => rule.clone(),
        _ => FailureRule { cause: class.code().to_owned(), then: by_default(class), retries: 0, backoff_ms: 0 },
    }
}

/// Whether nobody could be called any more, or nobody would answer otherwise, whatever a policy says.
pub const fn ends_always(class: FailureClass) -> bool {
    matches!(class, FailureClass::Deadline | FailureClass::NoRoom)
}

const fn by_default(class: FailureClass) -> Then {
    match class {
        FailureClass::BadRequest | FailureClass::ContentFilter | FailureClass::Deadline | FailureClass::NoRoom => {
            Then::End
        }
        FailureClass::Connect
        | FailureClass::ConnectTimeout
        | FailureClass::FirstTokenTimeout
        | FailureClass::BetweenTokensTimeout
        | FailureClass::RateLimited
        | FailureClass::QuotaExhausted
        | FailureClass::Overloaded
        | FailureClass::Authentication
        | FailureClass::Configuration
        | FailureClass::ContextTooLong
        | FailureClass::Upstream
        | FailureClass::Garbage
        | FailureClass::Cut
        | FailureClass::TooLarge => Then::Next,
    }
}

/// The policy that chose the request's candidates.
pub fn policy_of<'a>(control: &'a Tables, open: &OpenRequest) -> Option<&'a Policy> {
    let (_, policy) = control.policy(open.context.policy.as_ref()?.as_str())?;
    Some(&policy.value)
}

/// Attempts and time are left.
fn may_call(open: &OpenRequest, at: Timestamp) -> bool {
    at < open.admitted.deadline_at && open.attempt < open.routed.max_attempts
}

/// What a whole answer lacks, when that is a reason to ask the next tier.
fn shortfall(policy: Option<&Policy>, open: &OpenRequest, report: &AttemptReport, at: Timestamp) -> Option<String> {
    let shortfall = report.shortfall.as_ref()?;
    let is_wanted = policy.is_some_and(|policy| policy.escalation.contains(shortfall));
    let may = is_wanted && !open.cancelled && !open.context.stream && report.content_frames == 0;
    (may && open.escalated.is_none() && may_call(open, at)).then(|| shortfall.clone())
}

/// Half of it to all of it, so that those who failed together do not come back together ("equal jitter", Brooker, "Exponential
/// backoff and jitter", AWS 2015); and no sooner than the provider says.
fn delay_ms(rule: &FailureRule, open: &OpenRequest, failure: &Failure) -> u64 {
    let doubled =
        rule.backoff_ms.saturating_mul(1u64.checked_shl(open.retries).unwrap_or(u64::MAX)).min(BACKOFF_MAX_MS);
    let half = doubled / 2;
    let drawn = Draw::of(open.context.request_id.as_str(), "backoff").nth(open.attempt) % (doubled - half + 1);
    let asked = failure.retry_after.map_or(0, |wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    (half + drawn).max(asked)
}
