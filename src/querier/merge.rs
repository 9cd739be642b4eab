//! Makes one stream of series out of the streams of replicas and blocks.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::collections::VecDeque;

use futures::future::{BoxFuture, join_all};
use futures::stream::{self, StreamExt, TryStreamExt};
use skald_model::Labels;
use skald_tsdb::SeriesChunks;
use skald_tsdb::block::join_parts;

use crate::error::ServiceError;
use crate::select::{BATCH_BYTES, SeriesStream};

/// A stream to merge, and what its failure means.
pub struct Input {
    /// Series in ascending label order.
    pub stream: SeriesStream,
    /// Which [`Tolerance`] its failure counts against.
    pub group: usize,
}

/// Opens a stream that has the same series as those of its group, from the beginning.
pub type Spare = Box<dyn FnOnce() -> BoxFuture<'static, Result<SeriesStream, ServiceError>> + Send>;

/// How many streams of a group may fail before the merged stream does.
#[derive(Default)]
pub struct Tolerance {
    /// Streams that can take the place of one that fails.
    pub spares: Vec<Spare>,
    /// Failures that need no replacement.
    pub left: usize,
}

/// Merges streams by labels: each series comes once, with the chunks of all who have it. Chunks may repeat and overlap;
/// decoding sorts that out.
pub fn merge(inputs: Vec<Input>, tolerances: Vec<Tolerance>) -> SeriesStream {
    if let [_] = inputs.as_slice()
        && tolerances.iter().all(|t| t.left == 0 && t.spares.is_empty())
    {
        return inputs.into_iter().map(|input| input.stream).next().unwrap_or_else(|| stream::empty().boxed());
    }
    let wanted = (0..inputs.len()).collect();
    let merge = Merge {
        lanes: inputs
            .into_iter()
            .map(|input| Lane { stream: Some(input.stream), group: input.group, ready: VecDeque::new() })
            .collect(),
        tolerances,
        heads: BinaryHeap::new(),
        wanted,
        last: None,
    };
    stream::try_unfold(merge, |mut merge| async move {
        let batch = merge.next_batch().await?;
        Ok((!batch.is_empty()).then_some((batch, merge)))
    })
    .boxed()
}

struct Merge {
    lanes: Vec<Lane>,
    tolerances: Vec<Tolerance>,
    /// The first series of every lane that has one, smallest labels on top; of equal ones the first lane.
    heads: BinaryHeap<Reverse<Head>>,
    /// Lanes whose next series is not among the heads yet. The last series of each is the last one merged, or none.
    wanted: Vec<usize>,
    /// The last series of the batch before.
    last: Option<Labels>,
}

struct Lane {
    /// `None` once it has ended or failed.
    stream: Option<SeriesStream>,
    group: usize,
    ready: VecDeque<SeriesChunks>,
}

struct Head {
    series: SeriesChunks,
    lane: usize,
}

impl Lane {
    /// Whether it has nothing ready and may get something.
    fn is_wanting(&self) -> bool {
        self.ready.is_empty() && self.stream.is_some()
    }

    /// Waits for the next batch if nothing is ready; `Err` ends the lane.
    async fn fill(&mut self) -> Result<(), ServiceError> {
        while self.ready.is_empty() {
            let Some(stream) = &mut self.stream else { return Ok(()) };
            match stream.next().await {
                Some(Ok(batch)) => self.ready.extend(batch),
                Some(Err(error)) => {
                    self.stream = None;
                    return Err(error);
                }
                None => self.stream = None,
            }
        }
        Ok(())
    }
}

