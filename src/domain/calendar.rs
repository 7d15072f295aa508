//! When the periods of a budget begin: days and months of a time zone, daylight saving included.
//!
//! A day begins where its first moment is, which is not always midnight: where the clocks go forward at midnight it begins
//! at one o'clock. A month begins with its reset day, or with its last day when it is shorter.

use std::sync::{Mutex, PoisonError};

use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// The days on which a month may begin.
pub const RESET_DAYS: std::ops::RangeInclusive<u8> = 1..=31;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "there is no time zone {name:?}; give a name of the IANA database, such as UTC, America/Sao_Paulo or Europe/Lisbon"
    )]
    TimeZone { name: String },
    #[error("reset day {day} is not a day of a month; give 1 to 31")]
    ResetDay { day: u8 },
}

/// The days and months of a time zone.
#[derive(Debug)]
pub struct Calendar {
    zone: TimeZone,
    reset_day: u8,
    /// The day that was asked for last, and its end: nearly every request asks for today, and each time it is a question of
    /// rules of time zones.
    latest: Mutex<Option<(Periods, Timestamp)>>,
}

impl Clone for Calendar {
    fn clone(&self) -> Self {
        Self::of(self.zone.clone(), self.reset_day)
    }
}

impl PartialEq for Calendar {
    fn eq(&self, other: &Self) -> bool {
        (&self.zone, self.reset_day) == (&other.zone, other.reset_day)
    }
}

/// A day and the month that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Periods {
    /// First moment of the day.
    pub day: Timestamp,
    /// First moment of the month.
    pub month: Timestamp,
}

impl Default for Calendar {
    /// UTC, months from the first.
    fn default() -> Self {
        Self::of(TimeZone::UTC, 1)
    }
}

impl Calendar {
    /// The calendar of a zone of the IANA database that this program carries, whatever the machine has.
    ///
    /// # Errors
    /// When there is no such zone or day.
    pub fn new(time_zone: &str, reset_day: u8) -> Result<Self, Error> {
        if !RESET_DAYS.contains(&reset_day) {
            return Err(Error::ResetDay { day: reset_day });
        }
        let zone = TimeZoneDatabase::bundled().get(time_zone);
        let zone = zone.map_err(|_| Error::TimeZone { name: time_zone.to_owned() })?;
        Ok(Self::of(zone, reset_day))
    }

    const fn of(zone: TimeZone, reset_day: u8) -> Self {
        Self { zone, reset_day, latest: Mutex::new(None) }
    }

    /// The day and the month of a moment. Times that no calendar has (beyond the year 9999) fall into one endless period.
    pub fn periods(&self, at: Timestamp) -> Periods {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        match *latest {
            Some((periods, end)) if periods.day <= at && at < end => periods,
            _ => {
                let periods = self.reckoned(at);
                *latest = self.ends(at).map(|ends| (periods, ends.day));
                periods
            }
        }
    }

    fn reckoned(&self, at: Timestamp) -> Periods {
        let Some(date) = self.date(at) else { return Periods::default() };
        let Some(month) = self.month_of(date) else { return Periods::default() };
        match (self.begin(date), self.begin(month)) {
            (Some(day), Some(month)) => Periods { day, month },
            _ => Periods::default(),
        }
    }

    /// When the day and the month of a moment end; `None` beyond the year 9999.
    pub fn ends(&self, at: Timestamp) -> Option<Periods> {
        let date = self.date(at)?;
        let month = self.month_of(date)?;
        let next = month.first_of_month().checked_add(jiff::Span::new().months(1)).ok()?;
        Some(Periods { day: self.begin(date.tomorrow().ok()?)?, month: self.begin(self.reset_in(next)?)? })
    }

    fn date(&self, at: Timestamp) -> Option<Date> {
        let moment = jiff::Timestamp::from_millisecond(at.as_millis()).ok()?;
        Some(moment.to_zoned_datetime(self.zone.clone()).date())
    }

    /// The day on which the month of a date began.
    fn month_of(&self, date: Date) -> Option<Date> {
        let this = self.reset_in(date)?;
        if this <= date {
            return Some(this);
        }
        self.reset_in(date.first_of_month().yesterday().ok()?)
    }

    /// The reset day in the calendar month of a date.
    fn reset_in(&self, date: Date) -> Option<Date> {
        let day = i8::try_from(self.reset_day).ok()?.min(date.days_in_month());
        date.with().day(day).build().ok()
    }

