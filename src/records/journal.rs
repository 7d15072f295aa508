//! `journal`: commits, the only authority on state and money. Key: organization. No content.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::responses::Original;
use super::{EnvelopeError, Origin, Outcome, Record, Topic, UsageSource};
use crate::domain::{
    ConversationId, DeploymentId, Fingerprint, KeyId, ModelName, OrganizationId, Periods, PicoUsd, PolicyName,
    RequestId, Timestamp, TokenUsage, UserId,
};

/// The envelope as it is on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalRecord {
    pub kind: String,
    #[serde(default)]
    pub ownership_taken: Option<OwnershipTaken>,
    #[serde(default)]
    pub commit: Option<CommitRecord>,
}

/// Begins a tenure, whose id is the offset of this record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnershipTaken {
    pub owner: String,
    pub at: Timestamp,
    pub version: String,
}

/// A commit as it is on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CommitRecord {
    tenure: i64,
    sequence: i64,
    input: InputKind,
    #[serde(default)]
    source_offset: Option<i64>,
    at: Timestamp,
    control_offset: i64,
    #[serde(default)]
    organization: Option<OrganizationId>,
    #[serde(default)]
    request: Option<Arc<RequestContext>>,
    facts: Vec<FactRecord>,
    #[serde(default)]
    health: Vec<Standing>,
}

/// What a decision was made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InputKind {
    Record,
    Provider,
    Timer,
    Takeover,
    /// Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Unknown,
}

/// One whole decision about one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    pub tenure: i64,
    /// From 0 in each tenure.
    pub sequence: i64,
    pub input: InputKind,
    /// Of the record in `requests`, when the input is one.
    pub source_offset: Option<i64>,
    pub at: Timestamp,
    pub control_offset: i64,
    pub organization: Option<OrganizationId>,
    pub request: Option<Arc<RequestContext>>,
    pub facts: Vec<Fact>,
    /// Of the deployments whose health changed a choice of this decision.
    pub health: Vec<Standing>,
}

/// A deployment as its owner knew it, from its own attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub deployment: DeploymentId,
    pub state: HealthState,
    /// When it is tried again.
    #[serde(default)]
    pub until: Option<Timestamp>,
    /// To the first token, a moving average.
    #[serde(default)]
    pub latency_ms: Option<u64>,
    #[serde(default)]
    pub in_flight: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum HealthState {
    /// It answers, or nobody knows better.
    Sound,
    /// Too many of its calls failed lately.
    Broken,
    /// Its provider asked to be left alone until then.
    Cooling,
    /// Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What every posting of a request can be reported by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestContext {
    pub request_id: RequestId,
    #[serde(default)]
    pub lane: i32,
    #[serde(default)]
    pub key_id: Option<KeyId>,
    #[serde(default)]
    pub user: Option<UserId>,
    #[serde(default)]
    pub user_tier: Option<String>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    #[serde(default)]
    pub conversation_id: Option<ConversationId>,
    #[serde(default)]
    pub requested_model: Option<ModelName>,
    #[serde(default)]
    pub tier: Option<u8>,
    #[serde(default)]
    pub policy: Option<PolicyName>,
    #[serde(default)]
    pub policy_version: Option<i64>,
    #[serde(default)]
    pub arm: Option<String>,
    #[serde(default)]
    pub origin: Origin,
    #[serde(default)]
    pub traceparent: Option<String>,
    /// The request record's own time.
    pub received_at: Timestamp,
    #[serde(default)]
    pub stream: bool,
}

