//! Many tokens through the model: launch by launch, in f32 or in bf16.

use half::bf16;
use statescope_kernels::cuda::{At, Buffer, Element, EmbedRows, Gemm, Result, rank, rank_width};

use super::executor::{Asked, Carried, Executor, Layer};
use super::memory::Memory;
use super::token::outlook;
use super::{Rows, Scratch, all};
use crate::hooks::Hooks;
use crate::protocol::TokenId;

/// Rows of logits made at once.
const LOGIT_ROWS: usize = 256;

impl Executor {
    pub(super) fn read<T: Workspace>(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        memory: &mut Memory,
        hooks: &mut Hooks<'_>,
        asked: Asked<'_>,
    ) -> Result<()> {
        let (gpu, d, count) = (self.gpu.clone(), self.model.spec().hidden_size, tokens.len());
        let x = self.scratch.get(&gpu, "x", count * d)?;
        let mut carried = Carried::default();
        if self.embeds_on_cpu() || self.keeps_embedding() {
            carried.embedding = self.model.embed(tokens, first);
        }
        if self.embeds_on_cpu() {
            gpu.write(&x, 0, &carried.embedding)?;
        } else {
            EmbedRows {
                table: &self.embeddings,
                positions: self.positions.as_ref(),
                tokens: &gpu.upload(tokens)?,
                count,
                first,
                scale: self.model.spec().embedding_scale,
                x: &x,
            }
            .run(&gpu)?;
        }
        self.recorder.forget();
        for layer in 0..self.layers.len() {
            if let Layer::Cpu(_) = &self.layers[layer] {
                let mut host = vec![0.0; count * d];
                gpu.read(&x, 0, &mut host)?;
                self.on_cpu(layer, &mut host, memory, hooks, &mut carried, count);
                gpu.write(&x, 0, &host)?;
                continue;
            }
            let slots = self.model.slot_index(layer, 0)..self.model.slot_index(layer, 0) + self.model.parts(layer);
            let mut rows = Rows {
                gpu: &gpu,
                count,
                first,
                own: T::of(&self.scratch, &self.scratch_halves),
                wide: &self.scratch,
                recorder: &mut self.recorder,
                depth: hooks.depth(layer),
            };
            if let Layer::Gpu(block) = &self.layers[layer] {
                block.rows(&mut rows, layer, &x, &memory.slots[slots], hooks)?;
            }
        }
        self.recorder.show(&gpu, count, hooks)?;
        self.logits::<T>(&x, count, asked)
    }

    /// Logits of the last or of all rows of the residual stream x `[T, d]`, or what they come to.
    fn logits<T: Workspace>(&mut self, x: &Buffer<f32>, count: usize, asked: Asked<'_>) -> Result<()> {
        let (gpu, d, vocab) = (self.gpu.clone(), self.model.spec().hidden_size, self.model.spec().vocab_size);
        let (out, all_rows, mut ranked) = match asked {
            Asked::Last(out) => (out, false, None),
            Asked::All(out) => (out, true, None),
            Asked::Ranked { candidates, next, outlooks, last } => (last, true, Some((candidates, next, outlooks))),
        };
        out.clear();
        let own = T::of(&self.scratch, &self.scratch_halves);
        let weight = self.head.as_ref().unwrap_or(&self.embeddings);
        let rest = if all_rows { count - 1 } else { 0 };
        for from in (0..rest).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(rest - from);
            let normed = own.get(&gpu, "normed", rows * d)?;
            self.final_norm.rows(&gpu, rows, At(x, from * d), &normed)?;
            let made = self.scratch.get(&gpu, "logits", rows * vocab)?;
            let gemm = Gemm::new(rows, weight, At(&normed, 0));
            Gemm { wide: Some(&made), output_scale: self.model.spec().logits_scale, ..gemm }.run(&gpu)?;
            match &mut ranked {
                None => {
                    let at = out.len();
                    out.resize(at + rows * vocab, 0.0);
                    gpu.read(&made, 0, &mut out[at..])?;
                }
                Some((candidates, next, outlooks)) => {
                    let width = rank_width(*candidates);
                    let made_of = self.scratch.get(&gpu, "ranked", rows * width)?;
                    let next = gpu.upload(&next[from..from + rows])?;
                    rank(&gpu, all(&made), rows, vocab, &next, *candidates, &made_of)?;
                    let mut host = vec![0.0; rows * width];
                    gpu.read(&made_of, 0, &mut host)?;
                    outlooks.extend(host.chunks_exact(width).map(|row| outlook(row, true)));
                }
            }
        }
        // The last row is made as that of a single token, so that asking for the others changes nothing.
        self.head(At(x, (count - 1) * d))?;
        if let Some((candidates, _, outlooks)) = ranked {
            let mut row = vec![0.0; rank_width(candidates)];
            self.rank(candidates)?;
            gpu.read(&self.ranked, 0, &mut row)?;
            outlooks.push(outlook(&row, false));
        }
        let at = out.len();
        out.resize(at + vocab, 0.0);
        gpu.read(&self.logits, 0, &mut out[at..])?;
        self.cap(out);
        Ok(())
    }
}

/// Which of the two workspaces holds activations of a type.
pub(super) trait Workspace: Element {
    fn of<'a>(wide: &'a Scratch<f32>, halves: &'a Scratch<bf16>) -> &'a Scratch<Self>;
}

impl Workspace for f32 {
    fn of<'a>(wide: &'a Scratch<f32>, _: &'a Scratch<bf16>) -> &'a Scratch<f32> {
        wide
    }
}

impl Workspace for bf16 {
    fn of<'a>(_: &'a Scratch<f32>, halves: &'a Scratch<bf16>) -> &'a Scratch<bf16> {
        halves
    }
}
