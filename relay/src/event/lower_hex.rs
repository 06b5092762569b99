//! Lower-case hex, the only spelling that NIP-01 allows for ids and keys.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The `N` bytes that `text` spells in lower-case hex, or `None`.
pub fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Appends `bytes` in lower-case hex.
pub fn push_hex(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)].into());
        out.push(DIGITS[usize::from(byte & 15)].into());
    }
}

fn digit(ascii: u8) -> Option<u8> {
    match ascii {
        b'0'..=b'9' => Some(ascii - b'0'),
        b'a'..=b'f' => Some(ascii - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_of_the_right_length() {
        assert_eq!(parse_hex::<2>("00ff"), Some([0, 255]));
        for bad in ["00f", "00fff", "00FF", "00fg", "", "é0f"] {
            assert_eq!(parse_hex::<2>(bad), None, "{bad}");
        }
        let mut text = String::new();
        push_hex(&mut text, &[0x09, 0xaf]);
        assert_eq!(text, "09af");
    }
}
