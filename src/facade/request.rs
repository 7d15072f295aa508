//! What the facade reads of a chat request: a borrowed view of the body, and headers. The body itself goes on as it came.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::authenticate::ORGANIZATION_HEADER;
use super::error::{Refusal, X_REQUEST_ID, unknown_model};
use crate::domain::{ConversationId, ModelName, RequestId, UserId};
use crate::processor::cache::Directives;

const TAGS_HEADER: &str = "x-tollstream-tags";
const CONVERSATION_HEADER: &str = "x-tollstream-conversation";
const TIMEOUT_HEADER: &str = "x-tollstream-timeout-ms";
const CACHE_CONTROL_HEADER: &str = "cache-control";
const TRACEPARENT_HEADER: &str = "traceparent";

/// Bounds on the labels that a request carries into cost reports.
const TAGS_MAX: usize = 16;
const TAG_BYTES_MAX: usize = 64;
/// Longest deadline that a client can ask for: a day. The processor's own bound may be lower.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

/// The members of the body that the facade looks at. Values stay text until they are looked at, so that each can be
/// refused by its name; all others are checked to be JSON and passed over.
#[derive(Deserialize)]
struct View<'a> {
    #[serde(borrow, default)]
    model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stream: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow, default)]
    messages: Option<&'a RawValue>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow, default)]
    user: Option<&'a RawValue>,
    #[serde(borrow, default)]
    cache: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default, rename = "include_usage")]
    _include_usage: Option<bool>,
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// What the body says.
#[derive(Debug, PartialEq)]
pub struct Asked<'a> {
    pub model: ModelName,
    pub stream: bool,
    pub organization: Option<Cow<'a, str>>,
    pub user_tier: Option<String>,
    pub user: Option<UserId>,
    pub tags: BTreeMap<String, String>,
}

/// Reads the body.
pub fn read(body: &[u8]) -> Result<Asked<'_>, Refusal> {
    let text = std::str::from_utf8(body)
        .map_err(|error| Refusal::InvalidJson { detail: format!("byte {} is not UTF-8", error.valid_up_to()) })?;
    if !text.trim_ascii_start().starts_with('{') {
        return Err(Refusal::InvalidJson { detail: "an object is expected".to_owned() });
    }
    let view: View<'_> =
        serde_json::from_str(text).map_err(|error| Refusal::InvalidJson { detail: error.to_string() })?;

    let model = string(view.model, "model")?.ok_or(Refusal::Missing { param: "model" })?;
    // A name that cannot be one is the name of no model.
    let model = ModelName::parse(&model).map_err(|_| unknown_model(&model))?;
    let stream = parse::<bool>(view.stream, "stream", "a boolean is expected")?.unwrap_or(false);
    parse::<StreamOptions>(
        view.stream_options,
        "stream_options",
        "an object with a boolean include_usage is expected",
    )?;
    let messages = view.messages.ok_or(Refusal::Missing { param: "messages" })?.get();
    if messages.strip_prefix('[').is_none_or(|rest| rest.trim_ascii_start().starts_with(']')) {
        let problem = "an array with at least one message is expected".to_owned();
        return Err(Refusal::InvalidField { param: "messages", problem });
    }
    // Its owner reads it; what is wrong with it is better told here, by its name.
    if let Some(Err((param, problem))) = view.cache.map(Directives::of_member) {
        return Err(Refusal::InvalidField { param, problem: problem.to_owned() });
    }
    let user = string(view.user, "user")?.filter(|user| !user.is_empty()).and_then(|user| pseudonym(&user));
    let mut asked = Asked { model, stream, organization: None, user_tier: None, user, tags: BTreeMap::new() };
    read_metadata(view.metadata, &mut asked)?;
    Ok(asked)
}

/// `organization_id` and `user_tier` mean something to us; of the rest, short strings become tags. OpenAI allows longer
/// ones, so these are no error: they only reach the provider, as everything does.
fn read_metadata<'a>(metadata: Option<&'a RawValue>, asked: &mut Asked<'a>) -> Result<(), Refusal> {
    let Some(members): Option<BTreeMap<String, &RawValue>> = parse(metadata, "metadata", "an object is expected")?
    else {
        return Ok(());
    };
    for (name, value) in members {
        match name.as_str() {
            "organization_id" => asked.organization = string(Some(value), "metadata.organization_id")?,
            "user_tier" => {
                let tier = string(Some(value), "metadata.user_tier")?;
                asked.user_tier = tier.map(Cow::into_owned);
                if asked.user_tier.as_ref().is_some_and(|tier| !is_tag(tier)) {
                    let problem = format!("1 to {TAG_BYTES_MAX} printable bytes are expected");
                    return Err(Refusal::InvalidField { param: "metadata.user_tier", problem });
                }
            }
            _ => {
                let Ok(Text(value)) = serde_json::from_str::<Text<'_>>(value.get()) else { continue };
                if asked.tags.len() < TAGS_MAX && is_tag(&name) && is_tag(&value) {
                    asked.tags.insert(name, value.into_owned());
                }
            }
        }
    }
    Ok(())
}

