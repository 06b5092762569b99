//! What follows from what disk and relays hold.

use super::*;

fn id(seq: u64, chain: u8) -> EventId {
    let mut bytes = [chain; 32];
    bytes[..8].copy_from_slice(&seq.to_be_bytes());
    EventId::from_byte_array(bytes)
}

/// A survey of relays that answered, and hold these sequences of chain 0.
fn holding(range: RangeInclusive<u64>) -> Survey {
    let entries = range.map(|seq| (seq, BTreeSet::from([id(seq, 0)]))).collect();
    Survey { answered: 2, current: true, entries, named: None }
}

/// What is missing on a disk that holds chain 0 up to `ours`, with two relays.
fn decide(
    survey: &Survey,
    ours: Option<u64>,
    new: bool,
) -> Result<Option<(u64, u64)>, RecoveryError> {
    let on_disk = |seq| ours.filter(|ours| seq <= *ours).map(|_| id(seq, 0));
    missing(survey, 2, ours, on_disk, new)
}

#[test]
fn a_disk_that_has_all_needs_nothing() {
    assert_eq!(decide(&holding(3..=7), Some(7), false).unwrap(), None);
    assert_eq!(decide(&holding(3..=7), Some(9), false).unwrap(), None);
    let empty = Survey { answered: 1, current: true, ..Survey::default() };
    assert_eq!(decide(&empty, Some(0), false).unwrap(), None, "one relay's word is enough");
}

#[test]
fn a_disk_that_may_be_an_old_copy_needs_the_word_of_a_relay_that_had_all_or_the_operators() {
    let lagging = Survey { answered: 1, current: false, ..holding(3..=7) };
    for (survey, silent) in [(Survey::default(), 2), (lagging, 1)] {
        let refused = decide(&survey, Some(7), false).unwrap_err();
        assert!(matches!(refused, RecoveryError::Unheard { silent: s, relays: 2 } if s == silent));
        assert!(refused.to_string().contains("--new"));
        assert_eq!(decide(&survey, Some(7), true).unwrap(), None);
    }
}

#[test]
fn what_the_relays_have_beyond_the_disk_is_missing() {
    assert_eq!(decide(&holding(3..=7), Some(5), false).unwrap(), Some((6, 7)));
    assert_eq!(decide(&holding(3..=7), None, false).unwrap(), Some((0, 7)));
    assert_eq!(decide(&holding(0..=0), None, false).unwrap(), Some((0, 0)));
    assert_eq!(decide(&holding(0..=1), Some(0), false).unwrap(), Some((1, 1)));
}

#[test]
fn an_empty_disk_needs_every_relays_word_or_the_operators() {
    let all = Survey { answered: 2, ..Survey::default() };
    assert_eq!(decide(&all, None, false).unwrap(), None);
    for answered in [0, 1] {
        let some = Survey { answered, ..Survey::default() };
        let refused = decide(&some, None, false).unwrap_err();
        assert!(matches!(refused, RecoveryError::Unknown { silent, .. } if silent == 2 - answered));
        assert!(refused.to_string().contains("--new"));
        assert_eq!(decide(&some, None, true).unwrap(), None);
    }
}

#[test]
fn a_second_chain_is_refused() {
    let mut survey = holding(3..=7);
    survey.entries.insert(5, BTreeSet::from([id(5, 1)]));
    let refused = decide(&survey, Some(6), false).unwrap_err();
    assert!(matches!(refused, RecoveryError::Differs { seq: 5, .. }), "{refused}");
    survey.entries.insert(5, BTreeSet::from([id(5, 0), id(5, 1)]));
    for ours in [None, Some(2), Some(9)] {
        let refused = decide(&survey, ours, true).unwrap_err();
        assert!(matches!(refused, RecoveryError::Fork { seq: 5, .. }), "{refused}");
    }
}

#[test]
fn a_checkpoint_of_an_entry_that_nobody_has_is_refused() {
    let named = |survey: Survey, named| Survey { named: Some(named), ..survey };
    let refused = decide(&named(holding(3..=7), 9), Some(5), true).unwrap_err();
    assert!(matches!(refused, RecoveryError::Behind { named: 9, .. }), "{refused}");
    let refused = decide(&named(Survey::default(), 0), None, true).unwrap_err();
    assert!(refused.to_string().contains("the newest found is none"), "{refused}");
    assert_eq!(decide(&named(holding(3..=7), 9), Some(9), false).unwrap(), None);
}
