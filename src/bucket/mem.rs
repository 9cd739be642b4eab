//! A bucket in memory, with faults on request.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use skald_model::TimestampMs;

use super::{
    Bucket, BucketError, Cause, Condition, Listing, Object, ObjectMeta, Operation, Version, valid_key, valid_prefix,
};

/// A bucket in memory. Clones share one content.
///
/// Its objects' `last_modified` is what [`MemBucket::set_now`] said last. [`MemBucket::set_faults`] makes calls fail or
/// hang; [`MemBucket::take_calls`] counts them.
#[derive(Clone)]
pub struct MemBucket {
    name: Arc<str>,
    state: Arc<Mutex<State>>,
}

/// What a fault does to one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The call fails and changes nothing.
    Fail(Cause),
    /// The call takes this long, then goes on.
    Delay(Duration),
}

/// Decides the fault of a call from its operation, its key and its number (all calls of the bucket are counted from 0).
pub type Faults = Box<dyn FnMut(Operation, &str, u64) -> Option<Fault> + Send>;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, (Bytes, ObjectMeta)>,
    faults: Option<Faults>,
    now: TimestampMs,
    writes: u64,
    calls: Vec<(Operation, String)>,
}

impl Default for MemBucket {
    fn default() -> Self {
        Self { name: "mem://".into(), state: Arc::default() }
    }
}

impl MemBucket {
    /// Decides from now on which calls fail; `None` ends all faults.
    pub fn set_faults(&self, faults: Option<Faults>) {
        self.state.lock().faults = faults;
    }

    /// Makes every call fail like a store whose credentials are wrong.
    pub fn refuse_everything(&self) {
        self.set_faults(Some(Box::new(|_, _, _| Some(Fault::Fail(Cause::Refused("access denied".into()))))));
    }

    /// Sets the time that later writes carry.
    pub fn set_now(&self, now: TimestampMs) {
        self.state.lock().now = now;
    }

    /// Takes the record of every call since the last time: operation and key.
    pub fn take_calls(&self) -> Vec<(Operation, String)> {
        std::mem::take(&mut self.state.lock().calls)
    }

    /// Changes an object's bytes behind everyone's back; whether there was one.
    pub fn damage(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = self.state.lock();
        let Some((bytes, meta)) = state.objects.get_mut(key) else { return false };
        let mut damaged = bytes.to_vec();
        change(&mut damaged);
        meta.size = damaged.len() as u64;
        *bytes = damaged.into();
        true
    }

    /// Every key, ascending.
    pub fn keys(&self) -> Vec<String> {
        self.state.lock().objects.keys().cloned().collect()
    }

    fn error(&self, operation: Operation, key: &str, cause: Cause) -> BucketError {
        BucketError { bucket: self.name.clone(), operation, key: key.to_owned(), cause }
    }

    /// Counts the call and suffers its fault.
    async fn begin(&self, operation: Operation, key: &str) -> Result<(), BucketError> {
        let valid = if operation == Operation::List { valid_prefix(key) } else { valid_key(key) };
        if !valid {
            return Err(self.error(operation, key, Cause::Refused("malformed key".into())));
        }
        let fault = {
            let mut state = self.state.lock();
            let number = state.calls.len() as u64;
            state.calls.push((operation, key.to_owned()));
            state.faults.as_mut().and_then(|faults| faults(operation, key, number))
        };
        match fault {
            None => Ok(()),
            Some(Fault::Fail(cause)) => Err(self.error(operation, key, cause)),
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(())
            }
        }
    }

    fn write(&self, key: &str, bytes: Bytes, condition: &Condition) -> Result<Version, Cause> {
        let mut state = self.state.lock();
        state.writes += 1;
        let version = Version { e_tag: Some(state.writes.to_string()), generation: None };
        let meta = ObjectMeta { size: bytes.len() as u64, last_modified: state.now, version: version.clone() };
        match (state.objects.entry(key.to_owned()), condition) {
            (Entry::Occupied(_), Condition::Absent) | (Entry::Vacant(_), Condition::Unchanged(_)) => {
                return Err(Cause::Precondition);
            }
            (Entry::Occupied(old), Condition::Unchanged(expected)) if old.get().1.version != *expected => {
                return Err(Cause::Precondition);
            }
            (entry, _) => drop(entry.insert_entry((bytes, meta))),
        }
        Ok(version)
    }

    fn read(&self, operation: Operation, key: &str) -> Result<Object, BucketError> {
        match self.state.lock().objects.get(key) {
            Some((bytes, meta)) => Ok(Object { bytes: bytes.clone(), meta: meta.clone() }),
            None => Err(self.error(operation, key, Cause::NotFound)),
        }
    }
}

#[async_trait]
impl Bucket for MemBucket {
    fn name(&self) -> &str {
        &self.name
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Condition) -> Result<Version, BucketError> {
        self.begin(Operation::Put, key).await?;
        self.write(key, bytes, &condition).map_err(|cause| self.error(Operation::Put, key, cause))
    }

    async fn put_stream(&self, key: &str, mut parts: BoxStream<'_, std::io::Result<Bytes>>) -> Result<(), BucketError> {
        self.begin(Operation::PutStream, key).await?;
        let mut whole = BytesMut::new();
        while let Some(part) = parts.next().await {
            match part {
                Ok(part) => whole.extend_from_slice(&part),
                Err(e) => return Err(self.error(Operation::PutStream, key, Cause::Source(e.to_string()))),
            }
        }
        self.write(key, whole.freeze(), &Condition::None)
            .map(drop)
            .map_err(|cause| self.error(Operation::PutStream, key, cause))
    }

    async fn get(&self, key: &str) -> Result<Object, BucketError> {
        self.begin(Operation::Get, key).await?;
        self.read(Operation::Get, key)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.begin(Operation::GetRange, key).await?;
        let bytes = self.read(Operation::GetRange, key)?.bytes;
        match (usize::try_from(range.start), usize::try_from(range.end)) {
            (Ok(start), Ok(end)) if end <= bytes.len() => Ok(bytes.slice(start..end)),
            _ => {
                let cause = Cause::Refused(format!("range {range:?} ends beyond the object's {} bytes", bytes.len()));
                Err(self.error(Operation::GetRange, key, cause))
            }
        }
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.begin(Operation::Head, key).await?;
        Ok(self.read(Operation::Head, key)?.meta)
    }

    async fn list(&self, prefix: &str) -> Result<Listing, BucketError> {
        self.begin(Operation::List, prefix).await?;
        let mut listing = Listing::default();
        let state = self.state.lock();
        for (key, (_, meta)) in state.objects.range(prefix.to_owned()..) {
            let Some(rest) = key.strip_prefix(prefix) else { break };
            match rest.split_once('/') {
                None => listing.objects.push((rest.to_owned(), meta.clone())),
                Some((folder, _)) => {
                    if listing.folders.last().is_none_or(|last| last != folder) {
                        listing.folders.push(folder.to_owned());
                    }
                }
            }
        }
        // Keys are ordered with their '/', which sorts between other characters: folders come out grouped, not sorted.
        listing.folders.sort_unstable();
        Ok(listing)
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.begin(Operation::Delete, key).await?;
        self.state.lock().objects.remove(key);
        Ok(())
    }
}
