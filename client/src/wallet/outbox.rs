//! Payments on their way: the token, and to whom it goes.
//!
//! Order of writing, so that a crash anywhere loses nothing:
//! 1. cdk reserves proofs, and records that;
//! 2. this record, with cdk's operation and without a token;
//! 3. cdk makes the token, and records it;
//! 4. this record with the token;
//! 5. this record with the sealed message, before that leaves;
//! 6. no record, once a relay or the payee has the message.
//!
//! What stops before 3 is undone by cdk; [`Wallet::adopt_tokens`] goes from 3 to
//! 4 before cdk may forget; from 4 on the same token goes to the same payee until
//! it arrives, or is taken back.

use std::collections::HashSet;
use std::fmt;

use cdk::mint_url::MintUrl;
use cdk::nuts::{CheckStateRequest, PaymentRequestPayload, Proofs, ProofsMethods, State, Token};
use cdk::wallet::SendOptions;
use cdk::{Amount, Wallet as CdkWallet};
use cdk_common::wallet::{KeysetLoadPolicy, OperationData};
use hashpit_nips::HashUnits;
use nostr_sdk::{Event, EventId, PublicKey, RelayUrl};
use serde::{Deserialize, Serialize};

use super::proofs::info;
use super::{Balance, NAMESPACE, Received, Wallet, WalletError, explain};

const TABLE: &str = "outbox";
const INBOX: &str = "inbox";
const VERSION: u8 = 1;
/// Proofs in a token that is sealed twice over (NIP-59), of some 600 bytes each.
const MAX_PROOFS: usize = 40;

/// Where a payment goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case", deny_unknown_fields)]
pub enum Destination {
    /// A gift-wrapped message (NIP-17, NIP-59).
    Nostr {
        /// Who may open it.
        key: PublicKey,
        /// Where it is published.
        relays: Vec<RelayUrl>,
    },
    /// An HTTP POST (NUT-18).
    Post {
        /// To where.
        url: String,
    },
}

impl Destination {
    /// True if both are the same payee, by whichever relays.
    fn reaches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nostr { key, .. }, Self::Nostr { key: other, .. }) => key == other,
            (Self::Post { url }, Self::Post { url: other }) => url == other,
            _ => false,
        }
    }
}

/// What the payee gets to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Form {
    /// The token, `cashuB…`: people and wallets know it.
    Token,
    /// NUT-18's payload.
    Payload {
        /// The request's id.
        id: Option<String>,
    },
}

/// What is to be paid.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) amount: u64,
    pub(crate) unit: Option<String>,
    /// Mints that will do; empty for any.
    pub(crate) mints: Vec<MintUrl>,
    pub(crate) to: Destination,
    pub(crate) form: Form,
    /// Take units out although a payment like this one waits.
    pub(crate) again: bool,
}

/// What became of an order to pay.
#[derive(Debug)]
pub(crate) enum PaidOut {
    /// Taken out of the wallet.
    Now(Outgoing),
    /// Nothing: a payment for the same request waits.
    Before(Outgoing),
    /// Nothing: a payment waits that may have been meant to be this one.
    Alike(Outgoing),
}

/// A payment that has not arrived yet.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outgoing {
    version: u8,
    /// Names it here.
    pub id: String,
    /// cdk's send.
    operation: String,
    /// Cashu unit.
    pub unit: String,
    /// The mint.
    pub mint: String,
    /// Units.
    pub amount: u64,
    /// To whom.
    pub to: Destination,
    form: Form,
    token: Option<String>,
    pub(crate) sealed: Option<Event>,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, unit, amount, to, .. } = self;
        let mut outgoing = f.debug_struct("Outgoing");
        outgoing.field("id", id).field("unit", unit).field("amount", amount).field("to", to);
        outgoing.field("token", &"<redacted>").finish_non_exhaustive()
    }
}

impl Terms {
    /// What waits already: a payment for the same request, or else one of the
    /// same amount to the same payee.
    fn find(&self, waiting: Vec<Outgoing>) -> Option<PaidOut> {
        let asked = matches!(self.form, Form::Payload { id: Some(_) });
        let same_request = |payment: &Outgoing| asked && payment.form == self.form;
        let same_price = |payment: &Outgoing| {
            let unit = self.unit.as_ref().is_none_or(|unit| *unit == payment.unit);
            unit && payment.amount == self.amount
        };
        let to_payee = waiting.into_iter().filter(|payment| payment.to.reaches(&self.to));
        let (same, others): (Vec<_>, Vec<_>) =
            to_payee.partition(|payment| same_request(payment) && same_price(payment));
        let alike = |payment: &Outgoing| same_request(payment) || payment.amount == self.amount;
        let before = same.into_iter().next().map(PaidOut::Before);
        before.or_else(|| others.into_iter().find(alike).map(PaidOut::Alike))
    }
}

