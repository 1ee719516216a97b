use super::*;
use crate::{
    activation::*,
    conv::{self, causal_conv_parts, causal_conv_silu},
    cpu::{
        simd::{Kernel, Simd, dispatch},
        vector,
    },
    norm::*,
    *,
};

/// Largest error over a sweep of [low, high], as a part of the true value.
fn worst(low: f64, high: f64, slice: fn(&mut [f32]), truth: fn(f64) -> f64) -> f64 {
    let xs: Vec<f32> = (0..=200_003).map(|i| (low + (high - low) * f64::from(i) / 200_003.0) as f32).collect();
    let mut ys = xs.clone();
    slice(&mut ys);
    let errors = xs.iter().zip(&ys).map(|(&x, &y)| {
        let t = truth(x.into());
        if t == 0.0 { f64::from(y.abs()) } else { ((f64::from(y) - t) / t).abs() }
    });
    errors.fold(0.0, f64::max)
}

#[test]
fn exponential_is_right_to_two_ulp() {
    on_each_set(|| {
        let error = worst(-87.3, 88.7, exp_slice, f64::exp);
        assert!(error <= 2.4e-7, "exp: {error:.2e}");
        assert!(worst(-1.0, 1.0, exp_slice, f64::exp) <= 1.5e-7);
        let mut xs = [0.0, -0.0, -1e4, f32::NEG_INFINITY, 89.0, 1e30, f32::INFINITY, -104.5, f32::NAN];
        exp_slice(&mut xs);
        assert_eq!(xs[..8], [1.0, 1.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY, f32::INFINITY, 0.0]);
        assert!(xs[8].is_nan());
        // Below the normal range: gradually.
        let mut small = [-95.0];
        exp_slice(&mut small);
        assert!((small[0] - 5.52e-42).abs() < 2e-44);
    });
}

/// The exponential of the selective scan.
struct Exp2<'a>(&'a mut [f32]);

impl Kernel for Exp2<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.chunks_mut(S::LANES).for_each(|y| s.store_some(vector::exp2(s, s.load_some(y)), y));
    }
}

/// The exponential of attention over a prompt.
struct Exp2ToZero<'a>(&'a mut [f32]);

impl Kernel for Exp2ToZero<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.chunks_mut(S::LANES).for_each(|y| s.store_some(vector::exp2_to_zero(s, s.load_some(y)), y));
    }
}

#[test]
fn powers_of_two_end_in_zero() {
    on_each_set(|| {
        let error = worst(-126.0, 0.0, |xs| dispatch(Exp2ToZero(xs)), f64::exp2);
        assert!(error <= 2e-7, "exp2: {error:.2e}");
        let mut ys = [0.0, -1.0, -140.0, -152.0, -1e30, f32::MIN, f32::NEG_INFINITY, f32::NAN];
        dispatch(Exp2ToZero(&mut ys));
        assert_eq!(ys[..7], [1.0, 0.5, 2f32.powi(-140), 0.0, 0.0, 0.0, 0.0]);
        assert!(ys[7].is_nan());
    });
}

#[test]
fn powers_of_two_are_right_within_the_normal_range() {
    on_each_set(|| {
        let error = worst(-126.0, 127.0, |xs| dispatch(Exp2(xs)), f64::exp2);
        assert!(error <= 2e-7, "exp2: {error:.2e}");
        let mut ys = [0.0, -0.0, -1.0, 3.0, -1e4, f32::NEG_INFINITY, f32::MAX, f32::NAN];
        dispatch(Exp2(&mut ys));
        assert_eq!(ys[..4], [1.0, 1.0, 0.5, 8.0]);
        assert!(ys[4] < 1.2e-38 && ys[5] == ys[4] && ys[6] > 1.7e38 && ys[7].is_nan());
    });
}

