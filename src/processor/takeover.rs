//! What a new owner makes of what the former one left: open requests, money that nobody has posted, terminals that may not
//! have been told.

use super::budget::Held;
use super::ledger::{Asker, Estimate};
use super::memory::Ended;
use super::state::{State, key_of};
use super::{
    Anew, Command, Context, Decision, book, budget, call_again, give_up, inference, nothing, of_open, refusal,
};
use crate::domain::{RequestKey, Timestamp};
use crate::records::Outcome;
use crate::records::journal::{AttemptEnded, Fact, InputKind, OrphanPosted};
use crate::records::responses::{Frame, FrameBody, Terminal};

/// The former owner's call is lost. As long as nobody can have seen content of it, the same candidate is called anew.
pub(super) fn decide(
    state: &State,
    key: &RequestKey,
    has_body: bool,
    simulated: bool,
    context: &Context<'_>,
) -> Decision {
    let Some(open) = state.open(key) else { return nothing(InputKind::Takeover) };
    let posting = AttemptEnded { simulated, ..inference::interrupted_posting(context.control, open) };
    if open.cancelled {
        return give_up(
            state,
            InputKind::Takeover,
            key,
            open,
            posting,
            (Outcome::Cancelled, refusal::cancelled()),
            context,
        );
    }
    let may_call = has_body
        && open.progress.content_frames == 0
        && open.attempt < open.routed.max_attempts
        && context.at < open.admitted.deadline_at;
    let anew = match open.started.source.is_served() {
        true => Anew::from(&open.routed.candidates, 1),
        false => Anew::same(std::slice::from_ref(&open.routed.candidates[open.candidate]), 0),
    };
    match may_call.then(|| call_again(state, open, key, anew, &posting, context)).flatten() {
        Some(again) => {
            let (posting, booked) = book(state, key, open, posting, context);
            let mut facts = vec![Fact::AttemptEnded(Box::new(posting))];
            facts.extend(booked);
            facts.push(Fact::AttemptStarted(again.started));
            of_open(InputKind::Takeover, key, open, facts, vec![again.call])
        }
        None => {
            let end = (Outcome::Interrupted, refusal::interrupted());
            give_up(state, InputKind::Takeover, key, open, posting, end, context)
        }
    }
}

/// Money of a former owner is posted: all of it, or what goes beyond the estimate with which its attempt is posted.
pub(super) fn decide_orphaned(state: &State, journal_offset: i64, context: &Context<'_>) -> Decision {
    let Some(orphan) = state.orphan(journal_offset) else { return nothing(InputKind::Takeover) };
    let key = key_of(&orphan.organization, &orphan.context.request_id);
    let mut posting = orphan.posting.clone();
    let estimate = state.ledger.estimate(&key, posting.attempt);
    let estimated = estimate.map(|estimate| estimate.cost);
    if let Some(estimated) = estimated {
        posting.cost_pico_usd = posting.cost_pico_usd.map(|cost| cost.saturating_sub(estimated));
    }
    let held = match (estimate, state.open(&key).filter(|open| open.attempt == posting.attempt)) {
        (Some(Estimate { attempt, cost, accounts, reserved, .. }), _) if !accounts.is_empty() => {
            Some(Held { attempt: *attempt, accounts, amount: *reserved, posted: *cost })
        }
        (_, Some(open)) => Held::by(&open.started),
        _ => None,
    };
    let asker = Asker { organization: &orphan.organization, key: orphan.context.key_id.as_ref() };
    let terms = context.control.terms(asker.organization, asker.key);
    let books = state.ledger.books(asker.organization);
    let (booking, booked) = budget::book(terms.as_ref(), books, asker, held, posting.cost_pico_usd, context.at);
    posting.booking = Some(booking);
    let orphan_posted = OrphanPosted { journal_offset, posting, corrects_pico_usd: estimated };
    let mut facts = vec![Fact::OrphanPosted(orphan_posted)];
    facts.extend(booked);
    Decision {
        organization: Some(orphan.organization.clone()),
        request: Some(orphan.context.clone()),
        facts,
        ..nothing(InputKind::Takeover)
    }
}

/// The terminal of a request that is over, for readers that did not get it from the former owner. What was content
/// of it is in nobody's journal: a whole answer comes without its body.
pub fn terminal_again(ended: &Ended, tenure: i64, at: Timestamp) -> Command {
    let error = match ended.outcome {
        Outcome::Completed => None,
        _ => Some(refusal::ended_before(ended.status, ended.error_code.as_deref())),
    };
    let terminal = Terminal {
        usage: ended.usage,
        cost_pico_usd: ended.cost_pico_usd,
        finish_reason: ended.finish_reason.clone(),
        error,
        original: ended.original,
        ..Terminal::of(ended.outcome)
    };
    let frame = Frame {
        organization: ended.key.organization.clone(),
        request_id: ended.key.request.clone(),
        nonce: ended.reply_nonce.clone(),
        tenure,
        attempt: ended.attempt,
        sequence: ended.content_frames,
        at,
        body: FrameBody::Terminal(Box::new(terminal)),
    };
    Command::Answer { partition: ended.reply_partition, frame: Box::new(frame) }
}
