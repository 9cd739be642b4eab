//! Random choices from one seed.

use skald::runtime::Rng;

/// A seeded source of choices.
pub struct Chance {
    rng: Rng,
}

impl Chance {
    pub fn seeded(seed: u64) -> Chance {
        Chance { rng: Rng::seeded(seed) }
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&self, limit: usize) -> usize {
        (self.rng.next_u64() % limit as u64) as usize
    }

    /// A number of `low..=high`.
    pub fn between(&self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as usize) as i64
    }

    /// A number of `low..high`, with all its digits.
    pub fn real(&self, low: f64, high: f64) -> f64 {
        low + (high - low) * ((self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// True once in `n` times.
    pub fn one_in(&self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Some of them, in order; perhaps none.
    pub fn some<T: Copy>(&self, from: &[T]) -> Vec<T> {
        from.iter().copied().filter(|_| self.one_in(2)).collect()
    }
}