#[test]
fn activations_are_right_and_finite() {
    on_each_set(|| {
        for (name, slice, truth, low, bound) in [
            ("softplus", softplus_slice as fn(&mut [f32]), softplus_reference as fn(f64) -> f64, -87.0, 4e-7),
            ("silu", silu_slice, silu_reference, -80.0, 5e-7),
            ("gelu", gelu_slice, gelu_reference, -12.9, 6e-7),
            ("gelu_tanh", gelu_tanh_slice, gelu_tanh_reference, -4.0, 2e-6),
            ("gelu_tanh far out", gelu_tanh_slice, gelu_tanh_reference, -9.0, 2e-5),
            ("relu2", relu2_slice, |x| Activation::Relu2.reference(x), -9.0, 1e-7),
            ("sigmoid", sigmoid_slice, |x| 1.0 / (1.0 + (-x).exp()), -80.0, 5e-7),
        ] {
            let error = worst(low, 200.0, slice, truth);
            assert!(error <= bound, "{name}: {error:.2e}");
            let mut ends = [-1e30, -1e4, 1e4, 1e18, f32::NAN];
            slice(&mut ends);
            assert!(ends[..4].iter().all(|x| x.is_finite()) && ends[4].is_nan(), "{name}: {ends:?}");
        }
    });
    for x in [-1e4f32, -50.0, -3.0, 0.0, 1e-4, 3.0, 50.0, 1e4] {
        assert_close(&[softplus(x)], &[softplus_reference(x.into())], 3e-7, "softplus");
        assert_close(&[silu(x)], &[silu_reference(x.into())], 3e-7, "silu");
    }
    let (gate, up) = ([1.0, -2.0, 3.0], [4.0, 5.0, -6.0]);
    let mut out = nan(3);
    silu_mul(&gate, &up, &mut out);
    let truth: Vec<f64> = gate.iter().zip(up).map(|(&g, u)| silu_reference(f64::from(g)) * f64::from(u)).collect();
    assert_close(&out, &truth, 3e-7, "silu_mul");
    sigmoid_mul(&gate, &up, &mut out);
    gate.iter().zip(up).zip(out).for_each(|((&g, u), out)| assert!((out - sigmoid(g) * u).abs() < 1e-6));
}

/// x, gelu(x)
const GELU: [(f64, f64); 8] = [
    (-12.5, -4.665_705_373_597_14e-35),
    (-5.0, -1.433_257_859_395_97e-6),
    (-2.9, -5.410_858_571_113_71e-3),
    (-2.7, -9.360_829_268_209_8e-3),
    (-1.0, -0.158_655_253_931_457),
    (-0.001, -4.996_010_577_860_89e-4),
    (0.5, 0.345_731_230_637_007),
    (3.0, 2.995_950_305_905_11),
];

#[test]
fn the_reference_gelu_is_gelu() {
    // x Φ(x) by others, on both sides of the seam of the two forms.
    for (x, truth) in GELU {
        assert!(((gelu_reference(x) - truth) / truth).abs() < 1e-11, "gelu {x}");
    }
    for x in [-3.0, -0.5, 0.3, 2.0] {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        assert!((gelu_tanh_reference(x) - 0.5 * x * (1.0 + inner.tanh())).abs() < 1e-14);
    }
}

#[test]
fn activations_by_name() {
    on_each_set(|| {
        let mut rng = Rng::new(27);
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu2] {
            for n in [0, 1, 7, 8, 9, 100] {
                let gate: Vec<f32> = rng.vec(n).iter().map(|x| 4.0 * x).collect();
                let (up, mut plain, mut out) = (rng.vec(n), gate.clone(), nan(n));
                activation.apply(&mut plain);
                let truth: Vec<f64> = gate.iter().map(|&g| activation.reference(g.into())).collect();
                assert_close(&plain, &truth, 1e-6, &format!("{activation:?}"));
                activation.apply_mul(&gate, &up, &mut out);
                let product: Vec<f32> = plain.iter().zip(&up).map(|(f, u)| f * u).collect();
                assert_eq!(bits(&out), bits(&product), "{activation:?}: apply_mul");
            }
        }
    });
}

