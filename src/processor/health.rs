//! How the deployments do, from the attempts of this owner alone: a breaker for each, a rest after a 429, and what the choice
//! between several of them goes by.
//!
//! A deployment is broken once enough of its calls in a window failed for a reason that is its own; then it is left alone
//! for a while, and tried again by one call at a time. It is cooling while its provider asked to be left alone. What
//! changed a choice is on the commit, so the same decision can be made again without this.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::{DeploymentId, Timestamp};
use crate::processor::inference::{AttemptEnd, AttemptReport};
use crate::provider::{Failure, FailureClass};
use crate::records::journal::{HealthState, Standing};

/// Deployments that are remembered at the most; control has far fewer.
const DEPLOYMENTS_MAX: usize = 10_000;
/// Parts of the window; the oldest is forgotten as a whole.
const PARTS: i64 = 10;
/// The moving average takes an eighth of each new latency, as TCP does of round trips (RFC 6298).
const LATENCY_SHARE: u64 = 8;

/// When a deployment is broken, and for how long it is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// In which failures are counted.
    pub window_ms: u64,
    /// Calls in the window before anything is said of it.
    pub calls_min: u32,
    /// Of the calls in the window, failed: from here on it is broken.
    pub failure_percent: u32,
    /// How long it is left alone; twice as long each time that it is found broken again.
    pub open_ms: u64,
    pub open_max_ms: u64,
    /// How long it is left alone after a 429 that does not say how long.
    pub cooldown_ms: u64,
    /// The longest rest that a provider can ask for.
    pub cooldown_max_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window_ms: 30_000,
            calls_min: 5,
            failure_percent: 50,
            open_ms: 15_000,
            open_max_ms: 120_000,
            cooldown_ms: 5_000,
            cooldown_max_ms: 600_000,
        }
    }
}

/// What a decision knows of the deployments.
#[derive(Debug, Clone, Copy)]
pub enum Health<'a> {
    /// Nothing: all are sound.
    Unknown,
    Live(&'a Board, Timestamp),
    /// What a commit says of it.
    Recorded(&'a [Standing]),
}

impl Health<'_> {
    pub fn of(&self, deployment: &DeploymentId) -> Standing {
        match self {
            Self::Unknown => sound(deployment),
            Self::Live(board, now) => board.standing(deployment, *now),
            Self::Recorded(known) => {
                known.iter().find(|of| of.deployment == *deployment).cloned().unwrap_or_else(|| sound(deployment))
            }
        }
    }
}

/// Of a deployment of which nothing is known.
pub fn sound(deployment: &DeploymentId) -> Standing {
    Standing { deployment: deployment.clone(), state: HealthState::Sound, until: None, latency_ms: None, in_flight: 0 }
}

/// How an attempt ended, for its deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It answered; after so long came the first token.
    Answered {
        first_token_ms: Option<u64>,
    },
    Failed {
        class: FailureClass,
        retry_after: Option<Duration>,
    },
    /// Nothing is known: cancelled, or its owner went away.
    Nothing,
}

impl Ended {
    /// What a report says about the deployment: how long it was until the first token, or until the end of a whole answer.
    pub fn of(report: &AttemptReport) -> Self {
        let first_token_ms = Some(report.time_to_first_token_ms.unwrap_or(report.duration_ms));
        match &report.end {
            AttemptEnd::Completed => Self::Answered { first_token_ms },
            AttemptEnd::Failed(Failure { class, retry_after, .. }) if report.called => {
                Self::Failed { class: *class, retry_after: *retry_after }
            }
            AttemptEnd::Failed(_) | AttemptEnd::Cancelled => Self::Nothing,
        }
    }
}

/// The deployments of this process, for all of its partitions.
pub type Deployments = Arc<Mutex<Board>>;

#[derive(Debug, Default)]
pub struct Board {
    settings: Settings,
    deployments: HashMap<DeploymentId, Record>,
}

