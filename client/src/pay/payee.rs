//! Whom to pay, and what they ask for.

use std::fmt;
use std::str::FromStr;

use cdk::mint_url::MintUrl;
use cdk::nuts::PaymentRequest;
use nostr_sdk::nips::nip19::{FromBech32, Nip19Profile};
use nostr_sdk::{PublicKey, RelayUrl, ToBech32};

use super::Order;

/// Whom to pay.
#[derive(Debug, Clone)]
pub enum Payee {
    /// A NUT-18 payment request: `creqA…`, or NUT-26's `creqb1…`.
    Request(Box<PaymentRequest>),
    /// An npub or nprofile.
    Key {
        /// The key.
        key: PublicKey,
        /// Relays that it reads.
        relays: Vec<RelayUrl>,
    },
}

/// Why a payee cannot be paid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayeeError {
    /// Neither a request nor a key.
    #[error("{0:?} is neither a payment request (creqA…) nor an npub or nprofile")]
    Unknown(String),
    /// A request that does not decode.
    #[error("this payment request does not decode: {0}; copy the whole of it")]
    Request(String),
    /// Nobody says how much.
    #[error("how much? the payee does not say; name an amount")]
    NoAmount,
    /// The request wants another amount.
    #[error("the request is for {asked}, not {given}; leave the amount out to pay it")]
    OtherAmount {
        /// Of the request.
        asked: u64,
        /// Of the order.
        given: u64,
    },
    /// The request wants another unit.
    #[error("the request is for {asked}, not {given}; leave --unit out to pay it")]
    OtherUnit {
        /// Of the request.
        asked: String,
        /// Of the order.
        given: String,
    },
    /// NUT-10.
    #[error(
        "the request wants a token that is locked (NUT-10), which this wallet does not make: a \
         crash at the wrong moment could lose it; ask for a request without a lock"
    )]
    Locked,
    /// Payment methods.
    #[error("the request wants a mint that pays out by {0}; ehash is not paid out")]
    Method(String),
    /// No way to deliver.
    #[error(
        "the request names no way to deliver that this wallet knows (Nostr, HTTP POST); \
         use `hashpit wallet send` and hand the token over"
    )]
    NoTransport,
    /// A shop's address that would give the token to whoever listens on the way.
    #[error(
        "the request's address {0:?} is not encrypted, and a token sent there could be stolen on \
         the way; ask for a request with an https:// address"
    )]
    InTheClear(String),
    /// A way that does not parse.
    #[error("the request's address {0:?} does not parse; ask for a new request")]
    Address(String),
}

impl FromStr for Payee {
    type Err = PayeeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let text = ["cashu:", "nostr:"].iter().find_map(|it| text.strip_prefix(it)).unwrap_or(text);
        if text.to_lowercase().starts_with("creq") {
            let request = PaymentRequest::from_str(text);
            let request = request.map_err(|error| PayeeError::Request(error.to_string()))?;
            return Ok(Self::Request(Box::new(request)));
        }
        if let Ok(Nip19Profile { public_key, relays }) = Nip19Profile::from_bech32(text) {
            return Ok(Self::Key { key: public_key, relays });
        }
        match PublicKey::from_bech32(text) {
            Ok(key) => Ok(Self::Key { key, relays: Vec::new() }),
            Err(_) => Err(PayeeError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for Payee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(request) => match &request.description {
                Some(description) => write!(f, "{:?}", description),
                None => f.write_str("a payment request"),
            },
            Self::Key { key, .. } => {
                let Ok(npub) = key.to_bech32();
                f.write_str(&npub)
            }
        }
    }
}

impl Payee {
    /// Units, the Cashu unit, and the mints that will do (empty for any).
    pub(super) fn price(
        &self,
        order: &Order,
    ) -> Result<(u64, Option<String>, Vec<MintUrl>), PayeeError> {
        let Self::Request(request) = self else {
            let amount = order.amount.ok_or(PayeeError::NoAmount)?;
            return Ok((amount, order.unit.clone(), Vec::new()));
        };
        if request.nut10.is_some() {
            return Err(PayeeError::Locked);
        }
        if let Some(method) = request.supported_methods.first() {
            return Err(PayeeError::Method(method.method.clone()));
        }
        let asked = request.amount.map(u64::from);
        let amount = match (asked, order.amount) {
            (Some(asked), Some(given)) if asked != given => {
                return Err(PayeeError::OtherAmount { asked, given });
            }
            (asked, given) => asked.or(given).ok_or(PayeeError::NoAmount)?,
        };
        let unit = match (request.unit.as_ref().map(ToString::to_string), &order.unit) {
            (Some(asked), Some(given)) if asked != *given => {
                return Err(PayeeError::OtherUnit { asked, given: given.clone() });
            }
            (asked, given) => asked.or(given.clone()),
        };
        let strict = !request.mint_preferred.unwrap_or(false);
        Ok((amount, unit, if strict { request.mints.clone() } else { Vec::new() }))
    }
}

