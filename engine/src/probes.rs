//! From recorded quantities to readings: picks heads and channels, folds, draws matrix rows. Nothing here runs the model.

use std::ops::Range;

use statescope_kernels::activation::sigmoid;
use statescope_kernels::mixing::{Strided, apply_rows, extend_row_over_conv};
use statescope_kernels::reduce::{abs_max, l2_norm, mean, min_max};

use crate::mixer::Mixer;
use crate::protocol::{
    Fold, Geometry, MixerKind, MixingView, Point, Probe, REACH_HEADS, Reach, Reduction, Scale, Select, Span, Stage,
};
use crate::tape::LayerTape;

/// Tokens that a matrix covers at most: the newest ones.
pub const MATRIX_TOKENS: usize = 2048;

/// Whether a layer has a quantity at all.
pub fn exists(mixer: &dyn Mixer, point: Point) -> bool {
    let geometry = mixer.geometry();
    let kind = geometry.kind;
    match point {
        Point::Resid | Point::Out => true,
        _ if !kind.mixes() => false,
        Point::Delta => kind.has_delta(),
        Point::Beta => matches!(kind, MixerKind::DeltaRule | MixerKind::Rwkv7),
        Point::Erase => kind == MixerKind::Rwkv7,
        Point::LogDecay => kind.has_log_decay(),
        Point::InputGate => kind.has_input_gate(),
        Point::RecurrenceGate => kind == MixerKind::RgLru,
        Point::ForgetGate | Point::Normaliser => matches!(kind, MixerKind::Mlstm | MixerKind::Slstm),
        Point::Bonus => matches!(kind, MixerKind::Rwkv4 | MixerKind::Rwkv5 | MixerKind::Rwkv6),
        Point::InnerGate => kind == MixerKind::Hyena && geometry.rank > 1,
        Point::Query => kind.has_query(),
        Point::Key => kind.has_key(),
        Point::Form => kind.is_time_invariant(),
        Point::Decay => kind.decays(),
        Point::State => kind.is_recurrent() && geometry.state_dim > 0,
        Point::Gate => geometry.gated,
        Point::Conv | Point::ConvIn => geometry.conv_taps > 0,
        Point::Mixing(view) => view.stage == Stage::Core || geometry.conv_taps > 0,
        Point::Entropy => kind == MixerKind::Attention,
        Point::Value | Point::Core | Point::Write | Point::Read => true,
        Point::MixingError | Point::Reach => true,
    }
}

/// One fold of several numbers.
pub fn fold(fold: Fold, values: &[f32]) -> f32 {
    match fold {
        Fold::Norm => l2_norm(values),
        Fold::Mean => mean(values),
        Fold::AbsMax => abs_max(values),
        Fold::Max => min_max(values).map_or(f32::NEG_INFINITY, |(_, max)| max),
    }
}

/// Applies selection and reduction of a probe to the full row of a quantity that has `count` equal parts, one a head or group.
pub fn reduce_row(row: &[f32], heads: usize, count: usize, select: &Select, reduction: Reduction, out: &mut Vec<f32>) {
    let width = row.len() / count.max(1);
    let row = match select.heads {
        Span::All => row,
        // Heads that share a group read the group's part.
        Span::One(head) => {
            let part = (head as usize).min(heads.saturating_sub(1)) * count / heads.max(1);
            &row[part * width..(part + 1) * width]
        }
    };
    match reduction {
        Reduction::Full | Reduction::Pool { .. } => match select.channels {
            Span::All => out.extend_from_slice(row),
            Span::One(channel) => out.extend(row.chunks_exact(width.max(1)).map(|part| part[channel as usize % width])),
        },
        // A channel is a head of one number.
        Reduction::Head(Fold::Norm | Fold::AbsMax) if width == 1 => out.extend(row.iter().map(|x| x.abs())),
        Reduction::Head(Fold::Mean | Fold::Max) if width == 1 => out.extend_from_slice(row),
        Reduction::Head(f) => out.extend(row.chunks_exact(width.max(1)).map(|part| fold(f, part))),
        Reduction::Layer(f) => out.push(fold(f, row)),
    }
}