#[derive(Debug, Default)]
struct Record {
    parts: [Part; PARTS as usize],
    broken: Option<Broken>,
    cooling_until: Option<Timestamp>,
    latency_ms: Option<u64>,
    in_flight: u32,
    answered: u64,
    failed: u64,
    last_failure: Option<(FailureClass, Timestamp)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Part {
    /// Which part of all time it is.
    number: i64,
    answered: u32,
    failed: u32,
}

#[derive(Debug, Clone, Copy)]
struct Broken {
    until: Timestamp,
    /// How long it was left alone the last time.
    rest_ms: u64,
    /// A call that tries it is under way.
    is_probed: bool,
}

/// A deployment, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub standing: Standing,
    /// In the window.
    pub window_answered: u32,
    pub window_failed: u32,
    /// Since the process began.
    pub answered: u64,
    pub failed: u64,
    pub last_failure: Option<&'static str>,
    pub last_failure_at: Option<Timestamp>,
}

impl Board {
    pub fn new(settings: Settings) -> Self {
        Self { settings, deployments: HashMap::new() }
    }

    pub fn standing(&self, deployment: &DeploymentId, now: Timestamp) -> Standing {
        match self.deployments.get(deployment) {
            Some(record) => record.standing(deployment, now),
            None => sound(deployment),
        }
    }

    /// An attempt begins.
    pub fn started(&mut self, deployment: &DeploymentId, now: Timestamp) {
        if self.deployments.len() >= DEPLOYMENTS_MAX && !self.deployments.contains_key(deployment) {
            self.deployments.retain(|_, record| record.in_flight > 0);
        }
        let record = self.deployments.entry(deployment.clone()).or_default();
        record.in_flight += 1;
        if let Some(broken) = record.broken.as_mut().filter(|broken| broken.until <= now) {
            broken.is_probed = true;
        }
    }

    /// An attempt ended.
    pub fn ended(&mut self, deployment: &DeploymentId, ended: Ended, now: Timestamp) {
        let settings = self.settings;
        let Some(record) = self.deployments.get_mut(deployment) else { return };
        record.in_flight = record.in_flight.saturating_sub(1);
        match ended {
            Ended::Answered { first_token_ms } => record.answered(first_token_ms, &settings, now),
            Ended::Failed { class: FailureClass::RateLimited, retry_after } => {
                record.failed += 1;
                record.last_failure = Some((FailureClass::RateLimited, now));
                let asked = retry_after.map_or(settings.cooldown_ms, |wait| {
                    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).min(settings.cooldown_max_ms)
                });
                let until = now.plus(Duration::from_millis(asked));
                record.cooling_until = record.cooling_until.max(Some(until));
                record.is_no_longer_probed();
            }
            Ended::Failed { class, .. } if is_its_own(class) => record.failed(class, &settings, now),
            Ended::Failed { .. } | Ended::Nothing => record.is_no_longer_probed(),
        }
    }

    /// All that was ever called, by name.
    pub fn reports(&self, now: Timestamp) -> Vec<Report> {
        let report = |(deployment, record): (&DeploymentId, &Record)| {
            let (answered, failed) = record.counts(&self.settings, now);
            Report {
                standing: record.standing(deployment, now),
                window_answered: answered,
                window_failed: failed,
                answered: record.answered,
                failed: record.failed,
                last_failure: record.last_failure.map(|(class, _)| class.code()),
                last_failure_at: record.last_failure.map(|(_, at)| at),
            }
        };
        let mut reports: Vec<Report> = self.deployments.iter().map(report).collect();
        reports.sort_unstable_by(|a, b| a.standing.deployment.cmp(&b.standing.deployment));
        reports
    }
}

impl Record {
    fn standing(&self, deployment: &DeploymentId, now: Timestamp) -> Standing {
        let (state, until) = match (self.cooling_until.filter(|until| *until > now), &self.broken) {
            (Some(until), _) => (HealthState::Cooling, Some(until)),
            (None, Some(broken)) if broken.until > now => (HealthState::Broken, Some(broken.until)),
            (None, Some(broken)) if broken.is_probed => (HealthState::Broken, None),
            // Its rest is over: the next call tries it.
            (None, Some(_) | None) => (HealthState::Sound, None),
        };
        let (latency_ms, in_flight) = (self.latency_ms, self.in_flight);
        Standing { deployment: deployment.clone(), state, until, latency_ms, in_flight }
    }

