//! What must hold of a manifest by itself. A replay refuses one that contradicts itself: it would count requests twice, pass over
//! some, or take them for another partition's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::{Content, FileEntry, Manifest, file_name, range_name};
use crate::records::Topic;

/// The topics that are archived.
const ARCHIVED: [Topic; 3] = [Topic::Journal, Topic::Control, Topic::Requests];

impl Manifest {
    /// What cannot be true of any archive that was written by this program.
    pub fn contradictions(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut partitions = BTreeMap::<&str, BTreeSet<i32>>::new();
        for (name, range) in &self.ranges {
            let Some((topic, partition)) = partition_of_name(name) else {
                problems.push(format!("{name:?} is no partition of a topic that is archived"));
                continue;
            };
            partitions.entry(topic.name()).or_default().insert(partition);
            if range.start < 0 || range.start > range.end {
                problems.push(format!("{name} has the range {} to {}", range.start, range.end));
            }
        }
        for topic in ARCHIVED {
            let of_topic = partitions.get(topic.name()).cloned().unwrap_or_default();
            let gap = (0_i32..).zip(&of_topic).find(|(wanted, found)| wanted != *found);
            if let Some((wanted, _)) = gap {
                problems.push(format!(
                    "{} is there, and {} is not",
                    last_name(topic, &of_topic),
                    range_name(topic, wanted)
                ));
            }
        }
        let of = |topic: Topic| partitions.get(topic.name()).map_or(0, BTreeSet::len);
        let (journal, requests) = (of(Topic::Journal), of(Topic::Requests));
        if journal > 0 && journal != requests {
            problems.push(format!("the journal has {journal} partitions, and requests has {requests}"));
        }
        if of(Topic::Control) > 1 {
            problems.push("control has more than one partition".to_owned());
        }
        self.files.iter().for_each(|file| problems.extend(contradiction(file)));
        problems.extend(self.overlaps());
        problems
    }

    /// What is missing of an archive that was not written to its end, or lost files since.
    pub fn incomplete(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for topic in ARCHIVED {
            let partitions = self.partitions(topic);
            if partitions.is_empty() {
                let name = topic.name();
                problems.push(format!("nothing of {name} was archived; run `tollstream archive write` again"));
            }
            for partition in partitions {
                let (name, range) = (range_name(topic, partition), self.range(topic, partition));
                for Range { start, end } in self.missing(topic, partition, range.clone()) {
                    problems.push(format!("{name} has nothing from offset {start} to {end}"));
                }
                let outside = self.of(topic, partition).find(|file| file.start < range.start || file.end > range.end);
                if let Some(FileEntry { file, .. }) = outside {
                    let Range { start, end } = range;
                    problems.push(format!(
                        "{file} goes beyond {start} to {end}, to which {name} was archived: a write was broken off; run it again"
                    ));
                }
            }
        }
        let is_nowhere = |file: &&FileEntry| !self.ranges.contains_key(&format!("{}/{}", file.topic, file.partition));
        problems.extend(self.files.iter().filter(is_nowhere).map(|file| {
            format!(
                "{} is of a partition that was not archived to its end; run `tollstream archive write` again",
                file.file
            )
        }));
        problems
    }

    fn overlaps(&self) -> Vec<String> {
        let mut files: Vec<&FileEntry> = self.files.iter().collect();
        files.sort_by_key(|file| (&file.topic, file.partition, file.start, file.end));
        let pairs = files
            .array_windows()
            .filter(|[a, b]| (&a.topic, a.partition) == (&b.topic, b.partition) && b.start < a.end);
        pairs.map(|[a, b]| format!("{} and {} have the same offsets", a.file, b.file)).collect()
    }
}

fn contradiction(file: &FileEntry) -> Option<String> {
    let FileEntry { file: name, topic, partition, start, end, records, content, .. } = file;
    let Some(of) = ARCHIVED.into_iter().find(|of| of.name() == topic) else {
        return Some(format!("{name} is of {topic:?}, which is not archived"));
    };
    let wanted = file_name(of, *partition, &(*start..*end));
    if *name != wanted {
        return Some(format!("{name} would be named {wanted} if it were what is said of it"));
    }
    if *start < 0 || start >= end || *partition < 0 {
        return Some(format!("{name} has the range {start} to {end}"));
    }
    if *records > end.abs_diff(*start) {
        return Some(format!("{name} has {records} records at the offsets {start} to {end}"));
    }
    let is_told: Option<Content> = *content;
    (is_told.is_some() != (of == Topic::Requests))
        .then(|| format!("{name}: what it has of the content is told of requests, and of nothing else"))
}

fn partition_of_name(name: &str) -> Option<(Topic, i32)> {
    let (topic, partition) = name.split_once('/')?;
    let topic = ARCHIVED.into_iter().find(|of| of.name() == topic)?;
    let partition = partition.parse().ok().filter(|partition| *partition >= 0)?;
    (range_name(topic, partition) == name).then_some((topic, partition))
}

