//! Partial results of shards as messages of bounded size.

use std::ops::Range;

use skald_model::{FloatHistogram, HistogramValue};
use skald_promql::eval::{PartialGroup, PartialTotal};
use skald_proto::grpc::{self as messages, MalformedMessage};

/// Steps of one group in a message, a multiple of 64; a longer group goes on in the next one.
const STEPS_PER_PART: usize = 16_384;
/// Totals of histograms in a part of a group.
const TOTALS_PER_PART: usize = 256;
/// What one message holds at most, or one more part: numbers of 8 bytes.
const NUMBERS_PER_MESSAGE: usize = 64 << 10;
/// Numbers that a total counts as.
const NUMBERS_OF_TOTAL: usize = 64;

/// Groups as lists of parts, each for one message.
pub fn group_messages(groups: Vec<PartialGroup>) -> impl Iterator<Item = Vec<messages::PartialGroup>> {
    let mut parts = groups.into_iter().flat_map(parts).peekable();
    std::iter::from_fn(move || {
        let mut message = Vec::new();
        let mut numbers = 0;
        while numbers < NUMBERS_PER_MESSAGE
            && let Some(part) = parts.next()
        {
            numbers += 8 + part.first_bits.len() * 4 + part.histograms.len() * NUMBERS_OF_TOTAL;
            message.push(part);
        }
        (!message.is_empty()).then_some(message)
    })
}

fn parts(group: PartialGroup) -> impl Iterator<Item = messages::PartialGroup> {
    let longest = [group.first.len(), group.second.len(), group.count.len(), group.floats.len() * 64];
    let steps = longest.into_iter().max().unwrap_or(0).max(group.incremental.len() * 64);
    let count = steps.div_ceil(STEPS_PER_PART).max(group.histograms.len().div_ceil(TOTALS_PER_PART)).max(1);
    (0..count).map(move |part| {
        let cut =
            |length: usize, most: usize| -> Range<usize> { (part * most).min(length)..((part + 1) * most).min(length) };
        let words = |words: &[u64]| words[cut(words.len(), STEPS_PER_PART / 64)].to_vec();
        let numbers = |column: &[f64]| column[cut(column.len(), STEPS_PER_PART)].iter().map(|v| v.to_bits()).collect();
        messages::PartialGroup {
            labels: if part == 0 { group.labels.as_bytes().to_vec() } else { Vec::new() },
            drop_name: group.drop_name,
            floats: words(&group.floats),
            first_bits: numbers(&group.first),
            second_bits: numbers(&group.second),
            count_bits: numbers(&group.count),
            incremental: words(&group.incremental),
            histograms: group.histograms[cut(group.histograms.len(), TOTALS_PER_PART)]
                .iter()
                .map(|(step, total)| total_message(*step, total.as_ref()))
                .collect(),
            continues: part > 0,
        }
    })
}

fn total_message(step: u32, total: Option<&PartialTotal>) -> messages::PartialTotal {
    let Some(total) = total else {
        return messages::PartialTotal { step, ..messages::PartialTotal::default() };
    };
    messages::PartialTotal {
        step,
        sum: Some(messages::Histogram::from_float(0, &total.sum)),
        compensation: Some(messages::Histogram::from_float(0, &total.compensation)),
        count_bits: total.count.to_bits(),
        incremental: total.incremental,
        saw_reset: total.saw_reset,
        saw_no_reset: total.saw_no_reset,
        reconciled: total.reconciled,
    }
}

/// Takes the parts of one message to the groups before.
pub fn add_groups(groups: &mut Vec<PartialGroup>, parts: Vec<messages::PartialGroup>) -> Result<(), MalformedMessage> {
    for part in parts {
        if !part.continues {
            groups.push(PartialGroup {
                labels: messages::labels(&part.labels)?,
                drop_name: part.drop_name,
                floats: Vec::new(),
                first: Vec::new(),
                second: Vec::new(),
                count: Vec::new(),
                incremental: Vec::new(),
                histograms: Vec::new(),
            });
        }
        let group = groups.last_mut().ok_or(MalformedMessage("a group goes on that has not begun"))?;
        let numbers = |bits: Vec<u64>| bits.into_iter().map(f64::from_bits);
        group.floats.extend(part.floats);
        group.first.extend(numbers(part.first_bits));
        group.second.extend(numbers(part.second_bits));
        group.count.extend(numbers(part.count_bits));
        group.incremental.extend(part.incremental);
        for total in part.histograms {
            group.histograms.push((total.step, partial_total(total)?));
        }
    }
    Ok(())
}

fn partial_total(message: messages::PartialTotal) -> Result<Option<PartialTotal>, MalformedMessage> {
    let (Some(sum), Some(compensation)) = (message.sum, message.compensation) else { return Ok(None) };
    Ok(Some(PartialTotal {
        sum: float_histogram(sum)?,
        compensation: float_histogram(compensation)?,
        count: f64::from_bits(message.count_bits),
        incremental: message.incremental,
        saw_reset: message.saw_reset,
        saw_no_reset: message.saw_no_reset,
        reconciled: message.reconciled,
    }))
}

fn float_histogram(message: messages::Histogram) -> Result<FloatHistogram, MalformedMessage> {
    let HistogramValue::Float(histogram) = message.into_sample().value else {
        return Err(MalformedMessage("a partial total is not a float histogram"));
    };
    histogram.check_layout().map_err(|_| MalformedMessage("the buckets of a partial total do not fit its spans"))?;
    Ok(std::sync::Arc::unwrap_or_clone(histogram))
}
