//! Saved queries: the files of `schemas/clickhouse/queries/`, with what their headers say.
//!
//! The first line of a file is its description. Each line after it that begins with `-- @` is a parameter: its name, its
//! default behind `=` (without one it must be given), and what it is behind `: `. A default with ` | ` is the first of all
//! values that there are. The type is where the parameter is used, `{name:Type}`. Values are bound by ClickHouse and never become a part of the text.

pub mod ask;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use include_dir::{Dir, include_dir};
use jiff::civil::Date;

static FILES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/schemas/clickhouse/queries");
static QUERIES: LazyLock<Vec<Query>> = LazyLock::new(|| {
    let files = FILES.files().filter_map(|file| Some((file.path().file_stem()?.to_str()?, file.contents_utf8()?)));
    let mut queries: Vec<Query> = files.map(|(name, sql)| Query::parse(name, sql)).collect();
    queries.sort_by_key(|query| query.name);
    queries
});

/// Most bytes of a value.
pub const VALUE_BYTES_MAX: usize = 4_096;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("there is no saved query {name:?}; there are {known}")]
    UnknownQuery { name: String, known: String },
    #[error("{query} has no parameter {name:?}; it has {known}")]
    UnknownParameter { query: &'static str, name: String, known: String },
    #[error("{query} needs {name}, {meaning}; give --param {name}=…")]
    Missing { query: &'static str, name: &'static str, meaning: &'static str },
    #[error("{name} = {value:?} is not {expected}")]
    Malformed { name: &'static str, value: String, expected: String },
}

/// One file.
#[derive(Debug, PartialEq, Eq)]
pub struct Query {
    pub name: &'static str,
    pub description: &'static str,
    pub parameters: Vec<Parameter>,
    pub sql: &'static str,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Parameter {
    pub name: &'static str,
    pub kind: Kind,
    /// As the header says it; `None`: it must be given.
    pub default: Option<&'static str>,
    /// All values that there are; empty: any of its kind.
    pub choices: Vec<&'static str>,
    pub meaning: &'static str,
}

/// What ClickHouse takes for a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Number,
    Usd,
    /// Also `today`, `today-7`, `today+1`.
    Date,
}

impl Kind {
    fn of(type_name: &str) -> Self {
        match type_name {
            "Date" => Self::Date,
            "UInt64" => Self::Number,
            name if name.starts_with("Decimal") => Self::Usd,
            _ => Self::Text,
        }
    }

    const fn expected(self) -> &'static str {
        match self {
            Self::Text => "a text of 4,096 bytes at the most",
            Self::Number => "a whole number such as 100",
            Self::Usd => "an amount in dollars such as 0.15",
            Self::Date => "a day such as 2026-11-22, today or today-7",
        }
    }

    /// The value as ClickHouse takes it.
    fn resolve(self, value: &str, today: Date) -> Option<String> {
        match self {
            Self::Text => (value.len() <= VALUE_BYTES_MAX).then(|| value.to_owned()),
            Self::Number => value.parse::<u64>().ok().map(|number| number.to_string()),
            Self::Usd => {
                let amount: crate::domain::PicoUsd = value.parse().ok()?;
                (amount >= crate::domain::PicoUsd::ZERO).then(|| amount.to_string())
            }
            Self::Date => day(value, today).map(|day| day.to_string()),
        }
    }
}

fn day(text: &str, today: Date) -> Option<Date> {
    let Some(distance) = text.strip_prefix("today") else { return text.parse().ok() };
    let days = match distance {
        "" => 0,
        signed if signed.starts_with(['+', '-']) => signed.parse::<i32>().ok()?,
        _ => return None,
    };
    today.checked_add(jiff::Span::new().try_days(days).ok()?).ok()
}

impl Query {
    fn parse(name: &'static str, sql: &'static str) -> Self {
        let mut lines = sql.lines().map_while(|line| line.strip_prefix("-- "));
        let description = lines.next().unwrap_or_default();
        let parameters = lines.filter_map(|line| {
            let (declared, meaning) = line.strip_prefix('@')?.split_once(": ")?;
            let (name, default) = match declared.split_once(" = ") {
                Some((name, "''")) => (name, Some("")),
                Some((name, default)) => (name, Some(default)),
                None => (declared, None),
            };
            let choices: Vec<&str> = match default {
                Some(all) if all.contains(" | ") => all.split(" | ").collect(),
                _ => Vec::new(),
            };
            let default = choices.first().copied().or(default);
            let (_, used) = sql.split_once(&format!("{{{name}:"))?;
            Some(Parameter { name, kind: Kind::of(used.split_once('}')?.0), default, choices, meaning })
        });
        Self { name, description, parameters: parameters.collect(), sql }
    }

