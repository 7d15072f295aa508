//! Installs the engines with their own package managers, once for all stacks of a user.
//!
//! Every engine has a folder named after its version and its definition, so that a changed definition installs anew. A folder
//! is filled under another name and renamed when complete: what has its name is whole. One installer runs at a time.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::definition::{
    CLICKHOUSE_HOST, CLICKHOUSE_LOCK, CLICKHOUSE_NPMRC, CLICKHOUSE_PACKAGE, CLICKHOUSE_VERSION, KAFKA_POM,
    KAFKA_VERSION, REGISTRY_POM, REGISTRY_VERSION,
};
use super::engine::{CLICKHOUSE_HOST_PROGRAM, kafka_jar, make_directory, registry_runner, write_file};
use super::layout::plain_path;
use super::prerequisites::{self, Need};
use super::program;
use super::progress::{Progress, Task};
use super::{Engine, Error};

/// The longest that one program of an installation may run. Slow lines exist; hanging for ever helps nobody.
const PROGRAM_LIMIT: Duration = Duration::from_secs(30 * 60);
/// How often the lock of another installer is tried.
const LOOK_EVERY: Duration = Duration::from_millis(150);
/// The name of folders that are being filled.
const UNFINISHED: &str = ".unfinished-";

/// Where the engines are.
#[derive(Clone, Debug)]
pub struct Installed {
    /// The Java program.
    pub java: PathBuf,
    /// Kafka's jars are in `libs/` here.
    pub kafka: PathBuf,
    /// The registry's runner and libraries.
    pub registry: PathBuf,
    /// ClickHouse's library and its host program.
    pub clickhouse: PathBuf,
}

impl Installed {
    pub(super) fn kafka_class_path(&self) -> Result<String, Error> {
        Ok(format!("{}/*", plain_path(&self.kafka.join("libs"))?))
    }
}

/// Installs what is missing below `engines` and says where everything is. Blocks for as long as the downloads take.
pub fn install(engines: &Path, progress: &Progress) -> Result<Installed, Error> {
    prerequisites::check(&[Need::Run])?;
    make_directory(engines)?;
    let engines = fs::canonicalize(engines).map_err(Error::file("open the directory", engines))?;
    plain_path(&engines)?;
    let installed = Installed {
        java: prerequisites::find("java").unwrap_or_else(|| "java".into()),
        kafka: engines.join(folder(Engine::Kafka)),
        registry: engines.join(folder(Engine::Registry)),
        clickhouse: engines.join(folder(Engine::ClickHouse)),
    };
    if missing(&installed).is_empty() {
        return Ok(installed);
    }
    prerequisites::check(&[Need::Install])?;
    let _lock = lock(&engines, progress)?;
    remove_unfinished(&engines);
    // Another installer may have been at work while this one waited.
    let missing = missing(&installed);
    std::thread::scope(|scope| {
        let running: Vec<_> = missing
            .iter()
            .map(|(engine, folder)| scope.spawn(|| install_one(*engine, &engines, folder, progress)))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Err(Error::Internal { what: "an installation" })))
            .collect::<Result<Vec<()>, Error>>()
    })?;
    Ok(installed)
}

fn missing(installed: &Installed) -> Vec<(Engine, PathBuf)> {
    [
        (Engine::Kafka, &installed.kafka),
        (Engine::Registry, &installed.registry),
        (Engine::ClickHouse, &installed.clickhouse),
    ]
    .into_iter()
    .filter(|(_, folder)| !folder.is_dir())
    .map(|(engine, folder)| (engine, folder.clone()))
    .collect()
}

/// The files that define an engine's installation.
fn definition(engine: Engine) -> (&'static str, Vec<(&'static str, &'static str)>) {
    match engine {
        Engine::Kafka => (KAFKA_VERSION, vec![("pom.xml", KAFKA_POM)]),
        Engine::Registry => (REGISTRY_VERSION, vec![("pom.xml", REGISTRY_POM)]),
        Engine::ClickHouse => (
            CLICKHOUSE_VERSION,
            vec![
                ("package.json", CLICKHOUSE_PACKAGE),
                ("package-lock.json", CLICKHOUSE_LOCK),
                (".npmrc", CLICKHOUSE_NPMRC),
                ("clickhouse-host.c", CLICKHOUSE_HOST),
            ],
        ),
    }
}

fn folder(engine: Engine) -> String {
    let (version, files) = definition(engine);
    let mut hash = Sha256::new();
    for (name, content) in files {
        hash.update(name);
        hash.update([0]);
        hash.update(content);
        hash.update([0]);
    }
    let digest = hex::encode(hash.finalize());
    format!("{engine}-{version}-{}", &digest[..8])
}

fn lock(engines: &Path, progress: &Progress) -> Result<File, Error> {
    let path = engines.join(".lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::file("open", &path))?;
    let deadline = Instant::now() + PROGRAM_LIMIT;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                if !told {
                    progress.say("another process is installing the engines; waiting for it");
                    told = true;
                }
                std::thread::sleep(LOOK_EVERY);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::TimedOut {
                    what: "another process's installation of the engines".to_owned(),
                    limit: PROGRAM_LIMIT,
                });
            }
            Err(TryLockError::Error(cause)) => return Err(Error::file("lock", &path)(cause)),
        }
    }
}

