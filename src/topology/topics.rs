//! `topology/topics.toml`: how large, how safe and how lasting each topic is.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Files, Problem};
use crate::records::Topic;

pub const FILE: &str = "topology/topics.toml";

/// Most partitions that a topic may have here: a laptop's broker stays usable, and a typing error is caught.
const PARTITIONS_MAX: u32 = 4096;
/// The topics on which an organization's partition is the same.
pub const BY_ORGANIZATION: [Topic; 4] = [Topic::Requests, Topic::Journal, Topic::State, Topic::Cache];
/// The topics that keep everything for ever: they are the only authority on what they hold.
pub const FOREVER: [Topic; 2] = [Topic::Journal, Topic::Control];

/// Where the topics live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// One broker.
    Laptop,
    /// A cluster of three brokers or more.
    Production,
}

impl Profile {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Laptop => "laptop",
            Self::Production => "production",
        }
    }
}

/// How large and how safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    pub partitions: u32,
    pub replication_factor: u16,
    pub min_insync_replicas: u16,
}

/// What becomes of old records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cleanup {
    Delete,
    Compact,
}

/// Whose clock a record's time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Timestamps {
    Broker,
    Producer,
}

/// How long records are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Forever,
    For(Duration),
}

impl Retention {
    /// As Kafka writes it: milliseconds, -1 for ever.
    pub fn millis(self) -> i64 {
        match self {
            Self::Forever => -1,
            Self::For(time) => i64::try_from(time.as_millis()).unwrap_or(i64::MAX),
        }
    }
}

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub topic: Topic,
    /// For people.
    pub holds: String,
    /// For people: what the key is.
    pub key: String,
    /// Whether prompts and answers are on it.
    pub content: bool,
    /// `None`: what the profile says.
    pub partitions: Option<u32>,
    pub cleanup: Cleanup,
    pub retention: Retention,
    pub segment: Option<Duration>,
    pub timestamps: Timestamps,
    pub max_message_bytes: u64,
}

/// All topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    pub laptop: Scale,
    pub production: Scale,
    /// In the order of the file.
    pub specs: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    profiles: Profiles,
    #[serde(default)]
    topics: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Profiles {
    laptop: Scale,
    production: Scale,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    name: String,
    holds: String,
    key: String,
    content: bool,
    #[serde(default)]
    partitions: Option<u32>,
    cleanup: Cleanup,
    retention: String,
    #[serde(default)]
    segment: Option<String>,
    timestamps: Timestamps,
    max_message_bytes: u64,
}

impl Topics {
    /// Parses and checks the file; adds what is wrong to `problems`.
    pub fn parse(files: &Files, problems: &mut Vec<Problem>) -> Option<Self> {
        let Some(text) = files.get(FILE) else {
            problems.push(Problem::new(FILE, "", "the file is missing"));
            return None;
        };
        let file: File = match toml::from_str(text) {
            Ok(file) => file,
            Err(e) => {
                problems.push(Problem::new(FILE, "", e.to_string().trim_end()));
                return None;
            }
        };
        let before = problems.len();
        let specs = file.topics.into_iter().filter_map(|item| spec(item, problems)).collect();
        let topics = Self { laptop: file.profiles.laptop, production: file.profiles.production, specs };
        topics.check(problems);
        (problems.len() == before).then_some(topics)
    }

    pub fn scale(&self, profile: Profile) -> Scale {
        match profile {
            Profile::Laptop => self.laptop,
            Profile::Production => self.production,
        }
    }

    pub fn spec(&self, topic: Topic) -> Option<&Spec> {
        self.specs.iter().find(|spec| spec.topic == topic)
    }

