//! Whether an event may come in: its size, its clock, whose it is.
//!
//! Pure functions; each refusal is one sentence with NIP-01's prefix.

use nostr::{Kind, Timestamp};

use crate::config::Limits;
use crate::event::{Event, TagItem};
use crate::visibility::Viewer;

/// NIP-42.
pub(crate) const AUTHENTICATION: u16 = 22_242;

/// Why an event is refused; the text goes into its `OK`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// More tags than this relay takes.
    #[error("invalid: more than {0} tags")]
    TooManyTags(usize),
    /// A string in a tag is too long.
    #[error("invalid: a tag holds more than {0} bytes")]
    LongTag(usize),
    /// The content is too long.
    #[error("invalid: the content has more than {0} bytes")]
    LongContent(usize),
    /// Made in the future.
    #[error("invalid: created_at is {0} s ahead of this relay; check your clock")]
    Future(u64),
    /// NIP-40.
    #[error("invalid: the event has expired")]
    Expired,
    /// NIP-42: such an event is an answer, not a publication.
    #[error("invalid: kind 22242 belongs into an AUTH message")]
    Authentication,
    /// NIP-70, from someone who has not authenticated.
    #[error("auth-required: a protected event is taken only from its author; authenticate first")]
    ProtectedNeedsAuth,
    /// NIP-70, from someone else.
    #[error("restricted: a protected event is taken only from its author")]
    Protected,
}

/// Checks whether `viewer` may publish `event` at `now`.
pub fn check(
    event: &Event,
    viewer: &Viewer,
    now: Timestamp,
    limits: &Limits,
) -> Result<(), Refusal> {
    check_size(event, limits)?;
    check_time(event, now, limits)?;
    if event.kind() == Kind::from(AUTHENTICATION) {
        return Err(Refusal::Authentication);
    }
    if event.is_protected() && !viewer.is(&event.pubkey()) {
        let unknown = viewer.keys().is_empty();
        return Err(if unknown { Refusal::ProtectedNeedsAuth } else { Refusal::Protected });
    }
    Ok(())
}

fn check_size(event: &Event, limits: &Limits) -> Result<(), Refusal> {
    if event.content().len() > limits.max_content_bytes {
        return Err(Refusal::LongContent(limits.max_content_bytes));
    }
    if event.tags().count() > limits.max_event_tags {
        return Err(Refusal::TooManyTags(limits.max_event_tags));
    }
    let is_long = |item: TagItem<'_>| match item {
        TagItem::Text(text) => text.len() > limits.max_tag_value_bytes,
        TagItem::Hex(_) => 64 > limits.max_tag_value_bytes,
    };
    if event.tags().flat_map(|tag| tag.items()).any(is_long) {
        return Err(Refusal::LongTag(limits.max_tag_value_bytes));
    }
    Ok(())
}

fn check_time(event: &Event, now: Timestamp, limits: &Limits) -> Result<(), Refusal> {
    let ahead = event.created_at().as_secs().saturating_sub(now.as_secs());
    if ahead > limits.max_future_seconds {
        return Err(Refusal::Future(ahead));
    }
    if event.has_expired(now) {
        return Err(Refusal::Expired);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, JsonUtil, Keys, Tag};

    use super::*;
    use crate::event::json::Checker;

    const NOW: u64 = 1_700_000_000;

    fn verdict(event: EventBuilder, author: &Keys, viewer: &Viewer) -> Result<(), Refusal> {
        let event = event.sign_with_keys(author).unwrap();
        let event = Checker::default().check(&event.as_json()).unwrap();
        let limits = Limits {
            max_content_bytes: 100,
            max_event_tags: 2,
            max_tag_value_bytes: 70,
            ..Limits::default()
        };
        check(&event, viewer, Timestamp::from_secs(NOW), &limits)
    }

    fn note(content: &str) -> EventBuilder {
        EventBuilder::new(Kind::from(1), content).custom_created_at(Timestamp::from_secs(NOW))
    }

    fn tag(items: &[&str]) -> Tag {
        Tag::parse(items.iter().copied()).unwrap()
    }

    #[test]
    fn sizes_and_clocks() {
        let judge = |event| verdict(event, &Keys::generate(), &Viewer::default());
        assert_eq!(judge(note("fine")), Ok(()));
        assert_eq!(judge(note(&"x".repeat(101))), Err(Refusal::LongContent(100)));
        assert_eq!(judge(note("").tag(tag(&["t", &"x".repeat(71)]))), Err(Refusal::LongTag(70)));
        let tags = [tag(&["t", "1"]), tag(&["t", "2"]), tag(&["t", "3"])];
        assert_eq!(judge(note("").tags(tags)), Err(Refusal::TooManyTags(2)));
        let future = note("").custom_created_at(Timestamp::from_secs(NOW + 901));
        assert_eq!(judge(future), Err(Refusal::Future(901)));
        assert_eq!(judge(note("").custom_created_at(Timestamp::from_secs(NOW + 900))), Ok(()));
        let expired = note("").tag(tag(&["expiration", &NOW.to_string()]));
        assert_eq!(judge(expired), Err(Refusal::Expired));
        let lasting = note("").tag(tag(&["expiration", &(NOW + 1).to_string()]));
        assert_eq!(judge(lasting), Ok(()));
    }

    #[test]
    fn protected_events_come_from_their_author_only() {
        let (author, other) = (Keys::generate(), Keys::generate());
        let event = || note("").tag(tag(&["-"]));
        let as_author = Viewer::new([author.public_key()]);
        let as_other = Viewer::new([other.public_key()]);
        assert_eq!(verdict(event(), &author, &as_author), Ok(()));
        assert_eq!(verdict(event(), &author, &as_other), Err(Refusal::Protected));
        let unknown = verdict(event(), &author, &Viewer::default());
        assert_eq!(unknown, Err(Refusal::ProtectedNeedsAuth));
    }
}
