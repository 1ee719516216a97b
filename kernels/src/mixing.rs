//! The mixing matrix: what every mixer lowers to, and the one op that draws it.
//!
//! y = M x with M lower-triangular. For a recurrence S_t = Λ_t ∘ S_{t−1} + w_t k_t v_tᵀ, y_t = q_tᵀ S_t + D v_t,
//! M[t, s] = w_s Σ_n q_t[n] k_s[n] Π_{s<u≤t} Λ_u[n], + D at s = t; for the delta rule and RWKV-7 Λ is a matrix. Where the state is
//! read before it is written (RWKV), u goes to t − 1 only and M[t, t] is a bonus; where the read is divided by a normaliser of its
//! token (mLSTM), so is the row. For softmax attention M is the weights, for a gated convolution a band.

use std::ops::Range;

use crate::{Attention, cpu};

/// Rows inside a larger array: row t is `data[t·stride + offset ..][..width]`.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub offset: usize,
    pub width: usize,
}

impl<'a> Strided<'a> {
    /// Row `t`.
    #[inline(always)]
    pub fn row(&self, t: usize) -> &'a [f32] {
        &self.data[t * self.stride + self.offset..][..self.width]
    }

    /// The first element of row `t`.
    #[inline(always)]
    pub fn at(&self, t: usize) -> f32 {
        self.data[t * self.stride + self.offset]
    }
}

/// How a state forgets at each token.
#[derive(Clone, Copy, Debug)]
pub enum Decay<'a> {
    /// Not at all: linear attention.
    None,
    /// One factor for the whole state, e^{log_u · factor}: Mamba-2 with log = Δ and factor = A_h.
    Scalar { log: Strided<'a>, factor: f32 },
    /// One factor for each state element n, e^{log_u · rates[n]}: Mamba-1 with log = Δ[c] and rates = A[c, :].
    Diagonal { log: Strided<'a>, rates: &'a [f32] },
    /// One factor for each key dimension, e^{log_u[n]}, log rows of N: GLA, HGRN2, RWKV-6.
    Key { log: Strided<'a> },
    /// diag(e^{log_u}) − b_u κ_uᵀ, rows of N: RWKV-7, with κ = erase and b = replace.
    Corrected { log: Strided<'a>, erase: Strided<'a>, replace: Strided<'a> },
    /// e^{log_u} (I − β_u k_u k_uᵀ), which also writes β_u k_u: the (gated) delta rule, log = g. β stands for w.
    Delta { log: Strided<'a>, beta: Strided<'a> },
}

/// A linear recurrence of one head (or channel).
#[derive(Clone, Copy, Debug)]
pub struct Recurrent<'a> {
    /// T.
    pub tokens: usize,
    /// q [T] rows of N: C.
    pub query: Strided<'a>,
    /// k [T] rows of N: B.
    pub key: Strided<'a>,
    /// w [T] rows of 1: Δ; 1 where absent; none with [`Decay::Delta`].
    pub weight: Option<Strided<'a>>,
    pub decay: Decay<'a>,
    /// D, added at s = t.
    pub diagonal: f32,
    /// M[t, t] [T] rows of 1, where a token reads the state before it writes.
    pub bonus: Option<Strided<'a>>,
    /// [T] rows of 1, by which row t is divided, D apart.
    pub normaliser: Option<Strided<'a>>,
}

impl<'a> Recurrent<'a> {
    /// One that forgets nothing, with nothing on the diagonal beside it.
    pub fn new(tokens: usize, query: Strided<'a>, key: Strided<'a>) -> Self {
        Self { tokens, query, key, weight: None, decay: Decay::None, diagonal: 0.0, bonus: None, normaliser: None }
    }
}

/// A convolution between two gates, short (LFM2) or as long as the text (S4, H3, Hyena), of one channel; or of a head whose gates are
/// vectors that meet (H3 with heads): M[t, s] = (post_t · pre_s) taps[K−1−(t−s)] for 0 ≤ t−s < K, else 0.
#[derive(Clone, Copy, Debug)]
pub struct Toeplitz<'a> {
    /// T.
    pub tokens: usize,
    /// [K], the last for the current token.
    pub taps: &'a [f32],
    /// [T] rows of N: B.
    pub pre: Strided<'a>,
    /// [T] rows of N: C.
    pub post: Strided<'a>,
}

