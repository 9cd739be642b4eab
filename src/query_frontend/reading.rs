//! Reads queries and selectors: what is quickly read where it arrives, the rest on the query pool, until nobody waits for
//! it any more.

use std::time::Duration;

use skald_model::Matcher;
use skald_promql::ast::Expr;
use skald_promql::eval::{CancelOnDrop, Interrupt};
use skald_promql::parse::{GoOn, parse_expr_while};

use super::QueryFrontend;
use super::params::{Params, bad_data, invalid, read_selectors};
use super::query::timed_out;
use crate::error::ServiceError;
use crate::tenant::TenantId;

/// Bytes up to which a query is parsed and planned where it arrives; longer ones are work for the query pool.
pub(super) const SHORT_QUERY: usize = 4096;
/// The same where there are regexes, which take some fifty microseconds each.
const SHORT_REGEXES: usize = 512;

/// Whether a text takes less than half a millisecond to parse, regexes included.
fn is_quick(text: &str) -> bool {
    if text.len() > SHORT_QUERY {
        return false;
    }
    let bytes = text.as_bytes();
    let has_regex = bytes.contains(&b'~') || text.contains("label_replace");
    // What makes a regex much larger than its text: counted repetitions, classes of Unicode, regardlessness of case.
    let is_large = |pair: &[u8]| matches!(pair, [b'{', b'0'..=b'9'] | [b'\\', b'p' | b'P'] | [b'(', b'?']);
    !has_regex || (text.len() <= SHORT_REGEXES && !bytes.windows(2).any(is_large))
}

impl QueryFrontend {
    /// Parses a query within the time it has.
    pub(super) async fn parsed(&self, tenant: &TenantId, query: &str, timeout: Duration) -> Result<Expr, ServiceError> {
        let options = self.limits(tenant).parse_options();
        let read = move |query: &str, go_on: GoOn<'_>| parse_expr_while(query, &options, go_on);
        let expr = if is_quick(query) {
            read(query, &|| true)
        } else {
            let query = query.to_owned();
            tokio::select! {
                expr = self.on_pool(move |go_on| read(&query, go_on)) => expr?,
                () = self.runtime.clock.sleep(timeout) => return Err(timed_out()),
            }
        };
        expr.map_err(|e| invalid("query", e))
    }

    /// The selectors of `match[]`. Their regexes are bounded together, as those of one query are.
    pub(super) async fn selectors(&self, params: &Params) -> Result<Vec<Vec<Matcher>>, ServiceError> {
        self.read_selectors(params).await?.map_err(|why| invalid("match[]", why))
    }

    /// The same, an error not naming the parameter: where Prometheus does not.
    pub(super) async fn optional_selectors(&self, params: &Params) -> Result<Vec<Vec<Matcher>>, ServiceError> {
        self.read_selectors(params).await?.map_err(bad_data)
    }

    async fn read_selectors(&self, params: &Params) -> Result<Result<Vec<Vec<Matcher>>, String>, ServiceError> {
        let texts: Vec<String> = params.all("match[]").map(str::to_owned).collect();
        if texts.iter().map(String::len).sum::<usize>() <= SHORT_QUERY && texts.iter().all(|text| is_quick(text)) {
            return Ok(read_selectors(&texts, &|| true));
        }
        self.on_pool(move |go_on| read_selectors(&texts, go_on)).await
    }

    /// Reads something on the query pool, as long as somebody waits for it.
    pub(super) async fn on_pool<T: Send + 'static>(
        &self,
        read: impl FnOnce(GoOn<'_>) -> T + Send + 'static,
    ) -> Result<T, ServiceError> {
        let interrupt = Interrupt::default();
        let _cancel = CancelOnDrop(interrupt.clone());
        Ok(self.runtime.query_pool.run(move || read(&|| !interrupt.is_set())).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_hold_a_large_regex_is_read_on_the_pool() {
        for quick in ["up", r#"sum by (job) (rate(x{a=~"b.*|c"}[5m]))"#, r#"x{a="b{3}"}"#] {
            assert!(is_quick(quick), "{quick}");
        }
        let long = format!(r#"x{{a=~"{}"}}"#, "b?".repeat(300));
        for slow in [r#"x{a=~"(b{1,500}){1,2}"}"#, r#"x{a!~"\\pL+"}"#, r#"x{a=~"(?i)b+"}"#, &long, &"x".repeat(5000)] {
            assert!(!is_quick(slow), "{slow}");
        }
    }
}
