//! Messages in NIP-59 wraps between the keys that the two trade under, and reports
//! to the exchange.

use std::time::Duration;

use hashpit_mailbox::MailboxError;
use hashpit_nips::eh04::{Action, Command};
use hashpit_nips::eh06::Message;
use nostr_sdk::nips::nip59::UnwrappedGift;
use nostr_sdk::{Event, EventBuilder, EventId, Keys, PublicKey, Tag, Timestamp, UnsignedEvent};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::settler::Shared;

/// How long relays keep a message: longer than any trade takes.
const LIFETIME: Duration = Duration::from_secs(3 * 24 * 60 * 60);
/// How long they keep our own copies: whoever has lost a machine may be slow to get
/// another.
const KEPT: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// First and longest pause before a message is sent again that no relay took.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long relays may take to store a message.
const PATIENCE: Duration = Duration::from_secs(10);

/// A message as it came: its seal's key, and what it says of which trade.
#[derive(Debug, Clone)]
pub(super) struct Incoming {
    pub(super) from: PublicKey,
    pub(super) of: EventId,
    pub(super) message: Message,
}

/// Opens a wrap to `me`; `None` for what is no message of a trade.
pub(super) async fn open(me: &Keys, wrap: &Event) -> Option<Incoming> {
    let opened = UnwrappedGift::from_gift_wrap(me, wrap).await;
    let opened = opened.inspect_err(|error| debug!(%error, "a wrap does not open")).ok()?;
    let (of, message) = Message::read(&opened.rumor).ok()?;
    Some(Incoming { from: opened.sender, of, message })
}

impl Shared {
    /// Sends a message, sealed by `from`, until a relay has stored it.
    pub(super) async fn send(&self, from: &Keys, to: PublicKey, of: EventId, message: &Message) {
        let name = match message {
            _ if to == from.public_key() => "keep copy",
            Message::Keys(_) => "send keys",
            Message::Invoice { .. } => "send invoice",
            Message::Locked { .. } => "send locked",
            Message::Claimed { .. } => "send claimed",
            Message::Abort { .. } => "send abort",
        };
        let mut pause = PAUSE.0;
        loop {
            match self.probe.around(name, self.send_once(from, to, of, message)).await {
                Ok(()) => return,
                Err(error) => debug!(%error, name, "sending again"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn send_once(
        &self,
        from: &Keys,
        to: PublicKey,
        of: EventId,
        message: &Message,
    ) -> Result<(), MailboxError> {
        let rumor = message.rumor(of, from.public_key());
        let lifetime = if to == from.public_key() { KEPT } else { LIFETIME };
        let expires = Tag::expiration(Timestamp::now() + lifetime);
        let wrap = EventBuilder::gift_wrap(from, &to, rumor, [expires]).await;
        let wrap = wrap.expect("keys that we hold seal anything below NIP-44's limit");
        self.publish(&wrap).await
    }

    /// Hands something to a watchtower; why no relay has stored it.
    pub(super) async fn hand(
        &self,
        from: &Keys,
        to: PublicKey,
        rumor: UnsignedEvent,
        expires: Timestamp,
    ) -> Result<(), String> {
        let wrap = EventBuilder::gift_wrap(from, &to, rumor, [Tag::expiration(expires)]).await;
        // A claim of many proofs may exceed what NIP-44 holds.
        let wrap = wrap.map_err(|error| error.to_string())?;
        let sent = self.probe.around("send watch", self.publish(&wrap)).await;
        sent.map_err(|error| error.to_string())
    }

    /// Tells the exchange that a step is done; whether a relay has stored that.
    pub(super) async fn report(&self, of: EventId, step: u8) -> bool {
        let command = Command { exchange: self.exchange.key(), action: Action::Step { of, step } };
        let event = command.encode().sign_with_keys(&self.keys);
        let event = event.expect("a key that we hold signs any event");
        let told = self.probe.around("report", self.publish(&event)).await;
        told.inspect_err(|error| debug!(%error, step, "not reported yet")).is_ok()
    }

    async fn publish(&self, event: &Event) -> Result<(), MailboxError> {
        let late = || MailboxError::NotStored("no relay has answered in time".to_owned());
        timeout(PATIENCE, self.mailbox.publish(event)).await.unwrap_or_else(|_| Err(late()))
    }
}
