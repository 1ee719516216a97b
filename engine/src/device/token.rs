//! One token through the model: replayed graphs, cut where a layer runs on the CPU.

use statescope_kernels::cuda::{At, Buffer, Embed, Graph, Linear, Result, To, TokenPass, draw, rank_width};
use std::ops::Range;

use super::executor::{Asked, Carried, Executor, Layer};
use super::memory::Memory;
use super::record::Taken;
use super::{Token, all};
use crate::hooks::{Depth, Hooks};
use crate::protocol::{Point, TokenId};
use crate::runner::{Draw, Outlook, Ranked};

/// Memories whose graphs are kept: the text's, and that of a replay beside it.
const GRAPHS: usize = 2;

/// What is launched together.
#[derive(Clone)]
pub(super) enum Piece {
    /// Layers, with the embedding before the first and the head after the last.
    Gpu {
        embed: bool,
        layers: Range<usize>,
        head: bool,
    },
    Cpu(usize),
}

/// Captured launches of one token, by piece, and the memory they speak of.
pub(super) struct Graphs {
    id: (u64, u64),
    pieces: Vec<Option<Graph>>,
    /// All layers on this memory in one launch, where that can be.
    whole: Option<TokenPass>,
}

impl Executor {
    pub(super) fn step(
        &mut self,
        token: TokenId,
        position: usize,
        memory: &mut Memory,
        hooks: &mut Hooks<'_>,
        asked: Asked<'_>,
    ) -> Result<()> {
        self.choose(hooks)?;
        self.place_host.as_mut_slice().copy_from_slice(&[token, position as u32]);
        // The first token with a memory is launched as it comes; the second one captures.
        let captured = match self.graphs.iter().position(|graphs| graphs.id == memory.id) {
            Some(known) => {
                let graphs = self.graphs.remove(known);
                self.graphs.push(graphs);
                true
            }
            None => {
                if self.graphs.len() == GRAPHS {
                    self.graphs.remove(0);
                }
                let pieces = self.pieces.iter().map(|_| None).collect();
                self.graphs.push(Graphs { id: memory.id, pieces, whole: self.token_pass(memory)? });
                false
            }
        };
        let mut carried = Carried::default();
        for index in 0..self.pieces.len() {
            match self.pieces[index].clone() {
                Piece::Cpu(layer) => {
                    let x = self.residual(layer);
                    let mut x = self.gpu.download(&x)?;
                    self.on_cpu(layer, &mut x, memory, hooks, &mut carried, 1);
                    self.gpu.write(&self.residual(layer + 1), 0, &x)?;
                }
                piece => self.launch_piece(index, &piece, memory, captured, &mut carried)?,
            }
        }
        // While this one is computed.
        self.settle(hooks)?;
        match &asked {
            Asked::Ranked { ranked, .. } => self.rank(*ranked)?,
            Asked::Last(_) | Asked::All(_) => {
                self.gpu.copy_out(&self.logits, 0, &mut self.logits_host, 0, self.logits.len())?;
            }
        }
        if self.token_recorder.takes_any() {
            // What is recorded leaves while the host chooses the next token.
            self.gpu.mark_again(&self.answered)?;
            self.token_recorder.start(&self.gpu)?;
            self.gpu.mark_again(&self.arrived)?;
            self.unshown = Some(position);
            hooks.expect();
            self.gpu.wait_for(&self.answered)?;
        } else {
            self.gpu.wait()?;
        }
        if self.pieces.len() > 1 || !matches!(asked, Asked::Ranked { .. }) {
            self.settle(hooks)?;
        }
        match asked {
            Asked::Last(out) | Asked::All(out) => {
                out.clear();
                out.extend_from_slice(self.logits_host.as_slice());
                self.cap(out);
            }
            Asked::Ranked { ranked, outlooks } => outlooks.push(self.last_outlook(ranked.candidates)),
        }
        Ok(())
    }

    /// Ranks the logits of one token, and draws from them; both come to the host.
    pub(super) fn rank(&self, Ranked { candidates, draw: drawing, .. }: Ranked) -> Result<()> {
        let (logits, next) = (all(&self.logits), At(&self.next, 0));
        self.ranks.run(&self.gpu, logits, self.logits.len(), next, candidates, To::Here(&self.ranked, 0))?;
        match drawing.filter(|_| self.draws) {
            Some(Draw { temperature, uniform, limit }) => {
                draw(&self.gpu, logits, limit, temperature, uniform, To::Here(&self.drawn, 0))
            }
            None => Ok(()),
        }
    }

    /// What [`Executor::rank`] has found, once it has been waited for.
    pub(super) fn last_outlook(&self, candidates: usize) -> Outlook {
        outlook(&self.ranked.as_slice()[..rank_width(candidates)], false)
    }

