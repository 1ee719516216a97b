//! The record of a run: per layer and token the small quantities (Δ, keys, queries, values, gates, outputs) from which every
//! series, gate, state and mixing matrix is derived later, without running the model again.
//!
//! It is bounded. Where copying costs (a GPU), layers out of sight are not recorded, or only how strongly they write. Else layers that
//! nobody looks at go first; a layer that is looked at later is refilled by replay. When even the
//! layers in sight do not fit, their oldest tokens go, and what depended on them is unknown (NaN), which is said.

mod numbers;

use std::ops::Range;

use numbers::Numbers;
use statescope_kernels::mixing::Strided;

use crate::hooks::{Depth, Observer};
use crate::protocol::Point;

/// Tokens that columns have room for at most before the record is that long. Room costs nothing until it is used, and to move all columns of
/// all layers when they grow is a hitch that one sees.
const AHEAD: usize = 1 << 15;
const AHEAD_BYTES: usize = 4 << 30;
/// Tokens that memory is touched for while nothing else is to be done, and bytes at most: a run that begins then need not wait for the system to
/// find it, which takes some systems longer than the model.
const WARM: usize = 1024;
const WARM_BYTES: usize = 64 << 20;
/// Of that, numbers of a column at once.
const PIECE: usize = 1 << 15;

/// The recorded rows of one quantity, `[tokens, width]`.
#[derive(Clone, Debug, Default)]
struct Column {
    width: usize,
    values: Numbers,
}

/// What is recorded of one mixer, and with a layer's first one of the layer itself: consecutive tokens from `first`.
#[derive(Clone, Debug, Default)]
pub struct LayerTape {
    first: usize,
    columns: Vec<(Point, Column)>,
}

impl LayerTape {
    /// Absolute positions recorded.
    pub fn positions(&self) -> Range<usize> {
        // The last quantity that a layer shows is Resid, and its further mixers Out, so a token counts once all of it is there.
        let last = self.column(Point::Resid).or_else(|| self.column(Point::Out)).or_else(|| self.column(Point::Write));
        let rows = last.map_or(0, |c| c.values.len() / c.width.max(1));
        self.first..self.first + rows
    }

    /// The row of `point` at an absolute `position`, or none if it is not recorded.
    pub fn row(&self, point: Point, position: usize) -> Option<&[f32]> {
        let column = self.column(point)?;
        let index = position.checked_sub(self.first)?;
        column.values.get(index * column.width..(index + 1) * column.width)
    }

    /// Rows of `point` for absolute `positions`, contiguous.
    pub fn rows(&self, point: Point, positions: Range<usize>) -> Option<&[f32]> {
        let column = self.column(point)?;
        let (from, to) = (positions.start.checked_sub(self.first)?, positions.end.checked_sub(self.first)?);
        column.values.get(from * column.width..to * column.width)
    }

    /// All rows of `point`, seen `width` wide from `offset`; row 0 is the token at `positions().start`.
    ///
    /// # Panics
    /// The layer has no such quantity: a mistake in the mixer that asks.
    pub fn strided(&self, point: Point, offset: usize, width: usize) -> Strided<'_> {
        let column = self.column(point).unwrap_or_else(|| panic!("{point:?} is not on this layer's tape"));
        Strided { data: &column.values, stride: column.width, offset, width }
    }

    pub fn bytes(&self) -> usize {
        self.columns.iter().map(|(_, c)| c.values.len() * size_of::<f32>()).sum()
    }

    /// The column of a quantity that is recorded; emptied ones are room, not a record.
    fn column(&self, point: Point) -> Option<&Column> {
        self.columns.iter().find(|(p, c)| *p == point && !c.values.is_empty()).map(|(_, c)| c)
    }

    /// The column of a quantity, made if there was none, and whether it has room for `count` more numbers.
    fn place(&mut self, point: Point, count: usize) -> (usize, bool) {
        let index = self.columns.iter().position(|(p, _)| *p == point).unwrap_or_else(|| {
            self.columns.push((point, Column::default()));
            self.columns.len() - 1
        });
        (index, self.columns[index].1.values.has_room(count))
    }

    fn append(&mut self, index: usize, first: usize, rows: usize, values: &[f32]) {
        if self.columns.iter().all(|(_, column)| column.values.is_empty()) {
            self.first = first;
        }
        let (start, column) = (self.first, &mut self.columns[index].1);
        if column.values.is_empty() {
            column.width = values.len() / rows.max(1);
        }
        // Replay may pass over tokens that are recorded already.
        let expected = start + column.values.len() / column.width.max(1);
        if first <= expected && expected < first + rows {
            column.values.extend(&values[(expected - first) * column.width..]);
        }
    }

    /// Columns keep their room: the next text needs it again, and fresh memory costs a tenth of a short run.
    fn truncate(&mut self, length: usize) {
        let rows = length.saturating_sub(self.first);
        for (_, column) in &mut self.columns {
            column.values.truncate(rows * column.width);
        }
    }

    fn drop_before(&mut self, position: usize) {
        let rows = position.saturating_sub(self.first).min(self.positions().len());
        for (_, column) in &mut self.columns {
            column.values.drop_first(rows * column.width);
        }
        self.first += rows;
    }
}

