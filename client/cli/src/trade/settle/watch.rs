//! Settling in this process: `trade watch`, `trade resume`.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use anyhow::{Context, bail};
use hashpit_client::Wallet;
use hashpit_client::settle::{Change, SettleError, Settler, Stage};
use hashpit_client::trade::{Exchange, Standing, Trader};
use nostr_sdk::{EventId, PublicKey, Timestamp};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::words;
use crate::config;
use crate::trade::args::At;
use crate::trade::connect;

/// Pause between two looks at what is left to do, on this disk.
const LOOK: Duration = Duration::from_secs(1);
/// Looks between two questions whether offers stand: relays answer those.
const ASK: u32 = 5;
/// An offer without an answer for so many seconds has none to come.
const UNANSWERED: u64 = 10 * 60;
/// Changes that wait to be printed; the settlers drop what is beyond.
const QUEUE: usize = 256;

/// When to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When told to.
    Stopped,
    /// No offer stands, and no trade is under way.
    Idle,
    /// This trade is over.
    Over(EventId),
    /// No trade is under way.
    AllOver,
    /// A wish for this trade has been granted, or cannot be any more.
    Granted(EventId),
}

/// The settlers of a wallet, one for each exchange.
pub struct Watching {
    wallet: Wallet,
    settlers: Vec<Settler>,
    /// Who can ask for our offers.
    traders: Vec<Trader>,
    print: Print,
    told: HashMap<EventId, Stage>,
}

/// How changes are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Print {
    Lines,
    Json,
    Nothing,
}

impl Watching {
    /// Settlers for the exchange that was named; else for the configured one and for
    /// all at which a trade is under way.
    ///
    /// Errors where other processes settle all of these.
    pub async fn open(wallet: &Wallet, at: &At, settings: &config::Trade) -> anyhow::Result<Self> {
        let named: BTreeSet<PublicKey> = match at.exchange {
            Some(named) => [named].into(),
            None => {
                let open = wallet.trades().await?.into_iter().filter(|trade| !trade.is_over());
                open.map(|trade| trade.exchange()).chain(settings.exchange).collect()
            }
        };
        if named.is_empty() {
            bail!(
                "no trade is under way, and no exchange is named: set `exchange` under [trade] in \
                 the configuration, or give --exchange <npub>"
            );
        }
        let (mut settlers, mut traders) = (Vec::new(), Vec::new());
        for exchange in named {
            if Settler::is_running(wallet, exchange)? {
                continue;
            }
            let at = At { exchange: Some(exchange), ..at.clone() };
            let reached = connect_to(&at, settings, wallet).await?;
            match Settler::open(wallet.clone(), reached, settings.limits()).await {
                Ok(settler) => settlers.push(settler),
                Err(SettleError::Busy) => continue,
                Err(error) => return Err(error.into()),
            }
            let asked = connect_to(&at, settings, wallet).await?;
            traders.push(Trader::connect(wallet.trade_keys(), asked).await?);
        }
        if settlers.is_empty() {
            return Err(SettleError::Busy.into());
        }
        let print = if at.json { Print::Json } else { Print::Lines };
        Ok(Self { wallet: wallet.clone(), settlers, traders, print, told: HashMap::new() })
    }

    /// These, without a word on what changes.
    pub fn quietly(self) -> Self {
        Self { print: Print::Nothing, ..self }
    }

    /// Settles, and prints each change.
    pub async fn run(mut self, until: Until, shutdown: CancellationToken) -> anyhow::Result<()> {
        let (stop, mut settling) = (shutdown.child_token(), JoinSet::new());
        let (changed, mut changes) = mpsc::channel(QUEUE);
        for settler in std::mem::take(&mut self.settlers) {
            tokio::spawn(forward(settler.changes(), changed.clone()));
            settling.spawn(settler.run(stop.clone()));
        }
        drop(changed);
        let done = self.attend(until, &shutdown, &mut changes, &mut settling).await;
        stop.cancel();
        while let Some(ended) = settling.join_next().await {
            ended.context("a settler ended unexpectedly")??;
        }
        for trader in &self.traders {
            trader.close().await;
        }
        done
    }

