//! A head with its log on a disk in memory, and how it is killed and started again.

use super::*;

/// A head with its log on a disk in memory.
pub(in crate::head) struct Rig {
    pub(in crate::head) disk: MemDisk,
    pub(in crate::head) wal: Wal,
    pub(in crate::head) files: Arc<ChunkFiles>,
    pub(in crate::head) head: Arc<Head>,
    pub(super) options: HeadOptions,
    /// The snapshot being written.
    pub(super) snapshot: Option<(HeadsSnapshot, SnapshotProgress)>,
}

/// Chunk files of the log's disk whose batches are hardly larger than a chunk.
pub(in crate::head) fn open_chunk_files(disk: &MemDisk) -> Arc<ChunkFiles> {
    let options = ChunkFileOptions { file_bytes: 1 << 12, batch_bytes: 150, memory_budget: 1 << 20 };
    Arc::new(ChunkFiles::open(Arc::new(disk.clone()), Path::new("/chunks"), options).unwrap())
}

/// Three threads.
struct Threads;

impl Workers for Threads {
    fn for_each(&self, count: usize, job: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let numbers = || std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < count));
        std::thread::scope(|scope| {
            (0..3.min(count)).for_each(|_| drop(scope.spawn(|| numbers().for_each(job))));
        });
    }

    fn alongside(&self, beside: &mut (dyn FnMut() + Send), work: &mut dyn FnMut()) {
        std::thread::scope(|scope| {
            scope.spawn(beside);
            work();
        });
    }
}

/// Replays one record after the other, in the order of the log.
struct OneByOne<R>(R);

impl<R: Replay> Replay for OneByOne<R> {
    fn segment(&mut self, segment: SegmentId) {
        self.0.segment(segment);
    }

    fn keep_files(&mut self, of_snapshots: &[Option<Vec<u32>>]) -> Vec<Keep> {
        self.0.keep_files(of_snapshots)
    }

    fn stretch(&mut self, replayed: Vec<Replayed<'_>>, _: &dyn Workers) -> Missed {
        let mut missed = Missed::default();
        replayed.into_iter().for_each(|one| missed += self.0.stretch(vec![one], &Alone));
        missed
    }
}

fn copy(disk: &MemDisk) -> MemDisk {
    let (from, to) = (disk, MemDisk::default());
    for dir in [Path::new("/wal"), Path::new("/chunks")].into_iter().filter(|dir| from.exists(dir)) {
        to.create_dir_all(dir).unwrap();
        for entry in from.list(dir).unwrap() {
            let path = dir.join(entry.name);
            to.create(&path).unwrap().append(&from.read(&path).unwrap()).unwrap();
        }
    }
    to
}

/// What a process finds at its start.
pub(super) struct Opened {
    pub(super) wal: Wal,
    pub(super) files: Arc<ChunkFiles>,
    pub(super) head: Option<Arc<Head>>,
    pub(super) report: RecoveryReport,
    pub(super) lost: LostChunks,
}

/// Opens the log as a process does, after checking that replaying it record by record gives the same.
pub(super) fn open(disk: &MemDisk, options: HeadOptions, segment_bytes: u64) -> Opened {
    let make = |files: &Arc<ChunkFiles>| {
        let files = files.clone();
        move |id, _: &HeadState| Arc::new(Head::new(id, options, files.clone()))
    };
    let wal_options = WalOptions { segment_bytes, compress: true };
    let path = Path::new("/wal");
    // Opening frees segments: each way of replaying gets a disk of its own.
    let twin = copy(disk);
    let files = open_chunk_files(&twin);
    let mut replay = OneByOne(ReplayHeads::new(files.clone(), make(&files)));
    let _twin = Wal::open(Arc::new(twin), path, wal_options.clone(), &mut replay, &Alone).unwrap();
    let (expected, lost_one_by_one) = replay.0.finish(&Alone);
    let files = open_chunk_files(disk);
    let mut replay = ReplayHeads::new(files.clone(), make(&files));
    let (wal, report) = Wal::open(Arc::new(disk.clone()), path, wal_options, &mut replay, &Threads).unwrap();
    let (mut heads, lost) = replay.finish(&Threads);
    let all = |heads: &BTreeMap<HeadId, Arc<Head>>| -> Vec<_> {
        // Not chunk by chunk: where late samples fill what is damaged, it depends on what comes at a time.
        let samples = |head: &Arc<Head>| contents(head, &[], QueryRange::ALL);
        let state = |head: &Arc<Head>| (head.id(), head.time_range(), head.boundary(), head.stats().exemplars);
        heads.values().map(|head| (state(head), samples(head))).collect()
    };
    for (found, expected) in all(&heads).iter().zip(&all(&expected)) {
        assert_eq!(found, expected);
    }
    assert_eq!(heads.len(), expected.len());
    let counts = |lost: &BTreeMap<HeadId, LostChunks>| -> Vec<_> {
        lost.values().map(|lost| (lost.chunks, lost.series, lost.samples, lost.times)).collect()
    };
    assert_eq!(counts(&lost), counts(&lost_one_by_one));
    let head = heads.pop_first().map(|(_, head)| head);
    Opened { wal, files, head, report, lost: lost.into_values().next().unwrap_or_default() }
}

impl Rig {
    pub(in crate::head) fn new(options: HeadOptions) -> Self {
        Self::with_segments(options, 1 << 20)
    }

