//! Rotary positions.

use std::cell::RefCell;
use std::rc::Rc;

use crate::{cpu, par};

/// Rotary position embedding (Su et al. 2021), half-split: for j < r, with angle θ = position · f_j,
/// (x_j, x_{j+r}) ← (x_j cos θ − x_{j+r} sin θ, x_{j+r} cos θ + x_j sin θ); dimensions from 2r on pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    inv_freq: Vec<f32>,
}

impl Rope {
    /// `inv_freq` [r]: radians a position.
    pub fn new(inv_freq: Vec<f32>) -> Rope {
        Rope { inv_freq }
    }

    /// Rotates `xs` [T, heads, head_dim], whose first token stands at `first_position`. Angles are f64: exact enough anywhere.
    pub fn apply(&self, xs: &mut [f32], heads: usize, head_dim: usize, first_position: usize) {
        let half = self.inv_freq.len();
        assert!(2 * half <= head_dim, "rope: {half} frequencies for heads of {head_dim}");
        if half == 0 || xs.is_empty() {
            return;
        }
        assert!(
            heads > 0 && xs.len().is_multiple_of(heads * head_dim),
            "rope: x of {} elements is not [T, {heads}, {head_dim}]",
            xs.len()
        );
        let turns = self.turns(first_position, xs.len() / (heads * head_dim));
        cpu::rope::apply(&turns, half, xs, heads, head_dim);
    }

    /// Of `tokens` from position `first` on [T, 2, r]: cosines, then sines. Queries and keys of all layers ask for the same ones, so the
    /// last are kept.
    fn turns(&self, first: usize, tokens: usize) -> Rc<[f32]> {
        thread_local! {
            static LAST: RefCell<Option<Turns>> = const { RefCell::new(None) };
        }
        let (half, length) = (self.inv_freq.len(), 2 * self.inv_freq.len() * tokens);
        LAST.with_borrow_mut(|last| {
            if let Some(last) = last
                && (&last.inv_freq, last.first, last.turns.len()) == (&self.inv_freq, first, length)
            {
                return last.turns.clone();
            }
            let mut turns = vec![0.0; length];
            par::for_each_chunk(&mut turns, 2 * half * TOKENS, tokens * half * TURN, |i, turns| {
                for (t, turns) in turns.chunks_exact_mut(2 * half).enumerate() {
                    let position = (first + i * TOKENS + t) as f64;
                    let (cosines, sines) = turns.split_at_mut(half);
                    for ((cosine, sine), &f) in cosines.iter_mut().zip(sines).zip(&self.inv_freq) {
                        let (sin, cos) = (position * f64::from(f)).sin_cos();
                        (*sine, *cosine) = (sin as f32, cos as f32);
                    }
                }
            });
            let turns = Rc::from(turns);
            *last = Some(Turns { inv_freq: self.inv_freq.clone(), first, turns: Rc::clone(&turns) });
            turns
        })
    }
}

/// Cosines and sines [T, 2, r] of the tokens from `first` on.
struct Turns {
    inv_freq: Vec<f32>,
    first: usize,
    turns: Rc<[f32]>,
}

/// Tokens of a piece of work.
const TOKENS: usize = 16;
/// A sine and a cosine in multiply-adds.
const TURN: usize = 64;
