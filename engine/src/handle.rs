//! The engine from outside: a thread, a bounded channel in, a bounded channel out.
//!
//! The owner never waits: commands that do not fit the channel stay in an outbox, events are polled. Dropping the handle asks the
//! worker to end and does not join it, so that a window closes at once even while a token takes seconds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, TrySendError, bounded};

use crate::protocol::{Command, Device, Event, Failure, ModelSource};
use crate::worker::Worker;

/// Commands in flight: more than a person can cause between two tokens.
const COMMANDS: usize = 256;
/// Frames in flight: enough to smooth a slow repaint, few enough that what is drawn is new.
const EVENTS: usize = 8;

/// Owns the engine thread's ends of the channels.
pub struct Handle {
    commands: Sender<Command>,
    events: Receiver<Event>,
    outbox: VecDeque<Command>,
    cancel: Arc<AtomicBool>,
    /// Whether the end of the engine has been reported.
    ended: bool,
}

impl Handle {
    /// Starts the engine thread. `wake` is called, from that thread, whenever events are waiting.
    ///
    /// # Errors
    /// The operating system refuses another thread.
    pub fn spawn(wake: impl Fn() + Send + 'static) -> std::io::Result<Self> {
        let (commands, command_receiver) = bounded(COMMANDS);
        let (event_sender, events) = bounded(EVENTS);
        let cancel = Arc::new(AtomicBool::new(false));
        let worker = Worker::new(command_receiver, event_sender, Box::new(wake), cancel.clone());
        std::thread::Builder::new().name("engine".into()).spawn(move || worker.run())?;
        Ok(Self::from_channels(commands, events, cancel))
    }

    /// A handle on someone else's engine: a test's, a recording's, a remote one's.
    pub fn from_channels(commands: Sender<Command>, events: Receiver<Event>, cancel: Arc<AtomicBool>) -> Self {
        Self { commands, events, outbox: VecDeque::new(), cancel, ended: false }
    }

    /// Sends a command; never blocks. A newer `Load` cancels the one under way.
    pub fn send(&mut self, command: Command) {
        if matches!(command, Command::Load { .. }) {
            self.cancel_loading();
        }
        // The last of these wins; older ones that never left are of no use.
        match &command {
            Command::Observe(_) => self.outbox.retain(|c| !matches!(c, Command::Observe(_))),
            Command::Seek { .. } => self.outbox.retain(|c| !matches!(c, Command::Seek { .. })),
            _ => {}
        }
        self.outbox.push_back(command);
        self.flush();
    }

    /// Stops a load under way; the model before it stays.
    pub fn cancel_loading(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// The next event, if one waits.
    pub fn poll(&mut self) -> Option<Event> {
        self.flush();
        match self.events.try_recv() {
            Ok(event) => Some(event),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => self.end(),
        }
    }

    /// Waits for the next event; for headless verbs and tests.
    pub fn wait(&mut self, timeout: Duration) -> Option<Event> {
        self.flush();
        match self.events.recv_timeout(timeout) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => self.end(),
        }
    }

    /// The engine is gone although nobody asked it to go; said once.
    fn end(&mut self) -> Option<Event> {
        (!std::mem::replace(&mut self.ended, true)).then(|| {
            Event::Failed(Failure {
                message: "the engine stopped unexpectedly; copy the prompt, close the window and start again".into(),
                details: "the engine thread ended; its last words are on standard error".into(),
            })
        })
    }

    /// Loads a model and waits for it; for headless verbs and tests.
    ///
    /// # Errors
    /// The failure's message.
    pub fn load_and_wait(&mut self, source: ModelSource) -> Result<Arc<crate::protocol::ModelInfo>, String> {
        self.send(Command::Load { source, dtype: None, device: Device::Cpu, memory: None });
        loop {
            match self.wait(Duration::from_secs(600)) {
                Some(Event::Loaded(info)) => return Ok(info),
                Some(Event::Failed(failure)) => return Err(failure.message),
                Some(_) => {}
                None => return Err("the engine did not answer".into()),
            }
        }
    }

    fn flush(&mut self) {
        while let Some(command) = self.outbox.pop_front() {
            match self.commands.try_send(command) {
                Ok(()) => {}
                Err(TrySendError::Full(command)) => {
                    self.outbox.push_front(command);
                    return;
                }
                Err(TrySendError::Disconnected(_)) => return self.outbox.clear(),
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.cancel_loading();
        // A full channel is no problem: the worker also ends when its senders are gone.
        let _ = self.commands.try_send(Command::Shutdown);
    }
}
