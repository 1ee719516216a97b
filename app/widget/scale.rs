//! From a value to a place on a colour map.

use crate::theme::ColourMap;

/// How values are spread over the map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ValueScale {
    #[default]
    Linear,
    /// Logarithmic; values of 0 or less lie at the low end. On a diverging map the same as symlog.
    Log,
    /// Linear within a thousandth of the largest size, logarithmic beyond, sign kept.
    Symlog,
}

impl ValueScale {
    pub const ALL: [Self; 3] = [Self::Linear, Self::Log, Self::Symlog];

    pub fn label(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Log => "log",
            Self::Symlog => "symlog",
        }
    }

    /// The scales that make sense for a map.
    pub fn for_map(map: ColourMap) -> &'static [Self] {
        match map {
            ColourMap::Sequential => &[Self::Linear, Self::Log],
            ColourMap::Diverging => &[Self::Linear, Self::Symlog],
            ColourMap::Cyclic => &[Self::Linear],
        }
    }
}

/// Decades that a log scale shows at most.
const DECADES: f32 = 1e-6;
/// Where symlog stops being linear, relative to the largest size.
const KNEE: f32 = 1e-3;

/// Maps values of one range to 0..=1.
#[derive(Clone, Copy, Debug)]
pub struct Normaliser {
    kind: Kind,
    low: f32,
    high: f32,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Linear,
    Log {
        low: f32,
        span: f32,
    },
    /// Around zero: 0.5 + 0.5 · v / size.
    Signed {
        size: f32,
    },
    SignedLog {
        knee: f32,
        span: f32,
    },
}

impl Normaliser {
    pub fn new(map: ColourMap, scale: ValueScale, (low, high): (f32, f32)) -> Self {
        let size = low.abs().max(high.abs()).max(f32::MIN_POSITIVE);
        let kind = match (map, scale) {
            (ColourMap::Diverging, ValueScale::Linear) => Kind::Signed { size },
            (ColourMap::Diverging, _) => Kind::SignedLog { knee: size * KNEE, span: (1.0 / KNEE).ln_1p() },
            (_, ValueScale::Linear) => Kind::Linear,
            (_, ValueScale::Log | ValueScale::Symlog) => {
                let bottom = if low > 0.0 { low.max(size * DECADES) } else { size * DECADES };
                Kind::Log { low: bottom.ln(), span: (size.ln() - bottom.ln()).max(1e-6) }
            }
        };
        let (low, high) = if map == ColourMap::Diverging { (-size, size) } else { (low, high) };
        Self { kind, low, high }
    }

    /// Place of `value` on the map; not clipped.
    pub fn at(&self, value: f32) -> f32 {
        match self.kind {
            Kind::Linear if self.high > self.low => (value - self.low) / (self.high - self.low),
            Kind::Linear => 0.5,
            Kind::Log { low, span } => {
                if value > 0.0 {
                    (ln(value) - low) / span
                } else {
                    0.0
                }
            }
            Kind::Signed { size } => 0.5 + 0.5 * value / size,
            Kind::SignedLog { knee, span } => 0.5 + 0.5 * value.signum() * ln(1.0 + value.abs() / knee) / span,
        }
    }

    /// The ends of the map as values.
    pub fn ends(&self) -> (f32, f32) {
        match self.kind {
            Kind::Log { low, span } => (low.exp(), (low + span).exp()),
            _ => (self.low, self.high),
        }
    }
}

/// ln x for positive x to 2e-5, which no eye tells from it: half a million texels a frame need one each.
fn ln(x: f32) -> f32 {
    if !(f32::MIN_POSITIVE..f32::INFINITY).contains(&x) {
        return x.ln();
    }
    // x = 2^e m with m between √½ and √2, and ln m = 2 artanh r of r = (m − 1) / (m + 1), a short odd series.
    let shifted = x.to_bits().wrapping_sub(std::f32::consts::FRAC_1_SQRT_2.to_bits());
    let exponent = (shifted as i32) >> 23;
    let m = f32::from_bits(x.to_bits().wrapping_sub((exponent as u32) << 23));
    let r = (m - 1.0) / (m + 1.0);
    let r2 = r * r;
    exponent as f32 * std::f32::consts::LN_2 + 2.0 * r * (1.0 + r2 * (1.0 / 3.0 + r2 * (0.2 + r2 / 7.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_of_a_signed_map_is_the_middle() {
        for scale in [ValueScale::Linear, ValueScale::Symlog] {
            let n = Normaliser::new(ColourMap::Diverging, scale, (-0.2, 3.0));
            assert_eq!(n.at(0.0), 0.5);
            assert!((n.at(3.0) - 1.0).abs() < 1e-6 && n.at(-3.0).abs() < 1e-6);
            assert!(n.at(0.01) > 0.5 && n.at(-0.01) < 0.5);
        }
    }

    #[test]
    fn the_quick_logarithm_is_one() {
        for i in -870..880 {
            for x in [(i as f32 * 0.1).exp(), (i as f32 * 0.1 + 0.037).exp()] {
                assert!((ln(x) - x.ln()).abs() < 2e-5, "ln {x} is {} and not {}", x.ln(), ln(x));
            }
        }
        assert!(ln(0.0) == f32::NEG_INFINITY && ln(f32::INFINITY) == f32::INFINITY && ln(-1.0).is_nan());
    }

    #[test]
    fn log_ends_are_the_range() {
        let n = Normaliser::new(ColourMap::Sequential, ValueScale::Log, (0.01, 100.0));
        assert!(n.at(0.01).abs() < 1e-5 && (n.at(100.0) - 1.0).abs() < 1e-5 && (n.at(1.0) - 0.5).abs() < 1e-5);
        assert_eq!(n.at(0.0), 0.0);
        assert_eq!(Normaliser::new(ColourMap::Sequential, ValueScale::Linear, (2.0, 2.0)).at(2.0), 0.5);
    }
}