impl Merge {
    /// Series worth a batch; none at the end.
    async fn next_batch(&mut self) -> Result<Vec<SeriesChunks>, ServiceError> {
        let mut batch: Vec<SeriesChunks> = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES {
            if let Some(lane) = self.only_lane() {
                // Its batches have their size, and nobody else's series come between.
                if batch.is_empty() && self.lanes[lane].ready.is_empty() {
                    let last = self.last.take();
                    while let Err(error) = self.lanes[lane].fill().await {
                        self.tolerate(lane, error, last.as_ref())?;
                    }
                }
                batch.extend(self.lanes[lane].ready.drain(..));
                break;
            }
            self.refill(&batch).await?;
            let Some(Reverse(Head { series, lane })) = self.heads.pop() else { break };
            self.wanted.push(lane);
            let mut parts = vec![series];
            while let Some(Reverse(next)) = self.heads.peek()
                && next.series.labels == parts[0].labels
            {
                let Some(Reverse(same)) = self.heads.pop() else { break };
                parts.push(same.series);
                self.wanted.push(same.lane);
            }
            let joined = match parts.len() {
                1 => parts.pop(),
                _ => join_parts(parts).map_err(|e| {
                    ServiceError::internal(format!("a chunk from an ingester or store-gateway is damaged: {e}"))
                })?,
            };
            if let Some(series) = joined {
                bytes += series.heap_bytes();
                batch.push(series);
            }
        }
        self.last = batch.last().map(|series| series.labels.clone());
        Ok(batch)
    }

    /// The lane that is left when all others have ended, as long as none of its series is among the heads.
    fn only_lane(&self) -> Option<usize> {
        match (self.wanted.as_slice(), self.heads.is_empty()) {
            (&[lane], true) => Some(lane),
            _ => None,
        }
    }

    /// Makes the next series of every wanted lane a head. Lanes that have to wait do so at the same time.
    async fn refill(&mut self, batch: &[SeriesChunks]) -> Result<(), ServiceError> {
        let wanted = std::mem::take(&mut self.wanted);
        while wanted.iter().any(|&lane| self.lanes[lane].is_wanting()) {
            let lanes = self.lanes.iter_mut().enumerate().filter(|(lane, _)| wanted.contains(lane));
            let filled = join_all(lanes.map(async |(lane, of)| (lane, of.fill().await))).await;
            let last = batch.last().map(|series| series.labels.clone()).or_else(|| self.last.clone());
            for (lane, filled) in filled {
                if let Err(error) = filled {
                    self.tolerate(lane, error, last.as_ref())?;
                }
            }
        }
        for lane in wanted {
            if let Some(series) = self.lanes[lane].ready.pop_front() {
                self.heads.push(Reverse(Head { series, lane }));
            }
        }
        Ok(())
    }

