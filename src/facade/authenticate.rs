//! Who asks, and for which organization: the key decides, nothing else that a client says.

use std::borrow::Cow;
use std::sync::Arc;

use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};

use super::error::Refusal;
use super::routes::App;
use super::server::ClientAddress;
use crate::control::Tables;
use crate::control::document::CLIENT_SCOPES;
use crate::domain::{KeyId, OrganizationId, Timestamp};
use crate::records::control::Key;
use crate::runtime::clock;

/// The organization that a request names, where a key covers several.
pub const ORGANIZATION_HEADER: &str = "x-tollstream-organization";

/// Names of query parameters in which people put keys.
const KEY_PARAMETERS: [&str; 7] = ["api_key", "api-key", "apikey", "key", "access_token", "token", "x-api-key"];

/// What every use of a key may need is one scope; a key without scopes has all that a client may do, and never `admin`.
fn has_scope(key: &Key, scope: &str) -> bool {
    match key.scopes.is_empty() {
        true => CLIENT_SCOPES.contains(&scope),
        false => key.scopes.iter().any(|given| given == scope),
    }
}

/// A key that is known and active.
pub struct Caller {
    pub key_id: KeyId,
    key: Arc<Key>,
}

/// Finds the key that the headers carry, and holds it to be good for `scope` at this moment.
pub fn caller(
    tables: &Tables,
    headers: &HeaderMap,
    query: Option<&str>,
    scope: &'static str,
    now: Timestamp,
) -> Result<Caller, Refusal> {
    if query.is_some_and(has_key) {
        return Err(Refusal::KeyInQuery);
    }
    if tables.offset() < 0 {
        return Err(Refusal::NotReady { missing: "it has not read control yet" });
    }
    let secret = secret(headers).ok_or(Refusal::NoKey)?;
    let hash = hex::encode(Sha256::digest(secret));
    let Some((id, key)) = tables.key_by_hash(&hash) else {
        // By its form alone: whether control has it, nobody is told.
        let is_hash = secret.len() == hash.len() && secret.iter().all(u8::is_ascii_hexdigit);
        return Err(if is_hash { Refusal::HashAsKey } else { Refusal::UnknownKey });
    };
    let key = &key.value;
    if !key.active {
        return Err(Refusal::KeyRevoked { key: id.clone() });
    }
    if let Some(at) = key.expires_at.filter(|at| *at <= now) {
        return Err(Refusal::KeyExpired { key: id.clone(), at });
    }
    if !has_scope(key, scope) {
        return Err(Refusal::MissingScope { key: id.clone(), scope });
    }
    Ok(Caller { key_id: id.clone(), key: key.clone() })
}

impl App {
    /// Who asks for something of this scope; failures are counted and slowed.
    pub fn caller(&self, tables: &Tables, parts: &Parts, scope: &'static str) -> Result<Caller, Refusal> {
        let from = parts.extensions.get::<ClientAddress>().copied();
        self.guard.judge(from, caller(tables, &parts.headers, parts.uri.query(), scope, clock::now()))
    }
}

/// Whether a query has what looks like a key.
pub fn has_key(query: &str) -> bool {
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_ascii_lowercase();
    query.split('&').map(name).any(|name| KEY_PARAMETERS.contains(&name.as_str()))
}

/// The key as it was sent.
pub fn secret(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, secret) = value.as_bytes().split_at_checked("Bearer ".len())?;
        return scheme.eq_ignore_ascii_case(b"Bearer ").then(|| secret.trim_ascii()).filter(|s| !s.is_empty());
    }
    let value = headers.get("api-key").or_else(|| headers.get("x-api-key"))?;
    Some(value.as_bytes().trim_ascii()).filter(|secret| !secret.is_empty())
}

impl Caller {
    /// Those that it covers.
    pub fn organizations(&self) -> &[OrganizationId] {
        &self.key.organizations
    }

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
    use crate::control::document::{ADMIN_SCOPE, CHAT_SCOPE, MODELS_SCOPE};
    use crate::facade::fixtures::{EXPIRING_KEY, EXPIRY, KEY, MODELS_KEY, PAUSED_KEY, SERVICE_KEY, tables};

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    /// For a chat, at the beginning of time.
    fn caller(tables: &Tables, headers: &HeaderMap, query: Option<&str>) -> Result<Caller, Refusal> {
        super::caller(tables, headers, query, CHAT_SCOPE, Timestamp::default())
    }

    #[test]
    fn a_key_is_good_until_it_expires_and_for_its_scopes_only() {
        let with = |key: &str, scope, at| {
            let found =
                super::caller(&tables(), &headers(&[("api-key", key)]), None, scope, Timestamp::from_millis(at));
            found.map(|caller| caller.key_id.to_string())
        };
        let expiry = EXPIRY.as_millis();
        assert_eq!(with(EXPIRING_KEY, CHAT_SCOPE, expiry - 1), Ok("key_expiring".to_owned()));
        let expired = Refusal::KeyExpired { key: "key_expiring".parse().unwrap(), at: EXPIRY };
        assert_eq!(with(EXPIRING_KEY, CHAT_SCOPE, expiry), Err(expired));
        let lacks = |key: &str, scope| Err(Refusal::MissingScope { key: key.parse().unwrap(), scope });
        assert_eq!(with(MODELS_KEY, MODELS_SCOPE, 0), Ok("key_models".to_owned()));
        assert_eq!(with(MODELS_KEY, CHAT_SCOPE, 0), lacks("key_models", CHAT_SCOPE));
        assert_eq!(with(KEY, ADMIN_SCOPE, 0), lacks("key_acme", ADMIN_SCOPE));
        for scope in CLIENT_SCOPES {
            assert_eq!(with(KEY, scope, 0), Ok("key_acme".to_owned()));
        }
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
        let (bearer, hash) = (format!("Bearer {KEY}"), hex::encode(Sha256::digest(KEY)));
        let table = [
            (vec![], None, Refusal::NoKey),
            (vec![("authorization", "Basic abc")], None, Refusal::NoKey),
            (vec![("authorization", "Bearer ")], None, Refusal::NoKey),
            (vec![("authorization", "Bearer wrong")], None, Refusal::UnknownKey),
            (vec![("authorization", "Bearer wrong"), ("api-key", KEY)], None, Refusal::UnknownKey),
            (vec![("api-key", PAUSED_KEY)], None, Refusal::KeyRevoked { key: "key_paused".parse().unwrap() }),
            (vec![("api-key", hash.as_str())], None, Refusal::HashAsKey),
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
