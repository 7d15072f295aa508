//! The schema registry: ids of schemas, and schemas of ids.

use std::time::Duration;

use schema_registry_converter::async_impl::schema_registry::{SrSettings, perform_sr_call};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::SrCall;

use super::Error;
use crate::records::Topic;

/// How long one call of the registry may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A schema registry with Confluent's API.
pub struct Registry {
    url: String,
    topic_prefix: String,
    settings: SrSettings,
}

impl Registry {
    /// `topic_prefix` is what the names of our topics begin with on this cluster.
    pub fn new(url: &str, topic_prefix: &str) -> Result<Self, Error> {
        crate::tls::install_provider();
        let url = url.trim_end_matches('/').to_owned();
        let settings = SrSettings::new_builder(url.clone())
            .no_proxy()
            .set_timeout(CALL_TIMEOUT)
            .build()
            .map_err(|e| Error::Registry { url: url.clone(), detail: e.error })?;
        Ok(Self { url, topic_prefix: topic_prefix.to_owned(), settings })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The default TopicNameStrategy.
    pub fn subject(&self, topic: Topic) -> String {
        format!("{}{}-value", self.topic_prefix, topic.name())
    }

    /// The id under which the schema that we write for `topic` is registered.
    pub async fn id_of(&self, topic: Topic) -> Result<u32, Error> {
        let subject = self.subject(topic);
        let body = serde_json::json!({ "schema": topic.schema() }).to_string();
        match perform_sr_call(&self.settings, SrCall::PostForVersion(&subject, &body)).await {
            Ok(found) => found.id.ok_or(Error::NotRegistered { subject }),
            Err(e) if not_found(&e) => Err(Error::NotRegistered { subject }),
            Err(e) => Err(self.failed(&e)),
        }
    }

    /// Registers the schema that we write for `topic`; the same schema again gives the same id.
    pub async fn register(&self, topic: Topic) -> Result<u32, Error> {
        let subject = self.subject(topic);
        let body = serde_json::json!({ "schema": topic.schema() }).to_string();
        let registered = perform_sr_call(&self.settings, SrCall::PostNew(&subject, &body));
        let registered = registered.await.map_err(|e| self.failed(&e))?;
        registered.id.ok_or(Error::NotRegistered { subject })
    }

    /// The text of schema `id`.
    pub async fn schema(&self, id: u32) -> Result<String, Error> {
        match perform_sr_call(&self.settings, SrCall::GetById(id)).await {
            Ok(found) => found.schema.ok_or(Error::NoSuchSchema { id }),
            Err(e) if not_found(&e) => Err(Error::NoSuchSchema { id }),
            Err(e) => Err(self.failed(&e)),
        }
    }

    fn failed(&self, error: &SRCError) -> Error {
        let detail = match &error.cause {
            Some(cause) => format!("{}: {cause}", error.error),
            None => error.error.clone(),
        };
        Error::Registry { url: self.url.clone(), detail }
    }
}

fn not_found(error: &SRCError) -> bool {
    error.error.contains("status 404")
}
