//! Pooling a matrix to pixels so that a spike stays visible: a cell shows the entry of largest magnitude of its block, sign kept.

/// First source index of block `i` of `blocks` over `length`.
fn edge(i: usize, blocks: usize, length: usize) -> usize {
    i * length / blocks
}

/// The larger in magnitude; NaN wins, so that it is seen.
fn stronger(a: f32, b: f32) -> f32 {
    if a.is_nan() || a.abs() >= b.abs() { a } else { b }
}

/// The entry of largest magnitude, the positive one of equals; NaN if there is one.
fn strongest(xs: &[f32]) -> f32 {
    // Eight lanes of extremes side by side; NaN fails every comparison and is counted apart.
    let (mut low, mut high, mut unknown) = ([0.0f32; 8], [0.0f32; 8], [false; 8]);
    let (blocks, rest) = xs.as_chunks::<8>();
    let mut take = |lane: usize, x: f32| {
        low[lane] = if x < low[lane] { x } else { low[lane] };
        high[lane] = if x > high[lane] { x } else { high[lane] };
        unknown[lane] |= x.is_nan();
    };
    for block in blocks {
        for (lane, &x) in block.iter().enumerate() {
            take(lane, x);
        }
    }
    rest.iter().for_each(|&x| take(0, x));
    if unknown.contains(&true) {
        return f32::NAN;
    }
    let (low, high) = (low.into_iter().fold(0.0, f32::min), high.into_iter().fold(0.0, f32::max));
    if high >= -low { high } else { low }
}

/// `data` [rows, cols] → `out` [out_rows, out_cols], out_rows ≤ rows, out_cols ≤ cols: every input cell belongs to exactly one block.
pub fn pool_signed_absmax(data: &[f32], rows: usize, cols: usize, out_rows: usize, out_cols: usize, out: &mut [f32]) {
    assert_eq!(data.len(), rows * cols, "pool: data is not [rows, cols]");
    assert!(out_rows <= rows && out_cols <= cols, "pool: {rows} × {cols} cells to {out_rows} × {out_cols}");
    assert_eq!(out.len(), out_rows * out_cols, "pool: out is not [out_rows, out_cols]");
    out.fill(0.0);
    for (row, data) in data.chunks_exact(cols.max(1)).enumerate() {
        let at = pooled_row(row, rows, out_rows) * out_cols;
        pool_row(data, cols, &mut out[at..at + out_cols]);
    }
}

/// The row of a picture of `out_rows` rows that row `row` of `rows` belongs to, as [`pool_signed_absmax`] has it.
pub fn pooled_row(row: usize, rows: usize, out_rows: usize) -> usize {
    ((row + 1) * out_rows - 1) / rows
}

/// Pools one more row of `cols` cells into `out` [out_cols]; cells beyond the end of `row` are 0.
pub fn pool_row(row: &[f32], cols: usize, out: &mut [f32]) {
    let out_cols = out.len();
    for (c, out) in out.iter_mut().enumerate() {
        let (first, end) = (edge(c, out_cols, cols), edge(c + 1, out_cols, cols).min(row.len()));
        if first >= end {
            return;
        }
        *out = stronger(strongest(&row[first..end]), *out);
    }
}
