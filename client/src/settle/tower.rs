//! A watchtower: finishes the claims of sellers who are away, once the buyer has
//! shown the preimage, and takes their ehash back if he does not show it in time.
//!
//! It keeps nothing: relays hold what sellers handed over (kind 8485), until after
//! the sats' locktime. It learns no match, no trader's key and no proof that it
//! could spend: a claim and a refund are signed over their outputs (NUT-11,
//! `SIG_ALL`), and those are the seller's.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cdk::nuts::{ProofsMethods, PublicKey as CashuKey};
use hashpit_mailbox::{Arrival, Mailbox, MailboxError};
use hashpit_nips::eh06::Watch;
use nostr_sdk::nips::nip59::UnwrappedGift;
use nostr_sdk::{Event, EventId, Filter, Keys, Kind, PublicKey, RelayUrl, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::keys::sha256;
use super::turns::{Mint, Turns};
use super::vet::vet;

/// Claims watched at one time. Each takes some tens of kilobytes.
const MAX_CLAIMS: usize = 4096;
/// Claims of one sender; an honest one makes a key for each trade.
const MAX_OF_SENDER: usize = 2;
/// Bytes of a claim: what an encrypted message holds.
const MAX_BYTES: usize = 65_535;
/// Longest watch, in seconds: a trade takes an hour and a half.
const MAX_AHEAD: u64 = 24 * 60 * 60;
/// How long a mint may take to say that it has signed the sats, before nothing is
/// watched for them.
const VETTING: Duration = Duration::from_secs(10 * 60);
/// How long a relay may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// First and longest pause between two questions.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Most seconds that the seller is given to claim the sats or to take the ehash back
/// himself, and which part of the time that is left.
const GRACE: (u64, u64) = (60, 4);
/// How long after the sats' locktime a refund is still asked for: as long as relays
/// keep it.
const AFTER: u64 = 60 * 60;
/// How far back wraps are read: NIP-59 dates them up to two days before they are
/// sent.
const BACK: u64 = 3 * 24 * 60 * 60;
/// Wraps in one answer of a relay, and answers that are read.
const PAGE: usize = 200;
const PAGES: usize = 50;
/// Wraps that wait to be opened; a relay's further answers wait for them.
const QUEUE: usize = 64;

/// What a watchtower has done since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TowerProgress {
    /// Claims watched now.
    pub watching: usize,
    /// Claims that it finished.
    pub finished: usize,
    /// Those whose ehash it took back for the seller.
    pub refunded: usize,
    /// Claims that needed nothing: taken back, or claimed by the seller.
    pub needless: usize,
    /// Claims that it could not finish in time.
    pub missed: usize,
    /// What was no claim, of no sats, or too much.
    pub refused: usize,
}

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Finished,
    Refunded,
    Needless,
    Missed,
    Refused,
}

/// A watchtower.
#[derive(Debug)]
pub struct Watchtower {
    keys: Keys,
    mailbox: Mailbox,
    progress: watch::Sender<TowerProgress>,
}

impl Watchtower {
    /// A watchtower with this key, on these relays.
    pub async fn open(keys: Keys, relays: &[RelayUrl]) -> Result<Self, MailboxError> {
        let mailbox = Mailbox::connect(keys.clone(), relays).await?;
        Ok(Self { keys, mailbox, progress: watch::Sender::default() })
    }

    /// The key that sellers name under `[trade] watchers`.
    pub fn public_key(&self) -> PublicKey {
        self.keys.public_key()
    }

    /// What it does, as it goes on.
    pub fn progress(&self) -> watch::Receiver<TowerProgress> {
        self.progress.subscribe()
    }

    /// Watches until stopped.
    pub async fn run(self, stop: CancellationToken) -> Result<(), MailboxError> {
        let mailbox = self.mailbox.clone();
        let mut desk = Desk::new(self);
        let outcome = desk.run(&stop).await;
        desk.claims.shutdown().await;
        desk.readers.shutdown().await;
        mailbox.close().await;
        outcome
    }
}

