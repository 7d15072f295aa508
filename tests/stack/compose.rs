//! No container engine runs where this is developed: what can be checked without one is that `docker-compose.yml` runs the
//! versions, ports and very files that the laptop stack runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tollstream::config::Config;
use tollstream::stack::{CLICKHOUSE_VERSION, CLUSTER_ID, KAFKA_VERSION, Ports, REGISTRY_VERSION, SHARED_FILES};

#[derive(Deserialize)]
struct Compose {
    services: BTreeMap<String, Service>,
    volumes: BTreeMap<String, Option<()>>,
}

#[derive(Deserialize)]
struct Service {
    image: String,
    build: Option<String>,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    ports: Vec<String>,
    #[serde(default)]
    volumes: Vec<String>,
    #[serde(default)]
    depends_on: BTreeMap<String, Dependency>,
    healthcheck: Option<HealthCheck>,
    restart: Option<String>,
}

#[derive(Deserialize)]
struct Dependency {
    condition: String,
}

#[derive(Deserialize)]
struct HealthCheck {
    test: Vec<String>,
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn compose() -> Compose {
    let text = fs::read_to_string(repository().join("docker-compose.yml")).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

fn settings() -> Config {
    let config = Config::load(Some(&repository().join("stack/compose/tollstream.toml"))).unwrap();
    config.validate().unwrap();
    config
}

/// `127.0.0.1:PUBLISHED:INSIDE`, anything else fails.
fn published(service: &Service) -> Vec<(u16, u16)> {
    service
        .ports
        .iter()
        .map(|port| {
            let parts: Vec<&str> = port.split(':').collect();
            assert_eq!((parts.len(), parts[0]), (3, "127.0.0.1"), "{port} is not published on loopback only");
            (parts[1].parse().unwrap(), parts[2].parse().unwrap())
        })
        .collect()
}

#[test]
fn the_images_are_those_of_the_laptops_engines() {
    let compose = compose();
    let image = |service: &str| compose.services[service].image.clone();
    assert_eq!(image("kafka"), format!("apache/kafka:{KAFKA_VERSION}"));
    assert_eq!(image("registry"), format!("apicurio/apicurio-registry-mem:{REGISTRY_VERSION}"));
    assert_eq!(image("registry-volume"), image("registry"));
    let minor: Vec<&str> = CLICKHOUSE_VERSION.split('.').take(2).collect();
    assert_eq!(image("clickhouse"), format!("clickhouse/clickhouse-server:{}", minor.join(".")));
    for (name, service) in &compose.services {
        let tag = service.image.split_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag != "latest"), "{name} has no pinned image");
        assert_eq!(service.build.is_some(), service.image.starts_with("tollstream:"), "{name}");
    }
}

#[test]
fn the_published_ports_are_the_laptops() {
    let compose = compose();
    let ports = Ports::default();
    let outside = |service: &str| -> Vec<u16> {
        published(&compose.services[service]).into_iter().map(|(outside, _)| outside).collect()
    };
    assert_eq!(outside("kafka"), [ports.kafka]);
    assert_eq!(outside("registry"), [ports.registry]);
    assert_eq!(outside("clickhouse"), [ports.clickhouse_http, ports.clickhouse_tcp]);
    let defaults = Config::default();
    assert_eq!(outside("tollstream"), [defaults.facade.listen.port(), defaults.admin.listen.port()]);
    for service in compose.services.values() {
        published(service);
    }
}

#[test]
fn the_mounted_files_are_the_laptops_and_exist() {
    let compose = compose();
    for file in SHARED_FILES {
        let mount = format!("./{}:{}:ro", file.source, file.image_path);
        assert!(compose.services[file.engine].volumes.contains(&mount), "{} lacks the mount {mount}", file.engine);
    }
    let mut used = Vec::new();
    for (name, service) in &compose.services {
        for volume in &service.volumes {
            let source = volume.split(':').next().unwrap();
            if let Some(file) = source.strip_prefix("./") {
                assert!(repository().join(file).is_file(), "{name} mounts {file}, which does not exist");
                assert!(volume.ends_with(":ro"), "{name} may write to {file}");
            } else {
                assert!(compose.volumes.contains_key(source), "{name} uses the volume {source}, which is not declared");
                used.push(source.to_owned());
            }
        }
    }
    used.sort();
    used.dedup();
    assert_eq!(used, compose.volumes.keys().cloned().collect::<Vec<_>>());
}

