//! Members that come, go, lose what they had, and count for reads again.

use std::collections::VecDeque;

use skald_tsdb::disk::Disk;

use super::*;

fn group(places: &[Place], all: &[Option<Ingester>], of: usize) -> Group {
    let others = places.iter().zip(all).enumerate().filter(|(number, _)| *number != of);
    let known = others.filter_map(|(_, (place, member))| Some(peer(&place.id, member.clone()?)));
    Group { others: places.len() - 1, peers: known.collect() }
}

fn reason(ingester: &Ingester) -> String {
    match &*ingester.repaired().borrow() {
        Repaired::No { reason } => reason.clone(),
        Repaired::Yes => String::new(),
    }
}

async fn open_some(places: &[Place]) -> Vec<Option<Ingester>> {
    open_all(places).await.into_iter().map(Some).collect()
}

/// A new group of three that have found each other, with some data.
async fn begun() -> (Vec<Place>, Vec<Option<Ingester>>) {
    let places = places(3);
    let all = open_some(&places).await;
    for (number, place) in places.iter().enumerate() {
        let member = all[number].as_ref().unwrap();
        let task = begin_repair(member, place, group(&places, &all, number));
        wait_repaired(member, &place.clock).await;
        task.abort();
    }
    for member in all.iter().flatten() {
        push(member, &tenant("a"), 1, &[NOW - 5 * MINUTE, NOW - 4 * MINUTE]).await;
        push(member, &tenant("b"), 2, &[NOW - 3 * MINUTE]).await;
    }
    (places, all)
}

/// Kills a member: what it had written is on its disk.
fn kill(all: &mut [Option<Ingester>], number: usize) {
    drop(all[number].take());
}

#[tokio::test]
async fn an_ingester_on_its_own_is_repaired_at_once() {
    let place = &places(1)[0];
    let ingester = place.open().await;
    assert!(reason(&ingester).contains("not begun"));
    let task = begin_repair(&ingester, place, Group::default());
    settle().await;
    assert_eq!(*ingester.repaired().borrow(), Repaired::Yes);
    task.abort();
}

#[tokio::test]
async fn a_new_group_waits_for_all_its_members_and_no_longer() {
    let places = places(3);
    let mut all = open_some(&places).await;
    let last = all[2].take();
    let first = all[0].clone().unwrap();
    let task = begin_repair(&first, &places[0], group(&places, &all, 0));
    settle().await;
    assert!(
        reason(&first).contains("empty data directory") && reason(&first).contains("only 1 known"),
        "{}",
        reason(&first)
    );
    task.abort();
    all[2] = last;
    for number in [0, 1, 2] {
        let member = all[number].clone().unwrap();
        let task = begin_repair(&member, &places[number], group(&places, &all, number));
        wait_repaired(&member, &places[0].clock).await;
        task.abort();
    }
}

#[tokio::test]
async fn who_was_down_needs_one_repaired_member() {
    let (places, mut all) = begun().await;
    kill(&mut all, 0);
    for member in all.iter().flatten() {
        push(member, &tenant("a"), 1, &[NOW - MINUTE]).await;
        push(member, &tenant("new"), 3, &[NOW]).await;
    }
    // One of the others is gone, too.
    let third = all[2].take().unwrap();
    let back = places[0].open().await;
    all[0] = Some(back.clone());
    let task = begin_repair(&back, &places[0], group(&places, &all, 0));
    wait_repaired(&back, &places[0].clock).await;
    for name in ["a", "b", "new"] {
        assert_eq!(samples(&back, &tenant(name)).await, samples(&third, &tenant(name)).await);
    }
    task.abort();
}

