//! Columns of a matrix for threads of their own: no slices of it, so that [`slice::chunks_mut`] cannot hand them out.

use std::{marker::PhantomData, ptr::NonNull};

/// Some columns of all rows of a matrix, borrowed while others have its other columns.
pub(crate) struct Columns<'a> {
    /// Of the first row.
    start: NonNull<f32>,
    rows: usize,
    /// How many they are, and how many from one row to the next.
    width: usize,
    stride: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: it stands for exclusive borrows of parts of a slice, which may go to another thread; nothing can be read through a shared one.
unsafe impl Send for Columns<'_> {}

/// The columns of `data` [rows, `stride`], `width` at a time (the last may be fewer), from left to right.
pub(crate) fn columns(data: &mut [f32], stride: usize, width: usize) -> Vec<Columns<'_>> {
    assert!(data.len().is_multiple_of(stride), "columns: {} numbers are not [rows, {stride}]", data.len());
    let rows = data.len().checked_div(stride).unwrap_or(0);
    let start = NonNull::from(data).cast::<f32>();
    let of = |first: usize| Columns {
        // SAFETY: `first` is below `stride`, so that it lies within the first row; without rows it is never read.
        start: if rows == 0 { start } else { unsafe { start.add(first) } },
        rows,
        width: width.min(stride - first),
        stride,
        of: PhantomData,
    };
    (0..stride).step_by(width.max(1)).map(of).collect()
}

impl Columns<'_> {
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// These columns of a row.
    #[inline(always)]
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "columns: row {row} of {}", self.rows);
        // SAFETY: the row is within the slice that `columns` was given; no other `Columns` of that call has one of these numbers, the slice is
        // borrowed as long as they live, and `self` is borrowed as long as what is returned.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride).as_ptr(), self.width) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_in_one_of_them() {
        for (rows, stride, width) in [(5, 7, 3), (1, 4, 4), (3, 2, 9), (0, 3, 2), (0, 0, 2)] {
            let mut data = vec![0.0; rows * stride];
            for (i, mut part) in columns(&mut data, stride, width).into_iter().enumerate() {
                assert!((1..=width).contains(&part.width()));
                for row in 0..rows {
                    for (j, x) in part.row(row).iter_mut().enumerate() {
                        *x += (row * stride + i * width + j) as f32;
                    }
                }
            }
            let expected: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
            assert_eq!(data, expected);
        }
    }

    #[test]
    #[should_panic(expected = "columns: row 2 of 2")]
    fn rows_beyond_the_last_are_refused() {
        columns(&mut [0.0; 6], 3, 2)[0].row(2);
    }
}