#[test]
fn norms_equal_the_reference() {
    on_each_set(|| {
        let mut rng = Rng::new(4);
        for (tokens, width, groups) in [(1, 8, 1), (3, 20, 4), (2, 66, 2), (5, 512, 1), (2, 512, 8)] {
            let (xs, zs, w) = (rng.vec(tokens * width), rng.vec(tokens * width), rng.vec(width));
            let mut ys = nan(tokens * width);
            rms_norm(&xs, &w, 1e-5, &mut ys);
            assert_close(&ys, &rms_norm_reference(&xs, &w, 1e-5), 1e-6, "rms");

            let (mut plain, mut scales) = (nan(tokens * width), nan(tokens * groups));
            gated_group_rms_norm(&xs, &zs, &w, groups, 1e-5, &mut ys, Some(&mut scales));
            gated_group_rms_norm(&xs, &zs, &w, groups, 1e-5, &mut plain, None);
            assert_eq!(bits(&ys), bits(&plain), "asking for the scale changed the output");
            let (y, scale) = gated_group_rms_norm_reference(&xs, &zs, &w, groups, 1e-5);
            assert_close(&ys, &y, 2e-6, "gated");
            assert_close(&scales, &scale, 2e-6, "scale");

            let (mut ys, mut scales) = (nan(tokens * width), nan(tokens * groups));
            group_rms_norm_gated(&xs, &zs, &w, groups, 1e-5, &mut ys, Some(&mut scales));
            group_rms_norm_gated(&xs, &zs, &w, groups, 1e-5, &mut plain, None);
            assert_eq!(bits(&ys), bits(&plain), "asking for the scale changed the output");
            let (y, scale) = group_rms_norm_gated_reference(&xs, &zs, &w, groups, 1e-5);
            assert_close(&ys, &y, 2e-6, "norm first");
            assert_close(&scales, &scale, 2e-6, "scale, norm first");

            let far: Vec<f32> = xs.iter().map(|x| 1000.0 + x).collect();
            for (xs, tolerance) in [(&xs, 1e-6), (&far, 1e-4)] {
                for bias in [None, Some(&zs[..width])] {
                    let mut ys = nan(tokens * width);
                    layer_norm(xs, &w, bias, 1e-5, &mut ys);
                    assert_close(&ys, &layer_norm_reference(xs, &w, bias, 1e-5), tolerance, "layer norm");
                }
            }

            let (size, mut ys) = (width / groups, xs.clone());
            l2_normalise(&mut ys, size, 1e-6, 0.3);
            assert_close(&ys, &l2_normalise_reference(&xs, size, 1e-6, 0.3), 1e-6, "l2");
        }
        let mut zeros = [0.0; 6];
        l2_normalise(&mut zeros, 3, 1e-6, 1.0);
        assert_eq!(zeros, [0.0; 6]);
        let mut zeros = nan(4);
        rms_norm(&[0.0; 4], &[1.0; 4], 1e-5, &mut zeros);
        assert_eq!(zeros, [0.0; 4]);
    });
}

#[test]
fn convolution_equals_the_reference_and_can_be_split_anywhere() {
    on_each_set(|| {
        let mut rng = Rng::new(5);
        for channels in [1, 7, 19, 40] {
            for taps in [1, 2, 4, 5, 20] {
                for tokens in LENGTHS {
                    let (xs, w, bias) = (rng.vec(tokens * channels), rng.vec(channels * taps), rng.vec(channels));
                    let start = rng.vec(channels * (taps - 1));
                    let (mut whole, mut history) = (nan(tokens * channels), start.clone());
                    causal_conv(&xs, &w, Some(&bias), &mut history, &mut whole);
                    assert_close(&whole, &conv::reference(&xs, &w, Some(&bias), &start), 1e-6, "conv");
                    let all: Vec<f32> = start.iter().chain(&xs).copied().collect();
                    assert_eq!(history, all[all.len() - start.len()..], "history");
                    let widths = [channels / 3, 0, channels - channels / 3];
                    let mut parts = widths.map(|width| nan(tokens * width));
                    let mut places = parts.each_mut().map(|part| &mut part[..]);
                    causal_conv_parts(&xs, &w, Some(&bias), &mut start.clone(), &mut places);
                    for (t, row) in whole.chunks_exact(channels).enumerate() {
                        let of_token = parts.iter().zip(widths).flat_map(|(part, width)| &part[t * width..][..width]);
                        assert_eq!(bits(&of_token.copied().collect::<Vec<_>>()), bits(row), "parts");
                    }
                    let mut activated = widths.map(|width| nan(tokens * width));
                    let mut places = activated.each_mut().map(|part| &mut part[..]);
                    causal_conv_silu(&xs, &w, Some(&bias), &mut start.clone(), &mut places);
                    parts.iter_mut().for_each(|part| silu_slice(part));
                    assert_eq!(
                        activated.each_ref().map(|part| bits(part)),
                        parts.each_ref().map(|part| bits(part)),
                        "silu"
                    );
                    for at in [1, 2, 5, 64].into_iter().filter(|&at| at < tokens) {
                        let (mut out, mut history) = (nan(tokens * channels), start.clone());
                        let (first, rest) = out.split_at_mut(at * channels);
                        causal_conv(&xs[..at * channels], &w, Some(&bias), &mut history, first);
                        causal_conv(&xs[at * channels..], &w, Some(&bias), &mut history, rest);
                        assert_eq!(bits(&out), bits(&whole), "split at {at}");
                    }
                }
            }
        }
    });
}

