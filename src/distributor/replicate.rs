//! Sending the parts of a write to the ingesters of their groups, and what their answers mean together.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{Either, join_all, select};
use futures::stream::FuturesUnordered;
use skald_proto::WriteBatch;
use skald_ring::{GroupId, Ring, RingError};

use crate::error::{ErrorKind, ServiceError};
use crate::ingester::client::{IngesterClient, PushReply, RejectedKind};
use crate::runtime::Clock;
use crate::tenant::TenantId;

/// Ingesters that hold the same series, one in each zone.
#[derive(Clone)]
pub struct ReplicaGroup {
    /// The group's number.
    pub id: GroupId,
    /// Its members, all of them: one that cannot be reached answers with an error.
    pub replicas: Vec<Arc<dyn IngesterClient>>,
}

/// The ingesters a write can go to: an immutable view.
#[derive(Clone)]
pub struct Ingesters {
    ring: Ring,
    /// In the order of the ring's groups.
    groups: Vec<ReplicaGroup>,
}

impl Ingesters {
    /// A view of these groups, in any order; of equal numbers the first counts.
    pub fn new(mut groups: Vec<ReplicaGroup>) -> Result<Self, RingError> {
        groups.sort_by_key(|group| group.id);
        groups.dedup_by_key(|group| group.id);
        Ok(Self { ring: Ring::new(groups.iter().map(|group| group.id))?, groups })
    }

    /// One ingester that holds everything.
    pub fn single(ingester: Arc<dyn IngesterClient>) -> Self {
        let group = ReplicaGroup { id: GroupId(0), replicas: vec![ingester] };
        Self { ring: Ring::single(group.id), groups: vec![group] }
    }

    /// Who holds what.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The groups in the order of [`Ring::groups`].
    pub fn groups(&self) -> &[ReplicaGroup] {
        &self.groups
    }
}

/// Sends each part to its group; the replies come in the order of the parts. The error, if any, is one a retry can help
/// against before one it cannot.
pub(super) async fn replicate(
    ingesters: &Ingesters,
    parts: Vec<(usize, Arc<WriteBatch>)>,
    tenant: &TenantId,
    timeout: Duration,
    clock: &Arc<dyn Clock>,
) -> Result<Vec<PushReply>, ServiceError> {
    let sends =
        parts.into_iter().map(|(group, part)| push_to_group(&ingesters.groups[group], part, tenant, timeout, clock));
    let mut replies = Vec::new();
    let mut errors = Vec::new();
    for outcome in join_all(sends).await {
        match outcome {
            Ok(reply) => replies.push(reply),
            Err(error) => errors.push(error),
        }
    }
    match errors.iter().position(|error| error.kind.is_retryable()).or((!errors.is_empty()).then_some(0)) {
        Some(worst) => Err(errors.swap_remove(worst)),
        None => Ok(replies),
    }
}

/// Sends a part to all members of a group and answers once the outcome is decided. Members that are still at work then go
/// on by themselves.
async fn push_to_group(
    group: &ReplicaGroup,
    part: Arc<WriteBatch>,
    tenant: &TenantId,
    timeout: Duration,
    clock: &Arc<dyn Clock>,
) -> Result<PushReply, ServiceError> {
    if let [only] = &*group.replicas {
        return push_to_one(only.as_ref(), part, tenant, timeout, clock.as_ref()).await;
    }
    let mut pending: FuturesUnordered<_> = group
        .replicas
        .iter()
        .map(|replica| {
            let (replica, part, tenant, clock) = (replica.clone(), part.clone(), tenant.clone(), clock.clone());
            tokio::spawn(async move { push_to_one(replica.as_ref(), part, &tenant, timeout, clock.as_ref()).await })
        })
        .collect();
    drop(part);
    let mut votes = Votes::new(group.replicas.len());
    while let Some(answer) = pending.next().await {
        votes.add(answer.unwrap_or_else(|_| Err(ServiceError::internal("a push to an ingester was lost"))));
        if let Some(decided) = votes.decided() {
            return decided;
        }
    }
    votes.outcome(group.id)
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
    members: usize,
    replies: Vec<PushReply>,
    errors: Vec<ServiceError>,
}

impl Votes {
    fn new(members: usize) -> Self {
        Self { members, replies: Vec::with_capacity(members), errors: Vec::new() }
    }

    fn add(&mut self, answer: Result<PushReply, ServiceError>) {
        match answer {
            Ok(reply) => self.replies.push(reply),
            Err(error) => self.errors.push(error),
        }
    }

    fn quorum(&self) -> usize {
        self.members / 2 + 1
    }

    /// The outcome, when no further answer can change it for the better: a quorum has stored everything.
    fn decided(&mut self) -> Option<Result<PushReply, ServiceError>> {
        let complete = self.replies.iter().filter(|reply| refused_samples(reply) == 0).count();
        (complete >= self.quorum()).then(|| Ok(self.take_reply()))
    }

    /// The outcome of all answers. Every sample not refused in the reply is stored by a quorum: each member that failed or
    /// refused samples may lack any sample, so as soon as these are too many, some of the refused are told.
    fn outcome(mut self, group: GroupId) -> Result<PushReply, ServiceError> {
        let quorum = self.quorum();
        if self.replies.len() >= quorum {
            return Ok(self.take_reply());
        }
        let failed = self.errors.len();
        self.errors.sort_by_key(|error| !error.kind.is_retryable());
        let Some(first) = self.errors.into_iter().next() else {
            let message = format!("replica group {group} has no ingesters");
            return Err(ServiceError::new(ErrorKind::Unavailable, "ingester-quorum-lost", message));
        };
        if !first.kind.is_retryable() {
            return Err(first);
        }
        let message = format!(
            "replica group {group} has no quorum: {failed} of {} ingesters failed, the first with: {first}",
            self.members
        );
        Err(ServiceError { kind: ErrorKind::Unavailable, reason: "ingester-quorum-lost".into(), message, ..first })
    }

    /// The reply of the member whose refusals are the fewest that still hold for a quorum.
    fn take_reply(&mut self) -> PushReply {
        self.replies.sort_by_key(refused_samples);
        self.replies.swap_remove(self.quorum() - 1)
    }
}

fn refused_samples(reply: &PushReply) -> u64 {
    reply.rejections.iter().filter(|r| r.kind == RejectedKind::Sample).map(|r| r.count).sum()
}
