//! The actor that owns the ledger: it groups shares into one commit, holds
//! blanks, plans batches and records them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cdk::Amount;
use cdk::nuts::{BlindSignature, BlindedMessage, Id, PaymentMethod, PublicKey as CashuKey};
use cdk_common::database::Error as DbError;
use cdk_common::database::mint::DynMintDatabase;
use cdk_common::mint::Operation;
use hashpit_nips::HashUnits;
use hashpit_nips::eh02::{MAX_BLANKS, Statement};
use nostr_sdk::{EventId, PublicKey};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::account::{Account, Miner, split};
use super::records::{self, Tables};
use super::{BlanksOutcome, COMMANDS, Command, Ledger, LedgerError, NAMESPACE, Plan, Totals};
use crate::mint::Epoch;
use crate::share::{Outcome, Share, Submission, Verdict};

/// Most shares in one commit; bounds how long the first waits for the last.
const MAX_GROUP: usize = 1024;
/// Most batches planned at once, so that shares and commands get their turn.
const MAX_PLANS: usize = 64;
/// Pause between attempts while the database refuses, first and longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Limits of the ledger.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Shortest time between two batches of a miner.
    pub(crate) issue_interval: Duration,
    /// Most miners that may leave blanks without ever having mined.
    pub(crate) max_idle_miners: usize,
}

pub(crate) struct Actor {
    store: DynMintDatabase,
    epoch: Arc<Epoch>,
    tables: Arc<Tables>,
    limits: Limits,
    commands: mpsc::Receiver<Command>,
    ready: Arc<Notify>,
    totals: watch::Sender<Totals>,
    stop: CancellationToken,
    miners: HashMap<PublicKey, Miner>,
    last_batch: HashMap<PublicKey, Instant>,
    /// Miners whose credit or blanks changed since their last batch.
    due: HashSet<PublicKey>,
    seen: HashSet<[u8; 32]>,
    next_row: u64,
}

/// One change to the key-value table; `None` removes the key.
struct Write {
    table: String,
    key: String,
    value: Option<Vec<u8>>,
}

impl Actor {
    /// Loads the epoch's ledger and checks that it balances. The actor runs
    /// until `stop`, then finishes what was sent before and returns.
    pub(crate) async fn open(
        store: DynMintDatabase,
        epoch: Epoch,
        limits: Limits,
        stop: CancellationToken,
    ) -> Result<(Ledger, Self), LedgerError> {
        let epoch = Arc::new(epoch);
        let tables = Arc::new(Tables::of_epoch(epoch.id.height));
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (totals, watch_totals) = watch::channel(Totals::default());
        let ready = Arc::new(Notify::new());
        let ledger = Ledger {
            commands: sender,
            store: store.clone(),
            epoch: epoch.clone(),
            tables: tables.clone(),
            ready: ready.clone(),
            totals: watch_totals,
        };
        let mut actor = Self {
            store,
            epoch,
            tables,
            limits,
            commands,
            ready,
            totals,
            stop,
            miners: HashMap::new(),
            last_batch: HashMap::new(),
            due: HashSet::new(),
            seen: HashSet::new(),
            next_row: 0,
        };
        actor.load().await?;
        Ok((ledger, actor))
    }

