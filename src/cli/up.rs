//! `tollstream up` and `down`: the whole of Tollstream on one machine, engines included.
//!
//! `up` starts the engines, applies the topology, makes a key, starts the simulator for every provider without a
//! credential, runs all roles, and shows one request from the question to the row that says what it cost.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{demo, output, signals};
use crate::cli::stack::UpArgs as StackArgs;
use crate::codec::{Codec, Registry};
use crate::config::{AdminKey, Config, Environment, Secret};
use crate::domain::OrganizationId;
use crate::node::{Node, Role};
use crate::runtime::control_log::ControlLog;
use crate::runtime::publisher::Publisher;
use crate::simulate;
use crate::stack::{self, Identity, Progress, Running, daemon};
use crate::topology::{self, keys};

/// The organization that the first key is for.
const ORGANIZATION: &str = "org_demo";
/// Who makes it, as control says.
const ACTOR: &str = "tollstream up";
/// How long the roles may take until they are ready.
const READY_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a detached start may take in all: the engines may have to be installed.
const DETACHED_TIMEOUT: Duration = Duration::from_secs(1_200);
/// How long `down` waits for the gateway's end before it gives up.
const DOWN_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a start or an end is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub struct GatewayArgs {
    #[command(flatten)]
    stack: StackArgs,
    /// Everything in the foreground on free ports in a temporary directory, gone when it ends
    #[arg(long, conflicts_with = "detach")]
    ephemeral: bool,
    /// The first line on standard output is one JSON object with addresses and keys
    #[arg(long)]
    json: bool,
    /// Call every model at this OpenAI-compatible base URL, for example http://127.0.0.1:9001/v1
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Do not ask the first question
    #[arg(long)]
    no_demo: bool,
    /// Leave everything running in the background; `tollstream down` ends it
    #[arg(long)]
    detach: bool,
    /// Said by `--detach` to the process that stays: its output is a log, which must not hold keys.
    #[arg(long, hide = true)]
    background: bool,
    /// The facade's port [default: 4000]
    #[arg(long, value_name = "PORT")]
    facade_port: Option<u16>,
    /// The port of health and metrics [default: 4001]
    #[arg(long, value_name = "PORT")]
    admin_port: Option<u16>,
    /// The simulator's port [default: 4010]
    #[arg(long, value_name = "PORT")]
    simulator_port: Option<u16>,
}

#[derive(Debug, Args)]
pub struct DownArgs {
    /// The directory that `up` was given
    #[arg(long, default_value = ".tollstream", value_name = "DIR")]
    data: PathBuf,
}

/// What a running `up` says of itself.
#[derive(Clone, Serialize, Deserialize)]
pub struct Description {
    pub facade: String,
    pub admin: String,
    pub api_key: String,
    pub admin_key: String,
    pub organization: String,
    pub kafka: String,
    pub registry: String,
    pub clickhouse: String,
    pub database: String,
    pub simulator: Option<String>,
    /// Keys of providers that it has: their deployments are really called, and cost money.
    #[serde(default)]
    pub provider_keys: Vec<String>,
    pub data: PathBuf,
    pub pid: u32,
}

/// What `down` finds the gateway by.
#[derive(Serialize, Deserialize)]
struct Recorded {
    identity: Identity,
    description: Description,
}

/// The keys of a laptop, kept so that the next `up` has the same.
#[derive(Serialize, Deserialize)]
struct Keys {
    api_key: String,
    admin_key: String,
    /// Directories of before it have none.
    #[serde(default)]
    fingerprint_key: Option<String>,
}

/// The engines, held by this process or by their own supervisor.
enum Engines {
    Held(Box<Running>),
    Supervised,
}

pub async fn run(args: GatewayArgs) -> anyhow::Result<ExitCode> {
    if args.detach {
        return detached(&args).await;
    }
    let is_quiet = (args.json || args.ephemeral) && !args.background;
    crate::telemetry::log(false, if is_quiet { "warn" } else { "info" });
    let temporary = match args.ephemeral {
        true => Some(tempfile::Builder::new().prefix("tollstream-").tempdir()?),
        false => None,
    };
    let data = temporary.as_ref().map_or(args.stack.data(), tempfile::TempDir::path).to_owned();
    let progress = if args.json { Progress::Quiet } else { Progress::detect() };
    let mut ended = std::pin::pin!(ending(args.ephemeral));
    let (engines, addresses) = tokio::select! {
        started = start_engines(&args, &data, &progress) => started?,
        reason = &mut ended => {
            output::note(&format!("ended by {reason} before everything was up"));
            return Ok(ExitCode::SUCCESS);
        }
    };
    let outcome = serve(&args, &data, addresses, &mut ended).await;
    let stopped = match engines {
        Engines::Held(running) => running.stop().await,
        Engines::Supervised => Ok(()),
    };
    outcome?;
    stopped?;
    Ok(ExitCode::SUCCESS)
}

