//! What befalls the cluster, within what the design promises to survive.
//!
//! Any process may die, stop, be cut off, be slow, have a wrong clock or a full disk at any time. What loses acknowledged
//! samples (a disk, a log, a power cut) comes to one member of a replica group at a time, and to the next one when that one
//! is ready again; a zone's disks may go all at once.

use std::collections::BTreeMap;
use std::time::Duration;

use skald::bucket::error::Cause;
use skald::bucket::mem::Fault;
use skald::runtime::Rng;
use tokio::time::Instant;

use crate::cluster::{Cluster, Process};
use crate::scenario::Scene;

/// Something that will be put right.
enum Undo {
    Cut(Vec<(usize, usize)>),
    Slow(Vec<(usize, usize)>),
    Sides(Vec<usize>),
    Clock(usize),
    Disk(usize),
    Bucket,
}

/// Lets misfortunes happen for a while, and puts everything right in the end: what was stopped starts.
pub async fn direct(scene: &Scene, time: Duration) {
    let rng = scene.rng(1);
    let until = Instant::now() + time;
    let mut undos: Vec<(Instant, Undo)> = Vec::new();
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    while Instant::now() < until && !scene.is_wrong() {
        scene.pause(Duration::from_millis(300 + rng.next_u64() % 3000)).await;
        let now = Instant::now();
        let due: Vec<Undo> = undos.extract_if(.., |(at, _)| *at <= now).map(|(_, undo)| undo).collect();
        due.into_iter().for_each(|undo| put_right(scene, undo));
        who_has_recovered(scene).await;
        let what = befall(scene, &rng, &mut undos).await;
        *counts.entry(what).or_default() += 1;
    }
    undos.into_iter().for_each(|(_, undo)| put_right(scene, undo));
    scene.cluster.network.mend();
    for process in &scene.cluster.processes {
        process.put_fuse_out();
        scene.cluster.start(process);
    }
    scene.tell(&counts);
}

/// Members that lost something and are ready again owe nothing.
async fn who_has_recovered(scene: &Scene) {
    for process in scene.cluster.processes.iter().filter(|process| process.owes()) {
        if scene.ready(process).await.is_ok() {
            scene.note(format!("{} has recovered", process.name));
            process.set_owes(false);
        }
    }
}

fn put_right(scene: &Scene, undo: Undo) {
    let cluster = &scene.cluster;
    match undo {
        Undo::Cut(links) => links.into_iter().for_each(|(from, to)| cluster.network.set_cut(from, to, false)),
        Undo::Slow(links) => links.into_iter().for_each(|(from, to)| cluster.network.set_slow(from, to, 2)),
        Undo::Sides(hosts) => hosts.into_iter().for_each(|host| cluster.gossip.set_side(host, 0)),
        Undo::Clock(process) => cluster.processes[process].clock.set_off_by(0),
        Undo::Disk(process) => {
            cluster.processes[process].disk.set_free_bytes(None);
            cluster.processes[process].disk.set_failing_syncs(false);
        }
        Undo::Bucket => cluster.bucket.set_faults(None),
    }
}

