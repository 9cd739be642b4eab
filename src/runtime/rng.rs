//! Randomness: one generator per process, seeded once.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// A SplitMix64 generator. Good for jitter and identifiers, not for secrets.
#[derive(Debug)]
pub struct Rng {
    state: AtomicU64,
}

impl Rng {
    /// A generator whose sequence is decided by `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self { state: AtomicU64::new(seed) }
    }

    /// A generator seeded by the operating system.
    pub fn from_os() -> Self {
        Self::seeded(RandomState::new().build_hasher().finish())
    }

    /// The next 64 random bits.
    pub fn next_u64(&self) -> u64 {
        let mut z = self.state.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A new block identifier for a block created at `now_ms`.
    pub fn ulid(&self, now_ms: i64) -> ulid::Ulid {
        let random = (u128::from(self.next_u64()) << 64) | u128::from(self.next_u64());
        ulid::Ulid::from_parts(now_ms.max(0) as u64, random)
    }
}