/// How many parts the row of a quantity has.
fn parts(mixer: &dyn Mixer, point: Point) -> usize {
    let geometry = mixer.geometry();
    match point {
        Point::Resid | Point::Out | Point::Form => 1,
        Point::Key => geometry.groups,
        Point::Query if geometry.kind.is_recurrent() => geometry.groups,
        Point::Value if !geometry.kind.is_recurrent() => geometry.groups,
        _ => geometry.heads,
    }
}

/// The gates of a head of Mamba-3 MIMO are those of all its channels: `[G]` recorded, `[H]` told.
fn spread_gates(mixer: &dyn Mixer, point: Point, row: &[f32]) -> Option<Vec<f32>> {
    let Geometry { kind, heads, groups, .. } = mixer.geometry();
    let shared = kind == MixerKind::Mamba3Mimo && matches!(point, Point::Delta | Point::LogDecay | Point::InputGate);
    shared.then(|| row.iter().flat_map(|&gate| std::iter::repeat_n(gate, heads / groups)).collect())
}

/// Appends the reduced row of the token at `position`; false if it is not known. Not for states and matrices.
pub fn series_row(mixer: &dyn Mixer, tape: &LayerTape, probe: &Probe, position: usize, out: &mut Vec<f32>) -> bool {
    let (point, heads) = (probe.site.point, mixer.geometry().heads);
    if let Some(row) = tape.row(point, position) {
        let spread = spread_gates(mixer, point, row);
        let row = spread.as_deref().unwrap_or(row);
        reduce_row(row, heads, parts(mixer, point), &probe.select, probe.reduction, out);
        return true;
    }
    // What is derived is derived of the chosen heads alone.
    let chosen = match probe.select.heads {
        Span::All => 0..heads,
        Span::One(head) => (head as usize).min(heads - 1)..(head as usize).min(heads - 1) + 1,
    };
    let mut derived = Vec::new();
    let slowest = (point, probe.reduction) == (Point::Decay, Reduction::Head(Fold::Max));
    if slowest && mixer.slowest_decay(tape, position, chosen.clone(), out) {
        return true;
    }
    if !mixer.derive(point, tape, position, chosen.clone(), &mut derived) {
        return false;
    }
    let select = Select { heads: Span::All, ..probe.select };
    reduce_row(&derived, chosen.len(), chosen.len(), &select, probe.reduction, out);
    true
}

/// Norms of a layer's state per head after each recorded token, computed once for all who ask. Every further token costs one step.
#[derive(Clone, Debug, Default)]
pub struct StateNorms {
    /// The first token whose norms are held.
    first: usize,
    /// `[tokens, H]`.
    norms: Vec<f32>,
    /// `[H, P, N]` after the last of them.
    state: Vec<f32>,
}

impl StateNorms {
    /// ‖S‖_F `[H]` after the token at `position`, which must be recorded. `state_before` gives the state before a token, should the
    /// sequence have to start there.
    pub fn row(
        &mut self,
        mixer: &dyn Mixer,
        tape: &LayerTape,
        position: usize,
        state_before: impl Fn(usize) -> Option<Vec<f32>>,
    ) -> Option<&[f32]> {
        let heads = mixer.geometry().heads;
        let held = self.first..self.first + self.norms.len() / heads;
        if position < held.start || position > held.end || self.state.is_empty() {
            *self = Self { first: position, norms: Vec::new(), state: state_before(position)? };
        }
        if position >= self.first + self.norms.len() / heads {
            mixer.fold_norms(tape, position, &mut self.state, &mut self.norms);
        }
        let at = (position - self.first) * heads;
        self.norms.get(at..at + heads)
    }
}

