//! What devices ask, out of JSON that follows no one specification closely.

use serde_json::{Map, Value};

/// Longest id that is sent back.
const MAX_ID_BYTES: usize = 64;
/// Longest user name that is looked at.
const MAX_USER_BYTES: usize = 256;

/// A line of a device's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    /// A number, a string or null.
    pub(super) id: Value,
    pub(super) call: Call,
}

/// What it asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Call {
    Subscribe {
        agent: String,
    },
    Authorize {
        user: String,
    },
    Configure(Configure),
    Submit(Submit),
    SuggestDifficulty(f64),
    SuggestTarget([u8; 32]),
    ExtranonceSubscribe,
    MultiVersion,
    Ping,
    Unknown(String),
    /// A method with parameters that it cannot have.
    Invalid(&'static str),
    /// An answer to something that was never asked.
    Nothing,
}

/// `mining.configure` (BIP 310).
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Configure {
    /// The bits of the version that the device can roll, if it asks for that.
    pub(super) version_rolling: Option<u32>,
    /// How many of them it needs.
    pub(super) min_bits: u32,
    /// The difficulty that it wants at least.
    pub(super) minimum_difficulty: Option<f64>,
    pub(super) subscribe_extranonce: bool,
    pub(super) info: bool,
    /// Extensions that nobody here knows.
    pub(super) unknown: Vec<String>,
}

/// `mining.submit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Submit {
    pub(super) user: String,
    pub(super) job: String,
    pub(super) extranonce2: Vec<u8>,
    pub(super) time: u32,
    pub(super) nonce: u32,
    /// Bits of the version that were rolled; `None` if the device rolls none.
    pub(super) version: Option<u32>,
}

/// Parses a line; `None` if it is no JSON object with a usable id.
pub(super) fn parse(line: &[u8]) -> Option<Request> {
    let Value::Object(mut object) = serde_json::from_slice(line).ok()? else { return None };
    let id = object.remove("id").unwrap_or_default();
    match &id {
        Value::Null | Value::Number(_) => {}
        Value::String(id) if id.len() <= MAX_ID_BYTES => {}
        _ => return None,
    }
    let params = match object.remove("params") {
        Some(Value::Array(params)) => params,
        // `{}` and nothing at all stand for no parameters.
        _ => Vec::new(),
    };
    let call = match object.get("method") {
        Some(Value::String(method)) => call(method, &params),
        Some(_) => return None,
        None if object.contains_key("result") => Call::Nothing,
        None => return None,
    };
    Some(Request { id, call })
}

fn call(method: &str, params: &[Value]) -> Call {
    let invalid = Call::Invalid;
    match method {
        "mining.subscribe" => {
            let agent = text(params, 0).unwrap_or_default();
            Call::Subscribe { agent: cut(agent, MAX_USER_BYTES) }
        }
        "mining.authorize" | "mining.auth" => match text(params, 0) {
            Some(user) => Call::Authorize { user: cut(user, MAX_USER_BYTES) },
            None => invalid("mining.authorize needs a user name"),
        },
        "mining.configure" => configure(params)
            .map_or(invalid("mining.configure needs a list of extensions"), Call::Configure),
        "mining.submit" => submit(params).map_or(
            invalid("mining.submit needs user, job, extranonce2, time and nonce, in hex"),
            Call::Submit,
        ),
        "mining.suggest_difficulty" => number(params.first())
            .map_or(invalid("mining.suggest_difficulty needs a number"), Call::SuggestDifficulty),
        "mining.suggest_target" => text(params, 0)
            .and_then(target)
            .map_or(invalid("mining.suggest_target needs 64 hex digits"), Call::SuggestTarget),
        "mining.extranonce.subscribe" => Call::ExtranonceSubscribe,
        "mining.multi_version" => Call::MultiVersion,
        "mining.ping" | "client.ping" => Call::Ping,
        unknown => Call::Unknown(cut(unknown, MAX_ID_BYTES)),
    }
}

fn configure(params: &[Value]) -> Option<Configure> {
    let extensions = params.first()?.as_array()?;
    let nothing = Map::new();
    let options = params.get(1).and_then(Value::as_object).unwrap_or(&nothing);
    let mut asked = Configure::default();
    for extension in extensions {
        match extension.as_str()? {
            "version-rolling" => {
                let mask = options.get("version-rolling.mask").and_then(Value::as_str);
                asked.version_rolling = Some(mask.map_or(Some(u32::MAX), hex_u32)?);
                let bits = options.get("version-rolling.min-bit-count");
                asked.min_bits = number(bits).map_or(0, |bits| bits as u32);
            }
            "minimum-difficulty" => {
                asked.minimum_difficulty = number(options.get("minimum-difficulty.value"));
            }
            "subscribe-extranonce" => asked.subscribe_extranonce = true,
            "info" => asked.info = true,
            unknown if asked.unknown.len() < 8 => asked.unknown.push(cut(unknown, MAX_ID_BYTES)),
            _ => {}
        }
    }
    Some(asked)
}

