//! `absent` and `absent_over_time`: 1 at the steps where nothing is there.

use std::task::{Context, Poll, ready};

use skald_model::{Columns, Labels, LabelsBuilder, METRIC_NAME, MatchOp};

use super::env::Env;
use super::error::EvalError;
use super::operator::Operator;
use super::points::{Bits, StepSeries};
use super::range_function::Windows;
use super::window::WindowInput;
use crate::ast::{Expr, Span};
use crate::plan::Grid;

/// What may be absent.
pub(crate) enum Watched {
    Vector(Box<dyn Operator>),
    Window(Box<WindowInput>),
}

/// `absent` and `absent_over_time`.
pub(crate) struct Absent {
    watched: Watched,
    columns: Columns,
    labels: Labels,
    grid: Grid,
    present: Bits,
    span: Span,
    done: bool,
}

impl Absent {
    pub(crate) fn new(watched: Watched, labels: Labels, grid: Grid, span: Span) -> Self {
        Self { watched, columns: Columns::default(), labels, grid, present: Bits::new(grid.count), span, done: false }
    }
}

impl Operator for Absent {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        if self.done {
            return Poll::Ready(Ok(None));
        }
        match &mut self.watched {
            Watched::Vector(child) => {
                while let Some(series) = ready!(child.poll_next(cx, env))? {
                    self.present.unite(&series.points.floats);
                    series.points.histograms().iter().for_each(|(step, _)| self.present.set(*step as usize));
                    env.recycle(series.points);
                }
            }
            Watched::Window(input) => {
                let columns = &mut self.columns;
                while ready!(input.poll_series(cx, env, columns))?.is_some() {
                    let (mut windows, shape) = (Windows::new(columns), input.shape);
                    for step in 0..self.grid.count {
                        let end = shape.shift.apply(self.grid.time(step));
                        let window = windows.advance(end.saturating_sub(shape.range), end, step);
                        env.count_samples(shape.counted, step, window.len());
                        if window.len() > 0 {
                            self.present.set(step);
                        }
                    }
                    env.tick(self.grid.count)?;
                }
            }
        }
        self.done = true;
        let mut points = env.points(self.grid.count, self.span)?;
        points.values.fill(1.0);
        points.floats.set_all(self.grid.count);
        points.floats.subtract(&self.present);
        if points.is_empty() {
            return Poll::Ready(Ok(None));
        }
        Poll::Ready(Ok(Some(StepSeries { labels: self.labels.clone(), drop_name: false, points })))
    }
}

/// The labels that a selector asks for by equality; none for other expressions.
pub(crate) fn absent_labels(expr: &Expr) -> Labels {
    let matchers = match expr {
        Expr::Vector(selector) => &selector.matchers,
        Expr::Matrix(matrix) => &matrix.selector.matchers,
        _ => return Labels::empty(),
    };
    // In the order of the text: the first equality of a label sets it, everything else removes it again.
    let mut labels = LabelsBuilder::default();
    let mut set: Vec<&str> = Vec::new();
    for matcher in matchers.iter().filter(|m| m.name() != METRIC_NAME) {
        if matcher.op() == MatchOp::Equal && !set.contains(&matcher.name()) {
            labels.set(matcher.name(), matcher.value());
            set.push(matcher.name());
        } else {
            labels.set(matcher.name(), "");
        }
    }
    labels.build()
}