    /// Makes up for a lane's failure: with a spare stream of its group, which goes on behind the series that were merged
    /// last, or as one of those its group may lose.
    fn tolerate(&mut self, lane: usize, error: ServiceError, last: Option<&Labels>) -> Result<(), ServiceError> {
        let tolerance = &mut self.tolerances[self.lanes[lane].group];
        if error.kind.is_retryable()
            && let Some(spare) = tolerance.spares.pop()
        {
            let last = last.cloned();
            let rest = stream::once(spare()).try_flatten().map_ok(move |mut batch| {
                batch.retain(|series| last.as_ref().is_none_or(|last| series.labels > *last));
                batch
            });
            self.lanes[lane].stream = Some(rest.boxed());
            return Ok(());
        }
        if tolerance.left == 0 {
            return Err(error);
        }
        tolerance.left -= 1;
        Ok(())
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        self.series.labels.cmp(&other.series.labels).then(self.lane.cmp(&other.lane))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use skald_tsdb::chunk::{Chunk, Encoding};

    use super::*;
    use crate::error::ErrorKind;

    fn series(name: &str, time: i64) -> SeriesChunks {
        let chunk = Chunk { min_time: time, max_time: time, encoding: Encoding::Xor, data: Bytes::new() };
        SeriesChunks { labels: Labels::from_pairs([("n", name)]), chunks: vec![chunk], deleted: Vec::new() }
    }

    fn failure() -> ServiceError {
        ServiceError::new(ErrorKind::Unavailable, "test", "gone")
    }

    fn batches_of(time: i64, batches: &[&str]) -> SeriesStream {
        let batch = |batch: &&str| match *batch {
            "!" => Err(failure()),
            names => Ok(names.split_whitespace().map(|name| series(name, time)).collect()),
        };
        stream::iter(batches.iter().map(batch).collect::<Vec<_>>()).boxed()
    }

    /// Each input is a list of batches of series names; `!` is a failure.
    async fn run(inputs: &[(usize, &[&str])], tolerated: &[usize]) -> Result<String, ServiceError> {
        let inputs = inputs
            .iter()
            .enumerate()
            .map(|(time, (group, batches))| Input { stream: batches_of(time as i64, batches), group: *group });
        let tolerances = tolerated.iter().map(|&left| Tolerance { left, ..Tolerance::default() }).collect();
        gather(inputs.collect(), tolerances).await
    }

    async fn gather(inputs: Vec<Input>, tolerances: Vec<Tolerance>) -> Result<String, ServiceError> {
        let merged: Vec<Vec<SeriesChunks>> = merge(inputs, tolerances).try_collect().await?;
        let text = |s: &SeriesChunks| {
            let times: Vec<String> = s.chunks.iter().map(|c| c.min_time.to_string()).collect();
            format!("{}:{}", s.labels.get("n").unwrap(), times.join("+"))
        };
        Ok(merged.iter().flatten().map(text).collect::<Vec<_>>().join(" "))
    }

    #[tokio::test]
    async fn equal_series_meet() {
        let merged = run(&[(0, &["a b", "d"]), (0, &["b", "c d"]), (1, &[])], &[0, 0]).await;
        assert_eq!(merged.unwrap(), "a:0 b:0+1 c:1 d:0+1");
        assert_eq!(run(&[], &[]).await.unwrap(), "");
        assert_eq!(run(&[(0, &["a", "b"])], &[0]).await.unwrap(), "a:0 b:0");
    }

    #[tokio::test]
    async fn a_group_survives_as_many_failures_as_it_tolerates() {
        let three: [(usize, &[&str]); 3] = [(0, &["a", "!"]), (0, &["a b"]), (0, &["a b"])];
        assert_eq!(run(&three, &[1]).await.unwrap(), "a:0+1+2 b:1+2");
        assert_eq!(run(&three, &[0]).await.unwrap_err(), failure());
        let two_gone: [(usize, &[&str]); 3] = [(0, &["a", "!"]), (0, &["!"]), (0, &["a b"])];
        assert_eq!(run(&two_gone, &[1]).await.unwrap_err(), failure());
        let other_group: [(usize, &[&str]); 2] = [(0, &["a"]), (1, &["!"])];
        assert_eq!(run(&other_group, &[1, 0]).await.unwrap_err(), failure());
        assert_eq!(run(&[(0, &["!"])], &[0]).await.unwrap_err(), failure());
    }

    /// `time` of a series tells which stream it came from: 9 is the spare one.
    async fn with_spares(inputs: &[&[&str]], spares: &[&'static [&'static str]]) -> Result<String, ServiceError> {
        let inputs = inputs
            .iter()
            .enumerate()
            .map(|(time, batches)| Input { stream: batches_of(time as i64, batches), group: 0 });
        let spare = |batches: &'static [&'static str]| -> Spare {
            Box::new(move || Box::pin(async move { Ok(batches_of(9, batches)) }))
        };
        let spares = spares.iter().rev().map(|batches| spare(batches)).collect();
        gather(inputs.collect(), vec![Tolerance { spares, left: 0 }]).await
    }

    #[tokio::test]
    async fn a_spare_goes_on_where_a_stream_failed() {
        let whole: &[&str] = &["a b c", "d e"];
        let merged = with_spares(&[whole, &["a b", "!"]], &[whole]).await;
        assert_eq!(merged.unwrap(), "a:0+1 b:0+1 c:0+9 d:0+9 e:0+9");
        // At the very beginning, and a spare that fails as well.
        let merged = with_spares(&[whole, &["!"]], &[&["a", "b", "!"], whole]).await;
        assert_eq!(merged.unwrap(), "a:0+9 b:0+9 c:0+9 d:0+9 e:0+9");
        // A stream that is alone when it fails, also between batches.
        assert_eq!(with_spares(&[&["a b", "!"]], &[whole]).await.unwrap(), "a:0 b:0 c:9 d:9 e:9");
        assert_eq!(with_spares(&[&["a", "b", "!"], &[]], &[whole]).await.unwrap(), "a:0 b:0 c:9 d:9 e:9");
        assert_eq!(with_spares(&[whole, &["a b", "!"]], &[&["a", "!"]]).await.unwrap_err(), failure());
    }
}
