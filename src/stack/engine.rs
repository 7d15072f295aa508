//! The three engines: the files that each needs in the data directory, and the command that runs it.

use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::definition::{
    CLICKHOUSE_CONFIG, CLICKHOUSE_USERS, CLUSTER_ID, KAFKA_PROPERTIES, KAFKA_VERSION, REGISTRY_PROPERTIES,
    REGISTRY_VERSION,
};
use super::install::Installed;
use super::layout::Layout;
use super::{Error, Ports};

/// An engine of the laptop stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Apache Kafka, broker and controller in one process.
    Kafka,
    /// Apicurio Registry with its Confluent-compatible interface.
    Registry,
    /// ClickHouse.
    ClickHouse,
}

impl Engine {
    /// All engines, in the order in which people read them.
    pub const ALL: [Self; 3] = [Self::Kafka, Self::Registry, Self::ClickHouse];

    /// The name on the command line, in file names and in `docker-compose.yml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Registry => "registry",
            Self::ClickHouse => "clickhouse",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|engine| engine.name() == text)
            .ok_or_else(|| format!("no engine is called {text}; there are kafka, registry and clickhouse"))
    }
}

/// A command that runs one engine until it is ended.
#[derive(Clone, Debug)]
pub(super) struct Launch {
    pub(super) engine: Engine,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) directory: PathBuf,
    pub(super) log: PathBuf,
}

/// The exact arguments by which the processes of a stack are known: only engines that were started for this
/// data directory carry one of them.
pub(super) fn markers(layout: &Layout) -> Vec<String> {
    vec![java_marker(layout), clickhouse_path(layout)]
}

fn java_marker(layout: &Layout) -> String {
    format!("-Dtollstream.stack={}", layout.text())
}

fn clickhouse_path(layout: &Layout) -> String {
    format!("--path={}/clickhouse/data", layout.text())
}

/// Writes an engine's configuration and says how it is run.
pub(super) fn prepare(engine: Engine, layout: &Layout, installed: &Installed, ports: &Ports) -> Result<Launch, Error> {
    let directory = layout.engine(engine);
    make_directory(&directory)?;
    let (program, arguments, working_directory) = match engine {
        Engine::Kafka => prepare_kafka(layout, installed, ports)?,
        Engine::Registry => prepare_registry(layout, installed, ports)?,
        Engine::ClickHouse => prepare_clickhouse(layout, installed, ports)?,
    };
    Ok(Launch {
        engine,
        program,
        arguments,
        directory: working_directory.unwrap_or(directory),
        log: layout.log(engine),
    })
}

type Command = (PathBuf, Vec<String>, Option<PathBuf>);

/// Settings of slf4j-simple: one line a record, with the time, and not the two hundred settings at each start.
const KAFKA_LOGGING: [&str; 4] = [
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn",
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.clients.admin.AdminClientConfig=warn",
];

fn prepare_kafka(layout: &Layout, installed: &Installed, ports: &Ports) -> Result<Command, Error> {
    let directory = layout.engine(Engine::Kafka);
    let settings = directory.join("server.properties");
    let (kafka, controller) = (ports.kafka, ports.kafka_controller);
    let further = directory.join("server.d");
    make_directory(&further)?;
    let further = further_properties(&further)?;
    let properties = format!(
        "{KAFKA_PROPERTIES}\n# Appended by the laptop stack.\n\
         listeners=PLAINTEXT://127.0.0.1:{kafka},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{kafka}\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         log.dirs={}/kafka/data\n{further}",
        layout.text()
    );
    write_file(&settings, &properties)?;
    let mut arguments = vec!["-Xmx512m".to_owned(), "-XX:+ExitOnOutOfMemoryError".to_owned(), java_marker(layout)];
    arguments.extend(KAFKA_LOGGING.map(str::to_owned));
    arguments.extend([
        "-cp".to_owned(),
        installed.kafka_class_path()?,
        "kafka.Kafka".to_owned(),
        "server.properties".to_owned(),
    ]);
    Ok((installed.java.clone(), arguments, None))
}

/// Settings that people add, in the order of their files' names: the last line for a key wins.
fn further_properties(directory: &Path) -> Result<String, Error> {
    let read = fs::read_dir(directory).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut files: Vec<PathBuf> =
        read.map_err(Error::file("read", directory))?.into_iter().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "properties"));
    files.sort();
    let mut text = String::new();
    for file in files {
        let settings = fs::read_to_string(&file).map_err(Error::file("read", &file))?;
        text.push_str(&format!("\n# From {}.\n{settings}\n", file.display()));
    }
    Ok(text)
}

