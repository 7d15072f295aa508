//! Runs over journals in memory, into real directories: what is broken off, lost or damaged there.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use indicatif::ProgressBar;

use super::candidate::{Asked, Document, RECORDED};
use super::directory::{self, Directory, RunName};
use super::log::{Kept, Log, Requests};
use super::report::Report;
use super::run::{Error, Mode, Nowhere, Run, Spec};
use crate::control::Tables;
use crate::control::rules::Rules;
use crate::processor::histories::journal;
use crate::records::journal::Entry;

const PARTITIONS: i32 = 3;

/// Journals of random histories, each a partition.
struct InMemory {
    journals: BTreeMap<i32, Vec<Entry>>,
    tables: Tables,
}

impl InMemory {
    fn new() -> Self {
        let journals = (0..PARTITIONS).map(|partition| (partition, journal(u64::from(partition.unsigned_abs()) + 1).0));
        Self { journals: journals.collect(), tables: journal(1).1 }
    }
}

impl Log for InMemory {
    fn kept(&self) -> Result<Kept, Error> {
        let journal = self.journals.iter().map(|(partition, entries)| (*partition, 0..entries.len() as i64));
        let control = 0..self.tables.offset() + 1;
        let partitions = PARTITIONS.unsigned_abs();
        Ok(Kept { journal: journal.collect(), requests: BTreeMap::new(), control, partitions })
    }

    fn rules(&self, _: i64) -> Result<Rules, Error> {
        Ok(Rules::fixed(self.tables.clone()))
    }

    fn journal(
        &self,
        partition: i32,
        offsets: Range<i64>,
        take: &mut dyn FnMut(i64, Entry) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        for (offset, entry) in (0..).zip(&self.journals[&partition]).filter(|(offset, _)| offsets.contains(offset)) {
            if take(offset, entry.clone())?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn requests(&self, _: i32, _: i64) -> Result<Box<dyn Requests + '_>, Error> {
        panic!("nothing is classified again");
    }

    fn has_content(&self) -> bool {
        false
    }
}

fn recorded() -> Asked {
    Asked { name: RECORDED.to_owned(), documents: Vec::new(), reclassifies: false }
}

fn name() -> RunName {
    "a-run".parse().unwrap()
}

/// Begins a run, or goes on with it.
fn run(root: &Path, log: &InMemory, resumes: bool) -> Result<Vec<Report>, Error> {
    let spec = Spec { candidates: vec![recorded()], ..Spec::default() };
    let (directory, begun) = Directory::begin(root, &name(), &spec, resumes, Spec::differs)?;
    let run = Run::prepare(log, begun.unwrap_or(spec), None, ProgressBar::hidden())?;
    let reports = run.run(&directory, &Nowhere)?;
    directory.write_report(&reports)?;
    Ok(reports)
}

/// What is in a directory.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(root.join("a-run")).unwrap();
    let read = |entry: std::fs::DirEntry| {
        (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap())
    };
    entries.map(|entry| read(entry.unwrap())).collect()
}

#[test]
fn what_a_run_has_lost_or_cannot_read_is_decided_again_and_the_rest_is_kept() {
    let log = InMemory::new();
    let whole = tempfile::tempdir().unwrap();
    let reports = run(whole.path(), &log, false).unwrap();
    let wanted = files(whole.path());
    let requests: u64 = reports.iter().map(|report| report.all.recorded.requests).sum();
    assert!(requests > 20, "{requests}");
    let lost: [(&str, fn(&Path)); 4] = [
        ("the rows of a partition", |run| std::fs::remove_file(run.join("partition-0001.avro")).unwrap()),
        ("the report of a partition", |run| std::fs::remove_file(run.join("partition-0001.json")).unwrap()),
        ("half of the report of a partition", |run| {
            let path = run.join("partition-0001.json");
            let text = std::fs::read(&path).unwrap();
            std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        }),
        ("everything", |run| {
            for partition in 0..PARTITIONS {
                std::fs::remove_file(run.join(format!("partition-{partition:04}.avro"))).unwrap();
            }
        }),
    ];
    for (what, lose) in lost {
        let root = tempfile::tempdir().unwrap();
        run(root.path(), &log, false).unwrap();
        // Whoever decided a partition again would write its rows anew.
        let kept = root.path().join("a-run/partition-0000.avro");
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
        let before = inode(&kept);
        lose(&root.path().join("a-run"));
        assert_ne!(files(root.path()), wanted, "{what}: nothing is lost");
        let again = run(root.path(), &log, true).unwrap();
        assert!(again == reports && files(root.path()) == wanted, "{what}");
        if what != "everything" {
            assert_eq!(inode(&kept), before, "{what}: partition 0 was decided again");
        }
    }
}

#[test]
fn a_full_disk_is_told_with_the_file_and_leaves_a_run_that_can_be_gone_on_with() {
    let (log, root) = (InMemory::new(), tempfile::tempdir().unwrap());
    let spec = Spec { candidates: vec![recorded()], ..Spec::default() };
    drop(Directory::begin(root.path(), &name(), &spec, false, Spec::differs).unwrap());
    let part = root.path().join("a-run/partition-0001.avro.part");
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let error = run(root.path(), &log, true).unwrap_err();
    let told = error.to_string();
    assert!(matches!(error, Error::Directory(directory::Error::Io { .. })), "{error:?}");
    assert!(told.contains("partition-0001.avro.part") && told.contains("No space left"), "{told}");
    std::fs::remove_file(&part).unwrap();
    let reports = run(root.path(), &log, true).unwrap();
    let whole = tempfile::tempdir().unwrap();
    assert!(reports == run(whole.path(), &log, false).unwrap() && files(root.path()) == files(whole.path()));
}

#[test]
fn a_run_is_gone_on_with_only_as_it_was_begun() {
    let document = |file: &str, text: &str| Document { file: file.to_owned(), text: text.to_owned() };
    let tried =
        |file: &str, text: &str| Asked { name: "a".into(), documents: vec![document(file, text)], reclassifies: false };
    let begun = Spec { candidates: vec![tried("a.toml", "x")], ..Spec::default() };
    let table: [(Option<&str>, Spec); 8] = [
        (None, begun.clone()),
        // Where it lies now does not matter.
        (None, Spec { candidates: vec![tried("elsewhere/a.toml", "x")], ..begun.clone() }),
        // Nor how far the logs go by now.
        (None, Spec { journal: BTreeMap::from([(0, 7)]), control: 7, ..begun.clone() }),
        (Some("other candidates"), Spec { candidates: vec![tried("a.toml", "y")], ..begun.clone() }),
        (Some("another mode"), Spec { mode: Mode::Live, ..begun.clone() }),
        (Some("--no-clickhouse, or not, as now"), Spec { with_clickhouse: true, ..begun.clone() }),
        (Some("another source"), Spec { archive: Some("x".into()), ..begun.clone() }),
        (Some("another range"), Spec { last: Some(1), ..begun.clone() }),
    ];
    for (wanted, asked) in table {
        assert_eq!(begun.differs(&asked), wanted, "{asked:?}");
        let root = tempfile::tempdir().unwrap();
        drop(Directory::begin(root.path(), &name(), &begun, false, Spec::differs).unwrap());
        let before = files(root.path());
        let resumed = Directory::begin(root.path(), &name(), &asked, true, Spec::differs);
        assert_eq!(resumed.is_err(), wanted.is_some(), "{asked:?}");
        assert_eq!(files(root.path()), before, "{asked:?}");
    }
}
