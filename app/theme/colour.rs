//! Colour maps from formulas in OKLab (Ottosson 2020): lightness runs evenly by construction, hue turns with it, and chroma is
//! reduced until the colour fits sRGB, which leaves lightness alone.

use eframe::egui::Color32;

/// Entries of a table; odd, so that the middle of the diverging map is an entry of its own.
pub const ENTRIES: usize = 513;

/// Which kind of value a map is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ColourMap {
    /// Magnitudes: from near the ground to far from it, dark violet to yellow (on a light ground: the other way).
    Sequential,
    /// Signed values: blue below, orange above, zero exactly neutral.
    Diverging,
    /// Phases: all hues at one lightness.
    Cyclic,
}

/// One map as a table over 0..=1.
pub struct Table(Box<[Color32; ENTRIES]>);

impl Table {
    /// The colour of `t` in 0..=1; beyond is clipped, NaN is the first.
    pub fn at(&self, t: f32) -> Color32 {
        self.0[(t.clamp(0.0, 1.0) * (ENTRIES - 1) as f32 + 0.5) as usize]
    }

    pub fn build(map: ColourMap, dark: bool) -> Self {
        let mut table = Box::new([Color32::BLACK; ENTRIES]);
        for (k, colour) in table.iter_mut().enumerate() {
            let t = k as f32 / (ENTRIES - 1) as f32;
            *colour = match map {
                ColourMap::Sequential => sequential(t, dark),
                ColourMap::Diverging => diverging(2.0 * t - 1.0, dark),
                ColourMap::Cyclic => oklch(if dark { 0.74 } else { 0.62 }, 0.125, t * 360.0),
            };
        }
        Self(table)
    }
}

fn sequential(t: f32, dark: bool) -> Color32 {
    let chroma = 0.055 + 0.13 * (std::f32::consts::PI * t).sin().max(0.0).powf(0.8) + 0.06 * t;
    if dark {
        oklch(0.17 + 0.75 * t, chroma, 300.0 - 195.0 * t)
    } else {
        oklch(0.965 - 0.72 * t, chroma, 105.0 + 195.0 * t)
    }
}

fn diverging(s: f32, dark: bool) -> Color32 {
    let size = s.abs();
    let (lightness, chroma) =
        if dark { (0.235 + 0.61 * size, 0.19 * size.powf(0.7)) } else { (0.965 - 0.50 * size, 0.20 * size.powf(0.85)) };
    // Blue and orange stay apart for every common kind of colour blindness.
    oklch(lightness, chroma, if s < 0.0 { 245.0 } else { 55.0 - 10.0 * size })
}

/// The sRGB colour nearest to (lightness 0..1, chroma, hue in degrees), by giving up chroma.
pub fn oklch(lightness: f32, chroma: f32, hue: f32) -> Color32 {
    let (sin, cos) = hue.to_radians().sin_cos();
    let fits = |c: f32| to_linear(lightness, c * cos, c * sin).iter().all(|v| (-1e-4..=1.0001).contains(v));
    let mut chroma = chroma;
    if !fits(chroma) {
        let (mut low, mut high) = (0.0, chroma);
        for _ in 0..16 {
            let middle = 0.5 * (low + high);
            if fits(middle) { low = middle } else { high = middle }
        }
        chroma = low;
    }
    let [r, g, b] = to_linear(lightness, chroma * cos, chroma * sin).map(encode);
    Color32::from_rgb(r, g, b)
}

fn to_linear(lightness: f32, a: f32, b: f32) -> [f32; 3] {
    let l = (lightness + 0.396_337_78 * a + 0.215_803_76 * b).powi(3);
    let m = (lightness - 0.105_561_346 * a - 0.063_854_17 * b).powi(3);
    let s = (lightness - 0.089_484_18 * a - 1.291_485_5 * b).powi(3);
    [
        4.076_741_7 * l - 3.307_711_6 * m + 0.230_969_94 * s,
        -1.268_438 * l + 2.609_757_4 * m - 0.341_319_38 * s,
        -0.004_196_086_3 * l - 0.703_418_6 * m + 1.707_614_7 * s,
    ]
}

fn encode(linear: f32) -> u8 {
    let v = linear.clamp(0.0, 1.0);
    let v = if v <= 0.003_130_8 { 12.92 * v } else { 1.055 * v.powf(1.0 / 2.4) - 0.055 };
    (v * 255.0).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// OKLab lightness of an sRGB colour.
    fn lightness(colour: Color32) -> f32 {
        let decode = |v: u8| {
            let v = f32::from(v) / 255.0;
            if v <= 0.040_45 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
        };
        let [r, g, b] = [colour.r(), colour.g(), colour.b()].map(decode);
        let l = (0.412_221_46 * r + 0.536_332_55 * g + 0.051_445_995 * b).cbrt();
        let m = (0.211_903_5 * r + 0.680_699_5 * g + 0.107_396_96 * b).cbrt();
        let s = (0.088_302_46 * r + 0.281_718_85 * g + 0.629_978_7 * b).cbrt();
        0.210_454_26 * l + 0.793_617_8 * m - 0.004_072_047 * s
    }

    #[test]
    fn zero_is_exactly_neutral() {
        for dark in [true, false] {
            let zero = Table::build(ColourMap::Diverging, dark).at(0.5);
            assert!(zero.r() == zero.g() && zero.g() == zero.b(), "{zero:?}");
        }
    }

    #[test]
    fn lightness_is_monotone_and_even() {
        for dark in [true, false] {
            let table = Table::build(ColourMap::Sequential, dark);
            let sign = if dark { 1.0 } else { -1.0 };
            let steps: Vec<f32> = (0..32)
                .map(|k| sign * (lightness(table.at((k + 1) as f32 / 32.0)) - lightness(table.at(k as f32 / 32.0))))
                .collect();
            assert!(steps.iter().all(|s| *s > 0.0), "{steps:?}");
            let mean = steps.iter().sum::<f32>() / 32.0;
            assert!(steps.iter().all(|s| (s - mean).abs() < 0.35 * mean), "{steps:?}");
            let table = Table::build(ColourMap::Diverging, dark);
            for k in 0..32 {
                let (a, b) = (0.5 + k as f32 / 64.0, 0.5 + (k + 1) as f32 / 64.0);
                assert!(sign * (lightness(table.at(b)) - lightness(table.at(a))) > 0.0);
                assert!((lightness(table.at(b)) - lightness(table.at(1.0 - b))).abs() < 0.02);
            }
        }
    }

    #[test]
    fn the_cycle_closes() {
        let table = Table::build(ColourMap::Cyclic, true);
        assert_eq!(table.at(0.0), table.at(1.0));
    }
}
