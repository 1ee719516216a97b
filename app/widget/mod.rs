//! Drawing that several views share. A widget gets data and theme, and says what the pointer did; it changes nothing else.

pub mod format;
pub mod heatmap;
pub mod legend;
pub mod panel;
pub mod plot;
pub mod scale;
pub mod series;
pub mod time;