    async fn attend(
        &mut self,
        until: Until,
        shutdown: &CancellationToken,
        changes: &mut mpsc::Receiver<Change>,
        settling: &mut JoinSet<Result<(), SettleError>>,
    ) -> anyhow::Result<()> {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut looked, mut idle) = (0, 0);
        loop {
            tokio::select! { biased;
                () = shutdown.cancelled() => return Ok(()),
                Some((of, stage)) = changes.recv() => self.tell(of, stage).await?,
                Some(ended) = settling.join_next() => {
                    ended.context("a settler ended unexpectedly")??;
                    bail!("the relays are gone; what is open goes on with the next run");
                }
                _ = looks.tick() => {
                    looked += 1;
                    let over = match until {
                        Until::Stopped => false,
                        // Twice, since a match is told of after the offer that it fills.
                        Until::Idle if looked % ASK == 0 => {
                            idle = if self.is_idle().await? { idle + 1 } else { 0 };
                            idle == 2
                        }
                        Until::Idle => false,
                        Until::AllOver => !self.is_under_way().await?,
                        Until::Over(of) => self.is_over(of).await?,
                        Until::Granted(of) => self.is_granted(of).await?,
                    };
                    if over {
                        while let Ok((of, stage)) = changes.try_recv() {
                            self.tell(of, stage).await?;
                        }
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn is_under_way(&self) -> anyhow::Result<bool> {
        let mine: Vec<_> = self.traders.iter().map(|it| it.exchange().key()).collect();
        let trades = self.wallet.trades().await?;
        Ok(trades.iter().any(|it| !it.is_over() && mine.contains(&it.exchange())))
    }

    async fn is_over(&self, of: EventId) -> anyhow::Result<bool> {
        Ok(self.wallet.trade(of).await?.is_none_or(|trade| trade.is_over()))
    }

    async fn is_granted(&self, of: EventId) -> anyhow::Result<bool> {
        let trade = self.wallet.trade(of).await?;
        Ok(trade.is_none_or(|it| it.is_over() || matches!(it.stage, Stage::Refunding { .. })))
    }

    async fn is_idle(&self) -> anyhow::Result<bool> {
        if self.is_under_way().await? {
            return Ok(false);
        }
        let now = Timestamp::now().as_secs();
        for trader in &self.traders {
            let offers = match trader.offers().await {
                Ok(offers) => offers,
                Err(error) => {
                    debug!(%error, "no word on our offers");
                    return Ok(false);
                }
            };
            let stands = offers.iter().any(|offer| match offer.standing {
                Standing::Over(_) => false,
                Standing::Unanswered => offer.dated.as_secs() + UNANSWERED > now,
                Standing::Open | Standing::Deferred => true,
            });
            if stands {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Prints a change, if it is one of the stage.
    async fn tell(&mut self, of: EventId, stage: Stage) -> anyhow::Result<()> {
        if self.told.get(&of) == Some(&stage) {
            return Ok(());
        }
        self.told.insert(of, stage);
        let Some(record) = self.wallet.trade(of).await? else { return Ok(()) };
        match self.print {
            Print::Json => println!("{}", words::json(&record)),
            Print::Lines => println!("{}", words::line(&record, words::now())),
            Print::Nothing => {}
        }
        Ok(())
    }
}

async fn connect_to(
    at: &At,
    settings: &config::Trade,
    wallet: &Wallet,
) -> anyhow::Result<Exchange> {
    connect(at, settings, Some(wallet), wallet.dir()).await
}

async fn forward(mut from: broadcast::Receiver<Change>, to: mpsc::Sender<Change>) {
    loop {
        match from.recv().await {
            Ok(change) => {
                if to.send(change).await.is_err() {
                    return;
                }
            }
            Err(RecvError::Lagged(missed)) => debug!(missed, "changes of trades not shown"),
            Err(RecvError::Closed) => return,
        }
    }
}
