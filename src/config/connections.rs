//! How the engines are reached: where they are, who we say we are, and whose certificates we trust.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::environment::{Environment, Secret};
use super::{Config, Error};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kafka {
    /// `host:port`, comma separated.
    pub brokers: String,
    /// What the names of all our topics and consumer groups begin with.
    pub topic_prefix: String,
    /// Whether connections are encrypted, and whether they authenticate.
    pub security_protocol: SecurityProtocol,
    pub sasl_mechanism: Option<SaslMechanism>,
    pub sasl_username: Option<String>,
    /// A reference in the file (`env:NAME`).
    pub sasl_password: Option<Secret>,
    /// Certificates (PEM) that are trusted; default: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate and its key (PEM), for brokers that ask for one.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// How long a record may wait for its acknowledgement.
    pub message_timeout_ms: u64,
    /// Most bytes of records that wait for their acknowledgement.
    pub producer_buffer_kbytes: u32,
    /// Without a heartbeat for so long, a consumer loses its partitions.
    pub session_timeout_ms: u64,
    /// Whether a process that stops keeps its partitions for `session_timeout_ms`, for its own return under the same
    /// `instance`. Otherwise the others take them over at once.
    pub static_membership: bool,
    /// Largest record.
    pub record_bytes_max: usize,
    /// Further properties of librdkafka for every client, and for the producer; they win over what we set.
    pub properties: Properties,
    pub producer_properties: Properties,
}

/// As librdkafka and Kafka name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityProtocol {
    #[default]
    Plaintext,
    Ssl,
    SaslPlaintext,
    SaslSsl,
}

impl SecurityProtocol {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Ssl => "ssl",
            Self::SaslPlaintext => "sasl_plaintext",
            Self::SaslSsl => "sasl_ssl",
        }
    }

    const fn encrypts(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }

    const fn authenticates(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SaslMechanism {
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl SaslMechanism {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// Properties of librdkafka. A value may be a reference (`env:NAME`); those that are secrets print as `***`.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Properties(pub BTreeMap<String, String>);

impl Properties {
    fn shown(&self) -> BTreeMap<&str, &str> {
        let secret = |name: &str| {
            ["password", "secret", "token", "pem", "ssl_key", "oauthbearer.config"]
                .iter()
                .any(|part| name.contains(part))
        };
        self.0.iter().map(|(name, value)| (name.as_str(), if secret(name) { "***" } else { value })).collect()
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().fmt(f)
    }
}

impl Serialize for Properties {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.shown().serialize(serializer)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Base URL of the Confluent-compatible API.
    pub url: String,
    /// Basic authentication.
    pub user: Option<String>,
    /// A reference in the file (`env:NAME`).
    pub password: Option<Secret>,
    /// Bearer token, instead of user and password; a reference in the file.
    pub token: Option<Secret>,
    /// Certificates (PEM) that are trusted; default: those of the system.
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClickHouse {
    /// HTTP address.
    pub url: String,
    pub database: String,
    pub user: String,
    /// A reference in the file (`env:NAME`).
    pub password: Option<Secret>,
    /// Certificates (PEM) that are trusted; default: those of the system.
    pub ca_file: Option<PathBuf>,
    /// How long one insert or query may take.
    pub timeout_ms: u64,
    /// Days after which rows are dropped; default: never. Applied by `topology apply`.
    pub usage_ttl_days: Option<u32>,
    pub routing_decisions_ttl_days: Option<u32>,
    pub refusals_ttl_days: Option<u32>,
    pub budget_events_ttl_days: Option<u32>,
    pub cache_lookups_ttl_days: Option<u32>,
    pub cache_changes_ttl_days: Option<u32>,
    pub replay_decisions_ttl_days: Option<u32>,
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".into(),
            topic_prefix: String::new(),
            security_protocol: SecurityProtocol::Plaintext,
            sasl_mechanism: None,
            sasl_username: None,
            sasl_password: None,
            ca_file: None,
            certificate_file: None,
            key_file: None,
            message_timeout_ms: 15_000,
            producer_buffer_kbytes: 32_768,
            session_timeout_ms: 6_000,
            static_membership: false,
            record_bytes_max: 8 << 20,
            properties: Properties::default(),
            producer_properties: Properties::default(),
        }
    }
}

impl Default for Registry {
    fn default() -> Self {
        let url = "http://127.0.0.1:8081/apis/ccompat/v7".into();
        Self { url, user: None, password: None, token: None, ca_file: None }
    }
}

impl Default for ClickHouse {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8123".into(),
            database: "tollstream".into(),
            user: "default".into(),
            password: None,
            ca_file: None,
            timeout_ms: 30_000,
            usage_ttl_days: None,
            routing_decisions_ttl_days: None,
            refusals_ttl_days: None,
            budget_events_ttl_days: None,
            cache_lookups_ttl_days: None,
            cache_changes_ttl_days: None,
            replay_decisions_ttl_days: None,
        }
    }
}

