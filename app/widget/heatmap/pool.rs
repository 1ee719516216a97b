//! Many cells into few pixels: of each block the value of largest size, sign kept, so that a spike stays visible.

use std::ops::Range;

/// A table of values, drawn with row 0 on top.
pub trait Cells {
    fn rows(&self) -> usize;
    fn cols(&self) -> usize;
    /// None: not known, drawn hatched.
    fn value(&self, row: usize, col: usize) -> Option<f32>;
    /// Changes whenever any value does.
    fn generation(&self) -> u64;
    /// A whole row at once, where that is faster than cell by cell.
    fn row(&self, _row: usize) -> Row<'_> {
        Row::Each
    }
    /// How far the rows are final, where further ones only come after them. None: any value may change.
    fn settled(&self) -> Option<Settled> {
        None
    }
    /// The first column whose cell in `row` cannot exist, nor any after it, such as those above the diagonal of a causal matrix: drawn as
    /// ground, not hatched.
    fn end(&self, _row: usize) -> usize {
        usize::MAX
    }
}

/// The first rows of [`Cells`], which stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Changes when one of them does after all.
    pub since: u64,
    pub rows: usize,
}

/// A row of [`Cells`].
pub enum Row<'a> {
    /// Values of columns 0.. ; columns beyond are unknown up to the `end` of the row.
    Slice(&'a [f32]),
    Unknown,
    /// Ask `value` for each cell.
    Each,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Unknown,
    Known,
    Blank,
    NotFinite,
}

/// Blocks of cells, one per texel.
#[derive(Clone, Debug, Default)]
pub(super) struct Pooled {
    pub width: usize,
    pub height: usize,
    pub values: Vec<f32>,
    pub marks: Vec<Mark>,
    /// By row of texels.
    summaries: Vec<Summary>,
}

/// Of one row of texels: the range of the finite values, and whether one is unknown.
#[derive(Clone, Copy, Debug, Default)]
struct Summary {
    range: Option<(f32, f32)>,
    unknown: bool,
}

impl Pooled {
    /// Of the finite values.
    pub fn range(&self) -> Option<(f32, f32)> {
        let ranges = self.summaries.iter().filter_map(|summary| summary.range);
        ranges.reduce(|(low, high), (l, h)| (low.min(l), high.max(h)))
    }

    pub fn unknown(&self) -> bool {
        self.summaries.iter().any(|summary| summary.unknown)
    }

    /// Becomes `width` × `height` with the first `kept` rows as they are; what is new is blank.
    fn reshape(&mut self, width: usize, height: usize, kept: usize) {
        if width != self.width {
            let mut wider = Pooled { width, values: vec![0.0; width * kept], ..Pooled::default() };
            wider.marks = vec![Mark::Blank; width * kept];
            let shared = width.min(self.width);
            for y in 0..kept {
                let (from, to) = (y * self.width, y * width);
                wider.values[to..to + shared].copy_from_slice(&self.values[from..from + shared]);
                wider.marks[to..to + shared].copy_from_slice(&self.marks[from..from + shared]);
            }
            wider.summaries = std::mem::take(&mut self.summaries);
            *self = wider;
        }
        self.height = height;
        self.values.truncate(width * kept);
        self.marks.truncate(width * kept);
        self.summaries.truncate(kept);
        self.values.resize(width * height, 0.0);
        self.marks.resize(width * height, Mark::Blank);
    }
}

/// Cells per texel, so that `cells` of them take no more than `texels`.
pub(super) fn bin(cells: usize, texels: usize) -> usize {
    cells.div_ceil(texels.max(1)).max(1)
}

