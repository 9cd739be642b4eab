//! What the `explain` parameter adds: the plan of a query as a tree, with what each node cost.

use std::io::Write;

use skald_promql::ast::ValueType;
use skald_promql::eval::NodeCost;
use skald_promql::plan::{Node, NodeId, Plan};

use super::json::put_str;
use super::params::{Params, invalid};
use crate::error::ServiceError;

/// Bytes of the query's text shown for one node.
const LONGEST_TEXT: usize = 200;

/// What a request wants to know about its query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Explain {
    /// Nothing.
    Off,
    /// The plan alone; the query is not evaluated.
    Plan,
    /// The plan and its costs, beside the answer.
    Costs,
}

impl Explain {
    /// What the parameter `explain` says.
    pub fn of(params: &Params) -> Result<Self, ServiceError> {
        match params.get("explain") {
            "" | "false" => Ok(Self::Off),
            "true" => Ok(Self::Costs),
            "plan" => Ok(Self::Plan),
            other => Err(invalid("explain", format!("{other:?} is none of \"true\", \"plan\" and \"false\""))),
        }
    }
}

/// The plan as JSON. Recursive: a checked plan is at most some thousand nodes deep, so it belongs on the query pool.
pub fn render(plan: &Plan, query: &str, costs: Option<&[NodeCost]>) -> Vec<u8> {
    let costs = costs.filter(|costs| costs.len() == plan.nodes.len());
    let totals = costs.map_or(Vec::new(), |costs| totals(plan, costs));
    let mut tree = Tree { plan, query, costs, totals, shown: vec![false; plan.nodes.len()], out: Vec::new() };
    tree.node(plan.root);
    tree.out
}

/// Seconds of each node with its inputs. What has no operator of its own (a window, a scalar, a shard in another process)
/// is as long as its inputs.
fn totals(plan: &Plan, costs: &[NodeCost]) -> Vec<f64> {
    let mut totals: Vec<f64> = Vec::with_capacity(costs.len());
    for (node, cost) in plan.nodes.iter().zip(costs) {
        let total = cost.time.as_secs_f64().max(of_inputs(node, &totals));
        totals.push(total);
    }
    totals
}

fn of_inputs(node: &Node, totals: &[f64]) -> f64 {
    node.inputs.iter().map(|id| totals[*id as usize]).sum()
}

struct Tree<'a> {
    plan: &'a Plan,
    query: &'a str,
    costs: Option<&'a [NodeCost]>,
    totals: Vec<f64>,
    /// Nodes that stand in the tree already.
    shown: Vec<bool>,
    out: Vec<u8>,
}

impl Tree<'_> {
    fn node(&mut self, id: NodeId) {
        let at = id as usize;
        // Writing into a Vec cannot fail.
        if std::mem::replace(&mut self.shown[at], true) {
            let _ = write!(self.out, "{{\"reference\":{id}}}");
            return;
        }
        let node = self.plan.node(id);
        let _ = write!(self.out, "{{\"id\":{id},\"operation\":");
        put_str(&mut self.out, &cut(&self.plan.describe(node)));
        self.out.extend_from_slice(b",\"query\":");
        put_str(&mut self.out, &cut(self.query.get(node.span.start..node.span.end).unwrap_or_default()));
        let kind = match node.value_type {
            ValueType::Scalar => "scalar",
            ValueType::String => "string",
            ValueType::Vector => "vector",
            ValueType::Matrix => "matrix",
        };
        let (steps, places) = (node.grid.count, Plan::places(node));
        let _ = write!(self.out, ",\"type\":\"{kind}\",\"steps\":{steps},\"places\":{places}");
        if let Some(costs) = self.costs {
            let (cost, total) = (&costs[at], self.totals[at]);
            let own = (total - of_inputs(node, &self.totals)).max(0.0);
            let workers = cost.worker_time.as_secs_f64();
            let NodeCost { series, points, bytes, series_read, samples_read, bytes_read, .. } = cost;
            let _ = write!(
                self.out,
                ",\"series\":{series},\"points\":{points},\"bytes\":{bytes},\"time_seconds\":{own:.9},\
                 \"total_seconds\":{total:.9},\"worker_seconds\":{workers:.9},\"series_read\":{series_read},\
                 \"samples_read\":{samples_read},\"bytes_read\":{bytes_read}"
            );
        }
        self.out.extend_from_slice(b",\"inputs\":[");
        for (i, input) in node.inputs.iter().enumerate() {
            if i > 0 {
                self.out.push(b',');
            }
            self.node(*input);
        }
        self.out.extend_from_slice(b"]}");
    }
}

/// The beginning of a long text: a query of many nodes has as many parts, each as long as itself.
fn cut(text: &str) -> std::borrow::Cow<'_, str> {
    if text.len() <= LONGEST_TEXT {
        return text.into();
    }
    let end = (0..=LONGEST_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end]).into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use skald_promql::eval::EvalParams;
    use skald_promql::parse::{ParseOptions, parse_expr};

    use super::*;

    fn plan(query: &str) -> Plan {
        Plan::of(&parse_expr(query, &ParseOptions::default()).unwrap(), &EvalParams::range(0, 60_000, 15_000)).unwrap()
    }

    fn rendered(query: &str, costs: Option<&[NodeCost]>) -> serde_json::Value {
        serde_json::from_slice(&render(&plan(query), query, costs)).unwrap()
    }

    #[test]
    fn a_plan_is_a_tree_and_what_is_shared_stands_once() {
        let tree = rendered("sum(rate(a[5m])) / sum(rate(a[5m]))", None);
        assert_eq!((tree["operation"].as_str(), tree["steps"].as_u64()), (Some("/"), Some(5)));
        let sum = &tree["inputs"][0];
        assert_eq!((sum["operation"].as_str(), sum["query"].as_str()), (Some("sum"), Some("sum(rate(a[5m]))")));
        assert_eq!(tree["inputs"][1], serde_json::json!({ "reference": sum["id"] }));
        let select = &sum["inputs"][0]["inputs"][0];
        assert_eq!((select["type"].as_str(), select["places"].as_u64()), (Some("matrix"), Some(2)));
        assert!(tree.get("time_seconds").is_none());
    }

    #[test]
    fn a_nodes_own_time_is_without_that_of_its_inputs() {
        let query = "abs(max_over_time(sum(a)[5m:1m]))";
        let plan = plan(query);
        // a, sum, subquery (which has no operator), max_over_time, abs
        let times = [3, 5, 0, 9, 10].map(Duration::from_secs);
        assert_eq!(plan.nodes.len(), times.len());
        let costs = times.map(|time| NodeCost { time, series: 7, ..NodeCost::default() });
        let mut at = &rendered(query, Some(&costs));
        for (own, total) in [(1.0, 10.0), (4.0, 9.0), (0.0, 5.0), (2.0, 5.0), (3.0, 3.0)] {
            assert_eq!((at["time_seconds"].as_f64(), at["total_seconds"].as_f64()), (Some(own), Some(total)), "{at}");
            assert_eq!(at["series"].as_u64(), Some(7));
            at = &at["inputs"][0];
        }
    }

    #[test]
    fn texts_are_short_however_long_the_query() {
        let query = vec!["a"; 400].join(" + ");
        let plan = plan(&query);
        let rendered = render(&plan, &query, None);
        assert!(rendered.len() < plan.nodes.len() * 1000, "{}", rendered.len());
        assert_eq!(cut("é".repeat(150).as_str()).chars().count(), 101);
    }
}
