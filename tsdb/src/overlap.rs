//! Float chunks that overlap, as replicas' do, made into new ones of their own bits.

use std::ops::Range;

use bytes::Bytes;
use skald_model::{Columns, QueryRange, TimestampMs};

use crate::chunk::xor::{self, Marked, Piece};
use crate::chunk::{Chunk, Encoding};
use crate::decode::{decode_chunk, merge_floats};
#[cfg(target_arch = "x86_64")]
use crate::processor;

/// Merges runs of chunks that overlap; keeps its allocations between runs.
#[derive(Default)]
pub(crate) struct Overlap {
    /// Decoded chunks. Those that no stretch names are free for the next one.
    lanes: Vec<Marked>,
    /// The merged samples that are in no new chunk yet, ascending.
    stretches: Vec<Stretch>,
    /// Of those, what the next chunk overlaps.
    tail: Vec<Stretch>,
    /// The new chunks of a run, one behind the other, and which they are.
    encoded: Vec<u8>,
    made: Vec<Made>,
    /// Of samples whose bits are not copied: all that are in no new chunk yet, and two for a moment.
    columns: [Columns; 3],
    /// So many runs are merged sample by sample before bits are tried again.
    interleaved: usize,
}

/// Where stretches have less samples, few bits go on with others'.
const WORTH_SPLICING: usize = 4;
/// Where samples of one run interleave, those of so many more do, probably: their senders are the same.
const LIKELY_ALIKE: usize = 30;

/// Samples of a lane.
#[derive(Debug, Clone)]
struct Stretch {
    lane: usize,
    samples: Range<usize>,
}

/// A new chunk.
#[derive(Debug)]
struct Made {
    min_time: TimestampMs,
    max_time: TimestampMs,
    /// Where among the encoded bytes it ends.
    end: usize,
}

impl Overlap {
    /// Adds the chunks of the samples of `run`, which are chunks by their places, ascending in time. Of samples at one time
    /// the one of the chunk that comes first survives. Each new chunk but the last has `per_chunk` samples.
    ///
    /// False if not all chunks are plain floats as writers make them: `out` is as it was then. The chunks share an allocation.
    pub(crate) fn merge(&mut self, chunks: &[Chunk], run: &[usize], per_chunk: usize, out: &mut Vec<Chunk>) -> bool {
        self.stretches.clear();
        self.encoded.clear();
        self.made.clear();
        let merged = self.merge_on(chunks, run, per_chunk).is_some();
        if merged {
            let bytes = Bytes::copy_from_slice(&self.encoded);
            let mut start = 0;
            out.extend(self.made.iter().map(|&Made { min_time, max_time, end }| {
                let data = bytes.slice(start..end);
                start = end;
                Chunk { min_time, max_time, encoding: Encoding::Xor, data }
            }));
        }
        merged
    }

