//! Series as a Kubernetes cluster has them.

use crate::load::send::encode_labels;

/// The encoded labels of series `i` as a Kubernetes cluster has them: 10 labels, about 270 bytes of names and values.
/// Another generation has other pods.
pub fn pod_labels(i: usize, generation: usize) -> Vec<u8> {
    let pod = i / 100;
    encode_labels(&[
        ("__name__", format!("container_network_receive_packets_{:02}_total", i % 100)),
        ("cluster", "production-eu-west-1".to_owned()),
        ("container", format!("application-container-{}", pod % 40)),
        ("endpoint", "https-metrics".to_owned()),
        ("instance", format!("10.{}.{}.{}:10250", pod >> 16, (pod >> 8) & 255, pod & 255)),
        ("job", "kubernetes/kubelet-cadvisor".to_owned()),
        ("namespace", format!("team-namespace-{}", pod % 25)),
        ("node", format!("ip-10-0-{}-{}.eu-west-1.compute.internal", pod / 64 % 256, pod % 64)),
        (
            "pod",
            format!("application-deployment-{:08x}-{pod:05}", (pod + generation * 77) * 2_654_435_761 % 0xFFFF_FFFF),
        ),
        ("service", "prometheus-kubelet".to_owned()),
    ])
}
