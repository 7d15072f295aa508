//! How the simulator behaves: its pace and its faults.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::errors::{self, Documented};
use super::text::Random;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "unknown fault {0:?}; give status=CODE or a provider's own error such as anthropic/overloaded, both also with \
         ;retry-after=SECONDS, or cut, stall, garbage, error or truncate, these and a provider's own error also as \
         KIND-after=N"
    )]
    Fault(String),
    #[error("{0:?} is no share; give a number from 0 to 100 and a percent sign, such as status=503:10%")]
    Share(String),
    #[error("{0:?} is no pace; give MODEL@ttft-ms=N, MODEL@tokens-per-second=N, or both with a semicolon between")]
    Pace(String),
}

/// Everything that can be changed while the simulator runs. What is `None` is the model's own default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Behavior {
    /// Time to the first token.
    pub ttft_ms: Option<u64>,
    /// Pace of the tokens after it; 0 is as fast as possible.
    pub tokens_per_second: Option<u32>,
    /// How far the time between tokens strays, at the most.
    pub jitter_percent: Option<u8>,
    /// Tokens of every answer, before `max_tokens` and `stop`; default: by the prompt, 24 to 96.
    pub output_tokens: Option<usize>,
    /// Tried in order; the first whose share the request falls in happens.
    pub faults: Vec<FaultRule>,
    /// Before `ttft_ms` and `tokens_per_second`; the first that is of the model counts.
    pub paces: Vec<PaceRule>,
}

/// The pace of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    pub ttft: Duration,
    pub between_tokens: Duration,
    pub jitter_percent: u8,
}

impl Behavior {
    /// As fast as possible, without a fault.
    pub fn instant() -> Self {
        Self { ttft_ms: Some(0), tokens_per_second: Some(0), jitter_percent: Some(0), ..Self::default() }
    }

    pub fn pace(&self, model: &str) -> Pace {
        let (ttft_ms, tokens_per_second) = default_pace(model);
        let own = self.paces.iter().find(|rule| is_of(&rule.model, model));
        let own_ttft_ms = own.and_then(|rule| rule.ttft_ms);
        let own_tokens_per_second = own.and_then(|rule| rule.tokens_per_second);
        let tokens_per_second = own_tokens_per_second.or(self.tokens_per_second).unwrap_or(tokens_per_second);
        let second = Duration::from_secs(1);
        Pace {
            ttft: Duration::from_millis(own_ttft_ms.or(self.ttft_ms).unwrap_or(ttft_ms)),
            between_tokens: second.checked_div(tokens_per_second).unwrap_or_default(),
            jitter_percent: self.jitter_percent.unwrap_or(10).min(100),
        }
    }

    /// The fault that the request with this number has, the same for the same seed.
    pub fn fault(&self, seed: u64, request: u64, model: &str) -> Option<Fault> {
        let mut random = Random::new(seed ^ request.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let mut of_model = self.faults.iter().filter(|rule| rule.model.as_ref().is_none_or(|of| is_of(of, model)));
        of_model.find(|rule| random.below(MILLION) < u64::from(rule.per_million)).map(|rule| rule.fault)
    }
}

/// Milliseconds to the first token and tokens per second: small models are quick, large ones are not. The figures are of the
/// size that such models show, not measurements.
fn default_pace(model: &str) -> (u64, u32) {
    let has = |names: &[&str]| names.iter().any(|name| model.contains(name));
    if has(&["llama", "flash", "haiku", "nano", "mini", "gpt-3.5"]) {
        (150, 120)
    } else if has(&["opus", "gpt-4-turbo"]) || model == "gpt-4" {
        (600, 40)
    } else {
        (350, 75)
    }
}

/// Whether a model is the one that a rule names, or begins as it does where the rule's name ends with a star.
fn is_of(pattern: &str, model: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == model, |beginning| model.starts_with(beginning))
}

const MILLION: u64 = 1_000_000;

