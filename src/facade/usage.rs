//! `GET /v1/usage` and `/ai/usage` for clients, `/admin/v1/usage` for operators: what was spent, from ClickHouse. And
//! `GET /api/conversations/analytics/models`: what conversations were, by the model that answered (`conversations`).
//!
//! The organization is the key's, and the text of the question is made of words that stand here; whatever a client sends is
//! bound as a value. ClickHouse may be behind or away, so every answer says how fresh it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use jiff::civil::{Date, date};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::admin::Shared;
use super::conversations;
use super::error::{self, Refusal, X_REQUEST_ID, value};
use super::request;
use super::routes::App;
use crate::config::ClickHouse;
use crate::control::document::USAGE_SCOPE;
use crate::domain::{OrganizationId, Timestamp};
use crate::queries::ask::{self, Answer, Question};
use crate::records::responses::ApiError;
use crate::runtime::clock;

/// Questions that are asked at a time; others wait.
const ASKED_MAX: usize = 4;
/// How long an answer may take, the wait for those before it included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Days that one question may be about, and how many it is about when it does not say.
const DAYS_MAX: i32 = 400;
const DAYS_DEFAULT: i64 = 30;
/// Days that can be asked for.
const FIRST_DAY: Date = date(2020, 1, 1);
const LAST_DAY: Date = date(2099, 12, 31);
/// Groups on a page: without a word about it, and at the most. Groups that can be passed over.
const PAGE_DEFAULT: u64 = 100;
const PAGE_MAX: u64 = 1_000;
const OFFSET_MAX: u64 = 100_000;
/// Words in `group_by`.
const GROUPS_MAX: usize = 3;

const AS_OF: HeaderName = HeaderName::from_static("x-tollstream-as-of");
const HAS_MORE: HeaderName = HeaderName::from_static("x-tollstream-has-more");

/// What can be grouped by, and how it is told.
const GROUPS: [(&str, &str); 9] = [
    ("day", "toString(toDate(u.at))"),
    ("model", "u.model"),
    ("tier", "u.tier"),
    ("user", "u.user"),
    ("key", "u.key_id"),
    ("deployment", "u.deployment"),
    ("policy", "u.policy"),
    ("conversation", "u.conversation_id"),
    ("organization", "u.organization"),
];
/// `tag:NAME` is the value of a tag.
const TAG: &str = "tag";

/// Asks ClickHouse.
pub struct Usage {
    clickhouse: ClickHouse,
    turns: Semaphore,
}

/// What a URL is about, which says what its query may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// What the key's organization spent.
    Organization,
    /// What all spent, or the one that an operator names.
    All,
    /// The conversations of the key's organization.
    Conversations,
}

impl About {
    const fn known(self) -> &'static str {
        match self {
            Self::Organization => "start_date, end_date, group_by, limit, offset and format",
            Self::All => "organization, start_date, end_date, group_by, limit, offset and format",
            Self::Conversations => "start_date, end_date, limit, offset and format",
        }
    }
}

/// What a query of a URL asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    about: About,
    first_day: Date,
    last_day: Date,
    groups: Vec<&'static str>,
    /// Whose values are a group, when `tag` is one.
    tag: Option<String>,
    limit: u64,
    offset: u64,
    csv: bool,
    organization: Option<String>,
}

/// What is answered.
struct Page {
    answer: Answer,
    has_more: bool,
    /// When the newest posting was decided that ClickHouse has; `None`: it has none.
    as_of: Option<Timestamp>,
}

