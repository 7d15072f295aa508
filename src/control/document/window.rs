//! A part of the week, as people write it.

use serde::{Deserialize, Serialize};

use super::place::Place;
use crate::processor::router::window::{DAY, zone};
use crate::records::policy::Window;

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    days: Vec<String>,
    from: String,
    to: String,
    time_zone: String,
}

impl Document {
    pub fn parse(self, place: &mut Place<'_>) -> Option<Window> {
        let mut days = Vec::with_capacity(self.days.len());
        for day in &self.days {
            match DAYS.iter().position(|known| known == day) {
                Some(index) => days.push(index as u8 + 1),
                None => place.problem("days", format!("{day:?} is no day; known are {}", DAYS.join(", "))),
            }
        }
        if zone(&self.time_zone).is_none() {
            let zone = &self.time_zone;
            let problem =
                format!("there is no time zone {zone:?}; give a name of the IANA database, such as America/Sao_Paulo");
            place.problem("time_zone", problem);
        }
        let from_minute = minute(&self.from).filter(|minute| *minute < DAY);
        let to_minute = minute(&self.to);
        for (key, text, found) in [("from", &self.from, from_minute), ("to", &self.to, to_minute)] {
            if found.is_none() {
                place.problem(key, format!("{text:?} is no time of a day; write it as 08:30"));
            }
        }
        if from_minute.is_some() && from_minute == to_minute {
            place.problem("to", "is from; for whole days write from = \"00:00\", to = \"24:00\"");
        }
        Some(Window { days, from_minute: from_minute?, to_minute: to_minute?, time_zone: self.time_zone })
    }
}

/// Minutes since midnight of `HH:MM`; 24:00 is the end of the day.
fn minute(text: &str) -> Option<u32> {
    let (hour, minute) = text.split_once(':')?;
    let two = |part: &str| (part.len() == 2).then(|| part.parse::<u32>().ok()).flatten();
    let (hour, minute) = (two(hour)?, two(minute)?);
    (minute < 60 && hour * 60 + minute <= DAY).then_some(hour * 60 + minute)
}

pub(super) fn show(window: &Window) -> Document {
    let time = |minute: u32| format!("{:02}:{:02}", minute / 60, minute % 60);
    let day = |day: &u8| DAYS.get(usize::from(day.saturating_sub(1))).map(|day| (*day).to_owned());
    Document {
        days: window.days.iter().filter_map(day).collect(),
        from: time(window.from_minute),
        to: time(window.to_minute),
        time_zone: window.time_zone.clone(),
    }
}
