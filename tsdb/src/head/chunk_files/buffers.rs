//! Buffers that chunks are read into, used again and again.
//!
//! A large buffer made anew costs the kernel a page at a time, and filling it with zeros before the disk fills it. Chunks that
//! were read are slices of a buffer, which comes back when the last of them goes.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// What is smaller comes from the allocator, which is as quick.
const SMALLEST: usize = 16 << 10;
/// Most bytes kept for later reads.
const MOST_KEPT: usize = 8 << 20;

/// Buffers nobody uses.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// A buffer in use; its contents are `buffer[..len]`.
struct Used {
    buffer: Vec<u8>,
    len: usize,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Used {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.buffer));
    }
}

impl Buffers {
    /// Bytes that `fill` writes into a buffer of this length, whose contents may be anything before.
    pub(super) fn fill<E>(
        self: &Arc<Self>,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        if len < SMALLEST {
            let mut buffer = vec![0; len];
            fill(&mut buffer)?;
            return Ok(Bytes::from(buffer));
        }
        // One of them fits the next reads as well.
        let buffer = self.take(len).unwrap_or_else(|| vec![0; len.next_power_of_two()]);
        let mut used = Used { buffer, len, home: self.clone() };
        fill(&mut used.buffer[..len])?;
        Ok(Bytes::from_owner(used))
    }

    /// The smallest that is large enough.
    fn take(&self, len: usize) -> Option<Vec<u8>> {
        let mut free = self.free.lock();
        let fits = free.buffers.iter().enumerate().filter(|(_, buffer)| buffer.len() >= len);
        let (at, _) = fits.min_by_key(|(_, buffer)| buffer.len())?;
        let buffer = free.buffers.swap_remove(at);
        free.bytes -= buffer.len();
        Some(buffer)
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut free = self.free.lock();
        if free.bytes + buffer.len() <= MOST_KEPT {
            free.bytes += buffer.len();
            free.buffers.push(buffer);
        }
    }

    /// Lets go of what is kept: called now and then, so that nothing is kept for long when nobody reads.
    pub(super) fn clear(&self) {
        *self.free.lock() = Free::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(buffers: &Arc<Buffers>, len: usize, with: u8) -> Bytes {
        let fill = |buffer: &mut [u8]| {
            buffer.fill(with);
            Ok::<_, ()>(())
        };
        buffers.fill(len, fill).unwrap()
    }

    fn kept(buffers: &Buffers) -> usize {
        buffers.free.lock().bytes
    }

    #[test]
    fn a_buffer_comes_back_with_its_last_slice() {
        let buffers = Arc::<Buffers>::default();
        let whole = filled(&buffers, 100_000, 1);
        let at = whole.as_ptr();
        let part = whole.slice(99_000..);
        drop(whole);
        assert_eq!((kept(&buffers), &part[..], part.len()), (0, &[1; 1000][..], 1000));
        let other = filled(&buffers, 100_000, 2);
        assert_ne!(other.as_ptr(), at);
        drop(part);
        assert_eq!(kept(&buffers), 131_072);
        let again = filled(&buffers, 70_000, 3);
        assert_eq!((again.as_ptr(), again.len(), kept(&buffers)), (at, 70_000, 0));
        assert!(again.iter().all(|byte| *byte == 3) && other.iter().all(|byte| *byte == 2));
        // What is not filled comes back at once.
        assert_eq!(buffers.fill(20_000, |_| Err("broken")), Err("broken"));
        assert_eq!(kept(&buffers), 32_768);
        buffers.clear();
        assert_eq!(kept(&buffers), 0);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let buffers = Arc::<Buffers>::default();
        drop(filled(&buffers, 100, 1));
        assert_eq!(kept(&buffers), 0);
        let many: Vec<Bytes> = (0..20).map(|_| filled(&buffers, 1 << 20, 1)).collect();
        drop(many);
        assert_eq!(kept(&buffers), MOST_KEPT);
        drop(filled(&buffers, MOST_KEPT + 1, 1));
        assert_eq!(kept(&buffers), MOST_KEPT);
    }
}