fn is_tag(text: &str) -> bool {
    !text.is_empty() && text.len() <= TAG_BYTES_MAX && !text.chars().any(char::is_control)
}

/// `null` and absence are the same.
fn parse<'a, T: Deserialize<'a>>(
    raw: Option<&'a RawValue>,
    param: &'static str,
    problem: &'static str,
) -> Result<Option<T>, Refusal> {
    let Some(raw) = raw.filter(|raw| raw.get() != "null") else { return Ok(None) };
    let parsed = serde_json::from_str(raw.get());
    parsed.map(Some).map_err(|_| Refusal::InvalidField { param, problem: problem.to_owned() })
}

fn string<'a>(raw: Option<&'a RawValue>, param: &'static str) -> Result<Option<Cow<'a, str>>, Refusal> {
    Ok(parse::<Text<'a>>(raw, param, "a string is expected")?.map(|Text(text)| text))
}

/// Users are named as the client likes; what is no identifier becomes a digest of it.
fn pseudonym(user: &str) -> Option<UserId> {
    let digest = || format!("sha256:{}", hex::encode(Sha256::digest(user)));
    UserId::parse(user).or_else(|_| UserId::parse(&digest())).ok()
}

/// What the headers say.
#[derive(Debug, PartialEq, Default)]
pub struct Headers<'a> {
    pub organization: Option<&'a str>,
    pub tags: BTreeMap<String, String>,
    pub conversation_id: Option<ConversationId>,
    pub timeout: Option<Duration>,
    pub traceparent: Option<String>,
    /// What it says of the gateway's cache.
    pub cache_control: Option<String>,
}

/// The client's own id, if it is one, else a new one that sorts by time.
pub fn request_id(headers: &HeaderMap) -> RequestId {
    let given = headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok());
    given.and_then(|text| RequestId::parse(text).ok()).unwrap_or_else(new_request_id)
}

#[expect(clippy::expect_used, reason = "36 letters, digits and an underscore are always an identifier")]
fn new_request_id() -> RequestId {
    let mut text = *b"req_00000000000000000000000000000000";
    uuid::Uuid::now_v7().simple().encode_lower(&mut text[4..]);
    std::str::from_utf8(&text).ok().and_then(|text| RequestId::parse(text).ok()).expect("an identifier")
}

/// The trace that the client has begun.
pub fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(TRACEPARENT_HEADER).and_then(|value| value.to_str().ok());
    text.map(str::trim).filter(|text| is_traceparent(text))
}

/// Reads the headers that a client may add.
pub fn headers(headers: &HeaderMap) -> Result<Headers<'_>, Refusal> {
    let text = |name: &'static str| match headers.get(name).map(|value| value.to_str()) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text.trim())),
        Some(Err(_)) => Err(Refusal::InvalidHeader { name, problem: "printable ASCII is expected".to_owned() }),
    };
    let conversation_id = match text(CONVERSATION_HEADER)?.map(ConversationId::parse) {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(error)) => {
            return Err(Refusal::InvalidHeader { name: CONVERSATION_HEADER, problem: error.to_string() });
        }
    };
    Ok(Headers {
        cache_control: cache_control(headers)?.header(),
        organization: text(ORGANIZATION_HEADER)?,
        tags: text(TAGS_HEADER)?.map(tags).transpose()?.unwrap_or_default(),
        conversation_id,
        timeout: text(TIMEOUT_HEADER)?.map(timeout).transpose()?,
        // A trace context that is none is no reason to refuse a request.
        traceparent: traceparent(headers).map(str::to_owned),
    })
}

/// What all headers of that name say; there may be several.
fn cache_control(headers: &HeaderMap) -> Result<Directives, Refusal> {
    let invalid = |problem: String| Refusal::InvalidHeader { name: CACHE_CONTROL_HEADER, problem };
    headers.get_all(CACHE_CONTROL_HEADER).iter().try_fold(Directives::default(), |all, value| {
        let text = value.to_str().map_err(|_| invalid("printable ASCII is expected".to_owned()))?;
        Ok(all.and(Directives::parse(text).map_err(invalid)?))
    })
}