    /// Runs a piece of one token: by its graph, or launch by launch.
    fn launch_piece(
        &mut self,
        index: usize,
        piece: &Piece,
        memory: &Memory,
        capture: bool,
        carried: &mut Carried,
    ) -> Result<()> {
        if self.embeds_on_cpu() && matches!(piece, Piece::Gpu { embed: true, .. }) {
            let [token, position] = [0, 1].map(|i| self.place_host.as_slice()[i]);
            let x = self.model.embed(&[token], position as usize);
            self.gpu.copy_in(&self.place_host, &self.place, 0)?;
            self.gpu.write(&self.embedding, 0, &x)?;
        }
        if matches!(piece, Piece::Gpu { embed: true, .. }) && self.keeps_embedding() {
            // The graph has not run yet; the same numbers are made on the CPU.
            let [token, position] = [0, 1].map(|i| self.place_host.as_slice()[i]);
            carried.embedding = self.model.embed(&[token], position as usize);
        }
        // In one launch, which is told the token: a graph would hold that as well.
        let whole = self.graphs.last().is_some_and(|graphs| graphs.whole.is_some());
        let graph = self.graphs.last_mut().and_then(|graphs| graphs.pieces[index].take());
        let graph = match graph {
            Some(graph) => Some(graph),
            None if capture && !whole => {
                let gpu = self.gpu.clone();
                Some(gpu.capture(|| self.launches(piece, memory))?)
            }
            None => None,
        };
        match &graph {
            Some(graph) => graph.replay()?,
            None => self.launches(piece, memory)?,
        }
        if let Some(graphs) = self.graphs.last_mut() {
            graphs.pieces[index] = graph;
        }
        Ok(())
    }

    /// The launches of a piece of one token.
    fn launches(&self, piece: &Piece, memory: &Memory) -> Result<()> {
        let Piece::Gpu { embed, layers, head } = piece else { return Ok(()) };
        let gpu = &self.gpu;
        if let Some(whole) = self.graphs.last().and_then(|graphs| graphs.whole.as_ref()) {
            whole.run(gpu, self.place_host.as_slice()[0])?;
            return if whole.has_head() { Ok(()) } else { self.head(At(&self.residual(self.layers.len()), 0)) };
        }
        if *embed && !self.embeds_on_cpu() {
            gpu.copy_in(&self.place_host, &self.place, 0)?;
            Embed {
                table: &self.embeddings,
                positions: self.positions.as_ref(),
                place: &self.place,
                scale: self.model.spec().embedding_scale,
                x: all(&self.embedding),
            }
            .run(gpu)?;
        }
        let token = Token { gpu, place: &self.place };
        for layer in layers.clone() {
            if let Layer::Gpu(block) = &self.layers[layer] {
                let first = self.model.slot_index(layer, 0);
                block.step(&token, &self.residual(layer), &memory.slots[first..first + self.model.parts(layer)])?;
            }
        }
        if *head {
            self.head(At(&self.residual(self.layers.len()), 0))?;
        }
        Ok(())
    }

    /// Logits of one row of the residual stream.
    pub(super) fn head(&self, x: At<'_>) -> Result<()> {
        let weight = self.head.as_ref().unwrap_or(&self.embeddings);
        let plain = Linear::new(weight, self.final_norm.input(x), Some(all(&self.logits)));
        Linear { output_scale: self.model.spec().logits_scale, ..plain }.run(&self.gpu)
    }

    /// The residual stream of one token before a layer.
    fn residual(&self, layer: usize) -> Buffer<f32> {
        match layer.checked_sub(1).map(|before| &self.layers[before]) {
            None => self.embedding.clone(),
            Some(Layer::Gpu(block)) => block.resid.clone(),
            Some(Layer::Cpu(resid)) => resid.clone(),
        }
    }

    /// Tells the token recorder what is looked at, if that has changed.
    fn choose(&mut self, hooks: &mut Hooks<'_>) -> Result<()> {
        let wanted: Vec<Depth> = (0..self.layers.len()).map(|layer| hooks.depth(layer)).collect();
        if wanted == self.recorded {
            return Ok(());
        }
        self.settle(hooks)?;
        let mut chosen: Vec<(usize, usize, Point, Taken<'_, f32>)> = Vec::new();
        for (layer, depth) in wanted.iter().enumerate() {
            match (&self.layers[layer], depth) {
                (Layer::Gpu(block), Depth::Everything) => {
                    let quantities = block.quantities().into_iter();
                    chosen.extend(quantities.map(|(part, point, taken)| (layer, part, point, taken)));
                }
                (Layer::Gpu(block), Depth::Strength) => {
                    chosen.extend(block.strength().map(|taken| (layer, 0, Point::Write, taken)));
                }
                _ => {}
            }
        }
        self.token_recorder.choose(&self.gpu, &chosen)?;
        self.recorded = wanted;
        Ok(())
    }
}

/// From a row of [`rank`].
pub(super) fn outlook(row: &[f32], read_on: bool) -> Outlook {
    let known = |pair: &[f32]| (pair[0].to_bits() != TokenId::MAX).then(|| (pair[0].to_bits(), pair[1]));
    Outlook {
        log_sum_exp: row[0],
        entropy_bits: row[1],
        next_logit: read_on.then_some(row[2]),
        candidates: row[3..].chunks_exact(2).filter_map(known).collect(),
    }
}

/// Runs of layers on the GPU, and layers on the CPU, in order.
pub(super) fn pieces(layers: &[Layer]) -> Vec<Piece> {
    let (mut pieces, mut from, mut embed) = (Vec::new(), 0, true);
    for (index, layer) in layers.iter().enumerate() {
        if matches!(layer, Layer::Cpu(_)) {
            if embed || from < index {
                pieces.push(Piece::Gpu { embed, layers: from..index, head: false });
            }
            pieces.push(Piece::Cpu(index));
            (from, embed) = (index + 1, false);
        }
    }
    pieces.push(Piece::Gpu { embed, layers: from..layers.len(), head: true });
    pieces
}