/// Draws rows `positions` of the matrix of one head, `[positions.len(), positions.end]`, zero above the diagonal, NaN where the record
/// does not reach. The rows must be recorded.
pub fn mixing_rows(
    mixer: &dyn Mixer,
    tape: &LayerTape,
    head: usize,
    channels: Span,
    view: MixingView,
    positions: Range<usize>,
) -> Vec<f32> {
    let first = tape.positions().start;
    let local = positions.start - first..positions.end - first;
    let mut core = vec![0.0; local.len() * local.end];
    mixer.lower(tape, head, &mut |lowered| lowered.rows(local.clone(), &mut core));
    let drawn = match view.stage {
        Stage::Core => scaled_core(mixer, tape, head, channels, view.scale, local.clone(), core),
        _ => extended(mixer, tape, head, channels, view, local.clone(), &core),
    };
    if first == 0 {
        return drawn;
    }
    let mut padded = vec![f32::NAN; local.len() * positions.end];
    for (to, from) in padded.chunks_exact_mut(positions.end).zip(drawn.chunks_exact(local.end)) {
        to[first..].copy_from_slice(from);
    }
    padded
}

/// |row| divided by its sum.
fn row_share(row: &mut [f32]) {
    let total: f32 = row.iter().map(|m| m.abs()).sum();
    let scale = if total > 0.0 { total.recip() } else { 0.0 };
    row.iter_mut().for_each(|m| *m = m.abs() * scale);
}

/// The values that a head mixes: row t holds its `[P]` (or the one channel's) numbers.
fn values<'a>(mixer: &dyn Mixer, tape: &'a LayerTape, point: Point, head: usize, channels: Span) -> Strided<'a> {
    let geometry = mixer.geometry();
    let width = geometry.head_dim;
    let part = head * parts(mixer, point) / geometry.heads;
    match channels {
        Span::All => tape.strided(point, part * width, width),
        Span::One(channel) => tape.strided(point, part * width + channel as usize % width, 1),
    }
}

fn scaled_core(
    mixer: &dyn Mixer,
    tape: &LayerTape,
    head: usize,
    channels: Span,
    scale: Scale,
    local: Range<usize>,
    mut core: Vec<f32>,
) -> Vec<f32> {
    match scale {
        Scale::Raw => {}
        Scale::RowShare => core.chunks_exact_mut(local.end).for_each(row_share),
        Scale::Contribution => {
            let values = values(mixer, tape, Point::Value, head, channels);
            let norms: Vec<f32> = (0..local.end).map(|t| l2_norm(values.row(t))).collect();
            for row in core.chunks_exact_mut(local.end) {
                row.iter_mut().zip(&norms).for_each(|(m, norm)| *m = m.abs() * norm);
            }
        }
    }
    core
}

/// The matrix extended over convolution and gate; per channel of the head, then their mean, or for contributions their norm.
fn extended(
    mixer: &dyn Mixer,
    tape: &LayerTape,
    head: usize,
    channels: Span,
    view: MixingView,
    local: Range<usize>,
    core: &[f32],
) -> Vec<f32> {
    let geometry = mixer.geometry();
    let first = tape.positions().start;
    let chosen = match channels {
        Span::All => 0..geometry.head_dim,
        Span::One(channel) => channel as usize % geometry.head_dim..channel as usize % geometry.head_dim + 1,
    };
    let count = chosen.len() as f32;
    let contribution = view.scale == Scale::Contribution;
    let mut sum = vec![0.0; core.len()];
    let mut row = vec![0.0; local.end];
    for channel in chosen {
        let one = Span::One(channel as u32);
        let Some(surroundings) = mixer.surroundings(head, channel) else { return vec![f32::NAN; core.len()] };
        let conv = values(mixer, tape, Point::Conv, head, one);
        let input = values(mixer, tape, Point::ConvIn, head, one);
        // silu(v) = σ(v)·v, so σ(v) is the factor that the activation applies at each token of this run.
        let factor = |t| if surroundings.activated { sigmoid(conv.at(t)) } else { 1.0 };
        let phi: Vec<f32> = (0..local.end).map(factor).collect();
        let phi = Strided { data: &phi, stride: 1, offset: 0, width: 1 };
        for (index, t) in local.clone().enumerate() {
            let at = index * local.end..index * local.end + t + 1;
            extend_row_over_conv(&core[at.clone()], phi, surroundings.taps, &mut row[..=t]);
            let gain = match view.stage {
                Stage::Gate => mixer.output_gain(tape, first + t, head, channel),
                _ => 1.0,
            };
            for (s, (sum, m)) in sum[at].iter_mut().zip(&row).enumerate() {
                *sum += if contribution { (gain * m * input.at(s)).powi(2) } else { gain * m / count };
            }
        }
    }
    match view.scale {
        Scale::Raw => {}
        Scale::RowShare => sum.chunks_exact_mut(local.end).for_each(row_share),
        Scale::Contribution => sum.iter_mut().for_each(|m| *m = m.sqrt()),
    }
    sum
}

