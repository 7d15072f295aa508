//! `GET /v1/models` (and `/api/models`) and `/v1/models/{id}`: what a key may ask for, what that costs, and within which
//! limits, from the control log.
//!
//! A key that covers several organizations and names none sees what any of them may use, without limits: those are an
//! organization's.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use serde::Serialize;

use super::authenticate::Caller;
use super::error::{self, Refusal, X_REQUEST_ID, value};
use super::request;
use super::routes::{App, PathId, named};
use crate::control::Tables;
use crate::control::document::MODELS_SCOPE;
use crate::control::terms::Terms;
use crate::domain::{ModelName, OrganizationId, PicoUsd, Timestamp};
use crate::records::control::{self, Limits, PriceEntry, Spend};
use crate::records::responses::ApiError;
use crate::runtime::clock;

/// The model that stands for a choice of the gateway, and the policy that makes it.
const AUTO: &str = "auto";
/// Tokens that prices are told for.
const MILLION: u64 = 1_000_000;

/// OpenAI's model object, and what else control knows.
#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    /// Seconds since 1970.
    created: i64,
    owned_by: &'a str,
    /// What a choice of the gateway does not have.
    #[serde(flatten)]
    known: Option<Known<'a>>,
}

#[derive(Serialize)]
struct Known<'a> {
    tier: u8,
    context_window: u64,
    max_output_tokens: u64,
    capabilities: &'a [String],
    prices: Vec<PriceOf<'a>>,
    /// Of the organization's calls of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
}

/// A price of one deployment that is in force.
#[derive(Serialize)]
struct PriceOf<'a> {
    deployment: &'a str,
    effective_from: String,
    min_input_tokens: Option<u64>,
    max_input_tokens: Option<u64>,
    /// It is an assumption, not a published one.
    simulated: bool,
    per_million_tokens_usd: Classes<String>,
    per_token_pico_usd: Classes<PicoUsd>,
}

/// Something of each class of tokens; `None`: as input, and of reasoning as output.
#[derive(Serialize)]
struct Classes<T> {
    input: T,
    cached_input: Option<T>,
    cache_write: Option<T>,
    output: T,
    reasoning: Option<T>,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
    #[serde(flatten)]
    holds: Option<Holds<'a>>,
}

/// What holds for a key's requests of one organization.
#[derive(Serialize)]
struct Holds<'a> {
    organization: String,
    plan: Option<&'a str>,
    /// Tokens that an answer may have where the request names no cap.
    output_cap: Option<u64>,
    limits: Both<Limits>,
    budgets: Both<Amounts>,
    time_zone: &'a str,
    reset_day: u8,
}

/// Of all requests of the organization, and of those of this key. Both hold.
#[derive(Serialize)]
struct Both<T> {
    organization: T,
    key: T,
}

/// What may be spent. `None`: no limit.
#[derive(Serialize)]
struct Amounts {
    day_usd: Option<String>,
    day_pico_usd: Option<PicoUsd>,
    month_usd: Option<String>,
    month_pico_usd: Option<PicoUsd>,
}

/// Who asks: a key, and the organizations that its request may be of.
struct Asking<'a> {
    organizations: Vec<(OrganizationId, Terms<'a>)>,
    at: Timestamp,
}

impl Amounts {
    fn of(spend: Spend) -> Self {
        let dollars = |amount: Option<PicoUsd>| amount.map(|amount| amount.to_string());
        Self {
            day_usd: dollars(spend.day),
            day_pico_usd: spend.day,
            month_usd: dollars(spend.month),
            month_pico_usd: spend.month,
        }
    }
}

impl<'a> Holds<'a> {
    fn of(organization: &OrganizationId, terms: &Terms<'a>) -> Self {
        Self {
            organization: organization.to_string(),
            plan: terms.organization.plan.as_ref().map(|name| name.as_str()),
            output_cap: terms.plan.output_cap,
            limits: Both { organization: terms.limits, key: terms.key_limits() },
            budgets: Both { organization: Amounts::of(terms.spend), key: Amounts::of(terms.key_spend()) },
            time_zone: &terms.plan.budget.time_zone,
            reset_day: terms.plan.budget.reset_day,
        }
    }
}

