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
    Submit { slot: u16, share: Share<Ticket> },
    Leave { slot: u16 },
}

/// A share's owner among the devices.
type Owned = (u16, Ticket);

/// The way to the actor.
#[derive(Clone)]
pub(super) struct Aggregate(mpsc::Sender<Command>);

/// A device's place on the channel.
pub(super) struct Seat {
    pub(super) slot: u16,
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
    /// The next event; `None` when the device was too slow, or there is no
    /// channel. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Event<Ticket>> {
        self.events.recv().await
    }

    /// Hands a share on. Whatever becomes of it is told by an event.
    pub(super) async fn submit(&self, share: Share<Ticket>) {
        let _ = self.commands.send(Command::Submit { slot: self.slot, share }).await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // If there is no room for it, the next event finds nobody.
        let _ = self.commands.try_send(Command::Leave { slot: self.slot });
    }
}

struct Actor {
    feed: Feed<Owned>,
    seats: BTreeMap<u16, mpsc::Sender<Event<Ticket>>>,
    /// Where the search for a free slot goes on.
    next_slot: u16,
    opened: Option<(Vec<u8>, usize)>,
    job: Option<Arc<Job>>,
}

async fn run(upstream: &Upstream, request: Request, mut inbox: mpsc::Receiver<Command>) {
    loop {
        let feed = Feed::open(upstream, request.clone(), FEED_QUEUE).await;
        let mut actor =
            Actor { feed, seats: BTreeMap::new(), next_slot: 0, opened: None, job: None };
        // A pool that closes the channel ends it for all devices, which come
        // back and find another.
        actor.run(&mut inbox).await;
        drop(actor);
        tokio::time::sleep(RECONNECT.0).await;
    }
}

impl Actor {
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
            Command::Leave { slot } => drop(self.seats.remove(&slot)),
            Command::Submit { slot, share } => {
                let Share { job, extranonce, found, worker, ticket } = share;
                let work = job.work;
                let share = Share { job, extranonce, found, worker, ticket: (slot, ticket) };
                if let Err((slot, ticket)) = self.feed.submit(share).await {
                    let waiting = Waiting { sequence_number: 0, work, ticket };
                    self.tell(slot, Event::Rejected(waiting, "stale-share".to_owned()));
                }
            }
        }
    }

    fn join(&mut self, seat: oneshot::Sender<Seat>, back: mpsc::Sender<Command>) {
        let free = (0..=u16::MAX)
            .map(|step| self.next_slot.wrapping_add(step))
            .find(|slot| !self.seats.contains_key(slot));
        let Some(slot) = free else { return };
        self.next_slot = slot.wrapping_add(1);
        let (events, inbox) = mpsc::channel(SEAT_QUEUE);
        if seat.send(Seat { slot, events: inbox, commands: back }).is_err() {
            return;
        }
        self.seats.insert(slot, events);
        if let Some((prefix, size)) = self.opened.clone() {
            self.tell(slot, Event::Opened { prefix, size });
        }
        if let Some(job) = self.job.clone() {
            self.tell(slot, Event::Job { job, clean: true });
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
                for (slot, shares) in by_owner(shares) {
                    self.tell(slot, Event::Accepted(shares));
                }
            }
            Event::Rejected(share, code) => {
                let (slot, share) = owner(share);
                self.tell(slot, Event::Rejected(share, code));
            }
            Event::Lost(shares) => {
                (self.opened, self.job) = (None, None);
                let mut lost = by_owner(shares);
                let slots: Vec<u16> = self.seats.keys().copied().collect();
                for slot in slots {
                    self.tell(slot, Event::Lost(lost.remove(&slot).unwrap_or_default()));
                }
            }
            Event::Refused(_) => {}
        }
    }

    fn broadcast(&mut self, event: impl Fn() -> Event<Ticket>) {
        self.seats.retain(|_, seat| seat.try_send(event()).is_ok());
    }

    /// A device that has gone or does not keep up loses its place.
    fn tell(&mut self, slot: u16, event: Event<Ticket>) {
        let told = self.seats.get(&slot).is_none_or(|seat| seat.try_send(event).is_ok());
        if !told {
            self.seats.remove(&slot);
        }
    }
}

fn by_owner(shares: Vec<Waiting<Owned>>) -> BTreeMap<u16, Vec<Waiting<Ticket>>> {
    let mut owned: BTreeMap<u16, Vec<_>> = BTreeMap::new();
    for (slot, share) in shares.into_iter().map(owner) {
        owned.entry(slot).or_default().push(share);
    }
    owned
}

fn owner(share: Waiting<Owned>) -> (u16, Waiting<Ticket>) {
    let Waiting { sequence_number, work, ticket: (slot, ticket) } = share;
    (slot, Waiting { sequence_number, work, ticket })
}
