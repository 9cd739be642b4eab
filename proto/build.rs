//! Generates the gRPC types; `protox` stands in for protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["skald.proto", "plan.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".skald.v1.Chunk.data")
        .bytes(".skald.v1.QueryPlan.nodes")
        .bytes(".skald.v1.QueryRequest.plan")
        .bytes(".skald.v1.PushRequest.labels")
        .bytes(".skald.v1.PushRequest.hashes")
        .bytes(".skald.v1.PushKnownRequest.hashes")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
