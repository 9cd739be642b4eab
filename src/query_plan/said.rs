//! What is said about an answer, as messages: annotations, statistics, costs.

use std::time::Duration;

use skald_promql::ast::Span;
use skald_promql::eval::{AnnotationPart, Annotations, NodeCost, QueryStats};
use skald_proto::grpc::{self as messages, MalformedMessage};

mod kind {
    pub const WARNING: u32 = 0;
    pub const INFO: u32 = 1;
    pub const COUNTED: u32 = 2;
    pub const RAISED: u32 = 3;
}

/// Annotations as messages.
pub fn annotation_messages(annotations: &Annotations) -> Vec<messages::Annotation> {
    let plain = |kind: u32, span: Span, text: String| messages::Annotation {
        kind,
        start: span.start as u64,
        end: span.end as u64,
        text,
        ..messages::Annotation::default()
    };
    let message = |part| match part {
        AnnotationPart::Warning(span, text) => plain(kind::WARNING, span, text),
        AnnotationPart::Info(span, text) => plain(kind::INFO, span, text),
        AnnotationPart::Counted(span, text, count) => {
            messages::Annotation { count, ..plain(kind::COUNTED, span, text) }
        }
        AnnotationPart::Raised { span, text, min_bound, max_bound, max_difference, first, last, samples } => {
            messages::Annotation {
                count: samples,
                min_bound_bits: min_bound.to_bits(),
                max_bound_bits: max_bound.to_bits(),
                max_difference_bits: max_difference.to_bits(),
                first,
                last,
                ..plain(kind::RAISED, span, text)
            }
        }
    };
    annotations.parts().map(message).collect()
}

/// The annotations behind messages.
pub fn annotations(messages: Vec<messages::Annotation>) -> Result<Annotations, MalformedMessage> {
    let mut annotations = Annotations::default();
    for message in messages {
        let at = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let span = Span { start: at(message.start), end: at(message.end) };
        annotations.add(match message.kind {
            kind::WARNING => AnnotationPart::Warning(span, message.text),
            kind::INFO => AnnotationPart::Info(span, message.text),
            kind::COUNTED => AnnotationPart::Counted(span, message.text, message.count),
            kind::RAISED => AnnotationPart::Raised {
                span,
                text: message.text,
                min_bound: f64::from_bits(message.min_bound_bits),
                max_bound: f64::from_bits(message.max_bound_bits),
                max_difference: f64::from_bits(message.max_difference_bits),
                first: message.first,
                last: message.last,
                samples: message.count,
            },
            _ => return Err(MalformedMessage("unknown kind of annotation")),
        });
    }
    Ok(annotations)
}

/// Statistics as a message.
pub fn stats_message(stats: QueryStats) -> messages::QueryStats {
    messages::QueryStats {
        series_read: stats.series_read,
        samples_read: stats.samples_read,
        queryable_samples: stats.queryable_samples,
        queryable_samples_per_step: stats.queryable_samples_per_step,
        peak_samples: stats.peak_samples,
        peak_bytes: stats.peak_bytes,
    }
}

/// The statistics behind a message.
pub fn stats(message: Option<messages::QueryStats>) -> QueryStats {
    let message = message.unwrap_or_default();
    QueryStats {
        series_read: message.series_read,
        samples_read: message.samples_read,
        queryable_samples: message.queryable_samples,
        queryable_samples_per_step: message.queryable_samples_per_step,
        peak_samples: message.peak_samples,
        peak_bytes: message.peak_bytes,
    }
}

/// Costs of a plan's nodes as messages; none if they were not measured.
pub fn cost_messages(costs: Option<&[NodeCost]>) -> Vec<messages::NodeCost> {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let message = |cost: &NodeCost| messages::NodeCost {
        nanos: nanos(cost.time),
        worker_nanos: nanos(cost.worker_time),
        series: cost.series,
        points: cost.points,
        bytes: cost.bytes,
        series_read: cost.series_read,
        samples_read: cost.samples_read,
        bytes_read: cost.bytes_read,
    };
    costs.unwrap_or_default().iter().map(message).collect()
}

/// The costs behind messages, if there are any.
pub fn costs(messages: Vec<messages::NodeCost>) -> Option<Vec<NodeCost>> {
    let cost = |message: messages::NodeCost| NodeCost {
        time: Duration::from_nanos(message.nanos),
        worker_time: Duration::from_nanos(message.worker_nanos),
        series: message.series,
        points: message.points,
        bytes: message.bytes,
        series_read: message.series_read,
        samples_read: message.samples_read,
        bytes_read: message.bytes_read,
    };
    (!messages.is_empty()).then(|| messages.into_iter().map(cost).collect())
}
