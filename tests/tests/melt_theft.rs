//! Why the ehash is claimed first: whoever knows the preimage and claims what can
//! be melted hides it in a payment that he holds up himself.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cdk::dhke::{blind_message, construct_proofs};
use cdk::mint::{MintBuilder, MintMeltLimits, UnitConfig};
use cdk::nuts::{
    BlindedMessage, CheckStateRequest, CurrencyUnit, HTLCWitness, Id, MeltQuoteBolt11Request,
    MeltQuoteState, MeltRequest, PaymentMethod, Proofs, ProofsMethods, SecretKey, State,
    SwapRequest, Witness,
};
use cdk::secret::Secret;
use cdk::types::{FeeReserve, QuoteTTL};
use cdk::{Amount, Mint};
use cdk_common::QuoteId;
use cdk_common::payment::{
    CreateIncomingPaymentResponse, Error, Event, IncomingPaymentOptions, MakePaymentResponse,
    MintPayment, OutgoingPaymentOptions, PaymentIdentifier, PaymentQuoteResponse, SettingsResponse,
    WaitPaymentResponse,
};
use cdk_fake_wallet::{FakeInvoiceDescription, FakeWallet, create_fake_invoice};
use futures_util::Stream;
use hashpit_nips::eh06::HtlcLock;
use hashpit_tests::adversary::{PREIMAGE, bits, hash};
use nostr_sdk::Timestamp;
use tokio::time::{sleep, timeout};

/// What is melted, with the reserve for its fee.
const SATS: u64 = 110;
const EHASH: u64 = 4_096;
const PATIENCE: Duration = Duration::from_secs(30);

/// A Lightning node whose payments stay under way until they are let go.
struct Held {
    wallet: FakeWallet,
    paid: AtomicBool,
}

#[async_trait]
impl MintPayment for Held {
    type Err = Error;

    async fn get_settings(&self) -> Result<SettingsResponse, Error> {
        self.wallet.get_settings().await
    }

    async fn create_incoming_payment_request(
        &self,
        options: IncomingPaymentOptions,
    ) -> Result<CreateIncomingPaymentResponse, Error> {
        self.wallet.create_incoming_payment_request(options).await
    }

    async fn get_payment_quote(
        &self,
        unit: &CurrencyUnit,
        options: OutgoingPaymentOptions,
    ) -> Result<PaymentQuoteResponse, Error> {
        self.wallet.get_payment_quote(unit, options).await
    }

    async fn make_payment(
        &self,
        unit: &CurrencyUnit,
        options: OutgoingPaymentOptions,
    ) -> Result<MakePaymentResponse, Error> {
        self.wallet.make_payment(unit, options).await
    }

    async fn wait_payment_event(&self) -> Result<Pin<Box<dyn Stream<Item = Event> + Send>>, Error> {
        self.wallet.wait_payment_event().await
    }

    fn is_payment_event_stream_active(&self) -> bool {
        self.wallet.is_payment_event_stream_active()
    }

    fn cancel_payment_event_stream(&self) {
        self.wallet.cancel_payment_event_stream();
    }

    async fn check_incoming_payment_status(
        &self,
        id: &PaymentIdentifier,
    ) -> Result<Vec<WaitPaymentResponse>, Error> {
        self.wallet.check_incoming_payment_status(id).await
    }

    async fn check_outgoing_payment(
        &self,
        id: &PaymentIdentifier,
    ) -> Result<MakePaymentResponse, Error> {
        let mut answer = self.wallet.check_outgoing_payment(id).await?;
        if self.paid.load(Ordering::SeqCst) {
            answer.status = MeltQuoteState::Paid;
            answer.total_spent = Amount::new(101, CurrencyUnit::Sat);
        }
        Ok(answer)
    }
}

/// A mint of sats that can be melted, and of ehash that cannot.
struct Bench {
    mint: Arc<Mint>,
    node: Arc<Held>,
    sats: Id,
    ehash: Id,
}

