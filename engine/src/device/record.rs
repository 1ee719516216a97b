//! What leaves the GPU for the record of a run: many quantities, in one launch and one copy to pinned memory.

use statescope_kernels::cuda::{At, Buffer, ENTRY_WORDS, Element, Entry, Gpu, Pinned, Result, record};

pub(super) use statescope_kernels::cuda::{Taken, Written};

use crate::hooks::Hooks;
use crate::protocol::Point;

/// Numbers that are staged at once, unless one quantity has more.
const STAGED: usize = 8 << 20;

/// One quantity of a layer, and where it lies among the staged numbers.
#[derive(Clone, Copy)]
struct Place {
    layer: usize,
    part: usize,
    point: Point,
    from: usize,
    len: usize,
}

/// Gathers quantities and hands them to the observer.
pub(super) struct Recorder {
    layer: usize,
    part: usize,
    places: Vec<Place>,
    entries: Vec<Entry>,
    used: usize,
    table: Buffer<u32>,
    staged: Buffer<f32>,
    host: Pinned<f32>,
    /// Quantities that did not fit with the others: (place, numbers), copied already.
    early: Vec<(Place, Vec<f32>)>,
}

/// Numbers a token of what is taken.
pub(super) fn width<T: Element>(taken: &Taken<'_, T>) -> usize {
    match taken {
        Taken::Rows { width, .. } => *width,
        Taken::Steps { bias, .. } => bias.len(),
        Taken::Write(_) => 1,
    }
}

impl Recorder {
    /// For up to `entries` quantities at once.
    pub(super) fn new(gpu: &Gpu, entries: usize) -> Result<Self> {
        Ok(Self {
            layer: 0,
            part: 0,
            places: Vec::new(),
            entries: Vec::new(),
            used: 0,
            table: gpu.zeros(entries * ENTRY_WORDS)?,
            staged: gpu.zeros(1 << 16)?,
            host: gpu.pinned(1 << 16)?,
            early: Vec::new(),
        })
    }

    /// Says whose quantities come.
    pub(super) fn enter(&mut self, layer: usize, part: usize) {
        (self.layer, self.part) = (layer, part);
    }

    /// Notes a quantity of `tokens` tokens, which has to stay where it is until [`Recorder::show`].
    pub(super) fn take<T: Element>(
        &mut self,
        gpu: &Gpu,
        point: Point,
        taken: Taken<'_, T>,
        tokens: usize,
    ) -> Result<()> {
        let from = self.room(gpu, tokens, width(&taken))?;
        self.entries.push(Entry::new(taken, tokens, At(&self.staged, from)));
        self.place(point, from, tokens * width(&taken));
        Ok(())
    }

    /// As [`Recorder::take`], staged at once: it need not stay where it is.
    pub(super) fn take_now<T: Element>(
        &mut self,
        gpu: &Gpu,
        point: Point,
        taken: Taken<'_, T>,
        tokens: usize,
    ) -> Result<()> {
        let from = self.room(gpu, tokens, width(&taken))?;
        Entry::new(taken, tokens, At(&self.staged, from)).run(gpu, tokens)?;
        self.place(point, from, tokens * width(&taken));
        Ok(())
    }

    fn place(&mut self, point: Point, from: usize, len: usize) {
        self.places.push(Place { layer: self.layer, part: self.part, point, from, len });
        self.used = from + len;
    }

    /// Where `tokens` rows of `width` numbers can be staged.
    fn room(&mut self, gpu: &Gpu, tokens: usize, width: usize) -> Result<usize> {
        let len = tokens * width;
        if (self.entries.len() + 1) * ENTRY_WORDS > self.table.len() || (self.used + len > STAGED && self.used > 0) {
            self.bring(gpu, tokens)?;
        }
        if self.used + len > self.staged.len() {
            // What was noted before speaks of the old buffer.
            if self.used > 0 {
                self.bring(gpu, tokens)?;
            }
            self.reserve(gpu, len.max(STAGED))?;
        }
        Ok(self.used)
    }

