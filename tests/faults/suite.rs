//! The size of the run, and which cases of the full suite are finished.
//!
//! `make test-faults` names a file by `TOLLSTREAM_FAULTS`: then everything is full size, and a case that is finished is
//! noted there and not run again. The notes hold for one build of the program only.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Instant, UNIX_EPOCH};

struct Notes {
    path: PathBuf,
    /// Of the program, when the run began.
    build: String,
    finished: Mutex<Vec<String>>,
}

fn notes() -> Option<&'static Notes> {
    static NOTES: OnceLock<Option<Notes>> = OnceLock::new();
    NOTES.get_or_init(|| std::env::var_os("TOLLSTREAM_FAULTS").map(|path| Notes::open(path.into()))).as_ref()
}

/// The build of the program under test.
fn build() -> String {
    let program = std::fs::metadata(env!("CARGO_BIN_EXE_tollstream")).expect("the program");
    let built = program.modified().expect("a time").duration_since(UNIX_EPOCH).expect("after 1970");
    format!("build {} {}", program.len(), built.as_nanos())
}

impl Notes {
    fn open(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut lines = text.lines().map(str::to_owned);
        let build = build();
        let finished: Vec<String> = match lines.next().as_ref() == Some(&build) {
            true => lines.collect(),
            false => Vec::new(),
        };
        match finished.len() {
            0 => eprintln!("faults: begins anew; finished cases are noted in {}", path.display()),
            some => eprintln!("faults: goes on after {some} finished cases in {}", path.display()),
        }
        let notes = Self { path, build, finished: Mutex::new(finished) };
        notes.write();
        notes
    }

    fn write(&self) {
        let finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        let text =
            std::iter::once(self.build.clone()).chain(finished.iter().cloned()).collect::<Vec<_>>().join("\n") + "\n";
        let mut file = tempfile::NamedTempFile::new_in(self.path.parent().expect("a folder")).expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file.persist(&self.path).expect("noted");
    }
}

/// Whether this is the full suite.
pub fn is_full() -> bool {
    notes().is_some()
}

/// One of two sizes.
pub fn size<T>(short: T, full: T) -> T {
    if is_full() { full } else { short }
}

/// Runs a case, unless it is finished already.
pub async fn case(name: &str, run: impl AsyncFnOnce()) {
    let run = async || Box::pin(run()).await;
    let Some(notes) = notes() else { return run().await };
    let is_finished = || notes.finished.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|done| done == name);
    if is_finished() {
        eprintln!("faults: {name}: finished before");
        return;
    }
    eprintln!("faults: {name}");
    let begun = Instant::now();
    run().await;
    notes.finished.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    notes.write();
    eprintln!("faults: {name}: holds after {:.1} s", begun.elapsed().as_secs_f64());
}
