//! The flags of the common fields, as members of a document. Everything else goes into a file.

use clap::Args;
use serde_json::Value;

use super::Fields;
use crate::control::document::Object;
use crate::records::control::EntityKind;

/// The members that were given.
pub(super) fn given<const N: usize>(members: [(&str, Option<Value>); N]) -> Object {
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

pub(super) fn some<T: Clone + Into<Value>>(value: &Option<T>) -> Option<Value> {
    value.clone().map(Into::into)
}

/// A list that was given; an empty text stands for an empty list.
fn list<T: ToString + Into<Value> + Clone>(values: &[T]) -> Option<Value> {
    let filled = values.iter().filter(|value| !value.to_string().is_empty());
    (!values.is_empty()).then(|| filled.cloned().map(Into::into).collect())
}

fn inner(object: Object) -> Option<Value> {
    (!object.is_empty()).then_some(Value::Object(object))
}

#[derive(Debug, Clone, Args)]
pub struct LimitFlags {
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub requests_per_minute: Option<u64>,
    /// Input and output together
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub tokens_per_minute: Option<u64>,
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub concurrent_requests: Option<u64>,
}

impl LimitFlags {
    pub fn value(&self) -> Option<Value> {
        inner(given([
            ("requests_per_minute", some(&self.requests_per_minute)),
            ("tokens_per_minute", some(&self.tokens_per_minute)),
            ("concurrent_requests", some(&self.concurrent_requests)),
        ]))
    }
}

#[derive(Debug, Clone, Args)]
pub struct SpendFlags {
    /// Dollars, for example 25.00
    #[arg(long, value_name = "USD", allow_hyphen_values = true)]
    pub spend_per_day: Option<String>,
    /// Dollars, for example 500.00
    #[arg(long, value_name = "USD", allow_hyphen_values = true)]
    pub spend_per_month: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub struct OrganizationFields {
    /// The name for people
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    #[arg(long, value_name = "PLAN")]
    pub plan: Option<String>,
    /// Whether its requests are served
    #[arg(long, value_name = "BOOL")]
    pub active: Option<bool>,
    /// Whether its requests count as high value
    #[arg(long, value_name = "BOOL")]
    pub vip: Option<bool>,
    #[command(flatten)]
    pub limits: LimitFlags,
    #[command(flatten)]
    pub spend: SpendFlags,
}

impl Fields for OrganizationFields {
    const KIND: EntityKind = EntityKind::Organization;

    fn document(&self) -> anyhow::Result<Object> {
        Ok(given([
            ("name", some(&self.name)),
            ("plan", some(&self.plan)),
            ("active", some(&self.active)),
            ("vip", some(&self.vip)),
            ("limits", self.limits.value()),
            ("spend_per_day", some(&self.spend.spend_per_day)),
            ("spend_per_month", some(&self.spend.spend_per_month)),
        ]))
    }
}

#[derive(Debug, Clone, Args)]
pub struct PlanFields {
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// A model that may be asked for and answer; repeat it for more, leave it out for all
    #[arg(long = "model", value_name = "MODEL")]
    pub models: Vec<String>,
    /// A tier that may be asked for and answer; repeat it for more, leave it out for all
    #[arg(long = "tier", value_name = "1-4")]
    pub tiers: Vec<u8>,
    /// Tokens that an answer may have where the client names no cap
    #[arg(long, value_name = "TOKENS", allow_hyphen_values = true)]
    pub output_cap: Option<u64>,
    #[command(flatten)]
    pub limits: LimitFlags,
    #[command(flatten)]
    pub spend: SpendFlags,
    /// Where days and months begin, for example America/Sao_Paulo
    #[arg(long, value_name = "ZONE")]
    pub time_zone: Option<String>,
    /// The day on which a month begins
    #[arg(long, value_name = "1-31")]
    pub reset_day: Option<u8>,
    /// Percent of a budget at which it is told that so much is spent; repeat it for more
    #[arg(long = "soft-percent", value_name = "1-100")]
    pub soft_percents: Vec<u8>,
    /// What happens when a budget does not suffice: refuse, lower_output_cap or step_down
    #[arg(long, value_name = "WHAT")]
    pub when_short: Option<String>,
    #[command(flatten)]
    pub cache: CacheFlags,
}

/// Which answers are kept for those who ask the same.
#[derive(Debug, Clone, Args)]
pub struct CacheFlags {
    /// How long answers are kept for those who ask the same; without any of the cache's settings they are not
    #[arg(long, value_name = "SECONDS")]
    pub cache_ttl_seconds: Option<u64>,
    /// Most answers that are kept for an organization
    #[arg(long, value_name = "NUMBER")]
    pub cache_entries_max: Option<u64>,
    /// Most bytes of answers that are kept for an organization
    #[arg(long, value_name = "BYTES")]
    pub cache_bytes_max: Option<u64>,
    /// Keep answers also of requests that do not say temperature 0
    #[arg(long, value_name = "true|false")]
    pub cache_any_temperature: Option<bool>,
    /// Keep answers also of requests that name tools
    #[arg(long, value_name = "true|false")]
    pub cache_tools: Option<bool>,
}

impl Fields for PlanFields {
    const KIND: EntityKind = EntityKind::Plan;

    fn document(&self) -> anyhow::Result<Object> {
        let budget = given([
            ("spend_per_day", some(&self.spend.spend_per_day)),
            ("spend_per_month", some(&self.spend.spend_per_month)),
            ("time_zone", some(&self.time_zone)),
            ("reset_day", some(&self.reset_day)),
            ("soft_percents", list(&self.soft_percents)),
            ("when_short", some(&self.when_short)),
        ]);
        let cache = given([
            ("ttl_seconds", some(&self.cache.cache_ttl_seconds)),
            ("entries_max", some(&self.cache.cache_entries_max)),
            ("bytes_max", some(&self.cache.cache_bytes_max)),
            ("any_temperature", some(&self.cache.cache_any_temperature)),
            ("tools", some(&self.cache.cache_tools)),
        ]);
        Ok(given([
            ("cache", inner(cache)),
            ("description", some(&self.description)),
            ("models", list(&self.models)),
            ("tiers", list(&self.tiers)),
            ("output_cap", some(&self.output_cap)),
            ("limits", self.limits.value()),
            ("budget", inner(budget)),
        ]))
    }
}

#[derive(Debug, Clone, Args)]
pub struct ModelFields {
    #[arg(long, value_name = "1-4")]
    pub tier: Option<u8>,
    /// Another name of it; repeat it for more
    #[arg(long = "alias", value_name = "NAME")]
    pub aliases: Vec<String>,
    #[command(flatten)]
    pub limits: LimitFlags,
}

impl Fields for ModelFields {
    const KIND: EntityKind = EntityKind::Model;

    fn document(&self) -> anyhow::Result<Object> {
        let aliases = list(&self.aliases);
        Ok(given([("tier", some(&self.tier)), ("aliases", aliases), ("limits", self.limits.value())]))
    }
}

#[derive(Debug, Clone, Args)]
pub struct PolicyFields {
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    #[arg(long, value_name = "1-4")]
    pub default_tier: Option<u8>,
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub max_attempts: Option<u32>,
    /// A model that is tried when the tier's have failed; repeat it for more, in order
    #[arg(long, value_name = "MODEL")]
    pub fallback: Vec<String>,
}

impl Fields for PolicyFields {
    const KIND: EntityKind = EntityKind::Policy;

    fn document(&self) -> anyhow::Result<Object> {
        Ok(given([
            ("description", some(&self.description)),
            ("default_tier", some(&self.default_tier)),
            ("max_attempts", some(&self.max_attempts)),
            ("fallback", list(&self.fallback)),
        ]))
    }
}

#[derive(Debug, Clone, Args)]
pub struct KeyFields {
    /// Who pays; repeat it for a service key that names one per request
    #[arg(long = "organization", value_name = "ID")]
    pub organizations: Vec<String>,
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// What it may be used for: chat, models, usage, admin; left out, everything that a client may do
    #[arg(long = "scope", value_name = "SCOPE")]
    pub scopes: Vec<String>,
    /// How long it is good from now on, for example 90d, 12h or 30m
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "expires_at")]
    pub expires_in: Option<std::time::Duration>,
    /// Until when it is good, for example 2027-01-31T00:00:00Z
    #[arg(long, value_name = "MOMENT")]
    pub expires_at: Option<String>,
    #[command(flatten)]
    pub limits: LimitFlags,
    #[command(flatten)]
    pub spend: SpendFlags,
}

