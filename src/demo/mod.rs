//! A synthetic day of traffic, for demonstrations: several organizations on different plans, two languages, six intents, people
//! who come back, streams and whole answers, mistakes. The same seed gives the same day.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::simulate::text::Random;

const TEXTS: &str = include_str!("texts.tsv");

/// An organization of the demonstration, and the plan that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenant {
    pub id: &'static str,
    pub name: &'static str,
    pub plan: &'static str,
    /// Of a thousand requests.
    permille: u64,
    /// Index into [`MIXES`].
    mix: usize,
}

/// A shop, a telecom's help desk, a software house, a bank's key accounts, and somebody who tries it for nothing.
pub const TENANTS: [Tenant; 5] = [
    Tenant { id: "demo_shop", name: "Demo: a shop", plan: "enterprise", permille: 360, mix: 0 },
    Tenant { id: "demo_telecom", name: "Demo: a help desk", plan: "enterprise", permille: 300, mix: 0 },
    Tenant { id: "demo_software", name: "Demo: a software house", plan: "pro", permille: 190, mix: 1 },
    Tenant { id: "demo_bank", name: "Demo: key accounts", plan: "enterprise", permille: 120, mix: 2 },
    Tenant { id: "demo_trial", name: "Demo: a trial", plan: "free", permille: 30, mix: 1 },
];

const INTENTS: [&str; 6] = ["greeting", "faq", "basic_support", "complex_question", "sales_negotiation", "high_value"];
/// Percents of the intents, in their order: a help desk, a workplace, key accounts (those of tests/routing/mixes.toml).
const MIXES: [[u64; 6]; 3] = [[24, 30, 28, 12, 4, 2], [10, 18, 27, 33, 8, 4], [6, 10, 16, 38, 18, 12]];

const PRODUCTS: [&str; 6] =
    ["a cafeteira X2", "o notebook Orion", "the X2 router", "plan Plus", "a TV de 55", "the headset"];
const CITIES: [&str; 6] = ["Recife", "São Paulo", "Lisbon", "Porto", "London", "Curitiba"];
const NAMES: [&str; 4] = ["Andrade", "Northwind", "Vale Manso", "Contoso"];
/// Models that are asked for by name, now and then.
const NAMED: [&str; 4] = ["claude-haiku-4-5", "gpt-4", "claude-sonnet-4-6", "llama-3.2-3b-instruct"];

const TEAMS: [&str; 3] = ["care", "sales", "product"];

/// What a client does with one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    pub tenant: &'static str,
    pub conversation: String,
    pub body: Value,
    pub user_tier: Option<&'static str>,
    /// It goes away before the answer is whole.
    pub leaves: bool,
}

struct Text {
    intent: &'static str,
    is_portuguese: bool,
    text: &'static str,
}

fn texts() -> &'static [Text] {
    static ALL: LazyLock<Vec<Text>> = LazyLock::new(|| {
        let lines = TEXTS.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let text = |line: &'static str| {
            let mut parts = line.splitn(3, '\t');
            let (intent, language, text) = (parts.next()?, parts.next()?, parts.next()?);
            Some(Text { intent, is_portuguese: language == "pt", text })
        };
        lines.filter_map(text).collect()
    });
    &ALL
}

/// The requests of a day, one after the other, without an end.
#[derive(Debug, Clone)]
pub struct Day {
    random: Random,
}

impl Day {
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed) }
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.random.below(n) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T], otherwise: T) -> T {
        all.get(self.random.below(all.len() as u64) as usize).copied().unwrap_or(otherwise)
    }

    fn weighted<'a, T>(&mut self, all: &'a [T], weight: impl Fn(&T) -> u64) -> Option<&'a T> {
        let mut left = self.random.below(all.iter().map(&weight).sum());
        all.iter().find(|of| {
            let weight = weight(of);
            let is_it = left < weight;
            left = left.saturating_sub(weight);
            is_it
        })
    }

    /// A text of an intent, with its blanks filled in.
    fn say(&mut self, intent: &str, is_portuguese: bool) -> String {
        let fits = |text: &&Text| text.intent == intent && text.is_portuguese == is_portuguese;
        let all: Vec<&str> = texts().iter().filter(fits).map(|text| text.text).collect();
        let text = self.of(&all, "");
        let number = (self.random.below(88) + 12).to_string();
        let (product, city, name) = (self.of(&PRODUCTS, ""), self.of(&CITIES, ""), self.of(&NAMES, ""));
        text.replace("{n}", &number).replace("{p}", product).replace("{c}", city).replace("{w}", name)
    }
}

