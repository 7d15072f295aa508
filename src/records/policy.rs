//! A policy as it stands on `control`: what `model: "auto"` means.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::{ModelName, PlanName};

/// How the tier of a request is found, who answers in it, and what follows a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    #[serde(default)]
    pub description: String,
    /// Of requests about which nothing else says anything.
    pub default_tier: u8,
    /// Calls of a request at the most, retries and escalations included.
    pub max_attempts: u32,
    pub tiers: Vec<PolicyTier>,
    /// A chain, the best model first: a request goes down it from its own tier on, then up.
    #[serde(default)]
    pub fallback: Vec<ModelName>,
    /// Which tier an intent needs; empty: nothing is classified.
    #[serde(default)]
    pub intents: Vec<IntentTier>,
    /// The tier is the lowest for which the likelihood of all higher ones is at most this.
    #[serde(default = "doubt")]
    pub doubt_permille: u32,
    /// Of VIPs, where their plan has it.
    #[serde(default)]
    pub vip_tier: Option<u8>,
    /// Points of complexity for each of what is measured.
    #[serde(default)]
    pub weights: Vec<MeasureWeight>,
    /// From so many points on, at least this tier.
    #[serde(default)]
    pub thresholds: Vec<Threshold>,
    /// The first that matches and has a tier sets it; all that match bound it.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// What a whole answer may lack so that the next tier is asked, once; names of [`SHORTFALLS`].
    #[serde(default)]
    pub escalation: Vec<String>,
    /// In place of what holds by default.
    #[serde(default)]
    pub failures: Vec<FailureRule>,
}

impl Policy {
    /// Whether it goes by what the classifier reads.
    pub fn reads_content(&self) -> bool {
        !self.intents.is_empty() || !self.weights.is_empty()
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            description: String::new(),
            default_tier: 2,
            max_attempts: 3,
            tiers: Vec::new(),
            fallback: Vec::new(),
            intents: Vec::new(),
            doubt_permille: doubt(),
            vip_tier: None,
            weights: Vec::new(),
            thresholds: Vec::new(),
            rules: Vec::new(),
            escalation: Vec::new(),
            failures: Vec::new(),
        }
    }
}

const fn doubt() -> u32 {
    200
}

/// What a whole answer may lack: any text, its end (it was cut by length), that it is JSON, that it matches its schema.
pub const SHORTFALLS: [&str; 4] = [EMPTY, LENGTH, NOT_JSON, NOT_SCHEMA];
pub const EMPTY: &str = "empty";
pub const LENGTH: &str = "length";
pub const NOT_JSON: &str = "not_json";
pub const NOT_SCHEMA: &str = "not_schema";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyTier {
    pub tier: u8,
    /// In the order in which they are tried.
    pub candidates: Vec<ModelName>,
    /// Of the candidates, whose order is then drawn by them; empty: the order as it stands.
    #[serde(default)]
    pub weights: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentTier {
    pub intent: String,
    pub tier: u8,
}

/// Points for each of something that is measured; names are those of [`crate::processor::router::MEASURES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasureWeight {
    pub measure: String,
    pub points: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threshold {
    pub points: i64,
    pub tier: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub name: String,
    pub when: When,
    #[serde(default)]
    pub tier: Option<u8>,
    #[serde(default)]
    pub min_tier: Option<u8>,
    #[serde(default)]
    pub max_tier: Option<u8>,
}

/// All of these hold; what is empty or `None` always does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct When {
    #[serde(default)]
    pub intents: Vec<String>,
    #[serde(default)]
    pub user_tiers: Vec<String>,
    #[serde(default)]
    pub plans: Vec<PlanName>,
    /// The request has all of these tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Both inclusive.
    #[serde(default)]
    pub min_input_tokens: Option<u64>,
    #[serde(default)]
    pub max_input_tokens: Option<u64>,
    #[serde(default)]
    pub window: Option<Window>,
}

/// A part of the week.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// On which it begins, from 1 (Monday) to 7; empty: all.
    #[serde(default)]
    pub days: Vec<u8>,
    /// Of the day.
    pub from_minute: u32,
    /// Exclusive; one that is not after `from_minute` is of the next day.
    pub to_minute: u32,
    /// By its name in the IANA database.
    pub time_zone: String,
}

/// What follows a failure before any content went out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureRule {
    /// The code of a failure class, such as `upstream_rate_limited`.
    pub cause: String,
    pub then: Then,
    /// Of the same deployment, before the next one is tried.
    #[serde(default)]
    pub retries: u32,
    /// Before the first retry; twice as much before each further one.
    #[serde(default)]
    pub backoff_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Then {
    /// The same deployment is called again, after a wait.
    Retry,
    /// The request is over.
    End,
    /// The next candidate is called. Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Next,
}
