//! All devices on one channel: an actor that owns the channel and gives each
//! device a slice of its extranonce.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::feed::{Event, Feed, Share};
use super::session::Ticket;
use crate::proxy::settings::RECONNECT;
use crate::proxy::shares::Waiting;
use crate::proxy::upstream::{Request, Upstream};
use crate::proxy::work::Job;

/// Bytes of extranonce that tell devices apart.
pub(super) const SLOT_BYTES: usize = 2;
/// Events that wait for one device's session.
const SEAT_QUEUE: usize = 256;
/// Shares and requests of all devices that wait for the aggregate. When they
/// are that many, devices wait.
const QUEUE: usize = 1_024;
/// Events from the pool that wait for the aggregate.
const FEED_QUEUE: usize = 1_024;

/// What devices' sessions ask.
enum Command {
    Join { seat: oneshot::Sender<Seat>, back: mpsc::Sender<Command> },
    Submit { place: Place, share: Share<Ticket> },
    Leave { place: Place },
}

/// Which device it is. Slots are given again to others, and what a device sent
/// may arrive after it has lost its slot; the number tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    slot: u16,
    /// Never given again.
    number: u64,
}

/// A share's owner among the devices.
type Owned = (Place, Ticket);

/// The way to the actor.
#[derive(Clone)]
pub(super) struct Aggregate(mpsc::Sender<Command>);

/// A device's place on the channel.
pub(super) struct Seat {
    place: Place,
    events: mpsc::Receiver<Event<Ticket>>,
    commands: mpsc::Sender<Command>,
}

impl Aggregate {
    /// Starts the actor on an extended channel of its own.
    pub(super) fn start(
        upstream: Arc<Upstream>,
        request: Request,
        stop: CancellationToken,
        tasks: &tokio_util::task::TaskTracker,
    ) -> Self {
        let (commands, inbox) = mpsc::channel(QUEUE);
        tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = run(&upstream, request, inbox) => {}
            }
        });
        Self(commands)
    }

    /// A place for a device; `None` if all are taken.
    pub(super) async fn join(&self) -> Option<Seat> {
        let (seat, given) = oneshot::channel();
        self.0.send(Command::Join { seat, back: self.0.clone() }).await.ok()?;
        given.await.ok()
    }
}

impl Seat {
    /// The bytes of the extranonce that are the device's alone.
    pub(super) fn slot(&self) -> [u8; SLOT_BYTES] {
        self.place.slot.to_be_bytes()
    }

    /// The next event; `None` when the device was too slow, or there is no
    /// channel. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Event<Ticket>> {
        self.events.recv().await
    }

    /// Hands a share on. Whatever becomes of it is told by an event.
    pub(super) async fn submit(&self, share: Share<Ticket>) {
        let _ = self.commands.send(Command::Submit { place: self.place, share }).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // If there is no room for it, the next event finds nobody.
        let _ = self.commands.try_send(Command::Leave { place: self.place });
    }
}

struct Actor {
    feed: Feed<Owned>,
    /// By slot: the number of the seat, and the way to its device.
    seats: BTreeMap<u16, (u64, mpsc::Sender<Event<Ticket>>)>,
    /// The number of the last seat given.
    last_number: u64,
    /// Where the search for a free slot goes on.
    next_slot: u16,
    opened: Option<(Vec<u8>, usize)>,
    job: Option<Arc<Job>>,
}

async fn run(upstream: &Upstream, request: Request, mut inbox: mpsc::Receiver<Command>) {
    let mut last_number = 0;
    loop {
        let feed = Feed::open(upstream, request.clone(), FEED_QUEUE).await;
        let mut actor = Actor::new(feed, last_number);
        // A pool that closes the channel ends it for all devices, which come
        // back and find another.
        actor.run(&mut inbox).await;
        last_number = actor.last_number;
        drop(actor);
        tokio::time::sleep(RECONNECT.0).await;
    }
}

impl Actor {
    fn new(feed: Feed<Owned>, last_number: u64) -> Self {
        Self { feed, seats: BTreeMap::new(), last_number, next_slot: 0, opened: None, job: None }
    }

