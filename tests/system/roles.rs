//! Every role in a process of its own, over gRPC; and the border between tenants.

use std::path::Path;

use crate::flush::{answers, push_an_hour, wait_for_answers};
use crate::process::{Answer, Skald, now_ms};
use crate::sender::Request;

/// A process per role on one bucket.
pub struct Cluster {
    pub distributor: Skald,
    pub ingester: Skald,
    store_gateway: Skald,
    query_scheduler: Skald,
    querier: Skald,
    pub query_frontend: Skald,
    compactor: Skald,
}

impl Cluster {
    pub async fn start(dir: &Path, more: &[&str]) -> Cluster {
        let bucket = format!("--blocks-storage.filesystem.dir={}", dir.join("bucket").display());
        let role = |name: &str, flags: &[String]| {
            let target = format!("--target={name}");
            let refresh = "--blocks-storage.bucket-index.refresh-interval=500ms";
            let own = [&bucket, target.as_str(), refresh, "--ring.replication-factor=1", "--server.shutdown-delay=0s"];
            let flags: Vec<&str> =
                own.into_iter().chain(more.iter().copied()).chain(flags.iter().map(String::as_str)).collect();
            Skald::new(&dir.join(name), &flags)
        };
        let mut ingester = role("ingester", &[]);
        let mut store_gateway = role("store-gateway", &[]);
        let mut compactor = role("compactor", &["--compactor.cleanup-interval=1s".to_owned()]);
        let mut distributor = role("distributor", &[]);
        let mut querier = role("querier", &[]);
        let mut query_scheduler = role("query-scheduler", &[]);
        let mut query_frontend = role("query-frontend", &[]);
        ingester.set_cluster("ingester-0", None);
        for (skald, id) in [
            (&mut store_gateway, "store-gateway-0"),
            (&mut compactor, "compactor-0"),
            (&mut distributor, "distributor-0"),
            (&mut query_scheduler, "query-scheduler-0"),
            (&mut querier, "querier-0"),
            (&mut query_frontend, "query-frontend-0"),
        ] {
            skald.set_cluster(id, Some(&ingester));
        }
        let mut cluster =
            Cluster { distributor, ingester, store_gateway, query_scheduler, querier, query_frontend, compactor };
        // The first one is whom the others meet.
        for skald in cluster.all() {
            skald.start_again().await;
        }
        // It meets them again after a restart.
        cluster.ingester.set_cluster("ingester-0", Some(&cluster.distributor));
        cluster
    }

    fn all(&mut self) -> [&mut Skald; 7] {
        [
            &mut self.ingester,
            &mut self.store_gateway,
            &mut self.compactor,
            &mut self.query_scheduler,
            &mut self.querier,
            &mut self.distributor,
            &mut self.query_frontend,
        ]
    }

    /// All of them, to be asked.
    pub fn every(&self) -> Vec<&Skald> {
        let queries = [&self.query_scheduler, &self.querier, &self.query_frontend];
        [&self.ingester, &self.store_gateway, &self.compactor, &self.distributor].into_iter().chain(queries).collect()
    }

    fn logs(&mut self) -> String {
        self.all().map(|skald| format!("{}: {}", skald.dir.display(), skald.log())).join("\n")
    }

