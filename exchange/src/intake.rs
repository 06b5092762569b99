//! Brings what traders and pools publish to the desk: live from all relays, and
//! from each what it stored while it could not be read.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use hashpit_mailbox::{Arrival, Inbox, Mailbox, MailboxError};
use hashpit_nips::kind;
use nostr_sdk::prelude::MatchEventOptions;
use nostr_sdk::{
    Alphabet, Event, EventId, Filter, Kind, PublicKey, RelayUrl, SingleLetterTag, Timestamp,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::Error;
use crate::desk::{Answer, Desk, DeskError};
use crate::journal::{Journal, JournalError};
use crate::reader::blocking;

/// Events that wait for the desk at one time. When there are so many, no more is
/// read; what is lost by that is read again from the relays.
const IN_FLIGHT: usize = 256;
/// Seconds that a stored event may be older than when it was first missing:
/// clocks differ, and relays take some back-dating.
const OVERLAP_SECS: u64 = 120;
/// How long a relay may take for a page of what it has stored.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time between two looks at which relays are connected.
const LOOK: Duration = Duration::from_secs(60);

/// What is read, and how far.
pub(crate) struct Intake {
    desk: Desk,
    mailbox: Mailbox,
    exchange: PublicKey,
    pools: Vec<PublicKey>,
    /// From when on a relay that is not in `since` is to be read.
    begin: Timestamp,
    /// From when on each relay is to be read when it is back.
    since: HashMap<RelayUrl, Timestamp>,
    /// Relays that were connected at the last look.
    steady: HashSet<RelayUrl>,
    /// Relays that have not told yet what they had stored.
    owing: HashSet<RelayUrl>,
    /// Those among them that are to be asked once more after that.
    again: HashSet<RelayUrl>,
    /// Where what they had stored goes.
    backlog: mpsc::Sender<Event>,
    stored: Option<mpsc::Receiver<Event>>,
    readings: JoinSet<(RelayUrl, Timestamp, Result<(), MailboxError>)>,
}

type Submission = BoxFuture<'static, (EventId, Result<Answer, DeskError>)>;

impl Intake {
    /// An intake from `relays`, each from where it was read to before. `newest` is
    /// the time of the newest entry: a relay that was never read is read from there.
    pub(crate) async fn open(
        desk: Desk,
        mailbox: Mailbox,
        relays: &[RelayUrl],
        pools: Vec<PublicKey>,
        newest: Option<Timestamp>,
    ) -> Result<Self, Error> {
        let exchange = mailbox.public_key();
        let begin = newest.map_or(Timestamp::from(0), |newest| newest - OVERLAP_SECS);
        let (backlog, stored) = mpsc::channel(IN_FLIGHT);
        let relays = relays.to_vec();
        let since = blocking(desk.journal(), move |journal| starts(journal, relays, begin));
        let since = since.await?;
        Ok(Self {
            desk,
            mailbox,
            exchange,
            pools,
            begin,
            since,
            steady: HashSet::new(),
            owing: HashSet::new(),
            again: HashSet::new(),
            backlog,
            stored: Some(stored),
            readings: JoinSet::new(),
        })
    }

    /// Runs until `stop`; what the desk was given then still gets its place.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        // Nothing stored: that would come newest first, and cut off.
        let live: Vec<Filter> = self.filters(None).into_iter().map(|it| it.limit(0)).collect();
        let mut inbox = self.mailbox.subscribe(live).await?;
        let mut stored = self.stored.take().expect("runs once");
        // A submission takes its place at the desk when it is first polled, and
        // these are first polled in the order in which they are put in.
        let mut submissions: FuturesUnordered<Submission> = FuturesUnordered::new();
        let mut look = interval(LOOK);
        for relay in self.mailbox.reached().await {
            self.read_stored(relay);
        }
        loop {
            let room = submissions.len() < IN_FLIGHT;
            tokio::select! { biased;
                () = stop.cancelled() => break,
                Some((id, answer)) = submissions.next(), if !submissions.is_empty() => {
                    settle(id, answer)?;
                }
                Some(read) = self.readings.join_next(), if !self.readings.is_empty() => {
                    self.has_told(read.expect("reading does not panic")).await?;
                }
                _ = look.tick() => self.look().await?,
                Some(event) = stored.recv(), if room => submissions.extend(self.submit(event)),
                arrival = inbox.next(), if room => match arrival {
                    Some(Arrival::Event(event)) => submissions.extend(self.submit(*event)),
                    Some(Arrival::Connected(relay)) => self.read_stored(relay),
                    None => break,
                },
            }
            self.mind_the_gap(&mut inbox).await;
        }
        while let Some((id, answer)) = submissions.next().await {
            settle(id, answer)?;
        }
        Ok(())
    }

    /// Relays may send what nobody asked for: a market is only for a pool that
    /// the operator named.
    fn submit(&self, event: Event) -> Option<Submission> {
        let asked = |filter: &Filter| filter.match_event(&event, MatchEventOptions::new());
        if !self.filters(None).iter().any(asked) {
            return None;
        }
        let desk = self.desk.clone();
        Some(Box::pin(async move { (event.id, desk.submit(event).await) }))
    }

    /// What concerns this exchange: keysets first, since they make the markets.
    fn filters(&self, since: Option<Timestamp>) -> Vec<Filter> {
        let tag = SingleLetterTag::lowercase;
        let offers = Filter::new()
            .kinds([kind::OFFER, kind::COMMAND])
            .custom_tag(tag(Alphabet::X), self.exchange.to_hex());
        let deletions = Filter::new()
            .kind(Kind::EventDeletion)
            .custom_tag(tag(Alphabet::K), kind::OFFER.as_u16().to_string());
        let keysets = Filter::new().kind(kind::EPOCH_KEYSET).authors(self.pools.clone());
        let late = |filter: Filter| since.map_or(filter.clone(), |since| filter.since(since));
        vec![keysets, late(offers), late(deletions)]
    }

    /// Reads what a relay has stored, if that is not being done.
    fn read_stored(&mut self, relay: RelayUrl) {
        if !self.owing.insert(relay.clone()) {
            self.again.insert(relay);
            return;
        }
        let since = self.since.get(&relay).copied().unwrap_or(self.begin);
        let filters = self.filters(Some(since));
        let (mailbox, backlog) = (self.mailbox.clone(), self.backlog.clone());
        let begun = Timestamp::now();
        self.readings.spawn(async move {
            let read = read(&mailbox, &relay, filters, &backlog).await;
            (relay, begun, read)
        });
    }

    async fn has_told(
        &mut self,
        read: (RelayUrl, Timestamp, Result<(), MailboxError>),
    ) -> Result<(), Error> {
        match read {
            (relay, begun, Ok(())) => {
                self.owing.remove(&relay);
                self.note(&relay, begun - OVERLAP_SECS).await?;
                if self.again.remove(&relay) {
                    self.read_stored(relay);
                }
            }
            // Stays owing, and is asked again at the next look.
            (relay, _, Err(error)) => debug!(%relay, %error, "what it has stored is not known yet"),
        }
        Ok(())
    }

    /// Notes that a relay was read up to `until`, for the next start, too.
    async fn note(&mut self, relay: &RelayUrl, until: Timestamp) -> Result<(), Error> {
        self.since.insert(relay.clone(), until);
        let name = cursor(relay);
        let noted = blocking(self.desk.journal(), move |journal| {
            journal.set_cursor(&name, until.as_secs())
        });
        Ok(noted.await?)
    }

    /// Moves on the time from which relays are to be read, for those that have
    /// been connected throughout; asks those again that owe an answer.
    async fn look(&mut self) -> Result<(), Error> {
        let reached: HashSet<RelayUrl> = self.mailbox.reached().await.into_iter().collect();
        let before = Timestamp::now() - (OVERLAP_SECS + LOOK.as_secs());
        let steady = std::mem::take(&mut self.steady);
        for relay in reached.intersection(&steady) {
            if !self.owing.contains(relay) {
                self.note(relay, before).await?;
            }
        }
        if self.readings.is_empty() {
            for relay in std::mem::take(&mut self.owing) {
                if reached.contains(&relay) {
                    self.read_stored(relay);
                }
            }
        }
        self.steady = reached;
        Ok(())
    }

    /// Where live events were lost, they are read from the relays.
    async fn mind_the_gap(&mut self, inbox: &mut Inbox) {
        let missed = inbox.take_missed();
        if missed == 0 {
            return;
        }
        warn!(missed, "the desk is slower than the relays; reading again what was passed over");
        for relay in self.mailbox.reached().await {
            self.read_stored(relay);
        }
    }
}

