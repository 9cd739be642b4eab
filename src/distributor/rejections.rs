//! What a write's bad parts are counted by, and told to its sender.

use std::borrow::Cow;
use std::fmt::Write;

use skald_proto::remote_write::SeriesSize;

use crate::error::{ErrorKind, ServiceError};
use crate::ingester::client::{RejectedKind, Rejection};

/// Longest part of a series' labels in a message.
const MAX_SHOWN_BYTES: usize = 512;

/// Bad parts of one write, one entry per kind and reason in the order of first occurrence.
#[derive(Debug, Default)]
pub(super) struct Rejections {
    entries: Vec<Rejection>,
    /// Native histograms that the tenant's limits say to drop without a word.
    pub(super) dropped_histograms: u64,
}

impl Rejections {
    /// Counts `count` parts; `message` is asked for only when it is the reason's first.
    pub(super) fn add(
        &mut self,
        kind: RejectedKind,
        reason: &'static str,
        count: usize,
        message: impl FnOnce() -> String,
    ) {
        if count == 0 {
            return;
        }
        match self.entries.iter_mut().find(|entry| entry.kind == kind && entry.reason == reason) {
            Some(entry) => entry.count += count as u64,
            None => {
                let reason = Cow::Borrowed(reason);
                self.entries.push(Rejection { kind, reason, count: count as u64, message: message() });
            }
        }
    }

    /// Adds what others refused.
    pub(super) fn extend(&mut self, others: impl IntoIterator<Item = Rejection>) {
        for other in others {
            match self.entries.iter_mut().find(|e| e.kind == other.kind && e.reason == other.reason) {
                Some(entry) => entry.count += other.count,
                None => self.entries.push(other),
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Rejection> {
        self.entries.iter()
    }

    /// The error a write with these rejections is answered with: the first refused sample's. Exemplars and metadata are
    /// only counted: no sender could do better about them than to drop what it cannot drop again.
    pub(super) fn error(&self) -> Option<ServiceError> {
        let first = self.entries.iter().find(|entry| entry.kind == RejectedKind::Sample)?;
        Some(ServiceError::new(ErrorKind::BadData, first.reason.clone(), first.message.clone()))
    }
}

/// What was left out of a write on purpose: its sender has nothing to repair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Float and histogram samples.
    pub(super) samples: u64,
    /// Histograms among them.
    pub(super) histograms: u64,
    /// Exemplars.
    pub(super) exemplars: u64,
}

impl LeftOut {
    /// Adds a series.
    pub(super) fn add(&mut self, series: SeriesSize) {
        self.samples += (series.samples + series.histograms) as u64;
        self.histograms += series.histograms as u64;
        self.exemplars += series.exemplars as u64;
    }

    /// Whether nothing was.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Text for a message: cut where it is long, and not written any further.
pub(super) fn shown(text: impl std::fmt::Display) -> String {
    let mut cut = Cut(String::new());
    if write!(cut, "{text}").is_err() {
        cut.0.push('…');
    }
    cut.0
}

/// Takes so many bytes and then fails.
struct Cut(String);

impl std::fmt::Write for Cut {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = MAX_SHOWN_BYTES - self.0.len();
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        self.0.push_str(&text[..text.floor_char_boundary(room)]);
        Err(std::fmt::Error)
    }
}
