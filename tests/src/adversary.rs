//! A trader that speaks EH-06 by hand: says anything under any key, locks anything
//! at any mint, claims what the mint lets it claim.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::hashes::{Hash, sha256};
use cdk::Amount;
use cdk::dhke::{blind_message, construct_proofs};
use cdk::mint_url::MintUrl;
use cdk::nuts::{
    BlindedMessage, CheckStateRequest, HTLCWitness, KeySet, Proofs, ProofsMethods, SecretKey,
    State, SwapRequest, Witness,
};
use cdk::secret::Secret;
use cdk::wallet::{HttpClient, MintConnector};
use hashpit_mailbox::{Arrival, Inbox, Mailbox};
use hashpit_nips::eh01::EpochKeyset;
use hashpit_nips::eh05::Match;
use hashpit_nips::eh06::lock_key;
use hashpit_nips::eh06::{self, HtlcLock, Leg, LockTerms, LockedProof, Message, Pays, Timing};
use nostr_sdk::nips::nip59::UnwrappedGift;
use nostr_sdk::{
    Event, EventBuilder, EventId, Filter, Keys, Kind, PublicKey, RelayUrl, Timestamp, UnsignedEvent,
};
use tokio::time::timeout;

/// How long something that must come may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The trader.
pub struct Adversary {
    /// The key that it trades under.
    pub keys: Keys,
    mailbox: Mailbox,
    inbox: Inbox,
    heard: Vec<Heard>,
}

/// What came to it.
#[derive(Clone)]
pub struct Heard {
    /// Who sealed it.
    pub from: PublicKey,
    /// The rumor, unread.
    pub rumor: UnsignedEvent,
    /// Which match it names.
    pub of: EventId,
    /// What it says.
    pub message: Message,
}

/// A trade as far as step 1.
#[derive(Clone)]
pub struct Deal {
    /// The match.
    pub of: EventId,
    /// What was matched.
    pub terms: Match,
    /// What the adversary told.
    pub mine: eh06::Keys,
    /// What the other told.
    pub theirs: eh06::Keys,
    /// The key that the adversary made for it.
    pub key: Keys,
}

/// A preimage of the adversary's.
pub const PREIMAGE: [u8; 32] = [0x42; 32];

impl Adversary {
    /// Connects `keys` to a relay.
    pub async fn connect(keys: Keys, relay: &RelayUrl) -> anyhow::Result<Self> {
        let mailbox = Mailbox::connect(keys.clone(), std::slice::from_ref(relay)).await?;
        let me = Filter::new().pubkey(keys.public_key());
        let inbox =
            mailbox.subscribe([me.kinds([Kind::GiftWrap, hashpit_nips::kind::MATCH])]).await?;
        anyhow::ensure!(mailbox.connected(PATIENCE).await == 1, "{relay} is not there");
        Ok(Self { keys, mailbox, inbox, heard: Vec::new() })
    }

    /// Says something about a match, sealed by any key.
    pub async fn say(
        &self,
        from: &Keys,
        to: PublicKey,
        of: EventId,
        message: &Message,
    ) -> anyhow::Result<()> {
        self.say_rumor(from, to, message.rumor(of, from.public_key())).await
    }

    /// Passes any rumor on, sealed by any key.
    pub async fn say_rumor(
        &self,
        from: &Keys,
        to: PublicKey,
        rumor: UnsignedEvent,
    ) -> anyhow::Result<()> {
        let wrap = EventBuilder::gift_wrap(from, &to, rumor, []).await?;
        Ok(self.mailbox.publish(&wrap).await?)
    }

    /// Publishes any event.
    pub async fn publish(&self, event: &Event) -> anyhow::Result<()> {
        Ok(self.mailbox.publish(event).await?)
    }

