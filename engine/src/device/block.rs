//! One block on the GPU: see [`crate::model::block`].

use statescope_kernels::Dtype;
use statescope_kernels::cuda::{Buffer, Element, Input, Result, TokenLayer, TokenShape};

use super::memory::Slot;
use super::mlp::Mlp;
use super::record::{Taken, width};
use super::upload::{Norm, Upload};
use super::{Added, DeviceMixer, Rows, Token, TokenPart, all};
use crate::model::block::Block as Host;
use crate::model::feed_forward::FeedForward;
use crate::protocol::Point;

/// A layer's weights, and room for what one token makes.
pub(super) struct Block {
    parts: Vec<Part>,
    feed_forward: Option<(Norm, Mlp)>,
    parallel: bool,
    residual_scale: f32,
    /// `[d]`: the residual stream between mixers and feed-forward, and after the layer.
    middle: Buffer<f32>,
    pub(super) resid: Buffer<f32>,
}

struct Part {
    /// With the factor on the mixer's input in it.
    norm: Norm,
    pub(super) mixer: DeviceMixer,
    output_scale: f32,
}

/// A block on the GPU, or what in it has no kernels there.
pub(super) enum Uploaded {
    Here(Box<Block>),
    Missing(String),
}

impl Block {
    pub(super) fn upload(host: &Host, width: usize, residual_scale: f32, to: &Upload<'_>) -> Result<Uploaded> {
        if host.shared.is_some() {
            return Ok(Uploaded::Missing("shared transformer block".into()));
        }
        let feed_forward = match &host.feed_forward {
            None => None,
            Some((norm, FeedForward::Mlp(mlp))) => match Mlp::upload(mlp, to)? {
                Some(mlp) => Some((to.norm(norm, 1.0)?, mlp)),
                None => return Ok(Uploaded::Missing("MLP".into())),
            },
            Some((_, FeedForward::Moe(_))) => return Ok(Uploaded::Missing("mixture of experts".into())),
            Some((_, FeedForward::ChannelMix(_))) => return Ok(Uploaded::Missing("channel mixing".into())),
        };
        let mut parts = Vec::new();
        if let Some(norm) = &host.norm {
            for part in &host.parts {
                let Some(mixer) = part.mixer.upload(to)? else {
                    return Ok(Uploaded::Missing(part.mixer.geometry().kind.label().to_owned()));
                };
                parts.push(Part { norm: to.norm(norm, part.input_scale)?, mixer, output_scale: part.output_scale });
            }
        }
        let (middle, resid) = (to.room(width)?, to.room(width)?);
        let parallel = host.parallel;
        Ok(Uploaded::Here(Box::new(Self { parts, feed_forward, parallel, residual_scale, middle, resid })))
    }

    /// One empty memory a mixer; none for a layer without.
    pub(super) fn slots(&self, to: &Upload<'_>) -> Result<Vec<Option<Slot>>> {
        if self.parts.is_empty() {
            let none = Slot { state: to.gpu.zeros(0)?, conv: to.gpu.zeros(0)?, cache: None, kv_width: 0 };
            return Ok(vec![Some(none)]);
        }
        self.parts.iter().map(|part| part.mixer.slot(to.gpu).map(Some)).collect()
    }

    /// One token: x `[d]` to `self.resid`.
    pub(super) fn step(&self, token: &Token<'_>, x: &Buffer<f32>, slots: &[Option<Slot>]) -> Result<()> {
        let (mut from, residual_scale) = (x, self.residual_scale);
        let to = if self.feed_forward.is_some() { &self.middle } else { &self.resid };
        for (part, slot) in self.parts.iter().zip(slots.iter().flatten()) {
            let added = Added { from, to, output_scale: part.output_scale, residual_scale };
            part.mixer.step(token, part.norm.input(all(x)), slot, added)?;
            from = to;
        }
        if let Some((norm, mlp)) = &self.feed_forward {
            let input: Input<'_> = norm.input(all(if self.parallel { x } else { from }));
            mlp.step(token, input, Added { from, to: &self.resid, output_scale: mlp.output_scale, residual_scale })?;
        }
        Ok(())
    }