fn tags(text: &str) -> Result<BTreeMap<String, String>, Refusal> {
    let invalid = |problem: String| Refusal::InvalidHeader { name: TAGS_HEADER, problem };
    let mut tags = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| invalid("name=value,name=value is expected".into()))?;
        let (name, value) = (name.trim(), value.trim());
        if !is_tag(name) || !is_tag(value) {
            return Err(invalid(format!("names and values have 1 to {TAG_BYTES_MAX} bytes")));
        }
        tags.insert(name.to_owned(), value.to_owned());
    }
    match tags.len() > TAGS_MAX {
        true => Err(invalid(format!("{TAGS_MAX} tags are the most"))),
        false => Ok(tags),
    }
}

fn timeout(text: &str) -> Result<Duration, Refusal> {
    let ms = text.parse().ok().map(Duration::from_millis).filter(|t| !t.is_zero() && *t <= TIMEOUT_MAX);
    ms.ok_or_else(|| Refusal::InvalidHeader {
        name: TIMEOUT_HEADER,
        problem: format!("milliseconds from 1 to {} are expected", TIMEOUT_MAX.as_millis()),
    })
}

/// `version-trace-parent-flags` in hexadecimal digits, as W3C's Trace Context says.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    let hex = |part: &&str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    parts.iter().map(|part| part.len()).eq([2, 32, 16, 2]) && parts.iter().all(hex)
}