    /// The values of all parameters as ClickHouse takes them, the defaults of those that are not given included.
    ///
    /// # Errors
    /// A value is missing, malformed, or of no parameter.
    pub fn values(
        &self,
        given: &BTreeMap<String, String>,
        today: Date,
    ) -> Result<BTreeMap<&'static str, String>, Error> {
        if let Some(name) = given.keys().find(|name| self.parameters.iter().all(|p| p.name != name.as_str())) {
            let known = list(self.parameters.iter().map(|parameter| parameter.name));
            return Err(Error::UnknownParameter { query: self.name, name: name.clone(), known });
        }
        let mut values = BTreeMap::new();
        for Parameter { name, kind, default, choices, meaning } in &self.parameters {
            let value = given.get(*name).map(String::as_str).or(*default);
            let value = value.ok_or(Error::Missing { query: self.name, name, meaning })?;
            let malformed = || {
                let expected = match choices.as_slice() {
                    [] => kind.expected().to_owned(),
                    choices => format!("one of {}", choices.join(", ")),
                };
                Error::Malformed { name, value: value.to_owned(), expected }
            };
            if !choices.is_empty() && !choices.contains(&value) {
                return Err(malformed());
            }
            values.insert(*name, kind.resolve(value, today).ok_or_else(malformed)?);
        }
        Ok(values)
    }
}

/// All saved queries, by name.
pub fn all() -> &'static [Query] {
    &QUERIES
}

/// # Errors
/// There is none of this name.
pub fn find(name: &str) -> Result<&'static Query, Error> {
    let found = all().iter().find(|query| query.name == name);
    let unknown = || Error::UnknownQuery { name: name.to_owned(), known: list(all().iter().map(|query| query.name)) };
    found.ok_or_else(unknown)
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TODAY: Date = jiff::civil::date(2026, 11, 28);

    fn given(values: &[(&str, &str)]) -> BTreeMap<String, String> {
        values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_query_says_what_it_is_and_declares_what_it_uses() {
        assert!(all().len() >= 12);
        for query in all() {
            assert!(query.description.ends_with(['.', '?']), "{}: {}", query.name, query.description);
            let mut used: Vec<&str> =
                query.sql.split('{').skip(1).filter_map(|part| Some(part.split_once(':')?.0)).collect();
            used.sort_unstable();
            used.dedup();
            let mut declared: Vec<&str> = query.parameters.iter().map(|parameter| parameter.name).collect();
            declared.sort_unstable();
            assert_eq!(declared, used, "{}", query.name);
            for parameter in &query.parameters {
                let default = parameter.default.unwrap_or("1");
                let kind = parameter.kind;
                assert!(kind == Kind::Date || kind.resolve(default, TODAY).is_some(), "{}: {default}", query.name);
            }
        }
    }

    #[test]
    fn every_query_reads_views_that_count_nothing_twice() {
        for query in all() {
            for table in query.sql.split("FROM ").skip(1).filter_map(|rest| rest.split_whitespace().next()) {
                let exact = table.ends_with("_exact") || query.sql.contains(&format!("WITH {table} AS\n("));
                assert!(exact, "{}: {table}", query.name);
            }
        }
    }

    #[test]
    fn defaults_stand_in_for_what_is_not_given() {
        let query = find("cost").unwrap();
        let values = query.values(&given(&[("by", "tag"), ("until_day", "2026-11-20")]), TODAY).unwrap();
        let expected = [
            ("by", "tag"),
            ("tag", "team"),
            ("organization", ""),
            ("from_day", "2026-10-29"),
            ("until_day", "2026-11-20"),
            ("rows", "100"),
        ];
        assert_eq!(values, expected.map(|(name, value)| (name, value.to_owned())).into());
    }

    #[test]
    fn what_is_wrong_says_what_would_be_right() {
        let burn_down = find("budget_burn_down").unwrap();
        let table = [
            (given(&[]), "needs organization, who pays"),
            (given(&[("organization", "acme"), ("monat", "1")]), "no parameter \"monat\"; it has organization, month"),
            (given(&[("organization", "acme"), ("month", "2026-13-01")]), "is not a day such as"),
            (given(&[("organization", "acme"), ("month", "today/1")]), "is not a day such as"),
            (given(&[("organization", "acme"), ("budget_usd", "1,5")]), "is not an amount in dollars"),
            (given(&[("organization", &"x".repeat(5_000))]), "is not a text of"),
        ];
        for (given, expected) in table {
            let error = burn_down.values(&given, TODAY).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = find("costs").unwrap_err().to_string();
        assert!(error.contains("\"costs\"") && error.contains("budget_burn_down, cache_savings, cost, "), "{error}");
        let cost = find("cost").unwrap();
        assert!(cost.values(&given(&[("rows", "-1")]), TODAY).is_err());
        let error = cost.values(&given(&[("by", "team")]), TODAY).unwrap_err().to_string();
        assert!(error.starts_with("by = \"team\" is not one of model, organization, tag, user"), "{error}");
    }

    #[test]
    fn days_are_counted_from_today() {
        let table = [
            ("today", Some("2026-11-28")),
            ("today+1", Some("2026-11-29")),
            ("today-30", Some("2026-10-29")),
            ("2026-02-28", Some("2026-02-28")),
            ("2026-02-30", None),
            ("today-", None),
            ("today--1", None),
            ("today-99999999", None),
            ("tomorrow", None),
        ];
        for (text, expected) in table {
            assert_eq!(day(text, TODAY).map(|day| day.to_string()).as_deref(), expected, "{text}");
        }
    }
}