macro_rules! facts {
    ($($kind:ident: $variant:ident($of:ty)),* $(,)?) => {
        /// A fact of a commit, in the past tense.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Fact {
            $($variant($of)),*
        }

        pub(crate) const FACT_KINDS: &[&str] = &[$(stringify!($kind)),*];
        const KNOWN_FACTS: &str = concat!("the facts", $(" ", stringify!($kind)),*);

        /// A fact as it is written: one field of the envelope is set.
        #[derive(Default, Serialize)]
        struct Written<'a> {
            kind: &'static str,
            $($kind: Option<&'a $of>),*
        }

        impl<'a> From<&'a Fact> for Written<'a> {
            fn from(fact: &'a Fact) -> Self {
                match fact {
                    $(Fact::$variant(fact) => Self { kind: stringify!($kind), $kind: Some(fact), ..Self::default() }),*
                }
            }
        }

        impl FactRecord {
            /// Reads the field that the kind names straight into the fact: an envelope of all of them would be large, and looking
            /// up the names of all the others costs more than the fact. `kind` is before all kinds in every schema.
            fn read<'de, A: MapAccess<'de>>(mut envelope: A) -> Result<Self, A::Error> {
                while !envelope.next_key_seed(Is("kind"))?.ok_or_else(|| A::Error::missing_field("kind"))? {
                    // Only what a newer version adds stands before it.
                    envelope.next_value::<IgnoredAny>()?;
                }
                let (kind, mut found) = (envelope.next_value::<Kind>()?.0, None);
                while let Some(is_wanted) = envelope.next_key_seed(Is(&kind))? {
                    if !is_wanted {
                        envelope.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    match &*kind {
                        $(stringify!($kind) => found = envelope.next_value::<Option<$of>>()?.map(Fact::$variant),)*
                        // A kind that this version does not know, or the name of what comes first.
                        _ => _ = envelope.next_value::<IgnoredAny>()?,
                    }
                }
                Ok(Self(match found {
                    Some(fact) => Ok(fact),
                    _ if FACT_KINDS.contains(&&*kind) => Err(EnvelopeError::Missing { kind: kind.into_owned() }),
                    _ => Err(EnvelopeError::UnknownKind { kind: kind.into_owned(), known: KNOWN_FACTS }),
                }))
            }
        }
    };
}

facts! {
    request_admitted: RequestAdmitted(RequestAdmitted),
    request_refused: RequestRefused(RequestRefused),
    request_routed: RequestRouted(Arc<RequestRouted>),
    attempt_started: AttemptStarted(AttemptStarted),
    attempt_ended: AttemptEnded(Box<AttemptEnded>),
    request_settled: RequestSettled(RequestSettled),
    cancel_requested: CancelRequested(CancelRequested),
    record_skipped: RecordSkipped(RecordSkipped),
    attempt_progressed: AttemptProgressed(AttemptProgressed),
    orphan_posted: OrphanPosted(OrphanPosted),
    overdrawn: Overdrawn(Overdrawn),
    threshold_crossed: ThresholdCrossed(ThresholdCrossed),
    cache_looked_up: CacheLookedUp(CacheLookedUp),
    cache_inserted: CacheInserted(Box<CacheInserted>),
    cache_evicted: CacheEvicted(CacheEvicted),
    cache_purged: CachePurged(CachePurged),
}

/// A fact as it is on the wire, or why there is none that this program knows.
#[derive(Debug, Clone, PartialEq)]
struct FactRecord(Result<Fact, EnvelopeError>);

impl Serialize for FactRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fact = self.0.as_ref().map_err(S::Error::custom)?;
        Written::from(fact).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FactRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Envelope;
        impl<'de> Visitor<'de> for Envelope {
            type Value = FactRecord;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a fact's envelope")
            }

            fn visit_map<A: MapAccess<'de>>(self, envelope: A) -> Result<FactRecord, A::Error> {
                FactRecord::read(envelope)
            }
        }
        deserializer.deserialize_map(Envelope)
    }
}

/// Whether the name of a field is this one.
struct Is<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

/// The kind of a fact; a known one takes no memory of its own.
struct Kind(Cow<'static, str>);

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Kind;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the kind of a fact")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Kind, E> {
                let known = FACT_KINDS.iter().copied().find(|known| *known == name);
                Ok(Kind(known.map_or_else(|| Cow::Owned(name.to_owned()), Cow::Borrowed)))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestAdmitted {
    pub deadline_at: Timestamp,
    pub reply_partition: i32,
    #[serde(default)]
    pub reply_nonce: Option<String>,
    #[serde(default)]
    pub include_usage: bool,
    pub features: Features,
    /// Keyed hash of the body.
    #[serde(default)]
    pub body_fingerprint: Option<String>,
    /// What it takes of the limits that there are.
    #[serde(default)]
    pub limits: Vec<LimitCharge>,
}

/// Whose limits are charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LimitScope {
    Organization,
    /// The key of the request, for this organization.
    Key,
    /// The organization's calls of the attempt's model.
    Model,
    /// Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What a request or an attempt takes of one scope's limits per minute: one request, and so many tokens until it is known
/// how many it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitCharge {
    pub scope: LimitScope,
    /// In force when it was charged.
    #[serde(default)]
    pub requests_per_minute: Option<u64>,
    #[serde(default)]
    pub tokens_per_minute: Option<u64>,
    pub tokens: u64,
}

