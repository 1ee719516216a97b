//! Every colour, size and font of the window. Dark and light are designed apart, not inverted.

use std::sync::Arc;

use eframe::egui::{self, Color32, CornerRadius, FontFamily, FontId, Stroke, TextStyle};
use statescope_engine::protocol::MixerKind;

mod colour;
mod fonts;

pub use colour::{ColourMap, Table, oklch};
pub use fonts::install as install_fonts;

/// Distances between things, in points.
pub mod space {
    pub const XS: f32 = 4.0;
    pub const S: f32 = 8.0;
    pub const M: f32 = 12.0;
    pub const L: f32 = 16.0;
    /// Left margin that all plots over tokens leave for row names or axis values, so that their columns line up.
    pub const GUTTER: f32 = 52.0;
    /// Height of a legend or a row of small controls.
    pub const ROW: f32 = 22.0;
    pub const RADIUS: u8 = 4;
}

/// Font sizes in points; 12 is the smallest anywhere.
pub mod size {
    pub const SMALL: f32 = 12.0;
    pub const BODY: f32 = 13.0;
    pub const TITLE: f32 = 13.0;
    pub const LARGE: f32 = 18.0;
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Ground {
    #[default]
    Dark,
    Light,
}

/// The colours of one ground.
#[derive(Clone)]
pub struct Theme {
    pub ground: Ground,
    /// Behind everything, between panels.
    pub backdrop: Color32,
    /// Inside a panel.
    pub panel: Color32,
    /// Behind data: plots, heatmaps, text fields.
    pub well: Color32,
    /// Popups, menus, the hovered control.
    pub raised: Color32,
    pub control: Color32,
    pub hairline: Color32,
    pub text: Color32,
    pub text_muted: Color32,
    /// Axis values, hints: still readable.
    pub text_faint: Color32,
    /// The selection, and nothing else.
    pub accent: Color32,
    /// The selection as a tint behind text.
    pub accent_soft: Color32,
    /// What the pointer is on.
    pub hover: Color32,
    /// Lines of the hatching that means 'not known'.
    pub hatch: Color32,
    pub grid: Color32,
    pub good: Color32,
    pub warning: Color32,
    pub error: Color32,
    sequential: Arc<Table>,
    diverging: Arc<Table>,
    cyclic: Arc<Table>,
}

impl Theme {
    pub fn new(ground: Ground) -> Self {
        let dark = ground == Ground::Dark;
        let grey = |lightness: f32| oklch(lightness, 0.008, 265.0);
        let pick = |d: Color32, l: Color32| if dark { d } else { l };
        Self {
            ground,
            backdrop: pick(grey(0.145), grey(0.905)),
            panel: pick(grey(0.19), grey(0.985)),
            well: pick(grey(0.155), grey(0.935)),
            raised: pick(grey(0.265), grey(1.0)),
            control: pick(grey(0.255), grey(0.91)),
            hairline: pick(grey(0.285), grey(0.86)),
            text: pick(grey(0.93), grey(0.22)),
            text_muted: pick(grey(0.73), grey(0.42)),
            text_faint: pick(grey(0.60), grey(0.52)),
            accent: pick(oklch(0.74, 0.21, 355.0), oklch(0.54, 0.23, 0.0)),
            accent_soft: pick(oklch(0.34, 0.10, 355.0), oklch(0.90, 0.06, 355.0)),
            hover: pick(grey(1.0), grey(0.0)),
            hatch: pick(grey(0.275), grey(0.85)),
            grid: pick(grey(0.24), grey(0.87)),
            good: pick(oklch(0.78, 0.15, 155.0), oklch(0.52, 0.14, 155.0)),
            warning: pick(oklch(0.80, 0.14, 80.0), oklch(0.55, 0.12, 75.0)),
            error: pick(oklch(0.70, 0.17, 25.0), oklch(0.52, 0.20, 27.0)),
            sequential: Arc::new(Table::build(ColourMap::Sequential, dark)),
            diverging: Arc::new(Table::build(ColourMap::Diverging, dark)),
            cyclic: Arc::new(Table::build(ColourMap::Cyclic, dark)),
        }
    }

