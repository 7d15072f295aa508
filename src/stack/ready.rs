//! Whether an engine really serves: not an open port, but an answer to the first question that a client would ask.

use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Addresses, Engine};

/// The longest that one answer may take.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// More than any of the answers has; the rest is not read.
const ANSWER_BYTES: u64 = 64 * 1024;

/// Asks an engine once.
pub(super) async fn probe(engine: Engine, addresses: &Addresses) -> Result<(), String> {
    match engine {
        Engine::Kafka => kafka_metadata(&addresses.kafka).await,
        Engine::Registry => {
            let (host, path) = split(&addresses.registry)?;
            let body = http_get(host, &format!("{path}/subjects")).await?;
            if body.trim_start().starts_with('[') {
                Ok(())
            } else {
                Err("the registry's answer is no list of subjects".to_owned())
            }
        }
        Engine::ClickHouse => {
            let (host, _) = split(&addresses.clickhouse)?;
            let body = http_get(host, "/?query=SELECT%201").await?;
            if body.trim() == "1" { Ok(()) } else { Err("the answer to SELECT 1 is not 1".to_owned()) }
        }
    }
}

/// `http://host:port/path` in host with port, and path.
fn split(url: &str) -> Result<(&str, &str), String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url} is no http address"))?;
    Ok(rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash)))
}

/// One request without a client library: nothing that a proxy setting or a missing TLS provider could disturb.
async fn http_get(host: &str, path: &str) -> Result<String, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(host).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: */*\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = timeout(ANSWER_LIMIT, exchange)
        .await
        .map_err(|_| format!("no answer within {} s", ANSWER_LIMIT.as_secs()))?
        .map_err(|error| error.to_string())?;
    parse_answer(&answer)
}

fn parse_answer(answer: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("the answer is not HTTP")?;
    let status = head.split_whitespace().nth(1).unwrap_or("none");
    if status == "200" { Ok(body.to_owned()) } else { Err(format!("the answer has status {status}")) }
}

/// librdkafka tells of every refused connection; while an engine starts these are no news.
struct Silent;

impl ClientContext for Silent {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _message: &str) {}
    fn error(&self, _error: KafkaError, _reason: &str) {}
}

impl ConsumerContext for Silent {}

async fn kafka_metadata(address: &str) -> Result<(), String> {
    // A plain connection first: it fails at once while the broker does not listen yet.
    timeout(ANSWER_LIMIT, TcpStream::connect(address))
        .await
        .map_err(|_| "no connection".to_owned())?
        .map_err(|error| error.to_string())?;
    let address = address.to_owned();
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer<Silent> = ClientConfig::new()
            .set("bootstrap.servers", address)
            .set_log_level(RDKafkaLogLevel::Emerg)
            .create_with_context(Silent)
            .map_err(|error| error.to_string())?;
        let metadata = consumer.fetch_metadata(None, ANSWER_LIMIT).map_err(|error| error.to_string())?;
        if metadata.brokers().is_empty() { Err("no broker is registered yet".to_owned()) } else { Ok(()) }
    })
    .await
    .map_err(|error| error.to_string())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_complete_good_answer_counts() {
        assert_eq!(parse_answer(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n1\n").unwrap(), "1\n");
        assert!(parse_answer(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").is_err());
        assert!(parse_answer(b"HTTP/1.1 200 OK\r\nA: b").is_err());
        assert!(parse_answer(b"").is_err());
    }

    #[test]
    fn addresses_are_split_into_host_and_path() {
        assert_eq!(split("http://127.0.0.1:8081/apis/v7"), Ok(("127.0.0.1:8081", "/apis/v7")));
        assert_eq!(split("http://127.0.0.1:8123"), Ok(("127.0.0.1:8123", "")));
        assert!(split("127.0.0.1").is_err());
    }
}
