//! Memory to work in, kept from one use to the next.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};

/// Bytes that a thread keeps; what comes back beyond them is freed.
const MOST: usize = 256 << 20;

thread_local! {
    /// By the number of binary digits of the length.
    static KEPT: RefCell<[Vec<Vec<f32>>; CLASSES]> = const { RefCell::new([const { Vec::new() }; CLASSES]) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

const CLASSES: usize = usize::BITS as usize + 1;

fn class(len: usize) -> usize {
    (usize::BITS - len.leading_zeros()) as usize
}

fn bytes(numbers: &[f32]) -> usize {
    size_of_val(numbers)
}

/// Numbers that will all be written before they are read: what they are at first is undefined (NaN in debug builds).
///
/// Fresh memory is cleared by the system and by the allocator, on one thread, and of a prompt of some hundred tokens that is a large part
/// of a layer's time. So it comes from what was dropped before, on the same thread.
#[derive(Debug)]
pub struct Room {
    /// At least `len`.
    numbers: Vec<f32>,
    len: usize,
}

impl Room {
    pub fn new(len: usize) -> Room {
        // Of as many digits the last, if it is large enough, or one of twice the length: to look for the best would take longer than some ops.
        let mut numbers = KEPT.with_borrow_mut(|kept| {
            let of_class = &mut kept[class(len)];
            let fits = of_class.last().is_some_and(|numbers| numbers.len() >= len);
            let found = if fits { of_class.pop() } else { kept.get_mut(class(len) + 1).and_then(Vec::pop) };
            found.unwrap_or_default()
        });
        BYTES.set(BYTES.get() - bytes(&numbers));
        if numbers.len() < len {
            numbers = vec![0.0; len];
        }
        let mut room = Room { numbers, len };
        if cfg!(debug_assertions) {
            room.fill(f32::NAN);
        }
        room
    }

    /// All zeros.
    pub fn zeros(len: usize) -> Room {
        Room::full(len, 0.0)
    }

    /// All `value`.
    pub fn full(len: usize, value: f32) -> Room {
        let mut room = Room::new(len);
        room.fill(value);
        room
    }
}

impl<'a> IntoIterator for &'a Room {
    type Item = &'a f32;
    type IntoIter = std::slice::Iter<'a, f32>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let numbers = std::mem::take(&mut self.numbers);
        // While a thread ends there is nobody to keep anything for.
        let _ = KEPT.try_with(|kept| {
            if BYTES.get() + bytes(&numbers) <= MOST {
                BYTES.set(BYTES.get() + bytes(&numbers));
                kept.borrow_mut()[class(numbers.len())].push(numbers);
            }
        });
    }
}

impl Clone for Room {
    fn clone(&self) -> Room {
        let mut room = Room::new(self.len);
        room.copy_from_slice(self);
        room
    }
}

impl Deref for Room {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.numbers[..self.len]
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.numbers[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dropped_is_used_again() {
        let place = |room: &Room| room.as_ptr();
        let (small, large) = (Room::new(1000), Room::new(5000));
        let places = (place(&small), place(&large));
        drop((small, large));
        // One of as many digits, and one of half the length.
        let (small, large) = (Room::zeros(900), Room::new(2500));
        assert_eq!((place(&small), place(&large)), places);
        assert!((small.len(), large.len()) == (900, 2500) && small.iter().all(|&x| x == 0.0));
        drop((small, large));
        let (larger, empty) = (Room::new(7000), Room::new(0));
        assert!(larger.len() == 7000 && empty.is_empty());
        drop(larger);
        assert!(BYTES.get() >= (1000 + 5000 + 7000) * size_of::<f32>());
    }
}