    fn set_tenant(&mut self, tenant: Option<&str>) {
        for skald in self.all() {
            skald.set_tenant(tenant);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_in_processes_of_their_own_hold_and_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &[]).await;
    let end = now_ms() / 15_000 * 15_000;
    push_an_hour(&cluster.distributor, end).await;
    let expected = answers(&cluster.query_frontend, end).await;
    let flushed = cluster.ingester.post("/ingester/flush").await;
    assert!(flushed.status < 300, "{flushed:?}\n{}", cluster.logs());
    assert_eq!(answers(&cluster.query_frontend, end).await, expected, "right after the flush");

    // A new, empty ingester in the place of the old: the store-gateway answers.
    cluster.ingester.stop();
    let during = cluster.query_frontend.get("/prometheus/api/v1/query", &[("query", "flushed")]).await;
    assert_eq!(during.status, 503, "an answer without the only ingester: {}", during.body);
    let body = Request::default().series(&[("__name__", "late")], &[(end, 1.0)]).body();
    let refused = cluster.distributor.push(body.clone()).await.unwrap();
    assert!(refused.status >= 500, "a write without the only ingester: {refused:?}");
    std::fs::remove_dir_all(cluster.ingester.data_dir()).unwrap();
    cluster.ingester.start_again().await;
    wait_for_answers(&cluster.query_frontend, end, &expected).await;
    // The distributor may hear later than the querier that it is back; a sender repeats until then.
    crate::process::wait_for("the ingester takes writes again", 30, async || {
        let pushed = cluster.distributor.push(body.clone()).await.unwrap();
        assert!(matches!(pushed.status, 200 | 503), "{pushed:?}");
        (pushed.status == 200).then_some(())
    })
    .await;
    let late = cluster.query_frontend.query("late", end as f64 / 1000.0).await;
    assert_eq!(late["result"][0]["value"][1], "1", "{late}");

    // An error of a far process is answered as one of a near one.
    let wrong = Request::default().series(&[("__name__", "x"), ("a", "1"), ("a", "2")], &[(end, 1.0)]).body();
    let refused = cluster.distributor.push(wrong).await.unwrap();
    assert_eq!(refused.status, 400, "{refused:?}");
    let failed = cluster.query_frontend.get("/prometheus/api/v1/query", &[("query", "flushed + on () flushed")]).await;
    assert_eq!((failed.status, failed.json()["errorType"].as_str()), (422, Some("execution")), "{}", failed.body);
    for skald in cluster.all().into_iter().rev() {
        skald.stop();
    }
}

/// Asks every reading path for something; none may find anything.
async fn assert_sees_nothing(skald: &Skald, tenant: &str, end: i64) {
    let time = (end as f64 / 1000.0).to_string();
    let query = "{__name__=~\".+\"}";
    let asks: [(&str, Vec<(&str, &str)>); 6] = [
        ("query", vec![("query", query), ("time", &time)]),
        ("query_range", vec![("query", query), ("start", "0"), ("end", &time), ("step", "1000000")]),
        ("labels", vec![]),
        ("label/__name__/values", vec![]),
        ("series", vec![("match[]", query)]),
        ("query_exemplars", vec![("query", query), ("start", "0"), ("end", &time)]),
    ];
    for (path, params) in asks {
        let data = Skald::data(skald.get(&format!("/prometheus/api/v1/{path}"), &params).await);
        let found = data.get("result").unwrap_or(&data);
        assert_eq!(*found, serde_json::json!([]), "{tenant} sees through {path}");
    }
    let metadata = Skald::data(skald.get("/prometheus/api/v1/metadata", &[]).await);
    assert_eq!(metadata, serde_json::json!({}), "{tenant} sees metadata");
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_are_strangers() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path(), &["--multitenancy-enabled=true"]).await;
    let end = now_ms() / 15_000 * 15_000;
    let body = || Request::default().series(&[("__name__", "own")], &[(end, 1.0)]).body();
    let without: [Answer; 2] = [
        cluster.distributor.push(body()).await.unwrap(),
        cluster.query_frontend.get("/prometheus/api/v1/query", &[("query", "own")]).await,
    ];
    assert_eq!(without.map(|answer| answer.status), [401, 401]);
    for wrong in ["a/b", "..", "a|b", "__skald_cluster", &"x".repeat(151)] {
        cluster.set_tenant(Some(wrong));
        let refused = [
            cluster.distributor.push(body()).await.unwrap(),
            cluster.query_frontend.get("/prometheus/api/v1/query", &[("query", "own")]).await,
        ];
        assert_eq!(refused.map(|answer| answer.status), [400, 400], "{wrong}");
    }

    cluster.set_tenant(Some("mine"));
    push_an_hour(&cluster.distributor, end).await;
    let expected = answers(&cluster.query_frontend, end).await;
    for stranger in ["yours", "mine2", "Mine", "anonymous"] {
        cluster.set_tenant(Some(stranger));
        assert_sees_nothing(&cluster.query_frontend, stranger, end).await;
    }
    // The same series of another tenant, with another value.
    cluster.set_tenant(Some("yours"));
    let labels = [("__name__", "flushed"), ("group", "g0"), ("series", "s00")];
    let pushed = cluster.distributor.push(Request::default().series(&labels, &[(end, -1.0)]).body()).await.unwrap();
    assert_eq!(pushed.status, 200, "{}", pushed.body);
    let flushed = cluster.ingester.post("/ingester/flush").await;
    assert!(flushed.status < 300, "{flushed:?}");
    cluster.ingester.stop();
    std::fs::remove_dir_all(cluster.ingester.data_dir()).unwrap();
    cluster.ingester.start_again().await;
    cluster.set_tenant(Some("mine"));
    wait_for_answers(&cluster.query_frontend, end, &expected).await;
    cluster.set_tenant(Some("yours"));
    crate::process::wait_for("the other tenant's block", 30, async || {
        let data = cluster.query_frontend.query("flushed", end as f64 / 1000.0).await;
        (data["result"].as_array()?.len() == 1 && data["result"][0]["value"][1] == "-1").then_some(())
    })
    .await;
    cluster.set_tenant(Some("mine2"));
    assert_sees_nothing(&cluster.query_frontend, "mine2", end).await;
}