/// Of the content, without it; enough to decide again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Features {
    pub body_bytes: u64,
    pub messages: u32,
    pub text_bytes: u64,
    #[serde(default)]
    pub tools: u32,
    #[serde(default)]
    pub images: u32,
    #[serde(default = "one")]
    pub choices: u32,
    #[serde(default)]
    pub output_cap: Option<u64>,
    /// Of the messages and tools, by OpenAI's o200k_base; `None`: not counted.
    #[serde(default)]
    pub input_tokens: Option<u64>,
    #[serde(default)]
    pub response_format: ResponseFormat,
    /// `None`: the classifier was not asked, or did not understand the text.
    #[serde(default)]
    pub likelihoods: Option<Likelihoods>,
    /// `None`: not taken.
    #[serde(default)]
    pub measures: Option<Measures>,
}

/// In which form the answer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ResponseFormat {
    #[default]
    Text,
    JsonObject,
    JsonSchema,
    /// Also every symbol that a newer version writes.
    #[serde(other)]
    Unknown,
}

/// Counts of the last user message, by which policies tell how complex it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Measures {
    pub words: u32,
    pub questions: u32,
    pub code_lines: u32,
    pub numbers: u32,
    pub list_items: u32,
    pub constraints: u32,
    /// User messages before it.
    pub turns: u32,
    /// Rather than English.
    pub portuguese: bool,
}

/// Of the intents that the classifier knows, in permille.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Likelihoods {
    #[serde(default)]
    pub greeting: u16,
    #[serde(default)]
    pub faq: u16,
    #[serde(default)]
    pub basic_support: u16,
    #[serde(default)]
    pub complex_question: u16,
    #[serde(default)]
    pub sales_negotiation: u16,
    #[serde(default)]
    pub high_value: u16,
}

fn one() -> u32 {
    1
}

/// Terminal of a request that was never admitted; costs nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRefused {
    pub code: String,
    pub status: u16,
    #[serde(default)]
    pub told: Option<Told>,
    /// `None`: the content was not looked at, or cannot be read.
    #[serde(default)]
    pub features: Option<Features>,
    /// Which limit or budget did not suffice.
    #[serde(default)]
    pub limit: Option<String>,
}

/// What the asker of a request without a call is told, so that the next owner can tell it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub reply_partition: i32,
    #[serde(default)]
    pub reply_nonce: Option<String>,
    pub status: u16,
    pub code: String,
    /// Of a repeat: where the first one's answer stands.
    #[serde(default)]
    pub original: Option<Original>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRouted {
    /// In the order in which they are tried.
    pub candidates: Vec<Candidate>,
    pub max_attempts: u32,
    pub reasons: Vec<String>,
    /// `None`: the request names its model.
    #[serde(default)]
    pub tiering: Option<Tiering>,
}

/// How the tier was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tiering {
    /// Given, or the likeliest.
    #[serde(default)]
    pub intent: Option<String>,
    #[serde(default)]
    pub intent_source: IntentSource,
    /// Of a classified one.
    #[serde(default)]
    pub confidence_permille: Option<u16>,
    /// Points of complexity; `None`: the policy has no weights.
    #[serde(default)]
    pub score: Option<i64>,
    /// Whose candidates come first.
    pub tier: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum IntentSource {
    #[default]
    None,
    /// By the request's tag `intent`.
    Given,
    Classified,
    /// Also every symbol that a newer version writes.
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    pub model: ModelName,
    pub deployment: DeploymentId,
    pub tier: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptStarted {
    pub attempt: u32,
    pub model: ModelName,
    pub deployment: DeploymentId,
    pub provider: String,
    /// Control offset of the model, whose prices apply.
    pub price_version: i64,
    /// `None`: nothing was reserved (a version without a ledger wrote it).
    #[serde(default)]
    pub reservation: Option<Reservation>,
    /// Of the organization's calls of this model.
    #[serde(default)]
    pub limits: Option<LimitCharge>,
    /// The call is made so long after the commit.
    #[serde(default)]
    pub delay_ms: u64,
    #[serde(default)]
    pub source: AttemptSource,
    /// Whose call it shares.
    #[serde(default)]
    pub shared_with: Option<RequestId>,
}

/// Whence the answer of an attempt comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AttemptSource {
    #[default]
    Provider,
    /// An answer that is kept.
    Cache,
    /// The provider call of an equal request that is under way.
    Shared,
    /// Also every symbol that a newer version writes.
    #[serde(other)]
    Unknown,
}

