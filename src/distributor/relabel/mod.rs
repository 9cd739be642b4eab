//! Relabelling of a tenant's series before they are checked, by Prometheus' rules (`metric_relabel_configs`).
//!
//! [`rules`] is what is written in the settings, checked and compiled when they are read; [`template`] a replacement with
//! references to groups; [`labels`] the labels of one series while rules change them; [`mod@apply`] what a rule does to them.
//!
//! A series that no rule changes keeps the bytes it was received as. Exemplars go with their series and keep their own
//! labels; metadata is not touched.

mod apply;
mod labels;
mod rules;
mod template;

#[cfg(test)]
mod tests;

use skald_model::LabelBytes;
use skald_proto::remote_write::{Received, Rewrite};

use super::limits::{Limits, NameValidation};
use super::rejections::{LeftOut, Rejections, shown};
use crate::ingester::client::RejectedKind;
use crate::tenant::TenantId;
use apply::{Memo, Verdict, apply};
use labels::Working;
pub use rules::RelabelRules;
use rules::Rule;

/// Carries the tenant's name while rules are applied, as in Mimir.
const TENANT_LABEL: &str = "__meta_tenant_id";

/// Most bytes that rules may write for one series, and that its labels may take in the end. No limit of labels' lengths that
/// makes sense is larger; without it a few rules that double a value would take all memory.
const MAX_SERIES_BYTES: usize = 1 << 20;

/// Whether a tenant's series are relabelled at all.
pub(super) fn is_wanted(limits: &Limits) -> bool {
    !limits.metric_relabel_configs.is_empty() || !limits.drop_labels.is_empty()
}

/// Applies the tenant's rules, then takes the labels of `drop_labels` off. What the rules leave out is returned; what they
/// would make too large, beyond `max_bytes` for the whole write, is refused.
pub(super) fn relabel(
    tenant: &TenantId,
    received: &mut Received,
    limits: &Limits,
    max_bytes: usize,
    rejections: &mut Rejections,
) -> LeftOut {
    let mut relabeller = Relabeller::new(tenant, limits);
    let mut left_out = LeftOut::default();
    let mut total = 0;
    received.rewrite_series(|size, labels, written| {
        let too_large = match relabeller.relabel(labels, written) {
            Outcome::Unchanged => return Rewrite::Keep,
            Outcome::Dropped => {
                left_out.add(size);
                return Rewrite::Drop;
            }
            Outcome::Changed => {
                total += written.len();
                total > max_bytes
            }
            Outcome::TooLarge => true,
        };
        if !too_large {
            return Rewrite::Replace;
        }
        let message = || {
            format!(
                "limits.metric_relabel_configs make labels of more than {MAX_SERIES_BYTES} bytes for a series, or of more \
                 than {max_bytes} for a write: {}",
                shown(labels.to_labels())
            )
        };
        let reason = "relabelled-labels-too-large";
        rejections.add(RejectedKind::Sample, reason, size.samples + size.histograms, message);
        rejections.add(RejectedKind::Exemplar, reason, size.exemplars, message);
        Rewrite::Drop
    });
    left_out
}

/// What became of one series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Unchanged,
    Changed,
    Dropped,
    TooLarge,
}

/// A tenant's rules, and what one write needs to apply them.
struct Relabeller<'r> {
    tenant: &'r TenantId,
    rules: &'r [Rule],
    drop_labels: &'r [String],
    legacy_names: bool,
    memos: Vec<Memo>,
    working: Working<'static>,
    value: String,
}

impl<'r> Relabeller<'r> {
    fn new(tenant: &'r TenantId, limits: &'r Limits) -> Self {
        let rules = limits.metric_relabel_configs.rules();
        Self {
            tenant,
            rules,
            drop_labels: &limits.drop_labels,
            legacy_names: limits.name_validation_scheme == NameValidation::Legacy,
            memos: rules.iter().map(Memo::new).collect(),
            working: Working::default(),
            value: String::new(),
        }
    }

    /// Relabels a series; its labels, when they changed, are appended to `written`.
    fn relabel(&mut self, labels: LabelBytes<'_>, written: &mut Vec<u8>) -> Outcome {
        let mut working = std::mem::take(&mut self.working).load(labels);
        let outcome = self.apply(&mut working, written);
        self.working = working.unload();
        outcome
    }

    fn apply<'s>(&mut self, working: &mut Working<'s>, written: &mut Vec<u8>) -> Outcome
    where
        'r: 's,
    {
        if !self.rules.is_empty() {
            working.set_given(TENANT_LABEL, self.tenant.as_str());
        }
        for (rule, memo) in self.rules.iter().zip(&mut self.memos) {
            match apply(rule, memo, self.legacy_names, working, &mut self.value) {
                Verdict::Keep => {}
                Verdict::Drop => return Outcome::Dropped,
                Verdict::TooLarge => return Outcome::TooLarge,
            }
        }
        if !self.rules.is_empty() {
            working.remove(TENANT_LABEL);
        }
        self.drop_labels.iter().for_each(|name| working.remove(name));
        if working.len() == 0 {
            Outcome::Dropped
        } else if !working.encode(MAX_SERIES_BYTES, written) {
            Outcome::TooLarge
        } else if written.is_empty() {
            Outcome::Unchanged
        } else {
            Outcome::Changed
        }
    }
}