#[tokio::test]
async fn who_lost_its_disk_needs_every_other_also_after_another_restart() {
    let (places, mut all) = begun().await;
    // A sample that was acknowledged by the member that will be blank and one other only.
    for number in [0, 2] {
        push(all[number].as_ref().unwrap(), &tenant("a"), 1, &[NOW - 2 * MINUTE]).await;
    }
    let expected = samples(all[2].as_ref().unwrap(), &tenant("a")).await;
    kill(&mut all, 0);
    places[0].disk.remove_dir_all(Path::new("/data")).unwrap();
    let third = all[2].take();
    for _ in 0..2 {
        let back = places[0].open().await;
        all[0] = Some(back.clone());
        let task = begin_repair(&back, &places[0], group(&places, &all, 0));
        for _ in 0..10 {
            settle().await;
            places[0].clock.advance(Duration::from_secs(1));
        }
        assert!(
            reason(&back).contains("empty data directory") && reason(&back).contains("1 of 2 compared"),
            "{}",
            reason(&back)
        );
        assert_eq!(samples(&back, &tenant("a")).await.len(), 2, "it has what the first one had");
        task.abort();
        settle().await;
        kill(&mut all, 0);
    }
    all[2] = third;
    let back = places[0].open().await;
    all[0] = Some(back.clone());
    let task = begin_repair(&back, &places[0], group(&places, &all, 0));
    wait_repaired(&back, &places[0].clock).await;
    assert_eq!(samples(&back, &tenant("a")).await, expected);
    task.abort();
    settle().await;
    drop(back);
    kill(&mut all, 0);
    // Now it has everything again: the next time one is enough.
    kill(&mut all, 2);
    let back = places[0].open().await;
    assert_eq!(samples(&back, &tenant("a")).await, expected);
    let task = begin_repair(&back, &places[0], group(&places, &all, 0));
    wait_repaired(&back, &places[0].clock).await;
    task.abort();
}

#[tokio::test]
async fn a_damaged_or_truncated_log_needs_every_other() {
    for truncated in [false, true] {
        let (places, mut all) = begun().await;
        let expected = samples(all[2].as_ref().unwrap(), &tenant("a")).await;
        kill(&mut all, 0);
        let dir = Path::new("/data/wal");
        let files = places[0].disk.list(dir).unwrap();
        let path = dir.join(&files.iter().rfind(|file| !file.is_dir).unwrap().name);
        let mut bytes = places[0].disk.read(&path).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        match truncated {
            true => bytes.truncate(end - 5),
            false => bytes[end / 2] ^= 0x55,
        }
        places[0].disk.create(&path).unwrap().append(&bytes).unwrap();
        let third = all[2].take();
        let back = places[0].open().await;
        all[0] = Some(back.clone());
        let task = begin_repair(&back, &places[0], group(&places, &all, 0));
        for _ in 0..10 {
            settle().await;
            places[0].clock.advance(Duration::from_secs(1));
        }
        let expected_reason = if truncated { "cut off" } else { "damaged" };
        assert!(reason(&back).contains(expected_reason), "{}", reason(&back));
        task.abort();
        all[2] = third;
        let task = begin_repair(&back, &places[0], group(&places, &all, 0));
        wait_repaired(&back, &places[0].clock).await;
        assert_eq!(samples(&back, &tenant("a")).await, expected);
        task.abort();
    }
}

#[tokio::test]
async fn a_group_that_was_down_as_a_whole_comes_back_with_a_majority() {
    let (places, mut all) = begun().await;
    push(all[1].as_ref().unwrap(), &tenant("a"), 1, &[NOW - MINUTE]).await;
    let expected = samples(all[1].as_ref().unwrap(), &tenant("a")).await;
    (0..3).for_each(|number| kill(&mut all, number));
    for number in [0, 1] {
        all[number] = Some(places[number].open().await);
    }
    for number in [0, 1] {
        let member = all[number].clone().unwrap();
        let task = begin_repair(&member, &places[number], group(&places, &all, number));
        wait_repaired(&member, &places[0].clock).await;
        assert_eq!(samples(&member, &tenant("a")).await, expected);
        task.abort();
    }
}