impl Asked {
    /// Reads a query.
    fn of(query: &str, today: Date, about: About) -> Result<Self, Refusal> {
        let mut asked = Self {
            about,
            first_day: today,
            last_day: today,
            groups: Vec::new(),
            tag: None,
            limit: PAGE_DEFAULT,
            offset: 0,
            csv: false,
            organization: None,
        };
        let (mut first, mut last) = (None, None);
        for (name, text) in super::operators::form_urlencoded(query) {
            match name.as_str() {
                "start_date" => first = Some(day("start_date", &text)?),
                "end_date" => last = Some(day("end_date", &text)?),
                "group_by" if about != About::Conversations => (asked.groups, asked.tag) = groups(&text, about)?,
                "limit" => asked.limit = number("limit", &text, 1, PAGE_MAX)?,
                "offset" => asked.offset = number("offset", &text, 0, OFFSET_MAX)?,
                "format" => {
                    asked.csv = match text.as_str() {
                        "json" => false,
                        "csv" => true,
                        _ => return Err(invalid("format", "give json or csv")),
                    }
                }
                "organization" if about == About::All => asked.organization = Some(text),
                _ => {
                    let known = about.known();
                    let name: String = name.chars().take(crate::domain::ids::ID_BYTES_MAX).collect();
                    return Err(invalid("query", &format!("{name:?} is not known; known are {known}")));
                }
            }
        }
        asked.last_day = last.unwrap_or_else(|| today.max(first.unwrap_or(today)));
        let before = jiff::Span::new().days(DAYS_DEFAULT - 1);
        asked.first_day = first.unwrap_or_else(|| asked.last_day.checked_sub(before).unwrap_or(FIRST_DAY));
        if asked.first_day > asked.last_day {
            return Err(invalid("start_date", "give a day that is not behind end_date"));
        }
        let days = asked.first_day.until(asked.last_day).map_or(i32::MAX, |span| span.get_days());
        if days >= DAYS_MAX {
            return Err(invalid("start_date", &format!("ask for {DAYS_MAX} days at the most")));
        }
        Ok(asked)
    }

    /// One line more than is wanted tells whether there are more.
    fn sql(&self) -> String {
        match self.about {
            About::Organization | About::All => self.usage(),
            About::Conversations => conversations::BY_MODEL.to_owned(),
        }
    }

    fn usage(&self) -> String {
        let expression = |name: &str| match GROUPS.iter().find(|(group, _)| *group == name) {
            Some((_, expression)) => *expression,
            None => "nullIf(u.tags[{tag:String}], '')",
        };
        let columns: String = self.groups.iter().map(|name| format!("{} AS {name}, ", expression(name))).collect();
        let (group, order) = match self.groups.as_slice() {
            [] => (String::new(), String::new()),
            names => (format!(" GROUP BY {}", names.join(", ")), format!(" ORDER BY {}", names.join(", "))),
        };
        let of_one = if self.organization.is_some() { " AND u.organization = {organization:String}" } else { "" };
        format!(
            "SELECT {columns}countIf(u.request_outcome IS NOT NULL) AS requests, countIf(u.kind = 'attempt') AS attempts, \
             sum(u.cost_usd) AS cost_usd, countIf(u.cost_usd IS NULL) AS unknown_cost, sum(u.input_tokens) AS input_tokens, \
             sum(u.cached_input_tokens) AS cached_input_tokens, sum(u.output_tokens) AS output_tokens FROM usage_exact AS u \
             WHERE u.origin = 'live' AND u.at >= toDateTime64({{first_day:Date}}, 3, 'UTC') \
             AND u.at < toDateTime64({{last_day:Date}} + 1, 3, 'UTC'){of_one}{group}{order} \
             LIMIT {{limit:UInt64}} OFFSET {{offset:UInt64}}"
        )
    }

    fn values(&self) -> BTreeMap<&'static str, String> {
        let mut values = BTreeMap::from([
            ("first_day", self.first_day.to_string()),
            ("last_day", self.last_day.to_string()),
            ("limit", (self.limit + 1).to_string()),
            ("offset", self.offset.to_string()),
        ]);
        values.extend(self.tag.clone().map(|tag| ("tag", tag)));
        values.extend(self.organization.clone().map(|organization| ("organization", organization)));
        values
    }
}

fn invalid(param: &'static str, problem: &str) -> Refusal {
    Refusal::InvalidField { param, problem: problem.to_owned() }
}

fn day(param: &'static str, text: &str) -> Result<Date, Refusal> {
    let day = text.parse::<Date>().ok().filter(|day| (FIRST_DAY..=LAST_DAY).contains(day) && text.len() == 10);
    day.ok_or_else(|| invalid(param, &format!("give a day such as 2026-11-22, from {FIRST_DAY} to {LAST_DAY}")))
}

