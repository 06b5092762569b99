//! One trade: its record, its secrets, and what comes in about it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hashpit_nips::eh05::Match;
use hashpit_nips::eh06::{Message, Timing};
use nostr_sdk::PublicKey;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::info;

use super::SettleError;
use super::keys::TradeKeys;
use super::post::Incoming;
use super::record::{End, Record, Role, Stage, Wish};
use super::settler::Shared;

/// Messages of one trade that wait to be asked for; an honest trader sends four.
const MAX_HELD: usize = 32;
/// Longest that a message is waited for before the clock is looked at again.
const TICK: Duration = Duration::from_secs(1);

/// How long a trade that is over waits for relays to store its last messages.
const LAST_POSTS: Duration = Duration::from_secs(5);

/// What is told to a trade.
#[derive(Debug)]
pub(super) enum Note {
    Message(Incoming),
    Wish(Wish),
}

/// One trade.
pub(super) struct Trade {
    pub(super) shared: Arc<Shared>,
    pub(super) record: Record,
    pub(super) terms: Match,
    pub(super) keys: TradeKeys,
    inbox: mpsc::Receiver<Note>,
    held: VecDeque<Incoming>,
    /// What goes on beside: messages, and a payment by Lightning.
    pub(super) posts: JoinSet<()>,
}

impl Trade {
    pub(super) fn new(shared: Arc<Shared>, record: Record, inbox: mpsc::Receiver<Note>) -> Self {
        let keys = TradeKeys::new(&shared.keys, record.id());
        let terms = record.terms();
        Self { shared, record, terms, keys, inbox, held: VecDeque::new(), posts: JoinSet::new() }
    }

    /// Drives the trade to its end.
    pub(super) async fn run(mut self) -> Result<Record, SettleError> {
        let end = match self.record.role {
            Role::Buyer => self.buy().await?,
            Role::Seller => self.sell().await?,
        };
        info!(trade = %self.record.id(), ?end, "trade over");
        self.keep_end();
        self.post().await;
        if !matches!(end, End::Lost { .. }) {
            self.record.got.clear();
            self.record.locked.clear();
        }
        self.enter(Stage::Over { end }).await?;
        self.shared.wallet.forget_swaps(&self.record.id().to_hex()).await?;
        Ok(self.record)
    }

    pub(super) fn now(&self) -> u64 {
        self.shared.clock.now()
    }

    pub(super) fn timing(&self) -> &Timing {
        &self.shared.timing
    }

    /// When something due so many seconds after the match is due.
    pub(super) fn due(&self, after: u64) -> u64 {
        Timing::of(self.terms.at, after)
    }

    pub(super) fn role(&self) -> Role {
        self.record.role
    }

    pub(super) async fn save(&mut self, what: &str) -> Result<(), SettleError> {
        self.record.changed = self.now();
        let written = self.shared.wallet.save_trade(&self.record);
        self.shared.probe.around(&format!("write {what}"), written).await?;
        self.shared.changed(&self.record);
        Ok(())
    }

    pub(super) async fn enter(&mut self, stage: Stage) -> Result<(), SettleError> {
        self.record.stage = stage;
        self.save("stage").await
    }

    /// Sends a message under the trade's key, beside what the trade does next: money
    /// must not wait for a relay.
    pub(super) fn send(&mut self, message: Message) {
        let (shared, from) = (self.shared.clone(), self.keys.keys());
        let (to, of) = (self.record.counterparty(), self.record.id());
        self.posts.spawn(async move { shared.send(&from, to, of, &message).await });
    }

    /// Keeps a copy of a message for another machine of ours; false if no relay has
    /// stored it by a time.
    pub(super) async fn keep(&self, message: &Message, until: u64) -> bool {
        let me = &self.shared.keys;
        let kept = self.shared.send(me, me.public_key(), self.record.id(), message);
        timeout(self.left(until), kept).await.is_ok()
    }

    /// Tells another machine of ours that nothing is left to do.
    fn keep_end(&mut self) {
        let (shared, of) = (self.shared.clone(), self.record.id());
        let over = Message::Abort { reason: "over".to_owned() };
        self.posts.spawn(async move {
            let me = &shared.keys;
            shared.send(me, me.public_key(), of, &over).await;
        });
    }

    /// How long it is until a time.
    pub(super) fn left(&self, until: u64) -> Duration {
        Duration::from_secs(until.saturating_sub(self.now()))
    }

    /// Waits, but not for long, until what was sent is stored.
    async fn post(&mut self) {
        let posted = async { while self.posts.join_next().await.is_some() {} };
        let _ = timeout(LAST_POSTS, posted).await;
    }

    /// Tells the exchange of a step, once; and of those before, that it could not
    /// be told of.
    pub(super) async fn report(&mut self, step: u8) -> Result<(), SettleError> {
        let bit = 1 << (step - 1);
        if self.record.reported & bit != 0 {
            return Ok(());
        }
        if self.shared.report(self.record.id(), step).await {
            // Written with what comes next; to tell it twice does no harm.
            self.record.reported |= bit;
        }
        Ok(())
    }

    /// Waits for what `pick` takes, until a time or a wish of the user's.
    pub(super) async fn wait<T>(
        &mut self,
        until: u64,
        mut pick: impl FnMut(&Incoming) -> Option<T>,
    ) -> Option<T> {
        loop {
            let found = self.held.iter().enumerate();
            let found = found.filter_map(|(at, it)| Some((at, pick(it)?))).next();
            if let Some((at, found)) = found {
                self.held.remove(at);
                return Some(found);
            }
            let left = self.left(until);
            if left.is_zero() || self.record.wish.is_some() {
                return None;
            }
            self.hear(left.min(TICK)).await;
        }
    }

    /// Takes in what comes, for at most so long.
    async fn hear(&mut self, patience: Duration) {
        match timeout(patience, self.inbox.recv()).await {
            // Anybody can name the match: who floods it is not to drown the other trader.
            Ok(Some(Note::Message(message))) if !self.may_say(&message) => {}
            Ok(Some(Note::Message(message))) => {
                if self.held.len() == MAX_HELD {
                    self.held.pop_front();
                }
                self.held.push_back(message);
            }
            Ok(Some(Note::Wish(wish))) => self.record.wish = Some(wish),
            // The settler is gone, and ends this task, too.
            Ok(None) => sleep(patience).await,
            Err(_) => {}
        }
    }

    /// Whether a message can be the other trader's, as far as his key is known.
    fn may_say(&self, message: &Incoming) -> bool {
        let theirs = self.their_key();
        theirs.is_none_or(|key| message.from == key) || message.from == self.record.counterparty()
    }

    /// Waits until a time.
    pub(super) async fn sleep_until(&mut self, until: u64) {
        while self.now() < until {
            let left = Duration::from_secs(until - self.now());
            self.hear(left.min(TICK)).await;
        }
    }

    /// The key that the other trader made for this trade.
    pub(super) fn their_key(&self) -> Option<PublicKey> {
        self.record.theirs.as_ref().map(|keys| keys.key)
    }

    /// Ends a trade in which nothing of ours is locked.
    pub(super) async fn void(&mut self, why: String) -> Result<End, SettleError> {
        if self.record.mine.is_some() {
            self.send(Message::Abort { reason: why.clone() });
        }
        Ok(End::Void { why })
    }
}
