//! Values without I/O: identifiers, money, time, calendars, token usage. Nothing here touches Kafka, a clock or the network.

pub mod calendar;
pub mod fingerprint;
pub mod ids;
pub mod moment;
pub mod money;
pub mod time;
pub mod usage;

pub use calendar::{Calendar, Periods};
pub use fingerprint::Fingerprint;
pub use ids::{
    ConversationId, DeploymentId, KeyId, ModelName, OrganizationId, PlanName, PolicyName, RequestId, RequestKey, UserId,
};
pub use moment::Moment;
pub use money::PicoUsd;
pub use time::Timestamp;
pub use usage::{Price, TokenUsage};
