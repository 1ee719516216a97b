//! A growing list of numbers. What comes a token at a time is appended as to any list; what comes a prompt at a time is copied by all threads, into
//! memory that the system hands out as it is touched: one thread alone would take longer for that than a GPU takes to make them.

use std::ops::Deref;

use statescope_kernels::par;

/// Numbers from which on all threads copy, and what one copies at a time.
const MANY: usize = 1 << 18;
const PIECE: usize = 1 << 16;

/// Numbers of a page of memory.
const PAGE: usize = 1024;

/// The numbers that are there, and zeros that wait to be overwritten.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    room: Vec<f32>,
    len: usize,
    /// How far the room has been touched ahead of its use.
    warm: usize,
}

impl Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.room[..self.len]
    }
}

fn copy(to: &mut [f32], from: &[f32]) {
    if from.len() < MANY {
        return to.copy_from_slice(from);
    }
    par::for_each(to.chunks_mut(PIECE).zip(from.chunks(PIECE)), from.len(), |(to, from)| to.copy_from_slice(from));
}

impl Numbers {
    /// Whether `count` more need no more room.
    pub(super) fn has_room(&self, count: usize) -> bool {
        self.len + count <= self.room.len()
    }

    /// Room for `count` in all. Fresh zeros are not touched before they are overwritten.
    pub(super) fn make_room(&mut self, count: usize) {
        let mut room = vec![0.0; count];
        copy(&mut room[..self.len], self);
        self.room = room;
        self.warm = 0;
    }

    /// Touches memory for `count` more numbers that was not touched yet, `most` of them at once. Says whether more is to be done.
    pub(super) fn warm(&mut self, count: usize, most: usize) -> bool {
        let (from, wanted) = (self.warm.max(self.len), (self.len + count).min(self.room.len()));
        let end = wanted.min(from + most);
        (from..end).step_by(PAGE).for_each(|at| self.room[at] = 0.0);
        self.warm = end.max(from);
        end < wanted
    }

    /// Appends; what has no room is given twice of what it takes.
    pub(super) fn extend(&mut self, values: &[f32]) {
        let end = self.len + values.len();
        if end > self.room.len() {
            self.make_room(2 * end);
        }
        copy(&mut self.room[self.len..end], values);
        self.len = end;
    }

    /// Touches the memory that `count` more will be copied to: the first time takes longer than the copy.
    pub(super) fn touch(&mut self, count: usize) {
        let (there, end) = (self.room.len(), self.len + count);
        self.room[self.len..end.min(there)].fill(0.0);
        self.room.resize(there.max(end), 0.0);
    }

    /// Keeps the first `len`, and the room.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(super) fn drop_first(&mut self, count: usize) {
        let mut at = 0;
        while count > 0 && at + count < self.len {
            // What is moved and where it goes do not overlap.
            let (to, from) = self.room[at..self.len].split_at_mut(count);
            let piece = from.len().min(count);
            copy(&mut to[..piece], &from[..piece]);
            at += piece;
        }
        self.len -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_short_pieces_are_a_list() {
        let (mut ours, mut list) = (Numbers::default(), Vec::new());
        let value = |i: usize| (i % 8191) as f32;
        for (count, kept, dropped) in [
            (3, 3, 0),
            (MANY, MANY, 5),
            (7, MANY, 0),
            (2 * MANY + 1, 3 * MANY, MANY),
            (9, 2 * MANY, 2 * MANY),
            (4, 4, 4),
        ] {
            let values: Vec<f32> = (list.len()..list.len() + count).map(value).collect();
            ours.extend(&values);
            list.extend_from_slice(&values);
            ours.truncate(kept);
            list.truncate(kept);
            ours.drop_first(dropped);
            list.drain(..dropped);
            while ours.warm(9, 5) {}
            assert!(*ours == *list, "{count}, {kept}, {dropped}");
        }
    }
}