/// The name under which the journal keeps how far a relay was read.
fn cursor(relay: &RelayUrl) -> String {
    format!("intake:{relay}")
}

/// From when on each relay is to be read. One that was never read is noted with
/// `begin`, lest it be read only from a later start on.
fn starts(
    journal: &Journal,
    relays: Vec<RelayUrl>,
    begin: Timestamp,
) -> Result<HashMap<RelayUrl, Timestamp>, JournalError> {
    let mut starts = HashMap::new();
    for relay in relays {
        let name = cursor(&relay);
        let noted = match journal.cursor(&name)? {
            0 => {
                journal.set_cursor(&name, begin.as_secs())?;
                begin
            }
            seconds => Timestamp::from(seconds),
        };
        starts.insert(relay, noted);
    }
    Ok(starts)
}

async fn read(
    mailbox: &Mailbox,
    relay: &RelayUrl,
    filters: Vec<Filter>,
    backlog: &mpsc::Sender<Event>,
) -> Result<(), MailboxError> {
    for filter in filters {
        for event in mailbox.stored(relay, filter, PATIENCE).await? {
            if backlog.send(event).await.is_err() {
                // The exchange is stopping.
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Nobody waits for it here: the answer is the journal's.
fn settle(id: EventId, answer: Result<Answer, DeskError>) -> Result<(), Error> {
    match answer? {
        Answer::Entry(seq) => debug!(event = %id, seq, "entered"),
        Answer::Ignored(reason) => debug!(event = %id, reason, "ignored"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_that_was_never_read_keeps_its_beginning_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let relay = |name: &str| RelayUrl::parse(&format!("ws://{name}.example")).unwrap();
        let (read, down) = (relay("read"), relay("down"));
        let begin_at = |seconds| {
            let journal = Journal::open(dir.path()).unwrap();
            let relays = vec![read.clone(), down.clone()];
            let starts = starts(&journal, relays, Timestamp::from(seconds)).unwrap();
            journal.set_cursor(&cursor(&read), seconds + 50).unwrap();
            [starts[&read].as_secs(), starts[&down].as_secs()]
        };
        assert_eq!(begin_at(100), [100, 100]);
        assert_eq!(begin_at(200), [150, 100], "each from where it was read to");
    }
}