    /// The first message of a match that `pick` takes, heard or to come.
    pub async fn hears<T>(
        &mut self,
        of: EventId,
        pick: impl Fn(&Heard) -> Option<T>,
    ) -> anyhow::Result<T> {
        let known = self.heard.iter().filter(|heard| heard.of == of).find_map(&pick);
        if let Some(found) = known {
            return Ok(found);
        }
        let found = timeout(PATIENCE, async {
            loop {
                let Some(arrival) = self.inbox.next().await else { anyhow::bail!("closed") };
                let Arrival::Event(event) = arrival else { continue };
                let Ok(opened) = UnwrappedGift::from_gift_wrap(&self.keys, &event).await else {
                    continue;
                };
                let Ok((named, message)) = Message::read(&opened.rumor) else { continue };
                let heard = Heard { from: opened.sender, rumor: opened.rumor, of: named, message };
                self.heard.push(heard.clone());
                if named == of
                    && let Some(found) = pick(&heard)
                {
                    return Ok(found);
                }
            }
        });
        found.await?
    }

    /// The keys that the other trader tells.
    pub async fn hears_keys(&mut self, of: EventId) -> anyhow::Result<eh06::Keys> {
        let keys = self.hears(of, |heard| match &heard.message {
            Message::Keys(keys) => Some((**keys).clone()),
            _ => None,
        });
        keys.await
    }

    /// A leg that the other trader tells of.
    pub async fn hears_lock(&mut self, of: EventId, leg: Leg) -> anyhow::Result<Vec<LockedProof>> {
        let locked = self.hears(of, |heard| match &heard.message {
            Message::Locked { leg: told, proofs } if *told == leg => Some(proofs.clone()),
            _ => None,
        });
        locked.await
    }

    /// What an honest trader would bring as the buyer, after the other's word.
    pub fn buyers_keys(
        &self,
        terms: &Match,
        theirs: &eh06::Keys,
        key: &Keys,
        mint: &MintUrl,
        keyset: &KeySet,
    ) -> eh06::Keys {
        eh06::Keys {
            key: key.public_key(),
            clock: Timestamp::now().as_secs(),
            lock: Some(LockTerms { mint: mint.clone(), keyset: keyset.id, sig_all: false }),
            pays: Some(Pays { hash: hash(&PREIMAGE), way: terms.pay[0] }),
            ..theirs.clone()
        }
    }

    /// What an honest trader would bring as the seller, after the other's word.
    pub fn sellers_keys(&self, theirs: &eh06::Keys, key: &Keys, epoch: &EpochKeyset) -> eh06::Keys {
        let lock = LockTerms { mint: epoch.mint.clone(), keyset: epoch.keyset.id, sig_all: false };
        eh06::Keys {
            key: key.public_key(),
            clock: Timestamp::now().as_secs(),
            lock: Some(lock),
            pays: None,
            ..theirs.clone()
        }
    }

    /// Closes the connection.
    pub async fn close(self) {
        self.mailbox.close().await;
    }
}

impl Deal {
    /// How sats are to be locked.
    pub fn of_sats(&self, timing: &Timing) -> HtlcLock {
        let (seller, buyer) = self.sides();
        let (to, refund) = (lock_key(&seller.key), lock_key(&buyer.key));
        let locktime = timing.sats_until(self.terms.at);
        HtlcLock { hash: self.hash(), to, refund, locktime, sig_all: self.sig_all(buyer, seller) }
    }

    /// How ehash is to be locked.
    pub fn of_ehash(&self, timing: &Timing) -> HtlcLock {
        let (seller, buyer) = self.sides();
        let (to, refund) = (lock_key(&buyer.key), lock_key(&seller.key));
        let locktime = timing.ehash_until(self.terms.at);
        HtlcLock { hash: self.hash(), to, refund, locktime, sig_all: self.sig_all(seller, buyer) }
    }

    fn sig_all(&self, locks: &eh06::Keys, takes: &eh06::Keys) -> bool {
        locks.lock.as_ref().is_some_and(|lock| lock.sig_all) && takes.takes_sig_all
    }

    fn sides(&self) -> (&eh06::Keys, &eh06::Keys) {
        if self.mine.pays.is_some() {
            (&self.theirs, &self.mine)
        } else {
            (&self.mine, &self.theirs)
        }
    }

