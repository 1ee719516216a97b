//! Memory to work in, kept from one use to the next.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Bytes that a thread keeps; what comes back beyond them is freed.
const MOST: usize = 256 << 20;

thread_local! {
    static KEPT: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
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
        // The smallest that is large enough, or else the largest.
        let kept = KEPT.with_borrow_mut(|kept| {
            let fits = |i: &usize| (kept[*i].len() < len, kept[*i].len().abs_diff(len));
            (0..kept.len()).min_by_key(fits).map(|i| kept.swap_remove(i))
        });
        let mut numbers = kept.unwrap_or_default();
        if numbers.len() < len {
            // Nothing of it is worth copying.
            numbers.clear();
            numbers.resize(len, 0.0);
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
            let mut kept = kept.borrow_mut();
            let bytes: usize = kept.iter().chain([&numbers]).map(|n| n.capacity() * size_of::<f32>()).sum();
            if bytes <= MOST {
                kept.push(numbers);
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
        let (large, small) = (Room::new(4000), Room::zeros(900));
        assert_eq!((place(&small), place(&large)), places);
        assert!((large.len(), small.len()) == (4000, 900) && small.iter().all(|&x| x == 0.0));
        assert!(Room::new(0).is_empty());
    }
}