fn number(param: &'static str, text: &str, least: u64, most: u64) -> Result<u64, Refusal> {
    let number = text.parse::<u64>().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| invalid(param, &format!("give {least} to {most}")))
}

fn groups(text: &str, about: About) -> Result<(Vec<&'static str>, Option<String>), Refusal> {
    let known = GROUPS.iter().map(|(name, _)| *name).filter(|name| about == About::All || *name != "organization");
    let known: Vec<&'static str> = known.collect();
    let (mut names, mut tag) = (Vec::new(), None);
    for word in text.split(',').filter(|word| !word.is_empty()) {
        let name = match word.split_once(':') {
            Some((TAG, name)) if !name.is_empty() && name.len() <= crate::domain::ids::ID_BYTES_MAX => {
                tag = Some(name.to_owned());
                TAG
            }
            _ => known.iter().copied().find(|name| *name == word).ok_or_else(|| {
                invalid("group_by", &format!("give {} or tag:NAME, separated by commas", known.join(", ")))
            })?,
        };
        if names.contains(&name) {
            return Err(invalid("group_by", "name each once, and one tag"));
        }
        names.push(name);
    }
    if names.len() > GROUPS_MAX {
        return Err(invalid("group_by", &format!("group by {GROUPS_MAX} at the most")));
    }
    Ok((names, tag))
}

impl Usage {
    pub const fn new(clickhouse: ClickHouse) -> Self {
        Self { clickhouse, turns: Semaphore::const_new(ASKED_MAX) }
    }

    async fn page(&self, asked: &Asked) -> Result<Page, Refusal> {
        let look = async {
            let _turn = self.turns.acquire().await.map_err(|_| Refusal::Stopping)?;
            let (sql, values, nothing) = (asked.sql(), asked.values(), BTreeMap::new());
            let question = Question { name: "usage", sql: &sql, values: &values };
            let mut answer = ask::ask(&self.clickhouse, question, ANSWER_TIMEOUT).await.map_err(unavailable)?;
            let newest = Question {
                name: "usage",
                sql: "SELECT toUnixTimestamp64Milli(max(at)), count() FROM usage",
                values: &nothing,
            };
            let newest = ask::ask(&self.clickhouse, newest, ANSWER_TIMEOUT).await.map_err(unavailable)?;
            let newest = newest.rows.first().filter(|row| row.get(1).and_then(Value::as_u64) > Some(0));
            let as_of = newest.and_then(|row| row.first()?.as_i64()).map(Timestamp::from_millis);
            let has_more = answer.rows.len() as u64 > asked.limit;
            answer.rows.truncate(usize::try_from(asked.limit).unwrap_or(usize::MAX));
            Ok(Page { answer, has_more, as_of })
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, look).await {
            Ok(page) => page,
            Err(_) => Err(too_long()),
        }
    }
}

fn too_long() -> Refusal {
    let seconds = ANSWER_TIMEOUT.as_secs();
    Refusal::UsageUnavailable { detail: format!("it took more than {seconds} s; ask for fewer days, or later") }
}

/// Addresses and texts of ClickHouse are for the log.
fn unavailable(error: ask::Error) -> Refusal {
    tracing::warn!(%error, "usage could not be asked");
    match error {
        ask::Error::Timeout { .. } => too_long(),
        ask::Error::TooLarge { .. } => Refusal::UsageUnavailable { detail: "the answer is too large".to_owned() },
        ask::Error::Away { .. } | ask::Error::Client(_) => {
            Refusal::UsageUnavailable { detail: "clickhouse is away; requests are answered all the same".to_owned() }
        }
        ask::Error::Refused { .. } | ask::Error::Unreadable { .. } => {
            Refusal::UsageUnavailable { detail: "clickhouse did not answer it".to_owned() }
        }
    }
}

