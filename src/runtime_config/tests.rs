use std::path::Path;

use axum::body::{Body, to_bytes};
use http::Request;
use skald_tsdb::disk::MemDisk;
use tower::ServiceExt;

use super::*;
use crate::runtime::ManualClock;

const FILE: &str = "/conf/runtime.yaml";

struct Rig {
    disk: MemDisk,
    runtime_config: Arc<RuntimeConfig>,
    registry: Registry,
}

impl Rig {
    fn open(text: Option<&str>) -> Result<Self, String> {
        let disk = MemDisk::default();
        disk.create_dir_all(Path::new("/conf")).unwrap();
        if let Some(text) = text {
            disk.write_atomically(Path::new(FILE), text.as_bytes()).unwrap();
        }
        let config = Config { file: text.map(|_| FILE.into()), ..Config::default() };
        let mut registry = Registry::default();
        let mut limits = Limits::default();
        limits.distributor.request_burst_size = 7;
        let opened = RuntimeConfig::open(
            config,
            TenantLimits::new(limits),
            Arc::new(ManualClock::default()),
            Arc::new(disk.clone()),
            &mut registry,
        )?;
        Ok(Self { disk, runtime_config: Arc::new(opened), registry })
    }

    fn write(&self, text: &str) {
        self.disk.write_atomically(Path::new(FILE), text.as_bytes()).unwrap();
        self.runtime_config.reload();
    }

    fn max_labels(&self, tenant: &str) -> u32 {
        let tenant = TenantId::new(tenant).unwrap();
        self.runtime_config.limits.of(&tenant).distributor.max_label_names_per_series
    }

    fn successful(&self) -> bool {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.contains("skald_runtime_config_last_reload_successful 1")
    }