impl<'a> PriceOf<'a> {
    fn of(deployment: &'a control::Deployment, entry: &PriceEntry) -> Self {
        let PriceEntry { input, cached_input, cache_write, output, reasoning, .. } = *entry;
        let million = |price: PicoUsd| price.checked_mul(MILLION).map(|price| price.to_string()).unwrap_or_default();
        Self {
            deployment: deployment.id.as_str(),
            effective_from: entry.effective_from.to_string(),
            min_input_tokens: entry.min_input_tokens,
            max_input_tokens: entry.max_input_tokens,
            simulated: entry.source.is_none(),
            per_million_tokens_usd: Classes {
                input: million(input),
                cached_input: cached_input.map(million),
                cache_write: cache_write.map(million),
                output: million(output),
                reasoning: reasoning.map(million),
            },
            per_token_pico_usd: Classes { input, cached_input, cache_write, output, reasoning },
        }
    }
}

impl<'a> Asking<'a> {
    fn of(tables: &'a Tables, caller: &Caller, parts: &Parts) -> Result<Self, Refusal> {
        let named = request::headers(&parts.headers)?.organization;
        let organizations = match caller.organizations() {
            [_, _, ..] if named.is_none() => caller.organizations().to_vec(),
            _ => vec![caller.organization(tables, named, None)?],
        };
        let terms = |id: OrganizationId| {
            let terms = tables.terms(&id, Some(&caller.key_id)).filter(|terms| terms.organization.active)?;
            Some((id, terms))
        };
        Ok(Self { organizations: organizations.into_iter().filter_map(terms).collect(), at: clock::now() })
    }

    /// What holds, when it is clear whose requests it holds for.
    fn only(&self) -> Option<&(OrganizationId, Terms<'a>)> {
        match self.organizations.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Whether anybody of them may use it. Who lacks the plan that it should have may use nothing.
    fn may_use(&self, name: &ModelName, model: &control::Model) -> bool {
        self.organizations.iter().any(|(_, terms)| !terms.lacks_plan && terms.allow(name, model))
    }

    fn model(&self, name: &'a ModelName, model: &'a control::Model) -> Option<Model<'a>> {
        self.may_use(name, model).then(|| Model {
            id: name.as_str(),
            object: "model",
            created: model.created_at.as_millis() / 1_000,
            owned_by: &model.owned_by,
            known: Some(Known {
                tier: model.tier,
                context_window: model.context_window,
                max_output_tokens: model.max_output_tokens,
                capabilities: &model.capabilities,
                prices: self.prices(model),
                limits: self.only().map(|(_, terms)| terms.model_limits(name, model)),
            }),
        })
    }

    fn prices(&self, model: &'a control::Model) -> Vec<PriceOf<'a>> {
        let of = |deployment: &'a control::Deployment| {
            deployment.prices_at(self.at).map(move |entry| PriceOf::of(deployment, entry))
        };
        model.deployments.iter().flat_map(of).collect()
    }

