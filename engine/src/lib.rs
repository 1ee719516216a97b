//! Runs sequence models and reports what happens inside while they run. Knows no window.
//!
//! ```text
//!            Command                                   Event (Arc<Frame> of plain arrays)
//!  owner ──────────────▶ handle ═══ bounded ═══▶ worker ═══ bounded ═══▶ handle ──▶ owner, woken by a closure
//!                        channel                   │          channel
//!                                                  ▼
//!                     session: tokens, memories, logits          history: segments, snapshots (seek by replay)
//!                                                  │
//!                        model: embed → blocks → norm → head
//!                                                  │
//!                     mixer (one file a family) ── hooks: every quantity passes once ──▶ tape: the record of the run
//!                                                                                          │
//!              readings ◀── collector: how far each probe has been answered ◀── probes: derive, fold, draw M
//! ```
//!
//! [`runner`] says where all this computes: on the CPU, or on a GPU (`device/`, feature `cuda`). [`loader`] turns a folder into a [`model::spec::ModelSpec`] and weights; a new architecture is a mixer file and a name map.

mod allowance;
pub mod builtin;
pub mod collector;
#[cfg(feature = "cuda")]
pub mod device;
pub mod handle;
pub mod history;
pub mod hooks;
pub mod loader;
pub mod mixer;
pub mod model;
pub mod open;
pub mod pass;
pub mod place;
pub mod probes;
pub mod protocol;
pub mod room;
pub mod runner;
pub mod sampler;
pub mod session;
pub mod tape;
pub mod worker;

/// How many threads share the work of an op, the calling one included, and setting it.
pub use statescope_kernels::par::{set_threads, threads};
