//! The offers that stand, of all markets: one slab of small records, found by
//! address, and chained into the queue of their level and the list of their
//! trader without further memory.

use std::collections::HashMap;
use std::ops::{Index, IndexMut};

use hashpit_nips::eh04::{OnEpoch, Side, TimeInForce};
use hashpit_nips::{Lots, Millis, Price};

use super::command::{Address, MarketId, OfferId, Order, PayMask, Seq};

/// Place of an offer in the slab. Places are used again, and no result depends
/// on them.
pub(super) type Slot = u32;
/// No offer.
const NONE: Slot = Slot::MAX;
/// Stands for no expiry: no clock shows it.
const NEVER: Millis = Millis::new(u64::MAX);

/// An offer that stands. 10,000,000 of them have to fit into 2 GiB.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub id: OfferId,
    pub address: Address,
    pub seq: Seq,
    pub price: Price,
    group: u64,
    expires: Millis,
    pub left: Lots,
    pub filled: Lots,
    pub min: Lots,
    pub max: Lots,
    /// Place of its trader in the list of traders.
    pub trader: u32,
    pub market: MarketId,
    pub pay: PayMask,
    links: [Links; 2],
    pub side: Side,
    pub tif: TimeInForce,
    pub on_epoch: OnEpoch,
    grouped: bool,
}

const _: () = assert!(size_of::<Offer>() == 128);

impl Offer {
    /// `order`, of which `filled` lots were filled, as it will stand.
    pub fn new(order: &Order, price: Price, seq: Seq, trader: u32, filled: Lots) -> Self {
        let mut offer = Self {
            id: order.id,
            address: order.address,
            seq,
            price,
            group: 0,
            expires: NEVER,
            left: Lots::ZERO,
            filled,
            min: order.min,
            max: order.max,
            trader,
            market: order.market,
            pay: order.pay,
            links: [Links::NONE; 2],
            side: order.side,
            tif: order.tif,
            on_epoch: order.on_epoch,
            grouped: false,
        };
        offer.take_terms(order);
        offer
    }

    /// Takes on an amendment's terms, without losing its place.
    pub fn take_terms(&mut self, order: &Order) {
        self.id = order.id;
        self.left =
            order.lots.checked_sub(self.filled).expect("an offer stands while lots are left");
        self.min = order.min;
        self.max = order.max;
        self.tif = order.tif;
        self.pay = order.pay;
        self.on_epoch = order.on_epoch;
        self.grouped = order.group.is_some();
        self.group = order.group.unwrap_or_default();
        self.expires = order.expires.unwrap_or(NEVER);
    }

    pub fn group(&self) -> Option<u64> {
        self.grouped.then_some(self.group)
    }

    pub fn expires(&self) -> Option<Millis> {
        (self.expires != NEVER).then_some(self.expires)
    }

    /// Counts a fill. A fill never exceeds its order.
    pub fn fill(&mut self, lots: Lots) {
        self.left = self.left.checked_sub(lots).expect("a fill never exceeds its order");
        self.filled = self.filled.checked_add(lots).expect("filled and left make an order's lots");
    }
}

#[derive(Debug, Clone, Copy)]
struct Links {
    prev: Slot,
    next: Slot,
}

impl Links {
    const NONE: Self = Self { prev: NONE, next: NONE };
}

/// Which of its two lists an offer is chained into.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chain {
    /// The queue of its price.
    Level = 0,
    /// The offers of its trader.
    Trader = 1,
}

/// Ends of a list of offers.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    head: Slot,
    tail: Slot,
    len: u32,
}

impl List {
    pub const EMPTY: Self = Self { head: NONE, tail: NONE, len: 0 };

    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn first(&self) -> Option<Slot> {
        (self.head != NONE).then_some(self.head)
    }

    pub fn last(&self) -> Option<Slot> {
        (self.tail != NONE).then_some(self.tail)
    }
}

/// The slab.
#[derive(Debug, Clone, Default)]
pub(super) struct Offers {
    slab: Vec<Offer>,
    free: Vec<Slot>,
    by_address: HashMap<Address, Slot>,
}

impl Offers {
    /// Takes an offer in. Its address must be free.
    pub fn insert(&mut self, offer: Offer) -> Slot {
        let address = offer.address;
        let slot = match self.free.pop() {
            Some(slot) => {
                self[slot] = offer;
                slot
            }
            None => {
                self.slab.push(offer);
                Slot::try_from(self.slab.len() - 1).expect("limits keep offers below 2^32")
            }
        };
        let taken = self.by_address.insert(address, slot);
        debug_assert!(taken.is_none(), "an address holds one offer");
        slot
    }

    /// Gives an offer's place free. It must be in no list.
    pub fn remove(&mut self, slot: Slot) {
        let address = self[slot].address;
        let known = self.by_address.remove(&address);
        debug_assert_eq!(known, Some(slot), "an offer is removed once");
        self.free.push(slot);
    }

    /// The offer at an address.
    pub fn at(&self, address: Address) -> Option<Slot> {
        self.by_address.get(&address).copied()
    }

    /// Appends an offer to a list.
    pub fn append(&mut self, list: &mut List, slot: Slot, chain: Chain) {
        *self.links(slot, chain) = Links { prev: list.tail, next: NONE };
        match list.last() {
            Some(tail) => self.links(tail, chain).next = slot,
            None => list.head = slot,
        }
        list.tail = slot;
        list.len += 1;
    }

    /// Takes an offer out of a list that it is in.
    pub fn unlink(&mut self, list: &mut List, slot: Slot, chain: Chain) {
        let Links { prev, next } = std::mem::replace(self.links(slot, chain), Links::NONE);
        match prev {
            NONE => list.head = next,
            prev => self.links(prev, chain).next = next,
        }
        match next {
            NONE => list.tail = prev,
            next => self.links(next, chain).prev = prev,
        }
        list.len -= 1;
    }

    /// The offer behind this one in a list.
    pub fn next(&self, slot: Slot, chain: Chain) -> Option<Slot> {
        let next = self[slot].links[chain as usize].next;
        (next != NONE).then_some(next)
    }

    /// The offers of a list, in its order.
    pub fn iter(&self, list: List, chain: Chain) -> impl Iterator<Item = Slot> {
        std::iter::successors(list.first(), move |&slot| self.next(slot, chain))
    }

    fn links(&mut self, slot: Slot, chain: Chain) -> &mut Links {
        &mut self[slot].links[chain as usize]
    }
}

impl Index<Slot> for Offers {
    type Output = Offer;

    fn index(&self, slot: Slot) -> &Offer {
        &self.slab[slot as usize]
    }
}

impl IndexMut<Slot> for Offers {
    fn index_mut(&mut self, slot: Slot) -> &mut Offer {
        &mut self.slab[slot as usize]
    }
}