/// One head of a mixer, lowered to what determines its M.
#[derive(Clone, Copy, Debug)]
pub enum Lowered<'a> {
    Recurrent(Recurrent<'a>),
    Softmax {
        attention: Attention<'a>,
        /// q of `head`, rotated: rows of head_dim. Row t stands at position t.
        query: Strided<'a>,
        head: usize,
    },
    Toeplitz(Toeplitz<'a>),
    /// A product of convolutions with gates of width 1, the one that the values meet first last (Hyena of order above 2).
    Product(&'a [Toeplitz<'a>]),
}

impl Recurrent<'_> {
    /// Its tokens.
    fn check(&self) -> usize {
        let Recurrent { query, key, weight, decay, .. } = *self;
        assert_eq!(query.width, key.width, "mixing: query and key differ in width");
        let single = [self.bonus, self.normaliser].into_iter().flatten().all(|column| column.width == 1);
        assert!(single, "mixing: bonus or normaliser is not of width 1");
        match decay {
            Decay::Scalar { log, .. } | Decay::Diagonal { log, .. } | Decay::Delta { log, .. } => {
                assert_eq!(log.width, 1, "mixing: log-decay is not of width 1")
            }
            Decay::Key { log } => assert_eq!(log.width, key.width, "mixing: log-decay is not [N]"),
            Decay::Corrected { log, erase, replace } => {
                let widths = [log.width, erase.width, replace.width];
                assert_eq!(widths, [key.width; 3], "mixing: log-decay or correction is not [N]");
            }
            Decay::None => {}
        }
        if let Decay::Diagonal { rates, .. } = decay {
            assert_eq!(rates.len(), key.width, "mixing: rates are not [N]");
        }
        if let Decay::Delta { beta, .. } = decay {
            assert!(beta.width == 1 && weight.is_none(), "mixing: the weight of a delta rule is beta, of width 1");
        }
        self.tokens
    }
}

impl Lowered<'_> {
    fn check(&self, end: usize) {
        let tokens = match self {
            Lowered::Recurrent(r) => r.check(),
            Lowered::Toeplitz(band) => band.check(),
            Lowered::Product(bands) => {
                assert!(bands.iter().all(|band| band.pre.width == 1), "mixing: gates of a product are not of width 1");
                bands.iter().map(Toeplitz::check).min().expect("a product of one convolution at least")
            }
            Lowered::Softmax { .. } => return,
        };
        assert!(end <= tokens, "mixing: row {} of {tokens}", end - 1);
    }

    /// Row `t` of M: what token t takes from each token s ≤ t. `out` [t + 1].
    pub fn row(&self, t: usize, out: &mut [f32]) {
        self.check(t + 1);
        assert_eq!(out.len(), t + 1, "mixing row: out is not [t + 1]");
        cpu::mixing::row(self, t, out);
    }

    /// Rows `range` of M, `out` [rows, range.end], zeros above the diagonal. The bits are those of [`Lowered::row`].
    pub fn rows(&self, range: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), range.len() * range.end, "mixing rows: out is not [rows, range.end]");
        if !range.is_empty() {
            self.check(range.end);
            cpu::mixing::rows(self, range, out);
        }
    }

    /// [`Lowered::row`] in f64.
    pub fn reference_row(&self, t: usize) -> Vec<f64> {
        let r = match self {
            Lowered::Recurrent(r) => r,
            Lowered::Softmax { attention, query, head } => return attention.reference_row(query.row(t), *head, t),
            Lowered::Toeplitz(band) => return band.reference_row(t),
            Lowered::Product(bands) => {
                let mut row = vec![0.0; t + 1];
                row[t] = 1.0;
                for band in *bands {
                    let mut next = vec![0.0; t + 1];
                    for (i, weight) in row.iter().enumerate() {
                        next.iter_mut().zip(band.reference_row(i)).for_each(|(next, m)| *next += weight * m);
                    }
                    row = next;
                }
                return row;
            }
        };
        let mut u: Vec<f64> = r.query.row(t).iter().map(|&q| q.into()).collect();
        let mut out = vec![0.0; t + 1];
        let end = if r.bonus.is_some() { t } else { t + 1 };
        for s in (0..end).rev() {
            let key: Vec<f64> = r.key.row(s).iter().map(|&k| k.into()).collect();
            let dot: f64 = u.iter().zip(&key).map(|(u, k)| u * k).sum();
            out[s] = dot * r.weight.map_or(1.0, |w| w.at(s).into());
            if let Decay::Delta { beta, .. } = r.decay {
                out[s] = dot * f64::from(beta.at(s));
                u.iter_mut().zip(&key).for_each(|(u, k)| *u -= out[s] * k);
            }
            let found = match r.decay {
                Decay::Corrected { replace, .. } => {
                    u.iter().zip(replace.row(s)).map(|(u, &b)| u * f64::from(b)).sum::<f64>()
                }
                _ => 0.0,
            };
            for (n, u) in u.iter_mut().enumerate() {
                *u *= match r.decay {
                    Decay::None => 1.0,
                    Decay::Key { log } | Decay::Corrected { log, .. } => f64::from(log.row(s)[n]).exp(),
                    Decay::Scalar { log, factor } => (f64::from(log.at(s)) * f64::from(factor)).exp(),
                    Decay::Diagonal { log, rates } => (f64::from(log.at(s)) * f64::from(rates[n])).exp(),
                    Decay::Delta { log, .. } => f64::from(log.at(s)).exp(),
                };
                if let Decay::Corrected { erase, .. } = r.decay {
                    *u -= found * f64::from(erase.row(s)[n]);
                }
            }
        }
        if let Some(bonus) = r.bonus {
            out[t] = bonus.at(t).into();
        }
        if let Some(normaliser) = r.normaliser {
            out.iter_mut().for_each(|m| *m /= f64::from(normaliser.at(t)));
        }
        out[t] += f64::from(r.diagonal);
        out
    }
}