/// Something that goes wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An error answer with this status, and how many seconds to wait.
    Status { status: u16, retry_after_s: Option<u32> },
    /// An error answer as a provider documents it; with `after_tokens`, an error inside an answer that began well.
    Documented { error: &'static Documented, retry_after_s: Option<u32>, after_tokens: Option<usize> },
    /// A whole answer, or a stream after some tokens (half of them by default), goes wrong.
    Breaks { how: Break, after_tokens: Option<usize> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// The connection breaks.
    Cut,
    /// Nothing more comes.
    Stall,
    /// What comes is not JSON.
    Garbage,
    /// An error object comes, with status 200.
    Error,
    /// The stream ends in good order without a finish reason; a whole answer is cut.
    Truncate,
}

impl Break {
    const ALL: [(&'static str, Self); 5] = [
        ("cut", Self::Cut),
        ("stall", Self::Stall),
        ("garbage", Self::Garbage),
        ("error", Self::Error),
        ("truncate", Self::Truncate),
    ];
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let whole = text;
        let unknown = || Error::Fault(whole.to_owned());
        let named = |name: &str| Break::ALL.iter().find(|(known, _)| *known == name).map(|(_, how)| *how);
        let (text, wait) = text.split_once(';').map_or((text, None), |(text, wait)| (text, Some(wait)));
        let wait =
            wait.map(|wait| wait.strip_prefix("retry-after=").and_then(|wait| wait.parse().ok()).ok_or_else(unknown));
        let retry_after_s: Option<u32> = wait.transpose()?;
        if text.contains('/') {
            let (text, after) = text.split_once("-after=").map_or((text, None), |(text, after)| (text, Some(after)));
            let after_tokens = after.map(|after| after.parse().map_err(|_| unknown())).transpose()?;
            // Inside an answer its headers are gone already.
            let error = errors::named(text).filter(|_| after_tokens.is_none() || retry_after_s.is_none());
            return error.map(|error| Self::Documented { error, retry_after_s, after_tokens }).ok_or_else(unknown);
        }
        if let Some(status) = text.strip_prefix("status=") {
            let status = status.parse().ok().filter(|status| (400..=599).contains(status));
            return status.map(|status| Self::Status { status, retry_after_s }).ok_or_else(unknown);
        }
        if retry_after_s.is_some() {
            return Err(unknown());
        }
        let Some((name, value)) = text.split_once('=') else {
            let how = named(text).ok_or_else(unknown)?;
            return Ok(Self::Breaks { how, after_tokens: None });
        };
        let how = name.strip_suffix("-after").and_then(named).ok_or_else(unknown)?;
        Ok(Self::Breaks { how, after_tokens: Some(value.parse().map_err(|_| unknown())?) })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status { status, retry_after_s } => {
                write!(f, "status={status}")?;
                retry_after_s.map_or(Ok(()), |seconds| write!(f, ";retry-after={seconds}"))
            }
            Self::Documented { error, retry_after_s, after_tokens } => {
                write!(f, "{}/{}", error.provider, error.name)?;
                after_tokens.map_or(Ok(()), |after| write!(f, "-after={after}"))?;
                retry_after_s.map_or(Ok(()), |seconds| write!(f, ";retry-after={seconds}"))
            }
            Self::Breaks { how, after_tokens } => {
                let name = Break::ALL.iter().find(|(_, known)| known == how).map_or("", |(name, _)| name);
                match after_tokens {
                    Some(tokens) => write!(f, "{name}-after={tokens}"),
                    None => f.write_str(name),
                }
            }
        }
    }
}

/// A fault and the share of requests that have it: `status=503:10%`; without a share, all. With a model before it, only that
/// one has it: `gpt-4o@status=503:10%`, or all that begin so: `gpt-4o*@status=503`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FaultRule {
    /// By its name at the provider, which may have a colon, a slash or an `@` in it; a fault has no `@`.
    pub model: Option<String>,
    pub fault: Fault,
    pub per_million: u32,
}

impl FromStr for FaultRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (model, text) = text.rsplit_once('@').map_or((None, text), |(model, rest)| (Some(model.to_owned()), rest));
        let Some((fault, share)) = text.split_once(':') else {
            return Ok(Self { model, fault: text.parse()?, per_million: MILLION as u32 });
        };
        let percent: Option<f64> = share.strip_suffix('%').and_then(|number| number.trim().parse().ok());
        let percent = percent.filter(|percent| (0.0..=100.0).contains(percent));
        let percent = percent.ok_or_else(|| Error::Share(share.to_owned()))?;
        Ok(Self { model, fault: fault.parse()?, per_million: (percent * 10_000.0).round() as u32 })
    }
}

impl fmt::Display for FaultRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(model) = &self.model {
            write!(f, "{model}@")?;
        }
        write!(f, "{}:{}%", self.fault, f64::from(self.per_million) / 10_000.0)
    }
}

impl TryFrom<String> for FaultRule {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<FaultRule> for String {
    fn from(rule: FaultRule) -> Self {
        rule.to_string()
    }
}

/// The pace of one model, or of all that begin so: `gpt-4o@ttft-ms=900;tokens-per-second=5`, `gpt-4o*@ttft-ms=900`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PaceRule {
    pub model: String,
    pub ttft_ms: Option<u64>,
    pub tokens_per_second: Option<u32>,
}

impl FromStr for PaceRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Pace(text.to_owned());
        let (model, parts) = text.rsplit_once('@').ok_or_else(wrong)?;
        let mut rule = Self { model: model.to_owned(), ttft_ms: None, tokens_per_second: None };
        for part in parts.split(';') {
            match part.split_once('=').ok_or_else(wrong)? {
                ("ttft-ms", ms) => rule.ttft_ms = Some(ms.parse().map_err(|_| wrong())?),
                ("tokens-per-second", pace) => rule.tokens_per_second = Some(pace.parse().map_err(|_| wrong())?),
                _ => return Err(wrong()),
            }
        }
        Ok(rule)
    }
}

impl fmt::Display for PaceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ttft = self.ttft_ms.map(|ms| format!("ttft-ms={ms}"));
        let pace = self.tokens_per_second.map(|pace| format!("tokens-per-second={pace}"));
        let parts: Vec<String> = ttft.into_iter().chain(pace).collect();
        write!(f, "{}@{}", self.model, parts.join(";"))
    }
}

