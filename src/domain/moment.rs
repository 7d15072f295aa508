//! A moment, as people name it.

use std::str::FromStr;
use std::time::Duration;

use super::Timestamp;

/// A time, or how long ago it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    At(Timestamp),
    Ago(Duration),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(at) = text.parse() {
            return Ok(Self::At(at));
        }
        let ago = || {
            let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
            let seconds = match unit {
                "s" => 1,
                "m" => 60,
                "h" => 3_600,
                "d" => 86_400,
                _ => return None,
            };
            Some(Self::Ago(Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?)))
        };
        ago().ok_or_else(|| {
            format!("{text:?} is neither a time such as 2026-11-23T10:00:00Z nor 30s, 15m, 2h or 7d ago")
        })
    }
}

impl Moment {
    pub fn before(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(ago) => {
                let ms = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
                Timestamp::from_millis(now.as_millis().saturating_sub(ms))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_times_or_ages() {
        let now = Timestamp::from_millis(100_000_000);
        let table = [
            ("1970-01-01T00:00:01Z", 1_000),
            ("1970-01-01T02:00:01.5+02:00", 1_500),
            ("30s", 99_970_000),
            ("2h", 92_800_000),
            ("1d", 13_600_000),
        ];
        for (text, ms) in table {
            assert_eq!(text.parse::<Moment>().unwrap().before(now), Timestamp::from_millis(ms), "{text}");
        }
        for text in ["", "h", "yesterday", "1w", "-1h", "99999999999999999999d", "é"] {
            assert!(text.parse::<Moment>().is_err(), "{text}");
        }
    }
}
