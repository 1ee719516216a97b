//! CPU twin of [`crate::activation`].

use crate::cpu::{
    simd::{Kernel, LANES, Simd, dispatch},
    vector,
};

/// A function of one number, eight at a time.
trait Map {
    fn map<S: Simd>(s: S, x: S::V) -> S::V;
}

macro_rules! maps {
    ($($name:ident $kernel:ident |$s:ident, $x:ident| $body:expr;)*) => {$(
        struct $kernel;
        impl Map for $kernel {
            #[inline(always)]
            fn map<S: Simd>($s: S, $x: S::V) -> S::V {
                $body
            }
        }
        pub(crate) fn $name(xs: &mut [f32]) {
            dispatch(InPlace(xs, $kernel));
        }
    )*};
}

maps! {
    exp Exp |s, x| vector::exp(s, x);
    sigmoid Sigmoid |s, x| vector::sigmoid(s, x);
    silu Silu |s, x| s.mul(x, vector::sigmoid(s, x));
    softplus Softplus |s, x| vector::softplus(s, x);
}

struct InPlace<'a, M>(&'a mut [f32], M);

impl<M: Map> Kernel for InPlace<'_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.0.chunks_mut(LANES) {
            s.store_some(M::map(s, s.load_some(x)), x);
        }
    }
}

pub(crate) fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    dispatch(SiluMul { gate, up, out });
}

struct SiluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for ((gate, up), out) in self.gate.chunks(LANES).zip(self.up.chunks(LANES)).zip(self.out.chunks_mut(LANES)) {
            let gate = s.load_some(gate);
            s.store_some(s.mul(s.mul(gate, vector::sigmoid(s, gate)), s.load_some(up)), out);
        }
    }
}
