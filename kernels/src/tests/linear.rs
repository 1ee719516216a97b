use super::*;
use crate::{Dtype, Elements, Matrix, linear, linear::reference, linear_parts};

fn matrix(rng: &mut Rng, outputs: usize, inputs: usize, dtype: Dtype) -> Matrix {
    Matrix::new(outputs, inputs, Elements::F32(rng.vec(outputs * inputs))).unwrap().to_dtype(dtype)
}

#[test]
fn equals_the_reference() {
    on_each_set(|| {
        let mut rng = Rng::new(1);
        for (outputs, inputs) in [(1, 1), (3, 5), (4, 7), (16, 16), (17, 33), (133, 70), (300, 256)] {
            for dtype in Dtype::ALL {
                let w = matrix(&mut rng, outputs, inputs, dtype);
                let bias = rng.vec(outputs);
                for tokens in [1, 2, 3, 4, 5, 6, 7, 13, 24, 25, 65] {
                    let xs = rng.vec(tokens * inputs);
                    for bias in [None, Some(&bias[..])] {
                        let mut ys = nan(tokens * outputs);
                        linear(&w, bias, &xs, &mut ys);
                        assert_close(
                            &ys,
                            &reference(&w, bias, &xs),
                            1e-6 + 1e-8 * inputs as f64,
                            &format!("{outputs}×{inputs} {dtype} T={tokens}"),
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn larger_than_one_group_of_packed_weights() {
    let mut rng = Rng::new(2);
    let (outputs, inputs) = (1050, 1100);
    let w = matrix(&mut rng, outputs, inputs, Dtype::Bf16);
    let xs = rng.vec(7 * inputs);
    let mut ys = nan(7 * outputs);
    linear(&w, None, &xs, &mut ys);
    assert_close(&ys, &reference(&w, None, &xs), 1e-5, "two groups");
}

#[test]
fn bits_do_not_depend_on_how_many_tokens_go_together() {
    let mut rng = Rng::new(3);
    let (outputs, inputs, tokens) = (77, 130, 65);
    let w = matrix(&mut rng, outputs, inputs, Dtype::Bf16);
    let xs = rng.vec(tokens * inputs);
    let mut whole = nan(tokens * outputs);
    linear(&w, None, &xs, &mut whole);
    for at in [2, 7, 24, 31, 63] {
        let mut ys = nan(tokens * outputs);
        let (first, rest) = ys.split_at_mut(at * outputs);
        linear(&w, None, &xs[..at * inputs], first);
        linear(&w, None, &xs[at * inputs..], rest);
        assert_eq!(bits(&ys), bits(&whole), "split at {at}");
    }
}

#[test]
fn parts_are_the_columns_of_the_whole() {
    let mut rng = Rng::new(4);
    let (outputs, inputs, widths) = (150, 40, [70, 0, 3, 77]);
    let (w, bias) = (matrix(&mut rng, outputs, inputs, Dtype::F32), rng.vec(outputs));
    for tokens in [1, 2, 40] {
        let xs = rng.vec(tokens * inputs);
        let mut whole = nan(tokens * outputs);
        linear(&w, Some(&bias), &xs, &mut whole);
        let mut parts = widths.map(|width| nan(tokens * width));
        linear_parts(&w, Some(&bias), &xs, &mut parts.each_mut().map(|part| &mut part[..]));
        let mut first = 0;
        for (part, width) in parts.iter().zip(widths) {
            let columns: Vec<f32> = whole.chunks(outputs).flat_map(|y| &y[first..first + width]).copied().collect();
            assert_eq!(bits(part), bits(&columns), "{tokens} tokens, {width} columns from {first}");
            first += width;
        }
    }
}

#[test]
fn nothing_in_or_out() {
    let none = Matrix::new(3, 0, Elements::F32(vec![])).unwrap();
    for tokens in [1, 2] {
        let mut ys = nan(3 * tokens);
        linear(&none, Some(&[1.0, 2.0, 3.0]), &[], &mut ys);
        assert_eq!(ys, [1.0, 2.0, 3.0].repeat(tokens));
    }
    linear(&none, None, &[], &mut []);
}

#[test]
#[should_panic(expected = "x is not [T = 2, in = 3]")]
fn wrong_shape_says_so() {
    let w = Matrix::new(2, 3, Elements::F32(vec![0.0; 6])).unwrap();
    linear(&w, None, &[0.0; 5], &mut [0.0; 4]);
}
