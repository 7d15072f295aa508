//! What people see while engines are installed and started: bars on a terminal, plain lines elsewhere, on standard error.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Where progress goes.
#[derive(Clone, Debug)]
pub enum Progress {
    /// Nowhere.
    Quiet,
    /// One line per event.
    Lines,
    /// Bars that move.
    Bars(MultiProgress),
}

impl Progress {
    /// Bars if standard error is a terminal, lines otherwise.
    pub fn detect() -> Self {
        if std::io::stderr().is_terminal() { Self::Bars(MultiProgress::new()) } else { Self::Lines }
    }

    /// Tells one thing.
    pub fn say(&self, text: &str) {
        match self {
            Self::Quiet => {}
            Self::Lines => write_line(text),
            Self::Bars(bars) => {
                if bars.println(text).is_err() {
                    write_line(text);
                }
            }
        }
    }

    /// Begins something that takes a while. With a number of bytes it has a bar, without one it only turns.
    pub(super) fn task(&self, text: &str, bytes: Option<u64>) -> Task {
        let bar = match self {
            Self::Quiet => None,
            Self::Lines => {
                write_line(text);
                None
            }
            Self::Bars(bars) => Some(bars.add(new_bar(text, bytes))),
        };
        Task { bar, progress: self.clone() }
    }
}

fn new_bar(text: &str, bytes: Option<u64>) -> ProgressBar {
    let template = if bytes.is_some() {
        "{spinner} {msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {elapsed}"
    } else {
        "{spinner} {msg} {elapsed}"
    };
    let bar = bytes.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(text.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn write_line(text: &str) {
    // Nobody can be told that standard error is gone.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Something under way.
#[derive(Debug)]
pub(super) struct Task {
    bar: Option<ProgressBar>,
    progress: Progress,
}

impl Task {
    /// So many bytes are there.
    pub(super) fn at(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bar.length().map_or(bytes, |length| bytes.min(length)));
        }
    }

    /// It has come to its end.
    pub(super) fn done(self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.progress.say(text);
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