impl Wallet {
    /// Payments that have not arrived yet.
    pub async fn outbox(&self) -> Result<Vec<Outgoing>, WalletError> {
        let mut payments = Vec::new();
        for key in self.store.kv_list(NAMESPACE, TABLE).await? {
            let Some(bytes) = self.store.kv_read(NAMESPACE, TABLE, &key).await? else { continue };
            let damaged = || WalletError::Damaged(key.clone());
            let payment: Outgoing = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
            if payment.version != VERSION {
                return Err(damaged());
            }
            payments.push(payment);
        }
        Ok(payments)
    }

    /// [`Self::outbox`], after what a crash left half done is finished or undone.
    pub(crate) async fn waiting_payments(&self) -> Result<Vec<Outgoing>, WalletError> {
        let _lock = self.lock().await?;
        self.adopt_tokens().await?;
        let mut payments = self.outbox().await?;
        payments.retain(|payment| payment.token.is_some());
        Ok(payments)
    }

    /// The units and mints that this wallet has mined for or holds tokens of.
    pub(crate) async fn known_mints(&self) -> Result<Vec<(String, String)>, WalletError> {
        let mined = self.epochs().await?.into_iter();
        let mined = mined.map(|epoch| (epoch.unit.to_string(), epoch.mint().to_string()));
        let held = self.balances().await?.into_iter();
        Ok(mined.chain(held.map(|balance| (balance.unit, balance.mint))).collect())
    }

    /// Gift wraps that were dealt with.
    pub(crate) async fn noted_wraps(&self) -> Result<HashSet<EventId>, WalletError> {
        let noted = self.store.kv_list(NAMESPACE, INBOX).await?;
        Ok(noted.iter().filter_map(|id| EventId::from_hex(id).ok()).collect())
    }

    pub(crate) async fn note_wrap(&self, wrap: EventId) -> Result<(), WalletError> {
        Ok(self.store.kv_write(NAMESPACE, INBOX, &wrap.to_hex(), &[VERSION]).await?)
    }

    /// Takes units out of the wallet, recorded with their destination; unless a
    /// payment like this one waits: an order is repeated when its first try has
    /// failed, and must not be paid twice.
    pub(crate) async fn pay_out(&self, terms: Terms) -> Result<PaidOut, WalletError> {
        let _lock = self.lock().await?;
        self.resume_swaps().await?;
        if !terms.again
            && let Some(found) = terms.find(self.outbox().await?)
        {
            return Ok(found);
        }
        let balance = self.choose_at(terms.unit.as_deref(), &terms.mints).await?;
        if balance.amount < terms.amount {
            return Err(WalletError::Insufficient {
                available: HashUnits::new(balance.amount),
                wanted: HashUnits::new(terms.amount),
            });
        }
        let Balance { unit, mint, .. } = balance;
        let cdk = self.cdk(&mint, &unit).await?;
        let explained = |error| explain(error, &cdk.mint_url);
        self.consolidate_to(&cdk, MAX_PROOFS).await.map_err(explained)?;
        let options = SendOptions { include_fee: true, ..SendOptions::default() };
        let prepared = cdk.prepare_send(Amount::from(terms.amount), options).await;
        let prepared = prepared.map_err(explained)?;
        let mut payment = Outgoing {
            version: VERSION,
            id: format!("{:032x}", rand::random::<u128>()),
            operation: prepared.operation_id().to_string(),
            unit,
            mint,
            amount: terms.amount,
            to: terms.to,
            form: terms.form,
            token: None,
            sealed: None,
        };
        self.save_payment(&payment).await?;
        let token = prepared.confirm(None).await.map_err(explained)?;
        payment.token = Some(token.to_string());
        self.save_payment(&payment).await?;
        Ok(PaidOut::Now(payment))
    }

