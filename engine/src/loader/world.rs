//! RWKV's world vocabulary: byte strings, of which a text takes the longest that fits, from left to right. No merges, no pre-tokenizer.
//!
//! Its file has one entry a line: id, a Python literal (`'…'`, `"…"`, or `b'…'` for bytes that are no text), and the length in bytes.

use std::collections::HashMap;

use crate::protocol::TokenId;

/// More entries, and longer ones, than the vocabulary has.
const MAX_ID: TokenId = 1 << 20;
const MAX_PIECE: usize = 1 << 12;

/// What its file is called in a model's folder.
pub const FILES: [&str; 2] = ["rwkv_vocab_v20230424.txt", "rwkv_vocab.txt"];

/// Byte strings in a trie.
pub struct World {
    /// By node and byte: the next node. Node 0 is the root.
    edges: HashMap<(u32, u8), u32>,
    /// By node: the token that ends there.
    tokens: Vec<Option<TokenId>>,
    /// By id; empty for ids without an entry, among them 0, the end of text.
    pieces: Vec<Vec<u8>>,
}

impl World {
    /// From the text of a vocabulary file.
    ///
    /// # Errors
    /// A line that is no entry, by its number.
    pub fn from_file(text: &str) -> Result<Self, String> {
        let mut world = Self::empty();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let entry = || -> Option<(TokenId, Vec<u8>)> {
                let (id, rest) = line.split_once(' ')?;
                let (literal, len) = rest.rsplit_once(' ')?;
                let bytes = python_literal(literal)?;
                (bytes.len() == len.trim().parse::<usize>().ok()?).then_some((id.parse().ok()?, bytes))
            };
            let expected = "expected an id, a quoted string and its length in bytes";
            let (id, bytes) = entry().ok_or_else(|| format!("line {} is no entry: {expected}", number + 1))?;
            world.insert(id, bytes)?;
        }
        world.complete()
    }

    /// From tokens by id with their bytes escaped as in Python, which is how GGUF keeps them.
    ///
    /// # Errors
    /// An escape that is none.
    pub fn from_escaped(tokens: &[&[u8]]) -> Result<Self, String> {
        let mut world = Self::empty();
        for (id, token) in tokens.iter().enumerate().skip(1) {
            let bytes =
                unescaped(token, true).ok_or_else(|| format!("token {id} of its vocabulary is not spelled right"))?;
            // What fills up the vocabulary.
            if !token.starts_with(b"[PAD") && !bytes.is_empty() {
                world.insert(id as TokenId, bytes)?;
            }
        }
        world.complete()
    }

    fn empty() -> Self {
        Self { edges: HashMap::new(), tokens: vec![None], pieces: vec![Vec::new()] }
    }

    fn insert(&mut self, id: TokenId, bytes: Vec<u8>) -> Result<(), String> {
        if id == 0 || id > MAX_ID || bytes.is_empty() || bytes.len() > MAX_PIECE {
            return Err(format!("entry {id} of {} bytes is none of a world vocabulary", bytes.len()));
        }
        let mut node = 0;
        for &byte in &bytes {
            let next = self.tokens.len() as u32;
            node = *self.edges.entry((node, byte)).or_insert(next);
            if node == next {
                self.tokens.push(None);
            }
        }
        if self.tokens[node as usize].replace(id).is_some() {
            return Err(format!("entry {id} is there twice"));
        }
        let id = id as usize;
        if self.pieces.len() <= id {
            self.pieces.resize(id + 1, Vec::new());
        }
        if !std::mem::replace(&mut self.pieces[id], bytes).is_empty() {
            return Err(format!("id {id} is there twice"));
        }
        Ok(())
    }

    /// With all single bytes, any text can be spelled.
    fn complete(self) -> Result<Self, String> {
        let missing = (0..=u8::MAX)
            .find(|&byte| self.edges.get(&(0, byte)).is_none_or(|&node| self.tokens[node as usize].is_none()));
        match missing {
            Some(byte) => Err(format!("the byte {byte} has no entry, so some texts could not be spelled")),
            None => Ok(self),
        }
    }

    /// The longest pieces that fit, from left to right.
    pub fn encode(&self, text: &str) -> Vec<TokenId> {
        let (bytes, mut at, mut ids) = (text.as_bytes(), 0, Vec::new());
        while at < bytes.len() {
            let (mut node, mut found) = (0, None);
            for (len, &byte) in bytes[at..].iter().enumerate() {
                let Some(&next) = self.edges.get(&(node, byte)) else { break };
                node = next;
                found = self.tokens[node as usize].map(|id| (id, len + 1)).or(found);
            }
            let (id, len) = found.expect("every byte has an entry");
            ids.push(id);
            at += len;
        }
        ids
    }

    /// The bytes of each token, by id.
    pub fn pieces(&self) -> &[Vec<u8>] {
        &self.pieces
    }
}