/// [`Point::Reach`] of the token at a recorded `position`, `[heads, 3]`.
pub fn reach(mixer: &dyn Mixer, tape: &LayerTape, position: usize) -> Vec<f32> {
    let heads = mixer.geometry().heads;
    let count = heads.min(REACH_HEADS);
    let local = position - tape.positions().start;
    let mut row = vec![0.0; local + 1];
    let mut values = Vec::with_capacity(count * 3);
    for index in 0..count {
        mixer.lower(tape, index * heads / count, &mut |lowered| lowered.row(local, &mut row));
        let Reach { mean_distance, entropy_bits, field } = reach_of_row(&row);
        values.extend([mean_distance, entropy_bits, field]);
    }
    values
}

/// NaN where a row is empty.
fn reach_of_row(row: &[f32]) -> Reach {
    let total: f64 = row.iter().map(|m| f64::from(m.abs())).sum();
    let (mut distance, mut entropy, mut held, mut field) = (0.0, 0.0, 0.0, 0.0);
    for (back, m) in row.iter().rev().enumerate() {
        let share = f64::from(m.abs()) / total;
        distance += back as f64 * share;
        entropy -= if share > 0.0 { share * share.log2() } else { 0.0 };
        held += share;
        if field == 0.0 && held >= 0.9 {
            field = back as f64 + 1.0;
        }
    }
    let known = |x: f64| if total > 0.0 { x as f32 } else { f32::NAN };
    Reach { mean_distance: known(distance), entropy_bits: known(entropy), field: known(field) }
}

/// max_p |Σ_s M_ts v_s[p] − y_t[p]| and max_p |y_t[p]| of one head at a recorded `position`: the truth test of the picture.
pub fn mixing_error(mixer: &dyn Mixer, tape: &LayerTape, head: usize, position: usize) -> (f32, f32) {
    let local = position - tape.positions().start;
    let mut row = vec![0.0; local + 1];
    mixer.lower(tape, head, &mut |lowered| lowered.row(local, &mut row));
    row_errors(mixer, tape, head, position..position + 1, &row)[0]
}

/// [`mixing_error`] of rows that are drawn already: the core matrix, raw, from the first recorded token on, `[positions.len(), …]`.
pub fn row_errors(
    mixer: &dyn Mixer,
    tape: &LayerTape,
    head: usize,
    positions: Range<usize>,
    rows: &[f32],
) -> Vec<(f32, f32)> {
    let values = values(mixer, tape, Point::Value, head, Span::All);
    let mut products = vec![0.0; positions.len() * values.width];
    apply_rows(rows, rows.len() / positions.len(), values, &mut products);
    let width = mixer.geometry().head_dim;
    let error = |(position, product): (usize, &[f32])| {
        let y = tape.row(Point::Core, position).map_or(&[][..], |y| &y[head * width..(head + 1) * width]);
        let pairs = product.iter().zip(y).enumerate();
        let offset = |channel| mixer.offset(tape, position, head, channel);
        let error = pairs.map(|(channel, (p, y))| (p + offset(channel) - y).abs()).fold(0.0, f32::max);
        (error, abs_max(y))
    };
    positions.zip(products.chunks_exact(values.width)).map(error).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reach_of_simple_rows() {
        let newest = reach_of_row(&[0.0, 0.0, 0.0, -2.0]);
        assert_eq!((newest.mean_distance, newest.entropy_bits, newest.field), (0.0, 0.0, 1.0));
        let even = reach_of_row(&[1.0, -1.0, 1.0, 1.0]);
        assert_eq!((even.mean_distance, even.entropy_bits, even.field), (1.5, 2.0, 4.0));
        assert!(reach_of_row(&[0.0]).mean_distance.is_nan());
    }
}
