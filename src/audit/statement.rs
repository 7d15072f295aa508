//! What an organization has posted, reserved and left, now or at any moment of the journal: by the fold that owners decide
//! by, from the latest checkpoint before that moment on.

use std::ops::ControlFlow;
use std::sync::Arc;

use rdkafka::Message as _;
use serde_json::{Value, json};

use super::Place;
use super::plan::{self, Extent};
use super::reader::{Error, Reader};
use crate::control::Tables;
use crate::domain::{OrganizationId, PicoUsd, Timestamp};
use crate::processor::ledger::Balance;
use crate::processor::{State, checkpoint, fold};
use crate::records::Topic;
use crate::records::control::{Limits, Spend};
use crate::records::journal::{Entry, Fact, Tenancy};
use crate::records::responses::RateLimit;

/// What the journal says of a partition at a moment.
#[derive(Debug)]
pub struct Statement {
    pub at: Timestamp,
    pub partition: i32,
    /// Everything before it is in the state.
    pub journal_offset: i64,
    pub state: State,
    /// The rules that are in force.
    pub tables: Arc<Tables>,
    tenancy: Tenancy,
}

/// A place on a partition of the journal, and whose commits count from there on.
#[derive(Debug, Clone, Copy)]
pub struct Behind {
    offset: i64,
    tenancy: Tenancy,
}

impl Reader {
    /// The state of an organization's partition at a moment, and the rules that its last decision until then used. Without a
    /// moment, all that there is at `now`, under the rules of now: `current`, if they are known.
    ///
    /// # Errors
    /// When the journal cannot be read from its beginning, or from a checkpoint before that moment.
    pub fn statement(
        &self,
        organization: &OrganizationId,
        at: Option<Timestamp>,
        now: Timestamp,
        current: Option<Arc<Tables>>,
    ) -> Result<Statement, Error> {
        let (journal, control) = plan::of_organization(self, organization)?;
        let Extent { partition, offsets, .. } = journal.clone();
        let (mut tenancy, mut state, begin) = match self.behind_checkpoint(&journal, at)? {
            Some((tenancy, state, offset)) => (tenancy, state, offset + 1),
            None if offsets.start > 0 => {
                let place = Place { topic: Topic::Journal, partition, offset: offsets.start };
                let detail = "neither the journal nor a checkpoint has what was before it".to_owned();
                return Err(Error::Unreadable { place, detail });
            }
            None => (Tenancy::VACANT, State::default(), offsets.start),
        };
        self.progress.set_length((offsets.end - begin).unsigned_abs());
        let (mut journal_offset, mut is_later) = (begin, false);
        self.each(&Extent { offsets: begin..offsets.end, ..journal }, |message| {
            let place = Place { topic: Topic::Journal, partition, offset: message.offset() };
            let entry = self.entry(place, message.payload().unwrap_or_default())?;
            let effective = tenancy.accept(message.offset(), &entry);
            is_later = matches!((&entry, at), (Entry::Commit(commit), Some(at)) if effective && commit.at > at);
            if is_later {
                return Ok(ControlFlow::Break(()));
            }
            fold(&mut state, message.offset(), &entry, effective);
            journal_offset = message.offset() + 1;
            Ok(ControlFlow::Continue(()))
        })?;
        // Of now, when it is now; else those that the partition had come to.
        let tables = match current.filter(|_| !is_later) {
            Some(tables) => tables,
            None => {
                let used = state.control_offset.unwrap_or(-1);
                Arc::new(self.rules(&control)?.at(if is_later { used } else { control.offsets.end - 1 }).clone())
            }
        };
        let at = at.unwrap_or(now.max(state.clock));
        Ok(Statement { at, partition, journal_offset, state, tables, tenancy })
    }