    fn hash(&self) -> [u8; 32] {
        let pays = self.mine.pays.as_ref().or(self.theirs.pays.as_ref());
        pays.map_or([0; 32], |pays| pays.hash)
    }

    /// The adversary's key for it, as Cashu's signatures want it.
    pub fn secret(&self) -> SecretKey {
        secret_key(&self.key)
    }
}

/// A Nostr key as Cashu's signatures want it.
pub fn secret_key(keys: &Keys) -> SecretKey {
    SecretKey::from_slice(&keys.secret_key().to_secret_bytes()).expect("a key is one")
}

/// SHA-256.
pub fn hash(bytes: &[u8]) -> [u8; 32] {
    sha256::Hash::hash(bytes).to_byte_array()
}

/// A way to a mint.
pub fn mint(url: &MintUrl) -> Arc<HttpClient> {
    Arc::new(HttpClient::new(url.clone(), None))
}

/// Swaps proofs at a mint for such with these secrets, in their order.
pub async fn swap(
    mint: &HttpClient,
    keyset: &KeySet,
    inputs: Proofs,
    wanted: &[(u64, Secret)],
) -> anyhow::Result<Proofs> {
    let (outputs, rs) = blind(keyset, wanted)?;
    let signatures = mint.post_swap(SwapRequest::new(inputs, outputs)).await?.signatures;
    let secrets = wanted.iter().map(|(_, secret)| secret.clone()).collect();
    Ok(construct_proofs(signatures, rs, secrets, &keyset.keys)?)
}

/// Spends locked proofs for plain ones of the same amounts, less the mint's fee: as
/// under `SIG_INPUTS`, or with a signature over the whole swap.
pub async fn spend(
    mint: &HttpClient,
    keyset: &KeySet,
    inputs: &Proofs,
    key: Option<&SecretKey>,
    preimage: &[u8],
    sig_all: bool,
) -> anyhow::Result<Proofs> {
    let gross: u64 = inputs.iter().map(|proof| u64::from(proof.amount)).sum();
    let net = gross - eh06::fee(inputs.len(), keyset);
    let wanted: Vec<_> = bits(net).map(|amount| (amount, Secret::generate())).collect();
    let (outputs, rs) = blind(keyset, &wanted)?;
    let mut request = SwapRequest::new(inputs.clone(), outputs);
    let witness = HTLCWitness { preimage: hex::encode(preimage), signatures: None };
    for input in request.inputs_mut() {
        input.witness = Some(Witness::HTLCWitness(witness.clone()));
        if let Some(key) = key.filter(|_| !sig_all) {
            input.sign_p2pk(key.clone())?;
        }
    }
    if let Some(key) = key.filter(|_| sig_all) {
        request.sign_sig_all(key.clone())?;
    }
    let signatures = mint.post_swap(request).await?.signatures;
    let secrets = wanted.into_iter().map(|(_, secret)| secret).collect();
    Ok(construct_proofs(signatures, rs, secrets, &keyset.keys)?)
}

/// Whether all of these are unspent, by the mint's word.
pub async fn unspent(mint: &HttpClient, proofs: &Proofs) -> anyhow::Result<bool> {
    let told = mint.post_check_state(CheckStateRequest { ys: proofs.ys()? }).await?;
    Ok(told.states.iter().all(|it| it.state == State::Unspent))
}

/// The powers of two that make up an amount, ascending.
pub fn bits(amount: u64) -> impl Iterator<Item = u64> {
    (0..63).map(|bit| 1 << bit).filter(move |bit| amount & bit != 0)
}

fn blind(
    keyset: &KeySet,
    wanted: &[(u64, Secret)],
) -> anyhow::Result<(Vec<BlindedMessage>, Vec<SecretKey>)> {
    let mut blinded = Vec::new();
    for (amount, secret) in wanted {
        let (point, r) = blind_message(&secret.to_bytes(), None)?;
        blinded.push((BlindedMessage::new(Amount::from(*amount), keyset.id, point), r));
    }
    Ok(blinded.into_iter().unzip())
}