fn today() -> Date {
    let now = jiff::Timestamp::from_millisecond(clock::now().as_millis()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    jiff::tz::TimeZone::UTC.to_datetime(now).date()
}

/// For clients: the organization is the key's.
pub async fn of_client(State(app): State<Arc<App>>, http: Request) -> Response {
    of_organization(&app, http, About::Organization).await
}

/// The same of its conversations.
pub async fn of_conversations(State(app): State<Arc<App>>, http: Request) -> Response {
    of_organization(&app, http, About::Conversations).await
}

async fn of_organization(app: &App, http: Request, about: About) -> Response {
    let (parts, _) = http.into_parts();
    let page = async {
        let tables = (app.control)();
        let caller = app.caller(&tables, &parts, USAGE_SCOPE)?;
        let named = request::headers(&parts.headers)?.organization;
        let organization: OrganizationId = caller.organization(&tables, named, None)?;
        let mut asked = Asked::of(parts.uri.query().unwrap_or_default(), today(), about)?;
        asked.organization = Some(organization.to_string());
        let page = app.usage.page(&asked).await?;
        Ok::<_, ApiError>((asked, page))
    };
    respond(&parts.headers, page.await)
}

/// For operators: all organizations, or the one that they name.
pub async fn of_operator(State(shared): State<Arc<Shared>>, http: Request) -> Response {
    let (parts, _) = http.into_parts();
    let page = async {
        shared.operators.operator(&parts)?;
        let asked = Asked::of(parts.uri.query().unwrap_or_default(), today(), About::All)?;
        let page = shared.operators.usage.page(&asked).await?;
        Ok::<_, ApiError>((asked, page))
    };
    respond(&parts.headers, page.await)
}

fn respond(headers: &HeaderMap, page: Result<(Asked, Page), ApiError>) -> Response {
    let id = request::request_id(headers);
    let (asked, page) = match page {
        Ok(page) => page,
        Err(refusal) => return error::response(&refusal, &id),
    };
    let (body, kind) = match asked.csv {
        true => (csv(&page.answer), "text/csv; charset=utf-8"),
        false => (described(&asked, &page).to_string(), "application/json"),
    };
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_REQUEST_ID, value(id.as_str()));
    headers.insert(HAS_MORE, HeaderValue::from_static(if page.has_more { "true" } else { "false" }));
    if let Some(as_of) = page.as_of {
        headers.insert(AS_OF, value(&as_of.to_string()));
    }
    response
}

fn described(asked: &Asked, page: &Page) -> Value {
    let data = page.answer.rows.iter().map(|row| {
        let cells = page.answer.columns.iter().cloned().zip(row.iter().cloned());
        Value::Object(cells.collect::<Map<String, Value>>())
    });
    let mut described = json!({
        "object": "list",
        "organization": asked.organization,
        "start_date": asked.first_day.to_string(),
        "end_date": asked.last_day.to_string(),
        "data": data.collect::<Vec<_>>(),
        "has_more": page.has_more,
        "as_of": page.as_of.map(|as_of| as_of.to_string()),
    });
    if asked.about != About::Conversations {
        described["group_by"] = json!(asked.groups);
        described["tag"] = json!(asked.tag);
    }
    described
}

