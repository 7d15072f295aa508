//! The rules that are tried: documents as people write them for control, in the place of what control had.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::partition::Candidate;
use crate::control::document::{self, Problem};
use crate::control::edit::Wanted;
use crate::control::rules::{Overrides, Rules};
use crate::control::{Tables, check};
use crate::records::control::{Entity, EntityKind};

/// The candidate that decides by the recorded rules.
pub const RECORDED: &str = "recorded";
/// Most candidates of one replay: each has a state of its own.
pub const CANDIDATES_MAX: usize = 8;

/// A file, as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    pub file: String,
    pub text: String,
}

/// A candidate as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub name: String,
    /// Empty: the recorded rules.
    pub documents: Vec<Document>,
    pub reclassifies: bool,
}

/// Whether the same is asked for; where its files lie does not matter.
pub fn are_same(a: &[Asked], b: &[Asked]) -> bool {
    let is_same = |a: &Asked, b: &Asked| {
        let texts = |of: &Asked| of.documents.iter().map(|document| document.text.clone()).collect::<Vec<_>>();
        a.name == b.name && a.reclassifies == b.reclassifies && texts(a) == texts(b)
    };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{file}: {}", .problems.iter().map(told).collect::<Vec<_>>().join("; "))]
    Document { file: String, problems: Vec<Problem> },
    #[error(
        "{file} has nothing that could be tried; it takes [[policies]], [[plans]], [[models]], [[organizations]], or one policy"
    )]
    Empty { file: String },
    #[error("{file}: control has no {kind} {id}, so nothing was decided by it; it has {known}", kind = .kind.name())]
    Unknown { file: String, kind: EntityKind, id: String, known: String },
    #[error("candidate {name}: {problem}")]
    Broken { name: String, problem: String },
    #[error("{RECORDED} is what happened itself; name what is tried otherwise, with --candidate NAME=FILE")]
    Reserved,
    #[error("there are two candidates {name}; name them apart with --candidate NAME=FILE")]
    Twice { name: String },
    #[error("there are {found} candidates; the most is {CANDIDATES_MAX}")]
    TooMany { found: usize },
}

fn told(problem: &Problem) -> String {
    if problem.at.is_empty() { problem.problem.clone() } else { format!("{}: {}", problem.at, problem.problem) }
}

/// What was asked for, as rules; `rules` are the recorded ones up to their end.
///
/// # Errors
/// Everything is checked before anything is replayed: the documents themselves, whether control had what they replace, and
/// whether what they name is there at the end of control.
pub fn candidates(asked: &[Asked], rules: &Rules, end: i64) -> Result<Vec<Candidate>, Error> {
    if asked.len() > CANDIDATES_MAX {
        return Err(Error::TooMany { found: asked.len() });
    }
    let mut rules = rules.clone();
    let tables = rules.at(end - 1);
    let mut names = BTreeSet::new();
    asked
        .iter()
        .map(|asked| {
            let tries_something = asked.reclassifies || !asked.documents.is_empty();
            if asked.name == RECORDED && tries_something {
                return Err(Error::Reserved);
            }
            if !names.insert(asked.name.as_str()) {
                return Err(Error::Twice { name: asked.name.clone() });
            }
            candidate(asked, tables)
        })
        .collect()
}

fn candidate(asked: &Asked, tables: &Tables) -> Result<Candidate, Error> {
    let mut overrides = Overrides::new();
    for document in &asked.documents {
        for (id, entity) in entities(document)? {
            let kind = entity.kind();
            if tables.version_of(kind, &id) < 0 {
                let (file, known) = (document.file.clone(), known(tables, kind));
                return Err(Error::Unknown { file, kind, id, known });
            }
            if overrides.insert((kind, id.clone()), entity).is_some() {
                let problem = format!("{} {id} is in more than one of its files", kind.name());
                return Err(Error::Broken { name: asked.name.clone(), problem });
            }
        }
    }
    let put = |((_, id), entity): (&(EntityKind, String), &Entity)| {
        Wanted::put(id, entity.clone(), tables.version_of(entity.kind(), id))
    };
    let wanted: Vec<Wanted> = overrides.iter().map(put).collect();
    if let Some(violation) = check::check(tables, &wanted).first() {
        return Err(Error::Broken { name: asked.name.clone(), problem: violation.to_string() });
    }
    Ok(Candidate { name: asked.name.clone(), overrides: Arc::new(overrides), reclassifies: asked.reclassifies })
}

/// A file is a policy, or has lists of entities.
fn entities(of: &Document) -> Result<Vec<(String, Entity)>, Error> {
    let failed = |problems: Vec<Problem>| Error::Document { file: of.file.clone(), problems };
    let table = document::table(&of.text).map_err(|problem| failed(vec![problem]))?;
    let has_lists = EntityKind::ALL.into_iter().any(|kind| table.contains_key(kind.plural()));
    if !has_lists && table.contains_key(EntityKind::Policy.id_field()) {
        return document::parse(EntityKind::Policy, table, None).map(|policy| vec![policy]).map_err(failed);
    }
    let mut problems = Vec::new();
    let entities = document::file(&of.text, &mut problems);
    match (problems.is_empty(), entities.is_empty()) {
        (false, _) => Err(failed(problems)),
        (true, true) => Err(Error::Empty { file: of.file.clone() }),
        (true, false) => Ok(entities),
    }
}