    /// The first moment of a date. A zone may skip one altogether; then it is where the next one begins.
    fn begin(&self, date: Date) -> Option<Timestamp> {
        let zoned = date.to_zoned_datetime(self.zone.clone()).ok()?;
        Some(Timestamp::from_millis(zoned.start_of_day().ok()?.timestamp().as_millisecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from_millis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn days_and_months_begin_where_the_zone_says() {
        let table = [
            // Zone, reset day, moment, day, month.
            ("UTC", 1, "2026-11-23T19:00:00Z", "2026-11-23T00:00:00Z", "2026-11-01T00:00:00Z"),
            ("UTC", 24, "2026-11-23T19:00:00Z", "2026-11-23T00:00:00Z", "2026-10-24T00:00:00Z"),
            ("UTC", 23, "2026-11-23T00:00:00Z", "2026-11-23T00:00:00Z", "2026-11-23T00:00:00Z"),
            ("America/Sao_Paulo", 1, "2026-12-01T02:59:59.999Z", "2026-11-30T03:00:00Z", "2026-11-01T03:00:00Z"),
            ("America/Sao_Paulo", 1, "2026-12-01T03:00:00Z", "2026-12-01T03:00:00Z", "2026-12-01T03:00:00Z"),
            // A shorter month begins on its last day, also in a leap year.
            ("UTC", 31, "2026-03-01T00:00:00Z", "2026-03-01T00:00:00Z", "2026-02-28T00:00:00Z"),
            ("UTC", 30, "2028-02-29T12:00:00Z", "2028-02-29T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("UTC", 30, "2028-02-28T12:00:00Z", "2028-02-28T00:00:00Z", "2028-01-30T00:00:00Z"),
            // The clocks went forward at midnight: the day began at one.
            ("America/Sao_Paulo", 4, "2018-11-04T12:00:00Z", "2018-11-04T03:00:00Z", "2018-11-04T03:00:00Z"),
            ("America/Sao_Paulo", 1, "2018-11-04T02:59:00Z", "2018-11-03T03:00:00Z", "2018-11-01T03:00:00Z"),
            // A day of 25 hours.
            ("Europe/Lisbon", 1, "2026-10-25T23:59:00Z", "2026-10-24T23:00:00Z", "2026-09-30T23:00:00Z"),
            // Half an hour.
            ("Asia/Kolkata", 1, "2026-01-31T18:30:00Z", "2026-01-31T18:30:00Z", "2026-01-31T18:30:00Z"),
            // Samoa skipped 2011-12-30.
            ("Pacific/Apia", 30, "2011-12-30T12:00:00Z", "2011-12-30T10:00:00Z", "2011-12-30T10:00:00Z"),
        ];
        for (zone, reset_day, moment, day, month) in table {
            let calendar = Calendar::new(zone, reset_day).unwrap();
            assert_eq!(calendar.periods(at(moment)), Periods { day: at(day), month: at(month) }, "{zone} {moment}");
        }
    }

    #[test]
    fn what_was_asked_before_changes_no_answer() {
        let calendar = Calendar::new("America/Sao_Paulo", 31).unwrap();
        let (begin, hour) = (at("2018-10-25T00:00:00Z").as_millis(), 3_600_000);
        for step in (0..600).chain([0, 599, 300, 299, 301]) {
            let moment = Timestamp::from_millis(begin + step * hour);
            assert_eq!(calendar.periods(moment), calendar.clone().reckoned(moment), "{moment}");
        }
    }

    /// Over ten years, every hour and around every change: periods follow each other without a gap, and each begins with
    /// itself.
    #[test]
    fn periods_have_no_gaps_in_ten_years() {
        let zones =
            ["UTC", "America/Sao_Paulo", "Europe/Lisbon", "Australia/Lord_Howe", "Asia/Kolkata", "Pacific/Apia"];
        for (zone, reset_day) in zones.iter().flat_map(|zone| [1, 15, 31].map(|day| (*zone, day))) {
            let calendar = Calendar::new(zone, reset_day).unwrap();
            let (mut now, end) = (at("2011-06-01T00:00:00Z"), at("2021-06-01T00:00:00Z"));
            let mut months = 0;
            while now < end {
                let (periods, ends) = (calendar.periods(now), calendar.ends(now).unwrap());
                assert!(periods.day <= now && now < ends.day && periods.month <= periods.day, "{zone} {now}");
                assert!(now < ends.month && ends.day <= ends.month, "{zone} {reset_day} {now} {ends:?}");
                let last = Timestamp::from_millis(ends.day.as_millis() - 1);
                assert_eq!(calendar.periods(last), periods, "{zone} {now}");
                let next = calendar.periods(ends.day);
                assert_eq!(next.day, ends.day, "{zone} {now}");
                assert_eq!(next.month == ends.day, ends.month == ends.day, "{zone} {reset_day} {now}");
                months += u32::from(ends.month == ends.day);
                now = ends.day;
            }
            // One more where the first or the last one is cut.
            assert!((120..=121).contains(&months), "{zone} {reset_day}: {months}");
        }
    }

    #[test]
    fn what_is_no_calendar_says_what_to_do() {
        assert!(Calendar::new("Brasil", 1).unwrap_err().to_string().contains("America/Sao_Paulo"));
        assert_eq!(Calendar::new("UTC", 0), Err(Error::ResetDay { day: 0 }));
        assert_eq!(Calendar::new("UTC", 32), Err(Error::ResetDay { day: 32 }));
        let far = Timestamp::from_millis(i64::MAX);
        assert_eq!(Calendar::default().periods(far), Periods::default());
    }
}
