//! How far long work is: a bar on the terminal, nothing where there is none.

use indicatif::{ProgressBar, ProgressStyle};

/// One bar; it vanishes when dropped.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(super) fn new(what: String) -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{msg} [{wide_bar}] {percent}% {eta}") {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self { bar }
    }

    pub(super) fn update(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