#[test]
fn reductions() {
    use reduce::*;
    let xs = [3.0, f32::NAN, -4.0, 1.0];
    assert_eq!(l2_norm(&[3.0, -4.0]), 5.0);
    assert_eq!(l2_norm(&[3e30, 4e30]), 5e30);
    assert_eq!((abs_max(&xs), min_max(&xs), argmax(&xs)), (4.0, Some((-4.0, 3.0)), Some(0)));
    assert_eq!((abs_max(&[]), min_max(&[f32::NAN]), argmax(&[f32::NAN])), (0.0, None, None));
    assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
    assert_eq!(top_k(&[1.0, 5.0, f32::NAN, 5.0, -2.0], 3), [(1, 5.0), (3, 5.0), (0, 1.0)]);
    assert_eq!(top_k(&[1.0], 9), [(0, 1.0)]);
    assert!(top_k(&[1.0], 0).is_empty() && top_k(&[], 2).is_empty());
    assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2f32.ln())).abs() < 1e-4);
    assert_eq!(log_sum_exp(&[]), f32::NEG_INFINITY);
    assert!((entropy_bits(&[7.0; 8]) - 3.0).abs() < 1e-6);
    assert_eq!(entropy_bits(&[1e30, 0.0, f32::NEG_INFINITY]), 0.0);
}

#[test]
fn the_largest_are_those_of_a_sorted_list() {
    on_each_set(|| {
        let mut rng = Rng::new(17);
        for length in [0, 1, 31, 63, 64, 65, 127, 128, 500, 4096] {
            for (steps, special) in [(3.0, false), (1e4, false), (3.0, true), (1e4, true)] {
                // Few steps: many equals.
                let mut xs: Vec<f32> = rng.vec(length).iter().map(|x| (x * steps).round() / steps).collect();
                if special {
                    let rare = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN, -0.0];
                    xs.iter_mut().step_by(7).zip(rare.into_iter().cycle()).for_each(|(x, rare)| *x = rare);
                }
                let mut sorted: Vec<(u32, f32)> = (0..).zip(xs.iter().map(|x| x + 0.0)).collect();
                sorted.retain(|(_, x)| !x.is_nan());
                sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                for k in [1, 2, 12, 32, 63, 64, 65, 200] {
                    assert_eq!(reduce::top_k(&xs, k), sorted[..k.min(sorted.len())], "{k} of {length}");
                }
            }
        }
    });
}

#[test]
fn pooling_keeps_every_spike() {
    let mut rng = Rng::new(6);
    for (rows, cols, out_rows, out_cols) in [(1, 1, 1, 1), (7, 5, 3, 2), (64, 100, 64, 7), (100, 257, 33, 64)] {
        for spike in [0, rows * cols / 2, rows * cols - 1] {
            let mut data = rng.vec(rows * cols);
            data[spike] = -9.0;
            let mut out = nan(out_rows * out_cols);
            pool_signed_absmax(&data, rows, cols, out_rows, out_cols, &mut out);
            assert_eq!(out.iter().filter(|&&x| x == -9.0).count(), 1);
            assert!(out.iter().all(|x| data.contains(x)));
        }
    }
}
