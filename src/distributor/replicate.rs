//! Sending the parts of a write to the ingesters of their groups, and what their answers mean together.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{Either, join_all, select};
use futures::stream::FuturesUnordered;
use skald_proto::WriteBatch;
use skald_ring::{GroupId, GroupState, GroupView, Positions, ReplicaGroups};

use super::shard::shard;
use crate::error::{ErrorKind, ServiceError};
use crate::ingester::client::{IngesterClient, PushReply, RejectedKind};
use crate::membership::Ingesters;
use crate::runtime::Clock;
use crate::tenant::TenantId;

/// What sending a write needs besides the write.
pub(super) struct Sending<'a> {
    pub(super) ingesters: &'a Ingesters,
    pub(super) tenant: &'a TenantId,
    /// Groups the tenant's series are spread over; `None` takes all.
    pub(super) shard_size: Option<usize>,
    /// Longest time of one ingester.
    pub(super) timeout: Duration,
    pub(super) clock: &'a Arc<dyn Clock>,
}

/// Sends each series to the replica group that holds it, or to the next of the tenant's groups when that one has no quorum:
/// as far as is known before, by the ring and by what calls have shown of its members, and when it turns out to have none. The
/// replies come in any order. The error, if any, is one a retry can help against before one it cannot.
pub(super) async fn replicate(sending: &Sending<'_>, batch: Arc<WriteBatch>) -> Result<Vec<PushReply>, ServiceError> {
    let ring = sending.ingesters.ring();
    let no_group = || ServiceError::new(ErrorKind::Unavailable, "no-replica-group", describe_none(ring));
    let subring = ring.write_subring(sending.tenant.as_str(), sending.shard_size).ok_or_else(no_group)?;
    let mut usable = Positions::default();
    // Of whom it only looks as if they could not be reached: for when nobody else is left.
    let mut doubtful = Positions::default();
    for (position, id) in subring.groups().iter().enumerate() {
        match ring.group(*id).filter(|group| group.has_write_quorum()) {
            Some(group) if sending.reaches(group) => usable.insert(position),
            Some(_) => doubtful.insert(position),
            None => {}
        }
    }
    if usable.is_empty() {
        usable = std::mem::take(&mut doubtful);
    }
    if usable.is_empty() {
        // Each says best itself what it lacks.
        usable = subring.positions();
    }
    let mut waiting = vec![batch];
    let mut replies = Vec::new();
    let mut errors = Vec::new();
    while !waiting.is_empty() {
        let parts = waiting.drain(..).flat_map(|batch| shard(batch, &subring, &usable, sending.tenant));
        let sends = parts.map(|(position, part)| (position, subring.groups()[position], part));
        let elsewhere = usable.len() > 1 || !doubtful.is_empty();
        let sends = sends.map(async |(position, group, part)| {
            let outcome = match ring.group(group) {
                Some(group) => push_to_group(group, part.clone(), sending, elsewhere).await,
                None => Err(Failed::Otherwise(no_group())),
            };
            (position, part, outcome)
        });
        let outcomes = join_all(sends).await;
        for (position, ..) in outcomes.iter().filter(|(.., outcome)| matches!(outcome, Err(Failed::Quorum(_)))) {
            usable.remove(*position);
        }
        if usable.is_empty() {
            usable = std::mem::take(&mut doubtful);
        }
        for (_, part, outcome) in outcomes {
            match outcome {
                Ok(reply) => replies.push(reply),
                Err(Failed::Quorum(_)) if !usable.is_empty() => waiting.push(part),
                Err(Failed::Quorum(error) | Failed::Otherwise(error)) => errors.push(error),
            }
        }
    }
    match errors.iter().position(|error| error.kind.is_retryable()).or((!errors.is_empty()).then_some(0)) {
        Some(worst) => Err(errors.swap_remove(worst)),
        None => Ok(replies),
    }
}

impl Sending<'_> {
    /// Whether a majority of a group's members takes writes and could be reached of late.
    fn reaches(&self, group: &GroupView) -> bool {
        let takers = group.members.iter().filter(|member| member.takes_writes());
        let clients = takers.filter_map(|member| self.ingesters.client(member.id()));
        clients.filter(|client| client.is_healthy()).count() >= group.quorum()
    }
}

/// Why a part was not stored.
enum Failed {
    /// The group has too few members that can; another one may take it.
    Quorum(ServiceError),
    /// Another group would say the same.
    Otherwise(ServiceError),
}

/// Why no group takes series.
fn describe_none(ring: &ReplicaGroups) -> String {
    let groups = ring.groups().iter().map(|group| match &group.state {
        GroupState::Pending(missing) => format!("group {} is {}: {missing}", group.id, group.state),
        state => format!("group {} is {state}", group.id),
    });
    let groups: Vec<String> = groups.collect();
    let none = if groups.is_empty() { "no ingester has registered".to_owned() } else { groups.join("; ") };
    format!("no replica group of ingesters takes series: {none}")
}

