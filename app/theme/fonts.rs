//! Inter for text, JetBrains Mono for tokens and numbers, some DejaVu Sans for what they lack (assets/fonts), and whatever the system has
//! for other scripts.

use std::path::Path;
use std::sync::Arc;

use eframe::egui::{self, FontData, FontDefinitions, FontFamily};

/// The semibold sans.
pub fn strong() -> FontFamily {
    FontFamily::Name("strong".into())
}

/// Fonts that cover scripts ours do not, first found of each line wins.
const FALLBACKS: [&[&str]; 4] = [
    &[
        "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
        "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
        "/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc",
        "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
        "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf",
        "/System/Library/Fonts/Hiragino Sans GB.ttc",
        "C:\\Windows\\Fonts\\msyh.ttc",
    ],
    &[
        "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
        "/usr/share/fonts/dejavu/DejaVuSans.ttf",
        "/usr/share/fonts/TTF/DejaVuSans.ttf",
        "C:\\Windows\\Fonts\\segoeui.ttf",
    ],
    &["/usr/share/fonts/truetype/noto/NotoSansArabic-Regular.ttf", "/usr/share/fonts/noto/NotoSansArabic-Regular.ttf"],
    &[
        "/usr/share/fonts/truetype/noto/NotoSansDevanagari-Regular.ttf",
        "/usr/share/fonts/noto/NotoSansDevanagari-Regular.ttf",
    ],
];

/// Tells egui about the fonts. `system`: also look for fonts of the system, which snapshots must not depend on.
pub fn install(ctx: &egui::Context, system: bool) {
    let mut fonts = FontDefinitions::default();
    let ours: [(&str, &'static [u8]); 4] = [
        ("sans", include_bytes!("../../assets/fonts/Inter-Regular.otf")),
        ("sans-strong", include_bytes!("../../assets/fonts/Inter-SemiBold.otf")),
        ("mono", include_bytes!("../../assets/fonts/JetBrainsMono-Regular.ttf")),
        ("more", include_bytes!("../../assets/fonts/DejaVuSans-more.ttf")),
    ];
    for (name, bytes) in ours {
        fonts.font_data.insert(name.into(), Arc::new(FontData::from_static(bytes)));
    }
    let mut fallbacks = Vec::new();
    if system {
        for candidates in FALLBACKS {
            if let Some((path, bytes)) = candidates.iter().find_map(|p| Some((*p, std::fs::read(Path::new(p)).ok()?))) {
                fonts.font_data.insert(path.into(), Arc::new(FontData::from_owned(bytes)));
                fallbacks.push(path.to_owned());
            }
        }
    }
    // egui's own fonts stay behind ours for symbols.
    let behind = |family: &FontFamily| fonts.families.get(family).cloned().unwrap_or_default();
    let (sans, mono) = (behind(&FontFamily::Proportional), behind(&FontFamily::Monospace));
    let chain = |first: &[&str], rest: &[String]| -> Vec<String> {
        first.iter().map(|s| (*s).to_owned()).chain(rest.iter().cloned()).chain(fallbacks.iter().cloned()).collect()
    };
    fonts.families.insert(FontFamily::Proportional, chain(&["sans", "mono", "more"], &sans));
    fonts.families.insert(FontFamily::Monospace, chain(&["mono", "sans", "more"], &mono));
    fonts.families.insert(strong(), chain(&["sans-strong", "sans", "mono", "more"], &sans));
    ctx.set_fonts(fonts);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that the source of the app and the names of kinds write, tests left out, can be drawn with our own fonts.
    #[test]
    fn nothing_that_we_write_is_a_box() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (mut folders, mut written) = (vec![root.join("app")], vec![root.join("engine/src/protocol/kind.rs")]);
        while let Some(folder) = folders.pop() {
            for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() { folders.push(path) } else { written.push(path) }
            }
        }
        let ctx = egui::Context::default();
        install(&ctx, false);
        ctx.run_ui(egui::RawInput::default(), |_| {}).textures_delta.clear();
        for path in written.iter().filter(|path| path.extension().is_some_and(|end| end == "rs")) {
            let text = std::fs::read_to_string(path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
                for c in line.chars().filter(|c| !c.is_ascii()) {
                    let drawn = ctx.fonts_mut(|fonts| fonts.has_glyph(&egui::FontId::default(), c));
                    assert!(drawn, "{}: no glyph for {c:?}, U+{:04X}", path.display(), u32::from(c));
                }
            }
        }
    }
}
