//! Production's connections on real engines: Kafka with TLS, passwords and certificates, a ClickHouse with a password, and
//! TLS before ClickHouse and the registry. The certificates are made here.

mod acls;
mod authority;
mod front;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tollstream::config::{Config, SaslMechanism, Secret, SecurityProtocol};
use tollstream::node::{Node, Role};
use tollstream::runtime::reach;
use tollstream::simulate;
use tollstream::stack::{self, Options, Ports, Progress, Running};

use self::authority::Authority;
use self::front::Front;
use super::fixture::eventually;

/// Longer than any refusal may take.
const REFUSAL: Duration = Duration::from_secs(15);

const KAFKA_SCRAM: &str = "scram-of-the-test";
const KAFKA_PLAIN: &str = "plain-of-the-test";
const REGISTRY: &str = "registry-of-the-test";
const REGISTRY_TOKEN: &str = "token-of-the-test";
const CLICKHOUSE: &str = "clickhouse-of-the-test";
const WRONG: &str = "wrong-of-the-test";

/// The environment of the commands; the configuration has references to it.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("KAFKA_SCRAM", KAFKA_SCRAM),
    ("KAFKA_PLAIN", KAFKA_PLAIN),
    ("REGISTRY", REGISTRY),
    ("REGISTRY_TOKEN", REGISTRY_TOKEN),
    ("CLICKHOUSE", CLICKHOUSE),
    ("WRONG", WRONG),
];

/// Engines that ask who comes, and everything that a client of theirs needs.
struct Secured {
    running: Running,
    registry: Front,
    clickhouse: Front,
    /// `host:port` where Kafka wants TLS and a password, and where it wants TLS and a certificate.
    sasl_ssl: String,
    mutual_tls: String,
    /// Who signed the servers, and somebody who did not.
    ca: PathBuf,
    other_ca: PathBuf,
    /// Of a client, signed by `ca`.
    certificate: PathBuf,
    key: PathBuf,
    directory: tempfile::TempDir,
}

fn write(path: PathBuf, content: &str) -> PathBuf {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    path
}

/// The settings that make the broker of a laptop one of production; see stack/README.md.
fn kafka_settings(ports: &Ports, sasl_ssl: u16, mutual_tls: u16, server: &Path, ca: &Path) -> String {
    let (plaintext, controller) = (ports.kafka, ports.kafka_controller);
    format!(
        "listeners=PLAINTEXT://127.0.0.1:{plaintext},CONTROLLER://127.0.0.1:{controller},\
         SASL_SSL://127.0.0.1:{sasl_ssl},SSL://127.0.0.1:{mutual_tls}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{plaintext},SASL_SSL://127.0.0.1:{sasl_ssl},\
         SSL://127.0.0.1:{mutual_tls}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL\n\
         ssl.keystore.type=PEM\nssl.keystore.location={}\nssl.truststore.type=PEM\nssl.truststore.location={}\n\
         listener.name.ssl.ssl.client.auth=required\n\
         sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512\n\
         listener.name.sasl_ssl.plain.sasl.jaas.config=\
         org.apache.kafka.common.security.plain.PlainLoginModule required user_deployer=\"{KAFKA_PLAIN}\";\n\
         listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=\
         org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
         authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
         super.users=User:ANONYMOUS;User:CN=client\n",
        server.display(),
        ca.display()
    )
}

/// Users as ClickHouse reads them at its start, with what the guide grants them and no more.
fn clickhouse_users() -> String {
    let guide = std::fs::read_to_string("docs/production.md").unwrap();
    let mut users = String::new();
    for user in ["gateway", "deployer"] {
        let end = format!(" TO {user};");
        let granted = guide.lines().filter_map(|line| line.strip_suffix(end.as_str()));
        let grants: String = granted.map(|grant| format!("<query>{grant}</query>")).collect();
        assert!(!grants.is_empty(), "the guide has no grant for {user}");
        users.push_str(&format!(
            "<{user}><password>{CLICKHOUSE}</password><networks><ip>::/0</ip></networks><profile>default</profile>\
             <quota>default</quota><grants>{grants}</grants></{user}>"
        ));
    }
    format!("<clickhouse><users>{users}</users></clickhouse>")
}

