//! Making API keys: the secret is shown once, and control holds only its SHA-256.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::config::Secret;
use crate::control::document::Object;
use crate::control::edit::Edit;
use crate::domain::{OrganizationId, Timestamp};
use crate::records::control::{EntityKind, Key};
use crate::runtime::clock;
use crate::runtime::control_log::ControlLog;
use crate::runtime::control_writer::{self, Written};
use crate::runtime::publisher::Publisher;

/// What every secret begins with, so that scanners and people recognise one.
pub const SECRET_PREFIX: &str = "tsk_";
/// Bytes of randomness in a secret.
const SECRET_BYTES: usize = 32;
/// Characters of the secret that control keeps, to recognise it by.
const SHOWN: usize = SECRET_PREFIX.len() + 6;

/// What the first admin key begins with.
pub const ADMIN_PREFIX: &str = "tsa_";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the system gives no randomness: {0}")]
    Randomness(getrandom::Error),
    #[error(transparent)]
    Control(#[from] control_writer::Error),
}

/// A new key; this is the only time that its secret is there.
#[derive(Debug, Clone)]
pub struct Created {
    pub secret: Secret,
    pub written: Written,
}

/// How control knows a secret: SHA-256 in hex.
pub fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// The wish for a key with this document, which may lack an id, and the secret that belongs to it.
///
/// # Errors
/// When the system gives no randomness.
pub fn creation(mut document: Object, now: Timestamp) -> Result<(Edit, Secret), Error> {
    let secret = secret(SECRET_PREFIX)?;
    let field = EntityKind::Key.id_field();
    if !document.contains_key(field) {
        document.insert(field.to_owned(), Value::from(format!("key_{}", hex::encode(random::<6>()?))));
    }
    let key = Key { created_at: Some(now), ..Key::of(Vec::new(), hash(&secret), secret.chars().take(SHOWN).collect()) };
    Ok((Edit::Create { kind: EntityKind::Key, document, key: Some(Box::new(key)) }, Secret::new(secret)))
}

/// Makes a key with this document, puts it on control, and waits until it took effect there.
///
/// # Errors
/// Also when the name is in use, or another writer was faster.
pub async fn create(
    log: &mut ControlLog,
    publisher: &Publisher,
    document: Object,
    actor: &str,
) -> Result<Created, Error> {
    let (edit, secret) = creation(document, clock::now())?;
    let written = control_writer::write(log, publisher, edit, actor).await?;
    Ok(Created { secret, written })
}

/// The document of a key of one organization that may do everything that a client may.
pub fn of_organization(organization: &OrganizationId) -> Object {
    let mut document = Object::new();
    document.insert("organizations".to_owned(), Value::from(vec![organization.as_str()]));
    document
}

/// A random secret of 256 bits that begins with `prefix`.
pub fn secret(prefix: &str) -> Result<String, Error> {
    Ok(format!("{prefix}{}", hex::encode(random::<SECRET_BYTES>()?)))
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(Error::Randomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_known_by_its_hash() {
        assert_eq!(hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_ne!(random::<SECRET_BYTES>().unwrap(), random::<SECRET_BYTES>().unwrap());
    }
}
