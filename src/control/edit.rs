//! What operators may do to an entity, decided: a change for the log, or why there is none.
//!
//! Pure: the tables, the moment and a new key's random secret come in as values.

use super::Tables;
use super::check;
use super::document::{self, Object, Problem};
use crate::domain::Timestamp;
use crate::records::control::{Entity, EntityKind, Key};

/// Members of what is shown that are not part of the entity.
const OBJECT: &str = "object";
pub const VERSION: &str = "version";

/// A change that is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub kind: EntityKind,
    pub id: String,
    /// `None`: it is to be deleted.
    pub entity: Option<Entity>,
    /// The version of the entity that the writer saw, -1 when it does not exist.
    pub expected_version: i64,
}

impl Wanted {
    /// That an entity gets this value.
    pub fn put(id: &str, entity: Entity, expected_version: i64) -> Self {
        Self { kind: entity.kind(), id: id.to_owned(), entity: Some(entity), expected_version }
    }
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// A key brings what control holds of its new secret.
    Create {
        kind: EntityKind,
        document: Object,
        key: Option<Box<Key>>,
    },
    /// A merge patch on the document.
    Update {
        kind: EntityKind,
        id: String,
        patch: Object,
        version: Option<i64>,
    },
    Revoke {
        id: String,
        version: Option<i64>,
    },
    Delete {
        kind: EntityKind,
        id: String,
        version: Option<i64>,
    },
}

/// Why it is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no {} {id}", .kind.name())]
    NotFound { kind: EntityKind, id: String },
    #[error("{} {id} exists already; update it, or choose another {}", .kind.name(), .kind.id_field())]
    Exists { kind: EntityKind, id: String },
    #[error("{} {id} is at version {version}, not {expected}: somebody changed it; look at it again and repeat", .kind.name())]
    Conflict { kind: EntityKind, id: String, expected: i64, version: i64 },
    #[error("{} {id}: {}", .kind.name(), list(.problems))]
    Invalid { kind: EntityKind, id: String, problems: Vec<Problem> },
    #[error("{} {id} is in use by {users}; change or delete those first", .kind.name())]
    InUse { kind: EntityKind, id: String, users: String },
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
}

/// The change; `None` when the entity is so already.
///
/// # Errors
/// [`Refusal`], and then nothing has to be undone.
pub fn decide(tables: &Tables, edit: Edit, now: Timestamp) -> Result<Option<Wanted>, Refusal> {
    let wanted = match edit {
        Edit::Create { kind, document, key } => create(tables, kind, document, key.as_deref(), now)?,
        Edit::Update { kind, id, patch, version } => update(tables, kind, &id, patch, version, now)?,
        Edit::Revoke { id, version } => revoke(tables, &id, version)?,
        Edit::Delete { kind, id, version } => {
            let there = there(tables, kind, &id, version)?;
            Wanted { kind, id, entity: None, expected_version: there.1 }
        }
    };
    if wanted.entity.is_some() && wanted.entity == tables.entity(wanted.kind, &wanted.id) {
        return Ok(None);
    }
    let broken = check::check(tables, std::slice::from_ref(&wanted));
    if broken.is_empty() {
        return Ok(Some(wanted));
    }
    let Wanted { kind, id, .. } = wanted;
    match check::users(&broken, kind, &id) {
        Some(users) => Err(Refusal::InUse { kind, id, users }),
        None => {
            // Of a name that two entities share, what is said of this one.
            let own = broken.iter().any(|v| v.kind == kind && v.id == id);
            let of = broken.into_iter().filter(|v| !own || (v.kind == kind && v.id == id));
            Err(Refusal::Invalid { kind, id: id.clone(), problems: of.map(Problem::from).collect() })
        }
    }
}

