//! What a market looks like, for those who watch: depth as it changes, and
//! checkpoints to start from. Best effort: the journal is what counts, and
//! nothing here holds up the desk.

mod stamps;

use std::collections::{BTreeSet, HashMap};

use futures_util::{StreamExt, stream};
use hashpit_mailbox::{Arrival, Mailbox};
use hashpit_nips::eh04::{ExchangeInfo, Market, MarketId, MarketState};
use hashpit_nips::eh05::{Book, Change, Checkpoint, Depth};
use hashpit_nips::{EpochId, kind};
use nostr_sdk::{Event, EventBuilder, Filter, Keys, Timestamp};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::config::Config;
use crate::desk::{Desk, Snapshot};
use crate::{Error, now};
use stamps::Stamps;

/// Levels of a side that a checkpoint or a depth event lists.
pub(crate) const LEVELS: usize = 500;
/// Checkpoints on their way at one time.
const IN_FLIGHT: usize = 16;
/// Publications that go on at one time; while there are so many, markets wait
/// for their next checkpoint.
const MAX_JOBS: usize = 16;

/// Publishes depth, checkpoints, markets, and the exchange's info.
pub(crate) struct Feed {
    desk: Desk,
    keys: Keys,
    mailbox: Mailbox,
    info: ExchangeInfo,
    /// Number of the depth event before the first. Time, so that numbers grow
    /// from one start to the next: there are fewer than a thousand a second.
    first: u64,
    markets: HashMap<EpochId, Shown>,
    /// Markets that changed since their checkpoint.
    changed: BTreeSet<EpochId>,
    /// Those that are to have one now.
    due: BTreeSet<EpochId>,
    stamps: Stamps,
    /// The newest event of each address, for relays that come back.
    newest: HashMap<Address, Event>,
    jobs: JoinSet<()>,
}

/// An address of the exchange's: its info, or a market's terms or checkpoint.
type Address = (nostr_sdk::Kind, Option<EpochId>);

/// What was told of a market.
struct Shown {
    depth: u64,
    state: Option<MarketState>,
    market: Option<Market>,
}

impl Feed {
    /// A feed of all that happens at `desk`. `newest` is the time of the newest
    /// entry.
    pub(crate) fn new(
        desk: Desk,
        keys: Keys,
        mailbox: Mailbox,
        config: &Config,
        newest: Option<Timestamp>,
    ) -> Self {
        let info = ExchangeInfo {
            name: config.name.clone(),
            relays: config.relays.clone(),
            pools: config.pools.clone(),
            rules: config.rules.clone(),
        };
        // Someone that was stopped a moment ago may have used this second.
        let floor = newest.unwrap_or_default().max(Timestamp::now());
        Self {
            desk,
            keys,
            mailbox,
            info,
            first: now().get(),
            markets: HashMap::new(),
            changed: BTreeSet::new(),
            due: BTreeSet::new(),
            stamps: Stamps::new(floor),
            newest: HashMap::new(),
            jobs: JoinSet::new(),
        }
    }

    /// Runs until `stop`.
    pub(crate) async fn run(
        mut self,
        config: Config,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let own = Filter::new().kind(kind::EXCHANGE).author(self.keys.public_key()).limit(0);
        let mut relays = self.mailbox.subscribe(own).await?;
        self.publish_info();
        let mut depth = interval(config.depth_every());
        let mut checkpoint = interval(config.checkpoint_every());
        depth.set_missed_tick_behavior(MissedTickBehavior::Delay);
        checkpoint.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let all = self.desk.snapshots(None).await?;
        self.show(all);
        loop {
            tokio::select! { biased;
                () = stop.cancelled() => break,
                Some(_) = self.jobs.join_next(), if !self.jobs.is_empty() => {}
                _ = checkpoint.tick() => self.due.append(&mut self.changed),
                _ = depth.tick() => {
                    self.tell_depth().await;
                    self.checkpoint().await?;
                }
                arrival = relays.next() => match arrival {
                    Some(Arrival::Connected(relay)) => {
                        debug!(%relay, "telling all markets again");
                        let all = self.newest.values().cloned().collect();
                        self.publish(all);
                    }
                    Some(Arrival::Event(_)) => {}
                    None => break,
                },
            }
        }
        Ok(())
    }

    /// Publishes what changed since the last time.
    async fn tell_depth(&mut self) {
        let (Some(seq), changes) = self.desk.take_changes() else { return };
        for (epoch, change) in changes {
            let shown = self.shown(epoch);
            if shown.state.replace(change.state) != Some(change.state) {
                self.due.insert(epoch);
            }
            self.changed.insert(epoch);
            for part in parts(change) {
                let shown = self.shown(epoch);
                shown.depth += 1;
                let number = shown.depth;
                let event = self.depth(epoch, number, seq, part);
                if let Err(error) = self.mailbox.cast(&event).await {
                    debug!(%error, "depth was not told");
                }
            }
        }
    }

    fn depth(&self, epoch: EpochId, number: u64, seq: u64, change: Change) -> Event {
        let market = MarketId { exchange: self.keys.public_key(), epoch };
        self.sign(Depth { market, number, seq, change }.encode())
    }