/// RFC 4180; what is unknown is empty.
fn csv(answer: &Answer) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let cell = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => quoted(text),
        other => other.to_string(),
    };
    let mut text = answer.columns.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(",") + "\r\n";
    for row in &answer.rows {
        text.push_str(&row.iter().map(cell).collect::<Vec<_>>().join(","));
        text.push_str("\r\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: Date = date(2026, 11, 28);

    fn asked(query: &str) -> Result<Asked, String> {
        Asked::of(query, TODAY, About::Organization).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn without_a_word_it_is_the_last_thirty_days_in_one_line() {
        let asked = asked("").unwrap();
        assert_eq!((asked.first_day, asked.last_day), (date(2026, 10, 30), TODAY));
        assert_eq!((asked.groups.len(), asked.limit, asked.offset, asked.csv), (0, 100, 0, false));
        let sql = asked.sql();
        assert!(!sql.contains("GROUP BY") && sql.contains("LIMIT {limit:UInt64}"), "{sql}");
        assert_eq!(asked.values()["limit"], "101");
    }

    #[test]
    fn values_are_bound_and_only_known_words_become_text() {
        let mut asked =
            asked("start_date=2026-11-01&end_date=2026-11-30&group_by=day,tag:team'--&limit=2&offset=4&format=csv")
                .unwrap();
        asked.organization = Some("acme' OR 1=1".into());
        let (sql, values) = (asked.sql(), asked.values());
        assert!(!sql.contains("team") && !sql.contains("acme"), "{sql}");
        assert!(
            sql.contains("u.organization = {organization:String}")
                && sql.contains("GROUP BY day, tag ORDER BY day, tag")
        );
        assert_eq!((values["tag"].as_str(), values["organization"].as_str()), ("team'--", "acme' OR 1=1"));
        assert_eq!((asked.limit, asked.offset, asked.csv), (2, 4, true));
    }

    #[test]
    fn what_cannot_be_answered_says_what_to_do() {
        let table = [
            ("start_date=2026-11-02&end_date=2026-11-01", "start_date: give a day that is not behind end_date"),
            ("start_date=yesterday", "start_date: give a day such as 2026-11-22, from 2020-01-01 to 2099-12-31"),
            ("end_date=2026-02-30", "end_date: give a day such as"),
            ("start_date=0001-01-01", "start_date: give a day such as"),
            ("end_date=9999-12-31", "end_date: give a day such as"),
            ("start_date=2024-01-01&end_date=2026-11-01", "start_date: ask for 400 days at the most"),
            (
                "group_by=team",
                "group_by: give day, model, tier, user, key, deployment, policy, conversation or tag:NAME",
            ),
            ("group_by=organization", "group_by: give day, model"),
            ("group_by=tag:", "group_by: give day, model"),
            ("group_by=model,model", "group_by: name each once"),
            ("group_by=day,model,tier,user", "group_by: group by 3 at the most"),
            ("limit=0", "limit: give 1 to 1000"),
            ("offset=-1", "offset: give 0 to 100000"),
            ("format=xml", "format: give json or csv"),
            ("organization=zeta", "query: \"organization\" is not known; known are start_date"),
        ];
        for (query, expected) in table {
            let told = asked(query).unwrap_err();
            assert!(told.starts_with(&format!("invalid value for {expected}")), "{query}: {told}");
        }
        assert!(Asked::of("organization=zeta&group_by=organization", TODAY, About::All).is_ok());
    }

    #[test]
    fn conversations_are_asked_for_by_days_and_pages_alone() {
        let of = |query: &str| Asked::of(query, TODAY, About::Conversations).map_err(|refusal| refusal.to_string());
        let asked = of("start_date=2026-11-01&end_date=2026-11-30&limit=2&offset=4&format=csv").unwrap();
        assert_eq!((asked.first_day, asked.last_day, asked.csv), (date(2026, 11, 1), date(2026, 11, 30), true));
        assert_eq!((asked.sql().as_str(), asked.values()["limit"].as_str()), (conversations::BY_MODEL, "3"));
        let table = [
            ("start_date=2026-11-02&end_date=2026-11-01", "start_date: give a day that is not behind end_date"),
            ("end_date=2026-11-31", "end_date: give a day such as"),
            ("start_date=2024-01-01&end_date=2026-11-01", "start_date: ask for 400 days at the most"),
            (
                "group_by=day",
                "query: \"group_by\" is not known; known are start_date, end_date, limit, offset and format",
            ),
            ("organization=zeta", "query: \"organization\" is not known"),
        ];
        for (query, expected) in table {
            let told = of(query).unwrap_err();
            assert!(told.starts_with(&format!("invalid value for {expected}")), "{query}: {told}");
        }
    }

    #[test]
    fn cells_that_need_it_are_quoted() {
        let answer = Answer {
            columns: vec!["user".into(), "cost_usd".into()],
            rows: vec![vec![json!("a\"b,c"), json!("0.5")], vec![Value::Null, Value::Null]],
        };
        assert_eq!(csv(&answer), "\"user\",\"cost_usd\"\r\n\"a\"\"b,c\",\"0.5\"\r\n,\r\n");
    }
}