    pub fn is_dark(&self) -> bool {
        self.ground == Ground::Dark
    }

    pub fn map(&self, map: ColourMap) -> &Table {
        match map {
            ColourMap::Sequential => &self.sequential,
            ColourMap::Diverging => &self.diverging,
            ColourMap::Cyclic => &self.cyclic,
        }
    }

    /// The colour of a kind of layer, everywhere.
    pub fn kind_colour(&self, kind: MixerKind) -> Color32 {
        let lightness = if self.is_dark() { 0.76 } else { 0.52 };
        match kind {
            MixerKind::Mamba1 | MixerKind::Mamba2 | MixerKind::Mamba3 | MixerKind::Mamba3Mimo => {
                oklch(lightness, 0.11, 190.0)
            }
            MixerKind::S4 | MixerKind::S4d => oklch(lightness, 0.11, 210.0),
            MixerKind::H3 | MixerKind::H3Heads | MixerKind::Hyena => oklch(lightness, 0.11, 225.0),
            MixerKind::DeltaRule => oklch(lightness, 0.11, 150.0),
            MixerKind::LinearAttention | MixerKind::Retention | MixerKind::Gla | MixerKind::Hgrn2 => {
                oklch(lightness, 0.11, 120.0)
            }
            MixerKind::Rwkv4 | MixerKind::Rwkv5 | MixerKind::Rwkv6 | MixerKind::Rwkv7 | MixerKind::RgLru => {
                oklch(lightness, 0.11, 310.0)
            }
            MixerKind::Mlstm | MixerKind::Slstm => oklch(lightness, 0.11, 340.0),
            MixerKind::ShortConv => oklch(lightness, 0.11, 250.0),
            MixerKind::Attention => oklch(lightness, 0.13, 75.0),
            MixerKind::FeedForward => oklch(lightness, 0.02, 260.0),
        }
    }

    /// The glyph of a kind of layer, everywhere.
    pub fn kind_glyph(kind: MixerKind) -> &'static str {
        match kind {
            MixerKind::Mamba1 => "◇",
            MixerKind::Mamba2 => "◆",
            MixerKind::Mamba3 | MixerKind::Mamba3Mimo => "◉",
            MixerKind::DeltaRule => "■",
            MixerKind::LinearAttention => "□",
            MixerKind::Retention => "▢",
            MixerKind::Gla => "▣",
            MixerKind::Hgrn2 => "▤",
            MixerKind::Rwkv4 => "○",
            MixerKind::Rwkv5 | MixerKind::Rwkv6 => "◐",
            MixerKind::Rwkv7 => "●",
            MixerKind::RgLru => "◎",
            MixerKind::Mlstm => "◈",
            MixerKind::Slstm => "◇",
            MixerKind::S4 => "△",
            MixerKind::S4d => "▽",
            MixerKind::H3 | MixerKind::H3Heads => "◨",
            MixerKind::Hyena => "▥",
            MixerKind::ShortConv => "◧",
            MixerKind::Attention => "▲",
            MixerKind::FeedForward => "•",
        }
    }

    /// Line colour `index` of `count`: distinct hues for a few, an even sweep for many.
    pub fn line_colour(&self, index: usize, count: usize) -> Color32 {
        let lightness = if self.is_dark() { 0.77 } else { 0.55 };
        const FEW: [f32; 8] = [235.0, 70.0, 160.0, 300.0, 110.0, 200.0, 40.0, 270.0];
        if count <= FEW.len() {
            // Neighbours also differ in lightness, for those who do not see the hue.
            let step = if index.is_multiple_of(2) { 0.04 } else { -0.05 };
            oklch(lightness + step, 0.13, FEW[index % FEW.len()])
        } else {
            oklch(lightness, 0.12, 40.0 + 270.0 * index as f32 / (count - 1).max(1) as f32)
        }
    }

    /// Black or white, whichever reads on `colour`.
    pub fn text_on(colour: Color32) -> Color32 {
        let [r, g, b] = [colour.r(), colour.g(), colour.b()].map(|v| (f32::from(v) / 255.0).powf(2.2));
        if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.25 { Color32::from_gray(12) } else { Color32::from_gray(246) }
    }