/// The first entities of a kind, for people.
fn known(tables: &Tables, kind: EntityKind) -> String {
    const TOLD_MAX: usize = 8;
    let names: Vec<&str> = tables.ids(kind).map(|(id, _)| id).collect();
    let told = names.iter().take(TOLD_MAX).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => "none".to_owned(),
        found if found > TOLD_MAX => format!("{told} and {} more", found - TOLD_MAX),
        _ => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Timestamp;
    use crate::records::control::{ControlRecord, Stamp};
    use crate::topology::{Files, Seeds};

    const POLICY: &str = include_str!("../../topology/seed/policies/auto.toml");
    const PLANS: &str = include_str!("../../topology/seed/plans.toml");

    /// Control as the seeds make it, and where it ends.
    fn rules() -> (Rules, i64) {
        let stamp = || Stamp { change_id: String::new(), actor: String::new(), at: Timestamp::default() };
        let seeds = Seeds::parse(&Files::embedded(), &mut Vec::new());
        let records: Vec<(i64, ControlRecord)> = (0..)
            .zip(seeds.entities())
            .map(|(at, (id, entity))| (at, ControlRecord::put(id, entity, -1, stamp())))
            .collect();
        let end = records.len() as i64;
        (Rules::new(records.into()), end)
    }

    fn asked(name: &str, text: &str) -> Asked {
        let documents = vec![Document { file: format!("{name}.toml"), text: text.to_owned() }];
        Asked { name: name.to_owned(), documents, reclassifies: false }
    }

    #[test]
    fn what_a_file_has_takes_the_place_of_what_control_had_at_its_version() {
        let (rules, end) = rules();
        let policy = POLICY.replace("vip_tier = 4", "vip_tier = 3");
        let plans = PLANS.replace("requests_per_minute = 20", "requests_per_minute = 7");
        let found = candidates(&[asked("vips", &policy), asked("plans", &plans)], &rules, end).unwrap();
        let mut recorded = rules.clone();
        let recorded = recorded.at(end - 1);
        let tables = |candidate: &Candidate| rules.overridden(candidate.overrides.clone()).at(end - 1).clone();
        let (vips, slower) = (tables(&found[0]), tables(&found[1]));
        let policy_of = |tables: &Tables| tables.policy("auto").map(|(_, policy)| policy.clone()).unwrap();
        assert_eq!((policy_of(&vips).value.vip_tier, policy_of(recorded).value.vip_tier), (Some(3), Some(4)));
        assert_eq!(policy_of(&vips).version, policy_of(recorded).version);
        assert_eq!(policy_of(&slower).value, policy_of(recorded).value);
        let plan_of = |tables: &Tables| match tables.entity(EntityKind::Plan, "free") {
            Some(Entity::Plan(plan)) => plan.limits.requests_per_minute,
            _ => None,
        };
        assert_eq!((plan_of(&slower), plan_of(recorded), plan_of(&vips)), (Some(7), Some(20), Some(20)));
        assert!(found.iter().all(|candidate| !candidate.is_recorded()));
        let none = Asked { name: "recorded".into(), documents: Vec::new(), reclassifies: false };
        assert!(candidates(&[none], &rules, end).unwrap()[0].is_recorded());
    }

    #[test]
    fn a_policy_that_two_files_of_a_candidate_have_is_refused() {
        let (rules, end) = rules();
        let document = |file: &str| Document { file: file.to_owned(), text: POLICY.to_owned() };
        let both = Asked { name: "a".into(), documents: vec![document("1"), document("2")], reclassifies: false };
        let error = candidates(&[both], &rules, end).unwrap_err().to_string();
        assert_eq!(error, "candidate a: policy auto is in more than one of its files");
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file_and_what_there_is() {
        let (rules, end) = rules();
        let table = [
            (vec![asked("a", "name = ")], "a.toml: "),
            (vec![asked("a", "")], "a.toml has nothing that could be tried"),
            (vec![asked("a", "[[keys]]\nid = \"k\"")], "keys have secrets and stand in no file"),
            (
                vec![asked("a", &POLICY.replace("\"auto\"", "\"nobody\""))],
                "control has no policy nobody, so nothing was decided by it; it has auto",
            ),
            (vec![asked("a", &POLICY.replace("claude-haiku-4-5", "claude-nobody"))], "candidate a: policy auto"),
            (vec![asked("a", &PLANS.replace("name = \"free\"", "name = \"nothing\""))], "it has enterprise, free, pro"),
            (vec![asked("a", POLICY), asked("a", PLANS)], "there are two candidates a"),
            (vec![asked("recorded", POLICY)], "recorded is what happened itself"),
            ((0..9).map(|n| asked(&n.to_string(), POLICY)).collect(), "there are 9 candidates; the most is 8"),
        ];
        for (asked, wanted) in table {
            let error = candidates(&asked, &rules, end).unwrap_err().to_string();
            assert!(error.contains(wanted), "{wanted:?} is not in {error:?}");
        }
    }
}
