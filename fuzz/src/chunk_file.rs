//! Any damage to files of closed chunks: each chunk comes back as it was put there, or as an error.

use std::path::Path;
use std::sync::Arc;

use skald_tsdb::chunk::Encoding;
use skald_tsdb::disk::{Disk, MemDisk};
use skald_tsdb::head::{ChunkFileOptions, ChunkFiles, NewChunk};
use skald_tsdb::wal::HeadId;

const DIR: &str = "/chunks";
const OPTIONS: ChunkFileOptions = ChunkFileOptions { file_bytes: 700, batch_bytes: 200, memory_budget: 1 << 20 };

/// Nothing, a changed byte, a cut, a leftover.
pub fn seeds() -> Vec<Vec<u8>> {
    let leftover = b"SKCH\x01\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
    vec![vec![], vec![0, 40, 0, 1], vec![1, 90, 0, 0], [&[2, 0, 0, 0][..], &leftover].concat()]
}

/// Input: steps of `what | position u16 | byte`, and a file that an earlier process left.
pub fn check(bytes: &[u8]) {
    let (steps, leftover) = bytes.split_at(bytes.len() / 8 * 4);
    let disk = MemDisk::default();
    disk.create_dir_all(Path::new(DIR)).expect("in memory");
    disk.create(&Path::new(DIR).join("000000")).and_then(|file| file.append(leftover)).expect("in memory");
    let Ok(files) = ChunkFiles::open(Arc::new(disk.clone()), Path::new(DIR), OPTIONS) else { return };
    files.upkeep();
    let put = |n: u8| {
        let data = vec![n; 2 + usize::from(n) * 9];
        let chunk =
            NewChunk { min_time: i64::from(n), max_time: i64::from(n) + 5, encoding: Encoding::Xor, data: &data };
        (files.put(HeadId(7), chunk), data)
    };
    let chunks: Vec<_> = (0..20).map(put).collect();
    files.sync().expect("in memory");
    for step in steps.as_chunks::<4>().0 {
        let [what, low, high, byte] = *step;
        let at = usize::from(u16::from_le_bytes([low, high]));
        let names = disk.list(Path::new(DIR)).expect("in memory");
        let Some(name) = names.get(usize::from(what >> 4) % names.len().max(1)) else { break };
        let file = disk.open_writable(&Path::new(DIR).join(&name.name)).expect("it is there");
        let mut content = disk.read(&Path::new(DIR).join(&name.name)).expect("it is there");
        match what & 3 {
            0 => content.get_mut(at).into_iter().for_each(|old| *old ^= byte),
            1 => content.truncate(at),
            2 => content.iter_mut().skip(at).take(usize::from(byte)).for_each(|old| *old = 0),
            _ => content.extend_from_slice(&[byte; 50]),
        }
        file.truncate(0).and_then(|()| file.append(&content)).expect("in memory");
    }
    let stored: Vec<_> = chunks.iter().map(|(stored, _)| *stored).collect();
    for (read, (stored, data)) in files.read_all(HeadId(7), &stored).into_iter().zip(&chunks) {
        assert!(read.is_err() || read.is_ok_and(|read| read == *data), "{stored:?}");
        assert!(files.read(HeadId(8), stored).is_err(), "another head's");
    }
}