/// The command that formats Kafka's storage, unless that has been done.
pub(super) fn kafka_format(layout: &Layout, installed: &Installed) -> Result<Option<Launch>, Error> {
    let directory = layout.engine(Engine::Kafka);
    // Written last by the formatter: a storage without it is formatted again.
    if directory.join("data").join("meta.properties").exists() {
        return Ok(None);
    }
    let arguments = [
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        &java_marker(layout),
        "-cp",
        &installed.kafka_class_path()?,
        "kafka.tools.StorageTool",
        "format",
        "--ignore-formatted",
        "--cluster-id",
        CLUSTER_ID,
        "--config",
        "server.properties",
    ];
    Ok(Some(Launch {
        engine: Engine::Kafka,
        program: installed.java.clone(),
        arguments: arguments.map(str::to_owned).to_vec(),
        directory,
        log: layout.log(Engine::Kafka),
    }))
}

fn prepare_registry(layout: &Layout, installed: &Installed, ports: &Ports) -> Result<Command, Error> {
    let directory = layout.engine(Engine::Registry);
    let settings = directory.join("application.properties");
    write_file(&settings, REGISTRY_PROPERTIES)?;
    make_directory(&directory.join("data"))?;
    let arguments = vec![
        "-Xmx256m".to_owned(),
        "-XX:+UseSerialGC".to_owned(),
        "-XX:TieredStopAtLevel=1".to_owned(),
        "-XX:+ExitOnOutOfMemoryError".to_owned(),
        java_marker(layout),
        format!("-Dsmallrye.config.locations={}", settings.display()),
        "-Dquarkus.http.host=127.0.0.1".to_owned(),
        format!("-Dquarkus.http.port={}", ports.registry),
        format!("-Dquarkus.datasource.jdbc.url=jdbc:h2:file:{}/registry/data/registry", layout.text()),
        "-jar".to_owned(),
        registry_runner(),
    ];
    Ok((installed.java.clone(), arguments, Some(installed.registry.clone())))
}

/// The jar that an installed Kafka cannot be without.
pub(super) fn kafka_jar() -> String {
    format!("kafka_2.13-{KAFKA_VERSION}.jar")
}

/// The jar that runs the registry.
pub(super) fn registry_runner() -> String {
    format!("apicurio-registry-app-{REGISTRY_VERSION}-runner.jar")
}

/// The listeners live as long as the query that opened them; this one sleeps for a thousand years.
const CLICKHOUSE_QUERY: &str = "SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP; \
    SELECT sleepEachRow(3) FROM numbers(10000000000) SETTINGS max_block_size = 1, \
    function_sleep_max_microseconds_per_block = 100000000 FORMAT Null";

fn prepare_clickhouse(layout: &Layout, installed: &Installed, ports: &Ports) -> Result<Command, Error> {
    let directory = layout.engine(Engine::ClickHouse);
    let etc = directory.join("etc");
    make_directory(&directory.join("data"))?;
    make_directory(&etc.join("config.d"))?;
    // Further files in users.d/ add users; they are left alone here and read at the next start.
    make_directory(&etc.join("users.d"))?;
    let base = format!(
        "<clickhouse>\n    <users_config>{}/clickhouse/etc/users.xml</users_config>\n    \
         <logger><console>true</console></logger>\n</clickhouse>\n",
        layout.text()
    );
    write_file(&etc.join("config.xml"), &base)?;
    write_file(&etc.join("users.xml"), "<clickhouse></clickhouse>\n")?;
    write_file(&etc.join("config.d").join("tollstream.xml"), CLICKHOUSE_CONFIG)?;
    write_file(&etc.join("users.d").join("tollstream.xml"), CLICKHOUSE_USERS)?;
    let arguments = vec![
        format!("--config-file={}/clickhouse/etc/config.xml", layout.text()),
        "--log-level=warning".to_owned(),
        "--multiquery".to_owned(),
        format!("--http_port={}", ports.clickhouse_http),
        format!("--tcp_port={}", ports.clickhouse_tcp),
        "--listen_host=127.0.0.1".to_owned(),
        clickhouse_path(layout),
        "--query".to_owned(),
        CLICKHOUSE_QUERY.to_owned(),
    ];
    Ok((installed.clickhouse.join(CLICKHOUSE_HOST_PROGRAM), arguments, None))
}

