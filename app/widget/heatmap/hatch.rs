//! The pattern that means 'not known'.

use eframe::egui::{
    Color32, ColorImage, Id, Mesh, Rect, Shape, TextureHandle, TextureOptions, TextureWrapMode, Ui, pos2,
};

use crate::theme::Theme;

/// Points from one line of the hatching to the next.
const STEP: f32 = 8.0;
const TEXELS: usize = 16;

/// Fills `rect` with diagonal lines.
pub fn hatch(ui: &Ui, theme: &Theme, rect: Rect) {
    if !rect.is_positive() {
        return;
    }
    let id = Id::unique(("hatch", theme.is_dark()));
    let texture: TextureHandle = match ui.ctx().data(|d| d.get_temp(id)) {
        Some(texture) => texture,
        None => {
            let options = TextureOptions { wrap_mode: TextureWrapMode::Repeat, ..TextureOptions::LINEAR };
            let texture = ui.ctx().load_texture("hatch", pattern(theme), options);
            ui.ctx().data_mut(|d| d.insert_temp(id, texture.clone()));
            texture
        }
    };
    let mut mesh = Mesh::with_texture(texture.id());
    // In screen coordinates, so that the lines of neighbours meet.
    let uv = Rect::from_min_max(pos2(rect.min.x / STEP, rect.min.y / STEP), pos2(rect.max.x / STEP, rect.max.y / STEP));
    mesh.add_rect_with_uv(rect, uv, Color32::WHITE);
    ui.painter().with_clip_rect(ui.clip_rect().intersect(rect)).add(Shape::mesh(mesh));
}

fn pattern(theme: &Theme) -> ColorImage {
    let pixels = (0..TEXELS * TEXELS)
        .map(|k| {
            // Three texels of each diagonal, the outer two soft.
            match (k % TEXELS + k / TEXELS) % TEXELS {
                0 => theme.hatch,
                1 | 15 => theme.hatch.gamma_multiply(0.5),
                _ => Color32::TRANSPARENT,
            }
        })
        .collect();
    ColorImage::new([TEXELS, TEXELS], pixels)
}