/// Pools `rows` × `cols` in blocks of `bins` (rows, columns). The ranges start at multiples of the bins, so that a block keeps its
/// cells while the table grows or is moved, and nothing flickers; the last block may be short. The first `kept` rows of texels of
/// `pooled` are still true: they have no cells in columns that have come since.
pub(super) fn pool(
    pooled: &mut Pooled,
    cells: &dyn Cells,
    rows: Range<usize>,
    cols: Range<usize>,
    bins: (usize, usize),
    kept: usize,
) {
    let (height, width) = (rows.len().div_ceil(bins.0), cols.len().div_ceil(bins.1));
    pooled.reshape(width, height, kept);
    if width == 0 {
        return;
    }
    let mut strip = Strip::default();
    for (y, first) in rows.clone().step_by(bins.0).enumerate().skip(kept) {
        let texels = y * width..(y + 1) * width;
        let (values, marks) = (&mut pooled.values[texels.clone()], &mut pooled.marks[texels]);
        let unknown = |marks: &mut [Mark], cols: Range<usize>| {
            for mark in &mut marks[cols.start / bins.1..cols.end.div_ceil(bins.1)] {
                if *mark == Mark::Blank {
                    *mark = Mark::Unknown;
                }
            }
        };
        strip.clear();
        for row in first..(first + bins.0).min(rows.end) {
            // Columns that exist, from the first in view.
            let end = cells.end(row).clamp(cols.start, cols.end) - cols.start;
            match cells.row(row) {
                Row::Slice(slice) => {
                    strip.add(slice.get(cols.start.min(slice.len())..cols.end.min(slice.len())).unwrap_or_default());
                    let known = slice.len().saturating_sub(cols.start).min(cols.len());
                    if known < end {
                        unknown(marks, known..end);
                    }
                }
                Row::Unknown => unknown(marks, 0..end),
                Row::Each => {
                    for col in 0..end {
                        let x = col / bins.1;
                        match cells.value(row, cols.start + col) {
                            Some(value) => take(&mut values[x], &mut marks[x], value),
                            None => unknown(marks, col..col + 1),
                        }
                    }
                }
            }
        }
        for ((value, mark), (kept, finite)) in values.iter_mut().zip(&mut *marks).zip(strip.blocks(bins.1)) {
            take(value, mark, if finite { kept } else { f32::NAN });
        }
        pooled.summaries.push(summary(values, marks));
    }
}

fn summary(values: &[f32], marks: &[Mark]) -> Summary {
    let mut summary = Summary::default();
    for (value, mark) in values.iter().zip(marks) {
        match mark {
            Mark::Known => {
                let (low, high) = summary.range.unwrap_or((*value, *value));
                summary.range = Some((low.min(*value), high.max(*value)));
            }
            Mark::Unknown => summary.unknown = true,
            _ => {}
        }
    }
    summary
}

/// Whether `value` rather than `kept` stands for a block: the larger, of equal sizes the positive one.
fn outweighs(value: f32, kept: f32) -> bool {
    (value.abs() > kept.abs()) | ((value.abs() == kept.abs()) & (value > kept))
}

fn take(kept: &mut f32, mark: &mut Mark, value: f32) {
    if !value.is_finite() {
        *mark = Mark::NotFinite;
    } else if *mark != Mark::NotFinite && (*mark != Mark::Known || outweighs(value, *kept)) {
        *kept = value;
        *mark = Mark::Known;
    }
}

/// Rows that fall on one row of texels, pooled column by column: loops without branches, since a matrix of a thousand tokens has half a
/// million cells in every frame.
#[derive(Default)]
struct Strip {
    kept: Vec<f32>,
    /// 0 times every value: NaN where one was not finite.
    zero: Vec<f32>,
}

impl Strip {
    fn clear(&mut self) {
        self.kept.clear();
        self.zero.clear();
    }

    fn add(&mut self, row: &[f32]) {
        if row.len() > self.kept.len() {
            self.kept.resize(row.len(), 0.0);
            self.zero.resize(row.len(), 0.0);
        }
        for ((kept, zero), value) in self.kept.iter_mut().zip(&mut self.zero).zip(row) {
            *zero += 0.0 * value;
            *kept = if outweighs(*value, *kept) { *value } else { *kept };
        }
    }

