//! Writes of tenants with relabelling rules.

use super::*;
use crate::settings::SettingValue;

fn limits(rules: &str) -> Limits {
    Limits { metric_relabel_configs: RelabelRules::parse(rules).unwrap(), ..Limits::default() }
}

#[tokio::test]
async fn what_rules_leave_out_is_counted_and_no_error() {
    let rules = r#"[{source_labels: [job], regex: "b|c", action: drop}, {target_label: zone, replacement: z1}]"#;
    let running = Setup { limits: limits(rules), ..Setup::default() }.start();
    let other = series(&[("__name__", "other"), ("job", "b")], &[NOW, NOW + 1]);
    let answer = running.post(compress(&[good(), other.clone()].concat())).await;
    assert_eq!((answer.status, &*answer.text), (200, ""));
    assert_eq!(answer.headers["x-prometheus-remote-write-samples-written"], "3", "nothing to repair");
    assert_eq!(running.ingester().series(), [(r#"{__name__="good", job="a", zone="z1"}"#.to_owned(), vec![NOW])]);
    assert_eq!(running.discarded("relabel_configuration"), Some(2));
    // Nothing is left of this one.
    assert_eq!(running.post(compress(&other)).await.status, 200);
    assert_eq!(running.ingester().stored.lock().len(), 1);
    assert_eq!(running.discarded("relabel_configuration"), Some(4));
}

#[tokio::test]
async fn rules_come_before_checks() {
    let rules = r#"[{regex: "very_long_.*", action: labeldrop}, {source_labels: [job], regex: b, target_label: __name__, replacement: "1x"}]"#;
    let limits = Limits { max_label_name_length: 10, ..limits(rules) };
    let running = Setup { limits, ..Setup::default() }.start();
    let long = series(&[("__name__", "good"), ("very_long_name", "x")], &[NOW]);
    let answer = running.post(compress(&long)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(running.ingester().series(), [(r#"{__name__="good"}"#.to_owned(), vec![NOW])]);
    let renamed = series(&[("__name__", "good"), ("job", "b")], &[NOW]);
    assert_refused(&running.post(compress(&renamed)).await, 400, "metric-name-invalid");
}

#[tokio::test]
async fn rules_come_after_the_election_of_replicas() {
    let rules = r#"[{source_labels: [__replica__], regex: ".+", action: drop}, {regex: cluster, action: labeldrop}]"#;
    let limits = Limits { accept_ha_samples: true, ..limits(rules) };
    let running = Setup { limits, ..Setup::default() }.start();
    let of = |replica| series(&[("__name__", "m"), ("__replica__", replica), ("cluster", "c")], &[NOW]);
    assert_eq!(running.post(compress(&of("r1"))).await.status, 200);
    assert_eq!(running.post(compress(&of("r2"))).await.status, 202);
    assert_eq!(running.ingester().series(), [(r#"{__name__="m"}"#.to_owned(), vec![NOW])]);
    assert_eq!(running.discarded("relabel_configuration"), None);
}

#[tokio::test]
async fn labels_are_dropped_by_name() {
    let limits = Limits { drop_labels: vec!["job".to_owned(), "other".to_owned()], ..Limits::default() };
    let running = Setup { limits, ..Setup::default() }.start();
    assert_eq!(running.post(compress(&good())).await.status, 200);
    assert_eq!(running.ingester().series(), [(r#"{__name__="good"}"#.to_owned(), vec![NOW])]);
}

#[tokio::test]
async fn rules_that_make_too_much_refuse_the_series() {
    let double = r#"{source_labels: [job], target_label: job, replacement: "$1$1"}"#;
    let rules = format!("[{}]", vec![double; 40].join(", "));
    let running = Setup { limits: limits(&rules), ..Setup::default() }.start();
    let plain = series(&[("__name__", "plain")], &[NOW]);
    let answer = running.post(compress(&[good(), plain].concat())).await;
    assert_refused(&answer, 400, "relabelled-labels-too-large");
    assert_eq!(running.ingester().series(), [(r#"{__name__="plain"}"#.to_owned(), vec![NOW])]);
    // A write as a whole is bounded, too.
    let rules = format!(r#"[{{target_label: a, replacement: "{}"}}]"#, "x".repeat(1000));
    let config = Config { max_recv_msg_size: ByteSize::kib(4), ..Config::default() };
    let running = Setup { limits: limits(&rules), config, ..Setup::default() }.start();
    let many: Vec<u8> = (0..10).flat_map(|i| series(&[("__name__", &format!("m{i}"))], &[NOW])).collect();
    assert_refused(&running.post(compress(&many)).await, 400, "relabelled-labels-too-large");
    assert_eq!(running.ingester().series().len(), 3);
}
