//! Annotations taken apart, to be put together in another process.

use super::{Annotation, Annotations, Raised, insert};
use crate::ast::Span;
use crate::eval::histogram_function::classic::ForcedMonotonicity;

/// One thing that was said about a part of a query.
#[derive(Debug, Clone, PartialEq)]
pub enum AnnotationPart {
    /// A warning.
    Warning(Span, String),
    /// A warning that tells how often it occurred.
    Counted(Span, String, u64),
    /// An info.
    Info(Span, String),
    /// The info that buckets had to be raised.
    Raised {
        /// The part of the query.
        span: Span,
        /// The text without its details.
        text: String,
        /// Smallest bound of a raised bucket.
        min_bound: f64,
        /// Largest bound of a raised bucket.
        max_bound: f64,
        /// Largest difference made up for.
        max_difference: f64,
        /// First time it was needed.
        first: i64,
        /// Last time it was needed.
        last: i64,
        /// How many histograms needed it.
        samples: u64,
    },
}

impl Annotation {
    fn span(&self) -> Span {
        Span { start: self.start, end: self.end }
    }
}

impl Annotations {
    /// All that was said: [`Annotations::add`]ed one by one, it is the same again.
    pub fn parts(&self) -> impl Iterator<Item = AnnotationPart> {
        let warnings = self.warnings.iter().map(|a| AnnotationPart::Warning(a.span(), a.text.clone()));
        let infos = self.infos.iter().map(|a| AnnotationPart::Info(a.span(), a.text.clone()));
        let counted = self.counted.iter().map(|(a, n)| AnnotationPart::Counted(a.span(), a.text.clone(), *n));
        let raised = self.monotonicity.iter().map(|(a, raised)| AnnotationPart::Raised {
            span: a.span(),
            text: a.text.clone(),
            min_bound: raised.change.min_bound,
            max_bound: raised.change.max_bound,
            max_difference: raised.change.max_difference,
            first: raised.first,
            last: raised.last,
            samples: raised.samples,
        });
        warnings.chain(infos).chain(counted).chain(raised)
    }

    /// Adds what was said elsewhere.
    pub fn add(&mut self, part: AnnotationPart) {
        let at = |span: Span, text: String| Annotation { start: span.start, text, end: span.end };
        match part {
            AnnotationPart::Warning(span, text) => insert(&mut self.warnings, span, text),
            AnnotationPart::Info(span, text) => insert(&mut self.infos, span, text),
            AnnotationPart::Counted(span, text, count) => self.count(at(span, text), count),
            AnnotationPart::Raised { span, text, min_bound, max_bound, max_difference, first, last, samples } => {
                let change = ForcedMonotonicity { min_bound, max_bound, max_difference };
                self.raise(at(span, text), Raised { change, first, last, samples });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_put_together_again_say_the_same() {
        let mut said = Annotations::default();
        let span = Span { start: 3, end: 9 };
        said.warn(span, "odd");
        said.info(span, "curious");
        (0..3).for_each(|_| said.warn_counted(span, "mixed"));
        for time in [60_000, 120_000] {
            let change = ForcedMonotonicity { min_bound: 0.5, max_bound: f64::INFINITY, max_difference: 2.0 };
            said.info_forced_monotonicity(span, "m", change, time);
        }
        let mut halves = [Annotations::default(), Annotations::default()];
        said.parts().for_each(|part| halves[0].add(part));
        assert_eq!(halves[0].warnings("0123456789", 10), said.warnings("0123456789", 10));
        assert_eq!(halves[0].infos("0123456789", 10), said.infos("0123456789", 10));
        let [mut first, second] = halves;
        first.merge(second);
        assert_eq!(first.infos("0123456789", 10), said.infos("0123456789", 10));
    }
}