impl AttemptSource {
    /// Nobody was called for it, so it used nothing and cost nothing.
    pub const fn is_served(self) -> bool {
        matches!(self, Self::Cache | Self::Shared)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Cache => "cache",
            Self::Shared => "shared",
            Self::Unknown => "unknown",
        }
    }
}

/// What was looked for in the organization's cache, and found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheLookedUp {
    /// Of what determines the answer, but for who answers.
    pub content: Fingerprint,
    /// Of that, and of who answers.
    pub fingerprint: Fingerprint,
    pub outcome: CacheOutcome,
    /// The answer may be kept.
    pub keeps: bool,
    /// How long it is kept, and how old one may be that is given, where the request says so.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
    #[serde(default)]
    pub max_age_seconds: Option<u64>,
    /// Of the answer that was found, in milliseconds.
    #[serde(default)]
    pub age_ms: Option<u64>,
}

/// What became of a look into the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CacheOutcome {
    Hit,
    /// The same is being asked right now: its answer goes to this one, too.
    Shared,
    Miss,
    /// There is one, and it is too old.
    Expired,
    /// There should be one, and its body is not at hand.
    Lost,
    /// The request wants a new answer.
    Bypassed,
    /// Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Unknown,
}

impl CacheOutcome {
    pub const ALL: [Self; 7] =
        [Self::Hit, Self::Shared, Self::Miss, Self::Expired, Self::Lost, Self::Bypassed, Self::Unknown];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Shared => "shared",
            Self::Miss => "miss",
            Self::Expired => "expired",
            Self::Lost => "lost",
            Self::Bypassed => "bypassed",
            Self::Unknown => "unknown",
        }
    }
}

/// The answer of this request is kept for those that ask the same. Its body goes to `cache` once this is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheInserted {
    /// Of what determines the answer, and of who answers.
    pub fingerprint: Fingerprint,
    pub bytes: u64,
    pub expires_at: Timestamp,
    pub model: ModelName,
    pub deployment: DeploymentId,
    pub provider: String,
    pub tier: u8,
}

/// Answers that are kept no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheEvicted {
    pub fingerprints: Vec<Fingerprint>,
    pub reason: Eviction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Eviction {
    /// Its time is over.
    Expired,
    /// It was not asked for the longest, and there was no room.
    LeastRecentlyUsed,
    /// Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Eviction {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::LeastRecentlyUsed => "least_recently_used",
            Self::Unknown => "unknown",
        }
    }
}

/// Somebody wanted an organization's answers forgotten: all, or those of a model, or those kept before a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachePurged {
    #[serde(default)]
    pub model: Option<ModelName>,
    #[serde(default)]
    pub before: Option<Timestamp>,
    /// How many these were.
    pub entries: u64,
}

/// The accounts of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Account {
    Organization,
    /// Of the key, for this organization.
    Key,
    /// Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Account {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Organization => "organization",
            Self::Key => "key",
            Self::Unknown => "unknown",
        }
    }
}

/// Money that is set aside for an attempt, on all of its accounts: what it costs in the worst case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    pub amount_pico_usd: PicoUsd,
    /// Estimated, as the model counts.
    pub input_tokens: u64,
    /// At the most, of each choice.
    pub output_tokens: u64,
    /// The call is told this cap: the client gave none, or a higher one.
    #[serde(default)]
    pub output_cap: Option<u64>,
    pub accounts: Vec<Account>,
}

/// On which accounts, and in which of their periods, a posting is booked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booking {
    pub accounts: Vec<Account>,
    pub periods: Periods,
}