/// One misfortune; its name.
async fn befall(scene: &Scene, rng: &Rng, undos: &mut Vec<(Instant, Undo)>) -> &'static str {
    let cluster = &scene.cluster;
    let below = |bound: u64| rng.next_u64() % bound;
    let seconds = |least: u64, most: u64| Duration::from_millis(least * 1000 + below((most - least) * 1000 + 1));
    let number = below(cluster.processes.len() as u64) as usize;
    let any = &cluster.processes[number];
    let ingesters: Vec<usize> = (0..cluster.processes.len()).filter(|i| cluster.processes[*i].is_ingester()).collect();
    let ingester_number = ingesters[below(ingesters.len() as u64) as usize];
    let ingester = &cluster.processes[ingester_number];
    let hosts: Vec<usize> = cluster.processes.iter().map(|process| process.host).collect();
    let down = seconds(0, 20);
    let until = |time: Duration| Instant::now() + time;
    match below(17) {
        0 | 1 => {
            let silent = below(3) == 0;
            kill(scene, any, silent, down);
            "kill"
        }
        2 => {
            kill(scene, ingester, false, down);
            "kill ingester"
        }
        3 => {
            let changes = 1 + below(30);
            scene.note(format!("{} dies in its {changes}. change of its disk", ingester.name));
            ingester.light_fuse(changes);
            ingester.restart_at(Cluster::after(down));
            "die writing"
        }
        4 | 5 => {
            scene.note(format!("{} is asked to stop, and starts again", any.name));
            cluster.stop(any);
            any.restart_at(Cluster::after(down));
            "stop"
        }
        6 => {
            let zone = below(3) as usize;
            let (inside, outside): (Vec<&Process>, Vec<&Process>) =
                cluster.processes.iter().partition(|process| process.zone == zone);
            let time = seconds(1, 40);
            scene.note(format!("zone {zone} is cut off for {time:?}"));
            let pairs = |a: &[&Process], b: &[&Process]| -> Vec<(usize, usize)> {
                a.iter().flat_map(|one| b.iter().map(|other| (one.host, other.host))).collect()
            };
            let links = [pairs(&inside, &outside), pairs(&outside, &inside)].concat();
            links.iter().for_each(|(from, to)| cluster.network.set_cut(*from, *to, true));
            inside.iter().for_each(|process| cluster.gossip.set_side(process.host, 1));
            undos.push((until(time), Undo::Cut(links)));
            undos.push((until(time), Undo::Sides(inside.iter().map(|process| process.host).collect())));
            "cut off zone"
        }
        7 => {
            let other = hosts[below(hosts.len() as u64) as usize];
            let mut links = vec![(any.host, other)];
            if below(2) == 0 {
                links.push((other, any.host));
            }
            let time = seconds(1, 30);
            scene.note(format!("{} and host {other} are cut off in {} directions for {time:?}", any.name, links.len()));
            links.iter().for_each(|(from, to)| cluster.network.set_cut(*from, *to, true));
            undos.push((until(time), Undo::Cut(links)));
            "cut link"
        }
        8 => {
            let most = [50, 500, 3000][below(3) as usize];
            let time = seconds(1, 30);
            scene.note(format!("{} is slow by {most} ms for {time:?}", any.name));
            let links: Vec<(usize, usize)> =
                hosts.iter().flat_map(|other| [(any.host, *other), (*other, any.host)]).collect();
            links.iter().for_each(|(from, to)| cluster.network.set_slow(*from, *to, most));
            undos.push((until(time), Undo::Slow(links)));
            "slow"
        }
        9 => {
            let by = (1 + below(300_000) as i64) * if below(2) == 0 { 1 } else { -1 };
            let time = seconds(1, 60);
            scene.note(format!("the clock of {} is off by {by} ms for {time:?}", any.name));
            any.clock.set_off_by(by);
            undos.push((until(time), Undo::Clock(number)));
            "clock"
        }
        10 => {
            let (free, time) = (below(20_000), seconds(1, 20));
            scene.note(format!("the disk of {} is full in {free} bytes for {time:?}", ingester.name));
            ingester.disk.set_free_bytes(Some(free));
            undos.push((until(time), Undo::Disk(ingester_number)));
            "full disk"
        }
        11 => {
            let time = seconds(1, 10);
            scene.note(format!("syncs of {} fail for {time:?}", ingester.name));
            ingester.disk.set_failing_syncs(true);
            undos.push((until(time), Undo::Disk(ingester_number)));
            "failing syncs"
        }
        12 => lose(scene, rng, &[ingester]),
        13 if below(3) == 0 => {
            let zone = ingester.zone;
            let of_zone: Vec<&Process> =
                ingesters.iter().map(|i| &cluster.processes[*i]).filter(|process| process.zone == zone).collect();
            lose(scene, rng, &of_zone)
        }
        13 | 14 => {
            let outcome = scene.post(ingester, "/ingester/flush").await;
            scene.note(format!("{} flushes: {:?}", ingester.name, outcome.map(|answer| answer.status)));
            "flush"
        }
        15 => {
            let time = seconds(1, 30);
            let share = 1 + below(4);
            scene.note(format!("one of {share} calls to the bucket fails for {time:?}"));
            cluster.bucket.set_faults(Some(Box::new(move |_, _, number| {
                let fails = number.is_multiple_of(share);
                fails.then(|| Fault::Fail(Cause::Unavailable("the bucket is away".to_owned())))
            })));
            undos.push((until(time), Undo::Bucket));
            "bucket"
        }
        _ => {
            scene.note(format!("connections of {} break", any.name));
            cluster.network.reset(any.host);
            "reset"
        }
    }
}

fn kill(scene: &Scene, process: &Process, silent: bool, down: Duration) {
    scene.note(format!("{} is killed{} for {down:?}", process.name, if silent { " with its machine" } else { "" }));
    scene.cluster.kill(process, silent);
    process.restart_at(Cluster::after(down));
}

/// Loses what some ingesters acknowledged, unless another member of a group owes something still.
fn lose(scene: &Scene, rng: &Rng, ingesters: &[&Process]) -> &'static str {
    let zone = ingesters[0].zone;
    let owing = scene.cluster.processes.iter().any(|process| process.owes() && process.zone != zone);
    if owing {
        return "spared";
    }
    let power = rng.next_u64().is_multiple_of(3);
    for ingester in ingesters {
        scene.cluster.kill(ingester, power);
        let how = if power {
            ingester.cut_power();
            "its power cut"
        } else {
            ingester.damage_disk(rng)
        };
        let down = Duration::from_millis(rng.next_u64() % 20_000);
        scene.note(format!("{} is killed for {down:?}, {how}", ingester.name));
        ingester.restart_at(Cluster::after(down));
    }
    "loss"
}