    /// What stands for each block of columns that has a known one, and whether all of it is finite.
    fn blocks(&self, columns: usize) -> impl Iterator<Item = (f32, bool)> {
        self.kept.chunks(columns).zip(self.zero.chunks(columns)).map(|(kept, zero)| {
            let pooled = kept.iter().fold(0.0, |pooled, &value| if outweighs(value, pooled) { value } else { pooled });
            (pooled, zero.iter().all(|zero| *zero == 0.0))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Table {
        rows: usize,
        cols: usize,
        value: fn(usize, usize) -> Option<f32>,
    }

    impl Cells for Table {
        fn rows(&self) -> usize {
            self.rows
        }
        fn cols(&self) -> usize {
            self.cols
        }
        fn value(&self, row: usize, col: usize) -> Option<f32> {
            (self.value)(row, col)
        }
        fn generation(&self) -> u64 {
            0
        }
    }

    fn fresh(cells: &dyn Cells, rows: Range<usize>, cols: Range<usize>, bins: (usize, usize)) -> Pooled {
        let mut pooled = Pooled::default();
        pool(&mut pooled, cells, rows, cols, bins, 0);
        pooled
    }

    #[test]
    fn a_spike_survives_pooling_with_its_sign() {
        let table = Table { rows: 100, cols: 1000, value: |r, c| Some(if (r, c) == (57, 431) { -9.0 } else { 0.5 }) };
        assert_eq!((bin(100, 10), bin(1000, 64), bin(3, 64)), (10, 16, 1));
        let pooled = fresh(&table, 0..100, 0..1000, (10, 16));
        assert_eq!((pooled.width, pooled.height), (63, 10));
        assert_eq!(pooled.values.iter().filter(|v| **v == -9.0).count(), 1);
        assert_eq!(pooled.range(), Some((-9.0, 0.5)));
    }

    #[test]
    fn unknown_is_not_zero_and_known_wins_in_a_block() {
        let table = Table { rows: 1, cols: 8, value: |_, c| (c == 0).then_some(0.0) };
        let pooled = fresh(&table, 0..1, 0..8, (1, 2));
        assert_eq!(pooled.marks, [Mark::Known, Mark::Unknown, Mark::Unknown, Mark::Unknown]);
        assert!(pooled.unknown());
        let nan = Table { rows: 1, cols: 2, value: |_, c| Some(if c == 0 { f32::NAN } else { 1.0 }) };
        assert_eq!(fresh(&nan, 0..1, 0..2, (1, 2)).marks, [Mark::NotFinite]);
        assert_eq!(fresh(&nan, 0..0, 0..2, (1, 1)).values.len(), 0);
    }

    #[test]
    fn slices_and_cells_agree() {
        struct Triangle(Vec<Vec<f32>>);
        impl Cells for Triangle {
            fn rows(&self) -> usize {
                self.0.len()
            }
            fn cols(&self) -> usize {
                self.0.len()
            }
            fn value(&self, row: usize, col: usize) -> Option<f32> {
                self.0[row].get(col).copied()
            }
            fn generation(&self) -> u64 {
                0
            }
            fn row(&self, row: usize) -> Row<'_> {
                Row::Slice(&self.0[row])
            }
            fn end(&self, row: usize) -> usize {
                row + 1
            }
        }
        struct Slow<'a>(&'a Triangle);
        impl Cells for Slow<'_> {
            fn rows(&self) -> usize {
                self.0.rows()
            }
            fn cols(&self) -> usize {
                self.0.cols()
            }
            fn value(&self, row: usize, col: usize) -> Option<f32> {
                self.0.value(row, col)
            }
            fn generation(&self) -> u64 {
                0
            }
            fn end(&self, row: usize) -> usize {
                self.0.end(row)
            }
        }
        let triangle =
            Triangle((0..37).map(|i| (0..=i).map(|j| ((i * 31 + j * 17) % 23) as f32 - 11.0).collect()).collect());
        for bins in [(1, 1), (4, 5), (7, 1)] {
            let (a, b) = (fresh(&triangle, 3..37, 1..37, bins), fresh(&Slow(&triangle), 3..37, 1..37, bins));
            assert_eq!((a.values, a.marks), (b.values, b.marks));
        }
        // Growing by rows and columns gives what pooling all of it gives.
        for bins in [(1, 1), (4, 5), (7, 1)] {
            let mut grown = Pooled::default();
            for (before, now) in [(0, 9), (9, 10), (10, 23), (23, 37)] {
                pool(&mut grown, &triangle, 0..now, 0..now, bins, before / bins.0);
                let all = fresh(&triangle, 0..now, 0..now, bins);
                assert_eq!((grown.range(), grown.unknown()), (all.range(), all.unknown()));
                assert_eq!((&grown.values, &grown.marks), (&all.values, &all.marks));
            }
        }
    }
}