/// Who takes in what relays hold.
struct Desk {
    tower: Watchtower,
    seen: HashSet<EventId>,
    senders: HashMap<PublicKey, usize>,
    /// Points Y of the sats whose claims are watched: each once.
    sats: HashSet<CashuKey>,
    claims: JoinSet<(Handed, Outcome)>,
    readers: JoinSet<()>,
    turns: Arc<Turns>,
}

/// Whose claim it is, and of which sats.
struct Handed {
    sender: PublicKey,
    sats: Vec<CashuKey>,
}

impl Desk {
    fn new(tower: Watchtower) -> Self {
        Self {
            tower,
            seen: HashSet::new(),
            senders: HashMap::new(),
            sats: HashSet::new(),
            claims: JoinSet::new(),
            readers: JoinSet::new(),
            turns: Arc::new(Turns::new()),
        }
    }

    fn wraps(&self) -> Filter {
        let since = Timestamp::now() - Duration::from_secs(BACK);
        Filter::new().kind(Kind::GiftWrap).pubkey(self.tower.public_key()).since(since)
    }

    async fn run(&mut self, stop: &CancellationToken) -> Result<(), MailboxError> {
        let mut inbox = self.tower.mailbox.subscribe(self.wraps()).await?;
        let (stored, mut read) = mpsc::channel(QUEUE);
        loop {
            tokio::select! { biased;
                () = stop.cancelled() => return Ok(()),
                Some(done) = self.claims.join_next(), if !self.claims.is_empty() => match done {
                    Ok((handed, outcome)) => self.ended(&handed, outcome),
                    Err(error) if error.is_panic() => {
                        std::panic::resume_unwind(error.into_panic())
                    }
                    Err(_) => {}
                },
                Some(_) = self.readers.join_next(), if !self.readers.is_empty() => {}
                Some(event) = read.recv() => self.take(event).await,
                arrival = inbox.next() => match arrival {
                    Some(Arrival::Event(event)) => self.take(*event).await,
                    Some(Arrival::Connected(relay)) => {
                        let mailbox = self.tower.mailbox.clone();
                        let reading = read_stored(mailbox, relay, self.wraps(), stored.clone());
                        self.readers.spawn(reading);
                    }
                    None => return Ok(()),
                },
            }
        }
    }

    async fn take(&mut self, wrap: Event) {
        if !self.seen.insert(wrap.id) {
            return;
        }
        // What was forgotten is only opened once more, and found to be known.
        if self.seen.len() > 4 * MAX_CLAIMS {
            self.seen.clear();
        }
        match self.admit(&wrap).await {
            Ok((handed, watch)) => self.watch(handed, watch),
            Err(why) => {
                debug!(why, wrap = %wrap.id, "not watched");
                self.tower.progress.send_modify(|progress| progress.refused += 1);
            }
        }
    }