/// Puts the values of the environment in the place of the references.
pub(super) fn resolve(config: &mut Config, environment: &Environment) -> Result<(), Error> {
    let secrets = [
        ("kafka.sasl_password", &mut config.kafka.sasl_password),
        ("registry.password", &mut config.registry.password),
        ("registry.token", &mut config.registry.token),
        ("clickhouse.password", &mut config.clickhouse.password),
        ("processor.fingerprint_key", &mut config.processor.fingerprint_key),
    ];
    for (key, secret) in secrets {
        if let Some(secret) = secret {
            *secret = environment.resolve(key, secret.expose())?;
        }
    }
    let properties = [
        ("kafka.properties", &mut config.kafka.properties),
        ("kafka.producer_properties", &mut config.kafka.producer_properties),
    ];
    for (key, properties) in properties {
        for value in properties.0.values_mut().filter(|value| value.starts_with("env:")) {
            *value = environment.resolve(key, value)?.expose().to_owned();
        }
    }
    Ok(())
}

const TAKES_SASL: &str = "kafka.security_protocol asks for SASL; give sasl_mechanism, sasl_username and sasl_password";
const NO_SASL: &str = "kafka.security_protocol does not authenticate; make it sasl_ssl, or take this out";
const NO_TLS: &str = "kafka.security_protocol does not encrypt; make it ssl or sasl_ssl, or take this out";
const PAIR: &str = "kafka.certificate_file and kafka.key_file go together; give both or none";

/// Checks which settings need, exclude or presuppose each other.
pub(super) fn check(config: &Config) -> Result<(), Error> {
    check_kafka(&config.kafka)?;
    let registry = &config.registry;
    let providers = &config.providers;
    let upstreams = [
        ("providers.upstream_override", &providers.upstream_override),
        ("providers.simulator_url", &providers.simulator_url),
    ];
    for (key, url) in upstreams {
        if let Some(url) = url {
            check_address(key, url, "", None)?;
        }
    }
    check_address("registry.url", &registry.url, "registry.ca_file", registry.ca_file.as_deref())?;
    let user_and_password = "registry.user and registry.password go together; give both or none";
    match (&registry.user, &registry.password, &registry.token) {
        (Some(_), None, _) => return Err(Error::Missing { key: "registry.password", why: user_and_password }),
        (None, Some(_), _) => return Err(Error::Missing { key: "registry.user", why: user_and_password }),
        (Some(_), Some(_), Some(_)) => {
            let why = "registry.user and registry.password are set, too; take out one of the two ways";
            return Err(Error::Useless { key: "registry.token", why });
        }
        (None, None, _) | (Some(_), Some(_), None) => {}
    }
    let clickhouse = &config.clickhouse;
    let kept = [
        ("clickhouse.usage_ttl_days", clickhouse.usage_ttl_days),
        ("clickhouse.routing_decisions_ttl_days", clickhouse.routing_decisions_ttl_days),
        ("clickhouse.refusals_ttl_days", clickhouse.refusals_ttl_days),
        ("clickhouse.budget_events_ttl_days", clickhouse.budget_events_ttl_days),
        ("clickhouse.cache_lookups_ttl_days", clickhouse.cache_lookups_ttl_days),
        ("clickhouse.cache_changes_ttl_days", clickhouse.cache_changes_ttl_days),
        ("clickhouse.replay_decisions_ttl_days", clickhouse.replay_decisions_ttl_days),
    ];
    if let Some((key, _)) = kept.into_iter().find(|(_, days)| *days == Some(0)) {
        let problem = "must be more than 0; leave it out to keep rows for ever";
        return Err(Error::Invalid { key, value: "0".into(), problem });
    }
    check_address("clickhouse.url", &clickhouse.url, "clickhouse.ca_file", clickhouse.ca_file.as_deref())
}

/// A record that is on the wire may wait for twice its time; the end of a call must be known before its request is given up,
/// 30 s (`processor::state::DEADLINE_GRACE`) after its deadline.
const MESSAGE_TIMEOUT_MS_MAX: u64 = crate::processor::state::DEADLINE_GRACE.as_millis() as u64 / 2;