/// Installations that were interrupted. Only called with the lock held, so nobody is filling them.
fn remove_unfinished(engines: &Path) {
    for entry in fs::read_dir(engines).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            // What cannot be removed only takes space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn install_one(engine: Engine, engines: &Path, folder: &Path, progress: &Progress) -> Result<(), Error> {
    let (version, files) = definition(engine);
    let unfinished = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempdir_in(engines)
        .map_err(Error::file("create a directory in", engines))?;
    let directory = unfinished.path();
    for (name, content) in files {
        write_file(&directory.join(name), content)?;
    }
    let megabytes = match engine {
        Engine::Kafka => 43,
        Engine::Registry => 142,
        Engine::ClickHouse => 566,
    };
    let task =
        progress.task(&format!("installing {engine} {version} ({megabytes} MB, once)"), Some(megabytes * 1_000_000));
    match engine {
        Engine::Kafka => install_kafka(directory, &task)?,
        Engine::Registry => install_registry(directory, &task)?,
        Engine::ClickHouse => install_clickhouse(directory, &task)?,
    }
    fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(Error::file("open up", directory))?;
    fs::rename(directory, folder).map_err(Error::file("rename an installation to", folder))?;
    task.done(&format!("installed {engine} {version}"));
    Ok(())
}

fn install_kafka(directory: &Path, task: &Task) -> Result<(), Error> {
    let libs = directory.join("libs");
    let mut command = Command::new("mvn");
    command.args(["-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime"]);
    command.arg("-DoutputDirectory=libs").current_dir(directory);
    program::run("mvn", PROGRAM_LIMIT, &mut command, || task.at(size_of_directory(&libs)))?;
    require(Engine::Kafka, &libs.join(kafka_jar()), "Maven reported success; look at its settings")
}

fn install_registry(directory: &Path, task: &Task) -> Result<(), Error> {
    let mut command = Command::new("mvn");
    command.args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=."]);
    command.current_dir(directory);
    program::run("mvn", PROGRAM_LIMIT, &mut command, || task.at(size_of_directory(directory)))?;
    let archive = format!("apicurio-registry-app-{REGISTRY_VERSION}-all.tar.gz");
    let mut unpack = Command::new("tar");
    unpack.args(["--no-same-owner", "-xzf", &archive]).current_dir(directory);
    program::run("tar", PROGRAM_LIMIT, &mut unpack, || {})?;
    remove(&directory.join(&archive))?;
    require(Engine::Registry, &directory.join(registry_runner()), "the archive has another content than expected")
}

fn install_clickhouse(directory: &Path, task: &Task) -> Result<(), Error> {
    let mut fetch = Command::new("npm");
    // Scripts of packages are not run: the library needs none.
    fetch.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(directory);
    program::run("npm", PROGRAM_LIMIT, &mut fetch, || task.at(size_of_directory(directory)))?;
    let modules = directory.join("node_modules");
    let library = modules.join("@chdb").join("lib-linux-x64-gnu").join("libchdb.so");
    require(
        Engine::ClickHouse,
        &library,
        "its package exists for x86-64 Linux with glibc only; use docker-compose.yml elsewhere",
    )?;
    let target = directory.join("libchdb.so");
    fs::rename(&library, &target).map_err(Error::file("move the library to", &target))?;
    fs::remove_dir_all(&modules).map_err(Error::file("remove", &modules))?;
    let mut compile = Command::new("cc");
    compile.args(["-O1", "-o", CLICKHOUSE_HOST_PROGRAM, "clickhouse-host.c", "-L."]);
    compile.args(["-l:libchdb.so", "-Wl,-rpath,$ORIGIN"]).current_dir(directory);
    program::run("cc", PROGRAM_LIMIT, &mut compile, || {})
}

fn require(engine: Engine, file: &Path, hint: &'static str) -> Result<(), Error> {
    if file.is_file() {
        return Ok(());
    }
    Err(Error::Incomplete { engine, file: file.file_name().unwrap_or_default().to_string_lossy().into_owned(), hint })
}

fn remove(file: &Path) -> Result<(), Error> {
    fs::remove_file(file).map_err(Error::file("remove", file))
}

/// The bytes of all files below a directory, for the progress bar.
fn size_of_directory(directory: &Path) -> u64 {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(file) if file.is_dir() => size_of_directory(&entry.path()),
            Ok(file) => file.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_named_after_version_and_definition() {
        for engine in Engine::ALL {
            let name = folder(engine);
            assert!(name.starts_with(&format!("{engine}-{}", definition(engine).0)), "{name}");
            assert_eq!(name, folder(engine));
        }
    }

    #[test]
    fn interrupted_installations_are_removed_and_whole_ones_kept() {
        let engines = tempfile::tempdir().unwrap();
        for name in [".unfinished-abc", "kafka-1"] {
            fs::create_dir(engines.path().join(name)).unwrap();
        }
        remove_unfinished(engines.path());
        assert!(!engines.path().join(".unfinished-abc").exists());
        assert!(engines.path().join("kafka-1").exists());
    }
}