    /// Opens a wrap; why it is not watched.
    async fn admit(&self, wrap: &Event) -> Result<(Handed, Watch), &'static str> {
        if wrap.content.len() > 4 * MAX_BYTES {
            return Err("it is too large");
        }
        let opened = UnwrappedGift::from_gift_wrap(&self.tower.keys, wrap).await;
        let opened = opened.map_err(|_| "it does not open")?;
        if opened.rumor.content.len() > MAX_BYTES {
            return Err("it is too large");
        }
        let watch = Watch::read(&opened.rumor).map_err(|_| "it is no claim")?;
        let now = now();
        let sats = watch.claim.inputs().ys().map_err(|_| "it is no claim")?;
        if !(now..now + MAX_AHEAD + AFTER).contains(&ends(&watch)) {
            Err("it is too late for it, or much too early")
        } else if sats.iter().any(|y| self.sats.contains(y)) {
            Err("its sats are watched already")
        } else if self.claims.len() >= MAX_CLAIMS {
            warn!("too many claims are watched; one is left alone");
            Err("too many claims are watched")
        } else if self.senders.get(&opened.sender).is_some_and(|of| *of >= MAX_OF_SENDER) {
            Err("its sender has handed over enough")
        } else {
            vet(&watch)?;
            Ok((Handed { sender: opened.sender, sats }, watch))
        }
    }

    fn watch(&mut self, handed: Handed, watch: Watch) {
        *self.senders.entry(handed.sender).or_default() += 1;
        self.sats.extend(&handed.sats);
        let claim = Claim::new(watch, &self.turns);
        self.claims.spawn(async move { (handed, claim.finish().await) });
        let watching = self.claims.len();
        info!(watching, "a claim is watched");
        self.tower.progress.send_modify(|progress| progress.watching = watching);
    }

    fn ended(&mut self, handed: &Handed, outcome: Outcome) {
        handed.sats.iter().for_each(|y| {
            self.sats.remove(y);
        });
        if let Some(of) = self.senders.get_mut(&handed.sender) {
            *of -= 1;
            if *of == 0 {
                self.senders.remove(&handed.sender);
            }
        }
        let watching = self.claims.len();
        info!(?outcome, watching, "a watch is over");
        self.tower.progress.send_modify(|progress| {
            progress.watching = watching;
            match outcome {
                Outcome::Finished => progress.finished += 1,
                Outcome::Refunded => progress.refunded += 1,
                Outcome::Needless => progress.needless += 1,
                Outcome::Missed => progress.missed += 1,
                Outcome::Refused => progress.refused += 1,
            }
        });
    }
}

