//! Pooling a matrix to pixels so that a spike stays visible: a cell shows the entry of largest magnitude of its block, sign kept.

/// First source index of block `i` of `blocks` over `length`.
fn edge(i: usize, blocks: usize, length: usize) -> usize {
    i * length / blocks
}

/// The larger in magnitude; NaN wins, so that it is seen.
fn stronger(a: f32, b: f32) -> f32 {
    if a.is_nan() || a.abs() >= b.abs() { a } else { b }
}

/// `data` [rows, cols] → `out` [out_rows, out_cols], out_rows ≤ rows, out_cols ≤ cols: every input cell belongs to exactly one block.
pub fn pool_signed_absmax(data: &[f32], rows: usize, cols: usize, out_rows: usize, out_cols: usize, out: &mut [f32]) {
    assert_eq!(data.len(), rows * cols, "pool: data is not [rows, cols]");
    assert!(out_rows <= rows && out_cols <= cols, "pool: {rows} × {cols} cells to {out_rows} × {out_cols}");
    assert_eq!(out.len(), out_rows * out_cols, "pool: out is not [out_rows, out_cols]");
    out.fill(0.0);
    for (r, out) in out.chunks_exact_mut(out_cols.max(1)).enumerate() {
        for source in edge(r, out_rows, rows)..edge(r + 1, out_rows, rows) {
            let source = &data[source * cols..][..cols];
            for (c, out) in out.iter_mut().enumerate() {
                let (first, end) = (edge(c, out_cols, cols), edge(c + 1, out_cols, cols));
                for &x in &source[first..end] {
                    *out = stronger(x, *out);
                }
            }
        }
    }
}
