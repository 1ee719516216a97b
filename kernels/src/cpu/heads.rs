//! Heads that work side by side, each on its own state.

use crate::par;

/// Calls `f(head, state, y)` for each head on its own part [Dv·Dk] of `state` and a strip [T, `head_dim`] of `y` [T, H, head_dim].
/// A head owns columns of y, which are no slice of it: hence the strip, copied into place at the end.
pub(crate) fn for_each(
    heads: usize,
    head_dim: usize,
    state: &mut [f32],
    y: Option<&mut [f32]>,
    work: usize,
    f: impl Fn(usize, &mut [f32], Option<&mut [f32]>) + Sync,
) {
    let len = y.as_ref().map_or(0, |y| y.len());
    let tokens = len / (heads * head_dim);
    let mut strips = vec![0.0; len];
    let mut strip_of = strips.chunks_mut((tokens * head_dim).max(1));
    let states = state.chunks_mut(state.len() / heads);
    let items: Vec<_> = states.enumerate().map(|(head, state)| (head, state, strip_of.next())).collect();
    par::for_each(items.into_iter(), work, |(head, state, y)| f(head, state, y));
    let Some(y) = y else { return };
    for (i, y) in y.chunks_exact_mut(head_dim).enumerate() {
        let (t, head) = (i / heads, i % heads);
        y.copy_from_slice(&strips[(head * tokens + t) * head_dim..][..head_dim]);
    }
}
