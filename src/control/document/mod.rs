//! The form in which people write entities: TOML in files, JSON over HTTP.
//!
//! Money is decimal dollars in strings, prices are dollars per million tokens, moments are RFC 3339, and what is not known
//! is refused at every depth. [`parse`] lists everything that is wrong with its place; [`show`] is its inverse, so what was
//! shown can be edited and given back. A key's hash is in neither.

mod amounts;
mod difference;
mod file;
mod key;
mod locate;
mod model;
mod organization;
mod place;
mod plan;
mod policy;
mod price;
#[cfg(test)]
mod tests;
mod window;

use std::ops::RangeInclusive;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::domain::{KeyId, ModelName, OrganizationId, PlanName, PolicyName};
use crate::records::control::{Entity, EntityKind, Key};

pub use difference::{FieldChange, difference};
pub use file::{file, table};
pub use key::{ADMIN_SCOPE, CHAT_SCOPE, CLIENT_SCOPES, MODELS_SCOPE, USAGE_SCOPE};
pub use locate::{locate, position};
pub use model::CAPABILITIES;
use place::Place;
pub use place::Problem;

/// The lowest and the highest tier.
pub const TIERS: RangeInclusive<u8> = 1..=4;

/// An object as it was read.
pub type Object = Map<String, Value>;

impl EntityKind {
    /// The kind as people call several of them: in files, addresses and commands.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Organization => "organizations",
            Self::Plan => "plans",
            Self::Key => "keys",
            Self::Model => "models",
            Self::Policy => "policies",
        }
    }

    pub fn of_plural(plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.plural() == plural)
    }

    /// The member of a document that says which entity it is.
    pub const fn id_field(self) -> &'static str {
        match self {
            Self::Organization | Self::Key => "id",
            Self::Plan | Self::Model | Self::Policy => "name",
        }
    }

    /// Checks that a text can be the id of such an entity.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_id(self, id: &str) -> Result<(), crate::domain::ids::Error> {
        match self {
            Self::Organization => OrganizationId::parse(id).map(|_| ()),
            Self::Plan => PlanName::parse(id).map(|_| ()),
            Self::Key => KeyId::parse(id).map(|_| ()),
            Self::Model => ModelName::parse(id).map(|_| ()),
            Self::Policy => PolicyName::parse(id).map(|_| ()),
        }
    }
}

/// The id of a document, as far as it can be told.
pub fn id_of(kind: EntityKind, object: &Object) -> Option<&str> {
    object.get(kind.id_field()).and_then(Value::as_str)
}

/// Reads a document: the id and the entity. A key's document has no secret; what control holds of it comes in as `key`.
///
/// # Errors
/// Everything that is wrong with it, each with its place.
pub fn parse(kind: EntityKind, mut object: Object, key: Option<&Key>) -> Result<(String, Entity), Vec<Problem>> {
    let mut problems = Vec::new();
    let mut place = Place::root(&mut problems);
    let field = kind.id_field();
    let id = match object.shift_remove(field) {
        Some(Value::String(id)) => place.take(field, kind.check_id(&id).map(|()| id.clone())),
        Some(_) => {
            place.problem(field, "must be a string");
            None
        }
        None => {
            place.problem(field, "is missing");
            None
        }
    };
    let value = Value::Object(object);
    let entity = match kind {
        EntityKind::Organization => typed(value, &mut place).and_then(|d| organization::parse(d, &mut place)),
        EntityKind::Plan => typed(value, &mut place).and_then(|d| plan::parse(d, &mut place)),
        EntityKind::Key => typed(value, &mut place).and_then(|d| key::parse(d, key, &mut place)),
        EntityKind::Model => typed(value, &mut place).and_then(|d| model::parse(d, &mut place)),
        EntityKind::Policy => typed(value, &mut place).and_then(|d| policy::parse(d, &mut place)),
    };
    match (id, entity) {
        (Some(id), Some(entity)) if problems.is_empty() => Ok((id, entity)),
        _ => Err(problems),
    }
}

/// The members as they have to be, or a note of the first that is not.
fn typed<T: DeserializeOwned>(value: Value, place: &mut Place<'_>) -> Option<T> {
    let read = serde_path_to_error::deserialize::<_, T>(value);
    read.map_err(|error| {
        let at = error.path().to_string();
        place.problem(if at == "." { "" } else { &at }, error.inner().to_string());
    })
    .ok()
}

/// The document of an entity.
pub fn show(id: &str, entity: &Entity) -> Object {
    let shown = match entity {
        Entity::Organization(value) => object(&organization::show(value)),
        Entity::Plan(value) => object(&plan::show(value)),
        Entity::Key(value) => object(&key::show(value)),
        Entity::Model(value) => object(&model::show(value)),
        Entity::Policy(value) => object(&policy::show(value)),
    };
    let mut whole = Object::new();
    whole.insert(entity.kind().id_field().to_owned(), Value::from(id));
    whole.extend(shown);
    whole
}

fn object(document: &impl Serialize) -> Object {
    // Documents are structs of strings and numbers, which are always an object.
    match serde_json::to_value(document) {
        Ok(Value::Object(object)) => object,
        _ => Object::new(),
    }
}

/// RFC 7396: members of the patch replace those of the object, null removes them.
pub fn merge(target: &mut Object, patch: Object) {
    for (name, value) in patch {
        match (target.get_mut(&name), value) {
            (_, Value::Null) => {
                target.shift_remove(&name);
            }
            (Some(Value::Object(inner)), Value::Object(patch)) => merge(inner, patch),
            (_, Value::Object(patch)) => {
                let mut inner = Object::new();
                merge(&mut inner, patch);
                target.insert(name, Value::Object(inner));
            }
            (_, value) => {
                target.insert(name, value);
            }
        }
    }
}

/// A value of a TOML file as one of JSON; moments become their text.
pub fn from_toml(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::from(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => Value::from(number),
        toml::Value::Boolean(flag) => Value::from(flag),
        toml::Value::Datetime(moment) => Value::from(moment.to_string()),
        toml::Value::Array(items) => items.into_iter().map(from_toml).collect(),
        toml::Value::Table(table) => {
            Value::Object(table.into_iter().map(|(name, value)| (name, from_toml(value))).collect())
        }
    }
}

const fn yes() -> bool {
    true
}