fn check_kafka(kafka: &Kafka) -> Result<(), Error> {
    if kafka.brokers.split(',').any(|broker| broker.trim().is_empty()) {
        let problem = "must be host:port, or several of them with commas between";
        return Err(Error::Invalid { key: "kafka.brokers", value: kafka.brokers.clone(), problem });
    }
    if kafka.message_timeout_ms > MESSAGE_TIMEOUT_MS_MAX {
        let problem = "must be at most 15000: what is not acknowledged by then is decided again";
        let value = kafka.message_timeout_ms.to_string();
        return Err(Error::Invalid { key: "kafka.message_timeout_ms", value, problem });
    }
    let protocol = kafka.security_protocol;
    let sasl = [
        ("kafka.sasl_mechanism", kafka.sasl_mechanism.is_some()),
        ("kafka.sasl_username", kafka.sasl_username.is_some()),
        ("kafka.sasl_password", kafka.sasl_password.is_some()),
    ];
    for (key, given) in sasl {
        match (protocol.authenticates(), given) {
            (true, false) => return Err(Error::Missing { key, why: TAKES_SASL }),
            (false, true) => return Err(Error::Useless { key, why: NO_SASL }),
            (true, true) | (false, false) => {}
        }
    }
    let files = [
        ("kafka.ca_file", &kafka.ca_file),
        ("kafka.certificate_file", &kafka.certificate_file),
        ("kafka.key_file", &kafka.key_file),
    ];
    for (key, file) in files {
        let Some(path) = file else { continue };
        if !protocol.encrypts() {
            return Err(Error::Useless { key, why: NO_TLS });
        }
        check_file(key, path)?;
    }
    match (&kafka.certificate_file, &kafka.key_file) {
        (Some(_), None) => Err(Error::Missing { key: "kafka.key_file", why: PAIR }),
        (None, Some(_)) => Err(Error::Missing { key: "kafka.certificate_file", why: PAIR }),
        (Some(_), Some(_)) | (None, None) => Ok(()),
    }
}

fn check_address(key: &'static str, url: &str, ca_key: &'static str, ca_file: Option<&Path>) -> Result<(), Error> {
    let Some((scheme @ ("http" | "https"), rest)) = url.split_once("://") else {
        return Err(Error::Invalid { key, value: url.to_owned(), problem: "must begin with http:// or https://" });
    };
    if !reqwest::Url::parse(url).is_ok_and(|url| url.has_host()) {
        return Err(Error::Invalid { key, value: url.to_owned(), problem: "is no URL" });
    }
    // The address is printed in errors.
    if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
        return Err(Error::Useless {
            key,
            why: "user and password do not stand in addresses; they have their own settings",
        });
    }
    match ca_file {
        Some(_) if scheme == "http" => {
            Err(Error::Useless { key: ca_key, why: "the address does not encrypt; make it https://, or take this out" })
        }
        Some(path) => check_file(ca_key, path),
        None => Ok(()),
    }
}

