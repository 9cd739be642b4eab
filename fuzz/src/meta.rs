//! Any bytes as a block's `meta.json` or tombstones: what is read is written back the same.

use skald_model::{BlockRange, QueryRange};
use skald_tsdb::block::{BlockMeta, Tombstones};

use crate::{block, choice, chosen, reseal};

const META: u8 = 0;
const TOMBSTONES: u8 = 1;
const SEALED_TOMBSTONES: u8 = 2;

/// One of each.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut tombstones = Tombstones::default();
    tombstones.delete(7, QueryRange { min: -5, max: 1000 });
    tombstones.delete(7, QueryRange { min: 2000, max: i64::MAX });
    tombstones.delete(900, QueryRange { min: i64::MIN, max: 3 });
    let tombstones = tombstones.encode();
    vec![chosen(META, &block::files().meta), chosen(TOMBSTONES, &tombstones), chosen(SEALED_TOMBSTONES, &tombstones)]
}

/// Reads the bytes.
pub fn check(bytes: &[u8]) {
    let (choice, bytes) = choice(bytes);
    if choice == META {
        let Ok(meta) = BlockMeta::parse(bytes) else { return };
        let BlockRange { min, max } = meta.range();
        assert!(min < max, "{meta:?}");
        assert_eq!(BlockMeta::parse(&meta.to_json()).expect("what we wrote"), meta);
        return;
    }
    let mut bytes = bytes.to_vec();
    if choice == SEALED_TOMBSTONES {
        reseal::tombstones(&mut bytes);
    }
    let Ok(tombstones) = Tombstones::parse(&bytes) else { return };
    assert!(tombstones.len() <= bytes.len());
    assert_eq!(Tombstones::parse(&tombstones.encode()).expect("what we wrote"), tombstones);
}
