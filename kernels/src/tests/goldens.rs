//! Numbers made by others in f64 from S(α; n₁, n₂, …)[i₁, i₂, …] = sin(α + 1.1 i₁ + 0.7 i₂ + 0.3 i₃).

use super::*;
use crate::{
    Attention, Decay, Layout, Lowered, Recurrent, Rope, SelectiveScan, Ssd, Strided, Toeplitz, causal_conv,
    gated_group_rms_norm, silu_slice, softplus_slice,
};

const T: usize = 6;

pub(crate) fn s(alpha: f64, dims: &[usize]) -> Vec<f32> {
    let steps = [1.1, 0.7, 0.3, 0.17];
    (0..dims.iter().product())
        .map(|mut i: usize| {
            let mut angle = alpha;
            for (&n, step) in dims.iter().zip(steps).rev() {
                angle += step * (i % n) as f64;
                i /= n;
            }
            angle.sin() as f32
        })
        .collect()
}

fn softplus_of(mut xs: Vec<f32>) -> Vec<f32> {
    softplus_slice(&mut xs);
    xs
}

fn minus_exp(xs: Vec<f32>) -> Vec<f32> {
    xs.into_iter().map(|x| -x.exp()).collect()
}

#[track_caller]
pub(crate) fn check(y: &[f32], last: &[f64], sum: f64, squares: f64) {
    assert_close(&y[y.len() - last.len()..], last, 1e-5, "y[5]");
    let (a, b) = y.iter().fold((0.0, 0.0), |(a, b), &y| (a + f64::from(y), b + f64::from(y) * f64::from(y)));
    assert_close(&[a as f32, b as f32], &[sum, squares], 1e-5, "sums");
}

#[test]
fn convolution() {
    let (mut y, mut history) = (nan(T * 2), vec![0.0; 6]);
    causal_conv(&s(0.1, &[T, 2]), &s(0.5, &[2, 4]), Some(&s(0.9, &[2])), &mut history, &mut y);
    silu_slice(&mut y);
    check(&y, &[-0.143957656, 0.1766068], 13.1856858, 23.3371704);
}

#[test]
fn mamba_1() {
    let (delta, a) = (softplus_of(s(0.4, &[T, 3])), minus_exp(s(0.2, &[3, 4])));
    let (b, c, d) = (s(0.8, &[T, 4]), s(1.2, &[T, 4]), s(0.7, &[3]));
    let x = s(0.1, &[T, 3]);
    let mut y = nan(T * 3);
    SelectiveScan { delta: &delta, a: &a, b: &b, c: &c, x: &x, d: &d }.forward(&mut [0.0; 12], &mut y, None);
    check(&y, &[-1.05673801, -0.10079086, 2.12646399], 6.01761489, 49.2016562);
    let read = |data| Strided { data, stride: 4, offset: 0, width: 4 };
    let log = Strided { data: &delta, stride: 3, offset: 0, width: 1 };
    let decay = Decay::Diagonal { log, rates: &a[..4] };
    let mut row = nan(T);
    Lowered::Recurrent(Recurrent {
        tokens: T,
        query: read(&c),
        key: read(&b),
        weight: Some(log),
        decay,
        diagonal: d[0],
        bonus: None,
        normaliser: None,
    })
    .row(5, &mut row);
    assert_close(
        &row,
        &[0.00369320737, 0.0299482159, -0.0764960931, -0.157766973, -0.0181818493, 1.72045421],
        1e-5,
        "M[5]",
    );
}

