//! What every [`Simd`] promises to the bit: its conversions, comparisons, roundings and rearrangements.

use half::{bf16, f16};

use super::*;
use crate::cpu::simd::{Kernel, Simd, dispatch};

fn lanes<S: Simd>(s: S, v: S::V) -> Vec<f32> {
    let mut xs = nan(S::LANES);
    s.store(v, &mut xs);
    xs
}

/// The bits of numbers; all NaN are one, where it is not promised which.
fn known(xs: &[f32]) -> Vec<Option<u32>> {
    xs.iter().map(|x| (!x.is_nan()).then_some(x.to_bits())).collect()
}

/// Every number of a type of 16 or 8 bits, by what plain arithmetic makes of it.
struct Conversions;

/// From the definition of the format: `half` may use the instruction that is tested.
fn widened_f16(x: u16) -> u32 {
    let (negative, exponent, fraction) = (x >> 15 == 1, i32::from(x >> 10 & 31), x & 1023);
    let size = match (exponent, fraction) {
        (31, 0) => f32::INFINITY,
        // A signalling NaN becomes a quiet one.
        (31, _) => f32::from_bits(0x7fc0_0000 | u32::from(fraction) << 13),
        (0, _) => f32::from(fraction) * 2f32.powi(-24),
        _ => f32::from(1024 + fraction) * 2f32.powi(exponent - 25),
    };
    size.to_bits() | u32::from(negative) << 31
}

impl Kernel for Conversions {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        for words in all.chunks_exact(S::LANES) {
            let halves: Vec<f16> = words.iter().map(|&x| f16::from_bits(x)).collect();
            let expected: Vec<u32> = words.iter().map(|&x| widened_f16(x)).collect();
            assert_eq!(bits(&lanes(s, s.load_f16(&halves))), expected, "{words:x?}");
            for (&x, &expected) in halves.iter().zip(&expected) {
                assert_eq!(x.to_f32().to_bits(), expected, "{:x}", x.to_bits());
                assert_eq!(bits(&lanes(s, s.splat_f16(x))), vec![expected; S::LANES], "{:x}", x.to_bits());
            }
            let upper: Vec<bf16> = words.iter().map(|&x| bf16::from_bits(x)).collect();
            let expected: Vec<f32> = words.iter().map(|&x| f32::from_bits(u32::from(x) << 16)).collect();
            assert_eq!(known(&lanes(s, s.load_bf16(&upper))), known(&expected));
        }
        let all: Vec<i8> = (i8::MIN..=i8::MAX).collect();
        for bytes in all.chunks_exact(S::LANES) {
            let expected: Vec<f32> = bytes.iter().map(|&x| x.into()).collect();
            assert_eq!(lanes(s, s.load_i8(bytes)), expected);
        }
    }
}

#[test]
fn conversions_are_exact() {
    on_each_set(|| dispatch(Conversions));
}

/// Every pair of numbers of both signs: zeros, ties, the ends of the range and of the normal range, infinities, NaN.
struct Numbers;

const NUMBERS: [f32; 18] = [
    0.0,
    -0.0,
    0.5,
    -0.5,
    1.5,
    -2.5,
    0.499_999_97,
    8_388_607.5,
    -8_388_606.5,
    1e-45,
    -1e-45,
    f32::MIN_POSITIVE,
    f32::MAX,
    f32::MIN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    -f32::NAN,
];

impl Kernel for Numbers {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for a in NUMBERS {
            for b in NUMBERS {
                let (va, vb) = (s.splat(a), s.splat(b));
                let max = if a > b { a } else { b };
                assert_eq!(bits(&lanes(s, s.max(va, vb))), vec![max.to_bits(); S::LANES], "max {a} {b}");
                let min = if a < b { a } else { b };
                assert_eq!(bits(&lanes(s, s.min(va, vb))), vec![min.to_bits(); S::LANES], "min {a} {b}");
                for lane in 0..S::LANES {
                    let mut one = vec![b; S::LANES];
                    one[lane] = a;
                    assert_eq!(s.any_greater(s.load(&one), vb), a > b, "{a} > {b} in lane {lane}");
                }
            }
            for (found, expected) in [(s.round(s.splat(a)), a.round_ties_even()), (s.sqrt(s.splat(a)), a.sqrt())] {
                assert_eq!(known(&lanes(s, found)), known(&vec![expected; S::LANES]), "{a}");
            }
        }
        for n in -126..=127 {
            assert_eq!(lanes(s, s.exp2_whole(s.splat(n as f32))), vec![2f32.powi(n); S::LANES]);
        }
        for n in -252..=254 {
            let scaled = (1.5 * 2f64.powi(n)) as f32;
            assert_eq!(lanes(s, s.scale_exp2(s.splat(1.5), s.splat(n as f32))), vec![scaled; S::LANES], "2^{n}");
        }
    }
}

#[test]
fn comparisons_and_roundings_are_exact() {
    on_each_set(|| dispatch(Numbers));
}

/// Lanes that are told apart: whole numbers, whose sums are exact in any order.
struct Lanes;

impl Kernel for Lanes {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let numbers: Vec<f32> = (0..40 * S::LANES).map(|i| (i * i % 1009) as f32).collect();
        let row = |i: usize| &numbers[i * S::LANES..][..S::LANES];
        let sums: [f32; 8] = std::array::from_fn(|i| row(i).iter().sum());
        assert_eq!(s.sums(std::array::from_fn(|i| s.load(row(i)))), sums);
        for (i, sum) in sums.into_iter().enumerate() {
            assert_eq!(s.sum(s.load(row(i))), sum);
        }
        let difference = lanes(s, s.fma(s.load(row(0)), s.load(row(1)), s.sub(s.load(row(2)), s.load(row(3)))));
        let quotient = lanes(s, s.div(s.load(row(4)), s.add(s.splat(1.0), s.mul(s.load(row(5)), s.load(row(6))))));
        for i in 0..S::LANES {
            assert_eq!(difference[i], row(0)[i] * row(1)[i] + (row(2)[i] - row(3)[i]));
            assert_eq!(quotient[i], row(4)[i] / (1.0 + row(5)[i] * row(6)[i]));
        }
        let (from, to) = (S::LANES + 3, S::LANES + 1);
        let mut turned = nan(to * S::LANES);
        s.transpose(&numbers, from, &mut turned[..to * S::LANES - 1], to);
        for i in 0..S::LANES {
            for j in 0..S::LANES {
                assert_eq!(turned[j * to + i], numbers[i * from + j], "[{i}, {j}]");
            }
            assert!(turned[i * to + S::LANES].is_nan(), "written beyond row {i}");
        }
        for n in 0..=S::LANES {
            let mut some = lanes(s, s.load_some(&numbers[1..1 + n]));
            assert_eq!((&some[..n], &some[n..]), (&numbers[1..1 + n], &vec![0.0; S::LANES - n][..]));
            s.store_some(s.splat(7.0), &mut some[..n]);
            assert_eq!((&some[..n], &some[n..]), (&vec![7.0; n][..], &vec![0.0; S::LANES - n][..]));
        }
        // A wish for memory that is not there changes nothing.
        s.prefetch(&numbers, 1 << 40);
    }
}

#[test]
fn lanes_stay_apart() {
    on_each_set(|| dispatch(Lanes));
}
