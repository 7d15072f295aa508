//! What `apply` would do: the difference between the topology and what is there, and what it refuses.
//!
//! Pure: the state comes in as values, and nothing happens here. What would lose records, move organizations between
//! partitions or mix schemas that cannot read each other is refused, and then nothing at all is applied.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Topology;
use super::topics::{FOREVER, Profile, Scale, Spec, readable};
use crate::control::Tables;
use crate::records::Topic;
use crate::records::control::{Entity, EntityKind};

/// The compatibility of every subject.
pub const COMPATIBILITY: &str = "FULL_TRANSITIVE";

/// A topic as it is in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopicState {
    pub partitions: u32,
    pub replication_factor: u16,
    /// Effective values.
    pub configs: BTreeMap<String, String>,
    /// The names among them that were set for this topic.
    pub own: BTreeSet<String>,
}

/// A subject as it is in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubjectState {
    /// Set for the subject itself.
    pub compatibility: Option<String>,
    /// Whether it has any schema.
    pub exists: bool,
    /// Whether it has the one that this program writes.
    pub registered: bool,
    /// Why the registry would not take ours.
    pub incompatible: Vec<String>,
}

/// Everything that is there.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub brokers: usize,
    pub topics: BTreeMap<Topic, TopicState>,
    pub subjects: BTreeMap<Topic, SubjectState>,
    pub control: Tables,
    /// Entities that were deleted on purpose, which seeds do not bring back.
    pub deleted: BTreeSet<(EntityKind, String)>,
    /// Names of ClickHouse's pending migrations, in order.
    pub migrations: Vec<String>,
    /// Tables of ClickHouse that keep their rows longer or shorter than the configuration says, and what it says.
    pub retentions: Vec<String>,
}

/// What is wanted, beside the topology.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    pub profile: Profile,
    /// In place of the profile's number.
    pub partitions: Option<u32>,
    pub topic_prefix: &'a str,
    /// Whether entities of control that differ from their seed are changed.
    pub update_seeds: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Create,
    Change,
    /// It differs, and stays as it is.
    Leave,
    Unchanged,
}

impl Action {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Change => "change",
            Self::Leave => "leave",
            Self::Unchanged => "unchanged",
        }
    }
}

/// One thing of the topology and what becomes of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Item {
    pub kind: &'static str,
    pub name: String,
    pub action: Action,
    pub detail: String,
    #[serde(skip)]
    pub step: Option<Step>,
}

/// What is done for an item.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a plan has few steps")]
pub enum Step {
    CreateTopic {
        name: String,
        partitions: u32,
        replication_factor: u16,
        configs: BTreeMap<String, String>,
    },
    /// All of the topic's own configuration, as Kafka replaces it whole.
    AlterTopic {
        name: String,
        configs: BTreeMap<String, String>,
    },
    Schema {
        topic: Topic,
        set_compatibility: bool,
        register: bool,
    },
    Put {
        id: String,
        entity: Entity,
        expected_version: i64,
    },
    Migrate,
}

/// What is not done, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    pub kind: &'static str,
    pub name: String,
    pub why: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.name, self.why)
    }
}

/// The difference.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Plan {
    pub items: Vec<Item>,
    pub refusals: Vec<Refusal>,
}

impl Plan {
    /// Whether everything is as it should be.
    pub fn nothing_to_do(&self) -> bool {
        self.refusals.is_empty() && self.items.iter().all(|item| item.step.is_none())
    }

    /// How many items have this action.
    pub fn count(&self, action: Action) -> usize {
        self.items.iter().filter(|item| item.action == action).count()
    }
}

/// Compares.
pub fn plan(topology: &Topology, wanted: Wanted<'_>, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    let mut scale = topology.topics.scale(wanted.profile);
    scale.partitions = wanted.partitions.unwrap_or(scale.partitions);
    let creates = topology.topics.specs.iter().any(|spec| !observed.topics.contains_key(&spec.topic));
    if creates && observed.brokers < usize::from(scale.replication_factor) {
        let (name, needed, there) = (wanted.profile.name(), scale.replication_factor, observed.brokers);
        let why = format!("needs {needed} brokers, and the cluster has {there}; use --profile laptop or add brokers");
        plan.refusals.push(Refusal { kind: "profile", name: name.to_owned(), why });
    }
    for spec in &topology.topics.specs {
        let name = format!("{}{}", wanted.topic_prefix, spec.topic.name());
        match observed.topics.get(&spec.topic) {
            None => plan.items.push(new_topic(spec, scale, name)),
            Some(state) => known_topic(spec, scale, name, state, &mut plan),
        }
    }
    for topic in Topic::ALL {
        let subject = format!("{}{}-value", wanted.topic_prefix, topic.name());
        let state = observed.subjects.get(&topic).cloned().unwrap_or_default();
        schema(topic, subject, &state, &mut plan);
    }
    for (id, entity) in topology.seeds.entities() {
        plan.items.push(seed(id, entity, wanted.update_seeds, observed));
    }
    for (index, name) in observed.migrations.iter().enumerate() {
        // Migrations run together and in order, with the first of them.
        let step = (index == 0).then_some(Step::Migrate);
        let item = Item { kind: "migration", name: name.clone(), action: Action::Create, detail: String::new(), step };
        plan.items.push(item);
    }
    for (index, name) in observed.retentions.iter().enumerate() {
        let step = (index == 0 && observed.migrations.is_empty()).then_some(Step::Migrate);
        let item = Item { kind: "retention", name: name.clone(), action: Action::Change, detail: String::new(), step };
        plan.items.push(item);
    }
    plan
}

