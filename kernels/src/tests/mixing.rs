//! The picture is the model: M·v = y.

use super::{
    attention::pages,
    recurrences::{ScanData, SsdData},
    *,
};
use crate::{Attention, Decay, Layout, Lowered, Recurrent, Strided, Toeplitz, apply_rows, extend_row_over_conv};

pub(crate) fn column(data: &[f32], stride: usize, offset: usize) -> Strided<'_> {
    Strided { data, stride, offset, width: 1 }
}

pub(crate) fn check_rows(lowered: &Lowered, tokens: usize, what: &str) -> Vec<f32> {
    check_rows_to(lowered, tokens, 1e-30, what)
}

/// [`check_rows`] where the summands have `size` and may cancel.
pub(crate) fn check_rows_to(lowered: &Lowered, tokens: usize, size: f64, what: &str) -> Vec<f32> {
    let mut all = nan(tokens * tokens);
    lowered.rows(0..tokens, &mut all);
    for t in 0..tokens {
        let mut row = nan(t + 1);
        lowered.row(t, &mut row);
        assert_eq!(bits(&all[t * tokens..][..=t]), bits(&row), "{what}: rows and row differ at {t}");
        assert!(all[t * tokens + t + 1..(t + 1) * tokens].iter().all(|&x| x == 0.0));
        assert_close_to(&row, &lowered.reference_row(t), 1e-5, size, &format!("{what} row {t}"));
    }
    let from = tokens / 2;
    let mut part = nan((tokens - from) * tokens);
    lowered.rows(from..tokens, &mut part);
    assert_eq!(bits(&part), bits(&all[from * tokens..]), "{what}: part of the rows");
    all
}

/// M·v as a column [T].
pub(crate) fn product(m: &[f32], v: impl Fn(usize) -> f32) -> Vec<f64> {
    let tokens = m.len().isqrt();
    m.chunks_exact(tokens)
        .map(|row| row.iter().enumerate().map(|(s, &m)| f64::from(m) * f64::from(v(s))).sum())
        .collect()
}

#[test]
fn of_mamba_2() {
    on_each_set(|| {
        let mut rng = Rng::new(14);
        for tokens in LENGTHS {
            let data = SsdData::new(&mut rng, tokens, (4, 3, 20, 2));
            let op = data.op();
            let (mut state, mut y) = (vec![0.0; data.state_len()], nan(op.x.len()));
            op.forward(&mut state, &mut y);
            for head in 0..4 {
                let read = |data| Strided { data, stride: 40, offset: head * 2 / 4 * 20, width: 20 };
                let delta = column(op.delta, 4, head);
                let lowered = Lowered::Recurrent(Recurrent {
                    tokens,
                    query: read(op.c),
                    key: read(op.b),
                    weight: Some(delta),
                    decay: Decay::Scalar { log: delta, factor: op.a[head] },
                    diagonal: op.d[head],
                    bonus: None,
                    normaliser: None,
                });
                let m = check_rows(&lowered, tokens, &format!("mamba-2 T={tokens}"));
                for p in 0..3 {
                    let expected = product(&m, |s| op.x[(s * 4 + head) * 3 + p]);
                    let y: Vec<f32> = (0..tokens).map(|t| y[(t * 4 + head) * 3 + p]).collect();
                    assert_close(&y, &expected, 1e-5, "M·x = y");
                }
            }
        }
    });
}

#[test]
fn of_mamba_1() {
    on_each_set(|| {
        let mut rng = Rng::new(15);
        for tokens in LENGTHS {
            let data = ScanData::new(&mut rng, tokens, 5, 18);
            let op = data.op();
            let (mut state, mut y) = (vec![0.0; 90], nan(op.x.len()));
            op.forward(&mut state, &mut y, None);
            for c in 0..5 {
                let read = |data| Strided { data, stride: 18, offset: 0, width: 18 };
                let delta = column(op.delta, 5, c);
                let lowered = Lowered::Recurrent(Recurrent {
                    tokens,
                    query: read(op.c),
                    key: read(op.b),
                    weight: Some(delta),
                    decay: Decay::Diagonal { log: delta, rates: &op.a[c * 18..][..18] },
                    diagonal: op.d[c],
                    bonus: None,
                    normaliser: None,
                });
                let m = check_rows(&lowered, tokens, &format!("mamba-1 T={tokens}"));
                let y: Vec<f32> = (0..tokens).map(|t| y[t * 5 + c]).collect();
                assert_close(&y, &product(&m, |s| op.x[s * 5 + c]), 1e-5, "M·x = y");
            }
        }
    });
}