impl TryFrom<String> for PaceRule {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<PaceRule> for String {
    fn from(rule: PaceRule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_written_as_they_are_read() {
        for text in [
            "status=503:10%",
            "status=429;retry-after=30:100%",
            "anthropic/overloaded:5%",
            "gpt-4o@google/rate_limit:100%",
            "anthropic/rate_limit;retry-after=5:100%",
            "anthropic/overloaded-after=0:100%",
            "meta-llama/llama3:8b*@ollama/overloaded:25%",
            "claude-3@20240229@cut:100%",
            "cut:0.5%",
            "cut-after=3:100%",
            "stall:1%",
            "garbage-after=0:100%",
            "error:7%",
        ] {
            assert_eq!(text.parse::<FaultRule>().unwrap().to_string(), text);
        }
        assert_eq!("truncate".parse::<FaultRule>().unwrap().to_string(), "truncate:100%");
    }

    #[test]
    fn a_fault_that_is_none_is_refused_by_name() {
        for text in [
            "",
            "status",
            "status=200",
            "status=x",
            "status=429;soon",
            "anthropic/bliss",
            "anthropic/overloaded-after=x",
            "anthropic/overloaded-after=1;retry-after=1",
            "cut;retry-after=1",
            "status=429;retry-after=-1",
            "cut=3",
            "cut-after",
            "cut-after=-1",
            "fire",
            "status-after=3",
        ] {
            assert_eq!(text.parse::<Fault>().unwrap_err(), Error::Fault(text.to_owned()));
        }
        for share in ["10", "x%", "101%", "-1%", "NaN%"] {
            assert_eq!(format!("cut:{share}").parse::<FaultRule>().unwrap_err(), Error::Share(share.to_owned()));
        }
    }

    #[test]
    fn a_share_of_requests_has_a_fault_and_the_same_ones_each_time() {
        let faults = vec!["status=503:10%".parse().unwrap(), "cut:50%".parse().unwrap()];
        let behavior = Behavior { faults, ..Behavior::default() };
        let drawn = |seed| (0..10_000).map(|n| behavior.fault(seed, n, "m")).collect::<Vec<_>>();
        assert_eq!(drawn(7), drawn(7));
        let share = |fault| drawn(7).into_iter().filter(|drawn| *drawn == fault).count();
        assert!((900..1_100).contains(&share(Some("status=503".parse().unwrap()))));
        assert!((4_300..4_700).contains(&share(Some("cut".parse().unwrap()))));
    }

    #[test]
    fn a_model_has_faults_of_its_own() {
        let faults = vec!["sick@status=500".parse().unwrap(), "cut:0%".parse().unwrap()];
        let behavior = Behavior { faults, ..Behavior::default() };
        assert_eq!(behavior.fault(1, 1, "sick"), Some("status=500".parse().unwrap()));
        assert_eq!(behavior.fault(1, 1, "well"), None);
    }

    #[test]
    fn a_star_names_all_that_begin_so() {
        let of = |pattern: &str, model| is_of(pattern, model);
        assert!(of("gpt-4o", "gpt-4o") && !of("gpt-4o", "gpt-4o-mini"));
        assert!(of("gpt-4o*", "gpt-4o-mini") && of("*", "any") && !of("gpt-4o*", "gpt-4"));
    }

    #[test]
    fn a_model_has_a_pace_of_its_own() {
        for text in ["sick*@ttft-ms=900;tokens-per-second=5", "a@b@ttft-ms=1", "m@tokens-per-second=0"] {
            assert_eq!(text.parse::<PaceRule>().unwrap().to_string(), text);
        }
        for text in ["", "m", "m@", "m@ttft-ms", "m@ttft-ms=x", "m@colour=1"] {
            assert_eq!(text.parse::<PaceRule>().unwrap_err(), Error::Pace(text.to_owned()));
        }
        let paces = vec!["sick*@ttft-ms=900".parse().unwrap()];
        let behavior = Behavior { paces, ..Behavior::instant() };
        assert_eq!(behavior.pace("sick-1").ttft, Duration::from_millis(900));
        assert_eq!((behavior.pace("sick-1").between_tokens, behavior.pace("well").ttft), Default::default());
    }

    #[test]
    fn what_is_not_set_is_the_models_own() {
        let behavior: Behavior = serde_json::from_str(r#"{"ttft_ms":5}"#).unwrap();
        let (small, large) = (behavior.pace("llama-3.2-3b-instruct"), behavior.pace("claude-opus-4-6"));
        assert_eq!((small.ttft, large.ttft), (Duration::from_millis(5), Duration::from_millis(5)));
        assert!(small.between_tokens < large.between_tokens);
        assert_eq!(Behavior::instant().pace("gpt-4").between_tokens, Duration::ZERO);
        assert!(serde_json::from_str::<Behavior>(r#"{"ttft":5}"#).is_err());
    }
}