impl Bench {
    async fn start() -> Self {
        let store = Arc::new(cdk_sqlite::mint::memory::empty().await.unwrap());
        let mut builder = MintBuilder::new(store.clone()).with_name("sats".to_owned());
        let amounts: Vec<u64> = (0..20).map(|bit| 1 << bit).collect();
        let unit = UnitConfig { amounts: amounts.clone(), input_fee_ppk: 0 };
        builder.configure_unit(CurrencyUnit::Sat, unit).unwrap();
        let reserve = FeeReserve { min_fee_reserve: 1.into(), percent_fee_reserve: 0.02 };
        let wallet =
            FakeWallet::new(reserve, HashMap::new(), Default::default(), 0, CurrencyUnit::Sat);
        let node = Arc::new(Held { wallet, paid: AtomicBool::new(false) });
        let limits = MintMeltLimits::new(1, 1 << 20);
        let (unit, method) = (CurrencyUnit::Sat, PaymentMethod::BOLT11);
        builder.add_payment_processor(unit, method, limits, node.clone()).await.unwrap();
        let mint = builder.build_with_seed(store, &[7; 64]).await.unwrap();
        mint.set_quote_ttl(QuoteTTL::new(86_400, 3_600)).await.unwrap();
        mint.start().await.unwrap();
        let unit = CurrencyUnit::Custom("hash".into());
        let ehash = mint.rotate_keyset(unit, amounts, 0, true, None).await.unwrap().id;
        let sats = mint.get_active_keysets()[&CurrencyUnit::Sat];
        Self { mint: Arc::new(mint), node, sats, ehash }
    }

    /// Tokens of a keyset under these secrets.
    async fn issue(&self, keyset: Id, amount: u64, secret: impl Fn(u64) -> Secret) -> Proofs {
        let keys = self.mint.keyset(&keyset).unwrap().keys;
        let (mut outputs, mut rs, mut secrets) = (Vec::new(), Vec::new(), Vec::new());
        for amount in bits(amount) {
            let secret = secret(amount);
            let (blinded, r) = blind_message(&secret.to_bytes(), None).unwrap();
            outputs.push(BlindedMessage::new(amount.into(), keyset, blinded));
            rs.push(r);
            secrets.push(secret);
        }
        let signatures = self.mint.blind_sign(outputs).await.unwrap();
        construct_proofs(signatures, rs, secrets, &keys).unwrap()
    }

    /// A leg from one to another.
    async fn lock(
        &self,
        (keyset, amount): (Id, u64),
        from: &SecretKey,
        to: &SecretKey,
        locktime: u64,
    ) -> Proofs {
        let (to, refund) = (to.public_key(), from.public_key());
        let lock = HtlcLock { hash: hash(&PREIMAGE), to, refund, locktime, sig_all: false };
        self.issue(keyset, amount, |amount| lock.secret(&hash(&amount.to_be_bytes()))).await
    }

    /// Claims a leg, or takes it back.
    async fn spend(
        &self,
        leg: &Proofs,
        key: &SecretKey,
        preimage: &[u8],
    ) -> Result<(), cdk::Error> {
        let keyset = leg[0].keyset_id;
        let plain = leg.iter().map(|proof| {
            let (blinded, _) = blind_message(&Secret::generate().to_bytes(), None).unwrap();
            BlindedMessage::new(proof.amount, keyset, blinded)
        });
        let request = SwapRequest::new(signed(leg, key, preimage), plain.collect());
        self.mint.process_swap_request(request).await.map(drop)
    }

    /// Melts tokens into a payment that is held up.
    async fn melt(&self, tokens: Proofs) -> Result<QuoteId, cdk::Error> {
        let described = FakeInvoiceDescription {
            pay_invoice_state: MeltQuoteState::Pending,
            check_payment_state: MeltQuoteState::Pending,
            pay_err: false,
            check_err: false,
        };
        let invoice = create_fake_invoice(100_000, serde_json::to_string(&described).unwrap());
        let request =
            MeltQuoteBolt11Request { request: invoice, unit: CurrencyUnit::Sat, options: None };
        let quote = self.mint.get_melt_quote(request.into()).await?.quote().unwrap().clone();
        let melting = self.mint.melt(&MeltRequest::new(quote.clone(), tokens, None)).await?;
        tokio::spawn(async move { melting.await.map(drop) });
        Ok(quote)
    }

