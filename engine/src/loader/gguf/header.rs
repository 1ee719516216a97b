//! What stands before the numbers of a GGUF file: metadata, and where each tensor lies.
//!
//! candle has a reader too, but it turns each byte of an array into 32 and lets the last of two equal names win. Here arrays stay in
//! the file until somebody asks, and nothing is allocated that the file is not long enough for.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;

use super::blocks::Blocks;
use crate::loader::weights::{Located, Stored};

/// Longer names than any model has.
const MAX_NAME: usize = 1 << 10;
const MAX_DIMS: u32 = 4;

/// The header of a GGUF file, version 2 or 3.
pub struct Header<'a> {
    pub version: u32,
    metadata: HashMap<&'a str, Value<'a>>,
    /// In the order of the file; shapes as PyTorch has them, the longest stride first.
    pub tensors: Vec<Located>,
}

/// One value of the metadata.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// Any whole number.
    Whole(i128),
    Float(f64),
    Flag(bool),
    /// Not always UTF-8 in real files.
    Text(&'a [u8]),
    Array(Array<'a>),
}

/// Values of one kind, still as they lie in the file.
#[derive(Clone, Copy)]
pub struct Array<'a> {
    kind: Kind,
    len: usize,
    bytes: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unsigned(usize),
    Signed(usize),
    Float(usize),
    Flag,
    Text,
    Array,
}

impl Kind {
    fn of(code: u32) -> Result<Self, String> {
        Ok(match code {
            0 => Self::Unsigned(1),
            1 => Self::Signed(1),
            2 => Self::Unsigned(2),
            3 => Self::Signed(2),
            4 => Self::Unsigned(4),
            5 => Self::Signed(4),
            6 => Self::Float(4),
            7 => Self::Flag,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::Unsigned(8),
            11 => Self::Signed(8),
            12 => Self::Float(8),
            other => return Err(format!("its metadata has a value of the unknown kind {other}; {AGAIN}")),
        })
    }

    /// Bytes of one value at least.
    fn smallest(self) -> usize {
        match self {
            Self::Unsigned(size) | Self::Signed(size) | Self::Float(size) => size,
            Self::Flag => 1,
            Self::Text => 8,
            Self::Array => 12,
        }
    }
}

const AGAIN: &str = "the file is cut off or damaged, download it again";

/// Reads forward through the bytes of a file.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (taken, rest) =
            self.rest.split_at_checked(len).ok_or_else(|| format!("its header does not end; {AGAIN}"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes")))
    }

    /// A number of things that take `smallest` bytes each.
    fn count(&mut self, smallest: usize, what: &str) -> Result<usize, String> {
        let count = self.u64()?;
        let fits = usize::try_from(count).ok().filter(|&count| count <= self.rest.len() / smallest);
        fits.ok_or_else(|| format!("it says to hold {count} {what}, more than its bytes are enough for; {AGAIN}"))
    }

    fn text(&mut self) -> Result<&'a [u8], String> {
        let len = self.count(1, "bytes of text")?;
        self.take(len)
    }

    fn name(&mut self) -> Result<&'a str, String> {
        let text = self.text()?;
        let name = std::str::from_utf8(text).ok().filter(|name| name.len() <= MAX_NAME);
        name.ok_or_else(|| format!("a name in its header is no text; {AGAIN}"))
    }

    fn value(&mut self, kind: Kind) -> Result<Value<'a>, String> {
        Ok(match kind {
            Kind::Unsigned(size) => Value::Whole(i128::from(unsigned(self.take(size)?))),
            Kind::Signed(size) => {
                let unused = 64 - 8 * size as u32;
                Value::Whole(i128::from((unsigned(self.take(size)?) << unused) as i64 >> unused))
            }
            Kind::Float(4) => Value::Float(f64::from(f32::from_bits(self.u32()?))),
            Kind::Float(_) => Value::Float(f64::from_bits(self.u64()?)),
            Kind::Flag => Value::Flag(self.take(1)?[0] != 0),
            Kind::Text => Value::Text(self.text()?),
            Kind::Array => {
                let kind = Kind::of(self.u32()?)?;
                if kind == Kind::Array {
                    return Err("its metadata has lists within lists, which no model needs".to_owned());
                }
                let len = self.count(kind.smallest(), "values in a list")?;
                let start = self.rest;
                match kind {
                    Kind::Text => (0..len).try_for_each(|_| self.text().map(drop))?,
                    _ => drop(self.take(len * kind.smallest())?),
                }
                Value::Array(Array { kind, len, bytes: &start[..start.len() - self.rest.len()] })
            }
        })
    }
}

/// Up to eight little-endian bytes.
fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// In messages.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Text(text) => write!(f, "{:?}", String::from_utf8_lossy(&text[..text.len().min(80)])),
            Self::Array(array) => write!(f, "a list of {} values", array.len),
        }
    }
}

impl<'a> Array<'a> {
    pub fn len(&self) -> usize {
        self.len
    }

    /// The values one after another.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (mut reader, kind) = (Reader { rest: self.bytes }, self.kind);
        (0..self.len).map_while(move |_| reader.value(kind).ok())
    }
}

impl<'a> Value<'a> {
    pub fn text(&self) -> Option<&'a str> {
        if let Self::Text(text) = self { std::str::from_utf8(text).ok() } else { None }
    }

    pub fn size(&self) -> Option<u64> {
        if let Self::Whole(number) = self { u64::try_from(*number).ok() } else { None }
    }

    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Whole(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }
}