/// A posting: what one provider call used and cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptEnded {
    pub attempt: u32,
    pub model: ModelName,
    pub deployment: DeploymentId,
    pub provider: String,
    pub tier: u8,
    /// A simulator answered instead of the provider.
    #[serde(default)]
    pub simulated: bool,
    pub outcome: Outcome,
    #[serde(default)]
    pub error_code: Option<String>,
    #[serde(default)]
    pub upstream_status: Option<u16>,
    #[serde(default)]
    pub finish_reason: Option<String>,
    pub content_frames: u32,
    #[serde(default)]
    pub time_to_first_token_ms: Option<u64>,
    #[serde(default)]
    pub duration_ms: Option<u64>,
    pub usage: TokenUsage,
    pub usage_source: UsageSource,
    pub price_version: i64,
    /// The price is an assumption, not a published one.
    #[serde(default)]
    pub price_simulated: bool,
    #[serde(default)]
    pub cost_pico_usd: Option<PicoUsd>,
    /// `None`: a version without a ledger wrote it.
    #[serde(default)]
    pub booking: Option<Booking>,
    /// How long the provider asked to be left alone.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
    /// What a whole answer lacks, by its name in [`SHORTFALLS`](super::policy::SHORTFALLS).
    #[serde(default)]
    pub shortfall: Option<String>,
    #[serde(default)]
    pub source: AttemptSource,
    /// Of an answer that nobody was called for.
    #[serde(default)]
    pub saved: Option<Saved>,
}

impl AttemptEnded {
    /// What the answer has of tokens, whoever made them.
    pub fn told_usage(&self) -> TokenUsage {
        self.saved.map_or(self.usage, |saved| saved.usage)
    }
}

/// What an answer would have used and cost that was given without a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    pub usage: TokenUsage,
    /// At the prices of the moment; `None`: not known.
    #[serde(default)]
    pub cost_pico_usd: Option<PicoUsd>,
}

/// Terminal of an admitted request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestSettled {
    pub outcome: Outcome,
    #[serde(default)]
    pub error_code: Option<String>,
    pub status: u16,
    pub attempts: u32,
    pub content_frames: u32,
    /// Of all attempts; `None` when one of them is unknown.
    #[serde(default)]
    pub cost_pico_usd: Option<PicoUsd>,
    #[serde(default)]
    pub time_to_first_token_ms: Option<u64>,
    pub duration_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequested {
    pub reason: String,
    /// Whether there was something to cancel.
    pub open: bool,
}

/// A record that led to nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordSkipped {
    pub reason: String,
    #[serde(default)]
    pub told: Option<Told>,
}

/// What a call under way has put out so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptProgressed {
    pub attempt: u32,
    pub content_frames: u32,
    /// Of the answer's text.
    pub text_bytes: u64,
}

/// A posting: money of a commit that does not count, because its owner had lost the partition when it was appended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrphanPosted {
    /// Of that commit.
    pub journal_offset: i64,
    pub posting: Box<AttemptEnded>,
    /// The attempt was posted with this estimated cost already, so that the posting has what goes beyond it (or, below
    /// zero, comes back).
    #[serde(default)]
    pub corrects_pico_usd: Option<PicoUsd>,
}

/// A posting is higher than what was reserved for its attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overdrawn {
    pub attempt: u32,
    /// Of the posting, beyond the reservation.
    pub amount_pico_usd: PicoUsd,
}

/// What is reckoned by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Period {
    Day,
    Month,
    /// Also every symbol that a newer version writes.
    #[default]
    #[serde(other)]
    Unknown,
}

/// With its posting an account has reached a percentage of what it may spend in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThresholdCrossed {
    pub account: Account,
    pub period: Period,
    pub percent: u32,
    /// Of the period, and what is posted in it.
    pub limit_pico_usd: PicoUsd,
    pub posted_pico_usd: PicoUsd,
}

/// What is on the journal, without the envelope.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    OwnershipTaken(OwnershipTaken),
    Commit(Commit),
}

impl Record for JournalRecord {
    const TOPIC: Topic = Topic::Journal;
}