impl Secured {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let (authority, other) = (Authority::new("ca", directory.path()), Authority::new("other", directory.path()));
        let (broker, client) = (authority.sign("broker"), authority.sign("client"));
        let server = write(at("broker.pem"), &format!("{}{}", broker.key, broker.certificate));
        let certificate = write(at("client.pem"), &client.certificate);
        let key = write(at("client.key"), &client.key);

        let mut options = Options::new(at("stack")).unwrap();
        options.ports = Ports::free().unwrap();
        let (sasl_ssl, mutual_tls) = (stack::free_port().unwrap(), stack::free_port().unwrap());
        let settings = kafka_settings(&options.ports, sasl_ssl, mutual_tls, &server, &authority.file);
        write(at("stack/kafka/server.d/secured.properties"), &settings);
        write(at("stack/clickhouse/etc/users.d/secured.xml"), &clickhouse_users());
        let engines = options.engines.clone();
        let running = stack::up(options, &Progress::Quiet).await.unwrap();
        let kafka = running.addresses.kafka.clone();
        let user = move || add_scram_user(&engines, &kafka);
        tokio::task::spawn_blocking(user).await.unwrap();

        let admitted = vec![
            format!("Basic {}", BASE64_STANDARD.encode(format!("gateway:{REGISTRY}"))),
            format!("Bearer {REGISTRY_TOKEN}"),
        ];
        let registry = running.addresses.registry.trim_end_matches("/apis/ccompat/v7").to_owned();
        let registry = Front::start(&registry, authority.server(), Some(admitted)).await;
        let clickhouse = Front::start(&running.addresses.clickhouse, authority.server(), None).await;
        let at = |port: u16| format!("127.0.0.1:{port}");
        Self {
            sasl_ssl: at(sasl_ssl),
            mutual_tls: at(mutual_tls),
            ca: authority.file,
            other_ca: other.file,
            certificate,
            key,
            running,
            registry,
            clickhouse,
            directory,
        }
    }

    /// What the gateway runs with: SCRAM, a user for the registry, a user for ClickHouse, all over TLS.
    fn config(&self) -> Config {
        let mut config = Config { instance: "secured".to_owned(), ..Config::default() };
        config.kafka.brokers.clone_from(&self.sasl_ssl);
        config.kafka.security_protocol = SecurityProtocol::SaslSsl;
        config.kafka.sasl_mechanism = Some(SaslMechanism::ScramSha512);
        config.kafka.sasl_username = Some("gateway".to_owned());
        config.kafka.sasl_password = Some(Secret::new("env:KAFKA_SCRAM".to_owned()));
        config.kafka.ca_file = Some(self.ca.clone());
        config.kafka.session_timeout_ms = 6_000;
        config.registry.url = format!("https://{}/apis/ccompat/v7", self.registry.address);
        config.registry.user = Some("gateway".to_owned());
        config.registry.password = Some(Secret::new("env:REGISTRY".to_owned()));
        config.registry.ca_file = Some(self.ca.clone());
        config.clickhouse.url = format!("https://localhost:{}", self.clickhouse.address.port());
        config.clickhouse.user = "gateway".to_owned();
        config.clickhouse.password = Some(Secret::new("env:CLICKHOUSE".to_owned()));
        config.clickhouse.ca_file = Some(self.ca.clone());
        config.facade.listen.set_port(0);
        config.admin.listen.set_port(0);
        config.sink.batch_ms = 100;
        config
    }

    /// The same as a file, with the references that a person would write.
    fn file(&self, config: &Config) -> PathBuf {
        let mut tree = toml::Table::try_from(config).unwrap();
        let secrets = [
            ("kafka", "sasl_password", &config.kafka.sasl_password),
            ("registry", "password", &config.registry.password),
            ("registry", "token", &config.registry.token),
            ("clickhouse", "password", &config.clickhouse.password),
        ];
        for (section, key, secret) in secrets {
            if let (Some(secret), Some(section)) = (secret, tree[section].as_table_mut()) {
                section.insert(key.to_owned(), secret.expose().into());
            }
        }
        write(self.directory.path().join("tollstream.toml"), &tree.to_string())
    }

    async fn tollstream(&self, config: &Config, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollstream"));
        command.args(arguments).arg("--config").arg(self.file(config)).envs(ENVIRONMENT).stdin(Stdio::null());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn tollstream_well(&self, config: &Config, arguments: &[&str]) -> String {
        let output = self.tollstream(config, arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A command ends soon with an error that has these parts, and prints no secret.
    async fn refused(&self, config: &Config, arguments: &[&str], parts: &[&str]) {
        let begun = Instant::now();
        let output = self.tollstream(config, arguments).await;
        let taken = begun.elapsed();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && taken < REFUSAL, "{arguments:?} took {taken:?}: {said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} are missing in: {said}");
        assert!(!ENVIRONMENT.iter().any(|(_, secret)| said.contains(secret)), "a secret in: {said}");
    }

    /// Those of the guide, and no others.
    async fn give_acls(&self, principal: &'static str) {
        let brokers = self.running.addresses.kafka.clone();
        tokio::task::spawn_blocking(move || acls::give(principal, &brokers)).await.unwrap();
    }

    async fn rows(&self, query: &str) -> Vec<Value> {
        let asked =
            reqwest::Client::new().post(&self.running.addresses.clickhouse).body(format!("{query} FORMAT JSONEachRow"));
        let text = asked.send().await.unwrap().error_for_status().unwrap().text().await.unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// With Kafka's own tool, on the listener that asks for nothing.
fn add_scram_user(engines: &Path, brokers: &str) {
    let installed = stack::install(engines, &Progress::Quiet).unwrap();
    let output = Command::new(installed.java)
        .args(["-cp", &format!("{}/libs/*", installed.kafka.display()), "kafka.admin.ConfigCommand"])
        .args(["--bootstrap-server", brokers, "--entity-type", "users", "--entity-name", "gateway", "--alter"])
        .args(["--add-config", &format!("SCRAM-SHA-512=[iterations=4096,password={KAFKA_SCRAM}]")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The configuration as a process has it that has read the environment.
fn resolved(config: &Config) -> Config {
    let mut config = config.clone();
    let secrets = [
        &mut config.kafka.sasl_password,
        &mut config.registry.password,
        &mut config.registry.token,
        &mut config.clickhouse.password,
    ];
    for secret in secrets.into_iter().flatten() {
        let reference = secret.expose().to_owned();
        let (_, value) = ENVIRONMENT.iter().find(|(name, _)| reference == format!("env:{name}")).unwrap();
        *secret = Secret::new((*value).to_owned());
    }
    config
}

#[tokio::test]
async fn engines_that_ask_who_comes_are_used_with_tls_and_passwords_and_refuse_the_wrong_ones() {
    tollstream::tls::install_provider();
    let secured = Secured::start().await;
    passwords_that_are_wrong_are_named(&secured).await;
    servers_that_nobody_vouches_for_are_refused(&secured).await;
    let key = a_deployer_with_plain_and_a_token_applies_the_topology(&secured).await;
    a_request_goes_through_to_its_row(&secured, &key).await;
    a_certificate_stands_for_a_password(&secured).await;
    secured.running.stop().await.unwrap();
}

const APPLY: [&str; 3] = ["topology", "apply", "--yes"];
const RUN: [&str; 3] = ["run", "--roles", "facade"];

async fn passwords_that_are_wrong_are_named(secured: &Secured) {
    let wrong = || Some(Secret::new("env:WRONG".to_owned()));
    let mut config = secured.config();
    config.kafka.sasl_password = wrong();
    let scram = ["kafka at", "does not accept these credentials", "kafka.sasl_password", "SCRAM-SHA-512"];
    secured.refused(&config, &APPLY, &scram).await;
    config.kafka.sasl_mechanism = Some(SaslMechanism::Plain);
    secured.refused(&config, &APPLY, &["does not accept these credentials", "kafka.sasl_password"]).await;

    let mut config = secured.config();
    config.registry.password = wrong();
    let registry = ["schema registry", "does not accept these credentials", "registry.password", "401"];
    secured.refused(&config, &APPLY, &registry).await;
    secured.refused(&config, &RUN, &registry).await;

    let mut config = secured.config();
    config.clickhouse.password = wrong();
    secured.refused(&config, &APPLY, &["clickhouse at https://", "Authentication failed"]).await;
}

async fn servers_that_nobody_vouches_for_are_refused(secured: &Secured) {
    let mut config = secured.config();
    config.kafka.ca_file = Some(secured.other_ca.clone());
    secured.refused(&config, &APPLY, &["no TLS connection with kafka", "kafka.ca_file", "verify"]).await;
    let mut config = secured.config();
    // Without a file the system's authorities count, which do not know ours either.
    config.kafka.ca_file = None;
    secured.refused(&config, &APPLY, &["no TLS connection with kafka", "kafka.ca_file"]).await;

    let mut config = secured.config();
    config.registry.ca_file = Some(secured.other_ca.clone());
    let registry = ["certificate of the schema registry", "registry.ca_file", "invalid peer certificate"];
    secured.refused(&config, &APPLY, &registry).await;
    secured.refused(&config, &RUN, &registry).await;

    let mut config = secured.config();
    config.clickhouse.ca_file = Some(secured.other_ca.clone());
    secured.refused(&config, &APPLY, &["clickhouse at https://", "invalid peer certificate"]).await;
}

/// Gives a key of the gateway.
async fn a_deployer_with_plain_and_a_token_applies_the_topology(secured: &Secured) -> String {
    let mut config = secured.config();
    config.kafka.sasl_mechanism = Some(SaslMechanism::Plain);
    config.kafka.sasl_username = Some("deployer".to_owned());
    config.kafka.sasl_password = Some(Secret::new("env:KAFKA_PLAIN".to_owned()));
    config.clickhouse.user = "deployer".to_owned();
    config.registry.user = None;
    config.registry.password = None;
    config.registry.token = Some(Secret::new("env:REGISTRY_TOKEN".to_owned()));
    secured.give_acls("User:deployer").await;
    secured.tollstream_well(&config, &APPLY).await;
    let again = secured.tollstream_well(&config, &APPLY).await;
    assert!(again.starts_with("nothing to do"), "{again}");
    secured.tollstream_well(&config, &["keys", "create", "--organization", "org_demo"]).await.trim().to_owned()
}

async fn a_request_goes_through_to_its_row(secured: &Secured, key: &str) {
    secured.refused(&secured.config(), &RUN, &["does not allow requests to be seen", "docs/production.md"]).await;
    secured.give_acls("User:gateway").await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let simulator = simulate::Server::start(simulate::Options::default(), listener).unwrap();
    let mut config = resolved(&secured.config());
    config.providers.upstream_override = Some(format!("http://{}/v1", simulator.addr()));
    let mut node = Node::start(config, &Role::ALL).await.unwrap();
    node.ready(Duration::from_secs(60)).await.unwrap();
    let url = format!("{}/v1/chat/completions", node.facade_url().unwrap());
    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]});
    let answer = reqwest::Client::new().post(url).bearer_auth(key).json(&body).send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{status}: {text}");
    let row = eventually("a row", async || secured.rows("SELECT * FROM tollstream.usage_exact").await.pop()).await;
    assert_eq!((row["organization"].as_str(), row["model"].as_str()), (Some("org_demo"), Some("gpt-4o-mini")), "{row}");
    node.stop().await.unwrap();
    simulator.stop().await;
}

async fn a_certificate_stands_for_a_password(secured: &Secured) {
    let mut kafka = Config::default().kafka;
    kafka.brokers.clone_from(&secured.mutual_tls);
    kafka.security_protocol = SecurityProtocol::Ssl;
    kafka.ca_file = Some(secured.ca.clone());
    let without = reach::metadata(&kafka, None, Duration::from_secs(5)).await;
    let Err(error @ (reach::Error::Tls { .. } | reach::Error::NoAnswer { .. })) = without else { panic!("let in") };
    assert!(error.to_string().contains("certificate"), "{error}");
    kafka.certificate_file = Some(secured.certificate.clone());
    kafka.key_file = Some(secured.key.clone());
    let metadata = reach::metadata(&kafka, Some("requests"), Duration::from_secs(20)).await.unwrap();
    assert_eq!(metadata.topics()[0].partitions().len(), 4);
}
