//! Tokens as text. A character may be split over several tokens; its pieces stay bytes until the character is complete.

use statescope_engine::protocol::TokenRecord;

/// A UTF-8 character has at most four bytes, so a new token can complete at most this many earlier ones.
const LOOK_BACK: usize = 4;

/// What tokens `from..` are called on screen, given all of them; `labels` is brought up to date.
///
/// A split character is shown whole by the token it starts in, and as `…` by the tokens that continue it.
pub fn label_tokens(labels: &mut Vec<String>, tokens: &[TokenRecord]) {
    labels.truncate(tokens.len());
    let rewrite = labels.len().saturating_sub(LOOK_BACK);
    let context = rewrite.saturating_sub(LOOK_BACK);
    labels.truncate(rewrite);
    let window = &tokens[context..];
    // Token boundaries in the joined bytes.
    let mut starts = Vec::with_capacity(window.len() + 1);
    let mut bytes = Vec::new();
    for token in window {
        starts.push(bytes.len());
        bytes.extend_from_slice(&token.bytes);
    }
    starts.push(bytes.len());
    let characters = decode(&bytes);
    let mut next = 0;
    for (k, token) in window.iter().enumerate() {
        let (start, end) = (starts[k], starts[k + 1]);
        let mut label = String::new();
        let mut continued = false;
        while next < characters.len() && characters[next].0 < start {
            next += 1;
        }
        // Bytes before the first character that starts here belong to an earlier one.
        let first = characters[next..].iter().find(|(at, _)| *at >= start).map_or(end, |(at, _)| (*at).min(end));
        if first > start {
            continued = true;
        }
        while let Some((at, piece)) = characters.get(next).filter(|(at, _)| *at < end) {
            match piece {
                Piece::Char(c) => label.push(*c),
                Piece::Byte(_) => {
                    let run: Vec<String> = characters[next..]
                        .iter()
                        .take_while(|(at, p)| *at < end && matches!(p, Piece::Byte(_)))
                        .map(|(_, p)| match p {
                            Piece::Byte(b) => format!("{b:02x}"),
                            Piece::Char(_) => String::new(),
                        })
                        .collect();
                    label.push_str(&format!("‹{}›", run.join(" ")));
                    next += run.len();
                    continue;
                }
            }
            let _ = at;
            next += 1;
        }
        if context + k < rewrite {
            continue;
        }
        labels.push(match &token.special {
            Some(special) => special.clone(),
            None if label.is_empty() && continued => "…".into(),
            None => label,
        });
    }
}

enum Piece {
    Char(char),
    /// Not (yet) part of a character.
    Byte(u8),
}

/// Offset and meaning of every character or stray byte.
fn decode(bytes: &[u8]) -> Vec<(usize, Piece)> {
    let mut at = 0;
    let mut pieces = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            pieces.push((at, Piece::Char(c)));
            at += c.len_utf8();
        }
        for b in chunk.invalid() {
            pieces.push((at, Piece::Byte(*b)));
            at += 1;
        }
    }
    pieces
}

/// Makes control characters visible, keeps spaces.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => '↵',
            '\t' => '⇥',
            '\r' => '␍',
            c if c.is_control() => '·',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use statescope_engine::protocol::TokenSource;

    fn token(bytes: &[u8]) -> TokenRecord {
        TokenRecord { position: 0, id: 0, source: TokenSource::Prompt, bytes: bytes.to_vec(), special: None }
    }

    #[test]
    fn split_characters_stay_bytes_until_complete() {
        let mut labels = Vec::new();
        let mut tokens = vec![token(b"ab"), token(&[0xe3, 0x81])];
        label_tokens(&mut labels, &tokens);
        assert_eq!(labels, ["ab", "‹e3 81›"]);
        tokens.push(token(&[0x82]));
        label_tokens(&mut labels, &tokens);
        assert_eq!(labels, ["ab", "あ", "…"]);
        tokens.push(token(&[0xff]));
        tokens.push(token(b" z"));
        label_tokens(&mut labels, &tokens);
        assert_eq!(labels, ["ab", "あ", "…", "‹ff›", " z"]);
    }

    #[test]
    fn one_byte_at_a_time_equals_all_at_once() {
        let text = "aé日本🙂b".as_bytes();
        let tokens: Vec<TokenRecord> = text.iter().map(|b| token(&[*b])).collect();
        let mut once = Vec::new();
        label_tokens(&mut once, &tokens);
        let mut grown = Vec::new();
        for n in 1..=tokens.len() {
            label_tokens(&mut grown, &tokens[..n]);
        }
        assert_eq!(once, grown);
        assert_eq!(once.iter().filter(|l| *l != "…").cloned().collect::<String>(), "aé日本🙂b");
    }
}
