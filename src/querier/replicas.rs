//! Asking replicas: of every replica group a majority, those of the own zone first, another one when one fails or is slow;
//! those that could not be reached of late come last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, Either, select};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use skald_ring::{GroupView, Member};

use super::Shared;
use crate::error::{ErrorKind, ServiceError};
use crate::ingester::client::IngesterClient;
use crate::membership::Ingesters;
use crate::runtime::Clock;
use crate::tenant::TenantId;

/// Answers a p95 is taken of.
const SAMPLES: usize = 256;
/// After how many answers it is taken anew.
const TAKE_EVERY: usize = 32;
/// Before enough answers have come.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// Another member is asked no sooner than this: within it nobody is slow.
const LEAST_DELAY: Duration = Duration::from_millis(10);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// How long to wait for an answer before another member is asked as well: the 95th percentile of the latest answers.
#[derive(Debug)]
pub(super) struct HedgeDelay {
    /// Microseconds.
    delay: AtomicU64,
    answers: Mutex<Answers>,
}

#[derive(Debug)]
struct Answers {
    /// Microseconds; the oldest is overwritten.
    took: Vec<u64>,
    next: usize,
}

impl HedgeDelay {
    pub(super) fn new() -> Self {
        let answers = Answers { took: Vec::with_capacity(SAMPLES), next: 0 };
        Self { delay: AtomicU64::new(FIRST_DELAY.as_micros() as u64), answers: Mutex::new(answers) }
    }

    fn get(&self) -> Duration {
        Duration::from_micros(self.delay.load(Ordering::Relaxed))
    }

    fn observe(&self, took: Duration) {
        let mut answers = self.answers.lock();
        let (at, took) = (answers.next % SAMPLES, took.as_micros() as u64);
        match answers.took.get_mut(at) {
            Some(oldest) => *oldest = took,
            None => answers.took.push(took),
        }
        answers.next += 1;
        if answers.next.is_multiple_of(TAKE_EVERY) {
            let mut sorted = answers.took.clone();
            drop(answers);
            sorted.sort_unstable();
            let p95 = Duration::from_micros(sorted[(sorted.len() - 1) * 95 / 100]);
            self.delay.store(p95.clamp(LEAST_DELAY, LONGEST_DELAY).as_micros() as u64, Ordering::Relaxed);
        }
    }
}

/// The members of a replica group, in the order to ask them.
pub(super) struct Candidates {
    /// Answers that are needed.
    pub(super) quorum: usize,
    /// Those that count, the first ones to be asked first.
    pub(super) members: Vec<Arc<dyn IngesterClient>>,
    name: String,
}

/// Every group that may hold series of the tenant, or an error that names one which cannot answer.
pub(super) fn candidates(shared: &Shared, tenant: &TenantId) -> Result<Vec<Candidates>, ServiceError> {
    let ingesters = shared.ingesters.load();
    let shard_size = shared.shards.read_size(tenant);
    let groups = ingesters.ring().read_groups(tenant.as_str(), shard_size, shared.lookback);
    if groups.is_empty() {
        let message = "no replica group of ingesters is known; /ring tells who is there";
        return Err(ServiceError::new(ErrorKind::Unavailable, "no-replica-group", message));
    }
    groups.into_iter().map(|group| of_group(shared, &ingesters, group)).collect()
}

fn of_group(shared: &Shared, ingesters: &Ingesters, group: &GroupView) -> Result<Candidates, ServiceError> {
    let mut members: Vec<&Arc<Member>> = group.members.iter().filter(|member| member.counts_for_reads()).collect();
    let away = |member: &&Arc<Member>| !member.counts_for_reads();
    if members.len() < group.quorum() {
        let away = group.members.iter().filter(away).map(|member| {
            let repaired = if member.instance.repaired { "" } else { ", not repaired" };
            let heard = member.heartbeat_age.as_secs();
            format!("{} ({}{repaired}, last heard of {heard} s ago)", member.id(), member.instance.state)
        });
        let away: Vec<String> = away.collect();
        let away = if group.members.is_empty() {
            "none has registered since the cluster was started, or they were all forgotten; start them, or remove the group on \
             /ring if what it holds is lost or in object storage"
                .to_owned()
        } else {
            format!("away: {}", away.join(", "))
        };
        let message = format!(
            "replica group {} of ingesters has no read quorum: {} of its members answer, {} are needed; {away}",
            group.id,
            members.len(),
            group.quorum(),
        );
        return Err(ServiceError::new(ErrorKind::Unavailable, "ingester-quorum-lost", message));
    }
    // Those of other zones share the rest of the load.
    if !members.is_empty() {
        let turn = shared.runtime.rng.next_u64() as usize % members.len();
        members.rotate_left(turn);
    }
    let with_client = |member: &Arc<Member>| Some((member.clone(), ingesters.client(member.id())?.clone()));
    let mut members: Vec<_> = members.into_iter().filter_map(with_client).collect();
    members.sort_by_cached_key(|(member, client)| {
        (!client.is_healthy(), member.instance.zone != shared.zone, member.instance.state)
    });
    let clients = members.into_iter().map(|(_, client)| client).collect();
    Ok(Candidates { quorum: group.quorum(), members: clients, name: format!("replica group {}", group.id) })
}

