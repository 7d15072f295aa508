//! A key: whom it is for and what it may do. Its secret is shown once, elsewhere, and its hash never.

use serde::{Deserialize, Serialize};

use super::amounts::{self, Limits};
use super::place::Place;
use crate::domain::{OrganizationId, Timestamp};
use crate::records::control::{Entity, Key};

/// May ask for answers, read them again and cancel them.
pub const CHAT_SCOPE: &str = "chat";
/// May list the models.
pub const MODELS_SCOPE: &str = "models";
/// May read what was used and spent.
pub const USAGE_SCOPE: &str = "usage";
/// May change control; no key has it that does not name it.
pub const ADMIN_SCOPE: &str = "admin";
/// What a client may do; a key without scopes has all of these.
pub const CLIENT_SCOPES: [&str; 3] = [CHAT_SCOPE, MODELS_SCOPE, USAGE_SCOPE];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    #[serde(default)]
    organizations: Vec<String>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spend_per_day: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spend_per_month: Option<String>,
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    limits: Limits,
    // What nobody sets by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    active: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
}

/// Reads what people may set over what is there.
pub(super) fn parse(document: Document, there: Option<&Key>, place: &mut Place<'_>) -> Option<Entity> {
    let Some(there) = there else {
        place.problem("", "a key has a secret, so it stands in no file; make it with `tollstream keys create`");
        return None;
    };
    unchanged(&document, there, place);
    let organizations = place.names::<OrganizationId>("organizations", &document.organizations);
    for (index, scope) in document.scopes.iter().enumerate() {
        if !CLIENT_SCOPES.contains(&scope.as_str()) && scope != ADMIN_SCOPE {
            let known = CLIENT_SCOPES.join(", ");
            place.problem("scopes", format!("{scope:?} is not known; known are {known} and {ADMIN_SCOPE}"));
        }
        if document.scopes[..index].contains(scope) {
            place.problem("scopes", format!("{scope} is there more than once"));
        }
    }
    let is_client = document.scopes.is_empty() || document.scopes.iter().any(|scope| scope != ADMIN_SCOPE);
    if is_client && document.organizations.is_empty() {
        place.problem(
            "organizations",
            "there is none; name who pays (only a key with nothing but the scope admin needs none)",
        );
    }
    let expires_at = document.expires_at.map(|text| place.take("expires_at", amounts::moment(&text)));
    let limits = document.limits.parse(place);
    let spend = amounts::spend(document.spend_per_day.as_deref(), document.spend_per_month.as_deref(), place);
    Some(Entity::Key(Key {
        organizations: organizations?,
        sha256: there.sha256.clone(),
        prefix: there.prefix.clone(),
        active: there.active,
        description: document.description,
        scopes: document.scopes,
        expires_at: expires_at.map_or(Some(None), |moment| moment.map(Some))?,
        created_at: there.created_at,
        limits: limits?,
        spend: spend?,
    }))
}

fn unchanged(document: &Document, there: &Key, place: &mut Place<'_>) {
    if document.active.is_some_and(|active| active != there.active) {
        let problem = match there.active {
            true => "is changed by revoking the key",
            false => "a revoked key stays so; make a new one",
        };
        place.problem("active", problem);
    }
    if document.prefix.as_ref().is_some_and(|prefix| *prefix != there.prefix) {
        place.problem("prefix", "comes from the secret and cannot be changed; leave it out");
    }
    if document.created_at.as_ref().is_some_and(|text| Some(text) != there.created_at.map(|at| at.to_string()).as_ref())
    {
        place.problem("created_at", "cannot be changed; leave it out");
    }
}

pub(super) fn show(key: &Key) -> Document {
    let moment = |at: Timestamp| at.to_string();
    Document {
        organizations: key.organizations.iter().map(OrganizationId::to_string).collect(),
        description: key.description.clone(),
        scopes: key.scopes.clone(),
        expires_at: key.expires_at.map(moment),
        spend_per_day: key.spend.day.map(|amount| amount.to_string()),
        spend_per_month: key.spend.month.map(|amount| amount.to_string()),
        limits: Limits::show(&key.limits),
        prefix: Some(key.prefix.clone()),
        active: Some(key.active),
        created_at: key.created_at.map(moment),
    }
}
