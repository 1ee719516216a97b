//! Linear time-invariant state spaces, one a channel: S4 (Gu, Goel & Ré 2022, arXiv 2111.00396) and S4D (Gu et al. 2022, arXiv 2206.11893).
//!
//! One system has three forms that say the same. *Continuous*: x'(τ) = A x + B u, y = 2 Re C x + D u, A = diag(λ), or diag(λ) − P Pᴴ
//! (diagonal plus low rank, DPLR), N/2 complex states that stand for N with their conjugates. *Recurrent*: x_t = Ā x_{t−1} + B̄ u_t, after
//! [`Continuous::discretise`] with a step Δ. *Convolutional*: y = K ∗ u + D u with K[l] = 2 Re C Āˡ B̄, [`StateSpace::taps`].
//!
//! [`StateSpace`] is written in real numbers, the real parts of a channel's states before the imaginary ones: then Ā is a turn and a
//! shrinking of every pair less a matrix of rank one, x ← Ā₀ x − g (e·x) + b u, y = c·x + D u.

pub use crate::complex::Complex;
use crate::{cpu, long_conv};

/// How a continuous system becomes one of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discretisation {
    /// u stands still between two tokens: Ā = e^{ΔA}, B̄ = A⁻¹(Ā − 1) B. Of diagonal systems.
    ZeroOrderHold,
    /// The trapezoid rule: Ā = (1 − ΔA/2)⁻¹ (1 + ΔA/2), B̄ = (1 − ΔA/2)⁻¹ Δ B.
    Bilinear,
}

/// One continuous system, N/2 of each.
#[derive(Clone, Copy, Debug)]
pub struct Continuous<'a> {
    pub lambda: &'a [Complex],
    pub b: &'a [Complex],
    pub c: &'a [Complex],
    /// P, where A is not diagonal.
    pub low_rank: Option<&'a [Complex]>,
    /// Δ.
    pub step: f64,
}

/// One system in steps: the rows of a channel in [`StateSpace`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Discrete {
    pub decay: Vec<f32>,
    pub input: Vec<f32>,
    pub output: Vec<f32>,
    /// e, then g; empty for a diagonal system.
    pub look: Vec<f32>,
    pub take: Vec<f32>,
}

impl Continuous<'_> {
    /// # Panics
    /// A zero-order hold of a system that is not diagonal: the exponential of its matrix is not of this form.
    pub fn discretise(&self, rule: Discretisation) -> Discrete {
        let Continuous { lambda, b, c, low_rank, step } = *self;
        let mut discrete = Discrete { output: planes(c.iter().map(|c| c.conj() * 2.0)), ..Discrete::default() };
        if rule == Discretisation::ZeroOrderHold {
            assert!(low_rank.is_none(), "state space: a zero-order hold needs a diagonal system");
            discrete.decay = planes(lambda.iter().map(|&l| (l * step).exp()));
            discrete.input = planes(lambda.iter().zip(b).map(|(&l, &b)| b * held(l, step)));
            return discrete;
        }
        let half = step / 2.0;
        // D = (1 − Δλ/2)⁻¹.
        let inverse: Vec<Complex> = lambda.iter().map(|&l| (Complex::ONE - l * half).inverse()).collect();
        discrete.decay = planes(lambda.iter().zip(&inverse).map(|(&l, &d)| (Complex::ONE + l * half) * d));
        let mut input: Vec<Complex> = b.iter().zip(&inverse).map(|(&b, &d)| b * d * step).collect();
        if let Some(p) = low_rank {
            // Woodbury: (1 − ΔA/2)⁻¹ = D − (Δ/2) D P (1 + (Δ/2) Pᴴ D P)⁻¹ Pᴴ D. Pᴴ x over all states is 2 Re Σ P̄ x over half of them.
            let of_p = |xs: &[Complex]| 2.0 * xs.iter().zip(p).map(|(&x, p)| (p.conj() * x).re).sum::<f64>();
            let turned: Vec<Complex> = p.iter().zip(&inverse).map(|(&p, &d)| d * p).collect();
            let gain = half / (1.0 + half * of_p(&turned));
            let found = of_p(&input);
            input.iter_mut().zip(&turned).for_each(|(b, &turned)| *b = *b - turned * (gain * found));
            // Ā x = Ā₀ x − gain D P · 2 Re Σ P̄ 2D x.
            discrete.take = planes(turned.iter().map(|&turned| turned * gain));
            discrete.look = planes(p.iter().zip(&inverse).map(|(&p, &d)| p * d.conj() * 4.0));
        }
        discrete.input = planes(input.into_iter());
        discrete
    }
}

/// ∫₀^Δ e^{λτ} dτ = (e^{λΔ} − 1) / λ.
fn held(lambda: Complex, step: f64) -> Complex {
    let x = lambda * step;
    if x.norm() < 1e-4 {
        // Where the difference loses its digits, its series.
        return (Complex::ONE + x * 0.5 + x * x * (1.0 / 6.0)) * step;
    }
    (x.exp() - Complex::ONE) * lambda.inverse()
}

/// Real parts, then imaginary parts.
fn planes(xs: impl Iterator<Item = Complex>) -> Vec<f32> {
    let xs: Vec<Complex> = xs.collect();
    xs.iter().map(|x| x.re as f32).chain(xs.iter().map(|x| x.im as f32)).collect()
}

