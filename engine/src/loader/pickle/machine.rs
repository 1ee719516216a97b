//! The stack machine of pickle, without its calls.

use std::collections::HashMap;
use std::rc::Rc;

/// More values than a dictionary of tensors has.
const MAX_VALUES: usize = 1 << 21;
/// Longer names of storages, and more sizes, than any tensor has. Both may be shared by many tensors, so that a copy for each would take
/// far more room than the program.
const MAX_NAME: usize = 256;
const MAX_DIMS: usize = 8;

/// A tensor as the program describes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Saved {
    pub name: Rc<str>,
    /// `FloatStorage` and so on.
    pub kind: Rc<str>,
    /// Which storage holds its numbers.
    pub storage: Rc<str>,
    pub shape: Vec<usize>,
    /// In numbers, as many as sizes.
    pub strides: Vec<usize>,
    /// In numbers, from the start of the storage.
    pub offset: usize,
}

/// Index of a value; values are never copied, so what shares a value or holds itself takes no more room.
type Id = usize;

enum Value {
    /// None, a float, a set: nothing that describes a tensor.
    Other,
    Whole(i64),
    Text(Rc<str>),
    /// A class or function by module and name, both texts.
    Global(Id, Id),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// What the pickle says is stored outside it.
    Stored(Id),
    /// A tensor: the arguments of the function that would make it.
    Tensor(Id),
    /// A parameter: the arguments, of which the first is a tensor.
    Parameter(Id),
}

/// Reads forward through the program.
struct Program<'a>(&'a [u8]);

