//! Whether this member has everything it ever acknowledged, across restarts: `<data-dir>/repair.json`.
//!
//! What the log lost shows once, at the start that reads it; the next start finds a log in good order. So it is written
//! down before anything else is, and stays until the others' samples are here and synced.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skald_tsdb::disk::Disk;

use super::super::SyncPolicy;

/// Version of the file.
const VERSION: u32 = 1;

/// Another one after every start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What a start knows of the log it has read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::ingester) struct LogFound {
    /// There is none at all, nor a snapshot.
    pub(in crate::ingester) nothing: bool,
    /// Something that was acknowledged is known to be gone.
    pub(in crate::ingester) lost: bool,
    /// The end was cut off: an append that a crash interrupted, or more.
    pub(in crate::ingester) torn: bool,
}

/// What this member has of what it acknowledged.
#[derive(Debug, Clone)]
pub(in crate::ingester) struct History {
    path: PathBuf,
    /// Why something may be missing; `None` when nothing is.
    gap: Option<String>,
    boot: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    /// Why something acknowledged may be missing.
    gap: Option<String>,
    /// Which start of the machine wrote it.
    boot: Option<String>,
    /// Whether the log was synced and closed since.
    closed: bool,
}

impl History {
    /// Reads the note of the life before, judges, and writes it anew.
    pub(in crate::ingester) fn open(disk: &dyn Disk, data_dir: &Path, sync: SyncPolicy, log: &LogFound) -> Self {
        let path = data_dir.join("repair.json");
        let boot = disk.read(Path::new(BOOT_ID)).ok();
        let boot = boot.and_then(|bytes| Some(String::from_utf8(bytes).ok()?.trim().to_owned()));
        let former = match disk.read(&path) {
            Ok(bytes) => Some(serde_json::from_slice::<File>(&bytes).map_err(|error| error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(Err(error.to_string())),
        };
        let gap = gap(former, boot.as_deref(), sync, log);
        let history = Self { path, gap, boot };
        history.save(disk, false);
        history
    }

    /// Whether everything that was ever acknowledged is here.
    pub(in crate::ingester) fn is_intact(&self) -> bool {
        self.gap.is_none()
    }

    /// Why something may be missing.
    pub(in crate::ingester) fn gap(&self) -> Option<&str> {
        self.gap.as_deref()
    }

    /// The others' samples are here, and synced.
    pub(in crate::ingester) fn filled(&mut self, disk: &dyn Disk) {
        if self.gap.take().is_some() {
            self.save(disk, false);
        }
    }

    /// The log is synced, and nothing more will be written to it.
    pub(in crate::ingester) fn closed(&self, disk: &dyn Disk) {
        self.save(disk, true);
    }

    fn save(&self, disk: &dyn Disk, closed: bool) {
        let file = File { version: VERSION, gap: self.gap.clone(), boot: self.boot.clone(), closed };
        let saved = serde_json::to_vec(&file).map_err(io::Error::from);
        if let Err(error) = saved.and_then(|bytes| disk.write_atomically(&self.path, &bytes)) {
            // On a full disk nothing can be acknowledged either, so nothing more can be lost.
            tracing::error!(path = %self.path.display(), %error, "the state of repair cannot be written down");
        }
    }
}

/// Why something acknowledged may be missing.
fn gap(former: Option<Result<File, String>>, boot: Option<&str>, sync: SyncPolicy, log: &LogFound) -> Option<String> {
    let former = match former {
        None if log.nothing => return Some("it starts with an empty data directory".to_owned()),
        // A log from before there were such notes.
        None => None,
        Some(Ok(file)) if file.version == VERSION => Some(file),
        Some(Ok(file)) => return Some(format!("repair.json has the unknown version {}", file.version)),
        Some(Err(error)) => return Some(format!("repair.json cannot be read: {error}")),
    };
    if let Some(gap) = former.as_ref().and_then(|former| former.gap.clone()) {
        return Some(gap);
    }
    if log.nothing {
        return Some("its write-ahead log is missing".to_owned());
    }
    if log.lost {
        return Some("its write-ahead log was damaged".to_owned());
    }
    if log.torn {
        return Some("the end of its write-ahead log was cut off".to_owned());
    }
    let power_cut = former.is_some_and(|former| {
        !former.closed && former.boot.is_some() && boot.is_some() && former.boot.as_deref() != boot
    });
    if power_cut && sync == SyncPolicy::Interval {
        return Some("the machine went down before its write-ahead log was synced".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use skald_tsdb::disk::MemDisk;

    use super::*;

    const GOOD: LogFound = LogFound { nothing: false, lost: false, torn: false };

    fn boot(disk: &MemDisk, id: &str) {
        disk.create_dir_all(Path::new("/proc/sys/kernel/random")).unwrap();
        disk.write_atomically(Path::new(BOOT_ID), id.as_bytes()).unwrap();
    }

    fn open(disk: &MemDisk, log: LogFound) -> History {
        disk.create_dir_all(Path::new("/data")).unwrap();
        History::open(disk, Path::new("/data"), SyncPolicy::Interval, &log)
    }

    #[track_caller]
    fn check(disk: &MemDisk, log: LogFound, expected: Option<&str>) {
        let history = open(disk, log);
        assert_eq!(history.gap().is_some(), expected.is_some(), "{:?}", history.gap());
        assert!(history.gap().unwrap_or_default().contains(expected.unwrap_or_default()), "{:?}", history.gap());
    }

    #[test]
    fn a_gap_stays_until_it_is_filled() {
        let disk = MemDisk::default();
        check(&disk, LogFound { nothing: true, ..GOOD }, Some("empty"));
        // The next start finds a log, and knows nevertheless.
        check(&disk, GOOD, Some("empty"));
        open(&disk, GOOD).filled(&disk);
        check(&disk, GOOD, None);
        for log in [LogFound { lost: true, ..GOOD }, LogFound { torn: true, ..GOOD }] {
            check(&disk, log, Some("write-ahead log"));
            check(&disk, GOOD, Some("write-ahead log"));
            open(&disk, GOOD).filled(&disk);
        }
        check(&disk, LogFound { nothing: true, ..GOOD }, Some("missing"));
        open(&disk, GOOD).filled(&disk);
        disk.write_atomically(Path::new("/data/repair.json"), b"{").unwrap();
        check(&disk, GOOD, Some("cannot be read"));
    }

    #[test]
    fn a_log_from_before_there_were_notes_counts() {
        check(&MemDisk::default(), GOOD, None);
    }

    #[test]
    fn a_machine_that_went_down_may_have_lost_what_was_not_synced() {
        let disk = MemDisk::default();
        boot(&disk, "one\n");
        check(&disk, GOOD, None);
        check(&disk, GOOD, None);
        // Closed in good order.
        open(&disk, GOOD).closed(&disk);
        boot(&disk, "two\n");
        check(&disk, GOOD, None);
        boot(&disk, "three\n");
        let every_batch = gap(
            Some(Ok(File { version: VERSION, gap: None, boot: Some("two".into()), closed: false })),
            Some("three"),
            SyncPolicy::EveryBatch,
            &GOOD,
        );
        assert_eq!(every_batch, None);
        check(&disk, GOOD, Some("machine went down"));
        check(&disk, GOOD, Some("machine went down"));
    }
}