/// The tapes of all layers, under one budget.
#[derive(Clone, Debug)]
pub struct Tape {
    /// By layer and part; at least one part.
    layers: Vec<Vec<LayerTape>>,
    /// What is looked at of each layer; layers in sight are kept longest.
    observed: Vec<Depth>,
    /// What is recorded: nothing of layers given up to stay in the budget, until a replay has refilled them.
    recorded: Vec<Depth>,
    /// Whether only what is looked at is recorded.
    lean: bool,
    budget: usize,
}

impl Tape {
    /// `parts`: the number of mixers of each layer.
    pub fn new(parts: &[usize], budget: usize) -> Self {
        Self {
            layers: parts.iter().map(|&parts| vec![LayerTape::default(); parts.max(1)]).collect(),
            observed: vec![Depth::Nothing; parts.len()],
            recorded: vec![Depth::Everything; parts.len()],
            lean: false,
            budget,
        }
    }

    /// One that records no more than is looked at.
    pub fn lean(parts: &[usize], budget: usize) -> Self {
        Self { recorded: vec![Depth::Nothing; parts.len()], lean: true, ..Self::new(parts, budget) }
    }

    /// The record of mixer `part`; part 0 also holds what belongs to the layer as a whole.
    pub fn part(&self, layer: usize, part: usize) -> &LayerTape {
        &self.layers[layer][part]
    }

    /// Bytes of a token, of what is recorded so far.
    fn token_bytes(&self) -> usize {
        let columns = self.layers.iter().flatten().flat_map(|layer| &layer.columns);
        columns.map(|(_, column)| column.width * size_of::<f32>()).sum::<usize>().max(1)
    }

    /// Tokens that the budget has room for.
    fn ahead(&self) -> usize {
        AHEAD.min(self.budget.min(AHEAD_BYTES) / self.token_bytes() + 1)
    }

    /// Touches some of the memory that the next tokens will be recorded in, for which a device has [`Observer::expect`]. Says whether more is to be
    /// done.
    pub fn warm(&mut self) -> bool {
        if self.lean {
            return false;
        }
        let (tokens, ahead) = (WARM.min(WARM_BYTES / self.token_bytes()), self.ahead());
        let columns = self.layers.iter_mut().flatten().flat_map(|layer| &mut layer.columns);
        let mut recorded = columns.filter(|(_, column)| !column.values.is_empty());
        recorded.any(|(_, column)| {
            // What is beyond the budget comes to nothing.
            let whole = ahead * column.width;
            let count = whole.saturating_sub(column.values.len()).min(tokens * column.width);
            if !column.values.has_room(count) {
                column.values.make_room(whole);
            }
            column.values.warm(count, PIECE)
        })
    }

    /// Takes in what was shown. What comes first gets no more room than it needs: how wide all of a token is shows only after it. What comes next
    /// gets all the room there can be, so that nothing that has grown long is ever moved.
    fn take(&mut self, layer: usize, part: usize, point: Point, first: usize, rows: usize, values: &[f32]) {
        let (index, fits) = self.layers[layer][part].place(point, values.len());
        if !fits {
            let ahead = self.ahead();
            let column = &mut self.layers[layer][part].columns[index].1;
            let (there, width) = (column.values.len(), values.len() / rows.max(1));
            let needed = there + values.len();
            column.values.make_room(if there > 0 { needed.max(ahead * width) } else { needed });
        }
        self.layers[layer][part].append(index, first, rows, values);
    }

