//! The three measures of how far back a token looks, and the axis they are drawn on.

use statescope_engine::protocol::{Reach, Reading};

use crate::view::quantity::{short, tokens_words};

/// What the height says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Measure {
    #[default]
    Distance,
    Entropy,
    Field,
}

impl Measure {
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Distance, "mean distance"), (Self::Entropy, "entropy"), (Self::Field, "receptive field")];

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(measure, _)| *measure == self).map_or("", |(_, name)| name)
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Entropy => "bits",
            Self::Distance | Self::Field => "tokens",
        }
    }

    pub fn of(self, reach: Reach) -> f32 {
        match self {
            Self::Distance => reach.mean_distance,
            Self::Entropy => reach.entropy_bits,
            Self::Field => reach.field,
        }
    }

    /// What a value means.
    pub fn words(self, value: f32) -> String {
        match self {
            Self::Distance => format!("on average it reads {} back", tokens_words(value)),
            Self::Entropy => format!("as if it spread evenly over {}", tokens_words(value.exp2())),
            Self::Field => format!("the newest {} hold nine tenths of its row", tokens_words(value)),
        }
    }
}

/// One for each head that a reading speaks of.
pub fn of_reading(reading: &Reading) -> Vec<Reach> {
    let reach = |v: &[f32]| Reach { mean_distance: v[0], entropy_bits: v[1], field: v[2] };
    reading.values.chunks_exact(3).map(reach).collect()
}

/// The head that entry `index` of `count` speaks of: heads are spread evenly over the mixer.
pub fn head_of(index: usize, count: usize, heads: usize) -> usize {
    index * heads / count.max(1)
}

/// Mean of what is known.
pub fn mean(values: impl Iterator<Item = f32>) -> Option<f32> {
    let (sum, count) =
        values.filter(|v| v.is_finite()).fold((0.0f64, 0usize), |(sum, count), v| (sum + f64::from(v), count + 1));
    (count > 0).then(|| (sum / count as f64) as f32)
}

/// Values to shares of the height, from zero up.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    top: f32,
    log: bool,
}

impl Scale {
    /// Reaches to a round number at or above `largest`.
    pub fn new(largest: f32, log: bool) -> Self {
        let largest = if largest.is_finite() { largest.max(1e-3) } else { 1.0 };
        let unit = 10f32.powf(largest.log10().floor());
        let top = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0]
            .map(|step| step * unit)
            .into_iter()
            .find(|top| *top >= largest * 0.999);
        Self { top: top.unwrap_or(largest), log }
    }

    pub fn share(&self, value: f32) -> f32 {
        let share = if self.log { value.max(0.0).ln_1p() / self.top.ln_1p() } else { value / self.top };
        share.clamp(0.0, 1.0)
    }

    /// Values that get a line and a number.
    pub fn ticks(&self) -> Vec<f32> {
        if !self.log {
            return vec![0.0, 0.5 * self.top, self.top];
        }
        let mut ticks = vec![0.0];
        let mut tick = 1.0;
        while tick < self.top * 0.6 {
            ticks.push(tick);
            tick *= 10.0;
        }
        ticks.push(self.top);
        ticks
    }

    pub fn tick_name(value: f32) -> String {
        if value == 0.0 || value.fract() == 0.0 && value < 1e5 { format!("{value:.0}") } else { short(value) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        for (largest, top) in [(0.7, 0.8), (1.0, 1.0), (1.3, 2.0), (27.0, 30.0), (31.0, 40.0), (640.0, 800.0)] {
            assert!((Scale::new(largest, false).top - top).abs() < 1e-4 * top, "{largest}");
        }
        assert_eq!(Scale::new(f32::NAN, false).top, 1.0);
        let log = Scale::new(300.0, true);
        assert_eq!((log.share(0.0), log.share(300.0)), (0.0, 1.0));
        assert_eq!(log.ticks(), [0.0, 1.0, 10.0, 100.0, 300.0]);
    }

    #[test]
    fn heads_are_spread_and_means_skip_what_is_unknown() {
        assert_eq!((0..4).map(|k| head_of(k, 4, 10)).collect::<Vec<_>>(), [0, 2, 5, 7]);
        assert_eq!(mean([1.0, f32::NAN, 3.0].into_iter()), Some(2.0));
        assert_eq!(mean([f32::NAN].into_iter()), None);
        assert_eq!(Measure::Entropy.words(3.0), "as if it spread evenly over 8.0 tokens");
    }
}
