//! Members that answer nonsense, too much, nothing, or for somebody else.

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use parking_lot::Mutex;
use skald_model::{Labels, MetricMetadata};
use skald_proto::WriteBatch;
use skald_tsdb::SeriesChunks;
use skald_tsdb::head::{PartDigest, SampleDigest, SeriesDigest};

use super::super::super::client::PushReply;
use super::super::exchange::{
    ChunkStream, ChunksRequest, DigestsRequest, OverviewStream, RangeDigest, SeriesDigestStream, SeriesRequest,
};
use super::*;
use crate::error::ErrorKind;
use crate::select::{LabelRequest, SeriesExemplars, SeriesStream};

/// What a member does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It is another one than its address says.
    SomebodyElse,
    /// Its overview ends in the middle.
    CutShort,
    /// It dies after so many answers.
    DiesAfter(usize),
    /// It never answers.
    Hangs,
    /// Its ranges are longer than any.
    NoRanges,
    /// It lists series without end.
    EndlessSeries,
    /// It sends another series than that which was asked for.
    OtherSeries,
    /// Its chunks do not decode.
    Garbage,
    /// It sends nothing of what it listed.
    Nothing,
    /// It answers with the wrong number of parts.
    WrongParts,
}

/// A member with a fault, as far as one tenant is concerned.
struct Faulty {
    inner: Ingester,
    fault: Fault,
    tenant: TenantId,
    answers: Mutex<usize>,
}

impl Faulty {
    fn answer(&self) -> Result<(), ServiceError> {
        let mut answers = self.answers.lock();
        *answers += 1;
        match self.fault {
            Fault::DiesAfter(after) if *answers > after => {
                Err(ServiceError::new(ErrorKind::Unavailable, "grpc-transport", "connection refused"))
            }
            _ => Ok(()),
        }
    }
}

fn unused<T>() -> Result<T, ServiceError> {
    Err(ServiceError::new(ErrorKind::Unimplemented, "unused", "only repair asks"))
}

#[async_trait]
impl IngesterClient for Faulty {
    async fn push(&self, _: &TenantId, _: Arc<WriteBatch>) -> Result<PushReply, ServiceError> {
        unused()
    }
    async fn select(&self, _: &TenantId, _: SelectRequest) -> Result<SeriesStream, ServiceError> {
        unused()
    }
    async fn label_names(&self, _: &TenantId, _: LabelRequest) -> Result<Vec<String>, ServiceError> {
        unused()
    }
    async fn label_values(&self, _: &TenantId, _: &str, _: LabelRequest) -> Result<Vec<String>, ServiceError> {
        unused()
    }
    async fn series(&self, _: &TenantId, _: LabelRequest) -> Result<Vec<Labels>, ServiceError> {
        unused()
    }
    async fn exemplars(&self, _: &TenantId, _: LabelRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        unused()
    }
    async fn metadata(&self, _: &TenantId, _: Option<&str>) -> Result<Vec<MetricMetadata>, ServiceError> {
        unused()
    }

    async fn repair_overview(&self, up_to: i64) -> Result<OverviewStream, ServiceError> {
        self.answer()?;
        let mut parts: Vec<_> = self.inner.repair_overview(up_to).await?.try_collect().await?;
        for part in &mut parts {
            match self.fault {
                Fault::SomebodyElse => part.member.instance = "somebody".to_owned(),
                Fault::CutShort => part.last = false,
                Fault::NoRanges => {
                    let of_tenant = part.tenants.iter_mut().filter(|overview| overview.tenant == self.tenant);
                    of_tenant.for_each(|overview| overview.ranges.push((QueryRange::ALL, RangeDigest::default())));
                }
                Fault::Hangs => return Ok(stream::pending().boxed()),
                _ => {}
            }
        }
        Ok(stream::iter(parts.into_iter().map(Ok)).boxed())
    }

    async fn repair_digests(
        &self,
        tenant: &TenantId,
        request: DigestsRequest,
    ) -> Result<Vec<PartDigest>, ServiceError> {
        self.answer()?;
        let mut parts = self.inner.repair_digests(tenant, request).await?;
        if self.fault == Fault::WrongParts && *tenant == self.tenant {
            parts.pop();
        }
        Ok(parts)
    }

    async fn repair_series(
        &self,
        tenant: &TenantId,
        request: SeriesRequest,
    ) -> Result<SeriesDigestStream, ServiceError> {
        self.answer()?;
        if self.fault == Fault::EndlessSeries && *tenant == self.tenant {
            let one = |number: u128| SeriesDigest { hash: number, digest: SampleDigest { samples: 1, checksum: 1 } };
            let batches =
                stream::iter(0_u128..).map(move |batch| Ok((0..1000).map(|n| one(batch * 1000 + n)).collect()));
            return Ok(batches.boxed());
        }
        self.inner.repair_series(tenant, request).await
    }

