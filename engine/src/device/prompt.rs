//! Many tokens through the model: launch by launch, in f32 or in bf16.

use half::bf16;
use statescope_kernels::cuda::{At, Buffer, Element, EmbedRows, Gemm, Gpu, Result, rank, rank_width};

use super::executor::{Asked, Carried, Executor, Layer};
use super::memory::Memory;
use super::token::outlook;
use super::{Rows, Scratch, all};
use crate::hooks::{Depth, Hooks};
use crate::protocol::TokenId;
use crate::room::LOGIT_ROWS;
use crate::runner::Ranked;

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
        let ids = gpu.upload(tokens)?;
        if self.embeds_on_cpu() {
            gpu.write(&x, 0, &carried.embedding)?;
        } else {
            EmbedRows {
                table: &self.embeddings,
                positions: self.positions.as_ref(),
                tokens: &ids,
                count,
                first,
                scale: self.model.spec().embedding_scale,
                x: &x,
            }
            .run(&gpu)?;
        }
        let leaves = |layer: usize| match (&self.layers[layer], hooks.depth(layer)) {
            (Layer::Gpu(block), Depth::Everything) => block.numbers(),
            (_, depth) => usize::from(depth != Depth::Nothing),
        };
        let left = count * (0..self.layers.len()).map(leaves).sum::<usize>();
        let missing = (self.workspace)(count).saturating_sub(self.worked());
        self.recorder.expect(&gpu, left, missing)?;
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
                halves: (T::NAME == bf16::NAME).then_some(&self.scratch_halves),
                recorder: &mut self.recorder,
                depth: hooks.depth(layer),
            };
            if let Layer::Gpu(block) = &self.layers[layer] {
                block.rows(&mut rows, layer, &x, &memory.slots[slots])?;
            }
        }
        self.start_logits::<T>(&x, &ids, &asked)?;
        self.recorder.show(&gpu, hooks)?;
        self.finish_logits::<T>(&x, count, asked)
    }

    /// Launches what makes the logits of the last row of the residual stream x `[T, d]`, and what ranks them and those before.
    fn start_logits<T: Workspace>(&self, x: &Buffer<f32>, ids: &Buffer<u32>, asked: &Asked<'_>) -> Result<()> {
        let count = ids.len();
        if let Asked::Ranked { ranked: Ranked { candidates, every: true, .. }, .. } = asked {
            let width = rank_width(*candidates);
            let ranked = self.scratch.get(&self.gpu, "ranked", (count - 1) * width)?;
            self.earlier_logits::<T>(x, count, |gpu, made, from, rows, vocab| {
                rank(gpu, all(made), rows, vocab, At(ids, from + 1), *candidates, At(&ranked, from * width))
            })?;
        }
        // The last row is made as that of a single token, so that asking for the others changes nothing.
        self.head(At(x, (count - 1) * self.width()))?;
        if let Asked::Ranked { ranked, .. } = asked { self.rank(*ranked) } else { Ok(()) }
    }

    /// Brings to the host what was asked for.
    fn finish_logits<T: Workspace>(&self, x: &Buffer<f32>, count: usize, asked: Asked<'_>) -> Result<()> {
        let (gpu, vocab) = (self.gpu.clone(), self.logits.len());
        let out = match asked {
            Asked::Last(out) => {
                out.clear();
                out
            }
            Asked::All(out) => {
                out.clear();
                self.earlier_logits::<T>(x, count, |gpu, made, _, rows, vocab| {
                    let at = out.len();
                    out.resize(at + rows * vocab, 0.0);
                    gpu.read(made, 0, &mut out[at..])
                })?;
                out
            }
            Asked::Ranked { ranked: Ranked { candidates, every, .. }, outlooks } => {
                let width = rank_width(candidates);
                let mut rows = vec![0.0; if every { (count - 1) * width } else { 0 }];
                gpu.read(&self.scratch.get(&gpu, "ranked", rows.len())?, 0, &mut rows)?;
                outlooks.extend(rows.chunks_exact(width).map(|row| outlook(row, true)));
                gpu.wait()?;
                outlooks.push(self.last_outlook(candidates));
                return Ok(());
            }
        };
        let at = out.len();
        out.resize(at + vocab, 0.0);
        gpu.read(&self.logits, 0, &mut out[at..])?;
        self.cap(out);
        Ok(())
    }

    /// Logits of all rows but the last, some at a time: (GPU, logits `[rows, V]`, their first row, how many, V).
    fn earlier_logits<T: Workspace>(
        &self,
        x: &Buffer<f32>,
        count: usize,
        mut take: impl FnMut(&Gpu, &Buffer<f32>, usize, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let (gpu, d, vocab) = (self.gpu.clone(), self.width(), self.model.spec().vocab_size);
        let own = T::of(&self.scratch, &self.scratch_halves);
        let weight = self.head.as_ref().unwrap_or(&self.embeddings);
        for from in (0..count - 1).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(count - 1 - from);
            let normed = own.get(&gpu, "normed", rows * d)?;
            self.final_norm.rows(&gpu, rows, At(x, from * d), &normed)?;
            let made = self.scratch.get(&gpu, "logits", rows * vocab)?;
            let gemm = Gemm::new(rows, weight, At(&normed, 0));
            Gemm { wide: Some(&made), output_scale: self.model.spec().logits_scale, ..gemm }.run(&gpu)?;
            take(&gpu, &made, from, rows, vocab)?;
        }
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
