//! State spaces: the three forms agree, and the numbers of others; long convolutions.

use super::goldens::{check, s};
use super::*;
use crate::long_conv as convolution;
use crate::state_space::{Complex, Continuous, Discrete, Discretisation};
use crate::{StateSpace, long_conv};

/// λ = −½ + iπn (S4D-Lin), B = 1 and C of sines.
fn linear(states: usize) -> [Vec<Complex>; 3] {
    let c = s(0.2, &[states]).into_iter().zip(s(0.6, &[states])).map(|(re, im)| Complex::new(re.into(), im.into()));
    let lambda = |n| Complex::new(-0.5, std::f64::consts::PI * f64::from(n));
    [(0..states as u32).map(lambda).collect(), vec![Complex::ONE; states], c.collect()]
}

fn space<'a>(system: &'a Discrete, skip: &'a [f32]) -> StateSpace<'a> {
    let Discrete { decay, input, output, look, take } = system;
    StateSpace { channels: skip.len(), decay, input, output, look, take, skip }
}

#[test]
fn numbers_of_others() {
    let [lambda, b, c] = linear(4);
    let system = Continuous { lambda: &lambda, b: &b, c: &c, low_rank: None, step: 0.05 };
    let hold = [0.149502828, 0.147335454, 0.13579464, 0.111521244, 0.0738616792, 0.0252225016];
    let bilinear = [0.148928939, 0.146040706, 0.134331674, 0.110669586, 0.0743552429, 0.0274778539];
    let cases = [
        (Discretisation::ZeroOrderHold, hold, [-0.129892303, 0.567050833, 0.166412851]),
        (Discretisation::Bilinear, bilinear, [-0.127040441, 0.564096806, 0.163351154]),
    ];
    for (rule, taps, [last, sum, squares]) in cases {
        let discrete = system.discretise(rule);
        let (space, u) = (space(&discrete, &[0.0]), s(0.3, &[6]));
        assert_close(&space.taps(0, 6), &taps, 1e-5, "K");
        let mut y = nan(6);
        space.forward(&u, &mut [0.0; 8], &mut y);
        check(&y, &[last], sum, squares);
    }
}

/// Three channels, the last two DPLR where asked for.
fn channels(rule: Discretisation, low_rank: bool) -> Discrete {
    let mut all = Discrete::default();
    for (channel, step) in [0.02, 0.1, 0.5].into_iter().enumerate() {
        let [mut lambda, b, c] = linear(9);
        lambda.iter_mut().for_each(|l| l.re -= channel as f64);
        let p: Vec<Complex> =
            (0..9).map(|n| Complex::new(0.7 + f64::from(n) / 9.0, 0.3 * f64::from(n)) * 0.5).collect();
        let low_rank = low_rank.then_some(&p[..]);
        let one = Continuous { lambda: &lambda, b: &b, c: &c, low_rank, step }.discretise(rule);
        let pairs = [(&mut all.decay, one.decay), (&mut all.input, one.input), (&mut all.output, one.output)];
        pairs.into_iter().for_each(|(all, one)| all.extend(one));
        all.look.extend(one.look);
        all.take.extend(one.take);
    }
    all
}

#[test]
fn recurrence_and_convolution_agree() {
    let cases =
        [(Discretisation::ZeroOrderHold, false), (Discretisation::Bilinear, false), (Discretisation::Bilinear, true)];
    for (rule, low_rank) in cases {
        let discrete = channels(rule, low_rank);
        let space = space(&discrete, &[0.5, -0.25, 1.0]);
        for tokens in LENGTHS {
            let u = Rng::new(tokens as u64).vec(tokens * 3);
            let (mut state, mut expected) = (vec![0.0; 54], vec![0.0; tokens * 3]);
            space.reference(&u, &mut state, &mut expected);
            let (mut stepped, mut y) = (vec![0.0; 54], nan(tokens * 3));
            space.forward(&u, &mut stepped, &mut y);
            assert_close(&y, &expected, 2e-6, "recurrence");
            assert_close(&stepped, &state, 2e-6, "state");
            // Some by steps, the rest by convolution, so that the state before it counts.
            let (mut state, mut y, cut) = (vec![0.0; 54], nan(tokens * 3), tokens / 3 * 3);
            space.forward(&u[..cut], &mut state, &mut y[..cut]);
            space.convolve(&u[cut..], &mut state, &mut y[cut..]);
            assert_close(&y, &expected, 2e-6, "convolution");
            let mut folded = vec![0.0; 54];
            space.fold(&u, &mut folded);
            assert_eq!(bits(&folded), bits(&stepped));
            assert_eq!(bits(&state), bits(&stepped));
        }
    }
}