#[test]
fn of_attention() {
    let mut rng = Rng::new(16);
    let (heads, kv_heads, head_dim) = (4, 2, 6);
    for (tokens, window) in LENGTHS.into_iter().flat_map(|tokens| [None, Some(1), Some(65)].map(|w| (tokens, w))) {
        let [k, v] = [(); 2].map(|_| rng.vec(tokens * kv_heads * head_dim));
        let (keys, values) = (pages(&k, kv_heads * head_dim), pages(&v, kv_heads * head_dim));
        let attention = Attention {
            heads,
            kv_heads,
            head_dim,
            value_dim: head_dim,
            sinks: 0,
            scale: 0.4,
            window,
            keys: &keys,
            values: &values,
            layout: Layout::ByToken,
        };
        let q = rng.vec(tokens * heads * head_dim);
        let mut y = nan(q.len());
        attention.forward(&q, 0, &mut y, None);
        for head in 0..heads {
            let query = Strided { data: &q, stride: heads * head_dim, offset: head * head_dim, width: head_dim };
            let m = check_rows(&Lowered::Softmax { attention, query, head }, tokens, &format!("softmax T={tokens}"));
            for d in 0..head_dim {
                let y: Vec<f32> = (0..tokens).map(|t| y[(t * heads + head) * head_dim + d]).collect();
                assert_close(&y, &product(&m, |s| v[(s * kv_heads + head / 2) * head_dim + d]), 1e-5, "M·v = y");
            }
        }
    }
}

#[test]
fn without_decay_or_with_extreme_decay() {
    let mut rng = Rng::new(17);
    let (tokens, n) = (70, 9);
    let (q, k) = (rng.vec(tokens * n), rng.vec(tokens * n));
    let rates: Vec<f32> = rng.log_uniform(n, 0.5, 16.0).iter().map(|a| -a).collect();
    let all = |data| Strided { data, stride: n, offset: 0, width: n };
    for step in [0.0, 1e-3, 1e4, 1e30] {
        let mut steps = vec![0.01; tokens];
        steps[30] = step;
        let log = column(&steps, 1, 0);
        for decay in [Decay::None, Decay::Scalar { log, factor: -16.0 }, Decay::Diagonal { log, rates: &rates }] {
            let lowered = Lowered::Recurrent(Recurrent {
                tokens,
                query: all(&q),
                key: all(&k),
                weight: None,
                decay,
                diagonal: 0.5,
                bonus: None,
                normaliser: None,
            });
            let m = check_rows(&lowered, tokens, &format!("{step} {decay:?}"));
            assert!(m.iter().all(|m| m.is_finite()));
        }
    }
}

#[test]
fn of_a_short_convolution() {
    let mut rng = Rng::new(23);
    for taps in [1, 3, 4] {
        for tokens in LENGTHS {
            let (pre, post, x, w) = (rng.vec(tokens), rng.vec(tokens), rng.vec(tokens), rng.vec(taps));
            let band = Toeplitz { tokens, taps: &w, pre: column(&pre, 1, 0), post: column(&post, 1, 0) };
            let m = check_rows(&Lowered::Toeplitz(band), tokens, &format!("band K={taps} T={tokens}"));
            let gated: Vec<f32> = pre.iter().zip(&x).map(|(b, x)| b * x).collect();
            let mut y = nan(tokens);
            crate::causal_conv(&gated, &w, None, &mut vec![0.0; taps - 1], &mut y);
            y.iter_mut().zip(&post).for_each(|(y, c)| *y *= c);
            assert_close(&y, &product(&m, |s| x[s]), 1e-6, "M·x = y");
        }
    }
}

/// Gates that are vectors: linear attention that fades as a filter does.
#[test]
fn of_a_band_between_vectors() {
    on_each_set(|| {
        let mut rng = Rng::new(25);
        for (tokens, width) in LENGTHS.into_iter().zip([2, 3, 8, 13, 20].into_iter().cycle()) {
            let (pre, post, taps) = (rng.vec(tokens * width), rng.vec(tokens * (width + 1)), rng.vec(tokens));
            let pre = Strided { data: &pre, stride: width, offset: 0, width };
            let post = Strided { data: &post, stride: width + 1, offset: 1, width };
            let band = Toeplitz { tokens, taps: &taps, pre, post };
            check_rows_to(&Lowered::Toeplitz(band), tokens, 1.0, &format!("band N={width} T={tokens}"));
        }
    });
}

