//! The schema registry: ids of schemas, schemas of ids, and the compatibility of subjects.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use schema_registry_converter::async_impl::schema_registry::{SrSettings, perform_sr_call};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::SrCall;
use serde::Deserialize;
use serde_json::Value;

use super::Error;
use crate::causes::causes;
use crate::config;
use crate::records::Topic;

/// How long one call of the registry may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often, and how far apart, a schema is offered that somebody else is registering, too.
const REGISTER_ATTEMPTS: u32 = 10;
const REGISTER_INTERVAL: Duration = Duration::from_millis(100);
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// A schema registry with Confluent's API.
#[derive(Clone)]
pub struct Registry {
    url: String,
    topic_prefix: String,
    settings: SrSettings,
    /// For the calls that `schema_registry_converter` does not have.
    client: reqwest::Client,
}

impl Registry {
    /// `topic_prefix` is what the names of our topics begin with on this cluster.
    pub fn new(config: &config::Registry, topic_prefix: &str) -> Result<Self, Error> {
        crate::tls::install_provider();
        let url = config.url.trim_end_matches('/').to_owned();
        let failed = |detail: String| Error::Registry { url: url.clone(), detail };
        let settings = SrSettings::new_builder(url.clone())
            .no_proxy()
            .set_timeout(CALL_TIMEOUT)
            .build_with(builder(config)?)
            .map_err(|e| failed(e.error))?;
        let client = builder(config)?.no_proxy().timeout(CALL_TIMEOUT).build();
        let client = client.map_err(|e| failed(causes(&e)))?;
        Ok(Self { topic_prefix: topic_prefix.to_owned(), settings, client, url })
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
        self.id_of_text(&self.subject(topic), topic.schema()).await
    }

    async fn id_of_text(&self, subject: &str, schema: &str) -> Result<u32, Error> {
        let subject = subject.to_owned();
        let body = serde_json::json!({ "schema": schema }).to_string();
        match perform_sr_call(&self.settings, SrCall::PostForVersion(&subject, &body)).await {
            Ok(found) => found.id.ok_or(Error::NotRegistered { subject }),
            Err(e) if not_found(&e) => Err(Error::NotRegistered { subject }),
            Err(e) => Err(self.failed(&e).await),
        }
    }

    /// Registers the schema that we write for `topic`; the same schema again gives the same id.
    ///
    /// # Errors
    /// [`Error::Incompatible`] when the subject's compatibility does not allow it.
    pub async fn register(&self, topic: Topic) -> Result<u32, Error> {
        self.register_text(&self.subject(topic), topic.schema()).await
    }

    /// Registers a schema under a subject; the same schema again gives the same id.
    ///
    /// # Errors
    /// [`Error::Incompatible`] when the subject's compatibility does not allow it.
    pub async fn register_text(&self, subject: &str, schema: &str) -> Result<u32, Error> {
        let body = serde_json::json!({ "schema": schema }).to_string();
        let mut attempt = 1;
        loop {
            let subject = subject.to_owned();
            match perform_sr_call(&self.settings, SrCall::PostNew(&subject, &body)).await {
                Ok(registered) => return registered.id.ok_or(Error::NotRegistered { subject }),
                // Some registries also answer so when somebody else registers at the same moment.
                Err(e) if e.error.contains("status 409") => {
                    if let Ok(id) = self.id_of_text(&subject, schema).await {
                        return Ok(id);
                    }
                    let detail = e.cause.unwrap_or(e.error);
                    if attempt == REGISTER_ATTEMPTS || !detail.contains("already exists") {
                        return Err(Error::Incompatible { subject, detail });
                    }
                }
                Err(e) => return Err(self.failed(&e).await),
            }
            attempt += 1;
            tokio::time::sleep(REGISTER_INTERVAL).await;
        }
    }

    /// The text of schema `id`.
    pub async fn schema(&self, id: u32) -> Result<String, Error> {
        match perform_sr_call(&self.settings, SrCall::GetById(id)).await {
            Ok(found) => found.schema.ok_or(Error::NoSuchSchema { id }),
            Err(e) if not_found(&e) => Err(Error::NoSuchSchema { id }),
            Err(e) => Err(self.failed(&e).await),
        }
    }

    /// Whether a subject has any schema.
    pub async fn exists(&self, subject: &str) -> Result<bool, Error> {
        match perform_sr_call(&self.settings, SrCall::GetLatest(subject)).await {
            Ok(_) => Ok(true),
            Err(e) if not_found(&e) => Ok(false),
            Err(e) => Err(self.failed(&e).await),
        }
    }

