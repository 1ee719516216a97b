//! Memory to work in, kept from one use to the next.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};

/// Bytes that a thread keeps; what comes back beyond them is freed.
const MOST: usize = 512 << 20;

thread_local! {
    /// By class of length.
    static KEPT: RefCell<[Vec<Vec<f32>>; CLASSES]> = const { RefCell::new([const { Vec::new() }; CLASSES]) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Lengths are rounded up to quarters of the way to the next power of two, so that any room of a class serves all that ask for one.
const QUARTERS: usize = 4;
const CLASSES: usize = usize::BITS as usize * QUARTERS;
/// How many classes up what is found still serves: it is at most twice as long.
const LARGER: usize = QUARTERS;

/// The class of rooms for `len` numbers, and how many they have.
fn class(len: usize) -> (usize, usize) {
    let len = len.max(2 * QUARTERS);
    // It lies above `power` and is at most twice as much.
    let power = len.next_power_of_two() / 2;
    let quarter = power / QUARTERS;
    let quarters = len.div_ceil(quarter);
    (power.ilog2() as usize * QUARTERS + quarters - QUARTERS - 1, quarters * quarter)
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
    /// As many as a room of its class has.
    numbers: Vec<f32>,
    len: usize,
}

impl Room {
    pub fn new(len: usize) -> Room {
        if len == 0 {
            return Room { numbers: Vec::new(), len };
        }
        let (class, most) = class(len);
        let mut numbers = KEPT.with_borrow_mut(|kept| {
            let mut served = kept[class..].iter_mut().take(1 + LARGER);
            served.find_map(Vec::pop).unwrap_or_default()
        });
        BYTES.set(BYTES.get() - bytes(&numbers));
        if numbers.is_empty() {
            numbers = vec![0.0; most];
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
        if numbers.is_empty() {
            return;
        }
        // While a thread ends there is nobody to keep anything for.
        let _ = KEPT.try_with(|kept| {
            if BYTES.get() + bytes(&numbers) <= MOST {
                BYTES.set(BYTES.get() + bytes(&numbers));
                let (class, _) = class(numbers.len());
                kept.borrow_mut()[class].push(numbers);
            }
        });
    }
}

impl Default for Room {
    fn default() -> Room {
        Room::new(0)
    }
}

impl PartialEq for Room {
    fn eq(&self, other: &Room) -> bool {
        self[..] == other[..]
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
        // One of the same class, and one of three fifths of the length.
        let (small, large) = (Room::zeros(900), Room::new(3000));
        assert_eq!((place(&small), place(&large)), places);
        assert!((small.len(), large.len()) == (900, 3000) && small.iter().all(|&x| x == 0.0));
        drop((small, large));
        let (larger, empty) = (Room::new(7000), Room::new(0));
        assert!(larger.len() == 7000 && empty.is_empty());
        drop(larger);
        assert!(BYTES.get() >= (1000 + 5000 + 7000) * size_of::<f32>());
    }

    #[test]
    fn rooms_of_a_class_serve_all_of_it() {
        for len in (1..3000).chain([1 << 20, (1 << 20) + 1, 3 << 40]) {
            let (of, most) = class(len);
            assert!(most >= len && (most <= len + len / 4 + 1 || len < 8), "{len}: {most}");
            assert_eq!(class(most), (of, most), "{len}");
            assert!(class(most + 1).0 == of + 1 && of < CLASSES, "{len}");
        }
    }
}
