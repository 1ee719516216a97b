//! One number a channel: h_t = e^{log_t} h_{t−1} + i_t x_t, y_t = h_t. The linear recurrence of Griffin (De et al. 2024).
//!
//! RWKV-4 (Peng et al. 2023) is one too. Its weighted mean wkv keeps a numerator and a denominator; their quotient h, the mean of
//! all values so far, follows h_t = (1 − g_t) h_{t−1} + g_t v_t, and a token reads (1 − c_t) h_{t−1} + c_t v_t, with the g and c of
//! [`wkv_gates`].

use crate::cpu;

/// Inputs of the scan; T tokens, C channels.
#[derive(Clone, Copy, Debug)]
pub struct ChannelScan<'a> {
    /// C.
    pub channels: usize,
    /// [T, C], ≤ 0.
    pub log_decay: &'a [f32],
    /// i [T, C].
    pub input: &'a [f32],
    /// x [T, C].
    pub x: &'a [f32],
    /// c [T, C]: the state is read before it is written, y_t = (1 − c_t) h_{t−1} + c_t x_t.
    pub bonus: Option<&'a [f32]>,
}

impl ChannelScan<'_> {
    fn check(&self, state: usize) {
        assert!(self.channels > 0 && self.x.len().is_multiple_of(self.channels), "channel scan: x is not [T, C]");
        let len = self.x.len();
        assert!(self.log_decay.len() == len && self.input.len() == len, "channel scan: decay or input is not [T, C]");
        assert!(self.bonus.is_none_or(|bonus| bonus.len() == len), "channel scan: bonus is not [T, C]");
        assert_eq!(state, self.channels, "channel scan: state is not [C]");
    }

    /// Runs T tokens from `state` [C], which becomes that of the last; `y` [T, C].
    pub fn forward(&self, state: &mut [f32], y: &mut [f32]) {
        self.check(state.len());
        assert_eq!(y.len(), self.x.len(), "channel scan: y is not [T, C]");
        cpu::channel_scan::run(self, state, Some(y));
    }

    /// The state alone, with the bits of [`ChannelScan::forward`].
    pub fn fold(&self, state: &mut [f32]) {
        self.check(state.len());
        cpu::channel_scan::run(self, state, None);
    }

    /// [`ChannelScan::forward`] in f64.
    pub fn reference(&self, state: &mut [f64], y: &mut [f64]) {
        for i in 0..self.x.len() {
            let (h, x) = (&mut state[i % self.channels], f64::from(self.x[i]));
            let before = *h;
            *h = f64::from(self.log_decay[i]).exp() * *h + f64::from(self.input[i]) * x;
            y[i] = self.bonus.map_or(*h, |bonus| before + f64::from(bonus[i]) * (x - before));
        }
    }
}

/// `log_sum` [C] of an RWKV-4 that has read nothing. Finite, so that differences are.
pub const WKV_EMPTY: f32 = -1e30;

/// Decays below are 0 in f32.
const FORGOTTEN: f32 = -104.0;

/// What RWKV-4's exponential weights e^{k_s + (t−1−s) w}, and e^{u + k_t} for the token itself, make of the mean of the values:
/// [`ChannelScan`]'s log-decay ln(1 − g_t), input g_t and bonus c_t, each [T, C], from k [T, C], w [C] < 0 and u [C].
///
/// `log_sum` [C] is the logarithm of the sum of the weights so far, [`WKV_EMPTY`] at the beginning; it becomes that of the last token.
pub fn wkv_gates(
    k: &[f32],
    w: &[f32],
    u: &[f32],
    log_sum: &mut [f32],
    log_decay: &mut [f32],
    input: &mut [f32],
    bonus: &mut [f32],
) {
    let channels = w.len();
    assert!(channels > 0 && k.len().is_multiple_of(channels), "wkv: k is not [T, {channels}]");
    assert!(u.len() == channels && log_sum.len() == channels, "wkv: u or log_sum is not [{channels}]");
    assert!([log_decay.len(), input.len(), bonus.len()] == [k.len(); 3], "wkv: an output is not [T, {channels}]");
    for (i, k) in k.iter().enumerate() {
        let c = i % channels;
        bonus[i] = crate::sigmoid(k + u[c] - log_sum[c]);
        let faded = log_sum[c] + w[c];
        let next = faded.max(*k) + (-(faded - k).abs()).exp().ln_1p();
        log_decay[i] = (faded - next).max(FORGOTTEN);
        input[i] = (k - next).exp();
        log_sum[c] = next;
    }
}