fn create(
    tables: &Tables,
    kind: EntityKind,
    mut document: Object,
    key: Option<&Key>,
    now: Timestamp,
) -> Result<Wanted, Refusal> {
    let named = document::id_of(kind, &document).unwrap_or_default().to_owned();
    document.shift_remove(OBJECT);
    document.shift_remove(VERSION);
    let invalid = |problems| Refusal::Invalid { kind, id: named.clone(), problems };
    let (id, entity) = document::parse(kind, document, key).map_err(invalid)?;
    if tables.version_of(kind, &id) >= 0 {
        return Err(Refusal::Exists { kind, id });
    }
    not_expired(&entity, None, now).map_err(|problem| invalid(vec![problem]))?;
    Ok(Wanted::put(&id, entity, -1))
}

fn update(
    tables: &Tables,
    kind: EntityKind,
    id: &str,
    mut patch: Object,
    version: Option<i64>,
    now: Timestamp,
) -> Result<Wanted, Refusal> {
    patch.shift_remove(OBJECT);
    // What was shown with its version and is given back was made of that version.
    let shown = patch.shift_remove(VERSION).and_then(|version| version.as_i64());
    let (entity, version) = there(tables, kind, id, version.or(shown))?;
    let invalid = |problems| Refusal::Invalid { kind, id: id.to_owned(), problems };
    if document::id_of(kind, &patch).is_some_and(|named| named != id) {
        let problem = "cannot be changed; create another one and delete this";
        return Err(invalid(vec![Problem::new(kind.id_field(), problem)]));
    }
    let mut document = document::show(id, &entity);
    document::merge(&mut document, patch);
    let key = match &entity {
        Entity::Key(key) => Some(key),
        _ => None,
    };
    let (_, changed) = document::parse(kind, document, key).map_err(invalid)?;
    not_expired(&changed, Some(&entity), now).map_err(|problem| invalid(vec![problem]))?;
    Ok(Wanted::put(id, changed, version))
}

fn revoke(tables: &Tables, id: &str, version: Option<i64>) -> Result<Wanted, Refusal> {
    let (entity, version) = there(tables, EntityKind::Key, id, version)?;
    let revoked = match entity {
        Entity::Key(key) => Entity::Key(Key { active: false, ..key }),
        other => other,
    };
    Ok(Wanted::put(id, revoked, version))
}

/// The entity and its version, which has to be the one that the operator saw, if one is named.
fn there(tables: &Tables, kind: EntityKind, id: &str, seen: Option<i64>) -> Result<(Entity, i64), Refusal> {
    let not_found = || Refusal::NotFound { kind, id: id.to_owned() };
    let entity = tables.entity(kind, id).ok_or_else(not_found)?;
    let version = tables.version_of(kind, id);
    match seen {
        Some(expected) if expected != version => Err(Refusal::Conflict { kind, id: id.to_owned(), expected, version }),
        _ => Ok((entity, version)),
    }
}