#[test]
fn kafka_is_formatted_and_reached_as_on_the_laptop() {
    let compose = compose();
    let environment = &compose.services["kafka"].environment;
    assert_eq!(environment["CLUSTER_ID"], CLUSTER_ID);
    // What is set here must not silently change what the shared file is there to hold.
    let shared = fs::read_to_string(repository().join("stack/kafka/server.properties")).unwrap();
    for name in environment.keys().filter_map(|name| name.strip_prefix("KAFKA_")) {
        let key = name.to_lowercase().replace('_', ".");
        assert!(!shared.lines().any(|line| line.starts_with(&format!("{key}="))), "{key} is set in both places");
    }
    let port = Ports::default().kafka;
    assert!(environment["KAFKA_ADVERTISED_LISTENERS"].contains(&format!("PLAINTEXT://127.0.0.1:{port}")));
    let record_bytes_max = Config::default().kafka.record_bytes_max;
    let message_bytes_max: usize =
        shared.lines().find_map(|line| line.strip_prefix("message.max.bytes=")).unwrap().parse().unwrap();
    assert!(message_bytes_max > record_bytes_max, "the largest record does not pass the broker");
}

#[test]
fn tollstream_finds_the_services_by_their_names_and_ports() {
    let (compose, settings) = (compose(), settings());
    let environment = &compose.services["kafka"].environment;
    assert!(environment["KAFKA_ADVERTISED_LISTENERS"].contains(&format!("://{}", settings.kafka.brokers)));
    let inside = |service: &str| published(&compose.services[service])[0].1;
    assert_eq!(settings.registry.url, format!("http://registry:{}/apis/ccompat/v7", inside("registry")));
    assert_eq!(settings.clickhouse.url, format!("http://clickhouse:{}", inside("clickhouse")));
    let simulator = settings.providers.simulator_url.clone().unwrap();
    assert!(simulator.starts_with(&format!("http://simulator:{}", inside("simulator"))), "{simulator}");
    let listens = [settings.facade.listen.port(), settings.admin.listen.port()];
    let reached: Vec<u16> = published(&compose.services["tollstream"]).into_iter().map(|(_, inside)| inside).collect();
    assert_eq!(reached, listens);
    for service in ["topology", "tollstream"] {
        let command = &compose.services[service].command;
        if let Some(roles) = command.iter().position(|argument| argument == "--roles") {
            assert_eq!(
                command[roles + 1],
                "facade,processor,projection,sink",
                "a deployment of one process has every role"
            );
        }
        let path = &command[command.iter().position(|argument| argument == "--config").unwrap() + 1];
        let mounted = compose.services[service].volumes.iter().any(|mount| mount.contains(&format!(":{path}:")));
        assert!(mounted, "{service} does not mount {path}");
    }
}

#[test]
fn what_keeps_running_is_health_checked_and_waited_for() {
    let compose = compose();
    for (name, service) in &compose.services {
        let once = service.restart.as_deref() == Some("no");
        assert_eq!(service.healthcheck.is_none(), once, "{name}");
        if let Some(check) = &service.healthcheck {
            assert_eq!(check.test[0], "CMD", "{name}");
        }
        for (dependency, how) in &service.depends_on {
            let awaited = &compose.services[dependency];
            let expected =
                if awaited.healthcheck.is_some() { "service_healthy" } else { "service_completed_successfully" };
            assert_eq!(how.condition, expected, "{name} waits for {dependency}");
        }
    }
    for engine in ["kafka", "registry", "clickhouse"] {
        assert!(compose.services["tollstream"].depends_on.contains_key(engine), "{engine} is not waited for");
    }
}

#[test]
fn the_image_is_built_with_the_compiler_of_the_package_and_runs_without_root() {
    let dockerfile = fs::read_to_string(repository().join("Dockerfile")).unwrap();
    let cargo: toml::Table = fs::read_to_string(repository().join("Cargo.toml")).unwrap().parse().unwrap();
    let version = cargo["package"]["rust-version"].as_str().unwrap();
    let stages: Vec<&str> = dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")).collect();
    assert_eq!(stages, [&format!("rust:{version}-slim-bookworm AS build"), "debian:bookworm-slim"]);
    assert!(dockerfile.lines().any(|line| line.starts_with("USER ") && line != "USER root"));
    for line in dockerfile.lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from")) {
        let source = line.split_whitespace().nth(1).unwrap();
        assert!(repository().join(Path::new(source)).exists(), "{line}");
    }
}
