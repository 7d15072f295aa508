//! What a new owner makes of what the former one left: open requests, money that nobody has posted, terminals that may not
//! have been told.

use super::memory::Ended;
use super::state::State;
use super::{Command, Context, Decision, call_again, give_up, inference, nothing, of_open, refusal};
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
        return give_up(InputKind::Takeover, key, open, posting, (Outcome::Cancelled, refusal::cancelled()), context);
    }
    let may_call = has_body
        && open.progress.content_frames == 0
        && open.attempt < open.routed.max_attempts
        && context.at < open.admitted.deadline_at;
    match may_call.then(|| call_again(open, key, open.candidate, context.control)).flatten() {
        Some((started, call)) => {
            let facts = vec![Fact::AttemptEnded(Box::new(posting)), started];
            of_open(InputKind::Takeover, key, open, facts, vec![call])
        }
        None => {
            let end = (Outcome::Interrupted, refusal::interrupted());
            give_up(InputKind::Takeover, key, open, posting, end, context)
        }
    }
}

/// Money of a former owner is posted.
pub(super) fn decide_orphaned(state: &State, journal_offset: i64) -> Decision {
    let Some(orphan) = state.orphan(journal_offset) else { return nothing(InputKind::Takeover) };
    Decision {
        organization: Some(orphan.organization.clone()),
        request: Some(orphan.context.clone()),
        facts: vec![Fact::OrphanPosted(OrphanPosted {
            journal_offset,
            posting: orphan.posting.clone(),
            corrects_pico_usd: None,
        })],
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
