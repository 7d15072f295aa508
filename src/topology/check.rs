//! `tollstream topology check`: the files against each other and against the released schemas, offline.

use super::{Files, Problem, Seeds, Topics, schemas};

/// All problems of the files; none is good.
pub fn check(files: &Files) -> Vec<Problem> {
    let mut problems = Vec::new();
    Topics::parse(files, &mut problems);
    schemas::check(files, &mut problems);
    Seeds::parse(files, &mut problems);
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_files_hold_and_problems_of_all_files_are_listed() {
        let mut files = Files::embedded();
        assert_eq!(check(&files), []);
        files.set("topology/topics.toml", "");
        files.set("topology/seed/organizations.toml", "colour = 1");
        files.set("schemas/avro/usage.avsc", "{}");
        let problems = check(&files);
        let named: std::collections::BTreeSet<&str> = problems.iter().map(|p| p.file.as_str()).collect();
        assert!(named.len() >= 3, "{problems:?}");
    }
}
