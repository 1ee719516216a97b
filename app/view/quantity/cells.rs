//! Series, matrices and states as cells of a heatmap. Unknown cells are None and drawn hatched.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::store::{CausalMatrix, Series};
use crate::widget::heatmap::{Cells, Row, Settled};

/// One number that changes when any of `parts` does.
pub fn fingerprint(parts: impl IntoIterator<Item = u64>) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.into_iter().for_each(|part| part.hash(&mut hasher));
    hasher.finish()
}

/// One series of one number per token for each row.
pub struct StackedCells<'a> {
    pub rows: Vec<Option<&'a Series>>,
    /// What each row is divided by; empty for nothing.
    pub divisors: Vec<f32>,
    pub tokens: usize,
}

impl Cells for StackedCells<'_> {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn cols(&self) -> usize {
        self.tokens
    }

    fn value(&self, row: usize, col: usize) -> Option<f32> {
        let value = (*self.rows.get(row)?)?.value(col, 0)?;
        Some(value / self.divisors.get(row).copied().unwrap_or(1.0))
    }

    fn generation(&self) -> u64 {
        let series = self.rows.iter().map(|s| s.map_or(0, Series::generation));
        let divisors = self.divisors.iter().map(|d| u64::from(d.to_bits()));
        fingerprint(series.chain(divisors).chain([self.tokens as u64]))
    }
}

/// A vector per token, entries as rows and tokens as columns.
pub struct TransposedCells<'a> {
    pub series: Option<&'a Series>,
    pub rows: usize,
    pub tokens: usize,
}

impl Cells for TransposedCells<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.tokens
    }

    fn value(&self, row: usize, col: usize) -> Option<f32> {
        self.series?.value(col, row)
    }

    fn generation(&self) -> u64 {
        fingerprint([self.series.map_or(0, Series::generation), self.rows as u64, self.tokens as u64])
    }
}

/// Whether a row begins before what the engine has recorded: those entries come as NaN and are not known.
pub fn is_cut(row: &[f32]) -> bool {
    row.first().is_some_and(|first| first.is_nan()) && row.last().is_some_and(|last| last.is_finite())
}

/// A mixing matrix. Above the diagonal there is nothing, since no token looks ahead.
pub struct MatrixCells<'a> {
    pub matrix: Option<&'a CausalMatrix>,
    pub tokens: usize,
}

impl Cells for MatrixCells<'_> {
    fn rows(&self) -> usize {
        self.tokens
    }

    fn cols(&self) -> usize {
        self.tokens
    }

    fn value(&self, row: usize, col: usize) -> Option<f32> {
        let row = self.matrix?.row(row)?;
        let value = row.get(col).copied()?;
        if value.is_nan() && is_cut(row) { None } else { Some(value) }
    }

    fn generation(&self) -> u64 {
        fingerprint([self.matrix.map_or(0, CausalMatrix::generation), self.tokens as u64])
    }

    fn row(&self, row: usize) -> Row<'_> {
        match self.matrix.and_then(|matrix| matrix.row(row)) {
            Some(values) if is_cut(values) => Row::Each,
            Some(values) => Row::Slice(values),
            None => Row::Unknown,
        }
    }

    fn settled(&self) -> Option<Settled> {
        self.matrix.map(|matrix| Settled { since: matrix.rewritten(), rows: matrix.len() })
    }

    fn end(&self, row: usize) -> usize {
        row + 1
    }
}

/// A piece of a reading: `values[offset + r·row_stride + c·col_stride]`.
pub struct PlaneCells<'a> {
    pub values: &'a [f32],
    pub offset: usize,
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
    /// Columns are drawn in this order.
    pub order: Option<&'a [usize]>,
    pub generation: u64,
}

impl<'a> PlaneCells<'a> {
    /// Matrix `index` of a `[_, rows, cols]` array.
    pub fn of(values: &'a [f32], index: usize, rows: usize, cols: usize, generation: u64) -> Self {
        Self {
            values,
            offset: index * rows * cols,
            rows,
            cols,
            row_stride: cols,
            col_stride: 1,
            order: None,
            generation,
        }
    }
}

impl Cells for PlaneCells<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn value(&self, row: usize, col: usize) -> Option<f32> {
        let col = self.order.map_or(Some(col), |order| order.get(col).copied())?;
        self.values.get(self.offset + row * self.row_stride + col * self.col_stride).copied()
    }

    fn generation(&self) -> u64 {
        let order = self.order.map_or(0, |order| fingerprint(order.iter().map(|i| *i as u64)));
        fingerprint([self.generation, self.offset as u64, self.rows as u64, self.cols as u64, order])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_cut_out_and_turned() {
        let values: Vec<f32> = (0..24).map(|v| v as f32).collect();
        let plane = PlaneCells::of(&values, 1, 3, 4, 7);
        assert_eq!(plane.value(2, 3), Some(23.0));
        // Channels as columns, ranked: entry n of channel order[c].
        let order = [2, 0];
        let turned = PlaneCells { rows: 4, cols: 2, row_stride: 1, col_stride: 4, order: Some(&order), ..plane };
        assert_eq!(turned.value(3, 0), Some(23.0));
        assert_eq!(turned.value(0, 1), Some(12.0));
        assert_eq!(turned.value(0, 2), None);
    }
}
