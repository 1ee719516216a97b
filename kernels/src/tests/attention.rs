use super::*;
use crate::{Attention, PAGE, Rope};

pub(crate) fn pages(xs: &[f32], width: usize) -> Vec<&[f32]> {
    xs.chunks(PAGE * width).collect()
}

#[test]
fn equals_the_reference() {
    on_each_set(|| {
        let mut rng = Rng::new(12);
        for (heads, kv_heads, head_dim) in [(1, 1, 1), (4, 2, 10), (3, 1, 64), (6, 6, 33)] {
            for (first, tokens) in [(0, 1), (0, 2), (0, 65), (63, 1), (64, 3), (100, 37), (256, 1)] {
                for size in [1.0, 100.0] {
                    let positions = usize::next_multiple_of(first + tokens, PAGE);
                    // What lies after the last position must not be read into the result.
                    let mut kv = [(); 2].map(|_| rng.vec(positions * kv_heads * head_dim));
                    kv.iter_mut().for_each(|kv| kv[(first + tokens) * kv_heads * head_dim..].fill(f32::NAN));
                    let (keys, values) = (pages(&kv[0], kv_heads * head_dim), pages(&kv[1], kv_heads * head_dim));
                    let scale = size / (head_dim as f32).sqrt();
                    let op = Attention { heads, kv_heads, head_dim, scale, keys: &keys, values: &values };
                    let q = rng.vec(tokens * heads * head_dim);
                    let (mut y, mut entropy) = (nan(q.len()), nan(tokens * heads));
                    op.forward(&q, first, &mut y, Some(&mut entropy));
                    let (y64, entropy64) = op.reference(&q, first);
                    let what = format!("H={heads}/{kv_heads} hd={head_dim} at {first}+{tokens} ×{size}");
                    // An error of an f32 ulp in a logit of 100 is one of 1e-5 in a weight.
                    let tolerance = if size > 1.0 { 1e-4 } else { 2e-6 };
                    assert_close(&y, &y64, tolerance, &what);
                    entropy
                        .iter()
                        .zip(&entropy64)
                        .for_each(|(a, b)| assert!((f64::from(*a) - b).abs() < 2e-4, "{what}: {a} bits, not {b}"));
                    let mut plain = nan(q.len());
                    op.forward(&q, first, &mut plain, None);
                    assert_eq!(bits(&plain), bits(&y), "{what}: entropy changed the output");
                    let (t, head) = (tokens - 1, heads - 1);
                    let mut row = nan(first + tokens);
                    let q_head = &q[(t * heads + head) * head_dim..][..head_dim];
                    op.row(q_head, head, first + t, &mut row);
                    assert_close(&row, &op.reference_row(q_head, head, first + t), tolerance, &what);
                }
            }
        }
    });
}

#[test]
fn huge_logits_choose_one() {
    let keys: Vec<f32> = (0..70).map(|s| if s == 41 { 1e15 } else { -1e15 }).collect();
    let values: Vec<f32> = (0..70).map(|s| s as f32).collect();
    let (keys, values) = (pages(&keys, 1), pages(&values, 1));
    let op = Attention { heads: 1, kv_heads: 1, head_dim: 1, scale: 1.0, keys: &keys, values: &values };
    let (mut y, mut entropy) = (nan(1), nan(1));
    op.forward(&[1e15], 69, &mut y, Some(&mut entropy));
    assert_eq!((y[0], entropy[0]), (41.0, 0.0));
}

#[test]
fn rope_turns_by_position() {
    let mut rng = Rng::new(13);
    let inv_freq: Vec<f32> = (0..5).map(|j| 10_000f32.powf(-(j as f32) / 5.0)).collect();
    let rope = Rope::new(inv_freq.clone());
    let (heads, head_dim, tokens) = (3, 12, 4);
    for first in [0, 1000, 1_000_000] {
        let xs = rng.vec(tokens * heads * head_dim);
        let mut ys = xs.clone();
        rope.apply(&mut ys, heads, head_dim, first);
        let mut truth = widened(&xs);
        for (i, x) in truth.chunks_exact_mut(head_dim).enumerate() {
            for (j, f) in inv_freq.iter().enumerate() {
                let (sin, cos) = ((first + i / heads) as f64 * f64::from(*f)).sin_cos();
                (x[j], x[j + 5]) = (x[j] * cos - x[j + 5] * sin, x[j + 5] * cos + x[j] * sin);
            }
        }
        assert_close(&ys, &truth, 1e-6, &format!("rope at {first}"));
    }
}
