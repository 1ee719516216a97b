//! The Statescope window: engine events into a store, the store into docked views, what the user does into engine commands.

pub mod action;
pub mod app;
mod apply;
mod dialog;
pub mod gpu;
mod keymap;
pub mod layout;
mod observer;
pub mod pace;
pub mod selection;
pub mod settings;
pub mod store;
pub mod theme;
pub mod view;
pub mod widget;
pub mod window;

pub use app::{App, Options};

/// A forward pass takes and returns megabytes many times a millisecond; the system's allocator gives them back to the system each time, and
/// every page has to be cleared again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
