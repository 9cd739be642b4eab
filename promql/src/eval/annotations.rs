//! What a query's answer has to be read with: warnings and infos.

use std::collections::BTreeSet;

use crate::ast::Span;

/// Distinct annotations kept of one query; further ones are only counted.
const KEPT: usize = 1000;

/// Warnings and infos, each once.
#[derive(Debug, Clone, Default)]
pub struct Annotations {
    warnings: BTreeSet<Annotation>,
    infos: BTreeSet<Annotation>,
}

/// One warning or info.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Annotation {
    start: usize,
    text: String,
}

impl Annotations {
    /// Adds a warning about the part of the query at `span`; `text` is what follows `PromQL warning: `.
    pub fn warn(&mut self, span: Span, text: impl Into<String>) {
        insert(&mut self.warnings, span, text.into());
    }

    /// Adds an info about the part of the query at `span`; `text` is what follows `PromQL info: `.
    pub fn info(&mut self, span: Span, text: impl Into<String>) {
        insert(&mut self.infos, span, text.into());
    }

    /// Takes over what another query said.
    pub fn merge(&mut self, other: Annotations) {
        self.warnings.extend(other.warnings);
        self.infos.extend(other.infos);
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.warnings.is_empty() && self.infos.is_empty()
    }

    /// The warnings as the API shows them, `query` being the text that was parsed: at most `limit`, then one that
    /// counts the rest.
    pub fn warnings(&self, query: &str, limit: usize) -> Vec<String> {
        render(&self.warnings, query, limit, "warning")
    }

    /// The infos as the API shows them, likewise.
    pub fn infos(&self, query: &str, limit: usize) -> Vec<String> {
        render(&self.infos, query, limit, "info")
    }
}

fn insert(set: &mut BTreeSet<Annotation>, span: Span, text: String) {
    if set.len() < KEPT {
        set.insert(Annotation { start: span.start, text });
    }
}

fn render(set: &BTreeSet<Annotation>, query: &str, limit: usize, kind: &str) -> Vec<String> {
    let mut texts: Vec<String> = set
        .iter()
        .take(limit)
        .map(|a| {
            let (line, column) = position(query, a.start);
            format!("PromQL {kind}: {} ({line}:{column})", a.text)
        })
        .collect();
    if set.len() > limit {
        texts.push(format!("{} more {kind} annotations omitted", set.len() - limit));
    }
    texts
}

/// Line and column of a byte of the query, both from 1.
pub fn position(query: &str, byte: usize) -> (usize, usize) {
    let before = &query.as_bytes()[..byte.min(query.len())];
    let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
    let column = before.len() - before.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1) + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_positions_and_counts_the_rest() {
        let mut annotations = Annotations::default();
        let query = "a +\n  rate(b[5m])";
        for start in [6, 11, 11] {
            annotations.warn(Span { start, end: 13 }, "odd");
        }
        assert_eq!(annotations.warnings(query, 10), ["PromQL warning: odd (2:3)", "PromQL warning: odd (2:8)"]);
        assert_eq!(annotations.warnings(query, 1)[1], "1 more warning annotations omitted");
        assert!(annotations.infos(query, 10).is_empty());
    }
}