    pub fn small(&self) -> FontId {
        FontId::new(size::SMALL, FontFamily::Proportional)
    }

    pub fn body(&self) -> FontId {
        FontId::new(size::BODY, FontFamily::Proportional)
    }

    pub fn strong(&self) -> FontId {
        FontId::new(size::TITLE, fonts::strong())
    }

    pub fn large(&self) -> FontId {
        FontId::new(size::LARGE, fonts::strong())
    }

    /// Tokens and numbers.
    pub fn mono(&self) -> FontId {
        FontId::new(size::SMALL, FontFamily::Monospace)
    }

    pub fn hairline_stroke(&self) -> Stroke {
        Stroke::new(1.0, self.hairline)
    }

    /// Makes egui's own widgets look like the rest.
    pub fn apply(&self, ctx: &egui::Context) {
        let which = if self.is_dark() { egui::Theme::Dark } else { egui::Theme::Light };
        ctx.set_theme(which);
        ctx.style_mut_of(which, |style| self.style(style));
    }

    fn style(&self, style: &mut egui::Style) {
        style.text_styles = [
            (TextStyle::Small, self.small()),
            (TextStyle::Body, self.body()),
            (TextStyle::Button, self.body()),
            (TextStyle::Heading, self.large()),
            (TextStyle::Monospace, self.mono()),
        ]
        .into();
        let spacing = &mut style.spacing;
        spacing.item_spacing = egui::vec2(space::S, space::XS);
        spacing.button_padding = egui::vec2(space::S, 3.0);
        spacing.interact_size = egui::vec2(28.0, space::ROW);
        spacing.menu_margin = egui::Margin::same(6);
        spacing.window_margin = egui::Margin::same(12);
        spacing.slider_width = 96.0;
        spacing.scroll = egui::style::ScrollStyle::thin();
        // A fade would change the colours of data.
        spacing.scroll.fade.strength = 0.0;
        spacing.tooltip_width = 420.0;
        let radius = CornerRadius::same(space::RADIUS);
        let visuals = &mut style.visuals;
        visuals.dark_mode = self.is_dark();
        visuals.override_text_color = None;
        visuals.weak_text_color = Some(self.text_muted);
        visuals.panel_fill = self.panel;
        visuals.window_fill = self.raised;
        visuals.window_stroke = self.hairline_stroke();
        visuals.window_corner_radius = CornerRadius::same(space::RADIUS * 2);
        visuals.menu_corner_radius = CornerRadius::same(space::RADIUS + 2);
        visuals.extreme_bg_color = self.well;
        visuals.text_edit_bg_color = Some(self.well);
        visuals.faint_bg_color = self.well;
        visuals.code_bg_color = self.well;
        visuals.hyperlink_color = self.accent;
        visuals.warn_fg_color = self.warning;
        visuals.error_fg_color = self.error;
        // Of text and of controls; what the views select has the accent.
        visuals.selection.bg_fill = self.hairline;
        visuals.selection.stroke = Stroke::new(1.0, self.text);
        visuals.slider_trailing_fill = false;
        let shade = if self.is_dark() { 110 } else { 40 };
        for shadow in [&mut visuals.popup_shadow, &mut visuals.window_shadow] {
            *shadow = egui::Shadow { offset: [0, 4], blur: 16, spread: 0, color: Color32::from_black_alpha(shade) };
        }
        let text = |colour| Stroke::new(1.0, colour);
        let none = Stroke::NONE;
        let w = &mut visuals.widgets;
        for (state, fill, edge, fg) in [
            (&mut w.noninteractive, self.panel, self.hairline_stroke(), self.text),
            (&mut w.inactive, self.control, none, self.text),
            (&mut w.hovered, self.raised, Stroke::new(1.0, self.text_faint), self.text),
            (&mut w.active, self.hairline, Stroke::new(1.0, self.text_muted), self.text),
            (&mut w.open, self.raised, self.hairline_stroke(), self.text),
        ] {
            state.bg_fill = fill;
            state.weak_bg_fill = fill;
            state.bg_stroke = edge;
            state.fg_stroke = text(fg);
            state.corner_radius = radius;
            state.expansion = 0.0;
        }
    }
}
