//! A trader and an exchange that meet on a real relay: what the trader sends, what
//! it makes of the answers, and of none.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::Duration;

use hashpit_client::trade::{End, Exchange, Standing, TradeError, Trader};
use hashpit_mailbox::Mailbox;
use hashpit_nips::eh04::{Action, Command, Offer, Side, Terms, Way};
use hashpit_nips::eh05::{Level, Outcome};
use hashpit_nips::{EpochId, Lots, Price, kind};
use hashpit_tests::house::RelayHouse;
use hashpit_tests::scripted_exchange::ScriptedExchange;
use nostr_sdk::{Filter, Keys, Timestamp};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);
/// For an answer that never comes.
const BRIEF: Duration = Duration::from_millis(300);

struct House {
    relay: RelayHouse,
    exchange: ScriptedExchange,
    keys: Keys,
}

impl House {
    async fn start(dir: &Path) -> Self {
        let relay = RelayHouse::start(dir).await.unwrap();
        let epoch = EpochId { pool: Keys::generate().public_key(), height: 840_000 };
        let exchange = ScriptedExchange::start(&relay.url, epoch).await.unwrap();
        Self { relay, exchange, keys: Keys::generate() }
    }

    async fn reader(&self) -> Exchange {
        Exchange::connect(self.exchange.key(), std::slice::from_ref(&self.relay.url)).await.unwrap()
    }

    async fn trader(&self) -> Trader {
        Trader::connect(self.keys.clone(), self.reader().await).await.unwrap()
    }

    async fn stop(self, trader: Option<Trader>) {
        if let Some(trader) = trader {
            trader.close().await;
        }
        self.exchange.stop().await;
        self.relay.stop().await.unwrap();
    }
}

fn sell(lots: u32) -> Terms {
    Terms::new(Side::Sell, Some(Price::new(12_000)), Lots::new(lots), vec![Way::Nwc])
}