impl Toeplitz<'_> {
    /// Its tokens.
    fn check(&self) -> usize {
        assert_eq!(self.pre.width, self.post.width, "mixing: gates differ in width");
        self.tokens
    }

    fn reference_row(&self, t: usize) -> Vec<f64> {
        let tap = |age: usize| self.taps.len().checked_sub(age + 1).map_or(0.0, |i| f64::from(self.taps[i]));
        let gates = |s: usize| -> f64 {
            self.post.row(t).iter().zip(self.pre.row(s)).map(|(&c, &b)| f64::from(c) * f64::from(b)).sum()
        };
        (0..=t).map(|s| gates(s) * tap(t - s)).collect()
    }
}

/// What rows of M make of the values: out_r = Σ_s rows[r, s] v_s. `rows` [R, width], width ≤ T, rows of `values` [P], `out` [R, P].
pub fn apply_rows(rows: &[f32], width: usize, values: Strided<'_>, out: &mut [f32]) {
    assert!(width > 0 && rows.len().is_multiple_of(width), "apply_rows: rows are not [R, {width}]");
    assert_eq!(out.len(), rows.len() / width * values.width, "apply_rows: out is not [R, P]");
    cpu::mixing::apply_rows(rows, width, values, out);
}

/// Extends a core row over the short convolution and its silu (Ali et al. 2024, with frozen coefficients):
/// out[j] = Σ_k W[K−1−k] φ[j+k] row[j+k], j + k ≤ t.
///
/// `row`, `out` [t + 1]; `phi` rows of 1 over the tokens: φ_s = σ(v_s), already taken of the convolution's output v; `taps` [K] of the
/// channel.
pub fn extend_row_over_conv(row: &[f32], phi: Strided<'_>, taps: &[f32], out: &mut [f32]) {
    assert_eq!(row.len(), out.len(), "extend_row_over_conv: row and out differ in length");
    for (j, out) in out.iter_mut().enumerate() {
        let reach = taps.len().min(row.len() - j);
        *out = (0..reach).map(|k| taps[taps.len() - 1 - k] * phi.at(j + k) * row[j + k]).sum();
    }
}