    async fn get(&self, path: &str, tenant: Option<&str>) -> (u16, String) {
        let mut request = Request::get(path);
        if let Some(tenant) = tenant {
            request = request.header("X-Scope-OrgID", tenant);
        }
        let router = routes(self.runtime_config.clone(), true);
        let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

#[test]
fn what_is_not_overridden_stays_as_it_is_for_everyone() {
    let rig = Rig::open(Some("overrides:\n  a:\n    max_label_names_per_series: 3\n  b:\n")).unwrap();
    assert_eq!((rig.max_labels("a"), rig.max_labels("b"), rig.max_labels("c")), (3, 30, 30));
    let of_a = rig.runtime_config.limits.of(&TenantId::new("a").unwrap());
    assert_eq!(of_a.distributor.request_burst_size, 7, "not the default, but that of the settings");
}

#[test]
fn a_changed_file_counts_and_a_wrong_one_does_not() {
    let rig = Rig::open(Some("")).unwrap();
    assert_eq!(rig.max_labels("a"), 30);
    rig.write("overrides: {a: {max_label_names_per_series: 4}}");
    assert_eq!((rig.max_labels("a"), rig.successful()), (4, true));
    rig.write("overrides: {a: {max_label_names_per_series: 0}}");
    assert_eq!((rig.max_labels("a"), rig.successful()), (4, false));
    // A syntax error half way: nothing of the first half is taken.
    rig.write("overrides:\n  a: {max_label_names_per_series: 9}\n  b: {max_label_names");
    assert_eq!((rig.max_labels("a"), rig.successful()), (4, false));
    rig.disk.remove_file(Path::new(FILE)).unwrap();
    rig.runtime_config.reload();
    assert_eq!((rig.max_labels("a"), rig.successful()), (4, false));
    rig.write("overrides: {}");
    assert_eq!((rig.max_labels("a"), rig.successful()), (30, true));
}

#[test]
fn errors_name_the_place_and_what_may_have_been_meant() {
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let error = Rig::open(Some(text)).err().unwrap_or_default();
        assert!(error.contains(expected), "{error}");
    }
    check("overides: {}", "/conf/runtime.yaml:1:1: unknown section `overides`, did you mean `overrides`?");
    check(
        "overrides:\n  a:\n    max_label_names_per_serie: 3\n",
        "unknown setting `overrides.a.max_label_names_per_serie`, did you mean `overrides.a.max_label_names_per_series`?",
    );
    check(
        "overrides: {a: {max_label_names_per_series: x}}",
        r#"overrides.a.max_label_names_per_series: "x" is not valid"#,
    );
    check("overrides: {a: {max_label_names_per_series: 3}, a: {}}", "`overrides.a` is set twice");
    check("overrides: {a/b: {}}", "overrides.a/b: ");
    check("overrides: [a]", "overrides");
    check("--- {}\n--- {}\n", "more than one YAML document");
}

#[tokio::test]
async fn relabelling_rules_are_read_checked_and_shown() {
    let rule = |action: &str| {
        format!(
            "overrides:\n  a:\n    metric_relabel_configs:\n    - {{source_labels: [x], regex: 012, action: {action}}}\n"
        )
    };
    let rig = Rig::open(Some(&rule("drop"))).unwrap();
    let rules = |rig: &Rig, tenant: &str| {
        let limits = rig.runtime_config.limits.of(&TenantId::new(tenant).unwrap());
        crate::settings::SettingValue::show(&limits.distributor.metric_relabel_configs).to_string()
    };
    let dropping = r#"[{"action":"drop","regex":"012","source_labels":["x"]}]"#;
    assert_eq!((rules(&rig, "a").as_str(), rules(&rig, "b").as_str()), (dropping, "[]"));
    rig.write(&rule("keep"));
    assert!(rules(&rig, "a").contains("keep"));
    // A wrong one changes nothing, and is named.
    rig.write(&rule("kepe"));
    assert!(!rig.successful() && rules(&rig, "a").contains("keep"));
    let (_, page) = rig.get("/runtime_config?mode=diff", None).await;
    let expected = "overrides.a.metric_relabel_configs: rule 1 (kepe): there is no such action, did you mean `keep`?";
    assert!(page.contains(expected), "{page}");
    rig.write("overrides:\n  a:\n    metric_relabel_configs: [{target_label: x.y}]\n");
    let (_, page) = rig.get("/runtime_config", None).await;
    assert!(page.contains("rule 1 (replace): `target_label` \"x.y\" is no valid label name"), "{page}");
    rig.write("overrides:\n  a: {name_validation_scheme: utf8, metric_relabel_configs: [{target_label: x.y}]}\n");
    assert!(rig.successful() && rules(&rig, "a").contains("x.y"));
    let (_, page) = rig.get("/runtime_config", None).await;
    assert_eq!(rig.runtime_config.parse(&page).unwrap(), *rig.runtime_config.limits.overrides());
    let (_, limits) = rig.get("/api/v1/user_limits", Some("a")).await;
    let limits: serde_json::Value = serde_json::from_str(&limits).unwrap();
    assert_eq!(limits["metric_relabel_configs"][0]["target_label"], "x.y");
}

#[test]
fn without_a_file_nothing_is_read() {
    let rig = Rig::open(None).unwrap();
    rig.runtime_config.reload();
    assert!(rig.successful());
}

#[tokio::test]
async fn pages_show_what_is_in_force() {
    let rig = Rig::open(Some("overrides: {a: {max_label_names_per_series: 3}, \"b(x)\": {}}")).unwrap();
    let (status, diff) = rig.get("/runtime_config?mode=diff", None).await;
    assert_eq!(
        (status, diff.as_str()),
        (200, "overrides:\n  \"a\":\n    max_label_names_per_series: 3\n  \"b(x)\":\n    {}\n")
    );
    let (_, all) = rig.get("/runtime_config", None).await;
    assert_eq!(all.matches("    max_label_value_length: 2048\n").count(), 2, "{all}");
    let again = rig.runtime_config.parse(&all).unwrap();
    assert_eq!(again, *rig.runtime_config.limits.overrides(), "what is shown can be read");
    rig.write("overrides: {a: {nothing: 3}}");
    let (_, told) = rig.get("/runtime_config?mode=diff", None).await;
    assert!(told.starts_with("# The file that is there now was not taken: ") && told.ends_with(&diff), "{told}");
    assert_eq!(rig.get("/runtime_config?mode=x", None).await.0, 400);

    let (status, limits) = rig.get("/api/v1/user_limits", Some("a")).await;
    let limits: serde_json::Value = serde_json::from_str(&limits).unwrap();
    assert_eq!((status, &limits["max_label_names_per_series"]), (200, &3.into()));
    assert_eq!(limits["ingestion_rate"], "none", "as it is written in the file");
    assert_eq!(rig.get("/api/v1/user_limits", None).await.0, 401);
}
