//! Limits, money and moments.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use super::place::Place;
use crate::domain::{PicoUsd, Timestamp};
use crate::records::control;

const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]");
const DAY_MS: i64 = 86_400_000;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requests_per_minute: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens_per_minute: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    concurrent_requests: Option<u64>,
}

impl Limits {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub fn parse(&self, place: &mut Place<'_>) -> Option<control::Limits> {
        let mut place = place.within("limits");
        Some(control::Limits {
            requests_per_minute: count("requests_per_minute", self.requests_per_minute, &mut place)?,
            tokens_per_minute: count("tokens_per_minute", self.tokens_per_minute, &mut place)?,
            concurrent_requests: count("concurrent_requests", self.concurrent_requests, &mut place)?,
        })
    }

    pub const fn show(limits: &control::Limits) -> Self {
        Self {
            requests_per_minute: limits.requests_per_minute,
            tokens_per_minute: limits.tokens_per_minute,
            concurrent_requests: limits.concurrent_requests,
        }
    }
}

/// A number that a record can carry.
pub(super) fn count(key: &str, number: Option<u64>, place: &mut Place<'_>) -> Option<Option<u64>> {
    match number {
        Some(number) if i64::try_from(number).is_err() => {
            place.problem(key, format!("{number} is too large; the most is {}", i64::MAX));
            None
        }
        number => Some(number),
    }
}

/// What may be spent in a day and a month; dollars.
pub(super) fn spend(day: Option<&str>, month: Option<&str>, place: &mut Place<'_>) -> Option<control::Spend> {
    let day = day.map(|text| amount("spend_per_day", text, place));
    let month = month.map(|text| amount("spend_per_month", text, place));
    // The outer `None` is no limit, the inner one an amount that is wrong.
    Some(control::Spend {
        day: day.map_or(Some(None), |d| d.map(Some))?,
        month: month.map_or(Some(None), |m| m.map(Some))?,
    })
}

fn amount(key: &str, text: &str, place: &mut Place<'_>) -> Option<PicoUsd> {
    let amount = place.take(key, text.parse::<PicoUsd>())?;
    held(key, text, amount, place)
}

/// A price of a million tokens, as that of one.
pub(super) fn price(key: &str, text: &str, place: &mut Place<'_>) -> Option<PicoUsd> {
    let price = place.take(key, PicoUsd::per_token_from_usd_per_million(text))?;
    held(key, text, price, place)
}

fn held(key: &str, text: &str, amount: PicoUsd, place: &mut Place<'_>) -> Option<PicoUsd> {
    if amount < PicoUsd::ZERO {
        place.problem(key, format!("{text:?} is negative; give 0 or more"));
        return None;
    }
    if amount.to_long().is_none() {
        let most = PicoUsd::new(i128::from(i64::MAX));
        place.problem(key, format!("{text:?} is too large; the most is {most} dollars"));
        return None;
    }
    Some(amount)
}

/// A moment, RFC 3339.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    let wrong = || format!("{text:?} is no moment; write it like 2024-09-25T00:00:00Z");
    let moment = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| wrong())?;
    i64::try_from(moment.unix_timestamp_nanos() / 1_000_000).map(Timestamp::from_millis).map_err(|_| wrong())
}

/// A day, or a moment.
pub(super) fn date(text: &str) -> Result<Timestamp, String> {
    match time::Date::parse(text, DATE) {
        Ok(date) => Ok(Timestamp::from_millis(date.midnight().assume_utc().unix_timestamp() * 1_000)),
        Err(_) => moment(text).map_err(|_| format!("{text:?} is no date; write it like 2024-09-25")),
    }
}

/// A day when it is the first moment of one.
pub(super) fn show_date(at: Timestamp) -> String {
    let text = at.to_string();
    match text.split_once('T') {
        Some((date, _)) if at.as_millis() % DAY_MS == 0 => date.to_owned(),
        _ => text,
    }
}
