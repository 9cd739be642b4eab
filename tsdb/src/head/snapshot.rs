//! What heads write into a snapshot, in pieces of about 60 KiB.
//!
//! Closed chunks stay where they lie: a piece has their addresses and checksums, and the chunk files are pinned from then
//! on for as long as the snapshot is kept. They are synced before it counts. Only chunks in a file whose fsync has failed
//! are copied.
//!
//! A piece is copied under the lock of its page, and says up to which position of the log it holds everything: that is
//! read while the appender's lock is held too, when all that this head has logged is stored. So a page's pieces may be
//! of different moments, series may come and go in between, and replay still takes every sample exactly once.
//!
//! `FORMAT.md` in [`crate::wal`] has the layouts; [`super::replay`] reads them.

use std::ops::Bound;
use std::sync::Arc;

use hashbrown::HashMap;
use skald_model::TimestampMs;
use skald_model::varint::{put_uvarint, put_varint};

use super::chunk_files::{ChunkFiles, Pin};
use super::select::Pinned;
use super::symbols::Symbol;
use super::{Head, locate};
use crate::wal::{FrameKind, Held, Position, Snapshot, SnapshotWriter, Wal, WalBatch, WalError};

/// Payload bytes at which a piece ends: what one damaged bit can cost. In tests a series is a piece, so that much can
/// happen between pieces.
const PIECE_BYTES: usize = if cfg!(test) { 1 } else { 56 << 10 };

/// How far the writing of a head has got.
#[derive(Debug, Default)]
pub struct SnapshotProgress(Stage);

#[derive(Debug, Default, Clone)]
enum Stage {
    #[default]
    Begin,
    Series {
        page: usize,
        index: usize,
    },
    Exemplars,
    Metadata {
        after: Option<String>,
    },
    Done,
}

/// A snapshot of heads being written. Dropping it gives it up.
pub struct HeadsSnapshot {
    writer: SnapshotWriter,
    /// Keeps the chunk files it refers to.
    pin: Pin,
}

impl HeadsSnapshot {
    /// Begins one: heads that come later have logged nothing before.
    pub fn begin(wal: &Wal, chunk_files: &Arc<ChunkFiles>) -> Result<Self, WalError> {
        Ok(Self { writer: wal.begin_snapshot()?, pin: chunk_files.pin() })
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.writer.bytes()
    }

    /// Makes what it refers to survive a power cut, then itself; from here on it counts.
    pub fn finish(self, wal: &Wal) -> Result<Snapshot, WalError> {
        self.pin.sync()?;
        let files: Vec<u32> = self.pin.files().collect();
        wal.finish_snapshot(self.writer, &files, Box::new(self.pin))
    }
}

impl Head {
    /// Writes pieces of the head until about `bytes` are written; `true` when all of it is.
    pub fn write_snapshot(
        &self,
        wal: &Wal,
        snapshot: &mut HeadsSnapshot,
        progress: &mut SnapshotProgress,
        bytes: u64,
    ) -> Result<bool, WalError> {
        let HeadsSnapshot { writer, pin } = snapshot;
        let end = writer.bytes().saturating_add(bytes);
        while writer.bytes() < end {
            progress.0 = match progress.0.clone() {
                Stage::Begin => Stage::Series { page: 0, index: 0 },
                Stage::Series { page, index } => self.write_series(wal, writer, pin, page, index)?,
                Stage::Exemplars => self.write_exemplars(wal, writer)?,
                Stage::Metadata { after } => self.write_metadata(writer, after.as_deref())?,
                Stage::Done => return Ok(true),
            };
        }
        Ok(matches!(progress.0, Stage::Done))
    }

