//! Making API keys: the secret is shown once, and control holds only its SHA-256.

use sha2::{Digest as _, Sha256};

use crate::config::Secret;
use crate::control::Change;
use crate::domain::{KeyId, OrganizationId, ids};
use crate::records::control::{Entity, EntityKind, Key};
use crate::runtime::control_log::{self, ControlLog, Wanted};
use crate::runtime::publisher::Publisher;

/// What every secret begins with, so that scanners and people recognise one.
pub const SECRET_PREFIX: &str = "tsk_";
/// Bytes of randomness in a secret.
const SECRET_BYTES: usize = 32;
/// Characters of the secret that control keeps, to recognise it by.
const SHOWN: usize = SECRET_PREFIX.len() + 6;

/// What admin keys begin with.
pub const ADMIN_PREFIX: &str = "tsa_";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("organization {organization} is not on control; put it into topology/seed/organizations.toml and apply")]
    NoOrganization { organization: OrganizationId },
    #[error("there is a key {key} already; choose another --name")]
    Taken { key: KeyId },
    #[error("the system gives no randomness: {0}")]
    Randomness(getrandom::Error),
    #[error(transparent)]
    Id(#[from] ids::Error),
    #[error(transparent)]
    Control(#[from] control_log::Error),
}

/// A new key; this is the only time that its secret is there.
#[derive(Debug, Clone)]
pub struct Created {
    pub id: KeyId,
    pub organization: OrganizationId,
    pub secret: Secret,
    /// Its version on control.
    pub version: i64,
}

/// How control knows a secret: SHA-256 in hex.
pub fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Makes a key of an organization, puts it on control, and waits until it took effect there.
///
/// # Errors
/// [`Error::Taken`] when the name is in use, also when another writer was faster.
pub async fn create(
    log: &mut ControlLog,
    publisher: &Publisher,
    organization: &OrganizationId,
    name: Option<&str>,
) -> Result<Created, Error> {
    log.refresh().await?;
    if log.tables().organization(organization).is_none() {
        return Err(Error::NoOrganization { organization: organization.clone() });
    }
    let secret = secret(SECRET_PREFIX)?;
    let id = match name {
        Some(name) => KeyId::parse(name)?,
        None => KeyId::parse(&format!("key_{}", hex::encode(random::<6>()?)))?,
    };
    let taken = || Error::Taken { key: id.clone() };
    if log.tables().version_of(EntityKind::Key, id.as_str()) >= 0 {
        return Err(taken());
    }
    let key = Key::of(vec![organization.clone()], hash(&secret), secret.chars().take(SHOWN).collect());
    let wanted = Wanted { id: id.to_string(), entity: Entity::Key(key), expected_version: -1 };
    let outcomes = log.write(publisher, vec![wanted], "tollstream keys create").await?;
    if outcomes != [Change::Effective] {
        return Err(taken());
    }
    let version = log.tables().version_of(EntityKind::Key, id.as_str());
    Ok(Created { id, organization: organization.clone(), secret: Secret::new(secret), version })
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