    fn merge_on(&mut self, chunks: &[Chunk], run: &[usize], per_chunk: usize) -> Option<()> {
        #[cfg(target_arch = "x86_64")]
        if processor::has_bit_instructions() {
            #[expect(unsafe_code, reason = "a tenth less time")]
            // SAFETY: the processor has them.
            return unsafe { self.merge_bmi2(chunks, run, per_chunk) };
        }
        self.merge_all(chunks, run, per_chunk)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "bmi1,bmi2,lzcnt,movbe")]
    fn merge_bmi2(&mut self, chunks: &[Chunk], run: &[usize], per_chunk: usize) -> Option<()> {
        self.merge_all(chunks, run, per_chunk)
    }

    #[inline(always)]
    fn merge_all(&mut self, chunks: &[Chunk], run: &[usize], per_chunk: usize) -> Option<()> {
        let min_time = |&chunk: &usize| chunks[chunk].min_time;
        if !run.is_sorted() || !run.is_sorted_by_key(min_time) {
            return None;
        }
        if self.interleaved > 0 {
            self.interleaved -= 1;
            self.gather();
            return self.merge_columns(chunks, run, per_chunk);
        }
        let mut beside = None;
        for (at, &index) in run.iter().enumerate() {
            let lane = self.decode(&chunks[index], beside)?;
            let samples = self.add(lane, beside);
            beside = Some(lane);
            if samples < WORTH_SPLICING * self.stretches.len() && samples >= per_chunk {
                self.interleaved = LIKELY_ALIKE;
                self.gather();
                return self.merge_columns(chunks, &run[at + 1..], per_chunk);
            }
            // What is older than all that comes is complete.
            match run.get(at + 1).map(min_time) {
                Some(next) => {
                    let mut complete = self.count_before(next);
                    while complete >= per_chunk {
                        self.encode(per_chunk);
                        complete -= per_chunk;
                    }
                }
                None => while self.encode(per_chunk) {},
            }
        }
        Some(())
    }

    /// Makes columns of the samples that are in no new chunk yet.
    fn gather(&mut self) {
        let [all, ..] = &mut self.columns;
        all.clear();
        for Stretch { lane, samples } in self.stretches.drain(..) {
            all.float_timestamps.extend_from_slice(&self.lanes[lane].times()[samples.clone()]);
            all.float_values.extend_from_slice(&self.lanes[lane].values()[samples]);
        }
    }

    /// Adds the chunks that are left to the columns, and makes new ones of them sample by sample.
    fn merge_columns(&mut self, chunks: &[Chunk], run: &[usize], per_chunk: usize) -> Option<()> {
        let Self { columns: [all, tail, new], encoded, made, .. } = self;
        let mut encode = |all: &mut Columns, complete: usize, least: usize| {
            let mut done = 0;
            while complete - done >= least {
                let samples = done..complete.min(done + per_chunk);
                let (times, values) = (&all.float_timestamps[samples.clone()], &all.float_values[samples.clone()]);
                let (Some(&min_time), Some(&max_time)) = (times.first(), times.last()) else { break };
                xor::encode_into(times, values, encoded);
                made.push(Made { min_time, max_time, end: encoded.len() });
                done = samples.end;
            }
            all.float_timestamps.drain(..done);
            all.float_values.drain(..done);
        };
        for &index in run {
            let chunk = &chunks[index];
            let complete = all.float_timestamps.partition_point(|&time| time < chunk.min_time);
            encode(all, complete, per_chunk);
            if chunk.encoding != Encoding::Xor {
                return None;
            }
            new.clear();
            decode_chunk(chunk, QueryRange::ALL, new).ok()?;
            let Some(&first) = new.float_timestamps.first() else { continue };
            let keep = all.float_timestamps.partition_point(|&time| time < first);
            tail.clear();
            tail.float_timestamps.extend(all.float_timestamps.drain(keep..));
            tail.float_values.extend(all.float_values.drain(keep..));
            merge_floats(tail, new, all);
        }
        let complete = all.float_timestamps.len();
        encode(all, complete, 1);
        Some(())
    }

    /// Decodes a chunk into a lane that is free; one that is like the one `beside` sooner.
    #[inline(always)]
    fn decode(&mut self, chunk: &Chunk, beside: Option<usize>) -> Option<usize> {
        if chunk.encoding != Encoding::Xor {
            return None;
        }
        let is_free =
            |lane: &usize| beside != Some(*lane) && self.stretches.iter().all(|stretch| stretch.lane != *lane);
        let lane = (0..self.lanes.len()).find(is_free).unwrap_or(self.lanes.len());
        let mut marked = if lane == self.lanes.len() {
            self.lanes.push(Marked::default());
            Marked::default()
        } else {
            std::mem::take(&mut self.lanes[lane])
        };
        let decoded = marked.decode(&chunk.data, beside.map(|beside| &self.lanes[beside]));
        let inside = |time: Option<&i64>| time.is_some_and(|time| (chunk.min_time..=chunk.max_time).contains(time));
        let inside = decoded && inside(marked.times().first()) && inside(marked.times().last());
        self.lanes[lane] = marked;
        inside.then_some(lane)
    }

    /// Adds the samples of a lane, whose chunk begins no earlier than those before; says how many there are now.
    #[inline(always)]
    fn add(&mut self, lane: usize, beside: Option<usize>) -> usize {
        let Self { lanes, stretches, tail, .. } = self;
        let new = &lanes[lane];
        let first = new.times().first().copied().unwrap_or(i64::MAX);
        let is_before = |stretch: &Stretch| lanes[stretch.lane].times()[stretch.samples.end - 1] < first;
        let kept = stretches.len() - stretches.iter().rev().take_while(|stretch| !is_before(stretch)).count();
        tail.clear();
        tail.extend(stretches.drain(kept..));
        if let Some(Stretch { lane, samples }) = tail.first_mut() {
            let times = &lanes[*lane].times()[samples.clone()];
            let cut = samples.start + times.partition_point(|&time| time < first);
            push(stretches, *lane, samples.start..cut);
            samples.start = cut;
        }
        let (times, values) = (new.times(), new.values());
        let mut next = 0;
        // While both have the same samples, those of the lane that had the last one where they differ are taken: it goes on
        // with its own bits.
        let mut is_new = false;
        // What its bits have told already.
        let mut alike = new.alike_runs();
        for Stretch { lane: old_lane, samples } in tail.iter() {
            let old = &lanes[*old_lane];
            let mut at = samples.start;
            while at < samples.end && next < times.len() {
                while let Some((first, others)) = alike.split_first()
                    && first.at + first.len <= next
                {
                    alike = others;
                }
                let known = match alike.first() {
                    Some(run) if beside == Some(*old_lane) && run.at <= next && run.theirs + (next - run.at) == at => {
                        (run.at + run.len - next).min(samples.end - at)
                    }
                    _ => 0,
                };
                let same = known
                    + equal_samples(
                        (&old.times()[at + known..samples.end], &old.values()[at + known..samples.end]),
                        (&times[next + known..], &values[next + known..]),
                    );
                match is_new {
                    true => push(stretches, lane, next..next + same),
                    false => push(stretches, *old_lane, at..at + same),
                }
                (at, next) = (at + same, next + same);
                if at == samples.end || next == times.len() {
                    break;
                }
                let (old_time, new_time) = (old.times()[at], times[next]);
                if new_time < old_time {
                    let more = times[next..].iter().take_while(|time| **time < old_time).count();
                    push(stretches, lane, next..next + more);
                    (next, is_new) = (next + more, true);
                    continue;
                }
                is_new = false;
                if new_time == old_time {
                    push(stretches, *old_lane, at..at + 1);
                    (at, next) = (at + 1, next + 1);
                    continue;
                }
                let more = old.times()[at..samples.end].iter().take_while(|time| **time < new_time).count();
                push(stretches, *old_lane, at..at + more);
                at += more;
            }
            push(stretches, *old_lane, at..samples.end);
        }
        push(stretches, lane, next..times.len());
        stretches.iter().map(|stretch| stretch.samples.len()).sum()
    }

    /// How many of the samples are older than `time`.
    fn count_before(&self, time: i64) -> usize {
        let before = |stretch: &Stretch| {
            let times = &self.lanes[stretch.lane].times()[stretch.samples.clone()];
            match times.last() {
                Some(last) if *last < time => times.len(),
                _ => times.partition_point(|&sample| sample < time),
            }
        };
        self.stretches.iter().map(before).sum()
    }

    /// Makes a chunk of the first samples, `count` of them or all. False if there are none.
    #[inline(always)]
    fn encode(&mut self, count: usize) -> bool {
        let Self { lanes, stretches, encoded, made, .. } = self;
        let Some(first) = stretches.first() else { return false };
        let min_time = lanes[first.lane].times()[first.samples.start];
        let (mut missing, mut max_time, mut taken) = (count, min_time, 0);
        let pieces = stretches.iter_mut().map_while(|Stretch { lane, samples }| {
            let first = samples.start;
            samples.start = samples.end.min(first + missing);
            missing -= samples.start - first;
            taken += usize::from(samples.start == samples.end);
            let chunk = &lanes[*lane];
            max_time = *chunk.times()[first..samples.start].last()?;
            Some(Piece { chunk, samples: first..samples.start })
        });
        xor::splice(pieces, encoded);
        stretches.drain(..taken);
        made.push(Made { min_time, max_time, end: encoded.len() });
        true
    }
}

