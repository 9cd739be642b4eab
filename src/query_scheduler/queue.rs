//! Who is next: requests by tenant and by what they read, and the slots of queriers. Pure data.
//!
//! ```text
//! enqueue ──► waiting ──assign──► running ──release──► gone
//!                └───────cancel────────────────────────► gone
//! ```
//!
//! Two lanes, one for what reads recent samples only and one for what reads the store, take turns; within a lane tenants do,
//! one request each. A quarter of each querier's slots is never given to the store's lane, so that slow queries of old
//! ranges leave room for the others, of the same tenant and of all.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::client::Reads;
use crate::tenant::TenantId;

/// A request, as long as it waits or runs.
pub(super) type RequestId = u64;
/// A querier's offer, as long as it stands.
pub(super) type OfferId = u64;

/// A request for a querier's slot.
pub(super) struct Item<P> {
    pub id: RequestId,
    /// Queriers that have failed it: asked again only when there is no other.
    pub not: Vec<Arc<str>>,
    /// Whatever has to be handed to the one who waits.
    pub payload: P,
}

/// A request that gets a slot.
pub(super) struct Assigned<P> {
    pub id: RequestId,
    pub querier: Arc<str>,
    pub payload: P,
}

struct Lane<P> {
    waiting: HashMap<TenantId, VecDeque<Item<P>>>,
    /// Tenants that wait, the next one first.
    order: VecDeque<TenantId>,
}

impl<P> Default for Lane<P> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), order: VecDeque::new() }
    }
}

struct Offer {
    querier: Arc<str>,
    slots: u32,
    /// Slots in use, by lane.
    used: [u32; 2],
    /// When it was last chosen, by count: of two that are equally busy the other one is next.
    chosen: u64,
}

impl Offer {
    fn has_room(&self, lane: usize) -> bool {
        let reserved = if self.slots > 1 { (self.slots / 4).max(1) } else { 0 };
        let mine = if lane == Reads::Store as usize { self.slots - reserved } else { self.slots };
        self.used[0] + self.used[1] < self.slots && self.used[lane] < mine
    }

    /// Busyness, in parts of 65536.
    fn busy(&self) -> u64 {
        (u64::from(self.used[0] + self.used[1]) << 16) / u64::from(self.slots.max(1))
    }
}

/// The queue of a scheduler.
pub(super) struct Queue<P> {
    most_waiting: usize,
    lanes: [Lane<P>; 2],
    next_lane: usize,
    /// Where each waiting request is.
    waiting: HashMap<RequestId, (TenantId, usize)>,
    running: HashMap<RequestId, (OfferId, usize)>,
    offers: BTreeMap<OfferId, Offer>,
    choices: u64,
}

impl<P> Queue<P> {
    /// An empty queue in which each tenant may have so many requests waiting.
    pub fn new(most_waiting: usize) -> Self {
        Self {
            most_waiting,
            lanes: [Lane::default(), Lane::default()],
            next_lane: 0,
            waiting: HashMap::new(),
            running: HashMap::new(),
            offers: BTreeMap::new(),
            choices: 0,
        }
    }

    /// Puts a request at the end of its tenant's queue, unless that is full.
    pub fn enqueue(&mut self, tenant: &TenantId, reads: Reads, item: Item<P>) -> Result<(), Item<P>> {
        let waiting: usize = self.lanes.iter().map(|lane| lane.waiting.get(tenant).map_or(0, VecDeque::len)).sum();
        if waiting >= self.most_waiting {
            return Err(item);
        }
        let lane = &mut self.lanes[reads as usize];
        self.waiting.insert(item.id, (tenant.clone(), reads as usize));
        let queue = lane.waiting.entry(tenant.clone()).or_default();
        if queue.is_empty() {
            lane.order.push_back(tenant.clone());
        }
        queue.push_back(item);
        Ok(())
    }