    /// As a layer of a model that runs one token in one launch, if it is a mixer after an RMS norm and nothing else.
    pub(super) fn token_layer(&self, slot: &Slot) -> Option<(TokenShape, TokenLayer)> {
        let ([part], None) = (&self.parts[..], &self.feed_forward) else { return None };
        if part.norm.layer || part.norm.bias.is_some() {
            return None;
        }
        let (output_scale, residual_scale) = (part.output_scale, self.residual_scale);
        part.mixer.token_layer(&TokenPart { norm: &part.norm, slot, resid: &self.resid, output_scale, residual_scale })
    }

    /// What the last [`Block::step`] left to be recorded: (part, point, quantity).
    pub(super) fn quantities(&self) -> Vec<(usize, Point, Taken<'_, f32>)> {
        let row = |from| Taken::Rows { from: all(from), stride: from.len(), width: from.len() };
        let mut quantities = Vec::new();
        for (index, part) in self.parts.iter().enumerate() {
            quantities.extend(part.mixer.quantities().into_iter().map(|(point, taken)| (index, point, taken)));
        }
        if let (true, Some((_, mlp))) = (self.parts.is_empty(), &self.feed_forward) {
            quantities.push((0, Point::Out, row(&mlp.output.out)));
        }
        quantities.push((0, Point::Resid, row(&self.resid)));
        quantities
    }

    /// How many numbers those are.
    pub(super) fn numbers(&self) -> usize {
        self.quantities().iter().map(|(.., taken)| width(taken)).sum()
    }

    /// How strongly the last [`Block::step`] wrote, in its first mixer.
    pub(super) fn strength(&self) -> Option<Taken<'_, f32>> {
        self.parts.first().map(|part| part.mixer.strength())
    }

    /// Many tokens: x `[T, d]`, in place.
    pub(super) fn rows<T: Element>(
        &self,
        rows: &mut Rows<'_, T>,
        layer: usize,
        x: &Buffer<f32>,
        slots: &[Option<Slot>],
    ) -> Result<()> {
        let (gpu, count, width) = (rows.gpu, rows.count, self.resid.len());
        let added = |output_scale| Added { from: x, to: x, output_scale, residual_scale: self.residual_scale };
        let mut feed_forward = None;
        if let (true, Some((norm, _))) = (self.parallel, &self.feed_forward) {
            let normed = rows.own("mlp normed", width)?;
            norm.rows(gpu, count, all(x), &normed)?;
            feed_forward = Some(normed);
        }
        // All mixers of a layer read what it was given.
        let before = match self.parts.len() {
            0 | 1 => x.clone(),
            _ => {
                let before = rows.wide("before", width)?;
                gpu.copy(x, &before)?;
                before
            }
        };
        for (index, (part, slot)) in self.parts.iter().zip(slots.iter().flatten()).enumerate() {
            rows.recorder.enter(layer, index);
            // Strength is that of the first mixer.
            if index > 0 && !rows.records_all() {
                rows.depth = crate::hooks::Depth::Nothing;
            }
            let normed = rows.own("normed", width)?;
            part.norm.rows(gpu, count, all(&before), &normed)?;
            part.mixer.rows(rows, &normed, slot, added(part.output_scale))?;
        }
        rows.recorder.enter(layer, 0);
        if let Some((norm, mlp)) = &self.feed_forward {
            let normed = match feed_forward {
                Some(normed) => normed,
                None => {
                    let normed = rows.own("normed", width)?;
                    norm.rows(gpu, count, all(x), &normed)?;
                    normed
                }
            };
            // Beside a mixer, `Out` is the mixer's.
            let depth = rows.depth;
            if !self.parts.is_empty() {
                rows.depth = crate::hooks::Depth::Nothing;
            }
            mlp.rows(rows, &normed, added(mlp.output_scale))?;
            rows.depth = depth;
        }
        rows.show(Point::Resid, Taken::Rows { from: all(x), stride: width, width })?;
        rows.recorder.send(gpu)
    }
}

/// Whether weights of this type have kernels.
pub(super) fn supported(dtype: Dtype) -> bool {
    dtype != Dtype::Q8
}
