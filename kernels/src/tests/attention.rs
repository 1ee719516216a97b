use super::*;
use crate::{Attention, Layout, PAGE, Rope};

pub(crate) fn pages(xs: &[f32], width: usize) -> Vec<&[f32]> {
    xs.chunks(PAGE * width).collect()
}

#[test]
fn equals_the_reference() {
    on_each_set(|| {
        let mut rng = Rng::new(12);
        for (heads, kv_heads, head_dim) in [(1, 1, 1), (4, 2, 10), (3, 1, 64), (6, 6, 33), (6, 2, 7), (12, 3, 80)] {
            for (first, tokens) in [(0, 1), (0, 2), (0, 65), (63, 1), (64, 3), (100, 37), (256, 1)] {
                for size in [1.0, 100.0] {
                    let positions = usize::next_multiple_of(first + tokens, PAGE);
                    // What lies after the last position must not be read into the result.
                    let mut kv = [(); 2].map(|_| rng.vec(positions * kv_heads * head_dim));
                    kv.iter_mut().for_each(|kv| kv[(first + tokens) * kv_heads * head_dim..].fill(f32::NAN));
                    let (keys, values) = (pages(&kv[0], kv_heads * head_dim), pages(&kv[1], kv_heads * head_dim));
                    let scale = size / (head_dim as f32).sqrt();
                    let op = Attention {
                        heads,
                        kv_heads,
                        head_dim,
                        value_dim: head_dim,
                        sinks: 0,
                        scale,
                        window: None,
                        keys: &keys,
                        values: &values,
                        layout: Layout::ByToken,
                    };
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
fn a_window_hides_what_lies_before_it() {
    on_each_set(|| {
        let mut rng = Rng::new(25);
        let (heads, kv_heads, head_dim) = (4, 2, 10);
        for window in [1, 2, 5, 63, 64, 65, 100, 1000] {
            for (first, tokens) in [(0, 1), (0, 65), (63, 1), (64, 3), (100, 37), (256, 1), (190, 70)] {
                let end = first + tokens;
                let unseen = (first + 1usize).saturating_sub(window);
                let mut kv = [(); 2].map(|_| rng.vec(end * kv_heads * head_dim));
                kv.iter_mut().for_each(|kv| kv[..unseen * kv_heads * head_dim].fill(f32::NAN));
                let [keys, values] = [&kv[0], &kv[1]].map(|kv| {
                    let mut pages = pages(kv, kv_heads * head_dim);
                    pages[..unseen / PAGE].fill(&[]);
                    pages
                });
                let attention = |window| Attention {
                    heads,
                    kv_heads,
                    head_dim,
                    value_dim: head_dim,
                    sinks: 0,
                    scale: 0.3,
                    window,
                    keys: &keys,
                    values: &values,
                    layout: Layout::ByToken,
                };
                let op = attention(Some(window));
                let q = rng.vec(tokens * heads * head_dim);
                let (mut y, mut entropy) = (nan(q.len()), nan(tokens * heads));
                op.forward(&q, first, &mut y, Some(&mut entropy));
                let (y64, entropy64) = op.reference(&q, first);
                let what = format!("W={window} at {first}+{tokens}");
                assert_close(&y, &y64, 2e-6, &what);
                entropy
                    .iter()
                    .zip(&entropy64)
                    .for_each(|(a, b)| assert!((f64::from(*a) - b).abs() < 2e-5, "{what}: {a} bits, not {b}"));
                for t in [0, tokens - 1] {
                    let (position, q_head) = (first + t, &q[(t * heads + 3) * head_dim..][..head_dim]);
                    let mut row = nan(position + 1);
                    op.row(q_head, 3, position, &mut row);
                    assert!(row[..(position + 1usize).saturating_sub(window)].iter().all(|w| w.to_bits() == 0));
                    assert_close(&row, &op.reference_row(q_head, 3, position), 2e-6, &what);
                }
                if window >= end {
                    let mut all = nan(q.len());
                    attention(None).forward(&q, first, &mut all, None);
                    assert_eq!(bits(&y), bits(&all), "{what}: a window that hides nothing");
                }
            }
        }
    });
}

/// Pages in which each head has its own stream give the bits of those that hold token after token.
#[test]
fn layouts_agree() {
    on_each_set(|| {
        let mut rng = Rng::new(28);
        let (heads, kv_heads, head_dim, value_dim) = (6, 3, 20, 12);
        for (first, tokens) in [(0, 1), (63, 1), (130, 1), (100, 37)] {
            let positions = usize::next_multiple_of(first + tokens, PAGE);
            let [k, v] = [head_dim, value_dim].map(|dim| rng.vec(positions * kv_heads * dim));
            let by_head = |xs: &[f32], dim: usize| {
                let mut out = nan(xs.len());
                for (i, vector) in xs.chunks_exact(dim).enumerate() {
                    let (position, kv_head) = (i / kv_heads, i % kv_heads);
                    let page = position / PAGE * PAGE * kv_heads * dim;
                    let at = page + Layout::ByHead.at(position, kv_heads, kv_head, dim);
                    out[at..at + dim].copy_from_slice(vector);
                }
                out
            };
            let (k2, v2) = (by_head(&k, head_dim), by_head(&v, value_dim));
            let q = rng.vec(tokens * heads * head_dim);
            let [one, other] = [(Layout::ByToken, &k, &v), (Layout::ByHead, &k2, &v2)].map(|(layout, k, v)| {
                let (keys, values) = (pages(k, kv_heads * head_dim), pages(v, kv_heads * value_dim));
                let (window, sinks, scale) = (Some(90), 3, 0.3);
                let (keys, values) = (&keys[..], &values[..]);
                let op = Attention { heads, kv_heads, head_dim, value_dim, scale, window, sinks, keys, values, layout };
                let mut y = nan(tokens * heads * value_dim);
                op.forward(&q, first, &mut y, None);
                bits(&y)
            });
            assert_eq!(one, other, "at {first}+{tokens}");
        }
    });
}

/// Sinks stay in sight of every window, and values may be wider or narrower than keys.
#[test]
fn sinks_and_wide_values() {
    on_each_set(|| {
        let mut rng = Rng::new(27);
        let (heads, kv_heads, head_dim) = (6, 2, 10);
        for (window, sinks, value_dim) in [
            (Some(1), 1, 20),
            (Some(5), 3, 10),
            (Some(5), 70, 7),
            (Some(64), 64, 33),
            (Some(70), 130, 20),
            (None, 9, 20),
        ] {
            for (first, tokens) in [(0, 1), (0, 65), (63, 1), (64, 3), (100, 37), (256, 1), (190, 70)] {
                let end = first + tokens;
                let start = window.map_or(0, |window| (first + 1usize).saturating_sub(window));
                let mut kv = [head_dim, value_dim].map(|dim| (dim, rng.vec(end * kv_heads * dim)));
                let unseen = sinks.min(start)..start;
                kv.iter_mut().for_each(|(dim, kv)| {
                    kv[unseen.start * kv_heads * *dim..unseen.end * kv_heads * *dim].fill(f32::NAN);
                });
                let [keys, values] = [&kv[0], &kv[1]].map(|(dim, kv)| {
                    let mut pages = pages(kv, kv_heads * dim);
                    let empty = unseen.start.div_ceil(PAGE)..unseen.end / PAGE;
                    pages.iter_mut().enumerate().filter(|(i, _)| empty.contains(i)).for_each(|(_, page)| *page = &[]);
                    pages
                });
                let attention = |sinks| Attention {
                    heads,
                    kv_heads,
                    head_dim,
                    value_dim,
                    scale: 0.3,
                    window,
                    sinks,
                    keys: &keys,
                    values: &values,
                    layout: Layout::ByToken,
                };
                let (op, what) = (attention(sinks), format!("W={window:?} sinks={sinks} at {first}+{tokens}"));
                let q = rng.vec(tokens * heads * head_dim);
                let (mut y, mut entropy) = (nan(tokens * heads * value_dim), nan(tokens * heads));
                op.forward(&q, first, &mut y, Some(&mut entropy));
                let (y64, entropy64) = op.reference(&q, first);
                assert_close(&y, &y64, 2e-6, &what);
                let bits_of = entropy.iter().zip(&entropy64);
                bits_of.for_each(|(a, b)| assert!((f64::from(*a) - b).abs() < 2e-5, "{what}: {a} bits, not {b}"));
                for t in [0, tokens - 1] {
                    let (position, q_head) = (first + t, &q[(t * heads + 3) * head_dim..][..head_dim]);
                    let mut row = nan(position + 1);
                    op.row(q_head, 3, position, &mut row);
                    assert_close(&row, &op.reference_row(q_head, 3, position), 2e-6, &what);
                    let first = window.map_or(0, |window| (position + 1usize).saturating_sub(window));
                    let mut hidden = sinks.min(first)..first;
                    assert!(hidden.all(|s| row[s] == 0.0), "{what}");
                    assert!((0..sinks.min(first)).all(|s| row[s] > 0.0), "{what}");
                }
                if sinks >= end {
                    let mut all = nan(y.len());
                    Attention { window: None, ..op }.forward(&q, first, &mut all, None);
                    assert_close(&y, &all.iter().map(|y| f64::from(*y)).collect::<Vec<_>>(), 2e-6, &what);
                }
            }
        }
    });
}

/// A query among others has the bits of its position alone, however the text was cut; so has one by itself (fewer than
/// four).
#[test]
fn bits_do_not_depend_on_the_cut() {
    on_each_set(|| {
        let mut rng = Rng::new(26);
        let (heads, kv_heads, head_dim, tokens) = (2, 1, 20, 150);
        let [k, v] = [(); 2].map(|_| rng.vec(tokens * kv_heads * head_dim));
        let q = rng.vec(tokens * heads * head_dim);
        let (keys, values) = (pages(&k, kv_heads * head_dim), pages(&v, kv_heads * head_dim));
        for window in [None, Some(3), Some(64), Some(70)] {
            let op = Attention {
                heads,
                kv_heads,
                head_dim,
                value_dim: head_dim,
                sinks: 0,
                scale: 0.3,
                window,
                keys: &keys,
                values: &values,
                layout: Layout::ByToken,
            };
            let run = |sizes: &[usize]| {
                let (mut y, mut at) = (nan(q.len()), 0);
                for size in sizes.iter().cycle() {
                    let end = tokens.min(at + size);
                    let part = at * heads * head_dim..end * heads * head_dim;
                    op.forward(&q[part.clone()], at, &mut y[part], None);
                    at = end;
                    if at == tokens {
                        return bits(&y);
                    }
                }
                unreachable!()
            };
            let whole = run(&[tokens]);
            for sizes in [&[16][..], &[5], &[67, 4], &[30, 120]] {
                assert_eq!(whole, run(sizes), "{window:?} {sizes:?}");
            }
            assert_eq!(run(&[1]), run(&[2]), "{window:?}");
        }
    });
}

#[test]
fn huge_logits_choose_one() {
    let keys: Vec<f32> = (0..70).map(|s| if s == 41 { 1e15 } else { -1e15 }).collect();
    let values: Vec<f32> = (0..70).map(|s| s as f32).collect();
    let (keys, values) = (pages(&keys, 1), pages(&values, 1));
    let op = Attention {
        heads: 1,
        kv_heads: 1,
        head_dim: 1,
        value_dim: 1,
        sinks: 0,
        scale: 1.0,
        window: None,
        keys: &keys,
        values: &values,
        layout: Layout::ByToken,
    };
    let (mut y, mut entropy) = (nan(1), nan(1));
    op.forward(&[1e15], 69, &mut y, Some(&mut entropy));
    assert_eq!((y[0], entropy[0]), (41.0, 0.0));
}

#[test]
fn rope_turns_by_position() {
    on_each_set(|| {
        let mut rng = Rng::new(13);
        let heads = 3;
        // One text after another, as long or as far on or of the same frequencies: what is kept of the last must not serve the next.
        for (tokens, first, half, head_dim) in [
            (4, 0, 5, 12),
            (4, 1000, 5, 12),
            (37, 1000, 5, 12),
            (37, 1_000_000, 5, 12),
            (37, 7, 20, 41),
            (37, 7, 5, 10),
            (4, 7, 3, 7),
            (4, 7, 1, 3),
            (4, 7, 0, 1),
        ] {
            let inv_freq: Vec<f32> = (0..half).map(|j| 10_000f32.powf(-(j as f32) / half as f32)).collect();
            let rope = Rope::new(inv_freq.clone());
            let xs = rng.vec(tokens * heads * head_dim);
            let mut ys = xs.clone();
            rope.apply(&mut ys, heads, head_dim, first);
            let mut truth = widened(&xs);
            for (i, x) in truth.chunks_exact_mut(head_dim).enumerate() {
                for (j, f) in inv_freq.iter().enumerate() {
                    let (sin, cos) = ((first + i / heads) as f64 * f64::from(*f)).sin_cos();
                    (x[j], x[j + half]) = (x[j] * cos - x[j + half] * sin, x[j + half] * cos + x[j] * sin);
                }
            }
            assert_close(&ys, &truth, 1e-6, &format!("rope at {first}"));
        }
    });
}