#[cfg(test)]
mod tests {
    use cdk::Amount;
    use cdk::nuts::CurrencyUnit;
    use nostr_sdk::Keys;

    use super::*;

    const EXAMPLE: &str = "creqApWF0gaNhdGVub3N0cmFheKlucHJvZmlsZTFxeTI4d3VtbjhnaGo3dW45ZDNzaGp0bnl2OWtoMnVld2Q5aHN6OW1od2RlbjV0ZTB3ZmprY2N0ZTljdXJ4dmVuOWVlaHFjdHJ2NWhzenJ0aHdkZW41dGUwZGVoaHh0bnZkYWtxcWd5ZGFxeTdjdXJrNDM5eWtwdGt5c3Y3dWRoZGh1NjhzdWNtMjk1YWtxZWZkZWhrZjBkNDk1Y3d1bmw1YWeBgmFuYjE3YWloYjdhOTAxNzZhYQphdWNzYXRhbYF4Imh0dHBzOi8vbm9mZWVzLnRlc3RudXQuY2FzaHUuc3BhY2U=";

    fn request(change: impl FnOnce(&mut PaymentRequest)) -> Payee {
        let mut request = PaymentRequest::builder().amount(7).unit(CurrencyUnit::Sat).build();
        change(&mut request);
        request.to_string().parse().unwrap()
    }

    fn order(amount: Option<u64>, unit: Option<&str>) -> Order {
        Order { amount, unit: unit.map(str::to_owned), ..Order::default() }
    }

    #[test]
    fn the_example_of_nut_18_parses() {
        let payee: Payee = format!("cashu:{EXAMPLE}").parse().unwrap();
        let (amount, unit, mints) = payee.price(&Order::default()).unwrap();
        assert_eq!((amount, unit.as_deref()), (10, Some("sat")));
        assert_eq!(mints, ["https://nofees.testnut.cashu.space".parse().unwrap()]);
    }

    #[test]
    fn keys_with_and_without_relays_parse_and_rubbish_does_not() {
        let key = Keys::generate().public_key();
        let npub: Payee = key.to_bech32().unwrap().parse().unwrap();
        assert!(matches!(npub, Payee::Key { key: k, ref relays } if k == key && relays.is_empty()));
        let relay: RelayUrl = "wss://relay.example".parse().unwrap();
        let profile = Nip19Profile::new(key, [relay.clone()]).to_bech32().unwrap();
        let profile: Payee = format!("nostr:{profile}").parse().unwrap();
        assert!(matches!(profile, Payee::Key { key: k, relays } if k == key && relays == [relay]));
        for bad in ["", "npub1", "creqA", "creqAAAAA", "creqb1qq", "nsec1x", "cashuBo2F0"] {
            assert!(bad.parse::<Payee>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_request_and_an_order_must_agree() {
        let fixed = request(|_| {});
        assert_eq!(fixed.price(&order(None, None)).unwrap().0, 7);
        assert_eq!(fixed.price(&order(Some(7), Some("sat"))).unwrap().0, 7);
        let refused = |payee: &Payee, order: Order| payee.price(&order).unwrap_err();
        let other = PayeeError::OtherAmount { asked: 7, given: 8 };
        assert_eq!(refused(&fixed, order(Some(8), None)), other);
        let unit = refused(&fixed, order(None, Some("usd")));
        assert!(matches!(unit, PayeeError::OtherUnit { .. }));
        let open = request(|request| request.amount = None);
        assert_eq!(refused(&open, order(None, None)), PayeeError::NoAmount);
        assert_eq!(open.price(&order(Some(3), None)).unwrap().0, 3);
        assert_eq!(
            request(|it| it.amount = Some(Amount::from(1))).price(&order(None, None)).unwrap().0,
            1
        );
    }

    #[test]
    fn preferred_mints_do_not_bind_and_locks_are_refused() {
        let mint: MintUrl = "https://mint.example".parse().unwrap();
        for (preferred, binding) in [(None, 1), (Some(false), 1), (Some(true), 0)] {
            let payee = request(|request| {
                (request.mints, request.mint_preferred) = (vec![mint.clone()], preferred);
            });
            assert_eq!(payee.price(&Order::default()).unwrap().2.len(), binding);
        }
        let key = cdk::nuts::SecretKey::generate().public_key().to_string();
        let lock = serde_json::from_value(serde_json::json!({"k": "P2PK", "d": key, "t": []}));
        let locked = request(|request| request.nut10 = Some(lock.unwrap()));
        assert_eq!(locked.price(&Order::default()).unwrap_err(), PayeeError::Locked);
    }
}