    fn check(&self, problems: &mut Vec<Problem>) {
        for topic in Topic::ALL {
            let problem = match self.specs.iter().filter(|spec| spec.topic == topic).count() {
                1 => continue,
                0 => "is missing; the program reads or writes it",
                _ => "is there more than once",
            };
            problems.push(Problem::new(FILE, format!("topics.{}", topic.name()), problem));
        }
        for (profile, scale) in [("laptop", self.laptop), ("production", self.production)] {
            check_scale(profile, scale, problems);
        }
        for topic in BY_ORGANIZATION {
            if self.spec(topic).is_some_and(|spec| spec.partitions.is_some()) {
                let item = format!("topics.{}.partitions", topic.name());
                let problem = "must follow the profile: requests, journal, state and cache need the same number";
                problems.push(Problem::new(FILE, item, problem));
            }
        }
        if self.spec(Topic::Control).is_some_and(|spec| spec.partitions != Some(1)) {
            problems.push(Problem::new(FILE, "topics.control.partitions", "must be 1: its order decides"));
        }
        if self.spec(Topic::Requests).is_some_and(|spec| spec.timestamps != Timestamps::Broker) {
            let problem = "must be \"broker\": deadlines are counted from the record's time";
            problems.push(Problem::new(FILE, "topics.requests.timestamps", problem));
        }
        for topic in [Topic::State, Topic::Cache] {
            if self.spec(topic).is_some_and(|spec| spec.cleanup != Cleanup::Compact) {
                let problem = "must be \"compact\": the latest of each key is needed, however old";
                problems.push(Problem::new(FILE, format!("topics.{}.cleanup", topic.name()), problem));
            }
        }
        for spec in FOREVER.iter().filter_map(|topic| self.spec(*topic)) {
            if spec.retention != Retention::Forever || spec.cleanup != Cleanup::Delete {
                let item = format!("topics.{}.retention", spec.topic.name());
                let problem = "must be \"forever\" with cleanup \"delete\": nothing else can say what it holds";
                problems.push(Problem::new(FILE, item, problem));
            }
        }
    }
}

fn check_scale(profile: &str, scale: Scale, problems: &mut Vec<Problem>) {
    if !(1..=PARTITIONS_MAX).contains(&scale.partitions) {
        let item = format!("profiles.{profile}.partitions");
        problems.push(Problem::new(FILE, item, format!("must be from 1 to {PARTITIONS_MAX}")));
    }
    if scale.min_insync_replicas == 0 || scale.min_insync_replicas > scale.replication_factor {
        let item = format!("profiles.{profile}.min_insync_replicas");
        problems.push(Problem::new(FILE, item, "must be from 1 to replication_factor"));
    }
}

fn spec(item: Item, problems: &mut Vec<Problem>) -> Option<Spec> {
    let at = |key: &str| format!("topics.{}{key}", item.name);
    let known = || Topic::ALL.map(Topic::name).join(", ");
    let before = problems.len();
    let topic = Topic::from_name(&item.name);
    if topic.is_none() {
        problems.push(Problem::new(FILE, at(""), format!("is no topic of this version; it has {}", known())));
    }
    let retention = match item.retention.as_str() {
        "forever" => Some(Retention::Forever),
        text => duration(text).map(Retention::For),
    };
    if retention.is_none() {
        let problem = format!("{:?} is no time; write \"7 days\", \"1 hour\" or \"forever\"", item.retention);
        problems.push(Problem::new(FILE, at(".retention"), problem));
    }
    let segment = item.segment.as_deref().map(duration);
    if segment == Some(None) {
        problems.push(Problem::new(FILE, at(".segment"), "is no time; write \"15 minutes\""));
    }
    if item.partitions.is_some_and(|n| !(1..=PARTITIONS_MAX).contains(&n)) {
        problems.push(Problem::new(FILE, at(".partitions"), format!("must be from 1 to {PARTITIONS_MAX}")));
    }
    if item.max_message_bytes < 1024 || item.max_message_bytes > 1 << 30 {
        problems.push(Problem::new(FILE, at(".max_message_bytes"), "must be from 1024 to 1073741824"));
    }
    if problems.len() > before {
        return None;
    }
    Some(Spec {
        topic: topic?,
        holds: item.holds,
        key: item.key,
        content: item.content,
        partitions: item.partitions,
        cleanup: item.cleanup,
        retention: retention?,
        segment: segment.flatten(),
        timestamps: item.timestamps,
        max_message_bytes: item.max_message_bytes,
    })
}

