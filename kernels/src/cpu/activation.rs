//! CPU twin of [`crate::activation`].

use crate::{
    cpu::{
        simd::{Kernel, Simd, dispatch},
        vector,
    },
    par,
};

/// Numbers of a piece of work.
const PIECE: usize = 1 << 12;

/// A number in units of multiply-adds.
pub(crate) const WORK: usize = 6;

/// A function of one number, eight at a time.
pub(crate) trait Map: Copy + Sync {
    fn map<S: Simd>(s: S, x: S::V) -> S::V;
}

macro_rules! maps {
    ($($name:ident $kernel:ident |$s:ident, $x:ident| $body:expr;)*) => {$(
        #[derive(Clone, Copy)]
        pub(crate) struct $kernel;
        impl Map for $kernel {
            #[inline(always)]
            fn map<S: Simd>($s: S, $x: S::V) -> S::V {
                $body
            }
        }
        pub(crate) fn $name(xs: &mut [f32]) {
            in_place($kernel, xs);
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

fn in_place<M: Map>(function: M, xs: &mut [f32]) {
    let work = xs.len() * WORK;
    par::for_each_chunk(xs, PIECE, work, |_, xs| dispatch(InPlace(xs, function)));
}

/// The function of each number in its place.
pub(crate) struct InPlace<'a, M>(pub(crate) &'a mut [f32], pub(crate) M);

impl<M: Map> Kernel for InPlace<'_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.0.chunks_mut(S::LANES) {
            s.store_some(M::map(s, s.load_some(x)), x);
        }
    }
}

/// out = f(gate) ⊙ up.
pub(crate) fn mul<M: Map>(function: M, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let work = out.len() * WORK;
    par::for_each_chunk(out, PIECE, work, |i, out| {
        let own = i * PIECE..i * PIECE + out.len();
        dispatch(Gated(function, &gate[own.clone()], &up[own], out));
    });
}

struct Gated<'a, M>(M, &'a [f32], &'a [f32], &'a mut [f32]);

impl<M: Map> Kernel for Gated<'_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Gated(_, gate, up, out) = self;
        for ((gate, up), out) in gate.chunks(S::LANES).zip(up.chunks(S::LANES)).zip(out.chunks_mut(S::LANES)) {
            s.store_some(s.mul(M::map(s, s.load_some(gate)), s.load_some(up)), out);
        }
    }
}
