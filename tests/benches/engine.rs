//! What the matching engine does in a second of CPU on one thread, beside the bare maps
//! that no book can do without, and its memory. Prints figures; nothing here
//! fails by being slow.
//!
//! `cargo bench -p hashpit-tests --bench engine`

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

#[allow(dead_code, reason = "no single times are taken here")]
mod figures;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use figures::{p50, print_conditions};
use hashpit_exchange::engine::{
    Address, Command, Engine, Event, Limits, MarketId, MarketRules, OfferId, Order, PayMask, Trader,
};
use hashpit_nips::eh04::{OnEpoch, SelfTrade, Side, TimeInForce};
use hashpit_nips::{Lots, Millis, Price};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Commands timed, after as many that fill the books.
const COMMANDS: usize = 1_000_000;
/// Parts of them that are timed each, so that a busy moment counts for less.
const PARTS: usize = 20;
/// Markets of the memory figure, and offers in each.
const MARKETS: u32 = 1_000;
const OFFERS: u32 = 10_000;
/// Middle of the book. Buyers stand below it and sellers above.
const MIDDLE: u64 = 100_000;
const RULES: MarketRules = MarketRules {
    tick: Price::new(1),
    min_lots: Lots::new(1),
    max_lots: Lots::new(1_000_000),
    maker_fee_ppm: 0,
    taker_fee_ppm: 2_000,
};
const LIMITS: Limits = Limits {
    open_offers_per_trader: u32::MAX,
    open_offers_per_market: u32::MAX,
    makers_per_order: 10_000,
    commits_per_trader: 1,
    reveal_ms: 2_000,
    deferred_per_market: 10_000,
    deferred_per_trader: 100,
};

fn main() {
    for markets in [1, 100] {
        throughput(markets);
    }
    memory();
    print_conditions();
}

/// Bytes that look like a hash of the number.
fn spread<const N: usize>(number: u64) -> [u8; N] {
    let mut bytes = [0; N];
    for (index, part) in bytes.chunks_mut(8).enumerate() {
        let mixed = (number ^ ((index as u64) << 56)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        part.copy_from_slice(&(mixed ^ (mixed >> 29)).to_be_bytes()[..part.len()]);
    }
    bytes
}

fn order(number: u64, trader: u64, market: u32, side: Side, price: u64, lots: u32) -> Order {
    Order {
        id: OfferId(spread(number)),
        address: Address(spread(number)),
        trader: Trader(spread(trader)),
        market: MarketId(market),
        side,
        price: Some(Price::new(price)),
        lots: Lots::new(lots),
        min: Lots::new(1),
        max: Lots::new(u32::MAX),
        tif: TimeInForce::Gtc,
        pay: PayMask(1),
        group: None,
        self_trade: SelfTrade::CancelOld,
        on_epoch: OnEpoch::Keep,
        expires: None,
    }
}

/// 60% place, a third of which cross; 30% cancel; 10% amend.
fn stream(markets: u32) -> Vec<Command> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut placed: Vec<Order> = Vec::new();
    let mut commands = Vec::with_capacity(2 * COMMANDS);
    for number in 0..2 * COMMANDS as u64 {
        let dice = if placed.len() < 1_000 { 0 } else { rng.random_range(0..100) };
        // Of the younger ones, most of which still stand.
        let recent = |rng: &mut StdRng, placed: &[Order]| {
            placed.len() - 1 - rng.random_range(0..placed.len().min(20_000))
        };
        commands.push(match dice {
            0..60 => {
                let side = if rng.random() { Side::Buy } else { Side::Sell };
                let away = rng.random_range(1..500);
                let away = if rng.random_ratio(1, 3) { -20 } else { away };
                let price = match side {
                    Side::Buy => MIDDLE.saturating_add_signed(-away),
                    Side::Sell => MIDDLE.saturating_add_signed(away),
                };
                let (trader, market) = (rng.random_range(0..10_000), rng.random_range(0..markets));
                let lots = rng.random_range(1..100);
                placed.push(order(number, trader, market, side, price, lots));
                Command::Place(placed[placed.len() - 1])
            }
            60..90 => {
                let index = recent(&mut rng, &placed);
                let Order { trader, address, .. } = placed.swap_remove(index);
                Command::Cancel { trader, address, prev: None }
            }
            _ => {
                let index = recent(&mut rng, &placed);
                let old = &mut placed[index];
                let prev = std::mem::replace(&mut old.id, OfferId(spread(number)));
                if number % 2 == 0 {
                    old.lots = Lots::new(1.max(old.lots.get() / 2));
                } else {
                    old.price = old.price.map(|price| Price::new(price.get() ^ 1));
                }
                Command::Amend { prev, order: *old }
            }
        });
    }
    commands
}