/// x' = A x + B u with u held between tokens, integrated in steps so small that the rule does not matter: zero-order hold is exact, the
/// trapezoid rule as good as Δ² allows.
#[test]
fn the_continuous_system_agrees() {
    let [lambda, b, c] = linear(4);
    let p: Vec<Complex> = (0..4).map(|n| Complex::new(0.5 + f64::from(n), 0.25)).collect();
    let u = s(0.3, &[40]);
    for (rule, low_rank, step, tolerance) in [
        (Discretisation::ZeroOrderHold, None, 0.1, 1e-5),
        (Discretisation::Bilinear, None, 0.002, 1e-3),
        (Discretisation::Bilinear, Some(&p[..]), 0.002, 1e-3),
    ] {
        let system = Continuous { lambda: &lambda, b: &b, c: &c, low_rank, step };
        let discrete = system.discretise(rule);
        let mut y = nan(40);
        space(&discrete, &[0.0]).forward(&u, &mut [0.0; 8], &mut y);
        let (mut x, mut expected) = (vec![Complex::default(); 4], Vec::new());
        let slope = |x: &[Complex], u: f64| -> Vec<Complex> {
            let found = low_rank.map_or(0.0, |p| 2.0 * p.iter().zip(x).map(|(p, &x)| (p.conj() * x).re).sum::<f64>());
            (0..4)
                .map(|n| lambda[n] * x[n] - low_rank.map_or(Complex::default(), |p| p[n]) * found + b[n] * u)
                .collect()
        };
        for u in &u {
            let pieces = 400;
            for _ in 0..pieces {
                // The midpoint rule.
                let dt = step / f64::from(pieces);
                let first = slope(&x, (*u).into());
                let middle: Vec<Complex> = x.iter().zip(&first).map(|(&x, &k)| x + k * (dt / 2.0)).collect();
                let second = slope(&middle, (*u).into());
                x.iter_mut().zip(&second).for_each(|(x, &k)| *x = *x + k * dt);
            }
            expected.push(2.0 * x.iter().zip(&c).map(|(&x, &c)| (c * x).re).sum::<f64>());
        }
        assert_close(&y, &expected, tolerance, "continuous");
    }
}

/// Dense: x ← (1 − ΔA/2)⁻¹ (1 + ΔA/2) x + …, solved by what it says: (1 − ΔA/2) x_t = (1 + ΔA/2) x_{t−1} + Δ B u_t.
#[test]
fn low_rank_steps_solve_the_trapezoid_rule() {
    let [lambda, b, c] = linear(4);
    let p: Vec<Complex> = (0..4).map(|n| Complex::new(0.5 + f64::from(n), 0.25)).collect();
    let step = 0.1;
    let discrete =
        Continuous { lambda: &lambda, b: &b, c: &c, low_rank: Some(&p), step }.discretise(Discretisation::Bilinear);
    let one = [1.0f32];
    let space = space(&discrete, &one);
    let complex = |x: &[f32]| -> Vec<Complex> { (0..4).map(|n| Complex::new(x[n].into(), x[4 + n].into())).collect() };
    let times_a = |x: &[Complex]| -> Vec<Complex> {
        let found = 2.0 * p.iter().zip(x).map(|(p, &x)| (p.conj() * x).re).sum::<f64>();
        (0..4).map(|n| lambda[n] * x[n] - p[n] * found).collect()
    };
    let mut state = vec![0.0; 8];
    for u in s(0.3, &[20]) {
        let before = complex(&state);
        space.fold(&[u], &mut state);
        let after = complex(&state);
        let (a_before, a_after) = (times_a(&before), times_a(&after));
        for n in 0..4 {
            let left = after[n] - a_after[n] * (step / 2.0);
            let right = before[n] + a_before[n] * (step / 2.0) + b[n] * (step * f64::from(u));
            assert!((left - right).norm() < 1e-6, "{left:?} {right:?}");
        }
    }
}

#[test]
fn long_convolutions() {
    for (rows, channels, length) in [(1, 3, 1), (65, 9, 100), (100, 8, 7), (257, 3, 257)] {
        let mut rng = Rng::new(rows as u64);
        let (xs, taps) = (rng.vec(rows * channels), rng.vec(length * channels));
        let mut out = nan(xs.len());
        long_conv(&xs, &taps, channels, &mut out);
        assert_close(&out, &convolution::reference(&xs, &taps, channels, rows), 2e-6, "long convolution");
        let mut last = nan(channels);
        long_conv(&xs, &taps, channels, &mut last);
        assert_eq!(bits(&last), bits(&out[out.len() - channels..]));
    }
}