fn check_file(key: &'static str, path: &Path) -> Result<(), Error> {
    let read = std::fs::read(path).map(|_| ());
    read.map_err(|source| Error::File { key, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        [("PASSWORD".to_owned(), "hunter2".to_owned())].into_iter().collect()
    }

    /// What is wrong with a file.
    fn problem(text: &str) -> String {
        let mut config: Config = toml::from_str(text).unwrap();
        resolve(&mut config, &environment())
            .and_then(|()| config.validate())
            .map_or_else(|e| e.to_string(), |()| String::new())
    }

    #[test]
    fn a_combination_that_cannot_work_is_refused_with_the_setting_and_what_to_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display();
        let sasl = "sasl_mechanism = 'PLAIN'\nsasl_username = 'u'\nsasl_password = 'env:PASSWORD'";
        for (text, parts) in [
            ("[kafka]\nbrokers = ''".to_owned(), ["kafka.brokers", "host:port"]),
            ("[kafka]\nbrokers = 'a:9092,'".to_owned(), ["kafka.brokers", "host:port"]),
            ("[kafka]\nmessage_timeout_ms = 15001".to_owned(), ["kafka.message_timeout_ms = 15001", "at most 15000"]),
            ("[kafka]\nsecurity_protocol = 'sasl_ssl'".to_owned(), ["kafka.sasl_mechanism is missing", TAKES_SASL]),
            (
                "[kafka]\nsecurity_protocol = 'sasl_ssl'\nsasl_mechanism = 'PLAIN'\nsasl_username = 'u'".to_owned(),
                ["kafka.sasl_password is missing", TAKES_SASL],
            ),
            (format!("[kafka]\n{sasl}"), ["kafka.sasl_mechanism cannot be", NO_SASL]),
            (format!("[kafka]\nsecurity_protocol = 'ssl'\n{sasl}"), ["kafka.sasl_mechanism cannot be", NO_SASL]),
            (format!("[kafka]\nca_file = '{path}'"), ["kafka.ca_file cannot be", NO_TLS]),
            (
                format!("[kafka]\nsecurity_protocol = 'sasl_plaintext'\n{sasl}\nca_file = '{path}'"),
                ["kafka.ca_file cannot be", NO_TLS],
            ),
            (
                format!("[kafka]\nsecurity_protocol = 'ssl'\ncertificate_file = '{path}'"),
                ["kafka.key_file is missing", PAIR],
            ),
            (
                "[kafka]\nsecurity_protocol = 'ssl'\nca_file = '/nowhere/ca.pem'".to_owned(),
                ["kafka.ca_file = /nowhere/ca.pem", "No such file"],
            ),
            ("[registry]\nuser = 'u'".to_owned(), ["registry.password is missing", "go together"]),
            ("[registry]\npassword = 'env:PASSWORD'".to_owned(), ["registry.user is missing", "go together"]),
            (
                "[registry]\nuser = 'u'\npassword = 'env:PASSWORD'\ntoken = 'env:PASSWORD'".to_owned(),
                ["registry.token cannot be", "one of the two"],
            ),
            (format!("[registry]\nca_file = '{path}'"), ["registry.ca_file cannot be", "make it https://"]),
            (format!("[clickhouse]\nca_file = '{path}'"), ["clickhouse.ca_file cannot be", "make it https://"]),
            (
                "[providers]\nupstream_override = 'nowhere'".to_owned(),
                ["providers.upstream_override = nowhere", "http"],
            ),
            ("[providers]\nsimulator_url = 'http://'".to_owned(), ["providers.simulator_url = http://", "is no URL"]),
            ("[clickhouse]\nurl = 'ftp://x'".to_owned(), ["clickhouse.url = ftp://x", "http:// or https://"]),
            ("[registry]\nurl = 'https://u:hunter2@r'".to_owned(), ["registry.url cannot be", "their own settings"]),
        ] {
            let found = problem(&text);
            assert!(parts.iter().all(|part| found.contains(part)), "{text}: {found}");
            assert!(!found.contains("hunter2"), "{found}");
        }
    }

    #[test]
    fn what_fits_together_is_taken() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display();
        for text in [
            format!("[kafka]\nsecurity_protocol = 'ssl'\nca_file = '{path}'"),
            format!("[kafka]\nsecurity_protocol = 'ssl'\ncertificate_file = '{path}'\nkey_file = '{path}'"),
            format!("[registry]\nurl = 'https://r'\ntoken = 'env:PASSWORD'\nca_file = '{path}'"),
            format!("[clickhouse]\nurl = 'https://c:8443'\nuser = 'u'\npassword = 'env:PASSWORD'\nca_file = '{path}'"),
        ] {
            assert_eq!(problem(&text), "", "{text}");
        }
        for (mechanism, parsed) in [
            ("PLAIN", SaslMechanism::Plain),
            ("SCRAM-SHA-256", SaslMechanism::ScramSha256),
            ("SCRAM-SHA-512", SaslMechanism::ScramSha512),
        ] {
            let text = format!(
                "[kafka]\nsecurity_protocol = 'sasl_ssl'\nsasl_mechanism = '{mechanism}'\nsasl_username = 'u'\n\
                 sasl_password = 'env:PASSWORD'"
            );
            assert_eq!(problem(&text), "", "{text}");
            let config: Config = toml::from_str(&text).unwrap();
            assert_eq!(config.kafka.sasl_mechanism, Some(parsed));
            assert_eq!(parsed.name(), mechanism);
        }
    }

    #[test]
    fn a_secret_is_a_reference_in_the_file_and_a_value_afterwards() {
        let text = "[clickhouse]\npassword = 'env:PASSWORD'\n[kafka.properties]\n'ssl.key.password' = 'env:PASSWORD'\n\
                    [processor]\nfingerprint_key = 'env:PASSWORD'";
        let mut config: Config = toml::from_str(text).unwrap();
        resolve(&mut config, &environment()).unwrap();
        assert_eq!(config.clickhouse.password.as_ref().map(Secret::expose), Some("hunter2"));
        assert_eq!(config.processor.fingerprint_key.as_ref().map(Secret::expose), Some("hunter2"));
        assert_eq!(config.kafka.properties.0["ssl.key.password"], "hunter2");
        let shown = format!("{config:?}{}", toml::to_string(&config).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");

        let written = problem("[clickhouse]\npassword = 'in the file'");
        assert!(written.starts_with("clickhouse.password must be a reference") && !written.contains("in the file"));
        let unknown = problem("[registry]\nuser = 'u'\npassword = 'env:NOWHERE'");
        assert!(unknown.contains("registry.password = env:NOWHERE") && unknown.contains(".env"), "{unknown}");
    }
}