    /// Bytes of a layer.
    pub fn layer_bytes(&self, layer: usize) -> usize {
        self.layers[layer].iter().map(LayerTape::bytes).sum()
    }

    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().map(LayerTape::bytes).sum()
    }

    /// Sets what is looked at of each layer. What `missing` then names must be refilled by replay.
    pub fn look_at(&mut self, layers: impl Fn(usize) -> Depth) {
        for layer in 0..self.layers.len() {
            self.observed[layer] = layers(layer);
            if self.lean && self.recorded[layer] < self.observed[layer] {
                // A record of another depth, or one that a replay has begun to refill.
                self.give_up(layer);
            }
        }
    }

    /// Layers of which everything is looked at.
    pub fn in_sight(&self) -> usize {
        self.observed.iter().filter(|depth| **depth == Depth::Everything).count()
    }

    /// Layers in sight that were given up.
    pub fn missing(&self) -> Vec<usize> {
        (0..self.layers.len()).filter(|&l| self.observed[l] > self.recorded[l]).collect()
    }

    /// Records these layers again; a replay has brought them up to the newest token.
    pub fn resume(&mut self, layers: &[usize]) {
        layers.iter().for_each(|&l| self.recorded[l] = if self.lean { self.observed[l] } else { Depth::Everything });
    }

    /// Empties one layer and stops recording it until a replay has refilled it.
    pub fn give_up(&mut self, layer: usize) {
        self.layers[layer].fill(LayerTape::default());
        self.recorded[layer] = Depth::Nothing;
    }

    /// Forgets all tokens from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.layers.iter_mut().flatten().for_each(|l| l.truncate(length));
        if self.lean && length == 0 {
            self.recorded.clone_from(&self.observed);
        }
    }

    /// Layers not recorded as a whole, and the first token still known of the others.
    pub fn bounds(&self) -> (usize, usize) {
        let recorded = self.layers.iter().zip(&self.recorded).filter(|(_, depth)| **depth != Depth::Nothing);
        let first = recorded.map(|(l, _)| l[0].first).max();
        (self.recorded.iter().filter(|depth| **depth < Depth::Everything).count(), first.unwrap_or(0))
    }

    /// Gives up recordings until the rest fits.
    pub fn enforce_budget(&mut self) {
        while self.bytes() > self.budget {
            let unseen =
                (0..self.layers.len()).find(|&l| self.observed[l] == Depth::Nothing && self.layer_bytes(l) > 0);
            if let Some(layer) = unseen {
                self.give_up(layer);
                continue;
            }
            let half =
                self.layers.iter().flatten().map(|l| l.positions().start + l.positions().len() / 2).max().unwrap_or(0);
            let before = self.bytes();
            self.layers.iter_mut().flatten().for_each(|l| l.drop_before(half));
            if self.bytes() == before {
                break;
            }
        }
    }
}

impl Observer for Tape {
    fn wants(&self, layer: usize) -> bool {
        self.recorded[layer] != Depth::Nothing
    }

    fn depth(&self, layer: usize) -> Depth {
        self.recorded[layer]
    }

    fn observe(&mut self, layer: usize, part: usize, point: Point, first: usize, rows: usize, values: &[f32]) {
        self.take(layer, part, point, first, rows, values);
    }

    /// Memory that is touched for the first time takes longer than copying into it.
    fn expect(&mut self, rows: usize) {
        let columns = self.layers.iter_mut().flatten().flat_map(|layer| &mut layer.columns);
        columns
            .filter(|(_, column)| !column.values.is_empty())
            .for_each(|(_, column)| column.values.touch(rows * column.width));
    }
}

/// Records some layers only; replay refills with it.
pub struct Refill<'a> {
    pub tape: &'a mut Tape,
    pub layers: &'a [usize],
}