    /// What the payee gets to read; `None` while cdk has made no token.
    pub(crate) async fn message(&self, payment: &Outgoing) -> Result<Option<String>, WalletError> {
        let Some(token) = &payment.token else { return Ok(None) };
        let Form::Payload { id } = &payment.form else { return Ok(Some(token.clone())) };
        let cdk = self.cdk(&payment.mint, &payment.unit).await?;
        let payload = PaymentRequestPayload {
            id: id.clone(),
            memo: None,
            mint: cdk.mint_url.clone(),
            unit: cdk.unit.clone(),
            proofs: proofs(&cdk, token).await?,
        };
        Ok(Some(serde_json::to_string(&payload).expect("strings and numbers are JSON")))
    }

    /// True if the mint knows the whole token as spent (NUT-07): the payee has
    /// received it, whatever it answered.
    pub(crate) async fn is_spent(&self, payment: &Outgoing) -> Result<bool, WalletError> {
        let Some(token) = &payment.token else { return Ok(false) };
        let cdk = self.cdk(&payment.mint, &payment.unit).await?;
        let ys = proofs(&cdk, token).await?.ys().map_err(cdk::Error::from)?;
        let ys: HashSet<_> = ys.into_iter().collect();
        let request = CheckStateRequest { ys: ys.iter().copied().collect() };
        let answer = cdk.mint_connector().post_check_state(request).await;
        let states = answer.map_err(|error| explain(error, &cdk.mint_url))?.states;
        let spent = states.iter().filter(|told| told.state == State::Spent);
        let spent: HashSet<_> = spent.map(|told| told.y).collect();
        Ok(!ys.is_empty() && ys.is_subset(&spent))
    }

    pub(crate) async fn save_payment(&self, payment: &Outgoing) -> Result<(), WalletError> {
        let bytes = serde_json::to_vec(payment).expect("strings and numbers are JSON");
        Ok(self.store.kv_write(NAMESPACE, TABLE, &payment.id, &bytes).await?)
    }

    pub(crate) async fn forget_payment(&self, id: &str) -> Result<(), WalletError> {
        Ok(self.store.kv_remove(NAMESPACE, TABLE, id).await?)
    }

    /// Forgets the payments of a send whose token is void.
    pub(super) async fn forget_send(&self, operation: &str) -> Result<(), WalletError> {
        for payment in self.outbox().await? {
            if payment.operation == operation {
                self.forget_payment(&payment.id).await?;
            }
        }
        Ok(())
    }

    /// Takes a payment that has not arrived back into the wallet; an error if the
    /// payee has received it after all.
    pub async fn take_back(&self, id: &str) -> Result<Received, WalletError> {
        let payment = self.outbox().await?.into_iter().find(|payment| payment.id == id);
        let payment = payment.ok_or_else(|| WalletError::NoPayment(id.to_owned()))?;
        let token = payment.token.ok_or_else(|| WalletError::NoPayment(id.to_owned()))?;
        let received = self.receive(&token).await;
        if matches!(received, Ok(_) | Err(WalletError::Cashu(cdk::Error::TokenAlreadySpent))) {
            self.forget_payment(id).await?;
        }
        received
    }

    /// Copies the tokens that cdk made before a crash kept us from recording them,
    /// and forgets payments that cdk undid. Under the lock, before cdk's recovery,
    /// which forgets sends whose proofs came of a swap.
    pub(super) async fn adopt_tokens(&self) -> Result<(), WalletError> {
        let mut payments = self.outbox().await?;
        payments.retain(|payment| payment.token.is_none());
        if payments.is_empty() {
            return Ok(());
        }
        let sends = self.store.get_incomplete_sagas().await?;
        for mut payment in payments {
            match sends.iter().find(|send| send.id.to_string() == payment.operation) {
                None => self.forget_payment(&payment.id).await?,
                Some(send) => {
                    let OperationData::Send(data) = &send.data else { continue };
                    if let Some(token) = &data.token {
                        payment.token = Some(token.clone());
                        self.save_payment(&payment).await?;
                    }
                }
            }
        }
        Ok(())
    }
}

async fn proofs(cdk: &CdkWallet, token: &str) -> Result<Proofs, WalletError> {
    let invalid = |error: &dyn fmt::Display| WalletError::Token(error.to_string());
    let token: Token = token.parse().map_err(|error| invalid(&error))?;
    let keysets = cdk.keysets(KeysetLoadPolicy::default()).await?;
    let infos: Vec<_> = keysets.into_iter().map(info).collect();
    token.proofs(&infos).map_err(|error| invalid(&error))
}