impl Iterator for Day {
    type Item = Question;

    fn next(&mut self) -> Option<Question> {
        let tenant = *self.weighted(&TENANTS, |tenant| tenant.permille)?;
        let percents = MIXES.get(tenant.mix)?;
        let shares: Vec<(&str, u64)> = INTENTS.into_iter().zip(percents.iter().copied()).collect();
        let intent = self.weighted(&shares, |(_, percent)| *percent)?.0;
        let is_portuguese = self.random.below(100) < 60;
        let user = self.random.below(400);
        let mut messages = vec![json!({
            "role": "system",
            "content": if is_portuguese { "Você atende os clientes desta empresa. Responda curto." } else { "You help this company's customers. Be brief." },
        })];
        if self.one_in(4) {
            let earlier = self.say("faq", is_portuguese);
            let answered = if is_portuguese {
                "Claro! Veja em nosso site, na página de ajuda."
            } else {
                "Of course! It is on our help page."
            };
            messages.push(json!({ "role": "user", "content": earlier }));
            messages.push(json!({ "role": "assistant", "content": answered }));
        }
        messages.push(json!({ "role": "user", "content": self.say(intent, is_portuguese) }));
        let model = match self.random.below(100) {
            0 => "gpt-9-ultra",
            1..=9 => self.of(&NAMED, "gpt-4"),
            _ => "auto",
        };
        let cap = match intent {
            "greeting" => 60,
            "faq" => 160,
            "basic_support" => 300,
            _ => 900,
        };
        let stream = self.random.below(100) < 70;
        let mut body = json!({
            "model": model,
            "messages": messages,
            "max_tokens": cap,
            "stream": stream,
            "user": format!("user-{user}"),
            "metadata": {
                "organization_id": tenant.id,
                "team": self.of(&TEAMS, "care"),
            },
        });
        let user_tier = if user < 8 { Some("vip") } else { None };
        if let Some(tier) = user_tier {
            body["metadata"]["user_tier"] = Value::from(tier);
        }
        let conversation = format!("conv-{user}-{}", self.random.below(3));
        let leaves = stream && self.one_in(120);
        Some(Question { tenant: tenant.id, conversation, body, user_tier, leaves })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_day_is_the_same_for_the_same_seed_and_has_everything_in_it() {
        let day: Vec<Question> = Day::new(7).take(5_000).collect();
        assert!(day == Day::new(7).take(5_000).collect::<Vec<_>>());
        assert!(day != Day::new(8).take(5_000).collect::<Vec<_>>());
        let mut tenants = BTreeMap::<&str, u64>::new();
        day.iter().for_each(|question| *tenants.entry(question.tenant).or_default() += 1);
        for tenant in TENANTS {
            let share = tenants[tenant.id];
            assert!(share.abs_diff(tenant.permille * 5) < 150, "{}: {share}", tenant.id);
        }
        let count = |is: fn(&Question) -> bool| day.iter().filter(|question| is(question)).count();
        assert!(count(|question| question.leaves) > 10);
        assert!(count(|question| question.user_tier == Some("vip")) > 50);
        assert!(count(|question| question.body["model"] == "auto") > 4_000);
        assert!(count(|question| question.body["stream"] == false) > 1_000);
        let blanks = ["{n}", "{p}", "{c}", "{w}"];
        assert!(day.iter().all(|question| blanks.iter().all(|blank| !question.body.to_string().contains(blank))));
    }

    #[test]
    fn every_intent_has_texts_in_both_languages() {
        for intent in INTENTS {
            for is_portuguese in [false, true] {
                let has = texts().iter().any(|text| text.intent == intent && text.is_portuguese == is_portuguese);
                assert!(has, "{intent} {is_portuguese}");
            }
        }
        assert!(texts().iter().all(|text| INTENTS.contains(&text.intent)));
    }
}