    /// What the mint says of a leg, and whether it shows the preimage.
    async fn state(&self, leg: &Proofs) -> (State, bool) {
        let ys = leg.ys().unwrap();
        let told = self.mint.check_state(&CheckStateRequest { ys }).await.unwrap();
        let preimage = Some(hex::encode(PREIMAGE));
        let shown =
            told.states.iter().any(|it| it.witness.as_ref().and_then(|w| w.preimage()) == preimage);
        (told.states[0].state, shown)
    }

    async fn until(&self, leg: &Proofs, wanted: State) {
        let reached = async {
            while self.state(leg).await.0 != wanted {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap();
    }
}

fn signed(leg: &Proofs, key: &SecretKey, preimage: &[u8]) -> Proofs {
    let mut leg = leg.clone();
    for proof in &mut leg {
        let preimage = hex::encode(preimage);
        proof.witness = Some(Witness::HTLCWitness(HTLCWitness { preimage, signatures: None }));
        proof.sign_p2pk(key.clone()).unwrap();
    }
    leg
}

async fn past(locktime: u64) {
    while Timestamp::now().as_secs() <= locktime {
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_claims_sats_first_has_both_legs() {
    let bench = Bench::start().await;
    // Alice knows the preimage, and her claim of sats comes first: the careless order.
    let (alice, bob) = (SecretKey::generate(), SecretKey::generate());
    let (short, long) = (Timestamp::now().as_secs() + 2, Timestamp::now().as_secs() + 4);
    let sats = bench.lock((bench.sats, SATS), &bob, &alice, short).await;
    let ehash = bench.lock((bench.ehash, EHASH), &alice, &bob, long).await;
    let melt = bench.melt(signed(&sats, &alice, &PREIMAGE)).await.unwrap();
    bench.until(&sats, State::Pending).await;
    assert!(!bench.state(&sats).await.1, "Bob cannot read the preimage");
    past(short).await;
    assert!(bench.spend(&sats, &bob, &[0; 32]).await.is_err(), "nor take his sats back");
    past(long).await;
    bench.spend(&ehash, &alice, &[0; 32]).await.unwrap();
    bench.node.paid.store(true, Ordering::SeqCst);
    let paid = bench.mint.check_melt_quote(&melt).await.unwrap();
    assert_eq!(paid.state(), MeltQuoteState::Paid);
    // Alice has been paid and has her ehash; Bob learns the preimage too late.
    assert_eq!(bench.state(&sats).await, (State::Spent, true));
    assert!(bench.spend(&ehash, &bob, &PREIMAGE).await.is_err());
    assert!(bench.spend(&sats, &bob, &[0; 32]).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_claims_ehash_first_shows_the_preimage_at_once() {
    let bench = Bench::start().await;
    // As in EH-06: the buyer knows the preimage and claims the ehash first.
    let (buyer, seller) = (SecretKey::generate(), SecretKey::generate());
    let now = Timestamp::now().as_secs();
    let sats = bench.lock((bench.sats, SATS), &buyer, &seller, now + 120).await;
    let ehash = bench.lock((bench.ehash, EHASH), &seller, &buyer, now + 60).await;
    let request = MeltQuoteBolt11Request {
        request: create_fake_invoice(1_000, String::new()),
        unit: CurrencyUnit::Custom("hash".into()),
        options: None,
    };
    assert!(bench.mint.get_melt_quote(request.into()).await.is_err(), "ehash has no melt method");
    let hidden = bench.melt(signed(&ehash, &buyer, &PREIMAGE)).await;
    assert!(hidden.is_err(), "nor does it pay for sats");
    assert_eq!(bench.state(&ehash).await, (State::Unspent, false));
    bench.spend(&ehash, &buyer, &PREIMAGE).await.unwrap();
    assert_eq!(bench.state(&ehash).await, (State::Spent, true));
    // The seller's claim comes last. Melted and held up, it harms nobody but him.
    bench.melt(signed(&sats, &seller, &PREIMAGE)).await.unwrap();
    bench.until(&sats, State::Pending).await;
    assert!(bench.spend(&sats, &buyer, &[0; 32]).await.is_err());
}
