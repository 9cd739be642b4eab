//! Threads that the caller lends: the crate has none of its own.

/// Threads for work that comes in pieces.
pub trait Workers: Sync {
    /// Calls `job` once for each number below `count`, several calls at a time, and returns when all have returned.
    fn for_each(&self, count: usize, job: &(dyn Fn(usize) + Sync));

    /// Runs `work` on this thread and `beside` on another one at the same time; returns when both have returned.
    fn alongside(&self, beside: &mut (dyn FnMut() + Send), work: &mut dyn FnMut());
}

/// Nobody: the calling thread does all of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Workers for Alone {
    fn for_each(&self, count: usize, job: &(dyn Fn(usize) + Sync)) {
        (0..count).for_each(job);
    }

    fn alongside(&self, beside: &mut (dyn FnMut() + Send), work: &mut dyn FnMut()) {
        work();
        beside();
    }
}
