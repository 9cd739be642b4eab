//! Flushes before their time: pods come and go all day, and their series would stay until their range is over.
//!
//! When the process holds many series, heads of which a good part has ended are cut some 20 minutes behind their newest
//! sample. What arrives later for the time cut off is taken as any late sample: beside the chunks, within the
//! out-of-order window, for the next block.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use skald_model::TimestampMs;

use super::flush::FlushExtent;
use super::tenants::Tenant;
use super::{BLOCK_RANGE_MS, Config, Ingester};
use crate::limits::TenantLimits;

/// What stays in memory, counted back from a head's newest sample: a series without a sample for so long has ended
/// (Mimir's idea of an active series).
const KEPT_MS: i64 = 20 * 60 * 1000;

/// What stays where the out-of-order window is so short that a cut could refuse what the ordinary one, half a range after
/// the range's end, would take.
const KEPT_WITH_SHORT_WINDOW_MS: i64 = BLOCK_RANGE_MS / 2;

/// A head's series, and how many of them an early flush would let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reduction {
    series: usize,
    ended: usize,
}

/// Whose heads to flush early: those with the most ended series first, as long as there are too many series, none of which
/// less than `min_percentage` have ended.
fn choose(heads: &[Reduction], min_series: usize, min_percentage: u32) -> Vec<usize> {
    let mut total: usize = heads.iter().map(|head| head.series).sum();
    let is_worth_it = |head: &Reduction| {
        head.ended > 0 && head.ended as u128 * 100 >= head.series as u128 * u128::from(min_percentage)
    };
    let mut worth_it: Vec<usize> = (0..heads.len()).filter(|at| is_worth_it(&heads[*at])).collect();
    worth_it.sort_by_key(|at| Reverse(heads[*at].ended));
    let is_wanted = |at: &usize| {
        let wanted = total >= min_series;
        total -= heads[*at].ended;
        wanted
    };
    worth_it.into_iter().take_while(is_wanted).collect()
}

/// Up to where a head is cut early.
fn cut_time(head: &Tenant, window: Duration, now: TimestampMs) -> Option<TimestampMs> {
    let window = window.as_millis() as i64;
    let kept = if window >= KEPT_WITH_SHORT_WINDOW_MS { KEPT_MS } else { KEPT_WITH_SHORT_WINDOW_MS };
    // One sample of the future must not end all other series.
    head.head.max_time().map(|newest| newest.min(now).saturating_sub(kept))
}

impl Ingester {
    /// Flushes what has ended, if there are too many series.
    pub(super) async fn flush_early(&self) {
        let shared = &self.shared;
        let Some(min_series) = shared.config.early_head_compaction_min_in_memory_series else { return };
        let tenants = shared.tenants.all();
        if tenants.iter().map(|tenant| tenant.head.series_count()).sum::<usize>() < min_series {
            return;
        }
        let (config, limits, now) = (shared.config.clone(), shared.limits.clone(), shared.runtime.clock.now_ms());
        // A task that is lost leaves everything for the next round.
        let chosen =
            shared.runtime.background_pool.run(move || chosen(tenants, &config, &limits, min_series, now)).await;
        for (tenant, up_to, Reduction { series, ended }) in chosen.unwrap_or_default() {
            tracing::info!(tenant = %tenant.id, series, ended, "head is flushed early: many of its series have ended");
            if let Err(error) = self.flush(&tenant, FlushExtent::Before(up_to)).await {
                shared.metrics.flush_failures.inc();
                tracing::error!(tenant = %tenant.id, %error, "head could not be flushed early");
            }
        }
    }
}

fn chosen(
    tenants: Vec<Arc<Tenant>>,
    config: &Config,
    limits: &TenantLimits,
    min_series: usize,
    now: TimestampMs,
) -> Vec<(Arc<Tenant>, TimestampMs, Reduction)> {
    let with_times = tenants.into_iter().filter_map(|tenant| {
        let window = limits.of(&tenant.id).ingester.out_of_order_time_window;
        Some((cut_time(&tenant, window, now)?, tenant))
    });
    let looked_at: Vec<(Arc<Tenant>, TimestampMs, Reduction)> = with_times
        .map(|(up_to, tenant)| {
            let (series, ended) = (tenant.head.series_count(), tenant.head.series_before(up_to));
            (tenant, up_to, Reduction { series, ended: ended.min(series) })
        })
        .collect();
    let reductions: Vec<Reduction> = looked_at.iter().map(|(_, _, reduction)| *reduction).collect();
    let percentage = config.early_head_compaction_min_estimated_series_reduction_percentage;
    choose(&reductions, min_series, percentage).into_iter().map(|at| looked_at[at].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(heads: &[(usize, usize)], min_series: usize, min_percentage: u32, expected: &[usize]) {
        let heads: Vec<_> = heads.iter().map(|(series, ended)| Reduction { series: *series, ended: *ended }).collect();
        assert_eq!(choose(&heads, min_series, min_percentage), expected);
    }

    #[test]
    fn the_most_is_let_go_where_it_is_worth_a_block() {
        check(&[], 1, 15, &[]);
        check(&[(100, 50)], 101, 15, &[]);
        check(&[(100, 50)], 100, 15, &[0]);
        check(&[(100, 14)], 100, 15, &[]);
        check(&[(100, 15)], 100, 15, &[0]);
        check(&[(100, 0)], 100, 0, &[]);
        // Two tenants are enough; the third has too few, whatever the total.
        check(&[(100, 20), (100, 60), (100, 90), (1000, 100)], 1200, 15, &[2, 1]);
        check(&[(100, 20), (100, 60), (100, 90), (1000, 100)], 1000, 15, &[2, 1, 0]);
    }
}
