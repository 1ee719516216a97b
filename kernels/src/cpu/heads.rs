//! Heads that work side by side, each on its own state.

use crate::par::{self, Columns};

/// Calls `f(head, state, y)` for each head on its own part [Dv·Dk] of `state` and its own columns [T, `head_dim`] of `y` [T, H, head_dim].
pub(crate) fn for_each(
    heads: usize,
    head_dim: usize,
    state: &mut [f32],
    y: Option<&mut [f32]>,
    work: usize,
    f: impl Fn(usize, &mut [f32], Option<Columns>) + Sync,
) {
    let mut of_heads = y.map(|y| par::columns(y, heads * head_dim, head_dim).into_iter());
    let states = state.chunks_mut(state.len() / heads).enumerate();
    let items: Vec<_> = states.map(|(head, state)| (head, state, of_heads.as_mut().and_then(Iterator::next))).collect();
    par::for_each(items.into_iter(), work, |(head, state, y)| f(head, state, y));
}
