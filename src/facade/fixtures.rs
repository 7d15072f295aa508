//! Frames and control tables for the tests of this folder.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::Usage;
use crate::config::ClickHouse;
use crate::control::Tables;
use crate::domain::{PicoUsd, Timestamp};
use crate::records::Outcome;
use crate::records::control::{ControlRecord, Key, Model, Organization, Policy};
use crate::records::responses::{ApiError, Content, Frame, FrameBody, Head, Terminal};

pub const TENURE: i64 = 7;

pub fn head() -> Head {
    Head {
        model: "gpt-4o-mini".parse().unwrap(),
        deployment: "openai-gpt-4o-mini".parse().unwrap(),
        tier: 2,
        rate_limits: None,
        cache: None,
    }
}

fn frame(attempt: u32, sequence: u32, body: FrameBody) -> Frame {
    Frame {
        organization: "acme".parse().unwrap(),
        request_id: "r1".parse().unwrap(),
        nonce: None,
        tenure: TENURE,
        attempt,
        sequence,
        at: Timestamp::from_millis(0),
        body,
    }
}

/// A content frame of these events; the first of an attempt says who answers.
pub fn content(attempt: u32, sequence: u32, events: &[&str]) -> Frame {
    let events = events.iter().map(|event| Bytes::copy_from_slice(event.as_bytes())).collect();
    frame(attempt, sequence, FrameBody::Content(Content { head: (sequence == 0).then(head), events }))
}

fn terminal(outcome: Outcome) -> Terminal {
    Terminal { head: Some(head()), ..Terminal::of(outcome) }
}

/// The terminal of a stream that completed after `sequence` content frames.
pub fn completed(attempt: u32, sequence: u32) -> Frame {
    frame(attempt, sequence, FrameBody::Terminal(Box::new(terminal(Outcome::Completed))))
}

/// The terminal of a whole answer.
pub fn whole(body: &str) -> Frame {
    let body = Some(Bytes::copy_from_slice(body.as_bytes()));
    let cost_pico_usd = Some(PicoUsd::new(1_234_500_000));
    let terminal = Terminal { body, cost_pico_usd, ..terminal(Outcome::Completed) };
    frame(1, 0, FrameBody::Terminal(Box::new(terminal)))
}

/// The terminal of a request that failed.
pub fn failed(attempt: u32, sequence: u32, status: u16, code: &str) -> Frame {
    let error = ApiError {
        status,
        r#type: "server_error".into(),
        code: code.into(),
        message: "as the processor says".into(),
        param: None,
        retry_after_ms: (status == 429).then_some(2_500),
        rate_limits: None,
    };
    let terminal = Terminal { error: Some(error), head: None, ..terminal(Outcome::Failed) };
    frame(attempt, sequence, FrameBody::Terminal(Box::new(terminal)))
}

/// Of organization acme only.
pub const KEY: &str = "sk-acme-1";
/// Of acme, but not active.
pub const PAUSED_KEY: &str = "sk-acme-paused";
/// Of acme, globex and dormant.
pub const SERVICE_KEY: &str = "sk-service-1";

/// Of acme, until [`EXPIRY`].
pub const EXPIRING_KEY: &str = "sk-acme-expiring";
pub const EXPIRY: Timestamp = Timestamp::from_millis(4_000_000_000_000);
/// Of acme, for the models only.
pub const MODELS_KEY: &str = "sk-acme-models";

fn change(kind: &str, id: &str) -> ControlRecord {
    ControlRecord {
        kind: kind.into(),
        id: id.into(),
        expected_version: -1,
        change_id: "test".into(),
        actor: "test".into(),
        at: Timestamp::from_millis(0),
        deleted: false,
        organization: None,
        key: None,
        model: None,
        policy: None,
        plan: None,
    }
}

fn key(id: &str, secret: &str, organizations: &[&str], active: bool) -> ControlRecord {
    let organizations = organizations.iter().map(|o| o.parse().unwrap()).collect();
    let sha256 = hex::encode(Sha256::digest(secret));
    let key = Key { active, ..Key::of(organizations, sha256, secret[..5].into()) };
    ControlRecord { key: Some(key), ..change("key", id) }
}

fn organization(id: &str, active: bool) -> ControlRecord {
    ControlRecord {
        organization: Some(Organization { active, ..Organization::named(id) }),
        ..change("organization", id)
    }
}

/// Three organizations, three keys, one model with an alias, and the policy `auto`.
pub fn tables() -> Tables {
    let model = Model {
        aliases: vec!["openai/gpt-4o-mini".parse().unwrap()],
        tier: 2,
        owned_by: "openai".into(),
        created_at: Timestamp::from_millis(1_721_260_800_000),
        context_window: 128_000,
        max_output_tokens: 16_384,
        capabilities: vec!["chat".into(), "streaming".into()],
        deployments: vec![],
        limits: Default::default(),
        balance: crate::records::control::Balance::default(),
    };
    let policy = Policy {
        description: String::new(),
        default_tier: 2,
        max_attempts: 3,
        tiers: vec![],
        fallback: vec![],
        ..Policy::default()
    };
    let expiring = |mut record: ControlRecord| {
        record.key.as_mut().unwrap().expires_at = Some(EXPIRY);
        record
    };
    let scoped = |mut record: ControlRecord| {
        record.key.as_mut().unwrap().scopes = vec!["models".into()];
        record
    };
    let changes = [
        expiring(key("key_expiring", EXPIRING_KEY, &["acme"], true)),
        scoped(key("key_models", MODELS_KEY, &["acme"], true)),
        organization("acme", true),
        organization("globex", true),
        organization("dormant", false),
        key("key_acme", KEY, &["acme"], true),
        key("key_paused", PAUSED_KEY, &["acme"], false),
        key("key_service", SERVICE_KEY, &["acme", "globex", "dormant"], true),
        ControlRecord { model: Some(model), ..change("model", "gpt-4o-mini") },
        ControlRecord { policy: Some(policy), ..change("policy", "auto") },
    ];
    let mut tables = Tables::default();
    for (offset, change) in (0..).zip(changes) {
        tables.apply(offset, &change).unwrap();
    }
    tables
}

/// Usage of a ClickHouse that is away: nothing listens on port 1.
pub fn no_usage() -> Arc<Usage> {
    let url = "http://127.0.0.1:1".to_owned();
    Arc::new(Usage::new(ClickHouse { url, ..ClickHouse::default() }))
}