impl<'a> Header<'a> {
    /// Whether a file begins as a GGUF does.
    pub fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(b"GGUF")
    }

    /// Reads the header of a file.
    ///
    /// # Errors
    /// What is wrong with it, in words that say what to do.
    pub fn read(bytes: &'a [u8]) -> Result<Self, String> {
        if !Self::begins(bytes) {
            return Err("it does not begin as a GGUF file does".to_owned());
        }
        let mut reader = Reader { rest: &bytes[4..] };
        let version = reader.u32()?;
        if !(2..=3).contains(&version) {
            let why = if version.swap_bytes() <= 3 { "big-endian, or damaged" } else { "too old or too new" };
            return Err(format!("it is a GGUF file of version {version}, {why}: expected version 2 or 3"));
        }
        let tensors = reader.u64()?;
        let values = reader.count(13, "values of metadata")?;
        let mut metadata = HashMap::new();
        for _ in 0..values {
            let name = reader.name()?;
            let kind = Kind::of(reader.u32()?)?;
            let value = reader.value(kind)?;
            if metadata.insert(name, value).is_some() {
                return Err(format!("its metadata has {name} twice; {AGAIN}"));
            }
        }
        if reader.rest.len() as u64 / 24 < tensors {
            return Err(format!("it says to hold {tensors} tensors, more than its bytes are enough for; {AGAIN}"));
        }
        let infos = (0..tensors).map(|_| Info::read(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(value) => value
                .size()
                .filter(|size| size.is_power_of_two() && (8..=1 << 20).contains(size))
                .ok_or_else(|| format!("its alignment is {value}, expected a power of two from 8; {AGAIN}"))?,
        };
        let start = ((bytes.len() - reader.rest.len()) as u64).next_multiple_of(alignment);
        let mut located = Vec::with_capacity(infos.len());
        for info in infos {
            located.push(info.locate(start, alignment, bytes.len())?);
        }
        refuse_overlaps(&located)?;
        Ok(Self { version, metadata, tensors: located })
    }

    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.metadata.get(key).copied()
    }

    pub fn tensor(&self, name: &str) -> Option<&Located> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// A tensor as the header describes it.
struct Info<'a> {
    name: &'a str,
    shape: Vec<usize>,
    stored: Stored,
    offset: u64,
}

impl<'a> Info<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, String> {
        let name = reader.name()?;
        let dims = reader.u32()?;
        if dims > MAX_DIMS {
            return Err(format!("tensor {name} has {dims} dimensions, expected at most {MAX_DIMS}; {AGAIN}"));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            let size = reader.u64()?;
            let size = usize::try_from(size).map_err(|_| format!("tensor {name} has a size of {size}; {AGAIN}"))?;
            // The file has the shortest stride first.
            shape.insert(0, size);
        }
        let stored = stored(reader.u32()?).map_err(|kind| {
            format!(
                "tensor {name} is stored as {kind}, which is not supported: expected F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or a \
                 K-quant"
            )
        })?;
        Ok(Self { name, shape, stored, offset: reader.u64()? })
    }

    fn locate(self, start: u64, alignment: u64, file_len: usize) -> Result<Located, String> {
        let Self { name, shape, stored, offset } = self;
        if !offset.is_multiple_of(alignment) {
            return Err(format!("tensor {name} does not lie at a multiple of {alignment} bytes; {AGAIN}"));
        }
        let count = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let row = shape.last().copied().unwrap_or(1);
        let Some(len) = count.and_then(|count| stored.bytes(count, row)) else {
            return Err(format!("the size of tensor {name}, {shape:?}, fits no {stored}; {AGAIN}"));
        };
        let range = start.checked_add(offset).and_then(|start| {
            let start = usize::try_from(start).ok()?;
            Some(Range { start, end: start.checked_add(len)? }).filter(|range| range.end <= file_len)
        });
        let range = range.ok_or_else(|| format!("tensor {name} lies beyond the end of the file; {AGAIN}"))?;
        Ok(Located { name: name.to_owned(), stored, shape, file: 0, range })
    }
}

fn stored(code: u32) -> Result<Stored, String> {
    Ok(match code {
        0 => Stored::Plain(Dtype::F32),
        1 => Stored::Plain(Dtype::F16),
        30 => Stored::Plain(Dtype::BF16),
        // Whole numbers: of no use to a model, which the reader of the tensor says.
        24 => Stored::Plain(Dtype::I8),
        25 => Stored::Plain(Dtype::I16),
        26 => Stored::Plain(Dtype::I32),
        27 => Stored::Plain(Dtype::I64),
        28 => Stored::Plain(Dtype::F64),
        other => Stored::Blocks(Blocks::of(other).ok_or_else(|| super::blocks::name(other))?),
    })
}

/// Two tensors in one place would be one of them read as the other.
fn refuse_overlaps(tensors: &[Located]) -> Result<(), String> {
    let mut by_place: Vec<&Located> = tensors.iter().collect();
    by_place.sort_by_key(|tensor| tensor.range.start);
    match by_place.windows(2).find(|pair| pair[1].range.start < pair[0].range.end) {
        Some(pair) => Err(format!("tensors {} and {} lie in the same place; {AGAIN}", pair[0].name, pair[1].name)),
        None => Ok(()),
    }
}
