//! Where the engines listen, and who is there already.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Error, process};

const FREE_PORT_ATTEMPTS: u32 = 1_000;

/// The ports of the engines, all on 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// Where Kafka's clients connect.
    pub kafka: u16,
    /// Where Kafka's broker talks to its controller.
    pub kafka_controller: u16,
    /// The registry's HTTP port.
    pub registry: u16,
    /// ClickHouse's HTTP port.
    pub clickhouse_http: u16,
    /// ClickHouse's native port.
    pub clickhouse_tcp: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { kafka: 9092, kafka_controller: 9093, registry: 8081, clickhouse_http: 8123, clickhouse_tcp: 9000 }
    }
}

/// One port with the words that people know it by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    pub(super) port: u16,
    pub(super) purpose: &'static str,
    pub(super) flag: &'static str,
}

impl Ports {
    /// Five different ports that nobody listens on now. They lie below the range out of which the kernel gives ports to
    /// outgoing connections, so that an engine which is started again finds its port still free.
    pub fn free() -> Result<Self, Error> {
        let mut taken: Vec<TcpListener> = Vec::with_capacity(5);
        let mut next = || -> Result<u16, Error> {
            let listener = free_listener()?;
            let port = listener.local_addr().map_err(|_| Error::NoFreePort { attempts: 1 })?.port();
            taken.push(listener);
            Ok(port)
        };
        Ok(Self {
            kafka: next()?,
            kafka_controller: next()?,
            registry: next()?,
            clickhouse_http: next()?,
            clickhouse_tcp: next()?,
        })
    }

    pub(super) fn named(&self) -> [Named; 5] {
        let named = |port, purpose, flag| Named { port, purpose, flag };
        [
            named(self.kafka, "Kafka", "--kafka-port"),
            named(self.kafka_controller, "Kafka's controller", "--kafka-controller-port"),
            named(self.registry, "the registry", "--registry-port"),
            named(self.clickhouse_http, "ClickHouse", "--clickhouse-port"),
            named(self.clickhouse_tcp, "ClickHouse's native protocol", "--clickhouse-tcp-port"),
        ]
    }

    /// Refuses ports that are given twice or that somebody listens on. With `patience`, a taken port is tried again
    /// for that long: engines that were just killed take a moment to let go of theirs.
    pub(super) fn check(&self, patience: Duration) -> Result<(), Error> {
        let named = self.named();
        for (index, second) in named.iter().enumerate() {
            if let Some(first) = named[..index].iter().find(|one| one.port == second.port) {
                return Err(Error::PortTwice {
                    port: second.port,
                    first: first.purpose,
                    second: second.purpose,
                    flag: second.flag,
                });
            }
        }
        let deadline = Instant::now() + patience;
        for one in named {
            while TcpListener::bind((Ipv4Addr::LOCALHOST, one.port)).is_err() {
                if Instant::now() >= deadline {
                    return Err(Error::PortTaken {
                        port: one.port,
                        purpose: one.purpose,
                        flag: one.flag,
                        holder: holder(one.port),
                    });
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}

/// Refuses a port of the gateway's own that somebody listens on; 0 is any free port.
pub fn check_port(port: u16, purpose: &'static str, flag: &'static str) -> Result<(), Error> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::PortTaken { port, purpose, flag, holder: holder(port) }),
    }
}

/// A port that nobody listens on now, below the range out of which the kernel gives ports to outgoing connections: one of
/// those could hold it by the time that a server is up which is to listen there.
///
/// # Errors
/// [`Error::NoFreePort`].
pub fn free_port() -> Result<u16, Error> {
    Ok(free_listener()?.local_addr().map_err(|_| Error::NoFreePort { attempts: 1 })?.port())
}

fn free_listener() -> Result<TcpListener, Error> {
    let first_outgoing = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse::<u16>().ok())
        .unwrap_or(32_768);
    let (low, high) = if first_outgoing > 12_000 { (11_000, first_outgoing) } else { (11_000, u16::MAX) };
    for _ in 0..FREE_PORT_ATTEMPTS {
        let random = getrandom::u32().map_err(|_| Error::NoFreePort { attempts: 1 })?;
        let offset = u16::try_from(random % u32::from(high - low)).unwrap_or_default();
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, low + offset)) {
            return Ok(listener);
        }
    }
    Err(Error::NoFreePort { attempts: FREE_PORT_ATTEMPTS })
}

/// Who listens on a port, as far as this user may see it.
fn holder(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .find_map(|table| listening_inode(&fs::read_to_string(table).ok()?, port))?;
    let socket = format!("socket:[{inode}]");
    let pid = process::all().into_iter().find(|pid| {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == socket.as_str()))
    });
    match pid {
        Some(pid) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Some(format!("process {pid} ({})", name.trim()))
        }
        None => Some("a process of another user".to_owned()),
    }
}

/// The socket that listens on a port, out of the kernel's table of TCP sockets.
fn listening_inode(table: &str, port: u16) -> Option<String> {
    const LISTENING: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local_port = fields.get(1)?.rsplit_once(':')?.1;
        (u16::from_str_radix(local_port, 16) == Ok(port) && *fields.get(3)? == LISTENING)
            .then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ_and_pass_the_check() {
        let ports = Ports::free().unwrap();
        ports.check(Duration::ZERO).unwrap();
    }

    #[test]
    fn a_taken_port_is_refused_with_its_holder_and_the_flag() {
        let mut ports = Ports::free().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        ports.registry = listener.local_addr().unwrap().port();
        let message = ports.check(Duration::ZERO).unwrap_err().to_string();
        for part in [&ports.registry.to_string(), &std::process::id().to_string(), "the registry", "--registry-port"] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
    }

    #[test]
    fn one_port_for_two_purposes_is_refused() {
        let mut ports = Ports::free().unwrap();
        ports.clickhouse_tcp = ports.kafka;
        assert!(matches!(ports.check(Duration::ZERO), Err(Error::PortTwice { flag: "--clickhouse-tcp-port", .. })));
    }

    #[test]
    fn only_listening_sockets_hold_a_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:2384 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
             1: 0100007F:2384 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1\n";
        assert_eq!(listening_inode(table, 9092).as_deref(), Some("22"));
        assert_eq!(listening_inode(table, 9093), None);
    }
}