/// A key that would be useless from its beginning is a mistake.
fn not_expired(entity: &Entity, before: Option<&Entity>, now: Timestamp) -> Result<(), Problem> {
    let expiry = |entity: &Entity| match entity {
        Entity::Key(key) => key.expires_at,
        _ => None,
    };
    match expiry(entity) {
        Some(at) if at <= now && before.and_then(expiry) != Some(at) => {
            Err(Problem::new("expires_at", format!("{at} is over; revoke the key if it is to end now")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::records::control::{ControlRecord, Stamp};

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn object(value: Value) -> Object {
        match value {
            Value::Object(object) => object,
            other => panic!("{other}"),
        }
    }

    fn create(kind: EntityKind, document: Value) -> Edit {
        let key = (kind == EntityKind::Key).then(|| Box::new(Key::of(vec![], "aa".into(), "tsk_aa".into())));
        Edit::Create { kind, document: object(document), key }
    }

    fn update(kind: EntityKind, id: &str, patch: Value, version: Option<i64>) -> Edit {
        Edit::Update { kind, id: id.into(), patch: object(patch), version }
    }

    fn delete(kind: EntityKind, id: &str) -> Edit {
        Edit::Delete { kind, id: id.into(), version: None }
    }

    fn apply(tables: &mut Tables, edit: Edit) {
        let wanted = decide(tables, edit, NOW).unwrap().unwrap();
        let stamp = Stamp { change_id: String::new(), actor: String::new(), at: NOW };
        let record = match wanted.entity {
            Some(entity) => ControlRecord::put(&wanted.id, entity, wanted.expected_version, stamp),
            None => ControlRecord::delete(wanted.kind, &wanted.id, wanted.expected_version, stamp),
        };
        let offset = tables.offset() + 1;
        assert_eq!(tables.apply(offset, &record).unwrap(), crate::control::Change::Effective);
    }

    /// A plan at version 0, an organization of it at 1, a key of that at 2.
    fn tables() -> Tables {
        let mut tables = Tables::default();
        apply(&mut tables, create(EntityKind::Plan, json!({"name": "team"})));
        apply(&mut tables, create(EntityKind::Organization, json!({"id": "acme", "name": "A", "plan": "team"})));
        apply(&mut tables, create(EntityKind::Key, json!({"id": "k", "organizations": ["acme"]})));
        tables
    }

    #[test]
    fn what_may_not_be_done_says_why() {
        use EntityKind::{Key, Organization, Plan, Policy};
        let past = "2020-01-01T00:00:00Z";
        let table = [
            (create(Plan, json!({"name": "team"})), "plan team exists already"),
            (create(Organization, json!({"id": "b", "name": "B", "plan": "no"})), "plan: there is no plan no"),
            (create(Plan, json!({"name": "p", "models": ["no"]})), "models: no is no model or alias"),
            (create(Key, json!({"id": "l", "organizations": ["no"]})), "organizations: there is no organization no"),
            (create(Key, json!({"id": "l", "organizations": ["acme"], "expires_at": past})), "expires_at: 2020"),
            (
                create(
                    Policy,
                    json!({"name": "p", "default_tier": 1, "max_attempts": 1, "tiers": [{"tier": 1, "candidates": ["no"]}]}),
                ),
                "tiers[0].candidates: no is no model",
            ),
            (update(Plan, "no", json!({}), None), "there is no plan no"),
            (update(Plan, "team", json!({"name": "other"}), None), "name: cannot be changed"),
            (update(Plan, "team", json!({"output_cap": 1}), Some(7)), "at version 0, not 7"),
            (update(Plan, "team", json!({"output_cap": 1, "version": 7}), None), "at version 0, not 7"),
            (update(Key, "k", json!({"active": false}), None), "active: is changed by revoking"),
            (update(Key, "k", json!({"expires_at": past}), None), "expires_at: 2020"),
            (delete(Plan, "team"), "plan team is in use by organization acme"),
            (delete(Organization, "acme"), "organization acme is in use by key k"),
            (delete(Key, "no"), "there is no key no"),
        ];
        for (edit, says) in table {
            let refused = decide(&tables(), edit.clone(), NOW).expect_err(says).to_string();
            assert!(refused.contains(says), "{edit:?}: {refused}");
        }
    }

    #[test]
    fn what_is_so_already_is_not_written() {
        let tables = tables();
        let shown = document::show("team", &tables.entity(EntityKind::Plan, "team").unwrap());
        let same = update(EntityKind::Plan, "team", Value::Object(shown), Some(0));
        assert_eq!(decide(&tables, same, NOW), Ok(None));
    }

    #[test]
    fn a_life_ends_in_the_order_of_its_uses() {
        let mut tables = tables();
        apply(&mut tables, update(EntityKind::Plan, "team", json!({"limits": {"requests_per_minute": 5}}), Some(0)));
        apply(&mut tables, Edit::Revoke { id: "k".into(), version: None });
        assert_eq!(decide(&tables, Edit::Revoke { id: "k".into(), version: None }, NOW), Ok(None));
        let again = decide(&tables, update(EntityKind::Key, "k", json!({"active": true}), None), NOW);
        assert!(again.unwrap_err().to_string().contains("a revoked key stays so"));
        apply(&mut tables, delete(EntityKind::Key, "k"));
        apply(&mut tables, delete(EntityKind::Organization, "acme"));
        apply(&mut tables, delete(EntityKind::Plan, "team"));
    }

    #[test]
    fn what_is_broken_already_holds_nothing_up_and_is_told_afterwards() {
        let mut tables = tables();
        // Somebody deleted the plan in the moment in which the organization took it.
        let stamp = Stamp { change_id: String::new(), actor: String::new(), at: NOW };
        tables.apply(3, &ControlRecord::delete(EntityKind::Plan, "team", 0, stamp)).unwrap();
        let edit = update(EntityKind::Organization, "acme", json!({"active": false}), None);
        let wanted = decide(&tables, edit, NOW).unwrap().unwrap();
        let broken: Vec<String> = check::broken(&tables, &[wanted]).iter().map(ToString::to_string).collect();
        assert_eq!(broken, ["organization acme: plan: there is no plan team; create it first, or name another"]);
        apply(&mut tables, update(EntityKind::Organization, "acme", json!({"plan": null}), None));
        assert_eq!(check::violations(&tables), []);
    }

    #[test]
    fn a_name_means_one_thing() {
        use crate::topology::{Files, Topology};
        let seeds = Topology::parse(&Files::embedded()).unwrap().seeds;
        let (mut tables, stamp) =
            (Tables::default(), || Stamp { change_id: String::new(), actor: String::new(), at: NOW });
        for (offset, (id, entity)) in (0..).zip(seeds.entities()) {
            tables.apply(offset, &ControlRecord::put(id, entity, -1, stamp())).unwrap();
        }
        assert_eq!(check::violations(&tables), []);
        let (name, model) = seeds.models.iter().find(|(_, model)| !model.aliases.is_empty()).unwrap();
        let copy = document::show("copy", &Entity::Model(model.clone()));
        let refused = decide(&tables, create(EntityKind::Model, Value::Object(copy)), NOW).unwrap_err().to_string();
        assert!(refused.contains("aliases: ") && refused.contains("deployments: "), "{refused}");
        let alias = json!({"name": "p", "models": [model.aliases[0].as_str()]});
        let refused = decide(&tables, create(EntityKind::Plan, alias), NOW).unwrap_err().to_string();
        assert!(refused.contains(&format!("is an alias of {name}; write {name}")), "{refused}");
        let policy = json!({"aliases": ["auto"]});
        let refused = decide(&tables, update(EntityKind::Model, name.as_str(), policy, None), NOW).unwrap_err();
        assert!(refused.to_string().contains("auto is also the name or an alias of policy auto"), "{refused}");
        let known =
            |change| decide(&tables, update(EntityKind::Policy, "auto", change, None), NOW).unwrap_err().to_string();
        let twice = known(json!({"fallback": ["llama-3.2-3b-instruct", "llama-3.2"]}));
        assert!(twice.contains("fallback: llama-3.2 is llama-3.2-3b-instruct, which is there already"), "{twice}");
        let nobody = known(json!({"fallback": ["nobody"]}));
        assert!(nobody.contains("fallback: nobody is no model or alias"), "{nobody}");
        let plan = known(json!({"rules": [{"name": "r", "tier": 1, "when": {"plans": ["gone"]}}]}));
        assert!(plan.contains("rules[0].when.plans: there is no plan gone"), "{plan}");
        let used = delete(EntityKind::Model, seeds.policies["auto"].tiers[0].candidates[0].as_str());
        assert!(matches!(decide(&tables, used, NOW), Err(Refusal::InUse { .. })));
    }
}
