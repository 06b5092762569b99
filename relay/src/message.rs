//! The messages of NIP-01 and NIP-42, in both directions.
//!
//! Outgoing texts are spliced together; what a client wrote is escaped.

use nostr::EventId;
use serde_json::Value;

use crate::config::Limits;
use crate::event::json::push_string;
use crate::event::{Event, push_hex};
use crate::filter::{Filter, FilterError};

/// NIP-01: a subscription id has 1 to 64 characters.
pub(crate) const MAX_SUBSCRIPTION_ID_CHARS: usize = 64;

/// A client's message.
#[derive(Debug, PartialEq)]
pub enum ClientMessage<'a> {
    /// Publishes an event; the JSON is checked off the connection's thread.
    Event(&'a str),
    /// Authenticates (NIP-42); the same holds for its event.
    Auth(&'a str),
    /// Asks for events.
    Req(String, Vec<Filter>),
    /// Asks for events in a way that this relay refuses.
    BadReq(String, FilterError),
    /// Ends a subscription.
    Close(String),
}

/// Why a text is no message; the text is for a `NOTICE`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MessageError {
    /// Not JSON, or not an array that begins with a string.
    #[error("invalid: a message is a JSON array that begins with a command")]
    NotAMessage,
    /// A command of another protocol, or of a NIP that is not served here.
    #[error("invalid: unknown command {0}; this relay knows EVENT, REQ, CLOSE and AUTH")]
    UnknownCommand(String),
    /// The wrong number or type of elements for the command.
    #[error("invalid: {0}")]
    Shape(&'static str),
}

impl<'a> ClientMessage<'a> {
    /// Reads a client's text.
    pub fn parse(text: &'a str, limits: &Limits) -> Result<Self, MessageError> {
        let (command, rest) = split_command(text).ok_or(MessageError::NotAMessage)?;
        match command {
            "EVENT" => Ok(Self::Event(only_element(rest)?)),
            "AUTH" => Ok(Self::Auth(only_element(rest)?)),
            "REQ" => parse_req(text, limits),
            "CLOSE" => parse_close(text),
            other => Err(MessageError::UnknownCommand(other.chars().take(32).collect())),
        }
    }
}

/// The command of a message and what follows it. Commands have no escapes.
fn split_command(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start().strip_prefix('[')?.trim_start().strip_prefix('"')?;
    text.split_once('"')
}

/// The element after the command, if it is the only one: `, {…} ]`.
fn only_element(rest: &str) -> Result<&str, MessageError> {
    let element = rest.trim_start().strip_prefix(',');
    let element = element.and_then(|rest| rest.trim_end().strip_suffix(']'));
    element.map(str::trim).ok_or(MessageError::Shape("EVENT and AUTH take one event"))
}

fn parse_req<'a>(text: &str, limits: &Limits) -> Result<ClientMessage<'a>, MessageError> {
    let elements = elements(text)?;
    let id = subscription_id(elements.get(1))?;
    let filters = elements.get(2..).unwrap_or_default();
    if filters.is_empty() {
        return Err(MessageError::Shape("REQ takes a subscription id and at least one filter"));
    }
    if filters.len() > limits.max_filters {
        let error = FilterError::TooLong("REQ".to_owned(), limits.max_filters);
        return Ok(ClientMessage::BadReq(id, error));
    }
    let filters = filters.iter().map(|filter| Filter::parse(filter, limits)).collect();
    Ok(match filters {
        Ok(filters) => ClientMessage::Req(id, filters),
        Err(error) => ClientMessage::BadReq(id, error),
    })
}

fn parse_close<'a>(text: &str) -> Result<ClientMessage<'a>, MessageError> {
    subscription_id(elements(text)?.get(1)).map(ClientMessage::Close)
}

fn elements(text: &str) -> Result<Vec<Value>, MessageError> {
    serde_json::from_str(text).map_err(|_| MessageError::NotAMessage)
}

fn subscription_id(value: Option<&Value>) -> Result<String, MessageError> {
    let id = value.and_then(Value::as_str);
    id.filter(|id| (1..=MAX_SUBSCRIPTION_ID_CHARS).contains(&id.chars().count()))
        .map(str::to_owned)
        .ok_or(MessageError::Shape("a subscription id is a string of 1 to 64 characters"))
}

/// `["OK", id, accepted, reason]`
pub(crate) fn ok(id: &EventId, accepted: bool, reason: &str) -> String {
    let mut out = String::with_capacity(96 + reason.len());
    out.push_str("[\"OK\",\"");
    push_hex(&mut out, id.as_bytes());
    out.push_str(if accepted { "\",true," } else { "\",false," });
    push_string(&mut out, reason);
    out.push(']');
    out
}

/// `["EVENT", subscription, event]`
pub(crate) fn event(subscription: &str, event: &Event) -> String {
    let mut out = String::with_capacity(event.as_record().len() * 2 + 32);
    push_event_head(&mut out, subscription);
    event.push_json(&mut out);
    out.push(']');
    out
}

/// The same, from an event's JSON.
pub(crate) fn event_json(subscription: &str, json: &str) -> String {
    let mut out = String::with_capacity(json.len() + subscription.len() + 16);
    push_event_head(&mut out, subscription);
    out.push_str(json);
    out.push(']');
    out
}

fn push_event_head(out: &mut String, subscription: &str) {
    out.push_str("[\"EVENT\",");
    push_string(out, subscription);
    out.push(',');
}

/// `["EOSE", subscription]`
pub(crate) fn eose(subscription: &str) -> String {
    array("EOSE", &[subscription])
}

/// `["CLOSED", subscription, reason]`
pub(crate) fn closed(subscription: &str, reason: &str) -> String {
    array("CLOSED", &[subscription, reason])
}

/// `["NOTICE", text]`
pub(crate) fn notice(text: &str) -> String {
    array("NOTICE", &[text])
}

/// `["AUTH", challenge]` (NIP-42)
pub(crate) fn auth(challenge: &str) -> String {
    array("AUTH", &[challenge])
}

fn array(command: &str, strings: &[&str]) -> String {
    let mut out = format!("[\"{command}\"");
    for string in strings {
        out.push(',');
        push_string(&mut out, string);
    }
    out.push(']');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<ClientMessage<'_>, MessageError> {
        ClientMessage::parse(text, &Limits { max_filters: 2, ..Limits::default() })
    }

    #[test]
    fn messages_are_read_with_any_spacing() {
        assert_eq!(parse(r#"["EVENT",{}]"#), Ok(ClientMessage::Event("{}")));
        assert_eq!(parse(" [ \"AUTH\" , {} ] "), Ok(ClientMessage::Auth("{}")));
        assert_eq!(parse(r#"["CLOSE","a"]"#), Ok(ClientMessage::Close("a".into())));
        let req = parse(r#"["REQ","a",{},{"kinds":[1]}]"#);
        assert!(
            matches!(req, Ok(ClientMessage::Req(id, filters)) if id == "a" && filters.len() == 2)
        );
    }

    #[test]
    fn refused_requests_keep_their_id() {
        for req in [r#"["REQ","a",{},{},{}]"#, r#"["REQ","a",{"search":"x"}]"#, r#"["REQ","a",1]"#]
        {
            assert!(matches!(parse(req), Ok(ClientMessage::BadReq(id, _)) if id == "a"), "{req}");
        }
    }

    #[test]
    fn garbage_is_told_apart() {
        use MessageError::{NotAMessage, Shape, UnknownCommand};
        assert_eq!(parse("hello"), Err(NotAMessage));
        assert_eq!(parse("[1]"), Err(NotAMessage));
        assert_eq!(parse(r#"["REQ","a",{}"#), Err(NotAMessage));
        assert_eq!(parse(r#"["COUNT","a",{}]"#), Err(UnknownCommand("COUNT".into())));
        let long = "x".repeat(MAX_SUBSCRIPTION_ID_CHARS + 1);
        for bad in [
            "[\"REQ\",\"\",{}]",
            "[\"REQ\",\"a\"]",
            "[\"EVENT\"]",
            &format!("[\"CLOSE\",\"{long}\"]"),
        ] {
            assert!(matches!(parse(bad), Err(Shape(_))), "{bad}");
        }
    }

    #[test]
    fn what_a_client_wrote_is_escaped() {
        let closed: Value = serde_json::from_str(&closed("a\"]", "b\\\n")).unwrap();
        assert_eq!(closed, serde_json::json!(["CLOSED", "a\"]", "b\\\n"]));
    }

    proptest! {
        #[test]
        fn mangled_messages_never_panic(
            which in 0usize..4, at: prop::sample::Index, byte: u8, tail in "\\PC{0,40}",
        ) {
            let whole = [
                r##"["REQ","sub",{"kinds":[1,2],"#e":["x"],"since":1,"limit":5}]"##,
                r#"["EVENT",{"id":"x"}]"#, r#"["CLOSE","sub"]"#, r#"["AUTH",{}]"#,
            ][which];
            let mut bytes = whole.as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let text = String::from_utf8_lossy(&bytes).into_owned() + &tail;
            let _ = parse(&text);
        }
    }
}