/// Sends a part to all members of a group that take writes and answers once the outcome is decided. Members that are still
/// at work then go on by themselves. When the part could go `elsewhere`, those that could not be reached of late are not waited for
/// once it takes them to have a quorum.
async fn push_to_group(
    group: &GroupView,
    part: Arc<WriteBatch>,
    sending: &Sending<'_>,
    elsewhere: bool,
) -> Result<PushReply, Failed> {
    let takers = group.members.iter().filter(|member| member.takes_writes());
    let takers: Vec<_> = takers.filter_map(|member| sending.ingesters.client(member.id())).collect();
    if takers.len() < group.quorum() {
        let away = group.members.iter().filter(|member| !member.takes_writes());
        let away: Vec<String> = away.map(|member| format!("{} ({})", member.id(), member.instance.state)).collect();
        let message = format!(
            "replica group {} has no quorum: {} of its ingesters take writes, {} are needed; away: {}",
            group.id,
            takers.len(),
            group.quorum(),
            away.join(", ")
        );
        return Err(Failed::Quorum(quorum_lost(message)));
    }
    let (tenant, timeout, clock) = (sending.tenant, sending.timeout, sending.clock);
    if let [only] = &*takers {
        let answer = push_to_one(only.as_ref(), part, tenant, timeout, clock.as_ref()).await;
        return answer.map_err(Failed::of);
    }
    let takers: Vec<_> = takers.into_iter().map(|replica| (!elsewhere || replica.is_healthy(), replica)).collect();
    let mut hopeful = takers.iter().filter(|(hopeful, _)| *hopeful).count();
    let mut pending: FuturesUnordered<_> = takers
        .into_iter()
        .map(|(hopeful, replica)| {
            let (replica, part, tenant, clock) = (replica.clone(), part.clone(), tenant.clone(), clock.clone());
            let pushing = async move { push_to_one(replica.as_ref(), part, &tenant, timeout, clock.as_ref()).await };
            let pushing = tokio::spawn(pushing);
            async move { (hopeful, pushing.await) }
        })
        .collect();
    drop(part);
    let mut votes = Votes::new(pending.len(), group.quorum());
    while let Some((was_hopeful, answer)) = pending.next().await {
        votes.add(answer.unwrap_or_else(|_| Err(ServiceError::internal("a push to an ingester was lost"))));
        if let Some(reply) = votes.decided() {
            return Ok(reply);
        }
        hopeful -= usize::from(was_hopeful);
        if hopeful == 0 && votes.replies.len() < group.quorum() && !votes.errors.is_empty() {
            break;
        }
    }
    votes.outcome(group.id)
}

fn quorum_lost(message: String) -> ServiceError {
    ServiceError::new(ErrorKind::Unavailable, "ingester-quorum-lost", message)
}

impl Failed {
    /// What the error of a single ingester means for its group.
    fn of(error: ServiceError) -> Self {
        match error.kind {
            ErrorKind::Unavailable | ErrorKind::Internal | ErrorKind::Timeout => Self::Quorum(error),
            _ => Self::Otherwise(error),
        }
    }
}

async fn push_to_one(
    ingester: &dyn IngesterClient,
    part: Arc<WriteBatch>,
    tenant: &TenantId,
    timeout: Duration,
    clock: &dyn Clock,
) -> Result<PushReply, ServiceError> {
    match select(ingester.push(tenant, part), clock.sleep(timeout)).await {
        Either::Left((answer, _)) => answer.map_err(as_answer),
        Either::Right(_) => Err(ServiceError::new(
            ErrorKind::Unavailable,
            "ingester-timeout",
            format!("an ingester did not store the write within {timeout:?}"),
        )),
    }
}

/// The error a sender may see. Bad data is told in replies, never as an error: what else looks like the sender's fault is
/// one of ours, and must not make it drop its data.
fn as_answer(error: ServiceError) -> ServiceError {
    let kind = match error.kind {
        kind if kind.is_retryable() => kind,
        ErrorKind::TooLarge => ErrorKind::TooLarge,
        ErrorKind::Canceled => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    ServiceError { kind, ..error }
}

/// Answers of a group's members as they come.
struct Votes {
    asked: usize,
    quorum: usize,
    replies: Vec<PushReply>,
    errors: Vec<ServiceError>,
}

impl Votes {
    fn new(asked: usize, quorum: usize) -> Self {
        Self { asked, quorum, replies: Vec::with_capacity(asked), errors: Vec::new() }
    }

    fn add(&mut self, answer: Result<PushReply, ServiceError>) {
        match answer {
            Ok(reply) => self.replies.push(reply),
            Err(error) => self.errors.push(error),
        }
    }

    /// The reply, when no further answer can change the outcome for the better: a quorum has stored everything.
    fn decided(&mut self) -> Option<PushReply> {
        let complete = self.replies.iter().filter(|reply| refused_samples(reply) == 0).count();
        (complete >= self.quorum).then(|| self.take_reply())
    }

    /// The outcome of all answers. Every sample not refused in the reply is stored by a quorum: each member that failed or
    /// refused samples may lack any sample, so as soon as these are too many, some of the refused are told.
    fn outcome(mut self, group: GroupId) -> Result<PushReply, Failed> {
        if self.replies.len() >= self.quorum {
            return Ok(self.take_reply());
        }
        let failed = self.errors.len();
        self.errors.sort_by_key(|error| !error.kind.is_retryable());
        let Some(first) = self.errors.into_iter().next() else {
            return Err(Failed::Quorum(quorum_lost(format!("replica group {group} has no ingesters"))));
        };
        if !first.kind.is_retryable() {
            return Err(Failed::Otherwise(first));
        }
        let message = format!(
            "replica group {group} has no quorum: {failed} of {} ingesters failed, the first with: {first}",
            self.asked
        );
        let of_group = ServiceError {
            kind: ErrorKind::Unavailable,
            reason: "ingester-quorum-lost".into(),
            message,
            retry_after: first.retry_after,
        };
        Err(match Failed::of(first) {
            Failed::Quorum(_) => Failed::Quorum(of_group),
            Failed::Otherwise(_) => Failed::Otherwise(of_group),
        })
    }

    /// The reply of the member whose refusals are the fewest that still hold for a quorum.
    fn take_reply(&mut self) -> PushReply {
        self.replies.sort_by_key(refused_samples);
        self.replies.swap_remove(self.quorum - 1)
    }
}

fn refused_samples(reply: &PushReply) -> u64 {
    reply.rejections.iter().filter(|r| r.kind == RejectedKind::Sample).map(|r| r.count).sum()
}