fn new_topic(spec: &Spec, scale: Scale, name: String) -> Item {
    let partitions = spec.partitions(scale);
    let configs = spec.configs(scale).into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let detail = format!("{partitions} partitions, kept {}", readable(spec.retention.millis()));
    let replication_factor = scale.replication_factor;
    let step = Step::CreateTopic { name: name.clone(), partitions, replication_factor, configs };
    Item { kind: "topic", name, action: Action::Create, detail, step: Some(step) }
}

fn known_topic(spec: &Spec, scale: Scale, name: String, state: &TopicState, plan: &mut Plan) {
    let before = plan.refusals.len();
    let mut refuse = |why: String| plan.refusals.push(Refusal { kind: "topic", name: name.clone(), why });
    let partitions = spec.partitions(scale);
    if state.partitions != partitions {
        let there = state.partitions;
        refuse(format!(
            "has {there} partitions, not {partitions}; the number cannot change, since organizations would move to \
             other partitions: give --partitions {there} (or the --profile that it was made with)"
        ));
    }
    if state.replication_factor < scale.replication_factor {
        let (there, wanted) = (state.replication_factor, scale.replication_factor);
        refuse(format!("has {there} replicas, not {wanted}; move it with kafka-reassign-partitions first"));
    }
    let mut changes = Vec::new();
    for (key, value) in spec.configs(scale) {
        let there = state.configs.get(key).map(String::as_str).unwrap_or_default();
        if there == value {
            continue;
        }
        match allowed(spec.topic, key, there, &value) {
            Ok(()) => changes.push((key, there.to_owned(), value)),
            Err(why) => refuse(format!("{key} is {there}, not {value}; {why}")),
        }
    }
    if plan.refusals.len() > before {
        return;
    }
    if changes.is_empty() {
        let detail = format!("{partitions} partitions");
        return plan.items.push(Item { kind: "topic", name, action: Action::Unchanged, detail, step: None });
    }
    let detail = changes.iter().map(|(key, from, to)| format!("{key} {from} -> {to}")).collect::<Vec<_>>().join(", ");
    let own = state.configs.iter().filter(|(key, _)| state.own.contains(*key));
    let mut configs: BTreeMap<String, String> = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    configs.extend(spec.configs(scale).into_iter().map(|(key, value)| (key.to_owned(), value)));
    let step = Step::AlterTopic { name: name.clone(), configs };
    plan.items.push(Item { kind: "topic", name, action: Action::Change, detail, step: Some(step) });
}

/// Whether a topic's configuration may go from one value to another without losing records; else what to do.
fn allowed(topic: Topic, key: &str, from: &str, to: &str) -> Result<(), &'static str> {
    let lasting = FOREVER.contains(&topic);
    match key {
        "cleanup.policy" => Err("the other policy deletes records; move what is needed and change it by hand"),
        "retention.ms" | "retention.bytes" if lasting => {
            Err("records of it may be deleted already, so state cannot be trusted: look at its first offsets, restore \
                 what is missing, and then set it to -1 by hand")
        }
        "retention.ms" => {
            let forever = |text: &str| text.parse::<i64>().map(|ms| if ms < 0 { i64::MAX } else { ms });
            match (forever(from), forever(to)) {
                (Ok(from), Ok(to)) if to >= from => Ok(()),
                _ => Err("a shorter retention deletes records; change it by hand if that is meant"),
            }
        }
        _ => Ok(()),
    }
}