    fn list(&self, tables: &'a Tables) -> List<'a> {
        let models = tables.models().filter_map(|(name, model)| self.model(name, &model.value));
        let holds = self.only().map(|(organization, terms)| Holds::of(organization, terms));
        List { object: "list", data: auto(tables).into_iter().chain(models).collect(), holds }
    }

    /// The model of this name or alias.
    fn find(&self, tables: &'a Tables, id: &str) -> Result<Model<'a>, Refusal> {
        let found = match id {
            AUTO => auto(tables),
            _ => {
                let model = ModelName::parse(id).ok().and_then(|name| tables.model(&name));
                model.and_then(|(name, model)| self.model(name, &model.value))
            }
        };
        found.ok_or_else(|| error::unknown_model(id))
    }
}

fn auto(tables: &Tables) -> Option<Model<'_>> {
    tables.policy(AUTO).map(|_| Model { id: AUTO, object: "model", created: 0, owned_by: "tollstream", known: None })
}

pub async fn list(State(app): State<Arc<App>>, http: Request) -> Response {
    let (parts, _) = http.into_parts();
    let tables = (app.control)();
    let asking = app.caller(&tables, &parts, MODELS_SCOPE).and_then(|caller| Asking::of(&tables, &caller, &parts));
    respond(&parts.headers, asking.map(|asking| asking.list(&tables)))
}

pub async fn one(State(app): State<Arc<App>>, id: PathId, http: Request) -> Response {
    let (parts, _) = http.into_parts();
    let id = named(id);
    let tables = (app.control)();
    let asking = app.caller(&tables, &parts, MODELS_SCOPE).and_then(|caller| Asking::of(&tables, &caller, &parts));
    respond(&parts.headers, asking.and_then(|asking| asking.find(&tables, &id)))
}

fn respond<T: Serialize>(headers: &HeaderMap, result: Result<T, Refusal>) -> Response {
    let id = request::request_id(headers);
    let written = result.and_then(|object| serde_json::to_vec(&object).map_err(|_| Refusal::Internal));
    match written {
        Ok(json) => {
            let mut response = Response::new(Body::from(json));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(X_REQUEST_ID, value(id.as_str()));
            response
        }
        Err(refusal) => error::response(&ApiError::from(refusal), &id),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::{DeploymentId, PlanName};
    use crate::facade::fixtures;
    use crate::records::control::{
        ControlRecord, Deployment, Entity, EntityKind, ModelLimits, Organization, Plan, Stamp,
    };

    fn put(tables: &mut Tables, id: &str, entity: Entity) {
        let stamp = Stamp { change_id: "c".into(), actor: "test".into(), at: Timestamp::default() };
        let version = tables.version_of(entity.kind(), id);
        let record = ControlRecord::put(id, entity, version, stamp);
        tables.apply(tables.offset() + 1, &record).unwrap();
    }

    fn entry(from: i64, min_input_tokens: Option<u64>, max_input_tokens: Option<u64>, input: i128) -> PriceEntry {
        PriceEntry {
            effective_from: Timestamp::from_millis(from),
            min_input_tokens,
            max_input_tokens,
            input: PicoUsd::new(input),
            cached_input: Some(PicoUsd::new(input / 10)),
            cache_write: None,
            output: PicoUsd::new(input * 4),
            reasoning: None,
            source: (from > 0).then(|| "a page".into()),
            source_read: None,
        }
    }

    fn model(tier: u8, prices: Vec<PriceEntry>) -> Entity {
        let deployment = Deployment {
            id: DeploymentId::parse("place").unwrap(),
            provider: "p".into(),
            upstream_model: "m".into(),
            base_url: "u".into(),
            region: "r".into(),
            credential: "none".into(),
            prices,
            weight: None,
        };
        Entity::Model(control::Model {
            aliases: vec![],
            tier,
            owned_by: "maker".into(),
            created_at: Timestamp::from_millis(5_000),
            context_window: 8_000,
            max_output_tokens: 1_000,
            capabilities: vec!["chat".into()],
            deployments: vec![deployment],
            limits: Limits { requests_per_minute: Some(7), tokens_per_minute: Some(70), concurrent_requests: None },
            balance: control::Balance::default(),
        })
    }

    /// acme may use tier 1, and small of that; globex has no plan, and may use everything.
    fn tables() -> Tables {
        let mut tables = fixtures::tables();
        put(&mut tables, "small", model(1, vec![entry(1_000, None, None, 150_000)]));
        put(&mut tables, "large", model(4, vec![entry(0, None, None, 5_000_000)]));
        let of_small = ModelLimits {
            model: ModelName::parse("small").unwrap(),
            limits: Limits { requests_per_minute: Some(3), ..Limits::NONE },
        };
        let mut plan = Plan {
            tiers: vec![1],
            output_cap: Some(512),
            limits: Limits { requests_per_minute: Some(60), tokens_per_minute: Some(9_000), concurrent_requests: None },
            model_limits: vec![of_small],
            ..Plan::default()
        };
        plan.budget.spend = Spend { day: Some(PicoUsd::new(1_500_000_000_000)), month: None };
        put(&mut tables, "starter", Entity::Plan(plan));
        let organization = Organization {
            plan: Some(PlanName::parse("starter").unwrap()),
            limits: Limits { requests_per_minute: Some(30), ..Limits::NONE },
            ..Organization::named("acme")
        };
        put(&mut tables, "acme", Entity::Organization(organization));
        let Some(Entity::Key(mut key)) = tables.entity(EntityKind::Key, "key_acme") else { panic!("a key") };
        key.limits.concurrent_requests = Some(2);
        key.spend.month = Some(PicoUsd::new(1));
        put(&mut tables, "key_acme", Entity::Key(key));
        tables
    }

    /// What the key is told, with the header that names an organization.
    fn told(tables: &Tables, key: &str, named: Option<&str>) -> Result<Value, Refusal> {
        let mut http = Request::builder().header("api-key", key);
        if let Some(named) = named {
            http = http.header("x-tollstream-organization", named);
        }
        let (parts, ()) = http.body(()).unwrap().into_parts();
        let caller =
            super::super::authenticate::caller(tables, &parts.headers, None, MODELS_SCOPE, Timestamp::default())?;
        let asking = Asking { at: Timestamp::from_millis(2_000), ..Asking::of(tables, &caller, &parts)? };
        Ok(serde_json::to_value(asking.list(tables)).unwrap())
    }

    fn ids(list: &Value) -> Vec<&str> {
        list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_key_sees_what_the_plan_allows_with_prices_and_limits() {
        let list = told(&tables(), fixtures::KEY, None).unwrap();
        assert_eq!(ids(&list), ["auto", "small"]);
        let none = json!({ "requests_per_minute": null, "tokens_per_minute": null, "concurrent_requests": null });
        let limits = |of: [(&str, u64); 2]| {
            let mut limits = none.clone();
            for (name, amount) in of {
                limits[name] = json!(amount);
            }
            limits
        };
        assert_eq!(
            list["data"][1],
            json!({
                "id": "small", "object": "model", "created": 5, "owned_by": "maker", "tier": 1,
                "context_window": 8_000, "max_output_tokens": 1_000, "capabilities": ["chat"],
                "prices": [{
                    "deployment": "place", "effective_from": "1970-01-01T00:00:01Z",
                    "min_input_tokens": null, "max_input_tokens": null, "simulated": false,
                    "per_million_tokens_usd":
                        { "input": "0.15", "cached_input": "0.015", "cache_write": null, "output": "0.60", "reasoning": null },
                    "per_token_pico_usd":
                        { "input": 150_000, "cached_input": 15_000, "cache_write": null, "output": 600_000, "reasoning": null },
                }],
                "limits": limits([("requests_per_minute", 3), ("tokens_per_minute", 70)]),
            }),
            "a plan's limits of a model go before the model's"
        );
        assert_eq!(
            (&list["object"], &list["organization"], &list["plan"]),
            (&json!("list"), &json!("acme"), &json!("starter"))
        );
        assert_eq!(
            list["limits"],
            json!({
                "organization": limits([("requests_per_minute", 30), ("tokens_per_minute", 9_000)]),
                "key": limits([("concurrent_requests", 2), ("concurrent_requests", 2)]),
            })
        );
        assert_eq!(
            list["budgets"],
            json!({
                "organization": { "day_usd": "1.50", "day_pico_usd": 1_500_000_000_000_i64, "month_usd": null, "month_pico_usd": null },
                "key": { "day_usd": null, "day_pico_usd": null, "month_usd": "0.000000000001", "month_pico_usd": 1 },
            })
        );
        assert_eq!(
            (&list["output_cap"], &list["time_zone"], &list["reset_day"]),
            (&json!(512), &json!("UTC"), &json!(1))
        );
    }

    #[test]
    fn a_key_of_several_organizations_sees_what_any_of_them_may_use() {
        let tables = tables();
        let all = told(&tables, fixtures::SERVICE_KEY, None).unwrap();
        assert_eq!(ids(&all), ["auto", "gpt-4o-mini", "large", "small"]);
        assert_eq!((all.get("limits"), all["data"][3].get("limits")), (None, None), "whose they are is not said");
        let acme = told(&tables, fixtures::SERVICE_KEY, Some("acme")).unwrap();
        assert_eq!((ids(&acme), &acme["organization"]), (vec!["auto", "small"], &json!("acme")));
        let globex = told(&tables, fixtures::SERVICE_KEY, Some("globex")).unwrap();
        assert_eq!((ids(&globex), &globex["plan"]), (vec!["auto", "gpt-4o-mini", "large", "small"], &Value::Null));
        assert_eq!(globex["data"][2]["prices"][0]["simulated"], true);
        let refused = told(&tables, fixtures::SERVICE_KEY, Some("umbrella"));
        assert_eq!(refused, Err(Refusal::OrganizationNotCovered { organization: "umbrella".into() }));
        let dormant = told(&tables, fixtures::SERVICE_KEY, Some("dormant"));
        assert!(matches!(dormant, Err(Refusal::OrganizationInactive { .. })), "{dormant:?}");
    }

    #[test]
    fn who_lacks_its_plan_may_use_nothing() {
        let mut tables = tables();
        let stamp = Stamp { change_id: "c".into(), actor: "test".into(), at: Timestamp::default() };
        let version = tables.version_of(EntityKind::Plan, "starter");
        let deletion = ControlRecord::delete(EntityKind::Plan, "starter", version, stamp);
        tables.apply(tables.offset() + 1, &deletion).unwrap();
        assert_eq!(ids(&told(&tables, fixtures::KEY, None).unwrap()), ["auto"]);
    }

    #[test]
    fn a_model_that_is_not_allowed_is_not_found() {
        let tables = tables();
        let id = "acme".parse().unwrap();
        let terms = tables.terms(&id, None).unwrap();
        let asking = Asking { organizations: vec![(id, terms)], at: Timestamp::default() };
        for (name, found) in
            [("small", true), ("auto", true), ("large", false), ("gpt-4o-mini", false), ("no such!", false)]
        {
            assert_eq!(asking.find(&tables, name).is_ok(), found, "{name}");
        }
    }
}
