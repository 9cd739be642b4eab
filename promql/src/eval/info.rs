//! `info`: adds the labels of info series to the series of a vector.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use hashbrown::{HashMap, HashSet};
use skald_model::{Labels, LabelsBuilder, METRIC_NAME, MatchOp, Matcher};

use super::context::Charge;
use super::env::Env;
use super::error::EvalError;
use super::group_index::{GroupIndex, LabelSubset};
use super::operator::Operator;
use super::points::{Bits, Points, StepSeries};
use crate::ast::Span;
use crate::plan::Grid;

/// Labels that tell which info series belong to a series.
const IDENTIFYING: [&str; 2] = ["instance", "job"];
/// The info metric that is meant if none is named.
const DEFAULT_METRIC: &str = "target_info";
/// Metrics that are meant if the query only says which are not.
const ANY_INFO_METRIC: &str = ".+_info";

/// Which info series are joined, and which of their labels.
pub(crate) struct InfoSelection {
    /// Conditions on the metric name; at least one says what it is, not what it is not.
    names: Vec<Matcher>,
    /// Conditions on other labels; only these labels are copied. None: all are.
    data: Vec<Matcher>,
}

impl InfoSelection {
    /// From the matchers of the function's second argument.
    pub(crate) fn new(matchers: &[Matcher]) -> Result<Self, EvalError> {
        let (mut names, data): (Vec<_>, Vec<_>) = matchers.iter().cloned().partition(|m| m.name() == METRIC_NAME);
        if names.is_empty() {
            names.push(Matcher::equal(METRIC_NAME, DEFAULT_METRIC));
        } else if names.iter().all(|m| matches!(m.op(), MatchOp::NotEqual | MatchOp::NotRegex)) {
            let any = Matcher::new(MatchOp::Regex, METRIC_NAME, ANY_INFO_METRIC);
            names.push(any.map_err(|e| EvalError::Internal(e.to_string()))?);
        }
        Ok(Self { names, data })
    }

    /// What to select.
    pub(crate) fn matchers(&self) -> Vec<Matcher> {
        self.names.iter().chain(&self.data).cloned().collect()
    }

    fn is_info(&self, labels: &Labels) -> bool {
        let name = labels.metric_name().unwrap_or("");
        self.names.iter().all(|m| m.matches(name))
    }

    fn copies(&self, label: &str) -> bool {
        label != METRIC_NAME && (self.data.is_empty() || self.data.iter().any(|m| m.name() == label))
    }

    /// Whether a series without info series stays.
    fn optional(&self) -> bool {
        self.data.iter().all(Matcher::matches_empty)
    }
}

/// The `info` function.
pub(crate) struct Info {
    base: Box<dyn Operator>,
    /// Yields the times of the info series' samples as values, names kept.
    infos: Box<dyn Operator>,
    selection: InfoSelection,
    index: GroupIndex,
    groups: Vec<Vec<InfoMetric>>,
    /// The series of the base, once all are read.
    bases: VecDeque<StepSeries>,
    based: bool,
    /// The steps where the base has an element.
    present: Bits,
    /// The values that each identifying label has in the base.
    identities: [HashSet<String, foldhash::fast::RandomState>; 2],
    loaded: bool,
    ready: VecDeque<StepSeries>,
    /// The steps of each label set of the result.
    results: HashMap<Labels, Bits, foldhash::fast::RandomState>,
    grid: Grid,
    charge: Charge,
    span: Span,
}

/// The info series of one metric and one identity.
struct InfoMetric {
    name: String,
    series: Vec<Labels>,
    /// Per step the series with the newest sample and that sample's time.
    newest: Vec<Option<(u32, f64)>>,
}

impl Info {
    pub(crate) fn new(
        base: Box<dyn Operator>,
        infos: Box<dyn Operator>,
        selection: InfoSelection,
        grid: Grid,
        charge: Charge,
        span: Span,
    ) -> Self {
        let identity = LabelSubset::only(&IDENTIFYING.map(str::to_owned));
        Self {
            base,
            infos,
            selection,
            index: GroupIndex::new(identity),
            groups: Vec::new(),
            bases: VecDeque::new(),
            based: false,
            present: Bits::new(grid.count),
            identities: Default::default(),
            loaded: false,
            ready: VecDeque::new(),
            results: HashMap::default(),
            grid,
            charge,
            span,
        }
    }

    /// Keeps a series of the base; what identifies it tells which info series count.
    fn keep_base(&mut self, mut series: StepSeries) -> Result<(), EvalError> {
        let mut steps = Bits::default();
        series.points.presence(&mut steps);
        self.present.unite(&steps);
        if !self.selection.is_info(&series.labels) {
            for (name, values) in IDENTIFYING.iter().zip(&mut self.identities) {
                if let Some(value) = series.labels.get(name)
                    && !values.contains(value)
                {
                    self.charge.grow(48 + value.len(), self.span)?;
                    values.insert(value.to_owned());
                }
            }
        }
        series.points.hold()?;
        self.bases.push_back(series);
        Ok(())
    }

    /// Whether Prometheus would read an info series: for each identifying label that the base has at all, the value
    /// must be one that occurs there.
    fn counts(&self, labels: &Labels) -> bool {
        let known = |(name, values): (&&str, &HashSet<String, _>)| {
            values.is_empty() || labels.get(name).is_some_and(|value| values.contains(value))
        };
        IDENTIFYING.iter().zip(&self.identities).all(known) && self.identities.iter().any(|values| !values.is_empty())
    }

