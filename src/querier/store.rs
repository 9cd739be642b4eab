//! Asking store-gateways: each block at one that owns it, and at another one when that fails.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::sync::Arc;

use futures::future::{BoxFuture, join_all};
use futures::stream::{StreamExt, TryStreamExt};
use skald_ring::InstanceId;
use ulid::Ulid;

use super::Shared;
use super::merge::{Input, Spare, Tolerance, merge};
use crate::error::{ErrorKind, ServiceError};
use crate::select::{SelectRequest, SeriesStream};
use crate::store_gateway::client::{BlocksBatch, FromBlocks, StoreGatewayClient};
use crate::tenant::TenantId;

/// Blocks to be read at one store-gateway.
struct Share {
    id: InstanceId,
    gateway: Arc<dyn StoreGatewayClient>,
    blocks: Vec<Ulid>,
}

/// Who reads which blocks: of each block's owners the first of the own zone, or the first, that has not `failed`; one that could
/// not be reached of late comes after all others. Queries of the same blocks go to the same ones, so that their caches are warm.
fn shares(
    shared: &Shared,
    tenant: &TenantId,
    blocks: &[Ulid],
    failed: &[InstanceId],
) -> Result<Vec<Share>, ServiceError> {
    let gateways = shared.store_gateways.load();
    let mut shares: BTreeMap<InstanceId, Share> = BTreeMap::new();
    for block in blocks {
        let mut owners = gateways.owners(tenant, *block);
        owners.retain(|(member, _)| !failed.contains(member.id()));
        // The first of equals.
        owners.sort_by_key(|(member, gateway)| (!gateway.is_healthy(), member.instance.zone != shared.zone));
        let Some((member, gateway)) = owners.into_iter().next() else {
            let tried: Vec<String> = failed.iter().map(InstanceId::to_string).collect();
            let tried = if tried.is_empty() { String::new() } else { format!("; tried: {}", tried.join(", ")) };
            let message = format!("no store-gateway that serves block {block} can be reached{tried}");
            return Err(ServiceError::new(ErrorKind::Unavailable, "no-store-gateway", message));
        };
        let id = member.id().clone();
        let share = shares.entry(id.clone()).or_insert_with(|| Share { id, gateway, blocks: Vec::new() });
        share.blocks.push(*block);
    }
    Ok(shares.into_values().collect())
}

/// The series of blocks. Whoever of the store-gateways fails, before or in the middle, is made up for by others.
pub(super) fn open_blocks(
    shared: Arc<Shared>,
    tenant: TenantId,
    blocks: Vec<Ulid>,
    request: SelectRequest,
    failed: Vec<InstanceId>,
) -> BoxFuture<'static, Result<SeriesStream, ServiceError>> {
    Box::pin(async move {
        let shares = shares(&shared, &tenant, &blocks, &failed)?;
        let opening = shares.into_iter().map(|Share { id, gateway, blocks }| {
            let (tenant, request) = (&tenant, request.clone());
            async move {
                let opened = gateway.select(tenant, blocks.clone(), request).await;
                (id, blocks, opened)
            }
        });
        let mut inputs = Vec::new();
        let mut tolerances = Vec::new();
        for (id, blocks, opened) in join_all(opening).await {
            let mut failed = failed.clone();
            failed.push(id);
            let group = tolerances.len();
            let elsewhere = (shared.clone(), tenant.clone(), blocks.clone(), request.clone(), failed);
            let (shared, tenant, again, request, failed) = elsewhere;
            match opened {
                Ok(stream) => {
                    let checked = stream.try_filter_map(move |batch| {
                        let outcome = match batch {
                            BlocksBatch::Series(series) => Ok(Some(series)),
                            BlocksBatch::Served(served) => check_served(&blocks, &served).map(|()| None),
                        };
                        async move { outcome }
                    });
                    inputs.push(Input { stream: checked.boxed(), group });
                    let spare: Spare = Box::new(move || open_blocks(shared, tenant, again, request, failed));
                    tolerances.push(Tolerance { spares: vec![spare], left: 0 });
                }
                Err(error) if error.kind.is_retryable() => {
                    let stream = open_blocks(shared, tenant, again, request, failed).await.map_err(|_| error)?;
                    inputs.push(Input { stream, group });
                    tolerances.push(Tolerance::default());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(merge(inputs, tolerances))
    })
}

/// Asks store-gateways until every block was read; their answers, in any order.
pub(super) async fn ask_blocks<T, F>(
    shared: &Shared,
    tenant: &TenantId,
    mut blocks: Vec<Ulid>,
    ask: impl Fn(Arc<dyn StoreGatewayClient>, Vec<Ulid>) -> F,
) -> Result<Vec<T>, ServiceError>
where
    F: Future<Output = Result<FromBlocks<T>, ServiceError>>,
{
    let mut answers = Vec::new();
    let mut failed = Vec::new();
    let mut first_error = None;
    while !blocks.is_empty() {
        let shares = match shares(shared, tenant, &blocks, &failed) {
            Ok(shares) => shares,
            Err(error) => return Err(first_error.unwrap_or(error)),
        };
        let asking = shares.into_iter().map(|Share { id, gateway, blocks }| {
            let asking = ask(gateway, blocks.clone());
            async move { (id, blocks, asking.await) }
        });
        let mut served: HashSet<Ulid> = HashSet::new();
        for (id, asked, answer) in join_all(asking).await {
            let checked = answer.and_then(|answer| {
                served.extend(&answer.served);
                answers.push(answer.value);
                check_served(&asked, &answer.served)
            });
            match checked {
                Ok(()) => {}
                Err(error) if error.kind.is_retryable() => {
                    failed.push(id);
                    first_error.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        blocks.retain(|block| !served.contains(block));
    }
    Ok(answers)
}

/// Every block that the bucket index promises must have been read.
fn check_served(wanted: &[Ulid], served: &[Ulid]) -> Result<(), ServiceError> {
    let missing: Vec<String> = wanted.iter().filter(|b| !served.contains(b)).map(Ulid::to_string).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let text = format!("blocks were not served by any store-gateway: {}", missing.join(", "));
    Err(ServiceError::new(ErrorKind::Unavailable, "store-consistency-check-failed", text))
}