    fn answered(&mut self, first_token_ms: Option<u64>, settings: &Settings, now: Timestamp) {
        self.answered += 1;
        if let Some(ms) = first_token_ms {
            self.latency_ms = Some(match self.latency_ms {
                Some(average) => (average * (LATENCY_SHARE - 1) + ms) / LATENCY_SHARE,
                None => ms,
            });
        }
        // A late answer of a call from before it broke says nothing about now.
        if self.broken.is_some_and(|broken| broken.is_probed) {
            self.broken = None;
            self.parts = Default::default();
        }
        self.part(settings, now).answered += 1;
    }

    fn failed(&mut self, class: FailureClass, settings: &Settings, now: Timestamp) {
        self.failed += 1;
        self.last_failure = Some((class, now));
        self.part(settings, now).failed += 1;
        let rest_ms = match self.broken {
            Some(broken) if broken.is_probed => broken.rest_ms.saturating_mul(2).min(settings.open_max_ms),
            Some(_) => return,
            None => settings.open_ms,
        };
        let (answered, failed) = self.counts(settings, now);
        let calls = answered.saturating_add(failed);
        let breaks =
            calls >= settings.calls_min && failed.saturating_mul(100) >= calls.saturating_mul(settings.failure_percent);
        if breaks || self.broken.is_some() {
            self.broken = Some(Broken { until: now.plus(Duration::from_millis(rest_ms)), rest_ms, is_probed: false });
        }
    }

    fn is_no_longer_probed(&mut self) {
        if let Some(broken) = &mut self.broken {
            broken.is_probed = false;
        }
    }

    fn part(&mut self, settings: &Settings, now: Timestamp) -> &mut Part {
        let number = part_number(settings, now);
        let part = &mut self.parts[number.rem_euclid(PARTS) as usize];
        if part.number != number {
            *part = Part { number, ..Part::default() };
        }
        part
    }

    fn counts(&self, settings: &Settings, now: Timestamp) -> (u32, u32) {
        let latest = part_number(settings, now);
        let counted = self.parts.iter().filter(|part| part.number > latest - PARTS && part.number <= latest);
        counted.fold((0, 0), |(answered, failed), part| (answered + part.answered, failed + part.failed))
    }
}

fn part_number(settings: &Settings, now: Timestamp) -> i64 {
    let part_ms = i64::try_from(settings.window_ms).unwrap_or(i64::MAX) / PARTS;
    now.as_millis().div_euclid(part_ms.max(1))
}

