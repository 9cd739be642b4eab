//! Members that differ in any way hold the same afterwards: what any of them held.

use proptest::prelude::*;
use skald_model::QueryRange;

use super::super::super::flush::FlushExtent;
use super::*;

/// One thing that happens before the repair.
#[derive(Debug, Clone)]
enum Event {
    /// Samples of a series, at these minutes before now, come to the members with these bits.
    Push { members: u8, tenant: bool, series: u32, minutes: Vec<i64> },
    /// A member cuts what is older than so many minutes.
    Flush { member: usize, tenant: bool, minutes: i64 },
}

fn event() -> impl Strategy<Value = Event> {
    let minutes = prop_oneof![0_i64..30, 0_i64..600];
    let push = (1_u8..8, prop::bool::weighted(0.2), 0_u32..6, prop::collection::vec(minutes, 1..12));
    let push = push.prop_map(|(members, tenant, series, minutes)| Event::Push { members, tenant, series, minutes });
    let flush = (0_usize..3, prop::bool::weighted(0.2), 0_i64..600);
    let flush = flush.prop_map(|(member, tenant, minutes)| Event::Flush { member, tenant, minutes });
    prop_oneof![8 => push, 1 => flush]
}

fn of(second: bool) -> TenantId {
    tenant(if second { "b" } else { "a" })
}

