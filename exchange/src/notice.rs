//! Tells both traders of a match, encrypted (NIP-59), so that a wallet that was
//! away finds it without reading the journal. The match itself is public.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use hashpit_mailbox::{Delivery, Mailbox};
use hashpit_nips::kind;
use nostr_sdk::{Event, EventBuilder, JsonUtil, Keys, PublicKey, Tag};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::Error;
use crate::reader::{Reader, Record};

/// The reader's name in the journal.
pub(crate) const READER: &str = "notices";
/// Records that are read at one time.
const BATCH: usize = 64;
/// Notices on their way at one time.
const IN_FLIGHT: usize = 32;
/// Pause after no relay took a notice.
const PAUSE: Duration = Duration::from_secs(5);
/// Refusals after which a notice is set aside.
const TRIES: u32 = 5;

/// Sends notices until `finish`, and then those that are due; a notice may be
/// sent twice, and names the match by its id.
pub(crate) async fn run(
    mut reader: Reader,
    keys: Keys,
    mailbox: Mailbox,
    finish: CancellationToken,
) -> Result<(), Error> {
    let told = AtomicBool::new(false);
    while reader.wait(reader.noted(), &finish).await {
        let records = reader.read(reader.noted(), BATCH).await?;
        let Some((last, _)) = records.last() else { continue };
        let next = last + 1;
        let keys = keys.clone();
        let notices = tokio::task::spawn_blocking(move || notices(&keys, &records)).await;
        let notices =
            notices.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        stream::iter(notices.into_iter().map(Ok))
            .try_for_each_concurrent(IN_FLIGHT, |notice| publish(&mailbox, notice, &told))
            .await?;
        reader.note(next).await?;
    }
    Ok(())
}

/// Publishes a notice, unless relays that answer refuse it time and again: what
/// they do not want must not hold up the others. The match itself is public.
async fn publish(mailbox: &Mailbox, notice: Event, told: &AtomicBool) -> Result<(), Error> {
    let mut refused = 0;
    loop {
        let answers = mailbox.deliver(&notice).await?;
        if answers.values().any(|answer| *answer == Delivery::Stored) {
            debug!(notice = %notice.id, "notice sent");
            return Ok(());
        }
        let reason = answers.into_values().find_map(|answer| match answer {
            Delivery::Refused(reason) => Some(reason),
            _ => None,
        });
        if let Some(reason) = reason {
            refused += 1;
            if refused == TRIES {
                if !told.swap(true, Ordering::Relaxed) {
                    warn!(reason, "relays refuse notices of matches; those are left out");
                }
                return Ok(());
            }
        }
        sleep(PAUSE).await;
    }
}

/// Notices for every match of the records; encrypting takes its time.
fn notices(keys: &Keys, records: &[Record]) -> Result<Vec<Event>, Error> {
    let events = records.iter().flat_map(|(_, events)| events);
    let matches = events.filter(|event| event.kind == kind::MATCH);
    let to = matches.flat_map(|event| event.tags.public_keys().map(move |to| (*to, event)));
    let wraps = stream::iter(to).then(|(to, event)| wrap(keys, to, event)).try_collect();
    tokio::runtime::Handle::current().block_on(wraps)
}

async fn wrap(keys: &Keys, to: PublicKey, of: &Event) -> Result<Event, Error> {
    let rumor = EventBuilder::new(kind::MATCH, of.as_json())
        .tag(Tag::public_key(to))
        .build(keys.public_key());
    let wrapped = EventBuilder::gift_wrap(keys, &to, rumor, []).await;
    wrapped.map_err(|error| Error::Notice(error.to_string()))
}