/// Whether a failure says something about the deployment, and not about the request.
const fn is_its_own(class: FailureClass) -> bool {
    match class {
        FailureClass::Connect
        | FailureClass::ConnectTimeout
        | FailureClass::QuotaExhausted
        | FailureClass::Overloaded
        | FailureClass::Authentication
        | FailureClass::FirstTokenTimeout
        | FailureClass::BetweenTokensTimeout
        | FailureClass::Configuration
        | FailureClass::Upstream
        | FailureClass::Garbage
        | FailureClass::Cut => true,
        FailureClass::RateLimited
        | FailureClass::BadRequest
        | FailureClass::ContextTooLong
        | FailureClass::ContentFilter
        | FailureClass::Deadline
        | FailureClass::TooLarge
        | FailureClass::NoRoom => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWERED: Ended = Ended::Answered { first_token_ms: Some(100) };
    const FAILED: Ended = Ended::Failed { class: FailureClass::Upstream, retry_after: None };

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + ms)
    }

    fn board() -> (Board, DeploymentId) {
        (Board::new(Settings::default()), DeploymentId::parse("d").unwrap())
    }

    fn call(board: &mut Board, id: &DeploymentId, ended: Ended, now: Timestamp) {
        board.started(id, now);
        board.ended(id, ended, now);
    }

    fn state(board: &Board, id: &DeploymentId, now: Timestamp) -> HealthState {
        board.standing(id, now).state
    }

    #[test]
    fn it_breaks_when_enough_of_its_calls_fail_and_not_before() {
        let table: [(&[Ended], HealthState); 6] = [
            (&[FAILED; 4], HealthState::Sound),
            (&[FAILED; 5], HealthState::Broken),
            (&[ANSWERED, ANSWERED, ANSWERED, FAILED, FAILED], HealthState::Sound),
            (&[ANSWERED, ANSWERED, FAILED, FAILED, FAILED], HealthState::Broken),
            (&[Ended::Nothing; 20], HealthState::Sound),
            (&[Ended::Failed { class: FailureClass::BadRequest, retry_after: None }; 20], HealthState::Sound),
        ];
        for (calls, expected) in table {
            let (mut board, id) = board();
            calls.iter().for_each(|ended| call(&mut board, &id, *ended, at(0)));
            assert_eq!(state(&board, &id, at(0)), expected, "{calls:?}");
        }
    }

    #[test]
    fn failures_are_forgotten_with_their_window() {
        let (mut board, id) = board();
        (0..4).for_each(|_| call(&mut board, &id, FAILED, at(0)));
        call(&mut board, &id, FAILED, at(30_000));
        assert_eq!(state(&board, &id, at(30_000)), HealthState::Sound);
        (0..4).for_each(|_| call(&mut board, &id, FAILED, at(31_000)));
        assert_eq!(state(&board, &id, at(31_000)), HealthState::Broken);
    }

    #[test]
    fn after_its_rest_one_call_tries_it() {
        let (mut board, id) = board();
        (0..5).for_each(|_| call(&mut board, &id, FAILED, at(0)));
        assert_eq!(board.standing(&id, at(14_999)).until, Some(at(15_000)));
        assert_eq!(state(&board, &id, at(15_000)), HealthState::Sound);
        board.started(&id, at(15_000));
        assert_eq!(state(&board, &id, at(15_001)), HealthState::Broken, "one at a time");
        board.ended(&id, FAILED, at(16_000));
        // Twice as long the second time.
        assert_eq!(board.standing(&id, at(16_001)).until, Some(at(46_000)));
        board.started(&id, at(46_000));
        board.ended(&id, Ended::Nothing, at(46_001));
        assert_eq!(
            state(&board, &id, at(46_001)),
            HealthState::Sound,
            "a probe that says nothing is followed by another"
        );
        call(&mut board, &id, ANSWERED, at(46_002));
        call(&mut board, &id, FAILED, at(46_003));
        assert_eq!(state(&board, &id, at(46_003)), HealthState::Sound, "what was before is forgotten");
    }

    #[test]
    fn a_late_answer_of_an_earlier_call_does_not_mend_it() {
        let (mut board, id) = board();
        board.started(&id, at(0));
        (0..5).for_each(|_| call(&mut board, &id, FAILED, at(0)));
        board.ended(&id, ANSWERED, at(10));
        assert_eq!(state(&board, &id, at(11)), HealthState::Broken);
    }

    #[test]
    fn after_a_429_it_is_left_alone_as_long_as_its_provider_says() {
        let limited = |seconds: Option<u64>| Ended::Failed {
            class: FailureClass::RateLimited,
            retry_after: seconds.map(Duration::from_secs),
        };
        for (asked, ms) in [(Some(30), 30_000), (None, 5_000), (Some(86_400), 600_000)] {
            let (mut board, id) = board();
            call(&mut board, &id, limited(asked), at(0));
            let standing = board.standing(&id, at(ms - 1));
            assert_eq!((standing.state, standing.until), (HealthState::Cooling, Some(at(ms))), "{asked:?}");
            assert_eq!(state(&board, &id, at(ms)), HealthState::Sound);
        }
    }

    #[test]
    fn calls_under_way_and_latencies_are_told() {
        let (mut board, id) = board();
        board.started(&id, at(0));
        board.started(&id, at(0));
        board.ended(&id, Ended::Answered { first_token_ms: Some(800) }, at(1));
        board.ended(&id, Ended::Answered { first_token_ms: Some(0) }, at(1));
        board.started(&id, at(2));
        let standing = board.standing(&id, at(2));
        assert_eq!((standing.latency_ms, standing.in_flight), (Some(700), 1));
        let report = &board.reports(at(2))[0];
        assert_eq!((report.window_answered, report.answered, report.failed), (2, 2, 0));
    }
}
