//! A progress bar for work that takes long: on a terminal only, and never with JSON.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over so many bytes; gone when it is dropped.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar named `what` over `total` bytes.
    #[must_use]
    pub fn new(what: &'static str, total: u64, quiet: bool) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(total).with_message(what);
        let style = ProgressStyle::with_template(
            "{msg:>6} [{bar:40}] {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
        );
        Self(style.map_or(ProgressBar::hidden(), |style| bar.with_style(style.progress_chars("=> "))))
    }

    /// So many bytes are done.
    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