#[test]
fn mamba_2() {
    let (delta, a, d) = (softplus_of(s(0.4, &[T, 4])), minus_exp(s(0.2, &[4])), s(0.7, &[4]));
    let (b, c, x) = (s(0.8, &[T, 2, 3]), s(1.2, &[T, 2, 3]), s(0.1, &[T, 4, 2]));
    let mut y = nan(T * 8);
    let op = Ssd { heads: 4, head_dim: 2, state_dim: 3, groups: 2, delta: &delta, a: &a, b: &b, c: &c, x: &x, d: &d };
    op.forward(&mut [0.0; 24], &mut y);
    let last = [-0.319262242, 0.060394699, 0.0938873043, 0.553741329, 2.08873289, 2.6885893, 2.73781748, 2.60805621];
    check(&y, &last, 17.2192629, 115.454158);
    let read = |data| Strided { data, stride: 6, offset: 3, width: 3 };
    let log = Strided { data: &delta, stride: 4, offset: 3, width: 1 };
    let decay = Decay::Scalar { log, factor: a[3] };
    let mut row = nan(T);
    Lowered::Recurrent(Recurrent {
        tokens: T,
        query: read(&c),
        key: read(&b),
        weight: Some(log),
        decay,
        diagonal: d[3],
        bonus: None,
        normaliser: None,
    })
    .row(5, &mut row);
    assert_close(
        &row,
        &[0.218827528, 0.0351538658, -0.091843595, -0.243514655, -0.0838042235, 2.36128021],
        1e-5,
        "M[5]",
    );

    let w: Vec<f32> = s(0.3, &[8]).iter().map(|x| 1.0 + 0.2 * x).collect();
    let mut out = nan(T * 8);
    gated_group_rms_norm(&y, &s(0.9, &[T, 8]), &w, 2, 1e-5, &mut out, None);
    let last = [-0.13254921, 0.22599967, 0.487635777, 1.76684764, 0.364440209, -0.761766531, -1.41201022, -1.45990946];
    check(&out, &last, 3.90575722, 52.1632103);
}

#[test]
fn attention() {
    let (mut q, mut k, v) = (s(0.5, &[T, 4]), s(0.8, &[T, 4]), s(0.1, &[T, 2]));
    let rope = Rope::new(vec![1.0, 1e4f32.powf(-0.5)]);
    rope.apply(&mut q, 1, 4, 0);
    rope.apply(&mut k, 1, 4, 0);
    // The golden's values are of 2 dimensions: the other two stay empty.
    let v: Vec<f32> = v.chunks(2).flat_map(|v| [v[0], v[1], 0.0, 0.0]).collect();
    let op = Attention {
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        value_dim: 4,
        sinks: 0,
        scale: 0.5,
        window: None,
        keys: &[&k],
        values: &[&v],
        layout: Layout::ByToken,
    };
    let mut y = nan(T * 4);
    op.forward(&q, 0, &mut y, None);
    check(&y, &[-0.20836529, -0.0139231386, 0.0, 0.0], 3.24201035, 2.44882889);
    let mut row = nan(T);
    op.row(&q[20..], 0, 5, &mut row);
    assert_close(&row, &[0.210135243, 0.112081643, 0.0863743398, 0.125924589, 0.20849595, 0.256988235], 1e-5, "M[5]");
}

#[test]
fn gated_short_convolution() {
    let (pre, post, x, w) = (s(0.8, &[T, 2]), s(1.2, &[T, 2]), s(0.1, &[T, 2]), s(0.5, &[2, 3]));
    let gated: Vec<f32> = pre.iter().zip(&x).map(|(b, x)| b * x).collect();
    let mut y = nan(T * 2);
    causal_conv(&gated, &w, None, &mut [0.0; 4], &mut y);
    y.iter_mut().zip(&post).for_each(|(y, c)| *y *= c);
    check(&y, &[0.362388327, 0.95502001], -0.732110076, 3.51680149);
    let read = |data| Strided { data, stride: 2, offset: 0, width: 1 };
    let mut row = nan(T);
    Lowered::Toeplitz(Toeplitz { tokens: T, taps: &w[..3], pre: read(&pre), post: read(&post) }).row(5, &mut row);
    assert_close(&row, &[0.0, 0.0, 0.0, -0.158823816, -0.333359202, 0.00644156527], 1e-5, "M[5]");
}