    /// Room for `len` numbers. Nothing may be noted yet.
    fn reserve(&mut self, gpu: &Gpu, len: usize) -> Result<()> {
        if len > self.staged.len() {
            self.host = gpu.pinned(len)?;
            self.staged = gpu.zeros(len)?;
        }
        Ok(())
    }

    /// Starts moving all that is noted to the host.
    fn start(&mut self, gpu: &Gpu, tokens: usize) -> Result<()> {
        if self.entries.is_empty() {
            return gpu.copy_out(&self.staged, 0, &mut self.host, 0, self.used);
        }
        gpu.write(&self.table, 0, Entry::words(&self.entries))?;
        self.start_again(gpu, tokens)
    }

    /// As the last time, with what is there now.
    fn start_again(&mut self, gpu: &Gpu, tokens: usize) -> Result<()> {
        record(gpu, &self.table, self.entries.len(), tokens)?;
        gpu.copy_out(&self.staged, 0, &mut self.host, 0, self.used)
    }

    /// Brings what is noted to the host now, to make room for more.
    fn bring(&mut self, gpu: &Gpu, tokens: usize) -> Result<()> {
        self.start(gpu, tokens)?;
        gpu.wait()?;
        let host = self.host.as_slice();
        self.early
            .extend(self.places.drain(..).map(|place| (place, host[place.from..place.from + place.len].to_vec())));
        self.entries.clear();
        self.used = 0;
        Ok(())
    }

    /// Brings all that is noted to the host and shows it.
    pub(super) fn show(&mut self, gpu: &Gpu, tokens: usize, hooks: &mut Hooks<'_>) -> Result<()> {
        if self.used > 0 {
            self.start(gpu, tokens)?;
            gpu.wait()?;
        }
        for (place, values) in self.early.drain(..) {
            hooks.enter(place.layer, place.part);
            hooks.show(place.point, &values);
        }
        self.hand_over(hooks);
        self.forget();
        Ok(())
    }

    fn hand_over(&self, hooks: &mut Hooks<'_>) {
        let host = self.host.as_slice();
        for place in &self.places {
            hooks.enter(place.layer, place.part);
            hooks.show(place.point, &host[place.from..place.from + place.len]);
        }
    }

    /// Whether something noted has to stay where it is.
    pub(super) fn holds(&self) -> bool {
        !self.entries.is_empty()
    }

    pub(super) fn forget(&mut self) {
        self.places.clear();
        self.entries.clear();
        self.early.clear();
        self.used = 0;
    }

    pub(super) fn bytes(&self) -> usize {
        self.staged.len() * size_of::<f32>()
    }
}

/// The same quantities of token after token: the table is made once.
pub(super) struct TokenRecorder {
    recorder: Recorder,
    /// Whether the table is on the GPU.
    ready: bool,
}

impl TokenRecorder {
    /// For up to `entries` quantities.
    pub(super) fn new(gpu: &Gpu, entries: usize) -> Result<Self> {
        Ok(Self { recorder: Recorder::new(gpu, entries)?, ready: false })
    }

    /// Notes which quantities from now on: (layer, part, point, quantity).
    pub(super) fn choose(&mut self, gpu: &Gpu, chosen: &[(usize, usize, Point, Taken<'_, f32>)]) -> Result<()> {
        self.ready = false;
        self.recorder.forget();
        self.recorder.reserve(gpu, chosen.iter().map(|(.., taken)| width(taken)).sum())?;
        for (layer, part, point, taken) in chosen {
            self.recorder.enter(*layer, *part);
            self.recorder.take(gpu, *point, *taken, 1)?;
        }
        Ok(())
    }

    /// Starts the copies of the chosen quantities.
    pub(super) fn start(&mut self, gpu: &Gpu) -> Result<()> {
        if self.recorder.entries.is_empty() {
            return Ok(());
        }
        if !self.ready {
            self.ready = true;
            return self.recorder.start(gpu, 1);
        }
        self.recorder.start_again(gpu, 1)
    }

    /// Shows them, once they have been waited for.
    pub(super) fn show(&self, hooks: &mut Hooks<'_>) {
        self.recorder.hand_over(hooks);
    }

    pub(super) fn bytes(&self) -> usize {
        self.recorder.bytes()
    }
}