    fn write_series(
        &self,
        wal: &Wal,
        writer: &mut SnapshotWriter,
        pin: &mut Pin,
        page_number: usize,
        from: usize,
    ) -> Result<Stage, WalError> {
        let appender = self.appender.lock();
        let Some(page) = appender.pages.get(page_number).cloned() else { return Ok(Stage::Exemplars) };
        let index = self.index.read();
        let page = page.read();
        let position = wal.position();
        drop(appender);
        let mut names = Dictionary::default();
        let (mut series, mut pairs, mut held) = (Vec::new(), Vec::new(), Held::NOTHING);
        let mut next = None;
        for at in page.alive().skip_while(|at| *at < from) {
            if series.len() + names.bytes.len() >= PIECE_BYTES {
                next = Some(at);
                break;
            }
            pairs.clear();
            page.labels(at, &mut pairs);
            put_uvarint(&mut series, pairs.len() as u64);
            for (name, value) in &pairs {
                for symbol in [*name, *value] {
                    put_uvarint(&mut series, names.number(symbol, || index.symbols.text(symbol)));
                }
            }
            if !page.put_series(at, self.rules(TimestampMs::MIN), pin, &mut series, &mut held) {
                // The log has what the snapshot would lack.
                return Err(std::io::Error::other("a closed chunk cannot be read").into());
            }
        }
        drop((page, index));
        if !series.is_empty() {
            let mut payload = Vec::with_capacity(series.len() + names.bytes.len() + 24);
            put_position(&mut payload, position);
            put_uvarint(&mut payload, names.bytes.len() as u64);
            payload.extend_from_slice(&names.bytes);
            payload.extend_from_slice(&series);
            writer.record(FrameKind::SnapshotSeries, self.id, &payload, held)?;
        }
        Ok(match next {
            Some(index) => Stage::Series { page: page_number, index },
            None => Stage::Series { page: page_number + 1, index: 0 },
        })
    }

    /// All of them at once: they are a bounded number.
    fn write_exemplars(&self, wal: &Wal, writer: &mut SnapshotWriter) -> Result<Stage, WalError> {
        // Pinned, so that no slot changes its series; those that are gone have no labels.
        let _pinned = Pinned::new(self);
        let (position, exemplars) = {
            let appender = self.appender.lock();
            let store = self.exemplars.lock();
            let position = wal.position();
            drop(appender);
            (position, store.in_order_of_arrival())
        };
        let (mut payload, mut pairs, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        let mut exemplars = exemplars.into_iter().peekable();
        while let Some((slot, exemplar)) = exemplars.next() {
            if payload.is_empty() {
                put_position(&mut payload, position);
            }
            let (number, at) = locate(slot);
            pairs.clear();
            labels.clear();
            {
                let index = self.index.read();
                if let Some(page) = self.pages.read().get(number).cloned() {
                    page.read().labels(at, &mut pairs);
                }
                index.label_bytes(&pairs, &mut labels);
            }
            if !pairs.is_empty() {
                put_bytes(&mut payload, &labels);
                put_varint(&mut payload, exemplar.timestamp);
                payload.extend_from_slice(&exemplar.value.to_bits().to_le_bytes());
                put_bytes(&mut payload, exemplar.labels.as_bytes());
            }
            if payload.len() >= PIECE_BYTES || exemplars.peek().is_none() {
                writer.record(FrameKind::SnapshotExemplars, self.id, &payload, Held::NOTHING)?;
                payload.clear();
            }
        }
        Ok(Stage::Metadata { after: None })
    }

    fn write_metadata(&self, writer: &mut SnapshotWriter, after: Option<&str>) -> Result<Stage, WalError> {
        let mut payload = Vec::new();
        let last = {
            let store = self.metadata.lock();
            let from = after.map_or(Bound::Unbounded, Bound::Excluded);
            let mut last = None;
            for (metric, descriptions) in store.after(from) {
                descriptions.iter().for_each(|one| WalBatch::put_metadata(&mut payload, one));
                last = Some(metric.clone());
                if payload.len() >= PIECE_BYTES {
                    break;
                }
            }
            last
        };
        let Some(last) = last else { return Ok(Stage::Done) };
        writer.record(FrameKind::Metadata, self.id, &payload, Held::NOTHING)?;
        Ok(Stage::Metadata { after: Some(last) })
    }
}

/// The label names and values of a piece, each once.
#[derive(Default)]
struct Dictionary {
    numbers: HashMap<Symbol, u64, foldhash::fast::FixedState>,
    bytes: Vec<u8>,
}

impl Dictionary {
    fn number<'a>(&mut self, symbol: Symbol, text: impl FnOnce() -> &'a str) -> u64 {
        let next = self.numbers.len() as u64;
        let bytes = &mut self.bytes;
        *self.numbers.entry(symbol).or_insert_with(|| {
            put_bytes(bytes, text().as_bytes());
            next
        })
    }
}

fn put_position(out: &mut Vec<u8>, position: Position) {
    put_uvarint(out, position.segment.0);
    put_uvarint(out, position.offset);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_uvarint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