#[test]
fn of_convolutions_one_after_the_other() {
    on_each_set(|| {
        let mut rng = Rng::new(26);
        for (tokens, reach) in LENGTHS.into_iter().zip([1, 40, 7, 300].into_iter().cycle()) {
            let gates = rng.vec(tokens * 4);
            let taps: Vec<Vec<f32>> = (0..3).map(|_| rng.vec(reach)).collect();
            let one = Strided { data: &[1.0], stride: 0, offset: 0, width: 1 };
            let band = |index: usize| Toeplitz {
                tokens,
                taps: &taps[index],
                pre: column(&gates, 4, index),
                post: if index == 0 { column(&gates, 4, 3) } else { one },
            };
            let bands = [band(0), band(1), band(2)];
            // Their size, far above what is left of them where signs differ.
            let size = (tokens.min(reach) as f64).powi(2);
            let m = check_rows_to(&Lowered::Product(&bands), tokens, size, &format!("product K={reach} T={tokens}"));
            let v = rng.vec(tokens);
            let mut y = v.clone();
            for band in bands.iter().rev() {
                let gated: Vec<f32> = y.iter().enumerate().map(|(t, y)| y * band.pre.at(t)).collect();
                crate::causal_conv(&gated, band.taps, None, &mut vec![0.0; reach - 1], &mut y);
                y.iter_mut().enumerate().for_each(|(t, y)| *y *= band.post.at(t));
            }
            assert_close_to(&y, &product(&m, |s| v[s]), 1e-5, size, "M·x = y");
        }
    });
}

#[test]
fn a_row_applied_to_the_values() {
    on_each_set(|| {
        let mut rng = Rng::new(24);
        for tokens in LENGTHS {
            for width in [1, 2, 8, 13, 64] {
                let (row, data) = (rng.vec(tokens), rng.vec((tokens + 1) * (width + 3)));
                let values = Strided { data: &data, stride: width + 3, offset: 2, width };
                let mut out = nan(width);
                apply_rows(&row, tokens, values, &mut out);
                // Rows together, and rows with nothing behind them, are the rows alone.
                let mut two: Vec<f32> = row.iter().copied().chain([0.0]).collect();
                two.extend_from_within(..);
                let mut both = nan(2 * width);
                apply_rows(&two, tokens + 1, values, &mut both);
                assert_eq!(bits(&both), bits(&[&out[..], &out[..]].concat()));
                let mut truth = vec![0.0; width];
                for (i, m) in row.iter().enumerate() {
                    let value = values.row(i).iter();
                    truth.iter_mut().zip(value).for_each(|(sum, v)| *sum += f64::from(*m) * f64::from(*v));
                }
                // Of the largest summand, not of what the sum comes to.
                let scale = tokens as f64;
                out.iter()
                    .zip(&truth)
                    .for_each(|(a, b)| assert!((f64::from(*a) - b).abs() < 1e-7 * scale, "T={tokens} P={width}"));
            }
        }
    });
}

/// The extended row applied to the inputs of the convolution is the core row applied to its outputs.
#[test]
fn extended_over_the_convolution() {
    let mut rng = Rng::new(18);
    for taps in [1, 2, 4] {
        for tokens in [1, 2, 3, 4, 65] {
            let (u, w, row) = (rng.vec(tokens), rng.vec(taps), rng.vec(tokens));
            let (mut v, mut history) = (nan(tokens), vec![0.0; taps - 1]);
            crate::causal_conv(&u, &w, None, &mut history, &mut v);
            let mut phi = v.clone();
            crate::sigmoid_slice(&mut phi);
            let mut extended = nan(tokens);
            extend_row_over_conv(&row, column(&phi, 1, 0), &w, &mut extended);
            let sum = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let x: Vec<f32> = v.iter().zip(&phi).map(|(v, phi)| v * phi).collect();
            assert!((sum(&extended, &u) - sum(&row, &x)).abs() < 1e-5);
        }
    }
}