async fn converge(events: Vec<Event>) {
    let places = places(3);
    let mut all = open_all(&places).await;
    for event in events {
        match event {
            Event::Push { members, tenant, series, mut minutes } => {
                minutes.sort_unstable_by(|a, b| b.cmp(a));
                minutes.dedup();
                let times: Vec<i64> = minutes.iter().map(|minute| NOW - minute * MINUTE).collect();
                for (number, member) in all.iter().enumerate() {
                    if members & (1 << number) != 0 {
                        push(member, &of(tenant), series, &times).await;
                    }
                }
            }
            Event::Flush { member, tenant, minutes } => {
                if let Some(tenant) = all[member].shared.tenants.get(&of(tenant)) {
                    let extent = FlushExtent::Before(NOW - minutes * MINUTE);
                    all[member].flush(&tenant, extent).await.unwrap();
                }
            }
        }
    }
    let mut union = [Samples::new(), Samples::new()];
    for member in &all {
        for (second, union) in [false, true].into_iter().zip(&mut union) {
            union.extend(samples(member, &of(second)).await);
        }
    }
    for (one, other) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
        let found = repair_from(&all[one], &places[other], &all[other]).await;
        assert_eq!(found.conflicts, 0);
    }
    for restart in [false, true] {
        if restart {
            drop(std::mem::take(&mut all));
            all = open_all(&places).await;
        }
        for (number, member) in all.iter().enumerate() {
            for (second, union) in [false, true].into_iter().zip(&union) {
                assert_eq!(&samples(member, &of(second)).await, union, "member {number}, after a restart: {restart}");
            }
            for other in (0..3).filter(|other| *other != number) {
                let found = repair_from(member, &places[other], &all[other]).await;
                assert_eq!((found.ranges_differing, found.chunks), (0, 0), "{number} {other} {found:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn members_hold_afterwards_what_any_of_them_held(events in prop::collection::vec(event(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(converge(events));
    }
}

#[tokio::test]
async fn of_two_values_at_one_time_each_keeps_its_own_and_asks_no_more() {
    let places = places(2);
    let all = open_all(&places).await;
    let a = tenant("a");
    for (member, value) in all.iter().zip([1.0, 2.0]) {
        let mut batch = WriteBatchBuilder::default();
        batch.series([("__name__", "m")]).sample(NOW - MINUTE, value).sample(NOW - 2 * MINUTE, 5.0);
        member.push(&a, Arc::new(batch.build())).await.unwrap();
    }
    let before = samples(&all[0], &a).await;
    let (other, settled) = (peer("m1", all[1].clone()), Settled::default());
    let (found, compared) = Pass::new(&all[0], &other, i64::MAX, &settled).run().await;
    compared.unwrap();
    assert_eq!((found.conflicts, found.samples_imported, found.chunks > 0), (1, 0, true), "{found:?}");
    assert_eq!(samples(&all[0], &a).await, before);
    let (found, compared) = Pass::new(&all[0], &other, i64::MAX, &settled).run().await;
    compared.unwrap();
    assert_eq!((found.ranges_differing, found.series_differing, found.chunks), (1, 0, 0), "{found:?}");
    // What changes there is looked at again.
    let mut batch = WriteBatchBuilder::default();
    batch.series([("__name__", "m")]).sample(NOW - MINUTE / 2, 7.0);
    all[1].push(&a, Arc::new(batch.build())).await.unwrap();
    let (found, _) = Pass::new(&all[0], &other, i64::MAX, &settled).run().await;
    assert_eq!((found.conflicts, found.samples_imported), (1, 1), "{found:?}");
}

#[tokio::test]
async fn what_a_member_holds_in_blocks_is_not_imported_into_its_head() {
    let places = places(2);
    let all = open_all(&places).await;
    let a = tenant("a");
    let times: Vec<i64> = (0..300).map(|minute| NOW - (300 - minute) * MINUTE).collect();
    push(&all[0], &a, 1, &times).await;
    push(&all[1], &a, 1, &times[..200]).await;
    push(&all[1], &a, 1, &times[201..]).await;
    let one = all[1].shared.tenants.get(&a).unwrap();
    all[1].flush(&one, FlushExtent::Everything).await.unwrap();
    assert_eq!(one.head.series_count(), 0);
    let found = repair_from(&all[1], &places[0], &all[0]).await;
    assert_eq!((found.ranges_differing, found.samples_imported), (1, 1), "{found:?}");
    assert_eq!(one.head.ranges().len(), 1);
    assert_eq!(samples(&all[1], &a).await, samples(&all[0], &a).await);
    assert_eq!(repair_from(&all[0], &places[1], &all[1]).await.ranges_differing, 0);
}

#[tokio::test]
async fn what_went_with_blocks_in_the_bucket_is_not_brought_back() {
    let places = places(2);
    let all = open_all(&places).await;
    let a = tenant("a");
    let times: Vec<i64> = (0..100).map(|minute| NOW - (100 - minute) * MINUTE).collect();
    for member in &all {
        push(member, &a, 1, &times).await;
    }
    let drop_blocks = async |member: &Ingester| {
        let one = member.shared.tenants.get(&a).unwrap();
        assert!(member.ship(&one).await);
        places[0].clock.advance(Duration::from_secs(13 * 3600));
        let bucket = crate::bucket::TenantBucket::new(places[0].bucket.clone(), a.clone());
        crate::compactor::update_bucket_index(&bucket, places[0].clock.now_ms(), 4).await.unwrap();
        places[0].clock.advance(Duration::from_secs(61));
        assert!(member.ship(&one).await);
        places[0].clock.advance(Duration::from_secs(121));
        assert!(member.ship(&one).await);
        assert!(one.blocks().is_empty());
    };
    let one = all[0].shared.tenants.get(&a).unwrap();
    all[0].flush(&one, FlushExtent::Everything).await.unwrap();
    drop_blocks(&all[0]).await;
    // The other has not cut its head yet. Neither asks for what the first one let go, not even when it forgot the tenant.
    assert_eq!(repair_from(&all[0], &places[1], &all[1]).await.series_compared, 0);
    all[0].close_if_empty(&one);
    assert!(all[0].shared.tenants.get(&a).is_none());
    assert_eq!(repair_from(&all[0], &places[1], &all[1]).await.series_compared, 0);
    drop((one, all));
    let all = open_all(&places).await;
    assert_eq!(repair_from(&all[0], &places[1], &all[1]).await.series_compared, 0);
    assert!(all[0].shared.tenants.get(&a).is_none());
    // What came later is compared.
    let now = places[0].clock.now_ms();
    push(&all[1], &a, 1, &[now]).await;
    assert_eq!(repair_from(&all[0], &places[1], &all[1]).await.samples_imported, 1);
    let only = samples(&all[0], &a).await;
    assert_eq!(only.keys().map(|(_, time)| *time).collect::<Vec<_>>(), [now]);
    assert!(QueryRange::ALL.contains(now));
}
