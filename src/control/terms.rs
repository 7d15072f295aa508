//! What holds for a request of an organization, out of everything that control says about it: the plan, what the
//! organization has in place of it, and what its key has of its own.

use std::sync::{Arc, LazyLock};

use super::Tables;
use crate::domain::{Calendar, KeyId, ModelName, OrganizationId, PicoUsd};
use crate::records::control::{Key, Limits, Model, Organization, Plan, Spend, WhenShort};

static NO_PLAN: LazyLock<(Plan, Calendar)> = LazyLock::new(Default::default);

/// The terms of a request.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    pub organization: &'a Organization,
    pub plan: &'a Plan,
    /// The organization's plan is not there, so nobody knows what it may do. Control refuses to delete one that is in use; two
    /// changes at once can lead here.
    pub lacks_plan: bool,
    pub calendar: &'a Calendar,
    /// Of all requests of the organization.
    pub limits: Limits,
    /// Of the organization in a day and a month of the calendar.
    pub spend: Spend,
    pub key: Option<&'a Key>,
}

impl Tables {
    /// The terms of an organization's request with a key; `None` for an organization that control does not have.
    pub fn terms(&self, organization: &OrganizationId, key: Option<&KeyId>) -> Option<Terms<'_>> {
        let organization = &self.organization(organization)?.value;
        let plan = organization.plan.as_ref().map(|name| self.plans.get(name));
        let lacks_plan = matches!(plan, Some(None));
        let (plan, calendar) = match plan.flatten() {
            Some(terms) => (&terms.value.plan, &terms.value.calendar),
            None => (&NO_PLAN.0, &NO_PLAN.1),
        };
        let key = key.and_then(|id| self.keys.get(id)).map(|key| Arc::as_ref(&key.value));
        Some(Terms {
            organization,
            plan,
            lacks_plan,
            calendar,
            limits: organization.limits.or(plan.limits),
            spend: organization.spend.or(plan.budget.spend),
            key,
        })
    }
}

impl<'a> Terms<'a> {
    /// Whether the plan lets this model answer.
    pub fn allow(&self, name: &ModelName, model: &Model) -> bool {
        let plan = self.plan;
        (plan.models.is_empty() || plan.models.contains(name))
            && (plan.tiers.is_empty() || plan.tiers.contains(&model.tier))
    }

    /// Of the organization's calls of a model.
    pub fn model_limits(&self, name: &ModelName, model: &Model) -> Limits {
        let of_plan = self.plan.model_limits.iter().find(|of| of.model == *name);
        of_plan.map_or(model.limits, |of| of.limits.or(model.limits))
    }

    /// The key's own limits, when it has any.
    pub fn key_limits(&self) -> Limits {
        self.key.map_or(Limits::default(), |key| key.limits)
    }

    pub fn key_spend(&self) -> Spend {
        self.key.map_or(Spend::default(), |key| key.spend)
    }

    pub fn when_short(&self) -> WhenShort {
        self.plan.budget.when_short
    }

    /// The percents at which it is told that so much is spent.
    pub fn soft_percents(&self) -> &'a [u8] {
        &self.plan.budget.soft_percents
    }
}

impl Default for Plan {
    /// Everything allowed, nothing limited.
    fn default() -> Self {
        Self {
            description: String::new(),
            models: Vec::new(),
            tiers: Vec::new(),
            limits: Limits::default(),
            model_limits: Vec::new(),
            output_cap: None,
            budget: crate::records::control::Budget::default(),
            cache: None,
        }
    }
}

impl Limits {
    pub const NONE: Self = Self { requests_per_minute: None, tokens_per_minute: None, concurrent_requests: None };

    /// Each of them, and where it is not set the other's.
    pub fn or(self, other: Self) -> Self {
        Self {
            requests_per_minute: self.requests_per_minute.or(other.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.or(other.tokens_per_minute),
            concurrent_requests: self.concurrent_requests.or(other.concurrent_requests),
        }
    }
}

impl Spend {
    pub const NONE: Self = Self { day: None, month: None };

    /// Each of them, and where it is not set the other's.
    pub fn or(self, other: Self) -> Self {
        Self { day: self.day.or(other.day), month: self.month.or(other.month) }
    }

    /// The day's and the month's.
    pub fn amounts(self) -> [Option<PicoUsd>; 2] {
        [self.day, self.month]
    }
}