/// Adds samples of a lane, to the last stretch where they go on with it.
fn push(stretches: &mut Vec<Stretch>, lane: usize, samples: Range<usize>) {
    if samples.is_empty() {
        return;
    }
    match stretches.last_mut() {
        Some(last) if last.lane == lane && last.samples.end == samples.start => last.samples.end = samples.end,
        _ => stretches.push(Stretch { lane, samples }),
    }
}

/// How many samples both begin with, times and values bit by bit.
fn equal_samples(a: (&[i64], &[f64]), b: (&[i64], &[f64])) -> usize {
    const BLOCK: usize = 8;
    let len = a.0.len().min(b.0.len());
    let ((a, a_values), (b, b_values)) = ((&a.0[..len], &a.1[..len]), (&b.0[..len], &b.1[..len]));
    let differ = |at: usize| (a[at] ^ b[at]) as u64 | (a_values[at].to_bits() ^ b_values[at].to_bits());
    let mut same = 0;
    while same + BLOCK <= len && (same..same + BLOCK).fold(0, |all, at| all | differ(at)) == 0 {
        same += BLOCK;
    }
    same + (same..len).take_while(|&at| differ(at) == 0).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::chunk::xor::XorAppender;
    use crate::decode::decode_series;

    type Samples = Vec<(i64, u64)>;

    fn chunk(samples: &[(i64, u64)]) -> Chunk {
        let (mut appender, mut data) = (XorAppender::new(), Vec::new());
        samples.iter().for_each(|&(time, bits)| appender.append(&mut data, time, f64::from_bits(bits)).unwrap());
        let (min_time, max_time) = (samples[0].0, samples[samples.len() - 1].0);
        Chunk { min_time, max_time, encoding: Encoding::Xor, data: data.into() }
    }

    fn samples(chunks: &[Chunk]) -> Samples {
        let mut columns = Columns::default();
        decode_series(chunks, QueryRange::ALL, &mut columns).unwrap();
        columns
            .float_timestamps
            .iter()
            .zip(&columns.float_values)
            .map(|(&time, value)| (time, value.to_bits()))
            .collect()
    }

    /// A value of one of the kinds that series have.
    fn value(kind: u8, random: u64) -> u64 {
        match kind {
            0 => 1000_f64.to_bits(),
            1 => ((random % 1000) as f64).to_bits(),
            2 => ((random % 100_000) as f64 / 100.0).to_bits(),
            3 => ((random >> 11) as f64 / (1_u64 << 53) as f64).to_bits(),
            _ => random,
        }
    }

    /// What one replica has of a series: samples that are not lacking, in chunks of so many.
    #[derive(Debug, Clone)]
    struct Replica {
        lacks: Vec<(usize, usize)>,
        interleaves: Option<usize>,
        first: usize,
        per_chunk: usize,
        /// Samples whose value is its own.
        own: Vec<usize>,
    }

    fn replica() -> impl Strategy<Value = Replica> {
        let lacks = proptest::collection::vec((0_usize..400, 1_usize..60), 0..6);
        let interleaves = proptest::option::weighted(0.2, 0_usize..3);
        let own = prop_oneof![3 => Just(Vec::new()), 1 => proptest::collection::vec(0_usize..400, 0..4)];
        (lacks, interleaves, 1_usize..130, 1_usize..130, own).prop_map(|(lacks, interleaves, first, per_chunk, own)| {
            Replica { lacks, interleaves, first, per_chunk, own }
        })
    }

    fn series() -> impl Strategy<Value = Samples> {
        let sample = (prop_oneof![6 => Just(0), 2 => -2_i64..3, 1 => -9000_i64..200_000], any::<u64>());
        (0_u8..5, 0_u8..2, proptest::collection::vec(sample, 1..400)).prop_map(|(kind, jitters, drawn)| {
            let mut time = 1_717_200_000_000;
            let sample = |(off, random): (i64, u64)| {
                time += 15_000 + if jitters == 1 { (random >> 7) as i64 % 3 } else { off };
                (time, value(kind, random))
            };
            drawn.into_iter().map(sample).collect()
        })
    }

    impl Replica {
        fn chunks(&self, series: &Samples, number: usize) -> Vec<Chunk> {
            let has = |at: &usize| {
                self.interleaves.is_none_or(|part| at % 3 == part)
                    && !self.lacks.iter().any(|(from, count)| (*from..from + count).contains(at))
            };
            let sample = |at: usize| match self.own.contains(&at) {
                true => (series[at].0, (number as f64).to_bits()),
                false => series[at],
            };
            let mine: Samples = (0..series.len()).filter(has).map(sample).collect();
            let (first, rest) = mine.split_at(self.first.min(mine.len()));
            first.chunks(first.len().max(1)).chain(rest.chunks(self.per_chunk)).map(chunk).collect()
        }
    }

    /// The chunks of all replicas as the merge of blocks has them, with what it should make of them.
    fn joined(replicas: &[Replica], series: &Samples) -> (Vec<Chunk>, Samples) {
        let chunks = replicas.iter().enumerate().flat_map(|(number, replica)| replica.chunks(series, number));
        let mut chunks: Vec<Chunk> = chunks.collect();
        chunks.sort_by_key(|chunk| (chunk.min_time, chunk.max_time));
        let mut expected = BTreeMap::new();
        for chunk in &chunks {
            for (time, bits) in samples(std::slice::from_ref(chunk)) {
                expected.entry(time).or_insert(bits);
            }
        }
        (chunks, expected.into_iter().collect())
    }

    proptest! {
        #[test]
        fn replicas_are_merged(
            series in series(),
            replicas in proptest::collection::vec(replica(), 1..4),
            turn in 0_usize..4,
            by_sample: bool,
        ) {
            let (chunks, expected) = joined(&replicas, &series);
            let run: Vec<usize> = (0..chunks.len()).collect();
            let (mut overlap, mut merged) = (Overlap::default(), Vec::new());
            overlap.interleaved = usize::from(by_sample);
            prop_assert!(overlap.merge(&chunks, &run, 120, &mut merged));
            prop_assert_eq!(samples(&merged), expected);
            prop_assert!(merged.is_sorted_by(|a, b| a.max_time < b.min_time));
            let Some((last, others)) = merged.split_last() else { return Ok(()) };
            prop_assert!(others.iter().all(|chunk| chunk.num_samples() == 120) && last.num_samples() <= 120);
            for chunk in &merged {
                // What stands on its own is well-formed, and not much longer than what is written sample by sample.
                let samples = samples(std::slice::from_ref(chunk));
                prop_assert_eq!((samples[0].0, samples[samples.len() - 1].0), (chunk.min_time, chunk.max_time));
                let resumed = XorAppender::resume(&chunk.data).unwrap();
                prop_assert_eq!((resumed.last_time(), resumed.num_samples()), (chunk.max_time, chunk.num_samples()));
            }
            // Twice is once, also with what went in already.
            let mut again = Vec::new();
            let run: Vec<usize> = (0..merged.len()).collect();
            prop_assert!(overlap.merge(&merged, &run, 120, &mut again));
            prop_assert_eq!(samples(&again), samples(&merged));
            // The order of replicas that agree does not matter.
            if replicas.iter().all(|replica| replica.own.is_empty()) {
                let mut turned = replicas.clone();
                turned.rotate_left(turn % replicas.len());
                let (chunks, _) = joined(&turned, &series);
                let run: Vec<usize> = (0..chunks.len()).collect();
                again.clear();
                prop_assert!(overlap.merge(&chunks, &run, 120, &mut again));
                prop_assert_eq!(samples(&again), samples(&merged));
            }
        }

        #[test]
        fn damage_is_left_to_others(
            series in series(),
            replicas in proptest::collection::vec(replica(), 2..4),
            flips in proptest::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 1..4),
        ) {
            let (mut chunks, _) = joined(&replicas, &series);
            if chunks.is_empty() {
                return Ok(());
            }
            for (at, bit) in flips {
                let at = at.index(chunks.len());
                let mut data = chunks[at].data.to_vec();
                let bit = bit.index(data.len() * 8);
                data[bit / 8] ^= 1 << (bit % 8);
                chunks[at].data = data.into();
            }
            let run: Vec<usize> = (0..chunks.len()).collect();
            let mut merged = Vec::new();
            if Overlap::default().merge(&chunks, &run, 120, &mut merged) {
                // A flipped bit may be another sample: it is the one that reading alone gives.
                let mut expected = BTreeMap::new();
                for chunk in &chunks {
                    for (time, bits) in samples(std::slice::from_ref(chunk)) {
                        expected.entry(time).or_insert(bits);
                    }
                }
                prop_assert_eq!(samples(&merged), expected.into_iter().collect::<Samples>());
            } else {
                prop_assert!(merged.is_empty());
            }
        }
    }

    #[test]
    fn bits_of_replicas_are_copied() {
        // Half a chunk later, and one sample less: what comes out takes what went in, and a few bits for each seam.
        let series: Samples =
            (0..1200).map(|at| (at * 15_000, value(3, (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)))).collect();
        let cut = |first: usize, lacks: usize| {
            let lacks = vec![(lacks, 1)];
            Replica { lacks, interleaves: None, first, per_chunk: 120, own: Vec::new() }
        };
        let (chunks, expected) = joined(&[cut(120, 500), cut(60, 700)], &series);
        let run: Vec<usize> = (0..chunks.len()).collect();
        let mut merged = Vec::new();
        assert!(Overlap::default().merge(&chunks, &run, 120, &mut merged));
        assert_eq!(samples(&merged), expected);
        let bytes = |chunks: &[Chunk]| chunks.iter().map(|chunk| chunk.data.len()).sum::<usize>();
        let alone: Vec<Chunk> = expected.chunks(120).map(chunk).collect();
        assert_eq!(merged.len(), alone.len());
        assert!(bytes(&merged) <= bytes(&alone) + 16 * alone.len(), "{} {}", bytes(&merged), bytes(&alone));
    }
}
