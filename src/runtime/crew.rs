//! Threads for one piece of work: the replay of the log at start, say.

use std::sync::atomic::{AtomicUsize, Ordering};

use skald_tsdb::Workers;

/// Threads that live as long as one call. Of one thread, the caller does all of it.
#[derive(Debug, Clone, Copy)]
pub struct Crew {
    threads: usize,
}

impl Crew {
    /// So many threads, the caller's included.
    pub fn new(threads: usize) -> Self {
        Self { threads: threads.max(1) }
    }
}

impl Workers for Crew {
    fn for_each(&self, count: usize, job: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                job(number);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads.min(count) {
                // Without another thread the caller does all of it.
                let _ = std::thread::Builder::new().name("skald-crew".into()).spawn_scoped(scope, work);
            }
            work();
        });
    }

    fn alongside(&self, beside: &mut (dyn FnMut() + Send), work: &mut dyn FnMut()) {
        if self.threads == 1 {
            work();
            beside();
            return;
        }
        std::thread::scope(|scope| {
            scope.spawn(beside);
            work();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_done_once() {
        for threads in [1, 2, 5] {
            for count in [0, 1, 3, 1000] {
                let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                Crew::new(threads).for_each(count, &|number| {
                    done[number].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|times| times.load(Ordering::Relaxed) == 1), "{threads} {count}");
            }
            let (mut beside, mut here) = (0, 0);
            Crew::new(threads).alongside(&mut || beside += 1, &mut || here += 1);
            assert_eq!((beside, here), (1, 1));
        }
    }
}
