//! Reads labelled utterances (a line of JSON each, as in tests/routing) and prints the features of each, for the fit.

use std::io::{BufRead as _, Write as _};

use serde_json::{Value, json};
use tollstream::processor::intent::{Conversation, features};

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let utterance: Value = serde_json::from_str(&line?)?;
        let messages: Vec<(&str, &str)> = utterance["messages"]
            .as_array()
            .map(|messages| messages.iter().map(|m| (text(&m["role"]), text(&m["content"]))).collect())
            .unwrap_or_default();
        let said = |who: &'static str, until: usize| messages[..until].iter().rposition(move |(role, _)| *role == who);
        let Some(last) = said("user", messages.len()) else { continue };
        let earlier = |who| said(who, last).map(|index| messages[index].1);
        let conversation = Conversation {
            last_user: messages[last].1,
            earlier_user: earlier("user"),
            earlier_assistant: earlier("assistant"),
            turns: messages[..last].iter().filter(|(role, _)| *role == "user").count() as u32,
        };
        let mut names = Vec::new();
        features(&conversation, &mut |feature| names.push(feature.name()));
        names.sort_unstable();
        names.dedup();
        writeln!(out, "{}", json!({ "id": utterance["id"], "intent": utterance["intent"], "features": names }))?;
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