fn last_name(topic: Topic, partitions: &BTreeSet<i32>) -> String {
    range_name(topic, partitions.last().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::VERSION;
    use super::*;

    #[test]
    fn what_is_missing_is_found_at_both_ends_and_in_between() {
        let file = |start: i64, end: i64| FileEntry {
            file: format!("{start}"),
            topic: "journal".into(),
            partition: 3,
            start,
            end,
            records: 1,
            bytes: 1,
            sha256: String::new(),
            first_at: None,
            last_at: None,
            content: None,
        };
        let manifest = Manifest {
            ranges: BTreeMap::from([("journal/3".to_owned(), 0..50), ("journal/4".to_owned(), 0..0)]),
            // In the order in which they were written.
            files: vec![file(20, 30), file(10, 20), file(40, 45)],
            ..Manifest::default()
        };
        let missing = |within| manifest.missing(Topic::Journal, 3, within);
        assert_eq!(missing(0..50), [0..10, 30..40, 45..50]);
        assert_eq!(missing(10..30), []);
        assert_eq!(missing(5..42), [5..10, 30..40]);
        assert_eq!(manifest.missing(Topic::Journal, 4, 0..0), []);
        assert_eq!((manifest.range(Topic::Journal, 3), manifest.range(Topic::Requests, 3)), (0..50, 0..0));
        assert_eq!(manifest.partitions(Topic::Journal), [3, 4]);
        assert_eq!(manifest.partitions(Topic::Control), Vec::<i32>::new());
    }

    /// A whole archive of two partitions.
    fn whole() -> Manifest {
        let file = |topic: Topic, partition: i32, offsets: Range<i64>| FileEntry {
            file: file_name(topic, partition, &offsets),
            topic: topic.name().to_owned(),
            partition,
            start: offsets.start,
            end: offsets.end,
            records: offsets.end.abs_diff(offsets.start),
            bytes: 1,
            sha256: String::new(),
            first_at: None,
            last_at: None,
            content: (topic == Topic::Requests).then_some(Content::Keep),
        };
        let range = |name: &str, range: Range<i64>| (name.to_owned(), range);
        Manifest {
            version: VERSION,
            ranges: BTreeMap::from([
                range("control/0", 0..5),
                range("journal/0", 0..20),
                range("journal/1", 0..0),
                range("requests/0", 3..9),
                range("requests/1", 0..0),
            ]),
            files: vec![
                file(Topic::Control, 0, 0..5),
                file(Topic::Requests, 0, 3..9),
                file(Topic::Journal, 0, 10..20),
                file(Topic::Journal, 0, 0..10),
            ],
        }
    }

    #[test]
    fn each_contradiction_and_each_hole_of_a_manifest_is_told() {
        assert_eq!((whole().contradictions(), whole().incomplete()), (Vec::new(), Vec::new()));
        let contradicts: [(&str, fn(&mut Manifest)); 14] = [
            ("would be named journal/0000/000000000010-000000000021.avro", |m| m.files[2].end = 21),
            ("would be named journal/0001/", |m| m.files[2].partition = 1),
            ("would be named requests/0000/", |m| m.files[2].topic = "requests".into()),
            ("which is not archived", |m| m.files[2].topic = "state".into()),
            ("12 records at the offsets 10 to 20", |m| m.files[2].records = 12),
            ("have the same offsets", |m| {
                let twice = m.files[2].clone();
                m.files.push(twice);
            }),
            ("have the same offsets", |m| {
                m.files[2].start = 9;
                m.files[2].file = file_name(Topic::Journal, 0, &(9..20));
            }),
            ("is told of requests", |m| m.files[1].content = None),
            ("is told of requests", |m| m.files[2].content = Some(Content::Drop)),
            ("journal/0 has the range 20 to 0", |m| {
                _ = m.ranges.insert("journal/0".into(), Range { start: 20, end: 0 })
            }),
            ("is no partition of a topic", |m| _ = m.ranges.insert("journal/00".into(), 0..20)),
            ("journal/2 is there, and journal/1 is not", |m| {
                m.ranges.remove("journal/1");
                m.ranges.insert("journal/2".into(), 0..0);
            }),
            ("the journal has 3 partitions, and requests has 2", |m| _ = m.ranges.insert("journal/2".into(), 0..0)),
            ("control has more than one partition", |m| _ = m.ranges.insert("control/1".into(), 0..0)),
        ];
        for (wanted, change) in contradicts {
            let mut manifest = whole();
            change(&mut manifest);
            let problems = manifest.contradictions();
            assert!(problems.iter().any(|problem| problem.contains(wanted)), "{wanted}: {problems:?}");
        }
        let incomplete: [(&str, fn(&mut Manifest)); 5] = [
            ("journal/0 has nothing from offset 0 to 10", |m| _ = m.files.remove(3)),
            ("journal/0 has nothing from offset 20 to 30", |m| _ = m.ranges.insert("journal/0".into(), 0..30)),
            ("goes beyond 0 to 15", |m| _ = m.ranges.insert("journal/0".into(), 0..15)),
            ("nothing of journal was archived", |m| m.ranges.retain(|name, _| !name.starts_with("journal"))),
            ("of a partition that was not archived to its end", |m| _ = m.ranges.remove("journal/0")),
        ];
        for (wanted, change) in incomplete {
            let mut manifest = whole();
            change(&mut manifest);
            let problems = manifest.incomplete();
            assert!(problems.iter().any(|problem| problem.contains(wanted)), "{wanted}: {problems:?}");
        }
    }
}
