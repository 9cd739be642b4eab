//! What an ingester writes down of its cluster: the replica groups there are, in `<data-dir>/replica-groups`.
//!
//! Gossip forgets when the last process ends. Of a cluster that was stopped whole the first instance that comes back would know
//! its own group only, and whoever asks then would miss the series of the others without a word. So each ingester keeps what is
//! stored about groups (never about instances), and tells it before it meets anybody: a group nobody of which is there yet is
//! missed by its name. Registers have versions, so that an old note neither brings back a group that was removed nor changes
//! what is known better.
//!
//! ```text
//! "SKGR" | version u8 | cluster: length, bytes | each entry as it is gossiped: length, bytes | crc32c of all before, u32 BE
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skald_ring::codec::{Reader, put_bytes};
use skald_ring::store::message::MAX_NAME_LENGTH;
use skald_ring::value::MAX_ENTRY_LENGTH;
use skald_ring::{RingState, Store, Value};

use crate::runtime::Runtime;

const FILE: &str = "replica-groups";
const MAGIC: &[u8; 4] = b"SKGR";
const VERSION: u8 = 1;
/// Pause after a note that could not be written.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// The note of one ingester.
pub(super) struct Notes {
    path: PathBuf,
    cluster: String,
    runtime: Runtime,
}

impl Notes {
    /// The note in a data directory, and what it says.
    pub(super) fn open(runtime: &Runtime, data_dir: &Path, cluster: &str) -> (Self, RingState) {
        let path = data_dir.join(FILE);
        let known = match runtime.disk.read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => RingState::default(),
            Err(error) => unreadable(&path, &error.to_string()),
            Ok(bytes) => match decode(&bytes) {
                Err(why) => unreadable(&path, &why),
                Ok((of, _)) if of != cluster => {
                    tracing::warn!(path = %path.display(), of, cluster, "a note of another cluster's replica groups");
                    RingState::default()
                }
                Ok((_, known)) => known,
            },
        };
        (Self { path, cluster: cluster.to_owned(), runtime: runtime.clone() }, known)
    }

    /// Writes down every change, until dropped.
    pub(super) async fn keep(&self, store: &Arc<dyn Store<RingState>>) {
        let mut changes = store.watch();
        let mut kept = RingState::default();
        loop {
            let groups = changes.borrow_and_update().only_groups();
            if groups != kept {
                match self.write(&groups).await {
                    Ok(()) => kept = groups,
                    Err(error) => {
                        tracing::error!(path = %self.path.display(), %error, "replica groups cannot be written down");
                        self.runtime.clock.sleep(PAUSE_AFTER_FAILURE).await;
                        continue;
                    }
                }
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn write(&self, groups: &RingState) -> Result<(), String> {
        let bytes = encode(&self.cluster, groups);
        let (disk, path) = (self.runtime.disk.clone(), self.path.clone());
        let written = self.runtime.background_pool.run(move || {
            if let Some(dir) = path.parent() {
                disk.create_dir_all(dir)?;
            }
            disk.write_atomically(&path, &bytes)
        });
        written.await.map_err(|lost| lost.to_string())?.map_err(|error| error.to_string())
    }
}

/// A note that says nothing: the others of the cluster have theirs.
fn unreadable(path: &Path, why: &str) -> RingState {
    tracing::error!(
        path = %path.display(),
        why,
        "the note of replica groups is not readable; if no other ingester has one, groups nobody of which has come back are \
         not missed"
    );
    RingState::default()
}

fn encode(cluster: &str, groups: &RingState) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    put_bytes(&mut out, cluster.as_bytes());
    for key in groups.entries() {
        let mut entry = Vec::new();
        if groups.encode_entry(&key, &mut entry) {
            put_bytes(&mut out, &entry);
        }
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    out
}

/// Whose note it is, and what it says.
fn decode(bytes: &[u8]) -> Result<(String, RingState), String> {
    let (bytes, crc) = bytes.split_last_chunk::<4>().ok_or("it is too short")?;
    if u32::from_be_bytes(*crc) != crc32c::crc32c(bytes) {
        return Err("its checksum is wrong".to_owned());
    }
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is something else")?;
    let mut reader = Reader::new(rest);
    let version = reader.byte("version").map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("it has version {version}, this build knows {VERSION}"));
    }
    let cluster = reader.text("cluster", MAX_NAME_LENGTH).map_err(|error| error.to_string())?.to_owned();
    let mut groups = RingState::default();
    while !reader.is_empty() {
        let entry = reader.bytes("entry", MAX_ENTRY_LENGTH).map_err(|error| error.to_string())?;
        let entry = RingState::decode_entry(&mut Reader::new(entry)).map_err(|error| error.to_string())?;
        groups.merge(&entry.only_groups());
    }
    Ok((cluster, groups))
}

#[cfg(test)]
mod tests {
    use skald_ring::{GroupId, GroupMode, Replica};
    use skald_tsdb::disk::{Disk, MemDisk};

    use super::*;
    use crate::runtime::{ManualClock, MemNet, Pool, Rng};

    fn runtime(disk: &Arc<MemDisk>) -> Runtime {
        Runtime {
            clock: Arc::new(ManualClock::at(0)),
            rng: Arc::new(Rng::seeded(1)),
            disk: disk.clone(),
            net: Arc::new(MemNet::default()),
            gossip: Arc::new(crate::runtime::SocketGossip),
            bucket: None,
            ingest_pool: Pool::inline(),
            query_pool: Pool::inline(),
            background_pool: Pool::inline(),
        }
    }

    fn groups() -> RingState {
        let mut groups = RingState::default();
        for group in [0, 7, 1023] {
            groups.merge(&groups.form_group(GroupId(group), 1_800_000_000_000).unwrap());
        }
        groups.merge(&groups.set_group_mode(GroupId(7), GroupMode::Removed, 1_800_000_000_001).unwrap());
        groups
    }

    #[tokio::test]
    async fn what_is_known_of_groups_outlives_the_process() {
        let disk = Arc::new(MemDisk::default());
        let runtime = runtime(&disk);
        let open = |cluster| Notes::open(&runtime, Path::new("/data"), cluster);
        let (notes, known) = open("skald");
        assert_eq!(known, RingState::default());
        let store: Arc<dyn Store<RingState>> = Replica::alone().open("ring/ingester").unwrap();
        store.update(&groups());
        let written = async {
            while open("skald").1 != groups() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = notes.keep(&store) => {}
            () = written => {}
        }
        assert_eq!(open("another").1, RingState::default());
        let good = disk.read(Path::new("/data/replica-groups")).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(decode(&bad).is_err() && decode(&good[..at]).is_err(), "{at}");
        }
        disk.write_atomically(Path::new("/data/replica-groups"), &good[1..]).unwrap();
        assert_eq!(open("skald").1, RingState::default());
    }

    /// The format is read by later builds.
    #[test]
    fn bytes_are_stable() {
        let mut groups = RingState::default();
        groups.merge(&groups.form_group(GroupId(3), 5).unwrap());
        let expected = b"SKGR\x01\x05skald\x05\x04\x03\x01\x00\x0a";
        let bytes = encode("skald", &groups);
        assert_eq!(bytes[..bytes.len() - 4], *expected);
        assert_eq!(decode(&bytes), Ok(("skald".to_owned(), groups)));
    }
}