    async fn run(&mut self, inbox: &mut mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                biased;
                event = self.feed.next() => match event {
                    Some(Event::Refused(reason)) => {
                        tracing::warn!(reason, "the pool refuses the channel of all devices");
                        self.broadcast(|| Event::Refused(reason.clone()));
                        return;
                    }
                    Some(event) => self.spread(event),
                    None => return,
                },
                command = inbox.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Join { seat, back } => self.join(seat, back),
            Command::Leave { place } if self.has(place) => drop(self.seats.remove(&place.slot)),
            Command::Submit { place, share } if self.has(place) => {
                let Share { job, extranonce, found, worker, ticket } = share;
                let work = job.work;
                let share = Share { job, extranonce, found, worker, ticket: (place, ticket) };
                if let Err((place, ticket)) = self.feed.submit(share).await {
                    let waiting = Waiting { sequence_number: 0, work, ticket };
                    self.tell(place, Event::Rejected(waiting, "stale-share".to_owned()));
                }
            }
            // Of a seat on an earlier channel, or of a device that was cut off:
            // the share's job is of another channel, perhaps, and nobody listens
            // to the answer.
            Command::Leave { place } | Command::Submit { place, .. } => {
                tracing::debug!(place.slot, "passed over what came from a seat that is gone");
            }
        }
    }

    fn join(&mut self, seat: oneshot::Sender<Seat>, back: mpsc::Sender<Command>) {
        let free = (0..=u16::MAX)
            .map(|step| self.next_slot.wrapping_add(step))
            .find(|slot| !self.seats.contains_key(slot));
        let Some(slot) = free else { return };
        self.next_slot = slot.wrapping_add(1);
        self.last_number += 1;
        let place = Place { slot, number: self.last_number };
        let (events, inbox) = mpsc::channel(SEAT_QUEUE);
        if seat.send(Seat { place, events: inbox, commands: back }).is_err() {
            return;
        }
        self.seats.insert(slot, (place.number, events));
        if let Some((prefix, size)) = self.opened.clone() {
            self.tell(place, Event::Opened { prefix, size });
        }
        if let Some(job) = self.job.clone() {
            self.tell(place, Event::Job { job, clean: true });
        }
    }

    /// Tells those whom an event concerns.
    fn spread(&mut self, event: Event<Owned>) {
        match event {
            Event::Opened { prefix, size } => {
                self.opened = Some((prefix.clone(), size));
                self.broadcast(|| Event::Opened { prefix: prefix.clone(), size });
            }
            Event::Job { job, clean } => {
                self.job = Some(Arc::clone(&job));
                self.broadcast(|| Event::Job { job: Arc::clone(&job), clean });
            }
            Event::Accepted(shares) => {
                for (place, shares) in by_owner(shares) {
                    self.tell(place, Event::Accepted(shares));
                }
            }
            Event::Rejected(share, code) => {
                let (place, share) = owner(share);
                self.tell(place, Event::Rejected(share, code));
            }
            Event::Lost(shares) => {
                (self.opened, self.job) = (None, None);
                let mut lost = by_owner(shares);
                let places = self.seats.iter().map(|(slot, (number, _))| (*slot, *number));
                let places: Vec<_> = places.collect();
                for (slot, number) in places {
                    let place = Place { slot, number };
                    self.tell(place, Event::Lost(lost.remove(&place).unwrap_or_default()));
                }
            }
            Event::Refused(_) => {}
        }
    }

    fn broadcast(&mut self, event: impl Fn() -> Event<Ticket>) {
        self.seats.retain(|_, (_, seat)| seat.try_send(event()).is_ok());
    }

    /// A device that has gone or does not keep up loses its place.
    fn tell(&mut self, place: Place, event: Event<Ticket>) {
        let seat = self.seats.get(&place.slot).filter(|(number, _)| *number == place.number);
        let told = seat.is_none_or(|(_, seat)| seat.try_send(event).is_ok());
        if !told {
            self.seats.remove(&place.slot);
        }
    }

    /// Whether the device still has its slot.
    fn has(&self, place: Place) -> bool {
        self.seats.get(&place.slot).is_some_and(|(number, _)| *number == place.number)
    }
}

fn by_owner(shares: Vec<Waiting<Owned>>) -> BTreeMap<Place, Vec<Waiting<Ticket>>> {
    let mut owned: BTreeMap<Place, Vec<_>> = BTreeMap::new();
    for (place, share) in shares.into_iter().map(owner) {
        owned.entry(place).or_default().push(share);
    }
    owned
}

