//! The seam between computing and looking: every quantity of a forward pass goes by here once.
//!
//! The forward pass is the same code whether anyone looks or not; an observer only copies (law 5: probes never change outputs).
//! An editor may change a quantity before it is used; none is installed unless an intervention asks for it.

use crate::protocol::Point;

/// How much of a layer is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    #[default]
    Nothing,
    /// One number a token: how strongly the layer writes.
    Strength,
    Everything,
}

/// Receives quantities of a forward pass.
pub trait Observer {
    /// Whether `observe` should be called for this layer at all.
    fn wants(&self, layer: usize) -> bool;
    /// How much of this layer is worth copying from where it was computed, should that cost something.
    fn depth(&self, layer: usize) -> Depth {
        if self.wants(layer) { Depth::Everything } else { Depth::Nothing }
    }
    /// `values` `[rows, …]` of the mixer `part` of a layer: the rows of consecutive tokens, the first at absolute position `first`. What
    /// belongs to the layer as a whole comes under part 0.
    fn observe(&mut self, layer: usize, part: usize, point: Point, first: usize, rows: usize, values: &[f32]);
    /// Called while a device computes `rows` tokens and nothing else is to be done: the time to prepare for what will be shown.
    fn expect(&mut self, rows: usize) {
        let _ = rows;
    }
}

/// Changes quantities of a forward pass.
pub trait Editor {
    /// As [`Observer::observe`], on the values that the pass goes on with.
    fn edit(&mut self, layer: usize, part: usize, point: Point, first: usize, rows: usize, values: &mut [f32]);
}

/// Observer and editor of one pass over `rows` tokens from position `first`.
pub struct Hooks<'a> {
    pub observer: Option<&'a mut dyn Observer>,
    pub editor: Option<&'a mut dyn Editor>,
    first: usize,
    rows: usize,
    layer: usize,
    part: usize,
}

impl<'a> Hooks<'a> {
    /// Nobody looks, nobody edits.
    pub fn none() -> Self {
        Self { observer: None, editor: None, first: 0, rows: 0, layer: 0, part: 0 }
    }

    pub fn observing(observer: &'a mut dyn Observer) -> Self {
        Self { observer: Some(observer), ..Self::none() }
    }

    pub fn editing(editor: &'a mut dyn Editor) -> Self {
        Self { editor: Some(editor), ..Self::none() }
    }

    /// Called by the model before a pass. Returns where the last one was.
    pub(crate) fn begin(&mut self, first: usize, rows: usize) -> (usize, usize) {
        let last = (self.first, self.rows);
        (self.first, self.rows) = (first, rows);
        last
    }

    /// Called by the model before a layer, and before each of its mixers.
    pub(crate) fn enter(&mut self, layer: usize, part: usize) {
        (self.layer, self.part) = (layer, part);
    }

    /// Whether the current layer is looked at, for quantities that cost something to make.
    pub fn wanted(&self) -> bool {
        self.observer.as_ref().is_some_and(|o| o.wants(self.layer))
    }

    /// Whether nobody looks at the current layer or may edit it: what lies between two ops need not be made then.
    pub fn unattended(&self) -> bool {
        self.editor.is_none() && !self.wanted()
    }

    /// As [`Hooks::pass`], of one token of the pass alone: for mixers in which what a token is depends on what the one before has become.
    pub fn pass_token(&mut self, token: usize, point: Point, values: &mut [f32]) {
        if let Some(editor) = &mut self.editor {
            editor.edit(self.layer, self.part, point, self.first + token, 1, values);
        }
        if let Some(observer) = &mut self.observer
            && observer.wants(self.layer)
        {
            observer.observe(self.layer, self.part, point, self.first + token, 1, values);
        }
    }

    /// How much of a layer should be shown.
    pub fn depth(&self, layer: usize) -> Depth {
        self.observer.as_ref().map_or(Depth::Nothing, |o| o.depth(layer))
    }

    /// Lets the editor change `values`, then shows them to the observer.
    pub fn pass(&mut self, point: Point, values: &mut [f32]) {
        if let Some(editor) = &mut self.editor {
            editor.edit(self.layer, self.part, point, self.first, self.rows, values);
        }
        self.show(point, values);
    }

    /// As [`Observer::expect`].
    #[cfg(feature = "cuda")]
    pub(crate) fn expect(&mut self) {
        if let Some(observer) = &mut self.observer {
            observer.expect(self.rows);
        }
    }

    /// Shows `values` to the observer.
    pub fn show(&mut self, point: Point, values: &[f32]) {
        if let Some(observer) = &mut self.observer
            && observer.wants(self.layer)
        {
            observer.observe(self.layer, self.part, point, self.first, self.rows, values);
        }
    }
}
