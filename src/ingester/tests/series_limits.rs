//! Two ingesters, each a replica group of its own, with one limit for a tenant.

use skald_ring::{Replica, ReplicaGroups};

use super::*;
use crate::ingester::series_limits::{SeriesLimits, ring_of};

fn batch(names: impl IntoIterator<Item = String>) -> Arc<skald_proto::WriteBatch> {
    let mut batch = WriteBatchBuilder::default();
    for name in names {
        batch.series([("__name__", "m"), ("i", name.as_str())]).sample(NOW, 1.0);
    }
    Arc::new(batch.build())
}

#[tokio::test]
async fn limits_are_compared_with_what_all_groups_hold() {
    let rigs = [Rig::new(), Rig::new()];
    let store = Replica::alone().open("series-counts").unwrap();
    let ring: Arc<ReplicaGroups> = ring_of(&[true, true]);
    let mut ingesters = Vec::new();
    for (group, rig) in rigs.iter().enumerate() {
        let ingester = rig.open().await;
        let ring = ring.clone();
        ingester.share_series_limits(SeriesLimits::new(
            store.clone(),
            Arc::new(move || ring.clone()),
            skald_ring::InstanceId::new(&format!("ingester-{group}-0")).unwrap(),
            group as u64,
            Arc::new(rig.clock.clone()),
            rig.limits.clone(),
        ));
        ingesters.push(ingester);
    }
    let pass = |seconds: u64| {
        for _ in 0..seconds {
            rigs.iter().for_each(|rig| rig.clock.advance(Duration::from_secs(1)));
            ingesters.iter().for_each(Ingester::look_at_series_limits);
        }
    };
    // The limit is 1000: as long as nothing was told, half of it for each.
    let a = tenant("a");
    let placed = |group: usize| {
        let subring = ring.write_subring("a", None).unwrap();
        let of_group = move |name: &String| {
            let hash = batch([name.clone()]).iter().next().unwrap().hash;
            subring.position_of(skald_ring::series_token("a", hash)) == group
        };
        (0..).map(|i: u32| i.to_string()).filter(of_group)
    };
    let push = async |group: usize, series: usize| {
        let client: &dyn IngesterClient = &ingesters[group];
        client.push(&a, batch(placed(group).take(series))).await.unwrap()
    };
    assert_eq!(push(0, 600).await.samples, 500);
    assert_eq!(push(1, 300).await.samples, 300);
    pass(12);
    // 200 are left for both.
    let reply = push(0, 2000).await;
    assert_eq!((reply.samples, reply.rejections[0].count), (600, 1400));
    let message = &reply.rejections[0].message;
    let expected = "the tenant has as many series as it may: 1000 (limits.max_series_per_tenant); 800 are known in all \
                    replica groups, 600 may be here";
    assert!(message.starts_with(expected), "{message}");
    assert_eq!(push(1, 2000).await.samples, 400);
    pass(12);
    assert_eq!((push(0, 2000).await.samples, push(1, 2000).await.samples), (600, 400));
    // Another tenant has a limit of its own, and another limit counts at once.
    let b = tenant("b");
    let client: &dyn IngesterClient = &ingesters[0];
    assert_eq!(client.push(&b, batch((0..10).map(|i| i.to_string()))).await.unwrap().samples, 10);
    let more = crate::limits::Limits {
        ingester: Limits { max_series_per_tenant: Some(1100), ..Limits::default() },
        ..crate::limits::Limits::default()
    };
    rigs[0].limits.set_overrides(HashMap::from([(a.clone(), Arc::new(more))]));
    assert_eq!(push(0, 2000).await.samples, 650);
}

#[tokio::test]
async fn series_that_were_spilled_count_where_they_belong() {
    let rig = Rig::new();
    let ingester = rig.open().await;
    let store = Replica::alone().open("series-counts").unwrap();
    let ring = Arc::new(parking_lot::Mutex::new(ring_of(&[true, false])));
    let seen = ring.clone();
    ingester.share_series_limits(SeriesLimits::new(
        store,
        Arc::new(move || seen.lock().clone()),
        skald_ring::InstanceId::new("ingester-0-0").unwrap(),
        1,
        Arc::new(rig.clock.clone()),
        rig.limits.clone(),
    ));
    let a = tenant("a");
    let client: &dyn IngesterClient = &ingester;
    client.push(&a, batch((0..800).map(|i| i.to_string()))).await.unwrap();
    let known = |seconds: u64| {
        for _ in 0..seconds {
            rig.clock.advance(Duration::from_secs(1));
            ingester.look_at_series_limits();
        }
        let limits = ingester.shared.series_limits.get().unwrap();
        limits.allowance(&a, ingester.shared.tenants.get(&a).unwrap().head.as_ref()).unwrap()
    };
    // The other group is away: all of them belong here.
    assert_eq!((known(30).known, known(1).series), (800, 1000));
    *ring.lock() = ring_of(&[true, true]);
    let now = known(30);
    assert!((300..500).contains(&now.known), "about half of them: {now:?}");
    *ring.lock() = ring_of(&[true, false]);
    assert_eq!(known(30).known, 800);
}