/// C systems in steps.
#[derive(Clone, Copy, Debug)]
pub struct StateSpace<'a> {
    /// C.
    pub channels: usize,
    /// Ā₀ [C, N].
    pub decay: &'a [f32],
    /// b [C, N].
    pub input: &'a [f32],
    /// c [C, N].
    pub output: &'a [f32],
    /// e and g [C, N] each; empty for diagonal systems.
    pub look: &'a [f32],
    pub take: &'a [f32],
    /// D [C].
    pub skip: &'a [f32],
}

impl StateSpace<'_> {
    fn check(&self, inputs: usize, state: usize) {
        let len = self.decay.len();
        let width = len / self.channels.max(1);
        assert!(
            self.channels > 0 && len == width * self.channels && width.is_multiple_of(2),
            "state space: Ā is not [C, N]"
        );
        assert!([self.input.len(), self.output.len(), state] == [len; 3], "state space: b, c or state is not [C, N]");
        assert!(
            self.look.len() == self.take.len() && [0, len].contains(&self.look.len()),
            "state space: e or g is not [C, N]"
        );
        assert_eq!(self.skip.len(), self.channels, "state space: D is not [C]");
        assert!(inputs.is_multiple_of(self.channels), "state space: u is not [T, C]");
    }

    /// The recurrent form: T tokens u [T, C] from `state` [C, N], which becomes that of the last; `y` [T, C].
    pub fn forward(&self, u: &[f32], state: &mut [f32], y: &mut [f32]) {
        self.check(u.len(), state.len());
        assert_eq!(y.len(), u.len(), "state space: y is not [T, C]");
        cpu::state_space::run(self, u, state, Some(y));
    }

    /// The state alone, with the bits of [`StateSpace::forward`].
    pub fn fold(&self, u: &[f32], state: &mut [f32]) {
        self.check(u.len(), state.len());
        cpu::state_space::run(self, u, state, None);
    }

    /// The convolutional form of the same: u with the taps, and what the state before still says. Shapes as [`StateSpace::forward`].
    pub fn convolve(&self, u: &[f32], state: &mut [f32], y: &mut [f32]) {
        self.check(u.len(), state.len());
        let rows = u.len() / self.channels;
        let mut taps = vec![0.0; u.len()];
        for channel in 0..self.channels {
            let column = taps[channel..].iter_mut().step_by(self.channels);
            column.zip(self.taps(channel, rows)).for_each(|(tap, value)| *tap = value);
        }
        long_conv(u, &taps, self.channels, y);
        if state.iter().any(|&x| x != 0.0) {
            let (mut before, mut rest) = (state.to_vec(), vec![0.0; u.len()]);
            self.forward(&vec![0.0; u.len()], &mut before, &mut rest);
            y.iter_mut().zip(&rest).for_each(|(y, rest)| *y += rest);
        }
        self.fold(u, state);
    }

    /// K of one channel, `length` of it, D in the first: what an input says 0, 1, … tokens later.
    pub fn taps(&self, channel: usize, length: usize) -> Vec<f32> {
        let width = self.decay.len() / self.channels;
        let at = channel * width..(channel + 1) * width;
        let wide =
            |xs: &[f32]| -> Vec<f64> { xs.get(at.clone()).unwrap_or_default().iter().map(|&x| x.into()).collect() };
        let system = System { decay: wide(self.decay), look: wide(self.look), take: wide(self.take) };
        let (output, mut state) = (wide(self.output), wide(self.input));
        let mut taps = Vec::with_capacity(length);
        for _ in 0..length {
            taps.push(dot(&output, &state) as f32);
            system.advance(&mut state);
        }
        if let Some(first) = taps.first_mut() {
            *first += self.skip[channel];
        }
        taps
    }

    /// [`StateSpace::forward`] in f64.
    pub fn reference(&self, u: &[f32], state: &mut [f64], y: &mut [f64]) {
        let width = self.decay.len() / self.channels;
        for (channel, state) in state.chunks_exact_mut(width).enumerate() {
            let at = channel * width..(channel + 1) * width;
            let wide =
                |xs: &[f32]| -> Vec<f64> { xs.get(at.clone()).unwrap_or_default().iter().map(|&x| x.into()).collect() };
            let system = System { decay: wide(self.decay), look: wide(self.look), take: wide(self.take) };
            let (input, output) = (wide(self.input), wide(self.output));
            for i in (channel..u.len()).step_by(self.channels) {
                system.advance(state);
                state.iter_mut().zip(&input).for_each(|(x, b)| *x += b * f64::from(u[i]));
                y[i] = dot(&output, state) + f64::from(self.skip[channel]) * f64::from(u[i]);
            }
        }
    }
}

/// Ā of one channel.
struct System {
    decay: Vec<f64>,
    look: Vec<f64>,
    take: Vec<f64>,
}

impl System {
    /// x ← Ā x.
    fn advance(&self, state: &mut [f64]) {
        let half = state.len() / 2;
        let found = dot(&self.look, state);
        for n in 0..half {
            let (a, b, re, im) = (self.decay[n], self.decay[half + n], state[n], state[half + n]);
            (state[n], state[half + n]) = (a * re - b * im, a * im + b * re);
        }
        state.iter_mut().zip(&self.take).for_each(|(x, g)| *x -= g * found);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
