//! The programs that must be on the machine before the engines can be installed and run.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Java before this version does not run Kafka 4.
const JAVA_VERSION: u32 = 17;

/// What a program is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To run the engines.
    Run,
    /// To install them, once.
    Install,
    /// To build Tollstream itself.
    Build,
}

/// A program that is needed.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// The command.
    pub command: &'static str,
    /// What people call it.
    pub name: &'static str,
    /// What it is for.
    pub need: Need,
    /// The Debian and Ubuntu packages that have it.
    pub packages: &'static str,
}

const TOOLS: [Tool; 10] = {
    const fn tool(command: &'static str, name: &'static str, need: Need, packages: &'static str) -> Tool {
        Tool { command, name, need, packages }
    }
    [
        tool("java", "a Java runtime, version 17 or newer (java)", Need::Run, "openjdk-17-jre-headless"),
        tool("setpriv", "util-linux (setpriv)", Need::Run, "util-linux"),
        tool("mvn", "Maven (mvn)", Need::Install, "maven"),
        tool("node", "Node.js (node)", Need::Install, "nodejs"),
        tool("npm", "npm", Need::Install, "npm"),
        tool("cc", "a C compiler (cc)", Need::Install, "gcc libc6-dev"),
        tool("tar", "tar", Need::Install, "tar"),
        tool("gzip", "gzip", Need::Install, "gzip"),
        tool("make", "make", Need::Build, "make"),
        tool("pkg-config", "pkg-config and OpenSSL's headers", Need::Build, "pkg-config libssl-dev"),
    ]
};

/// The programs that are not there.
#[derive(Clone, Debug)]
pub struct Missing {
    tools: Vec<(Tool, Option<String>)>,
}

impl std::error::Error for Missing {}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self
            .tools
            .iter()
            .map(|(tool, found)| match found {
                Some(found) => format!("{} (found: {found})", tool.name),
                None => tool.name.to_owned(),
            })
            .collect();
        let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let packages: Vec<&str> = self
            .tools
            .iter()
            .map(|(tool, _)| match tool.command {
                "java" => java_package(&system),
                _ => tool.packages,
            })
            .collect();
        let missing = names.join(", ");
        if Path::new("/etc/debian_version").exists() {
            let sudo = if rustix::process::geteuid().is_root() { "" } else { "sudo " };
            write!(
                formatter,
                "missing: {missing}; install with: {sudo}apt-get update && {sudo}apt-get install -y --no-install-recommends {}",
                packages.join(" ")
            )
        } else {
            write!(
                formatter,
                "missing: {missing}; install them with this system's package manager (Debian calls them: {})",
                packages.join(" ")
            )
        }
    }
}

/// Whether everything for these needs is there; if not, all that is missing at once.
pub fn check(needs: &[Need]) -> Result<(), Missing> {
    let tools: Vec<(Tool, Option<String>)> = TOOLS
        .into_iter()
        .filter(|tool| needs.contains(&tool.need))
        .filter_map(|tool| match find(tool.command) {
            None => Some((tool, None)),
            Some(path) if tool.command == "java" => match java_version(&path) {
                Some(version) if version >= JAVA_VERSION => None,
                Some(version) => Some((tool, Some(format!("version {version}")))),
                None => Some((tool, Some("one that does not run".to_owned()))),
            },
            Some(path) if tool.command == "pkg-config" => match knows_openssl(&path) {
                true => None,
                false => Some((tool, Some("pkg-config without OpenSSL's headers".to_owned()))),
            },
            Some(_) => None,
        })
        .collect();
    if tools.is_empty() { Ok(()) } else { Err(Missing { tools }) }
}

/// Where a command is, as the shell would find it.
pub(super) fn find(command: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(command))
        .find(|path| fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0))
}

/// Debian 13 and later no longer have Java 17; what they have by default is newer.
fn java_package(os_release: &str) -> &'static str {
    let value = |key: &str| {
        os_release
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches('"'))
    };
    let version = value("VERSION_ID").and_then(|version| version.split('.').next()?.parse().ok());
    match (value("ID"), version) {
        (Some("debian"), Some(13_u32..)) => "default-jre-headless",
        _ => "openjdk-17-jre-headless",
    }
}

/// Kafka's client is compiled along and links the system's OpenSSL.
fn knows_openssl(pkg_config: &Path) -> bool {
    let asked = Command::new(pkg_config).args(["--exists", "openssl"]).stdin(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

fn java_version(java: &Path) -> Option<u32> {
    let output = Command::new(java).arg("-version").stdin(Stdio::null()).output().ok()?;
    parse_java_version(&String::from_utf8_lossy(&output.stderr))
}

/// The major version out of `openjdk version "17.0.15" 2025-04-15`; the old numbering said 1.8 for 8.
fn parse_java_version(text: &str) -> Option<u32> {
    let version = text.split('"').nth(1)?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    let first: u32 = numbers.next()?.parse().ok()?;
    if first == 1 { numbers.next()?.parse().ok() } else { Some(first) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_versions_of_all_times_are_understood() {
        for (text, version) in [
            ("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK ...", Some(17)),
            ("openjdk version \"21\" 2023-09-19", Some(21)),
            ("java version \"1.8.0_392\"", Some(8)),
            ("openjdk version \"25-ea\"", Some(25)),
            ("no java here", None),
        ] {
            assert_eq!(parse_java_version(text), version, "{text}");
        }
    }

    #[test]
    fn the_java_package_exists_on_the_system() {
        let debian = |version: &str| format!("ID=debian\nVERSION_ID=\"{version}\"\n");
        assert_eq!(java_package(&debian("12")), "openjdk-17-jre-headless");
        assert_eq!(java_package(&debian("13")), "default-jre-headless");
        assert_eq!(java_package("ID=ubuntu\nVERSION_ID=\"24.04\""), "openjdk-17-jre-headless");
    }

    #[test]
    fn one_message_names_everything_that_is_missing_and_the_line_that_installs_it() {
        let missing = Missing { tools: vec![(TOOLS[0], Some("version 11".to_owned())), (TOOLS[2], None)] };
        let text = missing.to_string();
        for part in ["Java", "found: version 11", "Maven", "-jre-headless maven"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }
}