async fn make(
    trader: &mut Trader,
    d: &str,
    terms: Terms,
    hidden: bool,
) -> Result<hashpit_client::trade::Answer, TradeError> {
    let market = trader.exchange().market(None).unwrap().clone();
    trader.make(&market, d.to_owned(), terms, hidden).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_is_made_filled_amended_and_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let mut house = House::start(dir.path()).await;
    let mut trader = house.trader().await;

    // The first event of a key bears the work that the exchange asks for.
    let (answer, offer) = tokio::join!(make(&mut trader, "a", sell(10), false), async {
        let offer = house.exchange.hear().await.unwrap();
        house.exchange.fill(&offer, Lots::new(3), Price::new(12_000)).await.unwrap();
        house.exchange.enter(&offer, Outcome::Accepted).await.unwrap();
        offer
    });
    let answer = answer.unwrap();
    assert!(offer.id.check_pow(ScriptedExchange::POW_BITS));
    assert_eq!((answer.event, answer.seq, answer.outcome), (offer.id, 1, Outcome::Accepted));
    assert_eq!(answer.matches.len(), 1);
    assert_eq!(Offer::decode(&offer).unwrap().terms, Some(sell(10)));

    // An amendment replaces what stands, and is dated later, so that relays keep it.
    let own = trader.offer("a").await.unwrap();
    assert_eq!(
        (&own.standing, own.filled, own.left()),
        (&Standing::Open, Lots::new(3), Lots::new(7))
    );
    let raised = Terms { price: Some(Price::new(13_000)), ..sell(10) };
    let (answer, amendment) =
        tokio::join!(trader.amend(&own, raised.clone()), house.exchange.answer(Outcome::Accepted));
    let amendment = amendment.unwrap();
    assert_eq!(answer.unwrap().outcome, Outcome::Accepted);
    assert_eq!(Offer::decode(&amendment).unwrap().prev, Some(offer.id));
    assert!(amendment.created_at > offer.created_at);
    assert!(amendment.tags.iter().all(|tag| tag.as_slice()[0] != "nonce"), "work is done once");

    // A refused one leaves it as it is.
    let own = trader.offer("a").await.unwrap();
    assert_eq!((own.event, &own.terms, own.filled), (amendment.id, &raised, Lots::new(3)));
    let refusal = Outcome::Refused("blocked: the market is halted".to_owned());
    let (answer, _) =
        tokio::join!(trader.amend(&own, sell(20)), house.exchange.answer(refusal.clone()));
    assert_eq!(answer.unwrap().outcome, refusal);
    let own = trader.offer("a").await.unwrap();
    assert_eq!((own.event, &own.standing), (amendment.id, &Standing::Open));

    let (answer, cancel) =
        tokio::join!(trader.cancel(&own), house.exchange.answer(Outcome::Accepted));
    assert_eq!(answer.unwrap().outcome, Outcome::Accepted);
    assert_eq!(Offer::decode(&cancel.unwrap()).unwrap().terms, None);
    let own = trader.offer("a").await.unwrap();
    assert_eq!(own.standing, Standing::Over(End::Canceled));
    assert_eq!((own.filled, own.left()), (Lots::new(3), Lots::ZERO));
    assert!(matches!(trader.cancel(&own).await, Err(TradeError::Over { .. })));

    // All of it is found in the journal by another connection, as of another machine.
    let other = house.trader().await;
    let offers = other.offers().await.unwrap();
    assert_eq!(offers.len(), 1);
    assert_eq!(offers[0].standing, own.standing);
    let reputation = other.exchange().reputation(house.keys.public_key()).await.unwrap();
    assert_eq!((reputation.matches, reputation.pending), (1, 1));
    other.close().await;
    house.stop(Some(trader)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_answer_the_trader_says_so_and_the_offer_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let mut house = House::start(dir.path()).await;
    let mut trader = house.trader().await.with_patience(BRIEF);
    let error = make(&mut trader, "quiet", sell(1), false).await.unwrap_err();
    assert!(matches!(error, TradeError::NoAnswer { .. }), "{error}");
    assert!(error.to_string().contains("hashpit offer list"), "{error}");
    let own = trader.offer("quiet").await.unwrap();
    assert_eq!(own.standing, Standing::Unanswered);
    assert!(matches!(trader.amend(&own, sell(2)).await, Err(TradeError::NotStanding(_))));

    // The answer comes late, and counts.
    house.exchange.answer(Outcome::Accepted).await.unwrap();
    assert_eq!(trader.offer("quiet").await.unwrap().standing, Standing::Open);
    house.stop(Some(trader)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hidden_offer_has_its_place_before_it_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let mut house = House::start(dir.path()).await;
    let mut trader = house.trader().await;
    let (answer, (commit, offer)) = tokio::join!(make(&mut trader, "h", sell(1), true), async {
        let commit = house.exchange.hear().await.unwrap();
        assert_eq!(offers_on(&house.relay, &house.keys).await, 0);
        house.exchange.enter(&commit, Outcome::Accepted).await.unwrap();
        (commit, house.exchange.answer(Outcome::Accepted).await.unwrap())
    });
    assert_eq!(answer.unwrap().event, offer.id);
    let Action::Commit { offer: committed, .. } = Command::decode(&commit).unwrap().action else {
        panic!("{commit:?}");
    };
    assert_eq!(committed, offer.id);

    // Without a place it is not shown.
    let mut trader = trader.with_patience(BRIEF);
    let error = make(&mut trader, "never", sell(1), true).await.unwrap_err();
    assert!(matches!(error, TradeError::NoPlace { .. }), "{error}");
    assert_eq!(offers_on(&house.relay, &house.keys).await, 1);
    house.stop(Some(trader)).await;
}

/// Offers of a key that the relay has.
async fn offers_on(relay: &RelayHouse, keys: &Keys) -> usize {
    let mailbox = Mailbox::connect(Keys::generate(), std::slice::from_ref(&relay.url)).await;
    let mailbox = mailbox.unwrap();
    let filter = Filter::new().author(keys.public_key()).kind(kind::OFFER);
    let (events, answered) = mailbox.fetch(filter, PATIENCE).await.unwrap();
    assert_eq!(answered, 1);
    mailbox.close().await;
    events.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_for_all_offers_and_the_switch() {
    let dir = tempfile::tempdir().unwrap();
    let mut house = House::start(dir.path()).await;
    let mut trader = house.trader().await;
    for d in ["a", "b"] {
        let (made, _) = tokio::join!(
            make(&mut trader, d, sell(1), false),
            house.exchange.answer(Outcome::Accepted)
        );
        made.unwrap();
    }
    // Armed for a time that has passed when it is looked at.
    let (armed, command) = tokio::join!(
        trader.alive(Some(Timestamp::now() - 1)),
        house.exchange.answer(Outcome::Accepted)
    );
    armed.unwrap();
    let action = Command::decode(&command.unwrap()).unwrap().action;
    assert!(matches!(action, Action::Alive(Some(_))), "{action:?}");
    let ended = |offers: &[hashpit_client::trade::OwnOffer], end: &End| {
        offers.iter().filter(|offer| offer.standing == Standing::Over(end.clone())).count()
    };
    assert_eq!(ended(&trader.offers().await.unwrap(), &End::DeadMan), 2);

    let (made, _) = tokio::join!(
        make(&mut trader, "c", sell(1), false),
        house.exchange.answer(Outcome::Accepted)
    );
    made.unwrap();
    let (all, _) = tokio::join!(trader.cancel_all(None), house.exchange.answer(Outcome::Accepted));
    all.unwrap();
    assert_eq!(ended(&trader.offers().await.unwrap(), &End::Canceled), 1);
    house.stop(Some(trader)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terms_that_contradict_themselves_leave_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::start(dir.path()).await;
    let mut trader = house.trader().await;
    let bad = Terms { min: Lots::new(2), ..sell(1) };
    let error = make(&mut trader, "bad", bad, false).await.unwrap_err();
    assert!(matches!(error, TradeError::Terms(_)), "{error}");
    assert_eq!(offers_on(&house.relay, &house.keys).await, 0);
    house.stop(Some(trader)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_book_that_missed_a_change_is_right_again_with_the_next_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::start(dir.path()).await;
    let level = |price, lots| Level(Price::new(price), lots, u32::from(lots > 0));
    let asks = [level(12_400, 7)];
    house.exchange.checkpoint(1, &[level(12_000, 5)], &asks).await.unwrap();

    let reader = house.reader().await;
    let mut feed = reader.follow_book(house.exchange.market.epoch).await.unwrap();
    let mut bids = async |until: &dyn Fn(&hashpit_client::trade::Book) -> bool| {
        timeout(PATIENCE, async {
            while !until(feed.book()) {
                feed.next().await.unwrap();
            }
            feed.book().bids().collect::<Vec<_>>()
        })
        .await
        .expect("the book in time")
    };
    assert_eq!(bids(&|book| book.seq() == Some(10)).await, [level(12_000, 5)]);
    house.exchange.depth(2, &[level(12_100, 1)]).await.unwrap();
    assert_eq!(bids(&|book| book.seq() == Some(20)).await, [level(12_100, 1), level(12_000, 5)]);

    // The third is lost.
    house.exchange.depth(4, &[level(12_000, 0)]).await.unwrap();
    assert_eq!(bids(&|book| book.has_gap()).await.len(), 2);
    house.exchange.checkpoint(3, &[level(12_200, 2), level(12_000, 5)], &asks).await.unwrap();
    assert_eq!(bids(&|book| !book.has_gap()).await, [level(12_200, 2)]);
    assert_eq!(feed.book().spread(), Some(Price::new(200)));
    assert_eq!(feed.book().asks().collect::<Vec<_>>(), asks);
    reader.close().await;
    house.stop(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_cannot_speak_for_the_exchange() {
    let dir = tempfile::tempdir().unwrap();
    let house = House::start(dir.path()).await;
    let stranger = Keys::generate().public_key();
    let error =
        Exchange::connect(stranger, std::slice::from_ref(&house.relay.url)).await.unwrap_err();
    assert!(matches!(error, TradeError::NoExchange(_)), "{error}");
    let reader = house.reader().await;
    assert_eq!(reader.markets().len(), 1);
    assert!(matches!(reader.market(Some("1")), Err(TradeError::UnknownMarket(_))));
    reader.close().await;
    house.stop(None).await;
}