impl Observer for Refill<'_> {
    fn wants(&self, layer: usize) -> bool {
        self.layers.contains(&layer)
    }

    fn depth(&self, layer: usize) -> Depth {
        match self.layers.contains(&layer) {
            true if self.tape.lean => self.tape.observed[layer],
            true => Depth::Everything,
            false => Depth::Nothing,
        }
    }

    fn observe(&mut self, layer: usize, part: usize, point: Point, first: usize, rows: usize, values: &[f32]) {
        self.tape.take(layer, part, point, first, rows, values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(tape: &mut Tape, layer: usize, first: usize, rows: usize) {
        let values: Vec<f32> = (first..first + rows).flat_map(|t| [t as f32, layer as f32]).collect();
        tape.observe(layer, 0, Point::Delta, first, rows, &values);
        tape.observe(layer, 0, Point::Resid, first, rows, &values);
    }

    fn seen(all: bool) -> Depth {
        if all { Depth::Everything } else { Depth::Nothing }
    }

    #[test]
    fn rows_are_found_by_absolute_position() {
        let mut tape = Tape::new(&[1], usize::MAX);
        record(&mut tape, 0, 0, 3);
        record(&mut tape, 0, 2, 3);
        assert_eq!(tape.part(0, 0).positions(), 0..5);
        assert_eq!(tape.part(0, 0).row(Point::Delta, 4), Some(&[4.0, 0.0][..]));
        tape.truncate(2);
        assert_eq!(tape.part(0, 0).row(Point::Delta, 2), None);
        assert_eq!(tape.part(0, 0).positions(), 0..2);
    }

    #[test]
    fn unseen_layers_go_first_and_come_back_when_seen() {
        let mut tape = Tape::new(&[1, 1], 10 * 16);
        tape.look_at(|l| seen(l == 0));
        for t in 0..8 {
            record(&mut tape, 0, t, 1);
            if tape.wants(1) {
                record(&mut tape, 1, t, 1);
            }
            tape.enforce_budget();
        }
        assert_eq!(tape.part(0, 0).positions(), 0..8);
        assert!(!tape.wants(1));
        tape.look_at(|l| seen(l == 1));
        assert_eq!(tape.missing(), vec![1]);
    }

    #[test]
    fn the_oldest_tokens_go_when_nothing_else_can() {
        let mut tape = Tape::new(&[1], 10 * 16);
        tape.look_at(|_| Depth::Everything);
        for t in 0..25 {
            record(&mut tape, 0, t, 1);
            tape.enforce_budget();
        }
        let positions = tape.part(0, 0).positions();
        assert_eq!(positions.end, 25);
        assert!(positions.start > 0 && tape.bytes() <= 10 * 16);
        assert_eq!(tape.part(0, 0).row(Point::Delta, 24), Some(&[24.0, 0.0][..]));
    }

    #[test]
    fn a_long_record_is_not_moved() {
        let mut tape = Tape::new(&[1, 1], 1 << 20);
        let at = |tape: &Tape, layer: usize| tape.part(layer, 0).row(Point::Resid, 0).unwrap().as_ptr();
        (0..2).for_each(|layer| record(&mut tape, layer, 0, 5));
        (0..2).for_each(|layer| record(&mut tape, layer, 5, 1));
        let before = [at(&tape, 0), at(&tape, 1)];
        for t in 6..10_000 {
            (0..2).for_each(|layer| record(&mut tape, layer, t, 1));
        }
        assert_eq!(before, [at(&tape, 0), at(&tape, 1)]);
        // The next text has the room already, in whatever pieces it comes.
        tape.truncate(0);
        (0..2).for_each(|layer| record(&mut tape, layer, 0, 9000));
        assert_eq!(before, [at(&tape, 0), at(&tape, 1)]);
    }

    #[test]
    fn a_lean_tape_records_what_is_looked_at() {
        let mut tape = Tape::lean(&[1, 1, 1], usize::MAX);
        tape.look_at(|l| [Depth::Everything, Depth::Strength, Depth::Nothing][l]);
        tape.truncate(0);
        assert_eq!([0, 1, 2].map(|l| tape.depth(l)), [Depth::Everything, Depth::Strength, Depth::Nothing]);
        tape.observe(1, 0, Point::Write, 0, 1, &[3.0]);
        assert_eq!(tape.part(1, 0).positions(), 0..1);
        tape.look_at(|_| Depth::Everything);
        assert_eq!((tape.missing(), tape.part(1, 0).positions().len()), (vec![1, 2], 0));
        tape.resume(&[1, 2]);
        assert_eq!(tape.depth(1), Depth::Everything);
        tape.look_at(|_| Depth::Strength);
        assert_eq!((tape.missing(), tape.depth(1)), (vec![], Depth::Everything));
    }
}