    async fn repair_chunks(&self, tenant: &TenantId, request: ChunksRequest) -> Result<ChunkStream, ServiceError> {
        self.answer()?;
        let (fault, mine) = (self.fault, *tenant == self.tenant);
        let spoil = move |mut batch: Vec<SeriesChunks>| {
            for series in batch.iter_mut().filter(|_| mine) {
                match fault {
                    Fault::OtherSeries => series.labels = Labels::from_pairs([("__name__", "other")]),
                    Fault::Garbage => series.chunks.iter_mut().for_each(|chunk| chunk.data = vec![0xFF; 9].into()),
                    _ => {}
                }
            }
            if fault == Fault::Nothing && mine {
                batch.clear();
            }
            batch
        };
        Ok(self.inner.repair_chunks(tenant, request).await?.map_ok(spoil).boxed())
    }
}

/// Two tenants' samples are missing; of the first one's the other member makes a mess.
async fn faulty(fault: Fault) -> (Vec<Place>, Vec<Ingester>, Peer) {
    let places = places(2);
    let all = open_all(&places).await;
    push_many(&all[1], &tenant("a"), 0..3000, NOW).await;
    push_many(&all[1], &tenant("b"), 0..10, NOW).await;
    let member = Faulty { inner: all[1].clone(), fault, tenant: tenant("a"), answers: Mutex::default() };
    (places, all, peer("m1", member))
}

#[track_caller]
fn check(error: &ServiceError, reason: &str, text: &str) {
    assert!(error.reason == reason && error.message.contains(text), "{error:?}");
}

#[tokio::test]
async fn nonsense_about_one_tenant_is_an_error_and_the_others_go_on() {
    for (fault, reason, text) in [
        (Fault::NoRanges, "repair-peer-nonsense", "ranges that are none"),
        (Fault::EndlessSeries, "repair-peer-nonsense", "listed"),
        (Fault::OtherSeries, "repair-peer-nonsense", "not asked for"),
        (Fault::Garbage, "repair-peer-nonsense", "damaged chunk"),
        (Fault::Nothing, "repair-peer-nonsense", "did not send 3000 series"),
        (Fault::WrongParts, "repair-peer-nonsense", "511 parts instead of 512"),
    ] {
        let (_, all, member) = faulty(fault).await;
        let (found, compared) = compare(&all[0], &member).await;
        let error = compared.unwrap_err();
        check(&error, reason, text);
        assert!(error.message.contains("1 tenants not compared; a:"), "{error}");
        assert_eq!(found.failed_tenants, 1);
        assert_eq!(samples(&all[0], &tenant("b")).await, samples(&all[1], &tenant("b")).await, "{fault:?}");
        assert!(samples(&all[0], &tenant("a")).await.is_empty(), "{fault:?}");
        // It is told who it was, and this member does not count for reads for it.
        all[0].shared.repair.instance.lock().clear();
    }
}

#[tokio::test]
async fn a_member_that_is_not_who_it_should_be_or_stops_in_the_middle_is_an_error() {
    for (fault, reason, text) in [
        (Fault::SomebodyElse, "repair-peer-nonsense", "somebody"),
        (Fault::CutShort, "repair-peer-nonsense", "cut short"),
        (Fault::DiesAfter(0), "grpc-transport", "connection refused"),
        (Fault::DiesAfter(1), "grpc-transport", "connection refused"),
        (Fault::DiesAfter(2), "grpc-transport", "connection refused"),
        (Fault::DiesAfter(3), "grpc-transport", "connection refused"),
    ] {
        let (places, all, member) = faulty(fault).await;
        let (_, compared) = compare(&all[0], &member).await;
        check(&compared.unwrap_err(), reason, text);
        // Nothing that was not sent is here, and what was left is fetched from the sound member.
        let (here, there) = (samples(&all[0], &tenant("a")).await, samples(&all[1], &tenant("a")).await);
        assert!(here.iter().all(|(sample, value)| there.get(sample) == Some(value)));
        repair_from(&all[0], &places[1], &all[1]).await;
        assert_eq!(samples(&all[0], &tenant("a")).await, there);
    }
}

#[tokio::test]
async fn a_member_that_hangs_is_given_up_and_shown() {
    let (places, all, member) = faulty(Fault::Hangs).await;
    let group = Group { others: 1, peers: vec![member] };
    let task = begin_repair(&all[0], &places[0], group);
    for _ in 0..130 {
        settle().await;
        places[0].clock.advance(Duration::from_secs(1));
    }
    let Repaired::No { reason } = all[0].repaired().borrow().clone() else { panic!("nobody was compared with") };
    assert!(reason.contains("m1: no answer for 120s"), "{reason}");
    task.abort();
}
