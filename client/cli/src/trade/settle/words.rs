//! Trades in words, and as JSON.

use hashpit_client::settle::{End, LegView, Record, Role, Stage, Step, Timing, Watched, Whose};
use hashpit_nips::eh06::Leg;
use nostr_sdk::{PublicKey, Timestamp, ToBech32};
use serde_json::{Value, json};

use crate::terminal::{grouped, printable};
use crate::wallet::short_unit;

/// Deadlines by which this binary trades.
pub const TIMING: Timing = Timing::EH06;

/// First digits of an id, by which a trade is called.
pub fn short(record: &Record) -> String {
    record.id().to_hex()[..8].to_owned()
}

pub fn side(record: &Record) -> &'static str {
    match record.role {
        Role::Seller => "sell",
        Role::Buyer => "buy",
    }
}

/// `npub1abcdef…wxyz`.
pub fn short_npub(key: &PublicKey) -> String {
    let Ok(npub) = key.to_bech32();
    format!("{}…{}", &npub[..11], &npub[npub.len() - 4..])
}

/// A stage in a few words.
pub fn stage(record: &Record) -> &'static str {
    let met = record.steps(&TIMING)[0].done == Some(true);
    match (&record.stage, record.role) {
        (Stage::Agreeing, _) if !met => "exchanging keys",
        (Stage::Agreeing, Role::Buyer) => "about to lock sats",
        (Stage::Agreeing, Role::Seller) => "waits for the buyer's sats",
        (Stage::Locking, Role::Buyer) => "locking sats",
        (Stage::Locking, Role::Seller) => "locking ehash",
        (Stage::Waiting, Role::Buyer) => "waits for the seller's ehash",
        (Stage::Waiting, Role::Seller) => "waits for the buyer to claim",
        (Stage::Claiming, Role::Buyer) => "claiming ehash",
        (Stage::Claiming, Role::Seller) => "claiming sats",
        (Stage::Refunding { .. }, Role::Buyer) => "taking sats back",
        (Stage::Refunding { .. }, Role::Seller) => "taking ehash back",
        (Stage::Over { end: End::Completed }, _) => "settled",
        (Stage::Over { end: End::Void { .. } }, _) => "void",
        (Stage::Over { end: End::Refunded { .. } }, _) => "taken back",
        (Stage::Over { end: End::Lost { .. } }, _) => "lost",
    }
}

/// Why it ended, or is about to.
pub fn why(record: &Record) -> Option<String> {
    match &record.stage {
        Stage::Refunding { why }
        | Stage::Over { end: End::Void { why } | End::Refunded { why } | End::Lost { why } } => {
            Some(printable(why).replace('\n', " "))
        }
        _ => None,
    }
}