/// What a quorum of a group answered, and who is left to be asked should one of them fail later.
pub(super) struct Answered<T> {
    pub(super) answers: Vec<T>,
    pub(super) left: Vec<Arc<dyn IngesterClient>>,
}

/// Asks a quorum of the candidates; one that fails, or takes longer than most answers lately, is made up for by another.
pub(super) async fn ask_quorum<T>(
    shared: &Shared,
    candidates: Candidates,
    ask: impl Fn(Arc<dyn IngesterClient>) -> BoxFuture<'static, Result<T, ServiceError>>,
) -> Result<Answered<T>, ServiceError> {
    let Candidates { quorum, members, name } = candidates;
    let clock: &dyn Clock = shared.runtime.clock.as_ref();
    let mut waiting = members.into_iter();
    let mut asked: Vec<(Arc<dyn IngesterClient>, bool)> = Vec::new();
    let mut pending = FuturesUnordered::new();
    let mut answers = Vec::with_capacity(quorum);
    let mut first_error: Option<ServiceError> = None;
    let begin = |member: Arc<dyn IngesterClient>, number: usize| {
        let (begun, asking) = (clock.monotonic(), ask(member));
        async move { (number, begun, asking.await) }
    };
    // Most selects of a process alone have nobody to turn to, and need no timer.
    let mut hedge = (waiting.len() > quorum).then(|| clock.sleep(shared.hedge_delay.get()));
    let mut hedged = false;
    loop {
        while pending.len() + answers.len() < quorum + usize::from(hedged) {
            let Some(member) = waiting.next() else { break };
            asked.push((member.clone(), false));
            pending.push(begin(member, asked.len() - 1));
        }
        if pending.len() + answers.len() < quorum {
            let error = first_error.unwrap_or_else(|| ServiceError::internal("an ingester's address makes no sense"));
            return Err(ServiceError {
                message: format!("{name} of ingesters has no quorum: {}", error.message),
                ..error
            });
        }
        let outcome = match &mut hedge {
            Some(timer) if !hedged && waiting.len() > 0 => match select(pending.next(), timer).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right(((), _)) => {
                    hedged = true;
                    continue;
                }
            },
            _ => pending.next().await,
        };
        let Some((number, begun, outcome)) = outcome else { continue };
        match outcome {
            Ok(answer) => {
                shared.hedge_delay.observe(clock.monotonic().saturating_sub(begun));
                asked[number].1 = true;
                answers.push(answer);
                if answers.len() == quorum {
                    break;
                }
            }
            // What is wrong with the request, or beyond its bounds, is so everywhere.
            Err(error) if !error.kind.is_retryable() => return Err(error),
            Err(error) => {
                asked[number].1 = true;
                first_error.get_or_insert(error);
            }
        }
    }
    drop(pending);
    let slow = asked.into_iter().filter(|(_, ended)| !ended).map(|(member, _)| member);
    Ok(Answered { answers, left: waiting.chain(slow).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_follows_the_slowest_in_twenty() {
        let delay = HedgeDelay::new();
        assert_eq!(delay.get(), FIRST_DELAY);
        for i in 0..320 {
            delay.observe(Duration::from_millis(if i % 10 == 0 { 300 } else { 40 }));
        }
        assert_eq!(delay.get(), Duration::from_millis(300));
        for _ in 0..SAMPLES {
            delay.observe(Duration::from_millis(1));
        }
        assert_eq!(delay.get(), LEAST_DELAY);
    }
}
