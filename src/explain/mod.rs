//! `tollstream explain`: what became of a request, as the journal has it. Reads; writes nothing.
//!
//! [`Stories`] picks the commits of a request out of a partition; pure, and given the entries in the order of the log. What is
//! said of a fact is [`tell`]'s.

pub mod tell;

#[cfg(test)]
mod tests;

use crate::domain::{DeploymentId, ModelName, OrganizationId, PicoUsd, RequestId, Timestamp, TokenUsage};
use crate::records::journal::{AttemptEnded, AttemptStarted, Commit, Entry, Fact, RequestContext};
use crate::records::{Outcome, UsageSource};

/// Most commits of a request that are kept: an hour of progress every three seconds, five times over. Later ones are counted.
const COMMITS_MAX: usize = 6_000;

/// A commit of the request.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub partition: i32,
    pub offset: i64,
    /// A commit of an owner that had lost the partition does not count.
    pub counts: bool,
    /// Who decided it, as far as the tenure was read.
    pub owner: Option<String>,
    pub commit: Commit,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Story {
    pub organization: OrganizationId,
    pub request_id: RequestId,
    /// In the order of the log.
    pub steps: Vec<Step>,
    /// Commits beyond those that are kept.
    pub left_out: u64,
}

/// The stories of one request id on one partition: each organization has ids of its own.
#[derive(Debug)]
pub struct Stories {
    partition: i32,
    request_id: RequestId,
    organization: Option<OrganizationId>,
    found: Vec<Story>,
}

/// A provider call of a request, and its money.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    pub attempt: u32,
    pub model: ModelName,
    pub deployment: DeploymentId,
    pub provider: String,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub price_version: i64,
    pub outcome: Option<Outcome>,
    pub usage: Option<TokenUsage>,
    pub usage_source: Option<UsageSource>,
    /// `None`: nothing was.
    pub reserved: Option<PicoUsd>,
    pub posted: Posted,
    /// By how much the posting is above the reservation.
    pub overdrawn: Option<PicoUsd>,
    /// Posted afterwards, for a former owner.
    pub orphans: Vec<Option<PicoUsd>>,
}

/// What was posted of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    NotYet,
    Unknown,
    Amount(PicoUsd),
}

impl Stories {
    pub fn new(partition: i32, request_id: RequestId, organization: Option<OrganizationId>) -> Self {
        Self { partition, request_id, organization, found: Vec::new() }
    }

    /// Takes the next entry, whether it counts, and who decides there.
    pub fn take(&mut self, offset: i64, entry: Entry, counts: bool, owner: Option<&str>) {
        let Entry::Commit(commit) = entry else { return };
        let (Some(organization), Some(request)) = (&commit.organization, &commit.request) else { return };
        let is_asked_for = self.organization.as_ref().is_none_or(|asked| asked == organization);
        if request.request_id != self.request_id || !is_asked_for {
            return;
        }
        let place = self.found.iter().position(|story| story.organization == *organization).unwrap_or_else(|| {
            let (organization, request_id) = (organization.clone(), self.request_id.clone());
            self.found.push(Story { organization, request_id, steps: Vec::new(), left_out: 0 });
            self.found.len() - 1
        });
        let Some(story) = self.found.get_mut(place) else { return };
        match story.steps.len() < COMMITS_MAX {
            true => {
                let owner = owner.map(str::to_owned);
                story.steps.push(Step { partition: self.partition, offset, counts, owner, commit });
            }
            false => story.left_out += 1,
        }
    }

    pub fn finish(self) -> Vec<Story> {
        self.found
    }
}

impl Story {
    /// By what the request is reported, as it was admitted; else as it was first heard of.
    pub fn context(&self) -> Option<&RequestContext> {
        let is_admission = |step: &&Step| matches!(step.commit.facts.first(), Some(Fact::RequestAdmitted(_)));
        let step = self.effective().find(is_admission).or_else(|| self.steps.first());
        step.and_then(|step| step.commit.request.as_deref())
    }

