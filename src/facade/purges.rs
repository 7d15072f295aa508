//! Purges of the cache over HTTP: `POST /admin/v1/cache/purge`.

use std::sync::Arc;

use indicatif::ProgressBar;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::error::Refusal;
use super::statements::Statements;
use crate::audit::reader::Reader;
use crate::codec::Codec;
use crate::config;
use crate::control::Tables;
use crate::control::document::Object;
use crate::domain::{ModelName, Moment, OrganizationId, Timestamp};
use crate::purge::{self, Purged};
use crate::records::requests::PurgeCache;
use crate::runtime::publisher::Publisher;

/// Purges at a time: each reads the journal until it is decided.
const PURGES_MAX: usize = 4;

/// Asks for purges.
pub struct Purges {
    kafka: config::Kafka,
    codec: Arc<Codec>,
    publisher: Publisher,
    turns: Semaphore,
}

impl Purges {
    pub fn new(kafka: config::Kafka, codec: Arc<Codec>, publisher: Publisher) -> Self {
        Self { kafka, codec, publisher, turns: Semaphore::new(PURGES_MAX) }
    }

    /// Asks for a purge, and waits until it is decided.
    pub async fn purge(
        &self,
        wanted: PurgeCache,
        statements: &Statements,
        tables: Arc<Tables>,
    ) -> Result<Purged, Refusal> {
        let _turn = self.turns.try_acquire().map_err(|_| Refusal::Overloaded)?;
        let known = statements.of(&wanted.organization, None, tables).await?;
        let (kafka, codec) = (self.kafka.clone(), Arc::clone(&self.codec));
        let reader = Reader { kafka, codec, handle: Handle::current(), progress: ProgressBar::hidden() };
        purge::purge(Arc::new(reader), &self.publisher, known, wanted).await.map_err(|error| match error {
            purge::Error::UnknownOrganization(id) => super::operators::no_organization(id.as_str()),
            error => {
                tracing::warn!(%error, "answers could not be forgotten");
                match error {
                    purge::Error::NotTaken(_) => Refusal::NotAcknowledged,
                    error => Refusal::JournalUnreadable { detail: error.to_string() },
                }
            }
        })
    }
}

/// What is asked for: `organization`, and perhaps `model` and `older_than`.
pub fn wanted(document: &Object, now: Timestamp) -> Result<PurgeCache, Refusal> {
    let invalid = |param, problem: String| Refusal::InvalidField { param, problem };
    for name in document.keys() {
        if !["organization", "model", "older_than"].contains(&name.as_str()) {
            let known = "known are organization, model and older_than";
            return Err(invalid("body", format!("{name:?} is not known; {known}")));
        }
    }
    let text = |param: &'static str| match document.get(param) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(invalid(param, "a string is expected".to_owned())),
    };
    let organization = text("organization")?.ok_or(Refusal::Missing { param: "organization" })?;
    let organization =
        OrganizationId::parse(organization).map_err(|error| invalid("organization", error.to_string()))?;
    let model = text("model")?.map(ModelName::parse).transpose();
    let model = model.map_err(|error| invalid("model", error.to_string()))?;
    let before = text("older_than")?.map(str::parse::<Moment>).transpose();
    let before = before.map_err(|problem| invalid("older_than", problem))?.map(|moment| moment.before(now));
    Ok(PurgeCache { organization, model, before })
}

/// What came of it, as JSON.
pub fn shown(organization: &OrganizationId, purged: Purged) -> Value {
    json!({
        "object": "cache.purge",
        "organization": organization.as_str(),
        "answers": purged.answers,
        "record": { "topic": "requests", "partition": purged.partition, "offset": purged.offset },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_purge_is_named() {
        let now = Timestamp::from_millis(3_600_000);
        let wanted = |value: Value| match value {
            Value::Object(document) => super::wanted(&document, now).map_err(|error| error.to_string()),
            other => panic!("{other}"),
        };
        let purge = wanted(json!({"organization": "acme", "model": "m", "older_than": "1h"})).unwrap();
        assert_eq!((purge.organization.as_str(), purge.before), ("acme", Some(Timestamp::from_millis(0))));
        let all = wanted(json!({"organization": "acme", "model": null})).unwrap();
        assert_eq!((all.model, all.before), (None, None));
        for (value, wrong) in [
            (json!({}), "you must provide a organization parameter"),
            (json!({"organization": 1}), "organization: a string"),
            (json!({"organization": "a\"b"}), "organization: organization has '\"' at byte 1"),
            (json!({"organization": "a", "model": ""}), "model: model is empty"),
            (json!({"organization": "a", "older_than": "soon"}), "older_than: \"soon\" is neither a time"),
            (json!({"organization": "a", "tenant": "b"}), "\"tenant\" is not known"),
        ] {
            let error = wanted(value.clone()).unwrap_err();
            assert!(error.contains(wrong), "{value}: {error}");
        }
    }
}
