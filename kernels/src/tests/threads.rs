//! The number of threads changes no bit.

use super::{
    attention::pages,
    delta_rule::DeltaData,
    linear_attention::{Data, VARIANTS},
    recurrences::{ScanData, SsdData},
    *,
};
use crate::{Attention, Dtype, Elements, Layout, Lowered, Matrix, Strided, linear, par, set_threads};

/// Every op that can go over threads, at sizes at which it does.
fn everything() -> Vec<Vec<f32>> {
    let mut rng = Rng::new(19);
    let mut results = Vec::new();
    let w = Matrix::new(1160, 1024, Elements::F32(rng.vec(1160 * 1024))).unwrap().to_dtype(Dtype::Bf16);
    for tokens in [1, 65] {
        let mut ys = nan(tokens * 1160);
        linear(&w, None, &rng.vec(tokens * 1024), &mut ys);
        results.push(ys);
    }
    let scan = ScanData::new(&mut rng, 257, 200, 16);
    let (mut state, mut y, mut norm) = (vec![0.0; 3200], nan(257 * 200), nan(257 * 200));
    scan.op().forward(&mut state, &mut y, Some(&mut norm));
    results.extend([state, y, norm]);

    let ssd = SsdData::new(&mut rng, 257, (8, 64, 64, 1));
    let (mut state, mut y, mut norms) = (vec![0.0; ssd.state_len()], nan(257 * 512), nan(257 * 8));
    ssd.op().state_norms(&state, &mut norms);
    ssd.op().forward(&mut state, &mut y);
    results.extend([state, y, norms]);

    let delta = DeltaData::new(&mut rng, 257, (2, 4, 64, 64));
    let (mut state, mut y, mut m) = (vec![0.0; delta.state_len()], nan(257 * 256), nan(257 * 257));
    delta.op().forward(&mut state, &mut y);
    delta.lowered(3).rows(0..257, &mut m);
    results.extend([state, y, m]);

    for variant in VARIANTS {
        let data = Data::new(&mut rng, 257, (4, 64, 64), variant);
        let (mut state, mut y, mut m) = (vec![0.0; 4 * 64 * 64], nan(257 * 256), nan(257 * 257));
        data.op().forward(&mut state, &mut y);
        data.lowered(3).rows(0..257, &mut m);
        results.extend([state, y, m]);
    }

    let (mut out, mut history) = (nan(2000 * 1024), rng.vec(3 * 1024));
    crate::causal_conv(&rng.vec(2000 * 1024), &rng.vec(4 * 1024), None, &mut history, &mut out);
    results.push(out);

    let [k, v, q] = [(); 3].map(|_| rng.vec(400 * 4 * 64));
    let (keys, values) = (pages(&k, 256), pages(&v, 256));
    let attention = Attention {
        heads: 4,
        kv_heads: 4,
        head_dim: 64,
        value_dim: 64,
        sinks: 0,
        scale: 0.125,
        window: None,
        keys: &keys,
        values: &values,
        layout: Layout::ByToken,
    };
    let (mut y, mut m) = (nan(q.len()), nan(400 * 400));
    attention.forward(&q, 0, &mut y, None);
    let query = Strided { data: &q, stride: 256, offset: 64, width: 64 };
    Lowered::Softmax { attention, query, head: 1 }.rows(0..400, &mut m);
    results.extend([y, m]);
    let mut y = nan(q.len());
    Attention { window: Some(300), ..attention }.forward(&q, 0, &mut y, None);
    results.push(y);
    results
}

#[test]
fn number_of_threads_changes_no_bit() {
    set_threads(1);
    let alone = everything();
    assert!(alone.iter().flatten().all(|x| x.is_finite()));
    for threads in [2, 3, 5] {
        set_threads(threads);
        for (i, (a, b)) in alone.iter().zip(everything()).enumerate() {
            assert_eq!(bits(a), bits(&b), "result {i} with {threads} threads");
        }
    }
    set_threads(0);
    assert_eq!(par::threads(), 1);
}

#[test]
fn every_item_is_visited_once() {
    let mut seen = vec![0u8; 10_007];
    par::for_each_chunk(&mut seen, 10, usize::MAX, |i, chunk| {
        assert!(chunk.len() == if i == 1000 { 7 } else { 10 });
        chunk.iter_mut().for_each(|x| *x += 1);
    });
    assert!(seen.iter().all(|&x| x == 1));
}

#[test]
fn a_panic_reaches_the_caller_and_leaves_the_threads_at_work() {
    let work = |bad: usize| {
        let mut seen = vec![0u8; 64];
        par::for_each_chunk(&mut seen, 1, usize::MAX, |i, x| {
            assert!(i != bad, "item {bad}");
            x[0] = 1;
        });
        seen
    };
    for bad in [0, 31, 63] {
        assert!(std::panic::catch_unwind(|| work(bad)).is_err());
        assert!(work(64).iter().all(|&x| x == 1));
    }
}