impl Fields for KeyFields {
    const KIND: EntityKind = EntityKind::Key;

    fn document(&self) -> anyhow::Result<Object> {
        let expires_in = self.expires_in.map(|time| crate::runtime::clock::now().plus(time).to_string());
        Ok(given([
            ("organizations", list(&self.organizations)),
            ("description", some(&self.description)),
            ("scopes", list(&self.scopes)),
            ("expires_at", expires_in.or_else(|| self.expires_at.clone()).map(Value::from)),
            ("limits", self.limits.value()),
            ("spend_per_day", some(&self.spend.spend_per_day)),
            ("spend_per_month", some(&self.spend.spend_per_month)),
        ]))
    }
}

/// `90d`, `12h`, `30m`, `45s`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || format!("{text:?} is no time; write it like 90d, 12h or 30m");
    let units = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];
    let found = units.iter().find_map(|(unit, seconds)| Some((text.strip_suffix(*unit)?, *seconds)));
    let (number, seconds) = found.ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).filter(|s| *s > 0).map(std::time::Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let table = [
            ("90d", Some(7_776_000)),
            ("1h", Some(3_600)),
            ("5m", Some(300)),
            ("7s", Some(7)),
            ("0d", None),
            ("d", None),
            ("5", None),
            ("-1d", None),
            ("99999999999999999d", None),
        ];
        for (text, seconds) in table {
            assert_eq!(duration(text).ok().map(|time| time.as_secs()), seconds, "{text}");
        }
    }

    #[test]
    fn what_is_not_given_is_no_member() {
        let none = LimitFlags { requests_per_minute: None, tokens_per_minute: None, concurrent_requests: None };
        assert_eq!(none.value(), None);
        let one = LimitFlags { requests_per_minute: Some(5), ..none };
        assert_eq!(one.value(), Some(json!({ "requests_per_minute": 5 })));
        assert_eq!(list(&[String::new()]), Some(json!([])));
    }
}