/// `14:03:22`, UTC.
pub fn clock(at: u64) -> String {
    let second = at % 86_400;
    format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// `41 min 20 s`.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// How long until then, or since.
pub fn countdown(at: u64, now: u64) -> String {
    match at.checked_sub(now) {
        Some(left) => format!("in {}", span(left)),
        None => format!("{} ago", span(now - at)),
    }
}

/// One line on what a trade is now.
pub fn line(record: &Record, now: u64) -> String {
    let lots = super::super::lots(record.terms().lots.get().into());
    let due = record.due(&TIMING).map(|at| format!("; until {} UTC", clock(at)));
    let due = match &record.stage {
        Stage::Refunding { .. } => due.map(|due| due.replace("until", "from")),
        _ => due,
    };
    format!(
        "{} {} {} {lots}, {} sats, with {}: {}{}{}",
        clock(now),
        short(record),
        side(record),
        grouped(record.sats().get()),
        short_npub(&record.counterparty()),
        stage(record),
        why(record).map(|why| format!(": {why}")).unwrap_or_default(),
        due.unwrap_or_default(),
    )
}

/// What a step is, in words.
pub fn step(record: &Record, step: &Step) -> String {
    let (sats, units) = (grouped(record.sats().get()), grouped(record.units().get()));
    let who = |name: &str| match step.whose {
        Whose::Ours => "you".to_owned(),
        Whose::Theirs => format!("the {name}"),
        Whose::Both => "both".to_owned(),
    };
    let s = if step.whose == Whose::Ours { "" } else { "s" };
    match step.number {
        1 => "both exchange the keys and the terms of this trade".to_owned(),
        2 => format!("{} lock{s} {sats} sats", who("buyer")),
        3 => format!("{} lock{s} {units} ehash", who("seller")),
        4 => format!("{} claim{s} the ehash, which shows the preimage", who("buyer")),
        5 => format!("{} claim{s} the sats with the preimage", who("seller")),
        _ => "both tell the exchange that it is settled".to_owned(),
    }
}

/// Whether a step is done, and else until when it has to be.
pub fn standing(record: &Record, step: &Step, now: u64) -> String {
    match (step.done, step.due) {
        (Some(true), _) => "done".to_owned(),
        (None, _) if record.is_over() => "the seller's affair".to_owned(),
        (_, _) if record.is_over() => "not done".to_owned(),
        (_, Some(due)) => format!("by {} UTC, {}", clock(due), countdown(due, now)),
        (_, None) => "last".to_owned(),
    }
}

/// Where a leg is, and from when it may be taken back.
pub fn leg(view: &LegView, is_over: bool, now: u64) -> String {
    let what = if view.leg == Leg::Sats { "sats" } else { "ehash" };
    let net = grouped(view.net);
    let Some((mint, keyset)) = &view.place else {
        return format!("{net} {what}");
    };
    let proofs = match view.amounts.len() {
        0 => String::new(),
        count => {
            let gross: u64 = view.amounts.iter().sum();
            let fee = gross.saturating_sub(view.net);
            let fee = if fee > 0 { format!(", {fee} of it for the mint") } else { String::new() };
            format!(", {count} proofs{fee}")
        }
    };
    let back = format!("{} UTC, {}", clock(view.locktime), countdown(view.locktime, now));
    let back = if is_over { String::new() } else { format!("; back from {back}") };
    format!("{net} {what} at {mint}, keyset {keyset}{proofs}{back}")
}

/// Who watches the seller's sats.
pub fn watched(record: &Record) -> Option<String> {
    match record.watched()? {
        Watched::By { watchers, no_refund } => {
            let watchers: Vec<_> = watchers.iter().map(short_npub).collect();
            let watchers = watchers.join(", ");
            Some(match no_refund {
                None => {
                    format!("{watchers} may claim the sats for you, or take the ehash back")
                }
                Some(why) => format!(
                    "{watchers} may claim the sats for you, but not take the ehash back: {}",
                    printable(why)
                ),
            })
        }
        Watched::Nobody { why } => Some(format!("nobody: {}", printable(why))),
    }
}

/// What to do now.
pub fn advice(record: &Record, is_running: bool, now: u64) -> String {
    let nothing = "Nothing is left to do.";
    match &record.stage {
        Stage::Over { end: End::Completed } => return nothing.to_owned(),
        Stage::Over { end: End::Void { .. } } => {
            return format!("{nothing} Nothing of yours was locked; you may offer again.");
        }
        Stage::Over { end: End::Refunded { .. } } => {
            return format!("{nothing} What you had locked is in the wallet again.");
        }
        Stage::Over { end: End::Lost { .. } } => {
            return format!(
                "{nothing} Next time leave `hashpit trade watch` running, or name a watchtower \
                 under [trade] watchers."
            );
        }
        _ => {}
    }
    if is_running {
        return "Nothing: a hashpit process on this machine settles it.".to_owned();
    }
    let due = record.due(&TIMING).unwrap_or(now);
    match &record.stage {
        Stage::Refunding { .. } => format!(
            "Run `hashpit trade watch` after {} UTC ({}): it takes back what is yours.",
            clock(due),
            countdown(due, now)
        ),
        _ => format!(
            "Nobody settles it now. Run `hashpit trade watch` before {} UTC ({}).",
            clock(due),
            countdown(due, now)
        ),
    }
}

/// A trade as JSON.
pub fn json(record: &Record) -> Value {
    let terms = record.terms();
    let Ok(counterparty) = record.counterparty().to_bech32();
    let state = match &record.stage {
        Stage::Agreeing => "agreeing",
        Stage::Locking => "locking",
        Stage::Waiting => "waiting",
        Stage::Claiming => "claiming",
        Stage::Refunding { .. } => "refunding",
        Stage::Over { end: End::Completed } => "completed",
        Stage::Over { end: End::Void { .. } } => "void",
        Stage::Over { end: End::Refunded { .. } } => "refunded",
        Stage::Over { end: End::Lost { .. } } => "lost",
    };
    let steps = record.steps(&TIMING);
    let steps = steps.iter().map(|it| {
        let whose = match it.whose {
            Whose::Ours => "ours",
            Whose::Theirs => "theirs",
            Whose::Both => "both",
        };
        json!({ "step": it.number, "whose": whose, "done": it.done, "due": it.due,
                "what": step(record, it) })
    });
    let legs = record.legs(&TIMING);
    let legs = legs.iter().map(|leg| {
        let place = leg.place.as_ref();
        json!({ "leg": leg.leg, "net": leg.net, "mint": place.map(|(mint, _)| mint),
                "keyset": place.map(|(_, keyset)| keyset), "amounts": leg.amounts,
                "locktime": leg.locktime })
    });
    json!({
        "id": record.id(),
        "side": side(record),
        "unit": short_unit(&terms.market.epoch.to_string()),
        "exchange": record.exchange(),
        "lots": terms.lots,
        "units": record.units(),
        "sats": record.sats(),
        "price": terms.price,
        "counterparty": counterparty,
        "state": state,
        "stage": stage(record),
        "why": why(record),
        "due": record.due(&TIMING),
        "matched_at": record.matched_at(),
        "changed_at": record.changed_at(),
        "steps": steps.collect::<Vec<_>>(),
        "legs": legs.collect::<Vec<_>>(),
        "pays": record.way(),
        "watchers": record.watchers(),
        "watched": watched(record),
    })
}

pub fn now() -> u64 {
    Timestamp::now().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_count_down_and_then_up() {
        assert_eq!(clock(86_400 * 3 + 3600 * 14 + 60 * 3 + 9), "14:03:09");
        assert_eq!(countdown(1_041, 1_000), "in 41 s");
        assert_eq!(countdown(1_000 + 41 * 60, 1_000), "in 41 min 00 s");
        assert_eq!(countdown(1_000, 8_200), "2 h 00 min ago");
    }
}
