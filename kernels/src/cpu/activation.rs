//! CPU twin of [`crate::activation`].

use crate::cpu::{
    simd::{Kernel, LANES, Simd, dispatch},
    vector,
};

/// A function of one number, eight at a time.
pub(crate) trait Map {
    fn map<S: Simd>(s: S, x: S::V) -> S::V;
}

macro_rules! maps {
    ($($name:ident $kernel:ident |$s:ident, $x:ident| $body:expr;)*) => {$(
        pub(crate) struct $kernel;
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
    gelu Gelu |s, x| vector::gelu(s, x);
    gelu_tanh GeluTanh |s, x| vector::gelu_tanh(s, x);
    relu2 Relu2 |s, x| {
        // The order of the arguments keeps NaN.
        let x = s.max(s.splat(0.0), x);
        s.mul(x, x)
    };
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

/// out = f(gate) ⊙ up.
pub(crate) fn mul<M: Map>(function: M, gate: &[f32], up: &[f32], out: &mut [f32]) {
    dispatch(Gated(function, gate, up, out));
}

struct Gated<'a, M>(M, &'a [f32], &'a [f32], &'a mut [f32]);

impl<M: Map> Kernel for Gated<'_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Gated(_, gate, up, out) = self;
        for ((gate, up), out) in gate.chunks(LANES).zip(up.chunks(LANES)).zip(out.chunks_mut(LANES)) {
            s.store_some(s.mul(M::map(s, s.load_some(gate)), s.load_some(up)), out);
        }
    }
}