    /// The commits that count.
    pub fn effective(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.counts)
    }

    /// How it ended, with its status and its cost, if it is known how.
    pub fn end(&self) -> Option<(Outcome, u16, Option<PicoUsd>)> {
        self.effective().flat_map(|step| &step.commit.facts).find_map(|fact| match fact {
            Fact::RequestSettled(settled) => Some((settled.outcome, settled.status, settled.cost_pico_usd)),
            Fact::RequestRefused(refused) => Some((Outcome::Refused, refused.status, Some(PicoUsd::ZERO))),
            _ => None,
        })
    }

    /// Its provider calls, in order.
    pub fn attempts(&self) -> Vec<Attempt> {
        let mut attempts: Vec<Attempt> = Vec::new();
        for step in self.effective() {
            for fact in &step.commit.facts {
                match fact {
                    Fact::AttemptStarted(started) => attempts.push(Attempt::begun(started, step.commit.at)),
                    Fact::AttemptEnded(ended) => {
                        Attempt::of(&mut attempts, ended).end(ended, step.commit.at);
                    }
                    Fact::OrphanPosted(orphan) => {
                        let cost = orphan.posting.cost_pico_usd;
                        Attempt::of(&mut attempts, &orphan.posting).orphans.push(cost);
                    }
                    Fact::Overdrawn(overdrawn) => {
                        if let Some(attempt) = attempts.iter_mut().find(|a| a.attempt == overdrawn.attempt) {
                            attempt.overdrawn = Some(overdrawn.amount_pico_usd);
                        }
                    }
                    Fact::RequestAdmitted(_)
                    | Fact::RequestRefused(_)
                    | Fact::RequestRouted(_)
                    | Fact::RequestSettled(_)
                    | Fact::CancelRequested(_)
                    | Fact::RecordSkipped(_)
                    | Fact::AttemptProgressed(_)
                    | Fact::ThresholdCrossed(_)
                    | Fact::CacheLookedUp(_)
                    | Fact::CacheInserted(_)
                    | Fact::CacheEvicted(_)
                    | Fact::CachePurged(_) => {}
                }
            }
        }
        attempts
    }
}

impl Attempt {
    fn begun(started: &AttemptStarted, at: Timestamp) -> Self {
        Self {
            attempt: started.attempt,
            model: started.model.clone(),
            deployment: started.deployment.clone(),
            provider: started.provider.clone(),
            started_at: Some(at),
            ended_at: None,
            price_version: started.price_version,
            outcome: None,
            usage: None,
            usage_source: None,
            reserved: started.reservation.as_ref().map(|reservation| reservation.amount_pico_usd),
            posted: Posted::NotYet,
            overdrawn: None,
            orphans: Vec::new(),
        }
    }

    /// The attempt of a posting; one whose beginning is not on what was read is added.
    fn of<'a>(attempts: &'a mut Vec<Self>, posting: &AttemptEnded) -> &'a mut Self {
        let found = attempts.iter().position(|attempt| attempt.attempt == posting.attempt);
        let place = found.unwrap_or_else(|| {
            let started = AttemptStarted {
                attempt: posting.attempt,
                model: posting.model.clone(),
                deployment: posting.deployment.clone(),
                provider: posting.provider.clone(),
                price_version: posting.price_version,
                reservation: None,
                limits: None,
                delay_ms: 0,
                source: posting.source,
                shared_with: None,
            };
            attempts.push(Self { started_at: None, ..Self::begun(&started, Timestamp::default()) });
            attempts.len() - 1
        });
        &mut attempts[place]
    }

    fn end(&mut self, ended: &AttemptEnded, at: Timestamp) {
        self.ended_at = Some(at);
        self.price_version = ended.price_version;
        (self.outcome, self.usage, self.usage_source) =
            (Some(ended.outcome), Some(ended.usage), Some(ended.usage_source));
        self.posted = ended.cost_pico_usd.map_or(Posted::Unknown, Posted::Amount);
    }

    /// What of the reservation came back: all of it but what was posted. `None`: there was none, or it is not known.
    pub fn released(&self) -> Option<PicoUsd> {
        match (self.reserved, self.posted) {
            (Some(reserved), Posted::Amount(posted)) => {
                Some(PicoUsd::new(reserved.get().saturating_sub(posted.get()).max(0)))
            }
            (Some(_), Posted::NotYet | Posted::Unknown) | (None, _) => None,
        }
    }
}