    pub(in crate::head) fn with_segments(options: HeadOptions, segment_bytes: u64) -> Self {
        let disk = MemDisk::default();
        let Opened { wal, files, .. } = open(&disk, options, segment_bytes);
        let head = Arc::new(Head::new(wal.define_head(b"t").unwrap(), options, files.clone()));
        Self { disk, wal, files, head, options, snapshot: None }
    }

    /// Writes so many pieces of a snapshot, beginning one if need be; `true` once it is complete.
    pub(in crate::head) fn snapshot(&mut self, pieces: usize) -> bool {
        let begin = || (HeadsSnapshot::begin(&self.wal, &self.files).unwrap(), SnapshotProgress::default());
        let (mut writer, mut progress) = self.snapshot.take().unwrap_or_else(begin);
        for _ in 0..pieces {
            if self.head.write_snapshot(&self.wal, &mut writer, &mut progress, 1).unwrap() {
                writer.finish(&self.wal).unwrap();
                return true;
            }
        }
        self.snapshot = Some((writer, progress));
        false
    }

    /// The same on a disk that may be full: it is given up then.
    pub(in crate::head) fn try_snapshot(&mut self, pieces: usize) {
        let begun = match self.snapshot.take() {
            Some(begun) => Ok(begun),
            None => HeadsSnapshot::begin(&self.wal, &self.files).map(|begun| (begun, SnapshotProgress::default())),
        };
        let Ok((mut writer, mut progress)) = begun else { return };
        for _ in 0..pieces {
            match self.head.write_snapshot(&self.wal, &mut writer, &mut progress, 1) {
                Ok(false) => {}
                Ok(true) => {
                    let _ = writer.finish(&self.wal);
                    return;
                }
                Err(_) => return,
            }
        }
        self.snapshot = Some((writer, progress));
    }

    /// A process that is killed removes nothing.
    pub(in crate::head) fn kill(&mut self) {
        std::mem::forget(self.snapshot.take());
    }

    /// Opens what is on the disk now.
    pub(in crate::head) fn reopen(&mut self) -> (RecoveryReport, LostChunks, Option<Arc<Head>>) {
        let Opened { wal, files, head, report, lost } = open(&self.disk, self.options, 2000);
        (self.wal, self.files) = (wal, files);
        (report, lost, head)
    }

    /// Kills the process and starts another one on what the log holds.
    pub(super) fn restart(&mut self) {
        self.kill();
        let (report, lost, head) = self.reopen();
        assert!(!report.lost_something() && report.torn_tails.is_empty(), "{report:?}");
        assert_eq!(lost, LostChunks::default());
        self.head = head.unwrap();
    }

    pub(super) fn flip_a_bit(&self, name: &str, at: usize) {
        let path = Path::new("/wal").join(name);
        let mut bytes = self.disk.read(&path).unwrap();
        let at = at % (bytes.len() * 8);
        bytes[at / 8] ^= 1 << (at % 8);
        self.disk.create(&path).unwrap().append(&bytes).unwrap();
    }

    pub(in crate::head) fn restart_after_damage(&mut self) {
        self.kill();
        self.head = self.reopen().2.unwrap();
    }

    pub(in crate::head) fn append(
        &self,
        batch: &[(&Labels, &[TimedSample])],
        limits: &AppendLimits,
    ) -> Result<Appended, AppendError> {
        append(&self.head, &self.wal, batch, limits)
    }

    pub(in crate::head) fn floats(&self, labels: &Labels, samples: &[(TimestampMs, f64)]) -> Appended {
        let samples: Vec<TimedSample> = samples.iter().map(|(t, v)| float(*t, *v)).collect();
        self.append(&[(labels, &samples)], &limits()).unwrap()
    }

    pub(in crate::head) fn contents(&self) -> Contents {
        contents(&self.head, &[], QueryRange::ALL)
    }

    /// Cuts up to `up_to`; returns what the blocks hold.
    pub(in crate::head) fn cut(&self, up_to: TimestampMs) -> Contents {
        let cut = self.head.begin_cut(&self.wal, up_to).unwrap();
        let blocks = self.write_blocks(cut);
        assert_eq!(self.head.finish_cut(&self.wal, cut).unwrap(), Dropped::Done);
        blocks
    }

    pub(super) fn write_blocks(&self, cut: Cut) -> Contents {
        let mut blocks = Contents::new();
        for range in self.head.cut_ranges(cut) {
            let mut previous: Option<Labels> = None;
            let mut announced = Vec::new();
            self.head
                .cut_labels(cut, range, |labels, extent| {
                    announced.push((labels.clone(), extent));
                    Ok::<_, ()>(())
                })
                .unwrap();
            let lost = self
                .head
                .cut_series(cut, range, |labels, chunks| {
                    let (_, extent) = announced.iter().find(|(announced, _)| announced == labels).unwrap();
                    let CutExtent { times, chunks: count } = *extent;
                    assert!(count > 0);
                    assert!(chunks.iter().all(|c| times.min <= c.min_time && c.max_time <= times.max));
                    assert!(previous.as_ref().is_none_or(|previous| previous < labels), "series out of order");
                    previous = Some(labels.clone());
                    check_block_chunks(range, chunks);
                    for chunk in chunks {
                        add(blocks.entry(labels.clone()).or_default(), chunk, "in two blocks");
                    }
                    Ok::<_, ()>(())
                })
                .unwrap();
            assert_eq!(lost, LostChunks::default());
        }
        blocks
    }
}