async fn ending(ephemeral: bool) -> &'static str {
    match ephemeral {
        true => tokio::select! {
            name = signals::terminated() => name,
            () = signals::orphaned() => "the end of its parent",
        },
        false => signals::terminated().await,
    }
}

async fn start_engines(
    args: &GatewayArgs,
    data: &Path,
    progress: &Progress,
) -> anyhow::Result<(Engines, stack::Addresses)> {
    let mut options = args.stack.options()?;
    if args.ephemeral {
        options.data = data.to_owned();
        options.ports = stack::Ports::free()?;
        let running = stack::up(options, progress).await?;
        let addresses = running.addresses.clone();
        return Ok((Engines::Held(Box::new(running)), addresses));
    }
    let (_, record) = daemon::up(options, args.stack.wanted(), progress).await?;
    Ok((Engines::Supervised, record.addresses))
}

/// Everything above the engines, until a reason to end.
async fn serve(
    args: &GatewayArgs,
    data: &Path,
    addresses: stack::Addresses,
    ended: &mut (impl Future<Output = &'static str> + Unpin),
) -> anyhow::Result<()> {
    let progress = if args.json { Progress::Quiet } else { Progress::detect() };
    let mut config = configuration(args, &addresses)?;
    progress.say("applying the topology");
    topology::apply::run(&config, &topology::apply::Options::laptop()?).await.context("applying the topology")?;
    let simulator = start_simulator(args, &mut config, &progress).await?;
    let keys = kept_keys(&config, data).await.context("making the first key")?;
    config.admin.key = Some(AdminKey::of_secret(&keys.admin_key)?);
    config.processor.fingerprint_key = keys.fingerprint_key.clone().map(Secret::new);
    let mut node = Node::start(config.clone(), &Role::ALL).await?;
    let description = describe(&config, &addresses, keys, data, simulator.as_ref(), &node)?;
    let ready = tokio::select! {
        ready = node.ready(READY_TIMEOUT) => ready.map_err(|missing| anyhow::anyhow!("not ready: {missing}")),
        reason = &mut *ended => Err(anyhow::anyhow!("ended by {reason} before everything was ready")),
    };
    let shown = match ready {
        Ok(()) => show(args, data, &description).await,
        Err(error) => Err(error),
    };
    let failed = match shown {
        Ok(()) => tokio::select! {
            reason = ended => {
                progress.say(&format!("{reason}: ending"));
                None
            }
            error = node.failed() => Some(anyhow::Error::from(error)),
        },
        Err(error) => Some(error),
    };
    let stopped = node.stop().await;
    if let Some(simulator) = simulator {
        simulator.stop().await;
    }
    if !args.ephemeral {
        // Whoever reads it next must not find a gateway that has ended.
        let _ = fs::remove_file(record_path(data));
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(stopped?),
    }
}

fn configuration(args: &GatewayArgs, addresses: &stack::Addresses) -> anyhow::Result<Config> {
    let mut config = Config::default();
    config.kafka.brokers.clone_from(&addresses.kafka);
    config.registry.url.clone_from(&addresses.registry);
    config.clickhouse.url.clone_from(&addresses.clickhouse);
    config.providers.upstream_override.clone_from(&args.upstream);
    config.sink.batch_ms = 250;
    // On loopback a second request in flight only splits the batches of the first: the broker takes a connection's
    // requests one after the other (docs/PERFORMANCE.md).
    config.kafka.producer_properties.0.insert("max.in.flight".to_owned(), "1".to_owned());
    let on = |given: Option<u16>, default: u16| {
        let port = given.unwrap_or(if args.ephemeral { 0 } else { default });
        SocketAddr::from(([127, 0, 0, 1], port))
    };
    config.facade.listen = on(args.facade_port, 4000);
    config.admin.listen = on(args.admin_port, 4001);
    for (address, what, flag) in
        [(config.facade.listen, "the facade", "--facade-port"), (config.admin.listen, "admin", "--admin-port")]
    {
        stack::check_port(address.port(), what, flag)?;
    }
    if !args.ephemeral {
        config.providers.environment = Environment::read();
        // The key of this directory is the operators' first one here.
        let _ = config.providers.environment.take_admin_key()?;
        config.telemetry.take_environment(&config.providers.environment);
    }
    config.validate()?;
    Ok(config)
}

async fn start_simulator(
    args: &GatewayArgs,
    config: &mut Config,
    progress: &Progress,
) -> anyhow::Result<Option<simulate::Server>> {
    if args.upstream.is_some() {
        return Ok(None);
    }
    let port = args.simulator_port.unwrap_or(if args.ephemeral { 0 } else { 4010 });
    stack::check_port(port, "the simulator", "--simulator-port")?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let server = simulate::Server::start(simulate::Options::default(), listener)?;
    config.providers.simulator_url = Some(format!("http://{}/v1", server.addr()));
    let known = provider_keys(config)?;
    progress.say(&match known.is_empty() {
        true => "no provider key in the environment or .env: the simulator answers for every provider".to_owned(),
        false => format!("the simulator answers for every provider but those of {}", known.join(", ")),
    });
    Ok(Some(server))
}

/// The keys of the data directory, made at the first start.
async fn kept_keys(config: &Config, data: &Path) -> anyhow::Result<Keys> {
    let path = data.join("keys.json");
    if let Ok(text) = fs::read_to_string(&path) {
        return serde_json::from_str(&text).with_context(|| format!("{} is damaged; remove it", path.display()));
    }
    let registry = Registry::new(&config.registry, &config.kafka.topic_prefix)?;
    let codec = Arc::new(Codec::connect(registry).await?);
    let mut log = ControlLog::open(&config.kafka, codec).await?;
    let publisher = Publisher::new(&config.kafka)?;
    let created =
        keys::create(&mut log, &publisher, keys::of_organization(&OrganizationId::parse(ORGANIZATION)?), ACTOR).await?;
    let admin_key = keys::secret(keys::ADMIN_PREFIX)?;
    let fingerprint_key = Some(keys::secret("")?);
    let made = Keys { api_key: created.secret.expose().to_owned(), admin_key, fingerprint_key };
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(serde_json::to_string_pretty(&made)?.as_bytes())?;
    Ok(made)
}

fn describe(
    config: &Config,
    addresses: &stack::Addresses,
    keys: Keys,
    data: &Path,
    simulator: Option<&simulate::Server>,
    node: &Node,
) -> anyhow::Result<Description> {
    Ok(Description {
        facade: node.facade_url().unwrap_or_else(|| format!("http://{}", config.facade.listen)),
        admin: node.admin_url(),
        api_key: keys.api_key,
        admin_key: keys.admin_key,
        organization: ORGANIZATION.to_owned(),
        kafka: addresses.kafka.clone(),
        registry: addresses.registry.clone(),
        clickhouse: addresses.clickhouse.clone(),
        database: config.clickhouse.database.clone(),
        simulator: simulator.map(|server| format!("http://{}", server.addr())),
        provider_keys: match &config.providers.upstream_override {
            Some(_) => Vec::new(),
            None => provider_keys(config)?,
        },
        data: data.to_owned(),
        pid: std::process::id(),
    })
}

/// References of the seeds' credentials that are in the environment or `.env`.
fn provider_keys(config: &Config) -> anyhow::Result<Vec<String>> {
    let topology = topology::Topology::embedded()?;
    let known = topology.seeds.credentials().filter(|reference| config.providers.environment.get(reference).is_some());
    Ok(known.map(str::to_owned).collect())
}

async fn show(args: &GatewayArgs, data: &Path, description: &Description) -> anyhow::Result<()> {
    if !args.ephemeral {
        record(data, description)?;
    }
    if args.background { Ok(()) } else { introduce(args, description).await }
}

/// Says where everything is, and asks the first question.
async fn introduce(args: &GatewayArgs, description: &Description) -> anyhow::Result<()> {
    if args.json {
        output::line(&serde_json::to_string(description)?);
        return Ok(());
    }
    print_addresses(description);
    if !args.no_demo {
        demo::run(description).await?;
    }
    Ok(())
}

fn print_addresses(description: &Description) {
    let row = |name: &str, value: &str| vec![name.to_owned(), value.to_owned()];
    output::table(
        &["what", "where"],
        &[
            row("OpenAI base URL", &format!("{}/v1", description.facade)),
            row("API key", &description.api_key),
            row("health, metrics, /admin/v1", &description.admin),
            row("admin key", &description.admin_key),
            row("Kafka", &description.kafka),
            row("schema registry", &description.registry),
            row("ClickHouse", &description.clickhouse),
            row("simulator", description.simulator.as_deref().unwrap_or("-")),
            row("data, logs", &description.data.display().to_string()),
        ],
    );
}

fn record_path(data: &Path) -> PathBuf {
    data.join("gateway.json")
}

fn record(data: &Path, description: &Description) -> anyhow::Result<()> {
    let identity = Identity::own().context("this process has no entry in /proc")?;
    let recorded = Recorded { identity, description: description.clone() };
    let mut file = tempfile::NamedTempFile::new_in(data)?;
    file.write_all(&serde_json::to_vec(&recorded)?)?;
    file.persist(record_path(data))?;
    Ok(())
}

/// What the gateway says of itself that runs from this directory, if one does.
pub(super) fn running(data: &Path) -> Option<Description> {
    recorded(data).map(|recorded| recorded.description)
}

/// The gateway that runs from this directory, if one does.
fn recorded(data: &Path) -> Option<Recorded> {
    let text = fs::read(record_path(data)).ok()?;
    let recorded: Recorded = serde_json::from_slice(&text).ok()?;
    recorded.identity.is_alive().then_some(recorded)
}

/// Starts the engines here, where progress can be seen, and the gateway in a process that stays.
async fn detached(args: &GatewayArgs) -> anyhow::Result<ExitCode> {
    let data = args.stack.data().to_owned();
    if let Some(running) = recorded(&data) {
        output::note("the gateway is up already");
        match args.json {
            true => output::line(&serde_json::to_string(&running.description)?),
            false => print_addresses(&running.description),
        }
        return Ok(ExitCode::SUCCESS);
    }
    start_engines(args, &data, &Progress::detect()).await?;
    let log_path = data.join("logs").join("gateway.log");
    if let Some(folder) = log_path.parent() {
        fs::create_dir_all(folder)?;
    }
    let log = fs::OpenOptions::new().create(true).append(true).open(&log_path)?;
    let begun = log.metadata()?.len();
    let own = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    let mut child = std::process::Command::new("setsid")
        .arg(std::env::current_exe()?)
        .args(own)
        .arg("--background")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting the gateway in a session of its own")?;
    let until = tokio::time::Instant::now() + DETACHED_TIMEOUT;
    let running = loop {
        if let Some(running) = recorded(&data) {
            break running;
        }
        let ended = child.try_wait()?.filter(|status| !status.success());
        if ended.is_some() || tokio::time::Instant::now() > until {
            anyhow::bail!("the gateway did not start; its log is {}\n{}", log_path.display(), tail(&log_path, begun));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    introduce(args, &running.description).await?;
    if running.description.simulator.is_some() {
        // The process that stays has said so in its log.
        output::note(
            "\nA simulator answers for every provider without a key in the environment or .env; its rows are `simulated`.",
        );
    }
    output::note(&format!("Tollstream runs in the background; its log is {}", log_path.display()));
    output::note("`tollstream down` (or `make down`) ends it and keeps the data.");
    Ok(ExitCode::SUCCESS)
}

/// The last lines of what a log has gained since it had so many bytes, for an error message.
fn tail(path: &Path, since: u64) -> String {
    let log = fs::read(path).unwrap_or_default();
    let gained = log.get(usize::try_from(since).unwrap_or(usize::MAX)..).unwrap_or_default();
    let text = String::from_utf8_lossy(gained);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// `tollstream down`: the gateway, then the engines.
pub async fn down(args: DownArgs) -> anyhow::Result<ExitCode> {
    if let Some(running) = recorded(&args.data) {
        running.identity.terminate();
        let until = tokio::time::Instant::now() + DOWN_TIMEOUT;
        while running.identity.is_alive() {
            anyhow::ensure!(
                tokio::time::Instant::now() < until,
                "the gateway (pid {}) has not ended within {} s; see its log in {}",
                running.description.pid,
                DOWN_TIMEOUT.as_secs(),
                args.data.join("logs").display()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        output::note("the gateway is down");
    }
    let grace = stack::Options::new(&args.data)?.stop_timeout;
    let ended = daemon::down(&args.data, grace, &Progress::detect()).await?;
    output::note(if ended { "the engines are down; their data is kept" } else { "the engines were not up" });
    Ok(ExitCode::SUCCESS)
}