fn schema(topic: Topic, subject: String, state: &SubjectState, plan: &mut Plan) {
    let mut refuse = |why: String| plan.refusals.push(Refusal { kind: "schema", name: subject.clone(), why });
    match state.compatibility.as_deref() {
        None | Some(COMPATIBILITY) => {}
        Some(other) => {
            return refuse(format!(
                "its compatibility is {other}, not {COMPATIBILITY}; schemas that cannot read each other may be \
                 registered: look at its versions, then set it by hand"
            ));
        }
    }
    if !state.registered && !state.incompatible.is_empty() {
        let why = state.incompatible.join("; ");
        return refuse(format!("the registry says that the new schema is not {COMPATIBILITY}: {why}"));
    }
    let set_compatibility = state.compatibility.is_none();
    let mut detail = Vec::new();
    if !state.registered {
        detail.push(if state.exists { "a new version" } else { "the first version" });
    }
    if set_compatibility {
        detail.push(COMPATIBILITY);
    }
    let action = match (state.exists, detail.is_empty()) {
        (false, _) => Action::Create,
        (true, false) => Action::Change,
        (true, true) => Action::Unchanged,
    };
    let step = Step::Schema { topic, set_compatibility, register: !state.registered };
    let step = (action != Action::Unchanged).then_some(step);
    plan.items.push(Item { kind: "schema", name: subject, action, detail: detail.join(", "), step });
}