    /// The facts of the effective commit on a record of `requests`, of which there is none before `behind`, and how far that
    /// has been looked for. `None`: nobody has decided it yet.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn decision_on(
        &self,
        organization: &OrganizationId,
        mut behind: Behind,
        source_offset: i64,
    ) -> Result<(Behind, Option<Vec<Fact>>), Error> {
        let (journal, _) = plan::of_organization(self, organization)?;
        let (end, mut found) = (journal.offsets.end, None);
        let partition = journal.partition;
        self.each(&Extent { offsets: behind.offset..end, ..journal }, |message| {
            let place = Place { topic: Topic::Journal, partition, offset: message.offset() };
            let entry = self.entry(place, message.payload().unwrap_or_default())?;
            let effective = behind.tenancy.accept(message.offset(), &entry);
            behind.offset = message.offset() + 1;
            match entry {
                Entry::Commit(commit) if effective && commit.source_offset == Some(source_offset) => {
                    found = Some(commit.facts);
                    Ok(ControlFlow::Break(()))
                }
                Entry::Commit(_) | Entry::OwnershipTaken(_) => Ok(ControlFlow::Continue(())),
            }
        })?;
        Ok((behind, found))
    }

    /// The fold of the latest checkpoint of this journal that is whole, of this version and not after `at`, and the offset
    /// of the last entry that is in it.
    fn behind_checkpoint(
        &self,
        journal: &Extent,
        at: Option<Timestamp>,
    ) -> Result<Option<(Tenancy, State, i64)>, Error> {
        let found = self.checkpoints(journal.partition)?;
        let is_before = |clock| at.is_none_or(|at| clock <= at);
        for (marker, parts) in found.candidates().filter(|(marker, _)| is_before(marker.clock)) {
            let offset = marker.journal_offset;
            if !journal.offsets.contains(&offset) {
                continue;
            }
            let mut last = None;
            self.each(&Extent { offsets: offset..offset + 1, ..journal.clone() }, |message| {
                let place = Place { topic: Topic::Journal, partition: journal.partition, offset };
                last = Some(self.entry(place, message.payload().unwrap_or_default())?);
                Ok(ControlFlow::Break(()))
            })?;
            let restored = checkpoint::tenancy(marker, last.as_ref())
                .and_then(|tenancy| Ok((tenancy, checkpoint::restore(marker, parts)?, offset)));
            match restored {
                Ok(restored) => return Ok(Some(restored)),
                // The one that is being written is not whole; there is another, or the journal itself.
                Err(error) => tracing::debug!(offset, %error, "a checkpoint is left aside"),
            }
        }
        Ok(None)
    }
}

impl Statement {
    /// Where it ends.
    pub const fn behind(&self) -> Behind {
        Behind { offset: self.journal_offset, tenancy: self.tenancy }
    }

    /// As JSON; amounts are dollars as decimal text.
    pub fn describe(&self, organization: &OrganizationId) -> Value {
        let Self { at, partition, journal_offset, state, tables, tenancy: _ } = self;
        let books = state.ledger.books(organization);
        let terms = tables.terms(organization, None);
        let (limits, spend) = terms.as_ref().map_or((Limits::NONE, Spend::NONE), |terms| (terms.limits, terms.spend));
        let calendar = terms.as_ref().map(|terms| terms.calendar.clone()).unwrap_or_default();
        let (periods, ends) = (calendar.periods(*at), calendar.ends(*at));
        let account = |account: Balance, spend: Spend| {
            let posted = account.posted.in_periods(periods);
            let of = |limit: Option<PicoUsd>, posted: PicoUsd, begin: Timestamp, end: Option<Timestamp>| {
                let left = limit.map(|limit| limit.saturating_sub(posted).saturating_sub(account.reserved));
                json!({
                    "since": begin.to_string(),
                    "until": end.map(|end| end.to_string()),
                    "posted_usd": posted.to_string(),
                    "limit_usd": limit.map(|limit| limit.to_string()),
                    "left_usd": left.map(|left| left.to_string()),
                })
            };
            json!({
                "reserved_usd": account.reserved.to_string(),
                "day": of(spend.day, posted.day, periods.day, ends.map(|ends| ends.day)),
                "month": of(spend.month, posted.month, periods.month, ends.map(|ends| ends.month)),
            })
        };
        let keys: serde_json::Map<String, Value> = books
            .keys()
            .map(|(id, books)| {
                let spend = tables.key(id.as_str()).map_or(Spend::NONE, |key| key.value.spend);
                let mut described = account(books.balance(), spend);
                described["open_requests"] = json!(books.meter.open);
                (id.to_string(), described)
            })
            .collect();
        let left = books.meter().left_after(limits, None, *at);
        let limit = |left: Option<RateLimit>| {
            left.map(|left| json!({"limit": left.limit, "remaining": left.remaining, "reset_ms": left.reset_ms}))
        };
        json!({
            "organization": organization.as_str(),
            "at": at.to_string(),
            "account": account(books.balance(), spend),
            "keys": keys,
            "open_requests": books.open(),
            "requests_per_minute": limit(left.requests),
            "tokens_per_minute": limit(left.tokens),
            "concurrent_requests": limits.concurrent_requests,
            "as_of": {
                "journal_partition": partition,
                "journal_offset": journal_offset,
                "control_offset": tables.offset(),
                "clock": state.clock.to_string(),
            },
        })
    }
}
