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
    /// Cells that cannot exist, such as those above the diagonal of a causal matrix: drawn as ground, not hatched.
    fn blank(&self, _row: usize, _col: usize) -> bool {
        false
    }
}

/// A row of [`Cells`].
pub enum Row<'a> {
    /// Values of columns 0.. ; columns beyond are blank or unknown as `blank` says.
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
    /// Of the finite values.
    pub range: Option<(f32, f32)>,
    pub unknown: bool,
}

/// The half-open block `k` of `count` over `range`; never empty while `count` ≤ the range's length.
fn block(range: &Range<usize>, k: usize, count: usize) -> Range<usize> {
    let length = range.end - range.start;
    range.start + k * length / count..range.start + (k + 1) * length / count
}

/// Pools `rows` × `cols` of the cells into at most `height` × `width` texels.
pub(super) fn pool(cells: &dyn Cells, rows: Range<usize>, cols: Range<usize>, height: usize, width: usize) -> Pooled {
    let height = height.min(rows.len());
    let width = width.min(cols.len());
    let mut pooled = Pooled {
        width,
        height,
        values: vec![0.0; width * height],
        marks: vec![Mark::Blank; width * height],
        ..Pooled::default()
    };
    // Texel of each column.
    let starts: Vec<usize> = (0..=width).map(|k| if k == width { cols.end } else { block(&cols, k, width).start }).collect();
    for y in 0..height {
        let texels = y * width..(y + 1) * width;
        let (values, marks) = (&mut pooled.values[texels.clone()], &mut pooled.marks[texels]);
        for row in block(&rows, y, height) {
            match cells.row(row) {
                Row::Slice(slice) => {
                    for x in 0..width {
                        let (from, to) = (starts[x], starts[x + 1]);
                        for value in slice.get(from..to.min(slice.len())).unwrap_or_default() {
                            take(&mut values[x], &mut marks[x], *value);
                        }
                        if to > slice.len() && marks[x] == Mark::Blank && !cells.blank(row, from.max(slice.len())) {
                            marks[x] = Mark::Unknown;
                        }
                    }
                }
                Row::Unknown => {
                    for x in 0..width {
                        if marks[x] == Mark::Blank && !cells.blank(row, starts[x]) {
                            marks[x] = Mark::Unknown;
                        }
                    }
                }
                Row::Each => {
                    for x in 0..width {
                        for col in starts[x]..starts[x + 1] {
                            match cells.value(row, col) {
                                Some(value) => take(&mut values[x], &mut marks[x], value),
                                None if marks[x] == Mark::Blank && !cells.blank(row, col) => marks[x] = Mark::Unknown,
                                None => {}
                            }
                        }
                    }
                }
            }
        }
    }
    for (value, mark) in pooled.values.iter().zip(&pooled.marks) {
        match mark {
            Mark::Known => {
                let (low, high) = pooled.range.unwrap_or((*value, *value));
                pooled.range = Some((low.min(*value), high.max(*value)));
            }
            Mark::Unknown => pooled.unknown = true,
            _ => {}
        }
    }
    pooled
}

fn take(kept: &mut f32, mark: &mut Mark, value: f32) {
    if !value.is_finite() {
        *mark = Mark::NotFinite;
    } else if *mark != Mark::NotFinite && (*mark != Mark::Known || value.abs() > kept.abs()) {
        *kept = value;
        *mark = Mark::Known;
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

    #[test]
    fn a_spike_survives_pooling_with_its_sign() {
        let table = Table { rows: 100, cols: 1000, value: |r, c| Some(if (r, c) == (57, 431) { -9.0 } else { 0.5 }) };
        let pooled = pool(&table, 0..100, 0..1000, 10, 64);
        assert_eq!((pooled.width, pooled.height), (64, 10));
        assert_eq!(pooled.values.iter().filter(|v| **v == -9.0).count(), 1);
        assert_eq!(pooled.range, Some((-9.0, 0.5)));
    }

    #[test]
    fn unknown_is_not_zero_and_known_wins_in_a_block() {
        let table = Table { rows: 1, cols: 8, value: |_, c| (c == 0).then_some(0.0) };
        let pooled = pool(&table, 0..1, 0..8, 4, 4);
        assert_eq!(pooled.marks, [Mark::Known, Mark::Unknown, Mark::Unknown, Mark::Unknown]);
        assert!(pooled.unknown);
        let nan = Table { rows: 1, cols: 2, value: |_, c| Some(if c == 0 { f32::NAN } else { 1.0 }) };
        assert_eq!(pool(&nan, 0..1, 0..2, 1, 1).marks, [Mark::NotFinite]);
        assert_eq!(pool(&nan, 0..0, 0..2, 4, 4).values.len(), 0);
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
            fn blank(&self, row: usize, col: usize) -> bool {
                col > row
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
            fn blank(&self, row: usize, col: usize) -> bool {
                self.0.blank(row, col)
            }
        }
        let triangle = Triangle((0..37).map(|i| (0..=i).map(|j| ((i * 31 + j * 17) % 23) as f32 - 11.0).collect()).collect());
        for (h, w) in [(37, 37), (10, 8), (5, 37)] {
            let (a, b) = (pool(&triangle, 3..37, 1..37, h, w), pool(&Slow(&triangle), 3..37, 1..37, h, w));
            assert_eq!((a.values, a.marks), (b.values, b.marks));
        }
    }
}
