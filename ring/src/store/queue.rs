//! What still has to be told, and to how many.
//!
//! The queue holds names of entries, never their contents: an entry is encoded when it is sent, so the newest is, and a
//! change of one that waits costs nothing. The least told come first, among equals the one that waits longest; so no entry
//! starves, however many change. Heartbeats and their like count as told twice each time, so they come after what matters
//! more, and are told half as often.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::value::EntryKey;

/// An entry of a slot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryName {
    /// Name of the slot.
    pub slot: Arc<str>,
    /// Name of the entry in it.
    pub entry: EntryKey,
    /// See [`Value::is_transient`](crate::Value::is_transient).
    pub transient: bool,
}

impl EntryName {
    /// What an entry counts as told when it has not been told.
    fn untold(&self) -> u32 {
        u32::from(self.transient)
    }

    /// How much telling it once counts.
    fn step(&self) -> u32 {
        1 + u32::from(self.transient)
    }
}

/// Entries to be told, each a limited number of times.
#[derive(Debug, Default)]
pub struct Queue {
    /// Times told and order of arrival.
    order: BTreeSet<(u32, u64, EntryName)>,
    places: HashMap<EntryName, (u32, u64)>,
    next: u64,
}

/// How often an entry is told by each of `members` who heard of it, so that all do: `multiplier` · log₁₀ (members + 1),
/// rounded up.
pub fn transmit_limit(multiplier: u32, members: usize) -> u32 {
    multiplier * ((members + 1) as f64).log10().ceil().max(1.0) as u32
}

impl Queue {
    /// An entry has changed. One that has been told of begins anew, one that has not keeps its place.
    pub fn push(&mut self, name: EntryName) {
        match self.places.get(&name).copied() {
            Some((told, _)) if told == name.untold() => return,
            Some((told, place)) => {
                self.order.remove(&(told, place, name.clone()));
            }
            None => {}
        }
        let untold = name.untold();
        self.place(name, untold);
    }

    fn place(&mut self, name: EntryName, told: u32) {
        self.next += 1;
        self.places.insert(name.clone(), (told, self.next));
        self.order.insert((told, self.next, name));
    }

    /// Entries that wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Offers entries in order until `take` has refused `refusals` of them. What is taken has been told once more and is
    /// dropped after `limit` times, and what is gone at once.
    pub fn offer(&mut self, limit: u32, refusals: usize, mut take: impl FnMut(&EntryName) -> Taken) {
        let mut told_more = Vec::new();
        let mut left = refusals;
        for (told, place, name) in &self.order {
            match take(name) {
                Taken::Refused => {
                    left = left.saturating_sub(1);
                    if left == 0 {
                        break;
                    }
                }
                Taken::Told => told_more.push((*told, *place, name.clone(), told + name.step() < limit)),
                Taken::Gone => told_more.push((*told, *place, name.clone(), false)),
            }
        }
        for (told, place, name, again) in told_more {
            self.places.remove(&name);
            self.order.remove(&(told, place, name.clone()));
            if again {
                let step = name.step();
                self.place(name, told + step);
            }
        }
    }
}

/// What came of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It went into the message.
    Told,
    /// It did not fit.
    Refused,
    /// There is no such entry any more.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(entry: u8) -> EntryName {
        EntryName { slot: "s".into(), entry: [entry].into(), transient: false }
    }

    /// Up to `room` entries.
    fn take(queue: &mut Queue, limit: u32, room: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        queue.offer(limit, 1, |name| {
            if taken.len() == room {
                return Taken::Refused;
            }
            taken.push(name.entry[0]);
            Taken::Told
        });
        taken
    }

    #[test]
    fn everything_is_told_once_before_anything_is_told_again() {
        let mut queue = Queue::default();
        (0..5).for_each(|entry| queue.push(name(entry)));
        assert_eq!(take(&mut queue, 2, 2), [0, 1]);
        assert_eq!(take(&mut queue, 2, 2), [2, 3]);
        assert_eq!(take(&mut queue, 2, 2), [4, 0]);
        // A change in between comes first, and one that waits keeps its place.
        queue.push(name(3));
        queue.push(name(9));
        queue.push(name(3));
        assert_eq!(take(&mut queue, 2, 2), [3, 9]);
        assert_eq!(take(&mut queue, 2, 9), [1, 2, 4, 3, 9]);
        assert!(queue.is_empty());
    }

    #[test]
    fn transient_entries_come_later_and_half_as_often() {
        let mut queue = Queue::default();
        queue.push(EntryName { transient: true, ..name(7) });
        queue.push(name(1));
        queue.push(EntryName { transient: true, ..name(7) });
        let told: Vec<_> = std::iter::from_fn(|| take(&mut queue, 4, 1).pop()).collect();
        assert_eq!(told, [1, 7, 1, 1, 7, 1]);
    }

    #[test]
    fn what_is_gone_is_dropped() {
        let mut queue = Queue::default();
        queue.push(name(1));
        queue.offer(9, 1, |_| Taken::Gone);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn larger_clusters_tell_more_often() {
        assert_eq!([1, 9, 10, 99, 600].map(|members| transmit_limit(4, members)), [4, 4, 8, 8, 12]);
    }
}
