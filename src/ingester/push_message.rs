//! Pushes as messages, in two kinds: with the labels of every series, and with the hashes alone of series that the receiver
//! is likely to have. The second is a tenth of the first in bytes, and its receiver neither checks, hashes nor compares
//! labels. The client guesses ([`Guess`]): what a receiver does not know is repeated with labels, so a wrong guess costs a
//! round trip and nothing else, and nobody has to remember what others have.

use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use skald_model::{HistogramSample, LabelBytes, TimestampMs};
use skald_proto::grpc::{self as messages, MalformedMessage};
use skald_proto::{WriteBatch, WriteBatchBuilder};

use super::client::{KnownReply, PushReply, RejectedKind, Rejection};

/// Pushes with labels between two that guess, while most series are new to the receiver, and when it understands no hashes.
const PUSHES_UNTIL_NEXT_GUESS: u32 = 8;
const PUSHES_WHEN_NOT_UNDERSTOOD: u32 = 1000;

/// Whether series are worth sending without labels.
#[derive(Debug, Default)]
pub(super) struct Guess {
    /// Pushes that go with labels before the next that goes without.
    with_labels: AtomicU32,
}

impl Guess {
    /// Whether the next push should have labels at once.
    pub(super) fn should_send_labels(&self) -> bool {
        self.with_labels.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// What came of a push without labels.
    pub(super) fn found(&self, series: usize, unknown: usize) {
        if unknown * 2 > series {
            self.with_labels.store(PUSHES_UNTIL_NEXT_GUESS, Ordering::Relaxed);
        }
    }

    /// The receiver takes series with labels only.
    pub(super) fn is_not_understood(&self) {
        self.with_labels.store(PUSHES_WHEN_NOT_UNDERSTOOD, Ordering::Relaxed);
    }
}

/// A push with labels.
pub(super) fn message(batch: &WriteBatch) -> messages::PushRequest {
    let mut message = messages::PushRequest::default();
    let mut labels = Vec::new();
    let mut hashes = Vec::with_capacity(batch.series.len() * 16);
    for series in batch.iter() {
        labels.extend_from_slice(series.labels.as_bytes());
        message.label_lengths.push(series.labels.as_bytes().len() as u32);
        hashes.extend_from_slice(&series.hash.to_le_bytes());
        message.sample_counts.push(series.samples.len() as u32);
        if series.sample_starts.iter().any(|start| *start != 0) {
            message.start_timestamps.resize(message.timestamps.len(), 0);
            message.start_timestamps.extend_from_slice(series.sample_starts);
        }
        for sample in series.samples {
            message.timestamps.push(sample.timestamp);
            message.value_bits.push(sample.value.to_bits());
        }
        message.histogram_counts.push(series.histograms.len() as u32);
        message.histograms.extend(histograms(series.histograms, series.histogram_starts));
        message.exemplar_counts.push(series.exemplars.len() as u32);
        message.exemplars.extend(series.exemplars.iter().map(messages::Exemplar::from));
    }
    message.labels = labels.into();
    message.hashes = hashes.into();
    message.metadata = batch.metadata.iter().map(messages::Metadata::from).collect();
    message
}

/// A push of series that are known by their hashes.
pub(super) fn known_message(batch: &WriteBatch) -> messages::PushKnownRequest {
    let mut message = messages::PushKnownRequest::default();
    let mut hashes = Vec::with_capacity(batch.series.len() * 16);
    let mut previous: TimestampMs = 0;
    message.timestamp_deltas.reserve(batch.samples.len());
    message.value_bits.reserve(batch.samples.len());
    for series in batch.iter() {
        hashes.extend_from_slice(&series.hash.to_le_bytes());
        message.sample_counts.push(series.samples.len() as u32);
        if series.sample_starts.iter().any(|start| *start != 0) {
            message.start_timestamps.resize(message.value_bits.len(), 0);
            message.start_timestamps.extend_from_slice(series.sample_starts);
        }
        for sample in series.samples {
            message.timestamp_deltas.push(sample.timestamp.wrapping_sub(previous));
            message.value_bits.push(sample.value.to_bits());
            previous = sample.timestamp;
        }
        message.histogram_counts.push(series.histograms.len() as u32);
        message.histograms.extend(histograms(series.histograms, series.histogram_starts));
        message.exemplar_counts.push(series.exemplars.len() as u32);
        message.exemplars.extend(series.exemplars.iter().map(messages::Exemplar::from));
    }
    let usual =
        [(&mut message.sample_counts, 1), (&mut message.histogram_counts, 0), (&mut message.exemplar_counts, 0)];
    for (counts, usual) in usual {
        if counts.iter().all(|count| *count == usual) {
            *counts = Vec::new();
        }
    }
    message.hashes = hashes.into();
    message.metadata = batch.metadata.iter().map(messages::Metadata::from).collect();
    message
}

fn histograms(samples: &[HistogramSample], starts: &[TimestampMs]) -> impl Iterator<Item = messages::Histogram> {
    let starts = starts.iter().copied().chain(std::iter::repeat(0));
    samples.iter().zip(starts).map(|(sample, start_timestamp)| messages::Histogram {
        start_timestamp,
        ..messages::Histogram::from_sample(sample)
    })
}

/// How many entries of a column belong to each series.
struct Counts {
    counts: Vec<u32>,
    /// What the counts are where none are given.
    usual: u32,
}

impl Counts {
    fn new(counts: Vec<u32>, usual: u32, series: usize) -> Result<Self, MalformedMessage> {
        if counts.is_empty() || counts.len() == series {
            return Ok(Self { counts, usual });
        }
        Err(MalformedMessage("columns of unequal length"))
    }

