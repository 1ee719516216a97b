//! All tests that need more than one crate, in one binary: building many would take longer than running them.

mod cli;
mod engine;
mod gpu;
mod laws;
mod parity;
mod support;
mod ui;