    /// Publishes the checkpoints that are due, if their addresses and the relays
    /// have room.
    async fn checkpoint(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if self.due.is_empty() || self.jobs.len() >= MAX_JOBS {
            return Ok(());
        }
        let (ready, later) =
            std::mem::take(&mut self.due).into_iter().partition(|it| self.stamps.free(it, now));
        self.due = later;
        let ready: BTreeSet<EpochId> = ready;
        if ready.is_empty() {
            return Ok(());
        }
        let snapshots = self.desk.snapshots(Some(ready.into_iter().collect())).await?;
        self.show(snapshots);
        Ok(())
    }

    /// Publishes markets as they are.
    fn show(&mut self, snapshots: Vec<Snapshot>) {
        let mut events = Vec::new();
        for snapshot in snapshots {
            self.show_one(snapshot, &mut events);
        }
        self.publish(events);
    }

    fn show_one(&mut self, snapshot: Snapshot, events: &mut Vec<Event>) {
        let epoch = snapshot.market.epoch;
        let at = self.stamps.next(epoch);
        let shown = self.shown(epoch);
        shown.state = Some(snapshot.book.state);
        let (depth, told) = (shown.depth, shown.market.replace(snapshot.market.clone()));
        if told.as_ref() != Some(&snapshot.market) {
            let event = self.sign(snapshot.market.encode().custom_created_at(at));
            self.newest.insert((kind::MARKET, Some(epoch)), event.clone());
            events.push(event);
        }
        let event = self.sign(checkpoint(snapshot, depth).encode().custom_created_at(at));
        self.newest.insert((kind::CHECKPOINT, Some(epoch)), event.clone());
        events.push(event);
        self.changed.remove(&epoch);
    }

    fn publish_info(&mut self) {
        let event = self.sign(self.info.encode().custom_created_at(self.stamps.first()));
        self.newest.insert((kind::EXCHANGE, None), event.clone());
        self.publish(vec![event]);
    }

    fn publish(&mut self, events: Vec<Event>) {
        let mailbox = self.mailbox.clone();
        self.jobs.spawn(async move {
            let publish = async |event: Event| {
                if let Err(error) = mailbox.publish(&event).await {
                    debug!(event = %event.id, %error, "not told yet");
                }
            };
            stream::iter(events).for_each_concurrent(IN_FLIGHT, publish).await;
        });
    }

    fn shown(&mut self, epoch: EpochId) -> &mut Shown {
        let depth = self.first;
        self.markets.entry(epoch).or_insert_with(|| Shown { depth, state: None, market: None })
    }

    fn sign(&self, event: EventBuilder) -> Event {
        event.sign_with_keys(&self.keys).expect("signing with a valid key cannot fail")
    }
}

/// A change as it is published, one event after the other: each with as many
/// levels as a relay takes.
fn parts(mut change: Change) -> Vec<Change> {
    let mut parts = Vec::new();
    loop {
        let bids = change.bids.split_off(LEVELS.min(change.bids.len()));
        let asks = change.asks.split_off(LEVELS.min(change.asks.len()));
        let rest = Change { bids, asks, ..change };
        let last = rest.bids.is_empty() && rest.asks.is_empty();
        parts.push(std::mem::replace(&mut change, rest));
        if last {
            return parts;
        }
    }
}

/// A snapshot as it is published: with as many levels as a relay takes.
fn checkpoint(snapshot: Snapshot, depth: u64) -> Checkpoint {
    let Book { state, mut bids, mut asks, cut, last } = snapshot.book;
    let cut = cut || bids.len() > LEVELS || asks.len() > LEVELS;
    bids.truncate(LEVELS);
    asks.truncate(LEVELS);
    Checkpoint {
        epoch: snapshot.market.epoch,
        seq: snapshot.head.0,
        entry: snapshot.head.1,
        digest: snapshot.digest,
        depth,
        at: snapshot.at,
        book: Book { state, bids, asks, cut, last },
    }
}

#[cfg(test)]
mod tests {
    use hashpit_nips::Price;
    use hashpit_nips::eh05::Level;

    use super::*;

    #[test]
    fn a_change_of_many_levels_is_told_in_parts() {
        let levels = |n| (0..n).map(|price| Level(Price::new(price), 1, 1)).collect::<Vec<_>>();
        let change = |bids, asks| {
            let (bids, asks) = (levels(bids), levels(asks));
            Change { state: MarketState::Open, bids, asks, last: None }
        };
        assert_eq!(parts(change(0, 0)).len(), 1, "a change of state");
        assert_eq!(parts(change(500, 500)).len(), 1);
        let told = parts(change(1201, 3));
        let sizes: Vec<_> = told.iter().map(|part| (part.bids.len(), part.asks.len())).collect();
        assert_eq!(sizes, [(500, 3), (500, 0), (201, 0)]);
        let bids: Vec<_> = told.into_iter().flat_map(|part| part.bids).collect();
        assert_eq!(bids, levels(1201));
    }
}