    fn of(&self, series: usize) -> u32 {
        self.counts.get(series).copied().unwrap_or(self.usual)
    }
}

/// What series have besides their names.
struct Columns<F> {
    samples: Counts,
    /// Time and bits of the value.
    floats: F,
    starts: std::vec::IntoIter<TimestampMs>,
    histogram_counts: Counts,
    histograms: std::vec::IntoIter<messages::Histogram>,
    exemplar_counts: Counts,
    exemplars: std::vec::IntoIter<messages::Exemplar>,
}

fn short() -> MalformedMessage {
    MalformedMessage("a column is too short")
}

impl<F: Iterator<Item = (TimestampMs, u64)>> Columns<F> {
    /// Adds what belongs to a series to a batch in which it was begun.
    fn add(&mut self, series: usize, builder: &mut WriteBatchBuilder) -> Result<(), MalformedMessage> {
        for _ in 0..self.samples.of(series) {
            let (timestamp, bits) = self.floats.next().ok_or_else(short)?;
            builder.started_sample(timestamp, f64::from_bits(bits), self.starts.next().unwrap_or(0));
        }
        for _ in 0..self.histogram_counts.of(series) {
            let message = self.histograms.next().ok_or_else(short)?;
            let start = message.start_timestamp;
            let sample = message.into_sample();
            builder.started_histogram(sample.timestamp, sample.value, start);
        }
        for _ in 0..self.exemplar_counts.of(series) {
            builder.exemplar(self.exemplars.next().ok_or_else(short)?.try_into()?);
        }
        Ok(())
    }
}

/// The batch of a message. Labels stay slices of the received bytes, checked once more: a peer's bug must not reach
/// a head, where equal series are found by equal bytes.
pub(super) fn batch(message: messages::PushRequest) -> Result<WriteBatch, MalformedMessage> {
    let series = message.label_lengths.len();
    let counts = [&message.sample_counts, &message.histogram_counts, &message.exemplar_counts];
    if counts.iter().any(|c| c.len() != series)
        || message.hashes.len() != series * 16
        || message.timestamps.len() != message.value_bits.len()
    {
        return Err(MalformedMessage("columns of unequal length"));
    }
    let body: Bytes = message.labels;
    let mut builder = WriteBatchBuilder::over(body.clone());
    let mut columns = Columns {
        samples: Counts::new(message.sample_counts, 0, series)?,
        floats: message.timestamps.into_iter().zip(message.value_bits),
        starts: message.start_timestamps.into_iter(),
        histogram_counts: Counts::new(message.histogram_counts, 0, series)?,
        histograms: message.histograms.into_iter(),
        exemplar_counts: Counts::new(message.exemplar_counts, 0, series)?,
        exemplars: message.exemplars.into_iter(),
    };
    let mut at = 0_usize;
    for (i, length) in message.label_lengths.iter().enumerate() {
        let end = at.checked_add(*length as usize).ok_or_else(short)?;
        let bytes = body.get(at..end).ok_or_else(short)?;
        let labels = LabelBytes::check(bytes).ok_or(MalformedMessage("labels are not canonical"))?;
        builder.series_at(at..end, labels.hash());
        at = end;
        columns.add(i, &mut builder)?;
    }
    for metadata in message.metadata {
        builder.metadata(metadata.into());
    }
    Ok(builder.build())
}

/// The batch of a message without labels.
pub(super) fn known_batch(message: messages::PushKnownRequest) -> Result<WriteBatch, MalformedMessage> {
    let (hashes, rest) = message.hashes.as_chunks::<16>();
    if !rest.is_empty() || message.timestamp_deltas.len() != message.value_bits.len() {
        return Err(MalformedMessage("columns of unequal length"));
    }
    let mut time: TimestampMs = 0;
    let times = message.timestamp_deltas.into_iter().map(|delta| {
        time = time.wrapping_add(delta);
        time
    });
    let mut columns = Columns {
        samples: Counts::new(message.sample_counts, 1, hashes.len())?,
        floats: times.zip(message.value_bits),
        starts: message.start_timestamps.into_iter(),
        histogram_counts: Counts::new(message.histogram_counts, 0, hashes.len())?,
        histograms: message.histograms.into_iter(),
        exemplar_counts: Counts::new(message.exemplar_counts, 0, hashes.len())?,
        exemplars: message.exemplars.into_iter(),
    };
    let mut builder = WriteBatchBuilder::default();
    for (i, hash) in hashes.iter().enumerate() {
        builder.series_known(u128::from_le_bytes(*hash));
        columns.add(i, &mut builder)?;
    }
    for metadata in message.metadata {
        builder.metadata(metadata.into());
    }
    Ok(builder.build())
}

/// The answer to a push of so many series without labels.
pub(super) fn known_reply(message: messages::PushKnownResponse, series: usize) -> Result<KnownReply, MalformedMessage> {
    let unknown = message.unknown;
    if !unknown.is_sorted_by(|a, b| a < b) || unknown.last().is_some_and(|last| *last as usize >= series) {
        return Err(MalformedMessage("unknown series that were not sent"));
    }
    Ok(KnownReply { reply: reply(message.push.unwrap_or_default()), unknown })
}

/// The answer to both parts of a push.
pub(super) fn joined(mut one: PushReply, other: PushReply) -> PushReply {
    one.samples += other.samples;
    one.histograms += other.histograms;
    one.exemplars += other.exemplars;
    for rejection in other.rejections {
        let same = |known: &&mut Rejection| known.kind == rejection.kind && known.reason == rejection.reason;
        match one.rejections.iter_mut().find(same) {
            Some(known) => known.count += rejection.count,
            None => one.rejections.push(rejection),
        }
    }
    one
}

pub(super) fn reply_message(reply: PushReply) -> messages::PushResponse {
    let rejection = |r: Rejection| messages::Rejection {
        reason: r.reason.into_owned(),
        count: r.count,
        message: r.message,
        kind: match r.kind {
            RejectedKind::Sample => 0,
            RejectedKind::Exemplar => 1,
            RejectedKind::Metadata => 2,
        },
    };
    messages::PushResponse {
        samples: reply.samples,
        histograms: reply.histograms,
        exemplars: reply.exemplars,
        rejections: reply.rejections.into_iter().map(rejection).collect(),
    }
}

pub(super) fn reply(message: messages::PushResponse) -> PushReply {
    let rejection = |r: messages::Rejection| Rejection {
        kind: match r.kind {
            1 => RejectedKind::Exemplar,
            2 => RejectedKind::Metadata,
            _ => RejectedKind::Sample,
        },
        reason: r.reason.into(),
        count: r.count,
        message: r.message,
    };
    PushReply {
        samples: message.samples,
        histograms: message.histograms,
        exemplars: message.exemplars,
        rejections: message.rejections.into_iter().map(rejection).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use skald_model::{Exemplar, Histogram, HistogramValue, Labels};

    use super::*;

    #[test]
    fn starts_survive_the_wire() {
        let mut builder = WriteBatchBuilder::default();
        let value = || HistogramValue::Integer(Arc::new(Histogram::default()));
        builder.series([("a", "1")]).sample(10, 1.0);
        builder.series([("a", "2")]).sample(10, 1.0).started_sample(20, 2.0, 15).sample(30, 3.0);
        builder.series([("a", "3")]).sample(10, 1.0).histogram(5, value()).started_histogram(6, value(), 4);
        builder.series([("a", "4")]).started_sample(10, 1.0, -9);
        let sent = builder.build();
        let back = batch(message(&sent)).unwrap();
        assert_eq!((back.sample_starts, back.histogram_starts), (vec![0, 0, 15, 0, 0, -9], vec![0, 4]));
        let mut builder = WriteBatchBuilder::default();
        builder.series([("a", "1")]).sample(1, 1.0);
        let plain = message(&builder.build());
        assert!(plain.start_timestamps.is_empty());
    }

    #[test]
    fn what_is_known_travels_without_labels() {
        let mut builder = WriteBatchBuilder::default();
        let exemplar = Exemplar { labels: Labels::from_pairs([("trace", "x")]), value: 1.0, timestamp: 7 };
        builder.series([("a", "1")]).sample(i64::MIN, 1.0);
        builder.series([("a", "2")]).sample(i64::MAX, f64::NAN).started_sample(5, -0.0, 3).exemplar(exemplar);
        builder.series([("a", "3")]).histogram(5, HistogramValue::Integer(Arc::new(Histogram::default())));
        let odd = builder.build();
        (0..1000).for_each(|i| _ = builder.series([("i", i.to_string())]).sample(1_700_000_000_000 + i % 3, i as f64));
        let plain = builder.build();
        for sent in [&odd, &plain, &WriteBatch::default()] {
            let message = known_message(sent);
            let back = known_batch(message.clone()).unwrap();
            let again = known_message(&back);
            assert_eq!(format!("{again:?}"), format!("{message:?}"));
            assert_eq!(back.series.len(), sent.series.len());
            for (back, sent) in back.iter().zip(sent.iter()) {
                assert_eq!((back.hash, back.labels.as_bytes()), (sent.hash, &[][..]));
                let bits = |samples: &[skald_model::FloatSample]| -> Vec<(i64, u64)> {
                    samples.iter().map(|sample| (sample.timestamp, sample.value.to_bits())).collect()
                };
                assert_eq!(bits(back.samples), bits(sent.samples));
                assert_eq!(back.sample_starts, sent.sample_starts);
                assert_eq!((back.histograms.len(), back.exemplars), (sent.histograms.len(), sent.exemplars));
            }
        }
        let message = known_message(&plain);
        let counts = [&message.sample_counts, &message.histogram_counts, &message.exemplar_counts];
        assert!(counts.iter().all(|counts| counts.is_empty()), "what is usual takes no room");
    }

    #[test]
    fn malformed_messages_are_refused() {
        let mut builder = WriteBatchBuilder::default();
        builder.series([("a", "1")]).sample(1, 1.0);
        builder.series([("a", "2")]).sample(1, 1.0).sample(2, 1.0);
        let sound = known_message(&builder.build());
        let broken: [fn(&mut messages::PushKnownRequest); 5] = [
            |message| message.hashes.truncate(31),
            |message| message.sample_counts.truncate(1),
            |message| message.sample_counts = vec![1, 7],
            |message| _ = message.value_bits.pop(),
            |message| message.histogram_counts = vec![0, 1],
        ];
        for (number, spoil) in broken.into_iter().enumerate() {
            let mut message = sound.clone();
            spoil(&mut message);
            assert!(known_batch(message).is_err(), "{number}");
        }
        for unknown in [vec![2], vec![1, 0], vec![0, 0]] {
            let message = messages::PushKnownResponse { push: None, unknown };
            assert!(known_reply(message, 2).is_err());
        }
    }

    #[test]
    fn new_series_are_soon_sent_with_labels() {
        let guess = Guess::default();
        assert!(!guess.should_send_labels());
        guess.found(100, 51);
        let with_labels = (0..100).take_while(|_| guess.should_send_labels()).count();
        assert_eq!(with_labels, PUSHES_UNTIL_NEXT_GUESS as usize);
        guess.found(100, 50);
        assert!(!guess.should_send_labels());
        guess.is_not_understood();
        assert!(guess.should_send_labels());
    }
}