fn seed(id: &str, entity: Entity, update: bool, observed: &Observed) -> Item {
    let kind = entity.kind();
    let version = observed.control.version_of(kind, id);
    let there = observed.control.entity(kind, id);
    let (action, detail) = match &there {
        None if observed.deleted.contains(&(kind, id.to_owned())) => {
            (Action::Leave, "was deleted on control and stays so".to_owned())
        }
        None => (Action::Create, String::new()),
        Some(there) if *there == entity => (Action::Unchanged, format!("version {version}")),
        Some(_) if update => (Action::Change, format!("replaces version {version}")),
        Some(_) => (Action::Leave, format!("version {version} differs; --update-seeds replaces it")),
    };
    let put = Step::Put { id: id.to_owned(), entity, expected_version: version };
    let step = matches!(action, Action::Create | Action::Change).then_some(put);
    Item { kind: kind.name(), name: id.to_owned(), action, detail, step }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{OrganizationId, Timestamp};
    use crate::records::control::{ControlRecord, Stamp};

    const WANTED: Wanted<'static> =
        Wanted { profile: Profile::Laptop, partitions: None, topic_prefix: "t-", update_seeds: false };

    fn topology() -> Topology {
        Topology::embedded().unwrap()
    }

    fn record(id: &str, entity: Entity, expected_version: i64) -> ControlRecord {
        let stamp = Stamp { change_id: "c".into(), actor: "test".into(), at: Timestamp::from_millis(0) };
        ControlRecord::put(id, entity, expected_version, stamp)
    }

    /// A cluster to which the topology was applied.
    fn applied(topology: &Topology) -> Observed {
        let scale = topology.topics.laptop;
        let mut observed = Observed { brokers: 1, ..Observed::default() };
        for spec in &topology.topics.specs {
            let configs: BTreeMap<String, String> =
                spec.configs(scale).into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            let own = configs.keys().cloned().collect();
            let partitions = spec.partitions(scale);
            let state = TopicState { partitions, replication_factor: 1, configs, own };
            observed.topics.insert(spec.topic, state);
            let compatibility = Some(COMPATIBILITY.to_owned());
            let subject = SubjectState { compatibility, exists: true, registered: true, incompatible: vec![] };
            observed.subjects.insert(spec.topic, subject);
        }
        for (offset, (id, entity)) in (0..).zip(topology.seeds.entities()) {
            observed.control.apply(offset, &record(id, entity, -1)).unwrap();
        }
        observed
    }

    fn refusals(change: impl Fn(&mut Observed), wanted: Wanted<'_>) -> String {
        let topology = topology();
        let mut observed = applied(&topology);
        change(&mut observed);
        let plan = plan(&topology, wanted, &observed);
        plan.refusals.iter().map(Refusal::to_string).collect::<Vec<_>>().join("\n")
    }

    fn set(observed: &mut Observed, topic: Topic, key: &str, value: &str) {
        observed.topics.get_mut(&topic).unwrap().configs.insert(key.into(), value.into());
    }

    #[test]
    fn an_empty_cluster_gets_everything_and_a_second_run_nothing() {
        let topology = topology();
        let empty = Observed { brokers: 1, migrations: vec!["0001".into(), "0002".into()], ..Observed::default() };
        let first = plan(&topology, WANTED, &empty);
        assert_eq!(first.refusals, []);
        assert_eq!(first.count(Action::Create), first.items.len());
        assert_eq!(first.items.iter().filter(|item| item.step == Some(Step::Migrate)).count(), 1);
        let second = plan(&topology, WANTED, &applied(&topology));
        assert!(second.nothing_to_do(), "{second:?}");
        assert_eq!(second.count(Action::Unchanged), second.items.len());
    }

    #[test]
    fn another_retention_is_one_step_and_goes_with_the_migrations() {
        let topology = topology();
        let mut observed = applied(&topology);
        observed.retentions = vec!["usage for 30 days".into(), "refusals for ever".into()];
        let steps = |observed: &Observed| {
            let plan = plan(&topology, WANTED, observed);
            assert_eq!(plan.items.iter().filter(|item| item.kind == "retention").count(), 2);
            plan.items
                .into_iter()
                .filter(|item| item.step == Some(Step::Migrate))
                .map(|item| item.kind)
                .collect::<Vec<_>>()
        };
        assert_eq!(steps(&observed), ["retention"]);
        observed.migrations = vec!["0001".into()];
        assert_eq!(steps(&observed), ["migration"]);
    }

    #[test]
    fn what_would_lose_something_is_refused() {
        let journal = Topic::Journal;
        let cases: [(fn(&mut Observed), &str); 7] = [
            (|o| o.topics.get_mut(&Topic::Requests).unwrap().partitions = 8, "--partitions 8"),
            (|o| set(o, Topic::Journal, "retention.ms", "604800000"), "retention.ms is 604800000, not -1"),
            (|o| set(o, Topic::Control, "retention.bytes", "1000"), "retention.bytes is 1000, not -1"),
            (|o| set(o, Topic::Journal, "cleanup.policy", "compact"), "cleanup.policy is compact"),
            (|o| set(o, Topic::Usage, "retention.ms", "-1"), "shorter retention deletes records"),
            (|o| o.subjects.get_mut(&Topic::Usage).unwrap().compatibility = Some("NONE".into()), "is NONE"),
            (
                |o| {
                    let subject = o.subjects.get_mut(&Topic::Journal).unwrap();
                    (subject.registered, subject.incompatible) = (false, vec!["MISSING_UNION_BRANCH".into()]);
                },
                "MISSING_UNION_BRANCH",
            ),
        ];
        for (change, expected) in cases {
            let refused = refusals(change, WANTED);
            assert!(refused.contains(expected) && refused.lines().count() == 1, "{expected}: {refused}");
        }
        assert_eq!(refusals(|_| (), WANTED), "");
        let more = refusals(|_| (), Wanted { partitions: Some(16), ..WANTED });
        assert!(more.contains(&format!("t-{} has 4 partitions", journal.name())) || more.contains("--partitions 4"));
        let production = Wanted { profile: Profile::Production, ..WANTED };
        assert!(refusals(|o| o.topics.clear(), production).contains("needs 3 brokers"));
        assert!(refusals(|_| (), production).contains("kafka-reassign-partitions"));
    }

    #[test]
    fn a_change_that_loses_nothing_is_made_and_keeps_what_people_set() {
        let topology = topology();
        let mut observed = applied(&topology);
        set(&mut observed, Topic::Requests, "retention.ms", "3600000");
        let state = observed.topics.get_mut(&Topic::Requests).unwrap();
        state.configs.insert("index.interval.bytes".into(), "9".into());
        state.configs.insert("flush.ms".into(), "5".into());
        state.own.insert("flush.ms".into());
        let plan = plan(&topology, WANTED, &observed);
        let changed: Vec<&Item> = plan.items.iter().filter(|item| item.step.is_some()).collect();
        let [Item { step: Some(Step::AlterTopic { name, configs }), detail, .. }] = changed[..] else {
            panic!("{changed:?}")
        };
        assert_eq!((name.as_str(), detail.as_str()), ("t-requests", "retention.ms 3600000 -> 604800000"));
        assert_eq!(configs["flush.ms"], "5");
        assert!(!configs.contains_key("index.interval.bytes"), "a default is not made the topic's own");
    }

    #[test]
    fn what_is_on_control_stays_unless_asked() {
        let topology = topology();
        let mut observed = applied(&topology);
        let (id, kind) = (OrganizationId::parse("org_demo").unwrap(), EntityKind::Organization);
        let mut other = topology.seeds.organizations[&id].clone();
        other.name = "Renamed".into();
        let version = observed.control.version_of(kind, id.as_str());
        let renamed = record(id.as_str(), Entity::Organization(other), version);
        observed.control.apply(1_000, &renamed).unwrap();
        let item = |observed: &Observed, wanted| {
            plan(&topology, wanted, observed).items.into_iter().find(|i| i.name == "org_demo").unwrap()
        };
        assert_eq!(item(&observed, WANTED).action, Action::Leave);
        let changed = item(&observed, Wanted { update_seeds: true, ..WANTED });
        assert!(matches!(changed.step, Some(Step::Put { expected_version: 1_000, .. })), "{changed:?}");
        let deletion = ControlRecord { deleted: true, ..record(id.as_str(), changed_entity(&changed), 1_000) };
        observed.control.apply(1_001, &deletion).unwrap();
        observed.deleted.insert((kind, id.to_string()));
        assert_eq!(item(&observed, WANTED).action, Action::Leave);
    }

    fn changed_entity(item: &Item) -> Entity {
        match &item.step {
            Some(Step::Put { entity, .. }) => entity.clone(),
            other => panic!("{other:?}"),
        }
    }
}
