//! Who asks, and for which organization: the key decides, nothing else that a client says.

use std::borrow::Cow;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};

use super::error::Refusal;
use crate::control::Tables;
use crate::domain::{KeyId, OrganizationId};
use crate::records::control::Key;

/// The organization that a request names, where a key covers several.
pub const ORGANIZATION_HEADER: &str = "x-tollstream-organization";

/// Names of query parameters in which people put keys.
const KEY_PARAMETERS: [&str; 7] = ["api_key", "api-key", "apikey", "key", "access_token", "token", "x-api-key"];

/// A key that is known and active.
pub struct Caller {
    pub key_id: KeyId,
    key: Arc<Key>,
}

/// Finds the key that the headers carry.
pub fn caller(tables: &Tables, headers: &HeaderMap, query: Option<&str>) -> Result<Caller, Refusal> {
    if query.is_some_and(has_key) {
        return Err(Refusal::KeyInQuery);
    }
    if tables.offset() < 0 {
        return Err(Refusal::NotReady { missing: "it has not read control yet" });
    }
    let secret = secret(headers).ok_or(Refusal::NoKey)?;
    let hash = hex::encode(Sha256::digest(secret));
    match tables.key_by_hash(&hash) {
        Some((id, key)) if key.value.active => Ok(Caller { key_id: id.clone(), key: key.value.clone() }),
        _ => Err(Refusal::UnknownKey),
    }
}

fn has_key(query: &str) -> bool {
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_ascii_lowercase();
    query.split('&').map(name).any(|name| KEY_PARAMETERS.contains(&name.as_str()))
}

fn secret(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, secret) = value.as_bytes().split_at_checked("Bearer ".len())?;
        return scheme.eq_ignore_ascii_case(b"Bearer ").then(|| secret.trim_ascii()).filter(|s| !s.is_empty());
    }
    let value = headers.get("api-key").or_else(|| headers.get("x-api-key"))?;
    Some(value.as_bytes().trim_ascii()).filter(|secret| !secret.is_empty())
}

impl Caller {
    /// The organization that pays: the key's only one, or the one of its list that the request names.
    pub fn organization(
        &self,
        tables: &Tables,
        header: Option<&str>,
        metadata: Option<Cow<'_, str>>,
    ) -> Result<OrganizationId, Refusal> {
        let named = match (header, metadata) {
            (Some(header), Some(metadata)) if header != metadata => return Err(Refusal::OrganizationConflict),
            (Some(header), _) => Some(Cow::Borrowed(header)),
            (None, metadata) => metadata,
        };
        let organization = match (named, self.key.organizations.as_slice()) {
            (Some(named), covered) => match covered.iter().find(|organization| organization.as_str() == named) {
                Some(organization) => organization,
                None => {
                    let organization = named.chars().take(crate::domain::ids::ID_BYTES_MAX).collect();
                    return Err(Refusal::OrganizationNotCovered { organization });
                }
            },
            (None, [only]) => only,
            (None, _) => return Err(Refusal::OrganizationRequired),
        };
        match tables.organization(organization) {
            Some(known) if known.value.active => Ok(organization.clone()),
            _ => Err(Refusal::OrganizationInactive { organization: organization.clone() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facade::fixtures::{KEY, PAUSED_KEY, SERVICE_KEY, tables};

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn caller_of(key: &str) -> Caller {
        caller(&tables(), &headers(&[("authorization", &format!("Bearer {key}"))]), None)
            .unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn a_key_comes_in_one_of_three_headers() {
        for (name, value) in [
            ("authorization", format!("Bearer {KEY}")),
            ("authorization", format!("bearer  {KEY} ")),
            ("api-key", KEY.to_owned()),
            ("x-api-key", KEY.to_owned()),
        ] {
            let caller = caller(&tables(), &headers(&[(name, &value)]), Some("api-version=1"));
            assert_eq!(caller.map(|c| c.key_id.to_string()), Ok("key_acme".to_owned()), "{name}: {value}");
        }
    }

    #[test]
    fn without_a_valid_key_nobody_is_let_in() {
        let bearer = format!("Bearer {KEY}");
        let table = [
            (vec![], None, Refusal::NoKey),
            (vec![("authorization", "Basic abc")], None, Refusal::NoKey),
            (vec![("authorization", "Bearer ")], None, Refusal::NoKey),
            (vec![("authorization", "Bearer wrong")], None, Refusal::UnknownKey),
            (vec![("authorization", "Bearer wrong"), ("api-key", KEY)], None, Refusal::UnknownKey),
            (vec![("api-key", PAUSED_KEY)], None, Refusal::UnknownKey),
            (vec![("authorization", bearer.as_str())], Some("api_key=x"), Refusal::KeyInQuery),
            (vec![], Some("a=b&Token=x"), Refusal::KeyInQuery),
        ];
        for (pairs, query, refusal) in table {
            assert_eq!(caller(&tables(), &headers(&pairs), query).map(|c| c.key_id), Err(refusal), "{pairs:?}");
        }
    }

    #[test]
    fn a_facade_that_knows_no_control_says_so_instead_of_refusing_keys() {
        let refused = caller(&Tables::default(), &headers(&[("api-key", KEY)]), None).map(|c| c.key_id);
        assert!(matches!(refused, Err(Refusal::NotReady { .. })));
    }

    #[test]
    fn the_organization_comes_from_the_key() {
        let covered = |key, header, metadata: Option<&'static str>| {
            caller_of(key).organization(&tables(), header, metadata.map(Cow::Borrowed)).map(|o| o.to_string())
        };
        let not_covered = |name: &str| Err(Refusal::OrganizationNotCovered { organization: name.to_owned() });
        assert_eq!(covered(KEY, None, None), Ok("acme".into()));
        assert_eq!(covered(KEY, Some("acme"), Some("acme")), Ok("acme".into()));
        assert_eq!(covered(KEY, None, Some("globex")), not_covered("globex"));
        assert_eq!(covered(KEY, Some("globex"), None), not_covered("globex"));
        assert_eq!(covered(KEY, Some("no such!"), None), not_covered("no such!"));
        assert_eq!(covered(KEY, Some("acme"), Some("globex")), Err(Refusal::OrganizationConflict));
        assert_eq!(covered(SERVICE_KEY, None, None), Err(Refusal::OrganizationRequired));
        assert_eq!(covered(SERVICE_KEY, None, Some("globex")), Ok("globex".into()));
        let organization = "dormant".parse().unwrap();
        assert_eq!(covered(SERVICE_KEY, Some("dormant"), None), Err(Refusal::OrganizationInactive { organization }));
    }
}