    /// Takes out a request that waits; nothing when it does not.
    pub fn cancel(&mut self, id: RequestId) {
        let Some((tenant, lane)) = self.waiting.remove(&id) else { return };
        let lane = &mut self.lanes[lane];
        let Some(queue) = lane.waiting.get_mut(&tenant) else { return };
        queue.retain(|item| item.id != id);
        if queue.is_empty() {
            lane.waiting.remove(&tenant);
            lane.order.retain(|other| *other != tenant);
        }
    }

    /// Gives back the slot of a request that ran.
    pub fn release(&mut self, id: RequestId) {
        let Some((offer, lane)) = self.running.remove(&id) else { return };
        if let Some(offer) = self.offers.get_mut(&offer) {
            offer.used[lane] -= 1;
        }
    }

    /// A querier offers slots, or another number of them; 0 is nothing new.
    pub fn offer(&mut self, id: OfferId, querier: &Arc<str>, slots: u32) {
        let new = || Offer { querier: querier.clone(), slots, used: [0; 2], chosen: 0 };
        self.offers.entry(id).or_insert_with(new).slots = slots;
    }

    /// An offer stands no more. What runs on it runs on, without anybody's knowing of it here.
    pub fn withdraw(&mut self, id: OfferId) {
        self.offers.remove(&id);
        self.running.retain(|_, (offer, _)| *offer != id);
    }

    /// The next request that gets a slot.
    pub fn assign(&mut self) -> Option<Assigned<P>> {
        for lane in [self.next_lane, 1 - self.next_lane] {
            if !self.offers.values().any(|offer| offer.has_room(lane)) {
                continue;
            }
            // One turn of the whole order leaves it as it was.
            for _ in 0..self.lanes[lane].order.len() {
                let Some(tenant) = self.lanes[lane].order.pop_front() else { break };
                let chosen = self.lanes[lane].waiting.get(&tenant).and_then(|queue| self.choose(queue.front()?, lane));
                let Some(offer) = chosen else {
                    self.lanes[lane].order.push_back(tenant);
                    continue;
                };
                return self.take(lane, tenant, offer);
            }
        }
        None
    }

    /// The least busy offer with room for the request. Queriers that failed it count only when there are no others.
    fn choose(&self, item: &Item<P>, lane: usize) -> Option<OfferId> {
        let fits = |offer: &Offer| !item.not.contains(&offer.querier);
        let has_other = self.offers.values().any(|offer| offer.slots > 0 && fits(offer));
        let open = self.offers.iter().filter(|(_, offer)| offer.has_room(lane) && (!has_other || fits(offer)));
        open.min_by_key(|(_, offer)| (offer.busy(), offer.chosen)).map(|(id, _)| *id)
    }

    fn take(&mut self, lane: usize, tenant: TenantId, offer_id: OfferId) -> Option<Assigned<P>> {
        let in_lane = &mut self.lanes[lane];
        let queue = in_lane.waiting.get_mut(&tenant)?;
        let item = queue.pop_front()?;
        if queue.is_empty() {
            in_lane.waiting.remove(&tenant);
        } else {
            in_lane.order.push_back(tenant);
        }
        self.waiting.remove(&item.id);
        self.running.insert(item.id, (offer_id, lane));
        self.choices += 1;
        self.next_lane = 1 - lane;
        let offer = self.offers.get_mut(&offer_id)?;
        offer.used[lane] += 1;
        offer.chosen = self.choices;
        Some(Assigned { id: item.id, querier: offer.querier.clone(), payload: item.payload })
    }

    /// Requests that wait in a lane.
    pub fn waiting(&self, reads: Reads) -> usize {
        self.lanes[reads as usize].waiting.values().map(VecDeque::len).sum()
    }

    /// Offers that stand.
    pub fn offers(&self) -> usize {
        self.offers.len()
    }

    /// Requests that run.
    #[cfg(test)]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Slots in use and slots of each offer.
    #[cfg(test)]
    pub fn used(&self) -> Vec<(u32, u32)> {
        self.offers.values().map(|offer| (offer.used[0] + offer.used[1], offer.slots)).collect()
    }
}