impl From<Entry> for JournalRecord {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::OwnershipTaken(taken) => {
                Self { kind: "ownership_taken".to_owned(), ownership_taken: Some(taken), commit: None }
            }
            Entry::Commit(c) => {
                let facts = c.facts.into_iter().map(|fact| FactRecord(Ok(fact))).collect();
                let commit = CommitRecord {
                    tenure: c.tenure,
                    sequence: c.sequence,
                    input: c.input,
                    source_offset: c.source_offset,
                    at: c.at,
                    control_offset: c.control_offset,
                    organization: c.organization,
                    request: c.request,
                    facts,
                    health: c.health,
                };
                Self { kind: "commit".to_owned(), ownership_taken: None, commit: Some(commit) }
            }
        }
    }
}

impl TryFrom<JournalRecord> for Entry {
    type Error = EnvelopeError;

    fn try_from(record: JournalRecord) -> Result<Self, EnvelopeError> {
        let missing = || EnvelopeError::Missing { kind: record.kind.clone() };
        match record.kind.as_str() {
            "ownership_taken" => record.ownership_taken.map(Self::OwnershipTaken).ok_or_else(missing),
            "commit" => {
                let c = record.commit.ok_or_else(missing)?;
                Ok(Self::Commit(Commit {
                    tenure: c.tenure,
                    sequence: c.sequence,
                    input: c.input,
                    source_offset: c.source_offset,
                    at: c.at,
                    control_offset: c.control_offset,
                    organization: c.organization,
                    request: c.request,
                    facts: c.facts.into_iter().map(|fact| fact.0).collect::<Result<_, _>>()?,
                    health: c.health,
                }))
            }
            _ => Err(EnvelopeError::UnknownKind { kind: record.kind, known: "ownership_taken, commit" }),
        }
    }
}

/// The one rule of which entries count, used by every reader of a partition of the journal: a commit is effective only
/// with the latest tenure before it and the next sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenancy {
    /// Offset of the latest `OwnershipTaken`; `None` before the first.
    pub tenure: Option<i64>,
    /// The sequence that the next effective commit carries.
    pub next_sequence: i64,
}

impl Tenancy {
    pub const VACANT: Self = Self { tenure: None, next_sequence: 0 };

    /// Takes the entry at `offset`; says whether it is an effective commit.
    pub fn accept(&mut self, offset: i64, entry: &Entry) -> bool {
        match entry {
            Entry::OwnershipTaken(_) => {
                *self = Self { tenure: Some(offset), next_sequence: 0 };
                false
            }
            Entry::Commit(commit) => {
                let effective = self.tenure == Some(commit.tenure) && self.next_sequence == commit.sequence;
                self.next_sequence += i64::from(effective);
                effective
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken() -> Entry {
        Entry::OwnershipTaken(OwnershipTaken { owner: "a".into(), at: Timestamp::from_millis(0), version: "0".into() })
    }

    fn commit(tenure: i64, sequence: i64) -> Entry {
        Entry::Commit(Commit {
            tenure,
            sequence,
            input: InputKind::Record,
            source_offset: Some(0),
            at: Timestamp::from_millis(0),
            control_offset: -1,
            organization: None,
            request: None,
            facts: vec![Fact::RecordSkipped(RecordSkipped { reason: "undecodable".into(), told: None })],
            health: Vec::new(),
        })
    }

    #[test]
    fn only_the_latest_tenure_and_the_next_sequence_count() {
        let log = [
            (commit(0, 0), false), // nobody owns yet
            (taken(), false),      // tenure 1
            (commit(1, 0), true),
            (commit(1, 2), false), // a gap
            (commit(1, 1), true),
            (commit(1, 1), false), // a repeat
            (taken(), false),      // tenure 6
            (commit(1, 2), false), // the former owner, too late
            (commit(6, 0), true),
        ];
        let mut tenancy = Tenancy::VACANT;
        for (offset, (entry, effective)) in log.iter().enumerate() {
            assert_eq!(tenancy.accept(offset as i64, entry), *effective, "offset {offset}");
        }
        assert_eq!(tenancy, Tenancy { tenure: Some(6), next_sequence: 1 });
    }

    #[test]
    fn an_unknown_fact_is_an_error_that_names_it() {
        let json = serde_json::to_string(&JournalRecord::from(commit(1, 0))).unwrap();
        let record: JournalRecord =
            serde_json::from_str(&json.replace("\"record_skipped\",", "\"budget_reserved\",")).unwrap();
        let error = Entry::try_from(record).unwrap_err();
        assert!(error.to_string().contains("budget_reserved"), "{error}");
    }
}
