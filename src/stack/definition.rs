//! What is installed and how it is configured: the files of `stack/`, carried inside the binary.
//!
//! The version constants exist so that `docker-compose.yml` can be checked against what the laptop runs; a test holds
//! them and the definition files together.

/// The version of Apache Kafka in `stack/kafka/pom.xml`.
pub const KAFKA_VERSION: &str = "4.1.1";
/// The version of Apicurio Registry in `stack/registry/pom.xml`.
pub const REGISTRY_VERSION: &str = "2.6.13.Final";
/// The version of ClickHouse's library in `stack/clickhouse/package.json`.
pub const CLICKHOUSE_VERSION: &str = "26.7.3-stable.1";

/// The cluster id that Kafka's storage is formatted with. Every laptop may have the same: clusters of different laptops
/// never meet, and a fixed one makes formatting repeatable.
pub const CLUSTER_ID: &str = "dG9sbHN0cmVhbS1sYXB0bw";

pub(super) const KAFKA_POM: &str = include_str!("../../stack/kafka/pom.xml");
pub(super) const KAFKA_PROPERTIES: &str = include_str!("../../stack/kafka/server.properties");
pub(super) const REGISTRY_POM: &str = include_str!("../../stack/registry/pom.xml");
pub(super) const REGISTRY_PROPERTIES: &str = include_str!("../../stack/registry/application.properties");
pub(super) const CLICKHOUSE_PACKAGE: &str = include_str!("../../stack/clickhouse/package.json");
pub(super) const CLICKHOUSE_LOCK: &str = include_str!("../../stack/clickhouse/package-lock.json");
pub(super) const CLICKHOUSE_NPMRC: &str = include_str!("../../stack/clickhouse/.npmrc");
pub(super) const CLICKHOUSE_HOST: &str = include_str!("../../stack/clickhouse-host.c");
pub(super) const CLICKHOUSE_CONFIG: &str = include_str!("../../stack/clickhouse/config.xml");
pub(super) const CLICKHOUSE_USERS: &str = include_str!("../../stack/clickhouse/users.xml");

/// A configuration file that the laptop stack and `docker-compose.yml` both run.
#[derive(Clone, Copy, Debug)]
pub struct SharedFile {
    /// The engine, as its compose service is named.
    pub engine: &'static str,
    /// The file in the repository.
    pub source: &'static str,
    /// Where the official image reads it.
    pub image_path: &'static str,
}

/// All configuration files that both forms run.
pub const SHARED_FILES: [SharedFile; 4] = [
    SharedFile {
        engine: "kafka",
        source: "stack/kafka/server.properties",
        image_path: "/mnt/shared/config/server.properties",
    },
    SharedFile {
        engine: "registry",
        source: "stack/registry/application.properties",
        image_path: "/etc/tollstream/registry.properties",
    },
    SharedFile {
        engine: "clickhouse",
        source: "stack/clickhouse/config.xml",
        image_path: "/etc/clickhouse-server/config.d/tollstream.xml",
    },
    SharedFile {
        engine: "clickhouse",
        source: "stack/clickhouse/users.xml",
        image_path: "/etc/clickhouse-server/users.d/tollstream.xml",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constants_are_the_versions_in_the_definition_files() {
        assert!(KAFKA_POM.contains(&format!("<version>{KAFKA_VERSION}</version>")));
        assert!(REGISTRY_POM.contains(&format!("<version>{REGISTRY_VERSION}</version>")));
        assert!(CLICKHOUSE_PACKAGE.contains(&format!("\": \"{CLICKHOUSE_VERSION}\"")));
        assert!(CLICKHOUSE_LOCK.contains(&format!("\"version\": \"{CLICKHOUSE_VERSION}\"")));
    }

    #[test]
    fn the_lock_file_carries_no_download_addresses() {
        assert!(!CLICKHOUSE_LOCK.contains("resolved"));
        assert!(!CLICKHOUSE_LOCK.contains("://"));
        assert!(CLICKHOUSE_NPMRC.contains("omit-lockfile-registry-resolved=true"));
    }

    #[test]
    fn the_cluster_id_is_sixteen_bytes_of_base64() {
        assert_eq!(CLUSTER_ID.len(), 22);
        assert!(CLUSTER_ID.chars().all(|c| c.is_ascii_alphanumeric()));
    }
}
