//! What leaves the GPU for the record of a run. Of one token many quantities, in one launch that writes to pinned memory. Of a prompt each in
//! a launch of its own, as soon as it is made; a layer's are copied together, and the host takes them up while the GPU goes on.

use std::ops::Range;

use statescope_kernels::cuda::{At, Buffer, ENTRY_WORDS, Element, Entry, Gpu, Mark, Pinned, Result, To, record};

pub(super) use statescope_kernels::cuda::{Taken, Written};

use crate::hooks::Hooks;
use crate::protocol::Point;

/// Numbers that are staged at once, unless one quantity has more.
const STAGED: usize = 80 << 20;
/// Numbers worth a copy of their own while more is being computed.
const BATCH: usize = 1 << 18;

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
    /// How many of the places and of the staged numbers are on their way to the host, and when those of each batch have arrived.
    sent: (usize, usize),
    batches: Vec<(usize, Mark)>,
    table: Buffer<u32>,
    staged: Buffer<f32>,
    /// Bytes of memory that are left to others, unless there is no room for anything else.
    spared: usize,
    host: Pinned<f32>,
    /// Quantities that did not fit with the others: (place, numbers).
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
            sent: (0, 0),
            batches: Vec::new(),
            table: gpu.zeros(entries * ENTRY_WORDS)?,
            staged: gpu.zeros(1 << 16)?,
            spared: 0,
            host: gpu.pinned(1 << 16)?,
            early: Vec::new(),
        })
    }

    /// Says whose quantities come.
    pub(super) fn enter(&mut self, layer: usize, part: usize) {
        (self.layer, self.part) = (layer, part);
    }

    /// Notes a quantity of `tokens` tokens, for which there is room on the host, and which has to stay where it is until it is moved.
    fn take<T: Element>(&mut self, point: Point, taken: Taken<'_, T>, tokens: usize) {
        let from = self.used;
        self.entries.push(Entry::new(taken, tokens, To::Here(&self.host, from)));
        self.place(point, from, tokens * width(&taken));
    }

    /// As [`Recorder::take`], staged at once: it need not stay where it is.
    pub(super) fn take_now<T: Element>(
        &mut self,
        gpu: &Gpu,
        point: Point,
        taken: Taken<'_, T>,
        tokens: usize,
    ) -> Result<()> {
        let len = tokens * width(&taken);
        if self.used + len > STAGED.max(self.staged.len()) {
            self.bring(gpu)?;
        }
        if self.used + len > self.staged.len() {
            self.bring(gpu)?;
            self.reserve(gpu, len.max((2 * self.staged.len()).clamp(1 << 22, STAGED)), len)?;
        }
        Entry::new(taken, tokens, At(&self.staged, self.used)).run(gpu, tokens)?;
        self.place(point, self.used, len);
        Ok(())
    }

    fn place(&mut self, point: Point, from: usize, len: usize) {
        self.places.push(Place { layer: self.layer, part: self.part, point, from, len });
        self.used = from + len;
    }

    /// Says how many numbers a prompt will leave: room made at once costs less than room made as it comes; and how many bytes of memory
    /// reading it needs besides.
    pub(super) fn expect(&mut self, gpu: &Gpu, len: usize, spared: usize) -> Result<()> {
        self.forget();
        self.spared = spared;
        self.reserve(gpu, len.min(STAGED), 0)
    }

    /// Room for `len` numbers, or where there is no memory for so many for `least`. Nothing may be noted yet.
    fn reserve(&mut self, gpu: &Gpu, len: usize, least: usize) -> Result<()> {
        if len <= self.staged.len() {
            return Ok(());
        }
        let fits = gpu.room()? >= len * size_of::<f32>() + self.spared;
        let staged = match fits.then(|| gpu.zeros(len)).transpose() {
            Ok(Some(staged)) => staged,
            Err(error) if !error.is_memory() => return Err(error),
            _ if least <= self.staged.len() => return Ok(()),
            _ => gpu.zeros(least)?,
        };
        (self.host, self.staged) = (gpu.pinned(staged.len())?, staged);
        Ok(())
    }

    /// Starts moving all that is noted to the host.
    fn start(&mut self, gpu: &Gpu, tokens: usize) -> Result<()> {
        gpu.write(&self.table, 0, Entry::words(&self.entries))?;
        self.start_again(gpu, tokens)
    }

    /// As the last time, with what is there now.
    fn start_again(&mut self, gpu: &Gpu, tokens: usize) -> Result<()> {
        record(gpu, &self.table, self.entries.len(), tokens)
    }

    /// Starts the copy of what is staged, if that is much; the GPU goes on.
    pub(super) fn send(&mut self, gpu: &Gpu) -> Result<()> {
        if self.used - self.sent.1 < BATCH { Ok(()) } else { self.send_all(gpu) }
    }

    fn send_all(&mut self, gpu: &Gpu) -> Result<()> {
        let from = self.sent.1;
        gpu.copy_out(&self.staged, from, &mut self.host, from, self.used - from)?;
        self.sent = (self.places.len(), self.used);
        self.batches.push((self.places.len(), gpu.mark()?));
        Ok(())
    }

    /// Brings what is staged to the host now, to make room for more.
    fn bring(&mut self, gpu: &Gpu) -> Result<()> {
        if self.used == 0 {
            return Ok(());
        }
        self.send_all(gpu)?;
        gpu.wait()?;
        let host = self.host.as_slice();
        self.early
            .extend(self.places.drain(..).map(|place| (place, host[place.from..place.from + place.len].to_vec())));
        self.batches.clear();
        (self.used, self.sent) = (0, (0, 0));
        Ok(())
    }

    /// Shows all that is staged, each batch as it arrives.
    pub(super) fn show(&mut self, gpu: &Gpu, hooks: &mut Hooks<'_>) -> Result<()> {
        if self.used > self.sent.1 {
            self.send_all(gpu)?;
        }
        for (place, values) in self.early.drain(..) {
            hooks.enter(place.layer, place.part);
            hooks.show(place.point, &values);
        }
        let mut from = 0;
        for (to, arrived) in std::mem::take(&mut self.batches) {
            gpu.wait_for(&arrived)?;
            self.hand_over(from..to, hooks);
            from = to;
        }
        self.forget();
        Ok(())
    }

    fn hand_over(&self, places: Range<usize>, hooks: &mut Hooks<'_>) {
        let host = self.host.as_slice();
        for place in &self.places[places] {
            hooks.enter(place.layer, place.part);
            hooks.show(place.point, &host[place.from..place.from + place.len]);
        }
    }

    pub(super) fn forget(&mut self) {
        self.places.clear();
        self.entries.clear();
        self.early.clear();
        self.batches.clear();
        (self.used, self.sent) = (0, (0, 0));
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
        let len = chosen.iter().map(|(.., taken)| width(taken)).sum();
        self.recorder.reserve(gpu, len, len)?;
        for (layer, part, point, taken) in chosen {
            self.recorder.enter(*layer, *part);
            self.recorder.take(*point, *taken, 1);
        }
        Ok(())
    }

    /// Starts the copies of the chosen quantities.
    pub(super) fn start(&mut self, gpu: &Gpu) -> Result<()> {
        if !self.takes_any() {
            return Ok(());
        }
        if !self.ready {
            self.ready = true;
            return self.recorder.start(gpu, 1);
        }
        self.recorder.start_again(gpu, 1)
    }

    /// Whether anything is chosen.
    pub(super) fn takes_any(&self) -> bool {
        !self.recorder.entries.is_empty()
    }

    /// Shows them, once they have been waited for.
    pub(super) fn show(&self, hooks: &mut Hooks<'_>) {
        self.recorder.hand_over(0..self.recorder.places.len(), hooks);
    }
}