fn throughput(markets: u32) {
    let commands = stream(markets);
    let mut engine = opened(markets);
    let mut events = Vec::with_capacity(1 << 16);
    let mut counts = [0_u64; 3];
    let (fill, timed) = commands.split_at(COMMANDS);
    let mut seq = u64::from(markets);
    let mut run = |part: &[Command], counts: &mut [u64; 3]| {
        let begun = cpu_time();
        for command in part {
            seq += 1;
            engine.apply(seq, Millis::new(seq / 1_000), command.clone(), &mut events);
            if events.len() > 1 << 15 {
                count(&events, counts);
                events.clear();
            }
        }
        cpu_time() - begun
    };
    run(fill, &mut counts);
    counts = [0; 3];
    let parts = timed.chunks(COMMANDS / PARTS);
    let ours = p50(parts.clone().map(|part| run(part, &mut counts)).collect());
    let mut limit = Bare::default();
    limit.run(fill);
    let bare = p50(parts.map(|part| limit.run(part)).collect());
    let standing: u32 = (0..markets).map(|number| engine.open_offers_in(MarketId(number))).sum();
    let [accepted, matched, refused] = counts;
    println!(
        "{COMMANDS} commands in {markets} markets, p50 of {PARTS} parts, {standing} offers standing at the end:"
    );
    println!("  engine              {} (target: 1,000,000 a second)", rate(ours));
    println!(
        "  one BTreeMap, one HashMap {} ({:.0}% of it reached)",
        rate(bare),
        bare.as_secs_f64() / ours.as_secs_f64() * 100.0
    );
    println!("  of them {accepted} accepted, {matched} matches, {refused} refused (gone already)");
}

/// Time that this thread has had a core for, so that others on the machine count
/// for less.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// Of the time of one part.
fn rate(time: Duration) -> String {
    let each = time.as_secs_f64() / (COMMANDS / PARTS) as f64;
    format!("{:.2} million a second of CPU, {:.0} ns each", 1e-6 / each, each * 1e9)
}

fn count(events: &[Event], counts: &mut [u64; 3]) {
    for event in events {
        match event {
            Event::Accepted { .. } => counts[0] += 1,
            Event::Matched(_) => counts[1] += 1,
            Event::Refused { .. } => counts[2] += 1,
            _ => {}
        }
    }
}

fn opened(markets: u32) -> Engine {
    let mut engine = Engine::new(LIMITS);
    let mut events = Vec::new();
    for number in 1..=u64::from(markets) {
        engine.apply(number, Millis::ZERO, Command::OpenMarket(RULES), &mut events);
    }
    engine
}

/// The least that a book has to do: find an offer, and keep prices in order. It
/// matches nothing and tells nothing.
#[derive(Default)]
struct Bare {
    offers: HashMap<Address, (MarketId, Side, Price, u32)>,
    levels: BTreeMap<(MarketId, Side, Price), u64>,
}

impl Bare {
    fn run(&mut self, commands: &[Command]) -> Duration {
        let begun = cpu_time();
        for command in commands {
            match command {
                Command::Cancel { address, .. } => self.remove(*address),
                Command::Amend { order, .. } => {
                    self.remove(order.address);
                    self.insert(order);
                }
                Command::Place(order) => self.insert(order),
                _ => {}
            }
        }
        cpu_time() - begun
    }

    fn insert(&mut self, order: &Order) {
        let &Order { market, side, lots, address, .. } = order;
        let price = order.price.unwrap_or_default();
        self.offers.insert(address, (market, side, price, lots.get()));
        *self.levels.entry((market, side, price)).or_default() += u64::from(lots.get());
    }

    fn remove(&mut self, address: Address) {
        let Some((market, side, price, lots)) = self.offers.remove(&address) else { return };
        let level = self.levels.get_mut(&(market, side, price)).unwrap();
        *level -= u64::from(lots);
        if *level == 0 {
            self.levels.remove(&(market, side, price));
        }
    }
}

/// Resident memory of an engine full of offers, of a hundred traders to a market.
fn memory() {
    let before = resident_kb();
    let mut engine = opened(MARKETS);
    let (mut events, mut seq) = (Vec::new(), u64::from(MARKETS));
    let begun = Instant::now();
    for number in 0..OFFERS {
        for market in 0..MARKETS {
            seq += 1;
            let side = if number % 2 == 0 { Side::Buy } else { Side::Sell };
            let away = i64::from(1 + number % 1_000);
            let away = if side == Side::Buy { -away } else { away };
            let price = MIDDLE.saturating_add_signed(away);
            let trader = u64::from(market) * 100 + u64::from(number) % 100;
            let order = order(seq, trader, market, side, price, 10);
            engine.apply(seq, Millis::ZERO, Command::Place(order), &mut events);
            events.clear();
        }
    }
    let grown = resident_kb() - before;
    let offers = u64::from(MARKETS) * u64::from(OFFERS);
    assert_eq!(engine.open_offers_in(MarketId(MARKETS - 1)), OFFERS);
    println!(
        "memory of {MARKETS} markets with {OFFERS} offers each: {} MiB (target: 2048), {} bytes an \
         offer; placed in {:.1} s",
        grown / 1024,
        grown * 1024 / offers,
        begun.elapsed().as_secs_f64()
    );
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
