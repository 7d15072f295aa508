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
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
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
