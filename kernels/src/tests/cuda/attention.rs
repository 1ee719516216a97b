//! Attention of many tokens.

use half::bf16;

use super::*;
use crate::cuda::PromptAttention;
use crate::{Attention, Layout, PAGE, Rope};

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_prompt_attention_agrees() {
    let kinds =
        [(1, 1, 4, None, false), (4, 2, 64, None, true), (8, 8, 80, Some(3), true), (2, 1, 256, Some(40), false)];
    let others =
        [(2, 1, 32, None, false), (3, 3, 80, None, false), (2, 2, 96, Some(70), false), (2, 1, 128, None, true)];
    check(&kinds, &[(0, 1), (0, 70), (5, 33), (64, 100)], false);
    check(&others, &[(0, 1), (0, 129), (5, 63), (257, 300)], false);
    // Sums that the tensor cores cut off do not add up along the text.
    check(&[(1, 1, 64, None, false)], &[(0, 3000)], false);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cuda_prompt_attention_on_tensor_cores_agrees() {
    let kinds = [
        (2, 1, 32, None, false),
        (4, 2, 64, None, true),
        (3, 3, 80, None, false),
        (8, 8, 80, Some(3), true),
        (2, 2, 96, Some(70), false),
        (2, 1, 128, None, true),
    ];
    check(&kinds, &[(0, 1), (0, 129), (5, 63), (64, 100), (257, 300)], true);
}

/// Heads, heads of keys, their size, window, whether q and k are normed.
type Kind = (usize, usize, usize, Option<usize>, bool);

/// Each kind at each of (first, tokens).
fn check(kinds: &[Kind], places: &[(usize, usize)], in_halves: bool) {
    let gpu = gpu();
    let mut rng = Rng::new(43);
    for &(heads, kv_heads, hd, window, normed) in kinds {
        for &(first, tokens) in places {
            let what = format!("{heads}/{kv_heads} × {hd}, {tokens} from {first}");
            let (q_len, kv_len, half) = (heads * hd, kv_heads * hd, hd / 4);
            let inv_freq: Vec<f32> = (0..half).map(|j| 10_000f32.powf(-(j as f32) / half as f32)).collect();
            let (q_scale, k_scale) = (rng.vec(hd), rng.vec(hd));
            let (freq, q_norm, k_norm) = (put(&gpu, &inv_freq), put(&gpu, &q_scale), put(&gpu, &k_scale));
            let end = first + tokens;
            let (mut all_keys, mut all_values) = (rng.vec(end * kv_len), rng.vec(end * kv_len));
            let [keys, values] = [&all_keys, &all_values].map(|kv| {
                let mut known = kv.clone();
                known[first * kv_len..].fill(f32::NAN);
                known.extend(nan(3 * kv_len));
                put(&gpu, &known)
            });
            let (qs, ks, vs) = (rng.vec(tokens * q_len), rng.vec(tokens * kv_len), rng.vec(tokens * kv_len));
            let (q, k, v) = (put(&gpu, &qs), put(&gpu, &ks), put(&gpu, &vs));
            let (y, entropy) = (poisoned::<f32>(&gpu, tokens * q_len), poisoned::<f32>(&gpu, tokens * heads));
            let halves = [tokens * q_len, end * kv_len, end * kv_len].map(|len| poisoned::<bf16>(&gpu, len));
            PromptAttention {
                tokens,
                first,
                heads,
                kv_heads,
                head_dim: hd,
                q: &q,
                k: &k,
                v: &v,
                norms: normed.then_some((&q_norm, &k_norm, 1e-5)),
                inv_freq: Some(&freq),
                key_scale: 0.5,
                scale: 0.3,
                window,
                keys: &keys,
                values: &values,
                q_out: &q,
                y: &y,
                entropy_bits: &entropy,
                halves: in_halves.then_some(halves.each_ref()),
            }
            .run(&gpu)
            .unwrap();
            let rope = Rope::new(inv_freq);
            let scaled = ks.iter().map(|k| 0.5 * k).collect();
            let mut seen = [(qs, &q_scale), (scaled, &k_scale)].map(|(x, scale): (Vec<f32>, _)| match normed {
                true => crate::norm::rms_norm_reference(&x, scale, 1e-5).iter().map(|x| *x as f32).collect(),
                false => x,
            });
            rope.apply(&mut seen[0], heads, hd, first);
            rope.apply(&mut seen[1], kv_heads, hd, first);
            all_keys[first * kv_len..].copy_from_slice(&seen[1]);
            all_values[first * kv_len..].copy_from_slice(&vs);
            assert_close(&get(&gpu, &q), &widened(&seen[0]), 3e-6, &what);
            let mut stored = nan(end * kv_len);
            gpu.read(&keys, 0, &mut stored).unwrap();
            assert_close(&stored, &widened(&all_keys), 3e-6, &what);
            if in_halves {
                let round = |xs: &mut Vec<f32>| xs.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
                [&mut seen[0], &mut all_keys, &mut all_values].into_iter().for_each(round);
            }
            let [key_pages, value_pages] =
                [&all_keys, &all_values].map(|kv| kv.chunks(PAGE * kv_len).collect::<Vec<_>>());
            let op = Attention {
                heads,
                kv_heads,
                head_dim: hd,
                value_dim: hd,
                sinks: 0,
                scale: 0.3,
                window,
                keys: &key_pages,
                values: &value_pages,
                layout: Layout::ByToken,
            };
            let (expected, entropy64) = op.reference(&seen[0], first);
            // A weight is rounded by up to 1/512 of it, and a number on the verge may have been rounded the other way.
            let (error, entropy_error) = if in_halves { (4e-3, 4e-3) } else { (1e-5, 1e-4) };
            assert_close(&get(&gpu, &y), &expected, error, &what);
            let bits = get(&gpu, &entropy);
            bits.iter()
                .zip(&entropy64)
                .for_each(|(a, b)| assert!((f64::from(*a) - b).abs() < entropy_error, "{what}: {a} bits, not {b}"));
        }
    }
}