fn submit(params: &[Value]) -> Option<Submit> {
    let version = match params.get(5) {
        None | Some(Value::Null) => None,
        Some(bits) => Some(hex_u32(bits.as_str()?)?),
    };
    Some(Submit {
        user: cut(text(params, 0)?, MAX_USER_BYTES),
        job: text(params, 1).filter(|job| job.len() <= MAX_ID_BYTES)?.to_owned(),
        extranonce2: unhex(text(params, 2)?)?,
        time: hex_u32(text(params, 3)?)?,
        nonce: hex_u32(text(params, 4)?)?,
        version,
    })
}

fn text(params: &[Value], index: usize) -> Option<&str> {
    params.get(index).and_then(Value::as_str)
}

/// Some devices put their numbers into strings.
fn number(value: Option<&Value>) -> Option<f64> {
    match value? {
        Value::String(digits) => digits.parse().ok(),
        other => other.as_f64(),
    }
}

/// At most eight hex digits; some devices leave out leading zeros.
fn hex_u32(digits: &str) -> Option<u32> {
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let all_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    all_hex.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

/// At most 32 bytes.
pub(super) fn unhex(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    if digits.len() > 64 || !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8]| u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok();
    digits.chunks_exact(2).map(byte).collect()
}

/// A target as it is written, the most significant byte first; little-endian
/// here.
fn target(digits: &str) -> Option<[u8; 32]> {
    let mut bytes: [u8; 32] = unhex(digits)?.try_into().ok()?;
    bytes.reverse();
    Some(bytes)
}

fn cut(text: &str, bytes: usize) -> String {
    text[..text.floor_char_boundary(bytes)].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn call_of(line: &str) -> Call {
        parse(line.as_bytes()).unwrap().call
    }

    #[test]
    fn ids_may_be_numbers_strings_or_nothing() {
        for (id, value) in
            [("7", Value::from(7)), ("\"a\"", Value::from("a")), ("null", Value::Null)]
        {
            let line = format!(r#"{{"id":{id},"method":"mining.ping","params":[]}}"#);
            assert_eq!(parse(line.as_bytes()), Some(Request { id: value, call: Call::Ping }));
        }
        assert_eq!(parse(br#"{"method":"mining.ping"}"#).unwrap().id, Value::Null);
        assert_eq!(call_of(r#"{"id":1,"result":true,"error":null}"#), Call::Nothing);
        for bad in ["", "[]", "7", "{}", r#"{"id":[],"method":"x"}"#, r#"{"id":1,"method":2}"#] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn configure_tells_known_extensions_from_others() {
        let asked = call_of(
            r#"{"id":1,"method":"mining.configure","params":[["version-rolling","minimum-difficulty","subscribe-extranonce","info","teleport"],{"version-rolling.mask":"1fffe000","version-rolling.min-bit-count":2,"minimum-difficulty.value":2048}]}"#,
        );
        let expected = Configure {
            version_rolling: Some(0x1fff_e000),
            min_bits: 2,
            minimum_difficulty: Some(2048.0),
            subscribe_extranonce: true,
            info: true,
            unknown: vec!["teleport".to_owned()],
        };
        assert_eq!(asked, Call::Configure(expected));
    }

    #[test]
    fn submit_has_five_or_six_parameters() {
        let submit = |rest: &str| {
            call_of(&format!(
                r#"{{"id":4,"method":"mining.submit","params":["u.w","1f","00000001","5e","000000ff"{rest}]}}"#
            ))
        };
        let expected = Submit {
            user: "u.w".to_owned(),
            job: "1f".to_owned(),
            extranonce2: vec![0, 0, 0, 1],
            time: 0x5e,
            nonce: 0xff,
            version: None,
        };
        assert_eq!(submit(""), Call::Submit(expected.clone()));
        let rolled = Submit { version: Some(0x2000), ..expected };
        assert_eq!(submit(r#","00002000""#), Call::Submit(rolled));
        assert!(matches!(submit(r#","zz""#), Call::Invalid(_)));
        assert!(matches!(submit(r#",17"#), Call::Invalid(_)));
    }

    proptest! {
        #[test]
        fn mangled_lines_never_panic(
            mut line in Just(br#"{"id":4,"method":"mining.submit","params":["u","1","00","5e","ff","0"]}"#.to_vec()),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            for (at, byte) in changes {
                let at = at.index(line.len());
                line[at] = byte;
            }
            let _ = parse(&line);
        }

        #[test]
        fn any_parameters_are_survived(params in ".{0,80}", method in "mining\\.(submit|configure|authorize|suggest_target)") {
            let _ = parse(format!(r#"{{"id":1,"method":"{method}","params":[{params}]}}"#).as_bytes());
        }
    }
}
