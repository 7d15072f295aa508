//! Parts of the week in a time zone, for a policy's rules.

use jiff::tz::{TimeZone, TimeZoneDatabase};

use crate::domain::Timestamp;
use crate::records::policy::Window;

/// Minutes of a day.
pub const DAY: u32 = 24 * 60;
/// Minutes of a week.
const WEEK: u32 = 7 * DAY;

/// A zone of the IANA database that this program carries.
pub fn zone(name: &str) -> Option<TimeZone> {
    TimeZoneDatabase::bundled().get(name).ok()
}

/// Whether a moment is in the window, by the wall clock of its zone. A window whose zone nobody knows never holds.
pub fn holds(window: &Window, at: Timestamp) -> bool {
    let (Some(zone), Ok(moment)) = (zone(&window.time_zone), jiff::Timestamp::from_millisecond(at.as_millis())) else {
        return false;
    };
    let local = moment.to_zoned_datetime(zone);
    let day = u32::from(local.weekday().to_monday_zero_offset().unsigned_abs());
    let minute = day * DAY + u32::from(local.hour().unsigned_abs()) * 60 + u32::from(local.minute().unsigned_abs());
    spans(window).any(|(from, to)| (from..to).contains(&minute) || (from..to).contains(&(minute + WEEK)))
}

/// Whether two windows have a minute in common; windows of different zones are taken to.
pub fn overlap(a: &Window, b: &Window) -> bool {
    if a.time_zone != b.time_zone {
        return true;
    }
    let meets = |(a_from, a_to): (u32, u32), (b_from, b_to): (u32, u32)| a_from < b_to && b_from < a_to;
    spans(a).any(|a| {
        spans(b).any(|b| {
            let later = |(from, to): (u32, u32)| (from + WEEK, to + WEEK);
            meets(a, b) || meets(later(a), b) || meets(a, later(b))
        })
    })
}

/// Minutes of the week, from Monday on; one that begins on Sunday may go beyond its end.
fn spans(window: &Window) -> impl Iterator<Item = (u32, u32)> + '_ {
    let length = match window.to_minute > window.from_minute {
        true => window.to_minute - window.from_minute,
        false => window.to_minute + DAY - window.from_minute.min(DAY),
    };
    let days = (1..=7u8).filter(|day| window.days.is_empty() || window.days.contains(day));
    days.map(move |day| {
        let from = u32::from(day - 1) * DAY + window.from_minute;
        (from, from + length)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(days: &[u8], from: u32, to: u32, zone: &str) -> Window {
        Window { days: days.to_vec(), from_minute: from * 60, to_minute: to * 60, time_zone: zone.into() }
    }

    /// Of November 2026; the 2nd is a Monday.
    fn at(day: i64, hour: i64) -> Timestamp {
        Timestamp::from_millis(1_793_491_200_000 + ((day - 1) * 24 + hour) * 3_600_000)
    }

    #[test]
    fn a_window_holds_by_the_wall_clock_of_its_zone() {
        let office = window(&[1, 2, 3, 4, 5], 9, 18, "UTC");
        let night = window(&[7], 22, 6, "UTC");
        let paulista = window(&[], 9, 18, "America/Sao_Paulo");
        let table = [
            (&office, at(2, 8), false),
            (&office, at(2, 9), true),
            (&office, at(2, 17), true),
            (&office, at(2, 18), false),
            (&office, at(7, 12), false),
            (&night, at(1, 21), false),
            (&night, at(1, 22), true),
            (&night, at(2, 5), true),
            (&night, at(2, 6), false),
            (&night, at(3, 5), false),
            (&paulista, at(2, 11), false),
            (&paulista, at(2, 12), true),
            (&paulista, at(2, 20), true),
            (&paulista, at(2, 21), false),
        ];
        for (window, at, expected) in table {
            assert_eq!(holds(window, at), expected, "{window:?} at {at}");
        }
        assert!(!holds(&window(&[], 0, 24, "Nowhere/There"), at(2, 9)));
        assert!(holds(&window(&[], 0, 24, "UTC"), at(2, 23)) && holds(&window(&[], 0, 0, "UTC"), at(2, 23)));
    }

    #[test]
    fn windows_overlap_across_midnight_and_the_week() {
        let table = [
            (window(&[1], 9, 12, "UTC"), window(&[1], 12, 14, "UTC"), false),
            (window(&[1], 9, 13, "UTC"), window(&[1], 12, 14, "UTC"), true),
            (window(&[1], 9, 13, "UTC"), window(&[2], 9, 13, "UTC"), false),
            (window(&[1], 22, 6, "UTC"), window(&[2], 5, 7, "UTC"), true),
            (window(&[7], 22, 6, "UTC"), window(&[1], 5, 7, "UTC"), true),
            (window(&[7], 22, 6, "UTC"), window(&[1], 6, 7, "UTC"), false),
            (window(&[1], 9, 10, "UTC"), window(&[2], 9, 10, "Asia/Tokyo"), true),
        ];
        for (a, b, expected) in table {
            assert_eq!((overlap(&a, &b), overlap(&b, &a)), (expected, expected), "{a:?} {b:?}");
        }
    }
}
