//! One block: x ← x + Σ mixers(norm(x)), then x ← x + feed_forward(norm(x)).

use statescope_kernels::room::Room;

use super::feed_forward::{FeedForward, add, scale};
use super::norm::Norm;
use super::shared::SharedUse;
use super::spec::ModelSpec;
use crate::hooks::Hooks;
use crate::loader::LoadError;
use crate::loader::names::Names;
use crate::loader::weights::Weights;
use crate::mixer::none::NoMixer;
use crate::mixer::{self, Handed, Mixer, StateSlot};
use crate::protocol::Point;

/// A layer's weights.
pub struct Block {
    pub(crate) shared: Option<SharedUse>,
    /// None in a layer without a mixer.
    pub(crate) norm: Option<Norm>,
    /// The layer's own mixers; one that mixes nothing where there is none.
    pub(crate) parts: Vec<Part>,
    pub(crate) feed_forward: Option<(Norm, FeedForward)>,
    pub(crate) parallel: bool,
    pub(crate) parameters: u64,
}

pub(crate) struct Part {
    pub(crate) mixer: Box<dyn Mixer>,
    pub(crate) input_scale: f32,
    pub(crate) output_scale: f32,
}

/// What the blocks of one pass share.
pub struct Pass<'a> {
    /// `[T, d]`; empty in models without shared blocks.
    embedding: &'a [f32],
    residual_scale: f32,
    /// T.
    rows: usize,
    /// `[T, d]` each, to work in.
    normed: Room,
    added: Room,
    /// What mixers hand on to later layers.
    pub(crate) handed: Handed,
}

impl<'a> Pass<'a> {
    pub fn new(embedding: &'a [f32], residual_scale: f32, rows: usize, width: usize) -> Self {
        let len = rows * width;
        Self {
            embedding,
            residual_scale,
            rows,
            normed: Room::new(len),
            added: Room::new(len),
            handed: Handed::default(),
        }
    }
}

impl Block {
    pub fn load(spec: &ModelSpec, index: usize, weights: &Weights, names: &'static Names) -> Result<Self, LoadError> {
        let (layer, d) = (&spec.layers[index], spec.hidden_size);
        let before = weights.parameters_read();
        let scope_of = |index: usize| weights.scope(names.layer(index)).renamed(names);
        let scope = scope_of(index);
        let shared = match &layer.shared {
            Some(shared) => Some(SharedUse::load(shared, spec.norm, d, &scope, &scope_of(shared.stored_at), names)?),
            None => None,
        };
        // Beside a shared block the layer's own mixer has a scope of its own.
        let own = if shared.is_some() { scope.scope(names.beside_shared) } else { scope.clone() };
        let mut parts = Vec::new();
        for part in &layer.parts {
            let mixer = mixer::load(&part.mixer, d, &own.scope(names.mixer(&part.mixer)))?;
            parts.push(Part { mixer, input_scale: part.input_scale, output_scale: part.output_scale });
        }
        let norm = match parts.is_empty() {
            true => None,
            false => Some(Norm::load(spec.norm, names.mixer_norm, d, &own)?),
        };
        if parts.is_empty() {
            let mixer = Box::new(NoMixer { hidden_size: d });
            parts.push(Part { mixer, input_scale: 1.0, output_scale: 1.0 });
        }
        let feed_forward = match &layer.feed_forward {
            Some(feed_forward) => {
                let norm = Norm::load(spec.norm, names.mlp_norm, d, &scope)?;
                Some((norm, FeedForward::load(feed_forward, d, &scope, names)?))
            }
            None => None,
        };
        let parameters = weights.parameters_read() - before;
        Ok(Self { shared, norm, parts, feed_forward, parallel: layer.parallel, parameters })
    }

    /// The layer's own mixers, then the shared attention.
    pub fn parts(&self) -> usize {
        self.parts.len() + usize::from(self.shared.is_some())
    }

    pub fn mixer(&self, part: usize) -> &dyn Mixer {
        match &self.shared {
            Some(shared) if part == self.parts.len() => &shared.attention,
            _ => self.parts[part].mixer.as_ref(),
        }
    }

    /// Empty memory: one slot a mixer, the first with that of the feed-forward in it.
    pub fn slots(&self, width: usize) -> Vec<StateSlot> {
        let mut slots: Vec<StateSlot> = (0..self.parts()).map(|part| self.mixer(part).slot()).collect();
        let memory = self.feed_forward.as_ref().map_or(0, |(_, feed_forward)| feed_forward.memory(width));
        slots[0].shift = vec![0.0; memory];
        slots
    }

    /// Numbers stored for this layer.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// x `[T, d]` → x, in place.
    pub fn forward(
        &self,
        x: &mut [f32],
        layer: usize,
        slots: &mut [StateSlot],
        hooks: &mut Hooks<'_>,
        pass: &mut Pass<'_>,
    ) {
        let before = if self.parallel { x.to_vec() } else { Vec::new() };
        let (own, further) = slots.split_at_mut(self.parts.len());
        match (&self.shared, &self.norm) {
            (Some(shared), Some(norm)) => {
                hooks.enter(layer, self.parts.len());
                let mut input = shared.forward(x, pass.embedding, &mut further[0], hooks);
                add(&mut input, x);
                norm.forward(&input, &mut pass.normed);
            }
            (None, Some(norm)) => norm.forward(x, &mut pass.normed),
            _ => {}
        }
        if self.norm.is_some() {
            for (index, (part, slot)) in self.parts.iter().zip(&mut *own).enumerate() {
                hooks.enter(layer, index);
                part.forward(slot, hooks, pass);
                scale(&mut pass.added, pass.residual_scale);
                add(x, &pass.added);
            }
        }
        hooks.enter(layer, 0);
        if let Some((norm, feed_forward)) = &self.feed_forward {
            norm.forward(if self.parallel { &before } else { x }, &mut pass.normed);
            feed_forward.forward(&pass.normed, &mut own[0].shift, &mut pass.added);
            if self.norm.is_none() {
                hooks.pass(Point::Out, &mut pass.added);
            }
            scale(&mut pass.added, pass.residual_scale);
            add(x, &pass.added);
        }
        hooks.pass(Point::Resid, x);
    }
}

impl Part {
    /// Mixes `pass.normed` into `pass.added`.
    fn forward(&self, slot: &mut StateSlot, hooks: &mut Hooks<'_>, pass: &mut Pass<'_>) {
        let scaled;
        let input = if self.input_scale == 1.0 {
            &pass.normed[..]
        } else {
            scaled = pass.normed.iter().map(|x| x * self.input_scale).collect::<Vec<f32>>();
            &scaled[..]
        };
        if !self.mixer.prefill_after(input, &mut pass.handed, slot, hooks, &mut pass.added) {
            match pass.rows {
                1 => self.mixer.step(input, slot, hooks, &mut pass.added),
                _ => self.mixer.prefill(input, slot, hooks, &mut pass.added),
            }
        }
        scale(&mut pass.added, self.output_scale);
        hooks.pass(Point::Out, &mut pass.added);
    }
}
