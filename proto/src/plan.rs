//! Plans as bytes. They come from other processes, so what they hold is counted before it is decoded.

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};

use crate::grpc::{MalformedMessage, PlanNode, QueryPlan};

/// The bytes of a plan.
pub fn encode_plan(plan: &QueryPlan) -> Vec<u8> {
    plan.encode_to_vec()
}

/// The bytes of one of its nodes.
pub fn encode_node(node: &PlanNode) -> Bytes {
    node.encode_to_vec().into()
}

/// The plan behind `bytes`; its nodes stay slices of them. At most `most_nodes` nodes, and a little more of all else.
pub fn decode_plan(bytes: Bytes, most_nodes: usize) -> Result<QueryPlan, MalformedMessage> {
    check_fields(&bytes, most_nodes.saturating_add(16))?;
    QueryPlan::decode(bytes).map_err(|_| MalformedMessage("a plan cannot be decoded"))
}

/// A node of a plan; at most `most_fields` fields, each entry of a repeated one counted.
pub fn decode_node(bytes: Bytes, most_fields: usize) -> Result<PlanNode, MalformedMessage> {
    check_fields(&bytes, most_fields)?;
    PlanNode::decode(bytes).map_err(|_| MalformedMessage("a node of a plan cannot be decoded"))
}

/// Refuses a message of more fields without making anything of them.
fn check_fields(bytes: &[u8], most: usize) -> Result<(), MalformedMessage> {
    let broken = || MalformedMessage("a plan cannot be decoded");
    let mut rest = bytes;
    let mut fields = 0;
    while rest.has_remaining() {
        fields += 1;
        if fields > most {
            return Err(MalformedMessage("a plan has more parts than the longest query"));
        }
        let (tag, wire_type) = decode_key(&mut rest).map_err(|_| broken())?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default()).map_err(|_| broken())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_is_refused_before_it_is_decoded() {
        let nodes = |count: usize| QueryPlan { nodes: vec![Bytes::new(); count], ..QueryPlan::default() };
        let decode = |count: usize, most: usize| decode_plan(encode_plan(&nodes(count)).into(), most);
        assert_eq!(decode(100, 100).map(|plan| plan.nodes.len()), Ok(100));
        let text = decode(200, 100).map(|_| ()).unwrap_err().to_string();
        assert!(text.contains("more parts than the longest query"), "{text}");
        let node = PlanNode { names: vec![String::new(); 50], ..PlanNode::default() };
        assert!(decode_node(encode_node(&node), 60).is_ok());
        assert!(decode_node(encode_node(&node), 40).is_err());
        assert!(decode_plan(Bytes::from_static(&[0x0a, 0xff, 0xff]), 10).is_err());
    }
}