/// `7 days`, `1 hour`, `15 minutes`.
fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_once(' ')?;
    let seconds = match unit.strip_suffix('s').unwrap_or(unit) {
        "minute" => 60,
        "hour" => 3_600,
        "day" => 86_400,
        _ => return None,
    };
    let number: u64 = number.parse().ok().filter(|n| *n > 0)?;
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// How people read a retention or a segment's age.
pub fn readable(millis: i64) -> String {
    let units = [(86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute"), (1, "ms")];
    match units.iter().find(|(unit, _)| millis > 0 && millis % unit == 0) {
        _ if millis < 0 => "forever".to_owned(),
        Some((_, "ms")) | None => format!("{millis} ms"),
        Some((unit, name)) if millis == *unit => format!("1 {name}"),
        Some((unit, name)) => format!("{} {name}s", millis / unit),
    }
}

impl Spec {
    pub fn partitions(&self, scale: Scale) -> u32 {
        self.partitions.unwrap_or(scale.partitions)
    }

    /// The topic's configuration in Kafka's words; everything else is the broker's default.
    pub fn configs(&self, scale: Scale) -> BTreeMap<&'static str, String> {
        let cleanup = match self.cleanup {
            Cleanup::Delete => "delete",
            Cleanup::Compact => "compact",
        };
        let timestamps = match self.timestamps {
            Timestamps::Broker => "LogAppendTime",
            Timestamps::Producer => "CreateTime",
        };
        let mut configs = BTreeMap::from([
            ("cleanup.policy", cleanup.to_owned()),
            ("retention.ms", self.retention.millis().to_string()),
            // Retention is by time only: a burst must not push out what is still to be read.
            ("retention.bytes", "-1".to_owned()),
            ("message.timestamp.type", timestamps.to_owned()),
            ("max.message.bytes", self.max_message_bytes.to_string()),
            ("min.insync.replicas", scale.min_insync_replicas.to_string()),
            ("unclean.leader.election.enable", "false".to_owned()),
        ]);
        if let Some(segment) = self.segment {
            configs.insert("segment.ms", segment.as_millis().to_string());
        }
        configs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(change: impl Fn(&str) -> String) -> Vec<String> {
        let mut files = Files::embedded();
        let text = change(files.get(FILE).unwrap());
        files.set(FILE, &text);
        let mut problems = Vec::new();
        assert!(Topics::parse(&files, &mut problems).is_none());
        problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn the_shipped_file_holds() {
        let mut problems = Vec::new();
        let topics = Topics::parse(&Files::embedded(), &mut problems).unwrap();
        assert_eq!(problems, []);
        let journal = topics.spec(Topic::Journal).unwrap().configs(topics.production);
        assert_eq!(journal["retention.ms"], "-1");
        assert_eq!(journal["min.insync.replicas"], "2");
        let requests = topics.spec(Topic::Requests).unwrap();
        assert_eq!(requests.configs(topics.laptop)["retention.ms"], (7 * 86_400_000).to_string());
        assert_eq!(requests.configs(topics.laptop)["message.timestamp.type"], "LogAppendTime");
        assert_eq!(requests.partitions(topics.laptop), 4);
        assert_eq!(topics.spec(Topic::Control).unwrap().partitions(topics.production), 1);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let problems = problems_of(|text| text.replacen("holds =", "colour = 1\nholds =", 1));
        assert!(problems[0].contains("colour"), "{problems:?}");
    }

    #[test]
    fn every_problem_is_listed() {
        let problems = problems_of(|text| {
            text.replace("\"usage\"", "\"usages\"")
                .replace("\"7 days\"", "\"a week\"")
                .replace("retention = \"forever\"", "retention = \"5 days\"")
        });
        let all = problems.join("\n");
        for part in [
            "topics.usages: is no topic",
            "topics.usage: is missing",
            "topics.requests.retention: \"a week\" is no time",
            "topics.journal.retention: must be \"forever\"",
            "topics.control.retention: must be \"forever\"",
        ] {
            assert!(all.contains(part), "{part}: {all}");
        }
    }

    #[test]
    fn times_read_and_print() {
        for (text, shown) in [("15 minutes", "15 minutes"), ("1 hour", "1 hour"), ("24 hours", "1 day")] {
            let millis = Retention::For(duration(text).unwrap()).millis();
            assert_eq!(readable(millis), shown);
        }
        assert_eq!(readable(-1), "forever");
        assert_eq!(readable(1_500), "1500 ms");
        for text in ["7", "7d", "0 days", "-1 days", "7  days"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