    /// The compatibility that is set for a subject itself; `None` when it follows the registry's.
    pub async fn compatibility(&self, subject: &str) -> Result<Option<String>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(alias = "compatibilityLevel")]
            compatibility: Option<String>,
        }
        let call = self.client.get(self.address(&["config", subject]));
        match self.call(call).await? {
            Some(text) => {
                let answer: Answer = serde_json::from_str(&text).map_err(|e| self.error(e.to_string()))?;
                Ok(answer.compatibility.filter(|level| !level.is_empty()))
            }
            None => Ok(None),
        }
    }

    /// Sets the compatibility of a subject, for example `FULL_TRANSITIVE`.
    pub async fn set_compatibility(&self, subject: &str, level: &str) -> Result<(), Error> {
        let body = serde_json::json!({ "compatibility": level }).to_string();
        let address = self.address(&["config", subject]);
        let mut attempt = 1;
        loop {
            let call = self.client.put(&address).header("content-type", CONTENT_TYPE).body(body.clone());
            match self.call(call).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => return Err(self.error(format!("it has no place for the compatibility of {subject}"))),
                // Two writers at the same moment: one of them is told that the other's setting is there already.
                Err(error) if attempt == REGISTER_ATTEMPTS || !error.to_string().contains("already exists") => {
                    return Err(error);
                }
                Err(_) => {}
            }
            if self.compatibility(subject).await?.as_deref() == Some(level) {
                return Ok(());
            }
            attempt += 1;
            tokio::time::sleep(REGISTER_INTERVAL).await;
        }
    }

    /// Why the registry would not take a schema under a subject; nothing when it would.
    pub async fn incompatibilities(&self, subject: &str, schema: &str) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            is_compatible: bool,
            #[serde(default)]
            messages: Vec<Value>,
        }
        let body = serde_json::json!({ "schema": schema }).to_string();
        let mut url = self.address(&["compatibility", "subjects", subject, "versions"]);
        url.push_str("?verbose=true");
        let call = self.client.post(url).header("content-type", CONTENT_TYPE).body(body);
        let Some(text) = self.call(call).await? else { return Ok(Vec::new()) };
        let answer: Answer = serde_json::from_str(&text).map_err(|e| self.error(e.to_string()))?;
        if answer.is_compatible {
            return Ok(Vec::new());
        }
        let shown = |message: &Value| message.as_str().map_or_else(|| message.to_string(), str::to_owned);
        let messages: Vec<String> = answer.messages.iter().map(shown).collect();
        Ok(if messages.is_empty() { vec!["no reason given".to_owned()] } else { messages })
    }

    /// The body of a good answer; `None` when there is no such thing.
    async fn call(&self, call: reqwest::RequestBuilder) -> Result<Option<String>, Error> {
        let answer = call.send().await.map_err(|e| self.unanswered(&e.without_url()))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|e| self.error(causes(&e.without_url())))?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(text)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Error::RegistryCredentials { url: self.url.clone(), detail: format!("{status}: {text}") })
            }
            status => Err(self.error(format!("{status}: {text}"))),
        }
    }

    fn address(&self, path: &[&str]) -> String {
        format!("{}/{}", self.url, path.join("/"))
    }

    fn unanswered(&self, error: &reqwest::Error) -> Error {
        let (url, detail) = (self.url.clone(), causes(error));
        match crate::tls::is_distrust(error) {
            true => Error::RegistryCertificate { url, detail },
            false => Error::Registry { url, detail },
        }
    }

    fn error(&self, detail: String) -> Error {
        Error::Registry { url: self.url.clone(), detail }
    }

    /// Says why a call of `schema_registry_converter` failed. Its errors leave out what a certificate or a password has
    /// to do with it; asking once more in our own way tells.
    async fn failed(&self, error: &SRCError) -> Error {
        if let Err(told) = self.call(self.client.get(self.address(&["subjects"]))).await {
            return told;
        }
        match &error.cause {
            Some(cause) => self.error(format!("{}: {cause}", error.error)),
            None => self.error(error.error.clone()),
        }
    }
}

/// A client that trusts whom the configuration says and authenticates with each call.
fn builder(config: &config::Registry) -> Result<reqwest::ClientBuilder, Error> {
    let mut builder = reqwest::Client::builder();
    if config.url.starts_with("https://") {
        builder = builder.tls_backend_preconfigured(crate::tls::client(config.ca_file.as_deref())?);
    }
    let authorization = match (&config.user, &config.password, &config.token) {
        (Some(user), Some(password), _) => {
            format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{}", password.expose())))
        }
        (_, _, Some(token)) => format!("Bearer {}", token.expose()),
        (_, _, None) => return Ok(builder),
    };
    let mut authorization = HeaderValue::try_from(authorization).map_err(|_| Error::UnusableCredentials)?;
    authorization.set_sensitive(true);
    Ok(builder.default_headers(HeaderMap::from_iter([(AUTHORIZATION, authorization)])))
}

fn not_found(error: &SRCError) -> bool {
    error.error.contains("status 404")
}