    pub(crate) async fn run(
        mut self,
        mut shares: mpsc::Receiver<Submission>,
    ) -> Result<(), LedgerError> {
        let stop = self.stop.clone();
        let mut group = Vec::with_capacity(MAX_GROUP);
        let (mut stopping, mut no_shares, mut no_commands) = (false, false, false);
        while !(no_shares && no_commands) {
            tokio::select! {
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    shares.close();
                    self.commands.close();
                }
                count = shares.recv_many(&mut group, MAX_GROUP), if !no_shares => {
                    no_shares = count == 0;
                    self.record(&mut group).await?;
                }
                command = self.commands.recv(), if !no_commands => match command {
                    Some(command) => self.obey(command).await?,
                    None => no_commands = true,
                },
            }
        }
        Ok(())
    }

    async fn obey(&mut self, command: Command) -> Result<(), LedgerError> {
        // A reply that nobody waits for any more is no error.
        match command {
            Command::AddBlanks { miner, keyset, outputs, reply } => {
                let _ = reply.send(self.add_blanks(miner, keyset, outputs).await?);
            }
            Command::Plan { reply } => {
                let _ = reply.send(self.plan()?);
            }
            Command::Issue { plan, signatures, reply } => {
                let _ = reply.send(self.issue(plan, signatures).await?);
            }
            Command::Abandon { miner } => self.land(miner),
            Command::Ack { miner, batches } => self.ack(miner, batches).await?,
            Command::Statement { miner, of, reply } => {
                let _ = reply.send(self.statement(&miner, of));
            }
        }
        Ok(())
    }

    // ---- loading

    async fn load(&mut self) -> Result<(), LedgerError> {
        for key in self.store.kv_list(NAMESPACE, &self.tables.accounts).await? {
            let account = records::decode_account(&self.read(&self.tables.accounts, &key).await?)?;
            self.miner(records::parse_miner(&key)?).account = account;
        }
        for key in self.store.kv_list(NAMESPACE, &self.tables.blanks).await? {
            let blanks = records::decode_blanks(&self.read(&self.tables.blanks, &key).await?)?;
            self.miner(records::parse_miner(&key)?).blanks = blanks;
        }
        let credited = self.load_shares().await?;
        for (miner, state) in &self.miners {
            let (shares, work) =
                credited.get(miner).map_or_else(Default::default, |a| (a.shares, a.work));
            if (state.account.shares, state.account.work) != (shares, work) {
                return Err(LedgerError::Damaged("an account that differs from its shares"));
            }
            state.account.claimable(self.epoch.work)?;
        }
        self.due = self.miners.keys().copied().collect();
        self.ready.notify_one();
        self.count_all()
    }

    async fn load_shares(&mut self) -> Result<HashMap<PublicKey, Account>, LedgerError> {
        let mut credited: HashMap<PublicKey, Account> = HashMap::new();
        for key in self.store.kv_list(NAMESPACE, &self.tables.shares).await? {
            for share in records::decode_shares(&self.read(&self.tables.shares, &key).await?)? {
                if !self.seen.insert(share.header_hash) {
                    return Err(LedgerError::Damaged("a share that was credited twice"));
                }
                credited.entry(share.miner).or_default().credit(share.work)?;
                self.miner(share.miner);
            }
            let row: u64 = key.parse().map_err(|_| LedgerError::Damaged("a row's number"))?;
            self.next_row = self.next_row.max(row + 1);
        }
        Ok(credited)
    }

    async fn read(&self, table: &str, key: &str) -> Result<Vec<u8>, LedgerError> {
        let value = self.store.kv_read(NAMESPACE, table, key).await?;
        value.ok_or(LedgerError::Damaged("a key without a value"))
    }

    // ---- shares

    /// Records a group of shares in one commit, then answers each.
    async fn record(&mut self, group: &mut Vec<Submission>) -> Result<(), LedgerError> {
        let mut fresh: Vec<Share> = Vec::with_capacity(group.len());
        let mut accounts: HashMap<PublicKey, Account> = HashMap::new();
        let mut outcomes = Vec::with_capacity(group.len());
        for Submission { share, .. } in group.iter() {
            if !self.seen.insert(share.header_hash) {
                outcomes.push(Outcome::Duplicate);
                continue;
            }
            let known = self.miners.get(&share.miner).map(|miner| miner.account);
            let account = accounts.entry(share.miner).or_insert_with(|| known.unwrap_or_default());
            account.credit(share.work)?;
            fresh.push(*share);
            outcomes.push(Outcome::Recorded);
        }
        if !fresh.is_empty() {
            let mut writes = vec![Write {
                table: self.tables.shares.clone(),
                key: records::row_key(self.next_row),
                value: Some(records::encode_shares(&fresh)),
            }];
            writes.extend(accounts.iter().map(|(miner, account)| self.account_row(miner, account)));
            self.write_durably(&writes).await?;
            self.next_row += 1;
            for (miner, account) in accounts {
                self.miner(miner).account = account;
                self.mark_due(miner);
            }
            self.count_shares(&fresh)?;
        }
        for (Submission { ticket, reply, .. }, outcome) in group.drain(..).zip(outcomes) {
            // Its connection has room for all its shares, unless it is gone.
            let _ = reply.try_send(Verdict { ticket, outcome });
        }
        Ok(())
    }

    // ---- blanks

    async fn add_blanks(
        &mut self,
        miner: PublicKey,
        keyset: Id,
        outputs: Vec<CashuKey>,
    ) -> Result<BlanksOutcome, LedgerError> {
        if let Some(reason) = self.objection(&miner, keyset, outputs.len()) {
            return Ok(BlanksOutcome::Refused(reason));
        }
        let signed = self.store.get_blind_signatures(&outputs).await?;
        let held = &mut self.miners.entry(miner).or_default().blanks;
        let before = held.len();
        for (blank, signature) in outputs.into_iter().zip(signed) {
            if signature.is_none() && held.len() < MAX_BLANKS && !held.contains(&blank) {
                held.push_back(blank);
            }
        }
        let held = held.len();
        if held > before {
            let row = self.blanks_row(&miner);
            self.write_durably(&[row]).await?;
            self.mark_due(miner);
        }
        Ok(BlanksOutcome::Held { held })
    }

    fn objection(&self, miner: &PublicKey, keyset: Id, count: usize) -> Option<String> {
        if count == 0 || count > MAX_BLANKS {
            return Some(format!("invalid: send 1 to {MAX_BLANKS} blanks in a message"));
        }
        if keyset != self.epoch.keyset.id {
            return Some(format!(
                "invalid: keyset {keyset} is not the open epoch's; ask for it with hello"
            ));
        }
        let idle = || self.miners.values().filter(|miner| miner.account.shares == 0).count();
        if !self.miners.contains_key(miner) && idle() >= self.limits.max_idle_miners {
            return Some("restricted: mine a share first, then send blanks".to_owned());
        }
        None
    }

    // ---- batches

    fn plan(&mut self) -> Result<Vec<Plan>, LedgerError> {
        let mut plans = Vec::new();
        let mut settled = Vec::new();
        for miner in &self.due {
            let Some(state) = self.miners.get_mut(miner) else { continue };
            let claimable = state.account.claimable(self.epoch.work)?;
            if claimable == HashUnits::ZERO || state.blanks.is_empty() {
                settled.push(*miner);
                continue;
            }
            let last = self.last_batch.get(miner);
            let waits = last.is_some_and(|last| last.elapsed() < self.limits.issue_interval);
            if state.in_flight || waits || plans.len() == MAX_PLANS {
                continue;
            }
            state.in_flight = true;
            let parts = split(claimable, state.blanks.len());
            let outputs = parts.iter().zip(&state.blanks).map(|(part, blank)| {
                BlindedMessage::new(Amount::from(part.get()), self.epoch.keyset.id, *blank)
            });
            plans.push(Plan { miner: *miner, outputs: outputs.collect() });
        }
        for miner in settled {
            self.due.remove(&miner);
        }
        Ok(plans)
    }

    /// Records a batch; see [`Ledger::issue`].
    async fn issue(
        &mut self,
        plan: Plan,
        signatures: Vec<BlindSignature>,
    ) -> Result<Option<u64>, LedgerError> {
        let Plan { miner, outputs } = plan;
        let units = HashUnits::new(outputs.iter().map(|output| u64::from(output.amount)).sum());
        let state = self.miner(miner);
        let number = state.account.batches;
        let mut account = state.account;
        account.issue(units, self.epoch.work)?;
        let used: Vec<CashuKey> = outputs.iter().map(|output| output.blinded_secret).collect();
        let left: Vec<CashuKey> =
            self.miner(miner).blanks.iter().skip(used.len()).copied().collect();
        let writes = [
            self.account_row(&miner, &account),
            Write {
                table: self.tables.blanks.clone(),
                key: records::miner_key(&miner),
                value: Some(records::encode_blanks(&left)),
            },
            Write {
                table: self.tables.unacked.clone(),
                key: records::batch_key(&miner, number),
                value: Some(Vec::new()),
            },
        ];
        let batch = SignedBatch {
            key: records::batch_key(&miner, number),
            row: records::encode_blanks(&used),
            outputs: &outputs,
            used: &used,
            signatures: &signatures,
        };
        if !self.commit_durably(&batch, &writes).await? {
            self.drop_used_blanks(miner, &used).await?;
            self.land(miner);
            return Ok(None);
        }
        let state = self.miner(miner);
        state.account = account;
        state.blanks.drain(..used.len());
        self.last_batch.insert(miner, Instant::now());
        self.land(miner);
        self.count_batch(units)?;
        debug!(miner = %miner, batch = number, %units, "batch issued");
        Ok(Some(number))
    }

    /// A blank that the mint has signed before, in whatever way, can never be
    /// signed again; the miner's wallet does not do that.
    async fn drop_used_blanks(
        &mut self,
        miner: PublicKey,
        planned: &[CashuKey],
    ) -> Result<(), LedgerError> {
        let signed = self.store.get_blind_signatures(planned).await?;
        let used: HashSet<_> =
            planned.iter().zip(signed).filter_map(|(blank, s)| s.map(|_| *blank)).collect();
        // Known to the mint and not signed: half of somebody's swap.
        let used = if used.is_empty() { planned.iter().copied().collect() } else { used };
        warn!(miner = %miner, blanks = used.len(), "dropped blanks that the mint has seen before");
        self.miner(miner).blanks.retain(|blank| !used.contains(blank));
        let row = self.blanks_row(&miner);
        self.write_durably(&[row]).await
    }

    async fn ack(&mut self, miner: PublicKey, batches: Vec<u64>) -> Result<(), LedgerError> {
        let issued = self.miners.get(&miner).map_or(0, |state| state.account.batches);
        let known = batches.into_iter().filter(|&number| number < issued);
        let writes: Vec<Write> = known
            .map(|number| Write {
                table: self.tables.unacked.clone(),
                key: records::batch_key(&miner, number),
                value: None,
            })
            .collect();
        self.write_durably(&writes).await
    }

    fn statement(&self, miner: &PublicKey, of: EventId) -> Statement {
        let state = self.miners.get(miner);
        let account = state.map(|state| state.account).unwrap_or_default();
        let blanks = state.map_or(0, |state| state.blanks.len());
        Statement {
            of,
            unit: self.epoch.id,
            shares: account.shares,
            work: account.work,
            issued: account.issued,
            batches: account.batches,
            blanks: u32::try_from(blanks).expect("at most MAX_BLANKS are held"),
        }
    }

    // ---- the parts that these share

    fn miner(&mut self, miner: PublicKey) -> &mut Miner {
        self.miners.entry(miner).or_default()
    }

    fn mark_due(&mut self, miner: PublicKey) {
        self.due.insert(miner);
        self.ready.notify_one();
    }

    /// The miner's batch is no longer in flight; there may be more to issue.
    fn land(&mut self, miner: PublicKey) {
        self.miner(miner).in_flight = false;
        self.mark_due(miner);
    }

    fn account_row(&self, miner: &PublicKey, account: &Account) -> Write {
        Write {
            table: self.tables.accounts.clone(),
            key: records::miner_key(miner),
            value: Some(records::encode_account(account)),
        }
    }

    fn blanks_row(&self, miner: &PublicKey) -> Write {
        let blanks = self.miners.get(miner).into_iter().flat_map(|state| &state.blanks);
        Write {
            table: self.tables.blanks.clone(),
            key: records::miner_key(miner),
            value: Some(records::encode_blanks(blanks)),
        }
    }

    // ---- the totals, kept as it goes: summing them up would cost each commit
    // as much as there are miners

    fn count_all(&self) -> Result<(), LedgerError> {
        let mut totals = Totals { miners: self.miners.len(), ..Totals::default() };
        for Miner { account, .. } in self.miners.values() {
            totals.shares += account.shares;
            totals.work = totals.work.checked_add(account.work)?;
            totals.issued = totals.issued.checked_add(account.issued)?;
            totals.batches += account.batches;
        }
        self.totals.send_replace(totals);
        Ok(())
    }

    fn count_shares(&self, shares: &[Share]) -> Result<(), LedgerError> {
        let mut totals = *self.totals.borrow();
        totals.miners = self.miners.len();
        totals.shares += shares.len() as u64;
        for share in shares {
            totals.work = totals.work.checked_add(share.work)?;
        }
        self.totals.send_replace(totals);
        Ok(())
    }

    fn count_batch(&self, units: HashUnits) -> Result<(), LedgerError> {
        let mut totals = *self.totals.borrow();
        totals.issued = totals.issued.checked_add(units)?;
        totals.batches += 1;
        self.totals.send_replace(totals);
        Ok(())
    }

    // ---- the database

    /// Commits `writes`. While the database refuses (a full disk, say) it tries
    /// again, and nothing that depends on it is answered; miners see slow
    /// acknowledgements and lose nothing. Only a stop ends that.
    async fn write_durably(&self, writes: &[Write]) -> Result<(), LedgerError> {
        let mut patience = Patience::new(&self.stop);
        loop {
            match self.write(writes).await {
                Ok(()) => return Ok(()),
                Err(error) => patience.endure(error).await?,
            }
        }
    }

    /// As [`Self::write_durably`], with a batch. False if the mint has seen one
    /// of its blanks before.
    async fn commit_durably(
        &self,
        batch: &SignedBatch<'_>,
        writes: &[Write],
    ) -> Result<bool, LedgerError> {
        let mut patience = Patience::new(&self.stop);
        loop {
            match self.commit(batch, writes).await {
                Ok(()) => return Ok(true),
                Err(DbError::Duplicate) => return Ok(false),
                Err(error) => patience.endure(error).await?,
            }
        }
    }

    async fn write(&self, writes: &[Write]) -> Result<(), DbError> {
        if writes.is_empty() {
            return Ok(());
        }
        let mut transaction = self.store.begin_transaction().await?;
        for Write { table, key, value } in writes {
            match value {
                Some(value) => transaction.kv_write(NAMESPACE, table, key, value).await?,
                None => transaction.kv_remove(NAMESPACE, table, key).await?,
            }
        }
        transaction.commit().await
    }

    async fn commit(&self, batch: &SignedBatch<'_>, writes: &[Write]) -> Result<(), DbError> {
        let mut transaction = self.store.begin_transaction().await?;
        let table = &self.tables.batches;
        if !transaction.kv_write_if_absent(NAMESPACE, table, &batch.key, &batch.row).await? {
            // An attempt before this one was durable although it failed.
            return transaction.rollback().await;
        }
        let total = Amount::try_sum(batch.outputs.iter().map(|output| output.amount))
            .map_err(|_| DbError::AmountOverflow)?;
        let operation = Operation::new_mint(total, PaymentMethod::Custom("ehash".to_owned()));
        transaction.add_blinded_messages(None, batch.outputs, &operation).await?;
        transaction.add_blind_signatures(batch.used, batch.signatures, None).await?;
        transaction.add_completed_operation(&operation, &HashMap::new()).await?;
        for Write { table, key, value } in writes {
            let value = value.as_deref().unwrap_or_default();
            transaction.kv_write(NAMESPACE, table, key, value).await?;
        }
        transaction.commit().await
    }
}

/// What a batch adds to the mint's own tables.
struct SignedBatch<'a> {
    key: String,
    row: Vec<u8>,
    outputs: &'a [BlindedMessage],
    used: &'a [CashuKey],
    signatures: &'a [BlindSignature],
}

/// Growing pauses between attempts.
struct Patience<'a> {
    stop: &'a CancellationToken,
    pause: Duration,
}

impl<'a> Patience<'a> {
    fn new(stop: &'a CancellationToken) -> Self {
        Self { stop, pause: RETRY.0 }
    }

    /// Waits before the next attempt, or gives up because of a stop.
    async fn endure(&mut self, error: DbError) -> Result<(), LedgerError> {
        warn!(%error, retry_ms = self.pause.as_millis(), "ledger write failed; shares wait for it");
        let stopped = tokio::time::timeout(self.pause, self.stop.cancelled()).await.is_ok();
        if stopped {
            return Err(error.into());
        }
        self.pause = (self.pause * 2).min(RETRY.1);
        Ok(())
    }
}