/// The bytes of `'…'`, `"…"` or `b'…'`.
fn python_literal(literal: &str) -> Option<Vec<u8>> {
    let (raw, quoted) = match literal.strip_prefix('b') {
        Some(quoted) => (true, quoted),
        None => (false, literal),
    };
    let quote = quoted.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let within = quoted.strip_prefix(quote)?.strip_suffix(quote)?;
    unescaped(within.as_bytes(), raw)
}

/// Text with Python's escapes resolved. `\xNN` is a byte where `raw`, else the character of that number.
fn unescaped(text: &[u8], raw: bool) -> Option<Vec<u8>> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let (&escape, after) = rest.split_first()?;
        rest = after;
        let digits = match escape {
            b'n' => {
                out.push(b'\n');
                0
            }
            b't' => {
                out.push(b'\t');
                0
            }
            b'r' => {
                out.push(b'\r');
                0
            }
            b'\\' | b'\'' | b'"' => {
                out.push(escape);
                0
            }
            b'x' => 2,
            b'u' if !raw => 4,
            b'U' if !raw => 8,
            _ => return None,
        };
        if digits > 0 {
            let (hex, after) = rest.split_at_checked(digits)?;
            rest = after;
            if !hex.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            let number = u32::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?;
            match raw {
                true => out.push(u8::try_from(number).ok()?),
                false => out.extend(char::from_u32(number)?.to_string().as_bytes()),
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All bytes, and a few longer entries: what the published file looks like.
    fn file() -> String {
        let byte = |byte: u8| match byte {
            b'\n' => "'\\n'".to_owned(),
            b'\'' => "\"'\"".to_owned(),
            b'\\' => "'\\\\'".to_owned(),
            0x20..=0x7E => format!("'{}'", char::from(byte)),
            0x00..=0x7F => format!("'\\x{byte:02x}'"),
            _ => format!("b'\\x{byte:02x}'"),
        };
        let mut lines: Vec<String> = (0..=u8::MAX).map(|b| format!("{} {} 1", u32::from(b) + 1, byte(b))).collect();
        let more = ["257 'th' 2", "258 'the' 3", "259 ' the' 4", "260 'é' 2", "261 '\\u4e2d' 3", "262 b'\\xe4\\xb8' 2"];
        lines.extend(more.iter().map(|line| (*line).to_owned()));
        lines.join("\n") + "\n"
    }

    #[test]
    fn the_longest_piece_wins() {
        let world = World::from_file(&file()).unwrap();
        assert_eq!(world.encode("the the"), [258, 259]);
        assert_eq!(world.encode("tha"), [257, u32::from(b'a') + 1]);
        assert_eq!(world.encode("é中丮"), [260, 261, 262, 0xAE + 1]);
        assert_eq!(world.encode(""), [0; 0]);
        for text in ["a 'quoted' \\ text\n\t\u{7f}\u{0}", "👩‍🚀 中文", "the"] {
            let bytes: Vec<u8> =
                world.encode(text).iter().flat_map(|&id| world.pieces()[id as usize].clone()).collect();
            assert_eq!(bytes, text.as_bytes());
        }
    }

    /// As the `rwkv` package of PyPI (0.8.32), which ships the vocabulary, encodes it: `RWKV_VOCAB=…/rwkv_vocab_v20230424.txt cargo test …`.
    #[test]
    #[ignore = "needs the published vocabulary"]
    fn the_published_vocabulary() {
        let path = std::env::var("RWKV_VOCAB").expect("RWKV_VOCAB names the file");
        let world = World::from_file(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(world.pieces().len(), 65_530);
        let text = "The quick brown fox's 12,345 jumps:\n\n    return x  # 中文 Ελλάδα 👩\u{200d}🚀\t\"ﬁn\"\r\n";
        let expected = [
            6699, 39418, 37917, 21704, 460, 3485, 45, 654, 54, 38828, 59, 36208, 42178, 355, 267, 36, 33, 10285, 13012,
            5022, 27812, 2717, 2724, 2721, 33, 3319, 146, 170, 9810, 3319, 155, 129, 10, 35, 19102, 111, 35, 263,
        ];
        assert_eq!(world.encode(text), expected);
    }

    #[test]
    fn damaged_files_are_refused() {
        let refusal = |text: &str| World::from_file(text).err().unwrap();
        assert!(refusal("").contains("byte 0"));
        assert!(refusal(&file().replace("257 'th' 2", "257 'th' 3")).contains("line 257"));
        assert!(refusal(&file().replace("257 'th' 2", "x 'th' 2")).contains("line 257"));
        assert!(refusal(&file().replace("257 'th' 2", "257 th 2")).contains("line 257"));
        assert!(refusal(&file().replace("257 'th' 2", "258 'th' 2")).contains("twice"));
        assert!(refusal(&file().replace("257 'th' 2", "257 'a' 1")).contains("twice"));
        assert!(refusal(&file().replace("257 'th' 2", "4000000000 'th' 2")).contains("none of"));
        assert!(refusal(&file().replace("257 'th' 2", "257 '\\xg0' 1")).contains("line 257"));
    }
}