/// Tags of the header go before tags of the body, up to the bound.
pub fn merge_tags(
    mut of_header: BTreeMap<String, String>,
    of_body: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    for (name, value) in of_body {
        if of_header.len() >= TAGS_MAX {
            break;
        }
        of_header.entry(name).or_insert(value);
    }
    of_header
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = r#"{"model":"auto","messages":[{}]}"#;

    #[test]
    fn the_least_request_is_taken() {
        let asked = read(LEAST.as_bytes()).unwrap();
        assert_eq!((asked.model.as_str(), asked.stream), ("auto", false));
        assert_eq!((asked.organization, asked.user, asked.user_tier), (None, None, None));
    }

    #[test]
    fn everything_that_means_something_is_read() {
        let body = r#" {"model":"a\u0062","stream":true,"stream_options":{"include_usage":true,"x":1},"future":{"y":[1e9]},
            "messages":[ {"role":"user"} ],"user":"u-1",
            "metadata":{"organization_id":"org_123","user_tier":"vip","team":"search","n":7,"long":"LONG"}}"#;
        let body = body.replace("LONG", &"x".repeat(65));
        let asked = read(body.as_bytes()).unwrap();
        assert_eq!((asked.model.as_str(), asked.stream), ("ab", true));
        assert_eq!(asked.organization.as_deref(), Some("org_123"));
        assert_eq!(asked.user_tier.as_deref(), Some("vip"));
        assert_eq!(asked.user.unwrap().as_str(), "u-1");
        assert_eq!(asked.tags, BTreeMap::from([("team".to_owned(), "search".to_owned())]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("", "the body is not valid JSON: an object is expected"),
            ("[1]", "the body is not valid JSON: an object is expected"),
            ("{\"model\":\"a\",}", "the body is not valid JSON: trailing comma at line 1 column 14"),
            ("{} x", "the body is not valid JSON: trailing characters at line 1 column 4"),
            (
                r#"{"model":"a","model":"b","messages":[1]}"#,
                "the body is not valid JSON: duplicate field `model` at line 1 column 20",
            ),
            ("{}", "you must provide a model parameter"),
            (r#"{"model":null}"#, "you must provide a model parameter"),
            (r#"{"model":1}"#, "invalid value for model: a string is expected"),
            (
                r#"{"model":"no such","messages":[1]}"#,
                "the model \"no such\" does not exist or you do not have access to it",
            ),
            (r#"{"model":"a"}"#, "you must provide a messages parameter"),
            (
                r#"{"model":"a","messages":[ ]}"#,
                "invalid value for messages: an array with at least one message is expected",
            ),
            (
                r#"{"model":"a","messages":"x"}"#,
                "invalid value for messages: an array with at least one message is expected",
            ),
            (r#"{"model":"a","messages":[1],"stream":"yes"}"#, "invalid value for stream: a boolean is expected"),
            (
                r#"{"model":"a","messages":[1],"stream_options":{"include_usage":1}}"#,
                "invalid value for stream_options: an object with a boolean include_usage is expected",
            ),
            (r#"{"model":"a","messages":[1],"cache":true}"#, "invalid value for cache: an object is expected"),
            (r#"{"model":"a","messages":[1],"cache":[true]}"#, "invalid value for cache: an object is expected"),
            (
                r#"{"model":"a","messages":[1],"cache":{"no-store":1}}"#,
                "invalid value for cache.no-store: a boolean is expected",
            ),
            (
                r#"{"model":"a","messages":[1],"cache":{"s-maxage":-1}}"#,
                "invalid value for cache.s-maxage: a whole number of seconds is expected",
            ),
            (r#"{"model":"a","messages":[1],"metadata":[]}"#, "invalid value for metadata: an object is expected"),
            (
                r#"{"model":"a","messages":[1],"metadata":{"organization_id":1}}"#,
                "invalid value for metadata.organization_id: a string is expected",
            ),
        ];
        for (body, message) in table {
            assert_eq!(read(body.as_bytes()).unwrap_err().to_string(), message, "{body}");
        }
        assert_eq!(
            read(b"{\"model\":\"\xff\"}").unwrap_err().to_string(),
            "the body is not valid JSON: byte 10 is not UTF-8"
        );
    }

    #[test]
    fn a_user_that_is_no_identifier_becomes_a_digest() {
        let body = r#"{"model":"auto","messages":[{}],"user":"Jane Doe"}"#;
        let user = read(body.as_bytes()).unwrap().user.unwrap();
        assert!(user.as_str().starts_with("sha256:") && user.as_str().len() == 71, "{user}");
    }

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_request_id_is_the_clients_or_a_new_one() {
        assert_eq!(request_id(&map(&[("x-request-id", "abc-1")])).as_str(), "abc-1");
        for pairs in [map(&[]), map(&[("x-request-id", "not valid")])] {
            let id = request_id(&pairs);
            assert!(id.as_str().starts_with("req_") && id.as_str().len() == 36, "{id}");
        }
    }

    #[test]
    fn headers_are_read() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let map = map(&[
            ("x-tollstream-organization", "acme"),
            ("x-tollstream-tags", "team=search, env=prod,"),
            ("x-tollstream-conversation", "c:1"),
            ("x-tollstream-timeout-ms", "1500"),
            ("traceparent", trace),
        ]);
        let read = headers(&map).unwrap();
        assert_eq!(read.organization, Some("acme"));
        assert_eq!(read.tags.len(), 2);
        assert_eq!(read.conversation_id.unwrap().as_str(), "c:1");
        assert_eq!(read.timeout, Some(Duration::from_millis(1_500)));
        assert_eq!(read.traceparent.as_deref(), Some(trace));
    }

    #[test]
    fn a_header_that_is_wrong_is_named_except_the_trace() {
        let many = (0..17).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        for (name, value) in [
            ("x-tollstream-tags", "a"),
            ("x-tollstream-tags", "a="),
            ("x-tollstream-tags", many.as_str()),
            ("x-tollstream-conversation", "c 1"),
            ("x-tollstream-timeout-ms", "0"),
            ("x-tollstream-timeout-ms", "86400001"),
            ("x-tollstream-timeout-ms", "soon"),
            ("cache-control", "no-store, max-age=soon"),
        ] {
            let refusal = headers(&map(&[(name, value)])).unwrap_err();
            assert!(matches!(refusal, Refusal::InvalidHeader { name: n, .. } if n == name), "{name}: {value}");
        }
        assert_eq!(headers(&map(&[("traceparent", "nonsense")])).unwrap(), Headers::default());
    }

    #[test]
    fn what_is_said_of_the_cache_is_taken_whole_however_much_else_is_said() {
        let long = format!("{}, max-age=60, no-store", "x".repeat(300));
        assert_eq!(headers(&map(&[("cache-control", &long)])).unwrap().cache_control.unwrap(), "no-store, max-age=60");
        let mut several = map(&[("cache-control", "max-age=60")]);
        several.append("cache-control", "no-cache, max-age=5, private".parse().unwrap());
        assert_eq!(headers(&several).unwrap().cache_control.unwrap(), "no-cache, max-age=5");
        assert_eq!(headers(&map(&[("cache-control", "private")])).unwrap(), Headers::default());
    }

    #[test]
    fn tags_of_the_header_win_and_all_are_bounded() {
        let of =
            |range: std::ops::Range<u32>, value: &str| range.map(|n| (format!("k{n:02}"), value.to_owned())).collect();
        let merged = merge_tags(of(0..10, "header"), of(5..30, "body"));
        assert_eq!(merged.len(), TAGS_MAX);
        assert_eq!(merged["k05"], "header");
        assert_eq!(merged["k15"], "body");
    }
}