    /// Keeps an info series.
    fn keep(&mut self, series: &StepSeries) -> Result<(), EvalError> {
        if !self.counts(&series.labels) {
            return Ok(());
        }
        if series.points.has_histograms() {
            let text = format!("this should be an info metric, with float samples: {}", series.labels);
            return Err(EvalError::Execution(text));
        }
        let id = self.index.insert(&series.labels);
        if id == self.groups.len() {
            self.groups.push(Vec::new());
        }
        let group = &mut self.groups[id];
        let name = series.labels.metric_name().unwrap_or("");
        let at = match group.iter().position(|metric| metric.name == name) {
            Some(at) => at,
            None => {
                self.charge.grow(self.grid.count * size_of::<Option<(u32, f64)>>() + 128, self.span)?;
                let newest = vec![None; self.grid.count];
                group.push(InfoMetric { name: name.to_owned(), series: Vec::new(), newest });
                group.len() - 1
            }
        };
        self.charge.grow(64 + series.labels.as_bytes().len(), self.span)?;
        let metric = &mut group[at];
        let new = metric.series.len() as u32;
        metric.series.push(series.labels.clone());
        // Where the base has nothing, conflicts do not matter.
        for step in series.points.floats.ones().filter(|step| self.present.get(*step)) {
            let time = series.points.values[step];
            let newest = &mut metric.newest[step];
            match newest {
                Some((other, at)) if *at == time => {
                    let (other, ms) = (&metric.series[*other as usize], time * 1000.0);
                    let text = format!(
                        "found duplicate series for info metric: existing {other} @ {ms}, new {} @ {ms}",
                        series.labels
                    );
                    return Err(EvalError::Execution(text));
                }
                Some((_, at)) if *at > time => {}
                _ => *newest = Some((new, time)),
            }
        }
        Ok(())
    }

    fn enrich(&mut self, base: StepSeries, env: &mut Env<'_>) -> Result<(), EvalError> {
        if self.selection.is_info(&base.labels) {
            return self.yields(base);
        }
        let Some(group) = self.index.get(&base.labels).map(|id| &self.groups[id]) else {
            if self.selection.optional() {
                self.yields(base)?;
            } else {
                env.recycle(base.points);
            }
            return Ok(());
        };
        // Steps with the same info series make one series of the result; most often that is all of them.
        let mut parts: Vec<(Vec<Option<u32>>, Points)> = Vec::new();
        for step in 0..self.grid.count {
            let Some(point) = base.points.get(step) else { continue };
            let found: Vec<Option<u32>> = group.iter().map(|metric| metric.newest[step].map(|(i, _)| i)).collect();
            if found.iter().all(Option::is_none) && !self.selection.optional() {
                continue;
            }
            let at = match parts.iter().position(|(other, _)| *other == found) {
                Some(at) => at,
                None => {
                    parts.push((found, env.points(self.grid.count, self.span)?));
                    parts.len() - 1
                }
            };
            parts[at].1.push(step, point, self.span)?;
        }
        env.tick(self.grid.count)?;
        let mut enriched = Vec::with_capacity(parts.len());
        for (found, points) in parts {
            let labels = self.selection.add_labels(&base.labels, group, &found)?;
            enriched.push(StepSeries { labels, drop_name: base.drop_name, points });
        }
        enriched.into_iter().try_for_each(|series| self.yields(series))?;
        env.recycle(base.points);
        Ok(())
    }

    /// Queues a series of the result; two elements of equal labels at one step are refused.
    fn yields(&mut self, series: StepSeries) -> Result<(), EvalError> {
        let mut steps = Bits::default();
        series.points.presence(&mut steps);
        match self.results.get_mut(&series.labels) {
            Some(seen) if seen.intersects(&steps) => return Err(EvalError::duplicate_labels()),
            Some(seen) => seen.unite(&steps),
            None => {
                self.charge.grow(96 + self.grid.count / 8, self.span)?;
                self.results.insert(series.labels.clone(), steps);
            }
        }
        self.ready.push_back(series);
        Ok(())
    }
}

impl InfoSelection {
    fn add_labels(&self, base: &Labels, group: &[InfoMetric], found: &[Option<u32>]) -> Result<Labels, EvalError> {
        let mut added = LabelsBuilder::default();
        for (metric, series) in group.iter().zip(found) {
            let Some(series) = series else { continue };
            for (name, value) in &metric.series[*series as usize] {
                if !self.copies(name) || base.get(name).is_some() {
                    continue;
                }
                if added.get(name).is_some_and(|other| other != value) {
                    return Err(EvalError::Execution(format!("conflicting label: {name}")));
                }
                added.set(name, value);
            }
        }
        let mut labels = LabelsBuilder::new(base);
        for (name, value) in &added.build() {
            labels.set(name, value);
        }
        Ok(labels.build())
    }
}

impl Operator for Info {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        while !self.based {
            match ready!(self.base.poll_next(cx, env))? {
                Some(series) => {
                    env.tick(self.grid.count)?;
                    self.keep_base(series)?;
                }
                None => self.based = true,
            }
        }
        while !self.loaded {
            match ready!(self.infos.poll_next(cx, env))? {
                Some(series) => {
                    self.keep(&series)?;
                    env.tick(self.grid.count)?;
                    env.recycle(series.points);
                }
                None => self.loaded = true,
            }
        }
        loop {
            if let Some(series) = self.ready.pop_front() {
                return Poll::Ready(Ok(Some(series)));
            }
            let Some(base) = self.bases.pop_front() else { return Poll::Ready(Ok(None)) };
            self.enrich(base, env)?;
        }
    }
}
