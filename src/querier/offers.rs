//! Offers this querier's slots to the schedulers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::query_scheduler::Addresses;
use crate::query_scheduler::client::SchedulerClient;
use crate::runtime::Clock;

/// How often the list of schedulers is looked at, and rest before one is called again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A client of the scheduler at an address.
pub type SchedulerAt = Arc<dyn Fn(&str) -> std::io::Result<Arc<dyn SchedulerClient>> + Send + Sync>;

/// The slots of a querier and who is offered them.
pub struct Offers {
    /// Where query-frontends reach this querier.
    pub address: String,
    /// Queries it evaluates at one time, shared over the schedulers; each is offered one at least.
    pub slots: u32,
    /// The schedulers.
    pub schedulers: Addresses,
    /// How they are called.
    pub scheduler_at: SchedulerAt,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Once it is cancelled nothing new is taken.
    pub stopping: CancellationToken,
}

impl Offers {
    /// Offers slots to all schedulers there are. Does not end.
    pub async fn run(self) {
        let (slots, _) = watch::channel(0);
        let mut offered: HashMap<String, AbortOnDropHandle<()>> = HashMap::new();
        loop {
            let addresses = self.schedulers.load_full();
            offered.retain(|address, _| addresses.contains(address));
            let share = (self.slots / addresses.len().max(1) as u32).max(1);
            let now = if self.stopping.is_cancelled() { 0 } else { share };
            slots.send_if_modified(|before| std::mem::replace(before, now) != now);
            for address in addresses.iter().filter(|address| !address.is_empty()) {
                if !offered.contains_key(address) {
                    let offering = self.offer_again_and_again(address.clone(), slots.subscribe());
                    offered.insert(address.clone(), AbortOnDropHandle::new(tokio::spawn(offering)));
                }
            }
            tokio::select! {
                () = self.clock.sleep(LOOK_EVERY) => {}
                () = self.stopping.cancelled(), if now > 0 => {}
            }
        }
    }

    fn offer_again_and_again(
        &self,
        scheduler: String,
        slots: watch::Receiver<u32>,
    ) -> impl Future<Output = ()> + use<> {
        let (address, clock, scheduler_at) = (self.address.clone(), self.clock.clone(), self.scheduler_at.clone());
        async move {
            let mut told = false;
            loop {
                let outcome = match scheduler_at(&scheduler) {
                    Ok(client) => client.offer(&address, slots.clone()).await.map_err(|e| e.message),
                    Err(error) => Err(error.to_string()),
                };
                match outcome {
                    Ok(()) => told = false,
                    Err(error) if !told => {
                        tracing::warn!(scheduler, error, "no connection to a query-scheduler, trying on");
                        told = true;
                    }
                    Err(_) => {}
                }
                clock.sleep(LOOK_EVERY).await;
            }
        }
    }
}