/// The name of the compiled host program.
pub(super) const CLICKHOUSE_HOST_PROGRAM: &str = "clickhouse-host";

pub(super) fn make_directory(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::file("create the directory", path))
}

/// Replaces a file as a whole: a reader sees the old content or the new one, never a part.
pub(super) fn write_file(path: &Path, content: &str) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(Error::file("write", path))?;
    file.write_all(content.as_bytes()).map_err(Error::file("write", path))?;
    file.persist(path).map_err(|error| Error::file("write", path)(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(engine: Engine) -> (tempfile::TempDir, Layout, Launch) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let installed = Installed {
            java: "/usr/bin/java".into(),
            kafka: "/engines/kafka".into(),
            registry: "/engines/registry".into(),
            clickhouse: "/engines/clickhouse".into(),
        };
        let launch = prepare(engine, &layout, &installed, &Ports::default()).unwrap();
        (directory, layout, launch)
    }

    #[test]
    fn every_engine_is_known_by_exactly_one_marker() {
        for engine in Engine::ALL {
            let (_directory, layout, launch) = prepared(engine);
            let markers = markers(&layout);
            let carried = launch.arguments.iter().filter(|a| markers.contains(a));
            assert_eq!(carried.count(), 1, "{engine}");
        }
    }

    #[test]
    fn nothing_listens_beyond_loopback() {
        let (_directory, layout, _) = prepared(Engine::Kafka);
        let settings = fs::read_to_string(layout.engine(Engine::Kafka).join("server.properties")).unwrap();
        let listeners: Vec<&str> =
            settings.lines().filter(|line| line.starts_with("listeners=") || line.starts_with("advertised.")).collect();
        assert_eq!(
            listeners,
            [
                "listeners=PLAINTEXT://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093",
                "advertised.listeners=PLAINTEXT://127.0.0.1:9092"
            ]
        );
        let (_directory, _, registry) = prepared(Engine::Registry);
        assert!(registry.arguments.contains(&"-Dquarkus.http.host=127.0.0.1".to_owned()));
        let (_directory, _, clickhouse) = prepared(Engine::ClickHouse);
        assert!(clickhouse.arguments.contains(&"--listen_host=127.0.0.1".to_owned()));
    }

    #[test]
    fn users_added_by_others_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let own = layout.engine(Engine::ClickHouse).join("etc/users.d/readers.xml");
        make_directory(own.parent().unwrap()).unwrap();
        fs::write(&own, "<clickhouse/>").unwrap();
        let installed =
            Installed { java: "java".into(), kafka: "k".into(), registry: "r".into(), clickhouse: "c".into() };
        prepare(Engine::ClickHouse, &layout, &installed, &Ports::default()).unwrap();
        assert_eq!(fs::read_to_string(&own).unwrap(), "<clickhouse/>");
    }

    #[test]
    fn settings_of_kafka_that_people_add_come_last_and_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let further = layout.engine(Engine::Kafka).join("server.d");
        make_directory(&further).unwrap();
        for (name, settings) in [("2.properties", "a=2"), ("1.properties", "a=1"), ("note.txt", "a=3")] {
            fs::write(further.join(name), settings).unwrap();
        }
        let installed =
            Installed { java: "java".into(), kafka: "k".into(), registry: "r".into(), clickhouse: "c".into() };
        prepare(Engine::Kafka, &layout, &installed, &Ports::default()).unwrap();
        let settings = fs::read_to_string(layout.engine(Engine::Kafka).join("server.properties")).unwrap();
        let added: Vec<&str> = settings.lines().filter(|line| line.starts_with("a=")).collect();
        assert_eq!((added, settings.trim().ends_with("a=2")), (vec!["a=1", "a=2"], true), "{settings}");
        assert_eq!(fs::read_to_string(further.join("1.properties")).unwrap(), "a=1");
    }

    #[test]
    fn names_are_read_back() {
        for engine in Engine::ALL {
            assert_eq!(engine.name().parse(), Ok(engine));
        }
        assert!("postgres".parse::<Engine>().is_err());
    }
}