fn owner(share: Waiting<Owned>) -> (Place, Waiting<Ticket>) {
    let Waiting { sequence_number, work, ticket: (place, ticket) } = share;
    (place, Waiting { sequence_number, work, ticket })
}

#[cfg(test)]
mod tests {
    use hashpit_noise::Authority;
    use serde_json::Value;
    use stratum_apps::stratum_core::binary_sv2::Sv2OptionOwned;
    use stratum_apps::stratum_core::mining_sv2::{NewExtendedMiningJobOwned, SetNewPrevHashOwned};
    use stratum_apps::stratum_core::parsers_sv2::MiningOwned;

    use super::*;
    use crate::proxy::stats::Workers;
    use crate::proxy::upstream::{Kind, PoolAddress};
    use crate::proxy::work::{Follower, Found};

    /// Nobody listens at its pool's address.
    async fn upstream(stop: CancellationToken) -> Upstream {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let authority = Authority::from_secret(&[5; 32]).unwrap().to_string().parse().unwrap();
        let pools = vec![PoolAddress { address, authority }];
        Upstream::new(pools, 1, std::time::Duration::MAX, stop, Default::default())
    }

    async fn actor(upstream: &Upstream, last_number: u64) -> Actor {
        let kind = Kind::Extended { min_extranonce: 8 };
        let (identity, max_target) = (String::new(), [0xff; 32]);
        let request = Request { kind, identity, hashrate: 1.0, max_target };
        Actor::new(Feed::open(upstream, request, FEED_QUEUE).await, last_number)
    }

    async fn join(actor: &mut Actor, commands: &mpsc::Sender<Command>) -> Seat {
        let (seat, given) = oneshot::channel();
        actor.join(seat, commands.clone());
        given.await.unwrap()
    }

    fn share() -> Share<Ticket> {
        let mut follower = Follower::new(1, bitcoin::Target::MAX_ATTAINABLE_REGTEST);
        let job = MiningOwned::NewExtendedMiningJob(NewExtendedMiningJobOwned {
            channel_id: 1,
            job_id: 1,
            min_ntime: Sv2OptionOwned::new(None),
            version: 0x2000_0000,
            version_rolling_allowed: true,
            merkle_path: Vec::new().try_into().unwrap(),
            coinbase_tx_prefix: vec![0; 42].try_into().unwrap(),
            coinbase_tx_suffix: vec![0; 42].try_into().unwrap(),
        });
        assert!(follower.follow(job).is_none());
        let tip = MiningOwned::SetNewPrevHash(SetNewPrevHashOwned {
            channel_id: 1,
            job_id: 1,
            prev_hash: [0; 32].into(),
            min_ntime: 0,
            nbits: 0x207f_ffff,
        });
        let (job, _) = follower.follow(tip).unwrap();
        Share {
            job,
            extranonce: vec![0; 10],
            found: Found { version: 0x2000_0000, time: 0, nonce: 0 },
            worker: "rig".into(),
            ticket: Ticket::new(Value::Null, Workers::default().named("rig")),
        }
    }

    /// The pool has closed the channel, and a new device has the slot on the
    /// next one when the old device's share and farewell arrive.
    #[tokio::test]
    async fn a_seat_on_an_earlier_channel_is_nobody_elses() {
        let stop = CancellationToken::new();
        let _stopped = stop.clone().drop_guard();
        let upstream = upstream(stop).await;
        let (commands, mut inbox) = mpsc::channel(QUEUE);
        let mut first = actor(&upstream, 0).await;
        let old = join(&mut first, &commands).await;
        let mut second = actor(&upstream, first.last_number).await;
        drop(first);
        let mut new = join(&mut second, &commands).await;
        assert_eq!(old.slot(), new.slot());

        old.submit(share()).await;
        drop(old);
        for _ in 0..2 {
            second.obey(inbox.recv().await.unwrap()).await;
        }
        // It has been told nothing of the other's share, and still has its seat.
        second.broadcast(|| Event::Refused("the end".to_owned()));
        assert!(matches!(new.next().await, Some(Event::Refused(_))));
        new.submit(share()).await;
        second.obey(inbox.recv().await.unwrap()).await;
        assert!(matches!(new.next().await, Some(Event::Rejected(..))));
    }
}
