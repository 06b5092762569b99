//! What was asked lately, and what was answered: a request is carried out once,
//! however often it arrives.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use hashpit_nips::eh07::{RequestId, Response};
use nostr_sdk::PublicKey;

/// Answers remembered, and the bytes of their bodies; the oldest go first. A
/// wallet gives up after half a minute.
const MAX_ANSWERS: usize = 4096;
const MAX_BYTES: usize = 16 << 20;

type Key = (PublicKey, RequestId);

/// The memory. One more than it holds is the mint's own business: it signs no
/// output twice and takes no proof twice.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// `None` while under way; the answer, and its bytes.
    known: HashMap<Key, Option<(Arc<Response>, usize)>>,
    /// Answered, in order.
    order: VecDeque<Key>,
    bytes: usize,
}

/// Whether a request is new.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// It is to be carried out; [`Answers::finish`] has to follow.
    Now,
    /// It is being carried out.
    Before,
    /// It was answered so.
    Answered(Arc<Response>),
}

impl Answers {
    pub(super) fn begin(&mut self, key: Key) -> Begun {
        match self.known.get(&key) {
            None => {
                self.known.insert(key, None);
                Begun::Now
            }
            Some(None) => Begun::Before,
            Some(Some((response, _))) => Begun::Answered(response.clone()),
        }
    }

    pub(super) fn finish(&mut self, key: Key, response: Arc<Response>) {
        let bytes = response.body.to_string().len();
        self.known.insert(key, Some((response, bytes)));
        self.order.push_back(key);
        self.bytes += bytes;
        while self.order.len() > MAX_ANSWERS || self.bytes > MAX_BYTES {
            let Some(oldest) = self.order.pop_front() else { return };
            if let Some(Some((_, bytes))) = self.known.remove(&oldest) {
                self.bytes -= bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nostr_sdk::Keys;
    use serde_json::Value;

    use super::*;

    fn response(id: RequestId, length: usize) -> Arc<Response> {
        Arc::new(Response { id, status: 200, body: Value::from("x".repeat(length)) })
    }

    #[test]
    fn a_request_is_begun_once_and_then_answered_alike_for_its_own_key_only() {
        let mut answers = Answers::default();
        let (id, key) = (RequestId::new([1; 16]), Keys::generate().public_key());
        assert_eq!(answers.begin((key, id)), Begun::Now);
        assert_eq!(answers.begin((key, id)), Begun::Before);
        answers.finish((key, id), response(id, 1));
        assert_eq!(answers.begin((key, id)), Begun::Answered(response(id, 1)));
        assert_eq!(answers.begin((Keys::generate().public_key(), id)), Begun::Now);
    }

    #[test]
    fn the_oldest_answers_go_first() {
        let key = Keys::generate().public_key();
        let id = |number: u128| RequestId::new(number.to_be_bytes());
        for (count, length, kept) in [(MAX_ANSWERS + 10, 1, MAX_ANSWERS), (40, MAX_BYTES / 10, 9)] {
            let mut answers = Answers::default();
            for number in 0..count as u128 {
                assert_eq!(answers.begin((key, id(number))), Begun::Now);
                answers.finish((key, id(number)), response(id(number), length));
            }
            assert_eq!((answers.known.len(), answers.order.len()), (kept, kept));
            let last = id(count as u128 - 1);
            assert!(matches!(answers.begin((key, last)), Begun::Answered(_)));
            assert_eq!(answers.begin((key, id(0))), Begun::Now);
        }
    }
}