impl<'a> Program<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or("it is cut off")?;
        self.0 = rest;
        Ok(taken)
    }

    /// A little-endian number of `size` ≤ 8 bytes.
    fn number(&mut self, size: usize) -> Result<u64, String> {
        Ok(self.take(size)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn text(&mut self, size: usize) -> Result<Value, String> {
        let len = usize::try_from(self.number(size)?).map_err(|_| "a text is too long")?;
        Ok(Value::Text(String::from_utf8_lossy(self.take(len)?).into()))
    }

    fn line(&mut self) -> Result<Value, String> {
        let len = self.0.iter().position(|&byte| byte == b'\n').ok_or("it is cut off")?;
        let line = String::from_utf8_lossy(self.take(len)?).into();
        self.take(1)?;
        Ok(Value::Text(line))
    }
}

#[derive(Default)]
struct Machine {
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

/// The tensors of the dictionary that the program makes, in its order.
///
/// # Errors
/// Anything that a dictionary of tensors does not need, in few words.
pub fn run(program: &[u8]) -> Result<Vec<Saved>, String> {
    let (mut machine, mut program) = (Machine::default(), Program(program));
    while machine.step(&mut program)? {}
    let top = machine.pop()?;
    let Value::Dict(entries) = &machine.values[top] else { return Err("it makes something else".to_owned()) };
    // The last entry of a name counts.
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (place, (key, _)) in entries.iter().enumerate() {
        if let Value::Text(name) = &machine.values[*key] {
            places.insert(name, place);
        }
    }
    let mut tensors = Vec::new();
    for (place, &(key, value)) in entries.iter().enumerate() {
        let Value::Text(name) = &machine.values[key] else { continue };
        if places.get(&**name) != Some(&place) {
            continue;
        }
        let arguments = match machine.values[value] {
            Value::Tensor(arguments) => arguments,
            Value::Parameter(arguments) => {
                let inner = machine.tuple(arguments).and_then(|parts| Some(&machine.values[*parts.first()?]));
                let Some(Value::Tensor(arguments)) = inner else { return Err(format!("{name} is no tensor")) };
                *arguments
            }
            _ => continue,
        };
        tensors.push(machine.saved(name, arguments).ok_or_else(|| format!("{name} is no tensor"))?);
    }
    Ok(tensors)
}

impl Machine {
    /// One instruction; false for the last.
    fn step(&mut self, program: &mut Program<'_>) -> Result<bool, String> {
        let code = program.number(1)? as u8;
        match code {
            b'.' => return Ok(false),
            // Protocol and frames.
            0x80 => drop(program.take(1)?),
            0x95 => drop(program.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'N' => self.push(Value::Other)?,
            0x88 => self.push(Value::Whole(1))?,
            0x89 => self.push(Value::Whole(0))?,
            b'K' => self.whole(program, 1)?,
            b'M' => self.whole(program, 2)?,
            b'J' => {
                let number = program.number(4)? as u32 as i32;
                self.push(Value::Whole(i64::from(number)))?;
            }
            0x8A => {
                let len = program.number(1)? as usize;
                let bytes = program.take(len)?;
                // Sign-extended; no size of a tensor takes more than eight bytes.
                let fill = if bytes.last().is_some_and(|&byte| byte >= 0x80) { u64::MAX } else { 0 };
                let number = bytes.iter().rev().fold(fill, |number, &byte| number << 8 | u64::from(byte)) as i64;
                self.push(if len <= 8 { Value::Whole(number) } else { Value::Other })?;
            }
            b'G' => {
                program.take(8)?;
                self.push(Value::Other)?;
            }
            b'X' => self.text(program, 4)?,
            0x8C => self.text(program, 1)?,
            0x8D => self.text(program, 8)?,
            b'c' => {
                let (module, name) = (self.store(program.line()?)?, self.store(program.line()?)?);
                self.push(Value::Global(module, name))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                self.push(Value::Global(module, name))?;
            }
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b't' => {
                let parts = self.pop_to_mark()?;
                self.push(Value::Tuple(parts))?;
            }
            0x85..=0x87 => {
                let count = usize::from(code - 0x84);
                let parts = self.pop_from(self.stack.len().checked_sub(count).ok_or("its stack is empty")?)?;
                self.push(Value::Tuple(parts))?;
            }
            b'l' => {
                let parts = self.pop_to_mark()?;
                self.push(Value::List(parts))?;
            }
            b'd' => {
                let parts = self.pop_to_mark()?;
                self.push(Value::Dict(pairs(&parts)?))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.extend(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![(key, value)])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(pairs(&items)?)?;
            }
            b'q' => self.keep(program, 1)?,
            b'r' => self.keep(program, 4)?,
            0x94 => {
                let place = self.memo.len() as u64;
                self.memo.insert(place, self.top()?);
            }
            b'h' => self.recall(program, 1)?,
            b'j' => self.recall(program, 4)?,
            b'Q' => {
                let what = self.pop()?;
                self.push(Value::Stored(what))?;
            }
            b'R' => self.call()?,
            // The state of an object: the versions that torch notes beside the tensors.
            b'b' => drop(self.pop()?),
            other => return Err(format!("it has the instruction {other:#04x}")),
        }
        Ok(true)
    }

    /// What a function would be called for; only what makes dictionaries and tensors is known.
    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Some([module, name]) = self.global(function) else {
            return Err("it calls what is no function".to_owned());
        };
        let made = match (&**module, &**name) {
            ("collections", "OrderedDict") => Value::Dict(Vec::new()),
            ("torch._utils", "_rebuild_tensor_v2") => Value::Tensor(arguments),
            ("torch._utils", "_rebuild_parameter") => Value::Parameter(arguments),
            (module, name) => {
                let called: String = format!("{module}.{name}").chars().take(MAX_NAME).collect();
                return Err(format!("it calls {called}, which is not done here"));
            }
        };
        self.push(made)
    }

    fn store(&mut self, value: Value) -> Result<Id, String> {
        if self.values.len() == MAX_VALUES {
            return Err(format!("it makes more than {MAX_VALUES} values"));
        }
        self.values.push(value);
        Ok(self.values.len() - 1)
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        let id = self.store(value)?;
        self.stack.push(id);
        Ok(())
    }

    fn whole(&mut self, program: &mut Program<'_>, size: usize) -> Result<(), String> {
        let number = program.number(size)?;
        self.push(Value::Whole(number as i64))
    }

    fn text(&mut self, program: &mut Program<'_>, size: usize) -> Result<(), String> {
        let text = program.text(size)?;
        self.push(text)
    }

    fn keep(&mut self, program: &mut Program<'_>, size: usize) -> Result<(), String> {
        let place = program.number(size)?;
        self.memo.insert(place, self.top()?);
        Ok(())
    }

    fn recall(&mut self, program: &mut Program<'_>, size: usize) -> Result<(), String> {
        let place = program.number(size)?;
        self.stack.push(*self.memo.get(&place).ok_or("it recalls what it has not kept")?);
        Ok(())
    }

    /// Never below the last mark.
    fn pop(&mut self) -> Result<Id, String> {
        if self.marks.last().is_some_and(|&mark| mark >= self.stack.len()) {
            return Err("its stack is empty".to_owned());
        }
        self.stack.pop().ok_or_else(|| "its stack is empty".to_owned())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "its stack is empty".to_owned())
    }

    fn pop_from(&mut self, height: usize) -> Result<Vec<Id>, String> {
        if self.marks.last().is_some_and(|&mark| mark > height) {
            return Err("its stack is empty".to_owned());
        }
        Ok(self.stack.split_off(height))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        self.pop_from(mark)
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<(), String> {
        let list = self.top()?;
        match &mut self.values[list] {
            Value::List(list) => list.extend(items),
            _ => return Err("it appends to what is no list".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<(Id, Id)>) -> Result<(), String> {
        let dict = self.top()?;
        match &mut self.values[dict] {
            Value::Dict(dict) => dict.extend(items),
            _ => return Err("it sets an entry of what is no dictionary".to_owned()),
        }
        Ok(())
    }

    fn global(&self, id: Id) -> Option<[&Rc<str>; 2]> {
        let Value::Global(module, name) = self.values[id] else { return None };
        let (Value::Text(module), Value::Text(name)) = (&self.values[module], &self.values[name]) else { return None };
        Some([module, name])
    }

    fn tuple(&self, id: Id) -> Option<&[Id]> {
        if let Value::Tuple(parts) = &self.values[id] { Some(parts) } else { None }
    }

    fn size(&self, id: Id) -> Option<usize> {
        if let Value::Whole(number) = self.values[id] { usize::try_from(number).ok() } else { None }
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        self.tuple(id).filter(|sizes| sizes.len() <= MAX_DIMS)?.iter().map(|&size| self.size(size)).collect()
    }

    /// From storage, offset, sizes and strides; a storage is ("storage", its class, its key, where it was, its length).
    fn saved(&self, name: &Rc<str>, arguments: Id) -> Option<Saved> {
        let [storage, offset, shape, strides, ..] = *self.tuple(arguments)? else { return None };
        let Value::Stored(storage) = self.values[storage] else { return None };
        let [_, class, key, ..] = *self.tuple(storage)? else { return None };
        let (Some([_, kind]), Value::Text(key)) = (self.global(class), &self.values[key]) else { return None };
        if kind.len() > MAX_NAME || key.len() > MAX_NAME {
            return None;
        }
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        let saved = Saved {
            name: name.clone(),
            kind: kind.clone(),
            storage: key.clone(),
            offset: self.size(offset)?,
            shape,
            strides,
        };
        (saved.shape.len() == saved.strides.len()).then_some(saved)
    }
}

/// Keys and values in turn.
fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    } else {
        Err("a value is missing".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(program: &[u8]) -> String {
        run(program).unwrap_err()
    }

    #[test]
    fn a_dictionary_of_tensors() {
        let mut program =
            b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
                .to_vec();
        program.extend(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ");
        program.extend(b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtRX\x01\x00\x00\x00nK\x05u}X\x01\x00\x00\x00vK\x01sb.");
        let expected = Saved {
            name: "w".into(),
            kind: "FloatStorage".into(),
            storage: "0".into(),
            shape: vec![2, 3],
            strides: vec![3, 1],
            offset: 0,
        };
        assert_eq!(run(&program).unwrap(), [expected]);
        for len in 0..program.len() {
            refusal(&program[..len]);
        }
    }

    #[test]
    fn nothing_is_called() {
        assert!(refusal(b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R.").contains("os.system"));
        assert!(refusal(b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93X\x01\x00\x00\x00x\x85R.").contains("builtins.exec"));
    }

    /// Doubling a list at each step would take 2^400 entries, and one inside another would nest too deep to be let go of.
    #[test]
    fn values_are_shared() {
        let mut program = b"]q\x00".to_vec();
        for _ in 0..200 {
            program.extend(b"(h\x00h\x00lq\x00");
        }
        program.push(b'.');
        assert!(refusal(&program).contains("something else"));
        let mut nested = vec![b'N'];
        nested.extend(std::iter::repeat_n(0x85, 1_000_000));
        nested.push(b'.');
        assert!(refusal(&nested).contains("something else"));
        // A list that holds itself.
        assert!(refusal(b"]q\x00h\x00a.").contains("something else"));
    }

    #[test]
    fn lengths_beyond_the_end() {
        assert!(refusal(b"X\xff\xff\xff\xff.").contains("cut off"));
        assert!(refusal(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.").contains("cut off"));
        assert!(refusal(b"\x8a\xff.").contains("cut off"));
        assert!(refusal(b"t.").contains("mark"));
        assert!(refusal(b"(\x85.").contains("empty"));
        assert!(refusal(b"h\x07.").contains("recalls"));
        assert!(refusal(b"").contains("cut off"));
    }
}