/// Reads what a relay has, page after page. It may want authentication first, which
/// takes a moment.
async fn read_stored(
    mailbox: Mailbox,
    relay: RelayUrl,
    filter: Filter,
    stored: mpsc::Sender<Event>,
) {
    let (mut until, mut pause) = (None, PAUSE.0);
    for _ in 0..PAGES {
        let page = Filter { until, ..filter.clone() }.limit(PAGE);
        let page = loop {
            match mailbox.page(&relay, page.clone(), PATIENCE).await {
                Ok(page) => break page,
                Err(error) => debug!(%relay, %error, "it does not tell what it has"),
            }
            if pause >= PAUSE.1 {
                // Once it is connected again this is begun anew.
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        };
        let (length, oldest) = (page.len(), page.iter().map(|event| event.created_at).min());
        for event in page {
            if stored.send(event).await.is_err() {
                return;
            }
        }
        // A page of one second would be told again and again.
        until = if oldest == until { oldest.map(|at| at - 1) } else { oldest };
        if length == 0 || length < PAGE {
            return;
        }
    }
    warn!(%relay, "it has more for this watchtower than is read; what is older is left out");
}

/// When a watch is over: a claim is worth nothing after the sats' locktime, but a
/// refund is worth as much as before.
fn ends(watch: &Watch) -> u64 {
    watch.sats_until.saturating_add(if watch.refund.is_some() { AFTER } else { 0 })
}

fn now() -> u64 {
    Timestamp::now().as_secs()
}

/// A claim that waits for its preimage.
struct Claim {
    watch: Watch,
    ehash: Mint,
    sats: Mint,
}

impl Claim {
    fn new(watch: Watch, turns: &Arc<Turns>) -> Self {
        let (ehash, sats) = (turns.mint(&watch.ehash_mint), turns.mint(&watch.sats_mint));
        Self { watch, ehash, sats }
    }

    /// Finishes it, if that is needed.
    async fn finish(self) -> Outcome {
        if let Err(outcome) = self.vouched().await {
            return outcome;
        }
        let preimage = match self.preimage().await {
            Ok(preimage) => preimage,
            Err(outcome) => return outcome,
        };
        let grace = GRACE.0.min(self.watch.sats_until.saturating_sub(now()) / GRACE.1);
        sleep(Duration::from_secs(grace)).await;
        self.claim(preimage).await
    }

    /// Whether the sats' mint says that it has signed them, and that they are unspent.
    async fn vouched(&self) -> Result<(), Outcome> {
        let claim = self.watch.claim.inputs();
        let Ok(inputs) = claim.ys() else { return Err(Outcome::Refused) };
        let (begun, mut pause) = (Instant::now(), PAUSE.0);
        while begun.elapsed() < VETTING {
            let told = match self.sats.has_signed(claim).await {
                Ok(true) => self.sats.spent(&inputs).await,
                Ok(false) => return Err(Outcome::Refused),
                Err(error) => Err(error),
            };
            match told {
                Ok(None) => return Ok(()),
                // The buyer has its sats back, but the ehash may be to be had.
                Ok(Some(_)) if self.is_late() && self.watch.refund.is_some() => return Ok(()),
                Ok(Some(_)) => return Err(Outcome::Needless),
                Err(error) => debug!(error, "the mint of the sats does not answer"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
        Err(Outcome::Missed)
    }

    fn is_late(&self) -> bool {
        now() > self.watch.sats_until
    }

    /// From when the ehash is taken back: its locktime has passed, and the seller has
    /// not done it.
    fn refund_due(&self) -> u64 {
        let Watch { ehash_until, sats_until, .. } = self.watch;
        let grace = GRACE.0.min(sats_until.saturating_sub(ehash_until) / GRACE.1);
        ehash_until.saturating_add(1 + grace)
    }

    /// The preimage, once the ehash is spent with it. If nobody has spent it when its
    /// locktime has passed, it is taken back: the buyer could claim it still after he
    /// has his sats back.
    async fn preimage(&self) -> Result<String, Outcome> {
        let (mut refund, due) = (self.watch.refund.clone(), self.refund_due());
        let mut pause = PAUSE.0;
        while now() <= ends(&self.watch) {
            match self.ehash.spent(&self.watch.ehash).await {
                Ok(None) if now() >= due => {
                    if let Some(refund) = &mut refund {
                        // Where it is refused since the ehash has just been claimed, the
                        // mint has the preimage.
                        match self.ehash.swap(refund).await {
                            Ok(()) => return Err(Outcome::Refunded),
                            Err(error) => debug!(error, "the ehash is not given back"),
                        }
                    }
                }
                Ok(None) => {}
                Ok(Some(preimages)) => {
                    let shown = preimages.into_iter().find(|it| self.fits(it));
                    return shown.ok_or(Outcome::Needless);
                }
                Err(error) => debug!(error, "the mint of the ehash does not answer"),
            }
            let left = Duration::from_secs(due.saturating_sub(now()));
            if !left.is_zero() && left <= pause {
                sleep(left).await;
                pause = PAUSE.0;
            } else {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
        // Without a refund to ask for nothing was to be done: the sats are the buyer's
        // again, and the ehash is the seller's to take back.
        Err(if refund.is_some() { Outcome::Missed } else { Outcome::Needless })
    }

    fn fits(&self, preimage: &str) -> bool {
        let mut bytes = [0; 32];
        hex::decode_to_slice(preimage, &mut bytes).is_ok() && sha256(&bytes) == self.watch.hash
    }

    /// Asks the sats' mint until it has carried the claim out, or it is too late.
    async fn claim(&self, preimage: String) -> Outcome {
        let mut claim = self.watch.claim.clone();
        // That they are the mint's is no news to it.
        claim.inputs_mut().iter_mut().for_each(|input| input.dleq = None);
        if let Some(first) = claim.inputs_mut().first_mut() {
            first.add_preimage(preimage);
        }
        let Ok(inputs) = claim.inputs().ys() else { return Outcome::Missed };
        let mut pause = PAUSE.0;
        loop {
            match self.sats.spent(&inputs).await {
                Ok(Some(_)) => return Outcome::Needless,
                Ok(None) => match self.sats.swap(&mut claim).await {
                    Ok(()) => return Outcome::Finished,
                    Err(error) => debug!(error, "the mint has not carried the claim out"),
                },
                Err(error) => debug!(error, "the mint of the sats does not answer"),
            }
            if self.is_late() {
                return Outcome::Missed;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}