#[tokio::test]
async fn who_shed_load_gets_what_it_missed_within_the_interval_and_equal_members_send_nothing() {
    let (places, all) = begun().await;
    let member = all[0].clone().unwrap();
    let task = begin_repair(&member, &places[0], group(&places, &all, 0));
    wait_repaired(&member, &places[0].clock).await;
    let clock = &places[0].clock;
    let metrics = &member.shared.metrics.repair;
    let (passes, chunks) = (metrics.passes.get(), metrics.chunks_fetched.get());
    // Under load: every member gets every sample, but one gets them later than the others.
    let mut behind = VecDeque::new();
    for _ in 0..300 {
        clock.advance(Duration::from_secs(1));
        behind.push_back(clock.now_ms());
        for other in all.iter().flatten().skip(1) {
            push(other, &tenant("load"), 5, &[clock.now_ms()]).await;
        }
        if behind.len() > 7 {
            push(&member, &tenant("load"), 5, &[behind.pop_front().unwrap()]).await;
        }
        settle().await;
    }
    assert!(metrics.passes.get() >= passes + 4, "{}", metrics.passes.get());
    assert_eq!((metrics.chunks_fetched.get(), metrics.samples_imported.get()), (chunks, 0));
    push(&member, &tenant("load"), 5, behind.make_contiguous()).await;
    // A sample that it never got.
    let lost = clock.now_ms() - 500;
    for one in all.iter().flatten().skip(1) {
        push(one, &tenant("load"), 9, &[lost]).await;
    }
    for _ in 0..240 {
        clock.advance(Duration::from_secs(1));
        settle().await;
    }
    assert_eq!(metrics.samples_imported.get(), 1);
    assert!(metrics.chunks_fetched.get() - chunks <= 2, "{} chunks", metrics.chunks_fetched.get() - chunks);
    assert_eq!(samples(&member, &tenant("load")).await.keys().filter(|(_, time)| *time == lost).count(), 1);
    task.abort();
}

#[tokio::test]
async fn the_page_shows_whom_it_was_compared_with() {
    use tower::ServiceExt;
    let (places, all) = begun().await;
    push(all[1].as_ref().unwrap(), &tenant("a"), 1, &[NOW - MINUTE]).await;
    let member = all[0].clone().unwrap();
    let mut group = group(&places, &all, 0);
    group.peers[1].id = "<b>".to_owned();
    let (repairing, of) = (member.clone(), group.clone());
    let task = tokio::spawn(async move { repairing.repair_forever("m0", || of.clone()).await });
    for _ in 0..100 {
        settle().await;
        places[0].clock.advance(Duration::from_secs(1));
    }
    task.abort();
    let get = async |accept: &str| {
        let request = http::Request::get("/ingester/repair").header("accept", accept).body(axum::body::Body::empty());
        let response = member.clone().routes().oneshot(request.unwrap()).await.unwrap();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    };
    let state: serde_json::Value = serde_json::from_str(&get("application/json").await).unwrap();
    assert_eq!(state["notes"], serde_json::json!(["m0: repaired"]), "{state}");
    let [second, first] = state["rows"].as_array().unwrap().as_slice() else { panic!("{state}") };
    assert_eq!((&first["peer"], &first["errors"]), (&"m1".into(), &serde_json::Value::Null), "{state}");
    assert!(first["whole_seconds_ago"].as_f64().is_some_and(|ago| ago < 100.0), "{state}");
    assert!(second["errors"].as_str().is_some_and(|error| error.contains("it is \"m2\"")), "{state}");
    let page = get("text/html").await;
    assert!(page.contains("<td>m1</td>") && page.contains("&lt;b&gt;") && !page.contains("<b>"), "{page}");
}

#[tokio::test]
async fn a_repair_that_is_interrupted_begins_again_and_writes_go_on() {
    let (places, mut all) = begun().await;
    push_many(all[1].as_ref().unwrap(), &tenant("a"), 0..4000, NOW - MINUTE).await;
    push_many(all[2].as_ref().unwrap(), &tenant("a"), 0..4000, NOW - MINUTE).await;
    for steps in [1, 3, 10, 30, 100] {
        kill(&mut all, 0);
        let back = places[0].open().await;
        all[0] = Some(back.clone());
        let task = begin_repair(&back, &places[0], group(&places, &all, 0));
        for step in 0..steps {
            tokio::task::yield_now().await;
            push(&back, &tenant("a"), 77, &[NOW - 30_000 + i64::from(step) * 100]).await;
        }
        task.abort();
        settle().await;
    }
    let back = all[0].clone().unwrap();
    let task = begin_repair(&back, &places[0], group(&places, &all, 0));
    wait_repaired(&back, &places[0].clock).await;
    let (here, there) = (samples(&back, &tenant("a")).await, samples(all[1].as_ref().unwrap(), &tenant("a")).await);
    assert!(there.iter().all(|(sample, value)| here.get(sample) == Some(value)));
    assert_eq!(here.len(), there.len() + 100);
    task.abort();
}
